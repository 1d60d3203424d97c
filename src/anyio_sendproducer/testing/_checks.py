"""Checks of the arguments that tests pass to the test kit."""

from __future__ import annotations

import math

__all__ = ["check_callable", "check_count", "check_timeout", "check_topic"]


def check_callable(name: str, argument: object) -> None:
    """Check an argument that is a function.

    Raises:
        TypeError: it can't be called.
    """
    if not callable(argument):
        raise TypeError(f"{name} must be callable, not {type(argument).__name__}")


def check_count(name: str, number: object, least: int = 1, most: float = math.inf) -> None:
    """Check an argument that is a number.

    Raises:
        ValueError: it is not an int, or is too small or too large.
    """
    if type(number) is not int or number < least:
        raise ValueError(f"{name} must be an int of {least} or more: {number!r}")
    if number > most:
        raise ValueError(f"{name} must be {most} at most: {number!r}")


def check_timeout(seconds: float) -> None:
    """Check the timeout of a wait. A wait for NaN seconds would never end.

    Raises:
        ValueError: it is NaN or negative.
    """
    if not seconds >= 0:
        raise ValueError(f"timeout must be 0 seconds or more: {seconds!r}")


def check_topic(topic: object) -> None:
    """Check an argument that is the name of a topic, or None.

    Raises:
        TypeError: it is neither.
    """
    if topic is not None and not isinstance(topic, str):
        raise TypeError(f"topic must be a str or None, not {type(topic).__name__}")
