"""kafka-python's traps on Apache Kafka: the behaviour of the bare client, and of ours.

``docs/explanation/traps-of-kafka-python.md`` lists them. If the bare client avoids a trap here, its
test says so: the embedded broker and the mock cluster are less tolerant than Kafka 4 in some ways.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    open_send_producer,
)
from tests.support.bare import NEVER, bare, hurry, leaking_sockets, settles
from tests.support.calls import outcome_of
from tests.support.clock import ManualClock
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_security import ACLS, sasl_listener
from tests.support.recorder import PATIENCE
from tests.support.waiting import blocking_until, until

# kafka-python has no types, so every name imported from it is Any.
kafka: Any = importlib.import_module("kafka")
kafka_errors: Any = importlib.import_module("kafka.errors")

#: How Bob logs in.
BOB = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "bob",
    "sasl_plain_password": "secret",
}

#: Settings that send the records of one step as one batch.
ONE_BATCH = {"linger_ms": 300, "batch_size": 100_000}

#: The brokers' message for the other records of a batch with a refused record.
IN_A_BAD_BATCH = "part of a batch"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """A broker that checks Bob's permissions."""
    with kafka_cluster(
        listeners=[sasl_listener("SASL", ["PLAIN"], users={"bob": "secret"})],
        # How often it removes expired producers; see forget_producers().
        properties={**ACLS, "producer.id.expiration.check.interval.ms": 200},
    ) as running:
        yield running


@pytest.fixture
def topic(cluster: KafkaCluster) -> str:
    return cluster.create_topic()


@pytest.fixture
def small(cluster: KafkaCluster) -> str:
    """A topic that accepts only small batches."""
    return cluster.create_topic(configs={"max.message.bytes": 3_000})


def settings_for(cluster: KafkaCluster, **changes: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=cluster.bootstrap_servers).evolve(**changes)


def futures_of(producer: Any, topic: str, values: Sequence[bytes], **options: Any) -> list[Any]:
    """Send records with a bare client, and return their futures when all are complete."""
    producer.partitions_for(topic)
    futures = [producer.send(topic, value, **options) for value in values]
    assert all(settles(future) for future in futures)
    return futures


def offsets(outcomes: Sequence[object]) -> list[int | None]:
    """The offsets of the written records."""
    return [one.offset for one in outcomes if isinstance(one, RecordMetadata)]


async def outcomes_of(
    producer: SendProducer, records: Sequence[ProducerRecord[Any, Any]]
) -> list[RecordMetadata | DeliveryError]:
    """Send records in one step, and return their outcomes."""
    await producer.partitions_for(records[0].topic)
    outcomes: list[RecordMetadata | DeliveryError] = []
    for delivery in [producer.enqueue_nowait(record) for record in records]:
        try:
            outcomes.append(await delivery.wait())
        except DeliveryError as error:
            outcomes.append(error)
    return outcomes


def end_of(cluster: KafkaCluster, topic: str) -> int:
    """The end offset of partition 0."""
    consumer = kafka.KafkaConsumer(bootstrap_servers=cluster.bootstrap_servers)
    try:
        at = kafka.TopicPartition(topic, 0)
        return int(consumer.end_offsets([at])[at])
    finally:
        consumer.close()


# --- MESSAGE_TOO_LARGE ---------------------------------------------------------------------------

#: Ten records, each of which fits into a batch, but not all into one batch.
MANY = [bytes([number]) * 900 for number in range(10)]

#: A record that is too large even alone.
WITH_ONE_TOO_LARGE = [bytes(number) for number in (10, 20, 5_000, 30, 40)]


def test_bare_a_batch_that_is_too_large_is_split(cluster: KafkaCluster, small: str) -> None:
    """Not a trap: each record has its true offset, in order."""
    with bare(cluster.bootstrap_servers, **ONE_BATCH) as producer:
        futures = futures_of(producer, small, MANY)
        assert [future.value.offset for future in futures] == list(range(10))


async def test_a_batch_that_is_too_large_is_split(cluster: KafkaCluster, small: str) -> None:
    async with open_send_producer(settings_for(cluster, properties=ONE_BATCH)) as producer:
        records = [ProducerRecord(small, value) for value in MANY]
        assert offsets(await outcomes_of(producer, records)) == list(range(10))
        assert producer.statistics().generations == 1


def test_bare_one_record_that_is_too_large_ends_the_client(
    cluster: KafkaCluster, small: str, topic: str
) -> None:
    """The batch is split until the record is alone. The records before it are written by then."""
    with bare(cluster.bootstrap_servers, **ONE_BATCH) as producer:
        futures = futures_of(producer, small, WITH_ONE_TOO_LARGE)
        assert [future.value.offset for future in futures[:2]] == [0, 1]
        error = futures[2].exception
        assert isinstance(error, kafka_errors.MessageSizeTooLargeError)
        assert [future.exception is error for future in futures[3:]] == [True, True]
        [later] = futures_of(producer, topic, [b"on another topic"])
        assert later.exception is error


async def test_one_record_that_is_too_large_fails_alone(
    cluster: KafkaCluster, small: str, topic: str
) -> None:
    async with open_send_producer(settings_for(cluster, properties=ONE_BATCH)) as producer:
        records = [ProducerRecord(small, value) for value in WITH_ONE_TOO_LARGE]
        outcomes = await outcomes_of(producer, records)
        assert offsets(outcomes) == [0, 1, 2, 3]
        refused = outcomes[2]
        assert isinstance(refused, RecordRejected)
        assert refused.persistence is Persistence.NOT_PERSISTED
        for other in (topic, small):
            assert isinstance(await outcome_of(producer, other), RecordMetadata)
        assert producer.statistics().generations == 1
    assert await anyio.to_thread.run_sync(end_of, cluster, small) == 5


# --- records that the broker validates -----------------------------------------------------------


@pytest.fixture(params=["INVALID_RECORD", "INVALID_TIMESTAMP"])
def strict_topic(request: pytest.FixtureRequest, cluster: KafkaCluster) -> str:
    """A topic that refuses records without a key, or from the future."""
    if request.param == "INVALID_RECORD":
        return cluster.create_topic(configs={"cleanup.policy": "compact"})
    return cluster.create_topic(configs={"message.timestamp.after.max.ms": 1_000})


def with_a_bad_one(topic: str) -> list[ProducerRecord[Any, Any]]:
    """Make three records. The one in the middle has no key and is from the future."""
    future = int(time.time() * 1000) + 3_600_000
    return [
        ProducerRecord(topic, b"before", b"key"),
        ProducerRecord(topic, b"bad", partition=0, timestamp_ms=future),
        ProducerRecord(topic, b"behind", b"key"),
    ]


def test_bare_one_bad_record_fails_its_batch_and_ends_the_client(
    cluster: KafkaCluster, strict_topic: str, topic: str
) -> None:
    with bare(cluster.bootstrap_servers, **ONE_BATCH) as producer:
        producer.partitions_for(strict_topic)
        before, bad, behind = (
            producer.send(record.topic, record.value, record.key, timestamp_ms=record.timestamp_ms)
            for record in with_a_bad_one(strict_topic)
        )
        assert all(settles(future) for future in (before, bad, behind))
        refused = (kafka_errors.InvalidRecordError, kafka_errors.InvalidTimestampError)
        assert isinstance(bad.exception, refused)
        for innocent in (before, behind):
            assert type(innocent.exception) is kafka_errors.KafkaError
            assert IN_A_BAD_BATCH in str(innocent.exception)
        [later] = futures_of(producer, topic, [b"on another topic"])
        assert type(later.exception) is type(bad.exception)


async def test_one_bad_record_fails_alone(
    cluster: KafkaCluster, strict_topic: str, topic: str
) -> None:
    async with open_send_producer(settings_for(cluster, properties=ONE_BATCH)) as producer:
        before, bad, behind = await outcomes_of(producer, with_a_bad_one(strict_topic))
        assert isinstance(bad, RecordRejected)
        assert bad.persistence is Persistence.NOT_PERSISTED
        assert offsets([before, behind]) == [0, 1]
        assert isinstance(await outcome_of(producer, topic), RecordMetadata)
        assert producer.statistics().generations == 1
    assert await anyio.to_thread.run_sync(end_of, cluster, strict_topic) == 2


@pytest.fixture
def forbidden(cluster: KafkaCluster, topic: str) -> str:
    """A topic that Bob may describe but not write to, and one that he may write to."""
    seen = cluster.create_topic()
    cluster.add_acl("User:bob", "describe", seen)
    cluster.add_acl("User:bob", "write", topic)
    return seen


def test_bare_one_forbidden_topic_ends_the_client(
    cluster: KafkaCluster, forbidden: str, topic: str
) -> None:
    with bare(cluster.bootstrap("SASL"), **BOB) as producer:
        [allowed] = futures_of(producer, topic, [b"value"])
        assert allowed.value.offset == 0
        [refused] = futures_of(producer, forbidden, [b"value"])
        assert isinstance(refused.exception, kafka_errors.TopicAuthorizationFailedError)
        [later] = futures_of(producer, topic, [b"on the topic that is his"])
        assert later.exception is refused.exception


async def test_one_forbidden_topic_does_not_affect_others(
    cluster: KafkaCluster, forbidden: str, topic: str
) -> None:
    settings = ProducerSettings(bootstrap_servers=cluster.bootstrap("SASL"), properties=BOB)
    async with open_send_producer(settings) as producer:
        assert isinstance(await outcome_of(producer, topic), RecordMetadata)
        assert isinstance(await outcome_of(producer, forbidden), RecordRejected)
        assert isinstance(await outcome_of(producer, topic), RecordMetadata)


# --- retries until the delivery timeout ----------------------------------------------------------


@pytest.fixture
def too_few(three_brokers: KafkaCluster) -> tuple[str, str]:
    """A topic with one replica less than it needs (NOT_ENOUGH_REPLICAS), and one with enough."""
    lacking = three_brokers.create_topic(replicas=[[1, 2, 3]], configs={"min.insync.replicas": 3})
    enough = three_brokers.create_topic(replicas=[[1, 2]])
    three_brokers.stop(3)
    return lacking, enough


def test_bare_after_a_batch_expires_during_its_retries_nothing_is_sent(
    three_brokers: KafkaCluster, too_few: tuple[str, str]
) -> None:
    lacking, enough = too_few
    with (
        leaking_sockets(),
        bare(three_brokers.bootstrap_servers, request_timeout_ms=900) as producer,
    ):
        for topic in (enough, lacking):
            producer.partitions_for(topic)
        futures_of(producer, enough, [b"value"])
        # The retry backoff is longer than this test, so that no answer is in flight when the batch
        # expires.
        producer._accumulator.config["retry_backoff_ms"] = 600_000
        expired = producer.send(lacking, b"value")
        batches = producer._accumulator._batches
        blocking_until(
            lambda: any(one.in_retry() for line in [*batches.values()] for one in [*line])
        )
        hurry(producer, 1)
        producer._sender.wakeup()
        assert settles(expired)
        assert isinstance(expired.exception, kafka_errors.KafkaTimeoutError)
        hurry(producer, 1_000)
        # Later than delivery_timeout_ms allows.
        assert not settles(producer.send(enough, b"value"), 1 + NEVER)


async def test_a_record_that_expires_during_its_retries_fails_alone(
    three_brokers: KafkaCluster, too_few: tuple[str, str], clock: ManualClock
) -> None:
    lacking, enough = too_few
    settings = settings_for(three_brokers, close_timeout=PATIENCE)
    async with clock.open(settings) as producer:
        assert isinstance(await outcome_of(producer, enough), RecordMetadata)
        await producer.partitions_for(lacking)
        delivery = await producer.enqueue(ProducerRecord(lacking, b"value", partition=0))
        await until(lambda: producer.statistics().queued == 0)
        await anyio.sleep(NEVER)
        clock.advance(settings.delivery_timeout)
        with pytest.raises(DeliveryTimeout) as expired:
            await delivery.wait()
        assert expired.value.persistence is Persistence.POSSIBLY_PERSISTED
        assert isinstance(await outcome_of(producer, enough), RecordMetadata)
        assert producer.statistics().generations == 1


# --- sequence numbers ----------------------------------------------------------------------------


def forget_producers(cluster: KafkaCluster, topic: str) -> None:
    """Have Kafka forget the producers of a topic, as it does after a day without records."""
    partition = kafka.TopicPartition(topic, 0)
    admin = kafka.KafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    try:
        [known] = admin.describe_producers([partition])[partition].active_producers
        assert known.producer_id >= 0
        cluster.alter_broker(1, {"producer.id.expiration.ms": 1})
        blocking_until(
            lambda: not admin.describe_producers([partition])[partition].active_producers
        )
    finally:
        admin.close()
        cluster.alter_broker(1, {"producer.id.expiration.ms": None})


def lose_count(client: Any, topic: str) -> None:
    """Have the client skip a hundred sequence numbers before its next record."""
    client._sender._transaction_manager.set_sequence_number(kafka.TopicPartition(topic, 0), 100)


def test_bare_after_a_sequence_error_it_goes_on(cluster: KafkaCluster, topic: str) -> None:
    """Not a trap from Kafka 2.5 on: one record is lost, and the client goes on with another
    epoch."""
    with bare(cluster.bootstrap_servers) as producer:
        futures_of(producer, topic, [b"value"])
        lose_count(producer, topic)
        [lost] = futures_of(producer, topic, [b"value"])
        assert isinstance(lost.exception, kafka_errors.OutOfOrderSequenceNumberError)
        [next_one] = futures_of(producer, topic, [b"value"])
        assert next_one.value.offset == 1


async def test_after_a_sequence_error_it_goes_on(cluster: KafkaCluster, topic: str) -> None:
    async with open_send_producer(settings_for(cluster)) as producer:
        await outcome_of(producer, topic)
        driver: Any = producer._engine.bridge._worker.driver
        lose_count(driver._opened.producer, topic)
        lost = await outcome_of(producer, topic)
        assert isinstance(lost, DeliveryError)
        assert lost.persistence is Persistence.POSSIBLY_PERSISTED
        assert offsets([await outcome_of(producer, topic)]) == [1]
        assert producer.statistics().generations == 1


def test_bare_a_producer_that_kafka_forgot_goes_on(cluster: KafkaCluster, topic: str) -> None:
    """Not a trap: Kafka 4 accepts its records with any sequence number."""
    with bare(cluster.bootstrap_servers) as producer:
        futures_of(producer, topic, [b"value"])
        forget_producers(cluster, topic)
        lose_count(producer, topic)  # which shows that it was forgotten
        written = futures_of(producer, topic, [b"value", b"value"])
        assert [future.value.offset for future in written] == [1, 2]


async def test_a_producer_that_kafka_forgot_goes_on(cluster: KafkaCluster, topic: str) -> None:
    async with open_send_producer(settings_for(cluster)) as producer:
        await outcome_of(producer, topic)
        await anyio.to_thread.run_sync(forget_producers, cluster, topic)
        assert offsets([await outcome_of(producer, topic) for _ in range(2)]) == [1, 2]
        assert producer.statistics().generations == 1


@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.nightly)])
def test_bare_a_broker_that_comes_back_with_its_data_is_used_again(
    cluster: KafkaCluster, topic: str, end: str
) -> None:
    """Not a trap: Kafka stores the state of producers with the records."""
    with (
        leaking_sockets(),
        bare(cluster.bootstrap_servers, reconnect_backoff_max_ms=200) as producer,
    ):
        futures_of(producer, topic, [b"value"])
        getattr(cluster, end)(1)
        meanwhile = producer.send(topic, b"value")
        cluster.start(1)
        assert settles(meanwhile)
        [behind] = futures_of(producer, topic, [b"value"])
        assert (meanwhile.value.offset, behind.value.offset) == (1, 2)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_broker_that_comes_back_with_its_data_is_used_again(
    cluster: KafkaCluster, topic: str, end: str
) -> None:
    async with open_send_producer(settings_for(cluster)) as producer:
        await outcome_of(producer, topic)
        await anyio.to_thread.run_sync(getattr(cluster, end), 1)
        meanwhile = producer.enqueue_nowait(ProducerRecord(topic, b"value", partition=0))
        await anyio.to_thread.run_sync(cluster.start, 1)
        assert offsets([await meanwhile.wait(), await outcome_of(producer, topic)]) == [1, 2]
        assert producer.statistics().generations == 1
