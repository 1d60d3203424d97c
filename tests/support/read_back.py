"""Reads sent records back, with a client that shares no code with the producer's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import anyio.to_thread
import confluent_kafka

from anyio_sendproducer import ProducerRecord, RecordMetadata
from tests.support.recorder import PATIENCE

__all__ = ["Read", "assert_written", "read_back", "records_of_every_kind"]

#: A time in the past, which no clock returns.
LONG_AGO_MS = 1_234_567_890_123


class Read(NamedTuple):
    """A record as it was read."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


def read_back(address: str, written: Iterable[RecordMetadata]) -> dict[RecordMetadata, Read]:
    """Read the partitions from their beginning until all of these were seen."""
    missing = {(one.topic, one.partition, one.offset): one for one in written}
    consumer: Any = confluent_kafka.Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "none",
            "enable.auto.commit": False,
            "log_level": 0,
            "fetch.wait.max.ms": 20,
            "check.crcs": True,
        }
    )
    found: dict[RecordMetadata, Read] = {}
    deadline = time.monotonic() + PATIENCE
    try:
        consumer.assign(
            [
                confluent_kafka.TopicPartition(topic, partition, 0)
                for topic, partition in {(topic, partition) for topic, partition, _ in missing}
            ]
        )
        while missing:
            assert time.monotonic() < deadline, missing
            for message in consumer.consume(1_000, 0.1):
                assert message.error() is None, message.error()
                place = (message.topic(), message.partition(), message.offset())
                metadata = missing.pop(place, None)
                if metadata is not None:
                    found[metadata] = Read(
                        message.key(),
                        message.value(),
                        tuple(message.headers() or ()),
                        message.timestamp()[1],
                    )
    finally:
        consumer.close()
    return found


async def assert_written(
    address: str, sent: Sequence[tuple[ProducerRecord[Any, Any], RecordMetadata]]
) -> None:
    """Check that each record is at the position in its metadata, unchanged, and that all positions
    differ."""
    found = await anyio.to_thread.run_sync(read_back, address, [metadata for _, metadata in sent])
    assert len(found) == len(sent)
    for record, metadata in sent:
        read = found[metadata]
        assert metadata.topic == record.topic
        assert (read.key, read.value) == (record.key, record.value)
        assert read.headers == tuple(record.headers)
        assert metadata.timestamp_ms == read.timestamp_ms
        if record.timestamp_ms is not None:
            assert read.timestamp_ms == record.timestamp_ms
        if record.partition is not None:
            assert metadata.partition == record.partition
        key_size = None if record.key is None else len(record.key)
        value_size = None if record.value is None else len(record.value)
        assert (metadata.serialized_key_size, metadata.serialized_value_size) == (
            key_size,
            value_size,
        )


def records_of_every_kind(topic: str, count: int) -> list[ProducerRecord[Any, Any]]:
    chance = random.Random(count)  # the same records each time
    records: list[ProducerRecord[Any, Any]] = []
    for number in range(count):
        key = chance.choice([None, b"", b"key", f"ключ {number % 7}".encode(), bytes(range(256))])
        value = chance.choice([b"", b"v", b"text " * 50, chance.randbytes(chance.randrange(500))])
        records.append(
            ProducerRecord(
                topic,
                None if key is not None and number % 10 == 0 else value,
                key,
                partition=number % 4 if number % 3 == 0 else None,
                timestamp_ms=LONG_AGO_MS + number if number % 2 == 0 else None,
                headers=[
                    ("number", b"%d" % number),
                    *([("ключ", bytes([number % 256, 0])), ("number", b"")] if number % 5 else []),
                ],
            )
        )
    return records
