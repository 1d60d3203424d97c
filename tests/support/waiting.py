"""The two ways to wait until a condition holds, if nothing reports that it does."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

__all__ = ["PATIENCE", "blocking_until", "until"]

#: Seconds for anything that is waited for; nothing takes more than a fraction of it.
PATIENCE = 60.0

#: Seconds between two looks. Unit tests set it to 0, since they must not sleep: they wait for
#: threads of their own process only, which run meanwhile.
pause = 0.001


async def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until a condition holds, while other tasks run.

    Raises:
        TimeoutError: it does not hold within ``patience`` seconds.
    """
    with anyio.fail_after(patience):
        while not condition():  # noqa: ASYNC110  # a thread sets no event of the loop's
            await anyio.sleep(pause)


def blocking_until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait in this thread until a condition holds; otherwise as :func:`until`."""
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError
        time.sleep(pause)
