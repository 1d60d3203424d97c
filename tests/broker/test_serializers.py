"""All serializers with a broker."""

from __future__ import annotations

import threading
from typing import Any, cast

import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Persistence,
    ProducerRecord,
    ProducerSettings,
    SerializationFailed,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.serializers import (
    JSONSerializer,
    SchemaRegistrySerializer,
    StringSerializer,
    TopicSerializer,
)
from anyio_sendproducer.testing import embedded_broker
from tests.support.history import Logged, read_topic


def _marked(data: Any, context: Any) -> bytes:
    """A serializer like that of a registry, without a registry."""
    assert threading.current_thread().name.startswith("anyio-sendproducer")
    context.headers.append(("schema", context.field.encode()))
    return f"{context.topic}:{data}".encode()


async def test_every_serializer_with_a_broker() -> None:
    async with embedded_broker() as broker:
        settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)
        text = settings.with_key_serializer(StringSerializer())
        async with open_send_producer(text.with_value_serializer(JSONSerializer())) as producer:
            await producer.send(ProducerRecord("json", {"a": [1, None]}, "ключ", partition=0))
            await producer.send(ProducerRecord("json", None, "tombstone", partition=0))
            with pytest.raises(SerializationFailed, match="TypeError: expected a str") as caught:
                await producer.send(ProducerRecord("json", 1, cast("str", 2)))
            assert caught.value.persistence is Persistence.NOT_PERSISTED
        async with open_send_producer(
            settings.with_key_serializer(
                SchemaRegistrySerializer(_marked, "key")
            ).with_value_serializer(SchemaRegistrySerializer(_marked, "value"))
        ) as producer:
            await producer.send(ProducerRecord("marked", 1, "k", headers=[("mine", b"")]))

        async def read(topic: str) -> list[Logged]:
            return await anyio.to_thread.run_sync(read_topic, broker.bootstrap_servers, topic)

        written = await read("json")
        assert [(one.key, one.value) for one in written] == [
            ("ключ".encode(), b'{"a":[1,null]}'),
            (b"tombstone", None),
        ]
        (marked,) = await read("marked")
        assert (marked.key, marked.value) == (b"marked:k", b"marked:1")
        assert [*marked.headers] == [("mine", b""), ("schema", b"key"), ("schema", b"value")]


async def test_topics_with_serializers_of_their_own(driver: DriverName) -> None:
    async with embedded_broker() as broker:
        settings = ProducerSettings(
            bootstrap_servers=broker.bootstrap_servers,
            value_serializer=TopicSerializer(
                {"json": JSONSerializer(), "marked": SchemaRegistrySerializer(_marked, "value")},
                StringSerializer(),
            ),
        )
        async with open_send_producer(settings, driver=driver) as producer:
            for topic in ("json", "marked", "text"):
                await producer.send(ProducerRecord(topic, "v", partition=0))
        found = {
            topic: await anyio.to_thread.run_sync(read_topic, broker.bootstrap_servers, topic)
            for topic in ("json", "marked", "text")
        }
    values = {topic: [one.value for one in written] for topic, written in found.items()}
    assert values == {"json": [b'"v"'], "marked": [b"marked:v"], "text": [b"v"]}
    assert [*found["marked"][0].headers] == [("schema", b"value")]
