"""Settings from a mapping, a TOML file and the environment."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError

SECRET = "hunter2-s3cr3t"

#: Each field with a text and its value.
TEXTS: dict[str, tuple[str, Any]] = {
    "bootstrap_servers": ("a:1, b:2", "a:1,b:2"),
    "client_id": ("me", "me"),
    "max_in_flight": ("7", 7),
    "max_buffered_bytes": ("1000000", 1_000_000),
    "delivery_timeout": ("2.5", 2.5),
    "unknown_topic_timeout": ("0", 0.0),
    "start_timeout": ("3", 3.0),
    "close_timeout": ("4", 4.0),
    "cancel_timeout": ("1", 1.0),
    "transactional_id": ("tx", "tx"),
    "eos_commit_interval": ("0.2", 0.2),
    "resolve_timeout": ("0.5", 0.5),
    "discovery_method": ("dns", "dns"),
    "close_producer_on_exit": ("True", True),
    "wait_for_cluster": ("False", False),
}
#: Fields that TEXTS lacks: code, properties, and fields that exclude bootstrap_servers.
OTHERS = {
    "key_serializer",
    "value_serializer",
    "partitioner",
    "properties",
    "service_name",
    "enrich",
    "producer",
    "producer_factory",
}


def test_each_field_is_tested() -> None:
    fields = {field.name for field in dataclasses.fields(ProducerSettings)}
    assert fields == {*TEXTS, *OTHERS}


def test_a_mapping_may_name_a_service() -> None:
    given = {"service-name": "_kafka._tcp.x.test", "discovery-method": "dns"}
    assert ProducerSettings.from_mapping(given).service_name == "_kafka._tcp.x.test"


def whole() -> ProducerSettings:
    return ProducerSettings(
        **{name: value for name, (_, value) in TEXTS.items()},
        properties={"compression.type": "lz4", "ssl.ca.location": "/ca.pem"},
    )


# --- a mapping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("texts", [False, True])
def test_settings_from_a_mapping(dashes: bool, texts: bool) -> None:
    mapping: dict[str, Any] = {
        name.replace("_", "-") if dashes else name: text if texts else value
        for name, (text, value) in TEXTS.items()
    }
    mapping["properties"] = {"compression.type": "lz4", "ssl": {"ca": {"location": "/ca.pem"}}}
    assert ProducerSettings.from_mapping(mapping) == whole()


def test_a_serializer_from_a_mapping() -> None:
    settings = ProducerSettings.from_mapping(
        {"bootstrap_servers": "a:1", "value_serializer": str.encode}
    )
    assert settings.value_serializer is str.encode


BAD_MAPPINGS: list[tuple[Any, str]] = [
    ([("client_id", "me")], "settings must come as a mapping, not list"),
    ({1: 2}, "the name of a setting must be a str, not 1"),
    ({"close_timeut": 1}, "'close_timeut' is not a setting; did you mean 'close_timeout'?"),
    ({"close-timeut": 1}, "'close-timeut' is not a setting; did you mean 'close_timeout'?"),
    ({"propertis": {"acks": 1}}, "'propertis' is not a setting; did you mean 'properties'?"),
    (
        {"close-timeout": 1, "close_timeout": 1},
        "'close-timeout' and 'close_timeout' are one setting; give one",
    ),
    ({"max_in_flight": "many"}, "max_in_flight must be an int, not 'many'"),
    ({"max_in_flight": "1.5"}, "max_in_flight must be an int, not '1.5'"),
    (
        {"close_timeout": "60 s"},
        "close_timeout must be a number of seconds, such as 2.5, not '60 s'",
    ),
    (
        {"bootstrap_servers": "a:1", "close_timeout": "-1"},
        "close_timeout must be a number of seconds of 0 or more, and no more than 1e+09, or a",
    ),
    (
        {"bootstrap_servers": "a:1", "properties": "acks=all"},
        "properties must be a mapping, not str",
    ),
    (
        {"bootstrap_servers": "a:1", "properties": "acks=all", "linger.ms": 5},
        "properties must be a mapping, not str",
    ),
    ({"bootstrap_servers": "a:1", "properties": {1: 2}}, "properties: a name must be a str, not 1"),
    (
        {"bootstrap_servers": "a:1", "key_serializer": "json"},
        "key_serializer must be a callable or have a serialize",
    ),
]


@pytest.mark.parametrize(("mapping", "says"), BAD_MAPPINGS, ids=str)
def test_an_invalid_mapping(mapping: Any, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProducerSettings.from_mapping(mapping)
    assert str(caught.value).startswith(says)


def test_an_error_about_a_part_of_a_service_name_names_the_variable() -> None:
    with pytest.raises(SettingsError, match=r"^P_SERVICE_NAME: service_name: protocol must have"):
        ProducerSettings.from_env("P", {"P_SERVICE_NAME": "_kafka._t p.x"})


def test_an_environment_without_an_address() -> None:
    with pytest.raises(SettingsError, match="variable P_BOOTSTRAP_SERVERS is not set"):
        ProducerSettings.from_env("P_", {})


def test_without_a_similar_name_all_settings_are_listed() -> None:
    with pytest.raises(
        SettingsError, match="'zzz' is not a setting: the settings are bootstrap_servers"
    ):
        ProducerSettings.from_mapping({"zzz": 1})


def test_a_mapping_without_an_address() -> None:
    with pytest.raises(SettingsError, match="bootstrap_servers is missing"):
        ProducerSettings.from_mapping({})


# --- TOML ----------------------------------------------------------------------------------------

TOML = """
[orders.kafka]
bootstrap-servers = ["a:1", "b:2"]
client_id = "me"
max_in_flight = 7
max_buffered_bytes = 1_000_000
delivery_timeout = 2.5
unknown_topic_timeout = 0
start_timeout = 3
close_timeout = 4
cancel_timeout = 1
transactional_id = "tx"
eos_commit_interval = 0.2
resolve_timeout = 0.5
wait_for_cluster = false
properties."compression.type" = "lz4"
properties.ssl.ca.location = "/ca.pem"
"""


def test_settings_from_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    assert ProducerSettings.from_toml(path, "orders.kafka") == whole()
    path.write_text(TOML.replace("[orders.kafka]", ""))
    assert ProducerSettings.from_toml(str(path)) == whole()


def test_an_invalid_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"

    def said(table: str = "orders.kafka") -> str:
        with pytest.raises(SettingsError) as caught:
            ProducerSettings.from_toml(path, table)
        assert SECRET not in str(caught.value)
        return str(caught.value)

    assert said() == f"{path} can't be read: No such file or directory"
    path.write_text(f'[orders.kafka]\nproperties."sasl.password" = "{SECRET}\n')
    assert said().startswith(f"{path} is not TOML: ")
    path.write_bytes(b"[\xff")
    assert said().startswith(f"{path} is not UTF-8: save it as UTF-8")
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    assert said() == f"{path} has more than 1 MiB, so it is not a settings file"
    path.write_text(TOML)
    assert said("orders") == (
        f"{path}: 'kafka' is not a setting, but a table: if it contains the settings, choose it "
        "with the argument table, or with --config-table"
    )
    assert said("orders.kafk") == f"{path} has no table [orders.kafk]"
    assert said("orders.kafka.client_id") == f"{path} has no table [orders.kafka.client_id]"
    assert said("orders.kafka.client_id.x").endswith("has no table [orders.kafka.client_id.x]")
    path.write_text(f'[orders.kafka]\nshop_password = "{SECRET}"')
    assert "'shop_password' is not a setting" in said()


def test_without_a_toml_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[toml\]" in a checkout of'):
        ProducerSettings.from_toml(path, "orders.kafka")


def test_with_tomli_in_place_of_tomllib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(TOML)
    own = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", own)
    assert ProducerSettings.from_toml(path, "orders.kafka") == whole()


# --- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["ORDERS", "ORDERS_"])
def test_settings_from_the_environment(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDER_CLIENT_ID", "another prefix")
    monkeypatch.setenv("ORDERSX_CLIENT_ID", "another prefix")
    for name, (text, _) in TEXTS.items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", text)
    monkeypatch.setenv("ORDERS_PROPERTIES_COMPRESSION_TYPE", "lz4")
    monkeypatch.setenv("ORDERS_PROPERTIES_SSL_CA_LOCATION", "/ca.pem")
    settings = ProducerSettings.from_env(prefix)
    assert settings == whole().evolve(
        properties={"compression_type": "lz4", "ssl_ca_location": "/ca.pem"}
    )


BAD_ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    (
        {"P_CLOSE_TIMEUT": SECRET},
        "'P_CLOSE_TIMEUT' is not a setting; did you mean 'P_CLOSE_TIMEOUT'",
    ),
    (
        {"P_PROPERTIES": SECRET},
        "P_PROPERTIES: set one variable for each property, such as P_PROPERTIES_COMPRESSION_T",
    ),
    (
        {"P_SASL_PASSWORD": SECRET},
        "'P_SASL_PASSWORD' is a setting of the client: use P_PROPERTIES_S",
    ),
    ({"P_CLOSE_TIMEOUT": "-1"}, "P_CLOSE_TIMEOUT: close_timeout must be a number of seconds of 0"),
    ({"P_BOOTSTRAP_SERVERS": "here"}, "P_BOOTSTRAP_SERVERS: bootstrap_servers: 'here' is not host"),
    ({"P_TRANSACTIONAL_ID": ""}, "P_TRANSACTIONAL_ID: transactional_id must be a str"),
    ({"P_MAX_IN_FLIGHT": "x"}, "P_MAX_IN_FLIGHT: max_in_flight must be an int, not 'x'"),
    (
        {"P_VALUE_SERIALIZER": "json"},
        "P_VALUE_SERIALIZER cannot be set by an environment variable; use with_value_serializer()",
    ),
    (
        {"P_PARTITIONER": "murmur2"},
        "P_PARTITIONER cannot be set by an environment variable; use with_partitioner(), or P_PROP",
    ),
]


@pytest.mark.parametrize(("environment", "says"), BAD_ENVIRONMENTS, ids=str)
def test_an_invalid_environment(environment: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProducerSettings.from_env("P", {"P_BOOTSTRAP_SERVERS": "a:1", **environment})
    assert str(caught.value).startswith(says)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "_", None, 7])
def test_a_prefix_is_required(prefix: Any) -> None:
    with pytest.raises(SettingsError, match="prefix must be a str that is not empty"):
        ProducerSettings.from_env(prefix, {})


names = st.sampled_from(sorted(TEXTS.keys() - {"bootstrap_servers"}))


@given(st.sets(names))
def test_all_sources_make_the_same_settings(chosen: set[str]) -> None:
    texts = {name: TEXTS[name][0] for name in chosen} | {"bootstrap_servers": "a:1"}
    made = ProducerSettings.from_mapping(texts)
    upper = {f"P_{name.upper()}": text for name, text in texts.items()}
    assert ProducerSettings.from_env("P", upper) == made
    assert made == ProducerSettings(
        bootstrap_servers="a:1", **{name: TEXTS[name][1] for name in chosen}
    )
