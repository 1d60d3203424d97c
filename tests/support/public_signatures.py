"""The public names of the package with their signatures, as text.

``python -m tests.support.public_signatures`` writes the listing for the comparison in tests/unit.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

import anyio_sendproducer
from anyio_sendproducer import checking, discovery, drivers, serializers, telemetry, testing
from anyio_sendproducer.testing import factories, pytest_plugin, strategies
from tests.support.paths import ROOT

__all__ = ["LISTING", "listed"]

LISTING: Final = ROOT / "tests/unit/public_signatures.txt"
MODULES: Final = (
    anyio_sendproducer,
    checking,
    discovery,
    drivers,
    serializers,
    telemetry,
    testing,
    factories,
    pytest_plugin,
    strategies,
)


def listed() -> str:
    """The listing."""
    return "".join(f"{line}\n" for module in MODULES for line in _module(module))


def _module(module: ModuleType) -> Iterator[str]:
    yield f"# {module.__name__}"
    for name in sorted(module.__all__):
        thing: Any = getattr(module, name)
        if inspect.isclass(thing) and thing.__module__.startswith(anyio_sendproducer.__name__):
            yield from _class(name, thing)
        elif inspect.isfunction(thing):
            yield f"{name}{_signature(thing)}"
        else:
            yield name
    yield ""


def _class(name: str, cls: Any) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if not base.__name__.startswith("_")]
    public = [base for base in bases if base in anyio_sendproducer.__all__]
    yield f"class {name}({', '.join(public)})" if public else f"class {name}"
    if _is_a(cls, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in cls)
        return
    if "__dataclass_fields__" in dir(cls):
        yield from (f"    {field.name}: {field.type}" for field in dataclasses.fields(cls))
    # In Python 3.10 each protocol has one.
    is_protocol = getattr(cls, "_is_protocol", False)
    if "__init__" in vars(cls) and not is_protocol and not _is_a(cls, tuple):
        yield f"    __init__{_signature(cls.__init__)}"
    if _is_a(cls, tuple):
        yield from (
            f"    {field}: {_annotation(_annotations(cls)[field])}" for field in cls._fields
        )
    fields = {*getattr(cls, "__dataclass_fields__", ())}
    if _is_a(cls, tuple):
        fields |= {*cls._fields}
    for attribute in sorted(dir(cls)):
        if attribute.startswith("_") or attribute in fields:
            continue
        owner = next(base for base in cls.__mro__ if attribute in vars(base))
        if owner.__module__.startswith(anyio_sendproducer.__name__):
            yield f"    {_member(attribute, vars(owner)[attribute])}"


def _is_a(cls: Any, kind: type[object]) -> bool:
    # In a function of its own, since pyright knows less about a class that it has narrowed.
    return issubclass(cls, kind)


def _member(name: str, member: Any) -> str:
    match member:
        case property():
            return f"{name} -> {_annotations(member.fget).get('return')}"
        case classmethod() | staticmethod():
            found: Any = member  # pyright: ignore[reportUnknownVariableType]
            return _wrapped(name, found)
        case _ if inspect.isfunction(member):
            is_async = inspect.iscoroutinefunction(member)
            return f"{'async ' if is_async else ''}{name}{_signature(member)}"
        case _:
            return name


def _wrapped(name: str, member: Any) -> str:
    return f"{type(member).__name__} {name}{_signature(member.__func__)}"


def _annotations(function: Any) -> dict[str, Any]:
    return getattr(inspect.unwrap(function), "__annotations__", {})


def _signature(function: Any) -> str:
    """Format it as Python does, but equally in every version of Python."""
    parts: list[str] = []
    kinds: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.kind
        if kind is not parameter.POSITIONAL_ONLY and kinds and kinds[-1].name == "POSITIONAL_ONLY":
            parts.append("/")
        if kind is parameter.KEYWORD_ONLY and not {kind, parameter.VAR_POSITIONAL} & {*kinds}:
            parts.append("*")
        kinds.append(kind)
        stars = "*" * (kind is parameter.VAR_POSITIONAL) + "**" * (kind is parameter.VAR_KEYWORD)
        text = f"{stars}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
    if kinds and kinds[-1].name == "POSITIONAL_ONLY":
        parts.append("/")
    result = _annotations(function).get("return")
    return f"({', '.join(parts)})" + ("" if result is None else f" -> {_annotation(result)}")


def _annotation(value: Any) -> str:
    # A NamedTuple wraps the text.
    text = getattr(value, "__forward_arg__", value)
    return text if isinstance(text, str) else inspect.formatannotation(text)


def _default(value: Any) -> str:
    if inspect.isroutine(value) or inspect.isclass(value):
        return str(value.__name__)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


if __name__ == "__main__":
    LISTING.write_text(listed(), encoding="utf-8")
