"""The open loop: records arrive at a mean rate, no matter how long earlier records take.

Gaps between records are exponential, as between requests of many independent users. The seed is
fixed, so that all clients get the same schedule. Latency starts at the scheduled time of a record,
so it includes the delay of a client that falls behind.

Event loops round the timeouts of their own timers up to milliseconds. That would add half a
millisecond to each latency. So the file descriptor of a Linux timer (``timerfd``) starts the
records, like the sockets of requests in a service. The processor time of threads comes from
``/proc``. So this module needs Linux.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio

#: Seconds in which records are sent before the measurement.
WARM_UP = 0.5
#: The groups of threads that use processor time.
GROUPS = ("loop", "client", "polling")

_MONOTONIC, _ABSOLUTE = 1, 1
_THREADS = Path("/proc/self/task")


def schedule(rate: float, count: int, seed: int = 20) -> list[float]:
    """Return the times of `count` records, in seconds, at a mean rate. The first time is 0."""
    gaps = random.Random(seed)  # noqa: S311  # not for cryptography
    times, now = [0.0], 0.0
    for _ in range(count - 1):
        now += gaps.expovariate(rate)
        times.append(now)
    return times


class Timer:
    """A file descriptor that becomes readable at a given time."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = self._library.timerfd_create(_MONOTONIC, os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "no timer")

    async def wait_until(self, when: float) -> None:
        """Wait until `time.perf_counter` has this value, which on Linux is the monotonic clock."""
        whole = int(when)
        # No interval, and the time, each in seconds and nanoseconds. The time must not be 0, which
        # would switch the timer off.
        setting = (ctypes.c_long * 4)(0, 0, whole, int((when - whole) * 1e9) + 1)
        self._library.timerfd_settime(self._descriptor, _ABSOLUTE, setting, None)
        await anyio.wait_readable(self._descriptor)

    def close(self) -> None:
        """Close the file descriptor."""
        os.close(self._descriptor)


@contextmanager
def _timer() -> Iterator[Timer]:
    timer = Timer()
    try:
        yield timer
    finally:
        timer.close()


async def run(
    times: Sequence[float], begin: Callable[[float], None], send: Callable[[float], object]
) -> None:
    """Start each record at its time.

    Args:
        times: the time of each record, in seconds from now.
        begin: called after the warm-up, with the value of `time.perf_counter` at which the
            measurement starts.
        send: starts a record. It gets the value of `time.perf_counter` at which the record is due.
    """
    start = time.perf_counter()
    place = 0
    with _timer() as timer:
        for end in (bisect_right(times, WARM_UP), len(times)):
            if end == len(times):
                begin(start + WARM_UP)
            while place < end:
                await timer.wait_until(start + times[place])
                # Send all records that are due, so that a late event loop needs only one turn.
                due = bisect_right(times, time.perf_counter() - start, place, end)
                for number in range(place, due):
                    send(start + times[number])
                place = due


def processor_times() -> dict[int, tuple[str, float]]:
    """Return the group and the seconds of processor time of each thread of this process.

    ``loop`` is the main thread, which runs the event loop. ``client`` is the threads of librdkafka,
    which Python does not know, and kafka-python's own thread. ``polling`` is every other thread:
    the driver's threads, or a thread that calls ``poll``.
    """
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().native_id
    times: dict[int, tuple[str, float]] = {}
    for directory in _THREADS.iterdir():
        number = int(directory.name)
        try:
            nanoseconds = int((directory / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:
            continue  # the thread has just ended
        if number == main:
            group = "loop"
        elif number not in names or names[number].endswith("network-thread"):
            group = "client"
        else:
            group = "polling"
        times[number] = group, nanoseconds / 1e9
    return times


def spent(before: dict[int, tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of processor time of each group since a call of `processor_times`."""
    by_group = dict.fromkeys(GROUPS, 0.0)
    for number, (group, seconds) in processor_times().items():
        by_group[group] += seconds - before.get(number, ("", 0.0))[1]
    return by_group
