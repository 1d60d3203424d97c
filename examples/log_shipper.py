"""Follows a file of log lines and ships them to Kafka: each line at least once, in order.

    LOGS_BOOTSTRAP_SERVERS=localhost:9092 python log_shipper.py /var/log/app.log --topic app-log

If the file is rotated, the shipper continues with the next file. It supports rotation by renaming
(app.log.1, or app.log-20260131) and by copying and truncating. The shipper stores its position in
``.app.log.place`` beside the file, once a second and at its end. At its next start it continues
from the stored position, with the rest of a rotated file first. After a crash, it ships the lines
after the stored position again: consumers may see these lines twice, but they miss no line.

If Kafka cannot be reached, the shipper reads no more lines than the producer has room for. It sends
the lines after the last acknowledged line again, so duplicates are also in order.

After Ctrl-C or SIGTERM, the shipper reads no more lines, and ships the lines that it has read, for
up to 10 seconds. A second signal ends this. In both cases the shipper stores its position, and the
exit code is 0. Environment variables that start with LOGS_ are settings of the producer.
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

#: Bytes of one read.
CHUNK: Final = 64 * 1024

#: Bytes. A longer line is sent in pieces, because Kafka takes no record over a megabyte by default.
MAX_LINE: Final = 512 * 1024

#: Seconds between two reads of a file without new lines.
POLL_SECONDS: Final = 0.1

#: Seconds between two writes of the position.
NOTE_SECONDS: Final = 1.0

#: Seconds until another attempt if Kafka cannot be reached.
RETRY_SECONDS: Final = 1.0

#: Seconds to ship the lines that were read before a signal.
DRAIN_SECONDS: Final = 10.0

#: Compressed files are skipped: the shipper has read them before their compression.
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")

#: max_buffered_bytes limits the memory. max_in_flight limits how many lines are sent again.
DEFAULTS: Final[Mapping[str, str]] = {
    "LOGS_BOOTSTRAP_SERVERS": "localhost:9092",
    "LOGS_MAX_BUFFERED_BYTES": str(8 * 1024 * 1024),
    "LOGS_MAX_IN_FLIGHT": "2000",
}


# --- the file: plain blocking Python, for worker threads -----------------------------------------


class Place(NamedTuple):
    """The start of the next line. A renamed file keeps its device and inode."""

    device: int
    inode: int
    offset: int


class Line(NamedTuple):
    """A line without its line break, and the place after it."""

    text: bytes
    behind: Place


class Follower:
    """Reads a file while it grows, and then the file that replaces it."""

    def __init__(self, path: Path, place: Place | None) -> None:
        self._path = path
        self._first = place
        self._file: BinaryIO | None = None
        self._numbers = (0, 0)  # device and inode of the file
        self._offset = 0  # the start of the next line
        self._begun = b""  # the part of the next line that is written so far

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def read(self) -> list[Line]:
        """Return the next lines, or an empty list if there are none."""
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
                # The file was copied and truncated. Lines that were written just before are only in
                # the copy, so renaming is better.
                log.warning("%s was truncated: reading it from the start", self._path)
                self._open(self._file, 0)
            elif (successor := self._successor()) is None:
                break
            elif chunk := self._file.read(CHUNK):
                # The writer has changed to the next file: this is the rest of the old file.
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
        with contextlib.suppress(FileNotFoundError):  # no line is written yet
            if self._first is not None:
                for path in self._files():
                    if numbers(path) == self._first[:2]:
                        offset = self._first.offset
                        # A file that is shorter than the offset was truncated.
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
        """Return the file that replaced this one, if it has content. While it is empty, the writer
        may still write to this one."""
        files = self._files()
        found = [place for place, path in enumerate(files) if numbers(path) == self._numbers]
        # If this file was deleted, only the current file is known.
        following = files[found[0] + 1 :] if found else files[-1:]
        for path in following:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > 0:
                    return path
        return None

    def _files(self) -> list[Path]:
        """Return the rotated files, oldest first, and then the current file."""
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
    """Return the device and the inode of a file, or None if it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def load_place(path: Path) -> Place | None:
    """Return the stored place, or None at the first start."""
    try:
        return Place(*json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def note_place(path: Path, place: Place) -> None:
    """Store the place atomically: after a crash, the file has the old place or the new place."""
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
    """Yield the lines. The flow asks for the next line when the producer has room for it."""
    while not stopping.is_set():
        lines = deque(await run_sync(follower.read))
        if not lines:
            await pause(stopping, POLL_SECONDS)
        while lines:
            line = lines.popleft()
            # All lines have the same key, so they stay in order.
            yield Message(ProducerRecord(topic, line.text, key), pass_through=line.behind)


async def ship_some(
    producer: SendProducer, path: Path, topic: str, noted: Path, stopping: anyio.Event
) -> None:
    """Ship lines from the stored place on, until `stopping` is set or a delivery fails."""
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
            # Results come in the order of the lines, so all lines before this place are in Kafka.
            with anyio.CancelScope(shield=True):
                await run_sync(note_place, noted, place)


async def ship(
    settings: ProducerSettings, path: Path, topic: str, noted: Path, stopping: anyio.Event
) -> None:
    """Ship lines until `stopping` is set. Try again after each failure."""
    while not stopping.is_set():
        try:
            async with open_send_producer(settings) as producer, anyio.create_task_group() as tasks:
                tasks.start_soon(report, producer)
                while not stopping.is_set():
                    try:
                        await ship_some(producer, path, topic, noted, stopping)
                    except DeliveryError as error:
                        log.warning("retry after the last line that is in Kafka: %s", error.summary)
                        await producer.flush()  # so that no late line is written after the retry
                        await pause(stopping, RETRY_SECONDS)
                tasks.cancel_scope.cancel()
        except ProducerStartError as error:
            log.warning("%s", error)
            await pause(stopping, RETRY_SECONDS)
        except UndeliveredRecords as error:
            # The lines of these records are after the stored place.
            log.warning("some lines will be shipped again: %s", error)


async def report(producer: SendProducer) -> None:
    """Log the progress when it changes, at most once a second."""
    said: tuple[int, int] | None = None
    while True:
        figures = producer.statistics()
        if said != (figures.delivered, figures.in_flight):
            said = (figures.delivered, figures.in_flight)
            log.info("%d shipped, %d in flight", *said)
        await anyio.sleep(NOTE_SECONDS)


async def pause(stopping: anyio.Event, seconds: float) -> None:
    """Wait for the given time, or until `stopping` is set."""
    with anyio.move_on_after(seconds):
        await stopping.wait()


async def stop_on_signal(
    stopping: anyio.Event,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Handle Ctrl-C and SIGTERM. The first signal stops the reading, and limits the time for the
    rest. The second signal also cancels the shipping."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            else:
                log.info("shipping the lines that were read; a second signal ends this at once")
                stopping.set()
                scope.deadline = anyio.current_time() + DRAIN_SECONDS


async def main(path: Path, topic: str) -> None:
    """Follow a file until a signal arrives."""
    settings = ProducerSettings.from_env("LOGS", {**DEFAULTS, **os.environ})
    noted = path.with_name(f".{path.name}.place")
    stopping = anyio.Event()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as shipping:
            await tasks.start(stop_on_signal, stopping, shipping)
            await ship(settings, path, topic, noted, stopping)
        log.info("stopped; the position is stored in %s", noted)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ships the lines of a log file to Kafka.")
    parser.add_argument("file", type=Path, help="the log file; it need not exist yet")
    parser.add_argument("--topic", default="app-log", help="the topic of the lines")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    anyio.run(partial(main, arguments.file.absolute(), arguments.topic), backend=arguments.backend)
