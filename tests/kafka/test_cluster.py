"""Tests of the Kafka harness on which the other tests in this directory depend."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from anyio_sendproducer import RecordMetadata
from tests.support import kafka_home, kafka_wire
from tests.support.brief import IN_FULL
from tests.support.calls import raising
from tests.support.kafka_cluster import KafkaCluster, KafkaClusterError, Listener, kafka_cluster
from tests.support.kafka_home import KafkaMissing
from tests.support.paths import ROOT
from tests.support.read_back import read_back
from tests.support.registry import running_registry
from tests.support.waiting import blocking_until

#: The time limit in seconds of each wait. On a busy machine a start of pytest or Java takes a tenth
#: of it.
PATIENCE = 120.0


def write(cluster: KafkaCluster, topic: str, value: bytes, partition: int = 0) -> RecordMetadata:
    """Have another client write a record, acknowledged by all replicas."""
    told: list[confluent_kafka.Message] = []
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "acks": "all",
            "log_level": 0,
            # How long it keeps requesting an unknown topic.
            "topic.metadata.propagation.max.ms": 200,
        }
    )
    producer.produce(
        topic, value, partition=partition, on_delivery=lambda _, message: told.append(message)
    )
    assert producer.flush(PATIENCE) == 0
    (message,) = told
    error = message.error()
    if error is not None:
        raise confluent_kafka.KafkaException(error)
    return RecordMetadata(topic, partition, message.offset(), None, None, None)


def values(cluster: KafkaCluster, written: list[RecordMetadata]) -> list[bytes | None]:
    """Read the values of these records back."""
    found = read_back(cluster.bootstrap_servers, written)
    return [found[one].value for one in written]


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of all temporary files, also of child processes. It has no other files."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.usefixtures("shared_kafka")  # which prepares what is made once in a checkout
def test_a_cluster_leaves_nothing_behind_and_advertises_what_it_is_asked_to(
    temporary: Path,
) -> None:
    def advertised(broker: int, port: int) -> str:
        return f"elsewhere-{broker}.test:{port}"

    with kafka_cluster(listeners=[Listener("PROXY", advertised=advertised)]) as cluster:
        pids = cluster.pids()
        assert len(pids) == 1
        assert cluster.version.startswith("4.")
        assert cluster.brokers == (1,)
        assert len(list(temporary.iterdir())) == 1
        port = int(cluster.bootstrap_servers.rpartition(":")[2])
        assert 1 in kafka_wire.metadata(port).brokers
        port = int(cluster.address(1, "PROXY").rpartition(":")[2])
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": cluster.bootstrap("PROXY"), "log_level": 0}
        )
        (broker,) = producer.list_topics(timeout=PATIENCE).brokers.values()
        assert (broker.host, broker.port) == ("elsewhere-1.test", port)
    assert not any(map(alive, pids))
    assert not list(temporary.iterdir())


def test_topics(shared_kafka: KafkaCluster) -> None:
    topic = shared_kafka.create_topic(partitions=2)
    assert shared_kafka.leader_of(topic, 1) == 1
    assert shared_kafka.leader_of(topic, 2) is None
    shared_kafka.add_partitions(topic, 3)
    assert shared_kafka.leader_of(topic, 2) == 1
    assert values(shared_kafka, [write(shared_kafka, topic, b"there", 2)]) == [b"there"]
    with pytest.raises(confluent_kafka.KafkaException, match="already exists"):
        shared_kafka.create_topic(topic)
    shared_kafka.delete_topic(topic)
    assert shared_kafka.leader_of(topic) is None


def test_settings_of_a_topic(shared_kafka: KafkaCluster) -> None:
    topic = shared_kafka.create_topic(configs={"max.message.bytes": 1_000})

    def refused() -> bool:
        try:
            write(shared_kafka, topic, bytes(5_000))
        except confluent_kafka.KafkaException as error:
            return "MSG_SIZE_TOO_LARGE" in str(error)
        return False

    assert refused()
    shared_kafka.alter_topic(topic, {"max.message.bytes": 10_000})
    blocking_until(lambda: not refused(), PATIENCE)
    shared_kafka.alter_topic(topic, {"max.message.bytes": 1_000})
    blocking_until(refused, PATIENCE)
    shared_kafka.alter_topic(topic, {"max.message.bytes": None})
    blocking_until(lambda: not refused(), PATIENCE)


def test_a_metadata_request_creates_no_topic(shared_kafka: KafkaCluster) -> None:
    with pytest.raises(confluent_kafka.KafkaException, match="UNKNOWN_TOPIC"):
        write(shared_kafka, "nobody-made-it", b"")
    assert shared_kafka.leader_of("nobody-made-it") is None


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_broker_that_ended_comes_back_with_its_data(end: str) -> None:
    with kafka_cluster() as cluster:
        topic = cluster.create_topic()
        written = [write(cluster, topic, b"before")]
        pid, address = cluster.pid(1), cluster.bootstrap_servers
        (cluster.kill if end == "kill" else cluster.stop)(1)
        assert not cluster.running(1)
        assert not alive(pid)
        with pytest.raises(KafkaClusterError, match="does not run"):
            cluster.kill(1)
        with pytest.raises(KafkaClusterError, match="no broker runs"):
            cluster.leader_of(topic)
        # The broker outlives the thread that starts it.
        thread = threading.Thread(target=cluster.start, args=(1,))
        thread.start()
        thread.join()
        assert cluster.running(1)
        assert (cluster.pid(1), cluster.bootstrap_servers) != (pid, address)
        assert cluster.bootstrap_servers == address
        with pytest.raises(KafkaClusterError, match="runs already"):
            cluster.start(1)
        written.append(write(cluster, topic, b"after"))
        assert [one.offset for one in written] == [0, 1]
        assert values(cluster, written) == [b"before", b"after"]


def test_a_paused_broker_answers_when_it_is_resumed(three_brokers: KafkaCluster) -> None:
    topic = three_brokers.create_topic(replicas=[[3, 1]])
    port = int(three_brokers.address(3).rpartition(":")[2])
    three_brokers.pause(3)
    assert three_brokers.running(3)
    with socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.settimeout(0.3)
        # A request for the versions of all requests.
        connection.sendall(b"\0\0\0\x0a\0\x12\0\0\0\0\0\1\xff\xff")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        three_brokers.resume(3)
        connection.settimeout(PATIENCE)
        assert connection.recv(1)
    three_brokers.wait_until_ready()
    assert values(three_brokers, [write(three_brokers, topic, b"on")]) == [b"on"]


def test_a_paused_leader_is_replaced(three_brokers: KafkaCluster) -> None:
    topic = three_brokers.create_topic(replicas=[[3, 1, 2]])
    assert three_brokers.leader_of(topic) == 3
    three_brokers.pause(3)
    assert three_brokers.wait_for_leader(topic, other_than=3) in {1, 2}
    three_brokers.resume(3)
    three_brokers.wait_until_in_sync(topic)
    assert three_brokers.in_sync(topic) == {1, 2, 3}


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_any_broker_can_end_and_another_leads(three_brokers: KafkaCluster, end: str) -> None:
    for broker in three_brokers.brokers if IN_FULL else (2,):
        others = [other for other in three_brokers.brokers if other != broker]
        topic = three_brokers.create_topic(replicas=[[broker, *others]])
        written = [write(three_brokers, topic, b"before")]
        (three_brokers.kill if end == "kill" else three_brokers.stop)(broker)
        leader = three_brokers.wait_for_leader(topic, other_than=broker)
        assert leader in others
        written.append(write(three_brokers, topic, b"meanwhile"))
        three_brokers.start(broker)
        three_brokers.wait_until_in_sync(topic)
        assert three_brokers.in_sync(topic) == set(three_brokers.brokers)
        # It does not become the leader again by itself.
        assert three_brokers.leader_of(topic) == leader
        assert values(three_brokers, written) == [b"before", b"meanwhile"]


def test_all_brokers_can_be_down(three_brokers: KafkaCluster) -> None:
    topic = three_brokers.create_topic(partitions=3)
    written = [write(three_brokers, topic, b"%d" % number, number) for number in range(3)]
    for broker in three_brokers.brokers:
        three_brokers.kill(broker)
    assert len(three_brokers.pids()) == 1  # the controller
    for broker in three_brokers.brokers:
        three_brokers.start(broker, wait=False)
    three_brokers.wait_until_ready()
    three_brokers.wait_until_in_sync(topic)
    assert values(three_brokers, written) == [b"0", b"1", b"2"]


def test_leaders_move(three_brokers: KafkaCluster) -> None:
    everywhere = three_brokers.create_topic(replicas=[[1, 2, 3]])
    alone = three_brokers.create_topic(replicas=[[1]])
    written = [write(three_brokers, topic, b"here") for topic in (everywhere, alone)]
    for broker in (2, 2, 3, 1):
        for topic in (everywhere, alone):
            three_brokers.move_leader(topic, 0, broker)
            assert three_brokers.leader_of(topic) == broker
    assert three_brokers.in_sync(everywhere) == {1, 2, 3}
    assert three_brokers.in_sync(alone) == {1}
    assert values(three_brokers, written) == [b"here", b"here"]


def test_a_quota_throttles_a_client(shared_kafka: KafkaCluster) -> None:
    topic = shared_kafka.create_topic()

    def throttled(client_id: str) -> list[int]:
        """The throttle time that the broker reported to this client, in milliseconds."""
        told: list[int] = []

        def tell(event: Any) -> None:
            told.append(event.throttle_time)

        producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": shared_kafka.bootstrap_servers,
                "client.id": client_id,
                "throttle_cb": tell,
            }
        )
        for _ in range(5):
            producer.produce(topic, bytes(20_000))
            assert producer.flush(PATIENCE) == 0
        return told

    assert not throttled("bounded")
    shared_kafka.set_quota(client_id="bounded", producer_byte_rate=50_000)
    assert not throttled("free")
    blocking_until(lambda: any(milliseconds > 0 for milliseconds in throttled("bounded")), PATIENCE)
    shared_kafka.set_quota(client_id="bounded", producer_byte_rate=None)


def test_a_broken_setting_is_an_error_with_the_log(temporary: Path) -> None:
    with (
        pytest.raises(KafkaClusterError, match=r"(?s)ended by itself.*num\.io\.threads"),
        kafka_cluster(properties={"num.io.threads": "none"}),
    ):
        raise AssertionError
    assert not list(temporary.iterdir())


def test_a_broker_that_can_not_start_is_an_error_with_the_log() -> None:
    properties = {"authorizer.class.name": "there.is.no.such.Class"}
    with (
        pytest.raises(KafkaClusterError, match=r"(?s)ended by itself.*there\.is\.no\.such\.Class"),
        kafka_cluster(properties=properties),
    ):
        raise AssertionError


def test_a_broker_that_ends_by_itself_is_an_error() -> None:
    with raising(KafkaClusterError, r"(?s)node 1 .* ended by itself"), kafka_cluster() as cluster:
        os.kill(cluster.pid(1), signal.SIGKILL)
        blocking_until(lambda: not cluster.running(1), PATIENCE)


def test_an_error_of_the_block_propagates_with_a_note_that_a_broker_ended() -> None:
    def fail() -> None:
        raise LookupError

    with raising(LookupError) as caught, kafka_cluster() as cluster:
        os.kill(cluster.pid(1), signal.SIGKILL)
        blocking_until(lambda: not cluster.running(1), PATIENCE)
        fail()
    (note,) = caught.value.__dict__["__notes__"]
    assert "node 1" in note


#: A program that runs a cluster, reports that, and waits until it is ended.
WAITING = """
import signal, sys, threading
from tests.support.kafka_cluster import kafka_cluster
# A process in the background of a shell inherits that it ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
with kafka_cluster() as cluster:
    print(*cluster.pids(), flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, marks=pytest.mark.nightly),
        signal.SIGKILL,
    ],
)
def test_nothing_is_left_when_the_test_run_is_ended(
    temporary: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        assert run.stdout is not None
        pids = [int(pid) for pid in run.stdout.readline().split()]
        assert len(pids) == 1
        assert all(map(alive, pids))
        run.send_signal(number)
    # A broker whose files are deleted also ends by itself, but later.
    blocking_until(lambda: not any(map(alive, pids)) and not list(temporary.iterdir()), PATIENCE)


# --- the installation ----------------------------------------------------------------------------


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without Java, Maven and Kafka. Returns: the directory of its programs."""
    for name in ("KAFKA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAFKA_CACHE", str(tmp_path / "cache"))
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


def put(programs: Path, name: str, script: str) -> None:
    program = programs / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_error_names_the_missing_program(nothing_here: Path) -> None:
    find = kafka_home.kafka_home.__wrapped__
    with pytest.raises(KafkaMissing, match="install Java 17"):
        find()
    put(nothing_here, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    with pytest.raises(KafkaMissing, match=r"Java 17 or later is needed; .*11\.0\.2"):
        find()
    put(nothing_here, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    with pytest.raises(KafkaMissing, match="install Maven, or set KAFKA_HOME"):
        find()
    put(nothing_here, "mvn", "echo 'it is not to be had'; exit 1")
    with pytest.raises(KafkaMissing, match="it is not to be had"):
        find()


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_without_java_the_tests_are_skipped_and_in_ci_they_fail(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", ci)
    one_test = f"{__file__}::test_topics"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one_test],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert outcome in done.stdout.splitlines()[-1]
    assert "Apache Kafka can't be run: no java" in done.stdout
    assert bool(done.returncode) is bool(ci)


@pytest.mark.usefixtures("nothing_here")
@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_without_maven_tests_with_a_registry_are_skipped_and_in_ci_they_fail(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with (
        pytest.raises(outcome, match="Apicurio Registry can't be run: no mvn on the PATH"),
        running_registry(),
    ):
        pass


def test_kafka_home_is_used_unchanged(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = kafka_home.kafka_home.__wrapped__
    put(nothing_here, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    libraries = tmp_path / "libs"
    libraries.mkdir()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(KafkaMissing, match="no Apache Kafka 4"):
        find()
    (libraries / "kafka-clients-3.9.1.jar").touch()
    with pytest.raises(KafkaMissing, match=r"found 3\.9\.1"):
        find()
    (libraries / "kafka-clients-3.9.1.jar").rename(libraries / "kafka-clients-4.1.0.jar")
    (libraries / "other-1.jar").touch()
    found = find()
    assert found.version == "4.1.0"
    assert found.class_path == os.pathsep.join(
        [str(libraries / "kafka-clients-4.1.0.jar"), str(libraries / "other-1.jar")]
    )


def test_kafka_is_fetched_once(nothing_here: Path, tmp_path: Path) -> None:
    find = kafka_home.kafka_home.__wrapped__
    put(nothing_here, "java", "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2")
    put(
        nothing_here,
        "mvn",
        'for one in "$@"; do case $one in -DoutputDirectory=*) directory=${one#*=};; esac; done\n'
        '/bin/mkdir "$directory" && : > "$directory/kafka-clients-4.4.0.jar"',
    )
    found = find()
    assert found.version == "4.4.0"
    put(nothing_here, "mvn", "exit 1")
    assert find() == found
    assert [path.name for path in (tmp_path / "cache").glob("fetching-*")] == []
