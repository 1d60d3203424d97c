"""What a cluster says of itself, and what a client would show it: for who looks for what is wrong.

The drivers themselves are imported when they are needed.
"""

from __future__ import annotations

import dataclasses
import ssl
from typing import Any

from .._settings import ProducerSettings
from ._protocols import ClusterDescription
from .librdkafka._properties import LIBRDKAFKA
from .security._settings import KAFKA_PYTHON, parse_security
from .security._tls import ReloadingSSLContext

__all__ = [
    "Protocol",
    "describe_cluster",
    "protocol_of",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Protocol:
    """How brokers are spoken to."""

    name: str
    """``security.protocol``."""
    mechanism: str
    """``sasl.mechanism``; empty, where there is no login."""
    context: ssl.SSLContext | None
    """What TLS is spoken with; None where it is not."""
    is_direct: bool
    """Whether there is no proxy between."""


def protocol_of(chosen: str | None, settings: ProducerSettings) -> Protocol:
    """How brokers are spoken to. Certificates are read here.

    Args:
        chosen: the driver, by name; None: the default.
        settings: how to reach the cluster.

    Raises:
        SettingsError: a setting of the security is wrong, or can't be had with this driver.
    """
    abilities = LIBRDKAFKA if chosen == "confluent" else KAFKA_PYTHON
    security, _ = parse_security(settings.properties, abilities)
    given = security.given
    context: Any = None
    if security.encrypts:
        context = given.get("context") or ReloadingSSLContext(given).context()
    return Protocol(security.protocol, security.mechanism, context, "proxy" not in given)


def describe_cluster(chosen: str | None, settings: ProducerSettings) -> ClusterDescription:
    """Connect, ask the cluster what it is, and leave it. Blocks, for ``start_timeout`` about.

    Args:
        chosen: the driver whose client is to ask, by name; None: the default.
        settings: how to reach it.

    Raises:
        SettingsError: a setting is wrong.
        SendProducerError: the cluster did not answer.
    """
    if chosen == "confluent":
        from .librdkafka._describe import describe

        return describe(settings)
    from .kafka_python._describe import describe

    return describe(settings)
