"""Records, envelopes and results of any shape, and the errors of invalid records."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    Persistence,
    ProducerRecord,
    RecordMetadata,
    RecordRejected,
    Result,
    Results,
)
from anyio_sendproducer._validation import check_record
from anyio_sendproducer.testing import strategies


class Topic(str, enum.Enum):
    ORDERS = "orders"


class Partition(enum.IntEnum):
    FIRST = 1


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError("its text cannot be read")


class Content(bytes):
    def __repr__(self) -> str:
        return "a secret"


class Order(ProducerRecord[Any, Any]):
    """A record with a constructor and an attribute of its own."""

    def __init__(self, number: int, value: Any) -> None:
        super().__init__("orders", value, headers=[(Topic.ORDERS, b"x")])
        object.__setattr__(self, "number", number)


METADATA = RecordMetadata("orders", 3, 42, 1_700_000_000_000, 2, 5)


def reject(record: ProducerRecord[Any, Any], **serialized: bool) -> RecordRejected:
    with pytest.raises(RecordRejected) as caught:
        check_record(record, set(), **serialized)
    assert caught.value.persistence is Persistence.NOT_PERSISTED
    assert caught.value.record == record
    return caught.value


# --- records -------------------------------------------------------------------------------------


def test_a_record_has_the_fields_it_was_given() -> None:
    record = ProducerRecord(
        "orders", b"v", b"k", partition=1, timestamp_ms=2, headers=[("h", b"x")]
    )
    assert [getattr(record, field.name) for field in dataclasses.fields(record)] == [
        "orders",
        b"v",
        b"k",
        1,
        2,
        (("h", b"x"),),
    ]


def test_only_the_topic_of_a_record_is_required() -> None:
    record = ProducerRecord("orders")
    assert (record.value, record.key, record.partition, record.timestamp_ms, record.headers) == (
        None,
        None,
        None,
        None,
        (),
    )


def test_partition_time_and_headers_are_keywords() -> None:
    make = cast("Callable[..., object]", ProducerRecord)
    with pytest.raises(TypeError):
        make("orders", b"v", b"k", 1)


@given(strategies.records())
def test_the_check_returns_a_valid_record_unchanged(
    record: ProducerRecord[bytes | None, bytes | None],
) -> None:
    checked, size = check_record(record, set())
    assert checked is record
    assert size == len(record.key or b"") + len(record.value or b"") + sum(
        len(name.encode()) + len(content) for name, content in record.headers
    )


@given(strategies.records())
def test_a_record_survives_copies_and_pickling(
    record: ProducerRecord[bytes | None, bytes | None],
) -> None:
    for other in (
        pickle.loads(pickle.dumps(record)),
        copy.copy(record),
        copy.deepcopy(record),
        dataclasses.replace(record),
    ):
        assert other == record
        assert hash(other) == hash(record)
        assert repr(other) == repr(record)


@given(strategies.records(), strategies.headers())
def test_the_headers_of_a_record_are_a_copy_of_the_list(
    record: ProducerRecord[bytes | None, bytes | None], given_: list[tuple[str, bytes]]
) -> None:
    kept = tuple(given_)
    record = dataclasses.replace(record, headers=given_)
    given_.append(("later", b""))
    assert record.headers == kept


@given(strategies.records(), st.sampled_from(["topic", "value", "key", "partition", "headers"]))
def test_different_records_are_not_equal(
    record: ProducerRecord[bytes | None, bytes | None], field: str
) -> None:
    others: dict[str, Any] = {
        "topic": f"{record.topic[:200]}-",
        "value": b"another value: longer than the longest, which makes sure that it is another",
        "key": b"another key: longer than the longest, which makes sure that it is another one",
        "partition": -1,
        "headers": (("another", b""),),
    }
    assert dataclasses.replace(record, **{field: others[field]}) != record


# --- the check -----------------------------------------------------------------------------------

SECRET = "hunter2-s3cr3t"

BAD_FIELDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("empty topic", {"topic": ""}, ["topic is empty"]),
    ("topic of 250", {"topic": "x" * 250}, ["topic has 250 characters", "249", "'xxxx"]),
    ("topic with a space", {"topic": "my orders"}, ["topic 'my orders' has characters"]),
    ("topic with a newline", {"topic": "orders\n"}, [r"topic 'orders\n' has characters"]),
    ("topic not ASCII", {"topic": "größe"}, ["topic 'größe' has characters"]),
    ("topic with other digits", {"topic": "a٣"}, ["topic 'a٣' has characters"]),
    ("topic .", {"topic": "."}, ["topic '.'"]),
    ("topic ..", {"topic": ".."}, ["topic '..'"]),
    ("topic of bytes", {"topic": b"orders"}, ["topic must be a str", "not bytes"]),
    ("topic None", {"topic": None}, ["topic must be a str", "not NoneType"]),
    ("topic a number", {"topic": 7}, ["topic must be a str", "not int"]),
    ("topic a list", {"topic": ["orders"]}, ["topic must be a str", "not list"]),
    ("negative partition", {"partition": -1}, ["partition must be from 0", "not -1"]),
    ("partition too large", {"partition": 2**31}, ["partition must be", f"not {2**31}"]),
    ("partition True", {"partition": True}, ["partition must be an int or None", "bool: True"]),
    ("partition a str", {"partition": "1"}, ["partition must be an int or None", "str: '1'"]),
    ("partition a float", {"partition": 1.0}, ["partition must be an int", "float: 1.0"]),
    ("partition a list", {"partition": [10**5000]}, ["partition must be an int or None, not list"]),
    ("partition without a repr", {"partition": Unreadable()}, ["partition", "not Unreadable"]),
    ("partition that Python can't show", {"partition": 10**5000}, ["partition must be from 0"]),
    ("time that Python can't show", {"timestamp_ms": -(10**5000)}, ["timestamp_ms must be from 0"]),
    ("negative time", {"timestamp_ms": -1}, ["timestamp_ms must be from 0", "not -1"]),
    ("time too large", {"timestamp_ms": 2**63}, ["timestamp_ms must be", f"not {2**63}"]),
    ("time a float", {"timestamp_ms": 1.5}, ["timestamp_ms must be an int", "float: 1.5"]),
    ("time False", {"timestamp_ms": False}, ["timestamp_ms must be an int", "bool: False"]),
    ("headers None", {"headers": None}, ["headers must be a list or tuple", "not NoneType"]),
    ("headers an empty dict", {"headers": {}}, ["headers must be a list or tuple", "not dict"]),
    ("headers a dict", {"headers": {"h": b"x"}}, ["headers must be a list or tuple", "dict"]),
    ("headers a str", {"headers": "h"}, ["headers must be a list or tuple", "str"]),
    ("headers a generator", {"headers": iter([("h", b"")])}, ["headers must be", "iterator"]),
    (
        "header not a pair",
        {"headers": [("h", b"x"), "hx"]},
        ["headers[1] must be a (str, bytes) tuple, not str"],
    ),
    ("header of three", {"headers": [("h", b"x", b"y")]}, ["headers[0]", "(str, bytes, bytes)"]),
    ("header of five", {"headers": [(1, 2, 3, 4, 5)]}, ["not (int, int, int, ...)"]),
    ("header a list", {"headers": [["h", b"x"]]}, ["headers[0]", "not list"]),
    ("header's name bytes", {"headers": [(b"h", b"x")]}, ["headers[0]", "not (bytes, bytes)"]),
    ("header's name no text", {"headers": [("\ud800", b"x")]}, ["headers[0]", "UTF-8"]),
    (
        "header's content str",
        {"headers": [("h", "x")]},
        ["headers[0] ('h')", "must be bytes, not str: encode it"],
    ),
    (
        "header's content None",
        {"headers": [("h", None)]},
        ["headers[0] ('h')", "must be bytes, not NoneType"],
    ),
    ("header's content bytearray", {"headers": [("h", bytearray(b"x"))]}, ["headers[0]"]),
    ("neither key nor value", {"value": None}, ["neither key nor value"]),
    ("value a str", {"value": "text"}, ["value must be bytes, not str", "value_serializer"]),
    ("value a dict", {"value": {"a": 1}}, ["value must be bytes, not dict", "value_serializer"]),
    ("value a list of numbers", {"value": [1, 2]}, ["value must be bytes, not list"]),
    ("value a number", {"value": 7}, ["value must be bytes, not int", "value_serializer"]),
    ("key a str", {"key": "text"}, ["key must be bytes, not str", "key_serializer"]),
    ("key a number", {"key": 0}, ["key must be bytes, not int", "key_serializer"]),
]


@pytest.mark.parametrize(
    ("fields", "says"), [pytest.param(*case, id=name) for name, *case in BAD_FIELDS]
)
def test_the_error_of_an_invalid_record_names_the_field(
    fields: dict[str, Any], says: list[str]
) -> None:
    record = cast("Callable[..., ProducerRecord[Any, Any]]", ProducerRecord)(
        **{"topic": "orders", "value": b"v", **fields}
    )
    message = str(reject(record))
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    "fields",
    [
        {"topic": {"password": SECRET}},
        {"topic": SECRET.encode()},
        {"headers": [("authorization", SECRET)]},
        {"headers": [(SECRET.encode(), b"v")]},
        {"headers": [SECRET]},
        {"headers": {"authorization": SECRET}},
        {"value": SECRET},
        {"key": SECRET},
    ],
    ids=str,
)
def test_the_error_does_not_repeat_the_content_of_a_record(fields: dict[str, Any]) -> None:
    make = cast("Callable[..., ProducerRecord[Any, Any]]", ProducerRecord)
    assert SECRET not in str(reject(make(**{"topic": "orders", "value": b"v", **fields})))


@pytest.mark.parametrize("topic", ["a", "x" * 249, "...", "a.b", "_", "-", "A-Z_0.9"])
def test_the_topic_names_of_kafka_are_valid(topic: str) -> None:
    known: set[str] = set()
    check_record(ProducerRecord(topic, b"v"), known)
    assert known == {topic}


@pytest.mark.parametrize("partition", [0, 2**31 - 1])
@pytest.mark.parametrize("timestamp_ms", [0, 2**63 - 1])
def test_the_bounds_of_partition_and_timestamp(partition: int, timestamp_ms: int) -> None:
    record = ProducerRecord("orders", b"v", partition=partition, timestamp_ms=timestamp_ms)
    assert check_record(record, set())[0] is record


@pytest.mark.parametrize(
    ("key", "value", "size"),
    [(b"k", None, 1), (None, b"", 0), (b"", b"", 0), (b"kk", b"vvv", 5)],
)
def test_a_record_needs_a_key_or_a_value_and_either_may_be_empty(
    key: bytes | None, value: bytes | None, size: int
) -> None:
    assert check_record(ProducerRecord("orders", value, key), set())[1] == size


class OwnBytes(bytes):
    """A subclass of bytes."""


def every_other(content: bytearray) -> memoryview:
    return memoryview(content)[::2]


@pytest.mark.parametrize(
    ("make", "content"),
    [
        (bytearray, b"12345"),
        (memoryview, bytearray(b"12345")),
        (every_other, bytearray(b"1x2x3x4x5")),
        (OwnBytes, b"12345"),
    ],
    ids=["array", "view", "view-with-gaps", "own-bytes"],
)
@pytest.mark.parametrize("field", ["key", "value"])
def test_a_buffer_is_copied_so_that_the_caller_may_reuse_it(
    field: str, make: Callable[[Any], Any], content: Any
) -> None:
    buffer = make(copy.copy(content))
    record: ProducerRecord[Any, Any] = dataclasses.replace(
        ProducerRecord("orders", b"v", b"k", partition=1, timestamp_ms=2, headers=(("h", b""),)),
        **{field: buffer},
    )
    checked, size = check_record(record, set())
    bare: dict[str, Any] = {field: b"12345"}
    wanted = dataclasses.replace(record, **bare)
    if not isinstance(buffer, bytes):
        buffer[0] = 0
    assert type(getattr(checked, field)) is bytes
    assert checked == wanted
    assert size == 5 + 1 + 1


@pytest.mark.parametrize("content", [{"a": 1}, "text", 7, [1], object(), int])
def test_an_object_to_serialize_stays_unchanged_and_its_size_is_estimated(content: Any) -> None:
    for record, serialized in (
        (ProducerRecord("orders", value=content), {"value_serialized": True}),
        (ProducerRecord("orders", key=content), {"key_serialized": True}),
    ):
        checked, size = check_record(record, set(), **serialized)
        assert checked is record
        assert 0 < size <= sys.getsizeof(content)


def test_bytes_to_serialize_count_with_their_length() -> None:
    record = ProducerRecord("orders", b"123", b"45")
    assert check_record(record, set(), key_serialized=True, value_serialized=True) == (record, 5)


def test_a_value_serializer_does_not_serialize_keys() -> None:
    record = ProducerRecord("orders", "text", "text")
    assert "key must be bytes" in str(reject(record, value_serialized=True))
    assert "value must be bytes" in str(reject(record, key_serialized=True))


def test_a_known_topic_is_not_checked_again() -> None:
    check_record(ProducerRecord("not / checked", b"v"), {"not / checked"})


def test_an_invalid_topic_does_not_become_known() -> None:
    known: set[str] = set()
    for _ in range(2):
        with pytest.raises(RecordRejected):
            check_record(ProducerRecord("not / good", b"v"), known)
    assert known == set()


def test_a_topic_of_another_type_is_refused_even_if_it_equals_a_known_one() -> None:
    class Sly:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("orders")

    record = ProducerRecord(cast("str", Sly()), b"v")
    with pytest.raises(RecordRejected, match="topic must be a str, not Sly"):
        check_record(record, {"orders"})


def test_the_number_of_known_topics_is_bounded() -> None:
    known: set[str] = set()
    most = 0
    for number in range(10_500):
        check_record(ProducerRecord(f"topic-{number}", b"v"), known)
        most = max(most, len(known))
    assert most == 10_000
    assert "topic-10499" in known


@pytest.mark.parametrize("serialized", [False, True])
def test_subclasses_of_plain_types_are_replaced(serialized: bool) -> None:
    given = ProducerRecord(
        Topic.ORDERS,
        Content(b"v"),
        Content(b"k"),
        partition=Partition.FIRST,
        timestamp_ms=Partition.FIRST,
        headers=[(Topic.ORDERS, b"x"), ("h", Content(b"y"))],
    )
    topics: set[str] = set()
    sent, size = check_record(given, topics, serialized, serialized)
    parts: list[Any] = [sent.topic, sent.partition, sent.timestamp_ms, *topics]
    parts += [part for header in sent.headers for part in header]
    if not serialized:
        parts += [sent.value, sent.key]
        assert size == len(b"vk") + len(b"ordersx") + len(b"hy")
    assert {type(part) for part in parts} <= {str, int, bytes}
    assert sent == ProducerRecord(
        "orders", b"v", b"k", partition=1, timestamp_ms=1, headers=[("orders", b"x"), ("h", b"y")]
    )
    # A serializer gets the object that the caller passed.
    assert (type(sent.value) is Content) == serialized


def test_a_record_of_a_subclass_with_its_own_constructor_is_copied() -> None:
    order: Any = Order(7, bytearray(b"two tins"))
    checked: Any = check_record(order, set())[0]
    assert (checked.topic, checked.value, checked.number) == ("orders", b"two tins", 7)
    assert type(checked.headers[0][0]) is str
    assert type(checked) is Order
    assert type(order.value) is bytearray


@pytest.mark.parametrize("field", ["key", "value"])
def test_a_released_buffer_is_refused(field: str) -> None:
    buffer = memoryview(b"two tins")
    buffer.release()
    fields: dict[str, Any] = {field: buffer}
    error = reject(ProducerRecord("orders", **fields))
    assert str(error) == f"{field} is a memoryview that can't be read"


# --- envelopes and results -----------------------------------------------------------------------


@given(strategies.records(), strategies.pass_throughs())
def test_a_message_and_its_result_carry_anything(
    record: ProducerRecord[bytes | None, bytes | None], carried: Any
) -> None:
    message = Message(record, carried)
    result = Result(METADATA, message)
    assert message.record is result.record is record
    assert message.pass_through is result.pass_through is carried
    assert result.message is message
    assert result.metadata is METADATA
    assert result.offset == 42


@given(st.lists(strategies.records(), max_size=5), strategies.pass_throughs())
def test_a_multi_message_takes_any_number_of_records_in_their_order(
    several: list[ProducerRecord[bytes | None, bytes | None]], carried: Any
) -> None:
    message = MultiMessage(iter(several), carried)
    assert message.records == tuple(several)
    assert message.pass_through is carried
    assert message == MultiMessage(several, carried)
    parts = tuple(MultiResultPart(METADATA, record) for record in several)
    result = MultiResult(parts, carried)
    assert [part.record for part in result.parts] == several
    assert all(part.metadata is METADATA for part in result.parts)
    assert result.pass_through is carried


@given(strategies.pass_throughs())
def test_a_pass_through_message_carries_anything(carried: Any) -> None:
    assert PassThroughMessage(carried).pass_through is carried
    assert PassThroughResult(carried).pass_through is carried


@given(strategies.records(), strategies.pass_throughs(), strategies.pass_throughs())
def test_with_pass_through_changes_nothing_else(
    record: ProducerRecord[bytes | None, bytes | None], first: Any, second: Any
) -> None:
    envelopes: list[tuple[Any, Any]] = [
        (Message(record, first), Message(record, second)),
        (MultiMessage([record], first), MultiMessage([record], second)),
        (PassThroughMessage(first), PassThroughMessage(second)),
    ]
    for envelope, wanted in envelopes:
        changed = envelope.with_pass_through(second)
        assert type(changed) is type(envelope)
        assert changed == wanted
        assert changed.pass_through is second
        assert envelope.pass_through is first


def test_the_default_pass_through_is_none() -> None:
    record = ProducerRecord("orders", b"v")
    assert Message(record).pass_through is None
    assert MultiMessage([record]).pass_through is None
    assert PassThroughMessage().pass_through is None


VALUES: list[Any] = [
    ProducerRecord("orders", b"v"),
    Message(ProducerRecord("orders", b"v"), 1),
    MultiMessage([ProducerRecord("orders", b"v")], 1),
    PassThroughMessage(1),
    Result(METADATA, Message(ProducerRecord("orders", b"v"), 1)),
    MultiResultPart(METADATA, ProducerRecord("orders", b"v")),
    MultiResult((MultiResultPart(METADATA, ProducerRecord("orders", b"v")),), 1),
    PassThroughResult(1),
    METADATA,
]
each_value = pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)


@each_value
def test_values_are_frozen(value: Any) -> None:
    names = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value)]
    for name in names:
        with pytest.raises(AttributeError):
            setattr(value, name, None)
        with pytest.raises(AttributeError):
            delattr(value, name)


@each_value
def test_values_accept_no_other_attribute(value: Any) -> None:
    with pytest.raises(AttributeError):
        value.another = 1


@each_value
def test_values_survive_pickling_and_are_hashable(value: Any) -> None:
    other = pickle.loads(pickle.dumps(value))
    assert other == value
    assert {other, value} == {value}
    assert type(value).__name__ in repr(value)


@pytest.mark.parametrize(
    "value",
    [value for value in VALUES if value is not METADATA],
    ids=lambda value: type(value).__name__,
)
def test_generic_values_can_be_made_with_explicit_types(value: Any) -> None:
    cls = cast("Any", type(value))
    given_ = [
        getattr(value, field.name) for field in dataclasses.fields(value) if not field.kw_only
    ]
    parameters = (int,) * len(cls.__parameters__)
    made = cls[parameters](*given_)
    assert type(made) is cls
    assert made == value


def test_the_unions_can_be_subscripted_at_run_time() -> None:
    for union in (Envelope, Results):
        alias = cast("Any", union)
        assert alias[bytes, bytes, int] != alias[bytes, bytes, str]


def test_metadata_of_a_record_that_no_broker_acknowledged() -> None:
    metadata = RecordMetadata("orders", 0, None, None, None, 5)
    assert Result(metadata, Message(ProducerRecord("orders", b"v"))).offset is None
