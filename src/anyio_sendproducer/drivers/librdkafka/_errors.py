"""librdkafka's error codes, and how its errors become errors of this package.

confluent-kafka passes a ``KafkaError`` to callbacks, and raises a ``KafkaException`` with a
``KafkaError`` in it.
"""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from ..._exceptions import DeliveryError, Persistence, RecordRejected, SendProducerError
from ..._failures import delivery_error, not_sent
from ..._records import ProducerRecord
from ..._shown import harmless, one_line

__all__ = [
    "DELETED_TOPIC",
    "FENCED",
    "LOGIN_REFUSED",
    "PURGED",
    "REFUSALS",
    "UNKNOWN_TOPIC",
    "UNREACHABLE",
    "LoginRefused",
    "NotReached",
    "exception_of",
    "harmless_failure",
    "is_out_of_resources",
    "not_taken",
    "not_written",
    "rejected",
    "text_of",
    "text_of_failure",
    "translated",
]

#: A broker refused the record, or librdkafka refused it without sending it. An earlier attempt to
#: send the same record may have been written. librdkafka knows whether that is possible, but
#: confluent-kafka does not expose it.
REFUSALS: Final = frozenset(
    {
        KafkaError._INVALID_ARG,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.UNSUPPORTED_VERSION,
    }
)

#: The topic or the partition does not exist. If a broker answers a request with this error,
#: librdkafka retries. If the metadata lack the topic or the partition, it reports the error.
UNKNOWN_TOPIC: Final = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)

#: The errors of records whose topic was deleted. With the last two, a request may have been in
#: flight.
DELETED_TOPIC: Final = UNKNOWN_TOPIC | {KafkaError._DESTROY, KafkaError._DESTROY_BROKER}

#: The client dropped the record, because the driver asked for it or because of another failure.
PURGED: Final = frozenset({KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE})

#: With a transactional id: the brokers no longer accept this producer, because another producer
#: took over or the transaction took too long.
FENCED: Final = frozenset(
    {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
)

#: No connection to a broker.
UNREACHABLE: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._BAD_MSG,  # for example an answer longer than receive.message.max.bytes
        KafkaError._RESOLVE,
        KafkaError._SSL,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    }
)

#: No connection to a broker, and another attempt would not help.
LOGIN_REFUSED: Final = frozenset(
    {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}
)


class LoginRefused(SendProducerError):
    """A broker refuses this client's credentials or certificate, and will refuse them again."""


class NotReached(Exception):
    """No broker answered before the deadline. The message has the reasons, as far as they are
    known."""


def text_of(error: Any) -> str:
    """Return the text of a ``KafkaError``, on one line."""
    return one_line(error.str())


def text_of_failure(failure: Exception) -> str:
    """Return the text of any exception that the client raises, on one line."""
    first = failure.args[0] if failure.args else failure
    return text_of(first) if isinstance(first, KafkaError) else one_line(failure)


def is_out_of_resources(failure: Exception) -> bool:
    """Return whether the client raised this exception because the system has too little memory, or
    too few threads. Then the settings may be right."""
    first = failure.args[0] if failure.args else None
    return isinstance(first, KafkaError) and first.code() == KafkaError._CRIT_SYS_RESOURCE


def _on_one_line(error: Any) -> Any:
    """Return a ``KafkaError`` like this one whose text is one line."""
    if str(error).isprintable():
        return error
    return KafkaError(
        error.code(), text_of(error), error.fatal(), error.retriable(), error.txn_requires_abort()
    )


def exception_of(error: Any) -> KafkaException:
    """Make a ``KafkaError`` an exception whose text is one line."""
    return KafkaException(_on_one_line(error))


def harmless_failure(failure: Exception) -> Exception:
    """Escape control characters in an exception of the client, as :func:`harmless` does.

    Returns:
        The same exception.
    """
    if isinstance(failure, KafkaException):
        failure.args = tuple(map(_on_one_line, failure.args))
    return harmless(failure)


def translated(error: Any) -> SendProducerError:
    """Translate a ``KafkaError``; it becomes the cause."""
    translation = SendProducerError(f"{error.name()}: {text_of(error)}")
    translation.__cause__ = exception_of(error)
    return translation


def rejected(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> RecordRejected:
    """Make the error of a record that a broker, or the client, does not accept."""
    return delivery_error(RecordRejected, message, record, Persistence.NOT_PERSISTED, cause)


def not_written(record: ProducerRecord[Any, Any], reason: str, error: Any) -> DeliveryError:
    """Make the error of a record that was not written, and that may be sent again."""
    return not_sent(record, f"the record was not written: {reason}", exception_of(error))


def not_taken(record: ProducerRecord[Any, Any]) -> DeliveryError:
    """Make the error of a record that was submitted after the client was closed."""
    return not_sent(record, "the record was not sent: the client is closed")
