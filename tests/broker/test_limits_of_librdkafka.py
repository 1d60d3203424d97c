"""Attacks on librdkafka that cannot be prevented: a broker ends the process, or starts threads.

SECURITY.md and the guide to the drivers describe them. If a test here fails, a release has fixed
the fault. Then remove it from both.
"""

from __future__ import annotations

import json
import ssl
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from anyio_sendproducer import ProducerSettings, open_send_producer
from tests.support.kafka_security import Authority
from tests.support.scripted_broker import (
    API_VERSIONS,
    FIND_COORDINATOR,
    METADATA,
    SASL_AUTHENTICATE,
    Answer,
    scripted_broker,
)
from tests.support.waiting import until

#: Asks a broker for its metadata, until there is an answer, or TLS fails. Then it waits until so
#: many threads run. No core dump is written.
CLIENT = """
import json, os, resource, sys, time
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import confluent_kafka
errors = []
config = {"bootstrap.servers": sys.argv[1], "log_level": 0, "error_cb": errors.append}
client = confluent_kafka.Producer({**config, **json.loads(sys.argv[2])})
end = time.monotonic() + 60
while True:
    try:
        client.list_topics("orders", timeout=0.2)
        break
    except confluent_kafka.KafkaException as error:
        client.poll(0)
        failed = [one for one in errors if one.code() == confluent_kafka.KafkaError._SSL]
        if failed or time.monotonic() > end:
            sys.exit(f"it survived: {failed or error}")
while (count := len(os.listdir("/proc/self/task"))) < int(sys.argv[3]) and time.monotonic() < end:
    time.sleep(0.05)
print(count)
"""


def answer(*parts: bytes) -> Answer:
    body = b"".join(parts)
    return lambda correlation: struct.pack(">i", 4 + len(body)) + correlation + body


NULL, ONE = struct.pack(">i", -1), struct.pack(">i", 1)
NULL_STRING = struct.pack(">h", -1)
NO_ERROR, NO_PAUSE = struct.pack(">h", 0), struct.pack(">i", 0)
NO_BROKERS, NO_TOPICS = struct.pack(">i", 0), struct.pack(">i", 0)
#: Brokers, the cluster's id, the controller, and topics are in the metadata in this order.
ANSWERS = {
    "no list of versions": (API_VERSIONS, answer(NO_ERROR, b"\0", NO_PAUSE, b"\0")),
    "no list of brokers": (METADATA, answer(NO_PAUSE, NULL, NULL_STRING, ONE, NO_TOPICS)),
    "no host of a broker": (
        METADATA,
        answer(
            *(NO_PAUSE, ONE, ONE, NULL_STRING, struct.pack(">i", 9092), NULL_STRING),
            *(NULL_STRING, ONE, NO_TOPICS),
        ),
    ),
    # This one ends the process in confluent-kafka's code, which makes a str of it.
    "a cluster id that is not UTF-8": (
        METADATA,
        answer(
            *(NO_PAUSE, NO_BROKERS, struct.pack(">h2s", 2, b"\xff\xfe"), ONE),
            *(ONE, NO_ERROR, struct.pack(">h6s", 6, b"orders"), b"\0", struct.pack(">i", 0)),
        ),
    ),
    "no name of a topic": (
        METADATA,
        answer(
            *(NO_PAUSE, NO_BROKERS, NULL_STRING, ONE),
            *(ONE, NO_ERROR, NULL_STRING, b"\0", struct.pack(">i", 0)),
        ),
    ),
    "no list of partitions": (
        METADATA,
        answer(
            *(NO_PAUSE, NO_BROKERS, NULL_STRING, ONE),
            *(ONE, NO_ERROR, struct.pack(">h6s", 6, b"orders"), b"\0", NULL),
        ),
    ),
}


async def run_client(
    address: str, config: Mapping[str, str] | None = None, threads: int = 0
) -> tuple[int, str]:
    """Run it in a process of its own. Returns: its exit code and its output."""
    arguments = [address, json.dumps(config or {}), str(threads)]
    process = await anyio.run_process([sys.executable, "-c", CLIENT, *arguments], check=False)
    return process.returncode, (process.stdout + process.stderr).decode(errors="replace")


@pytest.mark.skipif(sys.platform != "linux", reason="tells how a process ends on Linux")
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_few_bytes_of_a_broker_end_the_process(name: str) -> None:
    api, said = ANSWERS[name]
    with scripted_broker(answers={api: said}) as broker:
        code, printed = await run_client(broker.address)
    # By SIGABRT, from an assertion, or SIGSEGV.
    assert code < 0, f"librdkafka survives it: {printed}"


async def test_with_tls_an_untrusted_server_can_not_answer(tmp_path: Path) -> None:
    trusted = Authority(tmp_path / "trusted")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(tmp_path / "stranger").issue().both)
    with scripted_broker(context, answers=dict(ANSWERS.values())) as broker:
        config = {"security.protocol": "ssl", "ssl.ca.location": str(trusted.file)}
        code, printed = await run_client(broker.address, config)
        assert broker.connections > 0
        assert broker.requests == []
    assert code == 1
    assert "it survived" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
async def test_each_broker_in_the_metadata_is_a_thread() -> None:
    with scripted_broker() as broker:
        others = [(number, "127.0.0.1", 1) for number in range(2, 202)]
        broker.brokers = [(1, broker.host, broker.port), *others]
        code, printed = await run_client(broker.address, threads=201)
    assert code == 0, printed
    assert int(printed) >= 201


async def test_it_logs_in_as_often_as_a_broker_demands() -> None:
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": "hunter2",
    }
    with scripted_broker(mechanisms=("PLAIN",), users={"me": "hunter2"}, session_ms=1) as broker:
        made = ProducerSettings(bootstrap_servers=broker.address, properties=login)
        async with open_send_producer(made, driver="confluent"):
            await until(lambda: broker.requests.count(SASL_AUTHENTICATE) > 100)


async def test_it_requests_a_coordinator_that_the_metadata_lack_without_a_pause() -> None:
    # An answer has the pause, an error, its text, and a broker's number, host and port.
    host = b"127.0.0.1"
    coordinator = struct.pack(f">ihhih{len(host)}si", 0, 0, -1, 9, len(host), host, 1)
    with scripted_broker(answers={FIND_COORDINATOR: answer(coordinator)}) as broker:
        made = ProducerSettings(bootstrap_servers=broker.address, transactional_id="t")

        async def open_producer() -> None:
            async with open_send_producer(made, driver="confluent"):
                raise AssertionError("it has no coordinator")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_producer)
            await until(lambda: broker.requests.count(FIND_COORDINATOR) > 500)
            tasks.cancel_scope.cancel()
