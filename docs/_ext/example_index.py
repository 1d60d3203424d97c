"""The directive ``example-index``: for each public name, the pages whose examples use it.

```{example-index} ```
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata
from used_names import FIXTURES, pages, public_names, where_used


class ExampleIndex(SphinxDirective):
    """``example-index``: a table for each public module."""

    def run(self) -> list[nodes.Node]:
        """Make the tables."""
        for page in pages():
            self.env.note_dependency(str(page))
        places = where_used()
        lines: list[str] = []
        for module, names in public_names().items():
            lines += ["", f"`{module}`", "", "| name | used in |", "|---|---|"]
            for name in names:
                found = ", ".join(map(_link, places.get((module, name), [])))
                # Fixtures are documented in a table, so a reference to one would not resolve.
                shown = f"`{name}`" if module == FIXTURES else _reference(module, name)
                lines.append(f"| {shown} | {found} |")
        return self.parse_text_to_nodes("\n".join(lines))


def _reference(module: str, name: str) -> str:
    return f"{{py:obj}}`{name} <{module}.{name}>`"


def _link(page: str) -> str:
    return f"{{doc}}`/{page}`" if page else "a docstring"


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("example-index", ExampleIndex)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
