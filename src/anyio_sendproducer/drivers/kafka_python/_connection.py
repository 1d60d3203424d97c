"""Private parts of one connection of kafka-python, fixed where 3.0.12 leaks or has no limit.

Each class and function that changes 3.0.12 says what 3.0.12 does, and which test notices a change.
``_network`` has the private parts that concern all connections of a client.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import ssl
import types
from collections.abc import Callable
from typing import Any, Final

import kafka.errors as kafka_errors
from kafka.future import Future
from kafka.net.connection import KafkaConnection
from kafka.net.http_connect import HttpConnectProxy
from kafka.net.inet import KafkaNetSocket
from kafka.net.socks5 import Socks5Proxy
from kafka.protocol.metadata import (
    ApiVersionsRequest,  # pyright: ignore[reportAttributeAccessIssue]
)
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslBytesRequest, SaslHandshakeRequest

from ..._shown import one_line
from ..security._settings import SCRAM
from ..security._tls import tls_refusal

__all__ = [
    "ClosingSocket",
    "LimitedConnection",
    "ScramLoginError",
    "receive",
    "send_and_read_alert",
    "waiting_proxy",
]

#: The prefix of the schemes of proxies that wait.
_WAITING: Final = "waiting-"

#: The states in which a proxy of 3.0.12 needs to write.
_WRITES: Final = frozenset({"<disconnected>", "<connecting>", "<sending>"})

#: The bytes to read from a connection at a time.
_READ_BYTES: Final = 256 * 1024

#: The most requests that a connection sends to find out versions, and to log in. SCRAM takes two,
#: and Kerberos three or four.
_MAX_ROUNDS: Final = 10

#: How many times SCRAM may hash a password. Kafka allows 4,096 to 16,384. With fewer iterations, an
#: attacker who poses as a broker can guess the password sooner (RFC 7677 requires 4,096 as well). A
#: million iterations block the client for seconds.
_MIN_ITERATIONS: Final = 4_096
_MAX_ITERATIONS: Final = 100_000

_SET_UP: Final = (ApiVersionsRequest, SaslAuthenticateRequest, SaslBytesRequest)


class _Closing:
    """Closes a socket whose connection fails.

    3.0.12 leaves that to the garbage collector, so each attempt to reach a broker that is down
    leaves an open descriptor.
    ``tests/broker/test_traps.py::test_bare_each_refused_connection_leaves_a_socket`` notices a
    change.
    """

    async def sock_connect(self, net: Any, sock: Any, *args: Any, **options: Any) -> Any:
        """Connect; close the socket if that fails."""
        base: Any = super()
        try:
            return await base.sock_connect(net, sock, *args, **options)
        except BaseException:
            sock.close()
            raise


class ClosingSocket(_Closing, KafkaNetSocket):
    """A plain connection that closes its socket if it fails.

    kafka-python uses this class for a ``proxy_url`` with one of SCHEMES.
    """

    SCHEMES = ("direct",)


class _Waiting(_Closing):
    """A connection through a proxy that waits for the proxy's answers.

    3.0.12 waits until it can write, even if it needs to read, and spins until the proxy answers.
    ``tests/broker/test_connecting.py::test_while_a_proxy_is_silent_it_waits`` notices a change.
    """

    _state: str

    def __init__(self, proxy_url: str) -> None:
        base: Any = super()
        base.__init__(proxy_url.removeprefix(_WAITING))

    async def sock_connect(self, net: Any, sock: Any, *args: Any, **options: Any) -> Any:
        """Connect to the proxy, and have it connect to the broker."""
        waits = types.SimpleNamespace(wait_write=functools.partial(self._wait, net))
        return await super().sock_connect(waits, sock, *args, **options)

    def _wait(self, net: Any, sock: Any, **options: Any) -> Any:
        reads = self._state not in _WRITES and not getattr(self, "_buffer_out", b"")
        return (net.wait_read if reads else net.wait_write)(sock, **options)


class _WaitingSocks5(_Waiting, Socks5Proxy):
    SCHEMES = tuple(map(_WAITING.__add__, Socks5Proxy.SCHEMES))


_WaitingSocks5.SCHEMES = Socks5Proxy.SCHEMES  # 3.0.12 has registered the class, and checks these


# 3.0.12 finds the class by its schemes.
class _WaitingHttp(_Waiting, HttpConnectProxy):  # pyright: ignore[reportUnusedClass]
    SCHEMES = tuple(map(_WAITING.__add__, HttpConnectProxy.SCHEMES))


def waiting_proxy(url: str) -> str:
    """Return the URL with which kafka-python uses a proxy, and waits for its answers."""
    scheme = url.partition(":")[0].lower()
    is_known = scheme in {*Socks5Proxy.SCHEMES, *HttpConnectProxy.SCHEMES}
    return f"{_WAITING}{url}" if is_known else url


def receive(transport: Any) -> tuple[bytes, Any]:
    """Read the bytes that have arrived, up to a limit.

    3.0.12 reads for as long as bytes arrive. If a broker answers and closes the connection, as
    Kafka does when it refuses a login, 3.0.12 drops the answer.
    ``tests/broker/test_security.py::test_the_driver_reads_like_its_transport`` notices a change.
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
        except Exception as error:  # noqa: BLE001  # becomes the failure of pending requests
            failure = kafka_errors.KafkaConnectionError(error)
            break
        if not data:
            failure = kafka_errors.KafkaConnectionError("socket disconnected")
            break
        received.append(data)
        size += len(data)
    # If there are both bytes and a failure, the next attempt finds the failure again.
    return b"".join(received), None if received else failure


def send_and_read_alert(transport: Any, send: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """Send; if that fails, read the alert that the broker sent before it closed the connection.

    With TLS 1.3 a client completes the handshake before the broker has checked the client's
    certificate. So the alert can arrive while the client sends, and 3.0.12 does not read it then.
    ``tests/broker/test_security.py::test_the_driver_reads_like_its_transport`` notices a change.
    """
    sent, failure = send()
    if failure is not None and isinstance(transport._sock, ssl.SSLSocket):
        _, said = receive(transport)
        if said is not None and tls_refusal(said) is not None:
            failure = said
    return sent, failure


class ScramLoginError(kafka_errors.SaslAuthenticationFailedError):
    """The broker's part of a SCRAM login is wrong, too weak or too expensive."""


class LimitedConnection(KafkaConnection):
    """A connection that limits the work that a broker can cause during a login.

    3.0.12 answers each further login request of a broker, without a pause or a limit, and there is
    no public way to stop it. If the broker's part of a login is wrong, 3.0.12 treats that as a
    failed connection, and tries again.
    ``tests/broker/test_pace.py::test_the_number_of_scram_iterations_is_bounded``
    notices a change.
    """

    #: The requests that it has sent to find out versions, or to log in.
    _rounds = 0

    def send_request(self, request: Any, request_timeout_ms: float | None = None) -> Any:
        """Send a request, or fail it if the connection is only open to send the bytes before it.

        In 3.0.12 this raises. The sender then loses the batches that it is about to send, or the
        client never requests metadata again.
        ``tests/broker/test_kafka_python_driver.py::test_a_batch_is_sent_again_if_its_connection_is_being_closed``
        notices a change.
        """
        if self.transport is not None and self.transport.is_closing():
            error = kafka_errors.KafkaConnectionError("the connection is being closed")
            return Future().failure(error)
        return super().send_request(request, request_timeout_ms)

    def _send_request(self, request: Any, *args: Any, **options: Any) -> Any:
        if isinstance(request, SaslHandshakeRequest):
            self._rounds = 0
        elif isinstance(request, _SET_UP):
            self._rounds += 1
            if self._rounds > _MAX_ROUNDS:
                raise kafka_errors.KafkaConnectionError(
                    f"the broker asks for another request after {_MAX_ROUNDS} requests of type "
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
            raise ScramLoginError(one_line(error)) from error

    async def _check_iterations(self, answer: Any) -> Any:
        """Refuse a number of iterations that is too weak, or that takes too long to compute."""
        response = await answer
        message: bytes = getattr(response, "auth_bytes", b"") or b""
        for part in message.decode().split(","):
            name, _, value = part.partition("=")
            if name == "i" and not _MIN_ITERATIONS <= int(value) <= _MAX_ITERATIONS:
                raise ScramLoginError(
                    f"it asks for {int(value)} iterations, but only {_MIN_ITERATIONS} to "
                    f"{_MAX_ITERATIONS} are accepted"
                )
        return response

    @property
    def _is_scram(self) -> bool:
        return self.config["sasl_mechanism"] in SCRAM
