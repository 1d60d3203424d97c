"""Parts that all commands share: exit codes, error messages, and the start and end of a run."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import anyio.abc

from ._streams import emit
from ._text import printable

__all__ = [
    "COMPLETE",
    "EXTRA",
    "FAILED",
    "INCOMPLETE",
    "LOOPS",
    "USAGE",
    "MissingExtra",
    "complain",
    "ending_signals",
    "interrupted",
    "print_report",
    "require",
    "require_loop",
    "run_on",
    "until_terminated",
]

#: The exit codes. The help of each command says what they mean.
COMPLETE: Final = 0
INCOMPLETE: Final = 1
USAGE: Final = 2
FAILED: Final = 3

#: The event loops that a command may be told to run on.
LOOPS: Final = ("asyncio", "trio", "uvloop")

#: How to install the command line's packages.
EXTRA: Final = 'pip install ".[cli]" in a checkout of anyio-sendproducer'

#: How to install the event loops that are not in the standard library.
_LOOP_PACKAGES: Final = {
    "trio": 'pip install ".[trio]" in a checkout of anyio-sendproducer',
    "uvloop": "pip install uvloop",
}


class MissingExtra(Exception):
    """A package that a command needs is not installed."""


def require(who: str, remedy: str, *modules: str) -> None:
    """Import modules, before the event loop runs.

    Args:
        who: the part that needs them, such as "the demo".
        remedy: how to install them.
        modules: their full names.

    Raises:
        MissingExtra: a module is missing; the message names its package and the remedy.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]
            raise MissingExtra(f"{who} needs the package {package}: {remedy}") from error


def require_loop(who: str, loop: str) -> None:
    """Import the package of an event loop; see :func:`require`."""
    if loop in _LOOP_PACKAGES:
        require(who, _LOOP_PACKAGES[loop], loop)


def run_on(loop: str, function: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Run an async function on a new event loop, and return its exit code.

    Args:
        loop: one of ``LOOPS``.
        function: the function, which returns the exit code.
        arguments: its arguments.
    """
    if loop == "uvloop":
        return anyio.run(
            function, *arguments, backend="asyncio", backend_options={"use_uvloop": True}
        )
    return anyio.run(function, *arguments, backend=loop)


def complain(error: BaseException | str, code: int) -> int:
    """Print an error and its notes on standard error, and return the exit code. Never raises."""
    lines = (f"anyio-sendproducer: {error}", *getattr(error, "__notes__", ()))
    emit(sys.stderr, "".join(f"{printable(line)}\n" for line in lines))
    return code


def print_report(text: str) -> None:
    """Print a command's result on standard output, or on standard error if that fails. Never
    raises."""
    error = emit(sys.stdout, text)
    if error is not None:
        reason = getattr(error, "strerror", None) or error
        complain(f"standard output can't be written to ({reason}); the result follows:", FAILED)
        emit(sys.stderr, text)


def interrupted(signal_number: int) -> int:
    """Print that a signal came, and return the exit code that shells use: 128 plus the signal's
    number."""
    return complain("interrupted", 128 + signal_number)


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command cleanly. Under nohup, SIGHUP stays ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


async def until_terminated(function: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Call the function, and cancel it when a signal comes, so that it can clean up.

    Without this, SIGTERM and SIGHUP would end this process, but not a broker that it started. On
    one of the loops, the KeyboardInterrupt of SIGINT would be raised inside an exception group.
    """
    code = FAILED

    async def cancel_on_signal(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            task_status.started()
            async for number in signals:
                code = interrupted(number)
                task_group.cancel_scope.cancel()

    async with anyio.create_task_group() as task_group:
        # On Windows, asyncio cannot receive signals; Ctrl-C raises KeyboardInterrupt.
        if sys.platform != "win32":  # pragma: no branch
            await task_group.start(cancel_on_signal)
        code = await function(*arguments)
        task_group.cancel_scope.cancel()
    return code
