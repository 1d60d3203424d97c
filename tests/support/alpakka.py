"""The page that compares the product with Alpakka Kafka, and the table rows that tests name."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.support.paths import ROOT

__all__ = ["PAGE", "line", "lines_named_in", "named"]

PAGE: Final = ROOT / "docs/explanation/coming-from-alpakka.md"

T = TypeVar("T", bound=Callable[..., Any])

#: The rows that the tests of all imported modules name.
named: Final[list[str]] = []


def line(*texts: str) -> Callable[[T], T]:
    """Name the rows of the page that a test checks, by the text of their first cells."""
    named.extend(texts)
    return lambda test: test


def lines_named_in(module: Path) -> list[str]:
    """The rows that the tests of a module name. The module is not imported."""
    return [
        ast.literal_eval(text)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "line"
        for text in node.args
    ]
