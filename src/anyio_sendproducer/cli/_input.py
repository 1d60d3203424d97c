"""Input of any length, a piece at a time: bytes into lines, lines into records.

A file descriptor is read where that does not wait: what may wait, a pipe or a terminal, is first
waited for by the event loop, which can be told to stop. One call on a thread reads a piece and
makes records of all of it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime as dt
import json
import math
import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

import anyio
import anyio.to_thread

from .. import Persistence, ProducerRecord
from ._failed import Failure, Unreadable, load

__all__ = ["FORMATS", "Chunk", "Fields", "Input", "InputError", "Layout", "iterate", "size_of"]

FORMATS: Final = ("lines", "jsonl", "csv", "failed")

#: Bytes read in one go: some thousand records, which pay for the way to a thread and back.
_PIECE: Final = 256 * 1024

#: Bytes that a line may have. No broker takes such a record as it comes, and all of a line is held.
LONGEST: Final = 32 * 1024 * 1024

_MISSING: Final = object()
_BOM: Final = b"\xef\xbb\xbf"

AnyRecord = ProducerRecord[Any, Any]


class InputError(Exception):
    """Input can't be read on; the message says where and why."""


class Fields(NamedTuple):
    """Which fields, of JSON or of CSV, become what; None: none does."""

    value: str | None = None
    key: str | None = None
    partition: str | None = None
    timestamp: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    """Pairs of a header's name and a field's."""

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self != NO_FIELDS


#: Nothing of what is read is looked into.
NO_FIELDS: Final = Fields()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How input is to be read, and what all of its records have."""

    format: str = "lines"
    topic: str | None = None
    """May be missing where the format has topics of its own."""
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    key_separator: bytes | None = None
    fields: Fields = NO_FIELDS
    csv_delimiter: str = ","
    csv_columns: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class Chunk:
    """What a piece of input held."""

    source: str
    records: list[AnyRecord] = dataclasses.field(default_factory=list[AnyRecord])
    numbers: Sequence[int] = ()
    """The line that each record began on."""
    failures: list[Failure] = dataclasses.field(default_factory=list[Failure])
    """Input that is no record."""
    last: int = 0
    """The last line that was read."""
    position: int = 0
    """How many bytes of the input were read, in all."""

    @property
    def count(self) -> int:
        """How many records, or what is none, there were."""
        return len(self.records) + len(self.failures)


class _Parser(Protocol):
    """Makes records of the lines of one input."""

    def ends(self, piece: bytes) -> int:
        """Up to where lines end in what was read next; 0: none does."""
        ...

    def parse(self, data: bytes, first: int, chunk: Chunk) -> int:
        """Put the records of these lines into the chunk.

        Args:
            data: whole lines; the last one may lack its end.
            first: the number of the first.
            chunk: where to put them.

        Returns:
            How many lines there were.
        """
        ...


class _Lines:
    """Each line is a value; or a key and a value."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def ends(self, piece: bytes) -> int:
        return piece.rfind(b"\n") + 1

    def parse(self, data: bytes, first: int, chunk: Chunk) -> int:
        topic, partition = cast("str", self._layout.topic), self._layout.partition
        headers, separator = self._layout.headers, self._layout.key_separator
        lines = _lines(data)
        if separator is not None:
            for line in lines:
                key, found, value = line.partition(separator)
                chunk.records.append(
                    ProducerRecord(
                        topic,
                        value if found else line,
                        key if found else None,
                        partition=partition,
                        headers=headers,
                    )
                )
        elif headers or partition is not None:
            chunk.records = [
                ProducerRecord(topic, line, partition=partition, headers=headers) for line in lines
            ]
        else:
            chunk.records = [ProducerRecord(topic, line) for line in lines]
        chunk.numbers = range(first, first + len(lines))
        return len(lines)


class _Jsonl:
    """Each line is a JSON value; one that is blank is passed over."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def ends(self, piece: bytes) -> int:
        return piece.rfind(b"\n") + 1

    def parse(self, data: bytes, first: int, chunk: Chunk) -> int:
        lines = _lines(data)
        numbered = ((number, line.strip()) for number, line in enumerate(lines, first))
        _fill(chunk, ((number, line) for number, line in numbered if line), self._record)
        return len(lines)

    def _record(self, line: bytes) -> AnyRecord:
        try:
            found: Any = json.loads(line)
        except ValueError as error:  # of JSON, and of UTF-8
            raise Unreadable(f"not JSON: {error}") from None
        fields = self._layout.fields
        if fields.any and not isinstance(found, dict):
            raise Unreadable("not a JSON object, so it has no fields")
        return _record_of(self._layout, found, line if fields.value is None else None)


class _Csv:
    """Each row is a record; its fields have the names of the columns."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._columns = layout.csv_columns
        self._is_quoted = False

    def ends(self, piece: bytes) -> int:
        # A line's end between quotation marks ends no row. A doubled mark leaves all as it was.
        end = place = 0
        for segment in piece.split(b'"'):
            if place:
                self._is_quoted = not self._is_quoted
            if not self._is_quoted:
                found = segment.rfind(b"\n")
                if found >= 0:
                    end = place + found + 1
            place += len(segment) + 1
        return end

    def parse(self, data: bytes, first: int, chunk: Chunk) -> int:
        number = first
        rows: list[tuple[int, bytes]] = []
        row = b""
        begun = first
        for line in _split(data):
            row += line
            number += 1
            if row.count(b'"') % 2 == 0:
                if row.strip():
                    rows.append((begun, row))
                row, begun = b"", number
        if row:
            rows.append((begun, row))
        if rows and not self._columns:
            self._columns = self._header(*rows.pop(0), chunk.source)
        _fill(chunk, rows, self._record)
        return number - first

    def _header(self, number: int, row: bytes, source: str) -> tuple[str, ...]:
        try:
            columns = tuple(self._cells(row))
        except Unreadable as error:
            raise InputError(f"{source}, line {number}: the columns' names: {error}") from None
        fields = self._layout.fields
        named = [name for _, name in fields.headers]
        for name in (*fields[:4], *named):
            if name is not None and name not in columns:
                raise InputError(
                    f"{source}, line {number}: there is no column {name!r} among "
                    f"{', '.join(map(repr, columns))}"
                )
        return columns

    def _cells(self, row: bytes) -> list[str]:
        try:
            return next(
                csv.reader([row.decode()], delimiter=self._layout.csv_delimiter, strict=True)
            )
        except UnicodeDecodeError as error:
            raise Unreadable(f"not UTF-8: {error}") from None
        except csv.Error as error:
            raise Unreadable(f"not CSV: {error}") from None

    def _record(self, row: bytes) -> AnyRecord:
        cells = self._cells(row)
        if len(cells) != len(self._columns):
            raise Unreadable(f"{len(cells)} cells, where there are {len(self._columns)} columns")
        found = dict(zip(self._columns, cells, strict=True))
        whole = None if self._layout.fields.value is not None else _as_json(found)
        return _record_of(self._layout, found, whole)


class _Failed:
    """Each line is a record that failed before."""

    def __init__(self, layout: Layout) -> None:
        self._topic = layout.topic

    def ends(self, piece: bytes) -> int:
        return piece.rfind(b"\n") + 1

    def parse(self, data: bytes, first: int, chunk: Chunk) -> int:
        lines = _lines(data)
        numbered = ((number, line) for number, line in enumerate(lines, first) if line.strip())
        _fill(chunk, numbered, lambda line: load(line, self._topic))
        return len(lines)


_PARSERS: Final[dict[str, Callable[[Layout], _Parser]]] = {
    "lines": _Lines,
    "jsonl": _Jsonl,
    "csv": _Csv,
    "failed": _Failed,
}


def _lines(data: bytes) -> list[bytes]:
    """Without their ends, which are LF, or CR and LF."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if b"\r" in data:
        return [line.removesuffix(b"\r") for line in lines]
    return lines


def _split(data: bytes) -> list[bytes]:
    """With their ends. ``splitlines`` would take a lone CR for one."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _fill(
    chunk: Chunk, lines: Iterable[tuple[int, bytes]], record_of: Callable[[bytes], AnyRecord]
) -> None:
    numbers: list[int] = []
    for number, line in lines:
        try:
            record = record_of(line)
        except Unreadable as error:
            given = line.rstrip(b"\r\n") if error.given is None else error.given
            chunk.failures.append(_unreadable(chunk.source, number, given, str(error)))
        else:
            chunk.records.append(record)
            numbers.append(number)
    chunk.numbers = numbers


def _unreadable(source: str, number: int, given: bytes, reason: str) -> Failure:
    name = Unreadable.__name__
    return Failure(source, number, given, reason, name, Persistence.NOT_PERSISTED)


# --- fields --------------------------------------------------------------------------------------


def _record_of(layout: Layout, found: Any, whole: bytes | None) -> AnyRecord:
    """The record of some fields; its value is ``whole``, unless a field is."""
    fields = layout.fields
    headers = [*layout.headers]
    for name, field in fields.headers:
        content = _as_bytes(field, _field(found, field))
        # A header has a value.
        if content is not None:
            headers.append((name, content))
    partition = layout.partition
    if fields.partition is not None:
        partition = _whole_number(fields.partition, _field(found, fields.partition))
    timestamp = None
    if fields.timestamp is not None:
        timestamp = _milliseconds(fields.timestamp, _field(found, fields.timestamp))
    return ProducerRecord(
        cast("str", layout.topic),
        whole if fields.value is None else _as_bytes(fields.value, _field(found, fields.value)),
        None if fields.key is None else _as_bytes(fields.key, _field(found, fields.key)),
        partition=partition,
        timestamp_ms=timestamp,
        headers=headers,
    )


def _field(found: Any, name: str) -> Any:
    """The field of this name; or, where there is none, what the dots in it lead to."""
    value: Any = found.get(name, _MISSING)
    if value is _MISSING and "." in name:
        value = found
        for part in name.split("."):
            inside = isinstance(value, dict)
            value = cast("dict[str, Any]", value).get(part, _MISSING) if inside else _MISSING
    if value is _MISSING:
        raise Unreadable(f"there is no field {name!r}")
    return value


def _as_bytes(name: str, value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Unreadable(f"{name!r} has half of a surrogate pair in it") from None
    return _as_json(value)


def _as_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _whole_number(name: str, value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Unreadable(f"{name!r} is not a whole number")


def _milliseconds(name: str, value: Any) -> int | None:
    """Milliseconds since 1970, of a number of them, or of a date and time by ISO 8601."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            # Python 3.10 knows no Z.
            when = dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
            if when.tzinfo is None:
                raise Unreadable(f"{name!r} has no time zone: {value!r:.40}")
            return round(when.timestamp() * 1000)
    elif isinstance(value, float) and math.isfinite(value):
        return round(value)
    try:
        return _whole_number(name, value)
    except Unreadable:
        raise Unreadable(
            f"{name!r} is neither milliseconds since 1970 nor a time as in 2026-01-31T12:00:00Z"
        ) from None


# --- reading -------------------------------------------------------------------------------------


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

    Args:
        name: a path, or ``-`` for standard input.
        layout: what is in it.
    """

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = "standard input" if name == "-" else name
        self._path = None if name == "-" else name
        self._parser = _PARSERS[layout.format](layout)
        self._keeps_mark = layout.format == "lines"
        self._descriptor = 0
        self._waits = False
        self._rest = bytearray()
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
        try:
            await anyio.to_thread.run_sync(self._open)
            try:
                async for chunk in self._read_all():
                    yield chunk
            finally:
                if self._path is not None:
                    os.close(self._descriptor)
        except OSError as error:
            raise InputError(f"{self.name} can't be read: {error.strerror}") from error

    def _open(self) -> None:
        if self._path is not None:
            # To open a FIFO waits for whoever writes to it; the event loop can do that as well.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, flags)
        self._waits = not stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    async def _read_all(self) -> AsyncGenerator[Chunk]:
        more = True
        chunk: Chunk | None = None
        while more:
            if self._waits and not self._stopped:
                with anyio.CancelScope() as self._waiting:
                    await self._wait()
            if self._stopped:
                break
            # From here to where a chunk is taken nothing may get lost: a pipe gives it once.
            with anyio.CancelScope(shield=True):
                chunk, more = await anyio.to_thread.run_sync(self._step)
            if chunk is not None:
                yield chunk
        else:
            self.ended = True
            return
        if self._rest and self._waits:
            # A file has it still; a pipe has not.
            failure = _unreadable(
                self.name, self._next, bytes(self._rest), "the end of the line was not read"
            )
            yield Chunk(self.name, failures=[failure], last=self._next, position=self._position)

    async def _wait(self) -> None:
        try:
            await anyio.wait_readable(self._descriptor)
        except OSError:
            # Some devices can't be waited for, /dev/null for one: reading them does not wait.
            self._waits = False

    def _step(self) -> tuple[Chunk | None, bool]:
        """Read a piece; give what lines there are by now, and whether there may be more."""
        try:
            piece = os.read(self._descriptor, _PIECE)
        except BlockingIOError:  # somebody else who reads from it was faster
            return None, True
        if not piece:
            return (self._parsed(bytes(self._rest)) if self._rest else None), False
        if not self._position and not self._keeps_mark:
            piece = piece.removeprefix(_BOM)
        self._position += len(piece)
        end = self._parser.ends(piece)
        if not end:
            self._rest += piece
            if len(self._rest) > LONGEST:
                raise InputError(
                    f"{self.name}, line {self._next}: longer than {LONGEST / 2**20:g} MiB"
                )
            return None, True
        data = bytes(self._rest) + piece[:end]
        self._rest = bytearray(piece[end:])
        return self._parsed(data), True

    def _parsed(self, data: bytes) -> Chunk:
        chunk = Chunk(self.name, position=self._position)
        self._next += self._parser.parse(data, self._next, chunk)
        chunk.last = self._next - 1
        return chunk


def iterate(chunks: Iterable[Chunk]) -> Iterator[tuple[AnyRecord, str, int]]:
    """Each record of some chunks, with the input and the line that it began on."""
    for chunk in chunks:
        for record, number in zip(chunk.records, chunk.numbers, strict=True):
            yield record, chunk.source, number
