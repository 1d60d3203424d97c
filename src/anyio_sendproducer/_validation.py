"""Checks of the arguments that callers pass: records, envelopes and counts.

The checks run on the caller's task and need no broker. An error names the field. It may show what
was passed as the topic, the partition, the timestamp or the name of a header. It never shows what
was passed as the key, the value or the content of a header, which may be secrets.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable
from typing import Any, Final, TypeVar, cast

from ._exceptions import Persistence, RecordRejected, SettingsError
from ._records import Message, MultiMessage, PassThroughMessage, ProducerRecord
from ._shown import shown

__all__ = [
    "check_count",
    "check_is_envelope",
    "check_is_record",
    "check_record",
    "examples_of",
    "not_an_envelope",
    "plain",
    "record_of",
    "records_of",
    "topic_problem",
]

T = TypeVar("T")

#: A topic's name as brokers accept it (``org.apache.kafka.common.internals.Topic``).
_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
MAX_INT32: Final = 2**31 - 1
MAX_INT64: Final = 2**63 - 1


def check_record(
    record: ProducerRecord[Any, Any],
    known_topics: set[str],
    key_serialized: bool = False,  # noqa: FBT001, FBT002  # a keyword costs time for each record
    value_serialized: bool = False,  # noqa: FBT001, FBT002
) -> tuple[ProducerRecord[Any, Any], int]:
    """Check everything about a record that needs no broker, and compute its size.

    Args:
        record: the record to check.
        known_topics: topic names that passed before; a valid name is added.
        key_serialized: whether a serializer will turn the key into bytes.
        value_serialized: the same for the value.

    Returns:
        The record to send, and the size of its key, value and headers in bytes. The record is a
        copy if a mutable buffer was copied, or an instance of a subclass of str, bytes or int was
        replaced. With a serializer, the size is an estimate: the size of the object in memory.

    Raises:
        RecordRejected: a field is invalid; the message names it.
    """
    topic = record.topic
    if type(topic) is not str or topic not in known_topics:
        _check_topic(record)
        if type(topic) is not str:
            topic = plain(topic)
            record = _changed(record, topic=topic)
        # An application with a new topic name for each record must not fill the memory.
        if len(known_topics) >= 10_000:
            known_topics.clear()
        known_topics.add(topic)
    key = record.key
    value = record.value
    if key is None and value is None:
        raise _rejected(record, "neither key nor value is set: give the record at least one")
    size = 0
    if type(value) is bytes:
        size = len(value)
    elif value is not None:
        if value_serialized:
            size = _estimate(value)
        else:
            value = _as_bytes(record, "value", value)
            record = _changed(record, value=value)
            size = len(value)
    if type(key) is bytes:
        size += len(key)
    elif key is not None:
        if key_serialized:
            size += _estimate(key)
        else:
            key = _as_bytes(record, "key", key)
            record = _changed(record, key=key)
            size += len(key)
    partition = record.partition
    if partition is not None:
        _check_number(record, "partition", partition, MAX_INT32)
        if type(partition) is not int:
            record = _changed(record, partition=plain(partition))
    timestamp_ms = record.timestamp_ms
    if timestamp_ms is not None:
        _check_number(record, "timestamp_ms", timestamp_ms, MAX_INT64)
        if type(timestamp_ms) is not int:
            record = _changed(record, timestamp_ms=plain(timestamp_ms))
    if record.headers:
        header_size, are_plain = _check_headers(record)
        size += header_size
        if not are_plain:
            headers = tuple((plain(name), plain(content)) for name, content in record.headers)
            record = _changed(record, headers=headers)
    elif record.headers != ():
        raise _rejected(
            record,
            f"headers must be a list or tuple of (str, bytes) pairs, not "
            f"{type(record.headers).__name__}",
        )
    return record, size


def plain(value: T) -> T:
    """Convert an instance of a subclass of str, bytes or int to exactly that type.

    Client libraries format the values that they get, and a subclass may format itself differently:
    for example, a member of a class that derives from ``str`` and ``Enum`` may give its name.

    Returns:
        The converted value; a bool or any other value as it is.
    """
    exact: Any = value
    if isinstance(value, str):
        exact = str.__str__(value)
    elif isinstance(value, bytes):
        exact = bytes.__getitem__(value, slice(None))
    elif isinstance(value, int) and not isinstance(value, bool):
        exact = int.__index__(value)
    return cast("T", exact)


def _changed(record: ProducerRecord[Any, Any], **fields: Any) -> ProducerRecord[Any, Any]:
    """Copy a record, and change fields of the copy.

    Unlike ``dataclasses.replace``, this works for a subclass whose constructor has other arguments.
    """
    copied = copy.copy(record)
    # A subclass may have attributes of its own, which copy() leaves out.
    for name, value in {**getattr(record, "__dict__", {}), **fields}.items():
        object.__setattr__(copied, name, value)
    return copied


def _rejected(record: ProducerRecord[Any, Any], message: str) -> RecordRejected:
    return RecordRejected(message, record=record, persistence=Persistence.NOT_PERSISTED)


def _check_topic(record: ProducerRecord[Any, Any]) -> None:
    problem = topic_problem(record.topic)
    if problem is not None:
        raise _rejected(record, problem)


def topic_problem(topic: object) -> str | None:
    """Say what is wrong with the name of a topic; None if nothing is."""
    if not isinstance(topic, str):
        # Show only the type. If the caller swapped topic and value, `topic` holds the value.
        return f"topic must be a str, not {type(topic).__name__}"
    if not topic:
        return "topic is empty: name the topic to write to"
    if len(topic) > 249:
        return f"topic has {len(topic)} characters, but Kafka allows 249 at most: {topic[:40]!r}…"
    if topic in {".", ".."}:
        return f"topic {topic!r} is a name that Kafka does not allow"
    if not _TOPIC_NAME.fullmatch(topic):
        return f"topic {topic!r} has characters other than a-z, A-Z, 0-9, '.', '_' and '-'"
    return None


def _check_number(
    record: ProducerRecord[Any, Any], field: str, number: object, largest: int
) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        kind, said = type(number).__name__, shown(number)
        raise _rejected(
            record,
            f"{field} must be an int or None, not {kind}" + ("" if said == kind else f": {said}"),
        )
    if not 0 <= number <= largest:
        said = shown(plain(number)) if abs(number) < 10**30 else "an int with more than 30 digits"
        raise _rejected(record, f"{field} must be from 0 to {largest}, not {said}")


def _check_headers(record: ProducerRecord[Any, Any]) -> tuple[int, bool]:
    """Check the headers.

    Returns: their size in bytes, and whether each name is exactly a str and each content bytes.
    """
    headers: object = record.headers
    if not isinstance(headers, tuple):
        raise _rejected(
            record,
            f"headers must be a list or tuple of (str, bytes) pairs, not {type(headers).__name__}",
        )
    size = 0
    are_plain = True
    for position, header in enumerate(cast("tuple[object, ...]", headers)):
        match header:
            case (str() as name, bytes() as content) if isinstance(header, tuple):
                are_plain = are_plain and type(name) is str and type(content) is bytes
                try:
                    size += len(name.encode()) + len(content)
                except UnicodeEncodeError as error:
                    raise _rejected(
                        record,
                        f"headers[{position}] has a name that cannot be encoded as UTF-8: "
                        f"{name!r:.80}",
                    ) from error
            case _:
                raise _rejected(record, f"headers[{position}] {_wrong_header(header)}")
    return size, are_plain


def _wrong_header(header: object) -> str:
    """Describe what is wrong with a header, without its content, which may be a secret."""
    if not isinstance(header, tuple):
        return f"must be a (str, bytes) tuple, not {type(header).__name__}"
    parts = cast("tuple[object, ...]", header)
    if len(parts) == 2 and isinstance(parts[0], str):
        hint = ": encode it" if isinstance(parts[1], str) else ""
        return f"({parts[0]!r:.80}): the content must be bytes, not {type(parts[1]).__name__}{hint}"
    kinds = ", ".join(type(part).__name__ for part in parts[:3])
    return f"must be a (str, bytes) tuple, not ({kinds}{', ...' if len(parts) > 3 else ''})"


def _as_bytes(record: ProducerRecord[Any, Any], field: str, content: object) -> bytes:
    if isinstance(content, (bytes, bytearray, memoryview)):
        # The caller may change a buffer before the record is sent: send a copy.
        try:
            return bytes(cast("bytes", content))
        except ValueError as error:
            kind = type(cast("object", content)).__name__
            raise _rejected(record, f"{field} is a {kind} that can't be read") from error
    raise _rejected(
        record,
        f"{field} must be bytes, not {type(content).__name__}: "
        f"encode it, or set {field}_serializer in ProducerSettings",
    )


def _estimate(content: object) -> int:
    return sys.getsizeof(content)


def check_is_envelope(given: object) -> None:
    """Check that an argument is an envelope.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(given, (Message, MultiMessage, PassThroughMessage)):
        raise not_an_envelope(given)


def not_an_envelope(given: object) -> TypeError:
    """The error of an argument that should be an envelope."""
    return TypeError(
        "an envelope must be a Message, MultiMessage or PassThroughMessage, "
        f"not {type(given).__name__}: use send() for a record"
    )


def check_is_record(given: object) -> None:
    """Check that an argument is a record.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(given, ProducerRecord):
        # The message names the type only: the content may be a secret.
        kind = type(given).__name__
        is_envelope = isinstance(given, (Message, MultiMessage, PassThroughMessage))
        hint = ": use send_envelope() for it" if is_envelope else ""
        raise TypeError(f"expected a ProducerRecord, not {kind}{hint}")


def record_of(given: Any, topic: Any, **fields: Any) -> ProducerRecord[Any, Any]:
    """Make the record from the arguments of ``send()``.

    Args:
        given: the first argument, which may be a record or a topic.
        topic: the topic if it was passed by name.
        fields: the other fields of the record; None or an empty tuple if they were not passed.

    Raises:
        TypeError: the arguments are neither one record nor the fields of one.
    """
    if (given is None) is not (topic is None):
        topic = given if topic is None else topic
        if isinstance(topic, str):
            return ProducerRecord(topic, **fields)
        has_fields = any(field is not None and field != () for field in fields.values())
        if not has_fields or not isinstance(topic, ProducerRecord):
            check_is_record(topic)
            return cast("ProducerRecord[Any, Any]", topic)  # an instance of a subclass
    raise TypeError(
        "send() takes one record, or the fields of one: send(record), or "
        "send('orders', b'two tins', key=b'42')"
    )


def records_of(given: Iterable[ProducerRecord[Any, Any]]) -> tuple[ProducerRecord[Any, Any], ...]:
    """Make a tuple of the argument of ``send_many()``.

    Raises:
        TypeError: it is not an iterable.
    """
    if not isinstance(cast("object", given), Iterable):
        hint = ": send() sends one" if isinstance(cast("object", given), ProducerRecord) else ""
        raise TypeError(
            f"send_many() takes an iterable of records, not {type(given).__name__}{hint}"
        )
    return tuple(given)


def examples_of(
    given: Iterable[str | ProducerRecord[Any, Any]],
) -> tuple[str | ProducerRecord[Any, Any], ...]:
    """Make a tuple of the argument of ``warm_up()``.

    Raises:
        TypeError: it is not an iterable of topics and records.
    """
    what = cast("object", given)
    is_one = isinstance(what, (str, ProducerRecord))
    if is_one or not isinstance(what, Iterable):
        hint = ": put it in a list" if is_one else ""
        raise TypeError(
            f"warm_up() takes an iterable of topics and records, not {type(given).__name__}{hint}"
        )
    examples = tuple(given)
    for example in examples:
        if not isinstance(cast("object", example), (str, ProducerRecord)):
            raise TypeError(
                f"warm_up() takes names of topics and ProducerRecords, not {type(example).__name__}"
            )
    return examples


def check_count(field: str, value: object) -> None:
    """Check a setting that counts something.

    Raises:
        SettingsError: the value is not an int of 1 or more; the message names the field.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"{field} must be an int of 1 or more, not {shown(value)}")
