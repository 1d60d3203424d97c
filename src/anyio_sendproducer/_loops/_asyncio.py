"""asyncio's waiters."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, Final

from ._base import Loop, Sentinel, Waitable, WaiterList, running_trio

__all__ = ["AsyncioLoop", "current_loop"]

#: A year: no event loop runs a timer of ours after that.
_NEVER_SECONDS: Final = 365 * 24 * 3600.0


class _Parked:
    """A waiter: the part of a future's interface that a task uses when it awaits one.

    asyncio's own loops schedule the waiters of futures one by one, in Python, which takes as much
    time as everything else that a future does. Waiters of this class are woken many at a time.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_loop",
        "callback",
        "context",
        "is_cancelled",
        "is_over",
    )

    # AnyIO does not cancel a task whose future is done, so that the task gets its result.
    __class__: Any = asyncio.Future
    callback: Callable[[Any], object]
    context: contextvars.Context

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio.isfuture() and tasks recognize a future by this attribute. It looks private, but
        # each class that stands for a future must have it: a comment in asyncio/futures.py says so.
        self._asyncio_future_blocking = True
        self.is_over = self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, None]:
        yield self

    def add_done_callback(
        self, function: Callable[[Any], object], /, *, context: contextvars.Context
    ) -> None:
        self.callback = function
        self.context = context

    def done(self) -> bool:
        return self.is_over

    def cancelled(self) -> bool:
        return self.is_cancelled

    def cancel(self, msg: Any = None) -> bool:
        if self.is_over:
            return False
        self.is_over = self.is_cancelled = True
        cancelled: asyncio.Future[None] = self._loop.create_future()
        cancelled.cancel(msg)
        self._loop.call_soon(self.callback, cancelled, context=self.context)
        del self.callback, self.context  # as below
        return True


class AsyncioLoop:
    """An event loop of asyncio."""

    skips_cancelling_woken_tasks = True  # so does AnyIO

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now: Callable[[], float] = loop.time
        self.new_waiter: Callable[[], asyncio.Future[None]] = loop.create_future
        are_woken_together = False
        # asyncio's own loops have these functions in Python, which doubles their cost.
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

        def park(place: Waitable) -> Any:
            waiter = place.waiter = new()
            return waiter

        self.park: Callable[[Waitable], Awaitable[None]] = park
        #: A woken task gets this future: it asks for the result, and for nothing else.
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
        # A closed loop drops its timers, and nothing else refers to this one.
        timer = weakref.ref(self._loop.call_later(_NEVER_SECONDS, sentinel.stay))

        def let_go() -> None:
            handle = timer()
            if handle is not None:
                handle.cancel()

        return let_go

    def wake(self, waiters: Iterable[Any], /) -> None:
        parked: list[_Parked] = []
        for waiter in waiters:
            if type(waiter) is _Parked:
                if not waiter.is_over:
                    waiter.is_over = True
                    parked.append(waiter)
                continue
            if parked:  # preserve FIFO order
                self._loop.call_soon(self._resume, parked)
                parked = []
            if type(waiter) is WaiterList:
                self.wake(waiter)
            elif not waiter.done():
                waiter.set_result(None)
        if parked:
            self._loop.call_soon(self._resume, parked)

    def _resume(self, parked: Iterable[_Parked]) -> None:
        """Run each of these tasks until it waits again."""
        woken = self._woken
        line = iter(parked)
        try:
            for waiter in line:
                callback, context = waiter.callback, waiter.context
                # The entry of a record may refer to the waiter for longer: it must not keep the
                # task alive.
                del waiter.callback, waiter.context
                context.run(callback, woken)
                # Nor must this frame, which the traceback of the task's exception may refer to.
                del callback, context
        finally:  # a task may end the loop, by SystemExit or KeyboardInterrupt
            if rest := [*line]:
                self._loop.call_soon(self._resume, rest)


def _is_method(bound: object, function: object) -> bool:
    """Whether a bound method is this function, and not that of a subclass or of a test."""
    return getattr(bound, "__func__", None) is function


def current_loop() -> Loop:
    """The event loop of asyncio that runs the caller.

    Raises:
        RuntimeError: none does.
    """
    return AsyncioLoop(asyncio.get_running_loop())
