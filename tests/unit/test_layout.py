"""The folders of the tests, and the modules that tests may import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.paths import ROOT

TESTS: Final = ROOT / "tests"
FOLDERS: Final = {
    "agents",
    "broker",
    "cli",
    "docs",
    "examples",
    "faults",
    "kafka",
    "site",
    "support",
    "typing",
    "unit",
}


def modules(folder: Path = TESTS) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def is_for_pytest(name: str) -> bool:
    """Whether pytest imports a module with this name itself."""
    return name == "conftest" or name.startswith("test_")


def imported(module: Path) -> Iterator[str]:
    """The last part of each name that a module imports, and of the module that it comes from."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        yield from (name.rpartition(".")[2] for name in names)


def test_each_folder_is_documented() -> None:
    folders = {module.relative_to(TESTS).parent.as_posix() for module in modules()}
    assert folders == {".", *FOLDERS}
    assert [path.name for path in TESTS.glob("*.py")] == ["conftest.py"]


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    found = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules()
        for name in imported(module)
        if is_for_pytest(name)
    ]
    assert not found, "move shared code to tests/support:\n" + "\n".join(found)


def test_the_shared_modules_contain_no_tests() -> None:
    found = [
        f"{module.relative_to(ROOT)}: {node.name}"
        for module in modules(TESTS / "support")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and node.name.lower().startswith("test")
    ]
    found += [str(module) for module in modules(TESTS / "support") if is_for_pytest(module.stem)]
    assert not found, "\n".join(found)
