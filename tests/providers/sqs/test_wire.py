"""Calls without the SDK's pipeline: what is sent, signed and answered is what the SDK makes of it."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from queue_runtime.errors import QueueError
from queue_runtime.providers.asyncio_bridge import AsyncioBridge
from queue_runtime.providers.sqs import FACTORY
from queue_runtime.providers.sqs.api import SqsApi
from queue_runtime.providers.sqs.wire import FREQUENT

KEYS = ReadOnlyCredentials("AKIATEST", "the secret", "the token")
URL = "http://127.0.0.1/1/q"
HANDLE = {"Id": "0", "ReceiptHandle": "r"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "ChangeMessageVisibilityBatch": {
        "QueueUrl": URL,
        "Entries": [HANDLE | {"VisibilityTimeout": 3}],
    },
    "DeleteMessageBatch": {"QueueUrl": URL, "Entries": [HANDLE]},
    "ReceiveMessage": {
        "QueueUrl": URL,
        "MaxNumberOfMessages": 10,
        "MessageAttributeNames": ("All",),
        "ReceiveRequestAttemptId": "attempt",
    },
    "SendMessageBatch": {
        "QueueUrl": URL,
        "Entries": [
            {
                "Id": "0",
                "MessageBody": "grüße \u2028 & \U0001f600",
                "MessageAttributes": {
                    "data": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
                    "text": {"DataType": "String", "StringValue": "x"},
                },
            }
        ],
    },
}


@attrs.frozen
class Answer:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes


class Endpoint(ThreadingHTTPServer):
    """Notes what it is asked, and answers what it is told to."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        self.answers: deque[Answer] = deque()

    @property
    def url(self) -> str:
        return (
            f"sqs://eu-north-1?endpoint_url=http://127.0.0.1:{self.server_port}"
            f"&access_key_id={KEYS.access_key}&secret_access_key=the%20secret&session_token=the%20token"
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:  # as the base class calls it
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.path, headers, body))
        answer = self.server.answers.popleft() if self.server.answers else Answer()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def ask(endpoint: Endpoint, *operations: str) -> list[dict[str, Any] | QueueError]:
    """The outcomes of calls one after the other, of one client."""
    outcomes: list[dict[str, Any] | QueueError] = []
    bridge = await AsyncioBridge.open("test-wire")
    try:
        api = await bridge.run(SqsApi.open, FACTORY.config_from_url(endpoint.url))
        try:
            for operation in operations:
                try:
                    parameters = PARAMETERS[operation]
                    outcomes.append(await bridge.run(api.call, operation, "q", parameters))
                except QueueError as error:
                    outcomes.append(error)
        finally:
            await bridge.run(api.aclose)
    finally:
        await bridge.aclose()
    return outcomes


@pytest.mark.parametrize("operation", sorted(FREQUENT))
async def test_the_same_is_sent(endpoint: Endpoint, operation: str) -> None:
    await ask(endpoint, operation, operation)
    sdk, own = endpoint.asked
    assert json.loads(own.body) == json.loads(sdk.body)
    assert own.path == sdk.path
    for headers in (sdk.headers, own.headers):
        signature = headers.pop("authorization")
        assert signature.startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
        assert "/eu-north-1/sqs/aws4_request, SignedHeaders=" in signature
        for name in ("amz-sdk-invocation-id", "amz-sdk-request", "content-length", "x-amz-date"):
            headers.pop(name, None)
    assert own.headers == sdk.headers
    assert own.headers["x-amz-security-token"] == "the token"


async def test_the_signature_is_that_of_the_sdk(endpoint: Endpoint) -> None:
    await ask(endpoint, *["SendMessageBatch"] * 4)
    url = f"http://127.0.0.1:{endpoint.server_port}/"
    for asked in endpoint.asked[1:]:
        authorization = asked.headers["authorization"]
        signed = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        request = AWSRequest(
            "POST", url, {name: asked.headers[name] for name in signed}, asked.body
        )
        request.context["timestamp"] = asked.headers["x-amz-date"]
        auth = SigV4Auth(KEYS, "sqs", "eu-north-1")
        expected = auth.signature(
            auth.string_to_sign(request, auth.canonical_request(request)), request
        )
        assert authorization.endswith(f"Signature={expected}")
        assert {"host", "x-amz-date", "x-amz-security-token", "x-amz-target"} <= set(signed)


async def test_what_is_received_is_the_same(endpoint: Endpoint) -> None:
    message = {
        "MessageId": "m",
        "Body": "grüße",
        "Attributes": {"SequenceNumber": "7"},
        "MessageAttributes": {
            "data": {"DataType": "Binary", "BinaryValue": "AP8="},
            "text": {"DataType": "String", "StringValue": "x"},
        },
    }
    for _ in range(2):
        endpoint.answers.append(Answer(body=json.dumps({"Messages": [message]}).encode()))
    sdk, own = await ask(endpoint, "ReceiveMessage", "ReceiveMessage")
    assert isinstance(sdk, dict)
    assert isinstance(own, dict)
    assert own["Messages"] == sdk["Messages"]
    assert own["Messages"][0]["MessageAttributes"]["data"]["BinaryValue"] == b"\x00\xff"


THROTTLED = b'{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slower"}'
GONE = b'{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no such queue"}'


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, GONE),
        Answer(
            400,
            GONE,
            {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
        ),
        Answer(400, THROTTLED, {"Retry-After": "7"}),
        Answer(403, b'{"__type":"AccessDeniedException","Message":"no"}'),
        Answer(403, b'{"__type":"SignatureDoesNotMatch","message":"the token"}'),
        Answer(403, b"<html>who are you?</html>"),
        Answer(429, b""),
        Answer(500, b'{"__type":"InternalFailure"}'),
        Answer(503, b"<html>busy</html>", {"Retry-After": "2"}),
        Answer(503, b""),
    ],
    ids=str,
)
async def test_refusals_are_the_same(endpoint: Endpoint, answer: Answer) -> None:
    endpoint.answers.append(answer)
    [sdk] = await ask(endpoint, "SendMessageBatch")
    endpoint.answers.extend([Answer(), answer])
    _, own = await ask(endpoint, "SendMessageBatch", "SendMessageBatch")
    assert isinstance(sdk, QueueError)
    assert isinstance(own, QueueError)
    assert type(own) is type(sdk)
    assert str(own) == str(sdk)
    assert own.retry_after == sdk.retry_after
    assert own.is_transient == sdk.is_transient
    assert "the token" not in str(own)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>welcome</html>"),
        Answer(200, b"[]"),
        Answer(200, b"[" * 100_000),
        Answer(200, b"\xff\xfe"),
        Answer(400, b"\xff\xfe"),
        Answer(400, b"[]"),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:9]}",
)
async def test_an_answer_that_is_none_is_an_error(endpoint: Endpoint, answer: Answer) -> None:
    endpoint.answers.extend([Answer(), answer])
    _, own = await ask(endpoint, "ReceiveMessage", "ReceiveMessage")
    assert isinstance(own, QueueError)
    assert "not" in str(own)


async def test_an_empty_answer_is_an_empty_one(endpoint: Endpoint) -> None:
    endpoint.answers.extend([Answer(), Answer(body=b"")])
    assert (await ask(endpoint, "ReceiveMessage", "ReceiveMessage"))[1] == {}
