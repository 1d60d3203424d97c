"""The statistics that librdkafka emits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..._shown import printable

__all__ = ["ClientStatistics"]


class ClientStatistics:
    """The last statistics of a client. They are parsed when they are read."""

    def __init__(self) -> None:
        self._text = ""
        #: The last text that was read, and its values, or those of the last text that was JSON.
        self._read: tuple[str, Mapping[str, Any]] = ("", {})

    def update(self, text: str) -> None:
        """Take new statistics. The client calls this every ``statistics.interval.ms``."""
        self._text = text

    def values(self) -> Mapping[str, Any]:
        """Return the last statistics that can be parsed; empty if there are none yet."""
        text = self._text
        if text and text is not self._read[0]:
            try:
                self._read = (text, json.loads(printable(text, "\N{REPLACEMENT CHARACTER}")))
            except ValueError:
                # librdkafka does not escape the names of brokers, so this may not be JSON.
                self._read = (text, self._read[1])
        return self._read[1]
