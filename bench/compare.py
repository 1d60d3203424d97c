"""All contenders in turn, on the same broker, several rounds; a table, JSON, and a picture.

    python bench/compare.py [--rounds 5] [--records 50000] [--sink mock] [--size 100] ...
    nox -s bench -- --sink kafka
    nox -s bench -- --only observed

Each contender has a process of its own (``bench/contender.py``), and in each round all of them have
their turn, so that what else the machine does meets all alike. What is compared are the ratios
within a round; what is shown is their median, with the least and the most, since absolute figures
drift from run to run.

Sinks: ``mock``, librdkafka's mock cluster in a process of its own, which measures the client;
``mock-20ms``, the same with a round trip of 20 ms, which measures batching; ``kafka``, Apache Kafka
with one broker, which measures the whole (Java and Maven are needed).

Ours with an observer is ``observed``: by one that does nothing, or by OpenTelemetry's on its SDK,
whose spans go nowhere. Whoever chooses these gets the same without an observer too, and the ratio.

The contender on the JVM, Pekko's SendProducer, needs Java and Maven too, and is left out without
them (``bench/pekko.py``).
"""

from __future__ import annotations

import argparse
import datetime as dt
import html
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pekko
from mock_cluster import TOPIC, mock_cluster

HERE = Path(__file__).resolve().parent
LOOPS = ("asyncio", "uvloop", "trio")
#: One record after the other.
ALONE = "tasks-1"
TASKS = (ALONE, "tasks-10", "tasks-100", "tasks-1000", "tasks-10000")
MANY = ("many-1000", "many-10000")
#: In few tasks this many times fewer records do.
SLOW = 25
#: So many do where AIOProducer waits for its buffer to fill, each time.
FEW = 20
#: What the ratios are of.
BARE, BARE_CONFLUENT = "kafka-python", "confluent"
#: Both drivers.
OURS, OURS_CONFLUENT = "ours", "ours, confluent"
#: What is behind their names where an observer is told of each record.
OBSERVED = (", observed", ", observed by OpenTelemetry")
#: What the picture shows: all of it would be a wall.
DRAWN = ("tasks-100", "tasks-1000", "many-10000", "forget")


@dataclass(frozen=True)
class Contender:
    """A client, a way to call it, and a loop."""

    client: str
    workload: str
    loop: str

    def __str__(self) -> str:
        loop = "" if self.loop == "none" else f", {self.loop}"
        return f"{self.client}, {self.workload}{loop}"

    @property
    def unobserved(self) -> Contender:
        """The same without an observer; where there is none, itself."""
        return replace(self, client=self.client.partition(OBSERVED[0])[0])

    @property
    def is_drawn(self) -> bool:
        """Whether the picture shows it: the clients in what is most asked for."""
        return self.workload in DRAWN and self.client != "nothing" and self.unobserved == self

    def records(self, of: int) -> int:
        """How many records tell enough, where others have so many."""
        if self.client.startswith("confluent-aio"):
            return FEW if self.workload in {ALONE, "tasks-10"} else of // SLOW
        if self.workload in {ALONE, "tasks-10"}:
            return of // SLOW
        if self.workload == "tasks-10000":
            # As many for each task as a thousand of them have: to start a task is not what is
            # measured. It is not seen where each record takes a millisecond.
            return of if self.client.startswith("aiokafka") else of * 10
        # Those that are three times as fast are run for as long.
        return of * 3 if "confluent" in self.client else of


def contenders() -> list[Contender]:
    """All of them, in the order of their turns."""
    all_: list[Contender] = []
    for client in (BARE, BARE_CONFLUENT):
        all_ += [Contender(client, workload, "none") for workload in ("forget", ALONE)]
    for loop in LOOPS:
        all_ += [Contender("nothing", workload, loop) for workload in TASKS[2:]]
        workloads = (*TASKS, *MANY, "flow", "forget")
        if loop == "uvloop":
            workloads = (ALONE, "tasks-100", "tasks-1000", "many-10000")
        for client in (OURS, OURS_CONFLUENT):
            all_ += [Contender(client, workload, loop) for workload in workloads]
    all_ += [Contender("aiokafka", workload, "asyncio") for workload in (*TASKS, *MANY, "forget")]
    all_ += [Contender("aiokafka", workload, "uvloop") for workload in ("tasks-100", "tasks-1000")]
    for client in ("aiokafka, tuned", "aiokafka, idempotent"):
        all_ += [Contender(client, workload, "asyncio") for workload in (*TASKS, "many-10000")]
    for client in ("confluent-aio", "confluent-aio, tuned"):
        all_ += [Contender(client, workload, "asyncio") for workload in TASKS]
    all_ += [Contender(pekko.CLIENT, workload, "none") for workload in pekko.WORKLOADS]
    return all_ + observed()


def observed() -> list[Contender]:
    """Those that tell what an observer costs."""
    return [
        Contender(client + how, workload, loop)
        for loop in ("asyncio", "trio")
        for client in (OURS, OURS_CONFLUENT)
        for how in OBSERVED
        for workload in ("tasks-1000", "many-10000")
    ]


def chosen(only: str) -> list[Contender]:
    """Those whose name has what this regular expression finds, and what they are compared with
    where they have an observer."""
    found = {one for one in contenders() if re.search(only, str(one))}
    found |= {one.unobserved for one in found}
    return [one for one in contenders() if one in found]


def by_contender(rows: dict[str, Any]) -> dict[Contender, Any]:
    """What JSON has by the names of contenders, by themselves; those that are no more left out."""
    return {one: rows[str(one)] for one in contenders() if str(one) in rows}


@dataclass(frozen=True)
class Promise:
    """Two contenders whose ratio the documents speak of: in rate, or else in median latency."""

    one: Contender
    other: Contender
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bound = f"at least {self.least}" if self.most is None else f"at most {self.most}"
        return f"{self.one} / {self.other} | {'' if self.least == 0 else bound}"

    def ratios(self, figures: dict[Contender, list[Any]]) -> list[float]:
        """Round by round."""
        name = "rate" if self.most is None else "latency_median_ms"
        pairs = zip(figures.get(self.one, []), figures.get(self.other, []), strict=False)
        return [one[name] / other[name] for one, other in pairs if one and other]


def promises() -> list[Promise]:
    """What the documents promise of the mock cluster, with 100 B and 4 partitions."""
    found: list[Promise] = []

    def least(bound: float, client: str, workload: str, loop: str, of: Contender) -> None:
        found.append(Promise(Contender(client, workload, loop), of, least=bound))

    bare, bare_confluent = (Contender(one, "forget", "none") for one in (BARE, BARE_CONFLUENT))
    for loop in ("asyncio", "trio"):
        least(0.9, OURS, "tasks-1000", loop, bare)
        least(0.75, OURS, "tasks-100", loop, bare)
        least(1.1, OURS, "many-10000", loop, bare)
        least(0.85, OURS_CONFLUENT, "many-10000", loop, bare_confluent)
    aiokafka = {
        work: Contender("aiokafka", work, "asyncio") for work in ("tasks-100", "tasks-1000")
    }
    least(3.0, OURS_CONFLUENT, "tasks-1000", "asyncio", aiokafka["tasks-1000"])
    least(1.8, OURS_CONFLUENT, "tasks-1000", "trio", aiokafka["tasks-1000"])
    least(2.0, OURS_CONFLUENT, "tasks-100", "asyncio", aiokafka["tasks-100"])
    aio = Contender("confluent-aio", "tasks-1000", "asyncio")
    for loop in ("asyncio", "trio"):
        least(100.0, OURS_CONFLUENT, "tasks-1000", loop, aio)
        for client, lone in ((OURS, BARE), (OURS_CONFLUENT, BARE_CONFLUENT)):
            one = Contender(client, ALONE, loop)
            found.append(Promise(one, Contender(lone, ALONE, "none"), most=1.25))
        for client, bound in ((OURS, 0.8), (OURS_CONFLUENT, 0.8), ("nothing", 0)):
            least(bound, client, "tasks-10000", loop, Contender(client, "tasks-1000", loop))
    for client, bound in ((OURS, 0.85), (OURS_CONFLUENT, 0)):
        least(bound, client, "tasks-1000", "trio", Contender(client, "tasks-1000", "asyncio"))
    least(0, "nothing", "tasks-1000", "trio", Contender("nothing", "tasks-1000", "asyncio"))
    for client in ("aiokafka, tuned", "aiokafka, idempotent", pekko.CLIENT):
        loop = "none" if client == pekko.CLIENT else "asyncio"
        for workload in ("tasks-100", "tasks-1000", "many-10000"):
            other = Contender(client, workload, loop)
            least(0, OURS_CONFLUENT, workload, "asyncio", other)
    for one in observed():
        least(0, one.client, one.workload, one.loop, one.unobserved)
    return found


@contextmanager
def sink(name: str, partitions: int) -> Iterator[tuple[str, str]]:
    """The address of what records are sent to, and what kafka-python has to be told of it."""
    if name == "kafka":
        sys.path.insert(0, str(HERE.parent))
        from tests.support.kafka_cluster import kafka_cluster

        with kafka_cluster() as cluster:
            cluster.create_topic(TOPIC, partitions)
            yield cluster.bootstrap_servers, ""
    else:
        with mock_cluster(partitions, rtt_ms=20 if name == "mock-20ms" else 0) as address:
            yield address, "2.3"


def run(contender: Contender, options: argparse.Namespace, address: str, api: str) -> Any:
    """Let one contender have its turn; None where it failed."""
    records = contender.records(options.records)
    python = (sys.executable, str(HERE / "contender.py"))
    command = [*(pekko.command() if contender.client == pekko.CLIENT else python)]
    command += [contender.client, contender.workload]
    command += ["--loop", contender.loop, "--bootstrap", address, "--topic", TOPIC]
    command += ["--records", str(records), "--size", str(options.size)]
    command += ["--compression", options.compression, "--api-version", api]
    if contender.workload != ALONE:
        # Nobody is late for one record; and the time of one must not be that of a task's beside it,
        # since bare clients have none.
        command.append("--ticks")
    try:
        done = subprocess.run(  # noqa: S603  # a script of ours
            command, capture_output=True, text=True, check=False, timeout=options.patience
        )
    except subprocess.TimeoutExpired:
        print(f"  {contender}: not done within {options.patience} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"  {contender}: {done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def machine() -> dict[str, str]:
    """What the figures hold for."""
    names = ("anyio-sendproducer", "kafka-python", "anyio", "trio", "uvloop", "aiokafka")
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        **{name: version(name) for name in (*names, "confluent-kafka")},
    }


def ratios(rows: list[Any], of: list[Any]) -> list[float]:
    """Round by round, where both were there."""
    return [mine["rate"] / its["rate"] for mine, its in zip(rows, of, strict=True) if mine and its]


def shown(values: list[float]) -> str:
    """A median, with the least and the most."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def table(figures: dict[Contender, list[Any]]) -> Iterator[str]:
    """The rows of a Markdown table."""
    yield (
        "| client | workload | loop | records/s | of bare kafka-python | of bare confluent-kafka "
        "| CPU us | crossings | late median, p99, max ms | latency median, p99 ms | MiB |"
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"

    def middle(rows: list[Any], name: str, digits: int = 1) -> str:
        values = [row[name] for row in rows if row and name in row]
        return f"{statistics.median(values):,.{digits}f}" if values else ""

    for contender, rows in figures.items():
        workload = ALONE if contender.workload == ALONE else "forget"
        of = [
            shown(ratios(rows, figures[lone])) if lone in figures else ""
            for lone in (Contender(bare, workload, "none") for bare in (BARE, BARE_CONFLUENT))
        ]
        latency = ", ".join(
            filter(None, (middle(rows, f"latency_{name}_ms", 2) for name in ("median", "p99")))
        )
        late = ", ".join(
            filter(None, (middle(rows, f"late_{name}_ms") for name in ("median", "p99", "max")))
        )
        yield (
            f"| {contender.client} | {contender.workload} | {contender.loop} "
            f"| {middle(rows, 'rate', 0)} | {of[0]} | {of[1]} | {middle(rows, 'cpu_us')} "
            f"| {middle(rows, 'crossings', 4)} | {late} | {latency} "
            f"| {middle(rows, 'memory_mib', 0)} |"
        )


def beside(figures: dict[Contender, list[Any]]) -> Iterator[str]:
    """What is spoken of, two and two."""
    rows = [(promise, promise.ratios(figures)) for promise in promises()]
    if any(ratios for _, ratios in rows):
        yield ""
        yield "| one / other | aim | ratio |"
        yield "|---|---|---:|"
    for promise, ratios in rows:
        if ratios:
            yield f"| {promise} | {shown(ratios)} |"


def draw(figures: dict[Contender, list[Any]], path: Path, title: str) -> None:
    """Records per second of each, as bars from the least to the most of the rounds."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same picture; and its words are words.
    mpl.rcParams["svg.hashsalt"] = "bench"
    mpl.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    named = {
        str(contender): [row["rate"] for row in rows if row]
        for workload in DRAWN
        for contender, rows in figures.items()
        if contender.workload == workload and contender.is_drawn
    }
    named = {name: rates for name, rates in named.items() if rates}
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(named) + 1.2), layout="constrained")
    medians = [statistics.median(rates) for rates in named.values()]
    around = [
        [middle - min(rates) for middle, rates in zip(medians, named.values(), strict=True)],
        [max(rates) - middle for middle, rates in zip(medians, named.values(), strict=True)],
    ]
    colours = ["#2a6fbb" if name.startswith("ours") else "#b0b0b0" for name in named]
    axes.barh([*named], medians, xerr=around, color=colours, error_kw={"linewidth": 0.8})
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("records per second")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None}, transparent=True)
    plt.close(figure)
    path.write_text(for_a_page(path.read_text(encoding="utf-8"), title), encoding="utf-8")


def for_a_page(picture: str, title: str) -> str:
    """The picture as a part of an HTML page: as wide, and in the colour and the font of its text,
    whether that is light or dark."""
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)[0])
    style = f"display: block; width: 100%; min-width: {width:.0f}px; height: auto"
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="Records per second: {html.escape(title)}" '
        f'fill="currentColor" style="{style}">'
    )
    # What is in <style> would hold for the whole page.
    body = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", picture, flags=re.DOTALL)
    body = re.sub(r"^.*?<svg [^>]*>", lambda _: root, body, count=1, flags=re.DOTALL)
    body = re.sub(r'font-family: [^;"]*', "font-family: system-ui, sans-serif", body)
    return body.replace("#000000", "currentColor")


def main() -> None:
    """Run the rounds, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=100, help="bytes of a value")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--compression", default="none", choices=["none", "lz4", "zstd"])
    parser.add_argument("--sink", default="mock", choices=["mock", "mock-20ms", "kafka"])
    parser.add_argument("--only", default="", help="a regular expression of the contenders' names")
    parser.add_argument("--patience", type=float, default=300, help="seconds for one turn")
    parser.add_argument("--out", type=Path, default=Path("bench-results"), help="a directory")
    options = parser.parse_args()
    turns = chosen(options.only)
    jvm = any(one.client == pekko.CLIENT for one in turns)
    if jvm and not pekko.ready():
        jvm, turns = False, [one for one in turns if one.client != pekko.CLIENT]
    figures: dict[Contender, list[Any]] = {one: [] for one in turns}
    with sink(options.sink, options.partitions) as (address, api):
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for contender in turns:
                figures[contender].append(run(contender, options, address, api))
    about = machine() | (pekko.versions() if jvm else {})
    title = (
        f"{options.records:,} records of {options.size} B, {options.partitions} partitions, "
        f"compression {options.compression}, {options.sink}, {options.rounds} rounds"
    )
    lines = [f"{title}; {', '.join(f'{name} {what}' for name, what in about.items())}.", ""]
    lines += table(figures)
    lines += beside(figures)
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{options.sink}-{options.size}B-{options.partitions}p-{options.compression}"
    (options.out / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = {str(contender): rows for contender, rows in figures.items()}
    content = {"about": about, "options": title, "rounds": rows}
    (options.out / f"{stem}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    draw(figures, options.out / f"{stem}.svg", title)


if __name__ == "__main__":
    main()
