"""Records what a unit test must not do: use the network, start a process, or sleep.

Sockets and processes raise audit events, whichever thread uses them. `time.sleep` raises one since
Python 3.13 only, and the sleeps of event loops raise none, so these functions are replaced.

uvloop creates its sockets in C, which raises no events. The tests that run on it run on asyncio as
well.
"""

from __future__ import annotations

import asyncio
import functools
import math
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import anyio
import trio

__all__ = ["recorded"]

FORBIDDEN: Final = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
        "subprocess.Popen",
    }
)
TESTS: Final = Path(__file__).parents[1]
PROJECT: Final = TESTS.parent

#: The recordings under way. A test of this module has one of its own inside that of its fixture.
_recordings: list[list[str]] = []


@contextmanager
def recorded() -> Generator[list[str], None, None]:
    """Collect the events of all threads during the block, each as ``event: file:line``."""
    _install()
    events: list[str] = []
    _recordings.append(events)
    try:
        yield events
    finally:
        _recordings.pop()


@functools.cache
def _install() -> None:
    # Once for the whole process: an audit hook can't be removed.
    sys.addaudithook(_audit)
    for module in (anyio, asyncio, time, trio):
        _replace_sleep(module)


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if _recordings and event in FORBIDDEN:
        frame = sys._getframe(1)
        if not _is_in_socketpair(frame):
            _recordings[-1].append(f"{event}: {_place(frame)}")


def _replace_sleep(module: Any) -> None:
    original = module.sleep

    @functools.wraps(original)
    def sleep(delay: float, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        # The product's own timers are its business: tests have a clock of their own for them.
        counts = module is time or Path(frame.f_code.co_filename).is_relative_to(TESTS)
        if _recordings and counts and 0 < delay < math.inf:
            _recordings[-1].append(f"{module.__name__}.sleep({delay:g}): {_place(frame)}")
        return original(delay, *args, **kwargs)

    module.sleep = sleep


def _place(frame: FrameType) -> str:
    """The innermost line of the project's own code, or of any code in a thread without such."""
    inner: FrameType | None = frame
    while inner is not None:
        path = Path(inner.f_code.co_filename)
        if path.is_relative_to(PROJECT) and not path.is_relative_to(sys.prefix):
            return f"{path.relative_to(PROJECT)}:{inner.f_lineno}"
        inner = inner.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_in_socketpair(frame: FrameType | None) -> bool:
    """Whether these are the two sockets that wake up an event loop: on Windows, which has no
    socket pairs, Python connects them through a port."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == socket.__file__ and code.co_name.endswith("socketpair"):
            return True
        frame = frame.f_back
    return False
