"""Reads input of any length in pieces.

The event loop waits until a pipe or a terminal has data, because this wait can be cancelled.
Then one call on a thread reads a piece and makes records of it.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from ._chunks import LONGEST, Chunk, InputError, Layout, fail_lines
from ._decompression import decompressing
from ._parsing import parser_for

__all__ = ["Input", "size_of"]

#: Bytes that are read at a time: a few thousand records, so that switching threads costs little.
_PIECE: Final = 256 * 1024

#: Byte order marks. One of UTF-32 begins with one of UTF-16, so it comes first.
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

#: Which bytes of an ASCII character are not NUL. JSON and most CSV begin with such a character. The
#: pattern of UTF-32LE begins with that of UTF-16LE, so it comes first.
_ASCII_CHARACTER: Final = {
    b"\1\0\0\0": "UTF-32LE",
    b"\0\0\0\1": "UTF-32BE",
    b"\1\0": "UTF-16LE",
    b"\0\1": "UTF-16BE",
}


def size_of(names: Sequence[str]) -> int | None:
    """The number of bytes of all inputs; None if it is unknown, as for a pipe."""
    total = 0
    for name in names:
        try:
            found = os.fstat(0) if name == "-" else Path(name).stat()
        except OSError:  # the error is reported when it is read
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        total += found.st_size
    return total


class Input:
    """One input: a file, a pipe, or standard input.

    Bytes that were read from a pipe are not in the pipe any more. So, however the reading ends,
    those that have not become records become failures; see :meth:`leftover`.

    Args:
        name: a path, or ``-`` for standard input.
        layout: the format of the input.

    Attributes:
        name: the input's name in messages.
        ended: whether it was read to its end.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = "standard input" if name == "-" else name
        self._path = None if name == "-" else name
        self._layout = layout
        self._parser = parser_for(layout)
        self._decompress: Callable[[int], bytes] | None = None
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

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """The chunks of the input, in order.

        Raises:
            InputError: the input, or the rest of it, cannot be read.
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
        """Take the chunks that were read and not yielded, with a chunk of failures at the end. The
        following lines of a file are still in the file, so they do not become failures."""
        chunks, self._made = self._made, []
        if self._rest and not self._is_file:
            chunk = Chunk(self.name, position=self._position)
            reason = "the end of the line was not read"
            if not self._stopped:
                reason = "the command stopped reading here"
            self._next += fail_lines(self._layout, chunk, bytes(self._rest), self._next, reason)
            self._rest.clear()
            chunk.last = self._next - 1
            chunks.append(chunk)
        return chunks

    def _open(self) -> None:
        if self._path is not None:
            # Opening a FIFO would wait for a writer. The event loop does that later.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._waits = not self._is_file
        if self._is_file and self._path is not None:
            self._decompress = decompressing(self._path, self._descriptor)

    async def _read_on(self) -> None:
        if self._waits:
            with anyio.CancelScope() as self._waiting:
                await self._wait()
        if not self._stopped:
            # A piece of a pipe can be read only once, so this is not cancelled.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._step)

    async def _wait(self) -> None:
        try:
            await anyio.wait_readable(self._descriptor)
        except OSError:
            # The event loop cannot wait for some devices, such as /dev/null: read without waiting.
            self._waits = False

    def _step(self) -> None:
        """Read a piece, and make records of the complete lines."""
        if self._decompress is not None:
            piece = self._decompress(_PIECE)
            # The progress is that of the compressed file.
            self._position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        else:
            try:
                piece = os.read(self._descriptor, _PIECE)
            except BlockingIOError:  # another process has read it
                return
            self._position += len(piece)
        self._rest += piece
        if not piece:
            if self._rest:
                self._parse(is_last=True)
            self.ended = True
        elif any(end in piece for end in self._parser.line_ends):
            self._parse(is_last=False)
        if len(self._rest) > LONGEST:
            raise InputError(
                f"{self.name}, line {self._next}: the line is longer than {LONGEST / 2**20:g} MiB"
            )

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
            _, used = self._layout.split(data, is_last=is_last)
            lines = fail_lines(self._layout, chunk, data[:used], self._next, error)
        del self._rest[:used]
        self._next += lines
        chunk.last = self._next - 1
        if lines:
            self._made.append(chunk)

    def _begin(self) -> None:
        """Examine the first bytes."""
        self._has_begun = True
        encoding = _wide_encoding(bytes(self._rest[:_PIECE]), self._layout)
        if encoding:
            raise InputError(
                f"{self.name} is {encoding}, and UTF-8 is expected: convert it, for example with "
                f"iconv -f {encoding} -t UTF-8"
            )
        if self._layout.is_text and self._rest.startswith(codecs.BOM_UTF8):
            del self._rest[: len(codecs.BOM_UTF8)]


def _wide_encoding(data: bytes, layout: Layout) -> str:
    """The encoding of input in UTF-16 or UTF-32; empty if it is neither."""
    if not layout.has_usual_lines and not layout.is_text:
        return ""
    for mark, encoding in _MARKS.items():
        # Lines can be binary, but a line feed in one of these encodings has a NUL.
        if data.startswith(mark) and (layout.is_text or b"\0" in data):
            return encoding
    if layout.format in {"jsonl", "csv", "failed"}:
        first = bytes(byte != 0 for byte in data[:4])
        for pattern, encoding in _ASCII_CHARACTER.items():
            if first.startswith(pattern):
                return encoding
    return ""
