"""Which of the tests that take minutes are left out in brief: each runs on one of the two loops."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

import pytest

__all__ = ["keep_one_loop", "on_trio_and_nightly_on_asyncio"]

LOOPS: Final = ("asyncio", "trio")

#: For a slow test of something that does not depend on the loop.
on_trio_and_nightly_on_asyncio: Final = pytest.mark.parametrize(
    "anyio_backend", [pytest.param("asyncio", marks=pytest.mark.nightly), "trio"], indirect=True
)


def keep_one_loop(folder: Path, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave each test of a folder on one loop: now the one and now the other, and always the same
    for the same test. That it does not matter on which is tested elsewhere."""
    left_out = {item for item in items if folder in item.path.parents and _is_left_out(item.nodeid)}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(node: str) -> bool:
    test, _, rest = node.partition("[")
    names = rest.rstrip("]").split("-")
    loops = [name for name in LOOPS if name in names]
    cell = "-".join([test, *(name for name in names if name not in LOOPS)])
    return loops == [LOOPS[zlib.crc32(cell.encode()) % 2]]
