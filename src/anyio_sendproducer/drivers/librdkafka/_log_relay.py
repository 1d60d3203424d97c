"""librdkafka's log, relayed to the module :mod:`logging` on a thread of its own."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ..._shown import one_line
from ._threads import start_thread

__all__ = ["LogRelay", "logger"]

#: The kinds of lines that are about one broker.
_BROKER_LINES: Final = frozenset({("FAIL",), ("REQTMOUT",)})
#: The name of a thread, which begins a line.
_THREAD: Final = re.compile(r"^\[thrd:[^\]]*\]: ")

#: How many lines wait for a slow handler.
_MAX_LINES: Final = 10_000
#: How often the same line is logged, and how many different lines are remembered for that.
_REPEAT_SECONDS: Final = 30.0
_MAX_REPEATED: Final = 256
#: The part of a line that differs between two failures to connect.
_DURATION: Final = re.compile(r"\b\d+ms\b")
#: Lines with these words are not logged. The first is a warning that a setting is experimental. The
#: second says that a refusal is a fatal error; the producer itself says why it replaces a client.
_NOT_LOGGED: Final = ("enable.gapless.guarantee", "gap-less guarantee")

logger: Final = logging.getLogger("anyio_sendproducer.confluent")


class LogRelay:
    """The logger of one client. It logs each line on another thread.

    librdkafka logs from within ``poll``, which the event loop calls, and a handler may block. The
    thread runs only while there are lines. A line that repeats a line of the last 30 s is counted
    and dropped: while a broker is down, librdkafka logs the same failure ten times a second for
    each address. Debug messages are not dropped.

    Args:
        monotonic: the clock.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: For each line, when it was last logged, and how many repetitions were dropped since.
        self._logged: dict[tuple[str, ...], tuple[float, int]] = {}
        #: Why the last transaction failed. librdkafka says so only in its log, and then reports the
        #: transaction's records as purged.
        self.transaction_error = ""
        #: Why a broker did not answer, and when that was logged. librdkafka logs some of these as
        #: warnings, and reports them to no callback.
        self.broker_error: tuple[str, float] = ("", -math.inf)
        # If a handler is slower than librdkafka, the oldest lines are dropped.
        self._lines: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_MAX_LINES)
        self._thread: threading.Thread | None = None
        #: Handlers run in the context of the task that opened the producer.
        self._context = contextvars.copy_context()
        # Held to add or take a line, together with the decision to start or end the thread.
        self._moving = threading.Lock()

    def log(self, level: int, message: str, *args: Any) -> None:
        """Take one line. The client calls this like :meth:`logging.Logger.log`.

        Args:
            level: a level of the module :mod:`logging`.
            message: a format.
            args: the kind of the line, the client's name, and the text.
        """
        if args[:1] == ("TXNERR",):
            self.transaction_error = one_line(_THREAD.sub("", str(args[-1])))
        if args[:1] in _BROKER_LINES and level == logging.WARNING:
            text = _THREAD.sub("", str(args[-1]))
            self.broker_error = (one_line(text), self._monotonic())
        if not logger.isEnabledFor(level):
            return
        if any(words in str(arg) for arg in args for words in _NOT_LOGGED):
            return
        with self._moving:
            repetitions = self._repetitions(message, args) if level > logging.DEBUG else 0
            if repetitions is None:
                return
            if repetitions:
                message += f" ({repetitions} identical lines before)"
            self._lines.append((level, message, *args))
            if self._thread is None:
                self._thread = start_thread(
                    self._context.copy().run, self._log_lines, name="librdkafka-log"
                )  # without a thread, the next line tries again

    def _repetitions(self, message: str, args: tuple[Any, ...]) -> int | None:
        """Return how many repetitions of a line were dropped; None to drop this one as well."""
        line = tuple(_DURATION.sub("", str(part)) for part in (message, *args))
        now = self._monotonic()
        logged_at, dropped = self._logged.get(line, (-math.inf, 0))
        if now - logged_at < _REPEAT_SECONDS:
            self._logged[line] = (logged_at, dropped + 1)
            return None
        if len(self._logged) >= _MAX_REPEATED:
            self._logged.clear()
        self._logged[line] = (now, 0)
        return dropped

    def _log_lines(self) -> None:
        while True:
            with self._moving:
                if not self._lines:
                    self._thread = None
                    return
                line = self._lines.popleft()
            # A handler or a filter may raise, even SystemExit. After that, no thread would log.
            with contextlib.suppress(BaseException):
                logger.log(*line)

    def join(self, seconds: float) -> None:
        """Wait until all lines were logged, for at most ``seconds``."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
