"""Standard output and standard error that never raise.

A terminal goes away, a disk is full, the reader of a pipe ends, an encoding lacks a character: none
of these may end a command before it has accounted for its records. While :func:`steady_streams` is
in effect, a write to ``sys.stdout`` or ``sys.stderr`` by a command, Rich, Click or logging cannot
fail. :func:`emit` reports whether the text arrived.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Generator
from typing import Any, Final, TextIO

__all__ = ["emit", "steady_streams"]

_CLOSED: Final = OSError(errno.EBADF, os.strerror(errno.EBADF))


class _SteadyRaw(io.RawIOBase):
    """Passes bytes to a raw stream and drops the bytes that the stream does not accept.

    Args:
        raw: the stream; None if its descriptor was closed when the process started.

    Attributes:
        error: the last error.
        errors: the number of errors.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError = _CLOSED
        self.errors: int = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation("fileno")
        number: int = self._raw.fileno()
        return number

    def isatty(self) -> bool:
        return self._raw is not None and bool(self._raw.isatty())

    def write(self, data: Any, /) -> int:
        try:
            if self._raw is None:
                raise _CLOSED
            while (count := self._raw.write(data)) is None:
                # Another process has made a shared descriptor non-blocking: wait for room.
                select.select([], [self._raw], [])
        except OSError as error:
            self.error = error
            self.errors += 1
            return len(data)
        return int(count)


@contextlib.contextmanager
def steady_streams() -> Generator[None, None, None]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never raise, for a ``with`` block.

    A stream without a descriptor, such as one that a test captures, stays as it is.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_steady, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Point closed standard descriptors to the null device. Otherwise another file could get such a
    number, and output for the terminal would be written into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Reading from it still fails.
            os.open(os.devnull, os.O_WRONLY)


def _steady(stream: TextIO | None) -> Any:
    if stream is None:
        raw, encoding = None, "utf-8"
    else:
        try:
            stream.fileno()
            stream.flush()
            raw, encoding = getattr(stream.buffer, "raw", stream.buffer), stream.encoding
        except (AttributeError, OSError, ValueError):
            return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_SteadyRaw(raw)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def emit(stream: TextIO, content: str | bytes) -> OSError | ValueError | None:
    """Write to a stream and flush it.

    Returns:
        None if all of it was written; otherwise the error.
    """
    # While a progress bar is shown, Rich replaces sys.stderr by an object with the same `buffer`.
    raw: Any = getattr(getattr(stream, "buffer", None), "raw", None)
    before = getattr(raw, "errors", 0)
    try:
        if isinstance(content, bytes):
            stream.flush()
            stream.buffer.write(content)
            stream.buffer.flush()
        else:
            stream.write(content)
            stream.flush()
    except (OSError, ValueError) as error:
        return error
    return raw.error if getattr(raw, "errors", 0) > before else None
