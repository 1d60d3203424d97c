"""What ``produce`` and ``check`` show: a progress bar and a table in a terminal, else plain lines.

It needs ``rich`` (extra ``cli``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

import rich.console
import rich.progress
import rich.table
import rich.text

from ._text import counted

__all__ = [
    "Bar",
    "Figures",
    "PartitionRow",
    "is_terminal",
    "partitions_text",
    "progress_bar",
    "steps_text",
]


class Figures(NamedTuple):
    """How far it is."""

    position: int
    """Bytes of the input that were read."""
    delivered: int
    failed: int
    in_flight: int
    """Records whose outcome is not known yet."""
    rate: float
    """Records per second, of late."""


class PartitionRow(NamedTuple):
    """What went to one partition. The offsets are None where brokers gave none."""

    topic: str
    partition: int
    records: int
    first_offset: int | None
    last_offset: int | None


class Bar:
    """The progress bar. :meth:`show` may block, as long as the terminal does."""

    def __init__(self, progress: rich.progress.Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "sending", total=total, delivered=0, failed=0, in_flight=0, rate=0.0
        )

    def show(self, figures: Figures) -> None:
        """Show how far it is."""
        self._progress.update(
            self._task,
            completed=figures.position,
            delivered=figures.delivered,
            failed=figures.failed,
            in_flight=figures.in_flight,
            rate=figures.rate,
        )
        self._progress.refresh()


@contextlib.contextmanager
def progress_bar(total: int | None) -> Generator[Bar, None, None]:
    """A bar on standard error for ``total`` bytes of input; None if the size is unknown."""
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[delivered]:,} sent"),
        rich.progress.TextColumn("{task.fields[rate]:,.0f}/s"),
        rich.progress.TextColumn("{task.fields[in_flight]:,} in flight"),
        rich.progress.TextColumn("{task.fields[failed]:,} failed"),
        rich.progress.TimeElapsedColumn(),
        console=rich.console.Console(stderr=True),
        expand=True,
        # Drawn by whoever calls show(), and by no thread of its own.
        auto_refresh=False,
    ) as progress:
        yield Bar(progress, total)


def is_terminal(*, stderr: bool = False) -> bool:
    """Whether the standard output, or the standard error, is a terminal, or is to be taken for one
    (FORCE_COLOR)."""
    return rich.console.Console(stderr=stderr).is_terminal


def partitions_text(rows: Sequence[PartitionRow]) -> str:
    """The number of records in each partition: as a table for a terminal, otherwise plain lines."""
    if not rows:
        return ""
    if not is_terminal():
        lines: list[str] = []
        for row in rows:
            offsets = ""
            if row.first_offset is not None:
                offsets = f", offsets {row.first_offset:,} to {row.last_offset:,}"
            count = counted(row.records, "record")
            lines.append(f"{row.topic}, partition {row.partition}: {count}{offsets}\n")
        return "".join(lines)
    table = rich.table.Table(title="delivered, by partition")
    table.add_column("topic")
    for heading in ("partition", "records", "first offset", "last offset"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = ("-" if cell is None else f"{cell:,}" for cell in row[1:])
        # As it is, whatever rich would take for its markup.
        table.add_row(rich.text.Text(row.topic), *cells)
    console = rich.console.Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


#: How each state of a step is shown, and in which of the terminal's colours.
_STATES: Final = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def steps_text(steps: Sequence[Any]) -> str:
    """The steps of ``check``: for each its state, its name and its details, then a hint."""
    console = rich.console.Console(soft_wrap=True, highlight=False)
    with console.capture() as captured:
        for step in steps:
            first, *others = step.details
            line = rich.text.Text()
            line.append(f"{step.state:<8}", style=_STATES[step.state])
            line.append(f"{step.name:<14}", style="bold")
            line.append(first)
            console.print(line)
            for detail in others:
                console.print(rich.text.Text(" " * 22 + detail))
            if step.hint:
                console.print(rich.text.Text(" " * 22 + f"-> {step.hint}"))
    return captured.get()
