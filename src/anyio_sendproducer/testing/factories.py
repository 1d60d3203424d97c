"""Factories for records, results and errors, with defaults for most fields.

A test of code that uses a result, or handles an error, needs objects that look like real ones. Each
factory of a :class:`~anyio_sendproducer.DeliveryError` takes the record as its only positional
argument, so a fake producer can call it for each record that fails::

    async with fake_producer(manual=True) as fake:
        delivery = fake.producer.enqueue_nowait(ProducerRecord("orders", b"two tins"))
        await fake.wait_until_sent(1)
        fake.fail(factories.timeout)
        try:
            await delivery.wait()
        except DeliveryTimeout as error:
            assert error.persistence is Persistence.POSSIBLY_PERSISTED
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

from .. import (
    DeliveryError,
    DeliveryTimeout,
    DiscoveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughResult,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerRecord,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    Result,
    SerializationFailed,
    TransactionAborted,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
)

__all__ = [
    "broken",
    "closed",
    "discovery_failed",
    "fenced",
    "metadata",
    "multi_delivery_error",
    "multi_result",
    "not_persisted",
    "pass_through_result",
    "possibly_persisted",
    "record",
    "rejected",
    "result",
    "serialization_failed",
    "start_failed",
    "timeout",
    "transaction_aborted",
    "transaction_outcome_unknown",
    "undelivered",
]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")
E = TypeVar("E", bound=DeliveryError)

AnyRecord = ProducerRecord[Any, Any]


# --- records and results -------------------------------------------------------------------------


def record(
    topic: str = "topic",
    value: bytes | None = b"value",
    key: bytes | None = None,
    *,
    partition: int | None = None,
    timestamp_ms: int | None = None,
    headers: Sequence[tuple[str, bytes]] = (),
) -> ProducerRecord[bytes | None, bytes | None]:
    """Make a record that can be sent.

    Args:
        topic: the topic's name.
        value: the record's value.
        key: the record's key.
        partition: the partition's number.
        timestamp_ms: milliseconds since 1970-01-01 UTC.
        headers: pairs of a str and bytes.
    """
    return ProducerRecord(
        topic, value, key, partition=partition, timestamp_ms=timestamp_ms, headers=headers
    )


def metadata(
    of: AnyRecord | None = None,
    *,
    topic: str | None = None,
    partition: int | None = None,
    offset: int | None = 0,
    timestamp_ms: int | None = None,
) -> RecordMetadata:
    """Make the metadata of an acknowledged record.

    Args:
        of: the record; None for the result of :func:`record`. If ``topic`` or ``partition`` is
            None, the topic or the partition of this record is used.
        topic: the topic's name.
        partition: the partition's number; 0 if the record has no partition either.
        offset: the record's offset in the partition; None as with ``acks=0``.
        timestamp_ms: milliseconds since 1970-01-01 UTC. The default is the record's timestamp, or 0
            if the record has none. If ``offset`` is None, the default is None, as with ``acks=0``.

    The sizes are the lengths of the key and the value in bytes. For a key or value that is not
    bytes, the size is the length of its str() in UTF-8. For None, the size is None.
    """
    of = record() if of is None else of
    if partition is None:
        partition = of.partition or 0
    if timestamp_ms is None and offset is not None:
        timestamp_ms = of.timestamp_ms or 0
    return RecordMetadata(
        of.topic if topic is None else topic,
        partition,
        offset,
        timestamp_ms,
        _size(of.key),
        _size(of.value),
    )


def _size(content: object) -> int | None:
    if content is None:
        return None
    return len(content if isinstance(content, bytes) else str(content).encode())


@overload
def result(
    *, metadata: RecordMetadata | None = None
) -> Result[bytes | None, bytes | None, None]: ...
@overload
def result(
    of: ProducerRecord[K, V], *, metadata: RecordMetadata | None = None
) -> Result[K, V, None]: ...
@overload
def result(
    of: ProducerRecord[K, V], *, pass_through: P, metadata: RecordMetadata | None = None
) -> Result[K, V, P]: ...
@overload
def result(of: Message[K, V, P], *, metadata: RecordMetadata | None = None) -> Result[K, V, P]: ...
def result(
    of: Any = None, *, pass_through: Any = None, metadata: RecordMetadata | None = None
) -> Result[Any, Any, Any]:
    """Make the result of a :class:`~anyio_sendproducer.Message`.

    Args:
        of: the message, or a record; None for the result of :func:`record`.
        pass_through: the pass-through value, if ``of`` is a record.
        metadata: where the record was written; None for :func:`metadata` of the record.
    """
    message: Message[Any, Any, Any]
    message = of if type(of) is Message else Message(of or record(), pass_through)
    return Result(metadata or _metadata(message.record), message)


@overload
def multi_result(
    of: Iterable[ProducerRecord[K, V]], *, metadata: Sequence[RecordMetadata] | None = None
) -> MultiResult[K, V, None]: ...
@overload
def multi_result(
    of: Iterable[ProducerRecord[K, V]],
    *,
    pass_through: P,
    metadata: Sequence[RecordMetadata] | None = None,
) -> MultiResult[K, V, P]: ...
@overload
def multi_result(
    of: MultiMessage[K, V, P], *, metadata: Sequence[RecordMetadata] | None = None
) -> MultiResult[K, V, P]: ...
def multi_result(
    of: Any, *, pass_through: Any = None, metadata: Sequence[RecordMetadata] | None = None
) -> MultiResult[Any, Any, Any]:
    """Make the result of a :class:`~anyio_sendproducer.MultiMessage`.

    Args:
        of: the message, or its records.
        pass_through: the pass-through value, if ``of`` is a sequence of records.
        metadata: where each record was written. With None, the offsets in each partition start at
            0.

    Raises:
        ValueError: the number of metadata objects is not the number of records.
    """
    message: MultiMessage[Any, Any, Any]
    message = of if type(of) is MultiMessage else MultiMessage(of, pass_through)
    written = _in_a_row(message.records) if metadata is None else metadata
    parts = (MultiResultPart(one, sent) for one, sent in zip(written, message.records, strict=True))
    return MultiResult(tuple(parts), message.pass_through)


def pass_through_result(pass_through: P) -> PassThroughResult[P]:
    """Make the result of a :class:`~anyio_sendproducer.PassThroughMessage`."""
    return PassThroughResult(pass_through)


def _in_a_row(records: Iterable[AnyRecord]) -> list[RecordMetadata]:
    ends: dict[tuple[str, int], int] = {}
    written: list[RecordMetadata] = []
    for one in records:
        place = (one.topic, one.partition or 0)
        written.append(_metadata(one, offset=ends.get(place, 0)))
        ends[place] = ends.get(place, 0) + 1
    return written


#: The function above, for use in functions with a parameter of the same name.
_metadata = metadata


# --- errors of one record ------------------------------------------------------------------------


def _of_record(
    kind: type[E],
    of: AnyRecord | None,
    message: str,
    persistence: Persistence,
    cause: BaseException | None,
) -> E:
    error = kind(message, record=of or record(), persistence=persistence)
    error.__cause__ = cause
    return error


def timeout(
    of: AnyRecord | None = None,
    *,
    message: str = "no outcome within 120 s (delivery_timeout)",
    persistence: Persistence = Persistence.POSSIBLY_PERSISTED,
    cause: BaseException | None = None,
) -> DeliveryTimeout:
    """Make the error of a record that had no outcome in time.

    Args:
        of: the record; None for the result of :func:`record`.
        message: the error's message.
        persistence: ``NOT_PERSISTED`` if the client never got the record.
        cause: the error of the last attempt to connect to a broker.
    """
    return _of_record(DeliveryTimeout, of, message, persistence, cause)


def rejected(
    of: AnyRecord | None = None,
    *,
    message: str = "the broker refused the record: MESSAGE_TOO_LARGE",
    cause: BaseException | None = None,
) -> RecordRejected:
    """Make the error of a record that was refused.

    Args:
        of: the record; None for the result of :func:`record`.
        message: the error's message.
        cause: the client's error.
    """
    return _of_record(RecordRejected, of, message, Persistence.NOT_PERSISTED, cause)


def serialization_failed(
    of: AnyRecord | None = None,
    *,
    message: str = "the value_serializer raised ValueError: no such field",
    cause: BaseException | None = None,
) -> SerializationFailed:
    """Make the error of a record that could not be serialized.

    Args:
        of: the record; None for the result of :func:`record`.
        message: the error's message.
        cause: the exception of the serializer; None for a ValueError.
    """
    return _of_record(
        SerializationFailed,
        of,
        message,
        Persistence.NOT_PERSISTED,
        cause or ValueError("no such field"),
    )


def not_persisted(
    of: AnyRecord | None = None,
    *,
    message: str = "the record was not sent: the producer was closed",
    cause: BaseException | None = None,
) -> DeliveryError:
    """Make the error of a record that was not written, and that can be sent again safely.

    Args:
        of: the record; None for the result of :func:`record`.
        message: the error's message.
        cause: the client's error.
    """
    return _of_record(DeliveryError, of, message, Persistence.NOT_PERSISTED, cause)


def possibly_persisted(
    of: AnyRecord | None = None,
    *,
    message: str = "the answer was lost",
    cause: BaseException | None = None,
) -> DeliveryError:
    """Make the error of a record that failed, and may have been written.

    Args:
        of: the record; None for the result of :func:`record`.
        message: the error's message.
        cause: the client's error.
    """
    return _of_record(DeliveryError, of, message, Persistence.POSSIBLY_PERSISTED, cause)


# --- errors of several records -------------------------------------------------------------------


def multi_delivery_error(
    of: Iterable[AnyRecord | DeliveryError | MultiResultPart[Any, Any]] | None = None,
    *,
    pass_through: Any = None,
) -> MultiDeliveryError:
    """Make the error of several records, at least one of which was not delivered.

    Args:
        of: for each failed record, its error; for each delivered record, the record or its
            :class:`~anyio_sendproducer.MultiResultPart`. With None, one record was delivered, and
            one has the error of :func:`rejected`.
        pass_through: the envelope's pass-through value.
    """
    given: list[AnyRecord | DeliveryError | MultiResultPart[Any, Any]]
    given = [record(), rejected()] if of is None else [*of]
    delivered = iter(_in_a_row(one for one in given if isinstance(one, ProducerRecord)))
    parts = [
        MultiResultPart(next(delivered), one) if isinstance(one, ProducerRecord) else one
        for one in given
    ]
    return MultiDeliveryError(parts, pass_through)


def undelivered(*errors: DeliveryError) -> UndeliveredRecords:
    """Make the error that a producer raises for failed records that nobody awaited.

    Args:
        *errors: the errors of the records; without arguments, the error of :func:`rejected`.
    """
    kept = errors or (rejected(),)
    return UndeliveredRecords(kept, len(kept))


# --- errors of the producer ----------------------------------------------------------------------


def start_failed(
    message: str = "no broker at fake.invalid:9092 answered within 30 s (start_timeout)",
    *,
    cause: BaseException | None = None,
) -> ProducerStartError:
    """Make the error of a producer that could not start.

    ``fake_producer(start_error=start_failed())`` raises it.
    """
    error = ProducerStartError(message)
    error.__cause__ = cause
    return error


def discovery_failed(
    message: str = "the service 'kafka.invalid' was not found",
    *,
    cause: BaseException | None = None,
) -> DiscoveryError:
    """Make the error of a cluster whose addresses could not be looked up."""
    error = DiscoveryError(message)
    error.__cause__ = cause
    return error


def closed(message: str = "the producer is closed") -> ProducerClosed:
    """Make the error of a producer that is used after it was closed."""
    return ProducerClosed(message)


def broken(
    message: str = "the producer is broken", *, cause: BaseException | None = None
) -> ProducerBroken:
    """Make the error of a producer that can never send again."""
    error = ProducerBroken(message)
    error.__cause__ = cause
    return error


def fenced(
    message: str = "another producer took over the transactional_id",
) -> ProducerFenced:
    """Make the error of a producer whose ``transactional_id`` another producer took over."""
    return ProducerFenced(message)


def transaction_aborted(
    message: str = "the transaction was aborted", *, cause: BaseException | None = None
) -> TransactionAborted:
    """Make the error of a transaction that was aborted.

    Args:
        message: the error's message.
        cause: the error that caused the abort, such as the error of a record.
    """
    error = TransactionAborted(message)
    error.__cause__ = cause
    return error


def transaction_outcome_unknown(
    message: str = "the answer to the commit was lost", *, cause: BaseException | None = None
) -> TransactionOutcomeUnknown:
    """Make the error of a transaction that may or may not have been committed."""
    error = TransactionOutcomeUnknown(message)
    error.__cause__ = cause
    return error
