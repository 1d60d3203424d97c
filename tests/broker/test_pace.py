"""Malformed or endless answers: a client pauses before its next request, and an error of the broker
in a login is reported at once."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.brief import on_either_loop
from tests.support.hourglass import LONG, Hourglass
from tests.support.scripted_broker import (
    API_VERSIONS,
    METADATA,
    SASL_AUTHENTICATE,
    Answer,
    ScriptedBroker,
    authenticated,
    framed,
    scripted_broker,
)

SCRAM = ["SCRAM-SHA-256", "SCRAM-SHA-512"]


class Tokens:
    def token(self) -> str:
        return "t0k3n"


def login(mechanism: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
    }
    if mechanism == "OAUTHBEARER":
        return {**properties, "sasl_oauth_token_provider": Tokens()}
    return {**properties, "sasl.username": "me", "sasl.password": "s3cret"}


async def start(
    broker: ScriptedBroker, driver: DriverName, properties: dict[str, Any], seconds: float = LONG
) -> None:
    """Start a producer, send a record, and stop."""
    settings = ProducerSettings(
        bootstrap_servers=broker.address, start_timeout=seconds, properties=properties
    )
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("orders", b"two tins"))


async def start_error(
    broker: ScriptedBroker, driver: DriverName, properties: dict[str, Any], seconds: float = LONG
) -> str:
    """Return the error of a failed start."""
    with pytest.raises(ProducerStartError) as caught:
        await start(broker, driver, properties, seconds)
    return str(caught.value)


@on_either_loop
@pytest.mark.parametrize(
    "body",
    [b"", b"\x01" * 50, struct.pack(">hi", 35, 0)],
    ids=["empty", "ones", "an error"],
)
async def test_malformed_metadata_are_not_requested_again_at_once(
    body: bytes, driver: DriverName
) -> None:
    """By itself librdkafka would send a thousand requests per second."""
    answers: dict[int, Answer] = {METADATA: lambda correlation: framed(correlation, body)}
    with scripted_broker(answers=answers) as broker:
        await start_error(broker, driver, {}, seconds=1)
        assert 0 < broker.requests.count(METADATA) <= 30


def not_supported(correlation: bytes) -> bytes:
    return framed(correlation, struct.pack(">hi", 35, 0))


@on_either_loop
@pytest.mark.parametrize(
    ("request_", "answer", "mechanisms"),
    [
        (API_VERSIONS, not_supported, ()),
        (SASL_AUTHENTICATE, authenticated(b"and then?"), ("OAUTHBEARER",)),
    ],
    ids=["versions", "login"],
)
async def test_an_endless_connection_setup_is_abandoned(
    request_: int,
    answer: Answer,
    mechanisms: tuple[str, ...],
    driver: DriverName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself kafka-python would go on without a pause for the whole time limit of a
    connection."""
    hourglass = Hourglass(monkeypatch)
    with scripted_broker(mechanisms=mechanisms, answers={request_: answer}) as broker:
        hourglass.run_out_when(
            lambda: broker.connections >= 3 or broker.requests.count(request_) > 100
        )
        await start_error(broker, driver, login(*mechanisms) if mechanisms else {})
        assert broker.requests.count(request_) <= 10 * broker.connections


# --- SCRAM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", SCRAM)
async def test_a_broker_without_the_password_is_reported_at_once(
    mechanism: str, driver: DriverName
) -> None:
    with scripted_broker(mechanisms=(mechanism,), is_impostor=True) as broker:
        said = await start_error(broker, driver, login(mechanism))
    wrong = {"kafka-python": "wrong signature", "confluent": "SASL authentication error"}
    assert wrong[driver] in said
    assert "start_timeout" not in said


@pytest.mark.parametrize(
    "message",
    [b"", b"nonsense", b"\xff", b"r=another,s=c2FsdA==,i=4096", b"r=another,s=c2FsdA==,i=many"],
)
async def test_nonsense_in_a_scram_login_is_reported_at_once(message: bytes) -> None:
    answers = {SASL_AUTHENTICATE: authenticated(message)}
    with scripted_broker(mechanisms=("SCRAM-SHA-256",), answers=answers) as broker:
        said = await start_error(broker, "kafka-python", login("SCRAM-SHA-256"))
    refused = f"{broker.address} did not complete the login with SCRAM-SHA-256: "
    assert said.startswith(f"no producer for {broker.address}: {refused}")


@pytest.mark.parametrize("mechanism", SCRAM)
@pytest.mark.parametrize("iterations", [1, 4_095, 100_001])
async def test_the_number_of_scram_iterations_is_bounded(iterations: int, mechanism: str) -> None:
    users = {"me": "s3cret"}
    with scripted_broker(mechanisms=(mechanism,), users=users, iterations=iterations) as broker:
        said = await start_error(broker, "kafka-python", login(mechanism))
        assert broker.logins == []  # no proof was sent
    assert said.endswith(
        f"did not complete the login with {mechanism}: it asks for {iterations} iterations, but "
        "only 4096 to 100000 are accepted"
    )


@pytest.mark.parametrize("mechanism", SCRAM)
@pytest.mark.parametrize("iterations", [4_096, 100_000])
async def test_a_scram_login_with_kafkas_iterations_succeeds(
    iterations: int, mechanism: str, driver: DriverName
) -> None:
    users = {"me": "s3cret"}
    with scripted_broker(mechanisms=(mechanism,), users=users, iterations=iterations) as broker:
        await start(broker, driver, login(mechanism))


async def test_librdkafka_accepts_any_number_of_scram_iterations() -> None:
    """If this fails, a newer librdkafka refuses it. Then change the documents."""
    users = {"me": "s3cret"}
    with scripted_broker(mechanisms=("SCRAM-SHA-256",), users=users, iterations=1) as broker:
        await start(broker, "confluent", login("SCRAM-SHA-256"))
