"""Classes whose instances only this package makes."""

from __future__ import annotations

from typing import ClassVar, NoReturn

__all__ = ["NoPublicConstructor"]


class NoPublicConstructor:
    """A class that cannot be called. Its own factory calls ``__new__`` and sets the attributes."""

    __slots__ = ()

    _how_to_make: ClassVar[str]
    """The message of the error, which says what to do instead."""

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(self._how_to_make)
