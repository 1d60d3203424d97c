#!/usr/bin/env python3
"""Run the demo, the checks or the tests from a fresh checkout. This needs only Python.

    python3 run.py demo     the demo, on Trio and then on asyncio, with its own broker
    python3 run.py check    style, types and the unit tests in parallel: before and after a change
    python3 run.py test     all tests that need neither Java nor a browser
    python3 run.py style    ruff's checks and format; with --fix, fix the code
    python3 run.py types    mypy

Further arguments go to the command, and with `check` to pytest: ``python3 run.py test -k ledger``.

With ``CI`` set, `test` without arguments measures coverage and fails if it is below 100 per cent.

The first run installs all packages into a virtual environment in ``.venv``. This script uses only
the standard library, so it works if the system's Python refuses installs. An old Python can run
this script far enough to report that it is too old.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
VENV = PROJECT / ".venv"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
#: What pip installs for each command.
NEEDS = {
    "demo": ["--editable", ".[demo]"],
    "check": ["--editable", ".", "--group", "lint", "--group", "types"],
    "test": ["--editable", ".", "--group", "test"],
    "style": ["--group", "lint"],
    "types": ["--editable", ".", "--group", "types"],
}
#: Most tests wait most of the time, so they run in parallel. Examples of one page depend on each
#: other, so each file stays on one worker.
IN_PARALLEL = ["-n", "3", "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    """Prepare the environment and run the command in it."""
    if sys.version_info < (3, 10):  # noqa: UP036  # any Python may run this file
        return complain("Python 3.10 or later is needed; this is " + sys.version.split()[0] + ".")
    if not arguments or arguments[0] not in NEEDS:
        print(__doc__)
        return 2
    command, *rest = arguments
    try:
        prepare(command)
    except subprocess.CalledProcessError as error:
        return complain("Could not prepare " + str(VENV) + ": see above.", error.returncode)
    if command == "check":
        return check(rest)
    if command == "test":
        return test(rest)
    if command == "types":
        return call("-m", "mypy", *rest)
    if command == "style":
        return style(rest)
    chosen = any(argument.split("=")[0] == "--backend" for argument in rest)
    for backend in [[]] if chosen else [["--backend", "trio"], ["--backend", "asyncio"]]:
        code = call("-m", "anyio_sendproducer", "demo", *backend, *rest)
        if code != 0:
            return code
    return 0


def check(rest: list[str]) -> int:
    """Check style and types while the unit tests run. Print the time of each part and a verdict."""
    paths = [] if any((PROJECT / one.split("::")[0]).exists() for one in rest) else ["tests/unit"]
    parts = {
        "lint": ["ruff", "check"],
        "format": ["ruff", "format", "--diff"],
        "types": ["mypy"],
        # Two workers for two processors: unlike the other tests, these do not wait.
        "tests": ["pytest", "-n", "2", *paths, *rest],
    }

    def run(name: str) -> tuple[int, float, str]:
        started = time.monotonic()
        # Tests show their progress. The output of the other parts follows, so that no lines mix.
        done = subprocess.run(
            [PYTHON, "-m", *parts[name]],
            cwd=PROJECT,
            check=False,
            text=True,
            stdout=None if name == "tests" else subprocess.PIPE,
            stderr=None if name == "tests" else subprocess.STDOUT,
        )
        return done.returncode, time.monotonic() - started, done.stdout or ""

    with ThreadPoolExecutor(len(parts)) as threads:
        results = dict(zip(parts, threads.map(run, parts), strict=True))
    failed = [name for name, (code, _, _) in results.items() if code != 0]
    for name in failed:
        print(results[name][2], end="")
    for name, (_, seconds, _) in results.items():
        print(f"{name:8}{seconds:4.0f} s  {'FAILED' if name in failed else 'passed'}")
    print("check failed: " + ", ".join(failed) if failed else "check passed")
    return 1 if failed else 0


def test(rest: list[str]) -> int:
    """Run the tests; in CI, all of them with coverage."""
    pytest = ["-m", "pytest", *(rest or IN_PARALLEL)]
    if rest or not os.environ.get("CI"):
        return call(*pytest)
    coverage = ["-m", "coverage"]
    call(*coverage, "erase")
    return (
        call(*coverage, "run", *pytest)
        or call(*coverage, "combine", "--quiet")
        or call(*coverage, "report")
    )


def style(rest: list[str]) -> int:
    """Check style and format, or fix them."""
    fix = "--fix" in rest
    codes = [
        call("-m", "ruff", "check", *(["--fix"] if fix else [])),
        call("-m", "ruff", "format", *([] if fix else ["--diff"])),
    ]
    return max(codes)


def prepare(command: str) -> None:
    """Create the environment and install the packages for the command, unless this was done."""
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes()).hexdigest()
    done = VENV / ("installed-for-" + command)
    if PYTHON.exists() and done.exists() and done.read_text() == wanted:
        return
    print("Preparing " + str(VENV) + ". The first time, this takes a minute or two.", flush=True)
    if not PYTHON.exists():
        # Without pip, because Debian's Python cannot install it here.
        venv.create(VENV, symlinks=os.name != "nt")
    if call("-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('pip'))") != 0:
        add_pip()
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # 25.1 is the first version with dependency groups.
    call(*pip, "--upgrade", "pip>=25.1", check=True)
    call(*pip, *NEEDS[command], check=True)
    done.write_text(wanted)


def add_pip() -> None:
    """Install pip into the environment: from Python itself, or with the pip of this Python."""
    if importlib.util.find_spec("ensurepip") is not None:
        call("-m", "ensurepip", check=True)
    elif importlib.util.find_spec("pip") is not None:
        site = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        where = subprocess.check_output(site, text=True).strip()
        # Systems refuse an installation into their own Python, but allow one with a target.
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", where, "pip"]
        subprocess.run(install, check=True)
    else:
        hint = "This Python has neither ensurepip nor pip. On Debian: apt install python3-venv"
        sys.exit(complain(hint))


def call(*arguments: str, check: bool = False) -> int:
    """Run the environment's Python in the project's directory. Return its exit code."""
    return subprocess.run([PYTHON, *arguments], cwd=PROJECT, check=check).returncode


def complain(message: str, code: int = 1) -> int:
    """Print an error and return the exit code."""
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
