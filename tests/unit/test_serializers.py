"""The package's own serializers."""

from __future__ import annotations

import builtins
import copy
import datetime as dt
import json
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    SerializationFailed,
    SettingsError,
)
from anyio_sendproducer._validation import check_record
from anyio_sendproducer.drivers import serialize_record
from anyio_sendproducer.serializers import (
    BytesSerializer,
    JSONSerializer,
    SchemaRegistrySerializer,
    StringSerializer,
    TopicSerializer,
)
from anyio_sendproducer.testing import fake_producer

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.text(st.characters(codec="utf-8")))
def test_text_survives_the_round_trip(text: str) -> None:
    assert StringSerializer()(text).decode() == text


@given(values)
def test_json_survives_the_round_trip(value: Any) -> None:
    written = JSONSerializer()(value)
    assert json.loads(written) == value
    assert written == JSONSerializer(default=repr)(value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=5))
def test_with_sort_keys_equal_objects_have_equal_bytes(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    serialize = JSONSerializer(sort_keys=True)
    assert serialize(value) == serialize(turned)


@given(st.binary())
def test_bytes_and_buffers_stay_unchanged(data: bytes) -> None:
    for given_ in (data, bytearray(data), memoryview(data)):
        assert BytesSerializer()(given_) == data


def test_json_with_a_hook() -> None:
    day = dt.date(2026, 11, 24)
    assert JSONSerializer(default=str)({"ä": day}) == '{"ä":"2026-11-24"}'.encode()


def test_text_in_another_encoding() -> None:
    assert StringSerializer("latin-1")("ä") == b"\xe4"


ANY: Any = None


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: BytesSerializer()(ANY), TypeError, "expected bytes, not NoneType"),
        (lambda: StringSerializer()(cast("str", b"")), TypeError, "expected a str, not bytes"),
        (lambda: StringSerializer("ascii")("ä"), UnicodeEncodeError, ""),
        (lambda: JSONSerializer()({1, 2}), TypeError, "Object of type set is not JSON"),
        (lambda: JSONSerializer()(float("nan")), ValueError, "JSON compliant"),
        (lambda: JSONSerializer()("\ud800"), ValueError, ""),
        (
            lambda: StringSerializer("klingon"),
            SettingsError,
            "encoding must be a text encoding that Python knows, such as 'utf-8', not 'klingon'",
        ),
        *(
            (partial(StringSerializer, codec), SettingsError, f"not '{codec}'")
            for codec in ("hex", "rot13", "undefined")
        ),
        (lambda: StringSerializer("utf-8\0"), SettingsError, r"not 'utf-8\x00'"),
        (
            lambda: StringSerializer(ANY),
            SettingsError,
            "StringSerializer: encoding must be a text encoding that Python knows",
        ),
        (
            lambda: JSONSerializer(default=cast("Any", "str")),
            SettingsError,
            "JSONSerializer: default must be callable, not str",
        ),
        (
            lambda: SchemaRegistrySerializer(ANY, "key"),
            SettingsError,
            "SchemaRegistrySerializer: serializer must be callable, not NoneType",
        ),
        (
            lambda: SchemaRegistrySerializer(print, cast("Any", "both")),
            SettingsError,
            "SchemaRegistrySerializer: field must be 'key' or 'value', not 'both'",
        ),
    ],
)
def test_the_error_names_the_fault(
    call: Callable[[], object], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert says in str(caught.value)


def test_the_repr_of_each_serializer() -> None:
    assert repr(BytesSerializer()) == "BytesSerializer()"
    assert repr(StringSerializer("ascii")) == "StringSerializer('ascii')"
    assert repr(JSONSerializer()) == "JSONSerializer(sort_keys=False)"
    registry = SchemaRegistrySerializer(_marked, "key")
    assert repr(registry) == "SchemaRegistrySerializer(function, 'key')"


def test_without_its_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("confluent_kafka"):
            raise ModuleNotFoundError("No module named 'confluent_kafka'")
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        SettingsError, match=r'pip install "\.\[schema-registry\]" in a checkout of'
    ):
        SchemaRegistrySerializer(_marked, "key")


def _marked(data: Any, context: Any) -> bytes:
    """A serializer like that of a schema registry, without a registry."""
    assert threading.current_thread().name.startswith("anyio-sendproducer")
    context.headers.append(("schema", context.field.encode()))
    return f"{context.topic}:{data}".encode()


# --- by topic ------------------------------------------------------------------------------------


class Marking:
    """A serializer that gets the topic, and adds a header."""

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: str) -> bytes:
        headers.append(("topic", topic.encode()))
        return data.upper().encode()


async def serialize_later(_: object) -> bytes:
    return b""


def test_each_topic_has_its_own_serializer() -> None:
    by_topic: dict[str, Any] = {"orders": JSONSerializer(), "audit": Marking()}
    serializer = TopicSerializer(by_topic)
    by_topic.clear()  # the serializer has a copy
    headers = [("mine", b"")]
    assert serializer.serialize("orders", headers, {"a": 1}) == b'{"a":1}'
    assert serializer.serialize("audit", headers, "read") == b"READ"
    assert headers == [("mine", b""), ("topic", b"audit")]


@pytest.mark.parametrize("default", [str.encode, Marking()], ids=["callable", "object"])
def test_other_topics_have_the_default(default: Any) -> None:
    serializer = TopicSerializer({"orders": JSONSerializer()}, default)
    assert serializer.serialize("audit", [], "READ") == b"READ"
    assert serializer.serialize("orders", [], "READ") == b'"READ"'


@pytest.mark.parametrize(
    ("topics", "known"),
    [
        ("", "there is one for no topic"),
        ("ab", "there is one for 'a', 'b'"),
        ("abcdefg", "there is one for 'a', 'b', 'c', 'd', 'e' and 2 more"),
    ],
    ids=["none", "some", "many"],
)
def test_the_error_for_a_topic_without_a_serializer_lists_the_known_topics(
    topics: str, known: str
) -> None:
    serializer = TopicSerializer(dict.fromkeys(topics, str.encode))
    with pytest.raises(LookupError) as caught:
        serializer.serialize("audit", [], "x")
    assert str(caught.value) == f"topic 'audit' has no serializer; {known}"


UNUSABLE: list[tuple[tuple[Any, ...], str]] = [
    (([],), "by_topic must be a mapping from topics to serializers, not list"),
    ((None,), "by_topic must be a mapping from topics to serializers, not NoneType"),
    (({7: str.encode},), "a topic must be a str, not int"),
    (
        ({"orders": "json"},),
        (
            "by_topic['orders'] must be a callable or have a serialize(topic, headers, data) "
            "method, not str"
        ),
    ),
    (
        ({"orders": None},),
        (
            "by_topic['orders'] must be a callable or have a serialize(topic, headers, data) "
            "method, not NoneType"
        ),
    ),
    (
        ({"orders": JSONSerializer},),
        "by_topic['orders'] must be an instance, JSONSerializer(), not the class",
    ),
    (
        ({"orders": serialize_later},),
        "by_topic['orders'] must not be async: it is called on a thread, where it may block",
    ),
    (({}, Marking), "default must be an instance, Marking(), not the class"),
]


@pytest.mark.parametrize(("arguments", "says"), UNUSABLE, ids=[one[1] for one in UNUSABLE])
def test_invalid_arguments_of_a_topic_serializer(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TopicSerializer(*arguments)
    assert str(caught.value) == f"TopicSerializer: {says}"


def test_settings_with_a_topic_serializer_can_be_pickled() -> None:
    serializer = TopicSerializer({"orders": JSONSerializer(), "audit": Marking()}, str.encode)
    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=serializer)
    for other in (pickle.loads(pickle.dumps(settings)), copy.deepcopy(settings)):
        for topic in ("orders", "audit", "other"):
            record = ProducerRecord(topic, "two tins")
            assert serialize_record(record, other) == serialize_record(record, settings)


def test_the_repr_of_a_topic_serializer_shows_only_its_topics() -> None:
    serializer = TopicSerializer(dict.fromkeys("abcdefg", str.encode), Marking())
    assert repr(serializer) == "TopicSerializer('a', 'b', 'c', 'd', 'e' and 2 more)"


@given(st.text(st.characters(codec="utf-8")))
@example("größe")
def test_the_name_of_a_header_counts_in_bytes(name: str) -> None:
    record = ProducerRecord("t", b"v", b"key", headers=[(name, b"content")])
    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=bytes)
    _, serialized = serialize_record(record, settings)
    _, checked = check_record(record, set())
    assert serialized == checked == len(b"vkeycontent") + len(name.encode())


@pytest.mark.parametrize("kind", [type("Token", (bytes,), {}), bytearray, memoryview])
def test_the_result_of_a_serializer_becomes_plain_bytes(kind: Callable[[bytes], Any]) -> None:
    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=kind)
    serialized, size = serialize_record(ProducerRecord("t", b"two tins"), settings)
    assert (serialized.value, size) == (b"two tins", 8)
    assert type(serialized.value) is bytes


async def test_only_the_record_of_a_topic_without_a_serializer_fails() -> None:
    settings = ProducerSettings(
        bootstrap_servers="localhost:9092",
        value_serializer=TopicSerializer({"orders": JSONSerializer(), "audit": Marking()}),
    )
    async with fake_producer(settings, partitions=1) as fake:
        await fake.producer.send("orders", {"a": 1})
        with pytest.raises(SerializationFailed) as caught:
            await fake.producer.send("oders", {"a": 1})
        await fake.producer.send("audit", "read")
        await fake.producer.send("anything", None, b"tombstone")  # None is not serialized
    said = "the value_serializer raised LookupError: topic 'oders' has no serializer; there is one"
    assert str(caught.value) == f"{said} for 'orders', 'audit'"
    assert caught.value.persistence is Persistence.NOT_PERSISTED
    assert fake.written == {
        ("orders", 0): [ProducerRecord("orders", b'{"a":1}')],
        ("audit", 0): [ProducerRecord("audit", b"READ", headers=[("topic", b"audit")])],
        ("anything", 0): [ProducerRecord("anything", None, b"tombstone")],
    }
