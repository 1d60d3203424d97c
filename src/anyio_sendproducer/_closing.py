"""The state of closing a producer: whether it was requested, and its deadline."""

from __future__ import annotations

import math

import anyio
from anyio import CancelScope

__all__ = ["Closing"]


class Closing:
    """A request to close one producer. A later request may shorten its time."""

    def __init__(self) -> None:
        self.requested = anyio.Event()
        self.deadline = math.inf
        #: The cancel scope of the draining; None before it begins.
        self.scope: CancelScope | None = None
        self.done = anyio.Event()

    def request(self, deadline: float) -> None:
        """Request that draining ends at this time, or earlier if that was requested before."""
        self.deadline = min(self.deadline, deadline)
        if self.scope is not None:
            self.scope.deadline = self.deadline
        self.requested.set()
