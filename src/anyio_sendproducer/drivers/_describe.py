"""Descriptions of a cluster and of the connection to it, to find out why a producer fails.

The client libraries are imported when they are needed.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

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
    security, _ = parse_security(settings.properties, _known(chosen).abilities)
    given = security.given
    context: Any = None
    if security.encrypts:
        context = given.get("context") or ReloadingSSLContext(given).context()
    return Protocol(security.protocol, security.mechanism, context, "proxy" not in given)


def describe_cluster(
    chosen: str | None, settings: ProducerSettings, *, versions: bool = True
) -> ClusterDescription:
    """Connect, request a description of the cluster, and disconnect.

    Blocks for about twice ``start_timeout`` at most: to connect, and to get the answers after that.

    Args:
        chosen: the name of the driver whose client connects; None for the default.
        settings: how to reach the cluster.
        versions: whether kafka-python asks each broker for its version. librdkafka does not.

    Raises:
        SettingsError: a setting is wrong.
        SendProducerError: the cluster did not answer.
        ValueError: this module does not know the driver.
    """
    return _known(chosen).describe(settings, versions)


class _Driver(NamedTuple):
    """What ``_DRIVERS`` contains for one driver."""

    abilities: Abilities
    """The security settings that its client supports."""
    describe: Callable[[ProducerSettings, bool], ClusterDescription]
    """Describes a cluster; the second argument is ``versions``."""


def _by_kafka_python(settings: ProducerSettings, versions: bool) -> ClusterDescription:  # noqa: FBT001
    from .kafka_python._describe import describe

    return describe(settings, versions=versions)


def _by_librdkafka(settings: ProducerSettings, _versions: bool) -> ClusterDescription:  # noqa: FBT001
    from .librdkafka._describe import describe

    return describe(settings)


_DRIVERS: Final[Mapping[str, _Driver]] = {
    "kafka-python": _Driver(KAFKA_PYTHON, _by_kafka_python),
    "confluent": _Driver(LIBRDKAFKA, _by_librdkafka),
}


def _known(chosen: str | None) -> _Driver:
    """Return the entry of a driver. A driver without an entry is an error, not the default."""
    name = "kafka-python" if chosen is None else chosen
    if name not in _DRIVERS:
        raise ValueError(f"the driver {name!r} has no description here")
    return _DRIVERS[name]
