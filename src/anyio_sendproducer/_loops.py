"""The two event loops' own means, where AnyIO's are too slow or not public.

A waiting cell on native means halves the price of an awaited record against ``anyio.Event``, and
AnyIO has no public call that wakes its loop from a foreign thread without blocking that thread.
Everything here is public API of asyncio and trio.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Loop", "Sentinel", "Several", "Step", "current_library", "current_loop"]


class Several(list[Any]):
    """The cells of several tasks that wait for one thing."""


class Step:
    """Marks that the producer's own code is in the middle of a change, on the loop's thread.

    The garbage collector and signal handlers run other code there between any two instructions. If
    that code calls the producer, the call finds ``depth`` above 0 and is refused or put off. The
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
    """An object that the event loop keeps until it is closed."""

    def stay(self) -> None:
        """What the loop is to call: nothing."""


#: A year: no loop runs a timer of ours after that.
_NEVER_SECONDS: Final = 365 * 24 * 3600.0


class Loop(Protocol):
    """The event loop that a producer was opened on."""

    #: Whether a scope that is cancelled passes over a task as long as its waiter is done.
    spares_done_waiters: bool

    def is_current(self) -> bool:
        """Whether this loop runs the caller."""
        ...

    def now(self) -> float:
        """The loop's monotonic time in seconds."""
        ...

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        """Have ``function`` called on the loop, soon; from any thread, and from finalizers and
        signal handlers.

        Returns: False if the loop has ended, and the function is not going to be called.
        """
        ...

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        """Keep an object alive until the loop is closed, if the loop can.

        Returns: lets go of the object.
        """
        ...

    def cell(self) -> Awaitable[object]:
        """A new cell: one task awaits it, once, until it is woken."""
        ...

    def park(self, place: Any, /) -> Awaitable[object]:
        """What a cell is for, in the least time: to be awaited at once, by the caller. Who is to
        be woken stands in ``place.waiter`` from now on, until it is woken, once, or cancelled."""
        ...

    def wake(self, waiters: Iterable[Any], /) -> None:
        """Wake whoever awaits these cells, or will. A cell may come twice; :class:`Several`
        may stand in place of one. On the loop's own thread alone."""
        ...


class _Parked:
    """Where a task of asyncio's waits: a future, as far as a task asks one that it awaits.

    asyncio's own loops schedule whoever waits for a future one by one, in Python, which takes as
    much time as all that the future itself does. These are woken many at a time.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_loop",
        "callback",
        "context",
        "is_cancelled",
        "is_over",
    )

    # AnyIO does not cancel a task whose future is done: what it waited for is not lost to it.
    __class__: Any = asyncio.Future
    callback: Callable[[Any], object]
    context: contextvars.Context

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # By this asyncio.isfuture() knows a future, and a task one that it was given by ``await``.
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


class _AsyncioLoop:
    spares_done_waiters = True  # so does AnyIO

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now: Callable[[], float] = loop.time
        self.cell: Callable[[], asyncio.Future[None]] = loop.create_future
        are_woken_together = False
        # asyncio's own loops have these in Python, which costs as much again as what they do.
        if isinstance(loop, asyncio.BaseEventLoop):
            own = asyncio.BaseEventLoop
            if _is_method(loop.time, own.time):
                self.now = time.monotonic
            if _is_method(loop.create_future, own.create_future):
                future_type: Any = asyncio.Future
                self.cell = functools.partial(future_type, loop=loop)
                # Who looks for what takes long is to be shown each task by itself.
                are_woken_together = (
                    _is_method(loop.call_soon, own.call_soon) and not loop.get_debug()
                )
        new: Any = functools.partial(_Parked, loop) if are_woken_together else self.cell

        def park(place: Any) -> Any:
            waiter = place.waiter = new()
            return waiter

        self.park: Callable[[Any], Awaitable[None]] = park
        #: What a task is given that is woken: it asks for its result, and for nothing else.
        self._woken = self.cell()
        self._woken.set_result(None)

    def is_current(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop and _running_trio() is None
        except RuntimeError:
            return False  # no loop runs in this thread

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        # A loop that is closed forgets its timers, and nobody else knows this one.
        timer = weakref.ref(self._loop.call_later(_NEVER_SECONDS, sentinel.stay))

        def let_go() -> None:
            handle = timer()
            if handle is not None:
                handle.cancel()

        return let_go

    def wake(self, waiters: Iterable[Any], /) -> None:
        parked: list[_Parked] = []
        for cell in waiters:
            if type(cell) is _Parked:
                if not cell.is_over:
                    cell.is_over = True
                    parked.append(cell)
                continue
            if parked:  # who comes first goes on first
                self._loop.call_soon(self._go_on, parked)
                parked = []
            if type(cell) is Several:
                self.wake(cell)
            elif not cell.done():
                cell.set_result(None)
        if parked:
            self._loop.call_soon(self._go_on, parked)

    def _go_on(self, parked: Iterable[_Parked]) -> None:
        """Give these tasks their turn."""
        woken = self._woken
        line = iter(parked)
        try:
            for cell in line:
                callback, context = cell.callback, cell.context
                # Whoever still knows the cell, such as the record's entry, is to keep no task alive
                # by it.
                del cell.callback, cell.context
                context.run(callback, woken)
                # Nor is this frame, which the task's own exception may know.
                del callback, context
        finally:  # a task may end the loop, by SystemExit or KeyboardInterrupt
            if rest := [*line]:
                self._loop.call_soon(self._go_on, rest)


def _is_method(bound: object, function: object) -> bool:
    """Whether that is what is called, and neither a subclass nor a test has put its own there."""
    return getattr(bound, "__func__", None) is function


def _trio_loop(module: Any, token: Any) -> Loop:
    # Made inside a function, so that what is called for each record is a plain local name: trio
    # is not imported unless somebody runs it.
    import outcome  # trio's own

    lowlevel: Any = module.lowlevel
    checkpoint: Callable[[], Coroutine[Any, Any, None]] = lowlevel.checkpoint
    current_task: Callable[[], Any] = lowlevel.current_task
    wait_task_rescheduled: Callable[[Callable[[Any], Any]], Coroutine[Any, Any, None]]
    wait_task_rescheduled = lowlevel.wait_task_rescheduled
    reschedule: Callable[[Any, Any], None] = lowlevel.reschedule
    succeeded: Any = lowlevel.Abort.SUCCEEDED
    task_type: Any = lowlevel.Task
    partial = functools.partial

    class Woken(outcome.Outcome[None]):
        """What a task is woken with: None, as trio does; but trio's can be used only once."""

        def unwrap(self) -> None:
            pass

        def send(self, gen: Any) -> Any:  # pragma: no cover  # trio awaits, and calls unwrap()
            return gen.send(None)

        async def asend(self, agen: Any) -> Any:  # pragma: no cover  # as send()
            return await agen.asend(None)

    woken = Woken()
    nobody = Several()

    def unpark(place: Any, _raise_cancel: Any) -> Any:
        # Until the task has run, somebody is to be told of what becomes of it.
        place.waiter = nobody
        return succeeded

    class TrioCell:
        __slots__ = ("task", "woken")

        def __init__(self) -> None:
            self.task: Any = None
            self.woken = False

        def __await__(self) -> Generator[Any, Any, None]:
            # A finalizer may wake it at each point: first the task, then the look.
            self.task = current_task()
            if self.woken:
                self.task = None
                return checkpoint().__await__()
            return wait_task_rescheduled(self.abort).__await__()

        def abort(self, _raise_cancel: Any) -> Any:
            self.task = None
            return succeeded

    class TrioLoop:
        spares_done_waiters = False

        def __init__(self) -> None:
            self.now: Callable[[], float] = lowlevel.current_clock().current_time
            self.cell: Callable[[], TrioCell] = TrioCell

        def park(self, place: Any, /) -> Awaitable[None]:
            place.waiter = current_task()
            return wait_task_rescheduled(partial(unpark, place))

        def is_current(self) -> bool:
            return _running_trio() is module and lowlevel.current_trio_token() is token

        def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
            try:
                token.run_sync_soon(function)
            except module.RunFinishedError:
                return False
            return True

        def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
            # A run does not end before its tasks; if it crashes, nothing keeps the tasks alive.
            return sentinel.stay

        def wake(self, waiters: Iterable[Any], /) -> None:
            for cell in waiters:
                if type(cell) is task_type:
                    reschedule(cell, woken)
                elif type(cell) is Several:
                    self.wake(cell)
                else:
                    cell.woken = True
                    task = cell.task
                    if task is None:
                        continue
                    if task is current_task():
                        # A finalizer wakes a task that is on its way to sleep: later.
                        self.call_soon_threadsafe(partial(self.wake, (cell,)))
                    else:
                        cell.task = None
                        reschedule(task, woken)

    return TrioLoop()


def _running_trio() -> Any:
    """The trio module, where a task of Trio's is running now.

    That is to be asked before asyncio: in guest mode an asyncio loop is running beneath the task.
    """
    module: Any = sys.modules.get("trio")
    if module is not None:
        try:
            module.lowlevel.current_task()
        except RuntimeError:
            return None
    return module


def current_library() -> str:
    """Which library's loop runs the caller: ``"asyncio"`` or ``"trio"``."""
    return "asyncio" if _running_trio() is None else "trio"


def current_loop() -> Loop:
    """The loop that runs the caller."""
    module = _running_trio()
    if module is not None:
        return _trio_loop(module, module.lowlevel.current_trio_token())
    return _AsyncioLoop(asyncio.get_running_loop())
