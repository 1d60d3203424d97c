"""The log of the client and the producer, on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Generator
from typing import Final

from ._streams import emit
from ._text import printable

__all__ = ["client_log"]

#: The loggers of kafka-python, and of this package, which passes on what librdkafka logs.
_LOGGERS: Final = ("kafka", "anyio_sendproducer")


class _Handler(logging.Handler):
    """Writes messages to ``sys.stderr``, which is another object while a progress bar is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message. Errors of the message and of the stream are not raised."""
        try:
            line = printable(self.format(record))
        except Exception:  # noqa: BLE001  # for example, the arguments do not match the message
            self.handleError(record)
        else:
            emit(sys.stderr, f"{line}\n")


@contextlib.contextmanager
def client_log(verbosity: int) -> Generator[None, None, None]:
    """Show the log for a ``with`` block.

    Args:
        verbosity: 0 shows nothing, 1 shows what happens, and more shows details.
    """
    if not verbosity:
        yield
        return
    handler = _Handler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)
