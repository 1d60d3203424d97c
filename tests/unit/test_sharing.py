"""The state that the event loop and the threads of the bridge share, tested with gates."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, cast

import pytest

from anyio_sendproducer import ProducerSettings, open_send_producer
from anyio_sendproducer._bridge import Bridge
from anyio_sendproducer._driver_events import BatchSubmitted, ClientOpened, Event, MetadataChanged
from anyio_sendproducer._driver_thread import DriverThread
from anyio_sendproducer._loops import current_loop
from anyio_sendproducer.drivers import Submission, Submitted
from anyio_sendproducer.testing import FakeDriver, Gate
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import at_gate, quiet, record
from tests.support.lingering_driver import LingeringDriver
from tests.support.recorder import Parcel
from tests.support.waiting import PATIENCE, blocking_until, until


class Outbox(list[Event]):
    """Stops the appending thread after the append."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def append(self, item: Event) -> None:
        super().append(item)
        self.gate.pass_through()


@pytest.fixture
async def bridge() -> Bridge:
    return Bridge(current_loop(), FakeDriver, time.monotonic)


def on_a_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_an_event_is_not_taken_before_its_wake_up(bridge: Bridge, is_wanted: bool) -> None:
    """A thread has appended an event, but has not woken the loop; another thread takes events."""
    worker = bridge._worker
    outbox = Outbox()
    cast("Any", worker).outbox = outbox
    outbox.gate.shut()
    event = BatchSubmitted(Submitted()) if is_wanted else MetadataChanged()
    posting = on_a_thread(lambda: worker.post(event, urgent=not is_wanted))
    await at_gate(outbox.gate)
    taken: list[Event] = []
    taking = on_a_thread(lambda: taken.extend(bridge._take_posted()))
    assert not worker.posting.acquire(blocking=False)
    assert taken == []
    outbox.gate.open()
    posting.join()
    taking.join()
    assert taken == [event]
    assert not worker.is_wake_up_scheduled
    await quiet()


async def test_an_event_that_is_not_urgent_waits_until_the_loop_asks_for_it(bridge: Bridge) -> None:
    worker = bridge._worker
    posting = on_a_thread(lambda: worker.post(BatchSubmitted(Submitted()), urgent=False))
    posting.join()
    await quiet()
    assert (len(bridge.events.items), bridge.wake_ups) == (0, 0)
    bridge.notify_when_ready()  # takes the earlier events
    assert len(bridge.events.items) == 1
    posting = on_a_thread(lambda: worker.post(BatchSubmitted(Submitted()), urgent=False))
    posting.join()
    await quiet()
    assert (len(bridge.events.items), bridge.wake_ups) == (2, 1)


async def test_two_events_need_one_wake_up(bridge: Bridge) -> None:
    """Two threads post before the event loop takes the events: one wake-up brings both."""
    worker = bridge._worker
    threads = [on_a_thread(lambda: worker.post(MetadataChanged())) for _ in range(2)]
    blocking_until(lambda: len(worker.outbox) == 2)  # the event loop does not run meanwhile
    for thread in threads:
        thread.join()
    await quiet()
    assert (len(bridge.events.items), bridge.wake_ups) == (1, 1)


class Overtaken(PolledFakeDriver):
    """The thread submits a batch just after a poll has counted the records in flight."""

    def __init__(self) -> None:
        super().__init__(direct=False)
        self.worker: DriverThread | None = None
        self.has_counted = threading.Event()

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        assert self.has_counted.wait(PATIENCE)
        return super().submit(batch)

    def poll(self, limit: int, /) -> int:
        in_flight = super().poll(limit)
        worker = self.worker
        if worker is not None and not self.has_counted.is_set():
            self.has_counted.set()
            blocking_until(lambda: len(worker.outbox) > 0)
        return in_flight


async def test_a_batch_that_a_poll_did_not_count_is_polled_for() -> None:
    driver = Overtaken()
    settings = ProducerSettings(bootstrap_servers="fake.invalid:9092", delivery_timeout=PATIENCE)
    async with open_send_producer(settings, driver=driver) as producer:
        driver.worker = producer._engine.bridge._worker
        await producer.send(record())
        assert driver.has_counted.is_set()


# --- the thread's count of commands, and its lingering driver ---------------------------------


class Direct(LingeringDriver):
    """A driver that the event loop may call as well."""

    direct = True


class Gated(DriverThread):
    """Stops between the end of a command and its count, and after it sets `lingering_driver`."""

    on_count: Gate
    on_lingering: Gate
    count = 0
    known: Any = None

    @property
    def commands_done(self) -> int:
        return self.count

    @commands_done.setter
    def commands_done(self, value: int) -> None:
        self.on_count.pass_through()
        self.count = value

    @property
    def lingering_driver(self) -> Any:
        return self.known

    @lingering_driver.setter
    def lingering_driver(self, driver: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.known = driver
        if driver is not None:
            self.on_lingering.pass_through()


@asynccontextmanager
async def bridged(driver: FakeDriver) -> AsyncGenerator[Bridge]:
    """A bridge with an open driver, and gates in its thread."""
    bridge = Bridge(current_loop(), lambda: driver, time.monotonic)
    worker: Any = bridge._worker
    worker.on_count, worker.on_lingering = Gate(), Gate()
    worker.__class__ = Gated
    await bridge.open()
    try:
        yield bridge
    finally:
        await bridge.stop(0)


async def test_an_uncounted_command_precedes_a_small_batch() -> None:
    """While the thread has run a command but not counted it, the event loop does not submit."""
    driver = Direct()
    batch: Any = [Parcel(record(b"%d" % number)) for number in range(3)]
    async with bridged(driver) as bridge:
        gate = cast("Gated", bridge._worker).on_count
        await until(lambda: bridge._worker.commands_done == bridge._commands_sent)
        gate.shut()
        bridge._send_command(lambda: None)
        await at_gate(gate)
        assert bridge.submit(batch[:2]) is None  # on the driver thread
        assert driver.batches == []
        gate.open()
        await until(lambda: bridge._worker.commands_done == bridge._commands_sent)
        assert driver.batches == [2]
        assert bridge.submit(batch[2:]) == Submitted()  # on the event loop
        assert driver.batches == [2, 1]


async def test_a_client_hurries_as_soon_as_it_exists() -> None:
    """The thread has just set `lingering_driver`, but the new client does not hurry yet."""
    driver = Direct()
    driver.manual = False
    async with bridged(driver) as bridge:
        gate = cast("Gated", bridge._worker).on_lingering
        bridge.hurry(True)
        gate.shut()
        bridge.reopen(ConnectionError(), 0, 0)
        await at_gate(gate)
        assert driver.told == [True]
        bridge.hurry(True)
        assert driver.told == [True, True]
        assert bridge.last_error() is None
        assert not bridge.is_disconnected()
        gate.open()


@pytest.mark.parametrize("ends", ["stopped", "abandoned"])
async def test_no_client_is_opened_after_the_end_has_started(ends: str) -> None:
    """The event loop or a finalizer ends the producer while the thread makes a driver."""
    drivers: list[FakeDriver] = []

    def make() -> FakeDriver:
        if len(drivers) == 1:  # a real program does this in another thread
            if ends == "stopped":
                made._worker.stopping.set()
            else:
                made._worker.abandon()
        drivers.append(FakeDriver())
        return drivers[-1]

    made = Bridge(current_loop(), make, time.monotonic)
    await made.open()
    with pytest.warns(ResourceWarning) if ends == "abandoned" else nullcontext():
        made.reopen(ConnectionError(), 0, 0)
        await until(lambda: len(drivers) == 2)
        await made.stop(0)
    assert [driver.opened for driver in drivers] == [1, 0]
    assert [len(driver.closed) > 0 for driver in drivers] == [True, True]


class AddressesLater(threading.Event):
    """An event that is set after some waits."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits -= 1
        return self.waits < 0


def test_the_first_client_waits_until_the_addresses_are_known() -> None:
    driver = FakeDriver()
    addresses = AddressesLater(3)
    no_loop: Any = None
    thread = DriverThread(no_loop, lambda: driver, time.monotonic, lambda: None)
    thread.open_first(1, addresses)
    assert addresses.waits == -1
    assert driver.opened == 1
    assert thread.outbox == [ClientOpened(1)]
