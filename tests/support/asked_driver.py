"""A fake driver that reports only when it is polled, and counts the polls."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from anyio_sendproducer.drivers import Submission, Submitted
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver

__all__ = ["AskedDriver"]


class AskedDriver(PolledFakeDriver):
    """A fake driver that is polled, like the librdkafka driver.

    Attributes:
        asked: how often it was polled.
        watched: how often `watch` was called.
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
