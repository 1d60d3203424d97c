"""Streams work in chunks: bursts of the source, batches of outcomes, and wake-ups of tasks."""

# ruff: noqa: SIM117  # a flow is nested in its producer

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    PassThroughMessage,
    ProducerMisused,
    ProducerSettings,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import (
    Call,
    Suspensions,
    at_gate,
    messages,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.waiting import until


class Bursts:
    """A source that gives bursts of envelopes, and lets other tasks run after each burst."""

    def __init__(self, bursts: Sequence[tuple[Sequence[Any], int]]) -> None:
        self.bursts = bursts
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[Any]:
        for envelopes, pauses in self.bursts:
            for envelope in envelopes:
                self.taken += 1
                yield envelope
            for _ in range(pauses):
                await anyio.lowlevel.checkpoint()


def burst(envelopes: Sequence[Any]) -> Bursts:
    return Bursts([(envelopes, 0)])


# --- compared with a model -----------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """Bursts of the source, batches of outcomes, and steps of the receiver."""

    bursts: list[tuple[list[int | None], int]]
    batches: list[tuple[int, int]]
    #: How often the receiver lets other tasks run before it receives. None: it is cancelled.
    steps: list[int | None]
    failing: set[int]
    limit: int
    room: int
    leave_after: int


plans = st.builds(
    Plan,
    bursts=st.lists(
        st.tuples(
            # None: a PassThroughMessage, -1: a Message, others: a MultiMessage of that size.
            st.lists(st.sampled_from([-1, -1, -1, None, 0, 1, 3]), max_size=12),
            st.integers(0, 3),
        ),
        max_size=6,
    ),
    batches=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4),
    steps=st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=1, max_size=6),
    failing=st.sets(st.integers(0, 60), max_size=8),
    limit=st.integers(1, 12),
    room=st.integers(1, 12),
    leave_after=st.integers(0, 100),
)


def made_of(plan: Plan) -> tuple[Bursts, list[list[int]]]:
    """The source of a plan, and the numbers of the records of each envelope."""
    numbers: list[list[int]] = []
    bursts: list[tuple[list[Any], int]] = []
    first = 0
    for sizes, pauses in plan.bursts:
        envelopes: list[Any] = []
        for size in sizes:
            position = len(numbers)
            mine = list(range(first, first + abs(size or 0)))
            first += len(mine)
            numbers.append(mine)
            records = [record(b"%d" % number) for number in mine]
            if size is None:
                envelopes.append(PassThroughMessage(position))
            elif size == -1:
                envelopes.append(Message(records[0], position))
            else:
                envelopes.append(MultiMessage(records, position))
        bursts.append((envelopes, pauses))
    return Bursts(bursts), numbers


@given(plan=plans)
@hypothesis_settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_order_and_bounds_hold_with_any_bursts_batches_and_receivers(
    settings: ProducerSettings, plan: Plan
) -> None:
    """Order and bounds hold, cancellation loses no result, and leaving takes nothing more."""
    fake = FakeDriver(manual=True)
    fake.judge = lambda what: (
        refuse(what) if int(cast("bytes", what.value)) in plan.failing else None
    )
    source, numbers = made_of(plan)
    leave_after = min(plan.leave_after, len(numbers))
    received = attempts = 0

    async def acknowledge() -> None:
        turn = 0
        while True:
            count, pauses = plan.batches[turn % len(plan.batches)]
            for _ in range(pauses):
                await anyio.lowlevel.checkpoint()
            fake.acknowledge(count)
            turn += 1

    async def next_result(results: Any) -> Any:
        nonlocal attempts
        while True:
            step = plan.steps[attempts % len(plan.steps)]
            # A plan may have no step but None.
            is_cancelled = step is None and attempts % 7 != 6
            attempts += 1
            for _ in range(step or 0):
                await anyio.lowlevel.checkpoint()
            with anyio.CancelScope() as scope:
                if is_cancelled:
                    scope.cancel()
                try:
                    return await results.receive()
                except (DeliveryError, MultiDeliveryError) as error:
                    return error
            assert scope.cancelled_caught

    def check(outcome: Any) -> None:
        bad = [number for number in numbers[received] if number in plan.failing]
        if isinstance(outcome, DeliveryError):
            assert [int(cast("bytes", outcome.record.value))] == bad
        elif isinstance(outcome, MultiDeliveryError):
            assert [int(cast("bytes", one.record.value)) for one in outcome.errors] == bad
            assert outcome.pass_through == received
        else:
            assert not bad
            assert outcome.pass_through == received

    settings = settings.evolve(max_in_flight=plan.room)
    try:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            tasks.start_soon(acknowledge)
            async with producer.flow(source, max_in_flight=plan.limit) as results:
                for _ in range(leave_after):
                    check(await next_result(results))
                    received += 1
                    assert source.taken <= received + plan.limit + 1
                    assert producer.statistics().in_flight <= plan.room
                if leave_after == len(numbers):
                    with raising(anyio.EndOfStream):
                        await next_result(results)
                was_taken = source.taken
            assert source.taken == was_taken
            await producer.flush()
            tasks.cancel_scope.cancel()
            figures = producer.statistics()
            assert figures.accepted == figures.delivered + figures.failed + figures.withdrawn
    except UndeliveredRecords:
        assert leave_after < len(numbers)  # failures that were not received
    values = [int(cast("bytes", one.value)) for one in fake.submitted]
    assert values == list(range(len(values)))
    assert len(values) >= sum(map(len, numbers[:received]))


# --- chunks --------------------------------------------------------------------------------------


async def test_outcomes_of_one_batch_wake_the_receiver_once(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        async with producer.flow(burst(messages(50))) as results:
            await taken(fake, 50)

            async def receive_all() -> list[int]:
                return [(await results.receive()).pass_through for _ in range(50)]

            receiving = Suspensions(receive_all())

            async def run() -> list[int]:
                return cast("list[int]", await receiving)

            call = Call(tasks, run)
            await quiet()
            fake.acknowledge()
            assert (await call.wait()).value == list(range(50))
    # One checkpoint before the first result, and one wait for all of them.
    assert receiving.count == 2


async def test_a_receiver_that_waits_for_an_envelope_is_woken_by_its_result(
    settings: ProducerSettings,
) -> None:
    """The arrival of the envelope does not wake the receiver. A single envelope is sent at once."""
    fake = FakeDriver(manual=True)
    give, take = anyio.create_memory_object_stream[Any](10)
    with give, take:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            async with producer.flow(take) as results:
                for number, envelope in enumerate(messages(2)):
                    receiving = Suspensions(results.receive())

                    async def run(receiving: Suspensions = receiving) -> Any:
                        return await receiving

                    call = Call(tasks, run)
                    await quiet()
                    suspended = receiving.count
                    give.send_nowait(envelope)
                    await taken(fake, number + 1)
                    await quiet()
                    assert receiving.count == suspended
                    fake.acknowledge()
                    assert (await call.wait()).value.pass_through == number
                    assert receiving.count == suspended


async def test_a_waiting_receiver_gets_results_that_need_no_outcome(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    bad = Message(record(topic="no such name"))
    with give, take:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            async with producer.flow(take) as results:
                for envelope in (PassThroughMessage(1), bad, MultiMessage([bad.record], 2)):
                    call = Call(tasks, results.receive)
                    await quiet()
                    give.send_nowait(envelope)
                    with_error = await call.wait()
                    assert (with_error.error is None) == isinstance(envelope, PassThroughMessage)


async def test_ready_results_are_received_with_a_checkpoint_every_hundredth_time(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(burst(messages(300))) as results:
            await until(lambda: producer.statistics().delivered == 300)
            suspended: list[int] = []
            for number in range(300):
                receiving = Suspensions(results.receive())
                assert (await receiving).pass_through == number
                suspended.append(receiving.count)
    assert [number for number, count in enumerate(suspended) if count] == [0, 100, 200]


async def test_a_sink_lets_other_tasks_run(settings: ProducerSettings, fake: FakeDriver) -> None:
    turns = 0

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count)
        summary = await producer.sink(burst(messages(1000)))
        tasks.cancel_scope.cancel()
    assert summary.envelopes == 1000
    assert turns >= 8


async def test_a_message_that_waits_for_room(settings: ProducerSettings) -> None:
    """The flow has places for more envelopes than the producer has room for records."""
    fake = FakeDriver(manual=True)
    settings = settings.evolve(max_in_flight=2)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(burst(messages(5)), max_in_flight=10) as results:
            for number in range(5):
                await taken(fake, min(5, number + 2))
                fake.acknowledge(1)
                assert (await results.receive()).pass_through == number
            with raising(anyio.EndOfStream):
                await results.receive()
    assert [one.value for one in fake.submitted] == [b"%d" % number for number in range(5)]


async def test_closing_while_a_message_waits_for_room(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    source = burst(messages(5))
    settings = settings.evolve(max_in_flight=2)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=10) as results:
            await taken(fake, 2)
            await until(lambda: producer.statistics().waiting == 1)
            await results.aclose()
            await quiet()
            assert producer.statistics().waiting == 0
            assert source.taken == 3
        fake.acknowledge()
        await producer.flush()
    assert len(fake.submitted) == 2


async def test_a_receiver_that_is_cancelled_while_there_is_no_envelope(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    with give, take:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            async with producer.flow(take) as results:
                call = Call(tasks, results.receive)
                await quiet()
                await call.cancel()
                give.send_nowait(messages(1)[0])
                assert (await results.receive()).pass_through == 0


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "id"])
async def test_leaving_at_once_takes_nothing(
    settings: ProducerSettings, fake: FakeDriver, name: str | None
) -> None:
    source = burst(messages(3))
    settings = settings.with_transactional_id(name)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source):
            pass
    assert source.taken == 0


# --- leaving while another task receives ---------------------------------------------------------


async def test_an_envelope_that_a_task_waits_for_is_sent_completely(
    settings: ProducerSettings,
) -> None:
    """All its records are queued when the block is left while another task receives."""
    fake = FakeDriver(manual=True)
    fake.on_submit.shut()
    several = MultiMessage([record(b"%d" % number) for number in range(3)], "several")
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        producer.enqueue_nowait(record(b"at the gate"))
        await at_gate(fake.on_submit)
        async with producer.flow(burst([several, *messages(2)])) as results:
            receiving = Call(tasks, results.receive)
            await quiet()
            assert producer.statistics().queued == 5
        fake.on_submit.open()
        await taken(fake, 4)
        fake.acknowledge()
        assert (await receiving.wait()).value.pass_through == "several"
        assert producer.statistics().withdrawn == 2
        with raising(anyio.ClosedResourceError):
            await results.receive()


async def test_a_receiver_that_is_cancelled_after_the_block_was_left(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        async with producer.flow(burst(messages(2))) as results:
            await taken(fake, 2)
            receiving = Call(tasks, results.receive)
            await quiet()
        await receiving.cancel()
        with raising(anyio.ClosedResourceError):
            await results.receive()
        fake.acknowledge()


async def test_a_receiver_that_is_closed_loses_no_result(settings: ProducerSettings) -> None:
    """The garbage collector closes a coroutine by raising GeneratorExit in it."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(burst(messages(3))) as results:
            await taken(fake, 3)
            fake.acknowledge(1)
            assert (await results.receive()).pass_through == 0
            receiving: Any = results.receive()
            receiving.send(None)
            receiving.close()
            fake.acknowledge()
            assert [result.pass_through async for result in results] == [1, 2]


@pytest.mark.parametrize("is_ready", [True, False])
async def test_receiving_in_another_thread(settings: ProducerSettings, is_ready: bool) -> None:
    fake = FakeDriver(manual=True)

    def receive(results: Any) -> None:
        with raising(ProducerMisused, match="belongs to the event loop"):
            results.receive().send(None)

    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(burst(messages(2))) as results:
            await taken(fake, 2)
            fake.acknowledge(None if is_ready else 1)
            assert (await results.receive()).pass_through == 0
            await anyio.to_thread.run_sync(receive, results)
            fake.acknowledge()
            assert (await results.receive()).pass_through == 1
