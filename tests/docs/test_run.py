"""The commands that run.py starts, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import load
from tests.support.paths import ROOT


def _prepared(command: str) -> None:
    """Do nothing: the environment is a fake."""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run.py with a prepared environment; its Python notes its arguments in the directory `calls`.

    A command whose arguments contain $FAILS prints a message and fails.
    """
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable} -S\n"
        "import json, os, sys\n"
        f"with open(f'{tmp_path}/calls', 'a') as calls:\n"
        "    calls.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "if os.environ['FAILS'] in ' '.join(sys.argv[1:]):\n"
        "    sys.exit('what ' + os.environ['FAILS'] + ' found')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("FAILS", "nothing")
    monkeypatch.delenv("CI", raising=False)
    module = load(ROOT / "run.py")
    monkeypatch.setattr(module, "PYTHON", program)
    monkeypatch.setattr(module, "prepare", _prepared)
    return module


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[str]]:
    """The modules that the environment's Python ran, with their arguments."""

    def read() -> list[str]:
        lines = (tmp_path / "calls").read_text().splitlines()
        return [" ".join(json.loads(line)).removeprefix("-m ") for line in lines]

    return read


def test_check_runs_style_types_and_the_unit_tests(
    runner: Any, calls: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["check"]) == 0
    expected = ["mypy", "pytest -n 2 tests/unit", "ruff check", "ruff format --diff"]
    assert sorted(calls()) == expected
    assert capfd.readouterr().out.splitlines()[-1] == "check passed"


@pytest.mark.parametrize("part", ["ruff check", "ruff format", "mypy", "pytest"])
def test_check_names_the_part_that_fails_and_prints_its_output(
    runner: Any, part: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", part)
    assert runner.main(["check"]) == 1
    output = capfd.readouterr()
    name = {"ruff check": "lint", "ruff format": "format", "mypy": "types", "pytest": "tests"}[part]
    assert output.out.splitlines()[-1] == f"check failed: {name}"
    assert f"what {part} found" in output.out + output.err


def test_arguments_of_check_go_to_pytest(runner: Any, calls: Callable[[], list[str]]) -> None:
    assert runner.main(["check", "-k", "ledger"]) == 0
    assert "pytest -n 2 tests/unit -k ledger" in calls()


def test_a_path_replaces_the_unit_tests(runner: Any, calls: Callable[[], list[str]]) -> None:
    assert runner.main(["check", "tests/docs/test_run.py::test_x", "README.md"]) == 0
    assert "pytest -n 2 tests/docs/test_run.py::test_x README.md" in calls()


def test_in_ci_all_tests_run_with_coverage(
    runner: Any, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    assert runner.main(["test"]) == 0
    parallel = " ".join(runner.IN_PARALLEL)
    assert calls() == [
        "coverage erase",
        f"coverage run -m pytest {parallel}",
        "coverage combine --quiet",
        "coverage report",
    ]


@pytest.mark.parametrize("part", ["coverage run", "coverage combine", "coverage report"])
def test_in_ci_a_failure_of_coverage_is_an_error(
    runner: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("FAILS", part)
    assert runner.main(["test"]) != 0


def test_some_tests_run_without_coverage(
    runner: Any, calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "1")
    assert runner.main(["test", "-k", "ledger"]) == 0
    assert calls() == ["pytest -k ledger"]
