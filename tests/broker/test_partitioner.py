"""The partitioner of the settings with each driver: the partitions that it gets, and its
results."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.drivers import Driver, DriverName, Outcome, make_driver
from anyio_sendproducer.drivers.librdkafka import _metadata
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from tests.support.bare import BareProducer
from tests.support.hooks import ERRORS, fails_alone, raising
from tests.support.lent_client import FakeClient
from tests.support.recorder import PATIENCE, Parcel, Recorder, asked, learn, submit
from tests.support.scripted_broker import METADATA, ScriptedBroker, scripted_broker
from tests.support.waiting import blocking_until, until


def last(_topic: str, _key: bytes | None, partitions: Sequence[int]) -> int:
    return partitions[-1]


def by_value(values: Sequence[Any]) -> Callable[..., Any]:
    """Make a partitioner that returns these results by the key of the record."""

    def choose(_topic: str, key: bytes, _partitions: Sequence[int]) -> Any:
        return values[int(key)]

    return choose


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with scripted_broker(partitions=3) as running:
        yield running


def settings_for(broker: ScriptedBroker, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=broker.address, partitioner=last, cancel_timeout=1
    ).evolve(**changes)


@contextlib.contextmanager
def opened(
    driver: DriverName, broker: ScriptedBroker, **changes: Any
) -> Generator[tuple[Driver, Recorder]]:
    made, recorder = make_driver(driver, settings_for(broker, **changes)), Recorder()
    made.open(recorder)
    try:
        with asked(made, recorder):
            yield made, recorder
    finally:
        made.close(0)


def send_all(
    driver: Driver, recorder: Recorder, records: Sequence[ProducerRecord[Any, Any]]
) -> list[Outcome]:
    recorder.reports.clear()
    parcels = [Parcel(record) for record in records]
    submit(driver, recorder, parcels)
    return recorder.outcomes_of(parcels)


def rejected(outcome: Outcome) -> str:
    assert isinstance(outcome, RecordRejected), outcome
    assert outcome.persistence is Persistence.NOT_PERSISTED
    return str(outcome)


def partition_of(outcome: Outcome) -> int:
    assert isinstance(outcome, RecordMetadata), outcome
    return outcome.partition


def values_in(broker: ScriptedBroker, partition: int, topic: str = "orders") -> list[bytes]:
    """The values of the records that were sent to a partition."""
    return [value for values in broker.records[topic, partition] for value in values]


async def outcome_of(producer: SendProducer, topic: str) -> RecordMetadata | None:
    """Send a record. Returns: its metadata; None if it was refused."""
    try:
        return await producer.send(topic, b"v")
    except RecordRejected:
        return None


# --- its results ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "says"),
    [
        *[(raising(kind), f"raised {kind.__name__}: ") for kind in ERRORS],
        (lambda: None, "returned None, which is not a partition of topic 'hooks'"),
        (lambda: 99, "returned 99, which is not a partition of topic 'hooks'"),
    ],
    ids=[*[kind.__name__ for kind in ERRORS], "None", "99"],
)
async def test_a_faulty_result_fails_only_its_record(
    choose: Callable[[], Any], says: str, shared_broker: str, driver: DriverName
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=shared_broker,
        partitioner=lambda _topic, key, _partitions: choose() if key == b"bad" else 0,
    )
    async with open_send_producer(settings, driver=driver) as producer:
        error = await fails_alone(
            producer,
            ProducerRecord("hooks", b"two tins", b"bad"),
            ProducerRecord("hooks", b"a brush", b"good"),
        )
        assert f"the partitioner {says}" in rejected(error)


def test_each_result_is_used_or_refused_and_partitions_keep_their_order(
    broker: ScriptedBroker, driver: DriverName
) -> None:
    results: list[Any] = []

    @given(chosen=st.lists(st.integers(-1, 4) | st.sampled_from([None, 1.0, True]), max_size=30))
    def check(chosen: list[Any]) -> None:
        results[:] = chosen
        broker.records.clear()
        records = [ProducerRecord("orders", b"%d" % one, b"%d" % one) for one in range(len(chosen))]
        wanted: dict[int, list[bytes]] = {}
        outcomes = send_all(made, recorder, records)
        for record, result, outcome in zip(records, chosen, outcomes, strict=True):
            if type(result) is int and result in range(3):
                assert partition_of(outcome) == result
                wanted.setdefault(result, []).append(record.value)
            else:
                assert "the partitioner returned" in rejected(outcome)
        found = {place: values_in(broker, place) for _, place in broker.records}
        assert found == wanted

    with opened(driver, broker, partitioner=by_value(results)) as (made, recorder):
        check()


# --- the partitions that it gets ------------------------------------------------------------------


async def test_partitions_that_are_added_are_used(
    broker: ScriptedBroker, driver: DriverName
) -> None:
    settings = settings_for(broker, properties={"metadata.max.age.ms": 100})
    async with open_send_producer(settings, driver=driver) as producer:
        assert (await producer.send("orders", b"v")).partition == 2
        broker.partitions = 5
        with anyio.fail_after(PATIENCE):
            while (await producer.send("orders", b"v")).partition != 4:
                pass


async def test_partitions_for_refreshes_the_partitions_sooner(
    broker: ScriptedBroker, driver: DriverName
) -> None:
    async with open_send_producer(settings_for(broker), driver=driver) as producer:
        assert (await producer.send("orders", b"v")).partition == 2
        broker.partitions = 5
        with anyio.fail_after(PATIENCE):
            while await producer.partitions_for("orders") != frozenset(range(5)):
                pass
        assert (await producer.send("orders", b"v")).partition == 4


async def test_a_missing_topic_is_refused_and_delays_no_other(
    broker: ScriptedBroker, driver: DriverName
) -> None:
    broker.unknown = {"nowhere"}
    settings = settings_for(broker, unknown_topic_timeout=0.2)
    async with open_send_producer(settings, driver=driver) as producer:
        waiting = [producer.enqueue_nowait(ProducerRecord("nowhere", b"v")) for _ in range(3)]
        assert (await producer.send("orders", b"v")).partition == 2
        for delivery in waiting:
            with pytest.raises(RecordRejected, match=r"'nowhere' .* within 0.2 s \(unknown_topic"):
                await delivery.wait()
        # After its creation it is used. With librdkafka, an answer is valid for a second.
        broker.unknown = set()
        with anyio.fail_after(PATIENCE):
            while (sent := await outcome_of(producer, "nowhere")) is None:
                pass
        assert sent.partition == 2


async def test_records_wait_in_order_until_their_topic_exists(
    broker: ScriptedBroker, driver: DriverName
) -> None:
    """Records with a partition wait too."""
    broker.unknown = {"late"}
    settings = settings_for(broker, unknown_topic_timeout=PATIENCE)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send("orders", b"v")
        waiting = [
            producer.enqueue_nowait(
                ProducerRecord("late", b"%d" % number, partition=2 if number % 2 else None)
            )
            for number in range(6)
        ]
        requests = broker.requests.count(METADATA)
        await until(lambda: broker.requests.count(METADATA) > requests + 1)
        broker.unknown = set()
        for delivery in waiting:
            assert (await delivery.wait()).partition == 2
    assert values_in(broker, 2, "late") == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_forbidden_topic_is_refused(broker: ScriptedBroker, driver: DriverName) -> None:
    broker.forbidden = {"secret"}
    with opened(driver, broker) as (made, recorder):
        [outcome] = send_all(made, recorder, [ProducerRecord("secret", b"v")])
        assert "may not use topic 'secret'" in rejected(outcome)


# --- kafka-python ---------------------------------------------------------------------------------


def test_no_record_overtakes_one_whose_partition_appears_during_a_batch(
    broker: ScriptedBroker,
) -> None:
    known = threading.Event()

    def choose(_topic: str, key: bytes | None, partitions: Sequence[int]) -> int:
        if key == b"wait":
            blocking_until(is_known)
            return 0
        return partitions[-1]

    def is_known() -> bool:
        driver.partitions_for("orders")  # the answer to the current request may have the old number
        return known.is_set()

    with opened("kafka-python", broker, partitioner=choose) as (driver, recorder):
        learn(driver, recorder, "orders")
        internals: Any = driver

        def look(cluster: Any) -> None:
            if len(cluster.partitions_for_topic("orders") or ()) == 4:
                known.set()

        internals._client.cluster.add_listener(look)
        parcels = [
            Parcel(ProducerRecord("orders", b"1", partition=3)),
            Parcel(ProducerRecord("orders", b"v", b"wait")),
            Parcel(ProducerRecord("orders", b"2")),
        ]
        broker.partitions = 4
        assert driver.submit(parcels).held == [parcels[0], parcels[2]]
        submit(driver, recorder, [parcels[0], parcels[2]])
        assert [partition_of(one) for one in recorder.outcomes_of(parcels)] == [3, 0, 3]
    assert values_in(broker, 3) == [b"1", b"2"]


def test_an_external_client_gets_the_partition() -> None:
    fake = FakeClient()
    fake.known = {1, 0}
    settings = ProducerSettings(
        producer=fake,
        partitioner=lambda topic, key, partitions: [topic, key, partitions].index((0, 1)) - 1,
    )
    driver, recorder = make_driver(None, settings), Recorder()
    driver.open(recorder)
    parcels = [Parcel(ProducerRecord("t", b"v", partition=place)) for place in (None, 0)]
    driver.submit(parcels)
    assert [place for (_, _, _, _, place, _), _ in fake.sent] == [1, 0]
    driver.close(0)


async def test_an_external_kafka_python_client_uses_the_partitioner(shared_broker: str) -> None:
    client: Any = BareProducer(bootstrap_servers=shared_broker)
    try:
        settings = ProducerSettings(
            producer=client, close_producer_on_exit=False, partitioner=by_value([3, 9])
        )
        async with open_send_producer(settings) as producer:
            assert (await producer.send("lent", b"v", b"0")).partition == 3
            with pytest.raises(RecordRejected, match="the partitioner returned 9"):
                await producer.send("lent", b"v", b"1")
    finally:
        client.close()


# --- librdkafka -----------------------------------------------------------------------------------


def test_librdkafka_keeps_the_partitions_for_as_long_as_its_own_metadata(
    broker: ScriptedBroker,
) -> None:
    with opened("confluent", broker) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        requests = broker.requests.count(METADATA)
        for _ in range(5):
            send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        assert broker.requests.count(METADATA) == requests
        assert isinstance(driver, ConfluentDriver)
        metadata = driver._metadata
        came_at, partitions = metadata._lists["orders"]
        metadata._lists["orders"] = (came_at - 299, partitions)
        send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        assert broker.requests.count(METADATA) == requests
        # Meanwhile the old ones are used.
        metadata._lists["orders"] = (came_at - 300, partitions)
        broker.partitions = 4
        [outcome] = send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        blocking_until(lambda: metadata._lists["orders"][1] == (0, 1, 2, 3))
        assert partition_of(outcome) in {2, 3}


def test_a_topic_created_again_with_fewer_partitions_is_requested_again(
    broker: ScriptedBroker,
) -> None:
    """librdkafka knows the new number, and refuses the partition when it gets the record."""
    with opened("confluent", broker, unknown_topic_timeout=0.05) as (driver, recorder):
        send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        assert isinstance(driver, ConfluentDriver)
        # Otherwise an answer with the old number may arrive after the new number.
        assert driver._thread.is_prepared.wait(PATIENCE)
        old = driver._metadata._lists["orders"]
        broker.unknown = {"orders"}
        with pytest.raises(SendProducerError):
            learn(driver, recorder, "orders")
        broker.unknown, broker.partitions = set(), 2
        assert learn(driver, recorder, "orders") == {0, 1}
        driver._metadata._lists["orders"] = old
        outcomes = send_all(driver, recorder, [ProducerRecord("orders", b"v") for _ in range(3)])
        assert [partition_of(one) for one in outcomes] == [1, 1, 1]


def test_another_refusal_by_librdkafka_requests_no_metadata(
    broker: ScriptedBroker,
) -> None:
    with opened("confluent", broker, properties={"message.max.bytes": 1_000}) as (driver, recorder):
        [outcome] = send_all(driver, recorder, [ProducerRecord("orders", bytes(2_000))])
        assert "larger than message.max.bytes" in rejected(outcome)


def test_a_driver_is_closed_while_records_wait_for_the_partitions(
    broker: ScriptedBroker,
) -> None:
    broker.unknown = {"nowhere"}
    before = set(threading.enumerate())
    with opened("confluent", broker) as (driver, _):
        parcel = Parcel(ProducerRecord("nowhere", b"v"))
        assert driver.submit([parcel]).held == [parcel]
        requests = broker.requests.count(METADATA)
        blocking_until(lambda: broker.requests.count(METADATA) > requests + 1)
        driver.close(0)
    assert {one for one in threading.enumerate() if "topics" in one.name} <= before


def test_another_topic_does_not_wait_for_the_next_round(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread pauses between two requests for one topic."""
    monkeypatch.setattr(_metadata, "_REFRESH_SECONDS", 10 * PATIENCE)
    broker.unknown = {"nowhere"}
    with opened("confluent", broker) as (driver, recorder):
        waits = Parcel(ProducerRecord("nowhere", b"v"))
        assert driver.submit([waits]).held == [waits]
        assert isinstance(driver, ConfluentDriver)
        blocking_until(lambda: "nowhere" in driver._metadata._unknown)
        [outcome] = send_all(driver, recorder, [ProducerRecord("orders", b"v")])
        assert partition_of(outcome) == 2
