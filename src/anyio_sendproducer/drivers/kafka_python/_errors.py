"""kafka-python's errors, translated into the product's own."""

# kafka-python has no annotations. Its values have unknown types, and are cast where they leave.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import logging
import re
import threading
from typing import Any, Final

import kafka.errors as kafka_errors

from ..._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    RecordRejected,
    SendProducerError,
)
from ..._failures import delivery_error
from ..._records import ProducerRecord
from ..._shown import harmless, one_line
from ._stalled import GivenUp

__all__ = [
    "CONNECTION",
    "FENCED",
    "OF_EVERYTHING",
    "OF_ONE_RECORD",
    "RECOVERED",
    "REFUSALS",
    "ClosedWhileOpening",
    "LastErrorHandler",
    "LoginRefused",
    "given_up",
    "is_metadata_missing",
    "no_metadata",
    "not_acknowledged",
    "not_taken",
    "rejected",
    "translated",
]


#: Kafka answers these for a batch that it did not and will not write.
REFUSALS: Final[tuple[type[Exception], ...]] = (
    kafka_errors.AuthorizationError,
    kafka_errors.CorruptRecordError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.PolicyViolationError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.UnsupportedCompressionTypeError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.UnsupportedVersionError,
)

#: From these the idempotent client recovers by itself, with a new epoch (KIP-360), where the
#: brokers are of 2.5 or later. With older ones 3.0.12 never gets a producer id again and hangs.
RECOVERED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
)

#: Refusals of which single records of a batch are the reason.
OF_ONE_RECORD: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
)

#: Refusals of this client whatever it sends.
OF_EVERYTHING: Final[tuple[type[Exception], ...]] = (
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailedError,
    kafka_errors.UnsupportedVersionError,
)

#: By these a broker says that another producer took over. The first of them can also mean that the
#: transaction took too long; 3.0.12 finds out which, where brokers are of 2.7 or later.
FENCED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.ProducerFencedError,
)


#: How kafka-python's messages begin: the connection, as it looks to a debugger.
CONNECTION: Final = re.compile(r"<\w*Connection [^>]*>:\s*")


class LastErrorHandler(logging.Handler):
    """Keeps the client's last error in this thread: its only word of why it did not connect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._thread = threading.get_ident()
        self.text = ""
        #: Unset when time is up: what it says of the attempt that it breaks off then says nothing.
        self.listens = True

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's message."""
        message = record.getMessage()
        # That says no more than that time is up.
        if (
            self.listens
            and record.thread == self._thread
            and not message.startswith("Bootstrap failed")
        ):
            self.text = message


class ClosedWhileOpening(Exception):
    """Closed while it was opening."""


class LoginRefused(Exception):
    """No broker lets us in, and none will; with the client's own error as its cause."""


def is_metadata_missing(error: BaseException) -> bool:
    """Whether ``send`` or ``partitions_for`` did not know the topic within ``max_block_ms``."""
    return isinstance(error, kafka_errors.KafkaTimeoutError)


def translated(cause: Exception, message: str) -> SendProducerError:
    error = SendProducerError(message)
    error.__cause__ = harmless(cause)
    return error


def no_metadata(topic: str, cause: Exception) -> SendProducerError:
    """``partitions_for`` raised, and not for want of time."""
    return translated(cause, f"the metadata of topic {topic!r} can't be had: {one_line(cause)}")


def rejected(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> RecordRejected:
    cause = None if cause is None else harmless(cause)
    return delivery_error(RecordRejected, message, record, Persistence.NOT_PERSISTED, cause)


def given_up(record: ProducerRecord[Any, Any], error: GivenUp) -> DeliveryError:
    """The outcome of a record that left the client without an answer."""
    end = "it may be written all the same" if error.sent else "the record was not written"
    persistence = Persistence.POSSIBLY_PERSISTED if error.sent else Persistence.NOT_PERSISTED
    kind = DeliveryTimeout if not error.gone else DeliveryError if error.sent else RecordRejected
    return delivery_error(kind, f"{error}; {end}", record, persistence, error)


def not_acknowledged(record: ProducerRecord[Any, Any], cause: Exception) -> DeliveryError:
    """The client failed the record when it had it: nobody can say what was written."""
    is_closed = isinstance(cause, kafka_errors.IllegalStateError) and "closed" in str(cause)
    said = "the client was closed before a broker had answered" if is_closed else one_line(cause)
    return delivery_error(
        DeliveryError,
        f"the record was not acknowledged: {said}",
        record,
        Persistence.POSSIBLY_PERSISTED,
        harmless(cause),
    )


def not_taken(record: ProducerRecord[Any, Any], cause: BaseException) -> DeliveryError:
    """``send()`` raised. What it checks first was refused; of the rest it is not sure whether the
    record was in the client's buffer by then, and of what a ``send`` of somebody else's raises
    neither."""
    checked = _is_raised_by_kafka_python(cause)
    if checked and isinstance(
        cause, (kafka_errors.MessageSizeTooLargeError, ValueError, TypeError)
    ):
        is_large = isinstance(cause, kafka_errors.MessageSizeTooLargeError)
        hint = " (properties={'max.request.size': ...}, 1 MiB by default)" if is_large else ""
        return rejected(record, f"kafka-python refused the record: {one_line(cause)}{hint}", cause)
    closed = checked and isinstance(cause, kafka_errors.IllegalStateError)
    return delivery_error(
        DeliveryError,
        f"kafka-python did not take the record: {one_line(cause)}",
        record,
        Persistence.NOT_PERSISTED if closed else Persistence.POSSIBLY_PERSISTED,
        harmless(cause),
    )


def _is_raised_by_kafka_python(error: BaseException) -> bool:
    """Whether it came out of kafka-python's code, or of what that called; a subclass of the user's
    own may raise whatever it likes when its record is sent."""
    traceback = error.__traceback__
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__")).startswith("kafka."):
            return True
        traceback = traceback.tb_next
    return False
