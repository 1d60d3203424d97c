"""The producer's settings, from the environment, a file, properties and options.

Properties have Kafka's names here, even if the producer has a field for them. So a user with a
``producer.properties`` does not need to know which of them are fields.

No message contains a value that may be secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from .. import ProducerSettings, SettingsError
from ..drivers import DriverName
from ._running import EXTRA, require, require_loop
from ._settings_files import read_properties, read_toml

__all__ = [
    "Connection",
    "environment_has_address",
    "parse_property",
    "require_for",
    "settings_of",
]

#: Kafka's properties that are fields of the producer's settings.
_FIELDS: Final = {
    "bootstrap.servers": "bootstrap_servers",
    "client.id": "client_id",
    "transactional.id": "transactional_id",
}
#: The same, in milliseconds.
_DURATIONS: Final = {"delivery.timeout.ms": "delivery_timeout"}
#: The same, in bytes.
_SIZES: Final = {"buffer.memory": "max_buffered_bytes"}
#: Properties of Java's producer that a command does not need. The first two name Java classes, and
#: records are bytes here. The third bounds calls that block. No call of a command blocks: records
#: wait for up to ``delivery.timeout.ms`` instead.
_LEFT_OUT: Final = frozenset({"key.serializer", "value.serializer", "max.block.ms"})

#: The names of a login's password, as they are compared: librdkafka's and kafka-python's.
_PASSWORDS: Final = frozenset({"sasl_password", "sasl_plain_password"})

#: The prefix of environment variables.
_PREFIX: Final = "KAFKA"
#: The fields that name a cluster. One takes the place of the other.
_ADDRESSES: Final = frozenset({"bootstrap_servers", "service_name"})
#: The environment variables of these fields.
_ADDRESS_VARIABLES: Final = frozenset(f"{_PREFIX}_{name.upper()}" for name in _ADDRESSES)
#: Stands for addresses that are not known yet.
_NO_ADDRESS: Final = "no-address.invalid:1"
_DEFAULTS: Final = ProducerSettings(bootstrap_servers=_NO_ADDRESS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """The options of a command line that name a cluster and say how to reach it."""

    bootstrap_servers: str | None = None
    service_name: str | None = None
    config: Path | None = None
    config_table: str = ""
    properties: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)
    #: The password that the user typed, if ``-W`` asked for it.
    password: str | None = dataclasses.field(default=None, repr=False)
    driver: DriverName | None = None


def parse_property(text: str) -> tuple[str, str]:
    """The name and the value of ``name=value``.

    Raises:
        ValueError: there is no ``=`` in the text, or nothing before it. The message does not
            contain the text, which may be a password.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ValueError("a property must have the form name=value")
    return name, value


def require_for(connection: Connection, loop: str) -> None:
    """Check that the packages for a command with a connection are installed.

    Raises:
        MissingExtra: one is not; see :func:`require`.
    """
    require("the command line", EXTRA, "rich.console", "rich.progress", "rich.table")
    require_loop("--loop", loop)
    if connection.config is not None and connection.config.suffix == ".properties":
        require("--config", EXTRA, "javaproperties")


def environment_has_address() -> bool:
    """Whether the environment names a cluster."""
    return any(map(os.environ.get, _ADDRESS_VARIABLES))


def settings_of(
    connection: Connection, *, defaults: Mapping[str, Any] = MappingProxyType({}), **fields: Any
) -> ProducerSettings:
    """Combine the settings. Options override properties (``-X``), properties override the file, and
    the file overrides the environment.

    Args:
        connection: what the command line says about the cluster.
        defaults: fields that everything else overrides.
        fields: options that are fields of the settings; None for options that were not given. The
            item ``properties`` is an exception: ``-X`` overrides these properties.

    Raises:
        SettingsError: the file cannot be read, or a setting is wrong.
    """
    arguments: dict[str, Any] = dict(defaults)
    _add(arguments, _from_environment())
    if connection.config is not None:
        _add(arguments, _from_file(connection.config, connection.config_table))
    for layer in (fields.pop("properties", {}).items(), connection.properties):
        _add(arguments, _by_field(layer))
    if connection.password is not None:
        arguments["properties"] = _with_password(
            arguments.get("properties", {}), connection.password
        )
    fields |= {
        "bootstrap_servers": connection.bootstrap_servers,
        "service_name": connection.service_name,
    }
    _add(arguments, {name: value for name, value in fields.items() if value is not None})
    return ProducerSettings.from_mapping(arguments)


def _from_environment() -> dict[str, Any]:
    prefix = f"{_PREFIX}_"
    given = [
        name.removeprefix(prefix).lower()
        for name, value in os.environ.items()
        # An empty address is no address, so another layer may have one.
        if name.startswith(prefix) and (value or name not in _ADDRESS_VARIABLES)
    ]
    address = {f"{prefix}{name.upper()}": value for name, value in _addressed(given).items()}
    return _layer(given, ProducerSettings.from_env(_PREFIX, {**os.environ, **address}))


def _from_file(path: Path, table: str) -> dict[str, Any]:
    if path.suffix == ".toml":
        return _from_toml(path, table)
    if path.suffix != ".properties":
        raise SettingsError(f"{path}: the name of a settings file must end in .properties or .toml")
    if table:
        raise SettingsError(
            f"{path} has no tables, because it is not TOML: leave out --config-table"
        )
    return _by_field(read_properties(path).items())


def _from_toml(path: Path, table: str) -> dict[str, Any]:
    given = read_toml(path, table)
    names = [*_names(given)]
    try:
        return _layer(names, ProducerSettings.from_mapping({**_addressed(names), **given}))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _names(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The names in a table of TOML, in which ``client.id = "me"`` is a table ``client``."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _names(cast("Mapping[str, Any]", value), f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _addressed(given: Iterable[str]) -> dict[str, str]:
    """A placeholder for the address, if these settings have none: another layer may have one."""
    names = {_compared(name) for name in given}
    return {} if names & _ADDRESSES else {"bootstrap_servers": _NO_ADDRESS}


def _layer(given: Iterable[str], settings: ProducerSettings) -> dict[str, Any]:
    """The fields that were set, or that differ from the default."""
    names = {_compared(name) for name in given}
    return {
        field.name: value
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) not in ("", _NO_ADDRESS)
        and (field.name in names or value != getattr(_DEFAULTS, field.name))
    }


def _by_field(properties: Iterable[tuple[str, str]]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    others: dict[str, str] = {}
    for given, value in properties:
        name = given.replace("_", ".")
        if name in _LEFT_OUT:
            continue
        if name in _FIELDS:
            arguments[_FIELDS[name]] = value
        elif name in _DURATIONS:
            arguments[_DURATIONS[name]] = _milliseconds(given, value)
        elif name in _SIZES:
            arguments[_SIZES[name]] = _number(given, value)
        else:
            others[given] = value
    if others:
        arguments["properties"] = others
    return arguments


def _number(name: str, text: str) -> int:
    # Raised outside of `except`, because the ValueError repeats the text, which may be a secret.
    with contextlib.suppress(ValueError):
        return int(text)
    raise SettingsError(f"{name!r} must be a whole number")


def _milliseconds(name: str, text: str) -> dt.timedelta:
    """A duration. A timedelta causes no warning that the number may be in milliseconds."""
    number = _number(name, text)
    with contextlib.suppress(OverflowError):
        return dt.timedelta(milliseconds=number)
    raise SettingsError(f"{name!r} is too long")


def _add(arguments: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer over the others. A property is overridden in each of its spellings."""
    properties: dict[str, Any] = dict(arguments.get("properties", {}))
    added: Mapping[str, Any] = layer.get("properties", {})
    replaced = {_compared(name) for name in added}
    kept = {name: value for name, value in properties.items() if _compared(name) not in replaced}
    if _ADDRESSES & layer.keys():
        for name in _ADDRESSES:
            arguments.pop(name, None)
    arguments |= layer
    if kept or added:
        arguments["properties"] = kept | dict(added)


def _with_password(properties: Mapping[str, Any], password: str) -> dict[str, Any]:
    """Replace the password, under each of its names.

    Raises:
        SettingsError: ``sasl.jaas.config`` is set, which contains a password.
    """
    kept = {name: value for name, value in properties.items() if _compared(name) not in _PASSWORDS}
    if "sasl_jaas_config" in map(_compared, kept):
        raise SettingsError(
            "--ask-password (-W) cannot be combined with 'sasl.jaas.config', which contains a "
            "password: set 'sasl.username' instead of 'sasl.jaas.config', or leave out -W"
        )
    return {**kept, "sasl.password": password}


def _compared(name: str) -> str:
    return name.replace(".", "_").replace("-", "_")
