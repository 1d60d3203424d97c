"""A broker that puts control characters into each string of each of its answers."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

from tests.support.scripted_broker import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    ScriptedBroker,
    _Login,
    scripted_broker,
)

__all__ = ["FORGED", "HOSTILE", "HostileBroker", "hostile_broker", "raw_lines"]

_metadata: Any = importlib.import_module("kafka.protocol.metadata")
_producer: Any = importlib.import_module("kafka.protocol.producer")
_sasl: Any = importlib.import_module("kafka.protocol.sasl")
_cluster: Any = importlib.import_module("kafka.protocol.admin.cluster")

FIND_COORDINATOR: Final = 10
ADD_PARTITIONS: Final = 24
ADD_OFFSETS: Final = 25
END_TRANSACTION: Final = 26
COMMIT_OFFSETS: Final = 28
DESCRIBE_CLUSTER: Final = 60

_VERSIONS: Final = {
    PRODUCE: (0, 8),
    1: (0, 11),  # clients take the broker for one of Kafka 2.4 or later
    METADATA: (0, 7),
    FIND_COORDINATOR: (0, 2),
    SASL_HANDSHAKE: (0, 1),
    API_VERSIONS: (0, 0),
    INIT_PRODUCER_ID: (0, 1),
    ADD_PARTITIONS: (0, 1),
    ADD_OFFSETS: (0, 1),
    END_TRANSACTION: (0, 1),
    COMMIT_OFFSETS: (0, 2),
    SASL_AUTHENTICATE: (0, 1),
    DESCRIBE_CLUSTER: (0, 0),
}

FORGED: Final = "FORGED CRITICAL all is lost"
#: A forged line, the codes that clear a terminal (in seven bits and in eight), a Unicode line
#: separator, and a character that reverses the text after it.
HOSTILE: Final = f'h"\n{FORGED}\x1b[2J\x9b2J\u2028{FORGED}\u202e'


def raw_lines(text: str) -> list[str]:
    """List the lines of an output that a hostile text has forged, or that contain its raw
    characters.

    Line ends are those of the output itself, for example in a traceback.
    """
    return [
        line
        for line in text.split("\n")
        if line.startswith(FORGED) or any(one in line for one in "\x1b\x9b\u2028\u202e\r\x85")
    ]


class HostileBroker(ScriptedBroker):
    """A scripted broker with hostile answers. Each attribute selects one kind."""

    #: Whether the first broker in its metadata can be reached.
    is_reachable = True
    #: The error codes of its answers to produce requests, to the search for a coordinator, and to
    #: the requests of a transaction.
    produce_error = 0
    coordinator_error = 0
    transaction_error = 0
    #: The error code of its answer to DescribeCluster.
    cluster_error = 0
    #: The text that replaces each text, for example the address of its second broker.
    hostile = HOSTILE
    #: The port of its second broker.
    other_port = 9092

    def metadata(self, body: bytes) -> bytes:
        request = _metadata.MetadataRequest.decode(body, version=7)
        response_class = _metadata.MetadataResponse
        broker_class = response_class.MetadataResponseBroker
        topic_class = response_class.MetadataResponseTopic
        elsewhere = (self.hostile, self.other_port)
        brokers = [(1, *((self.host, self.port) if self.is_reachable else elsewhere))]
        encoded: bytes = response_class(
            version=7,
            throttle_time_ms=0,
            brokers=[
                broker_class(version=7, node_id=node, host=host, port=port, rack=self.hostile)
                for node, host, port in [*brokers, (2, *elsewhere)]
            ],
            cluster_id=self.hostile,
            controller_id=1,
            topics=[
                topic_class(
                    version=7,
                    error_code=0,
                    name=name,
                    is_internal=False,
                    partitions=[
                        topic_class.MetadataResponsePartition(
                            version=7,
                            error_code=0,
                            partition_index=0,
                            leader_id=1,
                            leader_epoch=0,
                            replica_nodes=[1],
                            isr_nodes=[1],
                            offline_replicas=[],
                        )
                    ],
                )
                for name in [*(topic.name for topic in request.topics or ()), self.hostile]
            ],
        ).encode()
        return encoded

    def _api_versions(self, version: int) -> bytes:
        error = 0 if version == 0 else 35
        rows = b"".join(struct.pack(">hhh", api, *range_) for api, range_ in _VERSIONS.items())
        return struct.pack(">hi", error, len(_VERSIONS)) + rows

    def _answer(
        self, api: int, version: int, body: bytes, login: _Login
    ) -> tuple[bytes | None, bool]:
        hostile = self.hostile
        response: Any
        if api == SASL_HANDSHAKE and body[2:].decode() not in self.mechanisms:
            response = _sasl.SaslHandshakeResponse(
                version=version, error_code=33, mechanisms=[hostile, *self.mechanisms]
            )
            return response.encode(), False
        if api == FIND_COORDINATOR:
            response = _metadata.FindCoordinatorResponse(
                version=version,
                throttle_time_ms=0,
                error_code=self.coordinator_error,
                error_message=hostile,
                node_id=1,
                host=self.host,
                port=self.port,
            )
            return response.encode(), True
        if api in {ADD_OFFSETS, END_TRANSACTION}:
            return struct.pack(">ih", 0, self.transaction_error), True
        if api in {ADD_PARTITIONS, COMMIT_OFFSETS}:
            return self._refused_topics(), True
        if api == DESCRIBE_CLUSTER:
            return self._described(), True
        return super()._answer(api, version, body, login)

    def _refused_topics(self) -> bytes:
        rows = b"".join(
            struct.pack(">h", len(name)) + name + struct.pack(">iih", 1, 0, self.transaction_error)
            for name in (b"orders", self.hostile.encode())
        )
        return struct.pack(">ii", 0, 2) + rows

    def _described(self) -> bytes:
        response_class = _cluster.DescribeClusterResponse
        encoded: bytes = response_class(
            version=0,
            throttle_time_ms=0,
            error_code=self.cluster_error,
            error_message=self.hostile,
            cluster_id=self.hostile,
            controller_id=1,
            brokers=[
                response_class.DescribeClusterBroker(
                    version=0, broker_id=node, host=host, port=port, rack=self.hostile
                )
                for node, host, port in [
                    (1, self.host, self.port),
                    (2, self.hostile, self.other_port),
                ]
            ],
            cluster_authorized_operations=[],
        ).encode()
        return b"\0" + encoded  # the tags of a flexible header

    def produced(self, body: bytes) -> bytes:
        request = _producer.ProduceRequest.decode(body, version=8)
        text = self.hostile.encode()
        text = struct.pack(">h", len(text)) + text
        rows = b""
        # librdkafka refuses an answer with more topics than one.
        for name in (topic.name.encode() for topic in request.topic_data):
            rows += struct.pack(">h", len(name)) + name + struct.pack(">i", 1)
            rows += struct.pack(">ihqqq", 0, self.produce_error, -1, -1, -1)
            if self.produce_error:
                rows += struct.pack(">ii", 1, 0) + text + text
            else:
                rows += struct.pack(">ih", 0, -1)
        return struct.pack(">i", len(request.topic_data)) + rows + struct.pack(">i", 0)


@contextmanager
def hostile_broker(**attributes: Any) -> Generator[HostileBroker, None, None]:
    """Run a hostile broker with these attributes."""
    with scripted_broker(make=HostileBroker, refusal=HOSTILE, **attributes) as broker:
        assert isinstance(broker, HostileBroker)
        yield broker
