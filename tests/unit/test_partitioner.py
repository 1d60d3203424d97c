"""The producer uses the result of a partitioner as it is, or rejects the record."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    open_send_producer,
)
from anyio_sendproducer.drivers import choose_partition
from anyio_sendproducer.testing import FakeDriver, fake_producer
from tests.support.recorder import Parcel, Recorder

RECORD = ProducerRecord("orders", b"value", b"key")


class Shelf(enum.IntEnum):
    """An int whose repr is its name."""

    TOP = 2


class Liar(int):
    """An int that is equal to everything."""

    def __eq__(self, _: object) -> bool:
        return True

    __hash__ = int.__hash__


class Pretender:
    """An object that claims to be an int."""

    @property
    def __class__(self) -> Any:
        return int

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise NotImplementedError


class PanicException(BaseException):
    """An exception like those of extensions written in Rust."""


def returning(value: Any) -> Callable[..., Any]:
    def choose(*_: object) -> Any:
        return value

    return choose


results = (
    st.integers(-3, 12)
    | st.sampled_from([None, True, False, 1.0, "1", b"1", 2**70, Shelf.TOP, Liar(99)])
    | st.builds(object)
)
numbers = st.sets(st.integers(0, 9), min_size=1).map(lambda found: tuple(sorted(found)))


def is_a_partition(result: object, partitions: Sequence[int]) -> bool:
    return type(result) in {int, Shelf} and result in partitions


@given(results, numbers)
@example(Shelf.TOP, (0, 1, 2))
@example(Liar(99), (0, 1, 2))
def test_any_result_is_used_as_it_is_or_rejected(result: Any, partitions: tuple[int, ...]) -> None:
    def choose(*given_: object) -> Any:
        assert given_ == ("orders", b"key", partitions)
        return result

    if is_a_partition(result, partitions):
        chosen = choose_partition(choose, RECORD, b"key", partitions)
        assert chosen == result
        assert type(chosen) is int
    else:
        with pytest.raises(RecordRejected) as caught:
            choose_partition(choose, RECORD, b"key", partitions)
        assert caught.value.record is RECORD
        assert caught.value.persistence is Persistence.NOT_PERSISTED


@given(st.lists(results, max_size=20), st.integers(1, 12))
def test_records_are_written_to_the_chosen_partitions_in_order(
    chosen: list[Any], count: int
) -> None:
    fake, recorder = FakeDriver(partitions=count), Recorder()
    left = iter(chosen)

    def choose(*_: object) -> Any:
        return next(left)

    fake(ProducerSettings(bootstrap_servers="a:1", partitioner=choose))
    fake.open(recorder)
    parcels = [Parcel(ProducerRecord("orders", b"%d" % number)) for number in range(len(chosen))]
    fake.submit(parcels)
    written: dict[int, list[bytes]] = {}
    outcomes = recorder.outcomes_of(parcels)
    for parcel, result, outcome in zip(parcels, chosen, outcomes, strict=True):
        if is_a_partition(result, range(count)):
            log = written.setdefault(int(result), [])
            assert isinstance(outcome, RecordMetadata)
            assert (outcome.partition, outcome.offset) == (result, len(log))
            log.append(parcel.record.value)
        else:
            assert isinstance(outcome, RecordRejected)
    assert {
        place: [record.value for record in records] for (_, place), records in fake.written.items()
    } == written


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        (returning(7), "returned 7, which is not a partition of topic 'orders'"),
        (returning(-1), "returned -1, which is not"),
        (returning(Liar(99)), "returned 99, which is not"),
        (returning(True), "returned True, which is not"),
        (returning(1.0), "returned 1.0, which is not"),
        (returning(None), "returned None, which is not"),
        (returning("0"), "returned '0', which is not"),
        (returning([0]), "returned list, which is not"),
        (returning(Pretender()), "raised TypeError: "),
        (str.upper, "raised TypeError: "),
    ],
    ids=["7", "-1", "Liar", "True", "1.0", "None", "str", "list", "Pretender", "arguments"],
)
def test_the_error_names_the_result(choose: Callable[..., Any], says: str) -> None:
    with pytest.raises(RecordRejected) as caught:
        choose_partition(choose, RECORD, b"key", (0, 1))
    assert f"the partitioner {says}" in str(caught.value)


@pytest.mark.parametrize(
    "error", [LookupError("no such shelf"), SystemExit(), KeyboardInterrupt(), PanicException()]
)
def test_any_exception_of_a_partitioner_is_the_cause_of_the_error(error: BaseException) -> None:
    def choose(*_: object) -> int:
        raise error

    with pytest.raises(RecordRejected) as caught:
        choose_partition(choose, RECORD, b"key", (0, 1))
    assert str(caught.value).startswith(f"the partitioner raised {type(error).__name__}: {error}")
    assert caught.value.__cause__ is error


async def test_a_fake_producer_calls_it() -> None:
    seen: list[tuple[str, bytes | None, Sequence[int]]] = []

    def choose(topic: str, key: bytes | None, partitions: Sequence[int]) -> int:
        seen.append((topic, key, partitions))
        return 9 if key == b"bad" else partitions[-1]

    settings = ProducerSettings(
        bootstrap_servers="a:1", partitioner=choose, key_serializer=str.encode
    )
    async with fake_producer(settings, partitions=3) as fake:
        assert (await fake.producer.send("orders", b"v", "k")).partition == 2
        assert (await fake.producer.send("orders", b"v")).partition == 2
        assert (await fake.producer.send("orders", b"v", "k", partition=1)).partition == 1
        with pytest.raises(RecordRejected, match="returned 9, which is not a partition"):
            await fake.producer.send("orders", b"v", "bad")
    assert seen == [("orders", key, (0, 1, 2)) for key in (b"k", None, b"bad")]
    assert [*fake.written] == [("orders", 2), ("orders", 1)]


async def test_a_fake_driver_calls_it(settings: ProducerSettings) -> None:
    fake = FakeDriver()
    chosen = settings.with_partitioner(lambda _topic, _key, partitions: partitions[1])
    async with open_send_producer(chosen, driver=fake) as producer:
        assert (await producer.send("orders", b"v")).partition == 1


async def test_a_record_of_a_subclass_with_its_own_constructor(settings: ProducerSettings) -> None:
    class Order(ProducerRecord[None, bytes]):
        def __init__(self) -> None:
            super().__init__("orders", b"two tins")

    fake = FakeDriver()
    chosen = settings.with_partitioner(returning(2))
    async with open_send_producer(chosen, driver=fake) as producer:
        assert (await producer.send(Order())).partition == 2
