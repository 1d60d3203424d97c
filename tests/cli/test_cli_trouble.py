"""``produce`` with faults: each line that was read is delivered, or is in the failed file."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from anyio_sendproducer.cli import _running
from tests.support.cli_runs import entries
from tests.support.paths import ROOT
from tests.support.waiting import blocking_until

#: A limit above the number of records in any test.
ALL: Final = 1_000_000

#: Seconds for a process to end.
PATIENCE: Final = 120.0

NEEDS_FULL_DISK: Final = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full"
)


def lines(count: int, begin: int = 0) -> list[bytes]:
    """Return lines of JSON. Each seventh line is invalid."""
    return [
        b'{"n": %d' % number + (b"" if number % 7 == 3 else b"}")
        for number in range(begin, begin + count)
    ]


class Trouble:
    """A run of ``produce`` with a fake driver, which reads a pipe or a file."""

    def __init__(self, directory: Path, source: str, loop: str) -> None:
        self.directory = directory
        self._source = source
        self._arguments = ["produce", "-b", "x:1", "-t", "t", "-f", "jsonl", "--loop", loop]
        self._arguments += ["--failed", "failed", "--json"]
        self._process: subprocess.Popen[bytes]
        self._given: list[bytes] = []

    @contextlib.contextmanager
    def running(
        self,
        *arguments: str,
        given: Iterable[bytes],
        redirect: str = "",
        before: str = "",
        limit: int = ALL,
        fault: str = "none",
        output: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> Generator[None, None, None]:
        """Run the command.

        Args:
            arguments: arguments of the command.
            given: the lines of the input.
            redirect: redirections, in the syntax of the shell.
            before: a command that the shell runs first.
            limit: the number of records that are delivered; the others stay in flight.
            fault: an error in the process.
            output: the descriptor for both outputs; by default, both go to files.
            environment: additional variables.
        """
        command = [sys.executable, "-m", "tests.support.produce_in_trouble"]
        command += ["delivered", f"{limit}", fault, *self._arguments, *arguments]
        self._given = [*given]
        if self._source == "file":
            (self.directory / "in").write_bytes(b"".join(line + b"\n" for line in self._given))
            command.append("in")
        with (
            (self.directory / "out").open("wb") as out,
            (self.directory / "err").open("wb") as err,
            subprocess.Popen(
                ["/bin/sh", "-c", f'{before}\nexec "$@" {redirect}', "sh", *command],
                stdin=subprocess.PIPE if self._source == "pipe" else subprocess.DEVNULL,
                stdout=out if output is None else output,
                stderr=err if output is None else output,
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            ) as self._process,
        ):
            try:
                self.write(self._given)
                yield
            finally:
                self._process.kill()
                if self._process.stdin is not None:
                    with contextlib.suppress(OSError):
                        self._process.stdin.close()

    def write(self, given: Iterable[bytes]) -> None:
        """Write to the pipe."""
        if self._process.stdin is not None:
            self._process.stdin.writelines(line + b"\n" for line in given)
            self._process.stdin.flush()

    def wait_until_delivered(self, count: int) -> None:
        """Wait until `count` records are delivered, or the process has ended."""
        blocking_until(
            lambda: len(self.delivered) >= count or self._process.poll() is not None, PATIENCE
        )

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Close the pipe, and wait for the end of the process. Return the exit code."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end of the process. Return the exit code."""
        return self._process.wait(PATIENCE)

    @property
    def delivered(self) -> list[bytes]:
        """The values of the delivered records."""
        try:
            return (self.directory / "delivered").read_bytes().splitlines()
        except FileNotFoundError:
            return []

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text(errors="surrogateescape")

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text(errors="surrogateescape")

    def failed(self, path: str = "failed") -> list[bytes]:
        """Return the lines in the failed file."""
        return [
            (entry.get("input") or entry["value"]).encode()
            for entry in entries(self.directory / path)
        ]

    def account(self, count: int | None = None, *, spilt: Iterable[bytes] = ()) -> None:
        """Check that the first lines were read, and that each has one outcome.

        Args:
            count: the number of lines; None for all.
            spilt: the lines that were written to standard error.
        """
        expected = self._given[:count]
        for entry in entries(self.directory / "failed"):
            if entry["reason"] in {
                "the end of the line was not read",
                "the command stopped reading here",
            }:
                # The other half of the last line is still in the pipe.
                half = entry["input"].encode()
                assert expected[-1].startswith(half)
                expected[-1] = half
        assert sorted([*self.delivered, *self.failed(), *spilt]) == sorted(expected)

    def report(self, text: str) -> dict[str, Any]:
        """Return the report that the text contains, after a check of its counts."""
        (line,) = [line for line in text.splitlines() if line.startswith('{"exit_code"')]
        report: dict[str, Any] = json.loads(line)
        assert report["delivered"] == len(self.delivered)
        assert report["read"] == report["delivered"] + report["failed"]
        assert report["failed"] == len(self.failed()) + report["spilt"]
        return report


@pytest.fixture(
    params=[
        ("pipe", "asyncio"),
        ("file", "trio"),
        pytest.param(("pipe", "trio"), marks=pytest.mark.nightly),
        pytest.param(("file", "asyncio"), marks=pytest.mark.nightly),
    ],
    ids="-".join,
)
def trouble(request: pytest.FixtureRequest, tmp_path: Path) -> Trouble:
    return Trouble(tmp_path, *request.param)


@pytest.fixture(autouse=True)
def _not_under_nohup() -> Iterator[None]:
    """Let the processes receive SIGHUP, although the runner of the tests may ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_standard_output_is_closed(trouble: Trouble) -> None:
    with trouble.running(given=lines(500), redirect=">&-"):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    # Standard error gets the error and the report.
    assert trouble.report(trouble.err)["exit_code"] == _running.INCOMPLETE
    assert "standard output can't be written to (Bad file descriptor)" in trouble.err
    assert "Traceback" not in trouble.err


def test_standard_error_is_closed(trouble: Trouble) -> None:
    with trouble.running("--progress", given=lines(500), redirect="2>&-"):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    assert trouble.report(trouble.out)["exit_code"] == _running.INCOMPLETE


def test_both_outputs_are_closed(trouble: Trouble) -> None:
    with trouble.running("--progress", given=lines(500), redirect=">&- 2>&-"):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    # No later file got the descriptor of an output, and with it the text of that output.
    assert (trouble.out, trouble.err) == ("", "")


@NEEDS_FULL_DISK
def test_the_disk_of_both_outputs_is_full(trouble: Trouble) -> None:
    with trouble.running("--progress", given=lines(500), redirect=">/dev/full 2>/dev/full"):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()


@NEEDS_FULL_DISK
def test_the_disk_of_standard_output_is_full(trouble: Trouble) -> None:
    good = [line for line in lines(500) if line.endswith(b"}")]
    with trouble.running(given=good, redirect=">/dev/full"):
        # The exit code is the same as with a printed report.
        assert trouble.end() == _running.COMPLETE
    trouble.account()
    assert trouble.report(trouble.err)["exit_code"] == _running.COMPLETE
    assert "Exception ignored" not in trouble.err


@NEEDS_FULL_DISK
def test_the_disk_of_the_failed_file_is_full(trouble: Trouble) -> None:
    with trouble.running("--failed", "/dev/full", given=lines(500)):
        assert trouble.end() == _running.INCOMPLETE
    spilt = [
        json.loads(line)["input"].encode()
        for line in trouble.err.splitlines()
        if line.startswith("{")
    ]
    trouble.account(spilt=spilt)
    assert trouble.report(trouble.out)["spilt"] == len(spilt)


@NEEDS_FULL_DISK
def test_the_disk_of_the_failed_file_and_of_standard_error_is_full(trouble: Trouble) -> None:
    with trouble.running("--failed", "/dev/full", given=lines(1_000), redirect="2>/dev/full"):
        # These lines cannot be written anywhere, and the exit code says so.
        assert trouble.end() == _running.FAILED
    report = json.loads(trouble.out)
    assert report["lost"] == report["failed"] > 0
    assert report["read"] == report["lost"] + len(trouble.delivered)
    # The command reads no more lines.
    assert report["read"] < 1_000
    good = [line for line in lines(report["read"]) if line.endswith(b"}")]
    assert trouble.delivered == good[: len(trouble.delivered)]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda one: one.name)
def test_after_a_signal_each_read_line_has_an_outcome(
    number: signal.Signals, trouble: Trouble
) -> None:
    arguments = ["--max-in-flight", "50", "--close-timeout", "0.5"]
    with trouble.running(*arguments, given=lines(500), limit=100):
        trouble.wait_until_delivered(100)
        trouble.signal(number)
        assert trouble.wait() == 128 + number
    report = trouble.report(trouble.out)
    assert (report["signal"], report["delivered"]) == (number.name, 100)
    trouble.account(report["read"])


def test_after_a_second_sigint_each_read_line_has_an_outcome(trouble: Trouble) -> None:
    arguments = ["--max-in-flight", "50", "--close-timeout", "12"]
    with trouble.running(*arguments, given=lines(500), limit=100):
        trouble.wait_until_delivered(100)
        trouble.signal(signal.SIGINT)
        blocking_until(lambda: "interrupt again" in trouble.err, PATIENCE)
        trouble.signal(signal.SIGINT)
        assert trouble.wait() == 128 + signal.SIGINT
    report = trouble.report(trouble.out)
    assert (report["signal"], report["delivered"]) == ("SIGINT", 100)
    trouble.account(report["read"])


def test_under_nohup_sighup_is_ignored(trouble: Trouble) -> None:
    with trouble.running(given=lines(500), before="trap '' HUP"):
        trouble.wait_until_delivered(1)
        trouble.signal(signal.SIGHUP)
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    assert trouble.report(trouble.out)["signal"] is None


def test_ctrl_c_after_the_reader_of_the_outputs_has_gone(trouble: Trouble) -> None:
    reading, writing = os.pipe()
    arguments = ["--progress", "--max-in-flight", "50", "--close-timeout", "0.5"]
    with trouble.running(*arguments, given=lines(500), limit=100, output=writing):
        os.close(writing)
        trouble.wait_until_delivered(100)
        os.close(reading)
        trouble.signal(signal.SIGINT)
        assert trouble.wait() == 128 + signal.SIGINT
    read = len(trouble.delivered) + len(trouble.failed())
    assert read >= 100
    trouble.account(read)


def test_the_terminal_is_closed(trouble: Trouble) -> None:
    terminal, its_end = pty.openpty()
    with trouble.running(given=lines(500), output=its_end):
        os.close(its_end)
        trouble.wait_until_delivered(1)
        os.close(terminal)
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()


def test_a_locale_that_cannot_encode_the_name_of_the_failed_file(trouble: Trouble) -> None:
    name = os.fsdecode(b"f\xc3\xa4\xff")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ascii_only["PYTHONIOENCODING"] = "ascii"
    with trouble.running("--failed", name, given=lines(500), environment=ascii_only):
        assert trouble.end() == _running.INCOMPLETE
    (trouble.directory / name).rename(trouble.directory / "failed")
    trouble.account()
    # The report has the exact bytes of the name.
    failed_file = trouble.report(trouble.out)["failed_file"]
    assert os.fsencode(failed_file) == b"f\xc3\xa4\xff"


def test_deeply_nested_json(trouble: Trouble) -> None:
    nested = [b"[" * depth + b"]" * depth for depth in (1_100, 200_000)]
    with trouble.running("-X", "max.request.size=10000000", given=[*lines(300), *nested, b"[1]"]):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    assert b"[1]" in trouble.delivered


@pytest.mark.parametrize("fault", ["parser", "record"])
def test_a_parser_that_raises(fault: str, trouble: Trouble) -> None:
    with trouble.running(given=lines(500), fault=fault):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    # The fault only affects lines. The run continues.
    assert trouble.report(trouble.out)["errors"]["RuntimeError"] > 0


@pytest.mark.parametrize("fault", ["display", "statistics"])
def test_a_display_that_raises(fault: str, trouble: Trouble) -> None:
    # The display draws at the start and at the end of the run, so each run has the fault.
    with trouble.running("--progress", given=lines(500), fault=fault):
        assert trouble.end() == _running.INCOMPLETE
    trouble.account()
    assert trouble.report(trouble.out)["error"] is None
    assert "the progress bar failed: unexpected RuntimeError" in trouble.err


@pytest.mark.parametrize("fault", ["file", "reader", "sender"])
def test_a_task_or_thread_that_raises_ends_the_run(fault: str, trouble: Trouble) -> None:
    with trouble.running(given=lines(500), fault=fault):
        assert trouble.wait() == _running.FAILED
    report = trouble.report(trouble.out)
    assert report["exit_code"] == _running.FAILED
    assert report["error"] == "unexpected RuntimeError: a fault of the test"
    assert "Traceback" in trouble.err
    trouble.account(report["read"])
