"""kafka-python's traps: the bare client falls into each of them, and ours avoids it.

If a test of the bare client fails, a newer kafka-python has fixed a fault, and a workaround may be
removed. ``docs/explanation/traps-of-kafka-python.md`` lists all traps with the tests that show
them, some of which are in other modules. The last test here checks the list.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    SerializationFailed,
    UndeliveredRecords,
    _late,
    open_send_producer,
)
from anyio_sendproducer.testing import MockCluster, embedded_broker, mock_cluster
from tests.support.bare import NEVER, BareProducer, bare, hurry, leaking_sockets, settles
from tests.support.brief import on_trio_and_nightly_on_asyncio
from tests.support.calls import outcome_of, raising, to
from tests.support.clock import ManualClock
from tests.support.fault_proxy import FaultProxy
from tests.support.mock_cluster import FOR_MOCK
from tests.support.named_tests import named_tests, names_of_tests
from tests.support.ports import lasting_port
from tests.support.recorder import PATIENCE, open_sockets
from tests.support.waiting import blocking_until, until

# kafka-python has no types, so every name imported from it is Any.
kafka: Any = importlib.import_module("kafka")
kafka_compat: Any = importlib.import_module("kafka.net.compat")
kafka_errors: Any = importlib.import_module("kafka.errors")
kafka_producer_module: Any = importlib.import_module("kafka.producer.kafka")
kafka_record_util: Any = importlib.import_module("kafka.record.util")
produce_future: Any = importlib.import_module("kafka.producer.future").FutureProduceResult

#: API keys of Kafka's requests.
INIT_PRODUCER_ID = 22

#: Error codes of Kafka's protocol.
UNKNOWN_TOPIC_OR_PARTITION = 3
REQUEST_TIMED_OUT = 7
NOT_COORDINATOR = 16
TOPIC_AUTHORIZATION_FAILED = 29

#: Seconds that steps may take on a busy machine beyond the time-outs that bound them. It is far
#: less than the times for which they must not wait.
SLACK = 15.0


@pytest.fixture(scope="module")
def two_brokers() -> Iterator[MockCluster]:
    # For the whole module, with shared topics, because the mock sometimes takes a second for a
    # command.
    with mock_cluster(2) as mock:
        mock.create_topic("first", [1])
        mock.create_topic("second", [2])
        yield mock


@pytest.fixture
def cluster(two_brokers: MockCluster) -> Iterator[MockCluster]:
    """Two brokers, each the leader of a topic."""
    yield two_brokers
    two_brokers.behave()


@pytest.fixture(scope="module")
def one_broker() -> Iterator[MockCluster]:
    with mock_cluster(1) as mock:
        for topic in ("first", "second", "forbidden", "unknown"):
            mock.create_topic(topic, [1])
        mock.set_topic_error("unknown", UNKNOWN_TOPIC_OR_PARTITION)
        yield mock


@pytest.fixture
def lone_broker(one_broker: MockCluster) -> Iterator[MockCluster]:
    """One broker, which leads all topics."""
    yield one_broker
    one_broker.behave()
    one_broker.set_topic_error("unknown", UNKNOWN_TOPIC_OR_PARTITION)


@pytest.fixture
def refusing() -> Iterator[str]:
    """A reserved address that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def settings_for(servers: str | MockCluster, **changes: Any) -> ProducerSettings:
    if isinstance(servers, MockCluster):
        changes["properties"] = {**FOR_MOCK, **changes.get("properties", {})}
        servers = servers.bootstrap_servers
    return ProducerSettings(
        bootstrap_servers=servers, start_timeout=PATIENCE, cancel_timeout=0.5
    ).evolve(**changes)


async def delivers_again(producer: SendProducer, *topics: str) -> None:
    """Send until each of these topics accepts a record."""
    with anyio.fail_after(PATIENCE):
        for topic in topics:
            outcome = await outcome_of(producer, topic)
            while not isinstance(outcome, RecordMetadata):
                await anyio.sleep(0.01)
                outcome = await outcome_of(producer, topic)


@contextlib.contextmanager
def warmed_up(cluster: MockCluster, **timeouts: int) -> Generator[Any, None, None]:
    """A bare client with short timeouts that has delivered a record to the topic "first".

    A machine that stalls makes the first record miss such a timeout. Then another client tries.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        with bare(cluster, **timeouts) as producer:
            try:
                producer.send("first", b"value").get(PATIENCE)
            except kafka_errors.KafkaError:
                assert time.monotonic() < deadline
                continue
            yield producer
            return


# --- calls that block ----------------------------------------------------------------------------


def test_bare_the_constructor_blocks_and_max_block_ms_does_not_bound_it() -> None:
    clients: list[Any] = []

    def keep(**configs: Any) -> Any:
        clients.append(kafka_compat.KafkaNetClient(**configs))
        return clients[-1]

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(kafka_errors.KafkaError):
            BareProducer(
                bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}",
                max_block_ms=10,
                bootstrap_timeout_ms=300,
                kafka_client=keep,
            )
        assert time.monotonic() - began > 0.25
        # The caller of a failed constructor has no client to close.
        [client] = clients
        client.close()


def test_bare_one_unknown_topic_delays_the_others(lone_broker: MockCluster) -> None:
    with bare(lone_broker) as producer:
        assert producer.partitions_for("first") == {0}
        producer.config["max_block_ms"] = 400
        began = time.monotonic()
        with pytest.raises(kafka_errors.KafkaTimeoutError):
            producer.send("unknown", b"value")
        # The sending thread reaches this one only now.
        assert time.monotonic() - began > 0.35
        producer.send("first", b"value").get(PATIENCE)


def test_bare_the_timeout_of_flush_is_for_each_batch(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[float] = []
    wait = produce_future.wait

    def note_and_wait(future: Any, timeout: float) -> Any:
        timeouts.append(timeout)
        return wait(future, timeout)

    monkeypatch.setattr(produce_future, "wait", note_and_wait)
    with bare(cluster, batch_size=0) as producer:
        producer.partitions_for("first")
        cluster.set_rtt(1, 100)
        for _ in range(5):  # one batch after the other
            producer.send("first", b"value")
        producer.flush(PATIENCE)
    # The elapsed time is not subtracted.
    assert timeouts == [PATIENCE] * 5


async def test_flush_is_bounded_in_total(cluster: MockCluster) -> None:
    settings = settings_for(cluster, properties={"batch_size": 1}, close_timeout=0.1)
    with raising(UndeliveredRecords, match="5"):
        async with open_send_producer(settings) as producer:
            await producer.partitions_for("first")
            cluster.set_rtt(1, 60_000)
            deliveries = [producer.enqueue_nowait(to("first")) for _ in range(5)]
            began = time.monotonic()
            with anyio.move_on_after(0.2) as scope:
                await producer.flush()
            assert scope.cancelled_caught
            assert time.monotonic() - began < 0.2 + SLACK
            assert not any(delivery.done for delivery in deliveries)


def test_bare_close_with_records_pending_raises_and_closes_nothing(cluster: MockCluster) -> None:
    with bare(cluster) as producer:
        producer.partitions_for("first")
        cluster.set_rtt(1, 60_000)
        producer.send("first", b"value")
        with pytest.raises(kafka_errors.KafkaTimeoutError):
            producer.close(0.1)
        assert producer._sender.is_alive()
        assert not producer.send("first", b"accepted").is_done


def test_bare_memory_is_not_bounded(cluster: MockCluster) -> None:
    with pytest.raises(ValueError, match="buffer_memory"):
        BareProducer(bootstrap_servers=cluster.bootstrap_servers, buffer_memory=1_000)
    with bare(cluster, max_block_ms=0) as producer:
        learn(producer, "first")
        cluster.set_rtt(1, 60_000)
        began = time.monotonic()
        futures = [producer.send("first", bytes(2_000)) for _ in range(5_000)]
        assert not any(future.is_done for future in futures)
        assert time.monotonic() - began < PATIENCE


async def test_memory_is_bounded(cluster: MockCluster) -> None:
    settings = settings_for(cluster, max_in_flight=100, cancel_timeout=0.1)
    async with anyio.create_task_group() as tasks, open_send_producer(settings) as producer:
        await producer.partitions_for("first")
        cluster.set_rtt(1, 60_000)
        for _ in range(300):
            tasks.start_soon(producer.send, to("first"))
        await anyio.wait_all_tasks_blocked()
        now = producer.statistics()
        assert (now.in_flight, now.waiting) == (100, 200)
        tasks.cancel_scope.cancel()


# --- topics --------------------------------------------------------------------------------------


def learn(producer: Any, topic: str) -> None:
    """Have a bare client that does not wait learn a topic."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            producer.partitions_for(topic)
        except kafka_errors.KafkaTimeoutError:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        else:
            return


def test_bare_max_block_ms_0_hides_a_forbidden_topic_and_requests_it_once(
    lone_broker: MockCluster,
) -> None:
    lone_broker.set_topic_error("forbidden", TOPIC_AUTHORIZATION_FAILED)
    with bare(lone_broker, max_block_ms=0) as producer:

        def refused() -> None:
            with pytest.raises(kafka_errors.KafkaTimeoutError):
                producer.send("forbidden", b"value")

        refused()
        blocking_until(lambda: producer._metadata.unauthorized_topics)
        # Now it knows the topic, and raises the same error.
        assert producer._metadata.unauthorized_topics == {"forbidden"}
        refused()
        # It does not notice the permission either: a send requests only new topics.
        lone_broker.set_topic_error("forbidden", 0)
        for _ in range(10):
            refused()
            time.sleep(NEVER / 10)


async def test_a_forbidden_topic_is_named_and_requested_again(lone_broker: MockCluster) -> None:
    lone_broker.set_topic_error("forbidden", TOPIC_AUTHORIZATION_FAILED)
    async with open_send_producer(settings_for(lone_broker)) as producer:
        for _ in range(3):
            outcome = await outcome_of(producer, "forbidden")
            assert isinstance(outcome, RecordRejected)
            assert "may not use topic 'forbidden'" in str(outcome)
        assert isinstance(await outcome_of(producer, "second"), RecordMetadata)
        lone_broker.set_topic_error("forbidden", 0)
        await delivers_again(producer, "forbidden")
        assert producer.statistics().generations == 1


def test_bare_an_unknown_security_protocol_is_none(cluster: MockCluster) -> None:
    with bare(cluster, security_protocol="SLL") as producer:
        assert producer.send("first", b"in the clear").get(PATIENCE).partition == 0


def test_bare_without_acknowledgements_it_makes_up_an_offset(cluster: MockCluster) -> None:
    with bare(cluster, acks=0) as producer:
        offsets = [producer.send("first", b"value").get(PATIENCE).offset for _ in range(3)]
        assert offsets == [0, 0, 0]


# --- a client that breaks ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_bare_a_base_exception_in_a_callback_wedges_the_partition(lone_broker: MockCluster) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    with bare(lone_broker, request_timeout_ms=1_000) as producer:
        producer.send("first", b"0").get(PATIENCE)
        lone_broker.set_rtt(1, 50)
        first = producer.send("first", b"1").add_callback(leave)
        behind = producer.send("first", b"2")
        assert settles(first)
        # The client does not read from that connection any more. After request_timeout_ms there is
        # another.
        assert settles(producer.send("second", b"value"))
        later = producer.send("first", b"3")
        assert not settles(behind, NEVER)
        assert not later.is_done
        sender = producer._sender
    # Its thread ends with an exception, before it closes the client.
    assert not sender.is_alive()
    sender._client.close()


async def test_a_base_exception_of_a_user_hook_fails_one_record(
    lone_broker: MockCluster,
) -> None:
    """The client's callbacks run none of the user's code. A serializer or a partitioner runs before
    them."""

    def leave(value: bytes) -> bytes:
        if value == b"value":
            return value
        raise SystemExit

    async with open_send_producer(settings_for(lone_broker, value_serializer=leave)) as producer:
        with pytest.raises(SerializationFailed) as caught:
            await producer.send(ProducerRecord("first", b"bad"))
        assert isinstance(caught.value.__cause__, SystemExit)
        await producer.send(to("first"))


#: The code, the name, and whether it proves that nothing was written.
REFUSALS = [
    pytest.param(2, "CorruptRecordError", True, id="CORRUPT_MESSAGE"),
    pytest.param(10, "MessageSizeTooLargeError", True, id="MESSAGE_TOO_LARGE"),
    pytest.param(18, "RecordListTooLargeError", True, id="RECORD_LIST_TOO_LARGE"),
    pytest.param(29, "TopicAuthorizationFailedError", True, id="TOPIC_AUTHORIZATION_FAILED"),
    pytest.param(32, "InvalidTimestampError", True, id="INVALID_TIMESTAMP"),
    pytest.param(44, "PolicyViolationError", True, id="POLICY_VIOLATION"),
    pytest.param(87, "InvalidRecordError", True, id="INVALID_RECORD"),
    pytest.param(-1, "UnknownError", False, id="UNKNOWN_SERVER_ERROR"),
]


@pytest.mark.parametrize(("code", "name", "sure"), REFUSALS)
def test_bare_one_refusal_breaks_the_client_for_every_topic(
    cluster: MockCluster, code: int, name: str, sure: bool
) -> None:
    with bare(cluster) as producer:
        for topic in ("first", "second"):
            producer.send(topic, b"value").get(PATIENCE)
        cluster.set_rtt(2, 60_000)
        cluster.answer_next(1, code, rtt_ms=30)
        innocent = producer.send("second", b"value")
        culprit = producer.send("first", b"value")
        assert settles(culprit)
        assert settles(innocent)
        assert type(culprit.exception).__name__ == name
        # It is the same object, although the other broker will write the record and acknowledge it.
        assert innocent.exception is culprit.exception
        for topic in ("first", "second"):
            later = producer.send(topic, b"value")
            assert settles(later)
            assert later.exception is culprit.exception


@on_trio_and_nightly_on_asyncio
@pytest.mark.parametrize(("code", "name", "sure"), REFUSALS)
async def test_one_refusal_fails_its_record_and_the_producer_goes_on(
    cluster: MockCluster, code: int, name: str, sure: bool
) -> None:
    outcomes: dict[str, RecordMetadata | DeliveryError] = {}
    async with open_send_producer(settings_for(cluster)) as producer:

        async def send(topic: str) -> None:
            outcomes[topic] = await outcome_of(producer, topic)

        for topic in ("first", "second"):
            await producer.send(to(topic))
        # The other broker answers later, or has not answered when the client has come to its end.
        cluster.answer_next(2, 0, rtt_ms=150 if sure else 60_000)
        cluster.answer_next(1, code, rtt_ms=20)
        async with anyio.create_task_group() as senders:
            senders.start_soon(send, "second")
            senders.start_soon(send, "first")
        culprit, innocent = outcomes["first"], outcomes["second"]
        assert isinstance(culprit, DeliveryError)
        assert isinstance(culprit, RecordRejected) is sure
        assert type(culprit.__cause__).__name__ == name
        assert (culprit.persistence is Persistence.NOT_PERSISTED) is sure
        if sure:
            assert isinstance(innocent, RecordMetadata)
        else:
            # Here the client does end, and is replaced.
            assert isinstance(innocent, DeliveryError)
            assert innocent.persistence is Persistence.POSSIBLY_PERSISTED
        for topic in ("first", "second"):
            assert isinstance(await outcome_of(producer, topic), RecordMetadata)
        assert producer.statistics().generations == (1 if sure else 2)


def test_bare_after_a_batch_expires_during_its_retries_nothing_is_sent(
    lone_broker: MockCluster,
) -> None:
    with warmed_up(lone_broker) as producer:
        # The retry backoff is longer than this test.
        producer._accumulator.config["retry_backoff_ms"] = 600_000
        lone_broker.answer_next(1, REQUEST_TIMED_OUT)
        expired = producer.send("first", b"value")
        batches = producer._accumulator._batches
        blocking_until(
            lambda: any(one.in_retry() for line in [*batches.values()] for one in [*line])
        )
        hurry(producer, 1)
        producer._sender.wakeup()
        assert settles(expired)
        assert isinstance(expired.exception, kafka_errors.KafkaTimeoutError)
        hurry(producer, 300)
        # Later than delivery_timeout_ms allows.
        assert not settles(producer.send("second", b"value"), 0.3 + NEVER)


async def test_a_record_that_expires_during_its_retries_fails_alone(
    lone_broker: MockCluster, clock: ManualClock
) -> None:
    settings = settings_for(lone_broker)
    async with clock.open(settings) as producer:
        await producer.send(to("first"))
        for _ in range(5):
            lone_broker.answer_next(1, REQUEST_TIMED_OUT)
        delivery = await producer.enqueue(to("first"))
        await anyio.sleep(NEVER)
        clock.advance(settings.delivery_timeout)
        with pytest.raises(DeliveryTimeout):
            await delivery.wait()
        await delivers_again(producer, "second", "first")
        assert producer.statistics().generations == 1


def test_bare_without_a_producer_id_in_time_it_is_broken(lone_broker: MockCluster) -> None:
    lone_broker.answer_next(1, 0, api=INIT_PRODUCER_ID, rtt_ms=60_000)
    with bare(lone_broker, request_timeout_ms=200) as producer:
        for topic in ("first", "second"):
            future = producer.send(topic, b"value")
            assert settles(future)
            assert "Could not execute transactional request" in str(future.exception)


def test_bare_no_coordinator_for_the_producer_id_hangs(lone_broker: MockCluster) -> None:
    lone_broker.answer_next(1, NOT_COORDINATOR, api=INIT_PRODUCER_ID)
    with bare(lone_broker) as producer:
        hurry(producer, 200)
        assert not settles(producer.send("first", b"value"), 0.2 + NEVER)


@on_trio_and_nightly_on_asyncio
@pytest.mark.parametrize(("error", "milliseconds"), [(0, 60_000), (NOT_COORDINATOR, 0)])
async def test_without_a_producer_id_another_client_is_opened(
    lone_broker: MockCluster, clock: ManualClock, error: int, milliseconds: int
) -> None:
    lone_broker.answer_next(1, error, api=INIT_PRODUCER_ID, rtt_ms=milliseconds)
    settings = settings_for(lone_broker, properties={"request_timeout_ms": 2_000})
    async with clock.open(settings) as producer:
        await producer.partitions_for("first")
        delivery = await producer.enqueue(to("first"))
        await until(lambda: producer.statistics().queued == 0)
        if error:
            # It hangs: first the record is late, and then there has been no outcome for too long.
            clock.advance(settings.delivery_timeout)
            await until(lambda: delivery.done)
            clock.advance(_late.PATIENCE)
        with pytest.raises(DeliveryError):
            await delivery.wait()
        await until(lambda: producer.statistics().generations == 2)
        await delivers_again(producer, "first", "second")
        assert producer.statistics().generations == 2


#: The errors of the sequence numbers by which brokers recognize a producer.
SEQUENCE_ERRORS = [
    pytest.param(45, id="OUT_OF_ORDER_SEQUENCE_NUMBER"),
    pytest.param(47, id="INVALID_PRODUCER_EPOCH"),
    pytest.param(59, id="UNKNOWN_PRODUCER_ID"),
]


@pytest.mark.parametrize("code", SEQUENCE_ERRORS)
def test_bare_with_brokers_before_2_5_sequence_errors_hang(
    lone_broker: MockCluster, code: int
) -> None:
    with warmed_up(lone_broker, request_timeout_ms=150) as producer:
        hurry(producer, 200)
        lone_broker.answer_next(1, code)
        assert settles(producer.send("first", b"value"))
        assert not settles(producer.send("second", b"value"), 0.2 + NEVER)


@on_trio_and_nightly_on_asyncio
@pytest.mark.parametrize("code", SEQUENCE_ERRORS)
async def test_with_brokers_before_2_5_the_producer_recovers_from_sequence_errors(
    lone_broker: MockCluster, code: int
) -> None:
    async with open_send_producer(settings_for(lone_broker)) as producer:
        await producer.send(to("first"))
        lone_broker.answer_next(1, code)
        outcome = await outcome_of(producer, "first")
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        for topic in ("second", "first"):
            assert isinstance(await outcome_of(producer, topic), RecordMetadata)
        assert producer.statistics().generations == 2


@pytest.fixture
def leaky() -> Iterator[None]:
    """For tests in which connections of the bare client are refused."""
    with leaking_sockets():
        yield


@contextlib.asynccontextmanager
async def with_a_broker_that_lost_its_memory() -> AsyncGenerator[Any, None]:
    """A bare client that wrote to a broker before another process replaced the broker.

    After a restart the embedded broker knows no producer. Unlike Apache Kafka, it does not support
    KIP-360.
    """
    async with embedded_broker(port=lasting_port()) as before:
        # The rest may block, because the loop has no other task.
        with bare(before.bootstrap_servers) as producer:
            producer.send("known", b"value", partition=0).get(PATIENCE)
            await before.kill()
            async with embedded_broker(port=before.port):
                yield producer


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("leaky")
async def test_bare_a_broker_that_lost_its_memory_breaks_the_client() -> None:
    async with with_a_broker_that_lost_its_memory() as producer:
        future = producer.send("known", b"value", partition=0)
        assert settles(future)
        assert isinstance(future.exception, kafka_errors.UnknownProducerIdError)
        for topic in ("known", "new"):
            later = producer.send(topic, b"value", partition=0)
            assert settles(later)
            assert "InitProducerIdResponse" in str(later.exception)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("leaky")
async def test_bare_a_broker_that_lost_its_memory_gets_endless_retries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with with_a_broker_that_lost_its_memory() as producer:
        # No record was acknowledged on that topic, so the client treats its producer id as expired.
        future = producer.send("new", b"value", partition=0)
        blocking_until(lambda: caplog.text.count("resetting sequence and retrying") > 5, PATIENCE)
        assert not future.is_done


# --- what a program inherits ---------------------------------------------------------------------


def test_bare_checksums_are_slow_without_an_extra() -> None:
    asked = importlib.metadata.requires("kafka-python") or []
    [line] = [line for line in asked if line.startswith("crc32c")]
    assert re.search(r"extra == .crc32c.", line)


def test_the_extra_for_fast_checksums_is_required() -> None:
    asked = importlib.metadata.requires("anyio-sendproducer") or []
    [line] = [line for line in asked if line.startswith("kafka-python") and "extra ==" not in line]
    assert line.startswith("kafka-python[crc32c]")
    # And it is what kafka-python uses.
    assert kafka_record_util._crc32c is importlib.import_module("crc32c").crc32c


def test_bare_collecting_one_producer_disables_the_logger(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer_module, "log", logging.getLogger("kafka.producer.kafka"))
    producer = kafka.KafkaProducer(bootstrap_servers=cluster.bootstrap_servers, **FOR_MOCK)
    producer.close()
    assert isinstance(kafka_producer_module.log, logging.Logger)
    del producer
    gc.collect()
    assert not isinstance(kafka_producer_module.log, logging.Logger)


SWIFT = {"reconnect_backoff_ms": 10, "reconnect_backoff_max_ms": 10}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells of open sockets")
def test_bare_each_refused_connection_leaves_a_socket(refusing: str) -> None:
    def fail() -> None:
        with contextlib.suppress(kafka_errors.KafkaError):
            BareProducer(bootstrap_servers=refusing, bootstrap_timeout_ms=200, **SWIFT)

    before = open_sockets()
    with leaking_sockets():
        deadline = time.monotonic() + PATIENCE
        while len(open_sockets() - before) <= 3:
            assert time.monotonic() < deadline
            fail()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells of open sockets")
@pytest.mark.parametrize("proxy", [None, "socks5", "http"])
async def test_refused_connections_leave_no_socket(refusing: str, proxy: str | None) -> None:
    settings = settings_for(refusing, start_timeout=0.3, properties=SWIFT)
    if proxy is not None:
        settings = settings.with_property("proxy_url", f"{proxy}://{refusing}")
    before = open_sockets()
    gc.disable()
    try:
        with pytest.raises(ProducerStartError):
            async with open_send_producer(settings):
                pytest.fail("there is nobody")
        # The loop's own.
        assert len(open_sockets() - before) <= 3
    finally:
        gc.enable()


# More than the system's buffers hold for a broker that does not read.
STALLS = {"max_request_size": 30_000_000}
LARGE = bytes(20_000_000)


def test_bare_bytes_that_the_broker_does_not_accept_leave_a_socket(proxied: FaultProxy) -> None:
    with bare(proxied.address, **STALLS) as producer:
        producer.send("first", b"value").get(PATIENCE)
        proxied.black_hole()
        producer.send("first", LARGE)
        transport = unsent(producer._sender._client)
    with transport._sock as left:
        assert left.fileno() >= 0


async def test_bytes_that_the_broker_does_not_accept_leave_no_socket(proxied: FaultProxy) -> None:
    settings = settings_for(proxied.address, properties=STALLS, close_timeout=0.1)
    with raising(UndeliveredRecords):
        async with open_send_producer(settings) as producer:
            await producer.send(to("first"))
            proxied.black_hole()
            producer.enqueue_nowait(ProducerRecord("first", LARGE))
            driver: Any = producer._engine.bridge._worker.driver
            sock = (await anyio.to_thread.run_sync(unsent, driver._opened.client))._sock
    assert sock.fileno() == -1


def unsent(client: Any) -> Any:
    """Wait for a connection with bytes that the broker does not accept, and return it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for connection in [*client._manager._conns.values()]:
            transport = connection.transport
            if transport is not None and transport._write_buffer:
                time.sleep(NEVER)
                if transport._write_buffer:
                    return transport
        time.sleep(0.005)
    pytest.fail("the broker took all")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
def test_bare_records_of_a_forked_child_get_no_outcome(cluster: MockCluster) -> None:
    with bare(cluster) as producer:
        producer.send("first", b"value").get(PATIENCE)
        child = os.fork()
        if child == 0:  # pragma: no cover  # seen by the parent alone
            code = 1
            # Locks that the other thread held at the fork are never released here.
            signal.alarm(int(PATIENCE))
            try:
                code = 11 if settles(producer.send("first", b"value"), NEVER) else 10
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in {10, -signal.SIGALRM}


# --- the end of a program ------------------------------------------------------------------------

BARE_SCRIPT = """
import json, sys, time
from kafka import KafkaProducer

servers, topic, count, options = sys.argv[1:5]
producer = KafkaProducer(bootstrap_servers=servers, **json.loads(options))
producer.partitions_for(topic)
for number in range(int(count)):
    producer.send(topic, b"value", partition=0)
print("sent", flush=True)
print(time.monotonic(), flush=True)
"""

OUR_SCRIPT = """
import json, signal, sys
import anyio
from anyio_sendproducer import ProducerRecord, ProducerSettings, UndeliveredRecords
from anyio_sendproducer import open_send_producer

servers, topic, count, options, backend = sys.argv[1:6]
settings = ProducerSettings(
    bootstrap_servers=servers, properties=json.loads(options), close_timeout=0.5
)

async def enqueue(producer):
    await producer.partitions_for(topic)
    for number in range(int(count)):
        await producer.enqueue(ProducerRecord(topic, b"value", partition=0))
    print("sent", flush=True)
"""

ENDS = """
async def main():
    try:
        async with open_send_producer(settings) as producer:
            await enqueue(producer)
    except UndeliveredRecords as error:
        print(error.count, "undelivered")

anyio.run(main, backend=backend)
"""

WAITS_FOR_A_SIGNAL = """
async def main():
    with anyio.open_signal_receiver(signal.SIGTERM) as signals, anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def end():
                async for _ in signals:
                    scope.cancel()

            tasks.start_soon(end)
            async with open_send_producer(settings) as producer:
                await enqueue(producer)
                await anyio.sleep_forever()

anyio.run(main, backend=backend)
"""


LOOPS = ("asyncio", "trio")


def start(source: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A program in a process of its own."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", source, *arguments]
    # Without a buffer, because it would keep lines that arrive together with the one read alone.
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, bufsize=0)


def rest(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Wait for its end. Returns: the rest of its output on each stream."""
    said, complaint = process.communicate(timeout=PATIENCE)
    return said.decode(), complaint.decode()


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Generator[subprocess.Popen[bytes], None, None]:
    """A program that has printed that its records are sent."""
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"sent\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def on_both_loops(
    source: str, *arguments: str
) -> Generator[list[subprocess.Popen[bytes]], None, None]:
    """A program on each loop. Its last argument names the loop."""
    with contextlib.ExitStack() as stack:
        processes = [start(source, *arguments, loop) for loop in LOOPS]
        yield [stack.enter_context(running(process)) for process in processes]


def test_bare_at_exit_with_records_pending_it_waits_and_prints_a_traceback(
    cluster: MockCluster,
) -> None:
    # Sixty seconds for each answer that is not about metadata: the record stays pending.
    cluster.answer_next(1, 0, rtt_ms=60_000)
    options = '{"api_version": [2, 3]}'
    script = BARE_SCRIPT.replace("json.loads(options)", "{'api_version': (2, 3)}")
    program = start(script, cluster.bootstrap_servers, "first", "1", options)
    with running(program) as process:
        # Both processes have the same clock.
        began, complaint = rest(process)
        assert time.monotonic() - float(began) > 0.9
    assert "Traceback" in complaint
    assert "KafkaTimeoutError" in complaint


def test_at_exit_with_records_pending_it_reports_the_lost_records(cluster: MockCluster) -> None:
    for _ in LOOPS:
        cluster.answer_next(1, 0, rtt_ms=60_000)
    script = (OUR_SCRIPT + ENDS).replace("json.loads(options)", repr(FOR_MOCK))
    with on_both_loops(script, cluster.bootstrap_servers, "first", "1", "") as processes:
        for process in processes:
            began = time.monotonic()
            said, complaint = rest(process)
            # Sixty seconds, if it waited for the answer.
            assert time.monotonic() - began < 0.5 + SLACK
            assert (said, complaint, process.returncode) == ("1 undelivered\n", "", 0)


#: Records stay with the client for that long, in milliseconds.
LINGER = '{"linger_ms": 500}'

#: Records stay with the client for longer than a test takes.
LINGER_ON = '{"linger_ms": 600000, "delivery_timeout_ms": 1200000}'


def written(servers: str, topic: str) -> int:
    """Count the records of a topic by reading them, because the embedded broker counts a batch as
    one record."""
    consumer = kafka.KafkaConsumer(bootstrap_servers=servers)
    try:
        at = kafka.TopicPartition(topic, 0)
        if consumer.end_offsets([at])[at] == 0:
            return 0
        consumer.assign([at])
        consumer.seek_to_beginning()
        return sum(len(records) for records in consumer.poll(1000 * PATIENCE).values())
    finally:
        consumer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to handle")
def test_bare_sigterm_loses_pending_records(shared_broker: str) -> None:
    topic = f"topic-{uuid.uuid4().hex}"
    script = BARE_SCRIPT + "time.sleep(600)"
    with running(start(script, shared_broker, topic, "10", LINGER_ON)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM
    assert written(shared_broker, topic) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to handle")
def test_on_sigterm_a_cancelled_block_delivers_pending_records(shared_broker: str) -> None:
    topic = f"topic-{uuid.uuid4().hex}"
    script = OUR_SCRIPT + WAITS_FOR_A_SIGNAL
    with on_both_loops(script, shared_broker, topic, "10", LINGER) as processes:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            _, complaint = rest(process)
            assert (complaint, process.returncode) == ("", 0)
    assert written(shared_broker, topic) == 10 * len(LOOPS)


# --- the list ------------------------------------------------------------------------------------


def test_each_test_that_the_list_of_traps_names_exists() -> None:
    named = named_tests("docs/explanation/traps-of-kafka-python.md")
    for path, names in named.items():
        assert names - names_of_tests(path) == set()
    # The list has every other test of these modules.
    for path in ("tests/broker/test_traps.py", "tests/kafka/test_traps.py"):
        left_out = names_of_tests(path) - named[path]
        assert left_out <= {"test_each_test_that_the_list_of_traps_names_exists"}
