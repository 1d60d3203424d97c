"""The parts of the commands' options: help in sections, checks of values, and the options that name
a cluster.

It needs ``click`` (extra ``cli``).
"""

from __future__ import annotations

import datetime as dt
import getpass
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from .. import ProducerSettings, SettingsError
from ..drivers import DriverName
from ._connecting import Connection, environment_has_address, parse_property
from ._running import LOOPS
from ._text import unescaped

__all__ = [
    "COUNT",
    "Command",
    "as_it_is",
    "columns",
    "connection_of",
    "csv_delimiter",
    "header_fields",
    "in_section",
    "of_cluster",
    "pairs",
    "seconds",
    "separator",
    "servers",
    "topic",
]

COUNT: Final = click.IntRange(min=1)

#: Kafka's usual port.
_PORT: Final = 9092

#: A topic's name as brokers accept it. Records for a topic with another name would all fail.
_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")

_F = TypeVar("_F", bound=Callable[..., Any])


# --- help in sections ----------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help shows its options in sections, and its exit codes."""

    def __init__(self, *arguments: Any, exit_codes: dict[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        #: The meaning of each exit code, by the code.
        self.exit_codes: dict[str, str] = exit_codes

    def sections(self, context: click.Context) -> dict[str, list[tuple[str, str]]]:
        """The options by section, each with its names and its help."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            # Newer releases of Click have a record for arguments, too; the usage shows them.
            if record is not None and isinstance(parameter, click.Option):
                section = getattr(parameter, "section", "Options")
                found.setdefault(section, []).append(record)
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the exit codes after them. Click calls this method."""
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


def in_section(section: str) -> Callable[..., Callable[[_F], _F]]:
    """A decorator like :func:`click.option` for the options of a section."""

    def option(*names: str, **attributes: Any) -> Callable[[_F], _F]:
        return click.option(*names, cls=_Option, section=section, **attributes)

    return option


# --- values --------------------------------------------------------------------------------------


def servers(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Addresses of brokers, separated by commas."""
    if text is None:
        return None
    try:
        return ",".join(ProducerSettings(bootstrap_servers=_with_ports(text)).addresses)
    except SettingsError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def _with_ports(text: str) -> str:
    """The addresses, each with a port."""
    addresses: list[str] = []
    for part in text.split(","):
        address = part.strip()
        # The only colons of a name or an IPv6 address without a port are in its brackets.
        if address and ":" not in re.sub(r"\A\[[^\]]*\]", "", address):
            address += f":{_PORT}"
        addresses.append(address)
    return ",".join(addresses)


def topic(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """The name of a topic, checked by the rules of Kafka's brokers."""
    if text is None or (_TOPIC.fullmatch(text) and text not in {".", ".."}):
        return text
    if not text:
        problem = "the topic is empty"
    elif len(text) > 249:
        problem = f"the topic has {len(text)} characters, and Kafka accepts at most 249"
    elif text in {".", ".."}:
        problem = f"Kafka does not accept {text!r} as the name of a topic"
    else:
        problem = "the topic has characters other than a-z, A-Z, 0-9, '.', '_' and '-'"
    raise click.BadParameter(problem, param=parameter)


def _properties(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    try:
        return tuple(map(parse_property, texts))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def pairs(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, bytes], ...]:
    """Headers, each as ``NAME=VALUE``."""
    found: list[tuple[str, bytes]] = []
    for text in texts:
        name, equals, content = text.partition("=")
        try:
            name.encode()
            # Bytes of the command line that are not UTF-8 stay as they are.
            found.append((name, content.encode(errors="surrogateescape")))
        except UnicodeEncodeError:
            equals = ""
        if not equals or not name:
            raise click.BadParameter(f"{text!r} must have the form NAME=VALUE", param=parameter)
    return tuple(found)


def header_fields(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Fields that become headers, each as ``FIELD`` or ``NAME=FIELD``."""
    found: list[tuple[str, str]] = []
    for text in texts:
        name, equals, field = text.partition("=")
        if not name or (equals and not field) or not text.isprintable():
            raise click.BadParameter(
                f"{text!r} must have the form FIELD or NAME=FIELD", param=parameter
            )
        found.append((name, field or name))
    return tuple(found)


def separator(_: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    r"""A text that ends a line or separates its parts, with escapes such as ``\t``."""
    if text is None:
        return None
    try:
        found = unescaped(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}", param=parameter) from error
    if not found:
        raise click.BadParameter("the text must not be empty", param=parameter)
    return found


def csv_delimiter(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """The character that separates the cells of CSV."""
    character = (separator(context, parameter, text) or b"").decode(errors="surrogateescape")
    if len(character) != 1 or character in '"\r\n':
        raise click.BadParameter(
            f"{text!r} must be one character, and not a quotation mark or a line end",
            param=parameter,
        )
    return character


def as_it_is(_: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    """The bytes of a text."""
    try:
        # Bytes of the command line that are not UTF-8 stay as they are.
        return None if text is None else text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise click.BadParameter(f"{text!r} is not valid text", param=parameter) from None


def seconds(_: click.Context, parameter: click.Parameter, text: str | None) -> dt.timedelta | None:
    """A number of seconds above 0. Settings warn about a long duration only if it is a number."""
    # The help of Click's own type would show the bounds.
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1e9:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0", param=parameter)
    # Not 0, however small the number is.
    return max(dt.timedelta(seconds=found), dt.timedelta.resolution)


def columns(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names of columns, separated by commas."""
    names = () if text is None else tuple(text.split(","))
    if len(set(names)) < len(names):
        raise click.BadParameter("a name occurs twice", param=parameter)
    return names


# --- the cluster ---------------------------------------------------------------------------------

_cluster: Final = in_section("Cluster")


def of_cluster(timeout_help: str) -> Callable[[_F], _F]:
    """A decorator that adds the options that name a cluster and say how to reach it.

    Args:
        timeout_help: the help of ``--start-timeout``.
    """
    options = (
        _cluster(
            "-b",
            "--bootstrap-servers",
            metavar="HOST[:PORT][,...]",
            callback=servers,
            help=f"The addresses of brokers. The default port is {_PORT}. Default: the addresses "
            "in the settings file, otherwise the value of the environment variable "
            "KAFKA_BOOTSTRAP_SERVERS. The command also reads other settings from variables such "
            "as KAFKA_CLIENT_ID.",
        ),
        _cluster(
            "--service-name",
            metavar="NAME",
            help="A DNS name with SRV records of the brokers, such as _kafka._tcp.example.org "
            "(extra dns).",
        ),
        _cluster(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file with settings, either in the format of Kafka's producer.properties, or in "
            "TOML with the fields of ProducerSettings. Put passwords into this file, not on the "
            "command line.",
        ),
        _cluster(
            "--config-table",
            metavar="NAME",
            default="",
            help="The table of the TOML file that contains the settings. Default: the whole file.",
        ),
        _cluster(
            "-X",
            "--property",
            "properties",
            metavar="NAME=VALUE",
            multiple=True,
            callback=_properties,
            help="A client property with Kafka's name for it, such as linger.ms=5. This value "
            "overrides the file. May be repeated.",
        ),
        _cluster(
            "-W",
            "--ask-password",
            is_flag=True,
            help="Ask for the password (sasl.password) on the terminal. This password overrides "
            "any other sasl.password. The option cannot be combined with sasl.jaas.config.",
        ),
        _cluster(
            "--driver",
            type=click.Choice(get_args(DriverName)),
            help="The client library. confluent is about twice as fast as kafka-python, and needs "
            "the extra confluent. Default: kafka-python.",
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
            callback=seconds,
            metavar="SECONDS",
            help=timeout_help,
        ),
        _cluster(
            "-v",
            "--verbose",
            count=True,
            help="Show the logs of the client and the producer on standard error. -vv shows more "
            "details.",
        ),
    )

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def connection_of(
    bootstrap_servers: str | None,
    service_name: str | None,
    config: Path | None,
    properties: tuple[tuple[str, str], ...],
    *,
    ask_password: bool,
    **others: Any,
) -> Connection:
    """The connection that the options of a cluster describe.

    Raises:
        UsageError: nothing names a cluster, or two options do; or there is no terminal on which to
            ask for the password.
    """
    if bootstrap_servers is not None and service_name is not None:
        raise click.UsageError("--bootstrap-servers and --service-name: pass only one of them")
    if (bootstrap_servers, service_name, config) == (None, None, None) and (
        not environment_has_address()
    ):
        raise click.UsageError(
            "The cluster is missing: pass --bootstrap-servers (-b), --service-name or --config, or "
            "set the environment variable KAFKA_BOOTSTRAP_SERVERS."
        )
    return Connection(
        bootstrap_servers=bootstrap_servers,
        service_name=service_name,
        config=config,
        properties=properties,
        password=_ask_password() if ask_password else None,
        **others,
    )


def _ask_password() -> str:
    """Read a password from the terminal, which does not show it."""
    try:
        with warnings.catch_warnings():
            # getpass warns before it reads a password that the terminal would show.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass("Password: ")
    except (getpass.GetPassWarning, EOFError, OSError):
        raise click.UsageError(
            "--ask-password needs a terminal: put sasl.password into a file for --config, or into "
            "the environment variable KAFKA_PROPERTIES_SASL_PASSWORD"
        ) from None
