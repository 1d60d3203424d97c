"""The factories make records, results and errors like those of a producer."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    DiscoveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughResult,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerRecord,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    Result,
    SendProducerError,
    SerializationFailed,
    TransactionAborted,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
)
from anyio_sendproducer.testing import factories, fake_producer

AnyRecord = ProducerRecord[Any, Any]

ORDER: AnyRecord = ProducerRecord("orders", b"two tins", b"42", partition=2, timestamp_ms=7)
BILL: AnyRecord = ProducerRecord("bills", b"1.20")


def test_a_record() -> None:
    assert factories.record() == ProducerRecord("topic", b"value")
    made = factories.record("t", None, b"k", partition=1, timestamp_ms=2, headers=[("h", b"")])
    assert made == ProducerRecord(
        "t", None, b"k", partition=1, timestamp_ms=2, headers=[("h", b"")]
    )


def test_metadata() -> None:
    assert factories.metadata() == RecordMetadata("topic", 0, 0, 0, None, 5)
    assert factories.metadata(ORDER) == RecordMetadata("orders", 2, 0, 7, 2, 8)
    assert factories.metadata(
        ORDER, topic="t", partition=0, offset=None, timestamp_ms=0
    ) == RecordMetadata("t", 0, None, 0, 2, 8)
    # As with acks=0: without an offset, there is no timestamp.
    assert factories.metadata(ORDER, offset=None) == RecordMetadata("orders", 2, None, None, 2, 8)
    assert factories.metadata(ProducerRecord("t", None, "größe")).serialized_key_size == 7


async def test_metadata_equals_the_metadata_of_a_producer() -> None:
    async with fake_producer() as fake:
        assert await fake.producer.send(ORDER) == factories.metadata(ORDER)


def test_results() -> None:
    message = Message(ORDER, 3)
    metadata = factories.metadata(offset=9)
    assert factories.result().record == factories.record()
    assert factories.result(ORDER) == Result(factories.metadata(ORDER), Message(ORDER))
    assert factories.result(ORDER, pass_through=3) == factories.result(message)
    assert factories.result(message).message is message
    assert factories.result(message, metadata=metadata).offset == 9
    assert factories.pass_through_result(3) == PassThroughResult(3)


def test_results_of_several() -> None:
    made = factories.multi_result([BILL, ORDER, BILL], pass_through=3)
    assert made == factories.multi_result(MultiMessage([BILL, ORDER, BILL], 3))
    assert [part.record for part in made.parts] == [BILL, ORDER, BILL]
    assert [part.metadata.offset for part in made.parts] == [0, 0, 1]
    assert made.pass_through == 3
    metadata = factories.metadata()
    assert factories.multi_result([BILL], metadata=[metadata]) == MultiResult(
        (MultiResultPart(metadata, BILL),), None
    )
    with pytest.raises(ValueError, match="zip"):
        factories.multi_result([BILL], metadata=[])


DELIVERY_ERRORS: list[tuple[Any, type[DeliveryError], Persistence]] = [
    (factories.timeout, DeliveryTimeout, Persistence.POSSIBLY_PERSISTED),
    (factories.rejected, RecordRejected, Persistence.NOT_PERSISTED),
    (factories.serialization_failed, SerializationFailed, Persistence.NOT_PERSISTED),
    (factories.not_persisted, DeliveryError, Persistence.NOT_PERSISTED),
    (factories.possibly_persisted, DeliveryError, Persistence.POSSIBLY_PERSISTED),
]
PRODUCER_ERRORS: list[tuple[Any, type[SendProducerError]]] = [
    (factories.start_failed, ProducerStartError),
    (factories.discovery_failed, DiscoveryError),
    (factories.closed, ProducerClosed),
    (factories.broken, ProducerBroken),
    (factories.fenced, ProducerFenced),
    (factories.transaction_aborted, TransactionAborted),
    (factories.transaction_outcome_unknown, TransactionOutcomeUnknown),
]


@pytest.mark.parametrize(("make", "kind", "persistence"), DELIVERY_ERRORS)
def test_errors_of_a_record(make: Any, kind: type[DeliveryError], persistence: Persistence) -> None:
    error = make()
    assert type(error) is kind
    assert error.record == factories.record()
    assert error.persistence is persistence
    assert str(error)
    cause = ConnectionError("gone")
    error = make(ORDER, message="not today", cause=cause)
    assert error.record is ORDER
    assert str(error) == "not today"
    assert error.__cause__ is cause


def test_a_timeout_of_a_record_that_was_not_submitted() -> None:
    error = factories.timeout(persistence=Persistence.NOT_PERSISTED)
    assert error.persistence is Persistence.NOT_PERSISTED


def test_serialization_failed_has_a_cause() -> None:
    assert isinstance(factories.serialization_failed().__cause__, ValueError)


def test_errors_of_several_records() -> None:
    made = factories.multi_delivery_error()
    assert [type(part) for part in made.parts] == [MultiResultPart, RecordRejected]
    error = factories.timeout(BILL)
    part = MultiResultPart(factories.metadata(BILL, offset=5), BILL)
    made = factories.multi_delivery_error([BILL, error, part, BILL], pass_through=3)
    assert made.parts == (
        MultiResultPart(factories.metadata(BILL), BILL),
        error,
        part,
        MultiResultPart(factories.metadata(BILL, offset=1), BILL),
    )
    assert made.errors == (error,)
    assert made.pass_through == 3


def test_undelivered_records() -> None:
    made = factories.undelivered()
    assert made.count == 1
    assert isinstance(made.errors[0], RecordRejected)
    errors = (factories.timeout(), factories.rejected())
    made = factories.undelivered(*errors)
    assert (made.count, made.errors) == (2, errors)


@pytest.mark.parametrize(("make", "kind"), PRODUCER_ERRORS)
def test_errors_of_the_producer(make: Any, kind: type[SendProducerError]) -> None:
    assert type(make()) is kind
    assert str(make())
    assert str(make("not today")) == "not today"
    if "cause" in inspect.signature(make).parameters:
        cause = ConnectionError("gone")
        assert make(cause=cause).__cause__ is cause


def test_every_exception_that_sending_may_raise_has_a_factory() -> None:
    made = {kind for _, kind, _ in DELIVERY_ERRORS} | {kind for _, kind in PRODUCER_ERRORS}
    made |= {MultiDeliveryError, UndeliveredRecords}

    def kinds(base: type[Any]) -> set[type[Any]]:
        return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))

    named = {
        kind.__name__
        for kind in kinds(SendProducerError)
        if kind.__module__ == SendProducerError.__module__
    }
    # Base classes, and exceptions for faults of the caller.
    others = {"SendProducerError", "TransactionError", "SettingsError", "ProducerMisused"}
    assert named - others == {kind.__name__ for kind in made}
