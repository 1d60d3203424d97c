"""A fake external client for a producer, without a broker."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from kafka.future import Future

from anyio_sendproducer.testing import Gate

__all__ = ["FakeClient", "raise_in_kafka_python"]


def raise_in_kafka_python(error: Exception) -> NoReturn:
    """Raise an error as kafka-python does, and not as a user's own class."""
    exec("raise error", {"__name__": "kafka.producer.kafka", "error": error})
    raise AssertionError


class FakeClient:
    """The public methods of a KafkaProducer that the driver calls."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.sent: list[tuple[tuple[Any, ...], Future]] = []
        self.errors: list[Exception] = []
        self.known: set[int] | Exception = {0, 1}
        #: How often `partitions_for` was called.
        self.asked = 0
        self.closed: list[float] = []
        self.close_error: Exception | None = None
        self.answers = True
        self.gate = Gate()
        #: Gates of single topics.
        self.gates: dict[str, Gate] = {}

    def send(
        self,
        topic: str,
        *,
        value: Any,
        key: Any,
        headers: Any,
        partition: int | None,
        timestamp_ms: int,
    ) -> Future:
        self.gates.get(topic, self.gate).pass_through()
        if self.errors:
            raise_in_kafka_python(self.errors.pop(0))
        future = Future()
        self.sent.append(((topic, value, key, headers, partition, timestamp_ms), future))
        if self.answers:
            self.answer(future)
        return future

    def answer(self, future: Future, error: Exception | None = None, offset: int = 7) -> None:
        if error is not None:
            cast("Any", future).failure(error)
        else:
            where = ("t", 0)
            cast("Any", future).success(("t", 0, where, offset, 5, None, 1, 2, -1))

    def partitions_for(self, _: str) -> set[int]:
        self.asked += 1
        if isinstance(self.known, Exception):
            raise_in_kafka_python(self.known)
        return self.known

    def flush(self, timeout: float | None = None) -> None:
        raise AssertionError(timeout)

    def close(self, timeout: float) -> None:
        self.closed.append(timeout)
        if self.close_error is not None:
            raise self.close_error
