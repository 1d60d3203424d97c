"""The display of ``produce`` and ``check``: a progress bar, tables for terminals, or plain lines.

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
    """The progress of ``produce``."""

    position: int
    """Bytes of the input that were read."""
    delivered: int
    failed: int
    in_flight: int
    """Records without an outcome so far."""
    rate: float
    """Records per second, over about the last two seconds."""


class PartitionRow(NamedTuple):
    """The records of one partition. The offsets are None if brokers gave none."""

    topic: str
    partition: int
    records: int
    first_offset: int | None
    last_offset: int | None


class Bar:
    """The progress bar. :meth:`show` blocks while the terminal accepts nothing."""

    def __init__(self, progress: rich.progress.Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "sending", total=total, delivered=0, failed=0, in_flight=0, rate=0.0
        )

    def show(self, figures: Figures) -> None:
        """Show the progress."""
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
    """A bar on standard error for ``total`` bytes of input, or for input of unknown size (None)."""
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
        # show() draws it, not another thread.
        auto_refresh=False,
    ) as progress:
        yield Bar(progress, total)


def is_terminal(*, stderr: bool = False) -> bool:
    """Whether standard output (with ``stderr``, standard error) is a terminal, or FORCE_COLOR says
    so."""
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
        # As text, because Rich would interpret its markup.
        table.add_row(rich.text.Text(row.topic), *cells)
    console = rich.console.Console()
    with console.capture() as captured:
        console.print(table)
    return captured.get()


#: The style of each state of a step.
_STATES: Final = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


def steps_text(steps: Sequence[Any]) -> str:
    """The steps of ``check``: the state, the name and the details of each, then a hint."""
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
