"""Cancellation at every stage of a record: it is withdrawn, abandoned, or has its outcome.

After each cancellation the producer still works, the records of other tasks are unaffected, and the
figures of `statistics()` add up.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Message,
    MultiMessage,
    PassThroughMessage,
    Persistence,
    ProducerSettings,
    SendProducer,
    UndeliveredRecords,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import Call, at_gate, quiet, raising, record, refuse, taken, task_group
from tests.support.waiting import PATIENCE, until

ASYNCIO = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del ASYNCIO[1:]

Cancel = Callable[["Call[Any]"], None]


def from_outside(call: Call[Any]) -> None:
    call.scope.cancel()


def by_a_deadline(call: Call[Any]) -> None:
    call.scope.deadline = anyio.current_time()


@pytest.fixture(params=[from_outside, by_a_deadline])
def cancel(request: pytest.FixtureRequest) -> Cancel:
    return cast("Cancel", request.param)


def values(fake: FakeDriver) -> list[bytes]:
    return [what.value for log in fake.written.values() for what in log]


async def works_on(producer: SendProducer, fake: FakeDriver) -> None:
    """Check that the producer still sends, holds no records, and has figures that add up."""
    fake.manual = False
    fake.on_submit.open()
    fake.acknowledge()
    with anyio.fail_after(PATIENCE):
        await producer.send(record(b"after"))
        await producer.flush()
    assert values(fake)[-1] == b"after"
    assert b"never" not in values(fake)
    figures = producer.statistics()
    assert (figures.waiting, figures.queued) == (0, 0)
    assert (figures.in_flight, figures.in_flight_bytes) == (0, 0)
    assert figures.accepted == figures.delivered + figures.failed + figures.withdrawn
    assert figures.generations == 1


def sends(producer: SendProducer, name: str, value: bytes) -> Callable[[], Awaitable[Any]]:
    one = record(value)
    return {
        "send": lambda: producer.send(one),
        "send_envelope": lambda: producer.send_envelope(Message(one)),
        "multi_message": lambda: producer.send_envelope(MultiMessage([one])),
        "send_many": lambda: producer.send_many([one]),
        "enqueue": lambda: producer.enqueue(one),
    }[name]


AWAITED = ["send", "send_envelope", "multi_message", "send_many"]


# --- waiting for room ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*AWAITED, "enqueue"])
async def test_a_cancelled_call_that_waits_for_room_leaves_the_line(
    settings: ProducerSettings, cancel: Cancel, name: str
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        async with task_group() as tasks:
            before = Call(tasks, producer.send, record(b"before"))
            await taken(fake, 1)
            call = Call(tasks, sends(producer, name, b"never"))
            await quiet()
            behind = Call(tasks, producer.send, record(b"behind"))
            await quiet()
            assert producer.statistics().waiting == 2
            cancel(call)
            assert (await call.wait()).cancelled
            assert producer.statistics().waiting == 1
            assert before.running
            assert behind.running
            fake.acknowledge()
            await taken(fake, 2)
            fake.acknowledge()
        assert values(fake) == [b"before", b"behind"]
        figures = producer.statistics()
        assert (figures.accepted, figures.withdrawn, figures.abandoned) == (2, 0, 0)
        await works_on(producer, fake)


async def test_a_cancelled_large_record_lets_smaller_records_through(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    """A record that waits behind one that needs more room goes on without another event."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.evolve(max_buffered_bytes=10), driver=fake) as producer:
        async with task_group() as tasks:
            first = Call(tasks, producer.send, record(b"12345"))
            await taken(fake, 1)
            large = Call(tasks, producer.send, record(b"large one"))
            await quiet()
            small = Call(tasks, producer.send, record(b"small"))
            await quiet()
            cancel(large)
            await large.wait()
            await taken(fake, 2)
            fake.acknowledge()
        assert first.value.offset == 0
        assert small.value.offset == 1
        await works_on(producer, fake)


async def test_a_cancelled_send_many_accepts_no_more_records(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    """One record is delivered, one is with the driver, one waits, and one is not in line yet."""
    fake = FakeDriver(manual=True)
    records = [record(value) for value in (b"done", b"under way", b"never", b"never")]
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send_many, records)
            await taken(fake, 1)
            await quiet()
            fake.acknowledge()
            await taken(fake, 2)
            await quiet()
            assert producer.statistics().waiting == 1
            cancel(call)
            assert (await call.wait()).cancelled
        fake.acknowledge()
        await producer.flush()
        assert values(fake) == [b"done", b"under way"]
        assert producer.statistics().accepted == 2
        await works_on(producer, fake)


async def test_a_send_many_that_is_cancelled_between_two_parts_withdraws_its_records(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    """A long list is accepted in several parts, and may be cancelled between two parts."""
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        producer.enqueue_nowait(record(b"at the gate"))
        await at_gate(fake.on_submit)
        async with task_group() as tasks:
            call = Call(tasks, producer.send_many, [record(b"never")] * 501)
            await until(lambda: producer.statistics().accepted > 1)
            cancel(call)
            assert (await call.wait()).cancelled
        figures = producer.statistics()
        assert figures.withdrawn == figures.accepted - 1
        await works_on(producer, fake)


# --- in the queue ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWAITED)
async def test_a_cancelled_call_withdraws_its_queued_record(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel, name: str
) -> None:
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            at_the_gate = Call(tasks, producer.send, record(b"at the gate"))
            await at_gate(fake.on_submit)
            before = Call(tasks, producer.send, record(b"before"))
            await quiet()
            call = Call(tasks, sends(producer, name, b"never"))
            await quiet()
            behind = Call(tasks, producer.send, record(b"behind"))
            await quiet()
            cancel(call)
            assert (await call.wait()).cancelled
            figures = producer.statistics()
            assert (figures.withdrawn, figures.abandoned, figures.queued) == (1, 0, 2)
            fake.on_submit.open()
        assert [one.value.offset for one in (at_the_gate, before, behind)] == [0, 1, 2]
        await works_on(producer, fake)


async def test_a_cancelled_call_withdraws_its_held_record(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    fake.unknown_topics.add("new")
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record(b"never", "new"))
            other = Call(tasks, producer.send, record(b"other", "new"))
            await quiet()
            await producer.partitions_for("t")
            await until(lambda: producer.statistics().queued == 2)
            cancel(call)
            assert (await call.wait()).cancelled
            assert producer.statistics().withdrawn == 1
            fake.learn("new")
        assert other.value.offset == 0
        await works_on(producer, fake)


async def test_a_cancelled_record_that_the_driver_gives_back_is_withdrawn(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    """The driver gives the record back after its caller was cancelled, so it is withdrawn."""
    fake.unknown_topics.add("new")
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record(b"never", "new"))
            await at_gate(fake.on_submit)
            cancel(call)
            assert (await call.wait()).cancelled
            assert producer.statistics().abandoned == 1
        fake.on_submit.open()
        await producer.flush()
        figures = producer.statistics()
        assert (figures.withdrawn, figures.abandoned) == (1, 0)
        fake.learn("new")
        await works_on(producer, fake)


async def test_room_freed_by_a_withdrawn_record_is_used(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    """The driver is idle, and no other event wakes up the pump."""
    fake.unknown_topics.add("new")
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        async with task_group() as tasks:
            held = Call(tasks, producer.send, record(b"never", "new"))
            await quiet()
            await producer.partitions_for("t")
            await quiet()
            waiting = Call(tasks, producer.send, record(b"waiting"))
            await quiet()
            assert producer.statistics().waiting == 1
            cancel(held)
            await waiting.wait()
        assert waiting.value.offset == 0
        await works_on(producer, fake)


@pytest.mark.parametrize("name", AWAITED)
async def test_a_call_in_a_cancelled_scope_is_cancelled(
    settings: ProducerSettings, fake: FakeDriver, name: str
) -> None:
    """The record is not accepted, withdrawn, or abandoned, and is counted accordingly."""
    calls = 100  # on asyncio, some of the calls check for cancellation first
    async with open_send_producer(settings, driver=fake) as producer:
        for _ in range(calls):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await sends(producer, name, b"sent")()
            assert scope.cancelled_caught
        await producer.flush()
        figures = producer.statistics()
        assert figures.accepted == figures.withdrawn + figures.abandoned <= calls
        await works_on(producer, fake)
        assert values(fake).count(b"sent") == figures.abandoned


async def test_every_waiting_method_checks_for_cancellation(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        waits: list[Callable[[], Awaitable[Any]]] = [
            lambda: producer.enqueue(record(b"never")),
            lambda: producer.send_envelope(PassThroughMessage()),
            lambda: producer.send_many([]),
            lambda: producer.send_many([record(b"never")]),
            lambda: producer.send_envelope(MultiMessage([record(b"never")])),
            lambda: producer.partitions_for("t"),
            lambda: producer.warm_up([]),
            lambda: producer.warm_up(["t"]),
            producer.flush,
        ]
        for wait in waits:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await wait()
            assert scope.cancelled_caught
        assert producer.statistics().accepted == 0
        await works_on(producer, fake)


# --- with the driver -------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWAITED)
async def test_a_cancelled_call_abandons_its_submitted_record(
    settings: ProducerSettings, cancel: Cancel, name: str
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            other = Call(tasks, producer.send, record(b"other"))
            await taken(fake, 1)
            call = Call(tasks, sends(producer, name, b"abandoned"))
            await taken(fake, 2)
            cancel(call)
            assert (await call.wait()).cancelled
            figures = producer.statistics()
            assert (figures.withdrawn, figures.abandoned, figures.in_flight) == (0, 1, 2)
            fake.acknowledge()
        assert other.value.offset == 0
        await producer.flush()
        assert values(fake) == [b"other", b"abandoned"]
        assert producer.statistics().delivered == 2
        await works_on(producer, fake)


async def test_a_cancelled_send_many_abandons_only_its_submitted_records(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    fake.unknown_topics.add("new")
    records = [record(b"never", "new"), record(b"sent"), record(b"never", "new"), record(b"sent")]
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send_many, records)
            await taken(fake, 2)
            await until(lambda: producer.statistics().queued == 2)
            cancel(call)
            assert (await call.wait()).cancelled
        figures = producer.statistics()
        assert (figures.withdrawn, figures.abandoned) == (2, 2)
        fake.learn("new")
        await works_on(producer, fake)
        assert values(fake) == [b"sent", b"sent", b"after"]


async def test_a_record_that_is_acknowledged_during_the_cancellation_is_delivered(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    """The outcome is on its way to the event loop when the call is cancelled."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record(b"sent"))
            many = Call(tasks, producer.send_many, [record(b"sent")])
            await taken(fake, 2)
            fake.acknowledge()
            cancel(call)
            cancel(many)
        await producer.flush()
        figures = producer.statistics()
        assert figures.delivered == 2
        assert figures.abandoned == [call.cancelled, many.cancelled].count(True)
        await works_on(producer, fake)


async def test_a_call_that_has_its_outcome_is_not_cancelled(settings: ProducerSettings) -> None:
    """One batch wakes both tasks. The first cancels the second, which already has its outcome."""
    fake = FakeDriver(manual=True)

    async def send_and_cancel(producer: SendProducer, scope: anyio.CancelScope) -> None:
        await producer.send(record(b"first"))
        scope.cancel()

    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            scope = anyio.CancelScope()
            Call(tasks, send_and_cancel, producer, scope)
            await taken(fake, 1)
            second = Call(tasks, producer.send, record(b"second"), scope=scope)
            await taken(fake, 2)
            fake.acknowledge()
        assert second.value.offset == 1
        assert producer.statistics().abandoned == 0
        await works_on(producer, fake)


async def test_the_failure_of_an_abandoned_record_is_raised_at_the_end(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            async with task_group() as tasks:
                calls = [
                    Call(tasks, sends(producer, name, b"sent")) for name in ("send", "send_many")
                ]
                await taken(fake, 2)
                fake.fail(refuse)  # on its way to the event loop
                for call in calls:
                    cancel(call)
            await producer.flush()
            raised = [call.error is not None for call in calls].count(True)
            assert producer.statistics().failed == 2
    assert caught.value.count == 2 - raised


# --- deliveries, flush, partitions -----------------------------------------------------------


async def test_a_cancelled_delivery_wait_does_not_affect_another(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record(b"sent"))
        await taken(fake, 1)
        async with task_group() as tasks:
            cancelled = Call(tasks, delivery.wait)
            other = Call(tasks, delivery.wait)
            await quiet()
            cancel(cancelled)
            assert (await cancelled.wait()).cancelled
            assert other.running
            fake.acknowledge()
        assert other.value == await delivery.wait()
        figures = producer.statistics()
        assert (figures.abandoned, figures.withdrawn) == (0, 0)
        await works_on(producer, fake)


async def test_a_cancelled_delivery_wait_leaves_the_failure_to_another_waiter(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record(b"sent"))
        await taken(fake, 1)
        async with task_group() as tasks:
            cancelled = Call(tasks, delivery.wait)
            other = Call(tasks, delivery.wait)
            await quiet()
            cancel(cancelled)
            await cancelled.wait()
            fake.fail(refuse)
        assert isinstance(other.error, DeliveryError)
        await works_on(producer, fake)


async def test_a_cancelled_only_delivery_wait_leaves_the_failure_to_the_end(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    with raising(UndeliveredRecords):
        async with open_send_producer(settings, driver=fake) as producer:
            delivery = producer.enqueue_nowait(record(b"sent"))
            await taken(fake, 1)
            async with task_group() as tasks:
                cancelled = Call(tasks, delivery.wait)
                await quiet()
                cancel(cancelled)
            fake.fail(refuse)
            await producer.flush()
            await works_on(producer, fake)


async def test_a_cancelled_delivery_wait_can_be_repeated(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record(b"sent"))
        await taken(fake, 1)
        async with task_group() as tasks:
            first = Call(tasks, delivery.wait)
            await quiet()
            cancel(first)
            await first.wait()
            again = Call(tasks, delivery.wait)
            await quiet()
            fake.acknowledge()
        assert again.value.offset == 0
        await works_on(producer, fake)


async def test_a_cancelled_flush_does_not_affect_others(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record(b"sent"))
        await taken(fake, 1)
        async with task_group() as tasks:
            flushes = [Call(tasks, producer.flush) for _ in range(3)]
            await quiet()
            cancel(flushes[1])
            assert (await flushes[1].wait()).cancelled
            assert len(producer._engine.ledger._barriers) == 2  # the cancelled flush has no barrier
            assert flushes[0].running
            assert flushes[2].running
            assert not delivery.done
            fake.acknowledge()
        assert [flush.cancelled for flush in flushes] == [False, True, False]
        assert (await delivery.wait()).offset == 0
        await works_on(producer, fake)


async def test_a_cancelled_partitions_for_does_not_affect_another(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    fake.unknown_topics.add("new")
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            cancelled = Call(tasks, producer.partitions_for, "new")
            other = Call(tasks, producer.partitions_for, "new")
            await producer.partitions_for("t")
            await quiet()
            cancel(cancelled)
            assert (await cancelled.wait()).cancelled
            assert len(producer._engine.metadata.waiters) <= 1
            fake.learn("new")
        assert other.value == frozenset(range(4))
        assert not producer._engine.metadata.waiters
        await works_on(producer, fake)


async def test_partitions_for_can_be_cancelled_while_the_driver_is_busy(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        producer.enqueue_nowait(record(b"at the gate"))
        await at_gate(fake.on_submit)
        async with task_group() as tasks:
            cancelled = Call(tasks, producer.partitions_for, "t")
            other = Call(tasks, producer.partitions_for, "t")
            await quiet()
            cancel(cancelled)
            assert (await cancelled.wait()).cancelled
            fake.on_submit.open()
        assert other.value == frozenset(range(4))
        await works_on(producer, fake)


# --- starting --------------------------------------------------------------------------------


async def test_a_cancelled_start_leaves_no_task(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    before = set(anyio.get_running_tasks())

    async def body() -> None:
        async with open_send_producer(settings, driver=fake):
            pytest.fail("the block was entered")

    fake.on_open.shut()
    async with task_group() as tasks:
        call = Call(tasks, body)
        await at_gate(fake.on_open)
        cancel(call)
        assert (await call.wait()).cancelled
    assert fake.closed == [0]
    assert set(anyio.get_running_tasks()) == before


async def test_a_cancelled_start_does_not_affect_the_task_group_of_the_caller(
    settings: ProducerSettings, fake: FakeDriver, cancel: Cancel
) -> None:
    async with task_group() as tasks:

        def start() -> Awaitable[SendProducer]:
            return start_send_producer(tasks, settings, driver=fake)

        at_once = Call(tasks, start)
        at_once.scope.cancel()  # before it starts
        assert (await at_once.wait()).cancelled
        fake.on_open.shut()
        starting = Call(tasks, start)
        await at_gate(fake.on_open)
        cancel(starting)
        assert (await starting.wait()).cancelled
        producer = await start_send_producer(tasks, settings, driver=fake)
        await works_on(producer, fake)
        await producer.aclose()


async def test_a_start_in_a_cancelled_scope_is_cancelled(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    before = set(anyio.get_running_tasks())
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with open_send_producer(settings, driver=fake):
            pytest.fail("the block was entered")
    assert scope.cancelled_caught
    assert set(anyio.get_running_tasks()) == before


async def test_fail_after_ends_a_start(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.on_open.shut()
    with raising(TimeoutError):
        with anyio.fail_after(0.01):
            async with open_send_producer(settings, driver=fake):
                pytest.fail("the block was entered")


# --- closing ---------------------------------------------------------------------------------


async def test_a_cancelled_drain_ends_within_cancel_timeout(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    before = set(anyio.get_running_tasks())
    fake = FakeDriver(manual=True)
    producers: list[SendProducer] = []

    async def body() -> None:
        hasty = settings.evolve(close_timeout=60.0, cancel_timeout=0.02)
        async with open_send_producer(hasty, driver=fake) as producer:
            producers.append(producer)
            delivery = producer.enqueue_nowait(record())
            deliveries.append(delivery)

    deliveries: list[Any] = []
    async with task_group() as tasks:
        call = Call(tasks, body)
        await taken(fake, 1)
        await until(lambda: producers[0].statistics().state == "draining")
        cancel(call)
        assert (await call.wait()).cancelled
    assert producers[0].statistics().state == "closed"
    with pytest.raises(DeliveryError) as caught:
        await deliveries[0].wait()
    assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
    assert set(anyio.get_running_tasks()) == before


async def test_a_cancelled_drain_counts_outcomes_within_cancel_timeout(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    fake = FakeDriver(manual=True)
    producers: list[SendProducer] = []

    async def body() -> None:
        patient = settings.evolve(close_timeout=60.0, cancel_timeout=60.0)
        async with open_send_producer(patient, driver=fake) as producer:
            producers.append(producer)
            producer.enqueue_nowait(record())

    async with task_group() as tasks:
        call = Call(tasks, body)
        await taken(fake, 1)
        await until(lambda: producers[0].statistics().state == "draining")
        cancel(call)
        await quiet()
        assert call.running  # the close is shielded for cancel_timeout
        fake.acknowledge()
        assert (await call.wait()).cancelled
    assert producers[0].statistics().delivered == 1


async def test_a_close_may_be_cancelled_twice(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)

    async def body() -> None:
        async with open_send_producer(settings.evolve(cancel_timeout=0.02), driver=fake) as it:
            producers.append(it)
            # The first close must still run when the second cancellation arrives.
            fake.on_close.shut()
            await it.send(record())

    async def body_in_a_task() -> None:
        async with task_group() as tasks:
            call = Call(tasks, body, scope=inner)
            await call.wait()

    inner = anyio.CancelScope()
    producers: list[SendProducer] = []
    async with task_group() as tasks:
        outer = Call(tasks, body_in_a_task)
        await taken(fake, 1)
        inner.cancel()
        await at_gate(fake.on_close)
        assert producers[0].statistics().state == "draining"
        outer.scope.cancel()
        await quiet()
        fake.on_close.open()
    assert outer.cancelled
    assert producers[0].statistics().state == "closed"
    assert producers[0].statistics().abandoned == 1


async def test_a_cancelled_aclose_closes_the_producer(
    settings: ProducerSettings, cancel: Cancel
) -> None:
    """The producer is closed before aclose() raises the cancellation."""
    fake = FakeDriver(manual=True)
    hasty = settings.evolve(close_timeout=60.0, cancel_timeout=0.02)
    with raising(DeliveryError):
        async with open_send_producer(hasty, driver=fake) as producer:
            delivery = producer.enqueue_nowait(record())
            await taken(fake, 1)
            async with task_group() as tasks:
                call = Call(tasks, producer.aclose)
                await quiet()
                cancel(call)
                assert (await call.wait()).cancelled
                assert producer.statistics().state == "closed"
            await delivery.wait()


async def test_a_deadline_around_the_block_ends_its_calls(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """After a deadline around the whole block, calls end within cancel_timeout."""
    fake.on_submit.shut()
    producers: list[SendProducer] = []
    with anyio.CancelScope() as scope:
        async with open_send_producer(settings.evolve(cancel_timeout=0.02), driver=fake) as it:
            producers.append(it)
            async with task_group() as tasks:
                Call(tasks, it.send, record(b"at the gate"))
                await at_gate(fake.on_submit)
                Call(tasks, it.send, record(b"never"))
                await quiet()
                scope.deadline = anyio.current_time()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    figures = producers[0].statistics()
    assert (figures.state, figures.withdrawn, figures.abandoned) == ("closed", 1, 1)
    assert b"never" not in values(fake)


# --- asyncio's own cancellation --------------------------------------------------------------


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until a task has ended."""
    with anyio.fail_after(PATIENCE):
        await asyncio.wait({task})


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.parametrize("name", AWAITED)
async def test_task_cancel_withdraws_or_abandons_a_record_at_each_stage(
    settings: ProducerSettings, name: str
) -> None:
    fake = FakeDriver(manual=True)
    fake.on_submit.shut()
    async with open_send_producer(settings.evolve(max_in_flight=2), driver=fake) as producer:
        started: list[asyncio.Task[Any]] = []
        for value in (b"handed over", b"never", b"never"):
            started.append(asyncio.ensure_future(sends(producer, name, value)()))
            if len(started) == 1:
                await at_gate(fake.on_submit)
            await quiet()
        figures = producer.statistics()
        assert (figures.accepted, figures.queued, figures.waiting) == (2, 1, 1)
        for task in reversed(started):
            task.cancel()
            await ended(task)
            assert task.cancelled()
        figures = producer.statistics()
        assert (figures.accepted, figures.withdrawn, figures.abandoned) == (2, 1, 1)
        await works_on(producer, fake)
        assert values(fake) == [b"handed over", b"after"]


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
async def test_task_cancel_cancels_calls_whose_outcome_has_arrived(
    settings: ProducerSettings,
) -> None:
    """asyncio also cancels a task whose wait is over."""
    fake = FakeDriver(manual=True)
    victims: list[asyncio.Task[Any]] = []

    async def send_and_cancel(producer: SendProducer) -> None:
        await producer.send(record(b"first"))
        for victim in victims:
            victim.cancel()

    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            canceller = asyncio.ensure_future(send_and_cancel(producer))
            await taken(fake, 1)
            good = asyncio.ensure_future(producer.send(record(b"good")))
            bad = asyncio.ensure_future(producer.send(record(b"bad")))
            delivery = producer.enqueue_nowait(record(b"bad"))
            waiter = asyncio.ensure_future(delivery.wait())
            victims += [good, bad, waiter]
            await taken(fake, 4)
            await quiet()
            fake.judge = lambda what: refuse(what) if what.value == b"bad" else None
            fake.acknowledge()
            for task in (canceller, *victims):
                await ended(task)
            assert [victim.cancelled() for victim in victims] == [True, True, True]
            figures = producer.statistics()
            assert (figures.delivered, figures.failed, figures.abandoned) == (2, 2, 2)
            await works_on(producer, fake)
    assert caught.value.count == 2  # no caller saw these failures


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
async def test_task_cancel_withdraws_or_abandons_a_record_that_has_room(
    settings: ProducerSettings,
) -> None:
    """The record is accepted, and perhaps submitted, when its enqueue() is cancelled."""
    fake = FakeDriver(manual=True)
    victims: list[asyncio.Task[Any]] = []

    async def send_and_cancel(producer: SendProducer) -> None:
        await producer.send(record(b"first"))
        for victim in victims:
            victim.cancel()

    async with open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer:
        canceller = asyncio.ensure_future(send_and_cancel(producer))
        await taken(fake, 1)
        victims.append(asyncio.ensure_future(producer.enqueue(record(b"second"))))
        await quiet()
        fake.acknowledge()
        await ended(canceller)
        await ended(victims[0])
        assert victims[0].cancelled()
        figures = producer.statistics()
        assert figures.withdrawn + figures.abandoned == 1
        await works_on(producer, fake)
        assert values(fake).count(b"second") == figures.abandoned


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.parametrize("is_submitted", [False, True])
async def test_task_cancel_ends_an_enqueue_that_lets_other_tasks_run(
    settings: ProducerSettings, is_submitted: bool
) -> None:
    """Every hundredth call lets other tasks run after its record is accepted."""
    fake: FakeDriver = PolledFakeDriver(threadless=True) if is_submitted else FakeDriver()

    async def enqueue_and_cancel(producer: SendProducer) -> None:
        for number in range(100):
            await producer.enqueue(record(b"other"))
            if is_submitted:
                await producer.flush()  # the next record is a lone record, and is submitted inline
            elif number == 0:
                await at_gate(fake.on_submit)  # the next records are queued
        fake.manual = True
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await producer.enqueue(record(b"last"))

    async with open_send_producer(settings, driver=fake) as producer:
        if not is_submitted:
            fake.on_submit.shut()
        task = asyncio.ensure_future(enqueue_and_cancel(producer))
        await ended(task)
        assert task.cancelled()
        figures = producer.statistics()
        assert (figures.accepted, figures.failed) == (101, 0)
        assert (figures.withdrawn, figures.abandoned) == ((0, 1) if is_submitted else (1, 0))
        await works_on(producer, fake)
        assert values(fake).count(b"last") == figures.abandoned


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
async def test_task_cancel_ends_a_start(settings: ProducerSettings, fake: FakeDriver) -> None:
    async def body() -> None:
        async with open_send_producer(settings, driver=fake):
            pytest.fail("the block was entered")

    fake.on_open.shut()
    task = asyncio.ensure_future(body())
    await at_gate(fake.on_open)
    task.cancel()
    await ended(task)
    assert task.cancelled()
    assert fake.closed == [0]


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_task_cancel_ends_a_drain(settings: ProducerSettings, times: int) -> None:
    """However often the task is cancelled, the producer is closed when the task has ended."""
    before = set(anyio.get_running_tasks())
    fake = FakeDriver(manual=True)
    producers: list[SendProducer] = []

    async def body() -> None:
        hasty = settings.evolve(close_timeout=60.0, cancel_timeout=0.05)
        async with open_send_producer(hasty, driver=fake) as producer:
            producers.append(producer)
            producer.enqueue_nowait(record())

    task = asyncio.ensure_future(body())
    await taken(fake, 1)
    await until(lambda: producers[0].statistics().state == "draining")
    for _ in range(times):
        task.cancel()
        await quiet()
    await ended(task)
    assert task.cancelled()
    assert producers[0].statistics().state == "closed"
    assert fake.closed == [0]
    assert set(anyio.get_running_tasks()) == before


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout() came with Python 3.11")
async def test_asyncio_timeout(settings: ProducerSettings) -> None:
    if sys.version_info >= (3, 11):
        fake = FakeDriver(manual=True)
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            with raising(TimeoutError):
                async with asyncio.timeout(None) as deadline:

                    async def end_after_the_submission() -> None:
                        await taken(fake, 1)
                        deadline.reschedule(anyio.current_time())

                    tasks.start_soon(end_after_the_submission)
                    await producer.send(record(b"abandoned"))
            assert producer.statistics().abandoned == 1
            await works_on(producer, fake)
        with raising(TimeoutError):
            async with asyncio.timeout(0.01):
                async with open_send_producer(settings, driver=fake) as producer:
                    await anyio.sleep_forever()
        assert producer.statistics().state == "closed"
