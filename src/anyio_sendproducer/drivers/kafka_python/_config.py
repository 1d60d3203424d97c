"""Makes kafka-python's configuration from a producer's settings, and checks it before the client
connects.

The defaults of kafka-python are an argument, so this module does not import ``kafka``.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Collection, Mapping
from typing import Any, Final

from ..._exceptions import SettingsError
from ..._kafka_names import canonical_name
from ..._settings import ProducerSettings
from .._properties import (
    MANAGED,
    RECEIVE_MAX,
    acks_of,
    answer_timeout_ms,
    check_agreement,
    check_waits,
    compression_of,
    number_of,
    truth_in,
    unknown,
)
from ..security._settings import KAFKA_PYTHON, NAMES, SCRAM, Security, parse_security
from ..security._tls import ReloadingSSLContext

__all__ = ["CODECS", "client_config"]

#: The package that kafka-python needs for each codec that Python's standard library lacks.
CODECS: Final = {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"}

#: Our defaults. Measured with a round trip of 20 ms on one partition: batches of 256 KiB carry
#: seven times as much as batches of 16 KiB, because the idempotent client sends one batch per
#: partition at a time. Without a linger, the next batch gathers records while one is in flight. The
#: client's metrics cost time. Like the Java client, this client backs off for 1 s at most, not 30.
_DEFAULTS: Final[dict[str, Any]] = {
    "batch_size": 256 * 1024,
    "linger_ms": 0,
    "metrics_enabled": False,
    "receive_message_max_bytes": RECEIVE_MAX,
    "reconnect_backoff_max_ms": 1000,
}

#: librdkafka's name for the partitioner of Kafka's Java client.
_PARTITIONER: Final = "murmur2_random"

#: If one of these is 0, nothing is ever sent.
_NO_ZERO: Final = frozenset(
    {
        "connections_max_idle_ms",
        "max_in_flight_requests_per_connection",
        "max_request_size",
        "receive_message_max_bytes",
        "request_timeout_ms",
    }
)

#: Brokers get these as whole numbers of 32 bits. 3.0.12 would try without end to encode others.
_WHOLE: Final = frozenset({"request_timeout_ms", "transaction_timeout_ms"})
#: The largest number of 32 bits, as in Kafka's Java client.
_LARGEST: Final = 2**31 - 1

#: The sizes of the buffers of a connection, and the socket option of each. 3.0.12 ignores these
#: properties. -1 and 0 mean the default of the system, as in Kafka's clients and in librdkafka.
_BUFFERS: Final = {"receive_buffer_bytes": socket.SO_RCVBUF, "send_buffer_bytes": socket.SO_SNDBUF}

#: Properties that the producer sets itself, and what to use instead.
_MANAGED: Final[dict[str, str]] = {
    **MANAGED,
    "bootstrap_timeout_ms": "use ProducerSettings(start_timeout=...), in seconds",
    "kafka_client": "the driver makes its own",
}


def client_config(
    settings: ProducerSettings, known: Mapping[str, Any], missing_codecs: Collection[str] = ()
) -> dict[str, Any]:
    """Make kafka-python's configuration for these settings. Certificates are read here.

    Args:
        settings: the producer's settings.
        known: kafka-python's own settings, with their defaults.
        missing_codecs: the names in ``CODECS`` whose packages are not installed.

    Raises:
        SettingsError: a property is unknown, is set by the producer itself, has a wrong value,
            contradicts another, or needs a package that is not installed.
    """
    security, properties = parse_security(settings.properties, KAFKA_PYTHON)
    config = {**_DEFAULTS, **_security_config(security, settings.start_timeout)}
    for given, value in properties.items():
        name = canonical_name(given)
        if name in _MANAGED:
            raise SettingsError(f"properties: {given!r} can't be set here: {_MANAGED[name]}")
        if name not in known:
            # Suggest names with dots if the user wrote dots.
            dot = "." if "." in given else "_"
            names = (known.keys() | NAMES) - _MANAGED.keys()
            raise unknown(
                given, name, "kafka-python", {one: one.replace("_", dot) for one in names}
            )
        if name == "partitioner" and value == _PARTITIONER:
            continue
        config[name] = _property(given, name, value, known[name])
        if name == "compression_type" and config[name] in missing_codecs:
            raise SettingsError(
                f"properties: {given!r}: for {config[name]}, kafka-python needs the package "
                f'{CODECS[config[name]]}: pip install ".[compression]" in a checkout of '
                'anyio-sendproducer, or use driver="confluent", which needs no package for it'
            )
    sizes = {option: config.pop(name, None) for name, option in _BUFFERS.items()}
    options = [(socket.SOL_SOCKET, option, size) for option, size in sizes.items() if size]
    if options:
        config["socket_options"] = [
            *config.get("socket_options", known["socket_options"]),
            *options,
        ]
    if "request_timeout_ms" not in config:
        config["request_timeout_ms"] = answer_timeout_ms(
            settings.delivery_timeout * 1000, known["request_timeout_ms"]
        )
    check_agreement(config, settings)
    check_waits(config, settings)
    if config["request_timeout_ms"] + config["linger_ms"] > _LARGEST:
        raise SettingsError(
            f"properties: request.timeout.ms and linger.ms are together more than {_LARGEST}"
        )
    if settings.transactional_id is not None:
        config["transactional_id"] = settings.transactional_id
    config.update(
        bootstrap_servers=list(settings.addresses),
        client_id=settings.client_id,
        # send() must never wait. The producer holds records whose topic's metadata are missing.
        max_block_ms=0,
        # If a batch expires while it is retried, the idempotent client hangs forever. So the
        # client never expires a batch, and the ledger keeps the deadlines.
        delivery_timeout_ms=_LARGEST,
    )
    return config


def _property(given: str, name: str, value: Any, default: Any) -> Any:
    if name == "acks":
        return acks_of(given, value)
    if name == "compression_type":
        return compression_of(given, value)
    if isinstance(default, bool):
        return truth_in(given, value)
    if name == "partitioner" and isinstance(value, (str, type)):
        raise SettingsError(
            f"properties: {given!r} must be {_PARTITIONER!r}, which is the default, or an instance "
            "of a kafka.partitioner.Partitioner"
        )
    if name in _BUFFERS and value is not None:
        return max(0, number_of(given, value, -1, _LARGEST, is_whole=True))
    if isinstance(default, (int, float)):
        least = 1 if name in _NO_ZERO else 0
        most = _LARGEST if name in _WHOLE else math.inf
        number = number_of(given, value, least, most, is_whole=name.endswith(("_bytes", "_size")))
        return math.ceil(number) if name in _WHOLE else number
    return value


def _security_config(security: Security, seconds: float) -> dict[str, Any]:
    """Make kafka-python's settings for TLS and SASL. Files are read here.

    Args:
        security: the settings of the user.
        seconds: how long the token provider may take.
    """
    given = security.given
    config: dict[str, Any] = {}
    if "protocol" in given:
        config["security_protocol"] = security.protocol
    if "proxy" in given:
        config[canonical_name(given.names["proxy"])] = given.get("proxy")
    if security.mechanism:
        config["sasl_mechanism"] = security.mechanism
    if "user" in given:
        user = str(given.get("user"))
        if security.mechanism in SCRAM:
            # RFC 5802 escapes these two characters in names; 3.0.12 does not.
            user = user.replace("=", "=3D").replace(",", "=2C")
        config.update(sasl_plain_username=user, sasl_plain_password=given.get("user_password"))
    tokens = security.tokens(seconds)
    if tokens is not None:
        config["sasl_oauth_token_provider"] = tokens
    for meaning in given.values:
        if meaning.startswith("kerberos"):
            config[f"sasl_{meaning}"] = given.get(meaning)
    if security.encrypts:
        config["ssl_context"] = given.get("context") or ReloadingSSLContext(given)
    return config
