"""kafka-python's configuration, made of a producer's settings and checked before any connection.

May import: ``_security``, ``_settings``, ``_sources``, ``_exceptions``; not ``kafka``, whose own
defaults come as an argument.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from typing import Any, Final

from .._exceptions import SettingsError
from .._settings import ProducerSettings, canonical_name
from .._sources import truth_of
from ._security import NAMES, security_config

__all__ = ["client_config"]

#: What we set where the user does not. Measured choices: batches of 256 KiB carry seven times what
#: 16 KiB do at 20 ms round trip on one partition (idempotence sends one batch per partition at a
#: time); without a linger the next batch gathers while one is under way; the client's metrics cost
#: time and cannot be reached through us; the Java client too backs off for 1 s at most, not 30; the
#: client makes room for an answer when it has read no more than its length, and it would believe
#: 100 MB, where answers to a producer have some KB, or MB where there are very many partitions.
_DEFAULTS: Final[dict[str, Any]] = {
    "batch_size": 256 * 1024,
    "linger_ms": 0,
    "metrics_enabled": False,
    "receive_message_max_bytes": 16 * 1024 * 1024,
    "reconnect_backoff_max_ms": 1000,
}

#: What the producer itself decides, and what to set instead.
_MANAGED: Final[dict[str, str]] = {
    "bootstrap_servers": "use ProducerSettings(bootstrap_servers=...)",
    "bootstrap_timeout_ms": "use ProducerSettings(start_timeout=...), in seconds",
    "buffer_memory": "use ProducerSettings(max_buffered_bytes=...)",
    "client_id": "use ProducerSettings(client_id=...)",
    "delivery_timeout_ms": "use ProducerSettings(delivery_timeout=...), in seconds",
    "kafka_client": "the driver makes its own",
    "key_serializer": "use ProducerSettings(key_serializer=...)",
    "max_block_ms": "nothing blocks; ProducerSettings(delivery_timeout=...) bounds every wait",
    "transactional_id": "use ProducerSettings(transactional_id=...)",
    "value_serializer": "use ProducerSettings(value_serializer=...)",
}

_ACKS: Final[dict[Any, Any]] = {0: 0, 1: 1, -1: "all", "all": "all", "0": 0, "1": 1, "-1": "all"}
_COMPRESSIONS: Final = (None, "gzip", "snappy", "lz4", "zstd")


def client_config(settings: ProducerSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """kafka-python's configuration for these settings. Certificates are read here.

    Args:
        settings: the producer's settings.
        known: kafka-python's own settings, with their defaults.

    Raises:
        SettingsError: a property is unknown, managed by the producer, of a wrong kind, or
            contradicts another.
    """
    security, properties = security_config(settings.properties)
    config = {**_DEFAULTS, **security}
    for given, value in properties.items():
        name = canonical_name(given)
        if name in _MANAGED:
            raise SettingsError(f"properties: {given!r} can't be set here: {_MANAGED[name]}")
        if name not in known:
            names = (known.keys() | NAMES) - _MANAGED.keys()
            near = difflib.get_close_matches(name, sorted(names), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"properties: {given!r} is not a setting of kafka-python{hint}")
        config[name] = _property(given, name, value, known[name])
    transactional = settings.transactional_id is not None
    if config.get("enable_idempotence") is True or transactional:
        for name, contradicts in (
            ("acks", config.get("acks", "all") != "all"),
            ("retries", config.get("retries") == 0),
            (requests := "max_in_flight_requests_per_connection", config.get(requests, 1) > 5),
        ):
            if contradicts:
                other = "transactional_id" if transactional else "enable_idempotence=True"
                raise SettingsError(f"properties: {name}={config[name]!r} contradicts {other}")
    if settings.transactional_id is not None:
        config["transactional_id"] = settings.transactional_id
        if config.get("enable_idempotence") is False:
            raise SettingsError("properties: enable_idempotence=False contradicts transactional_id")
    elif "transaction_timeout_ms" in config:
        raise SettingsError(
            "properties: transaction_timeout_ms needs ProducerSettings(transactional_id=...)"
        )
    config.update(
        bootstrap_servers=list(settings.addresses),
        client_id=settings.client_id,
        # send() must never wait: a topic whose metadata is missing is held up on the loop's side.
        max_block_ms=0,
        # A batch that expires while it is retried leaves the idempotent client hanging for good,
        # so the client never expires one: the deadlines are the ledger's.
        delivery_timeout_ms=2**31 - 1,
    )
    return config


def _property(given: str, name: str, value: Any, default: Any) -> Any:
    if name == "acks":
        # True and False are 1 and 0 to a dict.
        if isinstance(value, (int, str)) and not isinstance(value, bool) and value in _ACKS:
            return _ACKS[value]
        raise SettingsError(f"properties: {given!r} must be 0, 1 or 'all', not {value!r}")
    if name == "compression_type":
        chosen = None if value == "none" else value
        if chosen not in _COMPRESSIONS:
            raise SettingsError(
                f"properties: {given!r} must be one of gzip, snappy, lz4, zstd, none, not {value!r}"
            )
        return chosen
    if isinstance(default, bool):
        if isinstance(value, str):
            value = truth_of(value)
        if not isinstance(value, bool):
            raise SettingsError(f"properties: {given!r} must be true or false")
    elif isinstance(default, (int, float)):
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = int(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise SettingsError(f"properties: {given!r} must be a number of 0 or more")
    return value
