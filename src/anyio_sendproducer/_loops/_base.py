"""What the producer needs of an event loop."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

__all__ = ["Loop", "Sentinel", "Step", "Waitable", "WaiterList", "running_trio"]


class Waitable(Protocol):
    """An object that one task waits for, such as the entry of a record."""

    waiter: object | None
    """What :meth:`Loop.wake` wakes the task by; None if no task waits."""


class WaiterList(list[object]):
    """The waiters of several tasks that wait for the same thing."""


class Step:
    """Marks that the producer's own code is in the middle of a change, on the loop's thread.

    The garbage collector and signal handlers run other code there between any two instructions. If
    that code calls the producer, the call finds ``depth`` above 0 and is refused or postponed. The
    code that interrupts always ends first, so a plain counter is enough.
    """

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class Sentinel:
    """An object that the event loop keeps alive until it is closed."""

    def stay(self) -> None:
        """Do nothing: a timer of the event loop refers to this method."""


class Loop(Protocol):
    """The event loop that a producer was opened on."""

    #: Whether a cancelled scope does not cancel a task whose waiter is woken already.
    skips_cancelling_woken_tasks: bool

    def is_current(self) -> bool:
        """Whether this event loop runs the caller."""
        ...

    def now(self) -> float:
        """The event loop's monotonic time in seconds."""
        ...

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        """Schedule a call of ``function`` on the event loop. May be called from any thread, and
        from finalizers and signal handlers.

        Returns:
            False if the event loop has ended, so that ``function`` is never called.
        """
        ...

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        """Keep an object alive until the event loop is closed, if the library allows that.

        Returns:
            A function that releases the object.
        """
        ...

    def new_waiter(self) -> Awaitable[object]:
        """Make a waiter: one task awaits it, once, until it is woken."""
        ...

    def park(self, place: Waitable, /) -> Awaitable[object]:
        """Make a waiter in the least time. The caller must await it at once.

        The waiter is in ``place.waiter`` from now on, until it is woken, once, or cancelled.
        """
        ...

    def wake(self, waiters: Iterable[object], /) -> None:
        """Wake the tasks that await these waiters, or will. A waiter may occur twice, and a
        :class:`WaiterList` stands for its elements. To be called on the event loop's thread."""
        ...


def running_trio() -> Any:
    """The module ``trio`` if it runs the caller's task, otherwise None.

    Ask this before asyncio: in guest mode an asyncio loop runs beneath the task.
    """
    module: Any = sys.modules.get("trio")
    if module is not None:
        try:
            module.lowlevel.current_task()
        except RuntimeError:
            return None
    return module
