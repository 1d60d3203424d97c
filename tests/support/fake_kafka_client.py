"""A kafka-python driver that is open on a fake client."""

from __future__ import annotations

from typing import Any

from anyio_sendproducer import ProducerSettings
from anyio_sendproducer.drivers.kafka_python import _driver
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from tests.support.recorder import Recorder

__all__ = ["opened_on"]


def opened_on(
    settings: ProducerSettings, producer: Any, client: Any, transactions: Any = None
) -> KafkaPythonDriver:
    """Make a driver, as it is after ``open()``, with this KafkaProducer and network client."""
    driver = KafkaPythonDriver(settings)
    stalled: Any = None
    driver._opened = _driver._Opened(
        producer=producer,
        append=None,
        is_broken=None,
        hurry=None,
        client=client,
        stalled=stalled,
        sink=Recorder(),
        transactions=transactions,
    )
    return driver
