"""Copies methods of a private base class, so that Python's messages name the public class."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TypeVar

__all__ = ["with_own_methods"]

C = TypeVar("C", bound=type)


def with_own_methods(cls: C) -> C:
    """Copy the public methods of the base classes into a class.

    Python names a method in its warnings ("coroutine 'SendProducer.send' was never awaited") and in
    its errors by the class that defines it, and ``help()`` lists the methods that the class itself
    defines before the inherited ones.
    """
    for base in cls.__mro__[1:]:
        for name, method in vars(base).items():
            if inspect.isfunction(method) and not name.startswith("_") and name not in vars(cls):
                setattr(cls, name, _copy(method, f"{cls.__qualname__}.{name}"))
    return cls


def _copy(method: FunctionType, qualified_name: str) -> FunctionType:
    copy = FunctionType(method.__code__, method.__globals__, method.__name__)
    copy.__defaults__ = method.__defaults__
    copy.__kwdefaults__ = method.__kwdefaults__
    copy.__annotations__ = method.__annotations__
    copy.__doc__ = method.__doc__
    copy.__module__ = method.__module__
    copy.__qualname__ = qualified_name
    return copy
