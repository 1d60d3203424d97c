"""``anyio-sendproducer produce``: sends lines, JSON or CSV, and accounts for each record.

A reader makes chunks of records from the input, a few in advance. The sender takes the chunks that
are ready, sends them, waits once for all outcomes, and writes down the failures before it takes
more. So memory is bounded, and records with the same key stay in order.

A signal ends the reading. The producer delivers what was read, as far as the time allows. Then it
is closed, which gives each record an outcome, so that the account is always complete.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
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
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SettingsError,
    open_send_producer,
)
from ._account import Account
from ._backlog import STOPPED, Backlog, all_failed, stop_at_failure
from ._chunks import Chunk, Layout, iterate
from ._connecting import Connection, require_for, settings_of
from ._decompression import COMPRESSION, ZSTANDARD
from ._failed import FailedFile, Failure
from ._input import Input, size_of
from ._report import report
from ._running import (
    COMPLETE,
    FAILED,
    USAGE,
    MissingExtra,
    complain,
    ending_signals,
    require,
    run_on,
)

if TYPE_CHECKING:
    from ._display import Figures

__all__ = ["Order", "run"]

#: Chunks are sent with one wait until they have this many records: as many as may be in flight by
#: default. A single chunk of short lines can have more.
_BATCH: Final = 10_000

#: How many chunks are read in advance.
_IN_ADVANCE: Final = 4

#: Seconds between two updates of the progress bar.
_TICK: Final = 0.1

#: Updates over which the rate is computed.
_TICKS: Final = 20

#: Seconds of the closing time that are kept for the end, but at most a quarter of this time.
_HURRY: Final = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The options of one run."""

    connection: Connection
    layout: Layout
    inputs: tuple[str, ...] = ("-",)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """Fields of the producer's settings; see :func:`settings_of`."""
    loop: str = "asyncio"
    fail_fast: bool = False
    failed: Path | None = None
    """The file for failed records; None: a new file in the working directory."""
    as_json: bool = False
    progress: bool | None = None
    """Whether to show a progress bar; None: if standard error is a terminal."""


def run(order: Order) -> int:
    """Send the input, and print the report.

    Returns:
        An exit code: ``COMPLETE``; ``INCOMPLETE`` if records failed; ``USAGE`` if a setting is
        wrong, a package is missing, or the file for failed records cannot be used; ``FAILED`` if
        there was no producer, or it broke, or input could not be read, or a failed record could not
        be written down; 128 plus the number of a signal that ended it.
    """
    try:
        require_for(order.connection, order.loop)
        if any(name.endswith(ZSTANDARD) for name in order.inputs):
            require(f"a {ZSTANDARD} file", COMPRESSION, "zstandard")
        from ._display import is_terminal

        settings = _settings(order)
        failed = _open_failed(order.failed)
    except (MissingExtra, SettingsError, FileExistsError) as error:
        return complain(error, USAGE)
    except OSError as error:
        place = order.failed or _working_directory()
        return complain(f"{place} can't be written to: {error.strerror}", USAGE)
    shows = is_terminal(stderr=True) if order.progress is None else order.progress
    job = _Job(order, settings, failed, shows=shows)
    try:
        run_on(order.loop, job.run)
    except BaseException as error:  # noqa: BLE001  # the account is complete after any error
        job.end_by(error)
    finally:
        job.settle_rest()
        failed.close()
    return report(job.account, failed, as_json=order.as_json)


def _settings(order: Order) -> ProducerSettings:
    settings = settings_of(order.connection, **order.fields)
    if settings.transactional_id is not None:
        raise SettingsError(
            "transactional_id is set, but produce does not use transactions: remove the setting"
        )
    # Most of the time for closing is for deliveries, the rest for the end.
    hurry = min(_HURRY, settings.close_timeout / 4)
    return settings.with_cancel_timeout(hurry)


def _open_failed(path: Path | None) -> FailedFile:
    if path is None:
        name = f"failed-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        names = (f"{name}-{number}" if number else name for number in itertools.count())
        path = next(Path(f"{one}.jsonl") for one in names if not os.path.lexists(f"{one}.jsonl"))
    return FailedFile(path)


def _working_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:  # it was deleted
        return "the working directory"


class _Progress:
    """The progress of the reading, and the rate of deliveries."""

    def __init__(self) -> None:
        self._position = 0
        self._before = 0
        """How many bytes the inputs before the current one had."""
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=_TICKS)

    def note(self, chunk: Chunk) -> None:
        """Note a chunk that was read."""
        self._position = self._before + chunk.position

    def end_input(self) -> None:
        """Note that the next chunk is of another input."""
        self._before = self._position

    def figures(self, producer: SendProducer, failures: int) -> Figures:
        """The figures for the progress bar."""
        from ._display import Figures

        counted = producer.statistics()
        now = anyio.current_time()
        self._history.append((now, counted.delivered))
        then, before = self._history[0]
        rate = (counted.delivered - before) / (now - then) if now > then else 0.0
        # Not counted.in_flight: a record that the client holds past its deadline has failed.
        awaited = counted.accepted - counted.delivered - counted.failed - counted.withdrawn
        return Figures(self._position, counted.delivered, failures, awaited, rate)


class _Job:
    """One run of ``produce``.

    The backlog keeps each chunk until all of its records have an outcome. An error in one task ends
    no other task: see :meth:`_contain`.

    Attributes:
        account: the outcomes so far.
    """

    def __init__(
        self, order: Order, settings: ProducerSettings, failed: FailedFile, *, shows: bool
    ) -> None:
        self._order = order
        self._shows = shows
        self._settings = settings
        self._failed = failed
        self.account = Account()
        self._backlog = Backlog(self.account, failed)
        self._progress = _Progress()
        self._producer: SendProducer | None = None
        self._starting: anyio.CancelScope
        self._hurried = anyio.Event()
        self._input: Input | None = None
        self._stopped = False

    # --- the tasks -----------------------------------------------------------------------------

    async def run(self) -> int:
        """Read, send and write down. The account has the result."""
        self._starting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            # On Windows, asyncio cannot receive signals; Ctrl-C raises KeyboardInterrupt.
            if sys.platform != "win32":  # pragma: no branch
                await tasks.start(self._watch_signals, tasks)
            with self._starting:
                await self._contain(self._send_all)
            # Before the end of the task that receives signals.
            self.settle_rest()
            tasks.cancel_scope.cancel()
        return COMPLETE

    async def _contain(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run a task. An error ends the reading, and does not leave the task, because it would
        cancel the others."""
        try:
            await function(*arguments)
        except Exception as error:  # noqa: BLE001  # see above
            self.end_by(error)

    def end_by(self, error: BaseException) -> None:
        """Note an error for the report, and stop reading."""
        self.account.end_by(error)
        self._stop_reading()

    def settle_rest(self) -> None:
        """Write down records without an outcome, and failures that could not be written so far."""
        for chunk in self._input.leftover() if self._input is not None else ():
            self._note(chunk)
        self._backlog.settle_rest()

    async def _send_all(self) -> None:
        driver = self._order.connection.driver
        async with open_send_producer(self._settings, driver=driver) as producer:
            self._producer = producer
            self.account.has_begun = True
            began = anyio.current_time()
            async with anyio.create_task_group() as beside:
                if self._shows:
                    beside.start_soon(self._show, producer)
                await self._pass_on(producer)
                beside.cancel_scope.cancel()
            self.account.seconds = anyio.current_time() - began

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
                        except anyio.BrokenResourceError:  # the sender has ended with an error
                            return
                self._progress.end_input()
                ended = self._input.ended
            else:
                self.account.all_read = ended

    def _note(self, chunk: Chunk) -> None:
        self._backlog.add(chunk)
        self._progress.note(chunk)

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
            if self._order.fail_fast:
                stop_at_failure(chunks)
            failures = [failure for chunk in chunks for failure in chunk.failures]
            records = [record for chunk in chunks for record in chunk.records]
            if records:
                self._backlog.begin_sending(len(chunks))
                failures += await self._send_batch(producer, records, chunks)
            # Chunks arrive in the order of reading, and none gets lost between _note() and here.
            self._backlog.remove(len(chunks))
            if failures:
                await self._write_down(failures)

    async def _send_batch(
        self,
        producer: SendProducer,
        records: Sequence[ProducerRecord[Any, Any]],
        chunks: Sequence[Chunk],
    ) -> list[Failure]:
        """Send some records, and return the failures."""
        if self._order.fail_fast and self.account.failures:
            return all_failed(chunks, STOPPED)
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
            self.account.count_delivered(delivered)
            return failures
        except (ProducerBroken, ProducerClosed) as error:
            if isinstance(error, ProducerBroken):
                self.end_by(error)
            return all_failed(chunks, f"the record was not sent: {error}")
        self.account.count_delivered(placed)
        return []

    async def _write_down(self, failures: Sequence[Failure]) -> None:
        await self._backlog.write_down(failures)
        if self._order.fail_fast or self._failed.lost:
            self._stop_reading()

    # --- beside them ---------------------------------------------------------------------------

    async def _watch_signals(
        self, tasks: anyio.abc.TaskGroup, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            async for number in signals:
                if self.account.signal is not None:
                    # A terminal that closes may send SIGHUP twice, which does not mean to hurry.
                    if number in {signal.SIGINT, signal.SIGTERM}:
                        self._hurried.set()
                    continue
                self.account.signal = number
                self._stop_reading()
                if self._producer is None:
                    self._starting.cancel()
                else:
                    tasks.start_soon(self._announce_close)
                    tasks.start_soon(self._contain, self._close_in_time, self._producer)

    async def _announce_close(self) -> None:
        text = (
            "interrupted: the records that were read are delivered within "
            f"{self._settings.close_timeout:g} s; interrupt again to shorten this time"
        )
        # On a thread, since a terminal or a pipe may accept nothing for a while.
        await anyio.to_thread.run_sync(complain, text, FAILED, abandon_on_cancel=True)

    async def _close_in_time(self, producer: SendProducer) -> None:
        settings = self._settings
        patience = settings.close_timeout - settings.cancel_timeout
        with anyio.move_on_after(patience):
            await self._hurried.wait()
        with anyio.CancelScope() as now:
            now.cancel()
            # In a cancelled scope it takes cancel_timeout at most, and settles every record.
            await producer.aclose()

    async def _show(self, producer: SendProducer) -> None:
        """Show the progress until this task is cancelled. No error of the display leaves it."""
        from ._display import progress_bar

        def figures() -> Figures:
            return self._progress.figures(producer, self.account.failures)

        try:
            with progress_bar(size_of(self._order.inputs)) as bar:
                try:
                    while True:
                        await anyio.to_thread.run_sync(bar.show, figures())
                        await anyio.sleep(_TICK)
                finally:
                    # The final figures, now that no thread draws older ones.
                    bar.show(figures())
        except Exception as error:  # noqa: BLE001  # a display must not stop the sending
            self.account.display_error = error
