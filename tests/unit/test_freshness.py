"""How old metadata may be when the kafka-python driver decides by them."""

from __future__ import annotations

from anyio_sendproducer.drivers.kafka_python._freshness import MissingPartitions, Refreshes

PATIENCE = 5.0


class Asked:
    """Asks whether a record for partition 2 is refused; a cluster that has two at first."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.missing = MissingPartitions(patience)
        self.partitions: dict[str, set[int]] = {"orders": {0, 1}}
        self.requested = 0.0

    def is_refused(self, now: float) -> bool:
        return self.missing.is_refused("orders", 2, now, self.requested)

    def answer(self, requested: float, now: float, topic: str = "orders") -> None:
        self.requested = requested
        self.missing.answer([topic], self.partitions.get, now, requested)


def test_a_partition_is_refused_by_answers_and_not_by_time() -> None:
    asked = Asked()
    assert not asked.is_refused(100)
    assert not asked.is_refused(104)
    assert not asked.is_refused(108)
    # This was on its way when the question came up.
    asked.answer(99, 108.1)
    assert not asked.is_refused(112)
    asked.answer(112, 112.1)
    assert not asked.is_refused(116)
    assert not asked.is_refused(112.1 + PATIENCE - 0.1)
    assert asked.is_refused(112.1 + PATIENCE)


def test_the_next_record_is_refused_by_the_next_answer() -> None:
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(100, 100.1)
    asked.answer(105, 105.1)
    assert asked.is_refused(105.2)
    # A program may go on sending such records: metadata are requested once a second for them.
    assert asked.is_refused(105.9)
    assert not asked.is_refused(106.1)
    asked.answer(106.1, 106.2)
    assert asked.is_refused(106.3)
    # Not by an answer between two records.
    asked.answer(107, 107.1)
    assert not asked.is_refused(110)
    asked.answer(110, 110.1)
    assert asked.is_refused(110.2)


def test_a_question_that_nobody_repeats_is_not_answered_for_the_next_record() -> None:
    """The caller of the first record was cancelled."""
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(100, 100.1)
    assert not asked.is_refused(120)
    asked.answer(120, 120.1)
    assert asked.is_refused(120.2)


def test_a_partition_that_is_added_is_not_missing_any_more() -> None:
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(100, 100.1)
    asked.partitions["orders"].add(2)
    assert asked.missing
    asked.answer(103, 103.1)
    assert not asked.missing
    # If it disappears, it is waited for anew.
    asked.partitions["orders"].discard(2)
    assert not asked.is_refused(110)
    asked.answer(110, 110.1)
    assert not asked.is_refused(110.2)


def test_answers_about_other_topics_say_nothing() -> None:
    asked = Asked(patience=0)
    assert not asked.is_refused(100)
    asked.answer(100, 100.1, "another")
    assert not asked.is_refused(100.2)
    del asked.partitions["orders"]
    asked.answer(100.2, 100.3)
    assert not asked.is_refused(100.4)
    asked.partitions["orders"] = {0, 1}
    asked.answer(100.4, 100.5)
    assert asked.is_refused(100.5)


def test_what_nobody_asks_about_is_forgotten() -> None:
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(159, 159)
    assert asked.missing
    asked.answer(161, 161)
    assert not asked.missing


def test_partitions_are_new_if_they_were_requested_after_the_question_or_just_before() -> None:
    refreshes = Refreshes()
    assert refreshes.is_new("orders", 100, 99.5)
    assert not refreshes
    assert not refreshes.is_new("orders", 100, 98)
    assert refreshes
    assert not refreshes.is_new("orders", 100.2, 98)
    assert refreshes.is_new("orders", 100.3, 100.1)
    assert not refreshes
    # On a busy machine the answer is read late.
    assert not refreshes.is_new("orders", 200, 98)
    assert refreshes.is_new("orders", 204, 200)


def test_without_an_answer_what_is_known_has_to_do() -> None:
    refreshes = Refreshes()
    assert not refreshes.is_new("orders", 100, 0)
    assert not refreshes.is_new("orders", 100.9, 0)
    assert refreshes.is_new("orders", 101, 0)
    # Nobody asked again: the next one is not answered by that.
    assert not refreshes.is_new("orders", 102, 0)
    assert not refreshes.is_new("orders", 110, 0)
