"""Records, results and errors as a producer gives them, with defaults for all that a test does not
care about.

A test of code that takes a result, or handles an error, needs one that looks like the real ones.
Each factory of a :class:`~anyio_sendproducer.DeliveryError` takes the record as its only argument
that has no keyword, so that it serves as an answer of a fake producer too::

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

from .._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    DiscoveryError,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerStartError,
    RecordRejected,
    SerializationFailed,
    TransactionAborted,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
)
from .._records import (
    Message,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughResult,
    ProducerRecord,
    RecordMetadata,
    Result,
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


# --- records and what they give back -----------------------------------------------------------


def record(
    topic: str = "topic",
    value: bytes | None = b"value",
    key: bytes | None = None,
    *,
    partition: int | None = None,
    timestamp_ms: int | None = None,
    headers: Sequence[tuple[str, bytes]] = (),
) -> ProducerRecord[bytes | None, bytes | None]:
    """A record that can be sent.

    Args:
        topic: the topic's name.
        value: its value.
        key: its key.
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
    """What a broker acknowledges a record with.

    Args:
        of: the record; None: that of :func:`record`. What else is not given is taken from it.
        topic: the topic's name.
        partition: the partition's number; 0, where the record has none either.
        offset: the record's place in the partition; None, as with ``acks=0``.
        timestamp_ms: milliseconds since 1970-01-01 UTC; 0, where the record has none either.

    Sizes are those of a key and a value of bytes; of one that is serialized, those of its text.
    """
    of = record() if of is None else of
    if partition is None:
        partition = of.partition or 0
    if timestamp_ms is None:
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
    """What a :class:`~anyio_sendproducer.Message` gives back.

    Args:
        of: the message, or a record; nothing: that of :func:`record`.
        pass_through: the pass-through value that goes with a record.
        metadata: where it was written; None: what :func:`metadata` says of the record.
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
    """What a :class:`~anyio_sendproducer.MultiMessage` gives back.

    Args:
        of: the message, or its records.
        pass_through: the pass-through value that goes with records.
        metadata: where each was written; None: one after the other in their partitions, from
            offset 0 on.

    Raises:
        ValueError: there are not as many metadata as records.
    """
    message: MultiMessage[Any, Any, Any]
    message = of if type(of) is MultiMessage else MultiMessage(of, pass_through)
    written = _in_a_row(message.records) if metadata is None else metadata
    parts = (MultiResultPart(one, sent) for one, sent in zip(written, message.records, strict=True))
    return MultiResult(tuple(parts), message.pass_through)


def pass_through_result(pass_through: P) -> PassThroughResult[P]:
    """What a :class:`~anyio_sendproducer.PassThroughMessage` gives back."""
    return PassThroughResult(pass_through)


def _in_a_row(records: Iterable[AnyRecord]) -> list[RecordMetadata]:
    ends: dict[tuple[str, int], int] = {}
    written: list[RecordMetadata] = []
    for one in records:
        place = (one.topic, one.partition or 0)
        written.append(_metadata(one, offset=ends.get(place, 0)))
        ends[place] = ends.get(place, 0) + 1
    return written


#: Behind an argument of the same name.
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
    """A record that had no outcome in time.

    Args:
        of: the record; None: that of :func:`record`.
        message: what the error says.
        persistence: ``NOT_PERSISTED`` for one that the client was never given.
        cause: why no broker was reached.
    """
    return _of_record(DeliveryTimeout, of, message, persistence, cause)


def rejected(
    of: AnyRecord | None = None,
    *,
    message: str = "the broker refused the record: MESSAGE_TOO_LARGE",
    cause: BaseException | None = None,
) -> RecordRejected:
    """A record that was refused.

    Args:
        of: the record; None: that of :func:`record`.
        message: what the error says.
        cause: the client's error.
    """
    return _of_record(RecordRejected, of, message, Persistence.NOT_PERSISTED, cause)


def serialization_failed(
    of: AnyRecord | None = None,
    *,
    message: str = "the value_serializer raised ValueError: no such field",
    cause: BaseException | None = None,
) -> SerializationFailed:
    """A record whose key or value could not be turned into bytes.

    Args:
        of: the record; None: that of :func:`record`.
        message: what the error says.
        cause: what the serializer raised; None: a ValueError.
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
    message: str = "the record was not sent: the producer was closed before",
    cause: BaseException | None = None,
) -> DeliveryError:
    """A record that failed, and is not in the log: to send it again is safe.

    Args:
        of: the record; None: that of :func:`record`.
        message: what the error says.
        cause: the client's error.
    """
    return _of_record(DeliveryError, of, message, Persistence.NOT_PERSISTED, cause)


def possibly_persisted(
    of: AnyRecord | None = None,
    *,
    message: str = "the answer was lost",
    cause: BaseException | None = None,
) -> DeliveryError:
    """A record that failed, and may be in the log all the same.

    Args:
        of: the record; None: that of :func:`record`.
        message: what the error says.
        cause: the client's error.
    """
    return _of_record(DeliveryError, of, message, Persistence.POSSIBLY_PERSISTED, cause)


# --- errors of several records -------------------------------------------------------------------


def multi_delivery_error(
    of: Iterable[AnyRecord | DeliveryError | MultiResultPart[Any, Any]] | None = None,
    *,
    pass_through: Any = None,
) -> MultiDeliveryError:
    """Several records, some of which were not delivered.

    Args:
        of: for each record its error, or, where it was delivered, the record or its part; None:
            one that was delivered and one that was :func:`rejected`.
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
    """What a scope ends with where records failed and nobody awaited them.

    Args:
        *errors: the failures; none: one that was :func:`rejected`.
    """
    kept = errors or (rejected(),)
    return UndeliveredRecords(kept, len(kept))


# --- errors of the producer ----------------------------------------------------------------------


def start_failed(
    message: str = "no broker at fake.invalid:9092 answered within 30 s (start_timeout)",
    *,
    cause: BaseException | None = None,
) -> ProducerStartError:
    """A producer that could not start; ``fake_producer(start_error=start_failed())`` raises it."""
    error = ProducerStartError(message)
    error.__cause__ = cause
    return error


def discovery_failed(
    message: str = "the service 'kafka.invalid' was not found",
    *,
    cause: BaseException | None = None,
) -> DiscoveryError:
    """A cluster whose addresses could not be looked up."""
    error = DiscoveryError(message)
    error.__cause__ = cause
    return error


def closed(message: str = "the producer is closed") -> ProducerClosed:
    """A producer that is used after its end."""
    return ProducerClosed(message)


def broken(
    message: str = "the producer is broken", *, cause: BaseException | None = None
) -> ProducerBroken:
    """A producer that can never send again."""
    error = ProducerBroken(message)
    error.__cause__ = cause
    return error


def fenced(
    message: str = "another producer took over the transactional_id",
) -> ProducerFenced:
    """A producer whose ``transactional_id`` another one has now."""
    return ProducerFenced(message)


def transaction_aborted(
    message: str = "the transaction was aborted", *, cause: BaseException | None = None
) -> TransactionAborted:
    """A transaction that nobody ever sees.

    Args:
        message: what the error says.
        cause: the failure of a record that was the reason.
    """
    error = TransactionAborted(message)
    error.__cause__ = cause
    return error


def transaction_outcome_unknown(
    message: str = "the answer to the commit was lost", *, cause: BaseException | None = None
) -> TransactionOutcomeUnknown:
    """A transaction of which nobody knows whether it was committed."""
    error = TransactionOutcomeUnknown(message)
    error.__cause__ = cause
    return error
