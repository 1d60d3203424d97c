"""A stand-in for the producer in tests of a driver alone: blocking, without an event loop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from anyio_sendproducer import ProducerRecord
from anyio_sendproducer.drivers import Driver, Outcome, PolledDriver

__all__ = [
    "PATIENCE",
    "Parcel",
    "Recorder",
    "asked",
    "learn",
    "open_sockets",
    "submit",
    "submit_all",
]

#: The time limit in seconds of each wait. Each takes only a fraction of it.
PATIENCE = 60.0


class Parcel:
    """A submission that is equal only to itself."""

    def __init__(self, record: ProducerRecord[Any, Any], size: int = 100) -> None:
        self.record = record
        self.size = size

    def __repr__(self) -> str:
        return f"Parcel({self.record!r})"


class Recorder:
    """A sink that records the driver's calls, and lets a test wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.reports: list[tuple[Parcel, Outcome]] = []
        self.metadata_changes = 0
        self.breaks: list[BaseException] = []
        self.bell = threading.Event()

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        with self._changed:
            assert len(submissions) == len(outcomes)
            self.reports.extend(zip(submissions, outcomes, strict=True))
            self._changed.notify_all()

    def metadata_changed(self) -> None:
        with self._changed:
            self.metadata_changes += 1
            self._changed.notify_all()

    def broken(self, error: BaseException, /) -> None:
        with self._changed:
            self.breaks.append(error)
            self._changed.notify_all()

    def ready(self) -> None:
        self.bell.set()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), self.reports

    def wait_for_change_after(self, changes: int) -> None:
        self.wait(lambda: self.metadata_changes > changes)

    def outcomes_of(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        """Wait until all have an outcome, and return the outcomes. Each has exactly one, and no
        other parcel has any."""
        self.wait(lambda: len(self.reports) >= len(parcels))
        found = {id(parcel): outcome for parcel, outcome in self.reports}
        assert len(found) == len(self.reports) == len(parcels)
        return [found[id(parcel)] for parcel in parcels]


@contextlib.contextmanager
def asked(driver: Driver, recorder: Recorder) -> Generator[None]:
    """During the block, poll a polled driver whenever it rings the bell."""
    if not isinstance(driver, PolledDriver):
        yield
        return
    polled = driver
    done = False

    def ask() -> None:
        while True:
            recorder.bell.clear()
            if done:  # checked after the bell was cleared, so that the end is never missed
                return
            reported = len(recorder.reports)
            if not polled.poll(7) or len(recorder.reports) == reported:
                polled.watch()
                recorder.bell.wait(PATIENCE)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done = True
        recorder.bell.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def learn(driver: Driver, recorder: Recorder, topic: str) -> frozenset[int]:
    """Wait until the driver has a topic's metadata."""
    while True:
        changes = recorder.metadata_changes
        partitions = driver.partitions_for(topic)
        if partitions is not None:
            return partitions
        if not isinstance(driver, PolledDriver):  # it does not report changes, and waits by itself
            recorder.wait_for_change_after(changes)


def _submit_once(driver: Driver, parcels: Sequence[Parcel]) -> Sequence[Parcel]:
    """Submit, and have the client watched, as the loop does. Returns: the records given back."""
    held: Sequence[Parcel] = driver.submit(parcels).held
    if isinstance(driver, PolledDriver):
        driver.watch()
    return held


def submit_all(driver: Driver, parcels: Sequence[Parcel]) -> None:
    """Submit records of which none is given back."""
    assert _submit_once(driver, parcels) == []


def submit(driver: Driver, recorder: Recorder, parcels: Sequence[Parcel]) -> None:
    """Submit, and resubmit records that are given back, until all are accepted."""
    while parcels:
        changes = recorder.metadata_changes
        parcels = _submit_once(driver, parcels)
        if parcels:
            recorder.wait_for_change_after(changes)


def open_sockets() -> set[str]:
    """List the open sockets of this process; none if there is no /proc."""
    found: set[str] = set()
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the file that this loop itself had open
            found.add(str(link.readlink()))
    return {name for name in found if name.startswith("socket:")}
