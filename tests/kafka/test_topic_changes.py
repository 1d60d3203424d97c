"""A topic gets more partitions, or is created again with fewer, while a producer uses it."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers.librdkafka import _outcomes
from tests.support.calls import task_group
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import PATIENCE


async def test_partitions_are_added(driver: DriverName, shared_kafka: KafkaCluster) -> None:
    """A record may be sent to a partition before the client knows it."""
    topic = await run_sync(shared_kafka.create_topic)
    settings = ProducerSettings(bootstrap_servers=shared_kafka.bootstrap_servers)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord(topic, b"v", partition=0))
        async with task_group() as tasks:
            tasks.start_soon(run_sync, shared_kafka.add_partitions, topic, 3)
            sent = [
                await producer.enqueue(ProducerRecord(topic, b"v", partition=partition))
                for partition in (2, 0, 1, 2)
            ]
        assert [(await one.wait()).partition for one in sent] == [2, 0, 1, 2]
        assert await producer.partitions_for(topic) == frozenset({0, 1, 2})


async def test_a_topic_is_created_again_with_fewer_partitions(
    shared_kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await run_sync(shared_kafka.create_topic, None, 4)
    settings = ProducerSettings(bootstrap_servers=shared_kafka.bootstrap_servers)
    records = [ProducerRecord(topic, b"v", b"%d" % number) for number in range(20)]
    # The record counts as sent once, however slow the machine is.
    monkeypatch.setattr(_outcomes, "_LEAST_BACKOFF", PATIENCE)
    async with open_send_producer(settings, driver="confluent") as producer:
        before = await producer.send_many(records)
        assert {one.partition for one in before} == {0, 1, 2, 3}
        await run_sync(shared_kafka.delete_topic, topic)
        await run_sync(shared_kafka.create_topic, topic, 1)
        moved = next(r for r, one in zip(records, before, strict=True) if one.partition == 3)
        # One by one. If a request is in flight when its partition is deleted, librdkafka does not
        # report whether its records are written.
        after = [await producer.send(moved) for _ in range(3)]
        assert [one.partition for one in after] == [0] * 3
        assert [one.offset for one in after] == [0, 1, 2]


def last(_topic: str, _key: bytes | None, partitions: Sequence[int]) -> int:
    return partitions[-1]


async def sent(producer: SendProducer, topic: str) -> RecordMetadata | None:
    """Send a record. Returns: its metadata; None if it failed."""
    try:
        return await producer.send(topic, b"v")
    except DeliveryError:
        return None


async def test_a_partitioner_gets_the_partitions_of_a_topic_that_is_created_again(
    driver: DriverName, shared_kafka: KafkaCluster
) -> None:
    """Records for a deleted partition fail, and the producer goes on."""
    topic = await run_sync(shared_kafka.create_topic, None, 4)
    settings = ProducerSettings(bootstrap_servers=shared_kafka.bootstrap_servers, partitioner=last)
    async with open_send_producer(settings, driver=driver) as producer:
        assert (await producer.send(topic, b"v")).partition == 3
        await run_sync(shared_kafka.delete_topic, topic)
        await run_sync(shared_kafka.create_topic, topic, 1)
        with anyio.fail_after(PATIENCE):
            while (written := await sent(producer, topic)) is None:
                pass
        assert written.partition == 0


async def test_a_partitioner_gets_the_partitions_that_are_added(
    driver: DriverName, shared_kafka: KafkaCluster
) -> None:
    topic = await run_sync(shared_kafka.create_topic)
    settings = ProducerSettings(
        bootstrap_servers=shared_kafka.bootstrap_servers,
        partitioner=last,
        properties={"metadata.max.age.ms": 100},
    )
    async with open_send_producer(settings, driver=driver) as producer:
        assert (await producer.send(topic, b"v")).partition == 0
        await run_sync(shared_kafka.add_partitions, topic, 3)
        with anyio.fail_after(PATIENCE):
            while (await producer.send(topic, b"v")).partition != 2:
                pass
