"""The Service Bus to test against when ``QUEUE_RUNTIME_TEST_AZURE_URL`` names one, and the queues it has for the tests.

Free of SDKs: ``microsoft_config.py`` reads the queues from here as well.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

__all__ = [
    "CONTRACT_QUEUES",
    "KINDS",
    "LONG",
    "SHORT",
    "URL_VARIABLE",
    "given_url",
    "is_there",
    "require",
    "ring_of",
    "said",
]

URL_VARIABLE = "QUEUE_RUNTIME_TEST_AZURE_URL"
"""Names an ``azure://`` URL, or only a connection string, to test against instead of the emulator."""

KINDS = ("sessions", "plain")
SHORT, LONG = 5.0, 60.0
"""Lock durations: of the cases that wait for locks to expire (5 s is Azure's shortest), and of the others."""

DELIVERIES = 3
RING = 8
"""Queues of one kind and lock duration, used in turn where none can be created. Microsoft's emulator has 50 at most."""


def ring_of(kind: str, lock: float) -> list[str]:
    """The names of one ring of queues."""
    return [f"qr-contract-{kind}-{lock:g}s-{number}" for number in range(RING)]


CONTRACT_QUEUES: dict[str, dict[str, Any]] = {
    name: {
        "requires_session": kind == "sessions",
        "lock_duration": lock,
        "max_delivery_count": DELIVERIES,
        "dead_letter_expired": True,
    }
    for kind in KINDS
    for lock in (SHORT, LONG)
    for name in ring_of(kind, lock)
}


def given_url() -> str | None:
    """What the variable names, as a URL; ``None``: nothing, so the emulator is to be used."""
    given = os.environ.get(URL_VARIABLE)
    if not given:
        return None
    if not given.startswith("azure:"):
        return f"azure://?connection_string={quote(given, safe='')}"
    return given if "?" in given else f"{given}?"


def said(url: str) -> dict[str, str]:
    """The options of a URL."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}


def is_there(package: str) -> bool:
    """Whether a package is installed."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False


def require(*packages: str) -> None:
    """Skip where a package is missing; under ``CI`` fail."""
    for package in packages:
        if not is_there(package):
            reason = f"no {package} here: see tests/azure/README.md, or name a Service Bus in {URL_VARIABLE}"
            if os.environ.get("CI"):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason, allow_module_level=True)
