"""A topic gets partitions while the producer runs, and the metadata are up to five minutes old.

The tests of the librdkafka driver are in ``test_confluent_driver.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from tests.support.calls import Call, task_group
from tests.support.scripted_broker import METADATA, ScriptedBroker, scripted_broker
from tests.support.waiting import PATIENCE, until


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker(partitions=2) as running:
        yield running


def settings_for(broker: ScriptedBroker, **changes: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=broker.address, cancel_timeout=0.5).evolve(**changes)


def record(partition: int, value: bytes = b"value") -> ProducerRecord[bytes, bytes]:
    return ProducerRecord("orders", value, partition=partition)


def driver_of(producer: SendProducer) -> KafkaPythonDriver:
    driver = producer._engine.bridge._worker.driver
    assert isinstance(driver, KafkaPythonDriver)
    return driver


async def test_a_record_for_a_partition_that_was_added_is_delivered(
    broker: ScriptedBroker,
) -> None:
    async with open_send_producer(settings_for(broker)) as producer:
        await producer.send(record(0))
        broker.partitions = 3
        await producer.send(record(2))
        assert producer.statistics().failed == 0


async def test_records_wait_in_order_until_their_partition_is_added(
    broker: ScriptedBroker,
) -> None:
    """Records for other partitions do not wait for it."""
    async with open_send_producer(settings_for(broker, unknown_topic_timeout=PATIENCE)) as producer:
        await producer.send(record(0))
        waiting = [producer.enqueue_nowait(record(2, b"%d" % number)) for number in range(3)]
        asked = broker.requests.count(METADATA)
        await until(lambda: broker.requests.count(METADATA) > asked)
        await producer.send(record(0))
        waiting += [producer.enqueue_nowait(record(2, b"%d" % number)) for number in range(3, 6)]
        await producer.send(record(1))
        assert ("orders", 2) not in broker.records
        broker.partitions = 3
        for delivery in waiting:
            await delivery.wait()
    sent = [value for values in broker.records["orders", 2] for value in values]
    assert sent == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_missing_partition_is_refused_after_a_wait(
    broker: ScriptedBroker,
) -> None:
    async with open_send_producer(settings_for(broker, unknown_topic_timeout=0.3)) as producer:
        await producer.send(record(0))
        asked: list[int] = []
        for _ in range(2):
            asked.append(broker.requests.count(METADATA))
            with anyio.fail_after(PATIENCE), pytest.raises(RecordRejected) as caught:
                await producer.send(record(2))
            assert caught.value.persistence is Persistence.NOT_PERSISTED
            said = "topic 'orders' has no partition 2; it has 2, numbered from 0"
            assert str(caught.value) == said
        # The answers for the first record refused the second.
        assert broker.requests.count(METADATA) - asked[-1] <= 2
        assert producer.statistics().in_flight == 0


async def test_partitions_for_does_not_use_old_metadata(broker: ScriptedBroker) -> None:
    async with open_send_producer(settings_for(broker)) as producer:
        assert await producer.partitions_for("orders") == {0, 1}
        broker.partitions = 3
        driver_of(producer)._metadata.requested_at -= 100
        async with task_group() as tasks:
            calls = [Call(tasks, producer.partitions_for, "orders") for _ in range(3)]
        assert [call.value for call in calls] == [{0, 1, 2}] * 3


async def test_partitions_for_answers_while_no_broker_does(broker: ScriptedBroker) -> None:
    settings = settings_for(broker, properties={"metadata_max_age_ms": 10**6})
    async with open_send_producer(settings) as producer:
        assert await producer.partitions_for("orders") == {0, 1}
        broker.answers[METADATA] = lambda _: None
        driver_of(producer)._metadata.requested_at -= 100
        assert await producer.partitions_for("orders") == {0, 1}


async def test_a_topic_without_waiting_records_is_not_requested(
    broker: ScriptedBroker,
) -> None:
    """kafka-python 3.0.12 requests an unknown topic ten times a second without end."""
    async with open_send_producer(settings_for(broker)) as producer:
        await producer.send(record(0))
        broker.unknown = {"missing"}
        driver = driver_of(producer)
        metadata = driver._metadata
        client: Any = driver._ready().client
        async with task_group() as tasks:
            call = Call(tasks, producer.send, ProducerRecord("missing", b"value"))
            await until(lambda: "missing" in metadata.requested)
            await call.cancel()

        def is_forgotten() -> bool:
            # A long time ago.
            metadata.needed_at.update(dict.fromkeys(metadata.needed_at, -math.inf))
            return metadata.requested == {"orders"} and not client.cluster.need_update

        await until(is_forgotten)
        assert metadata.awaited == {}
