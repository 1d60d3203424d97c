"""A driver on a ``KafkaProducer`` that its owner made.

The driver sends with the client's public methods. By way of ``_patches``, it only ends the
lingering, notices a broken client, and closes a client whose ``close()`` fails. So it knows less
than the driver with a client of its own. If the client fails a record, the record may have been
written, because the client does not say what it tried. If the client blocks, it blocks the driver
thread, and the deadlines of records still apply.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ..._exceptions import DeliveryError, SettingsError, TransactionError
from ..._failures import not_sent
from ..._hooks import serialize_with
from ..._records import ConsumerGroupMetadata, ProducerRecord
from ..._settings import ProducerSettings
from .._partitioning import choose_partition
from .._protocols import ConsumedOffset, Deadline, Outcome, Sink, Submission, Submitted
from .._serializing import bytes_of, check_headers, size_of
from ._batches import PartitionRun
from ._errors import is_metadata_missing, no_metadata, not_acknowledged, not_taken
from ._patches import find_broken_check, find_hurry, skip_flush

__all__ = ["ExternalClientDriver"]

_log = logging.getLogger("anyio_sendproducer.kafka_python")


class ExternalClientDriver:
    """A :class:`~anyio_sendproducer.drivers.Driver` on ``settings.producer``.

    Args:
        settings: with a ``producer``.

    Raises:
        SettingsError: the producer has a ``transactional_id``.
    """

    #: The client chooses partitions, with its own partitioner, unless the settings have one.
    chooses = False

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._producer: Any = settings.producer
        config: dict[str, Any] = getattr(self._producer, "config", {})
        if config.get("transactional_id") is not None:
            raise SettingsError(
                "producer: the client has a transactional_id; use a producer_factory instead, and "
                "set transactional_id in ProducerSettings"
            )
        #: Whether brokers answer; with acks=0 they do not.
        self.answered = config.get("acks") != 0
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        #: Returns whether an idempotent client can never send again; None if nothing can tell.
        self._is_broken = find_broken_check(self._producer)
        self._hurry = find_hurry(self._producer)
        #: Whether the client lingers.
        self.lingers = self._hurry is not None
        self._hurries = False
        self._sink: Sink | None = None
        self._closed = False
        self._broken = False
        self._broken_by: Exception | None = None
        # The records that the client has not got yet, and the records whose metadata are missing.
        # The client may block the submitting thread for long. A thread that closes the driver then
        # takes the records out. The thread that takes a record out sends it, or reports it.
        self._waiting: collections.deque[Submission] = collections.deque()
        self._held: collections.deque[Submission] = collections.deque()

    def open(self, sink: Sink, /) -> None:
        """Use the client, which its owner has opened."""
        self._sink = sink

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand records over; see :meth:`anyio_sendproducer.drivers.Driver.submit`.

        Once the driver is closed, it hands no further record over, even if ``send`` was blocked
        until then.
        """
        answer = Submitted()
        held: set[str] = set()
        serialized = self._key is not None or self._value is not None
        partitioner = self._settings.partitioner
        now_ms = int(time.time() * 1000)
        self._waiting.extend(batch)
        if self._closed:
            self._refuse(self._waiting)
        for submission in _taken_out(self._waiting):
            record = submission.record
            topic = record.topic
            if topic in held:
                self._held.append(submission)
                continue
            key, value, headers = record.key, record.value, [*record.headers]
            timestamp_ms = now_ms if record.timestamp_ms is None else record.timestamp_ms
            partition = record.partition
            try:
                if serialized:
                    key = bytes_of(record, "key", self._key, headers, key)
                    value = bytes_of(record, "value", self._value, headers, value)
                    check_headers(record, headers)
                    answer.sizes.append((submission, size_of(key, value, headers)))
                if partition is None and partitioner is not None:
                    # This may block for as long as `send`.
                    numbers = tuple(sorted(self._producer.partitions_for(topic)))
                    partition = choose_partition(partitioner, record, key, numbers)
                # By keyword: a tracing agent that replaces `send` may add the headers by keyword.
                future = self._producer.send(
                    topic,
                    value=value,
                    key=key,
                    headers=headers,
                    partition=partition,
                    timestamp_ms=timestamp_ms,
                )
            except DeliveryError as error:
                self.report([submission], [error])
            # The client's own serializers and partitioner may raise anything.
            except BaseException as error:  # noqa: BLE001  # becomes this record's outcome
                if is_metadata_missing(error):
                    held.add(topic)
                    self._held.append(submission)
                else:
                    self.report([submission], [not_taken(record, error)])
            else:
                # A run of one record, watched at once: the next `send` may block for a minute, and
                # the client does not say which partition it chose.
                PartitionRun.of_one(self, topic, None, submission, future).watch()
        answer.held.extend(_taken_out(self._held))
        return answer

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        if self._hurry is not None:  # pragma: no branch  # else it is not called
            self._hurries = on
            self._hurry(on)

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes to the sink, and report a broken client."""
        sink = cast("Sink", self._sink)
        sink.completed(submissions, outcomes)
        broken_by, self._broken_by = self._broken_by, None
        if broken_by is not None and not self._closed:
            sink.broken(broken_by)

    def failure(self, submission: Submission, error: Exception, run: PartitionRun) -> DeliveryError:  # noqa: ARG002
        """Translate the client's error for one record."""
        if not self._broken and self._is_broken is not None and self._is_broken():
            self._broken = True
            self._broken_by = error
        return not_acknowledged(submission.record, error)

    def target(self, topic: str, partition: int) -> Any:
        """Never called: the client chooses partitions."""
        raise NotImplementedError(f"{topic}-{partition}")  # pragma: no cover  # see `chooses`

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """Return a topic's partitions.

        See :meth:`anyio_sendproducer.drivers.Driver.partitions_for`.
        """
        try:
            return frozenset(self._producer.partitions_for(topic))
        except Exception as error:
            if is_metadata_missing(error):
                return None
            raise no_metadata(topic, error) from error

    def begin_transaction(self) -> None:
        """Never called: these settings have no ``transactional_id``."""
        raise _no_transactions()

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],  # noqa: ARG002
        group: ConsumerGroupMetadata,  # noqa: ARG002
        deadline: Deadline,  # noqa: ARG002
        /,
    ) -> None:
        """Never called."""
        raise _no_transactions()

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: ARG002, FBT001
        """Never called."""
        raise _no_transactions()

    def last_error(self) -> Exception | None:
        """Return None: the client has no public way to ask."""
        return None

    def is_disconnected(self) -> bool:
        """Return False: the client has no public way to ask."""
        return False

    def metrics(self) -> Mapping[str, Any]:
        """Return no metrics: the client's owner can read them."""
        return {}

    def close(self, timeout: float, /) -> None:
        """Close the client if ``close_producer_on_exit`` is set; otherwise leave it open."""
        closed, self._closed = self._closed, True
        self._refuse(self._waiting)
        self._refuse(self._held)
        if self._hurries:
            self.hurry(False)  # noqa: FBT003  # its owner continues to use it
        if self._settings.close_producer_on_exit and not closed:
            try:
                self._close_client(timeout)
            except Exception:  # noqa: BLE001  # the producer has ended anyway
                _log.exception("settings.producer could not be closed")

    def _close_client(self, timeout: float) -> None:
        try:
            self._producer.close(timeout)
        except Exception:  # noqa: BLE001  # closed by force instead
            # 3.0.12 flushes first. If that takes too long, it stays open and goes on sending.
            self._producer.flush = skip_flush
            self._producer.close(0)

    def _refuse(self, queue: collections.deque[Submission]) -> None:
        refused = [*_taken_out(queue)]
        if refused:
            self.report(refused, [_not_sent(submission.record) for submission in refused])


def _taken_out(queue: collections.deque[Submission]) -> Iterator[Submission]:
    """Take records out of a queue until it is empty. Each record goes to exactly one thread."""
    with contextlib.suppress(IndexError):
        while True:
            yield queue.popleft()


def _not_sent(record: ProducerRecord[Any, Any]) -> DeliveryError:
    return not_sent(
        record, "the record was not sent: the producer was closed before the client got it"
    )


def _no_transactions() -> TransactionError:
    return TransactionError(
        "settings.producer cannot send in transactions: use a producer_factory instead"
    )
