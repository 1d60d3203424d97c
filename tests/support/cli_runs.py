"""Run the command line: in this process, or as a process with a terminal for its progress bar."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

from anyio_sendproducer import cli
from anyio_sendproducer.cli import _reading
from tests.support.waiting import blocking_until

__all__ = [
    "PATIENCE",
    "Outage",
    "Run",
    "account_for_each_line",
    "entries",
    "numbered",
    "plain",
    "producing",
    "run_main",
    "values_in",
]

#: Seconds for each wait.
PATIENCE: Final = 120.0

#: The text of the bar, and the control sequences of a terminal.
_BAR: Final = re.compile(r"([\d,]+) sent +([\d,]+)/s +([\d,]+) in flight +([\d,]+) failed")
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(text: str) -> str:
    """Remove the control sequences from a terminal's output."""
    return _ESCAPE.sub("", text)


class Run:
    """A run of ``produce``, whose standard error is a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self._screen = screen
        self._seen: list[bytes] = []
        self._out = b""
        self._threads = [
            threading.Thread(target=self._watch, name="screen"),
            threading.Thread(target=self._read, name="stdout"),
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        # Reading fails after the last process has closed the terminal.
        with contextlib.suppress(OSError):
            while data := os.read(self._screen, 65_536):
                self._seen.append(data)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._out = self.process.stdout.read()

    @property
    def screen(self) -> str:
        """The terminal's output so far, as text."""
        return plain(b"".join(self._seen).decode())

    @property
    def bars(self) -> list[tuple[int, ...]]:
        """The numbers of each drawing of the bar: records sent, their rate, in flight, and
        failed."""
        return [
            tuple(int(figure.replace(",", "")) for figure in found)
            for found in _BAR.findall(self.screen)
        ]

    def wait_for_bar(self, condition: Callable[[tuple[int, ...]], bool]) -> None:
        """Wait until the bar meets the condition."""
        blocking_until(
            lambda: self.process.poll() is not None or any(map(condition, self.bars[-20:])),
            PATIENCE,
        )
        assert any(map(condition, self.bars)), self.screen[-2_000:]

    def write(self, lines: Iterable[bytes]) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.writelines(lines)
        self.process.stdin.flush()

    def close_input(self) -> None:
        """End its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended, and return the exit code."""
        code = self.process.wait(PATIENCE * 5)
        for thread in self._threads:
            thread.join(PATIENCE)
        return code

    @property
    def out(self) -> str:
        """Wait until it has ended, and return its standard output."""
        return self._out.decode()

    @property
    def report(self) -> dict[str, Any]:
        """Wait until it has ended, and parse the report of ``--json``."""
        found: dict[str, Any] = json.loads(self._out)
        return found


@contextmanager
def producing(*arguments: str, directory: Path, stdin: bool = False) -> Generator[Run, None, None]:
    """Run ``anyio-sendproducer produce``."""
    screen, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "anyio_sendproducer", "produce", *arguments],
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=its_end,
        cwd=directory,
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
    )
    os.close(its_end)
    run = Run(process, screen)
    try:
        yield run
    finally:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        process.kill()
        run.end()
        assert process.stdout is not None
        process.stdout.close()
        os.close(screen)


def entries(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a failed file. If the file was deleted, there are none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def values_in(address: str, topic: str) -> list[bytes | None]:
    """Read the values of a topic with another client, partition by partition."""
    starts = _reading.prepare_topic(address, topic, 4)
    found = _reading.read_back(address, topic, dict.fromkeys(starts, 0), PATIENCE)
    return [one.content.value for one in found]


def run_main(*arguments: str) -> int:
    """The command's exit code, whether it returns it or exits with it."""
    try:
        return cli.main(arguments)
    except SystemExit as error:
        return cast("int", error.code)


def numbered(count: int, begin: int = 0) -> list[bytes]:
    """Make lines whose text is their number."""
    return [b"%d\n" % number for number in range(begin, begin + count)]


class Outage(Protocol):
    """A broker that a test can take away and bring back; the fault proxy is one."""

    address: str

    def refuse(self) -> None: ...
    def heal(self) -> None: ...


def account_for_each_line(
    proxy: Outage,
    directory: Path,
    *,
    lines: int,
    loop: str,
    driver: str,
    timeout: str,
    as_file: bool,
) -> Run:
    """Send a number of lines through an outage, and check the outcome of each.

    Args:
        proxy: the broker, or the proxy in front of it.
        directory: an empty directory.
        lines: the number of lines.
        loop: the event loop's name.
        driver: the driver's name.
        timeout: the delivery timeout, in seconds. The outage is longer than a timeout below ten
            seconds, and shorter than a longer one.
        as_file: True: the command reads the lines from a large file. False: it reads them from its
            standard input, in portions.
    """
    fails = float(timeout) < 10
    arguments = ["-b", proxy.address, "-t", "outage", "--loop", loop, "--driver", driver]
    arguments += ["--delivery-timeout", timeout, "--failed", "failed", "--json"]
    if as_file:
        with (directory / "in").open("wb") as file:
            file.writelines(numbered(lines))
        arguments.append("in")
    half = lines // 2
    with producing(*arguments, directory=directory, stdin=not as_file) as run:
        if not as_file:
            run.write(numbered(half))
        run.wait_for_bar(lambda bar: bar[0] >= (half if not as_file else lines // 10))
        proxy.refuse()
        if not as_file:
            run.write(numbered(500, half))
        before = len(run.bars)
        if fails:
            run.wait_for_bar(lambda bar: bar[3] > 0)
        else:
            # It makes no progress, with records in flight.
            blocking_until(
                lambda: (
                    len(run.bars) > before + 10
                    and len({bar[0] for bar in run.bars[-5:]}) == 1
                    and run.bars[-1][2] > 0
                ),
                PATIENCE,
            )
        proxy.heal()
        if not as_file:
            run.write(numbered(lines - half - 500, half + 500))
            run.close_input()
        code = run.end()
        report = run.report
    failed = entries(directory / "failed")
    # The bar had a rate, and its last numbers agree with the report.
    assert max(bar[1] for bar in run.bars) > 0
    sent, _, in_flight, bad = run.bars[-1]
    assert (sent, in_flight, bad) == (report["delivered"], 0, report["failed"])
    assert code == report["exit_code"] == (1 if failed else 0)
    assert bool(failed) is fails
    # Every line is accounted for.
    assert report["read"] == lines
    assert report["delivered"] + len(failed) == lines
    assert report["failed"] == len(failed)
    assert sum(row["records"] for row in report["partitions"]) == report["delivered"]
    # The account is true: each line is in the failed file or in the log, and no line reported as
    # not written is in the log.
    everything = {b"%d" % number for number in range(lines)}
    missing = {entry["value"].encode() for entry in failed}
    assert len(missing) == len(failed)
    held = set(values_in(proxy.address, "outage"))
    assert everything - missing <= held <= everything
    never = {entry["value"].encode() for entry in failed if entry["persistence"] == "not persisted"}
    assert not never & held
    # The second attempt delivers them.
    if failed:
        again = ["-b", proxy.address, "-f", "failed", "--driver", driver, "--json", "failed"]
        with producing(*again, directory=directory) as second:
            assert second.end() == 0
            assert second.report["delivered"] == len(failed)
        assert set(values_in(proxy.address, "outage")) == everything
    return run
