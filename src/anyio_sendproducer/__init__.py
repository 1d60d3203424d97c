"""A Kafka producer for structured concurrency, on Trio and asyncio.

::

    from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer

    async with open_send_producer(ProducerSettings(bootstrap_servers="localhost:9092")) as producer:
        metadata = await producer.send(ProducerRecord("orders", value=b"...", key=b"42"))

The producer lives in a task group and can't outlive it. Each record has an outcome of its own,
which the caller can await.
"""

from ._delivery import Delivery, Statistics
from ._exceptions import (
    DeliveryError,
    DeliveryTimeout,
    DiscoveryError,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerMisused,
    ProducerStartError,
    RecordRejected,
    SendProducerError,
    SerializationFailed,
    SettingsError,
    SettingsWarning,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
)
from ._flow import FlowSummary
from ._opening import open_send_producer, start_send_producer
from ._producer import SendProducer
from ._records import (
    ConsumerGroupMetadata,
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    ProducerRecord,
    RecordMetadata,
    Result,
    Results,
)
from ._retry import dead_letter_record, send_with_retry
from ._service import ProducerService
from ._settings import ProducerSettings
from ._transaction import Transaction, TransactionState
from ._transaction_pool import TransactionPool, TransactionPoolStatistics

__all__ = [
    "ConsumerGroupMetadata",
    "Delivery",
    "DeliveryError",
    "DeliveryTimeout",
    "DiscoveryError",
    "Envelope",
    "FlowSummary",
    "Message",
    "MultiDeliveryError",
    "MultiMessage",
    "MultiResult",
    "MultiResultPart",
    "PassThroughMessage",
    "PassThroughResult",
    "Persistence",
    "ProducerBroken",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerMisused",
    "ProducerRecord",
    "ProducerService",
    "ProducerSettings",
    "ProducerStartError",
    "RecordMetadata",
    "RecordRejected",
    "Result",
    "Results",
    "SendProducer",
    "SendProducerError",
    "SerializationFailed",
    "SettingsError",
    "SettingsWarning",
    "Statistics",
    "Transaction",
    "TransactionAborted",
    "TransactionError",
    "TransactionOutcomeUnknown",
    "TransactionPool",
    "TransactionPoolStatistics",
    "TransactionState",
    "UndeliveredRecords",
    "dead_letter_record",
    "open_send_producer",
    "send_with_retry",
    "start_send_producer",
]
