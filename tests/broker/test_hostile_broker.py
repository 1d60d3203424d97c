"""The raw texts of a hostile broker reach no log, no error and no terminal.

Each string in each of its answers has a line end, control codes of terminals, and the like.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio.to_thread
import pytest
from kafka.errors import KafkaConnectionError

from anyio_sendproducer import (
    DeliveryTimeout,
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers._describe import describe_cluster
from anyio_sendproducer.telemetry import LoggingObserver
from tests.support.client_log import everything_logged_to
from tests.support.clock import ManualClock
from tests.support.hostile_broker import FORGED, HostileBroker, hostile_broker, raw_lines
from tests.support.waiting import until

#: A start_timeout or a delivery_timeout that does not pass during a test.
LONG = 240.0
RECORD = ProducerRecord("orders", b"two tins")
LOGIN = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "me",
    "sasl.password": "hunter2",
}


class Kept(logging.Handler):
    """Keeps the log as a file would have it, with all fields of each line."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.lines += [str(value) for name, value in vars(record).items() if "." in name]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """All lines of the loggers of the package, of kafka-python and of this test."""
    kept = Kept()
    with everything_logged_to(kept, "kafka", "anyio_sendproducer", "hostile"):
        yield kept


def settings(broker: HostileBroker, driver: DriverName, **changes: Any) -> ProducerSettings:
    properties = {"debug": "all"} if driver == "confluent" else {}
    made = ProducerSettings(
        bootstrap_servers=broker.address,
        properties=properties,
        start_timeout=LONG,
        delivery_timeout=LONG,
        close_timeout=0.2,
        cancel_timeout=0.2,
    )
    return made.evolve(**changes).with_properties(properties)


async def send(broker: HostileBroker, driver: DriverName, **changes: Any) -> None:
    async with open_send_producer(
        settings(broker, driver, **changes), driver=driver, observers=[LoggingObserver()]
    ) as producer:
        await producer.send(RECORD)


async def log_in(broker: HostileBroker, driver: DriverName, _: ManualClock) -> None:
    await send(broker, driver, properties=LOGIN)


async def time_out(broker: HostileBroker, driver: DriverName, clock: ManualClock) -> None:
    async with clock.open(settings(broker, driver), driver=driver) as producer:
        delivery = await producer.enqueue(RECORD)
        used: Any = producer._engine.bridge._worker.driver
        await until(lambda: used.last_error() is not None)
        clock.advance(LONG)
        await delivery.wait()


async def reject(broker: HostileBroker, driver: DriverName, _: ManualClock) -> None:
    await send(broker, driver)


async def transact(broker: HostileBroker, driver: DriverName, _: ManualClock) -> None:
    made = settings(broker, driver, transactional_id="mine")
    async with open_send_producer(made, driver=driver) as producer, producer.transaction() as tx:
        await tx.send(RECORD)


async def describe(broker: HostileBroker, driver: DriverName, _: ManualClock) -> None:
    made = settings(broker, driver, start_timeout=20.0)
    found = await anyio.to_thread.run_sync(describe_cluster, driver, made)
    raise SendProducerError(str(found))


Case = Callable[[HostileBroker, DriverName, ManualClock], Awaitable[None]]
#: The faults, and the drivers whose error then has the hostile text.
CASES: dict[str, tuple[Case, dict[str, Any], set[str]]] = {
    "a refused login": (log_in, {"mechanisms": ("PLAIN",)}, {"kafka-python", "confluent"}),
    "an unknown mechanism": (log_in, {"mechanisms": ("OTHER",)}, {"confluent"}),
    "hosts that are none": (time_out, {"is_reachable": False}, {"kafka-python", "confluent"}),
    "a rejected record": (reject, {"produce_error": 44}, {"kafka-python"}),
    "a forbidden coordinator": (transact, {"coordinator_error": 53}, {"confluent"}),
    "a forbidden transaction": (transact, {"transaction_error": 53}, set()),
    "a description": (describe, {}, {"kafka-python", "confluent"}),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_hostile_broker_forges_no_line(
    case: str, driver: DriverName, clock: ManualClock, kept: Kept
) -> None:
    act, attributes, says = CASES[case]
    with hostile_broker(**attributes) as broker:
        with pytest.raises(SendProducerError) as caught:
            await act(broker, driver, clock)
        logging.getLogger("hostile").error("it failed", exc_info=caught.value)
    error: BaseException | None = caught.value
    seen: list[BaseException] = []
    assert str(error).isprintable()
    assert (FORGED in str(error)) is (driver in says), str(error)
    printed = [*traceback.format_exception(caught.value), *kept.lines]
    while error is not None and error not in seen:
        seen.append(error)
        printed += [str(error), repr(error)]
        # Suppressed errors, too.
        error = error.__cause__ or error.__context__
    assert [line for text in printed for line in raw_lines(text)] == []


@pytest.mark.parametrize(
    ("name", "port"),
    [("h\x9b", 9092), ("a..b", 9092), ("h\0", 9092), ("127.0.0.1", 99_999), ("127.0.0.1", -5)],
)
async def test_a_broker_with_an_impossible_address_is_unreachable(
    name: str, port: int, clock: ManualClock
) -> None:
    """kafka-python itself ends its task that refreshes metadata at any foreign error."""
    with hostile_broker(hostile=name, other_port=port, is_reachable=False) as broker:
        made = settings(broker, "kafka-python")
        async with clock.open(made, driver="kafka-python") as producer:
            delivery = await producer.enqueue(RECORD)
            used: Any = producer._engine.bridge._worker.driver
            await until(lambda: used.last_error() is not None)
            assert isinstance(used.last_error().__cause__, KafkaConnectionError)
            clock.advance(LONG)
            with pytest.raises(DeliveryTimeout, match="can't be reached: "):
                await delivery.wait()


@pytest.mark.parametrize("name", ['h"', "h\n\x1b[2J\x9b"])
async def test_statistics_of_a_hostile_cluster_can_be_read(name: str, clock: ManualClock) -> None:
    """librdkafka does not escape its statistics, so a broker's name may end the JSON."""
    with hostile_broker(hostile=name) as broker:
        made = settings(broker, "confluent", properties={"statistics.interval.ms": 10})
        async with clock.open(made, driver="confluent") as producer:
            await producer.send(RECORD)
            if '"' not in name:
                await until(lambda: "brokers" in producer.statistics().client)
            client = dict(producer.statistics().client)
        assert str(client).isprintable()
        assert all(broker.isprintable() for broker in client.get("brokers", ()))
