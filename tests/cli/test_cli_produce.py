"""``produce``: each line that is read is delivered, or is written to the failed file."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from anyio_sendproducer import (
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.cli import _display, _input, _produce, _reading, _running
from anyio_sendproducer.cli._chunks import Chunk, Layout
from anyio_sendproducer.cli._connecting import Connection
from anyio_sendproducer.cli._failed import FailedFile
from anyio_sendproducer.cli._verdict import Content
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import at_gate
from tests.support.cli_runs import (
    PATIENCE,
    Run,
    account_for_each_line,
    entries,
    numbered,
    plain,
    producing,
    run_main,
    values_in,
)
from tests.support.fault_proxy import FaultProxy
from tests.support.waiting import blocking_until, until

LOOPS = ["asyncio", "trio"]
#: The event loops of tests that take seconds.
SLOW_LOOPS = ["trio", pytest.param("asyncio", marks=pytest.mark.nightly)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- with a broker -------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [*LOOPS, "uvloop"])
@pytest.mark.parametrize("name", ["kafka-python", "confluent"])
def test_lines(
    loop: str, name: str, shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = f"lines-{loop}-{name}"
    (here / "one").write_bytes(b"".join(numbered(1_500)))
    (here / "two").write_bytes(b"".join(numbered(500, 1_500)))
    arguments = ["-b", shared_broker, "-t", topic, "--loop", loop, "--driver", name]
    arguments += ["-z", "gzip", "-a", "all", "-X", "linger.ms=5", "--close-timeout", "20"]
    assert run_main("produce", *arguments, "one", "two") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    *places, total = printed.out.splitlines()
    assert total.startswith("2,000 records read, 2,000 delivered, 0 failed, in ")
    counts = [int(line.split(": ")[1].split()[0].replace(",", "")) for line in places]
    assert sum(counts) == 2_000
    assert all(line.startswith(f"{topic}, partition ") for line in places)
    assert sorted(values_in(shared_broker, topic), key=lambda one: int(one or b"")) == [
        line.rstrip() for line in numbered(2_000)
    ]
    assert sorted(path.name for path in here.iterdir()) == ["one", "two"]


def test_the_report_in_json(
    shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in.jsonl").write_text('{"k": "a", "p": 1}\n{"k": "a"}\n{"k": "b", "p": 99}\n')
    arguments = ["-b", shared_broker, "-t", "machines", "-f", "jsonl"]
    arguments += ["--key-field", "k", "--partition-field", "p", "--failed", "failed", "--json"]
    assert run_main("produce", *arguments, "in.jsonl") == 1
    report = json.loads(capsys.readouterr().out)
    assert report.pop("seconds") > 0
    (partition,) = report.pop("partitions")
    assert partition.pop("first_offset") == partition.pop("last_offset")
    assert partition == {"topic": "machines", "partition": 1, "records": 1}
    assert report == {
        "exit_code": 1,
        "read": 3,
        "delivered": 1,
        "failed": 2,
        "all_read": True,
        "last_read": {"source": "in.jsonl", "line": 3},
        "persistence": {"not persisted": 2},
        "errors": {"Unreadable": 1, "RecordRejected": 1},
        "unreadable": 1,
        "failed_file": "failed",
        "spilt": 0,
        "lost": 0,
        "signal": None,
        "error": None,
    }
    unreadable, rejected = entries(here / "failed")
    assert unreadable["input"] == '{"k": "a"}'
    assert unreadable["reason"] == "there is no field 'p'"
    assert (rejected["key"], rejected["partition"], rejected["line"]) == ("b", 99, 3)


def test_a_failed_file_can_be_sent_again(
    shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_bytes(b"good\nk=\xff\n")
    arguments = ["-b", shared_broker, "-t", "again", "-K", "=", "-p", "99", "-H", "h=\xfc"]
    assert run_main("produce", *arguments, "in") == 1
    (failed,) = here.glob("failed-*.jsonl")
    printed = capsys.readouterr()
    assert f"2 records are in {failed.name} (2 not persisted)." in printed.out
    assert "The most frequent reason (2 of 2): topic 'again' has no partition 99" in printed.out
    assert f"--format failed {failed.name}" in printed.out
    # The user fixes the file.
    failed.write_text(failed.read_text().replace('"partition": 99', '"partition": 2'))
    assert run_main("produce", "-b", shared_broker, "-f", "failed", failed.name) == 0
    assert "again, partition 2: 2 records" in capsys.readouterr().out
    assert values_in(shared_broker, "again") == [b"good", b"\xff"]


def test_each_run_has_its_own_failed_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def now(_: str) -> str:
        return "now"

    monkeypatch.setattr(time, "strftime", now)
    for _ in range(3):
        file = _produce._open_failed(None)
        file.write([])
        file.path.write_text("x")
        file.close()
    name = f"failed-now-{os.getpid()}"
    assert {path.name for path in here.iterdir()} == {
        f"{name}.jsonl",
        f"{name}-1.jsonl",
        f"{name}-2.jsonl",
    }


def test_no_acknowledgements(
    shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_bytes(b"a\n")
    assert run_main("produce", "-b", shared_broker, "-t", "acks", "-p", "0", "-a", "0", "in") == 0
    assert capsys.readouterr().out.startswith("acks, partition 0: 1 record\n")


def test_output_in_a_terminal(
    shared_broker: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    (here / "one").write_bytes(b"".join(numbered(700)))
    (here / "two").write_bytes(b"".join(numbered(500, 700)))
    arguments = ["-b", shared_broker, "-t", "bar", "-p", "2", "one", "two"]
    assert run_main("produce", *arguments) == 0
    printed = capsys.readouterr()
    last = plain(printed.err).splitlines()[-1]
    assert "1,200 sent" in last
    # The percentage covers both files.
    assert "100%" in last
    title, *table = plain(printed.out).splitlines()
    assert title.strip() == "delivered, by partition"
    (row,) = [line for line in table if "bar" in line]
    # Topic, partition, records, first offset and last offset.
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["bar", "2", "1,200", "0", "1,199"]


def test_the_last_bar_shows_the_final_figures_although_a_thread_draws_late(
    shared_broker: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    drawn: list[_display.Figures] = []
    show = _display.Bar.show

    def show_late(bar: _display.Bar, figures: _display.Figures) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)  # meanwhile all records are sent, and no other thread draws
        drawn.append(figures)
        show(bar, figures)

    monkeypatch.setattr(_display.Bar, "show", show_late)
    (here / "in").write_bytes(b"".join(numbered(700)))
    assert run_main("produce", "-b", shared_broker, "-t", "late", "in") == 0
    assert len(drawn) > 1
    assert (drawn[-1].delivered, drawn[-1].in_flight) == (700, 0)


def test_an_error_of_the_progress_bar_does_not_end_the_run(
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(_display.Bar, "show", fail)
    (here / "in").write_bytes(b"a\n")
    assert run_main("produce", "-b", "x:1", "-t", "t", "--progress", "in") == 0
    printed = capsys.readouterr()
    assert "the progress bar failed: unexpected RuntimeError: a fault\n" in printed.err
    assert "1 record read, 1 delivered" in printed.out


def test_no_progress_hides_the_progress_bar(
    shared_broker: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    (here / "in").write_bytes(b"a\n")
    assert run_main("produce", "-b", shared_broker, "-t", "b", "--no-progress", "in") == 0
    assert capsys.readouterr().err == ""


def test_an_empty_input(shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("produce", "-b", shared_broker, "-t", "none", "/dev/null") == 0
    assert re.fullmatch(
        r"0 records read, 0 delivered, 0 failed, in \d+\.\d s \(0 records/s\)\.\n",
        capsys.readouterr().out,
    )


def test_an_error_in_the_header_of_a_csv_file_ends_the_run(
    shared_broker: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in.csv").write_text("a,b\n1,2\n")
    arguments = ["-b", shared_broker, "-t", "csv", "-f", "csv", "--key-field", "c", "in.csv"]
    assert run_main("produce", *arguments) == 3
    printed = capsys.readouterr()
    assert printed.err == (
        "anyio-sendproducer: in.csv, line 1: there is no column 'c' among 'a', 'b'\n"
    )
    assert (
        "The command stopped reading before the first line. It did not read the rest."
        in printed.out
    )
    assert run_main("produce", *arguments, "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert report["error"] == "in.csv, line 1: there is no column 'c' among 'a', 'b'"
    assert (report["exit_code"], report["all_read"], report["last_read"]) == (3, False, None)


@pytest.mark.parametrize("loop", LOOPS)
def test_standard_input_and_ctrl_c(loop: str, shared_broker: str, here: Path) -> None:
    arguments = ["-b", shared_broker, "-t", f"stdin-{loop}", "--loop", loop, "--json"]
    with producing(*arguments, directory=here, stdin=True) as run:
        # Each line is sent as soon as it is read.
        run.write([b"one\n", b"two\n"])
        run.wait_for_bar(lambda bar: bar[0] == 2)
        run.write([b"three\nhalf of"])
        run.wait_for_bar(lambda bar: bar[0] == 3)
        run.signal()
        assert run.end() == 128 + signal.SIGINT
        report = run.report
    assert (report["read"], report["delivered"], report["failed"]) == (4, 3, 1)
    assert (report["signal"], report["all_read"]) == ("SIGINT", False)
    (entry,) = entries(here / report["failed_file"])
    assert (entry["input"], entry["line"]) == ("half of", 4)
    assert sorted(filter(None, values_in(shared_broker, f"stdin-{loop}"))) == [
        b"one",
        b"three",
        b"two",
    ]


# --- with a broker that stops answering ----------------------------------------------------------


def stall(run: Run, proxied: FaultProxy, *, delivered: int, more: int) -> None:
    """Wait until `delivered` lines are delivered. Then silence the broker and write `more` lines,
    and wait until 50 of them are in flight."""
    run.write(numbered(delivered))
    run.wait_for_bar(lambda bar: bar[0] == delivered)
    proxied.black_hole()
    run.write(numbered(more, delivered))
    run.wait_for_bar(lambda bar: bar[2] == 50)


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        ("asyncio", "kafka-python"),
        ("trio", "confluent"),
        pytest.param("asyncio", "confluent", marks=pytest.mark.nightly),
        pytest.param("trio", "kafka-python", marks=pytest.mark.nightly),
    ],
)
def test_the_broker_stops_answering_and_recovers(
    loop: str, name: str, proxied: FaultProxy, here: Path
) -> None:
    account_for_each_line(
        proxied, here, lines=20_000, loop=loop, driver=name, timeout="60", as_file=False
    )


@pytest.mark.parametrize(
    "name", ["kafka-python", pytest.param("confluent", marks=pytest.mark.nightly)]
)
def test_the_broker_does_not_answer_within_the_delivery_timeout(
    name: str, proxied: FaultProxy, here: Path
) -> None:
    account_for_each_line(
        proxied, here, lines=4_000, loop="asyncio", driver=name, timeout="4", as_file=False
    )


def test_a_failed_record_no_longer_counts_as_in_flight(proxied: FaultProxy, here: Path) -> None:
    arguments = ["-b", proxied.address, "-t", "late", "--failed", "failed"]
    arguments += ["--delivery-timeout", "4"]
    with producing(*arguments, directory=here, stdin=True) as run:
        stall(run, proxied, delivered=10, more=50)
        # The client still has the records, because no answer came.
        run.wait_for_bar(lambda bar: bar[3] == 50)
        assert {(bar[2], bar[3]) for bar in run.bars if bar[3]} == {(0, 50)}
        run.close_input()
        assert run.end() == 1


@pytest.mark.parametrize("hurries", [False, True])
@pytest.mark.parametrize("loop", SLOW_LOOPS)
def test_a_signal_while_the_broker_does_not_answer(
    loop: str, hurries: bool, proxied: FaultProxy, here: Path
) -> None:
    arguments = ["-b", proxied.address, "-t", "away", "--loop", loop, "--failed", "failed"]
    timeout = 40 if hurries else 2
    arguments += ["--close-timeout", f"{timeout}", "--max-in-flight", "50", "--json"]
    with producing(*arguments, directory=here, stdin=True) as run:
        stall(run, proxied, delivered=100, more=400)
        began = time.monotonic()
        run.signal(signal.SIGTERM)
        blocking_until(lambda: "interrupt again" in run.screen, PATIENCE)
        if hurries:
            run.signal()
        code = run.end()
        seconds = time.monotonic() - began
        report = run.report
    # After a second signal, the command does not wait for the whole timeout.
    assert seconds < (timeout * 3 / 4 if hurries else timeout + 25)
    assert code == 128 + signal.SIGTERM
    assert report["signal"] == "SIGTERM"
    failed = entries(here / "failed")
    assert report["read"] == 500
    assert report["delivered"] + len(failed) == 500
    assert report["delivered"] == 100
    assert {entry["value"] for entry in failed} == {str(number) for number in range(100, 500)}
    assert report["persistence"]["not persisted"] >= 350


@pytest.mark.parametrize("loop", SLOW_LOOPS)
def test_lines_that_were_read_before_ctrl_c_are_delivered(
    loop: str, proxied: FaultProxy, here: Path
) -> None:
    arguments = ["-b", proxied.address, "-t", "patience", "--loop", loop, "--failed", "failed"]
    arguments += ["--close-timeout", "30"]
    with producing(*arguments, directory=here, stdin=True) as run:
        stall(run, proxied, delivered=10, more=50)
        run.signal()
        blocking_until(lambda: "interrupt again" in run.screen, PATIENCE)
        # After a second signal, the command would give up after five seconds.
        with pytest.raises(subprocess.TimeoutExpired):
            run.process.wait(6)
        proxied.heal()
        assert run.end() == 128 + signal.SIGINT
    *_, total, stopped = run.out.splitlines()
    assert total.startswith("60 records read, 60 delivered, 0 failed, in ")
    assert stopped == (
        "The command stopped reading after line 60 of standard input. It did not read the rest."
    )
    assert set(values_in(proxied.address, "patience")) == {b"%d" % number for number in range(60)}
    assert not [*here.iterdir()]


@pytest.mark.parametrize(("timeout", "kept"), [(8.0, 2.0), (20.0, 5.0), (60.0, 5.0)])
def test_the_cancel_timeout_is_a_part_of_the_close_timeout(timeout: float, kept: float) -> None:
    order = _produce.Order(
        connection=Connection(bootstrap_servers="x:1"),
        layout=Layout(format="lines", topic="t"),
        fields={"close_timeout": timeout},
    )
    settings = _produce._settings(order)
    assert (settings.close_timeout, settings.cancel_timeout) == (timeout, kept)


def test_ctrl_c_while_the_producer_starts(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        arguments = ["-b", f"127.0.0.1:{silent.getsockname()[1]}", "-t", "t"]
        with producing(*arguments, directory=here, stdin=True) as run:
            # The command handles signals before it connects.
            connection, _ = silent.accept()
            with connection:
                run.signal()
                assert run.end() == 128 + signal.SIGINT
    assert run.out == ""
    assert run.screen == "anyio-sendproducer: interrupted\r\n"
    assert not [*here.iterdir()]


# --- without a broker ----------------------------------------------------------------------------


@pytest.fixture
def fake_producer(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Give the producer of the command a fake driver."""

    def opened(settings: ProducerSettings, *, driver: str | None) -> Any:
        assert driver is None
        return open_send_producer(settings, driver=lambda _: fake)

    monkeypatch.setattr(_produce, "open_send_producer", opened)
    return fake


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture
def signals(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MemoryObjectSendStream[signal.Signals]]:
    """A stream for the signals of a test. A send returns when the command receives the signal."""
    give, take = anyio.create_memory_object_stream[signal.Signals]()

    def receiver(*_: signal.Signals) -> Any:
        return take

    monkeypatch.setattr(anyio, "open_signal_receiver", receiver)
    with give, take:
        yield give


def job_on(path: Path, *inputs: str) -> _produce._Job:
    """Return a job that sends its inputs, by default one line, to the topic ``t``."""
    (path / "in").write_bytes(b"a\n")
    order = _produce.Order(
        connection=Connection(bootstrap_servers="x:1"),
        layout=Layout(format="lines", topic="t"),
        inputs=inputs or (str(path / "in"),),
        # Longer than the test takes.
        fields={"close_timeout": 1_000.0},
    )
    failed = FailedFile(path / "failed")
    return _produce._Job(order, _produce._settings(order), failed, shows=False)


@pytest.mark.parametrize(
    ("second", "hurries"), [(signal.SIGHUP, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
async def test_a_second_sigint_or_sigterm_hurries(
    second: signal.Signals,
    hurries: bool,
    signals: MemoryObjectSendStream[signal.Signals],
    fake_producer: FakeDriver,
    tmp_path: Path,
) -> None:
    fake_producer.manual = True
    job = job_on(tmp_path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(job.run)
        await until(lambda: fake_producer.submitted)
        for number in (signal.SIGHUP, second):
            await signals.send(number)
            await anyio.wait_all_tasks_blocked()
        assert job._hurried.is_set() is hurries
        fake_producer.acknowledge()
    job._failed.close()
    assert (job.account.signal, job.account.delivered, job.account.failures) == (
        signal.SIGHUP,
        1,
        0,
    )


async def test_a_signal_before_the_producer_is_open(
    signals: MemoryObjectSendStream[signal.Signals], fake_producer: FakeDriver, tmp_path: Path
) -> None:
    job = job_on(tmp_path)
    fake_producer.on_open.shut()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(job.run)
        await at_gate(fake_producer.on_open)
        await signals.send(signal.SIGTERM)
        await anyio.wait_all_tasks_blocked()
        fake_producer.on_open.open()
    job._failed.close()
    assert (job.account.signal, job.account.has_begun, job.account.read) == (
        signal.SIGTERM,
        False,
        0,
    )


@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_ends_a_command_unless_it_is_ignored(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert (signal.SIGHUP in _running.ending_signals()) is not ignored
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_no_further_input_is_read_after_the_reading_has_stopped(tmp_path: Path) -> None:
    job = job_on(tmp_path)
    job._stop_reading()
    give, take = anyio.create_memory_object_stream[Chunk]()
    with take:
        await job._read(give)
    job._failed.close()
    assert (job.account.read, job.account.all_read) == (0, False)


async def test_after_an_error_each_read_line_is_in_the_failed_file(
    fake_producer: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: SendProducer, *__: Any, **___: Any) -> Any:
        # One chunk is being sent, four chunks wait, and the reader has another chunk.
        await until(lambda: len(job._backlog._chunks) == 6)
        raise RuntimeError("a fault")

    monkeypatch.setattr(SendProducer, "send_many", fail)
    monkeypatch.setattr(_produce, "_BATCH", 1)
    monkeypatch.setattr(_input, "_PIECE", 5)
    reading, writing = os.pipe()
    os.write(writing, b"aaa\n" * 100)
    job = job_on(tmp_path, f"/dev/fd/{reading}")
    await job.run()
    job._failed.close()
    os.close(reading)
    os.close(writing)
    assert str(job.account.error) == "a fault"
    assert [(entry["line"], entry["reason"]) for entry in entries(tmp_path / "failed")] == [
        (1, "the record's outcome is not known: unexpected RuntimeError: a fault"),
        *[
            (line, "the record was not sent: unexpected RuntimeError: a fault")
            for line in range(2, 8)
        ],
        (8, "the end of the line was not read"),
    ]


def running_loop() -> str:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return "trio"
    return "uvloop" if type(loop).__module__ == "uvloop" else "asyncio"


@pytest.mark.parametrize("loop", [*LOOPS, "uvloop"])
@pytest.mark.parametrize("name", ["kafka-python", "confluent"])
def test_the_options_choose_the_event_loop_and_the_driver(
    loop: str, name: str, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[tuple[str, str | None]] = []

    def opened(settings: ProducerSettings, *, driver: str | None) -> Any:
        chosen.append((running_loop(), driver))
        return open_send_producer(settings, driver=lambda _: fake)

    monkeypatch.setattr(_produce, "open_send_producer", opened)
    arguments = ["-b", "x:1", "-t", "t", "--loop", loop, "--driver", name, "/dev/null"]
    assert run_main("produce", *arguments) == 0
    assert chosen == [(loop, name)]


def refuse_all(monkeypatch: pytest.MonkeyPatch, kind: type[SendProducerError]) -> None:
    """Let each producer refuse all records."""

    async def refuse(self: SendProducer, *_: Any, **__: Any) -> Any:
        raise kind("a refusal")

    monkeypatch.setattr(SendProducer, "send_many", refuse)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("kind", "code"), [(ProducerBroken, 3), (ProducerClosed, 1)])
def test_a_producer_that_refuses_all_records(
    kind: type[SendProducerError],
    code: int,
    loop: str,
    *,
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse_all(monkeypatch, kind)
    (here / "in").write_bytes(b"a\nb\n")
    arguments = ["-b", "x:1", "-t", "t", "--loop", loop, "--failed", "failed", "in", "in"]
    assert run_main("produce", *arguments) == code
    printed = capsys.readouterr()
    # A closed producer is not an error, because only a signal closes it early.
    assert printed.err == ("anyio-sendproducer: a refusal\n" if code == 3 else "")
    failed = entries(here / "failed")
    assert {entry["reason"] for entry in failed} == {"the record was not sent: a refusal"}
    assert f"{len(failed)} records are in failed ({len(failed)} not persisted)." in printed.out


def test_the_reading_stops_if_the_producer_is_broken(
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse_all(monkeypatch, ProducerBroken)
    monkeypatch.setattr(_produce, "_BATCH", 1)
    names = [f"in{number}" for number in range(50)]
    for name in names:
        (here / name).write_bytes(b"a\n")
    arguments = ["-b", "x:1", "-t", "t", "--failed", "failed", "--json"]
    assert run_main("produce", *arguments, *names) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["error"] == "a refusal"
    assert not report["all_read"]
    assert report["last_read"] == {"source": names[report["read"] - 1], "line": 1}
    assert 0 < report["read"] == report["failed"] == len(entries(here / "failed")) < 20


def test_fail_fast(
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    send = _produce._Job._send

    async def send_later(self: Any, *arguments: Any) -> None:
        # The reader reads ahead until its queue is full.
        await until(lambda: self.account.read == 4)
        await send(self, *arguments)

    monkeypatch.setattr(_produce._Job, "_send", send_later)
    monkeypatch.setattr(_produce, "_BATCH", 1)
    for number in range(9):
        (here / f"in{number}").write_bytes(b"%d\n" % number)
    (here / "in1").write_bytes(b"\n")
    arguments = ["-b", "x:1", "-f", "jsonl", "-t", "t", "--failed", "failed", "--fail-fast"]
    (here / "in2").write_bytes(b"{\n")
    names = [f"in{number}" for number in range(9)]
    assert run_main("produce", *arguments, *names) == 1
    printed = capsys.readouterr().out
    failed = entries(here / "failed")
    assert failed[0]["input"] == "{"
    assert [entry["value"] for entry in failed[1:3]] == ["3", "4"]
    assert {entry["reason"] for entry in failed[1:]} == {
        "the record was not sent: another record failed (--fail-fast)"
    }
    assert "The command stopped reading after line 1 of in" in printed
    assert len(failed) <= 7


def test_fail_fast_sends_no_line_after_an_unreadable_line(
    fake_producer: FakeDriver, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_text("1\n2\n{\n4\n}\n6\n")
    arguments = ["-b", "x:1", "-f", "jsonl", "-t", "t", "--failed", "failed", "--fail-fast"]
    assert run_main("produce", *arguments, "in") == 1
    written = [record.value for records in fake_producer.written.values() for record in records]
    assert sorted(written) == [b"1", b"2"]
    failed = entries(here / "failed")
    assert [entry.get("input", entry.get("value")) for entry in failed] == ["{", "}", "4", "6"]
    assert failed[2]["reason"] == "the record was not sent: another record failed (--fail-fast)"
    printed = capsys.readouterr().out
    assert "4 records are in failed (4 not persisted). To send them again:" in printed
    assert "2 lines could not be read as a record, and will fail again" in printed


def test_the_report_does_not_suggest_to_send_unreadable_lines_again(
    fake_producer: FakeDriver, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_text("1\n{\n")
    arguments = ["-b", "x:1", "-f", "jsonl", "-t", "t", "--failed", "failed"]
    assert run_main("produce", *arguments, "in") == 1
    printed = capsys.readouterr().out
    assert "1 line could not be read as a record. The reasons are in failed." in printed
    assert "--format failed" not in printed


def test_fail_fast_sends_no_record_after_a_failed_record(
    fake_producer: FakeDriver, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_bytes(b"".join(numbered(3_000)))
    arguments = ["-b", "x:1", "-t", "t" * 10, "--failed", "failed", "--fail-fast"]
    (here / "failed.in").write_text(
        '{"topic": "a/b", "value": "x"}\n' + '{"topic": "t", "value": "y"}\n' * 2_000
    )
    del arguments[2:4]
    assert run_main("produce", *arguments, "-f", "failed", "failed.in") == 1
    first, *others = entries(here / "failed")
    assert first["error"] == "RecordRejected"
    assert {entry["error"] for entry in others} == {"DeliveryError"}
    assert len(others) == 2_000
    capsys.readouterr()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_failed_lines_go_to_standard_error_if_the_failed_file_cannot_be_written(
    fake_producer: FakeDriver, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "in").write_bytes(b"{\n")
    arguments = ["-b", "x:1", "-t", "t", "-f", "jsonl", "--failed", "/dev/full", "in"]
    assert run_main("produce", *arguments) == 1
    printed = capfd.readouterr()
    assert "1 more failure could only be written to standard error." in printed.out
    assert json.loads(printed.err.splitlines()[-1])["input"] == "{"


class Closed:
    """A standard error that cannot be written."""

    def write(self, _: str) -> int:
        raise OSError(32, os.strerror(32))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_lost_lines_are_reported(
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stderr", Closed())
    (here / "in").write_bytes(b"{\n")
    arguments = ["-b", "x:1", "-t", "t", "-f", "jsonl", "--failed", "/dev/full", "--no-progress"]
    assert run_main("produce", *arguments, "in") == 3
    printed = capsys.readouterr().out
    assert "1 more failure could not be written anywhere." in printed


def test_the_failed_file_cannot_be_flushed_to_disk(
    fake_producer: FakeDriver,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    (here / "in").write_bytes(b"{\n")
    arguments = ["-b", "x:1", "-t", "t", "-f", "jsonl", "--failed", "failed", "in"]
    assert run_main("produce", *arguments) == 3
    assert "failed may be incomplete: Input/output error" in capsys.readouterr().err


class Group(Exception):
    """A group of exceptions, which Python 3.10 does not have."""

    exceptions = (KeyboardInterrupt(),)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Group()])
def test_the_event_loop_raises_an_interrupt(
    error: BaseException,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # On Windows, asyncio receives no signals, so the event loop raises KeyboardInterrupt.
    def run_on(_: str, run: Any) -> int:
        run.__self__._note(Chunk("in", [ProducerRecord("t", b"a")], [7], last=7))
        raise error

    monkeypatch.setattr(_produce, "run_on", run_on)
    arguments = ["-b", "x:1", "-t", "t", "--failed", "failed", "--json", "in"]
    (here / "in").touch()
    assert run_main("produce", *arguments) == 128 + signal.SIGINT
    report = json.loads(capsys.readouterr().out)
    assert (report["read"], report["failed"], report["signal"]) == (1, 1, "SIGINT")
    (entry,) = entries(here / "failed")
    assert (entry["value"], entry["line"]) == ("a", 7)
    assert (entry["reason"], entry["persistence"]) == ("the record was not sent", "not persisted")


def test_only_the_first_error_is_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_on(_: str, run: Any) -> int:
        run.__self__.end_by(ValueError("first"))
        raise ValueError("second")

    monkeypatch.setattr(_produce, "run_on", run_on)
    (here / "in").touch()
    assert run_main("produce", "-b", "x:1", "-t", "t", "in") == 3
    printed = capsys.readouterr().err
    assert printed.startswith("anyio-sendproducer: unexpected ValueError: first\n")
    assert "second" not in printed


def test_no_broker_answers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "in").write_bytes(b"a\n")
    arguments = ["-b", "127.0.0.1:1", "-t", "t", "--start-timeout", "0.2", "in"]
    assert run_main("produce", *arguments) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith("anyio-sendproducer: no producer for 127.0.0.1:1 within 0.2 s")
    assert printed.out == ""
    assert [path.name for path in here.iterdir()] == ["in"]
    assert run_main("produce", *arguments, "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert report["error"].startswith("no producer for 127.0.0.1:1 within 0.2 s")
    assert (report["exit_code"], report["read"], report["all_read"]) == (3, 0, False)


def test_a_property_that_the_driver_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-b", "x:1", "-t", "t", "-X", "sasl.password=s3cret", "-X", "speed=9", "--json"]
    assert run_main("produce", *arguments, "/dev/null") == 2
    printed = capsys.readouterr()
    assert "s3cret" not in printed.err + printed.out
    assert json.loads(printed.out)["exit_code"] == 2


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "t"], "The cluster is missing: pass --bootstrap-servers (-b), --service-name or"),
        (["-b", "x:1"], "Missing option '-t' / '--topic'."),
        (["-b", "x:1", "--service-name", "y", "-t", "t"], "pass only one of them"),
        (["-b", "x:", "-t", "t"], "'x:' is not host:port"),
        (["-b", "x:1", "-t", "a/b"], "characters other than"),
        (["-b", "x:1", "-t", "t", "-X", "s3cret"], "a property must have the form name=value"),
        (["-b", "x:1", "-t", "t", "-H", "h"], "'h' must have the form NAME=VALUE"),
        (["-b", "x:1", "-t", "t", "-H", "\udcff=1"], "must have the form NAME=VALUE"),
        (["-b", "x:1", "-t", "t", "-f", "jsonl", "--header-field", "=x"], "NAME=FIELD"),
        (["-b", "x:1", "-t", "t", "-f", "jsonl", "--header-field", "x="], "NAME=FIELD"),
        (["-b", "x:1", "-t", "t", "-K", ""], "the text must not be empty"),
        (["-b", "x:1", "-t", "t", "-K", r"\x1"], "two hexadecimal digits follow"),
        (["-b", "x:1", "-t", "t", "-f", "file", "-D", ";"], "--delimiter is for --format lines"),
        (
            ["-b", "x:1", "-t", "t", "-f", "jsonl", "-Z", ""],
            "--null-value is for --format lines",
        ),
        (["-b", "x:1", "-f", "failed", "-k", "a"], "takes keys, partitions and headers"),
        (
            ["-b", "x:1", "-t", "t", "-f", "csv", "-k", "a", "--key-field", "b"],
            "--key and --key-field: pass only one of them",
        ),
        (
            ["-b", "x:1", "-t", "t", "-f", "csv", "-p", "0", "--partition-field", "b"],
            "--partition and --partition-field: pass only one of them",
        ),
        (["-b", "x:1", "-t", "t", "-k", "\ud800"], "is not valid text"),
        (["-b", "x:1", "-t", "t", "--headers-delimiter", ":"], "must be three different texts"),
        (["-b", "x:1", "-t", "t", "-f", "csv", "--csv-delimiter", "ab"], "must be one character"),
        (["-b", "x:1", "-t", "t", "--key-field", "k"], "--format lines has no fields"),
        (["-b", "x:1", "-t", "t", "-f", "csv", "-K", ":"], "--key-separator is for --format lines"),
        (["-b", "x:1", "-t", "t", "--csv-columns", "a"], "--csv-columns is for --format csv"),
        (["-b", "x:1", "-t", "t", "-f", "csv", "--csv-columns", "a,b,a"], "a name occurs twice"),
        (["-b", "x:1", "-f", "failed", "-p", "1"], "takes keys, partitions and headers"),
        (["-b", "x:1", "-t", "t", "-z", "zip"], "'zip' is not one of"),
        (
            ["-b", "x:1", "-t", "t", "-X", "transactional.id=x"],
            "transactional_id is set, but produce",
        ),
        (["-b", "x:1", "-t", "t", "--failed", "full"], "exists and is not empty"),
        (["-b", "x:1", "-t", "t", "--failed", "no/where"], "no/where can't be written to"),
        (["-b", "x:1", "-t", "t", "nowhere"], "does not exist"),
        (["-b", "x:1", "-t", "t", "--close-timeout", "0"], "'0' is not a number of seconds"),
        (["-b", "x:1", "-t", "t", "--close-timeout", "soon"], "'soon' is not a number of seconds"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "full").write_text("x")
    assert run_main("produce", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in here.iterdir()] == ["full"]


def test_the_arguments_become_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[_produce.Order] = []

    def run(order: _produce.Order) -> int:
        orders.append(order)
        return 0

    monkeypatch.setattr(_produce, "run", run)
    arguments = ["-b", "x:1", "-t", "t", "-f", "csv", "--csv-delimiter", r"\t", "--csv-columns"]
    arguments += ["a,b", "--header-field", "h=a", "--header-field", "b", "-H", "n=v=w"]
    arguments += ["--max-in-flight", "7", "--delivery-timeout", "1.5", "--close-timeout", "2.5"]
    arguments += ["--start-timeout", "3.5", "-z", "lz4", "-a", "1", "--driver", "confluent"]
    arguments += ["--loop", "trio", "--fail-fast", "--failed", "failed", "--json", "--no-progress"]
    assert run_main("produce", *arguments) == 0
    (order,) = orders
    assert order.inputs == ("-",)
    assert order.layout.csv_delimiter == "\t"
    assert order.layout.csv_columns == ("a", "b")
    assert order.layout.fields.headers == (("h", "a"), ("b", "b"))
    assert order.layout.headers == (("n", b"v=w"),)
    assert order.connection == Connection(bootstrap_servers="x:1", driver="confluent")
    assert order.fields == {
        "properties": {"compression.type": "lz4", "acks": "1"},
        "start_timeout": dt.timedelta(seconds=3.5),
        "max_in_flight": 7,
        "delivery_timeout": dt.timedelta(seconds=1.5),
        "close_timeout": dt.timedelta(seconds=2.5),
    }
    assert (order.loop, order.failed) == ("trio", Path("failed"))
    assert (order.fail_fast, order.as_json, order.progress) == (True, True, False)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("rich.progress", [], "the command line needs the package rich: "),
        ("trio", ["--loop", "trio"], "--loop needs the package trio: "),
        ("uvloop", ["--loop", "uvloop"], "--loop needs the package uvloop: pip install uvloop"),
        ("javaproperties", ["--config", "x.properties"], "--config needs the package javaprop"),
    ],
)
@pytest.mark.parametrize("command", ["produce", "check"])
def test_a_package_is_missing(
    command: str,
    module: str,
    arguments: list[str],
    message: str,
    *,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "x.properties").touch()
    monkeypatch.setitem(sys.modules, module, None)
    topic = ["-t", "t"] if command == "produce" else []
    assert run_main(command, "-b", "x:1", *topic, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_working_directory_is_not_writable(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_produce, "FailedFile", refuse)
    assert run_main("produce", "-b", "x:1", "-t", "t") == 2
    assert capsys.readouterr().err == (
        f"anyio-sendproducer: {here} can't be written to: Permission denied\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete such a directory")
def test_the_working_directory_was_deleted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deleted = here / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    assert run_main("produce", "-b", "x:1", "-t", "t") == 2
    assert capsys.readouterr().err == (
        "anyio-sendproducer: the working directory can't be written to: No such file or directory\n"
    )


def test_ctrl_c_before_the_event_loop_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(order: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_produce, "run", interrupt)
    assert run_main("produce", "-b", "x:1", "-t", "t") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "anyio-sendproducer: interrupted\n"


def test_a_compressed_file_whose_package_is_not_installed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in.zst").touch()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert run_main("produce", "-b", "127.0.0.1:1", "-t", "t", "in.zst") == _running.USAGE
    assert capsys.readouterr().err == (
        "anyio-sendproducer: a .zst file needs the package zstandard: "
        'pip install ".[compression]" in a checkout of anyio-sendproducer\n'
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_lines_with_headers_keys_and_null(
    loop: str, driver: str, shared_broker: str, here: Path
) -> None:
    topic = f"parts-{loop}-{driver}"
    (here / "in").write_bytes(b"a:1|k1\x1fone\ntwo\0|k2\x1f-\0")
    arguments = ["-b", shared_broker, "-t", topic, "--loop", loop, "--driver", driver, "-p", "0"]
    arguments += ["-D", r"\0", "-K", r"\x1f", "-Z", "-", "--headers-delimiter", "|"]
    assert run_main("produce", *arguments, "in") == 0
    found = _reading.read_back(shared_broker, topic, {0: 0}, PATIENCE)
    assert [one.content for one in found] == [
        Content(b"k1", b"one\ntwo", (("a", b"1"),)),
        Content(b"k2", None, ()),
    ]
