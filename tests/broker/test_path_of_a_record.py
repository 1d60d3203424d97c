"""A record passes through the functions that the documents name, in their order."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import pytest

from anyio_sendproducer import open_send_producer
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import mock_cluster
from tests.support.calls import quiet, record
from tests.support.paths import ROOT

PACKAGE: Final = "anyio_sendproducer."
PAGE: Final = ROOT / "docs/explanation/architecture.md"
PAGES: Final = [PAGE, ROOT / "CONTRIBUTING.md"]


class Step(NamedTuple):
    """A function and its module or package."""

    function: str
    place: str

    def is_call(self, call: tuple[str, str]) -> bool:
        module, name = call
        place = self.place.removesuffix(".py")
        in_place = module == place or module.startswith(f"{place}.")
        return in_place and name == self.function.rpartition(".")[2]


def steps(page: Path) -> list[Step]:
    """The functions that a page names, by number."""
    found = re.findall(
        r"^ *(\d)\. (?:\*\*[\w ]+\*\*: )?`([\w.]+)` in `([\w.]+)`",
        page.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [number for number, _, _ in found] == [*"123456"]
    return [Step(function, place) for _, function, place in found]


@contextmanager
def calls_in_the_package() -> Generator[list[tuple[str, str]]]:
    """Record the module and name of each function that this thread calls, or a thread that it
    starts."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        module: str = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(PACKAGE):
            calls.append((module.removeprefix(PACKAGE), frame.f_code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_name_the_same_functions(page: Path) -> None:
    assert steps(page) == steps(PAGE)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_record_passes_through_the_documented_functions(
    driver: DriverName, is_first: bool
) -> None:
    """Checks the first record and a later one."""
    with mock_cluster() as cluster, calls_in_the_package() as calls:
        async with open_send_producer(cluster.settings(driver), driver=driver) as producer:
            if not is_first:
                await producer.send(record())
                await quiet()
            calls.clear()
            await producer.send(record())
            seen = [*calls]
    rest = iter(seen)
    for step in steps(PAGE):
        assert any(step.is_call(call) for call in rest), f"{step} is missing:\n{seen}"
