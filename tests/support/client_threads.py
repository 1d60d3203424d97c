"""The threads of producers and their clients."""

from __future__ import annotations

import threading

__all__ = ["client_threads"]


def client_threads() -> list[str]:
    """The names of the threads that a producer of ours, or kafka-python, has left."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("anyio-sendproducer") or thread.name.endswith("-network-thread")
    ]
