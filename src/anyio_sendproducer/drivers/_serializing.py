"""The user's serializers, as the drivers call them, and what they are answered with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from .._exceptions import Persistence, RecordRejected, SerializationFailed
from .._records import ProducerRecord
from .._settings import AnySerializer, ProducerSettings, Serializer
from .._shown import raised_text
from .security._settings import encodes

__all__ = [
    "Serialize",
    "bytes_of",
    "check_headers",
    "parts_of",
    "serialize_record",
    "serialize_with",
    "size_of",
]

Serialize = Callable[[str, list[tuple[str, bytes]], Any], Any]


def serialize_with(serializer: AnySerializer | None) -> Serialize | None:
    """A serializer of either shape as one function of topic, headers and data."""
    if serializer is None:
        return None
    if isinstance(serializer, Serializer):
        return serializer.serialize
    plain = serializer
    return lambda _topic, _headers, data: plain(data)


def bytes_of(
    record: ProducerRecord[Any, Any],
    field: str,
    serialize: Serialize | None,
    headers: list[tuple[str, bytes]],
    data: Any,
) -> Any:
    """A key or a value as bytes, or None.

    Raises:
        SerializationFailed: the serializer raised, or gave something else.
    """
    # None is not serialized: JSON's "null" in place of a tombstone would delete nothing.
    if serialize is None or data is None:
        return data
    try:
        content = serialize(record.topic, headers, data)
        if content is None or type(content) is bytes:
            return content
        if isinstance(content, (bytearray, memoryview)):
            return bytes(cast("bytearray", content))
    # An interrupt comes to the main thread, and this is another. So SystemExit and the like are the
    # serializer's own, and concern this record alone.
    except BaseException as error:
        raise _failed(record, f"the {field}_serializer {raised_text(error)}") from error
    raise _failed(record, f"the {field}_serializer gave {type(content).__name__}, not bytes")


def _failed(record: ProducerRecord[Any, Any], message: str) -> SerializationFailed:
    return SerializationFailed(message, record=record, persistence=Persistence.NOT_PERSISTED)


def check_headers(record: ProducerRecord[Any, Any], headers: Sequence[object]) -> None:
    """Check the headers of a record that serializers may have added some to.

    Raises:
        SerializationFailed: one of them is not a (str, bytes) tuple.
    """
    if headers == [*record.headers]:  # none was added, which is quickly seen
        return
    for header in headers:
        match header:
            case (str() as name, bytes()) if isinstance(header, tuple) and encodes(name):
                pass
            case _:
                raise _failed(record, "a serializer added a header that is not a (str, bytes) pair")


def parts_of(
    record: ProducerRecord[Any, Any],
    serialize_key: Serialize | None,
    serialize_value: Serialize | None,
    headers: list[tuple[str, bytes]],
) -> tuple[Any, Any]:
    """A record's key and value as bytes, or None. Serializers may add to the headers.

    Raises:
        SerializationFailed: a serializer raised, or gave or added something else.
        RecordRejected: neither a key nor a value is left.
    """
    key = bytes_of(record, "key", serialize_key, headers, record.key)
    value = bytes_of(record, "value", serialize_value, headers, record.value)
    if headers:
        check_headers(record, headers)
    if key is None and value is None:
        field = "key" if record.value is None else "value"
        raise RecordRejected(
            f"the {field}_serializer gave None: neither key nor value is left",
            record=record,
            persistence=Persistence.NOT_PERSISTED,
        )
    return key, value


def serialize_record(
    record: ProducerRecord[Any, Any], settings: ProducerSettings
) -> tuple[ProducerRecord[bytes | None, bytes | None], int]:
    """Serialize a record with the serializers of a producer's settings.

    Args:
        record: as the caller sent it.
        settings: the producer's settings.

    Returns:
        The record with bytes, and with the headers that serializers added; and the bytes of its
        key, value and headers, for :attr:`Submitted.sizes`.

    Raises:
        SerializationFailed: a serializer raised, or returned or added a value of a wrong type.
        RecordRejected: the serializers left neither a key nor a value.
    """
    headers = [*record.headers]
    key, value = parts_of(
        record,
        serialize_with(settings.key_serializer),
        serialize_with(settings.value_serializer),
        headers,
    )
    serialized = ProducerRecord(
        record.topic,
        value,
        key,
        partition=record.partition,
        timestamp_ms=record.timestamp_ms,
        headers=headers,
    )
    return serialized, size_of(key, value, headers)


def size_of(key: Any, value: Any, headers: Sequence[tuple[str, bytes]]) -> int:
    """How many bytes a record has."""
    size = sum(len(name) + len(content) for name, content in headers)
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    return size
