"""The log shipper in ``examples/``, in its own process, and its reader of files."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer.testing import EmbeddedBroker, embedded_broker
from examples import log_shipper
from tests.support.example_process import SOON, Example, read, running, until_true
from tests.support.ports import lasting_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Log:
    """A log file, and the lines that were written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[bytes] = []
        self._rotated = 0

    def write(self, count: int, padding: int = 0) -> None:
        with self.path.open("ab") as file:
            for _ in range(count):
                line = b"line %d%s" % (len(self.written), b"." * padding)
                self.written.append(line)
                file.write(line + b"\n")

    def write_part(self, part: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(part)

    def rotate(self) -> None:
        """Rename the files as logrotate does: app.log.1 is the newest one."""
        for number in range(self._rotated, 0, -1):
            Path(f"{self.path}.{number}").rename(f"{self.path}.{number + 1}")
        self.path.rename(f"{self.path}.1")
        self._rotated += 1
        # Two rotations need different times, and the clock of a file system may be coarse.
        os.utime(f"{self.path}.1", (self._rotated, self._rotated))


@asynccontextmanager
async def shipping(
    log: Log, broker: EmbeddedBroker | str, backend: str, **settings: str
) -> AsyncGenerator[Example, None]:
    env = {"LOGS_BOOTSTRAP_SERVERS": str(broker), **settings}
    async with running("log_shipper.py", log.path, "--backend", backend, env=env) as example:
        yield example


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "app.log")


async def shipped(broker: EmbeddedBroker | str) -> list[bytes | None]:
    return [one.value for one in await read(broker, "app-log")]


async def count_shipped(broker: EmbeddedBroker) -> int:
    return len(await shipped(broker))


async def until_shipped(broker: EmbeddedBroker, lines: Sequence[bytes]) -> None:
    await until_true(partial(shipped, broker), lambda found: found == lines)


async def test_lines_are_shipped_in_order_across_rotations_and_restarts(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("0 shipped")
        log.write(500)  # this creates the file
        await until_shipped(broker, log.written)
        log.write(100)
        log.rotate()
        log.write(100)
        log.rotate()
        log.write(100)
        await until_shipped(broker, log.written)
        # The file is copied and truncated.
        log.path.write_bytes(b"")
        await example.line("was truncated")
        log.write(100)
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0

    # The file is rotated while no shipper runs.
    log.write(50)
    log.rotate()
    log.write(50)
    log.rotate()
    log.write(50)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0


async def test_ctrl_c_ships_the_lines_that_were_read(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        broker.pause()
        log.write(1_000)
        await example.line("100 shipped, [1-9][0-9]* in flight")
        example.interrupt()
        broker.resume()
        assert await example.code(within=SOON) == 0
    first = await shipped(broker)
    assert len(first) > 100
    assert first == log.written[: len(first)]

    async with shipping(log, broker, anyio_backend_name) as example:
        # The shipper ended in order, so each line is in the topic once.
        await example.line("[0-9] shipped")
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0


async def test_no_line_is_lost_if_the_shipper_is_killed(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    held = 0
    for _ in range(3):
        log.write(2_000)
        async with shipping(log, broker, anyio_backend_name) as example:
            await until_true(partial(count_shipped, broker), held.__lt__)
            example.send(signal.SIGKILL)
            assert await example.code(within=SOON) == -signal.SIGKILL
        held = await count_shipped(broker)
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("[0-9] shipped")
        await until_true(partial(shipped, broker), set(log.written).issubset)
        example.interrupt()
        assert await example.code(within=SOON) == 0
    # After each restart, the topic may repeat earlier lines, but it never skips a line.
    numbers = [int((value or b"").split()[1]) for value in await shipped(broker)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(numbers))


async def test_the_shipper_continues_after_a_restart_of_the_broker(
    log: Log, anyio_backend_name: str
) -> None:
    settings = {"LOGS_DELIVERY_TIMEOUT": "4", "LOGS_START_TIMEOUT": "0.5"}
    port = lasting_port()
    log.write(200)
    async with shipping(log, f"127.0.0.1:{port}", anyio_backend_name, **settings) as example:
        await example.line(rf"127\.0\.0\.1:{port}")  # no broker runs yet
        async with embedded_broker(port=port) as broker:
            await until_shipped(broker, log.written)
            before = len(log.written)
            await broker.kill()
            log.write(300)
            await example.line("retry after the last line that is in Kafka")
        async with embedded_broker(port=port) as broker:
            log.write(300)
            await until_true(partial(shipped, broker), set(log.written[before:]).issubset)
            example.interrupt()
            assert await example.code(within=SOON) == 0
            assert log.written[-1] == (await shipped(broker))[-1]


async def test_a_second_ctrl_c_ends_the_shipper_without_a_broker(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name, LOGS_CANCEL_TIMEOUT="0.5") as example:
        await until_shipped(broker, log.written)
        broker.pause()
        log.write(100)
        await example.line("shipped, [1-9][0-9]* in flight")
        example.interrupt()
        # Without this wait, the process could see both signals as one.
        await example.line("shipping the lines that were read")
        example.interrupt()
        assert await example.code(within=SOON) == 0
        broker.resume()
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("[0-9] shipped")
        await until_true(partial(shipped, broker), set(log.written).issubset)
        example.interrupt()
        assert await example.code(within=SOON) == 0


def resident_megabytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory from /proc")
async def test_the_shipper_stops_reading_if_the_producer_is_full(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        before = resident_megabytes(example.pid)
        broker.pause()
        log.write(600, padding=100_000)  # 60 MB
        # The shipper logs the number whenever it has changed, until the producer is full.
        await example.line("100 shipped, 8[0-9] in flight")
        assert resident_megabytes(example.pid) - before < 40


ACTIONS = st.lists(
    st.one_of(
        st.sampled_from(["rotate", "truncate", "read", "read all", "restart"]),
        st.text("ab\n", min_size=1, max_size=6),
    ),
    max_size=30,
)


@given(ACTIONS)
def test_a_follower_reads_each_line_once(actions: list[str]) -> None:
    """The actions write, rotate and truncate the file, and restart the follower, in any order."""
    with tempfile.TemporaryDirectory() as directory:
        log = Log(Path(directory, "app.log"))
        place: log_shipper.Place | None = None
        follower = log_shipper.Follower(log.path, place)
        # At its first start, the follower reads the current file.
        written, found = b"first\n", list[bytes]()
        log.write_part(written)

        def read_some() -> bool:
            nonlocal place
            lines = follower.read()
            found.extend(line.text for line in lines)
            if lines:
                place = lines[-1].behind
            return bool(lines)

        def read_all() -> None:
            while read_some():
                pass

        read_all()
        for action in actions:
            if action == "rotate" and log.path.exists():
                log.rotate()
            elif action == "truncate" and log.path.exists():
                # Lines that are unread at the truncation would be lost. Until the follower has read
                # a new line, its place refers to the old content.
                read_all()
                log.path.write_bytes(b"")
                read_all()
                log.write_part(b"anew\n")
                written += b"anew\n"
                read_all()
            elif action == "read":
                read_some()
            elif action == "read all":
                read_all()
            elif action == "restart":
                follower.close()
                follower = log_shipper.Follower(log.path, place)
            elif action not in {"rotate", "truncate"}:
                line = action.replace("\n", "|").encode() + b"\n"
                log.write_part(line)
                written += line
        read_all()
        follower.close()
        assert found == written.split(b"\n")[:-1]


def test_a_follower_waits_for_the_end_of_a_line_and_cuts_a_long_line(log: Log) -> None:
    follower = log_shipper.Follower(log.path, None)
    assert follower.read() == []
    log.write_part(b"half")
    assert follower.read() == []
    log.write_part(b" and half\n")
    [line] = follower.read()
    assert line.text == b"half and half"
    assert line.behind.offset == len("half and half\n")
    long = bytes(2_000_000)
    log.write_part(long + b"\n")
    pieces: list[log_shipper.Line] = []
    while more := follower.read():
        pieces += more
    assert b"".join(piece.text for piece in pieces) == long
    assert max(len(piece.text) for piece in pieces) <= log_shipper.MAX_LINE + log_shipper.CHUNK
    # After a rotation, the rest of the old file is a line, although it has no line break.
    log.write_part(b"never ended")
    assert follower.read() == []
    log.rotate()
    log.write_part(b"next\n")
    texts = [line.text for _ in range(2) for line in follower.read()]
    assert texts == [b"never ended", b"next"]
    follower.close()
