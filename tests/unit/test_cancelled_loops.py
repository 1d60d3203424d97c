"""A task that calls the producer in a loop can be cancelled, however fast the answers are.

AnyIO does not cancel an asyncio task whose future is done, but tries again in each turn of the
event loop. If each answer comes within one turn, AnyIO finds the future done each time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from anyio_sendproducer import (
    Message,
    MultiMessage,
    PassThroughMessage,
    ProducerSettings,
    SendProducer,
    TransactionAborted,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver, fake_producer
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import raising, record, task_group

LOOPS = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param("trio", id="trio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del LOOPS[2:]

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS)

#: The number of calls before the cancellation, and the limit for calls after it.
BEFORE = 20
AFTER = 130

Call = Callable[[], Awaitable[Any]]


class DirectFake(FakeDriver):
    """A fake driver that answers while the event loop submits a record."""

    direct = True


@asynccontextmanager
async def answered_later(fake: FakeDriver, turns: int) -> AsyncGenerator[None]:
    """Acknowledge all records again and again, each time after `turns` turns of the event loop."""

    async def answer() -> None:
        while True:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            fake.acknowledge()

    async with task_group() as tasks:
        tasks.start_soon(answer)
        yield
        tasks.cancel_scope.cancel()
    # The block may have abandoned a record.
    fake.manual = False
    fake.acknowledge()


@asynccontextmanager
async def opened(settings: ProducerSettings, answer: str) -> AsyncGenerator[SendProducer]:
    """A producer whose driver answers in the same turn, in the next one, or later."""
    turns = {"same": 0, "next": 1, "second": 2, "third": 3}[answer]
    driver = DirectFake() if turns == 0 else PolledFakeDriver(manual=turns > 1)
    async with open_send_producer(settings, driver=driver) as producer:
        if turns > 1:
            async with answered_later(driver, turns):
                yield producer
        else:
            yield producer


async def calls_after_cancellation(call: Call, limit: int = 1000) -> int:
    """Call in a loop, in a scope that is cancelled; return how many calls started after that."""
    calls = 0
    with anyio.CancelScope() as scope:
        for calls in range(BEFORE + limit):
            if calls == BEFORE:
                scope.cancel()
            await call()
    return calls - BEFORE


async def envelopes() -> AsyncIterator[Message[bytes | None, bytes, int]]:
    for number in range(3):
        yield Message(record(), number)


def calls_of(producer: SendProducer, name: str) -> Call:
    async def enqueue_and_wait() -> None:
        await (await producer.enqueue(record())).wait()

    async def enqueue_nowait_and_wait() -> None:
        await producer.enqueue_nowait(record()).wait()

    async def enqueue_nowait_and_flush() -> None:
        producer.enqueue_nowait(record())
        await producer.flush()

    async def flow() -> None:
        async with producer.flow(envelopes()) as results:
            await results.receive()

    return {
        "send": lambda: producer.send(record()),
        "send_envelope": lambda: producer.send_envelope(Message(record())),
        "send_envelope of several": lambda: producer.send_envelope(MultiMessage([record()] * 3)),
        "send_envelope of none": lambda: producer.send_envelope(PassThroughMessage(1)),
        "send_many": lambda: producer.send_many([record(), record()]),
        "send_many of one": lambda: producer.send_many([record()]),
        "send_many of none": lambda: producer.send_many([]),
        "enqueue": lambda: producer.enqueue(record()),
        "enqueue and wait": enqueue_and_wait,
        "enqueue_nowait and wait": enqueue_nowait_and_wait,
        "enqueue_nowait and flush": enqueue_nowait_and_flush,
        "flush": producer.flush,
        "flow": flow,
        "sink": lambda: producer.sink(envelopes()),
        "partitions_for": lambda: producer.partitions_for("t"),
        "warm_up": lambda: producer.warm_up(["t", record()]),
        "warm_up of none": lambda: producer.warm_up([]),
    }[name]


METHODS = [
    "send",
    "send_envelope",
    "send_envelope of several",
    "send_envelope of none",
    "send_many",
    "send_many of one",
    "send_many of none",
    "enqueue",
    "enqueue and wait",
    "enqueue_nowait and wait",
    "enqueue_nowait and flush",
    "flush",
    "flow",
    "sink",
    "partitions_for",
    "warm_up",
    "warm_up of none",
]


@pytest.mark.parametrize("answer", ["same", "next", "second", "third"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_loop_of_calls_is_cancelled(
    settings: ProducerSettings, method: str, answer: str
) -> None:
    async with opened(settings, answer) as producer:
        assert await calls_after_cancellation(calls_of(producer, method)) <= AFTER


@pytest.mark.parametrize("method", METHODS)
async def test_a_loop_of_calls_to_a_fake_producer_is_cancelled(method: str) -> None:
    async with fake_producer() as fake:
        assert await calls_after_cancellation(calls_of(fake.producer, method)) <= AFTER


@pytest.mark.parametrize("answer", ["same", "next", "second", "third"])
@pytest.mark.parametrize("method", ["send", "send_many", "enqueue and wait", "send_offsets"])
async def test_a_loop_within_a_transaction_is_cancelled(
    settings: ProducerSettings, method: str, answer: str
) -> None:
    # After a cancelled call of send_offsets(), the transaction can only be aborted.
    end: AbstractContextManager[object] = (
        raising(TransactionAborted) if method == "send_offsets" else nullcontext()
    )
    async with opened(settings.evolve(transactional_id="one"), answer) as producer:
        with end:
            async with producer.transaction() as tx:

                async def enqueue_and_wait() -> None:
                    await (await tx.enqueue(record())).wait()

                calls: dict[str, Call] = {
                    "send": lambda: tx.send(record()),
                    "send_many": lambda: tx.send_many([record(), record()]),
                    "enqueue and wait": enqueue_and_wait,
                    "send_offsets": lambda: tx.send_offsets({("t", 0): 1}, "group"),
                }
                assert await calls_after_cancellation(calls[method]) <= AFTER


async def test_a_loop_of_transactions_is_cancelled() -> None:
    settings = ProducerSettings(bootstrap_servers="broker.invalid:9092", transactional_id="one")
    async with fake_producer(settings) as fake:

        async def transaction() -> None:
            async with fake.producer.transaction() as tx:
                await tx.send(record())

        assert await calls_after_cancellation(transaction, 100) <= AFTER


async def test_a_loop_that_receives_failures_is_cancelled() -> None:
    """Each envelope has only a bad record, so the flow's receiver waits for no outcome."""

    async def bad() -> AsyncIterator[Message[bytes | None, bytes, None]]:
        while True:
            yield Message(record(topic=""))

    async with fake_producer() as fake, fake.producer.flow(bad()) as results:

        async def receive() -> None:
            with pytest.raises(Exception, match="topic is empty"):
                await results.receive()

        assert await calls_after_cancellation(receive) <= AFTER


async def test_a_loop_that_waits_for_sent_records_is_cancelled() -> None:
    async with fake_producer() as fake:
        assert await calls_after_cancellation(functools.partial(fake.wait_until_sent, 0)) <= AFTER
        await fake.wait_until_sent(0)

        sent = 0

        async def enqueue_and_wait() -> None:
            nonlocal sent
            sent += 1
            fake.producer.enqueue_nowait(record())
            await fake.wait_until_sent(sent)

        assert await calls_after_cancellation(enqueue_and_wait) <= AFTER


@pytest.mark.parametrize("tasks", [2, 16, 32])
async def test_each_of_several_tasks_that_take_turns_is_cancelled(
    settings: ProducerSettings, tasks: int
) -> None:
    """The check for cancellation does not depend on which task makes every n-th call."""
    sent = 0

    async def send_for_ever(*, task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
        nonlocal sent
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            while sent < 100_000:
                await producer.send(record())
                sent += 1

    async with opened(settings, "next") as producer, task_group() as group:
        scopes: list[anyio.CancelScope] = [await group.start(send_for_ever) for _ in range(tasks)]
        for scope in scopes:
            scope.cancel()
            while not scope.cancelled_caught and sent < 100_000:
                await anyio.lowlevel.checkpoint()
        assert all(scope.cancelled_caught for scope in scopes)
        assert sent < 100_000


async def test_a_task_group_of_many_tasks_is_cancelled_at_once(settings: ProducerSettings) -> None:
    """When one task finds that it is cancelled, the next task checks, too.

    If there are more tasks than are woken together, AnyIO can cancel those that wait.
    """
    tasks, sent = 50, 0

    async def send_for_ever() -> None:
        nonlocal sent
        while sent < 100_000:
            await producer.send(record())
            sent += 1

    async with opened(settings, "next") as producer:
        async with task_group() as group:
            for _ in range(tasks):
                group.start_soon(send_for_ever)
            while sent < tasks:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
            before = sent
        # Each task may have an answer on its way, and may send once more.
        assert sent - before <= AFTER + 4 * tasks
