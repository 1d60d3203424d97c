"""The context and the thread of each hook, as in the table in docs/reference/hooks.md."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from anyio_sendproducer import (
    Message,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.discovery import Target
from anyio_sendproducer.drivers import Driver
from anyio_sendproducer.drivers.security._settings import TokenSource
from anyio_sendproducer.telemetry import Event, Given
from anyio_sendproducer.testing import FakeDriver, fake_producer
from tests.support.calls import end_error, raising, record
from tests.support.waiting import PATIENCE, until

who: ContextVar[str] = ContextVar("who", default="nobody")

LOOP, THREAD = "loop", "thread"


class Seen:
    """Where the hooks ran: the value of `who`, and the kind of thread."""

    def __init__(self) -> None:
        self.calls: dict[str, set[tuple[str, str]]] = {}
        self._loop = threading.get_ident()

    def note(self, hook: str) -> None:
        kind = LOOP if threading.get_ident() == self._loop else THREAD
        self.calls.setdefault(hook, set()).add((who.get(), kind))


class Hooks:
    """An observer that injects headers, and all other hooks of the settings."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.fake = FakeDriver()

    def observe(self, events: Sequence[Event], /) -> None:
        self.seen.note("observe")

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        self.seen.note("inject")
        return []

    def serialize(self, value: Any) -> bytes:
        self.seen.note("serializer")
        return bytes(value)

    async def enrich(self, settings: ProducerSettings) -> ProducerSettings:
        self.seen.note("enrich")
        return settings

    async def resolve(self, _: object) -> list[Target]:
        self.seen.note("resolver")
        return [Target("broker.invalid", 9092)]

    def make(self, settings: ProducerSettings) -> Driver:
        self.seen.note("driver factory")
        return self.fake(settings)


def is_second(producer: SendProducer) -> bool:
    """Whether the second client is open."""
    return producer.statistics().generations == 2


async def raise_in_transaction(producer: SendProducer) -> None:
    async with producer.transaction() as tx:
        await tx.send(record())
        raise LookupError


@pytest.fixture
def hooks() -> Hooks:
    return Hooks(Seen())


async def test_each_hook_runs_in_the_context_of_the_table(hooks: Hooks) -> None:
    settings = ProducerSettings(
        service_name="kafka",
        discovery_method=hooks.resolve,
        enrich=hooks.enrich,
        value_serializer=hooks.serialize,
        cancel_timeout=20.0,
    )
    who.set("opener")
    async with open_send_producer(settings, driver=hooks.make, observers=[hooks]) as producer:
        who.set("caller")
        await producer.send(record())
        producer.enqueue_nowait(record())
        hooks.fake.break_client()
        await until(functools.partial(is_second, producer))
        await producer.send(record())
    assert hooks.seen.calls == {
        "observe": {("opener", LOOP)},
        "inject": {("caller", LOOP)},
        "serializer": {("opener", THREAD)},
        "enrich": {("opener", LOOP)},
        "resolver": {("opener", LOOP)},
        "driver factory": {("opener", THREAD)},
    }


async def test_with_a_fake_producer_hooks_of_records_run_in_the_openers_context(
    hooks: Hooks,
) -> None:
    """Also if the caller's task submits the record."""

    def choose(topic: str, key: bytes | None, partitions: Sequence[int]) -> int:
        hooks.seen.note("partitioner")
        return partitions[0]

    settings = ProducerSettings(
        bootstrap_servers="broker.invalid:9092",
        value_serializer=hooks.serialize,
        partitioner=choose,
    )
    who.set("opener")
    async with fake_producer(settings) as fake:
        who.set("caller")
        for _ in range(3):
            await fake.producer.send(record(partition=None))
        await fake.producer.send_many([record(partition=None), record(partition=None)])
    assert hooks.seen.calls == {
        "serializer": {("opener", LOOP)},
        "partitioner": {("opener", LOOP)},
    }


async def test_settings_are_enriched_again_in_the_openers_context(hooks: Hooks) -> None:
    """Also if the task of a transaction gives up the client."""
    settings = ProducerSettings(
        bootstrap_servers="broker.invalid:9092",
        enrich=hooks.enrich,
        transactional_id="id",
        cancel_timeout=20.0,
    )
    who.set("opener")
    async with open_send_producer(settings, driver=hooks.make) as producer:
        who.set("caller")
        hooks.fake.end_error = end_error(abort=SendProducerError("no answer"))
        with pytest.raises(LookupError):
            await raise_in_transaction(producer)
        hooks.fake.end_error = end_error()
        await until(functools.partial(is_second, producer))
    assert hooks.seen.calls["enrich"] == {("opener", LOOP)}


async def test_the_hooks_of_a_flow_run_in_the_context_of_its_block(hooks: Hooks) -> None:
    async def source() -> AsyncIterator[Message[Any, Any, int]]:
        hooks.seen.note("source")
        yield Message(record(), 1)

    def offsets(envelope: Any) -> Mapping[tuple[str, int], int]:
        hooks.seen.note("offsets")
        return {("t", 0): envelope.pass_through}

    settings = ProducerSettings(bootstrap_servers="broker.invalid:9092", transactional_id="id")
    who.set("opener")
    async with open_send_producer(settings, driver=hooks.make) as producer:
        who.set("caller")
        flow = producer.flow(source(), offsets=offsets, group_metadata="g")
        async with flow as results:
            async for _ in results:
                who.set("receiver")
    assert hooks.seen.calls["source"] == {("caller", LOOP)}
    assert hooks.seen.calls["offsets"] == {("caller", LOOP)}


def test_a_token_provider_runs_in_the_context_in_which_the_driver_was_made(hooks: Hooks) -> None:
    class Tokens:
        def token(self) -> str:
            hooks.seen.note("token")
            return "t0k3n"

        def extensions(self) -> dict[str, str]:
            hooks.seen.note("extensions")
            return {}

    who.set("opener")
    source = TokenSource(Tokens(), PATIENCE)
    who.set("caller")
    thread = threading.Thread(target=lambda: (source.token(), source.extensions()))
    thread.start()
    thread.join()
    assert hooks.seen.calls == {
        "token": {("opener", THREAD)},
        "extensions": {("opener", THREAD)},
    }


async def test_hooks_do_not_change_the_context_of_the_caller(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    def serialize(value: bytes) -> bytes:
        seen.append(who.get())
        who.set("serializer")
        return value

    seen: list[str] = []
    who.set("opener")
    async with open_send_producer(
        settings.with_value_serializer(serialize), driver=fake
    ) as producer:
        await producer.send(record())
        assert who.get() == "opener"
    assert seen == ["opener"]


async def test_a_producer_factory_runs_on_a_separate_thread_in_the_openers_context() -> None:
    seen: list[tuple[str, str]] = []

    def make(_: dict[str, Any]) -> Any:
        seen.append((who.get(), threading.current_thread().name))
        raise OSError("no client today")

    who.set("opener")
    settings = ProducerSettings(bootstrap_servers="broker.invalid:9092", producer_factory=make)
    with raising(ProducerStartError, match="no client today"):
        async with open_send_producer(settings):
            pass
    [(context, thread)] = seen
    assert context == "opener"
    assert re.fullmatch(r"anyio-sendproducer-\d+-open", thread)
