"""Transactions on Apache Kafka behind a proxy that loses requests, answers or both. The reported
outcome of each transaction is true, and no call takes longer than its time-out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    SendProducerError,
    Transaction,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.calls import fail, raising, task_group
from tests.support.fault_proxy import PRODUCE, FaultProxy, Way, fault_proxy
from tests.support.history import read_topic
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_nodes import Listener
from tests.support.waiting import PATIENCE

#: The API keys of Kafka's requests.
INIT_PRODUCER_ID = 22
ADD_PARTITIONS_TO_TXN = 24
ADD_OFFSETS_TO_TXN = 25
END_TXN = 26
TXN_OFFSET_COMMIT = 28

#: Seconds that steps may take on a busy machine beyond the time-outs that bound them. It is far
#: less than the time-outs that a step must not wait for.
SLACK = 15.0


class Proxied(NamedTuple):
    """A broker, and a proxy in front of the listener that the producers use."""

    cluster: KafkaCluster
    proxy: FaultProxy


@pytest.fixture(scope="module")
def _behind_a_proxy() -> Iterator[Proxied]:
    with contextlib.ExitStack() as stack:
        proxies: list[FaultProxy] = []

        def advertised(_: int, port: int) -> str:
            proxies.append(stack.enter_context(fault_proxy(f"127.0.0.1:{port}")))
            return proxies[0].address

        listener = Listener("PROXY", advertised=advertised)
        cluster = stack.enter_context(kafka_cluster(listeners=[listener]))
        yield Proxied(cluster, proxies[0])


@pytest.fixture
def proxied(_behind_a_proxy: Proxied) -> Iterator[Proxied]:
    """A broker behind a proxy that passes everything on when a test starts."""
    yield _behind_a_proxy
    _behind_a_proxy.proxy.heal()
    # Requests that got no answer during the test get it now.
    for thread in threading.enumerate():
        if thread.name.endswith("-offsets"):
            thread.join(PATIENCE)


def settings_for(proxied: Proxied, name: str, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=proxied.proxy.address,
        transactional_id=name,
        delivery_timeout=60.0,
        cancel_timeout=1.0,
    ).evolve(**changes)


async def visible(proxied: Proxied, topic: str) -> list[bytes | None]:
    """Read the committed values."""
    read = partial(read_topic, isolation="read_committed")
    found = await run_sync(read, proxied.cluster.bootstrap_servers, topic)
    return [one.value for one in found]


async def until_committed(
    proxied: Proxied, producer: SendProducer, topic: str, value: bytes
) -> None:
    """Send in transactions until one is committed. An earlier fault may have a lasting effect."""
    with anyio.fail_after(60):
        while True:
            try:
                async with producer.transaction() as tx:
                    await tx.send(ProducerRecord(topic, value))
            except TransactionOutcomeUnknown:
                # On a machine that stalls, it may be committed. After the next one has started, the
                # brokers have decided.
                with contextlib.suppress(TransactionError):
                    async with producer.transaction():
                        pass
                    if value in await visible(proxied, topic):
                        return
            except (TransactionError, DeliveryError):
                pass
            else:
                return


@pytest.mark.parametrize("way", list(Way), ids=["request", "answer"])
@pytest.mark.parametrize(
    "api",
    [
        pytest.param(INIT_PRODUCER_ID, id="init"),
        pytest.param(ADD_PARTITIONS_TO_TXN, id="partitions"),
        pytest.param(PRODUCE, id="produce"),
        pytest.param(ADD_OFFSETS_TO_TXN, id="offsets"),
        pytest.param(TXN_OFFSET_COMMIT, id="offset commit"),
        pytest.param(END_TXN, id="end"),
    ],
)
async def test_a_lost_request_or_answer_is_retried(
    proxied: Proxied, driver: DriverName, api: int, way: Way
) -> None:
    """A retry recovers each lost request and answer, above all the answer to a commit."""
    topic = proxied.cluster.create_topic()
    proxied.proxy.reset_in_frame(way, api=api, after=0 if way is Way.TO_CLIENT else 40)
    async with open_send_producer(settings_for(proxied, topic), driver=driver) as producer:
        async with producer.transaction() as tx:
            await tx.send(ProducerRecord(topic, b"committed"))
            await tx.send_offsets({(topic, 0): 1}, topic)
        assert tx.state is TransactionState.COMMITTED
        proxied.proxy.reset_in_frame(way, api=api, after=0 if way is Way.TO_CLIENT else 40)
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"aborted"))
                await tx.send_offsets({(topic, 0): 2}, topic)
                fail()
        assert tx.state is TransactionState.ABORTED
        proxied.proxy.heal()
        await until_committed(proxied, producer, topic, b"last")
    assert await visible(proxied, topic) == [b"committed", b"last"]


Step = Callable[[Transaction, str], Any]


async def send(tx: Transaction, topic: str) -> None:
    await tx.send(ProducerRecord(topic, b"not seen"))


async def send_offsets(tx: Transaction, topic: str) -> None:
    await tx.send_offsets({(topic, 0): 1}, topic)


async def end(_: Transaction, topic: str) -> None:
    """End the block without an error, and so commit."""


@pytest.mark.parametrize("step", [send, send_offsets, end], ids=["send", "offsets", "commit"])
async def test_a_cancellation_while_the_broker_does_not_answer_is_bounded(
    proxied: Proxied, driver: DriverName, step: Step
) -> None:
    """It takes `cancel_timeout` for a request that can't be withdrawn, and as long again for the
    abort."""
    topic = proxied.cluster.create_topic()
    held: list[Transaction] = []
    unknown: list[TransactionOutcomeUnknown] = []
    async with open_send_producer(settings_for(proxied, topic), driver=driver) as producer:
        await until_committed(proxied, producer, topic, b"before")
        async with task_group() as tasks:
            in_step = anyio.Event()
            scope = anyio.CancelScope()

            async def transact() -> None:
                with scope:
                    try:
                        async with producer.transaction() as tx:
                            held.append(tx)
                            await tx.send(ProducerRecord(topic, b"not seen"))
                            await run_sync(proxied.proxy.black_hole)
                            in_step.set()
                            await step(tx, topic)
                    except TransactionOutcomeUnknown as error:
                        unknown.append(error)

            tasks.start_soon(transact)
            await in_step.wait()
            await anyio.wait_all_tasks_blocked()
            began = time.monotonic()
            scope.cancel()
        assert time.monotonic() - began < 2 * 1.0 + SLACK
        assert held[0].state is (
            TransactionState.UNKNOWN if step is end else TransactionState.ABORTED
        )
        assert len(unknown) == (1 if step is end else 0)
        await run_sync(proxied.proxy.heal)
        await until_committed(proxied, producer, topic, b"after")
    found = await visible(proxied, topic)
    if step is end and b"not seen" in found:  # the request had arrived
        found.remove(b"not seen")
    assert found == [b"before", b"after"]


@pytest.mark.parametrize("step", [send, send_offsets, end], ids=["send", "offsets", "commit"])
async def test_no_answer_within_delivery_timeout(
    proxied: Proxied, driver: DriverName, step: Step
) -> None:
    topic = proxied.cluster.create_topic()
    settings = settings_for(proxied, topic, delivery_timeout=2.0)
    async with open_send_producer(settings, driver=driver) as producer:
        await until_committed(proxied, producer, topic, b"before")
        began = 0.0
        with raising(SendProducerError) as caught:
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"not seen"))
                await run_sync(proxied.proxy.black_hole)
                began = time.monotonic()
                await step(tx, topic)
        assert time.monotonic() - began < 2.0 + 2 * 1.0 + SLACK
        if step is end:
            assert isinstance(caught.value, TransactionOutcomeUnknown)
            assert tx.state is TransactionState.UNKNOWN
        else:
            assert not isinstance(caught.value, TransactionOutcomeUnknown)
            assert tx.state is TransactionState.ABORTED
        await run_sync(proxied.proxy.heal)
        await until_committed(proxied, producer, topic, b"after")
    found = await visible(proxied, topic)
    if step is end and b"not seen" in found:
        found.remove(b"not seen")
    assert found == [b"before", b"after"]


@pytest.mark.parametrize("step", [send, send_offsets, end], ids=["send", "offsets", "commit"])
async def test_closing_while_the_broker_does_not_answer_is_bounded(
    proxied: Proxied, driver: DriverName, step: Step
) -> None:
    topic = proxied.cluster.create_topic()
    held: list[Transaction] = []
    errors: list[SendProducerError] = []
    settings = settings_for(proxied, topic, close_timeout=2.0)
    async with contextlib.AsyncExitStack() as stack:
        producer = await stack.enter_async_context(open_send_producer(settings, driver=driver))
        await until_committed(proxied, producer, topic, b"before")
        async with task_group() as tasks:
            in_step = anyio.Event()

            async def transact() -> None:
                try:
                    async with producer.transaction() as tx:
                        held.append(tx)
                        await tx.send(ProducerRecord(topic, b"not seen"))
                        await run_sync(proxied.proxy.black_hole)
                        in_step.set()
                        await step(tx, topic)
                except SendProducerError as error:
                    errors.append(error)

            tasks.start_soon(transact)
            await in_step.wait()
            await anyio.wait_all_tasks_blocked()
            began = time.monotonic()
            with contextlib.suppress(SendProducerError):
                await producer.aclose()
            assert time.monotonic() - began < 2.0 + SLACK
        assert time.monotonic() - began < 2.0 + SLACK
        assert len(errors) == 1
        assert held[0].state is (
            TransactionState.UNKNOWN if step is end else TransactionState.ABORTED
        )
    await run_sync(proxied.proxy.heal)
    async with open_send_producer(settings_for(proxied, topic), driver=driver) as another:
        await until_committed(proxied, another, topic, b"after")
    found = await visible(proxied, topic)
    if step is end and b"not seen" in found:
        found.remove(b"not seen")
    assert found == [b"before", b"after"]


@pytest.mark.parametrize("driver", ["confluent"])  # kafka-python does not drop such a record
async def test_an_aborted_record_does_not_hide_the_next_one(
    proxied: Proxied, driver: DriverName
) -> None:
    """The broker wrote the record of the aborted transaction, and its answer was lost. If the next
    record had the same sequence number, the broker would take it for a repetition, acknowledge it,
    and not write it."""
    topic = proxied.cluster.create_topic()
    address, proxy = proxied.cluster.bootstrap_servers, proxied.proxy
    # An abort that takes longer would end the client.
    settings = settings_for(proxied, topic, cancel_timeout=PATIENCE)
    async with open_send_producer(settings, driver=driver) as producer:
        await until_committed(proxied, producer, topic, b"before")
        async with task_group() as tasks:
            lost: list[Delivery] = []

            async def heal_after_abort_began() -> None:
                with contextlib.suppress(DeliveryError):
                    await lost[0].wait()
                await run_sync(proxy.heal)

            with raising(ZeroDivisionError):
                async with producer.transaction() as tx:
                    await tx.send(ProducerRecord(topic, b"aborted"))
                    await run_sync(proxy.drop_answers)
                    lost.append(await tx.enqueue(ProducerRecord(topic, b"answer lost")))
                    written: list[bytes | None] = []
                    while b"answer lost" not in written:
                        written = [one.value for one in await run_sync(read_topic, address, topic)]
                    await run_sync(proxy.refuse)
                    tasks.start_soon(heal_after_abort_began)
                    fail()
        await until_committed(proxied, producer, topic, b"after")
    assert await visible(proxied, topic) == [b"before", b"after"]
