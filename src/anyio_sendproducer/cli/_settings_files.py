"""Settings files: Kafka's ``.properties``, and TOML.

No message has a value in it that may be secret. Errors of parsers are not chained, because they
hold the text of the file.

A ``.properties`` file needs ``javaproperties`` (extra ``cli``). TOML on Python 3.10 needs ``tomli``
(extra ``toml``).
"""

from __future__ import annotations

import contextlib
import importlib
import re
from pathlib import Path
from typing import Any, Final, cast

from .. import SettingsError

__all__ = ["read_properties", "read_toml"]

#: A larger settings file is a mistake, for example a path such as /dev/zero; bytes.
_LARGEST: Final = 1024 * 1024

#: Kafka's clients remove these characters at both ends of a value.
_BLANKS: Final = "".join(map(chr, range(0x21)))

_LINE_END: Final = re.compile(r"\r\n?|\n")


def read_properties(path: Path) -> dict[str, str]:
    """The names and values in a ``.properties`` file. Blanks around a value are removed.

    Raises:
        SettingsError: the file cannot be read, or has a wrong escape sequence.
    """
    import javaproperties

    found: dict[str, str] = {}
    line = 1
    # Not the message of InvalidUEscapeError, which repeats up to four characters of a value.
    with contextlib.suppress(javaproperties.InvalidUEscapeError):
        # Its type hints do not name the type of an IO.
        for element in javaproperties.parse(_read(path)):  # pyright: ignore[reportUnknownMemberType]
            if isinstance(element, javaproperties.KeyValue):
                found[element.key] = element.value.strip(_BLANKS)
            line += len(_LINE_END.findall(element.source))
        return found
    raise SettingsError(rf"{path}, line {line}: \u must be followed by four hexadecimal digits")


def read_toml(path: Path, table: str) -> dict[str, Any]:
    """A table of a TOML file.

    Args:
        path: the file.
        table: the table's full name, with dots; empty for the whole file.

    Raises:
        SettingsError: the file cannot be read, is not TOML, or has no such table; or ``tomli`` is
            needed and not installed.
    """
    text = _read(path)
    loads, problem = _toml().loads, ""
    found: Any = None
    try:
        found = loads(text)
    except ValueError as error:  # TOMLDecodeError
        problem = str(error)
    if problem:
        raise SettingsError(f"{path} is not TOML: {problem}")
    for name in table.split(".") if table else ():
        found = cast("dict[str, Any]", found).get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise SettingsError(f"{path} has no table [{table}]")
    return cast("dict[str, Any]", found)


def _toml() -> Any:
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise SettingsError(
        'Python 3.10 cannot read TOML by itself: pip install ".[toml]" in a checkout of '
        "anyio-sendproducer"
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise SettingsError(f"{path} has more than 1 MiB, so it is not a settings file")
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig")
    raise SettingsError(f"{path} is not UTF-8: save it as UTF-8, for example with iconv -t UTF-8")
