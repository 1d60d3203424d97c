"""Runs tests/broker/stress.py for a minute, and checks how it subtracts stalls from waits."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.broker.stress import Report
from tests.support.paths import ROOT


@pytest.mark.nightly
def test_no_call_hangs_while_threads_switch_at_every_point() -> None:
    command = [sys.executable, "-m", "tests.broker.stress", "--seconds", "60"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_stall_of_the_machine_does_not_count() -> None:
    report = Report()
    report.waits = [(0.0, 3.0, "send"), (10.0, 10.5, "flush")]
    report.stalls = [(-1.0, 1.0), (2.5, 9.0)]
    assert report.net() == [(1.5, 3.0, "send"), (0.5, 0.5, "flush")]
