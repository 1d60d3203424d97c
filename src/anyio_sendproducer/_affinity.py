"""The event loop, thread and process that a producer belongs to."""

from __future__ import annotations

import os
import weakref
from threading import get_ident
from typing import Final

from ._exceptions import ProducerMisused
from ._loops import Loop, Step, current_loop

__all__ = ["Affinity"]

#: The thread number of a producer in a forked process. No thread has this number.
_NO_THREAD: Final = -1

_affinities: weakref.WeakSet[Affinity] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The child process has no copy of the threads, so its records would never be sent.
    for affinity in list(_affinities):
        affinity.thread = _NO_THREAD


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none, and does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Affinity:
    """Checks that a producer is used on the event loop on which it was opened.

    Args:
        loop: the event loop on which the producer was opened.
        step: marks that the producer's own code is in the middle of a change.
    """

    def __init__(self, loop: Loop, step: Step) -> None:
        self._loop = loop
        self._step = step
        #: The thread of the event loop.
        self.thread: int = get_ident()
        _affinities.add(self)

    @property
    def is_here(self) -> bool:
        """Whether the producer's event loop runs the caller."""
        return self.thread == get_ident() and self._loop.is_current()

    def check(self) -> None:
        """Check the caller.

        Raises:
            ProducerMisused: the caller does not run on the producer's event loop, or interrupts the
                producer's own code.
        """
        if self.thread == get_ident() and self._loop.is_current():
            if self._step.depth:
                raise self.reentered()
            return
        if self.thread == _NO_THREAD:
            raise ProducerMisused(
                "the producer was opened before this process was forked, and its thread runs only "
                "in the parent process: open a producer in the child process"
            )
        raise ProducerMisused(
            f"the producer belongs to the event loop that it was opened on, {_way_out()}"
        )

    def reentered(self) -> ProducerMisused:
        """Make the error of a call that interrupts the producer's own code."""
        return ProducerMisused(
            "a finalizer, a weakref callback or a signal handler called the producer while it "
            "interrupted the producer's own code: let the event loop make the call, with asyncio's "
            "call_soon_threadsafe() or Trio's TrioToken.run_sync_soon()"
        )


def _way_out() -> str:
    """Where the caller is, and what it can do instead."""
    try:
        current_loop()
    except RuntimeError:
        return (
            "and no event loop runs the caller: pass the call to that loop, with "
            "anyio.from_thread.run(producer.send, record) in a worker thread of AnyIO, or with "
            "portal.call(producer.send, record) and the BlockingPortal that runs the loop"
        )
    return (
        "and another event loop runs the caller: open a producer on this loop. A TestClient runs "
        "the application on a loop of its own: open the producer in the application's lifespan and "
        "enter the TestClient by `with`, or test with httpx.AsyncClient and its ASGITransport"
    )
