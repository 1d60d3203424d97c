"""The test kit as pytest fixtures, which pytest finds by the entry point ``pytest11``.

All fixtures that start something are synchronous, so they work for every test. The one that is not,
``kafka_fake_producer``, is an async generator, which AnyIO's plugin and pytest-trio run each in
their way, on the loop of the test. Nothing is imported for them, and neither has to be there.

pytest imports this at each start, in every project that has this package installed: so nothing but
pytest and the package itself is imported before a fixture is asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from .._settings import ProducerSettings
from ._blocking_broker import BlockingEmbeddedBroker, blocking_embedded_broker
from ._fake_producer import FakeProducer, fake_producer
from ._mock_cluster import MockCluster, mock_cluster

__all__ = [
    "kafka_broker",
    "kafka_fake_producer",
    "kafka_fake_producer_settings",
    "kafka_mock_cluster",
    "kafka_mock_cluster_brokers",
    "kafka_session_broker",
    "kafka_topic",
]


@pytest.fixture
def kafka_fake_producer_settings() -> ProducerSettings | None:
    """The settings of kafka_fake_producer; give a fixture of this name to have others."""
    return None


@pytest.fixture
async def kafka_fake_producer(
    kafka_fake_producer_settings: ProducerSettings | None,
) -> AsyncIterator[FakeProducer]:
    """A producer without a cluster: `producer` is to be given away, `sent` is what was sent. For
    asynchronous tests, of AnyIO's plugin and pytest-trio."""
    async with fake_producer(kafka_fake_producer_settings) as fake:
        yield fake


@pytest.fixture
def kafka_topic() -> str:
    """The name of a topic that nobody else uses."""
    return f"topic-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def kafka_session_broker() -> Iterator[BlockingEmbeddedBroker]:
    """An embedded broker for the whole run, in a process of its own (extra `embedded`). Let each
    test use a `kafka_topic` of its own, and do nothing to the broker."""
    with blocking_embedded_broker() as broker:
        yield broker


@pytest.fixture
def kafka_broker() -> Iterator[BlockingEmbeddedBroker]:
    """An embedded broker of the test's own, which it may kill and pause (extra `embedded`)."""
    with blocking_embedded_broker() as broker:
        yield broker


@pytest.fixture
def kafka_mock_cluster_brokers() -> int:
    """How many brokers kafka_mock_cluster has; give a fixture of this name to have more."""
    return 1


@pytest.fixture
def kafka_mock_cluster(kafka_mock_cluster_brokers: int) -> Iterator[MockCluster]:
    """Librdkafka's mock cluster, whose brokers answer with errors, late, or not at all, as they are
    told to (extra `confluent`)."""
    with mock_cluster(kafka_mock_cluster_brokers) as cluster:
        yield cluster
