"""ProducerService, and a block that another task leaves, with the drivers that need a broker."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from anyio_sendproducer import (
    ProducerMisused,
    ProducerRecord,
    ProducerService,
    ProducerSettings,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.client_threads import client_threads
from tests.support.waiting import blocking_until


@pytest.fixture
def service(driver: DriverName, shared_broker: str) -> ProducerService:
    return ProducerService(ProducerSettings(bootstrap_servers=shared_broker), driver=driver)


def test_separate_tasks_start_and_stop_the_producer(service: ProducerService) -> None:
    async def main() -> None:
        producer = await asyncio.create_task(service.start())
        delivery = producer.enqueue_nowait(ProducerRecord("service", b"value"))
        await asyncio.create_task(service.stop())
        assert delivery.done
        assert client_threads() == []

    asyncio.run(main())


def test_a_loop_that_ends_leaves_nothing_behind(
    service: ProducerService, caplog: pytest.LogCaptureFixture
) -> None:
    """An unclosed socket would cause a ResourceWarning, which fails the test."""

    async def main() -> None:
        producer = await service.start()
        await producer.send(ProducerRecord("service", b"value"))

    asyncio.run(main())
    assert client_threads() == []
    assert "before ProducerService.stop() returned" in caplog.text
    with pytest.raises(ProducerMisused):
        asyncio.run(service.stop())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_leaves_nothing_behind(service: ProducerService) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())
    assert client_threads()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        gc.collect()
    assert "or stop its ProducerService" in "".join(str(one.message) for one in caught)
    blocking_until(lambda: not client_threads())
    with pytest.raises(ProducerMisused):
        asyncio.run(service.stop())


def test_another_task_leaves_the_block(driver: DriverName, shared_broker: str) -> None:
    manager = open_send_producer(ProducerSettings(bootstrap_servers=shared_broker), driver=driver)

    async def enter() -> None:
        producer = await manager.__aenter__()
        producer.enqueue_nowait(ProducerRecord("service", b"value"))

    async def main() -> None:
        await asyncio.create_task(enter())
        with pytest.raises(ProducerMisused, match="use ProducerService on asyncio"):
            await manager.__aexit__(None, None, None)
        assert client_threads() == []

    asyncio.run(main())
