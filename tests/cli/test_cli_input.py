"""How ``produce`` reads a pipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anyio_sendproducer.cli._chunks import Chunk, Layout
from anyio_sendproducer.cli._input import Input
from tests.support.calls import task_group
from tests.support.waiting import until

LINES = Layout(topic="t")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input"


async def test_a_pipe_is_read_until_the_source_is_stopped(path: Path) -> None:
    os.mkfifo(path)
    source = Input(str(path), LINES)
    found: list[Chunk] = []

    async def gather() -> None:
        found.extend([chunk async for chunk in source.chunks()])

    async def until_read(count: int) -> None:
        await until(lambda: source._position >= count)

    async with task_group() as tasks:
        tasks.start_soon(gather)
        # The reader opens the pipe at once, although it has no writer yet.
        await until(lambda: source._descriptor != 0)
        writing = os.open(path, os.O_WRONLY)
        os.write(writing, b"one\nhalf of ")
        await until_read(12)
        os.write(writing, b"two")
        await until_read(15)
        source.stop()
    os.close(writing)
    first, last = found
    assert [record.value for record in first.records] == [b"one"]
    assert [(one.line, one.what, one.reason) for one in last.failures] == [
        (2, b"half of two", "the end of the line was not read")
    ]
    assert not source.ended
