"""The statements of the migration guides about other clients and about the settings."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import anyio
import confluent_kafka
import confluent_kafka.aio
import pytest

import anyio_sendproducer
from anyio_sendproducer import ProducerSettings, SettingsError, open_send_producer
from anyio_sendproducer.drivers import DriverName, make_driver
from anyio_sendproducer.drivers.kafka_python._config import client_config
from tests.support.paths import ROOT

# These modules have no types.
aiokafka: Any = importlib.import_module("aiokafka")
sender: Any = importlib.import_module("aiokafka.producer.sender")
kafka: Any = importlib.import_module("kafka")

GUIDES: Final = ROOT / "docs/how-to"
KNOWN: Final[Mapping[str, Any]] = kafka.KafkaProducer.DEFAULT_CONFIG
AIOKAFKA: Final = inspect.signature(aiokafka.AIOKafkaProducer).parameters
OURS: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(ProducerSettings).parameters.items()
}
ADDRESS: Final = "nowhere.invalid:9092"


def table(guide: str, heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading, without the head of the table."""
    text = (GUIDES / f"migrate-from-{guide}.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert len(rows) > 3, (guide, heading)
    return rows[2:]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def settings(**properties: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers=ADDRESS, properties=properties)


SETTINGS: Final = [
    (guide, *row)
    for guide in ("kafka-python", "aiokafka")
    for row in table(guide, "Translate the settings")
]


@pytest.mark.parametrize(("guide", "theirs", "default", "_here", "_our_default"), SETTINGS)
def test_the_guide_shows_the_default_of_the_other_client(
    guide: str, theirs: str, default: str, _here: str, _our_default: str
) -> None:
    [name] = code(theirs)
    found = KNOWN[name] if guide == "kafka-python" else AIOKAFKA[name].default
    if name == "acks" and guide == "aiokafka":  # the signature only has a sentinel
        assert "If unset, defaults to ``acks=1``" in str(aiokafka.AIOKafkaProducer.__doc__)
        return
    assert code(default) == [repr(found)]


@pytest.mark.parametrize(("guide", "theirs", "_default", "here", "our_default"), SETTINGS)
def test_the_guide_shows_our_default(
    guide: str, theirs: str, _default: str, here: str, our_default: str
) -> None:
    field, *others = code(here)
    if field in OURS and field != "properties":
        assert our_default in {"required", f"`{OURS[field]!r}`"}
        assert (our_default == "required") == (field == "bootstrap_servers")
        return
    assert field == "properties"
    [name] = others or code(theirs)
    config = {**KNOWN, **client_config(settings(), KNOWN)}
    assert our_default == f"`{config[name]!r}`"


@pytest.mark.parametrize(
    ("theirs", "here"),
    [(row[0], row[2]) for row in table("kafka-python", "Translate the settings")],
)
def test_a_property_of_kafka_python_is_accepted_or_refused_as_the_guide_says(
    theirs: str, here: str
) -> None:
    [name], [field, *_] = code(theirs), code(here)
    given = settings(**{name: KNOWN[name]})
    if field == "properties":
        make_driver(None, given)
    else:
        with pytest.raises(SettingsError, match=rf"{name}.*ProducerSettings\({field}="):
            make_driver(None, given)


#: A valid value for each property of librdkafka.
VALUES: Final[Mapping[str, Any]] = {
    "acks": "all",
    "batch.size": 100_000,
    "compression.type": "lz4",
    "debug": "broker",
    "delivery.timeout.ms": 1_000,
    "enable.idempotence": True,
    "linger.ms": 5,
    "message.max.bytes": 1_000_000,
    "message.timeout.ms": 1_000,
    "partitioner": "consistent_random",
    "queue.buffering.max.kbytes": 1_000,
    "queue.buffering.max.messages": 1_000,
    "statistics.interval.ms": 1_000,
    "topic.metadata.propagation.max.ms": 1_000,
}


@pytest.mark.parametrize(
    ("theirs", "here"), [row[:2] for row in table("confluent-kafka", "Translate the settings")]
)
def test_a_property_of_librdkafka_is_accepted_or_refused_as_the_guide_says(
    theirs: str, here: str
) -> None:
    name, field = code(theirs)[0], code(here)[0] if code(here) else ""
    if name.startswith("AIOProducer("):
        known = inspect.signature(confluent_kafka.aio.AIOProducer).parameters
        assert set(re.findall(r"\b[a-z_]+\b", theirs)) <= set(known)
        return
    made = settings(**{name: VALUES.get(name, "x")})
    if field == "properties":
        confluent_kafka.Producer({"bootstrap.servers": ADDRESS, name: VALUES[name]}).close()
        make_driver("confluent", made)
    elif field in OURS:
        with pytest.raises(SettingsError, match=rf"ProducerSettings\({field}=|{field}"):
            make_driver("confluent", made)
    else:
        with pytest.raises(SettingsError, match=re.escape(name)):
            make_driver("confluent", made)


@pytest.mark.parametrize(
    ("guide", "module"),
    [
        ("kafka-python", importlib.import_module("kafka.errors")),
        ("aiokafka", importlib.import_module("aiokafka.errors")),
        ("confluent-kafka", confluent_kafka),
    ],
)
def test_each_error_of_the_other_client_exists(guide: str, module: Any) -> None:
    names = {
        name
        for row in table(guide, "Translate the errors")
        for name in re.findall(r"`(\w*(?:Error|Exception|Closed|Fenced))`", row[0])
    }
    assert len(names) >= 2
    for name in names:
        assert hasattr(module, name) or hasattr(builtins, name), name


@pytest.mark.parametrize("guide", ["kafka-python", "aiokafka", "confluent-kafka"])
def test_each_of_our_errors_exists(guide: str) -> None:
    text = (GUIDES / f"migrate-from-{guide}.md").read_text(encoding="utf-8")
    for name in re.findall(r"{exc}`~anyio_sendproducer\.(\w+)`", text):
        assert issubclass(getattr(anyio_sendproducer, name), anyio_sendproducer.SendProducerError)


# --- what behaves differently --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (aiokafka.AIOKafkaProducer.send, "Cancelling the returned future **will not** stop event"),
        (aiokafka.AIOKafkaProducer.send, "but cancelling the :meth:`send` coroutine itself"),
        (aiokafka.AIOKafkaProducer.send, "(pending buffer is full) in up to `request_timeout_ms`"),
        (aiokafka.AIOKafkaProducer, "may write duplicates of the retried message"),
        (aiokafka.AIOKafkaProducer, "Maximum size of buffered data per partition"),
        (aiokafka.AIOKafkaProducer, "the message is delivered to a random partition"),
        (confluent_kafka.Producer.produce, "BufferError"),
        (confluent_kafka.Producer.produce, "that will be called from :py:func:`poll()`"),
        (confluent_kafka.Producer.flush, "Number of messages still in queue"),
        (kafka.KafkaProducer.send, "KafkaTimeoutError: if unable to fetch topic metadata"),
        (kafka.KafkaProducer, "The producer is thread safe"),
    ],
)
def test_the_documentation_of_the_other_client_contains_the_words(where: Any, words: str) -> None:
    assert words in " ".join(str(where.__doc__).split())


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            importlib.import_module("kafka.producer.sender"),
            "self._complete_batch_with_exception(expired_batch, Errors.KafkaTimeoutError(",
        ),
        # Idempotence changes whether late batches expire.
        (sender, "never expire batches, but retry until"),
        (sender, "self._sender._txn_manager is None and batch.expired()"),
        # How long the client waits for an unknown topic.
        (
            aiokafka.client.AIOKafkaClient,
            "(time.monotonic() - t0) > (self._request_timeout_ms / 1000)",
        ),
        (aiokafka.client.AIOKafkaClient, "raise UnknownTopicOrPartitionError()"),
        (importlib.import_module("aiokafka.partitioner"), "return random.choice(available)"),
        # Serializers run in the caller's task.
        (aiokafka.AIOKafkaProducer._serialize, "self._value_serializer(value)"),
        (aiokafka.AIOKafkaProducer.__del__, "ResourceWarning"),
        (confluent_kafka.aio.AIOProducer.close, "await self.flush()"),
    ],
)
def test_the_source_of_the_other_client_contains_the_code(where: Any, words: str) -> None:
    assert words in inspect.getsource(where)


def test_the_stop_methods_of_asyncio_clients_have_no_timeout() -> None:
    for stop in (aiokafka.AIOKafkaProducer.stop, confluent_kafka.aio.AIOProducer.close):
        assert list(inspect.signature(stop).parameters) == ["self"]


def test_aiokafka_has_the_transaction_calls_of_the_guide() -> None:
    """No test runs a transaction, because the embedded broker refuses the first request of one."""
    assert list(inspect.signature(aiokafka.AIOKafkaProducer.transaction).parameters) == ["self"]
    assert "transactional_id" in AIOKAFKA
    context: Any = aiokafka.AIOKafkaProducer.transaction(None)
    assert "commit_transaction()" in inspect.getsource(context.__aexit__)


def test_the_defaults_of_the_buffer_of_aioproducer() -> None:
    known = inspect.signature(confluent_kafka.aio.AIOProducer).parameters
    assert (known["batch_size"].default, known["buffer_timeout"].default) == (1000, 1.0)


def test_aioproducer_refuses_headers() -> None:
    async def send() -> None:
        producer = confluent_kafka.aio.AIOProducer({"bootstrap.servers": ADDRESS})
        try:
            with pytest.raises(NotImplementedError, match="Headers"):
                await producer.produce("orders", b"", headers=[("trace", b"")])
        finally:
            await producer.close()

    anyio.run(send)


def test_confluent_kafka_reports_a_wrong_address_only_when_a_record_fails() -> None:
    reported: list[Any] = []
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 100, "log_level": 0}
    )
    producer.produce("orders", b"", on_delivery=lambda error, _: reported.append(error))
    assert producer.flush(30) == 0
    assert [error.code() for error in reported] == [confluent_kafka.KafkaError._MSG_TIMED_OUT]


# --- keys, calls and serializers -----------------------------------------------------------------


def shown_partitioner() -> Any:
    """Return the partitioner of the guide for confluent-kafka."""
    text = (GUIDES / "migrate-from-confluent-kafka.md").read_text(encoding="utf-8")
    shown = text.partition("```python\nimport random\n")[2].partition("\n\n\nby_crc")[0]
    names: dict[str, Any] = {}
    exec("import random\n" + shown, names)
    return names["consistent_random"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_keys_keep_the_partitions_of_confluent_kafka_only_with_its_partitioner(
    shared_broker: str, backend: str
) -> None:
    keys = [b"%d" % number for number in range(20)]
    topic = f"keys-{backend}"
    before: dict[bytes | None, int | None] = {}
    theirs = confluent_kafka.Producer({"bootstrap.servers": shared_broker})
    for key in keys:
        theirs.produce(
            topic,
            key=key,
            on_delivery=lambda _, sent: before.update({sent.key(): sent.partition()}),
        )
    assert theirs.flush(60) == 0
    theirs.close()

    async def partitions(driver: DriverName, **fields: Any) -> dict[bytes, int]:
        async with open_send_producer(
            bootstrap_servers=shared_broker, driver=driver, **fields
        ) as producer:
            return {key: (await producer.send(topic, None, key=key)).partition for key in keys}

    old = {"properties": {"partitioner": "consistent_random"}}
    by_crc = {"partitioner": shown_partitioner()}
    drivers: tuple[DriverName, ...] = ("confluent", "kafka-python")
    same = anyio.run(partial(partitions, "confluent", **old), backend=backend)
    assert same == before
    for driver in drivers:
        same = anyio.run(partial(partitions, driver, **by_crc), backend=backend)
        assert same == before, driver
        moved = anyio.run(partial(partitions, driver), backend=backend)
        assert sum(moved[key] != before[key] for key in keys) > 10, driver


@pytest.mark.parametrize(
    ("guide", "theirs"),
    [
        ("kafka-python", kafka.KafkaProducer),
        ("aiokafka", aiokafka.AIOKafkaProducer),
        ("confluent-kafka", confluent_kafka.Producer),
    ],
)
def test_each_call_of_the_other_client_exists(guide: str, theirs: Any) -> None:
    heading = {
        "kafka-python": "Flush, read metrics, and choose partitions",
        "aiokafka": "Translate calls and fields",
        "confluent-kafka": "Look at the queue, the topics and the latency",
    }[guide]
    found = [
        name
        for row in table(guide, heading)
        for name in re.findall(r"`(?:producer\.)?(\w+)\([^`]*\)`", row[0])
    ]
    assert len(found) >= 4
    for name in found:
        assert name == "len" or hasattr(theirs, name), name


def test_each_metadata_field_of_the_other_client_exists() -> None:
    known = {
        "aiokafka": importlib.import_module("aiokafka.structs").RecordMetadata._fields,
        "kafka-python": importlib.import_module("kafka.producer.future").RecordMetadata._fields,
    }
    for guide, fields in known.items():
        text = (GUIDES / f"migrate-from-{guide}.md").read_text(encoding="utf-8")
        named = set(re.findall(r"^\| .*?`metadata\.(\w+)`.*? \|", text, re.MULTILINE))
        assert named <= set(fields)
        assert "timestamp" in named
    assert "timestamp_ms" in anyio_sendproducer.RecordMetadata._fields


@pytest.mark.parametrize("peer", ["aiokafka", "kafka-python"])
def test_only_serializers_of_the_other_clients_get_none(shared_broker: str, peer: str) -> None:
    values: list[object] = []

    def serialize(value: object) -> bytes:
        values.append(value)
        return b"null"

    def send_with_kafka_python() -> None:
        with pytest.deprecated_call():  # it expects a subclass of its Serializer
            theirs = kafka.KafkaProducer(
                bootstrap_servers=shared_broker, value_serializer=serialize
            )
        try:
            theirs.send("serialized", None, key=b"42").get(60)
        finally:
            theirs.close()

    async def send() -> None:
        if peer == "kafka-python":
            send_with_kafka_python()
        else:
            async with aiokafka.AIOKafkaProducer(
                bootstrap_servers=shared_broker, value_serializer=serialize
            ) as theirs:
                await theirs.send_and_wait("serialized", None, key=b"42")
        assert values == [None]
        async with open_send_producer(
            bootstrap_servers=shared_broker, value_serializer=serialize
        ) as ours:
            await ours.send("serialized", None, key=b"42")
        assert values == [None]

    anyio.run(send)


def test_the_metrics_of_kafka_python_are_in_the_statistics(shared_broker: str) -> None:
    async def send(**fields: Any) -> Mapping[str, Any]:
        async with open_send_producer(bootstrap_servers=shared_broker, **fields) as producer:
            await producer.send("measured", b"1")
            return producer.statistics().client

    assert anyio.run(partial(send, properties={"metrics_enabled": True}))
