"""Answers of Apache Kafka are lost for a while, with records of different ages.

A proxy passes requests on and drops the answers, then resets the connections. Records that missed
their deadline before the reset may be written. So may younger records, which the client sends
again. No record may be in the log twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    TransactionError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import FULL, Cell, judge
from tests.support.fault_proxy import FaultProxy
from tests.support.history import Acknowledged, read_topic
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka
from tests.support.kafka_nodes import Listener
from tests.support.load import Load, Running, run_load
from tests.support.waiting import until

PROXY = "PROXY"

#: Seconds between two records, and how many are sent before and after the answers are dropped.
INTERVAL = 0.5
BEFORE, AFTER = (4, 6) if FULL else (2, 2)

#: Each as a pair of `delivery_timeout` and the seconds for which answers are dropped.
TIMES = [(6.0, 5.0), (6.0, 8.0), (6.0, 16.0)] if FULL else [(2.0, 2.6)]

RUNS = 5 if FULL else 1


class Proxied(NamedTuple):
    cluster: KafkaCluster
    proxy: FaultProxy


@pytest.fixture(scope="module")
def proxied() -> Iterator[Proxied]:
    require_kafka()
    proxies: list[FaultProxy] = []

    def advertised(_: int, port: int) -> str:
        proxy = FaultProxy(f"127.0.0.1:{port}")
        proxy.start()
        proxies.append(proxy)
        return proxy.address

    try:
        with kafka_cluster(listeners=[Listener(PROXY, advertised=advertised)]) as running:
            yield Proxied(running, proxies[0])
    finally:
        for proxy in proxies:
            proxy.stop()


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize(("delivery_timeout", "seconds"), TIMES, ids=str)
async def test_answers_are_dropped_for_a_while(
    anyio_backend: str,
    driver: DriverName,
    proxied: Proxied,
    delivery_timeout: float,
    seconds: float,
    run: int,  # a repetition
) -> None:
    cluster, proxy = proxied
    proxy.heal()
    topic = cluster.create_topic(partitions=2)
    settings = ProducerSettings(
        bootstrap_servers=proxy.address, delivery_timeout=delivery_timeout, close_timeout=20.0
    )

    async def during(running: Running) -> None:
        await until(lambda: running.acknowledged >= BEFORE)
        proxy.drop_answers()
        sent = len(running.history.sent)
        with running.outage():
            await until(lambda: len(running.history.sent) > sent)
            await anyio.sleep(seconds)
        proxy.cut()
        proxy.heal()
        running.admit(1)

    records = BEFORE + AFTER + int(seconds / INTERVAL)
    load = Load(
        topic=topic,
        records=records,
        tasks=records,
        seconds=records * INTERVAL,
        partitions=2,
        calls=("send",),
        admitted=1 - AFTER / records,
    )
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = f"answers dropped for {seconds:g} s, delivery_timeout {delivery_timeout:g} s"
    report = await judge(
        Cell("wire", cell, anyio_backend, driver, f"The last of {RUNS} runs."),
        ran,
        settings,
        topic,
        address=cluster.bootstrap_servers,
    )
    assert report.acknowledged + report.failures == report.sent
    assert set(report.failed) <= {
        "DeliveryTimeout, possibly persisted",
        "DeliveryTimeout, not persisted",
        # If nothing is delivered for a long time, the client is given up.
        "DeliveryError, possibly persisted",
    }
    if seconds > delivery_timeout:
        assert report.failures > 0
    assert isinstance(ran.history.outcome(list(ran.history.sent)[-1]), Acknowledged)


async def test_answers_are_dropped_in_a_transaction(driver: DriverName, proxied: Proxied) -> None:
    """In a transaction librdkafka expires records and takes a new epoch. The transaction is
    aborted."""
    cluster, proxy = proxied
    proxy.heal()
    topic = cluster.create_topic(partitions=2)
    settings = ProducerSettings(
        bootstrap_servers=proxy.address, transactional_id=topic, delivery_timeout=2.0
    )

    def record(value: bytes, partition: int = 0) -> ProducerRecord[None, bytes]:
        return ProducerRecord(topic, value, partition=partition)

    ended = "committed"
    async with open_send_producer(settings, driver=driver) as producer:
        async with producer.transaction() as transaction:
            for partition in (0, 1):
                await transaction.send(record(b"first", partition))
        try:
            async with producer.transaction() as transaction:
                await transaction.send(record(b"acknowledged"))
                proxy.drop_answers()
                late = await transaction.enqueue(record(b"late"))
                await anyio.sleep(1.0)
                younger = await transaction.enqueue(record(b"younger", 1))
                await anyio.sleep(1.6)
                proxy.cut()
                proxy.heal()
                for delivery in (late, younger):
                    await delivery.wait()
        except (DeliveryError, TransactionError) as error:
            ended = type(error).__name__
        async with producer.transaction() as transaction:
            await transaction.send(record(b"last"))
    assert ended == "DeliveryTimeout"
    log = await anyio.to_thread.run_sync(
        partial(read_topic, isolation="read_committed"), cluster.bootstrap_servers, topic
    )
    assert Counter(one.value for one in log) == {b"first": 2, b"last": 1}
