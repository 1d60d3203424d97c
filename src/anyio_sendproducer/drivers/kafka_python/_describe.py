"""Describes a cluster with kafka-python."""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import math
import operator
import threading
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
from ._errors import LoginRefused, NotReached, client_words, translated
from ._network import NetClient

__all__ = [
    "describe",
]


#: How many brokers to ask for their versions at a time.
_MAX_ASKED: Final = 16


def describe(settings: ProducerSettings, *, versions: bool) -> ClusterDescription:
    """Describe a cluster; see :func:`anyio_sendproducer.drivers._describe.describe_cluster`."""
    config = config_of(settings)
    shared = {name: config[name] for name in config.keys() & KafkaAdminClient.DEFAULT_CONFIG.keys()}
    shared["bootstrap_timeout_ms"] = shared["request_timeout_ms"] = settings.start_timeout * 1000
    until = time.monotonic() + settings.start_timeout
    clients: list[NetClient] = []

    def make(**configs: Any) -> NetClient:
        client = NetClient(**configs)
        clients.append(client)
        # Bootstrap here, because the constructor of the admin client would not say why its own
        # bootstrap failed.
        client.bootstrap(until, threading.Event())
        return client

    try:
        admin: Any = KafkaAdminClient(**shared, kafka_client=make)
        # The first broker that answered has described the cluster. A request of the admin client
        # could go to any broker, and would fail if that one cannot be reached.
        cluster: Any = clients[0].cluster
        found = sorted(cluster.brokers(), key=operator.attrgetter("node_id"))
        known: dict[int, str | None] = {}
        if versions:
            numbers = [broker.node_id for broker in found]
            with ThreadPoolExecutor(_MAX_ASKED) as pool:
                answers = pool.map(functools.partial(_version_of, admin, until=until), numbers)
                known = dict(zip(numbers, answers, strict=True))
        brokers = tuple(
            BrokerDescription(
                broker.node_id, one_line(broker.host), broker.port, known.get(broker.node_id)
            )
            for broker in found
        )
    except (LoginRefused, NotReached) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        # Only the message: the text of a KafkaError begins with its class. The message names the
        # broker.
        raise translated(cause, str(error.args[0])) from cause
    except Exception as error:
        raise translated(
            error,
            f"the cluster did not describe itself: {client_words(error) or type(error).__name__}",
        ) from error
    finally:
        # If the client could not be made, 3.0.12 leaves its thread running.
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
    """Return the version of Kafka whose requests a broker accepts.

    Returns None if the broker cannot be asked, or if ``until`` has passed before it is asked.
    """
    if time.monotonic() >= until:
        return None
    try:
        known = admin.get_broker_version_data(broker)
    except Exception:  # noqa: BLE001  # a later attempt to connect reports the reason
        return None
    # Brokers do not report their versions. kafka-python infers the version from the requests that
    # the broker accepts. For a newer broker it returns the newest version that it knows.
    version: tuple[int, ...] = known.broker_version
    more = " or later" if version >= max(BROKER_API_VERSIONS) else ""
    return ".".join(map(str, version)) + more
