"""Faults of single topics of a real cluster under load: a topic with a small max.message.bytes, a
forbidden topic, a topic that is deleted and created again, and added partitions.

Other topics and other records are not affected.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import fail_after, sleep
from anyio.to_thread import run_sync

from anyio_sendproducer import ProducerRecord, ProducerSettings, RecordRejected
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import FULL, RECORDS, Cell, Row, join, judge, read_log, write_row
from tests.support.history import Acknowledged, Ended, Failed, History, Logged, Plain, check
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka
from tests.support.kafka_security import ACLS, logging_in, sasl_listener
from tests.support.load import Load, Running, make_record, run_load
from tests.support.waiting import PATIENCE, until

#: Seconds over which a load is spread.
SECONDS = 20.0 if FULL else 4.0

PARTITIONS = 4

#: One special record per this number of records.
ONE_IN = 40

PASSWORD = "not to be told"

#: The id of a record, and the record.
Made = tuple[str, ProducerRecord[bytes, bytes]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    require_kafka()
    listener = sasl_listener("SASL", ["PLAIN"], users={"bob": PASSWORD})
    with kafka_cluster(listeners=[listener], properties=ACLS) as running:
        yield running


def settings_for(cluster: KafkaCluster, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers, delivery_timeout=60.0
    ).evolve(**changes)


def is_special(number: int) -> bool:
    return number % ONE_IN == ONE_IN - 1


async def test_records_that_are_too_large_for_the_topic(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster
) -> None:
    """Only they fail. The other records of their batches are delivered."""
    limit = 100_000
    topic = cluster.create_topic(partitions=PARTITIONS, configs={"max.message.bytes": limit})

    def make(load: Load, number: int) -> Made:
        id_, record = make_record(load, number)
        if is_special(number):
            content = id_.encode().ljust(limit + number % 1000, b" ")
            record = dataclasses.replace(record, value=content)
        return id_, record

    settings = settings_for(cluster)
    load = Load(topic=topic, records=RECORDS, seconds=SECONDS, partitions=PARTITIONS, make=make)
    ran = await run_load(settings, load, driver=driver)
    cell = Cell("cluster", "records over max.message.bytes, among others", anyio_backend, driver)
    report = await judge(cell, ran, settings, topic)
    if driver == "confluent":
        # librdkafka does not split a batch that is too large, so all its records fail.
        # A record that took longer than the retry backoff may have been sent before.
        kinds = {"RecordRejected, not persisted", "DeliveryError, possibly persisted"}
        assert set(report.failed) <= kinds
        for id_ in ran.history.sent:
            assert not is_special(int(id_[1:])) or isinstance(ran.history.outcome(id_), Failed)
        assert report.acknowledged > report.sent / 2
        assert ran.statistics.generations == 1
        return
    assert report.failed == {"RecordRejected, not persisted": RECORDS // ONE_IN}
    assert report.acknowledged == report.sent - RECORDS // ONE_IN
    assert ran.statistics.generations == 1


async def test_a_topic_that_is_forbidden_and_then_granted(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster
) -> None:
    topic, forbidden = cluster.create_topic(partitions=PARTITIONS), cluster.create_topic()
    cluster.add_acl("User:bob", "write", topic)
    cluster.add_acl("User:alice", "write", forbidden)

    def make(load: Load, number: int) -> Made:
        id_, record = make_record(load, number)
        if is_special(number):
            record = dataclasses.replace(record, topic=forbidden, partition=0)
        return id_, record

    granted = [float("inf")]

    async def probe(running: Running, number: int) -> bool:
        """Whether the producer may already write to the topic."""
        id_ = f"probe-{number}"
        record = ProducerRecord(forbidden, id_.encode(), partition=0)
        running.history.sending(id_, record)
        try:
            running.history.ending(id_, await running.producer.send(record))
        except RecordRejected as error:
            running.history.ending(id_, error)
            return False
        return True

    async def during(running: Running) -> None:
        await running.until_settled(0.5)
        await run_sync(lambda: cluster.add_acl("User:bob", "write", forbidden))
        # The producer learns it from one of the next answers.
        numbers = itertools.count()
        with fail_after(PATIENCE):
            while not await probe(running, next(numbers)):  # noqa: ASYNC110 # no event tells
                await sleep(0.05)
        granted[0] = time.monotonic()
        running.admit(1.0)

    settings = settings_for(
        cluster,
        bootstrap_servers=cluster.bootstrap("SASL"),
        properties=logging_in("PLAIN", "bob", PASSWORD),
    )
    load = Load(
        topic=topic,
        records=RECORDS,
        seconds=SECONDS,
        partitions=PARTITIONS,
        make=make,
        admitted=0.8,  # the rest waits for the permission, however long that takes
    )
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell(
        "cluster", "a topic that an ACL forbids, then allows, among others", anyio_backend, driver
    )
    address = cluster.bootstrap_servers
    report = await judge(cell, ran, settings, [topic, forbidden], address=address)
    assert report.failed.keys() == {"RecordRejected, not persisted"}
    history = ran.history
    for sent in history.sent.values():
        good = isinstance(history.outcome(sent.id), Acknowledged)
        if sent.topic == topic or sent.at > granted[0]:
            assert good, (sent, history.outcome(sent.id))
    assert any(sent.topic == forbidden and sent.at > granted[0] for sent in history.sent.values())
    assert ran.statistics.generations == 1


async def test_a_topic_is_deleted_and_created_again(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster
) -> None:
    """Its records are deleted with it. The reports of all others are true, and the producer goes
    on."""
    topic = cluster.create_topic(partitions=PARTITIONS)
    before: list[Logged] = []
    moments: list[float] = []

    def remake() -> None:
        cluster.delete_topic(topic)
        time.sleep(1.0)
        moments.append(time.monotonic())
        cluster.create_topic(topic, partitions=PARTITIONS)

    async def during(running: Running) -> None:
        # All admitted records: no other record was sent.
        await running.until_settled(0.25)
        assert running.settled == len(running.history.sent)
        before.extend(await read_log(cluster.bootstrap_servers, topic))
        moments.append(time.monotonic())
        running.admit(0.9)
        await running.until_settled(0.4)
        await run_sync(remake)
        # Until the producer has found the new topic.
        acknowledged = running.acknowledged
        await until(lambda: running.acknowledged > acknowledged + PARTITIONS)
        moments.append(time.monotonic())
        running.admit(1)

    settings = settings_for(cluster)
    # Long enough that some are sent after the client has requested the topic's metadata again.
    load = Load(
        topic=topic,
        records=RECORDS,
        seconds=SECONDS + 8,
        partitions=PARTITIONS,
        admitted=0.25,
    )
    ran = await run_load(settings, load, during=during, driver=driver)
    after = await read_log(cluster.bootstrap_servers, topic)
    read, made, found = moments
    first, second = History(), History()
    gone = 0
    for id_, sent in ran.history.sent.items():
        half = first if sent.at < read else second
        half.add(sent)
        for ended in ran.history.ended[id_]:
            told = ended
            if half is second and ended.at < made and isinstance(ended.outcome, Acknowledged):
                # It was in the old topic until that was deleted. It must not be in the new topic.
                told = Ended(ended.at, Plain("gone with its topic"))
                gone += 1
            half.ended[id_].append(told)
    report = join(
        [
            check(
                half,
                log,
                delivery_timeout=settings.delivery_timeout,
                time_to_exit=ran.time_to_exit,
            )
            for half, log in ((first, before), (second, after))
        ]
    )
    note = "Records that were acknowledged after the last look at the old topic are not counted."
    cell = Cell("cluster", "a topic deleted and created again", anyio_backend, driver, note)
    write_row(Row.of(cell, report, ran.outage))
    assert report.faults == (), str(report)
    assert set(report.failed) <= {
        "RecordRejected, not persisted",
        "DeliveryError, possibly persisted",
    }
    # Their number depends on the time that Kafka takes to create the topic again.
    late = [sent for sent in second.sent.values() if sent.at > found]
    assert late
    assert all(isinstance(second.outcome(sent.id), Acknowledged) for sent in late)
    assert gone > 0


async def test_partitions_are_added(
    anyio_backend: str, driver: DriverName, cluster: KafkaCluster
) -> None:
    """Records are sent to them before the producer, and perhaps the cluster, knows the
    partitions."""
    topic = cluster.create_topic(partitions=PARTITIONS)

    def make(load: Load, number: int) -> Made:
        id_, record = make_record(load, number)
        if number >= load.records / 2:
            record = dataclasses.replace(record, partition=number % (PARTITIONS + 2))
        return id_, record

    async def during(running: Running) -> None:
        await running.until_settled(0.5)
        running.admit(1)
        with running.outage():
            await run_sync(cluster.add_partitions, topic, PARTITIONS + 2)

    settings = settings_for(cluster, unknown_topic_timeout=30.0)
    load = Load(
        topic=topic,
        records=RECORDS,
        seconds=SECONDS,
        partitions=PARTITIONS,
        make=make,
        admitted=0.5,
    )
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell("cluster", "partitions are added", anyio_backend, driver)
    report = await judge(cell, ran, settings, topic)
    assert report.failed == {}
    assert ran.statistics.generations == 1
