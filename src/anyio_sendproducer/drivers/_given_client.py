"""A driver on a ``KafkaProducer`` that its owner made: by its public methods, as it is.

Nothing of it is tamed here, so less is known. What it failed may have been written, for it does not
tell what it tried; and where it blocks, it blocks this thread, and the deadlines go on.

May import: ``drivers`` and its modules, ``_records``, ``_settings``, ``_exceptions``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from .._exceptions import DeliveryError, SettingsError, TransactionError
from .._records import ConsumerGroupMetadata
from .._settings import ProducerSettings
from . import ConsumedOffset, Deadline, Outcome, Sink, Submission, Submitted
from ._kafka_python import is_metadata_missing, not_acknowledged, not_taken
from ._runs import Run
from ._serializing import bytes_of, serialize_with, size_of

__all__ = ["GivenClientDriver"]

_log = logging.getLogger("anyio_sendproducer.kafka_python")


class GivenClientDriver:
    """A :class:`~anyio_sendproducer.drivers.Driver` on ``settings.producer``.

    Args:
        settings: those with a ``producer``.

    Raises:
        SettingsError: the producer has a ``transactional_id``.
    """

    #: Partitions are chosen by the client, which has a partitioner.
    chooses = False

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._producer: Any = settings.producer
        config: dict[str, Any] = getattr(self._producer, "config", {})
        if config.get("transactional_id") is not None:
            raise SettingsError(
                "producer: it has a transactional_id; let a producer_factory make it, and give "
                "ProducerSettings the transactional_id"
            )
        #: Whether brokers answer; with acks=0 they do not.
        self.answered = config.get("acks") != 0
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        self._sink: Sink | None = None
        self._closed = False

    def open(self, sink: Sink, /) -> None:
        """Take the client as it is."""
        self._sink = sink

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand over a batch; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        held: set[str] = set()
        runs: dict[str, Run] = {}
        serialized = self._key is not None or self._value is not None
        now_ms = int(time.time() * 1000)
        for submission in batch:
            record = submission.record
            topic = record.topic
            if topic in held:
                answer.held.append(submission)
                continue
            key, value, headers = record.key, record.value, [*record.headers]
            timestamp_ms = now_ms if record.timestamp_ms is None else record.timestamp_ms
            try:
                if serialized:
                    key = bytes_of(record, "key", self._key, headers, key)
                    value = bytes_of(record, "value", self._value, headers, value)
                    answer.sizes.append((submission, size_of(key, value, headers)))
                future = self._producer.send(
                    topic, value, key, headers, record.partition, timestamp_ms
                )
            except DeliveryError as error:
                failed.append(submission)
                failures.append(error)
                continue
            except Exception as error:  # noqa: BLE001  # becomes this record's outcome
                if is_metadata_missing(error):
                    held.add(topic)
                    answer.held.append(submission)
                else:
                    failed.append(submission)
                    failures.append(not_taken(record, error))
                continue
            run = runs.get(topic)
            if run is None:
                run = runs[topic] = Run(self, topic, None)
            run.submissions.append(submission)
            run.futures.append(future)
        for run in runs.values():
            run.watch()
        if failed:
            self.report(failed, failures)
        return answer

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes on to whoever opened this driver."""
        cast("Sink", self._sink).completed(submissions, outcomes)

    def failure(self, submission: Submission, error: Exception, run: Run) -> DeliveryError:  # noqa: ARG002
        """What an error of the client says of a record."""
        return not_acknowledged(submission.record, error)

    def target(self, topic: str, partition: int) -> Any:
        """Nobody asks: the client chooses."""
        raise NotImplementedError(f"{topic}-{partition}")  # pragma: no cover  # see `chooses`

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """The topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        try:
            return frozenset(self._producer.partitions_for(topic))
        except Exception as error:
            if is_metadata_missing(error):
                return None
            raise

    def begin_transaction(self) -> None:
        """Never asked for: these settings have no ``transactional_id``."""
        raise _no_transactions()

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],  # noqa: ARG002
        group: ConsumerGroupMetadata,  # noqa: ARG002
        deadline: Deadline,  # noqa: ARG002
        /,
    ) -> None:
        """Never asked for."""
        raise _no_transactions()

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: ARG002, FBT001
        """Never asked for."""
        raise _no_transactions()

    def trouble(self) -> Exception | None:
        """The client does not tell."""
        return None

    def cut_off(self) -> bool:
        """The client does not tell."""
        return False

    def figures(self) -> Mapping[str, Any]:
        """They are its owner's."""
        return {}

    def close(self, timeout: float, /) -> None:
        """Leave the client as it is; or close it, where ``close_producer_on_exit`` says so."""
        closed, self._closed = self._closed, True
        if self._settings.close_producer_on_exit and not closed:
            try:
                self._producer.close(timeout)
            except Exception:  # noqa: BLE001  # it is its owner's
                _log.exception("the producer that was given could not be closed")


def _no_transactions() -> TransactionError:
    return TransactionError("a producer that was given sends no transactions")
