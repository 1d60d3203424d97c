"""Rules that decide which records of a fake producer or driver fail, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import DeliveryError, ProducerRecord
from ._checks import check_callable, check_count, check_topic

__all__ = ["AnswerRule", "FailWhen"]

AnswerRule = Callable[[ProducerRecord[Any, Any]], DeliveryError | None]
"""A callable that takes a record, as it was before serialization, and returns the record's error,
or None if the record does not fail."""


class FailWhen:
    """An :data:`AnswerRule` with conditions. A record fails if all conditions are true.

    ::

        every_third = FailWhen(factories.timeout, topic="orders", every=3)
        async with fake_producer(answer=every_third) as fake: ...

    A rule counts records, so each test must create its own rule. You can also set it as
    :attr:`FakeDriver.judge`.

    Args:
        error: a callable that takes a record and returns its error, such as
            ``factories.rejected``.
        topic: the topic of the record; None for every topic.
        where: only records for which this function returns True can fail; None for every record.
        every: how often a record that matches the conditions above fails. With 3, only the third,
            the sixth, and so on of these records fail.
        times: the largest number of records that fail; None for no limit.

    Attributes:
        failed: how many records have failed.

    Raises:
        TypeError: ``error`` or ``where`` is not callable, or ``topic`` is not a str.
        ValueError: ``every`` or ``times`` is not an int of 1 or more.
    """

    def __init__(
        self,
        error: Callable[[ProducerRecord[Any, Any]], DeliveryError],
        *,
        topic: str | None = None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None = None,
        every: int = 1,
        times: int | None = None,
    ) -> None:
        check_callable("error", error)
        check_topic(topic)
        if where is not None:
            check_callable("where", where)
        check_count("every", every)
        if times is not None:
            check_count("times", times)
        self.failed: int = 0
        self._error = error
        self._topic = topic
        self._where = where
        self._every = every
        self._times = times
        self._seen = 0

    def __call__(self, record: ProducerRecord[Any, Any]) -> DeliveryError | None:
        """Return the record's error, or None."""
        if self._topic not in {None, record.topic}:
            return None
        if self._where is not None and not self._where(record):
            return None
        self._seen += 1
        if self._seen % self._every or self.failed == self._times:
            return None
        self.failed += 1
        return self._error(record)
