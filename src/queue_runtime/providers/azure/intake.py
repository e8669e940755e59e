"""What one receiver takes in: acceptors that lock sessions while somebody wants them, and a buffer by turns.

On the bridge's loop. A receive that is cancelled leaves at once and takes nothing along; what it had asked for is
given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, final

import attrs

from queue_runtime.errors import QueueError

from .api import AzureApi, mapped
from .inlet import ANY_SESSION, Arrival, means_no_session
from .plain_source import PlainSource
from .session_source import SessionSource, Stage
from .settling import Work
from .sources import LockClock, Source

__all__ = ["Intake", "Take"]

_KEPT: Final = 0.2
"""Seconds that what nobody waits for is kept for whoever just got something, or only had a look."""

_GLANCE: Final = 0.05
"""Seconds that a look without a timeout takes: the broker has to be asked first."""

_EMPTY: Final = 1.0
"""Seconds after which a session that nobody holds is given back if nothing came of it."""

_PAUSE: Final = 0.5
"""Seconds that lie at least between two questions of an acceptor that are answered with no."""

_LATE: Final = 0.25
"""Part of a lock's duration by which the broker may be late to tell that a lock is over."""


@final
@attrs.frozen(eq=False)
class Take:
    """Messages of one source that were handed out together.

    Args:
        source: Where they came from.
        arrivals: The messages, at least one.
    """

    source: Source
    arrivals: Sequence[Arrival]


@final
class Intake:
    """One queue read by one receiver.

    Args:
        api: The namespace.
        entity: The queue's path.
        sessions: Whether the queue has sessions.
        auto_accept: Lock sessions unasked while somebody receives.
        max_sessions: Most sessions locked at once.
        max_per_session: Most unsettled messages of a session.
        on_lost: Called with a leased session and the reason when its lock is lost.
    """

    def __init__(
        self,
        api: AzureApi,
        entity: str,
        *,
        sessions: bool,
        auto_accept: bool,
        max_sessions: int,
        max_per_session: int,
        on_lost: Callable[[SessionSource, QueueError], None],
    ) -> None:
        config = api.config
        self.api = api
        self.entity = entity
        self.max_per_session = max_per_session
        self.patience = config.operation_timeout
        self.locks = LockClock(config.lock_duration)
        self._plain = None if sessions else PlainSource(self)
        self._prefetch = config.prefetch
        self._auto_accept = auto_accept
        self._acceptors = config.acceptors
        # What the broker grants at the end of a wait counts from its beginning: most of the lock must be left.
        self._wait = min(config.accept_wait, config.lock_duration / 4)
        self._max_sessions = min(max_sessions, config.max_sessions)
        self._on_lost = on_lost
        # By id, and which of them stand so: nothing here takes longer the more sessions are idle.
        self._sessions: dict[str, SessionSource] = {}
        self._free: dict[SessionSource, None] = {}
        self._parked: set[SessionSource] = set()
        self._ready: dict[Source, None] = {}
        self._accepting: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[Any]] = set()
        self._sleepers: set[asyncio.Future[None]] = set()
        self._wanted: set[object] = set()
        self._error: BaseException | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    # --- what sources tell -------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side; :meth:`aclose` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def leave(self, goodbye: Coroutine[Any, Any, Any]) -> None:
        """Close a link on the side; :meth:`aclose` lets it come to its end."""
        task = asyncio.create_task(goodbye)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def arrived(self, source: Source) -> None:
        """Something came that can be taken."""
        self._ready.setdefault(source)
        self._changed()

    def over(self, source: SessionSource) -> None:
        """A session was given back or lost."""
        if self._sessions.get(source.session_id) is source:
            del self._sessions[source.session_id]
        self._free.pop(source, None)
        self._parked.discard(source)
        self._changed()

    def parked(self, source: SessionSource) -> None:
        """A session is only kept for a delay: it takes no room."""
        self._parked.add(source)
        self._changed()

    def lost(self, source: SessionSource, error: QueueError) -> None:
        """A leased session's lock or link is gone."""
        self._on_lost(source, error)

    def failed(self, error: BaseException) -> None:
        """Asking for messages failed: who waits for them is told."""
        self._error = error
        self._changed()

    def _changed(self) -> None:
        """Wake everybody who waits."""
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    # --- taking ------------------------------------------------------------------------------------

    async def receive(self, count: int, timeout: float) -> list[Take]:
        """At most ``count`` messages as soon as there are any; nothing at the timeout.

        Raises:
            QueueError: The broker refuses, or cannot be reached.
        """
        me = object()
        deadline = time.monotonic() + max(timeout, _GLANCE)
        comes_back = timeout < _GLANCE
        self._watch()
        # Where sessions are locked by name or by `accept` only, nothing is asked for here.
        asks = self._plain is not None or self._auto_accept
        if asks:
            self._begin(me)
        try:
            while not self._closed:
                if self._plain is not None:
                    self._plain.want(max(self._prefetch, count))
                elif self._auto_accept:
                    self._start_acceptors()
                taken = self._take(count)
                if taken:
                    comes_back = True
                    return taken
                if asks:
                    self._raise_failure("receive")
                if not await self._sleep(deadline):
                    return []
            return []
        finally:
            if asks:
                self._end(me, comes_back=comes_back)

    async def accept(self, timeout: float) -> SessionSource | None:
        """Lock the next session that has messages; ``None`` at the timeout.

        Raises:
            QueueError: The broker refuses, or cannot be reached.
        """
        me = object()
        deadline = time.monotonic() + max(timeout, _GLANCE)
        self._watch()
        self._begin(me)
        try:
            while not self._closed:
                for source in self._free:
                    return self._lease(source)
                self._raise_failure("accept session")
                self._start_acceptors()
                if not await self._sleep(deadline):
                    return None
            return None
        finally:
            self._end(me, comes_back=False)

    async def accept_named(self, session: str) -> SessionSource:
        """Lock one session; closed meanwhile, it is given back at once.

        Raises:
            QueueError: Somebody holds it; the broker refuses, or cannot be reached.
        """
        with mapped("accept session", self.entity):
            source = await SessionSource.open(self, session, 0.0)
            source.check()
        if self._closed:
            await source.close()
            return source
        self._add(source)
        return self._lease(source)

    def _watch(self) -> None:
        if self._sweeper is None:
            self._sweeper = self.spawn(self._sweep())

    def _begin(self, me: object) -> None:
        """Ask for what nobody here has yet."""
        self._wanted.add(me)
        self._error = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _end(self, me: object, *, comes_back: bool) -> None:
        """Ask no more, unless somebody else does: let others have it."""
        self._wanted.discard(me)
        if self._wanted or self._closed:
            return
        if comes_back:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(_KEPT, lambda: self.spawn(self._idle()))
        else:
            self.spawn(self._idle())

    async def _sleep(self, deadline: float) -> bool:
        """Wait until something changed; ``False`` when the time is over."""
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await asyncio.wait((sleeper,), timeout=left)
        finally:
            self._sleepers.discard(sleeper)
        return True

    def _raise_failure(self, operation: str) -> None:
        error, self._error = self._error, None
        if error is not None:
            with mapped(operation, self.entity):
                raise error

    def _take(self, count: int) -> list[Take]:
        """What is there, sessions by turns. Looks at no more of them than it takes from, but for what is over."""
        ready: list[Source] = []
        over: list[Source] = []
        for source in self._ready:
            if len(ready) == count:
                break
            if not source.is_ready:
                over.append(source)
            elif self._may_take(source):
                ready.append(source)
        for source in over:
            del self._ready[source]
        taken: list[Take] = []
        for position, source in enumerate(ready):
            share = -(-count // (len(ready) - position))
            del self._ready[source]
            arrivals = source.take(share)
            count -= len(arrivals)
            if source.is_ready:
                self._ready[source] = None
            if isinstance(source, SessionSource):
                self._lease(source)
            if arrivals:  # not when all of them waited for too long
                taken.append(Take(source, arrivals))
        return taken

    def _lease(self, source: SessionSource) -> SessionSource:
        source.stage = Stage.LEASED
        self._free.pop(source, None)
        if source.is_ready:
            self._changed()  # now it can be taken also by who takes only what is held
        return source

    def _may_take(self, source: Source) -> bool:
        is_free = isinstance(source, SessionSource) and source.stage is Stage.FREE
        return self._auto_accept or not is_free

    # --- accepting ---------------------------------------------------------------------------------

    def _room(self) -> int:
        held = len(self._sessions) - len(self._parked)
        return self._max_sessions - held - len(self._accepting)

    def _start_acceptors(self) -> None:
        """As many as there may be: not more than are wanted, nor than there is room for."""
        spare = self._acceptors - len(self._accepting) - len(self._free)
        for _ in range(min(spare, self._room())):
            task = self.spawn(self._accept())
            self._accepting.add(task)
            # Not by the task itself: cancelled before its first step, it never gets to do anything.
            task.add_done_callback(self._accepted)

    def _accepted(self, task: asyncio.Task[Any]) -> None:
        self._accepting.discard(task)
        self._changed()  # whoever still waits asks again

    async def _accept(self) -> None:
        began = time.monotonic()
        try:
            source = await SessionSource.open(self, ANY_SESSION, self._wait)
        except Exception as error:
            if means_no_session(error):
                # The broker waits itself, as it was told to; whoever is refused sooner does not come again at once.
                await asyncio.sleep(began + min(self._wait, _PAUSE) - time.monotonic())
            else:
                self.failed(error)
            return
        if source.stage is not Stage.OVER:
            self._add(source)

    def _add(self, source: SessionSource) -> None:
        other = self._sessions.get(source.session_id)
        if other is not None:
            other.give_up("it was granted anew, to us")
        self._sessions[source.session_id] = source
        self._free[source] = None
        if source.is_ready:
            self.arrived(source)
        self._changed()

    async def _sweep(self) -> None:
        """Give up sessions whose locks are over without a word, and those that turned out to be empty."""
        while not self._closed:
            await asyncio.sleep(min(1.0, self.locks.duration / 10))
            if self._plain is not None:
                self._plain.sweep()
            now = time.monotonic()
            for source in list(self._sessions.values()):
                if now > source.expires + _LATE * self.locks.duration:
                    source.give_up("it was not renewed in time")
            for source in list(self._free):
                if not source.buffer and now > source.granted_at + _EMPTY:
                    source.withdraw()

    async def _idle(self) -> None:
        """Nobody waits: ask for nothing more, and let others have what nobody took."""
        if self._wanted:
            return
        accepting = self._stop_accepting()
        for source in list(self._free):
            source.withdraw()
        if self._plain is not None:
            await self._plain.idle()
        await accepting

    def _stop_accepting(self) -> Awaitable[object]:
        """Cancel the acceptors; what this returns waits for them."""
        accepting = list(self._accepting)
        for task in accepting:
            task.cancel()
        return asyncio.gather(*accepting, return_exceptions=True)

    # --- settling ----------------------------------------------------------------------------------

    async def settle(self, works: Sequence[tuple[Source, Work]]) -> list[QueueError | None]:
        """Settle messages, those of a source in order; for each ``None`` when confirmed, or why not."""
        groups: dict[Source, list[Work]] = {}
        for source, work in works:
            groups.setdefault(source, []).append(work)
        answers: dict[Work, QueueError | None] = {}
        said = await asyncio.gather(*(source.settle(group) for source, group in groups.items()))
        for group, each in zip(groups.values(), said, strict=True):
            answers.update(zip(group, each, strict=True))
        return [answers[work] for _, work in works]

    async def renew(
        self, sessions: Sequence[SessionSource], messages: Sequence[Arrival]
    ) -> list[QueueError | None]:
        """Renew locks of sessions, or of messages where there are none; for each ``None``, or why not."""
        if self._plain is not None:
            return await self._plain.renew(messages)
        return list(await asyncio.gather(*(source.renew() for source in sessions)))

    async def release(
        self, sessions: Sequence[SessionSource], works: Sequence[Work]
    ) -> list[QueueError | None]:
        """Give back sessions, and messages without one; what became of the messages."""
        closing = asyncio.gather(*(source.release() for source in sessions))
        answers = [] if self._plain is None else await self._plain.settle(works)
        await closing
        return answers

    # --- closing -----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Give everything back; whoever waits is woken and gets nothing."""
        self._closed = True
        self._changed()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self._stop_accepting()
        sources = list(self._sessions.values())
        await asyncio.gather(*(source.close() for source in sources))
        if self._plain is not None:
            await self._plain.close()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._leaving:
            await asyncio.wait(self._leaving)
