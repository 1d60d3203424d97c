"""The test tools as pytest fixtures, which pytest finds by the entry point ``pytest11``.

All fixtures that start a process or a cluster are synchronous, so they work in every test.
``kafka_fake_producer`` is an async generator. AnyIO's plugin and pytest-trio both run it on the
event loop of the test; neither is imported here, and neither has to be installed.

pytest imports this module at each start, in every project that has this package installed. So the
module imports only pytest and the package itself before a fixture is used.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest

from .. import ProducerSettings
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
    """The settings of kafka_fake_producer; override this fixture to change them."""
    return None


@pytest.fixture
async def kafka_fake_producer(
    kafka_fake_producer_settings: ProducerSettings | None,
) -> AsyncIterator[FakeProducer]:
    """A producer without a cluster: `producer` is for the code under test, and `sent` contains the
    records that it sent. For asynchronous tests with AnyIO's plugin or pytest-trio."""
    async with fake_producer(kafka_fake_producer_settings) as fake:
        yield fake


@pytest.fixture
def kafka_topic() -> str:
    """The name of a topic that no other test uses."""
    return f"topic-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def kafka_session_broker() -> Iterator[BlockingEmbeddedBroker]:
    """An embedded broker for the whole run, in its own process (extra `embedded`). Each test must
    use its own `kafka_topic`, and must not stop or pause the broker."""
    with blocking_embedded_broker() as broker:
        yield broker


@pytest.fixture
def kafka_broker() -> Iterator[BlockingEmbeddedBroker]:
    """An embedded broker for one test, which may kill and pause it (extra `embedded`)."""
    with blocking_embedded_broker() as broker:
        yield broker


@pytest.fixture
def kafka_mock_cluster_brokers() -> int:
    """How many brokers kafka_mock_cluster has; override this fixture to have more."""
    return 1


@pytest.fixture
def kafka_mock_cluster(kafka_mock_cluster_brokers: int) -> Iterator[MockCluster]:
    """Librdkafka's mock cluster, whose brokers answer with errors, late, or not at all, as the test
    decides (extra `confluent`)."""
    with mock_cluster(kafka_mock_cluster_brokers) as cluster:
        yield cluster
