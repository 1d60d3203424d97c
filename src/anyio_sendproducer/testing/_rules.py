"""Rules by which a fake answers: which records fail, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._exceptions import DeliveryError
from .._records import ProducerRecord

__all__ = ["AnswerRule", "FailWhen"]

AnswerRule = Callable[[ProducerRecord[Any, Any]], DeliveryError | None]
"""Given a record, as it was sent, the error that it fails with; None: it does not fail by this
rule."""


class FailWhen:
    """An :data:`AnswerRule` in words: records fail so when all of this holds.

    ::

        every_third = FailWhen(factories.timeout, topic="orders", every=3)
        async with fake_producer(answer=every_third) as fake: ...

    It counts, so each test makes its own. It serves as :attr:`FakeDriver.judge` too.

    Args:
        error: makes the error of each record that fails; the factories of
            :mod:`~anyio_sendproducer.testing.factories` do, such as ``factories.rejected``.
        topic: the record is to this topic; None: to any.
        where: this returns True for the record.
        every: it is the third, the sixth and so on, for 3, of those of which the above is true.
        times: how often it happens in all; None: for ever.

    Attributes:
        failed: how many records have failed by it.

    Raises:
        ValueError: ``every`` or ``times`` is no int of 1 or more.
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
        for name, number in (("every", every), ("times", times)):
            if number is not None and (type(number) is not int or number < 1):
                raise ValueError(f"{name} must be an int of 1 or more: {number!r}")
        self.failed: int = 0
        self._error = error
        self._topic = topic
        self._where = where
        self._every = every
        self._times = times
        self._seen = 0

    def __call__(self, record: ProducerRecord[Any, Any]) -> DeliveryError | None:
        """The record's error, where there is one."""
        if self._topic not in {None, record.topic}:
            return None
        if self._where is not None and not self._where(record):
            return None
        self._seen += 1
        if self._seen % self._every or self.failed == self._times:
            return None
        self.failed += 1
        return self._error(record)
