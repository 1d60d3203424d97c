"""Checks of the numbers that tests pass to the test kit."""

from __future__ import annotations

__all__ = ["check_count"]


def check_count(name: str, number: object, least: int = 1) -> None:
    """Check an argument that is a number.

    Raises:
        ValueError: it is not an int, or is too small.
    """
    if type(number) is not int or number < least:
        raise ValueError(f"{name} must be an int of {least} or more: {number!r}")
