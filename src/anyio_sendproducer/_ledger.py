"""The life of every delivery, and of the producer, as two state machines: pure and synchronous.

No event loop, no clock, no thread: time comes in as an argument, and whoever is to be woken goes
out as a return value. Everything that decides over an outcome stands in this file, so that it can
be tested without any I/O.

A delivery that waits for room or in the queue can still be withdrawn; once it is SUBMITTED it is
with the driver and only the driver's completion, or a deadline, ends it. Room is held for as long
as the driver holds the record, also past the deadline: otherwise a dead cluster would let memory
grow by ``max_buffered_bytes`` with each ``delivery_timeout``.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from anyio import WouldBlock

from ._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    RecordRejected,
    SendProducerError,
)
from ._records import ProducerRecord, RecordMetadata

if TYPE_CHECKING:
    from .telemetry import Given

__all__ = [
    "DELIVERY_TRANSITIONS",
    "PRODUCER_TRANSITIONS",
    "DeliveryState",
    "Entry",
    "Group",
    "Ledger",
    "ProducerState",
    "Statistics",
    "not_sent",
    "not_tried",
]


class DeliveryState(enum.Enum):
    """Where a delivery stands."""

    WAITING = "waiting"
    """It waits for room; it is not accepted yet."""
    QUEUED = "queued"
    """It is accepted and waits for the driver, or for its topic's metadata."""
    SUBMITTED = "submitted"
    """The driver has it."""
    DELIVERED = "delivered"
    """A broker acknowledged it."""
    FAILED = "failed"
    """It has its error."""
    WITHDRAWN = "withdrawn"
    """Its caller was cancelled before the driver had it; it is never written."""


class ProducerState(enum.Enum):
    """Where the producer stands."""

    OPEN = "open"
    """It takes records."""
    DRAINING = "draining"
    """It takes no more, and delivers what it has accepted."""
    BROKEN = "broken"
    """It can never send again, and waits to be closed."""
    CLOSED = "closed"
    """Everything has its outcome; nothing is left."""


#: What can happen to a delivery: state -> event -> the next state. The ledger moves along these
#: alone, and the documentation's picture is drawn from them.
DELIVERY_TRANSITIONS: Final[Mapping[DeliveryState, Mapping[str, DeliveryState]]] = MappingProxyType(
    {
        DeliveryState.WAITING: {
            "room": DeliveryState.QUEUED,
            "cancelled": DeliveryState.WITHDRAWN,
            "deadline or close": DeliveryState.FAILED,
        },
        DeliveryState.QUEUED: {
            "handed over": DeliveryState.SUBMITTED,
            "cancelled": DeliveryState.WITHDRAWN,
            "deadline or close": DeliveryState.FAILED,
        },
        DeliveryState.SUBMITTED: {
            "acknowledged": DeliveryState.DELIVERED,
            "refused, deadline or close": DeliveryState.FAILED,
            "topic not known yet": DeliveryState.QUEUED,
            "topic not known, caller gone": DeliveryState.WITHDRAWN,
        },
        DeliveryState.DELIVERED: {},
        DeliveryState.FAILED: {},
        DeliveryState.WITHDRAWN: {},
    }
)

#: What can happen to the producer: state -> event -> the next state.
PRODUCER_TRANSITIONS: Final[Mapping[ProducerState, Mapping[str, ProducerState]]] = MappingProxyType(
    {
        ProducerState.OPEN: {
            "close": ProducerState.DRAINING,
            "driver lost": ProducerState.BROKEN,
            "start failed": ProducerState.CLOSED,
        },
        ProducerState.DRAINING: {
            "drained or out of time": ProducerState.CLOSED,
            "driver lost": ProducerState.BROKEN,
        },
        ProducerState.BROKEN: {"close": ProducerState.CLOSED},
        ProducerState.CLOSED: {},
    }
)

# Enum members are looked up through a descriptor; these are read several times a record.
_WAITING = DeliveryState.WAITING
_QUEUED = DeliveryState.QUEUED
_SUBMITTED = DeliveryState.SUBMITTED
_DELIVERED = DeliveryState.DELIVERED
_FAILED = DeliveryState.FAILED
_WITHDRAWN = DeliveryState.WITHDRAWN
_OPEN = ProducerState.OPEN

#: Seconds, at most, that a client which holds records past their deadline may go on without
#: delivering any record at all.
PATIENCE: Final = 10.0

#: Seconds that a client has to let go of a record after its deadline. A healthy client lets go of
#: what it could not send a second or two late.
LATENESS: Final = 5.0

#: Of an entry: no report tells of it that it was missed, for somebody was told of it.
_SEEN: Final = -1

#: How many failures nobody awaited are kept whole until the end of the scope; more are counted.
KEPT_FAILURES: Final = 1000


class Group:
    """Several deliveries whose caller waits once, for all of them. Where it ``stops``, the first
    that fails ends those of its ``members`` that the driver does not have."""

    __slots__ = ("members", "remaining", "stopped", "stops", "waiter")

    def __init__(self, remaining: int, waiter: object, *, stops: bool = False) -> None:
        self.remaining = remaining
        self.waiter: object | None = waiter
        self.stops = stops
        self.stopped = False
        self.members: list[Entry] = []


class Entry:
    """One delivery. The ledger alone changes it, but for the waiters and the group, which whoever
    waits sets: ``room_waiter`` is woken when the record is accepted or can't be, ``waiter`` when it
    has its outcome, and ``group`` counts the outcomes of several."""

    __slots__ = (
        "deadline",
        "given",
        "group",
        "missed",
        "outcome",
        "record",
        "room_waiter",
        "seq",
        "size",
        "state",
        "waiter",
        "was_submitted",
    )

    # There is an entry for each record: these two are set when it fails,
    missed: int
    was_submitted: bool
    # and this one where somebody observes: then the record may have headers that its caller's has
    # not.
    given: Given

    def __init__(
        self, record: ProducerRecord[Any, Any], size: int, deadline: float, seq: int
    ) -> None:
        self.record = record
        self.size = size
        self.deadline = deadline
        self.seq = seq
        self.state = _QUEUED
        self.outcome: RecordMetadata | DeliveryError | None = None
        self.room_waiter: object | None = None
        self.waiter: object | None = None
        self.group: Group | None = None

    @property
    def callers_record(self) -> ProducerRecord[Any, Any]:
        """The record as its caller knows it."""
        given: Given | None = getattr(self, "given", None)
        return self.record if given is None else given.record


#: The group of those whose caller was cancelled when the driver had them.
_ABANDONED: Final = Group(0, None)


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one producer at one moment. Times and rates are for whoever takes two."""

    state: str
    """``"open"``, ``"draining"``, ``"broken"`` or ``"closed"``."""
    waiting: int
    """Records whose ``send`` or ``enqueue`` waits for room; not accepted yet."""
    queued: int
    """Accepted records that the client has not been given yet."""
    in_flight: int
    """Accepted records that hold room: queued, or with the client."""
    in_flight_bytes: int
    """The bytes of their keys, values and headers."""
    accepted: int
    """Records accepted so far; each of them ends up in one of the next four, or is on its way."""
    delivered: int
    """Records acknowledged."""
    failed: int
    """Accepted records whose outcome was an error."""
    withdrawn: int
    """Accepted records that were cancelled before the client was given them, never written."""
    abandoned: int
    """Records whose caller was cancelled after the client was given them. They went on, and are
    counted under ``delivered`` or ``failed`` as well."""
    generations: int
    """How many clients there have been: 1, and 1 more each time a broken one was replaced."""
    hand_overs: int
    """Batches of records that were handed to the client."""
    wake_ups: int
    """Times that outcomes crossed back: each brings all that there were. None, where the event loop
    asks for them itself."""
    client: Mapping[str, Any]
    """What the client counts by itself, under its own names; empty where it does not. With the
    driver ``"confluent"`` these are librdkafka's statistics, as new as ``statistics.interval.ms``
    makes them; with ``"kafka-python"`` its metrics, where ``metrics_enabled`` is set."""


def not_sent(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> DeliveryError:
    """The outcome of a record that the client was never given."""
    error = DeliveryError(message, record=record, persistence=Persistence.NOT_PERSISTED)
    error.__cause__ = cause
    return error


def _no_outcome(record: ProducerRecord[Any, Any], given: object) -> DeliveryError:
    """The outcome of a record of which a driver gave none."""
    error = DeliveryError(
        f"the driver gave {type(given).__name__} as the outcome of the record",
        record=record,
        persistence=Persistence.POSSIBLY_PERSISTED,
    )
    error.__cause__ = given if isinstance(given, BaseException) else None
    return error


def not_tried(record: ProducerRecord[Any, Any]) -> DeliveryError:
    """The outcome of a record of a group that stopped before its turn came."""
    return not_sent(
        record, "the record was not sent: another one of its call failed before (stop_on_error)"
    )


class Ledger:
    """The book of all deliveries of one producer."""

    def __init__(
        self, *, max_in_flight: int, max_buffered_bytes: int, delivery_timeout: float
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
        # What failed while the driver had it, and still has; of that, what is past its deadline.
        self._lingering: dict[Entry, None] = {}
        # What the driver still holds past its deadline, since when it has delivered nothing at
        # all, and how many records it had delivered by then.
        self._late: dict[Entry, None] = {}
        self._late_since = 0.0
        self._delivered_when_late = -1
        self._late_bytes = 0
        # Whether a record found no room, and was not left to wait, since outcomes came last.
        self._turned_away = False
        #: How many callers wait for records on the client and give it no more until then.
        self.hurrying = 0
        self._unseen: dict[Entry, None] = {}
        self._unseen_more = 0
        #: The first failure of what was taken in since :meth:`look_for_failures`.
        self.first_failure: DeliveryError | None = None
        self._looked_before = 0
        #: The number of the next report of what was missed; an entry has that of its own, or 0.
        self._report = 1
        self._accepted = 0
        self._delivered = 0
        self._failed = 0
        self._withdrawn = 0
        self._abandoned = 0

    # --- taking records in -------------------------------------------------------------------

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        size: int,
        now: float,
        wait: bool = True,  # noqa: FBT001, FBT002  # a keyword costs time for each record
    ) -> Entry:
        """Take a record in: QUEUED where there is room, otherwise last in line for room.

        Raises:
            anyio.WouldBlock: there is no room, and the caller does not ``wait``.
            ProducerClosed: the producer is closing or closed.
            ProducerBroken: it is broken.
            RecordRejected: the record alone is larger than all room.
        """
        if self.state is not _OPEN:
            raise self.refusal()
        # _fits() and _admit(), written out: this is the way of every record.
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
            raise RecordRejected(
                f"the record has {size} bytes, max_buffered_bytes is {self._max_bytes}",
                record=record,
                persistence=Persistence.NOT_PERSISTED,
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
        """Take records of one group in, with their sizes: as many from the first on as there is
        room for at once. Whoever waits for room is not overtaken. No more of the records are
        looked at than the first one that there is no room for."""
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
        """Why no record is taken now."""
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
        entry.state = _QUEUED
        self._queue[entry] = None
        self._alive[entry] = None

    def _release(self, entry: Entry) -> None:
        self._records -= 1
        self._bytes -= entry.size
        self._lingering.pop(entry, None)
        if entry in self._late:
            del self._late[entry]
            self._late_bytes -= entry.size

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

    def take(self, most: int | None = None) -> list[Entry]:
        """Hand over what is queued, in order; what its topic holds up stays behind.

        Args:
            most: no more than so many; None for all.
        """
        queue = self._queue
        taken = [*itertools.islice(queue, most)]
        if len(taken) == len(queue):
            queue.clear()
        else:
            for entry in taken:
                del queue[entry]
        if not self._held:
            for entry in taken:
                entry.state = _SUBMITTED
            return taken
        batch: list[Entry] = []
        for entry in taken:
            held = self._held.get(entry.record.topic)
            if held is None:
                entry.state = _SUBMITTED
                batch.append(entry)
            else:
                held[entry] = None
        return batch

    def hold(self, entries: Iterable[Entry]) -> list[object]:
        """The driver did not take these: their topics' metadata is missing. They, and what comes
        after them for the same topics, wait for :meth:`release_held`.

        Returns:
            Who is to be woken: room was freed by those that nobody waits for any more.
        """
        woken: list[object] = []
        for entry in entries:
            if entry in self._lingering:
                self._release(entry)  # its deadline came first
            elif entry.state is not _SUBMITTED:
                pass  # its client was given up
            elif entry.group is _ABANDONED:
                self._abandoned -= 1
                self._withdraw(entry)
            elif entry.group is not None and entry.group.stopped:
                entry.state = _QUEUED  # so the client has not had it
                self._release(entry)
                self._fail(entry, not_tried(entry.record), woken)
            else:
                entry.state = _QUEUED
                self._held.setdefault(entry.record.topic, {})[entry] = None
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def release_held(self) -> bool:
        """Put all that is held up back in front of the queue; True where there was any."""
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
        """Correct estimated sizes by those of the serialized records."""
        for entry, size in sizes:
            if entry.state is _SUBMITTED or entry in self._lingering:
                self._bytes += size - entry.size
                if entry in self._late:
                    self._late_bytes += size - entry.size
                entry.size = size
        woken: list[object] = []
        self._admit_waiting(woken)
        return woken

    def settle(
        self, entries: Sequence[Entry], outcomes: Sequence[RecordMetadata | DeliveryError]
    ) -> list[object]:
        """The driver is done with these, one outcome for each.

        Returns:
            Who is to be woken: those who await an outcome, room, or a flush.

        Raises:
            ValueError: there are more of the one than of the other. Nothing has changed.
        """
        if len(entries) != len(outcomes):
            raise ValueError(f"{len(outcomes)} outcomes were given for {len(entries)} records")
        woken: list[object] = []
        alive = self._alive
        delivered = freed = 0
        for entry, outcome in zip(entries, outcomes, strict=True):
            if entry.state is _SUBMITTED and type(outcome) is RecordMetadata:
                # _release(), written out.
                freed += entry.size
                entry.state = _DELIVERED
                delivered += 1
                entry.outcome = outcome
                del alive[entry]
                if (waiter := entry.waiter) is not None:
                    woken.append(waiter)
                elif (group := entry.group) is not None:
                    # _count_down(), written out.
                    group.remaining = remaining = group.remaining - 1
                    if remaining == 0 and group.waiter is not None:
                        woken.append(group.waiter)
                continue
            if entry.state is _SUBMITTED:
                if isinstance(outcome, RecordMetadata):  # a subclass of a driver's own
                    woken += Ledger.settle(self, [entry], [RecordMetadata(*outcome)])
                    continue
                if not isinstance(cast("object", outcome), DeliveryError):
                    outcome = _no_outcome(entry.record, outcome)  # noqa: PLW2901
                self._release(entry)
                self._fail(entry, outcome, woken)
            elif entry in self._lingering:
                self._release(entry)
        self._delivered += delivered
        self._records -= delivered
        self._bytes -= freed
        self._turned_away = False
        if self._waiting:
            self._admit_waiting(woken)
        if self._barriers:
            self._pass_barriers(woken)
        return woken

    def _fail(self, entry: Entry, outcome: Any, woken: list[object]) -> None:
        entry.missed = 0
        # What waits for room has no number yet.
        if self.first_failure is None and not 0 < entry.seq <= self._looked_before:
            self.first_failure = outcome
        entry.was_submitted = entry.state is _SUBMITTED
        if entry.state is not _WAITING:
            self._failed += 1
            del self._alive[entry]
        entry.state = _FAILED
        entry.outcome = outcome
        told = False
        if entry.room_waiter is not None:
            woken.append(entry.room_waiter)
            entry.room_waiter = None
            told = True
        if entry.waiter is not None:
            woken.append(entry.waiter)
            told = True
        if entry.group is not None and entry.group is not _ABANDONED:
            self._count_down(entry.group, woken)
            told = True
            self._stop(entry.group, woken)
        if not told:
            self._miss(entry)

    def stop(self, group: Group) -> list[object]:
        """One of a group's records was refused before it was entered.

        Returns:
            Who is to be woken.
        """
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
        """From now on, :attr:`first_failure` is of what is taken in from now on."""
        self.first_failure = None
        self._looked_before = self._accepted

    # --- callers that give up ----------------------------------------------------------------

    def cancel(self, entry: Entry) -> list[object]:
        """The caller of a ``send`` was cancelled. Not with the driver yet: withdrawn, for good.
        With the driver: it goes on, abandoned. With an outcome already: that counts as missed.

        Returns:
            Who is to be woken, for the room that became free.
        """
        woken: list[object] = []
        state = entry.state
        if state is _WITHDRAWN or entry.group is _ABANDONED:
            return woken
        if state is _FAILED and (entry.missed or entry.seq == 0):
            return woken  # where it was never accepted, nobody is owed its failure
        entry.waiter = entry.room_waiter = entry.group = None
        if state is _WAITING:
            del self._waiting[entry]
            entry.state = _WITHDRAWN
        elif state is _QUEUED:
            self._unqueue(entry)
            self._withdraw(entry)
        else:
            if state is not _FAILED or entry.was_submitted:
                entry.group = _ABANDONED
                self._abandoned += 1
            if state is _FAILED:
                self._miss(entry)
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def _withdraw(self, entry: Entry) -> None:
        entry.state = _WITHDRAWN
        self._withdrawn += 1
        self._release(entry)
        del self._alive[entry]

    def _miss(self, entry: Entry) -> None:
        entry.missed = self._report
        if len(self._unseen) < KEPT_FAILURES:
            self._unseen[entry] = None
        else:
            self._unseen_more += 1

    def unwatch(self, entry: Entry) -> None:
        """Whoever waited for this accepted record's outcome gave up; the record goes on."""
        entry.waiter = None
        if entry.state is _FAILED and entry.missed != _SEEN:
            self._miss(entry)

    def saw(self, entry: Entry) -> None:
        """Somebody was told this entry's outcome, perhaps after it had been missed."""
        if entry.state is _FAILED:
            if entry.missed == self._report:
                if entry in self._unseen:
                    del self._unseen[entry]
                else:
                    self._unseen_more -= 1
            entry.missed = _SEEN

    def undelivered(self) -> tuple[list[DeliveryError], int]:
        """The failures nobody was told of since this was last asked, and how many there were."""
        errors = [entry.outcome for entry in self._unseen]
        count = len(errors) + self._unseen_more
        self._unseen.clear()
        self._unseen_more = 0
        self._report += 1
        return [error for error in errors if isinstance(error, DeliveryError)], count

    # --- time --------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float:
        """When to call :meth:`expire` next. After ``expire(now)`` it is later than ``now``.

        All deliveries have the same time, so their deadlines are in the order of entering.
        """
        deadline = now + self._timeout
        for line in (self._alive, self._waiting):
            for entry in line:
                deadline = min(deadline, entry.deadline)
                break
        # Once it is over, stuck() has said so. Waking up for it again would keep a core busy for as
        # long as the client that is given up takes to close.
        if self._late and (over := self._give_up_at()) > now:
            deadline = min(deadline, over)
        return deadline

    def expire(self, now: float, trouble: Exception | None = None) -> list[object]:
        """Fail what is past its deadline.

        Args:
            now: what time it is.
            trouble: why no broker was reached, where that is known.

        Returns:
            Who is to be woken.
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
                self._expire_one(entry, trouble, woken)
        if not had_late or self._delivered_when_late != self._delivered:
            self._late_since = now
            self._delivered_when_late = self._delivered
        self._admit_waiting(woken)
        self._pass_barriers(woken)
        return woken

    def _expire_one(self, entry: Entry, trouble: Exception | None, woken: list[object]) -> None:
        seconds = f"{self._timeout:g} s"
        known = "" if trouble is None else f": {trouble}"
        if entry.state is _SUBMITTED:
            self._lingering[entry] = None
            self._late[entry] = None
            self._late_bytes += entry.size
            error = DeliveryTimeout(
                f"no broker acknowledged the record within {seconds} (delivery_timeout); "
                f"it may be written all the same{known}",
                record=entry.record,
                persistence=Persistence.POSSIBLY_PERSISTED,
            )
            error.__cause__ = trouble
            self._fail(entry, error, woken)
            return
        reason = (
            "there was no room for the record"
            if entry.state is _WAITING
            else "the record could not be handed to the client"
        )
        error = DeliveryTimeout(
            f"{reason} within {seconds} (delivery_timeout); it was not sent{known}",
            record=entry.record,
            persistence=Persistence.NOT_PERSISTED,
        )
        error.__cause__ = trouble
        self._end_unsubmitted(entry, error, woken)

    def _end_unsubmitted(self, entry: Entry, error: DeliveryError, woken: list[object]) -> None:
        if entry.state is _FAILED:
            return  # just now, with its group, when another one of that failed
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
        """Whether the producer must replace the client.

        A client is given up if it holds a record for LATENESS seconds after its deadline, and such
        records take up half of all room, or it has delivered nothing for PATIENCE seconds.

        To be asked after :meth:`expire`.
        """
        return bool(self._late) and now >= self._give_up_at()

    def _give_up_at(self) -> float:
        """When the client is to be given up, if it keeps what it holds past the deadline."""
        oldest = next(iter(self._late)).deadline + LATENESS
        if len(self._late) * 2 >= self._max_records or self._late_bytes * 2 >= self._max_bytes:
            return oldest
        return max(oldest, self._late_since + PATIENCE)

    # --- flush -------------------------------------------------------------------------------

    def barrier(self, waiter: object, *, counts_waiting: bool = False) -> bool:
        """Have ``waiter`` woken when all that is accepted by now has its outcome.

        Args:
            waiter: whoever that is.
            counts_waiting: what waits for room is to have its outcome, too, and whatever comes
                meanwhile.

        Returns:
            False where that is so already; then nobody is going to be woken.
        """
        if not self._alive and not (counts_waiting and self._waiting):
            return False
        last = math.inf if counts_waiting else self._accepted
        self._barriers.append((last, waiter))
        # Nobody waits behind the one who waits for everything.
        self._barriers.sort(key=operator.itemgetter(0))
        return True

    def drop_barrier(self, waiter: object) -> None:
        """Whoever waited at a barrier gave up."""
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
        """Take no more records: what is accepted goes on, what waits for room fails.

        Returns:
            Who is to be woken.
        """
        woken: list[object] = []
        if self.state is _OPEN:
            self.state = ProducerState.DRAINING
            self._fail_waiting("the producer was closed while the record waited for room", woken)
            # A waiting record that fails can stop its group, whose queued records then fail, too.
            self._pass_barriers(woken)
        return woken

    def end_generation(self, reason: BaseException) -> list[object]:
        """The client was closed by force and replaced by another: what it had and did not
        complete has its outcome now. What is queued stays queued.

        Returns:
            Who is to be woken.
        """
        for entry in [*self._lingering]:
            self._release(entry)
        entries: list[Entry] = []
        errors: list[RecordMetadata | DeliveryError] = []
        for entry in self._alive:
            if entry.state is _SUBMITTED:
                error = DeliveryError(
                    f"the client was given up before the record was acknowledged: {reason}; "
                    "it may be written all the same",
                    record=entry.record,
                    persistence=Persistence.POSSIBLY_PERSISTED,
                )
                error.__cause__ = reason
                entries.append(entry)
                errors.append(error)
        return self.settle(entries, errors)

    def fail_unsubmitted(
        self, message: str, reason: BaseException, *, until: int | None = None
    ) -> list[object]:
        """What is queued, or waits for room, is not to be sent any more.

        Args:
            message: what is said to those who wait for it.
            reason: the cause of that.
            until: how many were :attr:`accepted` when that came up; None where it is so now.

        Returns:
            Who is to be woken.
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
        """The driver is lost: everything gets its outcome now, and nothing is taken any more.

        Returns:
            Who is to be woken.
        """
        if self.state not in {_OPEN, ProducerState.DRAINING}:
            return []
        self.state = ProducerState.BROKEN
        self.broken_by = reason
        return self._fail_all(f"the producer broke: {reason}", reason)

    def close(self) -> list[object]:
        """The end: whatever has no outcome yet gets it now.

        Returns:
            Who is to be woken.
        """
        if self.state is ProducerState.CLOSED:
            return []
        woken = self._fail_all("the producer was closed before the record was acknowledged", None)
        self.state = ProducerState.CLOSED
        return woken

    def _fail_waiting(
        self, message: str, woken: list[object], cause: BaseException | None = None
    ) -> None:
        for entry in list(self._waiting):
            self._end_unsubmitted(entry, not_sent(entry.record, message, cause), woken)

    def _fail_all(self, message: str, cause: BaseException | None) -> list[object]:
        woken: list[object] = []
        self._fail_waiting(message, woken)
        for entry in list(self._alive):
            submitted = entry.state is _SUBMITTED
            error = DeliveryError(
                f"{message}; it may be written all the same"
                if submitted
                else f"{message}; it was not sent",
                record=entry.record,
                persistence=Persistence.POSSIBLY_PERSISTED
                if submitted
                else Persistence.NOT_PERSISTED,
            )
            error.__cause__ = cause
            if submitted:
                self._lingering[entry] = None
                self._fail(entry, error, woken)
            else:
                self._end_unsubmitted(entry, error, woken)
        self._pass_barriers(woken)
        return woken

    # --- looking on --------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether everything accepted has its outcome."""
        return not self._alive

    @property
    def pending(self) -> int:
        """How many accepted records have no outcome yet."""
        return len(self._alive)

    @property
    def most_bytes(self) -> int:
        """How many bytes all accepted records may have."""
        return self._max_bytes

    @property
    def accepted(self) -> int:
        """How many records were accepted so far."""
        return self._accepted

    @property
    def queued(self) -> int:
        """How many records :meth:`take` may have to hand over."""
        return len(self._queue)

    @property
    def in_flight_bytes(self) -> int:
        """The size of all that is accepted and not settled, or that the driver still has."""
        return self._bytes

    @property
    def is_in_a_hurry(self) -> bool:
        """Whether the client must not hold records back to form larger batches: a caller waits for
        all of them, or no more can join them because there is no room."""
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
        """Whether there is one record that is queued, and none that the driver has."""
        return self._records == 1 and len(self._queue) == 1

    def statistics(
        self, *, generations: int, hand_overs: int, wake_ups: int, client: Mapping[str, Any]
    ) -> Statistics:
        """The figures as they stand; the arguments are kept elsewhere."""
        return Statistics(
            state=self.state.value,
            waiting=len(self._waiting),
            queued=len(self._queue) + sum(map(len, self._held.values())),
            in_flight=self._records,
            in_flight_bytes=self._bytes,
            accepted=self._accepted,
            delivered=self._delivered,
            failed=self._failed,
            withdrawn=self._withdrawn,
            abandoned=self._abandoned,
            generations=generations,
            hand_overs=hand_overs,
            wake_ups=wake_ups,
            client=client,
        )
