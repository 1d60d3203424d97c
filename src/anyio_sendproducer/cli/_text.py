"""Text that the command prints."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with its control characters escaped, so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
