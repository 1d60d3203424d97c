"""Look-ups, targets and resolvers, without a name server."""

from __future__ import annotations

import builtins
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError, discovery
from anyio_sendproducer.discovery import Lookup, Target

names = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z][a-z0-9-]{0,10}){0,3}", fullmatch=True)

labels = st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True)

addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)

targets = st.builds(Target, names | addresses, st.none() | st.integers(1, 65535))

SRV = Lookup("example.test", "kafka", "tcp")


@given(st.builds(Lookup, names) | st.builds(Lookup, names, labels, labels))
def test_parse_reverses_str_of_a_lookup(lookup: Lookup) -> None:
    assert Lookup.parse(str(lookup)) == lookup


@given(targets)
def test_parse_reverses_str_of_a_target(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "lookup"),
    [
        ("_kafka._tcp.a.b", Lookup("a.b", "kafka", "tcp")),
        ("kafka.a.b", Lookup("kafka.a.b")),
        ("_kafka.a.b", Lookup("_kafka.a.b")),
        ("kafka", Lookup("kafka")),
    ],
)
def test_names_of_services(text: str, lookup: Lookup) -> None:
    assert Lookup.parse(text) == lookup


_number = itertools.count(1)


def bad(make: Callable[[], object], says: str) -> Any:
    return pytest.param(make, says, id=f"{next(_number)}-{says[:20]}")


ANY: Any = None
SECONDS = (
    "aggregate: seconds must be a number of seconds above 0, and no more than 1e+09, or a "
    "timedelta, not"
)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        bad(lambda: Lookup(""), "service_name must be a str that is not empty, not ''"),
        bad(
            lambda: Lookup("kafka:9092"),
            "service_name 'kafka:9092' has a port, which a look-up finds: remove it, or use "
            "bootstrap_servers",
        ),
        bad(lambda: Target("h:1"), "host 'h:1' has a port: use Target.parse() for both"),
        bad(lambda: Target("[::1]:1"), "host '[::1]:1' has a port: use Target.parse() for both"),
        bad(
            lambda: discovery.aggregate(discovery.static("a:1"), seconds=True),
            f"{SECONDS} True",
        ),
        bad(lambda: Lookup.parse(ANY), "service_name must be a str that is not empty, not None"),
        bad(
            lambda: Lookup("a", "kafka"),
            "port_name and protocol must be set together, not 'kafka' and None",
        ),
        bad(lambda: Target(""), "host must be a str that is not empty, not ''"),
        bad(lambda: Target("a", 0), "port must be an int from 1 to 65535, or None, not 0"),
        bad(lambda: Target("a", True), "port must be an int from 1 to 65535, or None, not True"),
        bad(
            lambda: Target.parse("a:b"),
            "'a:b' is neither host nor host:port, such as localhost:9092",
        ),
        bad(
            lambda: Target.parse("a:70000"),
            "port must be an int from 1 to 65535, or None, not 70000",
        ),
        bad(
            lambda: discovery.static([]),
            "static: give at least one target, such as 'localhost:9092'",
        ),
        bad(
            lambda: discovery.static({}),
            "static: give at least one target, such as 'localhost:9092'",
        ),
        bad(
            lambda: discovery.static(cast("Any", [b"a:1"])),
            "static: a target must be a str or a Target, not bytes",
        ),
        bad(lambda: discovery.static(ANY), "static: targets must be an iterable, not NoneType"),
        bad(discovery.aggregate, "aggregate: pass at least one resolver"),
        bad(
            lambda: discovery.aggregate(discovery.static("a:1"), seconds=0),
            f"{SECONDS} 0",
        ),
        bad(
            lambda: discovery.aggregate(discovery.static("a:1"), seconds=ANY),
            f"{SECONDS} None",
        ),
        bad(
            lambda: discovery.dns("localhost"),
            "dns: a name server must be an address, such as '10.0.0.2', '10.0.0.2:5353' or "
            "'[::1]:53', not 'localhost'",
        ),
        bad(
            lambda: discovery.dns([ANY]),
            "dns: a name server must be an address, such as '10.0.0.2', '10.0.0.2:5353' or "
            "'[::1]:53', not None",
        ),
        bad(
            lambda: discovery.dns(cast("Any", 5)),
            "dns: nameservers must be an address or an iterable of addresses, not int",
        ),
        bad(
            lambda: discovery.static(cast("Any", {5: "a:1"})),
            "static: a service name must be a str, not 5",
        ),
        bad(
            lambda: Target.parse(ANY),
            "None is neither host nor host:port, such as localhost:9092",
        ),
        bad(
            lambda: discovery.dns([]),
            "dns: nameservers is empty; use None for the system's name servers",
        ),
        bad(
            lambda: discovery.dns(port=70000),
            "port must be an int from 1 to 65535, or None, not 70000",
        ),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "bad_character", [*map(chr, range(0x21)), "\x7f", "\x9b", "\u2028", "\u202e"]
)
def test_addresses_with_control_characters_are_refused(bad_character: str) -> None:
    host = f"127.0.0.1{bad_character}.example"
    for call in (
        lambda: Target(host, 9092),
        lambda: Target.parse(f"{host}:9092"),
        lambda: Lookup(host),
        lambda: Lookup("x", host, "tcp"),
        lambda: ProducerSettings(bootstrap_servers=f"{host}:9092"),
        lambda: ProducerSettings(bootstrap_servers=[f"{host}:9092"]),
        lambda: ProducerSettings(service_name=host),
    ):
        with pytest.raises(SettingsError) as caught:
            call()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("host", ["a,b", "a/b", "a b", "[a", "a]", "kafka://a"])
def test_a_target_whose_host_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"is not a host's name or address|has a port"):
        Target(host, 9092)


def test_an_object_that_is_not_a_resolver_is_refused() -> None:
    for make in (discovery.as_resolver, discovery.aggregate):
        with pytest.raises(SettingsError) as caught:
            make(cast("Any", 7))
        assert str(caught.value) == "a resolver must be a Resolver or an async callable, not int"


def test_the_error_of_dns_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "_dns":
            raise ModuleNotFoundError("No module named 'dns'")
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r'pip install "\.\[dns\]" in a checkout of'):
        discovery.dns()


async def test_static_has_one_answer_or_one_for_each_name() -> None:
    everywhere = discovery.static(["a:1", Target("b", 2)])
    assert await everywhere.resolve(SRV) == (Target("a", 1), Target("b", 2))
    assert repr(everywhere) == "static(a:1, b:2)"
    by_name = discovery.static({"_kafka._tcp.example.test": "c:3", "d": ["[::1]:4"]})
    assert await by_name.resolve(SRV) == (Target("c", 3),)
    assert await by_name.resolve(Lookup("d")) == (Target("::1", 4),)
    assert not await by_name.resolve(Lookup("e"))
    assert repr(by_name) == "static(for _kafka._tcp.example.test, d)"


async def test_any_asynchronous_callable_is_a_resolver() -> None:
    async def ask_around(lookup: Lookup) -> Sequence[Target]:
        return [Target(lookup.service_name, 1)]

    resolver = discovery.as_resolver(ask_around)
    assert await resolver.resolve(Lookup("a")) == [Target("a", 1)]
    assert repr(resolver).endswith("ask_around()")
    assert discovery.as_resolver(resolver) is resolver


@dataclasses.dataclass
class Scripted:
    """A resolver that finds targets, fails, or never answers."""

    answer: Sequence[Target] | Exception | None
    asked: int = 0

    async def resolve(self, _: Lookup, /) -> Sequence[Target]:
        self.asked += 1
        if self.answer is None:
            await anyio.sleep_forever()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer

    def __repr__(self) -> str:
        return "scripted"


answers = st.just(()) | st.builds(OSError, labels) | st.lists(targets, max_size=2)


@given(st.lists(answers, min_size=1, max_size=4))
@example([(), [Target("a", 1)]])
def test_aggregate_returns_the_first_targets_that_a_resolver_finds(
    said: list[Sequence[Target] | Exception],
) -> None:
    resolvers = [Scripted(one) for one in said]
    aggregate = discovery.aggregate(*resolvers)
    found = [number for number, one in enumerate(said) if one and not isinstance(one, Exception)]
    if found:
        assert anyio.run(aggregate.resolve, SRV) is said[found[0]]
    else:
        with pytest.raises(LookupError) as caught:
            anyio.run(aggregate.resolve, SRV)
        words = [str(one) if isinstance(one, Exception) else "nothing was found" for one in said]
        assert str(caught.value) == "; ".join(f"scripted: {one}" for one in words)
    asked = found[0] + 1 if found else len(said)
    assert [one.asked for one in resolvers] == [1] * asked + [0] * (len(said) - asked)


async def test_aggregate_limits_the_wait_for_each_resolver_except_the_last() -> None:
    mute, good = Scripted(None), Scripted([Target("a", 1)])
    aggregate = discovery.aggregate(mute, good, seconds=timedelta(milliseconds=10))
    assert await aggregate.resolve(SRV) == [Target("a", 1)]
    assert repr(aggregate) == "aggregate(scripted, scripted)"
    with anyio.move_on_after(0.1) as scope:
        await discovery.aggregate(mute, mute, seconds=0.001).resolve(SRV)
    assert scope.cancelled_caught
    wordless = discovery.aggregate(mute, Scripted(OSError()), seconds=0.01)
    with pytest.raises(LookupError, match=r"scripted: no answer within 0\.01 s; scripted: OSError"):
        await wordless.resolve(SRV)
