"""The settings of a producer: one frozen value, checked when it is made.

What only a client library can judge (the names and values of ``properties``) is judged by its
driver, before it connects.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, cast, runtime_checkable

from ._exceptions import SettingsError
from ._settings_sources import from_environment, from_mapping, from_toml, unknown
from ._shown import listed, shown, shown_address, shown_name
from ._validation import check_count, plain
from .discovery import Lookup, Resolver, ResolverLike
from .discovery._types import address_in

__all__ = ["AnySerializer", "ProducerSettings", "Serializer"]


@runtime_checkable
class Serializer(Protocol):
    """The shape of kafka-python's ``Serializer``: it is told the topic and the headers.

    The list of headers is the serializer's own copy of the record's: it may add to it, and what
    it adds is sent.
    """

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes | None:
        """Turn a key or a value into bytes."""
        ...


AnySerializer = Serializer | Callable[[Any], bytes | None]
"""A :class:`Serializer`, or a plain callable that turns one object into bytes."""

#: The values of these properties are shown in ``repr``; every other value is hidden. Alpakka
#: Kafka's ``ProducerSettings.toString`` does the same with a list of its own.
_SHOWN_PROPERTIES: Final = frozenset(
    {
        "acks",
        "allow_auto_create_topics",
        "api_version",
        "batch_size",
        "client_dns_lookup",
        "compression_type",
        "connections_max_idle_ms",
        "enable_idempotence",
        "enable_ssl_certificate_verification",
        "linger_ms",
        "max_in_flight_requests_per_connection",
        "max_request_size",
        "metadata_max_age_ms",
        "metrics_enabled",
        "receive_message_max_bytes",
        "reconnect_backoff_max_ms",
        "reconnect_backoff_ms",
        "request_timeout_ms",
        "retries",
        "retry_backoff_ms",
        "sasl_mechanism",
        "sasl_mechanisms",
        "security_protocol",
        "ssl_check_hostname",
        "ssl_cipher_suites",
        "ssl_ciphers",
        "ssl_enabled_protocols",
        "ssl_endpoint_identification_algorithm",
        "ssl_keystore_type",
        "ssl_protocol",
        "ssl_truststore_type",
    }
)


#: Fields that hold code, of which ``repr`` shows the name.
_CODE: Final = frozenset(
    {
        "key_serializer",
        "value_serializer",
        "discovery_method",
        "enrich",
        "producer",
        "producer_factory",
    }
)

#: Thirty years: longer than any process runs, short enough for every clock.
_LONGEST: Final = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProducerSettings:
    """How a producer finds its cluster and how it behaves; frozen, every field a keyword.

    The names and the defaults of what Alpakka Kafka has too are Alpakka's
    (``akka.kafka.producer``). All durations are in seconds.

    Args:
        bootstrap_servers: where to find the cluster: ``"host:port"``, several joined by commas or
            in a list. Required, unless there is a ``service_name``, or ``enrich`` gives it.
        client_id: the name that this client tells the brokers, for their logs and quotas.
        key_serializer: turns each key into bytes: an object with kafka-python's
            ``serialize(topic, headers, data)``, or any callable of one argument. It runs on the
            producer's own thread, never on the event loop's, and is not called for None. Whoever
            made it closes it. None: keys are bytes already.
        value_serializer: the same for values. One that gives None makes a tombstone.
        properties: further settings of the client, by Kafka's names (``"compression.type"``),
            kafka-python's (``"compression_type"``) or, with the driver ``"confluent"``,
            librdkafka's. The names and values are checked when the producer starts.
        max_in_flight: how many records may be accepted and not yet acknowledged.
        max_buffered_bytes: how many bytes of keys, values and headers these may have in all.
        delivery_timeout: how long a record may take from the call of ``send`` to its outcome, the
            wait for room included.
        unknown_topic_timeout: how long the cluster may go on answering that it does not know a
            topic until records for it are rejected. It gives a topic that is created on first
            use the time to appear.
        start_timeout: how long it may take until the cluster has answered.
        close_timeout: how long a clean exit may take in all, to deliver what was accepted.
        cancel_timeout: the same where the body was cancelled or failed.
        transactional_id: makes the producer transactional: everything is sent within ``async with
            producer.transaction()``. The brokers let one producer at a time have this name: a later
            one ends the transaction of an earlier one, and fences it off.
        eos_commit_interval: how long a transaction of :meth:`SendProducer.flow` gathers records
            before it is committed.
        service_name: looked up in place of ``bootstrap_servers``: the name of a service, such as
            ``"kafka.internal"``, or of one of its ports, such as ``"_kafka._tcp.example.org"``.
            It is looked up when the producer starts, again for each client that takes the place
            of one that broke, and again while no broker can be reached.
        discovery_method: whom to ask: ``"dns"``, a resolver of
            :mod:`anyio_sendproducer.discovery`, or any asynchronous callable that takes a
            ``Lookup`` and returns ``Target`` objects.
        resolve_timeout: how long one look-up may take.
        enrich: an asynchronous callable that is given these settings and returns those that the
            client is made with, with secrets from a vault, say. It is called before the look-up
            and within ``start_timeout``, which it shares with what follows. It is called again for
            each client that takes the place of one that broke; of what it returns then,
            ``bootstrap_servers``, ``service_name``, ``client_id`` and ``properties`` count.
        producer: a client that is there already, of kafka-python's ``KafkaProducer``, in place of
            one that is made; see :meth:`with_producer`.
        producer_factory: makes the client: it is called with kafka-python's whole configuration, a
            dict, and returns ``KafkaProducer(**configs)`` or an instance of a subclass. It is
            called on the producer's own thread, for each client that takes the place of one that
            broke, too. Whatever it raises ends the start as a :exc:`ProducerStartError`.
        close_producer_on_exit: whether the client is closed at the end. It may be False only
            where there is a ``producer``, whose records are waited for all the same.

    Raises:
        SettingsError: a value is wrong; the message names the field.
    """

    bootstrap_servers: str | Iterable[str] = ""
    client_id: str = "anyio-sendproducer"
    key_serializer: AnySerializer | None = None
    value_serializer: AnySerializer | None = None
    properties: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any], hash=False)
    max_in_flight: int = 10_000
    max_buffered_bytes: int = 32 * 1024 * 1024
    delivery_timeout: float = 120.0
    unknown_topic_timeout: float = 5.0
    start_timeout: float = 30.0
    close_timeout: float = 60.0
    cancel_timeout: float = 5.0
    transactional_id: str | None = None
    eos_commit_interval: float = 0.1
    service_name: str = ""
    discovery_method: ResolverLike | Literal["dns"] = "dns"
    resolve_timeout: float = 3.0
    enrich: Callable[[ProducerSettings], Awaitable[ProducerSettings]] | None = None
    producer: Any = None
    producer_factory: Callable[[dict[str, Any]], Any] | None = None
    close_producer_on_exit: bool = True

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "bootstrap_servers", _servers(self.bootstrap_servers))
        self._check_client()
        self._check_finding()
        if not isinstance(cast("object", self.client_id), str) or not self.client_id:
            raise SettingsError(
                f"client_id must be a str that is not empty, not {shown(self.client_id)}"
            )
        for field in ("key_serializer", "value_serializer"):
            serializer = getattr(self, field)
            if serializer is not None:
                _check_serializer(field, serializer)
        set_field(self, "properties", _properties(self.properties))
        for field in ("max_in_flight", "max_buffered_bytes"):
            check_count(field, getattr(self, field))
        name = cast("object", self.transactional_id)
        if name is not None and (not isinstance(name, str) or not name):
            raise SettingsError(
                f"transactional_id must be a str that is not empty, or None, not {shown(name)}"
            )
        for field in ("client_id", "service_name", "transactional_id"):
            set_field(self, field, plain(getattr(self, field)))
        for field in (
            "delivery_timeout",
            "start_timeout",
            "eos_commit_interval",
            "resolve_timeout",
        ):
            _check_duration(field, getattr(self, field), zero=False)
        for field in ("unknown_topic_timeout", "close_timeout", "cancel_timeout"):
            _check_duration(field, getattr(self, field), zero=True)

    def _check_client(self) -> None:
        if not isinstance(cast("object", self.close_producer_on_exit), bool):
            raise SettingsError(
                f"close_producer_on_exit must be True or False, not "
                f"{shown(self.close_producer_on_exit)}"
            )
        factory = cast("object", self.producer_factory)
        if factory is not None and not callable(factory):
            raise SettingsError(f"producer_factory must be callable, not {type(factory).__name__}")
        if self.producer is None:
            if not self.close_producer_on_exit:
                raise SettingsError(
                    "close_producer_on_exit=False needs a producer: nobody else could close the "
                    "client"
                )
            return
        if not all(
            callable(getattr(self.producer, name, None))
            for name in ("close", "flush", "partitions_for", "send")
        ):
            raise SettingsError(
                f"producer must be a KafkaProducer, not {type(self.producer).__name__}"
            )
        for field in (
            "bootstrap_servers",
            "service_name",
            "properties",
            "enrich",
            "producer_factory",
            "transactional_id",
        ):
            if getattr(self, field):
                raise SettingsError(
                    f"{field} and producer: give one, for the producer is made already"
                )

    def _check_finding(self) -> None:
        service = cast("object", self.service_name)
        if not isinstance(service, str):
            raise SettingsError(f"service_name must be a str, not {shown(service)}")
        if service:
            Lookup.parse(service)
            if self.bootstrap_servers:
                raise SettingsError(
                    f"bootstrap_servers {listed(self.addresses)!r} and service_name "
                    f"{service!r:.80}: give one, for what is looked up takes the place of the other"
                )
        method = cast("object", self.discovery_method)
        if method != "dns" and not isinstance(method, Resolver) and not callable(method):
            raise SettingsError(
                "discovery_method must be 'dns', a resolver of anyio_sendproducer.discovery or an "
                f"async callable, not {shown(method)}"
            )
        if self.enrich is not None and not callable(cast("object", self.enrich)):
            raise SettingsError(
                f"enrich must be an async callable, not {type(self.enrich).__name__}"
            )
        if not (self.bootstrap_servers or service or self.enrich or self.producer is not None):
            raise SettingsError(
                "bootstrap_servers is missing: name at least one broker, such as "
                "'localhost:9092', or a service_name"
            )

    def __repr__(self) -> str:
        parts: list[str] = []
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if field.name == "properties":
                if value:
                    parts.append(f"properties={_redacted(value)}")
            elif value == field.default:
                pass
            elif field.name in _CODE:
                # Its own repr may show what it was made with, a registry's password say.
                name = getattr(value, "__qualname__", type(value).__qualname__)
                parts.append(f"{field.name}={name}")
            else:
                parts.append(f"{field.name}={value!r}")
        return f"ProducerSettings({', '.join(parts)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can't be pickled.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return (_remake, ({**fields, "properties": dict(self.properties)},))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ProducerSettings:
        """Settings out of a mapping, such as a part of a service's own configuration.

        Args:
            mapping: by the names of the fields, or with dashes in place of underscores
                (``"close-timeout"``). Numbers may be texts. ``properties`` may hold mappings in
                turn, whose names are joined by dots: ``{"ssl": {"ca": {"location": ...}}}``.

        Raises:
            SettingsError: a name is unknown, which is told with the nearest known one, or a value
                is wrong.
        """
        return cls(**from_mapping(mapping, _defaults()))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], table: str = "") -> ProducerSettings:
        """Settings out of a TOML file. On Python 3.10 this needs the extra ``toml``.

        Args:
            path: the file, in UTF-8.
            table: the name of the table, such as ``"orders.kafka"``; empty: the whole file. Names
                and values are as for :meth:`from_mapping`.

        Raises:
            SettingsError: the file can't be read, has no such table, or what is in it is wrong. The
                message names the file, and no value of a property.
        """
        return cls._named(from_toml(path, table, _defaults()), lambda _: os.fspath(path))

    @classmethod
    def from_env(
        cls, prefix: str, environment: Mapping[str, str] | None = None
    ) -> ProducerSettings:
        """Settings out of environment variables. They are read when this is called, and never else.

        Args:
            prefix: what their names begin with: with ``"ORDERS"``, ``ORDERS_CLOSE_TIMEOUT`` is
                ``close_timeout``, and ``ORDERS_PROPERTIES_COMPRESSION_TYPE`` the property
                ``compression.type``.
            environment: the variables; None: those of the process.

        Raises:
            SettingsError: a variable with this prefix is not a setting, or a value is wrong. The
                message names the variable, and no value of a property.
        """
        arguments = from_environment(
            prefix, os.environ if environment is None else environment, _defaults()
        )
        start = prefix.rstrip("_")
        return cls._named(arguments, lambda field: f"{start}_{field.upper()}")

    @classmethod
    def _named(cls, arguments: dict[str, Any], name_of: Callable[[str], str]) -> ProducerSettings:
        """Settings of these arguments; what is wrong with one is told with where it stands."""
        try:
            return cls(**arguments)
        except SettingsError as error:
            # A message begins with the field that it is about.
            about = [field for field in _defaults() if str(error).startswith(field)]
            place = name_of(max(about, key=len, default="..."))
            raise SettingsError(f"{place}: {error}") from error

    @property
    def addresses(self) -> tuple[str, ...]:
        """``bootstrap_servers`` one by one, each as ``"host:port"``; none, where they are to be
        found."""
        return tuple(filter(None, cast("str", self.bootstrap_servers).split(",")))

    def evolve(self, **changes: Any) -> ProducerSettings:
        """A copy with some fields changed.

        Args:
            changes: fields by their names.

        Raises:
            SettingsError: there is no such field, or a value is wrong.
        """
        names = _defaults()
        for name in changes:
            if name not in names:
                raise unknown(name, name, names)
        return dataclasses.replace(self, **changes)

    def with_bootstrap_servers(self, bootstrap_servers: str | Iterable[str]) -> ProducerSettings:
        """A copy with other ``bootstrap_servers``, in place of its ``service_name``."""
        return self.evolve(bootstrap_servers=bootstrap_servers, service_name="")

    def with_client_id(self, client_id: str) -> ProducerSettings:
        """A copy with another ``client_id``."""
        return self.evolve(client_id=client_id)

    def with_key_serializer(self, serializer: AnySerializer | None) -> ProducerSettings:
        """A copy with another ``key_serializer``."""
        return self.evolve(key_serializer=serializer)

    def with_value_serializer(self, serializer: AnySerializer | None) -> ProducerSettings:
        """A copy with another ``value_serializer``."""
        return self.evolve(value_serializer=serializer)

    def with_property(self, name: str, value: Any) -> ProducerSettings:
        """A copy with one property of the client set, in whichever spelling it had before."""
        return self.with_properties({name: value})

    def with_properties(self, properties: Mapping[str, Any]) -> ProducerSettings:
        """A copy with these properties of the client added or replaced."""
        changed = {canonical_name(name) for name in _properties(properties)}
        kept = {
            name: value
            for name, value in self.properties.items()
            if canonical_name(name) not in changed
        }
        return self.evolve(properties={**kept, **properties})

    def with_max_in_flight(self, records: int) -> ProducerSettings:
        """A copy with another ``max_in_flight``."""
        return self.evolve(max_in_flight=records)

    def with_max_buffered_bytes(self, size: int) -> ProducerSettings:
        """A copy with another ``max_buffered_bytes``."""
        return self.evolve(max_buffered_bytes=size)

    def with_delivery_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``delivery_timeout``."""
        return self.evolve(delivery_timeout=seconds)

    def with_unknown_topic_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``unknown_topic_timeout``."""
        return self.evolve(unknown_topic_timeout=seconds)

    def with_start_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``start_timeout``."""
        return self.evolve(start_timeout=seconds)

    def with_close_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``close_timeout``."""
        return self.evolve(close_timeout=seconds)

    def with_cancel_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``cancel_timeout``."""
        return self.evolve(cancel_timeout=seconds)

    def with_transactional_id(self, transactional_id: str | None) -> ProducerSettings:
        """A copy with another ``transactional_id``."""
        return self.evolve(transactional_id=transactional_id)

    def with_eos_commit_interval(self, seconds: float) -> ProducerSettings:
        """A copy with another ``eos_commit_interval``."""
        return self.evolve(eos_commit_interval=seconds)

    def with_service_name(self, service_name: str) -> ProducerSettings:
        """A copy that looks this service up, in place of its ``bootstrap_servers``."""
        return self.evolve(service_name=service_name, bootstrap_servers="")

    def with_discovery_method(
        self, discovery_method: ResolverLike | Literal["dns"]
    ) -> ProducerSettings:
        """A copy with another ``discovery_method``."""
        return self.evolve(discovery_method=discovery_method)

    def with_resolve_timeout(self, seconds: float) -> ProducerSettings:
        """A copy with another ``resolve_timeout``."""
        return self.evolve(resolve_timeout=seconds)

    def with_enrich(
        self, enrich: Callable[[ProducerSettings], Awaitable[ProducerSettings]] | None
    ) -> ProducerSettings:
        """A copy with another ``enrich``."""
        return self.evolve(enrich=enrich)

    def with_producer(self, producer: Any) -> ProducerSettings:
        """A copy that sends with a client that is there already, and does not close it.

        Args:
            producer: a ``KafkaProducer`` of kafka-python. Others may use it, too. Its own settings
                hold, so ``bootstrap_servers`` and ``service_name`` are dropped here.

        Set ``close_producer_on_exit`` afterwards to have it closed all the same. Where the client
        breaks, so does the producer: nobody could make another one.
        """
        return self.evolve(
            producer=producer,
            close_producer_on_exit=False,
            bootstrap_servers="",
            service_name="",
        )

    def with_producer_factory(
        self, producer_factory: Callable[[dict[str, Any]], Any] | None
    ) -> ProducerSettings:
        """A copy with another ``producer_factory``."""
        return self.evolve(producer_factory=producer_factory)

    def with_close_producer_on_exit(self, close: bool) -> ProducerSettings:  # noqa: FBT001
        """A copy with another ``close_producer_on_exit``."""
        return self.evolve(close_producer_on_exit=close)


def _defaults() -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(ProducerSettings)}


def canonical_name(name: str) -> str:
    """A property's name in the one spelling that is compared: ``linger.ms`` is ``linger_ms``."""
    return name.replace(".", "_")


def _remake(fields: dict[str, Any]) -> ProducerSettings:
    return ProducerSettings(**fields)


def _servers(given: object) -> str:
    if isinstance(given, str):
        parts: list[object] = [*given.split(",")]
    elif isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        parts = [*cast("Iterable[object]", given)]
    else:
        raise SettingsError(
            f"bootstrap_servers must be a str or a list of str, not {type(given).__name__}"
        )
    # A password may have a comma in it. So one '@' hides all parts.
    secret = any("@" in part for part in parts if isinstance(part, str))
    servers: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise SettingsError(
                "bootstrap_servers must be a str or a list of str, not a list with "
                f"{type(part).__name__} in it"
            )
        server = part.strip()
        if not server:
            continue
        found = address_in(server)
        text = shown_address("@" if secret else server)
        if found is None or found["port"] is None:
            raise SettingsError(
                f"bootstrap_servers: {text} is not host:port, such as localhost:9092"
            )
        if not 1 <= int(found["port"]) <= 65535:
            raise SettingsError(f"bootstrap_servers: the port of {text} is not from 1 to 65535")
        servers.append(server)
    return ",".join(servers)


def _properties(given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise SettingsError(f"properties must be a mapping, not {type(given).__name__}")
    properties = dict(cast("Mapping[object, object]", given))
    seen: dict[str, str] = {}
    for name in properties:
        if not isinstance(name, str):
            raise SettingsError(f"properties: a name must be a str, not {shown(name)}")
        twin = seen.setdefault(canonical_name(name), name)
        if twin != name:
            raise SettingsError(
                f"properties: {shown_name(twin)} and {shown_name(name)} are one setting; give one"
            )
    named = cast("dict[str, Any]", properties)
    return MappingProxyType({plain(name): plain(value) for name, value in named.items()})


def _check_duration(field: str, value: object, *, zero: bool) -> None:
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 <= value <= _LONGEST
        or (value == 0 and not zero)
    ):
        least = "of 0 or more" if zero else "above 0"
        raise SettingsError(
            f"{field} must be a number of seconds {least}, and no more than {_LONGEST:g}, not "
            f"{shown(value)}"
        )


def _check_serializer(field: str, serializer: object) -> None:
    """Raise where this is none.

    Raises:
        SettingsError: it can't be called with a key or a value, or is asynchronous; the message
            names the field.
    """
    if isinstance(serializer, type) and _makes_serializers(serializer):
        raise SettingsError(
            f"{field} must be an instance, {serializer.__name__}(), and not the class itself"
        )
    call: object = serializer.serialize if isinstance(serializer, Serializer) else serializer
    if not callable(call):
        raise SettingsError(
            f"{field} must be a callable or have a serialize(topic, headers, data) method, not "
            f"{type(serializer).__name__}"
        )
    if inspect.iscoroutinefunction(call):
        raise SettingsError(
            f"{field} must not be async: it is called on a thread, where it may block"
        )


def _makes_serializers(cls: type) -> bool:
    """Whether instances are meant: those of others, such as ``bytes``, are made by the call."""
    return hasattr(cls, "serialize") or any("__call__" in vars(one) for one in cls.__mro__)


def _redacted(properties: Mapping[str, Any]) -> str:
    parts = (
        f"{name!r}: {value!r}"
        if canonical_name(name) in _SHOWN_PROPERTIES
        else f"{shown_name(name)}: ***"
        for name, value in properties.items()
    )
    return "{" + ", ".join(parts) + "}"
