"""``anyio-sendproducer check``: what a producer does to reach its cluster, one step at a time.

A client tries everything at once, and tells in the end that nothing answered. Here each step is
made by itself, and the first that fails says what is wrong in words, and what to do about it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.streams.tls import TLSAttribute

from .. import ProducerSettings, SendProducerError, SettingsError, open_send_producer
from .._settings_resolver import SettingsResolver
from .._shown import listed, one_line
from ..drivers import make_driver
from ..drivers._describe import Protocol, describe_cluster, protocol_of
from ..drivers._protocols import ClusterDescription
from ..drivers.security._tls import tls_refusal
from ._connecting import Connection, require_for, settings_of
from ._running import (
    COMPLETE,
    INCOMPLETE,
    USAGE,
    MissingExtra,
    complain,
    print_report,
    run_on,
    until_terminated,
)

__all__ = ["STEPS", "Step", "check", "run"]

#: The steps, in order, each with what it is; the documents list them.
STEPS: Final = {
    "settings": "the settings are such as the driver takes; certificates are read",
    "resolve": "the brokers' names have addresses; a service is looked up",
    "connect": "a broker takes a TCP connection",
    "tls": "TLS is spoken, and the certificate is one to be trusted",
    "authenticate": "the driver connects as a producer does, with the login",
    "cluster": "the cluster tells its id, its controller and its brokers, and they their versions",
    "brokers": "each broker, by itself, can be connected to where it says that it is "
    "(advertised.listeners), with TLS if that is asked for",
}

#: How many details of a step are shown, and how many characters of each.
_MOST_DETAILS: Final = 100
_MOST_CHARACTERS: Final = 1_000
#: How many addresses are tried at a time.
_AT_A_TIME: Final = 50

#: What may be the matter, by what is said.
_HINTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in (
        (r"speaks TLS", "set -X security.protocol=SSL, or SASL_SSL where there is a login"),
        (r"expects no login", "set -X security.protocol=PLAINTEXT, or SSL"),
        (r"does not offer|unsupported.+mechanism", "ask which sasl.mechanism this listener has"),
        (
            r"refused the login|authentication fail|SASL authentication error",
            "look at the user's name and password, and at its credentials for this sasl.mechanism",
        ),
        (
            r"no broker answered|brokers are down|timed out|disconnected|closed|transport failure",
            "it may be no broker, or expect TLS or a login: look at -X security.protocol",
        ),
    )
)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step, and what came of it."""

    name: str
    state: str
    """``"ok"``, ``"failed"`` or ``"skipped"``."""
    details: tuple[str, ...]
    """What there is to say, a line each."""
    hint: str = ""
    """What to do, where that can be told."""


class _Failed(Exception):
    """A step failed.

    Attributes:
        details: what is wrong, a line each.
        hint: what to do.
    """

    def __init__(self, *details: str, hint: str = "") -> None:
        super().__init__(*details)
        self.details: tuple[str, ...] = details
        self.hint: str = hint


class _Skipped(Exception):
    """There is nothing to be done for a step; the message says why."""


@dataclasses.dataclass(slots=True)
class _Seen:
    """What the steps have found out."""

    settings: ProducerSettings
    driver: str | None
    protocol: Protocol | None = None
    addresses: list[tuple[str, int]] = dataclasses.field(default_factory=list[tuple[str, int]])
    cluster: ClusterDescription | None = None


def run(connection: Connection, loop: str, timeout: float, *, as_json: bool) -> int:
    """Check, and print what came of each step.

    Args:
        connection: what was said about the cluster.
        loop: the event loop to run on.
        timeout: how long a step may take, in seconds.
        as_json: whether to print JSON.

    Returns:
        ``COMPLETE``; ``INCOMPLETE`` where a step failed; ``USAGE`` where the options are wrong or a
        package is missing; 128 and the signal's number.
    """
    try:
        require_for(connection, loop)
        settings = settings_of(connection, start_timeout=timeout, resolve_timeout=timeout)
    except (MissingExtra, SettingsError) as error:
        return complain(error, USAGE)
    return run_on(
        loop, until_terminated, partial(_run, settings, connection.driver, as_json=as_json)
    )


async def _run(settings: ProducerSettings, driver: str | None, *, as_json: bool) -> int:
    from ._display import steps_text

    steps, cluster = await check(settings, driver)
    code = INCOMPLETE if any(step.state == "failed" for step in steps) else COMPLETE
    if as_json:
        report = {
            "exit_code": code,
            "steps": [dataclasses.asdict(step) for step in steps],
            "cluster": None if cluster is None else dataclasses.asdict(cluster),
        }
        # In ASCII, which every locale can print.
        print_report(json.dumps(report) + "\n")
    else:
        print_report(steps_text(steps))
    return code


async def check(
    settings: ProducerSettings, driver: str | None
) -> tuple[list[Step], ClusterDescription | None]:
    """Make the steps up to the first that fails.

    Args:
        settings: how to reach the cluster; ``start_timeout`` is what a step may take.
        driver: the driver whose client is used, by name; None: the default.

    Returns:
        All steps, those that were not made as skipped; and the cluster, where it was reached.
    """
    seen = _Seen(settings, driver)
    made: dict[str, Callable[[_Seen], Awaitable[tuple[str, ...]]]] = {
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
            steps.append(Step(name, "skipped", (f"not tried, since {failed!r} failed",)))
            continue
        try:
            steps.append(Step(name, "ok", _shown(await made[name](seen))))
        except _Skipped as skipped:
            steps.append(Step(name, "skipped", (str(skipped),)))
        except _Failed as error:
            failed = name
            steps.append(Step(name, "failed", _shown(error.details), error.hint))
    return steps, seen.cluster


def _shown(details: tuple[str, ...]) -> tuple[str, ...]:
    """The details, of which brokers may have said anything, and as many of it as they like."""
    shown = [one_line(detail, _MOST_CHARACTERS) for detail in details[:_MOST_DETAILS]]
    more = len(details) - len(shown)
    return (*shown, f"and {more:,} more") if more else tuple(shown)


# --- the steps -----------------------------------------------------------------------------------


async def _settings(seen: _Seen) -> tuple[str, ...]:
    def look() -> Protocol:
        # It checks all, and does not connect.
        make_driver(seen.driver, seen.settings.evolve(bootstrap_servers="x:1", service_name=""))
        return protocol_of(seen.driver, seen.settings)

    try:
        protocol = seen.protocol = await anyio.to_thread.run_sync(look)
    except SettingsError as error:
        raise _Failed(str(error)) from None
    login = f", login by {protocol.mechanism}" if protocol.mechanism else ""
    return (f"driver {seen.driver or 'kafka-python'}, {protocol.name}{login}",)


async def _resolve(seen: _Seen) -> tuple[str, ...]:
    details: list[str] = []
    settings = seen.settings
    if settings.service_name:
        finder = SettingsResolver(settings)
        try:
            await finder.find()
        except SendProducerError as error:
            raise _Failed(
                str(error), hint="look for SRV records, as by --service-name _port._tcp.name"
            ) from None
        details.append(f"{settings.service_name}: {listed(finder.settings.addresses)}")
        settings = finder.settings
    seen.addresses = [*map(_split, settings.addresses)]
    _direct(seen)

    async def look_up(host: str, port: int) -> str:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return f"{host}: {listed(dict.fromkeys(one[4][0] for one in found))}"

    good, bad = await _try_each(seen, _named(seen.addresses), look_up)
    if not good:
        raise _Failed(
            *bad.values(), hint="look at the spelling, and at /etc/resolv.conf or the VPN"
        )
    seen.addresses = [one for one in seen.addresses if _address(*one) in good]
    # Two ports of a host have the same addresses.
    return (*details, *dict.fromkeys(good.values()), *bad.values())


async def _connect(seen: _Seen) -> tuple[str, ...]:
    _direct(seen)
    good, bad = await _try_each(seen, _named(seen.addresses), _connected)
    if not good:
        raise _Failed(
            *bad.values(),
            hint="is a broker running there, and is this its port? Where nothing answers at all, a "
            "firewall may be in the way",
        )
    return (*good.values(), *bad.values())


async def _tls(seen: _Seen) -> tuple[str, ...]:
    _direct(seen)
    protocol = seen.protocol
    if protocol is None or protocol.context is None:
        raise _Skipped("not asked for by security.protocol")
    shake_hands = partial(_shaken_hands, protocol.context)
    good, bad = await _try_each(seen, _named(seen.addresses), shake_hands)
    if not good:
        raise _Failed(
            *bad.values(),
            hint="trust the issuer of its certificate by -X ssl.truststore.location=ca.pem; where "
            "TLS is not spoken at all, look at -X security.protocol",
        )
    return (*good.values(), *bad.values())


async def _authenticate(seen: _Seen) -> tuple[str, ...]:
    try:
        async with open_send_producer(seen.settings, driver=seen.driver):
            pass
    except SendProducerError as error:
        said = str(error)
        hints = (hint for pattern, hint in _HINTS if pattern.search(said))
        raise _Failed(said, hint=next(hints, "")) from None
    protocol = seen.protocol
    if protocol is not None and protocol.mechanism:
        return (f"logged in by {protocol.mechanism}",)
    return ("no login is asked for",)


async def _describe(seen: _Seen) -> tuple[str, ...]:
    settings = seen.settings
    if settings.service_name:
        found = [_address(*one) for one in seen.addresses]
        settings = settings.with_bootstrap_servers(found)
    try:
        cluster = seen.cluster = await anyio.to_thread.run_sync(
            describe_cluster, seen.driver, settings
        )
    except SendProducerError as error:
        raise _Failed(str(error)) from None
    controller = "unknown" if cluster.controller is None else cluster.controller
    return (
        f"id {cluster.id or 'unknown'}, controller {controller}",
        *(
            f"broker {broker.id} at {_address(broker.host, broker.port)}"
            + ("" if broker.version is None else f", as of Kafka {broker.version}")
            for broker in cluster.brokers
        ),
    )


async def _brokers(seen: _Seen) -> tuple[str, ...]:
    _direct(seen)
    cluster, protocol = seen.cluster, seen.protocol
    named = {
        f"broker {broker.id} at {_address(broker.host, broker.port)}": (broker.host, broker.port)
        for broker in (() if cluster is None else cluster.brokers)
    }
    context = None if protocol is None else protocol.context
    attempt = _connected if context is None else partial(_shaken_hands, context)
    good, bad = await _try_each(seen, named, attempt)
    if bad:
        raise _Failed(
            *bad.values(),
            *good,
            hint="records go to brokers where they say that they are: advertised.listeners must "
            "name what can be reached from here",
        )
    return tuple(good)


# --- attempts ------------------------------------------------------------------------------------


async def _try_each(
    seen: _Seen,
    addresses: Mapping[str, tuple[str, int]],
    attempt: Callable[[str, int], Awaitable[str]],
) -> tuple[dict[str, str], dict[str, str]]:
    """Try each address by itself, side by side, within the time of one step.

    Returns:
        By name, the results of the addresses that work, and the faults of the others.
    """
    good: dict[str, str] = {}
    bad = dict.fromkeys(addresses, "not tried: the time was over")
    remaining = iter(addresses.items())

    async def work() -> None:
        for name, (host, port) in remaining:
            if not 0 < port < 65536:  # a broker may name any number
                bad[name] = "this is not the number of a port"
                continue
            bad[name] = "no answer in time"
            try:
                good[name] = await attempt(host, port)
                del bad[name]
            # UnicodeError: for a name that is not a host's.
            except (
                OSError,
                UnicodeError,
                anyio.BrokenResourceError,
                anyio.EndOfStream,
            ) as error:
                bad[name] = tls_refusal(error) or _said(error)

    with anyio.move_on_after(seen.settings.start_timeout):
        async with anyio.create_task_group() as tasks:
            for _ in range(min(len(addresses), _AT_A_TIME)):
                tasks.start_soon(work)
    return good, {name: f"{name}: {said}" for name, said in bad.items()}


async def _connected(host: str, port: int) -> str:
    await anyio.aclose_forcefully(await anyio.connect_tcp(host, port))
    return _address(host, port)


async def _shaken_hands(context: ssl.SSLContext, host: str, port: int) -> str:
    stream = await anyio.connect_tcp(
        host, port, ssl_context=context, tls_hostname=host, tls_standard_compatible=False
    )
    version = stream.extra(TLSAttribute.tls_version)  # noqa: S610  # not Django's
    await anyio.aclose_forcefully(stream)
    return f"{_address(host, port)}: {version}"


def _named(addresses: Iterable[tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {_address(*one): one for one in addresses}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _direct(seen: _Seen) -> None:
    if seen.protocol is not None and not seen.protocol.is_direct:
        raise _Skipped("there is a proxy between, which does this")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _said(error: BaseException) -> str:
    """What an error says, and those that it is made of."""
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error}"
    cause: Any = error.__cause__
    # AnyIO's own says that all attempts failed; what is below says why.
    inside = getattr(cause, "exceptions", (cause,) if isinstance(cause, OSError) else ())
    if inside:
        return "; ".join(dict.fromkeys(_said(one) for one in inside))
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        # asyncio and Trio have words of their own.
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
