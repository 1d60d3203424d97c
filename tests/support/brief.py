"""Selects the variants of slow tests that only the nightly run executes.

The nightly run executes a test with each combination of its parameters. Any other run executes each
case, which is a combination of the other parameters, on one loop with one driver. Within a module
all loops and drivers are chosen about equally often.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = [
    "IN_FULL",
    "leave_variants_to_the_night",
    "on_either_loop",
    "on_trio_and_nightly_on_asyncio",
]

#: Whether to run the tests in full: every variant, with as many records as for the documents.
IN_FULL: Final = os.environ.get("FULL_TESTS", "") not in {"", "0"}

#: For a slow test that does not depend on the loop.
on_trio_and_nightly_on_asyncio: Final = pytest.mark.parametrize(
    "anyio_backend", [pytest.param("asyncio", marks=pytest.mark.nightly), "trio"], indirect=True
)

#: For a slow test that takes a driver: each loop with one driver, and at night also with the other.
on_either_loop: Final = pytest.mark.parametrize(
    ("anyio_backend", "driver"),
    [
        ("asyncio", "kafka-python"),
        ("trio", "confluent"),
        pytest.param("asyncio", "confluent", marks=pytest.mark.nightly),
        pytest.param("trio", "kafka-python", marks=pytest.mark.nightly),
    ],
    indirect=True,
)

#: Parameters that do not distinguish cases.
_VARY: Final = frozenset({"anyio_backend", "loop", "driver"})

#: The value of each parameter that varies, by the parameter's name.
_Variant = dict[str, str]


def leave_variants_to_the_night(
    folder: Path, items: Iterable[pytest.Item], vary: Collection[str] = ()
) -> None:
    """Mark all variants but one of each case as nightly, unless the tests are run in full.

    The choice does not depend on which tests of a module are run, and is the same each time.

    Args:
        folder: the folder of the tests to mark.
        items: all tests.
        vary: parameters that do not distinguish cases, besides the loop and the driver.
    """
    if IN_FULL:
        return
    modules: dict[Path, dict[str, list[tuple[_Variant, pytest.Item]]]] = {}
    for item in items:
        if folder in item.path.parents:
            case, variant = _split(item, {*_VARY, *vary})
            cases = modules.setdefault(item.path, {})
            cases.setdefault(case, []).append((variant, item))
    for cases in modules.values():
        used: Counter[Any] = Counter()
        for variants in cases.values():
            # A variant that its module marks as nightly is chosen only if it is the only one.
            chosen = min(
                range(len(variants)),
                key=lambda at: (
                    variants[at][1].get_closest_marker("nightly") is not None,
                    _use(used, variants[at][0]),
                ),
            )
            used.update(_parts(variants[chosen][0]))
            for at, (_, item) in enumerate(variants):
                if at != chosen:
                    item.add_marker("nightly")


def _split(item: pytest.Item, vary: Collection[str]) -> tuple[str, _Variant]:
    call: Any = getattr(item, "callspec", None)
    name = getattr(item, "originalname", item.name)
    parameters: dict[str, Any] = {} if call is None else call.params
    case = [f"{key}={value!r}" for key, value in sorted(parameters.items()) if key not in vary]
    variant = {key: str(value) for key, value in parameters.items() if key in vary}
    return " ".join([name, *case]), variant


def _use(used: Counter[Any], variant: _Variant) -> int:
    """Count how often the values of a variant have been chosen, alone and in pairs."""
    return sum(used[part] for part in _parts(variant))


def _parts(variant: _Variant) -> list[Any]:
    values = sorted(variant.items())
    return [*values, *combinations(values, 2)]
