"""The settings of the command line: a file, properties and options, and their precedence."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerRecord, ProducerSettings, RecordRejected, SettingsError
from anyio_sendproducer._validation import check_record
from anyio_sendproducer.cli._connecting import Connection, parse_property, settings_of
from anyio_sendproducer.cli._options import topic

PROPERTIES = """\
# Kafka's own
bootstrap.servers = one:1,\\
    two:2
client.id: me
key.serializer=org.apache.kafka.common.serialization.StringSerializer
delivery.timeout.ms=5000
max.block.ms=60000
buffer.memory=1000
linger.ms=7
compression.type=gzip
sasl.password=s3cret
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "producer.properties"
    path.write_text(PROPERTIES)
    return path


def test_kafkas_properties(file: Path) -> None:
    settings = settings_of(Connection(config=file))
    assert settings == ProducerSettings(
        bootstrap_servers="one:1,two:2",
        client_id="me",
        delivery_timeout=5.0,
        max_buffered_bytes=1000,
        properties={"linger.ms": "7", "compression.type": "gzip", "sasl.password": "s3cret"},
    )
    assert "s3cret" not in repr(settings)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[orders]\nclient-id = "me"\n[orders.properties]\nlinger.ms = 7\n')
    connection = Connection(config=path, config_table="orders", bootstrap_servers="one:1")
    assert settings_of(connection) == ProducerSettings(
        bootstrap_servers="one:1", client_id="me", properties={"linger.ms": 7}
    )


def test_toml_with_kafkas_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In TOML, a name with dots is a table in a table."""
    monkeypatch.setenv("KAFKA_CLIENT_ID", "env")
    path = tmp_path / "settings.toml"
    path.write_text('bootstrap.servers = "one:1"\nclient.id = "anyio-sendproducer"\n')
    assert settings_of(Connection(config=path)) == ProducerSettings(bootstrap_servers="one:1")


def test_blanks_around_a_value_in_a_properties_file(tmp_path: Path) -> None:
    path = tmp_path / "x.properties"
    path.write_bytes(
        b"bootstrap.servers=one:1\nacks = all \nsasl.password=\\ s3c ret\\t\xc2\xa0\t\n"
    )
    settings = settings_of(Connection(config=path))
    # As in Kafka's clients. They keep blanks that are not ASCII.
    assert settings.properties == {"acks": "all", "sasl.password": "s3c ret\t\xa0"}


@pytest.mark.parametrize("name", ["x.properties", "x.toml"])
def test_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    text = "client.id=me" if name == "x.properties" else 'client-id = "me"'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert settings_of(Connection(config=path, bootstrap_servers="x:1")).client_id == "me"


def test_properties_of_the_command_line_override_the_file(file: Path) -> None:
    connection = Connection(
        config=file,
        bootstrap_servers="three:3",
        properties=(("linger_ms", "8"), ("client.id", "you"), ("compression.type", "lz4")),
    )
    settings = settings_of(
        connection,
        properties={"compression.type": "zstd", "acks": "1"},
        delivery_timeout=9.0,
        close_timeout=None,
    )
    assert settings == ProducerSettings(
        bootstrap_servers="three:3",
        client_id="you",
        delivery_timeout=9.0,
        max_buffered_bytes=1000,
        properties={
            "sasl.password": "s3cret",
            "acks": "1",
            "linger_ms": "8",
            "compression.type": "lz4",
        },
    )


@pytest.mark.parametrize("properties", [(), (("bootstrap.servers", "three:3"),)])
def test_a_service_name_replaces_the_addresses(file: Path, properties: Any) -> None:
    connection = Connection(config=file, service_name="kafka.internal", properties=properties)
    settings = settings_of(connection)
    assert settings.service_name == "kafka.internal"
    assert settings.addresses == ()


def test_no_properties() -> None:
    assert settings_of(Connection(bootstrap_servers="one:1")) == ProducerSettings(
        bootstrap_servers="one:1"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.properties", b"delivery.timeout.ms=soon", "'delivery.timeout.ms' must be a whole"),
        ("x.properties", b"\xff", "x.properties is not UTF-8: save it"),
        ("x.properties", "client.id=me".encode("utf-16"), "x.properties is not UTF-8: save it"),
        ("x.toml", "client-id='me'".encode("utf-16"), "x.toml is not UTF-8: save it"),
        ("x.properties", b"a=\\u12", "x.properties, line 1: "),
        ("x.conf", b"", "must end in .properties or .toml"),
        ("x.toml", b"speed = 1", "x.toml: 'speed' is not a setting"),
        ("x.toml", b"max-in-flight = 'a'", "x.toml: max_in_flight must be an int"),
        ("x.toml", b"= 1", "x.toml is not TOML: "),
        ("x.toml", b"#" * (2**20 + 1), "x.toml has more than 1 MiB"),
        ("x.properties", b"#" * (2**20 + 1), "x.properties has more than 1 MiB"),
    ],
)
def test_a_file_that_is_wrong(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        settings_of(Connection(config=path))


def test_a_missing_properties_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"x\.properties can't be read: No such file"):
        settings_of(Connection(config=tmp_path / "x.properties"))


def test_a_properties_file_has_no_tables(file: Path) -> None:
    with pytest.raises(SettingsError, match="has no tables"):
        settings_of(Connection(config=file, config_table="orders"))


def test_properties_one_by_one() -> None:
    assert parse_property("a.b=c=d") == ("a.b", "c=d")
    assert parse_property(" a = ") == ("a", " ")
    for text in ("a", "=b", " =b"):
        with pytest.raises(ValueError, match=r"^a property must have the form name=value$"):
            parse_property(text)


def test_secrets_are_not_shown() -> None:
    connection = Connection(bootstrap_servers="a:1", properties=(("sasl.password", "s3cret"),))
    assert "s3cret" not in repr(connection)


def test_a_long_duration_in_milliseconds_causes_no_warning() -> None:
    properties = (("delivery.timeout.ms", "7200000"),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = settings_of(Connection(bootstrap_servers="one:1", properties=properties))
    assert settings.delivery_timeout == 7200.0


@pytest.mark.parametrize("digits", [17, 400])
def test_a_duration_that_is_too_long(digits: int) -> None:
    properties = (("delivery.timeout.ms", "9" * digits),)
    with pytest.raises(SettingsError, match=r"'delivery\.timeout\.ms' is too long"):
        settings_of(Connection(bootstrap_servers="one:1", properties=properties))


def test_the_chain_of_an_error_about_a_number_has_no_value() -> None:
    connection = Connection(
        bootstrap_servers="one:1", properties=(("delivery.timeout.ms", "s3cret"),)
    )
    with pytest.raises(SettingsError, match="must be a whole number") as caught:
        settings_of(connection)
    assert caught.value.__context__ is caught.value.__cause__ is None


@given(st.text("ab.-_Z9/ö\n", max_size=4) | st.integers(248, 250).map("x".__mul__))
@example(".")
@example("..")
@example("...")
@example("")
@example("a/b")
@example("x" * 249)
@example("x" * 250)
def test_the_topic_option_accepts_the_same_names_as_the_producer(text: str) -> None:
    record = ProducerRecord(text, b"")
    option = click.Option(["--topic"])
    context = click.Context(click.Command("c"))
    try:
        check_record(record, set())
    except RecordRejected:
        with pytest.raises(click.BadParameter):
            topic(context, option, text)
    else:
        assert topic(context, option, text) == text


@pytest.mark.parametrize("name", ["x.properties", "x.toml"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"x\.\w+ can't be read: No such file"):
        settings_of(Connection(config=tmp_path / name))


@pytest.mark.parametrize("table", ["two", "one.two", "one.two.three"])
def test_a_missing_table(table: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[one]\nclient-id = 'me'\n")
    with pytest.raises(SettingsError, match=r"x\.toml has no table \[one\.two|has no table \[two"):
        settings_of(Connection(config=path, config_table=table))


def test_toml_on_python_3_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.toml"
    path.write_text("client-id = 'me'")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(SettingsError, match=r"\.\[toml\]"):
        settings_of(Connection(config=path))


def test_a_service_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("service-name = 'kafka.internal'\nclose-timeout = 60\n")
    assert settings_of(Connection(config=path)).service_name == "kafka.internal"
    # A default value in the file counts as chosen.
    settings = settings_of(Connection(config=path), start_timeout=9.0)
    assert (settings.close_timeout, settings.start_timeout) == (60.0, 9.0)
