"""How errors and logs show values from outside: short, on one line, and usually without secrets.

A value in the wrong place may be a password or a key. So an error about a setting shows numbers,
short plain texts, names that look like names of settings, and addresses and service names without
an ``@``. For most other values it shows only the type. A password is shown only in the place of
another setting, if it is short and plain or if an address or a name belongs there.

A text from outside may contain control characters, which could forge a line of a log or control a
terminal. Three places escape them: the errors of this package do it in their messages; a driver
passes each error of its client to :func:`harmless`, because logs show that error as the cause of
ours; and each logger of the package has a :class:`OneLine`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final, TypeVar

__all__ = [
    "OneLine",
    "harmless",
    "listed",
    "one_line",
    "printable",
    "raised_text",
    "shown",
    "shown_address",
    "shown_name",
]

E = TypeVar("E", bound=BaseException)

_PLAIN: Final = re.compile(r"[A-Za-z0-9 .:_-]{0,24}")
#: Words of letters, with a few digits at the end of each. A line of base64 is not of this form.
_WORD: Final = r"(?:[a-z]{1,20}|[A-Z]{1,20})\d{0,3}"
_NAME: Final = re.compile(rf"{_WORD}(?:[._-]{_WORD}){{0,12}}")
#: Larger numbers are not shown, because Python can't convert an int with more than 4,300 digits.
_LARGEST_INT: Final = 10**30
#: How many characters are kept of an error of a client, and of a line of a log.
_LONGEST_ERROR: Final = 2_000
_LONGEST_LINE: Final = 20_000


def printable(text: str, substitute: str = "") -> str:
    """Escape the control characters of a text, as :func:`repr` does, or replace them.

    This includes line ends, and characters that change the direction of the text.

    Args:
        text: the text.
        substitute: the replacement; empty to escape them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else substitute or repr(character)[1:-1]
        for character in text
    )


def one_line(text: object, limit: int = 300) -> str:
    """Return the first ``limit`` characters of a text from outside, as :func:`printable` shows
    them."""
    return printable(str(text)[:limit])


def harmless(error: E) -> E:
    """Escape control characters in a client's error, and in its causes and arguments.

    Long texts are cut off. The errors are changed in place, because logs and tracebacks show them,
    too.

    Returns:
        The same error.
    """
    seen: dict[int, BaseException] = {}
    errors: list[object] = [error]
    while errors:
        one = errors.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen[id(one)] = one
        one.args = tuple(
            one_line(arg, _LONGEST_ERROR) if isinstance(arg, str) else arg for arg in one.args
        )
        if isinstance(one, OSError) and one.strerror is not None:
            one.strerror = one_line(one.strerror, _LONGEST_ERROR)
        # kafka-python raises errors whose only argument is another error.
        errors += (one.__cause__, one.__context__, *one.args)
    return error


class OneLine(logging.Filter):
    """A filter that escapes control characters in messages and errors, and drops no message."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the message if it has control characters or is very long."""
        if record.exc_info and record.exc_info[1] is not None:
            harmless(record.exc_info[1])
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  # the arguments do not match: the handlers report this
            return True
        if not message.isprintable() or len(message) > _LONGEST_LINE:
            record.msg, record.args = "%s", (one_line(message, _LONGEST_LINE),)
        return True


#: All loggers of this package are listed, because a filter does not apply to the child loggers.
for _name in ("", ".confluent", ".events", ".kafka_python", ".security", ".telemetry"):
    logging.getLogger(f"{__package__}{_name}").addFilter(OneLine())


def shown(value: object) -> str:
    """Describe a value of any type for an error message. Only a number or a short plain text is
    shown."""
    if value is None or type(value) in {bool, float}:
        return repr(value)
    if type(value) is int and -_LARGEST_INT < value < _LARGEST_INT:
        return repr(value)
    if isinstance(value, str):
        return repr(str(value)) if _PLAIN.fullmatch(value) else "a str that is not shown here"
    return type(value).__name__


def shown_name(name: str, *, is_known: bool = False) -> str:
    """Describe the name of a setting for an error message.

    Args:
        name: the name as the user wrote it. It may be a line of a private key, if a value in a file
            spans several lines.
        is_known: whether it resembles the name of a setting, so that it can't be part of a secret.
    """
    if is_known or not name or _NAME.fullmatch(name):
        return repr(name)
    return (
        f"a name of {len(name)} characters (not shown: it does not look like the name of a "
        "setting. In a .properties file, a value continues on the next line after a backslash)"
    )


def shown_address(text: str) -> str:
    """Describe a text that should be an address for an error message. It may be a URL with a
    password. The description fits into a sentence, as in "bootstrap_servers: ... is not ..."."""
    if "@" in text:
        return "a value with an '@' (not shown)"
    return repr(text) if len(text) <= 100 else f"a value of {len(text)} characters"


def raised_text(error: BaseException) -> str:
    """Describe the exception of a user's hook for an error message."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # the text of an error is the user's code, too
        text = "(its text cannot be read)"
    return f"raised {type(error).__name__}: {text}"


def listed(items: Iterable[object], limit: int = 5, separator: str = ", ") -> str:
    """Join items. For a long list, show the first ``limit`` items and the number of others."""
    texts = [*map(str, items)]
    more = len(texts) - limit
    return separator.join(texts[:limit]) + (f" and {more} more" if more > 0 else "")
