"""Writes answers of Kafka's protocol from its schemas, with chosen fields written wrong.

The schemas are in kafka-python's package, and come from Apache Kafka. The encoder here is
independent of the client's. So it can write invalid data: a null where none is allowed, a count
without its items, a text that is not UTF-8.
"""

from __future__ import annotations

import importlib
import random
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tests.support.scripted_broker import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
)

__all__ = [
    "ADD_OFFSETS",
    "ADD_PARTITIONS",
    "COMMIT_OFFSETS",
    "DESCRIBE_CLUSTER",
    "END_TRANSACTION",
    "FIND_COORDINATOR",
    "HOSTILE",
    "RESPONSES",
    "AnswerWriter",
    "is_flexible",
]

#: The API keys of Kafka's requests that no other module defines.
FIND_COORDINATOR: Final = 10
ADD_PARTITIONS: Final = 24
ADD_OFFSETS: Final = 25
END_TRANSACTION: Final = 26
COMMIT_OFFSETS: Final = 28
DESCRIBE_CLUSTER: Final = 60


def _classes(module: str, *names: str) -> list[Any]:
    found = importlib.import_module(f"kafka.protocol.{module}")
    return [getattr(found, name) for name in names]


#: The class of each answer, by API key. Only its schema is used.
RESPONSES: Final[Mapping[int, Any]] = {
    one.API_KEY: one
    for one in (
        *_classes("metadata", "ApiVersionsResponse", "MetadataResponse", "FindCoordinatorResponse"),
        *_classes("producer", "ProduceResponse", "InitProducerIdResponse", "EndTxnResponse"),
        *_classes("producer", "AddPartitionsToTxnResponse", "AddOffsetsToTxnResponse"),
        *_classes("producer", "TxnOffsetCommitResponse"),
        *_classes("sasl", "SaslHandshakeResponse", "SaslAuthenticateResponse"),
        *_classes("admin.cluster", "DescribeClusterResponse"),
    )
}
assert {API_VERSIONS, METADATA, PRODUCE, INIT_PRODUCER_ID} <= RESPONSES.keys()
assert {SASL_HANDSHAKE, SASL_AUTHENTICATE} <= RESPONSES.keys()

#: A line of its own, codes that clear a terminal, a line separator, and a NUL.
HOSTILE: Final = 'h"\nFORGED CRITICAL all is lost\x1b[2J\x9b2J\u2028\u202e\0'

_CODES: Final = {
    "int8": "b",
    "bool": "?",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "bitfield": "i",
    "uint32": "I",
    "int64": "q",
    "float64": "d",
}
#: Texts that a client may not expect: empty, not UTF-8 (twice), and long ones.
_TEXTS: Final = (
    b"",
    HOSTILE.encode(),
    b"\xff\xfe\xc0\x80",
    "\ud800".encode("utf-8", "surrogatepass"),
    b"x" * 300,
    b"a" * 30_000,
    "\u20ac".encode() * 100,
)
#: The number of copies of an item in a list made long, and the limit of their total size.
_MANY: Final = (2, 50, 1000, 5000, 100_000)
_MOST_BYTES: Final = 16_000_000
#: Codes of errors that clients act upon: unknown topic, request timed out, not the leader, not the
#: coordinator, fenced, unsupported version, sequence out of order, login refused, throttled.
_TELLING: Final = (-1, 2, 3, 5, 6, 7, 10, 14, 15, 16, 29, 33, 35, 37, 45, 47, 51, 58, 59, 87, 90)


def is_flexible(schema: Mapping[str, Any], version: int) -> bool:
    """Whether this version has compact lengths and tagged fields (KIP-482)."""
    return _has(schema["flexibleVersions"], version)


def _has(versions: str, version: int) -> bool:
    if versions == "none":
        return False
    first, plus, last = versions.partition("+")[0], "+" in versions, versions.rpartition("-")[2]
    return int(first.split("-")[0]) <= version and (plus or version <= int(last))


class AnswerWriter:
    """Writes one answer without its header.

    Args:
        api: the API key of the request.
        version: the version of the request and of the answer.
        wrong: the fields that are written wrong, by their position in the order of writing. Each
            value, length and count is a field.
        rng: chooses how a field is wrong.
        forged: every text is ``HOSTILE``, and every code of an error may be one.
    """

    def __init__(
        self,
        api: int,
        version: int,
        wrong: Collection[int] = (),
        rng: random.Random | None = None,
        *,
        forged: bool = False,
    ) -> None:
        self._schema: Any = RESPONSES[api].json
        self._version = version
        self._wrong = wrong
        self._rng = rng or random.Random(0)
        self._forged = forged
        self._flexible = is_flexible(self._schema, version)
        self._structs = {one["name"]: one for one in self._schema.get("commonStructs", ())}
        #: How many fields were written.
        self.fields = 0
        #: Readable descriptions of the fields that were written wrong.
        self.notes: list[str] = []

    def write(self, values: Mapping[str, Any]) -> bytes:
        """Write the answer with these values, by the names in the schema. Other fields have no
        value."""
        return self._struct(self._schema["fields"], values)

    def _struct(self, fields: Sequence[Any], values: Mapping[str, Any]) -> bytes:
        written = b""
        tagged: list[tuple[int, bytes]] = []
        for field in fields:
            if not _has(field["versions"], self._version):
                continue
            name = field["name"]
            if self._flexible and _has(field.get("taggedVersions", "none"), self._version):
                if name in values:
                    tagged.append((field["tag"], self._value(field, values[name])))
                continue
            written += self._value(field, values.get(name))
        return written + (self._tags(tagged) if self._flexible else b"")

    def _is_wrong(self, name: str, how: str) -> bool:
        self.fields += 1
        if self.fields - 1 not in self._wrong:
            return False
        self.notes.append(f"{how} {name}")
        return True

    def _tags(self, tagged: list[tuple[int, bytes]]) -> bytes:
        rng = self._rng
        count = varint(len(tagged))
        rest = b"".join(varint(tag) + varint(len(one)) + one for tag, one in tagged)
        if self._is_wrong("tags", "count of"):
            count = rng.choice([varint(1), varint(100), varint(2**31), b"\xff" * 11])
            length = rng.choice([varint(0), varint(3), varint(2**31 - 1), b"\xff" * 6])
            rest += varint(rng.choice([0, 1, 77, 2**31])) + length + rng.randbytes(3)
        return count + rest

    def _value(self, field: Any, value: Any) -> bytes:
        kind, name = field["type"], field["name"]
        if kind.startswith("[]"):
            return self._array(field, value)
        if kind in _CODES:
            return self._number(name, _CODES[kind], value)
        if kind == "uuid":
            given = value or bytes(16)
            return self._rng.randbytes(16) if self._is_wrong(name, "id") else given
        if kind in {"string", "bytes", "records"}:
            if self._forged and kind == "string":
                value = HOSTILE
            content = value.encode() if isinstance(value, str) else value
            if content is None and "nullableVersions" not in field:
                content = b""
            return self._bytes(name, content, "i" if kind != "string" else "h")
        return self._struct(self._fields(field), value or {})

    def _fields(self, field: Any) -> Sequence[Any]:
        kind = field["type"].removeprefix("[]")
        found: Sequence[Any] = self._structs.get(kind, field)["fields"]
        return found

    def _number(self, name: str, code: str, value: Any) -> bytes:
        if self._forged and name.endswith("ErrorCode"):
            value = self._rng.choice([0, *_TELLING])
        right = struct.pack(f">{code}", value or 0)
        if not self._is_wrong(name, "number"):
            return right
        size = len(right)
        if name.endswith("ErrorCode") and self._rng.random() < 0.8:
            codes = [*_TELLING, self._rng.randint(-2, 135)]
            return struct.pack(">h", self._rng.choice(codes))
        near = self._rng.choice([0, 1, -1, 2, 7, 100, 65_535, 65_536])
        extremes = [bytes(size), b"\xff" * size, b"\x80" + bytes(size - 1), b"\x7f" + b"\xff" * 7]
        others = [(near % 256**size).to_bytes(size, "big"), self._rng.randbytes(size)]
        chosen: bytes = self._rng.choice([*extremes, *others])
        return chosen[:size]

    def _length(self, count: int, code: str) -> bytes:
        if self._flexible:
            return varint((count + 1) % 2**32)
        size = struct.calcsize(code)
        return (count % (1 << 8 * size)).to_bytes(size, "big")

    def _bytes(self, name: str, content: bytes | None, code: str) -> bytes:
        if not self._is_wrong(name, "text"):
            if content is None:
                return self._length(-1, code)
            return self._length(len(content), code) + content
        rng = self._rng
        right = content or b""
        lengths = [
            self._length(-1, code),
            self._length(rng.choice([-2, -100, -(2**15), -(2**31)]), code),
            self._length(len(right) + rng.choice([-1, 1, 200, 2**15 - 1]), code) + right,
            self._length(2**31 - 1, code) + right,
            b"\xff" * 11 if self._flexible else self._length(-1, code) + right,
        ]
        # Texts more often than lengths, because most wrong lengths fail in the same way.
        texts = [self._length(len(text), code) + text for text in _TEXTS]
        return rng.choice([*lengths, *texts])

    def _array(self, field: Any, value: Any) -> bytes:
        kind, name = field["type"].removeprefix("[]"), field["name"]
        is_wrong = self._is_wrong(name, "list")
        if value is None:
            value = []
        item = {"name": name, "type": kind, "versions": "0+"}
        is_struct = kind not in _CODES and kind not in {"string", "bytes", "uuid"}
        if is_struct:
            item["fields"] = self._fields(field)
        items = [self._value(item, one) for one in value]
        count, content = len(items), b"".join(items)
        if not is_wrong:
            return self._length(count, "i") + content
        rng = self._rng
        way = rng.randrange(6)
        if way == 0:
            return self._length(-1, "i")
        if way == 1:
            return self._length(rng.choice([-2, -(2**31), 2**31 - 1, 10**6, 10**8]), "i") + content
        if way == 2:
            return self._length(count + rng.choice([-1, 1, 2, 200]), "i") + content
        if way == 3:
            return self._length(0, "i")
        if way == 4 and self._flexible:
            return b"\xff" * 11 + content
        times = min(rng.choice(_MANY), _MOST_BYTES // max(1, len(content)))
        return self._length(count * times, "i") + content * times


def varint(number: int) -> bytes:
    """An unsigned number, seven bits at a time, the lowest first."""
    written = b""
    while number > 0x7F:
        written += bytes([number & 0x7F | 0x80])
        number >>= 7
    return written + bytes([number])
