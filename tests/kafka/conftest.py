"""Fixtures of the tests that run Apache Kafka itself; ``pytest tests/kafka`` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brief import leave_variants_to_the_night
from tests.support.clock import ManualClock
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka

#: Parameters that vary like the loop and the driver: the share of refused records, the settings of
#: the client that sends them, and the length of a file, which depends on the driver.
VARY = ("share", "properties", "lines")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run each case on one loop with one driver, unless the tests are run in full."""
    leave_variants_to_the_night(Path(__file__).parent, items, VARY)


@pytest.fixture(scope="session", autouse=True)
def _kafka_is_here() -> None:
    """Skip the tests if Kafka can't be run. In CI, fail them."""
    require_kafka()


@pytest.fixture(scope="session")
def shared_kafka() -> Iterator[KafkaCluster]:
    """One broker for the whole run. Tests use topics of their own, and do not stop it."""
    with kafka_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _three_for_all() -> Iterator[KafkaCluster]:
    with kafka_cluster(3) as cluster:
        yield cluster


@pytest.fixture
def three_brokers(_three_for_all: KafkaCluster) -> Iterator[KafkaCluster]:
    """Three brokers, which all run when a test starts, whatever the previous test did to them."""
    yield _three_for_all
    _three_for_all.heal()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that runs with the loop's clock, because real clients retry. A test can advance
    it."""
    return ManualClock(runs=True)
