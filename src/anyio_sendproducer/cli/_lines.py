"""Lines as records: a value, a key and a value, or headers before them."""

from __future__ import annotations

from typing import cast

from .. import ProducerRecord
from ._chunks import AnyRecord, Chunk, HeaderMarks, Layout, fill
from ._failed import Unreadable

__all__ = ["Lines"]


class Lines:
    """Makes a record of each line, or of a whole file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._topic = cast("str", layout.topic)
        self.line_ends: tuple[bytes, ...] = layout.line_ends

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """See :class:`Parser`."""
        layout, topic = self._layout, self._topic
        lines, used = layout.split(data, is_last=is_last)
        if layout.header_marks is not None:
            fill(chunk, enumerate(lines, first), self._with_headers)
            return len(lines), used
        if layout.key_separator is not None or layout.null_value is not None:
            chunk.records = [self._record(line, layout.headers) for line in lines]
        elif layout.headers or layout.partition is not None or layout.key is not None:
            partition, headers = layout.partition, layout.headers
            chunk.records = [
                ProducerRecord(topic, line, layout.key, partition=partition, headers=headers)
                for line in lines
            ]
        else:
            chunk.records = [ProducerRecord(topic, line) for line in lines]
        chunk.numbers = range(first, first + len(lines))
        return len(lines), used

    def _with_headers(self, line: bytes) -> AnyRecord:
        marks = cast("HeaderMarks", self._layout.header_marks)
        front, found, rest = line.partition(marks.delimiter)
        if not found:
            raise Unreadable(
                f"the line has no {marks.delimiter!r} after its headers (--headers-delimiter)"
            )
        return self._record(rest, (*self._layout.headers, *self._headers(front, marks)))

    def _headers(self, front: bytes, marks: HeaderMarks) -> list[tuple[str, bytes]]:
        headers: list[tuple[str, bytes]] = []
        if front in {b"", self._layout.null_value}:
            return headers
        for header in front.split(marks.separator):
            name, found, value = header.partition(marks.key_separator)
            if not found:
                raise Unreadable(
                    f"a header has no {marks.key_separator!r} between its name and its value "
                    "(--headers-key-separator)"
                )
            try:
                text = name.decode()
            except UnicodeDecodeError:
                raise Unreadable("the name of a header is not UTF-8") from None
            # A ProducerRecord has no headers with null as their value.
            if value != self._layout.null_value:
                headers.append((text, value))
        return headers

    def _record(self, line: bytes, headers: tuple[tuple[str, bytes], ...]) -> AnyRecord:
        layout = self._layout
        key: bytes | None = None
        value: bytes | None = line
        if layout.key_separator is not None:
            before, found, after = line.partition(layout.key_separator)
            if found:
                key, value = before, after
        if layout.null_value is not None:
            key = None if key == layout.null_value else key
            value = None if value == layout.null_value else value
        return ProducerRecord(
            self._topic,
            value,
            layout.key if key is None else key,
            partition=layout.partition,
            headers=headers,
        )
