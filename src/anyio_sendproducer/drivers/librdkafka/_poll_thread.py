"""The polling thread, which waits in the client while the event loop does not poll it.

Whichever thread polls the client, usually the event loop's or this one, runs the callback of each
outcome, and so does the work for it. The polling thread waits for outcomes only after the event
loop asked it to watch. It reports a few outcomes by itself, and goes on watching, so that a record
costs one wake-up of each thread. If there are more, it stops, and wakes the loop, which polls: this
thread would only compete with the loop for the interpreter.

While it does not watch, it polls once a second for other events. It also flushes a client that must
hurry.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from typing import Any, Final

from . import _waits as waits
from ._bootstrap import BootstrapSearch
from ._client import ClientHandle, is_answered
from ._health import Health
from ._reports import Reports
from ._threads import start_thread

__all__ = ["WATCH_LIMIT", "PollThread"]

#: The length of ``Reports.pending`` at which the thread leaves the rest to the event loop. Each
#: outcome has two places.
WATCH_LIMIT: Final = 16
#: How many requests may prepare a client for its first record. They delay the thread's other work.
_PREPARING_CALLS: Final = 10
#: How soon the thread notices that it must flush.
_FLUSH_SECONDS: Final = 0.01
#: How often this thread polls the client while it does not watch: for the client's errors, its log
#: and its statistics.
_IDLE_SECONDS: Final = 1.0


class PollThread:
    """The thread that polls the client while the event loop does not."""

    def __init__(
        self,
        config: Mapping[str, Any],
        handle: ClientHandle,
        health: Health,
        reports: Reports,
        bootstrap: BootstrapSearch,
    ) -> None:
        #: Whether the client lingers.
        self.lingers = config["linger.ms"] > 0
        self._is_transactional = "transactional.id" in config
        #: Whether the client requests its producer id by itself, and late.
        self._is_late = config["enable.idempotence"] and not self._is_transactional
        self._handle = handle
        self._health = health
        self._reports = reports
        self._bootstrap = bootstrap
        #: Whether the client must not linger. The loop sets it, and the thread reads it.
        self.hurries = False
        #: Wakes the thread.
        self.bell = threading.Event()
        #: Set when the thread no longer prepares the client for the first record.
        self.is_prepared = threading.Event()
        self._is_watching = False
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Start the thread.

        Returns:
            Whether the system could start it.
        """
        # asyncio runs the wake-up that a thread requests in a copy of the thread's context. So the
        # log of a wake-up sees the variables of the task that opened the producer.
        self._thread = start_thread(
            contextvars.copy_context().run,
            self._run,
            name=f"{threading.current_thread().name}-poll",
        )
        return self._thread is not None

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended, for at most ``seconds``.

        Returns:
            Whether it has ended, or never ran.
        """
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def watch(self) -> None:
        """Make the thread report outcomes until the event loop polls, or no record is left.

        If there are many outcomes, the thread calls the sink's ``ready`` instead, and stops.
        """
        if not self._is_watching:
            self._is_watching = True
            self._reports.limit = WATCH_LIMIT
            self.bell.set()

    def stop_watching(self) -> None:
        """Leave the outcomes to the event loop, which polls now.

        If this thread is waiting in the client, it may take a few more. The loop reports them.
        """
        self._is_watching = False

    def _run(self) -> None:
        self._prepare()
        handle, health, reports = self._handle, self._health, self._reports
        # No other thread can end a wait in the client. If this thread may have to flush, it waits
        # in short slices.
        slice_ = _FLUSH_SECONDS if self.lingers else waits.SLICE_SECONDS
        while not handle.closing.is_set():
            if self._is_transactional and health.is_disconnected and not health.is_broken:
                self._bootstrap.search()
            if self._is_watching and reports.pending:
                # Callbacks ran in a poll below, perhaps before the loop called watch().
                if len(reports.pending) < WATCH_LIMIT:
                    reports.report()
                else:  # the order matters: after ready(), the loop may call watch() again
                    self._is_watching = False
                    handle.sink.ready()
            elif self.hurries and len(handle.client):
                reports.poll(slice_, flushes=True)
            elif self._is_watching:
                reports.poll(slice_)
                if not reports.pending and not len(handle.client):
                    self._rest()
            elif not self.bell.wait(_IDLE_SECONDS):
                reports.poll(0)
                # A client with transactions has asked above.
                if (
                    health.is_disconnected
                    and not self._is_transactional
                    and is_answered(handle.client, waits.SLICE_SECONDS)
                ):
                    health.note_answer()
            else:
                self.bell.clear()

    def _rest(self) -> None:
        """Stop watching, because the client has had no record for a while."""
        self._is_watching = False
        if len(self._handle.client):
            # The loop submitted a record before the line above, and its watch() did nothing.
            self._is_watching = True

    def _prepare(self) -> None:
        """Make librdkafka request its producer id.

        librdkafka does so after each answer with metadata. When the first answer comes, it has no
        connection for the request yet, because it leaves the bootstrap address for the brokers in
        the answer. Its next attempt would come half a second later. So this method requests
        metadata again. That answer comes over one of the new connections.
        """
        for _ in range(_PREPARING_CALLS if self._is_late else 0):
            if self._handle.closing.is_set() or is_answered(
                self._handle.client, waits.SLICE_SECONDS
            ):
                break
        self.is_prepared.set()
