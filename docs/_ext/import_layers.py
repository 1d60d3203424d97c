"""The directives ``import-layers`` and ``import-guests``: which module may import which.

They show ``LAYERS`` and ``GUESTS`` of ``tests/support/import_rules.py``. Tests enforce both, so
the documents cannot differ from them. The tables are read, not imported, because the tests'
dependencies are not installed when the documents are built.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any, ClassVar, Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec

PACKAGE: Final = "anyio_sendproducer"
TABLES: Final = Path(__file__).resolve().parents[2] / "tests/support/import_rules.py"


class _Table(SphinxDirective):
    """A table of names."""

    option_spec: ClassVar[OptionSpec] = {}

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        self.env.note_dependency(str(TABLES))
        return self.parse_text_to_nodes("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The table, as Markdown."""
        raise NotImplementedError


class ImportLayers(_Table):
    """``import-layers``: the layers from the bottom up, and how each module's docstring begins."""

    def lines(self) -> list[str]:
        """One row for each module."""
        rows = ["| layer | module | description |", "|---:|---|---|"]
        for number, layer in enumerate(_value("LAYERS"), 1):
            for name in sorted(layer):
                shown = f"`{name}`" if name else "the package itself"
                rows.append(f"| {number} | {shown} | {_first_words(name)} |")
        return rows


class ImportGuests(_Table):
    """``import-guests``: which modules may import each package that is not part of the project."""

    def lines(self) -> list[str]:
        """One row for each package."""
        rows = ["| package | may be imported by |", "|---|---|"]
        for guest, modules in sorted(_value("GUESTS").items()):
            by = ", ".join(f"`{module}`" for module in sorted(modules))
            rows.append(f"| `{guest}` | {by or 'no module'} |")
        return rows


def _value(name: str) -> Any:
    """Read a table from the source of the tests' module: literals, and empty sets as
    ``set[str]()``."""
    for statement in ast.parse(TABLES.read_text(encoding="utf-8")).body:
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id == name
            and statement.value is not None
        ):
            return ast.literal_eval(_EmptySets().visit(statement.value))
    raise LookupError(f"{TABLES} has no {name}")


class _EmptySets(ast.NodeTransformer):
    """Replaces ``set[str]()`` by ``set()``, which literal_eval() accepts as an empty set."""

    def visit_Call(self, node: ast.Call) -> ast.expr:  # the name that ast requires
        """Replace one call."""
        if isinstance(node.func, ast.Subscript) and not node.args:
            node.func = node.func.value
        return node


def _first_words(name: str) -> str:
    """The first paragraph of a module's docstring."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{name}" if name else PACKAGE)
    if spec is None or spec.origin is None:
        raise LookupError(f"there is no module {name!r}")
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.replace("``", "`").replace(":class:", "").replace("|", r"\|")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directives."""
    app.add_directive("import-layers", ImportLayers)
    app.add_directive("import-guests", ImportGuests)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
