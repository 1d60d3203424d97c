"""Task groups whose exceptions are raised without an exception group."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from ._exceptions import ProducerMisused, add_note

__all__ = ["plain_task_group", "raise_first"]


@asynccontextmanager
async def plain_task_group(misuse: str) -> AsyncGenerator[anyio.abc.TaskGroup]:
    """Open a task group whose tasks raise nothing. The block's exception is raised unchanged.

    A task group would wrap the exception in an exception group. So it is hidden from the group, and
    raised again when the group has ended, even if the caller is cancelled while the group ends.

    Args:
        misuse: the error message if the block is left by a different task than the one that entered
            it. The task that leaves the block can't wait for the tasks of the group. So the caller
            must have told those tasks to end.

    Raises:
        ProducerMisused: the block was left by a different task, and raised no exception. If it
            raised one, that exception has a note.
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
        cancelled = anyio.get_cancelled_exc_class()
        try:
            await group.__aexit__(None, None, None)
        except cancelled:
            # Also a task group raises the exception of its block rather than this cancellation.
            if failure is None or isinstance(failure, cancelled):
                raise
    elif failure is None or isinstance(failure, GeneratorExit):
        # The cancel scope of the group is never exited. Only the opener could exit it.
        failure = ProducerMisused(misuse)
    else:
        add_note(failure, misuse)
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame


def raise_first(failures: list[Exception]) -> None:
    """Raise the first of the errors that the tasks of a group have put into a list, if any.

    The list is emptied, because the error's traceback refers to a frame that refers to the list.
    """
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()
