"""Wrong arguments for opening a producer."""

from __future__ import annotations

from typing import Any, cast

import pytest

from anyio_sendproducer import (
    Delivery,
    ProducerSettings,
    SendProducer,
    SettingsError,
    Transaction,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer.testing import (
    BlockingEmbeddedBroker,
    FakeDriver,
    FakeProducer,
    MockCluster,
)
from tests.support.calls import task_group


@pytest.mark.parametrize("arguments", [(), (7,), (ProducerSettings(bootstrap_servers="a:1"),)])
def test_public_classes_cannot_be_instantiated_directly(arguments: tuple[Any, ...]) -> None:
    makes: list[tuple[Any, str]] = [
        (SendProducer, "async with open_send_producer"),
        (Delivery, r"made by SendProducer\.enqueue"),
        (Transaction, r"made by SendProducer\.transaction"),
        (FakeProducer, "async with fake_producer"),
        (MockCluster, "with mock_cluster"),
        (BlockingEmbeddedBroker, "with blocking_embedded_broker"),
    ]
    for make, says in makes:
        with pytest.raises(TypeError, match=says):
            make(*arguments)


async def test_an_invalid_task_group(settings: ProducerSettings, fake: FakeDriver) -> None:
    says = "must be AnyIO's TaskGroup or Trio's Nursery, not builtins.object"
    with pytest.raises(TypeError, match=says):
        await start_send_producer(cast("Any", object()), settings, driver=fake)
    assert fake.opened == 0


async def test_invalid_observers(settings: ProducerSettings, fake: FakeDriver) -> None:
    with pytest.raises(TypeError, match="observers must be a list of observers, not object"):
        async with open_send_producer(settings, driver=fake, observers=cast("Any", object())):
            pass


def giving_nothing(_: ProducerSettings) -> None:
    return None


@pytest.mark.parametrize("factory", [dict, giving_nothing])
async def test_a_factory_that_returns_no_driver(settings: ProducerSettings, factory: Any) -> None:
    with pytest.raises((SettingsError, TypeError)) as caught:
        async with open_send_producer(settings, driver=factory):
            pass
    if factory is giving_nothing:
        assert isinstance(caught.value, SettingsError)
        assert str(caught.value) == "driver: the factory must return a Driver, not NoneType"


@pytest.mark.parametrize("what", [7, "broker:9092", {"bootstrap_servers": "broker:9092"}])
async def test_invalid_settings(fake: FakeDriver, what: Any) -> None:
    with pytest.raises(TypeError, match=f"ProducerSettings, not {type(what).__name__}"):
        async with open_send_producer(what, driver=fake):
            pytest.fail("the block was entered")
    async with task_group() as tasks:
        with pytest.raises(TypeError, match=f"ProducerSettings, not {type(what).__name__}"):
            await start_send_producer(tasks, what, driver=fake)
