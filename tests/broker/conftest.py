"""Fixtures of the tests that run a broker, a socket or a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.librdkafka import _waits
from tests.support.clock import ManualClock
from tests.support.recorder import PATIENCE


@pytest.fixture(autouse=True, scope="module")
def _patient() -> Iterator[None]:
    """Allow a close of a client as much time as a busy machine needs. By default the drivers
    abandon a client after two seconds, because a producer's end is bounded."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_waits, "FINISH_SECONDS", PATIENCE)
        monkeypatch.setattr(_kafka_python, "_JOIN_SECONDS", PATIENCE)
        yield


@pytest.fixture
def clock() -> ManualClock:
    """A clock that runs with the loop's clock, because real clients retry. A test can advance
    it."""
    return ManualClock(runs=True)
