"""Fields of JSON and CSV as records."""

from __future__ import annotations

from typing import cast

from .. import ProducerRecord
from ._chunks import AnyRecord, Layout
from ._fields import Source, as_bytes, as_milliseconds, as_whole_number

__all__ = ["record_of"]


def record_of(layout: Layout, source: Source, whole: bytes | None) -> AnyRecord:
    """The record of some fields.

    Args:
        layout: names the fields, and has the parts that all records share.
        source: the fields.
        whole: the value, if no field is the value.

    Raises:
        Unreadable: a field is missing or wrong.
    """
    fields = layout.fields
    headers = [*layout.headers]
    for name, field in fields.headers:
        content = as_bytes(source, field)
        # A ProducerRecord has no headers with null as their value.
        if content is not None:
            headers.append((name, content))
    partition, timestamp = layout.partition, None
    if fields.partition is not None:
        partition = as_whole_number(source, fields.partition)
    if fields.timestamp is not None:
        timestamp = as_milliseconds(source, fields.timestamp)
    key = None if fields.key is None else as_bytes(source, fields.key)
    return ProducerRecord(
        cast("str", layout.topic),
        whole if fields.value is None else as_bytes(source, fields.value),
        layout.key if key is None else key,
        partition=partition,
        timestamp_ms=timestamp,
        headers=headers,
    )
