"""A pool of transactional producers on Apache Kafka, while a producer is fenced and a broker is
killed. The log has all records of a transaction or none, as its state reports."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import Final

import anyio
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
    Transaction,
    TransactionPool,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.calls import task_group
from tests.support.history import History, Isolation, check, read_topic
from tests.support.kafka_cluster import PATIENCE, KafkaCluster
from tests.support.waiting import until

#: The number of concurrent transactions.
SIZE: Final = 20
#: The number of records in each.
EACH: Final = 6
PARTITIONS: Final = 3

_OUTCOMES: Final = {
    TransactionState.COMMITTED: True,
    TransactionState.ABORTED: False,
    TransactionState.UNKNOWN: None,
}


class Worker:
    """A task that runs transactions until one is committed. The first transaction waits in the
    middle."""

    def __init__(self, pool: TransactionPool, history: History, topic: str, number: int) -> None:
        self._pool = pool
        self._history = history
        self._topic = topic
        self._name = f"{topic}-worker-{number}"
        self._attempts = 0
        self.is_half_way = anyio.Event()
        self.go_on = anyio.Event()
        self.first_has_ended = anyio.Event()
        #: Whether each transaction was committed; None if that is unknown.
        self.outcomes: list[bool | None] = []
        #: The transactional id of the first transaction's producer.
        self.transactional_id = ""

    async def run(self) -> None:
        while True not in self.outcomes:
            self.outcomes.append(await self._transact())
            self.first_has_ended.set()

    async def _transact(self) -> bool | None:
        """Run one. Returns: whether it was committed; None if that is unknown."""
        self._attempts += 1
        name = f"{self._name}-{self._attempts}"
        held: list[Transaction] = []
        with contextlib.suppress(SendProducerError):
            async with self._pool.transaction() as tx:
                held.append(tx)
                for number in range(EACH):
                    if number == EACH // 2:
                        self.transactional_id = repr(tx).split("'")[1]
                        self.is_half_way.set()
                        await self.go_on.wait()
                    await self._send(tx, name, number)
        outcome = _OUTCOMES[held[0].state] if held else False
        self._history.transaction(name, outcome)
        return outcome

    async def _send(self, tx: Transaction, name: str, number: int) -> None:
        id_ = f"{name}-{number}"
        record = ProducerRecord(self._topic, id_.encode(), partition=number % PARTITIONS)
        self._history.sending(id_, record, line=name, transaction=name)
        try:
            self._history.ending(id_, await tx.send(record))
        except DeliveryError as error:
            self._history.ending(id_, error)
            raise


async def test_twenty_at_a_time_one_is_fenced_and_a_broker_is_killed(
    three_brokers: KafkaCluster, driver: DriverName
) -> None:
    cluster = three_brokers
    topic = cluster.create_topic(partitions=PARTITIONS, configs={"min.insync.replicas": 2})
    settings = ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers,
        transactional_id=topic,
        delivery_timeout=60.0,
        # If a stall of the machine cuts the abort short, the producer does not learn that it was
        # fenced.
        cancel_timeout=60.0,
    )
    history = History()

    def fault() -> None:
        coordinator = cluster.leader_of("__transaction_state")
        assert coordinator is not None
        cluster.kill(coordinator)
        time.sleep(1.0)
        cluster.start(coordinator)

    async with TransactionPool(settings, SIZE, driver=driver) as pool:
        workers = [Worker(pool, history, topic, number) for number in range(SIZE)]
        with anyio.fail_after(PATIENCE):
            async with task_group() as tasks:
                for worker in workers:
                    tasks.start_soon(worker.run)
                for worker in workers:
                    await worker.is_half_way.wait()
                assert pool.statistics().in_use == SIZE

                stolen = f"{topic}-7"
                async with open_send_producer(settings, driver=driver, transactional_id=stolen):
                    pass
                (fenced,) = [one for one in workers if one.transactional_id == stolen]
                fenced.go_on.set()
                await fenced.first_has_ended.wait()
                assert fenced.outcomes[0] is False
                await until(lambda: pool.statistics().replaced >= 1)

                tasks.start_soon(run_sync, fault)
                for worker in workers:
                    worker.go_on.set()
        await until(lambda: len(pool.statistics().producers) == SIZE)
    await run_sync(cluster.wait_until_in_sync, topic)
    isolations: list[Isolation] = ["read_committed", "read_uncommitted"]
    for isolation in isolations:
        read = partial(read_topic, cluster.bootstrap_servers, topic, isolation=isolation)
        report = check(
            history, await run_sync(read), delivery_timeout=60.0, isolation=isolation, killed=True
        )
        assert report.faults == (), f"{isolation}:\n{report}"
