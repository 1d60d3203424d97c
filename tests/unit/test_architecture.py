"""The examples of the architecture page work, and its table of shared attributes is complete."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import types
from pathlib import Path
from typing import Any, Final

import pytest

from anyio_sendproducer import (
    DeliveryError,
    DiscoveryError,
    Persistence,
    ProducerSettings,
    SerializationFailed,
    SettingsError,
    TransactionError,
    _bridge,
    _driver_thread,
    open_send_producer,
)
from anyio_sendproducer import ProducerRecord as Record
from anyio_sendproducer._hooks import Partitioner
from anyio_sendproducer.discovery import Lookup, Resolver, Target
from anyio_sendproducer.drivers import Deadline, Driver
from tests.support.checkout import used_names
from tests.support.driver_contract import NO_SUCH_PARTITION, PROMISES, Rig
from tests.support.named_tests import named_tests, names_of_tests
from tests.support.paths import ROOT
from tests.support.recorder import Parcel, Recorder

PAGE: Final = ROOT / "docs/explanation/architecture.md"
#: The last column of the table of shared attributes, for attributes that change alone.
ALONE: Final = {
    "not needed for a single value",
    "not needed for single values",
    "not needed for a single object",
}
SETTINGS: Final = ProducerSettings(bootstrap_servers="nowhere.invalid:9092")


def from_the_page(*wanted: str) -> Any:
    """A module with the page's examples that define classes. It must have the names `wanted`."""
    module: Any = types.ModuleType("architecture")
    sys.modules[module.__name__] = module  # dataclasses and get_type_hints look it up there
    for code in used_names.examples_of(PAGE):
        if "\nclass " in code and "async with" not in code:
            exec(code, module.__dict__)  # Sybil runs it as well
    assert all(hasattr(module, name) for name in wanted), wanted
    return module


page: Final = from_the_page("FileDriver", "to_files", "FileResolver", "Remembering")


# --- the driver ----------------------------------------------------------------------------------


class FileRig:
    """Each topic exists, and no record is in flight: the driver reports before `submit` ends."""

    keeps = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, partitioner: Partitioner | None = None) -> Driver:
        settings = SETTINGS.with_partitioner(partitioner)
        driver: Driver = page.FileDriver(self._directory, settings)
        return driver

    def make_unreachable(self, start_timeout: float) -> Driver:
        driver: Driver = page.FileDriver(self._directory / "nowhere", SETTINGS)
        return driver

    def make_unanswered(self) -> Driver:
        raise NotImplementedError

    def hide(self, topic: str) -> str:
        return topic

    def show(self, topic: str) -> None:
        raise NotImplementedError

    def freeze(self) -> None:
        """Not possible: the driver has written every record that it was given."""

    def refuse(self, record: Record[Any, Any]) -> None:
        assert record.partition == NO_SUCH_PARTITION


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return FileRig(tmp_path)


#: Situations that do not arise: the driver opens at once and has no pending records.
BEYOND: Final = {
    "close_from_another_thread_makes_open_return",
    "a_close_that_does_not_wait_completes_what_is_pending",
    "a_close_that_waits_completes_what_is_pending",
}


@pytest.mark.parametrize("promise", [name for name in PROMISES if name not in BEYOND])
def test_the_driver_keeps_the_contract(promise: str, rig: Rig) -> None:
    PROMISES[promise](rig)


def test_the_omitted_promises_are_part_of_the_contract() -> None:
    assert set(PROMISES) > BEYOND
    assert len(PROMISES) - len(BEYOND) > 10


def test_a_record_that_the_driver_cannot_write_is_possibly_persisted(tmp_path: Path) -> None:
    driver, recorder = page.FileDriver(tmp_path, SETTINGS), Recorder()
    driver.open(recorder)
    (tmp_path / "orders-0.jsonl").mkdir()
    parcels = [Parcel(Record("orders", b"1", partition=partition)) for partition in (0, 1)]
    driver.submit(parcels)
    driver.close(0)
    failed, written = recorder.outcomes_of(parcels)
    assert isinstance(failed, DeliveryError)
    assert failed.persistence is Persistence.POSSIBLY_PERSISTED
    assert isinstance(failed.__cause__, IsADirectoryError)
    assert not isinstance(written, DeliveryError)


def test_the_driver_serializes(tmp_path: Path) -> None:
    settings = SETTINGS.with_value_serializer(str.encode)
    driver, recorder = page.FileDriver(tmp_path, settings), Recorder()
    driver.open(recorder)
    parcels = [Parcel(Record("orders", value, partition=0)) for value in ("two tins", 2)]
    [(sized, size)] = driver.submit(parcels).sizes
    assert (sized, size) == (parcels[0], 8)
    driver.close(0)
    written, failed = recorder.outcomes_of(parcels)
    assert not isinstance(written, DeliveryError)
    assert isinstance(failed, SerializationFailed)
    [line] = (tmp_path / "orders-0.jsonl").read_text("utf-8").splitlines()
    assert bytes.fromhex(json.loads(line)["value"]) == b"two tins"


def test_the_driver_refuses_transactions(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="transactional_id"):
        page.FileDriver(tmp_path, SETTINGS.with_transactional_id("billing"))
    driver = page.FileDriver(tmp_path, SETTINGS)
    for call in (
        driver.begin_transaction,
        lambda: driver.send_offsets([], None, Deadline(1)),
        lambda: driver.end_transaction(True, Deadline(1)),  # positional, as in the protocol
    ):
        with pytest.raises(TransactionError):
            call()


# --- the resolvers -------------------------------------------------------------------------------


async def test_the_resolver_reads_its_file(tmp_path: Path) -> None:
    services = tmp_path / "services.json"
    services.write_text(json.dumps({"kafka": ["10.0.0.7:9092", "[::1]:9093"]}))
    resolver: Resolver = page.FileResolver(services)
    assert isinstance(resolver, Resolver)
    assert await resolver.resolve(Lookup("kafka")) == [
        Target("10.0.0.7", 9092),
        Target("::1", 9093),
    ]
    assert await resolver.resolve(Lookup("rabbit")) == []


async def test_the_message_of_an_empty_answer_names_the_resolver(tmp_path: Path) -> None:
    services = tmp_path / "services.json"
    services.write_text("{}")
    settings = ProducerSettings(
        service_name="kafka", discovery_method=page.Remembering(page.FileResolver(services))
    )
    with pytest.raises(DiscoveryError, match=r"Remembering\(FileResolver\('.*services\.json'\)\)"):
        async with open_send_producer(settings):
            raise AssertionError("the producer opened without an address")


async def test_the_last_answer_is_remembered_and_the_first_failure_is_not_hidden() -> None:
    answers: list[Any] = [LookupError("not yet"), [Target("a", 1)], LookupError("not now")]

    async def resolve(lookup: Lookup) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolver: Resolver = page.Remembering(resolve)
    with pytest.raises(LookupError, match="not yet"):
        await resolver.resolve(Lookup("kafka"))
    assert await resolver.resolve(Lookup("kafka")) == [Target("a", 1)]
    assert await resolver.resolve(Lookup("kafka")) == [Target("a", 1)]


def test_each_pair_of_shared_attributes_names_an_existing_test() -> None:
    named = named_tests("docs/explanation/architecture.md")
    assert sum(map(len, named.values())) > 20
    for path, names in named.items():
        assert names <= names_of_tests(path), path
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.count(" | ") >= 3]
    shared = [row for row in rows if row.startswith(("| `_", "| a ", "| its ", "| the ", "| `"))]
    assert len(shared) > 20
    for row in shared:
        shows = row.rstrip(" |").rpartition(" | ")[2]
        assert "::test_" in shows or shows in ALONE, row


def test_the_table_has_each_attribute_of_the_driver_thread_that_changes() -> None:
    """The thread changes its own attributes, and the bridge changes attributes of its worker."""
    changed: set[str] = set()
    for module, owners in ((_driver_thread, {"self"}), (_bridge, {"worker", "self._worker"})):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                changed |= {
                    target.attr
                    for target in ast.walk(node)
                    if isinstance(target, ast.Attribute)
                    and isinstance(target.ctx, ast.Store)
                    and ast.unparse(target.value) in owners
                }
    assert changed >= {"driver", "outbox", "has_next_batch", "is_hurried", "open_error"}
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.count(" | ") >= 3]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert changed - named == set()
