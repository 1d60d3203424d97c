"""The embedded broker for code that does not run on its loop."""

from __future__ import annotations

import anyio.to_thread
import pytest

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer.testing import (
    EmbeddedBrokerError,
    blocking_embedded_broker,
)
from tests.support.ports import lasting_port


def test_it_runs_is_paused_and_killed() -> None:
    with blocking_embedded_broker(port=lasting_port()) as broker:
        assert str(broker) == broker.bootstrap_servers == f"127.0.0.1:{broker.port}"
        assert repr(broker) == f"BlockingEmbeddedBroker(port={broker.port}, pid={broker.pid})"
        assert "listening on" in broker.output()
        broker.pause()
        runs = broker.running
        assert runs
        broker.resume()
        broker.kill()
        broker.kill()
        runs = broker.running
        assert not runs
        with pytest.raises(EmbeddedBrokerError, match="has ended"):
            broker.pause()
        with blocking_embedded_broker(port=broker.port) as other:
            assert other.port == broker.port


async def test_it_serves_any_loop() -> None:
    with blocking_embedded_broker() as broker:
        settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)
        async with open_send_producer(settings) as producer:
            assert (await producer.send(ProducerRecord("t", b"v", partition=0))).offset == 0
        await anyio.to_thread.run_sync(broker.kill)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"^port must be"), blocking_embedded_broker(port=0):
        pytest.fail("nothing was to be started")
