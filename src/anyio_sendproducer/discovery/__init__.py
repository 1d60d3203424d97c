"""Where the brokers are, by asking whoever knows: resolvers for ``discovery_method``.

May import: ``_exceptions``; dnspython, in ``_dns`` alone, when it is asked for.
"""

from ._types import Lookup, Resolver, ResolverLike, Target, as_resolver

__all__ = ["Lookup", "Resolver", "ResolverLike", "Target", "as_resolver"]
