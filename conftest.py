"""Runs every example of the README, of the documents and of the docstrings, as a reader would.

* A block of ``python`` is run twice, on asyncio and on Trio, each in a world of its own: with its
  own variables, which later blocks of the same page see, and its own embedded broker.
* ``await`` and ``async with`` may stand outside a function, as they may in ``python -m asyncio``.
* A script that ends in ``anyio.run(main)`` is run as it stands, and with ``backend="trio"``.
* ``localhost:9092``, where a reader's broker would be, is replaced by the embedded broker's
  address; nothing else that a reader sees is changed. The broker starts when a page first asks.
* A block of ``py`` is for other clients, beside which ours is shown: it is run on asyncio alone.
* A block of ``python3`` is a cell of a notebook or a file of a project: a module in ``tests/docs``
  runs it.
* A block of ``text`` is what the block before it prints; ``...`` stands for anything.
* An HTML comment ``invisible-code-block: python`` checks what the example before it did.
* In a docstring, an indented block after ``::`` is an example, unless it draws a tree.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from sybil import Document, Example, Lexeme, Region, Sybil
from sybil.parsers.myst import CodeBlockParser

import anyio_sendproducer
import anyio_sendproducer.testing
from anyio_sendproducer.testing import blocking_embedded_broker

# What the tests share has assertions too, and pytest is to show their values.
pytest.register_assert_rewrite("tests.support")

_BACKENDS: Final = ("asyncio", "trio")
_ADDRESS: Final = "localhost:9092"
#: An indented block after a line that ends in two colons; the indentation is that of the docstring.
_LITERAL_BLOCK: Final = re.compile(r"^( *)\S?.*::\n\n((?:\1    .*\n|[ ]*\n)+)", re.MULTILINE)


class _World:
    """One loop, and what the examples of one page left behind on it."""

    def __init__(self, backend: str, names: dict[str, Any]) -> None:
        self._backend = backend
        # Dataclasses and pickles look their module up by its name.
        self._module = types.ModuleType("__main__")
        self._module.__dict__.update(names)
        self._resources = contextlib.ExitStack()
        self._broker = ""
        self.printed = ""

    def close(self) -> None:
        """End the broker."""
        self._resources.close()

    def run(self, source: str, path: str, line: int) -> None:
        """Run an example that begins in a given line of a file."""
        if _ADDRESS in source:
            source = source.replace(_ADDRESS, self._address())
        source = source.replace("anyio.run(main)", f'anyio.run(main, backend="{self._backend}")')
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * line + source, path, "exec", flags=flags, dont_inherit=True)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if code.co_flags & inspect.CO_COROUTINE:
                function = types.FunctionType(code, self._module.__dict__)
                anyio.run(function, backend=self._backend)
            else:
                exec(code, self._module.__dict__)  # noqa: S102  # running them is what it is for
        self.printed = output.getvalue()
        if self._broker:
            self.printed = self.printed.replace(self._broker, _ADDRESS)

    def _address(self) -> str:
        if not self._broker:
            running = self._resources.enter_context(blocking_embedded_broker())
            self._broker = running.bootstrap_servers
        return self._broker


def _set_up(namespace: dict[str, Any]) -> None:
    namespace["worlds"] = [_World(backend, {}) for backend in _BACKENDS]


def _set_up_for_docstrings(namespace: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    for module in (anyio_sendproducer, anyio_sendproducer.testing):
        names.update({name: getattr(module, name) for name in module.__all__})
    names["settings"] = anyio_sendproducer.ProducerSettings(bootstrap_servers=_ADDRESS)
    namespace["worlds"] = [_World(backend, dict(names)) for backend in _BACKENDS]


def _tear_down(namespace: dict[str, Any]) -> None:
    for world in namespace["worlds"]:
        world.close()


def _run(example: Example) -> None:
    for world in example.namespace["worlds"]:
        world.run(example.parsed, example.path, example.line + example.parsed.line_offset)


def _run_peer(example: Example) -> None:
    asyncio_world = example.namespace["worlds"][0]
    asyncio_world.run(example.parsed, example.path, example.line + example.parsed.line_offset)


def _compare_output(example: Example) -> None:
    checker = doctest.OutputChecker()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for world in example.namespace["worlds"]:
        if not checker.check_output(example.parsed, world.printed, options):
            raise AssertionError(f"the example printed:\n{world.printed}")


def _docstring_examples(document: Document) -> Iterable[Region]:
    for found in _LITERAL_BLOCK.finditer(document.text):
        source = inspect.cleandoc("\n" + found[2])
        if "├" not in source:
            yield Region(found.start(), found.end(), Lexeme(source, found.start(2), 1), _run)


_pages = Sybil(
    name="pages",
    parsers=[
        CodeBlockParser("python", _run),
        CodeBlockParser("py", _run_peer),
        CodeBlockParser("text", _compare_output),
    ],
    patterns=["README.md", "docs/**/*.md", "docs/*.md"],
    excludes=["docs/_build/**"],
    path=str(Path(__file__).parent),
    setup=_set_up,
    teardown=_tear_down,
)
_docstrings = Sybil(
    name="docstrings",
    parsers=[_docstring_examples],
    patterns=["src/anyio_sendproducer/**/*.py", "src/anyio_sendproducer/*.py"],
    path=str(Path(__file__).parent),
    document_types={".py": Document},
    setup=_set_up_for_docstrings,
    teardown=_tear_down,
)
pytest_collect_file = (_pages + _docstrings).pytest()
