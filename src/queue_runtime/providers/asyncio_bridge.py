"""Runs asyncio code beside trio: one asyncio loop in one thread of its own.

Broker SDKs speak asyncio, the runtime speaks trio. A provider opens one bridge, keeps its SDK objects on the
bridge's loop and enters it with :meth:`AsyncioBridge.run`. A crossing costs tens of microseconds (ADR 13), so what
crosses should be coarse: a batch of messages, not one.

* Calls under way are cancelled from either side and always waited for; a result is never dropped on the way back.
* What is submitted in one tick of trio shares one wake-up of the loop, and the other way round.
* Signals stay with trio: the loop runs in a thread that Python delivers none to.

It does not survive ``fork``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, Final, NoReturn, Self, TypeVar, TypeVarTuple, final

import trio

from queue_runtime.errors import ConnectionFailed

__all__ = ["AsyncioBridge", "BackgroundTask", "new_loop"]

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")

_CANCEL_AGAIN: Final = 10.0
"""Seconds after which closing cancels a task again: code that swallowed the first cancellation would go on for
ever, and code that cleans up over the network has had its time."""

_UNWINDINGS: Final = 100
"""How often a loop is run again to unwind its tasks when something crashes it while it does."""


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop where that is installed, else of asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@final
class AsyncioBridge(trio.abc.AsyncResource):
    """One asyncio loop in one thread. Made by :meth:`open`; belongs to the trio run that opened it.

    All methods but :meth:`post` are called from trio. The end of the trio run closes a bridge that is still open.
    """

    @classmethod
    async def open(
        cls, name: str, *, loop_factory: Callable[[], asyncio.AbstractEventLoop] = new_loop
    ) -> Self:
        """Start the thread; returns when the loop runs.

        Args:
            name: For the thread's name and for errors.
            loop_factory: Makes the loop; called in the new thread.

        Raises:
            ConnectionFailed: The loop could not be made.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        bridge = cls(name)
        thread = bridge._thread = threading.Thread(
            target=bridge._main, args=(loop_factory,), name=f"asyncio-{name}"
        )
        thread.start()
        with trio.CancelScope(shield=True):
            await bridge._started.wait()
            if bridge._ended.is_set():
                thread.join()
                raise bridge._refusal()
        after_run = _AfterRun(bridge._close_soon)
        trio.lowlevel.add_instrument(after_run)
        trio.lowlevel.spawn_system_task(
            bridge._close_with_run, after_run, name=f"close asyncio-{name}"
        )
        return bridge

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[None]
        # In trio's thread:
        self._started = trio.Event()
        self._ended = trio.Event()
        self._closing = False
        # In the loop's thread:
        self._ending = False
        self._calls: set[_Call] = set()
        # Written in the loop's thread before anything that shows it is posted:
        self._cause: BaseException | None = None
        token = trio.lowlevel.current_trio_token()
        self._to_trio = _Crossing(token.run_sync_soon)
        self._to_loop = _Crossing(self._wake_loop)

    # --- from trio ---------------------------------------------------------------------------------

    async def run(self, function: Callable[[*_Ts], Awaitable[T]], *args: *_Ts) -> T:
        """Run an async function on the loop, and wait for it.

        When the caller is cancelled, the asyncio task is cancelled once and waited for. If it still ends with a value,
        that is returned (trio raises at the next checkpoint); if it ends with an error of its own, that is raised.
        What ``function`` holds when ``asyncio.CancelledError`` reaches it is its own to save.

        Raises:
            trio.ClosedResourceError: The bridge is closed, or was closed meanwhile and the call did not end in time.
            ConnectionFailed: The loop has crashed, or something else cancelled the task.
            BaseException: Whatever ``function`` raised, ``SystemExit`` included, with its traceback.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        call = _Call(self, partial(function, *args), partial(trio.lowlevel.reschedule, task))
        self._submit(call)
        await trio.lowlevel.wait_task_rescheduled(call.abort)
        error, call.error = call.error, None
        if error is None:
            return call.value  # type: ignore[no-any-return]
        try:
            if not isinstance(error, asyncio.CancelledError):
                raise error
            if call.raise_cancel is not None:
                call.raise_cancel()
            if self._closing or self._cause is not None:
                raise self._refusal()
            raise ConnectionFailed(
                f"a call on the asyncio loop of {self.name} was cancelled by something else than its caller"
            ) from error
        finally:
            del error  # it refers to this frame

    def start(
        self,
        function: Callable[[*_Ts], Awaitable[object]],
        *args: *_Ts,
        on_crash: Callable[[BaseException], object] | None = None,
    ) -> BackgroundTask:
        """Run an async function on the loop in the background, until it ends, is cancelled, or the loop ends.

        Args:
            function: What to run; what it returns is dropped.
            args: Its arguments.
            on_crash: Called in trio's thread with the error the function ended with; must not raise. Without it
                such an error crashes the loop, so that all calls fail with it: nothing stops unseen.

        Raises:
            trio.ClosedResourceError: The bridge is closed.
            ConnectionFailed: The loop has crashed.
        """
        return BackgroundTask(self, partial(function, *args), on_crash)

    async def aclose(self) -> None:
        """Refuse new calls, cancel what runs and wait for it, end the loop and its thread.

        Does all of it also when cancelled. Calls under way end with ``trio.ClosedResourceError`` unless they end with
        something of their own; they do before this returns. May be called again, also at the same time.
        """
        self._close_soon()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        self._thread.join()  # it has nothing left to do
        await trio.lowlevel.checkpoint_if_cancelled()

    def _submit(self, call: _Call) -> None:
        if self._closing or self._cause is not None or not self._to_loop.put(call.begin):
            raise self._refusal()

    def _refusal(self) -> Exception:
        if self._closing:
            return trio.ClosedResourceError(f"the asyncio loop of {self.name} is closed")
        error = ConnectionFailed(
            f"the asyncio loop of {self.name} has stopped: {self._cause!r}; open the provider again"
        )
        error.__cause__ = self._cause
        return error

    def _close_soon(self) -> None:
        self._closing = True
        self._to_loop.put(self._end)

    def _crash(self, cause: BaseException) -> None:
        self._to_loop.put(partial(self._end, cause))

    async def _close_with_run(self, after_run: _AfterRun) -> None:
        """Let no thread outlive the trio run."""
        try:
            await self._ended.wait()
        except trio.Cancelled:
            self._close_soon()
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            self._thread.join()
        trio.lowlevel.remove_instrument(after_run)

    # --- from the loop -----------------------------------------------------------------------------

    def post(self, function: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Call a function in trio's thread soon; from the loop's thread.

        Functions and the results of :meth:`run` arrive in the order they were posted. After the end of the trio run
        nothing is called. If the function raises, the loop crashes with that error.
        """
        self._to_trio.put(partial(self._guarded, partial(function, *args)))

    def _guarded(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # it would end the trio run with TrioInternalError
            self._crash(error)

    def _wake_loop(self, drain: Callable[[], None]) -> None:
        # Without a context of its own the work would inherit that of whichever trio task came first.
        self._loop.call_soon_threadsafe(drain, context=Context())

    def _end(self, cause: BaseException | None = None) -> None:
        if not self._stop.done() and not self._ending:
            self._cause = cause
            self._stop.set_result(None)

    def _main(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        try:
            self._loop = loop_factory()
        except BaseException as error:  # told by `open`
            self._cause = error
        else:
            self._serve(self._loop)
        finally:  # also when closing the loop fails, or nobody would ever hear of it
            self._to_trio.put(self._ended.set)
            self._to_trio.put(self._started.set)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stop = loop.create_future()
        loop.call_soon(self._to_trio.put, self._started.set)
        try:
            loop.run_until_complete(self._stop)
        except BaseException as error:  # told by every call
            self._cause = error
        self._ending = True
        unwinding = loop.create_task(self._unwind())
        for _ in range(_UNWINDINGS):
            try:
                loop.run_until_complete(unwinding)
            except BaseException:  # the first cause is the one to tell
                if not unwinding.done():
                    continue
            break
        for work in self._to_loop.close():
            work()  # as the loop is ending, a call that begins ends at once
        for call in list(self._calls):
            call.finish()
        loop.close()

    async def _unwind(self) -> None:
        """Cancel and wait for the calls, for what serves them in the background, and for what the SDK started."""
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        calls = self._calls
        await _cancel(lambda: {call.task for call in calls if call.task and not call.background})
        await _cancel(lambda: {call.task for call in calls if call.task})
        await _cancel(lambda: {task for task in asyncio.all_tasks(loop) if task is not me})
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()


async def _cancel(those: Callable[[], set[asyncio.Task[None]]]) -> None:
    while tasks := those():
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_AGAIN)


@final
class BackgroundTask:
    """What :meth:`AsyncioBridge.start` started. Used from trio."""

    def __init__(
        self,
        bridge: AsyncioBridge,
        function: Callable[[], Awaitable[object]],
        on_crash: Callable[[BaseException], object] | None,
    ) -> None:
        self._bridge = bridge
        self._on_crash = on_crash
        self._cancelled = False
        self._ended = trio.Event()
        self._call = _Call(bridge, function, self._over, background=True)
        bridge._submit(self._call)

    def cancel(self) -> None:
        """Throw ``asyncio.CancelledError`` into it, once, soon."""
        if not self._cancelled:
            self._cancelled = True
            self._bridge._to_loop.put(self._call.cancel)

    async def wait(self) -> None:
        """Wait until it has ended in any way, and ``on_crash`` was called if it was to be."""
        await self._ended.wait()

    async def aclose(self) -> None:
        """Cancel it and wait for it; also when cancelled. May be called again."""
        self.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _over(self) -> None:
        error, self._call.error = self._call.error, None
        try:
            expected = self._cancelled or self._bridge._closing or self._bridge._cause is not None
            if error is None or (isinstance(error, asyncio.CancelledError) and expected):
                return
            if self._on_crash is None:
                self._bridge._crash(error)
            else:
                self._bridge._guarded(partial(self._on_crash, error))
        finally:
            self._ended.set()
            del error


@final
class _Call:
    """One function on the loop, from its submission to its end.

    Args:
        bridge: Where it runs.
        function: What runs.
        over: Called in trio's thread when it has ended; ``value`` or ``error`` is there then.
        background: It serves the other calls and outlives them when the bridge closes.
    """

    __slots__ = (
        "_bridge",
        "_function",
        "_over",
        "background",
        "error",
        "raise_cancel",
        "task",
        "value",
    )

    def __init__(
        self,
        bridge: AsyncioBridge,
        function: Callable[[], Awaitable[Any]],
        over: Callable[[], object],
        *,
        background: bool = False,
    ) -> None:
        self._bridge = bridge
        self._function = function
        self._over = over
        self.background = background
        self.value: Any = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.raise_cancel: Callable[[], NoReturn] | None = None

    def abort(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        """In trio's thread: the caller is cancelled; it is woken when the task has unwound."""
        self.raise_cancel = raise_cancel
        self._bridge._to_loop.put(self.cancel)
        return trio.lowlevel.Abort.FAILED

    # In the loop's thread:

    def begin(self) -> None:
        self._bridge._calls.add(self)
        # Until the task says otherwise: one that is cancelled before its first step never gets to say anything.
        self.error = asyncio.CancelledError()
        if self._bridge._ending:
            self.finish()
            return
        self.task = self._bridge._loop.create_task(self._perform())
        self.task.add_done_callback(self.finish)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _perform(self) -> None:
        try:
            self.value = await self._function()
        except BaseException as error:  # it crosses to the caller
            self.error = error
        else:
            self.error = None

    def finish(self, _: object = None) -> None:
        self.task = None
        self._bridge._calls.discard(self)
        self._bridge._to_trio.put(self._over)


@final
class _AfterRun(trio.abc.Instrument):
    """Calls a function when the trio run is over, also when trio itself crashed and its tasks never end."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def after_run(self) -> None:
        self._function()


@final
class _Crossing:
    """Work handed to another thread; what is put until that thread looks shares one wake-up.

    Args:
        wake: Makes the other thread call a function soon; raises ``RuntimeError`` when that thread's loop is over,
            or ``OSError`` when it crashed (trio's).
    """

    def __init__(self, wake: Callable[[Callable[[], None]], object]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._work: list[Callable[[], object]] = []
        self._woken = False
        self._closed = False

    def put(self, work: Callable[[], object]) -> bool:
        """Hand over; ``False``, and nothing done, when closed."""
        with self._lock:
            if self._closed:
                return False
            self._work.append(work)
            if self._woken:
                return True
            self._woken = True
        try:
            self._wake(self._drain)
        except (RuntimeError, OSError):
            # It is over, or being torn down: whoever ended it took the work by `close`, or nobody is left to care.
            pass
        return True

    def close(self) -> list[Callable[[], object]]:
        """Take no more; what was not done yet."""
        with self._lock:
            self._closed = True
            work, self._work = self._work, []
        return work

    def _drain(self) -> None:
        with self._lock:
            work, self._work = self._work, []
            self._woken = False
        for each in work:
            each()
