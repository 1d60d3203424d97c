"""A direct driver, whose client takes a record without waiting: which thread submits."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerBroken,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    _bridge,
    open_send_producer,
)
from anyio_sendproducer.drivers import (
    DirectDriver,
    Driver,
    Submission,
    Submitted,
    make_driver,
)
from anyio_sendproducer.telemetry import Delivered, Observer
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Call, generation, quiet, record, task_group
from tests.support.observers import Recorder
from tests.support.waiting import until


class DirectFake(FakeDriver):
    """Notes which thread calls `submit`."""

    def __init__(self, *, manual: bool = False, direct: bool = True) -> None:
        super().__init__(manual=manual)
        self.direct = direct
        self.threads: list[bool] = []

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        return super().submit(batch)


LOOP, THREAD = False, True


@pytest.fixture
def settings() -> ProducerSettings:
    return ProducerSettings(bootstrap_servers="broker.invalid:9092", cancel_timeout=0.5)


@asynccontextmanager
async def opened(
    settings: ProducerSettings, driver: DirectFake, observers: Sequence[Observer] = ()
) -> AsyncGenerator[SendProducer]:
    """A producer whose thread has opened the client. Until then, the thread submits all batches."""
    async with open_send_producer(settings, driver=driver, observers=observers) as producer:
        await until(lambda: producer._engine.bridge._worker.commands_done == 1)
        yield producer


async def test_the_event_loop_submits_a_lone_record(settings: ProducerSettings) -> None:
    driver = DirectFake()
    async with opened(settings, driver) as producer:
        for number in range(10):
            assert (await producer.send(record())).offset == number
        assert driver.threads == [LOOP] * 10
        delivery = producer.enqueue_nowait(record())
        assert len(driver.submitted) == 11  # inline
        await delivery.wait()


class Turns:
    """Counts how often the pump applies events."""

    def __init__(self, producer: SendProducer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        apply_all = producer._engine._apply_all

        def counted(events: Iterable[Any]) -> None:
            self.count += 1
            apply_all(events)

        monkeypatch.setattr(producer._engine, "_apply_all", counted)


async def test_a_lone_record_does_not_wait_for_the_pump(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = DirectFake()
    async with opened(settings, driver) as producer:
        await producer.send(record())
        await quiet()
        turns = Turns(producer, monkeypatch)
        for number in range(1, 10):
            assert (await producer.send(record())).offset == number
        assert turns.count == 0
        # The pump submits several records.
        await producer.send_many([record(), record()])
        assert driver.threads[-1] is LOOP
        assert producer.statistics().delivered == 12


async def test_with_observers_the_pump_takes_every_turn(settings: ProducerSettings) -> None:
    driver = DirectFake()
    seen = Recorder()
    async with opened(settings, driver, observers=[seen]) as producer:
        for _ in range(3):
            await producer.send(record())
            await quiet()
            assert driver.threads[-1] is LOOP
        assert len(seen.of(Delivered)) == 3


async def test_the_next_record_gets_the_room_of_the_previous_one(
    settings: ProducerSettings,
) -> None:
    driver = DirectFake(manual=True)
    async with (
        opened(settings.evolve(max_in_flight=1), driver) as producer,
        task_group() as tasks,
    ):
        calls = [Call(tasks, producer.send, record()) for _ in range(3)]
        for number in range(1, 4):
            await until(lambda: len(driver.submitted) == number)  # noqa: B023  # called at once
            driver.acknowledge()
        for call in calls:
            await call.wait()
        assert {call.value.offset for call in calls} == {0, 1, 2}


async def test_an_internal_exception_breaks_the_producer_and_not_the_loop(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = DirectFake()
    async with opened(settings, driver) as producer:
        await producer.send(record())
        await quiet()

        def fail(*_: object) -> Any:
            raise KeyError("a fault")

        monkeypatch.setattr(producer._engine.ledger, "settle", fail)
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())
        with pytest.raises(ProducerBroken):
            await producer.send(record())


async def test_the_thread_submits_if_the_driver_is_not_direct(settings: ProducerSettings) -> None:
    driver = DirectFake(direct=False)
    async with open_send_producer(settings, driver=driver) as producer:
        for number in range(10):
            assert (await producer.send(record())).offset == number
        assert driver.threads == [THREAD] * 10


async def test_the_thread_submits_large_batches(settings: ProducerSettings) -> None:
    driver = DirectFake(manual=True)
    large = _bridge._SMALL_BATCH + 1
    async with opened(settings, driver) as producer:

        async def submitted(count: int) -> bool:
            """Send `count` records, and return whether the thread submitted them."""
            deliveries = [producer.enqueue_nowait(record()) for _ in range(count)]
            await until(lambda: len(driver.threads) == len(submissions) + 1)
            submissions.append(driver.threads[-1])
            driver.acknowledge()
            for delivery in deliveries:
                await delivery.wait()
            await quiet()
            return submissions[-1]

        submissions: list[bool] = []
        assert await submitted(large) is THREAD
        # After a large batch, another may follow.
        assert await submitted(large - 1) is THREAD
        assert await submitted(large - 1) is LOOP
        assert await submitted(large) is THREAD


async def test_a_lone_record_after_others_waits_for_the_pump(settings: ProducerSettings) -> None:
    driver = DirectFake(manual=True)
    async with opened(settings, driver) as producer:
        several = [producer.enqueue_nowait(record()) for _ in range(3)]
        await until(lambda: len(driver.submitted) == 3)
        driver.acknowledge()
        for one in several:
            await one.wait()
        await quiet()
        alone = producer.enqueue_nowait(record())
        assert len(driver.submitted) == 3  # more records may follow
        await until(lambda: len(driver.submitted) == 4)
        another = producer.enqueue_nowait(record())
        assert len(driver.submitted) == 4  # the previous record is in flight
        await until(lambda: len(driver.submitted) == 5)
        driver.acknowledge()
        assert [(await one.wait()).offset for one in (alone, another)] == [3, 4]


async def test_the_thread_submits_while_it_has_other_work(
    settings: ProducerSettings,
) -> None:
    driver = DirectFake()
    go_on = threading.Event()
    async with opened(settings, driver) as producer, task_group() as tasks:
        await producer.send(record())

        def wait(_: Driver) -> bool:
            return go_on.wait()

        busy = Call(tasks, producer._engine.bridge.call, wait)
        await quiet()
        sent = Call(tasks, producer.send, record())
        await quiet()
        assert len(driver.submitted) == 1
        go_on.set()
        await busy.wait()
        await sent.wait()
        assert sent.value.offset == 1
        assert driver.threads == [LOOP, THREAD]


async def test_a_record_that_is_given_back_waits_for_its_topic(settings: ProducerSettings) -> None:
    driver = DirectFake()
    driver.unknown_topics.add("unknown")
    async with opened(settings, driver) as producer, task_group() as tasks:
        waits = Call(tasks, producer.send, ProducerRecord("unknown", b"v"))
        await until(lambda: driver.threads == [LOOP])
        await producer.send(record())
        assert producer.statistics().queued == 1
        driver.learn("unknown")
        await waits.wait()
        assert waits.value.topic == "unknown"


async def test_an_exception_of_an_inline_submit_breaks_the_producer(
    settings: ProducerSettings,
) -> None:
    driver = DirectFake()
    async with opened(settings, driver) as producer:
        driver.submit_error = KeyError("the driver's own")
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())
        assert driver.threads == [LOOP]
        with pytest.raises(ProducerBroken):
            await producer.send(record())


async def test_the_event_loop_submits_a_lone_record_to_the_next_client(
    settings: ProducerSettings,
) -> None:
    driver = DirectFake()
    async with open_send_producer(settings, driver=driver) as producer:
        driver.break_client()
        await until(generation(producer, 2))
        await until(
            lambda: (
                producer._engine.bridge._worker.commands_done
                == producer._engine.bridge._commands_sent
            )
        )
        await producer.send(record())
        assert driver.threads == [LOOP]


def test_a_driver_that_is_not_open_is_not_direct(settings: ProducerSettings) -> None:
    driver = make_driver(None, settings)
    assert isinstance(driver, DirectDriver)
    assert not driver.direct
