"""``provision`` where there is nothing to do; what it does on SQS and on Service Bus is tested with those providers."""

from __future__ import annotations

import json

from .conftest import Cli


def test_a_broker_that_creates_queues_by_itself_says_so(cli: Cli) -> None:
    result = cli.on_queue("provision")
    assert result.exit_code == 2
    assert "provisioning" in result.stderr
    assert "Traceback" not in result.stderr


def test_and_to_machines_too(cli: Cli) -> None:
    result = cli.on_queue("provision", "--json")
    assert result.exit_code == 2
    assert "provisioning" in json.loads(result.stderr)["message"]


def test_the_queue_has_to_be_named(cli: Cli) -> None:
    result = cli("provision", "--url", "memory://")
    assert result.exit_code == 2
    assert "no queue" in result.stderr
