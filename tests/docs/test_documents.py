"""Shell commands in the documents that pytest does not run as examples."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from anyio_sendproducer import ProducerSettings
from tests.support.paths import ROOT

EXAMPLES: Final = sorted((ROOT / "examples").glob("*.py"))
PAGES: Final = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
#: Typed as Any, because only one of the two modules is installed.
toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
EXTRAS: Final[dict[str, list[str]]] = toml.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


# --- Markdown ------------------------------------------------------------------------------------

#: Fenced code, rows of tables, and comments: in them, a colon means nothing to Markdown.
NO_PROSE: Final = re.compile(
    r"^( *)(`{3,})[^{\n]*\n.*?^\1\2$|^\|[^\n]*$|<!--.*?-->", re.MULTILINE | re.DOTALL
)
#: Markup that must start or end its line. If it does not, Sphinx shows it as text, or drops text,
#: and gives no warning.
JOINED_LINES: Final = {
    "the text of a directive follows its option on the same line": r"^ *:[a-z-]+: .*[`?!.](?= |$)",
    "a definition follows its term on the same line": r"\S +: +\S",
    "an empty line separates a definition from its term": r"\n\n: ",
    "a fence is in the middle of a line": r"[^\s:`>].*:::|[^\s`>].*```",
}


def joined_lines(text: str) -> list[str]:
    """Return what is wrong with this Markdown, with the text at each place."""
    prose = NO_PROSE.sub("", text)
    return [
        f"{fault}: {found[0].strip()}"
        for fault, pattern in JOINED_LINES.items()
        for found in re.finditer(pattern, prose, re.MULTILINE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_markup_has_lines_of_its_own(page: Path) -> None:
    assert joined_lines(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "is_wrong"),
    [
        (":::{admonition} Title\n:class: note\n\nUse `run`.\n:::\n", False),
        (":::{admonition} Title\n:class: note Use `run`.\n:::\n", True),
        ("Which versions?\n: All of them.\n", False),
        ("Which versions? : All of them.\n", True),
        ("Which versions?\n\n: All of them.\n", True),
        ("```python\nlow, high = all[0 : 2]\n```\n", False),
        ("| `a : b` | text |\n", False),
        ("Some text :::{grid} 2\n", True),
        ("Some text ```python\n", True),
    ],
)
def test_lines_that_were_joined_are_found(text: str, is_wrong: bool) -> None:
    assert bool(joined_lines(text)) is is_wrong


# --- programs ------------------------------------------------------------------------------------


def unlinked_includes(text: str) -> list[str]:
    """Return each included program that the paragraph before it does not link to.

    A reader of the Markdown file sees no code there, so the reader needs the link.
    """
    include = re.compile(r"^```\{literalinclude\} (\S+)\n(?:.+\n)*?```\n\n?", re.MULTILINE)
    missing: list[str] = []
    paragraph = ""
    end = 0
    for found in include.finditer(text):
        if between := text[end : found.start()].strip():  # else another include precedes this one
            paragraph = between.rpartition("\n\n")[2]
        end = found.end()
        if f"]({found[1]})" not in paragraph:
            missing.append(found[1])
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_an_included_program_has_a_link(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert unlinked_includes(text) == []
    assert "{download}" not in text  # not a link, except on the site


def test_a_missing_link_to_a_program_is_found() -> None:
    include = "```{literalinclude} ../a.py\n:language: python\n```\n\n"
    assert unlinked_includes(f"From [`a.py`](../a.py):\n\n{include}{include}") == []
    assert unlinked_includes(f"[`a.py`](../a.py)\n\nText:\n\n{include}") == ["../a.py"]
    assert unlinked_includes(include) == ["../a.py"]


# --- extras --------------------------------------------------------------------------------------


def named_extras() -> list[tuple[str, str]]:
    """Return each page with each extra that its commands install."""
    found: set[tuple[str, str]] = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for extras in re.findall(r"""(?:anyio-sendproducer|["'`]\.)\[([^\]]*)\]""", text):
            name = page.relative_to(ROOT).as_posix()
            found |= {(name, extra.strip()) for extra in extras.split(",")}
    return sorted(found)


@pytest.mark.parametrize(("page", "extra"), named_extras())
def test_each_extra_that_a_page_installs_exists(page: str, extra: str) -> None:
    assert extra in EXTRAS


def test_extras_are_found_in_each_notation() -> None:
    assert {
        ("README.md", "confluent"),
        ("docs/how-to/move-an-outbox.md", "trio"),
        ("docs/how-to/observe.md", "otel"),
        ("docs/tutorial/first-records.md", "embedded"),
    } <= set(named_extras())


def test_no_command_installs_from_an_index() -> None:
    """The package is on no index, so a command must name a checkout."""
    code = [*(ROOT / "src").rglob("*.py"), *EXAMPLES]
    found = [path for path in [*PAGES, *code] if "anyio-sendproducer[" in path.read_text("utf-8")]
    assert found == []


def test_the_readme_lists_every_extra() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == set(EXTRAS)


# --- commands that start an example --------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Yield the file and the command for each start of an example on a page or in a docstring."""
    for path in [*PAGES, *EXAMPLES]:
        text = path.read_text(encoding="utf-8")
        for command in re.findall(r"^(?:\$| {4}) ?(.*\bpython \w+\.py\b.*)$", text, re.MULTILINE):
            yield path.relative_to(ROOT).as_posix(), command


#: Runs a program until it has parsed its arguments. It runs in its own process, because some
#: frameworks change global state when they are imported.
UNTIL_PARSED: Final = """
import argparse, runpy, sys

parse = argparse.ArgumentParser.parse_args

def parse_and_stop(parser):
    parse(parser)
    print("understood")
    sys.exit()

argparse.ArgumentParser.parse_args = parse_and_stop
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("where", "command"), [*commands()])
def test_a_program_accepts_the_arguments_of_each_documented_command(
    where: str, command: str
) -> None:
    words = shlex.split(command)
    start = words.index("python")
    environment = dict(word.split("=", 1) for word in words[:start])
    program = ROOT / "examples" / words[start + 1]

    # The variables of the command become settings.
    [prefix] = re.findall(r'from_env\("(\w+)"', program.read_text(encoding="utf-8"))
    assert ProducerSettings.from_env(prefix, environment).addresses == ("localhost:9092",)

    done = subprocess.run(
        [sys.executable, "-c", UNTIL_PARSED, str(program), *words[start + 2 :]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "understood\n", f"{where}: {done.stderr}"


def test_commands_are_found_in_the_guides_and_in_each_program() -> None:
    places = {where for where, _ in commands()}
    guides = {"docs/how-to/move-an-outbox.md", "docs/how-to/ship-logs.md"}
    assert places == guides | {path.relative_to(ROOT).as_posix() for path in EXAMPLES}
