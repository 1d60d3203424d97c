"""A block that another task or another event loop leaves than the one that entered it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Message,
    ProducerMisused,
    ProducerSettings,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer._clock import LoopClock
from anyio_sendproducer._opening import _open
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import record
from tests.support.waiting import PATIENCE, until

T = TypeVar("T")

ADVICE = (
    r"use ProducerService on asyncio, or start_send_producer\(task_group, settings\) with a task "
    "group that outlives the hooks"
)


@asynccontextmanager
async def entered_elsewhere(
    manager: AbstractAsyncContextManager[T], backend: str
) -> AsyncGenerator[T]:
    """Enter a block in a task of its own.

    On asyncio, that task then ends, like the task of a fixture. On Trio, it cannot end before the
    block is left: it ends with Trio's own error.
    """
    if backend == "asyncio":

        async def enter_and_end() -> T:
            return await manager.__aenter__()

        yield await asyncio.create_task(enter_and_end())
        return
    given: list[T] = []
    entered, left = anyio.Event(), anyio.Event()

    async def enter() -> None:
        given.append(await manager.__aenter__())
        entered.set()
        await left.wait()

    failure: BaseException | None = None
    corrupted: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            with anyio.fail_after(PATIENCE):
                await entered.wait()
            try:
                yield given[0]
            except BaseException as error:  # noqa: BLE001
                failure = error
            left.set()
    except Exception as error:  # noqa: BLE001  # a group, which Python 3.10 lacks
        group: Any = error
        [corrupted] = group.exceptions
    if failure is not None:
        raise failure
    assert "stack corrupted" in str(corrupted)


async def test_the_producer_is_closed_and_the_advice_is_given(
    settings: ProducerSettings, fake: FakeDriver, anyio_backend: str
) -> None:
    manager = open_send_producer(settings, driver=fake)
    async with entered_elsewhere(manager, anyio_backend) as producer:
        producer.enqueue_nowait(record())
        with pytest.raises(ProducerMisused, match=ADVICE):
            await manager.__aexit__(None, None, None)
        figures = producer.statistics()
        assert (figures.state, figures.delivered) == ("closed", 1)
        assert fake.closed


async def test_the_exception_of_the_block_leaves_it_with_a_note(
    settings: ProducerSettings, fake: FakeDriver, anyio_backend: str
) -> None:
    manager = open_send_producer(settings, driver=fake)
    async with entered_elsewhere(manager, anyio_backend) as producer:
        error = KeyError("no such customer")
        assert not await manager.__aexit__(KeyError, error, None)
        [note] = error.__dict__["__notes__"]
        assert "ProducerService" in note
        assert producer.statistics().state == "closed"


async def test_a_block_that_is_never_left_is_reported(
    settings: ProducerSettings, fake: FakeDriver, anyio_backend: str
) -> None:
    """The event loop closes the generator of an unfinished fixture."""
    manager: Any = _open(settings, fake, (), LoopClock)
    async with entered_elsewhere(manager, anyio_backend) as producer:
        with pytest.raises(ProducerMisused, match=ADVICE):
            await manager.gen.aclose()
        assert producer.statistics().state == "closed"


@pytest.mark.parametrize("error", [None, KeyError("failed")], ids=["clean", "failed"])
def test_another_event_loop_leaves_the_block(
    settings: ProducerSettings, fake: FakeDriver, error: KeyError | None
) -> None:
    """The producer closes on the event loop that opened it."""
    home, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    manager = open_send_producer(settings, driver=fake)

    async def enter() -> SendProducer:
        return await manager.__aenter__()

    async def leave() -> None:
        if error is None:
            with pytest.raises(ProducerMisused, match=ADVICE):
                await manager.__aexit__(None, None, None)
        else:
            assert not await manager.__aexit__(KeyError, error, None)
            assert "ProducerService" in error.__dict__["__notes__"][0]

    try:
        producer = home.run_until_complete(enter())
        other.run_until_complete(leave())
        home.run_until_complete(until(lambda: producer.statistics().state == "closed"))
    finally:
        home.close()
        other.close()


async def test_another_task_leaves_a_flow(
    settings: ProducerSettings, fake: FakeDriver, anyio_backend: str
) -> None:
    """The task that reads the source has ended afterwards."""
    closed = anyio.Event()

    async def source() -> AsyncIterator[Message[bytes | None, bytes, None]]:
        try:
            yield Message(record())
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with open_send_producer(settings, driver=fake) as producer:
        manager = producer.flow(source())
        async with entered_elsewhere(manager, anyio_backend) as results:
            await results.receive()
            with pytest.raises(ProducerMisused, match="Enter and leave the block in the same task"):
                await manager.__aexit__(None, None, None)
            with anyio.fail_after(PATIENCE):
                await closed.wait()


async def test_the_advice_for_a_thread_without_an_event_loop(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:

        def use() -> None:
            with pytest.raises(ProducerMisused, match=r"anyio\.from_thread\.run\(producer\.send"):
                producer.enqueue_nowait(record())

        await anyio.to_thread.run_sync(use)


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_the_advice_for_another_event_loop(
    settings: ProducerSettings, fake: FakeDriver, other: str
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:

        async def use() -> None:
            with pytest.raises(ProducerMisused, match=r"open the producer in the .* lifespan"):
                await producer.send(record())

        await anyio.to_thread.run_sync(lambda: anyio.run(use, backend=other))
