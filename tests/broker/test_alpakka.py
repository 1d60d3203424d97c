"""The assertions of Alpakka's own specification of the SendProducer, on a real broker."""

# a flow stands within its producer

from __future__ import annotations

import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Message,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    Result,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer.serializers import StringSerializer
from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.alpakka import line
from tests.support.calls import (
    raising,
    record,
    task_group,
)
from tests.support.history import read_topic


@pytest.fixture
def live(broker: EmbeddedBroker) -> ProducerSettings:
    """Make settings for a broker."""
    return ProducerSettings(bootstrap_servers=broker.bootstrap_servers)


async def values(settings: ProducerSettings, topic: str) -> list[bytes | None]:
    (address,) = settings.addresses
    return [one.value for one in await anyio.to_thread.run_sync(read_topic, address, topic)]


@line("`SendProducer(settings)`", "`send(record)`", "`ProducerRecord`", "`RecordMetadata`")
async def test_a_single_record(live: ProducerSettings) -> None:
    async with open_send_producer(live) as producer:
        what = ProducerRecord("t", b"value", b"key", partition=0, headers=[("a", b"b")])
        metadata = await producer.send(what)
    assert isinstance(metadata, RecordMetadata)
    assert (metadata.topic, metadata.partition, metadata.offset) == ("t", 0, 0)
    assert await values(live, "t") == [b"value"]
    async with task_group() as tasks:
        producer = await start_send_producer(tasks, live)
        assert (await producer.send(what)).offset == 1
        await producer.aclose()


@line("`sendEnvelope(envelope)`", "`ProducerMessage.Message`, `.single`", "`Result`")
async def test_a_single_record_in_an_envelope(live: ProducerSettings) -> None:
    message = Message(record(b"value"), pass_through="context")
    async with open_send_producer(live) as producer:
        result = await producer.send_envelope(message)
    assert isinstance(result, Result)
    assert (result.metadata.topic, result.offset) == ("t", 0)
    assert result.message is message
    assert result.pass_through == "context"
    assert await values(live, "t") == [b"value"]


@line(
    "`ProducerMessage.MultiMessage`, `.multi`",
    "`MultiResult`, `MultiResultPart`",
)
@pytest.mark.parametrize("count", [1, 3])
async def test_several_records_in_an_envelope_keep_their_order(
    live: ProducerSettings, count: int
) -> None:
    records = [record(b"%d" % number) for number in range(count)]
    async with open_send_producer(live) as producer:
        result = await producer.send_envelope(MultiMessage(records, pass_through="context"))
    assert isinstance(result, MultiResult)
    assert result.pass_through == "context"
    assert all(isinstance(part, MultiResultPart) for part in result.parts)
    assert [part.record for part in result.parts] == records
    assert [part.metadata.offset for part in result.parts] == [*range(count)]
    assert await values(live, "t") == [one.value for one in records]


@line("With a wrong address, `send` always fails")
async def test_a_wrong_address() -> None:
    settings = ProducerSettings(bootstrap_servers="127.0.0.1:1", start_timeout=0.5)
    with raising(ProducerStartError, match="127.0.0.1:1"):
        async with open_send_producer(settings):
            pass


@line("`keySerializer`, `valueSerializer`", "A missing serializer causes an error that says so")
async def test_serializers(live: ProducerSettings) -> None:
    text = live.with_key_serializer(StringSerializer()).with_value_serializer(str.encode)
    async with open_send_producer(text) as producer:
        await producer.send(ProducerRecord("t", "value", "key"))
    assert await values(live, "t") == [b"value"]
    async with open_send_producer(live) as producer:
        with pytest.raises(RecordRejected, match="value_serializer"):
            await producer.send(ProducerRecord("t", "value"))
