"""The domain name system, by way of dnspython, on Trio and asyncio.

dnspython is imported here and nowhere else.
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

#: How long one name server may take until the next is asked, or the same one again; seconds.
_PATIENCE: Final = 1.0
#: Whoever calls says when it is over.
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
        """Ask; see :class:`~anyio_sendproducer.discovery.Resolver`."""
        if self._servers is None:
            # It reads a file, which may have changed since the last time.
            resolver = await anyio.to_thread.run_sync(dns.asyncresolver.Resolver)
        else:
            resolver = dns.asyncresolver.Resolver(configure=False)
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(server.host, server.port or 53)
                for server in self._servers
            ]
        resolver.timeout = _PATIENCE
        # Not the default one: that is the process's first loop's.
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

        async def look_up(kind: Any) -> None:
            try:
                answer = await ask(rdtype=kind)
            except Exception as error:  # noqa: BLE001  # the other kind may be there
                failures.append(error)
            else:
                found[kind] = [Target(one.address, self._port) for one in answer]

        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        async with anyio.create_task_group() as tasks:
            for kind in kinds:
                tasks.start_soon(look_up, kind)
        targets = [target for kind in kinds for target in found.get(kind, ())]
        if failures and not targets:
            raise failures[0]
        return targets


def _services(answer: Any) -> list[Target]:
    """The targets of SRV records, the best first: by RFC 2782 those of the lowest priority, and
    among them those of the greatest weight. A record whose target is the root says that there is
    no such service."""
    ordered = sorted(answer, key=lambda one: (one.priority, -one.weight, one.target, one.port))
    return [
        Target(one.target.to_text(omit_final_dot=True), one.port)
        for one in ordered
        if len(one.target) > 1 and one.port
    ]


def _servers(given: object) -> tuple[Target, ...]:
    if isinstance(given, str):
        given = [given]
    servers: list[Target] = []
    for one in cast("Iterable[object]", given):
        server = _server(one) if isinstance(one, str) else None
        if server is None:
            text = shown_address(one) if isinstance(one, str) else shown(one)
            raise SettingsError(
                "dns: a name server is an address, such as '10.0.0.2', '10.0.0.2:5353' or "
                f"'[::1]:53', not {text}"
            )
        servers.append(server)
    if not servers:
        raise SettingsError("dns: nameservers is empty; None stands for those of the system")
    return tuple(servers)


def _server(text: str) -> Target | None:
    # An IPv6 address without a port may stand without brackets.
    with contextlib.suppress(ValueError):
        return Target(str(ipaddress.ip_address(text)))
    with contextlib.suppress(ValueError):
        server = Target.parse(text)
        ipaddress.ip_address(server.host)
        return server
    return None
