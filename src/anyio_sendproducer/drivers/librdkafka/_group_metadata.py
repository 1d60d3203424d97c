"""A consumer's group metadata, in librdkafka's binary format.

confluent-kafka's ``Consumer.consumer_group_metadata()`` returns bytes, and its ``Producer`` takes
nothing else. Only ``rdkafka_cgrp.c`` of librdkafka 2.16 describes the format. A test compares the
bytes with those of a consumer.
"""

from __future__ import annotations

import struct
from typing import Final

from ..._records import ConsumerGroupMetadata

__all__ = ["group_from_bytes", "group_to_bytes"]

#: The prefix, which contains the version of the format. The generation follows.
_MAGIC: Final = b"CGMDv2:"
#: In the machine's byte order, because the bytes never leave the process.
_GENERATION: Final = struct.Struct("=i")


def group_to_bytes(group: ConsumerGroupMetadata) -> bytes:
    """Encode group metadata."""
    parts = [_MAGIC, _GENERATION.pack(group.generation_id)]
    parts += [group.group_id.encode(), b"\0", group.member_id.encode(), b"\0"]
    if group.group_instance_id is None:
        parts.append(b"\1")
    else:
        parts += [b"\0", group.group_instance_id.encode(), b"\0"]
    return b"".join(parts)


def group_from_bytes(data: bytes) -> ConsumerGroupMetadata:
    """Decode group metadata.

    Raises:
        ValueError: librdkafka 2 did not write these bytes.
    """
    start = len(_MAGIC) + _GENERATION.size
    try:
        (generation,) = _GENERATION.unpack(data[len(_MAGIC) : start])
        group, member, rest = data[start:].split(b"\0", 2)
        # The byte before the instance's name is 1 if there is no name.
        instance = None if rest == b"\1" else rest[1:-1].decode()
        found = ConsumerGroupMetadata(group.decode(), generation, member.decode(), instance)
    except (ValueError, struct.error):
        found = None
    if found is None or group_to_bytes(found) != data:
        raise ValueError("these bytes are not group metadata that librdkafka 2 has written")
    return found
