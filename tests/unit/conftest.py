"""Enforces that unit tests use no network, start no process and do not sleep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import waiting
from tests.support.isolation import recorded


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test for each action that tests/support/isolation.py records."""
    monkeypatch.setattr(waiting, "pause", 0.0)
    with recorded() as events:
        yield
    assert events == [], "a unit test uses no network, no process and no sleep"
