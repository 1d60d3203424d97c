"""The librdkafka driver on a fake client, whose ``poll`` stops where a test wants it to.

The tests cover races between threads, with gates between their steps, and answers that no broker
can be made to give.
"""

from __future__ import annotations

import logging
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    Persistence,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducerError,
    SettingsError,
    TransactionError,
)
from anyio_sendproducer._failures import CLOSED_TOO_EARLY
from anyio_sendproducer.drivers import ConsumedOffset, Deadline
from anyio_sendproducer.drivers.librdkafka import (
    _client,
    _driver,
    _errors,
    _log_relay,
    _metadata,
    _poll_thread,
    _transactions,
    _waits,
)
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from anyio_sendproducer.testing import Gate
from tests.support.recorder import PATIENCE, Parcel, Recorder
from tests.support.waiting import blocking_until

#: If one poll has this many outcomes, the thread leaves them to the event loop.
ENOUGH = _poll_thread.WATCH_LIMIT // 2
#: What happens in one call of the client's poll.
Step = Callable[[], None]


class Message:
    """What librdkafka reports about a delivered record."""

    def offset(self) -> int:
        return 4

    def timestamp(self) -> tuple[int, int]:
        return 1, 5

    def partition(self) -> int:
        return 3

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def latency(self) -> float:
        return 0.001


class Client:
    """A client whose polls run the steps of a test."""

    def __init__(self) -> None:
        #: The timeout of each poll; seconds.
        self.polls: list[float] = []
        self.steps: list[Step] = []
        self.under_way = 0
        #: The calls of `close` and of the methods for transactions.
        self.calls: list[str] = []
        #: The arguments of each `produce`, and an exception for it to raise instead.
        self.produced: list[tuple[Any, ...]] = []
        self.refusal: Exception | None = None
        #: The number of requests for metadata.
        self.asked = 0
        #: The longest timeout of these requests (seconds), and the steps of the next answers.
        self.patience = 0.1
        self.answers: list[Step] = []

    def poll(self, seconds: float) -> int:
        self.polls.append(seconds)
        if self.steps:
            self.steps.pop(0)()
        return 0

    def begin_transaction(self) -> None:
        self.calls.append("begin")

    def close(self) -> None:
        self.calls.append("close")

    def abort_transaction(self, _: float) -> None:
        self.calls.append("abort")

    def send_offsets_to_transaction(self, *_: Any) -> None:
        self.calls.append("offsets")

    def produce(self, *arguments: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.produced.append(arguments)

    def list_topics(self, topic: str, timeout: float) -> Any:
        assert " " in topic  # no topic has such a name
        assert timeout <= self.patience  # the driver's thread has other work, too
        self.asked += 1
        if self.answers:
            self.answers.pop(0)()

    def __len__(self) -> int:
        return self.under_way


class Bell(Recorder):
    """Notes the polls that the client had got when the driver rang."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.rings: list[list[float]] = []

    def ready(self) -> None:
        self.rings.append([*self._client.polls])
        super().ready()


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def bell(client: Client) -> Bell:
    return Bell(client)


@pytest.fixture
def driver(client: Client, bell: Bell) -> Iterator[ConfluentDriver]:
    """A driver whose own thread does not run yet."""
    made = ConfluentDriver(ProducerSettings(bootstrap_servers="broker.invalid:1"))
    made._handle.client = client
    made._handle.sink = bell
    made._handle.is_usable = True
    yield made
    made._handle.closing.set()
    made._thread.bell.set()
    assert made._thread.join(PATIENCE)


def deliver_all(driver: ConfluentDriver, parcels: Sequence[Parcel]) -> None:
    for parcel in parcels:
        driver._submitter.delivered(parcel, None, Message())


def started(driver: ConfluentDriver) -> None:
    assert driver._thread.start()


def test_the_loop_starts_to_watch_while_an_idle_poll_runs_a_callback(
    driver: ConfluentDriver, client: Client, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's thread must report the outcomes of its idle poll before it waits for more."""
    monkeypatch.setattr(_poll_thread, "_IDLE_SECONDS", 0)
    calls_back, goes_on = threading.Event(), threading.Event()
    parcel = Parcel(ProducerRecord("t", b"v"))

    def deliver() -> None:
        calls_back.set()
        assert goes_on.wait(PATIENCE)
        driver._submitter.delivered(parcel, None, Message())

    client.steps.append(deliver)
    started(driver)
    assert calls_back.wait(PATIENCE)
    driver.watch()
    goes_on.set()
    assert bell.outcomes_of([parcel]) == [RecordMetadata("t", 3, 4, 5, None, 1)]
    assert bell.rings == []


def test_the_thread_continues_to_watch_after_a_report(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    parcels = [Parcel(ProducerRecord("t", b"v")) for _ in range(3)]
    client.under_way = 3

    def deliver(parcel: Parcel) -> None:
        driver._submitter.delivered(parcel, None, Message())
        client.under_way -= 1

    client.steps += [partial(deliver, parcel) for parcel in parcels]
    driver.watch()
    started(driver)
    assert len(bell.outcomes_of(parcels)) == 3
    assert bell.rings == []


def test_the_thread_leaves_many_outcomes_to_the_loop(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    parcels = [Parcel(ProducerRecord("t", b"v")) for _ in range(ENOUGH + 1)]

    client.steps.append(partial(deliver_all, driver, parcels[:ENOUGH]))
    driver.watch()
    started(driver)
    assert bell.bell.wait(PATIENCE)
    assert bell.reports == []
    client.steps.append(partial(deliver_all, driver, parcels[ENOUGH:]))
    driver.poll(ENOUGH + 1)
    assert len(bell.outcomes_of(parcels)) == ENOUGH + 1


@pytest.mark.parametrize("in_flight", [0, 1])
def test_the_thread_rests_only_if_the_client_has_no_record(
    driver: ConfluentDriver, client: Client, in_flight: int
) -> None:
    """The loop submits a record, and sees that the thread watches, just before the thread rests."""
    driver.watch()
    client.under_way = in_flight
    driver._thread._rest()
    driver._thread.bell.clear()
    driver.watch()
    assert driver._thread.bell.is_set() is (in_flight == 0)


def test_the_loop_watches_again_before_the_thread_has_rung(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    """The thread notes that it no longer watches, and then rings.

    If the loop polls between these steps, it gets the outcomes and starts a new watch. The ring is
    then superfluous, but no ring is missing.
    """
    between, goes_on = threading.Event(), threading.Event()
    first, second = ([Parcel(ProducerRecord("t", b"v")) for _ in range(ENOUGH)] for _ in range(2))
    ready = bell.ready

    def stop_once() -> None:
        between.set()
        assert goes_on.wait(PATIENCE)
        ready()

    bell.ready = stop_once  # type: ignore[method-assign]
    client.steps.append(partial(deliver_all, driver, first))
    started(driver)
    driver.watch()
    assert between.wait(PATIENCE)
    driver.poll(10)
    assert bell.outcomes_of(first)
    client.steps.append(partial(deliver_all, driver, second))
    driver.watch()
    goes_on.set()
    blocking_until(lambda: len(bell.rings) == 2)
    driver.poll(10)
    assert len(bell.outcomes_of(first + second)) == 2 * ENOUGH


def test_an_outcome_on_its_way_to_the_loop_counts_as_in_flight(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    """A callback runs on the driver's thread while the loop polls.

    Either the client still counts the record, or this poll gets its outcome.
    """
    parcel = Parcel(ProducerRecord("t", b"v"))
    counted, goes_on = threading.Event(), threading.Event()
    client.under_way = 1

    def deliver() -> None:
        counted.set()
        assert goes_on.wait(PATIENCE)
        driver._submitter.delivered(parcel, None, Message())
        client.under_way = 0  # librdkafka counts a record until its callback has returned

    client.steps.append(deliver)
    driver.watch()
    started(driver)
    assert counted.wait(PATIENCE)
    assert driver.poll(10) == 1
    assert bell.reports == []
    driver.watch()
    goes_on.set()
    assert len(bell.outcomes_of([parcel])) == 1
    assert driver.poll(10) == 0


def test_concurrent_reports_share_the_outcomes(driver: ConfluentDriver, bell: Bell) -> None:
    """The event loop reports while another thread ends a transaction or closes the driver."""
    parcels = [Parcel(ProducerRecord("t", b"v")) for _ in range(1000)]
    starts = threading.Barrier(3)

    def report() -> None:
        starts.wait(PATIENCE)
        while len(bell.reports) < len(parcels):
            driver._reports.report()

    threads = [threading.Thread(target=report) for _ in range(2)]
    for thread in threads:
        thread.start()
    starts.wait(PATIENCE)
    for parcel in parcels:
        driver._submitter.delivered(parcel, None, Message())
    for thread in threads:
        thread.join(PATIENCE)
    assert len(bell.outcomes_of(parcels)) == 1000


def no_answer() -> None:
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def test_the_thread_prepares_the_client_until_there_is_an_answer(
    driver: ConfluentDriver, client: Client
) -> None:
    client.answers = [no_answer] * 3
    started(driver)
    assert driver._thread.is_prepared.wait(PATIENCE)
    assert client.asked == 4


def test_the_thread_prepares_the_client_for_a_second_at_most(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    client.answers = [no_answer] * 20
    started(driver)
    assert driver._thread.is_prepared.wait(PATIENCE)
    assert client.asked == 10
    parcel = Parcel(ProducerRecord("t"))
    client.steps.append(lambda: driver._submitter.delivered(parcel, None, Message()))
    driver.watch()
    assert len(bell.outcomes_of([parcel])) == 1


def test_closing_ends_the_preparation_of_the_client(
    driver: ConfluentDriver, client: Client
) -> None:
    def close() -> None:
        driver._handle.closing.set()
        no_answer()

    client.answers = [close]
    started(driver)
    assert driver._thread.is_prepared.wait(PATIENCE)
    assert client.asked == 1


def test_an_idle_thread_connects_the_client_again(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_poll_thread, "_IDLE_SECONDS", 0)
    driver._thread._is_late = False  # no request prepares the client
    driver._health.is_disconnected = True
    client.answers = [no_answer] * 3
    started(driver)
    blocking_until(lambda: not driver.is_disconnected())
    assert client.asked == 4
    polls = len(client.polls)
    blocking_until(lambda: len(client.polls) > polls + 3)
    assert client.asked == 4


@pytest.mark.parametrize("closes", [False, True])
def test_a_fatal_error_breaks_a_client_unless_it_is_closed(
    driver: ConfluentDriver, bell: Bell, closes: bool
) -> None:
    if closes:
        driver._handle.closing.set()
    error: Any = KafkaError(KafkaError._FATAL, "the end", fatal=True)
    driver._health.on_error(error)
    driver._health.on_error(error)
    assert len(bell.breaks) == (0 if closes else 1)


@pytest.mark.parametrize("code", [KafkaError._DESTROY, KafkaError._UNKNOWN_TOPIC])
@pytest.mark.parametrize("is_forbidden", [False, True])
def test_a_partition_that_a_refusal_removed_is_not_a_deleted_topic(
    driver: ConfluentDriver, bell: Bell, code: int, *, is_forbidden: bool
) -> None:
    """librdkafka removes the partitions of a topic that a broker forbids, and restores them.

    A record that is submitted meanwhile may fail as if its topic was deleted.
    """
    errors = [None, KafkaError(code)]
    if is_forbidden:
        errors.insert(1, KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    parcels = [Parcel(ProducerRecord("t", b"v")) for _ in errors]
    for parcel, error in zip(parcels, errors, strict=True):
        driver._submitter.delivered(parcel, error, Message())
    driver.poll(10)
    assert isinstance(bell.outcomes_of(parcels)[-1], DeliveryError)
    goes_on = is_forbidden and code == KafkaError._DESTROY
    assert bool(bell.breaks) is not goes_on


@pytest.mark.parametrize(
    "changes", [{"transactional_id": "id"}, {"properties": {"enable.idempotence": False}}]
)
def test_only_an_idempotent_client_without_transactions_is_prepared(
    client: Client, changes: dict[str, Any]
) -> None:
    driver = ConfluentDriver(ProducerSettings(bootstrap_servers="broker.invalid:1", **changes))
    driver._handle.client = client
    driver._thread._prepare()
    assert driver._thread.is_prepared.is_set()
    assert client.asked == 0


# --- records that are produced again -------------------------------------------------------------


def gone() -> KafkaError:
    return KafkaError(KafkaError._UNKNOWN_PARTITION)


@pytest.mark.parametrize(
    "record",
    [
        ProducerRecord("t", b"v", b"k"),
        ProducerRecord("t", b"v", b"k", timestamp_ms=5, headers=[("a", b"1")]),
    ],
    ids=["plain", "headers"],
)
def test_a_record_whose_chosen_partition_is_gone_is_produced_again(
    driver: ConfluentDriver, client: Client, bell: Bell, record: ProducerRecord[bytes, bytes]
) -> None:
    """The topic was created again with fewer partitions, and the record was not written."""
    driver._submitter._outcomes._sent_once_seconds = 0.08
    parcel = Parcel(record)
    assert driver.submit([parcel]).held == []
    delivered = client.produced.pop()
    (delivered[4])(gone(), Message())
    assert driver.poll(10) == 0
    assert bell.reports == []
    topic, value, key, partition, again, _, timestamp_ms, headers = client.produced.pop()
    assert (topic, value, key, partition) == ("t", b"v", b"k", -1)
    assert (timestamp_ms, headers) == (record.timestamp_ms or 0, list(record.headers))
    again(None, Message())
    driver.poll(10)
    assert bell.outcomes_of([parcel]) == [RecordMetadata("t", 3, 4, 5, 1, 1)]


@pytest.mark.parametrize("reason", ["explicit", "written before", "full", "broken", "closed"])
def test_a_record_whose_partition_is_gone_fails_if_it_cannot_be_produced_again(
    driver: ConfluentDriver, client: Client, bell: Bell, reason: str
) -> None:
    driver._submitter._outcomes._sent_once_seconds = 0 if reason == "written before" else 0.08
    parcel = Parcel(ProducerRecord("t", b"v", b"k", partition=7 if reason == "explicit" else None))
    driver.submit([parcel])
    if reason == "full":
        client.refusal = BufferError("full")
    if reason == "broken":
        client.refusal = KafkaException(gone())
    if reason == "closed":
        driver._handle.is_usable = False
    driver._submitter._outcomes._written_topics.add("t")
    (client.produced.pop()[4])(gone(), Message())
    driver._reports.report()
    [outcome] = bell.outcomes_of([parcel])
    assert client.produced == []
    if reason == "written before":
        assert "was not acknowledged: topic 't' has no partition 3" in str(outcome)
    elif reason == "explicit":
        assert str(outcome) == "topic 't' has no partition 3"
    else:
        assert str(outcome) == "topic 't' has no partition 3, which librdkafka chose"


def test_a_record_whose_partition_is_gone_fails_if_a_partitioner_chose_it(
    client: Client, bell: Bell
) -> None:
    """The event loop may run the report, and must not run the partitioner."""
    settings = ProducerSettings(
        bootstrap_servers="broker.invalid:1",
        partitioner=lambda _topic, _key, partitions: partitions[-1],
    )
    driver = ConfluentDriver(settings)
    driver._handle.client, driver._handle.sink, driver._handle.is_usable = client, bell, True
    driver._submitter._outcomes._sent_once_seconds = 0.08
    driver._metadata._lists["t"] = (time.monotonic(), (0, 1, 2, 3))
    parcel = Parcel(ProducerRecord("t", b"v", b"k"))
    assert driver.submit([parcel]).held == []
    produced = client.produced.pop()
    assert produced[3] == 3
    produced[4](gone(), Message())
    driver._reports.report()
    [outcome] = bell.outcomes_of([parcel])
    assert isinstance(outcome, RecordRejected)
    assert outcome.persistence is Persistence.NOT_PERSISTED
    assert str(outcome) == "topic 't' has no partition 3, which the partitioner chose"
    assert client.produced == []
    # The next record causes a new request for the partitions.
    assert driver._metadata._lists == {}


def test_the_time_of_an_unknown_topic_restarts_after_a_pause(driver: ConfluentDriver) -> None:
    """After a pause without requests, the time that the topic has to appear starts again."""
    metadata = driver._metadata
    found: Any = types.SimpleNamespace(error=None, partitions={})
    assert metadata._judge("t", found) is None
    since, last = metadata._unknown["t"]
    metadata._unknown["t"] = since - 100, last - 100
    assert metadata._judge("t", found) is None
    metadata._unknown["t"] = since - 100, time.monotonic()
    assert isinstance(metadata._judge("t", found), SendProducerError)
    assert metadata._unknown == {}


def test_the_time_of_an_unknown_topic_goes_on_while_others_are_asked_about(
    driver: ConfluentDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a round of requests about many topics takes long, that is no pause."""
    now = 1000.0

    def answer(_client: Any, topic: str, _seconds: float) -> Any:
        nonlocal now
        now += 1
        return types.SimpleNamespace(
            topics={topic: types.SimpleNamespace(error=None, partitions={})}
        )

    monkeypatch.setattr(_metadata, "time", types.SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(_metadata, "look_up", answer)
    topics = [f"t{number}" for number in range(20)]
    assert [driver.partitions_for(topic) for topic in topics] == [None] * 20
    for topic in topics:
        with pytest.raises(SendProducerError, match="does not know topic"):
            driver.partitions_for(topic)


def test_a_client_that_ends_during_a_close_gives_records_back(client: Client, bell: Bell) -> None:
    settings = ProducerSettings(bootstrap_servers="broker.invalid:1", value_serializer=bytes)
    driver = ConfluentDriver(settings)
    driver._handle.client, driver._handle.sink, driver._handle.is_usable = client, bell, True

    def end(*_: Any) -> None:
        driver._handle.is_usable = False  # as a thread that closes the driver does
        raise KafkaException(KafkaError(KafkaError._FATAL))

    client.produce = end  # type: ignore[method-assign]
    parcel = Parcel(ProducerRecord("t", b"v"))
    assert driver.submit([parcel]).held == [parcel]
    assert client.polls == []


def test_last_error_ignores_errors_that_are_not_about_a_broker(driver: ConfluentDriver) -> None:
    driver._health.on_error(KafkaError(KafkaError._QUEUE_FULL))
    assert driver.last_error() is None


def test_a_harmless_failure_keeps_the_properties_of_the_error() -> None:
    error = KafkaError(KafkaError._RESOLVE, "a\n\x1b[2J\x9b", True, True, True)
    failure = _errors.harmless_failure(KafkaException(error))
    clean = failure.args[0]
    assert str(failure).isprintable()
    assert clean.str() == r"a\n\x1b[2J\x9b"
    assert clean.code() == KafkaError._RESOLVE
    assert (clean.fatal(), clean.retriable(), clean.txn_requires_abort()) == (True, True, True)
    good = KafkaError(KafkaError._RESOLVE, "a")
    assert _errors.exception_of(good).args[0] is good
    assert str(_errors.harmless_failure(ValueError("a\n"))) == r"a\n"


def test_statistics_that_are_not_json_are_ignored(driver: ConfluentDriver) -> None:
    driver._statistics.update('{"brokers": {"a\x1b\n:1": 1}}')
    before = driver.metrics()
    assert before == {"brokers": {"a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}:1": 1}}
    driver._statistics.update('{"brokers": {"a":1": 1}}')
    assert driver.metrics() == before
    assert driver.metrics() == before
    driver._statistics.update('{"txmsgs": 7}')
    assert driver.metrics() == {"txmsgs": 7}


def test_last_error_is_what_librdkafka_logs_about_a_broker(driver: ConfluentDriver) -> None:
    said = "[thrd:b:1/2]: b:1/2: Timed out 1 in-flight"
    driver._handle.log.log(logging.INFO, "%s [%s] %s", "FAIL", "id", "it disconnected")
    driver._handle.log.log(logging.WARNING, "%s [%s] %s", "GETPID", "id", "something else")
    assert driver.last_error() is None
    driver._handle.log.log(logging.WARNING, "%s [%s] %s", "REQTMOUT", "id", said)
    assert str(driver.last_error()) == "b:1/2: Timed out 1 in-flight"
    text, at = driver._handle.log.broker_error
    driver._handle.log.broker_error = (text, at - 31)
    assert driver.last_error() is None


def test_the_reasons_of_a_failed_start_are_about_the_bootstrap_addresses(
    driver: ConfluentDriver,
) -> None:
    health = driver._health
    assert health.reasons(["a:1"]) == []
    for text in ("b:1/2: gone", "sasl_ssl://a:1/bootstrap: Connect failed", "down"):
        health.note(KafkaError(KafkaError._TRANSPORT, text))
    assert health.reasons(["a:1", "c:1"]) == ["a:1: Connect failed", "c:1: no answer"]
    # An address that librdkafka writes differently is not lost.
    assert health.reasons(["A:1"]) == ["A:1: no answer", "a:1: Connect failed"]


# --- records that the client purges --------------------------------------------------------------


@pytest.fixture
def transactional(client: Client, bell: Bell) -> ConfluentDriver:
    settings = ProducerSettings(bootstrap_servers="broker.invalid:1", transactional_id="id")
    made = ConfluentDriver(settings)
    made._handle.client = client
    made._handle.sink = bell
    made._handle.is_usable = True
    made.begin_transaction()
    return made


def purged(driver: ConfluentDriver, bell: Bell) -> str:
    """The reason in the error of a record that librdkafka purges now."""
    bell.reports.clear()
    parcel = Parcel(ProducerRecord("t", b"v", b"k"))
    driver._submitter.delivered(parcel, KafkaError(KafkaError._PURGE_QUEUE), Message())
    driver._reports.report()
    [outcome] = bell.outcomes_of([parcel])
    assert isinstance(outcome, DeliveryError)
    assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
    said = str(outcome)
    assert said.startswith("the record was not acknowledged: ")
    return said.removeprefix("the record was not acknowledged: ")


def test_the_error_of_a_purged_record_has_the_reason(driver: ConfluentDriver, bell: Bell) -> None:
    assert purged(driver, bell) == CLOSED_TOO_EARLY
    driver._health.on_error(KafkaError(KafkaError._FATAL, "the end", fatal=True))
    assert purged(driver, bell) == "the client can't send any more: _FATAL: the end"


def test_the_error_of_a_purged_record_of_a_transaction_has_the_reason(
    transactional: ConfluentDriver, client: Client, bell: Bell
) -> None:
    transactional.end_transaction(False, Deadline(PATIENCE))
    assert purged(transactional, bell) == "its transaction was aborted"
    transactional.begin_transaction()
    assert purged(transactional, bell) == CLOSED_TOO_EARLY
    # librdkafka reports it only in its log. The driver needs no handler to see it.
    transactional._handle.log.log(
        logging.DEBUG, "%s [%s] %s", "TXNERR", "id#producer-1", "[thrd:main]: failed\nso (MAPPING)"
    )
    assert purged(transactional, bell) == "failed\\nso (MAPPING)"
    transactional._transactions._state.has_dropped = False  # or another client would follow
    transactional.end_transaction(False, Deadline(PATIENCE))
    assert purged(transactional, bell) == "failed\\nso (MAPPING)"
    assert client.calls == ["begin", "abort", "begin", "abort"]


@pytest.mark.parametrize("known", ["record", "offsets", "failed", "nothing"])
def test_an_abort_does_not_overtake_the_first_records(
    transactional: ConfluentDriver, client: Client, bell: Bell, known: str
) -> None:
    """The brokers refuse an abort before they know of the transaction."""
    parcel = Parcel(ProducerRecord("t", b"v", b"k"))
    client.under_way = 0 if known == "nothing" else 2

    def deliver() -> None:
        assert client.calls == ["begin"]
        transactional._submitter.delivered(parcel, None, Message())

    if known == "offsets":
        group = ConsumerGroupMetadata("group")
        transactional.send_offsets([ConsumedOffset("s", 0, 1)], group, Deadline(PATIENCE))
    if known == "failed":
        transactional._handle.log.log(logging.DEBUG, "%s [%s] %s", "TXNERR", "id", "failed")
    client.steps = [lambda: None, deliver]
    transactional.end_transaction(False, Deadline(PATIENCE))
    assert client.calls[-1] == "abort"
    assert len(client.polls) == (2 if known == "record" else 0)


@pytest.mark.parametrize("bound", ["deadline", "patience"])
def test_the_wait_of_an_abort_for_the_first_records_is_bounded(
    transactional: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    client.under_way = 1
    deadline = Deadline(0 if bound == "deadline" else PATIENCE)
    if bound == "patience":
        monkeypatch.setattr(_waits, "FINISH_SECONDS", 0)
    transactional._transactions._wait_for_brokers(deadline)
    assert client.polls == []


def test_closing_ends_the_wait_of_an_abort_for_the_first_records(
    transactional: ConfluentDriver, client: Client
) -> None:
    client.under_way = 1
    client.steps = [transactional._handle.closing.set]
    with pytest.raises(ProducerClosed):
        transactional.end_transaction(False, Deadline(PATIENCE))
    assert len(client.polls) == 1
    assert "abort" not in client.calls


# --- brokers that have moved ---------------------------------------------------------------------


class Others:
    """Replaces the class of the client, and makes clients that ask the bootstrap addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Client] = []
        self.configs: list[dict[str, Any]] = []
        #: The step of the answer that each client gets.
        self.answer: Step = lambda: None
        #: The exception that making a client raises.
        self.refusal: Exception | None = None
        monkeypatch.setattr(_client, "_Producer", self._make)

    def _make(self, config: dict[str, Any], **_: Any) -> Client:
        self.configs.append(config)
        if self.refusal is not None:
            raise self.refusal
        client = Client()
        client.patience = 1
        client.answers = [self.answer]
        self.made.append(client)
        return client


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    return Others(monkeypatch)


@pytest.fixture
def cut_off(transactional: ConfluentDriver, client: Client) -> ConfluentDriver:
    """A driver whose client reaches no broker."""
    transactional._health.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert transactional.is_disconnected()
    client.patience = 1
    return transactional


def test_a_client_whose_brokers_have_moved_is_given_up(
    cut_off: ConfluentDriver, client: Client, bell: Bell, others: Others
) -> None:
    client.answers = [no_answer] * 4
    cut_off._thread._bootstrap.search()
    [broken] = bell.breaks
    assert "no broker that the client knows can be reached, but broker.invalid:1 leads" in str(
        broken
    )
    assert client.asked == 4
    [other] = others.made
    assert other.calls == ["close"]
    [config] = others.configs
    assert "transactional.id" not in config
    assert config["bootstrap.servers"] == "broker.invalid:1"


def test_a_client_whose_brokers_are_back_is_kept(
    cut_off: ConfluentDriver, bell: Bell, others: Others
) -> None:
    cut_off._thread._bootstrap.search()
    assert not cut_off.is_disconnected()
    assert cut_off.last_error() is None
    assert (bell.breaks, others.made) == ([], [])


def test_a_client_whose_brokers_are_back_a_little_later_is_kept(
    cut_off: ConfluentDriver, client: Client, bell: Bell, others: Others
) -> None:
    client.answers = [no_answer] * 2
    cut_off._thread._bootstrap.search()
    assert len(others.made) == 1
    assert bell.breaks == []


def test_the_bootstrap_addresses_are_asked_at_intervals(
    cut_off: ConfluentDriver, client: Client, bell: Bell, others: Others
) -> None:
    others.answer = no_answer
    for number in (1, 1, 2):
        client.answers = [no_answer]
        if number == 2:
            cut_off._thread._bootstrap._next_at -= 5
        cut_off._thread._bootstrap.search()
        assert len(others.made) == number
    assert bell.breaks == []
    assert client.answers == []


def test_a_closing_client_does_not_search_for_brokers(
    cut_off: ConfluentDriver, client: Client, bell: Bell, others: Others
) -> None:
    cut_off._handle.closing.set()
    cut_off._thread._bootstrap.search()
    assert (client.asked, others.made, bell.breaks) == (0, [], [])


def test_librdkafka_takes_the_configuration_of_a_search(client: Client, others: Others) -> None:
    settings = ProducerSettings(
        bootstrap_servers="broker.invalid:1",
        transactional_id="id",
        properties={"enable.gapless.guarantee": True},
    )
    driver = ConfluentDriver(settings)
    driver._handle.client = client
    client.patience = 1
    client.answers = [no_answer]
    others.answer = no_answer
    driver._thread._bootstrap.search()
    [config] = others.configs
    confluent_kafka.Producer(config).close()


class Tokens:
    """A token provider that returns the given tokens, and raises the given exceptions."""

    def __init__(self, *given: str | BaseException) -> None:
        self._given = iter(given)

    def token(self) -> str:
        given = next(self._given)
        if isinstance(given, BaseException):
            raise given
        return given


def with_tokens(*given: str | BaseException, **changes: Any) -> ConfluentDriver:
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Tokens(*given),
    }
    settings = ProducerSettings(bootstrap_servers="broker.invalid:1", properties=login)
    return ConfluentDriver(settings.evolve(**changes))


def test_the_search_for_brokers_uses_the_token_provider(
    client: Client, bell: Bell, others: Others
) -> None:
    """confluent-kafka raises without a token within ten seconds, so the driver gets one first."""
    driver = with_tokens("a-token", "another", transactional_id="id")
    driver._handle.client, driver._handle.sink = client, bell
    client.patience = 1
    client.answers = [no_answer]
    others.refusal = KafkaException(KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED))
    driver._thread._bootstrap.search()
    assert bell.breaks == []
    [config] = others.configs
    assert [config["oauth_cb"]("")[0] for _ in range(2)] == ["a-token", "another"]


def test_the_search_for_brokers_needs_a_token(client: Client, bell: Bell, others: Others) -> None:
    driver = with_tokens(SystemExit(), transactional_id="id")
    driver._handle.client, driver._handle.sink = client, bell
    client.patience = 1
    client.answers = [no_answer]
    driver._thread._bootstrap.search()
    assert others.configs == []


def test_a_client_is_made_when_there_is_a_token(
    bell: Bell, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waits, "SLICE_SECONDS", 0)
    driver = with_tokens(ValueError("not yet"), "a-token", start_timeout=PATIENCE)
    others.refusal = KafkaException(KafkaError(KafkaError._INVALID_ARG))
    with pytest.raises(SettingsError):
        driver.open(bell)
    [config] = others.configs
    assert config["oauth_cb"]("")[0] == "a-token"


def test_a_start_without_a_token_ends_in_time(bell: Bell, others: Others) -> None:
    driver = with_tokens(KeyboardInterrupt(), start_timeout=1e-9)
    with pytest.raises(ProducerStartError) as caught:
        driver.open(bell)
    assert str(caught.value) == (
        "no producer for broker.invalid:1 within 1e-09 s (start_timeout): token() of "
        "sasl_oauth_token_provider raised KeyboardInterrupt: "
    )
    assert others.configs == []


def test_a_token_provider_that_hangs_delays_a_start_until_its_end_only() -> None:
    """The provider has used up the time of the start before, and a call may take as long again."""
    goes_on = threading.Event()

    class Hanging:
        def token(self) -> str:
            assert goes_on.wait(PATIENCE)
            return "a-token"

    driver = with_tokens()
    tokens = driver._tokens
    assert tokens is not None
    tokens._source._provider = Hanging()
    with pytest.raises(ProducerStartError, match=r"token\(\) of .* has not returned in time"):
        tokens.wait_for_callback(time.monotonic())
    goes_on.set()
    assert tokens.callback()("")[0] == "a-token"


def test_a_start_that_waits_for_a_token_can_be_closed(bell: Bell, others: Others) -> None:
    driver = with_tokens(ValueError("not yet"), start_timeout=PATIENCE)
    driver.close(0)
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        driver.open(bell)
    assert others.configs == []


def test_a_start_pauses_after_a_malformed_answer(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A malformed answer arrives at once, and so would the next one."""
    pauses: list[float | None] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            if len(pauses) == 6:
                self.set()
            return self.is_set()

    def malformed() -> None:
        raise KafkaException(KafkaError(KafkaError._BAD_MSG))

    monkeypatch.setattr(_driver, "time", types.SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(driver._handle, "closing", Closing())
    client.patience = 1
    client.answers = [malformed] * 6
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        driver._connect(PATIENCE)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert client.asked == 6


@pytest.mark.parametrize("ends", ["back", "given up", "closed", "timeout"])
def test_begin_transaction_waits_until_the_client_is_back_or_given_up(
    cut_off: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    cut_off.end_transaction(False, Deadline(PATIENCE))
    waits: list[float] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            if ends == "back":
                cut_off._health.is_disconnected = False
            if ends == "given up":
                cut_off._health.is_broken = True
            return ends == "closed"

    monkeypatch.setattr(cut_off._handle, "closing", Closing())
    if ends == "timeout":
        monkeypatch.setattr(_transactions, "_DISCONNECTED_SECONDS", 0)
    cut_off.begin_transaction()
    assert client.calls[-1] == "begin"
    # The second wait lets the event loop first learn that the client was given up.
    assert len(waits) == {"back": 1, "given up": 2, "closed": 1, "timeout": 0}[ends]


# --- the log -------------------------------------------------------------------------------------


class Slow(logging.Handler):
    """Stops at its first line until the test sets `goes_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.emits, self.goes_on = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.emits.set()
        assert self.goes_on.wait(PATIENCE)
        self.lines.append(record.getMessage())


@pytest.fixture
def slow() -> Iterator[Slow]:
    handler, logger = Slow(), logging.getLogger("anyio_sendproducer.confluent")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_lines_that_come_while_a_handler_is_slow_are_logged_in_order(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_log_relay, "_MAX_LINES", 3)
    relay = _log_relay.LogRelay()
    relay.log(logging.WARNING, "%s [%s] %s", "FAIL", "client", 0)
    assert slow.emits.wait(PATIENCE)
    for number in range(1, 6):
        relay.log(logging.WARNING, "%s [%s] %s", "FAIL", "client", number)
        relay.log(logging.DEBUG, "below the level of the logger")
    slow.goes_on.set()
    relay.join(PATIENCE)
    # The oldest lines are dropped if the handler is too far behind.
    assert slow.lines == [f"FAIL [client] {number}" for number in (0, 3, 4, 5)]
    relay.join(PATIENCE)
    # After a thread has ended, the next line starts another.
    relay.log(logging.WARNING, "%s", 6)
    relay.join(PATIENCE)
    assert slow.lines[-1] == "6"


def test_no_line_is_lost_if_the_thread_is_about_to_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line arrives after the thread found none. It starts a thread, or the old thread sees it."""
    relay = _log_relay.LogRelay()
    moving = relay._moving
    looks, goes_on = threading.Event(), threading.Event()

    class Stopping:
        """Stops the relay's thread before it looks for a second line."""

        looked = 0

        def __enter__(self) -> None:
            if threading.current_thread().name == "librdkafka-log":
                self.looked += 1
                if self.looked == 2:
                    looks.set()
                    assert goes_on.wait(PATIENCE)
            moving.acquire()

        def __exit__(self, *_: object) -> None:
            moving.release()

    monkeypatch.setattr(relay, "_moving", Stopping())
    relay.log(logging.WARNING, "first")
    assert looks.wait(PATIENCE)
    relay.log(logging.WARNING, "second")
    goes_on.set()
    relay.join(PATIENCE)
    assert [one.getMessage() for one in caplog.records] == ["first", "second"]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_filter_that_raises_does_not_end_the_log(slow: Slow, error: type[BaseException]) -> None:
    slow.goes_on.set()
    relay = _log_relay.LogRelay()

    def refuse_the_first(record: logging.LogRecord) -> bool:
        if record.getMessage() == "first":
            raise error("no")
        return True

    logger = logging.getLogger("anyio_sendproducer.confluent")
    logger.addFilter(refuse_the_first)
    try:
        relay.log(logging.WARNING, "first")
        relay.log(logging.WARNING, "second")
        relay.join(PATIENCE)
    finally:
        logger.removeFilter(refuse_the_first)
    assert slow.lines == ["second"]


def unreadable() -> None:
    b"h\xff".decode()


def test_a_log_line_that_is_not_utf_8_delays_no_callback(
    driver: ConfluentDriver, client: Client, bell: Bell, caplog: pytest.LogCaptureFixture
) -> None:
    """The binding raises if librdkafka logs a host name that is not UTF-8."""
    parcel = Parcel(ProducerRecord("t", b"v"))
    client.steps = [
        unreadable,
        unreadable,
        lambda: driver._submitter.delivered(parcel, None, Message()),
    ]
    driver.poll(10)
    assert len(bell.outcomes_of([parcel])) == 1
    driver._handle.log.join(PATIENCE)
    assert "a line of librdkafka's log is lost" in caplog.text


def test_a_log_line_that_is_not_utf_8_does_not_disturb_the_end(
    driver: ConfluentDriver, client: Client
) -> None:
    client.close = unreadable  # type: ignore[method-assign]
    driver._handle.end()
    assert driver._handle.client is None


def raise_system_error() -> None:
    raise SystemError("Objects/listobject.c:160: bad argument to internal function")


def test_an_answer_that_the_binding_cannot_read_is_ignored(
    driver: ConfluentDriver, client: Client
) -> None:
    """The binding raises SystemError for a negative count of replicas, for example."""
    client.answers = [raise_system_error, unreadable]
    started(driver)
    assert driver._thread.is_prepared.wait(PATIENCE)
    assert client.asked == 3


@pytest.mark.parametrize("answer", [raise_system_error, unreadable, lambda: None])
def test_topic_metadata_that_the_binding_cannot_read(
    answer: Step, driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_topics(topic: str, timeout: float) -> Any:
        assert (topic, timeout) == ("orders", 1)
        answer()
        return types.SimpleNamespace(topics={"another": None})

    monkeypatch.setattr(client, "list_topics", list_topics)
    with pytest.raises(KafkaException, match="the answer with metadata ") as caught:
        _client.look_up(client, "orders", 1)
    assert caught.value.args[0].code() == KafkaError._BAD_MSG


# --- a topic that cannot be looked up ------------------------------------------------------------


def test_last_error_prefers_an_earlier_connection_failure_to_a_timeout(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_topics(*_: Any) -> None:
        no_answer()

    monkeypatch.setattr(client, "list_topics", list_topics)
    assert driver.partitions_for("t") is None
    earlier = driver._health.failure = SendProducerError("the login was refused")
    assert driver.partitions_for("t") is None
    assert driver.last_error() is earlier


# --- a system without threads --------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The system starts no threads, until this is undone."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        yield context


def test_lines_are_logged_when_threads_can_start_again(
    no_threads: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    relay = _log_relay.LogRelay()
    relay.log(logging.WARNING, "first")  # the client's callback must not raise
    relay.join(PATIENCE)
    no_threads.undo()
    relay.log(logging.WARNING, "second")
    relay.join(PATIENCE)
    assert [one.getMessage() for one in caplog.records] == ["first", "second"]


@pytest.mark.usefixtures("no_threads")
def test_a_driver_that_gets_no_thread_does_not_open(
    client: Client, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: Any, **__: Any) -> Client:
        return client

    monkeypatch.setattr(_client, "_Producer", make)
    opened = ConfluentDriver(ProducerSettings(bootstrap_servers="broker.invalid:1"))
    with pytest.raises(ProducerStartError, match="can start no more threads"):
        opened.open(bell)
    assert client.calls == ["close"]
    assert not opened._handle.is_usable


def test_a_client_that_gets_no_thread_does_not_open(bell: Bell, others: Others) -> None:
    """The settings are not the reason, so another attempt may succeed."""
    said = "Failed to create producer: Failed to create thread: Cannot allocate memory (12)"
    others.refusal = KafkaException(KafkaError(KafkaError._CRIT_SYS_RESOURCE, said))
    opened = ConfluentDriver(ProducerSettings(bootstrap_servers="broker.invalid:1"))
    with pytest.raises(ProducerStartError, match="no producer: Failed to create producer"):
        opened.open(bell)


def test_close_at_the_end_of_open_ends_the_client(
    client: Client, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: Any, **__: Any) -> Client:
        return client

    monkeypatch.setattr(_client, "_Producer", make)
    opened = ConfluentDriver(ProducerSettings(bootstrap_servers="broker.invalid:1"))
    client.answers = [lambda: opened.close(0)]  # a real program does this in another thread
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        opened.open(bell)
    assert client.calls == ["close"]
    assert not opened._handle.is_usable
    assert opened._thread.join(PATIENCE)


@pytest.mark.usefixtures("no_threads")
def test_a_record_waits_for_a_partition_if_no_thread_can_start(driver: ConfluentDriver) -> None:
    assert driver._metadata.is_awaited("t", 1)
    assert driver._metadata.is_awaited("t", 1)  # the next attempt
    assert driver._metadata._refresher is None


@pytest.mark.usefixtures("no_threads")
def test_offsets_that_get_no_thread_are_not_sent(transactional: ConfluentDriver) -> None:
    group = ConsumerGroupMetadata("g")
    with pytest.raises(TransactionError, match="can start no more threads"):
        transactional.send_offsets([ConsumedOffset("s", 0, 1)], group, Deadline(PATIENCE))


# --- closing while other threads use the client --------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for other threads as long as a busy machine needs."""
    monkeypatch.setattr(_waits, "FINISH_SECONDS", PATIENCE)


def close_at_gate(
    driver: ConfluentDriver, client: Client, gate: Gate, call: Callable[[], object], lock: Any
) -> None:
    """Close the driver while another thread is in a call of the client that stops at a gate.

    The call holds a lock, and the client is closed only after the call has returned.
    """
    client.calls.clear()
    gate.shut()
    calling = threading.Thread(target=call)
    calling.start()
    gate.wait_until_someone_waits(PATIENCE)
    assert not lock.acquire(blocking=False)
    closing = threading.Thread(target=driver.close, args=(0,))
    closing.start()
    assert driver._handle.closing.wait(PATIENCE)
    assert "close" not in client.calls
    gate.open()
    calling.join(PATIENCE)
    closing.join(PATIENCE)
    assert client.calls[-1] == "close"


@pytest.mark.usefixtures("patient")
def test_a_client_is_not_closed_while_it_gets_a_record(
    driver: ConfluentDriver, client: Client, bell: Bell
) -> None:
    gate = Gate()
    parcels = [Parcel(ProducerRecord("t", b"v")) for _ in range(2)]

    def produce(*_: Any) -> None:
        gate.pass_through()
        assert driver._handle.client is client
        client.calls.append("produce")

    client.produce = produce  # type: ignore[method-assign]
    started(driver)
    close_at_gate(driver, client, gate, lambda: driver.submit(parcels[:1]), driver._handle.using)
    assert client.calls == ["produce", "close"]
    # A later submission finds the client closed.
    driver.submit(parcels[1:])
    [(parcel, outcome)] = bell.reports
    assert parcel is parcels[1]
    assert isinstance(outcome, DeliveryError)


@pytest.mark.usefixtures("patient")
def test_a_client_is_not_closed_while_one_of_its_calls_waits(
    driver: ConfluentDriver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def list_topics(topic: str, timeout: float) -> Any:
        if topic == "orders":
            gate.pass_through()
            client.calls.append("metadata")
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    monkeypatch.setattr(client, "list_topics", list_topics)
    started(driver)
    lock = driver._handle.calling
    close_at_gate(driver, client, gate, lambda: driver.partitions_for("orders"), lock)
    assert client.calls == ["metadata", "close"]


def test_no_topic_is_lost_if_the_refresher_is_about_to_end(
    driver: ConfluentDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A topic arrives after the thread has found none. It starts another thread."""
    gate, decided = Gate(), list[str]()

    class Wanted(set[str]):
        """Stops the refresher when it has found no topic."""

        def __iter__(self) -> Iterator[str]:
            yield from [*super().__iter__()]
            if not self and decided == ["first"]:
                gate.pass_through()

    def request(topic: str) -> None:
        decided.append(topic)
        driver._metadata._wanted.discard(topic)

    monkeypatch.setattr(driver._metadata, "_wanted", Wanted())
    monkeypatch.setattr(driver._metadata, "_request", request)
    gate.shut()
    assert driver._metadata.is_awaited("first", 1)
    gate.wait_until_someone_waits(PATIENCE)
    second = threading.Thread(target=driver._metadata.is_awaited, args=("second", 1))
    second.start()
    assert not driver._handle.using.acquire(blocking=False)
    gate.open()
    second.join(PATIENCE)
    blocking_until(lambda: driver._metadata._refresher is None)
    assert decided == ["first", "second"]
