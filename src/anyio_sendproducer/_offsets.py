"""Converts the offsets and the consumer group that a transaction commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ._records import ConsumerGroupMetadata
from .drivers import ConsumedOffset
from .drivers.librdkafka._group_metadata import group_from_bytes

__all__ = ["parse_group", "parse_offsets"]


def parse_offsets(offsets: Mapping[tuple[str, int], Any]) -> list[ConsumedOffset]:
    """Check and convert the offsets of :meth:`Transaction.send_offsets`.

    Raises:
        TypeError: they are not a mapping.
        ValueError: a topic, a partition or an offset is wrong.
    """
    if not isinstance(cast("object", offsets), Mapping):
        raise TypeError(
            "offsets must be a mapping of (topic, partition) to offsets, "
            f"not {type(offsets).__name__}"
        )
    consumed: list[ConsumedOffset] = []
    for place, given in offsets.items():
        key = cast("object", place)
        match key:
            case (str() as topic, int() as partition) if isinstance(key, tuple) and partition >= 0:
                pass
            case _:
                raise ValueError(
                    "offsets: a key must be a tuple of a topic (str) and a partition (int of 0 or "
                    f"more), not {key!r:.80}"
                )
        offset = getattr(given, "offset", given)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise ValueError(
                f"offsets: the offset of partition {partition} of topic {topic!r} must be an int "
                f"of 0 or more, not {offset!r}"
            )
        epoch = getattr(given, "leader_epoch", None)
        consumed.append(
            ConsumedOffset(
                topic,
                partition,
                offset,
                getattr(given, "metadata", None) or "",
                -1 if epoch is None else epoch,
            )
        )
    return consumed


def parse_group(given: Any) -> ConsumerGroupMetadata:
    """Check and convert the consumer group of :meth:`Transaction.send_offsets`.

    Raises:
        TypeError: it is not a group.
        ValueError: the bytes are not those of a ``confluent_kafka`` consumer's group.
    """
    if isinstance(given, str):
        return ConsumerGroupMetadata(given)
    if isinstance(given, bytes):
        return group_from_bytes(given)
    try:
        return ConsumerGroupMetadata(
            given.group_id, given.generation_id, given.member_id, given.group_instance_id
        )
    except AttributeError as error:
        raise TypeError(
            "group_metadata must be the group's id, ConsumerGroupMetadata or an object with the "
            f"same attributes, not {type(given).__name__}"
        ) from error
