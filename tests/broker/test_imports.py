"""Importing the package imports no client library."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

import anyio_sendproducer
from tests.support.import_rules import GUESTS

NAME: Final = anyio_sendproducer.__name__


@pytest.mark.parametrize("module", ["", ".testing", ".drivers", ".cli", ".telemetry"])
def test_importing_the_package_imports_no_client_no_other_loop_and_no_extra(module: str) -> None:
    script = (
        "import importlib, json, sys\n"
        f"importlib.import_module({NAME + module!r})\n"
        "print(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert NAME in loaded
    assert not loaded & set(GUESTS)
