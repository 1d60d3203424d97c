"""Settings out of a mapping, a TOML file or the environment: names and texts, made into arguments.

What the values are to be is checked where they arrive, in ``ProducerSettings`` itself.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from ._exceptions import SettingsError
from ._shown import shown, shown_name

__all__ = [
    "from_environment",
    "from_mapping",
    "from_toml",
    "read_text",
    "truth_of",
    "unknown",
]

_PROPERTIES: Final = "properties"
#: What no text stands for.
_CODE: Final = frozenset({"enrich", "producer", "producer_factory"})
_TRUTH: Final = {"true": True, "false": False}
#: A larger settings file is a mistake, for example a path such as /dev/zero; bytes.
_LARGEST: Final = 1024 * 1024


def truth_of(text: str) -> bool | None:
    """What a text says, in whichever case: true or false; None where it is neither."""
    return _TRUTH.get(text.strip().lower())


def from_mapping(given: object, fields: Mapping[str, object]) -> dict[str, Any]:
    """The arguments that a mapping holds.

    Args:
        given: names as in ``fields``, or with dashes in place of underscores.
        fields: the names that there are, with their defaults.
    """
    if not isinstance(given, Mapping):
        raise SettingsError(f"settings must come as a mapping, not {type(given).__name__}")
    arguments: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in cast("Mapping[object, Any]", given).items():
        if not isinstance(key, str):
            raise SettingsError(f"the name of a setting must be a str, not {shown(key)}")
        name = key.replace("-", "_")
        if name not in fields:
            raise unknown(key, name, fields)
        if name in spelt:
            raise SettingsError(f"{spelt[name]!r} and {key!r} are one setting; give one")
        spelt[name] = key
        if name == _PROPERTIES and isinstance(value, Mapping):
            arguments[name] = dict(_flattened(cast("Any", value)))
        elif isinstance(value, str):
            arguments[name] = _parsed(name, value, fields[name])
        else:
            arguments[name] = value
    return arguments


def _flattened(table: Mapping[Any, Any], above: str = "") -> Iterable[tuple[Any, Any]]:
    # TOML makes tables of the dots in a bare key.
    for key, value in table.items():
        name = f"{above}{key}" if isinstance(key, str) else key
        if isinstance(value, Mapping):
            yield from _flattened(cast("Any", value), f"{name}.")
        else:
            yield name, value


def _parsed(name: str, text: str, default: object) -> Any:
    """A text as what the field is, where it is a number."""
    parse: Callable[[str], Any]
    if isinstance(default, bool):
        truth = truth_of(text)
        # What is neither is refused where it arrives.
        return text if truth is None else truth
    if isinstance(default, int):
        parse, what = int, "an int"
    elif isinstance(default, float):
        parse, what = float, "a number of seconds, such as 2.5"
    else:
        return text
    # Raised outside of `except`, because the ValueError repeats the text, which may be a secret.
    with contextlib.suppress(ValueError):
        return parse(text)
    raise SettingsError(f"{name} must be {what}, not {shown(text)}")


def unknown(
    given: str,
    name: str,
    fields: Iterable[str],
    spell: Callable[[str], str] = str,
    others: str = "what is for the client itself goes into 'properties'",
) -> SettingsError:
    """The error that there is no such setting, with the nearest that there is, or all of them.

    Args:
        given: the name as it was spelt.
        name: as it would be spelt here.
        fields: those that there are.
        spell: how one of them would be spelt there.
        others: what else there is.
    """
    near = difflib.get_close_matches(name.lower(), [*fields], n=1)
    wrong = f"{shown_name(given, is_known=bool(near))} is not a setting"
    if near:
        return SettingsError(f"{wrong}; did you mean {spell(near[0])!r}?")
    known = ", ".join(map(spell, sorted(fields)))
    return SettingsError(f"{wrong}: there are {known}; {others}")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a settings file, without a byte order mark.

    Raises:
        SettingsError: it cannot be read, is not UTF-8, or has more than 1 MiB. The error has none
            of the content, and no cause that has it: a UnicodeDecodeError holds all of it.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError(f"{os.fspath(path)} can't be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise SettingsError(f"{os.fspath(path)} has more than 1 MiB, so it holds no settings")
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig")
    raise SettingsError(
        f"{os.fspath(path)} is not UTF-8: save it as UTF-8, for example with iconv -t UTF-8"
    )


def from_toml(path: str | os.PathLike[str], table: str, fields: Mapping[str, object]) -> Any:
    """The arguments that a table of a TOML file holds.

    Args:
        path: the file.
        table: its name, with dots between those above it and its own; empty for the whole file.
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
        "Python 3.10 reads no TOML by itself: install tomli, as by "
        "pip install 'anyio-sendproducer[toml]'"
    )


def from_environment(
    prefix: str, environment: Mapping[str, str], fields: Mapping[str, object]
) -> dict[str, Any]:
    """The arguments that environment variables hold.

    Args:
        prefix: what their names begin with.
        environment: all variables.
        fields: as for :func:`from_mapping`.
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
                f"{variable}: each property has a variable of its own, such as "
                f"{variable}_COMPRESSION_TYPE"
            )
        elif name not in fields:
            raise unknown(
                variable,
                name,
                [one for one in fields if one not in _CODE and not one.endswith("_serializer")],
                lambda field: f"{start}{field.upper()}",
                f"what is for the client itself has a name such as {start}PROPERTIES_ACKS",
            )
        elif name.endswith("_serializer") or name in _CODE:
            raise SettingsError(f"{variable}: that is code: use with_{name}()")
        else:
            try:
                arguments[name] = _parsed(name, text, fields[name])
            except SettingsError as error:
                raise SettingsError(f"{variable}: {error}") from None
    if properties:
        arguments[_PROPERTIES] = properties
    return arguments
