"""Where the brokers are, by asking whoever knows: resolvers for ``discovery_method``.

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
    """A resolver that asks the domain name system. It needs the extra ``dns``.

    A name that begins with a port and its protocol, such as ``"_kafka._tcp.example.org"``, is
    looked up as SRV records (RFC 2782), which hold ports: the headless services of Kubernetes and
    the DNS of Consul have these. Any other name is looked up as A and AAAA records, which hold
    none: ``port`` says which. Answers that are cut off are asked for again by TCP. Nothing is
    cached here.

    Args:
        nameservers: addresses of name servers, such as ``"10.0.0.2"`` or ``"127.0.0.1:8600"``. One
            that does not answer within a second is left for the next. None: those of the system,
            and its search list.
        port: the port of what A and AAAA records name.

    Raises:
        SettingsError: an argument is wrong, or dnspython is not installed.
    """
    try:
        from ._dns import DnsResolver
    except ImportError as error:
        raise SettingsError(
            "discovery by DNS needs dnspython: pip install 'anyio-sendproducer[dns]'"
        ) from error
    return DnsResolver(nameservers, port)
