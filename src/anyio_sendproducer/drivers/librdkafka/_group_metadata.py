"""A consumer's group metadata, as librdkafka writes them down.

confluent-kafka's ``Consumer.consumer_group_metadata()`` gives them as bytes, and its ``Producer``
takes nothing else. How they are laid out is said in ``rdkafka_cgrp.c`` of 2.16 and nowhere else; a
test compares them with a consumer's.
"""

from __future__ import annotations

import struct
from typing import Final

from ..._records import ConsumerGroupMetadata

__all__ = ["group_from_bytes", "group_to_bytes"]

#: What comes first, with the number of the form, and before the generation.
_MAGIC: Final = b"CGMDv2:"
#: In the machine's own order: it never leaves the process.
_GENERATION: Final = struct.Struct("=i")


def group_to_bytes(group: ConsumerGroupMetadata) -> bytes:
    """Write them down."""
    parts = [_MAGIC, _GENERATION.pack(group.generation_id)]
    parts += [group.group_id.encode(), b"\0", group.member_id.encode(), b"\0"]
    if group.group_instance_id is None:
        parts.append(b"\1")
    else:
        parts += [b"\0", group.group_instance_id.encode(), b"\0"]
    return b"".join(parts)


def group_from_bytes(data: bytes) -> ConsumerGroupMetadata:
    """Read what was written down.

    Raises:
        ValueError: it is something else.
    """
    start = len(_MAGIC) + _GENERATION.size
    try:
        (generation,) = _GENERATION.unpack(data[len(_MAGIC) : start])
        group, member, rest = data[start:].split(b"\0", 2)
        # A byte that says whether there is no name of the instance comes before the name.
        instance = None if rest == b"\1" else rest[1:-1].decode()
        found = ConsumerGroupMetadata(group.decode(), generation, member.decode(), instance)
    except (ValueError, struct.error):
        found = None
    if found is None or group_to_bytes(found) != data:
        raise ValueError("these bytes are no group metadata that librdkafka 2 has written")
    return found
