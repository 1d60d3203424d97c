"""kafka-python's own producer, for tests that show what it does by itself."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import time
import warnings
from collections.abc import Generator
from typing import Any, cast

from anyio_sendproducer.testing import MockCluster
from tests.support.mock_cluster import FOR_MOCK
from tests.support.recorder import PATIENCE

__all__ = ["NEVER", "BareProducer", "bare", "hurry", "leaking_sockets", "settles"]

#: Seconds to wait before a test concludes that something never happens: the client under test does
#: not move in the meantime, nor does it afterwards.
NEVER = 0.3

# kafka-python has no types: whatever is taken from it here is Any.
kafka: Any = importlib.import_module("kafka")


def nothing(*_: object, **__: object) -> None:
    """What some methods of the bare client do here."""


# As it comes, but that its collection as garbage does not silence the client's logger for the
# tests that follow.
BareProducer: Any = type("KafkaProducer", (kafka.KafkaProducer,), {"__del__": nothing})


@contextlib.contextmanager
def bare(servers: str | MockCluster, **configs: Any) -> Generator[Any, None, None]:
    """kafka-python's own producer; ended in the one way that works, whatever it hangs in."""
    if isinstance(servers, MockCluster):
        configs = {**FOR_MOCK, **configs}
        servers = servers.bootstrap_servers
    producer = BareProducer(bootstrap_servers=servers, **configs)
    try:
        yield producer
    finally:
        producer.flush = nothing  # close() begins with it, and raises where it takes too long
        producer.close(0)
        producer._sender.join(PATIENCE)
        # The caller still has the producer: its sockets must not stay in memory with it, until
        # they are collected within another test.
        cast("dict[str, Any]", vars(producer)).clear()


@contextlib.contextmanager
def leaking_sockets() -> Generator[None, None, None]:
    """Around what leaves sockets to the collection of garbage."""
    # The records of these logs would keep them from it.
    logs = [logging.getLogger(name) for name in ("kafka.net", "kafka.cluster")]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    gc.disable()  # it would complain of them, whenever it comes
    try:
        yield
    finally:
        for log in logs:
            log.setLevel(logging.NOTSET)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.enable()


def settles(future: Any, seconds: float = PATIENCE) -> bool:
    """Whether a future of kafka-python gets an outcome in time."""
    deadline = time.monotonic() + seconds
    while not future.is_done and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(future.is_done)


def hurry(producer: Any, milliseconds: int) -> None:
    """Give a bare client a delivery_timeout_ms that its first record could miss."""
    producer._accumulator.config["delivery_timeout_ms"] = milliseconds
