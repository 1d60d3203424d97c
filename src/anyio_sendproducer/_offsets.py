"""Checks and converts the offsets and the consumer group that a transaction commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ._records import ConsumerGroupMetadata
from ._shown import shown
from ._validation import MAX_INT32, MAX_INT64, topic_problem
from .drivers import ConsumedOffset
from .drivers.librdkafka._group_metadata import group_from_bytes

__all__ = ["parse_group", "parse_offsets"]


def parse_offsets(offsets: Mapping[tuple[str, int], Any]) -> list[ConsumedOffset]:
    """Check and convert the offsets of :meth:`Transaction.send_offsets`.

    Raises:
        TypeError: they are not a mapping.
        ValueError: a topic, a partition, an offset, or the metadata or the leader epoch of an
            offset is wrong.
    """
    if not isinstance(cast("object", offsets), Mapping):
        raise TypeError(
            "offsets must be a mapping of (topic, partition) to offsets, "
            f"not {type(offsets).__name__}"
        )
    return [_parse_offset(key, given) for key, given in offsets.items()]


def _parse_offset(key: object, given: Any) -> ConsumedOffset:
    match key:
        case (str() as topic, int() as partition) if isinstance(key, tuple) and _is_int(partition):
            pass
        case _:
            raise ValueError(
                "offsets: a key must be a tuple of a topic (str) and a partition (int of 0 or "
                f"more), not {key!r:.80}"
            )
    problem = topic_problem(topic)
    if problem is not None:
        raise ValueError(f"offsets: {problem}")
    where = f"partition {partition} of topic {topic!r}"
    offset = getattr(given, "offset", given)
    if not _is_int(offset, MAX_INT64):
        raise ValueError(
            f"offsets: the offset of {where} must be an int of 0 or more, not {shown(offset)}"
        )
    metadata = getattr(given, "metadata", None)
    metadata = "" if metadata is None else metadata
    if not _is_text(metadata):
        raise ValueError(
            f"offsets: the metadata of {where} must be a str that UTF-8 can encode, or None"
        )
    epoch = getattr(given, "leader_epoch", None)
    epoch = -1 if epoch is None else epoch
    if epoch != -1 and not _is_int(epoch):
        raise ValueError(
            f"offsets: the leader_epoch of {where} must be an int of -1 or more, or None, "
            f"not {shown(epoch)}"
        )
    return ConsumedOffset(topic, partition, offset, metadata, epoch)


def parse_group(given: Any) -> ConsumerGroupMetadata:
    """Check and convert the consumer group of :meth:`Transaction.send_offsets`.

    Raises:
        TypeError: it is not a group.
        ValueError: an attribute of the group is wrong, or the bytes are not those of a consumer of
            confluent-kafka.
    """
    if isinstance(given, bytes):
        return group_from_bytes(given)
    if isinstance(given, str):
        group = ConsumerGroupMetadata(given)
    else:
        try:
            group = ConsumerGroupMetadata(
                given.group_id, given.generation_id, given.member_id, given.group_instance_id
            )
        except AttributeError as error:
            raise TypeError(
                "group_metadata must be the group's id, ConsumerGroupMetadata or an object with "
                f"the same attributes, not {type(given).__name__}"
            ) from error
    if not (group.group_id and _is_text(group.group_id)):
        raise ValueError("group_metadata: the group_id must be a str that is not empty")
    if group.generation_id != -1 and not _is_int(group.generation_id):
        raise ValueError(
            "group_metadata: the generation_id must be an int of -1 or more, "
            f"not {shown(group.generation_id)}"
        )
    if not _is_text(group.member_id):
        raise ValueError("group_metadata: the member_id must be a str")
    if group.group_instance_id is not None and not _is_text(group.group_instance_id):
        raise ValueError("group_metadata: the group_instance_id must be a str or None")
    return group


def _is_int(number: object, largest: int = MAX_INT32) -> bool:
    """Whether this is an int from 0 to ``largest``, which the protocol can contain."""
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= largest


def _is_text(text: object) -> bool:
    """Whether the protocol, and librdkafka's C strings, can contain this."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
