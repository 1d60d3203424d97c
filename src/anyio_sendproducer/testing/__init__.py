"""Tools to test code that sends records.

There is a producer without a cluster, for which the test decides the answers; factories for
records, results and errors; a broker in its own process; and a cluster that answers with errors.
Import :mod:`.strategies` (for Hypothesis) and :mod:`.pytest_plugin` (fixtures, which pytest finds
by itself) separately, because they need packages that the others do not need.
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
