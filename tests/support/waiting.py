"""The two ways to wait until a condition holds, if nothing reports that it does."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

__all__ = ["PATIENCE", "blocking_until", "until"]

#: The time limit in seconds of each wait. Each takes only a fraction of it.
PATIENCE = 60.0

#: Seconds between two checks. Unit tests set it to 0 because they must not sleep. They wait only
#: for threads of their own process, which run meanwhile.
pause = 0.001


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until a condition holds, while other tasks run.

    Raises:
        TimeoutError: it does not hold within ``patience`` seconds.
    """
    with anyio.fail_after(patience):
        while not condition():  # noqa: ASYNC110  # a thread can't set the loop's event
            await anyio.sleep(pause)


def blocking_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Block this thread until a condition holds; otherwise like :func:`until`."""
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError
        time.sleep(pause)
