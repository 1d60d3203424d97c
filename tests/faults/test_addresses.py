"""Apache Kafka comes back under another address, while the bootstrap address stays."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import ProducerRecord, ProducerSettings, SendProducer, open_send_producer
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import RECORDS, Cell, judge
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka
from tests.support.kafka_nodes import Listener
from tests.support.load import Load, Running, run_load
from tests.support.waiting import PATIENCE

PROXY = "PROXY"


class Moving:
    """A broker that clients reach through one of two proxies, and through a third to bootstrap."""

    def __init__(
        self, cluster: KafkaCluster, bootstrap: FaultProxy, here: FaultProxy, there: FaultProxy
    ) -> None:
        self.cluster = cluster
        self.settings = ProducerSettings(
            bootstrap_servers=bootstrap.address, delivery_timeout=2 * PATIENCE
        )
        self._here, self._there = here, there

    def move(self) -> None:
        """Restart the broker at the other address. The old address refuses connections."""
        self._here.refuse()
        self._there.heal()
        self.cluster.move(1, PROXY, self._there.address)
        self._here, self._there = self._there, self._here


@pytest.fixture(scope="module")
def moving() -> Iterator[Moving]:
    require_kafka()
    proxies: list[FaultProxy] = []
    with contextlib.ExitStack() as stack:

        def advertised(_: int, port: int) -> str:
            proxies.extend(stack.enter_context(fault_proxy(f"127.0.0.1:{port}")) for _ in range(3))
            return proxies[1].address

        cluster = stack.enter_context(
            kafka_cluster(listeners=[Listener(PROXY, advertised=advertised)])
        )
        yield Moving(cluster, *proxies)


async def test_the_broker_comes_back_at_another_address(
    anyio_backend: str, driver: DriverName, moving: Moving
) -> None:
    topic = moving.cluster.create_topic(partitions=2)

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        running.admit(1)
        await anyio.to_thread.run_sync(moving.move)

    load = Load(topic=topic, records=RECORDS, seconds=1.0, partitions=2, admitted=0.4)
    ran = await run_load(moving.settings, load, during=during, driver=driver)
    report = await judge(
        Cell("wire", "the broker comes back under another address", anyio_backend, driver),
        ran,
        moving.settings,
        topic,
        address=moving.cluster.bootstrap_servers,
    )
    assert report.acknowledged == report.sent


async def committed(producer: SendProducer, topic: str) -> None:
    async with producer.transaction() as tx:
        await tx.send(ProducerRecord(topic, b"value"))


async def test_transactions_while_the_broker_comes_back_at_another_address(
    driver: DriverName, moving: Moving
) -> None:
    topic = moving.cluster.create_topic()
    settings = moving.settings.evolve(transactional_id=uuid.uuid4().hex)
    async with open_send_producer(settings, driver=driver) as producer:
        await committed(producer, topic)
        await anyio.to_thread.run_sync(moving.move)
        with anyio.fail_after(PATIENCE):
            await committed(producer, topic)
            await committed(producer, topic)
