"""Waiters and wake-ups for asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, Final

from ._base import Loop, Sentinel, Waitable, WaiterList, running_trio

__all__ = ["AsyncioLoop", "current_loop", "current_task"]

#: The delay of a timer that never runs: a year.
_NEVER_SECONDS: Final = 365 * 24 * 3600.0


class _Parked:
    """A waiter with the part of a future's interface that a task uses when it awaits a future.

    asyncio's own loops schedule the task of each future separately, in Python code. That is half of
    a future's work. Waiters of this class are scheduled many at a time.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_loop",
        "callback",
        "context",
        "is_cancelled",
        "is_done",
    )

    # AnyIO does not cancel a task whose future is done, so that the task gets the result. It checks
    # isinstance(waiter, asyncio.Future).
    __class__: Any = asyncio.Future
    callback: Callable[[Any], object]
    context: contextvars.Context

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio.isfuture() and tasks recognize a future by this attribute. In spite of its name it
        # is documented: a comment in asyncio/futures.py says that classes like this must have it.
        self._asyncio_future_blocking = True
        self.is_done = self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, None]:
        yield self

    def add_done_callback(
        self, function: Callable[[Any], object], /, *, context: contextvars.Context
    ) -> None:
        self.callback = function
        self.context = context

    def done(self) -> bool:
        return self.is_done

    def cancelled(self) -> bool:
        return self.is_cancelled

    def cancel(self, msg: Any = None) -> bool:
        if self.is_done:
            return False
        self.is_done = self.is_cancelled = True
        cancelled: asyncio.Future[None] = self._loop.create_future()
        cancelled.cancel(msg)
        self._loop.call_soon(self.callback, cancelled, context=self.context)
        del self.callback, self.context  # as in AsyncioLoop._resume()
        return True


class AsyncioLoop:
    """An event loop of asyncio."""

    skips_cancelling_woken_tasks = True  # AnyIO tries once in each turn

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now: Callable[[], float] = loop.time
        self.new_waiter: Callable[[], asyncio.Future[None]] = loop.create_future
        are_woken_together = False
        # asyncio's own loops implement these functions in Python, which doubles their cost.
        if isinstance(loop, asyncio.BaseEventLoop):
            own = asyncio.BaseEventLoop
            if _is_method(loop.time, own.time):
                self.now = time.monotonic
            if _is_method(loop.create_future, own.create_future):
                future_type: Any = asyncio.Future
                self.new_waiter = functools.partial(future_type, loop=loop)
                # In debug mode asyncio measures each callback, so each task needs its own.
                are_woken_together = (
                    _is_method(loop.call_soon, own.call_soon) and not loop.get_debug()
                )
        new: Any = functools.partial(_Parked, loop) if are_woken_together else self.new_waiter

        def park(waitable: Waitable) -> Any:
            waiter = waitable.waiter = new()
            return waiter

        self.park: Callable[[Waitable], Awaitable[None]] = park
        self.call_later: Callable[[float, Callable[[], object]], object] | None = loop.call_later
        #: The future that a woken task gets. The task only reads this future's result.
        self._woken = self.new_waiter()
        self._woken.set_result(None)

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop and running_trio() is None
        except RuntimeError:
            return False  # no loop runs in this thread

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        # A closed loop drops its timers. Only the loop may keep this one alive, so this is a weak
        # reference.
        timer = weakref.ref(self._loop.call_later(_NEVER_SECONDS, sentinel.do_nothing))

        def release() -> None:
            handle = timer()
            if handle is not None:
                handle.cancel()

        return release

    def wake(self, waiters: Iterable[Any], /, *, at_once: bool = False) -> None:
        parked: list[_Parked] = []
        for waiter in waiters:
            if type(waiter) is _Parked:
                if not waiter.is_done:
                    waiter.is_done = True
                    parked.append(waiter)
                continue
            if parked:  # preserve FIFO order
                self._loop.call_soon(self._resume, parked)
                parked = []
            if type(waiter) is WaiterList:
                self.wake(waiter)
            elif not waiter.done():
                waiter.set_result(None)
        if at_once:
            self._resume(parked)
        elif parked:
            self._loop.call_soon(self._resume, parked)

    def _resume(self, parked: Iterable[_Parked]) -> None:
        """Run the task of each of these waiters until it waits again."""
        woken = self._woken
        line = iter(parked)
        try:
            for waiter in line:
                callback, context = waiter.callback, waiter.context
                # The entry of a record may keep the waiter for longer. The waiter must not keep the
                # task alive.
                del waiter.callback, waiter.context
                context.run(callback, woken)
                # The traceback of the task's exception may refer to this frame, which must not
                # keep the task alive, either.
                del callback, context
        finally:  # a task may raise SystemExit or KeyboardInterrupt, which stops the loop
            if rest := [*line]:
                self._loop.call_soon(self._resume, rest)


def _is_method(bound: object, function: object) -> bool:
    """Whether a bound method is this function, and not an override of a subclass or a test."""
    return getattr(bound, "__func__", None) is function


def current_loop() -> Loop:
    """Return the event loop of asyncio that runs the caller.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    return AsyncioLoop(asyncio.get_running_loop())


def current_task() -> object:
    """Return the caller's task."""
    return asyncio.current_task()
