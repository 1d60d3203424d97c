"""The service that the settings name, if ``enrich`` changes it from one client to the next."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from anyio_sendproducer import ProducerSettings, open_send_producer
from anyio_sendproducer._replacement import WATCH_SECONDS
from anyio_sendproducer._settings_resolver import SettingsResolver
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Call, generation, record, task_group
from tests.support.clock import ManualClock
from tests.support.waiting import until


class Names:
    """A resolver that knows one target, and counts the look-ups."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.asked = 0

    async def resolve(self, _: Lookup, /) -> Sequence[Target]:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        return [Target.parse(self.target)]


class Vault:
    """Changes the settings for each client as a test says."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    async def __call__(self, given: ProducerSettings) -> ProducerSettings:
        await anyio.lowlevel.checkpoint()
        return given.evolve(**self.changes)


ADDRESS: dict[str, Any] = {"bootstrap_servers": "a:1", "service_name": ""}
SERVICE: dict[str, Any] = {"service_name": "kafka.test"}

#: Seconds that do not pass during a test.
LONG = 240.0


async def test_a_service_that_enrich_replaced_is_not_looked_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = Names("b:2")
    resolver = SettingsResolver(
        ProducerSettings(service_name="kafka.test", discovery_method=names, enrich=Vault(**ADDRESS))
    )
    await resolver.find()
    assert not await resolver.moved()
    assert resolver.settings.addresses == ("a:1",)
    assert names.asked == 0
    assert caplog.messages == []


async def test_later_addresses_of_enrich_replace_an_earlier_service() -> None:
    names, vault = Names("b:2"), Vault(**SERVICE)
    resolver = SettingsResolver(ProducerSettings(discovery_method=names, enrich=vault))
    await resolver.find()
    assert resolver.settings.addresses == ("b:2",)
    vault.changes = ADDRESS
    assert await resolver.find_again()
    assert not await resolver.moved()
    assert resolver.settings.addresses == ("a:1",)
    assert names.asked == 1


async def test_the_latest_settings_say_how_a_service_is_looked_up() -> None:
    vault = Vault(**SERVICE, discovery_method=Names("b:2"))
    resolver = SettingsResolver(ProducerSettings(enrich=vault))
    await resolver.find()
    vault.changes = {**SERVICE, "discovery_method": Names("c:3")}
    assert await resolver.find_again()
    assert resolver.settings.addresses == ("c:3",)


async def test_the_latest_settings_say_how_long_each_look_up_may_take(
    caplog: pytest.LogCaptureFixture,
) -> None:
    silent = False

    async def resolve(_: Lookup) -> Sequence[Target]:
        await (anyio.sleep_forever() if silent else anyio.lowlevel.checkpoint())
        return [Target("b", 2)]

    vault = Vault(**SERVICE, discovery_method=resolve)
    resolver = SettingsResolver(ProducerSettings(enrich=vault, resolve_timeout=LONG))
    await resolver.find()
    vault.changes["resolve_timeout"] = 0.01
    assert await resolver.find_again()
    silent = True
    assert not await resolver.moved()
    assert "no answer within 0.01 s (resolve_timeout)" in caplog.text


async def test_the_rest_of_a_long_start_timeout_causes_no_warning() -> None:
    start_timeout = timedelta(hours=2)
    resolver = SettingsResolver(
        ProducerSettings(enrich=Vault(**ADDRESS), start_timeout=start_timeout)
    )
    await resolver.find()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = resolver.for_client()
    assert 3600 < settings.start_timeout <= start_timeout.total_seconds()


async def test_a_look_up_does_not_replace_newer_addresses() -> None:
    reached, answered = anyio.Event(), anyio.Event()

    class Late(Names):
        async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
            if self.asked:
                reached.set()
                await answered.wait()
            return await super().resolve(lookup)

    vault = Vault(**SERVICE)
    late = Late("b:2")
    resolver = SettingsResolver(ProducerSettings(discovery_method=late, enrich=vault))
    await resolver.find()
    late.target = "c:3"
    vault.changes = ADDRESS
    async with task_group() as tasks:
        moved = Call(tasks, resolver.moved)
        await reached.wait()
        assert await resolver.find_again()
        answered.set()
        await moved.wait()
    assert moved.value is False
    assert resolver.settings.addresses == ("a:1",)


async def test_a_service_that_enrich_names_later_is_watched(
    clock: ManualClock, fake: FakeDriver
) -> None:
    names, vault = Names("b:2"), Vault(**ADDRESS)
    settings = ProducerSettings(discovery_method=names, enrich=vault)
    async with clock.open(settings, driver=fake) as producer:
        vault.changes = SERVICE
        fake.break_client()
        await until(generation(producer, 2))
        names.target = "c:3"
        fake.is_cut_off = True
        await clock.until(generation(producer, 3), step=WATCH_SECONDS)
        fake.is_cut_off = False
        assert fake.settings is not None
        assert fake.settings.addresses == ("c:3",)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("hook", ["enrich", "resolver"])
async def test_a_hook_that_raises_cancelled_error_does_not_end_the_producers_tasks(
    hook: str, fake: FakeDriver
) -> None:
    """A hook raises asyncio's CancelledError if it awaits a task of its own that was cancelled."""

    class Cancelled(Names):
        async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
            if self.asked and hook == "resolver":
                raise asyncio.CancelledError
            return await super().resolve(lookup)

    async def enrich(given: ProducerSettings) -> ProducerSettings:
        if names.asked and hook == "enrich":
            raise asyncio.CancelledError
        return given

    names = Cancelled("a:1")
    settings = ProducerSettings(service_name="kafka.test", discovery_method=names, enrich=enrich)
    async with open_send_producer(settings, driver=fake) as producer:
        fake.break_client()
        await until(lambda: producer.statistics().generations == 2)
        assert (await producer.send(record())).offset == 0
