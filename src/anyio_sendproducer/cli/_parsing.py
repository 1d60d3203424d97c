"""Bytes into records: the formats that ``produce`` reads.

A parser gets the bytes that were read and have not become records yet. It makes records of the
complete lines among them, and says how many bytes it has used. A line that is not a record becomes
a failure, whatever the reason: nothing that was read is dropped.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeVar, cast

from .. import Persistence, ProducerRecord
from ._failed import Failure, Unreadable, load
from ._fields import (
    NO_FIELDS,
    Fields,
    Source,
    as_bytes,
    as_milliseconds,
    as_whole_number,
    dump_json,
    parse_json,
)

__all__ = [
    "FORMATS",
    "LONGEST",
    "Chunk",
    "InputError",
    "Layout",
    "Parser",
    "fail_lines",
    "iterate",
    "parser_for",
]

FORMATS: Final = ("lines", "jsonl", "csv", "failed")

#: Bytes that a line may have. No broker takes such a record as it comes, and all of a line is held.
LONGEST: Final = 32 * 1024 * 1024

#: Excel's first line of a file with another delimiter than the comma.
_SEPARATOR_LINE: Final = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*')

AnyRecord = ProducerRecord[Any, Any]

_T = TypeVar("_T")


class InputError(Exception):
    """Input can't be read on; the message says where and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The format of the input, and the parts that all of its records share."""

    format: str = "lines"
    topic: str | None = None
    """May be missing where the format has topics of its own."""
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    key_separator: bytes | None = None
    fields: Fields = NO_FIELDS
    csv_delimiter: str = ","
    csv_columns: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the input is text. Lines without keys are bytes, which are sent as they are."""
        return self.format != "lines" or self.key_separator is not None


@dataclasses.dataclass(slots=True)
class Chunk:
    """The records and failures of a piece of input."""

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
        """How many records and failures there are."""
        return len(self.records) + len(self.failures)


def iterate(chunks: Iterable[Chunk]) -> Iterator[tuple[AnyRecord, str, int]]:
    """Each record of some chunks, with the input and the line that it began on."""
    for chunk in chunks:
        for record, number in zip(chunk.records, chunk.numbers, strict=True):
            yield record, chunk.source, number


class Parser(Protocol):
    """Makes records of the lines of one input."""

    line_ends: tuple[bytes, ...]
    """The bytes that end a line. Input without one of them is not worth parsing yet."""

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """Put the records of some lines into the chunk.

        Args:
            data: bytes from the beginning of a line on.
            first: the number of this line.
            chunk: where to put the records and failures.
            is_last: whether the input ends here; then the last line may lack its end.

        Returns:
            The number of lines and the number of bytes that were used.

        Raises:
            InputError: nothing after these lines can be read.
        """
        ...


class _Lines:
    """Each line is a value; or a key and a value."""

    line_ends: tuple[bytes, ...] = (b"\n",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        topic, partition = cast("str", self._layout.topic), self._layout.partition
        headers, separator = self._layout.headers, self._layout.key_separator
        lines, used = _split(data, is_last=is_last)
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
        return len(lines), used


class _Jsonl:
    """Each line is a JSON value; one that is blank is passed over."""

    line_ends: tuple[bytes, ...] = (b"\n",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        lines, used = _split(data, is_last=is_last)
        numbered = ((number, line.strip(b" \t\r")) for number, line in enumerate(lines, first))
        _fill(chunk, ((number, line) for number, line in numbered if line), self._record)
        return len(lines), used

    def _record(self, line: bytes) -> AnyRecord:
        source = parse_json(line)
        if self._layout.fields.any and not isinstance(source.value, dict):
            raise Unreadable("not a JSON object, so it has no fields")
        return _record_of(self._layout, source, line)


class _Row(NamedTuple):
    """A row of CSV."""

    begin: int
    """The index of its first line."""
    end: int
    """The index behind its last line."""
    cells: list[str]
    error: str | None
    """Why it is not CSV."""


class _Csv:
    """Each row is a record; its fields have the names of the columns.

    The csv module reads the rows. A row that needs more lines than there are waits for them.
    """

    # As in a file that is opened for the csv module.
    line_ends: tuple[bytes, ...] = (b"\n", b"\r")

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._columns = layout.csv_columns
        self._delimiter = layout.csv_delimiter
        self._has_begun = False
        self._examined = 0
        """How many bytes of an unfinished row are known not to end it."""
        # The limit protects those that read all cells; here, a line has a limit of its own.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST))

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        if not is_last:
            # A CR at the end may be the first half of a line's end.
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1]
            # Only a quotation mark ends a row that goes on after a line's end.
            if self._examined and data.find(b'"', self._examined) < 0:
                return 0, 0
        text = data.decode(errors="surrogateescape")
        lines = io.StringIO(text, newline="").readlines()
        used = 0
        if lines and not self._has_begun:
            self._has_begun = True
            used = self._read_separator_line(lines[0])
        rows = self._rows(lines, used, is_last=is_last)
        if rows:
            used = rows[-1].end
        rows = [row for row in rows if row.cells or row.error]

        def given(row: _Row) -> bytes:
            joined = "".join(lines[row.begin : row.end])
            return joined.rstrip("\r\n").encode(errors="surrogateescape")

        def record(row: _Row) -> AnyRecord:
            return self._record(row, None if is_utf8 else given(row))

        is_utf8 = text.isascii() or _utf8_error(data) is None
        if rows and not self._columns:
            self._read_header(rows[0], first, given(rows[0]), chunk.source)
            del rows[0]
        _fill(chunk, ((first + row.begin, row) for row in rows), record, given)
        unfinished = "".join(lines[used:]).encode(errors="surrogateescape")
        self._examined = len(unfinished)
        return used, len(data) - len(unfinished)

    def _read_separator_line(self, line: str) -> int:
        """Excel's first line, which only names the delimiter; the number of such lines."""
        found = _SEPARATOR_LINE.fullmatch(line)
        if found is None:
            return 0
        self._delimiter = found[1]
        return 1

    def _rows(self, lines: list[str], begin: int, *, is_last: bool) -> list[_Row]:
        has_ended = False

        def feed() -> Iterator[str]:
            nonlocal has_ended
            yield from lines[begin:]
            has_ended = True

        rows: list[_Row] = []
        reader = csv.reader(feed(), delimiter=self._delimiter, strict=True)
        end = begin
        while True:
            cells: list[str] = []
            reason = None
            try:
                cells = next(reader)
            except StopIteration:
                return rows
            except csv.Error as error:
                if has_ended and not is_last:
                    return rows
                reason = f"not CSV: {error}"
            row = _Row(end, begin + reader.line_num, cells, reason)
            rows.append(row)
            end = row.end

    def _read_header(self, row: _Row, first: int, given: bytes, source: str) -> None:
        def refuse(reason: str) -> NoReturn:
            raise InputError(f"{source}, line {first + row.begin}: {reason}")

        reason = row.error or _utf8_error(given)
        if reason:
            refuse(f"the columns' names: {reason}")
        columns = tuple(row.cells)
        fields = self._layout.fields
        for name in fields.names:
            if name not in columns:
                refuse(f"there is no column {name!r} among {', '.join(map(repr, columns))}")
        # A whole row as JSON has all columns.
        used = columns if fields.value is None else fields.names
        for name in used:
            if columns.count(name) > 1:
                refuse(f"{columns.count(name)} columns have the name {name!r}")
        self._columns = columns

    def _record(self, row: _Row, given: bytes | None) -> AnyRecord:
        if row.error is not None:
            raise Unreadable(row.error)
        reason = None if given is None else _utf8_error(given)
        if reason is not None:
            raise Unreadable(reason)
        cells, columns = row.cells, self._columns
        if len(cells) != len(columns):
            raise Unreadable(f"{len(cells)} cells, where there are {len(columns)} columns")
        found = dict(zip(columns, cells, strict=True))
        whole = None if self._layout.fields.value is not None else dump_json(found)
        return _record_of(self._layout, Source(found, ""), whole)


class _Failed:
    """Each line is a record that failed before."""

    line_ends: tuple[bytes, ...] = (b"\n",)

    def __init__(self, layout: Layout) -> None:
        self._topic = layout.topic

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        lines, used = _split(data, is_last=is_last)
        numbered = ((number, line) for number, line in enumerate(lines, first) if line.strip())
        _fill(chunk, numbered, lambda line: load(line, self._topic))
        return len(lines), used


_PARSERS: Final[dict[str, Callable[[Layout], Parser]]] = {
    "lines": _Lines,
    "jsonl": _Jsonl,
    "csv": _Csv,
    "failed": _Failed,
}


def parser_for(layout: Layout) -> Parser:
    """A new parser for one input."""
    return _PARSERS[layout.format](layout)


def _split(data: bytes, *, is_last: bool) -> tuple[list[bytes], int]:
    """Lines without their ends, which are LF or CR and LF; and how many bytes they have."""
    lines = data.split(b"\n")
    rest = lines.pop()
    if b"\r" in data:
        lines = [line.removesuffix(b"\r") for line in lines]
    if not is_last:
        return lines, len(data) - len(rest)
    if rest:
        # It has no end, so a CR there belongs to the line.
        lines.append(rest)
    return lines, len(data)


def _utf8_error(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    return None


def _fill(
    chunk: Chunk,
    items: Iterable[tuple[int, _T]],
    record_of: Callable[[_T], AnyRecord],
    given: Callable[[_T], bytes] = lambda line: cast("bytes", line),
) -> None:
    """Put a record, or else a failure, for each item into the chunk.

    Args:
        chunk: the chunk.
        items: items with the number of their first line.
        record_of: makes a record of an item.
        given: the bytes of an item; without it, the item is bytes.
    """
    numbers: list[int] = []
    for number, item in items:
        try:
            record = record_of(item)
        except Unreadable as error:
            content = given(item) if error.given is None else error.given
            chunk.failures.append(_failure(chunk.source, number, content, str(error)))
        except Exception as error:  # noqa: BLE001  # a fault in the code costs this line only
            chunk.failures.append(_failure(chunk.source, number, given(item), error))
        else:
            chunk.records.append(record)
            numbers.append(number)
    chunk.numbers = numbers


def fail_lines(chunk: Chunk, data: bytes, first: int, reason: str | Exception) -> int:
    """Make each line of some bytes a failure, and return the number of lines."""
    lines, _ = _split(data, is_last=True)
    chunk.failures = [
        _failure(chunk.source, number, line, reason) for number, line in enumerate(lines, first)
    ]
    return len(lines)


def _failure(source: str, number: int, given: bytes, reason: str | Exception) -> Failure:
    name = Unreadable.__name__
    if isinstance(reason, Exception):
        name = type(reason).__name__
        reason = f"unexpected {name}: {reason}"
    return Failure(source, number, given, reason, name, Persistence.NOT_PERSISTED)


def _record_of(layout: Layout, source: Source, whole: bytes | None) -> AnyRecord:
    """The record of some fields; its value is ``whole``, unless a field is."""
    fields = layout.fields
    if fields is NO_FIELDS:
        return ProducerRecord(
            cast("str", layout.topic), whole, partition=layout.partition, headers=layout.headers
        )
    headers = [*layout.headers]
    for name, field in fields.headers:
        content = as_bytes(source, field)
        # A header has a value.
        if content is not None:
            headers.append((name, content))
    partition, timestamp = layout.partition, None
    if fields.partition is not None:
        partition = as_whole_number(source, fields.partition)
    if fields.timestamp is not None:
        timestamp = as_milliseconds(source, fields.timestamp)
    return ProducerRecord(
        cast("str", layout.topic),
        whole if fields.value is None else as_bytes(source, fields.value),
        None if fields.key is None else as_bytes(source, fields.key),
        partition=partition,
        timestamp_ms=timestamp,
        headers=headers,
    )
