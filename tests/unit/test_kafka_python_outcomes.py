"""What errors of kafka-python's client mean for a record, and for the client."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Final

import kafka.errors
import pytest

from anyio_sendproducer import Persistence, ProducerFenced, ProducerSettings, RecordRejected
from anyio_sendproducer import ProducerRecord as Record
from anyio_sendproducer.drivers.kafka_python._errors import client_words
from anyio_sendproducer.drivers.kafka_python._outcomes import Outcomes
from anyio_sendproducer.drivers.kafka_python._transactions import Transactions
from tests.support.recorder import Parcel, Recorder

#: A broker refused this partition by name in its answer.
REFUSED: Final = ("t", 0)
INVALID: Final = kafka.errors.InvalidRecordError()
#: The client recovers from this, unless the brokers are older than 2.5.
OUT_OF_ORDER: Final = kafka.errors.OutOfOrderSequenceNumberError()


def transactions_of(last_error: Exception | None) -> Transactions:
    """The transactions of a client whose transaction manager has `last_error`."""
    settings = ProducerSettings(bootstrap_servers="broker.invalid:1", transactional_id="id")
    manager = types.SimpleNamespace(last_error=last_error)
    nothing: Any = None
    return Transactions(settings, nothing, manager, nothing, nothing)


def outcomes_for(
    sink: Recorder,
    *,
    is_broken: Callable[[], bool] | None = lambda: False,
    is_closing: bool = False,
    transactions: Transactions | None = None,
    is_idempotent: bool = True,
    recovers: bool = True,
) -> Outcomes:
    return Outcomes(
        sink,
        {REFUSED},
        is_broken,
        lambda: is_closing,
        transactions,
        is_idempotent=is_idempotent,
        recovers=recovers,
    )


def is_rejected(
    outcomes: Outcomes, partition: int | None, parcel: Any = None, error: Exception = INVALID
) -> bool:
    """Whether a record of a run to this partition is certain not to be written."""
    run: Any = types.SimpleNamespace(topic="t", partition=partition)
    found = outcomes.failure(parcel or Parcel(Record("t", b"value")), error, run)
    assert found.persistence is (
        Persistence.NOT_PERSISTED
        if isinstance(found, RecordRejected)
        else Persistence.POSSIBLY_PERSISTED
    )
    return isinstance(found, RecordRejected)


def test_a_refusal_is_certain_if_the_client_continues() -> None:
    sink = Recorder()
    assert is_rejected(outcomes_for(sink), 1)
    assert is_rejected(outcomes_for(sink, is_idempotent=False, is_broken=None), None)
    assert not is_rejected(outcomes_for(sink), 0, error=OUT_OF_ORDER)
    assert not sink.breaks


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None,), "[Error 59] UnknownProducerIdError"),
        ((), "[Error 59] UnknownProducerIdError"),
        (("unknown id",), "[Error 59] UnknownProducerIdError: unknown id"),
    ],
)
def test_an_answer_without_a_message_adds_nothing_to_the_text(
    arguments: tuple[Any, ...], text: str
) -> None:
    error = kafka.errors.UnknownProducerIdError(*arguments)
    run: Any = types.SimpleNamespace(topic="t", partition=1)
    parcel: Any = Parcel(Record("t", b"value"))
    found = outcomes_for(Recorder()).failure(parcel, error, run)
    assert str(found).startswith(f"the record was not acknowledged: {text}")
    assert "None" not in str(found)
    words = client_words(error)
    assert words == (arguments[0] if arguments and arguments[0] else "UnknownProducerIdError")


@pytest.mark.parametrize("is_broken", [None, lambda: True])
def test_only_the_named_partition_is_refused_if_the_client_ends(
    is_broken: Callable[[], bool] | None,
) -> None:
    sink = Recorder()
    outcomes = outcomes_for(sink, is_broken=is_broken)
    assert [is_rejected(outcomes, partition) for partition in (0, 1)] == [True, False]
    assert sink.breaks == [INVALID]  # reported once


def test_only_the_first_of_unknown_partitions_is_refused_if_the_client_ends() -> None:
    outcomes = outcomes_for(Recorder(), is_broken=None)
    first, second = Parcel(Record("t", b"1")), Parcel(Record("t", b"2"))
    for parcel in (first, second):
        outcomes.note_failure(parcel, INVALID)
    assert [is_rejected(outcomes, None, parcel) for parcel in (first, second)] == [True, False]
    alone = outcomes_for(Recorder())
    alone.note_failure(first, INVALID)
    assert is_rejected(alone, None, second)


def test_a_refusal_in_a_transaction_does_not_break_the_client() -> None:
    sink = Recorder()
    outcomes = outcomes_for(sink, transactions=transactions_of(None))
    assert [is_rejected(outcomes, partition) for partition in (0, 1)] == [True, False]
    assert not sink.breaks


@pytest.mark.parametrize("is_fenced", [True, False])
def test_a_fenced_client_reports_producer_fenced(is_fenced: bool) -> None:
    sink = Recorder()
    last_error = kafka.errors.ProducerFencedError() if is_fenced else None
    transactions = transactions_of(last_error)
    outcomes_for(sink, is_broken=None, transactions=transactions).check_client(INVALID)
    [error] = sink.breaks
    assert isinstance(error, ProducerFenced) is is_fenced
    assert (error.__cause__ if is_fenced else error) is INVALID


def test_the_end_of_the_client_is_reported_once_and_not_while_it_is_closed() -> None:
    sink = Recorder()
    outcomes = outcomes_for(sink, recovers=False)
    outcomes.check_client(INVALID)  # does not end the client
    assert not sink.breaks
    outcomes.check_client(OUT_OF_ORDER)
    outcomes.check_client(OUT_OF_ORDER)
    assert sink.breaks == [OUT_OF_ORDER]
    outcomes_for(sink, recovers=False, is_closing=True).check_client(OUT_OF_ORDER)
    assert len(sink.breaks) == 1
