"""How errors and logs show what others supplied: short, on one line, and never a secret.

A value in the wrong place may be a password or a key. So an error repeats numbers, short plain
texts and names that look like names. Of anything else it names the type.

A text may forge a line of a log, or control a terminal. Three places prevent that. Each error of
this package escapes control characters in its message. A driver passes each error of its client
through :func:`harmless`, because logs show it as the cause of ours. Each logger has a
:class:`OneLine`.
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
#: Longer numbers are not shown: Python refuses to write an int of more than 4,300 digits.
_MOST: Final = 10**30
#: How many characters of an error of a client are kept, and of a line of a log.
_LONGEST_ERROR: Final = 2_000
_LONGEST_LINE: Final = 20_000


def printable(text: str, substitute: str = "") -> str:
    """A text with its control characters escaped, as :func:`repr` does, or substituted. Line ends
    are among them, and characters that change the direction of what follows."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else substitute or repr(character)[1:-1]
        for character in text
    )


def one_line(text: object, most: int = 300) -> str:
    """The beginning of a foreign text, as :func:`printable` shows it."""
    return printable(str(text)[:most])


def harmless(error: E) -> E:
    """Escape control characters in a client's error and in the errors below it.

    They are changed in place, so that a log or a traceback shows nothing raw wherever it comes upon
    them.

    Returns:
        The error.
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
    """Escapes control characters in messages of a logger, and in errors. All messages pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the message if it has any, or is very long."""
        if record.exc_info and record.exc_info[1] is not None:
            harmless(record.exc_info[1])
        message = record.getMessage()
        if not message.isprintable() or len(message) > _LONGEST_LINE:
            record.msg, record.args = "%s", (one_line(message, _LONGEST_LINE),)
        return True


#: All loggers of this package. Only here, because a filter of a logger is not asked about messages
#: of the loggers below it.
for _name in ("", ".confluent", ".events", ".kafka_python", ".security", ".telemetry"):
    logging.getLogger(f"{__package__}{_name}").addFilter(OneLine())


def shown(value: object) -> str:
    """A value that may be anything, for an error that says what is wrong with it."""
    if value is None or type(value) in {bool, float}:
        return repr(value)
    if type(value) is int and -_MOST < value < _MOST:
        return repr(value)
    if isinstance(value, str):
        return repr(str(value)) if _PLAIN.fullmatch(value) else "a str that is not shown here"
    return type(value).__name__


def shown_name(name: str, *, is_known: bool = False) -> str:
    """The name of a setting, for an error.

    Args:
        name: the name as the user wrote it. It may be a line of a key, where a value in a file
            continues on another line.
        is_known: whether it resembles the name of a setting, so that it is not part of a secret.
    """
    if is_known or not name or _NAME.fullmatch(name):
        return repr(name)
    return (
        f"a name of {len(name)} characters (not shown: it does not look like the name of a "
        "setting. In a .properties file, a value continues on the next line after a backslash)"
    )


def shown_address(text: str) -> str:
    """A text that should be an address, for an error. It may be a URL with a password in it."""
    if "@" in text:
        return "a value that is not shown, because there is an '@' in it,"
    return repr(text) if len(text) <= 100 else f"a value of {len(text)} characters"


def raised_text(error: BaseException) -> str:
    """What a hook of the user's raised, for an error message."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # the text of an error is the user's code, too
        text = "(its text cannot be read)"
    return f"raised {type(error).__name__}: {text}"


def listed(items: Iterable[object], most: int = 5) -> str:
    """Items joined by commas; of a long list, the first ones and how many more there are."""
    texts = [*map(str, items)]
    more = len(texts) - most
    return ", ".join(texts) if more <= 0 else f"{', '.join(texts[:most])} and {more} more"
