"""The file of records that were not delivered: JSON Lines that ``produce`` can read again.

A line contains the whole record and the reason for the failure, and says whether the record may be
in the log anyway. Bytes are text if they are UTF-8, otherwise ``{"base64": "..."}``. A line of
input that could not be read as a record is under ``input``, unchanged.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from .. import DeliveryError, Persistence, ProducerRecord
from ._streams import emit

__all__ = ["FailedFile", "Failure", "Unreadable", "dump", "load"]

#: Errors of a pipe or a device that cannot be synchronized with a disk.
_NOT_SYNCED: Final = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)

#: The parts of a record that are numbers.
_NUMBERS: Final = ("partition", "timestamp_ms")


class Unreadable(Exception):
    """Some input is not a record; the message says why.

    Attributes:
        given: the original input, if the line that was read is from a failed file and only quotes
            it; otherwise None.
    """

    def __init__(self, message: str, given: bytes | None = None) -> None:
        super().__init__(message)
        self.given: bytes | None = given


class Failure(NamedTuple):
    """One record that was not delivered, or some input that is not a record."""

    source: str
    """The name of the input."""
    line: int
    """The line that it began on, from 1."""
    what: ProducerRecord[Any, Any] | bytes
    """The record, or the input."""
    reason: str
    error: str
    """The name of the error's class."""
    persistence: Persistence

    @classmethod
    def of(cls, source: str, line: int, error: DeliveryError) -> Failure:
        """The failure that an error describes."""
        name = type(error).__name__
        return cls(source, line, error.record, str(error), name, error.persistence)


def dump(failure: Failure) -> bytes:
    """A failure as a line."""
    entry: dict[str, Any]
    if isinstance(failure.what, bytes):
        entry = {"input": _as_json(failure.what)}
    else:
        record = failure.what
        entry = {
            "topic": record.topic,
            "partition": record.partition,
            "timestamp_ms": record.timestamp_ms,
            "key": _as_json(record.key),
            "value": _as_json(record.value),
            "headers": [[name, _as_json(content)] for name, content in record.headers],
        }
    entry |= {
        "reason": failure.reason,
        "error": failure.error,
        "persistence": failure.persistence.value,
        "source": failure.source,
        "line": failure.line,
    }
    try:
        return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in an error's words or a header's name
        return json.dumps(entry).encode() + b"\n"


def load(line: bytes, topic: str | None) -> ProducerRecord[Any, Any]:
    """The record of a line.

    Args:
        line: a line that :func:`dump` made.
        topic: replaces the topic in the line, unless it is None.

    Raises:
        Unreadable: it is not such a line, or it was not a record in the first place.
    """
    try:
        # Decoded here, because json would also try UTF-16 and UTF-32.
        entry: Any = json.loads(line.decode())
    except ValueError as error:  # of JSON, and of UTF-8
        raise Unreadable(f"not JSON: {error}") from None
    except RecursionError:
        raise Unreadable("the JSON is nested too deeply") from None
    if not isinstance(entry, dict):
        raise Unreadable("not a JSON object")
    entry = cast("dict[str, Any]", entry)
    if "input" in entry:
        raise Unreadable(
            str(entry.get("reason", "it was not a record before")),
            _as_bytes("input", entry["input"]),
        )
    topic = entry.get("topic") if topic is None else topic
    if not isinstance(topic, str):
        raise Unreadable("'topic' is not text")
    for name in _NUMBERS:
        number = entry.get(name)
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise Unreadable(f"{name!r} is not a whole number")
    return ProducerRecord(
        topic,
        _as_bytes("value", entry.get("value")),
        _as_bytes("key", entry.get("key")),
        partition=entry.get("partition"),
        timestamp_ms=entry.get("timestamp_ms"),
        headers=_headers(entry.get("headers", [])),
    )


def _headers(given: Any) -> list[tuple[str, bytes]]:
    headers: list[tuple[str, bytes]] = []
    for header in cast("Any", given if isinstance(given, list) else [given]):
        match header:
            case [str() as name, content] if content is not None:
                _as_bytes("headers", name)
                headers.append((name, cast("bytes", _as_bytes("headers", content))))
            case _:
                raise Unreadable("'headers' is not a list of pairs of a name and a value")
    return headers


def _as_json(content: bytes | None) -> Any:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _as_bytes(name: str, given: Any) -> bytes | None:
    match given:
        case None:
            return None
        case str():
            with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
                return given.encode()
        case {"base64": str() as encoded}:
            with contextlib.suppress(ValueError):
                return base64.b64decode(encoded, validate=True)
        case _:
            pass
    raise Unreadable(f'{name!r} is neither text, nor null, nor {{"base64": "..."}}')


def _dump_anyway(failure: Failure) -> bytes:
    """A failure as a line, whatever its content."""
    try:
        return dump(failure)
    except Exception as error:  # noqa: BLE001  # each failure must reach the file
        reason = f"{failure.reason} (written as text because of {type(error).__name__}: {error})"
        return dump(failure._replace(what=repr(failure.what).encode(), reason=reason))


#: The flags to open the file with. No system has all of them.
_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


def _open(path: Path) -> tuple[int, bool]:
    """Open the file to append to it, and create it if there is none.

    Records may be secret, and other users may write to the directory, for example /tmp. So only the
    user may read a file that is created here. A symbolic link is not followed, because it may lead
    to any other file of the user. Opening a FIFO would wait for a reader, so the file is opened in
    non-blocking mode.

    Returns:
        The descriptor, and whether the file was created.
    """
    created = True
    try:
        handle = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        created = False
        try:
            handle = os.open(path, _FLAGS)
        except OSError as error:
            if path.is_symlink():
                raise FileExistsError(
                    f"{path} is a symbolic link, which is not followed: name the file itself, or "
                    "another file"
                ) from None
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "no process reads from this FIFO") from None
            raise
    if sys.platform != "win32":  # pragma: no branch
        # From here on, writing waits for a slow reader.
        os.set_blocking(handle, True)
    return handle, created


class FailedFile:
    """The file of failed records. Its methods block.

    It is opened before anything is sent, so that failures have somewhere to go, and is deleted at
    the end if nothing failed.

    Args:
        path: its name.

    Raises:
        FileExistsError: the file exists and is not empty, or the name is that of a symbolic link.
        OSError: the file cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        """The number of failures in the file."""
        self.spilt = 0
        """The number of failures that went to standard error, because the file accepted no more."""
        self.error: OSError | None = None
        """The reason why failures that were written may be lost."""
        self._unwritten: list[bytes] = []
        handle, self._is_ours = _open(path)
        # Unbuffered, so that a crash of this process loses nothing that was written.
        self._file = open(handle, "ab", buffering=0)  # noqa: PTH123, SIM115  # a descriptor
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            self._file.close()
            raise FileExistsError(
                f"{path} exists and is not empty: name another file for the failures of this run"
            )

    @property
    def lost(self) -> int:
        """The number of failures that neither the file nor standard error has accepted yet."""
        return len(self._unwritten)

    def write(self, failures: Iterable[Failure]) -> None:
        """Write all of these before returning. If the file accepts no more, they go to standard
        error. If that fails, too, they are kept, and the next call tries again."""
        lines = self._unwritten + [_dump_anyway(failure) for failure in failures]
        data = b"".join(lines)
        done = 0
        try:
            while done < len(data):
                # A disk that is almost full may accept only a part.
                done += self._file.write(memoryview(data)[done:])
        except OSError as error:
            # Whole lines; the file does not keep half of one.
            whole = data.rfind(b"\n", 0, done) + 1
            self._cut(done - whole)
            self._spill(data[whole:], error)
            done = whole
        else:
            self._unwritten = []
        self.written += data.count(b"\n", 0, done)

    def _cut(self, count: int) -> None:
        """Remove the last bytes of the file."""
        if count:
            with contextlib.suppress(OSError):  # not a file on a disk
                self._file.truncate(self._file.seek(0, os.SEEK_END) - count)

    def _spill(self, data: bytes, error: OSError) -> None:
        notice = (
            f"anyio-sendproducer: {self.path} can't be written to ({error.strerror}); the other "
            "failures follow:\n"
        )
        lines = data.splitlines(keepends=True)  # JSON escapes all ends of lines within
        if emit(sys.stderr, notice) is None and emit(sys.stderr, data) is None:
            self._unwritten = []
            self.spilt += len(lines)
        else:
            self._unwritten = lines

    def close(self) -> None:
        """Try once more to write what could not be written, and close the file.

        Delete it if it is empty and was created here, unless another process has put its own file
        in its place. If this fails after failures were written to the file, ``error`` contains the
        error.
        """
        if self._unwritten:
            self.write([])
        try:
            try:
                found = os.fstat(self._file.fileno())
                self._sync()
            finally:
                self._file.close()
            if self._is_ours and not found.st_size and os.path.samestat(found, self.path.lstat()):
                self.path.unlink()
        except OSError as error:
            if self.written:
                self.error = error

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in _NOT_SYNCED:
                raise
