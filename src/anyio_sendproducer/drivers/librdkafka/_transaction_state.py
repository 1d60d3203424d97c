"""The state of the current transaction, and how fencing is recognized."""

from __future__ import annotations

import time
from typing import Any

from ..._exceptions import ProducerFenced
from ._errors import FENCED, exception_of

__all__ = ["TransactionState"]


class TransactionState:
    """The state of the current transaction of one client.

    Args:
        transactional_id: None for a client without transactions.
        timeout_ms: the client's ``transaction.timeout.ms``.
    """

    def __init__(self, transactional_id: str | None, timeout_ms: float) -> None:
        self.transactional_id = transactional_id
        self._timeout_ms = timeout_ms
        #: Whether a transaction was begun and has not ended.
        self.is_open = False
        #: When it was begun.
        self.began_at = 0.0
        #: Whether the brokers know of it: one of its records was written, or offsets were sent.
        self.is_known_to_brokers = False
        #: Whether a broker refused one of its records, or all attempts that ``retries`` allows have
        #: failed. librdkafka does not use the sequence numbers of the record again, so it cannot
        #: send the next records for the partition.
        self.has_gap = False
        #: Whether librdkafka dropped some of its records. librdkafka uses their sequence numbers
        #: again, even if it has sent the records.
        self.has_dropped = False

    def begin(self) -> None:
        """Note that a transaction was begun."""
        self.is_open = True
        self.is_known_to_brokers = False
        self.has_gap = self.has_dropped = False
        self.began_at = time.monotonic()

    def is_fenced(self, error: Any) -> bool:
        """Return whether a ``KafkaError`` says that another producer took over.

        Without a transactional id, no other producer can take over. Then a broker has merely lost
        this producer's state.
        """
        return self.transactional_id is not None and error.code() in FENCED

    def fenced(self, error: Any) -> ProducerFenced:
        """Make the error of a fenced producer."""
        message = f"another producer took over transactional_id {self.transactional_id!r}"
        # The brokers send the same error when a transaction has timed out, and librdkafka does not
        # find out which it is.
        if self.is_open and time.monotonic() - self.began_at > self._timeout_ms / 1000:
            message += (
                f", or its transaction took longer than transaction.timeout.ms={self._timeout_ms}"
            )
        fenced = ProducerFenced(message)
        fenced.__cause__ = exception_of(error)
        return fenced
