"""Faults of a real cluster: brokers of Apache Kafka are killed, stopped, frozen and throttled.

All records are on all three brokers, and two must have a record before it is acknowledged.
Every record is delivered once and in order if only one broker fails, or if all brokers come back
before the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from anyio import sleep
from anyio.to_thread import run_sync

from anyio_sendproducer import ProducerSettings
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import FULL, RECORDS, Cell, judge
from tests.support.history import Acknowledged, Report
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka
from tests.support.load import Load, Running, run_load

#: Seconds over which a load is spread. They are longer than a fault.
SECONDS = 20.0 if FULL else 6.0

PARTITIONS = 4


@pytest.fixture(scope="module")
def _three() -> Iterator[KafkaCluster]:
    require_kafka()
    with kafka_cluster(3) as running:
        yield running


@pytest.fixture
def cluster(_three: KafkaCluster) -> Iterator[KafkaCluster]:
    """A cluster whose brokers all run when a test starts."""
    yield _three
    _three.heal()


@pytest.fixture
def topic(cluster: KafkaCluster) -> str:
    """A topic whose partitions are led by different brokers."""
    replicas = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 3, 2]]
    return cluster.create_topic(configs={"min.insync.replicas": 2}, replicas=replicas)


async def run(
    cell: str,
    loop: str,
    driver: DriverName,
    cluster: KafkaCluster,
    topic: str,
    fault: Callable[[], None],
    *,
    tasks: int = 200,
    value_bytes: int = 100,
    **changes: Any,
) -> Report:
    """Run a load, cause the fault after a quarter of it, judge, and write the row."""
    settings = ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers, client_id=topic, delivery_timeout=90.0
    ).evolve(**changes)

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        await run_sync(fault)

    load = Load(
        topic=topic,
        records=RECORDS,
        seconds=SECONDS,
        tasks=tasks,
        partitions=PARTITIONS,
        value_bytes=value_bytes,
    )
    ran = await run_load(settings, load, during=during, driver=driver)
    await run_sync(cluster.heal)
    # Before that a new leader may report too low an end of the log.
    await run_sync(cluster.wait_until_in_sync, topic)
    report = await judge(Cell("cluster", cell, loop, driver), ran, settings, topic)
    # The exit is quick if nothing is left to deliver.
    assert report.time_to_exit < 30
    return report


@pytest.mark.parametrize(
    ("end", "cell"),
    [
        (KafkaCluster.kill, "SIGKILL of a leader"),
        (KafkaCluster.fill_disk, "disk of a leader full"),
    ],
    ids=["killed", "disk-full"],
)
async def test_the_leader_ends_at_once(
    anyio_backend: str,
    driver: DriverName,
    cluster: KafkaCluster,
    topic: str,
    end: Callable[[KafkaCluster, int], None],
    cell: str,
) -> None:
    def fault() -> None:
        end(cluster, 1)
        cluster.wait_for_leader(topic, 0, other_than=1)
        cluster.start(1)

    # In any number of batches, it is more than a full disk accepts for a partition.
    report = await run(cell, anyio_backend, driver, cluster, topic, fault, value_bytes=500)
    assert report.acknowledged == report.sent


async def test_a_rolling_restart(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster, topic: str
) -> None:
    def fault() -> None:
        for broker in cluster.brokers:
            cluster.stop(broker)
            cluster.start(broker)
            cluster.wait_until_in_sync(topic)

    report = await run(
        "rolling restart of all brokers", anyio_backend, driver, cluster, topic, fault
    )
    assert report.acknowledged == report.sent


@pytest.mark.parametrize("request_timeout_ms", [30_000, 2_000], ids=["patient", "impatient"])
async def test_a_leader_freezes(
    anyio_backend: str,
    driver: DriverName,
    cluster: KafkaCluster,
    topic: str,
    request_timeout_ms: int,
) -> None:
    seconds = 10.0 if FULL else 4.0

    def fault() -> None:
        cluster.pause(1)
        time.sleep(seconds)
        cluster.resume(1)
        cluster.wait_until_ready()

    cell = f"SIGSTOP of a leader for {seconds:g} s, request.timeout.ms {request_timeout_ms}"
    properties = {"request.timeout.ms": request_timeout_ms}
    report = await run(cell, anyio_backend, driver, cluster, topic, fault, properties=properties)
    assert report.acknowledged == report.sent


async def test_leadership_moves_back_and_forth(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster, topic: str
) -> None:
    def fault() -> None:
        for turn in range(20 if FULL else 6):
            for partition in range(PARTITIONS):
                cluster.move_leader(topic, partition, 1 + (partition + turn) % 3)

    report = await run(
        "leadership moved back and forth", anyio_backend, driver, cluster, topic, fault
    )
    assert report.acknowledged == report.sent


@pytest.mark.parametrize("patient", [True, False], ids=["longer-deadline", "shorter-deadline"])
async def test_all_brokers_are_gone(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster, topic: str, patient: bool
) -> None:
    seconds = 30.0 if FULL else 5.0

    def fault() -> None:
        for broker in cluster.brokers:
            cluster.kill(broker)
        time.sleep(seconds)
        cluster.heal()

    deadline = 90.0 if patient else seconds / 3
    cell = f"all brokers killed for {seconds:g} s, delivery_timeout {deadline:.3g} s"
    report = await run(
        cell,
        anyio_backend,
        driver,
        cluster,
        topic,
        fault,
        delivery_timeout=deadline,
        # If no outcome arrives, only tasks that have not sent yet go on.
        tasks=200 if patient else RECORDS,
    )
    if patient:
        assert report.acknowledged == report.sent
        assert report.longest_wait > seconds / 2
    else:
        assert report.acknowledged + report.failures == report.sent
        assert report.failures > 0
        kinds = {
            "DeliveryTimeout, not persisted",
            "DeliveryTimeout, possibly persisted",
            # A client without progress for a long time is given up, with the records that it had.
            "DeliveryError, possibly persisted",
        }
        assert set(report.failed) <= kinds


async def test_min_insync_replicas_is_not_met_for_a_while(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster, topic: str
) -> None:
    def fault() -> None:
        cluster.alter_topic(topic, {"min.insync.replicas": 3})
        cluster.kill(3)
        cluster.wait_for_leader(topic, 2, other_than=3)
        time.sleep(2.0)
        cluster.start(3)
        cluster.wait_until_in_sync(topic)

    report = await run(
        "min.insync.replicas not met for a while", anyio_backend, driver, cluster, topic, fault
    )
    assert report.acknowledged == report.sent
    assert report.longest_wait > 1


async def test_a_quota_throttles(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster, topic: str
) -> None:
    limit = partial(cluster.set_quota, client_id=topic)

    def fault() -> None:
        limit(producer_byte_rate=2_000)
        time.sleep(SECONDS / 2)
        limit(producer_byte_rate=None)

    report = await run("a quota throttles", anyio_backend, driver, cluster, topic, fault)
    assert report.acknowledged == report.sent
    assert report.longest_wait > 0.5


async def test_a_partition_has_no_leader_for_longer_than_the_deadline(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster
) -> None:
    """Its only copy is on a broker that is down. Other partitions are not affected."""
    topic = cluster.create_topic(replicas=[[1], [2], [3], [1]])
    settings = ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers, client_id=topic, delivery_timeout=3.0
    )
    shares: list[float] = []

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        await run_sync(cluster.kill, 3)
        with running.outage():
            running.admit(0.6)
            await running.until_settled(0.6)
            began, cpu = time.monotonic(), time.process_time()
            await sleep(2)
            shares.append((time.process_time() - cpu) / (time.monotonic() - began))
        await run_sync(cluster.start, 3)
        running.admit(1)

    load = Load(topic=topic, records=RECORDS, seconds=SECONDS, partitions=PARTITIONS, admitted=0.25)
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell("cluster", "a partition without a leader", anyio_backend, driver)
    report = await judge(cell, ran, settings, topic)
    kinds = {"DeliveryTimeout, not persisted", "DeliveryTimeout, possibly persisted"}
    if driver == "confluent":
        # librdkafka cannot give up single records. So the client is replaced whenever late records
        # take up half of the room, and the records of that partition fail before their deadline.
        kinds.add("DeliveryError, possibly persisted")
    assert set(report.failed) <= kinds
    history = ran.history
    for sent in history.sent.values():
        assert sent.partition == 2 or isinstance(history.outcome(sent.id), Acknowledged)
    if driver == "kafka-python":
        assert ran.statistics.generations == 1
        # Bare kafka-python uses 0.9 of a core, also when all records have their outcome.
        assert shares[0] < 0.5
