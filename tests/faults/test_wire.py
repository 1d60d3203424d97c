"""Faults of the network, made by a proxy in front of the embedded broker.

The embedded broker checks sequence numbers, as Apache Kafka does. So a record that the client sends
again, because the answer was lost, must not be in the log twice.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest

from anyio_sendproducer import ProducerSettings, open_send_producer
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import FULL, RECORDS, Cell, judge
from tests.support.fault_proxy import FaultProxy, Way, proxied_broker
from tests.support.history import Report
from tests.support.load import During, Load, Ran, Running, run_load
from tests.support.waiting import until

#: Seconds that an exit may take on a busy machine beyond the time-out that bounds it. They are far
#: less than the times for which it must not wait.
SLACK = 10.0

#: Seconds over which a load is spread. They are longer than a fault.
SECONDS = 6.0 if FULL else 0.8


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    # Starting and ending it blocks for some milliseconds, while no other task runs.
    with proxied_broker() as running:
        yield running


def settings_for(proxy: FaultProxy, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=proxy.address,
        delivery_timeout=20.0,
        close_timeout=20.0,
        cancel_timeout=1.0,
    ).evolve(**changes)


async def run(
    cell: str,
    loop: str,
    driver: DriverName,
    proxy: FaultProxy,
    settings: ProducerSettings,
    during: During,
    *,
    tasks: int = 200,
    admitted: float = 1.0,
    address: str = "",
) -> tuple[Ran, Report]:
    """Run a load under a fault, heal it, judge, and write the row."""
    load = Load(topic="t", records=RECORDS, seconds=SECONDS, tasks=tasks, admitted=admitted)
    ran = await run_load(settings, load, during=during, driver=driver)
    proxy.heal()
    place = Cell("wire", cell, loop, driver)
    return ran, await judge(place, ran, settings, "t", address=address)


async def test_connections_are_refused_for_a_while(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """The broker's host is up, and its port refuses connections for a while."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.refuse()
        running.admit(1)
        await running.until_under_way()
        proxy.heal()

    settings = settings_for(proxy)
    ran, report = await run(
        "connections refused for a while",
        anyio_backend,
        driver,
        proxy,
        settings,
        during,
        admitted=0.4,
    )
    assert report.acknowledged == report.sent
    assert ran.statistics.generations == 1


async def test_connections_are_refused_until_the_end(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """The port refuses connections until the end. Each record has its outcome, and the exit is
    bounded."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.refuse()
        running.admit(1)

    settings = settings_for(proxy, delivery_timeout=SECONDS)
    cell = "connections refused until the end"
    _, report = await run(
        cell, anyio_backend, driver, proxy, settings, during, tasks=RECORDS, admitted=0.5
    )
    assert report.acknowledged + report.failures == report.sent
    assert report.failures > report.sent / 10
    assert report.time_to_exit < SLACK


async def test_a_long_black_hole(anyio_backend: str, driver: DriverName, proxy: FaultProxy) -> None:
    """It lasts longer than the client waits for an answer, so the client connects again into it."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.black_hole()
        running.admit(1)
        await running.until_under_way()
        await anyio.sleep(1.0)
        proxy.heal()

    settings = settings_for(proxy, properties={"request_timeout_ms": 400})
    cell = "black hole, longer than request.timeout.ms"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=0.4)
    assert report.acknowledged == report.sent
    assert report.longest_wait > 1.0


async def test_a_short_black_hole(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.black_hole()
        running.admit(1)
        await running.until_under_way()
        proxy.heal()

    settings = settings_for(proxy)
    cell = "black hole, shorter than request.timeout.ms"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=0.4)
    assert report.acknowledged == report.sent


async def test_a_black_hole_until_the_end(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.black_hole()
        running.admit(1)

    settings = settings_for(proxy, delivery_timeout=SECONDS)
    cell = "black hole until the end"
    _, report = await run(
        cell, anyio_backend, driver, proxy, settings, during, tasks=RECORDS, admitted=0.5
    )
    assert report.acknowledged + report.failures == report.sent
    assert report.failures > report.sent / 10
    assert report.time_to_exit < SLACK


async def test_the_block_ends_in_a_black_hole(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """The block ends while all records are in flight: within close_timeout, with an error."""
    settings = settings_for(proxy, close_timeout=1.0)

    async def during(running: Running) -> None:
        await running.until_sent(0.5)
        proxy.black_hole()
        running.admit(1)

    load = Load(topic="t", records=RECORDS, calls=("enqueue",), leave=True, admitted=0.5)
    ran = await run_load(settings, load, during=during, driver=driver)
    proxy.heal()
    cell = Cell("wire", "black hole while the block is left", anyio_backend, driver)
    report = await judge(cell, ran, settings, "t")
    assert report.failures > 0
    assert 0.5 < report.time_to_exit < 1.0 + SLACK
    assert ran.undelivered + ran.raised == report.failures


async def test_the_block_ends_before_the_client_is_connected(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """After the start the client connects once more for a producer id. So does its replacement."""
    settings = settings_for(proxy, cancel_timeout=0.5)
    proxy.delay(0.1)
    left: list[float] = []
    with anyio.CancelScope() as scope:
        async with open_send_producer(settings, driver=driver):
            proxy.black_hole()
            left.append(time.monotonic())
            scope.cancel()
            await anyio.sleep_forever()
    assert time.monotonic() - left[0] < 0.5 + SLACK


@pytest.mark.parametrize("way", list(Way), ids=["request", "answer"])
@pytest.mark.parametrize("after", [13, 60], ids=["header", "body"])
async def test_connections_are_reset_in_the_middle_of_a_frame(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy, way: Way, after: int
) -> None:
    async def during(running: Running) -> None:
        for turn in range(1, 6):
            await running.until_settled(turn / 8)
            before = proxy.resets
            proxy.reset_in_frame(way, after=after)
            running.admit((turn + 1) / 8)
            await until(partial(_reset_since, proxy, before))
        running.admit(1)

    settings = settings_for(proxy)
    what = "request" if way is Way.TO_BROKER else "answer"
    cell = f"reset in a produce {what}, after {after} bytes, five times"
    ran, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=1 / 8)
    assert report.acknowledged == report.sent
    assert ran.statistics.generations == 1


def _reset_since(proxy: FaultProxy, before: int) -> bool:
    return proxy.resets > before


async def test_connections_are_reset_many_times(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        for turn in range(1, 20):
            await running.until_settled(turn / 25)
            proxy.cut()

    settings = settings_for(proxy)
    cell = "all connections reset, nineteen times"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during)
    assert report.acknowledged == report.sent


async def test_one_byte_at_a_time(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.1)
        proxy.dribble()
        running.admit(1)

    settings = settings_for(proxy)
    cell = "one byte at a time"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=0.1)
    assert report.acknowledged == report.sent


async def test_latency_and_jitter(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.1)
        proxy.delay(0.05, 0.1)
        running.admit(1)

    settings = settings_for(proxy)
    cell = "50 to 150 ms each way"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=0.1)
    assert report.acknowledged == report.sent
    assert report.longest_wait > 0.1


@pytest.mark.parametrize("way", list(Way), ids=["to-broker", "to-client"])
async def test_one_direction_of_the_connections_ends(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy, way: Way
) -> None:
    async def during(running: Running) -> None:
        for turn in range(1, 4):
            await running.until_settled(turn / 4)
            proxy.half_close(way)

    settings = settings_for(proxy, properties={"request_timeout_ms": 500})
    cell = f"connection half closed {way.value}, three times"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during)
    assert report.acknowledged == report.sent


async def test_connections_are_refused_many_times(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    async def during(running: Running) -> None:
        for turn in range(1, 8):
            await running.until_sent(turn / 9)
            proxy.refuse()
            await anyio.sleep(0.02)
            proxy.heal()
            await anyio.sleep(0.05)

    settings = settings_for(proxy)
    cell = "connections refused seven times"
    _, report = await run(cell, anyio_backend, driver, proxy, settings, during)
    assert report.acknowledged == report.sent


async def test_a_firewall_forgets_the_connections(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """The connections do not end. By default the client waits for half of delivery_timeout."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.forget()
        running.admit(1)

    settings = settings_for(proxy, delivery_timeout=8.0)
    cell = "a firewall forgets the connections"
    ran, report = await run(cell, anyio_backend, driver, proxy, settings, during, admitted=0.4)
    assert report.acknowledged == report.sent
    assert ran.statistics.generations == 1


async def test_three_of_four_bootstrap_addresses_are_silent(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """Also when the client bootstraps again, because the broker refuses connections for a while."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.refuse()
        running.admit(1)
        await running.until_under_way()
        proxy.heal()

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        silent = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
        settings = settings_for(proxy, bootstrap_servers=[*silent, proxy.address])
        cell = "three of four bootstrap addresses are silent, and connections refused for a while"
        _, report = await run(
            cell,
            anyio_backend,
            driver,
            proxy,
            settings,
            during,
            admitted=0.4,
            address=proxy.address,
        )
    assert report.acknowledged == report.sent


async def test_cancelled_in_a_black_hole(
    anyio_backend: str, driver: DriverName, proxy: FaultProxy
) -> None:
    """A withdrawn record is not in the log. An abandoned record may be."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        proxy.black_hole()
        running.admit(1)
        await until(lambda: running.producer.statistics().waiting > 0)
        running.scope.cancel()
        await anyio.sleep(0.1)
        proxy.heal()

    settings = settings_for(proxy, max_in_flight=100)
    load = Load(topic="t", records=RECORDS, calls=("send",), admitted=0.5)
    ran = await run_load(settings, load, during=during, driver=driver)
    cell = Cell("wire", "cancelled in a black hole that ends later", anyio_backend, driver)
    report = await judge(cell, ran, settings, "t")
    assert report.abandoned > 0
    assert report.withdrawn > 0
    # A hundred records have room at a time. Some got the room of the last acknowledged ones.
    assert report.abandoned <= load.tasks
