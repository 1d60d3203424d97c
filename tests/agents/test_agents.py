"""A producer in a process with a tracing agent, which replaces classes and methods of a client.

Each case runs a program in its own process, because an agent changes the process permanently.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

from anyio_sendproducer import RecordMetadata
from anyio_sendproducer.testing import blocking_embedded_broker
from tests.agents.sending import records
from tests.support.read_back import read_back

PROGRAM: Final = str(Path(__file__).with_name("sending.py"))

#: Instruments both clients, and runs a program with its arguments.
OPENTELEMETRY: Final = """
import runpy, sys
from opentelemetry import trace
from opentelemetry.instrumentation.confluent_kafka import ConfluentKafkaInstrumentor
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
KafkaInstrumentor().instrument()
ConfluentKafkaInstrumentor().instrument()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: Patches as `ddtrace-run` does, without its wrapper process.
DATADOG: Final = """
import ddtrace.auto
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: Runs a program in a background task, because New Relic's hooks ignore code outside of one.
#: Nothing is sent to New Relic.
NEW_RELIC: Final = """
import runpy, sys
import newrelic.agent
newrelic.agent.initialize()
application = newrelic.agent.register_application(timeout=0)
sys.argv = sys.argv[1:]
with newrelic.agent.BackgroundTask(application, name="sending"):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Agent(NamedTuple):
    """How to run a program with an agent."""

    launcher: str
    #: The drivers whose clients the agent replaces.
    replaces: frozenset[str]
    environment: Mapping[str, str] = MappingProxyType({})


BOTH: Final = frozenset({"kafka-python", "confluent"})

AGENTS: Final = {
    "opentelemetry": Agent(OPENTELEMETRY, BOTH),
    "datadog": Agent(
        DATADOG,
        frozenset({"confluent"}),
        {
            "DD_DATA_STREAMS_ENABLED": "true",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
            "DD_KAFKA_PROPAGATION_ENABLED": "true",
            "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        },
    ),
    "new-relic": Agent(
        NEW_RELIC,
        BOTH,
        {
            "NEW_RELIC_APP_NAME": "sending",
            "NEW_RELIC_DEVELOPER_MODE": "true",
            "NEW_RELIC_LICENSE_KEY": "0" * 40,
            "NEW_RELIC_LOG": "stderr",
        },
    ),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of one broker for all cases. Each case has its own topic."""
    with blocking_embedded_broker() as broker:
        yield broker.bootstrap_servers


@pytest.mark.parametrize(
    ("loop", "transactional"),
    [("asyncio", False), ("trio", False), ("asyncio", True)],
    ids=["asyncio", "trio", "transactional"],
)
@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_does_not_change_the_records(
    agent: str, driver: str, loop: str, transactional: bool, address: str
) -> None:
    run_under = AGENTS[agent]
    topic = f"topic-{uuid.uuid4().hex}"
    arguments = [address, driver, loop, topic, "yes" if transactional else "no"]
    ran = subprocess.run(
        [sys.executable, "-c", run_under.launcher, PROGRAM, *arguments],
        env={**os.environ, **run_under.environment},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    printed = json.loads(ran.stdout)
    assert set(printed["replaced"]) == run_under.replaces
    sent = [*records(topic, driver)] * (1 if transactional else 2)
    places = [RecordMetadata(topic, 0, offset, None, None, None) for offset in printed["offsets"]]
    assert len(places) == len(sent)
    found = read_back(address, places)
    for record, place in zip(sent, places, strict=True):
        read = found[place]
        own = [header for header in read.headers if header[0] in {"name", "other"}]
        assert (read.key, read.value, own) == (record.key, record.value, [*record.headers])
        if record.timestamp_ms is not None:
            assert read.timestamp_ms == record.timestamp_ms
        # The span that the agent makes for the record.
        is_traced = any(name == "traceparent" for name, _ in read.headers)
        assert is_traced == (agent == "opentelemetry" and driver == "kafka-python")
