"""The interface of an event loop, as far as the producer uses it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

__all__ = ["Loop", "Sentinel", "Step", "Waitable", "WaiterList", "running_trio"]


class Waitable(Protocol):
    """An object for which one task can wait, such as the entry of a record."""

    waiter: object | None
    """The waiter to pass to :meth:`Loop.wake`; None if no task waits."""


class WaiterList(list[object]):
    """The waiters of several tasks that wait for the same thing."""


class Step:
    """Marks that the producer's own code is in the middle of a change, on the event loop's thread.

    The garbage collector and signal handlers may run other code on this thread between two
    instructions. If that code calls the producer, ``depth`` is above 0, and the call is refused or
    postponed. Such code always ends before the code that it interrupts continues, so a plain
    counter is enough.
    """

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


class Sentinel:
    """An object that the event loop keeps alive until the loop is closed."""

    def do_nothing(self) -> None:
        """Do nothing. A timer of the event loop refers to this method, and so to the object."""


class Loop(Protocol):
    """The event loop on which a producer was opened."""

    #: Whether AnyIO, when it cancels tasks, skips a task whose waiter has just been woken, and
    #: tries again later; see ``_CHECK_INTERVAL_BITS`` in ``_sending.py``.
    skips_cancelling_woken_tasks: bool
    #: Calls a function on the event loop after some seconds; None if the loop has no timers.
    call_later: Callable[[float, Callable[[], object]], object] | None

    def is_current(self) -> bool:
        """Whether this event loop runs the caller."""
        ...

    def now(self) -> float:
        """The event loop's monotonic time in seconds."""
        ...

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        """Schedule a call of ``function`` on the event loop. This may be called in any thread, and
        by finalizers and signal handlers.

        Returns:
            False if the event loop has ended, so that ``function`` is never called.
        """
        ...

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        """Keep an object alive until the event loop is closed. Does nothing on Trio, which needs no
        sentinel: a run of Trio ends after its tasks.

        Returns:
            A function that releases the object.
        """
        ...

    def new_waiter(self) -> Awaitable[object]:
        """Make a waiter, for one task to await once. It may be woken before it is awaited."""
        ...

    def park(self, waitable: Waitable, /) -> Awaitable[object]:
        """Make a waiter, and set ``waitable.waiter``. The caller must await it immediately.

        This is faster than :meth:`new_waiter`. The waiter may be woken only once.
        """
        ...

    def wake(self, waiters: Iterable[object], /, *, at_once: bool = False) -> None:
        """Wake the tasks that await these waiters. Must be called on the event loop's thread.

        A :class:`WaiterList` stands for its elements. A waiter of :meth:`new_waiter` may be woken
        several times.

        Args:
            waiters: the waiters.
            at_once: whether tasks that wait by :meth:`park` run now, until they wait again, if the
                event loop can do that. Only for a callback of the loop that is not within a step.
        """
        ...


def running_trio() -> Any:
    """Return the module ``trio`` if Trio runs the caller's task, otherwise None.

    Check this before asyncio: in guest mode, an asyncio loop runs Trio.
    """
    module: Any = sys.modules.get("trio")
    if module is not None:
        try:
            module.lowlevel.current_task()
        except RuntimeError:
            return None
    return module
