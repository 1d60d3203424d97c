"""Actions that unit tests must not take are recorded, in every thread."""

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


ACTIONS: list[tuple[Callable[[], None], str]] = [
    (bind, "socket.bind"),
    (connect, "socket.connect"),
    (try_to_connect, "socket.connect_ex"),
    (resolve, "socket.getaddrinfo"),
    (start_a_process, "subprocess.Popen"),
    (sleep, "time.sleep(0.001)"),
]


@pytest.mark.parametrize(("action", "event"), ACTIONS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_each_action_is_recorded(action: Callable[[], None], event: str, elsewhere: bool) -> None:
    with recorded() as events:
        if elsewhere:
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()
        else:
            action()
    assert events
    name, _, place = events[0].partition(": ")
    assert name == event
    assert HERE in place


async def test_an_asynchronous_sleep_is_recorded(anyio_backend: str) -> None:
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


async def test_a_checkpoint_and_sleep_forever_are_not_recorded() -> None:
    with recorded() as events:
        await anyio.sleep(waiting.pause)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
    assert events == []


def test_the_sockets_of_an_event_loop_are_not_recorded() -> None:
    with recorded() as events:
        for backend in ("asyncio", "trio"):
            anyio.run(anyio.lowlevel.checkpoint, backend=backend)
    assert events == []


def test_a_sleep_of_zero_seconds_is_not_recorded() -> None:
    with recorded() as events:
        time.sleep(0)
    assert events == []


def test_nothing_is_recorded_after_the_block() -> None:
    with recorded() as outer:
        with recorded() as inner:
            pass
        bind()
    assert inner == []
    assert [event.split(":")[0] for event in outer] == ["socket.bind"]
