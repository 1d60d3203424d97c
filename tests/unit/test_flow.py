"""Streams of envelopes over a driver without a broker: order, bounds, errors, and transactions."""

# ruff: noqa: SIM117  # a flow is nested in its producer

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    FlowSummary,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    PassThroughMessage,
    PassThroughResult,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    Result,
    SendProducer,
    SettingsError,
    TransactionAborted,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import (
    Call,
    at_gate,
    fail,
    messages,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.waiting import PATIENCE, until

Envelopes = AsyncIterator[Any]


class Source(AsyncIterable[Any]):
    """A source that counts the envelopes taken from it, and may raise at its end."""

    def __init__(self, envelopes: Iterable[Any], error: Exception | None = None) -> None:
        self.envelopes = envelopes
        self.taken = 0
        self.error = error

    async def __aiter__(self) -> Envelopes:
        for envelope in self.envelopes:
            await anyio.lowlevel.checkpoint()
            self.taken += 1
            yield envelope
        if self.error is not None:
            raise self.error


async def collect(producer: SendProducer, source: Any, **options: Any) -> list[Any]:
    """The results and errors of a flow, in order."""
    found: list[Any] = []
    flow = cast("AbstractAsyncContextManager[Any]", producer.flow(source, **options))
    async with flow as results:
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                found.append(await received_or_raised(results))
    return found


async def received_or_raised(results: Any) -> Any:
    """Return the next result, or the error of its envelope."""
    try:
        return await results.receive()
    except (DeliveryError, MultiDeliveryError) as error:
        return error


# --- order ---------------------------------------------------------------------------------------


async def test_results_have_the_order_of_the_source(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    envelopes = [
        Message(record(b"1"), "a"),
        PassThroughMessage("b"),
        MultiMessage([record(b"2"), record(b"3")], "c"),
        MultiMessage([], "d"),
        Message(record(b"4"), "e"),
    ]
    async with open_send_producer(settings, driver=fake) as producer:
        found = await collect(producer, Source(envelopes))
    assert [type(one) for one in found] == [
        Result,
        PassThroughResult,
        MultiResult,
        MultiResult,
        Result,
    ]
    assert [one.pass_through for one in found] == list("abcde")
    assert [part.metadata.offset for part in found[2].parts] == [1, 2]
    assert [one.value for one in fake.submitted] == [b"1", b"2", b"3", b"4"]


async def test_any_stream_is_a_source(settings: ProducerSettings, fake: FakeDriver) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    for one in messages(3):
        give.send_nowait(one)
    give.close()
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(take) as results:
            assert [result.pass_through async for result in results] == [0, 1, 2]
            with raising(anyio.EndOfStream):
                await results.receive()
    take.close()


@dataclasses.dataclass
class Plan:
    """The envelopes to send, the sizes of the acknowledgements, and the records that fail."""

    sizes: list[int | None]
    batches: list[int]
    failing: set[int]
    limit: int
    room: int


plans = st.builds(
    Plan,
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 3), st.just(-1)), max_size=25),
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    failing=st.sets(st.integers(0, 60)),
    limit=st.integers(1, 6),
    room=st.integers(1, 6),
)


@given(plan=plans)
@hypothesis_settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_order_and_bounds_hold_with_slow_and_failing_records(
    settings: ProducerSettings, plan: Plan
) -> None:
    """A size of None is a PassThroughMessage, -1 a Message, and 0 or more a MultiMessage."""
    fake = FakeDriver(manual=True)
    fake.judge = lambda what: refuse(what) if int(what.value) in plan.failing else None
    number = 0
    envelopes: list[Any] = []
    records: list[list[int]] = []
    for position, size in enumerate(plan.sizes):
        mine = list(range(number, number + (abs(size) if size is not None else 0)))
        number += len(mine)
        records.append(mine)
        made = [record(b"%d" % one) for one in mine]
        if size is None:
            envelopes.append(PassThroughMessage(position))
        elif size == -1:
            envelopes.append(Message(made[0], position))
        else:
            envelopes.append(MultiMessage(made, position))
    source = Source(envelopes)
    received = 0
    settings = settings.evolve(max_in_flight=plan.room)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def acknowledge() -> None:
            turn = 0
            while True:
                await anyio.lowlevel.checkpoint()
                fake.acknowledge(plan.batches[turn % len(plan.batches)])
                turn += 1

        tasks.start_soon(acknowledge)
        async with producer.flow(source, max_in_flight=plan.limit) as results:
            for position, mine in enumerate(records):
                # The envelope that waits for its place was taken, too.
                assert source.taken <= received + plan.limit + 1
                assert producer.statistics().in_flight <= plan.room
                bad = [one for one in mine if one in plan.failing]
                outcome = await received_or_raised(results)
                if isinstance(outcome, DeliveryError):
                    assert int(cast("bytes", outcome.record.value)) == bad[0]
                    assert isinstance(envelopes[position], Message)
                elif isinstance(outcome, MultiDeliveryError):
                    assert [int(cast("bytes", one.record.value)) for one in outcome.errors] == bad
                    assert outcome.pass_through == position
                else:
                    assert not bad
                    assert outcome.pass_through == position
                received += 1
            with raising(anyio.EndOfStream):
                await results.receive()
        tasks.cancel_scope.cancel()
    assert [int(cast("bytes", one.value)) for one in fake.submitted] == list(range(number))


async def test_a_slow_receiver_applies_back_pressure_to_the_source(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    source = Source(messages(100))
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=5) as results:
            await taken(fake, 5)
            await quiet()
            assert source.taken == 6  # the last envelope waits for its place
            assert len(fake.submitted) == 5
            for number in range(10):
                assert (await results.receive()).pass_through == number
                await quiet()
            assert source.taken == 16
            async for _ in results:
                pass
    assert source.taken == 100
    assert len(fake.submitted) == 100


async def test_a_full_producer_applies_back_pressure_to_the_source(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    source = Source(messages(10))
    settings = settings.evolve(max_in_flight=2)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        call = Call(tasks, collect, producer, source)
        await taken(fake, 2)
        await quiet()
        assert source.taken == 3
        for count in range(4, 12, 2):
            fake.acknowledge()
            await taken(fake, count)
        fake.acknowledge()
        assert len((await call.wait()).value) == 10


async def test_a_fast_source_lets_other_tasks_run(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    turns = 0
    turns_at: list[int] = []

    class Greedy(AsyncIterable[Any]):
        async def __aiter__(self) -> Envelopes:
            for one in messages(1000):
                turns_at.append(turns)
                yield one

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count)
        async with producer.flow(Greedy()):
            await until(lambda: len(fake.submitted) == 1000)
        tasks.cancel_scope.cancel()
    # Neither the source nor the producer waits: the feeder lets other tasks run after each 100
    # envelopes. In the first and the last of these ten rounds Trio may choose either order.
    assert turns_at[-1] - turns_at[0] >= 8


# --- errors --------------------------------------------------------------------------------------


async def test_an_error_is_raised_in_its_place_and_the_flow_continues(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"1" else None
    envelopes = messages(3)
    envelopes.insert(2, Message(record(topic="no such name"), "bad"))
    async with open_send_producer(settings, driver=fake) as producer:
        found = await collect(producer, Source(envelopes))
    assert [type(one) for one in found] == [Result, DeliveryError, RecordRejected, Result]


async def test_an_exception_of_the_source_is_raised_after_its_results(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    source = Source(messages(2), LookupError("no more"))
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source) as results:
            assert [(await results.receive()).pass_through for _ in range(2)] == [0, 1]
            with raising(LookupError, match="no more"):
                await results.receive()
            with raising(anyio.EndOfStream):
                await results.receive()


@pytest.mark.parametrize("name", [None, "id"])
async def test_a_source_item_that_is_not_an_envelope(
    settings: ProducerSettings, fake: FakeDriver, name: str | None
) -> None:
    settings = settings.with_transactional_id(name)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(Source([Message(record()), record()])) as results:
            await results.receive()
            with raising(TypeError, match="not ProducerRecord: use send"):
                await results.receive()


async def test_a_producer_that_closes_ends_the_flow(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(Source(messages(9)), max_in_flight=2) as results:
            await quiet()
            await producer.aclose()
            assert [(await results.receive()).pass_through for _ in range(2)] == [0, 1]
            with raising(ProducerClosed):
                await results.receive()


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "7"])
@pytest.mark.parametrize("name", [None, "id"])
async def test_bad_arguments(
    settings: ProducerSettings, fake: FakeDriver, bad: Any, name: str | None
) -> None:
    settings = settings.with_transactional_id(name)
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(SettingsError, match="max_in_flight must be an int of 1 or more, not "):
            producer.flow(Source([]), max_in_flight=bad)
        said = "need a transactional_id" if name is None else "must be given together"
        with raising(SettingsError, match=f"flow: offsets and group_metadata {said}"):
            producer.flow(Source([]), group_metadata="group")


async def test_only_one_task_may_receive(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        async with producer.flow(Source(messages(1))) as results:
            call = Call(tasks, results.receive)
            await taken(fake, 1)
            with raising(anyio.BusyResourceError):
                await results.receive()
            fake.acknowledge()
            assert (await call.wait()).value.pass_through == 0


# --- leaving -------------------------------------------------------------------------------------


async def test_a_cancelled_receive_loses_no_result(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        async with producer.flow(Source(messages(2))) as results:
            await taken(fake, 2)
            await Call(tasks, results.receive).cancel()
            fake.acknowledge()
            assert [result.pass_through async for result in results] == [0, 1]


@pytest.mark.parametrize("envelope", [PassThroughMessage("a"), MultiMessage([], "a")])
async def test_receiving_a_ready_result_checks_for_cancellation(
    settings: ProducerSettings, fake: FakeDriver, envelope: Any
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(Source([envelope])) as results:
            await quiet()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await results.receive()
            assert scope.cancelled_caught
            assert (await results.receive()).pass_through == "a"


async def test_leaving_early_withdraws_the_queued_records(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    source = Source(messages(50))
    async with open_send_producer(settings, driver=fake) as producer:
        fake.on_submit.shut()
        with raising(ZeroDivisionError) as caught:
            async with producer.flow(source, max_in_flight=20) as results:
                await at_gate(fake.on_submit)
                await quiet()
                fail()
        assert type(caught.value) is ZeroDivisionError
        with raising(anyio.ClosedResourceError):
            await results.receive()
        fake.manual = False
        fake.on_submit.open()
        await producer.flush()
        statistics = producer.statistics()
        assert statistics.accepted == statistics.withdrawn + statistics.delivered
        assert statistics.withdrawn > 0
    assert source.taken == 21


async def test_leaving_while_another_task_receives(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        async with producer.flow(Source(messages(2))) as results:
            await taken(fake, 2)
            receiving = Call(tasks, results.receive)
            await quiet()
        fake.acknowledge()
        assert (await receiving.wait()).value.pass_through == 0
        assert producer.statistics().abandoned == 1


async def test_leaving_while_an_envelope_waits_for_room(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.evolve(max_in_flight=2)
    many = MultiMessage([record(b"%d" % number) for number in range(4)])
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(Source([many])):
            await taken(fake, 2)
            await quiet()
        assert producer.statistics().abandoned == 2
        fake.acknowledge()
    assert len(fake.submitted) == 2


@pytest.mark.parametrize("transactional_id", [None, "id"])
async def test_a_shielded_receiver_does_not_wait_for_a_cancelled_source(
    settings: ProducerSettings, fake: FakeDriver, transactional_id: str | None
) -> None:
    async def source() -> AsyncIterator[Any]:
        yield messages(1)[0]
        await anyio.sleep_forever()

    settings = settings.evolve(transactional_id=transactional_id)
    async with open_send_producer(settings, driver=fake) as producer:
        with anyio.CancelScope() as scope:
            async with producer.flow(source()) as results:
                with anyio.CancelScope(shield=True), anyio.fail_after(PATIENCE):
                    await taken(fake, 1)
                    scope.cancel()
                    if transactional_id is None:  # otherwise the record is part of a transaction
                        assert (await results.receive()).pass_through == 0
                    with raising(anyio.ClosedResourceError):
                        await results.receive()
    assert [how for how, _ in fake.transactions] == (
        [] if transactional_id is None else ["aborted"]
    )


async def test_closing_the_stream(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        give, take = anyio.create_memory_object_stream[Any](10)
        async with producer.flow(take) as results:

            async def receive() -> None:
                with raising(anyio.ClosedResourceError):
                    await results.receive()

            waiting = Call(tasks, receive)
            await quiet()
            await results.aclose()
            await waiting.wait()
            await receive()
        give.close()
        take.close()


class Endless(AsyncIterable[Any]):
    """A source that always has an envelope, so that reading it is never a checkpoint."""

    def __init__(self) -> None:
        self.taken = 0

    async def __aiter__(self) -> Envelopes:
        while True:
            self.taken += 1
            yield Message(record(b"%d" % self.taken), self.taken)


@pytest.mark.parametrize("how", ["return", "error", "failed record"])
@pytest.mark.parametrize("kind", [FakeDriver, PolledFakeDriver])
@pytest.mark.parametrize("most", [10, 1000])
async def test_after_the_block_a_flow_takes_and_writes_nothing(
    settings: ProducerSettings, kind: type[FakeDriver], most: int, how: str
) -> None:
    """The feeder still runs if it was woken before the block was left."""
    fake, source = kind(), Endless()
    if how == "failed record":
        fake.judge = lambda what: refuse(what) if what.value == b"50" else None
    taken = accepted = 0
    async with open_send_producer(settings, driver=fake) as producer:
        with contextlib.suppress(ZeroDivisionError, DeliveryError):
            async with producer.flow(source, max_in_flight=most) as results:
                for _ in range(50):
                    try:
                        await results.receive()
                    finally:
                        taken, accepted = source.taken, producer.statistics().accepted
                if how == "error":
                    fail()
        assert source.taken == taken
        assert producer.statistics().accepted == accepted
        await producer.flush()


async def test_after_the_block_a_transactional_flow_takes_and_writes_nothing(
    transactional: ProducerSettings,
) -> None:
    fake, source = PolledFakeDriver(), Endless()
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=10) as results:
            for _ in range(20):
                await results.receive()
            taken = source.taken
            accepted = producer.statistics().accepted
        assert source.taken == taken
        assert producer.statistics().accepted == accepted
    assert [how for how, _ in fake.transactions][:2] == ["committed"] * 2


async def test_a_closed_stream_takes_nothing(settings: ProducerSettings) -> None:
    fake, source = PolledFakeDriver(), Endless()
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=10) as results:
            await results.receive()
            await results.aclose()
            taken, accepted = source.taken, producer.statistics().accepted
            await quiet()
            assert source.taken == taken
            assert producer.statistics().accepted == accepted


async def test_a_closed_stream_leaves_later_envelopes_in_the_source(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    async with open_send_producer(settings, driver=fake) as producer, give, take:
        async with producer.flow(take) as results:
            await quiet()  # the feeder waits for the source
            await results.aclose()
            await quiet()
            give.send_nowait(Message(record()))
            await quiet()
            assert take.statistics().current_buffer_used == 1
        assert producer.statistics().accepted == 0


async def test_an_envelope_that_arrives_while_the_block_is_left_is_not_written(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The source has woken the feeder, which runs after the block was left."""
    give, take = anyio.create_memory_object_stream[Any]()
    async with open_send_producer(settings, driver=fake) as producer, give, take:
        async with producer.flow(take):
            await quiet()  # the feeder waits for the source
            give.send_nowait(Message(record()))
        await producer.flush()
        assert producer.statistics().accepted == 0


@pytest.mark.parametrize("kind", [Message, MultiMessage])
async def test_an_envelope_that_gets_room_while_the_block_is_left_is_the_last(
    settings: ProducerSettings, kind: Any
) -> None:
    """One outcome wakes the receiver, which leaves the block, and then the feeder."""
    fake = FakeDriver(manual=True)
    envelope = Message(record()) if kind is Message else MultiMessage([record()])
    source = Source([envelope] * 9)
    async with (
        open_send_producer(settings.evolve(max_in_flight=1), driver=fake) as producer,
        task_group() as tasks,
    ):

        async def acknowledge() -> None:
            await until(lambda: producer.statistics().waiting == 1)
            await taken(fake, 1)
            fake.acknowledge()

        acknowledging = Call(tasks, acknowledge)
        async with producer.flow(source, max_in_flight=5) as results:
            await results.receive()
        await acknowledging.wait()
        assert source.taken == 2
        fake.manual = False
        await until(lambda: fake.acknowledge() or not producer.statistics().in_flight)


async def test_closing_the_stream_while_an_envelope_waits_for_room(
    settings: ProducerSettings,
) -> None:
    fake = PolledFakeDriver(manual=True)
    many = MultiMessage([record(b"%d" % number) for number in range(4)])
    async with open_send_producer(settings.evolve(max_in_flight=2), driver=fake) as producer:
        async with producer.flow(Source([many])) as results:
            await until(lambda: len(fake.submitted) == 2)
            await results.aclose()
            await quiet()
            assert producer.statistics().waiting == 0
        fake.acknowledge()
        await producer.flush()
    assert len(fake.submitted) == 2


async def test_closing_a_transactional_flow_aborts_its_transaction(
    transactional: ProducerSettings,
) -> None:
    fake, source = PolledFakeDriver(manual=True), Endless()
    settings = transactional.evolve(max_in_flight=5, eos_commit_interval=3600.0)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=10) as results:
            await until(lambda: producer.statistics().waiting == 1)
            await results.aclose()
            taken, accepted = source.taken, producer.statistics().accepted
            await until(lambda: fake.transactions)
            assert source.taken == taken
            assert producer.statistics().accepted == accepted
        assert [how for how, _ in fake.transactions] == ["aborted"]


async def test_leaving_a_transactional_flow_while_an_envelope_waits_for_room(
    transactional: ProducerSettings,
) -> None:
    """A flow enters all records of an envelope or none, but not after the block was left."""
    fake = PolledFakeDriver(manual=True)
    many = MultiMessage([record(b"%d" % number) for number in range(4)])
    async with open_send_producer(transactional.evolve(max_in_flight=2), driver=fake) as producer:
        async with producer.flow(Source([many])):
            await until(lambda: len(fake.submitted) == 2)
        assert [how for how, _ in fake.transactions] == ["aborted"]
        assert len(fake.submitted) == 2


async def test_leaving_while_another_task_waits_for_an_envelope(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    with give, take:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            async with producer.flow(take) as results:

                async def receive() -> None:
                    with raising(anyio.ClosedResourceError):
                        await results.receive()

                receiving = Call(tasks, receive)
                await quiet()
            await receiving.wait()


async def test_the_end_raises_failures_that_were_not_received(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings, driver=fake) as producer:
            async with producer.flow(Source(messages(3))):
                await until(lambda: producer.statistics().failed == 3)
    assert caught.value.count == 3


# --- sinks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "id"])
async def test_a_sink_returns_a_summary(
    settings: ProducerSettings, fake: FakeDriver, name: str | None
) -> None:
    settings = settings.with_transactional_id(name).with_eos_commit_interval(0.01)
    envelopes = [
        Message(record(b"1")),
        PassThroughMessage(),
        MultiMessage([record(b"2"), record(b"3", "u", partition=1)]),
    ]
    async with open_send_producer(settings, driver=fake) as producer:
        summary = await producer.sink(Source(envelopes))
        assert summary == FlowSummary(3, 3, {("t", 0): 1, ("u", 1): 0})
        assert await producer.sink(Source([])) == FlowSummary(0, 0, {})


async def test_a_sink_without_offsets(settings: ProducerSettings) -> None:
    class Silent(FakeDriver):
        def _write(self, record: ProducerRecord[Any, Any]) -> Any:
            written: Any = super()._write(record)
            return written._replace(offset=None)

    async with open_send_producer(settings, driver=Silent()) as producer:
        assert await producer.sink(Source(messages(1))) == FlowSummary(1, 1, {})


async def test_a_sink_raises_the_first_failure(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"1" else None
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(DeliveryError, match="refused") as caught:
            await producer.sink(Source(messages(3)))
        assert caught.value.record.value == b"1"


async def test_a_sink_that_is_cancelled_while_it_ends_raises_the_failure(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Otherwise nothing would report the failure: the sink has received it."""
    fake.judge = refuse
    scope = anyio.CancelScope()

    async def source() -> AsyncIterator[Any]:
        try:
            yield messages(1)[0]
            await anyio.sleep_forever()
        finally:
            scope.cancel()  # the sink waits for the end of its source

    async with open_send_producer(settings, driver=fake) as producer:
        with raising(DeliveryError, match="refused"), scope:
            await producer.sink(source())


# --- in transactions -----------------------------------------------------------------------------


@pytest.fixture
def transactional(settings: ProducerSettings) -> ProducerSettings:
    return settings.with_transactional_id("id").with_eos_commit_interval(30)


async def test_a_flow_within_a_transaction(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.transaction() as tx, tx.flow(Source(messages(3))) as results:
            assert [result.pass_through async for result in results] == [0, 1, 2]
            assert fake.transactions == []
        assert [how for how, _ in fake.transactions] == ["committed"]


async def test_the_commit_interval_does_not_divide_an_envelope(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    """The second record of an envelope waits for room, and is still in the same transaction."""
    narrow = transactional.evolve(eos_commit_interval=1e-9, max_in_flight=1)
    envelopes = [MultiMessage([record(b"%d" % n) for n in range(size)]) for size in (3, 2)]
    source = cast("AsyncIterable[MultiMessage[Any, Any, Any]]", Source(envelopes))
    async with open_send_producer(narrow, driver=fake) as producer:
        async with producer.flow(source) as results:
            found = [len(result.parts) async for result in results]
    assert found == [3, 2]
    assert [(how, len(records)) for how, records in fake.transactions] == [
        ("committed", 3),
        ("committed", 2),
    ]


async def test_results_are_received_after_the_commit_of_their_transaction(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    settings = transactional.with_eos_commit_interval(0.02)
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.flow(take) as results,
    ):
        for first in (0, 2):
            for one in messages(4)[first : first + 2]:
                give.send_nowait(one)
            found = [await results.receive() for _ in range(2)]
            assert [result.pass_through for result in found] == [first, first + 1]
            committed = [one.value for _, records in fake.transactions for one in records]
            assert committed == [b"%d" % number for number in range(first + 2)]
        give.close()
        with raising(anyio.EndOfStream):
            await results.receive()
    take.close()


async def test_a_transaction_has_at_most_max_in_flight_envelopes(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(transactional, driver=fake) as producer:
        found = await collect(producer, Source(messages(10)), max_in_flight=4)
        assert [one.pass_through for one in found] == list(range(10))
    assert [how for how, _ in fake.transactions] == ["committed"] * len(fake.transactions)
    sizes = [len(records) for _, records in fake.transactions]
    assert max(sizes) <= 4
    assert sum(sizes) == 10


@pytest.mark.parametrize("most", [1, 3])
async def test_at_most_max_in_flight_results_of_transactions_wait_for_the_receiver(
    transactional: ProducerSettings, most: int
) -> None:
    """The flow takes one further envelope, which waits even if the source yields it at once."""
    fake, source = PolledFakeDriver(), Endless()
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=most) as results:
            for number in range(3):
                expected = number + most
                await until(partial(has_committed, fake, expected))
                for _ in range(10):
                    await quiet()
                assert producer.statistics().accepted == expected
                assert source.taken == expected + 1
                assert (await results.receive()).pass_through == number + 1


def has_committed(fake: FakeDriver, count: int) -> bool:
    """Return whether this many records were committed."""
    return sum(len(sent) for _, sent in fake.transactions) == count


async def test_a_sink_sends_offsets_in_the_transaction_of_their_records(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    group = ConsumerGroupMetadata("group", 1, "member")
    async with open_send_producer(transactional, driver=fake) as producer:
        await producer.sink(
            Source(messages(5)),
            offsets=lambda envelope: {("source", 0): envelope.pass_through + 1},
            group_metadata=group,
        )
    assert [(one.topic, one.offset, of) for one, of in fake.offsets] == [("source", 5, group)]
    assert [len(records) for _, records in fake.transactions] == [5]


async def test_an_aborted_transaction_ends_the_flow(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    """The flow returns none of its results and no later ones, and stops reading the source."""
    fake.judge = lambda what: refuse(what) if what.value == b"3" else None
    source = Source(messages(50))
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.flow(source, max_in_flight=2) as results:
            assert [(await results.receive()).pass_through for _ in range(2)] == [0, 1]
            with raising(TransactionAborted, match="refused"):
                await results.receive()
            with raising(anyio.EndOfStream):
                await results.receive()
        async with producer.transaction() as tx:
            await tx.send(record(b"after"))
    assert source.taken < 10
    assert [how for how, _ in fake.transactions][-2:] == ["aborted", "committed"]


async def test_an_aborted_transaction_stops_an_endless_source(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = refuse
    fake.on_end.shut()
    source = Source(Message(record(), number) for number in itertools.count())
    settings = transactional.with_eos_commit_interval(0.01)
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(source) as results:
            await at_gate(fake.on_end)
            await quiet()  # the reader waits until the next transaction takes an envelope
            before = source.taken
            fake.on_end.open()
            with raising(TransactionAborted):
                await results.receive()
            await quiet()
            assert source.taken == before
            with raising(anyio.EndOfStream):
                await results.receive()


async def test_an_exception_of_the_source_is_raised_after_the_commit(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    source = Source(messages(3), LookupError("no more"))
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.flow(source) as results:
            assert [(await results.receive()).pass_through for _ in range(3)] == [0, 1, 2]
            with raising(LookupError):
                await results.receive()
    assert [len(records) for _, records in fake.transactions] == [3]


async def test_a_source_whose_connection_breaks(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    """The stream within a flow raises the same exception of AnyIO, and must not hide this one."""
    source = Source(messages(1), anyio.BrokenResourceError("reset by peer"))
    async with open_send_producer(transactional, driver=fake) as producer:
        async with producer.flow(source) as results:
            assert (await results.receive()).pass_through == 0
            with raising(anyio.BrokenResourceError, match="reset by peer"):
                await results.receive()
    assert [how for how, _ in fake.transactions] == ["committed"]


async def test_leaving_aborts_the_open_transaction(
    transactional: ProducerSettings, fake: FakeDriver
) -> None:
    give, take = anyio.create_memory_object_stream[Any](10)
    async with open_send_producer(transactional, driver=fake) as producer:
        with anyio.fail_after(PATIENCE):
            async with producer.flow(take):
                give.send_nowait(messages(1)[0])
                await taken(fake, 1)
        assert [how for how, _ in fake.transactions] == ["aborted"]
        async with producer.transaction() as tx:
            await tx.send(record())
    give.close()
    take.close()
