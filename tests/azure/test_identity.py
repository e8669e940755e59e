"""Signing in by azure-identity: its real credentials, a local authority that gives tokens, the emulator over TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import attrs
import pytest

from queue_runtime.testing.servicebus import Certificate

from .emulator_process import EmulatorProcess, emulator_process
from .token_server import HEADER, SECRET, Asked, TokenServer, token_server

TENANT = "contoso.test"
CLIENT = "01234567-89ab-cdef-0123-456789abcdef"
OTHER = "00000000-89ab-cdef-0123-456789abcdef"
CLIENT_PROGRAM = Path(__file__).with_name("identity_client.py")
EVERY_RIGHT = ("Listen", "Send", "Manage")


@attrs.frozen
class Place:
    """An emulator over TLS, and two servers that give tokens for it."""

    emulator: EmulatorProcess
    machine: TokenServer
    entra: TokenServer
    entra_ca: Path
    both_ca: Path

    def queue(self) -> str:
        name = f"identity-{uuid4().hex[:12]}"
        self.emulator.create_queue(name, requires_session=True)
        return name

    def ask(
        self,
        environment: Mapping[str, str],
        *,
        queue: str | None = None,
        seconds: float = 0.0,
        **options: str,
    ) -> dict[str, Any]:
        """What a client says that has this environment and no other."""
        query = {
            "custom_endpoint": self.emulator.endpoint,
            "verify": str(self.emulator.ca_file),
            **options,
        }
        run = subprocess.run(
            [
                *(sys.executable, CLIENT_PROGRAM),
                *(f"azure://localhost.localdomain?{urlencode(query)}", queue or self.queue()),
                str(seconds),
            ],
            env={
                **{name: os.environ[name] for name in KEPT if name in os.environ},
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert SECRET not in run.stdout + run.stderr
        assert HEADER not in run.stdout + run.stderr
        assert "Unclosed" not in run.stderr
        said: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return said

    @property
    def app_service(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": f"{self.machine.url}/msi/token", "IDENTITY_HEADER": HEADER}


KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    # By another name than the emulator's: two of one name in one file are not told apart.
    other = Certificate(hosts=("127.0.0.1", "localhost"))
    context, ca = other.make(tmp_path_factory.mktemp("entra"))
    with (
        emulator_process(tls=True) as emulator,
        token_server(emulator.issue_token) as machine,
        token_server(emulator.issue_token, context) as entra,
    ):
        assert emulator.ca_file is not None
        both = tmp_path_factory.mktemp("both") / "ca.pem"
        both.write_text(ca.read_text() + Path(emulator.ca_file).read_text())
        yield Place(emulator, machine, entra, ca, both)


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    yield running
    for server in (running.machine, running.entra):
        server.asked.clear()
        server.known = {None}
        server.rights = EVERY_RIGHT
        server.is_down = False


def kinds(asked: list[Asked]) -> set[tuple[str, str | None]]:
    return {(each.path, each.fields.get("client_id")) for each in asked}


OK = {"bodies": ["0"], "counts": [1], "leases": 1, "depth": 0}
ENTRA = f"/{TENANT}/oauth2/v2.0/token"
APPLICATION = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": SECRET}


# --- the four ways -----------------------------------------------------------------------------------------


def test_a_connection_string(place: Place) -> None:
    text = place.emulator.connection_string.split(";", 1)[1]
    said = place.ask(
        {},
        connection_string=f"Endpoint=sb://localhost.localdomain/;{text}",
        auth="connection_string",
    )
    assert said.items() >= OK.items()
    assert not place.machine.asked


def test_the_machines_own_identity(place: Place) -> None:
    said = place.ask(place.app_service, auth="managed_identity")
    assert said.items() >= OK.items()
    assert kinds(place.machine.asked) == {("/msi/token", None)}


def test_a_user_assigned_identity(place: Place) -> None:
    place.machine.known = {CLIENT}
    said = place.ask(place.app_service, client_id=CLIENT)
    assert said.items() >= OK.items()
    assert kinds(place.machine.asked) == {("/msi/token", CLIENT)}


def test_the_identity_of_a_virtual_machine(place: Place) -> None:
    said = place.ask(
        {"AZURE_POD_IDENTITY_AUTHORITY_HOST": place.machine.url}, auth="managed_identity"
    )
    assert said.items() >= OK.items()
    assert kinds(place.machine.asked) == {("/metadata/identity/oauth2/token", None)}


def test_an_application_with_a_private_authority(place: Place) -> None:
    said = place.ask({}, **APPLICATION, authority=place.entra.host, verify=str(place.both_ca))
    assert said.items() >= OK.items()
    assert kinds(place.entra.asked) == {(ENTRA, CLIENT)}


def test_an_application_of_the_environment(place: Place) -> None:
    """What the platform says goes to azure-identity untouched, its trust too: ``verify`` is about the namespace."""
    environment = {
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": CLIENT,
        "AZURE_CLIENT_SECRET": SECRET,
        "AZURE_AUTHORITY_HOST": place.entra.url,
        "SSL_CERT_FILE": str(place.entra_ca),
    }
    said = place.ask(environment, auth="default")
    assert said.items() >= OK.items()
    assert kinds(place.entra.asked) == {(ENTRA, CLIENT)}


def test_the_chain_finds_a_workload_identity(place: Place, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-the-cluster")
    environment = {
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": CLIENT,
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AZURE_AUTHORITY_HOST": place.entra.url,
        "SSL_CERT_FILE": str(place.entra_ca),
    }
    said = place.ask(environment)
    assert said.items() >= OK.items()
    assert kinds(place.entra.asked) == {(ENTRA, CLIENT)}
    assert {each.fields["client_assertion"] for each in place.entra.asked} == {"of-the-cluster"}


def test_the_chain_finds_the_machines_identity(place: Place) -> None:
    said = place.ask(place.app_service)
    assert said.items() >= OK.items()
    assert kinds(place.machine.asked) == {("/msi/token", None)}


def test_the_chain_takes_the_identity_that_is_named(place: Place) -> None:
    place.machine.known = {OTHER}
    said = place.ask(
        place.app_service | {"AZURE_CLIENT_ID": CLIENT}, client_id=OTHER, auth="default"
    )
    assert said.items() >= OK.items()
    assert kinds(place.machine.asked) == {("/msi/token", OTHER)}


# --- what may be wrong -------------------------------------------------------------------------------------


def test_an_identity_that_is_not_there(place: Place) -> None:
    for named in ({"auth": "managed_identity"}, {"client_id": OTHER}):
        place.machine.known = {CLIENT}
        said = place.ask({"AZURE_POD_IDENTITY_AUTHORITY_HOST": place.machine.url}, **named)
        assert said["error"] == "AuthenticationFailed", said
        assert "name one that is assigned in client_id" in said["text"]


def test_no_identity_at_all(place: Place) -> None:
    # The machine that runs this may be one of Azure's: the chain is told to leave that out.
    said = place.ask({"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"})
    assert said["error"] == "AuthenticationFailed", said
    assert "say in auth where tokens come from" in said["text"]


def test_a_wrong_secret(place: Place) -> None:
    wrong = APPLICATION | {"client_secret": "canary-of-a-wrong-one"}
    said = place.ask({}, **wrong, authority=place.entra.host, verify=str(place.both_ca))
    assert said["error"] == "AuthenticationFailed", said
    assert "AADSTS7000215" in said["text"]
    assert "canary" not in json.dumps(said)


def test_an_authority_that_is_not_trusted(place: Place) -> None:
    said = place.ask(
        {}, **APPLICATION, authority=place.entra.host
    )  # by ``verify`` the emulator only
    assert said["error"] == "ConfigurationError", said
    assert "verify" in said["text"]


@pytest.mark.parametrize(("rights", "missing"), [(("Send",), "Listen"), (("Listen",), "Send")])
def test_a_role_that_is_missing(place: Place, rights: tuple[str, ...], missing: str) -> None:
    place.machine.rights = rights
    said = place.ask(place.app_service, auth="managed_identity")
    assert said["error"] == "PermissionDenied", said
    assert f"'{missing}' claim(s) are required" in said["text"]
    assert "give the identity a role" in said["text"]


def test_statistics_need_a_role_of_their_own(place: Place) -> None:
    place.machine.rights = ("Listen", "Send")
    said = place.ask(place.app_service, auth="managed_identity")
    assert said["bodies"] == ["0"]
    assert said["depth"].startswith("PermissionDenied"), said


def test_a_token_of_another_authority(place: Place) -> None:
    """One that the namespace does not trust: its tokens are signed by another key."""
    with (
        emulator_process(tls=True) as stranger,
        token_server(stranger.issue_token) as machine,
    ):
        environment = {"IDENTITY_ENDPOINT": f"{machine.url}/msi/token", "IDENTITY_HEADER": HEADER}
        said = place.ask(environment, auth="managed_identity")
    assert said["error"] == "AuthenticationFailed", said
    assert "eyJ" not in json.dumps(said)


def test_tokens_of_a_few_seconds_are_renewed(place: Place) -> None:
    """Over three lifetimes, with what azure-identity says when asked: links, locks and connections stay."""
    place.machine.lifetime, place.machine.refresh_in = 6.0, 1
    queue = place.queue()
    before = place.emulator.statistics()
    try:
        said = place.ask(place.app_service, auth="managed_identity", queue=queue, seconds=19.0)
    finally:
        place.machine.lifetime, place.machine.refresh_in = 3_600.0, None
    assert said["bodies"] == [str(number) for number in range(len(said["bodies"]))]
    assert len(said["bodies"]) > 20
    assert set(said["counts"]) == {1}
    assert said["leases"] == 1
    after = place.emulator.statistics()
    assert after["connections"] - before["connections"] == said["connections"]
    shown = after["requests"]["put-token"] - before["requests"].get("put-token", 0)
    assert shown >= 3 * said["connections"]
    assert len(place.machine.asked) >= 3
