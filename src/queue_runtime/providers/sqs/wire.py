"""The calls made all the time, without the SDK's pipeline around them (ADR 14).

The SDK makes the first call of each operation. What it sent - address, headers, region - is the pattern of the
later ones, which put their own JSON into it, are signed by the SDK's signer with its credentials, and travel through
the SDK's HTTP session: connections, TLS, proxies, timeouts and the errors of all these stay the SDK's.
Refusals are read by the SDK's parser.
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final, final

import attrs
from aiobotocore.httpsession import AIOHTTPSession
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError
from botocore.parsers import JSONParser, ResponseParserError

__all__ = ["FREQUENT", "Wire"]

FREQUENT: Final = frozenset(
    {
        "ChangeMessageVisibilityBatch",
        "DeleteMessageBatch",
        "ReceiveMessage",
        "SendMessageBatch",
    }
)
"""The operations that may go this way; of their answers only received attributes hold what is not plain JSON."""

_PER_CALL: Final = frozenset(
    {
        "amz-sdk-invocation-id",
        "amz-sdk-request",
        "authorization",
        "content-length",
        "x-amz-date",
        "x-amz-security-token",
        "x-amzn-trace-id",
    }
)
"""Headers that belong to one call."""

_SIGNED: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^,]*/\d{8}/(?P<region>[^/,]+)/(?P<service>[^/,]+)/aws4_request,"
)
_JSON: Final = "application/x-amz-json-1.0"
_NO_BODY: Final = sha256().hexdigest()


@final
@attrs.frozen(eq=False)
class _Pattern:
    """What the calls of one operation have in common."""

    url: str
    headers: Mapping[str, str]
    region: str
    service: str


@final
@attrs.frozen(eq=False)
class _Signing:
    """What the signatures of one operation have in common for a second: all but the hash of the body.

    Args:
        second: Of the clock.
        credentials: Frozen ones.
        auth: The SDK's signer.
        request: An empty one that ``auth`` has signed.
        canonical: What is signed of it, less the hash of the body at its end.
        headers: Of every request of this second, less the signature at the end of ``Authorization``.
    """

    second: int
    credentials: Any
    auth: Any
    request: Any
    canonical: str
    headers: Mapping[str, str]

    def sign(self, body: bytes) -> dict[str, str]:
        """The headers of a request with that body."""
        canonical = self.canonical + sha256(body).hexdigest()
        text = self.auth.string_to_sign(self.request, canonical)
        signature = self.auth.signature(text, self.request)
        return {**self.headers, "Authorization": self.headers["Authorization"] + signature}


@final
@attrs.frozen(eq=False)
class _Request:
    """As much of the SDK's prepared request as its HTTP session looks at."""

    url: str
    headers: dict[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    method: str = "POST"
    stream_output: bool = False


@final
class _Noticing:
    """The HTTP session of the SDK's client: shows what the SDK sends.

    Args:
        session: The SDK's own.
        notice: Is shown every request.
    """

    def __init__(self, session: Any, notice: Callable[[Any], None]) -> None:
        self._session = session
        self._notice = notice

    async def __aenter__(self) -> _Noticing:
        await self._session.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._session.__aexit__(*exception)

    async def close(self) -> None:
        await self._session.close()

    async def send(self, request: Any) -> Any:
        self._notice(request)
        return await self._session.send(request)


@final
class Wire:
    """The short way of one client. Belongs to its loop.

    Args:
        credentials: Of the SDK; they are refreshed by it when that is due.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._session: Any = None
        self._patterns: dict[str, _Pattern] = {}
        self._signings: dict[str, _Signing] = {}
        self._parser = JSONParser()

    def open_session(self, **options: Any) -> _Noticing:
        """The HTTP session of the SDK's client: for ``AioConfig.http_session_cls``."""
        self._session = AIOHTTPSession(**options)
        return _Noticing(self._session, self._note)

    def _note(self, request: Any) -> None:
        """Keep what the SDK sends as the pattern for calls of that operation, if it is what this module can do."""
        headers = {name: _text(value) for name, value in request.headers.items()}
        known = {name.lower(): value for name, value in headers.items()}
        _, _, operation = known.get("x-amz-target", "").rpartition(".")
        signed = _SIGNED.match(known.get("authorization", ""))
        if operation in FREQUENT and signed is not None and known.get("content-type") == _JSON:
            common = {
                name: value for name, value in headers.items() if name.lower() not in _PER_CALL
            }
            self._patterns[operation] = _Pattern(
                request.url, common, signed["region"], signed["service"]
            )

    def knows(self, operation: str) -> bool:
        """Whether :meth:`call` can make calls of that operation."""
        return operation in self._patterns

    async def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One request.

        Raises:
            ClientError: It was refused.
            ResponseParserError: The answer is none of SQS's.
            BotoCoreError: Whatever else the SDK would raise.
        """
        pattern = self._patterns[operation]
        body = json.dumps(parameters, separators=(",", ":"), default=_to_json).encode()
        credentials = await self._credentials.get_frozen_credentials()
        second = int(time.time())
        signing = self._signings.get(operation)
        if (
            signing is None
            or signing.second != second
            or (
                signing.credentials is not credentials
                and tuple(signing.credentials) != tuple(credentials)
            )
        ):
            signing = self._signings[operation] = _signing(pattern, credentials, second)
        response = await self._session.send(_Request(pattern.url, signing.sign(body), body))
        content: bytes = await response.content
        if response.status_code >= 300:
            raise ClientError(self._refusal(response, content), operation)
        return _answer(content)

    def _refusal(self, response: Any, content: bytes) -> dict[str, Any]:
        answer = {
            "headers": response.headers,
            "status_code": response.status_code,
            "body": content,
            "context": {},
        }
        try:
            parsed: dict[str, Any] = self._parser.parse(answer, None)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            status = response.status_code
            raise ResponseParserError(f"the answer, of status {status}, is not SQS's") from error
        return parsed


def _signing(pattern: _Pattern, credentials: Any, second: int) -> _Signing:
    request = AWSRequest("POST", pattern.url, headers=dict(pattern.headers), data=b"")
    auth = SigV4Auth(credentials, pattern.service, pattern.region)
    auth.add_auth(request)
    authorization, _, _ = request.headers["Authorization"].rpartition("=")
    del request.headers["Authorization"]  # it does not sign itself
    canonical = auth.canonical_request(request).removesuffix(_NO_BODY)
    headers = {name: _text(value) for name, value in request.headers.items()}
    headers["Authorization"] = f"{authorization}="
    return _Signing(second, credentials, auth, request, canonical, headers)


def _answer(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise ResponseParserError(f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise ResponseParserError("the answer is not a JSON object")
    for message in answer.get("Messages") or ():
        for attribute in (message.get("MessageAttributes") or {}).values():
            data = attribute.get("BinaryValue")
            if data is not None:
                attribute["BinaryValue"] = b64decode(data)
    return answer


def _to_json(value: object) -> str:
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    raise TypeError(f"{type(value).__name__} is nothing that SQS is sent")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
