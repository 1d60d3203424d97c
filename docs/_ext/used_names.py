"""Finds the public names that the examples use.

The examples are the blocks of ``python`` in the pages, and the indented blocks of the docstrings.
The tests run them, and readers see them. An import alone does not count as a use. Fixtures are not
imported: a fixture is used by a function that has an argument of its name, or by a function of its
name that replaces it. This module does not import Sphinx, so that the tests can use it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

PACKAGE: Final = "anyio_sendproducer"
#: The examples of these modules are commands, not Python.
NO_API: Final = frozenset({f"{PACKAGE}.cli"})
#: The module that exports fixtures.
FIXTURES: Final = f"{PACKAGE}.testing.pytest_plugin"
DOCS: Final = Path(__file__).resolve().parents[1]

_FENCE: Final = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: The same expression as in conftest.py, by which the tests find these blocks.
_LITERAL_BLOCK: Final = re.compile(r"^( *)\S?.*::\n\n((?:\1    .*\n|[ ]*\n)+)", re.MULTILINE)

#: A public name: the module that it is imported from, and the name.
Name = tuple[str, str]


def public_modules() -> list[str]:
    """List the modules that users import from, at any depth, and the module of pytest's plugin."""
    package = importlib.import_module(PACKAGE)
    found = pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")
    return [PACKAGE, *(module.name for module in found if _is_public(module.name))]


def _is_public(module: str) -> bool:
    return "._" not in module and module not in NO_API


def public_names() -> dict[str, list[str]]:
    """Return the names that each public module exports."""
    return {name: sorted(importlib.import_module(name).__all__) for name in public_modules()}


def pages() -> list[Path]:
    """The pages that can have examples."""
    return sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


def examples_of(page: Path) -> list[str]:
    """The examples of a page that readers see, in order."""
    return [found[1] for found in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def docstring_examples() -> Iterator[tuple[Path, str]]:
    """The examples in docstrings, each with its module."""
    source = Path(str(importlib.import_module(PACKAGE).__file__)).parent
    for path in sorted(source.rglob("*.py")):
        for found in _LITERAL_BLOCK.finditer(path.read_text(encoding="utf-8")):
            code = inspect.cleandoc("\n" + found[2])
            if "├" not in code:
                yield path, code


def where_used() -> dict[Name, list[str]]:
    """The pages whose examples use each name; an empty string is a docstring."""
    public = public_names()
    places: dict[Name, list[str]] = {}
    for page in pages():
        where = page.relative_to(DOCS).with_suffix("").as_posix()
        for name in sorted(used_in(examples_of(page), public)):
            places.setdefault(name, []).append(where)
    # Examples in docstrings may use the names of these two modules without an import.
    at_hand = {
        name: (module, name)
        for module in (f"{PACKAGE}.testing", PACKAGE)
        for name in public[module]
    }
    for _, code in docstring_examples():
        for name in sorted(used_in([code], public, at_hand)):
            if "" not in places.setdefault(name, []):
                places[name].append("")
    return places


def used_in(
    examples: Iterable[str],
    public: Mapping[str, Iterable[str]],
    at_hand: Mapping[str, Name] | None = None,
) -> set[Name]:
    """Find the public names that examples use. Later examples know the imports of earlier ones.

    Args:
        examples: their code.
        public: the public names, by module.
        at_hand: names that the examples need not import, each with its module and its name there.
    """
    names = dict(at_hand or {})
    modules: dict[str, str] = {}
    fixtures = frozenset(public.get(FIXTURES, ()))
    used: set[Name] = set()
    for example in examples:
        tree = ast.parse(example)
        used |= {(FIXTURES, name) for name in fixtures & _asked_for(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in public:
                        known = alias.name if alias.asname else alias.name.partition(".")[0]
                        modules[alias.asname or known] = known
            elif isinstance(node, ast.ImportFrom) and node.module in public:
                for alias in node.names:
                    called = alias.asname or alias.name
                    deeper = f"{node.module}.{alias.name}"
                    if deeper in public:
                        modules[called] = deeper
                    elif alias.name in public[node.module]:
                        names[called] = (node.module, alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                if node.id in names:
                    used.add(names[node.id])
            elif isinstance(node, ast.Attribute):
                module = _module_of(node.value, modules, public)
                if module is not None and node.attr in public[module]:
                    used.add((module, node.attr))
    return used


def _asked_for(tree: ast.Module) -> set[str]:
    """Return the names of all functions and of their arguments."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found |= {node.name, *(argument.arg for argument in node.args.args)}
    return found


def _module_of(
    node: ast.expr, modules: Mapping[str, str], public: Mapping[str, Iterable[str]]
) -> str | None:
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Attribute):
        outer = _module_of(node.value, modules, public)
        if outer is not None and f"{outer}.{node.attr}" in public:
            return f"{outer}.{node.attr}"
    return None
