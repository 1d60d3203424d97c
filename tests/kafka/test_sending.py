"""Every record sent to Apache Kafka arrives, on one broker and on three."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    PassThroughMessage,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.calls import sure_of_refusals
from tests.support.kafka_cluster import KafkaCluster
from tests.support.read_back import assert_written, read_back, records_of_every_kind
from tests.support.recorder import PATIENCE

AnyRecord = ProducerRecord[Any, Any]

MEGABYTE = 1024 * 1024


@pytest.fixture(params=["shared_kafka", "three_brokers"], ids=["one", "three"])
def cluster(request: pytest.FixtureRequest) -> KafkaCluster:
    """One broker, or three with every partition on each of them."""
    found: KafkaCluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def topic(cluster: KafkaCluster) -> str:
    """A topic with four partitions. Acknowledged records are on two brokers if there are
    several."""
    in_sync = min(2, len(cluster.brokers))
    return cluster.create_topic(partitions=4, configs={"min.insync.replicas": in_sync})


@pytest.fixture
def settings(cluster: KafkaCluster) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=cluster.bootstrap_servers, close_timeout=PATIENCE)


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_a_thousand_tasks_at_once(
    settings: ProducerSettings,
    topic: str,
    compression: str,
    driver: DriverName,
) -> None:
    """Records with and without keys and headers, and tombstones."""
    settings = settings.with_property("compression.type", compression)
    sent: list[tuple[AnyRecord, RecordMetadata]] = []

    async def send_one(producer: SendProducer, record: AnyRecord) -> None:
        sent.append((record, await producer.send(record)))

    async with (
        open_send_producer(settings, driver=driver) as producer,
        anyio.create_task_group() as tasks,
    ):
        for record in records_of_every_kind(topic, 1_000):
            tasks.start_soon(send_one, producer, record)
    statistics = producer.statistics()
    assert (statistics.delivered, statistics.failed, statistics.generations) == (1_000, 0, 1)
    assert sum(record.value is None for record, _ in sent) > 10
    await assert_written(settings.addresses[0], sent)
    # No gap and no duplicate.
    offsets: dict[int, list[int]] = {}
    for _, metadata in sent:
        assert metadata.offset is not None
        offsets.setdefault(metadata.partition, []).append(metadata.offset)
    assert set(offsets) == {0, 1, 2, 3}
    for found in offsets.values():
        assert sorted(found) == list(range(len(found)))


async def test_every_way_to_send(
    settings: ProducerSettings, topic: str, driver: DriverName
) -> None:
    sent: list[tuple[AnyRecord, RecordMetadata]] = []
    pass_through = object()

    def record(text: str) -> AnyRecord:
        return ProducerRecord(topic, text.encode(), b"one key", headers=[("way", text.encode())])

    async with open_send_producer(settings, driver=driver) as producer:
        assert await producer.partitions_for(topic) == frozenset(range(4))
        one = record("send")
        sent.append((one, await producer.send(one)))
        result = await producer.send_envelope(Message(record("message"), pass_through))
        assert result.pass_through is pass_through
        sent.append((result.record, result.metadata))
        many = await producer.send_envelope(
            MultiMessage([record("multi 1"), record("multi 2")], pass_through)
        )
        assert many.pass_through is pass_through
        sent += [(part.record, part.metadata) for part in many.parts]
        nothing = await producer.send_envelope(PassThroughMessage(pass_through))
        assert nothing.pass_through is pass_through
        records = [record(f"many {number}") for number in range(3)]
        sent += zip(records, await producer.send_many(records), strict=True)
        deliveries = [await producer.enqueue(record("enqueue"))]
        deliveries.append(producer.enqueue_nowait(record("enqueue_nowait")))
        await producer.flush()
        assert all(delivery.done for delivery in deliveries)
        sent += [(delivery.record, await delivery.wait()) for delivery in deliveries]
        tombstone: AnyRecord = ProducerRecord(topic, None, b"one key")
        sent.append((tombstone, await producer.send(tombstone)))
    # All have the same key, so they are in one partition, in the order of sending.
    assert [metadata.offset for _, metadata in sent] == list(range(10))
    await assert_written(settings.addresses[0], sent)


@pytest.mark.parametrize("acks", [0, 1, "all"])
async def test_acks(
    settings: ProducerSettings, topic: str, acks: object, driver: DriverName
) -> None:
    settings = settings.with_property("acks", acks)
    records = [ProducerRecord(topic, b"%d" % number, partition=1) for number in range(50)]
    async with open_send_producer(settings, driver=driver) as producer:
        given = await producer.send_many(records)
    if acks == 0:
        # The broker does not report their offsets.
        assert {(one.partition, one.offset, one.timestamp_ms) for one in given} == {(1, None, None)}
    else:
        assert [one.offset for one in given] == list(range(50))
        await assert_written(settings.addresses[0], list(zip(records, given, strict=True)))


async def test_with_acks_0_a_clean_close_sends_every_accepted_record(
    settings: ProducerSettings, topic: str, driver: DriverName
) -> None:
    """Accepted records are sent before the block ends, also if they are more than a socket accepts
    at once. The broker does not confirm that they arrived."""
    settings = settings.with_property("acks", 0)
    values = [b"%d " % number + bytes(900_000) for number in range(10)]
    for value in values:  # a client for each record, which is closed right after it
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord(topic, value, partition=1))
    # The broker does not report their offsets, but the topic has no other records.
    places = [RecordMetadata(topic, 1, place, None, None, None) for place in range(len(values))]
    found = await anyio.to_thread.run_sync(read_back, settings.addresses[0], places)
    assert sorted(cast("bytes", read.value) for read in found.values()) == values


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_records_of_a_megabyte(
    cluster: KafkaCluster,
    settings: ProducerSettings,
    compression: str,
    driver: DriverName,
) -> None:
    topic = cluster.create_topic(partitions=4, configs={"max.message.bytes": 2 * MEGABYTE})
    settings = settings.with_properties(
        {"compression.type": compression, "max.request.size": 2 * MEGABYTE}
    ).with_max_buffered_bytes(4 * MEGABYTE)  # less than twelve records
    chance = random.Random(1)  # the same values each time
    records = [
        ProducerRecord(topic, chance.randbytes(MEGABYTE), partition=number % 4)
        for number in range(12)
    ]
    async with open_send_producer(settings, driver=driver) as producer:
        given = await producer.send_many(records)
        assert producer.statistics().generations == 1
    await assert_written(settings.addresses[0], list(zip(records, given, strict=True)))


# --- refused records -----------------------------------------------------------------------------


def too_large_for_the_client(topic: str) -> AnyRecord:
    return ProducerRecord(topic, bytes(10_000), partition=0)


def no_such_topic(_: str) -> AnyRecord:
    return ProducerRecord(f"missing-{uuid.uuid4().hex}", b"value")


def no_such_partition(topic: str) -> AnyRecord:
    return ProducerRecord(topic, b"value", partition=4)


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        (
            too_large_for_the_client,
            {"kafka-python": "max_request_size", "confluent": "max.request.size"},
        ),
        (
            no_such_topic,
            {
                "kafka-python": r"does not know topic 'missing-\w+'",
                "confluent": r"does not know topic 'missing-\w+'",
            },
        ),
        (
            no_such_partition,
            # librdkafka does not report the number of partitions.
            {"kafka-python": r"has no partition 4; it has 4", "confluent": r"has no partition 4"},
        ),
    ],
    ids=["too large", "topic", "partition"],
)
async def test_a_bad_record_is_refused_alone(
    settings: ProducerSettings,
    topic: str,
    make: Callable[[str], AnyRecord],
    messages: dict[str, str],
    driver: DriverName,
) -> None:
    settings = settings.with_property("max.request.size", 5_000).with_unknown_topic_timeout(0.5)
    good = [ProducerRecord(topic, b"%d" % number, partition=0) for number in range(4)]
    bad = make(topic)
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(RecordRejected, match=messages[driver]) as alone:
            await producer.send(bad)
        assert alone.value.record is bad
        assert alone.value.persistence is Persistence.NOT_PERSISTED
        sent = [(good[0], await producer.send(good[0]))]
        with pytest.raises(MultiDeliveryError) as among_others:
            await producer.send_envelope(MultiMessage([good[1], bad, good[2]], "kept"))
        assert among_others.value.pass_through == "kept"
        first, rejected, last = among_others.value.parts
        assert isinstance(rejected, RecordRejected)
        for part in (first, last):
            assert not isinstance(part, DeliveryError)
            sent.append((part.record, part.metadata))
        sent.append((good[3], await producer.send(good[3])))
        assert producer.statistics().generations == 1
    assert [metadata.offset for _, metadata in sent] == [0, 1, 2, 3]
    await assert_written(settings.addresses[0], sent)


async def test_a_record_that_the_broker_finds_too_large_is_refused_alone(
    cluster: KafkaCluster,
    settings: ProducerSettings,
    topic: str,
    driver: DriverName,
) -> None:
    """The client accepts it, and the broker's error breaks an idempotent client."""
    small = cluster.create_topic(configs={"max.message.bytes": 5_000})
    good = [ProducerRecord(topic, b"%d" % number, partition=0) for number in range(3)]
    bad = ProducerRecord(small, bytes(10_000), partition=0)
    settings = sure_of_refusals(settings, driver)
    async with open_send_producer(settings, driver=driver) as producer:
        sent = [(good[0], await producer.send(good[0]))]
        with pytest.raises(RecordRejected) as alone:
            await producer.send(bad)
        assert alone.value.record is bad
        assert alone.value.persistence is Persistence.NOT_PERSISTED
        sent += [(record, await producer.send(record)) for record in good[1:]]
        fits = ProducerRecord(small, bytes(1_000), partition=0)
        sent_there = (fits, await producer.send(fits))
        assert sent_there[1].offset == 0
    assert [metadata.offset for _, metadata in sent] == [0, 1, 2]
    await assert_written(settings.addresses[0], [*sent, sent_there])
