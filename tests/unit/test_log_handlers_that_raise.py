"""A log handler that raises changes nothing for the producer."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerBroken,
    ProducerSettings,
    ProducerStartError,
    _bridge,
    _driver_thread,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import generation, record
from tests.support.client_log import everything_logged_to
from tests.support.waiting import until


class FaultyHandler(logging.Handler):
    """Raises for each line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        raise OSError("disk full")

    def got(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture(autouse=True)
def handler() -> Iterator[FaultyHandler]:
    faulty = FaultyHandler()
    with everything_logged_to(faulty, "anyio_sendproducer"):
        yield faulty


async def test_a_client_is_replaced(
    settings: ProducerSettings,
    fake: FakeDriver,
    handler: FaultyHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_driver_thread, "REOPEN_SECONDS", 0.001)
    calls: list[ProducerSettings] = []

    async def enrich(given: ProducerSettings) -> ProducerSettings:
        calls.append(given)
        if len(calls) > 1:
            raise OSError("no vault")
        return given

    async with open_send_producer(settings.evolve(enrich=enrich), driver=fake) as producer:
        fake.open_error = ProducerStartError("no broker answers")
        fake.break_client()
        await until(lambda: handler.got("trying again: no broker answers"))
        fake.open_error = None
        await until(generation(producer, 2))
        assert (await producer.send(record())).offset == 0
    assert handler.got("the client is given up")
    assert handler.got("the client's settings stay as they were: ")


async def test_a_client_whose_close_raises_is_replaced(
    settings: ProducerSettings, handler: FaultyHandler
) -> None:
    class Faulty(FakeDriver):
        def close(self, timeout: float, /) -> None:
            super().close(timeout)
            raise RuntimeError("the driver's own")

    fake = Faulty()
    async with open_send_producer(settings, driver=fake) as producer:
        fake.break_client()
        await until(generation(producer, 2))
        assert (await producer.send(record())).offset == 0
    assert handler.lines.count("closing the driver raised an error") == 2


async def test_a_producer_breaks(
    settings: ProducerSettings,
    fake: FakeDriver,
    handler: FaultyHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def settle(*_: object) -> None:
        raise RuntimeError("a bug")

    async with open_send_producer(settings, driver=fake) as producer:
        monkeypatch.setattr(producer._engine.ledger, "settle", settle)
        with pytest.raises(DeliveryError, match="a bug"):
            await producer.send(record())
        with pytest.raises(ProducerBroken, match="a bug"):
            await producer.send(record())
    assert handler.lines == ["the producer broke: a bug"]


async def test_a_client_hangs_at_the_end(
    settings: ProducerSettings,
    fake: FakeDriver,
    handler: FaultyHandler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_bridge, "GRACE_SECONDS", 0.05)
    fake.on_close.shut()
    try:
        async with open_send_producer(settings.evolve(close_timeout=0.02), driver=fake) as producer:
            await producer.send(record())
        assert producer.statistics().state == "closed"
    finally:
        fake.on_close.open()
    assert handler.got("did not end")
