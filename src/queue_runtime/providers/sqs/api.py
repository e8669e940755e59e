"""One client of the SDK on the bridge's loop: credentials, timeouts, and every error mapped.

Nothing else here talks to SQS; the calls made all the time go through :mod:`.wire`. The SDK's own retries are off:
ours, above the ports, would multiply them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, final

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioCredentials,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession
from botocore import xform_name
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)
from botocore.parsers import ResponseParserError

from queue_runtime.errors import ConnectionFailed, OperationTimeout, QueueError
from queue_runtime.secret import Secret

from .config import SqsConfig
from .errors import Call, from_botocore, safe_cause
from .wire import Wire

__all__ = ["SqsApi", "never_arrived"]

_FAILURES: Final = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
    TimeoutError,
)
"""What a call of the SDK raises; all but the first three come through from below it."""


@final
class SqsApi:
    """Calls of SQS by name. Made by :meth:`open`; belongs to the loop it was made on.

    Attributes:
        calls: How many requests were sent so far, by operation.
    """

    @classmethod
    async def open(cls, config: SqsConfig) -> SqsApi:
        """Find credentials and make the client; nothing is sent to SQS.

        Raises:
            ConfigurationError: No region anywhere, an unknown profile …
            AuthenticationFailed: There are no credentials, or they could not be fetched.
        """
        stack = AsyncExitStack()
        try:
            session = await _session(config)
            credentials = await session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            wire = Wire(credentials)
            client = await stack.enter_async_context(
                session.create_client(
                    "sqs",
                    region_name=config.region,
                    endpoint_url=config.endpoint_url,
                    config=_client_config(config, wire),
                )
            )
        except _FAILURES as error:
            await stack.aclose()
            raise from_botocore(error, Call(operation="the SDK")) from safe_cause(error)
        return cls(config, client, wire, stack)

    def __init__(self, config: SqsConfig, client: Any, wire: Wire, stack: AsyncExitStack) -> None:
        self.calls: Counter[str] = Counter()
        self.region: str = client.meta.region_name
        self._client = client
        self._wire = wire
        self._stack = stack
        # A long poll is answered within its wait, anything else at once; what exceeds that is lost.
        self._patience = config.read_timeout - config.wait_time

    async def call(
        self,
        operation: str,
        queue: str,
        parameters: Mapping[str, Any],
        *,
        wait: float = 0.0,
        size: int = 0,
        count: int = 0,
    ) -> dict[str, Any]:
        """One request.

        Args:
            operation: As SQS calls it, such as ``SendMessageBatch``.
            queue: The queue's name, for errors.
            parameters: The request.
            wait: Seconds that SQS may take on purpose (a long poll).
            size: Bytes of what is sent, for errors.
            count: Entries of the batch, for errors.

        Raises:
            QueueError: See :mod:`.errors`.
        """
        self.calls[operation] += 1
        answer: dict[str, Any]
        try:
            async with asyncio.timeout(self._patience + wait):
                if self._wire.knows(operation):
                    answer = await self._wire.call(operation, parameters)
                else:
                    answer = await getattr(self._client, xform_name(operation))(**parameters)
        except _FAILURES as error:
            call = Call(operation=operation, queue=queue, size=size, count=count)
            raise from_botocore(error, call) from safe_cause(error)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._stack.aclose()


def never_arrived(error: QueueError) -> bool:
    """Whether the request of a failed call did not reach SQS for certain."""
    if not isinstance(error, (ConnectionFailed, OperationTimeout)):
        return True
    cause = error.__cause__
    if isinstance(cause, EndpointConnectionError):
        # The SDK says so of a connection that broke as well as of one that was never made.
        return isinstance(cause.kwargs.get("error"), aiohttp.ClientConnectorError)
    return isinstance(cause, ConnectTimeoutError)


def _client_config(config: SqsConfig, wire: Wire) -> AioConfig:
    return AioConfig(
        http_session_cls=wire.open_session,
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        max_pool_connections=config.max_connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        # The codec and the batches make sound requests; checking them again costs a tenth of a call.
        parameter_validation=False,
        tcp_keepalive=True,
        # Putting the SDK's own together takes some 80 µs of every request.
        user_agent="queue-runtime aiobotocore",
    )


# --- credentials ---------------------------------------------------------------------------------------


async def _session(config: SqsConfig) -> AioSession:
    """A session with the credentials the configuration asks for: its own, a role's, or the SDK's chain."""
    session = AioSession(profile=config.profile)
    if config.role_arn is None:
        if config.access_key_id is not None:
            session.set_credentials(*_keys(config))
        return session
    if config.access_key_id is not None:
        source: Any = AioCredentials(*_keys(config))
    else:
        source = await session.get_credentials()
        if source is None:
            raise NoCredentialsError
    return _in_role(config, session, source)


def _keys(config: SqsConfig) -> tuple[str | None, str | None, str | None]:
    return (
        _revealed(config.access_key_id),
        _revealed(config.secret_access_key),
        _revealed(config.session_token),
    )


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()


def _in_role(config: SqsConfig, source_session: AioSession, source: Any) -> AioSession:
    """A session whose credentials are those of the role; fetched when first needed, and before they expire."""
    extra = {"RoleSessionName": config.role_session_name}
    if config.external_id is not None:
        extra["ExternalId"] = config.external_id
    fetcher = AioAssumeRoleCredentialFetcher(
        partial(source_session.create_client, region_name=config.region),
        source,
        config.role_arn,
        extra_args=extra,
    )
    session = AioSession(profile=config.profile)
    session.register_component("credential_provider", _RoleCredentials(fetcher))
    return session


@final
class _RoleCredentials:
    """What a session asks for its credentials."""

    def __init__(self, fetcher: AioAssumeRoleCredentialFetcher) -> None:
        self._fetcher = fetcher

    async def load_credentials(self) -> AioDeferredRefreshableCredentials:
        return AioDeferredRefreshableCredentials(
            refresh_using=self._fetcher.fetch_credentials, method="assume-role"
        )
