"""Partitions that lose their leader, or disappear, while kafka-python has records for them.

`tests/unit/test_stalled.py` has the details, with a clock of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from tests.support.calls import Call, task_group
from tests.support.scripted_broker import PRODUCE, ScriptedBroker, scripted_broker
from tests.support.waiting import until

#: Codes of Kafka's protocol, each with the offset that a broker gives if it wrote nothing.
UNKNOWN_TOPIC_OR_PARTITION = (3, -1)
NOT_LEADER_OR_FOLLOWER = (6, -1)


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker(partitions=2) as running:
        yield running


def settings_for(broker: ScriptedBroker, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=broker.address, cancel_timeout=0.5, unknown_topic_timeout=0.3
    ).evolve(**changes)


def record(partition: int, value: bytes = b"value") -> ProducerRecord[bytes, bytes]:
    return ProducerRecord("orders", value, partition=partition)


def client_of(producer: SendProducer) -> Any:
    driver = producer._engine.bridge._worker.driver
    assert isinstance(driver, KafkaPythonDriver)
    return driver._ready().client


def holds(producer: SendProducer) -> bool:
    """Whether the client still has a batch."""
    driver = producer._engine.bridge._worker.driver
    assert isinstance(driver, KafkaPythonDriver)
    client: Any = driver._ready().producer
    return bool(client._accumulator.has_incomplete)


async def failure_of(producer: SendProducer, what: ProducerRecord[bytes, bytes]) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await producer.send(what)
    return caught.value


# --- no leader ------------------------------------------------------------------------------------


async def test_records_past_their_deadline_leave_room_for_healthy_partitions(
    broker: ScriptedBroker,
) -> None:
    """The late records repeatedly take up all the room, and the client is not given up."""
    settings = settings_for(broker, delivery_timeout=1.0, max_in_flight=6)
    async with open_send_producer(settings) as producer:
        await producer.send(record(1))
        broker.leaderless = {1}
        broker.errors = {1: NOT_LEADER_OR_FOLLOWER}
        for _ in range(3):
            async with task_group() as tasks:
                calls = [Call(tasks, producer.send, record(1)) for _ in range(6)]
            for call in calls:
                assert isinstance(call.error, DeliveryTimeout)
            with contextlib.suppress(DeliveryTimeout):  # there was no room in time
                await producer.send(record(0))
            await until(lambda: producer.statistics().in_flight == 0)
            await producer.send(record(0))
        assert producer.statistics().generations == 1
        # The batch that was sent stays for its sequence numbers. It is refused each time.
        assert holds(producer)
        broker.leaderless = set()
        broker.errors = {}
        await producer.send(record(1, b"the leader is back"))
        assert broker.records["orders", 1][-1] == [b"the leader is back"]


async def test_unanswered_records_are_sent_again_after_their_deadline(
    broker: ScriptedBroker,
) -> None:
    """They are sent as the same batch, because it may be written, and sequence numbers must have no
    gap."""
    settings = settings_for(broker, delivery_timeout=1.0, max_in_flight=2)
    async with open_send_producer(settings) as producer:
        await producer.send(record(1, b"first"))
        broker.leaderless = {1}
        broker.answers[PRODUCE] = lambda _: [None]  # the broker closes the connection
        error = await failure_of(producer, record(1, b"lost"))
        assert isinstance(error, DeliveryTimeout)
        del broker.answers[PRODUCE]
        await until(lambda: producer.statistics().in_flight == 0)
        await producer.send(record(0))
        broker.leaderless = set()
        await producer.send(record(1, b"last"))
        assert producer.statistics().generations == 1
    assert broker.records["orders", 1] == [[b"first"], [b"lost"], [b"last"]]


# --- gone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["partition", "topic"])
async def test_a_record_for_a_deleted_topic_or_partition_is_rejected(
    broker: ScriptedBroker, gone: str
) -> None:
    """It is rejected after unknown_topic_timeout. Until then the topic may come back."""
    async with open_send_producer(settings_for(broker)) as producer:
        await producer.send(record(0))
        await producer.send(record(1))
        broker.errors = {1: UNKNOWN_TOPIC_OR_PARTITION}
        if gone == "topic":
            broker.unknown = {"orders"}
            said = "the cluster does not know topic 'orders' any more"
        else:
            broker.partitions = 1
            said = "topic 'orders' does not have partition 1 any more; it has 1, numbered from 0"
        error = await failure_of(producer, record(1))
        assert isinstance(error, RecordRejected)
        assert str(error) == (
            f"{said}, and this did not change within 0.3 s (unknown_topic_timeout); "
            "the record was not written"
        )
        assert not holds(producer)
        figures = producer.statistics()
        assert (figures.in_flight, figures.generations) == (0, 1)
        if gone == "topic":
            # Its metadata are not requested any more.
            client = client_of(producer)
            driver: Any = producer._engine.bridge._worker.driver
            asked = driver._metadata
            await until(lambda: asked.requested == set() and not client.cluster.need_update)
            # Until there is a record for it.
            broker.unknown = set()
            broker.errors = {}
            await producer.send(record(1))
        else:
            await producer.send(record(0))


async def test_a_record_written_before_its_partition_was_deleted_is_not_rejected(
    broker: ScriptedBroker,
) -> None:
    """The leader had written it when the topic was deleted, and waited for the followers."""
    async with open_send_producer(settings_for(broker)) as producer:
        await producer.send(record(1))
        broker.errors = {1: (UNKNOWN_TOPIC_OR_PARTITION[0], 8)}
        broker.partitions = 1
        error = await failure_of(producer, record(1))
        assert type(error) is DeliveryError
        assert error.persistence is Persistence.POSSIBLY_PERSISTED
        assert str(error).endswith("it may be written nevertheless")


async def test_a_partition_that_is_back_in_time_gets_its_records_in_order(
    broker: ScriptedBroker,
) -> None:
    async with open_send_producer(settings_for(broker, unknown_topic_timeout=60)) as producer:
        await producer.send(record(1))
        broker.unknown = {"orders"}
        broker.errors = {1: UNKNOWN_TOPIC_OR_PARTITION}
        deliveries = [producer.enqueue_nowait(record(1, b"%d" % number)) for number in range(5)]
        await until(lambda: client_of(producer).cluster.partitions_for_topic("orders") is None)
        deliveries.append(producer.enqueue_nowait(record(1, b"5")))
        broker.unknown = set()
        broker.errors = {}
        for delivery in deliveries:
            await delivery.wait()
    sent = [value for values in broker.records["orders", 1] for value in values]
    assert list(dict.fromkeys(sent)) == [b"value", b"0", b"1", b"2", b"3", b"4", b"5"]
