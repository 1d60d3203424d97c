"""User hooks that raise, and a check that only one record fails by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyio_sendproducer import DeliveryError, ProducerRecord, SendProducer

__all__ = ["ERRORS", "PanicException", "fails_alone", "raising"]


class PanicException(BaseException):
    """Like the exception that extensions written in Rust raise."""


ERRORS = [KeyboardInterrupt, SystemExit, GeneratorExit, PanicException]


async def fails_alone(
    producer: SendProducer, bad: ProducerRecord[Any, Any], good: ProducerRecord[Any, Any]
) -> DeliveryError:
    """Send a bad record among good ones, check that the good ones are delivered, and return the
    error of the bad one."""
    before = await producer.enqueue(good)
    failed = await producer.enqueue(bad)
    after = await producer.enqueue(good)
    with pytest.raises(DeliveryError) as caught:
        await failed.wait()
    await before.wait()
    await after.wait()
    await producer.send(good)
    return caught.value


def raising(kind: type[BaseException]) -> Callable[[], Any]:
    def choose() -> Any:
        raise kind

    return choose
