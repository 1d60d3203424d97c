"""Calls the user's partitioner, and checks its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from .._exceptions import Persistence, RecordRejected, discreet
from .._hooks import Partitioner
from .._records import ProducerRecord
from .._shown import raised_text, shown
from .._validation import plain

__all__ = ["choose_partition", "discreet_reason"]


def choose_partition(
    partitioner: Partitioner,
    record: ProducerRecord[Any, Any],
    key: bytes | None,
    partitions: Sequence[int],
) -> int:
    """Let a producer's partitioner choose the partition of a record without a partition.

    Call this function on the driver thread, if there is one, because a partitioner may block.

    Args:
        partitioner: the partitioner of the producer's settings.
        record: the record that the caller sent.
        key: the serialized key of the record.
        partitions: the numbers of the topic's partitions, in ascending order. Pass an
            immutable object, such as a tuple, because the partitioner gets the object itself.

    Returns:
        One of ``partitions``.

    Raises:
        RecordRejected: the partitioner raised an exception, or did not return one of
            ``partitions``. The record is not persisted.
    """
    try:
        chosen = cast("object", partitioner(record.topic, key, partitions))
        if isinstance(chosen, int) and not isinstance(chosen, bool):
            chosen = number = plain(chosen)
            if number in partitions:
                return number
        reason = f"returned {shown(chosen)}, which is not a partition of topic {record.topic!r}"
    # As with a serializer, even SystemExit comes from the partitioner, and fails only this record.
    except BaseException as error:
        raise _rejected(record, raised_text(error), error) from error
    raise _rejected(record, reason, None)


def _rejected(
    record: ProducerRecord[Any, Any], reason: str, raised: BaseException | None
) -> RecordRejected:
    error = RecordRejected(
        f"the partitioner {reason}", record=record, persistence=Persistence.NOT_PERSISTED
    )
    return discreet(error, discreet_reason(raised))


def discreet_reason(raised: BaseException | None) -> str:
    """Describe the failure of a partitioner for logs and spans. What it returned, and the text of
    its exception, may be the key."""
    if raised is None:
        return "the partitioner did not return a partition of the topic"
    return f"the partitioner raised {type(raised).__name__}"
