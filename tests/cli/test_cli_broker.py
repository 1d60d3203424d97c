"""``broker`` and ``completion``, and the reference that is generated from the commands."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anyio_sendproducer.cli import _broker
from tests.support.cli_runs import run_main
from tests.support.paths import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_broker_runs_until_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "anyio_sendproducer", "broker"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"A broker listens at (127\.0\.0\.1:\d+)\. ", line)
        assert found is not None
        assert run_main("check", "-b", found[1]) == 0
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "anyio-sendproducer: interrupted\n")
    assert run_main("check", "-b", found[1]) == 1


def test_a_broker_on_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int | None] = []

    def run(port: int | None) -> int:
        ports.append(port)
        return 0

    monkeypatch.setattr(_broker, "run", run)
    assert run_main("broker", "--port", "9092") == 0
    assert ports == [9092]


def test_a_broker_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere")
    assert run_main("broker") == 3
    assert "/nowhere" in capsys.readouterr().err


def test_a_crash_of_the_broker_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    until_it_ends = _broker._until_it_ends

    async def crash(broker: Any) -> None:
        os.kill(broker.pid, signal.SIGKILL)
        await until_it_ends(broker)

    monkeypatch.setattr(_broker, "_until_it_ends", crash)
    assert run_main("broker") == 3
    assert "ended by itself" in capsys.readouterr().err


def test_ctrl_c_before_the_broker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_broker, "run_on", interrupt)
    assert run_main("broker") == 0


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("completion", shell) == 0
    assert f"_ANYIO_SENDPRODUCER_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_words(tmp_path: Path) -> None:
    command = tmp_path / "anyio-sendproducer"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m anyio_sendproducer "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(anyio-sendproducer completion bash)"
        COMP_WORDS=(anyio-sendproducer produce --dri)
        COMP_CWORD=2
        _anyio_sendproducer_completion anyio-sendproducer
        echo "${COMPREPLY[@]}"
        COMPREPLY=()
        COMP_WORDS=(anyio-sendproducer produce --driver c)
        COMP_CWORD=3
        _anyio_sendproducer_completion anyio-sendproducer
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["--driver", "confluent"]


def complete_for_zsh(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Set the variables of the script for zsh: all words, and the index of the last word."""
    monkeypatch.setenv("_ANYIO_SENDPRODUCER_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("anyio-sendproducer", *words)))
    monkeypatch.setenv("COMP_CWORD", f"{len(words)}")


def complete_for_fish(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Set the variables of the script for fish: all words, and the last word."""
    monkeypatch.setenv("_ANYIO_SENDPRODUCER_COMPLETE", "fish_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("anyio-sendproducer", *words)))
    monkeypatch.setenv("COMP_CWORD", words[-1])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["pro"], ["plain", "produce", "Send lines, JSON Lines or CSV, "]),
        (["produce", "--dri"], ["plain", "--driver", "The client library. "]),
        (["produce", "--driver", "c"], ["plain", "confluent", "_"]),
        (["check", "--loop", "u"], ["plain", "uvloop", "_"]),
        (["produce", "--config", "x"], ["file", "x", "_"]),
    ],
)
def test_words_are_completed(
    words: list[str],
    answer: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # zsh gets the kind, the word and its help, each on its own line.
    complete_for_zsh(monkeypatch, *words)
    assert run_main() == 0
    found = capsys.readouterr().out.splitlines()
    assert found[:2] == answer[:2]
    assert len(found) == 3
    assert found[2].startswith(answer[2])
    # fish gets the kind and the word, and the help after a tab if there is help.
    complete_for_fish(monkeypatch, *words)
    assert run_main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    kind, _, rest = line.partition(",")
    word, _, text = rest.partition("\t")
    assert [kind, word] == answer[:2]
    assert text.startswith(answer[2].rstrip("_"))


# --- the reference -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that generates the reference."""
    path = ROOT / "docs" / "_ext" / "command_reference.py"
    spec = importlib.util.spec_from_file_location("command_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(reference: ModuleType) -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert reference.page(text) == text, "run docs/_ext/command_reference.py"


def test_the_reference_has_every_command(reference: ModuleType) -> None:
    made: str = reference.reference()
    for name in ("produce", "check", "broker", "demo", "completion"):
        assert f"## anyio-sendproducer {name}\n" in made
    assert "\n`--failed FILE`\n: The file for failed records" in made
