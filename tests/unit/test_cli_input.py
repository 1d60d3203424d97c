"""How the command line reads records: lines, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import Persistence, ProducerRecord
from anyio_sendproducer.cli import _input
from anyio_sendproducer.cli._failed import Failure
from anyio_sendproducer.cli._input import Chunk, Fields, Input, InputError, Layout, iterate, size_of
from tests.support.calls import task_group

LINES = Layout(topic="t")


def put(path: Path, content: bytes | str) -> None:
    """Write a file; async tests would be told that it blocks."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def length(path: Path) -> int:
    return path.stat().st_size


async def read(path: Path, layout: Layout) -> list[Chunk]:
    return [chunk async for chunk in Input(str(path), layout).chunks()]


async def records_of(path: Path, layout: Layout) -> list[ProducerRecord[Any, Any]]:
    chunks = await read(path, layout)
    assert not any(chunk.failures for chunk in chunks)
    return [record for record, _, _ in iterate(chunks)]


async def failures_of(path: Path, layout: Layout) -> list[tuple[int, str]]:
    chunks = await read(path, layout)
    return [(one.line, one.reason) for chunk in chunks for one in chunk.failures]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input"


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"\n\n", [b"", b""]),
        (b"a\rb\n", [b"a\rb"]),
        (b"\xff\x00\n", [b"\xff\x00"]),
        (b"\xef\xbb\xbfa\n", [b"\xef\xbb\xbfa"]),
    ],
)
async def test_lines(path: Path, content: bytes, values: list[bytes]) -> None:
    put(path, content)
    assert await records_of(path, LINES) == [ProducerRecord("t", value) for value in values]


async def test_keys_headers_and_a_partition(path: Path) -> None:
    put(path, b"k\tv\tw\nalone\n\tno key's text\n")
    layout = Layout(topic="t", key_separator=b"\t", partition=3, headers=(("h", b"1"),))
    rest: Any = {"partition": 3, "headers": (("h", b"1"),)}
    assert await records_of(path, layout) == [
        ProducerRecord("t", b"v\tw", b"k", **rest),
        ProducerRecord("t", b"alone", None, **rest),
        ProducerRecord("t", b"no key's text", b"", **rest),
    ]
    layout = dataclasses.replace(layout, key_separator=None)
    assert (await records_of(path, layout))[1] == ProducerRecord("t", b"alone", **rest)


@given(lines=st.lists(st.binary(max_size=12).filter(lambda one: b"\n" not in one)))
def test_lines_come_out_whole_whatever_the_pieces_are(lines: list[bytes]) -> None:
    lines = [line.removesuffix(b"\r") for line in lines]
    assert pieced("lines", b"".join(line + b"\n" for line in lines)) == [
        ProducerRecord("t", line) for line in lines
    ]


def pieced(format_: str, content: bytes, piece: int = 3) -> list[ProducerRecord[Any, Any]]:
    """What comes of an input that is read a few bytes at a time."""
    reading, writing = os.pipe()
    found: list[ProducerRecord[Any, Any]] = []

    async def main() -> None:
        one = Input(f"/dev/fd/{reading}", Layout(format=format_, topic="t"))
        async with task_group() as tasks:
            tasks.start_soon(write)
            async for chunk in one.chunks():
                assert not chunk.failures
                found.extend(chunk.records)

    async def write() -> None:
        for place in range(0, len(content), piece):
            await anyio.wait_writable(writing)
            os.write(writing, content[place : place + piece])
            await anyio.lowlevel.checkpoint()
        os.close(writing)

    try:
        anyio.run(main)
    finally:
        os.close(reading)
    return found


ALL_FIELDS = Fields(
    value="v", key="k", partition="p", timestamp="at", headers=(("h", "h"), ("deep", "a.b"))
)


async def test_json_lines(path: Path) -> None:
    put(path, b'\xef\xbb\xbf{"v": 1}\r\n\n  [2] \n"three"')
    layout = Layout(format="jsonl", topic="t", headers=(("h", b"1"),))
    chunk, last = await read(path, layout)
    assert [record.value for record in chunk.records] == [b'{"v": 1}', b"[2]"]
    assert list(chunk.numbers) == [1, 3]
    assert chunk.records[0].headers == (("h", b"1"),)
    assert (chunk.count, chunk.last) == (2, 3)
    # It has no end.
    assert [record.value for record in last.records] == [b'"three"']
    assert (list(last.numbers), last.last, last.position) == ([4], 4, length(path) - 3)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("text", b"text"),
        ("grün", "grün".encode()),
        (None, None),
        (7, b"7"),
        (1.5, b"1.5"),
        (True, b"true"),
        ({"ä": [1, None]}, '{"ä":[1,null]}'.encode()),
        (["\ud800"], b'["\\ud800"]'),
    ],
)
async def test_fields_as_bytes(path: Path, value: Any, sent: bytes | None) -> None:
    put(path, json.dumps({"v": value, "k": value, "h": value}))
    fields = Fields(value="v", key="k", headers=(("h", "h"),))
    (record,) = await records_of(path, Layout(format="jsonl", topic="t", fields=fields))
    headers = () if sent is None else (("h", sent),)
    assert record == ProducerRecord("t", sent, sent, headers=headers)


@pytest.mark.parametrize(
    ("at", "milliseconds"),
    [
        (1_700_000_000_123, 1_700_000_000_123),
        (1.6, 2),
        pytest.param("1700000000123", 1_700_000_000_123, id="text"),
        ("2026-01-31T12:00:00.5Z", 1_769_860_800_500),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800_000),
        (None, None),
        ("", None),
    ],
)
async def test_fields_of_all_kinds(path: Path, at: Any, milliseconds: int | None) -> None:
    # Python 3.10 reads three or six digits behind the second.
    at = at.replace(".5Z", ".500Z") if isinstance(at, str) else at
    found = {"v": "v", "k": "k", "p": 2, "at": at, "h": "1", "a": {"b": "2"}}
    put(path, json.dumps(found))
    (record,) = await records_of(path, Layout(format="jsonl", topic="t", fields=ALL_FIELDS))
    assert record == ProducerRecord(
        "t",
        b"v",
        b"k",
        partition=2,
        timestamp_ms=milliseconds,
        headers=(("h", b"1"), ("deep", b"2")),
    )


async def test_a_field_with_dots_in_its_name_comes_before_a_way_through_objects(path: Path) -> None:
    put(path, json.dumps({"a.b": "itself", "a": {"b": "below"}}))
    layout = Layout(format="jsonl", topic="t", fields=Fields(value="a.b"))
    assert [one.value for one in await records_of(path, layout)] == [b"itself"]


GOOD = {"v": "v", "k": "k", "p": 1, "at": 1, "h": 1, "a": {"b": 1}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: "),
        (b'"\xff"', "not JSON: "),
        (b"[1]", "not a JSON object"),
        (b"{}", "there is no field 'h'"),
        ({"v": "\ud800"}, "'v' has half of a surrogate pair"),
        ({"p": True}, "'p' is not a whole number"),
        ({"p": "x"}, "'p' is not a whole number"),
        ({"p": 1.5}, "'p' is not a whole number"),
        ({"a": 1}, "there is no field 'a.b'"),
        ({"at": "now"}, "'at' is neither"),
        ({"at": float("nan")}, "'at' is neither"),
        ({"at": "2026-01-31"}, "'at' has no time zone"),
    ],
    ids=str,
)
async def test_json_that_is_no_record(path: Path, line: Any, reason: str) -> None:
    good = json.dumps(GOOD).encode()
    if isinstance(line, dict):
        line = json.dumps({**GOOD, **line}).encode()
    put(path, b"\n".join([good, line, good, b""]))
    (chunk,) = await read(path, Layout(format="jsonl", topic="t", fields=ALL_FIELDS))
    assert list(chunk.numbers) == [1, 3]
    (failure,) = chunk.failures
    assert failure.reason.startswith(reason)
    assert failure._replace(reason="") == Failure(
        str(path), 2, line, "", "Unreadable", Persistence.NOT_PERSISTED
    )
    assert chunk.count == 3


async def test_csv(path: Path) -> None:
    put(path, b'\xef\xbb\xbfid,name,at\r\n1,"one, or\r\nuno",5\r\n\r\n2,"""two""",\r\n3,three,7')
    fields = Fields(key="id", timestamp="at")
    chunk, last = await read(path, Layout(format="csv", topic="t", fields=fields))
    chunk.records += last.records
    assert [json.loads(record.value)["name"] for record in chunk.records] == [
        "one, or\r\nuno",
        '"two"',
        "three",
    ]
    assert [record.key for record in chunk.records] == [b"1", b"2", b"3"]
    assert [record.timestamp_ms for record in chunk.records] == [5, None, 7]
    assert [*chunk.numbers, *last.numbers] == [2, 5, 6]


async def test_csv_of_another_layout(path: Path) -> None:
    put(path, "ä;2\nb;\n".encode())
    layout = Layout(
        format="csv",
        topic="t",
        csv_delimiter=";",
        csv_columns=("name", "n"),
        fields=Fields(value="name", partition="n"),
    )
    assert await records_of(path, layout) == [
        ProducerRecord("t", "ä".encode(), partition=2),
        ProducerRecord("t", b"b"),
    ]


async def test_csv_that_is_no_record(path: Path) -> None:
    put(path, b'a,b\n1,2\n1\n"1"x,2\n\xff,2\n3,4\n5,"6')
    assert await failures_of(path, Layout(format="csv", topic="t")) == [
        (3, "1 cells, where there are 2 columns"),
        (4, "not CSV: ',' expected after '\"'"),
        (5, "not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (7, "not CSV: unexpected end of data"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "line 1: there is no column 'k' among 'a', 'b'"),
        (b"\xff\n", "line 1: the columns' names: not UTF-8"),
    ],
)
async def test_columns_that_are_not_there(path: Path, content: bytes, message: str) -> None:
    put(path, content)
    with pytest.raises(InputError, match=message):
        await read(path, Layout(format="csv", topic="t", fields=Fields(key="k")))


@given(
    rows=st.lists(
        st.tuples(*[st.text("ab \",\n\r'", max_size=5)] * 2).filter(
            lambda row: any(cell.strip() for cell in row)
        ),
        min_size=1,
    )
)
def test_csv_comes_out_as_it_was_whatever_the_pieces_are(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    found = pieced("csv", out.getvalue().encode())
    assert [tuple(json.loads(record.value).values()) for record in found] == rows


async def test_a_file_that_goes_on_past_one_piece(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_input, "_PIECE", 10)
    put(path, b"".join(b"%d\n" % number for number in range(100)) + b"x" * 50)
    chunks = await read(path, LINES)
    assert len(chunks) > 20
    found = [(record.value, line) for record, _, line in iterate(chunks)]
    assert found == [*((b"%d" % number, number + 1) for number in range(100)), (b"x" * 50, 101)]
    positions = [chunk.position for chunk in chunks]
    assert positions == sorted(positions)
    assert positions[-1] == length(path)


async def test_a_line_that_is_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_input, "_PIECE", 1_000)
    monkeypatch.setattr(_input, "LONGEST", 5_000)
    put(path, b"a\n" + b"x" * 10_000)
    with pytest.raises(InputError, match="input, line 2: longer than "):
        await read(path, LINES)


async def test_what_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere can't be read: No such file"):
        await read(tmp_path / "nowhere", LINES)


async def test_a_device_that_can_not_be_waited_for() -> None:
    assert await read(Path("/dev/null"), LINES) == []


async def test_nothing_is_read_by_who_is_told_to_stop_before(path: Path) -> None:
    put(path, b"a\n")
    source = Input(str(path), LINES)
    source.stop()
    assert [chunk async for chunk in source.chunks()] == []
    assert not source.ended


async def test_somebody_else_was_faster(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter([None, b"a\n", b""])

    def slow(_descriptor: int, _count: int) -> bytes:
        found = next(reads)
        if found is None:
            raise BlockingIOError
        return found

    put(path, b"")
    monkeypatch.setattr(os, "read", slow)
    assert [record.value for record in await records_of(path, LINES)] == [b"a"]


def sizes(*names: str) -> int | None:
    return size_of(names)


def test_sizes(path: Path) -> None:
    put(path, b"12345")
    assert sizes(str(path), str(path)) == 10
    assert sizes(str(path), "/dev/null") is None
    assert sizes("/nowhere") is None


def test_iterate() -> None:
    records: Sequence[Any] = [ProducerRecord("t", b"a"), ProducerRecord("t", b"b")]
    chunks = [
        Chunk("one", [records[0]], [7], last=7),
        Chunk("two", [records[1]], range(1, 2), last=1),
    ]
    assert list(iterate(chunks)) == [(records[0], "one", 7), (records[1], "two", 1)]
