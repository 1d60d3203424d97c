"""The fake driver that reports only when it is asked, and counts how often that is."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from anyio_sendproducer.drivers import Submission, Submitted
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver

__all__ = ["AskedDriver"]


class AskedDriver(PolledFakeDriver):
    """A fake driver that is asked, as the one on librdkafka is.

    Attributes:
        asked: how often it was asked.
        watched: how often it was told to ring.
        threads: the names of the threads that called `submit`.
    """

    def __init__(self, *, partitions: int = 4, manual: bool = False, direct: bool = True) -> None:
        super().__init__(partitions=partitions, manual=manual, direct=direct)
        self.asked = 0
        self.watched = 0
        self.threads: set[str] = set()

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        self.threads.add(threading.current_thread().name)
        return super().submit(batch)

    def poll(self, most: int, /) -> int:
        self.asked += 1
        return super().poll(most)

    def watch(self) -> None:
        self.watched += 1
        super().watch()
