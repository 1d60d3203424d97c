"""A small broker with scripted answers, which accepts logins and records.

It speaks Kafka's protocol with the classes of kafka-python, on a thread for each connection, and
stores no log. A test can replace any answer with a function, or with bytes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib
import itertools
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

__all__ = [
    "API_VERSIONS",
    "FIND_COORDINATOR",
    "METADATA",
    "PRODUCE",
    "SASL_AUTHENTICATE",
    "Answer",
    "ScriptedBroker",
    "authenticated",
    "framed",
    "scripted_broker",
]

_metadata: Any = importlib.import_module("kafka.protocol.metadata")
_memory_records: Any = importlib.import_module("kafka.record.memory_records")
_producer: Any = importlib.import_module("kafka.protocol.producer")
_sasl: Any = importlib.import_module("kafka.protocol.sasl")

#: The API keys of Kafka's requests.
PRODUCE: Final = 0
METADATA: Final = 3
FIND_COORDINATOR: Final = 10
SASL_HANDSHAKE: Final = 17
API_VERSIONS: Final = 18
INIT_PRODUCER_ID: Final = 22
SASL_AUTHENTICATE: Final = 36

#: The supported versions of each request.
_VERSIONS: Final = {
    PRODUCE: (7, 7),
    METADATA: (7, 7),
    # It has no default answer to this one.
    FIND_COORDINATOR: (1, 1),
    SASL_HANDSHAKE: (1, 1),
    API_VERSIONS: (0, 0),
    INIT_PRODUCER_ID: (1, 1),
    SASL_AUTHENTICATE: (1, 1),
    # It does not support this one, but clients conclude from it that the broker is as new as Kafka
    # 2.3.
    1: (11, 11),
}
_AUTHENTICATION_FAILED: Final = 58
_UNSUPPORTED_MECHANISM: Final = 33
_UNSUPPORTED_VERSION: Final = 35
_UNKNOWN_TOPIC_OR_PARTITION: Final = 3
_LEADER_NOT_AVAILABLE: Final = 5
_TOPIC_AUTHORIZATION_FAILED: Final = 29

#: A replacement of an answer: bytes, several bytes one after another, or None for no answer. A None
#: in a list ends the connection.
Answer = Callable[[bytes], "bytes | Sequence[bytes | None] | None"]


class ScriptedBroker:
    """The controls of the broker."""

    def __init__(self, server: socket.socket, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self.port = int(server.getsockname()[1])
        self.host = "127.0.0.1"
        #: The offered mechanisms; empty for no login.
        self.mechanisms: tuple[str, ...] = ()
        self.users: Mapping[str, str] = {}
        self.tokens: frozenset[str] = frozenset()
        #: Milliseconds until a client has to log in again, on the same connection; 0 for never.
        self.session_ms = 0
        #: How often SCRAM hashes a password.
        self.iterations = 4096
        #: Whether it accepts every login, and makes up its proof that it knows the password.
        self.is_impostor = False
        #: The message for a refused login.
        self.refusal = "Authentication failed: Invalid username or password"
        #: Whether it closes the connection after a refused login, as Apache Kafka does.
        self.hangs_up = True
        #: The advertised addresses of the brokers.
        self.brokers: list[tuple[int, str, int]] = []
        self.partitions = 1
        self.producer_ids: Iterator[int] = itertools.repeat(1)
        #: Unknown topics.
        self.unknown: set[str] = set()
        #: Topics that clients are not authorized to use.
        self.forbidden: set[str] = set()
        #: Partitions without a leader, of each topic.
        self.leaderless: set[int] = set()
        #: The error and the offset of its answer for partitions, of each topic, to which it writes
        #: nothing.
        self.errors: dict[int, tuple[int, int]] = {}
        #: The received values by topic and partition, also if it answered with an error.
        self.records: dict[tuple[str, int], list[list[bytes]]] = {}
        #: Replacements of answers by API key.
        self.answers: dict[int, Answer] = {}
        self.requests: list[int] = []
        self.connections = 0
        self.logins: list[bool] = []
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            # As Apache Kafka does: a second answer would wait for the acknowledgement of the first.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def disconnect(self) -> None:
        """End all connections."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        # From here on there is no new connection and no new thread.
        self._accepting.join(10)
        self.disconnect()
        for thread in self._threads:
            thread.join(10)

    # --- one connection -------------------------------------------------------------------------

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            with contextlib.suppress(OSError, ssl.SSLError, EOFError):
                if self._context is not None:
                    connection = self._context.wrap_socket(plain, server_side=True)
                    self._connections.add(connection)
                self._talk(connection)
        finally:
            self._connections -= {plain, connection}
            connection.close()
            plain.close()

    def _talk(self, connection: socket.socket) -> None:
        login = _Login(self)
        while True:
            size = struct.unpack(">i", _read(connection, 4))[0]
            frame = _read(connection, size)
            api, version, correlation, length = struct.unpack_from(">hhih", frame)
            body = frame[10 + max(0, length) :]
            self.requests.append(api)
            scripted = self.answers.get(api)
            if scripted is not None:
                sent = scripted(struct.pack(">i", correlation))
                for piece in [sent or b""] if sent is None or isinstance(sent, bytes) else sent:
                    if piece is None:
                        return
                    connection.sendall(piece)
                continue
            answer, good = self._answer(api, version, body, login)
            if answer is not None:
                connection.sendall(framed(struct.pack(">i", correlation), answer))
            if not good and self.hangs_up:
                return

    def _answer(
        self, api: int, version: int, body: bytes, login: _Login
    ) -> tuple[bytes | None, bool]:
        if api == API_VERSIONS:
            return self._api_versions(version), True
        if api == SASL_HANDSHAKE:
            login.mechanism = body[2:].decode()
            known = login.mechanism in self.mechanisms
            response = _sasl.SaslHandshakeResponse(
                version=1,
                error_code=0 if known else _UNSUPPORTED_MECHANISM,
                mechanisms=list(self.mechanisms),
            )
            return response.encode(), known
        if api == SASL_AUTHENTICATE:
            good, answer = login.step(body[4:])
            if login.done:
                self.logins.append(good)
            response = _sasl.SaslAuthenticateResponse(
                version=1,
                error_code=0 if good else _AUTHENTICATION_FAILED,
                error_message=None if good else self.refusal,
                auth_bytes=answer,
                session_lifetime_ms=self.session_ms,
            )
            return response.encode(), good
        if self.mechanisms and not login.done:
            return None, False
        if api == METADATA:
            return self.metadata(body), True
        if api == INIT_PRODUCER_ID:
            response = _producer.InitProducerIdResponse(
                version=1,
                throttle_time_ms=0,
                error_code=0,
                producer_id=next(self.producer_ids),
                producer_epoch=0,
            )
            return response.encode(), True
        return self.produced(body), True

    def _api_versions(self, version: int) -> bytes:
        # A request in a newer version gets an error in the oldest version, as in KIP-511.
        error = 0 if version == 0 else _UNSUPPORTED_VERSION
        rows = b"".join(struct.pack(">hhh", api, *range_) for api, range_ in _VERSIONS.items())
        return struct.pack(">hi", error, len(_VERSIONS)) + rows

    def metadata(self, body: bytes) -> bytes:
        """Answer with the metadata of the requested topics: each has its partitions and a
        leader."""
        request = _metadata.MetadataRequest.decode(body, version=7)
        brokers = self.brokers or [(1, self.host, self.port)]
        leader = brokers[0][0]
        response = _metadata.MetadataResponse(
            version=7,
            throttle_time_ms=0,
            brokers=[
                _metadata.MetadataResponse.MetadataResponseBroker(
                    version=7, node_id=node, host=host, port=port, rack=None
                )
                for node, host, port in brokers
            ],
            cluster_id="scripted",
            controller_id=leader,
            topics=[
                _metadata.MetadataResponse.MetadataResponseTopic(
                    version=7,
                    error_code=self._error_of(topic.name),
                    name=topic.name,
                    is_internal=False,
                    partitions=[
                        _metadata.MetadataResponse.MetadataResponseTopic.MetadataResponsePartition(
                            version=7,
                            error_code=_LEADER_NOT_AVAILABLE if index in self.leaderless else 0,
                            partition_index=index,
                            leader_id=-1 if index in self.leaderless else leader,
                            leader_epoch=0,
                            replica_nodes=[leader],
                            isr_nodes=[leader],
                            offline_replicas=[],
                        )
                        for index in range(0 if self._error_of(topic.name) else self.partitions)
                    ],
                )
                for topic in request.topics or ()
            ],
        )
        encoded: bytes = response.encode()
        return encoded

    def _error_of(self, topic: str) -> int:
        if topic in self.forbidden:
            return _TOPIC_AUTHORIZATION_FAILED
        return _UNKNOWN_TOPIC_OR_PARTITION if topic in self.unknown else 0

    def produced(self, body: bytes) -> bytes:
        """Answer that all records are written, except for `errors`."""
        request = _producer.ProduceRequest.decode(body, version=7)
        rows = b""
        for topic in request.topic_data:
            name = topic.name.encode()
            rows += (
                struct.pack(">h", len(name)) + name + struct.pack(">i", len(topic.partition_data))
            )
            for partition in topic.partition_data:
                values = [
                    record.value
                    for batch in _memory_records.MemoryRecords(partition.records)
                    for record in batch
                ]
                self.records.setdefault((topic.name, partition.index), []).append(values)
                error, offset = self.errors.get(partition.index, (0, 7))
                rows += struct.pack(">ihqqq", partition.index, error, offset, -1, 0)
        return struct.pack(">i", len(request.topic_data)) + rows + struct.pack(">i", 0)


class _Login:
    """The broker's side of a login."""

    def __init__(self, broker: ScriptedBroker) -> None:
        self._broker = broker
        self.mechanism = ""
        self.done = False
        self._first = b""
        self._second = b""
        self._key = b""

    def step(self, message: bytes) -> tuple[bool, bytes]:
        """Return whether the login is valid so far, and the answer."""
        if self.mechanism == "PLAIN":
            self.done = True
            _, user, password = message.split(b"\0")
            return self._broker.users.get(user.decode()) == password.decode(), b""
        if self.mechanism == "OAUTHBEARER":
            self.done = True
            token = message.partition(b"auth=Bearer ")[2].partition(b"\1")[0].decode()
            return token in self._broker.tokens, b""
        return self._scram(message)

    def _scram(self, message: bytes) -> tuple[bool, bytes]:
        name = self.mechanism.removeprefix("SCRAM-").replace("-", "").lower()
        if not self._first:
            self._first = message[3:]
            parts = dict(part.split(b"=", 1) for part in self._first.split(b","))
            user = parts[b"n"].replace(b"=2C", b",").replace(b"=3D", b"=").decode()
            salt = os.urandom(16)
            password = self._broker.users.get(user, "").encode()
            iterations = self._broker.iterations
            self._key = hashlib.pbkdf2_hmac(name, password, salt, iterations)
            nonce = parts[b"r"] + b"and-the-brokers"
            self._second = b"r=%b,s=%b,i=%d" % (nonce, base64.b64encode(salt), iterations)
            return True, self._second
        self.done = True
        if self._broker.is_impostor:
            return True, b"v=" + base64.b64encode(os.urandom(32))
        final, _, proof = message.rpartition(b",p=")

        def mac(key: bytes, text: bytes) -> bytes:
            return hmac.digest(key, text, name)

        client = mac(self._key, b"Client Key")
        said = b",".join((self._first, self._second, final))
        signature = mac(hashlib.new(name, client).digest(), said)
        wanted = bytes(one ^ other for one, other in zip(client, signature, strict=True))
        server = mac(mac(self._key, b"Server Key"), said)
        return base64.b64decode(proof) == wanted, b"v=" + base64.b64encode(server)


def framed(correlation: bytes, body: bytes) -> bytes:
    """Encode an answer, with its length in front."""
    return struct.pack(">i", len(correlation + body)) + correlation + body


def authenticated(message: bytes) -> Answer:
    """The successful answer to SaslAuthenticate, with the mechanism's next message."""
    response = _sasl.SaslAuthenticateResponse(
        version=1, error_code=0, error_message=None, auth_bytes=message, session_lifetime_ms=0
    )
    body: bytes = response.encode()
    return lambda correlation: framed(correlation, body)


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(min(size - len(content), 2**20))
        if not piece:
            raise EOFError
        content += piece
    return content


@contextmanager
def scripted_broker(
    context: ssl.SSLContext | None = None,
    make: type[ScriptedBroker] = ScriptedBroker,
    **attributes: Any,
) -> Generator[ScriptedBroker, None, None]:
    """Run a scripted broker with these attributes.

    Args:
        context: the TLS context; None for no TLS.
        make: the class of the broker.
        attributes: such as ``mechanisms``.
    """
    server = socket.create_server(("127.0.0.1", 0))
    broker = make(server, context)
    for name, value in attributes.items():
        setattr(broker, name, value)
    broker.start()
    try:
        yield broker
    finally:
        broker.close()
