"""Shows the docstrings of type aliases that a package imports from its private modules.

Autodoc looks for the docstring of ``package.Alias`` in the source of ``package`` only. Without it,
the page shows the docstring of the alias's own class, such as ``types.UnionType``, or none.
"""

from __future__ import annotations

import sys
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import ExtensionMetadata

#: Before the listeners of ``attribute_texts`` and of Napoleon.
_FIRST = 100


def _replace(
    _app: Sphinx, what: str, name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    if what != "data":
        return
    package, _, alias = name.rpartition(".")
    modules = [module for module in sys.modules if module.startswith(f"{package}._")]
    for module in (package, *sorted(modules)):
        found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", alias))
        if found is not None:
            lines[:] = found
            return


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listen for docstrings."""
    app.connect("autodoc-process-docstring", _replace, priority=_FIRST)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
