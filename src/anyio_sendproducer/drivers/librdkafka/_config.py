"""librdkafka's configuration, made of a producer's settings and checked before any connection.

The same properties are to do for either client library, so what Kafka, kafka-python and librdkafka
each call a thing comes to one name here; where librdkafka means something else by Kafka's name, it
is Kafka's meaning that counts.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Final

from ..._exceptions import SettingsError
from ..._settings import ProducerSettings, canonical_name
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
    """What a client on librdkafka is made with."""

    #: For ``confluent_kafka.Producer``. There may be a password in it.
    config: dict[str, Any] = dataclasses.field(repr=False)
    #: What gives the tokens for OAUTHBEARER, which librdkafka asks for by ``oauth_cb``.
    tokens: TokenSource | None


#: librdkafka's own defaults.
_SOCKET_TIMEOUT: Final = 60_000
_SETUP_TIMEOUT: Final = 30_000
#: How long a connection may be idle. By default librdkafka keeps it until the broker closes it,
#: which takes 10 minutes by default, and the next record then waits for up to a second. This is
#: librdkafka's own value on Azure, whose load balancers forget a connection after 4 minutes.
_IDLE: Final = 230_000
#: It takes no larger numbers.
_INT_MAX: Final = 2**31 - 1


def librdkafka_config(settings: ProducerSettings) -> LibrdkafkaConfig:
    """What librdkafka is told for these settings. Certificates are looked at here.

    It has neither callbacks nor a logger in it, which are the driver's.

    Args:
        settings: the producer's settings.

    Raises:
        SettingsError: a property is unknown, managed by the producer, of a wrong kind, not to be
            had with librdkafka, or contradicts another; or the settings have a client of
            kafka-python in them.
    """
    for field in ("producer", "producer_factory"):
        if getattr(settings, field) is not None:
            raise SettingsError(
                f"{field} is for the client of kafka-python, and this driver's is librdkafka: "
                "leave it out, or use the driver 'kafka-python'"
            )
    given = {
        name: value
        for name, value in settings.properties.items()
        if value is not None or canonical_name(name) not in NONE_IS_DEFAULT
    }
    security, properties = parse_security(given, LIBRDKAFKA)
    for meaning, value in security.given.values.items():
        _check_text(f"properties: {security.given.names[meaning]!r}", value)
    # Before unknown names, of which each may be a line of a key whose setting is cut short.
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
        # What Kafka's clients do by a record's key; librdkafka by itself would take CRC32.
        "partitioner": "murmur2_random",
        # Records without a key go to one partition for so long (KIP-480). By itself librdkafka
        # takes twice the linger; where that is 0, each goes elsewhere, in a request of its own.
        "sticky.partitioning.linger.ms": 10,
        # The producer's own bounds are reached before these: none, and 2 TiB.
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
    """The properties that are not about security, by one name each."""
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
            return kind.most
        number = number_of(given, value, 0 if name in FROM_ZERO else kind.least, kind.most)
        number = max(number, kind.least)
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
    """See that librdkafka gets all of a text. It would take what stands before a NUL character for
    the whole, a shorter transactional id say, and nothing for what is not UTF-8."""
    text = os.fsdecode(value) if isinstance(value, bytes) else value
    if isinstance(text, str) and "\0" in text:
        raise SettingsError(f"{name} has a NUL character in it, where librdkafka would end it")
    if isinstance(text, str) and not encodes(text):
        raise SettingsError(f"{name} has characters in it that are no text")


def _decide_idempotence(config: dict[str, Any], settings: ProducerSettings) -> None:
    if "enable.idempotence" not in config:
        # As kafka-python decides: who asks for what rules it out has asked for it to be off.
        config["enable.idempotence"] = settings.transactional_id is not None or not contradicting(
            {canonical_name(name): value for name, value in config.items()}
        )
    threshold = "queue.buffering.backpressure.threshold"
    if config["enable.idempotence"] and config.get(threshold, 1) > 1:
        raise SettingsError(
            f"properties: {threshold}={config[threshold]} needs enable.idempotence=False, "
            "for with idempotence it is 1"
        )


def _keep_epoch(config: dict[str, Any], settings: ProducerSettings) -> None:
    """Keep an idempotent librdkafka from taking a new epoch while answers are missing.

    After a new epoch (rd_kafka_idemp_drain_epoch_bump in 2.16) it sends all unacknowledged records
    again with new sequence numbers. A broker that wrote such a record before, and whose answer was
    lost, cannot recognize the repetition. In a transaction it is aborted instead.
    """
    if not config["enable.idempotence"] or settings.transactional_id is not None:
        return
    # A record must not expire. The ledger keeps the deadline.
    config["message.timeout.ms"] = _INT_MAX
    # Nor may it fail after some attempts: that leaves a gap, too.
    config["retries"] = _INT_MAX
    # A refused batch leaves a gap as well. enable.gapless.guarantee would make each refusal a fatal
    # error, with which all other records in the client fail, so that is left to the user.
    # If a broker rejects a batch for now, for example because too few replicas are in sync, it may
    # find the next batch out of order, if that was already sent.
    config.setdefault("max.in.flight.requests.per.connection", 1)


def _decide_times(config: dict[str, Any], settings: ProducerSettings) -> None:
    bound = settings.delivery_timeout * 1000
    transaction = math.inf
    if settings.transactional_id is not None:
        transaction = config.get("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        # librdkafka adds 100 to it, in an int.
        transaction = min(transaction, _INT_MAX - 100)
        config["transaction.timeout.ms"] = transaction
        bound = min(bound, transaction)
    # librdkafka requires this to be at most transaction.timeout.ms, and takes no larger numbers.
    config.setdefault("message.timeout.ms", min(math.ceil(bound), _INT_MAX))
    config.setdefault("linger.ms", 0)
    # Here librdkafka waits before it believes that there is no such topic.
    config["topic.metadata.propagation.max.ms"] = min(
        math.ceil(settings.unknown_topic_timeout * 1000), 3_600_000
    )
    if "socket.timeout.ms" not in config and "request.timeout.ms" in config:
        # Kafka's clients wait for an answer as long as they tell the broker that it has; librdkafka
        # has the two apart. It wants it to be less than a transaction may take.
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
    # What is asked for is not cut short by a bound that nobody asked for. Ours is the Java client's
    # for both, 1 s; for connections librdkafka has 10.
    for kind in ("reconnect.backoff", "retry.backoff"):
        least, most = f"{kind}.ms", f"{kind}.max.ms"
        if most not in config:
            config[most] = max(config.get(least, 0), 1000)
        elif least not in config:
            config[least] = min(100, config[most])  # librdkafka's own, unless that is more
        elif config[least] > config[most]:
            raise SettingsError(
                f"properties: {least}={config[least]} is more than {most}={config[most]}"
            )


# --- TLS and SASL --------------------------------------------------------------------------------


def _security_config(security: Security) -> dict[str, Any]:
    """The settings for TLS and SASL."""
    given = security.given
    config: dict[str, Any] = {}
    if "protocol" in given:
        config["security.protocol"] = security.protocol
    if security.mechanism:
        config["sasl.mechanism"] = security.mechanism
    if "user" in given:
        # librdkafka itself escapes what SCRAM wants escaped.
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
                "leaves out TLS 1.2 or 1.3, and librdkafka speaks what the broker does: have the "
                f"broker leave it out, {OTHER_DRIVER}",
            )
    # OpenSSL says the same of files to librdkafka, but in words that name neither the setting nor
    # what to do. A key in the settings is left out: Python would have to write it to a file.
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
                "names a suite of TLS 1.3, among which librdkafka lets nobody choose; name those "
                "of TLS 1.2 alone",
            )
        if any("@SECLEVEL=0" in name for name in names):
            # Tried with 2.16: it is this level alone that keeps librdkafka from TLS 1.0 and 1.1.
            raise given.wrong(
                "ciphers",
                "asks for security level 0, with which librdkafka would speak TLS 1.0 and 1.1",
            )
        config["ssl.cipher.suites"] = ":".join(names)
    if config.get("ssl.ca.location") == "probe":
        # librdkafka would look for the system's certificates, and not at this file.
        config["ssl.ca.location"] = "./probe"
    return config
