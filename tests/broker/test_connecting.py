"""The behaviour of clients while a broker can't be reached, and their errors.

Tests of the bare client fail when a newer kafka-python fixes a fault, as in ``test_traps.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryTimeout,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.drivers import Driver, DriverName, make_driver
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python import _network
from anyio_sendproducer.testing import FakeDriver, MockCluster, mock_cluster
from tests.support import hourglass
from tests.support.bare import bare, leaking_sockets
from tests.support.clock import ManualClock
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.mock_cluster import FOR_MOCK
from tests.support.ports import reserved_ports
from tests.support.scripted_broker import METADATA, PRODUCE, ScriptedBroker, scripted_broker
from tests.support.waiting import blocking_until, until

# kafka-python has no types, so every name imported from it is Any.
kafka: Any = importlib.import_module("kafka")
kafka_compat: Any = importlib.import_module("kafka.net.compat")
kafka_sender: Any = importlib.import_module("kafka.producer.sender")

#: The minimal time in seconds for counting the turns of the client's loop.
A_WHILE = 0.3

#: More turns per second than a loop makes that waits in each turn.
MANY = 300

PATIENCE = 60.0

#: A delivery_timeout in seconds that does not pass during a test.
LONG = 240.0


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Append an item for each turn of a client's loop from now on."""
    counted: list[None] = []
    poll = kafka_compat.KafkaNetClient.poll

    def counting(client: Any, *args: Any, **options: Any) -> Any:
        counted.append(None)
        return poll(client, *args, **options)

    monkeypatch.setattr(kafka_compat.KafkaNetClient, "poll", counting)
    return counted


def cut_off(proxied: FaultProxy) -> None:
    """Have the client connect again, without success."""
    proxied.black_hole()
    proxied.cut()


# --- proxies -------------------------------------------------------------------------------------


class Proxy(ScriptedBroker):
    """A broker that is also the proxy by which it is reached. It answers when the client reads."""

    is_http: bool
    may_answer: threading.Event

    def _talk(self, connection: socket.socket) -> None:
        said = connection.recv(1000)
        assert self.may_answer.wait(PATIENCE)
        if self.is_http:
            assert said.startswith(b"CONNECT ")
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            assert said == b"\5\1\0"
            connection.sendall(b"\5\0")
            connection.recv(1000)
            connection.sendall(b"\5\0\0\1" + bytes(6))
        super()._talk(connection)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "http"])
async def test_while_a_proxy_is_silent_it_waits(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python alone waits until it can write, which is always, and so it spins."""
    may_answer = threading.Event()
    selector: Any = importlib.import_module("kafka.net.selector").NetworkSelector
    wait_read = selector.wait_read

    def noting(*args: Any, **options: Any) -> Any:
        may_answer.set()
        return wait_read(*args, **options)

    monkeypatch.setattr(selector, "wait_read", noting)
    attributes: dict[str, Any] = {"is_http": scheme == "http", "may_answer": may_answer}
    with scripted_broker(make=Proxy, **attributes) as broker:
        settings = ProducerSettings(
            bootstrap_servers="127.0.0.1:1",
            start_timeout=PATIENCE,
            properties={"proxy_url": f"{scheme}://{broker.address}"},
        )
        async with open_send_producer(settings) as producer:
            await producer.send(ProducerRecord("t", b"value"))


# --- the first record of a topic -----------------------------------------------------------------


def never_again(address: str) -> ProducerSettings:
    """Settings with a backoff that is longer than a test. The bare kafka-python waits for it after
    each answer before its next request."""
    return ProducerSettings(
        bootstrap_servers=address,
        delivery_timeout=LONG,
        properties={"retry.backoff.ms": (LONG - 1) * 1000},
    )


async def test_the_first_record_of_each_topic_waits_for_no_backoff(driver: DriverName) -> None:
    with scripted_broker() as broker:
        async with open_send_producer(never_again(broker.address), driver=driver) as producer:
            for number in range(3):
                before = broker.requests.count(METADATA)
                with anyio.fail_after(PATIENCE):
                    await producer.send(ProducerRecord(f"topic-{number}", b"value"))
                if driver == "kafka-python":
                    assert broker.requests.count(METADATA) == before + 1


async def test_a_topic_that_is_new_while_metadata_are_on_their_way_waits_for_no_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client treats that answer as one for the new topic too."""
    asked, may_answer = threading.Event(), threading.Event()
    with scripted_broker() as broker:
        answer = broker.metadata

        def held(body: bytes) -> bytes:
            asked.set()
            assert may_answer.wait(PATIENCE)
            return answer(body)

        async with (
            open_send_producer(never_again(broker.address)) as producer,
            anyio.create_task_group() as tasks,
        ):
            monkeypatch.setattr(broker, "metadata", held)
            tasks.start_soon(producer.send, ProducerRecord("first", b"value"))
            await until(asked.is_set)
            tasks.start_soon(producer.send, ProducerRecord("second", b"value"))
            await until(lambda: producer.statistics().queued == 2)
            may_answer.set()
            with anyio.fail_after(PATIENCE):
                await producer.flush()


# --- connections that a firewall forgot ----------------------------------------------------------


async def test_a_record_is_sent_again_within_its_time_if_the_connection_was_forgotten(
    driver: DriverName, proxied: FaultProxy
) -> None:
    # The ledger's clock stands still, and only the client's time-outs go on.
    settings = ProducerSettings(bootstrap_servers=proxied.address, delivery_timeout=2)
    async with ManualClock().open(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("orders", b"two tins"))
        proxied.forget()
        with anyio.fail_after(20):  # by default kafka-python waits for 30 s, and librdkafka for 60
            await producer.send(ProducerRecord("orders", b"a brush"))


# --- bootstrap addresses -------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Addresses that accept connections and never answer."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        yield [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]


async def test_silent_addresses_do_not_delay_the_start(
    driver: DriverName, silent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An attempt to connect takes longer than this test.
    defaults = importlib.import_module("kafka.net.manager").KafkaConnectionManager.DEFAULT_CONFIG
    monkeypatch.setitem(defaults, "socket_connection_setup_timeout_ms", 1e6)
    with scripted_broker() as broker:
        settings = ProducerSettings(
            bootstrap_servers=[*silent, broker.address],
            start_timeout=PATIENCE,
            properties={"request.timeout.ms": 300_000},
        )
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))


async def test_addresses_that_refuse_do_not_delay_the_start(driver: DriverName) -> None:
    with reserved_ports(3) as ports, scripted_broker() as broker:
        settings = ProducerSettings(
            bootstrap_servers=[*(f"127.0.0.1:{port}" for port in ports), broker.address],
            start_timeout=PATIENCE,
        )
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))


async def test_a_start_waits_for_the_first_of_several_addresses(driver: DriverName) -> None:
    with reserved_ports(2) as ports:
        settings = ProducerSettings(
            bootstrap_servers=[f"127.0.0.1:{port}" for port in ports], start_timeout=0.5
        )
        with pytest.raises(ProducerStartError):
            async with open_send_producer(settings, driver=driver):
                pass


def knows_no_bootstrap_broker(producer: SendProducer) -> bool:
    """Return whether librdkafka has removed the bootstrap brokers from its list.

    It returns to the bootstrap addresses when all brokers in the list are down. If the last broker
    of the metadata goes down while the thread of a bootstrap broker ends, librdkafka 2.16 counts
    one that is not down, and never returns to them.
    """
    brokers = producer.statistics().client.get("brokers")
    return brokers is not None and not any(name.endswith("/bootstrap") for name in brokers)


@pytest.mark.parametrize("addresses", [1, 2])
async def test_brokers_at_new_addresses_are_found_by_the_bootstrap_address(
    driver: DriverName, addresses: int
) -> None:
    with scripted_broker() as first, scripted_broker() as second, reserved_ports(1) as [nobody]:
        bootstraps = [first.address, f"127.0.0.1:{nobody}"][:addresses]
        with scripted_broker() as before:
            first.brokers = [(1, before.host, before.port)]
            settings = ProducerSettings(bootstrap_servers=bootstraps, delivery_timeout=LONG)
            if driver == "confluent":
                settings = settings.with_property("statistics.interval.ms", 10)
            async with open_send_producer(settings, driver=driver) as producer:
                await producer.send(ProducerRecord("orders", b"two tins"))
                if driver == "confluent":
                    await until(lambda: knows_no_bootstrap_broker(producer))
                first.brokers = [(1, second.host, second.port)]
                await anyio.to_thread.run_sync(before.close)
                with anyio.fail_after(PATIENCE):
                    await producer.send(ProducerRecord("orders", b"a brush"))
                assert producer.statistics().generations == 1
        assert PRODUCE in second.requests


async def test_a_cluster_that_comes_late_leaves_and_returns(driver: DriverName) -> None:
    with scripted_broker() as broker, fault_proxy(broker.address) as proxied:
        broker.brokers = [(1, "127.0.0.1", proxied.port)]
        proxied.refuse()
        settings = ProducerSettings(
            bootstrap_servers=proxied.address, wait_for_cluster=False, delivery_timeout=LONG
        )
        async with open_send_producer(settings, driver=driver) as producer:
            late = await producer.enqueue(ProducerRecord("orders", b"two tins"))
            assert not producer.statistics().is_connected
            proxied.heal()
            await late
            assert producer.statistics().is_connected
            proxied.refuse()
            meanwhile = await producer.enqueue(ProducerRecord("orders", b"a brush"))
            await until(lambda: not producer.statistics().is_connected)
            proxied.heal()
            await meanwhile
            await until(lambda: producer.statistics().is_connected)
            assert producer.statistics().generations == 1


async def test_a_producer_without_records_notices_that_the_cluster_is_back(
    driver: DriverName,
) -> None:
    with scripted_broker() as broker, fault_proxy(broker.address) as proxied:
        broker.brokers = [(1, "127.0.0.1", proxied.port)]
        settings = ProducerSettings(bootstrap_servers=proxied.address, delivery_timeout=LONG)
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))
            proxied.refuse()
            await until(lambda: not producer.statistics().is_connected)
            proxied.heal()
            await until(lambda: producer.statistics().is_connected)
            assert producer.statistics().generations == 1


@pytest.mark.parametrize("login", [{}, {"security.protocol": "SSL"}], ids=["plaintext", "tls"])
async def test_closing_before_the_cluster_comes(driver: DriverName, login: dict[str, str]) -> None:
    with reserved_ports(1) as [nobody]:
        settings = ProducerSettings(
            bootstrap_servers=f"127.0.0.1:{nobody}",
            wait_for_cluster=False,
            close_timeout=0.1,
            properties=login,
        )
        with pytest.raises(UndeliveredRecords, match="was not sent"):
            async with open_send_producer(settings, driver=driver) as producer:
                await producer.enqueue(ProducerRecord("orders", b"two tins"))


def test_an_attempt_to_connect_to_a_broker_that_moved_is_cancelled() -> None:
    client = _network.NetClient(bootstrap_servers="127.0.0.1:1")
    closed: list[str] = []

    def connection(name: str, *, connected: bool) -> Any:
        return types.SimpleNamespace(connected=connected, close=lambda: closed.append(name))

    def told(port: int) -> Any:
        brokers = [types.SimpleNamespace(node_id=node, host="h", port=port) for node in (1, 2, 3)]
        return types.SimpleNamespace(brokers=lambda: brokers)

    connections: dict[Any, Any] = cast("Any", client.manager)._conns
    connections.update(
        {1: connection("connecting", connected=False), 2: connection("connected", connected=True)}
    )
    for port in (1, 1, 2):
        assert closed == []
        client.manager._look_for_moved(told(port))
    assert closed == ["connecting"]
    connections.clear()
    client.close()


def test_metadata_are_requested_once_for_an_unknown_broker() -> None:
    requests: list[bool] = []

    def nothing_known(_: int) -> None:
        """No broker."""

    cluster = types.SimpleNamespace(
        need_update=False,
        broker_metadata=nothing_known,
        request_update=lambda: requests.append(True),
    )
    connect = cast("Any", _network.NetClient).maybe_connect
    asking = types.SimpleNamespace(cluster=cluster)
    connect(asking, 7)
    cluster.need_update = True
    connect(asking, 7)
    assert requests == [True]


def test_waiting_for_a_coordinator_ends_with_the_first_attempt_that_fails() -> None:
    """It raises nothing: the sender of kafka-python would lose the request that it holds."""
    with reserved_ports(1) as [port]:
        # As the driver does: otherwise the garbage collector finds the sockets in a later test.
        configs = {"bootstrap_servers": f"127.0.0.1:{port}", "proxy_url": "direct://"}
        client = _network.NetClient(**configs)
        try:
            assert client.await_ready("bootstrap-0", timeout_ms=1e9) is False
            assert client.await_ready("bootstrap-0", timeout_ms=1e9) is False
            assert client.await_ready("bootstrap-0", timeout_ms=0) is False
        finally:
            client.close()


# --- the processor -------------------------------------------------------------------------------


def test_bare_while_it_connects_it_spins(proxied: FaultProxy, turns: list[None]) -> None:
    with leaking_sockets(), bare(proxied.address) as producer:
        producer.send("orders", b"two tins").get(PATIENCE)
        cut_off(proxied)
        producer.send("orders", b"a brush")
        time.sleep(A_WHILE)
        # However little CPU time it gets: our client would take minutes for this number of turns.
        before = len(turns)
        blocking_until(lambda: len(turns) > before + 10 * MANY, PATIENCE / 4)


async def test_while_it_connects_it_waits(proxied: FaultProxy, turns: list[None]) -> None:
    async with open_send_producer(ProducerSettings(bootstrap_servers=proxied.address)) as producer:
        await producer.send(ProducerRecord("orders", b"two tins"))
        cut_off(proxied)
        delivery = await producer.enqueue(ProducerRecord("orders", b"a brush"))
        await anyio.sleep(A_WHILE)
        turns.clear()
        began = time.monotonic()
        await anyio.sleep(A_WHILE)
        assert len(turns) < MANY * (time.monotonic() - began)
        proxied.heal()
        await delivery.wait()


#: The error of a broker that does not lead the partition of a record.
NOT_LEADER_OR_FOLLOWER = (6, -1)


def test_bare_while_a_partition_has_no_leader_it_spins(turns: list[None]) -> None:
    """It does so even long after its last record was acknowledged."""
    with scripted_broker(partitions=2) as broker, bare(broker.address) as producer:
        producer.send("orders", b"two tins", partition=1).get(PATIENCE)
        broker.leaderless = {1}
        producer._metadata.request_update()
        time.sleep(A_WHILE)
        before = len(turns)
        blocking_until(lambda: len(turns) > before + 10 * MANY, PATIENCE / 4)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "with a record"])
async def test_while_a_partition_has_no_leader_it_waits(idle: bool, turns: list[None]) -> None:
    with scripted_broker(partitions=2) as broker:
        settings = ProducerSettings(bootstrap_servers=broker.address)
        async with open_send_producer(settings) as producer:
            await producer.send(ProducerRecord("orders", b"two tins", partition=1))
            broker.leaderless = {1}
            broker.errors = {1: NOT_LEADER_OR_FOLLOWER}
            client = _client_of(producer)
            client.cluster.request_update()
            client.wakeup()
            where = kafka.TopicPartition("orders", 1)
            await until(lambda: client.cluster.leader_for_partition(where) == -1)
            waiting = [] if idle else [ProducerRecord("orders", b"a brush", partition=1)]
            deliveries = [await producer.enqueue(record) for record in waiting]
            await anyio.sleep(A_WHILE)
            turns.clear()
            asked = broker.requests.count(METADATA)
            began = time.monotonic()
            await anyio.sleep(A_WHILE)
            seconds = time.monotonic() - began
            assert len(turns) < MANY * seconds
            # The bare client makes ten per second.
            assert broker.requests.count(METADATA) - asked <= 2 + seconds
            broker.leaderless = set()
            broker.errors = {}
            for delivery in deliveries:
                await delivery.wait()


def _client_of(producer: SendProducer) -> Any:
    driver: Any = producer._engine.bridge._worker.driver
    return driver._ready().client


# --- a leader that nobody knows ------------------------------------------------------------------


#: Settings with which the client soon detects that a broker is down.
ASKS_OFTEN = {**FOR_MOCK, "metadata_max_age_ms": 100}


@pytest.fixture
def uncaught(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Append an item for each uncaught error that the client's thread logs."""
    counted: list[None] = []

    def counting(*_: object) -> None:
        counted.append(None)

    monkeypatch.setattr(kafka_sender.log, "exception", counting)
    return counted


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    """Two brokers. One is down: the metadata name it as a leader, but not as a broker."""
    with mock_cluster(2) as running:
        running.create_topic("led-by-1", [1])
        yield running


def test_bare_a_leader_missing_from_the_brokers_is_an_endless_error() -> None:
    """Each turn of its thread raises, and the client does not request the brokers."""
    client = kafka_compat.KafkaNetClient(bootstrap_servers="127.0.0.1:9")
    try:
        for _ in range(2):
            with pytest.raises(kafka.errors.UnknownBrokerIdError):
                client.maybe_connect(7)
    finally:
        client.close()


async def test_metadata_whose_leader_is_missing_from_the_brokers_are_requested_again(
    cluster: MockCluster, uncaught: list[None]
) -> None:
    settings = ProducerSettings(bootstrap_servers=cluster.bootstrap_servers, properties=ASKS_OFTEN)
    async with open_send_producer(settings) as producer:
        await producer.send(ProducerRecord("led-by-1", b"two tins"))
        cluster.set_down(1)
        await anyio.sleep(A_WHILE)
        delivery = await producer.enqueue(ProducerRecord("led-by-1", b"a brush"))
        await anyio.sleep(A_WHILE)
        cluster.set_up(1)
        await delivery.wait()
    assert uncaught == []


# --- what is said --------------------------------------------------------------------------------


async def timed_out(
    producer: SendProducer, clock: ManualClock, until_then: Callable[[], bool]
) -> DeliveryTimeout:
    """Send a record whose deadline passes when a condition holds."""
    delivery = await producer.enqueue(ProducerRecord("orders", b"a brush"))
    await until(until_then)
    clock.advance(LONG)
    with pytest.raises(DeliveryTimeout) as caught:
        await delivery.wait()
    return caught.value


async def test_a_time_out_says_which_broker_can_not_be_reached(
    proxied: FaultProxy, clock: ManualClock
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=proxied.address, delivery_timeout=LONG, cancel_timeout=0.5
    )
    async with clock.open(settings) as producer:
        await producer.send(ProducerRecord("orders", b"two tins"))
        proxied.refuse()
        error = await timed_out(
            producer,
            clock,
            lambda: "Connection refused" in str(producer._engine.bridge.last_error()),
        )
        assert f"{proxied.address} can't be reached: " in str(error)
        assert "Connection refused" in str(error)
        assert isinstance(error.__cause__, SendProducerError)
        assert isinstance(error.__cause__.__cause__, OSError | kafka.errors.KafkaConnectionError)
        # After the outage no trace of the error is left.
        proxied.heal()
        await producer.send(ProducerRecord("orders", b"a shirt"))
        proxied.black_hole()
        error = await timed_out(producer, clock, lambda: proxied.swallowed > 0)
        assert (error.__cause__, "reached" in str(error)) == (None, False)
        proxied.heal()


async def test_a_time_out_during_the_first_attempt_says_why_no_broker_answers(
    driver: DriverName, clock: ManualClock
) -> None:
    with reserved_ports(1) as [nobody]:
        settings = ProducerSettings(
            bootstrap_servers=f"127.0.0.1:{nobody}", wait_for_cluster=False, delivery_timeout=LONG
        )
        async with clock.open(settings, driver=driver) as producer:
            error = await timed_out(
                producer, clock, lambda: producer._engine.bridge.last_error() is not None
            )
            assert error.persistence is Persistence.NOT_PERSISTED
            assert f"127.0.0.1:{nobody}" in str(error)
            assert "refused" in str(error)


async def test_a_time_out_says_that_the_login_is_refused(clock: ManualClock) -> None:
    """A producer that has long been running loses its permissions."""
    with scripted_broker(mechanisms=("PLAIN",), users={"me": "s3cret"}) as broker:
        settings = ProducerSettings(
            bootstrap_servers=broker.address,
            delivery_timeout=LONG,
            cancel_timeout=0.5,
            properties={
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "me",
                "sasl.password": "s3cret",
            },
        )
        async with clock.open(settings) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))
            broker.users = {}
            await anyio.to_thread.run_sync(broker.disconnect)
            error = await timed_out(
                producer, clock, lambda: "refused" in str(producer._engine.bridge.last_error())
            )
            assert f"{broker.address} refused the login with PLAIN: " in str(error)
            assert "s3cret" not in str(error)
            # The permissions are restored.
            broker.users = {"me": "s3cret"}
            await producer.flush()
            await producer.send(ProducerRecord("orders", b"a shirt"))


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
async def test_the_drivers_last_error_is_added_to_a_time_out(
    taken: bool, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    fake.in_trouble = ConnectionError("the cable is out")
    if not taken:
        fake.unknown_topics.add("orders")
    settings = ProducerSettings(
        bootstrap_servers="nowhere:9092", delivery_timeout=LONG, cancel_timeout=0.1
    )
    async with clock.open(settings, driver=fake) as producer:

        def tried() -> bool:
            given_back = producer.statistics().queued == 1
            return bool(fake.submitted) if taken else bool(fake.batches) and given_back

        error = await timed_out(producer, clock, tried)
        assert str(error).endswith("; it may be written nevertheless: the cable is out") == taken
        assert str(error).endswith("; it was not sent: the cable is out") != taken
        assert error.__cause__ is fake.in_trouble
        expected = Persistence.POSSIBLY_PERSISTED if taken else Persistence.NOT_PERSISTED
        assert error.persistence is expected


async def test_a_driver_that_was_not_opened_has_no_last_error() -> None:
    settings = ProducerSettings(bootstrap_servers="nowhere:9092")
    assert _kafka_python.KafkaPythonDriver(settings).last_error() is None


# --- the end -------------------------------------------------------------------------------------


async def test_the_end_waits_for_no_connection(
    proxied: FaultProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new client connects once more for its producer id, and waits for that."""
    settings = ProducerSettings(bootstrap_servers=proxied.address, close_timeout=0.5)
    # A busy machine may end the thread late.
    monkeypatch.setattr(_kafka_python, "_JOIN_SECONDS", PATIENCE)
    proxied.delay(0.1)
    async with open_send_producer(settings):
        proxied.black_hole()
        began = time.monotonic()
    # It would take ten seconds if it waited for the connection.
    assert time.monotonic() - began < 9
    assert "did not end" not in caplog.text
    await until(lambda: not _network_threads())


def _network_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "network" in thread.name]


# --- what is said where nobody answers -----------------------------------------------------------


async def test_the_error_has_the_reason_for_each_address_without_any_log(
    driver: DriverName, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def make(settings: ProducerSettings) -> Driver:
        chosen = make_driver(driver, settings)
        made.append(chosen)
        return chosen

    def is_known() -> bool:
        """Whether two addresses have failed."""
        if driver == "confluent":
            return len(made[0]._health._reasons) == 2
        return made[0]._client is not None and len(made[0]._client.manager.failures) == 2

    hourglass.Hourglass(monkeypatch).run_out_when(is_known)
    logging.disable()
    try:
        with closing(socket.socket()) as taken, closing(socket.socket()) as silent:
            taken.bind(("127.0.0.1", 0))  # and nobody listens
            silent.bind(("127.0.0.1", 0))
            silent.listen()  # and nobody answers
            refused, quiet = (f"127.0.0.1:{one.getsockname()[1]}" for one in (taken, silent))
            servers = ["nowhere.invalid:9092", refused, quiet]
            with pytest.raises(ProducerStartError) as caught:
                async with open_send_producer(
                    bootstrap_servers=servers, driver=make, start_timeout=hourglass.LONG
                ):
                    pass
    finally:
        logging.disable(logging.NOTSET)
    _, _, said = str(caught.value).partition("(start_timeout): ")
    assert re.search(r"nowhere\.invalid:9092: .*(DNS Resolution failure|Failed to resolve)", said)
    assert re.search(rf"{refused}: .*Connection refused", said)
    assert f"{quiet}: no answer" in said


async def test_if_no_broker_answers_the_error_says_why_and_what_to_do(driver: DriverName) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = ProducerSettings(bootstrap_servers=address, start_timeout=0.5)
        with pytest.raises(ProducerStartError) as caught:
            async with open_send_producer(settings, driver=driver):
                pass
    said = str(caught.value)
    assert said.startswith(f"no producer for {address} within 0.5 s (start_timeout): ")
    assert "Connection refused" in said
    assert said.endswith("; `anyio-sendproducer check` shows which step fails")
    assert "<" not in said  # no repr of an object
