"""A broker that corrupts some of its answers: the same ones for the same seed.

A :class:`Plan` selects them. It names the versions that the broker speaks, the requests whose
answers are spoilt, and the first of them, so that a client reaches its later states before a
spoilt answer arrives. Fields are spoilt by :class:`~tests.support.answer_fields.AnswerWriter`, and
whole answers here: cut, repeated, swapped, or sent with the length of another.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import socket
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tests.support.answer_fields import (
    ADD_OFFSETS,
    ADD_PARTITIONS,
    COMMIT_OFFSETS,
    DESCRIBE_CLUSTER,
    END_TRANSACTION,
    FIND_COORDINATOR,
    RESPONSES,
    AnswerWriter,
    is_flexible,
)
from tests.support.scripted_broker import (
    API_VERSIONS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
    SASL_AUTHENTICATE,
    SASL_HANDSHAKE,
    ScriptedBroker,
    _Login,
    _read,
)

__all__ = [
    "JOBS",
    "MECHANISMS",
    "NEWEST",
    "PASSWORD",
    "USER",
    "FuzzedBroker",
    "Plan",
    "fuzzed_broker",
]

USER: Final = "me"
PASSWORD: Final = "hunter2"

#: The jobs of a client, and the requests that each sends besides the common ones.
JOBS: Final[Mapping[str, tuple[int, ...]]] = {
    "send": (PRODUCE, PRODUCE, INIT_PRODUCER_ID),
    "transaction": (
        PRODUCE,
        INIT_PRODUCER_ID,
        FIND_COORDINATOR,
        ADD_PARTITIONS,
        ADD_OFFSETS,
        END_TRANSACTION,
        COMMIT_OFFSETS,
    ),
    "describe": (DESCRIBE_CLUSTER, DESCRIBE_CLUSTER),
}
MECHANISMS: Final = ("", "", "PLAIN", "SCRAM-SHA-256", "OAUTHBEARER")

#: The newest versions that this broker speaks. Newer ones name topics by their ids only.
NEWEST: Final = {
    PRODUCE: 11,
    1: 12,
    METADATA: 12,
    FIND_COORDINATOR: 5,
    SASL_HANDSHAKE: 1,
    API_VERSIONS: 4,
    INIT_PRODUCER_ID: 5,
    ADD_PARTITIONS: 3,
    ADD_OFFSETS: 4,
    END_TRANSACTION: 4,
    COMMIT_OFFSETS: 4,
    SASL_AUTHENTICATE: 2,
    DESCRIBE_CLUSTER: 1,
}
#: The oldest that clients still speak with a broker of Kafka 2.3.
_OLD: Final = {
    PRODUCE: 7,
    1: 11,
    METADATA: 7,
    FIND_COORDINATOR: 2,
    SASL_HANDSHAKE: 1,
    API_VERSIONS: 2,
    INIT_PRODUCER_ID: 1,
    ADD_PARTITIONS: 1,
    ADD_OFFSETS: 1,
    END_TRANSACTION: 1,
    COMMIT_OFFSETS: 2,
    SASL_AUTHENTICATE: 1,
    DESCRIBE_CLUSTER: 0,
}

_REQUESTS: Final[Mapping[int, Any]] = {
    api: getattr(importlib.import_module(f"kafka.protocol.{module}"), name)
    for api, module, name in (
        (METADATA, "metadata", "MetadataRequest"),
        (PRODUCE, "producer", "ProduceRequest"),
        (FIND_COORDINATOR, "metadata", "FindCoordinatorRequest"),
        (ADD_PARTITIONS, "producer", "AddPartitionsToTxnRequest"),
        (COMMIT_OFFSETS, "producer", "TxnOffsetCommitRequest"),
        (SASL_HANDSHAKE, "sasl", "SaslHandshakeRequest"),
        (SASL_AUTHENTICATE, "sasl", "SaslAuthenticateRequest"),
    )
}
#: For a request without a body that the broker reads, the schema that tells its header's form.
_HEADERS: Final[Mapping[int, Any]] = {
    api: response.json for api, response in RESPONSES.items() if api != API_VERSIONS
}


class Plan:
    """The job of a client, and the selection of the broker's answers to spoil.

    Args:
        seed: determines the whole plan.
    """

    def __init__(self, seed: str) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.job = rng.choice([*JOBS, "send"])
        self.mechanism = rng.choice(MECHANISMS)
        newest = dict(NEWEST)
        if rng.random() < 0.3:
            newest.update(_OLD)
        elif rng.random() < 0.3:
            newest.update({api: rng.randint(_OLD[api], newest[api]) for api in _OLD})
        #: The newest version of each request that the broker speaks.
        self.newest: Mapping[int, int] = newest
        apis = [API_VERSIONS, METADATA, METADATA, METADATA, *JOBS[self.job]]
        if self.mechanism:
            apis += [SASL_HANDSHAKE, SASL_AUTHENTICATE, SASL_AUTHENTICATE]
        #: The request whose answers are spoilt, the first of them, and how many.
        self.target = rng.choice(apis)
        self.first = rng.choice([0, 0, 0, 1, 1, 2])
        self.times = rng.choice([1, 1, 2, 1000])
        #: Whether to spoil all of them in the same way.
        self.repeats = rng.random() < 0.5

    def spoils(self, api: int, occurrence: int) -> bool:
        """Whether the broker spoils its answer to the request of this kind with this number."""
        return api == self.target and self.first <= occurrence < self.first + self.times

    def __str__(self) -> str:
        login = f", {self.mechanism}" if self.mechanism else ""
        return f"{self.job}{login}, api {self.target} from {self.first}, {self.times} times"


class FuzzedBroker(ScriptedBroker):
    """The broker of one plan."""

    def __init__(self, server: socket.socket, plan: Plan) -> None:
        super().__init__(server, None)
        self.plan = plan
        if plan.mechanism:
            self.mechanisms = (plan.mechanism,)
        self.users = {USER: PASSWORD}
        self.tokens = frozenset({PASSWORD})
        #: Descriptions of the spoilt answers, in order.
        self.notes: list[str] = []
        #: Called with each description before the answer is sent, on the thread of a connection.
        self.tell: Callable[[str], object] = bool
        self._seen: Counter[int] = Counter()

    def _talk(self, connection: socket.socket) -> None:
        login = _Login(self)
        while True:
            (size,) = struct.unpack(">i", _read(connection, 4))
            frame = _read(connection, size)
            api, version, correlation, length = struct.unpack_from(">hhih", frame)
            body = frame[10 + max(0, length) :]
            occurrence = self._seen[api]
            self._seen[api] += 1
            self.requests.append(api)
            if api not in RESPONSES:
                return
            header = struct.pack(">i", correlation)
            if api == API_VERSIONS:
                # The answer to a version that is not supported is in the oldest one (KIP-511).
                refused = version > self.plan.newest[API_VERSIONS]
                version = 0 if refused else version
                values = self._versions(refused=refused)
            else:
                if is_flexible(_HEADERS[api], version):
                    header += b"\0"
                    body = body[1:]  # its tags: clients send none
                found = self._values(api, version, body, login)
                if found is None:
                    continue  # acks=0
                values = found
            way = 0 if self.plan.repeats else occurrence
            rng = random.Random(f"{self.plan.seed} {api} {way}")
            if self.plan.spoils(api, occurrence):
                pieces, notes = self._spoil(rng, header, api, version, values)
                self.notes += notes
                self.tell(f"{RESPONSES[api].name}: {', '.join(notes)}")
            else:
                pieces = [framed(header + AnswerWriter(api, version).write(values))]
            for piece in pieces:
                if piece is None:
                    return
                connection.sendall(piece)

    # --- good answers ---------------------------------------------------------------------------

    def _versions(self, *, refused: bool) -> Mapping[str, Any]:
        keys = [
            {"ApiKey": api, "MinVersion": 0, "MaxVersion": newest}
            for api, newest in self.plan.newest.items()
        ]
        features = [{"Name": "transaction.version", "MinVersion": 0, "MaxVersion": 2}]
        return {"ErrorCode": 35 if refused else 0, "ApiKeys": keys, "SupportedFeatures": features}

    def _values(
        self, api: int, version: int, body: bytes, login: _Login
    ) -> Mapping[str, Any] | None:
        request: Any = None
        if api in _REQUESTS:
            request = _REQUESTS[api].decode(body, version=version)
        place = {"Host": self.host, "Port": self.port}
        if api == METADATA:
            names = [topic.name for topic in request.topics or ()]
            brokers = [{"NodeId": 1, **place}]
            topics = [self._topic(name) for name in names if name]
            return {
                "Brokers": brokers,
                "ClusterId": "fuzzed",
                "ControllerId": 1,
                "Topics": topics,
            }
        if api == DESCRIBE_CLUSTER:
            brokers = [{"BrokerId": 1, **place}]
            return {"ClusterId": "fuzzed", "ControllerId": 1, "Brokers": brokers, "EndpointType": 1}
        if api == PRODUCE:
            topics = [
                {"Name": topic.name, "PartitionResponses": self._written(topic.partition_data)}
                for topic in request.topic_data
            ]
            return None if request.acks == 0 else {"Responses": topics}
        if api == FIND_COORDINATOR:
            found = {"NodeId": 1, **place}
            keys = [request.key] if version < 4 else request.coordinator_keys
            return {**found, "Coordinators": [{"Key": key, **found} for key in keys]}
        if api == INIT_PRODUCER_ID:
            return {"ProducerId": 7, "ProducerEpoch": 0}
        if api == ADD_PARTITIONS:
            rows = [
                {
                    "Name": topic.name,
                    "ResultsByPartition": [{"PartitionIndex": one} for one in topic.partitions],
                }
                for topic in request.v3_and_below_topics
            ]
            return {"ResultsByTopicV3AndBelow": rows}
        if api == COMMIT_OFFSETS:
            rows = [
                {
                    "Name": topic.name,
                    "Partitions": [
                        {"PartitionIndex": one.partition_index} for one in topic.partitions
                    ],
                }
                for topic in request.topics
            ]
            return {"Topics": rows}
        if api == SASL_HANDSHAKE:
            login.mechanism = request.mechanism
            return {"Mechanisms": self.mechanisms}
        if api == SASL_AUTHENTICATE:
            good, answer = login.step(request.auth_bytes)
            refusal = None if good else self.refusal
            return {"ErrorCode": 0 if good else 58, "ErrorMessage": refusal, "AuthBytes": answer}
        return {}  # ADD_OFFSETS and END_TRANSACTION have no other fields than the error code

    def _topic(self, name: str) -> Mapping[str, Any]:
        partitions = [
            {
                "PartitionIndex": index,
                "LeaderId": 1,
                "LeaderEpoch": 0,
                "ReplicaNodes": [1],
                "IsrNodes": [1],
            }
            for index in range(2)
        ]
        identity = uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes
        return {"Name": name, "TopicId": identity, "Partitions": partitions}

    def _written(self, partitions: Any) -> list[Mapping[str, Any]]:
        return [
            {"Index": one.index, "BaseOffset": 7, "LogAppendTimeMs": -1, "LogStartOffset": 0}
            for one in partitions
        ]

    # --- spoilt answers -------------------------------------------------------------------------

    def _spoil(
        self, rng: random.Random, header: bytes, api: int, version: int, values: Mapping[str, Any]
    ) -> tuple[list[bytes | None], list[str]]:
        """Return the bytes to send in place of an answer, and a description of the error."""
        good = AnswerWriter(api, version)
        body = good.write(values)
        way = rng.random()
        if way < 0.15:
            writer = AnswerWriter(api, version, rng=rng, forged=True)
            return [framed(header + writer.write(values))], ["forged"]
        if way < 0.65:
            wrong = rng.sample(range(good.fields), min(good.fields, rng.choice([1, 1, 1, 2, 4])))
            writer = AnswerWriter(api, version, wrong, rng)
            return [framed(header + writer.write(values))], writer.notes
        name = rng.choice([name for name in dir(self) if name.startswith("_spoil_")])
        return getattr(self, name)(rng, header, body), [name.removeprefix("_spoil_")]

    def _spoil_short(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        return [framed((header + body)[: rng.randrange(len(header + body))])]

    def _spoil_cut(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        whole = framed(header + body)
        return [whole[: rng.randrange(len(whole))], *rng.choice([[None], []])]

    def _spoil_longer(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        return [framed(header + body + rng.randbytes(rng.choice([1, 30, 3000])))]

    def _spoil_length(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        size = len(header + body)
        near, far = (
            size + rng.choice([-5, -1, 1, 5, 1000]),
            [0, 3, -1, -(2**31), 2**31 - 1, 2**24 + 1],
        )
        return [struct.pack(">i", rng.choice([near, *far])) + header + body]

    def _spoil_number(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        return [framed(rng.choice([bytes(4), b"\xff" * 4, rng.randbytes(4)]) + header[4:] + body)]

    def _spoil_twice(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        return [framed(header + body) * rng.choice([2, 20])]

    def _spoil_silence(self, *_: Any) -> list[bytes | None]:
        return []

    def _spoil_end(self, *_: Any) -> list[bytes | None]:
        return [None]

    def _spoil_byte_by_byte(self, _: Any, header: bytes, body: bytes) -> list[bytes | None]:
        whole = framed(header + body)
        return [*(whole[at : at + 1] for at in range(min(50, len(whole)))), whole[50:]]

    def _spoil_bytes(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        changed = bytearray(body)
        for _ in range(rng.choice([1, 2, 8])):
            if changed:
                changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        return [framed(header + bytes(changed))]

    def _spoil_noise(self, rng: random.Random, header: bytes, body: bytes) -> list[bytes | None]:
        noise = [rng.randbytes(len(body)), bytes(len(body)), b"\xff" * len(body), b""]
        return [rng.choice([framed(header + rng.choice(noise)), rng.randbytes(200)])]

    def _spoil_other(self, rng: random.Random, header: bytes, _: bytes) -> list[bytes | None]:
        api = rng.choice([*RESPONSES])
        return [framed(header + AnswerWriter(api, self.plan.newest[api]).write({}))]


def framed(content: bytes) -> bytes:
    """Prefix content with its length."""
    return struct.pack(">i", len(content)) + content


@contextmanager
def fuzzed_broker(plan: Plan) -> Generator[FuzzedBroker, None, None]:
    """Run the broker of a plan."""
    with contextlib.ExitStack() as stack:
        broker = FuzzedBroker(socket.create_server(("127.0.0.1", 0)), plan)
        broker.start()
        stack.callback(broker.close)
        yield broker
