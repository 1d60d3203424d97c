"""librdkafka's configuration, made from a producer's settings and checked before a client connects.

A property that both client libraries support works with both under the same name. So this module
accepts the names of Kafka, of kafka-python and of librdkafka. If librdkafka gives a name of Kafka
another meaning, Kafka's meaning counts.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Final

from ..._exceptions import SettingsError
from ..._kafka_names import canonical_name
from ..._settings import ProducerSettings
from .._properties import (
    RECEIVE_MAX,
    TRANSACTION_TIMEOUT_MS,
    acks_of,
    answer_timeout_ms,
    check_agreement,
    check_waits,
    compression_of,
    contradicting,
    number_of,
    truth_in,
    unknown,
)
from ..security._settings import Security, TokenSource, encodes, parse_security
from ..security._tls import (
    Given,
    ReloadingSSLContext,
    checks_host_names,
    cipher_names,
    pem_text,
    tls_versions,
    verifies,
)
from ._properties import (
    DECIDED,
    FROM_ZERO,
    KINDS,
    LIBRDKAFKA,
    NONE_IS_DEFAULT,
    OTHER_DRIVER,
    OWN_MEANINGS,
    PARTITIONERS,
    SHOWN,
    SPELLINGS,
    Number,
)

__all__ = ["LibrdkafkaConfig", "librdkafka_config"]


@dataclasses.dataclass(frozen=True, slots=True)
class LibrdkafkaConfig:
    """The configuration of a client."""

    #: For ``confluent_kafka.Producer``. It may contain a password.
    config: dict[str, Any] = dataclasses.field(repr=False)
    #: The source of tokens for OAUTHBEARER, for librdkafka's ``oauth_cb``.
    tokens: TokenSource | None


#: librdkafka's own defaults.
_SOCKET_TIMEOUT: Final = 60_000
_SETUP_TIMEOUT: Final = 30_000
#: How long a connection may be idle. By default librdkafka keeps it until the broker closes it,
#: after 10 minutes by default. The next record then waits for up to a second. This is librdkafka's
#: own value on Azure, whose load balancers drop an idle connection after 4 minutes.
_IDLE: Final = 230_000
#: The largest number that librdkafka takes.
_INT_MAX: Final = 2**31 - 1


def librdkafka_config(settings: ProducerSettings) -> LibrdkafkaConfig:
    """Make librdkafka's configuration from a producer's settings. Certificates are read here.

    The configuration has no callbacks and no logger; the driver adds them.

    Args:
        settings: the producer's settings.

    Raises:
        SettingsError: a property is unknown, is managed by the producer, is not available with
            librdkafka, has a wrong type or value, or contradicts another setting; a file that a
            property names can't be used; the ``client_id`` or the ``transactional_id`` has
            characters that librdkafka does not accept; or the settings contain a client of
            kafka-python or a factory for one.
    """
    for field in ("producer", "producer_factory"):
        if getattr(settings, field) is not None:
            raise SettingsError(
                f"{field} is for the client of kafka-python, but this driver's client is "
                "librdkafka: leave it out, or use the driver 'kafka-python'"
            )
    given = {
        name: value
        for name, value in settings.properties.items()
        if value is not None or canonical_name(name) not in NONE_IS_DEFAULT
    }
    security, properties = parse_security(given, LIBRDKAFKA)
    for meaning, value in security.given.values.items():
        _check_text(f"properties: {security.given.names[meaning]!r}", value)
    # Check security before unknown names are reported. If a private key in a settings file is not
    # continued correctly, one of its lines is read as an unknown name, and the error would show it.
    secured = _security_config(security)
    config = _chosen(properties)
    for name, value in config.items():
        _check_text(f"properties: {name!r}", value)
    for field in ("client_id", "transactional_id"):
        _check_text(field, getattr(settings, field))
    agreed = {canonical_name(name): value for name, value in config.items()}
    check_agreement(agreed, settings)
    check_waits(agreed, settings)
    _decide_idempotence(config, settings)
    _keep_epoch(config, settings)
    _decide_times(config, settings)
    config = {
        "receive.message.max.bytes": RECEIVE_MAX,
        "connections.max.idle.ms": _IDLE,
        # Kafka's clients hash a record's key by murmur2. librdkafka's default is CRC32.
        "partitioner": "murmur2_random",
        # For how long records without a key go to the same partition (KIP-480). librdkafka's
        # default is twice the linger. If that is 0, each record goes to another partition, in a
        # request of its own.
        "sticky.partitioning.linger.ms": 10,
        # The producer's own limits apply first. 0 means no limit, and the other value is 2 TiB.
        "queue.buffering.max.messages": 0,
        "queue.buffering.max.kbytes": _INT_MAX,
        **config,
        **secured,
        "bootstrap.servers": ",".join(settings.addresses),
        "client.id": settings.client_id,
    }
    if settings.transactional_id is not None:
        config["transactional.id"] = settings.transactional_id
    return LibrdkafkaConfig(config, security.tokens(settings.start_timeout))


def _chosen(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties that are not about security, under librdkafka's names."""
    config: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for given, value in properties.items():
        canonical = canonical_name(given)
        if canonical in DECIDED:
            raise SettingsError(f"properties: {given!r} can't be set here: {DECIDED[canonical]}")
        name = SPELLINGS.get(canonical)
        if name is None:
            raise unknown(given, canonical, "librdkafka's producers", SHOWN)
        if name in spelt:
            raise SettingsError(
                f"properties: {spelt[name]!r} and {given!r} are one setting; give one"
            )
        spelt[name] = given
        config[name] = _property(given, name, value)
    return config


def _property(given: str, name: str, value: Any) -> Any:
    kind = KINDS[name]
    if name == "acks":
        return acks_of(given, value)
    if name == "compression.type":
        return compression_of(given, value) or "none"
    if isinstance(kind, Number):
        if name == "retries" and value == math.inf:
            return kind.maximum
        number = number_of(given, value, 0 if name in FROM_ZERO else kind.minimum, kind.maximum)
        number = max(number, kind.minimum)
        return number if kind.fraction else math.ceil(number)
    if kind is bool:
        return truth_in(given, value)
    if isinstance(kind, tuple):
        if isinstance(value, str) and value in kind:
            return value
        more = "" if isinstance(value, str) or name != "partitioner" else f": {PARTITIONERS}"
        raise SettingsError(f"properties: {given!r} must be one of {', '.join(kind)}{more}")
    return _text(given, value)


def _text(given: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise SettingsError(f"properties: {given!r} must be a str that is not empty")
    return value


def _check_text(name: str, value: Any) -> None:
    """Check that librdkafka gets the whole text.

    It would truncate a text, for example a transactional id, at a NUL character, and it accepts
    only UTF-8.

    Raises:
        SettingsError: it would not get the whole text.
    """
    text = os.fsdecode(value) if isinstance(value, bytes) else value
    if isinstance(text, str) and "\0" in text:
        raise SettingsError(f"{name} contains a NUL character, where librdkafka would truncate it")
    if isinstance(text, str) and not encodes(text):
        raise SettingsError(f"{name} contains characters that cannot be encoded as UTF-8")


def _decide_idempotence(config: dict[str, Any], settings: ProducerSettings) -> None:
    if "enable.idempotence" not in config:
        # A conflicting setting disables idempotence, as in kafka-python.
        config["enable.idempotence"] = settings.transactional_id is not None or not contradicting(
            {canonical_name(name): value for name, value in config.items()}
        )
    threshold = "queue.buffering.backpressure.threshold"
    if config["enable.idempotence"] and config.get(threshold, 1) > 1:
        raise SettingsError(
            f"properties: {threshold}={config[threshold]} needs enable.idempotence=False, "
            "because with idempotence it is 1"
        )


def _keep_epoch(config: dict[str, Any], settings: ProducerSettings) -> None:
    """Keep an idempotent client from taking a new epoch while answers are missing.

    After a new epoch (rd_kafka_idemp_drain_epoch_bump in 2.16) librdkafka sends all unacknowledged
    records again with new sequence numbers. A broker that wrote such a record before, and whose
    answer was lost, cannot recognize the repetition. A client with transactions needs no change: it
    does not send the records again, because the transaction is aborted.
    """
    if not config["enable.idempotence"] or settings.transactional_id is not None:
        return
    # A record must not expire in the client. The ledger keeps the deadline.
    config["message.timeout.ms"] = _INT_MAX
    # A record must not fail after some attempts either: that also leaves a gap.
    config["retries"] = _INT_MAX
    # A refused batch leaves a gap as well. With enable.gapless.guarantee, each refusal would be a
    # fatal error, and all other records in the client would fail. So that is left to the user.
    # If a broker rejects a batch for now, for example because too few replicas are in sync, it may
    # find the next batch out of order, if that was already sent.
    config.setdefault("max.in.flight.requests.per.connection", 1)


def _decide_times(config: dict[str, Any], settings: ProducerSettings) -> None:
    bound = settings.delivery_timeout * 1000
    transaction = math.inf
    if settings.transactional_id is not None:
        transaction = config.get("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        # librdkafka adds 100 to it, and the sum must fit into an int.
        transaction = min(transaction, _INT_MAX - 100)
        config["transaction.timeout.ms"] = transaction
        bound = min(bound, transaction)
    # librdkafka requires that this is at most transaction.timeout.ms, and that it fits into an int.
    config.setdefault("message.timeout.ms", min(math.ceil(bound), _INT_MAX))
    config.setdefault("linger.ms", 0)
    # How long librdkafka waits before it reports that a topic does not exist.
    config["topic.metadata.propagation.max.ms"] = min(
        math.ceil(settings.unknown_topic_timeout * 1000), 3_600_000
    )
    if "socket.timeout.ms" not in config and "request.timeout.ms" in config:
        # In Kafka's clients, request.timeout.ms is sent to the broker and also bounds the wait for
        # the answer. librdkafka has a setting for each, and requires that the wait is not longer
        # than the timeout of a transaction.
        config["socket.timeout.ms"] = int(
            min(max(config["request.timeout.ms"], 10), 300_000, transaction - 100)
        )
    elif config.get("socket.timeout.ms", 0) > transaction:
        raise SettingsError(
            f"properties: socket.timeout.ms={config['socket.timeout.ms']} is more than "
            f"transaction.timeout.ms={transaction}"
        )
    elif "socket.timeout.ms" not in config:
        timeout = answer_timeout_ms(bound, _SOCKET_TIMEOUT)
        config["socket.timeout.ms"] = int(min(timeout, transaction - 100))
    config.setdefault(
        "socket.connection.setup.timeout.ms", answer_timeout_ms(bound, _SETUP_TIMEOUT)
    )
    # A default of the maximum must not shorten a back-off that the user has set. The default here
    # is that of the Java client for both, 1 s. librdkafka's is 10 s for connections.
    for kind in ("reconnect.backoff", "retry.backoff"):
        initial, largest = f"{kind}.ms", f"{kind}.max.ms"
        if largest not in config:
            config[largest] = max(config.get(initial, 0), 1000)
        elif initial not in config:
            config[initial] = min(100, config[largest])  # librdkafka's own, unless that is more
        elif config[initial] > config[largest]:
            raise SettingsError(
                f"properties: {initial}={config[initial]} is more than {largest}={config[largest]}"
            )


# --- TLS and SASL --------------------------------------------------------------------------------


def _security_config(security: Security) -> dict[str, Any]:
    """Return librdkafka's settings for TLS and SASL."""
    given = security.given
    config: dict[str, Any] = {}
    if "protocol" in given:
        config["security.protocol"] = security.protocol
    if security.mechanism:
        config["sasl.mechanism"] = security.mechanism
    if "user" in given:
        # librdkafka itself escapes the user name for SCRAM.
        config["sasl.username"] = given.get("user")
        config["sasl.password"] = given.get("user_password")
    for name, meaning in OWN_MEANINGS.items():
        if meaning not in given:
            continue
        spelt, value = given.names[meaning], given.get(meaning)
        if meaning == "kerberos_relogin":
            config[name] = math.ceil(number_of(spelt, value, 0, 86_400_000))
        else:
            config[name] = _text(spelt, value)
    if security.encrypts:
        config.update(_tls_config(given))
    return config


def _tls_config(given: Given) -> dict[str, Any]:
    for meaning in ("versions", "version"):
        if meaning in given and tls_versions(given) != tls_versions(Given({}, {})):
            raise given.wrong(
                meaning,
                "excludes TLS 1.2 or 1.3, but librdkafka uses each version that the broker offers: "
                f"exclude the version in the broker's settings, {OTHER_DRIVER}",
            )
    # Read the files here, because OpenSSL's errors in librdkafka name neither the setting nor what
    # to do. A key in the settings is not read: Python would have to write it to a file.
    files = {
        meaning: value
        for meaning, value in given.values.items()
        if meaning not in {"chain_pem", "key_pem", "ciphers"}
    }
    ReloadingSSLContext(Given(files, given.names))
    config: dict[str, Any] = {
        "enable.ssl.certificate.verification": verifies(given),
        "ssl.endpoint.identification.algorithm": "https" if checks_host_names(given) else "none",
    }
    for meaning, name in (
        ("ca", "ssl.ca.location"),
        ("chain", "ssl.certificate.location"),
        ("key", "ssl.key.location"),
        ("crl", "ssl.crl.location"),
    ):
        if meaning in given:
            config[name] = given.get(meaning)
    if "chain" in given and "key" not in given:
        config["ssl.key.location"] = given.get("chain")
    for meaning, name, label in (
        ("ca_pem", "ssl.ca.pem", "CERTIFICATE"),
        ("chain_pem", "ssl.certificate.pem", "CERTIFICATE"),
        ("key_pem", "ssl.key.pem", "PRIVATE KEY"),
    ):
        if meaning in given:
            config[name] = pem_text(given, meaning)
            if f"{label}-----" not in config[name]:
                raise given.wrong(meaning, f"has no {label} in it")
    if "password" in given:
        password = given.get("password")
        config["ssl.key.password"] = password.decode() if isinstance(password, bytes) else password
    if "ciphers" in given:
        names, newer = cipher_names(given)
        if newer:
            raise given.wrong(
                "ciphers",
                "names a suite of TLS 1.3, but librdkafka cannot choose among these; name only "
                "suites of TLS 1.2",
            )
        if any("@SECLEVEL=0" in name for name in names):
            # Tried with 2.16: only the security level keeps librdkafka from TLS 1.0 and 1.1.
            raise given.wrong(
                "ciphers",
                "asks for security level 0, which allows librdkafka to use TLS 1.0 and 1.1",
            )
        config["ssl.cipher.suites"] = ":".join(names)
    if config.get("ssl.ca.location") == "probe":
        # "probe" alone would make librdkafka use the system's certificates instead of the file.
        config["ssl.ca.location"] = "./probe"
    return config
