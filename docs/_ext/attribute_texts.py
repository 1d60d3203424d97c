"""Keeps Napoleon away from the docstrings of attributes.

Napoleon reads the text before a colon as the attribute's type. These docstrings are sentences, for
example "The number of clients so far: 1, and 1 more each time a client was replaced". The types are
in the annotations.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

#: The priority of Napoleon's listener. One listener of this module runs before it, one after it.
_NAPOLEON = 500

_kept: dict[str, list[str]] = {}


def _keep(_app: Sphinx, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    if what in {"attribute", "data", "property"}:
        _kept[name] = list(lines)


def _restore(
    _app: Sphinx, _what: str, name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    lines[:] = _kept.pop(name, lines)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listen before and after Napoleon."""
    app.connect("autodoc-process-docstring", _keep, priority=_NAPOLEON - 1)
    app.connect("autodoc-process-docstring", _restore, priority=_NAPOLEON + 1)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
