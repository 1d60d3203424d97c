"""The outcome of each record: where it is, or why it failed and whether it may have been written.

The closure that :meth:`Outcomes.callback` returns runs for each record, so it keeps in variables
what it would otherwise look up each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from confluent_kafka import KafkaError

from ..._exceptions import DeliveryError, Persistence
from ..._failures import delivery_error, timed_out
from ..._records import ProducerRecord, RecordMetadata
from ..._settings import ProducerSettings
from .._protocols import Outcome
from ._errors import (
    DELETED_TOPIC,
    PURGED,
    REFUSALS,
    UNKNOWN_TOPIC,
    UNREACHABLE,
    exception_of,
    not_written,
    rejected,
    text_of,
    translated,
)
from ._health import Health
from ._metadata import TopicMetadata
from ._reports import STOP, Reports
from ._transaction_state import TransactionState

__all__ = ["DeliveryCallback", "Outcomes", "SendAgain"]

#: Called for each record with its submission, its error or None, and librdkafka's message.
DeliveryCallback = Callable[[Any, Any, Any], None]
#: Submits a record again, with these headers. Returns whether it did.
SendAgain = Callable[[Any, list[tuple[str, bytes]], Any, Any], bool]

#: librdkafka's defaults of retry.backoff.ms and retry.backoff.max.ms, and the smallest random
#: factor by which it shortens them.
_BACKOFF_MS: Final = 100.0
_BACKOFF_MAX_MS: Final = 1000.0
_LEAST_BACKOFF: Final = 0.8

#: Makes a RecordMetadata in half the time of a call of the class, whose __new__ is Python code.
_new_tuple: Final[Callable[[Any, Any], RecordMetadata]] = cast("Any", tuple).__new__


class Outcomes:
    """Turns the client's reports about records into outcomes."""

    def __init__(
        self,
        settings: ProducerSettings,
        config: Mapping[str, Any],
        transaction: TransactionState,
        health: Health,
        metadata: TopicMetadata,
    ) -> None:
        self._settings = settings
        self._transaction = transaction
        self._health = health
        self._metadata = metadata
        #: Topics to which a record was written. The metadata may lack such a topic for a moment.
        self._written_topics: set[str] = set()
        #: Topics for which a record was refused with TOPIC_AUTHORIZATION_FAILED.
        self._forbidden_topics: set[str] = set()
        # A broker may acknowledge a repeated batch without an offset, as -1. librdkafka then
        # computes the offsets of its records from -1: none, 0, 1 and so on. For each partition,
        # this is the largest offset that may be such a result.
        self._doubtful: dict[tuple[str, int], int] = {}
        backoff_ms = min(
            config.get("retry.backoff.ms", _BACKOFF_MS),
            config.get("retry.backoff.max.ms", _BACKOFF_MAX_MS),
        )
        #: A record that the client had for less time was sent at most once.
        self._sent_once_seconds = backoff_ms / 1000 * _LEAST_BACKOFF
        #: Whether the client must stop when the records of a deleted topic fail: they leave a gap
        #: in the sequence numbers.
        self._allows_no_gap = config["enable.idempotence"] and transaction.transactional_id is None
        #: Whether a record of a transaction may fail because it has no more attempts.
        self._limits_attempts = "retries" in config
        #: Whether a refusal is a fatal error.
        self._is_gapless = config.get("enable.gapless.guarantee", False)

    def callback(
        self, reports: Reports, send_again: SendAgain, *, direct: bool
    ) -> DeliveryCallback:
        """Make the function that the client calls for each record, on the thread that polls.

        Args:
            reports: gathers the outcomes.
            send_again: submits a record again where that is possible.
            direct: whether there are no hooks, so that the key and the value of a record are the
                bytes that were sent.
        """
        pending = reports.pending
        extend = pending.extend
        new = _new_tuple
        doubtful = self._doubtful
        written_topics = self._written_topics
        health = self._health

        def delivered(submission: Any, error: Any, message: Any) -> None:
            record = submission.record
            if error is None:
                offset = message.offset()
                timestamp_ms = message.timestamp()[1]
                if (offset is None or doubtful) and not self._is_exact(message, offset):
                    offset = timestamp_ms = None
                if direct:
                    key, value = record.key, record.value
                else:
                    key, value = message.key(), message.value()
                outcome: Outcome = new(
                    RecordMetadata,
                    (
                        record.topic,
                        message.partition(),
                        offset,
                        timestamp_ms,
                        None if key is None else len(key),
                        None if value is None else len(value),
                    ),
                )
                if record.topic not in written_topics:
                    written_topics.add(record.topic)
                if health.failure is not None:
                    health.note_answer()
            elif (
                direct
                and record.timestamp_ms is None
                and not record.headers
                and send_again(submission, [], error, message)
            ):
                return
            else:
                outcome = self.failure(record, error, message)
            # One operation, because another thread may take the list's items at the same time.
            extend((submission, outcome))
            if len(pending) >= reports.limit and threading.get_ident() != reports.ending_thread:
                raise STOP

        return delivered

    def _is_exact(self, message: Any, offset: int | None) -> bool:
        """Return whether this is the record's offset, and not one that was computed from -1."""
        place = (message.topic(), message.partition())
        if offset is None:
            self._doubtful.setdefault(place, 0)
            return False
        # A record that was sent only once is not in a repeated batch.
        if offset > self._doubtful.get(place, -1) or self.is_sent_once(message):
            return True
        self._doubtful[place] = offset + 1
        return False

    def is_sent_once(self, message: Any) -> bool:
        """Return whether there was no time to send a record again. If False, it may have been sent
        again or not."""
        seconds = message.latency()
        return seconds is not None and seconds < self._sent_once_seconds

    def failure(self, record: ProducerRecord[Any, Any], error: Any, message: Any) -> DeliveryError:
        """Make the outcome of a record for which the client reports an error."""
        code = error.code()
        transaction = self._transaction
        is_fenced = transaction.is_fenced(error)
        if error.fatal() or is_fenced:
            self._health.break_client(error)
        # If the last attempt got no answer in time, librdkafka gives the same error as for a record
        # that has expired. After the latter, it would take a new epoch.
        is_out_of_attempts = code in UNREACHABLE or (
            code == KafkaError._MSG_TIMED_OUT and self._limits_attempts
        )
        if transaction.is_open and (code > 0 or is_out_of_attempts):
            transaction.has_gap = True
        if code in PURGED and transaction.is_open:
            transaction.has_dropped = True
        was_written_to = record.topic in self._written_topics
        # With _UNKNOWN_PARTITION, the client may have known the partition before, and may have sent
        # the record without getting an answer.
        is_unknown = code in UNKNOWN_TOPIC and code != KafkaError._UNKNOWN_PARTITION
        never_written = is_unknown and not was_written_to
        is_refused = code in REFUSALS and self.is_sent_once(message)
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            self._forbidden_topics.add(record.topic)
        # librdkafka removes the partitions of a forbidden topic until its metadata arrive again. A
        # record that another thread adds to such a partition fails with _DESTROY
        # (rd_kafka_toppar_destroy_final, 2.16): the topic was not deleted.
        is_removed = code == KafkaError._DESTROY and record.topic in self._forbidden_topics
        is_deleted = code in DELETED_TOPIC and not is_removed
        if was_written_to and self._allows_no_gap and is_deleted:
            # If the topic is created again, its next sequence number is out of order, and the
            # client would take a new epoch.
            self._health.break_client(error)
        if was_written_to and self._is_gapless and code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            # librdkafka gives this error to all records of the topic that it has. Some of them
            # may be written: they wait to be sent again because their answers were lost. Its fatal
            # error names the partition whose batch a broker refused.
            refused = f" for {record.topic} [{message.partition()}] with "
            is_refused = is_refused and (
                transaction.transactional_id is not None or refused in self._health.purge_reason
            )
        if never_written or is_refused:
            by = "the broker" if code > 0 else "librdkafka"
            return self.refused(record, error, message.partition(), by=by)
        if code == KafkaError._INVALID_DIFFERENT_RECORD and self.is_sent_once(message):
            # The driver itself does not send the record again: it would come after later records.
            return not_written(record, "another record of its batch was refused", error)
        cause: Exception = transaction.fenced(error) if is_fenced else translated(error)
        if code == KafkaError._MSG_TIMED_OUT:
            last_error = self._health.last_error()
            late = timed_out(
                record,
                "no broker acknowledged the record",
                (self._settings.delivery_timeout, "delivery_timeout"),
                last_error,
                was_sent=True,
            )
            late.__cause__ = last_error or cause
            return late
        reason = text_of(error)
        if code in PURGED:
            reason = self._health.why_purged()
        elif code == KafkaError._UNKNOWN_PARTITION:
            reason = self._no_partition(record, message.partition())
        return delivery_error(
            DeliveryError,
            f"the record was not acknowledged: {reason}",
            record,
            Persistence.POSSIBLY_PERSISTED,
            cause,
        )

    def refused(
        self,
        record: ProducerRecord[Any, Any],
        error: Any,
        partition: int,
        *,
        by: str = "librdkafka",
    ) -> DeliveryError:
        """Make the outcome of a record that is not written, because it was refused.

        Args:
            record: the record.
            error: the ``KafkaError``.
            partition: the partition that the record was meant for.
            by: "librdkafka" or "the broker".
        """
        code = error.code()
        if code not in REFUSALS:
            return not_written(record, f"librdkafka did not take it: {text_of(error)}", error)
        reason = f"{by} refused the record for topic {record.topic!r}: {text_of(error)}"
        if code == KafkaError._UNKNOWN_PARTITION:
            reason = self._no_partition(record, partition)
        elif code in UNKNOWN_TOPIC:
            reason = (
                f"the cluster does not know topic {record.topic!r} and did not create it within "
                f"{self._settings.unknown_topic_timeout:g} s (unknown_topic_timeout)"
            )
        elif code == KafkaError.MSG_SIZE_TOO_LARGE and by == "librdkafka":
            reason = (
                "the record is larger than message.max.bytes, which is Kafka's max.request.size"
            )
        return rejected(record, reason, exception_of(error))

    def _no_partition(self, record: ProducerRecord[Any, Any], partition: int) -> str:
        """Return the text for a partition that does not exist."""
        reason = f"topic {record.topic!r} has no partition {partition}"
        count = self._metadata.partition_count(record.topic)
        if record.partition is None:
            partitioner = self._settings.partitioner
            chooser = "librdkafka" if partitioner is None else "the partitioner"
            reason += f", which {chooser} chose"
        elif count is not None:
            reason += f"; it has {count}"
        return reason
