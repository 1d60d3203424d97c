"""The directive ``unreleased-changes``: the fragments in ``changelog.d``, by their kind.

```{unreleased-changes} ```
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

if sys.version_info >= (3, 11):
    import tomllib
else:  # the documents are built on 3.11 or later
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


class UnreleasedChanges(SphinxDirective):
    """``unreleased-changes``: a list for each kind of change, in the order of the kinds."""

    def run(self) -> list[nodes.Node]:
        """Make the lists."""
        project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        lines: list[str] = []
        for kind in project["tool"]["towncrier"]["type"]:
            found = sorted((ROOT / "changelog.d").glob(f"*.{kind['directory']}.md"))
            if not found:
                continue
            lines += ["", f"**{kind['name']}**", ""]
            for path in found:
                self.env.note_dependency(str(path))
                text = path.read_text("utf-8").strip()
                lines.append("- " + text.replace("\n", "\n  "))
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("unreleased-changes", UnreleasedChanges)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
