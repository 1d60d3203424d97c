"""Sending a record again after a failure, and putting aside a record that keeps failing.

This module does not use tenacity or stamina, because they would only replace the loop. The
decisions would remain: whether the persistence of a failure allows another attempt, and which
failure to raise.
"""

# The pauses use the producer's own clock.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, cast, overload

from ._durations import seconds_of
from ._exceptions import (
    DeliveryError,
    Persistence,
    RecordRejected,
    SendProducerError,
    SerializationFailed,
    add_note,
)
from ._producer import SendProducer
from ._records import ProducerRecord, RecordMetadata
from ._validation import check_count, check_is_record
from .telemetry._logging import error_type

__all__ = ["dead_letter_record", "send_with_retry"]

DeadLetter = str | Callable[[DeliveryError], Awaitable[object]]

#: A pause is random, between this share of the backoff and the whole, so that many tasks do not
#: retry at the same time.
_SHORTEST_PAUSE: Final = 0.5
#: A dead letter is sent again even if it may already be written.
_ALL_BUT_PERSISTED: Final = frozenset({Persistence.NOT_PERSISTED, Persistence.POSSIBLY_PERSISTED})
_random = random.Random()  # noqa: S311  # not for cryptography


@dataclasses.dataclass(frozen=True, slots=True)
class _Attempts:
    """How often to try, and the pauses in seconds."""

    count: int
    backoff: float
    max_backoff: float
    #: The persistence of the failures after which another attempt is made.
    retried: frozenset[Persistence]

    async def send(
        self,
        producer: SendProducer,
        record: ProducerRecord[Any, Any],
        timeout: float | timedelta | None,
        until: float = math.inf,
    ) -> RecordMetadata:
        """Send a record, and retry if another attempt may succeed and may start before ``until``,
        by the producer's clock. See :func:`send_with_retry`."""
        clock = producer._engine.clock
        pause = self.backoff
        error: DeliveryError | None = None
        failures = 0
        while True:
            try:
                return await producer.send(record, timeout=timeout)
            except DeliveryError as failure:
                failures += 1
                # Keep the error of an attempt that may have written the record.
                if error is None or error.persistence is Persistence.NOT_PERSISTED:
                    error = failure
                is_permanent = isinstance(failure, (RecordRejected, SerializationFailed))
                if is_permanent or failure.persistence not in self.retried:
                    break
            except SendProducerError as refusal:  # the producer was closed, for example
                if error is None:
                    raise
                add_note(error, f"another attempt was not possible: {refusal}")
                break
            pause = min(pause, self.max_backoff)
            seconds = pause * _random.uniform(_SHORTEST_PAUSE, 1)
            if failures == self.count or clock.now() + seconds >= until:
                break
            await clock.sleep(seconds)
            pause *= 2
        if failures > 1:
            add_note(error, f"{failures} attempts were made")
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame


@overload
async def send_with_retry(
    producer: SendProducer,
    record: ProducerRecord[Any, Any],
    *,
    attempts: int = 5,
    backoff: float | timedelta = 0.1,
    max_backoff: float | timedelta = 10.0,
    retry_possibly_persisted: bool = False,
    timeout: float | timedelta | None = None,
) -> RecordMetadata: ...
@overload
async def send_with_retry(
    producer: SendProducer,
    record: ProducerRecord[Any, Any],
    *,
    attempts: int = 5,
    backoff: float | timedelta = 0.1,
    max_backoff: float | timedelta = 10.0,
    retry_possibly_persisted: bool = False,
    timeout: float | timedelta | None = None,
    dead_letter: DeadLetter | None,
) -> RecordMetadata | None: ...
async def send_with_retry(
    producer: SendProducer,
    record: ProducerRecord[Any, Any],
    *,
    attempts: int = 5,
    backoff: float | timedelta = 0.1,
    max_backoff: float | timedelta = 10.0,
    retry_possibly_persisted: bool = False,
    timeout: float | timedelta | None = None,
    dead_letter: DeadLetter | None = None,
) -> RecordMetadata | None:
    """Send a record, and retry if another attempt may succeed.

    ::

        async with open_send_producer(bootstrap_servers="localhost:9092") as producer:
            record = ProducerRecord("orders", b"two tins", b"42")
            await send_with_retry(producer, record, dead_letter="orders.dead")

    By default, a failure is retried if its ``persistence`` is ``NOT_PERSISTED``, except
    :class:`RecordRejected` and :class:`SerializationFailed`: another attempt would usually fail in
    the same way.

    Retries can change the order of records. Records that are sent during a pause may be written
    before the retried record, even if they have the same key.

    Args:
        producer: the producer.
        record: the record to send.
        attempts: the largest number of attempts to send the record, and to send its dead letter.
        backoff: the pause after the first attempt, as seconds or a ``timedelta``. The pause doubles
            after each further attempt. Each pause is shortened at random, by up to half of its
            length.
        max_backoff: the longest pause, as seconds or a ``timedelta``.
        retry_possibly_persisted: also retry a failure that is ``POSSIBLY_PERSISTED``. The record
            may then be written more than once.
        timeout: how long each attempt may take, as for :meth:`SendProducer.send`. None stands for
            ``delivery_timeout``.
        dead_letter: how to handle the record after the last failure. With the name of a topic, the
            same producer sends the :func:`dead_letter_record` to this topic. It makes another
            attempt even if the dead letter may already be written, but starts no attempt later than
            ``delivery_timeout`` after the first. An async callable gets the error. With None, the
            error is raised.

    Returns:
        The metadata of the written record; None if the record became a dead letter.

    Raises:
        DeliveryError: the record was not delivered. This is usually the error of the last attempt.
            If an earlier attempt failed as ``POSSIBLY_PERSISTED``, the error of that attempt is
            raised instead, because the record may be in the log. If the dead letter also failed, a
            note says why.
        SettingsError: an argument is wrong.
        SendProducerError: any other error of :meth:`SendProducer.send` in the first attempt.
        TypeError: ``record`` is not a ProducerRecord, ``dead_letter`` is neither a str nor a
            callable, or ``producer`` is not a SendProducer but, for example, a
            :class:`Transaction`. In a transaction, a failed record aborts the transaction, so
            repeat the whole transaction instead of the record.

    Cancellation ends the attempt or the pause, and the record does not become a dead letter. During
    an attempt, cancellation has the effect that :meth:`SendProducer.send` describes. During a
    pause, it prevents another attempt. If the dead letter is already being sent, cancellation has
    the same effect on the dead letter as on an attempt.
    """
    if not isinstance(cast("object", producer), SendProducer):
        raise TypeError(f"producer must be a SendProducer, not {type(producer).__name__}")
    check_is_record(record)
    if not (dead_letter is None or isinstance(dead_letter, str) or callable(dead_letter)):
        raise TypeError(
            "dead_letter must be the name of a topic, an async callable or None, "
            f"not {type(dead_letter).__name__}"
        )
    check_count("attempts", attempts)
    retried = {Persistence.NOT_PERSISTED}
    if retry_possibly_persisted:
        retried.add(Persistence.POSSIBLY_PERSISTED)
    policy = _Attempts(
        attempts,
        seconds_of("backoff", backoff, zero=True),
        seconds_of("max_backoff", max_backoff, zero=True),
        frozenset(retried),
    )
    try:
        return await policy.send(producer, record, timeout)
    except DeliveryError as error:
        if dead_letter is None or not await _put_aside(producer, dead_letter, error, policy):
            raise
        return None


async def _put_aside(
    producer: SendProducer, dead_letter: DeadLetter, error: DeliveryError, policy: _Attempts
) -> bool:
    """Put a record aside after its last failure. Returns: whether that worked."""
    try:
        if isinstance(dead_letter, str):
            until = producer._engine.clock.now() + producer._engine.settings.delivery_timeout
            again = dataclasses.replace(policy, retried=_ALL_BUT_PERSISTED)
            await again.send(producer, dead_letter_record(error, dead_letter), None, until)
        else:
            await dead_letter(error)
    except Exception as failure:  # noqa: BLE001  # the record's own error is raised, with this note
        add_note(error, f"the dead letter failed, too: {error_type(failure)}: {failure}")
        return False
    return True


def dead_letter_record(error: DeliveryError, topic: str) -> ProducerRecord[Any, Any]:
    """Make the dead letter of a record that was not delivered.

    The dead letter has the record's key, value, timestamp and headers, and also the following
    headers:

    - ``kafka_dlt-original-topic``, ``kafka_dlt-exception-fqcn``, ``kafka_dlt-exception-message``
      and ``kafka_dlt-exception-cause-fqcn``, as Spring Kafka names them. In this order, they
      contain the topic, the class of the error, the message of the error, and the class of its
      cause. An error without a cause has no header for the cause.
    - ``kafka_dlt-original-partition``, if the record has a valid ``partition``. As in Spring Kafka,
      the value of this header has four bytes, the most significant first.
    - ``anyio_sendproducer-persistence``: ``not persisted`` or ``possibly persisted``.

    Args:
        error: the error, which contains the record.
        topic: the topic of the dead letter.
    """
    record = error.record
    headers = [
        *record.headers,
        ("kafka_dlt-original-topic", _utf_8(record.topic)),
        ("kafka_dlt-exception-fqcn", _utf_8(error_type(error))),
        ("kafka_dlt-exception-message", _utf_8(error)),
        ("anyio_sendproducer-persistence", _utf_8(error.persistence.value)),
    ]
    if error.__cause__ is not None:
        headers.append(("kafka_dlt-exception-cause-fqcn", _utf_8(error_type(error.__cause__))))
    partition = cast("object", record.partition)  # it may be the invalid field
    if isinstance(partition, int) and not isinstance(partition, bool) and 0 <= partition < 2**31:
        headers.append(("kafka_dlt-original-partition", partition.to_bytes(4, "big")))
    return ProducerRecord(
        topic, record.value, record.key, timestamp_ms=record.timestamp_ms, headers=headers
    )


def _utf_8(text: object) -> bytes:
    # An invalid topic may be any object.
    return str(text).encode("utf-8", "backslashreplace")
