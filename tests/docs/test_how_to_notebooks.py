"""The cells of the page on notebooks run in IPython."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.measured import measured
from tests.support.paths import ROOT

RUN_CELLS: Final = """
import json
import sys

from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.loads(sys.stdin.read()):
    shell.run_cell(cell).raise_error()
print(shell.user_ns["service"])
"""


def test_each_cell_runs(tmp_path: Path, shared_broker: str) -> None:
    page = (ROOT / "docs/how-to/use-without-a-scope.md").read_text(encoding="utf-8")
    page = page.replace("localhost:9092", shared_broker)
    cells = re.findall(r"^```python3\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(cells) == 4
    again = [cells[1], "assert await service.start() is producer"]
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS],
        cwd=tmp_path,
        env={**os.environ, **measured(), "IPYTHONDIR": str(tmp_path)},
        input=json.dumps([*cells[:2], *again, *cells[2:]]),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "'orders'" in done.stdout
    assert done.stdout.splitlines()[-1] == "<ProducerService stopped>"
