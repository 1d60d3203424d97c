"""The page of error messages quotes messages of the package."""

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
    """Yield every string in the source of the package, with "…" for each inserted value."""
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
def test_each_quoted_message_is_in_the_source(message: str) -> None:
    assert message in ALL


def test_messages_are_found_on_the_page_and_in_the_source() -> None:
    assert "no broker answered: …" in MESSAGES
    assert "no such message" not in ALL


def test_every_public_exception_is_on_the_page() -> None:
    missing = [
        name
        for name, public in vars(anyio_sendproducer).items()
        if isinstance(public, type)
        and issubclass(public, (Exception, Warning))
        and f"`~anyio_sendproducer.{name}`" not in PAGE
    ]
    assert missing == []
