"""Descriptions of a cluster and of the connection to it, to find out why a producer fails.

The packages of the drivers are imported when they are needed.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping
from typing import Any, Final

from .._settings import ProducerSettings
from ._protocols import ClusterDescription
from .librdkafka._properties import LIBRDKAFKA
from .security._settings import KAFKA_PYTHON, Abilities, parse_security
from .security._tls import ReloadingSSLContext

__all__ = [
    "Protocol",
    "describe_cluster",
    "protocol_of",
]

#: For each driver, the security settings that its client supports.
_ABILITIES: Final[Mapping[str, Abilities]] = {
    "kafka-python": KAFKA_PYTHON,
    "confluent": LIBRDKAFKA,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Protocol:
    """How a client connects to brokers."""

    name: str
    """``security.protocol``."""
    mechanism: str
    """``sasl.mechanism``; empty if there is no login."""
    context: ssl.SSLContext | None
    """The context for TLS; None without TLS."""
    is_direct: bool
    """Whether there is no proxy."""


def protocol_of(chosen: str | None, settings: ProducerSettings) -> Protocol:
    """Return how a client connects to brokers. Certificates are read here.

    Args:
        chosen: the driver's name; None for the default.
        settings: how to reach the cluster.

    Raises:
        SettingsError: a security setting is wrong, or this driver does not support it.
        ValueError: this module does not know the driver.
    """
    security, _ = parse_security(settings.properties, _ABILITIES[_known(chosen)])
    given = security.given
    context: Any = None
    if security.encrypts:
        context = given.get("context") or ReloadingSSLContext(given).context()
    return Protocol(security.protocol, security.mechanism, context, "proxy" not in given)


def describe_cluster(
    chosen: str | None, settings: ProducerSettings, *, versions: bool = True
) -> ClusterDescription:
    """Connect, request a description of the cluster, and disconnect.

    Blocks for about ``start_timeout`` at most.

    Args:
        chosen: the name of the driver whose client connects; None for the default.
        settings: how to reach the cluster.
        versions: whether kafka-python asks each broker for its version. librdkafka does not.

    Raises:
        SettingsError: a setting is wrong.
        SendProducerError: the cluster did not answer.
        ValueError: this module does not know the driver.
    """
    if _known(chosen) == "confluent":
        from .librdkafka import _describe as librdkafka

        return librdkafka.describe(settings)
    from .kafka_python._describe import describe

    return describe(settings, versions=versions)


def _known(chosen: str | None) -> str:
    """Return the name of a driver, so that no driver is taken for another one."""
    name = "kafka-python" if chosen is None else chosen
    if name not in _ABILITIES:
        raise ValueError(f"the driver {name!r} has no description here")
    return name
