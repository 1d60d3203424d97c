"""The benchmark's page: its picture shows what its table says. And who takes part in what."""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest

from tests.support.paths import ROOT

PAGE: Final = ROOT / "docs/explanation/benchmark.md"
PICTURE: Final = PAGE.with_suffix(".svg")
_SVG: Final = "{http://www.w3.org/2000/svg}"

#: A bar: its corners, from the lower left.
_BAR: Final = re.compile(
    r"M (?P<left>\S+) (?P<top>\S+) L (?P<right>\S+) (?P=top) "
    r"L (?P=right) (?P<bottom>\S+) L (?P=left) (?P=bottom) z"
)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/compare.py, whose imports are scripts beside it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return importlib.import_module("compare")


class Picture:
    """What a reader sees: words at heights, and bars."""

    def __init__(self, svg: str) -> None:
        root = ET.fromstring(svg)
        self.caption = root.get("aria-label", "")
        texts = [one for one in root.iter(f"{_SVG}text") if one.text]
        self.words = [str(one.text) for one in texts]
        #: The name beside each bar, and the height that it is written at.
        self.names: dict[str, float] = {}
        #: The marks of the scale: records per second, and the place.
        self.marks: dict[int, float] = {}
        for one in texts:
            word, style = str(one.text), one.get("style", "")
            if "text-anchor: end" in style:
                assert word not in self.names
                self.names[word] = float(one.get("y", ""))
            elif word.isdecimal():
                self.marks[int(word)] = float(one.get("x", ""))
        filled = [one for one in root.iter(f"{_SVG}path") if "fill: #" in one.get("style", "")]
        found = [_BAR.fullmatch(" ".join(one.get("d", "").split())) for one in filled]
        #: From the left, to the right, and from the top to the bottom.
        self.bars = [
            tuple(float(one[edge]) for edge in ("left", "right", "top", "bottom"))
            for one in found
            if one is not None
        ]

    def rates(self) -> dict[str, float]:
        """Records per second of each name, as its bar says."""
        least, most = min(self.marks), max(self.marks)
        scale = (self.marks[most] - self.marks[least]) / (most - least)
        rates: dict[str, float] = {}
        for name, height in self.names.items():
            [(left, right)] = [
                (left, right) for left, right, top, bottom in self.bars if top < height < bottom
            ]
            assert left == self.marks[0]
            rates[name] = (right - left) / scale
        return rates


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_picture_is_of_the_table_on_its_page(compare: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    picture = Picture(PICTURE.read_text(encoding="utf-8"))
    drawn: dict[str, float] = {}
    for client, workload, loop, rate, *_ in rows_of(page, "All contenders"):
        contender = compare.Contender(client, workload, loop)
        if rate and contender.is_drawn:
            drawn[str(contender)] = float(rate.replace(",", ""))
    assert len(drawn) > 40
    # The table has whole numbers.
    assert picture.rates() == pytest.approx(drawn, abs=0.6)


def test_the_picture_says_what_the_figures_hold_for() -> None:
    picture = Picture(PICTURE.read_text(encoding="utf-8"))
    title = picture.words[-1]
    assert re.match(r"[\d,]+ records of \d+ B, ", title)
    assert picture.caption == f"Records per second: {title}"
    assert f"\n{title}; date " in PAGE.read_text(encoding="utf-8")


def test_whoever_asks_for_the_observed_gets_them_beside_the_others(compare: Any) -> None:
    chosen = compare.chosen("observed")
    assert len(chosen) == 24
    assert all(one.is_drawn == (one == one.unobserved) for one in chosen)
    figures = {one: [{"rate": 1.0 if one == one.unobserved else 0.5}] for one in chosen}
    rows = [line for line in compare.beside(figures) if "observed" in line]
    assert len(rows) == 16
    assert all(" |  | 0.50 (" in row for row in rows)
    assert [str(one) for one in compare.chosen("^ours, tasks-100, trio$")] == [
        "ours, tasks-100, trio"
    ]


def test_each_contender_is_a_client_that_there_is(compare: Any) -> None:
    contender = importlib.import_module("contender")
    clients = {one.client for one in compare.contenders()} - {compare.pekko.CLIENT}
    assert clients == {*contender.THREADED, *contender.LOOPED}
    on_trio = {one.client for one in compare.contenders() if one.loop == "trio"}
    assert on_trio == {name for name, (_, trio) in contender.LOOPED.items() if trio}


def test_what_was_measured_is_drawn_again_by_name(compare: Any) -> None:
    rows = {"ours, forget, trio": [1], "kafka-python, forget": [2], "gone, forget": [3]}
    assert compare.by_contender(rows) == {
        compare.Contender("kafka-python", "forget", "none"): [2],
        compare.Contender("ours", "forget", "trio"): [1],
    }
