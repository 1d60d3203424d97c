"""Serializers with a real schema registry, checked with Confluent's own deserializers."""

from __future__ import annotations

import importlib
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest
from confluent_kafka import schema_registry
from confluent_kafka.schema_registry import avro, json_schema, protobuf
from confluent_kafka.serialization import MessageField, SerializationContext

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    SerializationFailed,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.serializers import SchemaRegistrySerializer, StringSerializer
from tests.support.history import read_topic
from tests.support.kafka_cluster import KafkaCluster
from tests.support.registry import running_registry

#: These have no types, or wider types than needed here.
confluent: Any = schema_registry
AvroSerializer: Any = avro.AvroSerializer
AvroDeserializer: Any = avro.AvroDeserializer
JSONSerializer: Any = json_schema.JSONSerializer
JSONDeserializer: Any = json_schema.JSONDeserializer
ProtobufSerializer: Any = protobuf.ProtobufSerializer
ProtobufDeserializer: Any = protobuf.ProtobufDeserializer
wrappers: Any = importlib.import_module("google.protobuf.wrappers_pb2")

AVRO = """{"type": "record", "name": "Order", "fields": [{"name": "amount", "type": "long"}]}"""
AVRO_OF_TEXT = AVRO.replace("long", "string")
JSON = """{"title": "Order", "type": "object", "properties": {"amount": {"type": "integer"}},
           "required": ["amount"]}"""


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with running_registry() as url:
        yield url


@pytest.fixture
def client(registry: str) -> Iterator[Any]:
    with confluent.SchemaRegistryClient({"url": registry}) as made:
        yield made


@pytest.fixture
def topic(shared_kafka: KafkaCluster) -> str:
    name = f"orders-{uuid.uuid4()}"
    shared_kafka.create_topic(name)
    return name


def pair(client: Any, kind: str) -> tuple[Any, Any, Any]:
    """Make a serializer, its deserializer, and data for them."""
    if kind == "avro":
        return AvroSerializer(client, AVRO), AvroDeserializer(client), {"amount": 42}
    if kind == "json":
        return JSONSerializer(JSON, client), JSONDeserializer(JSON), {"amount": 42}
    message = wrappers.Int64Value(value=42)
    config: Any = {"use.deprecated.format": False}
    return (
        ProtobufSerializer(wrappers.Int64Value, client, config),
        ProtobufDeserializer(wrappers.Int64Value, config),
        message,
    )


def settings_for(cluster: KafkaCluster, serializer: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers,
        key_serializer=StringSerializer(),
        value_serializer=SchemaRegistrySerializer(serializer, "value"),
    )


@pytest.mark.parametrize("kind", ["avro", "json", "protobuf"])
async def test_a_deserializer_reads_the_records_of_a_serializer(
    shared_kafka: KafkaCluster,
    client: Any,
    topic: str,
    kind: str,
    driver: DriverName,
) -> None:
    serializer, deserializer, data = pair(client, kind)
    async with open_send_producer(
        settings_for(shared_kafka, serializer), driver=driver
    ) as producer:
        for _ in range(3):
            await producer.send(ProducerRecord(topic, data, "k"))
        await producer.send(ProducerRecord(topic, None, "k"))

    def read() -> list[Any]:
        context = SerializationContext(topic, MessageField.VALUE)
        logged = read_topic(shared_kafka.bootstrap_servers, topic)
        return [deserializer(one.value, context) for one in logged]

    assert await anyio.to_thread.run_sync(read) == [data, data, data, None]
    subjects = await anyio.to_thread.run_sync(client.get_subjects)
    assert f"{topic}-value" in subjects


async def test_warming_up_registers_the_schema_and_sends_nothing(
    shared_kafka: KafkaCluster,
    client: Any,
    topic: str,
    driver: DriverName,
) -> None:
    settings = settings_for(shared_kafka, AvroSerializer(client, AVRO))
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.warm_up([ProducerRecord(topic, {"amount": 0})])
        assert f"{topic}-value" in await anyio.to_thread.run_sync(client.get_subjects)
        assert (await producer.send(ProducerRecord(topic, {"amount": 1}))).offset == 0
        with pytest.raises(SerializationFailed):
            await producer.warm_up([ProducerRecord(topic, {"amount": "much"})])


async def test_keys_have_a_subject_of_their_own(
    shared_kafka: KafkaCluster,
    client: Any,
    topic: str,
    driver: DriverName,
) -> None:
    serializer = AvroSerializer(client, AVRO)
    settings = ProducerSettings(
        bootstrap_servers=shared_kafka.bootstrap_servers,
        key_serializer=SchemaRegistrySerializer(serializer, "key"),
    )
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord(topic, b"v", {"amount": 1}))
    assert f"{topic}-key" in await anyio.to_thread.run_sync(client.get_subjects)


async def test_a_record_that_violates_its_schema_fails_alone(
    shared_kafka: KafkaCluster,
    client: Any,
    topic: str,
    driver: DriverName,
) -> None:
    settings = settings_for(shared_kafka, AvroSerializer(client, AVRO))
    async with open_send_producer(settings, driver=driver) as producer:
        wrong = producer.enqueue_nowait(ProducerRecord(topic, {"amount": "much"}))
        right = producer.enqueue_nowait(ProducerRecord(topic, {"amount": 1}))
        with pytest.raises(SerializationFailed) as caught:
            await wrong.wait()
        assert caught.value.persistence is Persistence.NOT_PERSISTED
        assert (await right.wait()).topic == topic


async def test_a_schema_that_the_registry_refuses(
    shared_kafka: KafkaCluster,
    client: Any,
    topic: str,
    driver: DriverName,
) -> None:
    def backward_only() -> None:
        client.register_schema(f"{topic}-value", confluent.Schema(AVRO, "AVRO"))
        client.set_compatibility(f"{topic}-value", level="BACKWARD")

    await anyio.to_thread.run_sync(backward_only)
    settings = settings_for(shared_kafka, AvroSerializer(client, AVRO_OF_TEXT))
    async with open_send_producer(settings, driver=driver) as producer:
        with pytest.raises(SerializationFailed, match="SchemaRegistryError") as caught:
            await producer.send(ProducerRecord(topic, {"amount": "much"}))
        assert caught.value.persistence is Persistence.NOT_PERSISTED


async def test_a_registry_that_is_down(
    shared_kafka: KafkaCluster, topic: str, driver: DriverName
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        config: Any = {"url": url, "max.retries": 0, "timeout": 5}
        with confluent.SchemaRegistryClient(config) as away:
            settings = settings_for(shared_kafka, AvroSerializer(away, AVRO))
            async with open_send_producer(settings, driver=driver) as producer:
                with pytest.raises(SerializationFailed) as caught:
                    await producer.send(ProducerRecord(topic, {"amount": 1}))
                assert caught.value.persistence is Persistence.NOT_PERSISTED
                # The producer still works.
                assert (await producer.send(ProducerRecord(topic, None, "tombstone"))).offset == 0
