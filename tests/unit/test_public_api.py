"""The public names, the direction of imports, and the limits of modules and classes."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

import anyio_sendproducer
from anyio_sendproducer import (
    ProducerSettings,
    drivers,
    telemetry,
    testing,
)
from anyio_sendproducer.testing import factories, pytest_plugin, strategies
from tests.support.code_rules import (
    LARGER_MODULES,
    LARGEST_CLASS,
    LARGEST_MODULE,
    OVERSIZED_CLASSES,
    OVERSIZED_MODULES,
    USUAL_MODULE,
    VALUES,
)
from tests.support.import_rules import GUESTS, LAYERS, OUTSIDE
from tests.support.named_tests import named_tests, names_of_tests

PACKAGE: Final = Path(anyio_sendproducer.__file__).parent
NAME: Final = anyio_sendproducer.__name__

PUBLIC: Final = {
    "ConsumerGroupMetadata",
    "Delivery",
    "DeliveryError",
    "DeliveryTimeout",
    "DiscoveryError",
    "Envelope",
    "FlowSummary",
    "Message",
    "MultiDeliveryError",
    "MultiMessage",
    "MultiResult",
    "MultiResultPart",
    "PassThroughMessage",
    "PassThroughResult",
    "Persistence",
    "ProducerBroken",
    "ProducerClosed",
    "ProducerFenced",
    "ProducerMisused",
    "ProducerRecord",
    "ProducerService",
    "ProducerSettings",
    "ProducerStartError",
    "RecordMetadata",
    "RecordRejected",
    "Result",
    "Results",
    "SendProducer",
    "SendProducerError",
    "SerializationFailed",
    "SettingsError",
    "SettingsWarning",
    "Statistics",
    "Transaction",
    "TransactionAborted",
    "TransactionError",
    "TransactionOutcomeUnknown",
    "TransactionPool",
    "TransactionPoolStatistics",
    "TransactionState",
    "UndeliveredRecords",
    "dead_letter_record",
    "open_send_producer",
    "send_with_retry",
    "start_send_producer",
}
#: Type aliases have no docstring at run time; the source has a string below each.
ALIASES: Final = {"Envelope", "Results"}


# --- public names --------------------------------------------------------------------------------


def test_the_package_exports_exactly_the_public_names() -> None:
    assert set(anyio_sendproducer.__all__) == PUBLIC
    assert len(anyio_sendproducer.__all__) == len(PUBLIC)
    names = {name for name in vars(anyio_sendproducer) if not name.startswith("_")}
    modules = {name for name in names if inspect.ismodule(getattr(anyio_sendproducer, name))}
    assert names - modules == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - ALIASES))
def test_each_public_name_and_each_public_method_has_a_docstring(
    name: str,
) -> None:
    thing = getattr(anyio_sendproducer, name)
    assert inspect.getdoc(thing)
    # A dataclass without a docstring gets its signature as the docstring.
    assert not thing.__doc__.startswith(f"{name}(")
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            if not attribute.startswith("_") and (
                inspect.isroutine(member) or type(member) in {property, classmethod}
            ):
                assert inspect.getdoc(member), f"{name}.{attribute}"


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_an_alias_has_its_docstring_below_it(name: str) -> None:
    body = parse("_records").body
    place = next(
        number
        for number, statement in enumerate(body)
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == name
    )
    below = body[place + 1]
    assert isinstance(below, ast.Expr)
    assert isinstance(below.value, ast.Constant)
    assert isinstance(below.value.value, str)


@pytest.mark.parametrize(
    "module",
    [anyio_sendproducer, drivers, telemetry, testing, factories, pytest_plugin, strategies],
)
def test_exports_exist_and_are_listed_once(module: Any) -> None:
    # Ruff sorts them (RUF022).
    names = list(module.__all__)
    assert names
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["ProducerRecord", "Statistics", "ProducerSettings"])
def test_a_value_is_frozen_and_documents_each_of_its_fields(name: str) -> None:
    cls = getattr(anyio_sendproducer, name)
    assert cls.__dataclass_params__.frozen
    source = inspect.getsource(cls)
    for field in dataclasses.fields(cls):
        described_above = f"\n        {field.name}: " in inspect.getsource(cls)
        described_below = re.search(rf'\n    {field.name}: .*\n    """', source)
        assert described_above or described_below, field.name


@pytest.mark.parametrize("function", ["open_send_producer", "start_send_producer"])
def test_the_driver_is_chosen_by_keyword(function: str) -> None:
    parameters = inspect.signature(getattr(anyio_sendproducer, function)).parameters
    assert parameters["driver"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["driver"].default is None
    assert parameters["settings"].kind is inspect.Parameter.POSITIONAL_ONLY
    assert parameters["settings"].default is None


@pytest.mark.parametrize("function", ["open_send_producer", "start_send_producer"])
def test_observers_are_given_by_keyword(function: str) -> None:
    parameters = inspect.signature(getattr(anyio_sendproducer, function)).parameters
    assert parameters["observers"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["observers"].default == ()


def test_each_setting_is_a_keyword() -> None:
    parameters = inspect.signature(ProducerSettings).parameters
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}


# --- imports point one way -----------------------------------------------------------------------
#: Modules that may use threads and queues. Others may only ask for the current thread.
THREADED: Final = {"_bridge", "_cluster_probe", "_driver_thread", "drivers", "testing", "cli"}
THREADS: Final = {"_thread", "concurrent", "multiprocessing", "queue", "threading"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, or one name from it."""

    module: str
    name: str | None
    #: Whether the import runs when the importing module is imported.
    at_once: bool
    #: Whether only type checkers see it.
    for_types: bool


@functools.cache
def names_of_modules() -> list[str]:
    """The package's modules, by their names in it; the package itself is the empty name."""
    return sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .strip(".")
        for path in PACKAGE.rglob("*.py")
    )


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def parse(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def is_for_types(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.If)
        and isinstance(statement.test, ast.Name)
        and statement.test.id == "TYPE_CHECKING"
    )


def absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = [NAME, *filter(None, module.split("."))]
    up = node.level - (path_of(module).name == "__init__.py")
    return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


def imports(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, *, at_once: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, at_once, for_types)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(absolute(module, node), alias.name, at_once, for_types)
        elif isinstance(node, ast.stmt) and is_for_types(node):
            conditional = cast("ast.If", node)
            for seen_by_checkers in conditional.body:
                yield from walk(seen_by_checkers, at_once=False, for_types=True)
            for run in conditional.orelse:
                yield from walk(run, at_once=at_once, for_types=for_types)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_once=at_once and not inside, for_types=for_types)

    return walk(parse(module), at_once=True, for_types=False)


def all_imports() -> list[tuple[str, Import]]:
    """What each module imports."""
    return [(module, one) for module in names_of_modules() for one in imports(module)]


def own(imported: Import) -> str | None:
    """The module of the package that this imports; None for other packages."""
    if top(imported.module) != NAME:
        return None
    module = imported.module.removeprefix(NAME).removeprefix(".")
    deeper = f"{module}.{imported.name}".strip(".")
    return deeper if deeper in names_of_modules() else module


def layer_of(module: str) -> int:
    found = [number for number, layer in enumerate(LAYERS) if top(module) in layer]
    assert found, f"{module} belongs to no layer: give it one"
    return found[0]


def test_all_modules_are_found() -> None:
    found = names_of_modules()
    assert {"", "_ledger", "drivers", "drivers.kafka_python._driver", "testing._driver"} <= set(
        found
    )
    assert {own(one) for one in imports("_opening")} >= {"_bridge", "_ledger", "drivers"}
    assert Import("kafka", "KafkaProducer", at_once=True, for_types=False) in imports(
        "drivers.kafka_python._driver"
    )


def test_imports_point_down() -> None:
    found = [
        f"{module or '()'} imports {target or '()'}"
        for module, imported in all_imports()
        if not imported.for_types
        and (target := own(imported)) is not None
        and not (module and top(target) == top(module))
        and layer_of(target) >= layer_of(module)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_a_package_outside_the_core_imports_public_names(package: str) -> None:
    found = [
        f"{module} imports {target}.{imported.name}"
        for module, imported in all_imports()
        if top(module) == package
        and (target := own(imported)) is not None
        and top(target) != package
        and target not in OUTSIDE[package]
        and any(part.startswith("_") for part in [*target.split("."), imported.name or ""])
    ]
    assert not found, "\n".join(found)


#: Each driver has its own package in `drivers`.
OF_DRIVERS: Final = sorted(
    path.name
    for path in (PACKAGE / "drivers").iterdir()
    if (path / "__init__.py").exists() and path.name != "security"
)


@pytest.mark.parametrize("package", OF_DRIVERS)
def test_a_driver_imports_its_own_package_and_what_the_drivers_share(package: str) -> None:
    """Neither the other driver, nor the package that chooses one of them."""
    prefix = f"drivers.{package}."
    targets = {
        target
        for module, imported in all_imports()
        if module.startswith(prefix)
        and (target := own(imported)) is not None
        and top(target) == "drivers"
        and not target.startswith(prefix)
    }
    allowed = ("drivers._", "drivers.security._")
    assert targets
    assert not {target for target in targets if not target.startswith(allowed)}


def test_no_import_closes_a_cycle() -> None:
    """Imports within functions and for type checkers count, too."""
    graph: dict[str, set[str]] = {module: set() for module in names_of_modules()}
    for module, imported in all_imports():
        if (target := own(imported)) is not None and target != module:
            graph[module].add(target)
    # Remove modules whose imports are all removed, until none is left, or the rest has a cycle.
    while free := {module for module, targets in graph.items() if not targets & graph.keys()}:
        for module in free:
            del graph[module]
    assert {module: sorted(targets & graph.keys()) for module, targets in graph.items()} == {}


def test_each_dependency_is_imported_only_where_allowed() -> None:
    found = [
        f"{module or '()'} imports {imported.module}"
        for module, imported in all_imports()
        if not imported.for_types
        and (guest := top(imported.module)) not in {NAME, "anyio", *sys.stdlib_module_names}
        and module not in GUESTS.get(guest, set())
    ]
    assert not found, "\n".join(found)


#: These modules import the packages of an extra at once. Others import them only when needed.
OF_EXTRAS: Final = {
    "_loops._trio",
    "discovery._dns",
    "drivers.librdkafka._describe",
    "drivers.librdkafka._tokens",
    "drivers.librdkafka._transaction_state",
    "drivers.kafka_python._external_client",
    "drivers.kafka_python._outcomes",
    "drivers.kafka_python._stalled",
    *(one for modules in GUESTS.values() for one in modules if one.startswith("drivers.")),
    "cli._commands",
    "cli._display",
    "cli._options",
    "cli._reading",
    "testing.pytest_plugin",
    "testing.strategies",
}


def test_a_package_that_an_extra_brings_is_imported_when_it_is_needed() -> None:
    assert set(names_of_modules()) >= OF_EXTRAS
    found = [
        f"{module or '()'} imports {own(imported)} at once"
        for module, imported in all_imports()
        if imported.at_once and own(imported) in OF_EXTRAS and module not in OF_EXTRAS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "module",
    [
        "_barriers",
        "_delivery",
        "_failures",
        "_late",
        "_ledger",
        "_polling",
        "_records",
        "_settings",
        "_unawaited",
        "_validation",
    ],
)
def test_the_pure_modules_import_no_loop_clock_or_thread(module: str) -> None:
    impure = {"anyio", "asyncio", "concurrent", "queue", "selectors", "socket", "threading", "time"}
    for imported in imports(module):
        if top(imported.module) in impure:
            # Only the name of an exception may be imported.
            assert (module, imported.module, imported.name) == ("_ledger", "anyio", "WouldBlock")


def test_the_module_of_the_exceptions_imports_two_exceptions_from_anyio() -> None:
    used = {
        node.attr
        for node in ast.walk(parse("_exceptions"))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "anyio"
    }
    assert used == {"BrokenResourceError", "ClosedResourceError"}


def test_only_the_bridge_and_the_drivers_use_threads() -> None:
    found = [
        f"{module or '()'} imports {imported.name} from {imported.module}"
        for module, imported in all_imports()
        if top(module) not in THREADED
        and top(imported.module) in THREADS
        and not imported.for_types
        and (imported.module, imported.name) != ("threading", "get_ident")
    ]
    assert not found, "\n".join(found)


def test_only_two_modules_import_asyncio() -> None:
    """The waiters of its event loop, and the service that owns one of its tasks."""
    knowing = {module for module, imported in all_imports() if top(imported.module) == "asyncio"}
    assert {module for module in knowing if top(module) != "cli"} == {"_loops._asyncio", "_service"}


def test_each_module_has_a_docstring() -> None:
    assert [name for name in names_of_modules() if not ast.get_docstring(parse(name))] == []


# --- private parts of kafka-python ---------------------------------------------------------------
KAFKA_PYTHON: Final = "drivers.kafka_python"
#: Only these modules use private parts of kafka-python.
PRIVATE_PARTS: Final = tuple(
    f"{KAFKA_PYTHON}.{name}" for name in ("_connection", "_network", "_patches")
)


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_parts_in(tree: ast.AST) -> set[str]:
    """The private attributes that code reads or sets on objects other than ``self``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                found.add(name)
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                args=[_, ast.Constant(value=name), *_],
            ) if is_private(name):
                found.add(str(name))
            case _:
                pass
    return found


def test_private_parts_of_kafka_python_are_used_in_three_modules() -> None:
    modules = {name for name in names_of_modules() if name.startswith(KAFKA_PYTHON)}
    assert modules > set(PRIVATE_PARTS)
    assert private_parts_in(parse(PRIVATE_PARTS[-1])) > {"_accumulator", "_transaction_manager"}
    found = {
        f"{module}: {name}"
        for module in modules.difference(PRIVATE_PARTS)
        for name in private_parts_in(parse(module))
    }
    assert not found, found


@pytest.mark.parametrize("module", PRIVATE_PARTS)
def test_each_use_of_a_private_part_names_its_version_and_a_test(module: str) -> None:
    for path, names in named_tests(str(path_of(module))).items():
        assert names <= names_of_tests(path), path
    uses = [
        node
        for node in parse(module).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and private_parts_in(node)
    ]
    assert uses
    for node in uses:
        reason = ast.get_docstring(node) or ""
        assert "3.0.12" in reason, node.name
        assert "::test_" in reason, node.name


# --- sizes ---------------------------------------------------------------------------------------


def test_a_module_has_a_readable_size() -> None:
    lines = {
        module: len(path_of(module).read_text(encoding="utf-8").splitlines())
        for module in names_of_modules()
    }
    larger = {module: count for module, count in lines.items() if count > USUAL_MODULE}
    # A module that was divided is no longer an exception.
    assert larger.keys() - LARGER_MODULES == OVERSIZED_MODULES, larger
    assert all(lines[module] <= LARGEST_MODULE for module in LARGER_MODULES), larger


def attributes_of(cls: ast.ClassDef) -> set[str]:
    """The attributes of a class's instances: assigned to ``self``, annotated or in slots."""
    found: set[str] = set()
    for node in ast.walk(cls):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            found.add(node.attr)
    for statement in cls.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if "ClassVar" not in ast.unparse(annotation):
                    found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                found.update(cast("tuple[str, ...]", ast.literal_eval(value)))
            case _:
                pass
    return found


def test_a_class_has_a_readable_number_of_attributes() -> None:
    counts = {
        f"{module}.{node.name}": len(attributes_of(node))
        for module in names_of_modules()
        for node in ast.walk(parse(module))
        if isinstance(node, ast.ClassDef)
    }
    assert counts["_delivery.Group"] == 5
    assert counts.keys() >= VALUES
    found = {name: count for name, count in counts.items() if count > LARGEST_CLASS}
    # A class that was divided is no longer an exception.
    assert found.keys() - VALUES == OVERSIZED_CLASSES, found
