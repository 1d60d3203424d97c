"""The logs of the package and of its clients, as a program's handlers see them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["everything_logged_to", "on_each_line"]


@contextmanager
def on_each_line(call: Callable[[], object]) -> Generator[None, None, None]:
    """Call a function for each line of any level of the librdkafka driver's logger."""

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


@contextmanager
def everything_logged_to(handler: logging.Handler, *names: str) -> Generator[None, None, None]:
    """Pass each line of these loggers, of any level, to this handler only."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
