"""``wait_for_cluster=False``: the block starts at once, the client connects in the background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from anyio.abc import TaskGroup

from anyio_sendproducer import (
    DeliveryTimeout,
    DiscoveryError,
    Persistence,
    ProducerBroken,
    ProducerFenced,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    SettingsError,
    UndeliveredRecords,
    _driver_thread,
    _settings_resolver,
    open_send_producer,
)
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.telemetry import GenerationOpened
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import Call, at_gate, quiet, record, task_group
from tests.support.clock import ManualClock
from tests.support.observers import Recorder
from tests.support.waiting import until

SETTINGS = ProducerSettings(
    bootstrap_servers="broker.invalid:9092",
    wait_for_cluster=False,
    delivery_timeout=10,
    cancel_timeout=1,
)
NO_BROKER = ProducerStartError("no broker answered")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_driver_thread, "REOPEN_SECONDS", 0.001)
    monkeypatch.setattr(_driver_thread, "LONGEST_REOPEN_SECONDS", 0.002)


async def test_the_block_starts_before_the_client_is_open(fake: FakeDriver) -> None:
    fake.on_open.shut()
    async with open_send_producer(SETTINGS, driver=fake) as producer, task_group() as tasks:
        sent = Call(tasks, producer.send, record())
        known = Call(tasks, producer.partitions_for, "t")
        await at_gate(fake.on_open)
        await quiet()
        assert sent.running
        assert known.running
        assert not producer.statistics().is_connected
        assert producer.statistics().queued == 1
        fake.on_open.open()
        await until(lambda: not sent.running and not known.running)
        assert sent.value.offset == 0
        assert known.value == frozenset(range(4))
        assert producer.statistics().is_connected
        assert producer.statistics().generations == 1
    assert fake.opened == 1
    assert not producer.statistics().is_connected


async def timed_out(
    producer: SendProducer, tasks: TaskGroup, clock: ManualClock
) -> DeliveryTimeout:
    """Send a record whose deadline passes before a client is open."""
    sent = Call(tasks, producer.send, record())
    await quiet()
    clock.advance(10)
    await quiet()
    assert isinstance(sent.error, DeliveryTimeout)
    assert sent.error.persistence is Persistence.NOT_PERSISTED
    return sent.error


async def test_a_cluster_that_never_comes(fake: FakeDriver, clock: ManualClock) -> None:
    fake.open_error = NO_BROKER
    async with clock.open(SETTINGS, driver=fake) as producer, task_group() as tasks:
        await until(lambda: producer._engine.bridge.last_error() is NO_BROKER)
        error = await timed_out(producer, tasks, clock)
        assert error.__cause__ is NO_BROKER
        assert str(error).endswith("it was not sent: no broker answered")
        assert producer.statistics().state == "open"
    assert fake.submitted == []


@pytest.mark.parametrize("error", [ZeroDivisionError, UndeliveredRecords])
async def test_closing_while_the_cluster_never_comes(
    fake: FakeDriver, error: type[Exception]
) -> None:
    fake.open_error = NO_BROKER
    settings = SETTINGS.evolve(close_timeout=0.01, cancel_timeout=0.01)

    async def use() -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            producer.enqueue_nowait(record())
            await until(lambda: len(fake.closed) > 3)
            if error is ZeroDivisionError:
                raise ZeroDivisionError

    with pytest.raises(error):
        await use()
    assert fake.submitted == []


async def test_closing_while_the_client_is_being_opened(fake: FakeDriver) -> None:
    fake.on_open.shut()
    async with open_send_producer(SETTINGS, driver=fake):
        await at_gate(fake.on_open)
        fake.on_open.open()
    assert fake.closed


async def test_a_cluster_that_comes_late(
    fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    fake.open_error = NO_BROKER
    recorder = Recorder()
    async with open_send_producer(SETTINGS, driver=fake, observers=[recorder]) as producer:
        delivery = producer.enqueue_nowait(record())
        await until(lambda: len(fake.closed) > 3)
        fake.open_error = None
        assert (await delivery).offset == 0
        assert producer._engine.bridge.last_error() is None
        # The cluster may become unreachable, and return.
        assert producer.statistics().is_connected
        fake.is_cut_off = True
        assert not producer.statistics().is_connected
        fake.is_cut_off = False
        assert producer.statistics().is_connected
    assert "no client could be opened; trying again: no broker answered" in caplog.text
    opened = [event for event in recorder.events if isinstance(event, GenerationOpened)]
    assert [event.generation for event in opened] == [1]


async def test_the_next_client_is_the_second_generation(fake: FakeDriver) -> None:
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        await producer.send(record())
        fake.break_client()
        await until(lambda: producer.statistics().generations == 2)
        await producer.send(record())


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("'acks' is wrong"),
        ProducerFenced("another took over"),
        ZeroDivisionError("oh"),
    ],
    ids=repr,
)
async def test_a_permanent_error_breaks_the_producer(fake: FakeDriver, error: Exception) -> None:
    fake.open_error = error
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        await until(lambda: producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken, match=str(error)) as caught:
            await producer.send(record())
        assert caught.value.__cause__ is error


async def test_settings_that_the_driver_refuses_break_the_producer() -> None:
    def make(_: ProducerSettings) -> FakeDriver:
        raise SettingsError("'acks' is wrong")

    async with open_send_producer(SETTINGS, driver=make) as producer:
        await until(lambda: producer.statistics().state == "broken")


async def test_a_system_without_threads(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_more)
    with pytest.raises(ProducerStartError, match="no thread could be started"):
        async with open_send_producer(SETTINGS, driver=fake):
            pytest.fail("the block was entered")


class Service:
    """A resolver that fails until `answers` is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = False

    async def resolve(self, lookup: Lookup) -> Sequence[Target]:
        self.asked += 1
        if not self.answers:
            raise OSError("no name server answers")
        return [Target("found.invalid", 9092)]


async def test_a_service_that_is_found_late(
    fake: FakeDriver, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service()
    settings = SETTINGS.evolve(
        bootstrap_servers="", service_name="kafka.invalid", discovery_method=service
    )
    async with clock.open(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        for _ in range(3):
            await quiet()
            clock.advance(_settings_resolver._REPEAT_SECONDS)
        await quiet()
        assert service.asked == 4
        assert fake.opened == 0
        assert "no name server answers" in caplog.text
        service.answers = True
        clock.advance(_settings_resolver._REPEAT_SECONDS)
        assert (await delivery).offset == 0
        assert fake.settings is not None
        assert fake.settings.addresses == ("found.invalid:9092",)


async def test_the_errors_say_why_a_service_is_not_found(
    fake: FakeDriver, clock: ManualClock
) -> None:
    settings = SETTINGS.evolve(
        bootstrap_servers="", service_name="kafka.invalid", discovery_method=Service()
    )
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:
        error = await timed_out(producer, tasks, clock)
        assert isinstance(error.__cause__, DiscoveryError)
        assert str(error).endswith("no name server answers")
        with pytest.raises(SendProducerError, match="no name server answers"):
            await producer.warm_up(["t"], timeout=0.001)


async def test_an_old_failure_of_enrich_is_not_the_reason_of_a_timeout(
    fake: FakeDriver, clock: ManualClock
) -> None:
    secrets = [OSError("the vault is sealed")]

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        if secrets:
            raise secrets.pop()
        return settings

    fake.manual = True
    async with (
        clock.open(SETTINGS.evolve(enrich=enrich), driver=fake) as producer,
        task_group() as tasks,
    ):
        await quiet()
        clock.advance(_settings_resolver._REPEAT_SECONDS)
        sent = Call(tasks, producer.send, record())
        await until(lambda: len(fake.submitted) == 1)
        clock.advance(10)
        await quiet()
        assert isinstance(sent.error, DeliveryTimeout)
        assert sent.error.__cause__ is None
        fake.acknowledge()


async def test_closing_before_a_service_is_found(fake: FakeDriver, clock: ManualClock) -> None:
    settings = SETTINGS.evolve(
        bootstrap_servers="", service_name="kafka.invalid", discovery_method=Service()
    )
    async with clock.open(settings, driver=fake):
        await quiet()
    assert fake.opened == 0


async def test_settings_that_are_enriched_late(fake: FakeDriver, clock: ManualClock) -> None:
    secrets = [OSError("the vault is sealed")]

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        if secrets:
            raise secrets.pop()
        return settings.evolve(client_id="enriched")

    async with clock.open(SETTINGS.evolve(enrich=enrich), driver=fake) as producer:
        await quiet()
        assert fake.opened == 0
        clock.advance(_settings_resolver._REPEAT_SECONDS)
        assert (await producer.send(record())).offset == 0
        assert fake.settings is not None
        assert fake.settings.client_id == "enriched"


# --- without a driver thread, nothing may wait: that would stop the event loop -------------------


async def test_a_threadless_producer_is_open_when_its_block_begins() -> None:
    service, fake = Service(), PolledFakeDriver(threadless=True)
    service.answers = True

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        return settings.evolve(service_name="kafka.invalid", client_id="enriched")

    settings = SETTINGS.evolve(bootstrap_servers="", discovery_method=service, enrich=enrich)
    async with open_send_producer(settings, driver=fake) as producer:
        assert producer.statistics().is_connected
        assert fake.settings is not None
        assert fake.settings.addresses == ("found.invalid:9092",)
        assert fake.settings.client_id == "enriched"
        assert (await producer.send(record())).offset == 0


async def test_a_threadless_producer_that_finds_no_service_does_not_start() -> None:
    settings = SETTINGS.evolve(
        bootstrap_servers="", service_name="kafka.invalid", discovery_method=Service()
    )
    fake = PolledFakeDriver(threadless=True)
    with pytest.raises(DiscoveryError, match="no name server answers"):
        async with open_send_producer(settings, driver=fake):
            pytest.fail("the block was entered")
    assert fake.opened == 0


async def test_a_threadless_driver_that_cannot_open_ends_the_start() -> None:
    fake = PolledFakeDriver(threadless=True)
    fake.open_error = NO_BROKER
    with pytest.raises(ProducerStartError) as caught:
        async with open_send_producer(SETTINGS, driver=fake):
            pytest.fail("the block was entered")
    assert caught.value is NO_BROKER


async def test_a_threadless_producer_breaks_if_its_next_driver_cannot_open() -> None:
    fake = PolledFakeDriver(threadless=True)
    async with open_send_producer(SETTINGS, driver=fake) as producer:
        await producer.send(record())
        fake.open_error = NO_BROKER
        fake.break_client()
        await until(lambda: producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken, match="no broker answered") as caught:
            await producer.send(record())
        assert caught.value.__cause__ is NO_BROKER
