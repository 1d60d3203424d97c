"""kafka-python's errors, translated into the package's own."""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import os
import re
import traceback
from typing import Any, Final

import kafka.errors as kafka_errors

from ..._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    RecordRejected,
    SendProducerError,
    discreet,
)
from ..._failures import CLOSED_TOO_EARLY, delivery_error
from ..._records import ProducerRecord
from ..._shown import harmless, one_line

__all__ = [
    "FENCED",
    "OF_EVERYTHING",
    "OF_ONE_RECORD",
    "RECOVERED",
    "REFUSALS",
    "ClosedWhileOpening",
    "GivenUp",
    "LoginRefused",
    "NotReached",
    "RefusedLater",
    "address_of",
    "client_words",
    "given_up",
    "is_metadata_missing",
    "no_metadata",
    "not_acknowledged",
    "not_taken",
    "rejected",
    "text_of",
    "translated",
]


#: Kafka answers with these for a batch that it did not write and will not write.
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

#: The idempotent client recovers from these with a new epoch (KIP-360) if the brokers are 2.5 or
#: later. With older brokers 3.0.12 never gets another producer id and hangs.
RECOVERED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
)

#: Refusals that single records of a batch cause.
OF_ONE_RECORD: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
)

#: Refusals of the client, whatever it sends.
OF_EVERYTHING: Final[tuple[type[Exception], ...]] = (
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailedError,
    kafka_errors.UnsupportedVersionError,
)

#: A broker answers with these if another producer took over. The first can also mean that the
#: transaction took too long; 3.0.12 finds out which if the brokers are 2.7 or later.
FENCED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.ProducerFencedError,
)


#: The module in which 3.0.12 waits for metadata. It waits for records in other modules.
_PRODUCER: Final = "kafka.producer.kafka"

#: The prefix that kafka-python puts before a broker's message.
_BOILERPLATE: Final = re.compile(r"^(\[Error \d+\] |\w+Error: )+")

#: The text of an error of the system, such as "111 ECONNREFUSED".
_ERROR_NUMBER: Final = re.compile(r"(\d+) E[A-Z0-9]+")


class ClosedWhileOpening(Exception):
    """The driver was closed while it was opening."""


class LoginRefused(Exception):
    """Each broker was tried, and another attempt cannot help. The cause is the client's error."""


class NotReached(kafka_errors.KafkaTimeoutError):
    """No broker answered before the deadline. The message has the reason for each address."""


class RefusedLater(Exception):
    """A broker refused a batch that had been sent before. An earlier attempt may have been written.

    Args:
        refusal: the client's error.
    """

    def __init__(self, refusal: Exception) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class GivenUp(Exception):
    """The records of a batch left the client without an answer.

    Args:
        message: why.
        gone: the topic or the partition does not exist any more, or this client may not use the
            topic any more; otherwise the batch was too old.
        sent: the batch was sent, and may have been written.
    """

    def __init__(self, message: str, *, gone: bool, sent: bool) -> None:
        super().__init__(message)
        self.gone = gone
        self.sent = sent


def address_of(broker: Any) -> str:
    """Return the address of a broker on one line: the host that a broker advertises may be any
    text."""
    return f"{one_line(broker.host)}:{broker.port}"


def client_words(error: Exception) -> str:
    """Return the message of a client's error on one line, without kafka-python's prefix.

    For an error number of the operating system, return the text of that error.
    """
    words = one_line(_BOILERPLATE.sub("", _text(error)))
    number = _ERROR_NUMBER.fullmatch(words)
    return words if number is None else os.strerror(int(number[1]))


def _text(error: BaseException) -> str:
    # If a broker sends no message, kafka-python passes None to the error.
    is_empty = isinstance(error, kafka_errors.KafkaError) and error.args == (None,)
    return str(error).removesuffix(": None") if is_empty else str(error)


def text_of(error: BaseException) -> str:
    """Return the text of an error, on one line."""
    return one_line(_text(error))


def is_metadata_missing(error: BaseException) -> bool:
    """Return whether ``send`` or ``partitions_for`` raised this error because the client did not
    get the topic's metadata within ``max_block_ms``.

    The ``send`` of a user's own class may raise the same error after the client got the record, for
    example if it waits for the record.
    """
    is_timeout = isinstance(error, kafka_errors.KafkaTimeoutError)
    return is_timeout and _modules_of(error)[-1:] == [_PRODUCER]


def translated(cause: Exception, message: str) -> SendProducerError:
    """Make an error of this package, with the client's error as its cause."""
    error = SendProducerError(message)
    error.__cause__ = harmless(cause)
    return error


def no_metadata(topic: str, cause: Exception) -> SendProducerError:
    """Make the error of ``partitions_for``, for any cause except missing metadata."""
    return translated(cause, f"no metadata for topic {topic!r}: {text_of(cause)}")


def rejected(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> RecordRejected:
    """Make the error of a record that was refused and is not written."""
    cause = None if cause is None else harmless(cause)
    return delivery_error(RecordRejected, message, record, Persistence.NOT_PERSISTED, cause)


def given_up(record: ProducerRecord[Any, Any], error: GivenUp) -> DeliveryError:
    """Make the error of a record that left the client without an answer."""
    end = "it may be written nevertheless" if error.sent else "the record was not written"
    persistence = Persistence.POSSIBLY_PERSISTED if error.sent else Persistence.NOT_PERSISTED
    kind = DeliveryTimeout if not error.gone else DeliveryError if error.sent else RecordRejected
    return delivery_error(kind, f"{error}; {end}", record, persistence, error)


def not_acknowledged(record: ProducerRecord[Any, Any], cause: Exception) -> DeliveryError:
    """Make the error of a record that the client had taken: it may have been written."""
    is_closed = isinstance(cause, kafka_errors.IllegalStateError) and "closed" in str(cause)
    said = CLOSED_TOO_EARLY if is_closed else text_of(cause)
    return delivery_error(
        DeliveryError,
        f"the record was not acknowledged: {said}",
        record,
        Persistence.POSSIBLY_PERSISTED,
        harmless(cause),
    )


def not_taken(record: ProducerRecord[Any, Any], cause: BaseException) -> DeliveryError:
    """Make the error of a record for which ``send()`` raised.

    If kafka-python's own checks raised, the record is not written. Otherwise it may be in the
    client's buffer, because a user's ``send`` may raise after it called kafka-python's ``send``.
    """
    checked = _is_raised_by_kafka_python(cause)
    if checked and isinstance(
        cause, (kafka_errors.MessageSizeTooLargeError, ValueError, TypeError)
    ):
        is_large = isinstance(cause, kafka_errors.MessageSizeTooLargeError)
        hint = " (properties={'max.request.size': ...}, 1 MiB by default)" if is_large else ""
        return rejected(record, f"kafka-python refused the record: {text_of(cause)}{hint}", cause)
    closed = checked and isinstance(cause, kafka_errors.IllegalStateError)
    error = delivery_error(
        DeliveryError,
        f"kafka-python did not take the record: {text_of(cause)}",
        record,
        Persistence.NOT_PERSISTED if closed else Persistence.POSSIBLY_PERSISTED,
        harmless(cause),
    )
    said = f"kafka-python did not take the record: {type(cause).__name__}"
    # The text of another `send` may repeat the record.
    return error if checked else discreet(error, said)


def _is_raised_by_kafka_python(error: BaseException) -> bool:
    """Return whether kafka-python's code raised an error, or called the code that did.

    The ``send`` of a user's subclass of KafkaProducer may raise anything itself.
    """
    return any(module.startswith("kafka.") for module in _modules_of(error))


def _modules_of(error: BaseException) -> list[str]:
    """Return the names of the modules through which an error came. The last one raised it."""
    frames = traceback.walk_tb(error.__traceback__)
    return [str(frame.f_globals.get("__name__")) for frame, _ in frames]
