"""The types of the public API. Type checkers check this file. It is never run."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import Any, Literal

import anyio.abc
from typing_extensions import assert_type

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    Envelope,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    Persistence,
    ProducerRecord,
    ProducerService,
    ProducerSettings,
    RecordMetadata,
    Result,
    Results,
    SendProducer,
    Statistics,
    Transaction,
    TransactionPool,
    TransactionPoolStatistics,
    UndeliveredRecords,
    dead_letter_record,
    open_send_producer,
    send_with_retry,
    start_send_producer,
)
from anyio_sendproducer.serializers import JSONSerializer, StringSerializer, TopicSerializer
from anyio_sendproducer.testing import FakeProducer, factories, fake_producer


def records() -> None:
    """The type of a record has the types of its key and its value."""
    assert_type(ProducerRecord("orders", b"v"), ProducerRecord[None, bytes])
    assert_type(ProducerRecord("orders", b"v", b"k"), ProducerRecord[bytes, bytes])
    assert_type(ProducerRecord("orders", key="k"), ProducerRecord[str, None])
    assert_type(ProducerRecord("orders"), ProducerRecord[None, None])
    record = ProducerRecord("orders", {"total": 1.5}, 7, partition=1, headers=[("h", b"x")])
    assert_type(record, ProducerRecord[int, dict[str, float]])
    assert_type(record.key, int)
    assert_type(record.value, dict[str, float])
    assert_type(record.partition, int | None)
    ProducerRecord(b"orders", b"v")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ProducerRecord("orders", b"v", b"k", 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def frozen(record: ProducerRecord[bytes, bytes]) -> None:
    """The fields of a record cannot be assigned."""
    record.topic = "others"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def envelopes(record: ProducerRecord[bytes, str], day: dt.date) -> None:
    """The type of an envelope has the type of its pass-through value."""
    assert_type(Message(record), Message[bytes, str, None])
    assert_type(Message(record, day), Message[bytes, str, dt.date])
    assert_type(Message(record, day).pass_through, dt.date)
    assert_type(Message(record).with_pass_through(day), Message[bytes, str, dt.date])
    assert_type(MultiMessage([record]), MultiMessage[bytes, str, None])
    assert_type(MultiMessage([record], day), MultiMessage[bytes, str, dt.date])
    assert_type(MultiMessage([record], day).records, tuple[ProducerRecord[bytes, str], ...])
    assert_type(MultiMessage([record], day).with_pass_through(1), MultiMessage[bytes, str, int])
    assert_type(PassThroughMessage(), PassThroughMessage[None])
    assert_type(PassThroughMessage(day), PassThroughMessage[dt.date])
    assert_type(PassThroughMessage(day).with_pass_through("x"), PassThroughMessage[str])


async def sending(
    producer: SendProducer,
    record: ProducerRecord[bytes, str],
    envelope: Envelope[bytes, str, dt.date],
    day: dt.date,
) -> None:
    """The type of the argument determines the type of the result."""
    assert_type(await producer.send(record), RecordMetadata)
    assert_type(await producer.send_many([record]), list[RecordMetadata])
    await producer.warm_up(["orders", record], timeout=dt.timedelta(seconds=5))
    assert_type(await producer.enqueue(record), Delivery)
    assert_type(producer.enqueue_nowait(record), Delivery)

    one = await producer.send_envelope(Message(record, day))
    assert_type(one, Result[bytes, str, dt.date])
    assert_type(one.pass_through, dt.date)
    assert_type(one.record, ProducerRecord[bytes, str])
    assert_type(one.offset, int | None)
    assert_type(one.metadata, RecordMetadata)
    assert_type(await producer.send_envelope(Message(record)), Result[bytes, str, None])

    several = await producer.send_envelope(MultiMessage([record], day))
    assert_type(several, MultiResult[bytes, str, dt.date])
    assert_type(several.parts, tuple[MultiResultPart[bytes, str], ...])
    assert_type(several.parts[0].record, ProducerRecord[bytes, str])
    assert_type(several.pass_through, dt.date)

    nothing = await producer.send_envelope(PassThroughMessage(day))
    assert_type(nothing, PassThroughResult[dt.date])

    of_any_kind = await producer.send_envelope(envelope)
    assert_type(of_any_kind, Results[bytes, str, dt.date])
    results(of_any_kind)

    assert_type(await producer.send("t", b"v", key=b"k", timeout=1.5), RecordMetadata)
    assert_type(await producer.send(topic="t", value=b"v", timeout=dt.timedelta(1)), RecordMetadata)
    await producer.send(b"v")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await producer.send(record, b"v")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await producer.send("t", b"v", keys=b"k")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await producer.send("t", b"v", timeout="1 s")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await producer.send_envelope(record)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def results(result: Results[bytes, str, dt.date]) -> None:
    """`match` narrows a union of results by class."""
    assert_type(result.pass_through, dt.date)
    match result:
        case Result():
            assert_type(result.message, Message[bytes, str, dt.date])
        case MultiResult():
            assert_type(result.parts, tuple[MultiResultPart[bytes, str], ...])
        case PassThroughResult():
            assert_type(result, PassThroughResult[dt.date])


async def other_methods(producer: SendProducer, delivery: Delivery) -> None:
    assert_type(await producer.partitions_for("orders"), frozenset[int])
    assert_type(producer.statistics(), Statistics)
    assert_type(producer.statistics().state, Literal["open", "draining", "broken", "closed"])
    assert_type(delivery.done, bool)
    assert_type(delivery.record, ProducerRecord[Any, Any])
    assert_type(await delivery.wait(), RecordMetadata)


async def opening(settings: ProducerSettings, tasks: anyio.abc.TaskGroup) -> None:
    """The ways to open a producer."""
    opened = open_send_producer(settings, driver="kafka-python")
    with_statement: contextlib.AbstractAsyncContextManager[SendProducer] = opened
    async with with_statement as producer:
        assert_type(producer, SendProducer)
    assert_type(await start_send_producer(tasks, settings), SendProducer)
    assert_type(await start_send_producer(tasks, bootstrap_servers="a:1"), SendProducer)
    by_keywords = open_send_producer(
        bootstrap_servers=["a:1"], delivery_timeout=dt.timedelta(minutes=1), driver="confluent"
    )
    async with by_keywords as producer:
        assert_type(producer, SendProducer)
    open_send_producer(settings, value_serializer=str.encode)
    open_send_producer()
    service = ProducerService(bootstrap_servers="a:1", driver="kafka-python")
    assert_type(await service.start(), SendProducer)
    assert_type(service.producer, SendProducer)
    async with service as producer:
        assert_type(producer, SendProducer)
    ProducerService(delivery_timout=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def pool(settings: ProducerSettings) -> None:
    """A pool of transactional producers."""
    async with TransactionPool(settings, size=2, driver="confluent") as opened:
        assert_type(opened, TransactionPool)
        async with opened.transaction() as tx:
            assert_type(tx, Transaction)
        assert_type(opened.statistics(), TransactionPoolStatistics)
        assert_type(opened.statistics().producers["id-0"], Statistics)
    TransactionPool(bootstrap_servers="a:1", transactional_id="billing", size=2)
    TransactionPool(settings, sise=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def retrying(
    producer: SendProducer, record: ProducerRecord[bytes, str], tx: Transaction
) -> None:
    """With a dead letter, the result may be None."""
    assert_type(await send_with_retry(producer, record, attempts=3), RecordMetadata)
    assert_type(await send_with_retry(producer, record, dead_letter="dead"), RecordMetadata | None)

    async def put_aside(error: DeliveryError) -> None:
        await producer.send(dead_letter_record(error, "dead"))

    await send_with_retry(producer, record, dead_letter=put_aside)
    await send_with_retry(producer, record, dead_letter=print)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await send_with_retry(tx, record)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def settings() -> None:
    """Each change returns new settings."""
    made = ProducerSettings(bootstrap_servers=["a:1"], value_serializer=str.encode)
    assert_type(made.with_property("acks", "all"), ProducerSettings)
    assert_type(made.evolve(max_in_flight=1).with_close_timeout(5), ProducerSettings)
    made.evolve(partitioner=lambda topic, key, partitions: partitions[len(topic + str(key)) % 2])
    TopicSerializer({"orders": JSONSerializer(), "audit": str.encode}, StringSerializer())
    assert_type(made.addresses, tuple[str, ...])
    assert_type(made.evolve(delivery_timeout=dt.timedelta(seconds=5)).delivery_timeout, float)
    made.with_close_timeout(dt.timedelta(seconds=5))
    ProducerSettings.from_properties({"bootstrap.servers": "a:1"})
    ProducerSettings.from_properties("producer.properties")


def failures(one: DeliveryError, several: MultiDeliveryError, last: UndeliveredRecords) -> None:
    """The attributes of exceptions."""
    assert_type(one.record, ProducerRecord[Any, Any])
    assert_type(one.persistence, Persistence)
    assert_type(several.parts, tuple[MultiResultPart[Any, Any] | DeliveryError, ...])
    assert_type(several.errors, tuple[DeliveryError, ...])
    assert_type(last.errors, tuple[DeliveryError, ...])
    assert_type(last.count, int)


async def test_kit(record: ProducerRecord[bytes, str], day: dt.date) -> None:
    """Factories for tests return the types that a producer returns."""
    async with fake_producer(answer=factories.rejected) as fake:
        assert_type(fake, FakeProducer)
        assert_type(fake.producer, SendProducer)
        assert_type(fake.sent, list[ProducerRecord[Any, Any]])
        fake.answer = lambda sent: factories.timeout(sent) if sent.key else None
        fake.fail(factories.possibly_persisted, 1)
        fake.fail(factories.closed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(factories.metadata(record), RecordMetadata)
    assert_type(factories.result(record), Result[bytes, str, None])
    assert_type(factories.result(record, pass_through=day), Result[bytes, str, dt.date])
    assert_type(factories.result(Message(record, day)), Result[bytes, str, dt.date])
    assert_type(factories.multi_result([record]), MultiResult[bytes, str, None])
    assert_type(
        factories.multi_result([record], pass_through=day), MultiResult[bytes, str, dt.date]
    )
    assert_type(
        factories.multi_result(MultiMessage([record], day)), MultiResult[bytes, str, dt.date]
    )
    assert_type(factories.pass_through_result(day), PassThroughResult[dt.date])
    assert_type(factories.undelivered(), UndeliveredRecords)
