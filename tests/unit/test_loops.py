"""The adapters of the event loops: waiters, parked tasks, and calls from other threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from anyio_sendproducer import ProducerSettings, open_send_producer
from anyio_sendproducer._loops import Loop, Sentinel, WaiterList, current_loop
from anyio_sendproducer._loops._asyncio import AsyncioLoop
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import Call, quiet, record, task_group
from tests.support.waiting import PATIENCE

EVERY_LOOP = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"debug": True}), id="asyncio-debug"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param("trio", id="trio"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del EVERY_LOOP[2]


@pytest.fixture(params=EVERY_LOOP)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Use every event loop, not only the usual two."""
    return request.param


asyncio_only = pytest.mark.parametrize(
    "anyio_backend", [one for one in EVERY_LOOP if one.id != "trio"], indirect=True
)


class Place:
    """An object whose attribute `waiter` the event loop sets when a task parks."""

    waiter: object = None


async def wait(waiter: Awaitable[object]) -> str:
    await waiter
    return "woken"


async def wait_in(loop: Loop, place: Place) -> str:
    await loop.park(place)
    return "woken"


async def test_now_is_the_time_of_the_loop() -> None:
    before = anyio.current_time()
    now = current_loop().now()
    assert before <= now <= anyio.current_time()


def test_a_loop_may_have_its_own_time_and_futures() -> None:
    class OwnLoop(asyncio.SelectorEventLoop):
        futures = 0

        def time(self) -> float:
            return 1e6 + super().time()

        def create_future(self) -> asyncio.Future[Any]:
            self.futures += 1
            return super().create_future()

    async def use() -> tuple[float, int]:
        loop = current_loop()
        running = asyncio.get_running_loop()
        assert isinstance(running, OwnLoop)
        before = running.futures
        loop.park(Place())
        loop.new_waiter()
        return loop.now(), running.futures - before

    with closing(OwnLoop()) as own:
        now, futures = own.run_until_complete(use())
    assert now > 1e6
    assert futures == 2


def test_now_uses_a_replaced_clock_of_the_loop() -> None:
    async def use() -> float:
        running: Any = asyncio.get_running_loop()
        running.time = lambda: 7.0
        try:
            return current_loop().now()
        finally:
            del running.time

    assert asyncio.run(use()) == 7.0


async def test_is_current_is_true_only_on_its_own_loop() -> None:
    loop = current_loop()
    assert loop.is_current()
    assert not await anyio.to_thread.run_sync(loop.is_current)

    async def elsewhere() -> None:
        assert current_loop().is_current()
        assert not loop.is_current()

    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(lambda name: anyio.run(elsewhere, backend=name), backend)


async def test_a_waiter_is_woken() -> None:
    loop = current_loop()
    waiter = loop.new_waiter()
    async with task_group() as tasks:
        call = Call(tasks, wait, waiter)
        await quiet()
        assert call.running
        loop.wake([waiter])
    assert call.value == "woken"


async def test_parked_tasks_are_woken() -> None:
    loop = current_loop()
    places = [Place(), Place()]
    async with task_group() as tasks:
        calls = [Call(tasks, wait_in, loop, place) for place in places]
        await quiet()
        assert all(call.running for call in calls)
        loop.wake([places[1].waiter, places[0].waiter])
    assert [call.value for call in calls] == ["woken", "woken"]


async def test_a_parked_task_can_be_cancelled() -> None:
    """Also in the step in which it is woken. A waiter that is left behind wakes no task."""
    loop = current_loop()
    cancelled, both = Place(), Place()
    async with task_group() as tasks:
        call = Call(tasks, wait_in, loop, cancelled)
        other = Call(tasks, wait_in, loop, both)
        await quiet()
        call.scope.cancel()
        await call.wait()
        assert call.cancelled
        loop.wake([] if cancelled.waiter is None else [cancelled.waiter])
        loop.wake([both.waiter])
        other.scope.cancel()
        await other.wait()
    assert other.cancelled or other.value == "woken"


async def test_a_parked_task_that_was_woken_goes_on_despite_cancellation() -> None:
    """The task was woken before it was cancelled, so it goes on."""
    loop = current_loop()
    place = Place()
    async with task_group() as tasks:
        call = Call(tasks, wait_in, loop, place)
        await quiet()
        loop.wake([place.waiter])
        call.scope.cancel()
    assert call.value == "woken"


async def test_a_parked_task_is_woken_twice() -> None:
    """Two callers wake the same task, in one call or in calls that follow each other."""
    loop = current_loop()
    place, other = Place(), Place()
    async with task_group() as tasks:
        calls = [Call(tasks, wait_in, loop, one) for one in (place, other)]
        await quiet()
        if not isinstance(place.waiter, trio.lowlevel.Task):  # Trio's are given out once
            loop.wake([place.waiter, place.waiter])
        loop.wake([place.waiter])
        loop.wake([other.waiter])
    assert [call.value for call in calls] == ["woken", "woken"]


async def test_woken_tasks_go_on_in_order() -> None:
    """asyncio's event loops run tasks in the order of their wake-ups, parked tasks included."""
    loop = current_loop()
    said: list[int] = []
    places = [Place() for _ in range(3)]
    waiters = [loop.new_waiter() for _ in range(3)]

    async def say(number: int, waiting: Callable[[], Awaitable[object]]) -> None:
        await waiting()
        said.append(number)

    async with task_group() as tasks:
        for number, place, waiter in zip((0, 2, 4), places, waiters, strict=True):
            tasks.start_soon(say, number, functools.partial(loop.park, place))
            tasks.start_soon(say, number + 1, functools.partial(wait, waiter))
        await quiet()
        line = [
            one
            for place, waiter in zip(places, waiters, strict=True)
            for one in (place.waiter, waiter)
        ]
        loop.wake([*line[:3], WaiterList(line[3:4]), *line[4:]])
    assert len(said) == 6
    if not isinstance(places[0].waiter, trio.lowlevel.Task):  # Trio has no order
        assert said == sorted(said)


async def test_a_waiter_may_be_woken_before_it_is_awaited() -> None:
    loop = current_loop()
    waiter = loop.new_waiter()
    loop.wake([waiter])
    with anyio.fail_after(PATIENCE):
        assert await wait(waiter) == "woken"


async def test_a_waiter_may_be_woken_twice() -> None:
    loop = current_loop()
    before, while_awaited = loop.new_waiter(), loop.new_waiter()
    async with task_group() as tasks:
        loop.wake([before, before])
        first = Call(tasks, wait, before)
        second = Call(tasks, wait, while_awaited)
        await quiet()
        loop.wake([while_awaited, while_awaited])
        loop.wake([while_awaited])
    loop.wake([before, while_awaited])
    assert first.value == second.value == "woken"


async def test_a_waiter_list_wakes_all_its_waiters() -> None:
    loop = current_loop()
    waiters = [loop.new_waiter() for _ in range(4)]
    async with task_group() as tasks:
        calls = [Call(tasks, wait, waiter) for waiter in waiters]
        await quiet()
        loop.wake([waiters[0], WaiterList(waiters[1:3]), WaiterList()])
        for call in calls[:3]:
            assert (await call.wait()).value == "woken"
        assert calls[3].running
        loop.wake([WaiterList(waiters)])
    assert calls[3].value == "woken"


async def test_a_waiter_may_be_woken_after_its_task_was_cancelled() -> None:
    loop = current_loop()
    waiter, other = loop.new_waiter(), loop.new_waiter()
    async with task_group() as tasks:
        call = Call(tasks, wait, waiter)
        witness = Call(tasks, wait, other)
        await quiet()
        await call.cancel()
        loop.wake([waiter, other])
        await quiet()
    assert call.cancelled
    assert witness.value == "woken"


async def test_a_task_is_cancelled_and_woken_at_once() -> None:
    """The task is either cancelled or woken, and goes on only once."""
    loop = current_loop()
    waiter = loop.new_waiter()
    async with task_group() as tasks:
        call = Call(tasks, wait, waiter)
        await quiet()
        call.scope.cancel()
        loop.wake([waiter])
    assert call.cancelled != (call.error is None and not call.cancelled)


async def test_a_waiter_is_awaited_in_a_cancelled_scope() -> None:
    loop = current_loop()
    for woken in (False, True):
        waiter = loop.new_waiter()
        if woken:
            loop.wake([waiter])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await waiter
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught


async def test_call_soon_threadsafe_from_another_thread() -> None:
    loop = current_loop()
    waiter = loop.new_waiter()
    threads: list[int] = []

    def called() -> None:
        threads.append(threading.get_ident())
        loop.wake([waiter])

    async with task_group() as tasks:
        call = Call(tasks, wait, waiter)
        await anyio.to_thread.run_sync(loop.call_soon_threadsafe, called)
    assert call.value == "woken"
    assert threads == [threading.get_ident()]


async def test_a_call_after_the_loop_has_ended(anyio_backend: Any) -> None:
    name: str
    options: dict[str, Any]
    name, options = (anyio_backend, {}) if isinstance(anyio_backend, str) else anyio_backend
    called: list[str] = []

    async def live() -> Loop:
        return current_loop()

    def run() -> None:
        loop = anyio.run(live, backend=name, backend_options=options)
        loop.call_soon_threadsafe(lambda: called.append("called"))
        assert not loop.is_current()

    await anyio.to_thread.run_sync(run)
    assert called == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_trio_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio")
    assert current_loop().is_current()
    assert "trio" not in sys.modules


def test_without_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        current_loop()


# --- parked tasks of asyncio ---------------------------------------------------------------------


class Parked:
    """Tasks that are parked on an asyncio event loop, and a log of how they went on."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.places: list[Place] = []
        self.loop = current_loop()

    async def task(self, name: str, error: BaseException | None = None) -> None:
        place = Place()
        self.places.append(place)
        try:
            await self.loop.park(place)
        except asyncio.CancelledError as cancelled:
            self.said.append(f"{name} cancelled {cancelled.args}")
            raise
        self.said.append(name)
        if error is not None:
            raise error

    def wake(self) -> None:
        self.loop.wake(place.waiter for place in self.places)


@asyncio_only
async def test_the_waiter_of_a_parked_task_is_a_future() -> None:
    parked = Parked()
    async with task_group() as tasks:
        call = Call(tasks, parked.task, "task")
        await quiet()
        (place,) = parked.places
        assert asyncio.isfuture(place.waiter)
        assert isinstance(place.waiter, asyncio.Future)
        assert not place.waiter.done()
        parked.wake()
        assert place.waiter.done()
        assert not place.waiter.cancel()
        await call.wait()
        assert parked.said == ["task"]


def test_in_debug_mode_each_parked_task_has_its_own_future() -> None:
    """So asyncio can report which of them is slow."""

    async def parked() -> type[object]:
        place = Place()
        current_loop().park(place)
        return type(place.waiter)

    assert asyncio.run(parked(), debug=True) is asyncio.Future
    assert asyncio.run(parked(), debug=False) is not asyncio.Future


@asyncio_only
async def test_asyncio_cancels_parked_tasks() -> None:
    parked = Parked()
    first = asyncio.create_task(parked.task("first"))
    late = asyncio.create_task(parked.task("late"))
    await asyncio.sleep(0)
    first.cancel("why")
    first.cancel("again")
    await asyncio.wait([first])
    assert first.cancelled()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(parked.task("timed"), 0.001)
    parked.wake()
    late.cancel("after the wake-up")
    await asyncio.wait([late])
    assert late.cancelled()  # asyncio's own cancellation does not check whether it was woken
    assert [said.partition(" ")[0] for said in parked.said] == ["first", "timed", "late"]
    assert all("cancelled" in said for said in parked.said)
    if sys.version_info >= (3, 11):
        assert parked.said[0] == "first cancelled ('why',)"


@pytest.mark.parametrize("way", ["woken", "cancelled", "woken and cancelled"])
@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"debug": True})], indirect=True)
async def test_a_waiter_keeps_no_finished_task_alive(way: str) -> None:
    """Nor does the task's own exception. The task is freed without the garbage collector."""
    parked = Parked()
    task = asyncio.create_task(parked.task("task"))
    await asyncio.sleep(0)
    gone = weakref.ref(task)
    gc.disable()
    try:
        if way != "cancelled":
            parked.wake()
        if way != "woken":
            task.cancel()
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()
    assert parked.places[0].waiter is not None


@asyncio_only
async def test_anyio_knows_whether_a_parked_task_is_being_cancelled() -> None:
    parked = Parked()
    tasks = [asyncio.create_task(parked.task(name)) for name in ("cancelled", "woken")]
    await asyncio.sleep(0)
    by_id = {info.id: info for info in anyio.get_running_tasks()}
    cancelled, woken = (by_id[id(task)] for task in tasks)
    assert not cancelled.has_pending_cancellation()
    tasks[0].cancel()
    parked.wake()
    assert cancelled.has_pending_cancellation()
    assert not woken.has_pending_cancellation()
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert not tasks[1].cancelled()


@asyncio_only
async def test_a_task_that_is_cancelled_before_it_parks_does_not_wait() -> None:
    parked = Parked()

    async def cancel_and_park() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await parked.task("task")

    task = asyncio.create_task(cancel_and_park())
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    parked.wake()


@asyncio_only
async def test_each_parked_task_goes_on_in_its_own_context() -> None:
    name = contextvars.ContextVar[str]("name")
    parked = Parked()

    async def named(own: str) -> str:
        name.set(own)
        await parked.task(own)
        return name.get()

    tasks = [asyncio.create_task(named(own)) for own in "abc"]
    await asyncio.sleep(0)
    parked.wake()
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    assert parked.said == ["a", "b", "c"]


@asyncio_only
async def test_a_parked_task_may_be_a_task_in_python() -> None:
    """Debuggers and ``nest_asyncio`` use such tasks. They call only public methods of futures."""
    in_python: Callable[..., asyncio.Task[None]] = vars(asyncio.tasks)["_PyTask"]
    parked = Parked()
    tasks = [in_python(parked.task(name)) for name in ("woken", "cancelled")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    parked.wake()
    await asyncio.wait(tasks)
    assert sorted(parked.said) == ["cancelled cancelled ()", "woken"]


def test_a_parked_task_that_ends_the_loop_does_not_block_the_others() -> None:
    async def begin() -> tuple[Parked, list[asyncio.Task[None]]]:
        parked = Parked()
        errors = {"exits": SystemExit(3), "fails": ValueError("its own")}
        names = ("first", "fails", "exits", "last")
        tasks = [asyncio.create_task(parked.task(name, errors.get(name))) for name in names]
        await asyncio.sleep(0)
        return parked, tasks

    async def rest(tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.wait(tasks, timeout=5)

    with closing(asyncio.SelectorEventLoop()) as loop:
        parked, tasks = loop.run_until_complete(begin())
        loop.call_soon(parked.wake)
        with pytest.raises(SystemExit):
            loop.run_forever()
        assert parked.said == ["first", "fails", "exits"]
        loop.run_until_complete(rest(tasks))
        assert parked.said == ["first", "fails", "exits", "last"]
        assert [type(task.exception()) for task in tasks] == [
            type(None),
            ValueError,
            SystemExit,
            type(None),
        ]


# --- Trio as a guest of asyncio ------------------------------------------------------------------


def run_as_guest(main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main`` on Trio, on top of a running asyncio loop."""

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        (await done).unwrap()

    asyncio.run(host())


def test_in_guest_mode_the_current_loop_is_trio() -> None:
    async def main() -> None:
        loop = current_loop()
        assert loop.is_current()
        before = trio.current_time()
        assert before <= loop.now() <= trio.current_time()
        waiter = loop.new_waiter()
        async with task_group() as tasks:
            call = Call(tasks, wait, waiter)
            await anyio.to_thread.run_sync(loop.call_soon_threadsafe, lambda: loop.wake([waiter]))
        assert call.value == "woken"

    run_as_guest(main)


def test_a_producer_in_guest_mode(settings: ProducerSettings, fake: FakeDriver) -> None:
    async def main() -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            assert (await producer.send(record())).offset == 0

    run_as_guest(main)


def test_a_closed_loop_frees_the_objects_that_it_kept() -> None:
    loop = asyncio.new_event_loop()
    sentinel = Sentinel()
    alive = weakref.ref(sentinel)
    let_go = AsyncioLoop(loop).keep(sentinel)
    del sentinel
    gc.collect()
    assert alive() is not None
    loop.close()
    gc.collect()
    assert alive() is None
    let_go()
