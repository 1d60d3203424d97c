"""The timeout of one call: the call ends in time, and its error has the right persistence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import anyio
import anyio.abc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    PassThroughMessage,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SettingsError,
    SettingsWarning,
    open_send_producer,
)
from anyio_sendproducer._deadlines import CallDeadline, CallDeadlines, DeadlineTimer
from anyio_sendproducer._delivery import DeliveryState, Entry
from anyio_sendproducer._late import LATENESS
from anyio_sendproducer._ledger import Ledger
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import Call, quiet, record, task_group
from tests.support.clock import ManualClock

DEFAULT = 10.0

SETTINGS = ProducerSettings(
    bootstrap_servers="broker.invalid:9092", max_in_flight=4, delivery_timeout=DEFAULT
)


def polled() -> PolledFakeDriver:
    return PolledFakeDriver(partitions=1, manual=True, threadless=True)


# --- the calls -----------------------------------------------------------------------------------


async def send(producer: SendProducer, timeout: Any) -> object:
    return await producer.send(record(), timeout=timeout)


async def send_fields(producer: SendProducer, timeout: Any) -> object:
    return await producer.send("t", b"v", key=b"k", timeout=timeout)


async def send_envelope(producer: SendProducer, timeout: Any) -> object:
    return await producer.send_envelope(Message(record(), "mine"), timeout=timeout)


async def send_several(producer: SendProducer, timeout: Any) -> object:
    envelope = MultiMessage([record(b"1"), record(b"2")], "mine")
    return await producer.send_envelope(envelope, timeout=timeout)


async def send_many(producer: SendProducer, timeout: Any) -> object:
    return await producer.send_many([record(b"1"), record(b"2")], timeout=timeout)


CALLS = [send, send_fields, send_envelope, send_several, send_many]

calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


def only_error(error: Exception | None) -> DeliveryTimeout:
    """The error of a call, or the common error of all its records."""
    if isinstance(error, MultiDeliveryError):
        messages = {str(part) for part in error.parts}
        assert len(messages) == 1
        error = cast("DeliveryError", error.parts[0])
    assert isinstance(error, DeliveryTimeout)
    return error


@calls
@pytest.mark.parametrize("timeout", [2, 2.0, timedelta(seconds=2)], ids=repr)
async def test_a_record_that_the_client_has(call: Any, timeout: Any, clock: ManualClock) -> None:
    driver = polled()
    async with clock.open(SETTINGS, driver=driver) as producer, task_group() as tasks:
        sent = Call(tasks, call, producer, timeout)
        await quiet()
        clock.advance(1.5)
        await quiet()
        assert sent.running
        clock.advance(0.5)
        await quiet()
        error = only_error(sent.error)
        assert error.persistence is Persistence.POSSIBLY_PERSISTED
        assert "no broker acknowledged the record within 2 s (timeout)" in str(error)
        # The record keeps its room until the client lets go of it.
        assert producer.statistics().in_flight == len(driver.submitted)
        driver.acknowledge()
        await quiet()
        assert producer.statistics().in_flight == 0


@calls
async def test_a_record_that_the_client_does_not_have(call: Any, clock: ManualClock) -> None:
    driver = polled()
    driver.unknown_topics.add("t")
    async with clock.open(SETTINGS, driver=driver) as producer, task_group() as tasks:
        sent = Call(tasks, call, producer, 2)
        await quiet()
        clock.advance(2)
        await quiet()
        error = only_error(sent.error)
        assert error.persistence is Persistence.NOT_PERSISTED
        assert "could not be handed to the client within 2 s (timeout)" in str(error)
        assert producer.statistics().in_flight == 0
        driver.learn("t")
        await quiet()
        assert driver.submitted == []


async def test_a_record_that_waits_for_room(clock: ManualClock) -> None:
    driver = polled()
    settings = SETTINGS.evolve(max_in_flight=1)
    async with clock.open(settings, driver=driver) as producer, task_group() as tasks:
        first = Call(tasks, producer.send, record(b"1"))
        await quiet()
        second = Call(tasks, send, producer, 2)
        several = Call(tasks, send_many, producer, 3)
        await quiet()
        clock.advance(2)
        await quiet()
        assert "there was no room for the record within 2 s (timeout)" in str(second.error)
        clock.advance(1)
        await quiet()
        error = only_error(several.error)
        assert error.persistence is Persistence.NOT_PERSISTED
        assert "there was no room for the record within 3 s (timeout)" in str(error)
        assert first.running
        driver.acknowledge()
    assert isinstance(first.value, RecordMetadata)
    assert len(driver.submitted) == 1


async def test_the_delivery_timeout_applies_if_it_is_shorter(clock: ManualClock) -> None:
    async with clock.open(SETTINGS, driver=polled()) as producer, task_group() as tasks:
        sent = Call(tasks, send, producer, timedelta(days=1))
        await quiet()
        clock.advance(DEFAULT)
        await quiet()
        assert "within 10 s (delivery_timeout)" in str(sent.error)


async def test_a_timeout_applies_to_its_own_call_only(clock: ManualClock) -> None:
    driver = polled()
    async with clock.open(SETTINGS, driver=driver) as producer, task_group() as tasks:
        late, early, none = (Call(tasks, send, producer, one) for one in (5, 1, None))
        await quiet()
        clock.advance(1)
        await quiet()
        assert (late.running, early.running, none.running) == (True, False, True)
        clock.advance(4)
        await quiet()
        assert (late.running, none.running) == (False, True)
        driver.acknowledge()
    assert isinstance(none.value, RecordMetadata)


async def test_an_acknowledged_record_has_no_deadline(clock: ManualClock) -> None:
    async with clock.open(SETTINGS, driver=FakeDriver()) as producer:
        assert isinstance(await send(producer, 1), RecordMetadata)
        clock.advance(2)
        assert isinstance(await send(producer, 1), RecordMetadata)
        assert producer.statistics().failed == 0


async def test_with_observers(clock: ManualClock) -> None:
    class Silent:
        def observe(self, events: Any) -> None: ...

    driver = polled()
    async with clock.open(SETTINGS, driver=driver, observers=[Silent()]) as producer:
        async with task_group() as tasks:
            sent = [Call(tasks, call, producer, 2) for call in (send, send_many)]
            await quiet()
            clock.advance(2)
            await quiet()
            for call in sent:
                assert only_error(call.error).persistence is Persistence.POSSIBLY_PERSISTED
        driver.acknowledge()


async def test_in_a_transaction(clock: ManualClock) -> None:
    driver = polled()
    settings = SETTINGS.evolve(transactional_id="t")
    async with clock.open(settings, driver=driver) as producer, task_group() as tasks:

        async def commit() -> None:
            async with producer.transaction() as transaction:
                await transaction.send("t", b"v", timeout=2)

        whole = Call(tasks, commit)
        await quiet()
        clock.advance(2)
        await quiet()
        assert "within 2 s (timeout)" in str(whole.error)
    assert [end for end, _ in driver.transactions] == ["aborted"]


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [
        (0, r"timeout must be a number of seconds above 0, .* or a timedelta, not 0"),
        (-1.5, "timeout must be a number of seconds above 0, .* or a timedelta, not -1.5"),
        (math.nan, "timeout must be a number of seconds above 0, .* or a timedelta, not nan"),
        (timedelta(0), r"timeout must be a number of seconds above 0, .* or a timedelta, not 0.0"),
        ("1 s", "timeout must be a number of seconds above 0, .* or a timedelta, not '1 s'"),
        (True, "timeout must be a number of seconds above 0, .* or a timedelta, not True"),
    ],
    ids=str,
)
@calls
async def test_a_wrong_timeout(call: Any, timeout: Any, expected: str) -> None:
    fake = FakeDriver()
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        with pytest.raises(SettingsError, match=expected):
            await call(producer, timeout)
    assert fake.submitted == []


async def test_a_timeout_that_may_be_in_milliseconds_causes_a_warning() -> None:
    async with open_send_producer(SETTINGS, driver=FakeDriver()) as producer:
        with pytest.warns(SettingsWarning, match="timeout=5000 is in seconds") as caught:
            await send(producer, 5_000)
    assert caught[0].filename == __file__


async def test_the_timeout_of_a_pass_through_message_is_checked() -> None:
    async with open_send_producer(SETTINGS, driver=FakeDriver()) as producer:
        assert (await producer.send_envelope(PassThroughMessage(7), timeout=1)).pass_through == 7
        with pytest.raises(SettingsError, match="timeout must be"):
            await producer.send_envelope(PassThroughMessage(7), timeout=-1)


# --- send() with the fields of a record ----------------------------------------------------------


async def test_fields_make_a_record() -> None:
    fake = FakeDriver()
    headers = [("trace", b"1")]
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        await producer.send("orders", b"two tins", key=b"42")
        await producer.send("orders", b"v", b"k", partition=1, timestamp_ms=2, headers=headers)
        await producer.send(topic="orders", key=b"42")
        await producer.send(record=ProducerRecord("orders", b"a brush"))
        await producer.send(Special("orders", b"paint"))
    assert fake.submitted == [
        ProducerRecord("orders", b"two tins", b"42"),
        ProducerRecord("orders", b"v", b"k", partition=1, timestamp_ms=2, headers=headers),
        ProducerRecord("orders", None, b"42"),
        ProducerRecord("orders", b"a brush"),
        Special("orders", b"paint"),
    ]


class Special(ProducerRecord[Any, Any]):
    """A record of an application's own class."""


HOW = r"send\(\) takes one record, or the fields of one: send\(record\), or send\('orders'"


@pytest.mark.parametrize(
    ("arguments", "named", "expected"),
    [
        ([ProducerRecord("t", b"v"), b"v"], {}, HOW),
        ([ProducerRecord("t", b"v")], {"key": b"k"}, HOW),
        ([ProducerRecord("t", b"v")], {"topic": "t"}, HOW),
        ([ProducerRecord("t", b"v")], {"partition": 0}, HOW),
        ([ProducerRecord("t", b"v")], {"timestamp_ms": 0}, HOW),
        ([ProducerRecord("t", b"v")], {"headers": [("a", b"b")]}, HOW),
        ([Special("t", b"v")], {"key": b"k"}, HOW),
        (["t", b"v"], {"topic": "t"}, HOW),
        ([], {"value": b"v"}, HOW),
        ([], {}, HOW),
        ([b"t", b"v"], {}, "expected a ProducerRecord, not bytes"),
        ([5], {}, "expected a ProducerRecord, not int"),
        ([Message(ProducerRecord("t", b"v"), 1)], {}, r"not Message: use send_envelope\(\) for it"),
    ],
)
async def test_arguments_that_are_not_a_record(
    arguments: list[Any], named: dict[str, Any], expected: str
) -> None:
    fake = FakeDriver()
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        with pytest.raises(TypeError, match=expected):
            await cast("Any", producer.send)(*arguments, **named)
    assert fake.submitted == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ProducerRecord("t", b"v"),
            r"an iterable of records, not ProducerRecord: send\(\) sends o",
        ),
        (5, "an iterable of records, not int$"),
    ],
)
async def test_send_many_takes_an_iterable(given: Any, expected: str) -> None:
    async with open_send_producer(SETTINGS, driver=FakeDriver()) as producer:
        with pytest.raises(TypeError, match=expected):
            await producer.send_many(given)


async def test_a_delivery_can_be_awaited() -> None:
    async with open_send_producer(SETTINGS, driver=FakeDriver()) as producer:
        delivery = await producer.enqueue(record())
        assert await delivery == await delivery.wait()


# --- any course of time --------------------------------------------------------------------------


@dataclass
class Sent:
    """One call of ``send()``."""

    value: bytes
    topic: str
    deadline: float
    ended: float | None = None
    outcome: RecordMetadata | DeliveryError | None = None


@dataclass
class World:
    """A producer on a clock that the test moves."""

    producer: SendProducer
    driver: PolledFakeDriver
    clock: ManualClock
    tasks: anyio.abc.TaskGroup
    sent: list[Sent] = field(default_factory=list["Sent"])

    async def send(self, sent: Sent, timeout: float | None) -> None:
        try:
            sent.outcome = await self.producer.send(sent.topic, sent.value, timeout=timeout)
        except DeliveryError as error:
            sent.outcome = error
        sent.ended = self.clock.now()

    def judge(self) -> None:
        """No call outlasts its deadline, and each error has the right persistence."""
        values = [one.value for one in self.driver.submitted]
        for one in self.sent:
            if one.ended is None:
                assert self.clock.now() < one.deadline, "a call is still running at its deadline"
                continue
            assert one.ended <= one.deadline
            if isinstance(one.outcome, DeliveryTimeout):
                assert one.ended == one.deadline, "a call timed out before its deadline"
                is_sent = one.value in values
                assert one.outcome.persistence is (
                    Persistence.POSSIBLY_PERSISTED if is_sent else Persistence.NOT_PERSISTED
                )
            elif isinstance(one.outcome, DeliveryError):
                # The client was given up, because it had other records for too long.
                assert self.driver.opened > 1
                assert one.outcome.persistence is Persistence.POSSIBLY_PERSISTED
                assert one.value in values
        # Each topic's records are submitted in the order of the calls.
        for topic in ("known", "new"):
            order = [one.value for one in self.driver.submitted if one.topic == topic]
            assert order == sorted(order)


Step = Callable[[World], object]


def sending(topic: str, timeout: float | None) -> Step:
    def step(world: World) -> None:
        seconds = DEFAULT if timeout is None else min(timeout, DEFAULT)
        one = Sent(b"%04d" % len(world.sent), topic, world.clock.now() + seconds)
        world.sent.append(one)
        world.tasks.start_soon(world.send, one, timeout)

    return step


def a_second(world: World) -> None:
    world.clock.advance(1.0)


def acknowledge_one(world: World) -> None:
    world.driver.acknowledge(1)


def learn(world: World) -> None:
    world.driver.learn("new")


steps = st.one_of(
    st.builds(
        sending,
        st.sampled_from(["known", "known", "new"]),
        st.none() | st.sampled_from([1.0, 2.0, 3.0, 7.0, 15.0]),
    ),
    st.just(a_second),
    st.just(acknowledge_one),
    st.just(learn),
)


async def live(course: list[Step]) -> None:
    driver, clock = polled(), ManualClock()
    sent: list[Sent] = []
    driver.unknown_topics.add("new")
    async with clock.open(SETTINGS, driver=driver) as producer:
        async with anyio.create_task_group() as tasks:
            world = World(producer, driver, clock, tasks, sent)
            for step in [*course, *[a_second] * int(DEFAULT)]:
                step(world)
                await quiet()
                world.judge()
            assert all(one.outcome is not None for one in sent)
        driver.learn("new")
        driver.manual = False
        driver.acknowledge()
    never = {
        one.value
        for one in sent
        if isinstance(one.outcome, DeliveryError)
        and one.outcome.persistence is Persistence.NOT_PERSISTED
    }
    assert not never & {one.value for one in driver.submitted}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(course=st.lists(steps, max_size=40))
def test_every_call_keeps_its_deadline(backend: str, course: list[Step]) -> None:
    anyio.run(live, course, backend=backend)


# --- the parts -----------------------------------------------------------------------------------


def entered(ledger: Ledger, now: float, timeout: float | None = None) -> Entry:
    entry = ledger.enter(ProducerRecord("t", b"v"), 1, now)
    if timeout is not None:
        ledger.limit([entry], CallDeadline(now + timeout, timeout))
    return entry


def make_ledger() -> Ledger:
    return Ledger(max_in_flight=4, max_buffered_bytes=100, delivery_timeout=DEFAULT)


def test_a_client_gets_the_whole_delivery_timeout_to_let_go_of_a_record() -> None:
    ledger = make_ledger()
    entries = [entered(ledger, 0.0, 1.0) for _ in range(2)]
    ledger.take()
    ledger.expire(1.0)
    assert {entry.state for entry in entries} == {DeliveryState.FAILED}
    assert ledger.next_deadline(1.0) == DEFAULT
    assert not ledger.is_stuck(1.0 + LATENESS)
    ledger.expire(DEFAULT)
    assert ledger.next_deadline(DEFAULT) == DEFAULT + LATENESS
    assert ledger.is_stuck(DEFAULT + LATENESS)


def test_the_oldest_late_record_decides_when_the_client_is_given_up() -> None:
    ledger = make_ledger()
    entered(ledger, 0.0, 5.0)
    entered(ledger, 0.5)
    entered(ledger, 1.0, 1.0)
    ledger.take()
    ledger.expire(2.0)  # the third
    ledger.expire(5.0)  # the first
    # The second, which is older than the third, expires after the first and the third.
    ledger.expire(DEFAULT + 1.0)
    assert ledger.next_deadline(DEFAULT + 1.0) == DEFAULT + LATENESS


def test_late_records_are_kept_in_order_of_age() -> None:
    ledger = make_ledger()
    entered(ledger, 0.0)
    entered(ledger, 1.0, 1.0)
    ledger.take()
    ledger.expire(2.0)
    ledger.expire(DEFAULT + 1.0)  # adds the second record first
    assert ledger.next_deadline(DEFAULT + 1.0) == DEFAULT + LATENESS


def test_deadlines_of_finished_records_are_removed() -> None:
    deadlines = CallDeadlines({})
    for number in range(10_000):
        entry = Entry(ProducerRecord("t", b"v"), 1, 1_000.0, number)
        deadlines.add(entry, CallDeadline(500.0, 500.0))
        entry.state = DeliveryState.DELIVERED
    assert len(deadlines._heap) <= 64
    assert deadlines.earliest() == math.inf


async def test_the_timer_wakes_up_for_an_earlier_deadline(clock: ManualClock) -> None:
    timer = DeadlineTimer(clock)
    timer.add(clock.now())  # no task sleeps
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await timer.sleep(seconds)
        woken.append(clock.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleep, 10)
        await quiet()
        timer.add(clock.now() + 20)
        await quiet()
        assert woken == []
        timer.add(clock.now() + 5)
        timer.add(clock.now() + 4)
        await quiet()
        assert woken == [clock.now()]
