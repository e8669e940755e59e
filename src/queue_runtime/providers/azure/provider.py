"""A connection to a namespace of Service Bus: one asyncio loop in one thread, the SDK's AMQP engine on it."""

# ruff: noqa: D102 - the methods are documented where they are declared, in queue_runtime.abc

from __future__ import annotations

import asyncio
from typing import Final, final

import trio

from queue_runtime.abc import DeadLetters, Provider, Receiver, ReceiverOptions, Sender
from queue_runtime.errors import ConfigurationError
from queue_runtime.messages import Capabilities, PeekedMessage, QueueName, QueueStats

from ..asyncio_bridge import AsyncioBridge
from .administration import Administration
from .api import AzureApi, mapped
from .browsing import dead_letters_of, peek, peeked, purge
from .config import AzureConfig
from .dead_letters import AzureDeadLetters, Graveyard
from .inlet import Arrival, Inlet
from .provision import provision
from .receiver import AzureReceiver
from .sender import MAX_BATCH, AzureSender
from .wire import Credential

__all__ = ["AzureProvider"]

_CONCURRENT_SETTLES: Final = 4
"""Settlements share the connection's round trips; more calls at once gain little."""

_MAX_SETTLEMENTS: Final = 1_000
"""Most settlements in one call; they are under way together."""


@final
class AzureProvider(Provider):
    """A connection to a namespace. Made by :meth:`open`."""

    name = "azure"

    @classmethod
    async def open(cls, config: AzureConfig, credential: Credential | None = None) -> AzureProvider:
        """Make the credential; the broker is asked when a queue is opened.

        Args:
            config: Where to, and as whom.
            credential: Gives tokens in place of what ``config`` says, on the provider's asyncio loop; it is not
                closed with the provider.

        Raises:
            ConfigurationError: A credential that cannot be made.
        """
        bridge = await AsyncioBridge.open("azure")
        try:
            api = await bridge.run(AzureApi.open, config, credential)
            administration = Administration(api)
            bridge.start(_close_at_the_end, administration, api)
        except BaseException:
            await bridge.aclose()
            raise
        return cls(config, bridge, api, administration)

    def __init__(
        self,
        config: AzureConfig,
        bridge: AsyncioBridge,
        api: AzureApi,
        administration: Administration,
    ) -> None:
        self._config = config
        self._bridge = bridge
        self._api = api
        self._administration = administration
        self._closed = False
        self._receivers: set[AzureReceiver] = set()
        self.capabilities = Capabilities(
            sessions=config.sessions,
            session_state=config.sessions,
            accept_by_name=config.sessions,
            lock_renewal=True,
            abandon_delay=True,
            keeps_empty_sessions=True,
            scheduling=True,
            cancel_scheduled=True,
            time_to_live=True,
            deduplication=config.deduplication,
            peek=True,
            purge=True,
            # What Service Bus can be asked; whether the credential may is found out by asking.
            stats=True,
            dead_letters=True,
            provisioning=True,
            durable=True,
            multi_process=True,
            max_message_bytes=config.max_message_bytes,
            max_batch_messages=MAX_BATCH,
            max_settle_messages=_MAX_SETTLEMENTS,
            max_sessions=config.max_sessions,
            max_concurrent_settles=_CONCURRENT_SETTLES,
        )

    @property
    def connections_opened(self) -> int:
        """How many connections were opened so far."""
        return self._api.opened

    # --- opening -----------------------------------------------------------------------------------

    async def open_sender(self, queue: QueueName) -> Sender:
        self._check_open()
        return await AzureSender.open(self._bridge, self._api, self._config.wire_name(queue))

    async def open_receiver(self, queue: QueueName, options: ReceiverOptions) -> Receiver:
        self._check_open()
        entity = self._config.wire_name(queue)
        await self._bridge.run(self._probe, entity)
        receiver = await AzureReceiver.open(
            self._bridge, self._api, entity, options, self._receivers.discard
        )
        self._receivers.add(receiver)
        if self._closed:  # meanwhile
            await receiver.aclose()
            self._check_open()
        return receiver

    async def _probe(self, entity: str) -> None:
        """Find out at once whether the queue is there, may be read, and has sessions or not as was said.

        A link without sessions locks nothing and is refused where there are sessions.
        """
        with mapped("open receiver", entity):
            try:
                inlet = await self._api.inlet(entity, _ignore_message, _ignore_loss, credit=0)
            except Exception as error:
                if self._config.sessions and _wants_sessions(error):
                    return
                raise
        await inlet.aclose()
        if self._config.sessions:
            raise ConfigurationError(
                f"queue {entity} has no sessions, but sessions is true: say sessions=false, or use a queue that "
                "was created with sessions (requiresSession); that cannot be changed later"
            )

    async def open_dead_letters(self, queue: QueueName) -> DeadLetters:
        self._check_open()
        entity = self._config.wire_name(queue)
        await self._bridge.run(peek, self._api, dead_letters_of(entity), 1)
        return AzureDeadLetters(self._bridge, Graveyard(self._api, entity))

    async def provision(self, queue: QueueName) -> list[str]:
        self._check_open()
        return await self._bridge.run(provision, self._administration, self._config, queue)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the provider is closed")

    # --- looking and emptying ----------------------------------------------------------------------

    async def peek(
        self, queue: QueueName, max_messages: int, after: int = 0
    ) -> list[PeekedMessage]:
        self._check_open()
        entity = self._config.wire_name(queue)
        found = await self._bridge.run(peek, self._api, entity, max_messages, after)
        return [peeked(received) for received in found]

    async def purge(self, queue: QueueName) -> int:
        self._check_open()
        return await self._bridge.run(purge, self._api, self._config.wire_name(queue))

    async def stats(self, queue: QueueName) -> QueueStats:
        self._check_open()
        return await self._bridge.run(self._administration.stats, self._config.wire_name(queue))

    # --- closing -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        self._closed = True
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for receiver in list(self._receivers):
                    nursery.start_soon(receiver.aclose)
            await self._bridge.aclose()
        await trio.lowlevel.checkpoint()


def _wants_sessions(error: Exception) -> bool:
    condition = getattr(error, "condition", None)
    return condition in (b"amqp:not-allowed", b"com.microsoft:argument-error") and "session" in str(
        error
    )


def _ignore_message(_: Inlet, __: Arrival) -> None:
    """There is no credit: none comes."""


def _ignore_loss(_: BaseException) -> None:
    """It is closed right away."""


async def _close_at_the_end(administration: Administration, api: AzureApi) -> None:
    """Disconnect after the last call: the bridge ends its calls before what runs in the background."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await administration.aclose()
        await api.aclose()
