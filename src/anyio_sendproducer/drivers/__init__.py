"""The protocol of drivers, and the choice of a driver.

A driver adapts one client library to the producer. The library is imported when it is needed.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from .._exceptions import SettingsError
from .._settings import ProducerSettings
from ._partitioning import choose_partition
from ._protocols import (
    BrokerDescription,
    ClusterDescription,
    ConsumedOffset,
    Deadline,
    DescribingDriver,
    DirectDriver,
    Driver,
    DriverFactory,
    LingeringDriver,
    Outcome,
    PolledDriver,
    Sink,
    Submission,
    Submitted,
)
from ._serializing import serialize_record

__all__ = [
    "BrokerDescription",
    "ClusterDescription",
    "ConsumedOffset",
    "Deadline",
    "DescribingDriver",
    "DirectDriver",
    "Driver",
    "DriverFactory",
    "DriverName",
    "LingeringDriver",
    "Outcome",
    "PolledDriver",
    "Sink",
    "Submission",
    "Submitted",
    "choose_partition",
    "make_driver",
    "serialize_record",
]

DriverName = Literal["kafka-python", "confluent"]
"""The names of the drivers of this package."""


def make_driver(chosen: DriverName | DriverFactory | None, settings: ProducerSettings) -> Driver:
    """Make the driver that the user chose.

    Args:
        chosen: the name of a driver, a factory, or None for the default.
        settings: the producer's settings.

    Raises:
        SettingsError: there is no driver with that name, the driver's client library is not
            installed, the factory did not return a driver, the driver refuses the settings, or
            the settings have a ``producer`` and ``chosen`` is not the kafka-python driver.
    """
    if settings.producer is not None:
        if chosen not in {None, "kafka-python"}:
            raise SettingsError(
                "driver and producer: set only one, because the producer is kafka-python's"
            )
        from .kafka_python._external_client import ExternalClientDriver

        return ExternalClientDriver(settings)
    if callable(chosen):
        made = cast("object", chosen(settings))
        if not callable(getattr(made, "submit", None)):
            raise SettingsError(
                f"driver: the factory must return a Driver, not {type(made).__name__}"
            )
        return cast("Driver", made)
    if chosen is None or chosen == "kafka-python":
        from .kafka_python._driver import KafkaPythonDriver

        return KafkaPythonDriver(settings)
    if chosen == "confluent":
        try:
            from .librdkafka._driver import ConfluentDriver
        except ImportError as error:
            raise SettingsError(
                "driver 'confluent' needs confluent-kafka: "
                f'pip install ".[confluent]" in a checkout of anyio-sendproducer ({error})'
            ) from error

        return ConfluentDriver(settings)
    raise SettingsError(
        f"driver must be {', '.join(map(repr, get_args(DriverName)))} or a factory, not {chosen!r}"
    )
