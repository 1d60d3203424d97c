"""librdkafka's settings: their names, their values, and how the driver treats each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from ..._kafka_names import canonical_name
from .._properties import MANAGED
from ..security._settings import MEANINGS, NO_TOKENS, REFUSED, Abilities

__all__ = [
    "DECIDED",
    "FROM_ZERO",
    "KINDS",
    "LIBRDKAFKA",
    "NONE_IS_DEFAULT",
    "OTHER_DRIVER",
    "OWN_MEANINGS",
    "PARTITIONERS",
    "SHOWN",
    "SPELLINGS",
    "Number",
]

_INT_MAX: Final = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A type of value: a number from a minimum to a maximum."""

    minimum: int
    maximum: int
    #: Whether it may have a fraction. Otherwise a fraction is rounded up.
    fraction: bool = False


#: The settings of librdkafka 2.16 that a user may set, each with its type: a number, one of several
#: words, a text, or true and false. Settings for security or without effect are left out.
KINDS: Final[Mapping[str, Number | tuple[str, ...] | type[object]]] = {
    "acks": str,
    "allow.auto.create.topics": bool,
    "api.version.request.timeout.ms": Number(1, 300_000),
    "batch.num.messages": Number(1, 1_000_000),
    "batch.size": Number(1, _INT_MAX),
    "broker.address.family": ("any", "v4", "v6"),
    "broker.address.ttl": Number(0, 86_400_000),
    "client.dns.lookup": ("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"),
    "client.rack": str,
    "compression.level": Number(-1, 12),
    "compression.type": str,
    "connections.max.idle.ms": Number(0, _INT_MAX),
    "debug": str,
    "enable.gapless.guarantee": bool,
    "enable.idempotence": bool,
    "enable.metrics.push": bool,
    "enable.random.seed": bool,
    "linger.ms": Number(0, 900_000, fraction=True),
    "log.connection.close": bool,
    "log.thread.name": bool,
    "max.in.flight.requests.per.connection": Number(1, 1_000_000),
    "message.copy.max.bytes": Number(0, 1_000_000_000),
    "message.max.bytes": Number(1000, 1_000_000_000),
    "metadata.recovery.rebootstrap.trigger.ms": Number(0, _INT_MAX),
    "metadata.recovery.strategy": ("none", "rebootstrap"),
    "partitioner": (
        "random",
        "consistent",
        "consistent_random",
        "murmur2",
        "murmur2_random",
        "fnv1a",
        "fnv1a_random",
    ),
    "queue.buffering.backpressure.threshold": Number(1, 1_000_000),
    "receive.message.max.bytes": Number(1000, _INT_MAX),
    "reconnect.backoff.max.ms": Number(0, 3_600_000),
    "reconnect.backoff.ms": Number(0, 3_600_000),
    "request.timeout.ms": Number(1, 900_000),
    "retries": Number(0, _INT_MAX),
    "retry.backoff.max.ms": Number(1, 300_000),
    "retry.backoff.ms": Number(1, 300_000),
    "socket.connection.setup.timeout.ms": Number(1000, _INT_MAX),
    "socket.keepalive.enable": bool,
    "socket.max.fails": Number(0, 1_000_000),
    "socket.nagle.disable": bool,
    "socket.receive.buffer.bytes": Number(0, 100_000_000),
    "socket.send.buffer.bytes": Number(0, 100_000_000),
    "socket.timeout.ms": Number(10, 300_000),
    "statistics.interval.ms": Number(0, 86_400_000),
    "sticky.partitioning.linger.ms": Number(0, 900_000),
    "topic.blacklist": str,
    "topic.metadata.refresh.fast.interval.ms": Number(1, 60_000),
    # With less than 1, librdkafka would never refresh the metadata.
    "topic.metadata.refresh.interval.ms": Number(1, 3_600_000),
    "topic.metadata.refresh.sparse": bool,
    "transaction.timeout.ms": Number(1000, _INT_MAX),
}

#: Other names of these settings: first those of Kafka and kafka-python, then librdkafka's aliases.
ALIASES: Final[Mapping[str, str]] = {
    "max.request.size": "message.max.bytes",
    # In librdkafka, metadata.max.age.ms is the age at which metadata expire: three times the
    # interval at which they are refreshed. In Kafka's clients it is that interval.
    "metadata.max.age.ms": "topic.metadata.refresh.interval.ms",
    "receive.buffer.bytes": "socket.receive.buffer.bytes",
    "send.buffer.bytes": "socket.send.buffer.bytes",
    "compression.codec": "compression.type",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "message.send.max.retries": "retries",
    "queue.buffering.max.ms": "linger.ms",
    "request.required.acks": "acks",
}

#: Settings whose minimum is 0 in Kafka and 1 in librdkafka. 0 means that each record is a batch of
#: its own (``batch.size``), or that there is no pause (``retry.backoff.ms``).
FROM_ZERO: Final = frozenset({"batch.size", "retry.backoff.ms"})

SPELLINGS: Final = {
    **{canonical_name(name): name for name in KINDS},
    **{canonical_name(alias): name for alias, name in ALIASES.items()},
}
#: How a name is written when an error suggests it.
SHOWN: Final = {
    **{name: name for name in MEANINGS},
    **{canonical_name(name): name for name in (*KINDS, *ALIASES)},
}

_OUTCOMES: Final = "the outcome of a record is what send() returns or raises"
_SERVED: Final = "the driver serves the client's events itself"
_LOG: Final = "librdkafka logs to the module logging; set levels there"
_ASKS: Final = "librdkafka asks the brokers for their versions"
_METRICS: Final = (
    "set 'statistics.interval.ms': then librdkafka's statistics are in statistics().client"
)
_NO_USE: Final = "librdkafka no longer uses it; leave it out"
_ORDER: Final = "the records of a partition are sent in order"
OTHER_DRIVER: Final = "or use the driver 'kafka-python', which can"
PARTITIONERS: Final = (
    "use ProducerSettings(partitioner=...) for one in Python, or set 'partitioner' to the name of "
    "one of librdkafka's"
)

#: Settings that the producer or the driver decides, and what to do instead.
DECIDED: Final[Mapping[str, str]] = {
    **MANAGED,
    "bootstrap_timeout_ms": "use ProducerSettings(start_timeout=...), in seconds",
    "message_timeout_ms": MANAGED["delivery_timeout_ms"],
    "metadata_broker_list": MANAGED["bootstrap_servers"],
    "queue_buffering_max_kbytes": "use ProducerSettings(max_buffered_bytes=...)",
    "queue_buffering_max_messages": "use ProducerSettings(max_in_flight=...)",
    "topic_metadata_propagation_max_ms": (
        "use ProducerSettings(unknown_topic_timeout=...), in seconds"
    ),
    "delivery_report_only_error": _OUTCOMES,
    "dr_cb": _OUTCOMES,
    "dr_msg_cb": _OUTCOMES,
    "on_delivery": _OUTCOMES,
    "background_event_cb": _SERVED,
    "enabled_events": _SERVED,
    "error_cb": _SERVED,
    "throttle_cb": _SERVED,
    "log_cb": _LOG,
    "log_level": _LOG,
    "log_queue": _LOG,
    "logger": _LOG,
    "oauth_cb": NO_TOKENS,
    "oauthbearer_token_refresh_cb": NO_TOKENS,
    "metric_reporters": _METRICS,
    "metrics_enabled": _METRICS,
    "metrics_num_samples": _METRICS,
    "metrics_sample_window_ms": _METRICS,
    "stats_cb": _METRICS,
    "msg_order_cmp": _ORDER,
    "queuing_strategy": _ORDER,
    "partitioner_cb": PARTITIONERS,
    "partitioner_class": PARTITIONERS,
    "api_version": _ASKS,
    "api_version_fallback_ms": _ASKS,
    "api_version_request": _ASKS,
    "broker_version_fallback": _ASKS,
    "kafka_client": "the driver makes its own",
    "selector": "librdkafka itself waits for its connections",
    "socket_options": (
        "librdkafka takes them by name: 'socket.keepalive.enable', 'socket.nagle.disable', "
        f"'socket.send.buffer.bytes', 'socket.receive.buffer.bytes'; {OTHER_DRIVER}"
    ),
    **dict.fromkeys(
        ("closesocket_cb", "connect_cb", "open_cb", "resolve_cb", "socket_cb"),
        "librdkafka itself makes its connections",
    ),
    **dict.fromkeys(
        ("default_topic_conf", "default_topic_config"),
        "set its contents as properties; they apply to all topics",
    ),
    **dict.fromkeys(
        ("builtin_features", "interceptors", "internal_termination_signal", "opaque"),
        "it is for programs in C",
    ),
    "plugin_library_paths": "no code is loaded by its path",
    **dict.fromkeys(
        (
            "produce_offset_report",
            "reconnect_backoff_jitter_ms",
            "socket_blocking_max_ms",
            "topic_metadata_refresh_fast_cnt",
        ),
        _NO_USE,
    ),
}

#: Security settings that librdkafka gets under the same name.
OWN_MEANINGS: Final[Mapping[str, str]] = {
    "ssl.ca.certificate.stores": "ca_stores",
    "ssl.curves.list": "curves",
    "ssl.providers": "openssl_providers",
    "ssl.sigalgs.list": "signatures",
    "sasl.kerberos.keytab": "kerberos_keytab",
    "sasl.kerberos.kinit.cmd": "kerberos_kinit",
    "sasl.kerberos.min.time.before.relogin": "kerberos_relogin",
    "sasl.kerberos.principal": "kerberos_principal",
    "sasl.kerberos.service.name": "kerberos_service_name",
}
_CONTEXT: Final = (
    "librdkafka takes no ssl.SSLContext: set files or PEM texts, such as 'ssl.ca.location', "
    f"{OTHER_DRIVER}"
)
_PROXY: Final = (
    f"librdkafka supports no proxy: make the brokers reachable without one, {OTHER_DRIVER}"
)
_SERVICE: Final = f"set 'sasl.kerberos.service.name', {OTHER_DRIVER}"
_IN_MEMORY: Final = "it is for programs in C; set PEM texts, such as 'ssl.ca.pem'"
_LACKING: Final[Mapping[str, str]] = {
    "ssl_context": _CONTEXT,
    "proxy_url": _PROXY,
    "socks5_proxy": _PROXY,
    "sasl_kerberos_name": _SERVICE,
    "sasl_kerberos_domain_name": _SERVICE,
}
_SASL_LACKING: Final = (
    "librdkafka does not support this mechanism. Use OAUTHBEARER with a "
    f"'sasl_oauth_token_provider' that signs tokens for MSK, {OTHER_DRIVER}"
)
_USER: Final = {"user": True, "user_password": True}
LIBRDKAFKA: Final = Abilities(
    meanings={
        **{name: meaning for name, meaning in MEANINGS.items() if name not in _LACKING},
        **{canonical_name(name): meaning for name, meaning in OWN_MEANINGS.items()},
    },
    refused={
        **REFUSED,
        **_LACKING,
        "ssl_engine_factory_class": f"it names a class of Java; {_CONTEXT}",
        "enable_sasl_oauthbearer_unsecure_jwt": f"such tokens prove nothing; {NO_TOKENS}",
        **dict.fromkeys(
            (
                "https_ca_location",
                "https_ca_pem",
                *(
                    f"sasl_oauthbearer_{name}"
                    for name in (
                        "assertion_algorithm",
                        "assertion_claim_aud",
                        "assertion_claim_exp_seconds",
                        "assertion_claim_iss",
                        "assertion_claim_jti_include",
                        "assertion_claim_nbf_seconds",
                        "assertion_claim_sub",
                        "assertion_file",
                        "assertion_jwt_template_file",
                        "assertion_private_key_file",
                        "assertion_private_key_passphrase",
                        "assertion_private_key_pem",
                        "client_credentials_client_id",
                        "client_credentials_client_secret",
                        "client_id",
                        "client_secret",
                        "extensions",
                        "grant_type",
                        "metadata_authentication_type",
                        "scope",
                        "sub_claim_name",
                    )
                ),
            ),
            REFUSED["sasl_oauthbearer_token_endpoint_url"],
        ),
        **dict.fromkeys(("ssl_ca", "ssl_certificate", "ssl_key"), _IN_MEMORY),
        **dict.fromkeys(
            ("ssl_engine_callback_data", "ssl_engine_id", "ssl_engine_location"),
            "OpenSSL no longer supports engines; set 'ssl.providers'",
        ),
        "ssl_certificate_verify_cb": "only OpenSSL verifies certificates",
    },
    mechanisms={
        "PLAIN": _USER,
        "SCRAM-SHA-256": _USER,
        "SCRAM-SHA-512": _USER,
        "OAUTHBEARER": {"tokens": True},
        # The wheels of confluent-kafka are built without it. Only librdkafka knows whether it was
        # built with it, and raises an error when the client is made.
        "GSSAPI": {
            meaning: False for meaning in OWN_MEANINGS.values() if meaning.startswith("kerberos")
        },
    },
    lacking={"AWS_MSK_IAM": _SASL_LACKING},
    packages={},
)

#: Settings whose default is None in kafka-python. For a security setting, None means not set.
NONE_IS_DEFAULT: Final = frozenset(
    {
        *_LACKING,
        "api_version",
        "partitioner_class",  # None in Java, too
        "receive_buffer_bytes",
        "send_buffer_bytes",
    }
)
