"""The checks that need their own environment, one session each.

``nox`` alone runs pyright, the tests on every installed Python, coverage and docs. ``nox -s NAME``
runs one session, ``nox -l`` lists them, and ``nox -s nightly`` runs everything in full. Style and
mypy are in run.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv|virtualenv"
# Use only installed interpreters. uv would download the others.
nox.options.download_python = "never"
nox.options.sessions = ["pyright", "tests", "coverage", "docs"]

SUPPORTED = ("3.10", "3.11", "3.12", "3.13", "3.14")

#: As in run.py.
IN_PARALLEL = ("-n", "3", "--dist", "loadfile")
#: The tests that CI repeats on other Pythons and with other versions of the dependencies.
IMPORTANT = (
    "tests/unit",
    "tests/broker/test_driver_contract.py",
    "tests/broker/test_end_to_end.py",
)


def interpreters() -> list[str]:
    """Return the supported versions of Python that run here, oldest first.

    pyenv puts a command on the PATH for each version that it has installed, but the commands of
    inactive versions only print an error. So this function appends the directories of the
    interpreters to the PATH, where nox finds them.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found: list[str] = []
    for version in SUPPORTED:
        name = f"python{version}"
        candidates = [shutil.which(name), *map(str, pyenv.glob(f"{version}.*/bin/{name}"))]
        works = next(filter(_runs, filter(None, candidates)), None)
        if works is not None:
            found.append(version)
            os.environ["PATH"] += os.pathsep + str(Path(works).parent)
    return found


def _runs(interpreter: str) -> bool:
    done = subprocess.run([interpreter, "--version"], capture_output=True, check=False)
    return done.returncode == 0


PYTHONS = interpreters()


@nox.session
def pyright(session: nox.Session) -> None:
    """Check the types of all code with pyright, and that the public API is completely typed."""
    session.install("-e", ".", "--group", "pyright")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "anyio_sendproducer")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on the built package in parallel. Arguments go to pytest."""
    session.install(".", "--group", "test")
    env = {"HYPOTHESIS_PROFILE": "full"}
    session.run("coverage", "run", "-m", "pytest", *IN_PARALLEL, *session.posargs, env=env)


@nox.session
def coverage(session: nox.Session) -> None:
    """Combine the coverage of the previous sessions, and fail if it is below 100 per cent."""
    session.install("coverage[toml]")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[-1:])
def newest(session: nox.Session) -> None:
    """Run the most important tests on the newest Python. ``nox -s tests`` runs all tests."""
    session.install(".", "--group", "test")
    session.run("pytest", *IN_PARALLEL, *(session.posargs or IMPORTANT))


@nox.session(python=PYTHONS[:1])
def minimums(session: nox.Session) -> None:
    """Run the tests on the oldest supported Python with the oldest supported dependencies.

    ``nox -s minimums -- --brief`` runs the most important tests. Further arguments go to pytest.
    """
    if session.venv_backend != "uv":
        session.error("only uv can choose the oldest dependencies: pip install uv")
    # Name the extras, so that their dependencies are direct and also get their oldest version.
    session.install(
        "--resolution",
        "lowest-direct",
        ".[cli,compression,confluent,demo,dns,otel,schema-registry,testing]",
        "--group",
        "test",
    )
    brief, arguments = in_brief(session)
    session.run("pytest", *IN_PARALLEL, *(IMPORTANT if brief else ()), *arguments)


def in_brief(session: nox.Session) -> tuple[bool, list[str]]:
    """Return whether ``--brief`` is among a session's arguments, and the other arguments."""
    others = [argument for argument in session.posargs if argument != "--brief"]
    return len(others) < len(session.posargs), others


#: Options for tests with a brief form. In the brief form, each of two workers runs a file at a time
#: with its own clusters. In full, the loads are so large that parallel tests disturb each other.
BRIEF = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
FULL = ("-m", "")


@nox.session
def kafka(session: nox.Session) -> None:
    """Run the tests with Apache Kafka. This needs Java, and Maven to fetch Kafka.

    ``nox -s kafka -- --brief`` runs each case on one event loop with one driver. Further arguments
    go to pytest.
    """
    brief, arguments = in_brief(session)
    session.install(".", "--group", "test")
    env = {"FULL_TESTS": "" if brief else "1"}
    session.run("pytest", "tests/kafka", *(BRIEF if brief else FULL), *arguments, env=env)


@nox.session
def agents(session: nox.Session) -> None:
    """Run the tests with tracing agents. Arguments go to pytest."""
    session.install(".", "--group", "agents")
    # Datadog must not trace pytest itself.
    session.run("pytest", "-p", "no:ddtrace", "tests/agents", "-n", "2", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault matrix with all its records, and write its table for the documents.

    This takes about two hours. ``nox -s faults -- --brief`` runs each cell with a tenth of the
    records, on one event loop with one driver, and writes no table. Further arguments go to pytest.
    """
    brief, arguments = in_brief(session)
    session.install(".", "--group", "test")
    rows = Path(session.create_tmp(), "rows")
    shutil.rmtree(rows, ignore_errors=True)
    env = {"FULL_TESTS": "" if brief else "1", "FAULT_ROWS": str(rows)}
    session.run("pytest", "tests/faults", *(BRIEF if brief else FULL), *arguments, env=env)
    if not brief:
        session.run(
            "python", "-m", "tests.faults.matrix", str(rows), "docs/reference/fault-matrix.md"
        )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Run producers with brokers that corrupt their answers, ten minutes with each driver.

    Arguments go to tests/broker/fuzz.py: ``nox -s fuzz -- --seconds 60`` takes a minute with each
    driver.
    """
    session.install(".", "--group", "test")
    for driver in ("kafka-python", "confluent"):
        session.run("python", "-m", "tests.broker.fuzz", "--driver", driver, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare this package with other clients. Arguments go to bench/compare.py.

    ``nox -s bench -- --suite`` measures all figures of the documents, and writes them to the
    documents. This takes 40 minutes. ``--suite --only SECTION`` measures one section again.
    """
    session.install(".", "--group", "bench")
    arguments = [*session.posargs]
    script = "bench/compare.py"
    if "--suite" in arguments:
        arguments.remove("--suite")
        script = "bench/suite.py"
    session.run("python", script, *arguments)


def with_all_extras(package: str) -> str:
    """Return a requirement for the package with every extra."""
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    return f"{package}[{','.join(sorted(extras))}]"


@nox.session
def security(session: nox.Session) -> None:
    """Fail if a dependency of any extra has a known vulnerability. Ruff checks our own code.

    This session looks up each package that pip installs today, and fails if it cannot look up one
    of them. By default it uses PyPI's advisory service, which few mirrors offer. Further arguments
    go to pip-audit: ``nox -s security -- --vulnerability-service osv --osv-url URL`` uses another
    service.
    ``tests/support/advisories.toml`` lists the accepted advisories with reasons.
    """
    session.install(with_all_extras("."))
    listed, report = (Path(session.create_tmp(), name) for name in ("installed.txt", "report.json"))
    advisories = ("python", "-m", "tests.support.advisories")
    session.run(*advisories, "list", str(listed))
    session.install("pip-audit")
    report.unlink(missing_ok=True)
    options = ("--no-deps", "--disable-pip", "--format", "json", "--output", str(report))
    # The exit code 1 may mean vulnerabilities. The last command judges the report.
    session.run("pip-audit", *options, "-r", str(listed), *session.posargs, success_codes=[0, 1])
    if not report.exists():
        session.error("NOTHING WAS LOOKED UP: pip-audit wrote no report, see above")
    session.run(*advisories, "judge", str(report))


@nox.session
def sbom(session: nox.Session) -> None:
    """Write the bill of materials (CycloneDX) and the SHA-256 of all files of a release to dist/.

    The bill lists the package with every extra, as pip installs them today. Run this session after
    ``package``.
    """
    dist = Path("dist")
    wheels = [*dist.glob("*.whl")]
    if len(wheels) != 1:
        session.error("dist/ must have one wheel: run nox -s package first")
    _, version, *_ = wheels[0].name.split("-")
    installed = Path(session.create_tmp(), "installed").absolute()
    shutil.rmtree(installed, ignore_errors=True)
    session.run("python", "-m", "venv", "--without-pip", str(installed))
    python = installed / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    session.install("cyclonedx-bom>=7", "pip")
    wheel = with_all_extras(str(wheels[0]))
    session.run("python", "-m", "pip", "--python", str(python), "install", "--quiet", wheel)
    bill = dist / f"anyio_sendproducer-{version}.cdx.json"
    options = ("--output-reproducible", "--validate", "--pyproject", "pyproject.toml")
    command = ("cyclonedx-py", "environment", *options, "--output-file", str(bill), str(python))
    session.run(*command)
    _write_digests(dist)


def _write_digests(dist: Path) -> None:
    """Write SHA256SUMS for ``sha256sum --check``."""
    files = [path for path in sorted(dist.iterdir()) if path.suffix in {".gz", ".whl", ".json"}]
    lines = [f"{_digest(path)}  {path.name}\n" for path in files]
    (dist / "SHA256SUMS").write_text("".join(lines), encoding="ascii")


@nox.session(venv_backend="none")
def workflows(session: nox.Session) -> None:
    """Check the workflows of GitHub with actionlint. This needs Go."""
    actionlint = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
    session.run("go", "run", actionlint, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documents. A warning or an unresolved reference is an error."""
    # The documents import the modules for Hypothesis and pytest.
    session.install(".[testing]", "--group", "docs")
    build_docs(session)


def build_docs(session: nox.Session) -> None:
    """Build the documents into docs/_build."""
    shutil.rmtree("docs/_build", ignore_errors=True)  # an old build may contain deleted pages
    # -E: the cache of an earlier build hides warnings.
    options = ["-E", "-W", "--keep-going", "--nitpicky", "--builder", "html"]
    session.run("sphinx-build", *options, "docs", "docs/_build")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documents as ``docs`` does, and check every page in Chromium."""
    session.install(".", "--group", "site")
    build_docs(session)
    session.run("pytest", "tests/site", *session.posargs, env={"DOCS_SITE": "docs/_build"})


@nox.session
def links(session: nox.Session) -> None:
    """Check each link from the documents to another site.

    CI does not run this session: it needs the internet, and a fault of another site must not block
    a change. It is a step of the release checklist.
    """
    session.install(".[testing]", "--group", "docs")
    options = ["-E", "--keep-going", "--builder", "linkcheck"]
    session.run("sphinx-build", *options, "docs", str(Path(session.create_tmp(), "links")))


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo on both event loops, with its own broker."""
    session.install(".[demo]")
    for backend in ("trio", "asyncio"):
        session.run("anyio-sendproducer", "demo", "--backend", backend, *session.posargs)


#: Files that only a checkout needs, so the sdist does not have them.
LEFT_OUT = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml")
#: The tests that run on the installed wheel, with the files of the sdist around them.
ON_THE_PACKAGE = (
    "tests/unit/test_public_api.py",
    "tests/unit/test_fake_producer.py",
    "tests/cli/test_cli.py",
    "tests/broker/test_end_to_end.py",
    "README.md",
)


@nox.session
def package(session: nox.Session) -> None:
    """Build the archives, check that they are complete and reproducible, and test the wheel.

    The second build starts from the first one's sdist, in another directory, and must be the same
    bit for bit. So a test of the wheel is a test of what pip builds from the sdist. The archives
    and their SHA-256 are left in dist/.
    """
    work = Path(session.create_tmp()).absolute()
    shutil.rmtree(work)
    work.mkdir()
    session.install("build[uv]")
    tracked = _tracked(session)
    # The archives get the time of the commit, so that others can build the same archives.
    epoch = str(session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)).strip()
    build = ("python", "-m", "build", "--installer", "uv", "--outdir")
    env = {"SOURCE_DATE_EPOCH": epoch}
    session.run(*build, str(work / "first"), env=env)
    [sdist] = (work / "first").glob("*.tar.gz")
    [wheel] = (work / "first").glob("*.whl")
    _check_contents(session, tracked, sdist, wheel)

    source = _unpack(sdist, work / "again")
    session.run(*build, str(work / "second"), str(source), env=env)
    for archive in (sdist, wheel):
        one, other = (_digest(work / build / archive.name) for build in ("first", "second"))
        session.log(f"{archive.name}: sha256 {one}")
        if one != other:
            session.error(f"{archive.name} differs when it is built again: sha256 {other}")

    _try_alone(session, wheel, work / "alone")
    shutil.rmtree(source / "src")  # import the installed package
    session.install(str(wheel), "--group", "test")
    with session.chdir(source):
        session.run("pytest", *IN_PARALLEL, *ON_THE_PACKAGE)
    shutil.rmtree("dist", ignore_errors=True)  # archives of another version
    shutil.copytree(work / "first", "dist")
    _write_digests(Path("dist"))


def _tracked(session: nox.Session) -> set[str]:
    if not Path(".git").exists():
        session.error("no .git: this session needs a checkout, to compare its files with the sdist")
    return set(str(session.run("git", "ls-files", external=True, silent=True)).split("\n")) - {""}


def _check_contents(session: nox.Session, tracked: set[str], sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    missing = {
        name for name in tracked - packed if Path(name).exists() and not name.startswith(LEFT_OUT)
    }
    if missing:
        session.error(f"not in the sdist, see [tool.hatch.build] and LEFT_OUT: {sorted(missing)}")
    with zipfile.ZipFile(wheel) as archive:
        code = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    if not wanted <= code:
        session.error(f"not in the wheel: {sorted(wanted - code)}")
    if any(not name.startswith("anyio_sendproducer/") for name in code):
        session.error(f"in the wheel beside the package: {sorted(code - wanted)}")


def _unpack(sdist: Path, where: Path) -> Path:
    shutil.unpack_archive(sdist, where)
    [source] = where.iterdir()
    return source


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _try_alone(session: nox.Session, wheel: Path, where: Path) -> None:
    """Install the wheel with pip, without the test dependencies, and use its parts."""
    session.run("python", "-m", "venv", str(where))
    programs = where / ("Scripts" if os.name == "nt" else "bin")

    def run(*arguments: str) -> None:
        session.run(str(programs / "python"), "-m", *arguments, external=True)

    def install(*requirements: str) -> None:
        run("pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        run("pip", "check")

    install(str(wheel))
    run("anyio_sendproducer", "--version")
    # With no other package installed, pytest finds the fixtures.
    install("pytest")
    empty = where / "empty"
    empty.mkdir()
    (
        empty / "pytest.ini"
    ).touch()  # so that pytest does not read the settings of a parent directory
    command = (str(programs / "pytest"), "--noconftest", "--fixtures", str(empty))
    found = session.run(*command, external=True, silent=True, success_codes=[0, 5])
    if "kafka_fake_producer" not in str(found):
        session.error(f"pytest does not find the fixtures:\n{found}")
    # The command line works with the dependencies of its extra.
    install(f"{wheel}[cli]")
    command_line = str(programs / "anyio-sendproducer")
    session.run(command_line, "--version", external=True)
    session.run(command_line, "produce", "--help", external=True, silent=True)


@nox.session(venv_backend="none")
def nightly(session: nox.Session) -> None:
    """Queue every check in full. After a failure the others still run. nox lists all results."""
    # The sessions inherit these variables.
    os.environ.update(FULL_TESTS="1", HYPOTHESIS_PROFILE="full")
    for name in ("pyright", "workflows", "site", "package", "agents", "demo"):
        session.notify(name, [])
    for python in PYTHONS:
        session.notify(f"tests-{python}", FULL)
    session.notify("coverage", [])
    session.notify(f"minimums-{PYTHONS[0]}", FULL)
    session.notify("fuzz", [])
    session.notify("kafka", [])
    session.notify("faults", [])
