"""The fault matrix: what became of a load under each fault, one row for each cell, driver and loop.

A cell is a test. Where the variable FAULT_ROWS names a directory, each writes its row there; then
``python -m tests.faults.matrix DIRECTORY [PAGE]`` makes the table of all rows that it finds there,
in the same order each time, and beside the page its picture; ``--draw PAGE`` makes the picture
alone, of the page as it is. In full a load has 20,000 records, otherwise 2,000.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from anyio_sendproducer import ProducerSettings
from tests.faults.drawing import draw
from tests.support.brief import IN_FULL
from tests.support.history import GRACE, History, Logged, Reader, Report, check, read_topic
from tests.support.kafka_home import KafkaMissing, kafka_home
from tests.support.load import Outage, Ran

__all__ = [
    "DEFAULT_DRIVER",
    "FULL",
    "RECORDS",
    "Cell",
    "Row",
    "join",
    "judge",
    "judge_history",
    "page",
    "read_log",
    "versions",
    "write_row",
]

#: Whether the whole matrix is run, with many records.
FULL: Final = IN_FULL

#: The driver of rows that name none.
DEFAULT_DRIVER: Final = "kafka-python"

#: How many records a load has.
RECORDS: Final = 20_000 if FULL else 2_000

_READERS: Final[tuple[Reader, ...]] = ("kafka-python", "confluent-kafka")

#: The page's groups, in this order; others follow.
_GROUPS: Final = ("cluster", "injected", "wire", "process")

_BEGIN: Final = """\
# The fault matrix

What became of every record of a load while something went wrong, as counted afterwards by two
independent readers of the log. Each row is a test, which fails where one of what must be 0 is not;
`nox -s faults` runs all of them, and makes this page of what came of it. In
{doc}`../explanation/evidence` is how loads are judged.

{totals}

:::{container} wide-picture
```{raw} html
:file: fault-matrix.svg
```
:::

- **failed**: records whose outcome was an error, by its kind and its `persistence`.
- **withdrawn**: those whose caller was cancelled, or refused, before the client had them; none is
  there. What these three leave of all records is told below the tables.
- **doubled**, **lost**, **reordered**: what must be 0. *Lost* is acknowledged and not there.
- **misreported**: of which something untrue was said, or nothing, or too late; 0 as well.
- **repeated**: copies that the client sent again with the same sequence number. Apache Kafka and
  the embedded broker drop them; the mock cluster, which answers what it is told, keeps them.
- **outage**, **CPU time**: the longest outage in seconds, and the CPU time of the client's process
  in it. Where the test does not say when the outage began and ended, it is the longest time without
  an acknowledgement. The process also runs the load, the proxy and the mock cluster.
- The other times are in seconds as well: the longest that one record waited for its outcome, and
  from the end of the block's body until it was left.
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Which row it is."""

    group: str
    name: str
    loop: str
    driver: str = DEFAULT_DRIVER
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell with one driver on one loop."""

    group: str
    cell: str
    loop: str
    records: int
    acknowledged: int
    failed: Mapping[str, int]
    withdrawn: int
    abandoned: int
    never_accepted: int
    doubled: int
    repeated: int
    lost: int
    reordered: int
    misreported: int
    damaged: int
    longest_wait: float
    time_to_exit: float
    note: str = ""
    driver: str = DEFAULT_DRIVER
    outage: float | None = None
    cpu: float | None = None

    @classmethod
    def of(cls, cell: Cell, report: Report, outage: Outage | None = None) -> Row:
        """The row of a report; without an outage where another process sent."""
        names = {field.name for field in dataclasses.fields(cls)}
        shared = {
            field.name: getattr(report, field.name)
            for field in dataclasses.fields(report)
            if field.name in names
        }
        return cls(
            group=cell.group,
            cell=cell.name,
            loop=cell.loop,
            driver=cell.driver,
            note=cell.note,
            records=report.sent,
            outage=None if outage is None else outage.seconds,
            cpu=None if outage is None else outage.cpu,
            **shared,
        )


def write_row(row: Row) -> None:
    """Write a row where it is to be collected; nothing where it is not."""
    directory = os.environ.get("FAULT_ROWS")
    if directory:
        name = re.sub(r"[^a-z0-9]+", "-", f"{row.group} {row.cell} {row.driver} {row.loop}".lower())
        path = Path(directory) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(row), indent=1, sort_keys=True) + "\n")


async def judge(
    cell: Cell,
    ran: Ran,
    settings: ProducerSettings,
    topic: str | Sequence[str],
    *,
    address: str = "",
    repeats: bool = False,
    concludes: bool = False,
    grace: float = GRACE,
    readers: Mapping[Reader, Mapping[str, Any]] | None = None,
) -> Report:
    """Read the topic with both readers, check, and write the row; then fail where there is a fault.

    Args:
        cell: which row it is.
        ran: what came of the load.
        settings: the producer's.
        topic: where the load went, or the topics.
        address: where to read; where the producer wrote, if it is not given.
        repeats: the broker does not look at sequence numbers; see `check`.
        concludes: the client concludes from one acknowledgement on others; see `check`.
        grace: how much later than `delivery_timeout` an outcome may come.
        readers: further settings of each reader.
    """
    return await judge_history(
        cell,
        ran.history,
        address or settings.addresses[0],
        topic,
        delivery_timeout=settings.delivery_timeout,
        time_to_exit=ran.time_to_exit,
        repeats=repeats,
        concludes=concludes,
        grace=grace,
        readers=readers,
        outage=ran.outage,
    )


async def judge_history(
    cell: Cell,
    history: History,
    address: str,
    topic: str | Sequence[str],
    *,
    delivery_timeout: float,
    time_to_exit: float,
    repeats: bool = False,
    concludes: bool = False,
    grace: float = GRACE,
    killed: bool = False,
    readers: Mapping[Reader, Mapping[str, Any]] | None = None,
    outage: Outage | None = None,
) -> Report:
    """As `judge`, of a history that was kept elsewhere, such as in another process."""
    log = await read_log(address, topic, readers)
    report = check(
        history,
        log,
        delivery_timeout=delivery_timeout,
        grace=grace,
        time_to_exit=time_to_exit,
        repeats=repeats,
        concludes=concludes,
        killed=killed,
    )
    write_row(Row.of(cell, report, outage))
    assert report.faults == (), str(report)
    return report


async def read_log(
    address: str,
    topic: str | Sequence[str],
    readers: Mapping[Reader, Mapping[str, Any]] | None = None,
) -> list[Logged]:
    """All that is in these topics, as both readers agree, with the numbers that one of them has."""
    logs: dict[Reader, list[Logged]] = {reader: [] for reader in _READERS}

    async def read(reader: Reader, topic: str) -> None:
        config = (readers or {}).get(reader)
        logs[reader] += await anyio.to_thread.run_sync(
            partial(read_topic, reader=reader, config=config), address, topic
        )

    async with anyio.create_task_group() as tasks:
        for reader in _READERS:
            for one in [topic] if isinstance(topic, str) else topic:
                tasks.start_soon(read, reader, one)
    assert _places(logs["kafka-python"]) == _places(logs["confluent-kafka"]), "readers disagree"
    return logs["kafka-python"]


def join(reports: Sequence[Report]) -> Report:
    """Several reports as one, of histories that have no record in common."""
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(Report):
        values = [getattr(report, field.name) for report in reports]
        if field.name == "failed":
            failed: Counter[str] = Counter()
            for counts in values:
                failed.update(counts)
            joined[field.name] = dict(failed)
        elif field.name == "faults":
            joined[field.name] = tuple(fault for faults in values for fault in faults)
        elif field.name in {"longest_wait", "time_to_exit"}:
            joined[field.name] = max(values)
        else:
            joined[field.name] = sum(values)
    return Report(**joined)


def _places(log: Iterable[Logged]) -> set[tuple[Any, ...]]:
    return {(one.topic, one.partition, one.offset, one.content) for one in log}


# --- the page ------------------------------------------------------------------------------------


def versions() -> list[str]:
    """What the matrix is run with."""
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {metadata.version(name)}" for name in ("kafka-python", "confluent-kafka")]
    with contextlib.suppress(KafkaMissing):
        found.insert(0, f"Apache Kafka {kafka_home().version}")
    return found


def _totals(rows: Sequence[Row], versions: Sequence[str]) -> str:
    def total(name: str) -> str:
        return f"{sum(getattr(row, name) for row in rows):,}"

    cells = len({(row.group, row.cell) for row in rows})
    failed = sum(sum(row.failed.values()) for row in rows)
    withdrawn = sum(row.withdrawn + row.never_accepted for row in rows)
    return (
        f"{cells} cells in {len(rows)} rows, {total('records')} records: "
        f"{total('acknowledged')} acknowledged, {failed:,} failed with the truth told, "
        f"{withdrawn:,} withdrawn, {total('lost')} lost, {total('doubled')} doubled, "
        f"{total('reordered')} reordered, {total('misreported')} misreported. "
        f"Run with {', '.join(versions)}."
    )


def page(rows: Iterable[Row], versions: Sequence[str]) -> str:
    """The page of these rows: a table for each group, a row for each cell, driver and loop."""
    rows = list(rows)
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault(row.group, []).append(row)
    parts = [_BEGIN.replace("{totals}", _totals(rows, versions))]
    for group in sorted(groups, key=_rank):
        parts.append(f"## {group.capitalize()}\n")
        notes: list[str] = []
        parts.append(_table(groups[group], notes))
        if notes:
            parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
            parts[-1] += "\n"
    return "\n".join(parts)


def _place(row: Row) -> tuple[Any, ...]:
    return row.cell, row.driver != DEFAULT_DRIVER, row.driver, row.loop


def _rank(group: str) -> tuple[int, str]:
    return (_GROUPS.index(group) if group in _GROUPS else len(_GROUPS), group)


_HEAD: Final = (
    "cell",
    "driver",
    "loop",
    "records",
    "acknowledged",
    "failed",
    "withdrawn",
    "abandoned",
    "doubled",
    "repeated",
    "lost",
    "reordered",
    "misreported",
    "longest wait",
    "time to exit",
    "outage",
    "CPU time",
)


def _table(rows: Sequence[Row], notes: list[str]) -> str:
    lines = [
        "| " + " | ".join(_HEAD) + " |",
        "|"
        + "|".join(
            "---" if name in {"cell", "driver", "loop", "failed"} else "---:" for name in _HEAD
        )
        + "|",
    ]
    for row in rows:
        cell = row.cell
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            cell += f" ({notes.index(row.note) + 1})"
        failed = "; ".join(f"{count:,} {kind}" for kind, count in sorted(row.failed.items()))
        shown = (
            cell,
            row.driver,
            row.loop,
            f"{row.records:,}",
            f"{row.acknowledged:,}",
            failed or "0",
            f"{row.withdrawn + row.never_accepted:,}",
            f"{row.abandoned:,}",
            f"{row.doubled:,}",
            f"{row.repeated:,}",
            f"{row.lost:,}",
            f"{row.reordered:,}",
            f"{row.misreported + row.damaged:,}",
            f"{row.longest_wait:.2f}",
            f"{row.time_to_exit:.2f}",
            _seconds(row.outage),
            _seconds(row.cpu),
        )
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def _draw(page: Path) -> None:
    page.with_suffix(".svg").write_text(draw(page.read_text(encoding="utf-8")), encoding="utf-8")


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) not in {1, 2}:
        sys.stderr.write("usage: python -m tests.faults.matrix DIRECTORY [PAGE] | --draw PAGE\n")
        return 2
    if arguments[0] == "--draw":
        _draw(Path(arguments[-1]))
        return 0
    rows = [Row(**json.loads(path.read_text())) for path in Path(arguments[0]).glob("*.json")]
    text = page(rows, versions())
    if len(arguments) == 2:
        Path(arguments[1]).write_text(text, encoding="utf-8")
        _draw(Path(arguments[1]))
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
