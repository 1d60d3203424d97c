"""Records, envelopes and what they give back: the values that cross the public API.

All are frozen. Envelopes and results follow Alpakka Kafka's ``ProducerMessage``: a pass-through
value of any type travels with what is sent and comes back with its result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Union, overload

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
]


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
