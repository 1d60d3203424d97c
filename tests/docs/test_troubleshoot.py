"""The page of error messages quotes messages that the package really has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

import pytest

import anyio_sendproducer
from tests.support.paths import ROOT

PAGE: Final = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text(encoding="utf-8")
MESSAGES: Final = re.findall(r"^\| `(.+?)` \|", PAGE, re.MULTILINE)


def texts() -> Iterator[str]:
    """Every text in the source of the package, with "…" for each value in it."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )


ALL: Final = "\n".join(texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_package(message: str) -> None:
    assert message in ALL


def test_the_messages_are_looked_at() -> None:
    assert "no broker answered: …" in MESSAGES
    assert "no such message" not in ALL


def test_every_public_exception_is_there() -> None:
    missing = [
        name
        for name, public in vars(anyio_sendproducer).items()
        if isinstance(public, type)
        and issubclass(public, (Exception, Warning))
        and f"`~anyio_sendproducer.{name}`" not in PAGE
    ]
    assert missing == []
