"""Injected answers of a cluster: each error of the protocol, silence, moves, closed connections.

librdkafka's mock cluster gives the answers that a test selects. It does not write a request that it
answers with an error, whatever the error. It writes the requests to other partitions. So these
tests judge how the producer handles an answer. The mock cluster keeps the records that the client
sends again after a lost answer: such copies are counted as repeated, and not as doubled.
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

#: Seconds over which a load is spread. They are longer than a fault.
SECONDS = 3.0 if FULL else 0.2

#: Milliseconds by which a lost answer is delayed. No client waits that long.
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
    """A cluster for one test. The answers selected for one of its brokers can't be removed, and
    they override the answers selected for all brokers."""
    with mock_cluster(2) as running:
        yield running


@pytest.fixture
def topic() -> str:
    # The first request creates the topic, with four partitions and random leaders. An explicit
    # creation sometimes takes the mock seconds.
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
    """Have each broker lead two partitions, and wait until a quarter of the load is delivered. The
    mock chooses random leaders for a topic that it created automatically."""
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

    Most of the records are sent only when `during` admits them, after the fault has started.
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

#: The errors of these after which librdkafka does not send again. Brokers do not answer produce
#: requests with them.
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

#: The client splits the batch and sends the halves. A lone record is rejected.
SPLIT = {
    10: "MESSAGE_TOO_LARGE",
    18: "RECORD_LIST_TOO_LARGE",
    32: "INVALID_TIMESTAMP",
    87: "INVALID_RECORD",
}

#: The errors of these after which librdkafka sends again.
RETRIED_BY_LIBRDKAFKA = {2}

#: Refusals of the client, which is then replaced, and not of its records. librdkafka goes on after
#: each, with new sequence numbers.
OF_EVERYTHING = {"kafka-python": {31, 35, 53}, "confluent": set[int]()}

#: It is unknown whether the batch was written, and the client does not send it again.
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

#: The errors of these from which librdkafka recovers if they are the first answer to a batch: this
#: producer had written nothing for a long time.
RECOVERED_BY_LIBRDKAFKA = {59}

#: How often in a row the two brokers answer with the error.
TIMES = {"once": 1, "repeated": 6}


def answering(cluster: MockCluster, code: int, times: int) -> During:
    """Have the brokers answer with the errors after a quarter of the load, and correctly after four
    fifths."""

    async def during(running: Running) -> None:
        await running.until_settled(0.25)
        cluster.answer_any(code, times)
        running.admit(0.8)
        await running.until_settled(0.8)
        cluster.forget_answers()
        # After TOPIC_AUTHORIZATION_FAILED librdkafka refuses all records of the topic until it
        # requests the metadata again, a second later or more.
        await running.admit_until_acknowledged()
        running.admit(1)

    return during


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("code", RETRIED, ids=RETRIED.get)
async def test_a_temporary_error(
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
    ran, report = await run(cell, anyio_backend, driver, settings, topic, during)
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
async def test_an_answer_that_leaves_the_outcome_unknown(
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
    """Check that the records after the fault were delivered."""
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
    """The broker already has the batch from an attempt whose answer was lost.

    The mock writes the batch, withholds the answer until the client stops waiting for it, and calls
    the next batch a duplicate. So only one request may be in flight.
    """

    # Each broker leads one partition from the start. The mock calls the next batch a duplicate,
    # even a new batch of another partition.
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


# --- late and missing answers ------------ -------------------------------------------------------


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
    """A written batch is refused when it is sent again, for example because rights were removed."""

    async def during(running: Running) -> None:
        await until_both_lead(running, fresh, topic)
        fresh.answer_next(1, 0, rtt_ms=NEVER_MS)
        for _ in range(12):
            # Up to four answers after the late one are lost as well, because five requests may be
            # in flight on a connection.
            fresh.answer_next(1, 29)
        running.admit(1)

    settings = settings_for(fresh, driver, properties={"request_timeout_ms": 300})
    cell = "a written batch whose answer is lost, then TOPIC_AUTHORIZATION_FAILED"
    # Time for the second answer, even if a busy machine sends the load in few requests.
    _, report = await run(
        cell, anyio_backend, driver, settings, topic, during, seconds=max(2.0, SECONDS)
    )
    assert report.failures > 0


async def test_an_answer_that_is_lost_and_a_refusal_of_other_records(
    request: pytest.FixtureRequest,
    fresh: MockCluster,
    topic: str,
    anyio_backend: str,
    driver: DriverName,
) -> None:
    """One partition has a gap in its sequence numbers, while records of another have to be sent
    again."""
    note = ""
    if driver == "confluent":
        # It fails only sometimes, so it may also pass.
        note = (
            "After a refusal, librdkafka gives new sequence numbers to all records that it still "
            "has, in all partitions. If one of these records was already written and the answer "
            "was lost, the broker does not recognize that it gets the same record again."
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


#: With 2, all brokers: one goes down, and comes back, a moment before the other.
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
            # The other broker gets and writes half of them.
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
    """The cluster does not know the topic for a while. The test makes the client request its
    metadata."""

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


async def test_producer_ids_are_not_available_at_first(
    fresh: MockCluster, topic: str, anyio_backend: str, driver: DriverName
) -> None:
    """The first client and its replacement get no producer id at once."""
    # CLUSTER_AUTHORIZATION_FAILED. Only OUT_OF_ORDER_SEQUENCE_NUMBER breaks librdkafka.
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
