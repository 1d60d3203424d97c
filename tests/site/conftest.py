"""The browser and the built documents. Without a browser, the tests fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.site.walker import browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="session")
def site() -> Path:
    """The directory of the built documents."""
    built = Path(os.environ.get("DOCS_SITE", "docs/_build"))
    assert (built / "index.html").is_file(), f"no documents in {built}: run nox -s site"
    return built
