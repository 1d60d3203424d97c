"""Private parts of kafka-python's network client, fixed where 3.0.12 spins, leaks or hangs.

Each class and function that changes 3.0.12 says what 3.0.12 does, and which test notices a change.
``_connection`` has the private parts of one connection, and ``_patches`` those of the producer.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import functools
import random
import ssl
import threading
import time
import weakref
from typing import Any, Final, cast

import kafka.errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.protocol.producer import ProduceRequest

from ..._exceptions import SendProducerError
from ..._shown import harmless, listed
from ..security._tls import tls_refusal
from ._connection import (
    LimitedConnection,
    ScramLoginError,
    receive,
    send_and_read_alert,
    waiting_proxy,
)
from ._errors import (
    REFUSALS,
    ClosedWhileOpening,
    LoginRefused,
    NotReached,
    address_of,
    client_words,
)

__all__ = ["NetClient"]

#: Milliseconds between two looks at a connection attempt that has not ended.
_LOOK_AGAIN_MS: Final = 50.0

#: Seconds that one address may take before the next address is also tried.
_NEXT_ADDRESS_SECONDS: Final = 0.25

#: The messages by which kafka-python reports that it took an alert of TLS 1.0, 1.1 or 1.2 for the
#: length of an answer.
_TLS_ALERTS: Final = tuple(f"length: {0x15030000 + minor * 256}" for minor in (1, 2, 3))


class ConnectionManager(KafkaConnectionManager):
    """Makes connections, and keeps the result of the last attempt to connect to each broker.

    Each method that changes 3.0.12 says what it changes.
    ``tests/broker/test_security.py::test_the_driver_reads_like_its_transport`` and
    ``tests/broker/test_connecting.py::test_bare_while_it_connects_it_spins`` notice a change.
    """

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs)
        #: Why the last attempt to connect to a broker failed.
        self.failures: dict[Any, Exception] = {}
        #: The last error that ended a connection to each broker, even an established connection.
        self._ends: dict[Any, Exception] = {}
        self.transports: weakref.WeakSet[Any] = weakref.WeakSet()
        # KafkaProducer has no setting for these. An attempt to connect is as short as a request.
        config: dict[str, Any] = self.config
        for name in (
            "socket_connection_setup_timeout_ms",
            "socket_connection_setup_timeout_max_ms",
        ):
            config[name] = min(config[name], config["request_timeout_ms"])
        # The address that answered first; the next attempt to bootstrap uses it.
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

        3.0.12 tries one address at a time, and waits up to 10 s for each. So this method connects
        to the addresses until one answers, and the attempt of 3.0.12 then finds this connection.
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
            return None  # otherwise 3.0.12 logs an error for each client that is closed meanwhile

    async def _find_address(self) -> None:
        """Connect to the addresses until one answers, or all have failed. Another attempt starts
        after a quarter of a second, or as soon as one fails."""
        connecting: dict[Any, Any] = {}
        brokers = random.sample(self._addresses, len(self._addresses))
        while connecting or brokers:
            while brokers:
                broker = brokers.pop()
                with contextlib.suppress(kafka_errors.KafkaError):  # its pause is not over
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
        # No address answers now. Wait until the pause of one of them is over.
        delays = [self.connection_delay(broker.node_id) for broker in self._addresses]
        await self._bootstrap_wakeup(max(min(delays), _LOOK_AGAIN_MS / 1000))

    def _look_at_addresses(self, _: Any) -> None:
        self._bootstrap_wakeup.notify()

    def least_loaded_node(self) -> Any:
        """Return a broker to ask. If none can be reached, bootstrap again, and return None."""
        now = time.monotonic()
        if now >= self._next_bootstrap and self._is_lost():
            # 3.0.12 only tries the brokers that it knows. They may have other addresses now.
            backoff_ms: Any = self.config["reconnect_backoff_max_ms"]
            self._next_bootstrap = now + backoff_ms / 1000
            self.bootstrap_async()
        # During a bootstrap, super() would wait for a broker that cannot be reached.
        bootstrap: Any = self._bootstrap_future
        return super().least_loaded_node() if bootstrap is None or bootstrap.is_done else None

    def _is_lost(self) -> bool:
        """Return whether no broker can be reached. A broker that refuses a login is reached."""
        refused = kafka_errors.SaslAuthenticationFailedError
        return self.is_disconnected() and not any(
            isinstance(error, refused) for error in self.failures.values()
        )

    def _look_for_moved(self, cluster: Any) -> None:
        """Connect again at once to each broker whose address has changed while connecting."""
        places = {broker.node_id: (broker.host, broker.port) for broker in cluster.brokers()}
        for node_id, place in places.items():
            if self._places.get(node_id, place) != place:
                self.failures.pop(node_id, None)
                self.reset_backoff(node_id)
                connection = self._conns.get(node_id)
                if connection is not None and not connection.connected:
                    connection.close()
        self._places = places
        if self.is_disconnected():
            # Only a bootstrap address answered. 3.0.12 connects to a broker when it has a request.
            cluster.request_update()

    # --- connections -------------------------------------------------------------------------

    def get_connection(self, node_id: Any, *args: Any, **options: Any) -> Any:
        """Return a connection, a new one if there is none."""
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, *args, **options)
        if connection is not known:
            # 3.0.12 has no setting for the class. The connection connects later, in a task.
            connection.__class__ = LimitedConnection
            connection.init_future.add_callback(functools.partial(self._succeeded, node_id))
            connection.init_future.add_errback(functools.partial(self._failed, node_id))
            connection.close_future.add_errback(functools.partial(self._ends.__setitem__, node_id))
        return connection

    def least_used_connections(self) -> list[Any]:
        """Return the connections that may be idle, the least used one first.

        3.0.12 also closes a connection that waits for an answer, or is about to send a request.
        ``tests/broker/test_kafka_python_driver.py::test_a_connection_that_waits_for_an_answer_is_not_idle``
        notices a change.
        """
        connections: list[Any] = super().least_used_connections()
        return [one for one in connections if not one.in_flight_requests]

    def _succeeded(self, node_id: Any, _: Any) -> None:
        self.failures.pop(node_id, None)

    def _failed(self, node_id: Any, error: Exception) -> None:
        # The newest failure must be the last entry.
        self.failures.pop(node_id, None)
        self.failures[node_id] = harmless(error)

    def reset_backoff(self, node_id: Any) -> None:
        """Let the next attempt to connect start at once, unless the last one failed.

        3.0.12 lets it start at once even after a failed login.
        """
        if node_id not in self.failures:
            super().reset_backoff(node_id)
        else:
            self.update_backoff(node_id)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        # As in 3.0.12, except that 3.0.12 waits for a TLS handshake without a bound, and leaves the
        # socket to the garbage collector if the handshake fails.
        config = self.config
        try:
            sock = await create_connection(
                self._net,
                node.host,
                node.port,
                config["socket_options"],
                proxy_url=waiting_proxy(cast("str", config["proxy_url"])),
                timeout_at=timeout_at,
            )
        except (OverflowError, ValueError) as error:
            # The cluster named a host or a port that cannot exist. In 3.0.12, an error that is not
            # one of kafka-python ends the task that refreshes metadata.
            raise kafka_errors.KafkaConnectionError(f"no such address: {error}") from error
        made: Any = sock
        try:
            if self.ssl_enabled:
                context = config["ssl_context"]
                made = KafkaSSLTransport(self._net, sock, node.host, ssl_context=context)
                await self._shake_hands(made._sock, timeout_at)
            else:
                made = KafkaTCPTransport(self._net, sock, node.host)
            made._sock_recv = functools.partial(receive, made)
            made._sock_send = functools.partial(send_and_read_alert, made, made._sock_send)
            self.transports.add(made)
            return made
        except BaseException as error:
            made.close()
            if isinstance(error, Exception):
                raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
            raise

    def let_go(self, transports: list[Any]) -> None:
        """Close the sockets that are still open once the client is closed.

        3.0.12 leaves a connection to the garbage collector if the broker does not accept its bytes.
        """
        for transport in {*transports, *self.transports}:
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
        """Return why no broker accepts this client, if another attempt cannot help.

        Each address was tried and failed, and at least one of the brokers refuses the client.
        """
        brokers = self._addresses
        if any(broker.node_id not in self.failures for broker in brokers):
            return None
        for broker in brokers:
            error = self.failures[broker.node_id]
            why = self._refusal(error)
            if why is not None:
                return f"{address_of(broker)} {why}", error
        return None

    def reasons(self) -> list[str]:
        """Return for each bootstrap address why it did not answer."""
        # kafka-python shuffles the addresses.
        return sorted(f"{address_of(broker)}: {self._reason(broker)}" for broker in self._addresses)

    def bootstrap_error(self) -> Exception | None:
        """Return why no bootstrap address has answered so far; None if none of them has failed."""
        if not any(broker.node_id in self.failures for broker in self._addresses):
            return None
        return SendProducerError(f"no broker answered: {listed(self.reasons(), separator='; ')}")

    def _reason(self, broker: Any) -> str:
        error = self.failures.get(broker.node_id) or self._ends.get(broker.node_id)
        if error is None:
            return "no answer"
        return self._refusal(error) or client_words(error)

    def last_error(self) -> tuple[str, Exception] | None:
        """Return which broker failed last, and why; None if no known broker has failed."""
        brokers = {broker.node_id: broker for broker in cast("Any", self.cluster).brokers()}
        for node_id, error in reversed(list(self.failures.items())):
            broker = brokers.get(node_id)
            if broker is not None:
                why = self._refusal(error) or f"can't be reached: {client_words(error)}"
                return f"{address_of(broker)} {why}", error
        return None

    def is_disconnected(self) -> bool:
        """Return whether the last attempt to connect to each known broker failed."""
        brokers: list[Any] = cast("Any", self.cluster).brokers()
        return bool(brokers) and all(broker.node_id in self.failures for broker in brokers)

    def _refusal(self, error: Exception) -> str | None:
        protocol, mechanism = self.config["security_protocol"], self.config["sasl_mechanism"]
        said = client_words(error)
        if isinstance(error, ScramLoginError):
            return f"did not complete the login with {mechanism}: {said}"
        if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
            return f"refused the login with {mechanism}: {said}"
        if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
            return f"does not offer {mechanism}: {said}"
        if isinstance(error, kafka_errors.IllegalSaslStateError):
            return f"expects no login, but security.protocol is {protocol}"
        if isinstance(error, kafka_errors.InvalidReceiveError) and said.endswith(_TLS_ALERTS):
            return f"speaks TLS, but security.protocol is {protocol}"
        refused = tls_refusal(error) if self.ssl_enabled else None
        return None if refused is None else f"can't be reached with TLS: {refused}"


class NetClient(KafkaNetClient):
    """kafka-python's network client, which reports when its thread ends.

    The producer's setting ``kafka_client`` is public. The sender thread closes its client before it
    ends, so ``close`` learns which thread to wait for; 3.0.12 has no other way to know it.
    ``tests/broker/test_kafka_python_driver.py::test_the_clients_thread_closes_its_network_client``
    and ``tests/broker/test_connecting.py::test_bare_while_it_connects_it_spins`` notice a change.
    """

    def __init__(self, **configs: Any) -> None:
        self.net = NetworkSelector(**configs)
        self.manager = ConnectionManager(self.net, **configs)
        super().__init__(self.net, self.manager, **configs)
        self.closed_by: threading.Thread | None = None
        self.is_closed = threading.Event()
        #: Topics and partitions whose last produce request was refused.
        self.refused: set[tuple[str, int]] = set()
        #: Topics and partitions that the broker did not know in its last answer.
        self.unwritten: set[tuple[str, int]] = set()
        #: Whether the client is about to be closed, and must not wait for a connection.
        self.is_closing = False

    def bootstrap(self, deadline: float, closing: threading.Event) -> None:
        """Connect, in slices, so that another thread can stop it.

        Args:
            deadline: in seconds of :func:`time.monotonic`.
            closing: stops it when set.

        Raises:
            ClosedWhileOpening: ``closing`` was set.
            LoginRefused: no broker accepts this client.
            NotReached: no broker answered before the deadline.
        """
        cluster: Any = self.cluster
        updated = cluster.request_update()
        while True:
            if closing.is_set():
                raise ClosedWhileOpening
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                reasons = listed(self.manager.reasons(), separator="; ")
                raise NotReached(f"no broker answered: {reasons}")
            refusal = self.manager.refusal()
            if refusal is not None:
                raise LoginRefused(refusal[0]) from refusal[1]
            if updated.is_done:
                if updated.succeeded():
                    break
                updated = cluster.request_update()
            self.poll(timeout_ms=min(remaining * 1000, _LOOK_AGAIN_MS), future=updated)
        self.get_broker_version(timeout_ms=max(1, remaining * 1000))

    def maybe_connect(self, node_id: Any, **options: Any) -> None:
        """Start to connect, unless it is too early.

        If the cluster did not name this broker, 3.0.12 raises in each pass of its loop, and does
        not request the brokers again. A request for metadata ends the wait of the loop, so this
        makes one only if there is none yet.
        """
        cluster: Any = self.cluster
        if cluster.broker_metadata(node_id) is None:
            if not cluster.need_update:
                cluster.request_update()
        else:
            super().maybe_connect(node_id, **options)

    def connection_delay(self, node_id: Any) -> float:
        """Return the milliseconds until the next look at a broker.

        3.0.12 takes seconds for milliseconds, and spins while it connects.
        """
        return max(cast("float", super().connection_delay(node_id)) * 1000, _LOOK_AGAIN_MS)

    def await_ready(self, node_id: Any, timeout_ms: float = 30_000) -> Any:
        """Wait for a connection, in slices, so that closing the client ends the wait.

        The wait also ends with the first attempt that fails, because a coordinator may have another
        address by then.

        Returns:
            Whether there is a connection. After False the sender asks for the coordinator, or
            chooses a broker, again. If this raised, as in 3.0.12, it would lose its request.
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

    def in_flight_request_count(self, node_id: Any = None) -> int:
        """Count the requests without an answer, which is one of the client's metrics.

        If the client makes a connection while another thread reads the metric, 3.0.12 raises.
        ``tests/broker/test_kafka_python_driver.py::test_a_metric_can_be_read_while_the_client_connects``
        notices a change.
        """
        connections: dict[Any, Any] = self.manager._conns  # pyright: ignore[reportPrivateUsage]
        return sum(
            len(connection.in_flight_requests)
            for known, connection in list(connections.items())
            if node_id in {None, known}
        )

    def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """Send a request, and note the partitions that its answer refuses."""
        answer = super().send(node_id, request, **options)
        if isinstance(request, ProduceRequest):
            for topic in request.topic_data:
                for partition in topic.partition_data:
                    self.refused.discard((topic.name, partition.index))
                    self.unwritten.discard((topic.name, partition.index))
            # This runs before the sender's own callback, which fails the records.
            answer.add_callback(self._note_refusals)
        return answer

    def _note_refusals(self, response: Any) -> None:
        if response is None:
            return  # acks=0
        for topic in response.responses:
            for partition in topic.partition_responses:
                error = kafka_errors.for_code(partition.error_code)
                if issubclass(error, REFUSALS):
                    self.refused.add((topic.name, partition.index))
                # If the partition is deleted while followers copy the record, the broker gives this
                # error with the offset that the record had.
                is_unknown = error is kafka_errors.UnknownTopicOrPartitionError
                if is_unknown and partition.base_offset < 0:
                    self.unwritten.add((topic.name, partition.index))

    def close(self, node_id: Any = None) -> None:
        """Close one connection or, without an argument, the client."""
        # The garbage collector must not find a socket before `let_go` has closed it.
        transports = [*self.manager.transports]
        try:
            super().close(node_id)
        finally:
            if node_id is None:
                self.manager.let_go(transports)
                self.closed_by = threading.current_thread()
                self.is_closed.set()
