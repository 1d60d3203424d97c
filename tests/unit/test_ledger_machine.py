"""Compares the ledger with a plain model after each of any calls in any order.

The model has no queues or counters. It has a list of fates, one for each delivery, and computes
everything from this list. The calls follow the rules of the producer: the driver thread has one
batch at a time, and the driver has not completed the records that it gives back.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    RecordMetadata,
    RecordRejected,
)
from anyio_sendproducer._deadlines import CallDeadline
from anyio_sendproducer._delivery import (
    DELIVERY_TRANSITIONS,
    PRODUCER_TRANSITIONS,
    DeliveryState,
    Entry,
    Group,
    ProducerState,
)
from anyio_sendproducer._late import LATENESS, PATIENCE
from anyio_sendproducer._ledger import Ledger

WAITING = DeliveryState.WAITING
QUEUED = DeliveryState.QUEUED
SUBMITTED = DeliveryState.SUBMITTED
DELIVERED = DeliveryState.DELIVERED
FAILED = DeliveryState.FAILED
WITHDRAWN = DeliveryState.WITHDRAWN

TIMEOUT: Final = 10.0
#: Small, so that runs exceed it.
KEPT: Final = 3

timeouts = st.none() | st.sampled_from([0.5, 2.0, 5.0, TIMEOUT, 2 * TIMEOUT])
topics = st.sampled_from(["a", "b", "c"])
sizes = st.integers(0, 12)


class Waiter:
    """A waiter; the ledger only passes it on."""


@dataclasses.dataclass(eq=False)
class GroupCall:
    """A call with several records."""

    waiter: Waiter
    group: Group
    fates: list[Fate] = dataclasses.field(default_factory=list["Fate"])
    left: int = 0
    stopped: bool = False

    def add(self, fate: Fate) -> None:
        self.fates.append(fate)
        if self.group.stop_on_error:
            self.group.members.append(fate.entry)


@dataclasses.dataclass(eq=False)
class Fate:
    """The model's state of one delivery."""

    entry: Entry
    topic: str
    size: int
    deadline: float
    way: str
    state: DeliveryState = WAITING
    accepted: int = 0
    has_room: bool = False
    given: bool = False
    held: bool = False
    coming_back: bool = False
    late: bool = False
    ended_with_client: bool = False
    cancelled: bool = False
    seen: bool = False
    room_waiter: Waiter | None = None
    waiter: Waiter | None = None
    several: GroupCall | None = None
    call_deadline: float = math.inf
    failed_by_call: bool = False
    expected: RecordMetadata | DeliveryError | Persistence | None = None
    outcome: RecordMetadata | DeliveryError | None = None

    @property
    def alive(self) -> bool:
        return self.state in {QUEUED, SUBMITTED}

    @property
    def ended(self) -> bool:
        return not DELIVERY_TRANSITIONS[self.state]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.late_since = 0.0
        self.delivered_when_late = -1
        self.state = ProducerState.OPEN
        self.reason = RuntimeError("the driver is gone")
        self.fates: list[Fate] = []
        self.groups: list[GroupCall] = []
        #: Each waiter with its deliveries. None: all deliveries, also later ones.
        self.barriers: list[tuple[Waiter, list[Fate] | None]] = []
        self.missed: list[Fate] = []
        self.most_missed = 0
        self.busy = False
        self.to_wake: list[Waiter] = []
        self.admitted: list[Waiter] = []
        self.observed: dict[Fate, DeliveryState] = {}
        self.observed_producer = ProducerState.OPEN
        self.handed_over: dict[str, list[int]] = {}

    @initialize(records=st.integers(1, 5), size=st.integers(1, 24))
    def open(self, records: int, size: int) -> None:
        self.max_records = records
        self.max_bytes = size
        self.ledger = Ledger(
            max_in_flight=records,
            max_buffered_bytes=size,
            delivery_timeout=TIMEOUT,
            kept_failures=KEPT,
        )

    # --- the model ---------------------------------------------------------------------------

    @property
    def line(self) -> list[Fate]:
        """The deliveries that wait for room, in FIFO order."""
        return [fate for fate in self.fates if fate.state is WAITING]

    @property
    def used(self) -> tuple[int, int]:
        sizes_ = [fate.size for fate in self.fates if fate.has_room]
        return len(sizes_), sum(sizes_)

    @property
    def late(self) -> list[Fate]:
        return [fate for fate in self.fates if fate.late and fate.has_room]

    @property
    def early(self) -> list[Fate]:
        """The records that failed at the deadline of their call, and are not late yet."""
        return [
            fate for fate in self.fates if fate.failed_by_call and fate.has_room and not fate.late
        ]

    def fits(self, size: int) -> bool:
        records, taken = self.used
        return records < self.max_records and taken + size <= self.max_bytes

    def accept(self, fate: Fate) -> None:
        fate.accepted = 1 + max((other.accepted for other in self.fates), default=0)
        fate.has_room = True
        fate.state = QUEUED
        if fate.room_waiter is not None:
            self.admitted.append(fate.room_waiter)
            fate.room_waiter = None

    def end(
        self,
        fate: Fate,
        state: DeliveryState,
        expected: RecordMetadata | DeliveryError | Persistence,
    ) -> None:
        """Give a delivery its outcome, and wake its waiters."""
        fate.ended_with_client = fate.state is SUBMITTED
        fate.state = state
        fate.expected = expected
        told = [waiter for waiter in (fate.room_waiter, fate.waiter) if waiter is not None]
        self.to_wake += told
        fate.room_waiter = None
        if fate.several is not None:
            fate.several.left -= 1
            if fate.several.left == 0:
                self.to_wake.append(fate.several.waiter)
            if state is FAILED:
                self.stop(fate.several)
        elif not told and state is FAILED:
            self.miss(fate)

    def stop(self, several: GroupCall) -> None:
        """Stop a group after a failure, if it has ``stop_on_error``."""
        if several.group.stop_on_error and not several.stopped:
            several.stopped = True
            self.fail_unsent([fate for fate in several.fates if fate.state in {QUEUED, WAITING}])

    def miss(self, fate: Fate) -> None:
        if fate not in self.missed:
            self.missed.append(fate)
            self.most_missed = max(self.most_missed, len(self.missed))

    def fail_unsent(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            if not fate.ended:  # its group may just have ended it
                fate.has_room = False
                self.end(fate, FAILED, Persistence.NOT_PERSISTED)

    def fail_sent(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            self.end(fate, FAILED, Persistence.POSSIBLY_PERSISTED)

    def agree(self, woken: Sequence[object]) -> None:
        """Apply free room and outcomes to the model, then compare the woken waiters.

        The ledger must have woken each waiter once for each reason.
        """
        while (line := self.line) and self.fits(line[0].size):
            self.accept(line[0])
        for barrier in list(self.barriers):
            waiter, before = barrier
            if all(fate.ended for fate in (self.fates if before is None else before)):
                self.to_wake.append(waiter)
                self.barriers.remove(barrier)
        assert Counter(woken) == Counter([*self.to_wake, *self.admitted])
        # Room is given in FIFO order.
        assert [waiter for waiter in woken if waiter in self.admitted] == self.admitted
        self.to_wake.clear()
        self.admitted.clear()

    # --- callers -----------------------------------------------------------------------------

    def limit(self, fates: Iterable[Fate], timeout: float | None) -> None:
        """Set the timeout of a call on its records."""
        if timeout is None:
            return
        deadline = self.now + timeout
        self.ledger.limit([fate.entry for fate in fates], CallDeadline(deadline, timeout))
        for fate in fates:
            fate.call_deadline = deadline

    def take_in(
        self, topic: str, size: int, way: str, *, wait: bool = True, timeout: float | None = None
    ) -> Fate:
        record = ProducerRecord(topic, f"{len(self.fates)}".encode())
        fits = not self.line and self.fits(size)
        entry = self.ledger.enter(record, size, self.now, wait)
        fate = Fate(entry, topic, size, self.now + TIMEOUT, way)
        assert entry.record is record
        self.fates.append(fate)
        self.observed[fate] = WAITING
        self.limit([fate], timeout)
        if fits:
            self.accept(fate)
        elif way != "send":
            fate.room_waiter = entry.room_waiter = Waiter()
        if way == "send":
            fate.waiter = entry.waiter = Waiter()
        return fate

    def refused(self, size: int) -> bool:
        record = ProducerRecord("a", b"")
        refusal: type[Exception]
        if self.state is ProducerState.OPEN:
            if size <= self.max_bytes:
                return False
            refusal = RecordRejected
        else:
            broken = self.state is ProducerState.BROKEN
            refusal = ProducerBroken if broken else ProducerClosed
        with pytest.raises(refusal) as caught:
            self.ledger.enter(record, size, self.now)
        if isinstance(caught.value, RecordRejected):
            assert caught.value.record is record
            assert caught.value.persistence is Persistence.NOT_PERSISTED
        if isinstance(caught.value, ProducerBroken):
            assert caught.value.__cause__ is self.reason
        return True

    @rule(topic=topics, size=sizes, timeout=timeouts)
    def send(self, topic: str, size: int, timeout: float | None) -> None:
        if not self.refused(size):
            self.take_in(topic, size, "send", timeout=timeout)

    @rule(topic=topics, size=sizes)
    def enqueue(self, topic: str, size: int) -> None:
        if not self.refused(size):
            self.take_in(topic, size, "enqueue")

    @rule(topic=topics, size=sizes)
    def enqueue_nowait(self, topic: str, size: int) -> None:
        if self.refused(size):
            return
        if not self.line and self.fits(size):
            self.take_in(topic, size, "enqueue", wait=False)
        else:
            with pytest.raises(anyio.WouldBlock):
                self.ledger.enter(ProducerRecord(topic, b""), size, self.now, False)

    @rule(
        records=st.lists(st.tuples(topics, sizes), min_size=1, max_size=4),
        stop_on_error=st.booleans(),
        timeout=timeouts,
    )
    def send_many(
        self, records: list[tuple[str, int]], stop_on_error: bool, timeout: float | None
    ) -> None:
        records = [(topic, size) for topic, size in records if not self.refused(size)]
        if records:
            waiter = Waiter()
            group = Group(len(records), waiter, stop_on_error=stop_on_error)
            several = GroupCall(waiter, group, left=len(records))
            self.groups.append(several)
            for topic, size in records:
                fate = self.take_in(topic, size, "group", timeout=timeout)
                fate.several = several
                fate.entry.group = several.group
                several.add(fate)

    @rule(
        records=st.lists(st.tuples(topics, sizes), min_size=1, max_size=4),
        stop_on_error=st.booleans(),
        timeout=timeouts,
    )
    def send_many_in_one_go(
        self, records: list[tuple[str, int]], stop_on_error: bool, timeout: float | None
    ) -> None:
        """Enter as many records as there is room for, unless another record waits."""
        pairs = [(ProducerRecord(topic, b"x"), size) for topic, size in records]
        waiter = Waiter()
        several = GroupCall(waiter, Group(len(records), waiter, stop_on_error=stop_on_error))
        is_free = self.state is ProducerState.OPEN and not self.line
        entries = self.ledger.enter_many(pairs, self.now, several.group)
        for entry, (topic, size) in zip(entries, records, strict=False):
            assert self.fits(size)
            fate = Fate(entry, topic, size, self.now + TIMEOUT, "group", several=several)
            self.fates.append(fate)
            self.observed[fate] = WAITING
            self.accept(fate)
            several.add(fate)
        self.limit(several.fates, timeout)
        assert [entry.record for entry in entries] == [one for one, _ in pairs[: len(entries)]]
        several.left = several.group.remaining = len(entries)
        if len(entries) < len(records):
            assert not is_free or not self.fits(records[len(entries)][1])
        if entries:
            assert is_free
            self.groups.append(several)

    def cancel(self, fate: Fate) -> None:
        woken = self.ledger.cancel(fate.entry)
        fate.waiter = fate.room_waiter = fate.several = None
        if fate.state in {WAITING, QUEUED}:
            fate.state = WITHDRAWN
            fate.has_room = False
        elif fate.state is not WITHDRAWN:
            fate.cancelled = True
            # A record that was never accepted does not count as an unawaited failure.
            if fate.state is FAILED and fate.accepted and not fate.seen:
                self.miss(fate)
        self.agree(woken)

    @precondition(lambda self: self.cancellable)
    @rule(data=st.data())
    def cancel_one(self, data: st.DataObject) -> None:
        fate = data.draw(st.sampled_from(self.cancellable))
        already_asked = fate.seen
        self.cancel(fate)
        if not already_asked:
            # A second cancellation changes nothing.
            self.cancel(fate)

    @property
    def cancellable(self) -> list[Fate]:
        """The deliveries whose caller still waits, in any state."""
        return [
            fate
            for fate in self.fates
            if not (fate.cancelled or fate.seen)
            and (fate.waiter if fate.way == "send" else fate.room_waiter) is not None
        ]

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def cancel_several(self, data: st.DataObject) -> None:
        several = data.draw(st.sampled_from(self.groups))
        self.groups.remove(several)
        several.group.waiter = None
        for fate in several.fates:
            self.cancel(fate)

    @property
    def deliveries(self) -> list[Fate]:
        """The deliveries that `enqueue` returned and that were not withdrawn."""
        return [
            fate
            for fate in self.fates
            if fate.way == "enqueue" and fate.accepted and fate.state is not WITHDRAWN
        ]

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def wait_for(self, data: st.DataObject) -> None:
        fate = data.draw(st.sampled_from(self.deliveries))
        if fate.ended:
            self.ledger.mark_seen(fate.entry)
            fate.seen = True
            if fate in self.missed:
                self.missed.remove(fate)
        elif fate.waiter is None:
            fate.waiter = fate.entry.waiter = Waiter()

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def stop_waiting_for(self, data: st.DataObject) -> None:
        fate = data.draw(st.sampled_from(self.deliveries))
        if fate.waiter is not None:
            self.ledger.drop_waiter(fate.entry)
            fate.waiter = None
            # Another caller may have seen the failure.
            if fate.state is FAILED and not fate.seen:
                self.miss(fate)

    @rule()
    def ask_for_undelivered(self) -> None:
        errors, count = self.ledger.take_undelivered()
        assert count == len(self.missed)
        outcomes = {id(fate.outcome) for fate in self.missed}
        kept = {id(error) for error in errors}
        assert len(kept) == len(errors) <= KEPT
        assert kept <= outcomes
        if self.most_missed <= KEPT:
            assert kept == outcomes
        self.missed.clear()
        self.most_missed = 0
        assert self.ledger.take_undelivered() == ([], 0)

    @rule()
    def flush(self) -> None:
        waiter = Waiter()
        before = [fate for fate in self.fates if fate.alive]
        assert self.ledger.add_barrier(waiter) == bool(before)
        if before:
            self.barriers.append((waiter, before))

    @rule()
    def wait_for_everything(self) -> None:
        waiter = Waiter()
        there_is_any = not all(fate.ended for fate in self.fates)
        assert self.ledger.add_barrier(waiter, include_waiting=True) == there_is_any
        if there_is_any:
            self.barriers.append((waiter, None))

    @precondition(lambda self: self.barriers)
    @rule(data=st.data())
    def stop_flushing(self, data: st.DataObject) -> None:
        barrier = data.draw(st.sampled_from(self.barriers))
        self.ledger.drop_barrier(barrier[0])
        self.barriers.remove(barrier)

    # --- the driver --------------------------------------------------------------------------

    @precondition(lambda self: not self.busy)
    @rule(unknown=st.sets(topics, max_size=2))
    def hand_over(self, unknown: set[str]) -> None:
        queued = [fate for fate in self.fates if fate.state is QUEUED]
        held_up = {fate.topic for fate in queued if fate.held}
        batch = self.ledger.take()
        by_entry = {fate.entry: fate for fate in queued}
        given = [by_entry[entry] for entry in batch]
        assert set(given) == {fate for fate in queued if fate.topic not in held_up}
        if given:
            assert self.state in {ProducerState.OPEN, ProducerState.DRAINING}
            self.busy = True
        for fate in queued:
            if fate.topic in held_up:
                fate.held = True
        for fate in given:
            fate.state = SUBMITTED
            fate.given = True
            fate.coming_back = fate.topic in unknown
            if not fate.coming_back:
                before = self.handed_over.setdefault(fate.topic, [])
                assert fate.accepted > max(before, default=0)
                before.append(fate.accepted)
        for topic in unknown:
            numbers = [fate.accepted for fate in given if fate.topic == topic]
            assert numbers == sorted(numbers)

    @precondition(lambda self: self.busy)
    @rule()
    def give_back(self) -> None:
        self.busy = False
        back = [fate for fate in self.fates if fate.coming_back]
        back.sort(key=lambda fate: fate.accepted)
        woken = self.ledger.hold([fate.entry for fate in back])
        for fate in back:
            fate.coming_back = False
            if fate.state is not SUBMITTED:
                fate.has_room = False
            elif fate.cancelled:
                fate.cancelled = False
                fate.state = WITHDRAWN
                fate.has_room = False
            elif fate.several is not None and fate.several.stopped:
                fate.state = QUEUED
                self.fail_unsent([fate])
            else:
                fate.state = QUEUED
                fate.held = True
        self.agree(woken)

    @rule()
    def requeue_held(self) -> None:
        held = [fate for fate in self.fates if fate.held and fate.state is QUEUED]
        assert self.ledger.requeue_held() == bool(held)
        for fate in held:
            fate.held = False

    @property
    def with_driver(self) -> list[Fate]:
        """The deliveries that the driver may report, including those that it completed before."""
        return [
            fate
            for fate in self.fates
            if fate.given and not fate.coming_back and fate.state not in {QUEUED, WITHDRAWN}
        ]

    @precondition(lambda self: self.with_driver)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.with_driver), min_size=1, max_size=6))
        outcomes: list[RecordMetadata | DeliveryError] = []
        for fate in chosen:
            well = data.draw(st.booleans())
            persistence = data.draw(st.sampled_from(Persistence))
            record = fate.entry.record
            outcomes.append(
                RecordMetadata(fate.topic, 0, len(outcomes), 0, None, 1)
                if well
                else DeliveryError("no", record=record, persistence=persistence)
            )
        woken = self.ledger.settle([fate.entry for fate in chosen], outcomes)
        for fate, outcome in zip(chosen, outcomes, strict=True):
            if fate.has_room:
                fate.has_room = False
                if fate.state is SUBMITTED:
                    well = isinstance(outcome, RecordMetadata)
                    self.end(fate, DELIVERED if well else FAILED, outcome)
        self.agree(woken)

    @precondition(lambda self: self.with_driver)
    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        fates = st.sampled_from(self.with_driver)
        changes = data.draw(st.lists(st.tuples(fates, st.integers(0, 30)), min_size=1, max_size=3))
        woken = self.ledger.resize([(fate.entry, size) for fate, size in changes])
        for fate, size in changes:
            if fate.has_room:
                fate.size = size
        self.agree(woken)

    # --- time, and the end -------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        had_late = bool(self.late)
        delivered = sum(fate.state is DELIVERED for fate in self.fates)
        woken = self.ledger.expire(self.now)
        due = [
            fate
            for fate in self.fates
            if not fate.ended and min(fate.call_deadline, fate.deadline) <= self.now
        ]
        sent = [fate for fate in due if fate.state is SUBMITTED]
        self.fail_unsent(fate for fate in due if fate.state is not SUBMITTED)
        self.fail_sent(sent)
        for fate in sent:
            fate.failed_by_call = fate.call_deadline <= self.now
            fate.late = not fate.failed_by_call
        for fate in self.early:
            fate.late = fate.deadline <= self.now
        if not had_late or delivered != self.delivered_when_late:
            self.late_since = self.now
            self.delivered_when_late = delivered
        assert self.ledger.next_deadline(self.now) > self.now
        self.agree(woken)

    @rule()
    def end_generation(self) -> None:
        woken = self.ledger.end_generation(self.reason)
        sent = [fate for fate in self.fates if fate.state is SUBMITTED]
        for fate in self.fates:
            if fate.state in {SUBMITTED, FAILED}:
                fate.has_room = False
        self.fail_sent(sent)
        self.agree(woken)

    def fail_all(self) -> None:
        self.fail_unsent([fate for fate in self.fates if fate.state in {WAITING, QUEUED}])
        self.fail_sent([fate for fate in self.fates if fate.state is SUBMITTED])

    @rule(how=st.sampled_from(["drain", "drain", "break", "close"]))
    def come_to_an_end(self, how: str) -> None:
        if how == "drain":
            woken = self.ledger.drain()
            if self.state is ProducerState.OPEN:
                self.state = ProducerState.DRAINING
                self.fail_unsent(self.line)
        elif how == "break":
            woken = self.ledger.mark_broken(self.reason)
            if self.state in {ProducerState.OPEN, ProducerState.DRAINING}:
                self.state = ProducerState.BROKEN
                self.fail_all()
        else:
            woken = self.ledger.close()
            self.state = ProducerState.CLOSED
            self.fail_all()
        self.agree(woken)

    # --- invariants --------------------------------------------------------------------------

    @invariant()
    def the_state_of_each_delivery_is_that_of_its_fate(self) -> None:
        for fate in self.fates:
            entry = fate.entry
            assert entry.state is fate.state
            before = self.observed[fate]
            assert entry.state is before or entry.state in DELIVERY_TRANSITIONS[before].values()
            self.observed[fate] = entry.state
            if fate.outcome is None and fate.expected is not None:
                fate.outcome = entry.outcome
                if isinstance(fate.expected, Persistence):
                    assert isinstance(fate.outcome, DeliveryError)
                    assert fate.outcome.persistence is fate.expected
                    assert fate.outcome.record is entry.record
                else:
                    assert fate.outcome is fate.expected
            # An outcome never changes.
            assert entry.outcome is fate.outcome
            assert (fate.outcome is not None) == (fate.state in {DELIVERED, FAILED})

    @invariant()
    def the_producers_state_follows_its_table(self) -> None:
        now, before = self.ledger.state, self.observed_producer
        assert now is self.state
        assert now is before or now in PRODUCER_TRANSITIONS[before].values()
        self.observed_producer = now

    @invariant()
    def the_figures_are_those_of_the_fates(self) -> None:
        figures = self.ledger.statistics(
            is_connected=True, generations=7, hand_overs=8, wake_ups=9, client={}
        )
        states = Counter(fate.state for fate in self.fates)
        accepted = [fate for fate in self.fates if fate.accepted]
        assert figures.state == self.state.value
        assert figures.waiting == states[WAITING]
        assert figures.queued == states[QUEUED]
        assert (figures.in_flight, figures.in_flight_bytes) == self.used
        assert figures.in_flight <= self.max_records
        assert figures.accepted == len(accepted)
        ends = Counter(fate.state for fate in accepted)
        assert figures.delivered == ends[DELIVERED]
        assert figures.failed == ends[FAILED]
        assert figures.withdrawn == ends[WITHDRAWN]
        alive = sum(fate.alive for fate in self.fates)
        assert figures.accepted == figures.delivered + figures.failed + figures.withdrawn + alive
        assert figures.abandoned == sum(
            fate.cancelled and (fate.state is SUBMITTED or fate.ended_with_client)
            for fate in self.fates
        )
        assert (figures.generations, figures.hand_overs, figures.wake_ups) == (7, 8, 9)
        assert self.ledger.is_idle == (alive == 0)

    @invariant()
    def the_queue_and_the_deadlines_are_those_of_the_fates(self) -> None:
        queued = [fate for fate in self.fates if fate.state is QUEUED]
        assert self.ledger.queued == sum(not fate.held for fate in queued)
        deadlines = [
            min(fate.deadline, fate.call_deadline) for fate in self.fates if not fate.ended
        ]
        deadlines += [fate.deadline for fate in self.early]
        late = self.late
        half = (
            len(late) * 2 >= self.max_records
            or sum(fate.size for fate in late) * 2 >= self.max_bytes
        )
        over = min((fate.deadline for fate in late), default=math.inf) + LATENESS
        if not half:
            over = max(over, self.late_since + PATIENCE)
        if late and over > self.now:
            deadlines.append(over)
        assert self.ledger.next_deadline(self.now) == min([self.now + TIMEOUT, *deadlines])
        assert self.ledger.is_stuck(self.now) == (bool(late) and self.now >= over)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=3 * settings().max_examples // 2, stateful_step_count=40
)
