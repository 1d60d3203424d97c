"""The context and the thread in which clients call hooks, as in the table in
docs/reference/hooks.md."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

from kafka.partitioner import DefaultPartitioner

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import mock_cluster
from tests.support.client_log import on_each_line
from tests.support.scripted_broker import scripted_broker

who: ContextVar[str] = ContextVar("who", default="nobody")


async def test_a_partitioner_runs_on_the_producers_thread_in_the_openers_context() -> None:
    seen: set[tuple[str, str]] = set()

    class Partitioner(DefaultPartitioner):  # type: ignore[misc]
        def partition(self, *_: Any, **__: Any) -> int:
            seen.add((who.get(), threading.current_thread().name.rsplit("-", 1)[0]))
            return 0

    with mock_cluster() as cluster:
        settings = cluster.settings("kafka-python", properties={"partitioner": Partitioner()})
        who.set("opener")
        async with open_send_producer(settings) as producer:
            who.set("caller")
            await producer.send(ProducerRecord("t", b"v", b"key"))
    assert seen == {("opener", "anyio-sendproducer")}


async def test_the_partitioner_of_the_settings_does_so_with_each_driver(driver: DriverName) -> None:
    seen: set[tuple[str, str]] = set()

    def choose(*_: object) -> int:
        seen.add((who.get(), threading.current_thread().name.rsplit("-", 1)[0]))
        return 0

    with mock_cluster() as cluster:
        settings = cluster.settings(driver, partitioner=choose)
        who.set("opener")
        async with open_send_producer(settings, driver=driver) as producer:
            who.set("caller")
            await producer.send(ProducerRecord("t", b"v", b"key"))
            await producer.send(ProducerRecord("t", b"v"))
    assert seen == {("opener", "anyio-sendproducer")}


async def test_a_token_provider_runs_in_the_openers_context_on_threads(driver: DriverName) -> None:
    loop = threading.get_ident()
    seen: set[tuple[str, bool]] = set()

    class Tokens:
        def token(self) -> str:
            seen.add((who.get(), threading.get_ident() == loop))
            return "t0k3n"

    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": Tokens(),
    }
    with scripted_broker(mechanisms=("OAUTHBEARER",), tokens={"t0k3n"}) as broker:
        settings = ProducerSettings(bootstrap_servers=broker.address, properties=login)
        who.set("opener")
        async with open_send_producer(settings, driver=driver) as producer:
            who.set("caller")
            await producer.send(ProducerRecord("t", b"v"))
    assert seen == {("opener", False)}


async def test_handlers_of_librdkafkas_log_run_in_the_openers_context() -> None:
    seen: set[str] = set()
    with on_each_line(lambda: seen.add(who.get())), mock_cluster() as cluster:
        settings = cluster.settings("confluent", properties={"debug": "msg"})
        who.set("opener")
        async with open_send_producer(settings, driver="confluent") as producer:
            who.set("caller")
            await producer.send(ProducerRecord("t", b"v"))
    assert seen == {"opener"}
