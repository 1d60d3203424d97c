"""No error repeats a possible secret, neither in its text nor in its causes or attributes."""

from __future__ import annotations

import base64
import functools
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import javaproperties
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError, discovery
from anyio_sendproducer._shown import listed, shown, shown_name
from anyio_sendproducer.cli._connecting import Connection, settings_of
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python._config import client_config
from anyio_sendproducer.drivers.librdkafka._config import librdkafka_config

SECRET: Final = "hunter2-s3cr3t"
make = functools.partial(
    cast("Callable[..., ProducerSettings]", ProducerSettings), bootstrap_servers="a:1"
)
MAKE_CONFIG: Final[dict[str, Callable[[ProducerSettings], object]]] = {
    "kafka-python": functools.partial(
        client_config, known=cast("Any", _kafka_python).KafkaProducer.DEFAULT_CONFIG
    ),
    "librdkafka": librdkafka_config,
}


def make_config(driver: str, properties: dict[str, Any]) -> object:
    return MAKE_CONFIG[driver](make(properties=properties))


def everything_in(error: BaseException | None) -> str:
    """The texts, arguments and attributes of an error and of its causes."""
    found: list[object] = []
    while error is not None:
        attributes = [getattr(error, name, None) for name in dir(error) if not name.startswith("_")]
        found += [str(error), error.args, attributes]
        error = error.__cause__ or error.__context__
    return repr(found)


def refused(call: Callable[[], object]) -> str:
    """The complete content of a refusal."""
    with pytest.raises(SettingsError) as caught:
        call()
    return everything_in(caught.value)


# --- a key that is split over several lines ------------------------------------------------------


@given(
    driver=st.sampled_from(sorted(MAKE_CONFIG)),
    key=st.binary(min_size=100, max_size=1300),
    protocol=st.sampled_from(["", "security.protocol=SSL\n"]),
    setting=st.sampled_from(["ssl.keystore.key", "ssl.key.pem", "sasl.jaas.config", "other"]),
)
@example(driver="librdkafka", key=b"\0" * 100, protocol="security.protocol=SSL\n", setting="other")
def test_no_line_of_a_key_is_repeated(driver: str, key: bytes, protocol: str, setting: str) -> None:
    lines = base64.encodebytes(key).decode().split()
    text = "\n".join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"])
    properties = javaproperties.loads(f"{protocol}{setting}={text}\n")
    settings = make(properties=properties)
    said = refused(lambda: MAKE_CONFIG[driver](settings)) + repr(settings)
    # A properties file takes the padding of a line for its value, so the name lacks the padding.
    assert not [line for line in lines if len(line) > 8 and line.rstrip("=") in said]


@pytest.mark.parametrize("driver", MAKE_CONFIG)
def test_a_split_key_is_refused_by_the_name_of_its_setting(driver: str) -> None:
    properties = {
        "fpq3ZZ9x": "",
        "security.protocol": "SSL",
        "ssl.keystore.key": "-----BEGIN PRIVATE KEY-----",
        "ssl.keystore.certificate.chain": "-----BEGIN CERTIFICATE-----x-----END CERTIFICATE-----",
    }
    said = refused(lambda: MAKE_CONFIG[driver](make(properties=properties)))
    assert "'ssl.keystore.key' must be text in PEM format" in said


@pytest.mark.parametrize("name", ["lingerMs", "Compression.Type", "max_requestSize"])
@pytest.mark.parametrize("driver", MAKE_CONFIG)
def test_a_misspelt_name_is_repeated(driver: str, name: str) -> None:
    said = refused(lambda: MAKE_CONFIG[driver](make(properties={name: 1})))
    assert f"'{name}' is not a setting" in said
    assert "did you mean" in said


def test_only_plausible_names_are_shown() -> None:
    for name in ("", "acks", "sasl.login_callback-handler.class", "P_TLS13_VERSIONS", "zzz"):
        assert shown_name(name) == repr(name)
    for name in (SECRET, "MIIEvQIBADANBgkqhkiG9w0", "a" * 21, "x\ny", "pass word", "eyJhbGciOiJI"):
        assert name not in shown_name(name)
        assert shown_name(name, is_known=True) == repr(name)


# --- values in the wrong place -------------------------------------------------------------------

ANY: Any = None
LEAKS: Final[dict[str, Callable[[], object]]] = {
    "client_id": lambda: make(client_id=[SECRET]),
    "transactional_id": lambda: make(transactional_id=[SECRET]),
    "service_name": lambda: make(bootstrap_servers="", service_name=[SECRET]),
    "service_name, a URL": lambda: make(
        bootstrap_servers="", service_name=f"kafka://u:{SECRET}@h:1"
    ),
    "service_name, beside": lambda: make(service_name=f"u:{SECRET}@h"),
    "service_name, a token": lambda: make(service_name=f"consul://{SECRET}"),
    "Lookup": lambda: Lookup("x", "port", f"u:{SECRET}@h"),
    "Lookup.parse": lambda: Lookup.parse(f"_a._b.u:{SECRET}@h"),
    "Lookup, half": lambda: Lookup("x", cast("Any", [SECRET])),
    "discovery_method": lambda: make(
        bootstrap_servers="", service_name="x", discovery_method=f"consul://{SECRET}@h:1"
    ),
    "bootstrap_servers": lambda: make(bootstrap_servers=[{"password": SECRET}]),
    "bootstrap_servers, bytes": lambda: make(bootstrap_servers=[SECRET.encode()]),
    "max_in_flight": lambda: make(max_in_flight=[SECRET]),
    "close_timeout": lambda: make(close_timeout={"password": SECRET}),
    "close_producer_on_exit": lambda: make(close_producer_on_exit=[SECRET]),
    "a property's name": lambda: make(properties={(SECRET,): 1}),
    "two names": lambda: make(properties={f"{SECRET}.x": 1, f"{SECRET}_x": 1}),
    "evolve": lambda: make().evolve(**cast("Any", {SECRET: 1})),
    "mapping": lambda: ProducerSettings.from_mapping(cast("Any", {(SECRET,): 1})),
    "mapping, a name": lambda: ProducerSettings.from_mapping({SECRET: 1}),
    "mapping, a number": lambda: ProducerSettings.from_mapping(
        {"close_timeout": f"-----BEGIN {SECRET}"}
    ),
    "prefix": lambda: ProducerSettings.from_env(cast("Any", [SECRET]), {}),
    "Target": lambda: Target(cast("Any", [SECRET])),
    "Target, host": lambda: Target(f"u:{SECRET}@h"),
    "Target, port": lambda: Target("a", cast("Any", [SECRET])),
    "Target.parse": lambda: Target.parse(f"u:{SECRET}@h:1"),
    "static": lambda: discovery.static(cast("Any", [{"password": SECRET}])),
    "aggregate": lambda: discovery.aggregate(
        discovery.static("a:1"), seconds=cast("Any", [SECRET])
    ),
    "dns": lambda: discovery.dns(f"tls://u:{SECRET}@h"),
    "dns, another": lambda: discovery.dns(cast("Any", [{"password": SECRET}])),
    **{
        f"{name}, {driver}": functools.partial(make_config, driver, {name: [SECRET]})
        for driver in MAKE_CONFIG
        for name in ("acks", "compression.type", "security.protocol", "linger.ms")
    },
    **{
        f"sasl.mechanism, {driver}": functools.partial(
            make_config,
            driver,
            {"security.protocol": "SASL_SSL", "sasl.mechanism": f"{SECRET}\n{SECRET}"},
        )
        for driver in MAKE_CONFIG
    },
}


@pytest.mark.parametrize("call", LEAKS.values(), ids=list(LEAKS))
def test_a_value_in_the_wrong_place_is_not_repeated(call: Callable[[], object]) -> None:
    assert SECRET not in refused(call)


@given(st.text() | st.integers() | st.floats() | st.binary() | st.lists(st.text()) | st.none())
@example(10**5000)
@example(-(10**5000))
def test_a_shown_value_is_short_printable_and_on_one_line(value: object) -> None:
    text = shown(value)
    assert len(text) < 50
    assert text.isprintable()
    if isinstance(value, str) and set(value) - set(string.ascii_letters + string.digits + " .:_-"):
        assert text == "a str that is not shown here"


def test_a_long_list_is_shortened() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        f'properties."sasl.password" = "{SECRET}"\n'.encode() + b"# \xff",
        f'properties."sasl.password" = "{SECRET}'.encode(),
    ],
    ids=["undecodable", "unclosed"],
)
def test_no_error_contains_the_content_of_a_toml_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    assert SECRET not in refused(lambda: ProducerSettings.from_toml(path))
    connection = Connection(config=path)
    assert SECRET not in refused(lambda: settings_of(connection))


@pytest.mark.parametrize("rest", [b"# \xff", b"a = \\u12"], ids=["undecodable", "escape"])
def test_no_error_contains_the_content_of_a_properties_file(rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_bytes(f"sasl.password={SECRET}\n".encode() + rest)
    assert SECRET not in refused(lambda: settings_of(Connection(config=path)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_wrong_escape_is_named_by_its_line(end: str, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    lines = ["# a comment", "", "client.id=a\\", "  b", r"sasl.password=ab\uSecret99", "x=y"]
    path.write_bytes(end.join(lines).encode())
    said = refused(lambda: settings_of(Connection(config=path)))
    assert f"{path}, line 5: " in said
    assert "must be followed by four hexadecimal digits" in said
    assert "Secr" not in said.replace(str(path), "")
