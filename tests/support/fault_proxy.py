"""A TCP proxy with the faults of networks: it refuses and resets connections, and drops, slows or
delays bytes.

Each broker needs a proxy of its own. It has to advertise the proxy's address in place of its own,
or clients would bypass the proxy. `proxied_broker` sets this for Tansu, and `advertised.listeners`
for Apache Kafka.

The proxy runs on a thread of its own. The switches may be called from any thread, and have taken
effect when they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import os
import random
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anyio_sendproducer.testing import _broker
from tests.support.ports import HOST, reserve_port

__all__ = ["PRODUCE", "FaultProxy", "Way", "fault_proxy", "proxied_broker"]


#: The API key of Kafka's Produce request.
PRODUCE: Final = 0

#: Bytes of a request up to its correlation id, including the length in front. An answer has fewer.
_HEADER: Final = {True: 12, False: 8}

#: The time limit in seconds of a switch, and of the proxy's end.
_PATIENCE: Final = 60.0


class Way(enum.Enum):
    """The direction of bytes."""

    TO_BROKER = "to the broker"
    TO_CLIENT = "to the client"


class _Cut:
    """A planned reset: after this number of bytes of a frame, for a number of connections."""

    def __init__(self, way: Way, after: int, api: int | None, times: int) -> None:
        self.way = way
        self.after = after
        self.api = api
        self.times = times


class _Frames:
    """Follows the frames of one way of a connection."""

    def __init__(self, way: Way, apis: dict[int, int]) -> None:
        self._way = way
        self._apis = apis
        self._size = _HEADER[way is Way.TO_BROKER]
        self._header = b""
        self._rest = 0  # remaining bytes of the frame, once its header is known
        self._cut_in: int | None = None  # bytes until the reset

    def cut(self, chunk: bytes, due: Callable[[Way, int | None], int | None]) -> int | None:
        """Return how many bytes of the chunk to pass on before a reset; None for no reset.

        Args:
            chunk: the bytes that arrived.
            due: takes the API key of each request, and returns after how many bytes of it, or of
                the answer to it, a reset is due.
        """
        at = 0
        while at < len(chunk):
            if self._cut_in is not None:
                if self._cut_in <= len(chunk) - at:
                    return at + self._cut_in
                self._cut_in -= len(chunk) - at
                return None
            if self._rest:
                taken = min(self._rest, len(chunk) - at)
                self._rest -= taken
                at += taken
                continue
            missing = chunk[at : at + self._size - len(self._header)]
            self._header += missing
            at += len(missing)
            if len(self._header) == self._size:
                length = 4 + int(struct.unpack_from(">i", self._header)[0])
                after = due(self._way, self._api(self._header))
                if after is not None:
                    # In the middle: not before the first byte, and not after the last.
                    self._cut_in = max(0, min(after, length - 1) - self._size)
                    if self._cut_in == 0:
                        return at
                self._rest = length - self._size
                self._header = b""
        return None

    def _api(self, header: bytes) -> int | None:
        if self._way is Way.TO_BROKER:
            api, _, correlation = struct.unpack_from(">hhi", header, 4)
            self._apis[correlation] = api
            return int(api)
        return self._apis.pop(struct.unpack_from(">i", header, 4)[0], None)


class _Connection:
    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.broker: socket.socket | None = None
        self.task: asyncio.Task[None] | None = None
        self.half_closed: set[Way] = set()

    def target(self, way: Way) -> socket.socket | None:
        return self.broker if way is Way.TO_BROKER else self.client

    def close(self, *, reset: bool) -> None:
        for one in (self.client, self.broker):
            if one is not None:
                if reset and one.fileno() >= 0:
                    # With this option, closing a socket sends RST instead of FIN.
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()


class FaultProxy:
    """The controls of a proxy. `fault_proxy` makes it."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._reserved = reserve_port()
        self.port: int = self._reserved.getsockname()[1]
        self._listening: socket.socket | None = None
        self.address = f"{HOST}:{self.port}"
        """Where clients connect to."""
        self.accepted = 0
        """Connections taken so far."""
        self.resets = 0
        """Connections reset so far."""
        self.swallowed = 0
        """Bytes that came while nothing was passed on, or that were dropped."""
        self._connections: set[_Connection] = set()
        self._cuts: list[_Cut] = []
        self._dribbles = self._drops_answers = False
        self._latency = self._jitter = 0.0
        self._random = random.Random(20)  # the same pauses each time
        self._passes = asyncio.Event()
        self._passes.set()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)

    # --- switches -------------------------------------------------------------------------------

    def heal(self) -> None:
        """Pass everything on from now on, including the bytes that were held back."""

        def switch() -> None:
            self._cuts.clear()
            self._dribbles = self._drops_answers = False
            self._latency = self._jitter = 0.0
            self._passes.set()
            self._listen()

        self._do(switch)

    def lead_to(self, upstream: str) -> None:
        """Connect new connections to another server."""
        self._upstream = upstream

    def refuse(self) -> None:
        """Refuse connections, and reset the open ones, as if the broker's process had ended."""

        def switch() -> None:
            self._unlisten()
            self._cut_all()

        self._do(switch)

    def black_hole(self) -> None:
        """Accept connections, and pass nothing on in either direction, until healed."""
        self._do(self._passes.clear)

    def drop_answers(self) -> None:
        """Pass requests on, and drop each answer for good, until healed."""

        def switch() -> None:
            self._drops_answers = True

        self._do(switch)

    def cut(self) -> None:
        """Reset all open connections, at any position in a frame."""
        self._do(self._cut_all)

    def reset_in_frame(
        self, way: Way, *, after: int = 40, api: int | None = PRODUCE, times: int = 1
    ) -> None:
        """Reset a connection in the middle of a request, or of the answer to one.

        Args:
            way: the direction: requests, or answers.
            after: the number of bytes of the frame to pass on.
            api: the API key of the request; None: any.
            times: the number of connections to reset, each at its next such frame.
        """
        self._do(lambda: self._cuts.append(_Cut(way, after, api, times)))

    def dribble(self) -> None:
        """Pass on one byte at a time."""

        def switch() -> None:
            self._dribbles = True

        self._do(switch)

    def delay(self, latency: float, jitter: float = 0.0) -> None:
        """Delay all bytes in both directions by so many seconds, plus a random time up to `jitter`.
        Later bytes wait behind them."""

        def switch() -> None:
            self._latency, self._jitter = latency, jitter

        self._do(switch)

    def half_close(self, way: Way) -> None:
        """End one direction of all open connections with FIN."""

        def switch() -> None:
            for connection in self._connections:
                target = connection.target(way)
                if target is not None and way not in connection.half_closed:
                    connection.half_closed.add(way)
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_WR)

        self._do(switch)

    def forget(self) -> None:
        """Pass nothing on for the open connections, and end none of them, as a firewall does to
        idle connections."""

        def switch() -> None:
            for connection in self._connections:
                connection.half_closed |= {*Way}

        self._do(switch)

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    # --- the beginning and the end --------------------------------------------------------------

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()
        self._do(self._listen)

    def stop(self) -> None:
        """Close everything, and wait for the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _do(self, switch: Callable[[], object]) -> None:
        async def run() -> None:
            switch()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE)

    def _listen(self) -> None:
        if self._listening is None:
            self._listening = listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)  # its only argument
            listening.bind((HOST, self.port))
            listening.listen(128)
            self._loop.add_reader(listening, self._accept, listening)

    def _unlisten(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    async def _end(self) -> None:
        self._unlisten()
        self._reserved.close()
        tasks = [one.task for one in self._connections if one.task is not None]
        self._cut_all()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- on the thread --------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listening.accept()
            self.accepted += 1
            connection = _Connection(client)
            self._connections.add(connection)
            connection.task = self._loop.create_task(self._handle(connection))

    async def _handle(self, connection: _Connection) -> None:
        try:
            _prepare(connection.client)
            await self._passes.wait()
            host, port = self._upstream.rsplit(":", 1)
            connection.broker = broker = socket.socket()
            _prepare(broker)
            await self._loop.sock_connect(broker, (host, int(port)))
            apis: dict[int, int] = {}
            ways = ((Way.TO_BROKER, connection.client), (Way.TO_CLIENT, broker))
            await _all(
                [
                    self._loop.create_task(self._pump(connection, way, source, apis))
                    for way, source in ways
                ]
            )
        except OSError:
            # The other side has ended, or was never there, so end this one.
            connection.close(reset=True)
        finally:
            connection.close(reset=False)
            self._connections.discard(connection)

    async def _pump(
        self, connection: _Connection, way: Way, source: socket.socket, apis: dict[int, int]
    ) -> None:
        frames = _Frames(way, apis)
        target = connection.target(way)
        assert target is not None
        while chunk := await self._loop.sock_recv(source, 65_536):
            if way in connection.half_closed:
                continue
            if way is Way.TO_CLIENT and self._drops_answers:
                self.swallowed += len(chunk)
                continue
            passed_on = frames.cut(chunk, self._due)
            await self._pass_on(chunk[:passed_on], target)
            if passed_on is not None:
                await _sent(target)
                self._cut(connection)
        if way not in connection.half_closed:
            connection.half_closed.add(way)
            target.shutdown(socket.SHUT_WR)

    async def _pass_on(self, chunk: bytes, target: socket.socket) -> None:
        if self._latency or self._jitter:
            await asyncio.sleep(self._latency + self._random.random() * self._jitter)
        if not self._passes.is_set():
            self.swallowed += len(chunk)
            await self._passes.wait()
        if not self._dribbles:
            await self._loop.sock_sendall(target, chunk)
            return
        for at in range(len(chunk)):
            await self._loop.sock_sendall(target, chunk[at : at + 1])
            if at % 32 == 0:
                await asyncio.sleep(0)

    def _due(self, way: Way, api: int | None) -> int | None:
        for cut in self._cuts:
            if cut.way is way and cut.times and (cut.api is None or cut.api == api):
                cut.times -= 1
                return cut.after
        return None

    def _cut_all(self) -> None:
        for connection in list(self._connections):
            self._cut(connection)

    def _cut(self, connection: _Connection) -> None:
        self.resets += 1
        if connection.task is not None:
            connection.task.cancel()
        # Closing a socket while the loop watches it confuses the loop.
        for one in (connection.client, connection.broker):
            if one is not None and one.fileno() >= 0:
                self._loop.remove_reader(one)
                self._loop.remove_writer(one)
        connection.close(reset=True)


async def _sent(one: socket.socket) -> None:
    """Wait until all written bytes have arrived, because a reset discards unsent bytes."""
    for _ in range(1_000):
        if fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)) == bytes(4):
            return
        await asyncio.sleep(0.001)


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all tasks. If one fails, or this one is cancelled, end the others."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _prepare(one: socket.socket) -> None:
    one.setblocking(False)  # its only argument
    # A byte that is sent alone should arrive alone.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def fault_proxy(upstream: str) -> Generator[FaultProxy, None, None]:
    """Run a proxy in front of the server at `upstream`, which need not exist yet."""
    proxy = FaultProxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


# --- the embedded broker behind it -------------------------------------------------------------


@contextmanager
def proxied_broker() -> Generator[FaultProxy, None, None]:
    """Run an embedded broker that advertises only the address of a proxy.

    `embedded_broker` would have the broker advertise its own address, so this function starts it.
    """
    with (
        reserve_port() as reserved,
        fault_proxy(f"{HOST}:{reserved.getsockname()[1]}") as proxy,
        tempfile.TemporaryDirectory() as directory,
    ):
        port = reserved.getsockname()[1]
        log = Path(directory) / "output.log"
        cluster = uuid.uuid4().hex
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    _broker._find_binary(),
                    "broker",
                    *("--cluster-id", cluster),
                    *("--listener-url", f"tcp://{HOST}:{port}"),
                    *("--advertised-listener-url", f"tcp://{proxy.address}"),
                    *("--storage-engine", "memory://tansu/"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={name: os.environ[name] for name in _broker.INHERITED if name in os.environ},
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + _PATIENCE
            while not _answers(port, cluster.encode()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the broker did not come up:\n{log.read_text()}")
                time.sleep(0.005)
            yield proxy
        finally:
            process.kill()
            process.wait()


def _answers(port: int, cluster: bytes) -> bool:
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((HOST, port), timeout=0.25) as connection,
    ):
        connection.sendall(_broker._METADATA_REQUEST)
        while cluster not in answer and (more := connection.recv(1_000)):
            answer += more
    return cluster in answer
