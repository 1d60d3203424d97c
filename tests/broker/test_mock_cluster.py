"""The mock cluster gives the planned answers, with the names of Kafka's protocol."""

from __future__ import annotations

import contextlib
import enum
import importlib
import socket
import struct
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    SettingsError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import MockCluster, MockClusterError, mock_cluster
from anyio_sendproducer.testing._kafka_names import ERRORS, REQUESTS, error_code, request_key
from anyio_sendproducer.testing._mock_cluster import librdkafka
from tests.support.brief import on_either_loop
from tests.support.calls import sure_of_refusals
from tests.support.clock import ManualClock
from tests.support.mock_cluster import count_requests, track_requests
from tests.support.waiting import until

# kafka-python has no types, so every name imported from it is Any.
kafka_errors: Any = importlib.import_module("kafka.errors")

RECORD = ProducerRecord("orders", b"two tins", partition=0)


@contextlib.contextmanager
def two_brokers() -> Generator[MockCluster]:
    with mock_cluster(2) as cluster:
        cluster.create_topic("orders", [1, 2])
        track_requests(cluster)
        yield cluster


@pytest.fixture(scope="module")
def running() -> Iterator[MockCluster]:
    with two_brokers() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: MockCluster) -> Iterator[MockCluster]:
    """A cluster that all tests of this module share, so they must not call `answer_next`. After
    this call, a broker ignores the answers that are planned for any broker."""
    yield running
    running.behave()
    running.move("orders", 0, 1)


@pytest.fixture
def fresh() -> Iterator[MockCluster]:
    """A cluster for one test."""
    with two_brokers() as cluster:
        yield cluster


def settings_for(cluster: MockCluster, driver: DriverName, **fields: Any) -> ProducerSettings:
    return cluster.settings(driver, cancel_timeout=0.5, **fields)


# --- what it is told -----------------------------------------------------------------------------


@on_either_loop
async def test_a_temporary_error(cluster: MockCluster, driver: DriverName) -> None:
    before = count_requests(cluster, 1, "Produce")
    cluster.answer_any("NOT_ENOUGH_REPLICAS", 2)
    async with open_send_producer(settings_for(cluster, driver), driver=driver) as producer:
        assert (await producer.send(RECORD)).offset is not None
    # Two were answered with the error.
    assert count_requests(cluster, 1, "Produce") >= before + 3


async def test_a_refusal(fresh: MockCluster, driver: DriverName) -> None:
    settings = sure_of_refusals(settings_for(fresh, driver), driver)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(RECORD)
        fresh.answer_next(1, "INVALID_RECORD")
        with pytest.raises(RecordRejected):
            await producer.send(RECORD)
        await producer.send(RECORD)


async def test_an_answer_that_comes_too_late(
    cluster: MockCluster, driver: DriverName, clock: ManualClock
) -> None:
    settings = settings_for(cluster, driver)
    async with clock.open(settings, driver=driver) as producer:
        await producer.partitions_for("orders")
        cluster.set_rtt(1, 2_000)
        delivery = await producer.enqueue(RECORD)
        await until(lambda: producer.statistics().queued == 0)
        clock.advance(settings.delivery_timeout)
        with pytest.raises(DeliveryError) as caught:
            await delivery.wait()
        assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
        cluster.set_rtt(1, 0)


@on_either_loop
async def test_connections_that_are_closed_and_leaders_that_move(
    cluster: MockCluster, driver: DriverName
) -> None:
    async with open_send_producer(settings_for(cluster, driver), driver=driver) as producer:
        await producer.send(RECORD)
        before = count_requests(cluster, 1, "Produce")
        cluster.close_on()
        await producer.send(RECORD)
        # One was not answered.
        assert count_requests(cluster, 1, "Produce") >= before + 2
        before = count_requests(cluster, 2, "Produce")
        cluster.move("orders", 0, 2)
        await producer.send(RECORD)
        assert count_requests(cluster, 2, "Produce") >= before + 1


@on_either_loop
async def test_brokers_that_are_down_and_up_again(cluster: MockCluster, driver: DriverName) -> None:
    for broker in (1, 2):
        cluster.set_down(broker)
    settings = settings_for(cluster, driver, start_timeout=0.3)
    with pytest.raises(ProducerStartError):
        async with open_send_producer(settings, driver=driver):
            pytest.fail("there is nobody")
    cluster.set_up(2)
    cluster.behave()
    async with open_send_producer(settings_for(cluster, driver), driver=driver) as producer:
        await producer.send(RECORD)


@on_either_loop
async def test_a_topic_s_error(cluster: MockCluster, driver: DriverName) -> None:
    cluster.set_topic_error("orders", "TOPIC_AUTHORIZATION_FAILED")
    async with open_send_producer(settings_for(cluster, driver), driver=driver) as producer:
        # librdkafka refuses the record if the topic is new to it, and fails it otherwise.
        with pytest.raises(DeliveryError, match=r"(?i)authoriz|may not use"):
            await producer.send(RECORD)
    cluster.behave()
    assert cluster._failing_topics == set()
    async with open_send_producer(settings_for(cluster, driver), driver=driver) as producer:
        await producer.send(RECORD)


async def test_behave_removes_planned_answers(cluster: MockCluster) -> None:
    cluster.answer_any("POLICY_VIOLATION", 5)
    async with open_send_producer(settings_for(cluster, "kafka-python")) as producer:
        with pytest.raises(RecordRejected):
            await producer.send(RECORD)
    cluster.close_on(5, api="Metadata")
    cluster.set_rtt(1, 60_000)
    cluster.set_topic_error("orders", "UNKNOWN_TOPIC_OR_PARTITION")
    cluster.set_topic_error("orders", "NONE")
    cluster.set_down(2)
    cluster.behave()
    async with open_send_producer(settings_for(cluster, "kafka-python")) as producer:
        await producer.send(RECORD)


#: The answer to it is empty: GetTelemetrySubscriptions, version 0.
WITHOUT_A_NAME = 71


def test_behave_removes_planned_answers_to_requests_without_a_name(cluster: MockCluster) -> None:
    assert WITHOUT_A_NAME not in REQUESTS.values()
    request = struct.pack(">hhihb16sb", WITHOUT_A_NAME, 0, 7, -1, 0, b"", 0)
    host, port = cluster.bootstrap_servers.split(",")[0].split(":")

    def ask() -> bytes:
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            return connection.recv(8, socket.MSG_WAITALL)[4:]

    correlation_id = struct.pack(">i", 7)
    assert ask() == correlation_id
    cluster.close_on(2, api=WITHOUT_A_NAME)
    assert ask() == b""
    cluster.behave()
    assert ask() == correlation_id


async def test_answers_for_one_broker_replace_answers_for_any_broker(fresh: MockCluster) -> None:
    fresh.answer_next(1, "NONE")
    fresh.answer_any("POLICY_VIOLATION", 5)
    async with open_send_producer(settings_for(fresh, "kafka-python")) as producer:
        for _ in range(2):
            await producer.send(RECORD)
        with pytest.raises(RecordRejected):
            await producer.send(ProducerRecord("orders", b"two tins", partition=1))


def test_a_topic_of_one_partition(cluster: MockCluster) -> None:
    assert cluster.create_topic("lone") == "lone"


# --- settings and misuse -------------------------------------------------------------------------


def test_settings_have_the_properties_that_the_driver_needs(cluster: MockCluster) -> None:
    assert str(cluster) == cluster.bootstrap_servers == cluster.settings().bootstrap_servers
    assert cluster.bootstrap_servers in repr(cluster)
    made = cluster.settings(client_id="orders", properties={"acks": 1})
    assert made.client_id == "orders"
    assert made.properties == {"api_version": (2, 3), "acks": 1}
    made = cluster.settings("confluent", properties={"max.in.flight.requests.per.connection": 5})
    assert made.properties == {"max.in.flight.requests.per.connection": 5}
    with pytest.raises(ValueError, match="not 'fake'"):
        cluster.settings("fake")
    with pytest.raises(SettingsError):
        cluster.settings(client_id="")


def test_unsupported_calls_are_refused(cluster: MockCluster) -> None:
    calls: list[Callable[[], None]] = [
        lambda: cluster.set_down(3),
        lambda: cluster.set_rtt(3, 1),
        lambda: cluster.move("orders", 0, 3),
        lambda: cluster.answer_next(3, "NONE"),
    ]
    for call in calls:
        with pytest.raises(MockClusterError, match=r"of 2 broker\(s\) has no broker 3"):
            call()
    with pytest.raises(MockClusterError, match=r"of 2 broker\(s\) refused \w+\(orders, 2, 1\)"):
        cluster.move("orders", 2, 1)
    # A failed call must not be undone.
    cluster.behave()


def test_a_refused_topic_is_not_created(cluster: MockCluster) -> None:
    for call in (
        lambda: cluster.create_topic("refused", [1, 3]),
        lambda: cluster.move("refused", 0, 3),
    ):
        with pytest.raises(MockClusterError, match=r"of 2 broker\(s\) has no broker 3"):
            call()
    assert cluster.create_topic("refused", [1, 2]) == "refused"
    with pytest.raises(ValueError, match=r"leaders must have .*: it is empty"):
        cluster.create_topic("refused", [])
    with pytest.raises(MockClusterError, match=r"refused topic_create\(refused, 1, 1\)"):
        cluster.create_topic("refused")


@pytest.mark.parametrize("broker", [-1, 0, True, "1", 1.0])
def test_broker_ids_are_checked(cluster: MockCluster, broker: Any) -> None:
    """librdkafka would stop all brokers for -1."""
    calls: list[Callable[[], object]] = [
        lambda: cluster.create_topic("refused-too", [broker]),
        lambda: cluster.move("orders", 0, broker),
        lambda: cluster.answer_next(broker, "NONE"),
        lambda: cluster.set_rtt(broker, 1),
        lambda: cluster.set_down(broker),
        lambda: cluster.set_up(broker),
    ]
    for call in calls:
        with pytest.raises(MockClusterError, match=f"has no broker {broker!r}"):
            call()


@pytest.mark.parametrize("number", [-1, True, "1", 1.0])
def test_numbers_are_checked(cluster: MockCluster, number: Any) -> None:
    """librdkafka would take the partition -1 from the memory before the first partition."""
    calls: list[tuple[str, Callable[[], None]]] = [
        ("partition must be an int of 0", lambda: cluster.move("orders", number, 1)),
        ("rtt_ms must be an int of 0", lambda: cluster.answer_next(1, "NONE", rtt_ms=number)),
        ("milliseconds must be an int of 0", lambda: cluster.set_rtt(1, number)),
        ("times must be an int of 1", lambda: cluster.answer_any("NONE", number)),
        ("times must be an int of 1", lambda: cluster.close_on(number)),
    ]
    for says, call in calls:
        with pytest.raises(ValueError, match=f"^{says} or more: {number!r}$"):
            call()
    with pytest.raises(ValueError, match="times must be an int of 1 or more: 0"):
        cluster.answer_any("NONE", 0)


@pytest.mark.parametrize("brokers", [0, -1, True, "1", 1.0])
def test_the_maximal_number_of_brokers(brokers: Any) -> None:
    with (
        pytest.raises(ValueError, match=f"brokers must be an int of 1 or more: {brokers!r}"),
        mock_cluster(brokers),
    ):
        pytest.fail("there are none")


def test_a_cluster_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    library, ended = librdkafka(), list[str]()
    destroy = library.rd_kafka_destroy

    def destroy_client(client: int) -> None:
        ended.append("client")
        destroy(client)

    def destroy_cluster(_: int) -> None:
        ended.append("cluster")

    def no_cluster(*_: int) -> None:
        return None  # NULL

    monkeypatch.setattr(library, "rd_kafka_mock_cluster_new", no_cluster)
    monkeypatch.setattr(library, "rd_kafka_mock_cluster_destroy", destroy_cluster)
    monkeypatch.setattr(library, "rd_kafka_destroy", destroy_client)
    with pytest.raises(MockClusterError, match="the mock cluster did not start"), mock_cluster():
        pytest.fail("there is none")
    assert ended == ["client"]


def test_a_cluster_that_has_ended() -> None:
    """librdkafka would use memory that is freed, and crash the process."""
    with mock_cluster() as cluster:
        pass
    calls: list[Callable[[], object]] = [
        lambda: cluster.create_topic("orders"),
        lambda: cluster.move("orders", 0, 1),
        lambda: cluster.set_topic_error("orders", "NONE"),
        lambda: cluster.answer_next(1, "NONE"),
        lambda: cluster.answer_any("NONE"),
        cluster.close_on,
        cluster.forget_answers,
        lambda: cluster.set_rtt(1, 1),
        lambda: cluster.set_down(1),
        lambda: cluster.set_up(1),
    ]
    for call in calls:
        with pytest.raises(MockClusterError, match="the mock cluster has ended"):
            call()


def test_without_confluent_kafka_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    librdkafka.cache_clear()
    try:
        with (
            pytest.raises(
                MockClusterError, match=r'pip install "\.\[confluent\]" in a checkout of'
            ),
            mock_cluster(),
        ):
            pytest.fail("there is none")
    finally:
        librdkafka.cache_clear()


# --- names ---------------------------------------------------------------------------------------


def test_error_names_agree_with_other_clients() -> None:
    theirs: dict[int, str] = {}
    for name in dir(kafka_errors):
        error = getattr(kafka_errors, name)
        if getattr(error, "errno", None) is not None and getattr(error, "message", None):
            theirs[error.errno] = error.message
    assert set(theirs) <= set(ERRORS.values())
    # Names that Kafka has changed since.
    renamed = {
        "UNKNOWN_SERVER_ERROR": "UNKNOWN",
        "NONE": "NO_ERROR",
        "NOT_LEADER_OR_FOLLOWER": "NOT_LEADER_FOR_PARTITION",
        "MESSAGE_TOO_LARGE": "MESSAGE_SIZE_TOO_LARGE",
        "INVALID_TOPIC_EXCEPTION": "INVALID_TOPIC",
        "INVALID_REPLICA_ASSIGNMENT": "INVALID_REPLICATION_ASSIGNMENT",
    }
    assert {renamed.get(name, name): code for name, code in ERRORS.items()} == {
        message: code for code, message in theirs.items()
    }


def test_numbers_and_names_of_errors_are_accepted() -> None:
    assert error_code("NOT_LEADER_OR_FOLLOWER") == error_code(6) == 6
    assert request_key("InitProducerId") == request_key(22) == 22
    assert len(set(ERRORS.values())) == len(ERRORS)
    assert len(set(REQUESTS.values())) == len(REQUESTS)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="no error 'not_leader'; did you mean 'NOT_LEADER_OR_"):
        error_code("not_leader")
    with pytest.raises(ValueError, match="no request 'produce'; did you mean 'Produce'"):
        request_key("produce")
    with pytest.raises(ValueError, match="no request 'xyz': Produce, Fetch, "):
        request_key("xyz")


def test_numbers_that_do_not_fit_in_32_bits_are_refused(cluster: MockCluster) -> None:
    """ctypes would take 2**32 as 0: the first partition, or no delay."""
    most = f"must be {2**31 - 1} at most: {2**32}"
    with pytest.raises(ValueError, match=f"partition {most}"):
        cluster.move("orders", 2**32, 1)
    with pytest.raises(ValueError, match=f"milliseconds {most}"):
        cluster.set_rtt(1, 2**32)
    with pytest.raises(ValueError, match=f"rtt_ms {most}"):
        cluster.answer_next(1, "NONE", rtt_ms=2**32)


@pytest.mark.parametrize("topic", ["a\0b", "", "two tins", "\ud800", None, b"orders"])
def test_names_of_topics_are_checked(cluster: MockCluster, topic: Any) -> None:
    """In C, the first name would end at the NUL."""
    for call in (
        partial(cluster.create_topic, topic),
        partial(cluster.move, topic, 0, 1),
        partial(cluster.set_topic_error, topic, "NONE"),
    ):
        with pytest.raises(ValueError, match=r"^topic "):
            call()


@pytest.mark.parametrize("number", [2**16, -(2**15) - 1, 6.0, True, None])
def test_numbers_of_errors_and_requests_are_checked(cluster: MockCluster, number: Any) -> None:
    """ctypes would take 65,536 as 0, which is the number of Produce."""
    with pytest.raises(ValueError, match=f"the error must be an int of 16 bits: {number!r}"):
        cluster.answer_any(number)
    with pytest.raises(ValueError, match=f"the request must be an int of 16 bits: {number!r}"):
        cluster.close_on(api=number)


def test_the_number_may_be_a_member_of_an_enum() -> None:
    """As in some client libraries."""
    codes = enum.IntEnum("codes", {"NOT_LEADER_OR_FOLLOWER": 6})
    assert error_code(codes(6)) == request_key(codes(6)) == 6
    assert type(error_code(codes(6))) is int
