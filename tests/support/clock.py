"""A producer's clock that a test moves."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager

import anyio
import anyio.abc
import trio
import trio.testing

from anyio_sendproducer import ProducerSettings, SendProducer, _opening
from anyio_sendproducer._loops import Loop
from anyio_sendproducer.drivers import DriverFactory, DriverName
from anyio_sendproducer.telemetry import Observer
from tests.support import waiting
from tests.support.waiting import PATIENCE

__all__ = ["ManualClock", "run_while_the_clock_stands_still"]


def run_while_the_clock_stands_still(main: Callable[[], Awaitable[None]]) -> None:
    """Run a function with Trio's MockClock, which stands still.

    Raises:
        AssertionError: the function waited for that clock. The clock moves after ``PATIENCE`` real
            seconds.
    """
    clock = trio.testing.MockClock()

    def move() -> None:
        clock.rate = 1_000.0

    async def guarded() -> None:
        token = trio.lowlevel.current_trio_token()
        guard = threading.Timer(PATIENCE, token.run_sync_soon, [move])
        guard.start()
        try:
            await main()
        finally:
            guard.cancel()
            guard.join()

    trio.run(guarded, clock=clock)
    assert clock.current_time() == 0, "it waited for a clock that stands still"


class ManualClock:
    """A clock that moves when a test says so.

    By default it stands still between two calls of :meth:`advance`, so a slow machine changes
    nothing. With ``runs=True`` the loop's time passes too: a real client needs retries.
    """

    def __init__(self, *, runs: bool = False) -> None:
        self._runs = runs
        self._ahead = 0.0
        self._loop_time = itertools.repeat(1_000.0).__next__
        self._advanced = anyio.Event()

    def open(
        self,
        settings: ProducerSettings,
        *,
        driver: DriverName | DriverFactory | None = None,
        observers: Iterable[Observer] = (),
    ) -> AbstractAsyncContextManager[SendProducer]:
        """Open a producer that uses this clock; otherwise like open_send_producer()."""
        return _opening._open(settings, driver, observers, self._on_loop)

    async def start(
        self,
        task_group: anyio.abc.TaskGroup,
        settings: ProducerSettings,
        *,
        driver: DriverName | DriverFactory | None = None,
    ) -> SendProducer:
        """Start a producer that uses this clock; otherwise like start_send_producer()."""
        return await _opening._start(task_group, settings, driver, (), self._on_loop)

    def _on_loop(self, loop: Loop) -> ManualClock:
        if self._runs:
            self._loop_time = loop.now
        return self

    def now(self) -> float:
        return self._loop_time() + self._ahead

    monotonic = now

    async def sleep(self, seconds: float, /) -> None:
        assert self._runs or seconds > 0, "a loop that waits for nothing keeps a core busy"
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            with anyio.move_on_after(left if self._runs else None):
                await self._advanced.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake up each task that has slept long enough."""
        self._ahead += seconds
        over, self._advanced = self._advanced, anyio.Event()
        over.set()

    async def until(self, condition: Callable[[], bool], *, step: float) -> None:
        """Advance step by step until a condition holds."""
        with anyio.fail_after(PATIENCE):
            while not condition():
                self.advance(step)
                await anyio.sleep(waiting.pause)  # a thread changes it, and sets no event
