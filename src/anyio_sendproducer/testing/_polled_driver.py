"""The driver without a broker as one that the loop hands over to, and asks, by itself.

So nothing that a test waits for is on its way through a thread: when all tasks are blocked, nothing
more will come by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from .._settings import ProducerSettings
from ..drivers import Outcome, Sink, Submission, Submitted
from ._driver import FakeDriver

__all__ = ["PolledFakeDriver"]


class PolledFakeDriver(FakeDriver):
    """A :class:`~anyio_sendproducer.drivers.PolledDriver` in memory.

    Its gates must stay open where it is ``direct``: the loop itself would wait before them.

    Attributes:
        direct: whether the loop may call `submit`. False where the settings have serializers,
            which may block, unless it is ``inline``.
        inline: whether the producer starts no thread and calls everything on the loop, also
            serializers.
        poll_error: raised by `poll`, which a driver must not do.
        listener: called, on whichever thread, when records were taken.
    """

    _polled_sink: Sink

    def __init__(
        self,
        *,
        partitions: int = 4,
        manual: bool = False,
        direct: bool = True,
        inline: bool = False,
    ) -> None:
        super().__init__(partitions=partitions, manual=manual)
        self.direct = direct
        self.inline = inline
        self.poll_error: Exception | None = None
        self.listener: Callable[[], object] = lambda: None
        # A finalizer may submit while the test acknowledges, on the loop's thread.
        self._guard = threading.RLock()
        self._unsaid: list[tuple[Any, Outcome]] = []
        #: Records that were submitted and not reported, also while a thread completes them.
        self._unreported = 0
        self._watching = False

    def __call__(self, settings: ProducerSettings) -> PolledFakeDriver:
        """Be the factory of itself."""
        super().__call__(settings)
        if any(self._serializes.values()) and not self.inline:
            self.direct = False
        return self

    def open(self, sink: Sink, /) -> None:
        """Connect to nothing."""
        super().open(sink)
        self._polled_sink = sink

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Take a batch, and tell the listener."""
        with self._guard:
            self._unreported += len(batch)
        answer = super().submit(batch)
        with self._guard:
            self._unreported -= len(answer.held)
        self.listener()
        return answer

    def poll(self, most: int, /) -> int:
        """Report so many outcomes at most."""
        if self.poll_error is not None:
            raise self.poll_error
        with self._guard:
            said = self._unsaid[:most]
            del self._unsaid[: len(said)]
            self._unreported -= len(said)
            under_way = self._unreported
        self._say(said)
        return under_way

    def watch(self) -> None:
        """Ring when there is something to report, once."""
        with self._guard:
            rings = bool(self._unsaid)
            self._watching = not rings
        if rings:
            self.ring()

    def ring(self) -> None:
        """Have the loop ask."""
        self._polled_sink.ready()

    def close(self, timeout: float, /) -> None:
        """Close: what is under way fails, as possibly persisted."""
        super().close(timeout)
        with self._guard:
            said, self._unsaid = self._unsaid, []
            self._unreported -= len(said)
        self._say(said)

    def _report(self, submissions: list[Any], outcomes: list[Outcome]) -> int:
        with self._guard:
            self._unsaid += zip(submissions, outcomes, strict=True)
            rings = self._watching and bool(submissions)
            if rings:
                self._watching = False
        if rings:
            self.ring()
        return len(submissions)

    def _say(self, said: list[tuple[Any, Outcome]]) -> None:
        if said:
            self._polled_sink.completed([one for one, _ in said], [outcome for _, outcome in said])
