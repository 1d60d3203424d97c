"""Each switch of the fault proxy has its effect on connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import anyio.to_thread
import pytest

from anyio_sendproducer import ProducerSettings
from tests.support.calls import raising
from tests.support.fault_proxy import FaultProxy, Way, fault_proxy, proxied_broker
from tests.support.history import check, read_topic
from tests.support.load import Load, run_load
from tests.support.waiting import blocking_until, until

PATIENCE = 60.0


class Server:
    """Accepts connections and passes them to the test."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(PATIENCE)
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.open: list[socket.socket] = [self.listening]

    def accept(self) -> socket.socket:
        connection, _ = self.listening.accept()
        connection.settimeout(PATIENCE)
        self.open.append(connection)
        return connection

    def connect(self, proxy: FaultProxy) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
        self.open.append(connection)
        return connection


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    for one in running.open:
        one.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.address) as running:
        yield running


@pytest.fixture
def ends(server: Server, proxy: FaultProxy) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection: the client's and the broker's."""
    client = server.connect(proxy)
    return client, server.accept()


Ends = tuple[socket.socket, socket.socket]


def receive(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = connection.recv(count - len(content))
        assert more, f"it ended after {content!r}"
        content += more
    return content


def receive_until_reset(connection: socket.socket) -> bytes:
    content = b""
    with raising(ConnectionResetError):
        while more := connection.recv(1_000):
            content += more
    return content


def request(api: int, correlation: int, size: int) -> bytes:
    """Make a request with this total size in bytes."""
    return struct.pack(">ihhi", size - 4, api, 0, correlation).ljust(size, b"q")


def answer(correlation: int, size: int) -> bytes:
    return struct.pack(">ii", size - 4, correlation).ljust(size, b"a")


def test_it_passes_on_both_ways(ends: Ends, proxy: FaultProxy) -> None:
    client, broker = ends
    content = bytes(range(256)) * 4_000
    sending = threading.Thread(target=client.sendall, args=(content,))
    sending.start()
    assert receive(broker, len(content)) == content
    sending.join()
    broker.sendall(b"back")
    assert receive(client, 4) == b"back"
    client.close()
    assert broker.recv(1) == b""
    assert proxy.accepted == 1


def test_if_the_server_closes_a_connection_the_proxy_closes_the_clients(ends: Ends) -> None:
    client, broker = ends
    broker.close()
    assert client.recv(1) == b""


def test_the_server_behind_it_refuses_connections(server: Server) -> None:
    # Bound and not listening, so the port is reserved and refuses connections.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with fault_proxy(address) as proxy, raising(ConnectionResetError):
            # At the connection, or at the first read.
            server.connect(proxy).recv(1)


def test_it_refuses_connections_and_accepts_them_again(
    server: Server, proxy: FaultProxy, ends: Ends
) -> None:
    proxy.refuse()
    for one in ends:
        receive_until_reset(one)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            server.connect(proxy)
    proxy.heal()
    with server.connect(proxy) as client:
        client.sendall(b"again")
        assert receive(server.accept(), 5) == b"again"


def test_a_black_hole_keeps_bytes_until_it_is_healed(
    server: Server, proxy: FaultProxy, ends: Ends
) -> None:
    client, broker = ends
    proxy.black_hole()
    with server.connect(proxy) as another:
        another.sendall(b"another")
        client.sendall(b"one way")
        broker.sendall(b"the other way")
        wait_until_swallowed(proxy, 20)
        for one in ends:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
            one.settimeout(PATIENCE)
        proxy.heal()
        assert receive(broker, 7) == b"one way"
        assert receive(client, 13) == b"the other way"
        assert receive(server.accept(), 7) == b"another"


def wait_until_swallowed(proxy: FaultProxy, count: int) -> None:
    blocking_until(lambda: proxy.swallowed >= count)


def test_answers_are_dropped(ends: Ends, proxy: FaultProxy) -> None:
    client, broker = ends
    proxy.drop_answers()
    broker.sendall(b"lost")
    wait_until_swallowed(proxy, 4)
    client.sendall(b"request")
    assert receive(broker, 7) == b"request"
    proxy.heal()
    broker.sendall(b"answer")
    assert receive(client, 6) == b"answer"


def test_cut_resets_all_connections(ends: Ends, proxy: FaultProxy) -> None:
    proxy.cut()
    for one in ends:
        receive_until_reset(one)
    assert proxy.resets == 1


@pytest.mark.parametrize("pieces", [1, 1_000])
def test_reset_in_the_middle_of_a_request(ends: Ends, proxy: FaultProxy, pieces: int) -> None:
    client, broker = ends
    proxy.reset_in_frame(Way.TO_BROKER, after=30, api=0)
    first, second = request(3, 1, 50), request(0, 2, 60)
    content = first + second
    for at in range(0, len(content), 1 + len(content) // pieces):
        with contextlib.suppress(OSError):
            client.sendall(content[at : at + 1 + len(content) // pieces])
    assert receive_until_reset(broker) == first + second[:30]
    # If it was still sending, it has already seen the reset.
    with contextlib.suppress(OSError):
        assert client.recv(1) == b""
    assert proxy.resets == 1


def test_reset_in_the_middle_of_an_answer(server: Server, proxy: FaultProxy, ends: Ends) -> None:
    """It resets in an answer to a request of that kind only, and as often as requested."""
    client, broker = ends
    proxy.reset_in_frame(Way.TO_CLIENT, after=1_000, api=0)
    content = request(3, 1, 50) + request(0, 2, 60)
    client.sendall(content)
    assert receive(broker, len(content)) == content
    first, second = answer(1, 20), answer(2, 33)
    broker.sendall(first + second)
    # A shorter frame loses its last byte.
    assert receive_until_reset(client) == first + second[:-1]
    with server.connect(proxy) as again:
        again.sendall(content)
        broker = server.accept()
        receive(broker, len(content))
        broker.sendall(first + second)
        assert receive(again, 53) == first + second


def test_at_least_the_header_is_passed_on(ends: Ends, proxy: FaultProxy) -> None:
    client, broker = ends
    proxy.reset_in_frame(Way.TO_BROKER, after=1, api=None)
    client.sendall(request(18, 1, 40))
    assert receive_until_reset(broker) == request(18, 1, 40)[:12]


def test_one_byte_at_a_time(ends: Ends, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    client, broker = ends
    sent: list[int] = []
    sendall = proxy._loop.sock_sendall

    async def note(one: socket.socket, content: bytes) -> None:
        sent.append(len(content))
        await sendall(one, content)

    monkeypatch.setattr(proxy._loop, "sock_sendall", note)
    proxy.dribble()
    client.sendall(bytes(range(200)))
    # Several bytes may arrive together if the reader is slow.
    assert receive(broker, 200) == bytes(range(200))
    assert sent == [1] * 200


def test_latency_and_jitter(ends: Ends, proxy: FaultProxy) -> None:
    client, broker = ends
    proxy.delay(0.05, 0.05)
    for content in (b"1", b"2"):
        began = time.monotonic()
        client.sendall(content)
        assert receive(broker, 1) == content
        broker.sendall(content)
        assert receive(client, 1) == content
        assert 0.1 <= time.monotonic() - began < 0.1 + 0.1 + PATIENCE / 4
    proxy.delay(10 * PATIENCE)
    proxy.heal()
    client.sendall(b"3")
    assert receive(broker, 1) == b"3"


@pytest.mark.parametrize("way", list(Way))
def test_half_closed(ends: Ends, proxy: FaultProxy, way: Way) -> None:
    """One direction has ended, and the other goes on."""
    ended, other = ends if way is Way.TO_CLIENT else ends[::-1]
    proxy.half_close(way)
    assert ended.recv(1) == b""
    ended.sendall(b"still")
    assert receive(other, 5) == b"still"
    other.sendall(b"nobody gets it")
    ended.sendall(b"and on")
    assert receive(other, 6) == b"and on"
    assert ended.recv(1) == b""


def test_it_leaves_nothing_behind(server: Server) -> None:
    with fault_proxy(server.address) as proxy:
        client = server.connect(proxy)
        server.accept()
    receive_until_reset(client)
    assert not proxy._thread.is_alive()
    assert proxy._loop.is_closed()
    assert proxy._listening is None
    assert proxy._reserved.fileno() == -1
    assert proxy.open_connections == 0


async def test_an_embedded_broker_behind_it() -> None:
    """All its clients connect through the proxy, also after the first answer."""
    with proxied_broker() as proxy:
        settings = ProducerSettings(bootstrap_servers=proxy.address)
        ran = await run_load(settings, Load(topic="t", records=200, tasks=10))
        log = await anyio.to_thread.run_sync(read_topic, proxy.address, "t")
        assert check(ran.history, log, delivery_timeout=120).faults == ()
        assert len(log) == 200
        await until(lambda: proxy.open_connections == 0)
        proxy.refuse()
        with pytest.raises(Exception, match="no producer"):
            await run_load(settings.evolve(start_timeout=0.2), Load(topic="t", records=1))
