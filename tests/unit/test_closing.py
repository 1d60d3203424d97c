"""The end of a producer is bounded, gives every waiter its outcome, and leaves no task behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from anyio import CancelScope

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResultPart,
    PassThroughMessage,
    Persistence,
    ProducerClosed,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    UndeliveredRecords,
    _bridge,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer._bridge import Bridge
from anyio_sendproducer._engine import RETRY_SECONDS
from anyio_sendproducer._loops import current_loop
from anyio_sendproducer.drivers import Driver
from anyio_sendproducer.testing import FakeDriver, Gate
from tests.support.calls import (
    Call,
    at_gate,
    never,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.clock import ManualClock, run_while_the_clock_stands_still
from tests.support.waiting import blocking_until, until

#: Seconds: far longer than any of these ends takes, and far shorter than a wait that is a fault.
GENEROUS = 30.0


class Stopwatch:
    def __init__(self) -> None:
        self._start = time.monotonic()

    def check(self) -> None:
        assert time.monotonic() - self._start < GENEROUS


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


def values(fake: FakeDriver) -> list[bytes]:
    return [what.value for log in fake.written.values() for what in log]


async def fate(delivery: Delivery) -> Persistence:
    """The persistence of a record that was not delivered."""
    with pytest.raises(DeliveryError) as caught:
        await delivery.wait()
    return caught.value.persistence


# --- a clean end -----------------------------------------------------------------------------


async def test_a_clean_end_delivers_all_accepted_records(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    before = anyio.get_running_tasks()
    fake.on_submit.shut()
    async with (
        task_group() as tasks,
        open_send_producer(settings, driver=fake) as producer,
    ):
        deliveries = [producer.enqueue_nowait(record(b"%d" % n)) for n in range(10)]
        await at_gate(fake.on_submit)
        deliveries += [producer.enqueue_nowait(record(b"%d" % n)) for n in range(10, 20)]
        tasks.start_soon(_open_when_draining, producer, fake.on_submit)
    assert values(fake) == [b"%d" % n for n in range(20)]
    assert all(delivery.done for delivery in deliveries)
    assert producer.statistics().delivered == 20
    assert producer.statistics().state == "closed"
    assert len(fake.closed) == 1
    assert set(anyio.get_running_tasks()) == set(before)


async def _open_when_draining(producer: SendProducer, gate: Gate) -> None:
    await until(lambda: producer.statistics().state == "draining")
    gate.open()


async def test_a_clean_end_without_records_does_not_wait(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    begun = time.monotonic()
    async with open_send_producer(settings.evolve(close_timeout=60.0), driver=fake):
        pass
    assert time.monotonic() - begun < GENEROUS
    assert 0 < fake.closed[0] <= 1.0  # the client has a short time to end by itself


async def test_timeouts_of_zero(settings: ProducerSettings, fake: FakeDriver) -> None:
    none = settings.evolve(close_timeout=0, cancel_timeout=0)
    async with open_send_producer(none, driver=fake) as producer:
        await producer.send(record())
    assert producer.statistics().delivered == 1
    with pytest.raises(KeyError):
        async with open_send_producer(none, driver=fake):
            raise KeyError


async def test_records_of_an_unknown_topic_are_drained(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")

    async def learn(producer: SendProducer) -> None:
        await until(lambda: producer.statistics().state == "draining")
        fake.learn("new")

    async with (
        task_group() as tasks,
        clock.open(settings, driver=fake) as producer,
    ):
        delivery = producer.enqueue_nowait(record(topic="new"))
        await until(lambda: bool(fake.batches))
        tasks.start_soon(learn, producer)
    assert (await delivery.wait()).topic == "new"


# --- bounded ---------------------------------------------------------------------------------


async def test_a_clean_end_is_bounded_by_close_timeout(
    settings: ProducerSettings, stopwatch: Stopwatch
) -> None:
    fake = FakeDriver(manual=True)
    with raising(UndeliveredRecords):
        async with open_send_producer(settings.evolve(close_timeout=0.02), driver=fake) as producer:
            delivery = producer.enqueue_nowait(record())
            await taken(fake, 1)
    stopwatch.check()
    assert await fate(delivery) is Persistence.POSSIBLY_PERSISTED
    assert fake.closed == [0]  # with a timeout of 0, because the client still holds a record


@pytest.mark.parametrize("how", ["failed", "cancelled", "deadline"])
async def test_an_unclean_end_is_bounded_by_cancel_timeout(
    settings: ProducerSettings, stopwatch: Stopwatch, how: str
) -> None:
    fake = FakeDriver(manual=True)
    deliveries: list[Delivery] = []
    hasty = settings.evolve(close_timeout=60.0, cancel_timeout=0.02)

    async def body(scope: anyio.CancelScope) -> None:
        async with open_send_producer(hasty, driver=fake) as producer:
            deliveries.append(producer.enqueue_nowait(record()))
            await taken(fake, 1)
            if how == "failed":
                raise KeyError
            if how == "cancelled":
                scope.cancel()
            else:
                scope.deadline = anyio.current_time()
            await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        if how == "failed":
            with pytest.raises(KeyError):
                await body(scope)
        else:
            await body(scope)
    assert scope.cancelled_caught == (how != "failed")
    stopwatch.check()
    assert fake.closed == [0]
    assert await fate(deliveries[0]) is Persistence.POSSIBLY_PERSISTED


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_an_unclean_end_still_delivers_records(
    settings: ProducerSettings, fake: FakeDriver, how: str
) -> None:
    fake.on_submit.shut()
    deliveries: list[Delivery] = []
    patient = settings.evolve(cancel_timeout=60.0)

    async def body(tasks: anyio.abc.TaskGroup, scope: anyio.CancelScope) -> None:
        async with open_send_producer(patient, driver=fake) as producer:
            deliveries.append(producer.enqueue_nowait(record(b"1")))
            await at_gate(fake.on_submit)
            deliveries.append(producer.enqueue_nowait(record(b"2")))
            tasks.start_soon(_open_when_draining, producer, fake.on_submit)
            if how == "failed":
                raise KeyError
            scope.cancel()
            await anyio.sleep_forever()

    async with task_group() as tasks:
        with anyio.CancelScope() as scope:
            if how == "failed":
                with pytest.raises(KeyError):
                    await body(tasks, scope)
            else:
                await body(tasks, scope)
    assert values(fake) == [b"1", b"2"]
    assert [(await delivery.wait()).offset for delivery in deliveries] == [0, 1]


async def test_a_queued_record_is_not_persisted(
    settings: ProducerSettings, fake: FakeDriver, stopwatch: Stopwatch
) -> None:
    fake.on_submit.shut()
    with raising(UndeliveredRecords):
        async with open_send_producer(settings.evolve(close_timeout=0.02), driver=fake) as producer:
            producer.enqueue_nowait(record(b"at the gate"))
            await at_gate(fake.on_submit)
            queued = producer.enqueue_nowait(record(b"queued"))
    stopwatch.check()
    assert await fate(queued) is Persistence.NOT_PERSISTED
    assert b"queued" not in values(fake)


async def test_a_held_record_is_not_persisted(
    settings: ProducerSettings, fake: FakeDriver, stopwatch: Stopwatch
) -> None:
    fake.unknown_topics.add("new")
    with raising(UndeliveredRecords):
        async with open_send_producer(settings.evolve(close_timeout=0.02), driver=fake) as producer:
            held = producer.enqueue_nowait(record(topic="new"))
            await producer.partitions_for("t")
    stopwatch.check()
    assert await fate(held) is Persistence.NOT_PERSISTED


async def test_calls_that_wait_for_room_fail_at_once(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        task_group() as tasks,
        open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer,
    ):
        delivery = producer.enqueue_nowait(record(b"accepted"))
        await taken(fake, 1)
        calls: list[Call[Any]] = [
            Call(tasks, producer.send, record(b"never")),
            Call(tasks, producer.enqueue, record(b"never")),
        ]
        many = Call(tasks, producer.send_many, [record(b"never"), record(b"never")])
        await quiet()
        closing = Call(tasks, producer.aclose)
        for call in calls:
            await call.wait()
            assert isinstance(call.error, DeliveryError)
            assert call.error.persistence is Persistence.NOT_PERSISTED
        await many.wait()
        assert isinstance(many.error, MultiDeliveryError)
        for error in many.error.errors:
            assert error.persistence is Persistence.NOT_PERSISTED
        # The second record was not in line yet, and its cause says why.
        assert isinstance(many.error.errors[1].__cause__, ProducerClosed)
        assert closing.running  # the accepted record still has time
        fake.acknowledge()
    assert (await delivery.wait()).offset == 0
    assert values(fake) == [b"accepted"]


async def test_send_many_when_the_producer_closes_halfway(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        task_group() as tasks,
        open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer,
    ):
        many = Call(tasks, producer.send_many, [record(b"%d" % n) for n in range(3)])
        await taken(fake, 1)
        await quiet()
        closing = Call(tasks, producer.aclose)
        await quiet()
        fake.acknowledge()
        await closing.wait()
    assert isinstance(many.error, MultiDeliveryError)
    kinds = [type(part) for part in many.error.parts]
    assert kinds == [MultiResultPart, DeliveryError, DeliveryError]
    assert values(fake) == [b"0"]


async def test_flush_while_the_producer_closes(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with task_group() as tasks:
        hasty = settings.evolve(close_timeout=0.02)
        with raising(UndeliveredRecords):
            async with open_send_producer(hasty, driver=fake) as producer:
                producer.enqueue_nowait(record())
                flush = Call(tasks, producer.flush)
                await taken(fake, 1)
    assert not flush.cancelled
    assert flush.error is None


async def test_awaited_records_at_a_forced_end(settings: ProducerSettings) -> None:
    """Every kind of waiter returns, and no failure is raised twice."""
    fake = FakeDriver(manual=True)
    hasty = settings.evolve(close_timeout=0.02)
    async with (
        task_group() as tasks,
        open_send_producer(hasty, driver=fake) as producer,
    ):
        sending = Call(tasks, producer.send, record())
        many = Call(tasks, producer.send_many, [record(), record()])
        waiting = Call(tasks, producer.enqueue_nowait(record()).wait)
        await taken(fake, 4)
        await quiet()
    for call in (sending, waiting):
        assert isinstance(call.error, DeliveryError)
        assert call.error.persistence is Persistence.POSSIBLY_PERSISTED
    assert isinstance(many.error, MultiDeliveryError)
    assert len(many.error.errors) == 2


# --- aclose ----------------------------------------------------------------------------------


async def test_aclose_inside_the_block_and_again(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await producer.aclose()
        assert delivery.done
        assert producer.statistics().state == "closed"
        await producer.aclose()
    await producer.aclose()
    assert len(fake.closed) == 1


async def test_aclose_from_two_tasks(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        producer.enqueue_nowait(record())
        await taken(fake, 1)
        async with task_group() as tasks:
            calls = [Call(tasks, producer.aclose) for _ in range(2)]
            await quiet()
            assert all(call.running for call in calls)
            fake.acknowledge()
        assert all(call.error is None for call in calls)
    assert len(fake.closed) == 1


async def test_undelivered_records_are_raised_once(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    hasty = settings.evolve(close_timeout=0.02)
    async with open_send_producer(hasty, driver=fake) as producer:
        producer.enqueue_nowait(record())
        await taken(fake, 1)
        async with task_group() as tasks:
            calls = [Call(tasks, producer.aclose) for _ in range(3)]
        errors = [call.error for call in calls if call.error is not None]
        assert [type(error) for error in errors] == [UndeliveredRecords]


async def test_a_later_close_with_less_time_counts(
    settings: ProducerSettings, stopwatch: Stopwatch
) -> None:
    """The body fails while a task drains with a longer timeout."""
    fake = FakeDriver(manual=True)
    hasty = settings.evolve(close_timeout=60.0, cancel_timeout=0.02)

    async def body(tasks: anyio.abc.TaskGroup) -> None:
        async with open_send_producer(hasty, driver=fake) as producer:
            producer.enqueue_nowait(record())
            await taken(fake, 1)
            closes.append(Call(tasks, producer.aclose))
            await quiet()
            raise KeyError

    closes: list[Call[None]] = []
    async with task_group() as tasks:
        with pytest.raises(KeyError):
            await body(tasks)
        await closes[0].wait()
    stopwatch.check()
    assert fake.closed == [0]


async def test_a_later_close_with_more_time_does_not_count(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    odd = settings.evolve(close_timeout=120.0, cancel_timeout=240.0)
    async with task_group() as tasks, open_send_producer(odd, driver=fake) as producer:
        sending = Call(tasks, producer.send, record())
        await taken(fake, 1)
        closing = Call(tasks, producer.aclose)
        await quiet()
        drain = producer._engine.closing.scope
        assert drain is not None
        deadline = drain.deadline
        closing.scope.cancel()
        await quiet()
        assert closing.running
        assert drain.deadline == deadline
        drain.deadline = anyio.current_time()
        assert (await closing.wait()).cancelled
    assert isinstance(sending.error, DeliveryError)


async def test_undelivered_records_after_a_cancelled_aclose(settings: ProducerSettings) -> None:
    """The block continues and ends cleanly, and its end raises the failures."""
    fake = FakeDriver(manual=True)
    hasty = settings.evolve(cancel_timeout=0.02)
    async with task_group() as tasks:
        with raising(UndeliveredRecords):
            async with open_send_producer(hasty, driver=fake) as producer:
                producer.enqueue_nowait(record())
                await taken(fake, 1)
                closing = Call(tasks, producer.aclose)
                await quiet()
                await closing.cancel()


# --- after the end ---------------------------------------------------------------------------


@pytest.fixture
def uses() -> Callable[[SendProducer], Iterator[Awaitable[Any]]]:
    """Every call that waits, and that a closed producer refuses."""

    def each(producer: SendProducer) -> Iterator[Awaitable[Any]]:
        yield producer.send(record())
        yield producer.send_envelope(Message(record()))
        yield producer.send_envelope(MultiMessage([record()]))
        yield producer.send_many([record()])
        yield producer.enqueue(record())
        yield producer.flush()
        yield producer.partitions_for("t")

    return each


async def test_a_closed_producer_refuses_every_call(
    settings: ProducerSettings,
    fake: FakeDriver,
    uses: Callable[[SendProducer], Iterator[Awaitable[Any]]],
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    for use in uses(producer):
        with pytest.raises(ProducerClosed) as caught:
            await use
        assert isinstance(caught.value, anyio.ClosedResourceError)
    with pytest.raises(ProducerClosed):
        producer.enqueue_nowait(record())
    assert producer.statistics().state == "closed"
    assert values(fake) == []


async def test_a_draining_producer_refuses_records(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        producer.enqueue_nowait(record())
        await taken(fake, 1)
        async with task_group() as tasks:
            Call(tasks, producer.aclose)
            await quiet()
            with pytest.raises(ProducerClosed):
                await producer.send(record())
            with pytest.raises(ProducerClosed):
                producer.enqueue_nowait(record())
            fake.acknowledge()


async def test_send_many_after_close(settings: ProducerSettings, fake: FakeDriver) -> None:
    """No record was accepted, so the error is not a MultiDeliveryError."""
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    with pytest.raises(ProducerClosed):
        await producer.send_many([record(topic=""), record()])


async def test_a_pass_through_message_works_after_the_end(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    result = await producer.send_envelope(PassThroughMessage("still"))
    assert result.pass_through == "still"


class Thinking(FakeDriver):
    """Answers `partitions_for` only when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.on_question = Gate()
        self.on_question.shut()

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        self.on_question.pass_through()
        return None

    def close(self, timeout: float, /) -> None:
        self.on_question.open()
        super().close(timeout)


async def test_partitions_for_fails_at_once_in_a_producer_that_closes(
    settings: ProducerSettings, stopwatch: Stopwatch
) -> None:
    """At every moment of the end, the call raises ProducerClosed at once."""
    fake = Thinking()
    errors: list[SendProducerError] = []

    async def ask(producer: SendProducer) -> None:
        for _ in range(3):
            try:
                await producer.partitions_for("t")
            except SendProducerError as error:
                errors.append(error)

    async with task_group() as tasks:
        hasty = settings.evolve(close_timeout=0.02)
        producer = await start_send_producer(tasks, hasty, driver=fake)
        tasks.start_soon(ask, producer)
        second = Call(tasks, producer.partitions_for, "t")
        await at_gate(fake.on_question)
        await producer.aclose()
    stopwatch.check()
    assert [type(error) for error in errors] == [ProducerClosed] * 3
    assert isinstance(second.error, ProducerClosed)


async def test_held_records_are_not_retried_on_a_closed_bridge(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    """Block the loop until the close and the next attempt at the topic are both due."""
    fake.unknown_topics.add("new")
    fake.on_close.shut()
    async with task_group() as tasks:
        hasty = settings.evolve(close_timeout=0.01)
        producer = await clock.start(tasks, hasty, driver=fake)
        held = producer.enqueue_nowait(record(topic="new"))
        await producer.partitions_for("t")
        closing = Call(tasks, producer.aclose)
        await at_gate(fake.on_close)
        fake.on_close.open()
        _join_threads()
        clock.advance(RETRY_SECONDS)
    assert isinstance(closing.error, UndeliveredRecords)
    assert await fate(held) is Persistence.NOT_PERSISTED


# --- a driver that hangs ---------------------------------------------------------------------


class Hanging(FakeDriver):
    """Hangs in one of its calls until the test opens the gate."""

    def __init__(self, where: str) -> None:
        super().__init__(manual=True)
        self.where = where
        self.gate = Gate()

    def _hang(self, where: str) -> None:
        if where == self.where:
            self.gate.pass_through()

    def open(self, sink: Any, /) -> None:
        self._hang("open")
        super().open(sink)

    def submit(self, batch: Any, /) -> Any:
        self._hang("submit")
        return super().submit(batch)

    def close(self, timeout: float, /) -> None:
        self._hang("close")
        super().close(timeout)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bridge, "GRACE_SECONDS", 0.05)


def _threads() -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if thread.name.startswith("anyio-sendproducer")
    ]


def _join_threads() -> None:
    for thread in _threads():
        thread.join()


async def let_go(driver: Hanging) -> None:
    """End the threads that were left behind. Their reports have no effect."""
    driver.gate.open()
    await anyio.to_thread.run_sync(_join_threads)
    await quiet()


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("where", ["submit", "close"])
async def test_a_driver_that_hangs_at_the_end_is_left_behind(
    settings: ProducerSettings,
    stopwatch: Stopwatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    before = anyio.get_running_tasks()
    driver = Hanging(where)
    driver.gate.shut()
    deliveries: list[Delivery] = []
    with raising(UndeliveredRecords) as caught:
        hasty = settings.evolve(close_timeout=0.02)
        async with open_send_producer(hasty, driver=driver) as producer:
            deliveries.append(producer.enqueue_nowait(record()))
            if where == "submit":
                await at_gate(driver.gate)
            else:
                await taken(driver, 1)
    stopwatch.check()
    assert caught.value.count == 1
    assert producer.statistics().state == "closed"
    assert set(anyio.get_running_tasks()) == set(before)
    # The other thread may be about to end.
    await until(lambda: len(_threads()) == 1)
    names = [thread.name for thread in _threads()]
    assert [name.endswith("-closer") for name in names] == [where == "close"]
    assert f"the thread {names[0]} did not end: it hangs in the client library" in caplog.text
    assert await fate(deliveries[0]) is Persistence.POSSIBLY_PERSISTED
    await let_go(driver)
    assert await fate(deliveries[0]) is Persistence.POSSIBLY_PERSISTED


@pytest.mark.usefixtures("short_grace")
def test_the_end_does_not_wait_for_a_clock_that_stands_still(settings: ProducerSettings) -> None:
    """A thread that hangs is left behind after a real-time bound."""
    driver = Hanging("close")
    driver.manual = False
    driver.gate.shut()

    async def main() -> None:
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(record())

    run_while_the_clock_stands_still(main)
    driver.gate.open()
    _join_threads()


# --- threads that the system does not start ----------------------------------------------------


def _start_none(monkeypatch: pytest.MonkeyPatch, *suffixes: str) -> None:
    """Make threads with these suffixes fail to start, as at the thread limit of a container."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith(suffixes):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def _run_none(monkeypatch: pytest.MonkeyPatch, *suffixes: str) -> None:
    """Make threads with these suffixes end before they run anything, as some tracers do."""
    run = threading.Thread.run

    def end(thread: threading.Thread) -> None:
        if not thread.name.endswith(suffixes):
            run(thread)

    monkeypatch.setattr(threading.Thread, "run", end)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("lack", [_start_none, _run_none])
@pytest.mark.parametrize("suffixes", [("-watcher",), ("-closer",), ("-closer", "-watcher")])
async def test_the_end_needs_neither_a_closer_nor_a_watcher_thread(
    settings: ProducerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lack: Callable[..., None],
    suffixes: tuple[str, ...],
) -> None:
    fake = FakeDriver()
    lack(monkeypatch, *suffixes)
    async with open_send_producer(settings.evolve(close_timeout=0.05), driver=fake) as producer:
        await producer.send(record())
    assert producer.statistics().state == "closed"
    await until(lambda: not _threads())
    if lack is _start_none:
        assert caplog.text.count("could not be started: can't start new thread") == len(suffixes)
    if lack is _run_none and "-closer" in suffixes:
        assert not fake.closed
        assert "the client was not closed: no thread ran to close it" in caplog.text
    else:
        assert len(fake.closed) == 1


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("lack", [_start_none, _run_none])
async def test_a_driver_that_hangs_is_left_behind_without_a_watcher(
    settings: ProducerSettings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lack: Callable[..., None],
) -> None:
    lack(monkeypatch, "-watcher")
    driver = Hanging("close")
    driver.gate.shut()
    async with open_send_producer(settings.evolve(close_timeout=0.05), driver=driver):
        pass
    await until(lambda: len(_threads()) == 1)  # the other thread may be about to end
    [left] = _threads()
    assert f"the thread {left.name} did not end: it hangs in the client library" in caplog.text
    await let_go(driver)


async def test_a_start_without_a_thread(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ProducerStartError, match="no thread could be started"):
        async with open_send_producer(settings, driver=fake):
            never()
    assert fake.closed == []  # the driver was not made


@pytest.mark.usefixtures("short_grace")
async def test_a_request_that_the_driver_does_not_answer_ends_with_the_producer(
    settings: ProducerSettings, stopwatch: Stopwatch
) -> None:
    driver = Hanging("submit")
    driver.gate.shut()
    async with task_group() as tasks:
        with raising(UndeliveredRecords):
            async with open_send_producer(
                settings.evolve(close_timeout=0.02), driver=driver
            ) as producer:
                producer.enqueue_nowait(record())
                await at_gate(driver.gate)
                question = Call(tasks, producer.partitions_for, "t")
                await quiet()
    stopwatch.check()
    assert isinstance(question.error, ProducerClosed)
    await let_go(driver)


@pytest.mark.usefixtures("short_grace")
async def test_a_driver_that_hangs_at_the_start_is_left_behind(
    settings: ProducerSettings, stopwatch: Stopwatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Hanging("open")
    driver.gate.shut()

    async def body() -> None:
        async with open_send_producer(settings, driver=driver):
            pytest.fail("the block was entered")

    async with task_group() as tasks:
        call = Call(tasks, body)
        await at_gate(driver.gate)
        await call.cancel()
    stopwatch.check()
    assert "it hangs in the client library" in caplog.text
    await let_go(driver)


class FailingClose(FakeDriver):
    def close(self, timeout: float, /) -> None:
        super().close(timeout)
        raise OSError("can't close")


async def test_an_exception_of_close_is_logged(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_send_producer(settings, driver=FailingClose()) as producer:
        await producer.send(record())
    assert "closing the driver raised an error" in caplog.text
    assert "can't close" in caplog.text


async def test_outcomes_that_the_driver_reports_in_close_count(
    settings: ProducerSettings, stopwatch: Stopwatch
) -> None:
    """The outcomes of the client count, and not those that the producer would have to assume."""

    class ReportingClose(FakeDriver):
        def close(self, timeout: float, /) -> None:
            self.acknowledge()
            super().close(timeout)

    fake = ReportingClose(manual=True)
    async with open_send_producer(settings.evolve(close_timeout=0.02), driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await taken(fake, 1)
    stopwatch.check()
    assert (await delivery.wait()).offset == 0


async def test_many_producers_at_once(settings: ProducerSettings) -> None:
    """Each producer has its own thread, and ends only this thread."""
    before = anyio.get_running_tasks()
    fakes = [FakeDriver() for _ in range(5)]

    async def use(fake: FakeDriver) -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            await producer.send(record())

    async with task_group() as tasks:
        for fake in fakes:
            tasks.start_soon(use, fake)
    assert [values(fake) for fake in fakes] == [[b"v"]] * 5
    assert set(anyio.get_running_tasks()) == set(before)


async def test_failures_while_it_drains_are_raised(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)

    async def fail(producer: SendProducer) -> None:
        await until(lambda: producer.statistics().state == "draining")
        fake.fail(refuse)

    async with task_group() as tasks:
        with raising(UndeliveredRecords, match="refused") as caught:
            async with open_send_producer(settings, driver=fake) as producer:
                producer.enqueue_nowait(record())
                await taken(fake, 1)
                tasks.start_soon(fail, producer)
    assert caught.value.count == 1


async def test_a_callback_after_the_end_has_no_effect(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        await producer.send(record())
    before = producer.statistics()
    fake.learn("another topic")
    await quiet()
    after = producer.statistics()
    assert (after.state, after.delivered) == ("closed", 1)
    # The callback woke the event loop, which ignored it.
    assert after.wake_ups == before.wake_ups + 1


async def test_an_answer_that_arrived_before_the_close_is_returned() -> None:
    """The task that asked is woken, but has not run yet."""

    gate = Gate()

    def answer(_: Driver) -> str:
        gate.pass_through()
        return "the answer"

    fake = FakeDriver()
    bridge = Bridge(current_loop(), lambda: fake, time.monotonic)
    await bridge.open()
    async with task_group() as tasks:
        gate.shut()
        question = Call(tasks, bridge.call, answer)
        await at_gate(gate)
        gate.open()
        blocking_until(lambda: bridge._worker.outbox)  # block the loop until the answer has arrived
        with CancelScope(shield=True):
            await bridge.stop(0)
        await question.wait()
    bridge.events.close()
    assert question.value == "the answer"
