"""Durations: seconds, as a number or a ``timedelta``."""

from __future__ import annotations

import datetime as dt
import inspect
import warnings
from typing import Final

from ._exceptions import SettingsError, SettingsWarning
from ._shown import shown

__all__ = ["LONGEST", "seconds_of"]

#: Thirty years: longer than any process runs, short enough for every clock.
LONGEST: Final = 1e9
#: In seconds. A larger number is usually meant as milliseconds.
_LONG: Final = 3600.0
#: Modules whose frames are skipped to find the caller's line.
_OURS: Final = ("anyio_sendproducer", "contextlib", "dataclasses")


class _Checked(float):
    """A long duration that was accepted once. Another check of it, as by ``evolve``, does not warn
    again."""

    __slots__ = ()


def seconds_of(field: str, value: object, *, zero: bool) -> float:
    """Check a duration, and convert it to seconds.

    A plain number above one hour issues a :class:`SettingsWarning`, because many clients count in
    milliseconds.

    Args:
        field: its name, for errors.
        value: a number of seconds, or a ``timedelta``.
        zero: whether it may be 0.

    Raises:
        SettingsError: the value is neither a number nor a ``timedelta``, or it is out of bounds;
            the message names the field.
    """
    seconds: object = value
    if isinstance(value, dt.timedelta):
        seconds = value.total_seconds()
    if (
        not isinstance(seconds, (int, float))
        or isinstance(seconds, bool)
        or not 0 <= seconds <= LONGEST
        or (seconds == 0 and not zero)
    ):
        least = "of 0 or more" if zero else "above 0"
        raise SettingsError(
            f"{field} must be a number of seconds {least}, and no more than {LONGEST:g}, or a "
            f"timedelta, not {shown(seconds)}"
        )
    if seconds <= _LONG:
        return seconds
    if not isinstance(value, (dt.timedelta, _Checked)):
        _warn(
            f"{field}={shown(value)} is in seconds, which is {_in_words(seconds)}. If milliseconds "
            "are meant, divide by 1000. If this duration is intended, use "
            f"timedelta(seconds={shown(value)})."
        )
    return _Checked(seconds)


def _in_words(seconds: float) -> str:
    for unit, length in (("years", 31_536_000), ("days", 86_400)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 3600:.1f} hours"


def _warn(text: str) -> None:
    """Warn, with the line of the caller outside this package."""
    level = 1
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _OURS:
        frame = frame.f_back
        level += 1
    warnings.warn(text, SettingsWarning, stacklevel=level)
