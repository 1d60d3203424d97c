"""The guide to the command line: each command prints the output that the guide shows."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "how-to" / "send-a-file.md"


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command with its expected output."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            yield found[1], found[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the guide uses GNU commands")
def test_the_guide(shared_broker: str, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "anyio-sendproducer"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m anyio_sendproducer "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    checker = doctest.OutputChecker()
    count = 0
    for command, expected in commands():
        count += 1
        if command.startswith("cat "):
            # The guide shows the content of this file. Create the file.
            (tmp_path / command.split()[1]).write_text(
                expected.replace("localhost:9092", shared_broker)
            )
            continue
        done = subprocess.run(
            ["bash", "-c", command.replace("localhost:9092", shared_broker)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        printed = done.stdout.replace(shared_broker, "localhost:9092")
        printed = printed.replace(f"{shared_broker.partition(':')[0]}:", "localhost:")
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert checker.check_output(expected, printed, options), (command, printed, done.stderr)
    assert count > 12
