"""Named starting points. A preset lies right above the defaults: files, environment and arguments override it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from queue_runtime.errors import ConfigurationError

from .structuring import did_you_mean, shown

__all__ = ["PRESETS", "preset"]

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # Keep every stage busy: large windows, and sessions that do not wait for each confirmation.
        "high_throughput": {
            "supervisor": {
                "settlement": "pipelined",
                "max_unsettled_ahead": 128,
                "max_in_flight": 8192,
                "max_per_session": 256,
                "max_concurrent_sessionless": 1000,
            },
        },
        # Settle at once, keep sessions open between messages, retry soon.
        "low_latency": {
            "supervisor": {
                "settle_max_age": 0.0,
                "idle_timeout": 60.0,
                "max_per_session": 16,
                "retry": {"initial": 0.05, "max_delay": 5.0},
            },
            "client": {"retry": {"initial": 0.02, "max_delay": 1.0}},
        },
        # Few broker calls: the longest poll SQS knows (20 s), full settlement batches, rare renewals.
        "cost": {
            "supervisor": {
                "settle_max_age": 0.5,
                "receive_timeout": 20.0,
                "renew_fraction": 0.6,
                "retry": {"initial": 5.0, "max_delay": 300.0},
            },
            "client": {"receive_timeout": 20.0},
        },
        # Small and quick, on the provider that needs nothing.
        "testing": {
            "provider": "memory://",
            "supervisor": {
                "max_in_flight": 64,
                "max_sessions": 100,
                "max_per_session": 8,
                "max_concurrent_sessionless": 8,
                "settle_max_age": 0.0,
                "idle_timeout": 0.5,
                "drain_timeout": 5.0,
                "receive_timeout": 1.0,
                "retry": {"initial": 0.01, "max_delay": 0.1, "max_attempts": 3},
            },
            "client": {
                "receive_timeout": 1.0,
                "operation_timeout": 5.0,
                "retry": {"initial": 0.01, "max_delay": 0.1, "max_attempts": 3},
            },
            "logging": {"level": "debug"},
        },
    }
)
"""Settings by preset, in the shape of a configuration file."""


def preset(name: str) -> Mapping[str, Any]:
    """The settings of preset ``name``, in the shape of a configuration file or of ``load_config``'s overrides.

    Naming the preset (``preset = "cost"`` in the file, ``{"preset": "cost"}`` as an override) puts them
    below the file and the environment; passing them as overrides puts them above.

    Raises:
        ConfigurationError: There is no such preset.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigurationError(
            f"preset {shown(name)} is unknown" + did_you_mean(name, PRESETS)
        ) from None
