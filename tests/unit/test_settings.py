"""The settings: invalid values, changed copies, and hidden secrets."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError
from anyio_sendproducer._hooks import Serializer
from anyio_sendproducer._kafka_names import canonical_name
from anyio_sendproducer.serializers import JSONSerializer
from tests.support.paths import ROOT

SECRET = "hunter2-s3cr3t"
make = functools.partial(
    cast("Callable[..., ProducerSettings]", ProducerSettings), bootstrap_servers="localhost:9092"
)


class UpperCase:
    """A serializer with the interface of kafka-python's serializers."""

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: str) -> bytes:
        return data.upper().encode()


class Plain:
    """Neither a serializer nor callable."""


def encode(text: str) -> bytes:
    return text.encode()


def first_partition(_topic: str, _key: bytes | None, partitions: Sequence[int]) -> int:
    return partitions[0]


class First:
    """A partitioner."""

    def __call__(self, topic: str, key: bytes | None, partitions: Sequence[int]) -> int:
        return first_partition(topic, key, partitions)


class FirstOfKafkaPython:
    """A partitioner with the interface of kafka-python's partitioners."""

    def partition(self, *_: object) -> int:
        return 0


async def choose_later(*_: object) -> int:
    return 0


# --- invalid values ------------------------------------------------------------------------------

DURATIONS = [
    "delivery_timeout",
    "unknown_topic_timeout",
    "start_timeout",
    "close_timeout",
    "cancel_timeout",
    "eos_commit_interval",
    "resolve_timeout",
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"bootstrap_servers": ""}, r"bootstrap_servers is missing"),
    ({"bootstrap_servers": " , ,"}, r"bootstrap_servers is missing"),
    ({"bootstrap_servers": []}, r"bootstrap_servers is missing"),
    (
        {"bootstrap_servers": None},
        r"bootstrap_servers must be a str or a list of str, not NoneType",
    ),
    ({"bootstrap_servers": 9092}, r"bootstrap_servers must be a str or a list of str, not int"),
    ({"bootstrap_servers": b"localhost:9092"}, r"bootstrap_servers must be a str or a list"),
    (
        {"bootstrap_servers": ["a:1", 2]},
        r"bootstrap_servers must be a str or a list of str, not a list with int in it",
    ),
    ({"bootstrap_servers": "localhost"}, r"'localhost' is not host:port, such as"),
    ({"bootstrap_servers": "localhost:"}, r"'localhost:' is not host:port"),
    ({"bootstrap_servers": ":9092"}, r"':9092' is not host:port"),
    ({"bootstrap_servers": "localhost:kafka"}, r"'localhost:kafka' is not host:port"),
    ({"bootstrap_servers": "localhost:٩٠٩٢"}, r"is not host:port"),
    ({"bootstrap_servers": "local host:9092"}, r"'local host:9092' is not host:port"),
    ({"bootstrap_servers": "kafka://localhost:9092"}, r"'kafka://localhost:9092' is not host"),
    ({"bootstrap_servers": "::1:9092"}, r"'::1:9092' is not host:port"),
    ({"bootstrap_servers": ["a:1,b:2"]}, r"'a:1,b:2' is not host:port"),
    ({"bootstrap_servers": "a:1,b"}, r"'b' is not host:port"),
    ({"bootstrap_servers": "a:0"}, r"the port of 'a:0' is not from 1 to 65535"),
    ({"bootstrap_servers": "a:65536"}, r"the port of 'a:65536' is not from 1 to 65535"),
    ({"client_id": ""}, r"client_id must be a str that is not empty, not ''"),
    ({"client_id": None}, r"client_id must be a str that is not empty, not None"),
    ({"client_id": b"me"}, r"client_id must be a str that is not empty, not bytes"),
    ({"key_serializer": "json"}, r"key_serializer must be a callable or have .*, not str"),
    ({"value_serializer": Plain()}, r"value_serializer must be a callable .*, not Plain"),
    ({"properties": None}, r"properties must be a mapping, not NoneType"),
    ({"properties": [("acks", 1)]}, r"properties must be a mapping, not list"),
    ({"properties": {1: 2}}, r"properties: a name must be a str, not 1"),
    (
        {"properties": {"linger.ms": 1, "linger_ms": 1}},
        r"properties: 'linger.ms' and 'linger_ms' are one setting; give one",
    ),
    *(
        ({field: value}, rf"{field} must be an int of 1 or more, not ")
        for field in ("max_in_flight", "max_buffered_bytes")
        for value in (0, -1, 1.0, True, "10", None)
    ),
    *(
        ({field: value}, rf"{field} must be a number of seconds (above|of) 0.*, and no more than")
        for field in DURATIONS
        for value in (-1, -0.001, float("inf"), float("nan"), True, "10", None, 2e9, 10**400)
    ),
    *(
        (
            {field: value},
            rf"{field} must be a number of seconds above 0, and .* 1e\+09, or a timedelta, not",
        )
        for field in (
            "delivery_timeout",
            "start_timeout",
            "eos_commit_interval",
            "resolve_timeout",
        )
        for value in (0, 0.0, -0.0)
    ),
]


async def serialize_later(_: object) -> bytes:
    return b""


class LateSerializer:
    async def serialize(self, _topic: str, _headers: object, _data: object) -> bytes:
        return b""


class LateHook:
    """An object with an async ``__call__``: as a serializer or a partitioner."""

    async def __call__(self, *_: object) -> Any:
        return None


DURATION = "must be a number of seconds above 0, and no more than 1e+09, or a timedelta, not"
#: Invalid fields and the whole message.
BAD_EXACTLY: list[tuple[dict[str, Any], str]] = [
    ({"transactional_id": ""}, "transactional_id must be a str that is not empty, or None, not ''"),
    ({"transactional_id": 7}, "transactional_id must be a str that is not empty, or None, not 7"),
    ({"eos_commit_interval": 0}, f"eos_commit_interval {DURATION} 0"),
    ({"eos_commit_interval": "1"}, f"eos_commit_interval {DURATION} '1'"),
    ({"resolve_timeout": 0}, f"resolve_timeout {DURATION} 0"),
    ({"resolve_timeout": None}, f"resolve_timeout {DURATION} None"),
    ({"service_name": None}, "service_name must be a str, not None"),
    (
        {"service_name": "_a b._tcp.x"},
        "service_name: port_name must have no blanks and no control characters: 'a b'",
    ),
    ({"service_name": "a b"}, "service_name must have no blanks and no control characters: 'a b'"),
    (
        {"service_name": "kafka.test"},
        (
            "bootstrap_servers 'localhost:9092' and service_name 'kafka.test' cannot be combined: "
            "the look-up of the service replaces bootstrap_servers"
        ),
    ),
    (
        {"discovery_method": "consul"},
        (
            "discovery_method must be 'dns', a resolver of anyio_sendproducer.discovery or an "
            "async callable, not 'consul'"
        ),
    ),
    (
        {"discovery_method": None},
        (
            "discovery_method must be 'dns', a resolver of anyio_sendproducer.discovery or an "
            "async callable, not None"
        ),
    ),
    ({"enrich": "vault"}, "enrich must be an async callable, not str"),
    (
        {"value_serializer": JSONSerializer},
        "value_serializer must be an instance, JSONSerializer(), not the class",
    ),
    (
        {"key_serializer": LateSerializer},
        "key_serializer must be an instance, LateSerializer(), not the class",
    ),
    (
        {"key_serializer": serialize_later},
        "key_serializer must not be async: it is called on a thread, where it may block",
    ),
    (
        {"key_serializer": LateSerializer()},
        "key_serializer must not be async: it is called on a thread, where it may block",
    ),
    (
        {"bootstrap_servers": b"localhost:9092"},
        "bootstrap_servers must be a str or a list of str, not bytes",
    ),
    ({"close_producer_on_exit": 1}, "close_producer_on_exit must be True or False, not 1"),
    (
        {"close_producer_on_exit": False},
        "close_producer_on_exit=False needs a producer: otherwise the client would stay open",
    ),
    (
        {"partitioner": 7},
        "partitioner must be a callable that takes the topic, the key and the partitions, not int",
    ),
    *(
        (
            {"partitioner": partitioner},
            (
                "partitioner must be a callable that takes the topic, the key and the partitions, "
                f"not {kind}; a partitioner of the client is properties={{'partitioner': ...}}"
            ),
        )
        for partitioner, kind in (
            ("murmur2", "str"),
            (FirstOfKafkaPython(), "FirstOfKafkaPython"),
        )
    ),
    ({"partitioner": First}, "partitioner must be an instance, First(), not the class"),
    *(
        (
            {field: hook},
            f"{field} must not be async: it is called on a thread, where it may block",
        )
        for field, hook in (
            ("partitioner", choose_later),
            ("partitioner", LateHook()),
            ("value_serializer", LateHook()),
        )
    ),
    (
        {"partitioner": first_partition, "properties": {"partitioner": "murmur2"}},
        "partitioner and properties['partitioner'] cannot be combined: set only one",
    ),
    ({"producer_factory": "json"}, "producer_factory must be callable, not str"),
    ({"producer": 7}, "producer must be a KafkaProducer, not int"),
]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        pytest.param(*case, id=f"{number}-{next(iter(case[0]))}")
        for number, case in enumerate(BAD_EXACTLY)
    ],
)
def test_the_whole_message_for_an_invalid_setting(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make(**fields)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("fields", "says"),
    [pytest.param(*case, id=f"{number}-{next(iter(case[0]))}") for number, case in enumerate(BAD)],
)
def test_the_error_of_an_invalid_setting_names_it(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        make(**fields)


def test_addresses_are_required() -> None:
    with pytest.raises(SettingsError, match="bootstrap_servers is missing: name at least one"):
        ProducerSettings()


@pytest.mark.parametrize("field", ["unknown_topic_timeout", "close_timeout", "cancel_timeout"])
def test_some_timeouts_may_be_zero(field: str) -> None:
    assert getattr(make(**{field: 0}), field) == 0


def test_every_field_is_a_keyword() -> None:
    with pytest.raises(TypeError):
        cast("Callable[..., object]", ProducerSettings)("localhost:9092")


def test_the_defaults() -> None:
    settings = make()
    assert {
        field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
    } == {
        "bootstrap_servers": "localhost:9092",
        "client_id": "anyio-sendproducer",
        "key_serializer": None,
        "value_serializer": None,
        "partitioner": None,
        "properties": {},
        "max_in_flight": 10_000,
        "max_buffered_bytes": 32 * 2**20,
        "delivery_timeout": 120.0,
        "unknown_topic_timeout": 5.0,
        "start_timeout": 30.0,
        "close_timeout": 60.0,
        "cancel_timeout": 5.0,
        "transactional_id": None,
        "eos_commit_interval": 0.1,
        "service_name": "",
        "discovery_method": "dns",
        "resolve_timeout": 3.0,
        "enrich": None,
        "producer": None,
        "producer_factory": None,
        "close_producer_on_exit": True,
        "wait_for_cluster": True,
    }


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "addresses"),
    [
        ("a:1", ("a:1",)),
        ("a:1,b:65535", ("a:1", "b:65535")),
        (" a:1 , b:2 ,", ("a:1", "b:2")),
        (["a:1", " b:2"], ("a:1", "b:2")),
        (("a:1",), ("a:1",)),
        (iter(["a:1", "b:2"]), ("a:1", "b:2")),
        ("[::1]:9092,10.0.0.1:9092", ("[::1]:9092", "10.0.0.1:9092")),
        ("[fe80::1%eth0]:9092", ("[fe80::1%eth0]:9092",)),
        ("kafka-1.example.com:9092", ("kafka-1.example.com:9092",)),
    ],
)
def test_addresses_lists_the_brokers(servers: Any, addresses: tuple[str, ...]) -> None:
    settings = make(bootstrap_servers=servers)
    assert settings.addresses == addresses
    assert settings.bootstrap_servers == ",".join(addresses)
    assert settings == make(bootstrap_servers=list(addresses))


# --- changed copies ------------------------------------------------------------------------------

hosts = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)
servers = st.lists(
    st.builds("{}:{}".format, hosts, st.integers(1, 65535)), min_size=1, max_size=3
).map(",".join)
names = st.from_regex(r"[a-z]{1,8}([._][a-z]{1,8}){0,3}", fullmatch=True)
property_values = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
properties = st.dictionaries(names, property_values, max_size=5).filter(
    lambda given_: len({canonical_name(name) for name in given_}) == len(given_)
)
durations = st.floats(0, 3600, exclude_min=True) | st.integers(1, 3600)
serializers = st.sampled_from([None, encode, str.encode])
fields: dict[str, st.SearchStrategy[Any]] = {
    "bootstrap_servers": servers,
    "client_id": st.text(min_size=1),
    "key_serializer": serializers,
    "value_serializer": serializers,
    "partitioner": st.sampled_from([None, first_partition]),
    "properties": properties,
    "max_in_flight": st.integers(1),
    "max_buffered_bytes": st.integers(1),
    **dict.fromkeys(DURATIONS, durations),
}
changes = st.fixed_dictionaries({}, optional=fields)
all_settings = st.fixed_dictionaries(
    {"bootstrap_servers": servers},
    optional={name: some for name, some in fields.items() if name != "bootstrap_servers"},
).map(lambda given_: make(**given_))


def as_dict(settings: ProducerSettings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


@given(all_settings)
def test_settings_survive_pickling_and_copying(settings: ProducerSettings) -> None:
    for other in (
        pickle.loads(pickle.dumps(settings)),
        copy.copy(settings),
        copy.deepcopy(settings),
        settings.evolve(),
    ):
        assert other == settings
        assert as_dict(other) == as_dict(settings)
        assert repr(other) == repr(settings)
        assert isinstance(other.properties, MappingProxyType)


@given(all_settings, changes)
def test_evolve_changes_only_the_given_fields(
    settings: ProducerSettings, changed: dict[str, Any]
) -> None:
    before = as_dict(settings)
    after = settings.evolve(**changed)
    assert as_dict(after) == {**before, **changed}
    assert as_dict(settings) == before
    assert after.evolve(**{name: before[name] for name in changed}) == settings


@given(all_settings, changes)
@example(make(), dict.fromkeys(DURATIONS, 5.0))
def test_each_with_method_changes_only_its_field(
    settings: ProducerSettings, changed: dict[str, Any]
) -> None:
    changed.pop("properties", None)
    for name, value in changed.items():
        after = getattr(settings, f"with_{name}")(value)
        assert as_dict(after) == {**as_dict(settings), name: value}


def test_with_wait_for_cluster() -> None:
    settings = ProducerSettings(bootstrap_servers="a:1").with_wait_for_cluster(False)
    assert not settings.wait_for_cluster
    assert settings.with_wait_for_cluster(True) == ProducerSettings(bootstrap_servers="a:1")


def test_every_field_has_a_with_method() -> None:
    named = {field.name for field in dataclasses.fields(ProducerSettings)}
    methods = {name.removeprefix("with_") for name in dir(ProducerSettings) if name[:5] == "with_"}
    assert methods == named | {"property"}


def test_the_reference_lists_each_way_to_make_and_change_settings() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    [listed] = re.findall(r"autoclass:: ProducerSettings\n +:members: ((?:.+\n)+?)```", page)
    public = {
        name
        for name, member in vars(ProducerSettings).items()
        if not name.startswith("_")
        and (callable(member) or isinstance(member, (classmethod, property)))
    }
    assert set(re.findall(r"\w+", listed)) == public


@given(all_settings, names, property_values)
def test_a_property_is_replaced_in_either_spelling(
    settings: ProducerSettings, name: str, value: Any
) -> None:
    dotted, underscored = name.replace("_", "."), name.replace(".", "_")
    rest = {
        other: kept
        for other, kept in settings.properties.items()
        if canonical_name(other) != underscored
    }
    once = settings.with_property(dotted, "before").with_property(underscored, value)
    assert once.properties == {**rest, underscored: value}
    assert once.with_property(dotted, value).properties == {**rest, dotted: value}
    assert once == settings.with_properties({underscored: value})


@given(all_settings, properties)
def test_several_properties_are_added_at_once(
    settings: ProducerSettings, added: dict[str, Any]
) -> None:
    one_by_one = settings
    for name, value in added.items():
        one_by_one = one_by_one.with_property(name, value)
    assert settings.with_properties(added).properties == one_by_one.properties


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"linger.ms": 1, "linger_ms": 2}, "are one setting"),
        ({1: 2}, "a name must be a str, not 1"),
    ],
)
def test_added_properties_are_checked(added: Mapping[Any, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        make().with_properties(added)


def test_equal_settings_are_the_same_dict_key() -> None:
    first = make(properties={"linger.ms": 5})
    assert {first: 1}[make(properties={"linger.ms": 5})] == 1
    assert make(properties={"linger.ms": 6}) not in {first: 1}


@pytest.mark.parametrize("serializer", [bytes, str.encode, JSONSerializer()], ids=str)
def test_the_class_bytes_may_be_a_serializer(serializer: Any) -> None:
    assert make(value_serializer=serializer).value_serializer is serializer


def test_evolve_names_an_unknown_field() -> None:
    with pytest.raises(SettingsError, match=r"'close_timout' is not a .* mean 'close_timeout'"):
        make().evolve(**cast("Any", {"close_timout": 1}))
    with pytest.raises(
        SettingsError, match=r"'zzz' is not .* max_in_flight, .* properties={'linger"
    ):
        make().evolve(**cast("Any", {"zzz": 1}))


def test_evolve_checks_the_new_value() -> None:
    with pytest.raises(SettingsError, match="max_in_flight must be"):
        make().evolve(max_in_flight=0)


def test_settings_are_frozen_in_depth() -> None:
    given_ = {"acks": "all"}
    settings = make(properties=given_)
    given_["acks"] = "0"
    assert settings.properties == {"acks": "all"}
    with pytest.raises(AttributeError):
        settings.client_id = "another"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        settings.properties["acks"] = "0"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("serializer", [encode, UpperCase(), UpperCase().serialize, bytes, None])
def test_callables_and_serializer_objects_are_valid(serializer: Any) -> None:
    settings = make(key_serializer=serializer, value_serializer=serializer)
    assert settings.key_serializer == settings.value_serializer == serializer


def test_a_serializer_object_has_a_method_serialize() -> None:
    assert isinstance(UpperCase(), Serializer)
    assert not isinstance(encode, Serializer)


# --- secrets -------------------------------------------------------------------------------------

#: Properties without secrets, which are useful in a log.
SHOWN = [
    "acks",
    "api_version",
    "batch_size",
    "compression_type",
    "linger_ms",
    "request_timeout_ms",
    "sasl_mechanism",
    "security_protocol",
]
HIDDEN = [
    "sasl_plain_password",
    "sasl_plain_username",
    "sasl.jaas.config",
    "sasl_oauth_token_provider",
    "ssl_cafile",
    "ssl_context",
    "ssl_keyfile",
    "ssl_password",
    "ssl.key.password",
    "proxy_url",
    "socks5_proxy",
    "linger_ms_",
    "ACKS",
    "password",
]


def test_repr_shows_changed_fields_and_hides_other_properties() -> None:
    settings = make(
        client_id="me",
        max_in_flight=7,
        properties={"linger.ms": 5, "ssl_password": SECRET, "acks": "all"},
    )
    assert repr(settings) == (
        "ProducerSettings(bootstrap_servers='localhost:9092', client_id='me', "
        "properties={'linger.ms': 5, 'ssl_password': ***, 'acks': 'all'}, max_in_flight=7)"
    )
    assert repr(make()) == "ProducerSettings(bootstrap_servers='localhost:9092')"


@pytest.mark.parametrize("name", SHOWN)
def test_repr_shows_harmless_properties_in_either_spelling(name: str) -> None:
    assert f"'{name}': 'shown'" in repr(make(properties={name: "shown"}))
    dotted = name.replace("_", ".")
    assert f"'{dotted}': 'shown'" in repr(make(properties={dotted: "shown"}))


secrets = st.text(min_size=1).map(lambda text: f"{SECRET}{text}") | st.just(SECRET)
wrapped = secrets.flatmap(
    lambda secret: st.sampled_from(
        [secret, secret.encode("utf-8", "replace"), [secret], {"password": secret}, (1, secret)]
    )
)


@given(st.sampled_from(HIDDEN) | names, wrapped)
@example("sasl_plain_password", SECRET)
def test_repr_never_shows_the_value_of_another_property(name: str, value: Any) -> None:
    if canonical_name(name) in {canonical_name(shown) for shown in SHOWN}:
        return
    settings = make(properties={name: value, "linger_ms_of_another": SECRET})
    for text in (repr(settings), str(settings), f"{settings}", repr([settings])):
        assert SECRET not in text


@pytest.mark.parametrize("field", ["key_serializer", "value_serializer"])
@pytest.mark.parametrize(
    "serializer",
    [functools.partial(encode, SECRET), functools.partial(UpperCase().serialize, data=SECRET)],
    ids=["positional", "keyword"],
)
def test_repr_does_not_show_the_arguments_of_a_serializer(field: str, serializer: Any) -> None:
    text = repr(make(**{field: serializer}))
    assert SECRET not in text
    assert field in text


@given(
    secrets.map(lambda secret: secret.replace(",", "").strip()),
    st.sampled_from(["{0}@h:1", "me:{0}@h:1", "kafka://me:{0}@h:1", "a:1,kafka://me:{0}@h:1"]),
)
def test_an_address_with_a_password_is_refused_without_repeating_it(
    secret: str, shape: str
) -> None:
    with pytest.raises(SettingsError, match="bootstrap_servers") as caught:
        make(bootstrap_servers=shape.format(secret))
    assert SECRET not in str(caught.value)


def test_a_password_with_a_comma_in_an_address_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="bootstrap_servers") as caught:
        make(bootstrap_servers=f"kafka://me:{SECRET},more@localhost:9092")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"properties": f"sasl_plain_password={SECRET}"},
        {"properties": [("sasl_plain_password", SECRET)]},
        {"properties": {"ssl.password": SECRET, "ssl_password": SECRET}},
        {"properties": {"ssl_password": SECRET, 1: SECRET}},
        {"key_serializer": SECRET},
        {"properties": {"ssl_password": SECRET}, "max_in_flight": 0},
        {"properties": {"ssl_password": SECRET}, "another": SECRET},
    ],
    ids=str,
)
def test_no_refusal_repeats_the_value_of_a_property(fields: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        make().evolve(**fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


class Name(str, enum.Enum):
    CLIENT = "orders-service"
    PROTOCOL = "security.protocol"
    PLAINTEXT = "PLAINTEXT"


def test_subclasses_of_plain_types_are_replaced() -> None:
    class Milliseconds(int):
        pass

    settings = ProducerSettings(
        bootstrap_servers="a:1",
        client_id=Name.CLIENT,
        transactional_id=Name.CLIENT,
        properties={Name.PROTOCOL: Name.PLAINTEXT, "linger.ms": Milliseconds(5), "retries": True},
    )
    assert type(settings.client_id) is type(settings.transactional_id) is str
    assert settings.client_id == settings.transactional_id == "orders-service"
    assert dict(settings.properties) == {
        "security.protocol": "PLAINTEXT",
        "linger.ms": 5,
        "retries": True,
    }
    assert [type(name) for name in settings.properties] == [str] * 3
    assert [type(value) for value in settings.properties.values()] == [str, int, bool]
