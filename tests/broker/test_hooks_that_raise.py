"""User hooks that raise a BaseException, or return nonsense, with each driver."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    SerializationFailed,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.bare import BareProducer
from tests.support.brief import on_either_loop
from tests.support.hooks import ERRORS, fails_alone, raising
from tests.support.hourglass import LONG, Hourglass
from tests.support.scripted_broker import ScriptedBroker, scripted_broker

kafka_partitioner: Any = importlib.import_module("kafka.partitioner")
kafka_serializer: Any = importlib.import_module("kafka.serializer")


@pytest.mark.parametrize("kind", ERRORS)
async def test_an_exception_of_a_serializer_fails_only_its_record(
    kind: type[BaseException], shared_broker: str, driver: DriverName
) -> None:
    def serialize(text: str) -> bytes:
        if text == "bad":
            raise kind
        return text.encode()

    settings = ProducerSettings(bootstrap_servers=shared_broker, value_serializer=serialize)
    async with open_send_producer(settings, driver=driver) as producer:
        error = await fails_alone(
            producer, ProducerRecord("hooks", "bad"), ProducerRecord("hooks", "good")
        )
        assert type(error) is SerializationFailed
        assert error.persistence is Persistence.NOT_PERSISTED
        assert type(error.__cause__) is kind


async def test_a_bad_header_of_a_serializer_fails_only_its_record(
    shared_broker: str, driver: DriverName
) -> None:
    class Adding:
        def serialize(self, _topic: str, headers: list[Any], data: str) -> bytes:
            headers.append(("name", data if data == "bad" else data.encode()))
            return data.encode()

    adding: Any = Adding()
    settings = ProducerSettings(bootstrap_servers=shared_broker, value_serializer=adding)
    async with open_send_producer(settings, driver=driver) as producer:
        error = await fails_alone(
            producer, ProducerRecord("hooks", "bad"), ProducerRecord("hooks", "good")
        )
        assert type(error) is SerializationFailed
        assert error.persistence is Persistence.NOT_PERSISTED


# --- partitioners --------------------------------------------------------------------------------


def seven() -> int:
    return 7


class Chosen(kafka_partitioner.Partitioner):  # type: ignore[misc]
    """Chooses a given value for the key "bad", and partition 0 for other keys."""

    def __init__(self, choose: Callable[[], Any]) -> None:
        self._choose = choose

    def partition(self, _topic: str, key: bytes | None, *_: object) -> Any:
        return self._choose() if key == b"bad" else 0


class OldChosen:
    """A Chosen with the arguments of kafka-python 2."""

    def __init__(self, choose: Callable[[], Any]) -> None:
        self._choose = choose

    def partition(self, _topic: str, key: bytes | None, _cluster: object) -> Any:
        return self._choose() if key == b"bad" else 0


@pytest.mark.parametrize(
    ("make", "choose", "says"),
    [
        *[(Chosen, raising(kind), f"the partitioner raised {kind.__name__}: ") for kind in ERRORS],
        (Chosen, lambda: None, "the partitioner raised TypeError: 'NoneType' object cannot be"),
        (Chosen, lambda: 1.0, "the partitioner raised TypeError: 'float' object cannot be"),
        (Chosen, lambda: 99, "the partitioner chose 99, which is not a partition of topic 'hooks'"),
        (OldChosen, raising(SystemExit), "the partitioner raised SystemExit: "),
        (
            OldChosen,
            lambda: -1,
            "the partitioner chose -1, which is not a partition of topic 'hooks'",
        ),
    ],
    ids=[*[kind.__name__ for kind in ERRORS], "None", "float", "99", "old", "-1"],
)
async def test_a_faulty_partitioner_fails_only_its_record(
    make: Callable[..., Any], choose: Callable[[], Any], says: str, shared_broker: str
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=shared_broker, properties={"partitioner": make(choose)}
    )
    async with open_send_producer(settings) as producer:
        error = await fails_alone(
            producer,
            ProducerRecord("hooks", b"two tins", b"bad"),
            ProducerRecord("hooks", b"a brush", b"good"),
        )
        assert type(error) is RecordRejected
        assert says in str(error)
        assert error.persistence is Persistence.NOT_PERSISTED


@pytest.mark.parametrize("raises", [False, True])
async def test_a_partitioner_is_notified_of_a_new_batch(raises: bool, shared_broker: str) -> None:
    begun: list[str] = []

    class Sticky(Chosen):
        def on_new_batch(self, topic: str, *_: object) -> None:
            begun.append(topic)
            if raises and len(begun) == 1:
                raise SystemExit

    settings = ProducerSettings(
        bootstrap_servers=shared_broker, properties={"partitioner": Sticky(lambda: 0)}
    )
    async with open_send_producer(settings) as producer:
        record = ProducerRecord("hooks", b"two tins")
        if raises:
            with pytest.raises(RecordRejected, match="the partitioner raised SystemExit"):
                await producer.send(record)
        await producer.send(record)
    assert set(begun) == {"hooks"}


@pytest.mark.parametrize("hook", ["value_serializer", "partitioner"])
async def test_an_exception_of_an_external_clients_hook_fails_only_its_record(
    hook: str, shared_broker: str
) -> None:
    """It is unknown how far the `send` of such a client got."""

    class Leaving(kafka_serializer.Serializer):  # type: ignore[misc]
        def serialize(self, _topic: str, _headers: Any, data: bytes) -> bytes:
            if data == b"bad":
                raise SystemExit
            return data

    hooks = {"value_serializer": Leaving(), "partitioner": Chosen(raising(SystemExit))}

    def make() -> Any:
        return BareProducer(bootstrap_servers=shared_broker, **{hook: hooks[hook]})

    client = await anyio.to_thread.run_sync(make)
    try:
        async with open_send_producer(ProducerSettings(producer=client)) as producer:
            error = await fails_alone(
                producer,
                ProducerRecord("hooks", b"bad", b"bad"),
                ProducerRecord("hooks", b"good", b"good"),
            )
            assert type(error.__cause__) is SystemExit
    finally:
        await anyio.to_thread.run_sync(client.close)


# --- token providers -----------------------------------------------------------------------------


class Tokens:
    """Returns or raises the result of a function."""

    def __init__(self, give: Callable[[int], Any]) -> None:
        self._give = give
        self.calls = 0

    def token(self) -> Any:
        self.calls += 1
        return self._give(self.calls)


def with_tokens(broker: ScriptedBroker, tokens: Tokens, start_timeout: float) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=broker.address,
        start_timeout=start_timeout,
        properties={
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "OAUTHBEARER",
            "sasl_oauth_token_provider": tokens,
        },
    )


@on_either_loop
@pytest.mark.parametrize(
    ("give", "says"),
    [
        (raising(ValueError), "raised ValueError"),
        (raising(SystemExit), "raised SystemExit"),
        (seven, "must return a str"),
    ],
    ids=["ValueError", "SystemExit", "7"],
)
async def test_without_a_token_the_start_ends_in_time(
    give: Callable[[], Any], says: str, driver: DriverName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself librdkafka waits ten seconds, whatever the start_timeout is."""
    tokens = Tokens(lambda _: give())
    Hourglass(monkeypatch).run_out_when(lambda: tokens.calls > 2)
    with scripted_broker(mechanisms=("OAUTHBEARER",)) as broker:
        settings = with_tokens(broker, tokens, LONG)
        with pytest.raises(ProducerStartError) as caught:
            async with open_send_producer(settings, driver=driver):
                pass
    assert f"token() of sasl_oauth_token_provider {says}" in str(caught.value)
    assert "within 240 s (start_timeout)" in str(caught.value)
    assert tokens.calls >= 3


async def test_a_token_that_comes_later_logs_in(driver: DriverName) -> None:
    tokens = Tokens(lambda calls: "t0k3n" if calls > 2 else raising(SystemExit)())
    with scripted_broker(mechanisms=("OAUTHBEARER",), tokens={"t0k3n"}) as broker:
        async with open_send_producer(with_tokens(broker, tokens, 60), driver=driver) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))
    assert tokens.calls >= 3


@on_either_loop
async def test_a_token_provider_that_hangs_does_not_hang_the_start(driver: DriverName) -> None:
    goes_on = threading.Event()

    def hang(_: int) -> str:
        goes_on.wait()
        return "t0k3n"

    with scripted_broker(mechanisms=("OAUTHBEARER",)) as broker:
        settings = with_tokens(broker, Tokens(hang), 0.2)
        try:
            with pytest.raises(ProducerStartError, match="start_timeout"), anyio.fail_after(60):
                async with open_send_producer(settings, driver=driver):
                    pass
        finally:
            goes_on.set()
