"""Each program runs on one event loop. The nightly run uses both event loops."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.brief import leave_variants_to_the_night


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_variants_to_the_night(Path(__file__).parent, items)
