"""Checks of properties that both client libraries share: names, values and contradictions.

Names are Kafka's, in canonical spelling. No message contains a value that may be secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from .._exceptions import SettingsError
from .._kafka_names import MANAGED, closest
from .._settings import ProducerSettings
from .._settings_sources import truth_of
from .._shown import shown, shown_name

__all__ = [
    "COMPRESSIONS",
    "MANAGED",
    "RECEIVE_MAX",
    "TRANSACTION_TIMEOUT_MS",
    "acks_of",
    "answer_timeout_ms",
    "check_agreement",
    "check_waits",
    "compression_of",
    "contradicting",
    "number_of",
    "truth_in",
    "unknown",
]

#: The bytes that an answer may have. A client allocates them as soon as it has read the length, and
#: by default accepts 100 MB. kafka-python's objects for an answer take up to 35 times as much
#: memory. An answer to a producer has a few KB. This limit is enough for the metadata of 80,000
#: partitions, each with three replicas.
RECEIVE_MAX: Final = 4 * 1024 * 1024

#: The default of transaction.timeout.ms, in Kafka's clients and in librdkafka.
TRANSACTION_TIMEOUT_MS: Final = 60_000

_ACKS: Final[dict[Any, Any]] = {0: 0, 1: 1, -1: "all", "all": "all", "0": 0, "1": 1, "-1": "all"}
COMPRESSIONS: Final = (None, "gzip", "snappy", "lz4", "zstd")
_REQUESTS: Final = "max_in_flight_requests_per_connection"


def unknown(given: str, name: str, library: str, spellings: Mapping[str, str]) -> SettingsError:
    """Make the error of an unknown property, which suggests the closest known name.

    Args:
        given: the name as the user spelled it.
        name: the name in canonical spelling.
        library: the client library.
        spellings: the known names in canonical spelling, each with the spelling to suggest.
    """
    near = closest(name, spellings)
    hint = "" if near is None else f"; did you mean {spellings[near]!r}?"
    name = shown_name(given, is_known=near is not None)
    return SettingsError(f"properties: {name} is not a setting of {library}{hint}")


def acks_of(given: str, value: Any) -> Any:
    """Return the value of ``acks``: 0, 1 or ``"all"``."""
    # In a dict, True and False are the keys 1 and 0.
    if isinstance(value, (int, str)) and not isinstance(value, bool) and value in _ACKS:
        return _ACKS[value]
    raise SettingsError(f"properties: {given!r} must be 0, 1 or 'all', not {shown(value)}")


def compression_of(given: str, value: Any) -> str | None:
    """Return the name of a compression, or None."""
    chosen: str | None = None if value == "none" else value
    if chosen not in COMPRESSIONS:
        raise SettingsError(
            f"properties: {given!r} must be one of gzip, snappy, lz4, zstd, none, not "
            f"{shown(value)}"
        )
    return chosen


def truth_in(given: str, value: Any) -> bool:
    """Return a boolean, which may be given as a str."""
    if isinstance(value, str):
        value = truth_of(value)
    if not isinstance(value, bool):
        raise SettingsError(f"properties: {given!r} must be true or false")
    return value


def number_of(
    given: str,
    value: Any,
    minimum: float = 0,
    maximum: float = math.inf,
    *,
    is_whole: bool = False,
) -> int | float:
    """Return a number within bounds, which may be given as a str, as in a properties file."""
    # Python refuses to convert thousands of digits.
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,30}(\.\d{1,30})?\s*", value):
        value = float(value) if "." in value else int(value)
    kinds = int if is_whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not minimum <= value <= maximum:
        bounds = f"of {minimum} or more" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise SettingsError(
            f"properties: {given!r} must be a {'whole ' if is_whole else ''}number {bounds}"
        )
    return value


def contradicting(config: Mapping[str, Any]) -> list[str]:
    """Return the settings in a checked configuration that contradict idempotence."""
    return [
        name
        for name, contradicts in (
            ("acks", config.get("acks", "all") != "all"),
            ("retries", config.get("retries") == 0),
            (_REQUESTS, config.get(_REQUESTS, 1) > 5),
        )
        if contradicts
    ]


def check_agreement(config: Mapping[str, Any], settings: ProducerSettings) -> None:
    """Check that a configuration does not contradict idempotence or transactions.

    Raises:
        SettingsError: it does, or it has a transaction timeout without a ``transactional_id``.
    """
    transactional = settings.transactional_id is not None
    if config.get("enable_idempotence") is True or transactional:
        other = "transactional_id" if transactional else "enable_idempotence=True"
        for name in contradicting(config):
            raise SettingsError(f"properties: {name}={shown(config[name])} contradicts {other}")
    if transactional:
        if config.get("enable_idempotence") is False:
            raise SettingsError("properties: enable_idempotence=False contradicts transactional_id")
    elif "transaction_timeout_ms" in config:
        raise SettingsError(
            "properties: transaction_timeout_ms needs ProducerSettings(transactional_id=...)"
        )


def check_waits(config: Mapping[str, Any], settings: ProducerSettings) -> None:
    """Check that the waits of a client end before a record's deadline, and before its transaction
    times out.

    Raises:
        SettingsError: the client would send, or retry, after that.
    """
    bound, name = settings.delivery_timeout * 1000, "delivery_timeout"
    transaction = config.get("transaction_timeout_ms", TRANSACTION_TIMEOUT_MS)
    if settings.transactional_id is not None and transaction < bound:
        bound, name = transaction, "transaction.timeout.ms"
    for wait in ("linger_ms", "retry_backoff_ms", "reconnect_backoff_ms"):
        value = config.get(wait, 0)
        if value >= bound:
            raise SettingsError(
                f"properties: {wait.replace('_', '.')}={shown(value)} is not less than {name}"
            )


def answer_timeout_ms(bound_ms: float, limit: int) -> int:
    """Return the default of the timeout for a broker's answer, in milliseconds.

    A firewall can drop an idle connection silently. If no answer has come after half of a record's
    time, the other half is left for a second attempt.

    Args:
        bound_ms: the time that a record may take.
        limit: the client's own default.
    """
    return int(min(max(bound_ms / 2, 1000), limit))
