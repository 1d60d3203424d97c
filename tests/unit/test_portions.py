"""How many outcomes of one wake-up the pump settles before other tasks have their turn."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer._driver_events import (
    SETTLED_AT_ONCE as LIMIT,
)
from anyio_sendproducer._driver_events import (
    Completed,
    Event,
    MetadataChanged,
    split_events,
)

#: The number of outcomes of each event; None stands for an event of another kind.
sizes = st.lists(st.none() | st.integers(0, 3 * LIMIT), max_size=8)


def events_of(given_sizes: list[int | None]) -> list[Event]:
    """Events with numbers as entries and outcomes."""
    events: list[Event] = []
    number = 0
    for size in given_sizes:
        if size is None:
            events.append(MetadataChanged())
        else:
            numbers: Any = range(number, number + size)
            events.append(Completed(numbers, [-one for one in numbers]))
            number += size
    return events


def numbers_of(events: list[Event]) -> list[int]:
    """The numbers of all outcomes. They must match their entries."""
    found: list[int] = []
    for event in events:
        if isinstance(event, Completed):
            numbers = [*cast("Any", event.entries)]
            assert [*cast("Any", event.outcomes)] == [-one for one in numbers]
            found += numbers
    return found


@given(sizes)
def test_portions_keep_the_order_and_respect_the_limit(given_sizes: list[int | None]) -> None:
    events = events_of(given_sizes)
    portions = [*split_events(events)]
    every = [event for portion in portions for event in portion]
    assert numbers_of(every) == numbers_of(events)
    counts = [len(numbers_of(portion)) for portion in portions]
    total = sum(counts)
    # All portions but the last are full. If there is more than one, an empty portion follows.
    assert all(count == LIMIT for count in counts[: total // LIMIT])
    assert max(counts) <= LIMIT
    assert (portions[-1] == []) == (total > LIMIT or not events)
    assert len(portions) == (1 if total <= LIMIT else -(-total // LIMIT) + 1)


@given(sizes)
def test_an_event_of_another_kind_keeps_its_place(given_sizes: list[int | None]) -> None:
    def marked(events: list[Event]) -> list[int | None]:
        """The numbers of the outcomes, with None in the place of each other event."""
        return [
            number
            for event in events
            for number in (numbers_of([event]) if isinstance(event, Completed) else [None])
        ]

    events = events_of(given_sizes)
    assert marked([event for portion in split_events(events) for event in portion]) == marked(
        events
    )
