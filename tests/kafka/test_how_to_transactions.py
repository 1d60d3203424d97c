"""The how-to's loop that reads, transforms and writes, unchanged, while brokers are killed."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

import anyio
from anyio.to_thread import run_sync

# It registers the proxy_url of the page's consumer.
import anyio_sendproducer.drivers.kafka_python._driver  # noqa: F401  # pyright: ignore[reportUnusedImport]
from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer.drivers import DriverName
from tests.support.brief import IN_FULL
from tests.support.history import read_topic
from tests.support.kafka_cluster import KafkaCluster
from tests.support.paths import ROOT

PAGE = ROOT / "docs/how-to/send-in-transactions.md"

#: The number of copied records.
COUNT = 3_000


def the_loop(address: str, source: str, target: str) -> dict[str, Any]:
    """Run the page's example with other topics and a group of its own, and return what it
    defines."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    [loop] = [block for block in blocks if "async def copy_some" in block]
    [opening] = [block for block in blocks if "def open_consumer" in block]
    text = blocks[0].split("\n\n")[0] + "\n" + loop + opening.split("\n\n\n")[0]
    for old, new in (
        ("localhost:9092", address),
        ('"quiet"', repr(source)),
        ('"loud"', repr(target)),
        ('"shouters"', repr(target)),
        # A connection of our driver, which closes its socket if it fails.
        ("enable_auto_commit=False", 'enable_auto_commit=False, proxy_url="direct://"'),
    ):
        assert old in text
        text = text.replace(old, new)
    names: dict[str, Any] = {}
    exec(text, names)  # the test runs the example
    return names


async def test_each_record_is_copied_once_while_brokers_are_killed(
    three_brokers: KafkaCluster,
    driver: DriverName,
) -> None:
    cluster = three_brokers
    source = cluster.create_topic(configs={"min.insync.replicas": 2})
    target = cluster.create_topic(partitions=3, configs={"min.insync.replicas": 2})
    address = cluster.bootstrap_servers
    settings = ProducerSettings(bootstrap_servers=address, delivery_timeout=60.0)
    words = [b"word %d" % number for number in range(COUNT)]
    names = the_loop(address, source, target)

    def kill_one_after_the_other() -> None:
        for broker in cluster.brokers if IN_FULL else (1, 2):
            time.sleep(0.5)
            cluster.kill(broker)
            time.sleep(1.0)
            cluster.start(broker)
            cluster.wait_until_in_sync(target)
            cluster.wait_until_in_sync(source)

    killed = anyio.Event()

    async def kill() -> None:
        await run_sync(kill_one_after_the_other)
        killed.set()

    async def feed() -> None:
        """Send while brokers are killed, and at least COUNT records."""
        async with open_send_producer(settings, driver=driver) as producer:
            for first in range(0, COUNT, 20):
                await producer.send_many(
                    ProducerRecord(source, word, partition=0) for word in words[first : first + 20]
                )
                if not killed.is_set():
                    await anyio.sleep(0.05)

    consumer = await run_sync(names["open_consumer"])
    try:
        async with (
            open_send_producer(settings.with_transactional_id(target), driver=driver) as producer,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(kill)
            tasks.start_soon(feed)
            copied = 0
            while copied < COUNT:
                # Transactions that were committed without our knowledge are in the log, and are not
                # counted.
                copied = max(
                    copied + await names["copy_some"](consumer, producer),
                    await run_sync(consumer.position, next(iter(consumer.assignment()))),
                )
    finally:
        await run_sync(consumer.close)
    found = await run_sync(partial(read_topic, address, target, isolation="read_committed"))
    loud = sorted((one.value or b"" for one in found), key=lambda word: int(word.split()[1]))
    assert loud == [word.upper() for word in words]
