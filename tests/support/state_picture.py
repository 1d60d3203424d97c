"""Reads the pictures of the state machines back from SVG, to compare them with the tables."""

from __future__ import annotations

import enum
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from tests.support.paths import ROOT

__all__ = ["TABLES", "Picture", "State", "table"]

PAGE: Final = ROOT / "docs/explanation/what-can-happen-to-a-record.md"
#: The tables that the page has pictures of.
TABLES: Final[list[str]] = re.findall(
    r"^```\{state-machine\} (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)

Table = Mapping[enum.Enum, Mapping[str, enum.Enum]]


def table(name: str) -> Table:
    """Import a table by its dotted name."""
    module, _, attribute = name.rpartition(".")
    found: Table = getattr(importlib.import_module(module), attribute)
    return found


@dataclass
class State:
    """A state in the picture."""

    name: str
    x: float
    y: float
    width: float
    height: float
    borders: int

    def has_on_its_border(self, x: float, y: float) -> bool:
        """Whether a point is on its upper or lower edge."""
        edge = min(abs(y - self.y), abs(y - self.y - self.height))
        return edge < 0.2 and self.x <= x <= self.x + self.width


class Picture:
    """The visible parts of an SVG."""

    def __init__(self, svg: str) -> None:
        root = ET.fromstring(svg)
        namespace = "{http://www.w3.org/2000/svg}"
        frames = [
            tuple(float(one.attrib[name]) for name in ("x", "y", "width", "height"))
            for one in root.iter(f"{namespace}rect")
        ]
        self.states: dict[str, State] = {}
        self.labels: list[str] = []
        for text in root.iter(f"{namespace}text"):
            lines = [*text.iter(f"{namespace}tspan")]
            x, y = (float(lines[0].attrib[name]) for name in ("x", "y"))
            around = [
                frame
                for frame in frames
                if frame[0] <= x <= frame[0] + frame[2] and frame[1] <= y <= frame[1] + frame[3]
            ]
            words = " ".join(line.text or "" for line in lines)
            if around:
                left, top, width, height = min(around)
                self.states[words] = State(words, left, top, width, height, len(around))
            else:
                self.labels.append(words)
        self.arrows = [
            path.attrib["d"]
            for path in root.iter(f"{namespace}path")
            if "marker-end" in path.attrib
        ]

    def ends(self, path: str) -> tuple[str | None, str | None]:
        """Find the states at both ends of an arrow; None if there is no state."""
        x, y, *others = (float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path))
        # A line that ends vertically has no new x, so x keeps its value.
        to_x, to_y = (x, others[-1]) if len(others) == 1 else others[-2:]
        return self._state_at(x, y), self._state_at(to_x, to_y)

    def _state_at(self, x: float, y: float) -> str | None:
        found = [state.name for state in self.states.values() if state.has_on_its_border(x, y)]
        assert len(found) < 2, found
        return found[0] if found else None
