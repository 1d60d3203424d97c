"""Runs the outbox example, and kills its own process at a stage of a transaction, as a crash does.

``python killed_outbox.py STAGE TIMES DATABASE NAME BACKEND``: the process kills itself when it
reaches the stage for the TIMES-th time. Only transactions with rows count.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio

from anyio_sendproducer import Transaction
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.kafka_python._transactions import Transactions

EXAMPLE: Final = Path(__file__).parents[2] / "examples/outbox.py"

#: Rows in a transaction, so that there are several transactions.
BATCH: Final = 20

#: The stages at which the process can be killed, in the order of a transaction.
STAGES: Final = (
    "rows read",
    "first record handed over",
    "records acknowledged",
    "commit requested",
    "commit answered",
    "rows about to be forgotten",
    "rows forgotten",
)


class Killer:
    """Kills this process when it reaches the stage for the given number of times."""

    def __init__(self, stage: str, times: int) -> None:
        self._stage = stage
        self._left = times

    def reached(self, stage: str) -> None:
        """Note that the program has reached a stage."""
        if stage == self._stage:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def watch(killer: Killer, outbox: dict[str, Any]) -> None:
    """Have the example, the transaction and the driver report the stages."""
    read_rows: Callable[..., Any] = outbox["read_rows"]
    forget_rows: Callable[..., Any] = outbox["forget_rows"]
    send_many: Any = Transaction.send_many

    def reading(*arguments: Any) -> Any:
        rows = read_rows(*arguments)
        if rows:
            killer.reached("rows read")
        return rows

    def forgetting(*arguments: Any) -> None:
        killer.reached("rows about to be forgotten")
        forget_rows(*arguments)
        killer.reached("rows forgotten")

    async def sending(self: Transaction, records: Any) -> Any:
        found = await send_many(self, records)
        killer.reached("records acknowledged")
        return found

    outbox["read_rows"] = reading
    outbox["forget_rows"] = forgetting
    setattr(Transaction, "send_many", sending)  # noqa: B010  # type checkers know better
    watch_driver(killer)


def watch_driver(killer: Killer) -> None:
    """Have the driver report the stages that only it knows."""
    submit: Any = KafkaPythonDriver.submit
    end: Any = KafkaPythonDriver.end_transaction
    wait: Any = Transactions._wait
    has_records = False

    def submitting(self: Any, batch: Any) -> Any:
        nonlocal has_records
        found = submit(self, batch)
        if not has_records:
            has_records = True
            killer.reached("first record handed over")
        return found

    def ending(self: Any, *arguments: Any) -> None:
        nonlocal has_records
        end(self, *arguments)
        if has_records:
            has_records = False
            killer.reached("commit answered")

    def waiting(self: Any, *arguments: Any) -> Any:
        # The client has taken the request. Its own thread may have sent it, or not yet.
        if has_records:
            killer.reached("commit requested")
        return wait(self, *arguments)

    for owner, name, function in (
        (KafkaPythonDriver, "submit", submitting),
        (KafkaPythonDriver, "end_transaction", ending),
        (Transactions, "_wait", waiting),
    ):
        setattr(owner, name, function)


def main(stage: str, times: str, database: str, name: str, backend: str) -> None:
    """Run the example until it reaches the stage."""
    if stage not in STAGES:
        raise ValueError(stage)
    spec = importlib.util.spec_from_file_location("outbox", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The example's functions find each other in this namespace.
    outbox = vars(module)
    outbox["BATCH"] = BATCH
    watch(Killer(stage, int(times)), outbox)
    anyio.run(partial(outbox["main"], Path(database), name), backend=backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
