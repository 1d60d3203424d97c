"""Whether a client reaches its brokers, and whether it is broken."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import KafkaError

from ..._exceptions import SendProducerError
from ..._failures import CLOSED_TOO_EARLY
from ._client import ClientHandle
from ._errors import LOGIN_REFUSED, UNREACHABLE, LoginRefused, text_of, translated
from ._transaction_state import TransactionState

__all__ = ["Health"]

#: While a broker cannot be reached, librdkafka repeats the error every 30 s. If records are
#: delivered, an older error is over.
_REPEATED_SECONDS: Final = 31.0


#: The text of an error about a bootstrap address, which is between the protocol and a slash.
_AT_BOOTSTRAP: Final = re.compile(r"(?:\w+://)?(\S+)/bootstrap: (.*)")


class Health:
    """The state of a client's connections, and whether the client can still send."""

    def __init__(self, handle: ClientHandle, transaction: TransactionState) -> None:
        self._handle = handle
        self._transaction = transaction
        #: The last failure to reach a broker; None if it is over.
        self.failure: SendProducerError | None = None
        self._failed_at = 0.0
        #: When a broker answered last while there was a failure.
        self._answered_at = 0.0
        #: The last failure to reach each bootstrap address.
        self._reasons: dict[str, str] = {}
        #: Whether no broker can be reached.
        self.is_disconnected = False
        #: Whether the client can send no more, so that the producer must replace it.
        self.is_broken = False
        #: Why the client drops records; empty if there is no reason yet.
        self.purge_reason = ""

    def last_error(self) -> SendProducerError | None:
        """Return the last failure to reach a broker, or None."""
        text, logged_at = self._handle.log.broker_error
        if self.failure is None and time.monotonic() - logged_at < _REPEATED_SECONDS:
            return SendProducerError(text)
        return self.failure

    def why_purged(self) -> str:
        """Return why the client drops its records."""
        return self.purge_reason or self._handle.log.transaction_error or CLOSED_TOO_EARLY

    def on_error(self, error: Any) -> None:
        """Take an error that concerns no single record. The client calls this (``error_cb``)."""
        if error.fatal():
            self.break_client(error)
        else:
            self.note(error)

    def note(self, error: Any) -> None:
        """Remember an error if it says that a broker cannot be reached."""
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self.is_disconnected = True
            if self.failure is not None:
                return  # the earlier error says more
        if code in UNREACHABLE:
            text, now = text_of(error), time.monotonic()
            found = _AT_BOOTSTRAP.fullmatch(text)
            if found is not None:
                self._reasons[found[1]] = found[2]
            is_login = code in LOGIN_REFUSED
            # A recent refusal of the login says more than an address that does not answer, unless
            # a broker has answered since then.
            is_recent = (
                self._failed_at > self._answered_at and now - self._failed_at < _REPEATED_SECONDS
            )
            if is_login or not (is_recent and isinstance(self.failure, LoginRefused)):
                self.failure = (LoginRefused if is_login else SendProducerError)(text)
                self._failed_at = now

    def reasons(self, addresses: Iterable[str]) -> list[str]:
        """Return why each of these addresses did not answer; nothing if no reason is known."""
        if not self._reasons:
            return []
        reasons = {**dict.fromkeys(addresses, "no answer"), **self._reasons}
        return [f"{address}: {reason}" for address, reason in reasons.items()]

    def note_connection(self) -> None:
        """Note that a broker answers. An earlier failure is over."""
        self.failure = None
        self.is_disconnected = False

    def note_answer(self) -> None:
        """Note that one broker answers. Another broker may still be unreachable, so a recent
        failure is kept."""
        self._answered_at = time.monotonic()
        if self._answered_at - self._failed_at >= _REPEATED_SECONDS:
            self.failure = None
        self.is_disconnected = False

    def break_client(self, error: Any) -> None:
        """Report that the client is broken by a ``KafkaError``."""
        if not self.is_broken:
            transaction = self._transaction
            is_fenced = transaction.is_fenced(error)
            self.give_up(transaction.fenced(error) if is_fenced else translated(error))

    def give_up(self, failure: SendProducerError) -> None:
        """Report that the client is broken, once, and not after the driver began to close."""
        if not self.is_broken and not self._handle.closing.is_set():
            self.is_broken = True
            self.purge_reason = f"the client can't send any more: {failure}"
            self._handle.sink.broken(failure)
