"""Judges pip-audit's report for ``nox -s security``, and lists the packages to look up.

``python -m tests.support.advisories list FILE`` writes the installed packages as requirements. It
fails if a dependency of an extra is not installed. ``... judge REPORT`` fails for each known
vulnerability, and for each package that was not looked up, unless ``advisories.toml`` accepts it.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from .paths import ROOT

__all__ = ["ACCEPTED", "NAME", "judge", "missing", "normal"]

NAME: Final = "anyio-sendproducer"
ACCEPTED: Final = ROOT / "tests/support/advisories.toml"


def normal(name: str) -> str:
    """Normalize a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(requirements: Collection[str], extras: Collection[str], found: set[str]) -> list[str]:
    """List the applicable requirements of all extras that are not installed.

    Args:
        requirements: the package's requirements, as in its metadata.
        extras: the names of the extras.
        found: the normalized names of the installed packages.
    """
    requirement_class: Any = importlib.import_module("packaging.requirements").Requirement
    lacking: list[str] = []
    for text in requirements:
        requirement = requirement_class(text)
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": one}) for one in ["", *extras])
        if applies and normal(requirement.name) not in found:
            lacking.append(text)
    return lacking


def judge(report: Mapping[str, Any], accepted: Mapping[str, Mapping[str, str]]) -> list[str]:
    """List the problems in a report.

    Args:
        report: pip-audit's report, parsed from JSON.
        accepted: the tables of ``advisories.toml``.
    """
    packages: list[Any] = report["dependencies"]
    skipped = {one["name"]: one["skip_reason"] for one in packages if "skip_reason" in one}
    if len(skipped) == len(packages):
        count = len(packages)
        said = (
            f"NOTHING WAS LOOKED UP. No advisory service answered for any of the {count} packages."
        )
        return [f"{said} A mirror of PyPI seldom has one: run this where PyPI itself answers."]
    problems = [
        f"{name}: not looked up: {reason}"
        for name, reason in skipped.items()
        if name not in accepted["not-looked-up"]
    ]
    for package in packages:
        for found in package.get("vulns", ()):
            names = {found["id"], *found.get("aliases", ())}
            if not names & accepted["advisories"].keys():
                fixed = ", ".join(found["fix_versions"]) or "no version"
                problems.append(
                    f"{package['name']} {package['version']}: {', '.join(sorted(names))}, fixed in "
                    f"{fixed}"
                )
    return problems


def read_accepted() -> Mapping[str, Mapping[str, str]]:
    """Read the tables of ``advisories.toml``."""
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    tables: Mapping[str, Mapping[str, str]] = toml.loads(ACCEPTED.read_text("utf-8"))
    return tables


def installed() -> dict[str, str]:
    """The installed versions by normalized package name."""
    return {normal(one.name): one.version for one in metadata.distributions()}


def main(command: str, path: Path) -> Iterator[str]:
    """Run a command, and print the problems."""
    if command == "list":
        found = installed()
        extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
        yield from missing(metadata.requires(NAME) or [], extras, {*found})
        rows = [f"{name}=={version}\n" for name, version in found.items() if name != NAME]
        path.write_text("".join(sorted(rows)), encoding="utf-8")
    else:
        yield from judge(json.loads(path.read_text("utf-8")), read_accepted())


if __name__ == "__main__":
    wrong = [*main(sys.argv[1], Path(sys.argv[2]))]
    sys.exit("\n".join(wrong) or None)
