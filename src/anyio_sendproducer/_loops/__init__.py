"""Waiters and wake-ups made for each event loop, where AnyIO's are too slow or do not exist.

An awaited record takes half as long with these waiters as with an ``anyio.Event``. AnyIO has no
public function with which a foreign thread wakes the event loop without being blocked itself.
"""

from __future__ import annotations

from . import _asyncio
from ._base import Loop, Sentinel, Step, Waitable, WaiterList, running_trio

__all__ = [
    "Loop",
    "Sentinel",
    "Step",
    "Waitable",
    "WaiterList",
    "current_library",
    "current_loop",
    "current_task",
]


def current_library() -> str:
    """Return the library whose event loop runs the caller: ``"asyncio"`` or ``"trio"``."""
    return "asyncio" if running_trio() is None else "trio"


def current_loop() -> Loop:
    """Return the event loop that runs the caller.

    Raises:
        RuntimeError: no event loop runs the caller.
    """
    if running_trio() is None:
        return _asyncio.current_loop()
    # Trio is imported only if the application runs it.
    from . import _trio

    return _trio.current_loop()


def current_task() -> object:
    """Return the event loop's own object of the caller's task.

    As long as it is kept, no other task is equal to it. AnyIO's TaskInfo has only the id of the
    task, and when the task has ended, another one may get the same id.
    """
    trio = running_trio()
    return _asyncio.current_task() if trio is None else trio.lowlevel.current_task()
