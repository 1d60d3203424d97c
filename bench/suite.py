"""The benchmark under all circumstances that the documents speak of, and their page of figures.

    nox -s bench -- --suite [--rounds 5] [--records 20000] [--only-page]

``bench/compare.py`` runs once with all contenders, and then with some of them for each other size,
number of partitions, compression and sink. What came of it is kept as JSON in ``bench-results``,
and the tables and the picture of ``docs/explanation/benchmark.md`` are made of that. It takes about
half an hour, in which the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare import by_contender, draw

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "explanation" / "benchmark.md"
PICTURE = PAGE.with_name("benchmark.svg")
MAIN = "mock-100B-4p-none"
#: What is left of the main run's arguments where it is another size, and so on.
OTHERS: dict[str, list[str]] = {
    "1 KB": ["--size", "1000"],
    "10 KB": ["--size", "10000"],
    "1 partition": ["--partitions", "1"],
    "64 partitions": ["--partitions", "64"],
    "lz4": ["--compression", "lz4"],
    "zstd": ["--compression", "zstd"],
    "20 ms away": ["--sink", "mock-20ms"],
    "Apache Kafka": ["--sink", "kafka"],
}
#: Who takes part in these.
SOME = (
    r"^((kafka-python|confluent), forget"
    r"|ours(, confluent)?, (tasks-1000|many-10000), (asyncio|trio)"
    r"|aiokafka(, tuned|, idempotent)?, tasks-1000, asyncio)$"
)
#: Where the contender on the JVM takes part, too.
WITH_JVM = "Apache Kafka"


def stem(arguments: list[str]) -> str:
    """The name that compare.py gives its results."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    size, partitions = given.get("--size", "100"), given.get("--partitions", "4")
    sink, compression = given.get("--sink", "mock"), given.get("--compression", "none")
    return f"{sink}-{size}B-{partitions}p-{compression}"


def run(arguments: list[str], out: Path) -> None:
    """Run compare.py."""
    command = [sys.executable, str(HERE / "compare.py"), "--out", str(out), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  # ours


def median(rows: list[Any]) -> str:
    """Records per second."""
    rates = [row["rate"] for row in rows if row]
    return f"{statistics.median(rates):,.0f}" if rates else ""


def page(out: Path) -> Iterator[str]:
    """The tables."""
    lines = (out / f"{MAIN}.md").read_text(encoding="utf-8").splitlines()
    tables = [number for number, line in enumerate(lines) if line.startswith("|---")]
    main, beside = tables[0] - 1, tables[1] - 1
    yield "## What is aimed at, and what is measured\n"
    yield lines[0] + " Medians of the rounds' ratios, with the least and the most.\n"
    yield from lines[beside:]
    yield "\n## All contenders\n"
    yield from lines[main : beside - 1]
    found: dict[str, dict[str, str]] = {}
    for name, arguments in OTHERS.items():
        results = out / f"{stem(arguments)}.json"
        if results.exists():
            content = json.loads(results.read_text(encoding="utf-8"))
            found[name] = {who: median(rows) for who, rows in content["rounds"].items()}
    if not found:
        return
    yield "\n## Other circumstances\n"
    yield "Records per second, medians of three rounds.\n"
    yield "| contender | " + " | ".join(found) + " |"
    yield "|---|" + "---:|" * len(found)
    for who in dict.fromkeys(who for figures in found.values() for who in figures):
        yield f"| {who} | " + " | ".join(figures.get(who, "") for figures in found.values()) + " |"


def main() -> None:
    """Run all of it, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="a directory")
    parser.add_argument("--only-page", action="store_true", help="of results that are there")
    options = parser.parse_args()
    if not options.only_page:
        records = ["--records", str(options.records)]
        run([*records, "--rounds", str(options.rounds)], options.out)
        for name, arguments in OTHERS.items():
            only = SOME.replace(")$", "|pekko, tasks-1000)$") if name == WITH_JVM else SOME
            run([*records, "--rounds", "3", "--only", only, *arguments], options.out)
    text = PAGE.read_text(encoding="utf-8")
    begin, end = (f"<!-- figures of bench/suite.py: {edge} -->" for edge in ("begin", "end"))
    figures = "\n".join(page(options.out))
    made = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{figures}\n{end}", text, flags=re.DOTALL)
    PAGE.write_text(made, encoding="utf-8")
    main_run = json.loads((options.out / f"{MAIN}.json").read_text(encoding="utf-8"))
    # Of the figures, and not the picture that lies beside them: that is as it was drawn then.
    draw(by_contender(main_run["rounds"]), PICTURE, main_run["options"])


if __name__ == "__main__":
    main()
