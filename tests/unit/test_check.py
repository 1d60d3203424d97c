"""``producer.check()`` asks the cluster now, independently of the producer's client."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerBroken,
    ProducerClosed,
    ProducerSettings,
    SendProducerError,
    SettingsError,
    _cluster_probe,
    open_send_producer,
)
from anyio_sendproducer.drivers import BrokerDescription, ClusterDescription, DescribingDriver
from anyio_sendproducer.testing import FakeDriver, Gate, fake_producer
from tests.support.calls import Call, at_gate, quiet, task_group
from tests.support.lent_client import FakeClient
from tests.support.waiting import PATIENCE, until

ANSWER = ClusterDescription("fake", 1, (BrokerDescription(1, "fake.invalid", 9092, None),))
REFUSED = SendProducerError("broker.test:9092: connection refused")


class Undescribed:
    """A user's own driver, without ``describe()``."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def __call__(self, settings: ProducerSettings) -> Undescribed:
        self._driver(settings)
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "describe":
            raise AttributeError(name)
        return getattr(self._driver, name)


def test_the_fake_driver_describes(fake: FakeDriver) -> None:
    assert isinstance(fake, DescribingDriver)
    assert not isinstance(Undescribed(fake), DescribingDriver)


async def test_the_cluster_answers(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        assert await producer.check(timeout=PATIENCE) == ANSWER


async def test_the_cluster_does_not_answer(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.describe_error = REFUSED
        with pytest.raises(SendProducerError) as caught:
            await producer.check(timeout=1)
        assert caught.value is REFUSED


async def test_the_fake_producer_answers() -> None:
    async with fake_producer() as fake:
        assert fake.check_error is None
        assert await fake.producer.check() == ANSWER
        fake.check_error = REFUSED
        with pytest.raises(SendProducerError, match="refused"):
            await fake.producer.check()
        assert fake.check_error is REFUSED


async def test_before_the_client_is_open(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.open_error = REFUSED
    async with open_send_producer(settings, driver=fake, wait_for_cluster=False) as producer:
        await until(lambda: fake.settings is not None)
        assert await producer.check(timeout=PATIENCE) == ANSWER


async def test_a_driver_that_cannot_describe(settings: ProducerSettings, fake: FakeDriver) -> None:
    driver: Any = Undescribed(fake)
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(SendProducerError, match=r"no method describe\(\)"):
            await producer.check()


async def test_an_existing_client() -> None:
    async with open_send_producer(ProducerSettings(producer=FakeClient())) as producer:
        with pytest.raises(SendProducerError, match="an existing producer"):
            await producer.check()


async def test_a_driver_that_is_being_made(settings: ProducerSettings) -> None:
    """The driver that broke is closed, and the factory has not returned the next one."""
    gate = Gate()

    def make(given: ProducerSettings) -> FakeDriver:
        gate.pass_through()
        return fake(given)

    fake = FakeDriver()
    async with open_send_producer(settings, driver=make) as producer:
        gate.shut()
        fake.break_client()
        await at_gate(gate)
        with pytest.raises(SendProducerError) as caught:
            await producer.check()
        gate.open()
        assert "no driver at the moment, because it makes a new one" in str(caught.value)


@pytest.mark.parametrize("own", [True, False], ids=["a driver of the user", "the default"])
async def test_unknown_addresses(fake: FakeDriver, own: bool) -> None:
    never = anyio.Event()

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        await never.wait()
        return settings

    opening = open_send_producer(
        bootstrap_servers="broker.test:9092",
        driver=fake if own else None,
        wait_for_cluster=False,
        enrich=enrich,
        cancel_timeout=0.01,
        close_timeout=0.01,
    )
    async with opening as producer:
        with pytest.raises(SendProducerError, match="addresses of the cluster are not known yet"):
            await producer.check()


@pytest.mark.parametrize("value", [0, -1, "5", None])
async def test_a_timeout_is_a_duration(
    value: Any, settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(SettingsError, match=r"^timeout must be a number of seconds above 0"):
            await producer.check(timeout=value)


async def test_a_closed_producer(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    with pytest.raises(ProducerClosed):
        await producer.check()


async def test_a_broken_producer(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.submit_error = ValueError("broken")
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(DeliveryError, match="the producer broke"):
            await producer.send("t", b"v")
        with pytest.raises(ProducerBroken):
            await producer.check()


class Slow(FakeDriver):
    """A driver that describes the cluster only when its gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.asked = 0

    def describe(self, timeout: float, /) -> ClusterDescription:
        self.asked += 1
        self.gate.wait()
        return super().describe(timeout)


async def test_the_timeout_applies_if_the_client_library_hangs(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cluster_probe, "_GRACE_SECONDS", 0.001)
    slow = Slow()
    async with open_send_producer(settings, driver=slow) as producer:
        refused = pytest.raises(SendProducerError, match=r"no answer within 0\.001 s \(timeout\)")
        while not slow.asked:  # a call may end before its thread starts
            with refused:
                await producer.check(timeout=0.001)
        # A second call does not ask the driver again while the first request hangs.
        monkeypatch.setattr(_cluster_probe, "_GRACE_SECONDS", PATIENCE)
        with refused:
            await producer.check(timeout=0.001)
        assert slow.asked == 1
        slow.gate.set()
        assert await producer.check(timeout=PATIENCE) == ANSWER


async def test_concurrent_calls_share_one_request_and_can_be_cancelled(
    settings: ProducerSettings,
) -> None:
    slow = Slow()
    async with open_send_producer(settings, driver=slow) as producer, task_group() as tasks:
        first = Call(tasks, partial(producer.check, timeout=PATIENCE))
        second = Call(tasks, partial(producer.check, timeout=PATIENCE))
        await until(lambda: slow.asked)
        await quiet()
        assert slow.asked == 1
        first.scope.cancel()
        await until(lambda: not first.running)
        slow.gate.set()
        await until(lambda: not second.running)
        assert second.value == ANSWER
