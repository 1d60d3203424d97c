"""Describes a cluster with librdkafka."""

from __future__ import annotations

from ..._exceptions import SendProducerError
from ..._settings import ProducerSettings
from .._protocols import ClusterDescription
from ._client import NoSink
from ._driver import ConfluentDriver
from ._errors import LoginRefused, NotReached

__all__ = ["describe"]


def describe(settings: ProducerSettings) -> ClusterDescription:
    """Describe a cluster; see :func:`anyio_sendproducer.drivers._describe.describe_cluster`."""
    driver = ConfluentDriver(settings)
    try:
        driver.connect(NoSink())
    except (LoginRefused, NotReached) as error:
        raise SendProducerError(str(error)) from error.__cause__ or error
    try:
        return driver.describe_from_client()
    finally:
        driver.close(0)
