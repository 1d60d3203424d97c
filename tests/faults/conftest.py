"""Which cells of the fault matrix are run."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import pytest

from tests.faults.matrix import FULL

HERE = Path(__file__).parent
LOOPS: Final = ("asyncio", "trio")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In brief, each cell is run on one of the two loops. That it does not matter on which is
    tested elsewhere, and both take a quarter of an hour more."""
    if FULL:
        return
    left_out = [item for item in items if HERE in item.path.parents and _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    test, _, rest = item.nodeid.partition("[")
    names = rest.rstrip("]").split("-")
    loops = [name for name in LOOPS if name in names]
    if not loops:
        return False
    if "confluent" in names:
        return "asyncio" in loops  # librdkafka's own threads do the work, on either loop
    # Now the one and now the other, and always the same for the same cell.
    cell = "-".join([test, *(name for name in names if name not in LOOPS)])
    return loops == [LOOPS[zlib.crc32(cell.encode()) % 2]]
