"""What is done to the process that sends: signals, fork, its end, a thread that dies, a loop that
stands still."""

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

#: Seconds for anything that a process is waited for.
PATIENCE = 60.0

#: Seconds that an end takes beside the time-out that bounds it, on a machine that has more to do;
#: far less than what it must not wait for.
SLACK = 15.0


#: The producer's, in seconds. A second signal is to come while the closing for the first one goes
#: on, also on a machine that stalls for three seconds.
CANCEL_TIMEOUT = {"send": 1.0, "drain": 1.0, "close": 5.0}


class Child:
    """A process that sends, and what it tells."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sending", json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Without a buffer, in which lines would be hidden from select().
            bufsize=0,
            cwd=ROOT,
            # Of its own, so that a signal to it is not one to the tests.
            start_new_session=True,
        )

    def wait_for(self, *words: str) -> dict[str, Any]:
        """The next line that has one of these words in it."""
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
        """Have it do what it waits to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go on\n")

    def end(self) -> tuple[int, str]:
        """Its return code, and what it printed to stderr."""
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
    """Send a signal to a process that sends, or drains, and tell how it ended."""
    child = Child(orders_for(broker, loop, driver, journal, when, **more))
    try:
        await anyio.to_thread.run_sync(child.wait_for, "sending")
        if when != "send":
            # Of the rest, which is given to the producer now, nothing comes back.
            broker.pause()
            child.go_on()
            await anyio.to_thread.run_sync(child.wait_for, "draining")
        began = time.monotonic()
        child.process.send_signal(number)
        last = None
        if when == "close":
            # The second comes while the first one's closing is under way. If Trio raised the first
            # one in the pump itself, there may be no closing to hurry.
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
    """Ctrl-C: the program ends by KeyboardInterrupt, in bounded time, and each record has its
    outcome by then. A second one, while the first one's closing is under way, does not hurt."""
    journal = tmp_path / "journal"
    took, code, errors, last = await interrupted(
        broker, anyio_backend, driver, journal, when, signal.SIGINT
    )
    assert last is not None
    assert last["ended"] == "KeyboardInterrupt"
    if anyio_backend == "trio":
        # It may come when a task of the load was made, and was not started yet.
        never = r"\S+: RuntimeWarning: coroutine .* was never awaited\n(  .*\n)?Runtime.*\n"
        errors = re.sub(never, "", errors)
    assert (code, errors) == (0, "")
    # cancel_timeout, and what a process takes to end.
    assert took < CANCEL_TIMEOUT[when] + SLACK
    # Trio raises it in the middle of whatever runs, the test's own bookkeeping too.
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
async def test_a_signal_that_is_handled_by_cancelling(
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


async def test_sigterm_that_nobody_handles(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, tmp_path: Path
) -> None:
    """The process is gone at once. What it was told by then is true."""
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


#: How it is left: the return code, and the exception on stderr; None where the loop complains of
#: what was done to it, each in its own way.
LEFT = {"sys.exit": (7, ""), "raise": (1, "ZeroDivisionError"), "forgotten": None}


@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("gone", [False, True], ids=["broker-there", "broker-frozen"])
async def test_the_interpreter_ends_with_records_pending(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, how: str, gone: bool
) -> None:
    """It does not hang, and prints no more than the exception's own traceback."""
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
    """The child is refused, and the parent goes on."""
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
    """A driver in which something that nobody foresaw goes wrong in the middle of a batch."""

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


# It leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_the_clients_thread_dies(
    broker: EmbeddedBroker, anyio_backend: str, driver: DriverName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python's own thread ends, and nobody tells: the client is given up when it keeps
    records past their deadline, and another takes its place."""
    drivers: list[KafkaPythonDriver] = []

    def forget(_: object) -> None:
        pass

    # Whoever keeps the exception keeps the client.
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
        # These are what it keeps; the last ones are for its successor.
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
    # Collected within this test, whose warnings are let pass.
    drivers.clear()
    gc.collect()
    assert type(ran.history.outcome(list(ran.history.sent)[-1])).__name__ == "Acknowledged"


@pytest.mark.parametrize(
    ("stands", "delivery_timeout"), [(1.0, 30.0), (3.0, 2.0)], ids=["within", "beyond"]
)
async def test_the_loop_stands_still(
    broker: EmbeddedBroker,
    anyio_backend: str,
    driver: DriverName,
    stands: float,
    delivery_timeout: float,
) -> None:
    """Within the deadline nothing comes of it. Beyond, a record that was acknowledged meanwhile may
    have either outcome, and never a wrong one."""

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
