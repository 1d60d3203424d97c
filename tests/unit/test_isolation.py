"""What unit tests must not do is noticed, from whichever thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import trio

from tests.support import waiting
from tests.support.isolation import recorded

HERE = Path(__file__).name


def bind() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def connect() -> None:
    with socket.socket() as one, contextlib.suppress(OSError):
        one.connect(("127.0.0.1", 0))


def try_to_connect() -> None:
    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 0))


def resolve() -> None:
    socket.getaddrinfo("127.0.0.1", 9092)


def start_a_process() -> None:
    subprocess.run([sys.executable, "--version"], check=True, capture_output=True)


def sleep() -> None:
    time.sleep(0.001)


DEEDS: list[tuple[Callable[[], None], str]] = [
    (bind, "socket.bind"),
    (connect, "socket.connect"),
    (try_to_connect, "socket.connect_ex"),
    (resolve, "socket.getaddrinfo"),
    (start_a_process, "subprocess.Popen"),
    (sleep, "time.sleep(0.001)"),
]


@pytest.mark.parametrize(("deed", "event"), DEEDS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_it_is_recorded(deed: Callable[[], None], event: str, elsewhere: bool) -> None:
    with recorded() as events:
        if elsewhere:
            thread = threading.Thread(target=deed)
            thread.start()
            thread.join()
        else:
            deed()
    assert events
    name, _, place = events[0].partition(": ")
    assert name == event
    assert HERE in place


async def test_a_sleep_of_the_loop_is_recorded(anyio_backend: str) -> None:
    with recorded() as events:
        await anyio.sleep(0.001)
        if anyio_backend == "asyncio":
            await asyncio.sleep(0.001)
        else:
            await trio.sleep(0.001)
    assert [event.split(":")[0] for event in events] == [
        "anyio.sleep(0.001)",
        f"{anyio_backend}.sleep(0.001)",
    ]


async def test_a_turn_of_the_loop_and_a_wait_without_end_are_no_sleep() -> None:
    with recorded() as events:
        await anyio.sleep(waiting.pause)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
    assert events == []


def test_the_loops_of_a_test_use_no_socket_of_a_network() -> None:
    with recorded() as events:
        for backend in ("asyncio", "trio"):
            anyio.run(anyio.lowlevel.checkpoint, backend=backend)
    assert events == []


def test_no_time_to_wait_is_no_sleep() -> None:
    with recorded() as events:
        time.sleep(0)
    assert events == []


def test_outside_of_the_block_nothing_is_recorded() -> None:
    with recorded() as outer:
        with recorded() as inner:
            pass
        bind()
    assert inner == []
    assert [event.split(":")[0] for event in outer] == ["socket.bind"]
