"""How the command line splits lines: delimiters, keys, headers, null, and whole files."""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer.cli import _decompression, _input
from anyio_sendproducer.cli._backlog import stop_at_failure
from anyio_sendproducer.cli._chunks import Chunk, HeaderMarks, InputError, Layout, iterate
from anyio_sendproducer.cli._fields import Fields
from anyio_sendproducer.cli._input import Input
from anyio_sendproducer.cli._parsing import parser_for
from anyio_sendproducer.cli._text import counted, unescaped


def some(*parts: bytes, least: int = 0) -> st.SearchStrategy[bytes]:
    """Bytes that consist of these parts."""
    return st.lists(st.sampled_from(parts), min_size=least, max_size=6).map(b"".join)


marks = some(b"\0", b"\n", b":", least=1)
plain = some(b"a", b"b", b"\r", b"\xff")
anything = some(b"a", b"\0", b"\n", b":", b"\r")


def parsed(data: bytes, layout: Layout) -> Chunk:
    """Parse a whole input."""
    chunk = Chunk("in")
    lines, used = parser_for(layout).parse(data, 1, chunk, is_last=True)
    assert used == len(data)
    # The first row of CSV names the columns.
    assert lines == chunk.count + (layout.format == "csv")
    return chunk


def parts(chunk: Chunk) -> list[tuple[bytes | None, bytes | None]]:
    """The keys and values of a chunk."""
    return [(record.key, record.value) for record in chunk.records]


def put(path: Path, content: bytes) -> None:
    """Write a file. The linter forbids blocking calls in async functions."""
    path.write_bytes(content)


async def values_of(path: Path, layout: Layout) -> list[Any]:
    chunks = [chunk async for chunk in Input(str(path), layout).chunks()]
    assert not any(chunk.failures for chunk in chunks)
    return [record.value for record, _, _ in iterate(chunks)]


# --- delimiters ----------------------------------------------------------------------------------


@given(st.lists(plain), marks, st.data())
def test_splitting_reverses_joining_by_a_delimiter(
    lines: list[bytes], delimiter: bytes, data: st.DataObject
) -> None:
    content = delimiter.join([*lines, b""])
    layout = Layout(topic="t", delimiter=delimiter)
    assert [value for _, value in parts(parsed(content, layout))] == lines
    # The same when the input arrives in pieces: the parser gets the rest and the next piece.
    parser, chunk, rest, found = parser_for(layout), Chunk("in"), b"", list[bytes]()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        rest += content[begin:end]
        if end == len(content) or any(mark in rest for mark in parser.line_ends):
            number, used = parser.parse(rest, 1, chunk, is_last=False)
            assert number == len(chunk.records)
            found += [record.value for record in chunk.records]
            rest = rest[used:]
    assert (found, rest) == (lines, b"")


def test_without_a_delimiter_a_carriage_return_belongs_to_the_line_end() -> None:
    content = b"a\r\nb\r"
    assert parts(parsed(content, Layout(topic="t"))) == [(None, b"a"), (None, b"b\r")]
    assert parts(parsed(content, Layout(topic="t", delimiter=b"\n"))) == [
        (None, b"a\r"),
        (None, b"b\r"),
    ]


def test_a_record_of_several_lines() -> None:
    layout = Layout(topic="t", delimiter=b"\0", key_separator=b"\x1f")
    assert parts(parsed(b"k\x1fone\ntwo\0three\0", layout)) == [
        (b"k", b"one\ntwo"),
        (None, b"three"),
    ]


async def test_a_delimiter_in_two_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_input, "_PIECE", 2)
    put(tmp_path / "in", b"a--b-c--d--")
    assert await values_of(tmp_path / "in", Layout(topic="t", delimiter=b"--")) == [
        b"a",
        b"b-c",
        b"d",
    ]


# --- whole files ---------------------------------------------------------------------------------


async def test_a_file_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_input, "_PIECE", 3)
    content = b"\xff\xfea\0\r\n\r\nlast"
    put(tmp_path / "in", content)
    layout = Layout(format="file", topic="t", key=b"k", headers=(("h", b"v"),), partition=3)
    (chunk,) = [chunk async for chunk in Input(str(tmp_path / "in"), layout).chunks()]
    (record,) = chunk.records
    assert (record.key, record.value, record.headers) == (b"k", content, (("h", b"v"),))
    assert (record.partition, [*chunk.numbers]) == (3, [1])


async def test_an_empty_file_has_no_record(tmp_path: Path) -> None:
    put(tmp_path / "in", b"")
    assert await values_of(tmp_path / "in", Layout(format="file", topic="t")) == []


# --- keys and null -------------------------------------------------------------------------------


@given(plain, anything, marks, plain)
def test_the_key_is_before_the_separator_and_the_value_after_it(
    key: bytes, value: bytes, separator: bytes, null: bytes
) -> None:
    layout = Layout(
        topic="t", delimiter=b";", key_separator=separator, key=b"fixed", null_value=null
    )
    expected = (b"fixed" if key == null else key, None if value == null else value)
    assert parts(parsed(key + separator + value + b";", layout)) == [expected]


def test_a_fixed_key_is_for_lines_without_a_key() -> None:
    layout = Layout(topic="t", key=b"k", key_separator=b":")
    assert parts(parsed(b"a:b\n:c\nd\n", layout)) == [(b"a", b"b"), (b"", b"c"), (b"k", b"d")]
    assert parts(parsed(b"a:b\n", Layout(topic="t", key=b"k"))) == [(b"k", b"a:b")]


def test_a_tombstone_without_a_key_in_the_line() -> None:
    layout = Layout(topic="t", key=b"k", null_value=b"")
    assert parts(parsed(b"a\n\n", layout)) == [(b"k", b"a"), (b"k", None)]


def test_null_in_csv() -> None:
    fields = Fields("v", "k", "p", "w", (("h", "h"),))
    layout = Layout(format="csv", topic="t", null_value=b"NULL", fields=fields)
    chunk = parsed(b"k,v,p,w,h\na,NULL,NULL,NULL,NULL\nNULL,b,1,7,c\n", layout)
    first, second = chunk.records
    assert (first.key, first.value, first.partition) == (b"a", None, None)
    assert (first.timestamp_ms, first.headers) == (None, ())
    assert (second.key, second.value, second.partition) == (None, b"b", 1)
    assert (second.timestamp_ms, second.headers) == (7, (("h", b"c"),))


def test_null_in_a_row_that_is_sent_as_json() -> None:
    layout = Layout(format="csv", topic="t", null_value=b"", key=b"k")
    assert parts(parsed(b"a,b\n,1\n", layout)) == [(b"k", b'{"a":null,"b":"1"}')]


@pytest.mark.parametrize("fields", [Fields(), Fields(value="v"), Fields(key="v")])
def test_a_fixed_key_for_json(fields: Fields) -> None:
    layout = Layout(format="jsonl", topic="t", key=b"k", fields=fields)
    chunk = parsed(b'{"v": null}\n', layout)
    assert [record.key for record in chunk.records] == [b"k"]


# --- headers -------------------------------------------------------------------------------------

MARKS = HeaderMarks(b"\t", b",", b"=")


@given(
    st.lists(st.tuples(st.text("aä:"), st.sampled_from([b"", b"x", b"x=y", b"\xff", b"NULL"]))),
    st.sampled_from([b"", b"v", b"a\tb", b"k:v"]),
)
def test_headers_at_the_front_of_a_line(headers: list[tuple[str, bytes]], value: bytes) -> None:
    layout = Layout(
        topic="t",
        header_marks=MARKS,
        key_separator=b":",
        headers=(("own", b"1"),),
        null_value=b"NULL",
    )
    front = b",".join(name.encode() + b"=" + content for name, content in headers)
    (record,) = parsed(front + b"\t" + value + b"\n", layout).records
    wanted = [(name, content) for name, content in headers if content != b"NULL"]
    assert record.headers == (("own", b"1"), *wanted)
    assert (record.key, record.value) == ((b"k", b"v") if value == b"k:v" else (None, value))


def test_no_headers() -> None:
    layout = Layout(topic="t", header_marks=MARKS, null_value=b"NULL")
    assert [one.headers for one in parsed(b"\ta\nNULL\tb\n", layout).records] == [(), ()]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a=1", r"the line has no b'\t' after its headers (--headers-delimiter)"),
        (
            b"a\tb",
            "a header has no b'=' between its name and its value (--headers-key-separator)",
        ),
        (b"\xff=1\tb", "the name of a header is not UTF-8"),
    ],
)
def test_a_line_with_wrong_headers_is_unreadable(line: bytes, reason: str) -> None:
    chunk = parsed(b"\tgood\n" + line + b"\n", Layout(topic="t", header_marks=MARKS))
    assert [*chunk.numbers] == [1]
    (failure,) = chunk.failures
    assert (failure.line, failure.what, failure.reason) == (2, line, reason)


# --- escapes -------------------------------------------------------------------------------------


@given(st.binary())
def test_each_byte_has_an_escape(content: bytes) -> None:
    assert unescaped("".join(rf"\x{byte:02x}" for byte in content)) == content
    # A backslash is the only character that needs one.
    text = content.decode(errors="surrogateescape")
    assert unescaped(text.replace("\\", "\\\\")) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\0", b"\0"),
        (r"\t\n\r", b"\t\n\r"),
        (r"\x1F", b"\x1f"),
        (r"\\t", rb"\t"),
        ("\\", b"\\"),
        (r"\d|\|", rb"\d|\|"),
        ("→", "→".encode()),
    ],
)
def test_escapes(text: str, content: bytes) -> None:
    assert unescaped(text) == content


@pytest.mark.parametrize("text", [r"\x", r"\x1", r"\xg0"])
def test_an_incomplete_escape(text: str) -> None:
    with pytest.raises(ValueError, match="two hexadecimal digits"):
        unescaped(text)


def test_the_form_of_a_noun_depends_on_the_number() -> None:
    assert [counted(count, "record") for count in (0, 1, 2, 1000)] == [
        "0 records",
        "1 record",
        "2 records",
        "1,000 records",
    ]


# --- compressed files ----------------------------------------------------------------------------


def numbers(count: int) -> bytes:
    """Lines that hardly compress."""
    source = random.Random(1)
    return b"".join(source.randbytes(40).hex().encode() + b"\n" for _ in range(count))


def compress(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize("name", ["in.gz", "in.zst"])
async def test_a_compressed_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = numbers(10_000)
    # Two compressed files that were joined, as of a rotated log.
    compressed = compress(name, content[:300_000]) + compress(name, content[300_000:])
    put(path, compressed)
    source = Input(str(path), Layout(topic="t"))
    chunks = [chunk async for chunk in source.chunks()]
    assert b"".join(b"%b\n" % record.value for record, _, _ in iterate(chunks)) == content
    assert len(chunks) > 2
    positions = [chunk.position for chunk in chunks]
    assert positions == sorted(positions)
    assert positions[-1] == len(compressed)
    assert source.ended


@pytest.mark.parametrize("name", ["in.gz", "in.zst"])
async def test_a_file_that_is_large_when_decompressed_is_read_in_pieces(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    line = b"x" * 2**20 + b"\n"
    put(path, compress(name, line * 40))
    source = Input(str(path), Layout(topic="t"))
    chunks = [chunk async for chunk in source.chunks()]
    assert sum(len(chunk.records) for chunk in chunks) == 40
    assert max(len(chunk.records) for chunk in chunks) < 40


@pytest.mark.parametrize("name", ["in.gz", "in.zst"])
@pytest.mark.parametrize("spoil", ["cut", "other", "empty"])
async def test_a_compressed_file_that_is_damaged(name: str, spoil: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = {"cut": compress(name, numbers(10))[:-9], "other": b"no format\n", "empty": b""}
    put(path, content[spoil])
    source = Input(str(path), Layout(topic="t"))
    if spoil == "empty":
        assert [chunk async for chunk in source.chunks()] == []
        return
    with pytest.raises(InputError, match=r"in\.\w+ can't be decompressed: .+ standard input"):
        _ = [chunk async for chunk in source.chunks()]
    assert not source.ended


async def test_zstandard_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in.zst", b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match="zstandard"):
        _decompression.decompressing("in.zst", 0)


# --- other encodings -----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("format_", ["lines", "jsonl", "csv", "failed"])
async def test_the_error_names_a_wide_encoding_with_a_byte_order_mark(
    encoding: str, format_: str, tmp_path: Path
) -> None:
    put(tmp_path / "in", "\ufeff[1]\n".encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(InputError, match=f"in is {name}, and UTF-8 .* iconv -f {name} -t UTF-8"):
        await values_of(tmp_path / "in", Layout(format=format_, topic="t"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("format_", ["jsonl", "csv", "failed"])
async def test_the_error_names_a_wide_encoding_without_a_byte_order_mark(
    encoding: str, format_: str, tmp_path: Path
) -> None:
    put(tmp_path / "in", "ab\n".encode(encoding))
    name = encoding[:6].upper() + encoding[7:].upper()
    with pytest.raises(InputError, match=f"in is {name}, .* iconv -f {name} -t UTF-8"):
        await values_of(tmp_path / "in", Layout(format=format_, topic="t"))


@pytest.mark.parametrize(
    "layout",
    [
        Layout(topic="t"),
        Layout(topic="t", delimiter=b"\n"),
        Layout(topic="t", delimiter=b"\0"),
        Layout(format="file", topic="t"),
    ],
)
async def test_binary_lines_are_sent_as_they_are(layout: Layout, tmp_path: Path) -> None:
    """A byte order mark alone is not an error. With a delimiter, neither is a NUL byte."""
    content = b"\xff\xfea\n" if layout.delimiter is None else b"\xff\xfea\0b\n"
    put(tmp_path / "in", content)
    values = await values_of(tmp_path / "in", layout)
    end = b"" if layout.format == "file" else layout.delimiter or b"\n"
    assert end.join(values) == content.removesuffix(b"\n" if end == b"\n" else b"")


# --- records that --fail-fast leaves out ---------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=4))
def test_fail_fast_drops_records_after_the_first_unreadable_line(batch: list[list[bool]]) -> None:
    layout = Layout(format="jsonl", topic="t")
    chunks: list[Chunk] = []
    for lines in batch:
        data = b"".join(b"1\n" if is_good else b"{\n" for is_good in lines)
        chunks.append(parsed(data, layout))
    counts = [chunk.count for chunk in chunks]
    stop_at_failure(chunks)
    assert [chunk.count for chunk in chunks] == counts
    everything = [is_good for lines in batch for is_good in lines]
    good = everything.index(False) if False in everything else len(everything)
    assert len([*iterate(chunks)]) == good
    assert sum(isinstance(one.what, bytes) for chunk in chunks for one in chunk.failures) == (
        everything.count(False)
    )
