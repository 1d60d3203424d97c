"""Standard output and standard error of the command line: a write never raises."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, cast

import pytest

from anyio_sendproducer.cli import _running, _streams
from anyio_sendproducer.cli._streams import emit, steady_streams


class Raw(io.RawIOBase):
    """A file whose writes return or raise the given results."""

    def __init__(self, *results: int | OSError | None) -> None:
        self.results = [*results]
        self.content = b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99

    def isatty(self) -> bool:
        return True

    def write(self, data: Any, /) -> int | None:
        result = self.results.pop(0) if self.results else len(data)
        if isinstance(result, OSError):
            raise result
        if result is not None:
            self.content += bytes(data[:result])
        return result


def text_of(raw: Raw, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding)


def replace(monkeypatch: pytest.MonkeyPatch, out: Any, err: Any) -> None:
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)


def test_emit_returns_the_error_of_a_full_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "full")
    out, err = Raw(3, full), Raw()
    stream = text_of(out)
    replace(monkeypatch, stream, text_of(err))
    with steady_streams():
        assert emit(sys.stdout, "abcdef\n") is full
        # A later write may succeed.
        assert emit(sys.stdout, b"more\n") is None
        sys.stderr.write("err\n")
    assert out.content == b"abcmore\n"
    assert err.content == b"err\n"
    assert sys.stdout is stream


def test_text_that_was_buffered_before_is_written_first(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Raw()
    stream = text_of(out)
    replace(monkeypatch, stream, text_of(Raw()))
    stream.write("before ")
    with steady_streams():
        assert sys.stdout.fileno() == 99
        assert sys.stdout.isatty()
        sys.stdout.write("after\n")
    assert out.content == b"before after\n"


def test_characters_that_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Raw()
    replace(monkeypatch, text_of(out, "ascii"), text_of(Raw()))
    with steady_streams():
        assert emit(sys.stdout, "gr\u00fcn \udcff\n") is None
    assert out.content == b"gr\\xfcn \\udcff\n"


def test_a_stream_that_was_closed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, None, None)
    with steady_streams():
        assert not sys.stdout.isatty()
        with pytest.raises(io.UnsupportedOperation):
            sys.stdout.fileno()
        sys.stdout.write("nobody reads this\n")
        error = emit(sys.stderr, "nor this\n")
        assert isinstance(error, OSError)
        assert error.errno == errno.EBADF
    assert sys.stdout is None


def test_a_stream_in_memory_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO())
    replace(monkeypatch, out, err)
    with steady_streams():
        assert sys.stdout is out
        assert sys.stderr is err
        assert emit(out, "text") is None
        assert emit(err, b"bytes") is None
    err.close()
    assert isinstance(emit(err, "x"), ValueError)


def test_a_descriptor_that_another_process_made_non_blocking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[Any] = []

    def wait(*arguments: Any) -> Any:
        waited.append(arguments)
        return arguments

    monkeypatch.setattr(select, "select", wait)
    out = Raw(None, 2, None, None)
    replace(monkeypatch, text_of(out), text_of(Raw()))
    with steady_streams():
        assert emit(sys.stdout, "abc\n") is None
    assert out.content == b"abc\n"
    assert waited == [([], [out], [])] * 3


def test_closed_descriptors_are_opened_on_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def fstat(number: int) -> Any:
        if number != 1:
            raise OSError(errno.EBADF, "closed")

    def keep(*arguments: Any) -> int:
        opened.append(arguments)
        return 0

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "open", keep)
    _streams._open_closed_descriptors()
    monkeypatch.undo()
    # Opened for writing only, so that reading fails as before.
    assert opened == [(os.devnull, os.O_WRONLY)] * 2


def test_a_report_goes_to_standard_error_if_standard_output_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = Raw(OSError(errno.EPIPE, "Broken pipe")), Raw()
    replace(monkeypatch, text_of(out), text_of(err))
    with steady_streams():
        _running.print_report("report\n")
    assert err.content == (
        b"anyio-sendproducer: standard output can't be written to (Broken pipe); the result "
        b"follows:\n"
        b"report\n"
    )
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    err = Raw()
    replace(monkeypatch, closed, text_of(err))
    _running.print_report("report\n")
    assert b"(I/O operation on closed file" in err.content


def test_complain_prints_the_notes_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("wrong")
    cast("Any", error).__notes__ = ["a note"]
    assert _running.complain(error, 3) == 3
    assert capsys.readouterr().err == "anyio-sendproducer: wrong\na note\n"
