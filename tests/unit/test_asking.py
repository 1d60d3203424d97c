"""A driver that can be polled: when the event loop submits and polls, and when a thread waits."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    ProducerBroken,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    _polling,
    open_send_producer,
)
from anyio_sendproducer._engine_states import ClientState
from anyio_sendproducer._polling import PollScheduler
from anyio_sendproducer.testing import Gate
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.asked_driver import AskedDriver
from tests.support.calls import Call, at_gate, generation, quiet, record, task_group
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, blocking_until, until


@pytest.fixture
def settings() -> ProducerSettings:
    return ProducerSettings(bootstrap_servers="broker.invalid:9092", cancel_timeout=0.5)


@pytest.fixture
def always_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count answers as near, and callers as sending again at once, also on a slow machine."""
    monkeypatch.setattr(_polling, "SOON_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "RETURNING", -1.0)
    monkeypatch.setattr(_polling, "POLL_SECONDS", 60.0)


@pytest.fixture
def never_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polling, "SOON_SECONDS", 0.0)


@pytest.mark.usefixtures("always_near")
async def test_the_event_loop_submits_and_polls(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        before = producer.statistics().wake_ups
        for number in range(20):
            assert (await producer.send(record())).offset == number
        assert driver.threads == {threading.current_thread().name}
        assert producer.statistics().wake_ups == before


async def test_the_driver_thread_submits_if_the_driver_is_not_direct(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver(direct=False)
    async with open_send_producer(settings, driver=driver) as producer:
        for number in range(20):
            assert (await producer.send(record())).offset == number
        assert threading.current_thread().name not in driver.threads


class SlowThread(AskedDriver):
    """Stops at a gate before it reports the records that a thread acknowledges."""

    def __init__(self) -> None:
        super().__init__(manual=True)
        self.on_report = Gate()

    def _report(self, submissions: list[Any], outcomes: list[Any]) -> int:
        if submissions:
            self.on_report.pass_through()
        return super()._report(submissions, outcomes)


@pytest.mark.parametrize(
    ("threadless", "direct"), [(False, False), (True, True)], ids=["on a thread", "threadless"]
)
async def test_a_fake_driver_that_serializes_is_direct_only_if_threadless(
    settings: ProducerSettings, threadless: bool, direct: bool
) -> None:
    fake = PolledFakeDriver(threadless=threadless)
    async with open_send_producer(
        settings.evolve(value_serializer=str.encode), driver=fake
    ) as producer:
        assert fake.direct == direct
        metadata = await producer.send(ProducerRecord("t", "text"))
    assert metadata.serialized_value_size == 4


@pytest.mark.usefixtures("always_near")
async def test_a_record_that_a_thread_is_about_to_report_is_in_flight(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    """The loop polls between the two steps of the thread, and must poll again."""
    driver = SlowThread()
    async with clock.open(settings, driver=driver) as producer, task_group() as tasks:
        call = Call(tasks, producer.send, record())
        await until(lambda: len(driver.submitted) == 1)
        driver.on_report.shut()
        thread = Call(tasks, anyio.to_thread.run_sync, driver.acknowledge)
        await at_gate(driver.on_report)
        asked = driver.asked
        await until(lambda: driver.asked > asked + 1)
        driver.on_report.open()
        await thread.wait()
        await call.wait()
        assert call.value.offset == 0


@pytest.mark.usefixtures("never_near")
async def test_the_driver_rings_when_a_late_answer_arrives(settings: ProducerSettings) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        call = Call(tasks, producer.send, record())
        await until(lambda: driver.watched == 1)
        await quiet()
        asked = driver.asked
        await quiet()
        assert driver.asked == asked  # the loop does not poll meanwhile
        driver.acknowledge()
        await call.wait()
        assert call.value is not None
        assert driver.watched == 1


@pytest.mark.usefixtures("always_near")
async def test_the_event_loop_polls_repeatedly_while_an_answer_is_near(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        await producer.send(record())
        driver.manual = True
        call = Call(tasks, producer.send, record())
        asked = driver.asked
        turns = 0
        while driver.asked < asked + 10:
            await anyio.lowlevel.checkpoint()  # other tasks run
            turns += 1
        assert turns >= 5
        assert driver.watched == 0
        driver.acknowledge()
        await call.wait()


@pytest.mark.usefixtures("always_near")
async def test_records_gather_while_an_answer_is_near(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        driver.manual = True
        for _ in range(4):
            producer.enqueue_nowait(record())
        await until(lambda: len(driver.under_way) == 4)
        held = [producer.enqueue_nowait(record()) for _ in range(3)]
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert driver.batches == [1, 1, 3]  # the queued records wait for the next outcomes
        driver.acknowledge(2)
        await until(lambda: len(driver.under_way) == 5)
        assert driver.batches == [1, 1, 3, 3]
        driver.acknowledge()
        for delivery in held:
            await delivery.wait()


async def test_a_lone_record_is_submitted_inline(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PollScheduler, "is_busy", True)
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        await quiet()
        delivery = producer.enqueue_nowait(record())
        assert len(driver.submitted) == 2
        await delivery.wait()
        await quiet()
        driver.manual = True
        await producer.partitions_for("t")
        several = [producer.enqueue_nowait(record()) for _ in range(3)]
        assert len(driver.submitted) == 3  # the pump submits the others
        await until(lambda: len(driver.submitted) == 5)
        driver.acknowledge()
        for one in several:
            await one.wait()
        await quiet()
        producer.enqueue_nowait(record())
        assert len(driver.submitted) == 5  # more records may follow
        await quiet()
        driver.acknowledge()


async def test_records_of_callers_that_send_rarely_are_submitted_inline(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PollScheduler, "is_busy", False)
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        await quiet()
        driver.manual = True
        several: list[Delivery] = []
        for count in range(2, 5):  # earlier records are in flight
            several.append(producer.enqueue_nowait(record()))
            assert len(driver.submitted) == count
        await quiet()
        driver.acknowledge()
        for one in several:
            await one.wait()


async def test_a_batch_has_at_most_500_records(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        for _ in range(1_200):
            producer.enqueue_nowait(record())
        await producer.flush()
        assert sum(driver.batches) == 1_200
        assert max(driver.batches) <= 500


@pytest.mark.parametrize("direct", [True, False])
async def test_the_replacement_of_a_broken_client_is_polled(
    settings: ProducerSettings,
    direct: bool,
) -> None:
    driver = AskedDriver(direct=direct)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        driver.break_client()
        await until(generation(producer, 2))
        assert (await producer.send(record())).offset == 1


async def test_an_exception_of_poll_breaks_the_producer(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        driver.poll_error = KeyError("the driver's own")
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())
        with pytest.raises(ProducerBroken):
            await producer.send(record())


async def test_an_exception_of_submit_breaks_the_producer(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        driver.submit_error = KeyError("the driver's own")
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())


async def test_a_record_that_the_driver_gives_back_waits_for_its_topic(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    driver.unknown_topics.add("unknown")
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        call: Call[Any] = Call(tasks, producer.send, ProducerRecord("unknown", b"v"))
        await producer.send(record())
        assert producer.statistics().queued == 1
        driver.learn("unknown")
        await call.wait()


@pytest.mark.usefixtures("always_near")
async def test_gathering_ends_when_the_gathered_records_are_withdrawn(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        deliveries = [producer.enqueue_nowait(record()) for _ in range(20)]
        await until(lambda: len(driver.submitted) == 20)
        async with task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(producer.send, record())
            while producer.statistics().queued < 3:
                await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        monkeypatch.setattr(_polling, "SOON_SECONDS", 0.0)
        await quiet()
        asked = driver.asked
        await quiet()
        assert driver.asked == asked
        assert producer.statistics().withdrawn == 3
        driver.acknowledge()
        for delivery in deliveries:
            await delivery.wait()


async def test_outcomes_are_settled_before_the_later_end_of_their_client(
    settings: ProducerSettings,
) -> None:
    """Also if there are many outcomes, and if the next client opens at once."""
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        deliveries = [producer.enqueue_nowait(record()) for _ in range(3000)]
        await until(lambda: len(driver.submitted) == 3000)
        driver.acknowledge()
        driver.break_client()
        while not all(delivery.done for delivery in deliveries):
            if producer._engine.client is ClientState.REOPENING:
                # block the loop until the next client is open
                blocking_until(lambda: driver.opened == 2)
            await anyio.lowlevel.checkpoint()
        for delivery in deliveries:
            await delivery.wait()
        await until(generation(producer, 2))


async def test_held_records_do_not_block_other_records(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    driver.unknown_topics.add("unknown")
    async with open_send_producer(settings, driver=driver) as producer:
        held = [producer.enqueue_nowait(ProducerRecord("unknown", b"")) for _ in range(600)]
        await until(lambda: producer.statistics().in_flight == 600)
        await producer.send(record())
        driver.unknown_topics.clear()
        driver.learn("unknown")
        for delivery in held:
            await delivery.wait()


class Miscounting(AskedDriver):
    """A poll returns the number of records in flight before it, instead of after it."""

    miscounts = False

    def poll(self, most: int, /) -> int:
        with self._guard:
            before = len(self._outcomes) + len(self.under_way)
        now = super().poll(most)
        return before if self.miscounts and before else now


@pytest.mark.usefixtures("always_near")
async def test_gathering_does_not_wait_for_outcomes_that_have_arrived(
    settings: ProducerSettings,
) -> None:
    driver = Miscounting()

    async def send_several(producer: SendProducer, count: int) -> None:
        for _ in range(count):
            await producer.send(record())

    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        driver.miscounts = True
        with anyio.fail_after(PATIENCE):
            for _ in range(50):
                async with task_group() as tasks:
                    for number in range(5):
                        tasks.start_soon(send_several, producer, 2 if number < 2 else 1)


@pytest.fixture
def independent_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count callers as independent, at a high rate, also on a slow machine."""
    monkeypatch.setattr(_polling, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(_polling, "BUSY_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "RETURNING", 2.0)


@pytest.mark.usefixtures("independent_callers")
async def test_on_asyncio_a_timer_polls_for_many_independent_callers(
    settings: ProducerSettings, anyio_backend_name: str
) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        first, second = (producer.enqueue_nowait(record()) for _ in range(2))
        await until(lambda: len(driver.submitted) == 2)
        driver.acknowledge()
        assert {(await one.wait()).offset for one in (first, second)} == {0, 1}
        assert (driver.watched == 0) is (anyio_backend_name == "asyncio")


@pytest.mark.usefixtures("independent_callers")
async def test_the_timer_does_not_poll_if_the_pump_has_a_turn_ahead(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        await quiet()
        bridge = producer._engine.bridge
        asked = driver.asked
        bridge.wake_pump()
        bridge._poll_now()
        assert driver.asked == asked
        await quiet()
        asked = driver.asked
        bridge._poll_now()
        assert driver.asked == asked + 1
