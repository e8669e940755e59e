"""Credentials that have to be fetched, and which failures leave a doubt."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest
import trio
from tests.sqs.emulator import Emulator, sqs_for_tests

from queue_runtime.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    PermissionDenied,
    QueueError,
)
from queue_runtime.messages import QueueName
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.sqs import FACTORY
from queue_runtime.providers.sqs.api import SqsApi, never_arrived
from queue_runtime.secret import Secret
from queue_runtime.testing import open_tcp_proxy

ROLE = "arn:aws:iam::123456789012:role/consumer"

ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/consumer/s</Arn><AssumedRoleId>A:s</AssumedRoleId>
</AssumedRoleUser><Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>role-secret</SecretAccessKey>
<SessionToken>role-token</SessionToken><Expiration>{until}</Expiration></Credentials></AssumeRoleResult>
</AssumeRoleResponse>"""

REFUSAL = """<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>
<Message>not allowed</Message></Error></ErrorResponse>"""


class SecurityTokens(BaseHTTPRequestHandler):
    """Answers ``AssumeRole``; what it gives is to expire soon."""

    asked: ClassVar[list[dict[str, Any]]] = []
    lives: ClassVar[timedelta] = timedelta(minutes=1)
    refuses: ClassVar[bool] = False

    def do_POST(self) -> None:  # as the base class calls it
        request = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append({name: value[0] for name, value in parse_qs(request).items()})
        until = (datetime.now(UTC) + self.lives).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = (REFUSAL if self.refuses else ANSWER.format(until=until)).encode()
        self.send_response(403 if self.refuses else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SecurityTokens]]:
    SecurityTokens.asked.clear()
    SecurityTokens.lives = timedelta(minutes=1)
    SecurityTokens.refuses = False
    with ThreadingHTTPServer(("127.0.0.1", 0), SecurityTokens) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        yield SecurityTokens
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with sqs_for_tests() as emulator:
        yield emulator


def in_role(emulator: Emulator) -> str:
    return f"{emulator.url}&role_arn={ROLE}&role_session_name=worker-7&external_id=their-id"


async def test_a_role_is_assumed_and_assumed_again_before_it_expires(
    emulator: Emulator, tokens: type[SecurityTokens]
) -> None:
    provider = await FACTORY.open(FACTORY.config_from_url(in_role(emulator)))
    try:
        await provider.provision(QueueName("role"))
        assert tokens.asked[0]["RoleArn"] == ROLE
        assert tokens.asked[0]["RoleSessionName"] == "worker-7"
        assert tokens.asked[0]["ExternalId"] == "their-id"
        before = len(tokens.asked)
        tokens.lives = timedelta(hours=1)
        await provider.open_sender(QueueName("role"))
        assert len(tokens.asked) == before + 1  # a minute was too little
        await provider.stats(QueueName("role"))
        assert len(tokens.asked) == before + 1  # an hour is enough
    finally:
        await provider.aclose()


async def test_a_role_that_is_refused(emulator: Emulator, tokens: type[SecurityTokens]) -> None:
    tokens.refuses = True
    provider = await FACTORY.open(FACTORY.config_from_url(in_role(emulator)))
    try:
        with pytest.raises((AuthenticationFailed, PermissionDenied), match="AssumeRole"):
            await provider.open_sender(QueueName("role"))
    finally:
        await provider.aclose()


async def failure_of_a_call(url: str) -> QueueError:
    bridge = await AsyncioBridge.open("test-api")
    try:
        api = await bridge.run(SqsApi.open, FACTORY.config_from_url(url))
        with pytest.raises(QueueError) as raised:
            await bridge.run(api.call, "ListQueues", "", {})
        await bridge.run(api.aclose)
        return raised.value
    finally:
        await bridge.aclose()


async def test_a_refused_connection_leaves_no_doubt(emulator: Emulator) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        proxy.refuse()
        error = await failure_of_a_call(emulator.url_through(proxy.port))
    assert isinstance(error, ConnectionFailed)
    assert never_arrived(error)


async def test_a_lost_answer_leaves_a_doubt(emulator: Emulator) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        proxy.cut_reply(matching=b"ListQueues")
        error = await failure_of_a_call(emulator.url_through(proxy.port))
    assert isinstance(error, ConnectionFailed)
    assert not never_arrived(error)


async def test_a_silent_endpoint_is_given_up(emulator: Emulator) -> None:
    async with open_tcp_proxy("127.0.0.1", emulator.port) as proxy:
        proxy.silence()
        began = trio.current_time()
        url = emulator.url_through(proxy.port)
        error = await failure_of_a_call(f"{url}&wait_time=1&read_timeout=1.5")
        assert trio.current_time() - began < 5
    assert error.is_transient
    assert not never_arrived(error)


async def test_what_is_secret_stays_so(emulator: Emulator) -> None:
    config = FACTORY.config_from_url(f"{emulator.url}&session_token=canary-token")
    assert isinstance(config.session_token, Secret)
    provider = await FACTORY.open(config)
    try:
        shown = repr(vars(provider)) + repr(vars(provider._api)) + repr(config)
        assert "canary-token" not in shown
    finally:
        await provider.aclose()
