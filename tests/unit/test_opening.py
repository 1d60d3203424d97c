"""Opening a producer: settings, keywords, the environment, and common mistakes."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from datetime import timedelta
from typing import Any, cast, get_args, get_type_hints

import pytest

from anyio_sendproducer import (
    ProducerClosed,
    ProducerSettings,
    SettingsError,
    Statistics,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer._delivery import ProducerState
from anyio_sendproducer._settings import SettingsFields
from anyio_sendproducer.drivers import DriverName, make_driver
from anyio_sendproducer.drivers._describe import describe_cluster, protocol_of
from anyio_sendproducer.testing import FakeDriver, _mock_cluster
from tests.support.calls import never, raising, task_group

ADDRESS = "kafka.test:9092"


async def opened_with(fake: FakeDriver, *settings: Any, **fields: Any) -> ProducerSettings:
    """The settings that both ways of opening pass to the driver."""
    async with open_send_producer(*settings, driver=fake, **fields):
        found = fake.settings
    async with task_group() as tasks:
        producer = await start_send_producer(tasks, *settings, driver=fake, **fields)
        await producer.aclose()
    assert found is not None
    assert fake.settings == found
    return found


async def test_the_fields_are_keywords(fake: FakeDriver) -> None:
    found = await opened_with(fake, bootstrap_servers=ADDRESS, delivery_timeout=7)
    assert found == ProducerSettings(bootstrap_servers=ADDRESS, delivery_timeout=7)


async def test_keywords_override_settings(settings: ProducerSettings, fake: FakeDriver) -> None:
    found = await opened_with(fake, settings, client_id="orders", properties={"acks": 1})
    assert found == settings.evolve(client_id="orders", properties={"acks": 1})


async def test_settings_without_keywords(settings: ProducerSettings, fake: FakeDriver) -> None:
    assert await opened_with(fake, settings) is settings


async def test_an_address_replaces_a_service(fake: FakeDriver) -> None:
    settings = ProducerSettings(service_name="kafka.test")
    found = await opened_with(fake, settings, bootstrap_servers=ADDRESS)
    assert (found.service_name, found.addresses) == ("", (ADDRESS,))


async def test_a_service_replaces_an_address(settings: ProducerSettings, fake: FakeDriver) -> None:
    async def find(lookup: Any) -> Any:
        raise LookupError(f"asked for {lookup}")

    with pytest.raises(Exception, match=r"asked for kafka\.test"):
        await opened_with(fake, settings, service_name="kafka.test", discovery_method=find)


async def test_the_environment_is_the_default(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", ADDRESS)
    monkeypatch.setenv("KAFKA_CLIENT_ID", "orders")
    monkeypatch.setenv("KAFKA_PROPERTIES_LINGER_MS", "5")
    found = await opened_with(fake)
    assert found.addresses == (ADDRESS,)
    assert found.client_id == "orders"
    assert found.properties == {"linger_ms": "5"}


async def test_without_any_settings_the_missing_variable_is_named(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    says = (
        r"variable KAFKA_BOOTSTRAP_SERVERS is not set\. Set it, for example to localhost:9092, or "
        "pass bootstrap_servers or settings"
    )
    with pytest.raises(SettingsError, match=says):
        open_send_producer(driver=fake)
    async with task_group() as tasks:
        with pytest.raises(SettingsError, match=says):
            await start_send_producer(tasks, driver=fake)


async def test_the_task_group_is_checked_first(settings: ProducerSettings) -> None:
    with pytest.raises(TypeError, match=r"not anyio_sendproducer\._settings\.ProducerSettings"):
        await start_send_producer(cast("Any", settings))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("linger_ms", r"'linger_ms' is a setting of the client: use properties=.'linger\.ms': "),
        ("delivery_timout", r"'delivery_timout' is not a setting; did you mean 'delivery_timeout'"),
        ("delivery_timeout_ms", r"use ProducerSettings\(delivery_timeout=\.\.\.\), in seconds"),
        ("lingr_ms", r"did you mean properties=.'linger\.ms': \.\.\..\?"),
        ("zzz", r"'zzz' is not a setting: the settings are bootstrap_servers, .*; set a client"),
    ],
)
def test_a_wrong_keyword_says_where_it_belongs(name: str, says: str) -> None:
    wrong: Any = {name: 5}
    for call in (
        lambda: ProducerSettings(bootstrap_servers=ADDRESS, **wrong),
        lambda: ProducerSettings(bootstrap_servers=ADDRESS).evolve(**wrong),
        lambda: open_send_producer(bootstrap_servers=ADDRESS, **wrong),
        lambda: open_send_producer(ProducerSettings(bootstrap_servers=ADDRESS), **wrong),
    ):
        with pytest.raises(SettingsError, match=says):
            call()


def test_settings_by_position_say_that_fields_are_keywords() -> None:
    with pytest.raises(TypeError, match=r"keyword arguments only, such as Prod.*_servers='local"):
        cast("Any", ProducerSettings)(ADDRESS)


def test_the_constructor_still_shows_its_fields() -> None:
    parameters = inspect.signature(ProducerSettings).parameters
    assert parameters["delivery_timeout"].default == 120.0
    assert [*parameters] == [field.name for field in dataclasses.fields(ProducerSettings)]


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (ADDRESS, r"not str: use ProducerSettings\(bootstrap_servers='localhost:9092'\)"),
        ({}, r"not dict: use ProducerSettings\.from_mapping\(\)"),
        (7, "must be ProducerSettings, not int$"),
    ],
)
def test_invalid_settings(given_: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        open_send_producer(given_)


HOW = r"use `async with open_send_producer\(\.\.\.\) as producer:`"


async def test_opening_is_not_awaited(settings: ProducerSettings) -> None:
    with pytest.raises(TypeError, match=f"is not awaited: {HOW}"):
        await cast("Any", open_send_producer(settings))


async def test_the_result_can_be_used_only_once(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    opening = open_send_producer(settings, driver=fake)
    async with opening:
        with raising(ProducerClosed, match="used before: call the function again"):
            async with opening:
                never()
    with raising(ProducerClosed, match="used before: call the function again"):
        async with opening:
            never()
    assert fake.opened == 1


def test_opening_without_async(settings: ProducerSettings) -> None:
    opening = cast("Any", open_send_producer(settings))
    with pytest.raises(TypeError, match=f"lacks `async`: {HOW}"), opening:
        pytest.fail("the block was entered")
    with contextlib.ExitStack() as stack, pytest.raises(TypeError, match=HOW):
        stack.enter_context(opening)


def test_a_producer_that_was_not_opened_cannot_send(settings: ProducerSettings) -> None:
    opening = cast("Any", open_send_producer(settings))
    with pytest.raises(AttributeError, match=f"context manager, which has no 'send': {HOW}"):
        opening.send(b"v")
    assert not hasattr(opening, "send")


def test_the_keywords_are_the_fields() -> None:
    """The type of each keyword is that of its field. For a duration, it also allows a timedelta."""
    read = get_type_hints(ProducerSettings)
    given_ = get_type_hints(SettingsFields)
    assert SettingsFields.__total__ is False
    assert list(given_) == [field.name for field in dataclasses.fields(ProducerSettings)]
    for name, kind in given_.items():
        assert kind in {read[name], read[name] | timedelta}, name
        assert (kind == read[name] | timedelta) is (read[name] is float), name


def test_each_driver_name_has_a_driver(settings: ProducerSettings) -> None:
    for name in get_args(DriverName):
        assert callable(make_driver(name, settings).submit)
    with pytest.raises(SettingsError, match="must be 'kafka-python', 'confluent' or a factory"):
        make_driver(cast("Any", "librdkafka"), settings)


def test_only_existing_drivers_are_described(settings: ProducerSettings) -> None:
    """An unknown driver is an error: the client of another driver must not connect in its place."""
    for name in get_args(DriverName):
        assert protocol_of(name, settings).name == "PLAINTEXT"
    assert protocol_of(None, settings) == protocol_of("kafka-python", settings)
    for ask in (protocol_of, describe_cluster):
        with pytest.raises(ValueError, match="'librdkafka' has no description here"):
            ask("librdkafka", settings)


def test_each_driver_has_its_properties_for_the_mock_cluster() -> None:
    assert set(_mock_cluster._PROPERTIES) == set(get_args(DriverName))


def test_the_states_in_the_statistics_are_those_of_the_producer() -> None:
    assert [*get_args(get_type_hints(Statistics)["state"])] == [one.value for one in ProducerState]
