"""The real producer with the fake driver, in any course of events.

A course is a list of steps, which Hypothesis makes and shrinks. The test runs it on one event
loop. Then it compares the driver's log with the outcomes that the calls got.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    Result,
    SendProducer,
    SendProducerError,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer._delivery import Entry
from anyio_sendproducer.telemetry import (
    Accepted,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Observer,
    Withdrawn,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.asked_driver import AskedDriver
from tests.support.calls import Call
from tests.support.observers import Declaring, Late, Numbering, Recorder, check_story
from tests.support.waiting import PATIENCE

AnyRecord = ProducerRecord[None, bytes]
Outcome = RecordMetadata | DeliveryError

MAX_RECORDS = 5
MAX_BYTES = 40

SETTINGS = ProducerSettings(
    bootstrap_servers="broker.invalid:9092",
    max_in_flight=MAX_RECORDS,
    max_buffered_bytes=MAX_BYTES,
)
#: Seconds for closing. Most courses leave unacknowledged records, so closing takes all its time.
#: The driver needs some of this time only if a course ends with a drain.
CLOSE_SECONDS = 0.002
DRAIN_SECONDS = 0.02


#: Drivers that report events themselves, and drivers that the producer polls. The event loop
#: submits records to the direct driver itself.
DRIVERS: dict[str, Callable[[], FakeDriver]] = {
    "telling": lambda: FakeDriver(partitions=2, manual=True),
    "asked": lambda: AskedDriver(partitions=2, manual=True, direct=False),
    "asked, direct": lambda: AskedDriver(partitions=2, manual=True),
}


class Boom(Exception):
    """The exception of the body."""


@dataclass
class Sending:
    """A call that sends, with its records."""

    records: list[AnyRecord]
    call: Call[Any]


@dataclass
class World:
    """The producer, its driver, and all calls."""

    producer: SendProducer
    fake: FakeDriver
    tasks: anyio.abc.TaskGroup
    entered: list[Entry] = field(default_factory=list[Entry])
    sendings: list[Sending] = field(default_factory=list[Sending])
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    waits: list[tuple[Delivery, Call[RecordMetadata]]] = field(
        default_factory=list[tuple[Delivery, Call[RecordMetadata]]]
    )
    others: list[Call[Any]] = field(default_factory=list[Call[Any]])
    closes: list[Call[None]] = field(default_factory=list[Call[None]])
    made: int = 0
    undelivered: int = 0

    def __post_init__(self) -> None:
        # The order in which records are entered is the order that the producer must keep.
        enter = self.producer._engine.ledger.enter

        def entering(*args: Any) -> Entry:
            entry = enter(*args)
            self.entered.append(entry)
            return entry

        enter_many = self.producer._engine.ledger.enter_many

        def entering_several(*args: Any) -> list[Entry]:
            entries = enter_many(*args)
            self.entered.extend(entries)
            return entries

        vars(self.producer._engine.ledger).update(enter=entering, enter_many=entering_several)

    def record(self, shape: Shape) -> AnyRecord:
        self.made += 1
        value = b"%05d" % self.made + b"." * shape.padding
        return ProducerRecord(shape.topic, value, partition=shape.partition)

    @property
    def calls(self) -> list[Call[Any]]:
        return [
            *(sending.call for sending in self.sendings),
            *(call for _, call in self.waits),
            *self.others,
            *self.closes,
        ]

    def check_bounds(self) -> None:
        figures = self.producer.statistics()
        assert 0 <= figures.in_flight <= MAX_RECORDS
        assert 0 <= figures.in_flight_bytes <= MAX_BYTES
        settled = figures.delivered + figures.failed + figures.withdrawn
        assert settled <= figures.accepted
        assert figures.queued <= figures.in_flight


# --- steps -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    topic: str
    partition: int
    padding: int


@dataclass(frozen=True)
class Send:
    how: str
    shape: Shape

    async def run(self, world: World) -> None:
        record = world.record(self.shape)
        producer = world.producer
        if self.how == "enqueue_nowait":
            with contextlib.suppress(anyio.WouldBlock, ProducerClosed, ProducerBroken):
                world.deliveries.append(producer.enqueue_nowait(record))
            return
        if self.how == "send":
            call: Call[Any] = Call(world.tasks, producer.send, record)
        elif self.how == "message":
            call = Call(world.tasks, producer.send_envelope, Message(record, self))
        else:

            async def enqueue() -> Delivery:
                delivery = await producer.enqueue(record)
                world.deliveries.append(delivery)
                return delivery

            call = Call(world.tasks, enqueue)
        world.sendings.append(Sending([record], call))


@dataclass(frozen=True)
class SendMany:
    shapes: list[Shape]
    as_message: bool

    async def run(self, world: World) -> None:
        records = [world.record(shape) for shape in self.shapes]
        if self.as_message:
            call: Call[Any] = Call(
                world.tasks, world.producer.send_envelope, MultiMessage(records, self)
            )
        else:
            call = Call(world.tasks, world.producer.send_many, records)
        world.sendings.append(Sending(records, call))


@dataclass(frozen=True)
class Cancel:
    which: int

    async def run(self, world: World) -> None:
        running = [call for call in world.calls if call.running]
        if running:
            running[self.which % len(running)].scope.cancel()


@dataclass(frozen=True)
class Wait:
    which: int

    async def run(self, world: World) -> None:
        if world.deliveries:
            delivery = world.deliveries[self.which % len(world.deliveries)]
            world.waits.append((delivery, Call(world.tasks, delivery.wait)))


@dataclass(frozen=True)
class Acknowledge:
    count: int | None

    async def run(self, world: World) -> None:
        world.fake.acknowledge(self.count)


@dataclass(frozen=True)
class Fail:
    count: int | None
    persistence: Persistence

    async def run(self, world: World) -> None:
        world.fake.fail(
            lambda record: DeliveryError("no", record=record, persistence=self.persistence),
            self.count,
        )


@dataclass(frozen=True)
class Do:
    """A step without parameters."""

    what: str

    async def run(self, world: World) -> None:
        fake, producer = world.fake, world.producer
        match self.what:
            case "learn":
                fake.learn("unknown")
            case "forget":
                fake.unknown_topics.add("unknown")
            case "shut the gate":
                if not (
                    isinstance(fake, AskedDriver) and fake.direct
                ):  # the event loop would block there
                    fake.on_submit.shut()
            case "open the gate":
                fake.on_submit.open()
            case "break the client":
                fake.break_client()
            case "fail to reopen":
                fake.open_error = SendProducerError("not now")
            case "reopen":
                fake.open_error = None
            case "die":
                fake.submit_error = KeyError("the driver's own")
            case "flush":
                world.others.append(Call(world.tasks, producer.flush))
            case "partitions":
                world.others.append(Call(world.tasks, producer.partitions_for, "unknown"))
            case "close":
                world.closes.append(Call(world.tasks, producer.aclose))
            case "settle":
                # The answer comes when the driver has processed everything before it.
                with anyio.move_on_after(0.01), contextlib.suppress(SendProducerError):
                    await producer.partitions_for("known")
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
            case other:
                pytest.fail(f"no such step: {other}")


@dataclass(frozen=True)
class Tick:
    times: int

    async def run(self, world: World) -> None:
        for _ in range(self.times):
            await anyio.lowlevel.checkpoint()


Step = Send | SendMany | Cancel | Wait | Acknowledge | Fail | Do | Tick

shapes = st.builds(
    Shape,
    topic=st.sampled_from(["known", "unknown"]),
    partition=st.integers(0, 1),
    padding=st.integers(0, 15),
)
counts = st.none() | st.integers(1, 4)
which = st.integers(0, 20)
sends = st.builds(Send, st.sampled_from(["send", "message", "enqueue", "enqueue_nowait"]), shapes)
common = st.sampled_from(
    ["learn", "forget", "shut the gate", "open the gate", "flush", "partitions", "settle", "settle"]
).map(Do)
rare = st.sampled_from(
    ["break the client", "fail to reopen", "reopen", "break the client", "die", "close"]
).map(Do)
steps: st.SearchStrategy[Step] = st.one_of(
    sends,
    sends,
    st.builds(SendMany, st.lists(shapes, max_size=8), st.booleans()),
    st.builds(Cancel, which),
    st.builds(Wait, which),
    st.builds(Acknowledge, counts),
    st.builds(
        Fail,
        counts,
        st.sampled_from([Persistence.NOT_PERSISTED, Persistence.POSSIBLY_PERSISTED]),
    ),
    common,
    rare,
    st.builds(Tick, st.integers(0, 12)),
)
endings = st.sampled_from(["clean", "clean", "drained", "drained", "failed", "cancelled"])


# --- the course and its judgement ------------------------------------------------------------


async def live(
    course: list[Step], ending: str, kind: str, observers: Sequence[Observer] = ()
) -> World:
    tasks_before = set(anyio.get_running_tasks())
    fake = DRIVERS[kind]()
    fake.unknown_topics.add("unknown")
    worlds: list[World] = []
    seconds = DRAIN_SECONDS if ending == "drained" else CLOSE_SECONDS
    bounded = SETTINGS.evolve(close_timeout=seconds, cancel_timeout=seconds)
    with anyio.fail_after(PATIENCE):  # every waiter returns
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                try:
                    async with open_send_producer(
                        bounded, driver=fake, observers=observers
                    ) as producer:
                        world = World(producer, fake, tasks)
                        worlds.append(world)
                        for step in course:
                            await step.run(world)
                            world.check_bounds()
                        await end(world, ending, scope)
                except UndeliveredRecords as error:
                    assert ending in {"clean", "drained"}
                    worlds[0].undelivered += error.count
                except Boom:
                    assert ending == "failed"
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith("anyio-sendproducer")]
    assert set(anyio.get_running_tasks()) == tasks_before
    await judge(worlds[0], clean=ending in {"clean", "drained"})
    return worlds[0]


async def end(world: World, ending: str, scope: anyio.CancelScope) -> None:
    match ending:
        case "drained":
            world.fake.open_error = None
            world.fake.unknown_topics.clear()
            world.fake.manual = False
            world.fake.on_submit.open()
            world.fake.acknowledge()
        case "failed":
            raise Boom
        case "cancelled":
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        case _:
            pass


async def all_outcomes(
    world: World,
) -> tuple[dict[bytes, Outcome], dict[bytes, Outcome]]:
    """The outcomes that the callers got, and the outcomes of the deliveries at the end."""
    by_calls: dict[bytes, Outcome] = {}
    by_deliveries: dict[bytes, Outcome] = {}
    for sending in world.sendings:
        for record, outcome in zip(sending.records, outcomes(sending), strict=True):
            if outcome is not None:
                by_calls[record.value] = outcome
    for delivery, call in world.waits:
        if not call.cancelled:
            by_calls[delivery.record.value] = call.error_or_value(DeliveryError)
    for delivery in world.deliveries:
        assert delivery.done
        try:
            by_deliveries[delivery.record.value] = await delivery.wait()
        except DeliveryError as error:
            by_deliveries[delivery.record.value] = error
    return by_calls, by_deliveries


def outcomes(sending: Sending) -> Iterable[Outcome | None]:
    """The outcome of each record of a call, or None if the call does not return it."""
    call = sending.call
    nothing = [None] * len(sending.records)
    if call.cancelled:
        return nothing
    match call.error:
        case None:
            pass
        case DeliveryError() as error:
            return [error]
        case MultiDeliveryError() as error:
            return [_of_part(part) for part in error.parts]
        case error:
            # The whole call was refused: its records were not accepted.
            assert isinstance(error, ProducerClosed | ProducerBroken)
            return nothing
    match call.value:
        case Delivery():
            return nothing
        case RecordMetadata() as metadata:
            return [metadata]
        case Result(metadata=metadata):
            return [metadata]
        case value if isinstance(value, MultiResult):
            result = cast("MultiResult[None, bytes, SendMany]", value)
            return [part.metadata for part in result.parts]
        case places:
            return list(places)


def _of_part(part: MultiResultPart[Any, Any] | DeliveryError) -> Outcome:
    return part.metadata if isinstance(part, MultiResultPart) else part


def values(entries: Iterable[Entry]) -> set[bytes]:
    return {entry.record.value for entry in entries}


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(value in rest for value in part)


async def judge(world: World, *, clean: bool) -> None:
    figures = world.producer.statistics()
    event(f"generations: {min(figures.generations, 3)}")
    event(f"some abandoned: {figures.abandoned > 0}, some withdrawn: {figures.withdrawn > 0}")

    # Each accepted record has exactly one outcome, and no record waits or is queued.
    assert figures.state == "closed"
    assert (figures.waiting, figures.queued) == (0, 0)
    assert figures.accepted == figures.delivered + figures.failed + figures.withdrawn
    states = Counter(entry.state.value for entry in world.entered)
    assert set(states) <= {"delivered", "failed", "withdrawn"}
    assert states["delivered"] == figures.delivered

    # Each acknowledged record is in the log once, at its offset.
    written = {
        (topic, partition): [record.value for record in log]
        for (topic, partition), log in world.fake.written.items()
    }
    times = Counter(value for log in written.values() for value in log)
    assert set(times.values()) <= {1}
    by_calls, by_deliveries = await all_outcomes(world)
    for value, outcome in (*by_calls.items(), *by_deliveries.items()):
        if isinstance(outcome, RecordMetadata):
            assert outcome.offset is not None
            assert written[outcome.topic, outcome.partition][outcome.offset] == value
        else:
            assert outcome.record.value == value
            if outcome.persistence is Persistence.NOT_PERSISTED:
                assert value not in times
    for value in by_calls.keys() & by_deliveries.keys():
        # Each caller gets a copy of an error.
        told_once, told_again = by_calls[value], by_deliveries[value]
        assert getattr(told_once, "summary", told_once) == getattr(
            told_again, "summary", told_again
        )

    # A withdrawn record never reached the driver, and no caller got an outcome for it.
    taken = {record.value for record in world.fake.submitted}
    withdrawn = values(entry for entry in world.entered if entry.state.value == "withdrawn")
    assert not withdrawn & taken
    assert not withdrawn & by_calls.keys()
    assert not withdrawn & by_deliveries.keys()

    # Records reach the driver, and the log, in the order in which they were entered.
    for topic in ("known", "unknown"):
        line = [entry.record.value for entry in world.entered if entry.record.topic == topic]
        assert is_subsequence([r.value for r in world.fake.submitted if r.topic == topic], line)
        for partition in (0, 1):
            assert is_subsequence(written.get((topic, partition), []), line)

    # Only records of cancelled calls are withdrawn, and no more are abandoned than were cancelled.
    cancelled = {
        record.value
        for sending in world.sendings
        if sending.call.cancelled
        for record in sending.records
    }
    assert withdrawn <= cancelled
    assert figures.abandoned <= len(cancelled)

    # Each failure is reported once: to its caller, or at the end.
    missed = [
        entry
        for entry in world.entered
        if entry.state.value == "failed" and entry.seq and entry.record.value not in by_calls
    ]
    closing = [call.error for call in world.closes if call.error is not None]
    for error in closing:
        assert isinstance(error, UndeliveredRecords)
        world.undelivered += error.count
    if clean and not world.closes:
        assert world.undelivered == len(missed)


def test_a_subsequence() -> None:
    assert is_subsequence([b"1", b"3"], [b"1", b"2", b"3"])
    assert not is_subsequence([b"3", b"1"], [b"1", b"2", b"3"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=3 * settings().max_examples)
@given(course=st.lists(steps, max_size=40), ending=endings, kind=st.sampled_from([*DRIVERS]))
def test_any_course_of_events(backend: str, course: list[Step], ending: str, kind: str) -> None:
    anyio.run(live, course, ending, kind, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=2 * settings().max_examples)
@given(
    course=st.lists(steps, max_size=40),
    ending=endings,
    kind=st.sampled_from([*DRIVERS]),
    injects=st.booleans(),
)
def test_observers_get_consistent_events_in_any_course_of_events(
    backend: str, course: list[Step], ending: str, kind: str, injects: bool
) -> None:
    recorder = Numbering() if injects else Recorder()
    world = anyio.run(live, course, ending, kind, [recorder], backend=backend)
    # Each accepted record has one last event, in order, and the statistics agree.
    check_story(recorder, world.producer.statistics())
    outcomes = {event.number: event for event in recorder.of(Delivered)}
    for (topic, partition), log in world.fake.written.items():
        for offset, written in enumerate(log):
            # A record that would exceed max_buffered_bytes with its headers is sent without them.
            for name, content in written.headers if injects else ():
                assert name == "n"
                delivered = outcomes.get(int(content))
                if delivered is not None:  # it was not too late
                    metadata = delivered.metadata
                    place = (metadata.topic, metadata.partition, metadata.offset)
                    assert place == (topic, partition, offset)
                    assert delivered.record.value == written.value
    for delivery in world.deliveries:
        assert delivery.record.headers == ()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(course=st.lists(steps, max_size=40), ending=endings, kind=st.sampled_from([*DRIVERS]))
def test_events_that_an_observer_reads_later_are_the_same(
    backend: str, course: list[Step], ending: str, kind: str
) -> None:
    late = Late()
    world = anyio.run(live, course, ending, kind, [late], backend=backend)
    check_story(late, world.producer.statistics())


declared = given(
    course=st.lists(steps, max_size=40),
    ending=endings,
    kind=st.sampled_from([*DRIVERS]),
    wanted=st.frozensets(st.sampled_from(get_args(Event))),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@declared
def test_an_observer_gets_the_events_that_it_declares(
    backend: str, course: list[Step], ending: str, kind: str, wanted: frozenset[Any]
) -> None:
    recorder, declaring = Recorder(), Declaring(wanted)
    anyio.run(live, course, ending, kind, [recorder, declaring], backend=backend)
    assert declaring.events == [event for event in recorder.events if type(event) in wanted]
    assert all(declaring.batches)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@declared
def test_events_that_no_observer_wants_change_nothing_for_the_others(
    backend: str, course: list[Step], ending: str, kind: str, wanted: frozenset[Any]
) -> None:
    declaring = Declaring(wanted)
    world = anyio.run(live, course, ending, kind, [declaring], backend=backend)
    figures = world.producer.statistics()
    expected = {
        Accepted: figures.accepted,
        Delivered: figures.delivered,
        Failed: figures.failed,
        Withdrawn: figures.withdrawn,
        GenerationOpened: figures.generations,
        GenerationEnded: figures.generations,
        Closing: 1,
    }
    found = Counter(type(event) for event in declaring.events)
    assert found.keys() <= wanted
    for cls in expected.keys() & wanted:
        assert found[cls] == expected[cls]
    assert [len(batch) for batch in declaring.batches] == [
        len(tuple(batch)) for batch in declaring.batches
    ]
    assert all(declaring.batches)
