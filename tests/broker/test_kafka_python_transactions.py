"""Transactions of the kafka-python driver, with a broker."""

from __future__ import annotations

import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer.drivers.kafka_python._transactions import Transactions
from anyio_sendproducer.testing import mock_cluster
from tests.support.calls import fail, raising


def settings_for(address: str, name: str) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=address, transactional_id=name)


async def test_a_transaction_is_committed_and_another_aborted(
    shared_broker: str, anyio_backend: str
) -> None:
    topic = f"transactions-{anyio_backend}"
    async with open_send_producer(settings_for(shared_broker, topic)) as producer:
        async with producer.transaction() as tx:
            places = [await tx.send(ProducerRecord(topic, b"%d" % n)) for n in range(3)]
            await tx.send_offsets({("source", 0): 7}, f"group-{topic}")
        assert [place.topic for place in places] == [topic] * 3
        assert tx.state is TransactionState.COMMITTED
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"never"))
                fail()
        async with producer.transaction():
            pass
        assert producer.statistics().generations == 1


async def test_a_second_producer_fences_the_first(shared_broker: str, anyio_backend: str) -> None:
    topic = f"fenced-{anyio_backend}"
    settings = settings_for(shared_broker, topic)
    async with open_send_producer(settings) as first, open_send_producer(settings) as second:
        with raising(DeliveryError) as caught:
            async with first.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"zombie"))
        assert isinstance(caught.value.__cause__, ProducerFenced)
        assert first.statistics().state == "broken"
        async with second.transaction() as tx:
            await tx.send(ProducerRecord(topic, b"good"))


async def test_a_transactional_id_that_can_not_be_initialized(
    shared_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ProducerStartError("no name")

    monkeypatch.setattr(Transactions, "start", refuse)
    with pytest.raises(ProducerStartError, match="no name"):
        async with open_send_producer(settings_for(shared_broker, "id")):
            raise AssertionError


@pytest.mark.parametrize("error", ["MESSAGE_TOO_LARGE", "INVALID_RECORD"])
async def test_after_a_refused_record_the_next_transaction_is_committed(error: str) -> None:
    with mock_cluster() as cluster:
        topic = cluster.create_topic("orders")
        record = ProducerRecord(topic, b"good", partition=0)
        async with open_send_producer(cluster.settings(transactional_id="refused")) as producer:
            with raising(RecordRejected):
                async with producer.transaction() as tx:
                    await tx.send(record)
                    cluster.answer_any(error)
                    await tx.send(ProducerRecord(topic, b"bad", partition=0))
            async with producer.transaction() as tx:
                await tx.send(record)
            assert tx.state is TransactionState.COMMITTED
            assert producer.statistics().generations == 1
