"""How the command line reads records: lines, JSON and CSV."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import Persistence, ProducerRecord
from anyio_sendproducer.cli import _input
from anyio_sendproducer.cli._chunks import Chunk, InputError, Layout, iterate
from anyio_sendproducer.cli._failed import Failure
from anyio_sendproducer.cli._fields import Fields
from anyio_sendproducer.cli._input import Input, size_of
from tests.support.calls import task_group
from tests.support.waiting import until

LINES = Layout(topic="t")


def put(path: Path, content: bytes | str) -> None:
    """Write a file. The linter forbids blocking calls in async functions."""
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
        # Only CR and LF together end a line.
        (b"a\r", [b"a\r"]),
        (b"a\r\r\nb\r", [b"a\r", b"b\r"]),
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
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes]) -> None:
    lines = [line.removesuffix(b"\r") for line in lines]
    assert pieced("lines", b"".join(line + b"\n" for line in lines)) == [
        ProducerRecord("t", line) for line in lines
    ]


def pieced(format_: str, content: bytes, piece: int = 3) -> list[ProducerRecord[Any, Any]]:
    """The records of an input that is read `piece` bytes at a time."""
    records, failures = pieced_with_failures(Layout(format=format_, topic="t"), content, piece)
    assert not failures
    return records


def pieced_with_failures(
    layout: Layout, content: bytes, piece: int
) -> tuple[list[ProducerRecord[Any, Any]], list[Failure]]:
    """The records and failures of an input that is read `piece` bytes at a time."""
    reading, writing = os.pipe()
    found: list[ProducerRecord[Any, Any]] = []
    failures: list[Failure] = []

    async def main() -> None:
        one = Input(f"/dev/fd/{reading}", layout)
        async with task_group() as tasks:
            tasks.start_soon(write)
            async for chunk in one.chunks():
                failures.extend(chunk.failures)
                found.extend(chunk.records)

    async def write() -> None:
        for place in range(0, len(content), piece):
            await anyio.wait_writable(writing)
            os.write(writing, content[place : place + piece])
            await anyio.lowlevel.checkpoint()
        os.close(writing)

    try:
        with pytest.MonkeyPatch.context() as patch:
            # Otherwise, a reader that is late gets several pieces as one.
            patch.setattr(_input, "_PIECE", piece)
            anyio.run(main)
    finally:
        os.close(reading)
    return found, failures


# --- compared with Python's own readers ----------------------------------------------------------

PIECES = st.integers(1, 40)
MARKS = (b"", b"\xef\xbb\xbf")


@given(content=st.binary(max_size=60), piece=PIECES)
def test_lines_equal_those_of_python(content: bytes, piece: int) -> None:
    records, failures = pieced_with_failures(LINES, content, piece)
    assert not failures
    found = [record.value for record in records]
    ends = [b"\r\n" if line.endswith(b"\r\n") else b"\n" for line in io.BytesIO(content)]
    lines = [line.removesuffix(end) for line, end in zip(io.BytesIO(content), ends, strict=True)]
    assert found == lines


#: JSON texts whose white space, escapes and numbers json.dumps() would write differently.
NUMBERS_OF_JSON = st.from_regex(
    r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,4})?", fullmatch=True
)
STRINGS_OF_JSON = st.from_regex(
    r'"([aä\u2028 {}\[\],:]|\\[nt"\\/]|\\u00[0-9a-f]{2}){0,6}"', fullmatch=True
)
SPACES_OF_JSON = st.sampled_from(["", "", " ", "\t", "  "])


def texts_of_json() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["true", "false", "null"]) | NUMBERS_OF_JSON | STRINGS_OF_JSON

    def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        items = st.builds("{}{}{}".format, SPACES_OF_JSON, inner, SPACES_OF_JSON)
        return st.lists(items, max_size=3).map(lambda some: f"[{','.join(some)}]") | objects(inner)

    return st.recursive(leaves, containers, max_leaves=6)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    spaces = SPACES_OF_JSON
    names = st.sampled_from(['"k"', '"v"', '"\\u0076"', '"other"']) | STRINGS_OF_JSON
    members = st.builds("{}{}{}:{}{}{}".format, spaces, names, spaces, spaces, values, spaces)
    return st.lists(members, max_size=4).map(lambda some: f"{{{','.join(some)}}}")


class Kept(str):
    """A number's text."""

    __slots__ = ()


def loaded(text: str) -> Any:
    """Parse JSON without loss: objects become pairs, and numbers stay text."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(
        text,
        object_pairs_hook=lambda pairs: ("object", pairs),
        parse_int=Kept,
        parse_float=Kept,
        parse_constant=refuse,
    )


def is_sent_as(sent: bytes | None, value: Any) -> bool:
    """Whether `sent` is right for a value that `loaded` returned."""
    if value is None or isinstance(value, str):
        return sent == (None if value is None else value.encode())
    return sent is not None and loaded(sent.decode()) == value


@given(
    lines=st.lists(
        objects(texts_of_json())
        | texts_of_json()
        | st.sampled_from(["", "{", "NaN", "\f1", '{"v":Infinity}', '{"v":01}', "[1,]", "\ufeff1"]),
        max_size=6,
    ),
    piece=PIECES,
    mark=st.sampled_from(MARKS),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_json_lines_equal_those_of_the_json_module(
    lines: list[str], piece: int, mark: bytes, end: str
) -> None:
    content = mark + "".join(line + end for line in lines).encode()
    # The first line may itself start with a byte order mark.
    lines = content.decode("utf-8-sig").split(end)[:-1]
    layout = Layout(format="jsonl", topic="t", fields=Fields(value="v", key="k"))
    records, failures = pieced_with_failures(layout, content, piece)
    expected: list[tuple[Any, Any]] = []
    bad: list[bytes] = []
    for line in filter(None, lines):
        try:
            kind, pairs = loaded(line)
            members = dict(pairs) if kind == "object" else {}
            expected.append((members["v"], members["k"]))
        except (ValueError, TypeError, KeyError):
            bad.append(line.strip(" \t").encode())
    assert [failure.what for failure in failures] == bad
    assert len(records) == len(expected)
    for record, (value, key) in zip(records, expected, strict=True):
        assert is_sent_as(record.value, value)
        assert is_sent_as(record.key, key)
        # A value that is not text is sent exactly as it stands in the line.
        if value is not None and not isinstance(value, str):
            assert record.value in content
    # Without fields, the value is the whole line.
    whole, failures = pieced_with_failures(Layout(format="jsonl", topic="t"), content, piece)
    assert len(whole) + len(failures) == len([*filter(None, lines)])
    assert {record.value for record in whole} <= {line.strip(" \t").encode() for line in lines}


@given(
    content=st.text('ab,"\n\r; é', max_size=50).map(lambda text: text.removeprefix("sep=")),
    piece=PIECES,
    mark=st.sampled_from(MARKS),
)
def test_csv_rows_equal_those_of_the_csv_module(content: str, piece: int, mark: bytes) -> None:
    records, failures = pieced_with_failures(COLUMNS, mark + content.encode(), piece)
    # This reads the text as a file that is opened with newline="".
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    good: list[tuple[str, ...]] = []
    bad = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            bad += 1
            continue
        if len(row) == 2:
            good.append(tuple(row))
        elif row:
            bad += 1
    assert rows_of(records) == good
    assert len(failures) == bad


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
    # The last line has no line end.
    assert [record.value for record in last.records] == [b'"three"']
    assert (list(last.numbers), last.last, last.position) == ([4], 4, length(path))


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("text", b"text"),
        ("grün", "grün".encode()),
        (None, None),
        (7, b"7"),
        (1.5, b"1.5"),
        (True, b"true"),
        ({"ä": [1, None]}, b'{"\\u00e4": [1, null]}'),
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
        # Python also reads these as dates: of 1712, and of 2026.
        pytest.param("1712050900123", 1_712_050_900_123, id="digits"),
        pytest.param("20261231", 20_261_231, id="eight-digits"),
        pytest.param("1700000000123.0", 1_700_000_000_123, id="fraction"),
        pytest.param("1.5e3", 1_500, id="exponent"),
        pytest.param(" 7 ", 7, id="spaces"),
        ("2026-01-31T12:00:00.5Z", 1_769_860_800_500),
        ("2026-01-31T13:00:00+01:00", 1_769_860_800_000),
        (None, None),
        ("", None),
    ],
)
async def test_fields_of_all_kinds(path: Path, at: Any, milliseconds: int | None) -> None:
    # Python 3.10 reads only three or six digits of a second.
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


@pytest.mark.parametrize(
    "text",
    [
        "123456789012345678.91",
        "19.990",
        "0.10",
        "1e400",
        "-0",
        "1E+2",
        "9" * 5_000,
        '{"a": 1, "a": 2}',
        '{ "a" :\t[ ] }',
        '["\\u00e4", "\\/", 1.0, {"b": {}}]',
        "{}",
        "[]",
        '{"a": "}"}',
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("around", ['{"v":%s}', '\t{ "a": [{"v": 0}], "v" : %s , "b": {"v": 0}}'])
async def test_json_is_sent_as_it_was_written(path: Path, around: str, text: str) -> None:
    put(path, around % text)
    fields = Fields(value="v", key="v", headers=(("h", "v"),))
    (record,) = await records_of(path, Layout(format="jsonl", topic="t", fields=fields))
    sent = text.encode()
    assert record == ProducerRecord("t", sent, sent, headers=[("h", sent)])


async def test_the_last_of_several_fields_with_one_name_counts(path: Path) -> None:
    put(path, '{"v": [1], "v": {"w": [2]}, "v": {"w": [3], "x": 4, "w": [ 5 ]}, "y": 6}')
    layout = Layout(format="jsonl", topic="t", fields=Fields(value="v.w", key="v"))
    (record,) = await records_of(path, layout)
    assert (record.value, record.key) == (b"[ 5 ]", b'{"w": [3], "x": 4, "w": [ 5 ]}')


async def test_a_field_with_dots_in_its_name_precedes_a_nested_field(path: Path) -> None:
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
        ({"v": "\ud800"}, "'v' contains half of a surrogate pair"),
        ({"p": True}, "'p' is not a whole number"),
        ({"p": "x"}, "'p' is not a whole number"),
        ({"p": 1.5}, "'p' is not a whole number"),
        ({"a": 1}, "there is no field 'a.b'"),
        ({"at": "now"}, "'at' is neither"),
        ({"at": True}, "'at' is neither"),
        ({"at": float("nan")}, "not JSON: NaN is not JSON"),
        (b'{"v": Infinity}', "not JSON: Infinity is not JSON"),
        (b'{"v": -Infinity}', "not JSON: -Infinity is not JSON"),
        (b'{"v": "\xed\xa0\x80"}', "not JSON: 'utf-8' codec can't decode"),
        ('{"v": "x"}'.encode("utf-16-le"), "not JSON: "),
        ({"p": "1_0"}, "'p' is not a whole number"),
        ({"p": "\u0661"}, "'p' is not a whole number"),
        ({"p": "9" * 5_000}, "'p' is not a whole number"),
        ({"at": "9" * 5_000}, "'at' is neither"),
        ({"at": "2026-01-31"}, "'at' has no time zone"),
    ],
    ids=str,
)
async def test_json_that_is_not_a_record(path: Path, line: Any, reason: str) -> None:
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


@pytest.mark.parametrize("format_", ["jsonl", "failed"])
async def test_json_that_is_nested_too_deeply(path: Path, format_: str) -> None:
    line = b"[" * 200_000
    put(path, b"\n".join([line, b"{", b""]))
    assert await failures_of(path, Layout(format=format_, topic="t")) == [
        (1, "the JSON is nested too deeply"),
        (
            2,
            "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
    ]


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


COLUMNS = Layout(format="csv", topic="t", csv_columns=("a", "b"))


def rows_of(records: Sequence[ProducerRecord[Any, Any]]) -> list[tuple[str, ...]]:
    return [tuple(json.loads(record.value).values()) for record in records]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        pytest.param('1,5" pipe\n2,"6"" pipe"\n', [("1", '5" pipe'), ("2", '6" pipe')], id="marks"),
        pytest.param(",\n1,2\n", [("", ""), ("1", "2")], id="empty-cells"),
        pytest.param("\n\r\n1,2\n", [("1", "2")], id="blank-lines"),
        pytest.param("1,2\r3,4\r", [("1", "2"), ("3", "4")], id="carriage-returns"),
        pytest.param('1,"2\r3"\r', [("1", "2\r3")], id="carriage-return-in-a-cell"),
        pytest.param("sep=;\n1;2,\n", [("1", "2,")], id="excel"),
        pytest.param('"sep=\t"\r\n1\t2\r\n', [("1", "2")], id="excel-in-marks"),
        pytest.param("1,2\nsep=;\n", [("1", "2"), None], id="excel-too-late"),
        pytest.param(f"1,{'x' * 200_000}\n", [("1", "x" * 200_000)], id="long-cell"),
    ],
)
async def test_csv_by_the_rules_of_the_csv_module(
    path: Path, content: str, rows: list[tuple[str, ...] | None]
) -> None:
    put(path, content)
    chunks = await read(path, COLUMNS)
    records = [record for record, _, _ in iterate(chunks)]
    assert rows_of(records) == [row for row in rows if row is not None]
    assert sum(len(chunk.failures) for chunk in chunks) == rows.count(None)


async def test_a_row_of_one_tab_has_two_empty_cells(path: Path) -> None:
    put(path, "a\tb\n\t\n1\t\n")
    layout = Layout(format="csv", topic="t", csv_delimiter="\t")
    assert rows_of(await records_of(path, layout)) == [("", ""), ("1", "")]


async def test_the_separator_line_of_excel_is_not_the_header(path: Path) -> None:
    put(path, "\ufeffsep=;\r\nid;name\r\n1;x\r\n")
    chunks = await read(path, Layout(format="csv", topic="t", fields=Fields(key="id")))
    ((record, _, line),) = iterate(chunks)
    assert (record.key, record.value, line) == (b"1", b'{"id":"1","name":"x"}', 3)


async def test_columns_with_the_same_name(path: Path) -> None:
    put(path, "id,x,x\n1,2,3\n")
    with pytest.raises(InputError, match=r"input, line 1: 2 columns have the name 'x'"):
        await read(path, Layout(format="csv", topic="t"))
    fields = Fields(value="id", key="x")
    with pytest.raises(InputError, match=r"input, line 1: 2 columns have the name 'x'"):
        await read(path, Layout(format="csv", topic="t", fields=fields))
    # These fields use none of the duplicate columns.
    layout = Layout(format="csv", topic="t", fields=Fields(value="id", key="id"))
    assert await records_of(path, layout) == [ProducerRecord("t", b"1", b"1")]


async def test_a_row_that_is_not_csv_ends_with_its_line(path: Path) -> None:
    put(path, '"1"x,"2\n3,4\n"5\n6"7,"8\n9,10\n')
    (chunk,) = await read(path, COLUMNS)
    assert rows_of(chunk.records) == [("3", "4"), ("9", "10")]
    assert [(one.line, one.what) for one in chunk.failures] == [
        (1, b'"1"x,"2'),
        (3, b'"5\n6"7,"8'),
    ]


async def test_csv_that_is_not_a_record(path: Path) -> None:
    put(path, b'a,b\n1,2\n1\n"1"x,2\n\xff,2\n3,4\n5,"6')
    assert await failures_of(path, Layout(format="csv", topic="t")) == [
        (3, "the row has 1 cell, and there are 2 columns"),
        (4, "not CSV: ',' expected after '\"'"),
        (5, "not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (7, "not CSV: unexpected end of data"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "line 1: there is no column 'k' among 'a', 'b'"),
        (b"\xff\n", "line 1: the names of the columns can't be read: not UTF-8"),
    ],
)
async def test_missing_columns(path: Path, content: bytes, message: str) -> None:
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
def test_csv_rows_do_not_depend_on_the_pieces(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    found = pieced("csv", out.getvalue().encode())
    assert [tuple(json.loads(record.value).values()) for record in found] == rows


def test_a_cell_of_many_lines_may_arrive_in_pieces() -> None:
    records, failures = pieced_with_failures(COLUMNS, b'1,"2\n3\n4"\n', 1)
    assert rows_of(records) == [("1", "2\n3\n4")]
    assert not failures


async def test_a_byte_order_mark_is_not_in_the_first_key(path: Path) -> None:
    put(path, b"\xef\xbb\xbfk=v\n\xef\xbb\xbfk=v\n")
    first, second = await records_of(path, Layout(topic="t", key_separator=b"="))
    assert (first.key, second.key) == (b"k", b"\xef\xbb\xbfk")


def test_a_byte_order_mark_may_arrive_in_pieces() -> None:
    assert pieced("jsonl", b"\xef\xbb\xbf1\n", 1) == [ProducerRecord("t", b"1")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(topic="t", format="jsonl"),
        Layout(topic="t", format="failed"),
        Layout(topic="t", format="csv"),
        Layout(topic="t", key_separator=b"="),
    ],
    ids=["jsonl", "failed", "csv", "keys"],
)
async def test_utf_16_is_refused(path: Path, layout: Layout, encoding: str) -> None:
    put(path, "\ufeffa\nb\n".encode(encoding))
    with pytest.raises(InputError, match=r"input is UTF-16, and UTF-8 is expected: convert it"):
        await read(path, layout)


async def test_a_file_of_several_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(InputError, match="input, line 2: the line is longer than "):
        await read(path, LINES)


async def test_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere can't be read: No such file"):
        await read(tmp_path / "nowhere", LINES)


async def test_a_device_that_cannot_be_polled() -> None:
    assert await read(Path("/dev/null"), LINES) == []


async def test_an_input_that_is_stopped_first_reads_nothing(path: Path) -> None:
    put(path, b"a\n")
    source = Input(str(path), LINES)
    source.stop()
    assert [chunk async for chunk in source.chunks()] == []
    assert not source.ended


async def test_another_process_may_read_the_available_bytes_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# --- input that was read is not dropped -----------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[str, int]]:
    """The path of a pipe, and the descriptor to write to."""
    reading, writing = os.pipe()
    yield f"/dev/fd/{reading}", writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["file", "pipe", "standard input"])
async def test_lines_after_a_refused_header_become_failures_if_read_from_a_pipe(
    kind: str, path: Path, pipe: tuple[str, int]
) -> None:
    content = b"a,a\n1,2\n3,4"
    os.write(pipe[1], content)
    put(path, content)
    name = {"file": str(path), "pipe": pipe[0], "standard input": "-"}[kind]
    source = Input(name, Layout(format="csv", topic="t"))
    if kind == "standard input":
        source._descriptor = int(pipe[0].rpartition("/")[2])
    failures: list[Failure] = []

    async def gather() -> None:
        async for chunk in source.chunks():
            failures.extend(chunk.failures)

    with pytest.raises(InputError, match="2 columns have the name 'a'"):
        await gather()
    if kind != "file":
        # A pipe cannot be read again, so its lines become failures.
        assert [(one.line, one.what) for one in failures] == [
            (1, b"a,a"),
            (2, b"1,2"),
            (3, b"3,4"),
        ]
        assert {one.reason for one in failures} == {"the command stopped reading here"}
    else:
        assert failures == []


async def test_an_exception_of_a_parser_fails_only_its_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Input(str(path), Layout(format="jsonl", topic="t"))
    parse = source._parser.parse

    def raise_once(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(source._parser, "parse", parse)
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(source._parser, "parse", raise_once)
    put(path, b"1\n2\n3")
    first, last = [chunk async for chunk in source.chunks()]
    assert [(one.line, one.what, one.error) for one in first.failures] == [
        (1, b"1", "ZeroDivisionError"),
        (2, b"2", "ZeroDivisionError"),
    ]
    assert {one.reason for one in first.failures} == {"unexpected ZeroDivisionError: a fault"}
    assert [record.value for record in last.records] == [b"3"]
    assert [*last.numbers] == [3]


async def test_an_exception_of_a_parser_at_the_end_of_the_input(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Input(str(path), LINES)

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(source._parser, "parse", fail)
    put(path, b"1")
    (chunk,) = [chunk async for chunk in source.chunks()]
    assert [one.what for one in chunk.failures] == [b"1"]


async def test_an_exception_while_a_record_is_made_fails_only_its_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Input(str(path), Layout(format="jsonl", topic="t"))

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault")

    put(path, b"1")
    monkeypatch.setattr(source._parser, "_record", fail)
    (chunk,) = [chunk async for chunk in source.chunks()]
    assert [(one.line, one.what, one.error) for one in chunk.failures] == [
        (1, b"1", "ZeroDivisionError")
    ]


async def test_stop_ends_the_wait_for_a_pipe(pipe: tuple[str, int]) -> None:
    source = Input(pipe[0], LINES)
    found: list[Chunk] = []

    async def gather() -> None:
        found.extend([chunk async for chunk in source.chunks()])

    async with task_group() as tasks:
        tasks.start_soon(gather)
        await until(lambda: source._waiting is not None)
        await anyio.wait_all_tasks_blocked()
        source.stop()
    assert (found, source.ended) == ([], False)


async def test_standard_input(pipe: tuple[str, int]) -> None:
    source = Input("-", LINES)
    source._descriptor = int(pipe[0].rpartition("/")[2])
    os.write(pipe[1], b"1\n2")
    async with contextlib.aclosing(source.chunks()) as chunks:
        first = await anext(chunks)
        source.stop()
        (last,) = [chunk async for chunk in chunks]
    assert [record.value for record in first.records] == [b"1"]
    assert [one.what for one in last.failures] == [b"2"]
    os.fstat(source._descriptor)  # standard input is still open


async def test_leftover_has_the_unfinished_last_line(pipe: tuple[str, int]) -> None:
    source = Input(pipe[0], LINES)
    os.write(pipe[1], b"1\n2\nhalf")
    async with contextlib.aclosing(source.chunks()) as chunks:
        async for _ in chunks:
            break
    (chunk,) = source.leftover()
    assert [(one.line, one.what) for one in chunk.failures] == [(3, b"half")]
    assert source.leftover() == []
