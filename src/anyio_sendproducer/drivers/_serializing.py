"""Calls the user's serializers, and checks their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from .._exceptions import Persistence, RecordRejected, SerializationFailed, discreet
from .._hooks import Serialize, serialize_with
from .._records import ProducerRecord
from .._settings import ProducerSettings
from .._shown import raised_text
from .security._settings import encodes

__all__ = [
    "bytes_of",
    "check_headers",
    "parts_of",
    "serialize_record",
    "size_of",
]


def bytes_of(
    record: ProducerRecord[Any, Any],
    field: str,
    serialize: Serialize | None,
    headers: list[tuple[str, bytes]],
    data: Any,
) -> Any:
    """Serialize a key or a value.

    Returns:
        Bytes, or None.

    Raises:
        SerializationFailed: the serializer raised, or returned something other than bytes, a
            bytearray, a memoryview or None.
    """
    # None is not serialized: JSON's "null" instead of a tombstone would delete nothing.
    if serialize is None or data is None:
        return data
    try:
        content = serialize(record.topic, headers, data)
        if content is None or type(content) is bytes:
            return content
        if isinstance(content, (bytes, bytearray, memoryview)):  # bytes: a subclass
            return bytes(cast("bytes", content))
    # Python raises KeyboardInterrupt on the main thread, and a serializer usually runs on another
    # thread. So SystemExit and the like come from the serializer, and only this record fails.
    except BaseException as error:
        failure = _failed(record, f"the {field}_serializer {raised_text(error)}")
        said = f"the {field}_serializer raised {type(error).__name__}"
        raise discreet(failure, said) from error
    raise _failed(record, f"the {field}_serializer returned {type(content).__name__}, not bytes")


def _failed(record: ProducerRecord[Any, Any], message: str) -> SerializationFailed:
    """Make the error of a record. The message must not repeat the record."""
    error = SerializationFailed(message, record=record, persistence=Persistence.NOT_PERSISTED)
    return discreet(error, message)


def check_headers(record: ProducerRecord[Any, Any], headers: Sequence[object]) -> None:
    """Check the headers of a record, to which serializers may have added some.

    Raises:
        SerializationFailed: a header is not a (str, bytes) tuple, or its name cannot be encoded as
            UTF-8.
    """
    if headers == [*record.headers]:  # none was added
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
    """Serialize a record's key and value. Serializers may add headers.

    Returns:
        The key and the value, each bytes or None.

    Raises:
        SerializationFailed: a serializer raised, returned a wrong type, or added an invalid header.
        RecordRejected: the serializers left neither a key nor a value.
    """
    key = bytes_of(record, "key", serialize_key, headers, record.key)
    value = bytes_of(record, "value", serialize_value, headers, record.value)
    if headers:
        check_headers(record, headers)
    if key is None and value is None:
        field = "key" if record.value is None else "value"
        raise RecordRejected(
            f"the {field}_serializer returned None: neither key nor value is left",
            record=record,
            persistence=Persistence.NOT_PERSISTED,
        )
    return key, value


def serialize_record(
    record: ProducerRecord[Any, Any], settings: ProducerSettings
) -> tuple[ProducerRecord[bytes | None, bytes | None], int]:
    """Serialize a record with the serializers of a producer's settings.

    Args:
        record: the record that the caller sent.
        settings: the producer's settings.

    Returns:
        The record with a serialized key and value and with the headers that serializers added; and
        the size of its key, value and headers in bytes, for
        :attr:`Submitted.sizes <anyio_sendproducer.drivers.Submitted.sizes>`.

    Raises:
        SerializationFailed: a serializer raised, returned a wrong type, or added an invalid header.
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
    """Return the size of a record's key, value and headers in bytes."""
    size = sum(len(name.encode()) + len(content) for name, content in headers)
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    return size
