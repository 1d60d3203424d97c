"""A browser for all tests here. Where there is none they fail: the site is not checked without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.site.walker import browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser."""
    with browser() as launched:
        yield launched


@pytest.fixture(scope="session")
def site() -> Path:
    """The built documents."""
    built = Path(os.environ.get("DOCS_SITE", "docs/_build"))
    assert (built / "index.html").is_file(), f"no documents in {built}: build them, nox -s site"
    return built
