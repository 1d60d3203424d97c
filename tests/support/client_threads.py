"""The threads of producers and their clients."""

from __future__ import annotations

import threading

__all__ = ["client_threads"]


def client_threads() -> list[str]:
    """List the names of the threads of our producers and of kafka-python."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("anyio-sendproducer") or thread.name.endswith("-network-thread")
    ]
