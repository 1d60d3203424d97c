"""Serializers for ``key_serializer`` and ``value_serializer``.

Any callable of one argument will do; these are the ones that everybody needs. They are called on
the producer's own thread, never on the event loop's, and not for None, which stays None: a record
without a key, or a tombstone.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import Any, Literal, cast

from ._exceptions import SettingsError

__all__ = ["BytesSerializer", "JSONSerializer", "SchemaRegistrySerializer", "StringSerializer"]


class BytesSerializer:
    """Takes bytes, bytearray and memoryview, and nothing else. It is what no serializer is, said
    aloud."""

    def __call__(self, data: bytes | bytearray | memoryview) -> bytes:
        """The bytes.

        Raises:
            TypeError: the data is something else.
        """
        if not isinstance(cast("object", data), (bytes, bytearray, memoryview)):
            raise TypeError(f"bytes were expected, not {type(data).__name__}")
        return bytes(data)

    def __repr__(self) -> str:
        return "BytesSerializer()"


class StringSerializer:
    """Encodes text.

    Args:
        encoding: one that Python knows.

    Raises:
        SettingsError: Python does not know the encoding.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        try:
            self._encode = codecs.lookup(encoding).encode
        except (LookupError, TypeError):
            raise SettingsError(
                f"StringSerializer: encoding must be one that Python knows, not {encoding!r}"
            ) from None
        self._encoding = encoding

    def __call__(self, data: str) -> bytes:
        """The text, encoded.

        Raises:
            TypeError: the data is no text.
            UnicodeEncodeError: the encoding has not all of its characters.
        """
        if not isinstance(cast("object", data), str):
            raise TypeError(f"a str was expected, not {type(data).__name__}")
        return self._encode(data)[0]

    def __repr__(self) -> str:
        return f"StringSerializer({self._encoding!r})"


class JSONSerializer:
    """Writes JSON (RFC 8259) as UTF-8, without blanks.

    Args:
        default: turns what JSON does not know into what it knows, as in :func:`json.dumps`.
        sort_keys: write the members of objects in the order of their names, so that equal objects
            have equal bytes, as keys should.

    Raises:
        SettingsError: ``default`` can't be called.
    """

    def __init__(
        self, *, default: Callable[[Any], Any] | None = None, sort_keys: bool = False
    ) -> None:
        if default is not None and not callable(cast("object", default)):
            raise SettingsError(
                f"JSONSerializer: default must be callable, not {type(default).__name__}"
            )
        self._encode = json.JSONEncoder(
            default=default,
            sort_keys=sort_keys,
            ensure_ascii=False,
            # NaN and the infinities are none of JSON's.
            allow_nan=False,
            separators=(",", ":"),
        ).encode
        self._sort_keys = sort_keys

    def __call__(self, data: Any) -> bytes:
        """The data as JSON.

        Raises:
            TypeError: some of it is nothing that JSON knows.
            ValueError: a float is none of JSON's, it holds itself, or a str has no UTF-8.
        """
        return self._encode(data).encode()

    def __repr__(self) -> str:
        return f"JSONSerializer(sort_keys={self._sort_keys})"


class SchemaRegistrySerializer:
    """One of confluent-kafka's serializers for a schema registry. It needs the extra
    ``schema-registry``.

    Args:
        serializer: its ``AvroSerializer``, ``JSONSerializer`` or ``ProtobufSerializer``, or
            anything that is called with the data and a ``SerializationContext``. Whoever made it
            closes it.
        field: what it serializes, ``"key"`` or ``"value"``; by that and the topic it names its
            subject.

    Raises:
        SettingsError: an argument is wrong, or confluent-kafka is not installed.

    It asks the registry, by HTTP, when it meets a topic for the first time, and blocks meanwhile
    the producer's thread, and so the records behind; their deadlines go on. What it raises fails
    the one record, as a :exc:`~anyio_sendproducer.SerializationFailed`. Headers that it adds are
    sent.
    """

    def __init__(
        self, serializer: Callable[[Any, Any], bytes | None], field: Literal["key", "value"]
    ) -> None:
        if not callable(cast("object", serializer)):
            raise SettingsError(
                "SchemaRegistrySerializer: serializer must be callable, not "
                f"{type(serializer).__name__}"
            )
        if field not in {"key", "value"}:
            raise SettingsError(
                f"SchemaRegistrySerializer: field must be 'key' or 'value', not {field!r}"
            )
        try:
            from confluent_kafka.serialization import SerializationContext
        except ImportError as error:
            raise SettingsError(
                "SchemaRegistrySerializer needs confluent-kafka: "
                "pip install 'anyio-sendproducer[schema-registry]'"
            ) from error
        self._serializer = serializer
        self._context: Callable[..., Any] = SerializationContext
        self._field = field

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        """The data, with the mark of its schema.

        Raises:
            Exception: what the serializer raised.
        """
        return self._serializer(data, self._context(topic, self._field, headers))

    def __repr__(self) -> str:
        return f"SchemaRegistrySerializer({type(self._serializer).__name__}, {self._field!r})"
