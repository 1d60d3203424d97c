"""Native waiters and wake-ups of each event loop, where AnyIO's are too slow or do not exist.

Native waiters halve the cost of an awaited record, compared with ``anyio.Event``. AnyIO has no
public function that wakes its event loop from a foreign thread without blocking that thread.
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
]


def current_library() -> str:
    """The library whose event loop runs the caller: ``"asyncio"`` or ``"trio"``."""
    return "asyncio" if running_trio() is None else "trio"


def current_loop() -> Loop:
    """The event loop that runs the caller.

    Raises:
        RuntimeError: none does.
    """
    if running_trio() is None:
        return _asyncio.current_loop()
    # Trio is imported only if the application runs it.
    from . import _trio

    return _trio.current_loop()
