"""The events of one turn of the pump, which are made when an observer first reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, overload

from ._events import Event

__all__ = ["Bulk", "EventBatch"]


class Bulk:
    """Events of one kind that follow each other, as the facts to make them of.

    Args:
        kind: the class of the events.
        facts: the facts, one for each event.
        make: makes the events of all facts.
    """

    __slots__ = ("_facts", "_made", "_make", "kind")

    def __init__(
        self,
        kind: type[Event],
        facts: Sequence[Any],
        make: Callable[[Sequence[Any]], Iterable[Event]],
    ) -> None:
        self.kind: Final = kind
        self._facts = facts
        self._make = make
        self._made: tuple[Event, ...] | None = None

    def __len__(self) -> int:
        return len(self._facts)

    def events(self) -> tuple[Event, ...]:
        """Make the events, unless they were made before."""
        # If two threads read the events at the same time, both may make them. Then one of them
        # reads equal copies.
        made = self._made
        if made is None:
            made = self._made = tuple(self._make(self._facts))
        return made


class EventBatch(Sequence[Event]):
    """A read-only sequence of events. Its length is known before the events are made.

    Args:
        parts: events and bulks of events, in order.
    """

    __slots__ = ("_made", "_parts")

    def __init__(self, parts: Sequence[Bulk | Event]) -> None:
        self._parts = parts
        self._made: tuple[Event, ...] | None = None

    def only(self, kinds: Collection[type[Event]]) -> EventBatch:
        """Select the events of some kinds. The others are not made."""
        return EventBatch(
            [
                part
                for part in self._parts
                if (part.kind if isinstance(part, Bulk) else type(part)) in kinds
            ]
        )

    def _all(self) -> tuple[Event, ...]:
        made = self._made
        if made is None:
            made = self._made = tuple(
                chain.from_iterable(
                    part.events() if isinstance(part, Bulk) else (part,) for part in self._parts
                )
            )
        return made

    def __len__(self) -> int:
        return sum(len(part) if isinstance(part, Bulk) else 1 for part in self._parts)

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
