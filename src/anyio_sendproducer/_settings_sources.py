"""Readers of settings: a mapping, a TOML file, a ``.properties`` file, environment variables.

They return constructor arguments of ``ProducerSettings``, which checks the values.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from ._exceptions import SettingsError
from ._kafka_names import (
    CLIENT_PROPERTIES,
    MANAGED,
    canonical_name,
    closest,
    is_client_property,
    is_family,
)
from ._properties_file import decode, parse, trim
from ._shown import shown, shown_name

__all__ = [
    "OBJECT_FIELDS",
    "from_environment",
    "from_mapping",
    "from_properties",
    "from_toml",
    "read_text",
    "truth_of",
    "unknown",
]

_PROPERTIES: Final = "properties"
#: Fields whose values are Python objects. ``repr`` shows only the name of such an object.
OBJECT_FIELDS: Final = frozenset(
    {
        "key_serializer",
        "value_serializer",
        "partitioner",
        "discovery_method",
        "enrich",
        "producer",
        "producer_factory",
    }
)
#: Fields that no variable can set. ``discovery_method`` may also be a name.
_WITHOUT_TEXT: Final = OBJECT_FIELDS - {"discovery_method"}
_TRUTH: Final = {"true": True, "false": False}
#: The largest settings file, in bytes. A larger one is a mistake, for example the path /dev/zero.
_LARGEST: Final = 1024 * 1024
#: A prefix that other programs use, too.
_SHARED_PREFIX: Final = "KAFKA_"
#: Kubernetes sets such variables for each service: with the service ``kafka``,
#: ``KAFKA_SERVICE_HOST`` and ``KAFKA_PORT_9092_TCP_ADDR``.
_KUBERNETES: Final = re.compile(
    r"(?:.+_)?(?:service_(?:host|port.*)|port|port_\d+_(?:tcp|udp|sctp).*)"
)

#: Java's serializers that have a counterpart here, each with the serializer to use; None for none.
_JAVA_SERIALIZERS: Final[Mapping[str, Callable[[Any], bytes] | None]] = {
    f"org.apache.kafka.common.serialization.{name}Serializer": serializer
    for name, serializer in (
        ("ByteArray", None),
        ("ByteBuffer", None),
        ("Bytes", None),
        ("String", str.encode),
    )
}


def truth_of(text: str) -> bool | None:
    """Parse 'true' or 'false', ignoring case; return None for any other text."""
    return _TRUTH.get(text.strip().lower())


def from_mapping(given: object, fields: Mapping[str, object]) -> dict[str, Any]:
    """Read the constructor arguments from a mapping.

    Args:
        given: names as in ``fields``, or with dashes in place of underscores, or Kafka's names.
        fields: the names of the fields, with their defaults.
    """
    if not isinstance(given, Mapping):
        raise SettingsError(f"settings must come as a mapping, not {type(given).__name__}")
    arguments = _Arguments()
    for key, value in _top_level(cast("Mapping[object, Any]", given)):
        if not isinstance(key, str):
            raise SettingsError(f"the name of a setting must be a str, not {shown(key)}")
        name = key.replace("-", "_")
        if name == _PROPERTIES:
            arguments.add(name, key, value)
        elif name in fields and not _is_clients_partitioner(name, value):
            parsed = _parsed(name, value, fields[name]) if isinstance(value, str) else value
            arguments.add(name, key, parsed)
        elif _is_kafka_name(name):
            _add_kafka(arguments, key, name, value)
        else:
            raise unknown(key, name, fields, is_table=isinstance(value, Mapping))
    return arguments.complete()


def from_properties(
    source: str | os.PathLike[str] | Mapping[str, Any],
) -> dict[str, Any]:
    """Read the constructor arguments from a ``.properties`` file, or from a mapping with Kafka's
    names."""
    if isinstance(source, Mapping):
        return _from_kafka(cast("Mapping[object, Any]", source))
    path = os.fspath(source)
    content = _read(path)
    try:
        return _from_kafka(parse(decode(content)))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error


def _from_kafka(properties: Mapping[Any, Any]) -> dict[str, Any]:
    arguments = _Arguments()
    for key, value in properties.items():
        if not isinstance(key, str):
            raise SettingsError(f"the name of a setting must be a str, not {shown(key)}")
        _add_kafka(arguments, key, key, trim(value) if isinstance(value, str) else value)
    return arguments.complete()


class _Arguments:
    """Gathers arguments, and refuses two names of one setting."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._properties: dict[str, Any] = {}
        self._given: dict[str, str] = {}

    def add(self, field: str, given: str, value: Any) -> None:
        """Add a field.

        Args:
            field: its name.
            given: the name that the user wrote.
            value: its value.
        """
        if field == _PROPERTIES and isinstance(value, Mapping):
            for name, content in _flattened(cast("Any", value)):
                self.add_property(name, content)
            return
        self._note(field, given)
        self._fields[field] = value

    def add_property(self, name: Any, value: Any) -> None:
        """Add a property of the client."""
        if isinstance(name, str):
            self._note(f"property {canonical_name(name)}", name)
        self._properties[name] = value

    def _note(self, setting: str, given: str) -> None:
        if setting in self._given:
            names = f"{shown_name(self._given[setting])} and {shown_name(given)}"
            raise SettingsError(f"{names} are one setting; give one")
        self._given[setting] = given

    def complete(self) -> dict[str, Any]:
        # A field `properties` is no mapping, so ProducerSettings must see and refuse it.
        if self._properties:
            return {_PROPERTIES: self._properties, **self._fields}
        return self._fields


def _top_level(given: Mapping[object, Any]) -> Iterable[tuple[object, Any]]:
    """Turn nested TOML tables back into dotted names."""
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(key, str) and is_family(key):
            yield from _flattened(cast("Any", value), f"{key}.")
        else:
            yield key, value


def _flattened(table: Mapping[Any, Any], above: str = "") -> Iterable[tuple[Any, Any]]:
    for key, value in table.items():
        name = f"{above}{key}" if isinstance(key, str) else key
        if isinstance(value, Mapping):
            yield from _flattened(cast("Any", value), f"{name}.")
        else:
            yield name, value


def _is_kafka_name(name: str) -> bool:
    return canonical_name(name) in MANAGED or is_client_property(name)


def _add_kafka(arguments: _Arguments, given: str, name: str, value: Any) -> None:
    """Add a setting by Kafka's name.

    Args:
        arguments: where to add it.
        given: the name that the user wrote, for errors.
        name: the same; :func:`from_mapping` has replaced its dashes by underscores.
        value: its value; a number may be a str.
    """
    canonical = canonical_name(name)
    if canonical in {"bootstrap_servers", "client_id", "transactional_id"}:
        arguments.add(canonical, given, value)
    elif canonical == "delivery_timeout_ms":
        arguments.add("delivery_timeout", given, _milliseconds(given, value))
    elif canonical == "buffer_memory":
        arguments.add("max_buffered_bytes", given, _whole_number(given, value))
    elif canonical in {"key_serializer", "value_serializer"}:
        arguments.add(canonical, given, _serializer(given, canonical, value))
    elif canonical == "partitioner" and not _is_clients_partitioner(canonical, value):
        arguments.add(canonical, given, value)
    else:
        arguments.add_property(name, value)


def _is_clients_partitioner(name: str, value: object) -> bool:
    """Whether this is a property of the client: the name of a partitioner of librdkafka, or a
    partitioner of kafka-python."""
    return name == "partitioner" and value is not None and not callable(value)


def _whole_number(given: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return value
    raise SettingsError(f"{given!r} must be a whole number of 0 or more")


def _milliseconds(given: str, value: object) -> dt.timedelta:
    number = _whole_number(given, value)
    with contextlib.suppress(OverflowError):
        return dt.timedelta(milliseconds=number)
    raise SettingsError(f"{given!r} is too long")


def _serializer(given: str, field: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    if value in _JAVA_SERIALIZERS:
        return _JAVA_SERIALIZERS[value]
    raise SettingsError(
        f"{given!r} names a class of Java that has no counterpart here: leave it out, and use "
        f"with_{field}()"
    )


def _parsed(name: str, text: str, default: object) -> Any:
    """Convert a text to the type of its field if that is a number or a bool."""
    parse_number: Callable[[str], Any]
    if isinstance(default, bool):
        truth = truth_of(text)
        # ProducerSettings refuses any other text.
        return text if truth is None else truth
    if isinstance(default, int):
        parse_number, what = int, "an int"
    elif isinstance(default, float):
        parse_number, what = float, "a number of seconds, such as 2.5"
    else:
        return text
    # Raised outside of `except`, because the ValueError repeats the text, which may be a secret.
    with contextlib.suppress(ValueError):
        return parse_number(text)
    raise SettingsError(f"{name} must be {what}, not {shown(text)}")


def unknown(
    given: str,
    name: str,
    fields: Iterable[str],
    spell: Callable[[str], str] = str,
    spell_property: Callable[[str], str] | None = None,
    *,
    is_table: bool = False,
) -> SettingsError:
    """The error for a name that is not a setting.

    The message says where the setting belongs, or suggests the closest name, or lists the names.

    Args:
        given: the name as the user wrote it.
        name: the same in the spelling of a field's name, with underscores.
        fields: the names of the fields.
        spell: spells the name of a field in the way that the user writes names.
        spell_property: the same for a property of the client; None: ``properties={...}``.
        is_table: whether the value is a table, which may contain the settings.
    """
    names = [*fields]
    as_property = spell_property or _as_keyword
    canonical = canonical_name(name.lower())
    if canonical in MANAGED and canonical not in names:
        return SettingsError(f"{given!r} is not a setting here: {MANAGED[canonical]}")
    if canonical in CLIENT_PROPERTIES:
        place = as_property(CLIENT_PROPERTIES[canonical])
        return SettingsError(f"{given!r} is a setting of the client: use {place}")
    near = closest(canonical, {*names, *CLIENT_PROPERTIES})
    wrong = f"{shown_name(given, is_known=near is not None)} is not a setting"
    if near is not None and near in CLIENT_PROPERTIES and near not in names:
        return SettingsError(f"{wrong}; did you mean {as_property(CLIENT_PROPERTIES[near])}?")
    if near is not None:
        return SettingsError(f"{wrong}; did you mean {spell(near)!r}?")
    if is_table:
        return SettingsError(
            f"{wrong}, but a table: if it contains the settings, choose it with the argument "
            "table, or with --config-table"
        )
    known = ", ".join(map(spell, sorted(names)))
    example = as_property("linger.ms")
    return SettingsError(f"{wrong}: the settings are {known}; set a client property with {example}")


def _as_keyword(name: str) -> str:
    return f"properties={{{name!r}: ...}}"


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: no file can have this path
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path} can't be read: {reason}") from error
    if len(content) > _LARGEST:
        raise SettingsError(f"{path} has more than 1 MiB, so it is not a settings file")
    return content


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a settings file in UTF-8, without a byte order mark.

    Raises:
        SettingsError: the file cannot be read, is not UTF-8, or has more than 1 MiB. If it is not
            UTF-8, the error has no ``__cause__``, because a UnicodeDecodeError contains the file's
            content.
    """
    content = _read(os.fspath(path))
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig")
    raise SettingsError(
        f"{os.fspath(path)} is not UTF-8: save it as UTF-8, for example with iconv -t UTF-8"
    )


def from_toml(path: str | os.PathLike[str], table: str, fields: Mapping[str, object]) -> Any:
    """Read the constructor arguments from a table of a TOML file.

    Args:
        path: the file.
        table: the table's full name, with dots; empty for the whole file.
        fields: as for :func:`from_mapping`.
    """
    loads, text, problem = _toml().loads, read_text(path), ""
    found: Any = None
    try:
        found = loads(text)
    except ValueError as error:  # TOMLDecodeError, which holds the whole text since Python 3.14
        problem = str(error)
    if problem:
        raise SettingsError(f"{os.fspath(path)} is not TOML: {problem}")
    for name in table.split(".") if table else []:
        found = cast("Any", found).get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise SettingsError(f"{os.fspath(path)} has no table [{table}]")
    try:
        return from_mapping(cast("dict[str, Any]", found), fields)
    except SettingsError as error:
        raise SettingsError(f"{os.fspath(path)}: {error}") from error


def _toml() -> Any:
    for name in ("tomllib", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SettingsError(
        "Python 3.10 cannot read TOML: install tomli, for example by "
        'pip install ".[toml]" in a checkout of anyio-sendproducer'
    )


def from_environment(
    prefix: str, environment: Mapping[str, str], fields: Mapping[str, object]
) -> dict[str, Any]:
    """Read the constructor arguments from environment variables.

    Args:
        prefix: the beginning of the variables' names.
        environment: all variables.
        fields: as for :func:`from_mapping`.

    Raises:
        SettingsError: a variable is not a setting, or its value is wrong. Variables that Kubernetes
            sets are ignored. Other programs also use the prefix ``KAFKA``, so with this prefix
            every variable that does not resemble a setting is ignored, too.
    """
    if not isinstance(cast("object", prefix), str) or not prefix.strip("_"):
        raise SettingsError(
            f"prefix must be a str that is not empty, such as 'ORDERS', not {shown(prefix)}"
        )
    start = prefix.rstrip("_") + "_"
    arguments: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for variable, text in environment.items():
        if not variable.startswith(start):
            continue
        name = variable[len(start) :].lower()
        if name.startswith(f"{_PROPERTIES}_"):
            properties[name[len(_PROPERTIES) + 1 :]] = text
        elif name == _PROPERTIES:
            raise SettingsError(
                f"{variable}: set one variable for each property, such as "
                f"{variable}_COMPRESSION_TYPE"
            )
        elif name not in fields:
            if not _is_foreign(start, name, fields):
                raise unknown(
                    variable,
                    name,
                    [one for one in fields if one not in _WITHOUT_TEXT],
                    lambda field: f"{start}{field.upper()}",
                    lambda one: f"{start}PROPERTIES_{canonical_name(one).upper()}",
                )
        elif name in _WITHOUT_TEXT:
            own = f", or {start}PROPERTIES_{name.upper()} for one of the client's own"
            raise SettingsError(
                f"{variable} cannot be set by an environment variable; use with_{name}()"
                f"{own if is_client_property(name) else ''}"
            )
        else:
            try:
                arguments[name] = _parsed(name, text, fields[name])
            except SettingsError as error:
                raise SettingsError(f"{variable}: {error}") from None
    if properties:
        arguments[_PROPERTIES] = properties
    return arguments


def _is_foreign(start: str, name: str, fields: Iterable[str]) -> bool:
    """Whether a variable that is not a setting belongs to another program."""
    if _KUBERNETES.fullmatch(name):
        return True
    return start == _SHARED_PREFIX and not (
        _is_kafka_name(name) or closest(name, {*fields, *CLIENT_PROPERTIES})
    )
