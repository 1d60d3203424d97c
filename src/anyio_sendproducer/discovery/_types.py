"""The values of service discovery: look-ups, targets, and the protocol of a resolver."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, cast, runtime_checkable

from .._exceptions import SettingsError
from .._shown import shown, shown_address

__all__ = ["Lookup", "Resolver", "ResolverLike", "Target", "address_in", "as_resolver"]

#: ``_port._protocol.name``, the form of RFC 2782, which Akka Discovery parses, too.
_SERVICE: Final = re.compile(r"_(?P<port>[^.]+)\._(?P<protocol>[^.]+)\.(?P<name>.+)")
#: A host, or an IPv6 address in brackets, with or without a port.
_ADDRESS: Final = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:.%a-z]+)\]|(?P<host>[^\s:/@,\[\]]+))(?::(?P<port>[0-9]{1,5}))?"
)


def address_in(text: str) -> re.Match[str] | None:
    """The parts of an address: ``six`` or ``host``, and ``port``; None if it is not an address.

    Control characters are not allowed: librdkafka ends a text at a NUL, so it would connect
    elsewhere.
    """
    return _ADDRESS.fullmatch(text) if text.isprintable() else None


def _has_port(name: str) -> bool:
    found = address_in(name)
    return found is not None and found["port"] is not None


def _check_name(field: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{field} must be a str that is not empty, not {shown(name)}")
    if "@" in name or "://" in name:
        raise SettingsError(
            f"{field} must be a name, not an address with '@' or '://' in it (not shown, because "
            "it may hold a password)"
        )
    if not name.isprintable() or " " in name:
        raise SettingsError(f"{field} must have no blanks and no control characters: {name!r:.80}")


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """A service to look up: the argument of :meth:`Resolver.resolve`. The fields correspond to the
    fields of ``Lookup`` in Akka Discovery.

    Args:
        service_name: the name of the service, such as ``"kafka.internal"``.
        port_name: the name of one of the service's ports, as in the first part of an SRV record's
            name, without the underscore; None to look up the service without a port's name.
        protocol: the protocol of this port, such as ``"tcp"``.

    Raises:
        SettingsError: the service has no name, ``service_name`` contains the number of a port, only
            one of ``port_name`` and ``protocol`` is set, or a name contains a blank, a control
            character, ``@`` or ``://``.
    """

    service_name: str
    port_name: str | None = None
    protocol: str | None = None

    def __post_init__(self) -> None:
        _check_name("service_name", self.service_name)
        if _has_port(self.service_name):
            raise SettingsError(
                f"service_name {self.service_name!r:.80} has a port, which a look-up finds: "
                "remove it, or use bootstrap_servers"
            )
        if (self.port_name is None) != (self.protocol is None):
            raise SettingsError(
                f"port_name and protocol must be set together, not {shown(self.port_name)} and "
                f"{shown(self.protocol)}"
            )
        for field in ("port_name", "protocol"):
            if getattr(self, field) is not None:
                _check_name(field, getattr(self, field))

    @classmethod
    def parse(cls, text: str) -> Lookup:
        """Parse a name. A text such as ``"_kafka._tcp.example.org"`` begins with the name of a port
        and a protocol; any other text is the name of a service.

        Raises:
            SettingsError: as for :class:`Lookup`.
        """
        found = _SERVICE.fullmatch(text) if isinstance(cast("object", text), str) else None
        if found is None:
            return cls(text)
        return cls(found["name"], found["port"], found["protocol"])

    def __str__(self) -> str:
        if self.port_name is None:
            return self.service_name
        return f"_{self.port_name}._{self.protocol}.{self.service_name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One address of a service.

    Args:
        host: a host name or an IP address. An IPv6 address has no brackets.
        port: the port; None if the resolver does not know it.

    Raises:
        SettingsError: the host is not a host name or an IP address, or the port is not from 1 to
            65535.
    """

    host: str
    port: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.host), str) or not self.host:
            raise SettingsError(f"host must be a str that is not empty, not {shown(self.host)}")
        if _has_port(self.host):
            raise SettingsError(f"host {self.host!r:.80} has a port: use Target.parse() for both")
        port = cast("object", self.port)
        if port is not None and (
            not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535
        ):
            raise SettingsError(f"port must be an int from 1 to 65535, or None, not {shown(port)}")
        if address_in(str(self)) is None:
            raise SettingsError(f"host: {shown_address(self.host)} is not a host's name or address")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse ``"host"``, ``"host:port"``, ``"[::1]"`` or ``"[::1]:port"``.

        Raises:
            SettingsError: the text has another form, or the port is not from 1 to 65535.
        """
        found = address_in(text) if isinstance(cast("object", text), str) else None
        if found is None:
            given = shown_address(text) if isinstance(cast("object", text), str) else shown(text)
            raise SettingsError(f"{given} is neither host nor host:port, such as localhost:9092")
        port = found["port"]
        return cls(found["six"] or found["host"], None if port is None else int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@runtime_checkable
class Resolver(Protocol):
    """An object that finds the addresses of services.

    Errors and logs show the ``repr()`` of a resolver and the messages of its exceptions. Neither of
    them may contain tokens or passwords.
    """

    async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
        """Find a service.

        Returns:
            The targets of the service, the best target first; empty if the service does not exist.
            The producer uses the first 100 targets.

        The call has a timeout, so a cancellation may interrupt the call. This method may raise any
        exception, which becomes the cause of a :class:`~anyio_sendproducer.DiscoveryError`. In
        :func:`aggregate`, an exception only causes the next resolver to be tried.
        """
        ...


ResolverLike = Resolver | Callable[[Lookup], Awaitable[Sequence[Target]]]
"""A :class:`Resolver`, or an async callable with the signature of its ``resolve``."""


class _Calling:
    def __init__(self, function: Callable[[Lookup], Awaitable[Sequence[Target]]]) -> None:
        self.resolve: Any = function
        self._name = getattr(function, "__qualname__", type(function).__qualname__)

    def __repr__(self) -> str:
        return f"{self._name}()"


def as_resolver(given: ResolverLike) -> Resolver:
    """Make a resolver from an async callable. A resolver is returned unchanged.

    Raises:
        SettingsError: the object has no ``resolve``, and is not callable.
    """
    if isinstance(given, Resolver):
        return given
    if callable(given):
        return cast("Resolver", _Calling(given))
    raise SettingsError(
        f"a resolver must be a Resolver or an async callable, not {type(given).__name__}"
    )
