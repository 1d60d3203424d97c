"""Finds brokers that have moved, for a client with transactions.

By default, when librdkafka 2.16 has lost its last broker, it connects to the bootstrap addresses
again (``metadata.recovery.strategy=rebootstrap``). After that, a call that needs the coordinator
may never end, and one of librdkafka's threads uses a whole core. So a client with transactions does
not do that, unless the user sets it; the driver asks the bootstrap addresses instead, and has the
client replaced.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from ..._exceptions import SendProducerError
from ..._settings import ProducerSettings
from ..._shown import listed
from ..security._settings import NoToken
from . import _waits as waits
from ._client import ClientHandle, is_answered, new_client
from ._health import Health
from ._tokens import ClientTokens

__all__ = ["WITHOUT_REBOOTSTRAP", "BootstrapSearch"]

#: How often the bootstrap addresses are asked while no broker can be reached.
_SEARCH_SECONDS: Final = 5.0

#: The configuration of clients with transactions that this module needs.
WITHOUT_REBOOTSTRAP: Final[Mapping[str, Any]] = (
    {"metadata.recovery.strategy": "none"}
    if confluent_kafka.libversion()[1] >= 0x020A0000  # the first version that has the setting
    else {}
)


class BootstrapSearch:
    """Asks the bootstrap addresses for brokers that a client does not know."""

    def __init__(
        self,
        settings: ProducerSettings,
        config: Mapping[str, Any],
        handle: ClientHandle,
        health: Health,
        tokens: ClientTokens | None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._handle = handle
        self._health = health
        self._tokens = tokens
        #: When the bootstrap addresses may be asked again.
        self._next_at = 0.0

    def search(self) -> None:
        """Give up the client if it reaches no broker and the bootstrap addresses lead to others."""
        if self._is_answered(self._handle.client):
            self._health.note_connection()
            return
        if self._handle.closing.is_set() or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + _SEARCH_SECONDS
        config = {
            **self._config,
            "enable.idempotence": False,
            "enable.gapless.guarantee": False,  # without idempotence, librdkafka refuses True
            # The client itself has logged the same errors.
            "log_level": 0,
        }
        del config["transactional.id"]
        if self._tokens is not None:
            try:
                config["oauth_cb"] = self._tokens.callback()
            except NoToken:
                return
        try:
            other = new_client(config, self._handle.log)
        except KafkaException:  # it refuses the token
            return
        is_answered = self._is_answered(other)
        other.close()
        # If these are the same brokers, the client connects to them as well, after its back-off.
        attempts = 2 + math.ceil(self._config["reconnect.backoff.max.ms"] / 1000)
        if is_answered and not any(self._is_answered(self._handle.client) for _ in range(attempts)):
            addresses = listed(self._settings.addresses)
            failure = SendProducerError(
                f"no broker that the client knows can be reached, but {addresses} leads to other "
                "brokers"
            )
            failure.__cause__ = self._health.failure
            self._health.give_up(failure)

    def _is_answered(self, client: Any) -> bool:
        """Return whether a broker answers a client within a second."""
        return not self._handle.closing.is_set() and is_answered(client, waits.ANSWER_SECONDS)
