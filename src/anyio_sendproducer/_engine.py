"""The engine of one producer: the pump, deadlines, replacing a broken client, start and close.

There are two main tasks. The *guard* opens the driver, waits for a request to close the producer or
for the cancellation of its own scope, and then closes the producer in bounded time. The *pump*
advances the ledger: it submits queued records to the driver, settles their outcomes and wakes their
callers. The pump is shielded, because records must be settled while the scope around it is
cancelled. The guard ends it. The pump's task group runs tasks with one job each: deadlines, the
addresses of a service, retries for topics without metadata, the look-up before a replacement.

The glossary, ``docs/reference/glossary.md``, defines the terms: client generation, give up, settle.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from threading import get_ident
from typing import Final

import anyio
import anyio.abc
import anyio.lowlevel
from anyio import CancelScope

from ._affinity import Affinity
from ._bridge import Bridge
from ._clock import Clock
from ._closing import Closing
from ._deadlines import DeadlineTimer
from ._delivery import ProducerState, Statistics
from ._driver_events import (
    BatchSubmitted,
    ClientBroken,
    ClientOpened,
    Completed,
    DriverCrashed,
    Event,
    GenerationEnded,
    MetadataChanged,
    Ready,
    are_settled_at_once,
    split_events,
)
from ._engine_states import ClientState, MetadataWaits, PumpState
from ._exceptions import ProducerClosed, ProducerFenced, SendProducerError, TransactionError
from ._ledger import Ledger
from ._loops import Loop
from ._observing import Observation
from ._replacement import Replacement
from ._settings import ProducerSettings
from ._settings_resolver import SettingsResolver
from .drivers import Submitted
from .telemetry._logging import describe, error_type

__all__ = ["RETRY_SECONDS", "Engine"]

_log = logging.getLogger("anyio_sendproducer")

#: Seconds between two requests for topics without metadata, if the driver reports nothing sooner.
RETRY_SECONDS: Final = 0.25

# A global is read faster than an attribute of an enum's class; these are read for each record.
_READY: Final = ClientState.READY
_BUSY: Final = ClientState.BUSY
_REOPENING: Final = ClientState.REOPENING
_STOPPING: Final = ClientState.STOPPING
_OPEN: Final = (_READY, _BUSY)
_IDLE: Final = PumpState.IDLE
_NOTIFIED: Final = PumpState.NOTIFIED
_SETTLING: Final = PumpState.SETTLING


class Engine:
    """Runs one producer: its pump, its deadlines, its client, and its start and end.

    Args:
        resolver: resolves the settings.
        loop: the event loop that runs the caller.
        clock: the producer's clock.
        ledger: tracks the producer's deliveries.
        bridge: connects the event loop to the driver.
        observation: informs the producer's observers; None if there are none.
    """

    def __init__(
        self,
        *,
        resolver: SettingsResolver,
        loop: Loop,
        clock: Clock,
        ledger: Ledger,
        bridge: Bridge,
        observation: Observation | None,
    ) -> None:
        self.resolver = resolver
        self.settings: ProducerSettings = resolver.settings
        self.loop = loop
        self.clock = clock
        self.timer = DeadlineTimer(clock)
        self.ledger = ledger
        self.bridge = bridge
        self.step = bridge.step
        self.observation = observation
        self.client = _READY
        self.pump = _IDLE
        self.affinity = Affinity(loop, bridge.step)
        #: Aborts the open transaction, or waits for its end, before records are waited for.
        self.before_drain: Callable[[], Awaitable[object]] | None = None
        self.closing = Closing()
        self._replacement = Replacement(resolver, ledger, bridge, observation)
        self._tasks: anyio.abc.TaskGroup
        self.metadata = MetadataWaits(loop, self._schedule_retry)
        if observation is None:  # with observers, every event needs a turn of the pump
            bridge.take_turn = self._take_turn

    # --- on the caller's task ----------------------------------------------------------------

    def check_usable(self) -> None:
        """Check that the caller may use the producer.

        Raises:
            ProducerClosed: the producer is closed.
            ProducerBroken: the producer is broken.
            ProducerMisused: see :meth:`Affinity.check`.
        """
        self.affinity.check()
        if self.ledger.state in {ProducerState.CLOSED, ProducerState.BROKEN}:
            raise self.ledger.refusal()

    def statistics(self) -> Statistics:
        """Take a snapshot of the figures."""
        return self.ledger.statistics(
            generations=self._replacement.generation,
            is_connected=self.client in _OPEN
            and self.ledger.state is not ProducerState.BROKEN
            and not self.bridge.is_disconnected(),
            hand_overs=self.bridge.hand_overs,
            wake_ups=self.bridge.wake_ups,
            client=self.bridge.metrics(),
        )

    def last_error(self) -> BaseException | None:
        """Return the reason why no broker is reached, if it is known."""
        return self._replacement.last_error()

    def notify(self) -> None:
        """Have the pump submit the queued records as soon as the driver accepts a batch.

        If one record is queued, and the driver allows it, submit it immediately.
        """
        if self.pump is not _IDLE:
            return
        ledger = self.ledger
        if self.client is _BUSY or (
            ledger.queued == 1 and self.bridge.can_submit_inline(is_alone=ledger.in_flight == 1)
        ):
            self._submit_now()
        else:
            self.pump = _NOTIFIED
            self.bridge.wake_pump()

    def _submit_now(self) -> None:
        """Submit the queued records without a turn of the pump, if the driver accepts a batch."""
        self.pump = _NOTIFIED
        if self.client is _BUSY:
            self.bridge.notify_when_ready()
            return
        self._submit_queued()
        if self.bridge.lingers:
            self.update_hurry()
        if self.observation is None and not self.ledger.queued and self.bridge.reports_by_itself():
            self.pump = _IDLE  # it has nothing to do until the client reports
        else:
            self.bridge.wake_pump()

    def wake_and_notify(self, to_wake: Iterable[object]) -> None:
        """Wake waiters, and notify the pump if records are queued.

        Outside the pump's turns, call this after each change of the ledger that may queue records.
        """
        with self.step:
            self.loop.wake(to_wake)
            if self.bridge.lingers:
                self.update_hurry()
            if self.ledger.queued:
                self.notify()

    def update_hurry(self) -> None:
        """Tell the driver whether the client must hurry, that is, not linger."""
        self.bridge.hurry(self.ledger.must_hurry)

    @contextmanager
    def hurrying(self) -> Generator[None]:
        """Keep the client from lingering during a block that waits for submitted records."""
        self.ledger.hurry_requests += 1
        self.wake_and_notify(())
        try:
            yield
        finally:
            self.ledger.hurry_requests -= 1

    def run_or_schedule(self, change: Callable[[], object]) -> None:
        """Call ``change`` for a caller that stopped waiting: immediately, or later on the loop.

        If the garbage collector closes the caller's coroutine, this may run on any thread, or
        interrupt the producer's own code. In both cases the event loop calls ``change`` later.
        """
        if self.affinity.thread == get_ident() and not self.step.depth:
            with self.step:
                change()
        else:
            self.loop.call_soon_threadsafe(change)

    async def wait_until_settled(self, *, include_waiting: bool = False) -> None:
        """Wait until every record that was accepted before this call has its outcome. With
        ``include_waiting``, also wait for records that wait for room or are accepted later.

        Cancellation ends only the waiting.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        waiter = self.loop.new_waiter()
        with self.step:
            is_set = self.ledger.add_barrier(waiter, include_waiting=include_waiting)
            self.update_hurry()
        if not is_set:
            await anyio.lowlevel.checkpoint()
            return
        try:
            await waiter
        except BaseException:
            self.run_or_schedule(partial(self.ledger.drop_barrier, waiter))
            raise

    # --- the pump ----------------------------------------------------------------------------

    async def _run_pump(self) -> None:
        observation = self.observation
        with CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._watch_deadlines)
                if self.resolver.asks:
                    tasks.start_soon(
                        self._replacement.watch_addresses,
                        self.clock.sleep,
                        lambda: self.client is _REOPENING,
                        self._replace_client,
                    )
                try:
                    async for events in self.bridge.events:
                        if observation is not None:
                            observation.start_turn()
                        if events:
                            await self._settle(events)
                        else:  # a wake-up by wake_pump()
                            self.pump = _IDLE
                        with self.step:
                            self._submit_queued()
                            if polled := self.bridge.poll():
                                self._apply_all(polled)
                                self.wake_and_notify(())
                        if observation is not None:
                            observation.inform()
                        del events, polled  # so that no record stays in memory during the wait
                except Exception as error:  # noqa: BLE001  # every waiting caller gets it
                    self._crash(error)
                finally:
                    self.bridge.events.close()
                    tasks.cancel_scope.cancel()
                    if observation is not None:
                        observation.inform()

    async def _settle(self, events: Sequence[Event]) -> None:
        """Apply the events of one wake-up. Other tasks run between portions of many outcomes."""
        # The callers that wake up may send again. While the pump is NOTIFIED or SETTLING, their
        # records do not notify it, so that they are submitted together at the end of this turn.
        self.pump = _NOTIFIED
        for portion in split_events(events):
            if self.pump is _SETTLING:
                await anyio.lowlevel.cancel_shielded_checkpoint()
            with self.step:
                self._apply_all(portion)
            self.pump = _SETTLING
        self.pump = _IDLE

    def _submit_queued(self) -> None:
        if self.client is _STOPPING:
            return  # queued records fail when the ledger is closed
        if self.bridge.lingers:
            self.update_hurry()
        queued = self.ledger.queued
        if not queued or self.client is _REOPENING:
            return
        if self.client is _BUSY:
            self.notify()
        elif not self.bridge.should_gather(queued):
            batch = self.ledger.take(self.bridge.batch_limit)
            self.metadata.changes_before_batch = self.metadata.changes
            submitted = self.bridge.submit(batch) if batch else Submitted()
            if submitted is None:
                self.client = _BUSY
            else:
                self.loop.wake(self._apply_submitted(submitted))
                if self.ledger.queued:
                    self.notify()

    def _take_turn(self, events: Sequence[Event]) -> bool:
        """Take a turn of the pump in a callback of the event loop, which is half the work.

        Returns: False if the pump must take the turn."""
        if not are_settled_at_once(events):
            return False
        to_wake: list[object] = []
        try:
            with self.step:
                # If a polled client's events are all outcomes, its polling thread goes on watching.
                polls = not events or any(not isinstance(event, Completed) for event in events)
                for event in (*events, *(self.bridge.poll() if polls else ())):
                    to_wake += self._apply(event)
        except Exception as error:  # noqa: BLE001  # every waiting caller gets it
            self._crash(error)
        if not self.bridge.is_polled:
            # The client's thread still runs. Callers that ran at once would compete with it.
            self.pump = _IDLE
            self.wake_and_notify(to_wake)
            return True
        self.pump = _NOTIFIED  # what the callers send at once is submitted together
        try:
            self.loop.wake(to_wake, at_once=True)
        finally:
            self.pump = _IDLE
            with self.step:
                if self.bridge.lingers:
                    self.update_hurry()
                if self.ledger.queued:
                    self._submit_now()
        return True

    def _apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.loop.wake(self._apply(event))

    def _apply(self, event: Event) -> Iterable[object]:
        """Apply one event. Returns: the waiters to wake."""
        ledger = self.ledger
        match event:
            case Completed(entries, outcomes):
                return ledger.settle(entries, outcomes)
            case BatchSubmitted(submitted):
                self.client = _READY if self.client is _BUSY else self.client
                return self._apply_submitted(submitted)
            case MetadataChanged():
                self.metadata.changes += 1
                return self._requeue_held()
            case ClientBroken(generation, error):
                if generation == self.bridge.generation:
                    return self._replace_or_break(error)
            case GenerationEnded(error):
                return self._replacement.end_generation(error)
            case ClientOpened(generation):
                self.client = _READY if self.client is _REOPENING else self.client
                self._replacement.opened(generation)
            case Ready():
                pass  # each turn polls the client
            case DriverCrashed(error):  # pragma: no branch  # the last kind of event
                return self._break_ledger(error)
        return ()

    def _apply_submitted(self, submitted: Submitted) -> Iterable[object]:
        """Apply what the driver returned for a batch. Returns: the waiters to wake."""
        to_wake: list[object] = []
        if submitted.sizes:
            to_wake += self.ledger.resize(submitted.sizes)
        if submitted.held:
            to_wake += self.ledger.hold(submitted.held)
            self._schedule_retry()
            # Race: the driver thread finds no metadata and gives the record back. The metadata
            # arrive, and the event loop gets MetadataChanged first, when no record is held. Without
            # this check the record would wait for the next retry.
            if self.metadata.changes != self.metadata.changes_before_batch:
                to_wake += self._requeue_held()
        return to_wake

    def _crash(self, error: Exception) -> None:
        with self.step:
            self._break_ledger(error, bug=error)

    def _break_ledger(self, error: BaseException, bug: Exception | None = None) -> Iterable[object]:
        before = self.ledger.broken_by
        # Tasks that wait for metadata must wake up: they check the ledger's state, and raise.
        self.loop.wake([*self.ledger.mark_broken(error), *self._requeue_held()])
        if self.ledger.broken_by is not before:
            message, extra = "the producer broke: %s", {"error.type": error_type(error)}
            with suppress(Exception):  # a log handler may raise, which must not end the pump
                _log.error(message, describe(error), exc_info=bug, extra=extra)
        return ()

    # --- topics without metadata -------------------------------------------------------------

    def _requeue_held(self) -> Iterable[object]:
        """Queue the held records again. Returns: the waiters for metadata, to be woken."""
        self.ledger.requeue_held()
        waiters, self.metadata.waiters = self.metadata.waiters, set()
        return waiters

    def _schedule_retry(self) -> None:
        """Submit held records again after a while, even if the driver reports no new metadata."""
        if not self.metadata.is_retry_scheduled and self.client is not _STOPPING:
            self.metadata.is_retry_scheduled = True
            self._tasks.start_soon(self._retry_topics)

    async def _retry_topics(self) -> None:
        await self.clock.sleep(RETRY_SECONDS)
        self.metadata.is_retry_scheduled = False
        with self.step:
            self.wake_and_notify(self._requeue_held())

    # --- deadlines ---------------------------------------------------------------------------

    async def _watch_deadlines(self) -> None:
        while True:
            while self.pump is _SETTLING:  # settle arrived outcomes before expiring records
                await anyio.lowlevel.checkpoint()
            now = self.clock.now()
            last_error = self.last_error()
            with self.step:
                self.wake_and_notify(self.ledger.expire(now, last_error))
                if self.ledger.is_stuck(now):
                    error = TimeoutError(
                        "the client has had records for too long after their delivery_timeout"
                    )
                    error.__cause__ = last_error
                    self.loop.wake(self._replace_or_break(error))
            await self.timer.sleep(max(0.0, self.ledger.next_deadline(now) - now))

    # --- replacing the client ----------------------------------------------------------------

    def replace_client(self, error: BaseException) -> None:
        """Give the client up and open another, or break the producer if that is not possible."""
        with self.step:
            self.wake_and_notify(self._replace_or_break(error))

    def ended_transaction(self) -> None:
        """Note that the client committed a transaction, or aborted one of which nothing had
        failed."""
        self._replacement.ended_transaction()

    def is_given_up(self, generation: int) -> bool:
        """Whether the client of this number was given up."""
        return self._replacement.is_given_up(generation)

    def why_not_commit(self, generation: int) -> SendProducerError | None:
        """Why no commit can be requested from the client of this number; None if one can."""
        if self.is_given_up(generation):
            return TransactionError("its client was given up")
        if self.client is _STOPPING:
            return ProducerClosed("the producer was closed before the commit was requested")
        return None

    async def wait_for_look_up(self) -> None:
        """Wait until calls reach no client that was given up, but the one that replaces it.

        Raises:
            ProducerClosed, ProducerBroken: the producer was closed or broke.
        """
        if self._replacement.looked_up is not None:
            await self._replacement.looked_up.wait()
        self.check_usable()

    def _replace_or_break(self, error: BaseException) -> Iterable[object]:
        # Another client would fence the producer that took over the transactional_id. A client that
        # the user made can't be made again.
        if isinstance(error, ProducerFenced) or self.settings.producer is not None:
            return self._break_ledger(error)
        self._replace_client(error)
        return ()

    def _replace_client(self, error: BaseException) -> None:
        if self.client in {_REOPENING, _STOPPING} or self.ledger.state is ProducerState.BROKEN:
            return
        generation = self._replacement.generation
        self.client = _REOPENING
        with self.step:
            self._replacement.begin(error, self._tasks)
        extra = {"error.type": error_type(error), "anyio_sendproducer.generation": generation}
        with suppress(Exception):  # as in _break_ledger()
            _log.warning(
                "the client is given up, and another one is opened: %s", error, extra=extra
            )

    # --- the guard ---------------------------------------------------------------------------

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Run the guard: open the driver, run the pump, and close the driver.

        Raises:
            ProducerStartError, ProducerFenced: see :meth:`Bridge.open`.
            SettingsError: the client refused a setting.

        Cancellation closes the producer within ``cancel_timeout``.
        """
        await self._open()
        if self.client is _READY:
            self._replacement.opened(1)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_pump)
                task_status.started()
                try:
                    await self.closing.requested.wait()
                    await self._drain()
                except BaseException:
                    self.request_close(self.settings.cancel_timeout)
                    with CancelScope(shield=True):
                        await self._drain()
                    raise
                finally:
                    self.client = _STOPPING
                    with CancelScope(shield=True):
                        await self.bridge.stop(self._client_close_timeout())
        finally:
            # Usually the pump has done this. But asyncio may have cancelled it before its first
            # step.
            self.bridge.events.close()
            try:
                with self.step:
                    self.loop.wake(self.ledger.close())
                    self.loop.wake(self._requeue_held())
                if self.observation is not None:
                    self.observation.client_ended(self.ledger.broken_by)
                    self.observation.end()
            finally:
                self.closing.done.set()

    async def _open(self) -> None:
        try:
            if self.settings.wait_for_cluster or self.bridge.is_threadless:
                await self.bridge.open()  # the driver bounds this by start_timeout
            else:
                self.client = _REOPENING
                self.bridge.open_in_background(are_addresses_known=self.resolver.is_complete)
        except BaseException:
            with CancelScope(shield=True):
                await self.bridge.stop(0)
            self.bridge.events.close()
            self.ledger.close()
            self.closing.done.set()
            raise

    def request_close(self, seconds: float) -> None:
        """Request to close within ``seconds``, or sooner if that was requested before."""
        # A tenth of the time, at most half a second, is reserved for closing the client.
        self.closing.request(self.loop.now() + seconds - min(0.5, seconds / 10))

    async def close(self) -> None:
        """Close the producer within ``close_timeout``.

        Cancellation reduces that to ``cancel_timeout``, and is raised when the producer is closed.
        """
        self.request_close(self.settings.close_timeout)
        try:
            await self.closing.done.wait()
        except BaseException:
            await self.close_quickly()
            raise

    async def close_quickly(self) -> None:
        """Close the producer within ``cancel_timeout``, shielded from cancellation."""
        self.request_close(self.settings.cancel_timeout)
        with CancelScope(shield=True):
            await self.closing.done.wait()

    async def _drain(self) -> None:
        with self.step:
            self.loop.wake(self.ledger.drain())
            self.update_hurry()
        with CancelScope(deadline=self.closing.deadline) as self.closing.scope:
            if self.before_drain is not None:
                await self.before_drain()
            await self.wait_until_settled()

    def _client_close_timeout(self) -> float:
        """The seconds that the client may take to close: 0 if the producer is broken, or if a
        record has no outcome yet. Otherwise at most 1, because no record waits for its outcome."""
        if not self.ledger.is_idle or self.ledger.state is ProducerState.BROKEN:
            return 0.0
        return min(1.0, max(0.0, self.closing.deadline - self.loop.now()))
