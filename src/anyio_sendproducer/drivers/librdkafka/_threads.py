"""Starts the threads of the librdkafka driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["NO_THREAD", "start_thread"]

#: Part of the message of an error.
NO_THREAD: Final = "the process, or its container, can start no more threads"


def start_thread(
    function: Callable[..., object], *args: object, name: str
) -> threading.Thread | None:
    """Run a function on a daemon thread.

    Returns:
        The thread; None if the system can start no more threads.
    """
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
