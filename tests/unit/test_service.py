"""ProducerService: start and stop in any task of one asyncio event loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import warnings
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    ProducerBroken,
    ProducerClosed,
    ProducerMisused,
    ProducerService,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    SettingsError,
    UndeliveredRecords,
    _service,
    open_send_producer,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import at_gate, fail, raising, record, refuse, taken
from tests.support.client_threads import client_threads
from tests.support.waiting import PATIENCE, blocking_until, until


@pytest.fixture(autouse=True, scope="module")
def _garbage_of_others() -> None:
    """Collect the garbage of earlier tests, so that asyncio reports it before these tests."""
    gc.collect()


@pytest.fixture(autouse=True)
def _nothing_reported(caplog: pytest.LogCaptureFixture) -> Generator[None]:
    """Check that asyncio reports no unretrieved exception and no pending task."""
    yield
    gc.collect()
    said = [one.getMessage() for one in [*caplog.get_records("call"), *caplog.records]]
    assert [one for one in said if "never retrieved" in one or "was destroyed" in one] == []


on_asyncio = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


@pytest.fixture
def service(settings: ProducerSettings, fake: FakeDriver) -> ProducerService:
    return ProducerService(settings, driver=fake)


async def started(service: ProducerService) -> SendProducer:
    """Start the service in its own task, as a fixture or a hook does."""
    return await asyncio.create_task(service.start())


async def stopped(service: ProducerService) -> None:
    await asyncio.create_task(service.stop())


def tasks_of_others() -> set[str]:
    current = asyncio.current_task()
    return {
        task.get_name()
        for task in asyncio.all_tasks()
        if task is not current and "endproducer" in repr(task)
    }


# --- start and stop --------------------------------------------------------------------------


@on_asyncio
async def test_different_tasks_may_start_and_stop_it(
    service: ProducerService, fake: FakeDriver
) -> None:
    assert repr(service) == "<ProducerService stopped>"
    producer = await started(service)
    assert repr(service) == "<ProducerService running>"
    assert service.producer is producer
    assert "anyio_sendproducer.ProducerService" in tasks_of_others()
    producer.enqueue_nowait(record(b"accepted"))
    await stopped(service)
    assert producer.statistics().state == "closed"
    assert [one.value for one in fake.submitted] == [b"accepted"]
    assert producer.statistics().delivered == 1
    assert tasks_of_others() == set()
    assert repr(service) == "<ProducerService stopped>"


@on_asyncio
async def test_stop_without_a_running_producer_does_nothing(
    service: ProducerService, fake: FakeDriver
) -> None:
    await service.stop()
    await started(service)
    await stopped(service)
    await stopped(service)
    assert len(fake.closed) == 1


@on_asyncio
async def test_it_starts_again(service: ProducerService, fake: FakeDriver) -> None:
    first = await started(service)
    await stopped(service)
    second = await started(service)
    assert second is not first
    await second.send(record())
    await stopped(service)
    assert fake.opened == 2


@on_asyncio
async def test_the_producer_while_it_runs(service: ProducerService, fake: FakeDriver) -> None:
    says = "call `await service.start\\(\\)` first"
    with pytest.raises(ProducerClosed, match=says):
        _ = service.producer
    fake.on_open.shut()
    start = asyncio.create_task(service.start())
    await at_gate(fake.on_open)
    assert repr(service) == "<ProducerService starting>"
    with pytest.raises(ProducerClosed, match=says):
        _ = service.producer
    fake.on_open.open()
    assert await start is service.producer
    await stopped(service)
    with pytest.raises(ProducerClosed, match=says):
        _ = service.producer


@on_asyncio
async def test_the_event_loop_keeps_the_task_until_it_ends(
    service: ProducerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio itself has only weak references to tasks."""
    kept: list[Any] = []

    class KeepingLoop:
        def keep(self, sentinel: object) -> Callable[[], None]:
            kept.append(sentinel)
            return kept.clear

    monkeypatch.setattr(_service, "current_loop", KeepingLoop)
    await started(service)
    [run] = kept
    assert run.task in asyncio.all_tasks()
    await stopped(service)
    assert kept == []


@on_asyncio
async def test_the_cancel_scope_of_the_caller_does_not_end_it(service: ProducerService) -> None:
    with anyio.CancelScope() as scope:
        await service.start()
        scope.cancel()
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    await service.producer.send(record())
    await service.stop()


@on_asyncio
async def test_serializers_run_in_the_context_of_the_task_that_started_it(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    place = contextvars.ContextVar("place", default="nowhere")

    def serialize(value: str) -> bytes:
        return f"{value} in {place.get()}".encode()

    service = ProducerService(settings.with_value_serializer(serialize), driver=fake)

    async def start() -> None:
        place.set("start")
        await service.start()

    await asyncio.create_task(start())
    place.set("send")
    await service.producer.send(record("said"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await service.stop()
    [[written]] = fake.written.values()
    assert written.value == b"said in start"


# --- errors of a start -----------------------------------------------------------------------


@on_asyncio
async def test_the_error_of_a_start(service: ProducerService, fake: FakeDriver) -> None:
    fake.open_error = ProducerStartError("no broker answered")
    with pytest.raises(ProducerStartError, match="no broker answered"):
        await started(service)
    assert tasks_of_others() == set()
    await service.stop()
    fake.open_error = None
    await (await started(service)).send(record())
    await service.stop()


@on_asyncio
async def test_a_driver_that_does_not_exist(settings: ProducerSettings) -> None:
    with pytest.raises(SettingsError, match="driver must be"):
        await started(ProducerService(settings, driver=cast("Any", "librdkafka")))


def test_wrong_settings() -> None:
    with pytest.raises(TypeError, match="settings must be ProducerSettings, not str"):
        ProducerService(cast("Any", "broker:9092"))
    with pytest.raises(SettingsError, match="delivery_timeout"):
        ProducerService(bootstrap_servers="broker:9092", delivery_timeout=-1)


@on_asyncio
async def test_settings_by_keyword(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with ProducerService(settings, driver=fake, client_id="orders"):
        assert fake.settings is not None
        assert fake.settings.client_id == "orders"
        assert fake.settings.addresses == settings.addresses


@on_asyncio
async def test_a_start_reads_the_environment(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    service = ProducerService(driver=fake)
    with pytest.raises(SettingsError, match="KAFKA_BOOTSTRAP_SERVERS"):
        await started(service)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker.invalid:9092")
    await started(service)
    await service.stop()


def test_invalid_observers(settings: ProducerSettings) -> None:
    not_observers: Any = object()
    with pytest.raises(TypeError, match="observers must be a list of observers"):
        ProducerService(settings, observers=not_observers)


# --- several starts --------------------------------------------------------------------------


@on_asyncio
async def test_two_starts_share_a_producer(service: ProducerService, fake: FakeDriver) -> None:
    first, second = await asyncio.gather(service.start(), service.start())
    assert first is second is await service.start()
    assert fake.opened == 1
    await service.stop()


@on_asyncio
async def test_each_of_two_starts_has_its_own_error(
    service: ProducerService, fake: FakeDriver
) -> None:
    fake.open_error = ProducerStartError("no broker answered")
    errors = await asyncio.gather(service.start(), service.start(), return_exceptions=True)
    assert [type(error) for error in errors] == [ProducerStartError] * 2
    assert errors[0] is not errors[1]


@on_asyncio
async def test_a_cancelled_start_closes_the_producer(
    service: ProducerService, fake: FakeDriver
) -> None:
    fake.on_open.shut()
    start = asyncio.create_task(service.start())
    await at_gate(fake.on_open)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert tasks_of_others() == set()
    assert fake.closed
    assert repr(service) == "<ProducerService stopped>"


@on_asyncio
async def test_a_start_goes_on_while_another_call_waits_for_it(
    service: ProducerService, fake: FakeDriver
) -> None:
    fake.on_open.shut()
    first = asyncio.create_task(service.start())
    second = asyncio.create_task(service.start())
    await at_gate(fake.on_open)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    fake.on_open.open()
    await (await second).send(record())
    await service.stop()


@on_asyncio
async def test_a_cancelled_start_does_not_stop_a_running_producer(service: ProducerService) -> None:
    producer = await started(service)
    start = asyncio.create_task(service.start())
    await anyio.lowlevel.checkpoint()
    start.cancel()
    await asyncio.wait([start])
    await producer.send(record())
    await service.stop()


@on_asyncio
async def test_a_start_that_is_cancelled_in_the_turn_of_its_success(
    service: ProducerService, settings: ProducerSettings, fake: FakeDriver
) -> None:
    start: list[asyncio.Task[Any]] = []
    opened: list[SendProducer] = []

    @asynccontextmanager
    async def cancelling() -> AsyncGenerator[SendProducer]:
        async with open_send_producer(settings, driver=fake) as producer:
            opened.append(producer)
            asyncio.get_running_loop().call_soon(start[0].cancel)
            yield producer

    replaced: Any = service
    replaced._open = cancelling
    start.append(asyncio.create_task(service.start()))
    with pytest.raises(asyncio.CancelledError):
        await start[0]
    assert opened[0].statistics().state == "closed"
    assert repr(service) == "<ProducerService stopped>"


# --- a stop during a start -------------------------------------------------------------------


@on_asyncio
async def test_a_stop_ends_the_start(service: ProducerService, fake: FakeDriver) -> None:
    fake.on_open.shut()
    start = asyncio.create_task(service.start())
    await at_gate(fake.on_open)
    await stopped(service)
    with pytest.raises(ProducerClosed, match="stopped while it started"):
        await start
    assert tasks_of_others() == set()
    await (await started(service)).send(record())
    await service.stop()


@on_asyncio
async def test_a_stop_in_the_turn_in_which_the_start_succeeds(
    service: ProducerService, settings: ProducerSettings, fake: FakeDriver
) -> None:
    stop: list[asyncio.Task[None]] = []
    opened: list[SendProducer] = []

    @asynccontextmanager
    async def stopping() -> AsyncGenerator[SendProducer]:
        async with open_send_producer(settings, driver=fake) as producer:
            opened.append(producer)
            stop.append(asyncio.create_task(service.stop()))
            yield producer

    replaced: Any = service
    replaced._open = stopping
    with pytest.raises(ProducerClosed, match="stopped while it started"):
        await service.start()
    await stop[0]
    assert opened[0].statistics().state == "closed"


@on_asyncio
async def test_a_start_waits_for_the_stop(service: ProducerService) -> None:
    manual = FakeDriver(manual=True)
    service = ProducerService(
        ProducerSettings(bootstrap_servers="broker.invalid:9092"), driver=manual
    )
    first = await started(service)
    delivery = first.enqueue_nowait(record())
    await taken(manual, 1)
    stop = asyncio.create_task(service.stop())
    await until(lambda: first.statistics().state == "draining")
    assert repr(service) == "<ProducerService stopping>"
    start = asyncio.create_task(service.start())
    await anyio.lowlevel.checkpoint()
    assert manual.opened == 1
    manual.acknowledge()
    await stop
    await delivery.wait()
    assert await start is not first
    await service.stop()


# --- the end ---------------------------------------------------------------------------------


@on_asyncio
async def test_stop_raises_unawaited_failures(service: ProducerService, fake: FakeDriver) -> None:
    fake.judge = refuse
    producer = await started(service)
    producer.enqueue_nowait(record())
    stops = await asyncio.gather(service.stop(), service.stop(), return_exceptions=True)
    first, second = stops
    assert isinstance(first, UndeliveredRecords)
    assert isinstance(second, UndeliveredRecords)
    assert first is not second
    assert first.count == second.count == 1
    await service.stop()


@on_asyncio
async def test_a_broken_producer_is_closed_and_can_start_again(
    service: ProducerService, fake: FakeDriver
) -> None:
    fake.submit_error = RuntimeError("a driver's fault")
    producer = await started(service)
    with pytest.raises(SendProducerError, match="a driver's fault"):
        await producer.send(record())
    with pytest.raises(ProducerBroken):
        await producer.send(record())
    assert await service.start() is producer
    await stopped(service)
    assert fake.closed
    fake.submit_error = None
    await (await started(service)).send(record())
    await service.stop()


@on_asyncio
@pytest.mark.parametrize("failing", [True, False], ids=["undelivered", "all-delivered"])
async def test_a_cancelled_stop_hurries(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture, failing: bool
) -> None:
    """The producer has closed when the cancelled call raises."""
    fake = FakeDriver(manual=True)
    service = ProducerService(settings.evolve(cancel_timeout=0.0), driver=fake)
    producer = await started(service)
    delivery = producer.enqueue_nowait(record())
    await taken(fake, 1)
    waiting = [] if failing else [asyncio.create_task(delivery.wait())]
    await anyio.lowlevel.checkpoint()
    stop = asyncio.create_task(service.stop())
    await until(lambda: producer.statistics().state == "draining")
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert producer.statistics().state == "closed"
    said = [one.message for one in caplog.records if "was cancelled" in one.message]
    if failing:
        assert len(said) == 1
        assert "1 record(s) failed" in said[0]
    else:
        assert said == []
        with pytest.raises(DeliveryError, match="closed"):
            await waiting[0]
    await service.stop()


@on_asyncio
async def test_the_log_of_a_cancelled_stop_does_not_repeat_a_record(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    def serialize(value: bytes) -> bytes:
        if value == b"secret":
            raise ValueError(value)
        return value

    fake = FakeDriver(manual=True)
    settings = settings.evolve(cancel_timeout=0.0, value_serializer=serialize)
    service = ProducerService(settings, driver=fake)
    producer = await started(service)
    producer.enqueue_nowait(record(b"secret"))
    producer.enqueue_nowait(record())
    await taken(fake, 1)
    stop = asyncio.create_task(service.stop())
    await until(lambda: producer.statistics().state == "draining")
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    (said,) = [one.getMessage() for one in caplog.records if "was cancelled" in one.getMessage()]
    assert "the first: SerializationFailed: the value_serializer raised ValueError [" in said
    assert "secret" not in caplog.text


@on_asyncio
async def test_closing_goes_on_after_a_second_cancellation(
    service: ProducerService, fake: FakeDriver
) -> None:
    producer = await started(service)
    fake.on_close.shut()
    stop = asyncio.create_task(service.stop())
    await at_gate(fake.on_close)
    for _ in range(2):
        stop.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    assert stop.cancelled()
    assert repr(service) == "<ProducerService stopping>"
    fake.on_close.open()
    await service.stop()
    assert producer.statistics().state == "closed"


# --- as a context manager --------------------------------------------------------------------


@on_asyncio
async def test_different_tasks_may_enter_and_leave_it(
    service: ProducerService, fake: FakeDriver
) -> None:
    stack = AsyncExitStack()
    producer = await asyncio.create_task(stack.enter_async_context(service))
    await producer.send(record())
    await asyncio.create_task(stack.aclose())
    assert producer.statistics().state == "closed"


@on_asyncio
async def test_the_end_of_its_block_raises_unawaited_failures(
    service: ProducerService, fake: FakeDriver
) -> None:
    fake.judge = refuse
    with pytest.raises(UndeliveredRecords):
        async with service as producer:
            producer.enqueue_nowait(record())


@on_asyncio
async def test_a_block_that_fails(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    service = ProducerService(settings.evolve(cancel_timeout=0.0), driver=fake)
    with raising(ZeroDivisionError) as caught:
        async with service as producer:
            producer.enqueue_nowait(record())
            await taken(fake, 1)
            fail()
    [note] = caught.value.__dict__["__notes__"]
    assert "1 record(s) failed" in note


# --- the wrong place -------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused(service: ProducerService) -> None:
    says = r"start_send_producer\(nursery, settings\)"
    with pytest.raises(ProducerMisused, match=says):
        await service.start()
    with pytest.raises(ProducerMisused, match=says):
        await service.stop()
    with pytest.raises(ProducerMisused, match=says):
        async with service:
            pytest.fail("the block was entered")


@on_asyncio
async def test_another_event_loop_is_refused(service: ProducerService) -> None:
    async def use() -> None:
        for call in (service.start, service.stop):
            with pytest.raises(ProducerMisused, match="one ProducerService for each loop"):
                await call()

    producer = await started(service)
    await anyio.to_thread.run_sync(asyncio.run, use())
    await producer.send(record())
    await service.stop()


# --- an event loop that ends too early -------------------------------------------------------


def refused_afterwards(service: ProducerService) -> None:
    assert repr(service) == "<ProducerService lost>"
    for call in (service.start, service.stop):
        with pytest.raises(ProducerMisused, match="before stop\\(\\) was called"):
            asyncio.run(call())
    blocking_until(lambda: not client_threads())


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.name == "anyio_sendproducer"]


@pytest.mark.parametrize("failing", [True, False], ids=["undelivered", "all-delivered"])
def test_a_loop_that_ends_closes_the_producer_and_logs_it(
    service: ProducerService, fake: FakeDriver, caplog: pytest.LogCaptureFixture, failing: bool
) -> None:
    if failing:
        fake.judge = refuse

    async def main() -> SendProducer:
        producer = await service.start()
        producer.enqueue_nowait(record())
        await producer.flush()
        return producer

    producer = asyncio.run(main())
    assert producer.statistics().state == "closed"
    assert fake.closed
    [line] = lines_of(caplog)
    assert line.startswith("the event loop ended, or cancelled all its tasks, before")
    assert ("1 record(s) failed" in line) == failing
    refused_afterwards(service)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_closed_loop_closes_the_client_at_once_and_warns(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    service = ProducerService(settings, driver=fake)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        gc.collect()
    [said] = [str(one.message) for one in caught if "producer" in str(one.message)]
    assert "the event loop ended before the producer" in said
    assert "stop its ProducerService" in said
    blocking_until(lambda: fake.closed)
    refused_afterwards(service)
    del service
    gc.collect()
    caplog.clear()  # asyncio reports each task of a closed loop


def test_a_loop_that_ends_during_a_start(
    service: ProducerService, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        fake.on_open.shut()
        start = asyncio.create_task(service.start())
        await at_gate(fake.on_open)
        del start

    asyncio.run(main())
    assert lines_of(caplog) == []
    assert fake.closed
    assert repr(service) == "<ProducerService stopped>"


def test_a_loop_that_ends_during_a_stop(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeDriver(manual=True)
    service = ProducerService(settings.evolve(cancel_timeout=0.0), driver=fake)

    async def main() -> None:
        producer = await service.start()
        producer.enqueue_nowait(record())
        await taken(fake, 1)
        stop = asyncio.create_task(service.stop())
        await until(lambda: producer.statistics().state == "draining")
        del stop

    asyncio.run(main())
    [line] = lines_of(caplog)
    assert "1 record(s) failed" in line
    assert fake.closed
    assert repr(service) == "<ProducerService stopped>"


def test_a_keyboard_interrupt_in_the_program(
    service: ProducerService, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await service.start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert fake.closed
    assert len(lines_of(caplog)) == 1
    refused_afterwards(service)


def test_a_keyboard_interrupt_in_the_task_of_the_service(
    service: ProducerService, settings: ProducerSettings, fake: FakeDriver
) -> None:
    async def interrupt(_: ProducerSettings) -> ProducerSettings:
        raise KeyboardInterrupt

    service = ProducerService(settings.evolve(enrich=interrupt), driver=fake)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(service.start())
    assert fake.opened == 0
    assert repr(service) == "<ProducerService stopped>"


@on_asyncio
async def test_the_task_of_the_service_is_cancelled_from_outside(
    service: ProducerService, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """Some runners cancel all tasks before they call the shutdown hooks."""
    await started(service)
    [task] = [one for one in asyncio.all_tasks() if one.get_name().endswith("ProducerService")]
    task.cancel()
    with anyio.fail_after(PATIENCE):
        await asyncio.wait([task])
    assert len(lines_of(caplog)) == 1
    with pytest.raises(ProducerMisused, match="cancelled all its tasks"):
        await service.stop()
    assert fake.closed
