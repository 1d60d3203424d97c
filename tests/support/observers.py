"""Observers that record events, and the rules that all events follow."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final, TypeVar

from anyio_sendproducer import Statistics
from anyio_sendproducer.telemetry import (
    Accepted,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Given,
    HandedOver,
    Refused,
    Withdrawn,
)

__all__ = ["Declaring", "Late", "Numbering", "RecordEvent", "Recorder", "check_story"]

E = TypeVar("E")

RecordEvent = Accepted | HandedOver | Delivered | Failed | Withdrawn | Refused

_LETTERS: Final = {
    Accepted: "a",
    HandedOver: "h",
    Delivered: "D",
    Failed: "F",
    Withdrawn: "W",
    Refused: "R",
}

#: The possible events of a record, in order.
_STORY: Final = re.compile(r"ah+D|ah*F|ah*W|R")


class Recorder:
    """An observer that keeps all events."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Event]] = []

    def observe(self, events: Sequence[Event], /) -> None:
        self.batches.append(tuple(events))

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def story(self) -> str:
        """The events of records, as one letter each."""
        return "".join(
            _LETTERS[type(event)] for event in self.events if isinstance(event, RecordEvent)
        )


class Late(Recorder):
    """An observer that keeps the sequences of events, and reads them later."""

    def observe(self, events: Sequence[Event], /) -> None:
        self.batches.append(events)


class Declaring(Late):
    """An observer that wants some kinds of events."""

    def __init__(self, kinds: Collection[type[Event]]) -> None:
        super().__init__()
        self.event_types = kinds


class Numbering(Recorder):
    """An observer that adds a header with a number to each record."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Given] = []

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        self.given.append(given)
        return [("n", b"%d" % given.number)]


def check_story(recorder: Recorder, figures: Statistics) -> None:
    """Check that the events are possible, and that the statistics of a closed producer agree with
    them."""
    assert all(recorder.batches), "told of nothing"
    stories: dict[int, str] = defaultdict(str)
    records: dict[int, set[int]] = defaultdict(set)
    last = float("-inf")
    for event in recorder.events:
        assert event.at >= last
        last = event.at
        if isinstance(event, RecordEvent):
            stories[event.number] += _LETTERS[type(event)]
            records[event.number].add(id(event.record))
        if isinstance(event, Failed):
            # The client no longer has a record that came back because it lacked metadata.
            assert not event.handed_over or "h" in stories[event.number]
        if isinstance(event, (Failed, Refused)) and hasattr(event.error, "record"):
            assert getattr(event.error, "record", None) is event.record
    for number, story in stories.items():
        assert _STORY.fullmatch(story), (number, story)
        assert len(records[number]) == 1

    told = Counter(type(event) for event in recorder.events)
    assert told[Accepted] == figures.accepted
    assert told[Delivered] == figures.delivered
    assert told[Failed] == figures.failed
    assert told[Withdrawn] == figures.withdrawn
    assert told[Closing] == 1
    _check_generations(recorder, figures)
    ended = [event.batch.number for event in recorder.of(BatchEnded)]
    assert len(set(ended)) == len(ended)


def _check_generations(recorder: Recorder, figures: Statistics) -> None:
    lives = [
        event for event in recorder.events if isinstance(event, (GenerationOpened, GenerationEnded))
    ]
    numbers = [event.generation for event in lives]
    expected = [number for number in range(1, figures.generations + 1) for _ in range(2)]
    assert numbers == expected
    assert {type(event) for event in lives[::2]} == {GenerationOpened}
    assert {type(event) for event in lives[1::2]} == {GenerationEnded}
