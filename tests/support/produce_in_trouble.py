"""``produce`` as a process with a fake driver, in which something goes wrong.

Run it with ``python -m tests.support.produce_in_trouble``, then:

- the path of a log, which gets the value of each delivered record;
- the number of records to deliver before the driver stops to acknowledge;
- the name of a fault in the process, or ``none``;
- the arguments of the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio.to_thread

from anyio_sendproducer import ProducerSettings, SendProducer, cli, open_send_producer
from anyio_sendproducer.cli import _display, _failed, _input, _parsing, _produce
from anyio_sendproducer.drivers import Submission, Submitted
from anyio_sendproducer.testing import FakeDriver

__all__ = ["FAULTS"]

#: Unexpected errors, each in another place. The first call of a function succeeds.
FAULTS: Final = ("none", "display", "file", "parser", "reader", "record", "sender", "statistics")


class _Driver(FakeDriver):
    """A fake driver that logs delivered records, and stops to acknowledge after some records."""

    def __init__(self, log: str, limit: int) -> None:
        super().__init__(manual=True)
        self._log_path = log
        self._log = -1
        self._left = limit
        self.judge = self._note

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        answer = super().submit(batch)
        self._left -= self.acknowledge(self._left)
        return answer

    def _note(self, record: Any) -> None:
        if self._log < 0:
            # Opened only now, because this file must not get the number of a closed standard
            # stream.
            self._log = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._log, record.value + b"\n")


def _second(function: Callable[..., Any], *, ends: int | None = None) -> Callable[..., Any]:
    """Make a function that raises from the second call on, up to the call ``ends``."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1 and (ends is None or calls <= ends):
            raise RuntimeError("a fault of the test")
        return function(*arguments, **options)

    return call


def _break(fault: str) -> None:
    match fault:
        case "display":
            setattr(_display.Bar, "show", _second(_display.Bar.show))  # noqa: B010
        case "file":
            write = _second(_failed.FailedFile.write, ends=2)
            setattr(_failed.FailedFile, "write", write)  # noqa: B010
        case "parser":
            setattr(_parsing._Jsonl, "parse", _second(_parsing._Jsonl.parse))  # noqa: B010
        case "record":
            setattr(_parsing._Jsonl, "_record", _second(_parsing._Jsonl._record))  # noqa: B010
        case "reader":
            run_sync = anyio.to_thread.run_sync
            failing = _second(run_sync)

            async def run(function: Any, *arguments: Any, **options: Any) -> Any:
                is_reader = getattr(function, "__name__", "") == "_step"
                return await (failing if is_reader else run_sync)(function, *arguments, **options)

            setattr(anyio.to_thread, "run_sync", run)  # noqa: B010
        case "sender":
            setattr(SendProducer, "send_many", _second(SendProducer.send_many))  # noqa: B010
        case "statistics":
            setattr(SendProducer, "statistics", _second(SendProducer.statistics))  # noqa: B010
        case _:
            assert fault == "none"


def _main() -> int:
    log, limit, fault, *arguments = sys.argv[1:]
    driver = _Driver(log, int(limit))

    def opened(settings: ProducerSettings, **_: Any) -> Any:
        return open_send_producer(settings, driver=lambda _: driver)

    setattr(_produce, "open_send_producer", opened)  # noqa: B010
    # So that a short input is read, parsed and sent several times.
    setattr(_input, "_PIECE", 400)  # noqa: B010
    _break(fault)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(_main())
