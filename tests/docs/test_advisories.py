"""How ``nox -s security`` judges an audit, and that the audit covers every extra."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from tests.support import advisories
from tests.support.advisories import NAME, judge, missing, normal

NOTHING_ACCEPTED: dict[str, dict[str, str]] = {"advisories": {}, "not-looked-up": {}}


def audited(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [], **more}


def vulnerability(name: str, *aliases: str, fixed: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"id": name, "aliases": [*aliases], "fix_versions": [*fixed]}


def skipped(name: str) -> dict[str, Any]:
    return {"name": name, "skip_reason": "Dependency not found on PyPI"}


def test_a_clean_report() -> None:
    assert judge({"dependencies": [audited("one"), audited("two")]}, NOTHING_ACCEPTED) == []


def test_a_report_without_any_lookup_is_a_problem() -> None:
    report = {"dependencies": [skipped("one"), skipped("two")]}
    [problem] = judge(report, {**NOTHING_ACCEPTED, "not-looked-up": {"one": "", "two": ""}})
    assert problem.startswith("NOTHING WAS LOOKED UP")
    assert "any of the 2 packages" in problem


def test_each_vulnerability_is_listed() -> None:
    found = [vulnerability("PYSEC-1", "CVE-7", fixed=("1.1", "2.0")), vulnerability("PYSEC-2")]
    report = {"dependencies": [audited("one", vulns=found), audited("two")]}
    assert judge(report, NOTHING_ACCEPTED) == [
        "one 1.0: CVE-7, PYSEC-1, fixed in 1.1, 2.0",
        "one 1.0: PYSEC-2, fixed in no version",
    ]


def test_accepted_problems_are_not_reported() -> None:
    found = [vulnerability("PYSEC-1", "CVE-7"), vulnerability("PYSEC-2")]
    report = {"dependencies": [audited("one", vulns=found), skipped("two"), skipped("three")]}
    accepted = {
        "advisories": {"CVE-7": "the code is not called"},
        "not-looked-up": {"two": "it is ours"},
    }
    assert judge(report, accepted) == [
        "three: not looked up: Dependency not found on PyPI",
        "one 1.0: PYSEC-2, fixed in no version",
    ]


def test_each_accepted_problem_has_a_reason() -> None:
    tables = advisories.read_accepted()
    assert {"advisories", "not-looked-up", "compiled-in"} == tables.keys()
    for table in tables.values():
        assert all(len(reason) > 20 for reason in table.values())
    # Each wheel in the table "compiled-in" is a dependency.
    names = (re.match(r"[\w.-]+", one) for one in metadata.requires(NAME) or ())
    required = {normal(name[0]) for name in names if name is not None}
    assert {*map(normal, tables["compiled-in"])} <= required


def test_the_audit_covers_the_dependencies_of_every_extra() -> None:
    requirements = metadata.requires(NAME) or []
    extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    # The test environment has all extras.
    found = {*advisories.installed()}
    assert missing(requirements, extras, found) == []
    for name in ("click", "dnspython", "opentelemetry-api", "vega-datasets", "kafka-python"):
        lacking = missing(requirements, extras, found - {name})
        assert lacking
        assert all(one.startswith(name) for one in lacking)
    assert missing(["click>=8; python_version < '3'"], extras, set()) == []
