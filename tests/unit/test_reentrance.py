"""Code that interrupts the producer on the event loop's thread, between any two instructions.

Python runs finalizers, weakref callbacks and signal handlers in this way.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    Delivery,
    ProducerMisused,
    ProducerSettings,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer._driver_events import EventStream, MetadataChanged
from anyio_sendproducer._loops import current_loop
from anyio_sendproducer.testing import FakeDriver
from tests.support.asked_driver import AskedDriver
from tests.support.calls import at_gate, quiet, record, taken, task_group
from tests.support.observers import Recorder
from tests.support.waiting import PATIENCE

#: Interruptions come in the package, and in the code that runs and wakes its tasks.
INTERRUPTED = ("anyio_sendproducer", "anyio", "trio", "asyncio")

#: The range of instructions of one `send` that the test interrupts, and its step.
INSTRUCTIONS, STEP = 3000, 17


class DirectFake(FakeDriver):
    """A fake driver that answers while the event loop submits a record."""

    direct = True


class Interruption:
    """Calls a function once, after a number of instructions of the running code."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.left = -1

    def after(self, instructions: int) -> None:
        self.left = instructions

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            if str(frame.f_globals.get("__name__")).split(".", 1)[0] not in INTERRUPTED:
                return None
            frame.f_trace_opcodes = True
        elif event == "opcode" and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.call()
        return self.trace

    def __enter__(self) -> Interruption:  # noqa: PYI034  # Self is in typing since Python 3.11
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        frame: FrameType | None = sys._getframe().f_back
        while frame is not None:  # code that runs already, such as the event loop
            self.trace(frame, "call", None)
            if frame.f_trace_opcodes:
                frame.f_trace = self.trace
            frame = frame.f_back
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


@pytest.mark.parametrize("observed", [False, True], ids=["plain", "observed"])
@pytest.mark.parametrize("make", [FakeDriver, DirectFake, AskedDriver])
async def test_a_call_between_any_two_instructions_is_accepted_or_refused(
    settings: ProducerSettings, make: Callable[[], FakeDriver], observed: bool
) -> None:
    driver = make()
    recorder = Recorder()
    observers = [recorder] if observed else []
    accepted: list[Delivery] = []
    refused: list[ProducerMisused] = []
    async with open_send_producer(settings, driver=driver, observers=observers) as producer:

        def finalize() -> None:
            try:
                accepted.append(producer.enqueue_nowait(record()))
            except ProducerMisused as error:
                refused.append(error.with_traceback(None))

        sent = 0
        with Interruption(finalize) as interruption, anyio.fail_after(PATIENCE):
            for instructions in range(0, INSTRUCTIONS, STEP):
                interruption.after(instructions)
                await producer.send(record())
                sent += 1
            await producer.flush()
        with anyio.fail_after(PATIENCE):
            for delivery in accepted:
                await delivery.wait()
        told = producer.statistics()
    assert accepted
    assert refused
    assert told.accepted == told.delivered == sent + len(accepted)
    assert len(driver.submitted) == sent + len(accepted)
    if observed:
        assert recorder.story.count("a") == recorder.story.count("D") == told.accepted


async def test_a_call_that_interrupts_the_producer_is_refused_with_the_reason(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    for observers in ([], [Recorder()]):
        async with open_send_producer(settings, driver=fake, observers=observers) as producer:
            with producer._engine.step:
                with pytest.raises(ProducerMisused, match="interrupted the producer's own code"):
                    producer.enqueue_nowait(record())
                with pytest.raises(ProducerMisused, match="interrupted the producer's own code"):
                    producer._enter(record())
                assert producer.statistics().accepted == 0
            await producer.send(record())
            assert producer.statistics().accepted == 1


async def test_the_event_loop_may_make_the_call(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The error message recommends this."""
    async with open_send_producer(settings, driver=fake) as producer:
        with producer._engine.step:
            current_loop().call_soon_threadsafe(lambda: producer.enqueue_nowait(record()))
        await quiet()
        assert producer.statistics().accepted == 1


async def waiting_for_room(producer: SendProducer) -> None:
    await producer.enqueue(record())


async def flushing(producer: SendProducer) -> None:
    await producer.flush()


async def sending(producer: SendProducer) -> None:
    await producer.send(record())


async def sending_many(producer: SendProducer) -> None:
    await producer.send_many([record(), record()])


def close_at_once(producer: SendProducer, coroutine: Coroutine[Any, Any, object]) -> None:
    with producer._engine.step:
        coroutine.close()


def close_on_a_thread(_: SendProducer, coroutine: Coroutine[Any, Any, object]) -> None:
    thread = threading.Thread(target=coroutine.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize("close", [close_at_once, close_on_a_thread])
@pytest.mark.parametrize(
    ("use", "withdrawn"), [(sending, 1), (sending_many, 2), (waiting_for_room, 0), (flushing, 0)]
)
async def test_the_garbage_collector_may_close_a_coroutine(
    settings: ProducerSettings,
    use: Callable[[SendProducer], Coroutine[Any, Any, object]],
    withdrawn: int,
    close: Callable[[SendProducer, Coroutine[Any, Any, object]], None],
) -> None:
    """It runs in another thread, or interrupts the producer's code. The event loop cleans up."""
    fake = FakeDriver(manual=True)
    room = 1 if use is waiting_for_room else 10
    async with open_send_producer(settings.with_max_in_flight(room), driver=fake) as producer:
        fake.on_submit.shut()
        producer.enqueue_nowait(record())
        await at_gate(fake.on_submit)
        coroutine = use(producer)
        coroutine.send(None)
        close(producer, coroutine)
        assert producer.statistics().withdrawn == 0
        await quiet()
        told = producer.statistics()
        assert (told.withdrawn, told.waiting) == (withdrawn, 0)
        fake.manual = False
        fake.on_submit.open()
        await producer.flush()
        assert len(fake.submitted) == 1


async def test_the_garbage_collector_may_close_a_wait_for_an_outcome(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        waiting = delivery.wait()
        waiting.send(None)
        close_at_once(producer, waiting)
        await taken(fake, 1)
        fake.acknowledge()
        assert (await delivery.wait()).offset == 0


async def test_a_wake_up_while_the_task_starts_to_wait_is_not_lost() -> None:
    """A finalizer, for example, can wake a waiter while its task starts to wait."""
    loop = current_loop()

    async def sleep(wake_at: int) -> None:
        waiter = loop.new_waiter()
        with Interruption(lambda: loop.wake((waiter,))) as interruption:
            interruption.after(wake_at)
            await waiter

    for instructions in range(60):
        with anyio.move_on_after(PATIENCE):
            async with task_group() as tasks:
                tasks.start_soon(sleep, instructions)
                for _ in range(3):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()


async def test_events_that_come_while_the_receiver_registers_are_received() -> None:
    loop = current_loop()

    async def receive(events: EventStream, received: list[object]) -> None:
        received.extend([some async for some in events])

    for instructions in range(0, 150, 2):
        events = EventStream(loop)
        received: list[object] = []
        put = functools.partial(events.put, [MetadataChanged()])
        with Interruption(put) as interruption:
            async with task_group() as tasks:
                interruption.after(instructions)
                tasks.start_soon(receive, events, received)
                await quiet()
                is_interrupted = interruption.left < 0
                events.close()
        assert len(received) == is_interrupted


# The trace functions of the tests above hide these lines from coverage. So the next tests interrupt
# at one fixed place each.


async def test_a_task_that_wakes_its_own_waiter_before_it_waits() -> None:
    loop = current_loop()

    class Interrupted:
        def __await__(self) -> Any:
            waiter = loop.new_waiter()
            waiting = waiter.__await__()
            loop.wake((waiter,))
            return waiting

    with anyio.fail_after(PATIENCE):
        await Interrupted()


async def test_an_event_that_comes_as_soon_as_the_receiver_registers() -> None:
    events = EventStream(current_loop())

    class Waiting(list[Any]):
        def append(self, waiter: Any, /) -> None:
            super().append(waiter)
            events.put([MetadataChanged()])

    events._waiting = Waiting()
    with anyio.fail_after(PATIENCE):
        assert await anext(events) == [MetadataChanged()]
