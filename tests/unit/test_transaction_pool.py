"""A pool of transactional producers with drivers that have no broker."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any, cast

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import (
    ProducerClosed,
    ProducerFenced,
    ProducerMisused,
    ProducerSettings,
    ProducerStartError,
    SendProducerError,
    SettingsError,
    Transaction,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionPool,
    TransactionState,
)
from anyio_sendproducer.drivers import Driver
from anyio_sendproducer.telemetry import GenerationOpened
from anyio_sendproducer.testing import FakeDriver
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.bare import nothing
from tests.support.calls import (
    Call,
    at_gate,
    fail,
    never,
    quiet,
    raising,
    record,
    taken,
    task_group,
)
from tests.support.observers import Recorder
from tests.support.waiting import PATIENCE, until

who: ContextVar[str] = ContextVar("who", default="nobody")


@pytest.fixture
def settings(settings: ProducerSettings) -> ProducerSettings:
    return settings.with_transactional_id("id")


class Fakes:
    """A driver factory that makes a fake driver for each client of each transactional_id."""

    def __init__(self, size: int, make: Callable[[], FakeDriver] = FakeDriver) -> None:
        self._make = make
        self._made: dict[str, list[FakeDriver]] = {f"id-{number}": [] for number in range(size)}
        #: Called with each transactional_id and its driver before the driver is opened.
        self.prepare: Callable[[str, FakeDriver], object] = nothing
        #: Read by the producer: whether the event loop's thread makes all calls of the driver.
        self.threadless = make is PolledFakeDriver

    def __call__(self, settings: ProducerSettings) -> Driver:
        name = settings.transactional_id
        assert name is not None
        fake = self._make()
        self.prepare(name, fake)
        self._made[name].append(fake)
        return fake(settings)

    def __getitem__(self, number: int) -> FakeDriver:
        """The last client of a transactional_id."""
        return self._made[f"id-{number}"][-1]

    async def at_open(self, number: int, client: int) -> FakeDriver:
        """Wait until a client of a transactional_id waits at its gate."""
        made = self._made[f"id-{number}"]
        await until(lambda: len(made) == client)
        await at_gate(made[-1].on_open)
        return made[-1]

    @property
    def made(self) -> list[int]:
        """The number of clients made for each transactional_id."""
        return [len(made) for made in self._made.values()]

    @property
    def opened(self) -> list[int]:
        """The number of clients opened for each transactional_id."""
        return [sum(fake.opened for fake in made) for made in self._made.values()]

    @property
    def all_closed(self) -> bool:
        """Whether each opened client is closed."""
        return all(fake.closed for made in self._made.values() for fake in made if fake.opened)

    @property
    def ended(self) -> list[list[str]]:
        """The ends of the transactions of each transactional_id."""
        return [
            [how for fake in made for how, _ in fake.transactions] for made in self._made.values()
        ]


def shut(_: str, fake: FakeDriver) -> None:
    fake.on_open.shut()


def refuse_to_start(_: str, fake: FakeDriver) -> None:
    fake.open_error = ProducerStartError("no broker")


def once(error: SendProducerError) -> Callable[[bool], SendProducerError | None]:
    """Return an `end_error` that fails the next end of a transaction."""
    errors = [error]
    return lambda _: errors.pop() if errors else None


def fenced() -> Callable[[bool], SendProducerError | None]:
    return once(ProducerFenced("another producer has the name"))


async def commit(pool: TransactionPool) -> Transaction:
    async with pool.transaction() as tx:
        await tx.send(record())
    return tx


def name_of(transaction: Transaction) -> str:
    """The transactional_id of a transaction."""
    return repr(transaction).split("'")[1]


class Held:
    """A transaction in its own task, which is open until the test ends it."""

    def __init__(self, tasks: anyio.abc.TaskGroup, pool: TransactionPool) -> None:
        self._pool = pool
        self._end = anyio.Event()
        self.transactions: list[Transaction] = []
        self.call = Call(tasks, self._run)

    async def _run(self) -> None:
        async with self._pool.transaction() as tx:
            self.transactions.append(tx)
            await self._end.wait()

    @property
    def is_open(self) -> bool:
        return bool(self.transactions) and self.call.running

    @property
    def name(self) -> str:
        """The transactional_id of the transaction."""
        return name_of(self.transactions[0])

    async def until_open(self) -> None:
        await until(lambda: self.is_open)

    async def end(self) -> SendProducerError | None:
        self._end.set()
        await self.call.wait()
        return self.call.error


async def hold(tasks: anyio.abc.TaskGroup, pool: TransactionPool) -> Held:
    """Request a transaction after all earlier requests."""
    held = Held(tasks, pool)
    await quiet()
    return held


# --- transactions --------------------------------------------------------------------------------


async def test_each_transaction_has_a_producer_with_its_own_transactional_id(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(2)
    recorder = Recorder()
    pool = TransactionPool(settings, 2, driver=fakes, observers=[recorder])
    assert repr(pool) == "<TransactionPool new 'id' size=2>"
    assert pool.statistics().producers == {}
    async with pool as entered:
        assert entered is pool
        async with task_group() as tasks:
            held = [await hold(tasks, pool) for _ in range(3)]
            await held[0].until_open()
            await held[1].until_open()
            await quiet()
            figures = pool.statistics()
            assert (figures.size, figures.in_use, figures.waiting, figures.replaced) == (2, 2, 1, 0)
            assert {one.name for one in held[:2]} == set(figures.producers) == {"id-0", "id-1"}
            assert not held[2].transactions
            assert await held[1].end() is None
            await held[2].until_open()
            assert held[2].name == held[1].name
            for one in held:
                await one.end()
        assert repr(pool) == "<TransactionPool open 'id' size=2>"
    assert repr(pool) == "<TransactionPool closed 'id' size=2>"
    figures = pool.statistics()
    assert (figures.in_use, figures.waiting) == (0, 0)
    assert {one.state for one in figures.producers.values()} == {"closed"}
    assert sorted(fakes.ended, key=len) == [["committed"], ["committed", "committed"]]
    assert len(recorder.of(GenerationOpened)) == 2


async def test_the_first_producer_starts_alone_and_the_others_together(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(3)
    fakes.prepare = shut
    ready = anyio.Event()

    async def use() -> None:
        async with TransactionPool(settings, 3, driver=fakes):
            ready.set()

    async with task_group() as tasks:
        tasks.start_soon(use)
        first = await fakes.at_open(0, 1)
        await quiet()
        assert fakes.made == [1, 0, 0]
        first.on_open.open()
        second, third = await fakes.at_open(1, 1), await fakes.at_open(2, 1)
        assert not ready.is_set()
        second.on_open.open()
        third.on_open.open()
        with anyio.fail_after(PATIENCE):
            await ready.wait()


@pytest.mark.parametrize("failing", [0, 2])
async def test_the_pool_raises_the_error_of_a_producer_that_cannot_start(
    settings: ProducerSettings, failing: int
) -> None:
    fakes = Fakes(3)

    def prepare(name: str, fake: FakeDriver) -> None:
        if name == f"id-{failing}":
            refuse_to_start(name, fake)

    fakes.prepare = prepare
    with raising(ProducerStartError, match="no broker"):
        async with TransactionPool(settings, 3, driver=fakes):
            never()
    assert fakes.opened == ([0, 0, 0] if failing == 0 else [1, 1, 0])
    assert fakes.all_closed


async def test_a_pool_is_cancelled_while_it_starts(settings: ProducerSettings) -> None:
    fakes = Fakes(2)
    fakes.prepare = lambda name, fake: shut(name, fake) if name == "id-1" else None

    async def use() -> None:
        async with TransactionPool(settings, 2, driver=fakes):
            never()

    async with task_group() as tasks:
        call = Call(tasks, use)
        await fakes.at_open(1, 1)
        await call.cancel()
    assert fakes.all_closed


async def test_requests_are_served_in_fifo_order_without_cancelled_ones(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool, task_group() as tasks:
        held = [await hold(tasks, pool) for _ in range(4)]
        await held[0].until_open()
        await held[1].call.cancel()
        assert pool.statistics().waiting == 2
        await held[0].end()
        await held[2].until_open()
        assert not held[3].transactions
        await held[2].end()
        await held[3].until_open()
        await held[3].end()
    assert fakes.ended == [["committed"] * 3]


async def test_a_task_has_one_transaction_at_a_time(settings: ProducerSettings) -> None:
    """Otherwise, tasks with a transaction that wait for a second one could deadlock."""
    fakes = Fakes(2)
    async with TransactionPool(settings, 2, driver=fakes) as pool:
        async with pool.transaction() as tx:
            with raising(TransactionError, match="a second one could wait forever"):
                async with pool.transaction():
                    never()
            await tx.send(record())
        assert tx.state is TransactionState.COMMITTED
        await commit(pool)


async def test_a_failed_transaction_gives_its_producer_back(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool:
        with raising(ZeroDivisionError):
            async with pool.transaction() as tx:
                await tx.send(record())
                fail()
        await commit(pool)
        assert pool.statistics().replaced == 0
    assert fakes.ended == [["aborted", "committed"]]
    assert fakes.opened == [1]


# --- replacement ---------------------------------------------------------------------------------


async def test_a_producer_that_was_fenced_is_replaced(settings: ProducerSettings) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool:
        fakes[0].end_error = fenced()
        with raising(ProducerFenced):
            await commit(pool)
        tx = await commit(pool)
        assert tx.state is TransactionState.COMMITTED
        assert pool.statistics().replaced == 1
    assert fakes.opened == [2]
    assert fakes.all_closed


async def test_a_transaction_has_another_producer_while_one_is_replaced(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(2)
    async with TransactionPool(settings, 2, driver=fakes) as pool, task_group() as tasks:
        fakes.prepare = shut
        fakes[0].end_error = fenced()
        with raising(ProducerFenced):
            await commit(pool)
        replacement = await fakes.at_open(0, 2)
        assert set(pool.statistics().producers) == {"id-1"}
        for _ in range(3):
            assert name_of(await commit(pool)) == "id-1"
        # If all other producers are in use, it waits for the replacement.
        other = await hold(tasks, pool)
        await other.until_open()
        waiting = await hold(tasks, pool)
        assert not waiting.transactions
        replacement.on_open.open()
        await waiting.until_open()
        assert waiting.name == "id-0"
        await waiting.end()
        await other.end()


async def test_a_start_goes_on_for_the_next_one_if_a_transaction_is_cancelled(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool, task_group() as tasks:
        fakes.prepare = shut
        fakes[0].end_error = fenced()
        with raising(ProducerFenced):
            await commit(pool)
        replacement = await fakes.at_open(0, 2)
        first, second = await hold(tasks, pool), await hold(tasks, pool)
        await first.call.cancel()
        await quiet()
        assert not second.transactions
        replacement.on_open.open()
        await second.until_open()
        await second.end()
        assert pool.statistics().replaced == 1
    assert fakes.opened == [2]


async def test_a_transaction_raises_the_error_of_a_failed_replacement(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool:
        fakes.prepare = refuse_to_start
        fakes[0].end_error = fenced()
        with raising(ProducerFenced):
            await commit(pool)
        for _ in range(2):
            with raising(ProducerStartError, match="no broker"):
                await commit(pool)
        assert pool.statistics().producers == {}
        fakes.prepare = nothing
        await commit(pool)
        assert pool.statistics().replaced == 1
    assert fakes.opened == [2]


async def test_after_an_unknown_outcome_the_client_is_replaced(settings: ProducerSettings) -> None:
    fakes = Fakes(1)
    async with TransactionPool(settings, 1, driver=fakes) as pool:
        fakes[0].end_error = once(TransactionOutcomeUnknown("no answer"))
        with raising(TransactionOutcomeUnknown):
            await commit(pool)
        await commit(pool)
        assert pool.statistics().replaced == 0
        assert pool.statistics().producers["id-0"].generations == 2
    assert fakes.opened == [2]


async def test_a_replacement_has_the_context_of_the_pool(settings: ProducerSettings) -> None:
    seen: list[str] = []

    async def enrich(given: ProducerSettings) -> ProducerSettings:
        seen.append(who.get())
        return given

    fakes = Fakes(1)
    async with TransactionPool(settings.evolve(enrich=enrich), 1, driver=fakes) as pool:

        async def be_fenced() -> None:
            who.set("borrower")
            fakes[0].end_error = fenced()
            with raising(ProducerFenced):
                await commit(pool)

        async with task_group() as tasks:
            tasks.start_soon(be_fenced)
        await commit(pool)
    assert seen == ["nobody", "nobody"]


# --- closing -------------------------------------------------------------------------------------


async def test_all_producers_close_at_the_same_time(settings: ProducerSettings) -> None:
    fakes = Fakes(3)

    async def use() -> None:
        async with TransactionPool(settings, 3, driver=fakes):
            for number in range(3):
                fakes[number].on_close.shut()

    async with task_group() as tasks:
        call = Call(tasks, use)
        await until(lambda: fakes.made == [1, 1, 1])
        for number in range(3):
            await at_gate(fakes[number].on_close)
        for number in range(3):
            fakes[number].on_close.open()
        await call.wait()


async def test_a_pool_that_is_cancelled_while_it_closes_raises_the_error_of_its_block(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with task_group() as tasks:

        async def cancel() -> None:
            await at_gate(fakes[0].on_close)
            scope.cancel()
            fakes[0].on_close.open()

        with raising(ArithmeticError), anyio.CancelScope() as scope:
            async with TransactionPool(settings, size=1, driver=fakes):
                fakes[0].on_close.shut()
                tasks.start_soon(cancel)
                raise ArithmeticError


@pytest.mark.parametrize("how", ["clean", "failed", "cancelled"])
async def test_transactions_of_other_tasks_end_with_the_pool(
    settings: ProducerSettings, how: str
) -> None:
    """An open transaction is aborted, and a waiting one raises."""
    fakes = Fakes(1, lambda: FakeDriver(manual=True))
    held: list[Held] = []
    async with task_group() as tasks:
        with contextlib.suppress(ZeroDivisionError), anyio.CancelScope() as scope:
            async with TransactionPool(settings, 1, driver=fakes) as pool:
                held += [await hold(tasks, pool), await hold(tasks, pool)]
                await held[0].until_open()
                # No caller awaits this record. The block of its transaction raises its failure.
                held[0].transactions[0].enqueue_nowait(record())
                await taken(fakes[0], 1)
                if how == "failed":
                    fail()
                if how == "cancelled":
                    scope.cancel()
                    await anyio.sleep_forever()
        await held[1].call.wait()
        assert isinstance(held[1].call.error, ProducerClosed)
        assert isinstance(await held[0].end(), TransactionAborted)
    assert scope.cancelled_caught == (how == "cancelled")
    assert fakes.ended == [["aborted"]]


@pytest.mark.parametrize("how", ["clean", "failed"])
async def test_a_replacement_in_progress_ends_with_the_pool(
    settings: ProducerSettings, how: str
) -> None:
    fakes = Fakes(1)
    held: list[Held] = []
    async with task_group() as tasks:
        with contextlib.suppress(ZeroDivisionError):
            async with TransactionPool(settings, 1, driver=fakes) as pool:
                fakes.prepare = shut
                fakes[0].end_error = fenced()
                with raising(ProducerFenced):
                    await commit(pool)
                await fakes.at_open(0, 2)
                held.append(await hold(tasks, pool))
                if how == "failed":
                    fail()
        await held[0].call.wait()
        assert isinstance(held[0].call.error, ProducerClosed)


async def test_a_transaction_after_the_pools_tasks_were_cancelled(
    settings: ProducerSettings,
) -> None:
    """The pool's block has not ended, because its clean-up is shielded."""
    scope = anyio.CancelScope()
    may_end = anyio.Event()
    pool = TransactionPool(settings, size=1, driver=Fakes(1))

    async def host() -> None:
        with scope:
            async with pool:
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await may_end.wait()

    async with task_group() as tasks:
        tasks.start_soon(host)
        await until(lambda: repr(pool).startswith("<TransactionPool open"))
        scope.cancel()
        try:
            await until(lambda: pool.statistics().producers["id-0"].state == "closed")
            for _ in range(2):
                with raising(ProducerClosed, match="is closed"):
                    await commit(pool)
        finally:
            may_end.set()


async def test_a_transaction_that_is_fenced_by_the_close_is_not_replaced(
    settings: ProducerSettings,
) -> None:
    fakes = Fakes(1)
    async with task_group() as tasks:
        async with TransactionPool(settings, 1, driver=fakes) as pool:
            held = await hold(tasks, pool)
            await held.until_open()
            fakes[0].end_error = fenced()
        await held.end()
    assert fakes.opened == [1]


# --- misuse --------------------------------------------------------------------------------------


async def test_a_pool_that_is_not_open_refuses_transactions(settings: ProducerSettings) -> None:
    pool = TransactionPool(settings, 1, driver=Fakes(1))
    with raising(ProducerMisused, match="async with TransactionPool"):
        async with pool.transaction():
            never()
    async with pool:
        await commit(pool)
    with raising(ProducerClosed, match="the pool is closed"):
        async with pool.transaction():
            never()
    with raising(ProducerClosed, match="make another one"):
        async with pool:
            never()


async def test_a_pool_cannot_be_opened_while_it_starts(settings: ProducerSettings) -> None:
    fakes = Fakes(1)
    fakes.prepare = shut
    pool = TransactionPool(settings, 1, driver=fakes)

    async def use() -> None:
        async with pool:
            await commit(pool)

    async with task_group() as tasks:
        first = Call(tasks, use)
        starting = await fakes.at_open(0, 1)
        fakes.prepare = nothing
        second = Call(tasks, use)
        await quiet()
        starting.on_open.open()
        await first.wait()
        assert "make another one" in str((await second.wait()).error)
        assert type(second.error) is ProducerClosed
    assert fakes.made == [1]
    assert fakes.ended == [["committed"]]


async def test_a_transaction_on_another_loop_is_refused(
    settings: ProducerSettings, anyio_backend_name: str
) -> None:
    async with TransactionPool(settings, 1, driver=Fakes(1)) as pool:

        def commit_elsewhere() -> None:
            anyio.run(commit, pool, backend=anyio_backend_name)

        with raising(ProducerMisused, match="event loop"):
            await anyio.to_thread.run_sync(commit_elsewhere)
        await commit(pool)


def test_wrong_arguments(settings: ProducerSettings) -> None:
    with pytest.raises(SettingsError, match="size must be an int of 1 or more, not 0"):
        TransactionPool(settings, 0)
    with pytest.raises(SettingsError, match="transactional_id is missing"):
        TransactionPool(settings.with_transactional_id(None), 1)
    with pytest.raises(TypeError, match="settings must be ProducerSettings, not dict"):
        TransactionPool(cast("Any", {}), 1)
    pool = TransactionPool(settings, transactional_id="other")
    assert repr(pool) == "<TransactionPool new 'other' size=4>"
    with pytest.raises(TypeError, match=r"observers\[0\] must have a method observe"):
        TransactionPool(settings, 1, observers=cast("Any", [1]))


# --- any course of events ------------------------------------------------------------------------

#: The ways in which an open transaction ends.
ENDINGS = ("commit", "fenced", "lost", "cancelled")


async def _run_course(size: int, course: list[tuple[str, int]]) -> None:
    """Run a course, and compare the pool with a queue after each step."""
    fakes = Fakes(size, PolledFakeDriver)
    settings = ProducerSettings(bootstrap_servers="broker.invalid:9092", transactional_id="id")
    # The transactions that have not ended, in the order of their requests. The first `size` of them
    # have a producer.
    line: list[Held] = []
    replaced = 0
    committed = 0
    async with task_group() as tasks:
        async with TransactionPool(settings, size, driver=fakes) as pool:
            for step, which in course:
                if step == "ask":
                    line.append(await hold(tasks, pool))
                elif line:
                    one = line.pop(which % len(line))
                    if step == "cancelled" or not one.is_open:
                        await one.call.cancel()
                    else:
                        fake = fakes[int(one.name.removeprefix("id-"))]
                        if step == "fenced":
                            fake.end_error = fenced()
                            replaced += 1
                        elif step == "lost":
                            fake.end_error = once(TransactionOutcomeUnknown("no answer"))
                        else:
                            committed += 1
                        error = await one.end()
                        assert (error is None) == (step == "commit")
                await quiet()
                assert [held.is_open for held in line] == [
                    place < size for place in range(len(line))
                ]
                names = [held.name for held in line[:size]]
                assert len(set(names)) == len(names)
                figures = pool.statistics()
                assert figures.in_use == min(size, len(line))
                assert figures.waiting == len(line) - figures.in_use
                assert figures.replaced == replaced
                assert len(figures.producers) == size
        for held in line:
            await held.end()
            assert isinstance(held.call.error, (ProducerClosed, TransactionAborted))
    assert sum(ended.count("committed") for ended in fakes.ended) == committed
    assert sum(fakes.opened) >= size + replaced


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    size=st.integers(1, 3),
    course=st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "ask", *ENDINGS]), st.integers(0, 5)), max_size=20
    ),
)
def test_any_course_of_transactions(backend: str, size: int, course: list[tuple[str, int]]) -> None:
    anyio.run(_run_course, size, course, backend=backend)


async def test_a_block_that_is_left_in_another_task_gives_its_producer_back(
    settings: ProducerSettings,
) -> None:
    """The event loop may close an async generator in a task of its own."""
    fakes = Fakes(1)
    async with TransactionPool(settings, size=1, driver=fakes) as pool, task_group() as tasks:

        async def numbers() -> AsyncGenerator[int]:
            async with pool.transaction() as tx:
                await tx.send(record())
                yield 1

        generator = numbers()
        assert await anext(generator) == 1
        await Call(tasks, generator.aclose).wait()
        assert pool.statistics().in_use == 0
        await commit(pool)
    assert fakes.ended == [["aborted", "committed"]]


async def test_a_later_task_is_not_taken_for_one_that_has_left_its_block_open(
    settings: ProducerSettings,
) -> None:
    """When a task has ended, a later task may get its id."""
    blocks: list[contextlib.AbstractAsyncContextManager[Transaction]] = []
    async with TransactionPool(settings, size=2, driver=Fakes(2)) as pool:

        async def begin() -> None:
            blocks.append(pool.transaction())
            await blocks[0].__aenter__()

        async with task_group() as tasks:
            tasks.start_soon(begin)
        gc.collect()
        async with task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(commit, pool)
        await blocks[0].__aexit__(None, None, None)
        assert pool.statistics().in_use == 0
