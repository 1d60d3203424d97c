"""Foreign texts are shown on one line in errors, in their causes and in logs."""

from __future__ import annotations

import importlib
import logging
import pickle
import pkgutil
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anyio_sendproducer
from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    SendProducerError,
    SettingsError,
    _exceptions,
    _shown,
)
from anyio_sendproducer.cli._running import complain
from anyio_sendproducer.telemetry import LoggingObserver

HOSTILE = "a\nb\x1b[2J\x9b\u2028\u202e"
ESCAPED = r"a\nb\x1b[2J\x9b\u2028\u202e"


@given(st.text())
def test_a_foreign_text_is_shown_on_one_line(text: str) -> None:
    made = _shown.one_line(text)
    assert made.isprintable()
    assert len(made) <= 300 * 10
    if text.isprintable():
        assert made == text[:300]


# --- our errors ----------------------------------------------------------------------------------


def test_the_message_of_an_error_is_one_line() -> None:
    record = ProducerRecord("orders", b"two tins")
    failed = DeliveryError(HOSTILE, record=record, persistence=Persistence.NOT_PERSISTED)
    for error in (SendProducerError(HOSTILE), SettingsError(HOSTILE, 7), failed):
        assert error.args[0] == ESCAPED
        for other in (error, pickle.loads(pickle.dumps(error)), _exceptions.copy_of(error)):
            assert other.args == error.args
    assert SettingsError(HOSTILE, 7).args == (ESCAPED, 7)
    assert SendProducerError().args == ()


# --- errors of clients ---------------------------------------------------------------------------


def test_an_error_of_a_client_is_made_harmless_with_its_causes() -> None:
    error = RuntimeError(OSError(HOSTILE))
    error.__cause__ = ConnectionError(7, HOSTILE)
    error.__cause__.__context__ = ValueError(HOSTILE, 7, b"\n", error)
    assert _shown.harmless(error) is error
    for text in traceback.format_exception(error):
        assert "\x1b" not in text
        assert "\x9b" not in text
    assert str(error) == ESCAPED
    assert str(error.__cause__) == f"[Errno 7] {ESCAPED}"
    assert error.__cause__.__context__.args == (ESCAPED, 7, b"\n", error)


def test_the_text_of_an_error_of_a_client_is_bounded() -> None:
    assert len(str(_shown.harmless(ValueError("x" * 1_000_000)))) == 2_000


# --- logs ----------------------------------------------------------------------------------------


def test_each_logger_of_the_package_writes_one_line_for_each_message() -> None:
    loggers = {LoggingObserver()._logger}
    for module in pkgutil.walk_packages(anyio_sendproducer.__path__, "anyio_sendproducer."):
        if not module.name.endswith("__main__"):
            found = vars(importlib.import_module(module.name)).values()
            loggers |= {one for one in found if isinstance(one, logging.Logger)}
    own = {one for one in loggers if one.name.startswith("anyio_sendproducer")}
    assert len(own) >= 6
    for logger in own:
        assert any(isinstance(one, _shown.OneLine) for one in logger.filters), logger


@pytest.mark.parametrize("name", ["anyio_sendproducer", "anyio_sendproducer.confluent"])
def test_a_hostile_text_cannot_forge_a_line_of_a_log(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments: tuple[Any, ...]
    for message, arguments, said in (
        ("%s: %d", (HOSTILE, 7), f"{ESCAPED}: 7"),
        (HOSTILE, (), ESCAPED),
        ("%d%%", (7,), "7%"),
        ("%s", ("x" * 1_000_000,), "x" * 20_000),
    ):
        caplog.clear()
        logging.getLogger(name).error(message, *arguments)
        assert caplog.messages == [said]


@pytest.mark.parametrize("name", ["anyio_sendproducer", "anyio_sendproducer.kafka_python", "kafka"])
def test_a_logged_error_cannot_forge_a_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    importlib.import_module("anyio_sendproducer.drivers.kafka_python._driver")
    logger = logging.getLogger(name)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("it failed")
    assert caplog.text.endswith(f"ValueError: {ESCAPED}\n")
    logger.error("nothing failed", exc_info=(None, None, None))
    assert caplog.messages == ["it failed", "nothing failed"]


# --- the command line ----------------------------------------------------------------------------


def test_an_error_of_the_command_line_has_one_line_for_each_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ValueError(HOSTILE)
    error.__dict__["__notes__"] = [HOSTILE]  # like add_note(), which Python 3.10 lacks
    assert complain(error, 2) == 2
    assert capsys.readouterr().err == f"anyio-sendproducer: {ESCAPED}\n{ESCAPED}\n"
