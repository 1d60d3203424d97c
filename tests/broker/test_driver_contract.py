"""Every driver of the package fulfils the drivers' contract, including the fake driver."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
)
from anyio_sendproducer._hooks import Partitioner
from anyio_sendproducer.drivers import Driver, DriverFactory, DriverName
from anyio_sendproducer.drivers.kafka_python._driver import KafkaPythonDriver
from anyio_sendproducer.drivers.librdkafka._driver import ConfluentDriver
from anyio_sendproducer.testing import FakeDriver, blocking_embedded_broker
from tests.support.asked_driver import AskedDriver
from tests.support.driver_contract import NO_SUCH_PARTITION, PROMISES, Rig
from tests.support.recorder import PATIENCE


class FakeRig:
    keeps = False

    def __init__(self, fake: FakeDriver) -> None:
        self.fake = fake
        self.refused: list[ProducerRecord[Any, Any]] = []
        self.fake.judge = self._judge

    def _judge(self, record: ProducerRecord[Any, Any]) -> DeliveryError | None:
        if record not in self.refused:
            return None
        return RecordRejected("refused", record=record, persistence=Persistence.NOT_PERSISTED)

    def make(self, partitioner: Partitioner | None = None) -> Driver:
        return self.fake(
            ProducerSettings(bootstrap_servers="fake.invalid:1", partitioner=partitioner)
        )

    def make_unreachable(self, start_timeout: float) -> Driver:
        self.fake.open_error = ProducerStartError(f"nobody there within {start_timeout} s")
        return self.fake

    def make_unanswered(self) -> Driver:
        self.fake.on_open.shut()
        return self.fake

    def hide(self, topic: str) -> str:
        self.fake.unknown_topics.add(topic)
        return topic

    def show(self, topic: str) -> None:
        self.fake.learn(topic)

    def freeze(self) -> None:
        self.fake.manual = True

    def refuse(self, record: ProducerRecord[Any, Any]) -> None:
        self.refused.append(record)


class KafkaPythonRig:
    keeps = False
    make_driver: DriverFactory = KafkaPythonDriver

    def __init__(self, address: str, freeze: Callable[[], None]) -> None:
        self._address = address
        self.freeze = freeze
        self._sockets = contextlib.ExitStack()

    def close(self) -> None:
        self._sockets.close()

    def _make(self, address: str, start_timeout: float = PATIENCE, **changes: Any) -> Driver:
        return type(self).make_driver(
            ProducerSettings(bootstrap_servers=address, start_timeout=start_timeout, **changes)
        )

    def make(self, partitioner: Partitioner | None = None) -> Driver:
        return self._make(self._address, partitioner=partitioner)

    def make_unreachable(self, start_timeout: float) -> Driver:
        # Bound and not listening, so the port is reserved and refuses connections.
        bound = self._sockets.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        return self._make(f"127.0.0.1:{bound.getsockname()[1]}", start_timeout)

    def make_unanswered(self) -> Driver:
        silent = self._sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        return self._make(f"127.0.0.1:{silent.getsockname()[1]}")

    def hide(self, topic: str) -> str:
        # The first request creates it.
        return f"{topic}-{uuid.uuid4().hex}"

    def show(self, topic: str) -> None:
        pass

    def refuse(self, record: ProducerRecord[Any, Any]) -> None:
        assert record.partition == NO_SUCH_PARTITION


class ConfluentRig(KafkaPythonRig):
    keeps = True
    make_driver: DriverFactory = ConfluentDriver


#: The rig of each driver of the package.
RIGS: dict[str, type[KafkaPythonRig]] = {"kafka-python": KafkaPythonRig, "confluent": ConfluentRig}


@pytest.fixture(params=["fake", "asked fake", *get_args(DriverName)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        yield FakeRig(FakeDriver())
        return
    if request.param == "asked fake":
        yield FakeRig(AskedDriver())
        return
    with blocking_embedded_broker() as broker:
        real = RIGS[request.param](broker.bootstrap_servers, broker.pause)
        try:
            yield real
        finally:
            real.close()


@pytest.mark.parametrize("promise", PROMISES)
def test_the_driver_keeps_its_promise(rig: Rig, promise: str) -> None:
    PROMISES[promise](rig)
