"""Discovery with real and faulty name servers."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from anyio_sendproducer import discovery
from anyio_sendproducer.discovery import Lookup, Resolver
from tests.support.name_server import NameServer, lying_server
from tests.support.waiting import PATIENCE

SRV = Lookup("example.test", "kafka", "tcp")


_number = itertools.count(1)


def bad(make: Callable[[], object], says: str) -> Any:
    return pytest.param(make, says, id=f"{next(_number)}-{says[:20]}")


async def ask(resolver: Resolver, name: str) -> list[str]:
    with anyio.fail_after(PATIENCE):
        return [str(one) for one in await resolver.resolve(Lookup.parse(name))]


async def test_a_real_name_server_and_answers_that_change(tmp_path: Path) -> None:
    server = NameServer(tmp_path)
    try:
        await anyio.to_thread.run_sync(
            lambda: server.answer(
                srv=[
                    ("_kafka._tcp.one.test", "b1.test", 9092),
                    ("_kafka._tcp.one.test", "b2.test", 9093),
                ],
                hosts=[("b1.test", "127.0.0.1"), ("b1.test", "::1"), ("b2.test", "127.0.0.2")],
            )
        )
        resolver = discovery.dns(server.address, port=9094)
        assert repr(resolver) == f"dns(nameservers=['{server.address}'], port=9094)"
        found = await ask(resolver, "_kafka._tcp.one.test")
        assert sorted(found) == ["b1.test:9092", "b2.test:9093"]
        assert await ask(resolver, "b1.test") == ["127.0.0.1:9094", "[::1]:9094"]
        assert await ask(discovery.dns([server.address]), "b2.test") == ["127.0.0.2"]
        with pytest.raises(Exception, match=r"does not exist: _kafka\._tcp\.two\.test"):
            await ask(resolver, "_kafka._tcp.two.test")
        await anyio.to_thread.run_sync(
            lambda: server.answer(srv=[("_kafka._tcp.one.test", "b3.test", 1)])
        )
        assert await ask(resolver, "_kafka._tcp.one.test") == ["b3.test:1"]
    finally:
        server.stop()


def with_records(*records: str) -> Callable[[dns.message.Message], dns.message.Message]:
    """Answer each question with the records of its type."""

    def answer(question: dns.message.Message) -> dns.message.Message:
        made = dns.message.make_response(question)
        asked = question.question[0]
        mine = [one.partition(" ")[2] for one in records if one.startswith(asked.rdtype.name + " ")]
        if mine:
            made.answer.append(dns.rrset.from_text(asked.name, 60, "IN", asked.rdtype, *mine))
        return made

    return answer


async def test_the_best_service_is_first_and_missing_hosts_are_omitted() -> None:
    records = ["2 9 1 later.", "1 1 2 light.test.", "1 5 3 heavy.test.", "0 0 0 .", "0 0 4 ."]
    with lying_server(with_records(*(f"SRV {one}" for one in records))) as server:
        resolver = discovery.dns(server.address)
        assert await ask(resolver, str(SRV)) == ["heavy.test:3", "light.test:2", "later:1"]
    assert set(server.asked) == {"udp SRV _kafka._tcp.example.test."}


async def test_a_name_without_records_is_not_an_error() -> None:
    with lying_server(with_records()) as server:
        resolver = discovery.dns(server.address)
        assert await ask(resolver, str(SRV)) == []
        assert await ask(resolver, "example.test") == []


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_one_kind_of_address_will_do(kind: str) -> None:
    good = with_records("A 10.0.0.1", "AAAA ::1")

    def answer(question: dns.message.Message) -> dns.message.Message:
        if question.question[0].rdtype.name == kind:
            return good(question)
        made = dns.message.make_response(question)
        made.set_rcode(dns.rcode.SERVFAIL)
        return made

    with lying_server(answer) as server:
        found = await ask(discovery.dns(server.address, port=1), "example.test")
    assert found == [{"A": "10.0.0.1:1", "AAAA": "[::1]:1"}[kind]]


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_one_kind_of_address_will_do_if_the_server_is_silent_about_the_other(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_sendproducer.discovery._dns._BOTH_KINDS", 0.1)
    monkeypatch.setattr("anyio_sendproducer.discovery._dns._PATIENCE", 0.1)
    good = with_records("A 10.0.0.1", "AAAA ::1")

    def answer(question: dns.message.Message) -> dns.message.Message | None:
        return good(question) if question.question[0].rdtype.name == kind else None

    with lying_server(answer) as server:
        found = await ask(discovery.dns(server.address, port=1), "example.test")
    assert found == [{"A": "10.0.0.1:1", "AAAA": "[::1]:1"}[kind]]


@pytest.mark.parametrize("kind", ["A", "AAAA"])
async def test_a_lost_request_for_one_kind_of_address_is_repeated(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other kind is found long before the second attempt."""
    monkeypatch.setattr("anyio_sendproducer.discovery._dns._PATIENCE", 0.1)
    good = with_records("A 10.0.0.1", "AAAA ::1")
    asked: list[str] = []

    def answer(question: dns.message.Message) -> dns.message.Message | None:
        asked.append(question.question[0].rdtype.name)
        return None if asked[-1] == kind and asked.count(kind) == 1 else good(question)

    with lying_server(answer) as server:
        found = await ask(discovery.dns(server.address, port=1), "example.test")
    assert found == ["10.0.0.1:1", "[::1]:1"]


async def test_the_other_kind_of_address_does_not_use_up_the_time_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anyio_sendproducer.discovery._dns._BOTH_KINDS", PATIENCE)

    async def resolve(_: Any, __: str, *, rdtype: Any, **___: Any) -> list[Any]:
        if rdtype.name == "A":
            return [types.SimpleNamespace(address="10.0.0.1")]
        while anyio.current_effective_deadline() >= scope.deadline:
            await anyio.lowlevel.checkpoint()
        return []

    monkeypatch.setattr(dns.asyncresolver.Resolver, "resolve", resolve)
    with anyio.fail_after(PATIENCE) as scope:
        resolver = discovery.dns("127.0.0.1", port=1)
        found = await resolver.resolve(Lookup.parse("example.test"))
    assert [*map(str, found)] == ["10.0.0.1:1"]


async def test_a_truncated_answer_is_requested_again_over_tcp() -> None:
    good = with_records("SRV 1 1 9092 broker.test.")

    def answer(question: dns.message.Message) -> dns.message.Message:
        made = good(question)
        if server.asked[-1].startswith("udp"):
            made.answer.clear()
            made.flags |= dns.flags.TC
        return made

    with lying_server(answer) as server:
        assert await ask(discovery.dns(server.address), str(SRV)) == ["broker.test:9092"]
    assert {how[:3] for how in server.asked} == {"udp", "tcp"}


def garbage(_: dns.message.Message) -> bytes:
    return b"\xff" * 40


def for_another(question: dns.message.Message) -> dns.message.Message:
    made = with_records("SRV 1 1 1 evil.test.")(question)
    made.id = (question.id + 1) % 65536
    return made


def cannot(question: dns.message.Message) -> dns.message.Message:
    made = dns.message.make_response(question)
    made.set_rcode(dns.rcode.SERVFAIL)
    return made


def mute(_: dns.message.Message) -> None:
    return None


@pytest.mark.parametrize("liar", [garbage, for_another, cannot, mute])
async def test_a_server_that_lies_or_is_silent_is_skipped(
    liar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyio_sendproducer.discovery._dns._PATIENCE", 0.1)
    with lying_server(liar) as bad, lying_server(with_records("SRV 1 1 1 good.test.")) as good:
        resolver = discovery.dns([bad.address, good.address])
        assert await ask(resolver, str(SRV)) == ["good.test:1"]
    assert bad.asked


async def test_servers_that_all_fail_are_an_error_that_names_them() -> None:
    with lying_server(cannot) as server:
        resolver = discovery.dns(server.address, port=1)
        for name in (str(SRV), "example.test"):
            with pytest.raises(Exception, match=rf"127\.0\.0\.1.*{server.port}.*SERVFAIL"):
                await ask(resolver, name)


async def test_the_wait_for_a_silent_server_can_be_cancelled() -> None:
    with lying_server(mute) as server:
        with anyio.move_on_after(0.2) as scope:
            await discovery.dns(server.address).resolve(SRV)
        assert scope.cancelled_caught


async def test_the_system_s_name_servers_and_search_list_are_the_default(tmp_path: Path) -> None:
    good = with_records("A 10.0.0.1")

    def answer(question: dns.message.Message) -> dns.message.Message:
        if str(question.question[0].name) == "headless.inner.test.":
            return good(question)
        made = dns.message.make_response(question)
        made.set_rcode(dns.rcode.NXDOMAIN)
        return made

    with lying_server(answer) as server:
        configuration = tmp_path / "resolv.conf"
        configuration.write_text("nameserver 127.0.0.1\nsearch inner.test\n", encoding="ascii")

        class Configured(dns.asyncresolver.Resolver):
            def __init__(self) -> None:
                cast("Any", super()).__init__(str(configuration))
                self.port = server.port

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dns.asyncresolver, "Resolver", Configured)
            resolver = discovery.dns(port=1)
            assert repr(resolver) == "dns(port=1)"
            assert await ask(resolver, "headless") == ["10.0.0.1:1"]
