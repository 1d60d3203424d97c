"""Faults of the sending process: signals, a fork, its end, a dead thread, a blocked event loop."""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    ProducerBroken,
    ProducerMisused,
    ProducerRecord,
    ProducerSettings,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.testing import EmbeddedBroker
from tests.faults.matrix import FULL, RECORDS, Cell, judge, judge_history
from tests.support.history import History
from tests.support.load import Load, Running, run_load
from tests.support.paths import ROOT
from tests.support.waiting import until

#: Seconds over which a load is spread.
SECONDS = 5.0 if FULL else 0.5

#: Seconds for each wait for a process.
PATIENCE = 60.0

#: Seconds that an exit may take on a busy machine beyond the time-out that bounds it. They are far
#: less than the times for which it must not wait.
SLACK = 15.0


#: The producer's time-out, in seconds. A second signal has to arrive during the closing for the
#: first one, also on a machine that stalls for three seconds.
CANCEL_TIMEOUT = {"send": 1.0, "drain": 1.0, "close": 5.0}


class Child:
    """A sending process, and its output."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sending", json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Without a buffer, because select() does not see buffered lines.
            bufsize=0,
            cwd=ROOT,
            # In its own session, so that the tests do not get its signals.
            start_new_session=True,
        )

    def wait_for(self, *words: str) -> dict[str, Any]:
        """Wait for the next line that contains one of these words."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while True:
            assert select.select([self.process.stdout], [], [], deadline - time.monotonic())[0], (
                words
            )
            line = self.process.stdout.readline()
            assert line, f"it ended before {words}: {self.end()}"
            told: dict[str, Any] = json.loads(line)
            if any(word in told or told.get("now") == word for word in words):
                return told

    def go_on(self) -> None:
        """Let it go on after a wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go on\n")

    def end(self) -> tuple[int, str]:
        """Wait for its end. Returns: its return code, and its stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors.decode()

    def kill(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.communicate()


def orders_for(
    broker: EmbeddedBroker, loop: str, driver: DriverName, journal: Path, when: str, **more: Any
) -> dict[str, Any]:
    return {
        "address": broker.bootstrap_servers,
        "topic": "t",
        "loop": loop,
        "driver": driver,
        "journal": str(journal),
        "records": RECORDS,
        "seconds": None if when in {"drain", "close"} else SECONDS,
        "when": when,
        "handler": False,
        "close_timeout": 3.0,
        "cancel_timeout": CANCEL_TIMEOUT[when],
        **more,
    }


# --- signals -------------------------------------------------------------------------------------


async def interrupted(
    broker: EmbeddedBroker,
    loop: str,
    driver: DriverName,
    journal: Path,
    when: str,
    number: signal.Signals,
    **more: Any,
) -> tuple[float, int, str, dict[str, Any] | None]:
    """Send a signal to a process that sends or drains, and return how it ended."""
    child = Child(orders_for(broker, loop, driver, journal, when, **more))
    try:
        await anyio.to_thread.run_sync(child.wait_for, "sending")
        if when != "send":
            # The rest is passed to the producer now, and gets no acknowledgement.
            broker.pause()
            child.go_on()
            await anyio.to_thread.run_sync(child.wait_for, "draining")
        began = time.monotonic()
        child.process.send_signal(number)
        last = None
        if when == "close":
            # The second arrives during the closing for the first one. If Trio raised the first one
            # in the pump itself, there may be no closing to hurry.
            told = await anyio.to_thread.run_sync(child.wait_for, "hurrying", "ended")
            if "ended" in told:
                last = told
            else:
                child.process.send_signal(number)
        if last is None and (number is signal.SIGINT or more.get("handler")):
            last = await anyio.to_thread.run_sync(child.wait_for, "ended")
        code, errors = await anyio.to_thread.run_sync(child.end)
        return time.monotonic() - began, code, errors, last
    finally:
        child.kill()
        if when != "send":
            broker.resume()


@pytest.mark.parametrize("when", ["send", "drain", "close"])
async def test_sigint(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, tmp_path: Path, when: str
) -> None:
    """Ctrl-C: the program ends with KeyboardInterrupt in bounded time, and each record has its
    outcome before. A second one during the closing for the first does no harm."""
    journal = tmp_path / "journal"
    took, code, errors, last = await interrupted(
        broker, anyio_backend, driver, journal, when, signal.SIGINT
    )
    assert last is not None
    assert last["ended"] == "KeyboardInterrupt"
    if anyio_backend == "trio":
        # It may arrive when a task of the load was created, and had not started yet.
        never = r"\S+: RuntimeWarning: coroutine .* was never awaited\n(  .*\n)?Runtime.*\n"
        errors = re.sub(never, "", errors)
    assert (code, errors) == (0, "")
    # cancel_timeout, and the time for a process to end.
    assert took < CANCEL_TIMEOUT[when] + SLACK
    # Trio raises it in any running code, also in the test's own bookkeeping.
    anywhere = anyio_backend == "trio"
    note = "The interrupt may come before the program has recorded an outcome." if anywhere else ""
    history = History.load(journal)
    await judge_history(
        Cell("process", f"SIGINT during {when}", anyio_backend, driver, note),
        history,
        broker.bootstrap_servers,
        "t",
        delivery_timeout=20.0,
        time_to_exit=took,
        killed=anywhere,
    )
    untold = [id_ for id_ in history.sent if history.outcome(id_) is None]
    assert len(untold) <= (1 if anywhere else 0)


@pytest.mark.parametrize("when", ["send", "drain"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_handler_cancels_the_program(
    broker: EmbeddedBroker,
    anyio_backend: str,
    driver: DriverName,
    tmp_path: Path,
    when: str,
    number: signal.Signals,
) -> None:
    journal = tmp_path / "journal"
    took, code, errors, last = await interrupted(
        broker, anyio_backend, driver, journal, when, number, handler=True
    )
    assert last is not None
    assert last["ended"] == "well"
    assert (code, errors) == (0, "")
    assert took < CANCEL_TIMEOUT[when] + SLACK
    cell = Cell(
        "process", f"{number.name} handled by cancelling, during {when}", anyio_backend, driver
    )
    await judge_history(
        cell,
        History.load(journal),
        broker.bootstrap_servers,
        "t",
        delivery_timeout=20.0,
        time_to_exit=took,
    )


async def test_sigterm_without_a_handler(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, tmp_path: Path
) -> None:
    """The process ends at once. The outcomes reported before are true."""
    journal = tmp_path / "journal"
    took, code, errors, _ = await interrupted(
        broker, anyio_backend, driver, journal, "send", signal.SIGTERM
    )
    assert (code, errors) == (-signal.SIGTERM, "")
    assert took < SLACK
    note = "The process was killed. Records without an outcome may or may not be in the log."
    report = await judge_history(
        Cell("process", "SIGTERM, not handled, during send", anyio_backend, driver, note),
        History.load(journal),
        broker.bootstrap_servers,
        "t",
        delivery_timeout=20.0,
        time_to_exit=took,
        killed=True,
    )
    assert report.acknowledged > 0


# --- the end of the interpreter ------------------------------------------------------------------


#: Each way to end, with the return code and the exception on stderr. None if each event loop
#: reports its end with a message of its own.
LEFT = {"sys.exit": (7, ""), "raise": (1, "ZeroDivisionError"), "forgotten": None}


@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("gone", [False, True], ids=["broker-there", "broker-frozen"])
async def test_the_interpreter_ends_with_records_pending(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, how: str, gone: bool
) -> None:
    """It does not hang, and prints only the exception's own traceback."""
    orders = {
        "how": how,
        "address": str(broker),
        "topic": "t",
        "loop": anyio_backend,
        "driver": driver,
    }
    if gone:
        orders["topic"] = "unheard-of"
    child = Child(orders)
    try:
        await anyio.to_thread.run_sync(child.wait_for, "pending")
        if gone:
            broker.pause()
        began = time.monotonic()
        ended, errors = await anyio.to_thread.run_sync(child.end)
        assert time.monotonic() - began < 0.5 + SLACK
    finally:
        child.kill()
        if gone:
            broker.resume()
    left = LEFT[how]
    if left is not None:
        code, said = left
        assert ended == code, errors
        assert "Exception ignored" not in errors
        assert errors.count("Traceback") == (1 if said else 0), errors
        assert said in errors.splitlines() if said else errors == ""


# --- fork ----------------------------------------------------------------------------------------


async def test_fork(broker: EmbeddedBroker, anyio_backend: str, driver: DriverName) -> None:
    """The child's calls are refused, and the parent goes on."""
    codes: list[int] = []

    async def during(running: Running) -> None:
        await running.until_settled(0.3)
        producer = running.producer
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    producer.enqueue_nowait(ProducerRecord("t", b"the child's"))
                except ProducerMisused:
                    code = 0
                finally:
                    os._exit(code)
            _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
            codes.append(os.waitstatus_to_exitcode(status))

    settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)
    load = Load(topic="t", records=RECORDS, seconds=SECONDS)
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell("process", "fork during the load, three times", anyio_backend, driver)
    report = await judge(cell, ran, settings, "t")
    assert codes == [0, 0, 0]
    assert report.acknowledged == report.sent


# --- threads and loops ---------------------------------------------------------------------------


class Dies(KafkaPythonDriver):
    """A driver that raises an unexpected error in the middle of a batch."""

    def __init__(self, settings: ProducerSettings) -> None:
        super().__init__(settings)
        self.deadly = False

    def submit(self, batch: Any, /) -> Any:
        if self.deadly:
            super().submit(batch[: len(batch) // 2])
            raise MemoryError
        return super().submit(batch)


async def test_the_producers_thread_dies(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName
) -> None:
    drivers: list[Dies] = []

    def make(settings: ProducerSettings) -> Dies:
        drivers.append(Dies(settings))
        return drivers[-1]

    async def during(running: Running) -> None:
        await running.until_settled(0.3)
        drivers[0].deadly = True
        running.admit(1)
        await until(lambda: running.producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken):
            await running.producer.send(ProducerRecord("t", b"too late"))

    settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)
    load = Load(topic="t", records=RECORDS, seconds=SECONDS, admitted=0.5)
    ran = await run_load(settings, load, during=during, driver=make)
    cell = Cell("process", "the driver raises in the middle of a batch", anyio_backend)
    report = await judge(cell, ran, settings, "t")
    assert report.acknowledged > 0
    assert report.failures > 0
    assert report.never_accepted > 0
    assert report.time_to_exit < SLACK


# The client leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_the_clients_thread_dies(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python's own thread ends without a report. The client keeps records past their
    deadline, so the producer gives it up and opens another one."""
    drivers: list[KafkaPythonDriver] = []

    def forget(_: object) -> None:
        pass

    # A reference to the exception keeps the client alive.
    monkeypatch.setattr(threading, "excepthook", forget)

    def make(settings: ProducerSettings) -> KafkaPythonDriver:
        drivers.append(KafkaPythonDriver(settings))
        return drivers[-1]

    async def during(running: Running) -> None:
        await running.until_settled(0.3)
        opened: Any = drivers[0]._ready()
        sender = opened.producer._sender

        def die(*_: Any) -> None:
            raise SystemExit

        sender.run_once = die
        opened.client.wakeup()
        # It keeps these. The later ones are for its replacement.
        running.admit(0.7)
        await until(lambda: running.producer.statistics().generations == 2)
        running.admit(1)

    settings = ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers, delivery_timeout=5.0, max_in_flight=200
    )
    load = Load(topic="t", records=RECORDS, seconds=SECONDS, admitted=0.5)
    ran = await run_load(settings, load, during=during, driver=make)
    cell = Cell("process", "kafka-python's thread ends", anyio_backend, driver)
    report = await judge(cell, ran, settings, "t")
    assert report.failures > 0
    # Collected in this test, which ignores the warnings.
    drivers.clear()
    gc.collect()
    assert type(ran.history.outcome(list(ran.history.sent)[-1])).__name__ == "Acknowledged"


@pytest.mark.parametrize(
    ("stands", "delivery_timeout"), [(1.0, 30.0), (3.0, 2.0)], ids=["within", "beyond"]
)
async def test_the_event_loop_is_blocked(
    broker: EmbeddedBroker,
    anyio_backend: str,
    driver: DriverName,
    stands: float,
    delivery_timeout: float,
) -> None:
    """A block shorter than the deadline has no effect. After a longer one, a record that was
    acknowledged meanwhile may have either outcome, but never a false one."""

    async def during(running: Running) -> None:
        await running.until_settled(0.3)
        time.sleep(stands)  # noqa: ASYNC251  # that is the fault

    settings = ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers, delivery_timeout=delivery_timeout
    )
    load = Load(topic="t", records=RECORDS, seconds=SECONDS)
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell(
        "process",
        f"the event loop is blocked for {stands:g} s, delivery_timeout {delivery_timeout:g} s",
        anyio_backend,
    )
    report = await judge(cell, ran, settings, "t", grace=2.0 + stands)
    if stands < delivery_timeout:
        assert report.acknowledged == report.sent
    else:
        assert report.acknowledged > report.sent / 2
