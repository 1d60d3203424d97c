"""Run contenders in turn on the same sink for several rounds, and print a table of the results.

    nox -s bench -- --only 'ours.*tasks-1000' [--rounds 5] [--sink kafka] [--size 100] ...

Each contender has its own process (``bench/contender.py``), and each contender has a turn in each
round. So other load on the machine affects all contenders. Compare the ratios within a round,
because absolute figures drift from run to run. ``bench/suite.py`` measures the figures of the
documents.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from sections import BARE, BARE_CONFLUENT, SECTIONS
from turns import (
    ALONE,
    RECORDS,
    SINKS,
    Contender,
    Figures,
    Load,
    Rounds,
    about,
    ratios,
    run_rounds,
    sink,
    spread,
    without_missing,
)


def contenders() -> list[Contender]:
    """All contenders of all sections, in the order of their turns."""
    return [*dict.fromkeys(one for section in SECTIONS.values() for one in section.contenders)]


def chosen(only: str) -> list[Contender]:
    """The contenders whose names match a regular expression, also without their observers."""
    found = {one for one in contenders() if re.search(only, str(one))}
    found |= {one.unobserved for one in found}
    return [one for one in contenders() if one in found]


def middle(rows: list[Figures | None], *names: str, digits: int = 1) -> str:
    """The medians of these figures, in the turns that measured them."""
    columns = ([row[name] for row in rows if row and name in row] for name in names)
    return ", ".join(f"{statistics.median(column):,.{digits}f}" for column in columns if column)


def table(turns: list[Contender], rounds: Rounds) -> Iterator[str]:
    """Yield the rows of a Markdown table. The ratios compare a contender with a bare client."""
    yield (
        "| contender | records/s | of bare kafka-python | of bare confluent-kafka | CPU us "
        "| latency p50, p99, p99.9 ms | late p50, p99 ms | MiB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for one in turns:
        rows = rounds[str(one)]

        open_loop = one.workload.startswith("open-")
        workload = one.workload if open_loop or one.workload == ALONE else "forget"
        of = [
            spread(ratios(rows, rounds.get(f"{bare}, {workload}", [None] * len(rows)), "rate"))
            for bare in (BARE, BARE_CONFLUENT)
        ]
        latency = middle(
            rows, *(f"latency_{name}_ms" for name in ("median", "p99", "p999")), digits=2
        )
        late = middle(rows, *(f"late_{name}_ms" for name in ("median", "p99")))
        yield (
            f"| {one} | {middle(rows, 'rate', digits=0)} | {of[0]} | {of[1]} "
            f"| {middle(rows, 'cpu_us')} | {latency} | {late} "
            f"| {middle(rows, 'memory_mib', digits=0)} |"
        )


def main() -> None:
    """Run the rounds, print the table, and write all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--compression", default="none", choices=["none", "lz4", "zstd"])
    parser.add_argument("--sink", default="mock", choices=SINKS)
    parser.add_argument(
        "--only",
        default=r"^(?!.*observed).*tasks-1000\b|forget$",
        help="a regular expression for names of contenders; by default those with 1,000 callers",
    )
    parser.add_argument("--patience", type=float, default=300, help="seconds for one turn")
    parser.add_argument("--out", type=Path, default=Path("bench-results/compare.json"))
    options = parser.parse_args()
    turns = without_missing(chosen(options.only))
    with sink(options.sink, options.partitions) as (address, api_version):
        load = Load(
            address,
            api_version,
            options.records,
            options.size,
            options.compression,
            options.patience,
        )
        rounds = run_rounds(turns, load, options.rounds)
    print("\n".join(table(turns, rounds)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about(), "rounds": rounds}
    options.out.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
