"""A base class for classes whose instances only this package makes."""

from __future__ import annotations

from typing import ClassVar, NoReturn

__all__ = ["NoPublicConstructor"]


class NoPublicConstructor:
    """A class that can't be called: a call raises TypeError. Its factory calls ``__new__`` and sets
    the attributes."""

    __slots__ = ()

    _how_to_make: ClassVar[str]
    """The error message. It says how to get an instance."""

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(self._how_to_make)
