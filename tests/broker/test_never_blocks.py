"""The event loop's thread makes no blocking call, however long the driver takes."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import BlockingPortal
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from anyio_sendproducer import (
    DeliveryError,
    MultiMessage,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    UndeliveredRecords,
    _bridge,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import FakeDriver, Gate, MockCluster, mock_cluster
from tests.support.calls import Call, at_gate, quiet, raising, record, taken, task_group
from tests.support.client_log import on_each_line
from tests.support.scripted_broker import scripted_broker
from tests.support.waiting import PATIENCE, until

Partitioner: Any = importlib.import_module("kafka.partitioner.abc").Partitioner

ASYNCIO = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del ASYNCIO[1:]

#: The number of ticks of the loop during which the driver blocks.
STANDSTILL = 50


@pytest.fixture
def detector() -> Iterator[BlockBuster]:
    """Raises if a call may block the thread of a running asyncio loop.

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
        """Wait for this number of ticks from now on. Returns: whether they came in time."""
        while self._ticks.acquire(blocking=False):
            pass  # those were before
        return all(self._ticks.acquire(timeout=PATIENCE) for _ in range(ticks))


def keep_for_a_while(gate: Gate, ticker: Ticker) -> bool:
    """On a thread of its own: keep the gate shut while the loop ticks, then open it.

    Returns:
        Whether the loop ticked.
    """
    gate.wait_until_someone_waits(PATIENCE)
    try:
        return ticker.wait_for(STANDSTILL)
    finally:
        gate.open()


@pytest.mark.parametrize("where", ["open", "submit", "close"])
async def test_the_loop_runs_while_the_driver_blocks(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    gate: Gate = {"open": fake.on_open, "submit": fake.on_submit, "close": fake.on_close}[where]
    gate.shut()
    ticker = Ticker()
    ticked: list[bool] = []
    # The end does not give up waiting for the driver.
    monkeypatch.setattr(_bridge, "GRACE_SECONDS", 10 * PATIENCE)

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


async def test_other_tasks_use_the_producer_while_the_driver_blocks(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Calls that need no answer of the driver return at once."""
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


# --- code of the user's --------------------------------------------------------------------------

DRIVERS = get_args(DriverName)

#: How long an answer takes, in milliseconds. A tick takes one or more.
ANSWER_MS = 100


class Hook:
    """User code that runs until the loop has ticked for a while."""

    def __init__(self, ticker: Ticker, ticks: int) -> None:
        self._ticker = ticker
        self._ticks = ticks
        self.ticked: list[bool] = []

    def __call__(self) -> None:
        if not self.ticked:
            self.ticked.append(self._ticker.wait_for(self._ticks))


@asynccontextmanager
async def hooked(ticks: int = STANDSTILL) -> AsyncGenerator[Hook]:
    """Run a ticking loop during the block, and check that the hook was called and did not stop the
    ticks."""
    ticker = Ticker()
    async with task_group() as tasks:
        tasks.start_soon(ticker.run)
        hook = Hook(ticker, ticks)
        yield hook
        await until(lambda: bool(hook.ticked))
        tasks.cancel_scope.cancel()
    assert hook.ticked == [True]


async def send_beside_one_under_way(
    driver: DriverName, cluster: MockCluster, serialize: Callable[[str], bytes]
) -> list[RecordMetadata]:
    """Send a record while another is in flight. Its answer arrives while the second is
    serialized."""
    settings = cluster.settings(driver, value_serializer=serialize)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("t", "known", partition=0))
        cluster.set_rtt(1, ANSWER_MS)
        async with task_group() as tasks:
            first = Call(tasks, producer.send, ProducerRecord("t", "fast", partition=0))
            await quiet()
            second = await producer.send(ProducerRecord("t", "slow", partition=0))
        return [first.value, second]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_loop_runs_during_a_slow_serializer(driver: DriverName) -> None:
    with mock_cluster() as cluster:
        async with hooked(2 * ANSWER_MS) as hook:

            def serialize(data: str) -> bytes:
                if data == "slow":
                    hook()
                return data.encode()

            sent = await send_beside_one_under_way(driver, cluster, serialize)
            assert [one.offset for one in sent] == [1, 2]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_serializer_may_wait_for_the_loop(driver: DriverName) -> None:
    """Like a serializer that calls a registry with an asynchronous client."""
    with mock_cluster() as cluster:
        async with BlockingPortal() as portal:

            def serialize(data: str) -> bytes:
                if data == "slow":
                    portal.call(anyio.sleep, 2 * ANSWER_MS / 1000)
                return data.encode()

            sent = await send_beside_one_under_way(driver, cluster, serialize)
            assert [one.offset for one in sent] == [1, 2]


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_loop_runs_during_a_slow_partitioner(driver: DriverName) -> None:
    """This holds also while another record is in flight, and its answer arrives."""
    with mock_cluster() as cluster:
        async with hooked(2 * ANSWER_MS) as hook:

            def choose(_topic: str, key: bytes | None, _partitions: object) -> int:
                if key == b"slow":
                    hook()
                return 0

            settings = cluster.settings(driver, partitioner=choose)
            async with open_send_producer(settings, driver=driver) as producer:
                await producer.send(ProducerRecord("t", b"known"))
                cluster.set_rtt(1, ANSWER_MS)
                async with task_group() as tasks:
                    first = Call(tasks, producer.send, ProducerRecord("t", b"fast"))
                    await quiet()
                    second = await producer.send(ProducerRecord("t", b"v", b"slow"))
                assert [first.value.offset, second.offset] == [1, 2]


async def test_the_loop_runs_during_a_slow_partitioner_of_kafka_python() -> None:
    with mock_cluster() as cluster:
        async with hooked() as hook:

            class Slow(Partitioner):  # type: ignore[misc]  # kafka-python is not typed here
                def partition(self, *_: object) -> int:
                    hook()
                    return 0

            settings = cluster.settings(properties={"partitioner": Slow()})
            async with open_send_producer(settings) as producer:
                await producer.send(ProducerRecord("t", b"v"))


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_loop_runs_during_a_slow_token_provider(driver: DriverName) -> None:
    with scripted_broker(mechanisms=("OAUTHBEARER",), tokens={"t0k3n"}) as broker:
        async with hooked() as hook:

            class Tokens:
                def token(self) -> str:
                    hook()
                    return "t0k3n"

            login = {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "OAUTHBEARER",
                "sasl_oauth_token_provider": Tokens(),
            }
            settings = ProducerSettings(bootstrap_servers=broker.address, properties=login)
            async with open_send_producer(settings, driver=driver) as producer:
                await producer.send(ProducerRecord("t", b"v"))


async def test_no_handler_of_a_log_runs_on_the_loop() -> None:
    """librdkafka logs during the poll that the loop calls."""
    threads: set[int] = set()
    with on_each_line(lambda: threads.add(threading.get_ident())), mock_cluster() as cluster:
        settings = cluster.settings("confluent", properties={"debug": "msg"})
        async with open_send_producer(settings, driver="confluent") as producer:
            for _ in range(100):
                await producer.send(ProducerRecord("t", b"v"))
    assert threads
    assert threading.get_ident() not in threads
