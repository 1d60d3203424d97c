"""The pipeline in ``examples/``, in its own process."""

from __future__ import annotations

import collections
import json
import sys
from functools import partial

import pytest

from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.example_process import SOON, Example, read, running, until_true

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


async def assert_all_there(broker: EmbeddedBroker, example: Example) -> None:
    """Assert that the last printed counts match the topics, and that no reading is missing."""
    numbers = (
        await example.line(r"^(\d+) readings, (\d+) records, (\d+) alarms, (\d+) broken; the end")
    ).groups()
    readings, records, alarms, broken = map(int, numbers)
    logged = await read(broker, "readings")
    assert len(logged) == readings - broken
    assert len(await read(broker, "alarms")) == alarms
    assert records == len(logged) + alarms
    assert alarms > 0
    assert broken > 0
    of_sensor: dict[bytes | None, list[int]] = collections.defaultdict(list)
    for one in logged:
        of_sensor[one.key].append(json.loads(one.value or b"")["number"])
    assert len(of_sensor) == 3
    missing = 0
    for sent in of_sensor.values():
        assert sent == sorted(set(sent))
        missing += sent[-1] + 1 - len(sent)
    # Each missing reading was broken. The last reading of each sensor may also have been broken.
    assert broken - 3 <= missing <= broken


async def test_the_pipeline_drains_on_ctrl_c(
    broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    arguments = ["--every", "0.0005", "--backend", anyio_backend_name]
    env = {"PIPELINE_BOOTSTRAP_SERVERS": str(broker), "PIPELINE_MAX_IN_FLIGHT": "300"}
    async with running("pipeline.py", *arguments, env=env) as example:
        await until_true(partial(read, broker, "readings"), lambda found: len(found) >= 500)
        broker.pause()
        # The producer is full, and the sensors wait.
        await example.line("; (29[0-9]|300) in flight", after=len(example.printed))
        example.interrupt()
        broker.resume()
        assert await example.code(within=SOON) == 0
        await assert_all_there(broker, example)


async def test_the_pipeline_reports_that_readings_are_missing(
    broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    arguments = ["--every", "0.001", "--backend", anyio_backend_name]
    env = {"PIPELINE_BOOTSTRAP_SERVERS": str(broker), "PIPELINE_CANCEL_TIMEOUT": "0.3"}
    async with running("pipeline.py", *arguments, env=env) as example:
        await until_true(partial(read, broker, "readings"), lambda found: len(found) >= 100)
        broker.pause()
        await example.line("; [1-9][0-9]* in flight", after=len(example.printed))
        example.interrupt()
        await example.line("draining")
        example.interrupt()
        assert await example.code(within=SOON) == 1
        assert "pipeline: not all readings are in Kafka" in example.errors
        broker.resume()
