"""How the demo compares the records that it read with the records that it sent."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer.cli._verdict import (
    Content,
    PartitionRow,
    ReadBack,
    Verdict,
    Written,
    judge,
)

MARK = ("run", b"this one")


def content(key: bytes | None, value: bytes, mark: tuple[str, bytes] = MARK) -> Content:
    return Content(key, value, (("unit", b"fahrenheit"), mark))


# Two records for each of two keys, and one record without a key.
A1, A2 = content(b"a", b"1"), content(b"a", b"2")
B1, B2 = content(b"b", b"1"), content(b"b", b"2")
NO_KEY = content(None, b"1")

SENT = [
    Written(A1, 0, 10),
    Written(B1, 1, 0),
    Written(A2, 0, 11),
    Written(B2, 1, 1),
    Written(NO_KEY, 0, 12),
]

READ = [
    ReadBack(A1, 0, 10),
    ReadBack(A2, 0, 11),
    ReadBack(NO_KEY, 0, 12),
    ReadBack(B1, 1, 0),
    ReadBack(B2, 1, 1),
]


def kinds(verdict: Verdict) -> list[str]:
    return [problem.kind for problem in verdict.problems]


def test_judge_a_complete_run() -> None:
    verdict = judge(SENT, READ, MARK)
    assert verdict.complete
    assert verdict.rows == (PartitionRow(0, 3, 10, 12, 3), PartitionRow(1, 2, 0, 1, 2))


def test_judge_nothing_sent_and_nothing_read() -> None:
    assert judge([], [], MARK) == Verdict((), ())


def test_judge_ignores_the_records_of_other_writers() -> None:
    other = ("run", b"another one")
    verdict = judge(
        SENT,
        [
            ReadBack(content(b"a", b"1", other), 0, 9),
            *READ,
            ReadBack(A1._replace(headers=()), 3, 0),
        ],
        MARK,
    )
    assert verdict.complete
    assert [row.partition for row in verdict.rows] == [0, 1]


def without(*places: int) -> list[ReadBack]:
    return [record for place, record in enumerate(READ) if place not in places]


def changed(place: int, record: ReadBack) -> list[ReadBack]:
    return [*READ[:place], record, *READ[place + 1 :]]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        pytest.param(
            without(0), [("missing", "partition 0, offset 10, but no record")], id="missing"
        ),
        pytest.param([], [("missing", "no record is there")] * 5, id="all-missing"),
        pytest.param(
            [*READ, ReadBack(A1, 0, 13)],
            [("doubled", "partition 0, offset 10, partition 0, offset 13")],
            id="doubled",
        ),
        pytest.param(
            [*READ, ReadBack(A1, 2, 0)], [("doubled", "partition 2")], id="doubled-elsewhere"
        ),
        pytest.param([READ[0], *READ], [("doubled", "read at")], id="read-twice"),
        pytest.param(
            changed(4, ReadBack(B2, 1, 2)),
            [("moved", "acknowledged at partition 1, offset 1, but read at partition 1, offset 2")],
            id="wrong-offset",
        ),
        pytest.param(
            changed(4, ReadBack(B2, 2, 1)),
            [
                ("moved", "read at partition 2"),
                ("out of order", "but the record of this key before it"),
            ],
            id="wrong-partition",
        ),
        pytest.param(
            [ReadBack(A2, 0, 10), ReadBack(A1, 0, 11), *without(0, 1)],
            [
                ("moved", "read at partition 0, offset 11"),
                ("moved", "read at partition 0, offset 10"),
                ("out of order", "which was sent earlier"),
            ],
            id="swapped",
        ),
        pytest.param(
            [READ[1], READ[0], *without(0, 1)],
            [("out of order", "which was sent earlier")],
            id="read-in-disorder",
        ),
        pytest.param(
            changed(0, ReadBack(A1._replace(value=b"9"), 0, 10)),
            [("altered", "differs in value")],
            id="altered-value",
        ),
        pytest.param(
            changed(0, ReadBack(A1._replace(value=None), 0, 10)),
            [("altered", "differs in value")],
            id="lost-value",
        ),
        pytest.param(
            changed(0, ReadBack(A1._replace(key=b"c"), 0, 10)),
            [("altered", "differs in key")],
            id="altered-key",
        ),
        pytest.param(
            changed(0, ReadBack(A1._replace(headers=()), 0, 10)),
            [("altered", "differs in headers")],
            id="lost-headers",
        ),
        pytest.param(
            changed(0, ReadBack(Content(None, b"9", (MARK,)), 0, 10)),
            [("altered", "differs in key and value and headers")],
            id="altered-altogether",
        ),
        pytest.param(
            [*READ, ReadBack(content(b"z", b"z" * 70), 2, 7)],
            [("unexpected", "zzz...: read at partition 2, offset 7, but never sent")],
            id="never-sent",
        ),
    ],
)
def test_judge_a_wrong_reading(read: list[ReadBack], expected: list[tuple[str, str]]) -> None:
    verdict = judge(SENT, read, MARK)
    assert not verdict.complete
    assert kinds(verdict) == [kind for kind, _ in expected]
    for problem, (_, detail) in zip(verdict.problems, expected, strict=True):
        assert detail in problem.detail


def test_judge_a_record_without_an_offset() -> None:
    verdict = judge([Written(A1, 0, None)], [ReadBack(A1, 0, 10)], MARK)
    assert kinds(verdict) == ["moved"]
    assert verdict.rows == (PartitionRow(0, 1, None, None, 1),)


def test_judge_a_partition_that_was_not_written_to() -> None:
    verdict = judge([Written(A1, 0, 0)], [ReadBack(A1, 5, 0)], MARK)
    assert verdict.rows == (PartitionRow(0, 1, 0, 0, 0), PartitionRow(5, 0, None, None, 1))


class Log(NamedTuple):
    written: list[Written]
    read: list[ReadBack]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """A successful run: each key has one partition, and the partitions are read one by one."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    written: list[Written] = []
    for partition, size in enumerate(sizes):
        first = draw(st.integers(0, 100))
        for offset in range(first, first + size):
            key = f"{partition}-{draw(st.integers(0, 2))}".encode()
            written.append(Written(content(key, str(offset).encode()), partition, offset))
    return Log(written, [ReadBack(*item[:2], item.offset or 0) for item in written])


@given(logs(), st.data())
def test_judge_finds_any_single_fault(log: Log, data: st.DataObject) -> None:
    assert judge(*log, MARK).complete
    read = list(log.read)
    place = data.draw(st.integers(0, len(read) - 1))
    record = read[place]
    match data.draw(st.sampled_from(["lose", "double", "move", "alter"])):
        case "lose":
            del read[place]
        case "double":
            read.insert(data.draw(st.integers(0, len(read))), record)
        case "move":
            read[place] = record._replace(offset=record.offset + 1_000)
        case _:
            read[place] = record._replace(content=record.content._replace(value=b"altered"))
    assert not judge(log.written, read, MARK).complete
