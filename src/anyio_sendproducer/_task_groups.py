"""The policy on exceptions and tasks of all blocks that have tasks behind them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from ._exceptions import ProducerMisused, add_note

__all__ = ["plain_task_group"]


@asynccontextmanager
async def plain_task_group(misuse: str) -> AsyncGenerator[anyio.abc.TaskGroup]:
    """A task group for tasks that raise nothing: what its block raised leaves as it is.

    The group itself would wrap the exception, so the group does not see it. It is raised again when
    the group has ended.

    Args:
        misuse: the error message if another task leaves the block than the one that entered it. The
            tasks of the group must have ended, or be about to end, at the end of the block: another
            task cannot wait for them.

    Raises:
        ProducerMisused: another task leaves the block, and the block did not fail. If it failed,
            its exception has a note.
    """
    failure: BaseException | None = None
    opener = anyio.get_current_task()
    group = anyio.create_task_group()
    tasks = await group.__aenter__()
    try:
        yield tasks
    except BaseException as error:  # noqa: BLE001  # raised again below
        failure = error
    if anyio.get_current_task() == opener:
        await group.__aexit__(None, None, None)
    elif failure is None or isinstance(failure, GeneratorExit):
        # The cancel scope of the group stays entered. Only the opener could leave it.
        failure = ProducerMisused(misuse)
    else:
        add_note(failure, misuse)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # it knows this frame
