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
    """Make a resolver that queries the domain name system. It needs the extra ``dns``.

    A service name that begins with a port and its protocol, such as ``"_kafka._tcp.example.org"``,
    is looked up as SRV records (RFC 2782), which contain ports. The headless services of Kubernetes
    and the DNS of Consul have SRV records. Any other name is looked up as A and AAAA records. They
    contain no port, so ``port`` sets it. A truncated answer is requested again over TCP. The
    resolver caches nothing.

    Args:
        nameservers: addresses of name servers, such as ``"10.0.0.2"`` or ``"127.0.0.1:8600"``. If a
            server does not answer within a second, the resolver tries the next one. None: the name
            servers and the search list of the system.
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
