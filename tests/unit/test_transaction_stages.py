"""A transaction that is cancelled at each of its stages, by AnyIO and by asyncio itself.

It is committed completely or not at all, its state says which, and the next transaction works.
Gates of the driver stop the transaction at each stage.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import anyio
import anyio.abc
import pytest

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    ProducerSettings,
    SendProducer,
    Transaction,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer.drivers import ConsumedOffset, Deadline
from anyio_sendproducer.testing import FakeDriver, Gate
from tests.support.calls import Call, at_gate, quiet, record, taken, task_group
from tests.support.waiting import PATIENCE, until

ABORTED: Final = TransactionState.ABORTED
COMMITTED: Final = TransactionState.COMMITTED
ENDING: Final = TransactionState.ENDING
OPEN: Final = TransactionState.OPEN


class StagedDriver(FakeDriver):
    """A driver with a gate in `begin_transaction`, and a semaphore that counts its answers."""

    def __init__(self) -> None:
        super().__init__(manual=True)
        self.on_begin: Gate = Gate()
        self.begun = 0
        self.answers = threading.Semaphore(0)

    def begin_transaction(self) -> None:
        self.begun += 1
        self.on_begin.pass_through()
        super().begin_transaction()
        self.answers.release()

    def send_offsets(
        self, offsets: Sequence[ConsumedOffset], group: ConsumerGroupMetadata, deadline: Deadline, /
    ) -> None:
        super().send_offsets(offsets, group, deadline)
        self.answers.release()

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:
        super().end_transaction(commit, deadline)
        self.answers.release()

    @property
    def ended(self) -> list[tuple[str, list[Any]]]:
        """The end of each transaction, and the values that the driver took in it."""
        return [(how, [one.value for one in records]) for how, records in self.transactions]


class Run:
    """One transaction in its own task, which takes each step when the test calls `step`."""

    def __init__(
        self, producer: SendProducer, fake: StagedDriver, tasks: anyio.abc.TaskGroup, by: str
    ) -> None:
        self.producer = producer
        self.fake = fake
        self.tasks = tasks
        self.cancels_itself = False
        self.outcome = ""
        #: The number of records without an outcome when the block was left.
        self.left = 0
        self.ended = anyio.Event()
        self._by = by
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[None] | None = None
        self._transactions: list[Transaction] = []
        self._steps, self._next_step = anyio.create_memory_object_stream[BaseException | None]()

    # --- calls of the test -------------------------------------------------------------------

    def start(self) -> None:
        if self._by == "task":
            self._task = asyncio.create_task(self._run())
        else:
            self.tasks.start_soon(self._run)

    def cancel(self) -> None:
        if self._task is None:
            self._scope.cancel()
        else:
            self._task.cancel()

    def step(self, error: BaseException | None = None) -> None:
        """Let the transaction take its next step, or raise `error` in its block."""
        self._steps.send_nowait(error)

    @property
    def waits_for_a_step(self) -> bool:
        return self._next_step.statistics().tasks_waiting_receive == 1

    @property
    def tx(self) -> Transaction:
        return self._transactions[0]

    @property
    def state(self) -> TransactionState | None:
        return self.tx.state if self._transactions else None

    async def wait(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.ended.wait()
        self._steps.close()

    # --- the task of the transaction ---------------------------------------------------------

    async def _run(self) -> None:
        try:
            with self._scope, self._next_step:
                self.outcome = "cancelled"
                await self._transact()
                self.outcome = "returned"
        except LookupError:
            self.outcome = "raised"
        finally:
            self.left = self.producer.statistics().in_flight
            self.ended.set()

    async def _transact(self) -> None:
        if self.cancels_itself:
            self.cancel()
        async with self.producer.transaction() as tx:
            self._transactions.append(tx)
            await self._turn()
            await tx.send(record(b"1"))
            await self._turn()
            await tx.enqueue(record(b"2"))
            await self._turn()
            await tx.send_offsets({("t", 0): 3}, "group")
            await self._turn()

    async def _turn(self) -> None:
        error = await self._next_step.receive()
        if error is not None:
            raise error


# --- the stages ----------------------------------------------------------------------------------
#
# Each of these functions brings a transaction to one of its stages and checks the stage. It returns
# a function that lets the transaction go on, or `nothing` if nothing blocks it.

GoOn = Callable[[], object]
Stage = Callable[[Run], Awaitable[GoOn]]


def nothing() -> None:
    """Do nothing: nothing blocks the transaction."""


def answered(fake: StagedDriver, gate: Gate) -> None:
    """Let the driver answer. The event loop is blocked meanwhile, so it does not see the answer."""
    assert not fake.answers.acquire(blocking=False)
    gate.open()
    assert fake.answers.acquire(timeout=PATIENCE)


async def until_it_waits(run: Run) -> None:
    """Wait until the block has taken its last step, which may need an answer of the driver."""
    await until(lambda: run.waits_for_a_step)


async def before_it_begins(run: Run) -> GoOn:
    run.cancels_itself = True
    run.start()
    await run.wait()
    assert run.fake.begun == 0
    return nothing


async def waiting_for_its_turn(run: Run) -> GoOn:
    in_turn, over = anyio.Event(), anyio.Event()

    async def other() -> None:
        async with run.producer.transaction():
            in_turn.set()
            await over.wait()

    Call(run.tasks, other)
    await in_turn.wait()
    run.start()
    await quiet()
    assert run.fake.begun == 1
    assert run.state is None
    assert not run.ended.is_set()
    return over.set


async def beginning(run: Run) -> GoOn:
    run.fake.on_begin.shut()
    run.start()
    await at_gate(run.fake.on_begin)
    assert run.state is None
    return run.fake.on_begin.open


async def beginning_is_answered(run: Run) -> GoOn:
    await beginning(run)
    answered(run.fake, run.fake.on_begin)
    assert run.state is None
    return nothing


async def begun(run: Run) -> GoOn:
    run.start()
    await until_it_waits(run)
    assert run.state is OPEN
    assert run.fake.begun == 1
    assert run.fake.answers.acquire(blocking=False)
    return nothing


async def record_queued(run: Run) -> GoOn:
    await begun(run)
    run.fake.on_submit.shut()
    run.tx.enqueue_nowait(record(b"0"))
    await at_gate(run.fake.on_submit)
    run.step()
    await quiet()
    assert run.producer.statistics().queued == 1
    return run.fake.on_submit.open


async def record_handed_over(run: Run) -> GoOn:
    await begun(run)
    run.fake.on_submit.shut()
    run.step()
    await at_gate(run.fake.on_submit)
    assert run.producer.statistics().queued == 0
    assert run.fake.submitted == []
    return run.fake.on_submit.open


async def record_with_the_driver(run: Run) -> GoOn:
    await begun(run)
    run.step()
    await taken(run.fake, 1)
    await quiet()
    assert len(run.fake.under_way) == 1
    return nothing


async def record_acknowledged_unseen(run: Run) -> GoOn:
    await record_with_the_driver(run)
    run.fake.acknowledge()
    assert run.producer.statistics().delivered == 0
    return nothing


async def record_acknowledged(run: Run) -> GoOn:
    await record_with_the_driver(run)
    run.fake.acknowledge()
    await until_it_waits(run)
    assert run.producer.statistics().delivered == 1
    return nothing


async def second_record_enqueued(run: Run) -> GoOn:
    await record_acknowledged(run)
    run.step()
    await taken(run.fake, 2)
    await until_it_waits(run)
    assert run.producer.statistics().in_flight == 1
    return nothing


async def offsets_with_the_driver(run: Run) -> GoOn:
    await second_record_enqueued(run)
    run.fake.on_end.shut()
    run.step()
    await at_gate(run.fake.on_end)
    assert run.fake.offsets == []
    return run.fake.on_end.open


async def offsets_answered_unseen(run: Run) -> GoOn:
    await offsets_with_the_driver(run)
    answered(run.fake, run.fake.on_end)
    assert len(run.fake.offsets) == 1
    return nothing


async def end_of_the_block(run: Run) -> GoOn:
    await second_record_enqueued(run)
    run.step()
    await until_it_waits(run)
    assert len(run.fake.offsets) == 1
    assert run.state is OPEN
    assert run.fake.answers.acquire(blocking=False)
    return nothing


async def records_awaited(run: Run) -> GoOn:
    await end_of_the_block(run)
    run.step()
    await quiet()
    assert run.state is ENDING
    assert len(run.fake.under_way) == 1
    assert run.fake.transactions == []
    return nothing


async def commit_with_the_driver(run: Run) -> GoOn:
    await records_awaited(run)
    run.fake.on_end.shut()
    run.fake.acknowledge()
    await at_gate(run.fake.on_end)
    assert run.state is ENDING
    assert run.fake.under_way == []
    assert run.fake.transactions == []
    return run.fake.on_end.open


async def commit_answered_unseen(run: Run) -> GoOn:
    await commit_with_the_driver(run)
    answered(run.fake, run.fake.on_end)
    assert run.state is ENDING
    assert run.fake.ended == [("committed", [b"1", b"2"])]
    return nothing


async def abort_with_the_driver(run: Run) -> GoOn:
    await end_of_the_block(run)
    run.fake.on_end.shut()
    run.step(LookupError())
    await at_gate(run.fake.on_end)
    assert run.state is ENDING
    assert run.fake.transactions == []
    return run.fake.on_end.open


async def abort_answered_unseen(run: Run) -> GoOn:
    await abort_with_the_driver(run)
    answered(run.fake, run.fake.on_end)
    assert run.state is ENDING
    assert run.fake.ended == [("aborted", [b"1", b"2"])]
    return nothing


class End(NamedTuple):
    """The end of a transaction that is cancelled at a stage."""

    state: TransactionState | None = None
    """The state of the transaction, or None if its block was not entered."""
    ended: Sequence[tuple[str, list[bytes]]] = ()
    """The end of each transaction at the driver, and the values that the driver took in it."""
    delivered: int = 0
    failed: int = 0
    withdrawn: int = 0
    abandoned: int = 0
    waits: bool = False
    """If the driver is blocked, whether the transaction ends only after the driver goes on."""
    outcomes: Sequence[str] = ("cancelled",)
    """The possible ends of the task: ``"cancelled"``, ``"returned"`` or ``"raised"``."""
    generations: int = 1
    begun: int = 1
    """The number of transactions that started at the driver before the next one."""


ONE: Final = [("aborted", [b"1"])]
BOTH: Final = [("aborted", [b"1", b"2"])]
DONE: Final = [("committed", [b"1", b"2"])]
#: The second record is with the driver when the transaction is aborted.
SECOND_FAILED: Final = End(ABORTED, BOTH, delivered=1, failed=1)

#: The end at each stage if AnyIO cancels the transaction.
STAGES: Final[dict[Stage, End]] = {
    before_it_begins: End(begun=0),
    waiting_for_its_turn: End(ended=[("committed", [])]),
    beginning: End(),
    beginning_is_answered: End(),
    begun: End(ABORTED, [("aborted", [])]),
    record_queued: End(ABORTED, [("aborted", [b"0"])], failed=1, withdrawn=1, waits=True),
    record_handed_over: End(ABORTED, ONE, failed=1, abandoned=1, waits=True),
    record_with_the_driver: End(ABORTED, ONE, failed=1, abandoned=1),
    record_acknowledged_unseen: End(ABORTED, ONE, delivered=1, abandoned=1),
    record_acknowledged: End(ABORTED, ONE, delivered=1),
    second_record_enqueued: SECOND_FAILED,
    offsets_with_the_driver: SECOND_FAILED._replace(waits=True),
    offsets_answered_unseen: SECOND_FAILED,
    end_of_the_block: SECOND_FAILED,
    records_awaited: SECOND_FAILED,
    # The commit cannot be taken back. AnyIO decides whether the block then returns or is cancelled.
    # This differs between the event loops.
    commit_with_the_driver: End(
        COMMITTED, DONE, delivered=2, waits=True, outcomes=("returned", "cancelled")
    ),
    commit_answered_unseen: End(COMMITTED, DONE, delivered=2, outcomes=("returned", "cancelled")),
    abort_with_the_driver: SECOND_FAILED._replace(waits=True, outcomes=("raised",)),
    abort_answered_unseen: SECOND_FAILED._replace(outcomes=("raised",)),
}
#: The ends that differ with asyncio's own cancellation, which ignores shielded scopes. The client
#: is replaced, because no task waits for its answer any more.
STAGES_OF_ASYNCIO: Final[dict[Stage, End]] = {
    abort_with_the_driver: SECOND_FAILED._replace(generations=2),
    abort_answered_unseen: SECOND_FAILED._replace(generations=2),
}


@pytest.mark.parametrize(
    ("anyio_backend", "by"),
    [("asyncio", "scope"), ("trio", "scope"), ("asyncio", "task")],
    ids=["asyncio", "trio", "asyncio's own"],
)
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
async def test_cancelled_at_each_stage(settings: ProducerSettings, by: str, stage: Stage) -> None:
    fake = StagedDriver()
    settings = settings.with_transactional_id("id")
    end = STAGES_OF_ASYNCIO.get(stage, STAGES[stage]) if by == "task" else STAGES[stage]
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        run = Run(producer, fake, tasks, by)
        go_on = await stage(run)
        run.cancel()
        if go_on is not nothing:
            await quiet()
            assert run.ended.is_set() is not end.waits
            go_on()
        await run.wait()
        assert run.outcome in end.outcomes
        if by == "scope":  # asyncio's own cancellation also ends this wait
            assert run.left == 0
        assert run.state is end.state
        assert fake.begun == end.begun

        # The next transaction works, and has no record of this one.
        fake.manual = False
        async with producer.transaction() as tx:
            await tx.send(record(b"3"))
        assert tx.state is COMMITTED
        assert fake.begun == end.begun + 1
        assert fake.ended == [*end.ended, ("committed", [b"3"])]

        # No record is left.
        assert fake.under_way == []
        figures = producer.statistics()
        assert (figures.waiting, figures.queued, figures.in_flight) == (0, 0, 0)
        assert figures.delivered == end.delivered + 1
        assert figures.failed == end.failed
        assert figures.withdrawn == end.withdrawn
        assert figures.accepted == figures.delivered + figures.failed + figures.withdrawn
        assert figures.abandoned == end.abandoned
        assert figures.generations == end.generations
