"""The command ``anyio-sendproducer``.

Parsing a command line and printing help need nothing but this package's core; what a command
itself needs is imported when it runs.

May import: the public API and ``testing``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import signal
from collections.abc import Sequence
from typing import Final

from .. import DeliveryError, ProducerSettings, SettingsError
from .._records import ProducerRecord, check_record
from . import _demo

__all__ = ["main"]

_DISTRIBUTION: Final = "anyio-sendproducer"

_EXIT_CODES: Final = f"""\
exit codes:
  {_demo.COMPLETE}  every record was read back as it was acknowledged
  {_demo.INCOMPLETE}  a record is missing, doubled, altered or out of order
  {_demo.USAGE}  the command line is wrong, or an optional package is not installed
  {_demo.FAILED}  a broker or the producer failed; the message says how
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the words after the command's name; None for those of this process.

    Returns:
        The exit code.

    Raises:
        SystemExit: for ``--help``, ``--version`` and a command line that is wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        return _demo.run(options.backend, options.bootstrap_servers, options.topic)
    except KeyboardInterrupt:
        # Before the event loop began or after it ended: there is nothing to clean up.
        return _demo.interrupted(signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_DISTRIBUTION, description="Send records to Kafka from a task group."
    )
    parser.add_argument("--version", action="version", version=f"{_DISTRIBUTION} {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="send a real data set to a real broker and check that all of it came through",
        description=_demo.DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--backend",
        choices=["asyncio", "trio"],
        default="asyncio",
        help="the event loop to run on (default: %(default)s)",
    )
    demo.add_argument(
        "--bootstrap-servers",
        metavar="HOST:PORT[,...]",
        type=_servers,
        help="a cluster to send to (default: a broker of its own, on this machine, in memory)",
    )
    demo.add_argument(
        "--topic",
        type=_topic,
        default="seattle-temps",
        help="the topic to send to; created with 4 partitions where it does not exist "
        "(default: %(default)s)",
    )
    return parser


def _servers(text: str) -> str:
    try:
        return ",".join(ProducerSettings(bootstrap_servers=text).addresses)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _topic(text: str) -> str:
    try:
        check_record(
            ProducerRecord(text, value=b""), set(), key_serialized=False, value_serialized=False
        )
    except DeliveryError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _version() -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
