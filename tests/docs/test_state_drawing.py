"""The pictures of the state machines show each state and each transition, and nothing else."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.state_picture import TABLES, Picture, table


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that draws the pictures. It is in the directory of the Sphinx extensions."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs/_ext"), *sys.path])
    return importlib.import_module("state_drawing")


def test_the_page_has_a_picture_of_each_table() -> None:
    ledger = importlib.import_module("anyio_sendproducer._delivery")
    tables = {name for name in ledger.__all__ if name.endswith("_TRANSITIONS")}
    assert len(tables) == 2
    assert set(TABLES) == {f"{ledger.__name__}.{name}" for name in tables}


@pytest.mark.parametrize("name", TABLES)
def test_each_state_and_each_transition_is_drawn(drawing: Any, name: str) -> None:
    drawn = table(name)
    picture = Picture(drawing.draw(drawn, title="A machine", name=name))

    assert set(picture.states) == {state.name for state in drawn}
    ends = {state.name for state, events in drawn.items() if not events}
    assert {one.name for one in picture.states.values() if one.borders == 2} == ends

    # Transitions between the same two states share one arrow and its label.
    events: dict[tuple[str | None, str], list[str]] = {}
    for state, following in drawn.items():
        for event, next_state in following.items():
            events.setdefault((state.name, next_state.name), []).append(event)
    assert sorted(picture.labels) == sorted(" ".join(several) for several in events.values())
    first = next(iter(drawn)).name
    assert sorted(map(picture.ends, picture.arrows), key=str) == sorted(
        [*events, (None, first)], key=str
    )
