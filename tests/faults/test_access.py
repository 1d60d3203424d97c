"""Passwords and certificates of a real cluster that become wrong and valid again during a load.

A producer whose login fails reports that at once. A running producer whose login fails keeps its
records until their deadline. If its login succeeds before, it delivers everything.
"""

from __future__ import annotations

import datetime as dt
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from anyio.to_thread import run_sync

from anyio_sendproducer import ProducerSettings, ProducerStartError, open_send_producer
from anyio_sendproducer.drivers import DriverName
from tests.faults.matrix import FULL, RECORDS, Cell, judge
from tests.support.history import Report
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_home import require_kafka
from tests.support.kafka_security import (
    Authority,
    Certificate,
    logging_in,
    sasl_listener,
    ssl_listener,
    trusting,
)
from tests.support.load import Load, Ran, Running, run_load

#: Seconds over which a load is spread.
SECONDS = 20.0 if FULL else 4.0

PARTITIONS = 4

#: Seconds for which a producer's login fails. It tries at least once a second.
REFUSED_FOR = 2.5

PASSWORD = "not to be told"
MECHANISM = "SCRAM-SHA-512"


#: A client that is closed during a handshake leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collect it here, where the warning is expected, and not in another test."""
    yield
    gc.collect()


class Secured(NamedTuple):
    """One broker whose certificate can be replaced."""

    cluster: KafkaCluster
    authority: Authority
    good: Certificate
    expired: Certificate
    shown: Certificate

    def show(self, certificate: Certificate) -> None:
        """Restart the broker with another certificate."""
        self.cluster.kill(1)
        shutil.copy(certificate.both, self.shown.both)
        self.cluster.start(1)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    require_kafka()
    place = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority(place / "trusted"), Authority(place / "stranger")
    expired = authority.issue(not_after=dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc))
    shown = authority.issue()
    listeners = [
        sasl_listener("SASL", [MECHANISM]),
        ssl_listener("SSL", shown),
        ssl_listener("ELSEWHERE", authority.issue("elsewhere.test")),
        ssl_listener("EXPIRED", expired),
        ssl_listener("STRANGER", stranger.issue()),
    ]
    with kafka_cluster(listeners=listeners) as cluster:
        yield Secured(cluster, authority, authority.issue(), expired, shown)


def settings_for(
    secured: Secured, listener: str, properties: Mapping[str, Any], **changes: Any
) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=secured.cluster.bootstrap(listener),
        properties=properties,
        delivery_timeout=90.0,
    ).evolve(**changes)


async def run(
    cell: str,
    loop: str,
    driver: DriverName,
    secured: Secured,
    settings: ProducerSettings,
    fault: Callable[[], None] = lambda: None,
) -> tuple[Ran, Report]:
    """Run a load, cause the fault after a quarter of it, judge, and write the row."""
    topic = secured.cluster.create_topic(partitions=PARTITIONS)

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        await run_sync(fault)

    load = Load(topic=topic, records=RECORDS, seconds=SECONDS, partitions=PARTITIONS)
    ran = await run_load(settings, load, during=during, driver=driver)
    address = secured.cluster.bootstrap_servers
    report = await judge(Cell("cluster", cell, loop, driver), ran, settings, topic, address=address)
    assert report.acknowledged == report.sent
    assert ran.statistics.generations == 1
    return ran, report


async def refused(settings: ProducerSettings, said: str) -> None:
    """Check that the login fails long before start_timeout, with an error that explains it and does
    not have the password."""
    with pytest.raises(ProducerStartError, match=said) as caught:
        async with open_send_producer(settings):
            raise AssertionError
    assert "start_timeout" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_password_that_is_wrong_and_then_right(
    anyio_backend: str, driver: DriverName, secured: Secured
) -> None:
    secured.cluster.create_user("alice", PASSWORD, MECHANISM)
    wrong = logging_in(MECHANISM, "alice", PASSWORD + "!")
    await refused(settings_for(secured, "SASL", wrong), f"refused the login with {MECHANISM}")
    settings = settings_for(secured, "SASL", logging_in(MECHANISM, "alice", PASSWORD))
    await run("password wrong, then right", anyio_backend, driver, secured, settings)


async def test_a_password_that_is_changed_and_changed_back(
    anyio_backend: str, driver: DriverName, secured: Secured
) -> None:
    """The broker changes the password, and then loses its connections."""
    cluster = secured.cluster
    name = f"carol-{anyio_backend}"
    cluster.create_user(name, PASSWORD, MECHANISM)

    def fault() -> None:
        cluster.create_user(name, "another", MECHANISM)
        cluster.kill(1)
        cluster.start(1)
        time.sleep(REFUSED_FOR)
        cluster.create_user(name, PASSWORD, MECHANISM)

    settings = settings_for(secured, "SASL", logging_in(MECHANISM, name, PASSWORD))
    cell = "password changed and changed back, connections lost"
    await run(cell, anyio_backend, driver, secured, settings, fault)


@pytest.mark.parametrize(
    ("listener", "said"),
    [
        ("STRANGER", "unable to get local issuer certificate"),
        ("ELSEWHERE", "certificate is not valid for '127.0.0.1'"),
        ("EXPIRED", "certificate has expired"),
    ],
    ids=["not-trusted", "wrong-host", "expired"],
)
async def test_a_certificate_that_is_bad_and_then_good(
    anyio_backend: str, driver: DriverName, secured: Secured, listener: str, said: str
) -> None:
    properties = trusting(secured.authority)
    await refused(settings_for(secured, listener, properties), said)
    names = {"STRANGER": "not trusted", "ELSEWHERE": "for another host", "EXPIRED": "expired"}
    cell = f"certificate {names[listener]}, then valid"
    await run(cell, anyio_backend, driver, secured, settings_for(secured, "SSL", properties))


async def test_a_broker_that_comes_back_with_an_expired_certificate(
    anyio_backend: str, driver: DriverName, secured: Secured
) -> None:
    def fault() -> None:
        secured.show(secured.expired)
        time.sleep(REFUSED_FOR)
        secured.show(secured.good)

    settings = settings_for(secured, "SSL", trusting(secured.authority))
    cell = "a broker comes back with an expired certificate, then with a valid one"
    await run(cell, anyio_backend, driver, secured, settings, fault)
