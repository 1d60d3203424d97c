"""The state machine of every delivery, and of the producer: pure and synchronous.

It has no event loop, no clock and no thread. Time is an argument, and the waiters to wake are
return values. Every decision about an outcome is made in this file, so that it can be tested
without any I/O.

A delivery that waits for room or in the queue can still be withdrawn. Once it is SUBMITTED the
driver has it, and only the driver's completion or a deadline ends it. A record holds its room for
as long as the driver holds the record, also past the deadline. Otherwise the memory of a producer
whose cluster is down would grow by ``max_buffered_bytes`` with each ``delivery_timeout``.

Each change of a state is read from a table of transitions in ``_delivery.py``: once when this
module is imported where it is made for each record, and as it happens elsewhere.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from anyio import WouldBlock

from ._delivery import (
    DELIVERY_TRANSITIONS,
    PRODUCER_TRANSITIONS,
    DeliveryState,
    Entry,
    Group,
    ProducerState,
    Statistics,
)
from ._exceptions import (
    DeliveryError,
    Persistence,
    ProducerBroken,
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
    timed_out,
)
from ._late import LateRecords
from ._records import ProducerRecord, RecordMetadata
from ._unawaited import KEPT_FAILURES, FirstFailure, UnawaitedFailures

__all__ = ["Ledger"]

# Enum members are looked up through a descriptor; these are read several times for each record.
_WAITING: Final = DeliveryState.WAITING
_QUEUED: Final = DeliveryState.QUEUED
_SUBMITTED: Final = DeliveryState.SUBMITTED
_FAILED: Final = DeliveryState.FAILED
_WITHDRAWN: Final = DeliveryState.WITHDRAWN
_OPEN: Final = ProducerState.OPEN

# The transitions of every record. A look-up in the tables hashes a member of an enum in Python: two
# for each record would cost a tenth of the ledger's time.
_ADMITTED: Final = DELIVERY_TRANSITIONS[_WAITING]["room"]
_HANDED_OVER: Final = DELIVERY_TRANSITIONS[_QUEUED]["handed over"]
_ACKNOWLEDGED: Final = DELIVERY_TRANSITIONS[_SUBMITTED]["acknowledged"]


#: What happens to a producer in each state when it is closed.
_CLOSING_EVENT: Final = {
    _OPEN: "start failed",
    ProducerState.DRAINING: "drained or out of time",
    ProducerState.BROKEN: "close",
}


def _move(entry: Entry, event: str) -> None:
    """Something happened to a delivery: move it along the table."""
    entry.state = DELIVERY_TRANSITIONS[entry.state][event]


@dataclass(slots=True)
class _Counts:
    """How many accepted records came to which end."""

    delivered: int = 0
    failed: int = 0
    withdrawn: int = 0
    abandoned: int = 0


class Ledger:
    """Tracks every delivery of one producer. Methods that return a list return the waiters to wake.

    Args:
        max_in_flight: the room for records.
        max_buffered_bytes: the room for the bytes of their keys, values and headers.
        delivery_timeout: seconds until a delivery fails.
        kept_failures: how many failures that no caller has seen to keep whole.
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
        # Insertion-ordered sets: first in first out, and any can be taken out in O(1).
        self._waiting: dict[Entry, None] = {}
        self._queue: dict[Entry, None] = {}
        self._alive: dict[Entry, None] = {}
        self._held: dict[str, dict[Entry, None]] = {}
        self._barriers: list[tuple[float, object]] = []
        # Entries that failed while the driver had them, and that it still has.
        self._lingering: dict[Entry, None] = {}
        # Those of them that are past their deadline.
        self._late = LateRecords(max_in_flight, max_buffered_bytes)
        # Whether a record found no room, and did not wait for it, since the last outcomes.
        self._turned_away = False
        #: How many callers wait for records that the client has, and send no more until then.
        self.hurrying = 0
        self._unawaited = UnawaitedFailures(kept_failures)
        self._first_failure = FirstFailure()
        self._accepted = 0
        self._counts = _Counts()

    # --- accepting records -------------------------------------------------------------------

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        size: int,
        now: float,
        wait: bool = True,  # noqa: FBT001, FBT002  # a keyword costs time for each record
    ) -> Entry:
        """Enter a record: QUEUED if there is room, otherwise last in line for room.

        Raises:
            anyio.WouldBlock: there is no room, and ``wait`` is False.
            ProducerClosed: the producer is closing or closed.
            ProducerBroken: it is broken.
            RecordRejected: the record is larger than all room.
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
            self._alive[entry] = None
            return entry
        if size > self._max_bytes:
            raise delivery_error(
                RecordRejected,
                f"the record has {size} bytes, max_buffered_bytes is {self._max_bytes}",
                record,
                Persistence.NOT_PERSISTED,
            )
        if not wait:
            self._turned_away = True
            raise WouldBlock("there is no room for the record: max_in_flight or max_buffered_bytes")
        entry = Entry(record, size, now + self._timeout, 0)
        entry.state = _WAITING
        self._waiting[entry] = None
        return entry

    def enter_several(
        self, records: Iterable[tuple[ProducerRecord[Any, Any], int]], now: float, group: Group
    ) -> list[Entry]:
        """Enter records of one group, from the first one on, as many as there is room for.

        They do not overtake a record that waits for room. The iterable is read up to the first
        record that there is no room for.

        Args:
            records: the records with their sizes.
            now: the time.
            group: their group.
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
        line = dict.fromkeys(entries)
        self._queue.update(line)
        self._alive.update(line)
        return entries

    def refusal(self) -> SendProducerError:
        """The error of a record that is not accepted, because of the producer's state."""
        if self.state is ProducerState.BROKEN:
            error: SendProducerError = ProducerBroken(
                f"the producer can't send any more: {self.broken_by}"
            )
            error.__cause__ = self.broken_by
            return error
        return ProducerClosed("the producer is closed: send within its `async with` block")

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
        self._alive[entry] = None

    def _release(self, entry: Entry) -> None:
        self._records -= 1
        self._bytes -= entry.size
        self._lingering.pop(entry, None)
        self._late.discard(entry)

    def _admit_waiting(self, woken: list[object]) -> None:
        waiting = self._waiting
        while waiting:
            entry = next(iter(waiting))
            if not self._fits(entry.size):
                return
            del waiting[entry]
            self._admit(entry)
            if entry.room_waiter is not None:
                woken.append(entry.room_waiter)
                entry.room_waiter = None

    # --- to the driver and back --------------------------------------------------------------

    def take(self, limit: int | None = None) -> list[Entry]:
        """Take queued records for the driver, in order. Records of a held topic stay behind.

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
        """The driver gave these back: the metadata of their topics is missing. They, and later
        records of the same topics, wait for :meth:`release_held`.

        Returns:
            The waiters to wake: records whose callers are gone free their room.
        """
        woken: list[object] = []
        for entry in entries:
            if entry in self._lingering:
                self._release(entry)  # its deadline came first
            elif entry.state is not _SUBMITTED:
                pass  # its client was given up
            elif entry.abandoned:
                self._counts.abandoned -= 1
                self._withdraw(entry, "topic not known, caller gone")
            elif entry.group is not None and entry.group.stopped:
                _move(entry, "topic not known yet")
                self._release(entry)
                self._fail(entry, not_tried(entry.record), woken)
            else:
                _move(entry, "topic not known yet")
                self._held.setdefault(entry.record.topic, {})[entry] = None
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def release_held(self) -> bool:
        """Put the held records back in front of the queue. Returns: whether there were any."""
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
        """Replace estimated sizes by the sizes of the serialized records."""
        for entry, size in sizes:
            if entry.state is _SUBMITTED or entry in self._lingering:
                self._bytes += size - entry.size
                self._late.resize(entry, size)
                entry.size = size
        woken: list[object] = []
        self._admit_waiting(woken)
        return woken

    def settle(
        self, entries: Sequence[Entry], outcomes: Sequence[RecordMetadata | DeliveryError]
    ) -> list[object]:
        """The driver reports the outcomes of these, one for each.

        Returns:
            The waiters to wake, which wait for an outcome, for room or for a flush.

        Raises:
            ValueError: the numbers of entries and outcomes differ. Nothing has changed.
        """
        if len(entries) != len(outcomes):
            raise ValueError(f"{len(outcomes)} outcomes were given for {len(entries)} records")
        woken: list[object] = []
        alive = self._alive
        delivered = freed = 0
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.state is not _SUBMITTED:
                if entry in self._lingering:
                    self._release(entry)
                continue
            if type(outcome) is not RecordMetadata:
                if not isinstance(outcome, RecordMetadata):
                    error: object = outcome  # a driver may report anything
                    if not isinstance(error, DeliveryError):  # pyright: ignore[reportUnnecessaryIsInstance]
                        error = no_outcome(entry.record, error)
                    self._release(entry)
                    self._fail(entry, error, woken)
                    continue
                outcome = RecordMetadata(*outcome)  # noqa: PLW2901  # a subclass of a driver's own
            # _release() and _count_down(), written out: this runs for each record.
            freed += entry.size
            entry.state = _ACKNOWLEDGED
            delivered += 1
            entry.outcome = outcome
            del alive[entry]
            if (waiter := entry.waiter) is not None:
                woken.append(waiter)
            elif (group := entry.group) is not None:
                group.remaining = remaining = group.remaining - 1
                if remaining == 0 and group.waiter is not None:
                    woken.append(group.waiter)
        self._counts.delivered += delivered
        self._records -= delivered
        self._bytes -= freed
        self._turned_away = False
        if self._waiting:
            self._admit_waiting(woken)
        if self._barriers:
            self._pass_barriers(woken)
        return woken

    def _fail(self, entry: Entry, error: DeliveryError, woken: list[object]) -> None:
        self._unawaited.expect(entry)
        self._first_failure.note(entry, error)
        was_submitted = entry.was_submitted = entry.state is _SUBMITTED
        if entry.state is not _WAITING:
            self._counts.failed += 1
            del self._alive[entry]
        _move(entry, "refused, deadline or close" if was_submitted else "deadline or close")
        entry.outcome = error
        is_awaited = False
        if entry.room_waiter is not None:
            woken.append(entry.room_waiter)
            entry.room_waiter = None
            is_awaited = True
        if entry.waiter is not None:
            woken.append(entry.waiter)
            is_awaited = True
        if entry.group is not None:
            self._count_down(entry.group, woken)
            is_awaited = True
            self._stop(entry.group, woken)
        if not is_awaited:
            self._unawaited.add(entry)

    def stop(self, group: Group) -> list[object]:
        """A record of a group was refused before it was entered."""
        woken: list[object] = []
        self._stop(group, woken)
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def _stop(self, group: Group, woken: list[object]) -> None:
        if group.stops and not group.stopped:
            group.stopped = True
            for entry in group.members:
                if entry.state in {_QUEUED, _WAITING}:
                    self._end_unsubmitted(entry, not_tried(entry.record), woken)

    def _count_down(self, group: Group, woken: list[object]) -> None:
        group.remaining -= 1
        if group.remaining == 0 and group.waiter is not None:
            woken.append(group.waiter)

    def look_for_failures(self) -> None:
        """Forget :attr:`first_failure`, and ignore the failures of records accepted before."""
        self._first_failure = FirstFailure(self._accepted)

    @property
    def first_failure(self) -> DeliveryError | None:
        """The first failure of a record that was accepted since :meth:`look_for_failures`."""
        return self._first_failure.error

    # --- callers that stop waiting -----------------------------------------------------------

    def cancel(self, entry: Entry) -> list[object]:
        """The caller of a ``send`` was cancelled.

        A record that the driver does not have is withdrawn for good. One that the driver has goes
        on, abandoned. A failure that is there already counts as unawaited.

        Returns:
            The waiters to wake, because room became free.
        """
        woken: list[object] = []
        state = entry.state
        if state is _WITHDRAWN or entry.abandoned:
            return woken
        if state is _FAILED and (entry.seq == 0 or self._unawaited.is_settled(entry)):
            return woken  # a record that was never accepted is not reported
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
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def _withdraw(self, entry: Entry, event: str) -> None:
        _move(entry, event)
        self._counts.withdrawn += 1
        self._release(entry)
        del self._alive[entry]

    def unwatch(self, entry: Entry) -> None:
        """No caller waits for the outcome of this accepted record any more; the record goes on."""
        entry.waiter = None
        if entry.state is _FAILED and not self._unawaited.was_seen(entry):
            self._unawaited.add(entry)

    def saw(self, entry: Entry) -> None:
        """A caller has seen the outcome of this entry, perhaps after nobody had waited for it."""
        if entry.state is _FAILED:
            self._unawaited.mark_seen(entry)

    def undelivered(self) -> tuple[list[DeliveryError], int]:
        """The failures that no caller has seen since the last call, and how many there were."""
        return self._unawaited.take()

    # --- time --------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float:
        """When to call :meth:`expire` next. After ``expire(now)`` it is later than ``now``.

        All deliveries have the same timeout, so their deadlines are in the order of entering.
        """
        deadline = now + self._timeout
        for line in (self._alive, self._waiting):
            for entry in line:
                deadline = min(deadline, entry.deadline)
                break
        # When that time is over, stuck() has said so. More wake-ups for it would keep a core busy
        # while the client closes.
        if self._late and (over := self._late.give_up_at()) > now:
            deadline = min(deadline, over)
        return deadline

    def expire(self, now: float, last_error: Exception | None = None) -> list[object]:
        """Fail the records that are past their deadline.

        Args:
            now: the time.
            last_error: why no broker was reached, if the driver knows.
        """
        woken: list[object] = []
        had_late = bool(self._late)
        for line in (self._alive, self._waiting):
            late: list[Entry] = []
            for entry in line:
                if entry.deadline > now:
                    break
                late.append(entry)
            for entry in late:
                self._expire_one(entry, last_error, woken)
        self._late.note_progress(now, self._counts.delivered, had_any=had_late)
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def _expire_one(self, entry: Entry, last_error: Exception | None, woken: list[object]) -> None:
        record, seconds = entry.record, self._timeout
        if entry.state is _SUBMITTED:
            self._lingering[entry] = None
            self._late.add(entry)
            reason = "no broker acknowledged the record"
            self._fail(entry, timed_out(record, reason, seconds, last_error, was_sent=True), woken)
            return
        reason = (
            "there was no room for the record"
            if entry.state is _WAITING
            else "the record could not be handed to the client"
        )
        error = timed_out(record, reason, seconds, last_error, was_sent=False)
        self._end_unsubmitted(entry, error, woken)

    def _end_unsubmitted(self, entry: Entry, error: DeliveryError, woken: list[object]) -> None:
        if entry.state is _FAILED:
            return  # its group stopped, because another record of the group failed just now
        if entry.state is _WAITING:
            del self._waiting[entry]
        else:
            self._unqueue(entry)
            self._release(entry)
        self._fail(entry, error, woken)

    def _unqueue(self, entry: Entry) -> None:
        if entry in self._queue:
            del self._queue[entry]
        else:
            held = self._held[entry.record.topic]
            del held[entry]
            if not held:
                del self._held[entry.record.topic]

    def stuck(self, now: float) -> bool:
        """Whether the producer must replace the client; see :class:`LateRecords`. Call it after
        :meth:`expire`."""
        return bool(self._late) and now >= self._late.give_up_at()

    # --- flush -------------------------------------------------------------------------------

    def barrier(self, waiter: object, *, counts_waiting: bool = False) -> bool:
        """Wake ``waiter`` when every record that is accepted by now has its outcome.

        Args:
            waiter: the waiter.
            counts_waiting: also wait for the records that wait for room, and for records that are
                accepted meanwhile.

        Returns:
            False if that is so already; then the waiter is not woken.
        """
        if not self._alive and not (counts_waiting and self._waiting):
            return False
        last = math.inf if counts_waiting else self._accepted
        self._barriers.append((last, waiter))
        # A waiter for everything must not hold up the others.
        self._barriers.sort(key=operator.itemgetter(0))
        return True

    def drop_barrier(self, waiter: object) -> None:
        """The waiter of a barrier was cancelled."""
        self._barriers = [barrier for barrier in self._barriers if barrier[1] is not waiter]

    def _pass_barriers(self, woken: list[object]) -> None:
        while self._barriers:
            last = self._barriers[0][0]
            for first in self._alive:
                if first.seq <= last:
                    return
                break
            if last == math.inf and self._waiting:
                return
            woken.append(self._barriers.pop(0)[1])

    # --- the end -----------------------------------------------------------------------------

    def drain(self) -> list[object]:
        """Accept no more records. Accepted ones go on, and those that wait for room fail."""
        woken: list[object] = []
        if self.state is _OPEN:
            self._move("close")
            self._fail_waiting("the producer was closed while the record waited for room", woken)
            # A waiting record that fails can stop its group, whose queued records then fail, too.
            self._pass_barriers(woken)
        return woken

    def end_generation(self, reason: BaseException) -> list[object]:
        """The client was closed by force. Records that it had and did not complete fail. Queued
        records stay queued for the next client.
        """
        for entry in [*self._lingering]:
            self._release(entry)
        message = f"the client was given up before the record was acknowledged: {reason}"
        entries = [entry for entry in self._alive if entry.state is _SUBMITTED]
        errors = [maybe_written(entry.record, message, reason) for entry in entries]
        return self.settle(entries, errors)

    def fail_unsubmitted(
        self, message: str, reason: BaseException, *, until: int | None = None
    ) -> list[object]:
        """Fail the records that are queued or wait for room.

        Args:
            message: the message of their errors.
            reason: the cause of their errors.
            until: fail only the first ``until`` records that were :attr:`accepted`, and none that
                waits for room; None for all.
        """
        woken: list[object] = []
        unsubmitted = [
            entry
            for entry in self._alive
            if entry.state is _QUEUED and (until is None or entry.seq <= until)
        ]
        for entry in unsubmitted:
            self._end_unsubmitted(entry, not_sent(entry.record, message, reason), woken)
        if until is None:
            self._fail_waiting(message, woken, reason)
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def break_(self, reason: BaseException) -> list[object]:
        """The driver is lost: every record gets its outcome now, and no more are accepted."""
        if self.state not in {_OPEN, ProducerState.DRAINING}:
            return []
        self._move("driver lost")
        self.broken_by = reason
        return self._fail_all(f"the producer broke: {reason}", reason)

    def close(self) -> list[object]:
        """Close: every record that has no outcome yet fails."""
        if self.state is ProducerState.CLOSED:
            return []
        woken = self._fail_all("the producer was closed before the record was acknowledged", None)
        self._move(_CLOSING_EVENT[self.state])
        return woken

    def _move(self, event: str) -> None:
        """Something happened to the producer: move it along the table."""
        self.state = PRODUCER_TRANSITIONS[self.state][event]

    def _fail_waiting(
        self, message: str, woken: list[object], cause: BaseException | None = None
    ) -> None:
        for entry in list(self._waiting):
            self._end_unsubmitted(entry, not_sent(entry.record, message, cause), woken)

    def _fail_all(self, message: str, cause: BaseException | None) -> list[object]:
        woken: list[object] = []
        self._fail_waiting(message, woken)
        for entry in list(self._alive):
            if entry.state is _SUBMITTED:
                self._lingering[entry] = None
                self._fail(entry, maybe_written(entry.record, message, cause), woken)
            else:
                error = not_sent(entry.record, f"{message}; it was not sent", cause)
                self._end_unsubmitted(entry, error, woken)
        self._pass_barriers(woken)
        return woken

    # --- figures -----------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether every accepted record has its outcome."""
        return not self._alive

    @property
    def pending(self) -> int:
        """How many accepted records have no outcome yet."""
        return len(self._alive)

    @property
    def max_bytes(self) -> int:
        """The room for the bytes of all accepted records."""
        return self._max_bytes

    @property
    def accepted(self) -> int:
        """How many records were accepted so far."""
        return self._accepted

    @property
    def queued(self) -> int:
        """How many records are queued and not held."""
        return len(self._queue)

    @property
    def in_flight_bytes(self) -> int:
        """The bytes of the records that are not settled, or that the driver still has."""
        return self._bytes

    @property
    def is_in_a_hurry(self) -> bool:
        """Whether the client must not hold records back to form larger batches, because a caller
        waits for all of them, or there is no room for more records to join them."""
        return (
            self._records >= self._max_records
            or self._turned_away
            or self.hurrying > 0
            or bool(self._waiting)
            or bool(self._barriers)
            or self.state is not _OPEN
        )

    @property
    def is_alone(self) -> bool:
        """Whether the only accepted record is queued, and the driver has none."""
        return self._records == 1 and len(self._queue) == 1

    def statistics(
        self, *, generations: int, hand_overs: int, wake_ups: int, client: Mapping[str, Any]
    ) -> Statistics:
        """Take a snapshot of the figures. The ledger does not know those that are arguments."""
        return Statistics(
            state=self.state.value,
            waiting=len(self._waiting),
            queued=len(self._queue) + sum(map(len, self._held.values())),
            in_flight=self._records,
            in_flight_bytes=self._bytes,
            accepted=self._accepted,
            delivered=self._counts.delivered,
            failed=self._counts.failed,
            withdrawn=self._counts.withdrawn,
            abandoned=self._counts.abandoned,
            generations=generations,
            hand_overs=hand_overs,
            wake_ups=wake_ups,
            client=client,
        )
