"""The settings of Sphinx. The build needs no network."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "anyio-sendproducer"
author = "the anyio-sendproducer authors"
project_copyright = f"2026, {author}"
metadata = importlib.metadata.metadata(project)
release = version = metadata["Version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "alias_texts",
    "attribute_texts",
    "example_index",
    "import_layers",
    "outside_names",
    "page_description",
    "state_diagrams",
    "unreleased_changes",
]
# _build has the output, and the docstrings in _ext contain Markdown.
exclude_patterns = ["_build", "_ext"]
nitpicky = True
# Names that only exist for type checkers: type variables, types of OpenTelemetry, which need not
# be installed for the build, and SettingsFields, which types keyword arguments.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        "A",
        "B",
        "MeterProvider",
        "SettingsFields",
        "TextMapPropagator",
        "TracerProvider",
    )
]

# An editor that only supports plain Markdown shows directives with colon fences as text.
myst_enable_extensions = ["colon_fence", "deflist"]
# Readers link to sections, so every heading down to this level gets an anchor.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# Show types in the signature, and not again in a table below it.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Each page says at its top from which module to import its names.
add_module_names = False
# A long signature has one line for each argument.
maximum_signature_line_length = 80

napoleon_numpy_docstring = False
napoleon_google_docstring = True

html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_favicon = "_static/favicon.svg"
# The description of pages that do not start with a paragraph.
site_description = metadata["Summary"]

# A copy button copies commands without the prompt and the output. Blocks of output have no button.
copybutton_prompt_text = "$ "
copybutton_here_doc_delimiter = "EOF"
copybutton_line_continuation_character = "\\"
copybutton_selector = "div.highlight:not(.highlight-text *, .highlight-none *) > pre"

html_theme = "furo"
html_title = f"{project} {version}"
# Readers do not need the sources of the documents.
html_show_sourcelink = False
html_copy_source = False
# Add links to view and to edit a page if [project.urls] in pyproject.toml has a "Source".
urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
if "Source" in urls:
    html_theme_options = {
        "source_repository": urls["Source"],
        "source_branch": "main",
        "source_directory": "docs/",
    }
