"""The fault matrix: the outcome of a load under each fault, a row for each cell, driver and loop.

A cell is a test. If the variable FAULT_ROWS names a directory, each test writes its row there.
Then ``python -m tests.faults.matrix DIRECTORY PAGE`` writes the page, the page of all rows beside
it, and the picture. ``--draw PAGE`` draws only the picture. In a full run a load has 20,000
records, otherwise 2,000.
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
    "rows_page",
    "versions",
    "write_row",
]

#: Whether to run the whole matrix, with many records.
FULL: Final = IN_FULL

#: The driver of rows that do not name one.
DEFAULT_DRIVER: Final = "kafka-python"

#: The number of records of a load.
RECORDS: Final = 20_000 if FULL else 2_000

_READERS: Final[tuple[Reader, ...]] = ("kafka-python", "confluent-kafka")

#: The first groups of the page, in order. Other groups follow.
_GROUPS: Final = ("cluster", "injected", "wire", "process")

_BEGIN: Final = """\
# The fault matrix

This page shows the outcomes of records that a producer sent while faults occurred. After each run,
two independent clients read the log. The test compares the log with the outcomes that the producer
reported, and fails if a record was lost, doubled, reordered or misreported.

{totals}

{summary}

The kinds of faults are:

- **cluster**: Faults of a cluster of Apache Kafka. For example, brokers are killed, stopped or
  frozen, or certificates, passwords, permissions or topics change.
- **injected**: librdkafka's mock cluster answers with errors, answers late, or does not answer.
- **wire**: A proxy in front of the embedded broker simulates faults of the network.
- **process**: The process of the producer is affected, for example by a signal or a fork.

The columns count these outcomes. The column *broken promises* counts the last four:

- **acknowledged**: The producer reported that the broker has the record.
- **failed**: The producer raised an error. The `persistence` of this error says correctly whether
  the record may be in the log.
- **withdrawn**: The caller was cancelled, or the producer refused the record, before the client
  received the record. The record is not in the log.
- **lost**: The record was acknowledged, but it is not in the log.
- **doubled**: The record is in the log twice.
- **reordered**: The position of the record in its partition does not match the order of sending.
- **misreported**: The producer reported a wrong outcome, reported the outcome late, or did not
  report it. Or the log contains a record that the program did not send, or did not send in this
  form.

The table leaves out *abandoned* records, whose caller was cancelled while the client had them. It
also leaves out records that the test cannot find because their topic was deleted, and records whose
process was killed before they had outcomes.

*Lost*, *doubled*, *reordered* and *misreported* records are broken promises.{known}

In the following picture, each bar stands for one fault. A bar adds up all runs with its fault.
{doc}`fault-matrix-rows` shows the results of each run, and {doc}`../explanation/evidence` describes
how the tests judge a run. `nox -s faults` repeats all runs.

:::{container} wide-picture
```{raw} html
:file: fault-matrix.svg
```
:::
"""

_BEGIN_ROWS: Final = """\
# All rows of the fault matrix

This page has the figures behind {doc}`fault-matrix`, in a row for each fault, driver and event
loop. Times are in seconds.

- **failed**: the number of failed records, by the class of the error and its `persistence`.
- **abandoned**: records whose caller was cancelled while the client had them.
- **repeated**: copies that the client sent again with the same sequence number. Apache Kafka and
  the embedded broker drop these copies. The mock cluster keeps them, because it does not check
  sequence numbers.
- **longest wait**: the longest time that a record waited for its outcome, measured in the task that
  sends it. It includes the time until this task runs again after the outcome, so it can be longer
  than `delivery_timeout`. This machine has two processors. In the row in which all brokers are
  killed and `delivery_timeout` is 10 s, 20,000 tasks send at once while the brokers restart on the
  same processors. Without brokers, the errors of 20,000 tasks arrived within 0.4 s after their
  deadline.
- **time to exit**: the time from the end of the code in the block until the end of the block.
- **outage**: the longest outage. If the test does not define the start and the end of the outage,
  it is the longest time without an acknowledgement.
- **CPU time**: the CPU time of the client's process during the outage. The process also runs the
  load, the proxy and the mock cluster.
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Identifies a row."""

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
        """Make the row of a report. It has no outage if another process sent the records."""
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
    """Write a row to the directory FAULT_ROWS, if it is set."""
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
    """Read the topic with both readers, check, and write the row. Then fail if there is a fault.

    Args:
        cell: the row.
        ran: the result of the load.
        settings: the producer's settings.
        topic: the topic of the load, or its topics.
        address: the address to read from; by default the producer's.
        repeats: the broker does not check sequence numbers; see `check`.
        concludes: the client concludes from one acknowledgement on others; see `check`.
        grace: the seconds by which an outcome may exceed `delivery_timeout`.
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
    """Like `judge`, for a history that was kept elsewhere, for example in another process."""
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
    """Read these topics with both readers, compare, and return the records of the reader that has
    sequence numbers."""
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
    """Add up the reports of histories that have no record in common."""
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
    """The versions of the software under test."""
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {metadata.version(name)}" for name in ("kafka-python", "confluent-kafka")]
    with contextlib.suppress(KafkaMissing):
        found.insert(0, f"Apache Kafka {kafka_home().version}")
    return found


def page(rows: Iterable[Row], versions: Sequence[str]) -> str:
    """Format the page of these rows: totals for each group and driver, and the picture."""
    rows = list(rows)
    cells = len({(row.group, row.cell) for row in rows})
    software = " and ".join(filter(None, (", ".join(versions[:-1]), *versions[-1:])))
    totals = (
        f"The table covers {cells} faults and {len(rows)} runs, with {software}. "
        f"These runs sent {sum(row.records for row in rows):,} records:"
    )
    text = _BEGIN.replace("{totals}", totals).replace("{summary}", _summary(rows))
    return text.replace("{known}", _known(rows))


def _known(rows: Iterable[Row]) -> str:
    """Format the promises that a client is known to break, in a paragraph for each cell."""
    lines = {
        f"Under the fault *{row.cell}*, the driver `{row.driver}` broke a promise. {row.note} See "
        "{doc}`the cases in which a record is written twice <../explanation/written-once>`."
        for row in rows
        if row.lost or row.doubled or row.reordered or row.misreported or row.damaged
    }
    return "".join(f"\n\n{line}" for line in sorted(lines))


def rows_page(rows: Iterable[Row]) -> str:
    """Format the page of all rows: a table for each group, with a row for each cell, driver and
    loop."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault(row.group, []).append(row)
    parts = [_BEGIN_ROWS]
    for group in sorted(groups, key=_rank):
        parts.append(f"## {group.capitalize()}\n")
        notes: list[str] = []
        parts.append(_table(groups[group], notes))
        if notes:
            parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
            parts[-1] += "\n"
    return "\n".join(parts)


_HEAD_OF_SUMMARY: Final = (
    "kind of fault",
    "driver",
    "runs",
    "acknowledged",
    "failed",
    "withdrawn",
    "broken promises",
)


def _summary(rows: Sequence[Row]) -> str:
    head = _HEAD_OF_SUMMARY
    lines = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * (len(head) - 2) + "|"]
    for group in sorted({row.group for row in rows}, key=_rank):
        for driver in sorted({row.driver for row in rows}, key=lambda one: one != DEFAULT_DRIVER):
            own = [row for row in rows if (row.group, row.driver) == (group, driver)]
            if not own:
                continue
            counts = (
                len(own),
                sum(row.acknowledged for row in own),
                sum(sum(row.failed.values()) for row in own),
                sum(row.withdrawn + row.never_accepted for row in own),
            )
            faults = {
                "lost": sum(row.lost for row in own),
                "doubled": sum(row.doubled for row in own),
                "reordered": sum(row.reordered for row in own),
                "misreported": sum(row.misreported + row.damaged for row in own),
            }
            found = ", ".join(f"{count:,} {name}" for name, count in faults.items() if count)
            shown = [group, driver, *(f"{count:,}" for count in counts), found or "0"]
            lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


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


def _rows_of(page: Path) -> Path:
    return page.with_name(f"{page.stem}-rows.md")


def _draw(page: Path) -> None:
    text = _rows_of(page).read_text(encoding="utf-8")
    page.with_suffix(".svg").write_text(draw(text), encoding="utf-8")


def _main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m tests.faults.matrix DIRECTORY PAGE | --draw PAGE\n")
        return 2
    target = Path(arguments[1])
    if arguments[0] != "--draw":
        rows = [Row(**json.loads(path.read_text())) for path in Path(arguments[0]).glob("*.json")]
        target.write_text(page(rows, versions()), encoding="utf-8")
        _rows_of(target).write_text(rows_page(rows), encoding="utf-8")
    _draw(target)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
