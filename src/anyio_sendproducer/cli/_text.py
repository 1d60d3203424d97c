"""Text that the command prints and reads."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["counted", "printable", "unescaped"]

_ESCAPE: Final = re.compile(rb"\\(x[0-9A-Fa-f]{2}|[0nrtx\\])")
_ESCAPED: Final = {b"0": b"\0", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}


def printable(text: str) -> str:
    """The text with its control characters escaped, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def counted(count: int, noun: str) -> str:
    """A number and a noun that forms its plural with an s, such as "1 record"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def unescaped(text: str) -> bytes:
    r"""The bytes of a text in which escapes stand for one byte each.

    The escapes are ``\t``, ``\n``, ``\r``, ``\0``, ``\\``, and ``\x`` with two hexadecimal digits,
    such as ``\x1f``. Any other backslash is kept.

    Raises:
        ValueError: two hexadecimal digits are missing after a ``\x``.
    """

    def replace(found: re.Match[bytes]) -> bytes:
        code = found[1]
        if code == b"x":
            raise ValueError(r"two hexadecimal digits follow \x, as in \x1f")
        return bytes([int(code[1:], 16)]) if code[:1] == b"x" else _ESCAPED[code]

    # Bytes of the command line that are not UTF-8 stay as they are.
    return _ESCAPE.sub(replace, text.encode(errors="surrogateescape"))
