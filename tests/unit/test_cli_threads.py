"""The state that tasks of the command line share with the threads of their blocking calls."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, cast

from anyio_sendproducer import Persistence
from anyio_sendproducer.cli import _produce
from anyio_sendproducer.cli._failed import Failure
from anyio_sendproducer.testing import Gate
from tests.support.calls import Call, at_gate, quiet, task_group


class SlowFile:
    """A file of failed records whose write stops at a gate, in its thread."""

    lost = 0

    def __init__(self) -> None:
        self.gate = Gate()
        self.written: list[Failure] = []

    def write(self, failures: Sequence[Failure]) -> None:
        self.gate.pass_through()
        self.written += failures


async def test_failures_are_written_once_if_the_write_is_cancelled() -> None:
    """A cancelled task still waits for its thread, before this or another task continues."""
    file = SlowFile()
    order: Any = types.SimpleNamespace(fail_fast=False)
    job = _produce._Job(order, cast("Any", None), cast("Any", file), shows=False)
    failure = Failure("in", 1, b"no record", "r", "E", Persistence.NOT_PERSISTED)
    file.gate.shut()
    async with task_group() as tasks:
        writing = Call(tasks, job._write_down, [failure])
        await at_gate(file.gate)
        writing.scope.cancel()
        await quiet()
        assert writing.running
        file.gate.open()
        await writing.wait()
    assert file.written == [failure]
    job.settle_rest()
    assert file.written == [failure]
