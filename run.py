#!/usr/bin/env python3
"""Runs the demo or the tests from a fresh checkout, with nothing but Python.

    python3 run.py demo     the main job, on Trio and then on asyncio, against a broker of its own
    python3 run.py test     the tests, three at a time
    python3 run.py style    ruff's checks, and whether all is formatted; with --fix, mended
    python3 run.py types    mypy

What follows is passed on: ``python3 run.py test -k ledger``.

All that is needed goes into a virtual environment in ``.venv`` and stays there for the next time,
so this also works where the system's Python refuses installs. It uses the standard library alone,
and is written so that an old Python can read it far enough to say that it is too old.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
VENV = PROJECT / ".venv"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
#: What to install for each command.
NEEDS = {
    "demo": ["--editable", ".[demo]"],
    "test": ["--editable", ".", "--group", "test"],
    "style": ["--group", "lint"],
    "types": ["--editable", ".", "--group", "types"],
}
#: Most tests wait, most of the time. Those of one page build on each other and stay together.
IN_PARALLEL = ["-n", "3", "--dist", "loadfile"]


def main(arguments: list[str]) -> int:
    """Prepare the environment and run the command in it."""
    if sys.version_info < (3, 10):  # noqa: UP036  # whoever starts this may have any Python
        return complain("Python 3.10 or later is needed; this is " + sys.version.split()[0] + ".")
    if not arguments or arguments[0] not in NEEDS:
        print(__doc__)
        return 2
    command, *rest = arguments
    try:
        prepare(command)
    except subprocess.CalledProcessError as error:
        return complain("Could not prepare " + str(VENV) + ": see above.", error.returncode)
    if command == "test":
        return call("-m", "pytest", *(rest or IN_PARALLEL))
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


def style(rest: list[str]) -> int:
    """Check style and format, or mend them."""
    fix = "--fix" in rest
    codes = [
        call("-m", "ruff", "check", *(["--fix"] if fix else [])),
        call("-m", "ruff", "format", *([] if fix else ["--diff"])),
    ]
    return max(codes)


def prepare(command: str) -> None:
    """Make the environment and install what the command needs, unless that was done before."""
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes()).hexdigest()
    done = VENV / ("installed-for-" + command)
    if PYTHON.exists() and done.exists() and done.read_text() == wanted:
        return
    print("Preparing " + str(VENV) + "; this takes a minute, the first time.", flush=True)
    if not PYTHON.exists():
        # Without pip, since Debian's Python cannot put it there.
        venv.create(VENV, symlinks=os.name != "nt")
    if call("-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('pip'))") != 0:
        add_pip()
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # 25.1 is the first to know dependency groups.
    call(*pip, "--upgrade", "pip>=25.1", check=True)
    call(*pip, *NEEDS[command], check=True)
    done.write_text(wanted)


def add_pip() -> None:
    """Give the environment its pip: from Python itself, or with the pip of this Python."""
    if importlib.util.find_spec("ensurepip") is not None:
        call("-m", "ensurepip", check=True)
    elif importlib.util.find_spec("pip") is not None:
        site = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        where = subprocess.check_output(site, text=True).strip()
        # A target of its own is no install into the system's Python, so no system refuses it.
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", where, "pip"]
        subprocess.run(install, check=True)
    else:
        hint = "This Python has neither ensurepip nor pip. On Debian: apt install python3-venv"
        sys.exit(complain(hint))


def call(*arguments: str, check: bool = False) -> int:
    """Run the environment's Python, in the project."""
    return subprocess.run([PYTHON, *arguments], cwd=PROJECT, check=check).returncode


def complain(message: str, code: int = 1) -> int:
    """Say what is wrong."""
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
