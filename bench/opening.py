"""Measure how long a client takes to open, to send its first and its next record, and to close."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

#: The measured stages, in order.
STAGES = ("opening", "first_record", "next_record", "closing")

Client = Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Any]]]]
"""Opens a client, yields a function that sends one record and awaits it, and closes the client."""


async def run(client: Client, times: int) -> Iterator[tuple[str, float]]:
    """Open and close a client this many times.

    Returns:
        The milliseconds of each stage: the medians, and the values of the first time
        (``cold_...``), when the client also imports modules. The medians exclude the first time,
        unless it is the only one.
    """
    found = [await _once(client) for _ in range(times)]
    warm = found[1:] or found
    medians = (statistics.median(column) for column in zip(*warm, strict=True))
    names = [f"{stage}_ms" for stage in STAGES]
    return zip([*names, *(f"cold_{name}" for name in names)], [*medians, *found[0]], strict=True)


async def _once(client: Client) -> list[float]:
    marks = [time.perf_counter()]
    async with client() as send:
        marks.append(time.perf_counter())
        for _ in range(2):
            await send()
            marks.append(time.perf_counter())
    marks.append(time.perf_counter())
    return [(end - begin) * 1e3 for begin, end in itertools.pairwise(marks)]
