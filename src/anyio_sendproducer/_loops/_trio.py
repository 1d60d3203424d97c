"""Waiters and wake-ups for Trio. This module imports Trio, so it is imported only under Trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any, Final

import outcome
import trio
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_clock,
    current_task,
    current_trio_token,
    reschedule,
    wait_task_rescheduled,
)

from ._base import Loop, Sentinel, Waitable, WaiterList, running_trio

__all__ = ["current_loop"]


class _Woken(outcome.Outcome[None]):
    """The value None, for waking a task. Trio's own outcomes can be used only once."""

    def unwrap(self) -> None:
        pass

    def send(self, gen: Any) -> Any:  # pragma: no cover  # Trio awaits, and calls unwrap()
        return gen.send(None)

    async def asend(self, agen: Any) -> Any:  # pragma: no cover  # as send()
        return await agen.asend(None)


_WOKEN: Final = _Woken()
#: The waiter of a task that was cancelled and has not run yet. Waking it does nothing. It is not
#: None, so that a failure that arrives meanwhile is not added as unawaited before Ledger.cancel()
#: runs. Otherwise cancel() would return early, and not count the record as abandoned.
_CANCELLED: Final = WaiterList()


def _abort_park(waitable: Waitable, _raise_cancel: object) -> Abort:
    waitable.waiter = _CANCELLED
    return Abort.SUCCEEDED


class _Waiter:
    __slots__ = ("is_woken", "task")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.is_woken = False

    def __await__(self) -> Generator[Any, Any, None]:
        # A finalizer may wake this waiter between any two of these lines. So `task` is set first,
        # and then `is_woken` is checked.
        self.task = current_task()
        if self.is_woken:
            self.task = None
            return checkpoint().__await__()  # noqa: ASYNC105  # this is how to await here
        return wait_task_rescheduled(self._abort).__await__()  # noqa: ASYNC105  # as above

    def _abort(self, _raise_cancel: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED


class _TrioLoop:
    skips_cancelling_woken_tasks = False

    def __init__(self) -> None:
        self._token = current_trio_token()
        self.now: Callable[[], float] = current_clock().current_time
        self.new_waiter: Callable[[], _Waiter] = _Waiter
        self.call_later: Callable[[float, Callable[[], object]], object] | None = None

    def park(self, waitable: Waitable, /) -> Awaitable[None]:
        waitable.waiter = current_task()
        return wait_task_rescheduled(partial(_abort_park, waitable))  # noqa: ASYNC105  # the caller does

    def is_current(self) -> bool:
        return running_trio() is trio and current_trio_token() is self._token

    def call_soon_threadsafe(self, function: Callable[[], object], /) -> bool:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    def keep(self, sentinel: Sentinel, /) -> Callable[[], None]:
        # Not needed: a run of Trio ends after its tasks, or crashes and does not keep them alive.
        return sentinel.do_nothing

    def wake(self, waiters: Iterable[Any], /, *, at_once: bool = False) -> None:  # noqa: ARG002  # Trio can't
        for waiter in waiters:
            if type(waiter) is Task:
                reschedule(waiter, _WOKEN)
            elif type(waiter) is WaiterList:
                self.wake(waiter)
            else:
                waiter.is_woken = True
                task = waiter.task
                if task is None:
                    continue
                if task is current_task():
                    # A finalizer wakes a task that is about to sleep. It can't be rescheduled yet.
                    self.call_soon_threadsafe(partial(self.wake, (waiter,)))
                else:
                    waiter.task = None
                    reschedule(task, _WOKEN)


def current_loop() -> Loop:
    """Return the run of Trio that runs the caller's task."""
    return _TrioLoop()
