"""Checks the references of the documents to names of other packages and of private modules.

A reference that Sphinx cannot resolve is a warning, and a warning fails the build. This module
looks names of other packages up by importing them, which needs no network: ``asyncio.Tack`` is a
warning. ``asyncio.Task`` is not a warning, but it does not become a link.

Types in signatures have the name of the private module that defines them. Readers know the public
name, so such a reference leads to the public name.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
from types import ModuleType
from typing import Any, TypeVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains import Domain
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

_PACKAGE = "anyio_sendproducer"
_PRIVATE_MODULE = re.compile(r"(?<=\.)_\w+\.")


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Find ``package._module.Name`` where it is documented: as ``package.Name``."""
    target = node.get("reftarget", "")
    public = _PRIVATE_MODULE.sub("", target)
    if node.get("refdomain") != "py" or public == target or not target.startswith(_PACKAGE):
        return None
    domain = env.domains["py"]
    kind = node["reftype"]
    for reftype in dict.fromkeys((kind, "obj")):
        found = domain.resolve_xref(
            env, node["refdoc"], app.builder, reftype, public, node, contnode
        )
        if found is not None:
            return found
    return None


def exists_elsewhere(_app: Sphinx, domain: Domain | None, node: pending_xref) -> bool | None:
    """Suppress the warning about a name of another package that exists."""
    if domain is None or domain.name != "py":
        return None
    target = node["reftarget"]
    if any(isinstance(getattr(module, target, None), TypeVar) for module in _our_modules()):
        return True
    if target.startswith(_PACKAGE):
        return isinstance(_find(target), TypeVar) or None
    return _find(target) is not None or None


def _our_modules() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith(_PACKAGE)]


def _find(name: str) -> Any:
    """Import the object with this dotted name; return None if there is none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return getattr(builtins, name, None)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Listen for references that Sphinx does not resolve."""
    app.connect("missing-reference", resolve_public_name)
    app.connect("warn-missing-reference", exists_elsewhere)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
