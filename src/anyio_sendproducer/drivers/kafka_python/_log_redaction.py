"""Removes secrets and control characters from kafka-python's log, and holds back the exceptions of
log handlers."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, Final, cast

from ..._shown import OneLine

__all__ = ["RedactingFilter"]


#: kafka-python logs the content of these: passwords, tokens, records.
_FULL_OF_SECRETS: Final = re.compile(r"(Sasl|Produce)\w*(Request|Response)(_v\d+)?")


class RedactingFilter(OneLine):
    """Removes possible secrets and control characters from kafka-python's messages.

    At the level DEBUG, 3.0.12 logs each request, and each byte that it sends or receives, with
    passwords, tokens and records.
    """

    @classmethod
    def watch(cls, library: str) -> None:
        """Filter all loggers that a library has made so far.

        Exceptions of their handlers are held back. If one came out of a log call of 3.0.12, the
        client could not connect, or would leave a batch without an outcome. Only the main thread
        can still exit.
        """
        for name in list(logging.root.manager.loggerDict):
            # A logger's filters do not apply to the messages of its children.
            if f"{name}.".startswith(f"{library}."):
                logger = logging.getLogger(name)
                logger.addFilter(_FILTER)
                handle = functools.partial(_handle, logger.handle)
                setattr(logger, "handle", handle)  # noqa: B010  # for type checkers

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the message. Every message passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_redacted, record.args))
        return super().filter(record)


_FILTER: Final = RedactingFilter()


def _handle(handle: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    try:
        handle(record)
    except Exception:  # noqa: BLE001, S110  # a log handler may raise
        pass
    except SystemExit:
        # On another thread, it would end the client's thread, and nothing else.
        if threading.current_thread() is threading.main_thread():
            raise


class _Placeholder:
    """Replaces a value in a message."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _redacted(argument: Any) -> Any:
    if isinstance(argument, (bytes, bytearray)):
        return _Placeholder(f"<{len(argument)} bytes>")
    if _FULL_OF_SECRETS.fullmatch(type(argument).__name__):
        return _Placeholder(f"<{type(argument).__name__}>")
    if type(argument) in {list, tuple}:
        return [*map(_redacted, argument)]
    if type(argument) is dict:
        return {key: _redacted(value) for key, value in cast("Any", argument).items()}
    return argument
