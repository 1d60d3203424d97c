"""The commands: names, options and help. The reference in the documentation is made from them.

Values are checked here. Each command calls its own module to run.

This module needs ``click`` (extra ``cli``).
"""

from __future__ import annotations

import datetime as dt
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

from . import _broker, _check, _demo, _produce
from ._chunks import HeaderMarks, Layout
from ._fields import Fields
from ._log import client_log
from ._options import (
    COUNT,
    Command,
    as_it_is,
    columns,
    connection_of,
    csv_delimiter,
    header_fields,
    in_section,
    of_cluster,
    pairs,
    seconds,
    separator,
    servers,
    topic,
)
from ._parsing import FORMATS
from ._running import COMPLETE, FAILED, INCOMPLETE, USAGE, interrupted

__all__ = ["NAME", "command"]

NAME: Final = "anyio-sendproducer"

#: The variable that Click reads to complete words.
_COMPLETE_VARIABLE: Final = "_ANYIO_SENDPRODUCER_COMPLETE"

_SHELLS: Final = ("bash", "zsh", "fish")

_input = in_section("Input")
_records = in_section("Records")
_delivery = in_section("Delivery")
_output = in_section("Output")
_options = in_section("Options")


def _until_interrupted(run: Callable[..., int], *arguments: Any, **options: Any) -> int:
    try:
        return run(*arguments, **options)
    except KeyboardInterrupt:
        # The event loop has not started, or it has ended: there is nothing to clean up.
        return interrupted(signal.SIGINT)


# --- the commands --------------------------------------------------------------------------------

_SIGNALS: Final = {"130, 143, 129": "Ctrl-C, SIGTERM or SIGHUP ended the command."}


@click.group(
    name=NAME,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="COMMAND --help shows the options of a command.",
)
@click.version_option(package_name=NAME, prog_name=NAME, message="%(prog)s %(version)s")
def command() -> None:
    """Send records to Kafka, and report the outcome of each record."""


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Every record that was read was delivered.",
        f"{INCOMPLETE}": "At least one record failed. The failed records are in the failed file, "
        "or on standard error if the file could not be written to.",
        f"{USAGE}": "The command line or a setting is wrong, a package is not installed, or the "
        "failed file has content or cannot be opened.",
        f"{FAILED}": "The producer did not start, the producer broke, an input could not be read, "
        "or a failed record could be written neither to the failed file nor to standard error.",
        "130, 143, 129": "Ctrl-C, SIGTERM or SIGHUP ended the command. Each record that the "
        "command had read was delivered, or is in the failed file or on standard error.",
    },
)
@click.argument(
    "files",
    metavar="[FILE]...",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@of_cluster("How long the start of the producer may take. Default: 30.")
@_input(
    "-f",
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="The format of the input. lines: each line is a value. file: each file is one value. "
    "jsonl: JSON Lines. csv: rows after a first row with the names of the columns. failed: the "
    "failed file of an earlier run.",
)
@_input(
    "-D",
    "--delimiter",
    metavar="TEXT",
    callback=separator,
    help=r"With lines: the text that ends a record instead of a line feed, so that a record can "
    r"have several lines. The escapes \0, \n, \r, \t and \\, and hexadecimal escapes such as \x1f, "
    r"stand for one byte each.",
)
@_input(
    "-K",
    "--key-separator",
    metavar="TEXT",
    callback=separator,
    help="With lines: the text between a key and its value, with escapes as in -D. A line without "
    "this text has no key.",
)
@_input(
    "--headers-delimiter",
    metavar="TEXT",
    callback=separator,
    help="With lines: the text that ends the headers at the start of a line. An example of "
    "headers is a:1,b:2. The key and the value follow the headers.",
)
@_input(
    "--headers-separator",
    metavar="TEXT",
    callback=separator,
    default=",",
    show_default=True,
    help="The text between two headers at the start of a line.",
)
@_input(
    "--headers-key-separator",
    metavar="TEXT",
    callback=separator,
    default=":",
    show_default=True,
    help="The text between the name and the value of a header at the start of a line.",
)
@_input(
    "-Z",
    "--null-value",
    metavar="TEXT",
    callback=as_it_is,
    help="With lines and csv: the text that stands for null. A record whose value is null is a "
    "tombstone. A header whose value is null is not sent. If TEXT is empty, an empty key, value or "
    "header is null.",
)
@_input(
    "--value-field",
    metavar="FIELD",
    help="With jsonl and csv: the field that becomes the value. If this field is null, the record "
    "is a tombstone. Default: the whole line, or the row as JSON.",
)
@_input("--key-field", metavar="FIELD", help="The field that becomes the key.")
@_input(
    "--header-field",
    "header_fields",
    metavar="[NAME=]FIELD",
    multiple=True,
    callback=header_fields,
    help="A field that becomes a header. The name of the header is NAME or the name of the field. "
    "May be repeated.",
)
@_input("--partition-field", metavar="FIELD", help="The field that becomes the partition's number.")
@_input(
    "--timestamp-field",
    metavar="FIELD",
    help="The field that becomes the timestamp: milliseconds since 1970, or a time such as "
    "2026-01-31T12:00:00Z.",
)
@_input(
    "--csv-delimiter",
    metavar="CHARACTER",
    default=",",
    show_default=True,
    callback=csv_delimiter,
    help=r"The character between the cells of a row, such as \t.",
)
@_input(
    "--csv-columns",
    metavar="NAME[,...]",
    callback=columns,
    help="The names of the columns, if the first row does not contain them.",
)
@_records(
    "-t",
    "--topic",
    metavar="TOPIC",
    callback=topic,
    help="The topic to send to. With failed, this topic replaces the topics in the file.",
)
@_records(
    "-k",
    "--key",
    metavar="TEXT",
    callback=as_it_is,
    help="The key of all records that have no key in the input.",
)
@_records("-p", "--partition", type=click.IntRange(min=0), help="The partition of all records.")
@_records(
    "-H",
    "--header",
    "headers",
    metavar="NAME=VALUE",
    multiple=True,
    callback=pairs,
    help="A header of all records. May be repeated.",
)
@_delivery(
    "-z",
    "--compression",
    type=click.Choice(["none", "gzip", "snappy", "lz4", "zstd"]),
    help="The compression codec for batches. With kafka-python, snappy, lz4 and zstd need the "
    "extra 'compression'.",
)
@_delivery(
    "-a",
    "--acks",
    type=click.Choice(["0", "1", "all"]),
    help="Which brokers must have a record before it counts as delivered: no broker (0), the "
    "leader (1), or all in-sync replicas (all).",
)
@_delivery(
    "--max-in-flight",
    type=COUNT,
    metavar="RECORDS",
    help="How many records may be in flight. Default: 10,000.",
)
@_delivery(
    "--delivery-timeout",
    callback=seconds,
    metavar="SECONDS",
    help="How long a record may take before it counts as failed. Default: 120.",
)
@_delivery(
    "--close-timeout",
    callback=seconds,
    metavar="SECONDS",
    help="How long the command may take after Ctrl-C, SIGTERM or SIGHUP to deliver the records "
    "that it has read. Default: 60.",
)
@_delivery(
    "--fail-fast",
    is_flag=True,
    help="Stop at the first record that fails, or at the first line that cannot be read. After "
    "that, the client gets no new records, but may deliver the records that it already has. "
    "Records that were read, but not passed to the client, are written to the failed file.",
)
@_output(
    "--failed",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file for failed records and the reasons for the failures. Default: "
    "failed-TIME-PID.jsonl in the working directory. If nothing failed, the command deletes a file "
    "that it has created.",
)
@_output("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@_output(
    "--progress/--no-progress",
    default=None,
    help="Whether to show a progress bar. Default: show it if standard error is a terminal.",
)
def produce(
    *,
    files: tuple[str, ...],
    format_: str,
    delimiter: bytes | None,
    key_separator: bytes | None,
    headers_delimiter: bytes | None,
    headers_separator: bytes,
    headers_key_separator: bytes,
    null_value: bytes | None,
    value_field: str | None,
    key_field: str | None,
    header_fields: tuple[tuple[str, str], ...],
    partition_field: str | None,
    timestamp_field: str | None,
    csv_delimiter: str,
    csv_columns: tuple[str, ...],
    topic: str | None,
    key: bytes | None,
    partition: int | None,
    headers: tuple[tuple[str, bytes], ...],
    compression: str | None,
    acks: str | None,
    max_in_flight: int | None,
    delivery_timeout: dt.timedelta | None,
    close_timeout: dt.timedelta | None,
    fail_fast: bool,
    failed: Path | None,
    as_json: bool,
    progress: bool | None,
    loop: str,
    start_timeout: dt.timedelta | None,
    verbose: int,
    **cluster: Any,
) -> int:
    """Send lines, JSON Lines or CSV, from files or from standard input.

    By default, each line is a record. The command sends records in order, and uses a limited amount
    of memory. Each record is either delivered or written to the failed file. If the command cannot
    write to this file, it writes the record to standard error. The failed file contains the reason
    for each failure, and says whether the record may be in the log. Use --format failed to send the
    records in the file again.

    After Ctrl-C, SIGTERM or SIGHUP, the command stops reading. Records that it has read are
    delivered within --close-timeout, or written to the failed file. A second Ctrl-C or SIGTERM
    shortens the remaining time to 5 seconds or less.
    """
    connection = connection_of(**cluster)
    fields = Fields(value_field, key_field, partition_field, timestamp_field, header_fields)
    if topic is None and format_ != "failed":
        raise click.UsageError("Missing option '-t' / '--topic'.")
    if fields.any and format_ not in {"jsonl", "csv"}:
        raise click.UsageError(f"--format {format_} has no fields: use jsonl or csv")
    for option, value, formats in (
        ("--delimiter", delimiter, ("lines",)),
        ("--key-separator", key_separator, ("lines",)),
        ("--headers-delimiter", headers_delimiter, ("lines",)),
        ("--null-value", null_value, ("lines", "csv")),
        ("--csv-columns", csv_columns or None, ("csv",)),
    ):
        if value is not None and format_ not in formats:
            raise click.UsageError(
                f"{option} is for --format {' or '.join(formats)}, not {format_}"
            )
    if format_ == "failed" and (partition is not None or headers or key is not None):
        raise click.UsageError(
            "--format failed takes keys, partitions and headers from the file: leave out --key, "
            "--partition and --header"
        )
    if key is not None and key_field is not None:
        raise click.UsageError("--key and --key-field: pass only one of them")
    if partition is not None and partition_field is not None:
        raise click.UsageError("--partition and --partition-field: pass only one of them")
    marks = None
    if headers_delimiter is not None:
        marks = HeaderMarks(headers_delimiter, headers_separator, headers_key_separator)
        if len(set(marks)) < len(marks):
            raise click.UsageError(
                "--headers-delimiter, --headers-separator and --headers-key-separator must be "
                "three different texts"
            )
    layout = Layout(
        format=format_,
        topic=topic,
        partition=partition,
        headers=headers,
        key=key,
        delimiter=delimiter,
        key_separator=key_separator,
        header_marks=marks,
        null_value=null_value,
        fields=fields,
        csv_delimiter=csv_delimiter,
        csv_columns=csv_columns,
    )
    properties = {"compression.type": compression, "acks": acks}
    settings = {
        "properties": {name: value for name, value in properties.items() if value is not None},
        "start_timeout": start_timeout,
        "max_in_flight": max_in_flight,
        "delivery_timeout": delivery_timeout,
        "close_timeout": close_timeout,
    }
    order = _produce.Order(
        connection=connection,
        layout=layout,
        inputs=files or ("-",),
        fields=settings,
        loop=loop,
        fail_fast=fail_fast,
        failed=failed,
        as_json=as_json,
        progress=progress,
    )
    with client_log(verbose):
        return _until_interrupted(_produce.run, order)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Each step passed or was not needed.",
        f"{INCOMPLETE}": "A step failed. If the driver is not installed or refuses a setting, the "
        "step 'settings' fails.",
        f"{USAGE}": "The command line is wrong, a setting that the driver does not check is wrong, "
        "or a package other than the driver's is not installed.",
        **_SIGNALS,
    },
)
@of_cluster(
    "How long a step may take. The step 'cluster' may take twice as long. Default: "
    f"{_check.TIMEOUT:g}."
)
@_output("--json", "as_json", is_flag=True, help="Print the steps as one JSON object.")
def check(
    *, as_json: bool, loop: str, start_timeout: dt.timedelta | None, verbose: int, **cluster: Any
) -> int:
    """Check whether a producer can reach the cluster, and show which step fails.

    The steps check the settings, the names of the brokers, a connection, TLS, the login, the
    cluster's description of itself, and a connection to each broker. The first step that fails
    shows what is wrong and, if possible, what to do. Topics and permissions are not checked.

    With the driver confluent, the versions of the brokers are missing, because librdkafka does not
    report them.
    """
    connection = connection_of(**cluster)
    with client_log(verbose):
        return _until_interrupted(_check.run, connection, loop, start_timeout, as_json=as_json)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "The broker ran until Ctrl-C, SIGTERM or SIGHUP.",
        f"{USAGE}": "The command line is wrong.",
        f"{FAILED}": "The broker is not installed, did not start, or ended unexpectedly.",
    },
)
@_options(
    "--port", type=click.IntRange(1, 65_535), help="The port to listen on. Default: a free port."
)
def broker(*, port: int | None) -> int:
    """Run a broker for experiments on this machine until the command is stopped.

    The broker stores its data in memory. After a restart, all records are lost, and records of
    producers that are still open may fail. In Python, embedded_broker() of
    anyio_sendproducer.testing can also pause the broker. This command needs the extra 'embedded'.
    """
    return _broker.run(port)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Each record was read back once, unchanged and in order.",
        f"{INCOMPLETE}": "A record is missing, duplicated, altered, out of order, or not where its "
        "metadata says.",
        f"{USAGE}": "The command line is wrong, or an optional package is not installed.",
        f"{FAILED}": "A broker or the producer failed. The message says why.",
        **_SIGNALS,
    },
    help=f"{_demo.DESCRIPTION}\nThis command needs the extra 'demo'.",
    short_help="Send a real data set to a real broker, and check that all of it arrived.",
)
@_options(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop to run on.",
)
@_options(
    "-b",
    "--bootstrap-servers",
    metavar="HOST:PORT[,...]",
    callback=servers,
    help="A cluster to send to. Default: a broker that the demo starts.",
)
@_options(
    "-t",
    "--topic",
    metavar="TOPIC",
    callback=topic,
    default="seattle-temps",
    show_default=True,
    help="The topic to send to. If it does not exist, the demo creates it with 4 partitions. "
    "Records that are already in the topic stay there, and are not counted.",
)
def demo(*, backend: str, bootstrap_servers: str | None, topic: str) -> int:
    """See above."""
    return _until_interrupted(_demo.run, backend, bootstrap_servers, topic)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "The script was printed.",
        f"{USAGE}": "The command line is wrong.",
    },
    help="""\
Print a script that lets a shell complete the words of this command. The supported shells are bash
4.4 or later, zsh and fish. To make the shell load the script when it starts, run one of these
commands:

\b
  anyio-sendproducer completion bash >> ~/.bashrc
  anyio-sendproducer completion zsh >> ~/.zshrc
  anyio-sendproducer completion fish > ~/.config/fish/completions/anyio-sendproducer.fish
""",
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(*, shell: str) -> int:
    """See above."""
    completer = get_completion_class(shell)
    assert completer is not None  # noqa: S101  # Click supports these three
    click.echo(completer(command, {}, NAME, _COMPLETE_VARIABLE).source())
    return COMPLETE
