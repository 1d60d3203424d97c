"""Bounds on the size of the product's modules and classes.

tests/unit/test_public_api.py enforces them.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "LARGER_MODULES",
    "LARGEST_CLASS",
    "LARGEST_MODULE",
    "OVERSIZED_CLASSES",
    "OVERSIZED_MODULES",
    "USUAL_MODULE",
    "VALUES",
]

#: Lines that a module may have.
USUAL_MODULE: Final = 600
#: Modules that may have more than that, because a state machine stays in one file and each field of
#: the settings has its docstring.
LARGER_MODULES: Final = {"_ledger", "_settings"}
#: Lines that these may have.
LARGEST_MODULE: Final = 800
#: Modules that have not been divided yet.
OVERSIZED_MODULES: Final = set[str]()

#: Attributes that instances of a class may have.
LARGEST_CLASS: Final = 20
#: Classes whose attributes are settings, statistics or reports: a flat list suits them.
VALUES: Final = {
    "_delivery.Statistics",
    "_settings.ProducerSettings",
    "_settings.SettingsFields",
}
#: Classes that have not been divided yet.
OVERSIZED_CLASSES: Final = set[str]()
