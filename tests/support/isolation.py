"""Records forbidden actions of a unit test: to use the network, start a process, or sleep.

This module replaces the functions for these actions, for all threads. An audit hook would notice
more, but on Python 3.11 it breaks coverage. Each new thread sets its trace function, which calls
the hook. It fails if another thread does the same meanwhile, and the new thread ends at once.

The actions of C code are not recorded: uvloop and librdkafka create their sockets there. The tests
that run on uvloop also run on asyncio.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import socket
import subprocess
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

#: The objects with these functions, the objects' names in a recording, and the functions' names.
FORBIDDEN: Final[tuple[tuple[Any, str, tuple[str, ...]], ...]] = (
    (socket.socket, "socket", ("bind", "connect", "connect_ex", "sendmsg", "sendto")),
    (socket, "socket", ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex")),
    (os, "os", ("fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile", "system")),
    (subprocess.Popen, "subprocess.Popen", ("__init__",)),
)
TESTS: Final = Path(__file__).parents[1]
PROJECT: Final = TESTS.parent

#: The current recordings. A test of this module has its own recording inside that of its fixture.
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
    # Once for the whole process, because other modules may keep references to the functions.
    for owner, prefix, names in FORBIDDEN:
        for name in names:
            if hasattr(owner, name):
                _replace(owner, name, f"{prefix}.{name}".removesuffix(".__init__"))
    for module in (anyio, asyncio, time, trio):
        _replace_sleep(module)


def _replace(owner: Any, name: str, event: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def recording(*args: Any, **kwargs: Any) -> Any:
        if _recordings:
            frame = sys._getframe(1)
            if not _is_in_socketpair(frame):
                _recordings[-1].append(f"{event}: {_place(frame)}")
        return original(*args, **kwargs)

    setattr(owner, name, recording)


def _replace_sleep(module: Any) -> None:
    original = module.sleep

    @functools.wraps(original)
    def sleep(delay: float, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        # The product's own timers are allowed: tests control them with a clock.
        counts = module is time or Path(frame.f_code.co_filename).is_relative_to(TESTS)
        if _recordings and counts and 0 < delay < math.inf:
            _recordings[-1].append(f"{module.__name__}.sleep({delay:g}): {_place(frame)}")
        return original(delay, *args, **kwargs)

    module.sleep = sleep


def _place(frame: FrameType) -> str:
    """Find the innermost line of the project's own code, or of any code in a thread without it."""
    inner: FrameType | None = frame
    while inner is not None:
        path = Path(inner.f_code.co_filename)
        if path.is_relative_to(PROJECT) and not path.is_relative_to(sys.prefix):
            return f"{path.relative_to(PROJECT)}:{inner.f_lineno}"
        inner = inner.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_in_socketpair(frame: FrameType | None) -> bool:
    """Whether these are the two sockets that wake up an event loop. Windows has no socket pairs, so
    Python connects them through a port there."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == socket.__file__ and code.co_name.endswith("socketpair"):
            return True
        frame = frame.f_back
    return False
