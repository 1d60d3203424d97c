"""The values of the public API: records, envelopes and results.

All are frozen. Envelopes and results follow Alpakka Kafka's ``ProducerMessage``: an envelope has a
pass-through value of any type, which its result contains, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, overload

if TYPE_CHECKING:
    # Type checkers have stubs of typing_extensions. At run time it need not be installed.
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

    The producer checks a record when the record is sent. For an invalid record,
    :meth:`SendProducer.send` raises a :class:`RecordRejected` that contains the record.

    Args:
        topic: the topic's name: 1 to 249 of the characters ``a-z A-Z 0-9 . _ -``. The names ``.``
            and ``..`` are not allowed.
        value: the value: bytes, or an object that the producer's ``value_serializer`` accepts.
            None is a tombstone, which deletes the key from a compacted topic.
        key: the key: bytes, or an object that ``key_serializer`` accepts. By default, records with
            the same key are sent to the same partition. A record needs a key or a value.
        partition: the partition's number. With None, the driver or the setting ``partitioner``
            chooses one. By default, the drivers choose by the hash of the key (murmur2, as in
            Kafka's Java client). They distribute records without a key over the partitions, and may
            send several consecutive records to the same partition.
        timestamp_ms: milliseconds since 1970-01-01 UTC. None stands for the time of sending.
        headers: pairs of a str and bytes, in order. Several headers may have the same name. A list
            is stored as a tuple.
    """

    topic: str
    value: V
    key: K
    _: dataclasses.KW_ONLY
    partition: int | None = None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes]] = ()

    if TYPE_CHECKING:
        # The defaults are `...`, because pyright would infer K and V from their values.
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
            # The __init__ that a frozen dataclass generates takes twice as long. This runs for
            # each record.
            _set_topic(self, topic)
            _set_value(self, value)
            _set_key(self, key)
            _set_partition(self, partition)
            _set_timestamp_ms(self, timestamp_ms)
            # Other clients take a list of headers. A tuple keeps the record immutable.
            _set_headers(self, tuple(headers) if isinstance(headers, list) else headers)


_slots: Any = ProducerRecord
_set_topic: Final = _slots.topic.__set__
_set_value: Final = _slots.value.__set__
_set_key: Final = _slots.key.__set__
_set_partition: Final = _slots.partition.__set__
_set_timestamp_ms: Final = _slots.timestamp_ms.__set__
_set_headers: Final = _slots.headers.__set__


class RecordMetadata(NamedTuple):
    """Where a record was written, as the client reported it."""

    topic: str
    """The topic's name."""
    partition: int
    """The partition's number."""
    offset: int | None
    """The record's offset in the partition; None if no broker reported it, for example with
    ``acks=0``."""
    timestamp_ms: int | None
    """Milliseconds since 1970-01-01 UTC. This is the broker's time if the topic is set to
    ``LogAppendTime``, otherwise the record's timestamp. None if the ``offset`` is None."""
    serialized_key_size: int | None
    """The size of the serialized key in bytes; None without a key."""
    serialized_value_size: int | None
    """The size of the serialized value in bytes; None for a tombstone."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumerGroupMetadata:
    """The consumer whose offsets a transaction commits (KIP-447). If ``generation_id`` and
    ``member_id`` are set, the brokers refuse the offsets of a consumer that is no longer a member
    of its group.

    You can use the result of kafka-python's ``KafkaConsumer.group_metadata()`` instead.
    """

    group_id: str
    """The group's id."""
    generation_id: int = -1
    """The group's generation; -1 if the consumer's partitions are assigned by hand."""
    member_id: str = ""
    """The consumer's member id in the group."""
    group_instance_id: str | None = None
    """The id of a static member (``group.instance.id``); None for other members."""


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Message(Generic[K, V, P]):
    """An envelope with one record and a pass-through value. Its result is a :class:`Result`."""

    record: ProducerRecord[K, V]
    """The record to send."""
    pass_through: P
    """A value of any type, which the result contains, too; None by default."""

    @overload
    def __init__(self: Message[A, B, None], record: ProducerRecord[A, B]) -> None: ...
    @overload
    def __init__(self, record: ProducerRecord[K, V], pass_through: P) -> None: ...
    def __init__(self, record: Any, pass_through: Any = None) -> None:
        _set_message_record(self, record)
        _set_pass_through(self, pass_through)

    def with_pass_through(self, value: Q) -> Message[K, V, Q]:
        """The same envelope with another pass-through value."""
        return Message(self.record, value)


_slots = Message
_set_message_record: Final = _slots.record.__set__
_set_pass_through: Final = _slots.pass_through.__set__


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class MultiMessage(Generic[K, V, P]):
    """An envelope with any number of records and one pass-through value. Its result is a
    :class:`MultiResult`. The records may have different topics."""

    records: tuple[ProducerRecord[K, V], ...]
    """The records to send, in this order. The sequence may be empty."""
    pass_through: P
    """A value of any type, which the result or the :class:`MultiDeliveryError` contains, too; None
    by default."""

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
    """An envelope with only a pass-through value. Its result is a :class:`PassThroughResult`.

    The producer sends nothing. In a stream of envelopes, the result has the same position as the
    envelope.
    """

    pass_through: P
    """A value of any type, which the result contains, too; None by default."""

    @overload
    def __init__(self: PassThroughMessage[None]) -> None: ...
    @overload
    def __init__(self, pass_through: P) -> None: ...
    def __init__(self, pass_through: Any = None) -> None:
        object.__setattr__(self, "pass_through", pass_through)

    def with_pass_through(self, value: Q) -> PassThroughMessage[Q]:
        """The same envelope with another pass-through value."""
        return PassThroughMessage(value)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Result(Generic[K, V, P]):
    """The result of a :class:`Message`."""

    metadata: RecordMetadata
    """The metadata of the written record, such as its partition and offset."""
    message: Message[K, V, P]
    """The envelope."""

    def __init__(self, metadata: RecordMetadata, message: Message[K, V, P]) -> None:
        _set_metadata(self, metadata)  # as in ProducerRecord
        _set_message(self, message)

    @property
    def offset(self) -> int | None:
        """The record's offset; None if no broker reported it, for example with ``acks=0``."""
        return self.metadata.offset

    @property
    def pass_through(self) -> P:
        """The envelope's pass-through value."""
        return self.message.pass_through

    @property
    def record(self) -> ProducerRecord[K, V]:
        """The envelope's record."""
        return self.message.record


_slots = Result
_set_metadata: Final = _slots.metadata.__set__
_set_message: Final = _slots.message.__set__


@dataclasses.dataclass(frozen=True, slots=True)
class MultiResultPart(Generic[K, V]):
    """One of several records, and where it was written."""

    metadata: RecordMetadata
    """The metadata of the written record, such as its partition and offset."""
    record: ProducerRecord[K, V]
    """The record."""


@dataclasses.dataclass(frozen=True, slots=True)
class MultiResult(Generic[K, V, P]):
    """The result of a :class:`MultiMessage` whose records were all delivered."""

    parts: tuple[MultiResultPart[K, V], ...]
    """A part for each record, in the order of the envelope."""
    pass_through: P
    """The envelope's pass-through value."""


@dataclasses.dataclass(frozen=True, slots=True)
class PassThroughResult(Generic[P]):
    """The result of a :class:`PassThroughMessage`."""

    pass_through: P
    """The envelope's pass-through value."""


def _refuse_change(instance: object, name: str, *_value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(instance).__name__}.{name} can't be changed")


# typing sets __orig_class__ on an instance of a subscripted class, and expects an AttributeError if
# that is not possible. The methods that dataclasses generates for a frozen class with slots raise
# TypeError instead, before Python 3.13.
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
    setattr(_class, "__setattr__", _refuse_change)  # noqa: B010  # type checkers reject an assignment
    setattr(_class, "__delattr__", _refuse_change)  # noqa: B010


Envelope = Message[K, V, P] | MultiMessage[K, V, P] | PassThroughMessage[P]
"""An argument of :meth:`SendProducer.send_envelope`."""

Results = Result[K, V, P] | MultiResult[K, V, P] | PassThroughResult[P]
"""A result of :meth:`SendProducer.send_envelope`."""
