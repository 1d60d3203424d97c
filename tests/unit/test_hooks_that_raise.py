"""A serializer that raises or returns something wrong fails only its record."""

from __future__ import annotations

from typing import Any

import pytest

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    SerializationFailed,
    open_send_producer,
)
from anyio_sendproducer._shown import raised_text
from anyio_sendproducer.drivers._serializing import check_headers, parts_of
from anyio_sendproducer.testing import FakeDriver


class PanicException(BaseException):
    """Like the exception of extensions that are written in Rust."""


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def raises(error: BaseException) -> Any:
    """A serializer that raises `error` for the text "bad"."""

    def serialize(text: str) -> bytes:
        if text == "bad":
            raise error
        return text.encode()

    return serialize


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), PanicException("it panicked")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("field", ["key", "value"])
async def test_any_exception_of_a_serializer_fails_only_its_record(
    field: str, error: BaseException, settings: ProducerSettings, fake: FakeDriver
) -> None:
    other = "value" if field == "key" else "key"
    serializers: dict[str, Any] = {
        f"{field}_serializer": raises(error),
        f"{other}_serializer": str.encode,
    }
    async with open_send_producer(settings.evolve(**serializers), driver=fake) as producer:
        good = [
            await producer.enqueue(ProducerRecord("orders", "two tins", "good")) for _ in range(2)
        ]
        parts = {field: "bad", other: "good"}
        with pytest.raises(SerializationFailed) as caught:
            await producer.send(ProducerRecord("orders", parts["value"], parts["key"]))
        assert f"the {field}_serializer raised {type(error).__name__}: " in str(caught.value)
        assert caught.value.persistence is Persistence.NOT_PERSISTED
        assert caught.value.__cause__ is error
        for delivery in good:
            await delivery.wait()
        await producer.send(ProducerRecord("orders", "a brush", "good"))


def test_an_error_whose_text_cannot_be_read_is_named() -> None:
    assert raised_text(_Unreadable()) == "raised _Unreadable: (its text cannot be read)"


def _released(*_: Any) -> memoryview:
    view = memoryview(b"two tins")
    view.release()
    return view


def test_unreadable_bytes_fail_the_record() -> None:
    record = ProducerRecord("orders", 1)
    with pytest.raises(SerializationFailed, match="the value_serializer raised ValueError"):
        parts_of(record, None, _released, [])


@pytest.mark.parametrize(
    "header",
    ["ab", ("name", "text"), (b"name", b""), ["name", b""], ("name",), ("\ud800", b""), None],
    ids=repr,
)
def test_a_header_that_a_serializer_adds_is_checked(header: Any) -> None:
    def serialize(_topic: str, headers: list[Any], data: str) -> bytes:
        headers.append(header)
        return data.encode()

    record = ProducerRecord("orders", "two tins", headers=[("mine", b"")])
    with pytest.raises(SerializationFailed, match="added a header that is not") as caught:
        parts_of(record, None, serialize, [*record.headers])
    assert caught.value.persistence is Persistence.NOT_PERSISTED
    check_headers(record, record.headers)
