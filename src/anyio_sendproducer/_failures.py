"""The factory of delivery errors, which the ledger and the drivers share."""

from __future__ import annotations

from typing import Any, TypeVar

from ._exceptions import DeliveryError, DeliveryTimeout, Persistence
from ._records import ProducerRecord

__all__ = [
    "delivery_error",
    "maybe_written",
    "no_outcome",
    "not_sent",
    "not_tried",
    "timed_out",
]

E = TypeVar("E", bound=DeliveryError)


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
        message: what was wrong, and what to do.
        record: the record.
        persistence: whether the record may be in the log all the same.
        cause: the error that led to this one; it becomes the ``__cause__``.
    """
    error = kind(message, record=record, persistence=persistence)
    error.__cause__ = cause
    return error


def not_sent(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> DeliveryError:
    """Make the error of a record that the client never got."""
    return delivery_error(DeliveryError, message, record, Persistence.NOT_PERSISTED, cause)


def maybe_written(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None
) -> DeliveryError:
    """Make the error of a record whose client is gone."""
    return delivery_error(
        DeliveryError,
        f"{message}; it may be written all the same",
        record,
        Persistence.POSSIBLY_PERSISTED,
        cause,
    )


def timed_out(
    record: ProducerRecord[Any, Any],
    reason: str,
    seconds: float,
    last_error: Exception | None,
    *,
    was_sent: bool,
) -> DeliveryTimeout:
    """Make the error of a record that is past its deadline.

    Args:
        record: the record.
        reason: what did not happen in time.
        seconds: the ``delivery_timeout``.
        last_error: why no broker was reached, if the driver knows.
        was_sent: whether the driver has the record.
    """
    fate = "it may be written all the same" if was_sent else "it was not sent"
    known = "" if last_error is None else f": {last_error}"
    return delivery_error(
        DeliveryTimeout,
        f"{reason} within {seconds:g} s (delivery_timeout); {fate}{known}",
        record,
        Persistence.POSSIBLY_PERSISTED if was_sent else Persistence.NOT_PERSISTED,
        last_error,
    )


def not_tried(record: ProducerRecord[Any, Any]) -> DeliveryError:
    """Make the error of a record whose group stopped before its turn came."""
    return not_sent(
        record, "the record was not sent: another one of its call failed before (stop_on_error)"
    )


def no_outcome(record: ProducerRecord[Any, Any], given: object) -> DeliveryError:
    """Make the error of a record for which a driver reported something other than an outcome."""
    return delivery_error(
        DeliveryError,
        f"the driver gave {type(given).__name__} as the outcome of the record",
        record,
        Persistence.POSSIBLY_PERSISTED,
        given if isinstance(given, BaseException) else None,
    )
