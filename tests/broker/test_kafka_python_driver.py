"""The kafka-python driver: its choices, corrections and translations, and its assumptions.

The last part fails when kafka-python changes a behaviour that the driver patches or depends on.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import logging
import socket
import threading
import time
import types
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, ClassVar

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducerError,
    SerializationFailed,
    SettingsError,
    open_send_producer,
)
from anyio_sendproducer.drivers import Outcome, Submission
from anyio_sendproducer.drivers.kafka_python import _batches, _network, _patches
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.kafka_python._metadata import TopicMetadata
from anyio_sendproducer.testing import MockCluster, mock_cluster
from tests.support.bare import bare as opened_bare
from tests.support.bare import leaking_sockets, settles
from tests.support.client_log import everything_logged_to
from tests.support.lent_client import raise_in_kafka_python
from tests.support.mock_cluster import FOR_MOCK, count_requests, track_requests
from tests.support.recorder import PATIENCE, Parcel, Recorder, learn, submit
from tests.support.waiting import blocking_until

# kafka-python has no types, so every name imported from it is Any.
kafka: Any = importlib.import_module("kafka")
kafka_accumulator: Any = importlib.import_module("kafka.producer.record_accumulator")
kafka_errors: Any = importlib.import_module("kafka.errors")
kafka_future: Any = importlib.import_module("kafka.future")
kafka_partitioner: Any = importlib.import_module("kafka.partitioner")
kafka_producer_batch: Any = importlib.import_module("kafka.producer.producer_batch")
kafka_producer_future: Any = importlib.import_module("kafka.producer.future")
kafka_producer_module: Any = importlib.import_module("kafka.producer.kafka")
kafka_sender: Any = importlib.import_module("kafka.producer.sender")
kafka_transactions: Any = importlib.import_module("kafka.producer.transaction_manager")
kafka_serializer: Any = importlib.import_module("kafka.serializer")

#: Error codes of Kafka's protocol.
NOT_LEADER_OR_FOLLOWER = 6
MSG_SIZE_TOO_LARGE = 10
TOPIC_AUTHORIZATION_FAILED = 29
CLUSTER_AUTHORIZATION_FAILED = 31
INVALID_TIMESTAMP = 32
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
INVALID_RECORD = 87

ONE_IN_FLIGHT = "max.in.flight.requests.per.connection"
TWELVE = "twelve-partitions"
TWO_LEADERS = "two-leaders"


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[MockCluster]:
    # For the whole module, with shared topics, because the mock sometimes takes a second for a
    # command.
    with mock_cluster(2) as mock:
        mock.create_topic(TWO_LEADERS, [1, 2])
        mock.create_topic(TWELVE, [1] * 12)
        yield mock


@pytest.fixture
def cluster(one_cluster: MockCluster) -> Iterator[MockCluster]:
    """Two brokers, each the leader of one of the two partitions of a topic."""
    yield one_cluster
    one_cluster.behave()


def settings_for(servers: str | MockCluster, **changes: Any) -> ProducerSettings:
    if isinstance(servers, MockCluster):
        changes["properties"] = {**FOR_MOCK, **changes.get("properties", {})}
        servers = servers.bootstrap_servers
    return ProducerSettings(
        bootstrap_servers=servers, start_timeout=PATIENCE, cancel_timeout=1
    ).evolve(**changes)


@contextlib.contextmanager
def opened(
    servers: str | MockCluster, **changes: Any
) -> Generator[tuple[KafkaPythonDriver, Recorder], None, None]:
    driver = KafkaPythonDriver(settings_for(servers, **changes))
    recorder = Recorder()
    driver.open(recorder)
    try:
        yield driver, recorder
    finally:
        driver.close(0)


def send_all(
    driver: KafkaPythonDriver, recorder: Recorder, records: Sequence[ProducerRecord[Any, Any]]
) -> list[Outcome]:
    """Submit these as one batch, and return their outcomes."""
    recorder.reports.clear()
    parcels = [Parcel(record) for record in records]
    submit(driver, recorder, parcels)
    return recorder.outcomes_of(parcels)


def no_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pass every record to KafkaProducer.send()."""
    monkeypatch.setattr(_patches, "_APPEND", ("as", "it", "never", "was"))


def metadata_of(outcome: Outcome) -> RecordMetadata:
    assert isinstance(outcome, RecordMetadata), outcome
    return outcome


def counted_from(those: Sequence[RecordMetadata], one: RecordMetadata) -> int:
    """The distance from the first of these records on its partition."""
    offsets = [other.offset for other in those if other.partition == one.partition]
    assert offsets[0] is not None
    assert one.offset is not None
    return one.offset - offsets[0]


def new_topic() -> str:
    return f"topic-{uuid.uuid4().hex}"


# --- partitions ----------------------------------------------------------------------------------


def test_a_key_goes_to_the_partition_of_kafka_pythons_own_partitioner(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        client: Any = driver._client
        default = kafka_partitioner.DefaultPartitioner()

        @given(st.lists(st.binary(max_size=100), min_size=1, max_size=50))
        @example([b"", bytes(64), bytes(65), bytes(range(256))])
        @settings(max_examples=40)
        def check(keys: list[bytes]) -> None:
            records = [ProducerRecord(TWELVE, b"value", key) for key in keys]
            for key, outcome in zip(keys, send_all(driver, recorder, records), strict=True):
                expected = default.partition(TWELVE, key, key, b"value", b"value", client.cluster)
                assert metadata_of(outcome).partition == expected

        check()


def test_records_without_a_key_go_to_the_partitions_in_turn(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        batch = [ProducerRecord(TWELVE, b"value")] * 10
        visited: list[int] = []
        for _ in range(24):
            [partition] = {metadata_of(one).partition for one in send_all(driver, recorder, batch)}
            visited.append(partition)
        assert sorted(visited[:12]) == list(range(12))
        assert visited[12:] == visited[:12]


def test_new_metadata_do_not_restart_the_turn_of_partitions(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        visited: list[int] = []
        for _ in range(12):
            driver._metadata.topics = {}
            [outcome] = send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])
            visited.append(metadata_of(outcome).partition)
        assert sorted(visited) == list(range(12))


def test_a_long_batch_without_keys_is_spread_too(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        size = _batches.RUN_BYTES // 4
        parcels = [Parcel(ProducerRecord(TWELVE, bytes(size)), size) for _ in range(24)]
        submit(driver, recorder, parcels)
        partitions = [metadata_of(one).partition for one in recorder.outcomes_of(parcels)]
        runs = [partitions[start : start + 4] for start in range(0, 24, 4)]
        assert [len(set(run)) for run in runs] == [1] * 6
        assert len({run[0] for run in runs}) == 6


def test_a_long_batch_with_one_key_stays_in_order_on_its_partition(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        size = _batches.RUN_BYTES // 2
        parcels = [Parcel(ProducerRecord(TWELVE, bytes(size), b"key"), size) for _ in range(9)]
        submit(driver, recorder, parcels)
        found = [metadata_of(one) for one in recorder.outcomes_of(parcels)]
        assert len({one.partition for one in found}) == 1
        assert [counted_from(found, one) for one in found] == list(range(9))


def test_partitions_without_a_leader_are_skipped_if_there_are_others() -> None:
    some = _batches.TopicPartitions({0, 1, 2}, {0, 2}, 5)
    assert {some.next_in_turn() for _ in range(4)} == {0, 2}
    none = _batches.TopicPartitions({0, 1, 2}, set(), 5)
    assert {none.next_in_turn() for _ in range(4)} == {0, 1, 2}


def partitioner(choose: Callable[[bytes], int]) -> Any:
    def partition(_self: object, _topic: str, key: bytes, *_rest: object) -> int:
        return choose(key)

    return type("Chosen", (kafka_partitioner.abc.Partitioner,), {"partition": partition})()


def test_a_partitioner_of_the_users_own_is_respected(cluster: MockCluster) -> None:
    """Its records go to several partitions in one batch, and are acknowledged in any order."""
    chosen = partitioner(int)
    with opened(cluster, properties={"partitioner": chosen}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.set_rtt(1, 150)
        # The last record of the batch is acknowledged first.
        keys = [0, 1, 0, 0, 1, 1]
        records = [ProducerRecord(TWO_LEADERS, b"value", b"%d" % key) for key in keys]
        found = [metadata_of(one) for one in send_all(driver, recorder, records)]
        assert [one.partition for one in found] == keys
        assert [counted_from(found, one) for one in found] == [0, 0, 1, 2, 1, 2]


def test_where_a_partitioner_chooses_no_partition_waits_for_another(cluster: MockCluster) -> None:
    with opened(cluster, properties={"partitioner": partitioner(int)}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.set_rtt(2, 5000)
        records = [ProducerRecord(TWO_LEADERS, b"value", b"%d" % key) for key in (0, 1)]
        parcels = [Parcel(record) for record in records]
        submit(driver, recorder, parcels)
        recorder.wait(lambda: bool(recorder.reports))
        assert [parcel for parcel, _ in recorder.reports] == parcels[:1]


def test_a_partitioner_that_raises_fails_its_record_alone(cluster: MockCluster) -> None:
    def choose(key: bytes) -> int:
        if key == b"bad":
            raise RuntimeError("no idea")
        return 0

    with opened(cluster, properties={"partitioner": partitioner(choose)}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        keys = [b"good", b"bad", b"good"]
        records = [ProducerRecord(TWO_LEADERS, b"value", key) for key in keys]
        first, bad, last = send_all(driver, recorder, records)
        assert counted_from([metadata_of(first)], metadata_of(last)) == 1
        assert isinstance(bad, DeliveryError)
        assert isinstance(bad.__cause__, RuntimeError)


# --- the way past send() -------------------------------------------------------------------------


def sent_with(driver: KafkaPythonDriver, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The values that are passed to KafkaProducer.send() from now on."""
    sent: list[object] = []
    producer: Any = driver._ready().producer
    send = producer.send

    def noting_send(topic: str, *, value: object, **others: object) -> object:
        sent.append(value)
        return send(topic, value=value, **others)

    monkeypatch.setattr(producer, "send", noting_send)
    return sent


def test_plain_records_are_appended_directly_and_others_are_passed_to_send(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cluster, properties={"max_request_size": 2_000}) as (driver, recorder):
        sent = sent_with(driver, monkeypatch)
        plain: list[ProducerRecord[Any, Any]] = [
            ProducerRecord(TWELVE, b"value"),
            ProducerRecord(TWELVE, b"", b"key"),
            ProducerRecord(TWELVE, b"value", partition=1, timestamp_ms=3),
            ProducerRecord(TWELVE, b"value", headers=[("name", b"content"), ("name", b"")]),
        ]
        checked: list[ProducerRecord[Any, Any]] = [
            ProducerRecord(TWELVE, None, b"a tombstone"),
            ProducerRecord(TWELVE, bytes(1_900)),
            ProducerRecord(TWELVE, bytes(900), bytes(900)),
            ProducerRecord(TWELVE, b"many headers", headers=[("", b"")] * 200),
            ProducerRecord(TWELVE, b"long names", headers=[("n" * 450, b"")]),
        ]
        for outcome in send_all(driver, recorder, [*plain, *checked]):
            metadata_of(outcome)
        assert sent == [record.value for record in checked]


def like_a_producer(accumulator: object, transactional_id: str | None = None) -> Any:
    class Producer:
        send = kafka.KafkaProducer.send
        config: ClassVar = {"transactional_id": transactional_id}
        _accumulator = accumulator

    return Producer()


def test_a_wrapped_send_is_called_for_each_record(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like OpenTelemetry's: if there are no headers, it adds them by keyword."""
    traced: list[str] = []
    send = kafka.KafkaProducer.send

    @functools.wraps(send)
    def traced_send(producer: Any, *args: Any, **parts: Any) -> Any:
        headers: list[tuple[str, bytes]] = parts.get("headers") or []
        parts["headers"] = [*headers, ("traceparent", b"1")]
        traced.append(args[0])
        return send(producer, *args, **parts)

    monkeypatch.setattr(kafka.KafkaProducer, "send", traced_send)
    with opened(cluster) as (driver, recorder):
        records = [ProducerRecord(TWELVE, value, b"key") for value in (b"plain", None)]
        for outcome in send_all(driver, recorder, records):
            metadata_of(outcome)
        assert all(not record.headers for record in records)
    assert traced == [TWELVE] * 2


def test_a_send_that_was_set_on_the_client_is_called_for_each_record() -> None:
    producer = like_a_producer(kafka_accumulator.RecordAccumulator())
    assert _patches.find_direct_append(producer) is not None
    producer.send = print
    assert _patches.find_direct_append(producer) is None


def test_a_transactional_client_has_no_direct_append() -> None:
    accumulator = kafka_accumulator.RecordAccumulator()
    assert _patches.find_direct_append(like_a_producer(accumulator, "id")) is None
    assert _patches.find_direct_append(like_a_producer(accumulator)) == accumulator.append


@pytest.mark.parametrize(
    "accumulator", [None, object(), bytearray()], ids=["None", "object", "bytearray"]
)
def test_an_unknown_accumulator_has_no_direct_append(accumulator: object) -> None:
    assert _patches.find_direct_append(like_a_producer(accumulator)) is None


@pytest.mark.parametrize("way", ["append", "send"])
def test_both_ways_write_the_same_record(
    shared_broker: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "send":
        no_short_cut(monkeypatch)
    with opened(shared_broker) as (driver, recorder):
        sent = sent_with(driver, monkeypatch)
        topic = new_topic()
        learn(driver, recorder, topic)
        headers = [("name", b"content"), ("n\N{LATIN SMALL LETTER U WITH DIAERESIS}", b"")]
        [outcome] = send_all(
            driver,
            recorder,
            [ProducerRecord(topic, b"value", b"key", partition=0, timestamp_ms=7, headers=headers)],
        )
        assert outcome == RecordMetadata(topic, 0, 0, 7, 3, 5)
        assert sent == ([b"value"] if way == "send" else [])
    consumer = kafka.KafkaConsumer(bootstrap_servers=shared_broker)
    try:
        consumer.assign([kafka.TopicPartition(topic, 0)])
        consumer.seek_to_beginning()
        read = next(consumer)
        assert (read.key, read.value, read.timestamp) == (b"key", b"value", 7)
        assert [*read.headers] == headers
    finally:
        consumer.close()


# --- runs ----------------------------------------------------------------------------------------


class Told:
    """The sink to which a run reports."""

    chooses = True
    answered = True

    def __init__(self) -> None:
        self.reports: list[tuple[Any, Outcome]] = []

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        self.reports.extend(zip(submissions, outcomes, strict=True))

    def target(self, topic: str, partition: int) -> object:
        return topic, partition

    def failure(
        self, submission: Submission, error: Exception, run: _batches.PartitionRun
    ) -> DeliveryError:
        return DeliveryError(
            f"{error} on {run.partition}",
            record=submission.record,
            persistence=Persistence.POSSIBLY_PERSISTED,
        )


def test_without_acknowledgements_there_is_no_offset_and_no_timestamp(cluster: MockCluster) -> None:
    """kafka-python makes up an answer with the offset 0."""
    with opened(cluster, properties={"acks": 0}) as (driver, recorder):
        # One record: the mock cluster answers, and then the client closes the connection.
        record = ProducerRecord(TWELVE, b"value", b"key", partition=2)
        outcomes = send_all(driver, recorder, [record])
        assert outcomes == [RecordMetadata(TWELVE, 2, None, None, 3, 5)]


@given(
    st.integers(min_value=1, max_value=7).flatmap(
        lambda count: st.tuples(
            st.permutations(range(count)),
            st.lists(st.booleans(), min_size=count, max_size=count),
            st.integers(min_value=0, max_value=count),
        )
    )
)
@settings(deadline=None)
def test_a_run_reports_each_record_once_in_any_order_of_completion(
    drawn: tuple[list[int], list[bool], int],
) -> None:
    order, successes, watched_after = drawn
    told = Told()
    run = _batches.PartitionRun(told, "topic", 3)
    run.submissions = [Parcel(ProducerRecord("topic", b"%d" % number)) for number in order]
    run.futures = [kafka_future.Future() for _ in order]

    def complete(number: int) -> None:
        if successes[number]:
            at = kafka.TopicPartition("topic", 3)
            run.futures[number].success(
                kafka_producer_future.RecordMetadata(
                    topic="topic",
                    partition=3,
                    topic_partition=at,
                    offset=number,
                    timestamp=7,
                    checksum=None,
                    serialized_key_size=-1,
                    serialized_value_size=1,
                    serialized_header_size=-1,
                )
            )
        else:
            run.futures[number].failure(kafka_errors.KafkaError(f"failure {number}"))

    for number in order[:watched_after]:
        complete(number)
    run.watch()
    for number in order[watched_after:]:
        complete(number)

    found = {id(parcel): outcome for parcel, outcome in told.reports}
    assert len(found) == len(told.reports) == len(order)
    for number, parcel in enumerate(run.submissions):
        outcome = found[id(parcel)]
        if successes[number]:
            assert outcome == RecordMetadata("topic", 3, number, 7, None, 1)
        else:
            assert isinstance(outcome, DeliveryError)
            assert outcome.record is parcel.record
            assert f"failure {number} on 3" in str(outcome)


# --- serializers ---------------------------------------------------------------------------------


class Shout:
    """A serializer with kafka-python's interface, which adds a header."""

    def __init__(self) -> None:
        self.closed = 0

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes:
        headers.append(("shouted", f"in {topic}".encode()))
        return str(data).upper().encode()

    def close(self) -> None:
        self.closed += 1


def test_kafka_pythons_own_serializer_is_one() -> None:
    def serialize(_self: object, _topic: str, _headers: object, data: bytes) -> bytes:
        return data

    own: Any = type("Own", (kafka_serializer.Serializer,), {"serialize": serialize})()
    driver = KafkaPythonDriver(settings_for("127.0.0.1:1", value_serializer=own))
    assert driver._value == own.serialize


def test_serializers_give_the_bytes_the_headers_and_the_true_size(cluster: MockCluster) -> None:
    shout = Shout()
    with opened(cluster, key_serializer=str.encode, value_serializer=shout) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        record = ProducerRecord(TWELVE, "value", "kéy", headers=[("own", b"12")])
        parcel = Parcel(record)
        answer = driver.submit([parcel])
        [outcome] = recorder.outcomes_of([parcel])
        found = metadata_of(outcome)
        assert (found.serialized_key_size, found.serialized_value_size) == (4, 5)
        headers = len("own12") + len(f"shoutedin {TWELVE}")
        assert answer.sizes == [(parcel, 4 + 5 + headers)]
        # The record's own headers are not touched.
        assert record.headers == (("own", b"12"),)
        # Only the serialized key determines the partition.
        default = kafka_partitioner.DefaultPartitioner()
        client: Any = driver._client
        key = "kéy".encode()
        assert found.partition == default.partition(TWELVE, key, key, None, None, client.cluster)
    # Its creator closes it.
    assert shout.closed == 0


def test_none_is_not_serialized(cluster: MockCluster) -> None:
    def never(data: object) -> bytes:
        assert data is not None
        return b"some"

    with opened(cluster, key_serializer=never, value_serializer=never) as (driver, recorder):
        tombstone, keyless = send_all(
            driver, recorder, [ProducerRecord(TWELVE, None, 1), ProducerRecord(TWELVE, 1)]
        )
        assert metadata_of(tombstone).serialized_value_size is None
        assert metadata_of(keyless).serialized_key_size is None


@pytest.mark.parametrize("content", [bytearray(b"1234"), memoryview(b"1234")])
def test_a_serializer_may_return_other_bytes_like_objects(
    cluster: MockCluster, content: Any
) -> None:
    def serialize(_: object) -> Any:
        return content

    with opened(cluster, value_serializer=serialize) as (driver, recorder):
        [outcome] = send_all(driver, recorder, [ProducerRecord(TWELVE, object())])
        assert metadata_of(outcome).serialized_value_size == 4


def test_a_serializer_may_make_a_tombstone(cluster: MockCluster) -> None:
    def serialize(_: object) -> None:
        return None

    with opened(cluster, value_serializer=serialize) as (driver, recorder):
        kept, lost = send_all(
            driver, recorder, [ProducerRecord(TWELVE, 1, b"key"), ProducerRecord(TWELVE, 1)]
        )
        assert metadata_of(kept).serialized_value_size is None
        # That record has neither a key nor a value left.
        assert isinstance(lost, RecordRejected)
        assert lost.persistence is Persistence.NOT_PERSISTED
        assert str(lost) == "the value_serializer returned None: neither key nor value is left"
    with opened(cluster, key_serializer=serialize) as (driver, recorder):
        [lost] = send_all(driver, recorder, [ProducerRecord(TWELVE, None, 1)])
        assert str(lost) == "the key_serializer returned None: neither key nor value is left"


def test_a_serializer_that_fails_fails_its_record_alone(cluster: MockCluster) -> None:
    def serialize(data: Any) -> Any:
        if data == "raise":
            raise KeyError("no schema")
        return data

    records = [ProducerRecord(TWELVE, value, b"key") for value in (b"1", "raise", "a str", b"2")]
    with opened(cluster, value_serializer=serialize) as (driver, recorder):
        one, raised, wrong, two = send_all(driver, recorder, records)
    assert counted_from([metadata_of(one)], metadata_of(two)) == 1
    for outcome, record in ((raised, records[1]), (wrong, records[2])):
        assert isinstance(outcome, SerializationFailed)
        assert outcome.record is record
        assert outcome.persistence is Persistence.NOT_PERSISTED
    assert isinstance(raised, SerializationFailed)
    assert isinstance(raised.__cause__, KeyError)
    assert "value_serializer raised KeyError" in str(raised)
    assert "value_serializer returned str, not bytes" in str(wrong)


# --- topics --------------------------------------------------------------------------------------


def test_a_record_for_a_topic_that_is_not_created_is_rejected_after_a_wait(
    shared_broker: str,
) -> None:
    topic = new_topic()
    parcel = Parcel(ProducerRecord(topic, b"value"))
    with opened(
        shared_broker,
        unknown_topic_timeout=0.3,
        properties={"allow.auto.create.topics": "false"},
    ) as (driver, recorder):
        began = time.monotonic()
        submit(driver, recorder, [parcel])
        [outcome] = recorder.outcomes_of([parcel])
        assert time.monotonic() - began >= 0.3
        assert isinstance(outcome, RecordRejected)
        assert outcome.persistence is Persistence.NOT_PERSISTED
        assert topic in str(outcome)
        assert "unknown_topic_timeout" in str(outcome)
        # The request did not create it, and the wait starts again.
        assert driver.partitions_for(topic) is None
        assert recorder.breaks == []
        [outcome] = send_all(driver, recorder, [ProducerRecord("some-topic", b"value")])
        assert isinstance(outcome, RecordRejected)
    with opened(shared_broker) as (driver, recorder):
        # A client that may create it gets it.
        assert metadata_of(send_all(driver, recorder, [parcel.record])[0]).offset == 0


def test_partitions_for_raises_where_there_is_no_such_topic(shared_broker: str) -> None:
    with opened(
        shared_broker,
        unknown_topic_timeout=0,
        properties={"allow_auto_create_topics": False},
    ) as (driver, recorder):
        with pytest.raises(SendProducerError, match="does not know topic") as caught:
            learn(driver, recorder, new_topic())
        assert isinstance(caught.value.__cause__, kafka_errors.UnknownTopicOrPartitionError)


def test_a_forbidden_topic(cluster: MockCluster) -> None:
    topic = cluster.create_topic(new_topic(), [1])
    cluster.set_topic_error(topic, TOPIC_AUTHORIZATION_FAILED)
    with opened(cluster) as (driver, recorder):
        record = ProducerRecord(topic, b"value")
        [outcome] = send_all(driver, recorder, [record])
        assert isinstance(outcome, RecordRejected)
        assert outcome.persistence is Persistence.NOT_PERSISTED
        cause = outcome.__cause__
        assert cause is not None
        assert isinstance(cause.__cause__, kafka_errors.TopicAuthorizationFailedError)
        assert f"may not use topic '{topic}'" in str(outcome)
        with pytest.raises(SendProducerError, match="may not use"):
            driver.partitions_for(topic)
        # After the permission is granted, the next records are delivered.
        cluster.set_topic_error(topic, 0)
        deadline = time.monotonic() + PATIENCE
        while not isinstance(outcome, RecordMetadata) and time.monotonic() < deadline:
            time.sleep(0.02)  # no event tells when, so the driver asks the client again each time
            [outcome] = send_all(driver, recorder, [record])
        metadata_of(outcome)


def test_nothing_overtakes_a_record_that_is_held(cluster: MockCluster) -> None:
    """This holds also if its topic becomes known in the middle of the batch."""
    known = threading.Event()

    def wait_for_news(data: Any) -> Any:
        if data == b"wait":
            assert known.wait(PATIENCE)
        return data

    with opened(cluster, value_serializer=wait_for_news) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        client: Any = driver._client

        def look(_: Any) -> None:
            if driver._metadata.requested >= {TWO_LEADERS}:
                known.set()

        client.cluster.add_listener(look)
        parcels = [
            Parcel(ProducerRecord(topic, value, partition=0))
            for topic, value in [(TWO_LEADERS, b"1"), (TWELVE, b"wait"), (TWO_LEADERS, b"2")]
        ]
        answer = driver.submit(parcels)
        assert answer.held == [parcels[0], parcels[2]]
        submit(driver, recorder, answer.held)
        first, _, second = recorder.outcomes_of(parcels)
        assert counted_from([metadata_of(first)], metadata_of(second)) == 1


def test_an_unrequested_topic_of_an_answer_is_requested(shared_broker: str) -> None:
    """Otherwise the client drops the topic when it requests another, and never sends its
    records."""
    topic = new_topic()
    with opened(shared_broker) as (driver, recorder):
        learn(driver, recorder, topic)
    with opened(shared_broker) as (driver, recorder):
        client: Any = driver._client
        assert topic in client.cluster._partitions
        learn(driver, recorder, topic)
        assert topic in {asked.name for asked in client.cluster.metadata_request().topics}


def test_an_answer_is_ignored_for_topics_that_were_not_requested() -> None:
    """An answer to an earlier request must not make a new topic unknown."""
    metadata = TopicMetadata(5.0)
    recorder = Recorder()
    partitions: dict[str, set[int]] = {}
    knows_none = types.SimpleNamespace(partitions_for_topic=partitions.get)
    metadata.awaited["late"] = None

    def answer(*topics: str) -> None:
        asked = [types.SimpleNamespace(name=topic) for topic in topics]
        metadata.make_request(lambda: types.SimpleNamespace(topics=asked))
        metadata.update(recorder, knows_none)

    def unknown_since() -> float | None:
        return metadata.awaited["late"]

    answer()
    answer("other")
    assert unknown_since() is None
    answer("other", "late")
    since = unknown_since()
    assert since is not None
    answer("late")
    assert unknown_since() == since
    assert recorder.metadata_changes == 4


def test_an_immediate_answer_is_reported(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer arrives before the caller knows that the topic is not known yet."""
    answered = threading.Event()
    update = TopicMetadata.update

    def note(metadata: TopicMetadata, sink: Any, cluster: Any) -> None:
        update(metadata, sink, cluster)
        if metadata.requested >= {TWELVE}:
            answered.set()

    monkeypatch.setattr(TopicMetadata, "update", note)
    with opened(cluster) as (driver, recorder):
        partitions_for = driver._ready().producer.partitions_for

        def ask_and_dawdle(topic: str) -> Any:
            try:
                return partitions_for(topic)
            except kafka_errors.KafkaTimeoutError:
                assert answered.wait(PATIENCE)
                raise

        monkeypatch.setattr(driver._ready().producer, "partitions_for", ask_and_dawdle)
        changes = recorder.metadata_changes
        assert driver.partitions_for(TWELVE) is None
        assert recorder.metadata_changes > changes
        assert driver.partitions_for(TWELVE) == frozenset(range(12))


def test_an_answer_while_a_record_is_given_back_is_reported(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dropped topic may be known again when the client reports it as unknown."""
    no_short_cut(monkeypatch)
    parcels = [Parcel(ProducerRecord(TWELVE, b"value"))]
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)

        def refuse(*_: Any, **__: Any) -> Any:
            raise_in_kafka_python(kafka_errors.KafkaTimeoutError())

        with monkeypatch.context() as patched:
            patched.setattr(driver._ready().producer, "send", refuse)
            changes = recorder.metadata_changes
            assert driver.submit(parcels).held == parcels
            assert recorder.metadata_changes > changes
        submit(driver, recorder, parcels)
        [outcome] = recorder.outcomes_of(parcels)
        metadata_of(outcome)


def test_a_look_up_during_an_answer_is_repeated() -> None:
    """Otherwise the old result would be used until the next answer, minutes later."""
    partitions = [{0, 1}, {0}]
    names = [{"old", "new"}, {"old"}]

    def look_up(_: object) -> Any:
        found = partitions.pop()
        forget()  # the client's thread brings an answer
        return found

    def look_up_names(_: object) -> Any:
        found = names.pop()
        forget()
        return found

    metadata: Any = types.SimpleNamespace(partitions_for_topic=look_up, topics=look_up_names)
    forget = _patches.patch_cache_metadata(metadata)
    assert metadata.partitions_for_topic("old") is None  # it was not requested
    assert [metadata.partitions_for_topic("old") for _ in range(2)] == [{0}, {0, 1}]
    assert [metadata.topics() for _ in range(2)] == [{"old"}, {"old", "new"}]


def test_an_answer_may_drop_a_topic_while_it_is_looked_up() -> None:
    cluster: Any = importlib.import_module("kafka.cluster").ClusterMetadata(
        bootstrap_servers="broker.invalid:1"
    )

    class Dropping(dict[str, Any]):
        """The topics of the client, until it looks one up."""

        def __contains__(self, topic: object) -> bool:
            cluster._partitions = {}
            return super().__contains__(topic)

    def know() -> None:
        cluster._partitions = Dropping(t={0: types.SimpleNamespace(leader_id=1)})

    for look_up in (cluster.partitions_for_topic, cluster.available_partitions_for_topic):
        know()
        with pytest.raises(KeyError):  # in kafka-python
            look_up("t")
    _patches.patch_cache_metadata(cluster)
    assert cluster.partitions_for_topic("t") is None  # it was not requested
    know()
    assert cluster.partitions_for_topic("t") is None
    metadata = TopicMetadata(5.0)
    metadata._cluster = cluster
    metadata._producer = types.SimpleNamespace(partitions_for={"t": {0}}.get)
    know()
    known = metadata.partitions_of("t")
    assert isinstance(known, _batches.TopicPartitions)
    assert known.numbers == (0,)


def test_the_client_may_forget_a_topic_while_its_record_is_refused() -> None:
    class Forgetting(dict[str, float | None]):
        """Topics that the client's thread forgets when they are looked up."""

        def get(self, topic: str, default: Any = None) -> Any:
            return self.pop(topic, default)

    def partitions_for(_: str) -> None:
        raise kafka_errors.KafkaTimeoutError

    metadata = TopicMetadata(0.0)
    metadata._cluster = types.SimpleNamespace(unauthorized_topics=set())
    metadata._producer = types.SimpleNamespace(partitions_for=partitions_for)
    metadata.awaited = Forgetting(t=0.0)
    assert "does not know topic 't'" in str(metadata.partitions_of("t"))


def test_an_error_of_the_metadata_request_is_reported(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cluster) as (driver, recorder):

        def refuse(topic: str) -> None:
            raise kafka_errors.InvalidTopicError(topic)

        monkeypatch.setattr(driver._ready().producer, "partitions_for", refuse)
        [outcome] = send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])
        assert isinstance(outcome, RecordRejected)
        assert f"no metadata for topic {TWELVE!r}" in str(outcome)


def drop(driver: KafkaPythonDriver, topic: str) -> None:
    """Like an answer that the topic does not exist."""
    client: Any = driver._client
    del client.cluster._partitions[topic]
    for listener in [*client.cluster._listeners]:
        listener(client.cluster)


def test_a_dropped_topic_is_requested_again(cluster: MockCluster) -> None:
    """The client itself requests it when the topic is new, when it has records for it, and
    otherwise only when all its metadata are old."""
    with opened(cluster) as (driver, recorder):
        assert learn(driver, recorder, TWELVE) == frozenset(range(12))
        drop(driver, TWELVE)
        assert learn(driver, recorder, TWELVE) == frozenset(range(12))


def test_a_new_topic_during_a_request_is_requested_afterwards(
    cluster: MockCluster,
) -> None:
    """The client treats that answer as one for the new topic too, and does not request it again."""
    with opened(cluster) as (driver, recorder):
        client: Any = driver._client
        metadata = client.cluster
        for broker in (1, 2):
            cluster.set_rtt(broker, 500)

        def on_its_way() -> bool:
            # Again, with an answer that arrives before the driver looks.
            if not metadata.metadata_refresh_in_progress:
                metadata.request_update()
            return bool(metadata.metadata_refresh_in_progress)

        blocking_until(on_its_way, PATIENCE)
        assert learn(driver, recorder, TWELVE) == frozenset(range(12))
        for broker in (1, 2):
            cluster.set_rtt(broker, 0)


@pytest.mark.parametrize(("way", "gone_on"), [("append", 3), ("send", 2)])
def test_a_topic_is_dropped_while_its_records_are_submitted(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, way: str, gone_on: int
) -> None:
    """Records submitted before are sent. The others are given back, and accepted the next time."""
    if way == "send":
        no_short_cut(monkeypatch)
    taken: list[object] = []

    def drop_after_two(data: Any) -> Any:
        taken.append(data)
        if len(taken) == 3:
            drop(driver, TWO_LEADERS)
        return data

    parcels = [Parcel(ProducerRecord(TWO_LEADERS, b"%d" % number, b"k")) for number in range(5)]
    with opened(cluster, value_serializer=drop_after_two) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        answer = driver.submit(parcels)
        assert answer.held == parcels[gone_on:]
        submit(driver, recorder, answer.held)
        found = [metadata_of(one) for one in recorder.outcomes_of(parcels)]
        assert [counted_from(found, one) for one in found] == [0, 1, 2, 3, 4]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [MSG_SIZE_TOO_LARGE, INVALID_RECORD, TOPIC_AUTHORIZATION_FAILED])
def test_a_refused_record_fails_alone(cluster: MockCluster, code: int) -> None:
    """Records in flight to other partitions arrive, and so do later records."""
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        records = [ProducerRecord(TWO_LEADERS, b"value", partition=number) for number in (0, 1)]
        before = metadata_of(send_all(driver, recorder, records)[0])
        cluster.set_rtt(2, 200)
        cluster.answer_next(1, code, rtt_ms=50)
        culprit, innocent = send_all(driver, recorder, records)
        assert isinstance(culprit, RecordRejected)
        assert culprit.persistence is Persistence.NOT_PERSISTED
        metadata_of(innocent)
        after = metadata_of(send_all(driver, recorder, records)[0])
        assert counted_from([before], after) == 1
        assert recorder.breaks == []


@pytest.mark.parametrize("code", [MSG_SIZE_TOO_LARGE, INVALID_RECORD, INVALID_TIMESTAMP])
@pytest.mark.parametrize("idempotence", [True, False])
def test_a_refused_batch_is_sent_again_in_halves(
    cluster: MockCluster, code: int, idempotence: bool
) -> None:
    # One request at a time, so that each gets a known answer.
    properties = {} if idempotence else {"enable.idempotence": False, ONE_IN_FLIGHT: 1}
    with opened(cluster, properties=properties) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        # The first answer is for the whole batch, the second for the first half of it, and so on.
        for _ in range(4):
            cluster.answer_next(1, code)
        records = [ProducerRecord(TWO_LEADERS, b"%d" % n, partition=0) for n in range(8)]
        first, *others = send_all(driver, recorder, records)
        assert isinstance(first, RecordRejected)
        found = [metadata_of(other) for other in others]
        assert [counted_from(found, one) for one in found] == [0, 1, 2, 3, 4, 5, 6]
        assert recorder.breaks == []


def test_a_log_handler_that_raises_does_not_affect_the_client(cluster: MockCluster) -> None:
    class FaultyHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    with everything_logged_to(FaultyHandler(), "kafka"), opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        record = ProducerRecord(TWO_LEADERS, b"value", partition=0)
        cluster.answer_next(1, INVALID_RECORD)
        assert isinstance(send_all(driver, recorder, [record])[0], RecordRejected)
        cluster.answer_next(1, NOT_LEADER_OR_FOLLOWER)
        metadata_of(send_all(driver, recorder, [record])[0])
        assert recorder.breaks == []


def test_a_log_handler_that_exits_does_not_end_the_clients_thread(cluster: MockCluster) -> None:
    """It ends the program if the main thread runs it."""

    class Exiting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, NOT_LEADER_OR_FOLLOWER)
        # The client warns that it sends the record again.
        name = "kafka.producer.sender"
        with everything_logged_to(Exiting(), name):
            record = ProducerRecord(TWO_LEADERS, b"value", partition=0)
            metadata_of(send_all(driver, recorder, [record])[0])
            with pytest.raises(SystemExit):
                logging.getLogger(name).warning("on the main thread")
        assert recorder.breaks == []


def test_a_refused_topic_fails_all_its_records(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, TOPIC_AUTHORIZATION_FAILED)
        records = [ProducerRecord(TWO_LEADERS, b"%d" % n, partition=0) for n in range(8)]
        for outcome in send_all(driver, recorder, records):
            assert isinstance(outcome, RecordRejected)
        metadata_of(send_all(driver, recorder, records[:1])[0])
        assert recorder.breaks == []


def test_a_record_refused_on_a_retry_may_have_been_written(cluster: MockCluster) -> None:
    """The answer to the first attempt may have been lost, so its sequence numbers can't be
    reused."""
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, NOT_LEADER_OR_FOLLOWER)
        cluster.answer_next(1, INVALID_RECORD)
        record = ProducerRecord(TWO_LEADERS, b"value", partition=0)
        [outcome] = send_all(driver, recorder, [record])
        assert isinstance(outcome, DeliveryError)
        assert not isinstance(outcome, RecordRejected)
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert [type(error).__name__ for error in recorder.breaks] == ["InvalidRecordError"]


def test_bare_a_batch_refused_on_a_retry_is_divided(cluster: MockCluster) -> None:
    with opened_bare(cluster, linger_ms=60_000) as producer:
        producer.partitions_for(TWO_LEADERS)
        cluster.answer_next(1, NOT_LEADER_OR_FOLLOWER)
        cluster.answer_next(1, MSG_SIZE_TOO_LARGE)
        futures = [producer.send(TWO_LEADERS, b"%d" % n, partition=0) for n in range(8)]
        producer._accumulator.begin_flush()  # flush() raises if a batch is divided
        producer._sender.wakeup()
        first, *others = [future.get(PATIENCE).offset for future in futures]
        assert others == [first + n for n in range(1, 8)]


def test_a_batch_refused_on_a_retry_is_not_divided(cluster: MockCluster) -> None:
    """The first attempt may have been written. The halves would have other sequence numbers, so
    the broker would write them again."""
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, NOT_LEADER_OR_FOLLOWER)
        cluster.answer_next(1, MSG_SIZE_TOO_LARGE)
        records = [ProducerRecord(TWO_LEADERS, b"%d" % n, partition=0) for n in range(8)]
        for outcome in send_all(driver, recorder, records):
            assert isinstance(outcome, DeliveryError)
            assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert [type(error).__name__ for error in recorder.breaks] == ["MessageSizeTooLargeError"]


@pytest.mark.parametrize("is_partitioned", [True, False])
def test_a_refusal_on_a_retry_proves_nothing_without_idempotence(
    cluster: MockCluster, is_partitioned: bool
) -> None:
    """The answer to the first attempt may have been lost."""
    properties: dict[str, Any] = {"acks": 1}
    if is_partitioned:
        properties["partitioner"] = partitioner(lambda _: 0)
    with opened(cluster, properties=properties) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        record = ProducerRecord(TWO_LEADERS, b"value", partition=None if is_partitioned else 0)
        for codes in ((NOT_LEADER_OR_FOLLOWER, TOPIC_AUTHORIZATION_FAILED), (INVALID_RECORD,)):
            for code in codes:
                cluster.answer_next(1, code)
            [outcome] = send_all(driver, recorder, [record])
            assert isinstance(outcome, DeliveryError)
            is_certain = len(codes) == 1
            assert isinstance(outcome, RecordRejected) is is_certain
            assert (outcome.persistence is Persistence.NOT_PERSISTED) is is_certain
        metadata_of(send_all(driver, recorder, [record])[0])
        assert recorder.breaks == []


def test_a_client_without_any_permission_to_write_is_broken(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, CLUSTER_AUTHORIZATION_FAILED)
        [outcome] = send_all(driver, recorder, [ProducerRecord(TWO_LEADERS, b"value", partition=0)])
        assert isinstance(outcome, RecordRejected)
        assert len(recorder.breaks) == 1


def test_in_a_transaction_a_refused_record_does_not_fail_alone() -> None:
    """The refusal ends the transaction, and the next one uses the numbers of the batch again. But
    it does not prove that an earlier attempt was not written."""
    asked: list[Any] = []
    taken_back: list[tuple[int, int]] = []

    def classify(*arguments: Any, **_details: Any) -> str:
        asked.append(arguments)
        return "ABORTABLE"

    def next_number(_: Any) -> int:
        return 9

    def take_back(where: Any, number: int) -> None:
        taken_back.append((where.partition, number))

    sender = types.SimpleNamespace(_can_split=None)
    manager = types.SimpleNamespace(
        classify_batch_error=classify,
        has_fatal_error=lambda: True,
        sequence_number=next_number,
        ERROR_CLASS_NEEDS_EPOCH_BUMP="NEEDS_EPOCH_BUMP",
        producer_id_and_epoch=kafka_transactions.ProducerIdAndEpoch(1, 2),
        set_sequence_number=take_back,
    )
    producer = types.SimpleNamespace(
        config={"transactional_id": "id"}, _sender=sender, _transaction_manager=manager
    )
    refused = {("t", 0), ("t", 1), ("t", 2)}
    is_broken = _patches.patch_isolate_rejections(producer, refused)
    assert is_broken is not None
    assert is_broken()
    assert vars(sender) == {"_can_split": None}
    for partition, attempts, epoch in ((0, 0, 2), (1, 1, 2), (2, 0, 1), (3, 0, 2)):
        batch = types.SimpleNamespace(
            topic_partition=types.SimpleNamespace(topic="t", partition=partition),
            attempts=attempts,
            producer_id=1,
            producer_epoch=epoch,
            base_sequence=7,
        )
        assert manager.classify_batch_error(None, batch, log_start_offset=-1) == "ABORTABLE"
    assert len(asked) == 4
    assert refused == {("t", 0), ("t", 2)}
    assert taken_back == [(0, 7)]


def test_an_epoch_that_a_transaction_loses_ends_its_waiting_records() -> None:
    accumulator = importlib.import_module("kafka.producer.record_accumulator").RecordAccumulator()

    def classify(*_arguments: Any, **_details: Any) -> str:
        return "NEEDS_EPOCH_BUMP"

    manager = types.SimpleNamespace(
        classify_batch_error=classify,
        has_fatal_error=bool,
        set_sequence_number=None,
        ERROR_CLASS_NEEDS_EPOCH_BUMP="NEEDS_EPOCH_BUMP",
    )
    producer = types.SimpleNamespace(
        config={"transactional_id": "id"}, _accumulator=accumulator, _transaction_manager=manager
    )
    _patches.patch_isolate_rejections(producer, set())
    where = kafka.TopicPartition("t", 0)
    future, *_ = accumulator.append(where, 1, None, b"value", [])
    error = kafka.errors.InvalidProducerEpochError()
    batch = types.SimpleNamespace(topic_partition=where, attempts=0)
    assert manager.classify_batch_error(error, batch) == "NEEDS_EPOCH_BUMP"
    assert future.exception is error
    assert not accumulator.has_undrained()


@pytest.mark.parametrize("transactional_id", [None, "id"])
def test_a_new_epoch_begins_at_0_after_a_refusal(transactional_id: str | None) -> None:
    """The batch was in flight when a record for another partition made the epoch change."""
    manager = kafka_transactions.TransactionManager(transactional_id, api_version=(2, 5))
    if transactional_id is None:
        manager.init_producer_id()
    else:
        manager.initialize_transactions()
    manager.set_producer_id_and_epoch(kafka_transactions.ProducerIdAndEpoch(1, 0))
    manager._transition_to(kafka_transactions.TransactionState.READY)
    producer = types.SimpleNamespace(
        config={"transactional_id": transactional_id},
        _sender=types.SimpleNamespace(_can_split=None),
        _transaction_manager=manager,
    )
    where = kafka.TopicPartition("t", 0)
    manager.set_sequence_number(where, 9)
    _patches.patch_isolate_rejections(producer, {("t", 0)})
    batch = types.SimpleNamespace(
        topic_partition=where, attempts=0, producer_id=1, producer_epoch=0, base_sequence=7
    )
    error = kafka_errors.MessageSizeTooLargeError()
    manager.classify_batch_error(error, batch)
    assert manager.sequence_number(where) == 7
    manager.bump_producer_id_and_epoch()
    manager.classify_batch_error(error, batch)
    assert manager.sequence_number(where) == 0
    # The client has the new epoch, and then divides the batch.
    manager.set_producer_id_and_epoch(kafka_transactions.ProducerIdAndEpoch(1, 1))
    manager._complete_epoch_bump()
    manager.set_sequence_number(where, 7)
    assert manager.sequence_number(where) == 0


def test_a_client_that_is_not_as_it_was_is_left_as_it_is() -> None:
    config = {"transactional_id": None}
    for sender in (None, types.SimpleNamespace(_can_split=None)):
        producer = types.SimpleNamespace(
            config=config, _transaction_manager=types.SimpleNamespace(), _sender=sender
        )
        assert _patches.patch_isolate_rejections(producer, set()) is None
        assert vars(producer._transaction_manager) == {}
        assert sender is None or vars(sender) == {"_can_split": None}


def test_a_client_without_idempotence_only_divides_the_batch_that_is_refused() -> None:
    def is_too_large(_batch: object, _error: object) -> bool:
        return False

    sender = types.SimpleNamespace(_can_split=is_too_large)
    producer = types.SimpleNamespace(
        config={"transactional_id": None}, _transaction_manager=None, _sender=sender
    )
    assert _patches.patch_isolate_rejections(producer, set()) is None
    batch = types.SimpleNamespace(record_count=2, attempts=0, final_state=None)
    assert sender._can_split(batch, kafka_errors.InvalidRecordError)
    assert not sender._can_split(batch, kafka_errors.InvalidTopicError)


@pytest.fixture
def refusals_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with an unknown implementation is left unchanged."""

    def leave_it(_producer: object, _refused: object) -> None:
        pass

    monkeypatch.setattr(_kafka_python, "patch_isolate_rejections", leave_it)


@pytest.mark.usefixtures("refusals_break")
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (MSG_SIZE_TOO_LARGE, "MessageSizeTooLargeError"),
        (INVALID_RECORD, "InvalidRecordError"),
        (TOPIC_AUTHORIZATION_FAILED, "TopicAuthorizationFailedError"),
    ],
)
def test_a_refusal_is_distinguished_from_the_failures_that_it_causes(
    cluster: MockCluster, code: int, name: str
) -> None:
    """kafka-python fails all records in flight with the error of the refused one."""
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(2, 0, rtt_ms=60_000)
        cluster.answer_next(1, code, rtt_ms=100)
        culprit, innocent = send_all(
            driver,
            recorder,
            [ProducerRecord(TWO_LEADERS, b"value", partition=number) for number in (0, 1)],
        )
        assert isinstance(culprit, RecordRejected)
        assert culprit.persistence is Persistence.NOT_PERSISTED
        assert type(culprit.__cause__).__name__ == name
        assert isinstance(innocent, DeliveryError)
        assert not isinstance(innocent, RecordRejected)
        assert innocent.persistence is Persistence.POSSIBLY_PERSISTED
        assert [type(error).__name__ for error in recorder.breaks] == [name]


@pytest.mark.usefixtures("refusals_break")
@pytest.mark.parametrize("attempt", range(4))
@pytest.mark.parametrize("own_partitioner", [False, True])
def test_other_records_of_a_refused_batch_are_never_reported_as_refused(
    cluster: MockCluster, attempt: int, own_partitioner: bool
) -> None:
    """This holds also if the records of each partition fill several batches, which fail in any
    order after the first was refused."""
    properties: dict[str, Any] = {"batch_size": 1_000}
    if own_partitioner:
        properties["partitioner"] = partitioner(int)
    with opened(cluster, properties=properties) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.set_rtt(2, 60_000)
        cluster.answer_next(1, INVALID_RECORD, rtt_ms=100)
        partitions = [1] * 8 + [0] * 16 + [1] * 8
        outcomes = send_all(
            driver,
            recorder,
            [
                ProducerRecord(
                    TWO_LEADERS,
                    bytes(300),
                    b"%d" % number,
                    partition=None if own_partitioner else number,
                )
                for number in partitions
            ],
        )
        guilty = outcomes[8:24]
        for outcome in outcomes[:8] + outcomes[24:]:
            assert isinstance(outcome, DeliveryError)
            assert not isinstance(outcome, RecordRejected)
            assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert isinstance(guilty[0], RecordRejected)
        if not own_partitioner:
            # No record after the refused one had been sent.
            assert {type(outcome) for outcome in guilty} == {RecordRejected}


def test_without_idempotence_only_the_refused_record_fails(cluster: MockCluster) -> None:
    with opened(cluster, properties={"enable.idempotence": "false"}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, INVALID_RECORD, rtt_ms=100)
        records = [ProducerRecord(TWO_LEADERS, b"value", partition=number) for number in (0, 1)]
        culprit, innocent = send_all(driver, recorder, records)
        assert isinstance(culprit, RecordRejected)
        metadata_of(innocent)
        metadata_of(send_all(driver, recorder, records)[0])
        assert recorder.breaks == []


def test_an_error_from_which_the_client_recovers_does_not_break_it(
    shared_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle: Any = kafka_sender.Sender._handle_produce_response
    to_spoil: list[int] = []

    def spoil(sender: Any, node_id: Any, sent: Any, batches: Any, response: Any) -> None:
        if to_spoil:
            response.responses[0].partition_responses[0].error_code = to_spoil.pop()
        handle(sender, node_id, sent, batches, response)

    monkeypatch.setattr(kafka_sender.Sender, "_handle_produce_response", spoil)
    with opened(shared_broker) as (driver, recorder):
        record = ProducerRecord(new_topic(), b"value", partition=0)
        metadata_of(send_all(driver, recorder, [record])[0])
        to_spoil.append(OUT_OF_ORDER_SEQUENCE_NUMBER)
        [outcome] = send_all(driver, recorder, [record])
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        # The embedded broker does not support KIP-360, so the client ends here.
        assert recorder.breaks == []


def test_an_error_from_which_the_client_can_not_recover_breaks_it(cluster: MockCluster) -> None:
    """Brokers before 2.5 do not support KIP-360, and kafka-python then hangs."""
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        record = ProducerRecord(TWO_LEADERS, b"value", partition=0)
        cluster.answer_next(1, OUT_OF_ORDER_SEQUENCE_NUMBER)
        [outcome] = send_all(driver, recorder, [record])
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert [type(error).__name__ for error in recorder.breaks] == [
            "OutOfOrderSequenceNumberError"
        ]


@pytest.mark.parametrize("way", ["append", "send"])
def test_a_broken_client_is_reported_although_later_records_hang(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Records are submitted together, in more than one batch, and the first batch fails."""
    if way == "send":
        no_short_cut(monkeypatch)
    with opened(cluster, properties={"batch_size": 1}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.answer_next(1, OUT_OF_ORDER_SEQUENCE_NUMBER)
        records = [ProducerRecord(TWO_LEADERS, b"value", partition=0) for _ in range(5)]
        assert driver.submit([Parcel(record) for record in records]).held == []
        recorder.wait(lambda: bool(recorder.breaks))
        assert [type(error).__name__ for error in recorder.breaks] == [
            "OutOfOrderSequenceNumberError"
        ]


@pytest.mark.usefixtures("refusals_break")
@pytest.mark.parametrize("code", [MSG_SIZE_TOO_LARGE, INVALID_RECORD, TOPIC_AUTHORIZATION_FAILED])
async def test_the_producer_replaces_a_broken_client(cluster: MockCluster, code: int) -> None:
    shout = Shout()
    async with open_send_producer(settings_for(cluster, value_serializer=shout)) as producer:
        outcomes: dict[int, object] = {}

        async def send(partition: int) -> None:
            try:
                record = ProducerRecord(TWO_LEADERS, "value", partition=partition)
                outcomes[partition] = await producer.send(record)
            except DeliveryError as error:
                outcomes[partition] = error

        await producer.partitions_for(TWO_LEADERS)
        cluster.answer_next(2, 0, rtt_ms=60_000)
        cluster.answer_next(1, code, rtt_ms=100)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send, 0)
            senders.start_soon(send, 1)
        culprit, innocent = outcomes[0], outcomes[1]
        assert isinstance(culprit, RecordRejected)
        assert culprit.persistence is Persistence.NOT_PERSISTED
        assert isinstance(innocent, DeliveryError)
        assert innocent.persistence is Persistence.POSSIBLY_PERSISTED
        with anyio.fail_after(PATIENCE):
            for partition in (0, 1):
                await send(partition)
                assert isinstance(outcomes[partition], RecordMetadata)
        assert producer.statistics().generations == 2
    assert shout.closed == 0


# --- opening and closing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"api_version": "nonsense"}, "invalid literal"),
        ({**FOR_MOCK, "compression_type": "zstd", "api_version": (0, 11)}, "Zstd"),
    ],
)
def test_a_setting_that_only_the_client_refuses_is_a_settings_error(
    cluster: MockCluster, properties: dict[str, Any], message: str
) -> None:
    driver = KafkaPythonDriver(settings_for(cluster, properties=properties))
    try:
        with pytest.raises(SettingsError, match=message):
            driver.open(Recorder())
    finally:
        driver.close(0)


def test_an_unknown_security_protocol_is_not_taken_for_none(cluster: MockCluster) -> None:
    changed = settings_for(cluster, properties={"security.protocol": "SLL"})
    with pytest.raises(SettingsError, match=r"security\.protocol"):
        KafkaPythonDriver(changed)


def test_a_driver_that_is_not_open_accepts_no_record() -> None:
    driver = KafkaPythonDriver(settings_for("127.0.0.1:1"))
    with pytest.raises(SendProducerError, match="not open"):
        driver.submit([Parcel(ProducerRecord("topic", b"value"))])
    with pytest.raises(SendProducerError, match="not open"):
        driver.partitions_for("topic")


def test_the_error_names_the_address_and_the_reason() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        driver = KafkaPythonDriver(settings_for(address, start_timeout=0.5))
        with pytest.raises(ProducerStartError) as caught:
            driver.open(Recorder())
    assert address in str(caught.value)
    assert "0.5 s (start_timeout)" in str(caught.value)
    assert f"no broker answered: {address}: Connection refused; " in str(caught.value)


def test_a_failed_first_metadata_request_is_repeated(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata: Any = importlib.import_module("kafka.cluster").ClusterMetadata
    request_update = metadata.request_update
    failures = [kafka_errors.KafkaConnectionError("gone"), kafka_errors.UnknownError("what?")]

    def fail_at_first(asked: Any) -> Any:
        if failures:
            return kafka_future.Future().failure(failures.pop())
        return request_update(asked)

    monkeypatch.setattr(metadata, "request_update", fail_at_first)
    with opened(cluster) as (driver, recorder):
        assert failures == []
        metadata_of(send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])[0])


def test_close_at_the_end_of_open_closes_the_client(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = KafkaPythonDriver(settings_for(cluster))
    connect = driver._connect

    def connect_and_close(*args: Any, **configs: Any) -> Any:
        client = connect(*args, **configs)
        driver.close(0)
        return client

    monkeypatch.setattr(driver, "_connect", connect_and_close)
    monkeypatch.setattr(_kafka_python, "_JOIN_SECONDS", PATIENCE)
    driver.open(Recorder())
    client: Any = driver._client
    assert client.is_closed.is_set()
    assert not client.closed_by.is_alive()


def test_after_close_records_are_not_accepted(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        driver.close(1)
        [outcome] = send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.NOT_PERSISTED


def test_a_record_larger_than_a_request_is_rejected(cluster: MockCluster) -> None:
    with opened(cluster, properties={"max_request_size": 1_000}) as (driver, recorder):
        large, small = send_all(
            driver,
            recorder,
            [ProducerRecord(TWELVE, bytes(size)) for size in (1_000, 100)],
        )
        assert isinstance(large, RecordRejected)
        assert large.persistence is Persistence.NOT_PERSISTED
        assert "max_request_size" in str(large)
        assert "properties={'max.request.size': ...}" in str(large)
        metadata_of(small)


def test_closing_with_records_pending_leaves_no_sender_thread(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        for broker in (1, 2):
            cluster.set_rtt(broker, 60_000)
        parcels = [Parcel(ProducerRecord(TWELVE, b"value")) for _ in range(100)]
        driver.submit(parcels)
        client: Any = driver._client
        began = time.monotonic()
        driver.close(0)
        assert time.monotonic() - began < PATIENCE / 3  # the answers take a minute
        sender = client.closed_by
        assert sender.name.endswith("-network-thread")
        assert not sender.is_alive()
        assert len(recorder.outcomes_of(parcels)) == 100


def test_close_waits_for_the_end_of_the_clients_thread(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kafka_sender.Sender.run

    def run_and_linger(sender: Any) -> None:
        run(sender)
        time.sleep(0.2)

    monkeypatch.setattr(kafka_sender.Sender, "run", run_and_linger)
    with opened(cluster) as (driver, _):
        client: Any = driver._client
        driver.close(0)
        assert not client.closed_by.is_alive()


def test_a_thread_that_does_not_end_is_abandoned_with_a_warning(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_kafka_python, "_JOIN_SECONDS", 0.01)
    called, let_go = threading.Event(), threading.Event()
    driver = KafkaPythonDriver(settings_for(cluster))
    recorder = Recorder()
    driver.open(recorder)
    learn(driver, recorder, TWELVE)

    def block(_: Any) -> None:
        called.set()
        assert let_go.wait(PATIENCE)

    metadata: Any = driver._client
    metadata.cluster.add_listener(block)
    metadata.cluster.request_update()
    assert called.wait(PATIENCE)
    parcels = [Parcel(ProducerRecord(TWELVE, b"value"))]
    driver.submit(parcels)
    driver.close(0)
    assert "the thread of kafka-python did not end" in caplog.text
    let_go.set()
    client: Any = driver._client
    assert client.is_closed.wait(PATIENCE)
    client.closed_by.join(PATIENCE)
    recorder.outcomes_of(parcels)


def test_collecting_a_driver_does_not_disable_the_clients_logger(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # kafka-python's own producers of earlier tests do
    log = logging.getLogger(kafka_producer_module.__name__)
    monkeypatch.setattr(kafka_producer_module, "log", log)
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
    del driver
    refused = KafkaPythonDriver(settings_for(cluster, properties={"api_version": "nonsense"}))
    with pytest.raises(SettingsError):
        refused.open(recorder)
    del refused
    gc.collect()
    assert kafka_producer_module.log is log


# --- what kafka-python must go on doing ----------------------------------------------------------


@pytest.fixture
def bare(cluster: MockCluster) -> Iterator[Any]:
    """kafka-python's own producer, unchanged except for the setting that keeps it from waiting."""
    producer = kafka.KafkaProducer(
        bootstrap_servers=cluster.bootstrap_servers,
        max_block_ms=0,
        allow_auto_create_topics=False,
        retry_backoff_ms=77,
        **FOR_MOCK,
    )
    try:
        yield producer
    finally:
        producer.close(1)
        producer._sender.join(PATIENCE)


def told_of(bare: Any, topics: set[str]) -> threading.Event:
    """Set when the client learns of these topics."""
    known = threading.Event()

    def look(metadata: Any) -> None:
        if topics <= metadata.topics():
            known.set()

    bare._metadata.add_listener(look)
    return known


def test_without_metadata_send_raises_at_once_and_requests_them_in_the_background(
    bare: Any,
) -> None:
    known = told_of(bare, {TWELVE, TWO_LEADERS})
    began = time.monotonic()
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        bare.send(TWELVE, b"value")
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        bare.partitions_for(TWO_LEADERS)
    assert time.monotonic() - began < PATIENCE / 3  # it would take a minute if it waited for them
    assert known.wait(PATIENCE)
    assert bare.partitions_for(TWELVE) == set(range(12))


def test_kafka_python_still_ignores_the_settings_that_the_driver_passes_on(bare: Any) -> None:
    """If this fails, kafka-python passes them on by itself, and the driver's own loop can be
    removed."""
    assert bare.config["allow_auto_create_topics"] is False
    assert bare._metadata.config["allow_auto_create_topics"] is True
    ignored = {"receive_buffer_bytes", "send_buffer_bytes"}
    assert ignored <= bare.config.keys()
    assert ignored.isdisjoint(bare._sender._client._manager.config)


def test_a_future_has_the_attributes_that_a_run_reads(bare: Any) -> None:
    known = told_of(bare, {TWELVE})
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        bare.send(TWELVE, b"value")
    assert known.wait(PATIENCE)
    future = bare.send(TWELVE, b"value", partition=3)
    assert future.get(PATIENCE) is future.value
    assert (future.is_done, future.exception) == (True, None)
    assert future.value._fields == (
        "topic",
        "partition",
        "topic_partition",
        "offset",
        "timestamp",
        "checksum",
        "serialized_key_size",
        "serialized_value_size",
        "serialized_header_size",
    )
    assert (future.value.topic, future.value.partition) == (TWELVE, 3)
    called: list[object] = []
    future.add_callback(called.append).add_errback(called.append)
    assert called == [future.value]


def test_a_refusal_still_ends_the_client(bare: Any) -> None:
    """If this fails, kafka-python reuses sequence numbers by itself, and our code can be
    removed."""
    manager = bare._transaction_manager
    refusal = kafka_errors.InvalidRecordError()
    assert manager.classify_batch_error(refusal, None) == manager.ERROR_CLASS_FATAL
    batch = kafka_producer_batch.ProducerBatch(kafka.TopicPartition(TWELVE, 3), None)
    assert (batch.attempts, batch.final_state) == (0, None)
    assert bare._sender._can_split.__code__.co_varnames[1:3] == ("batch", "error")
    assert _patches.patch_isolate_rejections(bare, set()) == manager.has_fatal_error


def test_a_direct_append_is_possible(bare: Any) -> None:
    """If this fails, every record is passed to KafkaProducer.send(), at half the speed."""
    known = told_of(bare, {TWELVE})
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        bare.send(TWELVE, b"value")
    assert known.wait(PATIENCE)
    parameters = [*inspect.signature(bare._accumulator.append).parameters]
    assert (*parameters[:5],) == _patches._APPEND
    at = kafka.TopicPartition(TWELVE, 3)
    future, is_full, is_new, undone = bare._accumulator.append(at, 7, None, b"value", [])
    assert (is_full, is_new, undone) == (False, True, False)
    bare._sender.wakeup()
    assert future.get(PATIENCE).partition == 3


def test_the_clients_thread_closes_its_network_client(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, _):
        client: Any = driver._client
        assert driver._ready().producer.config["kafka_client"].func == driver._connect
        assert isinstance(client, importlib.import_module("kafka.net.compat").KafkaNetClient)
        assert client.cluster.unauthorized_topics == set()
        assert client.cluster.config["allow_auto_create_topics"] is True
        driver.close(1)
        assert client.closed_by.name == "anyio-sendproducer-network-thread"


def test_a_metric_can_be_read_while_the_client_connects() -> None:
    client: Any = _network.NetClient(bootstrap_servers="127.0.0.1:1", proxy_url="direct://")
    connections = client.manager._conns
    of_kafka_python: Any = super(_network.NetClient, client)

    class Connecting:
        """A connection. When its requests are counted, the client makes another one."""

        @property
        def in_flight_requests(self) -> str:
            connections["next"] = types.SimpleNamespace(in_flight_requests="more")
            return "two"

    connections["first"] = Connecting()
    with pytest.raises(RuntimeError, match="changed size"):  # in kafka-python
        of_kafka_python.in_flight_request_count()
    del connections["next"]
    assert client.in_flight_request_count() == 3
    assert client.in_flight_request_count("next") == 4
    connections.clear()
    client.close()


def test_bare_a_connection_that_waits_for_an_answer_counts_as_idle(cluster: MockCluster) -> None:
    with leaking_sockets(), opened_bare(cluster, connections_max_idle_ms=100) as producer:
        producer.send(TWO_LEADERS, b"value", partition=0).get(PATIENCE)
        cluster.set_rtt(1, 1_000)
        track_requests(cluster)
        future = producer.send(TWO_LEADERS, b"value", partition=0)
        blocking_until(lambda: count_requests(cluster, 1, "Produce") > 1)
        cluster.set_rtt(1, 0)
        assert settles(future)


def test_a_connection_that_waits_for_an_answer_is_not_idle(cluster: MockCluster) -> None:
    with opened(cluster, properties={"connections.max.idle.ms": 100}) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        cluster.set_rtt(1, 1_000)
        track_requests(cluster)
        record = ProducerRecord(TWO_LEADERS, b"value", partition=0)
        metadata_of(send_all(driver, recorder, [record])[0])
        assert count_requests(cluster, 1, "Produce") == 1
        cluster.set_rtt(1, 0)


def test_a_batch_is_sent_again_if_its_connection_is_being_closed(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWO_LEADERS)
        client: Any = driver._client
        parcels = [Parcel(ProducerRecord(TWO_LEADERS, b"%d" % n, partition=0)) for n in range(2)]
        submit(driver, recorder, parcels[:1])
        recorder.wait(lambda: len(recorder.reports) == 1)

        def close_and_submit() -> None:
            connection = client.manager._conns[1]
            # The connection is closed when these bytes are sent.
            connection.send_request(client.cluster.metadata_request())
            connection.close()
            submit(driver, recorder, parcels[1:])

        client.manager.call_soon(close_and_submit)
        first, second = map(metadata_of, recorder.outcomes_of(parcels))
        assert counted_from([first], second) == 1


def test_closing_a_connection_does_not_close_the_client(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        metadata_of(send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])[0])
        client: Any = driver._client
        client.close(1)
        assert not client.is_closed.is_set()
        metadata_of(send_all(driver, recorder, [ProducerRecord(TWELVE, b"value")])[0])


@pytest.mark.parametrize("name", ["proxy_url", "socks5_proxy"])
def test_a_custom_proxy_is_used(name: str) -> None:
    proxy = "socks5://127.0.0.1:1"
    driver = KafkaPythonDriver(settings_for("127.0.0.1:1", properties={name: proxy}))
    assert driver._config[name] == proxy
    assert driver._config.get("proxy_url", proxy) == proxy


def test_allow_auto_create_topics_reaches_the_metadata_request(cluster: MockCluster) -> None:
    properties = {"allow_auto_create_topics": False, "retry_backoff_ms": 77}
    with opened(cluster, properties=properties) as (driver, _):
        client: Any = driver._client
        assert client.cluster.config["allow_auto_create_topics"] is False
        assert client.cluster.config["retry_backoff_ms"] == 77
        assert client.cluster.metadata_request().allow_auto_topic_creation is False


def test_the_size_of_a_buffer_reaches_the_socket(cluster: MockCluster) -> None:
    def size(sock: socket.socket) -> int:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 70_000)
        wanted = size(other)
    with opened(cluster, properties={"receive.buffer.bytes": 70_000}) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        client: Any = driver._client
        assert {size(one._sock) for one in [*client.manager.transports] if one._sock} == {wanted}


def test_the_repr_of_the_client_is_cheap(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, _):
        assert str(driver._ready().producer) == "<KafkaProducer client_id=anyio-sendproducer>"


def test_records_that_a_closed_client_still_had_say_so(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        learn(driver, recorder, TWELVE)
        cluster.set_rtt(1, 5_000)
        parcel = Parcel(ProducerRecord(TWELVE, b"value"))
        driver.submit([parcel])
        driver.close(0)
        [outcome] = recorder.outcomes_of([parcel])
    assert isinstance(outcome, DeliveryError)
    assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
    assert str(outcome) == (
        "the record was not acknowledged: the client was closed before a broker had answered: "
        "the producer ended, or it gave up the client"
    )
