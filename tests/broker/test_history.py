"""The history checker with real loads: a true history passes, and a changed log does not."""

from __future__ import annotations

import time

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    ProducerSettings,
)
from anyio_sendproducer.testing import FakeDriver, mock_cluster
from tests.support.calls import quiet
from tests.support.history import (
    History,
    Logged,
    Reader,
    Report,
    check,
    read_topic,
)
from tests.support.load import Load, Running, run_load

TIMEOUT = 10.0


Log = list[Logged]


def judge(history: History, log: Log, *, repeats: bool = False) -> Report:
    return check(history, log, delivery_timeout=TIMEOUT, grace=1, repeats=repeats)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["confluent-kafka", "kafka-python"])
async def test_a_topic_is_read_whole(
    shared_broker: str, anyio_backend: str, reader: Reader
) -> None:
    topic = f"read-{anyio_backend}-{reader}"
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    # One of the partitions is left empty.
    ran = await run_load(settings, Load(topic=topic, records=999, tasks=10, partitions=3))
    log = await anyio.to_thread.run_sync(lambda: read_topic(shared_broker, topic, reader=reader))
    assert judge(ran.history, log).acknowledged == len(log) == 999
    assert judge(ran.history, log).faults == ()
    assert {one.partition for one in log} == {0, 1, 2}
    assert all((one.sequence is None) == (reader == "confluent-kafka") for one in log)


@pytest.mark.parametrize("error", ["OFFSET_NOT_AVAILABLE", "LEADER_NOT_AVAILABLE"])
async def test_a_topic_whose_leader_has_just_changed_is_read_whole(error: str) -> None:
    with mock_cluster() as cluster:
        cluster.create_topic("t")
        load = Load(topic="t", records=20, tasks=2, partitions=1)
        ran = await run_load(cluster.settings("confluent"), load, driver="confluent")
        for _ in range(3):
            cluster.answer_next(1, error, api="ListOffsets")
        log = await anyio.to_thread.run_sync(read_topic, cluster.bootstrap_servers, "t")
    assert judge(ran.history, log).acknowledged == len(log) == 20


# --- the load ------------------------------------------------------------------------------------


def of_fake(fake: FakeDriver) -> Log:
    return [
        Logged(topic, partition, offset, one.key, one.value, tuple(one.headers))
        for (topic, partition), records in fake.written.items()
        for offset, one in enumerate(records)
    ]


async def test_a_load_notes_every_outcome(settings: ProducerSettings, fake: FakeDriver) -> None:
    load = Load(topic="t", records=100, tasks=7)
    ran = await run_load(settings, load, driver=fake)
    report = judge(ran.history, of_fake(fake))
    assert report.faults == ()
    assert (report.sent, report.acknowledged) == (100, 100)
    assert 0 < ran.longest_wait < TIMEOUT
    assert ran.time_to_exit > 0
    assert ran.statistics.delivered == 100


async def test_a_driver_that_swaps_two_records_is_detected(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    ran = await run_load(settings, Load(topic="t", records=100, tasks=7), driver=fake)
    written = fake.written["t", 2]
    written[3], written[4] = written[4], written[3]
    report = judge(ran.history, of_fake(fake))
    assert report.reordered == 1
    assert report.misreported == 2


async def test_a_load_is_spread_over_time(settings: ProducerSettings, fake: FakeDriver) -> None:
    began = time.monotonic()
    ran = await run_load(settings, Load(topic="t", records=10, seconds=0.2), driver=fake)
    # A busy machine sends a record late, and none before its time.
    times = [sent.at for sent in ran.history.sent.values()]
    assert times[-1] - began >= 0.17


async def test_a_cancelled_load_distinguishes_withdrawn_and_abandoned_records(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)

    async def cancel(running: Running) -> None:
        fake.on_submit.shut()
        await anyio.to_thread.run_sync(fake.on_submit.wait_until_someone_waits)
        await quiet()
        fake.on_submit.open()
        await anyio.to_thread.run_sync(fake.wait_until_taken, 10)
        fake.on_submit.shut()
        await quiet()
        running.scope.cancel()
        await quiet()
        fake.manual = False
        fake.on_submit.open()
        fake.acknowledge()

    load = Load(topic="t", records=40, tasks=20, calls=("send",))
    narrow = settings.evolve(max_in_flight=10)
    ran = await run_load(narrow, load, during=cancel, driver=fake)
    report = judge(ran.history, of_fake(fake))
    assert report.faults == ()
    assert report.sent == 20
    assert (report.abandoned, report.withdrawn) == (10, 10)


async def test_a_load_that_leaves_the_block_collects_outcomes_afterwards(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)

    async def acknowledge_on_close(running: Running) -> None:
        await running.until_sent(1)
        fake.manual = False
        fake.acknowledge()

    load = Load(topic="t", records=40, tasks=4, calls=("enqueue",), leave=True)
    ran = await run_load(settings, load, during=acknowledge_on_close, driver=fake)
    report = judge(ran.history, of_fake(fake))
    assert report.faults == ()
    assert report.acknowledged == 40
