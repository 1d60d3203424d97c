"""``produce`` sends a long file during outages of a broker, and accounts for every line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.matrix import FULL
from tests.support.cli_runs import account_for_each_line
from tests.support.fault_proxy import proxied_broker

#: The number of lines of a file. kafka-python takes several times as long for each line.
LINES = {
    "kafka-python": 1_000_000 if FULL else 100_000,
    "confluent": 1_000_000 if FULL else 200_000,
}


@pytest.mark.parametrize("timeout", ["60", "5"])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
def test_a_long_file(driver: str, loop: str, timeout: str, tmp_path: Path) -> None:
    with proxied_broker() as proxy:
        run = account_for_each_line(
            proxy,
            tmp_path,
            lines=LINES[driver],
            loop=loop,
            driver=driver,
            timeout=timeout,
            as_file=True,
        )
    # There was a progress bar, and it made progress.
    sent = [bar[0] for bar in run.bars]
    assert len(set(sent)) > 5
    assert sent[-1] == run.report["delivered"]
