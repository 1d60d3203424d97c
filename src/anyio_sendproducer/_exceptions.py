"""The errors of the package, all in one tree.

::

    SendProducerError
    ├── SettingsError            (also ValueError)  a setting is wrong or contradicts another
    ├── DiscoveryError                              the brokers' addresses could not be found
    ├── ProducerStartError                          no client could start in ``start_timeout``
    ├── ProducerClosed           (also anyio.ClosedResourceError)  used after it was closed
    ├── ProducerBroken           (also anyio.BrokenResourceError)  it can never send again
    ├── ProducerMisused          (also RuntimeError)  wrong loop, thread, process or task
    ├── DeliveryError                               one record was not delivered
    │   ├── DeliveryTimeout                         no outcome within its timeout
    │   ├── RecordRejected                          too large, invalid, unknown topic, not allowed
    │   └── SerializationFailed                     a serializer failed, or its result is wrong
    ├── MultiDeliveryError                          some of several records were not delivered
    ├── UndeliveredRecords                          failures nobody awaited, at the end of the scope
    └── TransactionError                            a transaction could not be begun, used or ended
        ├── TransactionAborted                      it was aborted; its records are never visible
        ├── TransactionOutcomeUnknown               the answer to the commit was lost
        └── ProducerFenced       another producer took over the ``transactional_id``

No error of the client library is raised to the user: the driver translates it, and usually keeps
the original as ``__cause__``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from ._shown import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._records import MultiResultPart, ProducerRecord

__all__ = [
    "DeliveryError",
    "DeliveryTimeout",
    "DiscoveryError",
    "MultiDeliveryError",
    "Persistence",
    "ProducerBroken",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerMisused",
    "ProducerStartError",
    "RecordRejected",
    "SendProducerError",
    "SerializationFailed",
    "SettingsError",
    "SettingsWarning",
    "TransactionAborted",
    "TransactionError",
    "TransactionOutcomeUnknown",
    "UndeliveredRecords",
]


class Persistence(enum.Enum):
    """Whether a record is in Kafka's log, and therefore whether sending the record again can write
    it twice.

    The three values are librdkafka's (``rd_kafka_msg_status_t``).
    """

    NOT_PERSISTED = "not persisted"
    """The record is not in the log and never will be. Sending the record again is safe."""

    POSSIBLY_PERSISTED = "possibly persisted"
    """The client had the record, and the outcome is unknown. The record may be in the log, now or
    later. Sending the record again may write it twice."""

    PERSISTED = "persisted"
    """A broker acknowledged the record."""


class SendProducerError(Exception):
    """The base class of the exceptions of this package, except :class:`SettingsWarning` and the
    exceptions of the test kit (:mod:`anyio_sendproducer.testing`).

    The message may contain text from a broker, a resolver or a serializer. Control characters are
    escaped, so the message is one line.
    """

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str):
            args = (printable(args[0]), *args[1:])
        super().__init__(*args)


class SettingsError(SendProducerError, ValueError):
    """A setting is wrong, unknown or missing, or contradicts another setting. The message usually
    names the setting."""


class SettingsWarning(UserWarning):
    """A setting is accepted, but is probably a mistake. The message names the setting and says
    why."""


class DiscoveryError(SendProducerError):
    """The addresses of the brokers could not be looked up."""


class ProducerStartError(SendProducerError):
    """The producer could not start, for example because no broker answered within
    ``start_timeout``. The same error is raised if ``enrich`` or the look-up of the addresses did
    not finish within this time.

    If no broker answered, the message names the addresses. If the client reported an error,
    ``__cause__`` is the client's error or an error with its text.
    """


class ProducerClosed(SendProducerError, anyio.ClosedResourceError):
    """The producer was used after it began to close, or after its scope ended.

    A :class:`ProducerService` also raises this error if it has not started, and a
    :class:`TransactionPool` if it is opened a second time.
    """


class ProducerBroken(SendProducerError, anyio.BrokenResourceError):
    """The producer can never send again. ``__cause__`` is the error that broke it."""


class ProducerMisused(SendProducerError, RuntimeError):
    """The producer was used on another event loop, in another thread or in a forked process.

    This error is also raised in the following cases:

    - Different tasks entered and left the block of a producer, a flow or a pool.
    - A :class:`ProducerService` is used on Trio, or after the event loop that started it has ended.
    - A :class:`TransactionPool` is used before its block is entered.
    - A finalizer or a signal handler interrupted the producer's own code and called the producer.
    - The ``inject`` method of an observer sends records, and is called for these records without
      end.
    """


class DeliveryError(SendProducerError):
    """One record was not delivered.

    Attributes:
        record: the :class:`ProducerRecord`.
        persistence: whether the record may have been written despite the error.
    """

    def __init__(
        self,
        message: str,
        *,
        record: ProducerRecord[Any, Any],
        persistence: Persistence,
    ) -> None:
        super().__init__(message)
        self.record: ProducerRecord[Any, Any] = record
        self.persistence: Persistence = persistence

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ would call the class with the message alone. The third item
        # has the notes.
        arguments = (type(self), str(self), self.record, self.persistence)
        return (_remake, arguments, self.__dict__)

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def summary(self) -> str:
        """The error in one line: class, message and persistence."""
        return _summary(self, str(self))


class DeliveryTimeout(DeliveryError):
    """The record had no outcome within ``delivery_timeout``, or within the ``timeout`` of its call.

    ``persistence`` is ``NOT_PERSISTED`` if the client did not have the record, or is known not to
    have written it. Otherwise it is ``POSSIBLY_PERSISTED``: the record may still be written after
    this error. If the client could not connect to a broker, the message usually says to which
    broker and why, and ``__cause__`` is the error of this attempt.
    """


class RecordRejected(DeliveryError):
    """The record was refused, because it is invalid or too large, its topic or partition does not
    exist, or the ``partitioner`` failed. A broker may also refuse the record for another reason,
    for example because the producer may not write to the topic. The persistence is always
    ``NOT_PERSISTED``.

    With the kafka-python driver and without a transaction, the other records of its batch are
    usually delivered. If single records are at fault or the batch is too large, the client divides
    the batch until the rejected record is alone. If the reason applies to the whole batch, for
    example a missing permission, all records of the batch are rejected.

    The librdkafka driver does not divide batches. With this driver, the other records of the batch
    also fail. They are ``NOT_PERSISTED`` if librdkafka had no time to send them again,
    otherwise ``POSSIBLY_PERSISTED``.
    """


class SerializationFailed(DeliveryError):
    """The key or the value could not be serialized, or a serializer added an invalid header. The
    persistence is always ``NOT_PERSISTED``. ``__cause__`` is the exception of the serializer, if it
    raised one."""


def _remake(
    cls: type[DeliveryError],
    message: str,
    record: ProducerRecord[Any, Any],
    persistence: Persistence,
) -> DeliveryError:
    return cls(message, record=record, persistence=persistence)


class MultiDeliveryError(SendProducerError):
    """At least one of several records was not delivered.

    Attributes:
        parts: the outcome of each record, in the order of the call. The outcome is a
            :class:`MultiResultPart` if the record was delivered, otherwise a
            :class:`DeliveryError`.
        pass_through: the envelope's pass-through value; None for ``send_many``.
    """

    def __init__(
        self,
        parts: Sequence[MultiResultPart[Any, Any] | DeliveryError],
        pass_through: Any = None,
    ) -> None:
        super().__init__(parts, pass_through)
        self.parts: tuple[MultiResultPart[Any, Any] | DeliveryError, ...] = tuple(parts)
        self.pass_through: Any = pass_through

    @property
    def errors(self) -> tuple[DeliveryError, ...]:
        """The errors in ``parts``, in the order of the call."""
        return tuple(part for part in self.parts if isinstance(part, DeliveryError))

    def __str__(self) -> str:
        errors = self.errors
        return (
            f"{len(errors)} of {len(self.parts)} records were not delivered; "
            f"the first: {errors[0].summary}"
            if errors
            else f"0 of {len(self.parts)} records were not delivered"
        )


class UndeliveredRecords(SendProducerError):
    """Records failed and nobody awaited their outcome. Raised by :meth:`SendProducer.aclose` and
    :meth:`ProducerService.stop`, and when the producer's block ends without another exception.

    Attributes:
        count: the number of these records.
        errors: the :class:`DeliveryError` objects of these records, the oldest first; at most a
            thousand.
    """

    def __init__(self, errors: Sequence[DeliveryError], count: int) -> None:
        super().__init__(errors, count)
        self.errors: tuple[DeliveryError, ...] = tuple(errors)
        self.count: int = count

    def __str__(self) -> str:
        return undelivered_text(self, str)


class TransactionError(SendProducerError):
    """A transaction could not be begun, used or ended, or a record was sent outside a
    transaction."""


class TransactionAborted(TransactionError):
    """The transaction was aborted, or will be aborted before this ``transactional_id`` can be used
    again.

    Consumers with ``isolation.level=read_committed`` never see the records of the transaction, and
    the offsets of the transaction are not committed. It is safe to repeat the transaction. If a
    failed record was the reason, ``__cause__`` is the :class:`DeliveryError` of this record.
    """


class TransactionOutcomeUnknown(TransactionError):
    """The producer requested the commit, but got no answer. The transaction is committed or aborted
    as a whole. Before the producer's next transaction begins, the brokers finish the commit or
    abort the transaction.

    To find out whether the transaction is committed, look for its records. If the transaction used
    :meth:`Transaction.send_offsets`, read the group's committed offsets again and continue from
    there. The offsets were committed together with the records, or not at all.
    """


class ProducerFenced(TransactionError):
    """Another producer uses this ``transactional_id`` now. This producer can never send again.

    This error can also mean that the transaction took longer than ``transaction.timeout.ms``. The
    librdkafka driver does not find out which of the two happened. The kafka-python driver finds
    this out if a broker of version 2.7 or later refuses a record of the transaction, and the
    coordinator answers afterwards.

    The brokers have aborted the open transaction. But if the commit raised this error, the
    transaction may be committed: the request may have arrived before the other producer took over,
    and the answer may have been lost. :attr:`Transaction.state` is then ``UNKNOWN``.
    """


E = TypeVar("E", bound=SendProducerError)


def add_note(error: BaseException, note: str) -> None:
    """Do the same as ``BaseException.add_note``, which Python 3.10 does not have (PEP 678)."""
    error.__dict__.setdefault("__notes__", []).append(note)


def _summary(error: DeliveryError, text: str) -> str:
    return f"{type(error).__name__}: {text} [{error.persistence.value}]"


def undelivered_text(error: UndeliveredRecords, describe: Callable[[DeliveryError], str]) -> str:
    """Return the message of an error, which describes its first failure with ``describe``."""
    first = _summary(error.errors[0], describe(error.errors[0])) if error.errors else "none kept"
    return f"{error.count} record(s) failed and nobody awaited the outcome; the first: {first}"


def discreet(error: E, text: str) -> E:
    """Give an error a text for logs and spans, because its message may repeat the record.

    Returns:
        The same error.
    """
    error.__dict__["_discreet"] = text
    return error


def copy_of(error: E) -> E:
    """Copy an error that is raised more than once.

    ``raise`` writes the traceback and the context of one caller into the error: the next caller
    would see them. An error that an object keeps could also form a reference cycle with the frames
    in its traceback. So the object keeps the original, and each caller gets a copy.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.__dict__.update(error.__dict__)
    notes: list[str] | None = error.__dict__.get("__notes__")
    if notes is not None:
        copied.__dict__["__notes__"] = [*notes]
    copied.__cause__ = error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied
