"""The exceptions of the package, all in one tree.

::

    SendProducerError
    ├── SettingsError            (also ValueError)  a setting is wrong or contradicts another
    ├── DiscoveryError                              the brokers' addresses could not be found
    ├── ProducerStartError                          no producer came up within ``start_timeout``
    ├── ProducerClosed           (also anyio.ClosedResourceError)  used after it was closed
    ├── ProducerBroken           (also anyio.BrokenResourceError)  it can never send again
    ├── ProducerMisused          (also RuntimeError)  wrong loop, thread, process or task
    ├── DeliveryError                               one record was not delivered
    │   ├── DeliveryTimeout                         no answer within ``delivery_timeout``
    │   ├── RecordRejected                          too large, invalid, unknown topic, not allowed
    │   └── SerializationFailed                     a serializer raised, or gave no bytes
    ├── MultiDeliveryError                          some of several records were not delivered
    ├── UndeliveredRecords                          failures nobody awaited, at the end of the scope
    └── TransactionError                            a transaction was not committed
        ├── TransactionAborted                      it was aborted; nobody ever sees its records
        ├── TransactionOutcomeUnknown               the answer to the commit was lost
        └── ProducerFenced       another producer took over the ``transactional_id``

Errors of the client library never leave bare: its driver translates each at one seam and keeps the
original as ``__cause__``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from ._shown import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """What is known about a record's place in Kafka's log.

    The three values are librdkafka's (``rd_kafka_msg_status_t``): they decide whether sending the
    record once more can write it twice.
    """

    NOT_PERSISTED = "not persisted"
    """The record is not in the log and never will be. Sending it again is safe."""

    POSSIBLY_PERSISTED = "possibly persisted"
    """The record was handed to the client, and its fate is unknown: it may be in the log now or
    later. Sending it again may write it twice."""

    PERSISTED = "persisted"
    """A broker acknowledged the record."""


class SendProducerError(Exception):
    """The base of every exception of this package.

    Its message is one line: control characters in it are escaped, since it may repeat what a
    broker, a resolver or a serializer said.
    """

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str):
            args = (printable(args[0]), *args[1:])
        super().__init__(*args)


class SettingsError(SendProducerError, ValueError):
    """A setting is wrong, unknown, missing or contradicts another; the message names it."""


class SettingsWarning(UserWarning):
    """A setting is accepted, but is probably a mistake; the message names it and says why."""


class DiscoveryError(SendProducerError):
    """The addresses of the brokers could not be looked up."""


class ProducerStartError(SendProducerError):
    """The producer could not start: no broker answered within ``start_timeout``, or the client
    refused to be made. The message names the addresses; the client's error is ``__cause__``."""


class ProducerClosed(SendProducerError, anyio.ClosedResourceError):
    """The producer was used after it began to close, or after its scope ended."""


class ProducerBroken(SendProducerError, anyio.BrokenResourceError):
    """The producer can never send again; ``__cause__`` is what broke it."""


class ProducerMisused(SendProducerError, RuntimeError):
    """The producer was used from another event loop, another thread or a forked child; or another
    task left its block than the one that entered it."""


class DeliveryError(SendProducerError):
    """One record was not delivered.

    Attributes:
        record: the :class:`ProducerRecord` as it was sent.
        persistence: whether it may be in the log all the same.
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
        # Exception's own __reduce__ would call the class with the message alone.
        return (_remake, (type(self), str(self), self.record, self.persistence))

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def summary(self) -> str:
        """The error in one line, with its kind and the persistence."""
        return f"{type(self).__name__}: {self} [{self.persistence.value}]"


class DeliveryTimeout(DeliveryError):
    """The record had no outcome within ``delivery_timeout``.

    ``persistence`` is ``NOT_PERSISTED`` where the record was never handed to the client, otherwise
    ``POSSIBLY_PERSISTED``: the client may still write it after this error. Where the client could
    not connect to a broker, the message says to which and why, and ``__cause__`` is that error.
    """


class RecordRejected(DeliveryError):
    """The record was refused: it is invalid or too large, its topic or partition does not exist,
    or this producer may not write there. Always ``NOT_PERSISTED``.

    What else was in its batch is delivered, as long as the broker says which records of a batch are
    at fault, or that one is too large: then halves of it are sent until the culprit is alone. What
    is refused whatever is in it, as for want of permission, is rejected with all that is in it.
    With the driver ``"confluent"`` no batch is divided: what else was in it fails, not persisted.
    """


class SerializationFailed(DeliveryError):
    """The key or the value could not be turned into bytes. Always ``NOT_PERSISTED``; what the
    serializer raised is ``__cause__``."""


def _remake(
    cls: type[DeliveryError],
    message: str,
    record: ProducerRecord[Any, Any],
    persistence: Persistence,
) -> DeliveryError:
    return cls(message, record=record, persistence=persistence)


class MultiDeliveryError(SendProducerError):
    """At least one of several records was not delivered; the fate of each is in ``parts``.

    Attributes:
        parts: one entry for each record, in the order of the call: a :class:`MultiResultPart`
            where it was delivered, the :class:`DeliveryError` where it was not.
        pass_through: the envelope's pass-through value; None from ``send_many``.
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
        """The failures alone, in the order of the call."""
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
    """Records failed and nobody awaited their outcome: raised when the scope ends cleanly.

    Attributes:
        count: how many records failed so.
        errors: their :class:`DeliveryError` objects, oldest first; the first thousand of them
            where there are more.
    """

    def __init__(self, errors: Sequence[DeliveryError], count: int) -> None:
        super().__init__(errors, count)
        self.errors: tuple[DeliveryError, ...] = tuple(errors)
        self.count: int = count

    def __str__(self) -> str:
        first = self.errors[0].summary if self.errors else "none kept"
        return f"{self.count} record(s) failed and nobody awaited the outcome; the first: {first}"


class TransactionError(SendProducerError):
    """A transaction could not be begun, used or ended; or there was none where one is needed."""


class TransactionAborted(TransactionError):
    """The transaction was aborted, or will be before this ``transactional_id`` can be used again:
    no consumer with ``isolation.level=read_committed`` ever sees a record of it, and its offsets
    are not committed. Doing it all again is safe. Where a record's failure was the reason,
    ``__cause__`` is the :class:`DeliveryError`, which has the record."""


class TransactionOutcomeUnknown(TransactionError):
    """The commit was asked for, and its answer was lost: the transaction is committed as a whole,
    or aborted as a whole. The brokers decide it before the producer's next transaction begins.

    To find out, look for what it wrote. Where it had :meth:`Transaction.send_offsets`, read the
    group's committed offsets anew and go on from there: they are committed with its records, or not
    at all."""


class ProducerFenced(TransactionError):
    """Another producer took over this ``transactional_id``; this one can never send again.

    The transaction that was open was aborted by that; it is committed only if its commit had been
    asked for before, and the answer was lost."""


E = TypeVar("E", bound=SendProducerError)


def add_note(error: BaseException, note: str) -> None:
    """Do the same as ``BaseException.add_note``, which Python 3.10 does not have (PEP 678)."""
    error.__dict__.setdefault("__notes__", []).append(note)


def copy_of(error: E) -> E:
    """Copy an error that is raised more than once.

    ``raise`` writes the traceback and the context of one caller into the error: the next caller
    would see them. An error whose owner stays in memory would also form a reference cycle with the
    frames in its traceback. So the original is kept, and each caller gets a copy.
    """
    copied = type(error).__new__(type(error), *error.args)
    copied.__dict__.update(error.__dict__)
    notes: list[str] | None = error.__dict__.get("__notes__")
    if notes is not None:
        copied.__dict__["__notes__"] = [*notes]
    copied.__cause__ = error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied
