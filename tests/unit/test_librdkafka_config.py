"""The translation of settings to librdkafka's configuration, and the settings that it refuses."""

from __future__ import annotations

import functools
import logging
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError
from anyio_sendproducer._kafka_names import canonical_name
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python._config import client_config
from anyio_sendproducer.drivers.librdkafka import _properties as tables
from anyio_sendproducer.drivers.librdkafka._config import LibrdkafkaConfig, librdkafka_config
from anyio_sendproducer.drivers.security import _settings as _security
from tests.support.kafka_security import Authority, Certificate
from tests.support.lent_client import FakeClient
from tests.support.mock_cluster import properties_table

SECRET = "hunter2-s3cr3t"
PLAIN_MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
#: kafka-python's settings and their defaults.
KAFKA_PYTHON: Final[dict[str, Any]] = cast("Any", _kafka_python).KafkaProducer.DEFAULT_CONFIG
INT_MAX: Final = 2**31 - 1
make = functools.partial(
    cast("Callable[..., ProducerSettings]", ProducerSettings), bootstrap_servers="a:1,b:2"
)
TLS: dict[str, Any] = {"security.protocol": "SSL"}
LOGIN: dict[str, Any] = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "me",
    "sasl.password": SECRET,
}
OAUTH: dict[str, Any] = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}
KERBEROS: dict[str, Any] = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "GSSAPI"}


class Tokens:
    def token(self) -> str:
        return "t0k3n"


def made(properties: dict[str, Any], **fields: Any) -> LibrdkafkaConfig:
    return librdkafka_config(make(properties=properties, **fields))


def config(properties: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return made(properties, **fields).config


def refusal(properties: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        made(properties, **fields)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    return str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority").issue()


# --- the client's configuration ------------------------------------------------------------------


def test_the_default_configuration() -> None:
    assert config({}) == {
        "bootstrap.servers": "a:1,b:2",
        "client.id": "anyio-sendproducer",
        "connections.max.idle.ms": 230_000,
        "enable.idempotence": True,
        "linger.ms": 0,
        "max.in.flight.requests.per.connection": 1,
        "message.timeout.ms": INT_MAX,
        "partitioner": "murmur2_random",
        "queue.buffering.max.kbytes": INT_MAX,
        "queue.buffering.max.messages": 0,
        "receive.message.max.bytes": 4 * 1024 * 1024,
        "reconnect.backoff.max.ms": 1000,
        "retries": INT_MAX,
        "retry.backoff.max.ms": 1000,
        "socket.connection.setup.timeout.ms": 30_000,
        "socket.timeout.ms": 60_000,
        "sticky.partitioning.linger.ms": 10,
        "topic.metadata.propagation.max.ms": 5000,
    }
    assert made({}).tokens is None


def test_each_configuration_is_a_new_dict() -> None:
    config({})["linger.ms"] = 1
    assert config({})["linger.ms"] == 0


def test_repr_shows_no_secret() -> None:
    assert SECRET not in repr(made(LOGIN))


@pytest.mark.parametrize(
    ("given_", "value", "name", "wanted"),
    [
        ("linger.ms", 5, "linger.ms", 5),
        ("linger_ms", "5", "linger.ms", 5),
        ("linger.ms", "0.5", "linger.ms", 0.5),
        ("batch.size", "1000.5", "batch.size", 1001),
        ("queue.buffering.max.ms", 0.5, "linger.ms", 0.5),
        ("batch.size", " 16384 ", "batch.size", 16384),
        ("batch_size", 0, "batch.size", 1),
        ("max.request.size", 5000, "message.max.bytes", 5000),
        ("message_max_bytes", 5000, "message.max.bytes", 5000),
        ("request_timeout_ms", 1000.5, "request.timeout.ms", 1001),
        ("retries", float("inf"), "retries", INT_MAX),
        ("acks", "all", "acks", "all"),
        ("acks", -1, "acks", "all"),
        ("request.required.acks", "0", "acks", 0),
        ("acks", 1, "acks", 1),
        ("compression_type", None, "compression.type", "none"),
        ("compression.type", "none", "compression.type", "none"),
        ("compression.codec", "zstd", "compression.type", "zstd"),
        ("compression.level", "-1", "compression.level", -1),
        ("enable.idempotence", "false", "enable.idempotence", False),
        ("enable_idempotence", " True ", "enable.idempotence", True),
        ("metadata_max_age_ms", 60_000, "topic.metadata.refresh.interval.ms", 60_000),
        ("send_buffer_bytes", 1, "socket.send.buffer.bytes", 1),
        ("receive.buffer.bytes", "1", "socket.receive.buffer.bytes", 1),
        ("receive_message_max_bytes", 1000, "receive.message.max.bytes", 1000),
        ("connections.max.idle.ms", 0, "connections.max.idle.ms", 0),
        ("max.in.flight", 5, "max.in.flight.requests.per.connection", 5),
        ("client_dns_lookup", "use_all_dns_ips", "client.dns.lookup", "use_all_dns_ips"),
        ("partitioner", "murmur2", "partitioner", "murmur2"),
        ("client.rack", "r1", "client.rack", "r1"),
        ("retry.backoff.ms", 0, "retry.backoff.ms", 1),
        ("retry.backoff.ms", 5000, "retry.backoff.max.ms", 5000),
        ("retry.backoff.max.ms", 50, "retry.backoff.ms", 50),
        ("reconnect_backoff_ms", 5000, "reconnect.backoff.max.ms", 5000),
        ("reconnect.backoff.max.ms", 0, "reconnect.backoff.ms", 0),
        ("reconnect.backoff.max.ms", 5000, "reconnect.backoff.ms", 100),
        ("security.protocol", "plaintext", "security.protocol", "PLAINTEXT"),
    ],
    ids=repr,
)
def test_values_may_be_text_or_python_values(
    given_: str, value: Any, name: str, wanted: Any
) -> None:
    found = config({given_: value})[name]
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    "name", ["api_version", "proxy_url", "socks5_proxy", "ssl_context", "ssl_cafile"]
)
def test_none_leaves_a_setting_unset(name: str) -> None:
    assert config({name: None}) == config({})


#: Values that are valid and not the default.
SAMPLES: dict[str, Any] = {
    "acks": 1,
    "compression.type": "lz4",
    "linger.ms": 7,
    "max.in.flight.requests.per.connection": 3,
    "queue.buffering.backpressure.threshold": 1,
    "transaction.timeout.ms": 70_000,
}


def sample(name: str) -> Any:
    kind = tables.KINDS[name]
    if name in SAMPLES:
        return SAMPLES[name]
    if isinstance(kind, tables.Number):
        return min(kind.maximum, kind.minimum + 1)
    if isinstance(kind, tuple):
        return kind[0]
    return False if kind is bool else "all"


def spellings(name: str) -> list[str]:
    found = [canonical for canonical, one in tables.SPELLINGS.items() if one == name]
    return [name, *found, *(canonical.replace("_", ".") for canonical in found)]


@given(
    st.sampled_from(sorted(tables.KINDS)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.sampled_from(spellings(name)), st.sampled_from(spellings(name))
        )
    )
)
@example(("acks", "acks", "request.required.acks"))
def test_spellings_are_equivalent_and_two_of_them_are_refused(
    case: tuple[str, str, str],
) -> None:
    name, spelt, other = case
    fields: dict[str, Any] = {"transactional_id": "id"} if name == "transaction.timeout.ms" else {}
    wanted = config({name: sample(name)}, **fields)
    assert config({spelt: sample(name)}, **fields) == wanted
    assert wanted[name] == (INT_MAX if name == "retries" else sample(name))
    if canonical_name(spelt) != canonical_name(other):
        said = refusal({spelt: sample(name), other: sample(name)}, **fields)
        assert said == f"properties: {spelt!r} and {other!r} are one setting; give one"


@pytest.mark.parametrize("name", sorted(KAFKA_PYTHON))
def test_each_setting_of_kafka_python_is_accepted_or_refused_with_advice(name: str) -> None:
    taken = tables.SPELLINGS.keys() | tables.LIBRDKAFKA.meanings.keys()
    if name not in taken:
        assert f"{name!r} can't be set" in refusal({name: SECRET})


def test_our_tables_match_librdkafkas(tmp_path: Path) -> None:
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in properties_table(tmp_path / "table").splitlines()
        if line.count("|") >= 5
    ]
    ours = [row for row in rows if row[1] in {"*", "P"}]
    assert len(ours) > 100
    taken = tables.SPELLINGS.keys() | tables.LIBRDKAFKA.meanings.keys()
    refused = tables.DECIDED.keys() | tables.LIBRDKAFKA.refused.keys()
    assert not taken & refused
    for name, _, bounds, *_ in ours:
        assert canonical_name(name) in taken | refused, name
        kind = tables.KINDS.get(name)
        if isinstance(kind, tables.Number):
            least, most = (int(bound) for bound in bounds.split(".."))
            assert (max(least, 1) if "refresh.interval" in name else least) == kind.minimum, name
            assert most == kind.maximum, name
        elif isinstance(kind, tuple) and name != "partitioner":
            assert bounds == ", ".join(kind), name
        elif kind is bool:
            assert bounds == "true, false", name


# --- idempotence, transactions and times ---------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "idempotent"),
    [
        ({}, True),
        ({"acks": "all"}, True),
        ({"max.in.flight": 5}, True),
        ({"acks": 1}, False),
        ({"acks": 0}, False),
        ({"retries": 0}, False),
        ({"max.in.flight": 6}, False),
        ({"enable.idempotence": False}, False),
        ({"enable.idempotence": False, "acks": 1}, False),
        ({"enable.idempotence": True, "acks": "-1", "retries": 1}, True),
        ({"acks": 1, "queue.buffering.backpressure.threshold": 2}, False),
    ],
    ids=str,
)
def test_idempotence_is_off_on_request_or_with_a_conflicting_setting(
    properties: dict[str, Any], idempotent: bool
) -> None:
    assert config(properties)["enable.idempotence"] is idempotent


@pytest.mark.parametrize("name", ["retries", "message.send.max.retries"])
def test_an_idempotent_client_retries_without_limit(name: str) -> None:
    """Otherwise the client would take a new epoch."""
    assert config({name: "3"})["retries"] == INT_MAX
    assert config({name: "3"}, transactional_id="id")["retries"] == 3
    assert config({name: "3", "enable.idempotence": False})["retries"] == 3


def test_an_idempotent_client_takes_no_new_epoch() -> None:
    in_flight = "max.in.flight.requests.per.connection"
    assert (config({})[in_flight], config({})["message.timeout.ms"]) == (1, INT_MAX)
    for found in (config({}, transactional_id="id"), config({"enable.idempotence": False})):
        assert in_flight not in found
    given: dict[str, Any] = {"enable.gapless.guarantee": True, "max.in.flight": 5}
    assert config(given)["enable.gapless.guarantee"] is True
    assert config(given)[in_flight] == 5


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"acks": 1}, "acks=1"),
    ({"request.required.acks": "0"}, "acks=0"),
    ({"retries": 0}, "retries=0"),
    ({"max.in.flight": 6}, "max_in_flight_requests_per_connection=6"),
]


@pytest.mark.parametrize(("properties", "says"), CONTRADICTIONS, ids=str)
def test_contradictions_are_refused_with_the_same_message_as_in_kafka_python(
    properties: dict[str, Any], says: str
) -> None:
    idempotent = {**properties, "enable.idempotence": "true"}
    assert refusal(idempotent) == f"properties: {says} contradicts enable_idempotence=True"
    said = refusal(properties, transactional_id="id")
    assert said == f"properties: {says} contradicts transactional_id"


def test_settings_of_transactions() -> None:
    found = config({"transaction.timeout.ms": "5000"}, transactional_id="id")
    assert found["transactional.id"] == "id"
    assert found["enable.idempotence"] is True
    assert found["transaction.timeout.ms"] == found["message.timeout.ms"] == 5000
    assert config({}, transactional_id="id")["message.timeout.ms"] == 60_000
    assert config({}, transactional_id="id", delivery_timeout=3)["message.timeout.ms"] == 3000
    assert "transactional.id" not in config({})


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(30, 30_000), (0.0001, 1), (1.0005, 1001), (timedelta(seconds=1e9), INT_MAX)],
)
def test_without_idempotence_librdkafka_also_expires_records(
    seconds: float | timedelta, milliseconds: int
) -> None:
    found = config({"enable.idempotence": False}, delivery_timeout=seconds)
    assert found["message.timeout.ms"] == milliseconds


def test_an_idempotent_client_expires_no_record() -> None:
    assert config({}, delivery_timeout=0.5)["message.timeout.ms"] == INT_MAX


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(0, 0), (2.5, 2500), (timedelta(seconds=1e9), 3_600_000)]
)
def test_unknown_topic_timeout_limits_the_wait_for_a_topic(
    seconds: float | timedelta, milliseconds: int
) -> None:
    found = config({}, unknown_topic_timeout=seconds)
    assert found["topic.metadata.propagation.max.ms"] == milliseconds


@pytest.mark.parametrize(
    ("properties", "fields", "wanted"),
    [
        ({}, {}, 60_000),
        ({}, {"delivery_timeout": 600}, 60_000),
        ({}, {"delivery_timeout": 10}, 5000),
        ({}, {"delivery_timeout": 0.5}, 1000),
        ({}, {"transactional_id": "id"}, 30_000),
        ({"transaction.timeout.ms": 1000}, {"transactional_id": "id"}, 900),
        ({"enable.idempotence": False}, {"delivery_timeout": 10}, 5000),
        ({"request.timeout.ms": 20_000}, {}, 20_000),
        ({"request.timeout.ms": 1}, {}, 10),
        ({"request.timeout.ms": 400_000}, {}, 300_000),
        ({"request.timeout.ms": 20_000, "socket.timeout.ms": 1000}, {}, 1000),
        ({"request.timeout.ms": 70_000}, {"transactional_id": "id"}, 59_900),
        ({"socket.timeout.ms": 60_000}, {"transactional_id": "id"}, 60_000),
    ],
)
def test_the_timeout_of_a_request(
    properties: dict[str, Any], fields: dict[str, Any], wanted: int | None
) -> None:
    assert config(properties, **fields).get("socket.timeout.ms") == wanted


@pytest.mark.parametrize(
    ("properties", "fields", "wanted"),
    [
        ({}, {}, 30_000),
        ({}, {"delivery_timeout": 10}, 5000),
        ({"socket.connection.setup.timeout.ms": 2000}, {}, 2000),
    ],
)
def test_the_timeout_of_a_connection_attempt(
    properties: dict[str, Any], fields: dict[str, Any], wanted: int
) -> None:
    assert config(properties, **fields)["socket.connection.setup.timeout.ms"] == wanted


# --- refused properties --------------------------------------------------------------------------


CHOICES = "random, consistent, consistent_random, murmur2, murmur2_random, fnv1a, fnv1a_random"
PARTITIONERS = (
    "use ProducerSettings(partitioner=...) for one in Python, or set 'partitioner' to the name of "
    "one of librdkafka's"
)
TOKENS = "set 'sasl_oauth_token_provider' to an object whose token() returns a token"
ELSEWHERE = "or use the driver 'kafka-python', which can"
CONTEXT = (
    "librdkafka takes no ssl.SSLContext: set files or PEM texts, such as 'ssl.ca.location', "
    f"{ELSEWHERE}"
)
CANT_HIDE = (
    "excludes TLS 1.2 or 1.3, but librdkafka uses each version that the broker offers: exclude the "
    f"version in the broker's settings, {ELSEWHERE}"
)
NO_NUL = "contains a NUL character, where librdkafka would truncate it"
NO_TEXT = "contains characters that cannot be encoded as UTF-8"
EMPTY = "must be a str that is not empty"
IDLE = (
    "has no effect, because 'security.protocol' is PLAINTEXT, which is the default, and nothing is "
    "encrypted: set it to SSL, or leave this out"
)
SUITES = (
    "names a suite of TLS 1.3, but librdkafka cannot choose among these; name only suites of TLS "
    "1.2"
)
MSK = (
    "can't be AWS_MSK_IAM: librdkafka does not support this mechanism. Use OAUTHBEARER with a "
    f"'sasl_oauth_token_provider' that signs tokens for MSK, {ELSEWHERE}"
)
MECHANISMS = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, GSSAPI"
PROXY = f"librdkafka supports no proxy: make the brokers reachable without one, {ELSEWHERE}"
CODECS = "must be one of gzip, snappy, lz4, zstd, none, not 'inherit'"
LOOKUPS = "must be one of use_all_dns_ips, resolve_canonical_bootstrap_servers_only"
SOME_KEY = "-----BEGIN PRIVATE KEY-----AAAA-----END PRIVATE KEY-----"
SOME_CERTIFICATE = "-----BEGIN CERTIFICATE-----AAAA-----END CERTIFICATE-----"
NEITHER = "-----BEGIN X-----AAAA-----END X-----"

#: Properties, and the message about the last one.
REFUSED: list[tuple[dict[str, Any], str]] = [
    # Values.
    ({"acks": 2}, "must be 0, 1 or 'all', not 2"),
    ({"acks": True}, "must be 0, 1 or 'all', not True"),
    ({"acks": None}, "must be 0, 1 or 'all', not None"),
    ({"compression.codec": "inherit"}, CODECS),
    ({"enable.idempotence": "yes"}, "must be true or false"),
    ({"socket.keepalive.enable": 1}, "must be true or false"),
    ({"linger.ms": -1}, "must be a number from 0 to 900000"),
    ({"linger_ms": "soon"}, "must be a number from 0 to 900000"),
    ({"linger_ms": None}, "must be a number from 0 to 900000"),
    ({"linger_ms": True}, "must be a number from 0 to 900000"),
    ({"linger_ms": float("nan")}, "must be a number from 0 to 900000"),
    ({"linger_ms": float("inf")}, "must be a number from 0 to 900000"),
    ({"retry.backoff.ms": -1}, "must be a number from 0 to 300000"),
    ({"max.request.size": 1}, "must be a number from 1000 to 1000000000"),
    ({"compression.level": 13}, "must be a number from -1 to 12"),
    ({"metadata.max.age.ms": 0}, "must be a number from 1 to 3600000"),
    ({"client.dns.lookup": "default"}, LOOKUPS),
    ({"partitioner": SECRET}, f"must be one of {CHOICES}"),
    ({"partitioner": hash}, f"must be one of {CHOICES}: {PARTITIONERS}"),
    ({"broker.address.family": 4}, "must be one of any, v4, v6"),
    ({"debug": ""}, EMPTY),
    ({"client.rack": 7}, EMPTY),
    ({"client.rack": f"{SECRET}\0"}, NO_NUL),
    ({"client.rack": f"{SECRET}\ud800"}, NO_TEXT),
    # TLS.
    ({**TLS, "ssl_context": ssl.create_default_context()}, f"can't be set: {CONTEXT}"),
    (
        {**TLS, "ssl.engine.factory.class": "a.B"},
        f"can't be set: it names a class of Java; {CONTEXT}",
    ),
    ({**TLS, "ssl.enabled.protocols": "TLSv1.3"}, CANT_HIDE),
    ({**TLS, "ssl_protocol": "TLSv1.3"}, CANT_HIDE),
    (
        {**TLS, "ssl.enabled.protocols": "SSLv3"},
        "must be TLSv1.2, TLSv1.3 or both, separated by a comma",
    ),
    ({**TLS, "ssl.cipher.suites": "TLS_AES_256_GCM_SHA384"}, SUITES),
    (
        {**TLS, "ssl.cipher.suites": "DEFAULT@SECLEVEL=0"},
        "asks for security level 0, which allows librdkafka to use TLS 1.0 and 1.1",
    ),
    ({**TLS, "ssl.curves.list": 7}, EMPTY),
    ({"ssl.curves.list": "P-256"}, IDLE),
    ({**TLS, "ssl.ca.location": f"/{SECRET}"}, "names a file that does not exist"),
    (
        {**TLS, "ssl.ca.pem": SECRET},
        "must be text in PEM format, from -----BEGIN to -----END",
    ),
    (
        {**TLS, "ssl_certificate_pem": SOME_CERTIFICATE, "ssl.key.pem": NEITHER},
        "has no PRIVATE KEY in it",
    ),
    ({**TLS, "ssl.key.pem": SOME_KEY, "ssl_certificate_pem": NEITHER}, "has no CERTIFICATE in it"),
    ({**TLS, "ssl_certfile": "c", "ssl_password": f"{SECRET}\0"}, NO_NUL),
    ({**TLS, "ssl_certfile": "c", "ssl_password": b"\xff"}, NO_TEXT),
    ({**TLS, "ssl.cafile": Path("a\udcff")}, NO_TEXT),
    # SASL.
    (
        {**OAUTH, "sasl.oauthbearer.client.secret": SECRET},
        f"can't be set: no token is fetched here; {TOKENS}",
    ),
    ({"security.protocol": "SASL_SSL", "sasl.mechanism": "AWS_MSK_IAM"}, MSK),
    (
        {"security.protocol": "SASL_SSL", "sasl.mechanism": "NTLM"},
        f"must be one of {MECHANISMS}, not 'NTLM'",
    ),
    (
        {**KERBEROS, "sasl_kerberos_domain_name": SECRET},
        f"can't be set: set 'sasl.kerberos.service.name', {ELSEWHERE}",
    ),
    ({**LOGIN, "sasl.kerberos.keytab": SECRET}, "has no effect with 'sasl.mechanism' PLAIN"),
    ({**KERBEROS, "sasl.kerberos.principal": 7}, EMPTY),
    (
        {**KERBEROS, "sasl.kerberos.min.time.before.relogin": "soon"},
        "must be a number from 0 to 86400000",
    ),
    ({**LOGIN, "proxy_url": f"socks5://me:{SECRET}@h:1"}, f"can't be set: {PROXY}"),
]


def cases(table: list[tuple[dict[str, Any], str]]) -> list[Any]:
    return [
        pytest.param(*case, id=f"{number}-{list(case[0])[-1]}") for number, case in enumerate(table)
    ]


@pytest.mark.parametrize(("properties", "says"), cases(REFUSED))
def test_the_message_for_a_refused_property(properties: dict[str, Any], says: str) -> None:
    assert refusal(properties) == f"properties: {list(properties)[-1]!r} {says}"


TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"queue.buffering.backpressure.threshold": 2},
        (
            "queue.buffering.backpressure.threshold=2 needs enable.idempotence=False, because with "
            "idempotence it is 1"
        ),
    ),
    (
        {"reconnect.backoff.ms": 200, "reconnect.backoff.max.ms": 100},
        "reconnect.backoff.ms=200 is more than reconnect.backoff.max.ms=100",
    ),
    (
        {"retry_backoff_ms": 200, "retry.backoff.max.ms": 100},
        "retry.backoff.ms=200 is more than retry.backoff.max.ms=100",
    ),
    ({"linger.ms": 120_000}, "linger.ms=120000 is not less than delivery_timeout"),
    (
        {"retry.backoff.ms": 120_000, "retry.backoff.max.ms": 120_000},
        "retry.backoff.ms=120000 is not less than delivery_timeout",
    ),
    (
        {"reconnect.backoff.ms": 120_000},
        "reconnect.backoff.ms=120000 is not less than delivery_timeout",
    ),
    (
        {"transaction_timeout_ms": 5000},
        "transaction_timeout_ms needs ProducerSettings(transactional_id=...)",
    ),
    (OAUTH, "'sasl.mechanism' OAUTHBEARER needs 'sasl_oauth_token_provider'"),
    (
        {**LOGIN, "sasl_plain_password": SECRET},
        "'sasl.password' and 'sasl_plain_password' are one setting; give one",
    ),
]


@pytest.mark.parametrize(("properties", "says"), cases(TOGETHER))
def test_the_message_for_conflicting_properties(properties: dict[str, Any], says: str) -> None:
    assert refusal(properties) == f"properties: {says}"


TRANSACTIONAL: list[tuple[dict[str, Any], str]] = [
    (
        {"enable.idempotence": False},
        "properties: enable_idempotence=False contradicts transactional_id",
    ),
    (
        {"transaction.timeout.ms": 5000, "linger.ms": 5000},
        "properties: linger.ms=5000 is not less than transaction.timeout.ms",
    ),
    (
        {"transaction.timeout.ms": 5000, "socket.timeout.ms": 5001},
        "properties: socket.timeout.ms=5001 is more than transaction.timeout.ms=5000",
    ),
]


@pytest.mark.parametrize(("properties", "says"), TRANSACTIONAL, ids=str)
def test_settings_that_conflict_with_transactions_are_refused(
    properties: dict[str, Any], says: str
) -> None:
    assert refusal(properties, transactional_id="id") == says


@pytest.mark.parametrize("field", ["client_id", "transactional_id"])
def test_a_name_that_librdkafka_would_truncate_is_refused(field: str) -> None:
    said = refusal({}, **{field: f"{SECRET}\0"})
    assert said == f"{field} contains a NUL character, where librdkafka would truncate it"
    said = refusal({}, **{field: f"{SECRET}\ud800"})
    assert said == f"{field} contains characters that cannot be encoded as UTF-8"


WORDS = (
    "is for the client of kafka-python, but this driver's client is librdkafka: leave it out, or "
    "use "
)


def test_an_existing_client_needs_the_driver_kafka_python() -> None:
    said = refusal({}, producer_factory=FakeClient)
    assert said == f"producer_factory {WORDS}the driver 'kafka-python'"
    with pytest.raises(SettingsError) as caught:
        librdkafka_config(ProducerSettings(producer=FakeClient()))
    assert str(caught.value) == f"producer {WORDS}the driver 'kafka-python'"


STATISTICS = "set 'statistics.interval.ms': then librdkafka's statistics are in statistics().client"

DECIDED = {
    "bootstrap.servers": "use ProducerSettings(bootstrap_servers=...)",
    "metadata.broker.list": "use ProducerSettings(bootstrap_servers=...)",
    "client.id": "use ProducerSettings(client_id=...)",
    "delivery.timeout.ms": "use ProducerSettings(delivery_timeout=...), in seconds",
    "message.timeout.ms": "use ProducerSettings(delivery_timeout=...), in seconds",
    "buffer.memory": "use ProducerSettings(max_buffered_bytes=...)",
    "queue.buffering.max.kbytes": "use ProducerSettings(max_buffered_bytes=...)",
    "queue.buffering.max.messages": "use ProducerSettings(max_in_flight=...)",
    "topic.metadata.propagation.max.ms": (
        "use ProducerSettings(unknown_topic_timeout=...), in seconds"
    ),
    "bootstrap_timeout_ms": "use ProducerSettings(start_timeout=...), in seconds",
    "transactional.id": "use ProducerSettings(transactional_id=...)",
    "key.serializer": "use ProducerSettings(key_serializer=...)",
    "value_serializer": "use ProducerSettings(value_serializer=...)",
    "max.block.ms": "send() does not block; use ProducerSettings(delivery_timeout=...)",
    "on_delivery": "the outcome of a record is what send() returns or raises",
    "delivery.report.only.error": "the outcome of a record is what send() returns or raises",
    "error_cb": "the driver serves the client's events itself",
    "stats_cb": STATISTICS,
    "metrics_enabled": (STATISTICS),
    "logger": "librdkafka logs to the module logging; set levels there",
    "log_level": "librdkafka logs to the module logging; set levels there",
    "oauth_cb": TOKENS,
    "queuing.strategy": "the records of a partition are sent in order",
    "partitioner.class": PARTITIONERS,
    "partitioner_cb": PARTITIONERS,
    "api_version": "librdkafka asks the brokers for their versions",
    "kafka_client": "the driver makes its own",
    "selector": "librdkafka itself waits for its connections",
    "socket_options": (
        "librdkafka takes them by name: 'socket.keepalive.enable', 'socket.nagle.disable', "
        "'socket.send.buffer.bytes', 'socket.receive.buffer.bytes'; or use the driver "
        "'kafka-python', which can"
    ),
    "socket_cb": "librdkafka itself makes its connections",
    "default.topic.config": "set its contents as properties; they apply to all topics",
    "opaque": "it is for programs in C",
    "plugin.library.paths": "no code is loaded by its path",
    "socket.blocking.max.ms": "librdkafka no longer uses it; leave it out",
}


@pytest.mark.parametrize(("given_", "way_out"), DECIDED.items())
def test_settings_of_the_producer_are_refused_with_advice(given_: str, way_out: str) -> None:
    for name in {given_, given_.replace(".", "_"), given_.replace("_", ".")}:
        assert refusal({name: SECRET}) == f"properties: {name!r} can't be set here: {way_out}"


def test_advice_names_only_existing_settings() -> None:
    for way_out in tables.DECIDED.values():
        _, called, rest = way_out.partition("ProducerSettings(")
        if called:
            assert hasattr(make(), rest.partition("=")[0])


@pytest.mark.parametrize(
    ("given_", "near"),
    [
        ("lingerms", "linger.ms"),
        ("queue.buffering.max.mss", "queue.buffering.max.ms"),
        ("compression", "compression.type"),
        ("sasl.plain.pasword", "sasl_plain_password"),
        ("max.request.sizes", "max.request.size"),
        ("ACKS", "acks"),
        ("schema.registry.url", None),
        ("group.id", None),
        ("", None),
    ],
)
def test_an_unknown_property_is_refused_with_the_nearest_known_name(
    given_: str, near: str | None
) -> None:
    hint = "" if near is None else f"; did you mean {near!r}?"
    said = refusal({given_: SECRET})
    assert said == f"properties: {given_!r} is not a setting of librdkafka's producers{hint}"


KNOWN = {
    *tables.SPELLINGS,
    *tables.DECIDED,
    *tables.LIBRDKAFKA.meanings,
    *tables.LIBRDKAFKA.refused,
}


@given(st.text(max_size=30).filter(lambda name: canonical_name(name) not in KNOWN))
def test_an_unknown_name_is_always_refused(name: str) -> None:
    assert "is not a setting of librdkafka's producers" in refusal({name: 1})


secrets = st.text(max_size=30).map(lambda text: f"{SECRET}{text}")
anything: st.SearchStrategy[Any] = st.one_of(
    secrets,
    secrets.map(lambda text: text.encode("utf-8", "replace")),
    secrets.map(lambda text: [text]),
    secrets.map(lambda text: f'{PLAIN_MODULE} required username="u" password="{text}'),
    secrets.map(lambda text: f"-----BEGIN PRIVATE KEY-----{text}-----END PRIVATE KEY-----"),
    secrets.map(lambda text: Path(text.replace("\0", "")[:40])),
)
#: The message shows the values of these.
SHOWN = {
    *(name for name, one in tables.SPELLINGS.items() if one in {"acks", "compression.type"}),
    "security_protocol",
    "sasl_mechanism",
    "sasl_mechanisms",
}


@given(
    st.sampled_from(["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]),
    st.sampled_from([None, *_security._MECHANISMS]),
    st.dictionaries(st.sampled_from(sorted(KNOWN - SHOWN)), anything, min_size=1, max_size=4),
)
def test_no_refusal_repeats_a_secret(
    protocol: str, mechanism: str | None, properties: dict[str, Any]
) -> None:
    try:
        made({"security.protocol": protocol, "sasl.mechanism": mechanism, **properties})
    except SettingsError as caught:
        error: BaseException | None = caught
        while error is not None:
            assert SECRET not in str(error)
            assert SECRET not in repr(error)
            error = error.__cause__ or error.__context__


# --- TLS and SASL --------------------------------------------------------------------------------


def security(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in config(properties).items()
        if "ssl" in name or "sasl" in name or "security" in name
    }


@pytest.mark.parametrize(
    "properties",
    [
        LOGIN,
        {**LOGIN, "security.protocol": "sasl_plaintext"},
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "me",
            "sasl_plain_password": SECRET,
        },
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanisms": "PLAIN",
            "sasl.jaas.config": f'{PLAIN_MODULE} required username="me" password="{SECRET}";',
        },
    ],
    ids=["kafka", "lower-case", "kafka-python", "jaas"],
)
def test_all_spellings_of_a_login_are_equivalent(properties: dict[str, Any]) -> None:
    assert security(properties) == LOGIN


def test_librdkafka_itself_escapes_a_user_name_for_scram() -> None:
    scram = {**LOGIN, "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "a,b=c"}
    assert security(scram) == scram


def test_the_token_provider_is_not_part_of_the_configuration() -> None:
    found = made({**OAUTH, "sasl_oauth_token_provider": Tokens()})
    assert found.tokens is not None
    assert (found.tokens.token(), found.tokens.extensions()) == ("t0k3n", {})
    assert "token" not in "".join(found.config)


def test_kerberos_is_passed_on() -> None:
    given_ = {
        **KERBEROS,
        "sasl.kerberos.service.name": "brokers",
        "sasl.kerberos.principal": "me",
        "sasl.kerberos.keytab": "/etc/me.keytab",
        "sasl.kerberos.kinit.cmd": "true",
        "sasl.kerberos.min.time.before.relogin": 0,
    }
    assert security(given_) == given_


PLAIN_TLS: dict[str, Any] = {
    **TLS,
    "enable.ssl.certificate.verification": True,
    "ssl.endpoint.identification.algorithm": "https",
}


def test_by_default_tls_checks_everything() -> None:
    assert security(TLS) == PLAIN_TLS


@pytest.mark.parametrize(
    ("properties", "verifies", "names_checked"),
    [
        ({"ssl.endpoint.identification.algorithm": "HTTPS"}, True, "https"),
        ({"ssl.endpoint.identification.algorithm": ""}, True, "none"),
        ({"ssl_check_hostname": "false"}, True, "none"),
        ({"enable.ssl.certificate.verification": "false"}, False, "none"),
        ({"ssl.protocol": "TLS", "ssl.enabled.protocols": "TLSv1.2,TLSv1.3"}, True, "https"),
    ],
    ids=str,
)
def test_only_explicit_settings_turn_checks_off(
    properties: dict[str, Any], verifies: bool, names_checked: str
) -> None:
    assert security({**TLS, **properties}) == {
        **TLS,
        "enable.ssl.certificate.verification": verifies,
        "ssl.endpoint.identification.algorithm": names_checked,
    }


def test_certificates_get_librdkafkas_names(certificate: Certificate) -> None:
    chain, key, both, ca = map(str, certificate)
    for given_, wanted in (
        ({"ssl_cafile": certificate.authority}, {"ssl.ca.location": ca}),
        ({"ssl.truststore.location": ca}, {"ssl.ca.location": ca}),
        (
            {"ssl.keystore.location": both},
            {"ssl.certificate.location": both, "ssl.key.location": both},
        ),
        (
            {"ssl_certfile": chain, "ssl_keyfile": key},
            {"ssl.certificate.location": chain, "ssl.key.location": key},
        ),
    ):
        assert security({**TLS, **given_}) == {**PLAIN_TLS, **wanted}


def test_certificates_in_the_settings_are_passed_on_as_text(certificate: Certificate) -> None:
    chain, key, _, ca = (path.read_text() for path in certificate)
    found = security(
        {
            **TLS,
            "ssl.truststore.certificates": " ".join(ca.split("\n")),
            "ssl.keystore.certificate.chain": " ".join(chain.split("\n")),
            "ssl.keystore.key": key,
        }
    )
    assert found == {
        **PLAIN_TLS,
        "ssl.ca.pem": ca,
        "ssl.certificate.pem": chain,
        "ssl.key.pem": key,
    }


@pytest.mark.parametrize("password", [SECRET, SECRET.encode()], ids=["str", "bytes"])
def test_a_key_with_a_password(password: Any, certificate: Certificate) -> None:
    locked = certificate.locked(SECRET)
    found = config({**TLS, "ssl.keystore.location": locked, "ssl_password": password})
    assert found["ssl.key.password"] == SECRET
    said = refusal({**TLS, "ssl.keystore.location": locked, "ssl_password": "another"})
    assert said == "properties: 'ssl_password' is not the password of the key"


def test_cipher_suites_and_librdkafkas_own_tls_settings() -> None:
    own = {"ssl.curves.list": "P-256", "ssl.sigalgs.list": "a", "ssl.providers": "default"}
    suites = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,ECDHE-ECDSA-AES128-GCM-SHA256"
    assert security({**TLS, **own, "ssl.cipher.suites": suites}) == {
        **PLAIN_TLS,
        **own,
        "ssl.cipher.suites": "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256",
    }


def test_a_file_named_like_a_keyword_of_librdkafka_stays_a_file(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("probe").write_bytes(certificate.authority.read_bytes())
    assert config({**TLS, "ssl.ca.location": "probe"})["ssl.ca.location"] == "./probe"


# --- with the library itself ---------------------------------------------------------------------

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"acks": 0},
    {"acks": "all", "enable.idempotence": "true", "retries": float("inf")},
    {"enable_idempotence": False, "max_in_flight_requests_per_connection": 100},
    {"compression_type": None},
    {"compression.type": "zstd", "compression.level": 3},
    {"linger_ms": 0.5, "batch_size": 0, "batch.num.messages": 5},
    {"max_request_size": 2**20, "receive.message.max.bytes": 2**20},
    {"request.timeout.ms": 1000, "metadata.max.age.ms": 1000},
    {"reconnect.backoff.ms": 5000, "retry.backoff.ms": 5000},
    {"reconnect.backoff.max.ms": 0, "retry.backoff.max.ms": 1},
    {"reconnect.backoff.ms": 5, "reconnect.backoff.max.ms": 5},
    {"client.dns.lookup": "use_all_dns_ips", "client.rack": "r1", "debug": "eos"},
    LOGIN,
    {**LOGIN, "sasl.mechanism": "SCRAM-SHA-256"},
    {**OAUTH, "sasl_oauth_token_provider": Tokens()},
    TLS,
    {**TLS, "enable.ssl.certificate.verification": False},
    {**TLS, "ssl.curves.list": "P-256", "ssl.cipher.suites": "TLS_RSA_WITH_AES_128_GCM_SHA256"},
]


def accept(found: LibrdkafkaConfig) -> None:
    library: Any = pytest.importorskip("confluent_kafka")
    # Without addresses, the client does not connect.
    config = {key: value for key, value in found.config.items() if key != "bootstrap.servers"}
    library.Producer(config, logger=logging.getLogger("librdkafka"))


@pytest.mark.parametrize("properties", ACCEPTED, ids=map(str, range(len(ACCEPTED))))
def test_the_library_accepts_our_configurations(properties: dict[str, Any]) -> None:
    accept(made(properties))


@pytest.mark.parametrize("properties", ACCEPTED[4:], ids=map(str, range(4, len(ACCEPTED))))
def test_the_library_accepts_our_configurations_for_transactions(
    properties: dict[str, Any],
) -> None:
    accept(made(properties, transactional_id="id"))


def test_the_library_accepts_the_bounds_of_each_number() -> None:
    for name, kind in tables.KINDS.items():
        if isinstance(kind, tables.Number) and not name.startswith("metadata.recovery"):
            for value in (kind.minimum, kind.maximum):
                accept(
                    made(
                        {name: value, "enable.idempotence": False},
                        delivery_timeout=timedelta(seconds=1e6),
                    )
                    if name != "transaction.timeout.ms"
                    else made({name: value}, transactional_id="id")
                )


def test_the_library_accepts_timeouts_and_limits_of_any_size() -> None:
    for seconds in (1e-4, 0.1, timedelta(seconds=1e9)):
        accept(made({}, delivery_timeout=seconds, unknown_topic_timeout=seconds))
        accept(made({}, delivery_timeout=seconds, transactional_id="id"))
    accept(made({}, max_in_flight=2**40, max_buffered_bytes=2**60))


def test_the_library_accepts_certificates(certificate: Certificate) -> None:
    locked = certificate.locked(SECRET)
    for given_ in (
        {"ssl_cafile": certificate.authority, "ssl.keystore.location": certificate.both},
        {"ssl_certfile": certificate.chain, "ssl_keyfile": certificate.key},
        {"ssl.keystore.location": locked, "ssl.key.password": SECRET.encode()},
        {
            "ssl.ca.pem": " ".join(certificate.authority.read_text().split("\n")),
            "ssl.certificate.pem": " ".join(certificate.chain.read_text().split("\n")),
            "ssl.key.pem": locked.read_text().partition("-----BEGIN CERT")[0],
            "ssl.key.password": SECRET,
        },
        {"ssl.ca.location": certificate.authority.parent},
    ):
        accept(made({**TLS, **given_}))


def test_the_other_driver_accepts_the_same_properties() -> None:
    for properties in ACCEPTED:
        if not {*map(canonical_name, properties)} - KAFKA_PYTHON.keys() - _security.NAMES:
            client_config(make(properties=properties), KAFKA_PYTHON)
