"""A fake driver that reports only when it is asked, as the one on librdkafka does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from anyio_sendproducer.drivers import Outcome, Sink, Submission, Submitted
from anyio_sendproducer.testing import FakeDriver

__all__ = ["AskedDriver"]


class AskedDriver(FakeDriver):
    """A :class:`~anyio_sendproducer.drivers.PolledDriver` in memory.

    Attributes:
        direct: whether the loop may call `submit`.
        asked: how often it was asked.
        watched: how often it was told to ring.
        threads: the names of the threads that called `submit`.
        poll_error: raised by `poll`, which a driver must not do.
    """

    def __init__(self, *, partitions: int = 4, manual: bool = False, direct: bool = True) -> None:
        super().__init__(partitions=partitions, manual=manual)
        self.direct = direct
        self.asked = 0
        self.watched = 0
        self.threads: set[str] = set()
        self.poll_error: Exception | None = None
        self._guard = threading.Lock()
        self._unsaid: list[tuple[Any, Outcome]] = []
        self._watching = False
        self._asked_sink: Sink | None = None
        self._is_closed = False

    def open(self, sink: Sink, /) -> None:
        super().open(sink)
        self._asked_sink = sink
        self._is_closed = False

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        self.threads.add(threading.current_thread().name)
        return super().submit(batch)

    def poll(self, most: int, /) -> int:
        self.asked += 1
        if self.poll_error is not None:
            raise self.poll_error
        with self._guard:
            said, self._unsaid = self._unsaid[:most], self._unsaid[most:]
            under_way = len(self._unsaid) + len(self.under_way)
        self._say(said)
        return under_way

    def watch(self) -> None:
        self.watched += 1
        with self._guard:
            rings = bool(self._unsaid)
            self._watching = not rings
        if rings and self._asked_sink is not None:
            self._asked_sink.ready()

    def close(self, timeout: float, /) -> None:
        self._is_closed = True
        super().close(timeout)
        with self._guard:
            said, self._unsaid = self._unsaid, []
        self._say(said)

    def _report(self, submissions: list[Any], outcomes: list[Outcome]) -> int:
        with self._guard:
            self._unsaid += zip(submissions, outcomes, strict=True)
            rings = self._watching and bool(submissions)
            if rings:
                self._watching = False
        if rings and self._asked_sink is not None:
            self._asked_sink.ready()
        return len(submissions)

    def _say(self, said: list[tuple[Any, Outcome]]) -> None:
        if said and self._asked_sink is not None:
            self._asked_sink.completed([one for one, _ in said], [outcome for _, outcome in said])
