"""Which public names the examples use: those that the tests run, and readers see.

They are the blocks of ``python`` in the pages, and the indented blocks of the docstrings. An import
alone is no use of a name. Fixtures are not imported: one is used by a function that asks for it by
an argument, or that is called as it is, and takes its place. This knows nothing of Sphinx, so that
the tests can ask it too.
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
#: Where examples of these modules are commands, and not Python.
NO_API: Final = frozenset({f"{PACKAGE}.cli"})
#: What it exports are fixtures.
FIXTURES: Final = f"{PACKAGE}.testing.pytest_plugin"
DOCS: Final = Path(__file__).resolve().parents[1]

_FENCE: Final = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: As the tests find them, in conftest.py.
_LITERAL_BLOCK: Final = re.compile(r"^( *)\S?.*::\n\n((?:\1    .*\n|[ ]*\n)+)", re.MULTILINE)

#: A public name: the module that it is imported from, and the name.
Name = tuple[str, str]


def public_modules() -> list[str]:
    """The modules that users import from, at any depth, and those that pytest finds by itself."""
    package = importlib.import_module(PACKAGE)
    found = pkgutil.walk_packages(package.__path__, f"{PACKAGE}.")
    return [PACKAGE, *(module.name for module in found if _is_public(module.name))]


def _is_public(module: str) -> bool:
    return "._" not in module and module not in NO_API


def public_names() -> dict[str, list[str]]:
    """What each of them exports."""
    return {name: sorted(importlib.import_module(name).__all__) for name in public_modules()}


def pages() -> list[Path]:
    """The pages that hold examples."""
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
    # These stand in a docstring, which has all of two modules at hand.
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
    """The public names that examples use, of which the later ones know what earlier ones imported.

    Args:
        examples: their code.
        public: what there is, by module.
        at_hand: what need not be imported, as it is called.
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
    """The names of all functions and of their arguments."""
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
