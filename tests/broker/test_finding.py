"""The settings of a client: enriched by a hook, with addresses from a look-up."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DiscoveryError,
    Persistence,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    SettingsError,
    discovery,
    open_send_producer,
)
from anyio_sendproducer._replacement import WATCH_SECONDS
from anyio_sendproducer._settings_resolver import SettingsResolver
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import EmbeddedBroker, FakeDriver, embedded_broker
from tests.support.calls import Call, generation, quiet, raising, record, taken, task_group
from tests.support.clock import ManualClock
from tests.support.name_server import NameServer
from tests.support.recorder import open_sockets
from tests.support.waiting import PATIENCE, until

#: The time in seconds for which a look-up would wait for a silent resolver, unless it is cancelled.
LONG = 240.0

Answer = Callable[[Lookup], Awaitable[Sequence[Target]]]


class Oracle:
    """A resolver that returns the addresses that a test sets."""

    def __init__(self, *targets: str) -> None:
        self.targets: Sequence[Target] | Exception = [*map(Target.parse, targets)]
        self.asked: list[Lookup] = []

    def say(self, *targets: str) -> None:
        self.targets = [*map(Target.parse, targets)]

    async def resolve(self, lookup: Lookup, /) -> Sequence[Target]:
        self.asked.append(lookup)
        await anyio.lowlevel.checkpoint()
        if isinstance(self.targets, Exception):
            raise self.targets
        return self.targets

    def __repr__(self) -> str:
        return "oracle"


def looking_up(oracle: Any, **changes: Any) -> ProducerSettings:
    return ProducerSettings(service_name="_kafka._tcp.x.test", discovery_method=oracle).evolve(
        **changes
    )


def made_with(fake: FakeDriver) -> ProducerSettings:
    """The settings of its last client."""
    assert fake.settings is not None
    return fake.settings


# --- at the start --------------------------------------------------------------------------------


async def test_the_client_connects_to_the_targets_of_the_look_up() -> None:
    oracle, fake = Oracle("a:1", "[::1]:2"), FakeDriver()
    async with open_send_producer(looking_up(oracle), driver=fake) as producer:
        assert made_with(fake).addresses == ("a:1", "[::1]:2")
        assert repr(producer) == "<SendProducer open a:1, [::1]:2>"
        assert 0 < made_with(fake).start_timeout <= 30
    assert oracle.asked == [Lookup("x.test", "kafka", "tcp")]


NOBODY = "service_name '_kafka._tcp.x.test', looked up with "


async def nothing(_: Lookup) -> Sequence[Target]:
    return []


async def without_port(_: Lookup) -> Sequence[Target]:
    return [Target("a", 1), Target("b")]


async def text(_: Lookup) -> Any:
    return ["a:1"]


async def no_list(_: Lookup) -> Any:
    return None


async def failing(_: Lookup) -> Sequence[Target]:
    raise OSError("the oracle is on holiday")


async def wordless(_: Lookup) -> Sequence[Target]:
    raise TimeoutError


async def too_late(_: Lookup) -> Sequence[Target]:
    await anyio.sleep(LONG)
    return []


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (nothing, "nothing(): nothing was found"),
        (
            without_port,
            (
                "without_port(): b was found without a port; use the name of SRV records, such "
                "as '_port._tcp.name', or pass the port to the resolver"
            ),
        ),
        (text, "text(): a Target was expected, not str"),
        (no_list, "no_list(): targets were expected, not NoneType"),
        (failing, "failing(): the oracle is on holiday"),
        (wordless, "wordless(): TimeoutError"),
        (too_late, "too_late(): no answer within 0.05 s (resolve_timeout)"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
async def test_the_error_names_the_failed_look_up_and_its_resolver(
    method: Answer, says: str
) -> None:
    settings = looking_up(method, resolve_timeout=0.05 if method is too_late else LONG)
    before = open_sockets()
    with pytest.raises(DiscoveryError) as caught:
        async with open_send_producer(settings, driver=FakeDriver()):
            pass
    assert str(caught.value) == NOBODY + says
    assert isinstance(caught.value.__cause__, OSError) == (method in {failing, wordless})
    assert open_sockets() == before


async def broken_generator(_: Lookup) -> Any:
    def targets() -> Iterator[Target]:
        yield Target("a", 1)
        raise OSError("the oracle\nis on holiday")

    return targets()


async def test_an_error_of_the_resolver_midway_fails_the_look_up() -> None:
    with pytest.raises(DiscoveryError) as caught:
        async with open_send_producer(looking_up(broken_generator), driver=FakeDriver()):
            pass
    assert str(caught.value) == NOBODY + r"broken_generator(): the oracle\nis on holiday"


@pytest.mark.parametrize("count", [100, 101, 3000, None], ids=str)
async def test_at_most_a_hundred_targets_are_used(
    count: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def many(_: Lookup) -> Any:
        numbers = itertools.count(1) if count is None else range(1, count + 1)
        return (Target(f"broker-{number}", 9092) for number in numbers)

    fake = FakeDriver()
    async with open_send_producer(looking_up(many), driver=fake):
        assert made_with(fake).addresses == tuple(f"broker-{one}:9092" for one in range(1, 101))
    warned = [one for one in caplog.messages if "more than 100 targets were found" in one]
    assert len(warned) == (count != 100)
    assert all(len(message) < 400 for message in caplog.messages)


async def test_targets_that_come_too_slowly_end_at_the_resolve_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [anyio.current_time()]
    monkeypatch.setattr(anyio, "current_time", lambda: now[0])

    async def slow(_: Lookup) -> Any:
        def targets() -> Iterator[Target]:
            for number in itertools.count(1):
                # Each target takes a second, during which the event loop is blocked.
                now[0] += 1
                yield Target(f"broker-{number}", 9092)

        return targets()

    with pytest.raises(DiscoveryError, match=r"no answer within 7 s \(resolve_timeout\)"):
        async with open_send_producer(looking_up(slow, resolve_timeout=7), driver=FakeDriver()):
            pass


@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
async def test_the_error_of_a_start_shortens_a_long_list_of_addresses(driver: DriverName) -> None:
    addresses = [f"127.0.0.1:{port}" for port in range(1, 10)]
    settings = ProducerSettings(bootstrap_servers=addresses, start_timeout=0.5)
    with pytest.raises(ProducerStartError, match=r"127\.0\.0\.1:5 and 4 more ") as caught:
        async with open_send_producer(settings, driver=driver):
            pass
    assert "127.0.0.1:6, " not in str(caught.value)


async def test_the_log_shortens_a_long_list_of_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    oracle = Oracle("a:1")
    finder = SettingsResolver(looking_up(oracle))
    await finder.find()
    oracle.say(*(f"broker-{number}:9092" for number in range(1, 100)))
    with caplog.at_level("INFO", "anyio_sendproducer"):
        assert await finder.moved()
    assert "broker-5:9092 and 94 more now" in caplog.text


async def test_enriching_comes_first_and_may_change_everything() -> None:
    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        assert settings is given
        await anyio.lowlevel.checkpoint()
        return (
            settings.with_service_name("x.test")
            .with_discovery_method(discovery.static({"x.test": "a:1"}))
            .with_property("sasl_plain_password", "from the vault")
            .with_max_in_flight(7)
        )

    given = ProducerSettings(enrich=enrich, client_id="before")
    fake = FakeDriver()
    async with open_send_producer(given, driver=fake):
        made = made_with(fake)
        assert made.addresses == ("a:1",)
        assert made.properties == {"sasl_plain_password": "from the vault"}
        assert made.max_in_flight == 7
        assert "vault" not in repr(made)


class VaultIsSealed(Exception):
    """An error of the application's hook."""


async def refusing(_: ProducerSettings) -> ProducerSettings:
    raise VaultIsSealed


async def returning_nothing(_: ProducerSettings) -> Any:
    return None


def at_once(settings: ProducerSettings) -> ProducerSettings:
    return settings


async def never_done(settings: ProducerSettings) -> ProducerSettings:
    await anyio.sleep(LONG)
    return settings


async def as_they_are(settings: ProducerSettings) -> ProducerSettings:
    return settings


@pytest.mark.parametrize(
    ("hook", "kind", "says"),
    [
        (refusing, VaultIsSealed, ""),
        (returning_nothing, SettingsError, "enrich must return ProducerSettings, not NoneType"),
        (
            at_once,
            SettingsError,
            "enrich must be an async callable: it returned ProducerSettings",
        ),
        (
            never_done,
            ProducerStartError,
            "enrich did not finish within 0.05 s (start_timeout)",
        ),
        (
            as_they_are,
            SettingsError,
            (
                "bootstrap_servers is missing: name at least one broker, such as 'localhost:9092', "
                "or set service_name"
            ),
        ),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
async def test_enriching_that_fails_ends_the_start(
    hook: Any, kind: type[Exception], says: str
) -> None:
    settings = ProducerSettings(enrich=hook, start_timeout=0.05 if hook is never_done else LONG)
    with pytest.raises(kind) as caught:
        async with open_send_producer(settings, driver=FakeDriver()):
            pass
    assert str(caught.value) == says


async def test_the_start_timeout_also_bounds_a_look_up() -> None:
    settings = looking_up(too_late, resolve_timeout=LONG, start_timeout=0.05)
    says = r"the look-up of _kafka._tcp.x.test did not finish within 0.05 s \(start_timeout\)"
    with pytest.raises(ProducerStartError, match=says):
        async with open_send_producer(settings, driver=FakeDriver()):
            pass


@pytest.mark.parametrize("stage", ["enrich", "resolve"])
async def test_the_start_can_be_cancelled(stage: str) -> None:
    reached = anyio.Event()

    async def wait(_: Any) -> Any:
        reached.set()
        await anyio.sleep_forever()

    if stage == "enrich":
        settings = ProducerSettings(enrich=wait)
    else:
        settings = looking_up(wait, resolve_timeout=LONG)
    fake = FakeDriver()

    async def start() -> None:
        async with open_send_producer(settings, driver=fake):
            pass

    async with task_group() as tasks:
        call = Call(tasks, start)
        await reached.wait()
        await call.cancel()
    assert fake.opened == 0


# --- the next client -----------------------------------------------------------------------------


async def test_the_next_client_uses_the_targets_of_a_new_look_up() -> None:
    oracle, fake = Oracle("a:1"), FakeDriver()
    turn = 0

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        nonlocal turn
        turn += 1
        return settings.evolve(
            client_id=f"turn {turn}", properties={"acks": turn}, max_in_flight=turn
        )

    settings = looking_up(oracle, enrich=enrich)
    async with open_send_producer(settings, driver=fake) as producer:
        oracle.say("b:2")
        fake.break_client()
        await until(generation(producer, 2))
        made = made_with(fake)
        assert (made.addresses, made.client_id) == (("b:2",), "turn 2")
        assert (made.properties, made.max_in_flight) == ({"acks": 2}, 1)
        assert made.start_timeout == 30
        await producer.send(record())
        assert repr(producer) == "<SendProducer open b:2>"


@pytest.mark.parametrize("failing_part", ["resolve", "enrich", "enrich for too long"])
async def test_if_a_new_look_up_finds_nothing_the_last_targets_are_used(
    failing_part: str, caplog: pytest.LogCaptureFixture
) -> None:
    oracle, fake = Oracle("a:1"), FakeDriver()
    hooks: list[Callable[[ProducerSettings], Awaitable[ProducerSettings]]] = [as_they_are]

    async def enrich(settings: ProducerSettings) -> ProducerSettings:
        return await hooks[-1](settings)

    patience = 2 if failing_part == "enrich for too long" else LONG
    settings = looking_up(oracle, enrich=enrich, start_timeout=patience)
    async with open_send_producer(settings, driver=fake) as producer:
        if failing_part == "resolve":
            oracle.targets = OSError("the oracle is on holiday")
        else:
            hooks.append(refusing if failing_part == "enrich" else never_done)
        fake.break_client()
        await until(generation(producer, 2))
        assert made_with(fake).addresses == ("a:1",)
        await producer.send(record())
    assert "the client's settings stay as they were" in caplog.text


# --- a cluster that moves ------------------------------------------------------------------------


async def test_a_cluster_that_moved_is_found_and_records_in_flight_get_outcomes(
    clock: ManualClock,
) -> None:
    oracle, fake = Oracle("a:1"), FakeDriver(manual=True)
    async with clock.open(
        looking_up(oracle, delivery_timeout=timedelta(seconds=1e9)), driver=fake
    ) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record(b"1"))
            await taken(fake, 1)
            oracle.say("b:2")
            fake.in_trouble = OSError("refused")
            fake.is_cut_off = True
            await clock.until(lambda: not call.running, step=WATCH_SECONDS)
        error = call.error
        assert isinstance(error, DeliveryError)
        assert error.persistence is Persistence.POSSIBLY_PERSISTED
        await until(generation(producer, 2))
        fake.is_cut_off, fake.manual = False, False
        assert made_with(fake).addresses == ("b:2",)
        await producer.send(record(b"2"))
        assert producer.statistics().generations == 2


@pytest.mark.parametrize("says", ["the same", "in another order", "nothing", "an error"])
async def test_a_client_is_kept_if_the_cluster_did_not_move(
    says: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    oracle, fake = Oracle("a:1", "b:2"), FakeDriver(manual=True)
    async with clock.open(
        looking_up(oracle, delivery_timeout=timedelta(seconds=1e9)), driver=fake
    ) as producer:
        call = producer.enqueue_nowait(record(b"1"))
        await taken(fake, 1)
        if says == "in another order":
            oracle.say("b:2", "a:1")
        elif says == "nothing":
            oracle.say()
        elif says == "an error":
            oracle.targets = OSError("the oracle is on holiday")
        fake.is_cut_off = True
        await clock.until(lambda: len(oracle.asked) > 5, step=WATCH_SECONDS)
        fake.is_cut_off = False
        fake.acknowledge()
        await call.wait()
        assert producer.statistics().generations == 1
    warned = "the addresses stay as they were" in caplog.text
    assert warned == (says in {"nothing", "an error"})


async def test_there_is_no_look_up_while_a_broker_can_be_reached(clock: ManualClock) -> None:
    oracle, fake = Oracle("a:1"), FakeDriver()
    fake.in_trouble = OSError("one of three is away")
    async with clock.open(looking_up(oracle), driver=fake):
        for _ in range(20):
            await quiet()
            clock.advance(WATCH_SECONDS)
    assert len(oracle.asked) == 1


async def test_while_no_client_can_be_opened_the_service_is_looked_up_again(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_sendproducer._driver_thread.REOPEN_SECONDS", 0.001)
    oracle, fake = Oracle("a:1"), FakeDriver()
    async with clock.open(looking_up(oracle), driver=fake) as producer:
        fake.open_error = ProducerStartError("nobody there")
        fake.break_client()
        await until(lambda: "trying again" in caplog.text)
        oracle.say("b:2")
        await clock.until(lambda: made_with(fake).addresses == ("b:2",), step=WATCH_SECONDS)
        fake.open_error = None
        await until(generation(producer, 2))
        await producer.send(record())


async def send_until_written(producer: SendProducer) -> int | None:
    """Send until a record is written, and return its offset."""
    while True:
        try:
            return (await producer.send(record(b"at the new"))).offset
        except DeliveryError as error:
            assert error.persistence is Persistence.POSSIBLY_PERSISTED  # noqa: PT017


async def test_a_real_cluster_that_moves_is_found_by_a_real_name_server(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Two brokers and a name server in processes of their own. The first broker ends for good."""
    names = NameServer(tmp_path)
    in_thread = anyio.to_thread.run_sync

    def at(broker: EmbeddedBroker) -> None:
        port = int(broker.bootstrap_servers.rpartition(":")[2])
        names.answer(srv=[("_kafka._tcp.moving.test", "127.0.0.1", port)])

    try:
        async with embedded_broker() as old, embedded_broker() as new:
            await in_thread(at, old)
            settings = ProducerSettings(
                service_name="_kafka._tcp.moving.test",
                discovery_method=discovery.dns(names.address),
                resolve_timeout=PATIENCE,
                delivery_timeout=timedelta(seconds=1e9),
            )
            async with clock.open(settings) as producer:
                assert (await producer.send(record(b"at the old"))).offset == 0
                await in_thread(at, new)
                assert (await producer.send(record(b"at the old, too"))).offset == 1
                await old.kill()
                async with task_group() as tasks:
                    call = Call(tasks, send_until_written, producer)
                    await clock.until(lambda: not call.running, step=WATCH_SECONDS / 100)
                assert call.value == 0
                assert producer.statistics().generations == 2
                assert new.bootstrap_servers in repr(producer)
    finally:
        names.stop()


async def test_dns_is_the_default_method() -> None:
    settings = ProducerSettings(service_name="_kafka._tcp.nowhere.invalid", resolve_timeout=0.001)
    with raising(DiscoveryError, match=r"looked up with dns\(\): "):
        async with open_send_producer(settings, driver=FakeDriver()):
            pass
