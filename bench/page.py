"""Generates the benchmark's pages, charts and README table from ``bench/results.json``.

The prose is in ``bench/templates``. It contains no measured figures, but names of figures with a
dollar sign, so that the pages always agree with the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pekko
import pending
from charts import Mark, Range, Series, Value, bars, lines, ranges, shown
from sections import (
    AIO,
    AIOKAFKA,
    AIOKAFKA_IDEMPOTENT,
    BARE,
    BARE_AWAITED,
    BARE_CONFLUENT,
    BARE_CONFLUENT_AWAITED,
    BOTH,
    MILLIONS,
    OBSERVED,
    OURS,
    OURS_CONFLUENT,
    RATES,
    SECTIONS,
    aims,
)
from turns import Contender

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
TEMPLATES = HERE / "templates"
PAGE = ROOT / "docs" / "explanation" / "benchmark.md"
TABLES = ROOT / "docs" / "reference" / "benchmark-tables.md"
CHARTS = PAGE.parent / "benchmark"
README = ROOT / "README.md"
README_CHART = CHARTS / "readme.svg"
_IN_README = re.compile(r"(<!-- benchmark: begin -->\n).*?(<!-- benchmark: end -->)", re.DOTALL)
#: The text for a figure that was not measured.
MISSING = "not measured"

CLIENTS = {
    OURS: "kafka-python driver",
    OURS_CONFLUENT: "librdkafka driver",
    BARE: "kafka-python itself",
    BARE_CONFLUENT: "confluent-kafka itself",
    BARE_AWAITED: "kafka-python itself, with futures",
    BARE_CONFLUENT_AWAITED: "confluent-kafka itself, with futures",
    AIOKAFKA: "aiokafka, defaults",
    AIOKAFKA_IDEMPOTENT: "aiokafka, same guarantees",
    AIO: "AIOProducer",
    "confluent-aio, tuned": "AIOProducer, tuned",
    pekko.CLIENT: "Pekko SendProducer (JVM)",
    "nothing": "no client",
}
#: The names of event loops. The name of a client with only one event loop, or none, omits it.
_LOOPS = {"asyncio": "asyncio", "trio": "Trio", "uvloop": "uvloop"}
_OBSERVERS = dict(
    zip(OBSERVED, ("observer that does nothing", "metrics", "traces and metrics"), strict=True)
)
_FIGURES = {
    "rate": "records/s",
    "cpu_us": "CPU µs",
    "cpu_loop_us": "event loop µs",
    "cpu_client_us": "client µs",
    "cpu_polling_us": "polling µs",
    "latency_median_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "latency_p999_ms": "p99.9 ms",
    "late_p99_ms": "timer delay, p99 ms",
    "memory_mib": "MiB",
    "pending_bytes": "bytes per record",
    "opening_ms": "opening ms",
    "first_record_ms": "first record ms",
    "next_record_ms": "next record ms",
    "closing_ms": "closing ms",
    "cold_opening_ms": "first opening ms",
}
_WORKLOADS = {
    "many-10000": "`send_many`",
    "tasks-1000": "`send` from 1,000 tasks",
    "flow": "`flow`",
    "sink": "`sink`",
    "wait": "`enqueue`, then `wait` for each",
    "forget": "`enqueue`, then `flush`",
}


def client_name(client: str) -> str:
    """Return the name of a client for readers."""
    own, _, how = client.partition(", observed")
    return CLIENTS[own] + (f", {_OBSERVERS[', observed' + how]}" if own != client else "")


def name(one: Contender) -> str:
    """Return the name of a contender in a chart."""
    loop = f", {_LOOPS[one.loop]}" if one.client in {*BOTH, "nothing"} else ""
    return client_name(one.client) + loop


class Results:
    """The content of ``bench/results.json``."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content

    def three(self, section: str, one: Contender, figure: str) -> list[float] | None:
        """Return the median, minimum and maximum of a figure, or None if it was not measured."""
        contenders = self.content["sections"].get(section, {}).get("contenders", {})
        found: list[float] | None = contenders.get(str(one), {}).get(figure)
        return found

    def value(self, section: str, one: Contender, figure: str) -> float | None:
        """The median of a figure."""
        found = self.three(section, one, figure)
        return found[0] if found else None

    def compared(self, section: str, key: str) -> list[float] | None:
        """Return the median, minimum and maximum of the ratio or difference of an aim."""
        found: list[float] | None = (
            self.content["sections"].get(section, {}).get("compared", {}).get(key)
        )
        return found


def as_text(value: float | None) -> str:
    """Format a figure for a text."""
    return MISSING if value is None else shown(value)


# --- charts --------------------------------------------------------------------------------------


def _values(
    results: Results, section: str, figure: str, contenders: Sequence[Contender]
) -> list[Value]:
    found = ((one, results.three(section, one, figure)) for one in contenders)
    return [Value(name(one), *three, is_ours=one.client in BOTH) for one, three in found if three]


def _asyncio_then_trio(workload: str) -> list[Contender]:
    return [
        Contender(client, workload, loop)
        for client in (OURS_CONFLUENT, OURS)
        for loop in ("asyncio", "trio")
    ]


def _peers(workload: str, *clients: str) -> list[Contender]:
    found: list[Contender] = []
    for client in clients:
        looped = client not in {BARE, BARE_CONFLUENT, pekko.CLIENT}
        found.append(Contender(client, workload, "asyncio" if looped else "none"))
    return found


def rates(results: Results) -> str:
    """Records per second of 1,000 tasks."""
    others = _peers("tasks-1000", AIOKAFKA, AIOKAFKA_IDEMPOTENT, AIO, pekko.CLIENT)
    marks: list[Mark] = []
    for client in (BARE, BARE_CONFLUENT):
        rate = results.value("clients", Contender(client, "forget"), "rate")
        marks += [Mark(f"{CLIENTS[client]}, nothing awaited", rate)] if rate else []
    return bars(
        "Rates of 1,000 tasks that await each record",
        "records per second",
        _values(results, "clients", "rate", _asyncio_then_trio("tasks-1000") + others),
        marks,
    )


def open_loop(results: Results) -> str:
    """Latencies at moderate load."""
    groups: list[tuple[str, list[Range]]] = []
    for rate in RATES:
        workload = f"open-{rate}"
        contenders = [
            *_asyncio_then_trio(workload),
            *_peers(workload, AIOKAFKA_IDEMPOTENT, BARE, BARE_CONFLUENT),
        ]
        rows: list[Range] = []
        for one in contenders:
            low = results.value("open", one, "latency_median_ms")
            high = results.value("open", one, "latency_p99_ms")
            if low and high:
                rows.append(Range(name(one), low, high, is_ours=one.client in BOTH))
        if rows:
            groups.append((f"{rate:,} records per second", rows))
    return ranges("Latency at moderate load", "milliseconds", ("median", "p99"), groups)


def latency(results: Results) -> str:
    """How long a single record takes."""
    others = _peers("tasks-1", AIOKAFKA_IDEMPOTENT, BARE, BARE_CONFLUENT, pekko.CLIENT, AIO)
    values = _values(
        results, "clients", "latency_median_ms", _asyncio_then_trio("tasks-1") + others
    )
    # AIOProducer waits for seconds. Its bar would make the other bars too short.
    limit = max((one.most for one in values if one.name != CLIENTS[AIO]), default=None)
    return bars("How long a single record takes", "milliseconds, median", values, limit=limit)


def _series(
    results: Results, places: Sequence[tuple[str, str]], clients: Sequence[str]
) -> list[Series]:
    """A line for each client, of the rates at these sections and workloads."""
    found: list[Series] = []
    for client in clients:
        loop = "none" if client == pekko.CLIENT else "asyncio"
        rates = tuple(
            results.value(section, Contender(client, workload, loop), "rate")
            for section, workload in places
        )
        found.append(Series(CLIENTS[client], rates, is_ours=client in BOTH))
    return found


def callers(results: Results) -> str:
    """Records per second by the number of tasks."""
    numbers = (10, 100, 1_000, 10_000)
    places = [("clients", f"tasks-{number}") for number in numbers]
    clients = (OURS_CONFLUENT, OURS, AIOKAFKA_IDEMPOTENT, AIO, pekko.CLIENT)
    return lines(
        "Records per second by the number of waiting tasks",
        "records per second, asyncio",
        [f"{number:,}" for number in numbers],
        _series(results, places, clients),
        "waiting tasks",
    )


def sizes(results: Results) -> str:
    """Records per second by the size of a record."""
    places = [(section, "tasks-1000") for section in ("clients", "1 KB", "10 KB")]
    return lines(
        "Records per second by the size of a record",
        "records per second, asyncio",
        ["100 B", "1 KB", "10 KB"],
        _series(results, places, (OURS_CONFLUENT, OURS, AIOKAFKA_IDEMPOTENT)),
        "size of a record, 1,000 tasks",
    )


def timers(results: Results) -> str:
    """How late a timer is beside 1,000 tasks."""
    return bars(
        "How late a timer of 1 ms is beside 1,000 tasks that await records",
        "milliseconds late, p99",
        _values(
            results,
            "clients",
            "late_p99_ms",
            [
                *_asyncio_then_trio("tasks-1000"),
                *_peers("tasks-1000", AIOKAFKA_IDEMPOTENT, AIO),
                Contender("nothing", "tasks-1000", "asyncio"),
            ],
        ),
    )


def memory(results: Results) -> str:
    """Memory of the process with 1,000 tasks."""
    others = _peers("tasks-1000", AIOKAFKA_IDEMPOTENT, AIO, pekko.CLIENT)
    return bars(
        "Memory of the whole process with 1,000 tasks",
        "MiB at most",
        _values(results, "clients", "memory_mib", _asyncio_then_trio("tasks-1000") + others),
    )


#: The README's rows: the title, and the contender.
README_ROWS: Sequence[tuple[str, Contender]] = (
    ("librdkafka driver, asyncio", Contender(OURS_CONFLUENT, "tasks-1000", "asyncio")),
    ("kafka-python driver, asyncio", Contender(OURS, "tasks-1000", "asyncio")),
    ("aiokafka, same guarantees", Contender(AIOKAFKA_IDEMPOTENT, "tasks-1000", "asyncio")),
    ("kafka-python, nothing awaited", Contender(BARE, "forget")),
)


def readme_chart(results: Results) -> str:
    """The README's four rows."""
    rows = ((title, one, results.three("clients", one, "rate")) for title, one in README_ROWS)
    values = [Value(title, *three, one.client in BOTH) for title, one, three in rows if three]
    return bars("Records per second", "records per second", values, standalone=True)


DRAWN: Mapping[str, Callable[[Results], str]] = {
    "rates": rates,
    "open-loop": open_loop,
    "latency": latency,
    "callers": callers,
    "sizes": sizes,
    "timers": timers,
    "memory": memory,
    "readme": readme_chart,
}


# --- tables --------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def readme_table(results: Results) -> str:
    """The README's four rows."""
    rows: list[list[str]] = []
    for title, one in README_ROWS:
        figures = (results.value("clients", one, figure) for figure in ("rate", "cpu_us"))
        rows.append([title, *map(as_text, figures)])
    return _table(["client", "records/s", "CPU, µs per record"], rows)


def _at_rates(one: Contender) -> list[Contender]:
    """Return a contender at each rate of the open loop."""
    return [Contender(one.client, f"open-{rate}", one.loop) for rate in RATES]


def open_table(results: Results) -> str:
    """CPU time at moderate load."""
    clients = [
        *_asyncio_then_trio(""),
        *_peers(
            "", AIOKAFKA_IDEMPOTENT, BARE, BARE_AWAITED, BARE_CONFLUENT, BARE_CONFLUENT_AWAITED
        ),
        Contender("nothing", "", "asyncio"),
    ]
    rows = [
        [name(one), *(as_text(results.value("open", each, "cpu_us")) for each in _at_rates(one))]
        for one in clients
    ]
    return _table(["CPU, µs per record", *(f"{rate:,}/s" for rate in RATES)], rows)


def futures_table(results: Results) -> str:
    """Latency at moderate load, with and without what the drivers add to their clients."""
    clients = (
        *(OURS_CONFLUENT, BARE_CONFLUENT_AWAITED, BARE_CONFLUENT),
        *(OURS, BARE_AWAITED, BARE, AIOKAFKA_IDEMPOTENT),
    )
    rows: list[list[str]] = []
    for one in _peers("", *clients):
        rows.append([CLIENTS[one.client]])
        for each in _at_rates(one):
            figures = (results.value("open", each, f"latency_{it}_ms") for it in ("median", "p99"))
            rows[-1].append(", ".join(map(as_text, figures)))
    heads = (f"{rate:,}/s" for rate in RATES)
    return _table(["milliseconds, median and 99th percentile", *heads], rows)


_DRIVER_COLUMNS = [
    (OURS_CONFLUENT, "asyncio"),
    (OURS_CONFLUENT, "trio"),
    (OURS, "asyncio"),
    (OURS, "trio"),
]
_DRIVER_HEADS = [
    f"{driver} driver, {loop}"
    for driver in ("librdkafka", "kafka-python")
    for loop in ("asyncio", "Trio")
]


def streams_table(results: Results) -> str:
    """CPU time of each way to send."""
    rows = [
        [title]
        + [
            as_text(results.value("streams", Contender(client, workload, loop), "cpu_us"))
            for client, loop in _DRIVER_COLUMNS
        ]
        for workload, title in _WORKLOADS.items()
    ]
    return _table(["CPU, µs per record", *_DRIVER_HEADS], rows)


def observers_table(results: Results) -> str:
    """CPU time with each observer."""
    rows = [
        [title]
        + [
            as_text(
                results.value("observers", Contender(client + how, "tasks-1000", loop), "cpu_us")
            )
            for client, loop in _DRIVER_COLUMNS
        ]
        for how, title in {"": "no observer", **_OBSERVERS}.items()
    ]
    return _table(["CPU, µs per record", *_DRIVER_HEADS], rows)


def opening_table(results: Results) -> str:
    """Milliseconds to open, to send and to close."""
    clients = [
        *_asyncio_then_trio("opening"),
        *_peers("opening", AIOKAFKA_IDEMPOTENT, BARE, BARE_CONFLUENT),
    ]
    figures = ("opening_ms", "first_record_ms", "next_record_ms", "closing_ms")
    rows = [
        [name(one), *(as_text(results.value("opening", one, figure)) for figure in figures)]
        for one in clients
    ]
    return _table(["milliseconds", "opening", "first record", "next record", "closing"], rows)


def pending_table(results: Results) -> str:
    """Bytes for each record without an outcome."""
    rows: list[list[str]] = []
    for way in pending.WAYS:
        contenders = (Contender(client, way, "asyncio") for client in (OURS_CONFLUENT, OURS))
        bytes_ = (results.value("pending", one, "pending_bytes") for one in contenders)
        rows.append([f"`{way.partition('-')[2]}`", *map(as_text, bytes_)])
    return _table(["bytes per record", "librdkafka driver", "kafka-python driver"], rows)


def aims_table(results: Results) -> str:
    """The aims and the measured values."""
    rows: list[list[str]] = []
    for aim in aims():
        three = results.compared(aim.section, f"{aim}, {aim.figure}")
        if three is None:
            continue
        median, least, most = (f"{value:.2f}" for value in three)
        reached = ("yes" if aim.is_reached(three[0]) else "no") if aim.bound else ""
        rows.append(
            [str(aim), _FIGURES[aim.figure], aim.bound, f"{median} ({least} to {most})", reached]
        )
    return _table(["compared", "figure", "aim", "measured", "reached"], rows)


def section_tables(results: Results) -> Iterator[str]:
    """Yield a table for each section, with its figures."""
    for key, section in SECTIONS.items():
        measured = results.content["sections"].get(key)
        if not measured:
            continue
        contenders = [one for one in section.contenders if str(one) in measured["contenders"]]
        figures = [
            figure
            for figure in _FIGURES
            if any(results.value(key, one, figure) is not None for one in contenders)
        ]
        if key == "opening":  # a rate of openings says nothing
            figures = [
                figure for figure in figures if figure not in {"rate", "cpu_us", "memory_mib"}
            ]
        yield f"## {section.title}\n"
        rounds = measured["rounds"]
        how = "There was one round." if rounds == 1 else f"Figures are medians of {rounds} rounds."
        yield f"{section.description} {how}\n"
        rows = [
            [str(one), *(as_text(results.value(key, one, figure)) for figure in figures)]
            for one in contenders
        ]
        yield _table(["contender", *(_FIGURES[figure] for figure in figures)], rows) + "\n"


# --- pages ---------------------------------------------------------------------------------------


def words(results: Results) -> dict[str, str]:
    """Return the figures, tables and charts that the templates name."""

    def rate(client: str, workload: str, loop: str = "asyncio") -> float | None:
        return results.value("clients", Contender(client, workload, loop), "rate")

    def times(one: float | None, other: float | None) -> str:
        return as_text(one / other if one and other else None)

    def figure(section: str, client: str, workload: str, key: str) -> str:
        loop = "none" if client in {BARE, BARE_CONFLUENT} else "asyncio"
        return as_text(results.value(section, Contender(client, workload, loop), key))

    librdkafka, kafka_python = (rate(one, "tasks-1000") for one in (OURS_CONFLUENT, OURS))
    equal = rate(AIOKAFKA_IDEMPOTENT, "tasks-1000")
    bare = rate(BARE, "forget", "none")
    bare_confluent = rate(BARE_CONFLUENT, "forget", "none")
    jvm = rate(pekko.CLIENT, "tasks-1000", "none")
    found = {
        "librdkafka_rate": as_text(librdkafka),
        "kafka_python_rate": as_text(kafka_python),
        "librdkafka_trio_rate": as_text(rate(OURS_CONFLUENT, "tasks-1000", "trio")),
        "librdkafka_to_aiokafka": times(librdkafka, equal),
        "librdkafka_to_defaults": times(librdkafka, rate(AIOKAFKA, "tasks-1000")),
        "librdkafka_to_aio": times(librdkafka, rate(AIO, "tasks-1000")),
        "kafka_python_to_bare": times(kafka_python, bare),
        "aiokafka_to_kafka_python": times(equal, kafka_python),
        "pekko_to_librdkafka": times(jvm, librdkafka),
        "pekko_many_to_librdkafka": times(
            rate(pekko.CLIENT, "many-10000", "none"), rate(OURS_CONFLUENT, "many-10000")
        ),
        "bare_confluent_to_many": times(bare_confluent, rate(OURS_CONFLUENT, "many-10000")),
        "bare_confluent_to_librdkafka": times(bare_confluent, librdkafka),
        "nothing_to_librdkafka": times(rate("nothing", "tasks-1000"), librdkafka),
        "nothing_10000": times(rate("nothing", "tasks-10000"), rate("nothing", "tasks-1000")),
        "librdkafka_10000": times(rate(OURS_CONFLUENT, "tasks-10000"), librdkafka),
        "kafka_python_10000": times(rate(OURS, "tasks-10000"), kafka_python),
    }
    short = {
        "librdkafka": OURS_CONFLUENT,
        "kafka_python": OURS,
        "aiokafka": AIOKAFKA_IDEMPOTENT,
        "bare_confluent": BARE_CONFLUENT,
        "bare": BARE,
        "bare_awaited": BARE_AWAITED,
    }
    for word, client in short.items():
        for number in RATES:
            workload = f"open-{number}"
            found[f"{word}_p50_{number}"] = figure("open", client, workload, "latency_median_ms")
            found[f"{word}_cpu_{number}"] = figure("open", client, workload, "cpu_us")
        found[f"{word}_alone"] = figure("clients", client, "tasks-1", "latency_median_ms")
        found[f"{word}_late"] = figure("clients", client, "tasks-1000", "late_p99_ms")
    for word, workload in zip(("one_million", "ten_millions"), MILLIONS, strict=True):
        found[word] = figure("many records", OURS_CONFLUENT, workload, "memory_mib")
    found["aio_alone"] = figure("clients", AIO, "tasks-1", "latency_median_ms")
    for word, part in (
        ("loop", "cpu_loop_us"),
        ("client", "cpu_client_us"),
        ("polling", "cpu_polling_us"),
    ):
        found[f"librdkafka_{word}_200"] = figure("open", OURS_CONFLUENT, "open-200", part)
    found |= {
        "about": "; ".join(f"{key} {value}" for key, value in results.content["about"].items()),
        "open_table": open_table(results),
        "futures_table": futures_table(results),
        "streams_table": streams_table(results),
        "observers_table": observers_table(results),
        "pending_table": pending_table(results),
        "opening_table": opening_table(results),
        "aims_table": aims_table(results),
        "section_tables": "\n".join(section_tables(results)),
        "readme_table": readme_table(results),
    }
    for chart in DRAWN:
        found[f"chart_{chart.replace('-', '_')}"] = (
            f"```{{raw}} html\n:file: benchmark/{chart}.svg\n```"
        )
    return found


def render(results: Results, template: str) -> str:
    """Return a template with all figures inserted."""
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(words(results))


def in_readme(results: Results, readme: str) -> str:
    """Return the README with the current part about speed."""
    part = render(results, "readme.md")
    return _IN_README.sub(lambda found: f"{found[1]}{part}{found[2]}", readme, count=1)


def write_results(found: Mapping[str, Any]) -> None:
    """Write the results."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    # Write each list of three numbers on one line.
    text = re.sub(r"\[\s+([-\d.e]+),\s+([-\d.e]+),\s+([-\d.e]+)\s+\]", r"[\1, \2, \3]", text)
    RESULTS.write_text(text + "\n", encoding="utf-8")


def read_results() -> Results:
    """Read the committed results."""
    return Results(json.loads(RESULTS.read_text(encoding="utf-8")))


def write_all() -> None:
    """Write the pages, the charts and the README's part."""
    results = read_results()
    CHARTS.mkdir(exist_ok=True)
    for chart, draw in DRAWN.items():
        (CHARTS / f"{chart}.svg").write_text(draw(results), encoding="utf-8")
    PAGE.write_text(render(results, "benchmark.md"), encoding="utf-8")
    TABLES.write_text(render(results, "benchmark-tables.md"), encoding="utf-8")
    README.write_text(in_readme(results, README.read_text(encoding="utf-8")), encoding="utf-8")
