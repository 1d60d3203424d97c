"""How settings become kafka-python's configuration, and which settings are refused."""

from __future__ import annotations

import dataclasses
import functools
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError
from anyio_sendproducer._kafka_names import canonical_name
from anyio_sendproducer.drivers import DriverName, make_driver
from anyio_sendproducer.drivers.kafka_python import _config as _kafka_config
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.librdkafka import _properties as _librdkafka_names
from anyio_sendproducer.testing import FakeDriver

SECRET = "hunter2-s3cr3t"
#: kafka-python's settings and their defaults, as the driver passes them on.
KNOWN: Final[dict[str, Any]] = cast("Any", _kafka_python).KafkaProducer.DEFAULT_CONFIG
make = functools.partial(
    cast("Callable[..., ProducerSettings]", ProducerSettings), bootstrap_servers="a:1,b:2"
)


def config(**properties: Any) -> dict[str, Any]:
    settings = make(properties=properties)
    return _kafka_config.client_config(settings, KNOWN)


def refusal(**properties: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        config(**properties)
    return str(caught.value)


def test_the_default_configuration() -> None:
    assert config() == {
        "bootstrap_servers": ["a:1", "b:2"],
        "client_id": "anyio-sendproducer",
        "batch_size": 256 * 1024,
        "linger_ms": 0,
        "metrics_enabled": False,
        "receive_message_max_bytes": 4 * 1024 * 1024,
        "reconnect_backoff_max_ms": 1000,
        "request_timeout_ms": 30_000,
        "max_block_ms": 0,
        "delivery_timeout_ms": 2**31 - 1,
    }


@pytest.mark.parametrize(("seconds", "wanted"), [(600, 30_000), (10, 5000), (0.5, 1000)])
def test_the_request_timeout_leaves_time_for_a_second_request(seconds: float, wanted: int) -> None:
    settings = ProducerSettings(bootstrap_servers="a:1", delivery_timeout=seconds)
    assert _kafka_config.client_config(settings, KNOWN)["request_timeout_ms"] == wanted


@pytest.mark.parametrize(
    ("codec", "package", "attributes"),
    [
        ("lz4", "lz4", ("lz4", "lz4f", "lz4framed")),
        ("snappy", "python-snappy", ("snappy",)),
        ("zstd", "zstandard", ("zstd",)),
    ],
)
def test_a_codec_whose_package_is_not_installed(
    codec: str, package: str, attributes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(properties={"compression.type": codec})
    # This does not connect.
    make_driver("kafka-python", settings)
    for attribute in attributes:
        monkeypatch.setattr(cast("Any", _kafka_python).codec, attribute, None)
    with pytest.raises(SettingsError) as caught:
        make_driver("kafka-python", settings)
    assert str(caught.value) == (
        f"properties: 'compression.type': for {codec}, kafka-python needs the package {package}: "
        'pip install ".[compression]" in a checkout of anyio-sendproducer, or use '
        'driver="confluent", which needs no package for it'
    )
    # These need no package.
    make_driver("kafka-python", settings.with_property("compression.type", "gzip"))
    make_driver("confluent", settings)


def test_the_client_knows_all_default_settings() -> None:
    assert config().keys() <= KNOWN.keys()


def test_each_configuration_is_a_new_dict() -> None:
    config()["batch_size"] = 1
    assert config()["batch_size"] == 256 * 1024


def test_properties_override_our_defaults() -> None:
    changed = config(batch_size=1000, linger_ms=7, metrics_enabled=True)
    assert (changed["batch_size"], changed["linger_ms"], changed["metrics_enabled"]) == (
        1000,
        7,
        True,
    )


@pytest.mark.parametrize(
    ("given_", "name", "value", "wanted"),
    [
        ("linger.ms", "linger_ms", 5, 5),
        ("linger_ms", "linger_ms", "5", 5),
        ("batch.size", "batch_size", " 16384 ", 16384),
        ("request.timeout.ms", "request_timeout_ms", 1.5, 2),
        ("request.timeout.ms", "request_timeout_ms", "5000.0", 5000),
        ("linger.ms", "linger_ms", "0.5", 0.5),
        ("retries", "retries", "3", 3),
        ("retries", "retries", float("inf"), float("inf")),
        ("acks", "acks", "all", "all"),
        ("acks", "acks", "-1", "all"),
        ("acks", "acks", -1, "all"),
        ("acks", "acks", "0", 0),
        ("acks", "acks", 0, 0),
        ("acks", "acks", "1", 1),
        ("acks", "acks", 1, 1),
        ("compression.type", "compression_type", "none", None),
        ("compression.type", "compression_type", None, None),
        ("compression.type", "compression_type", "zstd", "zstd"),
        ("enable.idempotence", "enable_idempotence", "false", False),
        ("enable.idempotence", "enable_idempotence", " True ", True),
        ("enable.idempotence", "enable_idempotence", False, False),
        ("security.protocol", "security_protocol", "plaintext", "PLAINTEXT"),
        ("api_version", "api_version", (2, 3), (2, 3)),
    ],
    ids=repr,
)
def test_values_may_be_text_or_python_values(
    given_: str, name: str, value: Any, wanted: Any
) -> None:
    made = config(**{given_: value})[name]
    assert made == wanted
    assert type(made) is type(wanted)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_all_four_compressions_are_known(codec: str) -> None:
    assert config(compression_type=codec)["compression_type"] == codec


@pytest.mark.parametrize(
    ("given_", "near"),
    [
        ("lingerms", "linger_ms"),
        ("linger", "linger_ms"),
        ("compression", "compression_type"),
        ("sasl.plain.pasword", "sasl.plain.password"),
        ("batch.sizes", "batch.size"),
        ("batch_sizes", "batch_size"),
        ("ACKS", "acks"),
        ("schema.registry.url", None),
        ("", None),
    ],
)
def test_the_error_for_an_unknown_property_suggests_the_nearest_name(
    given_: str, near: str | None
) -> None:
    message = refusal(**{given_: 1})
    assert f"{given_!r} is not a setting of kafka-python" in message
    if near is None:
        assert "did you mean" not in message
    else:
        assert message.endswith(f"; did you mean {near!r}?")


def test_no_error_suggests_a_property_that_cannot_be_set() -> None:
    assert "did you mean" not in refusal(buffer_memori=1)
    assert "client_id'?" not in refusal(client_ids=1)


MANAGED = {
    "bootstrap.servers": "ProducerSettings(bootstrap_servers=...)",
    "bootstrap_timeout_ms": "ProducerSettings(start_timeout=...)",
    "buffer.memory": "ProducerSettings(max_buffered_bytes=...)",
    "client.id": "ProducerSettings(client_id=...)",
    "delivery.timeout.ms": "ProducerSettings(delivery_timeout=...)",
    "key.serializer": "ProducerSettings(key_serializer=...)",
    "value_serializer": "ProducerSettings(value_serializer=...)",
    "max.block.ms": "ProducerSettings(delivery_timeout=...)",
    "kafka_client": "the driver makes its own",
    "transactional.id": "transactional_id",
}


@pytest.mark.parametrize(("given_", "alternative"), MANAGED.items())
def test_the_error_for_a_managed_property_names_the_alternative(
    given_: str, alternative: str
) -> None:
    for name in (given_, given_.replace(".", "_"), given_.replace("_", ".")):
        message = refusal(**{name: SECRET})
        assert f"{name!r} can't be set here" in message
        assert alternative in message
        assert SECRET not in message


@pytest.mark.parametrize("table", [_kafka_config._MANAGED, _librdkafka_names.DECIDED])
def test_the_named_alternatives_are_settings(
    table: Mapping[str, str],
) -> None:
    names = re.findall(r"ProducerSettings\((\w+)=", "\n".join(table.values()))
    assert len(names) > 5
    assert set(names) <= {field.name for field in dataclasses.fields(ProducerSettings)}


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"acks": 2}, "'acks' must be 0, 1 or 'all', not 2"),
        ({"acks": "ALL"}, "'acks' must be 0, 1 or 'all', not 'ALL'"),
        ({"acks": None}, "'acks' must be 0, 1 or 'all', not None"),
        ({"acks": ["all"]}, "'acks' must be 0, 1 or 'all', not list"),
        ({"acks": True}, "'acks' must be 0, 1 or 'all', not True"),
        ({"acks": False}, "'acks' must be 0, 1 or 'all', not False"),
        ({"compression.type": "brotli"}, "'compression.type' must be one of gzip, snappy, lz4"),
        ({"compression_type": "GZIP"}, "none, not 'GZIP'"),
        ({"compression_type": ["gzip"]}, "none, not list"),
        ({"compression_type": ""}, "none, not ''"),
        ({"security.protocol": "TLS"}, "'security.protocol' must be one of PLAINTEXT, SSL, SASL_"),
        ({"security_protocol": ["SSL"]}, "SASL_SSL, not list"),
        ({"enable.idempotence": "yes"}, "'enable.idempotence' must be true or false"),
        ({"enable_idempotence": 1}, "'enable_idempotence' must be true or false"),
        ({"linger.ms": -1}, "'linger.ms' must be a number of 0 or more"),
        ({"linger.ms": "-1"}, "'linger.ms' must be a number of 0 or more"),
        ({"linger_ms": "soon"}, "'linger_ms' must be a number of 0 or more"),
        ({"linger_ms": "inf"}, "'linger_ms' must be a number of 0 or more"),
        ({"linger_ms": "1e3"}, "'linger_ms' must be a number of 0 or more"),
        ({"linger_ms": True}, "'linger_ms' must be a number of 0 or more"),
        ({"linger_ms": None}, "'linger_ms' must be a number of 0 or more"),
        ({"linger_ms": float("nan")}, "'linger_ms' must be a number of 0 or more"),
        ({"batch.size": [1]}, "'batch.size' must be a whole number of 0 or more"),
        ({"max.request.size": 1.5}, "'max.request.size' must be a whole number of 1 or more"),
        ({"max.request.size": "1.5"}, "'max.request.size' must be a whole number of 1 or more"),
        ({"batch_size": 0.5}, "'batch_size' must be a whole number of 0 or more"),
        ({"request.timeout.ms": 0}, "'request.timeout.ms' must be a number from 1 to 2147483647"),
        ({"request.timeout.ms": 2**31}, "'request.timeout.ms' must be a number from 1 to 214748"),
        ({"request.timeout.ms": float("inf")}, "'request.timeout.ms' must be a number from 1 to"),
        (
            {"request.timeout.ms": 2**31 - 1, "linger.ms": 1},
            "request.timeout.ms and linger.ms are together more than 2147483647",
        ),
        ({"send.buffer.bytes": 1.5}, "'send.buffer.bytes' must be a whole number from -1 to 2147"),
        ({"receive.buffer.bytes": "large"}, "'receive.buffer.bytes' must be a whole number from"),
        ({"connections.max.idle.ms": 0}, "'connections.max.idle.ms' must be a number of 1 or more"),
        ({"partitioner": "consistent"}, "'partitioner' must be 'murmur2_random', which is the def"),
        ({"partitioner": dict}, "or an instance of a kafka.partitioner.Partitioner"),
    ],
    ids=str,
)
def test_the_error_for_a_wrong_value_names_its_property(
    properties: dict[str, Any], says: str
) -> None:
    message = refusal(**properties)
    assert message.startswith("properties: ")
    assert says in message


@pytest.mark.parametrize("name", ["request_timeout_ms", "transaction_timeout_ms"])
def test_a_timeout_may_be_the_largest_that_a_broker_can_get(name: str) -> None:
    """Kafka's Java client has the same limit."""
    settings = make(transactional_id="id", properties={name: 2**31 - 1})
    assert _kafka_config.client_config(settings, KNOWN)[name] == 2**31 - 1


def test_a_buffer_may_be_as_large_as_with_kafkas_java_client() -> None:
    """The system limits its size."""
    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, 2**31 - 1)
    assert option in config(receive_buffer_bytes=2**31 - 1)["socket_options"]


@pytest.mark.parametrize("own", [None, [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)]])
def test_the_sizes_of_buffers_are_options_of_the_socket(own: Any) -> None:
    properties = {} if own is None else {"socket_options": own}
    before = own or KNOWN["socket_options"]
    sized = config(receive_buffer_bytes="70000", send_buffer_bytes=80_000, **properties)
    assert sized["socket_options"] == [
        *before,
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 70_000),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, 80_000),
    ]
    assert KNOWN["socket_options"] == [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for default in (None, 0, -1):
        changed = config(send_buffer_bytes=default, **properties)
        assert changed.get("socket_options") == own
        assert "send_buffer_bytes" not in changed


def test_the_error_for_a_huge_number_does_not_show_it() -> None:
    """Python refuses to convert it from or to a text."""
    huge = 10**5000
    assert "must be a number of 0 or more" in refusal(linger_ms="9" * 5000)
    assert "linger.ms=int is not less than delivery_timeout" in refusal(linger_ms=huge)
    both = {"enable_idempotence": True, "max_in_flight_requests_per_connection": huge}
    assert "connection=int contradicts enable_idempotence=True" in refusal(**both)


def test_the_default_partitioner_may_be_named() -> None:
    assert config(partitioner="murmur2_random") == config()


@pytest.mark.parametrize("name", ["linger.ms", "retry.backoff.ms", "reconnect.backoff.ms"])
def test_a_wait_must_be_shorter_than_delivery_timeout(name: str) -> None:
    assert config(**{name: 119_999})[name.replace(".", "_")] == 119_999
    says = f"properties: {name}=120000 is not less than delivery_timeout"
    assert refusal(**{name: 120_000}) == says


def test_the_linger_must_be_shorter_than_the_transaction_timeout() -> None:
    settings = ProducerSettings(
        bootstrap_servers="a:1", properties={"linger.ms": 60_000}, transactional_id="id"
    )
    with pytest.raises(SettingsError, match=r"linger.ms=60000 is not less than transaction.time"):
        _kafka_config.client_config(settings, KNOWN)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"acks": 1}, "acks=1 contradicts enable_idempotence=True"),
    ({"acks": "0"}, "acks=0 contradicts enable_idempotence=True"),
    ({"retries": 0}, "retries=0 contradicts enable_idempotence=True"),
    ({"retries": "0"}, "retries=0 contradicts enable_idempotence=True"),
    (
        {"max.in.flight.requests.per.connection": 6},
        "max_in_flight_requests_per_connection=6 contradicts enable_idempotence=True",
    ),
]


@pytest.mark.parametrize(("properties", "says"), CONTRADICTIONS, ids=str)
def test_settings_that_contradict_transactions_are_refused(
    properties: dict[str, Any], says: str
) -> None:
    settings = ProducerSettings(
        bootstrap_servers="a:1", properties=properties, transactional_id="id"
    )
    with pytest.raises(SettingsError) as caught:
        _kafka_config.client_config(settings, KNOWN)
    assert says.replace("enable_idempotence=True", "transactional_id") in str(caught.value)


def test_settings_of_transactions() -> None:
    settings = ProducerSettings(
        bootstrap_servers="a:1",
        properties={"transaction.timeout.ms": "5000"},
        transactional_id="id",
    )
    made = _kafka_config.client_config(settings, KNOWN)
    assert (made["transactional_id"], made["transaction_timeout_ms"]) == ("id", 5000)
    assert "transactional_id" not in config()
    assert "transaction_timeout_ms needs ProducerSettings(transactional_id=...)" in refusal(
        transaction_timeout_ms=5000
    )
    with pytest.raises(SettingsError, match="enable_idempotence=False contradicts transactional"):
        _kafka_config.client_config(settings.with_property("enable.idempotence", "false"), KNOWN)


@pytest.mark.parametrize(
    ("properties", "says"),
    CONTRADICTIONS,
    ids=str,
)
def test_settings_that_contradict_requested_idempotence_are_refused(
    properties: dict[str, Any], says: str
) -> None:
    assert says in refusal(**properties, **{"enable.idempotence": "true"})
    config(**properties, enable_idempotence=False)
    config(**properties)


def test_settings_that_agree_with_idempotence_are_accepted() -> None:
    made = config(
        enable_idempotence=True, acks=-1, retries=1, max_in_flight_requests_per_connection=5
    )
    assert made["enable_idempotence"] is True


shown = {"acks", "compression_type", "security_protocol"}
names = (st.sampled_from(sorted(KNOWN)) | st.text(max_size=20)).filter(
    lambda name: canonical_name(name) not in shown
)
secrets = st.text().map(lambda text: f"{SECRET}{text}")
values = st.one_of(
    secrets,
    secrets.map(lambda secret: [secret]),
    secrets.map(lambda secret: {"password": secret}),
    secrets.map(lambda secret: secret.encode("utf-8", "replace")),
)


@given(st.dictionaries(names, values, max_size=3))
def test_no_message_repeats_the_value_of_a_property(properties: dict[str, Any]) -> None:
    try:
        settings = make(properties={**properties, "enable_idempotence": True, "retries": 0})
    except SettingsError:
        return  # two spellings of one name
    with pytest.raises(SettingsError) as caught:
        _kafka_config.client_config(settings, KNOWN)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


# --- choosing a driver ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "kafka-python"])
def test_the_default_driver_is_kafka_python_and_checks_the_settings(
    name: DriverName | None,
) -> None:
    assert isinstance(make_driver(name, make()), _kafka_python.KafkaPythonDriver)
    with pytest.raises(SettingsError, match="did you mean 'linger_ms'"):
        make_driver(name, make(properties={"lingerms": 5}))


def test_a_driver_factory_gets_the_settings() -> None:
    fake = FakeDriver()
    settings = make(properties={"whatever": "the factory knows"})
    assert make_driver(fake, settings) is fake
    assert fake.settings is settings


@pytest.mark.parametrize("name", ["librdkafka", "", 7])
def test_the_error_for_an_unknown_driver_names_it(name: Any) -> None:
    with pytest.raises(SettingsError, match=f"driver must be .* not {name!r}"):
        make_driver(name, make())
