"""The librdkafka driver: its choices, its translations, and its assumptions about the client.

The last part fails when confluent-kafka changes a behaviour on which the driver depends.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, cast

import anyio
import confluent_kafka
import pytest
from confluent_kafka import KafkaError

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
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
from anyio_sendproducer.drivers import Outcome, PolledDriver, make_driver
from anyio_sendproducer.drivers.librdkafka import (
    _driver,
    _log_relay,
    _poll_thread,
    _reports,
    _waits,
)
from anyio_sendproducer.drivers.librdkafka._client import new_client
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from anyio_sendproducer.drivers.librdkafka._log_relay import LogRelay
from anyio_sendproducer.telemetry._logging import describe
from anyio_sendproducer.testing import MockCluster, mock_cluster
from tests.support.calls import SENT_ONCE, generation
from tests.support.clock import ManualClock
from tests.support.kafka_security import unsecured_token
from tests.support.recorder import PATIENCE, Parcel, Recorder, asked, learn, submit, submit_all
from tests.support.scripted_broker import METADATA, ScriptedBroker, scripted_broker
from tests.support.waiting import blocking_until, until

MSG_SIZE_TOO_LARGE = 10
TOPIC_AUTHORIZATION_FAILED = 29
OUT_OF_ORDER_SEQUENCE_NUMBER = 45
UNKNOWN_SERVER_ERROR = -1

FOUR = "four-partitions"


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[MockCluster]:
    with mock_cluster(1) as mock:
        mock.create_topic(FOUR, [1] * 4)
        yield mock


@pytest.fixture
def cluster(one_cluster: MockCluster) -> Iterator[MockCluster]:
    yield one_cluster
    one_cluster.behave()


def settings_for(cluster: MockCluster, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers, start_timeout=PATIENCE, cancel_timeout=1
    ).evolve(**changes)


@contextlib.contextmanager
def opened(
    cluster: MockCluster, **changes: Any
) -> Generator[tuple[ConfluentDriver, Recorder], None, None]:
    driver = ConfluentDriver(settings_for(cluster, **changes))
    recorder = Recorder()
    driver.open(recorder)
    try:
        with asked(driver, recorder):
            yield driver, recorder
    finally:
        driver.close(0)


def send_all(
    driver: ConfluentDriver, recorder: Recorder, records: Sequence[ProducerRecord[Any, Any]]
) -> list[Outcome]:
    recorder.reports.clear()
    parcels = [Parcel(record) for record in records]
    submit_all(driver, parcels)
    return recorder.outcomes_of(parcels)


def metadata_of(outcome: Outcome) -> RecordMetadata:
    assert isinstance(outcome, RecordMetadata), outcome
    return outcome


def rejected(outcome: Outcome) -> RecordRejected:
    assert isinstance(outcome, RecordRejected), outcome
    assert outcome.persistence is Persistence.NOT_PERSISTED
    return outcome


# --- which driver it is --------------------------------------------------------------------------


def test_the_name_confluent_makes_a_polled_driver() -> None:
    settings = ProducerSettings(bootstrap_servers="a:1")
    driver = make_driver("confluent", settings)
    assert isinstance(driver, ConfluentDriver)
    assert isinstance(driver, PolledDriver)
    assert driver.direct
    serializing = make_driver("confluent", settings.with_value_serializer(str.encode))
    assert isinstance(serializing, PolledDriver)
    assert not serializing.direct
    assert not isinstance(make_driver(None, settings), PolledDriver)


def test_without_confluent_kafka_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, _driver.__name__, None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[confluent\]" in a checkout of'):
        make_driver("confluent", ProducerSettings(bootstrap_servers="a:1"))


def test_an_unknown_driver_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be 'kafka-python', 'confluent' or a factory"):
        make_driver(cast("Any", "librdkafka"), ProducerSettings(bootstrap_servers="a:1"))


# --- records -------------------------------------------------------------------------------------


def test_a_record_with_every_field(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        record = ProducerRecord(
            FOUR, b"value", b"key", partition=3, timestamp_ms=1_700, headers=[("a", b"1")]
        )
        [first, second] = send_all(driver, recorder, [record, ProducerRecord(FOUR, None, b"")])
        assert metadata_of(first)._replace(offset=None, timestamp_ms=None) == RecordMetadata(
            FOUR, 3, None, None, 3, 5
        )
        assert metadata_of(second)[4:] == (0, None)


def test_a_key_goes_to_the_partition_of_kafkas_own_partitioner(cluster: MockCluster) -> None:
    """The partitions are those that Kafka's Java client chooses among four."""
    with opened(cluster) as (driver, recorder):
        keys = [b"a", b"b", b"c", b"42", b"orders", b"\xff\x00"]
        outcomes = send_all(driver, recorder, [ProducerRecord(FOUR, b"v", key) for key in keys])
        murmur2: Callable[[bytes], int] = __import__(
            "kafka.partitioner", fromlist=["murmur2"]
        ).murmur2
        assert [metadata_of(one).partition for one in outcomes] == [
            (murmur2(key) & 0x7FFFFFFF) % 4 for key in keys
        ]


def test_records_without_a_key_stay_together_for_a_while(cluster: MockCluster) -> None:
    with opened(cluster, properties={"sticky.partitioning.linger.ms": 60_000}) as (
        driver,
        recorder,
    ):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])  # after this it knows the topic
        outcomes = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")] * 100)
        assert len({metadata_of(one).partition for one in outcomes}) == 1


def test_without_acknowledgements_there_is_no_offset_and_no_timestamp(cluster: MockCluster) -> None:
    with opened(cluster, properties={"acks": 0}) as (driver, recorder):
        [outcome] = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert metadata_of(outcome)[2:4] == (None, None)


def test_serializers_give_the_bytes_the_headers_and_the_true_size(cluster: MockCluster) -> None:
    class Tagging:
        def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes:
            headers.append(("kind", topic.encode()))
            return str(data).encode()

    with opened(cluster, value_serializer=Tagging(), key_serializer=str.encode) as (
        driver,
        recorder,
    ):
        parcel = Parcel(ProducerRecord(FOUR, 12345, "k"))
        answer = driver.submit([parcel])
        assert answer.sizes == [(parcel, 1 + 5 + len("kind") + len(FOUR))]
        [outcome] = recorder.outcomes_of([parcel])
        assert metadata_of(outcome)[4:] == (1, 5)


def test_a_serializer_that_fails_fails_its_record_alone(cluster: MockCluster) -> None:
    def careful(data: object) -> bytes:
        if data == "bad":
            raise ValueError("no")
        return b"good"

    with opened(cluster, value_serializer=careful) as (driver, recorder):
        good, bad = send_all(
            driver, recorder, [ProducerRecord(FOUR, "good"), ProducerRecord(FOUR, "bad")]
        )
        assert isinstance(good, RecordMetadata)
        assert isinstance(bad, SerializationFailed)


def test_a_serializer_holds_up_neither_the_loop_nor_a_close(cluster: MockCluster) -> None:
    serializing, goes_on = threading.Event(), threading.Event()

    def serialize(_: object) -> bytes:
        serializing.set()
        assert goes_on.wait(PATIENCE)
        return b"v"

    with opened(cluster, value_serializer=serialize) as (driver, recorder):
        parcels = [Parcel(ProducerRecord(FOUR, "v")) for _ in range(2)]
        submitter = threading.Thread(target=driver.submit, args=(parcels,))
        submitter.start()
        assert serializing.wait(PATIENCE)

        def ask_and_close() -> None:
            driver.poll(1)
            driver.close(0)

        asker = threading.Thread(target=ask_and_close)
        asker.start()
        asker.join(PATIENCE)
        has_ended = not asker.is_alive()
        goes_on.set()
        submitter.join(PATIENCE)
        assert has_ended
        assert {str(one) for one in recorder.outcomes_of(parcels)} == {
            "the record was not sent: the client is closed"
        }


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (ProducerRecord(FOUR, b"v", partition=9), "has no partition 9; it has 4"),
        (ProducerRecord(FOUR, bytes(2_000_000)), "larger than message.max.bytes"),
        (ProducerRecord(FOUR, b"v", timestamp_ms=0), "it would set the current time"),
        (ProducerRecord(FOUR, b"v", headers=[("\ud800", b"")]), "a header with the name '\\ud800'"),
        (ProducerRecord(FOUR, b"v", headers=[("a\0b", b"")]), "a header with the name 'a\\x00b'"),
    ],
    ids=["partition", "size", "timestamp", "no text", "NUL"],
)
def test_only_records_that_the_client_refuses_are_rejected(
    cluster: MockCluster, record: ProducerRecord[Any, Any], says: str
) -> None:
    with opened(cluster, unknown_topic_timeout=0.1) as (driver, recorder):
        learn(driver, recorder, FOUR)
        good = ProducerRecord(FOUR, b"v")
        parcels = [Parcel(one) for one in (good, record, good)]
        submit(driver, recorder, parcels)
        first, refused, last = recorder.outcomes_of(parcels)
        assert isinstance(first, RecordMetadata)
        assert isinstance(last, RecordMetadata)
        assert says in str(rejected(refused))
        assert rejected(refused).record is record
        assert "a header with the name '" not in describe(rejected(refused))


@pytest.mark.parametrize("code", [MSG_SIZE_TOO_LARGE, TOPIC_AUTHORIZATION_FAILED])
def test_a_record_that_a_broker_refuses_is_not_persisted(code: int) -> None:
    with mock_cluster(1) as cluster, opened(cluster, properties=SENT_ONCE) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        cluster.answer_any(code)
        [outcome] = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert isinstance(rejected(outcome).__cause__, confluent_kafka.KafkaException)
        assert recorder.breaks == []


def test_a_record_with_an_unknown_outcome_is_possibly_persisted(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        cluster.answer_any(UNKNOWN_SERVER_ERROR)
        [outcome] = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert type(outcome) is DeliveryError
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert "UNKNOWN" in str(outcome.__cause__)


def test_a_record_that_librdkafka_expires_times_out(cluster: MockCluster) -> None:
    """Without idempotence librdkafka expires records by itself."""
    without = {"enable.idempotence": False}
    with opened(cluster, delivery_timeout=0.5, properties=without) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        cluster.set_rtt(1, 20_000)
        [outcome] = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert isinstance(outcome, DeliveryTimeout)
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        assert "within 0.5 s (delivery_timeout)" in str(outcome)


def test_if_the_queue_is_full_the_other_records_are_given_back(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cluster) as (driver, _):
        config: dict[str, Any] = {
            "bootstrap.servers": cluster.bootstrap_servers,
            "queue.buffering.max.messages": 3,
            "linger.ms": 60_000,
        }
        full = confluent_kafka.Producer(config)
        with monkeypatch.context() as patch:
            patch.setattr(driver._handle, "client", full)
            parcels = [Parcel(ProducerRecord(FOUR, b"v")) for _ in range(5)]
            assert driver.submit(parcels).held == parcels[3:]
        full.purge()
        while len(full):
            with contextlib.suppress(_reports.StopPolling):
                full.flush(PATIENCE)


# --- opening and closing -------------------------------------------------------------------------


def test_a_setting_that_only_the_client_refuses_is_a_settings_error(cluster: MockCluster) -> None:
    driver = ConfluentDriver(settings_for(cluster, properties={"debug": "nonsense"}))
    with pytest.raises(SettingsError, match="librdkafka refuses the settings"):
        driver.open(Recorder())


def test_an_address_that_refuses_connections() -> None:
    driver = ConfluentDriver(ProducerSettings(bootstrap_servers="127.0.0.1:1", start_timeout=1))
    with pytest.raises(ProducerStartError, match=r"within 1 s \(start_timeout\): .*127.0.0.1:1"):
        driver.open(Recorder())
    assert driver.last_error() is not None
    driver.close(0)


@pytest.mark.parametrize("before", [(), (KafkaError._TRANSPORT,)], ids=["", "down-before"])
@pytest.mark.parametrize("after", [(), (KafkaError._TRANSPORT,)], ids=["", "down-after"])
def test_a_refused_login_ends_the_start_before_its_timeout(
    cluster: MockCluster, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Another broker may be down."""
    driver = ConfluentDriver(settings_for(cluster))
    for code in (*before, KafkaError._AUTHENTICATION, *after, KafkaError._ALL_BROKERS_DOWN):
        text = "wrong password" if code == KafkaError._AUTHENTICATION else "no answer"
        driver._health.on_error(KafkaError(code, text))
    with pytest.raises(ProducerStartError, match=r"no producer for 127.*: wrong password"):
        driver.open(Recorder())


def test_a_refused_login_is_forgotten_when_librdkafka_stops_repeating_it() -> None:
    driver = ConfluentDriver(ProducerSettings(bootstrap_servers="127.0.0.1:1"))
    driver._health.on_error(KafkaError(KafkaError._AUTHENTICATION, "wrong password"))
    driver._health._failed_at -= 31
    driver._health.on_error(KafkaError(KafkaError._TRANSPORT, "no answer"))
    assert str(driver.last_error()) == "no answer"


def test_a_refused_login_does_not_hide_a_failure_that_came_after_an_answer() -> None:
    """For example, the token was renewed, and later the broker went down."""
    driver = ConfluentDriver(ProducerSettings(bootstrap_servers="127.0.0.1:1"))
    driver._health.on_error(KafkaError(KafkaError._AUTHENTICATION, "token expired"))
    driver._health.note_answer()
    assert str(driver.last_error()) == "token expired"
    driver._health.on_error(KafkaError(KafkaError._TRANSPORT, "connection refused"))
    assert str(driver.last_error()) == "connection refused"


def test_the_client_gets_the_tokens_of_the_token_provider(cluster: MockCluster) -> None:
    class Tokens:
        def token(self) -> str:
            return "a-token"

        def extensions(self) -> dict[str, str]:
            return {"traceId": "1"}

    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Tokens(),
    }
    driver = ConfluentDriver(settings_for(cluster, properties=login, start_timeout=0.3))
    assert driver._tokens is not None
    token, until_when, principal, extensions = driver._tokens.new_token()
    assert (token, principal, extensions) == ("a-token", "", {"traceId": "1"})
    assert 29 <= until_when - time.time() <= 30
    with pytest.raises(ProducerStartError):  # the mock cluster does not support logins
        driver.open(Recorder())


def test_no_poll_calls_the_token_provider() -> None:
    """The event loop polls. If a poll called the token provider, the loop would wait for it."""
    asking: queue.SimpleQueue[int] = queue.SimpleQueue()

    def token(_: str) -> tuple[str, float]:
        asking.put(threading.get_ident())
        return "a-token", time.time() + 3

    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}
    nobody = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    client = new_client({**nobody, **login, "oauth_cb": token}, LogRelay())
    threads = {asking.get(timeout=PATIENCE) for _ in range(2)}  # nothing polls the client
    client.close()
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("expires_in", [-60.0, 0.5], ids=["expired", "soon"])
def test_a_token_that_expires_is_requested_again(expires_in: float) -> None:
    """The driver also does that if the provider returns the same token again."""
    asked = threading.Semaphore(0)

    class Tokens:
        def token(self) -> str:
            asked.release()
            return unsecured_token("me", valid_for=expires_in)

    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Tokens(),
    }
    nobody = ProducerSettings(bootstrap_servers="127.0.0.1:1", properties=login)
    driver = ConfluentDriver(nobody)

    def is_closed_while_it_opens() -> None:
        with pytest.raises(ProducerStartError, match="closed while it was starting"):
            driver.open(Recorder())

    opening = threading.Thread(target=is_closed_while_it_opens)
    opening.start()
    try:
        for _ in range(3):
            assert asked.acquire(timeout=PATIENCE)
    finally:
        driver.close(0)
        opening.join()


def test_a_repeated_line_is_logged_every_half_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    relay = _log_relay.LogRelay(lambda: now)
    caplog.set_level(logging.DEBUG, "anyio_sendproducer.confluent")

    def logged(*lines: tuple[Any, ...]) -> list[str]:
        caplog.clear()
        for line in lines:
            relay.log(*line)
        relay.join(PATIENCE)
        return caplog.messages

    def down(milliseconds: int) -> tuple[Any, ...]:
        return logging.ERROR, "%s: refused (after %s)", "a:1", f"{milliseconds}ms in state CONNECT"

    other = (logging.ERROR, "%s: refused (after %s)", "b:1", "0ms in state CONNECT")
    assert logged(down(0), down(1), other, down(20)) == [
        "a:1: refused (after 0ms in state CONNECT)",
        "b:1: refused (after 0ms in state CONNECT)",
    ]
    now = 29.9
    assert logged(down(0)) == []
    now = 30.0
    assert logged(down(7), down(8)) == [
        "a:1: refused (after 7ms in state CONNECT) (3 identical lines before)"
    ]
    # Lines that the property `debug` requests are all logged.
    assert logged(*[(logging.DEBUG, "sent")] * 3) == ["sent"] * 3
    # The number of remembered lines is bounded.
    different = [(logging.ERROR, "%d", number) for number in range(_log_relay._MAX_REPEATED)]
    assert len(logged(*different)) == len(different)
    assert logged(down(0)) == ["a:1: refused (after 0ms in state CONNECT)"]


def test_brokers_that_are_down_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    nobody = ProducerSettings(bootstrap_servers="127.0.0.1:1, 127.0.0.1:2", start_timeout=1)
    driver = ConfluentDriver(nobody)
    with pytest.raises(ProducerStartError):
        driver.open(Recorder())
    driver._handle.log.join(PATIENCE)
    refused = [line for line in caplog.messages if "Connection refused" in line]
    assert len({line[: line.index("]")] for line in refused}) == 1
    assert len(refused) == 2


def test_a_driver_that_was_never_opened_polls_no_client() -> None:
    driver = ConfluentDriver(ProducerSettings(bootstrap_servers="a:1"))
    driver._reports.poll(0)
    assert driver.poll(1) == 0


def test_a_closed_driver_accepts_no_record_and_reports_nothing(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        driver.close(0)
        [outcome] = send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.NOT_PERSISTED
        assert driver.poll(1) == 0
        with pytest.raises(SendProducerError, match="closed"):
            driver.partitions_for(FOUR)


def test_a_clean_close_leaves_no_thread(cluster: MockCluster) -> None:
    before = set(threading.enumerate())
    with opened(cluster) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")] * 10)
        driver.close(PATIENCE)
    assert set(threading.enumerate()) <= before


def test_records_that_the_client_does_not_release_are_left_with_it(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Clinging:
        def __init__(self, client: Any) -> None:
            self._client = client

        def __len__(self) -> int:
            return 1

        def purge(self, **_: Any) -> None:
            pass

        def poll(self, seconds: float) -> int:
            return int(self._client.poll(seconds))

    monkeypatch.setattr(_waits, "FINISH_SECONDS", 0.3)
    with opened(cluster) as (driver, _):
        client = driver._handle.client
        driver._handle.client = Clinging(client)
        driver.close(0)
        assert "did not release its records" in caplog.text
        client.close()


def test_the_first_record_does_not_wait_for_a_timer(cluster: MockCluster) -> None:
    """By itself librdkafka requests its producer id after half a second. Most of several clients of
    the driver are faster, also on a machine that is busy at times."""
    seconds: list[float] = []
    for _ in range(7):
        with opened(cluster) as (driver, recorder):
            began = time.monotonic()
            send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
            seconds.append(time.monotonic() - began)
    assert statistics.median(seconds) < 0.25


def test_the_start_requests_no_topics() -> None:
    """The metadata of all topics of a large cluster are longer than librdkafka accepts."""
    with mock_cluster(1) as cluster:
        cluster._call("topic_create", b"large", 300, 1)
        with opened(cluster, properties={"receive.message.max.bytes": 1000}) as (driver, recorder):
            [outcome] = send_all(driver, recorder, [ProducerRecord("small", b"v")])
            assert isinstance(outcome, RecordMetadata)
            assert driver.describe_from_client().brokers[0].id == 1
            assert driver.partitions_for("large") is None
            parcel = Parcel(ProducerRecord("large", b"v"))
            driver.submit([parcel])
            blocking_until(lambda: "increase receive.message.max" in str(driver.last_error()))


# --- reports of the client -----------------------------------------------------------------------


def test_metrics_are_the_last_statistics_of_librdkafka(cluster: MockCluster) -> None:
    statistics = {"statistics.interval.ms": 20}
    assert ConfluentDriver(settings_for(cluster, properties=statistics)).metrics() == {}
    with opened(cluster, properties=statistics) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        deadline = time.monotonic() + PATIENCE
        while not driver.metrics() and time.monotonic() < deadline:
            send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert driver.metrics()["type"] == "producer"


def test_an_idle_client_is_polled_from_time_to_time(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_poll_thread, "_IDLE_SECONDS", 0.01)
    driver = ConfluentDriver(settings_for(cluster, properties={"statistics.interval.ms": 10}))
    driver.open(Recorder())
    try:
        blocking_until(driver.metrics)
        assert driver.metrics()["type"] == "producer"
    finally:
        driver.close(0)


def test_an_error_is_reported_until_records_are_delivered_again() -> None:
    with mock_cluster(1) as cluster, opened(cluster) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert (driver.last_error(), driver.is_disconnected()) == (None, False)
        cluster.set_down(1)
        deadline = time.monotonic() + PATIENCE
        while "127.0.0.1" not in str(driver.last_error()) and time.monotonic() < deadline:
            driver.poll(1)
            time.sleep(0.01)
        assert driver.is_disconnected()
        cluster.set_up(1)
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert not driver.is_disconnected()
        assert driver.last_error() is not None  # this broker may not be the failed one
        driver._health._failed_at -= 31
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
        assert driver.last_error() is None


async def test_a_record_names_the_broker_that_does_not_answer(clock: ManualClock) -> None:
    """The broker is named while records to another broker are delivered."""
    with mock_cluster(2) as cluster:
        cluster.create_topic("t", [1, 2])
        settings = cluster.settings("confluent", properties={"socket.timeout.ms": 2_000})
        async with clock.open(settings, driver="confluent") as producer:
            for partition in (0, 1):
                await producer.send(ProducerRecord("t", b"v", partition=partition))
            cluster.set_rtt(2, 600_000)
            lost = await producer.enqueue(ProducerRecord("t", b"v", partition=1))
            address = cluster.bootstrap_servers.split(",")[1]
            with anyio.fail_after(PATIENCE):
                while address not in str(producer._engine.bridge.last_error()):
                    await producer.send(ProducerRecord("t", b"v", partition=0))
            clock.advance(settings.delivery_timeout)
            with pytest.raises(DeliveryTimeout, match=address):
                await lost.wait()


async def test_the_producer_replaces_a_broken_client() -> None:
    with mock_cluster(1) as cluster:
        async with open_send_producer(settings_for(cluster), driver="confluent") as producer:
            await producer.send(ProducerRecord(FOUR, b"v"))
            driver: Any = producer._engine.bridge._worker.driver
            driver._health.on_error(KafkaError(KafkaError._FATAL, "the end", fatal=True))
            await until(generation(producer, 2))
            assert (await producer.send(ProducerRecord(FOUR, b"v"))).offset is not None


# --- topics --------------------------------------------------------------------------------------


def test_a_record_for_a_topic_that_is_not_created_is_rejected_after_a_wait(
    shared_broker: str,
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=shared_broker,
        unknown_topic_timeout=0.3,
        properties={"allow.auto.create.topics": False},
    )
    driver, recorder = ConfluentDriver(settings), Recorder()
    driver.open(recorder)
    try:
        with asked(driver, recorder):
            [outcome] = send_all(driver, recorder, [ProducerRecord("nowhere-at-all", b"v")])
            rejected(outcome)
            with pytest.raises(SendProducerError, match=r"within 0.3 s \(unknown_topic_timeout\)"):
                learn(driver, recorder, "nowhere-at-all")
    finally:
        driver.close(0)


def test_a_forbidden_topic(cluster: MockCluster) -> None:
    with opened(cluster) as (driver, recorder):
        cluster.create_topic("forbidden", [1])
        cluster.set_topic_error("forbidden", TOPIC_AUTHORIZATION_FAILED)
        with pytest.raises(SendProducerError, match="may not use topic 'forbidden'"):
            learn(driver, recorder, "forbidden")


@contextlib.contextmanager
def growing(**changes: Any) -> Generator[tuple[ScriptedBroker, ConfluentDriver, Recorder]]:
    """A driver that knows a topic with one partition. The broker may report more later."""
    with scripted_broker(partitions=1) as broker:
        driver = ConfluentDriver(ProducerSettings(bootstrap_servers=broker.address, **changes))
        recorder = Recorder()
        driver.open(recorder)
        try:
            with asked(driver, recorder):
                [first] = send_all(driver, recorder, [ProducerRecord("grows", b"v")])
                assert isinstance(first, RecordMetadata)
                yield broker, driver, recorder
        finally:
            driver.close(0)


def test_records_wait_for_a_partition_that_is_added() -> None:
    """The client's metadata are older than the partition."""
    with growing() as (broker, driver, recorder):
        recorder.reports.clear()
        parcels = [
            Parcel(ProducerRecord(topic, b"v", partition=partition))
            for topic, partition in (("grows", 0), ("grows", 2), ("other", 0), ("grows", 0))
        ]
        changes = recorder.metadata_changes
        held = driver.submit(parcels).held
        assert held == [parcels[1], parcels[3]]  # later records must not overtake it
        broker.partitions = 3
        recorder.wait_for_change_after(changes)
        submit_all(driver, held)
        outcomes = [metadata_of(one) for one in recorder.outcomes_of(parcels)]
        assert [one.partition for one in outcomes] == [0, 2, 0, 0]


def test_a_record_for_a_missing_partition_is_refused_after_one_wait() -> None:
    """A later record for the partition is refused after the first answer, in which the partition
    could be."""
    with growing(unknown_topic_timeout=0.3) as (broker, driver, recorder):
        requests = broker.requests.count(METADATA)
        for _ in range(2):
            recorder.reports.clear()
            parcels = [Parcel(ProducerRecord("grows", b"v", partition=2)) for _ in range(3)]
            submit(driver, recorder, parcels)
            for outcome in recorder.outcomes_of(parcels):
                assert str(rejected(outcome)) == "topic 'grows' has no partition 2; it has 1"
        assert broker.requests.count(METADATA) - requests >= 3
        came, count = driver._metadata._counts["grows"]
        driver._metadata._counts["grows"] = (came - 10, count)  # some time passes
        before = broker.requests.count(METADATA)
        parcels = [Parcel(ProducerRecord("grows", b"v", partition=2))]
        recorder.reports.clear()
        submit(driver, recorder, parcels)
        rejected(recorder.outcomes_of(parcels)[0])
        assert broker.requests.count(METADATA) == before + 1


def test_a_driver_is_closed_while_records_wait_for_a_partition() -> None:
    before = set(threading.enumerate())
    with growing() as (broker, driver, _):
        parcel = Parcel(ProducerRecord("grows", b"v", partition=2))
        assert driver.submit([parcel]).held == [parcel]
        broker.answers[METADATA] = lambda _: None  # there are no answers from now on
        requests = len(broker.requests)
        blocking_until(lambda: len(broker.requests) > requests)
        driver.close(0)
        assert driver._handle.client is None
    assert set(threading.enumerate()) <= before


def test_a_record_is_sent_to_a_topic_that_was_refused_before_its_creation(
    shared_broker: str,
) -> None:
    """librdkafka remembers that there was no such topic until it requests the metadata again."""
    topic = f"late-{uuid.uuid4().hex}"
    settings = ProducerSettings(bootstrap_servers=shared_broker, unknown_topic_timeout=0.3)
    careful = ConfluentDriver(settings.with_property("allow.auto.create.topics", False))
    creating = ConfluentDriver(settings.evolve(unknown_topic_timeout=PATIENCE))
    recorder, other = Recorder(), Recorder()
    careful.open(recorder)
    creating.open(other)
    try:
        with asked(careful, recorder), asked(creating, other):
            rejected(send_all(careful, recorder, [ProducerRecord(topic, b"v")])[0])
            metadata_of(send_all(creating, other, [ProducerRecord(topic, b"v")])[0])
            parcels = [Parcel(ProducerRecord(topic, b"v"))]
            recorder.reports.clear()
            submit(careful, recorder, parcels)
            metadata_of(recorder.outcomes_of(parcels)[0])
    finally:
        careful.close(0)
        creating.close(0)


async def test_a_producer_sends_to_a_partition_that_is_added() -> None:
    with scripted_broker(partitions=1) as broker:
        settings = ProducerSettings(bootstrap_servers=broker.address)
        async with open_send_producer(settings, driver="confluent") as producer:
            await producer.send(ProducerRecord("t", b"v"))
            delivery = await producer.enqueue(ProducerRecord("t", b"v", partition=2))
            requests = broker.requests.count(METADATA)
            await until(lambda: broker.requests.count(METADATA) > requests + 1)
            assert not delivery.done
            broker.partitions = 3
            assert (await delivery.wait()).partition == 2


def test_partitions_are_unknown_while_no_broker_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_waits, "ANSWER_SECONDS", 0.1)
    with mock_cluster(1) as cluster, opened(cluster) as (driver, _):
        cluster.set_down(1)
        assert driver.partitions_for("a-new-one") is None


# --- assumptions of the driver -------------------------------------------------------------------


def test_a_callback_that_raises_ends_a_poll_and_loses_nothing(cluster: MockCluster) -> None:
    class Stop(Exception):
        pass

    told: list[int] = []

    def tell(number: int, _error: Any, _message: Any) -> None:
        told.append(number)
        raise Stop

    client = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for number in range(50):
        client.produce(FOUR, b"v", on_delivery=functools.partial(tell, number))
    deadline = time.monotonic() + PATIENCE
    while len(client) and time.monotonic() < deadline:
        before = len(told)
        with contextlib.suppress(Stop):
            client.poll(0.1)
        assert len(told) - before <= 1
    assert sorted(told) == list(range(50))
    client.close()


def test_librdkafka_replaces_a_timestamp_of_zero(cluster: MockCluster) -> None:
    found: list[int] = []

    def tell(_error: Any, message: confluent_kafka.Message) -> None:
        found.append(message.timestamp()[1])

    client = confluent_kafka.Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": 0})
    client.produce(FOUR, b"v", on_delivery=tell, timestamp=0)
    client.flush(PATIENCE)
    assert found != [0]
    client.close()


def test_librdkafkas_log_goes_to_our_logger(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "anyio_sendproducer.confluent")
    with opened(cluster, properties={"debug": "broker"}) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord(FOUR, b"v")])
    assert any(one.name == "anyio_sendproducer.confluent" for one in caplog.records)
