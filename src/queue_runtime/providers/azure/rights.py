"""What a connection may use: tokens are shown to the broker, and new ones before these expire. On the bridge's loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, final

import attrs

from .shared import Attempt

__all__ = ["Rights"]

_MARGIN: Final = 0.1
"""Part of a token's life that is left when a new one is asked for."""

_LONGEST_MARGIN: Final = 240.0
"""Seconds at most; azure-identity hands out the token it has until 300 seconds before the end."""

_PAUSE: Final = 15.0
"""Seconds at most between tries to get a new token."""

_SHORTEST_PAUSE: Final = 0.1

_NAP: Final = 5.0
"""Seconds at most to sleep without a look at the clock, which somebody may set."""

_FRESH: Final = 5.0
"""Seconds for which a token that was just shown is not doubted."""


@final
@attrs.define(eq=False)
class _Grant:
    """A token that the broker accepted for an entity; times in seconds since 1970."""

    token: str = attrs.field(repr=False)
    shown: float
    expires: float
    due: float


@final
class Rights:
    """The tokens of one connection, one for each entity.

    Each is renewed by a task of its own until that fails for as long as the token lasts. The broker then ends the
    links it was for, and whoever opens one again asks for a token anew.

    Args:
        get_token: Asks the credential for a token for an entity; when it expires, in seconds since 1970, comes with it.
        put_token: Shows one to the broker.
    """

    def __init__(
        self,
        get_token: Callable[[str], Awaitable[tuple[str, float]]],
        put_token: Callable[[str, str, float], Awaitable[None]],
    ) -> None:
        self._get_token = get_token
        self._put_token = put_token
        self._grants: dict[str, _Grant] = {}
        self._showing: dict[str, Attempt[None]] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def authorize(self, entity: str) -> None:
        """Show a token for an entity, unless one was shown that is still good; once for all who wait for it.

        Raises:
            Exception: The credential gives none, or the broker refuses it.
        """
        if self._is_good(entity):
            return
        if entity not in self._showing:
            self._showing[entity] = Attempt(partial(self._show_anew, entity))
        await self._showing[entity].join()

    async def _show_anew(self, entity: str) -> None:
        # Also the same token is shown again: the broker tells what is wrong.
        self._grants.pop(entity, None)
        await self._show(entity)
        keeper = self._keepers.get(entity)
        if keeper is None or keeper.done():
            self._keepers[entity] = asyncio.create_task(self._keep(entity), name="token keeper")

    def _is_good(self, entity: str) -> bool:
        grant = self._grants.get(entity)
        return grant is not None and time.time() < grant.expires

    def shown(self, entity: str) -> object:
        """What stands for the token that was shown last; ``None``: there is none."""
        return self._grants.get(entity)

    def doubt(self, entity: str, used: object = None) -> bool:
        """The broker refuses what a token should allow: forget it, unless it was shown just now.

        Args:
            entity: What was refused.
            used: What :meth:`shown` said before; ``None``: the token was shown for this very call.

        Returns:
            Whether to try again: the token may have ended by the broker's clock. Of several who were refused over
            one token, the first has another shown, and all try again.
        """
        if entity in self._showing and self._showing[entity].is_under_way:
            return True
        grant = self._grants.get(entity)
        if grant is None:
            return False
        if used is not None and grant is not used:
            return True
        if time.time() - grant.shown < _FRESH:
            return False
        del self._grants[entity]
        return True

    async def _show(self, entity: str) -> None:
        """Get a token and show it, if it is another than before."""
        token, expires = await self._get_token(entity)
        before = self._grants.get(entity)
        now = time.time()
        if before is not None and before.token == token:
            before.due = now + _pause(before.expires - now)
            return
        await self._put_token(entity, token, expires)
        life = max(0.0, expires - now)
        due = expires - min(_MARGIN * life, _LONGEST_MARGIN)
        self._grants[entity] = _Grant(token, now, expires, due)

    async def _keep(self, entity: str) -> None:
        while (grant := self._grants.get(entity)) is not None:
            now = time.time()
            if now >= grant.expires:
                del self._grants[entity]
            elif now < grant.due:
                await asyncio.sleep(min(grant.due - now, _NAP))
            else:
                try:
                    await self._show(entity)
                except Exception:
                    grant.due = time.time() + _pause(grant.expires - time.time())

    async def aclose(self) -> None:
        """Renew nothing any more."""
        await asyncio.gather(*(showing.aclose() for showing in self._showing.values()))
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)


def _pause(left: float) -> float:
    """Seconds until the next try, when the token lasts for ``left`` more."""
    return min(max(left / 4, _SHORTEST_PAUSE), _PAUSE)
