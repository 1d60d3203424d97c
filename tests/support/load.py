"""A load: many records from many tasks through one producer, and all that was said of them.

Each task has records of its own and gives them to the producer one after the other; which call it
uses goes by the task's number. `send` awaits each record before the next. `enqueue` has up to eight
of one task under way at a time: it awaits that each is accepted, and others await what becomes of
it.

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
from tests.support.waiting import until

__all__ = ["During", "Load", "Outage", "Ran", "Running", "make_record", "run_load"]

#: Records that a task which enqueues has under way at a time.
_AT_A_TIME: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be sent.

    Args:
        topic: where to; it must have `partitions` partitions, where those are chosen by hand.
        records: how many records in all.
        tasks: how many tasks send them.
        seconds: over how long they are spread, so that a load lasts as long as a fault does; None:
            as fast as it goes.
        partitions: among how many partitions they are dealt out, where `by` says so.
        by: who chooses the partition: this, one after the other; or the producer, by keys, of
            which there are fifty.
        calls: the calls that the tasks use, in turn.
        value_bytes: the length of a value, of at least 16.
        leave: leave the block while records are under way, and look only then what became of
            them. Tasks that `send` are waited for all the same.
        make: makes a record and its id, which no other may have, of its number.
        admitted: the share of all records that is sent by itself; what is behind it waits for
            `Running.admit`. So a fault can be there before them, however fast they are.
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
    """How long an outage lasted, and what it cost the process that has the client in it."""

    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of CPU time, of all threads of the process."""


class _Stopwatch:
    """Measures outages. The longest one counts."""

    def __init__(self) -> None:
        self.longest = Outage()
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._began = time.monotonic()
        self._cpu = time.process_time()

    def look(self) -> None:
        """Note the time since the start, if it is the longest so far."""
        seconds = time.monotonic() - self._began
        if seconds > self.longest.seconds:
            self.longest = Outage(seconds, time.process_time() - self._cpu)


class Running:
    """A load that runs, as whoever brings about a fault sees it."""

    def __init__(self, load: Load, producer: SendProducer, history: History) -> None:
        self.load = load
        self.producer = producer
        self.history = history
        self.scope = anyio.CancelScope()
        """Around all tasks that send: whoever cancels it ends the load."""
        self.settled = 0
        """How many records have their outcome."""
        self.acknowledged = 0
        """How many of them are acknowledged."""
        self._between_acknowledgements = _Stopwatch()
        self._outages = _Stopwatch()
        self._more = anyio.Event()
        self.admit(load.admitted)

    def admit(self, share: float) -> None:
        """Let the tasks send such a share of all records."""
        self._admitted = math.ceil(self.load.records * share)
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
        """Wait until such a share of all records has its outcome."""
        await until(lambda: self.settled >= self.load.records * share, math.inf)

    async def until_sent(self, share: float) -> None:
        """Wait until such a share of all records was given to the producer."""
        await until(lambda: len(self.history.sent) >= self.load.records * share, math.inf)

    async def until_under_way(self, records: int = 500) -> None:
        """Wait until so many are given to the producer and have no outcome, until all are given to
        it, or until nothing moves for half a second. Where nothing is delivered, half of 200 tasks
        come to one each, and half to eight."""
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
    """What came of a load."""

    history: History
    time_to_exit: float
    """Seconds from the end of the block's body until the producer was closed."""
    longest_wait: float
    """Seconds that a record waited for its outcome, at most."""
    statistics: Statistics
    """The producer's figures when it was closed."""
    undelivered: int
    """How many failures nobody had awaited, as a clean exit reports them."""
    raised: int
    """How many failures ``enqueue`` itself raised, because the record never got room."""
    outage: Outage
    """The longest outage."""


def make_record(load: Load, number: int) -> tuple[str, ProducerRecord[bytes, bytes]]:
    """A record of a load, and its id; no two have the same content."""
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
    """Send a load through a producer of its own, and note all that is said of it.

    Args:
        settings: the producer's.
        load: what is sent.
        during: runs beside the tasks that send, and brings about what the load is to bear; the
            producer is left when both are through.
        history: where to note it; a new one where there is none.
        driver: the producer's.

    Cancelling the load's scope ends the tasks that send; what they have under way is noted as
    withdrawn or abandoned, whichever the producer says it is. Whatever ends the call, the history
    has all that was said by then.
    """
    teller = _Teller(load, history if history is not None else History())
    undelivered = 0
    try:
        async with open_send_producer(settings, driver=driver) as producer:
            with anyio.fail_after(60):
                while True:
                    # Within delivery_timeout, which is short where records are to miss it.
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
    """Sends, and tells the history."""

    def __init__(self, load: Load, history: History) -> None:
        self.load = load
        self.history = history
        self.running: Running | None = None
        self.body_ended = 0.0
        self._began = 0.0
        self._abandoned = 0
        #: How many failures enqueue() raised.
        self.raised = 0
        # Accepted, and nobody was told the outcome yet.
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
        """What became of the records that were under way when the producer was left."""
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
        """Note on which side of the line a cancelled call fell.

        Called in the very step in which the producer saw the cancellation. It counts those that
        it lets go on; every other one is never written, whether it was accepted or not.
        """
        abandoned = producer.statistics().abandoned
        self._end(id_, ABANDONED if abandoned > self._abandoned else WITHDRAWN)
        self._abandoned = abandoned
