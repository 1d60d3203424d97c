"""kafka-python's own producer, for tests that show its behaviour without the product."""

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

#: Seconds to wait before a test concludes that something never happens. The client under test makes
#: no progress in this time or afterwards.
NEVER = 0.3

# kafka-python has no types, so every name imported from it is Any.
kafka: Any = importlib.import_module("kafka")


def nothing(*_: object, **__: object) -> None:
    """Replaces some methods of the bare client."""


# Unchanged, except that its garbage collection does not disable the client's logger for the tests
# that follow.
BareProducer: Any = type("KafkaProducer", (kafka.KafkaProducer,), {"__del__": nothing})


@contextlib.contextmanager
def bare(servers: str | MockCluster, **configs: Any) -> Generator[Any, None, None]:
    """Open kafka-python's own producer, and end it in the one way that works even if it hangs."""
    if isinstance(servers, MockCluster):
        configs = {**FOR_MOCK, **configs}
        servers = servers.bootstrap_servers
    producer = BareProducer(bootstrap_servers=servers, **configs)
    try:
        yield producer
    finally:
        producer.flush = nothing  # close() starts with it, and raises if it takes too long
        producer.close(0)
        producer._sender.join(PATIENCE)
        # The caller still references the producer. Without this, its sockets would live as long,
        # and be collected during another test.
        cast("dict[str, Any]", vars(producer)).clear()


@contextlib.contextmanager
def leaking_sockets() -> Generator[None, None, None]:
    """Collect the sockets that the block leaves open, and ignore their ResourceWarnings."""
    # The records of these logs would keep references to them.
    logs = [logging.getLogger(name) for name in ("kafka.net", "kafka.cluster")]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    gc.disable()  # otherwise a later collection would warn of them
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
    """Whether a future of kafka-python completes in time."""
    deadline = time.monotonic() + seconds
    while not future.is_done and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(future.is_done)


def hurry(producer: Any, milliseconds: int) -> None:
    """Set a delivery_timeout_ms of a bare client that its first record could miss."""
    producer._accumulator.config["delivery_timeout_ms"] = milliseconds
