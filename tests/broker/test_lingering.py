"""Clients with a linger that is much longer than each of these tests may take."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import nullcontext
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    Delivery,
    Message,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers.kafka_python._patches import find_hurry
from tests.support.bare import BareProducer
from tests.support.recorder import PATIENCE

#: The linger in seconds; ten times the bound of each test.
LINGER = 600


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex}"


@pytest.fixture
def settings(shared_broker: str) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=shared_broker,
        delivery_timeout=2 * LINGER,
        close_timeout=PATIENCE,
        cancel_timeout=PATIENCE,
        properties={"linger.ms": LINGER * 1000},
    )


async def enqueued(producer: SendProducer, topic: str) -> list[Delivery]:
    return [await producer.enqueue(ProducerRecord(topic, b"%d" % number)) for number in range(3)]


async def test_flush(driver: DriverName, settings: ProducerSettings, topic: str) -> None:
    async with open_send_producer(settings, driver=driver) as producer:
        for _ in range(2):  # the second flush has records that came after the first
            deliveries = await enqueued(producer, topic)
            with anyio.fail_after(PATIENCE):
                await producer.flush()
            assert all(delivery.done for delivery in deliveries)
    assert producer.statistics().delivered == 6


@pytest.mark.parametrize("fails", [False, True])
async def test_the_end_of_the_block(
    driver: DriverName, settings: ProducerSettings, topic: str, fails: bool
) -> None:
    deliveries: list[Delivery] = []
    with anyio.fail_after(PATIENCE), pytest.raises(KeyError) if fails else nullcontext():
        async with open_send_producer(settings, driver=driver) as producer:
            deliveries += await enqueued(producer, topic)
            if fails:
                raise KeyError
    assert [type(await delivery.wait()) for delivery in deliveries] == 3 * [RecordMetadata]


async def test_a_full_buffer(driver: DriverName, settings: ProducerSettings, topic: str) -> None:
    settings = settings.evolve(max_in_flight=5)
    with anyio.fail_after(PATIENCE):
        async with open_send_producer(settings, driver=driver) as producer:
            # The eleventh finds room when the first ones are delivered.
            for _ in range(11):
                await producer.enqueue(ProducerRecord(topic, b"value"))


async def test_a_full_flow(driver: DriverName, settings: ProducerSettings, topic: str) -> None:
    async def source() -> AsyncGenerator[Message[None, bytes, None]]:
        while True:
            yield Message(ProducerRecord(topic, b"value"))

    with anyio.fail_after(PATIENCE):
        async with (
            open_send_producer(settings, driver=driver) as producer,
            producer.flow(source(), max_in_flight=2) as results,
        ):
            for _ in range(4):
                await results.receive()


async def test_a_commit(driver: DriverName, settings: ProducerSettings, topic: str) -> None:
    settings = settings.evolve(transactional_id=topic).with_property(
        "transaction.timeout.ms", 2 * LINGER * 1000
    )
    with anyio.fail_after(PATIENCE):
        async with open_send_producer(settings, driver=driver) as producer:
            for _ in range(2):
                async with producer.transaction() as tx:
                    await tx.enqueue(ProducerRecord(topic, b"value"))
    assert producer.statistics().delivered == 2


@pytest.fixture
def lent(shared_broker: str) -> Iterator[Any]:
    client = BareProducer(
        bootstrap_servers=shared_broker,
        linger_ms=LINGER * 1000,
        delivery_timeout_ms=3 * LINGER * 1000,
    )
    yield client
    # With 0 it does not close if a batch was just reported, and still counts as incomplete.
    client.close(PATIENCE)


async def test_an_external_client_lingers_again_after_the_producer_is_closed(
    settings: ProducerSettings, topic: str, lent: Any
) -> None:
    settings = ProducerSettings(producer=lent, close_producer_on_exit=False)
    with anyio.fail_after(PATIENCE):
        async with open_send_producer(settings) as producer:
            deliveries = await enqueued(producer, topic)
            await producer.flush()
            assert all(delivery.done for delivery in deliveries)
            await enqueued(producer, topic)
    assert producer.statistics().delivered == 6
    assert not lent._accumulator.flush_in_progress()


def test_the_lingering_of_kafka_python_can_be_ended(lent: Any) -> None:
    """If this fails, flush() waits for linger.ms again: look for another way."""
    hurry = find_hurry(lent)
    assert hurry is not None
    hurry(True)
    assert lent._accumulator.flush_in_progress()
    hurry(False)
    assert not lent._accumulator.flush_in_progress()


@pytest.mark.parametrize("attribute", ["_accumulator", "_sender"])
def test_a_client_whose_lingering_can_not_be_ended_lingers(lent: Any, attribute: str) -> None:
    class Other:
        config = lent.config
        _accumulator = None if attribute == "_accumulator" else lent._accumulator
        _sender = None if attribute == "_sender" else lent._sender

    assert find_hurry(Other()) is None
