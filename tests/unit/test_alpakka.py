"""Alpakka Kafka's SendProducer and ours: one test for each line of the page that compares them.

The assertions of Alpakka's own specification of the SendProducer are in tests/broker.
"""

# ruff: noqa: SIM117  # a flow is nested in its producer

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

import anyio_sendproducer
from anyio_sendproducer import (
    DeliveryError,
    DiscoveryError,
    Envelope,
    Message,
    MultiDeliveryError,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerSettings,
    Result,
    Results,
    SettingsError,
    open_send_producer,
)
from anyio_sendproducer.discovery import Target
from anyio_sendproducer.telemetry import Event
from anyio_sendproducer.testing import FakeDriver
from tests.support.alpakka import PAGE, line, lines_named_in, named
from tests.support.calls import (
    Call,
    at_gate,
    generation,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.lent_client import FakeClient
from tests.support.paths import ROOT
from tests.support.waiting import until

#: The first cell of each row in the page's tables.
LINES = [
    found
    for found in re.findall(r"^\| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    if found != "Alpakka Kafka"
]


def test_each_line_has_a_test_and_each_test_a_line() -> None:
    assert len(LINES) > 40
    elsewhere = ROOT / "tests/broker/test_alpakka.py"
    tested = {*named, *lines_named_in(elsewhere)}
    assert tested == set(LINES)
    assert len(LINES) == len(tested)


def test_each_line_has_our_name_and_a_link() -> None:
    rows = re.findall(r"^\| (?!Alpakka|---).*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        assert re.search(r"\{(func|meth|class|data|exc|doc)\}`", row.split(" | ")[1]), row


def test_every_name_on_the_page_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    names = re.findall(r"`[^`]*?~?anyio_sendproducer\.([\w.]+)>?`", page)
    assert len(names) > 40
    for name in names:
        found: Any = anyio_sendproducer
        for part in name.split("."):
            found = getattr(found, part)


# --- methods -------------------------------------------------------------------------------------


@line("`close()`", "A second `close` does nothing", "A `send` after `close` fails")
async def test_closing(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        accepted = producer.enqueue_nowait(record())
        await producer.aclose()
        assert (await accepted.wait()).offset == 0
        await producer.aclose()
        with pytest.raises(ProducerClosed):
            await producer.send(record())
    assert len(fake.closed) == 1


@line("`toString` of the producer")
async def test_the_repr_of_a_producer(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        assert repr(producer) == "<SendProducer open broker.invalid:9092>"


async def envelopes() -> AsyncIterator[Any]:
    yield Message(record(b"1"), 1)
    yield MultiMessage([record(b"2"), record(b"3")], 2)
    yield PassThroughMessage(3)


@line("`Producer.flexiFlow`")
async def test_a_flow(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.flow(envelopes()) as results:
            assert [result.pass_through async for result in results] == [1, 2, 3]


@line("`Producer.plainSink`")
async def test_a_sink(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        summary = await producer.sink(envelopes())
    assert (summary.envelopes, summary.records) == (3, 3)


@line("`Producer.committableSink`", "`Transactional.sink`, `Transactional.flow`")
async def test_a_sink_in_transactions(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings.with_transactional_id("tx"), driver=fake) as producer:
        await producer.sink(
            envelopes(),
            offsets=lambda envelope: {("source", 0): envelope.pass_through},
            group_metadata="group",
        )
        async with producer.flow(envelopes()) as results:
            assert [result.pass_through async for result in results] == [1, 2, 3]
        async with producer.transaction() as tx:
            await tx.send(record())
    assert {how for how, _ in fake.transactions} == {"committed"}
    assert [(one.topic, one.offset) for one, _ in fake.offsets][-1] == ("source", 3)


# --- envelopes -----------------------------------------------------------------------------------


@line(
    "`ProducerMessage.PassThroughMessage`, `.passThrough`",
    "`PassThroughResult`",
    "A `PassThroughMessage` that a closed producer gets",
)
async def test_nothing_to_send(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    result = await producer.send_envelope(PassThroughMessage("context"))
    assert isinstance(result, PassThroughResult)
    assert result.pass_through == "context"
    assert fake.submitted == []


@line("An empty `MultiMessage`")
async def test_no_records(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        result = await producer.send_envelope(MultiMessage([], "context"))
    assert result == MultiResult((), "context")


@line("`passThrough`, `withPassThrough`", "`Envelope`, `Results`")
def test_pass_through_values() -> None:
    for envelope in (Message(record(), 1), MultiMessage([record()], 1), PassThroughMessage(1)):
        assert envelope.pass_through == 1
        assert envelope.with_pass_through("other").pass_through == "other"
    names = [getattr(one, "__origin__", one) for one in get_args(Envelope)]
    assert names == [Message, MultiMessage, PassThroughMessage]
    names = [getattr(one, "__origin__", one) for one in get_args(Results)]
    assert names == [Result, MultiResult, PassThroughResult]


# --- settings ------------------------------------------------------------------------------------

EMPTY = ProducerSettings(bootstrap_servers="a:1")


@line("`ProducerSettings(config, ...)`")
def test_settings_from_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "application.toml"
    path.write_text('[kafka]\nbootstrap-servers = "a:1"\n')
    assert ProducerSettings.from_toml(path, "kafka") == EMPTY
    assert ProducerSettings.from_mapping({"bootstrap-servers": "a:1"}) == EMPTY
    assert ProducerSettings.from_env("P", {"P_BOOTSTRAP_SERVERS": "a:1"}) == EMPTY


async def enrich(settings: ProducerSettings) -> ProducerSettings:
    return settings.with_client_id("enriched")


async def resolve(_: object) -> list[Target]:
    return [Target("b", 2)]


CHANGES: list[tuple[str, str, Any, Any]] = [
    ("`withBootstrapServers`", "bootstrap_servers", "a:1", "b:2"),
    ("`withClientId`", "client_id", "anyio-sendproducer", "mine"),
    ("`close-timeout`, `withCloseTimeout`", "close_timeout", 60, 1.5),
    ("`parallelism`, `withParallelism`", "max_in_flight", 10_000, 7),
    ("`eos-commit-interval`, `withEosCommitInterval`", "eos_commit_interval", 0.1, 1),
    ("`transaction-id-prefix`, `transactional.id`", "transactional_id", None, "tx"),
    ("`service-name`", "service_name", "", "kafka"),
    ("`discovery-method`", "discovery_method", "dns", resolve),
    ("`resolve-timeout`", "resolve_timeout", 3, 1),
    ("`withEnrichAsync`", "enrich", None, enrich),
    ("`withProducerFactory`", "producer_factory", None, print),
]


@line(*(text for text, *_ in CHANGES))
@pytest.mark.parametrize(
    ("_text", "field", "default", "other"), CHANGES, ids=lambda it: str(it)[:9]
)
def test_a_setting_and_its_method(_text: str, field: str, default: Any, other: Any) -> None:
    assert getattr(EMPTY, field) == default
    changed = getattr(EMPTY, f"with_{field}")(other)
    assert getattr(changed, field) == other
    assert getattr(EMPTY, field) == default


@line("`kafka-clients { ... }`, `withProperty`, `withProperties`", "`toString` of the settings")
def test_properties() -> None:
    changed = EMPTY.with_property("compression.type", "lz4")
    changed = changed.with_properties({"sasl.password": "secret", "linger.ms": 5})
    assert changed.properties["sasl.password"] == "secret"
    assert EMPTY.properties == {}
    assert "'compression.type': 'lz4'" in repr(changed)
    assert "secret" not in repr(changed)


@line(
    "`close-on-producer-stop`, `withCloseProducerOnStop`",
    "`withProducer`",
    "A producer that you pass in is neither flushed nor closed",
)
async def test_a_lent_producer() -> None:
    lent = FakeClient()
    lent.answers = False
    settings = EMPTY.with_producer(lent)
    assert EMPTY.close_producer_on_exit
    assert not settings.close_producer_on_exit
    async with task_group() as tasks:
        async with open_send_producer(settings) as producer:
            accepted = producer.enqueue_nowait(record())
            await until(lambda: len(lent.sent) == 1)

            async def answer() -> None:
                lent.answer(lent.sent[0][1], offset=4)

            tasks.start_soon(answer)
        assert (await accepted.wait()).offset == 4
    assert lent.closed == []
    async with open_send_producer(settings.with_close_producer_on_exit(True)):
        pass
    assert len(lent.closed) == 1


@line("`use-dispatcher`, `withDispatcher`")
async def test_a_producer_has_its_own_thread(settings: ProducerSettings) -> None:
    names: list[str] = []

    class Watched(FakeDriver):
        def submit(self, batch: Any, /) -> Any:
            names.append(threading.current_thread().name)
            return super().submit(batch)

    watched = Watched()
    async with open_send_producer(settings, driver=watched) as producer:
        await producer.send(record())
    assert names[0].startswith("anyio-sendproducer-")
    assert not hasattr(settings, "dispatcher")


# --- behaviour -----------------------------------------------------------------------------------


@line("`send` returns a future, and the record is sent even if nobody awaits the future")
async def test_a_send_that_is_not_awaited_sends_nothing(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        sending = producer.send(record(b"1"))
        await quiet()
        assert fake.submitted == []
        assert inspect.isawaitable(sending)
        await sending
        delivery = producer.enqueue_nowait(record(b"2"))
        assert (await delivery.wait()).offset == 1


@line("Two sends that are not awaited can overtake each other")
async def test_records_are_written_in_the_order_of_the_calls(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        deliveries = [producer.enqueue_nowait(record(b"%d" % number)) for number in range(100)]
        assert [(await delivery.wait()).offset for delivery in deliveries] == [*range(100)]
    assert [one.value for one in fake.written["t", 0]] == [b"%d" % number for number in range(100)]


@line("No back-pressure in the Send Producer")
async def test_a_full_producer_applies_back_pressure(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings.with_max_in_flight(1), driver=fake) as producer:
        async with task_group() as tasks:
            calls = [Call(tasks, producer.send, record()) for _ in range(2)]
            await taken(fake, 1)
            await until(lambda: producer.statistics().waiting == 1)
            fake.acknowledge()
            await taken(fake, 2)
            fake.acknowledge()
        assert {call.value.offset for call in calls} == {0, 1}


@line("If one of several records fails, the caller gets one exception and no other results")
async def test_one_of_several_fails(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"bad" else None
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(MultiDeliveryError) as caught:
            await producer.send_envelope(MultiMessage([record(b"good"), record(b"bad")], "context"))
    good, bad = caught.value.parts
    assert isinstance(good, MultiResultPart)
    assert isinstance(bad, DeliveryError)
    assert caught.value.pass_through == "context"


@line("With wrong settings, `send` and `close` always fail")
async def test_wrong_settings_raise_at_once() -> None:
    with pytest.raises(SettingsError, match="close_timeout"):
        ProducerSettings(bootstrap_servers="a:1", close_timeout=-1)
    with raising(SettingsError, match="lingerms"):
        async with open_send_producer(EMPTY.with_property("lingerms", 1)):
            pass


@line("`close` flushes without a time limit")
async def test_closing_is_bounded(settings: ProducerSettings) -> None:
    fake = FakeDriver(manual=True)
    with raising(anyio_sendproducer.UndeliveredRecords):
        async with open_send_producer(settings.with_close_timeout(0.05), driver=fake) as producer:
            producer.enqueue_nowait(record())


@line("Futures cannot be cancelled")
async def test_calls_can_be_cancelled(settings: ProducerSettings, fake: FakeDriver) -> None:
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake) as producer:
        async with task_group() as tasks:
            first = Call(tasks, producer.send, record(b"1"))
            await at_gate(fake.on_submit)
            second = Call(tasks, producer.send, record(b"2"))
            await quiet()
            await second.cancel()
            fake.on_submit.open()
        assert first.value.offset == 0
    assert [one.value for one in fake.submitted] == [b"1"]


@line("One look-up, when the producer is created")
async def test_each_client_looks_up_its_addresses(fake: FakeDriver) -> None:
    asked: list[object] = []

    async def count(lookup: object) -> list[Target]:
        asked.append(lookup)
        return [Target("b", len(asked))]

    settings = ProducerSettings(service_name="kafka", discovery_method=count)
    async with open_send_producer(settings, driver=fake) as producer:
        assert repr(producer) == "<SendProducer open b:1>"
        fake.break_client()
        await until(generation(producer, 2))
        assert repr(producer) == "<SendProducer open b:2>"


@line("A target without a port is an error")
async def test_a_target_without_a_port(fake: FakeDriver) -> None:
    async def forget(_: object) -> list[Target]:
        return [Target("b")]

    settings = ProducerSettings(service_name="kafka", discovery_method=forget)
    with raising(DiscoveryError, match="b was found without a port"):
        async with open_send_producer(settings, driver=fake):
            pass


@line("Every `send` fails if the producer is fenced or the client is broken")
async def test_a_broken_client_is_replaced_but_a_fenced_producer_stays_broken(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.break_client()
        await until(generation(producer, 2))
        await producer.send(record())
        fake.break_client(ProducerFenced("another producer has this transactional_id"))
        await until(lambda: producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken):
            await producer.send(record())


@line("Telemetry needs interceptors of the Java client, named in `properties`")
async def test_observers_need_no_setting(settings: ProducerSettings, fake: FakeDriver) -> None:
    class Collector:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def observe(self, events: Sequence[Event], /) -> None:
            self.events += events

    collector = Collector()
    async with open_send_producer(settings, driver=fake, observers=[collector]) as producer:
        await producer.send(record())
    assert [type(event).__name__ for event in collector.events] == [
        "GenerationOpened",
        "Accepted",
        "HandedOver",
        "Delivered",
        "Closing",
        "GenerationEnded",
    ]
