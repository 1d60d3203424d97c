"""The options that name a cluster: addresses, the environment, passwords and the log."""

from __future__ import annotations

import getpass
import importlib
import logging
import warnings
from pathlib import Path
from typing import get_args

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError
from anyio_sendproducer.cli._connecting import (
    Connection,
    environment_has_address,
    settings_of,
)
from anyio_sendproducer.cli._log import client_log
from anyio_sendproducer.cli._options import connection_of, seconds, servers
from anyio_sendproducer.drivers import DriverName, make_driver

OPTION = click.Option(["--option"])
CONTEXT = click.Context(click.Command("c"))


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("KAFKA_SERVICE_NAME", raising=False)


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("host", "host:9092"),
        ("a, b:1 ,,c", "a:9092,b:1,c:9092"),
        ("[::1]", "[::1]:9092"),
        ("[::1]:1,127.0.0.1", "[::1]:1,127.0.0.1:9092"),
    ],
)
def test_an_address_without_a_port_gets_the_default_port(text: str, found: str) -> None:
    assert servers(CONTEXT, OPTION, text) == found
    assert servers(CONTEXT, OPTION, None) is None


@pytest.mark.parametrize("text", ["a:", "::1", "a:b:1", "[::1", "a b", ""])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="bootstrap_servers"):
        servers(CONTEXT, OPTION, text)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(click.BadParameter) as caught:
        servers(CONTEXT, OPTION, "me:s3cret@host,other")
    assert "s3cret" not in caught.value.message


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b.c", "[::1]", "10.0.0.1"]), st.none() | st.just(7)),
        min_size=1,
    )
)
def test_each_address_keeps_its_port(addresses: list[tuple[str, int | None]]) -> None:
    text = ",".join(host if port is None else f"{host}:{port}" for host, port in addresses)
    assert servers(CONTEXT, OPTION, text) == ",".join(
        f"{host}:{9092 if port is None else port}" for host, port in addresses
    )


# --- the environment -----------------------------------------------------------------------------


def test_files_and_options_override_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not environment_has_address()
    for name, value in {
        "BOOTSTRAP_SERVERS": "one:1",
        "CLIENT_ID": "env",
        "CLOSE_TIMEOUT": "60",
        "DELIVERY_TIMEOUT": "7",
        "PROPERTIES_LINGER_MS": "1",
        "PROPERTIES_ACKS": "1",
        "HOME": "/opt/kafka",
    }.items():
        monkeypatch.setenv(f"KAFKA_{name}", value)
    assert environment_has_address()
    defaults = {"start_timeout": 9.0, "close_timeout": 9.0}
    settings = settings_of(Connection(), defaults=defaults)
    assert (settings.addresses, settings.client_id) == (("one:1",), "env")
    assert (settings.start_timeout, settings.close_timeout) == (9.0, 60.0)
    assert settings.properties == {"linger_ms": "1", "acks": "1"}
    # A file overrides the environment, and an option overrides both.
    path = tmp_path / "p.properties"
    path.write_text("client.id=file\nlinger.ms=2\ndelivery.timeout.ms=8000\n")
    settings = settings_of(
        Connection(config=path, service_name="kafka.internal"), delivery_timeout=6.0
    )
    assert (settings.service_name, settings.addresses) == ("kafka.internal", ())
    assert (settings.client_id, settings.delivery_timeout) == ("file", 6.0)
    assert settings.properties == {"linger.ms": "2", "acks": "1"}


def test_addresses_override_a_service_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAFKA_SERVICE_NAME", "kafka.internal")
    assert settings_of(Connection()).service_name == "kafka.internal"
    settings = settings_of(Connection(bootstrap_servers="one:1"))
    assert (settings.addresses, settings.service_name) == (("one:1",), "")


@pytest.mark.parametrize("name", ["BOOTSTRAP_SERVERS", "SERVICE_NAME"])
def test_an_empty_address_in_the_environment_is_no_address(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KAFKA_{name}", "")
    assert not environment_has_address()
    assert settings_of(Connection(bootstrap_servers="one:1")).addresses == ("one:1",)
    assert settings_of(Connection(service_name="kafka.internal")).addresses == ()


def test_the_error_names_the_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_CLOSE_TIMEOUT", "soon")
    with pytest.raises(SettingsError, match="KAFKA_CLOSE_TIMEOUT"):
        settings_of(Connection(bootstrap_servers="one:1"))


def test_an_address_is_required() -> None:
    with pytest.raises(click.UsageError, match="environment variable KAFKA_BOOTSTRAP_SERVERS"):
        connection_of(None, None, None, (), ask_password=False)


# --- passwords -----------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The password that the user types."""

    def ask(prompt: str) -> str:
        assert prompt == "Password: "
        return "s3cret"

    monkeypatch.setattr(getpass, "getpass", ask)
    return "s3cret"


#: The settings of a login, without its password.
LOGIN = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "me",
}


@pytest.mark.parametrize("place", ["option", "file", "environment"])
@pytest.mark.parametrize("name", ["sasl.password", "sasl.plain.password", "sasl_plain_password"])
def test_the_typed_password_overrides_others(
    name: str,
    place: str,
    typed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, file = [*LOGIN.items()], None
    if place == "option":
        given.append((name, "other"))
    elif place == "file":
        file = tmp_path / "x.properties"
        file.write_text(f"{name}=other")
    else:
        variable = name.replace(".", "_").upper()
        monkeypatch.setenv(f"KAFKA_PROPERTIES_{variable}", "other")
    connection = connection_of("one:1", None, file, tuple(given), ask_password=True)
    assert typed not in repr(connection)
    settings = settings_of(connection)
    assert settings.properties == {**LOGIN, "sasl.password": typed}
    for driver in get_args(DriverName):
        make_driver(driver, settings).close(0)


def test_a_typed_password_contradicts_a_login_module(typed: str) -> None:
    """The text of the login module contains a user name and a password."""
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    text = f'{module} required username="me" password="other";'
    given = (("sasl_jaas.config", text),)
    connection = connection_of("one:1", None, None, given, ask_password=True)
    says = r"^--ask-password \(-W\) cannot be combined with 'sasl.jaas.config', .* leave out -W$"
    with pytest.raises(SettingsError, match=says) as caught:
        settings_of(connection)
    assert typed not in str(caught.value)
    assert "other" not in str(caught.value)


@pytest.mark.parametrize("error", [EOFError(), OSError(), None])
def test_a_password_needs_a_terminal(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(prompt: str) -> str:
        if error is not None:
            raise error
        warnings.warn("it would be shown", getpass.GetPassWarning, stacklevel=2)
        raise AssertionError

    monkeypatch.setattr(getpass, "getpass", ask)
    with pytest.raises(click.UsageError, match=r"--ask-password needs a terminal: .* --config"):
        connection_of("one:1", None, None, (), ask_password=True)


# --- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [(0, ()), (1, ("INFO",)), (2, ("INFO", "DEBUG")), (3, ("INFO", "DEBUG"))],
)
def test_the_verbosity_selects_the_log_levels(
    verbosity: int, shown: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = [logging.getLogger("kafka.conn"), logging.getLogger("anyio_sendproducer.confluent")]
    with client_log(verbosity):
        for logger in loggers:
            logger.info("at %s\x1b[2J", "one:1")
            logger.debug("at %s\x1b[2J", "one:1")
    for logger in loggers:
        logger.info("later")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        rf"{level} {logger.name}: at one:1\x1b[2J" for logger in loggers for level in shown
    ]


@pytest.mark.parametrize("name", ["kafka", "anyio_sendproducer"])
def test_a_wrong_call_of_a_logger_does_not_raise(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("anyio_sendproducer.drivers.kafka_python._driver")  # adds its filter
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", False)  # the handler of pytest raises
    with client_log(1):
        logger.info("%d brokers", "three")
        logger.info("%d brokers", 3)
    said = capsys.readouterr().err
    assert "--- Logging error ---" in said
    assert f"INFO {name}: 3 brokers\n" in said


@pytest.mark.parametrize(("text", "length"), [("7200", 7200.0), ("0.5", 0.5), ("1e-9", 1e-6)])
def test_a_long_duration_of_an_option_causes_no_warning(text: str, length: float) -> None:
    """The option is in seconds, so milliseconds cannot be meant."""
    found = seconds(CONTEXT, OPTION, text)
    assert found is not None
    settings = ProducerSettings(bootstrap_servers="x:1", delivery_timeout=found)
    assert settings.delivery_timeout == length
