"""Fake drivers whose client lingers until `hurry` is called."""

from __future__ import annotations

from collections.abc import Sequence

from anyio_sendproducer.drivers import Sink, Submission, Submitted
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver

__all__ = ["LingeringDriver", "PolledLingeringDriver"]


class LingeringDriver(FakeDriver):
    """A fake driver that acknowledges records only while it hurries.

    Attributes:
        lingers: whether it reports that its client lingers.
        told: the argument of each call of :meth:`hurry`.
        hurry_error: raised by :meth:`hurry`, against the driver's contract.
    """

    def __init__(self, *, lingers: bool = True) -> None:
        super().__init__(manual=True)
        self.lingers = lingers
        self.told: list[bool] = []
        self.hurry_error: Exception | None = None
        self._hurries = False

    def open(self, sink: Sink, /) -> None:
        super().open(sink)
        self._hurries = False

    def hurry(self, on: bool, /) -> None:
        assert on is not self._hurries
        self.told.append(on)
        self._hurries = on
        if self.hurry_error is not None:
            raise self.hurry_error
        if on:
            self.acknowledge()

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        answer = super().submit(batch)
        if self._hurries:
            self.acknowledge()
        return answer


class PolledLingeringDriver(LingeringDriver, PolledFakeDriver):
    """A lingering driver that the event loop polls."""

    def __init__(self, *, lingers: bool = True) -> None:
        PolledFakeDriver.__init__(self, manual=True)
        self.lingers = lingers
        self.told = []
        self.hurry_error = None
        self._hurries = False
