"""One tree of loggers, whose lines have fields but no content of records."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Sequence
from typing import Any, cast

import pytest

from anyio_sendproducer import (
    DeliveryError,
    MultiDeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SendProducerError,
    SerializationFailed,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.drivers.kafka_python._errors import not_taken
from anyio_sendproducer.drivers.kafka_python._partitioning import NoPartition
from anyio_sendproducer.telemetry import (
    Accepted,
    Batch,
    BatchEnded,
    Closing,
    Delivered,
    Failed,
    GenerationEnded,
    GenerationOpened,
    HandedOver,
    LoggingObserver,
    Refused,
    Withdrawn,
)
from anyio_sendproducer.telemetry._logging import describe, error_type
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import generation, raising, record, refuse, taken
from tests.support.waiting import until

PLAIN = frozenset(vars(logging.makeLogRecord({})))
OF_A_RECORD: Any = {"record": record(), "persistence": Persistence.NOT_PERSISTED}


def fields(line: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line that not every log record has."""
    extra = {name: value for name, value in vars(line).items() if name not in PLAIN}
    extra.pop("message", None)
    return extra


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="anyio_sendproducer")
    return caplog


async def test_the_life_of_a_record_line_by_line(
    settings: ProducerSettings, fake: FakeDriver, lines: pytest.LogCaptureFixture
) -> None:
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as producer:
        await producer.send(record(b"secret", key=b"secret"))
    assert {line.name for line in lines.records} == {"anyio_sendproducer.events"}
    assert [fields(line)["event.name"] for line in lines.records] == [
        f"anyio_sendproducer.{name}"
        for name in (
            "generation_opened",
            "accepted",
            "handed_over",
            "delivered",
            "closing",
            "generation_ended",
        )
    ]
    delivered = fields(lines.records[3])
    assert delivered.pop("anyio_sendproducer.duration") >= 0
    number = delivered.pop("anyio_sendproducer.record")
    assert delivered == {
        "event.name": "anyio_sendproducer.delivered",
        "messaging.system": "kafka",
        "messaging.destination.name": "t",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "anyio_sendproducer.size": 12,
    }
    assert lines.messages[3] == f"record {number} to topic t was delivered"
    assert [line.levelname for line in lines.records] == ["INFO", *["DEBUG"] * 3, "INFO", "INFO"]
    assert "secret" not in json.dumps([vars(line) for line in lines.records], default=str)


async def test_failures_of_one_kind_are_one_line(
    settings: ProducerSettings, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as producer:
        deliveries = [producer.enqueue_nowait(record()) for _ in range(100)]
        await taken(fake, 100)
        fake.fail(refuse)
        for delivery in deliveries:
            with raising(DeliveryError):
                await delivery.wait()
    (line,) = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert line.getMessage() == (
        "100 record(s) to topic t were not delivered (anyio_sendproducer.DeliveryError, "
        "not persisted); the first: refused"
    )
    extra = fields(line)
    assert extra["anyio_sendproducer.count"] == 100
    assert extra["anyio_sendproducer.persistence"] == "not persisted"
    assert extra["error.type"] == "anyio_sendproducer.DeliveryError"


async def test_a_client_that_was_given_up_is_a_warning(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as producer:
        fake.break_client(ValueError("broke"))
        await until(generation(producer, 2))
    first, second = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert first.name == "anyio_sendproducer"
    assert fields(first) == {"error.type": "ValueError", "anyio_sendproducer.generation": 1}
    assert second.name == "anyio_sendproducer.events"
    assert second.getMessage() == "client 1 was given up: broke"
    assert fields(second)["error.type"] == "ValueError"


async def test_an_invalid_topic_is_not_logged(
    settings: ProducerSettings, fake: FakeDriver, lines: pytest.LogCaptureFixture
) -> None:
    """A caller may mix up the arguments, and pass the value as the topic."""
    mixed_up = ProducerRecord(cast("Any", {"password": "secret"}), b"v")
    too_long = ProducerRecord("secret" * 100, b"v")
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as producer:
        for bad in (mixed_up, too_long):
            with raising(RecordRejected):
                await producer.send(bad)
    refused = [line for line in lines.messages if "refused" in line]
    assert [line.partition(" to ")[2] for line in refused] == ["topic ? was refused"] * 2
    assert "secret" not in json.dumps([vars(line) for line in lines.records], default=str)


def test_the_logger_must_be_a_logger() -> None:
    with pytest.raises(TypeError, match=r"must be a Logger, such as logging.getLogger\('x'\)"):
        LoggingObserver(cast("Any", "x"))


def test_each_event_has_its_line(lines: pytest.LogCaptureFixture) -> None:
    sent = record(b"secret", key=b"secret")
    several, one_topic = Batch(1, 3, None), Batch(2, 2, "t")
    rejected = RecordRejected("secret", record=sent, persistence=Persistence.NOT_PERSISTED)
    failed = SerializationFailed("secret", record=sent, persistence=Persistence.NOT_PERSISTED)
    failed.__cause__ = UnicodeError("secret")
    nowhere = RecordMetadata("t", 1, None, None, None, None)
    LoggingObserver().observe(
        [
            Accepted(7, sent, 0.0, 12),
            HandedOver(7, sent, 0.0),
            Delivered(7, sent, 0.0, 1.0, 12, nowhere, abandoned=False),
            Failed(7, sent, 0.0, 1.0, failed, handed_over=True, abandoned=False),
            Withdrawn(7, sent, 0.0, 1.0),
            Refused(7, sent, 0.0, 1.0, rejected),
            Refused(7, sent, 0.0, 1.0, None),
            BatchEnded(several, 0.0, 1, None, cancelled=False),
            BatchEnded(one_topic, 0.0, 0, None, cancelled=True),
            GenerationOpened(1, 0.0),
            GenerationEnded(1, 0.0, None),
            GenerationEnded(1, 0.0, ValueError()),
            Closing(0.0, 3),
        ]
    )
    assert lines.messages == [
        "record 7 to topic t was accepted",
        "record 7 to topic t was handed to the client",
        "record 7 to topic t was delivered",
        "record 7 to topic t was withdrawn",
        "record 7 to topic t was refused",
        "record 7 to topic t was refused",
        "a call with 3 records ended, 1 failed",
        "a call with 2 records was cancelled, 0 failed",
        "client 1 is open",
        "client 1 is closed",
        "client 1 was given up: ValueError",
        "the producer is closing; 3 accepted record(s) have no outcome yet",
        (
            "1 record(s) to topic t were not delivered (anyio_sendproducer.SerializationFailed, "
            "not persisted); the first: a serializer failed with UnicodeError"
        ),
    ]
    extras = [fields(line) for line in lines.records]
    assert "messaging.kafka.offset" not in extras[2]
    assert extras[4]["error.type"] == "anyio_sendproducer.RecordRejected"
    assert extras[5]["error.type"] == "cancelled"
    assert "messaging.destination.name" not in extras[6]
    assert extras[7]["messaging.destination.name"] == "t"
    assert all(extra["messaging.system"] == "kafka" for extra in extras)
    assert "secret" not in json.dumps(extras)


def test_events_of_single_records_are_skipped_below_the_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    caplog.set_level(logging.INFO, logger="anyio_sendproducer")
    LoggingObserver().observe([Accepted(1, cast("Any", Untouchable()), 0.0, 1)])
    assert caplog.records == []


async def test_a_logger_of_the_user(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("my.service.kafka")
    caplog.set_level(logging.INFO, logger="my.service")
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver(logger)]):
        pass
    assert {line.name for line in caplog.records} == {"my.service.kafka"}


async def test_a_value_in_the_error_of_a_serializer_is_not_logged(
    settings: ProducerSettings, fake: FakeDriver, lines: pytest.LogCaptureFixture
) -> None:
    def judge(what: ProducerRecord[Any, Any]) -> DeliveryError:
        error = SerializationFailed(
            f"value {what.value!r}", record=what, persistence=Persistence.NOT_PERSISTED
        )
        error.__cause__ = TypeError("secret")
        return error

    fake.judge = judge
    async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as producer:
        with raising(MultiDeliveryError):
            await producer.send_many([record(b"secret")])
    assert "secret" not in lines.text


def raises(*given: object) -> Any:
    """A partitioner, or a serializer, that repeats what it got."""
    raise ValueError(str(given))


def returns_the_key(_topic: str, key: bytes | None, _partitions: Sequence[int]) -> Any:
    return str(key)


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        ({"partitioner": raises}, "the partitioner raised ValueError"),
        ({"partitioner": returns_the_key}, "the partitioner did not return a partition"),
        ({"key_serializer": raises}, "the key_serializer raised ValueError"),
        ({"value_serializer": raises}, "the value_serializer raised ValueError"),
        ({"value_serializer": list}, "the value_serializer returned list, not bytes"),
    ],
)
async def test_no_log_repeats_what_a_hook_says(
    hooks: dict[str, Any],
    said: str,
    settings: ProducerSettings,
    fake: FakeDriver,
    lines: pytest.LogCaptureFixture,
) -> None:
    sent = ProducerRecord("t", b"secret", b"secret")
    settings = settings.evolve(**hooks)
    with raising(UndeliveredRecords) as undelivered:
        async with open_send_producer(settings, driver=fake, observers=[LoggingObserver()]) as made:
            made.enqueue_nowait(sent)
    error = undelivered.value.errors[0]
    assert describe(error).startswith(said)
    assert f"({error_type(error)}, not persisted); the first: {said}" in lines.text
    assert f"the first: {type(error).__name__}: {said}" in describe(undelivered.value)
    assert "secret" not in lines.text + describe(undelivered.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (not_taken(record(), ValueError("secret")), "kafka-python did not take the record: Value"),
        (NoPartition("chose secret").rejection(record()), "the partitioner did not return a"),
        (SerializationFailed("secret", **OF_A_RECORD), "a serializer failed"),
        (UndeliveredRecords([], 2), "2 record(s) failed and nobody awaited the outcome; the first"),
        (
            UndeliveredRecords([DeliveryError("", **OF_A_RECORD)], 1),
            "1 record(s) failed and nobody awaited the outcome; the first: DeliveryError: ",
        ),
    ],
)
def test_other_errors_that_may_repeat_a_record(error: SendProducerError, said: str) -> None:
    assert describe(error).startswith(said)
    assert "secret" not in describe(error)


def test_all_loggers_belong_to_one_tree() -> None:
    for driver in ("librdkafka._driver", "kafka_python._driver"):
        importlib.import_module(f"anyio_sendproducer.drivers.{driver}")
    ours = [name for name in logging.root.manager.loggerDict if "sendproducer" in name]
    assert set(ours) >= {
        "anyio_sendproducer",
        "anyio_sendproducer.confluent",
        "anyio_sendproducer.kafka_python",
        "anyio_sendproducer.security",
        "anyio_sendproducer.telemetry",
    }
    assert all(
        name == "anyio_sendproducer" or name.startswith("anyio_sendproducer.") for name in ours
    )


def test_a_hostile_text_is_one_line_in_a_logger_of_the_user(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="elsewhere")
    hostile = "a\nb\x1b[2J\x9b"
    sent = ProducerRecord(hostile, b"two tins")
    rejected = RecordRejected(hostile, record=sent, persistence=Persistence.NOT_PERSISTED)
    LoggingObserver(logging.getLogger("elsewhere")).observe(
        [Refused(7, sent, 0.0, 1.0, rejected), GenerationEnded(1, 0.0, ValueError(hostile))]
    )
    escaped = r"a\nb\x1b[2J\x9b"
    assert caplog.messages == [
        f"record 7 to topic {escaped} was refused",
        f"client 1 was given up: {escaped}",
    ]
    assert fields(caplog.records[0])["messaging.destination.name"] == escaped
