"""The kafka-python driver on a fake client: state that two threads change."""

from __future__ import annotations

import threading
import types
from typing import Any

import pytest
from kafka.errors import IncompatibleBrokerVersion, KafkaConnectionError, KafkaTimeoutError

from anyio_sendproducer import ProducerSettings, SendProducerError
from anyio_sendproducer.drivers.kafka_python import _describe
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.kafka_python._network import NetClient
from anyio_sendproducer.testing import Gate
from tests.support.fake_kafka_client import opened_on
from tests.support.recorder import PATIENCE


class Producer:
    """A client whose `close` stops at a gate."""

    def __init__(self) -> None:
        self.closed: list[float] = []
        self.on_close = Gate()

    def close(self, timeout: float) -> None:
        self.closed.append(timeout)
        self.on_close.pass_through()


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def driver(producer: Producer) -> KafkaPythonDriver:
    ended = threading.Event()
    ended.set()
    client: Any = types.SimpleNamespace(
        is_closing=False, is_closed=ended, closed_by=threading.Thread()
    )
    client.closed_by.start()
    return opened_on(ProducerSettings(bootstrap_servers="broker.invalid:1"), producer, client)


def test_two_threads_that_close_the_driver_close_the_client_once(
    driver: KafkaPythonDriver, producer: Producer
) -> None:
    """The driver thread is replacing the client when the closing thread calls `close`."""
    producer.on_close.shut()
    first = threading.Thread(target=driver.close, args=(0,))
    first.start()
    producer.on_close.wait_until_someone_waits(PATIENCE)
    client: Any = driver._ready().client
    assert client.is_closing  # this ends every wait of the client's thread
    driver.close(5)
    assert producer.closed == [0]
    producer.on_close.open()
    first.join(PATIENCE)
    assert not first.is_alive()
    assert client.is_closing


def test_a_driver_that_is_being_opened_says_why_no_broker_answers() -> None:
    driver = KafkaPythonDriver(ProducerSettings(bootstrap_servers="127.0.0.1:1"))
    driver._client = client = NetClient(bootstrap_servers="127.0.0.1:1")
    assert driver.last_error() is None  # no attempt has ended
    manager: Any = client.manager
    (broker,) = manager._addresses
    manager._failed(broker.node_id, KafkaConnectionError("refused"))
    assert str(driver.last_error()) == "no broker answered: 127.0.0.1:1: refused"
    driver.close(0)
    # The error of the attempt has the reason.
    assert driver.last_error() is None
    client.close()


def test_a_bootstrap_that_takes_too_long_times_out() -> None:
    client: Any = NetClient(bootstrap_servers="127.0.0.1:1")
    future = client.manager.bootstrap_async(timeout_ms=0)
    while not future.is_done:
        client.poll(timeout_ms=10, future=future)
    assert isinstance(future.exception, KafkaTimeoutError)
    client.close()


@pytest.mark.parametrize("text", ["it has no brokers", ""])
def test_an_error_of_the_admin_client_is_translated(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(**_: Any) -> Any:
        raise IncompatibleBrokerVersion(text) if text else IncompatibleBrokerVersion

    monkeypatch.setattr(_describe, "KafkaAdminClient", make)
    monkeypatch.setattr(make, "DEFAULT_CONFIG", {}, raising=False)
    with pytest.raises(SendProducerError) as caught:
        _describe.describe(ProducerSettings(bootstrap_servers="127.0.0.1:1"), versions=True)
    said = f"IncompatibleBrokerVersion: {text}" if text else "IncompatibleBrokerVersion"
    assert str(caught.value) == f"the cluster did not describe itself: {said}"
