"""Functions that make errors, shared by the ledger, the driver thread and the drivers."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from ._exceptions import DeliveryError, DeliveryTimeout, Persistence, ProducerBroken
from ._records import ProducerRecord

__all__ = [
    "CLOSED_TOO_EARLY",
    "delivery_error",
    "maybe_written",
    "no_outcome",
    "not_sent",
    "not_tried",
    "producer_broken",
    "timed_out",
]

E = TypeVar("E", bound=DeliveryError)

#: The reason given for a record that the client still had when the client was closed. A driver does
#: not know why its client is closed.
CLOSED_TOO_EARLY: Final = (
    "the client was closed before a broker had answered: the producer ended, or it gave up the "
    "client"
)


def producer_broken(reason: BaseException | None) -> ProducerBroken:
    """Make the error of a call of a producer that can never send again."""
    error = ProducerBroken(f"the producer can't send any more: {reason}")
    error.__cause__ = reason
    return error


def delivery_error(
    kind: type[E],
    message: str,
    record: ProducerRecord[Any, Any],
    persistence: Persistence,
    cause: BaseException | None = None,
) -> E:
    """Make the error of one record that was not delivered.

    Args:
        kind: the class of the error.
        message: what went wrong, and what to do about it.
        record: the record.
        persistence: whether the record may have been written nevertheless.
        cause: the error that led to this one; it becomes the ``__cause__``.
    """
    error = kind(message, record=record, persistence=persistence)
    error.__cause__ = cause
    return error


def not_sent(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> DeliveryError:
    """Make the error of a record that was not passed to the client."""
    return delivery_error(DeliveryError, message, record, Persistence.NOT_PERSISTED, cause)


def maybe_written(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None
) -> DeliveryError:
    """Make the error of a record that the client had when the client was given up, or when the
    producer broke or was closed."""
    return delivery_error(
        DeliveryError,
        f"{message}; it may be written nevertheless",
        record,
        Persistence.POSSIBLY_PERSISTED,
        cause,
    )


def timed_out(
    record: ProducerRecord[Any, Any],
    reason: str,
    limit: tuple[float, str],
    last_error: BaseException | None,
    *,
    was_sent: bool,
) -> DeliveryTimeout:
    """Make the error of a record that had no outcome by its deadline.

    Args:
        record: the record.
        reason: what did not happen in time.
        limit: the time in seconds, and the name of the setting or argument that it comes from.
        last_error: the reason why no broker was reached, if the driver knows it.
        was_sent: whether the driver has the record.
    """
    fate = "it may be written nevertheless" if was_sent else "it was not sent"
    known = "" if last_error is None else f": {last_error}"
    return delivery_error(
        DeliveryTimeout,
        f"{reason} within {limit[0]:g} s ({limit[1]}); {fate}{known}",
        record,
        Persistence.POSSIBLY_PERSISTED if was_sent else Persistence.NOT_PERSISTED,
        last_error,
    )


def not_tried(record: ProducerRecord[Any, Any]) -> DeliveryError:
    """Make the error of a record that was not sent because another one of its group failed."""
    return not_sent(
        record, "the record was not sent: another record of the same call failed (stop_on_error)"
    )


def no_outcome(record: ProducerRecord[Any, Any], reported: object) -> DeliveryError:
    """Make the error of a record for which the driver reported an object that is not an outcome."""
    return delivery_error(
        DeliveryError,
        f"the driver reported {type(reported).__name__} as the outcome of the record",
        record,
        Persistence.POSSIBLY_PERSISTED,
        reported if isinstance(reported, BaseException) else None,
    )
