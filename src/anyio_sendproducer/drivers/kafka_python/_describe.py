"""Descriptions of clusters, requested with kafka-python."""

# kafka-python has no annotations. Its values have unknown types, and are cast where they leave.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import math
import operator
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka.protocol.broker_version_data import BROKER_API_VERSIONS

from ..._settings import ProducerSettings
from ..._shown import one_line
from .._protocols import (
    BrokerDescription,
    ClusterDescription,
)
from ._driver import config_of
from ._errors import translated
from ._network import NetClient, client_words

__all__ = [
    "describe",
]


#: How many brokers are asked for their versions at a time.
_MOST_ASKED: Final = 16


def describe(settings: ProducerSettings) -> ClusterDescription:
    """See :func:`anyio_sendproducer.drivers._describe.describe_cluster`."""
    config = config_of(settings)
    shared = {name: config[name] for name in config.keys() & KafkaAdminClient.DEFAULT_CONFIG.keys()}
    shared["bootstrap_timeout_ms"] = shared["request_timeout_ms"] = settings.start_timeout * 1000
    clients: list[NetClient] = []

    def make(**configs: Any) -> NetClient:
        clients.append(NetClient(**configs))
        return clients[0]

    try:
        admin: Any = KafkaAdminClient(**shared, kafka_client=make)
        # What the first broker said that answered. A request of the admin client would go to any
        # broker, so it would fail if only one of them cannot be reached.
        cluster: Any = clients[0].cluster
        found = sorted(cluster.brokers(), key=operator.attrgetter("node_id"))
        until = time.monotonic() + settings.start_timeout
        with ThreadPoolExecutor(_MOST_ASKED) as pool:
            numbers = [broker.node_id for broker in found]
            versions = pool.map(functools.partial(_version_of, admin, until=until), numbers)
        brokers = tuple(
            BrokerDescription(broker.node_id, one_line(broker.host), broker.port, version)
            for broker, version in zip(found, versions, strict=True)
        )
    except Exception as error:
        raise translated(
            error,
            f"the cluster does not say what it is: {client_words(error) or type(error).__name__}",
        ) from error
    finally:
        # Where it could not be made 3.0.12 leaves its thread behind.
        for client in clients:
            client.close()
            client.net.stop()
    controller = cluster.controller
    return ClusterDescription(
        one_line(cluster.cluster_id or "") or None,
        None if controller is None else controller.node_id,
        brokers,
    )


def _version_of(admin: Any, broker: int, until: float = math.inf) -> str | None:
    """The version of Kafka whose requests a broker takes; None where it can't be asked, or not by
    this time."""
    if time.monotonic() >= until:
        return None
    try:
        known = admin.get_broker_version_data(broker)
    except Exception:  # noqa: BLE001  # a later attempt to connect reports the reason
        return None
    # No broker tells its version. kafka-python infers it from the requests that the broker accepts,
    # and takes each broker that is newer than the client for the newest version that it knows.
    version: tuple[int, ...] = known.broker_version
    more = " or later" if version >= max(BROKER_API_VERSIONS) else ""
    return ".".join(map(str, version)) + more
