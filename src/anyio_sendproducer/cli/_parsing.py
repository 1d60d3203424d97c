"""Parsers: bytes into records, in the formats that ``produce`` reads.

A parser gets the bytes that were read and have not become records yet. It makes records of the
complete lines among them, and reports how many bytes it has used. A line that is not a record
becomes a failure, whatever the reason, so that nothing that was read is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ._chunks import AnyRecord, Chunk, Layout, Parser, fill
from ._csv import Csv
from ._failed import Unreadable, load
from ._fields import parse_json
from ._lines import Lines
from ._records import record_of

__all__ = ["FORMATS", "parser_for"]


class _Jsonl:
    """Makes a record of each line, which is a JSON value. Blank lines are skipped."""

    line_ends: tuple[bytes, ...] = (b"\n",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """See :class:`Parser`."""
        lines, used = self._layout.split(data, is_last=is_last)
        numbered = ((number, line.strip(b" \t\r")) for number, line in enumerate(lines, first))
        fill(chunk, ((number, line) for number, line in numbered if line), self._record)
        return len(lines), used

    def _record(self, line: bytes) -> AnyRecord:
        source = parse_json(line)
        if self._layout.fields.any and not isinstance(source.value, dict):
            raise Unreadable("not a JSON object, so it has no fields")
        return record_of(self._layout, source, line)


class _Failed:
    """Makes a record of each line, which is a record that failed before."""

    line_ends: tuple[bytes, ...] = (b"\n",)

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """See :class:`Parser`."""
        lines, used = self._layout.split(data, is_last=is_last)
        numbered = ((number, line) for number, line in enumerate(lines, first) if line.strip())
        fill(chunk, numbered, lambda line: load(line, self._layout.topic))
        return len(lines), used


_PARSERS: Final[dict[str, Callable[[Layout], Parser]]] = {
    "lines": Lines,
    "file": Lines,
    "jsonl": _Jsonl,
    "csv": Csv,
    "failed": _Failed,
}
#: The names of the formats.
FORMATS: Final = tuple(_PARSERS)


def parser_for(layout: Layout) -> Parser:
    """A new parser for one input."""
    return _PARSERS[layout.format](layout)
