"""Runs the outbox example, and kills its process at a chosen moment, as a crash does.

``python killed_outbox.py MOMENT TIMES DATABASE NAME BACKEND``: the process ends by SIGKILL when it
comes to the moment for the so many-th time. ``later`` is so many milliseconds after the first look
at the table.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import anyio

from anyio_sendproducer import Transaction
from tests.support.paths import ROOT

EXAMPLE: Final = ROOT / "examples/outbox.py"

#: Rows in a transaction, so that there are several.
BATCH: Final = 20


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_after(milliseconds: int) -> None:
    time.sleep(milliseconds / 1_000)
    die()


def at(moment: str, times: int, outbox: dict[str, Any]) -> None:
    """Prepare the end."""
    left = times

    def counted() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            counted()
            return result

        return call

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counted()
            return function(*arguments)

        return call

    send_many: Any = Transaction.send_many
    end: Any = Transaction._end

    async def sent(self: Transaction, records: Any) -> Any:
        found = await send_many(self, records)
        counted()
        return found

    async def end_and_die(self: Transaction, deadline: Any, *, commit: bool) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            # While the commit is on its way, and a little later each time.
            threading.Thread(target=die_after, args=(times,), daemon=True).start()
        await end(self, deadline, commit=commit)

    def later(function: Callable[..., Any]) -> Callable[..., Any]:
        timer = threading.Thread(target=die_after, args=(times,), daemon=True)

        def call(*arguments: Any) -> Any:
            if not timer.is_alive():
                timer.start()
            return function(*arguments)

        return call

    match moment:
        case "rows read":
            outbox["read_rows"] = after(outbox["read_rows"])
        case "records sent":
            setattr(Transaction, "send_many", sent)  # noqa: B010  # type checkers know better
        case "committing":
            setattr(Transaction, "_end", end_and_die)  # noqa: B010
        case "committed":
            outbox["forget_rows"] = before(outbox["forget_rows"])
        case "rows forgotten":
            outbox["forget_rows"] = after(outbox["forget_rows"])
        case "later":
            outbox["read_rows"] = later(outbox["read_rows"])
        case _:
            raise ValueError(moment)


def main(moment: str, times: str, database: str, name: str, backend: str) -> None:
    spec = importlib.util.spec_from_file_location("outbox", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its functions look each other up there.
    outbox = vars(module)
    outbox["BATCH"] = BATCH
    at(moment, int(times), outbox)
    anyio.run(partial(outbox["main"], Path(database), name), backend=backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
