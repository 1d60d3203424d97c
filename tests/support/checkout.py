"""Loads modules of the checkout that belong to no package, by their paths."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from tests.support.paths import ROOT

__all__ = ["load", "used_names"]


def load(path: Path) -> Any:
    """Run a module by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: Finds the examples in the documents and the public names that each of them uses. It is one of the
#: Sphinx extensions that list the uses of each name.
used_names: Final = load(ROOT / "docs/_ext/used_names.py")
