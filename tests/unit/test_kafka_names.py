"""Settings under Kafka's own names: .properties files, mappings and TOML tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError
from anyio_sendproducer._kafka_names import CLIENT_PROPERTIES, MANAGED, closest
from anyio_sendproducer._properties_file import decode, parse, trim
from tests.support.paths import ROOT

SECRET = "hunter2-s3cr3t"

#: Texts, and what Java's Properties.load() reads from them. tests/kafka compares them with Java.
CORPUS: list[dict[str, Any]] = json.loads(
    (ROOT / "tests/support/properties_corpus.json").read_text(encoding="utf-8")
)


def found_in(text: str) -> dict[str, str] | None:
    try:
        return parse(text)
    except SettingsError:
        return None


def test_a_file_is_read_as_java_reads_it() -> None:
    assert len(CORPUS) > 100
    wrong = [case["text"] for case in CORPUS if found_in(case["text"]) != case["found"]]
    assert wrong == []


def escaped(text: str) -> str:
    """A text as Java's ``Properties.store()`` writes it."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02X}{units[i + 1]:02X}" for i in range(0, len(units), 2))


@given(st.dictionaries(st.text(), st.text()))
@example({"": ""})
@example({"name": "\N{GRINNING FACE}"})
def test_every_text_can_be_escaped(properties: dict[str, str]) -> None:
    text = "".join(f"{escaped(name)}={escaped(value)}\n" for name, value in properties.items())
    assert parse(text) == properties


@given(st.text())
def test_any_text_is_parsed_or_a_settings_error(text: str) -> None:
    found_in(text)


def test_a_wrong_escape() -> None:
    with pytest.raises(SettingsError, match="must be followed by four hexadecimal digits"):
        parse("a=\\u12")


def test_a_file_with_a_byte_order_mark_is_utf_8_and_another_may_be_latin_1() -> None:
    assert decode(b"client.id=caf\xe9") == "client.id=caf\xe9"
    assert decode(b"\xef\xbb\xbfclient.id=caf\xc3\xa9") == "client.id=caf\xe9"
    with pytest.raises(SettingsError, match="begins with a byte order mark of UTF-8, but is not"):
        decode(b"\xef\xbb\xbfclient.id=caf\xe9")


def test_trim_removes_spaces_that_java_keeps() -> None:
    assert parse("password = a b \t") == {"password": "a b \t"}
    assert trim(" \x00\t\f\r\n\x1fa b\x1f ") == "a b"
    assert trim("\xa0a\u2003") == "\xa0a\u2003"


FILE = f"""\
# The orders service
bootstrap.servers = broker-1:9092,\\
                    broker-2:9092
client.id:orders\t
transactional.id orders-1
delivery.timeout.ms=30000
buffer.memory=1000000
key.serializer=org.apache.kafka.common.serialization.StringSerializer
value.serializer=org.apache.kafka.common.serialization.ByteArraySerializer
linger.ms=5
! a password
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
    username="me" password="{SECRET}";
"""
JAAS = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    f'username="me" password="{SECRET}";'
)
WANTED = ProducerSettings(
    bootstrap_servers="broker-1:9092,broker-2:9092",
    client_id="orders",
    transactional_id="orders-1",
    delivery_timeout=30,
    max_buffered_bytes=1_000_000,
    key_serializer=str.encode,
    properties={"linger.ms": "5", "sasl.jaas.config": JAAS},
)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_properties_file(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "producer.properties"
    path.write_text(mark + FILE, encoding="utf-8")
    assert ProducerSettings.from_properties(path) == WANTED
    assert ProducerSettings.from_properties(str(path)) == WANTED


def test_a_mapping_of_kafkas_names() -> None:
    assert ProducerSettings.from_properties(parse(FILE)) == WANTED


def test_a_mapping_may_have_python_values() -> None:
    settings = ProducerSettings.from_properties(
        {
            "bootstrap.servers": ["a:1", "b:2"],
            "delivery.timeout.ms": 7_200_000,
            "value.serializer": str.encode,
            "linger.ms": 5,
            "client_id": " me ",
        }
    )
    assert settings.addresses == ("a:1", "b:2")
    assert settings.delivery_timeout == 7200
    assert settings.value_serializer is str.encode
    assert settings.properties == {"linger.ms": 5}
    assert settings.client_id == "me"


@pytest.mark.parametrize("read", [ProducerSettings.from_properties, ProducerSettings.from_mapping])
def test_a_partitioner_that_is_not_callable_is_a_property_of_the_client(
    read: Callable[[dict[str, Any]], ProducerSettings],
) -> None:
    def choose(*_: object) -> int:
        return 0

    class OfKafkaPython:
        def partition(self, *_: object) -> int:
            return 0

    assert read({"bootstrap_servers": "a:1", "partitioner": choose}).partitioner is choose
    assert read({"bootstrap_servers": "a:1", "partitioner": None}).partitioner is None
    for one in ("murmur2", OfKafkaPython()):
        settings = read({"bootstrap_servers": "a:1", "partitioner": one})
        assert settings.partitioner is None
        assert settings.properties == {"partitioner": one}


def test_a_suggestion_prefers_a_field_to_a_property() -> None:
    with pytest.raises(SettingsError, match=r"'partitoner' is not .* did you mean 'partitioner'"):
        ProducerSettings.from_mapping({"bootstrap_servers": "a:1", "partitoner": None})


WRONG: list[tuple[dict[Any, Any], str]] = [
    ({1: 2}, "the name of a setting must be a str, not 1"),
    ({"delivery.timeout.ms": "soon"}, "'delivery.timeout.ms' must be a whole number of 0 or more"),
    ({"delivery.timeout.ms": True}, "'delivery.timeout.ms' must be a whole number of 0 or more"),
    ({"delivery.timeout.ms": "9" * 18}, "'delivery.timeout.ms' is too long"),
    ({"delivery.timeout.ms": 10**17}, "'delivery.timeout.ms' is too long"),
    ({"buffer.memory": -1}, "'buffer.memory' must be a whole number of 0 or more"),
    (
        {"value.serializer": "io.confluent.kafka.serializers.KafkaAvroSerializer"},
        "'value.serializer' names a class of Java that has no counterpart here: leave it out, and",
    ),
    ({"linger.ms": 1, "linger_ms": 1}, "'linger.ms' and 'linger_ms' are one setting; give one"),
    ({"client.id": "a", "client_id": "b"}, "'client.id' and 'client_id' are one setting; give one"),
    ({}, "bootstrap_servers is missing"),
    ({"bootstrap.servers": "here"}, "bootstrap_servers: 'here' is not host:port"),
]


@pytest.mark.parametrize(("properties", "says"), WRONG, ids=str)
def test_wrong_properties(properties: dict[Any, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProducerSettings.from_properties(properties)
    assert str(caught.value).startswith(says)


def test_a_wrong_properties_file(tmp_path: Path) -> None:
    path = tmp_path / "producer.properties"

    def said() -> str:
        with pytest.raises(SettingsError) as caught:
            ProducerSettings.from_properties(path)
        assert SECRET not in str(caught.value)
        return str(caught.value)

    assert said() == f"{path} can't be read: No such file or directory"
    path.write_text(f"ssl.key.password={SECRET}\\u12")
    assert said() == f"{path}: \\u must be followed by four hexadecimal digits"
    path.write_text(f"delivery.timeout.ms={SECRET}")
    assert said().startswith(f"{path}: 'delivery.timeout.ms' must be a whole number")
    path.write_text(f"ssl.key.password={SECRET}")
    assert said().startswith(f"{path}: bootstrap_servers is missing")


@pytest.mark.parametrize("read", [ProducerSettings.from_properties, ProducerSettings.from_toml])
def test_a_path_that_no_file_can_have(read: Callable[[str], object]) -> None:
    with pytest.raises(SettingsError, match=r"^a\\x00b can't be read: embedded null"):
        read("a\0b")
    with pytest.raises(SettingsError, match=r"^\\ud800 can't be read: 'utf-8' codec can't encode"):
        read("\ud800")


# --- in from_mapping and from_toml ---------------------------------------------------------------


def test_a_mapping_may_mix_both_kinds_of_names() -> None:
    settings = ProducerSettings.from_mapping(
        {
            "bootstrap.servers": "a:1",
            "close-timeout": 5,
            "delivery_timeout_ms": "30000",
            "linger-ms": 5,
            "acks": 1,
            "ssl": {"ca": {"location": "/ca.pem"}},
            "properties": {"batch.size": 1000},
        }
    )
    assert settings == ProducerSettings(
        bootstrap_servers="a:1",
        close_timeout=5,
        delivery_timeout=30,
        properties={
            "linger_ms": 5,
            "acks": 1,
            "ssl.ca.location": "/ca.pem",
            "batch.size": 1000,
        },
    )


def test_a_toml_file_may_have_kafkas_names(tmp_path: Path) -> None:
    path = tmp_path / "kafka.toml"
    path.write_text(
        '[kafka]\nbootstrap.servers = "a:1"\ndelivery.timeout.ms = 30000\nlinger.ms = 5\nacks = 1\n'
    )
    assert ProducerSettings.from_toml(path, "kafka") == ProducerSettings(
        bootstrap_servers="a:1", delivery_timeout=30, properties={"linger.ms": 5, "acks": 1}
    )


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"close.timeout": 5}, "'close.timeout' is not a setting; did you mean 'close_timeout'?"),
        ({"kafka": {"linger.ms": 5}}, "'kafka' is not a setting, but a table"),
        ({"compresion.type": 5}, "'compresion.type' is not a setting; did you mean properties={'c"),
        ({"acks": 1, "properties": {"acks": 1}}, "'acks' and 'acks' are one setting; give one"),
        (
            {"delivery_timeout": 1, "delivery.timeout.ms": 1},
            "'delivery_timeout' and 'delivery.timeout.ms' are one setting; give one",
        ),
    ],
    ids=str,
)
def test_a_wrong_mapping(mapping: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProducerSettings.from_mapping(mapping)
    assert str(caught.value).startswith(says)


# --- in the environment --------------------------------------------------------------------------

#: Variables of other programs whose names begin with KAFKA_.
FOREIGN = {
    "KAFKA_HOME": "/opt/kafka",
    "KAFKA_OPTS": "-Xmx1g",
    "KAFKA_HEAP_OPTS": "-Xmx1g",
    "KAFKA_JMX_OPTS": "",
    "KAFKA_LOG4J_OPTS": "",
    "KAFKA_ADVERTISED_LISTENERS": "PLAINTEXT://a:1",
    "KAFKA_NODE_ID": "1",
    "KAFKA_DEBUG": "y",
}


def of_kubernetes(service: str) -> dict[str, str]:
    """The variables that Kubernetes sets for a service with one port."""
    port = f"{service}_PORT_9092_TCP"
    return {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "9092",
        f"{service}_SERVICE_PORT_TCP_CLIENT": "9092",
        f"{service}_PORT": "tcp://10.0.0.1:9092",
        port: "tcp://10.0.0.1:9092",
        f"{port}_PROTO": "tcp",
        f"{port}_PORT": "9092",
        f"{port}_ADDR": "10.0.0.1",
    }


def test_variables_of_other_programs_are_ignored() -> None:
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": "a:1",
        **FOREIGN,
        **of_kubernetes("KAFKA"),
        **of_kubernetes("KAFKA_BOOTSTRAP"),
    }
    settings = ProducerSettings.from_env(environment=environment)
    assert settings == ProducerSettings(bootstrap_servers="a:1")


def test_with_a_custom_prefix_only_variables_of_kubernetes_are_ignored() -> None:
    environment = {"P_BOOTSTRAP_SERVERS": "a:1", **of_kubernetes("P")}
    assert ProducerSettings.from_env("P", environment).addresses == ("a:1",)
    with pytest.raises(SettingsError, match="'P_HOME' is not a setting: the settings are P_BOOTS"):
        ProducerSettings.from_env("P", {**environment, "P_HOME": "/"})


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("KAFKA_BOOTSTRAP_SERVER", "'KAFKA_BOOTSTRAP_SERVER' is .* mean 'KAFKA_BOOTSTRAP_SERVERS'"),
        ("KAFKA_DELIVERY_TIMEOUT_MS", r"use ProducerSettings\(delivery_timeout=\.\.\.\), in sec"),
        ("KAFKA_SASL_PASSWORD", "is a setting of the client: use KAFKA_PROPERTIES_SASL_PASSWORD"),
        ("KAFKA_LINGR_MS", r"did you mean KAFKA_PROPERTIES_LINGER_MS\?"),
    ],
)
def test_a_variable_that_resembles_a_setting_is_not_ignored(variable: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        ProducerSettings.from_env("KAFKA", {"KAFKA_BOOTSTRAP_SERVERS": "a:1", variable: SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", [None, ""])
def test_the_environment_must_have_an_address(address: str | None) -> None:
    environment = {} if address is None else {"KAFKA_BOOTSTRAP_SERVERS": address}
    with pytest.raises(SettingsError, match="the environment variable KAFKA_BOOTSTRAP_SERVERS is"):
        ProducerSettings.from_env(environment=environment)
    service = {**environment, "KAFKA_SERVICE_NAME": "kafka.test"}
    assert ProducerSettings.from_env(environment=service).service_name == "kafka.test"


# --- guesses -------------------------------------------------------------------------------------


@given(st.sampled_from(sorted({*CLIENT_PROPERTIES, *MANAGED})), st.data())
def test_closest_finds_a_name_with_one_wrong_letter(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("qxz"))
    assert closest(f"{name[:place]}{letter}{name[place + 1 :]}", [name]) == name
    assert closest(f"{name[:place]}{letter}{name[place:]}", [name]) == name


def test_closest_ignores_names_that_share_only_their_end() -> None:
    assert closest("api_version_auto_timeout_ms", CLIENT_PROPERTIES) is None
    assert closest("servers", {*CLIENT_PROPERTIES, *MANAGED}) is None
