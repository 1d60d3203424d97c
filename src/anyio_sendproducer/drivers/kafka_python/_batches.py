"""Where the records of a batch go, and the runs in which their outcomes come back.

Choosing the partition here, one for a whole run of records without a key, and having one callback
for a run instead of two for each record, makes a record a third cheaper with kafka-python.

It does not import ``kafka``. Of a future of the client it needs ``is_done``, ``exception``,
``add_callback``, ``add_errback``, and ``value`` with the nine fields of kafka-python's
``RecordMetadata``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from ..._exceptions import DeliveryError, SendProducerError
from ..._records import RecordMetadata
from .._protocols import Outcome

__all__ = ["RUN_BYTES", "PartitionRun", "Reporter", "TopicBatch", "TopicPartitions"]

#: After this many bytes the next partition's turn comes for records without a key, and one callback
#: reports what went before to one partition.
RUN_BYTES: Final = 256 * 1024


#: Makes a RecordMetadata at half the price of calling the class, whose __new__ is Python code.
_new_tuple: Final[Callable[[Any, Any], RecordMetadata]] = cast("Any", tuple).__new__


class Reporter(Protocol):
    """The driver, as far as runs know it."""

    #: Whether the driver chooses partitions; otherwise the client does.
    chooses: bool
    #: Whether brokers answer; with acks=0 they do not.
    answered: bool

    def target(self, topic: str, partition: int) -> Any:
        """A partition, as the client knows it."""
        ...

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes on."""
        ...

    def failure(self, submission: Any, error: Exception, run: PartitionRun) -> DeliveryError:
        """What an error of the client says of a record."""
        ...


class TopicPartitions:
    """Where the records of one topic may go, until the next change of metadata."""

    __slots__ = ("_available", "_turn", "partitions")

    def __init__(self, partitions: set[int], available: set[int], turn: int) -> None:
        self.partitions = sorted(partitions)
        self._available = sorted(available) or self.partitions
        self._turn = turn % len(self._available)

    def next_in_turn(self) -> int:
        """The partition for the next batch of records without a key (KIP-480)."""
        self._turn = (self._turn + 1) % len(self._available)
        return self._available[self._turn]


class PartitionRun:
    """Records handed to one partition one after the other, reported by one callback.

    The client completes a partition's batches in order, so that when the last of these is done the
    others are; where the client aborts, in no order, whoever is not done yet gets a callback of
    its own. Where nobody knows which partition the client chose, a run is one record.
    """

    __slots__ = ("_driver", "futures", "partition", "size", "submissions", "target", "topic")

    def __init__(self, driver: Reporter, topic: str, partition: int | None) -> None:
        self._driver = driver
        self.topic = topic
        self.partition = partition
        self.target = None if partition is None else driver.target(topic, partition)
        self.submissions: list[Any] = []
        self.futures: list[Any] = []
        self.size = 0

    @classmethod
    def of_one(
        cls, driver: Reporter, topic: str, partition: int | None, submission: Any, future: Any
    ) -> PartitionRun:
        """The run of a record whose completion says nothing of others'."""
        run = cls(driver, topic, partition)
        run.submissions.append(submission)
        run.futures.append(future)
        return run

    def watch(self) -> None:
        """Have the last one's completion report them all."""
        if self.futures:
            last = self.futures[-1]
            last.add_callback(self)
            last.add_errback(self)

    def __call__(self, _result: Any) -> None:
        submissions = self.submissions
        topic = self.topic
        new = _new_tuple
        # With acks=0 kafka-python 3.0.12 makes up an answer with the offset 0.
        unanswered = not self._driver.answered
        outcomes: list[Outcome] = []
        for submission, future in zip(submissions, self.futures, strict=True):
            if not future.is_done:
                self._report_done(outcomes)
                return
            if future.exception is not None:
                outcomes.append(self._driver.failure(submission, future.exception, self))
                continue
            _, partition, _, offset, timestamp_ms, _, key_size, value_size, _ = future.value
            if unanswered or offset < 0:
                offset = timestamp_ms = None
            outcomes.append(
                new(
                    RecordMetadata,
                    (
                        topic,
                        partition,
                        offset,
                        timestamp_ms,
                        key_size if key_size >= 0 else None,
                        value_size if value_size >= 0 else None,
                    ),
                )
            )
        self._driver.report(submissions, outcomes)

    def _report_done(self, outcomes: list[Outcome]) -> None:
        """Report those before the first that is not done; each of the others for itself."""
        done = len(outcomes)
        rest = list(zip(self.submissions, self.futures, strict=True))[done:]
        self._driver.report(self.submissions[:done], outcomes)
        for submission, future in rest:
            PartitionRun.of_one(
                self._driver, self.topic, self.partition, submission, future
            ).watch()


class TopicBatch:
    """The records of one topic in one batch: where they may go, and the runs they form."""

    __slots__ = ("_driver", "_keyed", "keyless", "route", "topic")

    def __init__(
        self, driver: Reporter, topic: str, route: TopicPartitions | SendProducerError | None
    ) -> None:
        self._driver = driver
        self.topic = topic
        self.route = route
        self._keyed: dict[int | None, PartitionRun] = {}
        self.keyless: PartitionRun | None = None

    def run_to(self, partition: int) -> PartitionRun:
        """The run to this partition."""
        run = self._keyed.get(partition)
        if run is None:
            run = self._keyed[partition] = PartitionRun(self._driver, self.topic, partition)
        return run

    def run_without_key(self) -> PartitionRun:
        """A new run of records that may go anywhere, where there is no such run now."""
        partition = None
        if self._driver.chooses and isinstance(self.route, TopicPartitions):
            partition = self.route.next_in_turn()
        self.keyless = run = PartitionRun(self._driver, self.topic, partition)
        return run

    def end_run(self, run: PartitionRun) -> None:
        """This run is long enough."""
        if run is self.keyless:
            self.keyless = None
        else:
            del self._keyed[run.partition]
        run.watch()

    def end(self) -> None:
        """The batch is through."""
        runs = [*self._keyed.values()]
        if self.keyless is not None:
            runs.append(self.keyless)
        for run in runs:
            run.watch()
