"""The state of closing a producer: whether it was requested, and its deadline."""

from __future__ import annotations

import math

import anyio
from anyio import CancelScope

__all__ = ["Closing"]


class Closing:
    """A request to close one producer, which a later one may bring forward."""

    def __init__(self) -> None:
        self.requested = anyio.Event()
        self.deadline = math.inf
        #: The scope of the draining, while that is in progress.
        self.scope: CancelScope | None = None
        self.done = anyio.Event()

    def request(self, deadline: float) -> None:
        """Close until this time, or until an earlier one that was requested before."""
        self.deadline = min(self.deadline, deadline)
        if self.scope is not None:
            self.scope.deadline = self.deadline
        self.requested.set()
