"""A namespace as the rest of the adapter sees it: credentials, shared connections, every error mapped.

On the bridge's loop.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from queue_runtime.errors import QueueError

from .config import AzureConfig
from .credentials import open_credential
from .errors import Call, from_azure, safe_cause
from .inlet import Inlet
from .outlet import Outlet
from .shared import Attempt
from .wire import Credential, Place, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AzureApi", "Purpose", "mapped"]

T = TypeVar("T")

_MOST_SESSIONS: Final = 1_000
"""AMQP sessions on one connection; Service Bus takes up to 4,999, and one that is lost takes all of them along."""


class Purpose(enum.Enum):
    """What a connection is for: what waits for the one should not wait for the other."""

    SENDING = "sending"
    RECEIVING = "receiving"
    ASKING = "asking"


@contextmanager
def mapped(operation: str, queue: str = "", size: int = 0, limit: int = 0) -> Iterator[None]:
    """Turn what the SDK raises inside into errors of this package."""
    try:
        yield
    except QueueError:
        raise  # with its own cause; made its own, whoever follows the causes would not come to an end
    except Exception as error:
        call = Call(operation=operation, queue=queue, size=size, limit=limit)
        raise from_azure(error, call) from safe_cause(error)


@final
class AzureApi:
    """One namespace. Made by :meth:`open`; belongs to the loop it was made on.

    Attributes:
        config: What it was made from.
        opened: How many connections were opened so far.
    """

    @classmethod
    async def open(cls, config: AzureConfig, credential: Credential | None = None) -> AzureApi:
        """Make the credential; nothing is sent anywhere.

        Args:
            config: Where to, and as whom.
            credential: Gives tokens in place of what ``config`` says; stays its owner's.

        Raises:
            ConfigurationError: A credential that cannot be made.
        """
        stack = AsyncExitStack()
        if credential is None:
            with mapped("the credential"):
                credential = await open_credential(config, stack)
        said = config.said
        host = config.fully_qualified_namespace
        emulator = said is not None and said.emulator
        if emulator and said is not None and said.port is not None:
            host = f"{host}:{said.port}"
        place = Place(
            namespace=host,
            credential=credential,
            tls=not emulator,
            custom_endpoint=config.custom_endpoint,
            verify=config.verify,
            websocket=config.transport == "websocket",
            connect_timeout=config.connect_timeout,
            timeout=config.operation_timeout,
        )
        return cls(config, place, stack)

    def __init__(self, config: AzureConfig, place: Place, stack: AsyncExitStack) -> None:
        self.config = config
        self.opened = 0
        self._place = place
        self._stack = stack
        self._wires: dict[Purpose, list[Wire]] = {purpose: [] for purpose in Purpose}
        self._opening = {purpose: Attempt(partial(self._open_wire, purpose)) for purpose in Purpose}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def credential(self) -> Credential:
        """What gives tokens."""
        return self._place.credential

    async def wire(self, purpose: Purpose) -> Wire:
        """A connection with room for one more link; opened if there is none, once for all who wait for it.

        Raises:
            Exception: As :meth:`.wire.Wire.open`.
        """
        wires = self._wires[purpose]
        for wire in [each for each in wires if each.error is not None]:
            wires.remove(wire)
            closing = asyncio.create_task(wire.aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        for wire in wires:
            if wire.sessions < _MOST_SESSIONS:
                return wire
        return await self._opening[purpose].join()

    async def _open_wire(self, purpose: Purpose) -> Wire:
        wire = await Wire.open(self._place)
        self.opened += 1
        self._wires[purpose].append(wire)
        return wire

    async def inlet(self, entity: str, *args: Any, **kwargs: Any) -> Inlet:
        """As :meth:`.inlet.Inlet.open`, on a connection for receiving. Raises what the SDK raises."""
        wire = await self.wire(Purpose.RECEIVING)
        return await _authorized(wire, entity, lambda: Inlet.open(wire, entity, *args, **kwargs))

    async def outlet(self, entity: str, on_lost: Callable[[BaseException], None]) -> Outlet:
        """As :meth:`.outlet.Outlet.open`, on a connection for sending. Raises what the SDK raises."""
        wire = await self.wire(Purpose.SENDING)
        return await _authorized(wire, entity, lambda: Outlet.open(wire, entity, on_lost))

    async def manage(
        self,
        entity: str,
        operation: bytes,
        body: Mapping[str, Any],
        *,
        link: Inlet | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As :meth:`.wire.Wire.manage`, beside the link that it is about. Raises what the SDK raises."""
        wire = await self.wire(Purpose.ASKING) if link is None else link.wire
        name = None if link is None else link.name
        return await _authorized(
            wire,
            entity,
            lambda: wire.manage(entity, operation, body, link=name, timeout=timeout),
        )

    async def aclose(self) -> None:
        """Disconnect everything; never fails."""
        await asyncio.gather(*(opening.aclose() for opening in self._opening.values()))
        wires = [wire for wires in self._wires.values() for wire in wires]
        for each in self._wires.values():
            each.clear()
        await asyncio.gather(*(wire.aclose() for wire in wires), *self._closing)
        await self._stack.aclose()


async def _authorized(wire: Wire, entity: str, call: Callable[[], Awaitable[T]]) -> T:
    """What ``call`` returns; it is repeated when a token turns out to have ended, which nothing was done for."""
    right = wire.right(entity)
    try:
        return await call()
    except Exception as error:
        if not wire.may_try_again(entity, error, right):
            raise
    return await call()
