"""What only the administration endpoint does, over HTTP: descriptions of queues, and counts. On the bridge's loop.

The SDK's client is used with a pipeline of our own. Its own one asks for TLS from emulators that have none, shows a
shared access signature as if it were a token, signs for the namespace what a queue's own policy may sign for the
queue only, makes a TLS context and with it a connection for every request where authorities are named, follows
redirects, and tries again by itself, which would multiply the retries above the ports.
"""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from typing import Any, Final, final
from urllib.parse import unquote, urlsplit

import aiohttp
import certifi
from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import ContentDecodePolicy, SansIOHTTPPolicy
from azure.core.pipeline.transport import AioHttpTransport
from azure.servicebus._common.constants import JWT_TOKEN_SCOPE, TOKEN_TYPE_SASTOKEN
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import QueueProperties
from azure.servicebus.management._xml_workaround_policy import ServiceBusXMLWorkaroundPolicy

from queue_runtime.messages import QueueStats

from .api import AzureApi, mapped

__all__ = ["Administration"]

_CONNECTIONS: Final = 4
"""Kept open at once: there is one question at a time, but for those who watch several queues."""


@final
class Administration:
    """The administration endpoint of a namespace. Nothing is opened before it is first asked.

    Attributes:
        requests: How many requests were sent so far.
    """

    def __init__(self, api: AzureApi) -> None:
        self.requests = 0
        self._api = api
        self._transport: Any = None
        self._client: Any = None

    async def find(self, entity: str) -> QueueProperties | None:
        """A queue's description; ``None`` if there is no such queue.

        Raises:
            PermissionDenied: The credential may not manage the queue.
            QueueError: The endpoint cannot be reached, …
        """
        found: QueueProperties | None = await self._ask(
            "look at queue", "get_queue", entity, absent=ResourceNotFoundError
        )
        return found

    async def create(self, entity: str, **settings: Any) -> QueueProperties | None:
        """Create a queue; ``None`` if there is one of that name.

        Args:
            entity: Its name.
            settings: As the SDK's ``create_queue`` has them; durations in seconds.

        Raises:
            ValidationError: Service Bus does not take a setting.
            QueueError: As :meth:`find`.
        """
        given = {
            name: timedelta(seconds=value) if isinstance(value, float) else value
            for name, value in settings.items()
        }
        created: QueueProperties | None = await self._ask(
            "create queue", "create_queue", entity, absent=ResourceExistsError, **given
        )
        return created

    async def delete(self, entity: str) -> None:
        """Delete a queue with all that is in it; without effect if there is none.

        Raises:
            QueueError: As :meth:`find`.
        """
        await self._ask("delete queue", "delete_queue", entity, absent=ResourceNotFoundError)

    async def stats(self, entity: str) -> QueueStats:
        """How the queue stands. What is in flight is among what waits: the broker does not tell them apart.

        Raises:
            QueueNotFound: There is no such queue.
            QueueError: As :meth:`find`.
        """
        counts = await self._ask("statistics", "get_queue_runtime_properties", entity)
        return QueueStats(
            depth=counts.active_message_count or 0,
            in_flight=None,
            scheduled=counts.scheduled_message_count or 0,
            dead_lettered=counts.dead_letter_message_count or 0,
        )

    async def _ask(
        self,
        operation: str,
        method: str,
        entity: str,
        absent: type[Exception] | None = None,
        **options: Any,
    ) -> Any:
        config = self._api.config
        with mapped(operation, entity):
            if self._client is None:
                self._open()
            self.requests += 1
            try:
                async with asyncio.timeout(config.connect_timeout + config.operation_timeout):
                    return await getattr(self._client, method)(entity, **options)
            except Exception as error:
                if absent is not None and isinstance(error, absent):
                    return None
                raise

    def _open(self) -> None:
        config = self._api.config
        address = urlsplit(config.administration_address)
        tls = address.scheme == "https"
        # With a context of its own the connector keeps connections; asked for one by file, it makes one each time.
        context = ssl.create_default_context(cafile=config.verify or certifi.where())
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # A proxy leads to the namespace itself, not to what stands in its place.
            trust_env=address.hostname == config.fully_qualified_namespace and tls,
        )
        self._transport = AioHttpTransport(
            session=session,
            connection_timeout=config.connect_timeout,
            read_timeout=config.operation_timeout,
        )
        credential: Any = self._api.credential
        self._client = ServiceBusAdministrationClient(
            address.netloc,
            credential,
            transport=self._transport,
            policies=[
                ContentDecodePolicy(),
                ServiceBusXMLWorkaroundPolicy(),
                _Envelope(credential, config.fully_qualified_namespace, plain=not tls),
            ],
        )

    async def aclose(self) -> None:
        """Disconnect; never fails."""
        if self._transport is not None:
            await self._transport.close()


@final
class _Envelope(SansIOHTTPPolicy[Any, Any]):
    """Says on every request who asks, and of which namespace.

    Args:
        credential: Gives tokens.
        namespace: Its host name, which may be reached at another address.
        plain: Ask without TLS, as emulators are; the SDK cannot.
    """

    def __init__(self, credential: Any, namespace: str, *, plain: bool) -> None:
        super().__init__()
        self._credential = credential
        self._namespace = namespace
        self._plain = plain

    async def on_request(self, request: PipelineRequest[Any]) -> None:
        sent = request.http_request
        parts = urlsplit(sent.url)
        if self._plain:
            sent.url = parts._replace(scheme="http").geturl()
        if parts.hostname != self._namespace:
            sent.headers["Host"] = self._namespace
        if getattr(self._credential, "token_type", None) == TOKEN_TYPE_SASTOKEN:
            # For the queue itself: that is all that a key of the queue's own can sign for.
            token = await self._credential.get_token(
                f"https://{self._namespace}{unquote(parts.path)}"
            )
            sent.headers["Authorization"] = token.token
        else:
            token = await self._credential.get_token(JWT_TOKEN_SCOPE)
            sent.headers["Authorization"] = f"Bearer {token.token}"
