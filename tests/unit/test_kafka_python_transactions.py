"""Transactions of the driver on kafka-python, with a transaction manager that a test controls."""

from __future__ import annotations

import importlib
import threading
import time
import types
from typing import Any

import kafka.errors
import kafka.structs
import pytest

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    ProducerClosed,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from anyio_sendproducer.drivers import ConsumedOffset, Deadline
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.kafka_python._transactions import Transactions
from tests.support.fake_kafka_client import opened_on
from tests.support.recorder import Parcel

SETTINGS = ProducerSettings(bootstrap_servers="broker.invalid:1", transactional_id="id")

#: An error code of Kafka's protocol.
ILLEGAL_GENERATION = 22

GROUP = ConsumerGroupMetadata("group")


class Result:
    """The client's result of a request: done at once, later, or never."""

    def __init__(self, error: Exception | None = None, after: int = 0) -> None:
        self.error = error
        self.after = after

    def wait(self, _: float) -> bool:
        if self.after:
            self.after -= 1
            return False
        if self.error is not None:
            raise self.error
        return True


class Manager:
    """The client's transaction manager."""

    def __init__(self) -> None:
        self.result: Any = Result()
        self.last_error: Exception | None = None
        self.abortable = False
        self.fatal = False
        self.bumping = 0
        self.begin_error: Exception | None = None
        self._pending_txn_offset_commits: dict[Any, Any] = {}
        self.transaction_timeout_ms = 60_000

    def is_bumping_epoch(self) -> bool:
        self.bumping -= 1
        return self.bumping >= 0

    def has_error(self) -> bool:
        return self.abortable or self.fatal

    def has_abortable_error(self) -> bool:
        return self.abortable

    def begin_commit(self) -> Any:
        if self.begin_error is not None:
            raise self.begin_error
        return self.result

    begin_abort = begin_commit

    def send_offsets_to_transaction(self, offsets: Any, group: Any) -> Any:
        assert [(*where, *what) for where, what in offsets.items()] == [("t", 1, 5, "note", 2)]
        assert (group.group_id, group.generation_id) == ("group", -1)
        return self.begin_commit()


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def driver(manager: Manager) -> KafkaPythonDriver:
    def begin() -> None:
        if manager.begin_error is not None:
            raise manager.begin_error

    accumulator = types.SimpleNamespace(_batches={})
    producer: Any = types.SimpleNamespace(begin_transaction=begin, _accumulator=accumulator)
    connections = types.SimpleNamespace(last_error=lambda: None)
    client: Any = types.SimpleNamespace(wakeup=lambda: None, manager=connections)
    return opened_on(SETTINGS, producer, client, manager)


def send_offsets(driver: KafkaPythonDriver, seconds: float = 10.0) -> None:
    driver.send_offsets([ConsumedOffset("t", 1, 5, "note", 2)], GROUP, Deadline(seconds))


def test_records_of_a_lost_transaction_are_dropped(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    """The client would send them in the next transaction."""
    accumulator = importlib.import_module("kafka.producer.record_accumulator").RecordAccumulator()
    producer: Any = driver._ready().producer
    producer._accumulator = accumulator
    future, *_ = accumulator.append(kafka.structs.TopicPartition("t", 0), 1, None, b"value", [])
    manager.begin_error = kafka.errors.KafkaError("READY to ABORTING_TRANSACTION")
    driver.end_transaction(False, Deadline(10))
    assert isinstance(future.exception, kafka.errors.TransactionAbortedError)
    assert not accumulator.has_undrained()
    assert not accumulator.has_incomplete


def test_a_transaction_that_took_too_long_may_be_why_the_producer_is_fenced(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    says = r"another producer took over transactional_id 'id'"
    for timeout_ms, more in ((60_000, ""), (0, ", or its transaction took .*timeout.ms=0")):
        manager.transaction_timeout_ms = timeout_ms
        driver.begin_transaction()
        manager.result = Result(kafka.errors.ProducerFencedError())
        with pytest.raises(ProducerFenced, match=f"{says}{more}$"):
            driver.end_transaction(False, Deadline(10))


def test_the_client_may_be_closed_while_records_of_a_lost_transaction_are_dropped(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    """The client's own thread then aborts all batches that are not complete."""
    accumulator = importlib.import_module("kafka.producer.record_accumulator").RecordAccumulator()
    producer: Any = driver._ready().producer
    producer._accumulator = accumulator
    future, *_ = accumulator.append(kafka.structs.TopicPartition("t", 0), 1, None, b"value", [])
    [batch] = accumulator._incomplete.all()
    closed = kafka.errors.IllegalStateError("Producer is closed forcefully.")
    deallocate = accumulator.deallocate

    def close_and_deallocate(one: Any) -> None:
        accumulator.deallocate = deallocate
        accumulator.abort_batches(closed)
        deallocate(one)

    accumulator.deallocate = close_and_deallocate
    manager.begin_error = kafka.errors.KafkaError("READY to ABORTING_TRANSACTION")
    driver.end_transaction(False, Deadline(10))
    batch.abort(closed)  # the client's thread may have found the batch before it was dropped
    assert isinstance(future.exception, kafka.errors.TransactionAbortedError)
    assert not accumulator.has_incomplete


def test_a_transaction_is_begun_once(driver: KafkaPythonDriver, manager: Manager) -> None:
    """A transaction that was begun but not used serves the next call."""
    driver.begin_transaction()
    manager.begin_error = RuntimeError("not twice")
    driver.begin_transaction()
    manager.begin_error = None
    driver.end_transaction(True, Deadline(10))
    manager.begin_error = kafka.errors.KafkaError("no")
    with pytest.raises(TransactionError, match="could not be begun: no"):
        driver.begin_transaction()


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_offsets_of_an_aborted_transaction_are_forgotten(is_forgotten: bool) -> None:
    """The manager is kafka-python's own. It does not forget them by itself."""
    manager: Any = importlib.import_module("kafka.producer.transaction_manager").TransactionManager(
        transactional_id="id", api_version=(2, 5)
    )

    def answer(**fields: Any) -> Any:
        handler = manager.next_request_handler(False)
        handler.handle_response(types.SimpleNamespace(**fields))
        return handler.request

    def send_offset(partition: int, code: int) -> list[int]:
        where = kafka.structs.TopicPartition("t", partition)
        position = kafka.structs.OffsetAndMetadata(5, "", -1)
        manager.send_offsets_to_transaction({where: position}, "group")
        answer(error_code=0)
        [topic] = answer(topics=[("t", [(partition, code)])]).topics
        return sorted(one.partition_index for one in topic.partitions)

    nothing: Any = None
    producer: Any = types.SimpleNamespace(begin_transaction=manager.begin_transaction)
    transactions = Transactions(SETTINGS, producer, manager, nothing, nothing)
    begin = transactions.begin if is_forgotten else manager.begin_transaction
    manager.initialize_transactions()
    answer(error_code=0, producer_id=1, producer_epoch=0)
    manager.begin_transaction()
    assert send_offset(0, ILLEGAL_GENERATION) == [0]
    manager.begin_abort()
    answer(error_code=0)
    begin()
    assert send_offset(1, 0) == ([1] if is_forgotten else [0, 1])


def test_a_late_answer_is_waited_for(driver: KafkaPythonDriver, manager: Manager) -> None:
    manager.result = Result(after=2)
    send_offsets(driver)
    manager.result = Result(after=2)
    manager.bumping = 2
    driver.end_transaction(True, Deadline(10))


def test_a_missing_answer_is_an_error(driver: KafkaPythonDriver, manager: Manager) -> None:
    manager.result = Result(after=10**9)
    with pytest.raises(TransactionError, match="offsets of group 'group' could not be sent: there"):
        send_offsets(driver, 0)
    with pytest.raises(TransactionOutcomeUnknown, match="no broker said whether it was done"):
        driver.end_transaction(True, Deadline(0))
    with pytest.raises(TransactionError, match="could not be aborted: there was no answer"):
        driver.end_transaction(False, Deadline(0))
    manager.bumping = 10**9
    with pytest.raises(TransactionError, match="could not be aborted: the client is getting anoth"):
        driver.end_transaction(False, Deadline(0))


def test_a_commit_that_was_not_requested_is_an_abort(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    manager.bumping = 10**9
    with pytest.raises(TransactionAborted, match="the client is getting another producer epoch"):
        driver.end_transaction(True, Deadline(0))
    manager.bumping = 0
    manager.fatal, manager.last_error = True, kafka.errors.KafkaError("out of order")
    manager.begin_error = kafka.errors.KafkaError("we are in an error state")
    with pytest.raises(TransactionAborted, match="could not be committed: out of order"):
        driver.end_transaction(True, Deadline(10))
    with pytest.raises(TransactionError, match="could not be aborted: out of order") as caught:
        driver.end_transaction(False, Deadline(10))
    assert type(caught.value) is TransactionError


@pytest.mark.parametrize("bumping", [0, 10**9])
def test_closing_ends_the_wait(driver: KafkaPythonDriver, manager: Manager, bumping: int) -> None:
    manager.result = Result(after=10**9)
    manager.bumping = bumping
    ended: list[BaseException] = []

    def end() -> None:
        try:
            driver.end_transaction(True, Deadline(1000))
        except TransactionError as error:
            ended.append(error)

    waiting = threading.Thread(target=end)
    waiting.start()
    driver._closing.set()
    waiting.join(60)
    assert isinstance(ended[0], TransactionAborted if bumping else TransactionOutcomeUnknown)


def test_a_refused_transaction_must_be_aborted(driver: KafkaPythonDriver, manager: Manager) -> None:
    refused = kafka.errors.TopicAuthorizationFailedError("t")
    manager.abortable, manager.last_error = True, refused
    manager.result = Result(refused)
    with pytest.raises(TransactionAborted, match="could not be committed: t"):
        driver.end_transaction(True, Deadline(10))
    with pytest.raises(TransactionAborted, match="could not be sent: t"):
        send_offsets(driver)
    manager.begin_error = kafka.errors.KafkaError("we are in an error state")
    with pytest.raises(TransactionAborted, match="could not be committed: t") as caught:
        driver.end_transaction(True, Deadline(10))
    assert caught.value.__cause__ is manager.begin_error


def test_a_lost_epoch_ends_the_transaction(driver: KafkaPythonDriver, manager: Manager) -> None:
    """The client has ended the transaction, so nothing is left to abort."""
    driver.begin_transaction()
    manager.begin_error = kafka.errors.KafkaError("invalid transition")
    with pytest.raises(TransactionAborted, match="the client lost its producer epoch"):
        driver.end_transaction(True, Deadline(10))
    driver.end_transaction(False, Deadline(10))
    manager.begin_error = None
    driver.begin_transaction()


def test_a_fatal_error_leaves_the_outcome_of_a_commit_unknown(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    manager.fatal, manager.last_error = True, kafka.errors.KafkaError("timed out")
    manager.result = Result(manager.last_error)
    with pytest.raises(TransactionOutcomeUnknown):
        driver.end_transaction(True, Deadline(10))
    with pytest.raises(TransactionError, match="could not be aborted: timed out"):
        driver.end_transaction(False, Deadline(10))


@pytest.mark.parametrize(
    "error", [kafka.errors.ProducerFencedError(), kafka.errors.InvalidProducerEpochError()]
)
def test_a_fenced_client_raises_producer_fenced(
    driver: KafkaPythonDriver, manager: Manager, error: Exception
) -> None:
    manager.fatal, manager.last_error = True, error
    manager.result = Result(error)
    for commit in (True, False):
        with pytest.raises(ProducerFenced, match="took over transactional_id 'id'") as caught:
            driver.end_transaction(commit, Deadline(10))
        assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [kafka.errors.ProducerFencedError(), kafka.errors.InvalidProducerEpochError()]
)
def test_after_a_refused_epoch_the_producer_may_be_fenced_until_the_coordinator_answers(
    driver: KafkaPythonDriver, manager: Manager, error: Exception
) -> None:
    refuse_record(driver, error)
    manager.bumping = 10**9
    with pytest.raises(TransactionError, match="another producer epoch"):
        driver.end_transaction(False, Deadline(0))
    doubt = driver.last_error()
    assert isinstance(doubt, ProducerFenced)
    assert doubt.__cause__ is error
    assert "may have taken over transactional_id 'id'" in str(doubt)
    manager.bumping = 0
    driver.end_transaction(False, Deadline(10))
    assert driver.last_error() is None


def test_with_a_new_epoch_the_producer_is_not_fenced(
    driver: KafkaPythonDriver, manager: Manager
) -> None:
    refuse_record(driver, kafka.errors.InvalidProducerEpochError())
    manager.begin_error = kafka.errors.KafkaError("invalid transition")
    driver.end_transaction(False, Deadline(10))
    assert driver.last_error() is None


def test_after_another_refusal_the_producer_is_not_fenced(driver: KafkaPythonDriver) -> None:
    refuse_record(driver, kafka.errors.TopicAuthorizationFailedError("t"))
    assert driver.last_error() is None


def refuse_record(driver: KafkaPythonDriver, error: Exception) -> None:
    run: Any = types.SimpleNamespace(topic="t", partition=1)
    driver.failure(Parcel(ProducerRecord("t", b"value")), error, run)


def test_begin_on_a_closed_driver(driver: KafkaPythonDriver, manager: Manager) -> None:
    manager.begin_error = kafka.errors.IllegalStateError("closed")
    driver._closing.set()
    with pytest.raises(ProducerClosed):
        driver.begin_transaction()


class Named:
    """A client that cannot initialize its transactional_id yet, or at all."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def init_transactions(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def init(driver: KafkaPythonDriver, client: Any, seconds: float = 60.0) -> None:
    transactions = Transactions(SETTINGS, client, None, None, driver._closing)
    transactions.start(time.monotonic() + seconds)


def test_the_start_waits_for_the_transactional_id() -> None:
    driver = KafkaPythonDriver(SETTINGS)
    waits = [kafka.errors.KafkaTimeoutError() for _ in range(3)]
    init(driver, Named(*waits))
    with pytest.raises(
        ProducerStartError, match=r"'id' could not be initialized within 30 s \(start"
    ):
        init(driver, Named(*waits), -1)
    with pytest.raises(
        ProducerStartError, match="transactional_id 'id' could not be initialized: not"
    ):
        init(driver, Named(kafka.errors.KafkaError("not for you")))
    with pytest.raises(ProducerFenced):
        init(driver, Named(kafka.errors.ProducerFencedError()))
    driver._closing.set()
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        init(driver, Named(*waits))
