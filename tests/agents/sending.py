"""A program that sends records of every kind, which the tests run under a tracing agent.

It runs in its own process, so it imports nothing from the tests. Its arguments are the address of
the broker, the driver, the event loop, the topic, and `yes` to send the records in a transaction.
It prints JSON: the clients that the agent has replaced, and the offset of each record.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import anyio

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer

#: The size of a value that is slightly below the limit of each client.
LARGE = {"kafka-python": 1_048_340, "confluent": 999_000}

#: For each driver, the client's method that an agent wraps.
CLIENTS = [
    ("kafka-python", "kafka", "KafkaProducer", "send"),
    ("confluent", "confluent_kafka", "Producer", "produce"),
]


def is_wrapped(module: str, class_name: str, method: str) -> bool:
    """Return whether an agent has wrapped this method."""
    the_class = getattr(importlib.import_module(module), class_name)
    return hasattr(getattr(the_class, method), "__wrapped__")


def records(topic: str, driver: str) -> Iterator[ProducerRecord[bytes | None, bytes | None]]:
    """Yield records with and without each optional field."""
    repeated = [("name", b"one"), ("other", b""), ("name", b"two")]
    for value in (b"value", None, b"v" * LARGE[driver]):
        for key in (b"key", None)[: 1 if value is None else 2]:
            for headers in ([], repeated):
                for timestamp_ms in (None, 1_700_000_000_000):
                    yield ProducerRecord(
                        topic,
                        value,
                        key,
                        partition=0,
                        timestamp_ms=timestamp_ms,
                        headers=headers,
                    )


async def main(address: str, driver: Any, topic: str, transactional: bool) -> None:
    """Send the records one at a time and with `send_many`, or in a transaction."""
    settings = ProducerSettings(
        bootstrap_servers=address,
        delivery_timeout=60,
        transactional_id=f"id-of-{topic}" if transactional else None,
    )
    outcomes: list[Any] = []
    async with open_send_producer(settings, driver=driver) as producer:
        if transactional:
            async with producer.transaction() as transaction:
                outcomes += await transaction.send_many(records(topic, driver))
        else:
            for record in records(topic, driver):
                outcomes.append(await producer.send(record))
            outcomes += await producer.send_many(records(topic, driver))
    replaced = [name for name, *path in CLIENTS if is_wrapped(*path)]
    json.dump({"replaced": replaced, "offsets": [one.offset for one in outcomes]}, sys.stdout)


if __name__ == "__main__":
    address, driver, loop, topic, transactional = sys.argv[1:]
    anyio.run(main, address, driver, topic, transactional == "yes", backend=loop)
