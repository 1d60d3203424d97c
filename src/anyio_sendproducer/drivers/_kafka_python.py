"""The default driver: kafka-python's ``KafkaProducer``, off the loop and kept from hanging.

The only module that imports ``kafka``, and the one seam at which its exceptions are translated.
What it works around was read in and run against kafka-python 3.0.12; each place says so.
"""

# kafka-python has no types of its own: what comes from it is unknown, and is cast where it leaves.
# mypy: disable-error-code="misc"
# ruff: noqa: E402
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import logging
import math
import operator
import random
import re
import ssl
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

# On Python 3.11 and 3.12 kafka-python 3.0.12 reads its protocol's schemas, some of them later, by a
# function that is deprecated there. A filter for good: what changes filters and restores them is
# not for threads, and this module is imported on one.
warnings.filterwarnings(
    "ignore",
    "(read_text|open_text) is deprecated",
    DeprecationWarning,
    r"(kafka\.protocol|importlib\.resources\._legacy)",
)

import kafka.errors as kafka_errors
from kafka import KafkaAdminClient, KafkaProducer, codec, structs
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.partitioner import (
    Partitioner,  # pyright: ignore[reportAttributeAccessIssue]
    murmur2,
)
from kafka.protocol.broker_version_data import BROKER_API_VERSIONS
from kafka.protocol.metadata import (
    ApiVersionsRequest,  # pyright: ignore[reportAttributeAccessIssue]
)
from kafka.protocol.producer import ProduceRequest
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest, SaslHandshakeRequest
from kafka.structs import OffsetAndMetadata, TopicPartition

from .._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerClosed,
    ProducerFenced,
    ProducerStartError,
    RecordRejected,
    SendProducerError,
    SettingsError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from .._records import ConsumerGroupMetadata, ProducerRecord
from .._settings import ProducerSettings
from .._shown import harmless, listed, one_line, raised_text, shown
from ._discreet import Discreet
from ._freshness import MissingPartitions, Refreshes
from ._kafka_config import CODECS, client_config
from ._protocols import (
    HOW_FAR,
    BrokerDescription,
    ClusterDescription,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
)
from ._runs import RUN_BYTES, Line, Route, Run
from ._security import SCRAM, TokenSource
from ._serializing import parts_of, serialize_with, size_of
from ._stalled import GivenUp, StalledPartitions
from ._tls import tls_refusal

__all__ = [
    "KafkaPythonDriver",
    "describe",
    "find_hurry",
    "flush_nothing",
    "is_metadata_missing",
    "no_metadata",
    "not_acknowledged",
    "not_taken",
]

#: Kafka answers these for a batch that it did not and will not write.
_REFUSALS: Final[tuple[type[Exception], ...]] = (
    kafka_errors.AuthorizationError,
    kafka_errors.CorruptRecordError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.PolicyViolationError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.UnsupportedCompressionTypeError,
    kafka_errors.UnsupportedForMessageFormatError,
    kafka_errors.UnsupportedVersionError,
)

#: From these the idempotent client recovers by itself, with a new epoch (KIP-360), where the
#: brokers are of 2.5 or later. With older ones 3.0.12 never gets a producer id again and hangs.
_RECOVERED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.UnknownProducerIdError,
)

#: Refusals of which single records of a batch are the reason.
_OF_ONE_RECORD: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTimestampError,
)

#: Refusals of this client whatever it sends.
_OF_EVERYTHING: Final[tuple[type[Exception], ...]] = (
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailedError,
    kafka_errors.UnsupportedVersionError,
)

#: By these a broker says that another producer took over. The first of them can also mean that the
#: transaction took too long; 3.0.12 finds out which, where brokers are of 2.7 or later.
_FENCED: Final[tuple[type[Exception], ...]] = (
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.ProducerFencedError,
)

#: For how long after the last look at it an unknown topic is asked for.
_UNKNOWN_SECONDS: Final = 30.0

#: Between two requests for the metadata of topics that this client may not use.
_ASK_AGAIN_SECONDS: Final = 0.5

#: How long after start_timeout a start is left behind that has not ended by itself.
_LATE_SECONDS: Final = 2.0

#: How long the client's thread may take to end once it was told to.
_JOIN_SECONDS: Final = 2.0

#: How soon the client looks again at a broker that it connects to, if nothing comes of it before.
_LOOK_AGAIN_MS: Final = 50.0

#: How long one address may take to answer before the next one is tried, too.
_NEXT_ADDRESS_SECONDS: Final = 0.25

#: How soon a wait for the transaction's coordinator notices that it is over.
_SLICE_MS: Final = 50

#: How many brokers are asked for their versions at a time.
_MOST_ASKED: Final = 16

#: How much is read from a connection at a time.
_READ_BYTES: Final = 256 * 1024

#: How many requests a connection sends to find out versions, and to log in. SCRAM takes two, and
#: Kerberos three or four.
_MAX_ROUNDS: Final = 10

#: How often SCRAM may hash a password. Kafka allows 4,096 to 16,384. With fewer, somebody in the
#: place of a broker can guess the password sooner (RFC 7677 has 4,096 as well); a million hold up
#: the client for seconds.
_LEAST_ITERATIONS: Final = 4_096
_MOST_ITERATIONS: Final = 100_000

_SET_UP: Final = (ApiVersionsRequest, SaslAuthenticateRequest, SaslBytesRequest)

_log = logging.getLogger("anyio_sendproducer.kafka_python")
# All of its loggers are there by now.
Discreet.watch("kafka")
# This one writes down its whole configuration, passwords and all.
logging.getLogger("kafka.admin.client").addFilter(
    lambda record: "configuration" not in str(record.msg)
)
# 3.0.12 looks whether it is one, when it connects.
AbstractTokenProvider.register(TokenSource)


# --- the client, tamed ---------------------------------------------------------------------------


class _Socket(KafkaNetSocket):
    """A plain connection that closes its socket where it fails.

    3.0.12 leaves that to the garbage collector: one more descriptor for each attempt to reach a
    broker that is down. A class with SCHEMES is chosen by the setting ``proxy_url``.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, *args: Any, **options: Any) -> Any:
        """Connect, or close."""
        try:
            return await super().sock_connect(net, sock, *args, **options)
        except BaseException:
            sock.close()
            raise


def _receive(transport: Any) -> tuple[bytes, Any]:
    """Read what has come in, and no more than so much at a time.

    3.0.12 reads on for as long as anything comes, and where a broker answers and closes the
    connection, as Kafka does when it refuses a login, it throws the answer away.
    """
    received: list[bytes] = []
    size = 0
    failure: Exception | None = None
    sock = transport._sock
    while size < _READ_BYTES or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
        try:
            data = sock.recv(65_536)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            break
        except Exception as error:  # noqa: BLE001  # goes to those who wait for answers
            failure = kafka_errors.KafkaConnectionError(error)
            break
        if not data:
            failure = kafka_errors.KafkaConnectionError("socket disconnected")
            break
        received.append(data)
        size += len(data)
    # Where there is both, the failure will be there at the next attempt again.
    return b"".join(received), None if received else failure


def _send(transport: Any, send: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """Send, and where that fails look for what the broker said before it hung up.

    With TLS 1.3 a client is through with the handshake before the broker has looked at its
    certificate: the alert can come while it sends, and 3.0.12 then reads no more.
    """
    sent, failure = send()
    if failure is not None and isinstance(transport._sock, ssl.SSLSocket):
        _, said = _receive(transport)
        if said is not None and tls_refusal(said) is not None:
            failure = said
    return sent, failure


class _ScramLoginError(kafka_errors.SaslAuthenticationFailedError):
    """A broker's part of a SCRAM login is wrong, or too weak."""


class _Connection(KafkaConnection):
    """A connection that bounds what a broker can have it do while it logs in.

    3.0.12 answers without a pause and without end, and there is no public way to stop it. It takes
    what is wrong with a broker's part of a login for a failed connection, and tries again.
    """

    #: How many requests it has sent to find out versions, or to log in.
    _rounds = 0

    def _send_request(self, request: Any, *args: Any, **options: Any) -> Any:
        if isinstance(request, SaslHandshakeRequest):
            self._rounds = 0
        elif isinstance(request, _SET_UP):
            self._rounds += 1
            if self._rounds > _MAX_ROUNDS:
                raise kafka_errors.KafkaConnectionError(
                    f"the broker goes on asking after {_MAX_ROUNDS} requests of type "
                    f"{type(request).__name__}"
                )
        answer = super()._send_request(request, *args, **options)
        if self._is_scram and isinstance(request, _SET_UP):
            return self._check_iterations(answer)
        return answer

    async def _sasl_authenticate(self, timeout_at: float | None = None) -> None:
        try:
            await super()._sasl_authenticate(timeout_at)
        except kafka_errors.KafkaError:
            raise
        except Exception as error:
            if not self._is_scram:
                raise
            raise _ScramLoginError(one_line(error)) from error

    async def _check_iterations(self, answer: Any) -> Any:
        """Refuse a password's hash that is quickly guessed, or that takes long to make."""
        response = await answer
        message: bytes = getattr(response, "auth_bytes", b"") or b""
        for part in message.decode().split(","):
            name, _, value = part.partition("=")
            if name == "i" and not _LEAST_ITERATIONS <= int(value) <= _MOST_ITERATIONS:
                raise _ScramLoginError(
                    f"it asks for {int(value)} iterations, where {_LEAST_ITERATIONS} to "
                    f"{_MOST_ITERATIONS} are accepted"
                )
        return response

    @property
    def _is_scram(self) -> bool:
        return self.config["sasl_mechanism"] in SCRAM


#: What kafka-python puts before the broker's own words.
_BOILERPLATE: Final = re.compile(r"^(\[Error \d+\] |\w+Error: )+")

#: The lengths for which it takes the beginning of an alert of TLS 1.0, 1.1 and 1.2.
_TLS_ALERTS: Final = tuple(f"length: {0x15030000 + minor * 256}" for minor in (1, 2, 3))


class _Manager(KafkaConnectionManager):
    """Makes the connections, and keeps what became of the last attempt at each broker."""

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs)
        #: Why the last connection to a broker did not come about.
        self.failures: dict[Any, Exception] = {}
        self._transports: weakref.WeakSet[Any] = weakref.WeakSet()
        # 3.0.12 has no setting for these; an attempt to connect may take as long as a request.
        config: dict[str, Any] = self.config
        for name in (
            "socket_connection_setup_timeout_ms",
            "socket_connection_setup_timeout_max_ms",
        ):
            config[name] = min(config[name], config["request_timeout_ms"])
        # The address that answered first, for the next attempt to bootstrap.
        self._answered: list[Any] = []
        cluster: Any = self.cluster
        self._addresses: list[Any] = cluster.bootstrap_brokers()
        cluster.bootstrap_brokers = self._next_addresses
        self._places: dict[Any, tuple[str, int]] = {}
        self._next_bootstrap = 0.0
        cluster.add_listener(self._look_for_moved)

    # --- bootstrapping -----------------------------------------------------------------------

    def _next_addresses(self) -> list[Any]:
        answered, self._answered = self._answered, []
        return answered or self._addresses

    async def _do_bootstrap(self, deadline: float | None) -> Any:
        """Bootstrap from the address that answers first.

        3.0.12 tries one address at a time, and waits up to 10 s for each. So the connections are
        made here, side by side, and its own attempt finds one of them.
        """
        while len(self._addresses) > 1 and not self._answered:
            if self.closed or (deadline is not None and time.monotonic() >= deadline):
                break
            await self._find_address()
        try:
            return await super()._do_bootstrap(deadline)
        except kafka_errors.KafkaTimeoutError:
            if not self.closed:
                raise
            return None  # otherwise it would log an error whenever a client is closed meanwhile

    async def _find_address(self) -> None:
        """Connect to the addresses until one has answered; a new one every quarter of a second, or
        as soon as an attempt has failed."""
        connecting: dict[Any, Any] = {}
        brokers = random.sample(self._addresses, len(self._addresses))
        while connecting or brokers:
            while brokers:
                broker = brokers.pop()
                with contextlib.suppress(kafka_errors.KafkaError):  # it is too early to try it
                    connection = self.get_connection(
                        broker.node_id,
                        refresh_metadata_on_err=False,
                        reset_backoff_on_connect=False,
                    )
                    connection.init_future.add_both(self._look_at_addresses)
                    connecting[broker.node_id] = broker, connection
                    break
            for node_id, (broker, connection) in [*connecting.items()]:
                if connection.connected:
                    self._answered = [broker]
                    del connecting[node_id]
                    for _, other in connecting.values():
                        other.close()
                    return
                if connection.init_future.is_done:
                    del connecting[node_id]
            if connecting:
                await self._bootstrap_wakeup(_NEXT_ADDRESS_SECONDS if brokers else None)
        # None can be had now. Wait until one may be tried again.
        delays = [self.connection_delay(broker.node_id) for broker in self._addresses]
        await self._bootstrap_wakeup(max(min(delays), _LOOK_AGAIN_MS / 1000))

    def _look_at_addresses(self, _: Any) -> None:
        self._bootstrap_wakeup.notify()

    def least_loaded_node(self) -> Any:
        """A broker to ask; none, and the addresses are tried again, while no broker is reached."""
        now = time.monotonic()
        if now >= self._next_bootstrap and self._is_lost():
            # 3.0.12 asks the brokers that it knows forever. They may have other addresses now.
            backoff_ms: Any = self.config["reconnect_backoff_max_ms"]
            self._next_bootstrap = now + backoff_ms / 1000
            self.bootstrap_async()
        # Not while it bootstraps: that would wait for the answer of a broker that is not reached.
        bootstrap: Any = self._bootstrap_future
        return super().least_loaded_node() if bootstrap is None or bootstrap.is_done else None

    def _is_lost(self) -> bool:
        """Whether no known broker can be reached. One that refuses a login is reached."""
        refused = kafka_errors.SaslAuthenticationFailedError
        return self.cut_off() and not any(
            isinstance(error, refused) for error in self.failures.values()
        )

    def _look_for_moved(self, cluster: Any) -> None:
        """Connect at once to a broker that has another address now."""
        places = {broker.node_id: (broker.host, broker.port) for broker in cluster.brokers()}
        for node_id, place in places.items():
            if self._places.get(node_id, place) != place:
                self.failures.pop(node_id, None)
                self.reset_backoff(node_id)
                connection = self._conns.get(node_id)
                if connection is not None and not connection.connected:
                    connection.close()
        self._places = places

    # --- connections -------------------------------------------------------------------------

    def get_connection(self, node_id: Any, *args: Any, **options: Any) -> Any:
        """A connection, new or not."""
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, *args, **options)
        if connection is not known:
            # 3.0.12 makes it of its own class. It connects later, in a task.
            connection.__class__ = _Connection
            connection.init_future.add_callback(functools.partial(self._succeeded, node_id))
            connection.init_future.add_errback(functools.partial(self._failed, node_id))
        return connection

    def _succeeded(self, node_id: Any, _: Any) -> None:
        self.failures.pop(node_id, None)

    def _failed(self, node_id: Any, error: Exception) -> None:
        # The last one comes last.
        self.failures.pop(node_id, None)
        self.failures[node_id] = harmless(error)

    def reset_backoff(self, node_id: Any) -> None:
        """Connect at once where that is next needed. 3.0.12 does so even after a failed login."""
        if node_id not in self.failures:
            super().reset_backoff(node_id)
        else:
            self.update_backoff(node_id)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        # As in 3.0.12, which waits for the end of a TLS handshake without a bound, and leaves the
        # socket to the garbage collector where it fails.
        config = self.config
        try:
            sock = await create_connection(
                self._net,
                node.host,
                node.port,
                config["socket_options"],
                proxy_url=config["proxy_url"],
                timeout_at=timeout_at,
            )
        except (OverflowError, ValueError) as error:
            # The cluster named a host or a port that cannot exist. 3.0.12 ends its task that
            # refreshes metadata at any error but its own.
            raise kafka_errors.KafkaConnectionError(f"no such address: {error}") from error
        made: Any = sock
        done = False
        try:
            if self.ssl_enabled:
                context = config["ssl_context"]
                made = KafkaSSLTransport(self._net, sock, node.host, ssl_context=context)
                await self._shake_hands(made._sock, timeout_at)
            else:
                made = KafkaTCPTransport(self._net, sock, node.host)
            made._sock_recv = functools.partial(_receive, made)
            made._sock_send = functools.partial(_send, made, made._sock_send)
            self._transports.add(made)
            done = True
        except Exception as error:
            raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
        finally:
            if not done:
                made.close()
        return made

    def let_go(self) -> None:
        """Close what is open when all is closed. 3.0.12 leaves a connection to the garbage
        collector where it has something to send that the broker does not take."""
        for transport in [*self._transports]:
            if transport._sock is not None:
                with contextlib.suppress(OSError):
                    transport._sock.close()

    async def _shake_hands(self, sock: ssl.SSLSocket, timeout_at: float | None) -> None:
        while True:
            try:
                return sock.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                net = self._net
                reads = isinstance(error, ssl.SSLWantReadError)
                await (net.wait_read if reads else net.wait_write)(sock, timeout_at=timeout_at)

    def refusal(self) -> tuple[str, Exception] | None:
        """Why no broker lets us in, where to go on trying won't help: each was tried, none can be
        had, and one of them refuses what it is shown."""
        brokers = self._addresses
        if any(broker.node_id not in self.failures for broker in brokers):
            return None
        for broker in brokers:
            error = self.failures[broker.node_id]
            why = self._refusal(error)
            if why is not None:
                return f"{_address(broker)} {why}", error
        return None

    def trouble(self) -> tuple[str, Exception] | None:
        """Which broker could not be connected to when that was tried last, and why."""
        brokers = {broker.node_id: broker for broker in cast("Any", self.cluster).brokers()}
        for node_id, error in reversed(list(self.failures.items())):
            broker = brokers.get(node_id)
            if broker is not None:
                why = self._refusal(error) or f"can't be reached: {_words(error)}"
                return f"{_address(broker)} {why}", error
        return None

    def cut_off(self) -> bool:
        """Whether no broker could be connected to when that was tried last."""
        brokers: list[Any] = cast("Any", self.cluster).brokers()
        return bool(brokers) and all(broker.node_id in self.failures for broker in brokers)

    def _refusal(self, error: Exception) -> str | None:
        protocol, mechanism = self.config["security_protocol"], self.config["sasl_mechanism"]
        said = _words(error)
        if isinstance(error, _ScramLoginError):
            return f"did not complete the login with {mechanism}: {said}"
        if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
            return f"refused the login with {mechanism}: {said}"
        if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
            return f"does not offer {mechanism}: {said}"
        if isinstance(error, kafka_errors.IllegalSaslStateError):
            return f"expects no login, and security.protocol is {protocol}"
        if isinstance(error, kafka_errors.InvalidReceiveError) and said.endswith(_TLS_ALERTS):
            return f"speaks TLS, and security.protocol is {protocol}"
        refused = tls_refusal(error) if self.ssl_enabled else None
        return None if refused is None else f"can't be spoken to by TLS: {refused}"


def _address(broker: Any) -> str:
    """Where a broker says that it is to be reached, which may be any text."""
    return f"{one_line(broker.host)}:{broker.port}"


def _words(error: Exception) -> str:
    """What an error of the client says, without what it says each time."""
    return one_line(_BOILERPLATE.sub("", str(error)))


class _NetClient(KafkaNetClient):
    """kafka-python's network client, which tells when its thread is through with it.

    The ``kafka_client`` setting is the public way in. The producer's sender thread closes its
    client as its last act, so this is how to know that thread and to wait for it.
    """

    def __init__(self, **configs: Any) -> None:
        self.net = NetworkSelector(**configs)
        self.manager = _Manager(self.net, **configs)
        super().__init__(self.net, self.manager, **configs)
        self.closed_by: threading.Thread | None = None
        self.is_closed = threading.Event()
        #: Topics and partitions whose last produce request was refused.
        self.refused: set[tuple[str, int]] = set()
        #: Topics and partitions that the broker did not know when it answered last.
        self.unwritten: set[tuple[str, int]] = set()
        #: Set when the client is to be closed, and to wait for no connection any more.
        self.is_closing = False

    def maybe_connect(self, node_id: Any, **options: Any) -> None:
        """Begin to connect, if it is time.

        3.0.12 raises in each pass of its loop if the cluster did not name this broker, and does not
        request the brokers again. A request for metadata ends the wait of the loop, so one is made
        only if there is none yet.
        """
        cluster: Any = self.cluster
        if cluster.broker_metadata(node_id) is None:
            if not cluster.need_update:
                cluster.request_update()
        else:
            super().maybe_connect(node_id, **options)

    def connection_delay(self, node_id: Any) -> float:
        """Milliseconds until it is worth while to look at a broker again. 3.0.12 takes the seconds
        that it is given for milliseconds, and spins while it connects."""
        return max(cast("float", super().connection_delay(node_id)) * 1000, _LOOK_AGAIN_MS)

    def await_ready(self, node_id: Any, timeout_ms: float = 30_000) -> Any:
        """Wait for a connection; in slices, or nothing would end it before its time.

        It ends with the first attempt that fails. A coordinator may have another address by then.
        The sender loses its request if this raises, as in 3.0.12; after False it asks for the
        coordinator again.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        failures = self.manager.failures
        before = failures.get(node_id)
        while not self.is_ready(node_id):
            remaining = (deadline - time.monotonic()) * 1000
            has_failed = failures.get(node_id, before) is not before
            if remaining <= 0 or self.is_closing or has_failed:
                return False
            self.maybe_connect(node_id)
            self.poll(timeout_ms=min(remaining, _LOOK_AGAIN_MS))
        return True

    def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """Send a request, and note which partitions the answer says are refused."""
        answer = super().send(node_id, request, **options)
        if isinstance(request, ProduceRequest):
            for topic in request.topic_data:
                for partition in topic.partition_data:
                    self.refused.discard((topic.name, partition.index))
                    self.unwritten.discard((topic.name, partition.index))
            # Before the sender's own callback, which fails the records.
            answer.add_callback(self._note_refusals)
        return answer

    def _note_refusals(self, response: Any) -> None:
        if response is None:
            return  # acks=0
        for topic in response.responses:
            for partition in topic.partition_responses:
                error = kafka_errors.for_code(partition.error_code)
                if issubclass(error, _REFUSALS):
                    self.refused.add((topic.name, partition.index))
                # If the partition is deleted while followers copy the record, the broker gives this
                # error with the offset that the record had.
                is_unknown = error is kafka_errors.UnknownTopicOrPartitionError
                if is_unknown and partition.base_offset < 0:
                    self.unwritten.add((topic.name, partition.index))

    def close(self, node_id: Any = None) -> None:
        """Close a connection or, without an argument, everything."""
        try:
            super().close(node_id)
        finally:
            if node_id is None:
                self.manager.let_go()
                self.closed_by = threading.current_thread()
                self.is_closed.set()


class _NoPartition(Exception):
    """The user's partitioner did not choose a partition; its error is the cause."""


@contextlib.contextmanager
def _users_partitioner() -> Generator[None]:
    try:
        yield
    except BaseException as error:
        raise _NoPartition(f"the partitioner {raised_text(error)}") from error


class _Partitioner(Partitioner):  # pyright: ignore[reportUntypedBaseClass]
    """Calls a partitioner of the user's own. What it raises fails the one record.

    3.0.12 accepts any number from a partitioner. A record for a partition that does not exist would
    never be sent.
    """

    def __init__(self, chosen: Any) -> None:
        self._chosen = chosen

    def partition(self, topic: str, key: Any, *others: Any) -> int:
        """Choose a partition; see :meth:`kafka.partitioner.Partitioner.partition`."""
        serialized_key, *_, cluster = others
        choose = self._chosen.partition
        with _users_partitioner():
            number = operator.index(
                choose(topic, key, *others)
                if isinstance(self._chosen, Partitioner)
                else choose(topic, serialized_key, cluster)
            )
        if number not in (cluster.partitions_for_topic(topic) or {number}):
            raise _NoPartition(f"the partitioner chose {shown(number)}, no partition of {topic!r}")
        return number

    def on_new_batch(self, *args: Any) -> None:
        """Report that a batch has begun, as the sticky partitioner of kafka-python wants it."""
        with _users_partitioner():
            getattr(self._chosen, "on_new_batch", lambda *_: None)(*args)  # pyright: ignore[reportUnknownLambdaType]


#: What ``RecordAccumulator.append`` of 3.0.12 takes first, and in this order.
_APPEND: Final = ("tp", "timestamp_ms", "key", "value", "headers")

#: Topic and partition, milliseconds, key, value, headers; gives the record's future, whether its
#: batch is full, whether it is a new one, and whether nothing was done.
Append = Callable[[Any, int, Any, Any, list[tuple[str, bytes]]], tuple[Any, bool, bool, bool]]


class _Producer(KafkaProducer):
    """KafkaProducer, but for two habits of 3.0.12."""

    _text = "<KafkaProducer>"

    def __init__(self, **configs: Any) -> None:
        self._text = f"<KafkaProducer client_id={configs['client_id']}>"
        super().__init__(**configs)

    def __str__(self) -> str:
        # send() formats the client once or twice a record, for debug messages that are off.
        return self._text

    def close(self, timeout: float | None = None, null_logger: Any = None) -> None:  # noqa: ARG002
        """Close, and never silence the whole module's logger, as collecting garbage does."""
        super().close(timeout)


def flush_nothing(timeout: float | None = None) -> None:
    """In place of a client's ``flush``: ``close`` calls it first, raises when that takes too long,
    and then leaves the sender thread alive. What is to be waited for was waited for before."""


def _past_send(producer: Any) -> Append | None:
    """What ``send`` does with a record when it has checked it; None where it does more, or where it
    is not kafka-python's own: a tracing agent or a subclass of the user's sees every record.

    In 3.0.12 the checks, look-ups and messages for a log that is off take more than half of the
    time of ``send``. Ours are done by then, and there is no public way past them. Where this is
    not as it was when this was written, ``send`` serves, only slower.
    """
    if producer.config["transactional_id"] is not None:
        return None  # a transaction is told of each partition
    if not _is_kafka_pythons(inspect.getattr_static(type(producer), "send", None)):
        return None
    append = getattr(getattr(producer, "_accumulator", None), "append", None)
    try:
        parameters = [*inspect.signature(cast("Append", append)).parameters]
    except (TypeError, ValueError):
        return None
    return cast("Append", append) if tuple(parameters[: len(_APPEND)]) == _APPEND else None


def find_hurry(producer: Any) -> Callable[[bool], None] | None:
    """Find a way to end the client's lingering without waiting for its records.

    ``flush`` ends it for as long as it waits, and the event loop must not wait. 3.0.12 has no other
    public way, so this counts one more flush as in progress.

    Returns:
        Ends the lingering, or lets it begin again; None if the client does not linger, or differs
        from 3.0.12.
    """
    config: dict[str, Any] = getattr(producer, "config", {})
    flushes: Any = getattr(getattr(producer, "_accumulator", None), "_flushes_in_progress", None)
    sender: Any = getattr(producer, "_sender", None)
    if not config.get("linger_ms"):
        return None
    try:
        begin, end, wake_up = flushes.increment, flushes.decrement, sender.wakeup
    except AttributeError:
        return None

    def hurry(on: bool) -> None:  # noqa: FBT001
        if on:
            begin()
            wake_up()
        else:
            end()

    return hurry


def _is_kafka_pythons(method: Any) -> bool:
    """Whether this is a function of kafka-python, and neither replaced nor wrapped by others."""
    return (
        isinstance(method, types.FunctionType)
        and method.__module__.startswith("kafka.")
        and not hasattr(method, "__wrapped__")
    )


def _fail_alone(producer: Any, refused: set[tuple[str, int]]) -> Callable[[], bool] | None:
    """Have what a broker refuses fail alone, as with the Java client.

    In 3.0.12 one refusal ends the whole idempotent client, for the sake of the sequence numbers:
    the broker never saw those of the refused batch. The Java client takes them back, which is safe
    for a batch that was sent once: of each partition one is under way at a time. And where single
    records of a batch are at fault, halves of it are tried, as 3.0.12 does with one that is too
    large, until what is refused is alone. There is no public way to either.

    Args:
        producer: the client.
        refused: topics and partitions whose last produce request was refused.

    Returns:
        Tells whether the client is broken, by whatever else; None where the client is not
        idempotent, or not as it was when this was written, and left as it is.
    """
    manager: Any = getattr(producer, "_transaction_manager", None)
    if producer.config["transactional_id"] is not None:
        # What is refused there ends the transaction, and not the client.
        classify_aborting = manager.classify_batch_error

        def classify_retried(error: Exception, batch: Any, **details: Any) -> Any:
            if batch.attempts:
                refused.discard((batch.topic_partition.topic, batch.topic_partition.partition))
            return classify_aborting(error, batch, **details)

        manager.classify_batch_error = classify_retried
        return cast("Callable[[], bool]", manager.has_fatal_error)
    sender: Any = getattr(producer, "_sender", None)
    if not hasattr(sender, "_can_split"):
        return None
    can_split = sender._can_split

    def can_split_refused(batch: Any, error: type[Exception]) -> bool:
        return can_split(batch, error) or (
            issubclass(error, _OF_ONE_RECORD)
            and batch.record_count > 1
            and batch.attempts == 0
            and batch.final_state is None
        )

    sender._can_split = can_split_refused
    try:
        classify = manager.classify_batch_error
        goes_on = manager.ERROR_CLASS_RETRIABLE
        take_back = manager.set_sequence_number
        is_broken = manager.has_fatal_error
    except AttributeError:  # of None too: not idempotent
        return None

    def classify_refused(error: Exception, batch: Any, **details: Any) -> Any:
        where = batch.topic_partition
        if (where.topic, where.partition) in refused:
            if batch.attempts:
                # What went before may have been written, with its answer lost.
                refused.discard((where.topic, where.partition))
            elif not isinstance(error, _OF_EVERYTHING) and manager.producer_id_and_epoch.match(
                batch
            ):
                take_back(where, batch.base_sequence)
                return goes_on
        return classify(error, batch, **details)

    manager.classify_batch_error = classify_refused
    return cast("Callable[[], bool]", is_broken)


def _look_up_once(cluster: Any) -> Callable[[], None]:
    """Have the metadata of topics looked up once for each answer of the brokers.

    3.0.12 makes three new sets of it in every ``send``, a twentieth of the whole call's price. The
    answers stand in for the public methods of this one object.

    A topic that nobody asked for is not known, even if a broker told of it: some answer the first
    request with all that they have. The client's next request is for what was asked for, it forgets
    the others, and 3.0.12 then keeps their records for ever.

    Returns:
        Forgets what was looked up: to be called after each answer, before anybody is told of it.
    """
    partitions_for_topic = cluster.partitions_for_topic
    topics = cluster.topics
    partitions: dict[str, set[int]] = {}
    names: dict[bool, set[str]] = {}
    asked: set[str] = set()

    # Another answer may come while one is looked up: what is noted then is noted in what is not
    # looked at any more.
    def partitions_once(topic: str) -> set[int] | None:
        known = partitions
        found = known.get(topic)
        if found is None:
            if topic not in asked:
                asked.add(topic)  # the client does, when it is told that this is not known
                return None
            # A broker may name a topic without partitions: then it is not known either.
            found = partitions_for_topic(topic) or None
            if found is not None:
                known[topic] = found
        return found

    def topics_once(exclude_internal_topics: bool = True) -> set[str]:  # noqa: FBT001, FBT002
        known = names
        found = known.get(exclude_internal_topics)
        if found is None:
            found = known[exclude_internal_topics] = topics(exclude_internal_topics)
        return found

    def forget() -> None:
        nonlocal partitions, names
        partitions, names = {}, {}

    cluster.partitions_for_topic = partitions_once
    cluster.topics = topics_once
    return forget


def _request_at_once(
    cluster: Any, make_request: Callable[[], Any], is_backing_off: Callable[[], object]
) -> Callable[[], Any]:
    """Have the metadata of a new topic requested as soon as a record needs it.

    3.0.12 first waits for ``retry_backoff_ms`` after the last answer, whatever that was about. And
    if a topic is new while an answer is on its way, it takes the answer for one about that topic
    too. The replacements stand in for the public methods of this one object.

    Args:
        cluster: the client's metadata.
        make_request: its next request for metadata.
        is_backing_off: whether the client waits because it found no broker to ask.

    Returns:
        Makes the next request for metadata, and notes its topics.
    """
    wait = cluster.ttl
    requested: set[str] = set()

    def topics_of(request: Any) -> set[str]:
        return {topic.name for topic in request.topics or ()}

    def has_new() -> bool:
        return not topics_of(make_request()) <= requested

    def request() -> Any:
        nonlocal requested
        made = make_request()
        requested = topics_of(made)
        return made

    def wait_for_old() -> float:
        milliseconds: float = wait()
        if milliseconds and cluster.need_update and not is_backing_off() and has_new():
            return 0
        return milliseconds

    def look_again(_: Any) -> None:
        if not cluster.need_update and has_new():
            cluster.request_update()

    cluster.ttl = wait_for_old
    cluster.add_listener(look_again)
    return request


#: How kafka-python's messages begin: the connection, as it looks to a debugger.
_CONNECTION: Final = re.compile(r"<\w*Connection [^>]*>:\s*")


class _LastWords(logging.Handler):
    """Keeps the client's last error in this thread: its only word of why it did not connect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._thread = threading.get_ident()
        self.text = ""
        #: Unset when time is up: what it says of the attempt that it breaks off then says nothing.
        self.listens = True

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's message."""
        message = record.getMessage()
        # That says no more than that time is up.
        if (
            self.listens
            and record.thread == self._thread
            and not message.startswith("Bootstrap failed")
        ):
            self.text = message


class _Aborted(Exception):
    """Closed while it was opening."""


class _Refused(Exception):
    """No broker lets us in, and none will; with the client's own error as its cause."""


# --- the way of records --------------------------------------------------------------------------


@functools.lru_cache(maxsize=16_384)
def _hash_of_short_key(key: bytes) -> int:
    return cast("int", murmur2(key)) & 0x7FFFFFFF


def _hash(key: bytes) -> int:
    # murmur2 in Python costs more than the rest of a send. Long keys would fill memory with
    # entries that hardly ever come again.
    if len(key) <= 64:
        return _hash_of_short_key(key)
    return cast("int", murmur2(key)) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    producer: _Producer
    append: Append | None
    is_broken: Callable[[], bool] | None
    hurry: Callable[[bool], None] | None
    client: _NetClient
    stalled: StalledPartitions
    sink: Sink
    #: The client's own account of its transactions, for 3.0.12 has no public way to end one within
    #: bounds, or to tell why it can't be ended; None where there are none.
    transactions: Any


def _config_of(settings: ProducerSettings) -> dict[str, Any]:
    # kafka-python would look for them after it has connected, and report it as a failed start.
    missing = [name for name in CODECS if not getattr(codec, f"has_{name}")()]
    config = client_config(settings, KafkaProducer.DEFAULT_CONFIG, missing)
    if "partitioner" in config:
        config["partitioner"] = _Partitioner(config["partitioner"])
    if not config.get("proxy_url") and not config.get("socks5_proxy"):
        config["proxy_url"] = f"{_Socket.SCHEMES[0]}://"
    return config


class KafkaPythonDriver:
    """A :class:`~anyio_sendproducer.drivers.DirectDriver` on kafka-python 3.0.

    Args:
        settings: checked here, as far as that needs no broker.

    Raises:
        SettingsError: see :func:`client_config`.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._config = _config_of(settings)
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        # A partitioner of the user's own is left to choose; ours goes by runs.
        self.chooses = "partitioner" not in self._config
        self.answered = self._config.get("acks") != 0
        #: Set when it is open: where nothing of the user's runs, a record goes to the client's
        #: queue, and that is all.
        self.direct = False
        self.lingers = False
        self._closing = threading.Event()
        self._opened_or_closed = threading.Event()
        self._close_lock = threading.Lock()
        self._closed = False
        self._opened: _Opened | None = None
        self._client: _NetClient | None = None
        self._routes: dict[str, Route] = {}
        self._turns: dict[str, int] = {}
        #: Topics without metadata, and since when the cluster says that it does not know them.
        self._asked: dict[str, float | None] = {}
        #: When a record, or partitions_for(), last found such a topic unknown.
        self._looked: dict[str, float] = {}
        self._missing = MissingPartitions(settings.unknown_topic_timeout)
        self._refreshes = Refreshes()
        #: When the last metadata were requested, and those that came last.
        self._requesting = self._requested = -math.inf
        #: Forgets what was looked up in the answer before.
        self._forget: Callable[[], None] = dict[str, Any]().clear
        #: What the last request for metadata asked for.
        self._asked_for: set[str] = set()
        self._idempotent = False
        self._asked_again = 0.0
        self._recovers = False
        self._broken = False
        self._first_to_fail: Submission | None = None
        self._largest = 0
        self._in_transaction = False

    # --- opening and closing -----------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect; see :meth:`anyio_sendproducer.drivers.Driver.open`.

        On a thread of its own, which is left behind if it gets nowhere. It cannot be stopped while
        it decodes an answer, which takes seconds if that has some megabytes, or while it runs a
        producer_factory. After that it finds the driver closed, and ends.
        """
        seconds = self._settings.start_timeout
        addresses = listed(self._settings.addresses)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._open(sink, time.monotonic() + seconds)
            except BaseException as error:  # noqa: BLE001  # raised again below
                failures.append(error)
            finally:
                self._opened_or_closed.set()

        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(run,),
            name=f"{threading.current_thread().name}-open",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise ProducerStartError(f"no producer for {addresses}: {error}") from error
        # As a rule it ends by itself then, and says why. While the machine stands still, only one
        # of the short waits passes.
        waits = (seconds, *[_LATE_SECONDS / 20] * 20)
        is_late = not any(self._opened_or_closed.wait(one) for one in waits)
        if is_late:
            self._closing.set()
        thread.join(0 if is_late else _JOIN_SECONDS)
        if failures:
            raise failures.pop()
        if is_late:
            raise ProducerStartError(
                f"no producer for {addresses} within {seconds:g} s (start_timeout): the client is "
                "still at work, on a very large answer of a broker, or in a producer_factory"
            )
        if thread.is_alive():
            raise ProducerStartError("the producer was closed while it was starting")

    def _open(self, sink: Sink, deadline: float) -> None:
        words = _LastWords()
        client_log = logging.getLogger("kafka")
        client_log.addHandler(words)
        try:
            producer = self._make(
                **self._config, kafka_client=functools.partial(self._connect, sink, deadline, words)
            )
        except _Aborted:
            self._discard_client()
            raise ProducerStartError("the producer was closed while it was starting") from None
        except SettingsError:
            self._discard_client()
            raise
        except _Refused as refused:
            self._discard_client()
            raise ProducerStartError(
                f"no producer for {listed(self._settings.addresses)}: {refused}"
            ) from refused.__cause__
        except (
            kafka_errors.KafkaConfigurationError,
            AssertionError,
            TypeError,
            ValueError,
        ) as error:
            self._discard_client()
            raise SettingsError(f"kafka-python refuses the settings: {error}") from harmless(error)
        except BaseException as error:  # a producer_factory may raise anything
            self._discard_client()
            harmless(error)
            text = one_line(_CONNECTION.sub("", words.text))
            said = f"; the client's last words: {text}" if text else ""
            raise ProducerStartError(
                f"no producer for {listed(self._settings.addresses)} within "
                f"{self._settings.start_timeout:g} s (start_timeout): {one_line(error)}{said}"
                f"{HOW_FAR}"
            ) from error
        finally:
            client_log.removeHandler(words)
        transactional = self._settings.transactional_id is not None
        self._idempotent = bool(producer.config["enable_idempotence"])
        self._recovers = producer.config["api_version"] >= (2, 5)
        producer.flush = flush_nothing
        client = cast("_NetClient", self._client)
        self._opened = _Opened(
            producer=producer,
            append=_past_send(producer),
            is_broken=_fail_alone(producer, client.refused),
            hurry=find_hurry(producer),
            client=client,
            stalled=StalledPartitions(
                producer,
                client.manager,
                client.unwritten,
                delivery_timeout=self._settings.delivery_timeout,
                unknown_topic_timeout=self._settings.unknown_topic_timeout,
            ),
            sink=sink,
            transactions=producer._transaction_manager if transactional else None,
        )
        serializes = self._key is not None or self._value is not None
        self.direct = self._opened.append is not None and self.chooses and not serializes
        self.lingers = self._opened.hurry is not None
        # What a record adds to its key and value is less.
        self._largest = producer.config["max_request_size"] - 256
        if transactional:
            try:
                self._init_transactions(producer, deadline)
            except SendProducerError:
                self._close_client(self._opened, 0)
                raise
        if self._closing.is_set():
            self._close_client(self._opened, 0)

    def _make(self, **configs: Any) -> Any:
        factory = self._settings.producer_factory
        if factory is None:
            return _Producer(**configs)
        client = configs["kafka_client"]
        made = factory(configs)
        if not isinstance(made, KafkaProducer):
            raise SettingsError(
                f"producer_factory must return a KafkaProducer, not {type(made).__name__}"
            )
        if self._client is None or made.config["kafka_client"] is not client:
            made.close(1)
            raise SettingsError(
                "producer_factory must pass on all of the configuration, as by "
                "KafkaProducer(**configs)"
            )
        return made

    def _connect(
        self, sink: Sink, deadline: float, words: _LastWords, **configs: Any
    ) -> _NetClient:
        """Make the client and let it bootstrap, in slices, so that it can be told to stop.

        The constructor's own bootstrap takes as long as ``bootstrap_timeout_ms`` says, whatever
        happens; it leaves out what is done already.
        """
        self._client = client = _NetClient(**configs)
        cluster: Any = client.cluster
        # 3.0.12 takes these settings and does not pass them on to the one who uses them.
        for name in ("allow_auto_create_topics", "retry_backoff_ms"):
            cluster.config[name] = configs[name]
        self._forget = _look_up_once(cluster)
        request = _request_at_once(
            cluster,
            cluster.metadata_request,
            lambda: client.manager.connection_delay("metadata"),
        )
        cluster.metadata_request = functools.partial(self._asking, request)
        cluster.add_listener(functools.partial(self._metadata_changed, sink))
        updated = cluster.request_update()
        while True:
            if self._closing.is_set():
                raise _Aborted
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                words.listens = False
                raise kafka_errors.KafkaTimeoutError("no broker answered")
            refusal = client.manager.refusal()
            if refusal is not None:
                raise _Refused(refusal[0]) from refusal[1]
            if updated.is_done:
                if updated.succeeded():
                    break
                updated = cluster.request_update()
            client.poll(timeout_ms=min(remaining * 1000, 50), future=updated)
        client.get_broker_version(timeout_ms=max(1, remaining * 1000))
        return client

    def trouble(self) -> Exception | None:
        """The last failure to connect; see :meth:`anyio_sendproducer.drivers.Driver.trouble`."""
        opened = self._opened
        trouble = None if opened is None else opened.client.manager.trouble()
        return None if trouble is None else _translated(trouble[1], trouble[0])

    def cut_off(self) -> bool:
        """Whether it reaches no broker; see :meth:`anyio_sendproducer.drivers.Driver.cut_off`."""
        opened = self._opened
        return opened is not None and opened.client.manager.cut_off()

    def figures(self) -> Mapping[str, Any]:
        """Its metrics; see :meth:`anyio_sendproducer.drivers.Driver.figures`."""
        opened = self._opened
        metrics: Any = None if opened is None else opened.producer.metrics()
        return metrics or {}

    def _discard_client(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()

    def close(self, timeout: float, /) -> None:
        """Close; see :meth:`anyio_sendproducer.drivers.Driver.close`."""
        self._closing.set()
        self._opened_or_closed.set()
        if self._opened is not None:
            self._close_client(self._opened, timeout)

    def _close_client(self, opened: _Opened, timeout: float) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        try:
            opened.client.is_closing = timeout <= 0
            opened.producer.close(timeout)
        finally:
            client = opened.client
            client.is_closing = True
            if client.is_closed.wait(_JOIN_SECONDS) and client.closed_by is not None:
                client.closed_by.join(_JOIN_SECONDS)
            else:
                _log.warning("the thread of kafka-python did not end within %s s", _JOIN_SECONDS)

    def _ready(self) -> _Opened:
        if self._opened is None:
            raise SendProducerError("the driver is not open")
        return self._opened

    # --- records -----------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand over a batch; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        opened = self._ready()
        send = opened.producer.send
        append = opened.append
        largest = self._largest
        wakes = False
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        lines: dict[str, Line] = {}
        missing: set[tuple[str, int]] = set()
        serialized = self._key is not None or self._value is not None
        chooses = self.chooses
        recovers = self._recovers
        now_ms = int(time.time() * 1000)
        routes = self._routes
        for submission in batch:
            if routes is not self._routes:  # news of the topics came meanwhile
                routes = self._routes
                for line in lines.values():
                    # What is behind a record that is held must not go before it.
                    if type(line.route) is Route:
                        line.route = self._route(line.topic)
            record = submission.record
            topic = record.topic
            try:
                line = lines[topic]
            except KeyError:
                line = lines[topic] = Line(self, topic, self._route(topic))
            route = line.route
            if type(route) is not Route:
                if route is None:
                    answer.held.append(submission)
                else:
                    failed.append(submission)
                    failures.append(_rejected(record, str(route), cast("SendProducerError", route)))
                continue
            partition = record.partition
            if partition is not None and (missing or partition not in route.partitions):
                refusal = self._no_partition(topic, partition, route, missing)
                if refusal is None:
                    answer.held.append(submission)
                    continue
                if refusal:
                    failed.append(submission)
                    failures.append(_rejected(record, refusal))
                    continue
            key = record.key
            value = record.value
            headers = [*record.headers] if record.headers else None
            timestamp_ms = record.timestamp_ms
            try:
                if serialized:
                    headers = headers or []
                    key, value = parts_of(record, self._key, self._value, headers)
                    answer.sizes.append((submission, size_of(key, value, headers)))
                if partition is not None:
                    run = line.run_to(partition)
                elif key is None or not chooses:
                    run = line.keyless or line.run_without_key()
                else:
                    numbers = route.partitions
                    run = line.run_to(numbers[_hash(key) % len(numbers)])
                if timestamp_ms is None:
                    timestamp_ms = now_ms
                if (
                    append is not None
                    and value is not None
                    and run.target is not None
                    and (len(value) if key is None else len(value) + len(key))
                    + (_most_bytes(headers) if headers else 0)
                    <= largest
                ):
                    future, is_full, is_new, _ = append(
                        run.target, timestamp_ms, key, value, headers or []
                    )
                    if is_new or is_full:
                        wakes = True
                else:
                    # By keyword: a tracing agent that replaces `send` adds headers so.
                    future = send(
                        topic,
                        value=value,
                        key=key,
                        headers=headers,
                        partition=run.partition,
                        timestamp_ms=timestamp_ms,
                    )
                    is_new = True  # perhaps
                if is_new and not recovers:
                    # What is behind it in the run may never be done, and the run not be looked at.
                    future.add_errback(self._tell_if_broken)
            except DeliveryError as error:
                failed.append(submission)
                failures.append(error)
                continue
            except kafka_errors.KafkaTimeoutError:
                # A refresh of the metadata dropped the topic just now.
                line.route = None
                self._looked[topic] = time.monotonic()
                self._asked.setdefault(topic, None)
                if opened.client.cluster.partitions_for_topic(topic) is None:
                    self._ask(opened.client.cluster)
                else:
                    # The answer came before it was known that anybody waits for it.
                    opened.sink.metadata_changed()
                answer.held.append(submission)
                continue
            except _NoPartition as error:
                failed.append(submission)
                failures.append(_rejected(record, str(error), error.__cause__))
                continue
            # The `send` of a user's own class may raise anything.
            except BaseException as error:  # noqa: BLE001  # becomes this record's outcome
                failed.append(submission)
                failures.append(not_taken(record, error))
                continue
            if run.partition is None:
                future.add_errback(functools.partial(self._failed_first, submission))
            run.submissions.append(submission)
            run.futures.append(future)
            run.size += submission.size
            if run.partition is None:
                # Where it went nobody knows, nor whether what follows it goes there too.
                line.end_run(run)
            elif run.size >= RUN_BYTES:
                line.end_run(run)
                opened.client.wakeup()
        if wakes:
            opened.client.wakeup()
        for line in lines.values():
            line.end()
        if failed:
            self.report(failed, failures)
        return answer

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        hurry = self._ready().hurry
        if hurry is not None:  # pragma: no branch  # otherwise nobody calls this
            hurry(on)

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes on to whoever opened this driver."""
        self._ready().sink.completed(submissions, outcomes)

    def _failed_first(self, submission: Submission, error: Exception) -> None:
        # Where a partitioner of the user's own chooses, nobody says which partition it was: of the
        # first record to fail alone it is sure that it was refused.
        if self._first_to_fail is None and self._ends_with(error):
            self._first_to_fail = submission

    def _tell_if_broken(self, error: Exception) -> None:
        self._tell(error, ends=self._ends_with(error))

    def _tell(self, error: Exception, *, ends: bool) -> None:
        if ends and not self._broken and not self._closing.is_set():
            self._broken = True
            harmless(error)
            opened = self._ready()
            transactions = opened.transactions
            fenced = transactions is not None and isinstance(transactions.last_error, _FENCED)
            opened.sink.broken(self._fenced(error) if fenced else error)

    def _ends_with(self, error: Exception) -> bool:
        """Whether a client to which this happened can't send any more."""
        if not self._idempotent:
            return False
        if isinstance(error, _RECOVERED):
            return not self._recovers
        is_broken = self._ready().is_broken
        return is_broken is None or is_broken()

    def failure(self, submission: Submission, error: Exception, run: Run) -> DeliveryError:
        """What an error of the client says of a record, in our terms."""
        if isinstance(error, GivenUp):
            return _given_up(submission.record, error)
        refused = isinstance(error, _REFUSALS)
        opened = self._ready()
        ends = self._ends_with(error)
        if ends or opened.transactions is not None:
            # Seen in 3.0.12: what ends the idempotent client fails all that is under way with the
            # very same error, though it may have been written; and what ends a transaction, all of
            # that. What the broker's answer named was refused; behind it there nothing had been
            # sent.
            if run.partition is None:
                refused = refused and submission is self._first_to_fail
            else:
                refused = refused and (run.topic, run.partition) in opened.client.refused
            self._tell(error, ends=ends)
        if refused:
            said = f"the broker refused the record: {one_line(error)}"
            return _rejected(submission.record, said, error)
        return not_acknowledged(submission.record, error)

    # --- transactions ------------------------------------------------------------------------

    def _init_transactions(self, producer: _Producer, deadline: float) -> None:
        """End what an earlier producer of this name has left open, and fence it off."""
        name = self._settings.transactional_id
        while True:
            try:
                producer.init_transactions()
            except kafka_errors.KafkaTimeoutError:
                # With max_block_ms=0 it never waits; another call goes on where this one ended.
                if time.monotonic() >= deadline:
                    raise ProducerStartError(
                        f"no transactions for transactional_id {name!r} within "
                        f"{self._settings.start_timeout:g} s (start_timeout)"
                    ) from None
                if self._closing.wait(0.005):
                    raise ProducerStartError("the producer was closed while it was starting") from (
                        None
                    )
            except _FENCED as error:
                raise self._fenced(error) from harmless(error)
            except Exception as error:
                harmless(error)
                raise ProducerStartError(
                    f"no transactions for transactional_id {name!r}: {_words(error)}"
                ) from error
            else:
                return

    def begin_transaction(self) -> None:
        """Begin; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        if not self._in_transaction:
            try:
                self._ready().producer.begin_transaction()
            except Exception as error:
                raise self._transaction_error(
                    error, "the transaction could not be begun"
                ) from error
            self._in_transaction = True

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Send them; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        opened = self._ready()
        what = f"the offsets of group {group.group_id!r} could not be sent"
        try:
            result = opened.transactions.send_offsets_to_transaction(
                {
                    TopicPartition(one.topic, one.partition): OffsetAndMetadata(
                        one.offset, one.metadata, one.leader_epoch
                    )
                    for one in offsets
                },
                cast("Any", structs).ConsumerGroupMetadata(
                    group.group_id, group.generation_id, group.member_id, group.group_instance_id
                ),
            )
            opened.client.wakeup()
            answered = self._wait(result, deadline)
        except Exception as error:
            raise self._transaction_error(error, what) from error
        if not answered:
            raise TransactionError(f"{what}: there was no answer")

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """End it; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        opened = self._ready()
        manager = opened.transactions
        what = f"the transaction could not be {'committed' if commit else 'aborted'}"
        while manager.is_bumping_epoch():
            if deadline.is_over or self._closing.wait(0.005):
                raise TransactionError(f"{what}: the client is getting another producer epoch")
        try:
            result = manager.begin_commit() if commit else manager.begin_abort()
        except kafka_errors.KafkaError as error:
            if manager.has_error():
                raise self._transaction_error(error, what) from error
            # It had to get another epoch, and by that the brokers abort what was open.
            self._in_transaction = False
            if commit:
                raise TransactionAborted(f"{what}: the client lost its producer epoch") from error
            return
        opened.client.wakeup()
        try:
            answered = self._wait(result, deadline)
        except Exception as error:
            failure = self._transaction_error(error, what)
            if commit and type(failure) is TransactionError:
                answered = False
            else:
                raise failure from error
        if not answered:
            if commit:
                raise TransactionOutcomeUnknown(
                    "the commit was asked for, and no broker said whether it was done"
                )
            raise TransactionError(f"{what}: there was no answer")
        self._in_transaction = False

    def _wait(self, result: Any, deadline: Deadline) -> bool:
        """Whether there is an answer, which is raised where it is an error."""
        while not result.wait(_SLICE_MS):
            if deadline.is_over or self._closing.is_set():
                return False
        return True

    def _transaction_error(self, error: Exception, what: str) -> SendProducerError:
        opened = self._ready()
        manager = opened.transactions
        # What is raised may say no more than that there is an error.
        cause = manager.last_error or error
        harmless(error)
        if self._closing.is_set():
            return ProducerClosed("the producer is closed")
        if isinstance(cause, _FENCED):
            return self._fenced(cause)
        if manager.has_abortable_error():
            return TransactionAborted(f"{what}: {_words(cause)}")
        return TransactionError(f"{what}: {_words(cause)}")

    def _fenced(self, error: Exception) -> ProducerFenced:
        fenced = ProducerFenced(
            f"another producer took over transactional_id {self._settings.transactional_id!r}"
        )
        fenced.__cause__ = harmless(error)
        return fenced

    def target(self, topic: str, partition: int) -> Any:
        """A partition, as the client knows it."""
        return TopicPartition(topic, partition)

    # --- topics ------------------------------------------------------------------------------

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        route = self._route(topic)
        if isinstance(route, SendProducerError):
            raise route
        if route is None:
            return None
        if self._refreshes.is_new(topic, time.monotonic(), self._requested):
            return frozenset(route.partitions)
        self._ask(self._ready().client.cluster)
        return None

    def _no_partition(
        self, topic: str, partition: int, route: Route, missing: set[tuple[str, int]]
    ) -> str | None:
        """Why a record is refused whose partition is not in the metadata.

        Args:
            topic: of the record.
            partition: of the record.
            route: the partitions of the topic.
            missing: the partitions of records of the same batch that are held.

        Returns:
            The reason; empty if the partition is there. None if the record is to be held, because
            the metadata may be too old to have the partition, or behind another one that is held.
        """
        if (topic, partition) in missing:
            return None
        if partition in route.partitions:
            return ""
        if not self._missing.is_refused(topic, partition, time.monotonic(), self._requested):
            missing.add((topic, partition))
            self._ask(self._ready().client.cluster)
            return None
        return (
            f"topic {topic!r} has no partition {partition}; "
            f"it has {len(route.partitions)}, numbered from 0"
        )

    def _route(self, topic: str) -> Route | SendProducerError | None:
        route = self._routes.get(topic)
        if route is not None:
            return route
        opened = self._ready()
        cluster = opened.client.cluster
        routes = self._routes
        # Before it is asked for: the answer may come at once, and is told to those who wait.
        self._looked[topic] = time.monotonic()
        self._asked.setdefault(topic, None)
        try:
            # With max_block_ms=0 this never waits: it raises, and asks in the background where the
            # topic is a new one.
            partitions = opened.producer.partitions_for(topic)
        except kafka_errors.KafkaTimeoutError:
            return self._unknown(topic, cluster)
        except kafka_errors.KafkaError as error:
            self._asked.pop(topic, None)
            return no_metadata(topic, error)
        self._asked.pop(topic, None)
        available = cluster.available_partitions_for_topic(topic) or set()
        turn = self._turns.get(topic, hash(topic) % 1024)
        self._turns[topic] = turn + 1
        route = routes[topic] = Route(partitions, available, turn)
        return route

    def _unknown(self, topic: str, cluster: Any) -> SendProducerError | None:
        if topic in cluster.unauthorized_topics:
            # So that a later record finds it allowed, if it is by then; one answer will do for
            # many.
            if time.monotonic() - self._asked_again >= _ASK_AGAIN_SECONDS:
                self._asked_again = time.monotonic()
                cluster.request_update()
            self._asked.pop(topic, None)
            error = kafka_errors.TopicAuthorizationFailedError(topic)
            return _translated(error, f"this client may not use topic {topic!r}: {error}")
        since = self._asked.get(topic)
        patience = self._settings.unknown_topic_timeout
        if since is None or time.monotonic() - since < patience:
            self._ask(cluster)
            return None
        del self._asked[topic]
        error = kafka_errors.UnknownTopicOrPartitionError(topic)
        return _translated(
            error,
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{patience:g} s (unknown_topic_timeout)",
        )

    def _ask(self, cluster: Any) -> None:
        """Have the client ask for all its topics, unless it is going to. 3.0.12 does so by itself
        for a topic that is new, and not for one that was known and is not any more."""
        if not cluster.need_update:
            cluster.request_update()

    def _asking(self, make_request: Callable[[], Any]) -> Any:
        """Called by the client before it asks for metadata, which it does not twice at a time.

        3.0.12 never forgets a topic. Because it requests again 0.1 s after an answer that names an
        unknown topic, it would request for ever once a topic is deleted.
        """
        self._requesting = now = time.monotonic()
        for topic, looked in list(self._looked.items()):
            if topic not in self._asked or now - looked > _UNKNOWN_SECONDS:
                self._looked.pop(topic, None)
                self._asked.pop(topic, None)
        request = make_request()
        opened = self._opened
        if opened is not None and request.topics:
            request.topics = [one for one in request.topics if self._wants(one.name, opened)]
        self._asked_for = {topic.name for topic in request.topics or ()}
        return request

    def _wants(self, topic: str, opened: _Opened) -> bool:
        """Whether the metadata of a topic are needed: it exists, or there is something to send."""
        cluster: Any = opened.client.cluster
        return (
            topic in self._asked
            or cluster.partitions_for_topic(topic) is not None
            or topic in cluster.unauthorized_topics
            or opened.stalled.holds(topic)
        )

    def _metadata_changed(self, sink: Sink, cluster: Any) -> None:
        """Called by the client, on its thread, after each answer with metadata."""
        self._forget()
        self._routes = {}
        now = time.monotonic()
        for topic, since in list(self._asked.items()):
            # An answer says nothing of a topic that came up when the request was under way.
            if (
                since is None
                and topic in self._asked_for
                and cluster.partitions_for_topic(topic) is None
            ):
                self._asked[topic] = now
        self._requested = self._requesting
        self._missing.answer(self._asked_for, cluster.partitions_for_topic, now, self._requested)
        if self._asked or self._missing or self._refreshes:
            sink.metadata_changed()


def _most_bytes(headers: Sequence[tuple[str, bytes]]) -> int:
    """More than these headers take: four bytes for each character, and two lengths."""
    return sum(4 * len(name) + len(content) + 16 for name, content in headers)


def is_metadata_missing(error: BaseException) -> bool:
    """Whether ``send`` or ``partitions_for`` did not know the topic within ``max_block_ms``."""
    return isinstance(error, kafka_errors.KafkaTimeoutError)


def _translated(cause: Exception, message: str) -> SendProducerError:
    error = SendProducerError(message)
    error.__cause__ = harmless(cause)
    return error


def no_metadata(topic: str, cause: Exception) -> SendProducerError:
    """``partitions_for`` raised, and not for want of time."""
    return _translated(cause, f"the metadata of topic {topic!r} can't be had: {one_line(cause)}")


def _rejected(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> RecordRejected:
    error = RecordRejected(message, record=record, persistence=Persistence.NOT_PERSISTED)
    error.__cause__ = None if cause is None else harmless(cause)
    return error


def _given_up(record: ProducerRecord[Any, Any], error: GivenUp) -> DeliveryError:
    """The outcome of a record that left the client without an answer."""
    end = "it may be written all the same" if error.sent else "the record was not written"
    persistence = Persistence.POSSIBLY_PERSISTED if error.sent else Persistence.NOT_PERSISTED
    kind = DeliveryTimeout if not error.gone else DeliveryError if error.sent else RecordRejected
    outcome = kind(f"{error}; {end}", record=record, persistence=persistence)
    outcome.__cause__ = error
    return outcome


def not_acknowledged(record: ProducerRecord[Any, Any], cause: Exception) -> DeliveryError:
    """The client failed the record when it had it: nobody can say what was written."""
    is_closed = isinstance(cause, kafka_errors.IllegalStateError) and "closed" in str(cause)
    said = "the client was closed before a broker had answered" if is_closed else one_line(cause)
    error = DeliveryError(
        f"the record was not acknowledged: {said}",
        record=record,
        persistence=Persistence.POSSIBLY_PERSISTED,
    )
    error.__cause__ = harmless(cause)
    return error


def not_taken(record: ProducerRecord[Any, Any], cause: BaseException) -> DeliveryError:
    """``send()`` raised. What it checks first was refused; of the rest it is not sure whether the
    record was in the client's buffer by then, and of what a ``send`` of somebody else's raises
    neither."""
    checked = _is_raised_by_kafka_python(cause)
    if checked and isinstance(
        cause, (kafka_errors.MessageSizeTooLargeError, ValueError, TypeError)
    ):
        is_large = isinstance(cause, kafka_errors.MessageSizeTooLargeError)
        hint = " (properties={'max.request.size': ...}, 1 MiB by default)" if is_large else ""
        return _rejected(record, f"kafka-python refused the record: {one_line(cause)}{hint}", cause)
    closed = checked and isinstance(cause, kafka_errors.IllegalStateError)
    error = DeliveryError(
        f"kafka-python did not take the record: {one_line(cause)}",
        record=record,
        persistence=Persistence.NOT_PERSISTED if closed else Persistence.POSSIBLY_PERSISTED,
    )
    error.__cause__ = harmless(cause)
    return error


def _is_raised_by_kafka_python(error: BaseException) -> bool:
    """Whether it came out of kafka-python's code, or of what that called; a subclass of the user's
    own may raise whatever it likes when its record is sent."""
    traceback = error.__traceback__
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__")).startswith("kafka."):
            return True
        traceback = traceback.tb_next
    return False


# --- what a cluster is ---------------------------------------------------------------------------


def describe(settings: ProducerSettings) -> ClusterDescription:
    """See :func:`anyio_sendproducer.drivers._describe.describe_cluster`."""
    config = _config_of(settings)
    shared = {name: config[name] for name in config.keys() & KafkaAdminClient.DEFAULT_CONFIG.keys()}
    shared["bootstrap_timeout_ms"] = shared["request_timeout_ms"] = settings.start_timeout * 1000
    clients: list[_NetClient] = []

    def make(**configs: Any) -> _NetClient:
        clients.append(_NetClient(**configs))
        return clients[0]

    try:
        admin: Any = KafkaAdminClient(**shared, kafka_client=make)
        # What the first broker said that answered. A request of the admin client would go to any
        # broker, so it would fail if only one of them cannot be reached.
        cluster: Any = clients[0].cluster
        found = sorted(cluster.brokers(), key=operator.attrgetter("node_id"))
        until = time.monotonic() + settings.start_timeout
        with ThreadPoolExecutor(_MOST_ASKED) as pool:
            numbers = [broker.node_id for broker in found]
            versions = pool.map(functools.partial(_version_of, admin, until=until), numbers)
        brokers = tuple(
            BrokerDescription(broker.node_id, one_line(broker.host), broker.port, version)
            for broker, version in zip(found, versions, strict=True)
        )
    except Exception as error:
        raise _translated(
            error, f"the cluster does not say what it is: {_words(error) or type(error).__name__}"
        ) from error
    finally:
        # Where it could not be made 3.0.12 leaves its thread behind.
        for client in clients:
            client.close()
            client.net.stop()
    controller = cluster.controller
    return ClusterDescription(
        one_line(cluster.cluster_id or "") or None,
        None if controller is None else controller.node_id,
        brokers,
    )


def _version_of(admin: Any, broker: int, until: float = math.inf) -> str | None:
    """The version of Kafka whose requests a broker takes; None where it can't be asked, or not by
    this time."""
    if time.monotonic() >= until:
        return None
    try:
        known = admin.get_broker_version_data(broker)
    except Exception:  # noqa: BLE001  # that it can't be reached, whoever connects to it will say
        return None
    # No broker tells its version. kafka-python infers it from the requests that the broker accepts,
    # and takes each broker that is newer than the client for the newest version that it knows.
    version: tuple[int, ...] = known.broker_version
    more = " or later" if version >= max(BROKER_API_VERSIONS) else ""
    return ".".join(map(str, version)) + more
