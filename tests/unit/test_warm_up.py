"""warm_up() fetches the metadata and runs the serializers of topics before the first record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    SendProducerError,
    SerializationFailed,
    SettingsError,
    _warm_up,
    open_send_producer,
)
from anyio_sendproducer._engine import Engine
from anyio_sendproducer.serializers import TopicSerializer
from anyio_sendproducer.testing import FakeDriver, Gate, fake_producer
from tests.support.calls import Call, at_gate, quiet, task_group
from tests.support.waiting import PATIENCE, until

FOREVER = 10 * PATIENCE


class RequestedTopics(FakeDriver):
    """A fake driver that records the requested topics, and raises the errors of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.errors: dict[str, SendProducerError] = {}

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        self.asked.append(topic)
        if topic in self.errors:
            raise self.errors[topic]
        return super().partitions_for(topic)


class Counting:
    """A serializer that registers each topic once, like those of a schema registry."""

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.threads: set[int] = set()

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        self.threads.add(threading.get_ident())
        if topic not in self.registered:
            self.registered.append(topic)
        return bytes(data)


async def refused(producer: SendProducer, topics: Any, **options: Any) -> SendProducerError:
    """Call `warm_up`, and return the error that it raises."""
    with pytest.raises(SendProducerError) as caught:
        await producer.warm_up(topics, **options)
    return caught.value


@pytest.mark.parametrize("transactional_id", [None, "billing"])
async def test_it_requests_each_topic_once_and_sends_nothing(
    settings: ProducerSettings, transactional_id: str | None
) -> None:
    fake, serializer = RequestedTopics(), Counting()
    settings = settings.evolve(value_serializer=serializer, transactional_id=transactional_id)
    async with open_send_producer(settings, driver=fake) as producer:
        topics: Any = iter(
            ["names", ProducerRecord("orders", b"1"), ProducerRecord("orders", b"2")]
        )
        await producer.warm_up(topics)
        assert sorted(fake.asked) == ["names", "orders"]
        assert serializer.registered == ["orders"]
        assert threading.get_ident() not in serializer.threads
        assert producer.statistics().accepted == 0
        await producer.warm_up([])
        assert len(fake.asked) == 2
    assert fake.submitted == []


async def test_topics_are_requested_concurrently(settings: ProducerSettings) -> None:
    fake = RequestedTopics()
    fake.unknown_topics = {"slow", "slower"}
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.warm_up, ["slower", "slow", "quick"])
            await until(lambda: {*fake.asked} == {"slow", "slower", "quick"})
            assert call.running
            fake.learn("slow")
            fake.learn("slower")
        await call.wait()
        assert call.error is None


async def test_a_topic_that_the_cluster_does_not_know(settings: ProducerSettings) -> None:
    """The error ends the call, although another topic is still unknown."""
    fake = RequestedTopics()
    fake.unknown_topics = {"slow"}
    fake.errors["nowhere"] = SendProducerError("the cluster does not know topic 'nowhere'")
    async with open_send_producer(settings, driver=fake) as producer:
        error = await refused(producer, ["slow", "nowhere"], timeout=FOREVER)
        assert error is fake.errors["nowhere"]
        assert not producer._engine.metadata.waiters
        await producer.send("orders", b"two tins")


@pytest.mark.parametrize("trouble", [None, ConnectionError("broker-1:9092 refused")])
async def test_an_answer_that_is_too_late(
    settings: ProducerSettings, fake: FakeDriver, trouble: Exception | None
) -> None:
    fake.unknown_topics = {"slow"}
    fake.in_trouble = trouble
    async with open_send_producer(settings, driver=fake) as producer:
        error = await refused(producer, ["slow"], timeout=0.01)
    known = "" if trouble is None else ": broker-1:9092 refused"
    said = "no broker reported the partitions of topic 'slow' within 0.01 s (timeout)"
    assert str(error) == said + known
    assert error.__cause__ is trouble


async def test_the_default_timeout_is_the_delivery_timeout(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.unknown_topics = {"slow"}
    short = settings.evolve(delivery_timeout=0.01)
    async with open_send_producer(short, driver=fake) as producer:
        error = await refused(producer, ["slow"])
    assert str(error).endswith("'slow' within 0.01 s (delivery_timeout)")


async def test_a_serializer_that_is_too_slow(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(_engine: Engine, _topic: str, _limit: object) -> frozenset[int]:
        return frozenset({0})  # the topic is found in time, however slow the machine is

    gate = Gate()
    gate.shut()
    monkeypatch.setattr(_warm_up, "find_partitions", find)

    def serialize(data: bytes) -> bytes:
        gate.pass_through()
        return data

    settings = settings.with_value_serializer(serialize)
    async with open_send_producer(settings, driver=fake) as producer:
        try:
            error = await refused(producer, [ProducerRecord("orders", b"1")], timeout=0.05)
        finally:
            gate.open()
    said = "the serializers of an example record for topic 'orders' did not end within 0.05 s"
    assert str(error) == f"{said} (timeout)"


def divide(data: bytes) -> bytes:
    return data * (1 // 0)


def forget(_: bytes) -> None:
    return None


@pytest.mark.parametrize(
    ("serialize", "kind", "says"),
    [
        (divide, SerializationFailed, "the value_serializer raised ZeroDivisionError: "),
        (str, SerializationFailed, "the value_serializer returned str, not bytes"),
        (forget, RecordRejected, "the value_serializer returned None: neither key nor value"),
    ],
    ids=["raises", "str", "None"],
)
async def test_a_serializer_that_fails(
    settings: ProducerSettings,
    fake: FakeDriver,
    serialize: Callable[[Any], Any],
    kind: type[SendProducerError],
    says: str,
) -> None:
    settings = settings.with_value_serializer(serialize)
    example = ProducerRecord("orders", b"1")
    async with open_send_producer(settings, driver=fake) as producer:
        error = await refused(producer, [example])
        assert isinstance(error, DeliveryError)
        assert type(error) is kind
        assert says in str(error)
        assert error.record == example
        assert error.persistence is Persistence.NOT_PERSISTED
        await producer.warm_up(["orders"])
    assert fake.submitted == []


@pytest.mark.parametrize(
    ("topics", "says"),
    [
        ("orders", "takes an iterable of topics and records, not str: put it in a list"),
        (
            ProducerRecord("orders", b"1"),
            "takes an iterable of topics and records, not ProducerRecord: put it in a list",
        ),
        (7, "takes an iterable of topics and records, not int"),
        (None, "takes an iterable of topics and records, not NoneType"),
        (["orders", 7], "takes names of topics and ProducerRecords, not int"),
        (b"orders", "takes names of topics and ProducerRecords, not int"),
    ],
    ids=str,
)
async def test_invalid_topics(
    settings: ProducerSettings, fake: FakeDriver, topics: Any, says: str
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(TypeError) as caught:
            await producer.warm_up(topics)
    assert str(caught.value) == f"warm_up() {says}"


async def test_invalid_arguments_are_refused_before_any_request(
    settings: ProducerSettings,
) -> None:
    fake = RequestedTopics()
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(RecordRejected, match="topic 'a b' has characters other than"):
            await producer.warm_up(["orders", "a b"])
        with pytest.raises(RecordRejected, match="value must be bytes, not dict"):
            await producer.warm_up(["orders", ProducerRecord("orders", {"a": 1})])
        with pytest.raises(SettingsError, match="timeout must be a number of seconds above 0"):
            await producer.warm_up(["orders"], timeout=0)
    assert fake.asked == []
    with pytest.raises(ProducerClosed):
        await producer.warm_up(["orders"])


async def test_a_cancelled_call_leaves_nothing_waiting(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.unknown_topics = {"slow"}
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.warm_up, ["slow", "slow", "orders"])
            await quiet()
            await call.cancel()
        assert not producer._engine.metadata.waiters
        await producer.send("orders", b"two tins")


async def test_a_serializer_goes_on_when_its_call_is_cancelled(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    gate, done = Gate(), threading.Event()

    def serialize(data: bytes) -> bytes:
        gate.pass_through()
        done.set()
        return data

    settings = settings.with_value_serializer(serialize)
    async with open_send_producer(settings, driver=fake) as producer:
        gate.shut()
        async with task_group() as tasks:
            call = Call(tasks, producer.warm_up, [ProducerRecord("orders", b"1")])
            await at_gate(gate)
            await call.cancel()
        assert not done.is_set()
        gate.open()
        assert await anyio.to_thread.run_sync(done.wait, PATIENCE)
        await producer.send("orders", b"two tins")


async def test_it_waits_until_the_client_is_open(settings: ProducerSettings) -> None:
    fake = RequestedTopics()
    fake.on_open.shut()
    settings = settings.with_wait_for_cluster(False)
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.warm_up, ["orders"])
            await at_gate(fake.on_open)
            await quiet()
            assert call.running
            assert fake.asked == []
            fake.on_open.open()
        assert call.error is None
        assert fake.asked == ["orders"]


async def test_a_producer_that_closes_during_the_call(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.unknown_topics = {"slow"}
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.warm_up, ["slow"])
            await quiet()
            await producer.aclose()
        assert isinstance(call.error, ProducerClosed)


async def test_with_a_fake_producer() -> None:
    serializer = Counting()
    settings = ProducerSettings(
        bootstrap_servers="localhost:9092",
        value_serializer=TopicSerializer({"orders": serializer}),
    )
    async with fake_producer(settings) as fake:
        await fake.producer.warm_up(["audit", ProducerRecord("orders", b"1")])
        assert serializer.registered == ["orders"]
        with pytest.raises(SerializationFailed, match="topic 'audit' has no serializer"):
            await fake.producer.warm_up([ProducerRecord("audit", b"1")])
        assert fake.sent == []
