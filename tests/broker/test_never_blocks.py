"""No call that blocks is made on the event loop's thread, however long the driver takes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from anyio_sendproducer import (
    DeliveryError,
    MultiMessage,
    ProducerSettings,
    SendProducer,
    UndeliveredRecords,
    _bridge,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver, Gate
from tests.support.calls import Call, at_gate, quiet, raising, record, taken, task_group
from tests.support.waiting import PATIENCE, until

ASYNCIO = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del ASYNCIO[1:]

#: Ticks of the loop for which the driver stands still.
STANDSTILL = 50


@pytest.fixture
def detector() -> Iterator[BlockBuster]:
    """Raises where a call may block the thread of a running asyncio loop.

    It lets Thread.start() pass, which waits until the new thread runs: some tens of microseconds,
    twice in a producer's life.
    """
    with blockbuster_ctx() as blockbuster:
        yield blockbuster


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.usefixtures("detector")
async def test_the_detector_detects() -> None:
    lock = threading.Lock()
    lock.acquire()
    with pytest.raises(BlockingError):
        time.sleep(0)  # noqa: ASYNC251
    with pytest.raises(BlockingError):
        lock.acquire()
    lock.release()


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
@pytest.mark.usefixtures("detector")
async def test_the_whole_life_of_a_producer(settings: ProducerSettings, fake: FakeDriver) -> None:
    narrow = settings.evolve(max_in_flight=10)
    async with open_send_producer(narrow, driver=fake) as producer:
        async with task_group() as tasks:
            for number in range(100):
                tasks.start_soon(producer.send, record(b"%d" % number))
        await producer.send_many([record()] * 30)
        await producer.send_envelope(MultiMessage([record()] * 30))
        delivery = await producer.enqueue(record())
        await producer.partitions_for("t")
        await producer.flush()
        await delivery.wait()
        producer.enqueue_nowait(record())
        producer.statistics()
    assert producer.statistics().delivered == 162


@pytest.mark.parametrize("anyio_backend", ASYNCIO)
async def test_a_broken_client_and_a_forced_end(
    settings: ProducerSettings, detector: BlockBuster
) -> None:
    fake = FakeDriver(manual=True)
    with raising(UndeliveredRecords):
        async with open_send_producer(settings.evolve(close_timeout=0.01), driver=fake) as producer:
            async with task_group() as tasks:
                first = Call(tasks, producer.send, record())
                await until(lambda: bool(fake.submitted))
                fake.break_client()
            assert isinstance(first.error, DeliveryError)
            await until(lambda: producer.statistics().generations == 2)
            producer.enqueue_nowait(record())
            await until(lambda: len(fake.submitted) == 2)
    assert fake.closed == [0, 0]


class Ticker:
    """Ticks on the loop, and lets a thread wait for that."""

    def __init__(self) -> None:
        self._ticks = threading.Semaphore(0)

    async def run(self) -> None:
        while True:
            await anyio.sleep(0.001)
            self._ticks.release()

    def wait_for(self, ticks: int) -> bool:
        """Whether it ticks so many times from now on."""
        while self._ticks.acquire(blocking=False):
            pass  # those were before
        return all(self._ticks.acquire(timeout=PATIENCE) for _ in range(ticks))


def keep_for_a_while(gate: Gate, ticker: Ticker) -> bool:
    """On a thread of its own: keep whoever stands before the gate while the loop ticks, and tell
    whether it did; then open it."""
    gate.wait_until_someone_waits(PATIENCE)
    try:
        return ticker.wait_for(STANDSTILL)
    finally:
        gate.open()


@pytest.mark.parametrize("where", ["open", "submit", "close"])
async def test_the_loop_ticks_on_while_the_driver_stands_still(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    gate: Gate = {"open": fake.on_open, "submit": fake.on_submit, "close": fake.on_close}[where]
    gate.shut()
    ticker = Ticker()
    ticked: list[bool] = []
    # The driver is not what the end gives up waiting for.
    monkeypatch.setattr(_bridge, "_GRACE_SECONDS", 10 * PATIENCE)

    async def stand_still() -> None:
        ticked.append(await anyio.to_thread.run_sync(keep_for_a_while, gate, ticker))

    async with task_group() as tasks:
        tasks.start_soon(ticker.run)
        tasks.start_soon(stand_still)
        async with open_send_producer(settings, driver=fake) as producer:
            metadata = await producer.send(record())
        await until(lambda: bool(ticked))
        tasks.cancel_scope.cancel()
    assert metadata.offset == 0
    assert ticked == [True]


async def test_others_use_the_producer_while_the_driver_stands_still(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Whatever needs no answer of the driver goes on at once."""
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        first = producer.enqueue_nowait(record())
        await at_gate(fake.on_submit)
        with anyio.fail_after(PATIENCE):
            second = await producer.enqueue(record())
        assert producer.statistics().queued == 1
        assert not first.done
        assert not second.done
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record())
            await quiet()
            await call.cancel()
        await _open(producer, fake)
    assert fake.batches == [1, 1]


async def _open(producer: SendProducer, fake: FakeDriver) -> None:
    fake.on_submit.open()
    await taken(fake, 2)
    await producer.flush()
