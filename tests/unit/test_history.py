"""The history checker compares a history with a log, both made by a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryTimeout,
    Persistence,
    ProducerRecord,
    RecordMetadata,
)
from tests.support.history import (
    ABANDONED,
    NEVER_ACCEPTED,
    WITHDRAWN,
    Acknowledged,
    Ended,
    Failed,
    Fault,
    FaultKind,
    History,
    Logged,
    Outcome,
    ReadError,
    Report,
    Sent,
    check,
    read_topic,
)

TIMEOUT = 10.0

REFUSED = Failed("RecordRejected", Persistence.NOT_PERSISTED)

LATE = Failed("DeliveryTimeout", Persistence.POSSIBLY_PERSISTED)

Log = list[Logged]


def run(*outcomes: Outcome | None, partition: int = 0) -> tuple[History, Log]:
    """A history of records with these outcomes, and the log of the acknowledged records."""
    history, log = History(), Log()
    for number, outcome in enumerate(outcomes):
        sent = Sent(f"r{number}", number, number / 10, "t", partition, b"k", b"r%d value" % number)
        history.add(sent)
        if outcome is not None:
            history.ended[sent.id].append(Ended(sent.at + 1, outcome))
        if isinstance(outcome, Acknowledged):
            log.append(logged(sent, outcome.offset or 0))
    return history, log


def logged(sent: Sent, offset: int) -> Logged:
    return Logged(
        sent.topic, sent.partition or 0, offset, sent.key, sent.value, sent.headers, (1, 0, offset)
    )


def acknowledged(count: int) -> tuple[History, Log]:
    return run(*(Acknowledged(0, offset) for offset in range(count)))


def judge(history: History, log: Log, *, repeats: bool = False) -> Report:
    return check(history, log, delivery_timeout=TIMEOUT, grace=1, repeats=repeats)


def kinds(report: Report) -> list[tuple[FaultKind, str]]:
    return [(fault.kind, fault.record) for fault in report.faults]


def test_a_correct_log_has_no_faults() -> None:
    history, log = run(
        Acknowledged(0, 0),
        REFUSED,
        LATE,
        WITHDRAWN,
        Acknowledged(0, 1),
        ABANDONED,
        NEVER_ACCEPTED,
        Failed("DeliveryTimeout", Persistence.POSSIBLY_PERSISTED),
    )
    log.append(logged(history.sent["r5"], 2))
    log.append(logged(history.sent["r7"], 3))
    report = check(history, log, delivery_timeout=TIMEOUT, time_to_exit=0.25)
    assert report == Report(
        sent=8,
        acknowledged=2,
        failed={
            "DeliveryTimeout, possibly persisted": 2,
            "RecordRejected, not persisted": 1,
        },
        withdrawn=1,
        abandoned=1,
        never_accepted=1,
        lost=0,
        doubled=0,
        repeated=0,
        reordered=0,
        misreported=0,
        damaged=0,
        longest_wait=1.0,
        time_to_exit=0.25,
        faults=(),
    )
    assert report.failures == 3
    assert "acknowledged 2" in str(report)


def test_a_lost_record() -> None:
    history, log = acknowledged(3)
    del log[1]
    report = judge(history, log)
    assert kinds(report) == [(FaultKind.LOST, "r1")]
    assert report.lost == 1


def test_a_persisted_record_that_is_not_in_the_log_is_lost() -> None:
    history, log = run(Failed("DeliveryError", Persistence.PERSISTED))
    assert kinds(judge(history, log)) == [(FaultKind.LOST, "r0")]
    assert kinds(judge(history, [logged(history.sent["r0"], 0)])) == []


@pytest.mark.parametrize("outcome", [Acknowledged(0, 0), LATE, ABANDONED])
def test_a_doubled_record(outcome: Outcome) -> None:
    history, _ = run(outcome)
    sent = history.sent["r0"]
    report = judge(history, [logged(sent, 0), logged(sent, 1)])
    assert kinds(report) == [(FaultKind.DOUBLED, "r0")]
    assert report.doubled == 1
    assert report.repeated == 0


def test_a_repetition_that_a_broker_should_drop_is_counted_separately() -> None:
    history, log = acknowledged(2)
    log.append(dataclasses.replace(log[1], offset=2))
    assert kinds(judge(history, log)) == [(FaultKind.DOUBLED, "r1")]
    report = judge(history, log, repeats=True)
    assert kinds(report) == []
    assert (report.doubled, report.repeated) == (0, 1)
    # With another sequence number, it is a duplicate.
    log.append(dataclasses.replace(log[1], offset=3, sequence=(1, 0, 7)))
    report = judge(history, log, repeats=True)
    assert kinds(report) == [(FaultKind.DOUBLED, "r1")]
    assert (report.doubled, report.repeated) == (1, 1)


def test_reordered_records() -> None:
    history, log = run(LATE, ABANDONED, LATE)
    log = [logged(history.sent[id_], n) for n, id_ in enumerate(["r0", "r2", "r1"])]
    report = judge(history, log)
    assert kinds(report) == [(FaultKind.REORDERED, "r1")]
    assert report.reordered == 1
    assert "behind r2" in report.faults[0].detail


def test_the_order_is_checked_within_each_partition_and_line() -> None:
    history = History()
    for number, (partition, line) in enumerate([(0, "a"), (1, "a"), (0, "b")]):
        id_ = f"r{number}"
        history.add(Sent(id_, number, 0.0, "t", partition, None, id_.encode(), (), line))
        history.ended[id_].append(Ended(0.0, ABANDONED))
    log = [logged(history.sent[id_], n) for n, id_ in enumerate(["r1", "r2", "r0"])]
    assert judge(history, log).faults == ()


@pytest.mark.parametrize("said", [Acknowledged(1, 0), Acknowledged(0, 1)])
def test_a_record_that_is_not_where_its_metadata_says(said: Acknowledged) -> None:
    history, _ = run(said)
    report = judge(history, [logged(history.sent["r0"], 0)])
    assert kinds(report) == [(FaultKind.ELSEWHERE, "r0")]
    assert report.misreported == 1


def test_a_record_in_another_partition_than_it_was_sent_to() -> None:
    history, log = run(Acknowledged(1, 0), partition=0)
    assert kinds(judge(history, [dataclasses.replace(log[0], partition=1)])) == [
        (FaultKind.ELSEWHERE, "r0")
    ]


@pytest.mark.parametrize("outcome", [REFUSED, WITHDRAWN, NEVER_ACCEPTED])
def test_a_refused_record_that_is_in_the_log(outcome: Outcome) -> None:
    history, _ = run(outcome)
    report = judge(history, [logged(history.sent["r0"], 0)])
    assert kinds(report) == [(FaultKind.THERE_ALL_THE_SAME, "r0")]
    assert report.misreported == 1


def test_a_record_without_an_outcome() -> None:
    history, log = run(Acknowledged(0, 0), None)
    assert kinds(judge(history, log)) == [(FaultKind.NO_OUTCOME, "r1")]
    killed = check(history, log, delivery_timeout=TIMEOUT, killed=True)
    assert killed.faults == ()


def test_a_record_with_two_outcomes() -> None:
    history, log = acknowledged(1)
    history.ended["r0"].append(history.ended["r0"][0])
    assert kinds(judge(history, log)) == [(FaultKind.TWO_OUTCOMES, "r0")]


def test_an_outcome_that_is_too_late() -> None:
    history, log = acknowledged(1)
    history.ended["r0"] = [Ended(TIMEOUT + 1.001, Acknowledged(0, 0))]
    report = judge(history, log)
    assert kinds(report) == [(FaultKind.LATE, "r0")]
    assert report.longest_wait == TIMEOUT + 1.001
    history.ended["r0"] = [Ended(TIMEOUT + 0.999, Acknowledged(0, 0))]
    assert judge(history, log).faults == ()


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k", b"r1 other", ()),
        (None, b"r1 value", ()),
        (b"k", b"r1 value", (("more", b""),)),
        (b"k", b"nothing of it is left", (("id", b"r1"),)),
    ],
)
def test_a_changed_record(
    key: bytes | None, value: bytes, headers: tuple[tuple[str, bytes], ...]
) -> None:
    history, log = acknowledged(3)
    log[1] = dataclasses.replace(log[1], key=key, value=value, headers=headers)
    report = judge(history, log)
    assert kinds(report) == [(FaultKind.CHANGED, "r1")]
    assert report.damaged == 1


@pytest.mark.parametrize("value", [b"somebody else's", None, b""])
def test_a_foreign_record(value: bytes | None) -> None:
    history, log = acknowledged(1)
    log.append(Logged("t", 0, 1, b"k", value))
    report = judge(history, log)
    assert [fault.kind for fault in report.faults] == [FaultKind.FOREIGN]
    assert report.damaged == 1


def test_a_record_in_another_topic_than_it_was_sent_to() -> None:
    history, log = acknowledged(2)
    log[1] = dataclasses.replace(log[1], topic="other")
    assert sorted(fault.kind.name for fault in judge(history, log).faults) == ["FOREIGN", "LOST"]


def test_without_an_offset_only_the_partition_is_checked() -> None:
    """A broker answers without an offset if it wrote the record long ago."""
    history, _ = run(Acknowledged(0, None))
    place = logged(history.sent["r0"], 5)
    assert judge(history, [place]).faults == ()
    assert kinds(judge(history, [])) == [(FaultKind.LOST, "r0")]
    history.ended["r0"] = [Ended(0.0, Acknowledged(1, None))]
    assert kinds(judge(history, [place])) == [(FaultKind.ELSEWHERE, "r0")]


def test_without_answers_of_brokers_an_acknowledged_record_may_be_missing() -> None:
    history, log = run(Acknowledged(0, None), Acknowledged(0, None))
    unanswered = check(history, log[:1], delivery_timeout=TIMEOUT, answered=False)
    assert unanswered.faults == ()
    doubled = [log[0], dataclasses.replace(log[0], offset=1)]
    assert check(history, doubled, delivery_timeout=TIMEOUT, answered=False).doubled == 1


def test_a_concluded_acknowledgement_may_be_wrong() -> None:
    history, log = run(Acknowledged(0, None), Acknowledged(0, 1))
    assert check(history, log[1:], delivery_timeout=TIMEOUT).lost == 1
    assert check(history, log[1:], delivery_timeout=TIMEOUT, concludes=True).faults == ()
    assert check(history, log[:1], delivery_timeout=TIMEOUT, concludes=True).lost == 1


def in_transaction(committed: bool | None) -> tuple[History, Log]:
    history, log = acknowledged(3)
    history.sent = {
        id_: dataclasses.replace(sent, transaction="x") for id_, sent in history.sent.items()
    }
    history.transaction("x", committed)
    return history, log


def of_committed(history: History, log: Log) -> list[FaultKind]:
    report = check(history, log, delivery_timeout=TIMEOUT, isolation="read_committed")
    return [fault.kind for fault in report.faults]


def test_records_of_an_aborted_transaction_must_not_be_read() -> None:
    history, log = in_transaction(False)
    assert of_committed(history, []) == []
    assert of_committed(history, log[:1]) == [FaultKind.ABORTED]
    # A reader of uncommitted records gets them.
    assert judge(history, log).faults == ()
    assert judge(history, log[:2]).lost == 1


def test_records_of_a_committed_transaction_must_be_read() -> None:
    history, log = in_transaction(True)
    assert of_committed(history, log) == []
    assert of_committed(history, log[:2]) == [FaultKind.LOST]


def test_a_transaction_with_unknown_outcome_is_written_as_a_whole_or_not_at_all() -> None:
    history, log = in_transaction(None)
    assert of_committed(history, log) == []
    assert of_committed(history, []) == []
    assert of_committed(history, log[:2]) == [FaultKind.TORN]


def test_identical_records_cannot_be_checked() -> None:
    history, _ = acknowledged(1)
    history.add(dataclasses.replace(history.sent["r0"], id="r1"))
    with pytest.raises(ValueError, match="r1 is the same as r0"):
        judge(history, [])
    with pytest.raises(ValueError, match="two records 'r1'"):
        history.add(history.sent["r1"])


def test_a_report_shows_the_first_faults() -> None:
    history, _ = acknowledged(25)
    shown = str(judge(history, []))
    assert "r0: acknowledged and not there: acknowledged at 0/0" in shown
    assert "and 5 more" in shown
    assert str(Fault(FaultKind.LATE, "r", "why")) == "r: its outcome came too late: why"


@st.composite
def right(draw: st.DrawFn) -> tuple[History, Log]:
    """Random records with random outcomes, and a log that agrees with them."""
    history = History()
    ends: dict[int, int] = {}
    log: Log = []
    for number in range(draw(st.integers(1, 30))):
        id_ = f"r{number}"
        partition = draw(st.integers(0, 2))
        sent = Sent(
            id_,
            number,
            number / 7,
            "t",
            partition if draw(st.booleans()) else None,
            draw(st.none() | st.binary(max_size=3)),
            id_.encode() + b" " + draw(st.binary(max_size=5)),
            tuple(draw(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=2))))),
        )
        history.add(sent)
        offset = ends.get(partition, 0) + draw(st.integers(0, 2))
        outcomes: list[Outcome] = [
            Acknowledged(partition, offset),
            REFUSED,
            LATE,
            WITHDRAWN,
            ABANDONED,
        ]
        what = draw(st.sampled_from(outcomes))
        history.ended[id_].append(Ended(sent.at + draw(st.floats(0, TIMEOUT)), what))
        if isinstance(what, Acknowledged) or (what in (LATE, ABANDONED) and draw(st.booleans())):
            ends[partition] = offset + 1
            place = dataclasses.replace(logged(sent, offset), partition=partition)
            log.append(place)
    return history, draw(st.permutations(log))


@given(right())
def test_any_correct_log_has_no_faults(made: tuple[History, Log]) -> None:
    history, log = made
    report = judge(history, log)
    assert report.faults == ()
    assert report.sent == len(history.sent)
    assert (
        report.acknowledged + report.failures + report.withdrawn + report.abandoned == report.sent
    )


@given(right(), st.data())
def test_any_change_of_a_log_is_a_fault(made: tuple[History, Log], data: st.DataObject) -> None:
    history, log = made
    acknowledged = [one for one in log if isinstance(history.outcome(_id(one)), Acknowledged)]
    absent = [sent for id_, sent in history.sent.items() if not any(_id(one) == id_ for one in log)]
    refused = [sent for sent in absent if history.outcome(sent.id) in (REFUSED, WITHDRAWN)]
    ways: list[str] = ["foreign"]
    ways += ["lost", "moved"] if acknowledged else []
    ways += ["doubled", "changed"] if log else []
    ways += ["there"] if refused else []
    pairs = [
        (a, b)
        for a in acknowledged
        for b in acknowledged
        if a.partition == b.partition and a.offset < b.offset
    ]
    ways += ["swapped"] if pairs else []
    way = data.draw(st.sampled_from(ways))
    free = 1 + max((one.offset for one in log), default=0)
    if way == "foreign":
        wrong, kind = [*log, Logged("t", 0, free, None, b"?")], FaultKind.FOREIGN
    elif way in {"lost", "moved"}:
        chosen = data.draw(st.sampled_from(acknowledged))
        wrong, kind = [one for one in log if one is not chosen], FaultKind.LOST
        if way == "moved":
            wrong.append(dataclasses.replace(chosen, offset=free))
            kind = FaultKind.ELSEWHERE
    elif way == "doubled":
        chosen = data.draw(st.sampled_from(log))
        wrong = [*log, dataclasses.replace(chosen, offset=free)]
        kind = FaultKind.DOUBLED
    elif way == "changed":
        chosen = data.draw(st.sampled_from(log))
        wrong = [one for one in log if one is not chosen]
        wrong.append(dataclasses.replace(chosen, headers=(*chosen.headers, ("c", b""))))
        kind = FaultKind.CHANGED
    elif way == "there":
        sent = data.draw(st.sampled_from(refused))
        wrong, kind = [*log, logged(sent, free)], FaultKind.THERE_ALL_THE_SAME
    else:
        first, second = data.draw(st.sampled_from(pairs))
        wrong = [one for one in log if one not in (first, second)]
        wrong.append(dataclasses.replace(first, offset=second.offset))
        wrong.append(dataclasses.replace(second, offset=first.offset))
        kind = FaultKind.REORDERED
    assert kind in {fault.kind for fault in judge(history, wrong).faults}


def _id(one: Logged) -> str:
    return (one.value or b"").split(maxsplit=1)[0].decode()


def test_a_journal_restores_the_history(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    history = History(journal)
    record = ProducerRecord("t", b"\x00\xff", None, partition=3, headers=[("h", b"\xfe")])
    history.sending("a", record, line="l", transaction="x")
    history.sending("b", ProducerRecord("t", None, b"key"))
    history.sending("c", ProducerRecord("t", b"c"))
    history.ending("a", RecordMetadata("t", 3, 7, 0, None, 2))
    error = DeliveryTimeout("no", record=record, persistence=Persistence.POSSIBLY_PERSISTED)
    history.ending("b", error)
    history.ending("c", ABANDONED)
    history.transaction("x", None)
    history.close()
    again = History.load(journal)
    assert again.sent == history.sent
    assert again.ended == history.ended
    assert again.transactions == {"x": None}
    assert [again.outcome(id_) for id_ in "abcd"] == [Acknowledged(3, 7), LATE, ABANDONED, None]
    # The writer was killed in the middle of a line.
    content = journal.read_bytes()
    journal.write_bytes(content[:-1])
    assert History.load(journal).transactions == {}


def test_a_topic_that_cannot_be_read_in_time_is_an_error() -> None:
    with pytest.raises(ReadError):
        read_topic("127.0.0.1:1", "t", timeout=0.2)
