"""Coverage of the processes that tests start.

By default coverage.py measures each of them. That costs half a second of CPU time each. A killed
process leaves no data, so a branch that only such a process takes is covered by luck. With this
module a process is measured only if a test asks for it.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["measure_no_processes", "measured"]

#: If this is set, coverage.py starts to measure when an interpreter starts.
_NAME: Final = "COVERAGE_PROCESS_CONFIG"

_environment: dict[str, str] = {}


def measure_no_processes() -> None:
    """Do not measure the processes that this one starts."""
    value = os.environ.pop(_NAME, None)
    if value is not None:
        _environment[_NAME] = value


def measured() -> dict[str, str]:
    """The environment for a process that is measured if this one is."""
    return {**os.environ, **_environment}
