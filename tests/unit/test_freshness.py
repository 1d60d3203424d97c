"""How old the metadata may be on which the kafka-python driver bases a decision."""

from __future__ import annotations

from anyio_sendproducer.drivers.kafka_python._freshness import MissingPartitions, Refreshes

PATIENCE = 5.0


class Asked:
    """Asks whether a record for partition 2 is refused. The cluster first has only 0 and 1."""

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
    # This answer was requested before the first record.
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
    # A program may continue to send such records: metadata are requested once a second for them.
    assert asked.is_refused(105.9)
    assert not asked.is_refused(106.1)
    asked.answer(106.1, 106.2)
    assert asked.is_refused(106.3)
    # An answer between two records does not count.
    asked.answer(107, 107.1)
    assert not asked.is_refused(110)
    asked.answer(110, 110.1)
    assert asked.is_refused(110.2)


def test_an_answer_to_an_abandoned_question_does_not_count_for_the_next_record() -> None:
    """The caller of the first record is cancelled."""
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(100, 100.1)
    assert not asked.is_refused(120)
    asked.answer(120, 120.1)
    assert asked.is_refused(120.2)


def test_an_added_partition_is_no_longer_missing() -> None:
    asked = Asked()
    assert not asked.is_refused(100)
    asked.answer(100, 100.1)
    asked.partitions["orders"].add(2)
    assert asked.missing
    asked.answer(103, 103.1)
    assert not asked.missing
    # If the partition disappears, the wait starts again.
    asked.partitions["orders"].discard(2)
    assert not asked.is_refused(110)
    asked.answer(110, 110.1)
    assert not asked.is_refused(110.2)


def test_answers_about_other_topics_do_not_count() -> None:
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


def test_a_question_that_is_not_repeated_is_forgotten() -> None:
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
    # On a busy machine, the answer is read late.
    assert not refreshes.is_new("orders", 200, 98)
    assert refreshes.is_new("orders", 204, 200)


def test_known_partitions_are_used_after_a_second_without_an_answer() -> None:
    refreshes = Refreshes()
    assert not refreshes.is_new("orders", 100, 0)
    assert not refreshes.is_new("orders", 100.9, 0)
    assert refreshes.is_new("orders", 101, 0)
    # An old answer does not count for the next question.
    assert not refreshes.is_new("orders", 102, 0)
    assert not refreshes.is_new("orders", 110, 0)
