"""What helps to test code that sends records: a broker in a process, a driver without a broker."""

from ._broker import EmbeddedBroker, EmbeddedBrokerError, embedded_broker
from ._driver import FakeDriver, Gate

__all__ = ["EmbeddedBroker", "EmbeddedBrokerError", "FakeDriver", "Gate", "embedded_broker"]
