"""A driver that is asked: who hands over, who asks, and when it is left to a thread to wait."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerBroken,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    _polling,
    open_send_producer,
)
from anyio_sendproducer._engine_states import ClientState
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
    """However slow this machine is, answers count as near, and callers as sending again at once."""
    monkeypatch.setattr(_polling, "SOON_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "RETURNING", -1.0)
    monkeypatch.setattr(_polling, "POLL_SECONDS", 60.0)


@pytest.fixture
def never_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polling, "SOON_SECONDS", 0.0)


@pytest.mark.usefixtures("always_near")
async def test_the_loop_hands_over_and_asks_by_itself(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        before = producer.statistics().wake_ups
        for number in range(20):
            assert (await producer.send(record())).offset == number
        assert driver.threads == {threading.current_thread().name}
        assert producer.statistics().wake_ups == before


async def test_where_code_of_the_users_runs_a_thread_hands_over(settings: ProducerSettings) -> None:
    driver = AskedDriver(direct=False)
    async with open_send_producer(settings, driver=driver) as producer:
        for number in range(20):
            assert (await producer.send(record())).offset == number
        assert threading.current_thread().name not in driver.threads


class SlowThread(AskedDriver):
    """A thread that acknowledges stops at a gate before it reports."""

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
async def test_a_fake_that_serializes_is_given_records_where_its_serializers_run(
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
    """The loop asks between the two steps of the thread, and goes on asking."""
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
async def test_what_does_not_answer_soon_rings(settings: ProducerSettings) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        call = Call(tasks, producer.send, record())
        await until(lambda: driver.watched == 1)
        await quiet()
        asked = driver.asked
        await quiet()
        assert driver.asked == asked  # nobody asks meanwhile
        driver.acknowledge()
        await call.wait()
        assert call.value is not None
        assert driver.watched == 1


@pytest.mark.usefixtures("always_near")
async def test_what_answers_soon_is_asked_over_and_over(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        await producer.send(record())
        driver.manual = True
        call = Call(tasks, producer.send, record())
        asked = driver.asked
        turns = 0
        while driver.asked < asked + 10:
            await anyio.lowlevel.checkpoint()  # others have their turn
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
        assert driver.batches == [1, 1, 3]  # as many as are under way would go
        driver.acknowledge(2)
        await until(lambda: len(driver.under_way) == 5)
        assert driver.batches == [1, 1, 3, 3]
        driver.acknowledge()
        for delivery in held:
            await delivery.wait()


async def test_a_record_that_is_alone_is_handed_over_where_it_stands(
    settings: ProducerSettings,
) -> None:
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
        assert len(driver.submitted) == 3  # what comes behind it has company
        await until(lambda: len(driver.submitted) == 5)
        driver.acknowledge()
        for one in several:
            await one.wait()
        await quiet()
        producer.enqueue_nowait(record())
        assert len(driver.submitted) == 5  # there may be others again
        await quiet()
        driver.acknowledge()


async def test_many_are_handed_over_in_parts(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        for _ in range(1_200):
            producer.enqueue_nowait(record())
        await producer.flush()
        assert sum(driver.batches) == 1_200
        assert max(driver.batches) <= 500


@pytest.mark.parametrize("direct", [True, False])
async def test_a_client_that_takes_the_place_of_one_that_broke_is_asked(
    settings: ProducerSettings,
    direct: bool,
) -> None:
    driver = AskedDriver(direct=direct)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        driver.break_client()
        await until(generation(producer, 2))
        assert (await producer.send(record())).offset == 1


async def test_what_the_driver_raises_when_it_is_asked_breaks_the_producer(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        driver.poll_error = KeyError("the driver's own")
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())
        with pytest.raises(ProducerBroken):
            await producer.send(record())


async def test_what_the_driver_raises_when_it_is_given_records_breaks_the_producer(
    settings: ProducerSettings,
) -> None:
    driver = AskedDriver()
    async with open_send_producer(settings, driver=driver) as producer:
        driver.submit_error = KeyError("the driver's own")
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send(record())


async def test_what_the_driver_gives_back_waits_for_the_topic(settings: ProducerSettings) -> None:
    driver = AskedDriver()
    driver.unknown_topics.add("unknown")
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        call: Call[Any] = Call(tasks, producer.send, ProducerRecord("unknown", b"v"))
        await producer.send(record())
        assert producer.statistics().queued == 1
        driver.learn("unknown")
        await call.wait()


@pytest.mark.usefixtures("always_near")
async def test_who_gathers_for_records_that_are_withdrawn_does_not_ask_on_and_on(
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


async def test_what_came_before_is_settled_before_the_end_of_its_client(
    settings: ProducerSettings,
) -> None:
    """However much it is, and however soon the next client is open."""
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        deliveries = [producer.enqueue_nowait(record()) for _ in range(3000)]
        await until(lambda: len(driver.submitted) == 3000)
        driver.acknowledge()
        driver.break_client()
        while not all(delivery.done for delivery in deliveries):
            if producer._engine.client is ClientState.REOPENING:
                # the loop is held up until the next client is open
                blocking_until(lambda: driver.opened == 2)
            await anyio.lowlevel.checkpoint()
        for delivery in deliveries:
            await delivery.wait()
        await until(generation(producer, 2))


async def test_behind_records_that_are_held_up_the_others_go_on(
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
    """Says how many were under way before it reported, as if that were after it."""

    miscounts = False

    def poll(self, most: int, /) -> int:
        with self._guard:
            before = len(self._outcomes) + len(self.under_way)
        now = super().poll(most)
        return before if self.miscounts and before else now


@pytest.mark.usefixtures("always_near")
async def test_who_gathers_for_an_answer_that_has_come_waits_for_nobody(
    settings: ProducerSettings,
) -> None:
    driver = Miscounting()

    async def one_or_two(producer: SendProducer, count: int) -> None:
        for _ in range(count):
            await producer.send(record())

    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        driver.miscounts = True
        with anyio.fail_after(PATIENCE):
            for _ in range(50):
                async with task_group() as tasks:
                    for number in range(5):
                        tasks.start_soon(one_or_two, producer, 2 if number < 2 else 1)


@pytest.fixture
def often_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, callers count as sending by themselves, at a high rate."""
    monkeypatch.setattr(_polling, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(_polling, "BUSY_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "QUIET_SECONDS", 60.0)
    monkeypatch.setattr(_polling, "RETURNING", 2.0)


@pytest.mark.usefixtures("often_by_themselves")
async def test_many_independent_callers_are_answered_by_a_timer_of_asyncio(
    settings: ProducerSettings, anyio_backend_name: str
) -> None:
    driver = AskedDriver(manual=True)
    async with open_send_producer(settings, driver=driver) as producer:
        first, second = (producer.enqueue_nowait(record()) for _ in range(2))
        await until(lambda: len(driver.submitted) == 2)
        driver.acknowledge()
        assert {(await one.wait()).offset for one in (first, second)} == {0, 1}
        assert (driver.watched == 0) is (anyio_backend_name == "asyncio")


@pytest.mark.usefixtures("often_by_themselves")
async def test_the_timer_leaves_the_poll_to_a_turn_that_comes(settings: ProducerSettings) -> None:
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
