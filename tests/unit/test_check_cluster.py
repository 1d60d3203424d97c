"""``check_cluster`` without a cluster: ``enrich``, the look-up, and the time of a step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from anyio_sendproducer import ProducerSettings, checking
from anyio_sendproducer.checking import Step, check_cluster
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.drivers import ClusterDescription

CLUSTER = ClusterDescription("fake", None, ())


class Seen:
    """What the steps used."""

    def __init__(self) -> None:
        self.settings: list[ProducerSettings] = []
        self.hosts: list[str] = []
        self.deadlines: list[float] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Replace everything that connects."""
    seen = Seen()

    async def resolved(host: str, port: int, **_: Any) -> Any:
        seen.hosts.append(host)
        seen.deadlines.append(anyio.current_effective_deadline())
        return [(None, None, None, None, ("192.0.2.1", port))]

    async def connected(host: str, port: int) -> str:
        return f"{host}:{port}"

    @asynccontextmanager
    async def opened(settings: ProducerSettings, **_: Any) -> AsyncGenerator[None]:
        seen.settings.append(settings)
        yield

    def described(_: Any, settings: ProducerSettings) -> ClusterDescription:
        seen.settings.append(settings)
        return CLUSTER

    monkeypatch.setattr(anyio, "getaddrinfo", resolved)
    monkeypatch.setattr(checking, "_connected", connected)
    monkeypatch.setattr(checking, "open_send_producer", opened)
    monkeypatch.setattr(checking, "describe_cluster", described)
    return seen


async def test_settings_of_a_wrong_type() -> None:
    wrongs: list[tuple[Any, str]] = [
        (None, "NoneType$"),
        ("localhost:9092", r"str: use ProducerSettings\(bootstrap_servers="),
        ({}, r"dict: use ProducerSettings\.from_mapping\(\)$"),
    ]
    for wrong, says in wrongs:
        with pytest.raises(TypeError, match=f"settings must be ProducerSettings, not {says}"):
            await check_cluster(wrong)


async def test_each_step_uses_what_enrich_returns(seen: Seen) -> None:
    asked: list[ProducerSettings] = []

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        asked.append(settings)
        return settings.evolve(
            bootstrap_servers="a.test:1",
            properties={
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "tin",
                "sasl.password": "from the vault",
            },
            transactional_id="orders-2",
        )

    given = ProducerSettings(enrich=enrich, transactional_id="orders-1")
    found = await check_cluster(given)
    assert found.passed, found
    assert found.steps[0].details == ("driver kafka-python, SASL_PLAINTEXT, login by PLAIN",)
    assert found.cluster is CLUSTER
    # Another call could return another password than the one that was checked.
    assert asked == [given]
    assert seen.hosts == ["a.test"]
    for used in seen.settings:
        assert used.addresses == ("a.test:1",)
        assert used.properties["sasl.password"] == "from the vault"
        # A client with this id would fence the producer that uses it.
        assert used.transactional_id is None
    assert len(seen.settings) == 2


@pytest.mark.parametrize("by_enrich", [False, True])
async def test_the_login_is_awaited_even_if_the_producer_opens_in_the_background(
    seen: Seen, *, by_enrich: bool
) -> None:
    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        return settings.with_wait_for_cluster(False)

    given = ProducerSettings(bootstrap_servers="a.test:1", wait_for_cluster=by_enrich)
    assert (await check_cluster(given.with_enrich(enrich if by_enrich else None))).passed
    assert [used.wait_for_cluster for used in seen.settings] == [True, True]


async def refusing(_: ProducerSettings) -> ProducerSettings:
    raise OSError("the vault\nis sealed")


async def never_done(settings: ProducerSettings) -> ProducerSettings:
    await anyio.Event().wait()
    return settings


def at_once(settings: ProducerSettings) -> ProducerSettings:
    return settings


async def without_address(settings: ProducerSettings) -> ProducerSettings:
    return settings


@pytest.mark.parametrize(
    ("enrich", "says"),
    [
        (refusing, r"enrich raised OSError: the vault\nis sealed"),
        (never_done, "enrich did not finish within 0.01 s (start_timeout)"),
        (at_once, "enrich must be an async callable: it returned ProducerSettings"),
        (
            without_address,
            (
                "bootstrap_servers is missing: name at least one broker, such as 'localhost:9092', "
                "or set service_name"
            ),
        ),
    ],
)
async def test_a_failure_of_enrich_is_a_failed_step(enrich: Any, says: str) -> None:
    found = await check_cluster(ProducerSettings(enrich=enrich, start_timeout=0.01))
    hint = "check the function that is set as enrich, and the services that it calls"
    assert found.steps[0] == Step("settings", "failed", (says,), hint)
    assert {step.state for step in found.steps[1:]} == {"skipped"}


async def test_the_look_up_of_a_service_is_part_of_the_time_of_its_step(seen: Seen) -> None:
    async def find(_: Lookup) -> Sequence[Target]:
        seen.deadlines.append(anyio.current_effective_deadline())
        return [Target("a.test", 1)]

    settings = ProducerSettings(
        service_name="kafka.test", discovery_method=find, start_timeout=100, resolve_timeout=200
    )
    assert (await check_cluster(settings)).passed
    # The deadlines of the look-up of the service, and of its host.
    assert len(seen.deadlines) == 2
    assert seen.deadlines[1] <= seen.deadlines[0]
