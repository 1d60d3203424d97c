"""How long the parts of the librdkafka driver wait, where several of them share a value."""

from __future__ import annotations

from typing import Final

__all__ = ["ANSWER_SECONDS", "FINISH_SECONDS", "SLICE_SECONDS"]

#: How long one call of the client waits, as a part of a longer wait. Between two calls, the driver
#: notices that it is closed.
SLICE_SECONDS: Final = 0.1
#: The wait for the answer to one request for metadata.
ANSWER_SECONDS: Final = 1.0
#: The wait for what should end soon, such as reports of purged records, or a thread.
FINISH_SECONDS: Final = 2.0
