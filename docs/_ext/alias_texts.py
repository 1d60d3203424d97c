"""Finds the docstrings of type aliases that a public module imports from a private one.

A docstring of an alias is a text below an assignment. Autodoc looks for it only in the module whose
page it writes. If the assignment is in another module, autodoc shows the docstring of the alias's
class instead, such as "Represent a PEP 604 union type".
"""

from __future__ import annotations

import sys
from typing import Any, Final

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import ExtensionMetadata

_PACKAGE: Final = "anyio_sendproducer"


def text_of(name: str, alias: object) -> list[str] | None:
    """The lines of the text below the assignment of an alias.

    Args:
        name: its name in the module that assigns it, and in each module that imports it.
        alias: the alias.

    Returns:
        None if there is no such text.
    """
    for module_name, module in sorted(sys.modules.items()):
        if module_name.split(".")[0] == _PACKAGE and vars(module).get(name) is alias:
            analyzer = ModuleAnalyzer.for_module(module_name)
            analyzer.analyze()
            if ("", name) in analyzer.attr_docs:
                return list(analyzer.attr_docs["", name])
    return None


def _replace(_app: Sphinx, what: str, name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    if what == "data":
        lines[:] = text_of(name.rpartition(".")[2], obj) or lines


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listen before ``attribute_texts``, which keeps the lines from Napoleon."""
    app.connect("autodoc-process-docstring", _replace, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
