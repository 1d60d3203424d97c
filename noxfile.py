"""Everything that is checked, one session each; CI runs all of them, and so can you.

``nox`` alone runs what a change needs: lint, types, tests on every interpreter that is installed,
coverage and docs. ``nox -s NAME`` runs one, ``nox -l`` lists them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv|virtualenv"
# An interpreter is one that is installed. uv would download the others, where it can.
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "tests", "coverage", "docs"]

SUPPORTED = ("3.10", "3.11", "3.12", "3.13", "3.14")


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
    """Run the tests on the built package; arguments go to pytest."""
    session.install(".", "--group", "test")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)


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
        ".[cli,confluent,demo,dns,schema-registry]",
        "--group",
        "test",
    )
    session.run("pytest", *session.posargs)


@nox.session
def kafka(session: nox.Session) -> None:
    """Run the tests against Apache Kafka itself, which needs Java, and Maven to fetch Kafka."""
    session.install(".", "--group", "test")
    session.run("pytest", "tests/kafka", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Run the fault matrix with all its records, and write the documents' table of it.

    It takes about an hour. ``nox -s faults -- --brief`` runs each cell with a tenth of the records,
    and writes no table; further arguments go to pytest.
    """
    arguments = [*session.posargs]
    brief = "--brief" in arguments
    if brief:
        arguments.remove("--brief")
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
    session.install(".", "--group", "docs")
    # -E: what is left of an earlier build hides warnings.
    options = ["-E", "-W", "--keep-going", "--nitpicky", "--builder", "html"]
    session.run("sphinx-build", *options, "docs", "docs/_build")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main job on both event loops, against a broker of its own."""
    session.install(".[demo]")
    for backend in ("trio", "asyncio"):
        session.run("anyio-sendproducer", "demo", "--backend", backend, *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build what would be published, and see that each of the two installs and works alone."""
    dist = Path(session.create_tmp(), "dist").absolute()
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.chdir(dist)  # the checkout must not be what is imported
    for archive in sorted(dist.iterdir()):
        session.install("--force-reinstall", str(archive))
        session.run("python", "-c", "import anyio_sendproducer, anyio_sendproducer.testing")
        session.run("anyio-sendproducer", "--version")
