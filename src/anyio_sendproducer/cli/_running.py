"""What all commands have in common: exit codes, complaints, and how a run begins and ends."""

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

#: The exit codes; what each of them means for a command, its help says.
COMPLETE: Final = 0
INCOMPLETE: Final = 1
USAGE: Final = 2
FAILED: Final = 3

#: The event loops that a command may be told to run on.
LOOPS: Final = ("asyncio", "trio", "uvloop")

#: What to do where the command line's packages are missing.
EXTRA: Final = 'pip install "anyio-sendproducer[cli]"'

#: What brings each loop that does not come by itself.
_LOOP_PACKAGES: Final = {
    "trio": 'pip install "anyio-sendproducer[trio]"',
    "uvloop": "pip install uvloop",
}


class MissingExtra(Exception):
    """A package that a command needs is not installed."""


def require(who: str, remedy: str, *modules: str) -> None:
    """See that modules can be imported, before the loop runs, and import them.

    Args:
        who: what needs them, as in "the demo".
        remedy: what to do about it.
        modules: their full names.

    Raises:
        MissingExtra: one can't; the message names its package and the remedy.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]
            raise MissingExtra(f"{who} needs the package {package}: {remedy}") from error


def require_loop(who: str, loop: str) -> None:
    """The same for what a loop is in."""
    if loop in _LOOP_PACKAGES:
        require(who, _LOOP_PACKAGES[loop], loop)


def run_on(loop: str, function: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Run a function to its end on a loop of its own.

    Args:
        loop: one of ``LOOPS``.
        function: what to run; it gives the exit code.
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
    """Print a command's result on standard output, or on standard error if that takes nothing.
    Never raises."""
    error = emit(sys.stdout, text)
    if error is not None:
        reason = getattr(error, "strerror", None) or error
        complain(f"standard output can't be written to ({reason}); it follows here:", FAILED)
        emit(sys.stderr, text)


def interrupted(signal_number: int) -> int:
    """Say so, and give the exit code that shells use: 128 and the signal's number."""
    return complain("interrupted", 128 + signal_number)


def ending_signals() -> list[signal.Signals]:
    """The signals that end a command in order. SIGHUP is left alone under nohup."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


async def until_terminated(function: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Call the function; where a signal comes, cancel it, so that what it started is ended too.

    SIGTERM and SIGHUP would end this process alone. SIGINT would come out of the task group in an
    exception group on one of the loops.
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
        # asyncio can't receive signals there; Ctrl-C works all the same, as KeyboardInterrupt.
        if sys.platform != "win32":  # pragma: no branch
            await task_group.start(cancel_on_signal)
        code = await function(*arguments)
        task_group.cancel_scope.cancel()
    return code
