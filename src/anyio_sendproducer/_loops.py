"""The two event loops' own means, where AnyIO's are too slow or not public.

A waiting cell on native means halves the price of an awaited record against ``anyio.Event``, and
AnyIO has no public call that wakes its loop from a foreign thread without blocking that thread.
Everything here is public API of asyncio and trio.

May import: asyncio, trio (when it is running), ``_exceptions``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from ._exceptions import ProducerMisused

if TYPE_CHECKING:
    from collections.abc import Generator

    import trio

__all__ = ["Loop", "current_loop"]


class Loop(Protocol):
    """The event loop that a producer was opened on."""

    def check(self) -> None:
        """Check that this is called on the producer's own loop.

        Raises:
            ProducerMisused: it is another loop, or another thread.
        """
        ...

    def now(self) -> float:
        """The loop's monotonic time in seconds."""
        ...

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> None:
        """Have ``function`` called on the loop, soon; from any thread. Does nothing where the loop
        has ended."""
        ...

    def cell(self) -> Awaitable[object]:
        """A new cell: one task awaits it, once, until it is woken."""
        ...

    def wake(self, cell: Any, /) -> None:
        """Wake whoever awaits the cell, or will; a second time does nothing. On the loop alone."""
        ...


class _AsyncioLoop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = loop.time
        self.cell = loop.create_future

    def check(self) -> None:
        try:
            loop: object = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise _misused()

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to be told

    def wake(self, cell: Any, /) -> None:
        if not cell.done():
            cell.set_result(None)


class _TrioCell:
    __slots__ = ("_task", "_trio", "_woken")

    def __init__(self, lowlevel: Any) -> None:
        self._trio = lowlevel
        self._task: Any = None
        self._woken = False

    def __await__(self) -> Generator[Any, Any, None]:
        if self._woken:
            yield from self._trio.checkpoint().__await__()
            return
        self._task = self._trio.current_task()
        yield from self._trio.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, _raise_cancel: Any) -> Any:
        self._task = None
        return self._trio.Abort.SUCCEEDED

    def wake(self) -> None:
        self._woken = True
        if self._task is not None:
            task, self._task = self._task, None
            self._trio.reschedule(task)


class _TrioLoop:
    def __init__(self, lowlevel: Any, token: trio.lowlevel.TrioToken, run_finished: Any) -> None:
        self._trio = lowlevel
        self._token = token
        self._run_finished = run_finished
        self.now: Callable[[], float] = lowlevel.current_clock().current_time

    def check(self) -> None:
        try:
            token: object = self._trio.current_trio_token()
        except RuntimeError:
            token = None
        if token is not self._token:
            raise _misused()

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> None:
        try:
            self._token.run_sync_soon(function)
        except self._run_finished:
            pass  # the run is over: nobody is left to be told

    def cell(self) -> _TrioCell:
        return _TrioCell(self._trio)

    def wake(self, cell: Any, /) -> None:
        cell.wake()


def _misused() -> ProducerMisused:
    return ProducerMisused(
        "the producer belongs to the event loop that it was opened on: use it from that loop's "
        "tasks alone, and open another for another loop, thread or process"
    )


def current_loop() -> Loop:
    """The loop that runs the caller.

    Trio is asked first: in guest mode an asyncio loop is running beneath it.
    """
    trio_module = sys.modules.get("trio")
    if trio_module is not None:
        try:
            token = trio_module.lowlevel.current_trio_token()
        except RuntimeError:
            pass
        else:
            return _TrioLoop(trio_module.lowlevel, token, trio_module.RunFinishedError)
    return _AsyncioLoop(asyncio.get_running_loop())
