"""Do all measurements that the documents show, in one run.

    nox -s bench -- --suite [--rounds N] [--records N] [--only SECTION] [--only-page]

``bench/sections.py`` defines the sections. This script writes the rounds of each section to
``bench-results`` as soon as the section is done, so an interrupted run can be continued:
``--only SECTION`` measures one section again, and ``--only-page`` measures nothing. At the end,
this script writes the medians of all sections to ``bench/results.json``. ``bench/page.py``
generates the pages, the charts and the README's table from that file. The whole run takes about 40
minutes. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import page
import pekko
from sections import SECTIONS, aims
from turns import RECORDS, Load, Rounds, about, run_rounds, sink, without_missing

#: The figures that the documents show.
KEPT = (
    "rate",
    "cpu_us",
    "cpu_loop_us",
    "cpu_client_us",
    "cpu_polling_us",
    "latency_median_ms",
    "latency_p99_ms",
    "latency_p999_ms",
    "late_p99_ms",
    "memory_mib",
    "pending_bytes",
    "opening_ms",
    "first_record_ms",
    "next_record_ms",
    "closing_ms",
    "cold_opening_ms",
)
#: Significant digits. Further digits differ between two runs.
DIGITS = 4
PARTITIONS = 4


def measure(name: str, out: Path, records: int, rounds: int | None) -> None:
    """Measure a section, and write its rounds."""
    section = SECTIONS[name]
    contenders = without_missing([*section.contenders])
    print(f"{name}: {len(contenders)} contenders", file=sys.stderr)
    begin = time.monotonic()
    with sink(section.sink, PARTITIONS) as (address, api_version):
        load = Load(address, api_version, records, section.size)
        found = run_rounds(contenders, load, rounds or section.rounds)
    seconds = time.monotonic() - begin
    print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    versions = pekko.versions() if pekko.CLIENT in {one.client for one in contenders} else {}
    content = {
        "about": about() | versions,
        "seconds": round(seconds),
        "records": records,
        "rounds": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def rounded(value: float) -> float:
    """Return a value with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def three(values: list[float]) -> list[float]:
    """Return the median, the minimum and the maximum."""
    return [rounded(one) for one in (statistics.median(values), min(values), max(values))]


def condensed(rounds: Rounds) -> dict[str, dict[str, list[float]]]:
    """Return the median, the minimum and the maximum of each figure of each contender."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, rows in rounds.items():
        done = [row for row in rows if row]
        if done:
            found[name] = {
                figure: three([row[figure] for row in done])
                for figure in KEPT
                if all(figure in row for row in done)
            }
    return found


def results(out: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``bench/results.json``.

    Args:
        out: the directory with the measured rounds.
        before: the previous content. Sections that were not measured are kept.
    """
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        path = out / f"{name}.json"
        if path.exists():
            sections[name] = _section(name, json.loads(path.read_text(encoding="utf-8")))
        elif name in before.get("sections", {}):
            sections[name] = before["sections"][name]
    abouts = [section["about"] for section in sections.values()]
    latest: dict[str, str] = {}
    for one in sorted(abouts, key=lambda one: one["date"]):
        latest |= one
    # Sections may have been measured with different commits.
    commits = ", ".join(dict.fromkeys(one["commit"] for one in abouts))
    return {"about": latest | {"commit": commits}, "sections": sections}


def _section(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    contenders = {str(one) for one in SECTIONS[name].contenders}
    rounds = {one: rows for one, rows in content["rounds"].items() if one in contenders}
    return {
        "about": content["about"],
        "rounds": max(map(len, rounds.values())),
        "records": content["records"],
        "seconds": content["seconds"],
        "contenders": condensed(rounds),
        "compared": {
            f"{aim}, {aim.figure}": three(values)
            for aim in aims()
            if aim.section == name and (values := aim.values(rounds))
        },
    }


def main() -> None:
    """Measure, and generate the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="rounds of each section")
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="sections to measure")
    parser.add_argument(
        "--only-page", action="store_true", help="measure nothing, and generate the pages"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="a directory")
    options = parser.parse_args()
    failed: list[str] = []
    if not options.only_page:
        for name in options.only or SECTIONS:
            try:
                measure(name, options.out, options.records, options.rounds)
            except Exception:  # noqa: BLE001  # the other sections do not depend on this one
                traceback.print_exc()
                failed.append(name)
    before = page.read_results().content if page.RESULTS.exists() else {}
    page.write_results(results(options.out, before))
    page.write_all()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
