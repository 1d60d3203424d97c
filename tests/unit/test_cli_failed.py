"""The file of failed records: it can be read again, and no failure is lost."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import DeliveryTimeout, Persistence, ProducerRecord
from anyio_sendproducer.cli._account import Account
from anyio_sendproducer.cli._failed import FailedFile, Failure, Unreadable, dump, load
from anyio_sendproducer.cli._report import report

CONTENT = st.none() | st.binary(max_size=8) | st.text(max_size=8).map(str.encode)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
RECORDS = st.builds(
    ProducerRecord,
    st.just("t"),
    CONTENT,
    CONTENT,
    partition=st.none() | st.integers(0, 5),
    timestamp_ms=st.none() | st.integers(0, 2**62),
    headers=st.lists(st.tuples(NAMES, st.binary(max_size=4))),
)


def failure(what: Any, reason: str = "r") -> Failure:
    return Failure("in", 3, what, reason, "E", Persistence.NOT_PERSISTED)


@given(record=RECORDS)
def test_a_record_survives_a_round_trip(record: ProducerRecord[Any, Any]) -> None:
    line = dump(failure(record))
    assert line.count(b"\n") == 1
    assert load(line, None) == record
    assert load(line, "other").topic == "other"


def test_a_line_has_the_reason() -> None:
    record = ProducerRecord("t", b"\xff", b"key", headers=[("h", b"x")])
    error = DeliveryTimeout("too late", record=record, persistence=Persistence.POSSIBLY_PERSISTED)
    assert json.loads(dump(Failure.of("in", 3, error))) == {
        "topic": "t",
        "partition": None,
        "timestamp_ms": None,
        "key": "key",
        "value": {"base64": "/w=="},
        "headers": [["h", "x"]],
        "reason": "too late",
        "error": "DeliveryTimeout",
        "persistence": "possibly persisted",
        "source": "in",
        "line": 3,
    }


@given(given_=st.binary(max_size=10))
def test_unreadable_input_survives_a_round_trip(given_: bytes) -> None:
    with pytest.raises(Unreadable, match=r"^not this$") as caught:
        load(dump(failure(given_, "not this")), "t")
    assert caught.value.given == given_


def test_a_lone_surrogate_in_a_reason() -> None:
    line = dump(failure(b"x", "\ud800 ä"))
    assert json.loads(line)["reason"] == "\ud800 ä"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "'topic' is not text"),
        ('{"topic": "t", "partition": "1"}', "'partition' is not a whole number"),
        ('{"topic": "t", "timestamp_ms": true}', "'timestamp_ms' is not a whole number"),
        ('{"topic": "t", "value": 1}', "'value' is neither"),
        ('{"topic": "t", "key": {"base64": "*"}}', "'key' is neither"),
        ('{"topic": "t", "key": {"base64": 1}}', "'key' is neither"),
        ('{"topic": "t", "key": "\\ud800"}', "'key' is neither"),
        ('{"topic": "t", "headers": [["a"]]}', "'headers' is not a list"),
        ('{"topic": "t", "headers": [["a", null]]}', "'headers' is not a list"),
        ('{"topic": "t", "headers": {"a": "b"}}', "'headers' is not a list"),
        ('{"topic": "t", "headers": [["\\ud800", "b"]]}', "'headers' is neither"),
    ],
)
def test_a_line_that_is_not_a_failure(entry: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=f"^{reason}") as caught:
        load(entry.encode(), None)
    assert caught.value.given is None


def test_the_file_exists_from_the_start_and_is_deleted_if_nothing_failed(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    file = FailedFile(path)
    assert path.exists()
    file.close()
    assert not path.exists()


def test_each_write_leaves_whole_lines_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    file = FailedFile(path)
    for number in range(1, 4):
        file.write([failure(b"%d" % number), failure(b"x")])
        assert len(path.read_bytes().splitlines()) == file.written == 2 * number
    file.close()
    assert path.exists()


def test_an_existing_empty_file_is_used_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    path.touch()
    FailedFile(path).close()
    assert path.exists()


def test_a_file_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    path.write_text("x")
    with pytest.raises(FileExistsError, match="failed exists and is not empty"):
        FailedFile(path)
    assert path.read_text() == "x"


ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="needs the modes and kinds of files of POSIX")


@pytest.fixture
def no_mask() -> Iterator[None]:
    """Set the process's umask to 0."""
    before = os.umask(0)
    yield
    os.umask(before)


@ON_POSIX
@pytest.mark.usefixtures("no_mask")
def test_only_the_user_can_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    file = FailedFile(path)
    file.write([failure(b"1")])
    file.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@ON_POSIX
@pytest.mark.parametrize("target", ["missing", "empty", "directory"])
def test_a_symbolic_link_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    before = sorted(tmp_path.iterdir())
    path = tmp_path / "failed"
    path.symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError, match="failed is a symbolic link, which is not followed"):
        FailedFile(path)
    assert sorted(tmp_path.iterdir()) == sorted([*before, path])


@ON_POSIX
def test_a_fifo_without_a_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    os.mkfifo(path)
    with pytest.raises(OSError, match="no process reads from this FIFO"):
        FailedFile(path)


@ON_POSIX
def test_a_fifo_with_a_reader_gets_all_failures_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        file = FailedFile(path)
        assert os.get_blocking(file._file.fileno())  # so a write waits for a slow reader
        file.write([failure(b"1")])
        file.close()
        assert json.loads(os.read(reader, 10_000))["input"] == "1"
    finally:
        os.close(reader)
    assert (file.written, file.error) == (1, None)
    assert path.exists()


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
        FailedFile(tmp_path)


@ON_POSIX
def test_a_file_that_replaced_ours_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "failed"
    file = FailedFile(path)
    other = tmp_path / "other"
    other.touch()
    other.rename(path)
    file.close()
    assert path.exists()
    assert file.error is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_failures_go_to_standard_error_if_the_disk_is_full(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    file = FailedFile(Path("/dev/full"))
    file.write([failure(b"1"), failure(b"2")])
    file.close()
    first, *lines = capfdbinary.readouterr().err.splitlines()
    assert first == (
        b"anyio-sendproducer: /dev/full can't be written to (No space left on device); the other "
        b"failures follow:"
    )
    assert [json.loads(line)["input"] for line in lines] == ["1", "2"]
    assert (file.written, file.spilt) == (0, 2)


class Narrow:
    """A file on a disk that has space for `room` more bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.content = b""

    def write(self, data: memoryview) -> int:
        taken = min(self.room, 7, len(data))
        if not taken:
            raise OSError(28, os.strerror(28))
        self.room -= taken
        self.content += data[:taken]
        return taken

    def seek(self, offset: int, whence: int) -> int:
        assert (offset, whence) == (0, os.SEEK_END)
        return len(self.content)

    def truncate(self, size: int) -> None:
        self.content = self.content[:size]


@pytest.mark.parametrize("room", [0, 1, 100, 150, 10_000])
def test_a_disk_that_becomes_full_loses_nothing(
    room: int, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = FailedFile(tmp_path / "failed")
    disk = Narrow(room)
    with file._file as real:
        file._file = disk  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        file.write([failure(b"%d" % number) for number in range(3)])
        file._file = real
    sys.stderr.flush()
    spilt = capfdbinary.readouterr().err.splitlines()[1:]
    # Half a line does not stay in the file, because the next line would continue it.
    whole = disk.content.splitlines()
    assert [json.loads(line)["input"] for line in [*whole, *spilt]] == ["0", "1", "2"]
    assert len(whole) == file.written
    assert file.spilt == len(spilt) == 3 - file.written
    assert bool(spilt) is (room < 10_000)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (3, "3 records are in failed (2 not persisted, 1 possibly persisted)"),
        (1, "1 record is in failed (of all failures: 2 not persisted, 1 possibly persisted)"),
    ],
)
def test_the_report_says_which_failures_it_counts(
    written: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    account = Account()
    account.has_begun = account.all_read = True
    sent = ProducerRecord("t", b"v")
    maybe = Failure("in", 3, sent, "r", "E", Persistence.POSSIBLY_PERSISTED)
    account.count_failed([failure(b"1"), failure(sent), maybe])
    assert say(account, written) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{says}. To send them again:" in lines
    assert "1 line could not be read as a record, and will fail again: correct the input." in lines


def test_the_report_counts_the_unreadable_lines_in_the_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    account = Account()
    account.has_begun = account.all_read = True
    account.count_failed([failure(b"1"), failure(b"2")])
    assert say(account, 1) == 1
    printed = capsys.readouterr().out
    assert "1 line could not be read as a record. The reasons are in failed." in printed
    assert "1 more failure could only be written to standard error." in printed


def say(account: Account, written: int) -> int:
    """Print the report of a run whose other failures went to standard error."""
    spilt = account.failures - written
    file: Any = SimpleNamespace(path="failed", written=written, spilt=spilt, lost=0, error=None)
    return report(account, file, as_json=False)


class Closed:
    """A standard error that accepts no writes."""

    def write(self, _: str) -> int:
        raise OSError(32, os.strerror(32))


def test_failures_that_cannot_be_written_are_kept_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FailedFile(tmp_path / "failed")
    disk = Narrow(0)
    monkeypatch.setattr(sys, "stderr", Closed())
    with file._file as real:
        file._file = disk  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        file.write([failure(b"1"), failure(b"2")])
        assert (file.written, file.spilt, file.lost) == (0, 0, 2)
        disk.room = 10_000
        file.write([failure(b"3")])
        file._file = real
    assert [json.loads(line)["input"] for line in disk.content.splitlines()] == ["1", "2", "3"]
    assert (file.written, file.spilt, file.lost) == (3, 0, 0)


def test_close_writes_the_kept_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "failed"
    file = FailedFile(path)
    real = file._file
    file._file = Narrow(0)  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        file.write([failure(b"1")])
        assert file.lost == 1
    file._file = real
    file.close()
    assert json.loads(path.read_bytes())["input"] == "1"
    assert (file.written, file.lost, file.error) == (1, 0, None)


@pytest.mark.parametrize(
    ("error", "counts"), [(errno.EIO, True), (errno.EINVAL, False)], ids=["disk", "pipe"]
)
def test_an_error_of_fsync_counts_only_for_a_disk(
    error: int, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(error, os.strerror(error))

    file = FailedFile(tmp_path / "failed")
    file.write([failure(b"1")])
    monkeypatch.setattr(os, "fsync", fail)
    file.close()
    assert (file.error is not None) is counts
    assert file._file.closed


def test_closing_a_deleted_file_is_not_an_error(tmp_path: Path) -> None:
    file = FailedFile(tmp_path / "failed")
    file.path.unlink()
    file.close()
    assert file.error is None


def test_a_record_that_json_cannot_represent(tmp_path: Path) -> None:
    file = FailedFile(tmp_path / "failed")
    record = ProducerRecord("t", "value")  # text, where bytes are expected
    file.write([failure(record), failure(b"2")])
    file.close()
    first, second = map(json.loads, file.path.read_bytes().splitlines())
    assert "value" in first["input"]
    assert first["reason"].startswith("r (written as text because of ")
    assert second["input"] == "2"


@pytest.mark.parametrize("line", ['{"topic": "t"}'.encode("utf-16"), b'{"topic": "\xed\xa0\x80"}'])
def test_only_utf_8_is_read(line: bytes) -> None:
    with pytest.raises(Unreadable, match="not JSON: 'utf-8' codec can't decode"):
        load(line, None)


def test_reasons_are_counted_in_bounded_memory() -> None:
    account = Account()
    account.count_failed([failure(b"", str(number)) for number in range(150)])
    account.count_failed([failure(b"", reason) for reason in ("7", "7", "149")])
    assert len(account.reasons) == 100
    assert account.reasons.most_common(1) == [("7", 3)]
    assert account.failures == 153
