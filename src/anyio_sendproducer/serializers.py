"""Serializers for ``key_serializer`` and ``value_serializer``.

Any callable with one argument is a serializer; this module has the usual ones. The producer calls
serializers on its own thread; only a threadless producer, such as a fake one, calls them on the
event loop's. No producer calls them for None: a record without a key, or a tombstone.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from ._exceptions import SettingsError
from ._hooks import AnySerializer, Serialize, check_serializer, serialize_with
from ._shown import listed

__all__ = [
    "BytesSerializer",
    "JSONSerializer",
    "SchemaRegistrySerializer",
    "StringSerializer",
    "TopicSerializer",
]


class BytesSerializer:
    """Accepts bytes, bytearray and memoryview, as a producer without a serializer does.

    Use this class to state explicitly that your code passes binary data.

    The driver thread copies a bytearray or memoryview, so do not change it before its record has
    its outcome. A record with data of another type fails with a
    :exc:`~anyio_sendproducer.SerializationFailed`. Without a serializer, the call that sends the
    record copies or refuses the data at once.
    """

    def __call__(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the data as bytes.

        Raises:
            TypeError: the data is of another type.
        """
        if not isinstance(cast("object", data), (bytes, bytearray, memoryview)):
            raise TypeError(f"expected bytes, not {type(data).__name__}")
        return bytes(data)

    def __repr__(self) -> str:
        return "BytesSerializer()"


class StringSerializer:
    """Encodes text.

    Args:
        encoding: the name of a text encoding that Python knows.

    Raises:
        SettingsError: Python knows no text encoding of this name.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        try:
            "".encode(encoding)  # a codec that is not for text, such as "hex", raises LookupError
            self._encode = codecs.lookup(encoding).encode
        except (LookupError, TypeError, ValueError):  # ValueError: a NUL in the name
            raise SettingsError(
                "StringSerializer: encoding must be a text encoding that Python knows, such as "
                f"'utf-8', not {encoding!r}"
            ) from None
        self._encoding = encoding

    def __call__(self, data: str) -> bytes:
        """Return the encoded text.

        Raises:
            TypeError: the data is not a str.
            UnicodeEncodeError: the encoding can't encode a character.
        """
        if not isinstance(cast("object", data), str):
            raise TypeError(f"expected a str, not {type(data).__name__}")
        return self._encode(data)[0]

    def __repr__(self) -> str:
        return f"StringSerializer({self._encoding!r})"


class JSONSerializer:
    """Encodes data as JSON (RFC 8259) in UTF-8, without spaces between the elements.

    Args:
        default: a function that converts an object that JSON can't represent into an object that
            JSON can represent, as in :func:`json.dumps`. With None, such an object causes a
            TypeError.
        sort_keys: whether to sort the members of objects by name, so that the bytes do not depend
            on the order of the members. This is useful for keys.

    Raises:
        SettingsError: ``default`` is not callable.
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
            # NaN and the infinities are not JSON.
            allow_nan=False,
            separators=(",", ":"),
        ).encode
        self._sort_keys = sort_keys

    def __call__(self, data: Any) -> bytes:
        """Return the data as JSON.

        Raises:
            TypeError: the data contains an object that JSON can't represent.
            ValueError: the data contains NaN, an infinity, itself, or a str that can't be encoded
                in UTF-8.
        """
        return self._encode(data).encode()

    def __repr__(self) -> str:
        return f"JSONSerializer(sort_keys={self._sort_keys})"


class SchemaRegistrySerializer:
    """Adapts a serializer of confluent-kafka that uses a schema registry. This class needs the
    extra ``schema-registry``.

    Args:
        serializer: confluent-kafka's ``AvroSerializer``, ``JSONSerializer`` or
            ``ProtobufSerializer``, or another callable that takes the data and a
            ``SerializationContext``. The producer does not close the serializer.
        field: the part of a record to serialize, ``"key"`` or ``"value"``. By default, the name of
            the subject in the registry depends on the part and on the topic.

    Raises:
        SettingsError: an argument is wrong, or confluent-kafka is not installed.

    For the first record of a topic, the serializer usually sends an HTTP request to the registry.
    This request blocks the driver thread. Later records wait, and their deadlines still apply. If
    the serializer raises an exception, only the current record fails, with a
    :exc:`~anyio_sendproducer.SerializationFailed`. Headers that the serializer adds are sent.
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
                'pip install ".[schema-registry]" in a checkout of anyio-sendproducer'
            ) from error
        self._serializer = serializer
        self._context: Callable[..., Any] = SerializationContext
        self._field = field

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        """Return the serialized data, which usually begins with the id of its schema.

        Raises:
            Exception: the exception of the serializer.
        """
        return self._serializer(data, self._context(topic, self._field, headers))

    def __repr__(self) -> str:
        return f"SchemaRegistrySerializer({type(self._serializer).__name__}, {self._field!r})"


class TopicSerializer:
    """Passes each key or value to the serializer of its topic.

    ::

        from anyio_sendproducer.serializers import (
            JSONSerializer,
            StringSerializer,
            TopicSerializer,
        )

        by_topic = {"orders": JSONSerializer(), "audit": StringSerializer()}
        settings = ProducerSettings(
            bootstrap_servers="localhost:9092", value_serializer=TopicSerializer(by_topic)
        )

    Args:
        by_topic: a mapping from topic names to serializers. A serializer is a callable with one
            argument, or an object with ``serialize(topic, headers, data)``. Later changes to the
            mapping have no effect.
        default: the serializer for every other topic. With None, a record for any other topic fails
            with a :exc:`~anyio_sendproducer.SerializationFailed`.

    Raises:
        SettingsError: ``by_topic`` is not a mapping with topic names as keys, or one of the
            serializers can't be used. The message says which one.
    """

    def __init__(
        self, by_topic: Mapping[str, AnySerializer], default: AnySerializer | None = None
    ) -> None:
        if not isinstance(cast("object", by_topic), Mapping):
            raise SettingsError(
                "TopicSerializer: by_topic must be a mapping from topics to serializers, not "
                f"{type(by_topic).__name__}"
            )
        self._by_topic: dict[str, Serialize] = {}
        for topic, serializer in by_topic.items():
            if not isinstance(cast("object", topic), str):
                raise SettingsError(
                    f"TopicSerializer: a topic must be a str, not {type(topic).__name__}"
                )
            self._by_topic[topic] = _checked(f"by_topic[{topic!r:.80}]", serializer)
        self._default = None if default is None else _checked("default", default)

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        """Return the result of the topic's serializer, which may also add headers.

        Raises:
            LookupError: the topic has no serializer, and there is no default. The message lists the
                first topics that have one.
            Exception: the exception of the serializer.
        """
        serialize = self._by_topic.get(topic, self._default)
        if serialize is None:
            known = listed(map(repr, self._by_topic)) or "no topic"
            raise LookupError(f"topic {topic!r} has no serializer; there is one for {known}")
        return cast("bytes | None", serialize(topic, headers, data))

    def __repr__(self) -> str:
        # The repr of a serializer may show a password.
        return f"TopicSerializer({listed(map(repr, self._by_topic))})"


def _checked(field: str, serializer: AnySerializer) -> Serialize:
    check_serializer(f"TopicSerializer: {field}", serializer)
    return cast("Serialize", serialize_with(serializer))
