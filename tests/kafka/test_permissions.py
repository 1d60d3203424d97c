"""The permissions that a producer needs, on a broker that allows only what an ACL allows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.calls import raising
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_security import ACLS, logging_in, sasl_listener
from tests.support.waiting import PATIENCE

MECHANISM = "SCRAM-SHA-512"
PASSWORD = "not to be told"

_users = itertools.count()


@pytest.fixture(scope="session")
def strict_kafka() -> Iterator[KafkaCluster]:
    """A broker on which a user without ACLs may do nothing."""
    properties = {
        **ACLS,
        "allow.everyone.if.no.acl.found": False,
        "auto.create.topics.enable": True,
    }
    listener = sasl_listener("SASL", [MECHANISM])
    with kafka_cluster(listeners=[listener], properties=properties) as cluster:
        yield cluster


class User:
    """A user of the broker, with topics, a group and a transactional id that nobody else uses."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.cluster = cluster
        self.name = f"user-{next(_users)}"
        cluster.create_user(self.name, PASSWORD, MECHANISM)
        self.topic = cluster.create_topic()
        self.source = cluster.create_topic()
        #: The time limit in seconds of everything that the user's producers do.
        self.seconds = PATIENCE
        #: What an ACL can refer to: its kind, and its name.
        self.resources = {
            "topic": ("topic", self.topic),
            "new topic": ("topic", f"new-{self.name}"),
            "source": ("topic", self.source),
            "group": ("group", self.name),
            "transactional id": ("transactional_id", self.name),
        }

    def allow(self, operation: str, resource: str) -> None:
        kind, name = self.resources[resource]
        self.cluster.add_acl(f"User:{self.name}", operation, name, kind=kind)

    def settings(self, *, transactional: bool = False) -> ProducerSettings:
        return ProducerSettings(
            bootstrap_servers=self.cluster.bootstrap("SASL"),
            properties=logging_in(MECHANISM, self.name, PASSWORD),
            transactional_id=self.name if transactional else None,
            start_timeout=self.seconds,
            delivery_timeout=self.seconds,
            unknown_topic_timeout=self.seconds,
        )


@pytest.fixture
def user(strict_kafka: KafkaCluster) -> User:
    return User(strict_kafka)


async def send(user: User, driver: DriverName, topic: str = "topic") -> None:
    async with open_send_producer(user.settings(), driver=driver) as producer:
        await producer.send(ProducerRecord(user.resources[topic][1], b"value"))


async def create(user: User, driver: DriverName) -> None:
    await send(user, driver, "new topic")


async def transact(user: User, driver: DriverName, *, offsets: bool = False) -> None:
    async with (
        open_send_producer(user.settings(transactional=True), driver=driver) as producer,
        producer.transaction() as transaction,
    ):
        await transaction.send(ProducerRecord(user.topic, b"value"))
        if offsets:
            await transaction.send_offsets({(user.source, 0): 1}, user.name)


async def consume(user: User, driver: DriverName) -> None:
    await transact(user, driver, offsets=True)


Use = Callable[[User, DriverName], Coroutine[Any, Any, None]]
Right = tuple[str, str]

#: The permissions that each use needs, as the guide lists them.
NEEDED: dict[Use, list[Right]] = {
    send: [("write", "topic")],
    create: [("write", "new topic"), ("create", "new topic")],
    transact: [("write", "topic"), ("write", "transactional id")],
    consume: [
        ("write", "topic"),
        ("write", "transactional id"),
        ("read", "group"),
        ("read", "source"),
    ],
}
USES = [pytest.param(use, id=use.__name__) for use in NEEDED]
MISSING = [
    pytest.param(use, right, id=f"{use.__name__}-without-{' '.join(right)}")
    for use, rights in NEEDED.items()
    for right in rights
]


@pytest.mark.parametrize("use", USES)
async def test_these_permissions_are_enough(user: User, driver: DriverName, use: Use) -> None:
    for right in NEEDED[use]:
        await run_sync(user.allow, *right)
    await use(user, driver)


@pytest.mark.parametrize(("use", "missing"), MISSING)
async def test_each_of_these_permissions_is_needed(
    user: User, driver: DriverName, use: Use, missing: Right
) -> None:
    for right in NEEDED[use]:
        if right != missing:
            await run_sync(user.allow, *right)
    user.seconds = 3.0
    with raising(SendProducerError):
        await use(user, driver)


async def test_clients_that_are_refused_a_producer_id_are_opened_after_pauses(
    user: User, driver: DriverName
) -> None:
    """librdkafka breaks if a broker refuses its producer id, which needs permission to write to any
    topic."""
    outcomes: list[DeliveryError] = []
    began = time.monotonic()
    async with open_send_producer(user.settings(), driver=driver) as producer:

        async def is_written() -> bool:
            try:
                await producer.send(ProducerRecord(user.topic, b"value"), timeout=0.5)
            except DeliveryError as error:
                outcomes.append(error)
                return False
            return True

        for _ in range(10):
            assert not await is_written()
        # Pauses of 0, 0.5, 1 and 2 s, and then of 4 s.
        assert producer.statistics().generations <= 6 + (time.monotonic() - began) / 4
        await run_sync(user.allow, "write", "topic")
        with anyio.fail_after(PATIENCE):
            while not await is_written():
                pass
