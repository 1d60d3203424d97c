"""Service discovery: resolvers for ``discovery_method``, which find the brokers' addresses.

::

    from anyio_sendproducer import ProducerSettings, discovery

    settings = ProducerSettings(
        service_name="_kafka._tcp.example.org", discovery_method=discovery.dns()
    )
"""

from __future__ import annotations

from collections.abc import Iterable

from .._exceptions import SettingsError
from ._resolvers import aggregate, static
from ._types import Lookup, Resolver, ResolverLike, Target, as_resolver

__all__ = [
    "Lookup",
    "Resolver",
    "ResolverLike",
    "Target",
    "aggregate",
    "as_resolver",
    "dns",
    "static",
]


def dns(nameservers: str | Iterable[str] | None = None, *, port: int | None = None) -> Resolver:
    """Make a resolver that queries the domain name system. This function needs the extra ``dns``.

    If a service name begins with the name of a port and a protocol, such as
    ``"_kafka._tcp.example.org"``, the resolver looks up SRV records (RFC 2782), which contain
    ports. The headless services of Kubernetes and the DNS of Consul have SRV records. For any other
    name, the resolver looks up A and AAAA records. These records do not contain a port, so ``port``
    sets the port. The resolver requests a truncated answer again over TCP. It has no cache.

    Args:
        nameservers: addresses of name servers, such as ``"10.0.0.2"`` or ``"127.0.0.1:8600"``. If a
            server does not answer within a second, the resolver tries the next server. None stands
            for the name servers and the search list of the system.
        port: the port for addresses from A and AAAA records.

    Raises:
        SettingsError: an argument is wrong, or dnspython is not installed.
    """
    try:
        from ._dns import DnsResolver
    except ImportError as error:
        raise SettingsError(
            'discovery by DNS needs dnspython: pip install ".[dns]" in a checkout of '
            "anyio-sendproducer"
        ) from error
    return DnsResolver(nameservers, port)
