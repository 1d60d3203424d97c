"""Calls that need not wait: when they let other tasks run, and what they check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerMisused,
    ProducerSettings,
    SendProducer,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Suspensions, raising, record, refuse
from tests.support.waiting import until


async def suspensions_of(calls: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[int]:
    """Make all calls, and return the numbers of the calls that suspended the task."""
    numbers: list[int] = []
    for number, call in enumerate(calls):
        counted = Suspensions(call())
        await counted
        if counted.count:
            numbers.append(number)
    return numbers


async def test_every_hundredth_enqueue_lets_other_tasks_run(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        calls = [lambda: producer.enqueue(record())] * 300
        assert await suspensions_of(calls) == [0, 100, 200]


async def test_every_hundredth_wait_for_a_settled_delivery_lets_other_tasks_run(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        deliveries = [producer.enqueue_nowait(record()) for _ in range(300)]
        await until(lambda: all(delivery.done for delivery in deliveries))
        calls = [delivery.wait for delivery in deliveries]
        assert await suspensions_of(calls) == [0, 100, 200]


async def test_a_call_after_a_cancelled_call_checks_for_cancellation(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        for _ in range(3):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await producer.enqueue(record())
            assert scope.cancelled_caught
        assert producer.statistics().accepted == 0


async def test_the_failure_of_a_settled_delivery_is_raised_and_seen(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Each wait raises the failure, and the end of the block does not."""
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        await until(lambda: delivery.done)
        for _ in range(3):
            with raising(DeliveryError, match="refused"):
                await delivery.wait()
    with raising(UndeliveredRecords):
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record())


@pytest.mark.parametrize("method", ["enqueue", "wait", "wait for a pending record"])
async def test_calls_in_another_thread(settings: ProducerSettings, method: str) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        await producer.enqueue(record())
        delivery = producer.enqueue_nowait(record())
        if method == "wait":
            await until(lambda: len(fake.submitted) == 2)
            fake.acknowledge()
            await delivery

        def call() -> None:
            waits = delivery.wait()
            coroutine: Any = waits if method != "enqueue" else producer.enqueue(record())
            with raising(ProducerMisused, match="belongs to the event loop"):
                coroutine.send(None)
            waits.close()

        await anyio.to_thread.run_sync(call)
        fake.manual = False
        fake.acknowledge()


def test_calls_on_another_loop_of_the_thread(settings: ProducerSettings, fake: FakeDriver) -> None:
    home, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    opened: asyncio.Future[SendProducer] = home.create_future()
    is_done = asyncio.Event()

    async def hold_open() -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            opened.set_result(producer)
            await is_done.wait()

    async def enqueue_many(producer: SendProducer) -> None:
        with raising(ProducerMisused, match="another event loop runs the caller"):
            for _ in range(102):
                await producer.enqueue(record())

    try:
        holding = home.create_task(hold_open())
        producer = home.run_until_complete(opened)
        other.run_until_complete(enqueue_many(producer))
        is_done.set()
        home.run_until_complete(holding)
    finally:
        home.close()
        other.close()
