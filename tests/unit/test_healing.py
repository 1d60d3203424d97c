"""A broken client is replaced, and each of its records gets the right outcome."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    TransactionError,
    UndeliveredRecords,
    _driver_thread,
    _late,
    open_send_producer,
)
from anyio_sendproducer._driver_events import BatchSubmitted, ClientOpened, Event
from anyio_sendproducer._engine_states import ClientState
from anyio_sendproducer.drivers import Submitted
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Call, at_gate, generation, quiet, raising, record, taken, task_group
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, blocking_until, until

#: A delivery_timeout that passes only if the test advances the clock; seconds.
LONG = 120.0


def values(fake: FakeDriver) -> list[bytes]:
    return [what.value for log in fake.written.values() for what in log]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pause between attempts to open another client."""
    monkeypatch.setattr(_driver_thread, "REOPEN_SECONDS", 0.001)


class Forgetful(FakeDriver):
    """Reports no outcomes for its records when it is closed."""

    def close(self, timeout: float, /) -> None:
        with self._lock:
            self._under_way.clear()
        super().close(timeout)


async def test_the_replacement_of_a_client_changes_the_ledger_within_a_step(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that the garbage collector closes meanwhile must not change the ledger."""
    async with open_send_producer(settings, driver=fake) as producer:
        engine, depths = producer._engine, list[int]()
        broken = engine.ledger.mark_broken

        def mark_broken(error: BaseException) -> list[object]:
            depths.append(engine.step.depth)
            return broken(error)

        monkeypatch.setattr(engine.ledger, "mark_broken", mark_broken)
        engine.replace_client(ProducerFenced("another producer took over"))
        assert depths == [1]


async def test_a_client_that_may_be_fenced_is_not_replaced(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The coordinator does not answer whether another producer took over."""
    doubt = ProducerFenced("another producer may have taken over")
    async with open_send_producer(settings, driver=fake, transactional_id="id") as producer:
        fake.in_trouble = doubt

        def no_answer(_: object) -> TransactionError:
            return TransactionError("there was no answer")

        fake.end_error = no_answer

        async def fail() -> None:
            async with producer.transaction() as transaction:
                await transaction.send(record())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await until(lambda: producer.statistics().state == "broken")
        assert not producer.statistics().is_connected  # so a readiness probe fails
        with raising(ProducerBroken, match="may have taken over") as caught:
            async with producer.transaction():
                pass
        assert caught.value.__cause__ is doubt
    assert fake.opened == 1


@pytest.mark.parametrize("driver", [FakeDriver, Forgetful])
async def test_a_broken_client_is_replaced(
    settings: ProducerSettings, driver: type[FakeDriver], caplog: pytest.LogCaptureFixture
) -> None:
    fake = driver(manual=True)
    cause = SendProducerError("sequence numbers went astray")
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            sending = Call(tasks, producer.send, record(b"1"))
            many = Call(tasks, producer.send_many, [record(b"2"), record(b"3")])
            await taken(fake, 3)
            fake.break_client(cause)
        for error in (sending.error, *_errors(many)):
            assert isinstance(error, DeliveryError)
            assert error.persistence is Persistence.POSSIBLY_PERSISTED
            if driver is Forgetful:
                assert error.__cause__ is cause
        await until(generation(producer, 2))
        assert (fake.opened, fake.closed) == (2, [0])
        assert "the client is given up" in caplog.text
        fake.manual = False
        assert (await producer.send(record(b"4"))).offset == 0
        figures = producer.statistics()
        assert (figures.state, figures.in_flight, figures.failed) == ("open", 0, 3)
    assert values(fake) == [b"4"]  # no record was sent again


def _errors(call: Call[Any]) -> tuple[DeliveryError, ...]:
    assert isinstance(call.error, MultiDeliveryError)
    return call.error.errors


async def test_the_next_client_writes_the_queued_records_in_order(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=4), driver=fake) as producer:
        lost = producer.enqueue_nowait(record(b"lost"))
        await taken(fake, 1)
        fake.on_close.shut()
        fake.break_client()
        await at_gate(fake.on_close)
        fake.manual = False
        # While the old client closes, three records are queued and one waits for room.
        async with task_group() as tasks:
            calls: list[Call[Any]] = []
            for number in range(4):
                calls.append(Call(tasks, producer.send, record(b"%d" % number)))
                await quiet()
            figures = producer.statistics()
            assert (figures.queued, figures.waiting) == (3, 1)
            fake.on_close.open()
        assert [call.value.offset for call in calls] == [0, 1, 2, 3]
        with pytest.raises(DeliveryError):
            await lost.wait()
        assert producer.statistics().generations == 2
    assert values(fake) == [b"0", b"1", b"2", b"3"]


async def test_held_records_go_to_the_next_client(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings, driver=fake) as producer:
        held = [producer.enqueue_nowait(record(b"%d" % n, "new")) for n in range(3)]
        await producer.partitions_for("t")
        fake.break_client()
        await until(generation(producer, 2))
        fake.learn("new")
        assert [(await delivery.wait()).offset for delivery in held] == [0, 1, 2]


async def test_every_broken_client_is_replaced(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        for number in range(2, 6):
            fake.break_client()
            await until(generation(producer, number))
            await producer.send(record())
    assert fake.opened == 5


async def test_a_client_may_report_many_times_that_it_is_broken(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Each client is given up once, and a report of the old client does not break the new one."""
    async with open_send_producer(settings, driver=fake) as producer:
        old = fake._sink
        assert old is not None
        fake.on_close.shut()
        fake.break_client()
        await at_gate(fake.on_close)
        fake.break_client()
        fake.break_client()
        await quiet()
        fake.on_close.open()
        await until(generation(producer, 2))
        old.broken(SendProducerError("stale"))
        old.broken(SendProducerError("stale"))
        await producer.send(record())
        await quiet()
        assert producer.statistics().generations == 2
        assert fake.opened == 2


async def test_a_late_outcome_of_the_old_client_has_no_effect(
    settings: ProducerSettings,
) -> None:
    fake = Forgetful(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        old = fake._sink
        assert old is not None
        delivery = producer.enqueue_nowait(record())
        await taken(fake, 1)
        submissions = [submission for submission, _ in fake._under_way]
        fake.break_client()
        with pytest.raises(DeliveryError) as caught:
            await delivery.wait()
        old.completed(submissions, [fake._write(record())])
        await until(generation(producer, 2))
        await producer.partitions_for("t")
        with pytest.raises(DeliveryError) as again:
            await delivery.wait()
        assert again.value.summary == caught.value.summary
        assert producer.statistics().delivered == 0
        assert producer.statistics().in_flight == 0


@pytest.mark.usefixtures("eager")
async def test_opening_the_next_client_is_tried_until_it_succeeds(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.open_error = ProducerStartError("no broker answers")
        fake.break_client()
        await until(lambda: len(fake.closed) >= 4)
        delivery = producer.enqueue_nowait(record())
        assert producer.statistics().generations == 1
        assert producer.statistics().state == "open"
        assert "trying again: no broker answers" in caplog.text
        fake.open_error = None
        assert (await delivery.wait()).offset == 0
        assert producer.statistics().generations == 2


async def test_a_record_that_waits_for_the_next_client_has_the_reason_of_the_last_one(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    """The next client is being opened, and no attempt has failed yet."""
    clients = [FakeDriver(), FakeDriver()]
    made = iter(clients)
    clients[0].in_trouble = SendProducerError("broker:9092 can't be reached")
    clients[1].on_open.shut()
    settings = settings.evolve(delivery_timeout=10)
    async with clock.open(settings, driver=lambda _: next(made)) as producer:
        clients[0].break_client()
        await at_gate(clients[1].on_open)
        delivery = producer.enqueue_nowait(record())
        await quiet()
        clock.advance(10)
        with pytest.raises(DeliveryTimeout, match="it was not sent: broker:9092 can't be reached"):
            await delivery.wait()
        clients[1].on_open.open()
        await until(generation(producer, 2))
        assert producer._engine.bridge.last_error() is None


@pytest.mark.parametrize("caller", ["loop", "thread"])
async def test_a_driver_whose_last_error_raises_breaks_the_producer(
    settings: ProducerSettings, caller: str
) -> None:
    class Faulty(FakeDriver):
        def last_error(self) -> Exception | None:
            is_on_loop = threading.get_ident() == loop_thread
            if faults and is_on_loop == (caller == "loop"):
                raise faults[0]
            return None

    loop_thread = threading.get_ident()
    faults: list[Exception] = []
    fake = Faulty(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await until(lambda: producer.statistics().in_flight == 1)
        faults.append(KeyError("the driver's own"))
        if caller == "loop":
            assert producer._engine.last_error() is faults[0]
        else:
            fake.break_client()
        with pytest.raises(DeliveryError):
            await delivery.wait()
        await until(lambda: producer.statistics().state == "broken")  # the thread may be slower
        with pytest.raises(ProducerBroken) as caught:
            await producer.send(record())
        assert caught.value.__cause__ is faults[0]


@pytest.mark.usefixtures("eager")
async def test_the_factory_makes_the_next_client(settings: ProducerSettings) -> None:
    """A factory that fails is called again, like a client that does not open."""
    made: list[FakeDriver] = []
    failures = [SendProducerError("not now")] * 2

    def factory(given: ProducerSettings) -> FakeDriver:
        assert given is settings
        if made and failures:
            raise failures.pop()
        made.append(FakeDriver())
        return made[-1]

    async with open_send_producer(settings, driver=factory) as producer:
        await producer.send(record(b"1"))
        made[0].break_client()
        await until(generation(producer, 2))
        await producer.send(record(b"2"))
    assert [values(fake) for fake in made] == [[b"1"], [b"2"]]
    assert failures == []
    assert all(fake.closed for fake in made)


async def test_a_request_that_waits_for_the_next_client_ends_if_the_producer_breaks(
    settings: ProducerSettings,
) -> None:
    """The thread gets the request after it has found out that no further client may be opened."""

    class Gated(FakeDriver):
        def open(self, sink: Any, /) -> None:
            if self.opened:
                reached.set()
                assert gate.wait(PATIENCE)
                raise ProducerFenced("another one")
            super().open(sink)

    reached, gate = threading.Event(), threading.Event()
    fake = Gated()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        fake.break_client()
        await until(reached.is_set)
        call = Call(tasks, producer.partitions_for, "t")
        await quiet()
        gate.set()
        error = (await call.wait()).error
        assert isinstance(error, ProducerBroken)
        assert isinstance(error.__cause__, ProducerFenced)


async def test_clients_that_deliver_nothing_are_replaced_after_growing_pauses(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the brokers accept each client, and then refuse its producer id."""
    pauses: list[float] = []
    async with open_send_producer(settings, driver=fake) as producer:
        monkeypatch.setattr(producer._engine.bridge._worker.stopping, "wait", pauses.append)

        async def break_until(generations: range) -> None:
            for number in generations:
                fake.break_client()
                await until(generation(producer, number))

        await break_until(range(2, 8))
        assert pauses == [0.5, 1, 2, 4, 4]
        await producer.send(record())
        await break_until(range(8, 9))
        assert pauses == [0.5, 1, 2, 4, 4]
        await break_until(range(9, 10))
        assert pauses == [0.5, 1, 2, 4, 4, 0.5]


async def test_the_pause_before_the_next_client_names_its_reason_and_does_not_delay_closing(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_driver_thread, "REOPEN_SECONDS", 10 * PATIENCE)
    monkeypatch.setattr(_driver_thread, "LONGEST_REOPEN_SECONDS", 10 * PATIENCE)
    began = time.monotonic()
    async with open_send_producer(settings, driver=fake) as producer:
        fake.break_client()
        await until(generation(producer, 2))
        fake.break_client(SendProducerError("no permission to write"))
        await until(lambda: len(fake.closed) == 2)
        with raising(DeliveryTimeout, match="no permission to write"):
            await producer.send(record(), timeout=0.01)
    assert fake.opened == 2
    assert time.monotonic() - began < PATIENCE


async def test_a_client_that_the_close_keeps_from_opening_is_not_tried_again(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    class Closed(FakeDriver):
        def open(self, sink: Any, /) -> None:
            reached.set()
            assert closed.wait(PATIENCE)
            raise ProducerStartError("the producer was closed while it was starting")

        def close(self, timeout: float, /) -> None:
            super().close(timeout)
            closed.set()

    reached, closed = threading.Event(), threading.Event()
    settings = settings.evolve(wait_for_cluster=False)
    async with open_send_producer(settings, driver=Closed()):
        await until(reached.is_set)
    assert caplog.messages == []


async def test_closing_is_bounded_while_no_client_can_be_opened(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between two attempts does not delay the close."""
    monkeypatch.setattr(_driver_thread, "REOPEN_SECONDS", 10 * PATIENCE)
    began = time.monotonic()
    with raising(UndeliveredRecords):
        async with open_send_producer(settings.evolve(close_timeout=0.05), driver=fake) as producer:
            fake.open_error = ProducerStartError("no broker answers")
            fake.break_client()
            await until(lambda: len(fake.closed) >= 2)
            queued = producer.enqueue_nowait(record())
    assert time.monotonic() - began < PATIENCE
    with pytest.raises(DeliveryError) as caught:
        await queued.wait()
    assert caught.value.persistence is Persistence.NOT_PERSISTED
    assert values(fake) == []


async def test_closing_while_the_next_client_is_being_opened(settings: ProducerSettings) -> None:
    clients = [FakeDriver(), FakeDriver()]
    made = iter(clients)
    clients[1].on_open.shut()
    async with open_send_producer(settings, driver=lambda _: next(made)) as producer:
        clients[0].break_client()
        await at_gate(clients[1].on_open)
    assert producer.statistics().state == "closed"
    assert [len(client.closed) for client in clients] == [1, 1]


async def test_closing_while_the_old_client_is_being_closed(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The next client is not made."""
    made: list[ProducerSettings] = []

    def factory(given: ProducerSettings) -> FakeDriver:
        made.append(given)
        return fake

    fake.on_close.shut()
    async with (
        task_group() as tasks,
        open_send_producer(settings, driver=factory) as producer,
    ):
        fake.break_client()
        await at_gate(fake.on_close)
        question = Call(tasks, producer.partitions_for, "t")
        await quiet()
        tasks.start_soon(_open_when_closing, fake)
    assert isinstance(question.error, ProducerClosed)  # no client can answer
    assert producer.statistics().generations == 1
    assert len(made) == 1
    assert fake.opened == 1


async def _open_when_closing(fake: FakeDriver) -> None:
    await at_gate(fake.on_close)  # the close at the end of the block
    fake.on_close.open()


async def test_closing_while_a_driver_is_being_made(settings: ProducerSettings) -> None:
    """The driver is not opened after it was made."""
    fake = FakeDriver()

    def slow_factory(_: ProducerSettings) -> FakeDriver:
        fake.on_open.pass_through()
        return fake

    fake.on_open.shut()
    async with task_group() as tasks:

        async def body() -> None:
            async with open_send_producer(settings, driver=slow_factory):
                pytest.fail("the block was entered")

        call = Call(tasks, body)
        await at_gate(fake.on_open)
        call.scope.cancel()
        await quiet()
        fake.on_open.open()
    assert call.cancelled
    assert fake.opened == 0


@pytest.mark.parametrize("error", [KeyError("the driver's own"), KeyboardInterrupt()])
async def test_a_driver_that_raises_on_reopening_breaks_the_producer(
    settings: ProducerSettings, fake: FakeDriver, error: BaseException
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.open_error = error
        fake.break_client()
        await until(lambda: producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken) as caught:
            await producer.send(record())
        assert caught.value.__cause__ is error
        assert producer.statistics().generations == 1


async def test_a_queued_record_is_not_persisted_if_no_client_opens(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.on_close.shut()
        fake.open_error = KeyError("the driver's own")
        fake.break_client()
        await at_gate(fake.on_close)
        queued = producer.enqueue_nowait(record())
        fake.on_close.open()
        with pytest.raises(DeliveryError) as caught:
            await queued.wait()
        assert caught.value.persistence is Persistence.NOT_PERSISTED


async def test_a_failure_that_enqueue_raises_is_not_raised_at_the_end(
    settings: ProducerSettings,
) -> None:
    """One wake-up reports that room is free and that the producer breaks."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        first = producer.enqueue_nowait(record())
        await taken(fake, 1)
        async with task_group() as tasks:
            waiting = Call(tasks, producer.enqueue, record())
            await quiet()
            fake.on_close.shut()
            fake.open_error = KeyError("the driver's own")
            fake.break_client()
            await at_gate(fake.on_close)
            # Block the loop until the outcome, the end of the client and the failure have arrived.
            fake.on_close.open()
            blocking_until(lambda: len(producer._engine.bridge._worker.outbox) >= 3)
        assert isinstance(waiting.error, DeliveryError)
        assert waiting.error.persistence is Persistence.NOT_PERSISTED
        with pytest.raises(DeliveryError):
            await first.wait()


async def test_the_next_client_answers_partitions_for(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            fake.on_close.shut()
            fake.break_client()
            await at_gate(fake.on_close)
            call = Call(tasks, producer.partitions_for, "t")
            await quiet()
            assert call.running
            fake.on_close.open()
        assert call.value == frozenset(range(4))


# --- a client that is stuck ------------------------------------------------------------------


@pytest.mark.parametrize("driver", [FakeDriver, Forgetful])
async def test_a_client_that_keeps_late_records_is_given_up(
    settings: ProducerSettings, clock: ManualClock, driver: type[FakeDriver]
) -> None:
    fake = driver(manual=True)
    narrow = settings.evolve(max_in_flight=4, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        late = [producer.enqueue_nowait(record(b"late")) for _ in range(2)]
        await taken(fake, 2)
        clock.advance(LONG)
        for delivery in late:
            with pytest.raises(DeliveryTimeout):
                await delivery.wait()
        clock.advance(_late.LATENESS)
        await until(generation(producer, 2))
        fake.manual = False
        assert (await producer.send(record(b"next"))).offset == 0
    assert fake.closed[0] == 0
    assert values(fake) == [b"next"]


async def late_record(
    producer: SendProducer, fake: FakeDriver, clock: ManualClock, value: bytes = b"v"
) -> None:
    """Send a record that the driver takes and keeps past its deadline."""
    delivery = producer.enqueue_nowait(record(value))
    await taken(fake, 1)
    clock.advance(LONG)
    with pytest.raises(DeliveryTimeout):
        await delivery.wait()


async def test_a_client_that_keeps_few_late_records_is_kept(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    roomy = settings.evolve(max_in_flight=4, delivery_timeout=LONG)
    async with clock.open(roomy, driver=fake) as producer:
        await late_record(producer, fake, clock)
        clock.advance(_late.LATENESS)
        await quiet()
        assert producer.statistics().generations == 1
        assert fake.closed == []
        fake.acknowledge()


async def test_a_client_that_keeps_many_late_bytes_is_given_up(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    narrow = settings.evolve(max_buffered_bytes=100, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        await late_record(producer, fake, clock, b"x" * 50)
        clock.advance(_late.LATENESS)
        await until(generation(producer, 2))


async def test_the_next_client_frees_the_room_of_late_records(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = Forgetful(manual=True)
    narrow = settings.evolve(max_in_flight=2, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        await late_record(producer, fake, clock)
        clock.advance(_late.LATENESS)
        await until(generation(producer, 2))
        await quiet()
        figures = producer.statistics()
        assert (figures.in_flight, figures.in_flight_bytes) == (0, 0)
        # The late record does not count against the next client.
        clock.advance(LONG)
        await quiet()
        assert producer.statistics().generations == 2


async def test_a_stuck_client_is_given_up_once(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    """More deadlines pass while the client has not ended yet."""
    fake.on_submit.shut()
    narrow = settings.evolve(max_in_flight=2, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        first = producer.enqueue_nowait(record(b"at the gate"))
        await at_gate(fake.on_submit)
        for _ in range(3):
            queued = producer.enqueue_nowait(record(b"queued"))
            clock.advance(LONG)
            with pytest.raises(DeliveryTimeout):
                await queued.wait()
        with pytest.raises(DeliveryTimeout):
            await first.wait()
        fake.on_submit.open()
        await until(generation(producer, 2))
        await producer.partitions_for("t")
        await quiet()
        assert producer.statistics().generations == 2
        assert fake.opened == 2


@pytest.mark.parametrize(
    ("size", "times"),
    [(_driver_thread.WORTH_COLLECTING, 1), (_driver_thread.WORTH_COLLECTING // 2, 0)],
)
async def test_gc_runs_for_a_client_that_holds_many_bytes(
    size: int, times: int, settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        sent = producer.enqueue_nowait(record(b"x" * size))
        await taken(fake, 1)
        collected: list[int] = []
        monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
        fake.break_client()
        await until(generation(producer, 2))
        monkeypatch.undo()
        assert len(collected) == times
        with pytest.raises(DeliveryError):
            await sent.wait()


@pytest.mark.parametrize("event", [ClientOpened(2), BatchSubmitted(Submitted())])
async def test_a_report_of_a_client_does_not_end_the_stopping(
    settings: ProducerSettings, fake: FakeDriver, event: Event
) -> None:
    """The event arrives while the driver is being closed, and the pump must not submit."""
    async with open_send_producer(settings, driver=fake) as producer:
        engine = producer._engine
        for state in (ClientState.STOPPING, ClientState.READY):
            engine.client = state
            assert not [*engine._apply(event)]
            assert engine.client is state


async def test_a_batch_of_the_old_client_does_not_end_the_reopening(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        engine = producer._engine
        engine.client = ClientState.REOPENING
        steps: list[tuple[Event, ClientState]] = [
            (BatchSubmitted(Submitted()), ClientState.REOPENING),
            (ClientOpened(2), ClientState.READY),
        ]
        for event, state in steps:
            assert not [*engine._apply(event)]
            assert engine.client is state
