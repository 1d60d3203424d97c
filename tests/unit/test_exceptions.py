"""The docstring draws the tree of exceptions, and every exception can be pickled."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    DiscoveryError,
    MultiDeliveryError,
    MultiResultPart,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerMisused,
    ProducerRecord,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducerError,
    SerializationFailed,
    SettingsError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
    _exceptions,
)
from anyio_sendproducer._exceptions import add_note

RECORD = ProducerRecord("orders", b"v", b"k", headers=[("h", b"x")])
OTHERS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
    "anyio.ClosedResourceError": anyio.ClosedResourceError,
    "anyio.BrokenResourceError": anyio.BrokenResourceError,
}
SIMPLE = [
    SendProducerError,
    SettingsError,
    DiscoveryError,
    ProducerStartError,
    ProducerClosed,
    ProducerBroken,
    ProducerMisused,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionAborted,
    ProducerFenced,
]
OF_A_RECORD = [DeliveryError, DeliveryTimeout, RecordRejected, SerializationFailed]


def failure(
    cls: type[DeliveryError] = DeliveryError,
    persistence: Persistence = Persistence.POSSIBLY_PERSISTED,
) -> DeliveryError:
    return cls("not today", record=RECORD, persistence=persistence)


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """The tree in the docstring: name -> (base class of ours, base class in brackets)."""
    doc = inspect.getdoc(_exceptions)
    assert doc is not None
    tree: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in doc.splitlines():
        found = re.fullmatch(r" {4}((?:[│ ] {3})*)([├└]── )?(\w+)(?: +\(also ([\w.]+)\))?.*", line)
        if found is None:
            continue
        depth = len(found[1]) // 4 + bool(found[2])
        name = found[3]
        del above[depth:]
        tree[name] = (above[-1] if above else None, found[4])
        above.append(name)
    return tree


def real() -> dict[str, tuple[str | None, str | None]]:
    names = {cls: name for name, cls in OTHERS.items()}
    tree: dict[str, tuple[str | None, str | None]] = {}
    for name, cls in vars(_exceptions).items():
        if isinstance(cls, type) and issubclass(cls, SendProducerError):
            ours = [base.__name__ for base in cls.__bases__ if issubclass(base, SendProducerError)]
            others = [names[base] for base in cls.__bases__ if base in names]
            assert len(ours) <= 1
            assert len(others) <= 1
            tree[name] = (ours[0] if ours else None, others[0] if others else None)
    return tree


def test_the_docstring_draws_the_tree() -> None:
    assert drawn() == real()
    assert len(drawn()) == len(SIMPLE) + len(OF_A_RECORD) + 2


def test_the_branches_of_the_tree_are_connected() -> None:
    doc = inspect.getdoc(_exceptions)
    assert doc is not None
    lines = [line[4:] for line in doc.splitlines() if re.match(r" {4}[├└│]", line)]
    assert len(lines) > 10
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        for column, character in enumerate(line):
            continues = below[column : column + 1] in {"├", "└", "│"}
            if character in "├│":
                assert continues, line
            elif character == "└":
                assert not continues, line


def test_the_base_classes_of_other_packages_catch_our_exceptions() -> None:
    for cls, other in (
        (SettingsError, ValueError),
        (ProducerClosed, anyio.ClosedResourceError),
        (ProducerBroken, anyio.BrokenResourceError),
        (ProducerMisused, RuntimeError),
    ):
        with pytest.raises(other, match="why"):
            raise cls("why")


def test_every_exception_is_exported_by_its_module() -> None:
    assert {*real(), "Persistence", "SettingsWarning"} == set(_exceptions.__all__)


@pytest.mark.parametrize("cls", SIMPLE)
def test_a_pickled_exception_keeps_its_message(cls: type[SendProducerError]) -> None:
    error = pickle.loads(pickle.dumps(cls("why not")))
    assert type(error) is cls
    assert str(error) == "why not"
    assert error.args == ("why not",)


@pytest.mark.parametrize("cls", OF_A_RECORD)
@pytest.mark.parametrize("persistence", Persistence)
def test_a_pickled_exception_keeps_its_record(
    cls: type[DeliveryError], persistence: Persistence
) -> None:
    error = pickle.loads(pickle.dumps(failure(cls, persistence)))
    assert type(error) is cls
    assert str(error) == "not today"
    assert error.record == RECORD
    assert error.persistence is persistence


def test_a_copied_or_pickled_exception_keeps_its_notes() -> None:
    error = failure()
    add_note(error, "3 attempts were made")
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert other.__dict__ == error.__dict__


def test_a_pickled_multi_delivery_error_keeps_its_parts() -> None:
    metadata = RecordMetadata("orders", 0, 1, 2, 1, 1)
    parts: list[MultiResultPart[Any, Any] | DeliveryError] = [
        MultiResultPart(metadata, RECORD),
        failure(RecordRejected),
    ]
    error = MultiDeliveryError(parts, {"order": 7})
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is MultiDeliveryError
    assert other.parts[0] == parts[0]
    assert type(other.parts[1]) is RecordRejected
    assert other.pass_through == {"order": 7}
    assert str(other) == str(error)


def test_a_pickled_undelivered_records_keeps_its_failures() -> None:
    error = pickle.loads(pickle.dumps(UndeliveredRecords([failure()], 3)))
    assert type(error) is UndeliveredRecords
    assert error.count == 3
    assert [str(one) for one in error.errors] == ["not today"]


def test_a_multi_delivery_error_counts_its_failures_and_names_the_first() -> None:
    metadata = RecordMetadata("orders", 0, 1, 2, 1, 1)
    timeout = failure(DeliveryTimeout, Persistence.NOT_PERSISTED)
    other = failure()
    error = MultiDeliveryError([MultiResultPart(metadata, RECORD), timeout, other])
    assert error.parts == (MultiResultPart(metadata, RECORD), timeout, other)
    assert error.errors == (timeout, other)
    assert error.pass_through is None
    assert str(error) == (
        "2 of 3 records were not delivered; the first: DeliveryTimeout: not today [not persisted]"
    )


def test_a_multi_delivery_error_without_failures_has_a_message() -> None:
    error = MultiDeliveryError([])
    assert (error.errors, str(error)) == ((), "0 of 0 records were not delivered")


def test_undelivered_records_counts_its_failures_and_names_the_first() -> None:
    first = failure(RecordRejected, Persistence.NOT_PERSISTED)
    error = UndeliveredRecords([first, failure()], 2000)
    assert error.errors[0] is first
    assert str(error) == (
        "2000 record(s) failed and nobody awaited the outcome; "
        "the first: RecordRejected: not today [not persisted]"
    )
    assert str(UndeliveredRecords([], 1)).endswith("the first: none kept")


def test_a_delivery_error_shows_only_its_message() -> None:
    error = failure(SerializationFailed)
    assert str(error) == "not today"
    assert repr(error) == "SerializationFailed('not today')"
    assert error.summary == "SerializationFailed: not today [possibly persisted]"


@pytest.mark.parametrize("missing", ["record", "persistence"])
def test_a_delivery_error_needs_a_record_and_a_persistence(missing: str) -> None:
    fields: dict[str, Any] = {"record": RECORD, "persistence": Persistence.PERSISTED}
    del fields[missing]
    with pytest.raises(TypeError, match=missing):
        DeliveryError("not today", **fields)


def test_persistence_has_three_values() -> None:
    assert [persistence.value for persistence in Persistence] == [
        "not persisted",
        "possibly persisted",
        "persisted",
    ]
