"""The package's own serializers."""

from __future__ import annotations

import builtins
import datetime as dt
import json
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    SettingsError,
)
from anyio_sendproducer.serializers import (
    BytesSerializer,
    JSONSerializer,
    SchemaRegistrySerializer,
    StringSerializer,
)

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
def test_text_comes_back(text: str) -> None:
    assert StringSerializer()(text).decode() == text


@given(values)
def test_json_comes_back_and_has_no_blanks(value: Any) -> None:
    written = JSONSerializer()(value)
    assert json.loads(written) == value
    assert written == JSONSerializer(default=repr)(value)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=5))
def test_equal_objects_have_equal_bytes_where_that_is_asked_for(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    serialize = JSONSerializer(sort_keys=True)
    assert serialize(value) == serialize(turned)


@given(st.binary())
def test_bytes_are_bytes(data: bytes) -> None:
    for given_ in (data, bytearray(data), memoryview(data)):
        assert BytesSerializer()(given_) == data


def test_json_by_way_of_a_hook() -> None:
    day = dt.date(2026, 11, 24)
    assert JSONSerializer(default=str)({"ä": day}) == '{"ä":"2026-11-24"}'.encode()


def test_other_encodings() -> None:
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
            "StringSerializer: encoding must be known to Python, not 'klingon'",
        ),
        (
            lambda: StringSerializer(ANY),
            SettingsError,
            "StringSerializer: encoding must be known to Python, not None",
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
def test_what_is_wrong_is_named(
    call: Callable[[], object], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert says in str(caught.value)


def test_each_says_what_it_is() -> None:
    assert repr(BytesSerializer()) == "BytesSerializer()"
    assert repr(StringSerializer("ascii")) == "StringSerializer('ascii')"
    assert repr(JSONSerializer()) == "JSONSerializer(sort_keys=False)"
    registry = SchemaRegistrySerializer(_marked, "key")
    assert repr(registry) == "SchemaRegistrySerializer(function, 'key')"


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("confluent_kafka"):
            raise ModuleNotFoundError("No module named 'confluent_kafka'")
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"pip install 'anyio-sendproducer\[schema-registry\]'"):
        SchemaRegistrySerializer(_marked, "key")


def _marked(data: Any, context: Any) -> bytes:
    """What a registry's serializer does, without a registry."""
    assert threading.current_thread().name.startswith("anyio-sendproducer")
    context.headers.append(("schema", context.field.encode()))
    return f"{context.topic}:{data}".encode()
