"""``check``: the step that fails, its details and its hint, and success if no step fails."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import trustme

from anyio_sendproducer import (
    ProducerSettings,
    ProducerStartError,
    SendProducerError,
    checking,
    discovery,
)
from anyio_sendproducer.checking import (
    STEPS,
    Step,
    check_cluster,
)
from anyio_sendproducer.cli import _check
from anyio_sendproducer.discovery import Target
from anyio_sendproducer.drivers import BrokerDescription, ClusterDescription, DriverName
from anyio_sendproducer.drivers._describe import Protocol, describe_cluster, protocol_of
from anyio_sendproducer.drivers._protocols import HOW_FAR
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.brief import on_either_loop, on_trio_and_nightly_on_asyncio
from tests.support.cli_runs import run_main
from tests.support.hostile_broker import hostile_broker, raw_lines
from tests.support.ports import HOST, reserve_port
from tests.support.scripted_broker import scripted_broker


def states(steps: list[Step]) -> dict[str, str]:
    return {step.name: step.state for step in steps}


def one(steps: list[Step], name: str) -> Step:
    (found,) = [step for step in steps if step.name == name]
    return found


def expected(failed: str | None, skipped: frozenset[str] = frozenset({"tls"})) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in STEPS:
        if failed in found:
            found[name] = "skipped"
        elif name == failed:
            found[name] = "failed"
        else:
            found[name] = "skipped" if name in skipped else "ok"
    return found


async def checked(
    settings: ProducerSettings, driver: DriverName | None = None
) -> tuple[list[Step], ClusterDescription | None]:
    found = await check_cluster(settings, driver=driver)
    assert found.passed is all(step.state != "failed" for step in found.steps)
    return [*found.steps], found.cluster


def settings(servers: str, **properties: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=servers,
        properties={name.replace("_", "."): value for name, value in properties.items()},
        start_timeout=5.0,
    )


# --- success -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "kafka-python", "confluent"])
async def test_no_step_fails_with_a_good_broker(
    name: DriverName | None, broker: EmbeddedBroker
) -> None:
    steps, cluster = await checked(settings(broker.bootstrap_servers), name)
    assert states(steps) == expected(None)
    assert cluster is not None
    assert cluster.id
    (found,) = cluster.brokers
    assert f"{found.host}:{found.port}" == broker.bootstrap_servers
    assert (found.version is None) is (name == "confluent")
    assert one(steps, "authenticate").details == ("the broker asks for no login",)
    assert one(steps, "cluster").details[1].startswith(f"broker {found.id} at 127.0.0.1:")


@pytest.mark.parametrize("loop", ["asyncio", "trio", "uvloop"])
def test_the_command_prints_each_step(
    loop: str, shared_broker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("check", "-b", shared_broker, "--loop", loop) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split()[:2] for line in lines if not line.startswith(" ")]
    assert steps == [["skipped" if name == "tls" else "ok", name] for name in STEPS]
    assert run_main("check", "-b", shared_broker, "--loop", loop, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in report["steps"]] == [*STEPS]
    assert report["cluster"]["brokers"][0]["port"] == int(shared_broker.partition(":")[2])


# --- failures ------------------------------------------------------------------------------------


async def test_an_unknown_setting() -> None:
    steps, cluster = await checked(settings("x:1", speed=9))
    assert states(steps) == expected("settings")
    assert "'speed' is not a setting" in one(steps, "settings").details[0]
    assert cluster is None


async def test_a_host_that_does_not_exist() -> None:
    steps, _ = await checked(settings("nowhere.invalid:1"))
    assert states(steps) == expected("resolve")
    (detail,) = one(steps, "resolve").details
    assert detail.startswith("nowhere.invalid:1: ")


async def test_one_of_two_hosts_does_not_exist(broker: EmbeddedBroker) -> None:
    servers = f"nowhere.invalid:1,{broker.bootstrap_servers}"
    steps, _ = await checked(settings(servers).with_start_timeout(20))
    assert states(steps) == expected(None)
    assert one(steps, "resolve").details[1].startswith("nowhere.invalid:1: ")
    assert one(steps, "connect").details == (broker.bootstrap_servers,)


def test_a_port_on_which_no_server_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("check", "-b", "127.0.0.1:1") == 1
    printed = capsys.readouterr().out
    assert "failed  connect       127.0.0.1:1: " in printed
    assert "Connection refused" in printed
    assert "-> check that a broker runs there" in printed
    assert "skipped tls           not tried, because 'connect' failed" in printed


@contextmanager
def listening(
    answer: bytes = b"", context: ssl.SSLContext | None = None
) -> Generator[str, None, None]:
    """Run a server that is not a broker: it sends `answer` and closes each connection."""

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                try:
                    client.settimeout(10)
                    if context is not None:
                        client = context.wrap_socket(client, server_side=True)
                    client.sendall(answer)
                    client.close()
                except OSError:
                    continue

    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@on_either_loop
async def test_a_server_that_is_not_a_broker(driver: DriverName) -> None:
    with listening() as address:
        steps, _ = await checked(settings(address).with_start_timeout(2), driver)
    assert states(steps) == expected("authenticate")
    assert "it may not be a broker" in one(steps, "authenticate").hint


async def test_a_server_that_does_not_speak_tls() -> None:
    with listening(b"hello") as address:
        steps, _ = await checked(settings(address, security_protocol="SSL").with_start_timeout(60))
    assert states(steps) == expected("tls")
    assert "it does not use the required TLS" in one(steps, "tls").details[0]


async def test_a_plaintext_listener_is_named_first(driver: DriverName) -> None:
    with scripted_broker() as broker, listening(b"hello") as other:
        asked = settings(f"{other},{broker.address}", security_protocol="SSL")
        steps, _ = await checked(asked.with_start_timeout(20), driver)
    assert states(steps) == expected("tls")
    first, second = one(steps, "tls").details
    assert first == (
        f"{broker.address}: it does not speak TLS: it answers a request that is not encrypted"
    )
    assert second.startswith(f"{other}: ")
    assert one(steps, "tls").hint.startswith("set security.protocol to PLAINTEXT, or to SASL_")


async def test_a_plaintext_listener_that_does_not_answer_a_handshake_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect_tcp: Any = anyio.connect_tcp

    async def connect(*arguments: Any, **options: Any) -> Any:
        # A broker reads the first bytes of a handshake as the size of a large request.
        if options:
            raise TimeoutError
        return await connect_tcp(*arguments)

    monkeypatch.setattr(anyio, "connect_tcp", connect)
    with scripted_broker() as broker, pytest.raises(checking._NotTls):
        await checking._shaken_hands(ssl.create_default_context(), 60, broker.host, broker.port)
    with listening() as address, pytest.raises(TimeoutError):
        await checking._shaken_hands(
            ssl.create_default_context(), 60, HOST, int(address.partition(":")[2])
        )


async def test_a_server_that_disconnects_in_the_handshake() -> None:
    with listening() as address:
        steps, _ = await checked(settings(address, security_protocol="SSL").with_start_timeout(60))
    assert states(steps) == expected("tls")


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    path = tmp_path / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    return made, path


def serving(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    return context


@on_trio_and_nightly_on_asyncio
async def test_a_trusted_certificate(authority: tuple[trustme.CA, Path]) -> None:
    made, path = authority
    with listening(context=serving(made)) as address:
        asked = settings(address, security_protocol="SSL", ssl_truststore_location=str(path))
        steps, _ = await checked(asked.with_start_timeout(8))
    # The server is not a broker.
    assert states(steps) == expected("authenticate", frozenset())
    assert one(steps, "tls").details == (f"{address}: TLSv1.3",)


async def test_an_untrusted_certificate(authority: tuple[trustme.CA, Path]) -> None:
    _, path = authority
    with listening(context=serving(trustme.CA())) as address:
        asked = settings(address, security_protocol="SSL", ssl_truststore_location=str(path))
        steps, _ = await checked(asked.with_start_timeout(60))
    assert states(steps) == expected("tls")
    assert "its certificate" in one(steps, "tls").details[0]
    hint = "add the issuer of its certificate to the certificates of ssl.truststore.location"
    assert hint in one(steps, "tls").hint


@pytest.mark.parametrize(
    ("properties", "hint"),
    [
        ({}, "with ssl.truststore.location=ca.pem"),
        ({"ssl.key.location": "key.pem"}, "with ssl.truststore.location=ca.pem"),
        ({"ssl.ca.location": "ca.pem"}, "to the certificates of ssl.ca.location"),
        ({"ssl_cafile": "ca.pem"}, "to the certificates of ssl_cafile"),
        ({"ssl.ca.pem": "-----BEGIN"}, "to the certificates of ssl.ca.pem"),
    ],
)
def test_the_hint_about_trust_has_the_name_that_is_set(
    properties: dict[str, str], hint: str
) -> None:
    made = ProducerSettings(bootstrap_servers="x:1", properties=properties)
    assert checking._trust_hint(made).endswith(hint)


@pytest.mark.parametrize(
    ("mechanism", "has_tls", "hint"),
    [
        ("", False, "it may not be a broker, or it may expect TLS or a login"),
        ("PLAIN", False, "it may not be a broker, or it may expect TLS:"),
        ("", True, "TLS works, so it may expect a login"),
        ("PLAIN", True, "TLS works, so the broker may end the login"),
    ],
)
def test_the_hint_about_a_lost_connection_excludes_what_works(
    mechanism: str, has_tls: bool, hint: str
) -> None:
    context = ssl.create_default_context() if has_tls else None
    protocol = Protocol("irrelevant", mechanism, context, is_direct=True)
    assert checking._login_hint("socket disconnected", protocol).startswith(hint)


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("x:1 speaks TLS, but security.protocol is PLAINTEXT", "security.protocol to SSL"),
        ("x:1 expects no login, but security.protocol is SASL_SSL", "PLAINTEXT, or to SSL"),
        ("x:1 does not offer PLAIN", "which sasl.mechanism"),
        ("x:1 refused the login with PLAIN: no", "the user's name and password"),
        ("Failed to get metadata: Local: Broker transport failure", "it may not be a broker"),
        ("no broker answered: x:1: Unable to decode response", "api_version to 2.3"),
        ("something else", ""),
    ],
)
async def test_a_refused_login_has_a_hint(
    message: str, hint: str, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ProducerStartError(message + HOW_FAR)

    monkeypatch.setattr(checking, "open_send_producer", refuse)
    steps, _ = await checked(settings(broker.bootstrap_servers))
    assert states(steps) == expected("authenticate")
    assert one(steps, "authenticate").details == (message,)
    assert hint in one(steps, "authenticate").hint


async def test_an_accepted_login(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *_: object) -> None: ...

    def accept(*_: Any, **__: Any) -> Opened:
        return Opened()

    monkeypatch.setattr(checking, "open_send_producer", accept)
    asked = settings(
        broker.bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password="s3cret",
    )
    found = ClusterDescription(None, None, (BrokerDescription(7, "127.0.0.1", 1, None),))

    def describe(*_: Any) -> ClusterDescription:
        return found

    monkeypatch.setattr(checking, "describe_cluster", describe)
    steps, cluster = await checked(asked)
    assert one(steps, "settings").details == (
        "driver kafka-python, SASL_PLAINTEXT, login by PLAIN",
    )
    assert one(steps, "authenticate").details == ("logged in by PLAIN",)
    assert one(steps, "cluster").details == (
        "id unknown, controller unknown",
        "broker 7 at 127.0.0.1:1",
    )
    # No broker listens at the advertised address.
    assert states(steps) == expected("brokers")
    assert one(steps, "brokers").details == ("broker 7 at 127.0.0.1:1: Connection refused",)
    assert "advertised.listeners" in one(steps, "brokers").hint
    assert cluster == found
    assert "s3cret" not in repr(steps)


async def test_a_cluster_that_does_not_describe_itself(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise SendProducerError("no description")

    monkeypatch.setattr(checking, "describe_cluster", fail)
    steps, _ = await checked(settings(broker.bootstrap_servers))
    assert states(steps) == expected("cluster")
    assert one(steps, "cluster").details == ("no description",)


async def test_with_a_proxy_the_steps_before_the_login_are_skipped() -> None:
    asked = settings("x:1", proxy_url="socks5://127.0.0.1:1").with_start_timeout(0.3)
    steps, _ = await checked(asked)
    skipped = frozenset({"resolve", "connect", "tls"})
    assert states(steps) == expected("authenticate", skipped)
    assert one(steps, "connect").details == ("the proxy does this",)


# --- brokers one by one --------------------------------------------------------------------------


async def test_each_broker_is_checked_and_the_failed_brokers_are_named(
    driver: DriverName,
) -> None:
    with scripted_broker() as broker, contextlib.ExitStack() as reserved:
        ports = [reserved.enter_context(reserve_port()).getsockname()[1] for _ in range(8)]
        others = [(number, HOST, port) for number, port in enumerate(ports, 2)]
        broker.brokers = [(1, broker.host, broker.port), *others]
        steps, cluster = await checked(settings(broker.address).with_start_timeout(60), driver)
    assert states(steps) == expected("brokers")
    assert cluster is not None
    assert [one.id for one in cluster.brokers] == [*range(1, 10)]
    assert cluster.brokers[0].version == (None if driver == "confluent" else "2.3")
    assert one(steps, "brokers").details == (
        *(f"broker {number} at {host}:{port}: Connection refused" for number, host, port in others),
        f"broker 1 at {broker.address}",
    )
    assert "advertised.listeners" in one(steps, "brokers").hint


async def test_a_broker_whose_certificate_is_for_another_address_is_named(
    authority: tuple[trustme.CA, Path], driver: DriverName
) -> None:
    made, path = authority
    with (
        scripted_broker(serving(made)) as broker,
        scripted_broker(serving(made, "elsewhere.test")) as other,
    ):
        broker.brokers = [(1, broker.host, broker.port), (2, other.host, other.port)]
        asked = settings(broker.address, security_protocol="SSL", ssl_truststore_location=str(path))
        steps, _ = await checked(asked.with_start_timeout(20), driver)
    assert states(steps) == expected("brokers", frozenset())
    bad, good = one(steps, "brokers").details
    assert bad.startswith(f"broker 2 at {other.address}: its certificate is for another address")
    assert good == f"broker 1 at {broker.address}"


async def test_silent_brokers_take_no_longer_than_the_timeout_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = checking._Findings(settings("x:1"), None, anyio.current_time() + 0.05)

    async def wait(host: str, port: int) -> str:
        await anyio.sleep_forever()
        raise AssertionError

    named = {f"b{number}": ("x", 9092) for number in range(60)}
    good, bad = await checking._try_each(findings, named, wait)
    assert good == {}
    assert bad["b0"] == "b0: no answer in time"
    assert bad["b59"] == "b59: not tried: the time ran out"


async def test_a_cluster_of_thousands_of_brokers_is_shown_in_part(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers = tuple(BrokerDescription(number, "a..b", 1, None) for number in range(3_000))

    def describe(*_: Any) -> ClusterDescription:
        return ClusterDescription(None, None, brokers)

    async def connect(host: str, port: int) -> str:
        if port == 1:
            raise UnicodeError("label empty or too long")
        return "good"

    monkeypatch.setattr(checking, "describe_cluster", describe)
    monkeypatch.setattr(checking, "_connected", connect)
    steps, _ = await checked(settings(broker.bootstrap_servers))
    assert states(steps) == expected("brokers")
    assert len(one(steps, "cluster").details) == len(one(steps, "brokers").details) == 101
    assert one(steps, "brokers").details[-1] == "and 2,900 more"
    assert one(steps, "brokers").details[0] == "broker 0 at a..b:1: label empty or too long"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("step", "attributes"),
    [
        ("brokers", {}),
        ("authenticate", {"mechanisms": ("PLAIN",)}),
        ("authenticate", {"mechanisms": ("OTHER",)}),
    ],
    ids=["hosts", "refusal", "mechanism"],
)
def test_a_hostile_broker_forges_no_step(
    loop: str,
    driver: DriverName,
    step: str,
    attributes: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN")
    options = (*login, "sasl.username=me", "sasl.password=no") if attributes else ()
    words = [word for option in options for word in ("-X", option)]
    with hostile_broker(**attributes) as broker:
        common = ("-b", broker.address, "--loop", loop, "--driver", driver, *words)
        assert run_main("check", *common) == 1
        printed = capfd.readouterr()
        assert run_main("check", "--json", *common) == 1
        as_json = capfd.readouterr().out
    text = printed.out + printed.err
    assert raw_lines(text) == raw_lines(as_json) == []
    assert f"\nfailed  {step}" in text
    assert len([line for line in printed.out.splitlines() if not line.startswith(" ")]) == 7
    # The description of the cluster in JSON is also escaped.
    assert raw_lines(str(json.loads(as_json))) == []


# --- services ------------------------------------------------------------------------------------


class Known:
    """A resolver with fixed targets."""

    def __init__(self, *targets: Target, error: Exception | None = None) -> None:
        self._targets = targets
        self._error = error

    async def resolve(self, lookup: object, /) -> Any:
        if self._error is not None:
            raise self._error
        return self._targets


def service(**changes: Any) -> ProducerSettings:
    return ProducerSettings(service_name="_kafka._tcp.x", start_timeout=5.0).evolve(**changes)


async def test_a_service(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(Target("127.0.0.1", broker.port))
    monkeypatch.setattr(discovery, "dns", lambda: known)
    steps, _ = await checked(service())
    assert one(steps, "resolve").details == (
        f"_kafka._tcp.x: 127.0.0.1:{broker.port}",
        "127.0.0.1: 127.0.0.1",
    )
    # The later steps, with the producer, use the service as well.
    assert states(steps) == expected(None)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (Known(), "nothing was found"),
        (Known(Target("nobody", None)), "nobody was found without a port; use the name of SRV"),
        (Known(error=OSError("no\nanswer")), r"no\nanswer"),
        (Known(error=TimeoutError()), "TimeoutError"),
    ],
)
async def test_a_service_that_is_not_found(
    known: Known, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "dns", lambda: known)
    steps, _ = await checked(service())
    assert states(steps) == expected("resolve")
    (detail,) = one(steps, "resolve").details
    assert detail.startswith("service_name '_kafka._tcp.x', looked up with ")
    assert f": {message}" in detail


async def test_a_service_with_thousands_of_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(*(Target("127.0.0.1", port) for port in range(1, 3_001)))
    monkeypatch.setattr(discovery, "dns", lambda: known)
    tried: list[int] = []

    async def connect(host: str, port: int) -> str:
        tried.append(port)
        raise ConnectionRefusedError("it is closed")

    monkeypatch.setattr(checking, "_connected", connect)
    steps, _ = await checked(service())
    assert states(steps) == expected("connect")
    resolved = "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3, 127.0.0.1:4, 127.0.0.1:5 and 95 more"
    assert one(steps, "resolve").details == (f"_kafka._tcp.x: {resolved}", "127.0.0.1: 127.0.0.1")
    assert sorted(tried) == [*range(1, 101)]


async def test_services_need_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyio_sendproducer.discovery._dns", None)
    steps, _ = await checked(service())
    assert states(steps) == expected("resolve")
    assert ".[dns]" in one(steps, "resolve").details[0]


# --- arguments and messages ----------------------------------------------------------------------


def test_a_wrong_setting_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("check", "-b", "x:1", "-X", "delivery.timeout.ms=soon") == 2
    assert "'delivery.timeout.ms' must be a whole number" in capsys.readouterr().err


def test_a_host_with_a_control_character(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main("check", "-b", "h\x9b2J:9092") == 2
    printed = "".join(capfd.readouterr())
    assert r"bootstrap_servers: 'h\x9b2J:9092' is not host:port" in printed
    assert "Traceback" not in printed
    assert "\x9b" not in printed


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [("h\x9b2J", 9092, "9b"), ("127.0.0.1", 99_999, "not the number of a port")],
    ids=["host", "port"],
)
async def test_a_broker_that_advertises_an_invalid_address(
    host: str, port: int, message: str
) -> None:
    # librdkafka describes the cluster without connecting to that broker.
    with scripted_broker() as broker:
        broker.brokers = [(1, broker.host, broker.port), (2, host, port)]
        steps, _ = await checked(settings(broker.address), "confluent")
    assert states(steps) == expected("brokers")
    bad, good = one(steps, "brokers").details
    assert good == f"broker 1 at {broker.address}"
    assert message in bad


def test_a_fifo_in_place_of_a_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ca.pem"
    os.mkfifo(path)
    arguments = ["-X", "security.protocol=SSL", "-X", f"ssl.truststore.location={path}"]
    for driver in ("kafka-python", "confluent"):
        assert run_main("check", "-b", "x:1", "--driver", driver, *arguments) == 1
        printed = capsys.readouterr()
        assert "failed  settings      " in printed.out
        assert "'ssl.truststore.location' must name a regular file" in printed.out


def test_ctrl_c_ends_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def check_for_ever(*_: Any, **__: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr(_check, "check_cluster", check_for_ever)
    assert run_main("check", "-b", "x:1") == 128 + signal.SIGINT
    assert capsys.readouterr().err == "anyio-sendproducer: interrupted\n"


def test_the_reasons_of_errors() -> None:
    assert checking._reason(TimeoutError()) == "no answer in time"
    assert checking._reason(TimeoutError(110, "Connection timed out")) == "Connection timed out"
    assert checking._reason(ssl.SSLError(1, "what")) == "TLS failed: what"
    outer = OSError("all failed")
    outer.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert checking._reason(outer) == "Connection refused"


# --- the drivers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kafka-python", "confluent"])
def test_a_cluster_that_cannot_be_reached_is_not_described(name: str) -> None:
    asked = settings("127.0.0.1:1").with_start_timeout(0.2)
    threads = threading.active_count()
    with pytest.raises(SendProducerError):
        describe_cluster(name, asked)
    assert threading.active_count() <= threads


def test_a_broker_that_does_not_report_its_version() -> None:
    from anyio_sendproducer.drivers.kafka_python._describe import _version_of

    class Admin:
        def get_broker_version_data(self, broker: int) -> Any:
            raise ConnectionError

    assert _version_of(Admin(), 1) is None


@pytest.mark.parametrize(
    ("version", "text"), [((0, 10, 2), "0.10.2"), ((4, 1), "4.1"), ((4, 3), "4.3 or later")]
)
def test_the_version_of_a_broker(version: tuple[int, ...], text: str) -> None:
    """kafka-python knows no version above 4.3, and reports 4.3 for a broker with version 4.4."""
    from kafka.protocol.broker_version_data import BROKER_API_VERSIONS, BrokerVersionData

    from anyio_sendproducer.drivers.kafka_python._describe import _version_of

    class Admin:
        def get_broker_version_data(self, broker: int) -> Any:
            return BrokerVersionData(version)

    assert max(BROKER_API_VERSIONS) == (4, 3)
    assert _version_of(Admin(), 1) == text
    # After the deadline, the version is not requested.
    assert _version_of(Admin(), 1, until=-1.0) is None


def test_librdkafka_gets_no_description_of_a_silent_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import confluent_kafka

    from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver

    class Silent:
        def list_topics(self, _: str, timeout: float) -> Any:
            raise confluent_kafka.KafkaException(
                confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT)
            )

    driver = ConfluentDriver(settings("x:1"))
    driver._handle.client = Silent()
    with pytest.raises(SendProducerError, match="the cluster did not describe itself: "):
        driver.describe_from_client()


def test_the_configuration_is_not_logged(
    shared_broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    describe_cluster(None, settings(shared_broker))
    assert caplog.records
    assert not [one for one in caplog.records if "onfiguration" in one.getMessage()]


def test_the_security_protocol_of_each_driver(authority: tuple[trustme.CA, Path]) -> None:
    _, path = authority
    for name in (None, "confluent"):
        found = protocol_of(
            name, settings("x:1", security_protocol="SSL", ssl_truststore_location=str(path))
        )
        assert (found.name, found.mechanism, found.is_direct) == ("SSL", "", True)
        assert isinstance(found.context, ssl.SSLContext)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_codec_whose_package_is_not_installed(
    loop: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cast("Any", _kafka_python).codec, "zstd", None)
    monkeypatch.chdir(tmp_path)
    # The commands fail before they connect, so no broker is needed.
    arguments = ["-b", "127.0.0.1:1", "--loop", loop]
    assert run_main("check", *arguments, "-X", "compression.type=zstd") == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("failed  settings      properties: 'compression.type': for zstd, ")
    assert ".[compression]" in first
    assert all(line.startswith("skipped") for line in others)
    assert run_main("produce", *arguments, "-t", "t", "-z", "zstd", "/dev/null") == 2
    assert "kafka-python needs the package zstandard: pip install" in capsys.readouterr().err
