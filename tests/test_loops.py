"""The loops' own means: cells that are woken once, and calls from other threads."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from anyio_sendproducer import ProducerSettings, open_send_producer
from anyio_sendproducer._loops import Loop, Several, current_loop
from anyio_sendproducer.testing import FakeDriver
from tests.calls import Call, quiet, record, task_group

EVERY_LOOP = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param("trio", id="trio"),
]
if sys.platform == "win32" or sys.implementation.name != "cpython":  # pragma: no cover
    del EVERY_LOOP[1]


@pytest.fixture(params=EVERY_LOOP)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every loop there is, in place of the usual two."""
    return request.param


class Place:
    """Where somebody waits."""

    waiter: object = None


async def wait(cell: Awaitable[object]) -> str:
    await cell
    return "woken"


async def wait_in(loop: Loop, place: Place) -> str:
    await loop.park(place)
    return "woken"


async def test_time_is_the_loops() -> None:
    before = anyio.current_time()
    now = current_loop().now()
    assert before <= now <= anyio.current_time()


def test_a_loop_may_have_a_time_and_futures_of_its_own() -> None:
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
        loop.cell()
        return loop.now(), running.futures - before

    with closing(OwnLoop()) as own:
        now, futures = own.run_until_complete(use())
    assert now > 1e6
    assert futures == 2


async def test_it_knows_where_it_is() -> None:
    loop = current_loop()
    assert loop.is_current()
    assert not await anyio.to_thread.run_sync(loop.is_current)

    async def elsewhere() -> None:
        assert current_loop().is_current()
        assert not loop.is_current()

    for backend in ("asyncio", "trio"):
        await anyio.to_thread.run_sync(lambda name: anyio.run(elsewhere, backend=name), backend)


async def test_a_cell_is_woken() -> None:
    loop = current_loop()
    cell = loop.cell()
    async with task_group() as tasks:
        call = Call(tasks, wait, cell)
        await quiet()
        assert call.running
        loop.wake([cell])
    assert call.value == "woken"


async def test_whoever_is_parked_is_woken() -> None:
    loop = current_loop()
    places = [Place(), Place()]
    async with task_group() as tasks:
        calls = [Call(tasks, wait_in, loop, place) for place in places]
        await quiet()
        assert all(call.running for call in calls)
        loop.wake([places[1].waiter, places[0].waiter])
    assert [call.value for call in calls] == ["woken", "woken"]


async def test_whoever_is_parked_can_be_cancelled() -> None:
    """Also in the step in which it is woken: what is left behind wakes nobody."""
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


async def test_woken_before_it_is_awaited() -> None:
    loop = current_loop()
    cell = loop.cell()
    loop.wake([cell])
    with anyio.fail_after(1):
        assert await wait(cell) == "woken"


async def test_woken_twice() -> None:
    loop = current_loop()
    before, while_awaited = loop.cell(), loop.cell()
    async with task_group() as tasks:
        loop.wake([before, before])
        first = Call(tasks, wait, before)
        second = Call(tasks, wait, while_awaited)
        await quiet()
        loop.wake([while_awaited, while_awaited])
        loop.wake([while_awaited])
    loop.wake([before, while_awaited])
    assert first.value == second.value == "woken"


async def test_several_cells_in_place_of_one() -> None:
    loop = current_loop()
    cells = [loop.cell() for _ in range(4)]
    async with task_group() as tasks:
        calls = [Call(tasks, wait, cell) for cell in cells]
        await quiet()
        loop.wake([cells[0], Several(cells[1:3]), Several()])
        for call in calls[:3]:
            assert (await call.wait()).value == "woken"
        assert calls[3].running
        loop.wake([Several(cells)])
    assert calls[3].value == "woken"


async def test_cancelled_and_then_woken() -> None:
    loop = current_loop()
    cell, other = loop.cell(), loop.cell()
    async with task_group() as tasks:
        call = Call(tasks, wait, cell)
        witness = Call(tasks, wait, other)
        await quiet()
        await call.cancel()
        loop.wake([cell, other])
        await quiet()
    assert call.cancelled
    assert witness.value == "woken"


async def test_cancelled_and_woken_at_once() -> None:
    """Whichever it is, it is one of the two, and the task goes on only once."""
    loop = current_loop()
    cell = loop.cell()
    async with task_group() as tasks:
        call = Call(tasks, wait, cell)
        await quiet()
        call.scope.cancel()
        loop.wake([cell])
    assert call.cancelled != (call.error is None and not call.cancelled)


async def test_awaited_in_a_cancelled_scope() -> None:
    loop = current_loop()
    for woken in (False, True):
        cell = loop.cell()
        if woken:
            loop.wake([cell])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cell
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught


async def test_called_from_another_thread() -> None:
    loop = current_loop()
    cell = loop.cell()
    threads: list[int] = []

    def called() -> None:
        threads.append(threading.get_ident())
        loop.wake([cell])

    async with task_group() as tasks:
        call = Call(tasks, wait, cell)
        await anyio.to_thread.run_sync(loop.call_soon_threadsafe, called)
    assert call.value == "woken"
    assert threads == [threading.get_ident()]


async def test_called_when_the_loop_has_ended(anyio_backend: Any) -> None:
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


async def test_trio_need_not_be_there(
    monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "asyncio":
        monkeypatch.delitem(sys.modules, "trio")
        assert current_loop().is_current()
        assert "trio" not in sys.modules


def test_in_no_loop() -> None:
    with pytest.raises(RuntimeError):
        current_loop()


# --- Trio as a guest of asyncio --------------------------------------------------------------


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


def test_as_a_guest_it_is_trio_that_runs() -> None:
    async def main() -> None:
        loop = current_loop()
        assert loop.is_current()
        assert abs(loop.now() - trio.current_time()) < 1
        cell = loop.cell()
        async with task_group() as tasks:
            call = Call(tasks, wait, cell)
            await anyio.to_thread.run_sync(loop.call_soon_threadsafe, lambda: loop.wake([cell]))
        assert call.value == "woken"

    run_as_guest(main)


def test_a_producer_as_a_guest(settings: ProducerSettings, fake: FakeDriver) -> None:
    async def main() -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            assert (await producer.send(record())).offset == 0

    run_as_guest(main)
