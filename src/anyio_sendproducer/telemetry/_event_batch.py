"""The events of one turn of the pump, which are made when an observer first reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, starmap
from typing import Any, Final, overload

from ._events import Event

__all__ = ["Bulk", "EventBatch"]


class Bulk:
    """Consecutive events of one kind. They are made from facts when they are read.

    Args:
        kind: the class of the events.
        facts: the facts, one for each event.
        fields: returns the values of the fields of each event.
        make: makes an event from the values of its fields.
    """

    __slots__ = ("_facts", "_fields", "_made", "_make", "kind")

    def __init__(
        self,
        kind: type[Event],
        facts: Sequence[Any],
        fields: Callable[[Sequence[Any]], Iterable[tuple[Any, ...]]],
        make: Callable[..., Event],
    ) -> None:
        self.kind: Final = kind
        self._facts = facts
        self._fields = fields
        self._make = make
        self._made: tuple[Event, ...] | None = None

    def __len__(self) -> int:
        return len(self._facts)

    def fields(self) -> Iterable[tuple[Any, ...]]:
        """Return the values of the fields of each event, without making the events."""
        return self._fields(self._facts)

    def events(self) -> tuple[Event, ...]:
        """Make the events, unless they were made before."""
        # If two threads read the events at the same time, both may make them. Then one of them
        # reads equal copies.
        made = self._made
        if made is None:
            made = self._made = tuple(starmap(self._make, self.fields()))
        return made


class EventBatch(Sequence[Event]):
    """A read-only sequence of events. Its length is known before the events are made.

    Args:
        parts: events and bulks of events, in order.
    """

    __slots__ = ("_made", "parts")

    def __init__(self, parts: Sequence[Bulk | Event]) -> None:
        self.parts: Final = parts
        self._made: tuple[Event, ...] | None = None

    def only(self, kinds: Collection[type[Event]]) -> EventBatch:
        """Select the events of some kinds. The others are not made."""
        return EventBatch(
            [
                part
                for part in self.parts
                if (part.kind if isinstance(part, Bulk) else type(part)) in kinds
            ]
        )

    def _all(self) -> tuple[Event, ...]:
        made = self._made
        if made is None:
            made = self._made = tuple(
                chain.from_iterable(
                    part.events() if isinstance(part, Bulk) else (part,) for part in self.parts
                )
            )
        return made

    def __len__(self) -> int:
        return sum(len(part) if isinstance(part, Bulk) else 1 for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Event, ...]: ...

    def __getitem__(self, index: int | slice) -> Event | tuple[Event, ...]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._all())

    def __repr__(self) -> str:
        return repr(self._all())
