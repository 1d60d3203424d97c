"""Every record arrives unchanged, as read back by a client with other code."""

from __future__ import annotations

import enum
import random
import uuid
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    PassThroughMessage,
    Persistence,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import mock_cluster
from tests.support.brief import on_either_loop
from tests.support.clock import ManualClock, run_while_the_clock_stands_still
from tests.support.mock_cluster import FOR_MOCK
from tests.support.read_back import assert_written, read_back, records_of_every_kind
from tests.support.recorder import PATIENCE


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex}"


@pytest.fixture
def settings(shared_broker: str) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=shared_broker, close_timeout=PATIENCE)


@on_either_loop
@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_a_thousand_tasks_at_once(
    driver: DriverName, settings: ProducerSettings, topic: str, compression: str
) -> None:
    settings = settings.with_property("compression.type", compression)
    in_order: list[ProducerRecord[Any, Any]] = []
    written: dict[int, RecordMetadata] = {}

    async def send_one(producer: SendProducer, record: ProducerRecord[Any, Any]) -> None:
        in_order.append(record)
        written[id(record)] = await producer.send(record)

    async with (
        open_send_producer(settings, driver=driver) as producer,
        anyio.create_task_group() as tasks,
    ):
        for record in records_of_every_kind(topic, 1_000):
            tasks.start_soon(send_one, producer, record)
    statistics = producer.statistics()
    assert (statistics.delivered, statistics.failed, statistics.generations) == (1_000, 0, 1)
    # A switch between loop and thread takes a batch, not a record.
    assert statistics.hand_overs < 100
    sent = [(record, written[id(record)]) for record in in_order]
    await assert_written(str(settings.bootstrap_servers), sent)
    # The records are on their partitions in the order of sending, from the first on.
    offsets: dict[int, list[int | None]] = {}
    partition_of: dict[bytes, int] = {}
    for record, metadata in sent:
        offsets.setdefault(metadata.partition, []).append(metadata.offset)
        if record.key is not None and record.partition is None:
            assert partition_of.setdefault(record.key, metadata.partition) == metadata.partition
    for found in offsets.values():
        assert found == list(range(len(found)))


@pytest.mark.parametrize("acks", [1, "all"])
async def test_acks(
    driver: DriverName, settings: ProducerSettings, topic: str, acks: object
) -> None:
    settings = settings.with_property("acks", acks)
    records = [ProducerRecord(topic, b"%d" % number, partition=1) for number in range(50)]
    async with open_send_producer(settings, driver=driver) as producer:
        given = await producer.send_many(records)
    assert [one.offset for one in given] == list(range(50))
    await assert_written(settings.addresses[0], list(zip(records, given, strict=True)))


class Topics(str, enum.Enum):
    ORDERS = "topic-of-an-enum"


async def test_a_topic_that_is_a_member_of_an_enum(
    driver: DriverName, settings: ProducerSettings
) -> None:
    async with open_send_producer(settings, driver=driver) as producer:
        given = await producer.send(ProducerRecord(Topics.ORDERS, b"value", partition=1))
        plain = await producer.send(ProducerRecord("topic-of-an-enum", b"value", partition=1))
    assert given.offset is not None
    assert plain.offset == given.offset + 1
    assert type(given.topic) is str


async def test_a_record_arrives_without_an_acknowledgement(driver: DriverName, topic: str) -> None:
    """On another broker, because the embedded one loses some requests without an answer.

    The mock cluster answers nevertheless. kafka-python then closes the connection, and may lose the
    next request. So there is one record; ``tests/kafka`` sends more.
    """
    with mock_cluster(1) as cluster:
        settings = ProducerSettings(
            bootstrap_servers=cluster.bootstrap_servers,
            properties={"acks": 0, **(FOR_MOCK if driver == "kafka-python" else {})},
        )
        async with open_send_producer(settings, driver=driver) as producer:
            given = await producer.send(ProducerRecord(topic, b"value", partition=1))
        # The broker does not report the offset. The producer only knows that the record was sent.
        assert given == RecordMetadata(topic, 1, None, None, None, len(b"value"))
        place = RecordMetadata(topic, 1, 0, None, None, None)
        found = await anyio.to_thread.run_sync(read_back, cluster.bootstrap_servers, [place])
        assert found[place].value == b"value"


async def test_every_way_to_send(
    driver: DriverName, settings: ProducerSettings, topic: str
) -> None:
    sent: list[tuple[ProducerRecord[Any, Any], RecordMetadata]] = []
    pass_through = object()

    def record(text: str) -> ProducerRecord[bytes, bytes]:
        return ProducerRecord(topic, text.encode(), b"one key")

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

        accepted = producer.statistics().accepted
        nothing = await producer.send_envelope(PassThroughMessage(pass_through))
        assert nothing.pass_through is pass_through
        assert producer.statistics().accepted == accepted

        records = [record(f"many {number}") for number in range(3)]
        sent += list(zip(records, await producer.send_many(records), strict=True))

        deliveries = [await producer.enqueue(record("enqueue"))]
        deliveries.append(producer.enqueue_nowait(record("enqueue_nowait")))
        await producer.flush()
        assert all(delivery.done for delivery in deliveries)
        deliveries.append(await producer.enqueue(record("enqueued before aclose")))
        await producer.aclose()
        assert deliveries[-1].done
        sent += [(delivery.record, await delivery.wait()) for delivery in deliveries]

        with pytest.raises(ProducerClosed):
            await producer.send(record("too late"))
        assert (await producer.send_envelope(PassThroughMessage("still"))).pass_through == "still"
        await producer.aclose()

    # All have the same key, so they are in one partition, in the order of sending.
    assert [metadata.offset for _, metadata in sent] == list(range(10))
    await assert_written(str(settings.bootstrap_servers), sent)


async def test_order_of_each_key_over_many_tasks(
    driver: DriverName, settings: ProducerSettings, topic: str
) -> None:
    """Each of fifty tasks has its own key, and sends without waiting for outcomes. The room is so
    small that most of the records have to wait for it."""
    settings = settings.with_max_in_flight(64)
    sent: dict[bytes, list[tuple[ProducerRecord[Any, Any], RecordMetadata]]] = {}

    async def send_some(producer: SendProducer, key: bytes) -> None:
        deliveries = [
            await producer.enqueue(ProducerRecord(topic, b"%d" % number, key))
            for number in range(40)
        ]
        sent[key] = [(delivery.record, await delivery.wait()) for delivery in deliveries]

    async with (
        open_send_producer(settings, driver=driver) as producer,
        anyio.create_task_group() as tasks,
    ):
        for number in range(50):
            tasks.start_soon(send_some, producer, b"key %d" % number)
    for pairs in sent.values():
        assert len({metadata.partition for _, metadata in pairs}) == 1
        offsets = [metadata.offset or 0 for _, metadata in pairs]
        assert sorted(set(offsets)) == offsets
    everything = [pair for pairs in sent.values() for pair in pairs]
    assert len(everything) == 2_000
    await assert_written(str(settings.bootstrap_servers), everything)


@on_either_loop
@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_records_of_a_megabyte(
    driver: DriverName, settings: ProducerSettings, topic: str, compression: str
) -> None:
    settings = settings.with_properties(
        {"compression.type": compression, "max.request.size": 2 * 1024 * 1024}
    )
    # There is room for less than twelve records.
    settings = settings.with_max_buffered_bytes(4 * 1024 * 1024)
    chance = random.Random(1)  # the same values each time
    records = [
        ProducerRecord(topic, chance.randbytes(1024 * 1024), partition=number % 4)
        for number in range(12)
    ]
    async with open_send_producer(settings, driver=driver) as producer:
        given = await producer.send_many(records)
    await assert_written(str(settings.bootstrap_servers), list(zip(records, given, strict=True)))


async def test_serialized_records_arrive_as_their_bytes(
    driver: DriverName, settings: ProducerSettings, topic: str
) -> None:
    class Described:
        def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: object) -> bytes:
            headers.append(("type", type(data).__name__.encode()))
            return repr(data).encode()

    settings = settings.with_key_serializer(str.encode).with_value_serializer(Described())
    record = ProducerRecord(topic, {"a": 1}, "ключ", headers=[("own", b"1")])
    async with open_send_producer(settings, driver=driver) as producer:
        metadata = await producer.send(record)
        tombstone = await producer.send(ProducerRecord(topic, None, "ключ"))
    found = await anyio.to_thread.run_sync(
        read_back, str(settings.bootstrap_servers), [metadata, tombstone]
    )
    assert found[metadata][:3] == (
        "ключ".encode(),
        b"{'a': 1}",
        (("own", b"1"), ("type", b"dict")),
    )
    assert found[tombstone][:3] == ("ключ".encode(), None, ())


# --- bad input: each its own clear error, and the producer works on ------------------------------


def no_such_topic(_: str) -> ProducerRecord[Any, Any]:
    return ProducerRecord(f"missing-{uuid.uuid4().hex}", b"value")


def no_such_partition(topic: str) -> ProducerRecord[Any, Any]:
    return ProducerRecord(topic, b"value", partition=99)


def too_large(topic: str) -> ProducerRecord[Any, Any]:
    return ProducerRecord(topic, bytes(10_000))


def larger_than_all_room(topic: str) -> ProducerRecord[Any, Any]:
    return ProducerRecord(topic, bytes(200_000))


@on_either_loop
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_such_topic, r"does not know topic 'missing-\w+'.*unknown_topic_timeout"),
        (no_such_partition, r"topic '.*' has no partition 99"),
        (too_large, r"max[._]request[._]size"),
        (larger_than_all_room, "max_buffered_bytes is 100000"),
    ],
)
async def test_bad_input_is_rejected_and_the_producer_works_on(
    driver: DriverName,
    settings: ProducerSettings,
    topic: str,
    make: Callable[[str], ProducerRecord[Any, Any]],
    message: str,
) -> None:
    async with open_send_producer(settings, driver=driver) as creating:
        await creating.send(ProducerRecord(topic, b"0", partition=0))
    settings = settings.with_properties(
        {"allow.auto.create.topics": False, "max.request.size": 5_000}
    ).evolve(unknown_topic_timeout=0.2, max_buffered_bytes=100_000)
    good = [ProducerRecord(topic, b"%d" % number, partition=0) for number in (1, 2, 3, 4)]
    bad = make(topic)
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(RecordRejected, match=message) as alone:
            await producer.send(bad)
        assert alone.value.record is bad
        assert alone.value.persistence is Persistence.NOT_PERSISTED
        if make is no_such_partition and driver == "kafka-python":
            assert "it has 4" in str(alone.value)

        sent = [(good[0], await producer.send(good[0]))]

        with pytest.raises(MultiDeliveryError) as among_others:
            await producer.send_envelope(MultiMessage([good[1], bad, good[2]], "kept"))
        assert among_others.value.pass_through == "kept"
        first, rejected, last = among_others.value.parts
        assert isinstance(rejected, RecordRejected)
        assert rejected.record is bad
        for part in (first, last):
            assert not isinstance(part, DeliveryError)
            sent.append((part.record, part.metadata))

        sent.append((good[3], await producer.send(good[3])))
        assert producer.statistics().generations == 1
    assert [metadata.offset for _, metadata in sent] == [1, 2, 3, 4]
    await assert_written(str(settings.bootstrap_servers), sent)


@on_either_loop
async def test_a_missing_topic_delays_only_its_own_records(
    driver: DriverName, settings: ProducerSettings, clock: ManualClock, topic: str
) -> None:
    async with clock.open(settings, driver=driver) as creating:
        await creating.send(ProducerRecord(topic, b"0"))
    settings = settings.with_property("allow.auto.create.topics", "false")
    missing = no_such_topic(topic)
    # It is not rejected before the others were sent, however long they take.
    settings = settings.with_unknown_topic_timeout(PATIENCE)
    async with clock.open(settings, driver=driver) as producer:
        held = await producer.enqueue(missing)
        await anyio.wait_all_tasks_blocked()
        for number in range(5):
            await producer.send(ProducerRecord(topic, b"%d" % number))
        assert not held.done
        clock.advance(settings.delivery_timeout)
        with pytest.raises(DeliveryTimeout):
            await held.wait()
    # It is rejected with the reason in the end.
    settings = settings.with_unknown_topic_timeout(0.2)
    async with clock.open(settings, driver=driver) as producer:
        with pytest.raises(RecordRejected):
            await producer.send(missing)


def test_a_clock_that_stands_still_delays_no_record(
    driver: DriverName, settings: ProducerSettings, topic: str
) -> None:
    """With Trio's MockClock a producer starts, sends and closes in real time."""

    async def main() -> None:
        async with open_send_producer(settings, driver=driver) as producer:
            assert await producer.partitions_for(topic)
            await producer.send(ProducerRecord(topic, b"value"))
            await producer.enqueue(ProducerRecord(topic, b"value"))
            await producer.flush()

    run_while_the_clock_stands_still(main)
