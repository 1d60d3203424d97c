"""Attacks on a producer by brokers, records, settings and the network, as SECURITY.md lists them.

The brokers are scripted, and give false answers. ``tests/kafka/test_security.py`` uses Apache
Kafka.
"""

from __future__ import annotations

import copy
import datetime as dt
import gc
import importlib
import logging
import os
import pickle
import random
import re
import socket
import ssl
import struct
import time
import traceback
import tracemalloc
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import anyio.to_thread
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SettingsError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers.kafka_python import (
    _connection,
    _log_redaction,
    _network,
    _patches,
)
from anyio_sendproducer.drivers.security._tls import tls_refusal
from anyio_sendproducer.testing import strategies
from tests.support.brief import on_trio_and_nightly_on_asyncio
from tests.support.calls import raising
from tests.support.client_log import everything_logged_to
from tests.support.clock import ManualClock
from tests.support.hourglass import LONG, Hourglass
from tests.support.kafka_security import Authority, Certificate
from tests.support.scripted_broker import (
    METADATA,
    PRODUCE,
    SASL_AUTHENTICATE,
    Answer,
    ScriptedBroker,
    framed,
    scripted_broker,
)
from tests.support.waiting import blocking_until, until

SECRET = "hunter2-s3cr3t"
MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
#: Seconds within which a final error has to be raised on a busy machine. The start may take many
#: times that.
PROMPTLY = 15.0


class Tokens:
    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> str:
        return self._token


def login(mechanism: str, password: str = SECRET, user: str = "me") -> dict[str, Any]:
    properties: dict[str, Any] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
    }
    if mechanism == "OAUTHBEARER":
        return {**properties, "sasl_oauth_token_provider": Tokens(password)}
    return {**properties, "sasl.username": user, "sasl.password": password}


async def send_one(
    broker: ScriptedBroker,
    properties: dict[str, Any] | None = None,
    record: ProducerRecord[Any, Any] | None = None,
    **changes: Any,
) -> RecordMetadata:
    """Start a producer, send a record, and stop."""
    bounds: dict[str, Any] = {
        "start_timeout": LONG,
        "delivery_timeout": LONG,
        "close_timeout": 5,
        "cancel_timeout": 1,
    }
    # The client also pauses for that long before it requests the metadata of a topic.
    hasty = {"retry.backoff.ms": 10, **(properties or {})}
    made = ProducerSettings(bootstrap_servers=broker.address, properties=hasty)
    async with open_send_producer(made.evolve(**{**bounds, **changes})) as producer:
        return await producer.send(record or ProducerRecord("orders", b"two tins"))


async def start_error(broker: ScriptedBroker, properties: dict[str, Any], **changes: Any) -> str:
    """Return the error of a refused start, which is raised promptly."""
    began = time.monotonic()
    with pytest.raises(ProducerStartError) as caught:
        await send_one(broker, properties, **changes)
    assert time.monotonic() - began < PROMPTLY
    return str(caught.value)


@pytest.fixture
def hourglass(monkeypatch: pytest.MonkeyPatch) -> Hourglass:
    return Hourglass(monkeypatch)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


def served(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.both)
    return context


def server_side(authority: Authority, *hosts: str, **options: Any) -> ssl.SSLContext:
    return served(authority.issue(*hosts, **options))


def revoked(authority: Authority, certificate: Certificate) -> bytes:
    """Make the authority's certificate revocation list with this certificate."""
    issuer = x509.load_pem_x509_certificate(authority.file.read_bytes())
    culprit = x509.load_pem_x509_certificate(certificate.chain.read_bytes())
    key: Any = serialization.load_pem_private_key(authority._ca.private_key_pem.bytes(), None)
    now = dt.datetime.now(dt.timezone.utc)
    entry = x509.RevokedCertificateBuilder(culprit.serial_number, now).build()
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - dt.timedelta(days=1))
        .next_update(now + dt.timedelta(days=1))
        .add_revoked_certificate(entry)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def tls(authority: Authority, **properties: Any) -> dict[str, Any]:
    return {"security.protocol": "SSL", "ssl.ca.location": authority.file, **properties}


class Kept(logging.Handler):
    """Keeps the log as a file would have it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name} {record.levelname} {self.format(record)}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def everything_logged() -> Iterator[Kept]:
    kept = Kept()
    with everything_logged_to(kept, "kafka", "anyio_sendproducer"):
        yield kept


# --- logging in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_login_succeeds(mechanism: str) -> None:
    with scripted_broker(mechanisms=(mechanism,), users={"me": SECRET}) as broker:
        assert (await send_one(broker, login(mechanism))).topic == "orders"
        assert set(broker.logins) == {True}


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_name_with_commas_logs_in(mechanism: str) -> None:
    with scripted_broker(mechanisms=(mechanism,), users={"a,b=c": SECRET}) as broker:
        await send_one(broker, login(mechanism, user="a,b=c"))


async def test_a_token_logs_in() -> None:
    with scripted_broker(mechanisms=("OAUTHBEARER",), tokens={"t0k3n"}) as broker:
        await send_one(broker, login("OAUTHBEARER", "t0k3n"))


async def test_a_client_logs_in_again_on_an_open_connection(driver: DriverName) -> None:
    """KIP-368. kafka-python treats a session of less than a second as one of a second."""
    with scripted_broker(mechanisms=("PLAIN",), users={"me": SECRET}, session_ms=1000) as broker:
        made = ProducerSettings(bootstrap_servers=broker.address, properties=login("PLAIN"))
        async with open_send_producer(made, driver=driver) as producer:
            await producer.send(ProducerRecord("t", b"before"))
            await until(lambda: len(broker.logins) > broker.connections)
            await producer.send(ProducerRecord("t", b"after"))
        assert all(broker.logins)


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize("mechanism", [*MECHANISMS, "OAUTHBEARER"])
async def test_a_refused_login_is_reported_at_once(mechanism: str, hangs_up: bool) -> None:
    with scripted_broker(mechanisms=(mechanism,), hangs_up=hangs_up) as broker:
        said = await start_error(broker, login(mechanism))
        assert said == (
            f"no producer for {broker.address}: {broker.address} refused the login with "
            f"{mechanism}: Authentication failed: Invalid username or password"
        )


async def test_a_mechanism_that_is_not_offered_is_reported_at_once() -> None:
    with scripted_broker(mechanisms=("PLAIN",)) as broker:
        said = await start_error(broker, login("SCRAM-SHA-256"))
        assert f"{broker.address} does not offer SCRAM-SHA-256" in said


async def test_a_broker_that_expects_no_login_is_reported_at_once() -> None:
    def refuse(correlation: bytes) -> bytes:
        return framed(correlation, struct.pack(">hi", 34, 0))

    with scripted_broker(answers={17: refuse}) as broker:
        said = await start_error(broker, login("PLAIN"))
        assert f"{broker.address} expects no login, but security.protocol is SASL_PLAIN" in said


async def test_one_broker_is_down_and_another_refuses_the_login() -> None:
    with scripted_broker(mechanisms=("PLAIN",)) as broker, scripted_broker() as gone:
        gone.close()
        both = f"{gone.address},{broker.address}"
        said = await start_error(broker, login("PLAIN"), bootstrap_servers=both)
        assert f"{broker.address} refused the login with PLAIN" in said


async def test_one_broker_accepts_the_login_and_another_refuses_it() -> None:
    with (
        scripted_broker(mechanisms=("PLAIN",)) as refusing,
        scripted_broker(mechanisms=("PLAIN",), users={"me": SECRET}) as broker,
    ):
        both = f"{refusing.address},{broker.address}"
        await send_one(broker, login("PLAIN"), bootstrap_servers=both)


async def test_a_missing_token_is_requested_again_until_the_start_times_out(
    hourglass: Hourglass,
) -> None:
    with scripted_broker(mechanisms=("OAUTHBEARER",)) as broker:
        hourglass.run_out_when(lambda: broker.connections > 2)
        with pytest.raises(ProducerStartError, match="sasl_oauth_token_provider must return"):
            await send_one(broker, login("OAUTHBEARER", "two words"))


@on_trio_and_nightly_on_asyncio
async def test_a_login_that_is_refused_later_is_retried_with_pauses() -> None:
    with scripted_broker(mechanisms=("PLAIN",), users={"me": SECRET}) as broker:

        def revoke() -> None:
            broker.users = {}
            before = broker.connections
            began = time.monotonic()
            broker.disconnect()
            # kafka-python itself would have tried some twenty times in two seconds.
            blocking_until(lambda: broker.connections - before >= 6, 60)
            assert time.monotonic() - began > 1.0

        made = ProducerSettings(bootstrap_servers=broker.address, properties=login("PLAIN"))
        async with open_send_producer(made) as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))
            delivery = await producer.enqueue(ProducerRecord("orders", b"a brush"))
            await anyio.to_thread.run_sync(revoke)
            broker.users = {"me": SECRET}
            await delivery.wait()


# --- TLS -----------------------------------------------------------------------------------------


async def test_records_go_over_tls(authority: Authority) -> None:
    with scripted_broker(server_side(authority)) as broker:
        big = ProducerRecord("orders", bytes(200_000))
        assert (await send_one(broker, tls(authority), big)).serialized_value_size == 200_000


@pytest.mark.parametrize(
    ("hosts", "options", "says"),
    [
        (
            (),
            {},
            "its certificate is not trusted: its issuer is not a trusted certificate authority",
        ),
        (("elsewhere.test",), {}, "its certificate is for another address (IP address mismatch"),
        ((), {"not_after": dt.datetime(2020, 1, 1)}, "its certificate has expired"),  # noqa: DTZ001
    ],
    ids=["stranger", "host", "expired"],
)
async def test_a_wrong_certificate_is_reported_at_once(
    hosts: tuple[str, ...], options: dict[str, Any], says: str, authority: Authority, tmp_path: Path
) -> None:
    signs = authority if hosts or options else Authority(tmp_path / "stranger")
    with scripted_broker(server_side(signs, *hosts, **options)) as broker:
        said = await start_error(broker, tls(authority))
        assert f"{broker.address} can't be reached with TLS: {says}" in said
        if hosts:
            await send_one(broker, tls(authority, **{"ssl.endpoint.identification.algorithm": ""}))
        await send_one(
            broker,
            {"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"},
        )


async def test_a_client_without_a_required_certificate_gets_an_error_that_says_so(
    authority: Authority,
) -> None:
    context = server_side(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    mine = authority.issue("client.test").both
    with scripted_broker(context) as broker:
        said = await start_error(broker, tls(authority))
        assert "it sent the alert" in said
        await send_one(broker, tls(authority, **{"ssl.keystore.location": mine}))


async def test_plaintext_to_a_tls_listener_is_reported(authority: Authority) -> None:
    # OpenSSL's answer to a client that does not speak TLS.
    answer: Answer = lambda _: b"\x15\x03\x03\x00\x02\x02\x46"  # noqa: E731
    with scripted_broker(answers={18: answer}) as broker:
        said = await start_error(broker, {})
        assert f"{broker.address} speaks TLS, but security.protocol is PLAINTEXT" in said


@pytest.mark.parametrize("name", ["ssl_crlfile", "ssl.crl.location"])
async def test_a_revoked_certificate_is_reported_at_once(
    name: str, authority: Authority, tmp_path: Path
) -> None:
    """kafka-python itself fails for any such file."""
    mine, others = authority.issue(), authority.issue()
    with scripted_broker(served(mine)) as broker:
        lists: list[Path] = []
        for certificate in (others, mine):
            lists.append(tmp_path / f"{len(lists)}.pem")
            await anyio.Path(lists[-1]).write_bytes(revoked(authority, certificate))
        await send_one(broker, tls(authority, **{name: lists[0]}))
        said = await start_error(broker, tls(authority, **{name: lists[1]}))
        assert "its certificate was revoked" in said


async def test_a_custom_ssl_context_is_used(authority: Authority) -> None:
    context = ssl.create_default_context(cafile=str(authority.file))
    with scripted_broker(server_side(authority)) as broker:
        await send_one(broker, {"security.protocol": "SSL", "ssl_context": context})


async def test_security_settings_need_a_matching_protocol(authority: Authority) -> None:
    """With settings for TLS or a login and a protocol without them, there is no connection."""
    with scripted_broker() as broker:
        for properties in (
            {"ssl.ca.location": authority.file},
            {"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": SECRET},
            {**login("PLAIN"), "ssl.ca.location": authority.file},
        ):
            with pytest.raises(SettingsError, match=r"has no effect, because 'security\.protocol'"):
                await send_one(broker, properties)
        assert broker.connections == 0


async def test_bad_files_are_reported_before_any_connection(tmp_path: Path) -> None:
    with scripted_broker() as broker:
        with pytest.raises(SettingsError, match=r"'ssl\.ca\.location' names a file that does not"):
            await send_one(
                broker, {"security.protocol": "SSL", "ssl.ca.location": tmp_path / "none"}
            )
        assert broker.connections == 0


# --- secrets -------------------------------------------------------------------------------------


def all_of(error: BaseException | None) -> Iterator[str]:
    told: list[BaseException] = []
    # An error that a busy kafka-python raises again may have itself as its context.
    while error is not None and error not in told:
        told.append(error)
        yield from (str(error), repr(error), *traceback.format_exception_only(error))
        error = error.__cause__ or error.__context__


passwords = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
).map(lambda text: f"{SECRET}{text}")


@pytest.mark.parametrize("mechanism", [*MECHANISMS, "OAUTHBEARER"])
def test_no_login_leaves_a_secret_behind(mechanism: str, everything_logged: Kept) -> None:
    # The client formats its requests in several ways.
    with scripted_broker(mechanisms=(mechanism,)) as broker:

        @given(passwords)
        @settings(
            max_examples=8,
            deadline=None,
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
        def check(password: str) -> None:
            if mechanism == "OAUTHBEARER":
                password = re.sub(r"[^\x21-\x7e]", "_", password)
            everything_logged.lines.clear()
            properties = login(mechanism, password)
            texts = [repr(ProducerSettings(bootstrap_servers="a:1", properties=properties))]
            for broker.users, broker.tokens in (
                ({}, frozenset[str]()),
                ({"me": password}, frozenset({password})),
            ):
                try:
                    anyio.run(send_one, broker, properties)
                except ProducerStartError as error:
                    texts += all_of(error)
            assert {True, False} <= set(broker.logins)
            texts += everything_logged.lines
            assert len(everything_logged.lines) > 50
            for shape in (password, repr(password)[1:-1], repr(password.encode())[2:-1]):
                for text in texts:
                    assert shape not in text
            assert SECRET not in "".join(texts)
            # Salt and proof are enough to search for the password offline.
            assert "i=4096" not in "".join(texts)

        check()


async def test_the_log_has_no_value_and_no_key_of_a_record(
    everything_logged: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ProducerRecord("orders", f"v-{SECRET}".encode(), f"k-{SECRET}".encode())
    with scripted_broker() as broker:
        await send_one(broker, record=record)
        # Without the direct append, through the client's own send().
        monkeypatch.setattr(_patches, "_APPEND", ("as", "it", "never", "was"))
        await send_one(broker, record=record)
    assert len(everything_logged.lines) > 50
    assert SECRET not in everything_logged.text


def test_kafka_python_would_log_a_password(caplog: pytest.LogCaptureFixture) -> None:
    """If this fails, the driver's workaround can be removed."""
    sasl: Any = importlib.import_module("kafka.protocol.sasl")
    request = sasl.SaslAuthenticateRequest(auth_bytes=SECRET.encode())
    assert SECRET in str(request)
    parser: Any = importlib.import_module("kafka.protocol.parser")
    assert parser.log.filters
    with caplog.at_level(logging.DEBUG, "kafka"):
        protocol = parser.KafkaProtocol(client_id="me")
        request.API_VERSION = 1
        protocol.send_request(request)
        assert SECRET.encode() in protocol.send_bytes()
    assert "Sending request 1 <SaslAuthenticateRequest>" in caplog.text
    assert re.search(r"Send: <\d+ bytes>", caplog.text)
    assert SECRET not in caplog.text


def test_secrets_are_redacted_in_every_form_of_a_log_call() -> None:
    class Request:
        def __repr__(self) -> str:
            return SECRET

    Request.__name__ = "ProduceRequest_v7"
    packed = {1: [Request(), (SECRET.encode(), "a")], 2: bytearray(3)}
    assert str(_log_redaction._redacted(packed)) == (
        "{1: [<ProduceRequest_v7>, [<14 bytes>, 'a']], 2: <3 bytes>}"
    )
    record = logging.LogRecord("kafka", 10, "", 0, "%(a)s", ({"a": "x\ny"},), None)
    assert _log_redaction._FILTER.filter(record)
    assert record.getMessage() == "x\\ny"


def test_pickled_and_copied_settings_keep_their_secrets() -> None:
    """They have to, because the copy must work like the original. SECURITY.md warns of this."""
    made = ProducerSettings(bootstrap_servers="a:1", properties=login("PLAIN"))
    assert SECRET.encode() in pickle.dumps(made)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other == made
        assert SECRET not in repr(other)


async def test_the_environment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """The exception is the place of the certificate authorities that the system trusts."""
    for name in ("KAFKA_PASSWORD", "SASL_PASSWORD", "HTTPS_PROXY", "ALL_PROXY", "SSLKEYLOGFILE"):
        monkeypatch.setenv(name, f"/nowhere/{SECRET}")
    with scripted_broker(server_side(authority)) as broker:
        await send_one(broker, tls(authority))


# --- hostile brokers -----------------------------------------------------------------------------


LIES: dict[str, Answer] = {
    "garbage": lambda _: random.Random(1).randbytes(200),
    "garbage in a frame": lambda correlation: framed(correlation, random.Random(1).randbytes(50)),
    "empty": lambda correlation: framed(correlation, b""),
    "zeros": lambda correlation: framed(correlation, bytes(60)),
    "ones": lambda correlation: framed(correlation, b"\xff" * 60),
    "a giant": lambda _: struct.pack(">i", 2**31 - 1) + bytes(100),
    "less than nothing": lambda _: struct.pack(">i", -5),
    "an answer to another": lambda _: framed(b"\0\0\x7f\x7f", bytes(40)),
    "nothing": lambda _: None,
    "byte by byte": lambda correlation: [bytes([b]) for b in framed(correlation, bytes(9))],
}


# After some malformed answers kafka-python 3.0.12 leaves a socket to the garbage collector.
@on_trio_and_nightly_on_asyncio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lie", LIES)
async def test_nonsense_in_place_of_metadata_ends_within_the_start_timeout(
    lie: str, hourglass: Hourglass
) -> None:
    with scripted_broker(answers={METADATA: LIES[lie]}) as broker:
        # It has been told the lie, and has had a moment to make something of it.
        told = _since(lambda: METADATA in broker.requests, 0.2)
        hourglass.run_out_when(told)
        began = time.monotonic()
        with pytest.raises(ProducerStartError, match="start_timeout"):
            await send_one(broker)
        assert time.monotonic() - began < PROMPTLY
    gc.collect()


def _since(condition: Callable[[], object], seconds: float) -> Callable[[], bool]:
    """Make a function that tells whether the condition first held more than `seconds` ago."""
    since: list[float] = []

    def is_so() -> bool:
        if not since and condition():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > seconds

    return is_so


@on_trio_and_nightly_on_asyncio
@pytest.mark.parametrize("lie", LIES)
async def test_nonsense_in_place_of_an_acknowledgement_ends_within_the_delivery_timeout(
    lie: str, clock: ManualClock
) -> None:
    with scripted_broker(answers={PRODUCE: LIES[lie]}) as broker:
        made = ProducerSettings(
            bootstrap_servers=broker.address, delivery_timeout=LONG, cancel_timeout=0.1
        )
        began = time.monotonic()
        with raising(DeliveryError) as caught:
            async with clock.open(made) as producer:
                delivery = await producer.enqueue(ProducerRecord("orders", b"two tins"))
                # It has been told the lie, and has had a moment to make something of it.
                await until(_since(lambda: PRODUCE in broker.requests, 0.2))
                clock.advance(LONG)
                await delivery.wait()
        assert caught.value.persistence.value == "possibly persisted"
        assert time.monotonic() - began < PROMPTLY


@on_trio_and_nightly_on_asyncio
@pytest.mark.parametrize("lie", ["garbage in a frame", "empty", "nothing", "a giant"])
async def test_nonsense_in_a_login_ends_within_the_start_timeout(
    lie: str, hourglass: Hourglass
) -> None:
    answers = {SASL_AUTHENTICATE: LIES[lie]}
    with scripted_broker(mechanisms=("PLAIN",), answers=answers) as broker:
        hourglass.run_out_when(_since(lambda: SASL_AUTHENTICATE in broker.requests, 0.2))
        with pytest.raises(ProducerStartError):
            await send_one(broker, login("PLAIN"))


@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
async def test_a_topic_without_partitions_is_requested_again(driver: DriverName) -> None:
    with scripted_broker(partitions=0) as broker:
        made = ProducerSettings(
            bootstrap_servers=broker.address,
            delivery_timeout=LONG,
            unknown_topic_timeout=LONG,
            properties={"retry.backoff.ms": 10},
        )
        async with open_send_producer(made, driver=driver) as producer:
            delivery = await producer.enqueue(ProducerRecord("orders", b"two tins", b"a key"))
            told = broker.requests.count(METADATA) + 2
            await until(lambda: broker.requests.count(METADATA) > told)
            broker.partitions = 1
            assert (await delivery.wait()).partition == 0


@on_trio_and_nightly_on_asyncio
async def test_an_endless_stream_of_bytes_does_not_fill_memory(hourglass: Hourglass) -> None:
    size = 1024 * 1024 * 1024

    def pour(_: bytes) -> list[bytes]:
        piece = bytes(1024 * 1024)
        return [struct.pack(">i", 4 * 1024 * 1024), *[piece] * (size // len(piece))]

    def grown() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with scripted_broker(answers={METADATA: pour}) as broker:
        before = grown()
        hourglass.run_out_when(_since(lambda: METADATA in broker.requests, 1))
        with pytest.raises(ProducerStartError):
            await send_one(broker)
        assert grown() - before < size / 4


def test_an_answer_takes_at_most_35_times_its_size_in_memory() -> None:
    """As SECURITY.md states. The worst cases are many brokers, topics or partitions that are almost
    empty."""
    metadata: Any = importlib.import_module("kafka.protocol.metadata")
    cluster: Any = importlib.import_module("kafka.cluster").ClusterMetadata
    numbers = range(3_000)
    brokers = [struct.pack(">ihih", number, 0, 9, -1) for number in numbers]
    topics = [struct.pack(">hh4sbi", 0, 4, b"%04d" % number, 0, 0) for number in numbers]
    partitions = [struct.pack(">hiiiiii", 0, number, 1, 0, 0, 0, 0) for number in numbers]
    topic = [struct.pack(">hh4sbi", 0, 4, b"many", 0, len(partitions)) + b"".join(partitions)]
    for some_brokers, some_topics in ((brokers, []), (brokers[:1], topics), (brokers[:1], topic)):
        body = struct.pack(">ii", 0, len(some_brokers)) + b"".join(some_brokers)
        body += struct.pack(">hii", -1, 1, len(some_topics)) + b"".join(some_topics)
        tracemalloc.start()
        try:
            found = metadata.MetadataResponse.decode(body, version=7)
            cluster(bootstrap_servers="a:1").update_metadata(found)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found.brokers) == len(some_brokers)
        assert 5 * len(body) < most < 35 * len(body)


async def test_a_long_answer_is_refused_by_its_length_alone(hourglass: Hourglass) -> None:
    asked: list[int] = []

    def announce(_: bytes) -> bytes:
        asked.append(1)
        return struct.pack(">i", 5 * 1024 * 1024)

    with scripted_broker(answers={METADATA: announce}) as broker:
        # The client closed the connection, and did not wait for the rest.
        hourglass.run_out_when(lambda: len(asked) > 1)
        with pytest.raises(ProducerStartError, match="Invalid frame length: 5242880"):
            await send_one(broker)


async def test_an_attempt_cancelled_at_the_timeout_does_not_replace_the_reason(
    hourglass: Hourglass,
) -> None:
    asked: list[int] = []

    def announce_once(_: bytes) -> bytes | None:
        asked.append(1)
        return struct.pack(">i", 5 * 1024 * 1024) if len(asked) == 1 else None

    with scripted_broker(answers={METADATA: announce_once}) as broker:
        hourglass.run_out_when(_since(lambda: len(asked) > 1, 0.1))
        with pytest.raises(ProducerStartError, match=r"answered: \S+: Invalid frame length: 52"):
            await send_one(broker)


def test_an_alert_is_read_although_sending_failed() -> None:
    """A broker closed the connection and gave the reason. The client notices the end while it
    sends."""
    failure = OSError("broken pipe")
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"

    def send(sock: Any, failed: Exception | None) -> Any:
        transport = types.SimpleNamespace(_sock=sock)
        return _connection.send_and_read_alert(transport, lambda: (3, failed))

    def tls_socket(answer: Any) -> Any:
        return mock.Mock(spec=ssl.SSLSocket, **{"recv.side_effect": answer})

    heard = send(tls_socket(alert), failure)
    assert heard[0] == 3
    assert "it sent the alert" in str(tls_refusal(heard[1]))
    assert send(tls_socket(ssl.SSLWantReadError()), failure) == (3, failure)
    assert send(tls_socket([b""]), failure) == (3, failure)
    assert send(mock.Mock(spec=socket.socket), failure) == (3, failure)
    assert send(tls_socket(alert), None) == (3, None)


async def test_an_acknowledgement_that_comes_with_the_end_of_the_connection_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kafka-python itself discards the answer that arrived with it."""
    body = struct.pack(">ih6si", 1, 6, b"orders", 1) + struct.pack(">ihqqqi", 0, 0, 7, -1, 0, 0)
    with scripted_broker() as broker:
        broker.answers[PRODUCE] = lambda correlation: [framed(correlation, body), None]
        # There is time for both to arrive before they are read.
        receive = _connection.receive

        def late(transport: Any) -> tuple[bytes, Any]:
            time.sleep(0.1)
            return receive(transport)

        monkeypatch.setattr(_network, "receive", late)
        assert (await send_one(broker)).offset == 7


async def test_an_endless_handshake_is_abandoned(
    monkeypatch: pytest.MonkeyPatch, hourglass: Hourglass
) -> None:
    """kafka-python itself would wait without end."""
    manager: Any = importlib.import_module("kafka.net.manager")
    defaults = manager.KafkaConnectionManager.DEFAULT_CONFIG
    monkeypatch.setitem(defaults, "socket_connection_setup_timeout_ms", 200)  # 10 s otherwise
    properties = {"security.protocol": "SSL"}
    with scripted_broker() as broker:  # it waits for the rest of a frame
        hourglass.run_out_when(lambda: broker.connections > 1)
        with pytest.raises(ProducerStartError, match="start_timeout"):
            await send_one(broker, properties)


async def test_a_broker_at_an_advertised_address_needs_a_valid_certificate(
    authority: Authority, tmp_path: Path, clock: ManualClock
) -> None:
    """The client connects to any advertised address. With TLS, no record goes to an untrusted
    server."""
    stranger = server_side(Authority(tmp_path / "stranger"))
    with scripted_broker(server_side(authority)) as broker, scripted_broker(stranger) as other:
        broker.brokers = [(1, other.host, other.port)]
        made = ProducerSettings(
            bootstrap_servers=broker.address,
            properties=tls(authority),
            delivery_timeout=LONG,
            cancel_timeout=0.1,
        )
        with raising(DeliveryError):
            async with clock.open(made) as producer:
                delivery = await producer.enqueue(ProducerRecord("orders", b"two tins"))
                await until(lambda: other.connections > 1)
                clock.advance(LONG)
                await delivery.wait()
        assert PRODUCE not in other.requests


async def test_the_text_of_a_broker_stays_on_one_line(everything_logged: Kept) -> None:
    forged = "no\n2026-01-01 CRITICAL root: all is lost\r\x1b[2J"
    with scripted_broker(mechanisms=("PLAIN",), refusal=forged) as broker:
        said = await start_error(broker, login("PLAIN"))
    assert said.endswith("no\\n2026-01-01 CRITICAL root: all is lost\\r\\x1b[2J")
    for line in everything_logged.lines:
        message = line.partition("\nTraceback")[0]
        assert message.isprintable(), line


# --- hostile records -----------------------------------------------------------------------------

#: Invalid or malicious names of topics.
NO_TOPICS = ["", ".", "..", "a b", "a\nb", "a/b", "../a", "a\0", "ä", "a" * 250, "${x}", "a,b"]


@pytest.mark.parametrize("topic", NO_TOPICS, ids=[str(n) for n in range(len(NO_TOPICS))])
async def test_a_topic_with_a_bad_name_is_refused_before_anything_is_sent(topic: str) -> None:
    with scripted_broker() as broker:
        with pytest.raises((RecordRejected, ValueError)) as caught:
            await send_one(broker, record=ProducerRecord(topic, b"two tins"))
        assert str(caught.value).isprintable()
        assert PRODUCE not in broker.requests


async def test_topics_named_by_users_are_not_created_unless_the_settings_say_so() -> None:
    metadata: Any = importlib.import_module("kafka.protocol.metadata")
    for allowed in (True, False):
        with scripted_broker() as broker:
            seen: list[bool] = []
            answer: Callable[[bytes], bytes] = broker.metadata

            def look(body: bytes, *, seen: list[bool] = seen, answer: Any = answer) -> bytes:
                request = metadata.MetadataRequest.decode(body, version=7)
                seen.append(request.allow_auto_topic_creation)
                found: bytes = answer(body)
                return found

            broker.metadata = look  # type: ignore[method-assign]
            await send_one(broker, {} if allowed else {"allow_auto_create_topics": False})
            assert set(seen) == {allowed}


@given(strategies.records(topics=st.just("orders"), partitions=st.none(), timestamps=st.none()))
@settings(max_examples=25)
def test_any_bytes_are_a_value_a_key_or_a_header(
    record: ProducerRecord[bytes | None, bytes | None],
) -> None:
    with scripted_broker() as broker:
        size = anyio.run(send_one, broker, None, record).serialized_value_size
        assert size == (None if record.value is None else len(record.value))


async def test_a_record_that_is_too_large_is_refused_alone() -> None:
    with scripted_broker() as broker:
        made = ProducerSettings(bootstrap_servers=broker.address)
        async with open_send_producer(made) as producer:
            large = await producer.enqueue(ProducerRecord("orders", bytes(2 * 1024 * 1024)))
            small = await producer.enqueue(ProducerRecord("orders", b"two tins"))
            with pytest.raises(RecordRejected):
                await large.wait()
            await small.wait()


# --- the means ------------------------------------------------------------------------------------


def test_the_driver_reads_like_its_transport(authority: Authority) -> None:
    """The names in kafka-python that the driver reads or replaces."""
    transport: Any = importlib.import_module("kafka.net.transport")
    manager: Any = importlib.import_module("kafka.net.manager")
    for kind in (transport.KafkaTCPTransport, transport.KafkaSSLTransport):
        assert callable(kind._sock_recv)
    assert manager.KafkaConnectionManager._build_transport
    assert issubclass(_network.ConnectionManager, manager.KafkaConnectionManager)


def test_the_scripted_broker_itself_ends() -> None:
    with scripted_broker() as broker:
        pass
    blocking_until(lambda: not broker._connections)
