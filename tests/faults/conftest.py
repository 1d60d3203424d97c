"""Each cell of the matrix runs with each driver."""

from __future__ import annotations

import pytest

from tests.faults.matrix import DEFAULT_DRIVER


@pytest.fixture(params=[DEFAULT_DRIVER, "confluent"])
def driver(request: pytest.FixtureRequest) -> str:
    """The drivers, by name."""
    name: str = request.param
    return name
