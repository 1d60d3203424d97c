"""The contract of every driver, as plain blocking functions.

Each function takes a rig, and raises if the rig's driver breaks the promise. The rig of each driver
hides how a situation is made: a fake holds records on request, and a broker because its process
was frozen.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Protocol

import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
)
from anyio_sendproducer._hooks import Partitioner
from anyio_sendproducer.drivers import DirectDriver, Driver
from tests.support.recorder import PATIENCE, Parcel, Recorder, asked, learn, open_sockets, submit

__all__ = ["NO_SUCH_PARTITION", "PROMISES", "Rig"]

#: Seconds that steps may take on a busy machine beyond the time-outs that bound them. It is far
#: less than the other time-outs.
SLACK: Final = PATIENCE / 3
#: The topics of the embedded broker have four partitions.
NO_SUCH_PARTITION: Final = 1_000


class Rig(Protocol):
    """Brings a driver into the situations of the tests."""

    #: Whether the driver keeps records that wait for their topic's metadata, and does not give them
    #: back.
    keeps: bool

    def make(self, partitioner: Partitioner | None = None) -> Driver:
        """Make a driver that can reach its cluster. It is not open."""
        ...

    def make_unreachable(self, start_timeout: float) -> Driver:
        """Make a driver whose cluster does not exist."""
        ...

    def make_unanswered(self) -> Driver:
        """Make a driver whose open() waits for an answer that does not come."""
        ...

    def hide(self, topic: str) -> str:
        """Withhold a topic's metadata."""
        ...

    def show(self, topic: str) -> None:
        """Let the topic's metadata arrive."""
        ...

    def freeze(self) -> None:
        """Stop the acknowledgement of records."""
        ...

    def refuse(self, record: ProducerRecord[Any, Any]) -> None:
        """Have this record refused, like a record for a partition that does not exist."""
        ...


Promise = Callable[[Rig], None]
#: The promises by name.
PROMISES: Final[dict[str, Promise]] = {}


def promise(check: Promise) -> Promise:
    """Add a check to the contract."""
    PROMISES[check.__name__] = check
    return check


@contextlib.contextmanager
def opened(
    rig: Rig, partitioner: Partitioner | None = None
) -> Generator[tuple[Driver, Recorder], None, None]:
    driver = rig.make(partitioner)
    recorder = Recorder()
    driver.open(recorder)
    try:
        with asked(driver, recorder):
            yield driver, recorder
    finally:
        driver.close(0)


def parcels_of(count: int, topic: str = "known") -> list[Parcel]:
    return [Parcel(ProducerRecord(topic, f"{number}".encode())) for number in range(count)]


# --- opening -----------------------------------------------------------------------------------


@promise
def open_returns_when_records_can_be_sent(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        parcels = parcels_of(1)
        submit(driver, recorder, parcels)
        [outcome] = recorder.outcomes_of(parcels)
        assert isinstance(outcome, RecordMetadata)
        assert recorder.breaks == []


@promise
def open_raises_within_start_timeout_where_nobody_is_there(rig: Rig) -> None:
    driver = rig.make_unreachable(0.3)
    began = time.monotonic()
    with pytest.raises(ProducerStartError):
        driver.open(Recorder())
    assert time.monotonic() - began < 0.3 + SLACK
    driver.close(0)


@promise
def close_from_another_thread_makes_open_return(rig: Rig) -> None:
    driver = rig.make_unanswered()
    came_back = threading.Event()

    def open_it() -> None:
        with contextlib.suppress(ProducerStartError):
            driver.open(Recorder())
        came_back.set()

    opener = threading.Thread(target=open_it)
    opener.start()
    assert not came_back.wait(0.1)
    driver.close(0)
    assert came_back.wait(SLACK)
    opener.join()


@promise
def nothing_is_left_of_an_open_that_failed(rig: Rig) -> None:
    driver = rig.make_unreachable(0.3)
    before = open_sockets()
    with pytest.raises(ProducerStartError):
        driver.open(Recorder())
    driver.close(0)
    assert open_sockets() - before == set()


@promise
def closing_what_was_never_opened_does_nothing(rig: Rig) -> None:
    driver = rig.make()
    driver.close(0)
    driver.close(1)


# --- records -----------------------------------------------------------------------------------


@promise
def order_and_true_metadata_of_each_record_exactly_once(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        partitions = sorted(learn(driver, recorder, "known"))
        parcels: list[Parcel] = []
        for number in range(600):
            key = None if number % 3 == 0 else f"key {number % 7}".encode()
            value = None if key is not None and number % 5 == 0 else b"v" * (number % 50)
            by_hand = partitions[number % len(partitions)] if number % 11 == 0 else None
            parcels.append(
                Parcel(
                    ProducerRecord("known", value, key, partition=by_hand, timestamp_ms=number + 1)
                )
            )
        for start in range(0, len(parcels), 150):
            submit(driver, recorder, parcels[start : start + 150])
        next_offset: dict[int, int] = {}
        partition_of: dict[bytes, int] = {}
        for parcel, outcome in zip(parcels, recorder.outcomes_of(parcels), strict=True):
            record = parcel.record
            assert isinstance(outcome, RecordMetadata)
            key_size = None if record.key is None else len(record.key)
            value_size = None if record.value is None else len(record.value)
            assert outcome == RecordMetadata(
                "known",
                outcome.partition,
                next_offset.get(outcome.partition, 0),
                record.timestamp_ms,
                key_size,
                value_size,
            )
            next_offset[outcome.partition] = next_offset.get(outcome.partition, 0) + 1
            if record.partition is not None:
                assert outcome.partition == record.partition
            elif record.key is not None:
                assert outcome.partition == partition_of.setdefault(record.key, outcome.partition)
        assert sorted(next_offset) == partitions


@promise
def what_has_no_metadata_is_given_back_in_order_and_the_rest_is_not_held_up(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        learn(driver, recorder, "known")
        hidden = rig.hide("hidden")
        ready, waiting = parcels_of(10), parcels_of(10, hidden)
        changes = recorder.metadata_changes
        mixed = [parcel for pair in zip(waiting, ready, strict=True) for parcel in pair]
        assert driver.submit(mixed).held == ([] if rig.keeps else waiting)
        if not rig.keeps:
            assert all(isinstance(one, RecordMetadata) for one in recorder.outcomes_of(ready))
            rig.show(hidden)
            recorder.wait_for_change_after(changes)
            submit(driver, recorder, waiting)
        outcomes = recorder.outcomes_of(ready + waiting)[len(ready) :]
        offsets: dict[int, list[int | None]] = {}
        for outcome in outcomes:
            assert isinstance(outcome, RecordMetadata)
            offsets.setdefault(outcome.partition, []).append(outcome.offset)
        assert all(found == list(range(len(found))) for found in offsets.values())


@promise
def a_failure_is_a_completion_and_does_not_hurt_its_neighbours(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        learn(driver, recorder, "known")
        parcels = parcels_of(5)
        bad = Parcel(ProducerRecord("known", b"bad", partition=NO_SUCH_PARTITION))
        rig.refuse(bad.record)
        parcels.insert(2, bad)
        # It and the records behind it may be given back for a while, in case the partition is new.
        submit(driver, recorder, parcels)
        for parcel, outcome in zip(parcels, recorder.outcomes_of(parcels), strict=True):
            if parcel is bad:
                assert isinstance(outcome, RecordRejected)
                assert outcome.record is bad.record
                assert outcome.persistence is Persistence.NOT_PERSISTED
            else:
                assert isinstance(outcome, RecordMetadata)
        assert recorder.breaks == []


@promise
def a_partitioner_chooses_for_each_record_that_names_no_partition(rig: Rig) -> None:
    asked_for: list[tuple[str, bytes | None, Sequence[int]]] = []

    def choose(topic: str, key: bytes | None, partitions: Sequence[int]) -> int:
        asked_for.append((topic, key, partitions))
        return NO_SUCH_PARTITION if key == b"bad" else 3

    with opened(rig, choose) as (driver, recorder):
        parcels = [
            Parcel(ProducerRecord("known", b"v", key, partition=partition))
            for key, partition in [(b"k", None), (None, None), (b"bad", None), (b"k", 1)]
        ]
        submit(driver, recorder, parcels)
        *written, refused, by_hand = recorder.outcomes_of(parcels)
        for offset, outcome in enumerate(written):
            assert isinstance(outcome, RecordMetadata)
            assert (outcome.partition, outcome.offset) == (3, offset)
        assert isinstance(refused, RecordRejected)
        assert refused.record is parcels[2].record
        assert refused.persistence is Persistence.NOT_PERSISTED
        assert isinstance(by_hand, RecordMetadata)
        assert by_hand.partition == 1
        assert asked_for == [("known", key, (0, 1, 2, 3)) for key in (b"k", None, b"bad")]
        if isinstance(driver, DirectDriver):
            assert not driver.direct


@promise
def an_empty_batch_is_nothing(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        answer = driver.submit([])
        assert (answer.held, answer.sizes, recorder.reports) == ([], [], [])


@promise
def partitions_for(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        hidden = rig.hide("hidden")
        changes = recorder.metadata_changes
        if not rig.keeps:
            assert driver.partitions_for(hidden) is None
            rig.show(hidden)
            recorder.wait_for_change_after(changes)
        assert learn(driver, recorder, hidden) == frozenset(range(4))
        assert driver.partitions_for(hidden) == frozenset(range(4))


# --- closing -----------------------------------------------------------------------------------


@promise
def a_clean_close_is_quick_and_a_second_one_does_nothing(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        parcels = parcels_of(100)
        submit(driver, recorder, parcels)
        recorder.outcomes_of(parcels)
        began = time.monotonic()
        driver.close(PATIENCE)
        driver.close(PATIENCE)
        driver.close(0)
        assert time.monotonic() - began < SLACK
        assert len(recorder.reports) == len(parcels)


@promise
def a_close_that_waits_completes_what_is_pending(rig: Rig) -> None:
    _close_completes_what_is_pending(rig, 0.2)


@promise
def a_close_that_does_not_wait_completes_what_is_pending(rig: Rig) -> None:
    _close_completes_what_is_pending(rig, 0)


def _close_completes_what_is_pending(rig: Rig, timeout: float) -> None:
    with opened(rig) as (driver, recorder):
        learn(driver, recorder, "known")
        acknowledged = parcels_of(20)
        submit(driver, recorder, acknowledged)
        recorder.outcomes_of(acknowledged)
        rig.freeze()
        pending = parcels_of(20)
        assert driver.submit(pending).held == []
        began = time.monotonic()
        driver.close(timeout)
        assert time.monotonic() - began < timeout + SLACK
        # Every outcome was reported before close returned.
        assert len(recorder.reports) == 40
        outcomes = recorder.outcomes_of(acknowledged + pending)
        for parcel, outcome in zip(pending, outcomes[20:], strict=True):
            assert isinstance(outcome, DeliveryError)
            assert outcome.record is parcel.record
            assert outcome.persistence is Persistence.POSSIBLY_PERSISTED
        driver.close(0)
        assert len(recorder.reports) == 40


@promise
def several_threads_may_close_at_once(rig: Rig) -> None:
    with opened(rig) as (driver, recorder):
        learn(driver, recorder, "known")
        rig.freeze()
        pending = parcels_of(20)
        assert driver.submit(pending).held == []
        closers = [threading.Thread(target=driver.close, args=(0.1,)) for _ in range(4)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(PATIENCE)
            assert not closer.is_alive()
        recorder.outcomes_of(pending)


@promise
def close_while_records_are_being_submitted(rig: Rig) -> None:
    """Each accepted record gets one outcome."""
    with opened(rig) as (driver, recorder):
        learn(driver, recorder, "known")
        taken: list[Parcel] = []
        closing = threading.Event()

        def submit_on() -> None:
            for _ in range(200):
                parcels = parcels_of(50)
                held = driver.submit(parcels).held
                taken.extend(parcel for parcel in parcels if parcel not in held)
                if len(taken) > 1_000:
                    closing.set()

        submitter = threading.Thread(target=submit_on)
        submitter.start()
        assert closing.wait(PATIENCE)
        driver.close(0)
        submitter.join(PATIENCE)
        assert not submitter.is_alive()
        driver.close(0)
        recorder.outcomes_of(taken)
