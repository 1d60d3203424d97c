"""Builds a few requests that no client offers, or that no client sends to a chosen broker.

The requests share no code with the clients under test, and leave no thread or socket behind.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "ELECTION_NOT_NEEDED",
    "Metadata",
    "Partition",
    "WireError",
    "alter_client_quotas",
    "elect_preferred_leader",
    "metadata",
    "reassign",
]

T = TypeVar("T")

#: The error code of an election if the preferred replica is the leader already.
ELECTION_NOT_NEEDED = 84

#: Seconds for one answer. A paused broker does not answer.
_ANSWER_TIMEOUT = 10.0

#: Milliseconds that a broker may take for requests that it forwards to its controller.
_TIMEOUT_MS = 5_000


class WireError(Exception):
    """A broker answered with an error."""

    def __init__(self, what: str, code: int, message: str | None = None) -> None:
        super().__init__(f"{what}: error {code}" + (f", {message}" if message else ""))
        self.code = code


class Partition(NamedTuple):
    """A partition in the metadata of one broker. ``leader`` is -1 if it has none."""

    error: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


#: UNKNOWN_TOPIC_OR_PARTITION.
_UNKNOWN = Partition(3, -1, (), ())


class Metadata(NamedTuple):
    """The metadata of one broker: the live brokers, and the partitions of one topic."""

    brokers: frozenset[int]
    error: int
    partitions: Mapping[int, Partition]

    def partition(self, number: int) -> Partition:
        """Find a partition. An unknown partition has no leader."""
        return self.partitions.get(number, _UNKNOWN)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(">" + code, self._data, self._at)
        self._at += struct.calcsize(">" + code)
        return value

    def text(self) -> str | None:
        return self._text(self.take("h"))

    def compact_text(self) -> str | None:
        return self._text(self._varint() - 1)

    def array(self, item: Callable[[], T]) -> list[T]:
        return [item() for _ in range(self.take("i"))]

    def compact_array(self, item: Callable[[], T]) -> list[T]:
        return [item() for _ in range(self._varint() - 1)]

    def numbers(self) -> tuple[int, ...]:
        return tuple(self.array(lambda: self.take("i")))

    def tags(self) -> None:
        assert self._varint() == 0, "an unexpected tagged field"

    def _text(self, length: int) -> str | None:
        if length < 0:
            return None
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _varint(self) -> int:
        value: int = 0
        shift = 0
        while True:
            byte: int = self.take("B")
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7


def _text(value: str | None) -> bytes:
    if value is None:
        return struct.pack(">h", -1)
    return struct.pack(">h", len(value.encode())) + value.encode()


def _ask(port: int, api: int, version: int, body: bytes, *, flexible: bool = False) -> _Reader:
    """Send one request to the broker on this port, and return the answer after its header.

    Raises:
        OSError: the port refused the connection, no answer came in time, or the connection was
            closed.
    """
    header = struct.pack(">hhih", api, version, 7, -1) + (b"\0" if flexible else b"")
    with socket.create_connection(("127.0.0.1", port), _ANSWER_TIMEOUT) as connection:
        connection.sendall(struct.pack(">i", len(header + body)) + header + body)
        (size,) = struct.unpack(">i", _receive(connection, 4))
        reader = _Reader(_receive(connection, size))
    assert reader.take("i") == 7
    if flexible:
        reader.tags()
    return reader


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the broker closed the connection")
        data += more
    return data


def metadata(port: int, topic: str | None = None) -> Metadata:
    """Ask the broker on this port for its metadata, with at most one topic."""
    topics = struct.pack(">i", 0) if topic is None else struct.pack(">i", 1) + _text(topic)
    reader = _ask(port, 3, 5, topics + b"\0")
    reader.take("i")  # the throttle time

    def broker() -> int:
        number: int = reader.take("i")
        reader.text()
        reader.take("i")
        reader.text()
        return number

    brokers = frozenset(reader.array(broker))
    reader.text()
    reader.take("i")

    def partition() -> tuple[int, Partition]:
        error, number, leader = reader.take("h"), reader.take("i"), reader.take("i")
        found = Partition(error, leader, reader.numbers(), reader.numbers())
        reader.numbers()
        return number, found

    def one_topic() -> tuple[int, dict[int, Partition]]:
        error: int = reader.take("h")
        reader.text()
        reader.take("?")
        return error, dict(reader.array(partition))

    topics_found = reader.array(one_topic)
    error, partitions = topics_found[0] if topics_found else (0, {})
    return Metadata(brokers, error, partitions)


def elect_preferred_leader(port: int, topic: str, partition: int) -> None:
    """Make the first replica of a partition its leader.

    Raises:
        WireError: it can't lead. If it leads already, the code is ELECTION_NOT_NEEDED.
    """
    body = struct.pack(">bi", 0, 1) + _text(topic) + struct.pack(">iii", 1, partition, _TIMEOUT_MS)
    reader = _ask(port, 43, 1, body)
    reader.take("i")
    _raise_for(f"electing a leader of {topic}/{partition}", reader.take("h"), None)

    def result() -> None:
        reader.take("i")
        _raise_for(f"electing a leader of {topic}/{partition}", reader.take("h"), reader.text())

    def one_topic() -> None:
        reader.text()
        reader.array(result)

    reader.array(one_topic)


def reassign(port: int, topic: str, partition: int, replicas: Sequence[int]) -> None:
    """Move a partition to these brokers, the first of which is the preferred leader.

    The function only requests the change. The metadata shows when it is complete.
    """
    name = topic.encode()
    assert len(name) < 0x7F
    body = (
        struct.pack(">iBB", _TIMEOUT_MS, 2, len(name) + 1)
        + name
        + struct.pack(">BiB", 2, partition, len(replicas) + 1)
        + struct.pack(f">{len(replicas)}i", *replicas)
        + b"\0\0\0"
    )
    reader = _ask(port, 45, 0, body, flexible=True)
    reader.take("i")
    what = f"reassigning {topic}/{partition}"
    _raise_for(what, reader.take("h"), reader.compact_text())

    def result() -> None:
        reader.take("i")
        _raise_for(what, reader.take("h"), reader.compact_text())
        reader.tags()

    def one_topic() -> None:
        reader.compact_text()
        reader.compact_array(result)
        reader.tags()

    reader.compact_array(one_topic)


def alter_client_quotas(
    port: int, entity: Mapping[str, str], quotas: Mapping[str, float | None]
) -> None:
    """Set the quotas of an entity, such as ``{"client-id": "one"}``; None removes a quota."""
    body = struct.pack(">ii", 1, len(entity))
    for kind, name in entity.items():
        body += _text(kind) + _text(name)
    body += struct.pack(">i", len(quotas))
    for key, value in quotas.items():
        body += _text(key) + struct.pack(">d?", value or 0.0, value is None)
    reader = _ask(port, 49, 0, body + b"\0")
    reader.take("i")

    def result() -> None:
        _raise_for(f"setting quotas of {dict(entity)}", reader.take("h"), reader.text())
        reader.array(lambda: (reader.text(), reader.text()))

    reader.array(result)


def _raise_for(what: str, code: int, message: str | None) -> None:
    if code:
        raise WireError(what, code, message)
