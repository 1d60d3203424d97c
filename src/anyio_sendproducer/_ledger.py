"""The state machine of the producer and of each delivery: synchronous, and without I/O.

The ledger has no event loop, no clock and no thread. Time is an argument. Methods return the
waiters to wake. Every decision about the outcome of a record that was entered is made in this
module, so that tests need no I/O.

A delivery that is WAITING for room or QUEUED can be withdrawn. Once it is SUBMITTED, the driver has
it, until the driver reports it or gives it back, or the client is closed. Its deadline may give it
an outcome before. A record takes up room for as long as the driver has it, even after its deadline.
Otherwise, while the cluster is down, the memory that a producer uses would grow by
``max_buffered_bytes`` in each ``delivery_timeout``.

The ledger executes the tables of transitions in ``_delivery.py``. Transitions of records that are
delivered are looked up once, when this module is imported; the others when they occur.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from anyio import WouldBlock

from ._barriers import Barriers
from ._deadlines import CallDeadline, CallDeadlines
from ._delivery import (
    DELIVERY_TRANSITIONS,
    PRODUCER_TRANSITIONS,
    Counts,
    DeliveryState,
    Entry,
    Group,
    ProducerState,
    Statistics,
)
from ._exceptions import (
    DeliveryError,
    Persistence,
    ProducerClosed,
    RecordRejected,
    SendProducerError,
)
from ._failures import (
    delivery_error,
    maybe_written,
    no_outcome,
    not_sent,
    not_tried,
    producer_broken,
    timed_out,
)
from ._late import LateRecords
from ._records import ProducerRecord, RecordMetadata
from ._unawaited import KEPT_FAILURES, FirstFailure, UnawaitedFailures

__all__ = ["Ledger"]

# A global is read faster than an attribute of an enum's class; these are read for each record.
_WAITING: Final = DeliveryState.WAITING
_QUEUED: Final = DeliveryState.QUEUED
_SUBMITTED: Final = DeliveryState.SUBMITTED
_FAILED: Final = DeliveryState.FAILED
_WITHDRAWN: Final = DeliveryState.WITHDRAWN
_OPEN: Final = ProducerState.OPEN

# The transitions of delivered records. A dict lookup with an enum member as key calls
# Enum.__hash__, which is slow: two calls for each record would take a tenth of the ledger's time.
_ADMITTED: Final = DELIVERY_TRANSITIONS[_WAITING]["room"]
_HANDED_OVER: Final = DELIVERY_TRANSITIONS[_QUEUED]["handed over"]
_ACKNOWLEDGED: Final = DELIVERY_TRANSITIONS[_SUBMITTED]["acknowledged"]

#: The event that closes the producer in each state.
_CLOSING_EVENT: Final = {
    _OPEN: "start failed",
    ProducerState.DRAINING: "drained or out of time",
    ProducerState.BROKEN: "close",
}


def _move(entry: Entry, event: str) -> None:
    """Change the state of a delivery as the table says."""
    entry.state = DELIVERY_TRANSITIONS[entry.state][event]


class Ledger:
    """Tracks every delivery of one producer.

    Methods that return a ``list[object]`` return the waiters to wake.

    Args:
        max_in_flight: the room for records.
        max_buffered_bytes: the room for the bytes of their keys, values and headers.
        delivery_timeout: seconds from entering a record to its deadline.
        kept_failures: how many failures that no caller has seen are kept with their errors; the
            others are only counted.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_buffered_bytes: int,
        delivery_timeout: float,
        kept_failures: int = KEPT_FAILURES,
    ) -> None:
        self.state = _OPEN
        self.broken_by: BaseException | None = None
        self._max_records = max_in_flight
        self._max_bytes = max_buffered_bytes
        self._timeout = delivery_timeout
        self._records = 0
        self._bytes = 0
        # These dicts are ordered sets: first in, first out, and any entry can be removed in O(1).
        self._waiting: dict[Entry, None] = {}  # for room
        self._queue: dict[Entry, None] = {}  # to submit next
        # Accepted entries without an outcome: those in the queue, held, or with the driver.
        self._pending: dict[Entry, None] = {}
        # Entries that wait for the metadata of their topic, by topic.
        self._held: dict[str, dict[Entry, None]] = {}
        self._barriers = Barriers()
        # Entries that failed while the driver had them, and that it still has.
        self._retained: dict[Entry, None] = {}
        # The deadlines of calls with a timeout of their own.
        self._call_deadlines = CallDeadlines(self._retained)
        # The entries of _retained that are past their `delivery_timeout`.
        self._late = LateRecords(max_in_flight, max_buffered_bytes)
        # Whether enter(wait=False) has found no room since outcomes last freed room.
        self._refused_for_room = False
        #: How many callers wait for submitted records, and send no more until some are settled.
        self.hurry_requests = 0
        self._unawaited = UnawaitedFailures(kept_failures)
        self._accepted = 0
        self._counts = Counts()

    # --- accepting records -------------------------------------------------------------------

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        size: int,
        now: float,
        wait: bool = True,  # noqa: FBT001, FBT002  # a keyword costs time for each record
    ) -> Entry:
        """Enter a record: QUEUED if there is room, otherwise WAITING.

        Raises:
            anyio.WouldBlock: there is no room, and ``wait`` is False.
            ProducerClosed: the producer is closing or closed.
            ProducerBroken: the producer is broken.
            RecordRejected: the record is larger than ``max_buffered_bytes``.
        """
        if self.state is not _OPEN:
            raise self.refusal()
        # _fits() and _admit(), written out: this runs for each record.
        if (
            not self._waiting
            and self._records < self._max_records
            and self._bytes + size <= self._max_bytes
        ):
            self._accepted = seq = self._accepted + 1
            entry = Entry(record, size, now + self._timeout, seq)
            self._records += 1
            self._bytes += size
            self._queue[entry] = None
            self._pending[entry] = None
            return entry
        if size > self._max_bytes:
            raise delivery_error(
                RecordRejected,
                f"the record has {size} bytes, but max_buffered_bytes is {self._max_bytes}",
                record,
                Persistence.NOT_PERSISTED,
            )
        if not wait:
            self._refused_for_room = True
            raise WouldBlock(
                "there is no room for the record: max_in_flight or max_buffered_bytes is reached"
            )
        entry = Entry(record, size, now + self._timeout, 0)
        entry.state = _WAITING
        self._waiting[entry] = None
        return entry

    def enter_many(
        self, records: Iterable[tuple[ProducerRecord[Any, Any], int]], now: float, group: Group
    ) -> list[Entry]:
        """Enter records of one group, each with its size, up to the first that has no room.

        Returns:
            The entries; none if other records wait for room, there is no room for the first, or the
            producer is not open.
        """
        entries: list[Entry] = []
        if self.state is not _OPEN or self._waiting:
            return entries
        room = self._max_records - self._records
        total = self._bytes
        deadline = now + self._timeout
        for seq, (record, size) in enumerate(
            itertools.islice(records, room), start=self._accepted + 1
        ):
            if total + size > self._max_bytes:
                break
            total += size
            entry = Entry(record, size, deadline, seq)
            entry.group = group
            entries.append(entry)
        self._accepted += len(entries)
        self._records += len(entries)
        self._bytes = total
        added = dict.fromkeys(entries)
        self._queue.update(added)
        self._pending.update(added)
        return entries

    def limit(self, entries: Iterable[Entry], deadline: CallDeadline) -> None:
        """Give entries the deadline of their call. Their ``delivery_timeout`` still applies."""
        for entry in entries:
            self._call_deadlines.add(entry, deadline)

    def refusal(self) -> SendProducerError:
        """Make the error of a record that is not accepted because of the producer's state."""
        if self.state is ProducerState.BROKEN:
            return producer_broken(self.broken_by)
        return ProducerClosed(
            "the producer is closed: its `async with` block has ended, or aclose() was called"
        )

    def has_room(self, size: int) -> bool:
        """Whether a record of this size would be accepted at once."""
        return not self._waiting and self._fits(size)

    def _fits(self, size: int) -> bool:
        return self._records < self._max_records and self._bytes + size <= self._max_bytes

    def _admit(self, entry: Entry) -> None:
        self._accepted = entry.seq = self._accepted + 1
        self._records += 1
        self._bytes += entry.size
        entry.state = _ADMITTED
        self._queue[entry] = None
        self._pending[entry] = None

    def _free_room(self, entry: Entry) -> None:
        self._records -= 1
        self._bytes -= entry.size
        self._retained.pop(entry, None)
        self._late.discard(entry)

    def _admit_waiting(self, to_wake: list[object]) -> None:
        waiting = self._waiting
        while waiting:
            entry = next(iter(waiting))
            if not self._fits(entry.size):
                return
            del waiting[entry]
            self._admit(entry)
            if entry.room_waiter is not None:
                to_wake.append(entry.room_waiter)
                entry.room_waiter = None

    # --- to the driver and back --------------------------------------------------------------

    def take(self, limit: int | None = None) -> list[Entry]:
        """Take queued records for the driver, in order. Records of a held topic are held, too.

        Args:
            limit: the largest number of records to take; None for all.
        """
        queue = self._queue
        taken = [*itertools.islice(queue, limit)]
        if len(taken) == len(queue):
            queue.clear()
        else:
            for entry in taken:
                del queue[entry]
        if not self._held:
            for entry in taken:
                entry.state = _HANDED_OVER
            return taken
        batch: list[Entry] = []
        for entry in taken:
            held = self._held.get(entry.record.topic)
            if held is None:
                entry.state = _HANDED_OVER
                batch.append(entry)
            else:
                held[entry] = None
        return batch

    def hold(self, entries: Iterable[Entry]) -> list[object]:
        """Hold records that the driver gave back, mostly because metadata are missing.

        They, and later records of the same topics, wait for :meth:`requeue_held`. But an abandoned
        record is withdrawn, and a record of a stopped group or of an earlier transaction fails.

        Returns:
            The waiters to wake.
        """
        to_wake: list[object] = []
        for entry in entries:
            if entry in self._retained:
                self._free_room(entry)  # it failed while the driver had it
            elif entry.state is not _SUBMITTED:
                pass  # it failed when its client was closed, which also freed its room
            elif entry.abandoned:
                self._counts.abandoned -= 1
                self._withdraw(entry, "topic not known, caller gone")
            else:
                _move(entry, "topic not known yet")
                if entry.group is not None and entry.group.stopped:
                    error = not_tried(entry.record)
                elif not self._unawaited.first.includes(entry):
                    message = "the record was not sent: its transaction was aborted"
                    error = not_sent(entry.record, message, None)
                else:
                    self._held.setdefault(entry.record.topic, {})[entry] = None
                    continue
                self._free_room(entry)
                self._fail(entry, error, to_wake)
        self._admit_waiting(to_wake)
        self._release_barriers(to_wake)
        return to_wake

    def requeue_held(self) -> bool:
        """Put the held records back at the front of the queue. Returns: whether there were any."""
        if not self._held:
            return False
        queue: dict[Entry, None] = {}
        for held in self._held.values():
            queue.update(held)
        self._held.clear()
        queue.update(self._queue)
        self._queue = queue
        return bool(queue)

    def resize(self, sizes: Iterable[tuple[Entry, int]]) -> list[object]:
        """Replace the estimated sizes of records by their sizes when serialized."""
        for entry, size in sizes:
            if entry.state is _SUBMITTED or entry in self._retained:
                self._bytes += size - entry.size
                self._late.resize(entry, size)
                entry.size = size
        to_wake: list[object] = []
        self._admit_waiting(to_wake)
        return to_wake

    def settle(
        self, entries: Sequence[Entry], outcomes: Sequence[RecordMetadata | DeliveryError]
    ) -> list[object]:
        """Apply the outcomes that the driver reports, one for each entry.

        Returns:
            The waiters to wake, which wait for an outcome, for room or for a flush.

        Raises:
            ValueError: the numbers of entries and outcomes differ. Nothing has changed.
        """
        if len(entries) != len(outcomes):
            raise ValueError(f"{len(outcomes)} outcomes were given for {len(entries)} records")
        to_wake: list[object] = []
        alive = self._pending
        delivered = freed = 0
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.state is not _SUBMITTED:
                if entry in self._retained:
                    self._free_room(entry)
                continue
            if type(outcome) is not RecordMetadata:
                if not isinstance(outcome, RecordMetadata):
                    error: object = outcome  # a driver may report anything
                    if not isinstance(error, DeliveryError):  # pyright: ignore[reportUnnecessaryIsInstance]
                        error = no_outcome(entry.record, error)
                    self._free_room(entry)
                    self._fail(entry, error, to_wake)
                    continue
                outcome = RecordMetadata(*outcome)  # noqa: PLW2901  # a driver reports a subclass
            # _free_room() and _count_down(), written out: this runs for each record.
            freed += entry.size
            entry.state = _ACKNOWLEDGED
            delivered += 1
            entry.outcome = outcome
            del alive[entry]
            if (waiter := entry.waiter) is not None:
                to_wake.append(waiter)
            elif (group := entry.group) is not None:
                group.remaining = remaining = group.remaining - 1
                if remaining == 0 and group.waiter is not None:
                    to_wake.append(group.waiter)
        self._counts.delivered += delivered
        self._records -= delivered
        self._bytes -= freed
        self._refused_for_room = False
        if self._waiting:
            self._admit_waiting(to_wake)
        if self._barriers:
            self._release_barriers(to_wake)
        return to_wake

    def _fail(self, entry: Entry, error: DeliveryError, to_wake: list[object]) -> None:
        self._unawaited.mark_awaited(entry)
        self._unawaited.first.note(entry, error)
        was_submitted = entry.was_submitted = entry.state is _SUBMITTED
        if entry.state is not _WAITING:
            self._counts.failed += 1
            del self._pending[entry]
        _move(entry, "refused, deadline or close" if was_submitted else "deadline or close")
        entry.outcome = error
        is_awaited = False
        if entry.room_waiter is not None:
            to_wake.append(entry.room_waiter)
            entry.room_waiter = None
            is_awaited = True
        if entry.waiter is not None:
            to_wake.append(entry.waiter)
            is_awaited = True
        if entry.group is not None:
            self._count_down(entry.group, to_wake)
            is_awaited = True
            self._stop_group(entry.group, to_wake)
        if not is_awaited:
            self._unawaited.add(entry)

    def stop_group(self, group: Group) -> list[object]:
        """Stop a group, one of whose records was refused before it was entered.

        Without ``stop_on_error``, the group continues.
        """
        to_wake: list[object] = []
        self._stop_group(group, to_wake)
        self._admit_waiting(to_wake)
        self._release_barriers(to_wake)
        return to_wake

    def _stop_group(self, group: Group, to_wake: list[object]) -> None:
        if group.stop_on_error and not group.stopped:
            group.stopped = True
            for entry in group.members:
                if entry.state in {_QUEUED, _WAITING}:
                    self._fail_one_unsubmitted(entry, not_tried(entry.record), to_wake)

    def _count_down(self, group: Group, to_wake: list[object]) -> None:
        group.remaining -= 1
        if group.remaining == 0 and group.waiter is not None:
            to_wake.append(group.waiter)

    def separate_transactions(self) -> None:
        """Clear :attr:`first_failure`. Records that were accepted before this call are not part of
        the next transaction: their failures do not count for it. If the driver gives such a record
        back, :meth:`hold` fails it instead of queueing it again."""
        self._unawaited.first = FirstFailure(self._accepted)

    @property
    def first_failure(self) -> DeliveryError | None:
        """The first failure since the last call of :meth:`separate_transactions`, without the
        failures of records accepted before that call; None before the first call."""
        return self._unawaited.first.error

    # --- callers that stop waiting -----------------------------------------------------------

    def cancel(self, entry: Entry) -> list[object]:
        """Cancel a delivery because its caller was cancelled.

        A record that waits or is queued is withdrawn. A record that the driver has or had is
        abandoned: it keeps its outcome, or gets one later, unless the driver gives it back (see
        :meth:`hold`). If it has failed already, nobody has seen the failure: it is unawaited.

        Returns:
            The waiters to wake.
        """
        to_wake: list[object] = []
        state = entry.state
        if state is _WITHDRAWN or entry.abandoned:
            return to_wake
        if state is _FAILED and (entry.seq == 0 or self._unawaited.is_recorded(entry)):
            return to_wake  # it was never accepted, or its failure is already recorded
        entry.waiter = entry.room_waiter = entry.group = None
        if state is _WAITING:
            del self._waiting[entry]
            _move(entry, "cancelled")
        elif state is _QUEUED:
            self._unqueue(entry)
            self._withdraw(entry, "cancelled")
        else:
            if state is not _FAILED or entry.was_submitted:
                entry.abandoned = True
                self._counts.abandoned += 1
            if state is _FAILED:
                self._unawaited.add(entry)
        self._admit_waiting(to_wake)
        self._release_barriers(to_wake)
        return to_wake

    def _withdraw(self, entry: Entry, event: str) -> None:
        _move(entry, event)
        self._counts.withdrawn += 1
        self._free_room(entry)
        del self._pending[entry]

    def drop_waiter(self, entry: Entry) -> None:
        """Note that no caller waits for the outcome of an accepted record any more."""
        entry.waiter = None
        if entry.state is _FAILED and not self._unawaited.was_seen(entry):
            self._unawaited.add(entry)

    def mark_seen(self, entry: Entry) -> None:
        """Note that a caller has seen the outcome of an entry."""
        if entry.state is _FAILED:
            self._unawaited.mark_seen(entry)

    def take_undelivered(self) -> tuple[list[DeliveryError], int]:
        """Take the failures that no caller has seen; see :meth:`UnawaitedFailures.take`."""
        return self._unawaited.take()

    # --- time --------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float:
        """The time to call :meth:`expire` next. After ``expire(now)`` it is later than ``now``.

        In ``_pending`` and ``_waiting``, the first entry has the earliest ``deadline``.
        """
        deadline = min(now + self._timeout, self._call_deadlines.earliest())
        for entries in (self._pending, self._waiting):
            for entry in entries:
                deadline = min(deadline, entry.deadline)
                break
        # Once the time to replace the client has passed, is_stuck() is true. Returning a past time
        # would make the caller loop without sleeping while the client closes.
        if self._late and (over := self._late.give_up_at()) > now:
            deadline = min(deadline, over)
        return deadline

    def expire(self, now: float, last_error: BaseException | None = None) -> list[object]:
        """Fail the records that are past their deadline.

        Args:
            now: the time.
            last_error: the reason why no broker was reached, if the driver knows it.
        """
        to_wake: list[object] = []
        had_late = bool(self._late)
        for entry, timeout in self._call_deadlines.take_due(now):
            if timeout is None:
                self._late.add(entry)
            else:
                self._expire_one(entry, last_error, to_wake, timeout)
        for entries in (self._pending, self._waiting):
            late: list[Entry] = []
            for entry in entries:
                if entry.deadline > now:
                    break
                late.append(entry)
            for entry in late:
                self._expire_one(entry, last_error, to_wake)
        self._late.note_progress(now, self._counts.delivered, had_any=had_late)
        self._admit_waiting(to_wake)
        self._release_barriers(to_wake)
        return to_wake

    def _expire_one(
        self,
        entry: Entry,
        last_error: BaseException | None,
        to_wake: list[object],
        timeout: float | None = None,
    ) -> None:
        """Fail a record past its ``delivery_timeout``, or past the ``timeout`` of its call."""
        was_sent = entry.state is _SUBMITTED
        if was_sent:
            reason = "no broker acknowledged the record"
        elif entry.state is _WAITING:
            reason = "there was no room for the record"
        else:
            reason = "the record could not be handed to the client"
        limit = (self._timeout, "delivery_timeout") if timeout is None else (timeout, "timeout")
        error = timed_out(entry.record, reason, limit, last_error, was_sent=was_sent)
        if not was_sent:
            self._fail_one_unsubmitted(entry, error, to_wake)
            return
        self._retained[entry] = None
        if timeout is None:
            self._late.add(entry)
        else:
            self._call_deadlines.add_failed(entry)
        self._fail(entry, error, to_wake)

    def _fail_one_unsubmitted(
        self, entry: Entry, error: DeliveryError, to_wake: list[object]
    ) -> None:
        if entry.state is _FAILED:
            return  # another record of its group failed just now, which stopped the group
        if entry.state is _WAITING:
            del self._waiting[entry]
        else:
            self._unqueue(entry)
            self._free_room(entry)
        self._fail(entry, error, to_wake)

    def _unqueue(self, entry: Entry) -> None:
        if entry in self._queue:
            del self._queue[entry]
        else:
            held = self._held[entry.record.topic]
            del held[entry]
            if not held:
                del self._held[entry.record.topic]

    def is_stuck(self, now: float) -> bool:
        """Whether the client must be given up; see :class:`LateRecords`. Call expire() first."""
        return bool(self._late) and now >= self._late.give_up_at()

    # --- flush -------------------------------------------------------------------------------

    def add_barrier(self, waiter: object, *, include_waiting: bool = False) -> bool:
        """Have ``waiter`` woken when every record accepted before this call has its outcome.

        Args:
            waiter: the waiter.
            include_waiting: also wait for the records that wait for room, and for the records that
                are accepted after this call.

        Returns:
            False if all of them have their outcomes already. Then the waiter is not woken.
        """
        if not self._pending and not (include_waiting and self._waiting):
            return False
        last = math.inf if include_waiting else self._accepted
        self._barriers.add(last, waiter)
        return True

    def drop_barrier(self, waiter: object) -> None:
        """Remove the barrier of a waiter that was cancelled."""
        self._barriers.drop(waiter)

    def _release_barriers(self, to_wake: list[object]) -> None:
        self._barriers.release(self._pending, self._waiting, to_wake)

    # --- the end -----------------------------------------------------------------------------

    def drain(self) -> list[object]:
        """Accept no more records, and fail those that wait for room."""
        to_wake: list[object] = []
        if self.state is _OPEN:
            self._move("close")
            self._fail_waiting("the producer was closed while the record waited for room", to_wake)
            # A waiting record that fails can stop its group. Then the group's queued records fail.
            self._release_barriers(to_wake)
        return to_wake

    def end_generation(self, reason: BaseException) -> list[object]:
        """Fail the records of a client that was given up and is closed. Queued records wait for
        the next client.

        Args:
            reason: why the client was given up.
        """
        for entry in [*self._retained]:
            self._free_room(entry)
        message = f"the client was given up before the record was acknowledged: {reason}"
        entries = [entry for entry in self._pending if entry.state is _SUBMITTED]
        errors = [maybe_written(entry.record, message, reason) for entry in entries]
        return self.settle(entries, errors)

    def fail_unsubmitted(
        self, message: str, reason: BaseException, *, until: int | None = None
    ) -> list[object]:
        """Fail the records that are queued or wait for room.

        Args:
            message: the message of their errors.
            reason: the cause of their errors.
            until: fail only records among the first ``until`` accepted ones, and none that waits
                for room; None for all.
        """
        to_wake: list[object] = []
        unsubmitted = [
            entry
            for entry in self._pending
            if entry.state is _QUEUED and (until is None or entry.seq <= until)
        ]
        for entry in unsubmitted:
            self._fail_one_unsubmitted(entry, not_sent(entry.record, message, reason), to_wake)
        if until is None:
            self._fail_waiting(message, to_wake, reason)
        self._admit_waiting(to_wake)
        self._release_barriers(to_wake)
        return to_wake

    def mark_broken(self, reason: BaseException) -> list[object]:
        """Fail every record and accept no more, because the driver can't be used any more."""
        if self.state not in {_OPEN, ProducerState.DRAINING}:
            return []
        self._move("driver lost")
        self.broken_by = reason
        return self._fail_all(f"the producer broke: {reason}", reason)

    def close(self) -> list[object]:
        """Close the ledger: fail every record that has no outcome."""
        if self.state is ProducerState.CLOSED:
            return []
        to_wake = self._fail_all("the producer was closed before the record was acknowledged", None)
        self._move(_CLOSING_EVENT[self.state])
        return to_wake

    def _move(self, event: str) -> None:
        """Change the state of the producer as the table says."""
        self.state = PRODUCER_TRANSITIONS[self.state][event]

    def _fail_waiting(
        self, message: str, to_wake: list[object], cause: BaseException | None = None
    ) -> None:
        for entry in list(self._waiting):
            self._fail_one_unsubmitted(entry, not_sent(entry.record, message, cause), to_wake)

    def _fail_all(self, message: str, cause: BaseException | None) -> list[object]:
        to_wake: list[object] = []
        self._fail_waiting(message, to_wake)
        for entry in list(self._pending):
            if entry.state is _SUBMITTED:
                self._retained[entry] = None
                self._fail(entry, maybe_written(entry.record, message, cause), to_wake)
            else:
                error = not_sent(entry.record, f"{message}; it was not sent", cause)
                self._fail_one_unsubmitted(entry, error, to_wake)
        self._release_barriers(to_wake)
        return to_wake

    # --- figures -----------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether every accepted record has its outcome."""
        return not self._pending

    @property
    def pending(self) -> int:
        """How many accepted records have no outcome yet."""
        return len(self._pending)

    @property
    def max_bytes(self) -> int:
        """The room for the bytes of all accepted records, ``max_buffered_bytes``."""
        return self._max_bytes

    @property
    def accepted(self) -> int:
        """How many records were accepted so far."""
        return self._accepted

    @property
    def delivered(self) -> int:
        """How many records were delivered so far."""
        return self._counts.delivered

    @property
    def queued(self) -> int:
        """How many records are queued and not held."""
        return len(self._queue)

    @property
    def in_flight_bytes(self) -> int:
        """The bytes of all records that take up room."""
        return self._bytes

    @property
    def must_hurry(self) -> bool:
        """Whether the client must not linger: a flush or a full flow waits for outcomes, the room
        for records is full, a caller waits for room or found none, or the producer is not open."""
        return (
            self._records >= self._max_records
            or self._refused_for_room
            or self.hurry_requests > 0
            or bool(self._waiting)
            or bool(self._barriers)
            or self.state is not _OPEN
        )

    @property
    def in_flight(self) -> int:
        """How many records take up room."""
        return self._records

    def statistics(self, **others: Any) -> Statistics:
        """Take a snapshot of the figures. The arguments are figures that the ledger does not know;
        see :class:`Statistics`."""
        return Statistics(
            state=cast("Any", self.state.value),
            waiting=len(self._waiting),
            queued=len(self._queue) + sum(map(len, self._held.values())),
            in_flight=self._records,
            in_flight_bytes=self._bytes,
            accepted=self._accepted,
            delivered=self._counts.delivered,
            failed=self._counts.failed,
            withdrawn=self._counts.withdrawn,
            abandoned=self._counts.abandoned,
            **others,
        )
