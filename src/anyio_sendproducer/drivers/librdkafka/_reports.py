"""Runs the client's callbacks, and passes the outcomes that they gather to the sink."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any, Final

from confluent_kafka import KafkaException

from ..._records import RecordMetadata
from ._client import ClientHandle
from ._health import Health
from ._transaction_state import TransactionState

__all__ = ["STOP", "Reports", "StopPolling"]


class StopPolling(Exception):
    """Raised by a callback to end the client's ``poll`` before it has run all callbacks."""


#: The only instance. Before Python 3.12, confluent-kafka never releases the exception that a
#: callback raised, nor anything in its traceback.
STOP: Final = StopPolling()


class Reports:
    """The outcomes that the client's callbacks gather, until they are passed to the sink."""

    def __init__(self, handle: ClientHandle, health: Health, transaction: TransactionState) -> None:
        self._handle = handle
        self._health = health
        self._transaction = transaction
        #: Submissions and their outcomes, alternating, that the sink has not got yet.
        self.pending: list[Any] = []
        #: The length of ``pending`` at which a callback stops a poll.
        self.limit: float = math.inf
        #: The thread that ends a transaction, if any. No callback may stop its call halfway.
        self.ending_thread: int | None = None
        self._reporting = threading.Lock()

    def poll(self, seconds: float, *, flushes: bool = False) -> None:
        """Let the client run its callbacks.

        Args:
            seconds: how long to wait for the first callback, or, if ``flushes`` is True, until the
                client has no more records.
            flushes: whether the client sends lingering records now.
        """
        # No local variable may refer to the client; see ClientHandle.end().
        if self._handle.client is None:
            return
        while True:
            try:
                if flushes:
                    self._handle.client.flush(seconds)
                else:
                    self._handle.client.poll(seconds)
            except UnicodeDecodeError:
                # confluent-kafka decodes each line before it calls the logger. A line may contain
                # text from a broker, such as a host name. More callbacks may wait behind it.
                self._handle.log.log(
                    logging.WARNING, "a line of librdkafka's log is lost: it is not UTF-8"
                )
                seconds = 0
                continue
            except StopPolling as stop:
                stop.__traceback__ = None
            except KafkaException as error:
                # The client raises its fatal error here, and reports it to no callback.
                self._health.break_client(error.args[0])
            return

    def report(self) -> None:
        """Pass the gathered outcomes to the sink."""
        with self._reporting:
            pending = self.pending[:]
            del self.pending[: len(pending)]
        transaction = self._transaction
        if transaction.is_open and not transaction.is_known_to_brokers:
            transaction.is_known_to_brokers = any(
                isinstance(one, RecordMetadata) for one in pending[1::2]
            )
        if pending:
            self._handle.sink.completed(pending[::2], pending[1::2])
