"""Fixtures of the tests that run a broker, a socket or a process."""

from __future__ import annotations

import pytest

from tests.support.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """A clock that runs with the loop's clock, because real clients retry. A test can advance
    it."""
    return ManualClock(runs=True)
