"""The strategies: producers accept the valid records, and refuse the invalid ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    PassThroughMessage,
    PassThroughResult,
    Persistence,
    ProducerRecord,
    RecordMetadata,
    RecordRejected,
    Result,
    SendProducerError,
    SerializationFailed,
    UndeliveredRecords,
)
from anyio_sendproducer._validation import check_record
from anyio_sendproducer.testing import fake_producer, strategies

T = TypeVar("T")

AnyRecord = ProducerRecord[Any, Any]


@given(st.lists(strategies.records(), max_size=5))
async def test_a_producer_accepts_each_record(several: list[AnyRecord]) -> None:
    async with fake_producer() as fake:
        assert len(await fake.producer.send_many(several)) == len(several)
        assert fake.sent == several


@given(strategies.invalid_records())
def test_each_invalid_record_is_refused(record: AnyRecord) -> None:
    with pytest.raises(RecordRejected):
        check_record(record, set())


@pytest.mark.parametrize("field", ["topic", "key", "value", "headers", "partition", "timestamp_ms"])
def test_each_field_may_be_the_invalid_one(field: str) -> None:
    def only_this_is(record: AnyRecord) -> bool:
        try:
            check_record(record, set())
        except RecordRejected as error:
            return str(error).startswith(field)
        return False

    assert only_this_is(find(strategies.invalid_records(), only_this_is))


def find(strategy: st.SearchStrategy[T], condition: Callable[[T], Any]) -> T:
    """Find any example, without the slow search for the smallest. Raises if there is none."""
    only = hypothesis.settings(max_examples=5_000, phases=[hypothesis.Phase.generate])
    return hypothesis.find(strategy, condition, settings=only)


@given(
    strategies.records(
        topics=st.just("orders"),
        keys=st.just("key"),
        values=st.integers(),
        headers=st.just([("h", b"x")]),
        partitions=st.just(3),
        timestamps=st.just(5),
    )
)
def test_each_field_can_be_narrowed(record: AnyRecord) -> None:
    wanted = ProducerRecord(
        "orders", record.value, "key", partition=3, timestamp_ms=5, headers=[("h", b"x")]
    )
    assert record == wanted
    assert isinstance(record.value, int)


def test_each_optional_field_may_be_missing() -> None:
    def lacks(field: str) -> Callable[[AnyRecord], bool]:
        return lambda one: getattr(one, field) is None

    for field in ("key", "value", "partition", "timestamp_ms"):
        find(strategies.records(), lacks(field))
    find(strategies.records(), lambda one: len({name for name, _ in one.headers}) == 1)


@given(strategies.envelopes(records=strategies.records(), pass_throughs=st.integers()))
async def test_a_producer_accepts_each_envelope(envelope: Any) -> None:
    async with fake_producer() as fake:
        send: Any = fake.producer.send_envelope
        result = await send(envelope)
        kinds: dict[type[Any], type[Any]]
        kinds = {Message: Result, MultiMessage: MultiResult, PassThroughMessage: PassThroughResult}
        assert isinstance(result, kinds[type(envelope)])
        assert result.pass_through == envelope.pass_through


@pytest.mark.parametrize("kind", [Message, MultiMessage, PassThroughMessage])
def test_each_kind_of_envelope_is_generated(kind: type[Any]) -> None:
    find(strategies.envelopes(), lambda one: type(one) is kind)


@given(st.data(), strategies.records())
def test_outcomes_belong_to_the_record(data: st.DataObject, record: AnyRecord) -> None:
    outcome = data.draw(strategies.outcomes(record))
    if isinstance(outcome, DeliveryError):
        assert outcome.record is record
        assert outcome.persistence is not Persistence.PERSISTED
    else:
        assert outcome.topic == record.topic
        assert record.partition in {None, outcome.partition}
        assert outcome.serialized_value_size == (
            None if record.value is None else len(record.value)
        )


@pytest.mark.parametrize(
    "kind", [RecordMetadata, DeliveryError, DeliveryTimeout, RecordRejected, SerializationFailed]
)
def test_each_kind_of_outcome_is_generated(kind: type[Any]) -> None:
    find(strategies.outcomes(), lambda one: type(one) is kind)


def test_metadata_without_an_offset_is_generated() -> None:
    find(strategies.metadata(), lambda one: one.offset is None and one.timestamp_ms is None)
    find(strategies.metadata(), lambda one: one.offset)


@given(st.data(), strategies.envelopes())
def test_results_belong_to_the_envelope(data: st.DataObject, envelope: Any) -> None:
    result: Any = data.draw(strategies.results_of(envelope))
    assert result.pass_through is envelope.pass_through
    if type(envelope) is Message:
        assert result.message is envelope
    if type(envelope) is MultiMessage:
        assert tuple(part.record for part in result.parts) == envelope.records


@given(strategies.results(), strategies.multi_results())
def test_results(result: Any, several: MultiResult[Any, Any, Any]) -> None:
    assert isinstance(result, (Result, MultiResult, PassThroughResult))
    assert all(part.metadata.topic == part.record.topic for part in several.parts)


@given(strategies.multi_delivery_errors())
def test_a_multi_delivery_error_has_at_least_one_failure(error: MultiDeliveryError) -> None:
    assert error.errors
    assert str(error)


def test_a_multi_delivery_error_may_have_delivered_parts_in_any_place() -> None:
    def mixed(first_failed: bool) -> Callable[[MultiDeliveryError], bool]:
        def is_mixed(error: MultiDeliveryError) -> bool:
            failed = [isinstance(part, DeliveryError) for part in error.parts]
            return len(set(failed)) == 2 and failed[0] is first_failed

        return is_mixed

    for first_failed in (True, False):
        find(strategies.multi_delivery_errors(), mixed(first_failed))


@given(strategies.undelivered_records())
def test_undelivered_records_have_errors(error: UndeliveredRecords) -> None:
    assert error.count >= len(error.errors) > 0


@given(strategies.producer_errors())
def test_errors_of_producers(error: SendProducerError) -> None:
    assert not isinstance(error, DeliveryError)
    assert str(error)


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = strategies.__name__
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r'pip install "\.\[testing\]" in a checkout of'
    ) as caught:
        importlib.import_module(name)
    assert caught.value.name == "hypothesis"
