"""CSV as records: each row becomes a record, and its cells become fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from ._chunks import LONGEST, AnyRecord, Chunk, InputError, Layout, fill
from ._failed import Unreadable
from ._fields import Source, dump_json
from ._records import record_of
from ._text import counted

__all__ = ["Csv"]

#: A first line that tells Excel the delimiter of the file.
_SEPARATOR_LINE: Final = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*')


class _Row(NamedTuple):
    """A row of CSV."""

    begin: int
    """The index of its first line."""
    end: int
    """The index after its last line."""
    cells: list[str]
    error: str | None
    """Why it is not CSV."""


class Csv:
    """Makes a record of each row; its fields have the names of the columns.

    The csv module reads the rows. A row that continues on the next line waits for it.
    """

    # The csv module expects both, without translation.
    line_ends: tuple[bytes, ...] = (b"\n", b"\r")

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._columns = layout.csv_columns
        self._delimiter = layout.csv_delimiter
        null = layout.null_value
        self._null = None if null is None else null.decode(errors="surrogateescape")
        self._has_begun = False
        self._examined = 0
        """How many bytes of an unfinished row are known not to end it."""
        # The csv module limits the size of cells, to bound the memory; here, Input limits lines.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST))

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """See :class:`Parser`."""
        if not is_last:
            # A carriage return at the end may be the first half of a line's end.
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1]
            # Only a quotation mark ends a row that continues after a line's end.
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
        fill(chunk, ((first + row.begin, row) for row in rows), record, given)
        unfinished = "".join(lines[used:]).encode(errors="surrogateescape")
        self._examined = len(unfinished)
        return used, len(data) - len(unfinished)

    def _read_separator_line(self, line: str) -> int:
        """If the line is Excel's ``sep=`` line, use the delimiter that it names.

        Returns:
            How many lines were used: 1 or 0.
        """
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
            refuse(f"the names of the columns can't be read: {reason}")
        columns = tuple(row.cells)
        fields = self._layout.fields
        for name in fields.names:
            if name not in columns:
                refuse(f"there is no column {name!r} among {', '.join(map(repr, columns))}")
        # A row as JSON has all columns.
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
            raise Unreadable(
                f"the row has {counted(len(cells), 'cell')}, and there are "
                f"{counted(len(columns), 'column')}"
            )
        null = self._null
        found = {
            name: None if cell == null else cell for name, cell in zip(columns, cells, strict=True)
        }
        whole = None if self._layout.fields.value is not None else dump_json(found)
        return record_of(self._layout, Source(found, ""), whole)


def _utf8_error(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error}"
    return None
