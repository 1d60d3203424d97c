"""Transactions of kafka-python's producer, with a deadline for each step.

``commit_transaction()``, ``abort_transaction()`` and ``send_offsets_to_transaction()`` of 3.0.12
wait without a bound, and ``close()`` does not end them. So this module calls the client's
transaction manager, which returns a result to wait for.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import kafka.errors as kafka_errors
from kafka import structs
from kafka.structs import OffsetAndMetadata, TopicPartition

from ..._exceptions import (
    ProducerClosed,
    ProducerFenced,
    ProducerStartError,
    SendProducerError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from ..._records import ConsumerGroupMetadata
from ..._settings import ProducerSettings
from ..._shown import harmless
from .._protocols import ConsumedOffset, Deadline
from ._errors import FENCED, client_words
from ._patches import drop_batches, forget_offsets

__all__ = ["Transactions"]

#: Milliseconds between two looks at the deadline while the transaction coordinator has not
#: answered.
_SLICE_MS: Final = 50

#: Seconds between two looks at a client that is not ready for the next step.
_PAUSE: Final = 0.005


class Transactions:
    """The transactions of one client.

    Args:
        settings: of the producer, with a ``transactional_id``.
        producer: a KafkaProducer.
        manager: its transaction manager.
        client: its network client.
        closing: set when the driver is closed; each wait then ends.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        producer: Any,
        manager: Any,
        client: Any,
        closing: threading.Event,
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._manager = manager
        self._client = client
        self._closing = closing
        self._has_begun = False
        self._began_at = 0.0
        #: Why a broker refused this producer's epoch. None again when the coordinator has answered.
        self._refused_epoch: Exception | None = None

    @property
    def is_fenced(self) -> bool:
        """Whether another producer took over the ``transactional_id``."""
        return isinstance(self._manager.last_error, FENCED)

    def note_failure(self, error: Exception) -> None:
        """Note why a record failed. A refused epoch means that another producer took over, or that
        the transaction took too long. The coordinator's next answer says which."""
        if isinstance(error, FENCED):
            self._refused_epoch = error

    def doubt(self) -> ProducerFenced | None:
        """Return an error if another producer may have taken over and no coordinator has denied
        it."""
        if self._refused_epoch is None:
            return None
        error = ProducerFenced(
            "another producer may have taken over transactional_id "
            f"{self._settings.transactional_id!r}: a broker refused this producer's epoch, and the "
            "transaction coordinator has not answered since"
        )
        error.__cause__ = harmless(self._refused_epoch)
        return error

    def start(self, deadline: float) -> None:
        """Abort what an earlier producer with this ``transactional_id`` left open, and fence it.

        Args:
            deadline: in seconds of :func:`time.monotonic`.

        Raises:
            ProducerStartError: the cluster did not answer in time, or refused; or the driver was
                closed.
            ProducerFenced: another producer took over meanwhile.
        """
        name = self._settings.transactional_id
        while True:
            try:
                self._producer.init_transactions()
            except kafka_errors.KafkaTimeoutError:
                # With max_block_ms=0 it never waits; the next call continues this one.
                if time.monotonic() >= deadline:
                    raise ProducerStartError(
                        f"transactional_id {name!r} could not be initialized within "
                        f"{self._settings.start_timeout:g} s (start_timeout)"
                    ) from None
                if self._closing.wait(_PAUSE):
                    raise ProducerStartError("the producer was closed while it was starting") from (
                        None
                    )
            except FENCED as error:
                raise self.fenced(error) from harmless(error)
            except Exception as error:
                harmless(error)
                raise ProducerStartError(
                    f"transactional_id {name!r} could not be initialized: {client_words(error)}"
                ) from error
            else:
                return

    def begin(self) -> None:
        """Begin a transaction; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        if self._has_begun:
            return
        try:
            self._producer.begin_transaction()
        except Exception as error:
            raise self._failure(error, "the transaction could not be begun") from error
        forget_offsets(self._manager)
        self._began_at = time.monotonic()
        self._has_begun = True

    def send_offsets(
        self, offsets: Sequence[ConsumedOffset], group: ConsumerGroupMetadata, deadline: Deadline
    ) -> None:
        """Send offsets; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        what = f"the offsets of group {group.group_id!r} could not be sent"
        try:
            result = self._manager.send_offsets_to_transaction(
                {
                    TopicPartition(one.topic, one.partition): OffsetAndMetadata(
                        one.offset, one.metadata, one.leader_epoch
                    )
                    for one in offsets
                },
                cast("Any", structs).ConsumerGroupMetadata(
                    group.group_id, group.generation_id, group.member_id, group.group_instance_id
                ),
            )
            self._client.wakeup()
            is_answered = self._wait(result, deadline)
        except Exception as error:
            raise self._failure(error, what) from error
        if not is_answered:
            raise TransactionError(f"{what}: there was no answer")

    def end(self, deadline: Deadline, *, commit: bool) -> None:
        """End the transaction; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        manager = self._manager
        what = f"the transaction could not be {'committed' if commit else 'aborted'}"
        while manager.is_bumping_epoch():
            if deadline.is_over or self._closing.wait(_PAUSE):
                # The commit was not requested, so the next client's epoch aborts the transaction.
                failed = TransactionAborted if commit else TransactionError
                raise failed(f"{what}: the client is getting another producer epoch")
        try:
            result = manager.begin_commit() if commit else manager.begin_abort()
        except kafka_errors.KafkaError as error:
            if manager.has_error():
                failure = self._failure(error, what)
                if commit and type(failure) is TransactionError:
                    failure = TransactionAborted(str(failure))  # the commit was not requested
                raise failure from error
            # The client had to get another epoch, so the brokers abort the open transaction. Some
            # records may have come after the client dropped the others.
            drop_batches(self._producer, kafka_errors.TransactionAbortedError())
            self._has_begun = False
            self._refused_epoch = None
            if commit:
                raise TransactionAborted(f"{what}: the client lost its producer epoch") from error
            return
        self._client.wakeup()
        try:
            is_answered = self._wait(result, deadline)
        except Exception as error:
            failure = self._failure(error, what)
            if commit and type(failure) is TransactionError:
                is_answered = False
            else:
                raise failure from error
        if not is_answered:
            if commit:
                raise TransactionOutcomeUnknown(
                    "the commit was requested, but no broker said whether it was done"
                )
            raise TransactionError(f"{what}: there was no answer")
        self._has_begun = False
        self._refused_epoch = None

    def fenced(self, error: Exception) -> ProducerFenced:
        """Make the error of a producer that another one fenced off."""
        message = f"another producer took over transactional_id {self._settings.transactional_id!r}"
        if self._has_begun:
            # The coordinator sends the same error when a transaction has timed out.
            timeout_ms = self._manager.transaction_timeout_ms
            if time.monotonic() - self._began_at > timeout_ms / 1000:
                message += (
                    f", or its transaction took longer than transaction.timeout.ms={timeout_ms}"
                )
        fenced = ProducerFenced(message)
        fenced.__cause__ = harmless(error)
        return fenced

    def _wait(self, result: Any, deadline: Deadline) -> bool:
        """Wait for an answer.

        Returns:
            False if there was none before the deadline, or before the driver was closed.

        Raises:
            Exception: the answer, if it is an error.
        """
        while not result.wait(_SLICE_MS):
            if deadline.is_over or self._closing.is_set():
                return False
        return True

    def _failure(self, error: Exception, what: str) -> SendProducerError:
        manager = self._manager
        # The exception itself may only say that there was an error before.
        cause = manager.last_error or error
        harmless(error)
        if self._closing.is_set():
            return ProducerClosed("the producer is closed")
        if isinstance(cause, FENCED):
            return self.fenced(cause)
        if manager.has_abortable_error():
            return TransactionAborted(f"{what}: {client_words(cause)}")
        return TransactionError(f"{what}: {client_words(cause)}")
