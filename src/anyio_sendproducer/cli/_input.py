"""Input of any length, a piece at a time.

A file descriptor is read where that does not wait: what may wait, a pipe or a terminal, is first
waited for by the event loop, which can be told to stop. One call on a thread reads a piece and
makes records of all of it.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from ._parsing import LONGEST, Chunk, InputError, Layout, fail_lines, parser_for

__all__ = ["Input", "size_of"]

#: Bytes read in one go: some thousand records, which pay for the way to a thread and back.
_PIECE: Final = 256 * 1024

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def size_of(names: Sequence[str]) -> int | None:
    """How many bytes there are in all; None where that can't be known, as of a pipe."""
    total = 0
    for name in names:
        try:
            found = os.fstat(0) if name == "-" else Path(name).stat()
        except OSError:  # whoever reads it will say so
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total


class Input:
    """One input: a file, a pipe, or standard input.

    What a pipe has given is not in the pipe any more. So whatever ends the reading, bytes that have
    not become records come out as failures; see :meth:`leftover`.

    Args:
        name: a path, or ``-`` for standard input.
        layout: what is in it.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = "standard input" if name == "-" else name
        self._path = None if name == "-" else name
        self._parser = parser_for(layout)
        self._is_text = layout.is_text
        self._has_begun = False
        self._descriptor = 0
        self._is_file = False
        self._waits = False
        self._rest = bytearray()
        self._made: list[Chunk] = []
        self._next = 1
        self._position = 0
        self._waiting: anyio.CancelScope | None = None
        self._stopped = False
        self.ended = False
        """Whether it was read to its end."""

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """What is in it, in order.

        Raises:
            InputError: it can't be read, or not on.
        """
        failure: InputError | None = None
        try:
            await anyio.to_thread.run_sync(self._open)
            try:
                while not self.ended and not self._stopped:
                    await self._read_on()
                    while self._made:
                        yield self._made.pop(0)
            finally:
                if self._path is not None:
                    os.close(self._descriptor)
        except InputError as error:
            failure = error
        except OSError as error:
            failure = InputError(f"{self.name} can't be read: {error.strerror}")
            failure.__cause__ = error
        for chunk in self.leftover():
            yield chunk
        if failure is not None:
            raise failure

    def leftover(self) -> list[Chunk]:
        """Take what was read from a pipe, and was not given out: records, then failures. A file
        has the lines behind these still."""
        chunks, self._made = self._made, []
        if self._rest and not self._is_file:
            chunk = Chunk(self.name, position=self._position)
            reason = "the end of the line was not read"
            if not self._stopped:
                reason = "the reading stopped here"
            self._next += fail_lines(chunk, bytes(self._rest), self._next, reason)
            self._rest.clear()
            chunk.last = self._next - 1
            chunks.append(chunk)
        return chunks

    def _open(self) -> None:
        if self._path is not None:
            # To open a FIFO waits for whoever writes to it; the event loop can do that as well.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._waits = not self._is_file

    async def _read_on(self) -> None:
        if self._waits:
            with anyio.CancelScope() as self._waiting:
                await self._wait()
        if not self._stopped:
            # A pipe gives a piece once, so this is not interrupted.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._step)

    async def _wait(self) -> None:
        try:
            await anyio.wait_readable(self._descriptor)
        except OSError:
            # Some devices can't be waited for, /dev/null for one: reading them does not wait.
            self._waits = False

    def _step(self) -> None:
        """Read a piece, and make records of the lines that there are by now."""
        try:
            piece = os.read(self._descriptor, _PIECE)
        except BlockingIOError:  # somebody else who reads from it was faster
            return
        self._rest += piece
        self._position += len(piece)
        if not piece:
            if self._rest:
                self._parse(is_last=True)
            self.ended = True
        elif any(end in piece for end in self._parser.line_ends):
            self._parse(is_last=False)
        if len(self._rest) > LONGEST:
            raise InputError(f"{self.name}, line {self._next}: longer than {LONGEST / 2**20:g} MiB")

    def _parse(self, *, is_last: bool) -> None:
        if not self._has_begun:
            self._begin()
        data = bytes(self._rest)
        chunk = Chunk(self.name, position=self._position)
        try:
            lines, used = self._parser.parse(data, self._next, chunk, is_last=is_last)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001  # a fault in the code must not lose these lines
            chunk = Chunk(self.name, position=self._position)
            used = len(data) if is_last else data.rfind(b"\n") + 1
            lines = fail_lines(chunk, data[:used], self._next, error)
        del self._rest[:used]
        self._next += lines
        chunk.last = self._next - 1
        if lines:
            self._made.append(chunk)

    def _begin(self) -> None:
        """Look at the first bytes of text."""
        self._has_begun = True
        if not self._is_text:
            return
        if self._rest.startswith(_UTF16):
            raise InputError(
                f"{self.name} is UTF-16, and UTF-8 is expected: convert it, for example with "
                "iconv -f UTF-16 -t UTF-8"
            )
        if self._rest.startswith(codecs.BOM_UTF8):
            del self._rest[: len(codecs.BOM_UTF8)]
