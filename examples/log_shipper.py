"""Follows a file of log lines and ships them to Kafka: each line at least once, in order.

    LOGS_BOOTSTRAP_SERVERS=localhost:9092 python log_shipper.py /var/log/app.log --topic app-log

It goes on in the next file where the file is rotated, whether by renaming (app.log.1, or
app.log-20260131) or by copying and truncating. How far it has got stands in a file beside it,
``.app.log.place``, which is written once a second and at the end; from there it goes on the next
time, in the rotated file first where there is more in it. Lines that were shipped after the last
such note are shipped again after a crash: readers may see them twice, and never miss one.

Where Kafka is away it waits: no more is read than there is room for in the producer. What was not
acknowledged is sent again, from the last line that was: so what is written twice is written in
order too.

Ctrl-C or SIGTERM: nothing more is read, and what was read is shipped, for up to 10 seconds. A
second one does not wait. Either way the place is noted, and the exit code is 0. Variables that
begin with LOGS_ are settings of the producer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import anyio
import anyio.abc
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    DeliveryError,
    Message,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    SendProducer,
    UndeliveredRecords,
    open_send_producer,
)

log = logging.getLogger("log_shipper")

#: Bytes that are read at once.
CHUNK: Final = 64 * 1024

#: Bytes of a line. What is longer goes in pieces; Kafka takes no record over a megabyte.
MAX_LINE: Final = 512 * 1024

#: Seconds between two looks at a file that has nothing new.
POLL_SECONDS: Final = 0.1

#: Seconds between two notes of the place.
NOTE_SECONDS: Final = 1.0

#: Seconds until another try, where Kafka is away.
RETRY_SECONDS: Final = 1.0

#: Seconds for what was read, when it is time to stop.
DRAIN_SECONDS: Final = 10.0

#: Rotated files that are compressed were read before they were.
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")

#: max_buffered_bytes is what bounds the memory; max_in_flight bounds what is sent again.
DEFAULTS: Final[Mapping[str, str]] = {
    "LOGS_BOOTSTRAP_SERVERS": "localhost:9092",
    "LOGS_MAX_BUFFERED_BYTES": str(8 * 1024 * 1024),
    "LOGS_MAX_IN_FLIGHT": "2000",
}


# --- the file: plain blocking Python, for worker threads -----------------------------------------


class Place(NamedTuple):
    """Where the next line begins. A file keeps its numbers when it gets another name."""

    device: int
    inode: int
    offset: int


class Line(NamedTuple):
    """A line without its end, and the place behind it."""

    text: bytes
    behind: Place


class Follower:
    """Reads a file as it grows, and the one that takes its place."""

    def __init__(self, path: Path, place: Place | None) -> None:
        self._path = path
        self._first = place
        self._file: BinaryIO | None = None
        self._numbers = (0, 0)  # the file's
        self._offset = 0  # where the next line begins
        self._begun = b""  # what there is of it, while its end is not written yet

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def read(self) -> list[Line]:
        """The next lines; none where nothing new is there."""
        if self._file is None:
            self._open_first()
            if self._file is None:
                return []
        lines: list[Line] = []
        while not lines:
            chunk = self._file.read(CHUNK)
            if chunk:
                lines = self._split(chunk)
            elif os.fstat(self._file.fileno()).st_size < self._file.tell():
                # It was copied and truncated. What was written just before that is in the copy
                # alone, which is why renaming is the better way.
                log.warning("%s was truncated: begins again", self._path)
                self._open(self._file, 0)
            elif (successor := self._successor()) is None:
                break
            elif chunk := self._file.read(CHUNK):
                # Whoever writes is with the next file by now: this is the last of this one.
                lines = self._split(chunk)
            else:
                lines = self._cut() if self._begun else []
                self._open(successor.open("rb"), 0)
        return lines

    def _split(self, chunk: bytes) -> list[Line]:
        self._begun += chunk
        *texts, self._begun = self._begun.split(b"\n")
        lines = [self._line(text, len(text) + 1) for text in texts]
        if len(self._begun) > MAX_LINE:
            lines += self._cut()
        return lines

    def _cut(self) -> list[Line]:
        text, self._begun = self._begun, b""
        return [self._line(text, len(text))]

    def _line(self, text: bytes, size: int) -> Line:
        self._offset += size
        return Line(text, Place(*self._numbers, self._offset))

    def _open_first(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # nobody has written a line yet
            if self._first is not None:
                for path in self._files():
                    if numbers(path) == self._first[:2]:
                        offset = self._first.offset
                        # One that is shorter by now was truncated.
                        self._open(path.open("rb"), offset if offset <= path.stat().st_size else 0)
                        return
            self._open(self._path.open("rb"), 0)

    def _open(self, file: BinaryIO, offset: int) -> None:
        if self._file is not file:
            self.close()
        file.seek(offset)
        found = os.fstat(file.fileno())
        self._numbers = (found.st_dev, found.st_ino)
        self._file, self._offset, self._begun = file, offset, b""

    def _successor(self) -> Path | None:
        """The file that took the place of this one, once something is in it: until then, whoever
        writes may still write here."""
        files = self._files()
        found = [place for place, path in enumerate(files) if numbers(path) == self._numbers]
        # Where this one was deleted, all that is known is the one that is written to.
        following = files[found[0] + 1 :] if found else files[-1:]
        for path in following:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > 0:
                    return path
        return None

    def _files(self) -> list[Path]:
        """The rotated files, the oldest first, and then the one that is written to."""
        rotated: list[tuple[int, Path]] = []
        for path in self._path.parent.iterdir():
            if (
                path.name.startswith((f"{self._path.name}.", f"{self._path.name}-"))
                and path.suffix not in COMPRESSED
            ):
                with contextlib.suppress(FileNotFoundError):
                    rotated.append((path.stat().st_mtime_ns, path))
        return [*(path for _, path in sorted(rotated)), self._path]


def numbers(path: Path) -> tuple[int, int] | None:
    """What a file is known by, whatever it is called."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def load_place(path: Path) -> Place | None:
    """What was noted; None the first time."""
    try:
        return Place(*json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def note_place(path: Path, place: Place) -> None:
    """Note the place so that a crash leaves the old note or the new one."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("w") as file:
        file.write(json.dumps(place))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


# --- the shipper ---------------------------------------------------------------------------------


async def read_lines(
    follower: Follower, topic: str, key: bytes, stopping: anyio.Event
) -> AsyncGenerator[Message[bytes, bytes, Place]]:
    """The source: it is asked for a line when there is room for one."""
    while not stopping.is_set():
        lines = deque(await run_sync(follower.read))
        if not lines:
            await pause(stopping, POLL_SECONDS)
        while lines:
            line = lines.popleft()
            # One key: the lines of a file stay in their order.
            yield Message(ProducerRecord(topic, line.text, key), pass_through=line.behind)


async def ship_some(
    producer: SendProducer, path: Path, topic: str, noted: Path, stopping: anyio.Event
) -> None:
    """Ship from the noted place on, until it is time to stop or a line is not delivered."""
    place = await run_sync(load_place, noted)
    follower = Follower(path, place)
    lines = read_lines(follower, topic, str(path).encode(), stopping)
    next_note = 0.0
    try:
        async with producer.flow(lines) as results:
            async for result in results:
                place = result.pass_through
                if anyio.current_time() >= next_note:
                    await run_sync(note_place, noted, place)
                    next_note = anyio.current_time() + NOTE_SECONDS
    finally:
        follower.close()
        if place is not None:
            # Results come in the order of the lines: all before this place is in Kafka.
            with anyio.CancelScope(shield=True):
                await run_sync(note_place, noted, place)


async def ship(
    settings: ProducerSettings, path: Path, topic: str, noted: Path, stopping: anyio.Event
) -> None:
    """Ship until it is time to stop, whatever becomes of Kafka."""
    while not stopping.is_set():
        try:
            async with open_send_producer(settings) as producer, anyio.create_task_group() as tasks:
                tasks.start_soon(report, producer)
                while not stopping.is_set():
                    try:
                        await ship_some(producer, path, topic, noted, stopping)
                    except DeliveryError as error:
                        log.warning("again from the last line that is in Kafka: %s", error.summary)
                        await producer.flush()  # nothing that is late comes between
                        await pause(stopping, RETRY_SECONDS)
                tasks.cancel_scope.cancel()
        except ProducerStartError as error:
            log.warning("%s", error)
            await pause(stopping, RETRY_SECONDS)
        except UndeliveredRecords as error:
            # They are behind the place that was noted.
            log.warning("to be shipped the next time: %s", error)


async def report(producer: SendProducer) -> None:
    """Say now and then how it goes."""
    said: tuple[int, int] | None = None
    while True:
        figures = producer.statistics()
        if said != (figures.delivered, figures.in_flight):
            said = (figures.delivered, figures.in_flight)
            log.info("%d shipped, %d in flight", *said)
        await anyio.sleep(NOTE_SECONDS)


async def pause(stopping: anyio.Event, seconds: float) -> None:
    """Wait, unless it is time to stop."""
    with anyio.move_on_after(seconds):
        await stopping.wait()


async def stop_on_signal(
    stopping: anyio.Event,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """The first Ctrl-C or SIGTERM ends the reading, and bounds what is left; the second one ends
    that too."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            else:
                log.info("shipping what was read; another signal ends it at once")
                stopping.set()
                scope.deadline = anyio.current_time() + DRAIN_SECONDS


async def main(path: Path, topic: str) -> None:
    """Follow a file until a signal comes."""
    settings = ProducerSettings.from_env("LOGS", {**DEFAULTS, **os.environ})
    noted = path.with_name(f".{path.name}.place")
    stopping = anyio.Event()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as shipping:
            await tasks.start(stop_on_signal, stopping, shipping)
            await ship(settings, path, topic, noted, stopping)
        log.info("stopped; the place is noted in %s", noted)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ships the lines of a log file to Kafka.")
    parser.add_argument("file", type=Path, help="the file; it need not be there yet")
    parser.add_argument("--topic", default="app-log", help="where the lines go")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    anyio.run(partial(main, arguments.file.absolute(), arguments.topic), backend=arguments.backend)
