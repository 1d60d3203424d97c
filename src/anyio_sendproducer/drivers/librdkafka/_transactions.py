"""Transactions: begin, send consumed offsets, commit and abort, each within a limited time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import KafkaException, TopicPartition

from ..._exceptions import (
    ProducerClosed,
    ProducerStartError,
    SendProducerError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from ..._records import ConsumerGroupMetadata
from ..._settings import ProducerSettings
from .._protocols import ConsumedOffset, Deadline
from . import _waits as waits
from ._client import ClientHandle
from ._errors import FENCED, harmless_failure, text_of
from ._group_metadata import group_to_bytes
from ._health import Health
from ._reports import Reports
from ._threads import NO_THREAD, start_thread
from ._transaction_state import TransactionState

__all__ = ["Transactions"]

#: The pause before a call that failed is repeated.
_PAUSE_SECONDS: Final = 0.005
#: How long sending offsets may take. When the coordinator of their group is gone, librdkafka 2.16
#: waits for an event of one of its connections, which may never come: it never looks at
#: ``creq_ts_timeout`` in ``rdkafka_coord.c``. Another client finds the next coordinator.
_OFFSETS_SECONDS: Final = 20.0
#: How long begin() waits for a disconnected client to reach a broker or to be given up.
_DISCONNECTED_SECONDS: Final = 10.0


class _NoAnswerError(Exception):
    """No answer came in time. The call continues, but no caller waits for it."""


class Transactions:
    """Begins and ends the transactions of a client.

    Each call of the client waits for one short slice, so that closing the driver ends the wait. A
    call that sends offsets can't do that, so another thread makes it.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        handle: ClientHandle,
        state: TransactionState,
        health: Health,
        reports: Reports,
    ) -> None:
        self._settings = settings
        self._handle = handle
        self._state = state
        self._health = health
        self._reports = reports

    def start(self, deadline: float) -> None:
        """Fence an earlier producer of this id, and end the transaction that it left open.

        Args:
            deadline: in seconds of :func:`time.monotonic`.

        Raises:
            ProducerFenced: another producer of this id started later.
            ProducerStartError: a coordinator refused it, none allowed it in time, or the driver was
                closed.
        """
        name = self._state.transactional_id
        while True:
            try:
                self._handle.client.init_transactions(waits.SLICE_SECONDS)
            except KafkaException as failure:
                error = failure.args[0]
                if error.code() in FENCED:
                    raise self._state.fenced(error) from harmless_failure(failure)
                if not error.retriable():
                    raise ProducerStartError(
                        f"transactional_id {name!r} could not be initialized: {text_of(error)}"
                    ) from harmless_failure(failure)
                if time.monotonic() >= deadline:
                    raise ProducerStartError(
                        f"transactional_id {name!r} could not be initialized within "
                        f"{self._settings.start_timeout:g} s (start_timeout): {text_of(error)}"
                    ) from harmless_failure(failure)
                if self._handle.closing.wait(_PAUSE_SECONDS):
                    raise ProducerStartError(
                        "the producer was closed while it was starting"
                    ) from harmless_failure(failure)
            else:
                return

    def begin(self) -> None:
        """Begin a transaction, unless one is open.

        Raises:
            TransactionError: see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`.
            ProducerClosed: the driver is closed.
        """
        if self._state.is_open:
            return
        self._wait_for_connection()
        try:
            with self._handle.call():
                self._handle.client.begin_transaction()
        except KafkaException as failure:
            raise self._error(failure, "the transaction could not be begun") from harmless_failure(
                failure
            )
        self._state.begin()
        self._health.purge_reason = self._handle.log.transaction_error = ""

    def _wait_for_connection(self) -> None:
        """Wait while the client reaches no broker.

        The client may be given up for another one, and then a transaction begun on it is lost.
        """
        handle, health = self._handle, self._health
        patience = Deadline(_DISCONNECTED_SECONDS)
        while health.is_disconnected and not health.is_broken and not patience.is_over:
            if handle.closing.wait(waits.SLICE_SECONDS):
                return
        if health.is_broken:
            # The loop must learn that the client is broken before it learns that begin() succeeded.
            handle.closing.wait(waits.SLICE_SECONDS)

    def send_offsets(
        self, offsets: Sequence[ConsumedOffset], group: ConsumerGroupMetadata, deadline: Deadline
    ) -> None:
        """Make offsets a part of the transaction.

        Raises:
            TransactionError: see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`.
            ProducerClosed: the driver is closed.
        """
        what = f"the offsets of group {group.group_id!r} could not be sent"
        partitions = [
            TopicPartition(one.topic, one.partition, one.offset, one.metadata, one.leader_epoch)
            for one in offsets
        ]
        metadata = group_to_bytes(group)

        def send(_: float) -> None:
            # This call cannot wait in slices: if a slice ended while librdkafka must ask a broker
            # again, the transaction would fail.
            remaining = max(waits.SLICE_SECONDS, deadline.at - time.monotonic())
            seconds = min(remaining, _OFFSETS_SECONDS)

            def call() -> None:
                self._handle.client.send_offsets_to_transaction(partitions, metadata, seconds)

            self._call_on_thread(call, seconds + waits.FINISH_SECONDS, deadline)

        if not self._persist(send, deadline, what):
            self._handle.check_open()
            if deadline.is_over:
                raise TransactionError(f"{what}: there was no answer")
            raise TransactionAborted(f"{what}: librdkafka does not reach the group's coordinator")
        self._state.is_known_to_brokers = True

    def end(self, deadline: Deadline, *, commit: bool) -> None:
        """Commit or abort the transaction.

        Raises:
            TransactionError: see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`.
            ProducerClosed: the driver is closed.
        """
        what = f"the transaction could not be {'committed' if commit else 'aborted'}"

        def end(seconds: float) -> None:
            if commit:
                self._handle.client.commit_transaction(seconds)
            else:
                self._handle.client.abort_transaction(seconds)

        self._reports.ending_thread = threading.get_ident()
        try:
            if not commit:
                self._wait_for_brokers(deadline)
                self._health.purge_reason = (
                    self._handle.log.transaction_error or "its transaction was aborted"
                )
            is_answered = self._persist(end, deadline, what)
        except TransactionError as error:
            if commit and type(error) is TransactionError:
                raise TransactionOutcomeUnknown(f"the commit was requested, but {error}") from error
            raise
        finally:
            self._reports.ending_thread = None
            self._reports.report()
        if not is_answered:
            if commit:
                raise TransactionOutcomeUnknown(
                    "the commit was requested, but no broker said whether it was done"
                )
            raise TransactionError(f"{what}: there was no answer")
        self._state.is_open = False
        if self._state.has_gap:
            # In the next transaction, records for the partition would fail, some of them only after
            # delivery_timeout. tests/kafka/test_transactions.py::
            # test_the_transaction_after_a_refused_record_is_committed notices a change.
            self._health.give_up(
                SendProducerError(
                    "a record failed in a transaction, after which librdkafka cannot send further "
                    "records for the same partition"
                )
            )
        elif self._state.has_dropped:
            # If the broker has such a record, because only the answer was lost, it would take the
            # next record for a repetition, acknowledge it, and not write it.
            # tests/kafka/test_transactions_on_the_wire.py::
            # test_an_aborted_record_does_not_hide_the_next_one notices a change.
            self._health.give_up(
                SendProducerError(
                    "librdkafka dropped records of an aborted transaction, and would use their "
                    "sequence numbers again, even if a broker has written the records"
                )
            )

    def _wait_for_brokers(self, deadline: Deadline) -> None:
        """Wait until the brokers know of a transaction that has records.

        While a coordinator is still ending the previous transaction, it makes librdkafka retry the
        request that registers partitions. If an abort overtakes that request, the coordinator
        answers INVALID_TXN_STATE, which breaks the client.

        Raises:
            ProducerClosed: the driver is closed.
        """
        handle = self._handle
        patience = Deadline(waits.FINISH_SECONDS)
        while (
            not self._state.is_known_to_brokers
            and not self._handle.log.transaction_error
            and not deadline.is_over
            and not patience.is_over
        ):
            with handle.call():
                if not len(handle.client):
                    return
                self._reports.poll(_PAUSE_SECONDS)
            self._reports.report()

    def _persist(self, call: Callable[[float], object], deadline: Deadline, what: str) -> bool:
        """Call the client again as long as its error is retriable.

        Args:
            call: calls the client, which waits for the given seconds.
            deadline: when to stop.
            what: what could not be done, for messages.

        Returns:
            Whether there was an answer in time.

        Raises:
            SendProducerError: the client failed, or the driver is closed.
        """
        while True:
            try:
                with self._handle.call():
                    call(waits.SLICE_SECONDS)
            except KafkaException as failure:
                if not failure.args[0].retriable() or self._handle.closing.is_set():
                    raise self._error(failure, what) from harmless_failure(failure)
            except _NoAnswerError:
                return False
            else:
                return True
            if deadline.is_over:
                return False
            # If librdkafka still works on the call of an earlier slice, it refuses the next one at
            # once, with a retriable error. Without a pause, this loop would spin.
            self._handle.closing.wait(_PAUSE_SECONDS)

    def _call_on_thread(
        self, call: Callable[[], object], seconds: float, deadline: Deadline
    ) -> None:
        """Call the client on another thread, because nothing bounds how long the call takes.

        Raises:
            _NoAnswerError: ``seconds`` have passed, the deadline has come, or the driver is closed.
                The thread stays in the call until librdkafka ends it.
            TransactionError: the system can start no thread.
            BaseException: the exception of the call.
        """
        patience = Deadline(seconds)
        ended = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as failure:  # noqa: BLE001  # raised again by the caller
                failures.append(failure)
            finally:
                ended.set()

        if start_thread(run, name="librdkafka-offsets") is None:
            raise TransactionError(f"the offsets were not sent: {NO_THREAD}")
        while not ended.wait(waits.SLICE_SECONDS):
            if deadline.is_over or patience.is_over or self._handle.closing.is_set():
                raise _NoAnswerError
        if failures:
            raise failures[0]

    def _error(self, failure: KafkaException, what: str) -> SendProducerError:
        """Translate an exception of a transaction's call."""
        error = failure.args[0]
        if self._handle.closing.is_set():
            return ProducerClosed("the producer is closed")
        if error.code() in FENCED:
            return self._state.fenced(error)
        if error.txn_requires_abort():
            return TransactionAborted(f"{what}: {text_of(error)}")
        return TransactionError(f"{what}: {text_of(error)}")
