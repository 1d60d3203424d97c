"""Fields of JSON objects and CSV rows, and the parts of a record that they become.

JSON is sent as it was written: numbers are not converted, and an object or an array is cut out of
the line, so that it keeps its spaces, escapes and repeated names.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import re
from typing import Any, Final, NamedTuple, NoReturn, cast

from ._failed import Unreadable

__all__ = [
    "NO_FIELDS",
    "Fields",
    "Source",
    "as_bytes",
    "as_milliseconds",
    "as_whole_number",
    "dump_json",
    "parse_json",
]

_MISSING: Final = object()

_WHOLE: Final = re.compile(r"\s*[+-]?[0-9]+\s*")
_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\s*")


class Fields(NamedTuple):
    """The names of the fields that become parts of a record. A name is None if no field becomes
    that part."""

    value: str | None = None
    key: str | None = None
    partition: str | None = None
    timestamp: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    """Pairs of a header's name and a field's."""

    @property
    def any(self) -> bool:
        """Whether any field is named."""
        return self != NO_FIELDS

    @property
    def names(self) -> list[str]:
        """The names of the fields that are used."""
        used = [*self[:4], *(name for _, name in self.headers)]
        return [name for name in used if name is not None]


#: No field is read.
NO_FIELDS: Final = Fields()


class _Number(str):
    """The source text of a JSON number."""

    __slots__ = ()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


#: Numbers keep their text, so there is no limit to their size and no loss of digits.
_DECODER: Final = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
_decode_at: Final = _DECODER.raw_decode
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

#: JSON's white space, and the marks between the members of an object.
_skip: Final = re.compile(r"[ \t\r\n]*[{,:]?[ \t\r\n]*").match


class Source(NamedTuple):
    """A JSON value and its text, or the cells of a CSV row and an empty text."""

    value: Any
    text: str


def parse_json(line: bytes) -> Source:
    """Parse one JSON value.

    Raises:
        Unreadable: it is not UTF-8, not JSON, or nested too deeply.
    """
    try:
        text = line.decode()
        return Source(_DECODER.decode(text), text)
    except ValueError as error:  # of JSON, and of UTF-8
        raise Unreadable(f"not JSON: {error}") from None
    except RecursionError:
        raise Unreadable("the JSON is nested too deeply") from None


def dump_json(value: Any) -> bytes:
    """JSON text of some cells, without spaces."""
    return _encode(value).encode()


def _find(found: dict[str, Any], name: str) -> tuple[Any, tuple[str, ...]]:
    """The field of this name and its path. Without such a field, dots lead into objects."""
    value: Any = found.get(name, _MISSING)
    if value is not _MISSING:
        return value, (name,)
    parts = tuple(name.split("."))
    value = found
    for part in parts:
        inside = isinstance(value, dict)
        value = cast("dict[str, Any]", value).get(part, _MISSING) if inside else _MISSING
    if value is _MISSING:
        raise Unreadable(f"there is no field {name!r}")
    return value, parts


def _member(text: str, name: str) -> str:
    """The text of an object's member. The last of several members with the same name counts, as in
    :mod:`json`.

    Args:
        text: the text of a valid object that has such a member.
        name: the member's name.
    """
    found = ""
    place = cast("re.Match[str]", _skip(text, 0)).end()
    while text[place] != "}":
        key, place = _decode_at(text, place)
        begin = cast("re.Match[str]", _skip(text, place)).end()
        _, place = _decode_at(text, begin)
        if key == name:
            found = text[begin:place]
        place = cast("re.Match[str]", _skip(text, place)).end()
    return found


def as_bytes(source: Source, name: str) -> bytes | None:
    """A field as a key, a value or a header: the content of a string, None for null, otherwise the
    JSON text.

    Raises:
        Unreadable: there is no such field, or it is text that UTF-8 cannot encode.
    """
    value, path = _find(source.value, name)
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Unreadable(f"{name!r} contains half of a surrogate pair") from None
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    text = source.text
    for part in path:
        text = _member(text, part)
    return text.encode()


def as_whole_number(source: Source, name: str) -> int | None:
    """A field as a partition's number; None if it is null or empty.

    Raises:
        Unreadable: there is no such field, or it is not a whole number.
    """
    value, _ = _find(source.value, name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        with contextlib.suppress(ValueError):  # more digits than Python converts
            return int(value)
    raise Unreadable(f"{name!r} is not a whole number")


def as_milliseconds(source: Source, name: str) -> int | None:
    """A field as milliseconds since 1970; None if it is null or empty.

    Otherwise the field is a number, or a date and time in ISO 8601 format with a time zone.

    Raises:
        Unreadable: there is no such field, or it is none of these.
    """
    with contextlib.suppress(Unreadable):
        # Numbers first, because digits alone can also be a date.
        return as_whole_number(source, name)
    value, _ = _find(source.value, name)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
        if math.isfinite(number):
            return round(number)
    elif isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            # Python 3.10 does not know Z.
            when = dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
            if when.tzinfo is None:
                raise Unreadable(f"{name!r} has no time zone: {value!r:.40}")
            return round(when.timestamp() * 1000)
    raise Unreadable(
        f"{name!r} is neither milliseconds since 1970 nor a time such as 2026-01-31T12:00:00Z"
    )
