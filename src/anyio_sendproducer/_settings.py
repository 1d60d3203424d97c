"""The settings of a producer: one frozen value, checked when it is constructed.

The names and values in ``properties`` belong to a client library. Its driver checks them before it
connects.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    TypedDict,
    cast,
)

from ._durations import seconds_of
from ._exceptions import SettingsError
from ._hooks import AnySerializer, Partitioner, check_partitioner, check_serializer
from ._kafka_names import canonical_name
from ._settings_sources import (
    OBJECT_FIELDS,
    from_environment,
    from_mapping,
    from_properties,
    from_toml,
    unknown,
)
from ._shown import listed, shown, shown_address, shown_name
from ._validation import check_count, plain
from .discovery import Lookup, Resolver, ResolverLike
from .discovery._types import address_in

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ProducerSettings", "SettingsFields", "check_settings", "settings_for"]


#: Properties whose values ``repr`` shows; it hides all others.
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


#: Fields that are durations, each with whether it may be 0.
_DURATIONS: Final = {
    "delivery_timeout": False,
    "start_timeout": False,
    "eos_commit_interval": False,
    "resolve_timeout": False,
    "unknown_topic_timeout": True,
    "close_timeout": True,
    "cancel_timeout": True,
}


class SettingsFields(TypedDict, total=False):
    """The fields of :class:`ProducerSettings` as keywords, with the types that they accept."""

    bootstrap_servers: str | Iterable[str]
    client_id: str
    key_serializer: AnySerializer | None
    value_serializer: AnySerializer | None
    partitioner: Partitioner | None
    properties: Mapping[str, Any]
    max_in_flight: int
    max_buffered_bytes: int
    delivery_timeout: float | timedelta
    unknown_topic_timeout: float | timedelta
    start_timeout: float | timedelta
    close_timeout: float | timedelta
    cancel_timeout: float | timedelta
    transactional_id: str | None
    eos_commit_interval: float | timedelta
    service_name: str
    discovery_method: ResolverLike | Literal["dns"]
    resolve_timeout: float | timedelta
    enrich: Callable[[ProducerSettings], Awaitable[ProducerSettings]] | None
    producer: Any
    producer_factory: Callable[[dict[str, Any]], Any] | None
    close_producer_on_exit: bool
    wait_for_cluster: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProducerSettings:
    """The settings of one producer. Instances are frozen, and every argument is keyword-only.

    Most settings that also exist in Alpakka Kafka (``akka.kafka.producer``) have the same names and
    defaults. A duration is a number of seconds or a ``datetime.timedelta``, and the field contains
    seconds. A number above 3,600 (one hour) causes a :class:`SettingsWarning`, because it may be
    meant as milliseconds. A ``timedelta`` does not cause this warning.

    Args:
        bootstrap_servers: the addresses of brokers, each as ``"host:port"``: a list, or one str
            with commas between the addresses. This field is required, unless ``service_name`` or
            ``producer`` is set, or ``enrich`` provides the addresses.
        client_id: the name of this client in the brokers' logs and quotas.
        key_serializer: converts each key to bytes: an object with kafka-python's
            ``serialize(topic, headers, data)``, or a callable of one argument. It runs on the
            driver thread, never on the event loop's thread (except with ``fake_producer``), and is
            not called for a key that is None. The producer does not close it. With None, the keys
            must be bytes, bytearray or memoryview.
        value_serializer: converts each value to bytes, like ``key_serializer``. If it returns None,
            the record is a tombstone.
        partitioner: chooses the partition of each record that names no partition. It is a callable
            of three arguments: the topic, the serialized key or None, and the numbers of the
            topic's partitions in ascending order. It returns one of these numbers. It runs on the
            driver thread, never on the event loop's thread (except with ``fake_producer``). If it
            raises an exception, or does not return the number of a partition of the topic, only
            this record fails, with a :exc:`RecordRejected`. The partitioner is called again if a
            record is submitted again. With None, a record with a key gets the same partition as
            with Kafka's Java client, unless the producer's client has another partitioner.
        properties: further settings of the client, by Kafka's names (``"compression.type"``),
            kafka-python's (``"compression_type"``) or, with the driver ``"confluent"``,
            librdkafka's. The driver checks names and values when the producer starts.
        max_in_flight: the largest number of accepted records that have no outcome yet, or that the
            client still has.
        max_buffered_bytes: the largest total size of the keys, values and headers of these records,
            in bytes. With a serializer, the size of a record is an estimate until the record is
            serialized.
        delivery_timeout: the longest time from the call of ``send`` to the record's outcome. It
            includes the wait for room.
        unknown_topic_timeout: how long to wait for an unknown topic to appear. After that, records
            for the topic are rejected. With an existing client (``producer``), this setting has no
            effect.
        start_timeout: the longest time that the start may take. For a client that is opened in the
            background, this is the longest time of one attempt to connect.
        close_timeout: the longest time that a clean exit may take to deliver accepted records. A
            tenth of it, at most 0.5 s, is reserved for closing the client.
        cancel_timeout: the longest time that an exit after an exception or a cancellation may take.
            If the client library hangs, the exit takes about 5 s more. ``cancel_timeout`` also
            bounds the abort of a transaction.
        transactional_id: makes the producer transactional: every record is sent in a transaction,
            within ``async with producer.transaction()`` or by :meth:`SendProducer.flow`. Only one
            producer at a time may have this id. A later producer with this id fences the earlier
            producer, and aborts the earlier producer's open transaction.
        eos_commit_interval: the time after which :meth:`SendProducer.flow` commits a transaction.
            The flow commits sooner if the source ends, or if ``max_in_flight`` envelopes wait for
            the commit or for ``receive``.
        service_name: the name of a service to look up instead of using ``bootstrap_servers``.
            Examples are ``"kafka.internal"``, and the SRV name ``"_kafka._tcp.example.org"``. The
            producer looks up the service when it starts, for each client that replaces a broken
            client, and while no broker can be reached.
        discovery_method: the resolver: ``"dns"``, a resolver of
            :mod:`anyio_sendproducer.discovery`, or an async callable that takes a ``Lookup`` and
            returns ``Target`` objects.
        resolve_timeout: the longest time that one look-up may take.
        enrich: an async callable that takes these settings and returns the settings for the client,
            for example with secrets from a vault. It is called before the look-up, and
            ``start_timeout`` includes its time. It is called again each time the producer replaces
            the client. From the results of these later calls, the producer uses only
            ``bootstrap_servers``, ``service_name``, ``discovery_method``, ``resolve_timeout``,
            ``client_id`` and ``properties``. With ``wait_for_cluster=False``, this restriction also
            applies to the first call.
        producer: an existing ``KafkaProducer`` of kafka-python to send with; see
            :meth:`with_producer`.
        producer_factory: a callable that constructs the client. It gets kafka-python's whole
            configuration as a dict, and returns ``KafkaProducer(**configs)`` or an instance of a
            subclass. It is called on a separate thread, for which the driver thread waits. It is
            called again each time the producer replaces the client. If it raises an exception
            while the start waits for the first client, the start fails. The error is a
            :exc:`SettingsError` for a ``KafkaConfigurationError``, AssertionError, TypeError or
            ValueError, with which kafka-python refuses settings. For any other exception, the error
            is a :exc:`ProducerStartError`.
        wait_for_cluster: whether the start waits until a broker has answered, and raises
            :class:`ProducerStartError` if none does. With False, the block begins at once, and the
            client tries to connect in the background until it succeeds. Until then, records wait
            within their own deadlines.
        close_producer_on_exit: whether to close the client at the end. False is allowed only with
            ``producer``. The producer waits for the outcomes of its records in either case.

    Raises:
        SettingsError: a name or a value is wrong; the message names the field.
    """

    bootstrap_servers: str | Iterable[str] = ""
    client_id: str = "anyio-sendproducer"
    key_serializer: AnySerializer | None = None
    value_serializer: AnySerializer | None = None
    partitioner: Partitioner | None = None
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
    wait_for_cluster: bool = True

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[SettingsFields]) -> None: ...

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
                check_serializer(field, serializer)
        set_field(self, "properties", _properties(self.properties))
        self._check_partitioner()
        for field in ("max_in_flight", "max_buffered_bytes"):
            check_count(field, getattr(self, field))
        name = cast("object", self.transactional_id)
        if name is not None and (not isinstance(name, str) or not name):
            raise SettingsError(
                f"transactional_id must be a str that is not empty, or None, not {shown(name)}"
            )
        for field in ("client_id", "service_name", "transactional_id"):
            set_field(self, field, plain(getattr(self, field)))
        for field, zero in _DURATIONS.items():
            set_field(self, field, seconds_of(field, getattr(self, field), zero=zero))

    def _check_partitioner(self) -> None:
        if self.partitioner is None:
            return
        check_partitioner(self.partitioner)
        for name in self.properties:
            if canonical_name(name) == "partitioner":
                raise SettingsError(
                    f"partitioner and properties[{name!r}] cannot be combined: set only one"
                )

    def _check_client(self) -> None:
        for field in ("close_producer_on_exit", "wait_for_cluster"):
            if not isinstance(getattr(self, field), bool):
                raise SettingsError(
                    f"{field} must be True or False, not {shown(getattr(self, field))}"
                )
        factory = cast("object", self.producer_factory)
        if factory is not None and not callable(factory):
            raise SettingsError(f"producer_factory must be callable, not {type(factory).__name__}")
        if self.producer is None:
            if not self.close_producer_on_exit:
                raise SettingsError(
                    "close_producer_on_exit=False needs a producer: otherwise the client would "
                    "stay open"
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
                    f"{field} and producer cannot be combined: the producer is already configured"
                )

    def _check_finding(self) -> None:
        service = cast("object", self.service_name)
        if not isinstance(service, str):
            raise SettingsError(f"service_name must be a str, not {shown(service)}")
        if service:
            _check_service(service)
            if self.bootstrap_servers:
                raise SettingsError(
                    f"bootstrap_servers {listed(self.addresses)!r} and service_name "
                    f"{service!r:.80} cannot be combined: the look-up of the service replaces "
                    "bootstrap_servers"
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
                "'localhost:9092', or set service_name"
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
            elif field.name in OBJECT_FIELDS:
                # Its own repr may show its arguments, for example a registry's password.
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
        """Read settings from a mapping, for example from a part of a service's configuration.

        Args:
            mapping: settings by the names of the fields, with underscores or dashes
                (``"close-timeout"``), and by Kafka's names (``"linger.ms"``), as in
                :meth:`from_properties`. Numbers may be strings. ``properties`` may hold nested
                mappings, whose names are joined by dots: ``{"ssl": {"ca": {"location": ...}}}``.

        Raises:
            SettingsError: a value is wrong, or a name is unknown. For an unknown name, the message
                suggests the closest known name, if one is similar.
        """
        return cls(**from_mapping(mapping, _defaults()))

    @classmethod
    def from_properties(
        cls, source: str | os.PathLike[str] | Mapping[str, Any]
    ) -> ProducerSettings:
        """Read settings with the names of Kafka's Java client, such as ``bootstrap.servers``.

        ``bootstrap.servers``, ``client.id``, ``transactional.id``, ``delivery.timeout.ms``,
        ``buffer.memory``, the serializers and a ``partitioner`` that is a callable become fields.
        All other settings become ``properties``. Java's serializers of bytes and strings are
        accepted. Any other serializer of Java causes a :exc:`SettingsError`.

        Args:
            source: a mapping, or the path of a ``.properties`` file, which is read as Kafka's Java
                clients read it. Blanks around a value are removed.

        Raises:
            SettingsError: the file can't be read, or a value is wrong. If the source is a file, the
                message names the file.
        """
        arguments = from_properties(source)
        if isinstance(source, Mapping):
            return cls(**arguments)
        return cls._named(arguments, lambda _: os.fspath(source))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], table: str = "") -> ProducerSettings:
        """Read settings from a TOML file. On Python 3.10 this needs the extra ``toml``.

        Args:
            path: the file, in UTF-8.
            table: the name of the table, such as ``"orders.kafka"``; empty for the whole file.
                Names and values are as for :meth:`from_mapping`.

        Raises:
            SettingsError: the file can't be read, has no such table, or a name or value in it is
                wrong. The message names the file, and never shows the value of a property.
        """
        return cls._named(from_toml(path, table, _defaults()), lambda _: os.fspath(path))

    @classmethod
    def from_env(
        cls, prefix: str = "KAFKA", environment: Mapping[str, str] | None = None
    ) -> ProducerSettings:
        """Read settings from environment variables, at the time of this call.

        Args:
            prefix: the beginning of the variables' names. For example, with ``"ORDERS"``,
                ``ORDERS_CLOSE_TIMEOUT`` sets ``close_timeout``, and
                ``ORDERS_PROPERTIES_COMPRESSION_TYPE`` sets the property ``compression.type``.
            environment: the variables; None for the variables of the process.

        Raises:
            SettingsError: the variables name neither brokers nor a service, a variable with this
                prefix is not a setting, or a value is wrong. The message names the variable, and
                never shows the value of a property. The method ignores variables that Kubernetes
                sets for a service. Other programs also use the prefix ``KAFKA``, so with this
                prefix the method ignores all variables that do not resemble a setting.
        """
        arguments = from_environment(
            prefix, os.environ if environment is None else environment, _defaults()
        )
        start = prefix.rstrip("_")
        if not (arguments.get("bootstrap_servers") or arguments.get("service_name")):
            variable = f"{start}_BOOTSTRAP_SERVERS"
            raise SettingsError(
                f"bootstrap_servers is missing: the environment variable {variable} is not set. "
                "Set it, for example to localhost:9092, or pass bootstrap_servers or settings"
            )
        return cls._named(arguments, lambda field: f"{start}_{field.upper()}")

    @classmethod
    def _named(cls, arguments: dict[str, Any], name_of: Callable[[str], str]) -> ProducerSettings:
        """Construct settings; an error also names the place of the field, by ``name_of``."""
        try:
            return cls(**arguments)
        except SettingsError as error:
            # Each SettingsError message begins with the name of its field.
            about = [field for field in _defaults() if str(error).startswith(field)]
            place = name_of(max(about, key=len, default="..."))
            raise SettingsError(f"{place}: {error}") from error

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses in ``bootstrap_servers``, each as ``"host:port"``; empty if this field
        is empty."""
        return tuple(filter(None, cast("str", self.bootstrap_servers).split(",")))

    def evolve(self, **changes: Unpack[SettingsFields]) -> ProducerSettings:
        """A copy with some fields changed.

        Args:
            changes: fields by their names.

        Raises:
            SettingsError: there is no such field, or a value is wrong.
        """
        _check_names(changes)
        return dataclasses.replace(self, **cast("dict[str, Any]", changes))

    def with_bootstrap_servers(self, bootstrap_servers: str | Iterable[str]) -> ProducerSettings:
        """A copy with other ``bootstrap_servers`` and without a ``service_name``."""
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

    def with_partitioner(self, partitioner: Partitioner | None) -> ProducerSettings:
        """A copy with another ``partitioner``."""
        return self.evolve(partitioner=partitioner)

    def with_property(self, name: str, value: Any) -> ProducerSettings:
        """A copy with one client property set.

        The value replaces an earlier value of the property, even under another spelling of its
        name.
        """
        return self.with_properties({name: value})

    def with_properties(self, properties: Mapping[str, Any]) -> ProducerSettings:
        """A copy with these client properties added or replaced."""
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

    def with_delivery_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``delivery_timeout``."""
        return self.evolve(delivery_timeout=seconds)

    def with_unknown_topic_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``unknown_topic_timeout``."""
        return self.evolve(unknown_topic_timeout=seconds)

    def with_start_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``start_timeout``."""
        return self.evolve(start_timeout=seconds)

    def with_close_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``close_timeout``."""
        return self.evolve(close_timeout=seconds)

    def with_wait_for_cluster(self, on: bool) -> ProducerSettings:  # noqa: FBT001
        """A copy with another ``wait_for_cluster``."""
        return self.evolve(wait_for_cluster=on)

    def with_cancel_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``cancel_timeout``."""
        return self.evolve(cancel_timeout=seconds)

    def with_transactional_id(self, transactional_id: str | None) -> ProducerSettings:
        """A copy with another ``transactional_id``."""
        return self.evolve(transactional_id=transactional_id)

    def with_eos_commit_interval(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``eos_commit_interval``."""
        return self.evolve(eos_commit_interval=seconds)

    def with_service_name(self, service_name: str) -> ProducerSettings:
        """A copy that looks up this service instead of using ``bootstrap_servers``."""
        return self.evolve(service_name=service_name, bootstrap_servers="")

    def with_discovery_method(
        self, discovery_method: ResolverLike | Literal["dns"]
    ) -> ProducerSettings:
        """A copy with another ``discovery_method``."""
        return self.evolve(discovery_method=discovery_method)

    def with_resolve_timeout(self, seconds: float | timedelta) -> ProducerSettings:
        """A copy with another ``resolve_timeout``."""
        return self.evolve(resolve_timeout=seconds)

    def with_enrich(
        self, enrich: Callable[[ProducerSettings], Awaitable[ProducerSettings]] | None
    ) -> ProducerSettings:
        """A copy with another ``enrich``."""
        return self.evolve(enrich=enrich)

    def with_producer(self, producer: Any) -> ProducerSettings:
        """A copy that sends with an existing client, and does not close it.

        Args:
            producer: a ``KafkaProducer`` of kafka-python, which other code may use at the same
                time. The client's own settings apply, so the copy has no ``bootstrap_servers`` and
                no ``service_name``.

        Raises:
            SettingsError: the object is not a ``KafkaProducer``, or these settings have
                ``properties``, ``enrich``, a ``producer_factory`` or a ``transactional_id``.

        If the producer must close the client, set ``close_producer_on_exit`` in the copy. If the
        client breaks, the producer also breaks, because it cannot construct a new client.
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


def _check_names(fields: Iterable[str]) -> None:
    known = _defaults()
    for name in fields:
        if name not in known:
            raise unknown(name, name, known)


def _with_checked_names(init: Callable[..., None]) -> Callable[..., None]:
    """Make the generated constructor say where an argument with a wrong name belongs."""

    @functools.wraps(init)
    def checked(self: ProducerSettings, *args: object, **fields: Any) -> None:
        if args:
            raise TypeError(
                "ProducerSettings takes keyword arguments only, such as "
                "ProducerSettings(bootstrap_servers='localhost:9092')"
            )
        _check_names(fields)
        init(self, **fields)

    return checked


# dataclass() generates the constructor.
ProducerSettings.__init__ = _with_checked_names(  # type: ignore[method-assign]
    ProducerSettings.__init__
)


def settings_for(settings: ProducerSettings | None, fields: SettingsFields) -> ProducerSettings:
    """The settings to open a producer with.

    Args:
        settings: the settings that the caller passed; None for none.
        fields: the fields that the caller passed as keywords, which override them. With neither,
            the environment has the settings, as :meth:`ProducerSettings.from_env` reads them.

    Raises:
        SettingsError: a name or a value is wrong, or nothing names the brokers.
        TypeError: the settings are an object of another type.
    """
    if settings is None:
        return ProducerSettings(**fields) if fields else ProducerSettings.from_env()
    check_settings(settings)
    if not fields:
        return settings
    # bootstrap_servers and service_name replace each other.
    if "bootstrap_servers" in fields:
        fields = {"service_name": "", **fields}
    elif "service_name" in fields:
        fields = {"bootstrap_servers": "", **fields}
    return settings.evolve(**fields)


def check_settings(settings: object) -> None:
    """Check an argument that must be settings.

    Raises:
        TypeError: it is an object of another type.
    """
    if not isinstance(settings, ProducerSettings):
        kind = type(settings).__name__
        hints = {
            "str": ": use ProducerSettings(bootstrap_servers='localhost:9092')",
            "dict": ": use ProducerSettings.from_mapping()",
        }
        raise TypeError(f"settings must be ProducerSettings, not {kind}{hints.get(kind, '')}")


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


def _check_service(name: str) -> None:
    """Check a name to look up. An error about a part of the name begins with the field."""
    try:
        Lookup.parse(name)
    except SettingsError as error:
        said = str(error)
        if said.startswith("service_name"):
            raise
        raise SettingsError(f"service_name: {said}") from None


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


def _redacted(properties: Mapping[str, Any]) -> str:
    parts = (
        f"{name!r}: {value!r}"
        if canonical_name(name) in _SHOWN_PROPERTIES
        else f"{shown_name(name)}: ***"
        for name, value in properties.items()
    )
    return "{" + ", ".join(parts) + "}"
