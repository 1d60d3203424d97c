"""What is the same for a property, whichever client library it is for: names, values, and which of
them go together.

Names here are Kafka's, in the one spelling that is compared. No message has a value in it that may
be secret.
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

#: How many bytes an answer may have. A client makes room for it as soon as it has read its length,
#: and by default accepts 100 MB. kafka-python makes objects of it that take up to 35 times as much
#: memory. An answer to a producer has some KB. This one describes 80,000 partitions, each with
#: three replicas.
RECEIVE_MAX: Final = 4 * 1024 * 1024

#: The default of transaction.timeout.ms, in Kafka's clients and in librdkafka.
TRANSACTION_TIMEOUT_MS: Final = 60_000

_ACKS: Final[dict[Any, Any]] = {0: 0, 1: 1, -1: "all", "all": "all", "0": 0, "1": 1, "-1": "all"}
COMPRESSIONS: Final = (None, "gzip", "snappy", "lz4", "zstd")
_REQUESTS: Final = "max_in_flight_requests_per_connection"


def unknown(given: str, name: str, library: str, spellings: Mapping[str, str]) -> SettingsError:
    """The error that there is no such property, with the nearest that there is.

    Args:
        given: how it was spelt.
        name: in the spelling that is compared.
        library: whose properties they are.
        spellings: those that there are, each with how it is to be written.
    """
    near = closest(name, spellings)
    hint = "" if near is None else f"; did you mean {spellings[near]!r}?"
    name = shown_name(given, is_known=near is not None)
    return SettingsError(f"properties: {name} is not a setting of {library}{hint}")


def acks_of(given: str, value: Any) -> Any:
    """0, 1 or ``"all"``."""
    # True and False are 1 and 0 to a dict.
    if isinstance(value, (int, str)) and not isinstance(value, bool) and value in _ACKS:
        return _ACKS[value]
    raise SettingsError(f"properties: {given!r} must be 0, 1 or 'all', not {shown(value)}")


def compression_of(given: str, value: Any) -> str | None:
    """Its name, or None."""
    chosen: str | None = None if value == "none" else value
    if chosen not in COMPRESSIONS:
        raise SettingsError(
            f"properties: {given!r} must be one of gzip, snappy, lz4, zstd, none, not "
            f"{shown(value)}"
        )
    return chosen


def truth_in(given: str, value: Any) -> bool:
    """True or False, which may be a text."""
    if isinstance(value, str):
        value = truth_of(value)
    if not isinstance(value, bool):
        raise SettingsError(f"properties: {given!r} must be true or false")
    return value


def number_of(
    given: str, value: Any, least: float = 0, most: float = math.inf, *, is_whole: bool = False
) -> int | float:
    """A number within bounds, which may be a text, as in a file of properties."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", value):
        value = float(value) if "." in value else int(value)
    kinds = int if is_whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        bounds = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise SettingsError(
            f"properties: {given!r} must be a {'whole ' if is_whole else ''}number {bounds}"
        )
    return value


def contradicting(config: Mapping[str, Any]) -> list[str]:
    """The settings in a configuration, with values as made here, that idempotence rules out."""
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
    """See that a configuration agrees with what is asked for of idempotence and transactions.

    Raises:
        SettingsError: it does not.
    """
    transactional = settings.transactional_id is not None
    if config.get("enable_idempotence") is True or transactional:
        other = "transactional_id" if transactional else "enable_idempotence=True"
        for name in contradicting(config):
            raise SettingsError(f"properties: {name}={config[name]!r} contradicts {other}")
    if transactional:
        if config.get("enable_idempotence") is False:
            raise SettingsError("properties: enable_idempotence=False contradicts transactional_id")
    elif "transaction_timeout_ms" in config:
        raise SettingsError(
            "properties: transaction_timeout_ms needs ProducerSettings(transactional_id=...)"
        )


def check_waits(config: Mapping[str, Any], settings: ProducerSettings) -> None:
    """Check that the waits of a client end before a record's deadline.

    Raises:
        SettingsError: the client would send, or send again, when it is too late.
    """
    bound, name = settings.delivery_timeout * 1000, "delivery_timeout"
    transaction = config.get("transaction_timeout_ms", TRANSACTION_TIMEOUT_MS)
    if settings.transactional_id is not None and transaction < bound:
        bound, name = transaction, "transaction.timeout.ms"
    for wait in ("linger_ms", "retry_backoff_ms", "reconnect_backoff_ms"):
        value = config.get(wait, 0)
        if value >= bound:
            raise SettingsError(
                f"properties: {wait.replace('_', '.')}={value} is not less than {name}"
            )


def answer_timeout_ms(bound_ms: float, most: int) -> int:
    """How long to wait for a broker's answer, where the user does not say.

    A firewall can drop an idle connection without a word. Half of the time that a record has leaves
    the other half for another attempt.

    Args:
        bound_ms: how long a record may take.
        most: the client's own default.
    """
    return int(min(max(bound_ms / 2, 1000), most))
