"""The event loop submits a lone record to the kafka-python driver, unless user code would run
there."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    open_send_producer,
)
from anyio_sendproducer.drivers import (
    DirectDriver,
    PolledDriver,
)
from anyio_sendproducer.serializers import StringSerializer


async def test_the_event_loop_submits_a_lone_record_to_kafka_python(shared_broker: str) -> None:
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    async with open_send_producer(settings) as producer:
        driver = producer._engine.bridge._worker.driver
        assert isinstance(driver, DirectDriver)
        assert not isinstance(driver, PolledDriver)
        assert driver.direct
        await producer.send(ProducerRecord("direct", b"0"))
        for number in range(1, 5):
            place = await producer.send(ProducerRecord("direct", b"%d" % number))
            assert place.topic == "direct"


kafka_partitioner: Any = importlib.import_module("kafka.partitioner")


def first(*_: object) -> int:
    return 0


@pytest.mark.parametrize(
    "changes",
    [
        {"value_serializer": StringSerializer()},
        {"key_serializer": StringSerializer()},
        {"partitioner": first},
        {"properties": {"partitioner": kafka_partitioner.DefaultPartitioner()}},
    ],
    ids=["value_serializer", "key_serializer", "partitioner", "kafka-python's partitioner"],
)
async def test_with_user_hooks_the_driver_thread_submits_to_kafka_python(
    shared_broker: str, changes: dict[str, Any]
) -> None:
    settings = ProducerSettings(bootstrap_servers=shared_broker).evolve(**changes)
    key: Any = "key" if "key_serializer" in changes else b"key"
    value: Any = "value" if "value_serializer" in changes else b"value"
    async with open_send_producer(settings) as producer:
        driver = producer._engine.bridge._worker.driver
        assert isinstance(driver, DirectDriver)
        assert not driver.direct
        await producer.send(ProducerRecord("indirect", value, key))
