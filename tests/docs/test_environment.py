"""The page of environment variables names each variable that the code reads."""

from __future__ import annotations

import re
from typing import Final

from anyio_sendproducer.testing import _broker
from tests.support.paths import ROOT

PAGE: Final = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
#: The modules that read variables, and the text of the page about each of them.
READERS: Final = {
    "_settings.py": "from_env()",
    "cli/_connecting.py": "| the command line | `produce` or `check` runs |",
    "testing/_broker.py": "The embedded broker inherits",
}


def test_each_module_that_reads_the_environment_is_on_the_page() -> None:
    source = ROOT / "src/anyio_sendproducer"
    reading = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if re.search(r"\b(environ|environb|getenv|envvar)\b", path.read_text(encoding="utf-8"))
    }
    assert reading == READERS.keys()
    assert all(words in PAGE for words in READERS.values())


def test_the_variables_of_the_embedded_broker_are_on_the_page() -> None:
    (line,) = [
        line for line in PAGE.splitlines() if line.startswith("The embedded broker inherits")
    ]
    assert re.findall(r"`(\w+)`", line) == [*_broker.INHERITED]
    assert f"`{_broker.OVERRIDE}`" in PAGE
