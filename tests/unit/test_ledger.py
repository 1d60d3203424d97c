"""Single cases of the ledger: cases that random calls rarely reach, and the texts of its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    RecordMetadata,
    RecordRejected,
)
from anyio_sendproducer._delivery import (
    DELIVERY_TRANSITIONS,
    PRODUCER_TRANSITIONS,
    DeliveryState,
    Entry,
    Group,
    ProducerState,
    Statistics,
)
from anyio_sendproducer._late import LATENESS, PATIENCE
from anyio_sendproducer._ledger import Ledger
from anyio_sendproducer._unawaited import KEPT_FAILURES

WRITTEN = RecordMetadata("a", 0, 0, 0, None, 1)
GONE = RuntimeError("the driver is gone")
WAITING = DeliveryState.WAITING
QUEUED = DeliveryState.QUEUED
SUBMITTED = DeliveryState.SUBMITTED


def make(
    records: int = 10, size: int = 100, timeout: float = 10.0, kept_failures: int = KEPT_FAILURES
) -> Ledger:
    return Ledger(
        max_in_flight=records,
        max_buffered_bytes=size,
        delivery_timeout=timeout,
        kept_failures=kept_failures,
    )


def enter(ledger: Ledger, topic: str = "a", *, size: int = 1, now: float = 0.0) -> Entry:
    return ledger.enter(ProducerRecord(topic, b"x"), size, now)


def submitted(ledger: Ledger, topic: str = "a", *, size: int = 1, now: float = 0.0) -> Entry:
    entry = enter(ledger, topic, size=size, now=now)
    ledger.take()
    assert entry.state is SUBMITTED
    return entry


def waiting(ledger: Ledger) -> Entry:
    """Return an entry that waits for room. The ledger must have room for one record."""
    enter(ledger)
    entry = enter(ledger)
    assert entry.state is WAITING
    return entry


def refused(entry: Entry) -> DeliveryError:
    return DeliveryError("no", record=entry.record, persistence=Persistence.NOT_PERSISTED)


def figures(ledger: Ledger) -> Statistics:
    return ledger.statistics(is_connected=True, generations=1, hand_overs=0, wake_ups=0, client={})


def room(ledger: Ledger) -> tuple[int, int]:
    now = figures(ledger)
    return now.in_flight, now.in_flight_bytes


# --- the two tables ------------------------------------------------------------------------------


def _held_back(ledger: Ledger) -> Entry:
    entry = submitted(ledger)
    ledger.hold([entry])
    return entry


def _held_back_and_cancelled(ledger: Ledger) -> Entry:
    entry = submitted(ledger)
    ledger.cancel(entry)
    ledger.hold([entry])
    return entry


def _after(
    make_entry: Callable[[Ledger], Entry], act: Callable[[Ledger, Entry], object]
) -> Callable[[Ledger], Entry]:
    def run(ledger: Ledger) -> Entry:
        entry = make_entry(ledger)
        act(ledger, entry)
        return entry

    return run


def _free_room(ledger: Ledger, entry: Entry) -> None:
    ledger.settle(ledger.take(), [WRITTEN])


DELIVERY_ARROWS: dict[tuple[DeliveryState, str], list[Callable[[Ledger], Entry]]] = {
    (WAITING, "room"): [_after(waiting, _free_room)],
    (WAITING, "cancelled"): [_after(waiting, Ledger.cancel)],
    (WAITING, "deadline or close"): [
        _after(waiting, lambda ledger, _: ledger.expire(10.0)),
        _after(waiting, lambda ledger, _: ledger.drain()),
        _after(waiting, lambda ledger, _: ledger.mark_broken(GONE)),
        _after(waiting, lambda ledger, _: ledger.close()),
    ],
    (QUEUED, "handed over"): [_after(enter, lambda ledger, _: ledger.take())],
    (QUEUED, "cancelled"): [
        _after(enter, Ledger.cancel),
        _after(_held_back, Ledger.cancel),
    ],
    (QUEUED, "deadline or close"): [
        _after(enter, lambda ledger, _: ledger.expire(10.0)),
        _after(enter, lambda ledger, _: ledger.mark_broken(GONE)),
        _after(enter, lambda ledger, _: ledger.close()),
        _after(_held_back, lambda ledger, _: ledger.expire(10.0)),
        _after(_held_back, lambda ledger, _: ledger.close()),
    ],
    (SUBMITTED, "acknowledged"): [
        _after(submitted, lambda ledger, entry: ledger.settle([entry], [WRITTEN])),
    ],
    (SUBMITTED, "refused, deadline or close"): [
        _after(submitted, lambda ledger, entry: ledger.settle([entry], [refused(entry)])),
        _after(submitted, lambda ledger, _: ledger.expire(10.0)),
        _after(submitted, lambda ledger, _: ledger.end_generation(GONE)),
        _after(submitted, lambda ledger, _: ledger.mark_broken(GONE)),
        _after(submitted, lambda ledger, _: ledger.close()),
    ],
    (SUBMITTED, "topic not known yet"): [_held_back],
    (SUBMITTED, "topic not known, caller gone"): [_held_back_and_cancelled],
}


@pytest.mark.parametrize(
    ("arrow", "scenario"),
    [(arrow, scenario) for arrow, several in DELIVERY_ARROWS.items() for scenario in several],
)
def test_each_transition_of_a_delivery_is_possible(
    arrow: tuple[DeliveryState, str], scenario: Callable[[Ledger], Entry]
) -> None:
    state, event = arrow
    assert scenario(make(records=1)).state is DELIVERY_TRANSITIONS[state][event]


def test_each_transition_of_a_delivery_is_tested() -> None:
    assert set(DELIVERY_ARROWS) == {
        (state, event) for state, events in DELIVERY_TRANSITIONS.items() for event in events
    }
    assert set(DELIVERY_TRANSITIONS) == set(DeliveryState)


def test_the_producers_states_follow_its_table() -> None:
    def draining() -> Ledger:
        ledger = make()
        ledger.drain()
        return ledger

    def broken() -> Ledger:
        ledger = make()
        ledger.mark_broken(GONE)
        return ledger

    seen: set[tuple[ProducerState, ProducerState]] = set()
    calls: list[Callable[[Ledger], object]] = [
        Ledger.drain,
        Ledger.close,
        lambda ledger: ledger.mark_broken(GONE),
    ]
    for start in (make, draining, broken):
        for call in calls:
            ledger = start()
            before = ledger.state
            call(ledger)
            if ledger.state is not before:
                seen.add((before, ledger.state))
    assert seen == {
        (state, target)
        for state, events in PRODUCER_TRANSITIONS.items()
        for target in events.values()
    }
    assert set(PRODUCER_TRANSITIONS) == set(ProducerState)


@pytest.mark.parametrize("table", [DELIVERY_TRANSITIONS, PRODUCER_TRANSITIONS])
def test_the_tables_cannot_be_changed(table: Any) -> None:
    with pytest.raises(TypeError):
        table[next(iter(table))] = {}


# --- room ----------------------------------------------------------------------------------------


def test_a_record_larger_than_max_buffered_bytes_is_rejected() -> None:
    ledger = make(size=100)
    record = ProducerRecord("a", b"x")
    with pytest.raises(RecordRejected, match=r"101 bytes, but max_buffered_bytes is 100") as caught:
        ledger.enter(record, 101, 0.0)
    assert caught.value.record is record
    assert caught.value.persistence is Persistence.NOT_PERSISTED
    assert figures(ledger).waiting == 0
    assert enter(ledger, size=100).state is QUEUED


def test_a_call_that_does_not_wait_raises_if_there_is_no_room() -> None:
    ledger = make(records=1)
    enter(ledger)
    with pytest.raises(anyio.WouldBlock):
        ledger.enter(ProducerRecord("a", b"x"), 1, 0.0, False)
    assert figures(ledger).waiting == 0


def test_a_call_that_does_not_wait_does_not_overtake() -> None:
    ledger = make(size=10)
    enter(ledger, size=6)
    assert enter(ledger, size=6).state is WAITING
    with pytest.raises(anyio.WouldBlock):
        ledger.enter(ProducerRecord("a", b"x"), 1, 0.0, False)


def test_a_small_record_does_not_overtake_a_waiting_large_one() -> None:
    ledger = make(size=10)
    first = submitted(ledger, size=6)
    large = enter(ledger, size=6)
    small = enter(ledger, size=1)
    assert (large.state, small.state) == (WAITING, WAITING)
    large.room_waiter, small.room_waiter = "large", "small"
    assert ledger.settle([first], [WRITTEN]) == ["large", "small"]
    assert ledger.take() == [large, small]


def test_when_the_first_in_line_is_cancelled_the_next_may_fit() -> None:
    ledger = make(size=10)
    enter(ledger, size=6)
    large = enter(ledger, size=6)
    small = enter(ledger, size=1)
    small.room_waiter = "small"
    assert ledger.cancel(large) == ["small"]
    assert small.state is QUEUED
    # The record was never accepted, so no counter includes it.
    assert figures(ledger).withdrawn == 0


def test_a_record_larger_than_estimated_takes_more_room() -> None:
    ledger = make(size=10)
    first = submitted(ledger, size=2)
    assert ledger.resize([(first, 20)]) == []
    assert room(ledger) == (1, 20)
    second = enter(ledger, size=1)
    second.room_waiter = "second"
    assert second.state is WAITING
    assert ledger.resize([(first, 9)]) == ["second"]
    assert room(ledger) == (2, 10)


def test_the_size_of_a_settled_record_changes_nothing() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.settle([entry], [WRITTEN])
    assert ledger.resize([(entry, 50)]) == []
    assert room(ledger) == (0, 0)


# --- deadlines -----------------------------------------------------------------------------------


def test_a_record_expires_at_its_deadline_and_not_before() -> None:
    ledger = make(timeout=10.0)
    entry = enter(ledger, now=5.0)
    assert ledger.next_deadline(5.0) == 15.0
    ledger.expire(14.999)
    assert entry.state is QUEUED
    ledger.expire(15.0)
    assert entry.state is DeliveryState.FAILED
    assert ledger.next_deadline(15.0) == 25.0


def test_a_record_that_expires_while_it_waits_for_room_was_not_sent() -> None:
    ledger = make(records=1, timeout=1.5)
    entry = waiting(ledger)
    entry.room_waiter = "its caller"
    assert ledger.expire(2.0) == ["its caller"]
    assert isinstance(entry.outcome, DeliveryTimeout)
    assert str(entry.outcome) == (
        "there was no room for the record within 1.5 s (delivery_timeout); it was not sent"
    )
    assert entry.outcome.persistence is Persistence.NOT_PERSISTED
    assert entry.outcome.record is entry.record
    # The second record was not accepted. The first record was accepted, and failed.
    assert (figures(ledger).accepted, figures(ledger).failed) == (1, 1)


@pytest.mark.parametrize("make_entry", [enter, _held_back])
def test_a_record_that_expires_in_the_queue_was_not_sent(
    make_entry: Callable[[Ledger], Entry],
) -> None:
    ledger = make()
    entry = make_entry(ledger)
    ledger.expire(10.0)
    assert isinstance(entry.outcome, DeliveryTimeout)
    assert str(entry.outcome) == (
        "the record could not be handed to the client within 10 s (delivery_timeout); "
        "it was not sent"
    )
    assert entry.outcome.persistence is Persistence.NOT_PERSISTED
    assert room(ledger) == (0, 0)
    assert ledger.take() == []


def test_a_submitted_record_that_expires_may_be_written_and_keeps_its_room() -> None:
    ledger = make()
    entry = submitted(ledger, size=7)
    ledger.expire(10.0)
    assert isinstance(entry.outcome, DeliveryTimeout)
    assert str(entry.outcome) == (
        "no broker acknowledged the record within 10 s (delivery_timeout); "
        "it may be written nevertheless"
    )
    assert entry.outcome.persistence is Persistence.POSSIBLY_PERSISTED
    assert room(ledger) == (1, 7)
    error = entry.outcome
    assert ledger.settle([entry], [WRITTEN]) == []
    assert room(ledger) == (0, 0)
    assert entry.outcome is error
    assert entry.state is DeliveryState.FAILED
    assert (figures(ledger).delivered, figures(ledger).failed) == (0, 1)


def test_a_late_record_frees_its_room_once() -> None:
    ledger = make()
    late = submitted(ledger, size=10)
    ledger.expire(10.0)
    submitted(ledger, now=10.0)
    assert room(ledger) == (2, 11)
    ledger.settle([late], [WRITTEN])
    assert room(ledger) == (1, 1)
    ledger.settle([late], [WRITTEN])  # a driver that reports it twice
    ledger.end_generation(GONE)
    assert room(ledger) == (0, 0)


def test_the_room_of_a_late_record_goes_to_a_waiting_record() -> None:
    ledger = make(records=1)
    entry = submitted(ledger)
    ledger.expire(10.0)
    later = enter(ledger, now=10.0)
    later.room_waiter = "later"
    assert later.state is WAITING
    assert ledger.settle([entry], [WRITTEN]) == ["later"]


def test_one_deadline_wakes_the_line_behind_it() -> None:
    ledger = make(records=1)
    enter(ledger, now=0.0)
    second = enter(ledger, now=1.0)
    second.room_waiter = "second"
    assert ledger.expire(10.0) == ["second"]
    assert second.state is QUEUED


# --- topics without metadata ---------------------------------------------------------------------


def test_an_unknown_topic_holds_back_only_its_own_records() -> None:
    ledger = make()
    first = submitted(ledger, "unknown")
    ledger.hold([first])
    second = enter(ledger, "unknown")
    other = enter(ledger, "known")
    before = ledger.queued
    assert ledger.take() == [other]
    assert (before, ledger.queued) == (2, 0)
    assert figures(ledger).queued == 2
    third = enter(ledger, "unknown")
    assert ledger.requeue_held()
    assert ledger.take() == [first, second, third]
    assert not ledger.requeue_held()


def test_requeued_records_precede_later_records() -> None:
    ledger = make()
    a = submitted(ledger, "a")
    b = submitted(ledger, "b")
    ledger.hold([b, a])
    later = enter(ledger, "c")
    ledger.requeue_held()
    assert ledger.take() == [b, a, later]


def test_a_topic_is_free_again_when_its_last_held_record_is_cancelled() -> None:
    ledger = make()
    first, second = enter(ledger), enter(ledger)
    ledger.hold(ledger.take())
    ledger.cancel(first)
    third = enter(ledger)
    assert ledger.take() == []
    ledger.cancel(second)
    ledger.cancel(third)
    fourth = enter(ledger)
    assert ledger.take() == [fourth]


def test_an_expired_record_that_is_given_back_frees_its_room() -> None:
    ledger = make(records=1)
    entry = submitted(ledger)
    ledger.expire(10.0)
    later = enter(ledger, now=10.0)
    later.room_waiter = "later"
    assert ledger.hold([entry]) == ["later"]
    assert entry.state is DeliveryState.FAILED
    assert room(ledger) == (1, 1)
    assert not ledger.requeue_held()
    assert not ledger.is_stuck(10.0)


def test_an_abandoned_record_that_is_given_back_is_withdrawn() -> None:
    ledger = make(records=1)
    entry = submitted(ledger)
    ledger.cancel(entry)
    assert figures(ledger).abandoned == 1
    later = enter(ledger)
    later.room_waiter = "later"
    ledger.add_barrier("flush")
    assert ledger.hold([entry]) == ["later", "flush"]
    assert entry.state is DeliveryState.WITHDRAWN
    assert (figures(ledger).withdrawn, figures(ledger).abandoned) == (1, 0)
    assert ledger.take() == [later]


def test_a_record_given_back_after_its_client_was_given_up_frees_no_room_twice() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.end_generation(GONE)
    assert ledger.hold([entry]) == []
    assert room(ledger) == (0, 0)
    assert entry.state is DeliveryState.FAILED
    assert not ledger.requeue_held()


# --- outcomes and their callers ------------------------------------------------------------------


def test_the_first_outcome_stands() -> None:
    ledger = make()
    entry = submitted(ledger)
    entry.waiter = "its caller"
    assert ledger.settle([entry, entry], [WRITTEN, refused(entry)]) == ["its caller"]
    assert ledger.settle([entry], [refused(entry)]) == []
    assert entry.outcome is WRITTEN
    assert (figures(ledger).delivered, figures(ledger).failed) == (1, 0)


def test_the_caller_of_a_group_is_woken_once_by_the_last_outcome() -> None:
    ledger = make()
    entries = [enter(ledger) for _ in range(3)]
    group = Group(3, "their caller")
    for entry in entries:
        entry.group = group
    ledger.take()
    assert ledger.settle(entries[:1], [WRITTEN]) == []
    assert ledger.settle(entries[1:2], [refused(entries[1])]) == []
    assert ledger.settle(entries[2:], [WRITTEN]) == ["their caller"]
    # The caller sees the failure, so it does not count as unawaited.
    assert ledger.take_undelivered() == ([], 0)


def test_a_cancelled_caller_of_a_group_is_not_woken() -> None:
    ledger = make()
    entry = submitted(ledger)
    entry.group = Group(1, None)
    assert ledger.settle([entry], [WRITTEN]) == []


def test_an_unawaited_failure_is_reported_once() -> None:
    ledger = make()
    first, second = enter(ledger), enter(ledger)
    ledger.take()
    errors = [refused(first), refused(second)]
    ledger.settle([first, second], errors)
    assert ledger.take_undelivered() == (errors, 2)
    assert ledger.take_undelivered() == ([], 0)


def test_a_failure_that_is_awaited_later_is_not_reported() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.settle([entry], [refused(entry)])
    ledger.mark_seen(entry)
    ledger.mark_seen(entry)
    assert ledger.take_undelivered() == ([], 0)


@pytest.mark.parametrize("leave", [Ledger.cancel, Ledger.drop_waiter])
def test_the_failure_of_a_caller_that_is_cancelled_as_it_wakes_is_reported(
    leave: Callable[[Ledger, Entry], object],
) -> None:
    ledger = make()
    entry = submitted(ledger)
    entry.waiter = "its caller"
    error = refused(entry)
    assert ledger.settle([entry], [error]) == ["its caller"]
    leave(ledger, entry)
    assert ledger.take_undelivered() == ([error], 1)


def test_a_dropped_waiter_is_not_woken_and_its_failure_is_reported() -> None:
    ledger = make()
    entry = submitted(ledger)
    entry.waiter = "its caller"
    ledger.drop_waiter(entry)
    assert figures(ledger).abandoned == 0
    error = refused(entry)
    assert ledger.settle([entry], [error]) == []
    assert ledger.take_undelivered() == ([error], 1)


def test_failures_beyond_the_limit_are_only_counted() -> None:
    ledger = make(records=KEPT_FAILURES + 3, size=KEPT_FAILURES + 3)
    entries = [enter(ledger) for _ in range(KEPT_FAILURES + 3)]
    ledger.take()
    errors = [refused(entry) for entry in entries]
    ledger.settle(entries, errors)
    # One failure that the ledger keeps, and one that it only counts.
    ledger.mark_seen(entries[0])
    ledger.mark_seen(entries[-1])
    told, count = ledger.take_undelivered()
    assert told == errors[1:KEPT_FAILURES]
    assert count == KEPT_FAILURES + 1


def test_awaiting_a_reported_failure_hides_no_other() -> None:
    ledger = make(kept_failures=1)
    entries = [enter(ledger) for _ in range(3)]
    ledger.take()
    ledger.settle(entries[:1], [refused(entries[0])])
    assert ledger.take_undelivered()[1] == 1
    ledger.settle(entries[1:], [refused(entry) for entry in entries[1:]])
    ledger.mark_seen(entries[0])
    assert ledger.take_undelivered()[1] == 2


# --- callers that give up ------------------------------------------------------------------------


def test_a_second_cancellation_changes_nothing() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.cancel(entry)
    ledger.cancel(entry)
    assert figures(ledger).abandoned == 1


def test_cancelling_a_withdrawn_record_changes_nothing() -> None:
    ledger = make()
    entry = enter(ledger)
    ledger.cancel(entry)
    ledger.cancel(entry)
    assert (figures(ledger).withdrawn, figures(ledger).abandoned) == (1, 0)


def test_a_second_cancellation_counts_no_failure_twice() -> None:
    ledger = make(kept_failures=0)
    entry = submitted(ledger)
    entry.waiter = "its caller"
    ledger.settle([entry], [refused(entry)])
    ledger.cancel(entry)
    ledger.cancel(entry)
    assert ledger.take_undelivered() == ([], 1)


def test_only_submitted_records_are_abandoned() -> None:
    ledger = make(records=1)
    entry = waiting(ledger)
    entry.waiter = "its caller"
    # Both records fail unsent. The caller of one is cancelled before it wakes up.
    ledger.expire(10.0)
    ledger.cancel(entry)
    assert figures(ledger).abandoned == 0


def test_an_acknowledged_record_of_a_cancelled_caller_is_abandoned_and_delivered() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.settle([entry], [WRITTEN])
    ledger.cancel(entry)
    assert (figures(ledger).abandoned, figures(ledger).delivered) == (1, 1)
    assert ledger.take_undelivered() == ([], 0)


# --- flush ---------------------------------------------------------------------------------------


def test_flush_waits_only_for_records_accepted_before() -> None:
    ledger = make()
    assert not ledger.add_barrier("nothing to wait for")
    before = submitted(ledger)
    assert ledger.add_barrier("first")
    assert ledger.add_barrier("second")
    after = submitted(ledger)
    assert ledger.add_barrier("third")
    assert ledger.settle([after], [WRITTEN]) == []
    ledger.drop_barrier("second")
    assert ledger.settle([before], [WRITTEN]) == ["first", "third"]
    assert ledger.is_idle


def test_flush_ends_when_the_last_record_is_withdrawn() -> None:
    ledger = make()
    entry = enter(ledger)
    ledger.add_barrier("flush")
    assert ledger.cancel(entry) == ["flush"]


def test_flush_ends_at_the_deadline_of_the_last_record() -> None:
    ledger = make()
    submitted(ledger)
    ledger.add_barrier("flush")
    assert ledger.expire(10.0) == ["flush"]


@pytest.mark.parametrize("end", ["drain", "stop"])
def test_flush_ends_when_the_group_of_the_last_record_stops(end: str) -> None:
    ledger = make(records=1)
    group = Group(2, "their caller", stop_on_error=True)
    for _ in range(2):
        entry = enter(ledger)
        entry.group = group
        group.members.append(entry)
    assert [one.state for one in group.members] == [DeliveryState.QUEUED, DeliveryState.WAITING]
    ledger.add_barrier("flush")
    woken = ledger.drain() if end == "drain" else ledger.stop_group(group)
    assert woken == ["their caller", "flush"]


def test_dropping_a_passed_barrier_does_nothing() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.add_barrier("flush")
    assert ledger.settle([entry], [WRITTEN]) == ["flush"]
    later = submitted(ledger)
    ledger.add_barrier("another")
    ledger.drop_barrier("flush")
    assert ledger.settle([later], [WRITTEN]) == ["another"]


# --- clients that are given up -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "size", "late", "stuck"),
    [
        (4, 1000, [1], False),
        (4, 1000, [1, 1], True),
        (5, 1000, [1, 1], False),
        (1, 1000, [1], True),
        (100, 10, [4], False),
        (100, 10, [5], True),
        (100, 10, [2, 3], True),
    ],
)
def test_a_client_is_stuck_when_late_records_hold_half_of_all_room(
    records: int, size: int, late: list[int], stuck: bool
) -> None:
    ledger = make(records=records, size=size)
    assert not ledger.is_stuck(10.0)
    entries = [enter(ledger, size=one) for one in late]
    ledger.take()
    assert not ledger.is_stuck(10.0)
    ledger.expire(10.0)
    # The client has some time to report them.
    assert not ledger.is_stuck(10.0 + LATENESS - 0.1)
    assert (ledger.next_deadline(10.0) == 10.0 + LATENESS) == stuck
    assert ledger.is_stuck(10.0 + LATENESS) == stuck
    ledger.settle(entries, [WRITTEN] * len(entries))
    assert not ledger.is_stuck(10.0 + LATENESS)


def test_late_bytes_no_longer_count_after_their_outcome() -> None:
    ledger = make(size=100)
    first = submitted(ledger, size=40)
    ledger.expire(10.0)
    ledger.settle([first], [WRITTEN])
    submitted(ledger, size=40, now=10.0)
    ledger.expire(20.0)
    assert not ledger.is_stuck(20.0 + LATENESS)


def test_late_records_larger_than_estimated_count_with_their_true_size() -> None:
    ledger = make(records=100, size=10)
    entry = submitted(ledger, size=1)
    ledger.expire(10.0)
    assert not ledger.is_stuck(10.0 + LATENESS)
    ledger.resize([(entry, 5)])
    assert ledger.is_stuck(10.0 + LATENESS)


def test_when_a_client_is_given_up_submitted_records_fail_and_queued_records_stay() -> None:
    ledger = make()
    sent = submitted(ledger)
    sent.waiter = "its caller"
    queued = enter(ledger)
    assert ledger.end_generation(GONE) == ["its caller"]
    assert isinstance(sent.outcome, DeliveryError)
    assert not isinstance(sent.outcome, DeliveryTimeout)
    assert str(sent.outcome) == (
        "the client was given up before the record was acknowledged: the driver is gone; "
        "it may be written nevertheless"
    )
    assert sent.outcome.persistence is Persistence.POSSIBLY_PERSISTED
    assert sent.outcome.__cause__ is GONE
    assert room(ledger) == (1, 1)
    assert ledger.take() == [queued]


def test_giving_up_a_client_frees_the_room_of_its_late_records() -> None:
    ledger = make(records=1)
    submitted(ledger)
    ledger.expire(10.0)
    later = enter(ledger, now=10.0)
    later.room_waiter = "later"
    before = ledger.is_stuck(10.0 + LATENESS)
    assert ledger.end_generation(GONE) == ["later"]
    assert (before, ledger.is_stuck(10.0 + LATENESS)) == (True, False)
    assert room(ledger) == (1, 1)


def test_a_client_that_delivers_nothing_for_a_while_after_a_deadline_is_stuck() -> None:
    ledger = make(records=100)
    submitted(ledger)
    ledger.expire(10.0)
    assert ledger.next_deadline(10.0) == min(20.0, 10.0 + PATIENCE)
    assert not ledger.is_stuck(10.0 + PATIENCE - 0.1)
    assert ledger.is_stuck(10.0 + PATIENCE)
    # One check is enough: the next deadline is later, however long the client takes to close.
    ledger.expire(10.0 + PATIENCE)
    assert ledger.next_deadline(10.0 + PATIENCE) > 10.0 + PATIENCE


def test_a_client_that_reports_late_records_is_not_stuck() -> None:
    """This holds even if it delivers nothing and always has a record past its deadline."""
    ledger = make(records=20)
    entries: list[Entry] = []
    for second in range(60):
        now = float(second)
        ledger.expire(now)
        assert not ledger.is_stuck(now)
        if second >= 12:
            first = entries.pop(0)
            ledger.settle([first], [refused(first)])
        entries.append(submitted(ledger, now=now))


def test_a_client_that_goes_on_delivering_is_not_stuck() -> None:
    ledger = make(records=100)
    submitted(ledger)
    other = submitted(ledger, now=5.0)
    ledger.expire(10.0)
    ledger.settle([other], [WRITTEN])
    ledger.expire(10.0 + PATIENCE)
    assert not ledger.is_stuck(10.0 + PATIENCE)
    ledger.expire(10.0 + 2 * PATIENCE)
    assert ledger.is_stuck(10.0 + 2 * PATIENCE)


# --- the end -------------------------------------------------------------------------------------


def test_draining_delivers_accepted_records_and_refuses_the_rest() -> None:
    ledger = make(records=1)
    accepted = enter(ledger)
    in_line = enter(ledger)
    in_line.room_waiter = "in line"
    assert ledger.drain() == ["in line"]
    assert isinstance(in_line.outcome, DeliveryError)
    assert str(in_line.outcome) == "the producer was closed while the record waited for room"
    assert in_line.outcome.persistence is Persistence.NOT_PERSISTED
    assert ledger.drain() == []
    with pytest.raises(ProducerClosed, match="the producer is closed"):
        enter(ledger)
    assert ledger.take() == [accepted]
    ledger.settle([accepted], [WRITTEN])
    assert accepted.outcome is WRITTEN


def break_(ledger: Ledger) -> list[object]:
    return ledger.mark_broken(GONE)


@pytest.mark.parametrize(
    ("end", "says", "cause"),
    [
        (break_, "the producer broke: the driver is gone", GONE),
        (Ledger.close, "the producer was closed before the record was acknowledged", None),
    ],
)
def test_the_last_error_of_each_record_says_whether_it_may_be_written(
    end: Callable[[Ledger], list[object]], says: str, cause: BaseException | None
) -> None:
    ledger = make(records=3)
    held = _held_back(ledger)
    sent = submitted(ledger, "b")
    queued = enter(ledger)
    in_line = enter(ledger)
    callers: list[tuple[Entry, object]] = [
        (held, "held"),
        (sent, "sent"),
        (queued, "queued"),
        (in_line, "in line"),
    ]
    for entry, caller in callers:
        entry.waiter = caller
    ledger.add_barrier("flush")
    assert set(end(ledger)) == {"held", "sent", "queued", "in line", "flush"}
    for entry in (held, queued):
        assert isinstance(entry.outcome, DeliveryError)
        assert str(entry.outcome) == f"{says}; it was not sent"
        assert entry.outcome.persistence is Persistence.NOT_PERSISTED
        assert entry.outcome.__cause__ is cause
    assert isinstance(in_line.outcome, DeliveryError)
    assert in_line.outcome.persistence is Persistence.NOT_PERSISTED
    assert isinstance(sent.outcome, DeliveryError)
    assert str(sent.outcome) == f"{says}; it may be written nevertheless"
    assert sent.outcome.persistence is Persistence.POSSIBLY_PERSISTED
    assert sent.outcome.__cause__ is cause
    assert ledger.take() == []
    assert ledger.is_idle
    assert end(ledger) == []


def test_the_error_of_a_broken_producer_has_the_cause() -> None:
    ledger = make()
    ledger.mark_broken(GONE)
    ledger.mark_broken(RuntimeError("something else"))
    with pytest.raises(ProducerBroken, match="can't send any more: the driver is gone") as caught:
        enter(ledger)
    assert caught.value.__cause__ is GONE
    ledger.drain()
    assert ledger.state is ProducerState.BROKEN
    ledger.close()
    with pytest.raises(ProducerClosed):
        enter(ledger)


def test_a_closed_producer_does_not_break() -> None:
    ledger = make()
    ledger.close()
    assert ledger.mark_broken(GONE) == []
    assert ledger.state is ProducerState.CLOSED
    assert ledger.broken_by is None


def test_an_outcome_after_the_end_frees_the_room_but_does_not_replace_the_error() -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.close()
    error = entry.outcome
    ledger.settle([entry], [WRITTEN])
    assert entry.outcome is error
    assert room(ledger) == (0, 0)


def test_a_caller_is_cancelled_after_its_record_failed_unsent() -> None:
    """The failure counts as unawaited. The record is not abandoned, because it was never sent."""
    ledger = make()
    entry = enter(ledger)
    entry.waiter = waiter = object()
    assert ledger.fail_unsubmitted("it was not sent", GONE) == [waiter]
    assert ledger.cancel(entry) == []
    assert ledger.take_undelivered() == ([entry.outcome], 1)
    figures = ledger.statistics(
        is_connected=True, generations=1, hand_overs=0, wake_ups=0, client={}
    )
    assert (figures.failed, figures.abandoned) == (1, 0)


@pytest.mark.parametrize(
    ("sizes", "entered", "looked_at"), [([1] * 5, 3, 3), ([40] * 3, 2, 3), ([50] * 3, 2, 3)]
)
def test_enter_many_stops_at_the_first_record_without_room(
    sizes: list[int], entered: int, looked_at: int
) -> None:
    """A long list that waits for room is checked once, not again for each free place."""
    ledger = make(records=3, size=100)
    seen: list[int] = []

    def records() -> Iterator[tuple[ProducerRecord[Any, Any], int]]:
        for size in sizes:
            seen.append(size)
            yield ProducerRecord("a", b"x"), size

    assert len(ledger.enter_many(records(), 0.0, Group(9, None))) == entered
    assert len(seen) == looked_at


# --- groups that stop ----------------------------------------------------------------------------


def stopping(ledger: Ledger, *, given: int, held: bool = False) -> tuple[Group, list[Entry]]:
    """Return a group with ``stop_on_error`` and its three entries.

    The driver has the first `given` entries. The others are queued, held back, or wait for room.
    """
    group = Group(3, "their caller", stop_on_error=True)
    entries: list[Entry] = []
    for number in range(3):
        entries.append(enter(ledger))
        if number < given:
            ledger.take()
    for entry in entries:
        entry.group = group
    group.members += entries
    if held:
        ledger.take()
        ledger.hold(entries[given:])
    return group, entries


ENDS: dict[str, Callable[[Ledger], Iterable[object]]] = {
    "expire": lambda ledger: ledger.expire(10.0),
    "break": lambda ledger: ledger.mark_broken(GONE),
    "close": lambda ledger: ledger.close(),
    "abort": lambda ledger: ledger.fail_unsubmitted("no", GONE),
    "end of the client, then close": lambda ledger: [
        *ledger.end_generation(GONE),
        *ledger.close(),
    ],
    "drain, then close": lambda ledger: [*ledger.drain(), *ledger.close()],
}


@pytest.mark.parametrize("held", [False, True], ids=["", "held"])
@pytest.mark.parametrize("room_for", [10, 2, 1])
@pytest.mark.parametrize("given", [0, 1, 3])
@pytest.mark.parametrize("end", ENDS)
def test_all_entries_of_a_stopping_group_end_in_one_call(
    end: str, given: int, room_for: int, held: bool
) -> None:
    """The first failure stops the group while the same call ends its other entries."""
    ledger = make(records=room_for)
    group, entries = stopping(ledger, given=min(given, room_for), held=held and room_for == 10)
    sent = [entry for entry in entries if entry.state is SUBMITTED]
    woken = [*ENDS[end](ledger)]
    if end == "abort":
        woken += ledger.settle(sent, [refused(entry) for entry in sent])
    assert [entry.state for entry in entries] == [DeliveryState.FAILED] * 3
    assert woken.count("their caller") == 1
    assert group.remaining == 0
    assert ledger.is_idle
    assert figures(ledger).waiting == figures(ledger).queued == 0
    ledger.settle(sent, [refused(entry) for entry in sent])  # late ones kept their room
    assert room(ledger) == (0, 0)


def test_a_record_given_back_after_its_group_stopped_is_not_sent() -> None:
    ledger = make()
    group, entries = stopping(ledger, given=3)
    ledger.settle(entries[:1], [refused(entries[0])])
    assert ledger.hold(entries[1:]) == ["their caller"]
    assert group.remaining == 0
    assert [entry.state for entry in entries] == [DeliveryState.FAILED] * 3
    for entry in entries[1:]:
        assert isinstance(entry.outcome, DeliveryError)
        assert entry.outcome.persistence is Persistence.NOT_PERSISTED
        assert "stop_on_error" in str(entry.outcome)
    assert room(ledger) == (0, 0)
    assert not ledger.requeue_held()


# --- faults of drivers ---------------------------------------------------------------------------


def test_fewer_outcomes_than_records_change_nothing() -> None:
    ledger = make()
    entries = [submitted(ledger) for _ in range(3)]
    with pytest.raises(ValueError, match="2 outcomes were given for 3 records"):
        ledger.settle(entries, [WRITTEN, WRITTEN])
    assert [entry.state for entry in entries] == [SUBMITTED] * 3
    assert room(ledger) == (3, 3)
    ledger.mark_broken(GONE)
    assert all(isinstance(entry.outcome, DeliveryError) for entry in entries)


class OwnMetadata(RecordMetadata):
    """The metadata of a driver with its own class."""


def test_a_subclass_of_the_metadata_is_converted() -> None:
    ledger = make()
    entry = submitted(ledger)
    entry.waiter = "its caller"
    assert ledger.settle([entry], [OwnMetadata(*WRITTEN)]) == ["its caller"]
    assert entry.outcome == WRITTEN
    assert type(entry.outcome) is RecordMetadata
    assert figures(ledger).delivered == 1
    assert room(ledger) == (0, 0)


@pytest.mark.parametrize("outcome", [None, ("a", 0, 0), ZeroDivisionError("no")], ids=str)
def test_an_invalid_outcome_becomes_a_failure(outcome: Any) -> None:
    ledger = make()
    entry = submitted(ledger)
    ledger.settle([entry], [outcome])
    assert isinstance(entry.outcome, DeliveryError)
    assert entry.outcome.persistence is Persistence.POSSIBLY_PERSISTED
    assert entry.outcome.record is entry.record
    assert f"the driver reported {type(outcome).__name__} as the outcome" in str(entry.outcome)
    assert entry.outcome.__cause__ is (outcome if isinstance(outcome, Exception) else None)
    assert ledger.is_idle


# --- several callers of one delivery -------------------------------------------------------------


@pytest.mark.parametrize("first", ["mark_seen", "drop_waiter"])
def test_a_failure_that_one_of_two_callers_saw_is_not_reported(first: str) -> None:
    """One caller sees the failure and the other one stops waiting, in either order."""
    ledger = make()
    entry = submitted(ledger)
    entry.waiter = ["one", "the other"]
    ledger.settle([entry], [refused(entry)])
    for call in (first, "drop_waiter" if first == "mark_seen" else "mark_seen"):
        getattr(ledger, call)(entry)
    assert ledger.take_undelivered() == ([], 0)


# --- waiting for everything ----------------------------------------------------------------------


def test_waiting_for_everything_includes_records_without_room() -> None:
    ledger = make(records=1)
    first, late = submitted(ledger), enter(ledger)
    assert ledger.add_barrier("all", include_waiting=True)
    assert ledger.add_barrier("first")
    assert late.state is WAITING
    assert ledger.settle([first], [WRITTEN]) == ["first"]
    assert ledger.take() == [late]
    assert ledger.settle([late], [WRITTEN]) == ["all"]
    assert not ledger.add_barrier("all", include_waiting=True)


def test_waiting_for_everything_goes_on_while_a_late_record_has_the_room() -> None:
    """Each accepted record has an outcome, but one record still waits for room."""
    ledger = make(records=1)
    first = submitted(ledger)
    second = enter(ledger, now=1.0)
    ledger.expire(10.0)
    assert first.outcome is not None
    assert ledger.is_idle
    assert second.state is WAITING
    assert not ledger.add_barrier("accepted")
    assert ledger.add_barrier("all", include_waiting=True)
    assert ledger.expire(10.5) == []
    assert ledger.expire(11.0) == ["all"]
    assert second.outcome is not None
