"""Sends many records from many tasks through one producer, and notes all reported outcomes.

Each task passes its records to the producer one after the other. The task's number selects the
call. A task that uses `send` awaits each record before the next. A task that uses `enqueue` has up
to eight records in flight: it waits for room for each record, and other tasks await the outcomes.

The rule of order (see `tests.support.history`): a record takes its number in the same step that
calls the producer, so the numbers follow the order of the calls across all tasks. The records of a
partition are in its log in that order, no matter how the partition was chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Literal

import anyio

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SendProducerError,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer._delivery import Statistics
from anyio_sendproducer.drivers import DriverFactory, DriverName
from tests.support.history import ABANDONED, NEVER_ACCEPTED, WITHDRAWN, History, Plain
from tests.support.waiting import PATIENCE, until

__all__ = ["During", "Load", "Outage", "Ran", "Running", "make_record", "run_load"]

#: The limit of records in flight of a task that uses `enqueue`.
_AT_A_TIME: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """A description of the records to send.

    Args:
        topic: the topic. It must have `partitions` partitions if `by` chooses partitions by number.
        records: the number of all records.
        tasks: the number of tasks that send them.
        seconds: the time over which they are spread, so that the load lasts as long as a fault;
            None: as fast as possible.
        partitions: the number of partitions, if `by` chooses partitions by number.
        by: how the partition is chosen: by the load, in turn; or by the producer, from one of fifty
            keys.
        calls: the calls that the tasks use, in turn.
        value_bytes: the length of a value, of at least 16.
        leave: leave the block while records are in flight, and collect their outcomes afterwards.
            Tasks that use `send` end before.
        make: makes a record and its unique id from its number.
        admitted: the share of all records to send at once. The later ones wait for `Running.admit`,
            so that a fault can start before them, however fast they are.
    """

    topic: str
    records: int = 20_000
    tasks: int = 200
    seconds: float | None = None
    partitions: int = 4
    by: Literal["partition", "key"] = "partition"
    calls: tuple[Literal["send", "enqueue"], ...] = ("send", "enqueue")
    value_bytes: int = 100
    leave: bool = False
    make: Callable[[Load, int], tuple[str, ProducerRecord[bytes, bytes]]] = dataclasses.field(
        default_factory=lambda: make_record
    )
    admitted: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outage:
    """The length of an outage, and the CPU time of the process with the client."""

    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of CPU time, of all threads of the process."""


class _Stopwatch:
    """Measures outages. The longest one counts."""

    def __init__(self) -> None:
        self.longest = Outage()
        self.start()

    def start(self) -> None:
        """Start again from zero."""
        self._began = time.monotonic()
        self._cpu = time.process_time()

    def look(self) -> None:
        """Note the time since the start, if it is the longest so far."""
        seconds = time.monotonic() - self._began
        if seconds > self.longest.seconds:
            self.longest = Outage(seconds, time.process_time() - self._cpu)


class Running:
    """The controls of a running load, for the function that causes a fault."""

    def __init__(self, load: Load, producer: SendProducer, history: History) -> None:
        self.load = load
        self.producer = producer
        self.history = history
        self.scope = anyio.CancelScope()
        """Around all tasks that send. To end the load, cancel it."""
        self.settled = 0
        """The number of records that have their outcome."""
        self.acknowledged = 0
        """The number of acknowledged records."""
        self._between_acknowledgements = _Stopwatch()
        self._outages = _Stopwatch()
        self._more = anyio.Event()
        self.admit(load.admitted)

    def admit(self, share: float) -> None:
        """Let the tasks send this share of all records."""
        self._admit_records(math.ceil(self.load.records * share))

    async def admit_until_acknowledged(self) -> None:
        """Admit one more record after the other, until one of them is acknowledged. All records
        that were admitted before must have their outcome."""
        acknowledged = self.acknowledged
        with anyio.fail_after(PATIENCE):
            while True:
                self._admit_records(self._admitted + 1)
                await until(lambda: self.settled >= self._admitted, math.inf)
                if self.acknowledged > acknowledged:
                    return
                await anyio.sleep(0.1)

    def _admit_records(self, number: int) -> None:
        self._admitted = number
        more, self._more = self._more, anyio.Event()
        more.set()

    @contextlib.contextmanager
    def outage(self) -> Generator[None]:
        """Measure this block as the outage.

        Use it where some records are acknowledged during the outage. Otherwise the longest time
        without an acknowledgement is the outage.
        """
        self._outages.start()
        try:
            yield
        finally:
            self._outages.look()

    @property
    def longest_outage(self) -> Outage:
        """The longest outage so far."""
        marked = self._outages.longest
        return marked if marked.seconds else self._between_acknowledgements.longest

    def end(self, outcome: RecordMetadata | DeliveryError | Plain) -> None:
        """Count the outcome of a record."""
        self.settled += 1
        self._between_acknowledgements.look()
        if isinstance(outcome, RecordMetadata):
            self.acknowledged += 1
            self._between_acknowledgements.start()

    async def until_admitted(self, number: int) -> None:
        """Wait until the record of this number may be sent."""
        while number >= self._admitted:
            await self._more.wait()

    async def until_settled(self, share: float) -> None:
        """Wait until this share of all records has its outcome."""
        await until(lambda: self.settled >= self.load.records * share, math.inf)

    async def until_sent(self, share: float) -> None:
        """Wait until this share of all records was passed to the producer."""
        await until(lambda: len(self.history.sent) >= self.load.records * share, math.inf)

    async def until_under_way(self, records: int = 500) -> None:
        """Wait until so many records were passed to the producer and have no outcome, until all
        were passed to it, or until nothing changes for half a second. If nothing is delivered, half
        of 200 tasks have one record each, and half have eight."""
        moved = before = (-1, -1)
        since = anyio.current_time()
        while before != moved or anyio.current_time() - since < 0.5:
            sent = len(self.history.sent)
            if sent - self.settled >= records or sent >= self.load.records:
                return
            before, moved = moved, (sent, self.settled)
            if before != moved:
                since = anyio.current_time()
            await anyio.sleep(0.001)


During = Callable[[Running], Coroutine[Any, Any, None]]


@dataclasses.dataclass(frozen=True)
class Ran:
    """The result of a load."""

    history: History
    time_to_exit: float
    """Seconds from the end of the block's body until the producer was closed."""
    longest_wait: float
    """The longest time in seconds from a record's call to its outcome."""
    statistics: Statistics
    """The producer's statistics when it was closed."""
    undelivered: int
    """The number of unawaited failures, as a clean exit reports them."""
    raised: int
    """The number of failures that ``enqueue`` itself raised, because the record never got room."""
    outage: Outage
    """The longest outage."""


def make_record(load: Load, number: int) -> tuple[str, ProducerRecord[bytes, bytes]]:
    """Make a record of a load, and its id. All records differ in their content."""
    id_ = f"r{number:07d}"
    key = b"k%d" % (number % 50)
    record = ProducerRecord(
        load.topic,
        id_.encode().ljust(load.value_bytes, b" ") if number % 7 else id_.encode() + b" \x00\xff",
        key,
        partition=number % load.partitions if load.by == "partition" else None,
        headers=[("id", id_.encode())] if number % 3 == 0 else (),
    )
    return id_, record


async def run_load(
    settings: ProducerSettings,
    load: Load,
    *,
    during: During | None = None,
    history: History | None = None,
    driver: DriverName | DriverFactory | None = None,
) -> Ran:
    """Send a load through a producer of its own, and note all reported outcomes.

    Args:
        settings: the producer's.
        load: the records to send.
        during: runs beside the tasks that send, and causes the fault. The producer's block is left
            when both have ended.
        history: the history to use; None for a new one.
        driver: the producer's driver.

    Cancelling the load's scope ends the tasks that send. Their records in flight are noted as
    withdrawn or abandoned, as the producer reports. However the call ends, the history has every
    outcome that was reported before.
    """
    teller = _Teller(load, history if history is not None else History())
    undelivered = 0
    try:
        async with open_send_producer(settings, driver=driver) as producer:
            with anyio.fail_after(60):
                while True:
                    # Within delivery_timeout, which is short if records should miss it.
                    with contextlib.suppress(SendProducerError):
                        await producer.partitions_for(load.topic)
                        break
            await teller.run(producer, during)
    except UndeliveredRecords as error:
        undelivered = error.count
    finally:
        time_to_exit = time.monotonic() - teller.body_ended
        with anyio.CancelScope(shield=True):
            await teller.collect()
    assert teller.running is not None
    waits = [
        ended[0].at - teller.history.sent[id_].at
        for id_, ended in teller.history.ended.items()
        if ended
    ]
    return Ran(
        teller.history,
        time_to_exit,
        max(waits, default=0.0),
        teller.running.producer.statistics(),
        undelivered,
        teller.raised,
        teller.running.longest_outage,
    )


class _Teller:
    """Sends, and notes in the history."""

    def __init__(self, load: Load, history: History) -> None:
        self.load = load
        self.history = history
        self.running: Running | None = None
        self.body_ended = 0.0
        self._began = 0.0
        self._abandoned = 0
        #: How many failures enqueue() raised.
        self.raised = 0
        # Accepted, and the outcome is not reported yet.
        self._left: dict[str, Delivery] = {}

    async def run(self, producer: SendProducer, during: During | None) -> None:
        self.running = Running(self.load, producer, self.history)
        try:
            async with anyio.create_task_group() as tasks:
                if during is not None:
                    tasks.start_soon(during, self.running)
                tasks.start_soon(self._send_all, self.running)
        finally:
            self.body_ended = time.monotonic()

    async def _send_all(self, running: Running) -> None:
        self._began = anyio.current_time()
        load = self.load
        with running.scope:
            async with anyio.create_task_group() as tasks:
                for task in range(min(load.tasks, load.records)):
                    numbers = range(task, load.records, load.tasks)
                    call = load.calls[task % len(load.calls)]
                    send = self._send if call == "send" else self._enqueue
                    tasks.start_soon(send, running, numbers)

    async def collect(self) -> None:
        """Note the outcomes of the records that were in flight when the producer's block ended."""
        for id_, delivery in self._left.items():
            await self._outcome(id_, delivery)

    async def _in_time(self, running: Running, number: int) -> None:
        await running.until_admitted(number)
        if self.load.seconds is not None:
            due = self._began + self.load.seconds * number / self.load.records
            if due > anyio.current_time():
                await anyio.sleep_until(due)

    async def _send(self, running: Running, numbers: range) -> None:
        producer = running.producer
        for number in numbers:
            id_, record = self.load.make(self.load, number)
            await self._in_time(running, number)
            self.history.sending(id_, record)
            try:
                outcome: RecordMetadata | DeliveryError | Plain = await producer.send(record)
            except DeliveryError as error:
                outcome = error
            except (ProducerClosed, ProducerBroken):
                outcome = NEVER_ACCEPTED
            except BaseException:
                self._cancelled(producer, id_)
                raise
            self._end(id_, outcome)

    async def _enqueue(self, running: Running, numbers: range) -> None:
        producer = running.producer
        room = anyio.Semaphore(_AT_A_TIME)
        async with anyio.create_task_group() as tasks:
            for number in numbers:
                id_, record = self.load.make(self.load, number)
                if not self.load.leave:
                    await room.acquire()
                await self._in_time(running, number)
                self.history.sending(id_, record)
                try:
                    delivery = await producer.enqueue(record)
                except DeliveryError as error:
                    self.raised += 1
                    self._end(id_, error)
                    room.release()
                except (ProducerClosed, ProducerBroken):
                    self._end(id_, NEVER_ACCEPTED)
                    room.release()
                except BaseException:
                    self._cancelled(producer, id_)
                    raise
                else:
                    self._left[id_] = delivery
                    if not self.load.leave:
                        tasks.start_soon(self._wait_for, id_, delivery, room)

    async def _wait_for(self, id_: str, delivery: Delivery, room: anyio.Semaphore) -> None:
        await self._outcome(id_, delivery)
        del self._left[id_]
        room.release()

    async def _outcome(self, id_: str, delivery: Delivery) -> None:
        try:
            outcome: RecordMetadata | DeliveryError = await delivery.wait()
        except DeliveryError as error:
            outcome = error
        self._end(id_, outcome)

    def _end(self, id_: str, outcome: RecordMetadata | DeliveryError | Plain) -> None:
        self.history.ending(id_, outcome)
        if self.running is not None:
            self.running.end(outcome)

    def _cancelled(self, producer: SendProducer, id_: str) -> None:
        """Note whether the record of a cancelled call was withdrawn or abandoned.

        Call this in the same step in which the producer saw the cancellation. The producer counts
        abandoned records. Every other record is never written, whether it was accepted or not.
        """
        abandoned = producer.statistics().abandoned
        self._end(id_, ABANDONED if abandoned > self._abandoned else WITHDRAWN)
        self._abandoned = abandoned
