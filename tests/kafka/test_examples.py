"""The outbox example on Apache Kafka. A reader with ``read_committed`` finds each row once and in
order, whichever stage of a transaction the relay is killed at."""

from __future__ import annotations

import signal
import uuid
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio.to_thread import run_sync

from examples import outbox
from tests.kafka.killed_outbox import STAGES
from tests.support.brief import IN_FULL
from tests.support.calls import task_group
from tests.support.example_process import running
from tests.support.history import Isolation, read_topic
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import until

KILLED: Final = Path(__file__).parent / "killed_outbox.py"

#: The time limit in seconds of each wait. Java is slow to start.
PATIENCE: Final = 60.0


class Outbox:
    """A table whose rows are moved to a topic of their own."""

    def __init__(self, cluster: KafkaCluster, directory: Path, backend: str) -> None:
        self.cluster = cluster
        self.database = directory / "shop.db"
        self.name = f"shop-{uuid.uuid4().hex}"
        self.backend = backend
        self.topic = cluster.create_topic()
        self.env = {"OUTBOX_BOOTSTRAP_SERVERS": cluster.bootstrap_servers}
        self.count = 0
        outbox.create_tables(self.database)

    def fill(self, count: int) -> None:
        with outbox.connect(self.database) as db:
            db.executemany(
                "INSERT INTO outbox (topic, value) VALUES (?, ?)",
                [(self.topic, b"%d" % number) for number in range(self.count, self.count + count)],
            )
        self.count += count

    def rows_left(self) -> int:
        with outbox.connect(self.database) as db:
            return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    @property
    def arguments(self) -> list[str]:
        return [str(self.database), "--name", self.name, "--backend", self.backend]

    async def killed(self, stage: str, times: int) -> None:
        """Run the relay until it is killed at a stage, which shows that it reached the stage."""
        arguments = [stage, str(times), str(self.database), self.name, self.backend]
        async with running(KILLED, *arguments, env=self.env) as example:
            assert await example.code(within=PATIENCE) == -signal.SIGKILL

    async def finish(self) -> None:
        """Run it without a kill until all rows are moved."""
        async with running("outbox.py", *self.arguments, env=self.env) as example:
            await example.line("Kafka has the rows to")
            await until(lambda: self.rows_left() == 0)
            example.interrupt()
            assert await example.code(within=PATIENCE) == 0

    async def values(self, isolation: Isolation) -> list[int]:
        found = await run_sync(
            partial(read_topic, self.cluster.bootstrap_servers, self.topic, isolation=isolation)
        )
        return [int(one.value or b"") for one in found]

    async def assert_each_once(self) -> None:
        assert await self.values("read_committed") == list(range(self.count))


@pytest.fixture
def shop(shared_kafka: KafkaCluster, tmp_path: Path, anyio_backend_name: str) -> Outbox:
    return Outbox(shared_kafka, tmp_path, anyio_backend_name)


@pytest.mark.parametrize("stage", STAGES)
async def test_each_row_is_moved_once_if_the_relay_is_killed(stage: str, shop: Outbox) -> None:
    for times in (1, 2, 3) if IN_FULL else (2,):
        shop.fill(100)
        await shop.killed(stage, times)
    shop.fill(100)
    await shop.finish()
    await shop.assert_each_once()
    if stage == "records acknowledged":
        # A reader of uncommitted records also sees the records sent before the kills.
        assert len(await shop.values("read_uncommitted")) > shop.count


async def test_a_second_relay_ends_the_first(shop: Outbox) -> None:
    async with (
        running("outbox.py", *shop.arguments, env=shop.env) as one,
        running("outbox.py", *shop.arguments, env=shop.env) as two,
    ):
        await one.line("Kafka has the rows to")
        await two.line("Kafka has the rows to")
        with anyio.fail_after(PATIENCE):
            # Only the two relays know which of them was earlier.
            while not (one.ended or two.ended):
                await run_sync(shop.fill, 10)
                await anyio.sleep(0.01)
        ended, other = (one, two) if one.ended else (two, one)
        assert await ended.code() == 1
        assert "outbox: " in ended.errors
        await until(lambda: shop.rows_left() == 0)
        assert not other.ended
        other.interrupt()
        assert await other.code(within=PATIENCE) == 0
    await shop.assert_each_once()


async def test_each_row_is_moved_once_while_brokers_are_killed(
    three_brokers: KafkaCluster, tmp_path: Path, anyio_backend_name: str
) -> None:
    shop = Outbox(three_brokers, tmp_path, anyio_backend_name)
    killed = anyio.Event()

    async def kill_one_after_the_other() -> None:
        for broker in three_brokers.brokers if IN_FULL else (1, 2):
            await run_sync(three_brokers.kill, broker)
            await anyio.sleep(1.0)
            await run_sync(three_brokers.start, broker)
            await run_sync(three_brokers.wait_until_in_sync, shop.topic)
        killed.set()

    async with running("outbox.py", *shop.arguments, env=shop.env) as example:
        await example.line("Kafka has the rows to")
        async with task_group() as tasks:
            tasks.start_soon(kill_one_after_the_other)
            while not killed.is_set():
                await run_sync(shop.fill, 20)
                await anyio.sleep(0.02)
        await until(lambda: shop.rows_left() == 0)
        example.interrupt()
        assert await example.code(within=PATIENCE) == 0
    await shop.assert_each_once()
