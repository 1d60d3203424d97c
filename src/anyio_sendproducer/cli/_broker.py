"""``anyio-sendproducer broker``: the embedded broker, until a signal ends it."""

from __future__ import annotations

from typing import Final

import anyio

from ..testing import EmbeddedBroker, EmbeddedBrokerError, embedded_broker
from ._running import COMPLETE, FAILED, complain, run_on, until_terminated

__all__ = ["run"]

#: Seconds between two looks whether it is still there.
_LOOK: Final = 0.2

#: What a signal's exit code is above.
_SIGNALLED: Final = 128


def run(port: int | None) -> int:
    """Run the broker, and print where it is.

    Args:
        port: where it listens; None for a port that is free.

    Returns:
        ``COMPLETE`` when a signal ended it, as it is to; ``FAILED`` where it did not come up, or
        ended by itself.
    """
    try:
        return _meant(run_on("asyncio", until_terminated, _serve, port))
    except KeyboardInterrupt:  # before the loop listens to signals, and where it can't
        return COMPLETE


def _meant(code: int) -> int:
    """A signal is how it is to end."""
    return COMPLETE if code > _SIGNALLED else code


async def _serve(port: int | None) -> int:
    try:
        async with embedded_broker(port=port) as broker:
            print(
                f"A broker listens at {broker}. It keeps all in memory, creates topics as they are "
                "used, and ends with Ctrl-C.",
                flush=True,
            )
            await _until_it_ends(broker)
    except EmbeddedBrokerError as error:
        complain(error, FAILED)
    return FAILED  # it ends by a signal, or not as it is to


async def _until_it_ends(broker: EmbeddedBroker) -> None:
    while broker.running:  # noqa: ASYNC110  # no event tells
        await anyio.sleep(_LOOK)
