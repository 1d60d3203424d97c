"""TLS, each login mechanism, and ACLs on Apache Kafka: accepted clients, and the errors of refused
ones."""

from __future__ import annotations

import datetime as dt
import gc
import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    MultiDeliveryError,
    MultiMessage,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from tests.support.calls import sure_of_refusals
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_security import (
    ACLS,
    Authority,
    logging_in,
    sasl_listener,
    ssl_listener,
    trusting,
    unsecured_token,
)
from tests.support.read_back import assert_written

oauth: Any = importlib.import_module("kafka.net.sasl.oauth")

#: The mark of tests with a failed handshake; see the fixture ``refused``.
leaves_sockets = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

#: Seconds after which a refused producer gives up. It retries until then.
SHORT = 4.0

PASSWORD = "not to be told"


class Secured(NamedTuple):
    """A broker with a listener of each kind. All listeners check ACLs."""

    cluster: KafkaCluster
    authority: Authority
    stranger: Authority


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    place = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority(place / "trusted"), Authority(place / "stranger")
    good = authority.issue()
    mechanisms = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
    users = {"alice": PASSWORD, "bob": PASSWORD}
    expired = authority.issue(not_after=dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc))
    listeners = [
        ssl_listener("SSL", good),
        ssl_listener("MUTUAL", good, clients=authority),
        ssl_listener("ELSEWHERE", authority.issue("elsewhere.test")),
        ssl_listener("EXPIRED", expired),
        ssl_listener("STRANGER", stranger.issue()),
        sasl_listener("SASL", mechanisms, users=users),
        sasl_listener("SASL_SSL", mechanisms, users=users, certificate=good),
        sasl_listener("SCRAM_ONLY", ["SCRAM-SHA-512"]),
    ]
    with kafka_cluster(listeners=listeners, properties=ACLS) as cluster:
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            cluster.create_user("alice", PASSWORD, mechanism)
        yield Secured(cluster, authority, stranger)


@pytest.fixture
def topic(secured: Secured) -> str:
    """A topic to which only alice and clients without a login may write."""
    topic = secured.cluster.create_topic()
    secured.cluster.add_acl("User:alice", "write", topic)
    return topic


def settings_for(
    secured: Secured, listener: str, properties: dict[str, Any], *, start_timeout: float = 30.0
) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=secured.cluster.bootstrap(listener),
        properties=properties,
        start_timeout=start_timeout,
    )


class Tokens(oauth.AbstractTokenProvider):  # type: ignore[misc]
    """A token provider that always returns the same token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> str:
        return self._token


def logged_in(
    mechanism: str, user: str = "alice", password: str = PASSWORD, *, valid_for: float = 3600.0
) -> dict[str, Any]:
    """Make the properties of a client that logs in."""
    if mechanism != "OAUTHBEARER":
        return logging_in(mechanism, user, password)
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl_oauth_token_provider": Tokens(unsecured_token(user, valid_for=valid_for)),
    }


async def assert_comes_in(
    driver: DriverName, secured: Secured, topic: str, listener: str, properties: dict[str, Any]
) -> None:
    """Check that a client can write, and that the record is in the log."""
    record = ProducerRecord(topic, b"value", b"key", headers=[("name", b"content")])
    async with open_send_producer(
        settings_for(secured, listener, properties), driver=driver
    ) as producer:
        metadata = await producer.send(record)
    await assert_written(secured.cluster.bootstrap_servers, [(record, metadata)])


class Refused(Protocol):
    """The function that the fixture ``refused`` returns."""

    async def __call__(self, listener: str, properties: dict[str, Any], said: str = "") -> None: ...


@pytest.fixture
def refused(
    secured: Secured, caplog: pytest.LogCaptureFixture, driver: DriverName
) -> Iterator[Refused]:
    """Asserts that a client is refused: it gives up in time, and reports no secret.

    The error has the reason if the client itself refuses the broker. The broker's reason does not
    always arrive: kafka-python drops it if the end of the connection arrives together with it.
    """

    async def refused(listener: str, properties: dict[str, Any], said: str = "") -> None:
        settings = settings_for(secured, listener, properties, start_timeout=SHORT)
        with anyio.fail_after(SHORT + 60), pytest.raises(ProducerStartError) as caught:
            async with open_send_producer(settings, driver=driver):
                raise AssertionError
        assert re.search(said, str(caught.value)), caught.value
        assert PASSWORD not in f"{caught.value}\n{caplog.text}"

    yield refused
    # kafka-python does not close the socket of a failed handshake. The socket is in a reference
    # cycle with the exception, and so are the log's arguments. Collect it here, where the warning
    # is expected, and not in another test.
    caplog.get_records("call").clear()
    gc.collect()


# --- TLS -----------------------------------------------------------------------------------------


async def test_tls(secured: Secured, topic: str, driver: DriverName) -> None:
    await assert_comes_in(driver, secured, topic, "SSL", trusting(secured.authority))


@leaves_sockets
@pytest.mark.parametrize(
    ("listener", "said"),
    [
        ("ELSEWHERE", "certificate is not valid for '127.0.0.1'"),
        ("EXPIRED", "certificate has expired"),
        ("STRANGER", "unable to get local issuer certificate"),
    ],
)
async def test_a_broker_with_a_bad_certificate_is_refused(
    secured: Secured, refused: Refused, listener: str, said: str, driver: DriverName
) -> None:
    if driver == "confluent":
        # librdkafka has one message for all of them.
        said = "certificate verify failed"
    await refused(listener, trusting(secured.authority), said)


async def test_a_host_name_that_is_not_checked(
    secured: Secured, topic: str, driver: DriverName
) -> None:
    properties = {**trusting(secured.authority), "ssl_check_hostname": False}
    await assert_comes_in(driver, secured, topic, "ELSEWHERE", properties)


async def test_a_client_is_identified_by_its_certificate(
    secured: Secured, topic: str, driver: DriverName
) -> None:
    alice = secured.authority.issue("client.test", common_name="alice")
    await assert_comes_in(driver, secured, topic, "MUTUAL", trusting(secured.authority, alice))
    bob = secured.authority.issue("client.test", common_name="bob")
    settings = settings_for(secured, "MUTUAL", trusting(secured.authority, bob))
    settings = sure_of_refusals(settings, driver)
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(RecordRejected, match=topic):
            await producer.send(ProducerRecord(topic, b"value"))


@leaves_sockets
async def test_a_client_without_a_required_certificate_is_refused(
    secured: Secured, refused: Refused
) -> None:
    await refused("MUTUAL", trusting(secured.authority))


@leaves_sockets
async def test_a_client_with_a_certificate_of_an_unknown_authority_is_refused(
    secured: Secured, refused: Refused
) -> None:
    shown = secured.stranger.issue("client.test", common_name="alice")
    properties = trusting(secured.authority, shown)
    await refused("MUTUAL", properties)


async def test_a_client_without_tls_on_a_tls_listener(secured: Secured, refused: Refused) -> None:
    await refused("SSL", {})


@leaves_sockets
async def test_a_client_with_tls_on_a_plaintext_listener(
    secured: Secured, refused: Refused
) -> None:
    await refused("PLAINTEXT", trusting(secured.authority))


# --- logging in ----------------------------------------------------------------------------------

MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_logging_in(secured: Secured, topic: str, mechanism: str, driver: DriverName) -> None:
    await assert_comes_in(driver, secured, topic, "SASL", logged_in(mechanism))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_logging_in_with_tls(
    secured: Secured, topic: str, mechanism: str, driver: DriverName
) -> None:
    properties = {
        **trusting(secured.authority),
        **logged_in(mechanism),
        "security.protocol": "SASL_SSL",
    }
    await assert_comes_in(driver, secured, topic, "SASL_SSL", properties)


@pytest.mark.parametrize("mechanism", MECHANISMS[:3])
async def test_a_wrong_password(secured: Secured, refused: Refused, mechanism: str) -> None:
    properties = logged_in(mechanism, password=PASSWORD + "!")
    await refused("SASL", properties)


@pytest.mark.parametrize("mechanism", MECHANISMS[:3])
async def test_an_unknown_user(secured: Secured, refused: Refused, mechanism: str) -> None:
    properties = logged_in(mechanism, "mallory")
    await refused("SASL", properties)


async def test_a_token_that_has_run_out(secured: Secured, refused: Refused) -> None:
    properties = logged_in("OAUTHBEARER", valid_for=-60.0)
    await refused("SASL", properties)


async def test_a_mechanism_that_the_broker_does_not_offer(
    secured: Secured, refused: Refused
) -> None:
    await refused("SCRAM_ONLY", logged_in("PLAIN"))


async def test_a_client_without_a_login_on_a_sasl_listener(
    secured: Secured, refused: Refused
) -> None:
    await refused("SASL", {})


# --- authorization -------------------------------------------------------------------------------


async def test_a_forbidden_topic_does_not_delay_other_topics(
    secured: Secured, topic: str, driver: DriverName
) -> None:
    """Bob may describe one of two foreign topics, and has a topic of his own."""
    cluster = secured.cluster
    hidden, seen, own = topic, cluster.create_topic(), cluster.create_topic()
    cluster.add_acl("User:bob", "describe", seen)
    cluster.add_acl("User:bob", "write", own)
    good = [ProducerRecord(own, b"%d" % number) for number in range(4)]
    settings = settings_for(secured, "SASL", logged_in("PLAIN", "bob"))
    settings = sure_of_refusals(settings, driver)
    async with open_send_producer(settings, driver=driver) as producer:
        sent = [(good[0], await producer.send(good[0]))]
        for number, forbidden in enumerate((hidden, seen), start=1):
            with pytest.raises(RecordRejected, match=forbidden) as alone:
                await producer.send(ProducerRecord(forbidden, b"value"))
            assert alone.value.persistence is Persistence.NOT_PERSISTED
            sent.append((good[number], await producer.send(good[number])))
        with pytest.raises(MultiDeliveryError) as among_others:
            await producer.send_envelope(MultiMessage([ProducerRecord(hidden, b"value"), good[3]]))
        refused, written = among_others.value.parts
        assert isinstance(refused, RecordRejected)
        assert not isinstance(written, Exception)
        sent.append((written.record, written.metadata))
    assert [metadata.offset for _, metadata in sent] == [0, 1, 2, 3]
    await assert_written(cluster.bootstrap_servers, sent)


async def test_permissions_change_while_a_producer_runs(
    secured: Secured, topic: str, driver: DriverName
) -> None:
    rights = ("User:bob", "write", topic)
    results: list[bool] = []
    settings = settings_for(secured, "SASL", logged_in("PLAIN", "bob"))
    settings = sure_of_refusals(settings, driver)
    async with open_send_producer(settings, driver=driver) as producer:

        async def may_write() -> bool:
            try:
                await producer.send(ProducerRecord(topic, b"value"))
            except RecordRejected:
                return False
            return True

        async def wait_until(expected: bool) -> None:
            with anyio.fail_after(60):
                while await may_write() is not expected:  # noqa: ASYNC110 # no event tells
                    await anyio.sleep(0.05)
            results.append(expected)

        await wait_until(False)
        await anyio.to_thread.run_sync(lambda: secured.cluster.add_acl(*rights))
        await wait_until(True)
        await anyio.to_thread.run_sync(lambda: secured.cluster.remove_acl(*rights))
        await wait_until(False)
    assert results == [False, True, False]


async def test_a_deleted_user_can_not_log_in_again(
    secured: Secured, refused: Refused, topic: str, driver: DriverName
) -> None:
    cluster = secured.cluster
    name = f"guest-{topic}"
    mechanism = "SCRAM-SHA-512"
    await anyio.to_thread.run_sync(cluster.create_user, name, PASSWORD, mechanism)
    await anyio.to_thread.run_sync(lambda: cluster.add_acl(f"User:{name}", "write", topic))
    await assert_comes_in(driver, secured, topic, "SCRAM_ONLY", logged_in(mechanism, name))
    await anyio.to_thread.run_sync(cluster.delete_user, name, mechanism)
    await refused("SCRAM_ONLY", logged_in(mechanism, name))
