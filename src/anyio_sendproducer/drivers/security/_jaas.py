"""Reads the user name and the password in Kafka's ``sasl.jaas.config``.

Kafka reads it with Java's ``StreamTokenizer``, so quotes and escapes are the same here. No error
contains any part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ..._exceptions import SettingsError

__all__ = ["credentials"]

_PACKAGE: Final = "org.apache.kafka.common.security."
#: The mechanisms that each login module supports.
_MODULES: Final = {
    f"{_PACKAGE}plain.PlainLoginModule": ("PLAIN",),
    f"{_PACKAGE}scram.ScramLoginModule": ("SCRAM-SHA-256", "SCRAM-SHA-512"),
}
#: The alternatives to other login modules.
_WAYS_OUT: Final = {
    "OAuthBearerLoginModule": "set 'sasl_oauth_token_provider' to an object with a method token()",
    "Krb5LoginModule": "set 'sasl.kerberos.service.name'; the ticket is the system's own",
}
_FLAGS: Final = frozenset({"required", "requisite", "sufficient", "optional"})
_ESCAPES: Final = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}
_TOKEN: Final = re.compile(
    r"""
    (?P<space> \s+ | //[^\r\n]* | /\*.*?\*/ )
    | (?P<quoted> "(?:[^"\\\r\n]|\\.)*" | '(?:[^'\\\r\n]|\\.)*' )
    | (?P<word> [A-Za-z_$\u00a0-\U0010ffff][\w.$-]* )
    | (?P<mark> [=;] )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED: Final = re.compile(r"\\([0-3][0-7]{0,2}|[0-7]{1,2}|.)", re.DOTALL)


def credentials(name: str, text: str) -> tuple[tuple[str, ...], str, str]:
    """Read the mechanisms of the login module, the user name and the password.

    Args:
        name: the property's name as the user spelled it.
        text: such as ``...PlainLoginModule required username="me" password="a secret";``

    Raises:
        SettingsError: the text cannot be parsed, its login module or one of its options is not
            supported, or the user name or the password is missing.
    """
    tokens = _tokens(name, text)
    kind, module = next(tokens, ("end", ""))
    if kind != "word":
        raise _unreadable(name, "it does not start with the name of a login module")
    if module not in _MODULES:
        short = module.rpartition(".")[2]
        way_out = _WAYS_OUT.get(short, f"use {' or '.join(sorted(_MODULES))}")
        raise _unreadable(name, f"its login module is not supported: {way_out}")
    if next(tokens, ("end", ""))[1].lower() not in _FLAGS:
        raise _unreadable(name, "'required' must follow the name of the login module")
    options: dict[str, str] = {}
    for kind, token in tokens:
        if (kind, token) == ("mark", ";"):
            break
        if kind != "word" or next(tokens, None) != ("mark", "="):
            raise _unreadable(name, 'an option is not of the form name="value"')
        form, value = next(tokens, ("end", ""))
        if form not in {"word", "quoted"}:
            raise _unreadable(name, "an option has no value, or one that needs quotes")
        if token not in {"username", "password"}:
            raise _unreadable(name, "it has options other than username and password")
        options[token] = value
    else:
        raise _unreadable(name, "it does not end with a semicolon")
    if next(tokens, None) is not None:
        raise _unreadable(name, "it has more than one login module")
    for option in ("username", "password"):
        if not options.get(option):
            raise _unreadable(name, f"it has no {option}")
    return _MODULES[module], options["username"], options["password"]


def _tokens(name: str, text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _unreadable(name, "a value needs quotes, or its quotes or escapes are not closed")
        at = found.end()
        kind = str(found.lastgroup)
        if kind == "quoted":
            yield kind, _ESCAPED.sub(_unescaped, found[0][1:-1])
        elif kind != "space":
            yield kind, found[0]


def _unescaped(escape: re.Match[str]) -> str:
    what = escape[1]
    return chr(int(what, 8)) if what[0] in "01234567" else _ESCAPES.get(what, what)


def _unreadable(name: str, why: str) -> SettingsError:
    return SettingsError(f"properties: {name!r} can't be used: {why}")
