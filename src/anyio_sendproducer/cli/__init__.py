"""The command ``anyio-sendproducer``.

``--version`` needs only the core of this package, and so does the message that names a package that
is not installed. The commands need the extra ``cli``. They import other packages when they run.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Sequence
from typing import Final, cast

from ._running import EXTRA, USAGE, MissingExtra, complain, interrupted, require
from ._streams import steady_streams

__all__ = ["main"]

_DISTRIBUTION: Final = "anyio-sendproducer"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the words after the command's name; None: the arguments of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: a shell asks for the completion of a word.
    """
    with steady_streams():
        try:
            return _main(sys.argv[1:] if arguments is None else [*arguments])
        except KeyboardInterrupt:  # before the command runs, for example at the password's prompt
            return interrupted(signal.SIGINT)


def _main(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"{_DISTRIBUTION} {_version()}")
        return 0
    try:
        require("the command line", EXTRA, "click")
    except MissingExtra as error:
        return complain(error, USAGE)
    import click

    from ._commands import command

    try:
        code = command.main(words, prog_name=_DISTRIBUTION, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        # Click replaces KeyboardInterrupt and EOFError by it.
        raise error.__cause__ or error from None
    return cast("int", code)


def _version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
