"""Decides whether metadata are new enough for the kafka-python driver.

Metadata are up to five minutes old (``metadata_max_age_ms``). They lack a partition that was added
meanwhile, so old metadata cannot show that a partition does not exist. Only metadata that were
requested after a question arose, or a moment before, answer the question.

Time is an argument, in seconds of :func:`time.monotonic`. The submitting thread asks, and the
client's thread brings answers. Each access by these threads is one operation on one item of a
dictionary. If an entry is removed too early, the next record asks the question again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

__all__ = ["MissingPartitions", "Refreshes"]

#: Seconds for which metadata count as new after their request. So a program that asks for the
#: partitions before each record does not cause a request each time.
_NEW_SECONDS: Final = 1.0

#: Seconds after which a question ends if it is not repeated. The producer repeats its questions
#: four times a second.
_OVER_SECONDS: Final = 5.0

#: Seconds for which the driver remembers how long a partition has been missing.
_KEPT_SECONDS: Final = 60.0


class _Question:
    """When a question about the metadata was first asked, and when it was last repeated."""

    __slots__ = ("began", "is_over", "repeated", "since")

    def __init__(self, now: float) -> None:
        self.began = now
        self.repeated = now
        self.is_over = False
        #: When an answer first showed that the partition is missing.
        self.since: float | None = None

    def repeat(self, now: float) -> None:
        if self.is_over or now - self.repeated > _OVER_SECONDS:
            self.began = now
            self.is_over = False
        self.repeated = now

    def is_answered(self, now: float, requested: float) -> bool:
        return requested >= self.began or now - requested < _NEW_SECONDS


class MissingPartitions:
    """Partitions that records name, but that the metadata do not have.

    Args:
        patience: seconds after which a record for such a partition is refused.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._questions: dict[tuple[str, int], _Question] = {}

    def __bool__(self) -> bool:
        return bool(self._questions)

    def is_refused(self, topic: str, partition: int, now: float, requested: float) -> bool:
        """Return whether a record is refused. If not, the caller must hold it and request metadata.

        Args:
            topic: of the record.
            partition: of the record.
            now: the time.
            requested: when the newest metadata were requested.
        """
        question = self._questions.setdefault((topic, partition), _Question(now))
        question.repeat(now)
        if (
            question.since is None
            or now - question.since < self._patience
            or not question.is_answered(now, requested)
        ):
            return False
        # The next record needs newer metadata, but does not wait for `patience` again.
        question.is_over = True
        return True

    def answer(
        self,
        topics: Collection[str],
        find_partitions: Callable[[str], Collection[int] | None],
        now: float,
        requested: float,
    ) -> None:
        """Take in new metadata.

        Args:
            topics: the topics in them.
            find_partitions: returns the partitions of a topic, or None if there is no such topic.
            now: the time.
            requested: when these metadata were requested.
        """
        for (topic, partition), question in list(self._questions.items()):
            partitions = find_partitions(topic) if topic in topics else None
            found = partitions is not None and partition in partitions
            if found or now - question.repeated > _KEPT_SECONDS:
                self._questions.pop((topic, partition), None)
            elif partitions is not None and question.since is None and requested >= question.began:
                question.since = now


class Refreshes:
    """Topics whose partitions a caller has asked for."""

    def __init__(self) -> None:
        self._questions: dict[str, _Question] = {}

    def __bool__(self) -> bool:
        return bool(self._questions)

    def is_new(self, topic: str, now: float, requested: float) -> bool:
        """Return whether the metadata of a topic are new enough. If not, the caller must request
        metadata.

        If no broker has answered for a while, this returns True: there are no newer metadata.
        """
        question = self._questions.setdefault(topic, _Question(now))
        question.repeat(now)
        if not question.is_answered(now, requested) and now - question.began < _NEW_SECONDS:
            return False
        self._questions.pop(topic, None)
        return True
