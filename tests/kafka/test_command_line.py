"""The command line on Apache Kafka: a long file while a broker is killed and restarted, and the
output of ``check`` for several listeners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.brief import IN_FULL
from tests.support.cli_runs import account_for_each_line, run_main
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.kafka_security import Authority, sasl_listener, ssl_listener


class Killed:
    """A broker that is killed in the middle, and restarted."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self.address = cluster.bootstrap_servers

    def refuse(self) -> None:
        """Kill the broker."""
        self._cluster.kill(1)

    def heal(self) -> None:
        """Restart the broker with its data."""
        self._cluster.start(1)


@pytest.mark.parametrize(
    ("driver", "loop", "lines"),
    [
        ("confluent", "asyncio", 1_000_000 if IN_FULL else 200_000),
        ("kafka-python", "trio", 200_000 if IN_FULL else 100_000),
    ],
)
def test_a_long_file(driver: str, loop: str, lines: int, tmp_path: Path) -> None:
    with kafka_cluster() as cluster:
        cluster.create_topic("outage", partitions=4)
        account_for_each_line(
            Killed(cluster),
            tmp_path,
            lines=lines,
            loop=loop,
            driver=driver,
            timeout="60",
            as_file=True,
        )


@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
def test_check_reports_each_listener(
    driver: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path / "trusted")
    stranger = Authority(tmp_path / "stranger")
    listeners = [
        ssl_listener("SSL", authority.issue()),
        sasl_listener("SASL", ["PLAIN"], users={"alice": "right"}),
    ]
    with kafka_cluster(listeners=listeners) as cluster:

        def check(listener: str, *properties: str) -> tuple[int, dict[str, Any]]:
            words = [word for one in properties for word in ("-X", one)]
            servers = cluster.bootstrap(listener)
            arguments = ["-b", servers, "--driver", driver, "--start-timeout", "5", "--json"]
            code = run_main("check", *arguments, *words)
            report = json.loads(capsys.readouterr().out)
            return code, {step["name"]: step for step in report["steps"]}

        login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=alice")
        code, steps = check("PLAINTEXT")
        assert (code, steps["cluster"]["state"]) == (0, "ok")
        assert ("protocol of Kafka 4" in steps["cluster"]["details"][1]) is (
            driver == "kafka-python"
        )

        trusted = f"ssl.truststore.location={authority.issue().authority}"
        code, steps = check("SSL", "security.protocol=SSL", trusted)
        assert (code, steps["tls"]["state"], steps["cluster"]["state"]) == (0, "ok", "ok")

        distrusted = f"ssl.truststore.location={stranger.issue().authority}"
        code, steps = check("SSL", "security.protocol=SSL", distrusted)
        assert (code, steps["tls"]["state"]) == (1, "failed")
        assert "its certificate" in steps["tls"]["details"][0]

        code, steps = check("SASL", *login, "sasl.password=right")
        assert (code, steps["authenticate"]["details"]) == (0, ["logged in by PLAIN"])

        code, steps = check("SASL", *login, "sasl.password=wrong")
        assert (code, steps["authenticate"]["state"]) == (1, "failed")
        assert "the user's name and password" in steps["authenticate"]["hint"]
        assert "wrong" not in json.dumps(steps)
