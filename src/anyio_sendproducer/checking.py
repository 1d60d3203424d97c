"""Diagnose the connection to a cluster, step by step.

A client does all steps at once, and only reports that no broker answered. This module tries each
step by itself. The first step that fails says what is wrong and, if possible, what to do.

The command ``anyio-sendproducer check`` prints the steps. :func:`check_cluster` needs no optional
dependency::

    async def check_before_start() -> None:
        found = await check_cluster(ProducerSettings(bootstrap_servers="localhost:9092"))
        for step in found.steps:
            print(step.state, step.name, *step.details)
        assert found.passed
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Literal

import anyio
import anyio.to_thread
from anyio.streams.tls import TLSAttribute

from ._exceptions import SendProducerError, SettingsError
from ._kafka_names import canonical_name
from ._opening import open_send_producer
from ._settings import ProducerSettings, check_settings
from ._settings_resolver import SettingsResolver
from ._shown import listed, one_line, raised_text
from .drivers import DriverName, make_driver
from .drivers._describe import Protocol, describe_cluster, protocol_of
from .drivers._protocols import HOW_FAR, ClusterDescription
from .drivers.security._settings import MEANINGS
from .drivers.security._tls import tls_refusal

__all__ = [
    "STEPS",
    "ClusterCheck",
    "Step",
    "check_cluster",
]

#: The names of the steps in order, each with the condition under which the step passes.
STEPS: Final = {
    "settings": "enrich completes the settings, if there is one; the driver accepts them; "
    "certificates are read",
    "resolve": "the name of at least one broker has an address. With a service name, the look-up "
    "of the service must first find brokers",
    "connect": "a broker accepts a TCP connection",
    "tls": "a broker speaks TLS, and its certificate is trusted",
    "authenticate": "the driver connects as a producer does, with the login",
    "cluster": "the cluster reports its id, its controller and its brokers. With the kafka-python "
    "driver, the step also shows the version of each broker that answers",
    "brokers": "each broker accepts a connection at its own address (advertised.listeners), with "
    "TLS if the settings ask for it",
}

#: How many details of a step are kept, and how many characters of each.
_MOST_DETAILS: Final = 100
_MOST_CHARACTERS: Final = 1_000
#: How many addresses are tried at a time.
_AT_A_TIME: Final = 50

#: An ApiVersions request, version 0, with this correlation id and no client id. Each broker answers
#: it, before any login.
_CORRELATION_ID: Final = b"ping"
_REQUEST: Final = b"\x00\x00\x00\x0a" + b"\x00\x12" + b"\x00\x00" + _CORRELATION_ID + b"\xff\xff"

_NO_TLS: Final = "it does not speak TLS: it answers a request that is not encrypted"
_NO_TLS_HINT: Final = (
    "set security.protocol to PLAINTEXT, or to SASL_PLAINTEXT if there is a login; or use the port "
    "of the listener with TLS"
)

#: Advice for error messages of clients.
_HINTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in (
        (r"speaks TLS", "set security.protocol to SSL, or to SASL_SSL if there is a login"),
        (r"expects no login", "set security.protocol to PLAINTEXT, or to SSL"),
        (r"does not offer|unsupported.+mechanism", "ask which sasl.mechanism this listener has"),
        (
            r"refused the login|authentication fail|SASL authentication error",
            "check the user's name and password, and its credentials for this sasl.mechanism",
        ),
        (r"Unable to decode response", "for librdkafka's mock cluster, set api_version to 2.3"),
    )
)

#: Error messages of a client that does not know why the broker ended the connection.
_NO_REASON: Final = re.compile(
    r"no broker answered|brokers are down|timed out|disconnected|closed|transport failure",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of a check."""

    name: str
    """One of ``STEPS``."""
    state: Literal["ok", "failed", "skipped"]
    """The outcome."""
    details: tuple[str, ...]
    """The findings of the step, one line each."""
    hint: str = ""
    """Advice about the failure; empty if there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterCheck:
    """The result of :func:`check_cluster`."""

    steps: tuple[Step, ...]
    """All steps. The steps after the first failure were skipped."""
    cluster: ClusterDescription | None
    """The cluster's description of itself; None if the step ``cluster`` or an earlier step
    failed."""

    @property
    def passed(self) -> bool:
        """Whether no step failed."""
        return all(step.state != "failed" for step in self.steps)


class _Failed(Exception):
    """A step failed.

    Attributes:
        details: what is wrong, one line each.
        hint: what to do.
    """

    def __init__(self, *details: str, hint: str = "") -> None:
        super().__init__(*details)
        self.details: tuple[str, ...] = details
        self.hint: str = hint


class _Skipped(Exception):
    """A step has nothing to do; the message says why."""


class _NotTls(Exception):
    """A broker answered a request that was not encrypted."""


@dataclasses.dataclass(slots=True)
class _Findings:
    """The findings of the steps so far."""

    settings: ProducerSettings
    """The caller's settings; after the step ``settings``, what ``enrich`` made of them, without the
    ``transactional_id``, and with ``wait_for_cluster``."""
    driver: DriverName | None
    deadline: float = math.inf
    """The time at which the current step must end, on the event loop's clock."""
    protocol: Protocol | None = None
    addresses: list[tuple[str, int]] = dataclasses.field(default_factory=list[tuple[str, int]])
    cluster: ClusterDescription | None = None


async def check_cluster(
    settings: ProducerSettings, *, driver: DriverName | None = None
) -> ClusterCheck:
    """Try the steps of a connection to a cluster, up to the first step that fails.

    Args:
        settings: how to reach the cluster. ``enrich`` is called once, in the step ``settings``.
            Each step takes about ``start_timeout`` at most; the step ``cluster`` may take twice as
            long. A ``transactional_id`` is not used, so a producer with this id is not fenced.
        driver: the name of the driver whose client connects. None stands for the default.

    Returns:
        The steps and the cluster's description. A failure is reported as a step instead of being
        raised.

    Raises:
        TypeError: ``settings`` has a wrong type.

    Cancellation closes the connections that the current step has opened. It does not interrupt the
    step ``cluster``, and takes effect when this step ends.
    """
    check_settings(settings)
    findings = _Findings(settings, driver)
    functions: dict[str, Callable[[_Findings], Awaitable[tuple[str, ...]]]] = {
        "settings": _settings,
        "resolve": _resolve,
        "connect": _connect,
        "tls": _tls,
        "authenticate": _authenticate,
        "cluster": _describe,
        "brokers": _brokers,
    }
    steps: list[Step] = []
    failed: str | None = None
    for name in STEPS:
        if failed is not None:
            steps.append(Step(name, "skipped", (f"not tried, because {failed!r} failed",)))
            continue
        findings.deadline = anyio.current_time() + findings.settings.start_timeout
        try:
            steps.append(Step(name, "ok", _shown(await functions[name](findings))))
        except _Skipped as skipped:
            steps.append(Step(name, "skipped", (str(skipped),)))
        except _Failed as error:
            failed = name
            steps.append(Step(name, "failed", _shown(error.details), error.hint))
    return ClusterCheck(tuple(steps), findings.cluster)


def _shown(details: tuple[str, ...]) -> tuple[str, ...]:
    """Escape control characters in the details, and limit their number and length, because brokers
    supply them."""
    shown = [one_line(detail, _MOST_CHARACTERS) for detail in details[:_MOST_DETAILS]]
    more = len(details) - len(shown)
    return (*shown, f"and {more:,} more") if more else tuple(shown)


# --- the steps -----------------------------------------------------------------------------------


async def _settings(findings: _Findings) -> tuple[str, ...]:
    findings.settings = await _enriched(findings)

    def examine() -> Protocol:
        # Making a driver checks all settings and does not connect.
        settings = findings.settings.evolve(bootstrap_servers="x:1", service_name="")
        make_driver(findings.driver, settings)
        return protocol_of(findings.driver, findings.settings)

    try:
        protocol = findings.protocol = await anyio.to_thread.run_sync(examine)
    except SettingsError as error:
        raise _Failed(str(error)) from None
    login = f", login by {protocol.mechanism}" if protocol.mechanism else ""
    return (f"driver {findings.driver or 'kafka-python'}, {protocol.name}{login}",)


async def _enriched(findings: _Findings) -> ProducerSettings:
    given = findings.settings
    said = f"enrich did not finish within {given.start_timeout:g} s (start_timeout)"
    with anyio.CancelScope(deadline=findings.deadline):
        try:
            enriched = await SettingsResolver(given).enriched()
            # A client with the transactional_id would fence the producer that uses this id.
            # Without wait_for_cluster, the step "authenticate" would not wait for the login.
            # enrich=None makes evolve() check that there is an address.
            return enriched.evolve(transactional_id=None, wait_for_cluster=True, enrich=None)
        except SettingsError as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001  # the hook of the user may raise anything
            said = f"enrich {raised_text(error)}"
    raise _Failed(
        said, hint="check the function that is set as enrich, and the services that it calls"
    )


async def _resolve(findings: _Findings) -> tuple[str, ...]:
    details: list[str] = []
    settings = findings.settings
    if settings.service_name:
        resolver = SettingsResolver(settings)
        try:
            await resolver.find()
        except SendProducerError as error:
            raise _Failed(
                str(error), hint="look up SRV records, with a service name like _port._tcp.name"
            ) from None
        details.append(f"{settings.service_name}: {listed(resolver.settings.addresses)}")
        settings = resolver.settings
    findings.addresses = [*map(_split, settings.addresses)]
    _skip_behind_proxy(findings)

    async def look_up(host: str, port: int) -> str:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return f"{host}: {listed(dict.fromkeys(one[4][0] for one in found))}"

    good, bad = await _try_each(findings, _named(findings.addresses), look_up)
    if not good:
        raise _Failed(
            *bad.values(), hint="check the spelling of the name, /etc/resolv.conf and the VPN"
        )
    findings.addresses = [one for one in findings.addresses if _address(*one) in good]
    # Two ports of a host have the same addresses.
    return (*details, *dict.fromkeys(good.values()), *bad.values())


async def _connect(findings: _Findings) -> tuple[str, ...]:
    _skip_behind_proxy(findings)
    good, bad = await _try_each(findings, _named(findings.addresses), _connected)
    if not good:
        raise _Failed(
            *bad.values(),
            hint="check that a broker runs there, and that this is its port. If nothing answers at "
            "all, a firewall may block the connection",
        )
    return (*good.values(), *bad.values())


async def _tls(findings: _Findings) -> tuple[str, ...]:
    _skip_behind_proxy(findings)
    protocol = findings.protocol
    if protocol is None or protocol.context is None:
        raise _Skipped("security.protocol does not ask for TLS")
    shake_hands = _handshake(findings, protocol.context)
    good, bad = await _try_each(findings, _named(findings.addresses), shake_hands)
    if not good:
        without_tls = any(detail.endswith(_NO_TLS) for detail in bad.values())
        raise _Failed(
            *sorted(bad.values(), key=lambda detail: not detail.endswith(_NO_TLS)),
            hint=_NO_TLS_HINT
            if without_tls
            else f"{_trust_hint(findings.settings)}. If the port does not speak TLS at all, check "
            "security.protocol",
        )
    return (*good.values(), *bad.values())


def _trust_hint(settings: ProducerSettings) -> str:
    """Return advice on how to trust a certificate. It names the property that is set, if any."""
    for name in settings.properties:
        if MEANINGS.get(canonical_name(name)) in {"ca", "ca_pem"}:
            return f"add the issuer of its certificate to the certificates of {name}"
    return "trust the issuer of its certificate with ssl.truststore.location=ca.pem"


async def _authenticate(findings: _Findings) -> tuple[str, ...]:
    try:
        async with open_send_producer(findings.settings, driver=findings.driver):
            pass
    except SendProducerError as error:
        # The end of the message advises the reader to run this check.
        message = str(error).replace(HOW_FAR, "")
        raise _Failed(message, hint=_login_hint(message, findings.protocol)) from None
    protocol = findings.protocol
    if protocol is not None and protocol.mechanism:
        return (f"logged in by {protocol.mechanism}",)
    return ("the broker asks for no login",)


def _login_hint(message: str, protocol: Protocol | None) -> str:
    """Return advice about an error of a client that has a connection."""
    for pattern, hint in _HINTS:
        if pattern.search(message):
            return hint
    if not _NO_REASON.search(message):
        return ""
    has_login = protocol is not None and bool(protocol.mechanism)
    if protocol is not None and protocol.context is not None:
        # The step before this one has shown that the listener speaks TLS.
        if has_login:
            return (
                "TLS works, so the broker may end the login: check sasl.mechanism, the user's name "
                "and password, and whether this listener has logins"
            )
        return "TLS works, so it may expect a login: check security.protocol"
    expected = "TLS" if has_login else "TLS or a login"
    return f"it may not be a broker, or it may expect {expected}: check security.protocol"


async def _describe(findings: _Findings) -> tuple[str, ...]:
    settings = findings.settings
    if settings.service_name:
        found = [_address(*one) for one in findings.addresses]
        settings = settings.with_bootstrap_servers(found)
    try:
        cluster = findings.cluster = await anyio.to_thread.run_sync(
            describe_cluster, findings.driver, settings
        )
    except SendProducerError as error:
        raise _Failed(str(error)) from None
    controller = "unknown" if cluster.controller is None else cluster.controller
    return (
        f"id {cluster.id or 'unknown'}, controller {controller}",
        *(
            f"broker {broker.id} at {_address(broker.host, broker.port)}"
            + ("" if broker.version is None else f", protocol of Kafka {broker.version}")
            for broker in cluster.brokers
        ),
    )


async def _brokers(findings: _Findings) -> tuple[str, ...]:
    _skip_behind_proxy(findings)
    cluster, protocol = findings.cluster, findings.protocol
    named = {
        f"broker {broker.id} at {_address(broker.host, broker.port)}": (broker.host, broker.port)
        for broker in (() if cluster is None else cluster.brokers)
    }
    context = None if protocol is None else protocol.context
    attempt = _connected if context is None else _handshake(findings, context)
    good, bad = await _try_each(findings, named, attempt)
    if bad:
        raise _Failed(
            *bad.values(),
            *good,
            hint="a client sends records to the addresses that brokers advertise: set "
            "advertised.listeners to addresses that can be reached from here",
        )
    return tuple(good)


# --- attempts ------------------------------------------------------------------------------------


async def _try_each(
    findings: _Findings,
    addresses: Mapping[str, tuple[str, int]],
    attempt: Callable[[str, int], Awaitable[str]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Try each address separately, several at a time, within the time of one step.

    Returns:
        The results of the addresses that work, and the faults of the others, each by name.
    """
    good: dict[str, str] = {}
    bad = dict.fromkeys(addresses, "not tried: the time ran out")
    remaining = iter(addresses.items())

    async def work() -> None:
        for name, (host, port) in remaining:
            if not 0 < port < 65536:  # a broker may advertise any number
                bad[name] = "this is not the number of a port"
                continue
            bad[name] = "no answer in time"
            try:
                good[name] = await attempt(host, port)
                del bad[name]
            except _ATTEMPT_ERRORS as error:
                bad[name] = _NO_TLS if isinstance(error, _NotTls) else _reason(error)

    with anyio.CancelScope(deadline=findings.deadline):
        async with anyio.create_task_group() as tasks:
            for _ in range(min(len(addresses), _AT_A_TIME)):
                tasks.start_soon(work)
    return good, {name: f"{name}: {reason}" for name, reason in bad.items()}


#: UnicodeError is raised for a text that cannot be the name of a host.
_STREAM_ERRORS: Final = (OSError, UnicodeError, anyio.BrokenResourceError, anyio.EndOfStream)
_ATTEMPT_ERRORS: Final = (*_STREAM_ERRORS, _NotTls)


async def _connected(host: str, port: int) -> str:
    await anyio.aclose_forcefully(await anyio.connect_tcp(host, port))
    return _address(host, port)


def _handshake(
    findings: _Findings, context: ssl.SSLContext
) -> Callable[[str, int], Awaitable[str]]:
    # A plaintext listener may wait for the rest of a request, so reserve half of the time to test
    # for a plaintext listener.
    return partial(_shaken_hands, context, findings.settings.start_timeout / 2)


async def _shaken_hands(context: ssl.SSLContext, seconds: float, host: str, port: int) -> str:
    try:
        with anyio.fail_after(seconds):
            stream = await anyio.connect_tcp(
                host, port, ssl_context=context, tls_hostname=host, tls_standard_compatible=False
            )
    except ssl.SSLCertVerificationError:
        raise
    except _STREAM_ERRORS:
        if await _answers_without_tls(host, port):
            raise _NotTls from None
        raise
    version = stream.extra(TLSAttribute.tls_version)  # noqa: S610  # not Django's
    await anyio.aclose_forcefully(stream)
    return f"{_address(host, port)}: {version}"


async def _answers_without_tls(host: str, port: int) -> bool:
    """Whether a broker answers there without TLS."""
    answer = b""
    try:
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(_REQUEST)
            while len(answer) < 8:
                answer += await stream.receive()
    except _STREAM_ERRORS:
        return False
    return answer[4:8] == _CORRELATION_ID


def _named(addresses: Iterable[tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {_address(*one): one for one in addresses}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _skip_behind_proxy(findings: _Findings) -> None:
    if findings.protocol is not None and not findings.protocol.is_direct:
        raise _Skipped("the proxy does this")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _reason(error: BaseException) -> str:
    """An error in words, with the errors that it consists of."""
    refusal = tls_refusal(error)
    if refusal is not None:
        return refusal
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error}"
    cause: Any = error.__cause__
    # AnyIO's own error says that all attempts failed; the errors below it say why.
    inside = getattr(cause, "exceptions", (cause,) if isinstance(cause, OSError) else ())
    if inside:
        return "; ".join(dict.fromkeys(_reason(one) for one in inside))
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        # asyncio and Trio word these errors differently.
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
