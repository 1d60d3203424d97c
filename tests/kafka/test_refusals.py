"""A record that a real broker refuses fails alone, and leaves no gap in the sequence numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.kafka_cluster import KafkaCluster
from tests.support.read_back import assert_written
from tests.support.recorder import PATIENCE

AnyRecord = ProducerRecord[Any, Any]
Make = Callable[[str, bytes, int], AnyRecord]

COUNT = 3_000


def good(topic: str, value: bytes, partition: int) -> AnyRecord:
    return ProducerRecord(topic, value, b"key", partition=partition)


def too_large(topic: str, value: bytes, partition: int) -> AnyRecord:
    return ProducerRecord(
        topic, value + random.Random(value).randbytes(3_000), b"key", partition=partition
    )


def keyless(topic: str, value: bytes, partition: int) -> AnyRecord:
    return ProducerRecord(topic, value, partition=partition)


def too_old(topic: str, value: bytes, partition: int) -> AnyRecord:
    return ProducerRecord(topic, value, b"key", partition=partition, timestamp_ms=1_000)


REFUSED = [
    pytest.param(too_large, {"max.message.bytes": 2_000}, id="MESSAGE_TOO_LARGE"),
    pytest.param(keyless, {"cleanup.policy": "compact"}, id="INVALID_RECORD"),
    pytest.param(too_old, {"message.timestamp.before.max.ms": 3_600_000}, id="INVALID_TIMESTAMP"),
]


def is_truly_told(error: DeliveryError, driver: DriverName) -> bool:
    """Whether the refusal is reported correctly. If the answer took longer than librdkafka's retry
    backoff, the driver can't know whether the record was sent again, and reports it as possibly
    persisted."""
    if driver == "confluent" and error.persistence is Persistence.POSSIBLY_PERSISTED:
        return type(error) is DeliveryError
    return isinstance(error, RecordRejected) and error.persistence is Persistence.NOT_PERSISTED


@pytest.mark.parametrize(("bad", "configs"), REFUSED)
@pytest.mark.parametrize("share", [0.001, 0.1], ids=["few", "many"])
@pytest.mark.parametrize(
    "properties",
    [{}, {"compression.type": "lz4"}, {"enable.idempotence": "false"}],
    ids=["plain", "lz4", "not idempotent"],
)
async def test_one_refusal_fails_alone(  # noqa: PLR0917
    shared_kafka: KafkaCluster,
    bad: Make,
    configs: Mapping[str, object],
    share: float,
    properties: Mapping[str, object],
    driver: DriverName,
) -> None:
    """Other records of its batch, partition or client are delivered in order.

    With librdkafka a whole batch is refused. The client goes on with the next batches, so a retry
    would put the batch's other records behind them. So all records of the batch fail.
    """
    topic = shared_kafka.create_topic(partitions=3, configs=configs)
    settings = ProducerSettings(
        bootstrap_servers=shared_kafka.bootstrap_servers,
        properties=properties,
    )
    drawn = random.Random(share)
    makers = [bad if drawn.random() < share else good for _ in range(COUNT)]
    makers[COUNT // 2] = bad
    records = [make(topic, b"%d" % number, number % 3) for number, make in enumerate(makers)]
    sent: list[tuple[AnyRecord, RecordMetadata]] = []
    failed: list[DeliveryError] = []
    with anyio.fail_after(PATIENCE * 3):
        async with open_send_producer(settings, driver=driver) as producer:
            deliveries = [await producer.enqueue(record) for record in records]
            for make, delivery in zip(makers, deliveries, strict=True):
                if make is bad:
                    with pytest.raises(DeliveryError) as caught:
                        await delivery.wait()
                    assert is_truly_told(caught.value, driver)
                else:
                    try:
                        sent.append((delivery.record, await delivery.wait()))
                    except DeliveryError as error:
                        failed.append(error)
            assert failed == [] or driver == "confluent"
            # The broker accepts the next records: no sequence number is missing or out of order.
            for number in range(30):
                after = good(topic, b"after %d" % number, number % 3)
                sent.append((after, await producer.send(after)))
            statistics = producer.statistics()
    assert statistics.generations == 1
    assert statistics.delivered == len(sent)
    await assert_written(settings.addresses[0], sent)
    for partition in range(3):
        offsets = [found.offset for _, found in sent if found.partition == partition]
        if "enable.idempotence" in properties:  # batches in flight change their order
            offsets.sort(key=lambda offset: offset or 0)
        assert offsets == list(range(len(offsets)))


@pytest.mark.parametrize(("bad", "configs"), REFUSED)
async def test_a_refused_topic_holds_up_no_other(
    shared_kafka: KafkaCluster,
    bad: Make,
    configs: Mapping[str, object],
    driver: DriverName,
) -> None:
    """Every record of one topic is refused, among records for another topic."""
    picky = shared_kafka.create_topic(configs=configs)
    other = shared_kafka.create_topic()
    settings = ProducerSettings(bootstrap_servers=shared_kafka.bootstrap_servers)
    sent: list[tuple[AnyRecord, RecordMetadata]] = []
    with anyio.fail_after(PATIENCE * 3):
        async with (
            open_send_producer(settings, driver=driver) as producer,
            anyio.create_task_group() as tasks,
        ):

            async def refused(number: int) -> None:
                for turn in range(10):
                    with pytest.raises(DeliveryError) as caught:
                        await producer.send(bad(picky, b"%d/%d" % (number, turn), 0))
                    assert is_truly_told(caught.value, driver)

            async def delivered(number: int) -> None:
                for turn in range(10):
                    record = good(other, b"%d/%d" % (number, turn), 0)
                    sent.append((record, await producer.send(record)))

            for number in range(20):
                tasks.start_soon(refused, number)
                tasks.start_soon(delivered, number)
        statistics = producer.statistics()
    assert (statistics.delivered, statistics.failed, statistics.generations) == (200, 200, 1)
    await assert_written(settings.addresses[0], sent)
