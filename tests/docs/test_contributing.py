"""The exercise in CONTRIBUTING.md works, and the commands on all pages exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.checkout import load, used_names
from tests.support.paths import ROOT

PAGE: Final = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: The pages that may name commands.
PAGES: Final = [*ROOT.glob("*.md"), *used_names.pages()]
#: A command in backticks may span two lines.
COMMAND: Final = re.compile(r"`[^`]+`|^ *\$ .+$", re.MULTILINE)


def commands(path: Path) -> list[str]:
    """Return the inline code and the shell commands of a page."""
    text = re.sub(r"^ *```.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [" ".join(found.strip(" `$").split()) for found in COMMAND.findall(text)]


def only(pattern: str) -> re.Match[str]:
    """Return the only match in CONTRIBUTING.md."""
    [found] = re.finditer(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return found


# --- the exercise --------------------------------------------------------------------------------


@pytest.fixture
def run_the_example(tmp_path: Path) -> Callable[[], str]:
    """Run the page's command in a copy of the files that it needs. Return the output of pytest."""
    for name in ("src", "tests/unit/test_records.py", "pyproject.toml"):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    [arguments] = {
        tuple(shlex.split(command.partition("run.py test ")[2]))
        for command in commands(ROOT / "CONTRIBUTING.md")
        if command.startswith("python3 run.py test ") and " -k " in command
    }
    # pytest imports our plugin, and with it the package, before it reads pyproject.toml.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.stdout + done.stderr

    return run


def test_the_exercise_fails_first_and_then_passes(
    run_the_example: Callable[[], str], tmp_path: Path
) -> None:
    test = only(r"at the end of `([^`]+)`:\n\n( *)```py\n(.+?)^\2```$")
    code = re.sub(f"^{test[2]}", "", test[3], flags=re.MULTILINE)
    with (tmp_path / test[1]).open("a", encoding="utf-8") as tests:
        tests.write(f"\n\n{code}")
    first = run_the_example()
    assert " 1 failed" in first.splitlines()[-1], first

    edit = only(r"Find `([^`]+)` in\s+`([^`]+)`, append `([^`]+)` to the message")
    # The test fails because of this message.
    assert edit[1] in first, first
    module = tmp_path / edit[2]
    before = module.read_text(encoding="utf-8")
    assert before.count(edit[1]) == 1, f"{edit[1]!r} occurs several times in {edit[2]}"
    message = re.compile(rf'"{re.escape(edit[1])}[^"\n]*(?=")')
    after = message.sub(lambda found: found[0] + edit[3], before)
    assert max(map(len, after.splitlines())) <= 100, "ruff would reject the edited line"
    module.write_text(after, encoding="utf-8")
    second = run_the_example()
    assert " 1 passed" in second.splitlines()[-1], second


# --- the commands --------------------------------------------------------------------------------


def test_each_command_of_run_py_that_a_page_names_exists() -> None:
    runner = load(ROOT / "run.py")
    found = [
        command.partition("run.py ")[2].split()
        for page in PAGES
        for command in commands(page)
        if command.startswith("python3 run.py ")
    ]
    assert len(found) > 5
    assert {command for command, *_ in found} == set(runner.NEEDS)
    missing = {
        argument
        for command, *arguments in found
        for argument in arguments
        if command in {"check", "test"} and "/" in argument and not (ROOT / argument).exists()
    }
    assert not missing


def test_each_nox_session_that_a_page_names_exists() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        one.name
        for one in tree.body
        if isinstance(one, ast.FunctionDef)
        and any("nox.session" in ast.unparse(decorator) for decorator in one.decorator_list)
    }
    named = {
        name: page.name
        for page in PAGES
        for command in commands(page)
        for name in re.findall(r"\bnox -s (\w+)", command)
    }
    assert len(named) > 5
    assert set(named) <= sessions, {name: named[name] for name in set(named) - sessions}


def test_each_module_that_contributing_runs_exists() -> None:
    modules = {
        module
        for command in commands(ROOT / "CONTRIBUTING.md")
        for module in re.findall(r"^python -m ([\w.]+)", command)
    }
    assert modules
    assert {one for one in modules if not (ROOT / f"{one.replace('.', '/')}.py").exists()} == set()
