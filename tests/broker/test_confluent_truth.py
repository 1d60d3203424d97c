"""The librdkafka driver's reports of failed records, on a mock cluster."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Any

import anyio.to_thread
import pytest
from confluent_kafka import KafkaError

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    open_send_producer,
)
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from anyio_sendproducer.testing import MockCluster, mock_cluster
from tests.support.calls import SENT_ONCE, raising
from tests.support.recorder import Parcel, Recorder, asked, learn, submit_all
from tests.support.sequenced_broker import Batch, sequenced_brokers


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster(1) as running:
        running.create_topic("t", [1])
        yield running


@contextlib.contextmanager
def opened(
    cluster: MockCluster, **changes: Any
) -> Generator[tuple[ConfluentDriver, Recorder], None, None]:
    """A driver that has sent a record, so that it knows the topic and has a producer id."""
    settings = ProducerSettings(bootstrap_servers=cluster.bootstrap_servers).evolve(**changes)
    driver, recorder = ConfluentDriver(settings), Recorder()
    driver.open(recorder)
    try:
        with asked(driver, recorder):
            learn(driver, recorder, "t")
            [first] = sent(driver, recorder, 1)
            assert isinstance(first, RecordMetadata)
            yield driver, recorder
    finally:
        driver.close(0)


def sent(driver: ConfluentDriver, recorder: Recorder, count: int) -> list[Any]:
    """Send this number of records, and wait for their outcomes."""
    recorder.reports.clear()
    parcels = parcels_of(count)
    submit_all(driver, parcels)
    return list(recorder.outcomes_of(parcels))


def parcels_of(count: int) -> list[Parcel]:
    return [Parcel(ProducerRecord("t", b"%d" % number, partition=0)) for number in range(count)]


def answer_soon(cluster: MockCluster, error: int) -> None:
    """Answer the next requests with these errors. An answer behind a late one may be lost as
    well."""
    for _ in range(4):
        cluster.answer_next(1, error)


def test_a_record_that_was_sent_once_and_refused_is_not_persisted(cluster: MockCluster) -> None:
    with opened(cluster, properties=SENT_ONCE) as (driver, recorder):
        cluster.answer_next(1, KafkaError.POLICY_VIOLATION)
        [refused] = sent(driver, recorder, 1)
        assert isinstance(refused, RecordRejected)
        assert refused.persistence is Persistence.NOT_PERSISTED
        assert recorder.breaks == []


def test_a_record_that_may_have_been_sent_before_and_is_refused_is_possibly_persisted(
    cluster: MockCluster,
) -> None:
    """The first attempt is written, and its answer comes too late."""
    with opened(cluster, properties={"socket.timeout.ms": 300}) as (driver, recorder):
        cluster.answer_next(1, 0, rtt_ms=3_000)
        answer_soon(cluster, KafkaError.TOPIC_AUTHORIZATION_FAILED)
        [refused] = sent(driver, recorder, 1)
        assert type(refused) is DeliveryError
        assert refused.persistence is Persistence.POSSIBLY_PERSISTED


def test_if_one_record_has_no_offset_its_whole_batch_has_none(cluster: MockCluster) -> None:
    """The broker recognizes a repetition, and reports no offset. librdkafka counts up from -1."""
    # Long enough for all three to be in one batch.
    properties = {"linger.ms": 100, "socket.timeout.ms": 300}
    with opened(cluster, properties=properties) as (driver, recorder):
        cluster.answer_next(1, 0, rtt_ms=3_000)
        answer_soon(cluster, KafkaError.DUPLICATE_SEQUENCE_NUMBER)
        told = sent(driver, recorder, 3)
        while told[0].offset is None:
            assert told == [RecordMetadata("t", 0, None, None, None, 1)] * 3
            told = sent(driver, recorder, 3)
        # Records sent after the planned answers have offsets.
        assert [one.offset for one in told] == [4, 5, 6]


def test_records_that_a_broken_client_refuses_are_given_back(cluster: MockCluster) -> None:
    """Its records are for its replacement."""
    with opened(cluster) as (driver, recorder):
        cluster.answer_next(1, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
        [failed] = sent(driver, recorder, 1)
        assert type(failed) is DeliveryError
        assert failed.persistence is Persistence.POSSIBLY_PERSISTED
        recorder.wait(lambda: len(recorder.breaks) == 1)
        parcels = parcels_of(3)
        assert driver.submit(parcels).held == parcels
        assert len(recorder.breaks) == 1


def test_a_record_given_up_with_the_client_has_the_clients_error() -> None:
    with mock_cluster(2) as cluster:
        cluster.create_topic("t", [1, 2])
        with opened(cluster) as (driver, recorder):
            cluster.set_rtt(2, 20_000)  # no answer
            cluster.answer_next(1, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
            recorder.reports.clear()
            parcels = [Parcel(ProducerRecord("t", b"v", partition=number)) for number in (1, 0)]
            driver.submit(parcels)
            recorder.wait(lambda: len(recorder.breaks) == 1)
            driver.close(0)
            for failed in recorder.outcomes_of(parcels):
                assert isinstance(failed, DeliveryError)
                assert "out of order" in str(failed) or "OUT_OF_ORDER" in str(failed)
                assert failed.persistence is Persistence.POSSIBLY_PERSISTED


async def test_a_record_given_up_with_its_transaction_has_the_transactions_error(
    cluster: MockCluster,
) -> None:
    settings = cluster.settings("confluent", transactional_id="id")
    cluster.create_topic("u", [1])
    async with open_send_producer(settings, driver="confluent") as producer:
        with raising(DeliveryError, match="INVALID_PRODUCER_ID_MAPPING"):
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord("t", b"v", partition=0))
                cluster.answer_any("INVALID_PRODUCER_ID_MAPPING", api="AddPartitionsToTxn")
                await tx.send(ProducerRecord("u", b"v", partition=0))
        async with producer.transaction() as tx:
            await tx.send(ProducerRecord("t", b"v", partition=0))


@pytest.mark.parametrize(
    "code", [KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED], ids=["epoch", "fenced"]
)
def test_a_producer_without_a_transactional_id_is_not_fenced(
    cluster: MockCluster, code: int
) -> None:
    with opened(cluster) as (driver, recorder):
        cluster.answer_next(1, code)
        [failed] = sent(driver, recorder, 1)
        assert type(failed) is DeliveryError
        assert failed.persistence is Persistence.POSSIBLY_PERSISTED
        assert not any(isinstance(error, ProducerFenced) for error in recorder.breaks)
        assert isinstance(sent(driver, recorder, 1)[0], RecordMetadata)


def test_records_for_a_deleted_topic_are_possibly_persisted(cluster: MockCluster) -> None:
    """The topic existed before, so it may exist again."""
    with opened(cluster, unknown_topic_timeout=0.001) as (driver, recorder):
        known = ProducerRecord("t", b"", partition=0)
        never = ProducerRecord("never", b"", partition=0)
        error = KafkaError(KafkaError._UNKNOWN_TOPIC)

        class Message:
            def latency(self) -> float:
                return 1.0

            def partition(self) -> int:
                return 0

        failure = driver._submitter._outcomes.failure
        outcomes = [failure(record, error, Message()) for record in (known, never)]
        assert [one.persistence for one in outcomes] == [
            Persistence.POSSIBLY_PERSISTED,
            Persistence.NOT_PERSISTED,
        ]
        assert "does not know topic 'never'" in str(outcomes[1])
        # If a topic was never written to, no sequence number is missing.
        [broken] = recorder.breaks
        assert "_UNKNOWN_TOPIC" in str(broken)


@pytest.mark.parametrize("partition", [1, None], ids=["named", "chosen"])
async def test_the_first_record_of_a_topic_that_disappears_may_be_persisted(
    partition: int | None,
) -> None:
    """A broker wrote the record, but its answer was lost."""
    with sequenced_brokers() as brokers:
        is_written = threading.Event()

        def lose(_: Batch) -> None:
            brokers.second_answers.clear()
            brokers.unknown.add("t")
            is_written.set()

        brokers.judge = lose
        settings = ProducerSettings(
            bootstrap_servers=brokers.address,
            unknown_topic_timeout=0.2,
            properties={"topic.metadata.refresh.interval.ms": 100, "retry.backoff.ms": 1},
        )
        async with open_send_producer(settings, driver="confluent") as producer:
            # With this key, librdkafka chooses partition 1.
            delivery = await producer.enqueue(ProducerRecord("t", b"v", b"1", partition=partition))
            await anyio.to_thread.run_sync(is_written.wait)
            with pytest.raises(DeliveryError) as caught:
                await delivery.wait()
            brokers.second_answers.set()
        assert brokers.values == [b"v"]
    assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED


def test_records_for_a_topic_that_became_forbidden_may_be_persisted(cluster: MockCluster) -> None:
    """librdkafka fails all records of the topic with the error, also those that it did not send.
    Its fatal error names the refused partition."""
    gapless = {**SENT_ONCE, "enable.gapless.guarantee": True}
    with opened(cluster, properties=gapless) as (driver, _):
        error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        record = ProducerRecord("t", b"")
        said = "ProduceRequest for t [1] with 1 message(s) failed: Topic authorization failed"
        driver._health.on_error(KafkaError(KafkaError._GAPLESS_GUARANTEE, said, True))

        class Message:
            def __init__(self, partition: int) -> None:
                self.partition = lambda: partition

            def latency(self) -> float:
                return 0.0

        failure = driver._submitter._outcomes.failure
        outcomes = [failure(record, error, Message(number)) for number in (0, 1, 2)]
        assert [one.persistence for one in outcomes] == [
            Persistence.POSSIBLY_PERSISTED,
            Persistence.NOT_PERSISTED,
            Persistence.POSSIBLY_PERSISTED,
        ]
