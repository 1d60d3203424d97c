"""Runs the programs in ``examples/`` as a user would, each in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream
from anyio.to_thread import run_sync

from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.calls import task_group
from tests.support.history import Logged, read_topic
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE

__all__ = ["EXAMPLES", "SOON", "Example", "read", "running", "until_true"]

T = TypeVar("T")

EXAMPLES: Final = ROOT / "examples"

#: Seconds for an exit that waits for nothing. It takes a fraction of that.
SOON: Final = 20.0

#: As in pyproject.toml: a warning is an error, except for the import of kafka-python.
WARNINGS: Final = (
    *("-W", "error"),
    *("-W", "ignore:read_text is deprecated:DeprecationWarning"),
    *("-W", "ignore:open_text is deprecated:DeprecationWarning"),
)

#: Python's own reports of errors, which must not appear on stderr.
TROUBLE: Final = ("Traceback", "Exception ignored", "Warning:", "never awaited", "never retrieved")


class Example:
    """A running program, and its output so far."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        self._ended = anyio.Event()
        self._changed = anyio.Event()
        self.printed: list[str] = []
        self._errors: list[str] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    @property
    def errors(self) -> str:
        """The text of stderr."""
        return "".join(self._errors)

    async def line(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until a line on stdout or stderr matches.

        Args:
            pattern: a regular expression that is found somewhere in the line.
            after: the number of lines to skip, from an earlier ``len(example.printed)``.
        """
        with anyio.move_on_after(PATIENCE):
            while True:
                ended, changed = self._ended.is_set(), self._changed
                for line in self.printed[after:]:
                    found = re.search(pattern, line)
                    if found is not None:
                        return found
                assert not ended, f"it has ended, without {pattern!r}:\n{''.join(self.printed)}"
                await changed.wait()
        raise AssertionError(f"no line like {pattern!r}:\n{''.join(self.printed)}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """Interrupt it, like Ctrl-C."""
        self.send(signal.SIGINT)

    async def code(self, *, within: float = PATIENCE, quiet: bool = True) -> int:
        """Wait until it has ended, and return its exit code.

        Args:
            within: the limit in seconds.
            quiet: whether stderr must have no report of an error.
        """
        with anyio.move_on_after(within):
            await self._ended.wait()
            code = self._process.returncode
            assert code is not None
            for word in TROUBLE if quiet else ():
                assert word not in self.errors, self.errors
            return code
        raise AssertionError(f"it goes on after {within} s:\n{''.join(self.printed)}")

    async def _read(self, stream: anyio.abc.ByteReceiveStream, lines: list[str]) -> None:
        rest = ""
        async for text in TextReceiveStream(stream, errors="replace"):
            *whole, rest = (rest + text).split("\n")
            self._take([f"{line}\n" for line in whole], lines)
        self._take([rest] if rest else [], lines)

    def _take(self, new: list[str], lines: list[str]) -> None:
        lines += new
        self.printed += new
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _watch(self) -> None:
        async with anyio.create_task_group() as tasks:
            assert self._process.stdout is not None
            assert self._process.stderr is not None
            tasks.start_soon(self._read, self._process.stdout, list[str]())
            tasks.start_soon(self._read, self._process.stderr, self._errors)
            await self._process.wait()
        self._ended.set()
        self._take([], [])


@asynccontextmanager
async def running(
    program: str | Path, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Example, None]:
    """Run an example, or a program that runs one, until the block ends at the latest.

    Args:
        program: its name in ``examples/``, or its path.
        arguments: its arguments.
        env: variables, besides those of this process.
    """
    command = [sys.executable, *WARNINGS, str(EXAMPLES / program), *map(str, arguments)]
    process = await anyio.open_process(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        # In its own session, so that the terminal's Ctrl-C does not reach it.
        start_new_session=True,
    )
    example = Example(process)
    async with process, task_group() as tasks:
        tasks.start_soon(example._watch)
        try:
            yield example
        finally:
            if process.returncode is None:
                process.kill()


async def until_true(ask: Callable[[], Awaitable[T]], condition: Callable[[T], bool]) -> None:
    """Wait until the answer of another process meets a condition."""
    with anyio.fail_after(PATIENCE):
        while not condition(await ask()):  # noqa: ASYNC110  # another process sets no event
            await anyio.sleep(0.02)


async def read(broker: EmbeddedBroker | str, topic: str) -> list[Logged]:
    """All records of a topic."""
    return await run_sync(partial(read_topic, str(broker), topic))
