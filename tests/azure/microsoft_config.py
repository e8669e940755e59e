"""Print the configuration with which Microsoft's emulator, or ours, has the queues that tests expect of a namespace."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.azure.given import CONTRACT_QUEUES, SHORT


def queues() -> dict[str, dict[str, Any]]:
    """``QUEUES`` as written in ``test_conformance.py``: to import it takes an SDK."""
    source = Path(__file__).with_name("test_conformance.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "QUEUES":
            assert isinstance(statement.value, ast.Dict)
            return {
                ast.literal_eval(key): {
                    str(word.arg): SHORT
                    if ast.unparse(word.value) == "LOCK"
                    else ast.literal_eval(word.value)
                    for word in call.keywords
                }
                for key, call in zip(statement.value.keys, statement.value.values, strict=True)
                if key is not None and isinstance(call, ast.Call)
            }
    raise LookupError("no QUEUES in test_conformance.py")


def seconds(value: float) -> str:
    """As ISO 8601 has it."""
    return f"PT{value:g}S"


def configuration() -> dict[str, Any]:
    """What Microsoft's emulator reads as ``Config.json``."""
    return {
        "UserConfig": {
            "Namespaces": [
                {
                    "Name": "sbemulatorns",
                    "Queues": [
                        {
                            "Name": name,
                            "Properties": {
                                "DeadLetteringOnMessageExpiration": settings.get(
                                    "dead_letter_expired", False
                                ),
                                "DefaultMessageTimeToLive": "PT1H",
                                "DuplicateDetectionHistoryTimeWindow": seconds(
                                    settings.get("duplicate_window", 20.0)
                                ),
                                "LockDuration": seconds(settings.get("lock_duration", 60.0)),
                                "MaxDeliveryCount": settings.get("max_delivery_count", 10),
                                "RequiresDuplicateDetection": "duplicate_window" in settings,
                                "RequiresSession": settings.get("requires_session", False),
                            },
                        }
                        for name, settings in (queues() | CONTRACT_QUEUES).items()
                    ],
                    "Topics": [],
                }
            ],
            "Logging": {"Type": "File"},
        }
    }


if __name__ == "__main__":
    json.dump(configuration(), sys.stdout, indent=2)
    print()
