"""The report of ``produce``: its exit code, its text and its JSON."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from .. import Persistence, SendProducerError, SettingsError
from ._account import Account
from ._chunks import InputError
from ._failed import FailedFile
from ._running import COMPLETE, FAILED, INCOMPLETE, USAGE, complain, interrupted, print_report
from ._streams import emit
from ._text import counted, printable

if TYPE_CHECKING:
    from ._display import PartitionRow

__all__ = ["described", "report"]

#: How much of a reason is shown.
_MOST_CHARACTERS: Final = 500


def described(error: BaseException) -> str:
    """An error in words. If the command does not expect the error, the words say so."""
    if isinstance(error, (SendProducerError, InputError)):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}"


def report(account: Account, file: FailedFile, *, as_json: bool) -> int:
    """Print the account of a run that has ended, and return its exit code."""
    code = _code(account, file)
    if account.signal is not None and not account.has_begun:
        interrupted(account.signal)
    if account.error is not None:
        complain(described(account.error), code)
        if not isinstance(account.error, (SendProducerError, InputError)):
            lines = "".join(traceback.format_exception(account.error)).split("\n")
            emit(sys.stderr, "\n".join(map(printable, lines)))
    if account.display_error is not None:
        complain(f"the progress bar failed: {described(account.display_error)}", code)
    if file.error is not None:
        complain(f"{file.path} may be incomplete: {file.error.strerror}", code)
    if as_json:
        # In ASCII, which every locale can print, and with escapes for bytes that are not text.
        print_report(json.dumps(_as_json(account, file, code)) + "\n")
    elif account.has_begun:
        print_report(_as_text(account, file))
    return code


def _code(account: Account, file: FailedFile) -> int:
    if file.lost or file.error is not None:
        return FAILED
    if account.signal is not None:
        return 128 + account.signal
    if account.error is not None:
        return USAGE if isinstance(account.error, SettingsError) else FAILED
    return INCOMPLETE if account.failures else COMPLETE


def _as_text(account: Account, file: FailedFile) -> str:
    from ._display import partitions_text

    rate = account.delivered / account.seconds if account.seconds else 0.0
    text = (
        f"{partitions_text(_rows(account))}"
        f"{counted(account.read, 'record')} read, {account.delivered:,} delivered, "
        f"{account.failures:,} failed, in {account.seconds:.1f} s ({rate:,.0f} records/s).\n"
    )
    if not account.all_read:
        where = "before the first line"
        if account.last is not None:
            source, line = account.last
            where = f"after line {line:,} of {printable(source)}"
        text += f"The command stopped reading {where}. It did not read the rest.\n"
    if account.failures:
        reason, count = account.reasons.most_common(1)[0]
        shown = printable(reason[:_MOST_CHARACTERS])
        text += f"The most frequent reason ({count:,} of {account.failures:,}): {shown}\n"
    if file.written:
        text += _failed_text(account, file)
    if file.spilt:
        text += f"{counted(file.spilt, 'more failure')} could only be written to standard error.\n"
    if file.lost:
        text += f"{counted(file.lost, 'more failure')} could not be written anywhere.\n"
    return text


def _failed_text(account: Account, file: FailedFile) -> str:
    """Describe the content of the failed file, and what to do with it."""
    path = printable(str(file.path))
    states = ", ".join(f"{count:,} {state}" for state, count in _persistence(account).items())
    if file.written < account.failures:  # the others are not in the file
        states = f"of all failures: {states}"
    unreadable = account.unreadable
    records = account.failures - unreadable
    if not records:
        # To feed them in again would fail again.
        return (
            f"{counted(file.written, 'line')} could not be read as a record. The reasons are in "
            f"{path}. Correct the input, and send only these lines again.\n"
        )
    text = (
        f"{counted(file.written, 'record')} {'is' if file.written == 1 else 'are'} in {path} "
        f"({states}). To send them again:\n"
        f"  anyio-sendproducer produce ... --format failed {path}\n"
    )
    if unreadable:
        text += (
            f"{counted(unreadable, 'line')} could not be read as a record, and will fail again: "
            "correct the input.\n"
        )
    return text


def _rows(account: Account) -> list[PartitionRow]:
    from ._display import PartitionRow

    return [
        PartitionRow(topic, partition, place.count, place.first, place.last)
        for (topic, partition), place in sorted(account.places.items())
    ]


def _persistence(account: Account) -> dict[str, int]:
    return {
        persistence.value: account.persistence[persistence]
        for persistence in Persistence
        if account.persistence[persistence]
    }


def _as_json(account: Account, file: FailedFile, code: int) -> dict[str, Any]:
    last, error = account.last, account.error
    return {
        "exit_code": code,
        "read": account.read,
        "delivered": account.delivered,
        "failed": account.failures,
        "all_read": account.all_read,
        "last_read": None if last is None else {"source": last[0], "line": last[1]},
        "seconds": round(account.seconds, 3),
        "persistence": _persistence(account),
        "errors": dict(account.errors),
        "unreadable": account.unreadable,
        "failed_file": str(file.path) if file.written else None,
        "spilt": file.spilt,
        "lost": file.lost,
        "partitions": [row._asdict() for row in _rows(account)],
        "signal": None if account.signal is None else signal.Signals(account.signal).name,
        "error": None if error is None else described(error),
    }
