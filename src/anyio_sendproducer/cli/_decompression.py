"""Files that are compressed with gzip or Zstandard.

Zstandard needs ``zstandard`` (extra ``compression``).
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from typing import Any, Final

from ._chunks import InputError

__all__ = ["COMPRESSION", "ZSTANDARD", "decompressing"]

#: How to install zstandard.
COMPRESSION: Final = 'pip install ".[compression]" in a checkout of anyio-sendproducer'

#: The end of the name of a file that needs zstandard.
ZSTANDARD: Final = ".zst"

#: Bytes that are read, and that are decompressed, at a time. Zstandard has no limit for its output,
#: so a small step bounds it: a block of 4 bytes can become 128 KiB.
_READ: Final = 64 * 1024
_STEP: Final = 1024


def decompressing(name: str, descriptor: int) -> Callable[[int], bytes] | None:
    """A function that reads the content of a compressed file.

    Args:
        name: the file's name. Its suffix shows how the file is compressed.
        descriptor: the open file.

    Returns:
        A function that takes a number of bytes, and returns about that many bytes of the content;
        none at the end. It raises :exc:`InputError` if the file is damaged. None if the file is not
        compressed.
    """
    if name.endswith(".gz"):
        return _reading_gzip(name, descriptor)
    if name.endswith(ZSTANDARD):
        return _Zstandard(name, descriptor).read
    return None


def _damaged(name: str, reason: object) -> InputError:
    return InputError(
        f"{name} can't be decompressed: {reason}. If the file is not compressed, pass it on "
        "standard input"
    )


def _reading_gzip(name: str, descriptor: int) -> Callable[[int], bytes]:
    file = gzip.GzipFile(fileobj=open(descriptor, "rb", buffering=0, closefd=False))  # noqa: SIM115

    def read(count: int) -> bytes:
        try:
            return file.read1(count)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(name, error) from error

    return read


class _Zstandard:
    """Reads frames of Zstandard, one after the other."""

    def __init__(self, name: str, descriptor: int) -> None:
        import zstandard

        self._name = name
        self._descriptor = descriptor
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._errors = zstandard.ZstdError
        self._frame: Any = None
        self._compressed = b""

    def read(self, count: int) -> bytes:
        """Read about ``count`` bytes of the content; none at the end."""
        content = bytearray()
        while len(content) < count:
            if not self._compressed:
                self._compressed = os.read(self._descriptor, _READ)
                if not self._compressed:
                    break
            step, self._compressed = self._compressed[:_STEP], self._compressed[_STEP:]
            try:
                if self._frame is None:
                    self._frame = self._new_frame()
                content += self._frame.decompress(step)
            except self._errors as error:
                raise _damaged(self._name, error) from error
            if self._frame.eof:
                self._compressed = self._frame.unused_data + self._compressed
                self._frame = None
        if not content and self._frame is not None:
            raise _damaged(self._name, "the file ends too early")
        return bytes(content)
