"""Translates the client's errors into outcomes, and finds out when the client can send no more."""

from __future__ import annotations

from collections.abc import Callable

from ..._exceptions import DeliveryError
from ..._shown import harmless
from .._protocols import Sink, Submission
from ._batches import PartitionRun
from ._errors import (
    RECOVERED,
    REFUSALS,
    GivenUp,
    RefusedLater,
    given_up,
    not_acknowledged,
    rejected,
    text_of,
)
from ._transactions import Transactions

__all__ = ["Outcomes"]


class Outcomes:
    """Translates the errors of one client, and reports when the client can send no more.

    The client's thread calls it, in callbacks. If a future is already done when its callback is
    added, the submitting thread calls it, perhaps at the same time.

    Args:
        sink: gets the report.
        refused: topics and partitions whose last produce request was refused.
        is_broken: returns whether the client can send no more; None if the client does not say.
        is_closing: returns whether the driver was closed.
        transactions: of the client; None if it has none.
        is_idempotent: whether the client is idempotent.
        recovers: whether it recovers from errors of the sequence numbers.
    """

    def __init__(
        self,
        sink: Sink,
        refused: set[tuple[str, int]],
        is_broken: Callable[[], bool] | None,
        is_closing: Callable[[], bool],
        transactions: Transactions | None,
        *,
        is_idempotent: bool,
        recovers: bool,
    ) -> None:
        self.recovers = recovers
        self._sink = sink
        self._refused = refused
        self._is_broken = is_broken
        self._is_closing = is_closing
        self._transactions = transactions
        self._is_idempotent = is_idempotent
        self._is_reported = False
        self._first_to_fail: Submission | None = None

    def failure(self, submission: Submission, error: Exception, run: PartitionRun) -> DeliveryError:
        """Translate the client's error for one record."""
        if isinstance(error, GivenUp):
            return given_up(submission.record, error)
        if isinstance(error, RefusedLater):
            return not_acknowledged(submission.record, error.refusal)
        if self._transactions is not None:
            self._transactions.note_failure(error)
        is_refused = isinstance(error, REFUSALS)
        is_last = self._ends_client(error)
        if is_last or self._transactions is not None:
            # An error that ends the idempotent client of 3.0.12, or its transaction, fails all
            # records in flight with the same exception, though they may have been written. Only
            # the partition that the broker's answer named was refused; no later batch for it had
            # been sent.
            if run.partition is None:
                is_refused = is_refused and submission is self._first_to_fail
            else:
                is_refused = is_refused and (run.topic, run.partition) in self._refused
            if is_last:
                self._report_end(error)
        if is_refused:
            said = f"the broker refused the record: {text_of(error)}"
            return rejected(submission.record, said, error)
        return not_acknowledged(submission.record, error)

    def note_failure(self, submission: Submission, error: Exception) -> None:
        """Note the first record that fails when the client ends.

        If a partitioner of kafka-python chooses, the driver does not know the partition of a
        record. Only the first record that failed has certainly been refused.
        """
        if self._first_to_fail is None and self._ends_client(error):
            self._first_to_fail = submission

    def check_client(self, error: Exception) -> None:
        """Report that the client can send no more, if this error is why."""
        if self._ends_client(error):
            self._report_end(error)

    def _ends_client(self, error: Exception) -> bool:
        """Return whether the client can send no more after this error."""
        if not self._is_idempotent:
            return False
        if isinstance(error, RECOVERED):
            return not self.recovers
        return self._is_broken is None or self._is_broken()

    def _report_end(self, error: Exception) -> None:
        if self._is_reported or self._is_closing():
            return
        self._is_reported = True
        harmless(error)
        transactions = self._transactions
        if transactions is not None and transactions.is_fenced:
            error = transactions.fenced(error)
        self._sink.broken(error)
