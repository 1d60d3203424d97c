"""When the producer polls a client next, on a clock that the test moves."""

from __future__ import annotations

import pytest

from anyio_sendproducer._polling import (
    BUSY_SECONDS,
    EXAMINED,
    EXAMINED_TURNS,
    GATHER_LIMIT,
    LATE_SECONDS,
    POLL_SECONDS,
    QUIET_SECONDS,
    RETURN_SECONDS,
    RETURN_SECONDS_PER_OUTCOME,
    RETURNING,
    SOON_SECONDS,
    NextPoll,
    PollScheduler,
)

NEXT_TURN, LATER, WHEN_READY, AFTER_SUBMIT = NextPoll
LIMIT = 100


class Clock:
    """A clock in seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def scheduler(clock: Clock) -> PollScheduler:
    return PollScheduler(clock)


def submit(scheduler: PollScheduler, count: int) -> None:
    scheduler.submitting(count)
    scheduler.submitted()


def answers_after(
    scheduler: PollScheduler, clock: Clock, seconds: float, *, times: int = 50
) -> None:
    """Submit single records. Each answer takes `seconds`, and the next record follows at once."""
    for _ in range(times):
        submit(scheduler, 1)
        clock.now += seconds
        scheduler.polled(0)
        scheduler.after_poll(outcomes=1, limit=LIMIT)


def test_the_client_is_not_polled_while_nothing_is_in_flight(scheduler: PollScheduler) -> None:
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is AFTER_SUBMIT


def test_at_first_a_thread_waits_for_the_answer(scheduler: PollScheduler) -> None:
    submit(scheduler, 1)
    scheduler.polled(1)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_after_fast_answers_the_pump_polls_in_each_turn(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 1)
    scheduler.polled(1)
    clock.now += POLL_SECONDS * 0.9
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is NEXT_TURN
    clock.now += POLL_SECONDS * 0.2
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_a_second_batch_does_not_extend_the_wait(scheduler: PollScheduler, clock: Clock) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 1)
    clock.now += POLL_SECONDS * 1.1
    submit(scheduler, 1)
    scheduler.polled(2)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_after_late_answers_a_thread_waits(scheduler: PollScheduler, clock: Clock) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    answers_after(scheduler, clock, SOON_SECONDS * 2)
    submit(scheduler, 1)
    scheduler.polled(1)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_fast_answers_soon_outweigh_one_very_late_answer(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    answers_after(scheduler, clock, 60.0, times=1)
    assert scheduler.usual_wait <= LATE_SECONDS
    answers_after(scheduler, clock, SOON_SECONDS / 2, times=5)
    assert scheduler.usual_wait < SOON_SECONDS


def test_the_delay_of_the_event_loop_does_not_count(scheduler: PollScheduler, clock: Clock) -> None:
    """A delay of the event loop does not count as a delay of the client."""
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 1)
    clock.now += SOON_SECONDS / 2
    scheduler.ready(clock.now)
    clock.now += 60.0  # the event loop has something else to do
    scheduler.polled(0)
    scheduler.after_poll(outcomes=1, limit=LIMIT)
    assert scheduler.usual_wait < SOON_SECONDS
    # The time of `ready` counts for this answer only.
    answers_after(scheduler, clock, SOON_SECONDS * 2)
    assert scheduler.usual_wait > SOON_SECONDS


def test_an_event_without_a_record_in_flight_does_not_count(
    scheduler: PollScheduler, clock: Clock
) -> None:
    before = scheduler.usual_wait
    clock.now += 60.0
    assert scheduler.after_poll(outcomes=1, limit=LIMIT) is AFTER_SUBMIT
    assert scheduler.usual_wait == before


def test_records_gather_while_an_answer_is_due_and_the_client_has_more(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, GATHER_LIMIT * 2)
    assert scheduler.should_gather(GATHER_LIMIT - 1)
    assert not scheduler.should_gather(GATHER_LIMIT)
    scheduler.polled(4)
    assert scheduler.should_gather(3)
    assert not scheduler.should_gather(4)


def test_records_stop_gathering_when_the_answer_is_overdue(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 4)
    clock.now += POLL_SECONDS * 1.1
    assert not scheduler.should_gather(1)


def test_gathered_records_get_only_one_more_turn(scheduler: PollScheduler, clock: Clock) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 4)
    assert scheduler.should_gather(1)
    clock.now += POLL_SECONDS * 1.1
    scheduler.polled(4)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is NEXT_TURN
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_gathered_records_are_submitted_in_the_turn_after_the_answer(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    submit(scheduler, 4)
    assert scheduler.should_gather(1)
    scheduler.polled(0)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is NEXT_TURN
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is AFTER_SUBMIT


def open_loop(
    scheduler: PollScheduler, clock: Clock, gap: float, *, count: int = 1, times: int = 50
) -> None:
    """Submit `count` records at a time. Each answer comes before the next records."""
    for _ in range(times):
        submit(scheduler, count)
        clock.now += gap
        scheduler.polled(0)
        scheduler.after_poll(outcomes=count, limit=LIMIT)
        for _ in range(EXAMINED_TURNS):  # no caller sends again in these turns
            scheduler.after_poll(outcomes=0, limit=LIMIT)


def test_the_pump_does_not_poll_in_each_turn_if_callers_do_not_send_again_at_once(
    scheduler: PollScheduler, clock: Clock
) -> None:
    answers_after(scheduler, clock, SOON_SECONDS / 2)
    assert scheduler.returning > RETURNING
    open_loop(scheduler, clock, SOON_SECONDS / 2)
    assert scheduler.returning < RETURNING
    submit(scheduler, 1)
    scheduler.polled(1)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY
    assert not scheduler.should_gather(0)


def test_some_answers_are_examined_even_if_callers_did_not_send_again_at_once(
    scheduler: PollScheduler, clock: Clock
) -> None:
    open_loop(scheduler, clock, SOON_SECONDS / 2)
    decisions: list[NextPoll] = []
    for _ in range(EXAMINED):
        submit(scheduler, 2)
        scheduler.polled(0)
        decisions.append(scheduler.after_poll(outcomes=2, limit=LIMIT))
    assert decisions.count(NEXT_TURN) == 1
    assert decisions.count(AFTER_SUBMIT) == EXAMINED - 1


def test_a_poll_with_the_maximum_of_outcomes_is_followed_by_another(
    scheduler: PollScheduler, clock: Clock
) -> None:
    open_loop(scheduler, clock, SOON_SECONDS * 2)
    decisions: set[NextPoll] = set()
    for outcomes in (LIMIT, LIMIT):
        submit(scheduler, 2 * LIMIT)
        scheduler.polled(LIMIT)
        decisions.add(scheduler.after_poll(outcomes=outcomes, limit=LIMIT))
    assert decisions == {NEXT_TURN}


def test_the_event_loop_polls_later_if_records_go_out_often(
    scheduler: PollScheduler, clock: Clock
) -> None:
    open_loop(scheduler, clock, BUSY_SECONDS * 4, count=8)
    submit(scheduler, 8)
    scheduler.polled(8)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is LATER
    assert scheduler.next_poll() is LATER
    clock.now += QUIET_SECONDS
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is WHEN_READY


def test_the_poll_thread_waits_if_records_go_out_less_often(
    scheduler: PollScheduler, clock: Clock
) -> None:
    open_loop(scheduler, clock, BUSY_SECONDS * 4)
    submit(scheduler, 1)
    assert scheduler.next_poll() is WHEN_READY


@pytest.mark.parametrize(("count", "otherwise"), [(1, WHEN_READY), (7, LATER)])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_reports_of_the_poll_thread_show_whether_callers_send_again_at_once(
    scheduler: PollScheduler, clock: Clock, share: float, count: int, otherwise: NextPoll
) -> None:
    """Several callers take longer than one."""
    submit(scheduler, count)
    for _ in range(50):
        clock.now += SOON_SECONDS / 4
        scheduler.reported(count)
        clock.now += share * (RETURN_SECONDS + count * RETURN_SECONDS_PER_OUTCOME)
        submit(scheduler, count)
    assert (scheduler.returning > RETURNING) is (share < 1)
    assert scheduler.next_poll() is (NEXT_TURN if share < 1 else otherwise)


def test_only_the_first_submission_after_a_report_counts(
    scheduler: PollScheduler, clock: Clock
) -> None:
    submit(scheduler, 1)
    scheduler.reported(1)
    submit(scheduler, 1)
    before = scheduler.returning
    assert before > 0
    clock.now += 60.0
    submit(scheduler, 1)
    assert scheduler.returning == before


def test_a_report_of_too_many_records_leaves_none_in_flight(
    scheduler: PollScheduler,
) -> None:
    submit(scheduler, 1)
    scheduler.reported(2)
    assert scheduler.after_poll(outcomes=0, limit=LIMIT) is AFTER_SUBMIT


def test_callers_may_send_again_after_the_next_turn(scheduler: PollScheduler, clock: Clock) -> None:
    """Trio runs the callers before or after the pump."""
    for number in range(100):
        submit(scheduler, 1)
        clock.now += SOON_SECONDS / 2
        scheduler.polled(0)
        is_examined = scheduler.after_poll(outcomes=1, limit=LIMIT) is NEXT_TURN
        if is_examined and number % 2:
            assert scheduler.after_poll(outcomes=0, limit=LIMIT) is NEXT_TURN
    assert scheduler.returning > RETURNING
