"""A kafka-python driver that is open on a fake client."""

from __future__ import annotations

from typing import Any

from anyio_sendproducer import ProducerSettings
from anyio_sendproducer.drivers.kafka_python import _driver
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.kafka_python._outcomes import Outcomes
from anyio_sendproducer.drivers.kafka_python._transactions import Transactions
from tests.support.recorder import Recorder

__all__ = ["opened_on"]


def opened_on(
    settings: ProducerSettings, producer: Any, client: Any, manager: Any = None
) -> KafkaPythonDriver:
    """Make a driver in its state after ``open()``, with this KafkaProducer, network client and
    transaction manager."""
    driver = KafkaPythonDriver(settings)
    sink = Recorder()
    owned = Transactions(settings, producer, manager, client, driver._closing)
    driver._opened = _driver._Opened(
        producer=producer,
        append=None,
        hurry=None,
        client=client,
        sink=sink,
        outcomes=Outcomes(
            sink, set(), None, driver._closing.is_set, owned, is_idempotent=False, recovers=True
        ),
        transactions=owned,
    )
    return driver
