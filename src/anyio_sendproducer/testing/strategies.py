"""Hypothesis strategies for valid and invalid records, envelopes, results and errors.

They find cases that the author of the code did not think of: an empty key, a header that occurs
twice, an envelope without records, a call in which half of the records failed.

They need Hypothesis, which the extra ``testing`` installs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .. import (
    DeliveryError,
    Envelope,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    Persistence,
    ProducerRecord,
    RecordMetadata,
    Result,
    Results,
    SendProducerError,
    UndeliveredRecords,
)
from . import factories

try:
    from hypothesis import strategies as st
except ImportError as _error:
    raise ImportError(
        "anyio_sendproducer.testing.strategies needs Hypothesis: "
        'pip install ".[testing]" in a checkout of anyio-sendproducer',
        name="hypothesis",
    ) from _error

__all__ = [
    "delivery_errors",
    "envelopes",
    "headers",
    "invalid_records",
    "keys",
    "messages",
    "metadata",
    "multi_delivery_errors",
    "multi_messages",
    "multi_results",
    "outcomes",
    "partitions",
    "pass_through_messages",
    "pass_throughs",
    "persistence",
    "producer_errors",
    "records",
    "results",
    "results_of",
    "timestamps",
    "topics",
    "undelivered_records",
    "values",
]

P = TypeVar("P")

AnyRecord = ProducerRecord[Any, Any]
BytesRecord = ProducerRecord[bytes | None, bytes | None]

_TOPIC_CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
_MAX_INT32: Final = 2**31 - 1
_MAX_INT64: Final = 2**63 - 1


# --- records -------------------------------------------------------------------------------------


def topics() -> st.SearchStrategy[str]:
    """Valid topic names: 1 to 249 of the characters ``a-z A-Z 0-9 . _ -``, except ``"."`` and
    ``".."``."""
    return st.text(_TOPIC_CHARACTERS, min_size=1, max_size=249).filter(
        lambda name: name not in {".", ".."}
    )


def keys() -> st.SearchStrategy[bytes | None]:
    """Keys: bytes, which may be empty, and None."""
    return st.none() | st.binary(max_size=50)


def values() -> st.SearchStrategy[bytes | None]:
    """Values: bytes, which may be empty, and None, which is a tombstone."""
    return st.none() | st.binary(max_size=50)


def headers() -> st.SearchStrategy[list[tuple[str, bytes]]]:
    """Headers, in which a name may occur twice. The names may contain any characters except
    surrogates."""
    # st.text() has no surrogates, which cannot be encoded as UTF-8.
    names = st.sampled_from(["a", "b"]) | st.text(max_size=8)
    return st.lists(st.tuples(names, st.binary(max_size=8)), max_size=4)


def partitions() -> st.SearchStrategy[int | None]:
    """Partition numbers that Kafka can represent, and None."""
    return st.none() | st.integers(0, _MAX_INT32)


def timestamps() -> st.SearchStrategy[int | None]:
    """Milliseconds since 1970-01-01 UTC, and None."""
    return st.none() | st.integers(0, _MAX_INT64)


def records(
    *,
    topics: st.SearchStrategy[str] | None = None,
    keys: st.SearchStrategy[Any] | None = None,
    values: st.SearchStrategy[Any] | None = None,
    headers: st.SearchStrategy[list[tuple[str, bytes]]] | None = None,
    partitions: st.SearchStrategy[int | None] | None = None,
    timestamps: st.SearchStrategy[int | None] | None = None,
) -> st.SearchStrategy[BytesRecord]:
    """Records that a producer without serializers accepts.

    Each argument replaces the strategy of that name in this module, for example
    ``topics=st.just("orders")``. With a real cluster, pass ``partitions=st.none()``, because the
    cluster does not have all the partitions that a record may name.
    """
    return st.builds(
        _make_record,
        topic=_topics() if topics is None else topics,
        key=_keys() if keys is None else keys,
        value=_values() if values is None else values,
        headers=_headers() if headers is None else headers,
        partition=_partitions() if partitions is None else partitions,
        timestamp_ms=_timestamps() if timestamps is None else timestamps,
    ).filter(lambda record: record.key is not None or record.value is not None)


def _make_record(topic: str, key: Any, value: Any, **fields: Any) -> BytesRecord:
    return ProducerRecord(topic, value, key, **fields)


def invalid_records() -> st.SearchStrategy[AnyRecord]:
    """Records that a producer without serializers always refuses. One field has an invalid value or
    a wrong type, or the record has neither a key nor a value.

    ``send`` raises :exc:`~anyio_sendproducer.RecordRejected` for each of these records.
    """
    bad: dict[str, st.SearchStrategy[Any]] = {
        "topic": st.sampled_from(
            ["", ".", "..", "my orders", "orders\n", "größe", "a/b", "x" * 250]
        )
        | st.none()
        | st.integers()
        | st.binary(max_size=5),
        "partition": _not_from_0_to(_MAX_INT32),
        "timestamp_ms": _not_from_0_to(_MAX_INT64),
        "headers": st.none()
        | st.just({"name": b"content"})
        | st.text(max_size=5)
        | st.lists(
            st.tuples(st.binary(max_size=3), st.binary(max_size=3))
            | st.tuples(st.text(max_size=3), st.none() | st.text(max_size=3))
            | st.tuples(st.text("ab"), st.binary(max_size=3), st.binary(max_size=3)),
            min_size=1,
            max_size=2,
        ),
        "key": _not_bytes(),
        "value": _not_bytes(),
    }

    def with_bad(field: str) -> st.SearchStrategy[AnyRecord]:
        return st.builds(_with, records(), st.just(field), bad[field])

    neither = records().map(lambda good: dataclasses.replace(good, key=None, value=None))
    return st.sampled_from(sorted(bad)).flatmap(with_bad) | neither


def _with(good: AnyRecord, field: str, content: Any) -> AnyRecord:
    changes: dict[str, Any] = {field: content}
    return dataclasses.replace(good, **changes)


def _not_from_0_to(largest: int) -> st.SearchStrategy[Any]:
    return (
        st.integers(max_value=-1)
        | st.integers(min_value=largest + 1)
        | st.booleans()
        | st.floats()
        | st.text(max_size=3)
    )


def _not_bytes() -> st.SearchStrategy[Any]:
    return (
        st.text(max_size=5)
        | st.integers()
        | st.lists(st.integers(0, 255), max_size=3)
        | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    )


#: The functions above, for use in functions with parameters of the same names.
_topics, _keys, _values, _headers = topics, keys, values, headers
_partitions, _timestamps = partitions, timestamps


# --- envelopes -----------------------------------------------------------------------------------


def pass_throughs() -> st.SearchStrategy[Any]:
    """Pass-through values of various types."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.builds(object),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )


def messages(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[Message[Any, Any, Any]]:
    """Messages: envelopes with one record.

    Args:
        records: the records; None for :func:`records`.
        pass_throughs: the pass-through values; None for :func:`pass_throughs`.
    """
    return st.builds(_message, _records(records), _carried(pass_throughs))


def multi_messages(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
    max_size: int = 5,
) -> st.SearchStrategy[MultiMessage[Any, Any, Any]]:
    """Multi-messages: envelopes with any number of records.

    Args:
        records: as for :func:`messages`.
        pass_throughs: as for :func:`messages`.
        max_size: the largest number of records of an envelope.
    """
    return st.builds(
        _multi_message, st.lists(_records(records), max_size=max_size), _carried(pass_throughs)
    )


def pass_through_messages(
    *, pass_throughs: st.SearchStrategy[Any] | None = None
) -> st.SearchStrategy[PassThroughMessage[Any]]:
    """Envelopes without records, which contain only a pass-through value.

    Args:
        pass_throughs: as for :func:`messages`.
    """
    return _carried(pass_throughs).map(PassThroughMessage)


def envelopes(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[Envelope[Any, Any, Any]]:
    """Envelopes of each kind.

    Args:
        records: as for :func:`messages`.
        pass_throughs: as for :func:`messages`.
    """
    return st.one_of(
        messages(records=records, pass_throughs=pass_throughs),
        multi_messages(records=records, pass_throughs=pass_throughs),
        pass_through_messages(pass_throughs=pass_throughs),
    )


def _message(record: AnyRecord, carried: Any) -> Message[Any, Any, Any]:
    return Message(record, carried)


def _multi_message(records: list[AnyRecord], carried: Any) -> MultiMessage[Any, Any, Any]:
    return MultiMessage(records, carried)


_all_records = records
_all_pass_throughs = pass_throughs


def _records(given: st.SearchStrategy[AnyRecord] | None) -> st.SearchStrategy[AnyRecord]:
    return _all_records() if given is None else given


def _carried(given: st.SearchStrategy[Any] | None) -> st.SearchStrategy[Any]:
    return _all_pass_throughs() if given is None else given


# --- results and errors --------------------------------------------------------------------------


def persistence() -> st.SearchStrategy[Persistence]:
    """The values of :class:`~anyio_sendproducer.Persistence` that the error of a record can have:
    all except ``PERSISTED``."""
    return st.sampled_from([Persistence.NOT_PERSISTED, Persistence.POSSIBLY_PERSISTED])


def metadata(record: AnyRecord | None = None) -> st.SearchStrategy[RecordMetadata]:
    """Metadata of an acknowledged record. It may lack the offset and the timestamp, as with
    ``acks=0``.

    Args:
        record: the record; None for any of :func:`records`.
    """
    return _each(record).flatmap(_metadata_of)


def _metadata_of(record: AnyRecord) -> st.SearchStrategy[RecordMetadata]:
    def acknowledged(partition: int, offset: int, timestamp_ms: int) -> RecordMetadata:
        return factories.metadata(
            record, partition=partition, offset=offset, timestamp_ms=timestamp_ms
        )

    def not_asked(partition: int) -> RecordMetadata:
        return factories.metadata(record, partition=partition, offset=None)

    numbers = st.integers(0, 99) if record.partition is None else st.just(record.partition)
    # With LogAppendTime, the broker chooses the timestamp.
    times = st.integers(0, _MAX_INT64)
    if record.timestamp_ms is not None:
        times = st.just(record.timestamp_ms) | times
    offsets = st.integers(0, _MAX_INT64)
    return st.builds(acknowledged, numbers, offsets, times) | numbers.map(not_asked)


def delivery_errors(record: AnyRecord | None = None) -> st.SearchStrategy[DeliveryError]:
    """Errors of one record, of each kind.

    Args:
        record: the record; None for any of :func:`records`.
    """
    kinds: list[Callable[[AnyRecord], DeliveryError]] = [
        factories.rejected,
        factories.serialization_failed,
        factories.not_persisted,
        factories.possibly_persisted,
    ]

    def fail(one: AnyRecord, make: Callable[[AnyRecord], DeliveryError]) -> DeliveryError:
        return make(one)

    def time_out(one: AnyRecord, known: Persistence) -> DeliveryError:
        return factories.timeout(one, persistence=known)

    return st.builds(fail, _each(record), st.sampled_from(kinds)) | st.builds(
        time_out, _each(record), persistence()
    )


def outcomes(
    record: AnyRecord | None = None,
) -> st.SearchStrategy[RecordMetadata | DeliveryError]:
    """Outcomes of one record: metadata, and errors of each kind.

    Args:
        record: the record; None for any of :func:`records`.
    """
    # Both alternatives must be about the same record.
    return _each(record).flatmap(lambda one: metadata(one) | delivery_errors(one))


def results_of(envelope: Envelope[Any, Any, P]) -> st.SearchStrategy[Results[Any, Any, P]]:
    """Results of an envelope whose records were all acknowledged.

    Args:
        envelope: the message, multi-message or pass-through message.
    """
    if isinstance(envelope, Message):
        return metadata(envelope.record).map(lambda one: Result(one, envelope))
    if isinstance(envelope, MultiMessage):
        return _multi_result(envelope)
    return st.just(PassThroughResult(envelope.pass_through))


def _multi_result(
    envelope: MultiMessage[Any, Any, P],
) -> st.SearchStrategy[MultiResult[Any, Any, P]]:
    return st.tuples(*(_part(record) for record in envelope.records)).map(
        lambda parts: MultiResult(parts, envelope.pass_through)
    )


def results(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[Results[Any, Any, Any]]:
    """Results of envelopes of each kind.

    Args:
        records: as for :func:`messages`.
        pass_throughs: as for :func:`messages`.
    """
    return envelopes(records=records, pass_throughs=pass_throughs).flatmap(results_of)


def multi_results(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[MultiResult[Any, Any, Any]]:
    """Results of envelopes with any number of records.

    Args:
        records: as for :func:`messages`.
        pass_throughs: as for :func:`messages`.
    """
    return multi_messages(records=records, pass_throughs=pass_throughs).flatmap(_multi_result)


def multi_delivery_errors(
    *,
    records: st.SearchStrategy[AnyRecord] | None = None,
    pass_throughs: st.SearchStrategy[Any] | None = None,
) -> st.SearchStrategy[MultiDeliveryError]:
    """Errors of one or more records, at least one of which failed.

    Args:
        records: as for :func:`messages`.
        pass_throughs: as for :func:`messages`.
    """
    parts = st.lists(_records(records), min_size=1, max_size=5).flatmap(
        lambda several: st.tuples(
            *(
                st.one_of(_part(record), delivery_errors(record))
                if position
                else delivery_errors(record)
                for position, record in enumerate(several)
            )
        ).flatmap(st.permutations)
    )
    return st.builds(MultiDeliveryError, parts, _carried(pass_throughs))


def undelivered_records() -> st.SearchStrategy[UndeliveredRecords]:
    """Errors that a producer raises for failed records that nobody awaited."""

    def end(errors: list[DeliveryError], more: int) -> UndeliveredRecords:
        return UndeliveredRecords(errors, len(errors) + more)

    return st.builds(
        end,
        st.lists(delivery_errors(), min_size=1, max_size=3),
        st.just(0) | st.integers(0, 10_000),
    )


def producer_errors() -> st.SearchStrategy[SendProducerError]:
    """Errors of producers and transactions, not of records: each kind that
    :mod:`~anyio_sendproducer.testing.factories` makes."""
    kinds: list[Callable[[], SendProducerError]] = [
        factories.start_failed,
        factories.discovery_failed,
        factories.closed,
        factories.broken,
        factories.fenced,
        factories.transaction_aborted,
        factories.transaction_outcome_unknown,
    ]
    return st.sampled_from(kinds).map(lambda make: make())


def _part(record: AnyRecord) -> st.SearchStrategy[MultiResultPart[Any, Any]]:
    return metadata(record).map(lambda one: MultiResultPart(one, record))


def _each(record: AnyRecord | None) -> st.SearchStrategy[AnyRecord]:
    return _all_records() if record is None else st.just(record)
