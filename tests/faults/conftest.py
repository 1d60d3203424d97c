"""Which cells of the fault matrix are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import FULL

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In brief, the driver on librdkafka is run on one loop: that it does not matter on which is
    tested elsewhere, and it takes minutes."""
    if FULL:
        return
    left_out = [item for item in items if HERE in item.path.parents and _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    names = item.name.partition("[")[2].rstrip("]").split("-")
    return "confluent" in names and "asyncio" in names
