"""Gives each page a ``<meta name="description">``: its first paragraph, for search engines."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

#: The number of characters that search engines show.
LIMIT: Final = 160


def describe(document: nodes.document | None, otherwise: str) -> str:
    """The first paragraph of text, cut at a word.

    Args:
        document: the page, or None for a page that Sphinx generates, such as the index.
        otherwise: the description of a page that starts without a paragraph.
    """
    for paragraph in document.findall(nodes.paragraph) if document else ():
        text = " ".join(paragraph.astext().split())
        if len(text) > 30:
            return text if len(text) <= LIMIT else text[:LIMIT].rsplit(" ", 1)[0] + " …"
    return otherwise


def add_description(
    app: Sphinx, _page: str, _template: str, context: dict[str, Any], page: nodes.document | None
) -> None:
    """Add the tag to what the theme writes into the page's head."""
    text = describe(page, app.config.site_description)
    context["metatags"] = (
        f'{context.get("metatags", "")}\n<meta name="description" content="{escape(text)}">'
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the tag, and the setting for pages without a paragraph."""
    app.add_config_value("site_description", "", "html", str)
    app.connect("html-page-context", add_description)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
