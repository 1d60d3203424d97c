"""The user's serializers, as the drivers call them, and what they are answered with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from .._exceptions import Persistence, RecordRejected, SerializationFailed
from .._records import ProducerRecord
from .._settings import AnySerializer, Serializer

__all__ = ["Serialize", "bytes_of", "parts_of", "serialize_with", "size_of"]

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
    except Exception as error:
        raise SerializationFailed(
            f"the {field}_serializer raised {type(error).__name__}: {error}",
            record=record,
            persistence=Persistence.NOT_PERSISTED,
        ) from error
    if content is None or type(content) is bytes:
        return content
    if isinstance(content, (bytearray, memoryview)):
        return bytes(cast("bytearray", content))
    raise SerializationFailed(
        f"the {field}_serializer gave {type(content).__name__}, not bytes",
        record=record,
        persistence=Persistence.NOT_PERSISTED,
    )


def parts_of(
    record: ProducerRecord[Any, Any],
    serialize_key: Serialize | None,
    serialize_value: Serialize | None,
    headers: list[tuple[str, bytes]],
) -> tuple[Any, Any]:
    """A record's key and value as bytes, or None; what serializers add to the headers is there.

    Raises:
        SerializationFailed: a serializer raised, or gave something else.
        RecordRejected: neither a key nor a value is left.
    """
    key = bytes_of(record, "key", serialize_key, headers, record.key)
    value = bytes_of(record, "value", serialize_value, headers, record.value)
    if key is None and value is None:
        field = "key" if record.value is None else "value"
        raise RecordRejected(
            f"the {field}_serializer gave None: neither key nor value is left",
            record=record,
            persistence=Persistence.NOT_PERSISTED,
        )
    return key, value


def size_of(key: Any, value: Any, headers: Sequence[tuple[str, bytes]]) -> int:
    """How many bytes a record has."""
    size = sum(len(name) + len(content) for name, content in headers)
    if key is not None:
        size += len(key)
    if value is not None:
        size += len(value)
    return size
