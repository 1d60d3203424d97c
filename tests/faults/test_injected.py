"""What a cluster answers, and how: each error of the protocol, silence, moves, closed connections.

librdkafka's mock cluster answers as it is told. A request that it answers with an error it does not
write, whatever the error; what is under way to other partitions meanwhile it does. So what is
judged is what the producer makes of an answer. It keeps what the client sends again because an
answer was lost: such copies are counted as repeated, and not as doubled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from anyio_sendproducer import ProducerSettings
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import MockCluster, mock_cluster
from tests.faults.matrix import DEFAULT_DRIVER, FULL, RECORDS, Cell, judge
from tests.support.calls import sure_of_refusals
from tests.support.history import Report
from tests.support.load import During, Load, Ran, Running, run_load
from tests.support.mock_cluster import FOR_MOCK, INIT_PRODUCER_ID, METADATA
from tests.support.waiting import until

#: Seconds over which a load is spread: a fault comes and goes within them.
SECONDS = 3.0 if FULL else 0.2

#: Milliseconds by which a lost answer is delayed: longer than any client waits.
NEVER_MS = 600_000

_topics = itertools.count()


@pytest.fixture(scope="module")
def one_cluster() -> Iterator[MockCluster]:
    with mock_cluster(2) as running:
        yield running


@pytest.fixture
def cluster(one_cluster: MockCluster) -> Iterator[MockCluster]:
    yield one_cluster
    one_cluster.behave()


@pytest.fixture
def fresh() -> Iterator[MockCluster]:
    """A cluster of the test's own: what one of its brokers is told to answer, it can't be told to
    forget, and it hides what all are told."""
    with mock_cluster(2) as running:
        yield running


@pytest.fixture
def topic() -> str:
    # Created when it is first asked for, with four partitions, led by whichever broker. To
    # create it by hand now and then takes the mock seconds.
    return f"t{next(_topics)}"


def settings_for(cluster: MockCluster, driver: DriverName, **changes: Any) -> ProducerSettings:
    own = FOR_MOCK if driver == "kafka-python" else {}
    properties = {**own, **changes.pop("properties", {})}
    return ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers,
        delivery_timeout=60.0,
        close_timeout=60.0,
        properties=properties,
    ).evolve(**changes)


async def until_both_lead(running: Running, cluster: MockCluster, topic: str) -> None:
    """Have each broker lead two partitions, and wait until a quarter of the load is through. The
    mock leaves to chance who leads a topic that it made by itself."""
    await running.until_settled(0.1)
    for partition in range(4):
        cluster.move(topic, partition, 1 + partition % 2)
    await running.until_settled(0.25)


async def run(
    cell: str,
    loop: str,
    driver: DriverName,
    settings: ProducerSettings,
    topic: str,
    during: During,
    *,
    note: str = "",
    seconds: float = SECONDS,
    partitions: int = 4,
) -> tuple[Ran, Report]:
    """Run a load under a fault, judge it, and write the row.

    Most of the records are sent when `during` admits them: there is the fault by then.
    """
    load = Load(topic=topic, records=RECORDS, seconds=seconds, admitted=0.3, partitions=partitions)
    ran = await run_load(settings, load, during=during, driver=driver)
    readers: Any = {"kafka-python": FOR_MOCK}
    report = await judge(
        Cell("injected", cell, loop, driver, note),
        ran,
        settings,
        topic,
        repeats=True,
        concludes=driver == "confluent",
        readers=readers,
    )
    return ran, report


# --- each error of a produce answer --------------------------------------------------------------

#: The client sends again, and everything is delivered.
RETRIED = {
    3: "UNKNOWN_TOPIC_OR_PARTITION",
    5: "LEADER_NOT_AVAILABLE",
    6: "NOT_LEADER_OR_FOLLOWER",
    7: "REQUEST_TIMED_OUT",
    13: "NETWORK_EXCEPTION",
    19: "NOT_ENOUGH_REPLICAS",
    20: "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    56: "KAFKA_STORAGE_ERROR",
    74: "FENCED_LEADER_EPOCH",
    75: "UNKNOWN_LEADER_EPOCH",
    89: "THROTTLING_QUOTA_EXCEEDED",
}

#: Of these, what librdkafka does not send again: brokers do not give them to produce requests.
NOT_RETRIED_BY_LIBRDKAFKA = {13, 74, 75, 89}

#: The broker has not written the batch and never will: the records in it are rejected.
REFUSED = {
    2: "CORRUPT_MESSAGE",
    17: "INVALID_TOPIC_EXCEPTION",
    21: "INVALID_REQUIRED_ACKS",
    29: "TOPIC_AUTHORIZATION_FAILED",
    31: "CLUSTER_AUTHORIZATION_FAILED",
    35: "UNSUPPORTED_VERSION",
    43: "UNSUPPORTED_FOR_MESSAGE_FORMAT",
    44: "POLICY_VIOLATION",
    53: "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
    76: "UNSUPPORTED_COMPRESSION_TYPE",
}

#: The client splits the batch and sends the halves; a record that is alone is rejected.
SPLIT = {
    10: "MESSAGE_TOO_LARGE",
    18: "RECORD_LIST_TOO_LARGE",
    32: "INVALID_TIMESTAMP",
    87: "INVALID_RECORD",
}

#: Of these, what librdkafka sends again.
RETRIED_BY_LIBRDKAFKA = {2}

#: Refusals of the client, which another takes the place of, and not of what it sent. librdkafka
#: goes on after each, with new sequence numbers.
OF_EVERYTHING = {"kafka-python": {31, 35, 53}, "confluent": set[int]()}

#: By librdkafka a topic is taken to be forbidden from such an answer on until the next look at its
#: metadata, a second later; seconds over which the load is spread.
SECONDS_AFTER = {("confluent", 29): max(3.0, SECONDS)}

#: Nobody can tell whether the batch was written, and the client does not send it again.
UNSURE = {
    -1: "UNKNOWN_SERVER_ERROR",
    45: "OUT_OF_ORDER_SEQUENCE_NUMBER",
    47: "INVALID_PRODUCER_EPOCH",
    48: "INVALID_TXN_STATE",
    49: "INVALID_PRODUCER_ID_MAPPING",
    59: "UNKNOWN_PRODUCER_ID",
    90: "PRODUCER_FENCED",
    120: "TRANSACTION_ABORTABLE",
}

#: Of these, what librdkafka recovers from where it is the first answer to a batch: nothing was
#: written by this producer for long.
RECOVERED_BY_LIBRDKAFKA = {59}

#: How often in a row the two brokers give an answer.
TIMES = {"once": 1, "repeated": 6}


def answering(cluster: MockCluster, code: int, times: int) -> During:
    """Have the brokers answer so, when a quarter of the load is through."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        cluster.answer_any(code, times)
        running.admit(0.8)
        await running.until_settled(0.8)
        cluster.forget_answers()
        running.admit(1)

    return during


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("code", RETRIED, ids=RETRIED.get)
async def test_an_error_that_passes(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, code: int, times: str
) -> None:
    settings = settings_for(cluster, driver)
    during = answering(cluster, code, TIMES[times])
    cell = f"{RETRIED[code]}, {times}"
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert ran.statistics.generations == 1
    if driver == "confluent" and code in NOT_RETRIED_BY_LIBRDKAFKA:
        assert set(report.failed) == {"DeliveryError, possibly persisted"}
        assert report.acknowledged + report.failures == report.sent == RECORDS
        _assert_it_went_on(report, ran)
    else:
        assert report.acknowledged == report.sent == RECORDS


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("code", REFUSED, ids=REFUSED.get)
async def test_a_refusal(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, code: int, times: str
) -> None:
    repeats = driver == "confluent" and code in RETRIED_BY_LIBRDKAFKA
    settings = settings_for(cluster, driver)
    if not repeats:
        settings = sure_of_refusals(settings, driver)
    during = answering(cluster, code, TIMES[times])
    cell = f"{REFUSED[code]}, {times}"
    seconds = SECONDS_AFTER.get((driver, code), SECONDS)
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during, seconds=seconds)
    if repeats:
        assert report.acknowledged == report.sent == RECORDS
        return
    assert report.failed.get("RecordRejected, not persisted", 0) > 0
    assert set(report.failed) <= {
        "RecordRejected, not persisted",
        "DeliveryError, possibly persisted",
    }
    assert report.acknowledged + report.failures == report.sent == RECORDS
    assert (ran.statistics.generations > 1) == (code in OF_EVERYTHING[driver])
    _assert_it_went_on(report, ran)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("code", UNSURE, ids=UNSURE.get)
async def test_an_answer_that_leaves_it_open(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, code: int, times: str
) -> None:
    settings = settings_for(cluster, driver)
    during = answering(cluster, code, TIMES[times])
    cell = f"{UNSURE[code]}, {times}"
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during)
    if driver == "confluent" and code in RECOVERED_BY_LIBRDKAFKA:
        assert report.acknowledged == report.sent == RECORDS
        return
    assert set(report.failed) == {"DeliveryError, possibly persisted"}
    assert report.acknowledged + report.failures == report.sent == RECORDS
    _assert_it_went_on(report, ran)


def _assert_it_went_on(report: Report, ran: Ran) -> None:
    """What came when the fault was over was delivered."""
    last = list(ran.history.sent)[-20:]
    outcomes = {type(ran.history.outcome(id_)).__name__ for id_ in last}
    assert outcomes == {"Acknowledged"}, str(report)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("code", SPLIT, ids=SPLIT.get)
async def test_a_batch_that_is_split(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, code: int, times: str
) -> None:
    settings = settings_for(cluster, driver)
    during = answering(cluster, code, TIMES[times])
    cell = f"{SPLIT[code]}, {times}"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert set(report.failed) <= {
        "RecordRejected, not persisted",
        "DeliveryError, possibly persisted",
    }
    assert report.acknowledged + report.failures == report.sent == RECORDS


async def test_duplicate_sequence_number(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    """The broker has the batch already, from an attempt whose answer was lost.

    The mock writes what is sent, keeps the answer back until the client gives up waiting for it,
    and calls what comes next a duplicate. So there must be one request under way at a time.
    """

    # One partition to a broker, and led by it from the first: the mock calls a duplicate whatever
    # it is sent next, and so what it never had of another partition.
    fresh.create_topic(topic, [1, 2])

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        for broker in (1, 2):
            fresh.answer_next(broker, 0, rtt_ms=NEVER_MS)
            fresh.answer_next(broker, 46)
        running.admit(1)

    properties = {"request_timeout_ms": 300, "max.in.flight.requests.per.connection": 1}
    settings = settings_for(fresh, driver, properties=properties)
    cell = "DUPLICATE_SEQUENCE_NUMBER, after a lost answer"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during, partitions=2)
    assert report.acknowledged == report.sent


# --- answers that come late, or not at all -------------------------------------------------------


async def test_slow_answers(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        for broker in (1, 2):
            cluster.set_rtt(broker, 300)
        running.admit(0.75)
        await running.until_settled(0.75)
        for broker in (1, 2):
            cluster.set_rtt(broker, 0)
        running.admit(1)

    settings = settings_for(cluster, driver)
    _, report = await run("slow answers", anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent
    assert report.longest_wait > 0.25


async def test_answers_slower_than_the_deadline(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    async def during(running: Running) -> None:
        await until_both_lead(running, fresh, topic)
        fresh.answer_next(1, 0, rtt_ms=NEVER_MS)
        running.admit(1)

    settings = settings_for(fresh, driver, delivery_timeout=0.4)
    cell = "answers slower than delivery_timeout"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.failed["DeliveryTimeout, possibly persisted"] > 0
    assert report.acknowledged > 0


async def test_an_answer_that_is_lost(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    async def during(running: Running) -> None:
        await until_both_lead(running, fresh, topic)
        for turn in range(1, 4):
            await running.until_settled(turn / 4)
            fresh.answer_next(1, 0, rtt_ms=NEVER_MS)
            running.admit((turn + 1) / 4)

    settings = settings_for(fresh, driver, properties={"request_timeout_ms": 300})
    cell = "a written batch whose answer is lost, three times"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent
    assert report.repeated > 0


async def test_an_answer_that_is_lost_and_then_a_refusal(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    """What was written is refused when it is sent again: rights were taken away meanwhile, say."""

    async def during(running: Running) -> None:
        await until_both_lead(running, fresh, topic)
        fresh.answer_next(1, 0, rtt_ms=NEVER_MS)
        for _ in range(12):
            # Answers behind the one that is late are lost as well: up to four, as five requests
            # may be under way on a connection.
            fresh.answer_next(1, 29)
        running.admit(1)

    settings = settings_for(fresh, driver, properties={"request_timeout_ms": 300})
    cell = "a written batch whose answer is lost, then TOPIC_AUTHORIZATION_FAILED"
    # Time for the second answer, however few requests a busy machine makes of the load.
    _, report = await run(
        cell, anyio_backend, driver, settings, topic, during, seconds=max(2.0, SECONDS)
    )
    assert report.failures > 0


async def test_an_answer_that_is_lost_and_a_refusal_of_others(
    request: pytest.FixtureRequest,
    fresh: MockCluster,
    topic: str,
    anyio_backend: str,
    driver: DriverName,
) -> None:
    """A gap in the numbers of one partition, while what another one has is to be sent again."""
    note = ""
    if driver == "confluent":
        # Now and then, as it comes: so it may as well pass.
        note = (
            "After a refusal, librdkafka gives new sequence numbers to all records that it still "
            "has, in all partitions. If a record was written before and its answer was lost, the "
            "broker does not recognize the repetition."
        )
        request.applymarker(pytest.mark.xfail(reason=note, strict=False))

    async def during(running: Running) -> None:
        await until_both_lead(running, fresh, topic)
        fresh.answer_next(1, 0, rtt_ms=NEVER_MS)
        for _ in range(20):
            fresh.answer_next(2, 44)
        running.admit(1)

    settings = settings_for(fresh, driver, properties={"request_timeout_ms": 300})
    cell = "a written batch whose answer is lost, and POLICY_VIOLATION for others"
    seconds = max(2.0, SECONDS)
    _, report = await run(
        cell, anyio_backend, driver, settings, topic, during, note=note, seconds=seconds
    )
    assert report.failures > 0


# --- connections, leaders, metadata --------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
async def test_closed_connections(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, times: str
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        cluster.close_on(TIMES[times])
        running.admit(1)

    settings = settings_for(cluster, driver)
    cell = f"connection closed on a produce request, {times}"
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent
    assert ran.statistics.generations == 1


#: All: one goes, and comes, a moment before the other.
@pytest.mark.parametrize("down", [(1,), (1, 2)], ids=["one", "all"])
async def test_brokers_that_are_down_for_a_while(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, down: tuple[int, ...]
) -> None:
    async def during(running: Running) -> None:
        await until_both_lead(running, cluster, topic)
        for broker in down:
            cluster.set_down(broker)
        running.admit(1)
        try:
            # Half of them go to the other broker, and through.
            await running.until_under_way(200)
            await anyio.sleep(SECONDS)
        finally:
            for broker in down:
                cluster.set_up(broker)

    settings = settings_for(cluster, driver, delivery_timeout=SECONDS + 60)
    cell = f"{len(down)} of 2 brokers down for {SECONDS:g} s"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent
    assert report.longest_wait > SECONDS / 2


async def test_leaders_that_move(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    async def during(running: Running) -> None:
        for turn in range(1, 9):
            await running.until_settled(turn / 10)
            for partition in range(4):
                cluster.move(topic, partition, 1 + (partition + turn) % 2)
            running.admit((turn + 2) / 10)

    settings = settings_for(cluster, driver)
    _, report = await run(
        "leaders move eight times", anyio_backend, driver, settings, topic, during
    )
    assert report.acknowledged == report.sent


@pytest.mark.parametrize(
    "code", [3, 5, -1], ids=["UNKNOWN_TOPIC", "LEADER_NOT_AVAILABLE", "UNKNOWN_SERVER_ERROR"]
)
async def test_errors_of_the_topic_in_the_metadata(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName, code: int
) -> None:
    """The cluster forgets the topic for a while: the client is made to ask, and does not learn."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        cluster.set_topic_error(topic, code)
        cluster.answer_any(6, 2)
        running.admit(1)
        await running.until_under_way()
        cluster.set_topic_error(topic, 0)

    settings = settings_for(cluster, driver)
    cell = f"metadata of the topic: error {code}"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent


async def test_metadata_requests_that_fail(
    cluster: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        cluster.close_on(6, api=METADATA)
        cluster.answer_any(6, 2)
        running.admit(1)
        await running.until_settled(1)
        cluster.forget_answers(METADATA)

    settings = settings_for(cluster, driver)
    cell = "connection closed on metadata requests"
    _, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged == report.sent


async def test_producer_ids_that_are_not_given_at_once(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    """To the first client, and to the one that takes its place."""
    # CLUSTER_AUTHORIZATION_FAILED; librdkafka only breaks by OUT_OF_ORDER_SEQUENCE_NUMBER.
    breaking = 31 if driver == DEFAULT_DRIVER else 45
    code = 14  # COORDINATOR_LOAD_IN_PROGRESS: the brokers have no ids left for now
    fresh.answer_any(code, 2, api=INIT_PRODUCER_ID)

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        fresh.answer_any(code, 2, api=INIT_PRODUCER_ID)
        fresh.answer_any(breaking)
        running.admit(0.6)
        await until(lambda: running.producer.statistics().generations == 2)
        running.admit(1)

    settings = settings_for(fresh, driver)
    cell = (
        "no producer ids for a while (COORDINATOR_LOAD_IN_PROGRESS), at first and after a refusal"
    )
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during)
    assert report.acknowledged + report.failures == report.sent
    _assert_it_went_on(report, ran)
