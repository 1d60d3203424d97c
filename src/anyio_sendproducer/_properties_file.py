"""A reader of ``.properties`` files, with the rules of ``java.util.Properties``.

Kafka's clients read such a file through ``Properties.load(InputStream)``, and then trim each value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ._exceptions import SettingsError

__all__ = ["decode", "parse", "trim"]

_BLANKS: Final = " \t\f"
_LINE_ENDS: Final = "\r\n"
_UTF8_MARK: Final = b"\xef\xbb\xbf"
#: A key ends at a separator or a blank that no backslash escapes.
_KEY: Final = re.compile(r"(?:\\.|[^\\=: \t\f])*", re.DOTALL)
#: Between a key and its value: blanks, and at most one separator.
_SEPARATOR: Final = re.compile(r"[ \t\f]*[=:]?[ \t\f]*")
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
#: What ``String.trim()`` removes.
_TRIMMED: Final = "".join(map(chr, range(0x21)))


def decode(content: bytes) -> str:
    """Decode the content of a ``.properties`` file.

    Java reads ISO 8859-1, and would read a byte order mark as part of the first name. Here a byte
    order mark is a sign of UTF-8.

    Raises:
        SettingsError: the file has a byte order mark, and is not UTF-8.
    """
    if not content.startswith(_UTF8_MARK):
        return content.decode("iso-8859-1")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    # Raised outside of `except`, because the UnicodeDecodeError holds the content.
    raise SettingsError("it begins with a byte order mark of UTF-8, but is not UTF-8")


def trim(value: str) -> str:
    """Remove the blanks and control characters at both ends, as Kafka's clients do."""
    return value.strip(_TRIMMED)


def parse(text: str) -> dict[str, str]:
    """Read the names and values in a text. If a name is repeated, its last value counts.

    Raises:
        SettingsError: an escape with ``u`` does not have four hexadecimal digits.
    """
    found: dict[str, str] = {}
    for line in _logical_lines(text):
        key = _KEY.match(line)
        assert key is not None  # noqa: S101  # it matches the empty text
        separator = _SEPARATOR.match(line, key.end())
        assert separator is not None  # noqa: S101  # likewise
        found[_unescaped(key[0])] = _unescaped(line[separator.end() :])
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and leading blanks, joined where a backslash continues one."""
    line = ""
    continues = False
    naturals = re.split(r"\r\n|[\r\n]", text)
    if not naturals[-1]:
        del naturals[-1]
    for natural in naturals:
        stripped = natural.lstrip(_BLANKS)
        # A line after a lone backslash may be a comment.
        if not line and (not stripped or stripped[0] in "#!"):
            continues = False
            continue
        line += stripped
        continues = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        if continues:
            line = line[:-1]
        else:
            yield line
            line = ""
    # At the end of the file, Java drops a line that is only a backslash if CR LF follows.
    if continues and (line or not text.endswith("\r\n")):
        yield line


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(_character, text)
    # Java writes a character beyond U+FFFF as two escapes.
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _character(found: re.Match[str]) -> str:
    escape = found[1]
    if len(escape) == 5:
        return chr(int(escape[1:], 16))
    if escape == "u":
        raise SettingsError(r"\u must be followed by four hexadecimal digits")
    return _ESCAPES.get(escape, escape)
