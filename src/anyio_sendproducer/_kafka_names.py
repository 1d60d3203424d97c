"""The names of Kafka's settings: fields of ``ProducerSettings``, and properties of the client.

Names are compared in one spelling, with underscores: ``linger.ms`` is ``linger_ms``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = [
    "CLIENT_PROPERTIES",
    "MANAGED",
    "canonical_name",
    "closest",
    "is_client_property",
    "is_family",
]

#: The client settings that the producer sets itself, and what to use instead.
MANAGED: Final[Mapping[str, str]] = {
    # A setting of kafka-python 2.
    "api_version_auto_timeout_ms": "use ProducerSettings(start_timeout=...), in seconds",
    "bootstrap_servers": "use ProducerSettings(bootstrap_servers=...)",
    "buffer_memory": "use ProducerSettings(max_buffered_bytes=...)",
    "client_id": "use ProducerSettings(client_id=...)",
    "delivery_timeout_ms": "use ProducerSettings(delivery_timeout=...), in seconds",
    "key_serializer": "use ProducerSettings(key_serializer=...)",
    "max_block_ms": "send() does not block; use ProducerSettings(delivery_timeout=...)",
    "transactional_id": "use ProducerSettings(transactional_id=...)",
    "value_serializer": "use ProducerSettings(value_serializer=...)",
}

#: Names of client settings: the usual ones of Kafka's ProducerConfig, and others that kafka-python
#: or librdkafka often needs. The list is only used to recognize names and to suggest one: the
#: driver knows which settings its client has.
_NAMES: Final = """
    acks
    allow.auto.create.topics
    api.version
    batch.num.messages
    batch.size
    broker.address.family
    broker.address.ttl
    client.dns.lookup
    client.rack
    compression.codec
    compression.gzip.level
    compression.level
    compression.lz4.level
    compression.type
    compression.zstd.level
    connections.max.idle.ms
    enable.idempotence
    enable.metrics.push
    interceptor.classes
    linger.ms
    log.connection.close
    max.in.flight
    max.in.flight.requests.per.connection
    max.request.size
    message.max.bytes
    message.send.max.retries
    metadata.max.age.ms
    metadata.max.idle.ms
    metadata.recovery.rebootstrap.trigger.ms
    metadata.recovery.strategy
    metric.reporters
    metrics.enabled
    metrics.num.samples
    metrics.recording.level
    metrics.sample.window.ms
    partitioner
    partitioner.adaptive.partitioning.enable
    partitioner.availability.timeout.ms
    partitioner.class
    partitioner.ignore.keys
    queue.buffering.max.kbytes
    queue.buffering.max.messages
    queue.buffering.max.ms
    receive.buffer.bytes
    receive.message.max.bytes
    reconnect.backoff.max.ms
    reconnect.backoff.ms
    request.required.acks
    request.timeout.ms
    retries
    retry.backoff.max.ms
    retry.backoff.ms
    sasl.jaas.config
    sasl.kerberos.domain.name
    sasl.kerberos.service.name
    sasl.mechanism
    sasl.mechanisms
    sasl.oauth.token.provider
    sasl.password
    sasl.plain.password
    sasl.plain.username
    sasl.username
    security.protocol
    security.providers
    send.buffer.bytes
    socket.connection.setup.timeout.max.ms
    socket.connection.setup.timeout.ms
    socket.keepalive.enable
    socket.nagle.disable
    socket.receive.buffer.bytes
    socket.send.buffer.bytes
    socket.timeout.ms
    ssl.ca.location
    ssl.ca.pem
    ssl.cafile
    ssl.certfile
    ssl.certificate.location
    ssl.certificate.pem
    ssl.check.hostname
    ssl.cipher.suites
    ssl.ciphers
    ssl.context
    ssl.crlfile
    ssl.enabled.protocols
    ssl.endpoint.identification.algorithm
    ssl.key.location
    ssl.key.password
    ssl.key.pem
    ssl.keyfile
    ssl.keystore.certificate.chain
    ssl.keystore.key
    ssl.keystore.location
    ssl.keystore.password
    ssl.keystore.type
    ssl.password
    ssl.protocol
    ssl.provider
    ssl.truststore.certificates
    ssl.truststore.location
    ssl.truststore.password
    ssl.truststore.type
    statistics.interval.ms
    sticky.partitioning.linger.ms
    topic.metadata.refresh.interval.ms
    transaction.timeout.ms
"""
#: Each of these names in the spelling that is compared, with the name as Kafka writes it.
CLIENT_PROPERTIES: Final[Mapping[str, str]] = {
    name.replace(".", "_"): name for name in _NAMES.split()
}
#: The first words of names with dots: ``ssl`` of ``ssl.ca.location``.
_FAMILIES: Final = frozenset(
    {name.split(".")[0] for name in CLIENT_PROPERTIES.values() if "." in name}
    | {name.split("_")[0] for name in MANAGED}
)
#: How similar a name must be to be suggested. One wrong letter of four is 0.75. With less,
#: unrelated names that end in the same words resemble each other: 'api_version_auto_timeout_ms' and
#: 'transaction_timeout_ms' are 0.65.
_SIMILAR: Final = 0.75


def canonical_name(name: str) -> str:
    """A property's name in the one spelling that is compared: ``linger.ms`` is ``linger_ms``."""
    return name.replace(".", "_")


def is_family(word: str) -> bool:
    """Whether names of client settings begin with this word and a dot."""
    return word in _FAMILIES


def is_client_property(name: str) -> bool:
    """Whether a name, in either spelling, is or looks like the name of a client's setting."""
    if canonical_name(name) in CLIENT_PROPERTIES:
        return True
    word, dot, _ = name.partition(".")
    return bool(dot) and is_family(word)


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name; None if no name is similar."""
    near = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=_SIMILAR)
    return near[0] if near else None
