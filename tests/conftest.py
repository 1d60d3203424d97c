"""Fixtures of all tests. Every async test runs on each event loop."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import hypothesis
import pytest

from anyio_sendproducer import ProducerSettings
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import (
    EmbeddedBroker,
    FakeDriver,
    blocking_embedded_broker,
    embedded_broker,
)
from tests.support.client_threads import client_threads
from tests.support.clock import ManualClock
from tests.support.fault_proxy import FaultProxy, proxied_broker
from tests.support.measured import measure_no_processes
from tests.support.waiting import blocking_until

# The nightly run sets HYPOTHESIS_PROFILE=full. Where CI is set, Hypothesis takes the same examples
# each time, so that neither a failure nor coverage is luck. No example fails because it takes
# long: that depends on how busy the machine is.
for profile, examples in {"brief": 20, "full": 100}.items():
    hypothesis.settings.register_profile(
        profile, hypothesis.settings(), max_examples=examples, deadline=None
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "brief"))


def pytest_configure(config: pytest.Config) -> None:
    """Run nightly tests that the command line names by their node ids."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        # This process runs the tests, and starts no workers.
        measure_no_processes()
    if config.option.markexpr == "not nightly" and any("::" in name for name in config.args):
        config.option.markexpr = ""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a test whose id differs between processes, because workers have to agree on it."""
    if re.search(r"\bat 0x[0-9a-f]", item.nodeid):
        raise pytest.UsageError(f"the id of a test has an address in it: {item.nodeid}")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loops: asyncio and Trio."""
    return request.param


@pytest.fixture(params=get_args(DriverName))
def driver(request: pytest.FixtureRequest) -> str:
    """The drivers that need a broker, by name."""
    name: str = request.param
    return name


@pytest.fixture
def settings() -> ProducerSettings:
    """Settings for a fake driver: a broker that does not exist, and shorter time-outs for hanging
    calls."""
    return ProducerSettings(
        bootstrap_servers="broker.invalid:9092", close_timeout=30.0, cancel_timeout=20.0
    )


@pytest.fixture
def fake() -> FakeDriver:
    """A driver without a broker."""
    return FakeDriver()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until the test advances it."""
    return ManualClock()


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """An embedded broker for one test."""
    async with embedded_broker() as running:
        yield running
        await running.kill()  # it would wait for clients that are still connected


@pytest.fixture
def proxied() -> Iterator[FaultProxy]:
    """A fault proxy in front of an embedded broker for one test."""
    with proxied_broker() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[str]:
    """The address of one embedded broker for the whole run. Tests use topics of their own."""
    with blocking_embedded_broker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a thread of a producer behind."""
    yield
    with contextlib.suppress(TimeoutError):
        blocking_until(lambda: not client_threads())
    assert client_threads() == []
