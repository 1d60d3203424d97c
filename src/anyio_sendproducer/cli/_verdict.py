"""The demo's comparison of the acknowledged records with the records that a consumer read back.

It is pure and synchronous, so that its tests can use every kind of wrong reading.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

__all__ = ["Content", "PartitionRow", "Problem", "ReadBack", "Verdict", "Written", "judge"]


class Content(NamedTuple):
    """The content of a record, as bytes. No two records of a run have the same content."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    @property
    def name(self) -> str:
        """The record's name in messages."""
        return f"key {_shown(self.key)}, value {_shown(self.value)}"


class Written(NamedTuple):
    """A record that was sent, and its place according to its metadata."""

    content: Content
    partition: int
    offset: int | None


class ReadBack(NamedTuple):
    """A record that the consumer read, and the place where it was."""

    content: Content
    partition: int
    offset: int


class Problem(NamedTuple):
    """One difference from what was acknowledged."""

    kind: Literal["missing", "doubled", "moved", "altered", "out of order", "unexpected"]
    detail: str


class PartitionRow(NamedTuple):
    """One partition of the demo's table."""

    partition: int
    sent: int
    first_offset: int | None
    last_offset: int | None
    read_back: int


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a run."""

    rows: tuple[PartitionRow, ...]
    """A row for each partition that was written or read, in order."""
    problems: tuple[Problem, ...]
    """All differences."""

    @property
    def complete(self) -> bool:
        """Whether there is no difference."""
        return not self.problems


def judge(written: Sequence[Written], read: Sequence[ReadBack], mark: tuple[str, bytes]) -> Verdict:
    """Compare the acknowledged records with the records that were read back.

    Args:
        written: every acknowledged record; records with the same key in the order of sending.
        read: every record that the consumer read, in the order of reading. Records of other
            producers may be among them.
        mark: the header that only the records of this run have.

    Returns:
        The rows of the table, and a problem for each record that is missing or doubled, is not
        where its metadata says, was altered, was read before its predecessor or in another
        partition, or was never sent. The predecessor is the previous record of the same key.
    """
    places: dict[Content, list[int]] = collections.defaultdict(list)
    at: dict[tuple[int, int | None], ReadBack] = {}
    ours: list[ReadBack] = []
    for position, record in enumerate(read):
        at[record.partition, record.offset] = record
        if mark in record.content.headers:
            ours.append(record)
            places[record.content].append(position)

    problems: list[Problem] = []
    altered: set[Content] = set()
    for item in written:
        found = [read[position] for position in places.get(item.content, ())]
        claimed = f"{item.content.name}: acknowledged at {_place(item)}"
        if not found:
            other = at.get((item.partition, item.offset))
            if other is None:
                problems.append(Problem("missing", f"{claimed}, but no record is there"))
            else:
                altered.add(other.content)
                other_parts = " and ".join(_differences(item.content, other.content))
                problems.append(
                    Problem("altered", f"{claimed}, but the record there differs in {other_parts}")
                )
            continue
        if len(found) > 1:
            all_places = ", ".join(_place(record) for record in found)
            problems.append(Problem("doubled", f"{claimed}, read at {all_places}"))
        if not any(_place(record) == _place(item) for record in found):
            problems.append(Problem("moved", f"{claimed}, but read at {_place(found[0])}"))
    problems.extend(_disorder(written, read, places))
    sent = {item.content for item in written}
    problems.extend(
        Problem("unexpected", f"{record.content.name}: read at {_place(record)}, but never sent")
        for record in ours
        if record.content not in sent and record.content not in altered
    )
    return Verdict(tuple(_rows(written, ours)), tuple(problems))


def _disorder(
    written: Sequence[Written], read: Sequence[ReadBack], places: dict[Content, list[int]]
) -> Iterator[Problem]:
    """A problem for each record that was read before the previous record of its key, or in another
    partition than that record."""
    before: dict[bytes, int] = {}
    for item in written:
        key = item.content.key
        found = places.get(item.content)
        if key is None or not found:
            continue
        position = found[0]
        previous = before.get(key)
        before[key] = position
        if previous is None:
            continue
        if read[position].partition != read[previous].partition:
            yield Problem(
                "out of order",
                f"{item.content.name}: read at {_place(read[position])}, but the record of this "
                f"key before it is at {_place(read[previous])}",
            )
        elif position < previous:
            yield Problem(
                "out of order",
                f"{item.content.name}: read at {_place(read[position])}, before the record at "
                f"{_place(read[previous])}, which was sent earlier",
            )


def _differences(one: Content, other: Content) -> Iterator[str]:
    for field, mine, theirs in zip(Content._fields, one, other, strict=True):
        if mine != theirs:
            yield field


def _rows(written: Sequence[Written], ours: Sequence[ReadBack]) -> Iterator[PartitionRow]:
    read_back = collections.Counter(record.partition for record in ours)
    sent = collections.Counter(item.partition for item in written)
    for partition in sorted(sent.keys() | read_back.keys()):
        offsets = [
            item.offset
            for item in written
            if item.partition == partition and item.offset is not None
        ]
        yield PartitionRow(
            partition,
            sent[partition],
            min(offsets, default=None),
            max(offsets, default=None),
            read_back[partition],
        )


def _place(item: Written | ReadBack) -> str:
    return f"partition {item.partition}, offset {item.offset}"


def _shown(content: bytes | None) -> str:
    if content is None:
        return "none"
    text = content.decode(errors="backslashreplace")
    return text if len(text) <= 60 else f"{text[:57]}..."
