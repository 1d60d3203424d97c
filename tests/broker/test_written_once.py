"""Events that could make a client write a record twice: a lost answer on one broker, and another
event on another broker before the client can send the record again.

The record whose answer is lost is in the log. If the client sends it again with the same sequence
number, the broker recognizes it. If the client has taken new sequence numbers meanwhile, the record
is there twice. The page on written-once delivery has a row for each test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
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
from tests.support.mock_cluster import FOR_MOCK
from tests.support.named_tests import named_tests, names_of_tests
from tests.support.sequenced_broker import Batch, SequencedBrokers, sequenced_brokers
from tests.support.waiting import PATIENCE

UNKNOWN_TOPIC_OR_PARTITION = 3
MESSAGE_TOO_LARGE = 10
NOT_ENOUGH_REPLICAS = 19
TOPIC_AUTHORIZATION_FAILED = 29
UNKNOWN_PRODUCER_ID = 59

LOST = b"its answer is lost"

Outcome = RecordMetadata | DeliveryError


@pytest.fixture
def brokers() -> Iterator[SequencedBrokers]:
    with sequenced_brokers() as running:
        yield running


def settings_for(
    brokers: SequencedBrokers, driver: DriverName, **properties: Any
) -> ProducerSettings:
    if driver == "kafka-python":
        properties = {**FOR_MOCK, **properties}
    return ProducerSettings(
        bootstrap_servers=brokers.address, delivery_timeout=PATIENCE, properties=properties
    )


class Judge:
    """Loses the answer to `LOST` once, and then leaves the second broker silent until `hear`.

    Subclasses judge the batches of partition 0.
    """

    def __init__(self, brokers: SequencedBrokers) -> None:
        self.brokers = brokers
        self.is_lost = threading.Event()
        brokers.judge = self

    def __call__(self, batch: Batch) -> int | None:
        if LOST in batch.values and not self.is_lost.is_set():
            self.brokers.second_answers.clear()
            self.is_lost.set()
            return None
        return self.judge(batch) if batch.partition == 0 else 0

    def judge(self, batch: Batch) -> int:
        raise NotImplementedError

    def hear(self) -> None:
        self.brokers.second_answers.set()


class Refusing(Judge):
    """Answers records with this value with an error, a number of times."""

    def __init__(self, brokers: SequencedBrokers, code: int, times: int = 1) -> None:
        super().__init__(brokers)
        self.code = code
        self.times = times

    def judge(self, batch: Batch) -> int:
        if b"bad" in batch.values and self.times:
            self.times -= 1
            return self.code
        return 0


async def enqueue(producer: SendProducer, value: bytes, partition: int) -> Delivery:
    return await producer.enqueue(ProducerRecord("t", value, partition=partition))


async def outcome(delivery: Delivery) -> Outcome:
    try:
        return await delivery.wait()
    except DeliveryError as error:
        return error


async def lose_one(producer: SendProducer, judge: Judge) -> Delivery:
    """Have the client write to both partitions, and lose the answer to its next record."""
    for partition in (0, 1):
        await producer.send(ProducerRecord("t", b"first", partition=partition))
    lost = await enqueue(producer, LOST, 1)
    await anyio.to_thread.run_sync(judge.is_lost.wait)
    return lost


async def go_on(producer: SendProducer) -> None:
    for partition in (0, 1):
        await producer.send(ProducerRecord("t", b"last", partition=partition))


def assert_once(brokers: SequencedBrokers, *outcomes: Outcome) -> None:
    """Check that each acknowledged record is in the log once, and no record is in it twice."""
    ends = [value for value in brokers.values if value not in {b"first", b"last"}]
    assert len(ends) == len(set(ends))
    assert sum(isinstance(one, RecordMetadata) for one in outcomes) <= len(ends)
    assert brokers.values.count(b"first") == brokers.values.count(b"last") == 2


def assert_it_may_be_there(lost: Outcome) -> None:
    assert isinstance(lost, DeliveryError)
    assert lost.persistence is Persistence.POSSIBLY_PERSISTED


@pytest.mark.parametrize("code", [MESSAGE_TOO_LARGE, TOPIC_AUTHORIZATION_FAILED])
async def test_a_record_is_refused(
    driver: DriverName, brokers: SequencedBrokers, code: int
) -> None:
    judge = Refusing(brokers, code)
    gapless = {"enable_gapless_guarantee": True} if driver == "confluent" else {}
    settings = sure_of_refusals(settings_for(brokers, driver, **gapless), driver)
    async with open_send_producer(settings, driver=driver) as producer:
        lost = await lose_one(producer, judge)
        refused = await outcome(await enqueue(producer, b"bad", 0))
        judge.hear()
        ended = await outcome(lost)
        await go_on(producer)
    assert isinstance(refused, RecordRejected)
    assert_once(brokers, ended)
    if driver == "kafka-python":
        assert isinstance(ended, RecordMetadata)
    else:
        assert_it_may_be_there(ended)


class RejectingFirst(Judge):
    """Rejects the first of two batches temporarily, when the client has sent the second, or after
    some seconds."""

    def __init__(self, brokers: SequencedBrokers, seconds: float) -> None:
        super().__init__(brokers)
        self.seconds = seconds
        self.has_first = threading.Event()
        self.has_second = threading.Event()

    def judge(self, batch: Batch) -> int:
        if b"one" in batch.values and not self.has_first.is_set():
            self.has_first.set()
            self.has_second.wait(PATIENCE)
            self.brokers.next_batch_comes(self.seconds)
            return NOT_ENOUGH_REPLICAS
        return 0


async def reject_first(
    driver: DriverName, brokers: SequencedBrokers, seconds: float = 0.3, **properties: Any
) -> list[Outcome]:
    judge = RejectingFirst(brokers, seconds)
    settings = settings_for(brokers, driver, **properties)
    async with open_send_producer(settings, driver=driver) as producer:
        lost = await lose_one(producer, judge)
        one = await enqueue(producer, b"one", 0)
        await anyio.to_thread.run_sync(judge.has_first.wait)
        two = await enqueue(producer, b"two", 0)
        judge.has_second.set()
        outcomes = [await outcome(one), await outcome(two)]
        judge.hear()
        outcomes.append(await outcome(lost))
        await go_on(producer)
    return outcomes


async def test_a_batch_is_rejected_for_now(driver: DriverName, brokers: SequencedBrokers) -> None:
    outcomes = await reject_first(driver, brokers)
    assert [type(one) for one in outcomes] == [RecordMetadata] * 3
    assert_once(brokers, *outcomes)
    values = brokers.values
    assert values.index(b"one") < values.index(b"two")


async def test_the_number_of_attempts_is_limited(
    driver: DriverName, brokers: SequencedBrokers
) -> None:
    """librdkafka goes on. kafka-python gives up the record, and then its client is given up."""
    judge = Refusing(brokers, NOT_ENOUGH_REPLICAS, times=3)
    settings = settings_for(brokers, driver, retries=1, retry_backoff_ms=10)
    async with open_send_producer(settings, driver=driver) as producer:
        lost = await lose_one(producer, judge)
        outcomes = [
            await outcome(await enqueue(producer, b"bad", 0)),
            await outcome(await enqueue(producer, b"next", 0)),
        ]
        judge.hear()
        outcomes.append(await outcome(lost))
        await go_on(producer)
    assert_once(brokers, *outcomes)
    if driver == "confluent":
        assert [type(one) for one in outcomes] == [RecordMetadata] * 3
    else:
        for one in outcomes:
            assert_it_may_be_there(one)


async def test_a_topic_does_not_exist_for_a_while(brokers: SequencedBrokers) -> None:
    """librdkafka fails the topic's records, which leaves a gap. With kafka-python they wait."""
    judge = Refusing(brokers, UNKNOWN_TOPIC_OR_PARTITION, times=1000)
    settings = settings_for(brokers, "confluent", topic_metadata_refresh_interval_ms=100)
    settings = settings.evolve(unknown_topic_timeout=0.2)
    async with open_send_producer(settings, driver="confluent") as producer:
        await producer.send(ProducerRecord("u", b"first", partition=0))
        lost = await lose_one(producer, judge)
        brokers.unknown.add("u")
        gone = await outcome(await producer.enqueue(ProducerRecord("u", b"bad", partition=0)))
        brokers.unknown.clear()
        # Until the client knows the topic again.
        while isinstance(
            await outcome(await producer.enqueue(ProducerRecord("u", b"last", partition=0))),
            DeliveryError,
        ):
            pass
        judge.hear()
        ended = await outcome(lost)
        await go_on(producer)
    assert isinstance(gone, DeliveryError)
    assert_it_may_be_there(ended)
    assert brokers.values.count(LOST) == 1


# --- what is written twice all the same ---------------------------------------------------


async def lose_and_hear(
    driver: DriverName, brokers: SequencedBrokers, **properties: Any
) -> Outcome:
    judge = Refusing(brokers, 0, times=0)
    settings = settings_for(brokers, driver, **properties)
    async with open_send_producer(settings, driver=driver) as producer:
        lost = await lose_one(producer, judge)
        brokers.forget()
        judge.hear()
        return await outcome(lost)


async def test_a_client_without_idempotence(driver: DriverName, brokers: SequencedBrokers) -> None:
    ended = await lose_and_hear(driver, brokers, enable_idempotence=False)
    assert isinstance(ended, RecordMetadata)
    assert brokers.values.count(LOST) == 2


async def test_a_broker_forgets_the_producer(driver: DriverName, brokers: SequencedBrokers) -> None:
    """As it does after a day (`producer.id.expiration.ms`) without a record of this producer."""
    ended = await lose_and_hear(driver, brokers)
    assert isinstance(ended, RecordMetadata)
    assert brokers.values.count(LOST) == 2


@pytest.mark.parametrize("log_start", [0, 1_000], ids=["complete", "after_retention"])
async def test_a_broker_does_not_know_the_producer_id(
    driver: DriverName, brokers: SequencedBrokers, log_start: int
) -> None:
    """Brokers since Apache Kafka 2.5 do not give this answer."""
    brokers.log_start = log_start
    # librdkafka sends the record again, with another number. kafka-python must not.
    judge = Refusing(brokers, UNKNOWN_PRODUCER_ID, times=1 if driver == "confluent" else 1_000)
    settings = settings_for(brokers, driver)
    async with open_send_producer(settings, driver=driver) as producer:
        lost = await lose_one(producer, judge)
        bad = await outcome(await enqueue(producer, b"bad", 0))
        judge.hear()
        ended = await outcome(lost)
        await go_on(producer)
    if driver == "confluent":
        assert isinstance(bad, RecordMetadata)
        assert isinstance(ended, RecordMetadata)
        assert brokers.values.count(LOST) == 2
    else:
        assert_it_may_be_there(ended)
        assert_once(brokers, ended)


async def test_librdkafka_with_several_requests_in_flight(brokers: SequencedBrokers) -> None:
    # The client certainly sends the second batch before the answer to the first.
    properties = {"max_in_flight_requests_per_connection": 5}
    outcomes = await reject_first("confluent", brokers, PATIENCE, **properties)
    assert [type(one) for one in outcomes] == [RecordMetadata] * 3
    assert brokers.values.count(LOST) == 2


async def test_librdkafka_that_goes_on_after_a_refusal(brokers: SequencedBrokers) -> None:
    judge = Refusing(brokers, MESSAGE_TOO_LARGE)
    settings = settings_for(brokers, "confluent")
    async with open_send_producer(settings, driver="confluent") as producer:
        lost = await lose_one(producer, judge)
        await outcome(await enqueue(producer, b"bad", 0))
        judge.hear()
        assert isinstance(await outcome(lost), RecordMetadata)
        await go_on(producer)
        assert producer.statistics().generations == 1
    assert brokers.values.count(LOST) == 2


# --- the list ------------------------------------------------------------------------------------


def test_the_page_names_each_of_these_tests() -> None:
    named = named_tests("docs/explanation/written-once.md")
    for path, names in named.items():
        assert names - names_of_tests(path) == set()
    here = names_of_tests("tests/broker/test_written_once.py")
    assert here - named["tests/broker/test_written_once.py"] == {
        "test_the_page_names_each_of_these_tests"
    }
