"""The directive ``state-machine``: draws a table of transitions of the package as a picture.

    ```{state-machine} package.module.TRANSITIONS
    :title: The life of a thing
    ```

The picture is drawn from the table that the code executes, so it cannot differ from the code. In
HTML it is inline SVG (``state_drawing``), in other formats a list.
"""

from __future__ import annotations

import importlib
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec
from state_drawing import Transitions, draw, sentences


class StateMachine(SphinxDirective):
    """``state-machine``: its argument is the dotted name of the table."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {"title": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Draw the picture for HTML, and list the transitions for everything else."""
        name = self.arguments[0]
        module_name, _, attribute = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
            table: Transitions = getattr(module, attribute)
        except (AttributeError, ImportError, ValueError) as error:
            raise self.error(f"no table of transitions at {name}: {error}") from error
        if module.__file__ is not None:
            self.env.note_dependency(module.__file__)
        title = self.options.get("title", name)

        picture = nodes.raw("", draw(table, title=title, name=name), format="html")
        lists = addnodes.only("", _as_list(table), expr="not html")
        self.set_source_info(lists)
        return [nodes.container("", picture, classes=["wide-picture"]), lists]


def _as_list(table: Transitions) -> nodes.bullet_list:
    return nodes.bullet_list(
        "", *(nodes.list_item("", nodes.paragraph("", text)) for text in sentences(table))
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("state-machine", StateMachine)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
