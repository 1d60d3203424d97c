"""Ends the start_timeout of a driver when a test says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from anyio_sendproducer.drivers.kafka_python import _describe, _metadata, _network
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python import _transactions as _kafka_transactions
from anyio_sendproducer.drivers.librdkafka import _driver as _librdkafka
from anyio_sendproducer.drivers.librdkafka import _tokens, _transactions

__all__ = ["LONG", "Hourglass"]

#: A start_timeout that does not pass during a test.
LONG = 240.0


class Hourglass:
    """The clock of both drivers. When a condition holds, a start_timeout of LONG seconds has
    passed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_out: Callable[[], object] = lambda: False
        for module in (
            _describe,
            _kafka_python,
            _kafka_transactions,
            _librdkafka,
            _metadata,
            _network,
            _tokens,
            _transactions,
        ):
            monkeypatch.setattr(module, "time", self)

    def run_out_when(self, is_out: Callable[[], object]) -> None:
        """Set the condition."""
        self._is_out = is_out

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        """Replaces `time.monotonic` for a driver."""
        return time.monotonic() + (2 * LONG if self._is_out() else 0)
