"""Transactions of the librdkafka driver: with a broker that supports them, and with a scripted
client for situations that no broker causes."""

from __future__ import annotations

import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    Persistence,
    ProducerClosed,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    SendProducer,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer.drivers import ConsumedOffset, Deadline
from anyio_sendproducer.drivers.librdkafka import _client, _reports, _transactions, _waits
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from anyio_sendproducer.drivers.librdkafka._group_metadata import group_from_bytes, group_to_bytes
from anyio_sendproducer.drivers.librdkafka._poll_thread import WATCH_LIMIT
from anyio_sendproducer.testing import EmbeddedBroker, mock_cluster
from tests.support.calls import fail, raising
from tests.support.fault_proxy import fault_proxy
from tests.support.recorder import Parcel, Recorder, asked, submit_all
from tests.support.waiting import PATIENCE, until

SETTINGS = ProducerSettings(bootstrap_servers="broker.invalid:1", transactional_id="id")
GROUP = ConsumerGroupMetadata("group", 7, "member", "instance")


# --- with a broker -------------------------------------------------------------------------------


def settings_for(address: str, name: str) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=address, transactional_id=name)


async def test_a_transaction_is_committed_and_another_aborted(
    shared_broker: str, anyio_backend: str
) -> None:
    topic = f"confluent-transactions-{anyio_backend}"
    settings = settings_for(shared_broker, topic)
    async with open_send_producer(settings, driver="confluent") as producer:
        async with producer.transaction() as tx:
            places = [await tx.send(ProducerRecord(topic, b"%d" % n)) for n in range(3)]
            await tx.send_offsets({("source", 0): 7}, f"group-{topic}")
        assert [place.topic for place in places] == [topic] * 3
        assert tx.state is TransactionState.COMMITTED
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"never"))
                fail()
        async with producer.transaction():
            pass
        assert producer.statistics().generations == 1


async def test_a_second_producer_fences_the_first(shared_broker: str, anyio_backend: str) -> None:
    topic = f"confluent-fenced-{anyio_backend}"
    settings = settings_for(shared_broker, topic)
    async with (
        open_send_producer(settings, driver="confluent") as first,
        open_send_producer(settings, driver="confluent") as second,
    ):
        with raising(DeliveryError) as caught:
            async with first.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"zombie"))
        assert isinstance(caught.value.__cause__, ProducerFenced)
        assert first.statistics().state == "broken"
        async with second.transaction() as tx:
            await tx.send(ProducerRecord(topic, b"good"))


async def test_a_client_with_an_open_transaction_is_closed_at_once(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own close() would wait without end for a broker to abort the transaction. The
    client is also freed while the exception is alive."""

    class Watched(confluent_kafka.Producer):  # its own class does not support weak references
        pass

    monkeypatch.setattr(_client, "_Producer", Watched)
    driver = ConfluentDriver(settings_for(broker.bootstrap_servers, "id"))
    recorder = Recorder()
    driver.open(recorder)
    client = weakref.ref(driver._handle.client)
    driver.begin_transaction()
    kept: list[object] = []
    for group in ("\u00fc", "nul\0"):  # which librdkafka does not accept
        with pytest.raises(TransactionError) as refused:
            driver.send_offsets(
                [ConsumedOffset("t", 0, 1)], ConsumerGroupMetadata(group), Deadline(10)
            )
        kept.append(refused.value)
    parcels = [Parcel(ProducerRecord("t", b"v")), Parcel(ProducerRecord("t", {}))]
    with asked(driver, recorder):
        submit_all(driver, parcels)
        kept += recorder.outcomes_of(parcels)
    broker.pause()
    with pytest.raises(TransactionError, match="could not be aborted: there was no answer") as told:
        driver.end_transaction(False, Deadline(0))
    kept.append(told.value)
    began = time.monotonic()
    driver.close(0)
    assert time.monotonic() - began < PATIENCE / 2
    assert client() is None
    assert [type(one).__name__ for one in kept] == [
        "TransactionError",
        "TransactionError",
        "RecordMetadata",
        "RecordRejected",
        "TransactionError",
    ]
    broker.resume()


# --- with a scripted client ----------------------------------------------------------------------


def error(code: int, said: str = "so", *, retriable: bool = False, abort: bool = False) -> Any:
    """Make an error of the client."""
    kind: Any = KafkaError
    return KafkaException(kind(code, said, False, retriable, abort))


def slow() -> Any:
    """Make the error at the end of a time-out, after which the call has to be repeated."""
    return error(KafkaError._TIMED_OUT, "timed out", retriable=True)


class Client:
    """Raises or runs the planned results of each call in turn. After that, its calls succeed."""

    def __init__(self) -> None:
        self.todo: list[Exception | Callable[[], object]] = []
        self.calls: list[str] = []
        self.offsets: list[Any] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.todo:
            one = self.todo.pop(0)
            if isinstance(one, Exception):
                raise one
            one()

    def init_transactions(self, _: float) -> None:
        self._called("init")

    def begin_transaction(self) -> None:
        self._called("begin")

    def commit_transaction(self, _: float) -> None:
        self._called("commit")

    def abort_transaction(self, _: float) -> None:
        self._called("abort")

    def send_offsets_to_transaction(self, offsets: list[Any], group: bytes, _: float) -> None:
        self.offsets = [
            (one.topic, one.partition, one.offset, one.metadata, one.leader_epoch)
            for one in offsets
        ]
        assert group_from_bytes(group) == GROUP
        self._called("offsets")

    def list_topics(self, _: str, timeout: float) -> Any:
        self._called("topics")
        raise slow()

    def produce(self, *_: object) -> None:
        self._called("produce")

    def poll(self, _: float) -> int:
        return 0

    def __len__(self) -> int:
        return 0


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(client: Client, recorder: Recorder) -> ConfluentDriver:
    return driver_of(SETTINGS, client, recorder)


def driver_of(settings: ProducerSettings, client: Client, recorder: Recorder) -> ConfluentDriver:
    made = ConfluentDriver(settings)
    made._handle.client = client
    made._handle.sink = recorder
    made._handle.is_usable = True
    made._submitter._outcomes._sent_once_seconds = 0.08
    return made


def send_offsets(driver: ConfluentDriver, seconds: float = PATIENCE) -> None:
    offsets = [ConsumedOffset("t", 1, 5, "note", 2), ConsumedOffset("t", 2, 6)]
    driver.send_offsets(offsets, GROUP, Deadline(seconds))


def test_a_transaction_is_begun_once(driver: ConfluentDriver, client: Client) -> None:
    """A transaction that was begun and whose caller was cancelled serves the next caller."""
    driver.begin_transaction()
    driver.begin_transaction()
    assert client.calls == ["begin"]
    driver.end_transaction(True, Deadline(PATIENCE))
    client.todo = [error(KafkaError._STATE, "no")]
    with pytest.raises(TransactionError, match="could not be begun: no"):
        driver.begin_transaction()
    driver.begin_transaction()


def test_a_late_answer_is_waited_for(driver: ConfluentDriver, client: Client) -> None:
    client.todo = [slow(), slow()]
    send_offsets(driver)
    assert client.offsets == [("t", 1, 5, "note", 2), ("t", 2, 6, "", None)]
    client.todo = [slow(), slow()]
    driver.end_transaction(True, Deadline(PATIENCE))
    assert client.calls == ["offsets"] * 3 + ["commit"] * 3


def test_a_missing_answer_is_an_error(driver: ConfluentDriver, client: Client) -> None:
    client.todo = [slow() for _ in range(3)]
    with pytest.raises(TransactionError, match="offsets of group 'group' could not be sent: there"):
        send_offsets(driver, 0)
    with pytest.raises(TransactionOutcomeUnknown, match="no broker said whether it was done"):
        driver.end_transaction(True, Deadline(0))
    with pytest.raises(TransactionError, match="could not be aborted: there was no answer"):
        driver.end_transaction(False, Deadline(0))


@contextmanager
def hanging(client: Client) -> Generator[threading.Event]:
    """Have the next call of the client block during the block, beyond all time-outs.

    Yields:
        An event that is set when the call blocks.
    """
    waits, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        waits.set()
        assert goes_on.wait(PATIENCE)

    client.todo = [hang]
    try:
        yield waits
    finally:
        goes_on.set()


def joined(suffix: str) -> None:
    """Wait for the threads with this suffix to end."""
    for thread in threading.enumerate():
        if thread.name.endswith(suffix):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_offsets_without_an_answer_are_left_to_their_thread(
    driver: ConfluentDriver, client: Client
) -> None:
    """librdkafka waits for the answer without regard to the deadline, up to its
    socket.timeout.ms."""
    with hanging(client):
        with pytest.raises(TransactionError, match="could not be sent: there was no answer"):
            send_offsets(driver, 0)
        # librdkafka refuses to abort before that.
        client.todo = [error(KafkaError._CONFLICT, "already in progress", retriable=True)]
        driver.end_transaction(False, Deadline(PATIENCE))
    joined("-offsets")
    assert client.calls == ["offsets", "abort", "abort"]


def test_a_late_answer_to_offsets_is_waited_for(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waits, "SLICE_SECONDS", 0.001)
    answered = threading.Event()
    client.todo = [lambda: answered.wait(0.05)]
    send_offsets(driver)
    assert client.calls == ["offsets"]


def test_offsets_that_librdkafka_lost_abort_the_transaction(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry of the whole transaction with another client is safe, long before delivery_timeout
    ends."""
    monkeypatch.setattr(_transactions, "_OFFSETS_SECONDS", 0.05)
    monkeypatch.setattr(_waits, "FINISH_SECONDS", 0.05)
    with hanging(client), pytest.raises(TransactionAborted, match="reach the group's coordinator"):
        send_offsets(driver)
    joined("-offsets")


def test_hurrying_the_deadline_ends_the_wait_for_offsets(
    driver: ConfluentDriver, client: Client
) -> None:
    """As if the task that sends them is cancelled."""
    deadline = Deadline(1000)
    with hanging(client) as waits:
        told: list[BaseException] = []

        def send() -> None:
            try:
                driver.send_offsets([ConsumedOffset("t", 1, 5)], GROUP, deadline)
            except TransactionError as failure:
                told.append(failure)

        sender = threading.Thread(target=send)
        sender.start()
        assert waits.wait(PATIENCE)
        deadline.hurry(0)
        sender.join(PATIENCE)
        assert len(told) == 1
    joined("-offsets")


@pytest.mark.parametrize("what", ["offsets", "commit"])
def test_closing_ends_the_wait_for_an_answer(
    driver: ConfluentDriver, client: Client, what: str
) -> None:
    ended: list[BaseException] = []
    waits = threading.Event()

    def once_more() -> None:
        waits.set()
        client.todo.append(once_more)
        raise slow()

    client.todo = [once_more]

    def call() -> None:
        try:
            if what == "commit":
                driver.end_transaction(True, Deadline(1000))
            else:
                send_offsets(driver, 1000)
        except ProducerClosed as failure:
            ended.append(failure)

    waiting = threading.Thread(target=call)
    waiting.start()
    assert waits.wait(PATIENCE)
    driver.close(0)
    waiting.join(PATIENCE)
    assert len(ended) == 1
    assert driver._handle.client is None


def test_a_client_is_kept_until_a_running_call_ends(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the call does not end, the client is left as it is."""
    monkeypatch.setattr(_waits, "FINISH_SECONDS", 0.01)
    with hanging(client) as waits:
        asking = threading.Thread(target=driver.partitions_for, args=("t",))
        asking.start()
        assert waits.wait(PATIENCE)
        driver.close(0)
        assert driver._handle.client is client
    asking.join(PATIENCE)
    driver.close(0)
    with pytest.raises(ProducerClosed):
        driver.partitions_for("t")


def test_outcomes_during_the_end_of_a_transaction_do_not_stop_it(
    driver: ConfluentDriver, client: Client, recorder: Recorder
) -> None:
    """After the exception that stops a poll, the call was repeated although it had succeeded, which
    is an error."""

    def delivered() -> None:
        told = message_of(b"v")
        driver._submitter.delivered(parcel, None, told)
        driver._submitter.delivered(failed, KafkaError(KafkaError._PURGE_QUEUE), told)

    parcel, failed = Parcel(ProducerRecord("t", b"v")), Parcel(ProducerRecord("t", b"v"))
    driver.watch()
    client.todo = [delivered, error(KafkaError._STATE, "not valid in state Ready")]
    driver.end_transaction(False, Deadline(PATIENCE))
    outcomes = recorder.outcomes_of([parcel, failed])
    assert outcomes[0] == RecordMetadata("t", 3, 4, 5, None, 1)
    assert isinstance(outcomes[1], DeliveryError)
    assert outcomes[1].persistence is Persistence.POSSIBLY_PERSISTED

    def delivered_many() -> None:
        for _ in range(WATCH_LIMIT):
            driver._submitter.delivered(parcel, None, message_of(b"v"))

    with pytest.raises(_reports.StopPolling):
        delivered_many()


def message_of(value: bytes) -> Any:
    """Make the client's report of a written record."""

    class Message:
        offset = staticmethod(lambda: 4)
        timestamp = staticmethod(lambda: (1, 5))
        partition = staticmethod(lambda: 3)
        key = staticmethod(lambda: None)
        latency = staticmethod(lambda: 0.001)

        @staticmethod
        def value() -> bytes:
            return value

    return Message()


def test_a_record_after_the_failure_of_its_transaction_is_not_persisted(
    driver: ConfluentDriver, client: Client, recorder: Recorder
) -> None:
    client.todo = [error(KafkaError._STATE, "not in this state")]
    parcel = Parcel(ProducerRecord("t", b"v"))
    assert driver.submit([parcel]).held == []
    [outcome] = recorder.outcomes_of([parcel])
    assert isinstance(outcome, DeliveryError)
    assert outcome.persistence is Persistence.NOT_PERSISTED
    assert str(outcome) == (
        "the record was not written: librdkafka did not take it: not in this state"
    )


def test_records_purged_by_a_refusal_in_their_transaction_are_not_persisted(
    driver: ConfluentDriver, recorder: Recorder
) -> None:
    parcel = Parcel(ProducerRecord("t", b"v"))
    failure = KafkaError(KafkaError._INVALID_DIFFERENT_RECORD)
    driver._submitter.delivered(parcel, failure, message_of(b"v"))
    driver.poll(10)
    [outcome] = recorder.outcomes_of([parcel])
    assert type(outcome) is DeliveryError
    assert outcome.persistence is Persistence.NOT_PERSISTED


def test_a_record_of_a_fenced_client_has_producer_fenced_as_its_cause(
    driver: ConfluentDriver, recorder: Recorder
) -> None:
    parcel = Parcel(ProducerRecord("t", b"v"))
    driver._submitter.delivered(parcel, KafkaError(KafkaError._FENCED), message_of(b"v"))
    driver.poll(10)
    [outcome] = recorder.outcomes_of([parcel])
    assert isinstance(outcome, DeliveryError)
    assert isinstance(outcome.__cause__, ProducerFenced)
    assert [type(one) for one in recorder.breaks] == [ProducerFenced]


def test_a_refused_transaction_must_be_aborted(driver: ConfluentDriver, client: Client) -> None:
    refused = error(KafkaError.TOPIC_AUTHORIZATION_FAILED, "t", abort=True)
    client.todo = [refused, refused]
    with pytest.raises(TransactionAborted, match="could not be committed: t") as caught:
        driver.end_transaction(True, Deadline(PATIENCE))
    assert caught.value.__cause__ is refused
    with pytest.raises(TransactionAborted, match="could not be sent: t"):
        send_offsets(driver)
    driver.end_transaction(False, Deadline(PATIENCE))


@pytest.mark.parametrize(
    ("code", "properties", "breaks"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, {}, 1),
        (KafkaError._TRANSPORT, {"retries": 1}, 1),
        (KafkaError._MSG_TIMED_OUT, {"retries": 1}, 1),
        (KafkaError._PURGE_QUEUE, {}, 1),
        (KafkaError._MSG_TIMED_OUT, {}, 0),
    ],
    ids=["refused by a broker", "no more attempts", "no answer in time", "dropped", "expired"],
)
def test_a_client_with_wrong_sequence_numbers_ends_with_the_transaction(
    client: Client, recorder: Recorder, code: int, properties: dict[str, int], breaks: int
) -> None:
    """librdkafka does not use the sequence numbers of a failed record again, but it uses those of a
    dropped record again. When a record expires, librdkafka takes a new epoch. If all attempts that
    `retries` allows got no answer in time, it takes none, but gives the same error."""
    driver = driver_of(SETTINGS.evolve(properties=properties), client, recorder)
    driver.begin_transaction()
    parcel = Parcel(ProducerRecord("t", b"v"))
    driver._submitter.delivered(parcel, KafkaError(code), message_of(b"v"))
    driver.poll(10)
    assert recorder.breaks == []
    driver.end_transaction(False, Deadline(PATIENCE))
    assert len(recorder.breaks) == breaks


def test_any_other_error_leaves_a_commit_unknown(driver: ConfluentDriver, client: Client) -> None:
    client.todo = [error(KafkaError.INVALID_TXN_STATE, "how come") for _ in range(2)]
    with pytest.raises(TransactionOutcomeUnknown, match=r"requested, but .*: how come"):
        driver.end_transaction(True, Deadline(PATIENCE))
    with pytest.raises(TransactionError, match="could not be aborted: how come"):
        driver.end_transaction(False, Deadline(PATIENCE))


@pytest.mark.parametrize(
    "code", [KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED]
)
def test_a_fenced_client_raises_producer_fenced(
    driver: ConfluentDriver, client: Client, code: int
) -> None:
    driver.begin_transaction()
    client.todo = [error(code) for _ in range(3)]
    for commit in (True, False):
        with pytest.raises(ProducerFenced, match=r"took over transactional_id 'id'$") as caught:
            driver.end_transaction(commit, Deadline(PATIENCE))
        assert isinstance(caught.value.__cause__, KafkaException)
    # Brokers give the same error for a transaction that took too long.
    driver._transactions._state.began_at -= 61
    with pytest.raises(ProducerFenced, match=r"'id', or its .* than transaction.timeout.ms=60000$"):
        driver.end_transaction(True, Deadline(PATIENCE))


def test_calls_on_a_closed_driver(driver: ConfluentDriver, client: Client) -> None:
    driver.close(0)
    for call in (driver.begin_transaction, lambda: send_offsets(driver)):
        with pytest.raises(ProducerClosed):
            call()
    with pytest.raises(ProducerClosed):
        driver.end_transaction(True, Deadline(PATIENCE))
    assert client.calls == []


def test_a_call_during_close_raises_producer_closed(
    driver: ConfluentDriver, client: Client
) -> None:
    def close() -> None:
        driver._handle.closing.set()
        raise error(KafkaError._DESTROY)

    client.todo = [close]
    with pytest.raises(ProducerClosed):
        driver.begin_transaction()


# --- brokers that have moved ---------------------------------------------------------------------


async def committed(producer: SendProducer) -> None:
    async with producer.transaction() as tx:
        await tx.send(ProducerRecord("t", b"v", partition=0))


async def test_brokers_come_back_at_other_addresses() -> None:
    """The bootstrap address stays. A transaction that starts after the move is not lost."""
    with mock_cluster() as before, mock_cluster() as after, fault_proxy(str(before)) as bootstrap:
        settings = settings_for(bootstrap.address, "moving")
        async with open_send_producer(settings, driver="confluent") as producer:
            await committed(producer)
            before.set_down(1)
            bootstrap.lead_to(str(after))
            await until(producer._engine.bridge.is_disconnected)
            await committed(producer)
            await committed(producer)
            assert producer.statistics().generations == 2


async def test_brokers_come_back_at_their_addresses() -> None:
    with mock_cluster() as cluster:
        settings = settings_for(str(cluster), "staying")
        async with open_send_producer(settings, driver="confluent") as producer:
            await committed(producer)
            cluster.set_down(1)
            await until(producer._engine.bridge.is_disconnected)
            cluster.set_up(1)
            await committed(producer)
            assert producer.statistics().generations == 1


# --- initialization ------------------------------------------------------------------------------


def init(driver: ConfluentDriver, seconds: float = PATIENCE) -> None:
    driver._transactions.start(time.monotonic() + seconds)


def test_the_start_waits_for_the_transactional_id(driver: ConfluentDriver, client: Client) -> None:
    client.todo = [slow() for _ in range(3)]
    init(driver)
    client.todo = [slow()]
    with pytest.raises(
        ProducerStartError, match=r"'id' could not be initialized within 30 s \(start"
    ):
        init(driver, -1)
    client.todo = [error(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "not for you")]
    with pytest.raises(
        ProducerStartError, match="transactional_id 'id' could not be initialized: not"
    ):
        init(driver)
    client.todo = [error(KafkaError._FENCED)]
    with pytest.raises(ProducerFenced):
        init(driver)
    driver._handle.closing.set()
    client.todo = [slow()]
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        init(driver)


async def test_a_transactional_id_that_can_not_be_initialized(
    shared_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ProducerStartError("no name")

    monkeypatch.setattr(_transactions.Transactions, "start", refuse)
    with pytest.raises(ProducerStartError, match="no name"):
        async with open_send_producer(settings_for(shared_broker, "id"), driver="confluent"):
            raise AssertionError


# --- metadata of a consumer group ----------------------------------------------------------------


@pytest.mark.parametrize("instance", [None, "instance"])
def test_a_group_is_encoded_like_librdkafka(instance: str | None) -> None:
    config: dict[str, Any] = {"bootstrap.servers": "broker.invalid:1", "group.id": "group"}
    if instance is not None:
        config["group.instance.id"] = instance
    consumer = confluent_kafka.Consumer({**config, "log_level": 0})
    try:
        given = consumer.consumer_group_metadata()
    finally:
        consumer.close()
    group = ConsumerGroupMetadata("group", group_instance_id=instance)
    assert group_to_bytes(group) == given
    assert group_from_bytes(given) == group


@pytest.mark.parametrize("changes", [{}, {"group_instance_id": None}, {"group_id": "\u00fc"}])
def test_encoded_groups_are_decoded(changes: dict[str, Any]) -> None:
    group = dataclasses.replace(GROUP, **changes)
    assert group_from_bytes(group_to_bytes(group)) == group


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"CGMDv2:",
        b"CGMDv3:" + group_to_bytes(GROUP)[7:],
        group_to_bytes(GROUP) + b"more",
        group_to_bytes(GROUP)[:-1],
        group_to_bytes(ConsumerGroupMetadata("group"))[:-1] + b"\2",
        b"CGMDv2:\0\0\0\0\xff\0\0\1",
    ],
)
def test_bytes_that_are_not_a_group_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not group metadata that librdkafka 2 has written"):
        group_from_bytes(data)
