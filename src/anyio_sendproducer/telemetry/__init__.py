"""Observers, and the events of records and clients that a producer passes to them.

::

    from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
    from anyio_sendproducer.telemetry import LoggingObserver

    settings = ProducerSettings(bootstrap_servers="localhost:9092")
    async with open_send_producer(settings, observers=[LoggingObserver()]) as producer:
        await producer.send(ProducerRecord("orders", b"..."))
"""

from ._events import (
    Accepted,
    Batch,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Given,
    HandedOver,
    Injector,
    Observer,
    Refused,
    Withdrawn,
)
from ._logging import LoggingObserver
from ._otel import OpenTelemetryObserver

__all__ = [
    "Accepted",
    "Batch",
    "BatchEnded",
    "Closing",
    "Delivered",
    "Event",
    "Failed",
    "GenerationEnded",
    "GenerationOpened",
    "Given",
    "HandedOver",
    "Injector",
    "LoggingObserver",
    "Observer",
    "OpenTelemetryObserver",
    "Refused",
    "Withdrawn",
]
