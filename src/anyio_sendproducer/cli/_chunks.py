"""Pieces of input: their layout, and the records and failures that they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

from .. import Persistence, ProducerRecord
from ._failed import Failure, Unreadable
from ._fields import NO_FIELDS, Fields

__all__ = [
    "LONGEST",
    "AnyRecord",
    "Chunk",
    "HeaderMarks",
    "InputError",
    "Layout",
    "Parser",
    "fail_lines",
    "fill",
    "iterate",
]

#: Bytes that a line may have. A line is kept in memory, and by default, brokers accept only much
#: smaller records.
LONGEST: Final = 32 * 1024 * 1024

AnyRecord = ProducerRecord[Any, Any]

_T = TypeVar("_T")


class InputError(Exception):
    """The rest of an input cannot be read; the message says where and why."""


class HeaderMarks(NamedTuple):
    """The texts that separate headers at the front of a line, as in ``a:1,b:2<TAB>value``."""

    delimiter: bytes
    """Ends the headers."""
    separator: bytes
    """Separates one header from the next."""
    key_separator: bytes
    """Separates a header's name from its value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The format of the input, and the parts that all of its records share."""

    format: str = "lines"
    topic: str | None = None
    """None if each record in the input has a topic."""
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = None
    """The key of records that have no key in the input."""
    delimiter: bytes | None = None
    """The end of a line; None: a line feed, or a carriage return and a line feed."""
    key_separator: bytes | None = None
    header_marks: HeaderMarks | None = None
    null_value: bytes | None = None
    """The text that stands for null."""
    fields: Fields = NO_FIELDS
    csv_delimiter: str = ","
    csv_columns: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the input is text. Lines that are only a value are sent as they are."""
        if self.format in {"lines", "file"}:
            return self.key_separator is not None or self.header_marks is not None
        return True

    @property
    def has_usual_lines(self) -> bool:
        """Whether a line feed ends a line, so that the input cannot be UTF-16."""
        return self.format != "file" and self.delimiter is None

    @property
    def line_ends(self) -> tuple[bytes, ...]:
        """The last byte of a line's end; empty if the whole input is one line."""
        if self.format == "file":
            return ()
        return (b"\n" if self.delimiter is None else self.delimiter[-1:],)

    def split(self, data: bytes, *, is_last: bool) -> tuple[list[bytes], int]:
        """Split the beginning of the input into lines.

        Args:
            data: bytes from the beginning of a line on.
            is_last: whether the input ends here; then the last line may lack its end.

        Returns:
            The lines without their ends, and how many bytes they have with them.
        """
        if self.format == "file":
            return ([data], len(data)) if is_last else ([], 0)
        lines = data.split(b"\n" if self.delimiter is None else self.delimiter)
        rest = lines.pop()
        if self.delimiter is None and b"\r" in data:
            lines = [line.removesuffix(b"\r") for line in lines]
        if not is_last:
            return lines, len(data) - len(rest)
        if rest:
            # It has no end, so a carriage return there belongs to the line.
            lines.append(rest)
        return lines, len(data)


@dataclasses.dataclass(slots=True)
class Chunk:
    """The records and failures of a piece of input."""

    source: str
    records: list[AnyRecord] = dataclasses.field(default_factory=list[AnyRecord])
    numbers: Sequence[int] = ()
    """The line that each record began on."""
    failures: list[Failure] = dataclasses.field(default_factory=list[Failure])
    """Lines that are not records."""
    last: int = 0
    """The last line that was read."""
    position: int = 0
    """How many bytes of the input were read in all."""

    @property
    def count(self) -> int:
        """The number of records and failures."""
        return len(self.records) + len(self.failures)


def iterate(chunks: Iterable[Chunk]) -> Iterator[tuple[AnyRecord, str, int]]:
    """Each record of some chunks, with the input and the line that it began on."""
    for chunk in chunks:
        for record, number in zip(chunk.records, chunk.numbers, strict=True):
            yield record, chunk.source, number


class Parser(Protocol):
    """Makes records of the lines of one input."""

    line_ends: tuple[bytes, ...]
    """The bytes that may end a line. Input without them is not worth parsing yet."""

    def parse(self, data: bytes, first: int, chunk: Chunk, *, is_last: bool) -> tuple[int, int]:
        """Put the records of some lines into the chunk.

        Args:
            data: bytes from the beginning of a line on.
            first: the number of this line.
            chunk: receives the records and failures.
            is_last: whether the input ends here; then the last line may lack its end.

        Returns:
            The number of lines and the number of bytes that were used.

        Raises:
            InputError: nothing after these lines can be read.
        """
        ...


def fill(
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
        given: returns the bytes of an item. By default, each item is bytes.
    """
    numbers: list[int] = []
    for number, item in items:
        try:
            record = record_of(item)
        except Unreadable as error:
            content = given(item) if error.given is None else error.given
            chunk.failures.append(_failure(chunk.source, number, content, str(error)))
        except Exception as error:  # noqa: BLE001  # a fault in the code costs only this line
            chunk.failures.append(_failure(chunk.source, number, given(item), error))
        else:
            chunk.records.append(record)
            numbers.append(number)
    chunk.numbers = numbers


def fail_lines(
    layout: Layout, chunk: Chunk, data: bytes, first: int, reason: str | Exception
) -> int:
    """Make each line of some bytes a failure, and return the number of lines."""
    lines, _ = layout.split(data, is_last=True)
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
