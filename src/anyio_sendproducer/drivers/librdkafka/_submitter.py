"""Passes records to the client."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from ..._exceptions import DeliveryError, SendProducerError, discreet
from ..._hooks import serialize_with
from ..._records import ProducerRecord
from ..._settings import ProducerSettings
from ..._shown import one_line
from .._partitioning import choose_partition
from .._protocols import Outcome, Submission, Submitted
from .._serializing import parts_of, size_of
from ..security._settings import encodes
from ._client import ClientHandle
from ._errors import UNKNOWN_TOPIC, harmless_failure, not_taken, rejected
from ._health import Health
from ._metadata import TopicMetadata
from ._outcomes import Outcomes
from ._reports import Reports

__all__ = ["Submitter"]


class _PartitionsUnknown(Exception):
    """The record must wait: the partitions of its topic were requested for the partitioner."""


class Submitter:
    """Serializes records and passes them to the client, without waiting for a broker."""

    def __init__(
        self,
        settings: ProducerSettings,
        handle: ClientHandle,
        *,
        health: Health,
        reports: Reports,
        metadata: TopicMetadata,
        outcomes: Outcomes,
    ) -> None:
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        self._partitioner = settings.partitioner
        hooks = (self._key, self._value, self._partitioner)
        #: Whether there are no serializers and no partitioner. They must not run on the loop.
        self.direct = all(hook is None for hook in hooks)
        self._handle = handle
        self._health = health
        self._reports = reports
        self._metadata = metadata
        self._outcomes = outcomes
        #: Takes the client's report on each record, with the record's submission.
        self.delivered = outcomes.callback(reports, self._send_again, direct=self.direct)

    def submit(
        self,
        batch: Sequence[Submission],
        answer: Submitted,
        failed: list[Any],
        failures: list[Outcome],
    ) -> None:
        """Pass a batch to the client. If there are no hooks, the caller holds the lock ``using``.

        Args:
            batch: the submissions, in order.
            answer: gets the submissions that the client did not take, and the sizes.
            failed: gets the submissions that failed at once.
            failures: gets their outcomes.
        """
        direct = self.direct
        # If there are hooks, the caller does not hold the lock, and another thread may end the
        # client. So in that case this frame keeps no reference to it.
        produce = self._handle.client.produce if direct else None
        delivered = self.delivered
        bind = types.MethodType
        held_topics: set[str] | None = None  # made when it is needed
        for place, submission in enumerate(batch):
            record = submission.record
            if held_topics is not None and record.topic in held_topics:
                answer.held.append(submission)
                continue
            partition = record.partition
            if partition is None:
                partition = -1
            try:
                if produce is not None and record.timestamp_ms is None and not record.headers:
                    produce(
                        record.topic,
                        record.value,
                        record.key,
                        partition,
                        bind(delivered, submission),
                    )
                else:
                    self._submit_one(submission, partition, answer)
            except DeliveryError as error:
                failed.append(submission)
                # The traceback has this frame, which may have a reference to the client.
                failures.append(error.with_traceback(None))
            except _PartitionsUnknown:
                held_topics = {record.topic, *(held_topics or ())}
                answer.held.append(submission)
            except BufferError:
                # The limits of the client's queue are far above those of the producer. If the queue
                # is full nevertheless, the rest of the batch is submitted later.
                answer.held += batch[place:]
                return
            except KafkaException as error:
                if error.args[0].code() == KafkaError._FATAL:
                    # The client takes no more records. The next client gets them.
                    with self._handle.using:
                        if self._handle.is_usable:
                            self._reports.poll(0)  # reports the reason
                    self._health.break_client(error.args[0])
                    answer.held += batch[place:]
                    return
                if error.args[0].code() in UNKNOWN_TOPIC and self._metadata.is_awaited(
                    record.topic, partition
                ):
                    held_topics = {record.topic, *(held_topics or ())}
                    answer.held.append(submission)
                    continue
                failed.append(submission)
                failures.append(self._outcomes.refused(record, error.args[0], partition))
            except Exception as error:  # noqa: BLE001  # becomes this record's outcome
                failed.append(submission)
                failures.append(
                    rejected(
                        record,
                        f"confluent-kafka refused the record: {one_line(error)}",
                        harmless_failure(error.with_traceback(None)),  # as above
                    )
                )

    def _submit_one(self, submission: Submission, partition: int, answer: Submitted) -> None:
        """Serialize a record, have a partitioner choose its partition, and pass it to the client
        with its headers and its timestamp."""
        record = submission.record
        key, value, headers = record.key, record.value, [*record.headers]
        partitioner = self._partitioner if record.partition is None else None
        # Before the serializers, so that they do not run again each time a record must wait.
        partitions = () if partitioner is None else self._partitions_of(record)
        if not self.direct:
            key, value = parts_of(record, self._key, self._value, headers)
            answer.sizes.append((submission, size_of(key, value, headers)))
        for name, _ in headers:
            # confluent-kafka ends the process if a name cannot be encoded, and truncates a name at
            # a NUL character.
            if "\0" in name or not encodes(name):
                said = "librdkafka can't send a header with the name "
                raise discreet(rejected(record, f"{said}{name!r:.80}"), f"{said}that it has")
        if record.timestamp_ms == 0:
            raise rejected(
                record, "librdkafka can't send timestamp_ms=0: it would set the current time"
            )
        if partitioner is None:
            self._produce(submission, key, value, partition, headers)
            return
        partition = choose_partition(partitioner, record, key, partitions)
        try:
            self._produce(submission, key, value, partition, headers)
        except KafkaException as error:
            if error.args[0].code() not in UNKNOWN_TOPIC:
                raise
            self._metadata.forget(record.topic)
            self._metadata.partitions_of(record.topic)  # requests them
            raise _PartitionsUnknown from None

    def _partitions_of(self, record: ProducerRecord[Any, Any]) -> tuple[int, ...]:
        """Return the partitions from which the partitioner may choose.

        Raises:
            RecordRejected: the topic can't be used.
            _PartitionsUnknown: the record must wait.
        """
        found = self._metadata.partitions_of(record.topic)
        if found is None:
            raise _PartitionsUnknown
        if isinstance(found, SendProducerError):
            raise rejected(record, str(found), found)
        return found

    def _produce(
        self,
        submission: Submission,
        key: Any,
        value: Any,
        partition: int,
        headers: list[tuple[str, bytes]],
    ) -> None:
        record = submission.record
        with self._handle.using:
            if not self._handle.is_usable:
                raise not_taken(record)
            self._handle.client.produce(
                record.topic,
                value,
                key,
                partition,
                functools.partial(self._delivered_or_sent_again, submission, headers),
                None,
                record.timestamp_ms or 0,
                headers,
            )

    def _delivered_or_sent_again(
        self, submission: Submission, headers: list[tuple[str, bytes]], error: Any, message: Any
    ) -> None:
        """Take the client's report on a record that may have headers.

        The client's message has no headers, so they are kept here.
        """
        if error is None or not self._send_again(submission, headers, error, message):
            self.delivered(submission, error, message)

    def _send_again(
        self,
        submission: Submission,
        headers: list[tuple[str, bytes]],
        error: Any,
        message: Any,
    ) -> bool:
        """Submit a record again if librdkafka chose a partition that no longer exists.

        The topic was deleted and created again with fewer partitions, and the record is not
        written.

        Returns:
            Whether the client took the record again.
        """
        if error.code() != KafkaError._UNKNOWN_PARTITION or submission.record.partition is not None:
            return False
        if self._partitioner is not None:
            # The loop may call this, and the partitioner must not run on it.
            self._metadata.forget(submission.record.topic)
            return False
        if not self._outcomes.is_sent_once(message):
            return False
        try:
            self._produce(submission, message.key(), message.value(), -1, headers)
        except (DeliveryError, KafkaException, BufferError):
            return False
        return True
