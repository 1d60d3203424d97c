"""The tests that a page of the documents names."""

from __future__ import annotations

import ast
import re

from .paths import ROOT

__all__ = ["named_tests", "names_of_tests"]


def named_tests(page: str) -> dict[str, set[str]]:
    """List the tests that a page names, by file. Both paths are relative to the repository."""
    named: dict[str, set[str]] = {}
    text = (ROOT / page).read_text("utf-8")
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        named.setdefault(path, set()).add(name)
    return named


def names_of_tests(path: str) -> set[str]:
    """The names of the test functions in a file."""
    nodes = ast.parse((ROOT / path).read_text("utf-8")).body
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in nodes if isinstance(node, functions)}
    return {name for name in found if name.startswith("test_")}
