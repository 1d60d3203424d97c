"""Records, envelopes and what they give back: the values that cross the public API.

All are frozen. Envelopes and results follow Alpakka Kafka's ``ProducerMessage``: a pass-through
value of any type travels with what is sent and comes back with its result.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Union, cast, overload

from ._exceptions import Persistence, RecordRejected

if TYPE_CHECKING:
    # Type checkers bring this module along; at run time the core needs no more than typing's own.
    from typing_extensions import TypeVar

    K = TypeVar("K", default=None)
    V = TypeVar("V", default=None)
    P = TypeVar("P", default=None)
    Q = TypeVar("Q")
    A = TypeVar("A")
    B = TypeVar("B")
else:
    from typing import TypeVar

    K = TypeVar("K")
    V = TypeVar("V")
    P = TypeVar("P")
    Q = TypeVar("Q")

__all__ = [
    "ConsumerGroupMetadata",
    "Envelope",
    "Message",
    "MultiMessage",
    "MultiResult",
    "MultiResultPart",
    "PassThroughMessage",
    "PassThroughResult",
    "ProducerRecord",
    "RecordMetadata",
    "Result",
    "Results",
    "check_record",
    "plain",
]

#: A topic's name as the broker takes it (``org.apache.kafka.common.internals.Topic``).
_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_MAX_INT32: Final = 2**31 - 1
_MAX_INT64: Final = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class ProducerRecord(Generic[K, V]):
    """One record to be written to one topic.

    A record is checked when it is sent, not when it is made, so that every refusal comes out of
    one place, as :class:`RecordRejected` with this record in it.

    Args:
        topic: the topic's name, 1 to 249 of the characters ``a-z A-Z 0-9 . _ -``.
        value: the value; bytes, or whatever the producer's ``value_serializer`` takes. None is a
            tombstone: it deletes the key from a compacted topic.
        key: the key; bytes, or whatever ``key_serializer`` takes. Records of one key go to one
            partition. A record needs a key or a value.
        partition: the partition's number, or None to have it chosen: by the key's hash (murmur2,
            as Kafka's Java client does), otherwise one partition after the other.
        timestamp_ms: milliseconds since 1970-01-01 UTC, or None for the time of sending.
        headers: pairs of a str and bytes, in order; names may repeat.
    """

    topic: str
    value: V
    key: K
    _: dataclasses.KW_ONLY
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()

    if TYPE_CHECKING:
        # Without values for the defaults, from which pyright would conclude what K and V are.
        def __init__(
            self,
            topic: str,
            value: V = ...,
            key: K = ...,
            *,
            partition: int | None = None,
            timestamp_ms: int | None = None,
            headers: Sequence[tuple[str, bytes]] = (),
        ) -> None: ...

    else:

        def __init__(
            self,
            topic: str,
            value: V = None,
            key: K = None,
            *,
            partition: int | None = None,
            timestamp_ms: int | None = None,
            headers: Sequence[tuple[str, bytes]] = (),
        ) -> None:
            # Half the price of what a frozen dataclass generates: there is one for each record.
            _set_topic(self, topic)
            _set_value(self, value)
            _set_key(self, key)
            _set_partition(self, partition)
            _set_timestamp_ms(self, timestamp_ms)
            # A list is what other clients take; a copy keeps the record frozen in depth.
            _set_headers(self, tuple(headers) if isinstance(headers, list) else headers)


_slots: Any = ProducerRecord
_set_topic: Final = _slots.topic.__set__
_set_value: Final = _slots.value.__set__
_set_key: Final = _slots.key.__set__
_set_partition: Final = _slots.partition.__set__
_set_timestamp_ms: Final = _slots.timestamp_ms.__set__
_set_headers: Final = _slots.headers.__set__


class RecordMetadata(NamedTuple):
    """Where a record was written, as the broker acknowledged it."""

    topic: str
    """The topic's name."""
    partition: int
    """The partition's number."""
    offset: int | None
    """The record's place in the partition; None where the broker gave none (``acks=0``)."""
    timestamp_ms: int | None
    """Milliseconds since 1970-01-01 UTC: the broker's, where the topic is set to
    ``LogAppendTime``, otherwise the record's; None where the broker gave no answer (``acks=0``)."""
    serialized_key_size: int | None
    """Bytes of the key as sent; None without a key."""
    serialized_value_size: int | None
    """Bytes of the value as sent; None for a tombstone."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumerGroupMetadata:
    """Which consumer of a group says that it has read so far (KIP-447): brokers refuse one that is
    no longer a member. kafka-python's ``KafkaConsumer.group_metadata()`` will do as well."""

    group_id: str
    """The group's name."""
    generation_id: int = -1
    """The group's generation; -1 where the consumer chose its partitions by hand."""
    member_id: str = ""
    """The consumer's own id in the group."""
    group_instance_id: str | None = None
    """The id of a static member."""


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Message(Generic[K, V, P]):
    """An envelope of one record and a pass-through value; gives a :class:`Result`."""

    record: ProducerRecord[K, V]
    """What is sent."""
    pass_through: P
    """Anything at all; it comes back with the result, or the error. None where it is not given."""

    @overload
    def __init__(self: Message[A, B, None], record: ProducerRecord[A, B]) -> None: ...
    @overload
    def __init__(self, record: ProducerRecord[K, V], pass_through: P) -> None: ...
    def __init__(self, record: Any, pass_through: Any = None) -> None:
        object.__setattr__(self, "record", record)
        object.__setattr__(self, "pass_through", pass_through)

    def with_pass_through(self, value: Q) -> Message[K, V, Q]:
        """The same envelope with another pass-through value."""
        return Message(self.record, value)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class MultiMessage(Generic[K, V, P]):
    """An envelope of any number of records and one pass-through value; gives a
    :class:`MultiResult`. The records may go to different topics."""

    records: tuple[ProducerRecord[K, V], ...]
    """What is sent, in this order; there may be none."""
    pass_through: P
    """Anything at all; it comes back with the result, or the error. None where it is not given."""

    @overload
    def __init__(
        self: MultiMessage[A, B, None], records: Iterable[ProducerRecord[A, B]]
    ) -> None: ...
    @overload
    def __init__(self, records: Iterable[ProducerRecord[K, V]], pass_through: P) -> None: ...
    def __init__(self, records: Any, pass_through: Any = None) -> None:
        object.__setattr__(self, "records", tuple(records))
        object.__setattr__(self, "pass_through", pass_through)

    def with_pass_through(self, value: Q) -> MultiMessage[K, V, Q]:
        """The same envelope with another pass-through value."""
        return MultiMessage(self.records, value)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class PassThroughMessage(Generic[P]):
    """An envelope of nothing but a pass-through value; gives a :class:`PassThroughResult` and
    touches no broker. It keeps its place in a stream of envelopes."""

    pass_through: P

    @overload
    def __init__(self: PassThroughMessage[None]) -> None: ...
    @overload
    def __init__(self, pass_through: P) -> None: ...
    def __init__(self, pass_through: Any = None) -> None:
        object.__setattr__(self, "pass_through", pass_through)

    def with_pass_through(self, value: Q) -> PassThroughMessage[Q]:
        """The same envelope with another pass-through value."""
        return PassThroughMessage(value)


@dataclasses.dataclass(frozen=True, slots=True)
class Result(Generic[K, V, P]):
    """What a :class:`Message` gives back."""

    metadata: RecordMetadata
    """Where the record was written."""
    message: Message[K, V, P]
    """The envelope as it was sent."""

    @property
    def offset(self) -> int | None:
        """The record's offset; None where the broker gave none (``acks=0``)."""
        return self.metadata.offset

    @property
    def pass_through(self) -> P:
        """The envelope's pass-through value."""
        return self.message.pass_through

    @property
    def record(self) -> ProducerRecord[K, V]:
        """The envelope's record."""
        return self.message.record


@dataclasses.dataclass(frozen=True, slots=True)
class MultiResultPart(Generic[K, V]):
    """One record of a :class:`MultiMessage` and where it was written."""

    metadata: RecordMetadata
    """Where it was written."""
    record: ProducerRecord[K, V]
    """The record, as it was given."""


@dataclasses.dataclass(frozen=True, slots=True)
class MultiResult(Generic[K, V, P]):
    """What a :class:`MultiMessage` gives back: a part for each record, in their order."""

    parts: tuple[MultiResultPart[K, V], ...]
    """One for each record, in the order of the envelope; all of them were written."""
    pass_through: P
    """The envelope's."""


@dataclasses.dataclass(frozen=True, slots=True)
class PassThroughResult(Generic[P]):
    """What a :class:`PassThroughMessage` gives back."""

    pass_through: P
    """The envelope's."""


def _refuse_change(instance: object, name: str, *_value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(instance).__name__}.{name} can't be changed")


# What dataclasses generate for a frozen class with slots raises TypeError before Python 3.13 where
# typing sets __orig_class__ on an instance of a subscripted class, and expects AttributeError.
for _class in (
    ProducerRecord,
    Message,
    MultiMessage,
    PassThroughMessage,
    Result,
    MultiResultPart,
    MultiResult,
    PassThroughResult,
):
    setattr(_class, "__setattr__", _refuse_change)  # noqa: B010  # no type checker likes the other
    setattr(_class, "__delattr__", _refuse_change)  # noqa: B010


# Union and not X | Y: these are subscripted, and Python 3.10 can't do that with the other.
Envelope = Union[Message[K, V, P], MultiMessage[K, V, P], PassThroughMessage[P]]  # noqa: UP007
"""Whatever :meth:`SendProducer.send_envelope` takes."""

Results = Union[Result[K, V, P], MultiResult[K, V, P], PassThroughResult[P]]  # noqa: UP007
"""Whatever :meth:`SendProducer.send_envelope` gives back."""


def check_record(
    record: ProducerRecord[Any, Any],
    known_topics: set[str],
    key_serialized: bool = False,  # noqa: FBT001, FBT002  # a keyword costs time for each record
    value_serialized: bool = False,  # noqa: FBT001, FBT002
) -> tuple[ProducerRecord[Any, Any], int]:
    """Check a record as far as that needs no broker, and tell its size in bytes.

    Args:
        record: the record to check.
        known_topics: names that passed before; a good name is added.
        key_serialized: whether a serializer will turn the key into bytes.
        value_serialized: the same for the value.

    Returns:
        The record to send, and the size of its key, value and headers in bytes. The record is
        another one if a mutable buffer was copied, or a subclass of str, bytes or int replaced.
        With a serializer the size is that of the object in memory: an estimate until it is
        serialized.

    Raises:
        RecordRejected: something about it can't be sent; the message names the field.
    """
    topic = record.topic
    if type(topic) is not str or topic not in known_topics:
        _check_topic(record)
        if type(topic) is not str:
            topic = plain(topic)
            record = dataclasses.replace(record, topic=topic)
        # A name per message instead of a topic would make this set grow for ever.
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
            record = dataclasses.replace(record, value=value)
            size = len(value)
    if type(key) is bytes:
        size += len(key)
    elif key is not None:
        if key_serialized:
            size += _estimate(key)
        else:
            key = _as_bytes(record, "key", key)
            record = dataclasses.replace(record, key=key)
            size += len(key)
    partition = record.partition
    if partition is not None:
        _check_number(record, "partition", partition, _MAX_INT32)
        if type(partition) is not int:
            record = dataclasses.replace(record, partition=plain(partition))
    timestamp_ms = record.timestamp_ms
    if timestamp_ms is not None:
        _check_number(record, "timestamp_ms", timestamp_ms, _MAX_INT64)
        if type(timestamp_ms) is not int:
            record = dataclasses.replace(record, timestamp_ms=plain(timestamp_ms))
    if record.headers:
        header_size, are_plain = _check_headers(record)
        size += header_size
        if not are_plain:
            headers = tuple((plain(name), plain(content)) for name, content in record.headers)
            record = dataclasses.replace(record, headers=headers)
    elif record.headers != ():
        raise _rejected(
            record,
            f"headers must be a list or tuple of (str, bytes) pairs, not "
            f"{type(record.headers).__name__}",
        )
    return record, size


def plain(value: Q) -> Q:
    """A str, bytes or int as exactly that type; anything else as it is.

    Client libraries format what they are given, and a subclass may format differently: a member of
    an enum that is a str too gives its name.
    """
    exact: Any = value
    if isinstance(value, str):
        exact = str.__str__(value)
    elif isinstance(value, bytes):
        exact = bytes.__getitem__(value, slice(None))
    elif isinstance(value, int) and not isinstance(value, bool):
        exact = int.__index__(value)
    return cast("Q", exact)


def _rejected(record: ProducerRecord[Any, Any], message: str) -> RecordRejected:
    return RecordRejected(message, record=record, persistence=Persistence.NOT_PERSISTED)


def _check_topic(record: ProducerRecord[Any, Any]) -> None:
    topic = cast("object", record.topic)
    if not isinstance(topic, str):
        # Not what it is: arguments that were mixed up put the value here.
        raise _rejected(record, f"topic must be a str, not {type(topic).__name__}")
    if not topic:
        raise _rejected(record, "topic is empty: name the topic to write to")
    if len(topic) > 249:
        raise _rejected(
            record, f"topic is {len(topic)} characters long, Kafka takes 249: {topic[:40]!r}…"
        )
    if topic in {".", ".."}:
        raise _rejected(record, f"topic {topic!r} is a name that Kafka does not take")
    if not _TOPIC_NAME.fullmatch(topic):
        raise _rejected(
            record, f"topic {topic!r} has characters other than a-z, A-Z, 0-9, '.', '_' and '-'"
        )


def _check_number(
    record: ProducerRecord[Any, Any], field: str, number: object, largest: int
) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise _rejected(
            record, f"{field} must be an int or None, not {type(number).__name__}: {number!r:.40}"
        )
    if not 0 <= number <= largest:
        raise _rejected(record, f"{field} must be from 0 to {largest}, not {number}")


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
                        record, f"headers[{position}] has a name that is no UTF-8: {name!r:.80}"
                    ) from error
            case _:
                raise _rejected(record, f"headers[{position}] {_wrong_header(header)}")
    return size, are_plain


def _wrong_header(header: object) -> str:
    """What is wrong with it, without its content, which may be a secret."""
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
        # The caller may change a buffer while the record is under way: send a copy.
        return bytes(cast("bytes", content))
    raise _rejected(
        record,
        f"{field} must be bytes, not {type(content).__name__}: "
        f"encode it, or give ProducerSettings a {field}_serializer",
    )


def _estimate(content: object) -> int:
    return sys.getsizeof(content)
