"""librdkafka's log, as a program's handlers see it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["on_each_line"]


@contextmanager
def on_each_line(call: Callable[[], object]) -> Generator[None, None, None]:
    """Have a handler of the librdkafka driver's logger call this for each line of any level."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            call()

    handler, logger = Handler(), logging.getLogger("anyio_sendproducer.confluent")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
