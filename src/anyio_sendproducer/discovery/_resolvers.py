"""Resolvers that make no requests of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import cast

import anyio

from .._durations import seconds_of
from .._exceptions import SettingsError
from .._shown import listed, shown
from ._types import Lookup, Resolver, ResolverLike, Target, as_resolver

__all__ = ["aggregate", "static"]


class _Static:
    def __init__(
        self, always: tuple[Target, ...], by_name: Mapping[str, tuple[Target, ...]]
    ) -> None:
        self._always = always
        self._by_name = by_name

    async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
        return self._by_name.get(str(lookup), self._always)

    def __repr__(self) -> str:
        if self._always:
            return f"static({listed(self._always)})"
        return f"static(for {listed(self._by_name)})"


def static(
    targets: Iterable[str | Target] | Mapping[str, Iterable[str | Target]],
) -> Resolver:
    """Make a resolver with fixed answers, for tests or as the last resolver of :func:`aggregate`.

    Args:
        targets: the answer to every look-up, with each target as ``"host:port"`` or a
            :class:`Target`; or a mapping from service names to such answers.

    Raises:
        SettingsError: a target or a service name is wrong, or ``targets`` is empty. In a mapping,
            the answer to a name may be empty.
    """
    if isinstance(targets, Mapping):
        named = cast("Mapping[str, Iterable[str | Target]]", targets)
        for name in cast("Mapping[object, object]", named):
            if not isinstance(name, str):
                raise SettingsError(f"static: a service name must be a str, not {shown(name)}")
        by_name = {name: _targets(those) for name, those in named.items()}
        if by_name:
            return _Static((), by_name)
    always = _targets(cast("object", targets))
    if not always:
        raise SettingsError("static: give at least one target, such as 'localhost:9092'")
    return _Static(always, {})


def _targets(given: object) -> tuple[Target, ...]:
    if isinstance(given, (str, Target)):
        given = [given]
    if not isinstance(given, Iterable):
        raise SettingsError(f"static: targets must be an iterable, not {type(given).__name__}")
    found: list[Target] = []
    for one in cast("Iterable[object]", given):
        if isinstance(one, str):
            found.append(Target.parse(one))
        elif isinstance(one, Target):
            found.append(one)
        else:
            raise SettingsError(f"static: a target must be a str or a Target, not {shown(one)}")
    return tuple(found)


class _Aggregate:
    def __init__(self, resolvers: tuple[Resolver, ...], seconds: float) -> None:
        self._resolvers = resolvers
        self._seconds = seconds

    async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
        said: list[str] = []
        last = self._resolvers[-1]
        for resolver in self._resolvers:
            words = f"no answer within {self._seconds:g} s"
            # The caller's timeout bounds the last resolver.
            with anyio.move_on_after(math.inf if resolver is last else self._seconds):
                try:
                    found = await resolver.resolve(lookup)
                except Exception as error:  # noqa: BLE001  # the next resolver may find it
                    words = str(error) or type(error).__name__
                else:
                    if found:
                        return found
                    words = "nothing was found"
            said.append(f"{resolver!r}: {words}")
        raise LookupError("; ".join(said))

    def __repr__(self) -> str:
        return f"aggregate({', '.join(map(repr, self._resolvers))})"


def aggregate(*resolvers: ResolverLike, seconds: float | timedelta = 1.0) -> Resolver:
    """Make a resolver that tries several resolvers in turn, until one of them finds targets.

    Args:
        resolvers: the resolvers, in the order in which they are tried.
        seconds: the time that each resolver except the last has, as seconds or a ``timedelta``.
            After this time, the next resolver is tried. The last resolver has the rest of
            ``resolve_timeout``.

    Raises:
        SettingsError: there is no resolver, an argument is not a resolver, or ``seconds`` is not
            a time above 0.
    """
    if not resolvers:
        raise SettingsError("aggregate: pass at least one resolver")
    checked = seconds_of("aggregate: seconds", seconds, zero=False)
    return _Aggregate(tuple(map(as_resolver, resolvers)), checked)
