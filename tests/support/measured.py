"""Coverage of the processes that tests start.

By default coverage.py measures each of them. That takes half a second of a processor for each, and
a process that is killed leaves nothing, so a branch that only such a process takes is covered by
luck. Here a process is measured only if a test asks for that.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["measure_no_processes", "measured"]

#: By this, coverage.py begins to measure when an interpreter starts.
_NAME: Final = "COVERAGE_PROCESS_CONFIG"

_environment: dict[str, str] = {}


def measure_no_processes() -> None:
    """Have the processes that this one starts not measured."""
    value = os.environ.pop(_NAME, None)
    if value is not None:
        _environment[_NAME] = value


def measured() -> dict[str, str]:
    """The environment of a process that is measured if this one is."""
    return {**os.environ, **_environment}
