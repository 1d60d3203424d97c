"""A resolver for the domain name system, on Trio and asyncio, with dnspython.

Only this module imports dnspython.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import anyio
import anyio.to_thread
import dns.asyncbackend
import dns.asyncresolver
import dns.nameserver
import dns.rdatatype

from .._exceptions import SettingsError
from .._loops import current_library
from .._shown import shown, shown_address
from ._types import Lookup, Target

__all__ = ["DnsResolver"]

#: The time that one name server has to answer before the next attempt; seconds.
_PATIENCE: Final = 1.0
#: The time that a look-up of both kinds of address has if one kind was found; seconds. It is enough
#: for a second attempt, because one lost packet must not hide the other kind.
_BOTH_KINDS: Final = 2.0
#: The part of the caller's time that this may use up at most.
_PART: Final = 2 / 3
#: The caller has its own timeout.
_FOREVER: Final = 1e9


class DnsResolver:
    """See :func:`anyio_sendproducer.discovery.dns`."""

    def __init__(self, nameservers: str | Iterable[str] | None, port: int | None) -> None:
        self._servers = None if nameservers is None else _servers(nameservers)
        self._port = Target("any", port).port

    def __repr__(self) -> str:
        shown: list[str] = []
        if self._servers is not None:
            shown.append(f"nameservers={[*map(str, self._servers)]}")
        if self._port is not None:
            shown.append(f"port={self._port}")
        return f"dns({', '.join(shown)})"

    async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
        """Look a service up; see :class:`~anyio_sendproducer.discovery.Resolver`."""
        if self._servers is None:
            # The constructor reads /etc/resolv.conf, which may have changed since the last time.
            resolver = await anyio.to_thread.run_sync(dns.asyncresolver.Resolver)
        else:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(server.host, server.port or 53)
                for server in self._servers
            ]
        resolver.timeout = _PATIENCE
        # dnspython's default backend is that of the first event loop in the process.
        backend = dns.asyncbackend.get_backend(current_library())
        ask = functools.partial(
            resolver.resolve,
            str(lookup),
            raise_on_no_answer=False,
            lifetime=_FOREVER,
            search=True,
            backend=backend,
        )
        if lookup.port_name is not None:
            return _services(await ask(rdtype=dns.rdatatype.SRV))
        return await self._addresses(ask)

    async def _addresses(self, ask: Any) -> Sequence[Target]:
        found: dict[Any, list[Target]] = {}
        failures: list[Exception] = []
        both = _in_time(_BOTH_KINDS)

        async def look_up(kind: Any) -> None:
            try:
                answer = await ask(rdtype=kind)
            except Exception as error:  # noqa: BLE001  # the other kind of record may exist
                failures.append(error)
            else:
                found[kind] = [Target(one.address, self._port) for one in answer]
                if found[kind]:
                    # Some name servers never answer a request for AAAA records.
                    tasks.cancel_scope.deadline = max(both, _in_time(_PATIENCE / 2))

        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        async with anyio.create_task_group() as tasks:
            for kind in kinds:
                tasks.start_soon(look_up, kind)
        targets = [target for kind in kinds for target in found.get(kind, ())]
        if failures and not targets:
            raise failures[0]
        return targets


def _in_time(seconds: float) -> float:
    """When these seconds will be over, or that part of the caller's time."""
    now = anyio.current_time()
    return now + min(seconds, (anyio.current_effective_deadline() - now) * _PART)


def _services(answer: Any) -> list[Target]:
    """The targets of SRV records: the lowest priority first, and within a priority the greatest
    weight first. (RFC 2782 lets chance decide within a priority, by weight.) A record with the root
    as its target means that the service does not exist."""
    ordered = sorted(answer, key=lambda one: (one.priority, -one.weight, one.target, one.port))
    return [
        Target(one.target.to_text(omit_final_dot=True), one.port)
        for one in ordered
        if len(one.target) > 1 and one.port
    ]


def _servers(given: object) -> tuple[Target, ...]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Iterable):
        raise SettingsError(
            "dns: nameservers must be an address or an iterable of addresses, not "
            f"{type(given).__name__}"
        )
    servers: list[Target] = []
    for one in cast("Iterable[object]", given):
        server = _server(one) if isinstance(one, str) else None
        if server is None:
            text = shown_address(one) if isinstance(one, str) else shown(one)
            raise SettingsError(
                "dns: a name server must be an address, such as '10.0.0.2', '10.0.0.2:5353' or "
                f"'[::1]:53', not {text}"
            )
        servers.append(server)
    if not servers:
        raise SettingsError("dns: nameservers is empty; use None for the system's name servers")
    return tuple(servers)


def _server(text: str) -> Target | None:
    # An IPv6 address without a port needs no brackets.
    with contextlib.suppress(ValueError):
        return Target(str(ipaddress.ip_address(text)))
    with contextlib.suppress(ValueError):
        server = Target.parse(text)
        ipaddress.ip_address(server.host)
        return server
    return None
