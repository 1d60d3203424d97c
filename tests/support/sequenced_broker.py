"""Two brokers that check sequence numbers like Apache Kafka, and answer as a test tells them to.

Each leads one partition of every topic: the first broker partition 0, the second partition 1. A
test decides what a broker does with each produce request. So it can produce, in a fixed order,
events that happen by chance on a real cluster: a lost answer of one broker, and a refusal of
another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from .scripted_broker import ScriptedBroker

__all__ = ["Batch", "SequencedBrokers", "sequenced_brokers"]

_metadata: Any = importlib.import_module("kafka.protocol.metadata")
_producer: Any = importlib.import_module("kafka.protocol.producer")
_records: Any = importlib.import_module("kafka.record")

#: The API key of a produce request.
_PRODUCE: Final = 0

_UNKNOWN_TOPIC: Final = 3
_OUT_OF_ORDER_SEQUENCE_NUMBER: Final = 45

#: The number of last batches of which a broker recognizes a repetition.
_REMEMBERED: Final = 5


@dataclasses.dataclass(frozen=True)
class Batch:
    """The batch of one produce request."""

    topic: str
    partition: int
    producer_id: int
    epoch: int
    sequence: int
    values: tuple[bytes, ...]


#: The result for a batch, as an error code of Kafka's protocol. 0 writes the batch if its sequence
#: number is the next one. None also writes it, and then ends the connection.
Judge = Callable[[Batch], "int | None"]


class SequencedBrokers:
    """The controls of both brokers."""

    def __init__(self, servers: list[socket.socket]) -> None:
        self.judge: Judge = lambda _: 0
        #: The written batches, in order.
        self.log: list[Batch] = []
        #: The first offset of each log, as the answers report it.
        self.log_start = 0
        #: Unknown topics.
        self.unknown: set[str] = set()
        #: Clear it so that the second broker accepts no connection.
        self.second_answers = threading.Event()
        self.second_answers.set()
        producer_ids = itertools.count(1)
        self._nodes = [
            _Node(self, number, server, producer_ids) for number, server in enumerate(servers)
        ]
        self._lock = threading.Lock()
        #: By topic, partition and producer id: the epoch, and the last batches with their offsets.
        self._known: dict[tuple[str, int, int], tuple[int, list[tuple[int, int, int]]]] = {}
        self._ends: dict[tuple[str, int], int] = {}

    @property
    def address(self) -> str:
        return self._nodes[0].address

    @property
    def addresses(self) -> list[tuple[int, str, int]]:
        return [(number + 1, node.host, node.port) for number, node in enumerate(self._nodes)]

    @property
    def values(self) -> list[bytes]:
        """The values of all written records."""
        return [value for batch in self.log for value in batch.values]

    def start(self) -> None:
        for node in self._nodes:
            node.start()

    def next_batch_comes(self, seconds: float) -> bool:
        """Wait up to so many seconds for the client's next produce request on the connection of the
        current one. A judge calls this. Returns: whether the request has arrived.

        The client may send other requests before, such as one for metadata.
        """
        give_up = time.monotonic() + seconds
        while _PRODUCE not in _waiting_requests(_talking.connection):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.001)
        return True

    def close(self) -> None:
        self.second_answers.set()
        for node in self._nodes:
            node.close()

    def forget(self) -> None:
        """Forget all producers, as brokers do after `producer.id.expiration.ms`."""
        with self._lock:
            self._known.clear()

    def write(self, batch: Batch) -> tuple[int, int]:
        """Write a batch if Kafka would, and return an error code and an offset."""
        where = (batch.topic, batch.partition)
        with self._lock:
            known = (*where, batch.producer_id)
            epoch, last = self._known.get(known, (-1, []))
            if batch.epoch != epoch:
                last = []
            for first, count, offset in last:
                if (first, count) == (batch.sequence, len(batch.values)) and first >= 0:
                    return 0, offset
            # An unknown producer may start with any number.
            expected = last[-1][0] + last[-1][1] if last else None if epoch < 0 else 0
            if batch.producer_id < 0:
                expected = None  # the client is not idempotent
            if expected is not None and batch.sequence != expected:
                return _OUT_OF_ORDER_SEQUENCE_NUMBER, -1
            offset = self._ends.get(where, 0)
            self._ends[where] = offset + len(batch.values)
            last = [*last, (batch.sequence, len(batch.values), offset)][-_REMEMBERED:]
            self._known[known] = (batch.epoch, last)
            self.log.append(batch)
        return 0, offset


#: The connection that a thread serves.
_talking = threading.local()


def _waiting_requests(connection: socket.socket) -> list[int]:
    """Return the kinds of the requests that have arrived and are not read yet, as API keys."""
    data = b""
    if select.select([connection], [], [], 0)[0]:
        data = connection.recv(1 << 20, socket.MSG_PEEK)
    kinds: list[int] = []
    while len(data) >= 6:
        length, kind = struct.unpack_from(">ih", data)
        kinds.append(kind)
        data = data[4 + length :]
    return kinds


class _Node(ScriptedBroker):
    def __init__(
        self,
        both: SequencedBrokers,
        number: int,
        server: socket.socket,
        producer_ids: Iterator[int],
    ) -> None:
        super().__init__(server, None)
        self.producer_ids = producer_ids
        self._both = both
        self._number = number

    def _talk(self, connection: socket.socket) -> None:
        if self._number == 1:
            self._both.second_answers.wait()
        _talking.connection = connection
        super()._talk(connection)

    def metadata(self, body: bytes) -> bytes:
        request = _metadata.MetadataRequest.decode(body, version=7)
        of = _metadata.MetadataResponse
        topics = [
            of.MetadataResponseTopic(
                version=7,
                error_code=_UNKNOWN_TOPIC if topic.name in self._both.unknown else 0,
                name=topic.name,
                is_internal=False,
                partitions=[
                    of.MetadataResponseTopic.MetadataResponsePartition(
                        version=7,
                        error_code=0,
                        partition_index=index,
                        leader_id=index + 1,
                        leader_epoch=0,
                        replica_nodes=[index + 1],
                        isr_nodes=[index + 1],
                        offline_replicas=[],
                    )
                    for index in (0, 1)
                    if topic.name not in self._both.unknown
                ],
            )
            for topic in request.topics or ()
        ]
        answer: bytes = of(
            version=7,
            throttle_time_ms=0,
            brokers=[
                of.MetadataResponseBroker(version=7, node_id=node, host=host, port=port, rack=None)
                for node, host, port in self._both.addresses
            ],
            cluster_id="sequenced",
            controller_id=1,
            topics=topics,
        ).encode()
        return answer

    def produced(self, body: bytes) -> bytes:
        request = _producer.ProduceRequest.decode(body, version=7)
        answer = struct.pack(">i", len(request.topic_data))
        for topic in request.topic_data:
            name = topic.name.encode()
            answer += struct.pack(">h", len(name)) + name
            answer += struct.pack(">i", len(topic.partition_data))
            for partition in topic.partition_data:
                batch = _batch(topic.name, partition.index, bytes(partition.records))
                error = self._both.judge(batch)
                offset = -1
                if error is None:
                    self._both.write(batch)
                    raise EOFError
                if error == 0:
                    error, offset = self._both.write(batch)
                log_start = self._both.log_start
                answer += struct.pack(">ihqqq", partition.index, error, offset, -1, log_start)
        return answer + struct.pack(">i", 0)


def _batch(topic: str, partition: int, content: bytes) -> Batch:
    producer_id, epoch, sequence = struct.unpack_from(">qhi", content, 43)
    values = tuple(
        record.value for batch in _iterate(_records.MemoryRecords(content)) for record in batch
    )
    return Batch(topic, partition, producer_id, epoch, sequence, values)


def _iterate(records: Any) -> Generator[Any]:
    while (batch := records.next_batch()) is not None:
        yield batch


@contextlib.contextmanager
def sequenced_brokers() -> Generator[SequencedBrokers]:
    """Run both."""
    brokers = SequencedBrokers([socket.create_server(("127.0.0.1", 0)) for _ in range(2)])
    brokers.start()
    try:
        yield brokers
    finally:
        brokers.close()
