"""Everything that is checked, one session each; CI runs all of them, and so can you.

``nox`` alone runs what a change needs: lint, types, tests on every interpreter that is installed,
coverage and docs. ``nox -s NAME`` runs one, ``nox -l`` lists them.
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
# An interpreter is one that is installed. uv would download the others, where it can.
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "tests", "coverage", "docs"]

SUPPORTED = ("3.10", "3.11", "3.12", "3.13", "3.14")

#: Most tests wait, most of the time. Those of one page build on each other and stay together.
IN_PARALLEL = ("-n", "3", "--dist", "loadfile")


def interpreters() -> list[str]:
    """The supported versions of Python that really run here, oldest first.

    A name on the PATH proves nothing: pyenv puts one there for each version that it holds, and
    those of versions that are not switched on only complain. The interpreters behind them are put
    at the end of the PATH, where nox finds them.
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
def lint(session: nox.Session) -> None:
    """Check style and format; ``nox -s lint -- --fix`` mends what can be mended."""
    session.install("--group", "lint")
    fix = session.posargs == ["--fix"]
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--diff"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of all code, and that the public API is typed completely."""
    session.install("-e", ".", "--group", "types")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "anyio_sendproducer")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on the built package, three at a time; arguments go to pytest."""
    session.install(".", "--group", "test")
    session.run("coverage", "run", "-m", "pytest", *IN_PARALLEL, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Join what the sessions before this measured, and fail below 100 per cent."""
    session.install("coverage[toml]")
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[:1])
def minimums(session: nox.Session) -> None:
    """Run the tests on the oldest Python, with the oldest dependencies that we say we work with."""
    if session.venv_backend != "uv":
        session.error("only uv can choose the oldest dependencies: pip install uv")
    # The extra by name: what it needs counts as direct then, and comes in its oldest version too.
    session.install(
        "--resolution",
        "lowest-direct",
        ".[cli,confluent,demo,dns,otel,schema-registry,testing]",
        "--group",
        "test",
    )
    session.run("pytest", *IN_PARALLEL, *session.posargs)


def in_brief(session: nox.Session) -> tuple[bool, list[str]]:
    """Whether ``--brief`` is among a session's arguments, and the others."""
    others = [argument for argument in session.posargs if argument != "--brief"]
    return len(others) < len(session.posargs), others


@nox.session
def kafka(session: nox.Session) -> None:
    """Run the tests against Apache Kafka itself, which needs Java, and Maven to fetch Kafka.

    ``nox -s kafka -- --brief`` runs each on one loop; further arguments go to pytest.
    """
    brief, arguments = in_brief(session)
    session.install(".", "--group", "test")
    env = {"KAFKA_IN_BRIEF": "1" if brief else ""}
    session.run("pytest", "tests/kafka", *arguments, env=env)


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault matrix with all its records, and write the documents' table of it.

    It takes about two hours. ``nox -s faults -- --brief`` runs each cell with a tenth of the
    records, on one loop, and writes no table; further arguments go to pytest.
    """
    brief, arguments = in_brief(session)
    session.install(".", "--group", "test")
    rows = Path(session.create_tmp(), "rows")
    shutil.rmtree(rows, ignore_errors=True)
    env = {"FULL_FAULTS": "" if brief else "1", "FAULT_ROWS": str(rows)}
    session.run("pytest", "tests/faults", *arguments, env=env)
    if not brief:
        session.run(
            "python", "-m", "tests.faults.matrix", str(rows), "docs/reference/fault-matrix.md"
        )


@nox.session
def bench(session: nox.Session) -> None:
    """Measure this package beside its peers; arguments go to bench/compare.py.

    ``nox -s bench -- --suite`` runs it under all circumstances that the documents speak of, which
    takes half an hour, and writes their figures.
    """
    session.install(".", "--group", "bench")
    arguments = [*session.posargs]
    script = "bench/compare.py"
    if "--suite" in arguments:
        arguments.remove("--suite")
        script = "bench/suite.py"
    session.run("python", script, *arguments)


@nox.session
def security(session: nox.Session) -> None:
    """Ask whether a dependency has a known hole. The code itself is checked by lint.

    This needs PyPI's own service of advisories, which mirrors seldom have. What can't be looked up
    is a failure, and not passed over, as it is without ``--strict``.
    """
    session.install(".[demo]")
    # The package itself is on no index.
    lister = """
from importlib.metadata import distributions
for one in distributions():
    if one.name != "anyio-sendproducer":
        print(f"{one.name}=={one.version}")
"""
    found = session.run("python", "-c", lister, silent=True)
    listed = Path(session.create_tmp(), "installed.txt")
    listed.write_text(str(found))
    session.install("pip-audit")
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", str(listed))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documents; a warning is an error, and so is a reference to nothing."""
    # The extra for Hypothesis and pytest: what needs them is documented too, and imported for it.
    session.install(".[testing]", "--group", "docs")
    build_docs(session)


def build_docs(session: nox.Session) -> None:
    """Build them, into docs/_build."""
    shutil.rmtree("docs/_build", ignore_errors=True)  # a page that is gone stays there
    # -E: what is left of an earlier build hides warnings.
    options = ["-E", "-W", "--keep-going", "--nitpicky", "--builder", "html"]
    session.run("sphinx-build", *options, "docs", "docs/_build")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documents, and walk every page in a real browser: Chromium, which has to be there.

    The check itself is tested too, on pages that have what it is to complain of.
    """
    session.install(".", "--group", "site")
    build_docs(session)
    session.run("pytest", "tests/site", *session.posargs, env={"DOCS_SITE": "docs/_build"})


@nox.session
def links(session: nox.Session) -> None:
    """Look up each link that leads out of the documents.

    CI leaves this out: it needs the internet, and what is wrong with another's site is no reason to
    hold up a change. It is on the list of what a release needs.
    """
    session.install(".[testing]", "--group", "docs")
    options = ["-E", "--keep-going", "--builder", "linkcheck"]
    session.run("sphinx-build", *options, "docs", str(Path(session.create_tmp(), "links")))


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main job on both event loops, against a broker of its own."""
    session.install(".[demo]")
    for backend in ("trio", "asyncio"):
        session.run("anyio-sendproducer", "demo", "--backend", backend, *session.posargs)


#: What is in the repository and not in the sdist: only a checkout has a use for it.
LEFT_OUT = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}
#: The tests that are run on what was installed: each part, with a broker and without.
ON_THE_PACKAGE = (
    "tests/unit/test_records.py",
    "tests/unit/test_fake_producer.py",
    "tests/unit/test_telemetry.py",
    "tests/cli/test_cli.py",
    "tests/cli/test_cli_broker.py",
    "tests/unit/test_settings.py",
    "tests/unit/test_ledger.py",
    "tests/unit/test_exceptions.py",
    "tests/unit/test_public_api.py",
    "tests/broker/test_end_to_end.py",
    "tests/broker/test_discovery.py",
    "README.md",
)


@nox.session
def package(session: nox.Session) -> None:
    """Build what would be published, twice, and see that each of the two works alone.

    The second build is made of the first one's sdist, elsewhere: it must be the same, bit for bit.
    Both archives are installed into environments of their own, and tested there with the tests of
    the sdist, where there is no source. What is in the repository has to be in the sdist.
    """
    work = Path(session.create_tmp()).absolute()
    shutil.rmtree(work)
    work.mkdir()
    session.install("build")
    tracked = _tracked(session)
    # The time of the commit, so that whoever has it can build the same.
    epoch = str(session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)).strip()
    env = {"SOURCE_DATE_EPOCH": epoch}
    session.run("python", "-m", "build", "--outdir", str(work / "first"), env=env)
    [sdist] = (work / "first").glob("*.tar.gz")
    [wheel] = (work / "first").glob("*.whl")
    _see_that_all_is_there(session, tracked, sdist, wheel)

    source = _unpack(sdist, work / "again")
    session.run("python", "-m", "build", "--outdir", str(work / "second"), str(source), env=env)
    for archive in (sdist, wheel):
        one, other = (_digest(work / build / archive.name) for build in ("first", "second"))
        session.log(f"{archive.name}: sha256 {one}")
        if one != other:
            session.error(f"{archive.name} is another one when it is built again: sha256 {other}")

    # What is in both is the same by then: of the sdist, whether it can be imported and used at all.
    for archive, tests in ((wheel, ON_THE_PACKAGE), (sdist, ON_THE_PACKAGE[:3])):
        _try_out(session, archive, tests, sdist, work / f"with-{archive.name}")


def _tracked(session: nox.Session) -> set[str]:
    if not Path(".git").exists():
        session.error("what is to be in the sdist is known from a checkout alone: there is no .git")
    return set(str(session.run("git", "ls-files", external=True, silent=True)).split("\n")) - {""}


def _see_that_all_is_there(
    session: nox.Session, tracked: set[str], sdist: Path, wheel: Path
) -> None:
    with tarfile.open(sdist) as archive:
        packed = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    missing = {name for name in tracked if Path(name).exists()} - packed - LEFT_OUT
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


def _try_out(
    session: nox.Session, archive: Path, tests: tuple[str, ...], sdist: Path, where: Path
) -> None:
    """Install an archive apart from all else, and run tests of the sdist on it."""
    session.run("python", "-m", "venv", str(where / "venv"))
    programs = where / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    source = _unpack(sdist, where / "source")
    shutil.rmtree(source / "src")  # what is imported is what was installed

    def run(*arguments: str) -> None:
        session.run(python, "-m", *arguments, external=True)

    with session.chdir(source):
        # 25.1 is the first to know dependency groups.
        run("pip", "install", "--quiet", "--upgrade", "pip>=25.1")
        # Alone first: nothing that the tests bring may be needed.
        run("pip", "install", "--quiet", str(archive))
        run("pip", "check")
        run("anyio_sendproducer", "--version")
        # Where nothing else is there to test with, pytest starts, and finds the fixtures.
        run("pip", "install", "--quiet", "pytest")
        empty = where / "empty"
        empty.mkdir()
        (empty / "pytest.ini").touch()  # and not what is in the directories above
        command = (python, "-m", "pytest", "--noconftest", "--fixtures", str(empty))
        found = session.run(*command, external=True, silent=True, success_codes=[0, 5])
        if "kafka_fake_producer" not in str(found):
            session.error(f"pytest does not find the fixtures:\n{found}")
        # The command, by its own name, with what its extra brings and no more.
        run("pip", "install", "--quiet", f"{archive}[cli]")
        run("pip", "check")
        command_line = str(programs / "anyio-sendproducer")
        session.run(command_line, "--version", external=True)
        session.run(command_line, "produce", "--help", external=True, silent=True)
        run("pip", "install", "--quiet", str(archive), "--group", "test")
        run("pip", "check")
        run("pytest", *tests)
