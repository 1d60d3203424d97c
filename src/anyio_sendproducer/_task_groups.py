"""The policy on exceptions of all blocks that have tasks behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

__all__ = ["plain_task_group"]


@asynccontextmanager
async def plain_task_group() -> AsyncGenerator[anyio.abc.TaskGroup]:
    """A task group for tasks that raise nothing: what its block raised leaves as it is.

    The group itself would wrap it, so it is kept out of the group's sight and raised again when
    the group has ended.
    """
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except BaseException as error:  # noqa: BLE001  # raised again below
            failure = error
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # it knows this frame
