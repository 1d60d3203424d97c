"""``anyio-sendproducer broker``: runs the embedded broker until a signal ends it."""

from __future__ import annotations

from typing import Final

import anyio

from ..testing import EmbeddedBroker, EmbeddedBrokerError, embedded_broker
from ._running import COMPLETE, FAILED, complain, run_on, until_terminated

__all__ = ["run"]

#: Seconds between two checks whether the broker still runs.
_CHECK: Final = 0.2

#: The exit code after a signal is this plus the signal's number.
_SIGNALLED: Final = 128


def run(port: int | None) -> int:
    """Run the broker, and print its address.

    Args:
        port: the port to listen on; None: a free port.

    Returns:
        ``COMPLETE`` if a signal ended it, which is its usual end; ``FAILED`` if it did not start,
        or ended by itself.
    """
    try:
        return _without_signal(run_on("asyncio", until_terminated, _serve, port))
    except KeyboardInterrupt:  # before the loop receives signals, or on Windows
        return COMPLETE


def _without_signal(code: int) -> int:
    """The exit code, in which a signal is a good end."""
    return COMPLETE if code > _SIGNALLED else code


async def _serve(port: int | None) -> int:
    try:
        async with embedded_broker(port=port) as broker:
            print(
                f"A broker listens at {broker}. It keeps all records in memory and creates topics "
                "on first use. Ctrl-C ends it.",
                flush=True,
            )
            await _until_it_ends(broker)
    except EmbeddedBrokerError as error:
        complain(error, FAILED)
    return FAILED  # only a signal is a good end


async def _until_it_ends(broker: EmbeddedBroker) -> None:
    while broker.running:  # noqa: ASYNC110  # it has no event
        await anyio.sleep(_CHECK)
