"""Brokers that spoil their answers: a short form of tests/broker/fuzz.py, and its parts."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from typing import Any

import anyio.to_thread
import pytest

from anyio_sendproducer.drivers import DriverName
from tests.broker.fuzz import Children, Report, run, run_example
from tests.support.answer_fields import HOSTILE, RESPONSES, AnswerWriter
from tests.support.brief import on_either_loop
from tests.support.fuzzed_broker import JOBS, MECHANISMS, NEWEST, FuzzedBroker, Plan, fuzzed_broker
from tests.support.scripted_broker import METADATA, SASL_AUTHENTICATE

#: A plan without spoilt answers.
NOTHING = -1
EVERY_VERSION = [
    (api, version)
    for api, newest in NEWEST.items()
    if api in RESPONSES
    for version in range(newest + 1)
]


# --- the examples --------------------------------------------------------------------------------


# After some malformed answers kafka-python 3.0.12 leaves a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_spoilt_answers_do_no_harm() -> None:
    report = Report()
    await run(iter([f"1-{number}" for number in range(40)]), "kafka-python", report)
    assert report.examples == 40
    assert not report.problems, str(report)
    gc.collect()


def test_spoilt_answers_do_no_harm_to_librdkafka_except_for_crashes() -> None:
    children = Children(1, seconds=600, count=2, last=8)
    children.run()
    assert children.report.examples == 8
    assert not children.report.problems, str(children)


@pytest.mark.parametrize("mechanism", sorted({*MECHANISMS}))
@pytest.mark.parametrize("job", JOBS)
@on_either_loop
async def test_without_spoilt_answers_there_is_no_problem(
    driver: DriverName, job: str, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_nothing(plan: Plan, seed: str) -> None:
        old_init(plan, seed)
        plan.job, plan.mechanism, plan.target = job, mechanism, NOTHING

    old_init = Plan.__init__
    monkeypatch.setattr(Plan, "__init__", plan_nothing)
    monkeypatch.setattr("tests.broker.fuzz.STEP", 60.0)
    report = Report()
    await run_example("7", driver, report)
    assert report.outcomes == Counter({f"{job}: done": 1})


# --- what is counted -----------------------------------------------------------------------------


def watched(script: str) -> tuple[int, Children]:
    children = Children(1, 0)
    return children.watch([sys.executable, "-c", script], 5), children


def test_a_process_that_dies_is_counted_with_its_example() -> None:
    last, children = watched(
        "import os, sys; print('begin 6 a plan', flush=True); print('end 1.5 7 send: done')\n"
        "print('begin 7 another plan'); print('note an answer: list Brokers', flush=True)\n"
        "print('rd.h:147: rd_malloc: Assertion `p\\' failed.', file=sys.stderr, flush=True)\n"
        "os.abort()"
    )
    assert last == 7
    assert children.deaths == {"SIGABRT  an answer: list Brokers": 1}
    assert children.report.outcomes == {"send: done": 1, "the process died": 1}
    assert children.report.problems == []
    assert "first --example 7: another plan. rd.h:147: rd_malloc: Assertion" in str(children)


def test_a_process_that_dies_between_two_examples() -> None:
    _, children = watched(
        "import os; print('begin 6 a plan'); print('end 1.5 7 send: done', flush=True); os.abort()"
    )
    assert children.deaths == {"SIGABRT": 1}
    assert children.report.outcomes == {"send: done": 1}


def test_a_process_that_ends_with_an_error_is_a_problem() -> None:
    last, children = watched("print('problem took 99 s'); raise SystemExit(1)")
    assert last == 5
    assert children.report.problems == ["took 99 s", "exit code 1: --example 5: . "]


# --- the answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("api", "version"), EVERY_VERSION)
def test_a_written_answer_is_what_clients_read(api: int, version: int) -> None:
    written = AnswerWriter(api, version).write({})
    RESPONSES[api].decode(written, version=version)


@pytest.mark.parametrize("version", [7, 9, 12])
def test_values_are_written(version: int) -> None:
    partition: dict[str, Any] = {"PartitionIndex": 3, "ReplicaNodes": [1, 2]}
    topic = {"Name": "orders", "Partitions": [partition, {}]}
    broker = {"NodeId": 1, "Host": "h", "Port": 9092}
    values = {"Brokers": [broker], "ClusterId": "c", "Topics": [topic]}
    read: Any = RESPONSES[METADATA].decode(
        AnswerWriter(METADATA, version).write(values), version=version
    )
    assert (read.brokers[0].host, read.brokers[0].port, read.cluster_id) == ("h", 9092, "c")
    assert read.topics[0].name == "orders"
    assert read.topics[0].partitions[0].partition_index == 3
    assert read.topics[0].partitions[0].replica_nodes == [1, 2]


def test_one_field_is_wrong_and_always_in_the_same_way() -> None:
    values = {"Brokers": [{"NodeId": 1, "Host": "h", "Port": 9092}]}
    good = AnswerWriter(METADATA, 12)
    right = good.write(values)
    assert good.notes == []
    for field in range(good.fields):
        written = {
            (writer.write(values), *writer.notes)
            for writer in (
                AnswerWriter(METADATA, 12, [field], random.Random(field)) for _ in range(2)
            )
        }
        [(_, note)] = written
        assert note
    assert right == AnswerWriter(METADATA, 12).write(values)


def test_a_forged_answer_has_hostile_texts() -> None:
    written = AnswerWriter(SASL_AUTHENTICATE, 1, forged=True).write({})
    assert RESPONSES[SASL_AUTHENTICATE].decode(written, version=1).error_message == HOSTILE


async def test_every_way_to_spoil_an_answer_gives_bytes() -> None:
    ways = [name for name in dir(FuzzedBroker) if name.startswith("_spoil_")]
    assert len(ways) > 10
    with fuzzed_broker(Plan("1")) as broker:
        for name in ways:
            for seed in range(20):
                pieces = getattr(broker, name)(random.Random(seed), bytes(4), b"body")
                assert all(piece is None or isinstance(piece, bytes) for piece in pieces)
        await anyio.to_thread.run_sync(broker.close)
