"""An observer that logs events, with structured fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, cast

from .._exceptions import SerializationFailed, UndeliveredRecords, undelivered_text
from .._records import ProducerRecord
from .._shown import one_line, printable
from ._event_batch import EventBatch
from ._events import (
    Accepted,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    HandedOver,
    Refused,
    Withdrawn,
)

__all__ = ["LoggingObserver", "describe", "error_type"]

#: The events that are logged at a higher level than DEBUG.
_SHOWN: Final = (Failed, GenerationOpened, GenerationEnded, Closing)

_PACKAGE: Final = __name__.partition(".")[0]


def error_type(error: BaseException) -> str:
    """Return the name of an error's class, as users import it."""
    cls = type(error)
    module = cls.__module__
    if module.partition(".")[0] == _PACKAGE:
        module = _PACKAGE
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


def describe(error: BaseException) -> str:
    """Return an error's message, or the name of its class if it has no message.

    A message that may repeat a record is replaced. The code that makes such an error gives it the
    other text (``discreet``). Only a driver of the user makes a :exc:`SerializationFailed` without
    one.
    """
    said: object = error.__dict__.get("_discreet", error)
    if isinstance(error, UndeliveredRecords):
        said = undelivered_text(error, describe)
    elif said is error and isinstance(error, SerializationFailed):
        cause = error.__cause__
        said = "a serializer failed" + (f" with {type(cause).__name__}" if cause else "")
    return one_line(said, 2_000) or type(error).__name__


class LoggingObserver:
    """An :class:`Observer` that logs events.

    Failed records are logged at level WARNING. For each batch of events, there is one line for each
    combination of topic, kind of error and persistence, with the number of records. An unreachable
    cluster thus causes only a few lines. A client that was given up is also logged at WARNING.
    Other events of clients and of the producer are logged at INFO, and other events of records and
    of calls at DEBUG. Keys, values and headers are never logged. If a serializer or a partitioner
    raises an exception, only the class of this exception is logged, because its text may contain
    the record.

    Each line has structured fields (``extra``). If OpenTelemetry's conventions define a field, the
    field has the name from the conventions, such as ``messaging.destination.name``,
    ``messaging.kafka.offset`` and ``error.type``.

    Args:
        logger: the logger to write to. None stands for ``anyio_sendproducer.events``.

    Raises:
        TypeError: ``logger`` is a str.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        if isinstance(logger, str):
            raise TypeError(f"logger must be a Logger, such as logging.getLogger({logger!r})")
        self._logger = logging.getLogger(f"{_PACKAGE}.events") if logger is None else logger

    def observe(self, events: Sequence[Event], /) -> None:
        """Log the events."""
        logger = self._logger
        debug = logger.isEnabledFor(logging.DEBUG)
        if not debug and isinstance(events, EventBatch):
            events = events.only(_SHOWN)
        failed: dict[tuple[str, str, str], list[Failed]] = {}
        for event in events:
            if isinstance(event, Failed):
                error = event.error
                group = (event.record.topic, error_type(error), error.persistence.value)
                failed.setdefault(group, []).append(event)
            elif isinstance(event, (GenerationOpened, GenerationEnded, Closing)):
                self._log_life(event)
            elif debug:
                self._log_detail(event)
        for (topic, kind, persistence), several in failed.items():
            logger.warning(
                "%d record(s) to topic %s were not delivered (%s, %s); the first: %s",
                len(several),
                topic,
                kind,
                persistence,
                describe(several[0].error),
                extra={
                    **_fields("failed", topic),
                    "error.type": kind,
                    "anyio_sendproducer.count": len(several),
                    "anyio_sendproducer.persistence": persistence,
                    "anyio_sendproducer.duration": max(one.duration for one in several),
                },
            )

    def _log_life(self, event: GenerationOpened | GenerationEnded | Closing) -> None:
        logger = self._logger
        if isinstance(event, Closing):
            logger.info(
                "the producer is closing; %d accepted record(s) have no outcome yet",
                event.pending,
                extra={**_fields("closing"), "anyio_sendproducer.count": event.pending},
            )
            return
        fields: dict[str, Any] = {"anyio_sendproducer.generation": event.generation}
        if isinstance(event, GenerationOpened):
            fields |= _fields("generation_opened")
            logger.info("client %d is open", event.generation, extra=fields)
        elif event.error is None:
            fields |= _fields("generation_ended")
            logger.info("client %d is closed", event.generation, extra=fields)
        else:
            fields |= _fields("generation_ended")
            fields["error.type"] = error_type(event.error)
            logger.warning(
                "client %d was given up: %s",
                event.generation,
                describe(event.error),
                extra=fields,
            )

    def _log_detail(
        self, event: Accepted | HandedOver | Delivered | Withdrawn | Refused | BatchEnded
    ) -> None:
        logger = self._logger
        if isinstance(event, BatchEnded):
            batch = event.batch
            logger.debug(
                "a call with %d records %s, %d failed",
                batch.count,
                "was cancelled" if event.cancelled else "ended",
                event.failed,
                extra={
                    **_fields("batch_ended", batch.topic),
                    "messaging.batch.message_count": batch.count,
                    "anyio_sendproducer.batch": batch.number,
                    "anyio_sendproducer.failed": event.failed,
                },
            )
            return
        topic = _name_of(event.record)
        fields: dict[str, Any] = {"anyio_sendproducer.record": event.number}
        if isinstance(event, Accepted):
            fields |= _fields("accepted", topic)
            fields["anyio_sendproducer.size"] = event.size
            what = "accepted"
        elif isinstance(event, HandedOver):
            fields |= _fields("handed_over", topic)
            what = "handed to the client"
        elif isinstance(event, Delivered):
            fields |= _fields("delivered", topic)
            fields["messaging.destination.partition.id"] = str(event.metadata.partition)
            if event.metadata.offset is not None:
                fields["messaging.kafka.offset"] = event.metadata.offset
            fields["anyio_sendproducer.size"] = event.size
            what = "delivered"
        elif isinstance(event, Withdrawn):
            fields |= _fields("withdrawn", topic)
            what = "withdrawn"
        else:
            fields |= _fields("refused", topic)
            # Not the message of the error, which may contain the record.
            fields["error.type"] = "cancelled" if event.error is None else error_type(event.error)
            what = "refused"
        if not isinstance(event, (Accepted, HandedOver)):
            fields["anyio_sendproducer.duration"] = event.duration
        logger.debug("record %d to topic %s was %s", event.number, topic, what, extra=fields)


def _name_of(record: ProducerRecord[Any, Any]) -> str:
    """Return the topic's name as text for a log message. The topic of a refused record may be any
    object."""
    topic = cast("object", record.topic)
    return printable(topic) if isinstance(topic, str) and len(topic) <= 249 else "?"


def _fields(event: str, topic: str | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "event.name": f"anyio_sendproducer.{event}",
        "messaging.system": "kafka",
    }
    if topic is not None:
        fields["messaging.destination.name"] = topic
    return fields
