"""Which cells of the fault matrix are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import FULL
from tests.support.one_loop import keep_one_loop


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In brief, each cell is run on one loop. Both take a quarter of an hour more."""
    if not FULL:
        keep_one_loop(Path(__file__).parent, config, items)
