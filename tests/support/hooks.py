"""Hooks of the user that raise, and a record that fails alone by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyio_sendproducer import DeliveryError, ProducerRecord, SendProducer

__all__ = ["ERRORS", "PanicException", "fails_alone", "raising"]


class PanicException(BaseException):
    """As extensions written in Rust raise it."""


ERRORS = [KeyboardInterrupt, SystemExit, GeneratorExit, PanicException]


async def fails_alone(
    producer: SendProducer, bad: ProducerRecord[Any, Any], good: ProducerRecord[Any, Any]
) -> DeliveryError:
    """Send a bad record among good ones, which are delivered. Returns: the error of the bad one."""
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
