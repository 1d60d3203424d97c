"""A driver without a broker. The event loop submits records to the driver, and polls it.

So no outcome is on its way through a thread: if all tasks are blocked, no outcome will come by
itself.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .. import ProducerRecord, ProducerSettings
from ..drivers import Outcome, Sink, Submission, Submitted
from ._driver import FakeDriver

__all__ = ["PolledFakeDriver"]


class PolledFakeDriver(FakeDriver):
    """A :class:`~anyio_sendproducer.drivers.PolledDriver` in memory.

    If it is ``direct``, its gates must stay open: the event loop itself would wait at them.

    Attributes:
        direct: whether the event loop may call `submit`. False if the settings have serializers or
            a partitioner, which may block, unless ``threadless`` is set.
        threadless: whether the producer starts no thread, and calls everything on the event loop,
            including the serializers and the partitioner.
        poll_error: the error that `poll` raises, although drivers must not do this; None for no
            error.
        listener: called after each batch was submitted, on the thread that submitted it.
    """

    _polled_sink: Sink

    def __init__(
        self,
        *,
        partitions: int = 4,
        manual: bool = False,
        direct: bool = True,
        threadless: bool = False,
    ) -> None:
        super().__init__(partitions=partitions, manual=manual)
        self.direct = direct
        self.threadless = threadless
        self.poll_error: Exception | None = None
        self.listener: Callable[[], object] = lambda: None
        # Reentrant: a finalizer may submit while the test acknowledges, on the same thread.
        self._guard = threading.RLock()
        self._outcomes: list[tuple[Any, Outcome]] = []
        #: How many records were taken and not reported, including those that a thread is
        #: completing.
        self._unreported = 0
        self._is_watching = False
        self._context = contextvars.copy_context()

    def __call__(self, settings: ProducerSettings) -> PolledFakeDriver:
        """Return this driver. A producer makes this call for each client that it opens."""
        super().__call__(settings)
        hooks = (settings.key_serializer, settings.value_serializer, settings.partitioner)
        if any(hook is not None for hook in hooks) and not self.threadless:
            self.direct = False
        return self

    def open(self, sink: Sink, /) -> None:
        """Open the driver. The driver opens no connection."""
        super().open(sink)
        self._polled_sink = sink

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Take records, and call the listener."""
        answer = super().submit(batch)
        self.listener()
        return answer

    def _serialize(self, submission: Submission, answer: Submitted) -> ProducerRecord[Any, Any]:
        if not self.threadless:
            return super()._serialize(submission, answer)
        # The caller's task may submit. On a driver thread, hooks would run in the context of the
        # opener, which made this driver. It is copied because a hook may cause another submission.
        return self._context.copy().run(super()._serialize, submission, answer)

    def poll(self, limit: int, /) -> int:
        """Report at most ``limit`` outcomes."""
        if self.poll_error is not None:
            raise self.poll_error
        with self._guard:
            reports = self._outcomes[:limit]
            del self._outcomes[: len(reports)]
            self._unreported -= len(reports)
            under_way = self._unreported
        self._report_all(reports)
        return under_way

    def watch(self) -> None:
        """Wake the event loop once, when there is an outcome to report."""
        with self._guard:
            wakes = bool(self._outcomes)
            self._is_watching = not wakes
        if wakes:
            self.ring()

    def ring(self) -> None:
        """Have the event loop poll."""
        self._polled_sink.ready()

    def close(self, timeout: float, /) -> None:
        """Close the driver. Pending records fail as possibly persisted."""
        super().close(timeout)
        with self._guard:
            reports, self._outcomes = self._outcomes, []
            self._unreported -= len(reports)
        self._report_all(reports)

    def _on_taken(self, count: int) -> None:
        with self._guard:
            self._unreported += count

    def _report(self, submissions: list[Any], outcomes: list[Outcome]) -> int:
        with self._guard:
            self._outcomes += zip(submissions, outcomes, strict=True)
            wakes = self._is_watching and bool(submissions)
            if wakes:
                self._is_watching = False
        if wakes:
            self.ring()
        return len(submissions)

    def _report_all(self, reports: list[tuple[Any, Outcome]]) -> None:
        if reports:
            self._polled_sink.completed(
                [one for one, _ in reports], [outcome for _, outcome in reports]
            )
