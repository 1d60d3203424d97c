"""An event loop ends before the producer is closed."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import trio

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer._bridge import Bridge
from anyio_sendproducer._loops import current_loop
from anyio_sendproducer.drivers import DriverName, make_driver
from tests.support.client_threads import client_threads
from tests.support.waiting import blocking_until


def new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if sys.platform != "win32" and sys.implementation.name == "cpython":  # pragma: no branch
    LOOPS.append(pytest.param(new_uvloop, id="uvloop"))


def warnings_of(call: Callable[[], None]) -> list[str]:
    """Call, collect garbage, and return the texts of the ResourceWarnings about producers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        gc.collect()
    return [str(one.message) for one in caught if "producer" in str(one.message)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_closed_loop_closes_the_client_by_force_and_warns(
    new_loop: Callable[[], asyncio.AbstractEventLoop], driver: DriverName, shared_broker: str
) -> None:
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    loop = new_loop()
    manager = open_send_producer(settings, driver=driver)

    async def use() -> Any:
        producer = await manager.__aenter__()
        await producer.send(ProducerRecord("loop-closed", b"value"))
        return producer

    producer = loop.run_until_complete(use())
    bridge: Bridge = producer._engine.bridge
    assert client_threads()
    (said,) = warnings_of(loop.close)
    assert "the event loop ended before the producer" in said
    assert "leave its `async with` block before the loop ends, or" in said
    # This holds also if a reference to the producer still exists.
    blocking_until(lambda: not client_threads())
    opened: Any = bridge._worker.driver
    assert opened._handle.client is None if driver == "confluent" else opened._closed
    assert warnings_of(lambda: None) == []


async def _left_open(bridges: list[Bridge], settings: ProducerSettings, driver: DriverName) -> None:
    bridge = Bridge(current_loop(), lambda: make_driver(driver, settings), time.monotonic)
    await bridge.open()
    bridges.append(bridge)


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_the_thread_does_not_keep_the_bridge_alive(
    run: Callable[..., object], driver: DriverName, shared_broker: str
) -> None:
    """A run of Trio ends after its tasks, unless it crashes. Then nothing references the bridge."""
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    bridges: list[Bridge] = []

    if run is trio.run:
        said = warnings_of(lambda: trio.run(_left_open, bridges, settings, driver))
        assert said == []
    else:
        said = warnings_of(lambda: asyncio.run(_left_open(bridges, settings, driver)))
        assert len(said) == 1
    bridge = weakref.ref(bridges[0])
    later = warnings_of(bridges.clear)
    assert bridge() is None
    assert len(said) + len(later) == 1
    blocking_until(lambda: not client_threads())


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
def test_a_report_to_an_ended_loop_closes_the_client(
    run: Callable[..., object], driver: DriverName, shared_broker: str
) -> None:
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    bridges: list[Bridge] = []
    if run is trio.run:
        trio.run(_left_open, bridges, settings, driver)
        said = warnings_of(lambda: _report(bridges[0]))
        assert len(said) == 1
        blocking_until(lambda: not client_threads())
    else:
        warnings_of(lambda: asyncio.run(_left_open(bridges, settings, driver)))
        # It was reported before, once.
        assert warnings_of(lambda: _report(bridges[0])) == []


def _report(bridge: Bridge) -> None:
    from anyio_sendproducer._driver_events import MetadataChanged

    reporting = threading.Thread(target=bridge._worker.post, args=(MetadataChanged(),))
    reporting.start()
    reporting.join()


async def test_a_producer_that_is_closed_in_time_does_not_warn(
    driver: DriverName, shared_broker: str
) -> None:
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("loop-closed", b"value"))
        finalizers = producer._engine.bridge._finalizers
        assert all(finalizer.alive for finalizer in finalizers)
        assert not any(finalizer.atexit for finalizer in finalizers)
    assert not any(finalizer.alive for finalizer in finalizers)
