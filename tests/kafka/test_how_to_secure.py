"""The examples of the how-to about a secure connection, unchanged, on Apache Kafka."""

from __future__ import annotations

import datetime as dt
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    open_send_producer,
)
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_security import (
    ACLS,
    Authority,
    sasl_listener,
    ssl_listener,
    unsecured_token,
)
from tests.support.paths import ROOT
from tests.support.read_back import assert_written

PAGE = ROOT / "docs/how-to/secure-the-connection.md"
#: The password in the page's examples.
PASSWORD = "do not tell"
#: A user whose name and password have characters that need quoting.
ODD_NAME, ODD_PASSWORD = "o,d=d", "\"quo\\ted\"; 'so' = ü"
#: Seconds within which a final error is raised on a busy machine. The start may take many times
#: that.
PROMPTLY = 15.0


class Place(NamedTuple):
    cluster: KafkaCluster
    authority: Authority
    directory: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("how-to")
    authority = Authority(directory / "authority")
    good = authority.issue()
    users = {"orders": PASSWORD}
    then = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
    listeners = [
        ssl_listener("SSL", good),
        ssl_listener("MUTUAL", good, clients=authority),
        ssl_listener("ELSEWHERE", authority.issue("elsewhere.test")),
        ssl_listener("EXPIRED", authority.issue(not_after=then)),
        ssl_listener("STRANGER", Authority(directory / "stranger").issue()),
        sasl_listener("PLAIN", ["PLAIN"], users=users, certificate=good),
        sasl_listener("SCRAM", ["SCRAM-SHA-256", "SCRAM-SHA-512"], certificate=good),
        sasl_listener("OAUTH", ["OAUTHBEARER"], certificate=good),
        sasl_listener("CLEAR", ["SCRAM-SHA-256"]),
    ]
    with kafka_cluster(listeners=listeners, properties=ACLS) as cluster:
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            cluster.create_user("orders", PASSWORD, mechanism)
            cluster.create_user(ODD_NAME, ODD_PASSWORD, mechanism)
        mine = authority.issue("client.test", common_name="orders")
        for source, name in (
            (authority.file, "ca.pem"),
            (mine.chain, "orders.pem"),
            (mine.key, "orders.key"),
        ):
            (directory / name).write_bytes(source.read_bytes())
        yield Place(cluster, authority, directory)


@pytest.fixture
def topic(place: Place) -> str:
    """A topic to which only the user of the examples may write."""
    topic = place.cluster.create_topic()
    place.cluster.add_acl("User:orders", "write", topic)
    return topic


def examples(place: Place, listener: str) -> dict[str, Any]:
    """Run an example of the page for a listener, with the files of this test, and return what it
    defines."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        if "async with" not in block:
            source = block.replace("localhost:9092", place.cluster.bootstrap(listener))
            exec(source.replace("/etc/kafka", str(place.directory)), names)
    return names


async def assert_comes_in(place: Place, topic: str, settings: ProducerSettings) -> None:
    record = ProducerRecord(topic, b"two tins", b"42")
    async with open_send_producer(settings) as producer:
        metadata = await producer.send(record)
    await assert_written(place.cluster.bootstrap_servers, [(record, metadata)])


async def refusal(settings: ProducerSettings) -> str:
    """Check that a refused client gets a prompt error, which has the address and no secret."""
    began = time.monotonic()
    with pytest.raises(ProducerStartError) as caught:
        async with open_send_producer(settings.evolve(start_timeout=240)):
            raise AssertionError
    assert time.monotonic() - began < PROMPTLY
    said = str(caught.value)
    assert said.startswith(f"no producer for {settings.addresses[0]}: {settings.addresses[0]} ")
    assert PASSWORD not in f"{said} {caught.value.__cause__!r}"
    return said


SECTIONS = {
    "over_tls": "SSL",
    "with_certificate": "MUTUAL",
    "with_password": "PLAIN",
    "with_scram": "SCRAM",
    "from_java": "SCRAM",
    "with_token": "OAUTH",
    "with_context": "SSL",
}


@pytest.mark.parametrize("name", SECTIONS)
async def test_a_producer_opens_with_each_example_of_the_page(
    place: Place, topic: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = examples(place, SECTIONS[name])
    found["tokens"].current = token = unsecured_token("orders")
    found["context"].load_verify_locations(place.authority.file)
    if name in {"over_tls", "with_context"}:  # clients do not log in there, and so may not write
        place.cluster.add_acl("User:ANONYMOUS", "write", topic)
    with caplog.at_level(logging.DEBUG):
        await assert_comes_in(place, topic, found[name])
    assert len(caplog.records) > 50
    assert PASSWORD not in caplog.text
    assert token not in caplog.text
    assert "two tins" not in caplog.text


def test_every_example_of_the_page_has_a_test_case(place: Place) -> None:
    made = {
        name
        for name, value in examples(place, "SSL").items()
        if isinstance(value, ProducerSettings)
    }
    assert made == {"settings", *SECTIONS}


WRONG = [
    ("with_password", "PLAIN", "refused the login with PLAIN: Authentication failed"),
    ("with_scram", "SCRAM", "refused the login with SCRAM-SHA-512: Authentication failed"),
    ("from_java", "SCRAM", "does not offer PLAIN"),
    ("with_token", "OAUTH", 'refused the login with OAUTHBEARER: {"status":"invalid_token"}'),
    ("over_tls", "ELSEWHERE", "its certificate is for another address (IP address mismatch, "),
    ("over_tls", "EXPIRED", "its certificate has expired"),
    ("over_tls", "STRANGER", "its certificate is not trusted: its issuer is not a trusted"),
    ("over_tls", "MUTUAL", "it sent the alert 'bad certificate'"),
    ("settings", "SSL", "speaks TLS, but security.protocol is PLAINTEXT"),
]


@pytest.mark.parametrize(("name", "listener", "says"), WRONG)
async def test_each_error_is_raised_at_once_with_the_message_on_the_page(
    place: Place, name: str, listener: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings: ProducerSettings = examples(place, listener)[name]
    if "sasl.password" in settings.properties:
        settings = settings.with_property("sasl.password", f"{PASSWORD}!")
    if "does not offer" in says:
        module = "org.apache.kafka.common.security.plain.PlainLoginModule"
        jaas = f'{module} required username="orders" password="{PASSWORD}";'
        changed = {"sasl.mechanism": "PLAIN", "sasl.jaas.config": jaas}
        settings = settings.with_properties(changed)
    with caplog.at_level(logging.DEBUG):
        assert says in await refusal(settings)
    assert PASSWORD not in caplog.text


async def test_a_wrong_password_and_then_the_right_one(place: Place, topic: str) -> None:
    settings: ProducerSettings = examples(place, "SCRAM")["with_scram"]
    assert "refused the login" in await refusal(settings.with_property("sasl.password", "none"))
    await assert_comes_in(place, topic, settings)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_name_and_a_password_that_need_quoting(
    place: Place, topic: str, mechanism: str
) -> None:
    place.cluster.add_acl(f"User:{ODD_NAME}", "write", topic)
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in (ODD_NAME, ODD_PASSWORD)]
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    jaas = f'{module} required username="{quoted[0]}" password="{quoted[1]}";'
    settings: ProducerSettings = examples(place, "SCRAM")["from_java"]
    changed = {"sasl.mechanism": mechanism, "sasl.jaas.config": jaas}
    await assert_comes_in(place, topic, settings.with_properties(changed))


async def test_a_login_that_is_not_encrypted(place: Place, topic: str) -> None:
    settings = ProducerSettings(
        bootstrap_servers=place.cluster.bootstrap("CLEAR"),
        properties={
            "security.protocol": "sasl_plaintext",
            "sasl.mechanisms": "SCRAM-SHA-256",
            "sasl.username": "orders",
            "sasl.password": PASSWORD,
        },
    )
    await assert_comes_in(place, topic, settings)


async def test_a_forbidden_topic_rejects_its_own_records_alone(place: Place, topic: str) -> None:
    forbidden = place.cluster.create_topic()
    place.cluster.add_acl("User:nobody", "write", forbidden)
    settings: ProducerSettings = examples(place, "PLAIN")["with_password"]
    async with open_send_producer(settings) as producer:
        good = [await producer.enqueue(ProducerRecord(topic, b"%d" % n)) for n in range(5)]
        bad = [await producer.enqueue(ProducerRecord(forbidden, b"no")) for _ in range(3)]
        good += [await producer.enqueue(ProducerRecord(topic, b"%d" % n)) for n in range(5)]
        for delivery in bad:
            with pytest.raises(RecordRejected, match=forbidden):
                await delivery.wait()
        written = [(delivery.record, await delivery.wait()) for delivery in good]
    await assert_written(place.cluster.bootstrap_servers, written)
