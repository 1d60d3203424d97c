"""Selects the cells of the fault matrix to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.brief import leave_variants_to_the_night


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each cell on one loop with one driver, unless the whole matrix is run."""
    leave_variants_to_the_night(Path(__file__).parent, items)
