"""Tokens for OAUTHBEARER, in the form that confluent-kafka needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from ..._exceptions import ProducerStartError
from ..._settings import ProducerSettings
from ..._shown import listed, one_line
from ..security._settings import NoToken, TokenSource, expires_at
from . import _waits as waits
from ._client import ClientHandle

__all__ = ["ClientTokens", "TokenCallback"]

#: A token, its expiry in seconds since 1970, the principal, and the SASL extensions.
ClientToken = tuple[str, float, str, dict[str, str]]
TokenCallback = Callable[[str], ClientToken]

#: The bounds of the lifetime that the driver gives to a token. librdkafka asks for the next token
#: after 0.8 of it. It does not ask when a login is refused, so the lifetime is short. librdkafka
#: refuses a token that has expired, and then waits for ten seconds.
_MAX_TOKEN_SECONDS: Final = 30.0
_MIN_TOKEN_SECONDS: Final = 1.0

#: The longest pause between two attempts to fetch the first token.
_MAX_PAUSE_SECONDS: Final = 1.0


class ClientTokens:
    """Fetches tokens from the user's token provider for a client."""

    def __init__(
        self, source: TokenSource, settings: ProducerSettings, handle: ClientHandle
    ) -> None:
        self._source = source
        self._settings = settings
        self._handle = handle

    def wait_for_callback(self, deadline: float) -> TokenCallback:
        """Wait until there is a token for a new client; see :meth:`callback`.

        A client waits up to 10 s for its first token while it is being made, and nothing can end
        that wait.

        Args:
            deadline: in seconds of :func:`time.monotonic`.

        Raises:
            ProducerStartError: there was no token in time, or the driver was closed.
        """
        self._source.until = deadline
        try:
            return self._retried_callback(deadline)
        finally:
            self._source.until = math.inf

    def _retried_callback(self, deadline: float) -> TokenCallback:
        pause = waits.SLICE_SECONDS
        while True:
            try:
                return self.callback()
            except NoToken as error:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise ProducerStartError(
                        f"no producer for {listed(self._settings.addresses)} within "
                        f"{self._settings.start_timeout:g} s (start_timeout): {one_line(error)}"
                    ) from error
                if self._handle.closing.wait(min(pause, remaining)):
                    raise ProducerStartError(
                        "the producer was closed while it was starting"
                    ) from error
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def callback(self) -> TokenCallback:
        """Fetch a token.

        Returns:
            The function that a client calls for each token. Its first call returns the token that
            was fetched here.

        Raises:
            NoToken: the provider failed. If the function raises it, the client counts that as a
                failed login.
        """
        first = [self.new_token()]
        return lambda _: first.pop() if first else self.new_token()

    def new_token(self) -> ClientToken:
        """Fetch a token.

        Raises:
            NoToken: the provider failed.
        """
        token = self._source.token()
        now = time.time()
        remaining = (expires_at(token) or math.inf) - now
        lifetime = max(_MIN_TOKEN_SECONDS, min(remaining, _MAX_TOKEN_SECONDS))
        return token, now + lifetime, "", self._source.extensions()
