"""The results of the producer's methods, with a driver that has no broker."""

from __future__ import annotations

import builtins
import enum
import importlib
import logging
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any, cast

import anyio
import pytest

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResultPart,
    PassThroughMessage,
    Persistence,
    ProducerBroken,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    Result,
    SendProducer,
    SendProducerError,
    UndeliveredRecords,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer._engine import RETRY_SECONDS
from anyio_sendproducer.drivers import Submission, Submitted
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import (
    Call,
    at_gate,
    end_error,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.client_log import everything_logged_to
from tests.support.clock import ManualClock
from tests.support.observers import Recorder
from tests.support.waiting import PATIENCE, until

#: A delivery_timeout that passes soon, in seconds.
SOON = 0.03

#: A delivery_timeout that passes only when a test's clock advances, in seconds.
LONG = 120.0

#: Seconds that no advance of a test's clock reaches.
ENDLESS = timedelta(seconds=1e9)


def refuse_only(*values: bytes) -> Callable[[ProducerRecord[Any, Any]], DeliveryError | None]:
    return lambda what: refuse(what) if what.value in values else None


def values(fake: FakeDriver, topic: str = "t", partition: int = 0) -> list[bytes]:
    """The values in a partition's log, in order."""
    return [what.value for what in fake.written.get((topic, partition), [])]


def numbered(count: int, topic: str = "t") -> list[ProducerRecord[bytes | None, bytes]]:
    return [record(b"%d" % number, topic) for number in range(count)]


# --- send ------------------------------------------------------------------------------------


async def test_send_returns_the_metadata(settings: ProducerSettings, fake: FakeDriver) -> None:
    sent = ProducerRecord("orders", b"value", b"key", partition=2, timestamp_ms=7)
    async with open_send_producer(settings, driver=fake) as producer:
        metadata = await producer.send(sent)
    assert metadata == RecordMetadata("orders", 2, 0, 7, 3, 5)
    assert fake.written == {("orders", 2): [sent]}


async def test_records_of_one_task_keep_their_order(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        offsets = [(await producer.send(one)).offset for one in numbered(20)]
    assert offsets == list(range(20))
    assert values(fake) == [b"%d" % number for number in range(20)]


async def test_each_of_many_tasks_gets_its_own_outcome(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            calls = [Call(tasks, producer.send, one) for one in numbered(100)]
        for number, call in enumerate(calls):
            offset = call.value.offset
            assert offset is not None
            assert values(fake)[offset] == b"%d" % number


async def test_send_raises_only_its_own_error(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.judge = refuse_only(b"bad")
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            good = Call(tasks, producer.send, record(b"good"))
            bad = Call(tasks, producer.send, record(b"bad"))
        assert good.value.offset == 0
        assert isinstance(bad.error, DeliveryError)
        assert bad.error.record == record(b"bad")
        assert producer.statistics().failed == 1


async def test_a_batch_needs_one_hand_over_and_one_wake_up(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async def several(producer: SendProducer) -> None:
        for one in numbered(20):
            await producer.send(one)

    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(several, producer)
        figures = producer.statistics()
    assert figures.delivered == 1000
    assert figures.hand_overs <= 100
    assert figures.wake_ups <= 200
    assert sum(fake.batches) == 1000


async def test_one_wake_up_settles_all_pending_outcomes(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        deliveries = [producer.enqueue_nowait(one) for one in numbered(100)]
        await taken(fake, 100)
        await producer.partitions_for("t")
        await quiet()
        before = producer.statistics().wake_ups
        while fake.acknowledge(1):
            pass  # the event loop does not run meanwhile
        assert [(await delivery.wait()).offset for delivery in deliveries] == list(range(100))
        assert producer.statistics().wake_ups == before + 1


async def test_other_tasks_run_while_many_outcomes_are_settled(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    delivered: list[int] = []

    async def watch(producer: SendProducer) -> None:
        while not delivered or delivered[-1] < 1000:
            delivered.append(producer.statistics().delivered)
            await anyio.lowlevel.checkpoint()

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        deliveries = [producer.enqueue_nowait(one) for one in numbered(1000)]
        await taken(fake, 1000)
        tasks.start_soon(watch, producer)
        await anyio.lowlevel.checkpoint()
        fake.acknowledge(700)
        fake.acknowledge(1)
        fake.acknowledge(299)
        assert [(await delivery.wait()).offset for delivery in deliveries] == list(range(1000))
    steps = [after - before for before, after in pairwise(delivered)]
    # Trio runs ready tasks in any order: two portions may be settled between two turns.
    assert max(steps) <= 2 * 60
    # The outcomes are not settled one by one either.
    assert sum(step > 0 for step in steps) <= 17


async def test_the_next_records_of_woken_tasks_form_one_batch(settings: ProducerSettings) -> None:
    """It does not matter how many turns the wake-ups take."""
    fake = FakeDriver(manual=True)

    async def two(producer: SendProducer) -> None:
        for one in numbered(2):
            await producer.send(one)

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(two, producer)
        await taken(fake, 1000)
        await quiet()
        before = len(fake.batches)
        fake.acknowledge()
        await taken(fake, 2000)
        fake.acknowledge()
    # Trio runs ready tasks in any order: some may run after the last submission.
    assert sum(fake.batches[before:]) == 1000
    assert len(fake.batches[before:]) <= 2


async def test_a_timely_outcome_is_not_late_however_long_settling_takes(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    async with clock.open(settings, driver=fake) as producer:
        deliveries = [producer.enqueue_nowait(one) for one in numbered(600)]
        await taken(fake, 600)
        await quiet()
        fake.acknowledge()
        while not (delivered := producer.statistics().delivered):
            await anyio.lowlevel.checkpoint()
        assert delivered < 300
        clock.advance(settings.delivery_timeout)
        for number, delivery in enumerate(deliveries):
            assert (await delivery.wait()).offset == number


async def test_records_are_submitted_though_callers_never_pause(
    settings: ProducerSettings,
) -> None:
    """With an observer, each event between two turns wakes the pump."""
    # The only bound is time: while the driver thread waits for a processor, the test enqueues
    # thousands of records.
    settings = settings.with_max_in_flight(1_000_000)
    for observers in ([], [Recorder()]):
        fake = FakeDriver(manual=True)
        async with open_send_producer(settings, driver=fake, observers=observers) as producer:
            deliveries = [producer.enqueue_nowait(one) for one in numbered(600)]
            await taken(fake, 600)
            fake.acknowledge()
            fake.manual = False
            with anyio.fail_after(PATIENCE):
                while len(fake.batches) < 4:
                    deliveries.append(producer.enqueue_nowait(record()))
                    await anyio.lowlevel.checkpoint()
                    assert len(producer._engine.bridge.events.items) < 20
            for delivery in deliveries:
                await delivery.wait()


async def test_a_record_is_submitted_at_once_while_the_driver_is_idle(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        for _ in range(3):
            await producer.send(record())
        assert fake.batches == [1, 1, 1]


async def test_the_next_batch_forms_while_the_driver_is_busy(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Other events, such as new metadata, do not interrupt this."""
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        producer.enqueue_nowait(record())
        await at_gate(fake.on_submit)
        for _ in range(3):
            producer.enqueue_nowait(record())
            fake.learn("another topic")
            await quiet()
        assert producer.statistics().hand_overs == 1
        fake.on_submit.open()
        await producer.flush()
        assert fake.batches == [1, 3]


# --- envelopes -------------------------------------------------------------------------------


async def test_message(settings: ProducerSettings, fake: FakeDriver) -> None:
    pass_through = object()
    message = Message(record(b"m"), pass_through)
    async with open_send_producer(settings, driver=fake) as producer:
        result = await producer.send_envelope(message)
    assert isinstance(result, Result)
    assert result.message is message
    assert result.pass_through is pass_through
    assert result.record is message.record
    assert result.offset == result.metadata.offset == 0


async def test_message_that_fails(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(DeliveryError, match="refused"):
            await producer.send_envelope(Message(record()))


async def test_multi_message(settings: ProducerSettings, fake: FakeDriver) -> None:
    pass_through = object()
    records = [record(b"0", "a"), record(b"1", "b"), record(b"2", "a")]
    async with open_send_producer(settings, driver=fake) as producer:
        result = await producer.send_envelope(MultiMessage(records, pass_through))
        empty = await producer.send_envelope(MultiMessage[None, None, int]((), 5))
    assert result.pass_through is pass_through
    assert [part.record for part in result.parts] == records
    places = [(part.metadata.topic, part.metadata.offset) for part in result.parts]
    assert places == [("a", 0), ("b", 0), ("a", 1)]
    assert (empty.parts, empty.pass_through) == ((), 5)


async def test_multi_message_that_fails_in_part(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    pass_through = object()
    fake.judge = refuse_only(b"1")
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_envelope(MultiMessage(numbered(3), pass_through))
    assert caught.value.pass_through is pass_through
    assert [type(part) for part in caught.value.parts] == [
        MultiResultPart,
        DeliveryError,
        MultiResultPart,
    ]


async def test_a_pass_through_message_does_not_use_the_driver(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    pass_through = object()
    async with open_send_producer(settings, driver=fake) as producer:
        result = await producer.send_envelope(PassThroughMessage(pass_through))
        assert producer.statistics().accepted == 0
    assert result.pass_through is pass_through


# --- send_many -------------------------------------------------------------------------------


async def test_send_many_returns_the_metadata_in_order(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        places = await producer.send_many(iter(numbered(1200)))
        assert [place.offset for place in places] == list(range(1200))
        assert values(fake) == [b"%d" % number for number in range(1200)]
        assert producer.statistics().hand_overs <= 5
        assert await producer.send_many([]) == []


async def test_send_many_with_little_room(settings: ProducerSettings, fake: FakeDriver) -> None:
    """The call has more records than there is room for. They are accepted one by one, in order."""
    async with open_send_producer(settings.evolve(max_in_flight=3), driver=fake) as producer:
        places = await producer.send_many(numbered(50))
        assert [place.offset for place in places] == list(range(50))
        assert producer.statistics().delivered == 50
    assert max(fake.batches) <= 3


async def test_send_many_gives_other_tasks_a_turn_while_it_enters_many_records(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.on_submit.shut()
    entered: set[int] = set()

    async def watch(producer: SendProducer) -> None:
        while True:
            entered.add(producer.statistics().accepted)
            await anyio.lowlevel.checkpoint()

    roomy = settings.evolve(max_in_flight=5_000)
    async with open_send_producer(roomy, driver=fake) as producer, task_group() as tasks:
        tasks.start_soon(watch, producer)
        many = Call(tasks, producer.send_many, numbered(2_000))
        await at_gate(fake.on_submit)
        await until(lambda: 2_000 in entered)
        assert any(0 < count < 2_000 for count in entered)
        fake.on_submit.open()
        await many.wait()
        tasks.cancel_scope.cancel()


async def test_records_of_other_calls_may_come_between_those_of_send_many(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        async with task_group() as tasks:
            many = Call(tasks, producer.send_many, numbered(3))
            await taken(fake, 1)
            await quiet()  # its second record waits for room
            one = Call(tasks, producer.send, record(b"other"))
            await quiet()
            for count in range(2, 5):
                fake.acknowledge()
                await taken(fake, count)
            fake.acknowledge()
        assert [place.offset for place in many.value] == [0, 1, 3]
        assert one.value.offset == 2


async def test_the_error_of_send_many_has_every_outcome(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse_only(b"1", b"3")
    records = numbered(5)
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_many(records)
        assert producer.statistics().failed == 2
    parts = caught.value.parts
    assert caught.value.pass_through is None
    assert len(caught.value.errors) == 2
    for one, part in zip(records, parts, strict=True):
        assert part.record is one
    offsets = [part.metadata.offset for part in parts if isinstance(part, MultiResultPart)]
    assert offsets == [0, 1, 2]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_one_invalid_record_among_good_ones(
    settings: ProducerSettings, fake: FakeDriver, position: int
) -> None:
    records = numbered(3)
    records[position] = record(b"x", topic="no such name")
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_many(records)
        assert len(await producer.send_many(numbered(1))) == 1
    assert [type(part) for part in caught.value.parts].count(MultiResultPart) == 2
    rejected = caught.value.parts[position]
    assert isinstance(rejected, RecordRejected)
    assert rejected.persistence is Persistence.NOT_PERSISTED


async def test_send_many_with_only_invalid_records(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_many([record(topic=""), record(topic="?")])
    assert len(caught.value.errors) == 2


async def test_send_many_that_stops_submits_no_more_records(
    settings: ProducerSettings,
) -> None:
    """Records that the client has go on; records that are queued or wait for room are not sent."""
    fake = FakeDriver(manual=True)
    records = numbered(6)
    async with open_send_producer(settings.evolve(max_in_flight=4), driver=fake) as producer:
        async with task_group() as tasks:
            fake.on_submit.shut()
            first = Call(tasks, producer.send, record(b"other"))
            await at_gate(fake.on_submit)
            many = Call(tasks, partial(producer.send_many, stop_on_error=True), records)
            await quiet()  # three are queued, and one waits for room
            fake.on_submit.open()
            await taken(fake, 4)
            assert fake.fail(refuse, 1) == 1  # the record of the other call
            await first.wait()
            await taken(fake, 5)  # the waiting record uses its room
            fake.on_submit.shut()
            assert fake.acknowledge(1) == 1
            await at_gate(fake.on_submit)  # with the record with index 4
            assert fake.fail(refuse, 1) == 1
            await quiet()
            fake.on_submit.open()
            await taken(fake, 6)
            fake.acknowledge()
            await many.wait()
        assert isinstance(many.error, MultiDeliveryError)
        assert [type(part) for part in many.error.parts] == [
            MultiResultPart,
            DeliveryError,
            MultiResultPart,
            MultiResultPart,
            MultiResultPart,
            DeliveryError,
        ]
        assert "stop_on_error" in str(many.error.parts[5])
        assert many.error.errors[1].persistence is Persistence.NOT_PERSISTED
        assert producer.statistics().waiting == producer.statistics().queued == 0
    assert len(fake.submitted) == 6


@pytest.mark.parametrize("end", ["deadline", "close"])
async def test_send_many_that_stops_when_all_its_records_end_at_once(
    settings: ProducerSettings, clock: ManualClock, fake: FakeDriver, end: str
) -> None:
    """The first failure stops the other records, although their own time is over as well."""
    fake.unknown_topics.add("t")
    async with clock.open(settings.evolve(close_timeout=0.1), driver=fake) as producer:
        async with task_group() as tasks:
            many = Call(tasks, partial(producer.send_many, stop_on_error=True), numbered(3))
            await until(
                lambda: not producer._engine.ledger.queued and producer.statistics().queued == 3
            )
            if end == "deadline":
                clock.advance(settings.delivery_timeout)
            else:
                await producer.aclose()
            await many.wait()
        assert isinstance(many.error, MultiDeliveryError)
        assert {error.persistence for error in many.error.errors} == {Persistence.NOT_PERSISTED}
        assert [isinstance(error, DeliveryTimeout) for error in many.error.errors] == [
            end == "deadline",
            False,
            False,
        ]
        assert producer.statistics().in_flight == producer.statistics().queued == 0
        if end == "deadline":
            await producer.send(record(topic="another"))


@pytest.mark.parametrize("stops", [False, True])
async def test_send_many_that_stops_at_an_invalid_record(
    settings: ProducerSettings, fake: FakeDriver, stops: bool
) -> None:
    records = numbered(5)
    records[2] = record(b"x", topic="no such name")
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_many(records, stop_on_error=stops)
        assert len(await producer.send_many(numbered(1), stop_on_error=stops)) == 1
    assert len(caught.value.errors) == (5 if stops else 1)
    assert len(fake.submitted) == (1 if stops else 5)


async def test_send_many_with_an_object_that_is_not_a_record_sends_none(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(TypeError, match=r"^expected a ProducerRecord, not str$"):
            await producer.send_many([record(), cast("Any", "no")])
        assert producer.statistics().accepted == 0


# --- enqueue and deliveries ------------------------------------------------------------------


@pytest.mark.parametrize("nowait", [False, True])
async def test_a_delivery_is_first_accepted_and_then_acknowledged(
    settings: ProducerSettings, nowait: bool
) -> None:
    fake = FakeDriver(manual=True)
    sent = record()
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(sent) if nowait else await producer.enqueue(sent)
        assert isinstance(delivery, Delivery)
        assert delivery.record is sent
        assert not delivery.done
        await taken(fake, 1)
        assert not delivery.done
        assert repr(delivery) == "<Delivery submitted topic='t'>"
        fake.acknowledge()
        metadata = await delivery.wait()
        assert repr(delivery) == "<Delivery delivered topic='t'>"
        assert await delivery.wait() is metadata
    assert await delivery.wait() is metadata  # also on a closed producer


async def test_several_tasks_may_await_a_delivery(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = await producer.enqueue(record())
        async with task_group() as tasks:
            calls = [Call(tasks, delivery.wait) for _ in range(5)]
            await taken(fake, 1)
            await quiet()
            assert all(call.running for call in calls)
            fake.acknowledge()
        assert {call.value for call in calls} == {await delivery.wait()}


async def test_each_wait_for_a_failed_delivery_raises(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = await producer.enqueue(record())
        async with task_group() as tasks:
            calls = [Call(tasks, delivery.wait) for _ in range(3)]
            await taken(fake, 1)
            await quiet()
            fake.fail(refuse)
        for call in calls:
            assert isinstance(call.error, DeliveryError)
        depths: list[int] = []
        for _ in range(3):
            with pytest.raises(DeliveryError, match="refused") as caught:
                await delivery.wait()
            depths.append(len(caught.traceback))
        assert len(set(depths)) == 1  # the traceback does not grow with each call
        assert repr(delivery) == "<Delivery failed topic='t'>"


async def test_enqueue_waits_for_room(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        await producer.enqueue(record(b"0"))
        await taken(fake, 1)
        async with task_group() as tasks:
            second = Call(tasks, producer.enqueue, record(b"1"))
            await quiet()
            assert second.running
            assert producer.statistics().waiting == 1
            assert fake.acknowledge() == 1
        assert not second.value.done
        await taken(fake, 2)
        fake.acknowledge()
    assert values(fake) == [b"0", b"1"]


async def test_enqueue_nowait_without_room(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=2), driver=fake) as producer:
        producer.enqueue_nowait(record())
        producer.enqueue_nowait(record())
        with pytest.raises(anyio.WouldBlock, match="there is no room for the record"):
            producer.enqueue_nowait(record())
        assert producer.statistics().accepted == 2
        assert producer.statistics().waiting == 0
        await taken(fake, 2)
        fake.acknowledge()
        await producer.flush()
        producer.enqueue_nowait(record())
        await taken(fake, 3)
        fake.acknowledge()


async def test_an_invalid_record_is_not_accepted(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(RecordRejected):
            await producer.send(record(topic=""))
        with pytest.raises(RecordRejected):
            await producer.enqueue(record(topic=""))
        with pytest.raises(RecordRejected):
            producer.enqueue_nowait(record(topic=""))
        assert producer.statistics().accepted == 0


# --- back-pressure ---------------------------------------------------------------------------


@pytest.mark.parametrize("calls", ["enqueue", "wait"])
async def test_other_tasks_run_beside_calls_that_need_not_wait(
    settings: ProducerSettings, fake: FakeDriver, calls: str
) -> None:
    """A call yields to other tasks after at most a hundred calls."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        delivery = await producer.enqueue(record())
        await delivery.wait()
        tasks.start_soon(count)
        await until(lambda: turns > 0)
        before = turns
        for _ in range(5 * 100):
            if calls == "enqueue":
                await producer.enqueue(record())
            else:
                await delivery.wait()
        # In the first and in the last round, Trio may choose either order.
        assert turns - before >= 3
        tasks.cancel_scope.cancel()


async def test_enqueue_whose_record_fails_at_once_reports_it_once(
    settings: ProducerSettings,
) -> None:
    """The call raises the failure, so the end of the producer does not report it again."""
    fake = FakeDriver(manual=True)
    narrow = settings.evolve(max_in_flight=1)
    async with open_send_producer(narrow, driver=fake) as producer, task_group() as tasks:
        first = producer.enqueue_nowait(record())
        await taken(fake, 1)
        call = Call(tasks, producer.enqueue, record())
        await quiet()
        # There is room and the producer is broken before the task has its turn.
        fake.acknowledge()
        fake.break_client(ProducerFenced("another one"))
        await call.wait()
        assert isinstance(call.error, DeliveryError)
        assert (await first.wait()).offset == 0
    assert (producer.statistics().accepted, producer.statistics().failed) == (2, 1)


async def test_room_in_records_is_given_in_fifo_order(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings.evolve(max_in_flight=2), driver=fake) as producer,
        task_group() as tasks,
    ):
        for number in range(6):
            Call(tasks, producer.send, record(b"%d" % number))
            await quiet()
        figures = producer.statistics()
        assert (figures.in_flight, figures.waiting, figures.accepted) == (2, 4, 2)
        for count in range(3, 7):
            await taken(fake, count - 1)
            fake.acknowledge(1)
            await taken(fake, count)
            assert producer.statistics().in_flight == 2
        fake.acknowledge()
    assert values(fake) == [b"%d" % number for number in range(6)]


async def test_room_in_bytes_is_given_in_fifo_order(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings.evolve(max_buffered_bytes=10), driver=fake) as producer,
        task_group() as tasks,
    ):
        for size in (6, 5, 1):
            Call(tasks, producer.send, record(b"x" * size))
            await quiet()
        figures = producer.statistics()
        # The small record would fit, but does not overtake.
        assert (figures.in_flight_bytes, figures.waiting) == (6, 2)
        with pytest.raises(anyio.WouldBlock):
            producer.enqueue_nowait(record(b"x"))
        await taken(fake, 1)
        fake.acknowledge()
        await taken(fake, 3)
        assert producer.statistics().in_flight_bytes == 6
        fake.acknowledge()
    assert [len(value) for value in values(fake)] == [6, 5, 1]


async def test_a_record_larger_than_max_buffered_bytes(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    too_large = record(b"x" * 11)
    async with open_send_producer(settings.evolve(max_buffered_bytes=10), driver=fake) as producer:
        for attempt in (producer.send, producer.enqueue):
            with pytest.raises(RecordRejected, match="11 bytes, but max_buffered_bytes is 10"):
                await attempt(too_large)
        with pytest.raises(RecordRejected, match="11 bytes, but max_buffered_bytes is 10"):
            producer.enqueue_nowait(too_large)
        assert (await producer.send(record(b"x" * 10))).offset == 0


async def test_estimated_sizes_are_corrected(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    heavy = settings.evolve(value_serializer=str.encode)
    sent = ProducerRecord("t", "123", partition=0)
    async with open_send_producer(heavy, driver=fake) as producer:
        producer.enqueue_nowait(sent)
        assert producer.statistics().in_flight_bytes > 3
        await taken(fake, 1)
        await until(lambda: producer.statistics().in_flight_bytes == 3)
        fake.acknowledge()
        await producer.flush()
        assert producer.statistics().in_flight_bytes == 0


async def test_room_freed_by_an_expired_record_is_used(
    settings: ProducerSettings,
    fake: FakeDriver,
    clock: ManualClock,
) -> None:
    """The driver is idle, and no other event wakes the pump."""
    fake.unknown_topics.add("unknown")
    narrow = settings.evolve(max_in_flight=1, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        unlucky = producer.enqueue_nowait(record(topic="unknown"))
        await producer.partitions_for("t")  # the driver was asked, and the record is held back
        # The second record still has some time left when the first one expires.
        clock.advance(LONG / 2)
        async with task_group() as tasks:
            lucky = Call(tasks, producer.send, record())
            await quiet()
            assert lucky.running
            clock.advance(LONG / 2)
        assert lucky.value.offset == 0
        with pytest.raises(DeliveryTimeout):
            await unlucky.wait()


# --- flush -----------------------------------------------------------------------------------


async def test_flush_waits_for_records_accepted_before(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake) as producer,
        task_group() as tasks,
    ):
        first = producer.enqueue_nowait(record(b"0"))
        second = producer.enqueue_nowait(record(b"1"))
        await taken(fake, 2)
        flush = Call(tasks, producer.flush)
        await quiet()
        later = producer.enqueue_nowait(record(b"2"))
        await taken(fake, 3)
        fake.acknowledge(1)
        await first.wait()
        await quiet()
        assert flush.running
        fake.fail(refuse, 1)
        await flush.wait()  # an error is an outcome, and flush() does not raise it
        assert flush.error is None
        assert second.done
        assert not later.done
        fake.acknowledge()
        with pytest.raises(DeliveryError):
            await second.wait()


async def test_flush_without_records_returns(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        await producer.flush()
        await producer.send(record())
        await producer.flush()


async def test_flush_does_not_wait_for_records_without_room(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer,
        task_group() as tasks,
    ):
        producer.enqueue_nowait(record())
        waiting = Call(tasks, producer.send, record())
        await quiet()
        flush = Call(tasks, producer.flush)
        await taken(fake, 1)
        await quiet()
        fake.acknowledge()
        await flush.wait()
        assert waiting.running
        await taken(fake, 2)
        fake.acknowledge()


# --- topics ----------------------------------------------------------------------------------


async def test_partitions_of_a_known_topic(settings: ProducerSettings) -> None:
    async with open_send_producer(settings, driver=FakeDriver(partitions=3)) as producer:
        assert await producer.partitions_for("t") == frozenset({0, 1, 2})


async def test_partitions_of_a_topic_that_is_a_member_of_an_enum(
    settings: ProducerSettings,
) -> None:
    class Topic(str, enum.Enum):
        ORDERS = "orders"

    asked: list[str] = []

    class Asked(FakeDriver):
        def partitions_for(self, topic: str, /) -> frozenset[int] | None:
            asked.append(topic)
            return super().partitions_for(topic)

    async with open_send_producer(settings, driver=Asked()) as producer:
        assert await producer.partitions_for(Topic.ORDERS) == frozenset(range(4))
    assert [type(topic) for topic in asked] == [str]


async def test_partitions_of_a_topic_that_the_driver_learns(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings, driver=fake) as producer:
        async with task_group() as tasks:
            calls = [Call(tasks, producer.partitions_for, "new") for _ in range(2)]
            await producer.partitions_for("t")
            await quiet()
            assert all(call.running for call in calls)
            fake.learn("new")
        for call in calls:
            assert call.value == frozenset(range(4))


async def test_partitions_are_requested_again_without_an_event(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings.evolve(delivery_timeout=ENDLESS), driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.partitions_for, "new")
            await producer.partitions_for("t")
            fake.unknown_topics.clear()
            await clock.until(lambda: not call.running, step=RETRY_SECONDS)
        assert call.value == frozenset(range(4))


class LearnsMeanwhile(FakeDriver):
    """A driver whose client learns the topic after the driver's look-up, but before its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown_topics.add("new")

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        found = super().partitions_for(topic)
        self.learn(topic)
        return found

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        answer = super().submit(batch)
        self.learn("new")
        return answer


async def test_metadata_that_come_before_the_wait_are_not_missed(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    """No time passes, so no retry hides a missed event."""
    driver = LearnsMeanwhile()
    async with clock.open(settings, driver=driver) as producer:
        with anyio.fail_after(PATIENCE):
            assert await producer.partitions_for("new") == frozenset(range(4))
            driver.unknown_topics.add("new")
            assert (await producer.send(record(topic="new"))).topic == "new"


async def test_the_wait_for_earlier_metadata_ends_at_once(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with anyio.fail_after(PATIENCE):
            metadata = producer._engine.metadata
            await metadata.wait(metadata.changes - 1)
            assert not metadata.is_retry_scheduled


async def test_partitions_that_no_broker_reports(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.unknown_topics.add("new")
    async with open_send_producer(settings.evolve(delivery_timeout=SOON), driver=fake) as producer:
        with pytest.raises(SendProducerError, match=r"partitions of topic 'new' within 0\.03 s"):
            await producer.partitions_for("new")
        with pytest.raises(RecordRejected):
            await producer.partitions_for("no such name")


async def test_partitions_of_a_producer_that_breaks_meanwhile(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    """After the break there is no retry, and no time passes here."""
    fake.unknown_topics.add("new")
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:
        call = Call(tasks, producer.partitions_for, "new")
        await producer.partitions_for("t")
        await quiet()
        fake.submit_error = RuntimeError("the driver has a bug")
        with pytest.raises(DeliveryError):
            await producer.send(record())
        await call.wait()
        assert isinstance(call.error, ProducerBroken)


class Refusing(FakeDriver):
    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        raise SendProducerError(f"no access to {topic}")


async def test_partitions_without_authorization(settings: ProducerSettings) -> None:
    async with open_send_producer(settings, driver=Refusing()) as producer:
        with pytest.raises(SendProducerError, match="no access to secret"):
            await producer.partitions_for("secret")


async def test_an_unknown_topic_holds_back_only_its_own_records(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings, driver=fake) as producer:
        held = [producer.enqueue_nowait(one) for one in numbered(2, "new")]
        assert (await producer.send(record(b"a"))).offset == 0
        # The producer already holds back the topic when it gets these.
        held += [producer.enqueue_nowait(record(b"%d" % number, "new")) for number in (2, 3)]
        assert (await producer.send(record(b"b"))).offset == 1
        assert producer.statistics().queued == 4
        assert not any(delivery.done for delivery in held)
        fake.learn("new")
        for number, delivery in enumerate(held):
            assert (await delivery.wait()).offset == number
    assert values(fake, "new") == [b"0", b"1", b"2", b"3"]
    assert values(fake) == [b"a", b"b"]


async def test_held_records_precede_later_records(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    """The driver learns the topic while a later record of it is queued behind a busy driver."""
    fake.unknown_topics.add("new")
    async with clock.open(settings, driver=fake) as producer:
        deliveries = [producer.enqueue_nowait(record(b"held", "new"))]
        await producer.partitions_for("t")
        await quiet()
        fake.on_submit.shut()
        producer.enqueue_nowait(record(b"at the gate"))
        await at_gate(fake.on_submit)
        deliveries.append(producer.enqueue_nowait(record(b"later", "new")))
        fake.learn("new")
        await quiet()
        fake.on_submit.open()
        assert [(await delivery.wait()).offset for delivery in deliveries] == [0, 1]
    assert values(fake, "new") == [b"held", b"later"]


async def test_held_records_are_retried_without_an_event(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings.evolve(delivery_timeout=ENDLESS), driver=fake) as producer:
        delivery = producer.enqueue_nowait(record(topic="new"))
        await clock.until(lambda: len(fake.batches) >= 3, step=RETRY_SECONDS)
        fake.unknown_topics.clear()
        await clock.until(lambda: delivery.done, step=RETRY_SECONDS)
        assert (await delivery.wait()).offset == 0


async def test_one_retry_serves_two_held_topics(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics |= {"one", "two"}
    async with clock.open(settings.evolve(delivery_timeout=ENDLESS), driver=fake) as producer:
        first = producer.enqueue_nowait(record(topic="one"))
        await producer.partitions_for("t")
        second = producer.enqueue_nowait(record(topic="two"))
        await producer.partitions_for("t")
        await until(lambda: producer.statistics().queued == 2)
        names = [task.name or "" for task in anyio.get_running_tasks()]
        assert len([name for name in names if "_retry_topics" in name]) <= 1
        fake.unknown_topics.clear()
        # The driver may just have refused the second record. Then another retry follows.
        await clock.until(lambda: first.done and second.done, step=RETRY_SECONDS)
        assert (await first.wait()).topic == "one"
        assert (await second.wait()).topic == "two"
        # When the retry for the third topic is due, no record is held any more.
        fake.unknown_topics.add("three")
        third = producer.enqueue_nowait(record(topic="three"))
        await producer.partitions_for("t")
        fake.learn("three")
        await third.wait()
        clock.advance(RETRY_SECONDS)
        await quiet()


# --- deadlines -------------------------------------------------------------------------------


async def test_deadline_while_waiting_for_room_and_with_the_driver(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.on_submit.shut()
    narrow = settings.evolve(max_in_flight=1, delivery_timeout=LONG)
    async with clock.open(narrow, driver=fake) as producer:
        async with task_group() as tasks:
            with_driver = Call(tasks, producer.send, record(b"0"))
            await at_gate(fake.on_submit)
            waiting = Call(tasks, producer.send, record(b"w"))
            enqueueing = Call(tasks, producer.enqueue, record(b"e"))
            await quiet()
            clock.advance(LONG)
        assert isinstance(with_driver.error, DeliveryTimeout)
        assert with_driver.error.persistence is Persistence.POSSIBLY_PERSISTED
        for call in (waiting, enqueueing):
            assert isinstance(call.error, DeliveryTimeout)
            assert "there was no room" in str(call.error)
            assert call.error.persistence is Persistence.NOT_PERSISTED
        fake.on_submit.open()
        await producer.flush()
    assert b"w" not in values(fake)
    assert b"e" not in values(fake)


async def test_a_deadline_passes_without_any_event(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(delivery_timeout=SOON), driver=fake) as producer:
        with pytest.raises(DeliveryTimeout, match=r"within 0\.03 s"):
            await producer.send(record())
        fake.acknowledge()


async def test_deadline_in_the_queue(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.on_submit.shut()
    async with clock.open(settings.evolve(delivery_timeout=LONG), driver=fake) as producer:
        async with task_group() as tasks:
            first = Call(tasks, producer.send, record(b"first"))
            await at_gate(fake.on_submit)
            queued = Call(tasks, producer.send, record(b"queued"))
            await quiet()
            clock.advance(LONG)
        assert isinstance(first.error, DeliveryTimeout)
        assert isinstance(queued.error, DeliveryTimeout)
        assert "could not be handed to the client" in str(queued.error)
        assert queued.error.persistence is Persistence.NOT_PERSISTED
        fake.on_submit.open()
        await until(lambda: producer.statistics().in_flight == 0)
        assert (await producer.send(record(b"next"))).offset == 1
    assert values(fake) == [b"first", b"next"]


async def test_deadline_with_the_driver(settings: ProducerSettings, clock: ManualClock) -> None:
    fake = FakeDriver(manual=True)
    async with clock.open(settings.evolve(delivery_timeout=LONG), driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await taken(fake, 1)
        clock.advance(LONG)
        with pytest.raises(DeliveryTimeout, match=r"within 120 s") as caught:
            await delivery.wait()
        assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
        # The record keeps its room while the driver has it.
        assert producer.statistics().in_flight == 1
        assert fake.acknowledge() == 1
        await until(lambda: producer.statistics().in_flight == 0)
        figures = producer.statistics()
        assert (figures.delivered, figures.failed) == (0, 1)


async def test_deadline_of_an_unknown_topic(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock
) -> None:
    fake.unknown_topics.add("new")
    async with clock.open(settings.evolve(delivery_timeout=LONG), driver=fake) as producer:
        async with task_group() as tasks:
            held = Call(tasks, producer.send_many, numbered(2, "new"))
            await quiet()
            await producer.send(record())
            clock.advance(LONG)
        assert isinstance(held.error, MultiDeliveryError)
        for error in held.error.errors:
            assert isinstance(error, DeliveryTimeout)
            assert error.persistence is Persistence.NOT_PERSISTED
        fake.learn("new")
        await producer.partitions_for("new")
    assert values(fake, "new") == []


async def test_each_deadline_starts_at_its_call(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    async with clock.open(settings.evolve(delivery_timeout=LONG), driver=fake) as producer:
        async with task_group() as tasks:
            first = Call(tasks, producer.send, record())
            await taken(fake, 1)
            clock.advance(LONG / 2)
            second = Call(tasks, producer.send, record())
            await taken(fake, 2)
            assert first.running
            clock.advance(LONG / 2)
            await first.wait()
            assert isinstance(first.error, DeliveryTimeout)
            assert second.running
            fake.acknowledge()
        assert second.value.offset == 1


# --- unawaited failures ----------------------------------------------------------------------


async def test_undelivered_records_are_raised_at_the_clean_end(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse_only(b"bad")
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record(b"bad"))
            producer.enqueue_nowait(record(b"good"))
            await producer.enqueue(record(b"bad"))
    assert caught.value.count == 2
    assert [error.record.value for error in caught.value.errors] == [b"bad", b"bad"]


async def test_awaited_failures_are_not_undelivered_records(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake) as producer:
        before = producer.enqueue_nowait(record())
        after = producer.enqueue_nowait(record())
        async with task_group() as tasks:
            call = Call(tasks, before.wait)
        assert call.error is not None
        with pytest.raises(DeliveryError):
            await after.wait()
        with pytest.raises(DeliveryError):
            await producer.send(record())
        with pytest.raises(MultiDeliveryError):
            await producer.send_many([record()])


async def test_a_failure_that_is_awaited_late_is_not_reported(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await producer.flush()
        assert delivery.done
        with pytest.raises(DeliveryError):
            await delivery.wait()


async def test_an_abandoned_record_that_fails_counts_as_undelivered(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            async with task_group() as tasks:
                call = Call(tasks, producer.send, record())
                await taken(fake, 1)
                await call.cancel()
            fake.fail(refuse)
            await producer.flush()
            assert producer.statistics().abandoned == 1
    assert caught.value.count == 1


async def test_many_undelivered_records_are_counted(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    with raising(UndeliveredRecords, match="1100 record") as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            for one in numbered(1100):
                producer.enqueue_nowait(one)
    assert caught.value.count == 1100
    assert len(caught.value.errors) == 1000


async def test_the_exception_of_the_body_gets_a_note_about_failures(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    with pytest.raises(KeyError) as caught:  # noqa: PT012  # the body itself raises
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record())
            await producer.flush()
            raise KeyError("mine")
    notes: list[str] = caught.value.__dict__["__notes__"]
    assert len(notes) == 1
    assert notes[0].startswith("1 record(s) failed and nobody awaited the outcome")
    assert notes[0].endswith("; the first: DeliveryError: refused [not persisted]")


async def test_no_note_without_failures(settings: ProducerSettings, fake: FakeDriver) -> None:
    with pytest.raises(KeyError) as caught:  # noqa: PT012  # the body itself raises
        async with open_send_producer(settings, driver=fake) as producer:
            await producer.send(record())
            raise KeyError("mine")
    assert "__notes__" not in caught.value.__dict__


# --- exceptions of the block -----------------------------------------------------------------


class Unusual(BaseException):
    """Stands for KeyboardInterrupt, which pytest would handle itself."""


def group(*errors: Exception) -> Exception:
    # Built in since Python 3.11. The backport that AnyIO uses before that has the same name.
    kind: Any = getattr(builtins, "ExceptionGroup", None)
    if kind is None:  # pragma: no cover
        kind = importlib.import_module("exceptiongroup").ExceptionGroup
    made: Exception = kind("mine", errors)
    return made


@pytest.mark.parametrize(
    "error",
    [
        KeyError("mine"),
        Unusual(),
        group(ValueError("one")),
        ProducerBroken("mine"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_exception_of_the_body_is_raised_unchanged(
    settings: ProducerSettings, fake: FakeDriver, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        async with open_send_producer(settings, driver=fake):
            raise error
    assert caught.value is error


async def test_a_return_in_the_body(settings: ProducerSettings, fake: FakeDriver) -> None:
    async def body() -> str:
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record())
            return "done"

    assert await body() == "done"
    assert values(fake) == [b"v"]


# --- starting --------------------------------------------------------------------------------


async def test_a_producer_in_a_task_group_of_the_caller(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with task_group() as tasks:
        producer = await start_send_producer(tasks, settings, driver=fake)
        assert (await producer.send(record())).offset == 0
        assert repr(producer) == "<SendProducer open broker.invalid:9092>"
        await producer.aclose()
        assert repr(producer) == "<SendProducer closed broker.invalid:9092>"
    assert len(fake.closed) == 1


async def test_a_cancelled_task_group_closes_the_producer(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with task_group() as tasks:
        producer = await start_send_producer(tasks, settings, driver=fake)
        delivery = producer.enqueue_nowait(record())
        tasks.cancel_scope.cancel()
    assert producer.statistics().state == "closed"
    assert delivery.done


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_producer_in_a_nursery(settings: ProducerSettings, fake: FakeDriver) -> None:
    trio = pytest.importorskip("trio")
    async with trio.open_nursery() as nursery:
        producer = await start_send_producer(nursery, settings, driver=fake)
        assert (await producer.send(record())).offset == 0
        await producer.aclose()


async def test_the_driver_gets_the_settings(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake):
        assert fake.settings is settings
        assert fake.opened == 1


@pytest.mark.parametrize("error", [ProducerStartError("no broker"), ValueError("a bug")])
async def test_an_error_at_the_start_is_raised_unchanged(
    settings: ProducerSettings, fake: FakeDriver, error: Exception
) -> None:
    fake.open_error = error
    with pytest.raises(type(error)) as caught:
        async with open_send_producer(settings, driver=fake):
            pytest.fail("the block was entered")
    assert caught.value is error
    assert fake.closed == [0]


async def test_an_error_at_the_start_in_a_task_group_of_the_callers(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.open_error = error = ProducerStartError("no broker")
    async with task_group() as tasks:
        with pytest.raises(ProducerStartError) as caught:
            await start_send_producer(tasks, settings, driver=fake)
        assert caught.value is error
        fake.open_error = None
        producer = await start_send_producer(tasks, settings, driver=fake)
        await producer.send(record())
        await producer.aclose()


# --- statistics ------------------------------------------------------------------------------


async def test_statistics(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.on_submit.shut()
    async with open_send_producer(settings.evolve(max_in_flight=3), driver=fake) as producer:
        first = producer.statistics()
        assert first.state == "open"
        assert first.generations == 1
        assert (first.accepted, first.in_flight, first.hand_overs) == (0, 0, 0)
        producer.enqueue_nowait(record(b"12345"))
        await at_gate(fake.on_submit)
        async with task_group() as tasks:
            calls: list[Call[RecordMetadata]] = []
            for number in range(3):
                calls.append(Call(tasks, producer.send, record(b"%d" % number, key=b"k")))
                await quiet()
            figures = producer.statistics()
            assert (figures.queued, figures.waiting) == (2, 1)
            assert (figures.in_flight, figures.in_flight_bytes) == (3, 9)
            assert (figures.accepted, figures.hand_overs) == (3, 1)
            fake.on_submit.open()
        assert [call.value.offset for call in calls] == [1, 2, 3]
        assert producer.statistics().delivered == 4
    last = producer.statistics()
    assert last.state == "closed"
    assert (last.accepted, last.delivered, last.failed, last.withdrawn) == (4, 4, 0, 0)
    assert last.wake_ups > first.wake_ups


# --- faults of drivers and of the producer ---------------------------------------------------


async def test_a_driver_that_raises_breaks_the_producer(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.on_submit.shut()
    fake.submit_error = cause = KeyError("the driver's own")
    async with open_send_producer(settings.evolve(max_in_flight=2), driver=fake) as producer:
        async with task_group() as tasks:
            with_driver = Call(tasks, producer.send, record())
            await at_gate(fake.on_submit)
            queued = Call(tasks, producer.send, record())
            await quiet()
            waiting = Call(tasks, producer.send, record())
            flush = Call(tasks, producer.flush)
            await quiet()
            fake.on_submit.open()
        assert isinstance(with_driver.error, DeliveryError)
        assert with_driver.error.persistence is Persistence.POSSIBLY_PERSISTED
        assert with_driver.error.__cause__ is cause
        for call in (queued, waiting):
            assert isinstance(call.error, DeliveryError)
            assert call.error.persistence is Persistence.NOT_PERSISTED
        assert flush.error is None
        assert producer.statistics().state == "broken"

        attempts: list[Callable[[], Any]] = [
            lambda: producer.send(record()),
            lambda: producer.send_many([record()]),
            lambda: producer.send_envelope(Message(record())),
            lambda: producer.send_envelope(MultiMessage([record()])),
            lambda: producer.enqueue(record()),
            lambda: producer.partitions_for("t"),
            producer.flush,
        ]
        for attempt in attempts:
            with pytest.raises(ProducerBroken, match="the driver's own") as caught:
                await attempt()
            assert caught.value.__cause__ is cause
        with pytest.raises(ProducerBroken) as caught:
            producer.enqueue_nowait(record())
        assert caught.value.__cause__ is cause
        await producer.send_envelope(PassThroughMessage())
    assert producer.statistics().state == "closed"


async def test_the_reason_is_logged_once_when_the_producer_breaks(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    fake.submit_error = KeyError("the driver's own")
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(DeliveryError):
            await producer.send(record())
        with pytest.raises(ProducerBroken):
            await producer.send(record())
    (line,) = caplog.records
    assert line.levelname == "ERROR"
    assert line.getMessage() == """the producer broke: "the driver's own\""""
    assert vars(line)["error.type"] == "KeyError"


@pytest.mark.parametrize("kind", [FakeDriver, PolledFakeDriver])
async def test_a_log_handler_that_calls_a_breaking_producer(
    settings: ProducerSettings, kind: type[FakeDriver]
) -> None:
    """Its call raises, because it interrupts the producer. The producer breaks nevertheless."""
    fake = kind()
    fake.submit_error = KeyError("the driver's own")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            producer.enqueue_nowait(ProducerRecord("logs", record.getMessage().encode()))

    with everything_logged_to(Handler(), "anyio_sendproducer"):
        async with open_send_producer(settings, driver=fake) as producer:
            with anyio.fail_after(PATIENCE), pytest.raises(DeliveryError, match="driver's own"):
                await producer.send(record())
            assert producer.statistics().state == "broken"
    assert producer.statistics().state == "closed"


async def test_unawaited_records_fail_when_the_driver_breaks(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.submit_error = KeyError("the driver's own")
    with pytest.raises(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record())
    assert caught.value.count == 1


async def test_a_bug_in_the_producer_breaks_it(
    settings: ProducerSettings,
    fake: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def settle(*_: object) -> None:
        raise RuntimeError("a bug")

    async with open_send_producer(settings, driver=fake) as producer:
        monkeypatch.setattr(producer._engine.ledger, "settle", settle)
        with pytest.raises(DeliveryError, match="a bug") as caught:
            await producer.send(record())
        assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
        (line,) = caplog.records
        assert line.getMessage() == "the producer broke: a bug"
        assert line.exc_info
        with pytest.raises(ProducerBroken, match="a bug"):
            await producer.send(record())


# --- the fake driver -------------------------------------------------------------------------


async def test_the_fake_chooses_partitions(settings: ProducerSettings) -> None:
    """Records with a key are partitioned by it; the others get the partitions in turn."""
    fake = FakeDriver(partitions=3)
    async with open_send_producer(settings, driver=fake) as producer:
        by_key = [await producer.send(record(key=b"same", partition=None)) for _ in range(5)]
        by_turn = [await producer.send(record(partition=None)) for _ in range(6)]
    assert len({place.partition for place in by_key}) == 1
    assert sorted(place.partition for place in by_turn) == [0, 0, 1, 1, 2, 2]


def test_the_attributes_of_the_fake_can_be_replaced() -> None:
    """The fake stores some of them in other objects."""
    fake = FakeDriver(partitions=2)
    written, transactions, offsets = fake.written, fake.transactions, fake.offsets
    assert (fake.partitions, written, transactions, offsets) == (2, {}, [], [])
    fake.partitions = 3
    fake.written, fake.transactions, fake.offsets = {}, [], []
    fake.unknown_topics = {"new"}
    assert fake.partitions_for("old") == frozenset({0, 1, 2})
    assert fake.partitions_for("new") is None
    assert fake.written is not written
    assert fake.transactions is not transactions
    assert fake.offsets is not offsets
    error = SendProducerError("not now")
    fake.offsets_error, fake.end_error = error, end_error(commit=error)
    assert fake.offsets_error is error
    assert [fake.end_error(commit) for commit in (True, False)] == [error, None]


def test_the_fake_before_it_is_opened() -> None:
    fake = FakeDriver()
    fake.unknown_topics.add("new")
    fake.learn("new")
    assert fake.unknown_topics == set()
    fake.break_client()
    assert fake.under_way == []
    assert fake.acknowledge() == 0


def test_the_fakes_waits_are_bounded() -> None:
    fake = FakeDriver()
    with pytest.raises(TimeoutError, match=r"1 records were not taken within 0\.01 s"):
        fake.wait_until_taken(1, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"no thread came to the gate within 0\.01 s"):
        fake.on_submit.wait_until_someone_waits(timeout=0.01)


@pytest.mark.parametrize("wrong", [math.nan, -1])
def test_a_timeout_of_the_fakes_waits_is_checked(wrong: float) -> None:
    fake = FakeDriver()
    for wait in (partial(fake.wait_until_taken, 1), fake.on_submit.wait_until_someone_waits):
        with pytest.raises(ValueError, match=f"timeout must be 0 seconds or more: {wrong}"):
            wait(timeout=wrong)
