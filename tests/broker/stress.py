"""Random use of producers while threads switch as often as Python allows: does a call hang?

``python -m tests.broker.stress --seconds 900`` starts an embedded broker and opens one producer
after the other, for a few seconds each: both drivers, on asyncio, uvloop and Trio, with tiny bounds
and large ones, with serializers, observers and transactions. Tasks send alone and in bursts, flush,
are cancelled, and close the producer while others send. Finalizers send as well, in any thread in
which the garbage collector runs them. ``sys.setswitchinterval(1e-6)`` lets threads switch at every
point.

It prints the longest waits, and fails if one was longer than the bound, if a record failed, or if a
producer lost count of its records.

Little room makes a call wait for the round trips of its own records and of the calls before it. So
bursts are small where there is little room, and a transaction's wait for its turn counts from the
end of the transaction before it. Turns must come in the order of asking.

A machine that stalls delays everything, so a control process exchanges a request and its answer
with the same broker, every 20 ms, on a thread of its own without any code of this package. Each of
its exchanges that takes longer than 0.1 s is a stall. The part of a wait that overlaps stalls does
not count.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import itertools
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, get_args

import anyio

from anyio_sendproducer import (
    DeliveryError,
    MultiDeliveryError,
    ProducerClosed,
    ProducerMisused,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    TransactionError,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.telemetry import Event
from anyio_sendproducer.testing import blocking_embedded_broker
from tests.support.paths import ROOT

__all__ = ["Report", "run"]

#: No wait may be longer, in seconds, apart from stalls of the machine.
BOUND: Final = 1.0

#: Seconds after which a call counts as one that never returns.
_HANGS: Final = 30.0

#: No record has more bytes.
_LARGEST: Final = 40

_TICK: Final = 0.02
_STALL: Final = 0.1

DRIVERS: Final = get_args(DriverName)
LOOPS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("asyncio", "asyncio", {}),
    ("uvloop", "asyncio", {"use_uvloop": True}),
    ("trio", "trio", {}),
)

_numbers = itertools.count()


# --- the control ---------------------------------------------------------------------------------


def control(address: str) -> None:
    """Exchange requests with the broker until stdin is closed, and print each stall."""
    host, port = address.rsplit(":", 1)
    # ApiVersions, version 0: length, key, version, correlation id, client id.
    request = struct.pack(">hhih7s", 18, 0, 1, 7, b"control")
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        last = time.monotonic()
        while True:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (size,) = struct.unpack(">i", _exactly(connection, 4))
            _exactly(connection, size)
            time.sleep(_TICK)
            now = time.monotonic()
            if now - last > _STALL + _TICK:
                print(last, now, flush=True)  # noqa: T201
            last = now


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise SystemExit  # the broker has ended
        received += part
    return received


@contextlib.contextmanager
def _controlled(address: str) -> Generator[list[tuple[float, float]]]:
    """Run the control process; the list has its stalls when the block has ended."""
    stalls: list[tuple[float, float]] = []
    command = [sys.executable, "-m", __spec__.name, "--control", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield stalls
        finally:
            process.terminate()
            told, _ = process.communicate()
            for line in told.splitlines():
                began, ended = line.split()
                stalls.append((float(began), float(ended)))


# --- the report ----------------------------------------------------------------------------------


class Report:
    """The waits and errors of a run."""

    def __init__(self) -> None:
        self.waits: list[tuple[float, float, str]] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.stalls: list[tuple[float, float]] = []
        self.where = ""

    @contextlib.contextmanager
    def waiting(self, what: str) -> Generator[None]:
        """Note how long the block takes; long waits are kept with their times."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited(began, what)

    def waited(self, since: float, what: str) -> None:
        """Note a wait from a start time until now."""
        now = time.monotonic()
        self.counts[what] += 1
        if now - since > _STALL:
            self.waits.append((since, now, f"{what} ({self.where})"))

    def net(self) -> list[tuple[float, float, str]]:
        """For each kept wait: its seconds without stalls, all its seconds, and its name."""
        found: list[tuple[float, float, str]] = []
        for began, ended, what in self.waits:
            stalled = sum(
                max(0.0, min(ended, until) - max(began, since)) for since, until in self.stalls
            )
            found.append((ended - began - stalled, ended - began, what))
        return sorted(found, reverse=True)

    def lines(self) -> Iterator[str]:
        """Format the report."""
        yield ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        stalled = sum(until - since for since, until in self.stalls)
        longest = max((until - since for since, until in self.stalls), default=0.0)
        yield f"{len(self.stalls)} stalls of the control: {stalled:.1f} s, longest {longest:.2f} s"
        for net, gross, what in self.net()[:8]:
            yield f"wait {net:.3f} s ({gross:.3f} s with stalls): {what}"
        yield from self.faults


# --- one producer --------------------------------------------------------------------------------


class _Finalized:
    """Garbage in a reference cycle, which sends when it is collected."""

    def __init__(self, producer: SendProducer, report: Report) -> None:
        self.itself = self
        self.producer = producer
        self.report = report

    def __del__(self) -> None:
        try:
            self.producer.enqueue_nowait(ProducerRecord("stress", b"finalized"))
            outcome = "finalizers that sent"
        except anyio.WouldBlock:
            outcome = "finalizers without room"
        except ProducerMisused:
            outcome = "finalizers refused"
        except ProducerClosed:
            outcome = "finalizers after closing"
        self.report.counts[outcome] += 1


class _Observer:
    def observe(self, events: Sequence[Event], /) -> None:
        """Do nothing."""


def _as_it_is(value: Any) -> Any:
    return value


class _Round:
    """The tasks that use one producer for a few seconds."""

    def __init__(
        self, report: Report, chance: random.Random, until: float, settings: ProducerSettings
    ) -> None:
        self.report = report
        # A long call takes long by itself if there is little room.
        room = min(settings.max_in_flight, settings.max_buffered_bytes // _LARGEST)
        self.most = min(60, 3 * room)
        self.chance = chance
        self.until = until
        #: The transactions that wait for their turn, and when the last one ended.
        self.line: collections.deque[object] = collections.deque()
        self.left = 0.0

    def is_over(self) -> bool:
        return time.monotonic() >= self.until

    def record(self) -> ProducerRecord[Any, Any]:
        key = self.chance.choice([None, b"%d" % self.chance.randrange(8)])
        return ProducerRecord("stress", b"v" * self.chance.randrange(_LARGEST), key)

    async def pause(self) -> None:
        await anyio.sleep(self.chance.choice([0, 0, 0, 0.001, 0.01]))

    async def alone(self, sender: Any) -> None:
        with self.report.waiting("send"):
            await sender.send(self.record())

    async def burst(self, sender: Any) -> None:
        records = [self.record() for _ in range(self.chance.randrange(1, self.most))]
        with self.report.waiting("send_many"):
            await sender.send_many(records)

    async def enqueued(self, sender: Any) -> None:
        with self.report.waiting("enqueue"):
            delivery = await sender.enqueue(self.record())
        if self.chance.random() < 0.7:
            with self.report.waiting("wait"):
                await delivery.wait()

    async def cancelled(self, sender: Any) -> None:
        with self.report.waiting("cancelled"):
            with anyio.move_on_after(self.chance.choice([0, 0.0001, 0.001, 0.005])):
                await self.chance.choice([self.alone, self.burst, self.enqueued])(sender)

    async def flushed(self, producer: SendProducer) -> None:
        with self.report.waiting("flush"):
            await producer.flush()

    async def user(self, producer: SendProducer) -> None:
        """Use the producer in random ways, until it is closed or the time is over."""
        ways: list[Callable[[Any], Any]] = [
            self.alone,
            self.alone,
            self.burst,
            self.enqueued,
            self.cancelled,
            self.cancelled,
            self.flushed,
        ]
        while not self.is_over():
            for _ in range(self.chance.randrange(20)):
                _Finalized(producer, self.report)
            try:
                await self.chance.choice(ways)(producer)
            except ProducerClosed:
                return
            except (DeliveryError, MultiDeliveryError) as error:
                # Closed while it waited for room, or in flight when its time was over.
                if producer.statistics().state == "open":
                    self.report.faults.append(f"a record failed ({self.report.where}): {error!r}")
            await self.pause()

    async def transactions(self, producer: SendProducer) -> None:
        while not self.is_over():
            asked, me = time.monotonic(), object()
            self.line.append(me)
            began = asked
            try:
                async with producer.transaction() as tx:
                    self.report.waited(max(asked, self.left), "turn")
                    began = time.monotonic()
                    if self.line.popleft() is not me:
                        self.report.faults.append(f"a turn out of order ({self.report.where})")
                    aborts = self.chance.random() < 0.3
                    for _ in range(self.chance.randrange(3)):
                        await self.chance.choice([self.alone, self.burst])(tx)
                    if aborts:
                        raise LookupError
            except LookupError:
                pass
            except TransactionError as error:
                self.report.faults.append(f"transaction ({self.report.where}): {error!r}")
            self.report.waited(began, "transaction")
            self.left = time.monotonic()
            await self.pause()

    async def run(self, settings: ProducerSettings, driver: DriverName) -> None:
        """Open a producer, use it from several tasks, and close it while they send."""
        observers = [_Observer()] if self.chance.random() < 0.3 else []
        hurries = self.chance.random() < 0.3
        opened: SendProducer | None = None
        with anyio.fail_after(_HANGS + self.until - time.monotonic()):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    manager = open_send_producer(settings, driver=driver, observers=observers)
                    producer = opened = await manager.__aenter__()
                    stack.push_async_exit(self._closing(manager))
                    async with anyio.create_task_group() as tasks:
                        use = self.user if settings.transactional_id is None else self.transactions
                        for _ in range(self.chance.choice([1, 2, 10])):
                            tasks.start_soon(use, producer)
                        if hurries and settings.transactional_id is None:
                            await anyio.sleep(self.chance.random())
                            with (
                                contextlib.suppress(UndeliveredRecords),
                                self.report.waiting("aclose"),
                            ):
                                await producer.aclose()
            except UndeliveredRecords as error:
                if not hurries:
                    self.report.faults.append(f"undelivered ({self.report.where}): {error!r}")
        if opened is not None:
            told = opened.statistics()
            if told.accepted != told.delivered + told.failed + told.withdrawn or told.in_flight:
                self.report.faults.append(f"lost count ({self.report.where}): {told}")
            self.report.counts["records"] += told.accepted
            self.report.counts["producers"] += 1

    def _closing(self, manager: Any) -> Any:
        async def close(*error: Any) -> Any:
            with self.report.waiting("end of the block"):
                return await manager.__aexit__(*error)

        return close


def _settings(address: str, chance: random.Random) -> ProducerSettings:
    transactional = chance.random() < 0.25
    serializer = _as_it_is if chance.random() < 0.3 else None
    return ProducerSettings(
        bootstrap_servers=address,
        client_id="stress",
        max_in_flight=chance.choice([1, 2, 7, 1000]),
        max_buffered_bytes=chance.choice([100, 1000, 1_000_000]),
        transactional_id=f"stress-{next(_numbers)}" if transactional else None,
        value_serializer=serializer,
    )


def run(seconds: float, seed: int) -> Report:
    """Use producers for this many seconds."""
    report = Report()
    chance = random.Random(seed)  # not for cryptography
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    with blocking_embedded_broker() as broker, _controlled(broker.bootstrap_servers) as stalls:
        report.stalls = stalls
        sys.setswitchinterval(1e-6)
        gc.set_threshold(50, 10, 10)
        try:
            end = time.monotonic() + seconds
            for driver, (name, backend, options) in itertools.cycle(
                itertools.product(DRIVERS, LOOPS)
            ):
                if time.monotonic() >= end:
                    break
                settings = _settings(broker.bootstrap_servers, chance)
                is_transactional = settings.transactional_id is not None
                report.where = (
                    f"{driver}, {name}, max_in_flight={settings.max_in_flight}, "
                    f"max_buffered_bytes={settings.max_buffered_bytes}"
                    f"{', transactional' if is_transactional else ''}"
                )
                until = min(end, time.monotonic() + chance.uniform(0.5, 5))
                one = _Round(report, chance, until, settings)
                try:
                    anyio.run(one.run, settings, driver, backend=backend, backend_options=options)
                except Exception as error:  # noqa: BLE001  # one more line of the report
                    report.faults.append(f"raised ({report.where}): {error!r}")
        finally:
            gc.set_threshold(*thresholds)
            sys.setswitchinterval(interval)
    return report


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--control", metavar="ADDRESS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.control is not None:
        control(given.control)
        return 0
    print(f"seed {given.seed}", flush=True)  # noqa: T201
    report = run(given.seconds, given.seed)
    print(*report.lines(), sep="\n")  # noqa: T201
    longest = max((net for net, _, _ in report.net()), default=0.0)
    return int(longest > BOUND or bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
