"""``anyio-sendproducer produce``: lines, JSON or CSV in, records out, and an account of each.

A reader makes chunks of records of the input, a few in advance. The sender takes what there is by
then, sends it with one wait, and writes down what failed before it takes more: so memory is
bounded, and records of one key stay in order.

A signal ends the reading. What was read is delivered as far as the time goes; then the producer is
closed in a hurry, whereby every record has its outcome, and the account is as complete as ever.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .. import (
    DeliveryError,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SendProducerError,
    SettingsError,
    open_send_producer,
)
from .._shown import printable
from ._connecting import Connection, require_for, settings_of
from ._failed import FailedFile, Failure
from ._input import Input, size_of
from ._parsing import Chunk, InputError, Layout, iterate
from ._running import (
    COMPLETE,
    FAILED,
    INCOMPLETE,
    USAGE,
    MissingExtra,
    complain,
    ending_signals,
    interrupted,
    print_report,
    run_on,
)
from ._streams import emit

if TYPE_CHECKING:
    from ._display import Figures, PartitionRow

__all__ = ["Order", "run"]

#: Records that are sent with one wait, about: as many as may be in flight by default.
_BATCH: Final = 10_000

#: Chunks that are read in advance.
_IN_ADVANCE: Final = 4

#: Seconds between two looks at the figures.
_TICK: Final = 0.1

#: Looks over which the rate is taken.
_TICKS: Final = 20

#: Seconds of the time for closing that are kept for its end, where there are as many.
_HURRY: Final = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What the command line asks for."""

    connection: Connection
    layout: Layout
    inputs: tuple[str, ...] = ("-",)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """Of the producer's settings; see :func:`settings_of`."""
    loop: str = "asyncio"
    fail_fast: bool = False
    failed: Path | None = None
    """Where failed records go; None: a new file in the working directory."""
    as_json: bool = False
    progress: bool | None = None
    """Whether there is a progress bar; None: where standard error is a terminal."""


def run(order: Order) -> int:
    """Send what there is, and print what came of it.

    Returns:
        An exit code: ``COMPLETE``; ``INCOMPLETE`` where records failed; ``USAGE`` for settings that
        are wrong and packages that are missing; ``FAILED`` where there was no producer, or it
        broke, or input could not be read, or a failed record could not be written down; 128 and the
        signal's number.
    """
    try:
        require_for(order.connection, order.loop)
        from ._display import is_terminal

        settings = _settings(order)
        failed = _open_failed(order.failed)
    except (MissingExtra, SettingsError, FileExistsError) as error:
        return complain(error, USAGE)
    except OSError as error:
        return complain(
            f"{order.failed or Path.cwd()} can't be written to: {error.strerror}", USAGE
        )
    shows = is_terminal(stderr=True) if order.progress is None else order.progress
    job = _Job(order, settings, failed, shows=shows)
    try:
        run_on(order.loop, job.run)
    except BaseException as error:  # noqa: BLE001  # what was read is accounted for, whatever it is
        job.end_by(error)
    finally:
        job.settle_rest()
        failed.close()
    return _report(order, job, failed)


def _settings(order: Order) -> ProducerSettings:
    settings = settings_of(order.connection, **order.fields)
    if settings.transactional_id is not None:
        raise SettingsError("transactional_id: records are sent one by one here, in no transaction")
    # All of the time that there is for closing: most of it to deliver, the rest to end.
    hurry = min(_HURRY, settings.close_timeout / 4)
    return settings.with_cancel_timeout(hurry)


def _open_failed(path: Path | None) -> FailedFile:
    if path is None:
        name = f"failed-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        names = (f"{name}-{number}" if number else name for number in itertools.count())
        path = next(Path(f"{one}.jsonl") for one in names if not os.path.lexists(f"{one}.jsonl"))
    return FailedFile(path)


class _Place:
    """What went to one partition."""

    __slots__ = ("count", "first", "last")

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self.last: int | None = None


class _Job:
    """One run, and what came of it.

    Each chunk that was read is in ``_unsettled`` until all of its records have an outcome, and each
    failure is in ``_unwritten`` until the failed file has it. Whatever ends the tasks,
    :meth:`settle_rest` writes down what is left. An error in one task ends no other task: see
    :meth:`_contain`.
    """

    def __init__(
        self, order: Order, settings: ProducerSettings, failed: FailedFile, *, shows: bool
    ) -> None:
        self._order = order
        self._shows = shows
        self._settings = settings
        self._failed = failed
        self._producer: SendProducer | None = None
        self._starting: anyio.CancelScope
        self._hurried = anyio.Event()
        self._input: Input | None = None
        self._unsettled: collections.deque[Chunk] = collections.deque()
        self._being_sent = 0
        """The number of chunks, of the first in ``_unsettled``, that are with the producer."""
        self._unwritten: list[Failure] = []
        self._stopped = False
        self._position = 0
        self._position_before = 0
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=_TICKS)
        self._places: dict[tuple[str, int], _Place] = {}
        self.read = 0
        self.delivered = 0
        self.failures = 0
        self.persistence: collections.Counter[Persistence] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0
        self.last: tuple[str, int] | None = None
        """The input and its line up to which everything was read."""
        self.signal: int | None = None
        self.all_read = False
        self.trouble: BaseException | None = None
        """The first error that ended the run before its time."""
        self.display_error: Exception | None = None

    # --- the tasks -----------------------------------------------------------------------------

    async def run(self) -> int:
        """Do it all; what came of it, the attributes tell."""
        self._starting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            # asyncio can't receive signals there; Ctrl-C is an exception.
            if sys.platform != "win32":  # pragma: no branch
                await tasks.start(self._watch_signals, tasks)
            with self._starting:
                await self._contain(self._send_all)
            # Before signals are listened to no more.
            self.settle_rest()
            tasks.cancel_scope.cancel()
        return COMPLETE

    async def _contain(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run a task. Its error does not leave it, which would cancel the others; it ends the
        reading, and what was read is settled."""
        try:
            await function(*arguments)
        except Exception as error:  # noqa: BLE001  # see above
            self.end_by(error)

    def end_by(self, error: BaseException) -> None:
        """Read no more because of an error, which is reported."""
        # Groups are no built-in class on Python 3.10.
        while inside := getattr(error, "exceptions", ()):
            error = inside[0]
        if isinstance(error, KeyboardInterrupt):
            self.signal = self.signal or signal.SIGINT
        elif self.trouble is None:
            self.trouble = error
        self._stop_reading()

    def settle_rest(self) -> None:
        """Write down what has no outcome, and what could not be written so far."""
        for chunk in self._input.leftover() if self._input is not None else ():
            self._note(chunk)
        for index, chunk in enumerate(self._unsettled):
            reason, persistence = "the record was not sent", Persistence.NOT_PERSISTED
            if index < self._being_sent:
                reason = "the record's outcome is not known"
                persistence = Persistence.POSSIBLY_PERSISTED
            if self.trouble is not None:
                reason += f": {_described(self.trouble)}"
            self._fail([*chunk.failures, *_all_failed([chunk], reason, persistence)])
        self._unsettled.clear()
        if self._unwritten:
            self._failed.write(self._unwritten)
            self._unwritten = []

    async def _send_all(self) -> None:
        driver = self._order.connection.driver
        async with open_send_producer(self._settings, driver=driver) as producer:
            self._producer = producer
            began = anyio.current_time()
            async with anyio.create_task_group() as beside:
                if self._shows:
                    beside.start_soon(self._show, producer)
                await self._pass_on(producer)
                beside.cancel_scope.cancel()
            self.seconds = anyio.current_time() - began

    async def _pass_on(self, producer: SendProducer) -> None:
        give, take = anyio.create_memory_object_stream[Chunk](_IN_ADVANCE)
        async with anyio.create_task_group() as readers:
            readers.start_soon(self._contain, self._read, give)
            with take:
                await self._contain(self._send, producer, take)

    async def _read(self, give: MemoryObjectSendStream[Chunk]) -> None:
        with give:
            ended = True
            for name in self._order.inputs:
                if self._stopped or not ended:
                    break
                self._input = Input(name, self._order.layout)
                async with contextlib.aclosing(self._input.chunks()) as chunks:
                    async for chunk in chunks:
                        self._note(chunk)
                        try:
                            await give.send(chunk)
                        except anyio.BrokenResourceError:  # the sending has ended by an error
                            return
                self._position_before = self._position
                ended = self._input.ended
            else:
                self.all_read = ended

    def _note(self, chunk: Chunk) -> None:
        self._unsettled.append(chunk)
        self.read += chunk.count
        self.last = (chunk.source, chunk.last)
        self._position = self._position_before + chunk.position

    def _stop_reading(self) -> None:
        self._stopped = True
        if self._input is not None:
            self._input.stop()

    async def _send(self, producer: SendProducer, take: MemoryObjectReceiveStream[Chunk]) -> None:
        while True:
            try:
                chunks = [await take.receive()]
            except anyio.EndOfStream:
                return
            count = chunks[0].count
            while count < _BATCH:
                try:
                    chunk = take.receive_nowait()
                except (anyio.WouldBlock, anyio.EndOfStream):
                    break
                chunks.append(chunk)
                count += chunk.count
            failures = [failure for chunk in chunks for failure in chunk.failures]
            records = [record for chunk in chunks for record in chunk.records]
            if records:
                self._being_sent = len(chunks)
                failures += await self._send_batch(producer, records, chunks)
                self._being_sent = 0
            # Chunks come here in the order of reading, and from _note() to here none gets lost.
            for _ in chunks:
                self._unsettled.popleft()
            if failures:
                await self._write_down(failures)

    async def _send_batch(
        self,
        producer: SendProducer,
        records: Sequence[ProducerRecord[Any, Any]],
        chunks: Sequence[Chunk],
    ) -> list[Failure]:
        """Send some records, and give back what failed."""
        if self._order.fail_fast and self.failures:
            return _all_failed(chunks, "the record was not sent: another one failed (--fail-fast)")
        try:
            placed = await producer.send_many(records, stop_on_error=self._order.fail_fast)
        except MultiDeliveryError as error:
            failures: list[Failure] = []
            delivered: list[RecordMetadata] = []
            for (_, source, line), part in zip(iterate(chunks), error.parts, strict=True):
                if isinstance(part, DeliveryError):
                    failures.append(Failure.of(source, line, part))
                else:
                    delivered.append(part.metadata)
            self._count(delivered)
            return failures
        except (ProducerBroken, ProducerClosed) as error:
            if isinstance(error, ProducerBroken):
                self.end_by(error)
            return _all_failed(chunks, f"the record was not sent: {error}")
        self._count(placed)
        return []

    def _count(self, placed: Sequence[RecordMetadata]) -> None:
        self.delivered += len(placed)
        places = self._places
        for topic, partition, offset, _, _, _ in placed:
            place = places.get((topic, partition))
            if place is None:
                place = places[topic, partition] = _Place()
                place.first = offset
            place.count += 1
            # Brokers give none where they are not asked to, or do not know it any more.
            if offset is not None:
                place.last = offset

    def _fail(self, failures: Sequence[Failure]) -> None:
        self.failures += len(failures)
        self.persistence.update(failure.persistence for failure in failures)
        self.errors.update(failure.error for failure in failures)
        self._unwritten += failures

    async def _write_down(self, failures: Sequence[Failure]) -> None:
        self._fail(failures)
        await anyio.to_thread.run_sync(self._failed.write, self._unwritten)
        self._unwritten = []
        if self._order.fail_fast or self._failed.lost:
            self._stop_reading()

    # --- beside them ---------------------------------------------------------------------------

    async def _watch_signals(
        self, tasks: anyio.abc.TaskGroup, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            async for number in signals:
                if self.signal is not None:
                    # A terminal that goes away may send SIGHUP twice, and nobody hurries.
                    if number in {signal.SIGINT, signal.SIGTERM}:
                        self._hurried.set()
                    continue
                self.signal = number
                self._stop_reading()
                if self._producer is None:
                    self._starting.cancel()
                else:
                    tasks.start_soon(self._announce_close)
                    tasks.start_soon(self._contain, self._close_in_time, self._producer)

    async def _announce_close(self) -> None:
        text = (
            "interrupted: what was read is delivered, within "
            f"{self._settings.close_timeout:g} s; once more to hurry"
        )
        # On a thread, since a terminal or a pipe may take nothing for a while.
        await anyio.to_thread.run_sync(complain, text, FAILED, abandon_on_cancel=True)

    async def _close_in_time(self, producer: SendProducer) -> None:
        settings = self._settings
        patience = settings.close_timeout - settings.cancel_timeout
        with anyio.move_on_after(patience):
            await self._hurried.wait()
        with anyio.CancelScope() as now:
            now.cancel()
            # Cancelled, it takes cancel_timeout at most, and every record has its outcome.
            await producer.aclose()

    async def _show(self, producer: SendProducer) -> None:
        """Show the progress until it is cancelled. No error of the display leaves it."""
        from ._display import progress_bar

        try:
            with progress_bar(size_of(self._order.inputs)) as bar:
                try:
                    while True:
                        await anyio.to_thread.run_sync(bar.show, self._figures(producer))
                        await anyio.sleep(_TICK)
                finally:
                    # As it is in the end, when no thread draws any more what it was before.
                    bar.show(self._figures(producer))
        except Exception as error:  # noqa: BLE001  # nothing that is only shown stops the sending
            self.display_error = error

    def _figures(self, producer: SendProducer) -> Figures:
        from ._display import Figures

        counted = producer.statistics()
        now = anyio.current_time()
        self._history.append((now, counted.delivered))
        then, before = self._history[0]
        rate = (counted.delivered - before) / (now - then) if now > then else 0.0
        # Not counted.in_flight: what the client still holds past its deadline is among the failed.
        awaited = counted.accepted - counted.delivered - counted.failed - counted.withdrawn
        return Figures(self._position, counted.delivered, self.failures, awaited, rate)

    @property
    def has_begun(self) -> bool:
        """Whether there was a producer."""
        return self._producer is not None

    @property
    def places(self) -> list[PartitionRow]:
        """What went to each partition."""
        from ._display import PartitionRow

        return [
            PartitionRow(topic, partition, place.count, place.first, place.last)
            for (topic, partition), place in sorted(self._places.items())
        ]


def _all_failed(
    chunks: Sequence[Chunk],
    reason: str,
    persistence: Persistence = Persistence.NOT_PERSISTED,
) -> list[Failure]:
    name = DeliveryError.__name__
    return [
        Failure(source, line, record, reason, name, persistence)
        for record, source, line in iterate(chunks)
    ]


# --- what came of it -----------------------------------------------------------------------------


def _described(error: BaseException) -> str:
    """An error in words. An error that the command does not expect is a fault in it."""
    if isinstance(error, (SendProducerError, InputError)):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}"


def _code(job: _Job, failed: FailedFile) -> int:
    if failed.lost or failed.error is not None:
        return FAILED
    if job.signal is not None:
        return 128 + job.signal
    if job.trouble is not None:
        return USAGE if isinstance(job.trouble, SettingsError) else FAILED
    return INCOMPLETE if job.failures else COMPLETE


def _report(order: Order, job: _Job, failed: FailedFile) -> int:
    code = _code(job, failed)
    if job.signal is not None and not job.has_begun:
        interrupted(job.signal)
    if job.trouble is not None:
        complain(_described(job.trouble), code)
        if not isinstance(job.trouble, (SendProducerError, InputError)):
            lines = "".join(traceback.format_exception(job.trouble)).split("\n")
            emit(sys.stderr, "\n".join(map(printable, lines)))
    if job.display_error is not None:
        complain(f"the progress bar failed: {_described(job.display_error)}", code)
    if failed.error is not None:
        complain(f"{failed.path} may be incomplete: {failed.error.strerror}", code)
    if order.as_json:
        # In ASCII, which every locale can print, and with escapes for bytes that are not text.
        print_report(json.dumps(_as_json(job, failed, code)) + "\n")
    elif job.has_begun:
        print_report(_as_text(job, failed))
    return code


def _as_text(job: _Job, failed: FailedFile) -> str:
    from ._display import partitions_text

    rate = job.delivered / job.seconds if job.seconds else 0.0
    text = (
        f"{partitions_text(job.places)}"
        f"{job.read:,} records read, {job.delivered:,} delivered, {job.failures:,} failed, in "
        f"{job.seconds:.1f} s ({rate:,.0f} records/s).\n"
    )
    if not job.all_read:
        where = "before the first line"
        if job.last is not None:
            source, line = job.last
            where = f"after line {line:,} of {printable(source)}"
        text += f"The reading stopped {where}; what follows was not read.\n"
    if failed.written:
        states = ", ".join(f"{count:,} {state}" for state, count in _persistence(job).items())
        path = printable(str(failed.path))
        text += (
            f"{failed.written:,} records are in {path} ({states}). To send them again:\n"
            f"  anyio-sendproducer produce ... --format failed {path}\n"
        )
    if failed.spilt:
        text += f"{failed.spilt:,} more could only be written to standard error.\n"
    if failed.lost:
        text += f"{failed.lost:,} more could not be written anywhere, and are lost.\n"
    return text


def _persistence(job: _Job) -> dict[str, int]:
    return {
        persistence.value: job.persistence[persistence]
        for persistence in Persistence
        if job.persistence[persistence]
    }


def _as_json(job: _Job, failed: FailedFile, code: int) -> dict[str, Any]:
    return {
        "exit_code": code,
        "read": job.read,
        "delivered": job.delivered,
        "failed": job.failures,
        "all_read": job.all_read,
        "last_read": None if job.last is None else {"source": job.last[0], "line": job.last[1]},
        "seconds": round(job.seconds, 3),
        "persistence": _persistence(job),
        "errors": dict(job.errors),
        "failed_file": str(failed.path) if failed.written else None,
        "spilt": failed.spilt,
        "lost": failed.lost,
        "partitions": [row._asdict() for row in job.places],
        "signal": None if job.signal is None else signal.Signals(job.signal).name,
        "error": None if job.trouble is None else _described(job.trouble),
    }
