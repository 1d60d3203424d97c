"""What helps to test code that sends records.

A producer without a cluster, which is told what to answer; factories for records, results and
errors; a broker in a process of its own; a cluster that answers with errors.
:mod:`.strategies` (for Hypothesis) and :mod:`.pytest_plugin` (the fixtures, which pytest finds by
itself) are modules of their own, for they need what others need not have.
"""

from . import factories
from ._blocking_broker import BlockingEmbeddedBroker, blocking_embedded_broker
from ._broker import EmbeddedBroker, EmbeddedBrokerError, embedded_broker
from ._driver import FakeDriver, Gate
from ._fake_producer import FakeProducer, fake_producer
from ._mock_cluster import MockCluster, MockClusterError, mock_cluster
from ._rules import AnswerRule, FailWhen

__all__ = [
    "AnswerRule",
    "BlockingEmbeddedBroker",
    "EmbeddedBroker",
    "EmbeddedBrokerError",
    "FailWhen",
    "FakeDriver",
    "FakeProducer",
    "Gate",
    "MockCluster",
    "MockClusterError",
    "blocking_embedded_broker",
    "embedded_broker",
    "factories",
    "fake_producer",
    "mock_cluster",
]
