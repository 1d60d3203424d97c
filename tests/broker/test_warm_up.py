"""warm_up() with each driver: the first record then waits neither for metadata nor for a schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.serializers import SchemaRegistrySerializer
from tests.support.scripted_broker import ScriptedBroker, scripted_broker


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker(partitions=3) as running:
        yield running


def settings_for(broker: ScriptedBroker, **changes: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=broker.address, cancel_timeout=1).evolve(**changes)


def third(*_: object) -> int:
    return 2


@pytest.mark.parametrize("partitioner", [None, third], ids=["none", "partitioner"])
async def test_the_first_record_is_submitted_once(
    broker: ScriptedBroker, driver: DriverName, partitioner: Any
) -> None:
    registered: list[str] = []

    def registering(data: int, context: Any) -> bytes:
        """Like a serializer of confluent-kafka that registers a schema."""
        if context.topic not in registered:
            registered.append(context.topic)
        return b"%d" % data

    settings = settings_for(
        broker,
        partitioner=partitioner,
        value_serializer=SchemaRegistrySerializer(registering, "value"),
    )
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.warm_up([ProducerRecord("orders", 1), "audit"])
        assert registered == ["orders"]
        assert broker.records == {}
        # Without the metadata, the driver would give the record back.
        await producer.send("orders", 2)
        assert producer.statistics().hand_overs == 1
        assert registered == ["orders"]
        await producer.send("audit", 3)
        assert producer.statistics().hand_overs == 2
    assert sorted(registered) == ["audit", "orders"]


async def test_a_missing_topic(broker: ScriptedBroker, driver: DriverName) -> None:
    broker.unknown = {"nowhere"}
    settings = settings_for(broker, unknown_topic_timeout=0.2)
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(SendProducerError, match=r"'nowhere' .* within 0.2 s \(unknown_topic"):
            await producer.warm_up(["orders", "nowhere"])
        assert (await producer.send("orders", b"v", partition=1)).partition == 1


async def test_a_forbidden_topic(broker: ScriptedBroker, driver: DriverName) -> None:
    broker.forbidden = {"secret"}
    async with open_send_producer(settings_for(broker), driver=driver) as producer:
        with pytest.raises(SendProducerError, match="may not use topic 'secret'"):
            await producer.warm_up(["secret"])
