"""Events are made when an observer reads them, and only if an observer wants them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerClosed,
    ProducerMisused,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    open_send_producer,
)
from anyio_sendproducer._delivery import Entry
from anyio_sendproducer._observing import Observation, ObservedLedger
from anyio_sendproducer.telemetry import (
    Accepted,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    HandedOver,
    LoggingObserver,
    Observer,
    Refused,
    Withdrawn,
)
from anyio_sendproducer.telemetry._event_batch import Bulk, EventBatch
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Call, at_gate, quiet, raising, record, refuse, taken, task_group
from tests.support.clock import ManualClock
from tests.support.observers import Declaring, Late, Numbering, Recorder, check_story

WRITTEN = RecordMetadata("t", 0, 0, 0, None, 1)
OPENED = GenerationOpened(1, 0.0)


def unread(*_: Any) -> Any:
    raise AssertionError("no observer reads these events")


def fields(numbers: Sequence[int]) -> Iterable[tuple[Any, ...]]:
    return [(number, record(), 0.0, 1) for number in numbers]


# --- the sequence --------------------------------------------------------------------------------


def test_the_length_is_known_before_the_events_are_made() -> None:
    batch = EventBatch([OPENED, Bulk(Accepted, [1, 2], unread, unread), OPENED])
    assert len(batch) == 4
    assert len(batch.only({Accepted})) == 2
    assert [*batch.only({GenerationOpened})] == [OPENED, OPENED]
    assert not batch.only({Closing})


def test_a_batch_is_a_sequence_that_makes_its_events_once() -> None:
    batch = EventBatch([OPENED, Bulk(Accepted, [1, 2], fields, Accepted)])
    events = tuple(batch)
    assert isinstance(batch, Sequence)
    assert len(events) == len(batch) == 3
    assert [getattr(event, "number", None) for event in events] == [None, 1, 2]
    assert batch[0] is OPENED
    assert batch[-1] is events[2]
    assert batch[1:] == events[1:]
    assert [*reversed(batch)] == [*reversed(events)]
    assert events[1] in batch
    assert repr(batch) == repr(events)
    assert all(one is other for one, other in zip(batch.only({Accepted}), events[1:], strict=True))
    with pytest.raises(TypeError):
        cast("Any", batch)[0] = OPENED


# --- events keep the values at their time --------------------------------------------------------


class Observed:
    """A ledger and its observer, without an event loop."""

    def __init__(self, observer: Observer) -> None:
        self.clock = ManualClock()
        self.wake_ups = 0
        self.observation = Observation(
            [observer], client_id="c", clock=self.clock, wake_pump=self._wake
        )
        self.ledger = ObservedLedger(
            self.observation, max_in_flight=2, max_buffered_bytes=100, delivery_timeout=10.0
        )

    def _wake(self) -> None:
        self.wake_ups += 1

    def enter(self) -> Entry:
        sent = record()
        entry = self.ledger.enter(sent, 1, self.clock.now())
        entry.given = (next(self.observation.numbers), sent, self.clock.now(), 1)
        if entry.seq:
            self.observation.add_accepted([entry], self.clock.now())
        return entry


def test_an_entry_that_changes_later_does_not_change_its_events() -> None:
    late = Late()
    observed = Observed(late)
    ledger = observed.ledger
    entry, other = observed.enter(), observed.enter()
    ledger.take()
    ledger.resize([(entry, 30)])
    ledger.cancel(other)
    observed.clock.advance(2.0)
    ledger.settle([entry, other], [WRITTEN, WRITTEN])
    # The caller is cancelled after the outcome has arrived.
    ledger.cancel(entry)
    observed.clock.advance(2.0)
    observed.observation.inform()
    assert entry.abandoned
    assert [event.size for event in late.of(Accepted)] == [1, 1]
    assert [event.size for event in late.of(Delivered)] == [30, 1]
    assert [event.abandoned for event in late.of(Delivered)] == [False, True]
    assert [event.duration for event in late.of(Delivered)] == [2.0, 2.0]


def test_a_record_that_is_reported_twice_is_delivered_once() -> None:
    late = Late()
    observed = Observed(late)
    entry, other = observed.enter(), observed.enter()
    observed.ledger.take()
    error = DeliveryError("refused", record=other.record, persistence=Persistence.NOT_PERSISTED)
    observed.ledger.settle([entry, other, entry], [WRITTEN, error, WRITTEN])
    observed.ledger.settle([entry], [WRITTEN])
    observed.observation.inform()
    assert late.story == "aahhFD"


def test_only_the_first_event_wakes_the_pump() -> None:
    observed = Observed(Late())
    observed.enter()
    observed.enter()
    assert observed.wake_ups == 1
    observed.observation.inform()
    observed.observation.start_turn()
    observed.ledger.take()
    assert observed.wake_ups == 1


def test_a_record_that_waited_for_room_is_accepted_later() -> None:
    late = Late()
    observed = Observed(late)
    first, _, third = [observed.enter() for _ in range(3)]
    observed.ledger.take()
    observed.clock.advance(1.0)
    observed.ledger.settle([first], [WRITTEN])
    observed.observation.inform()
    assert late.story == "aahhaD"
    assert late.of(Accepted)[2].at == late.of(Accepted)[0].at + 1.0
    assert late.of(Accepted)[2].record is third.record


# --- declared events -----------------------------------------------------------------------------


class Silent:
    """Wants no event."""

    event_types = ()

    def observe(self, events: Sequence[Event], /) -> None:
        raise AssertionError(events)


@pytest.mark.parametrize(
    "kind",
    [
        Accepted,
        HandedOver,
        Delivered,
        Failed,
        Withdrawn,
        Refused,
        BatchEnded,
        GenerationOpened,
        GenerationEnded,
        Closing,
    ],
)
async def test_each_kind_can_be_declared(settings: ProducerSettings, kind: type[Event]) -> None:
    settings = settings.evolve(max_in_flight=3, max_buffered_bytes=1000)
    counts: list[Counter[type[Event]]] = []
    for observer in (Declaring([kind]), Late()):
        fake = FakeDriver(manual=True)
        fake.on_submit.shut()
        async with (
            open_send_producer(settings, driver=fake, observers=[observer, Silent()]) as producer,
            task_group() as tasks,
        ):
            for refused in (ProducerRecord("no such topic", b"v"), record(b"v" * 1001)):
                with raising(RecordRejected):
                    await producer.send(refused)
            first = Call(tasks, producer.send, record(b"0"))
            await at_gate(fake.on_submit)
            calls: list[Call[RecordMetadata]] = []
            for number in (1, 2, 3):
                calls.append(Call(tasks, producer.send, record(b"%d" % number)))
                await quiet()  # on Trio, tasks that start together run in any order
            many = Call(tasks, producer.send_many, [record()])
            await quiet()
            await calls[0].cancel()
            await many.cancel()
            fake.on_submit.open()
            await taken(fake, 3)
            fake.acknowledge(1)
            await first.wait()
            fake.fail(refuse)
            for call in calls[1:]:
                await call.wait()
        counts.append(Counter(type(event) for event in observer.events))
    only, everything = counts
    assert everything[kind] > 0
    assert only == {kind: everything[kind]}


async def test_a_declaration_is_checked(settings: ProducerSettings, fake: FakeDriver) -> None:
    wrongs: list[Any] = [[Recorder], Delivered, 7, "Delivered", [[]], [Event], iter([Delivered])]
    for wrong in wrongs:
        observers = [Recorder(), Declaring(wrong)]
        with pytest.raises(TypeError, match=r"observers\[1\]\.event_types must be a list of"):
            async with open_send_producer(settings, driver=fake, observers=observers):
                pass


async def test_an_injector_can_be_disabled(settings: ProducerSettings, fake: FakeDriver) -> None:
    class Off(Numbering):
        injects = False

    off = Off()
    async with open_send_producer(settings, driver=fake, observers=[off]) as producer:
        await producer.send(record())
        await producer.send_many([record(), record()])
    assert off.given == []
    assert all(written.headers == () for written in fake.written["t", 0])
    check_story(off, producer.statistics())


async def test_an_injector_that_sends_a_record_for_each_record(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    refused: list[str] = []

    class Endless(Numbering):
        def inject(self, given: Any, /) -> Iterable[tuple[str, bytes]]:
            try:
                producer.enqueue_nowait(given.record)
            except ProducerMisused as error:
                refused.append(str(error))
            return super().inject(given)

    async with open_send_producer(settings, driver=fake, observers=[Endless()]) as producer:
        await producer.send(record())
        await producer.flush()
        assert producer.statistics().delivered == 10
    assert len(refused) == 1
    assert refused[0].startswith("the inject() of an observer sends a record for each record")


async def test_an_observer_that_counts_events_makes_none(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting:
        event_types = (Delivered,)
        count = 0

        def observe(self, events: Sequence[Event], /) -> None:
            self.count += len(events)

    monkeypatch.setattr(Bulk, "events", unread)
    counting = Counting()
    async with open_send_producer(settings, driver=fake, observers=[counting]) as producer:
        await producer.send(record())
        await producer.send_many([record()] * 20)
    assert counting.count == 21


def test_the_logging_observer_makes_no_event_below_its_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = EventBatch([OPENED, Bulk(Delivered, [1], unread, unread)])
    caplog.set_level(logging.INFO)
    LoggingObserver().observe(batch)
    assert [line.getMessage() for line in caplog.records] == ["client 1 is open"]
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AssertionError):
        LoggingObserver().observe(batch)


async def test_accepted_events_have_the_order_of_their_times(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    """A record that an injector sends is accepted before the record that gets the headers."""

    class Sending(Numbering):
        def inject(self, given: Any, /) -> Iterable[tuple[str, bytes]]:
            clock.advance(1.0)
            if given.record.topic == "t":
                producer.enqueue_nowait(record(topic="other"))
            return super().inject(given)

    sending = Sending()
    async with clock.open(settings, driver=fake, observers=[sending]) as producer:
        await producer.send(record())
        await anyio.lowlevel.checkpoint()
    check_story(sending, producer.statistics())
    assert [event.record.topic for event in sending.of(Accepted)] == ["other", "t"]


# --- injectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Recorder, Numbering])
async def test_a_closed_producer_makes_no_event_of_an_invalid_record(
    settings: ProducerSettings, fake: FakeDriver, make: type[Recorder]
) -> None:
    recorder = make()
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        pass
    for refused in (record(), ProducerRecord("no such topic", b"v")):
        with raising(ProducerClosed):
            producer.enqueue_nowait(refused)
    assert recorder.story == ""


@pytest.mark.parametrize("make", [Recorder, Numbering])
async def test_a_call_that_interrupts_the_producer_makes_no_event(
    settings: ProducerSettings, fake: FakeDriver, make: type[Recorder]
) -> None:
    recorder = make()
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        # The interruption comes after the check in the public method.
        with producer._engine.step, raising(ProducerMisused):
            producer._enter(record())
        with raising(TypeError):
            producer._enter(cast("Any", "text"))
    assert recorder.story == ""


async def test_an_injector_needs_no_events_of_calls(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    class Declared(Numbering):
        event_types = (Delivered,)

    declared = Declared()
    async with open_send_producer(settings, driver=fake, observers=[declared]) as producer:
        await producer.send(record(), timeout=60.0)
        await producer.send_many([record(), record()], timeout=60.0)
    # The injector still learns which call a record is part of.
    numbers = [given.batch and given.batch.count for given in declared.given]
    assert numbers == [None, 2, 2]
    assert [*map(type, declared.events)] == [Delivered] * 3
    assert len(fake.written["t", 0]) == 3
