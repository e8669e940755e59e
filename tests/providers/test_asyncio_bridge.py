"""The bridge between trio and one asyncio loop: cancellation, errors, crashes, closing, with and without uvloop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import selectors
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from queue_runtime.errors import ConnectionFailed
from queue_runtime.providers.asyncio_bridge import AsyncioBridge, new_loop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    if request.param == "asyncio":
        return asyncio.new_event_loop
    return pytest.importorskip("uvloop").new_event_loop  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert bridge_threads() == []


@pytest.fixture
async def bridge(loop_factory: LoopFactory) -> AsyncIterator[AsyncioBridge]:
    with trio.fail_after(30):
        async with await AsyncioBridge.open("test", loop_factory=loop_factory) as bridge:
            yield bridge


def bridge_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("asyncio-")]


class Side:
    """The asyncio side of a test: what began and ended there, and gates that trio opens."""

    def __init__(self, bridge: AsyncioBridge) -> None:
        self.bridge = bridge
        self.log: list[str] = []
        self.began = trio.Event()
        self.unwinding = trio.Event()
        self.gates: dict[str, asyncio.Event] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def open_gate(self, name: str = "work") -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gates[name].set)

    async def wait(self) -> str:
        """Waits at the gate; its clean-up waits at another one."""
        self.loop = asyncio.get_running_loop()
        self.gates = {"work": asyncio.Event(), "cleanup": asyncio.Event()}
        self.log.append("began")
        self.bridge.post(self.began.set)
        try:
            await self.gates["work"].wait()
            return "value"
        except asyncio.CancelledError:
            self.bridge.post(self.unwinding.set)
            await self.gates["cleanup"].wait()
            self.log.append("unwound")
            raise

    async def endless(self) -> None:
        self.log.append("began")
        self.bridge.post(self.began.set)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.log.append("unwound")

    async def block(self, go: threading.Event) -> None:
        """Keeps the loop from doing anything."""
        self.bridge.post(self.began.set)
        assert go.wait(30)


@pytest.fixture
def side(bridge: AsyncioBridge) -> Side:
    return Side(bridge)


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


async def fail(error: BaseException) -> NoReturn:
    await asyncio.sleep(0)
    raise error


# --- calls -------------------------------------------------------------------------------------------


async def test_a_call_runs_on_the_loop_and_returns_its_value(bridge: AsyncioBridge) -> None:
    async def where() -> tuple[str, bool]:
        return threading.current_thread().name, asyncio.get_running_loop().is_running()

    assert await bridge.run(add, 1, 2) == 3
    assert await bridge.run(where) == ("asyncio-test", True)


async def test_what_an_async_function_returns_may_be_any_awaitable(bridge: AsyncioBridge) -> None:
    def future() -> asyncio.Future[str]:
        future = asyncio.get_running_loop().create_future()
        future.set_result("done")
        return future

    assert await bridge.run(future) == "done"


async def test_a_thousand_calls_at_once(bridge: AsyncioBridge) -> None:
    results = {}

    async def call(number: int) -> None:
        results[number] = await bridge.run(add, number, number)

    async with trio.open_nursery() as nursery:
        for number in range(1_000):
            nursery.start_soon(call, number)
    assert results == {number: 2 * number for number in range(1_000)}


async def test_two_bridges_are_two_loops(loop_factory: LoopFactory) -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async with (
        await AsyncioBridge.open("one", loop_factory=loop_factory) as one,
        await AsyncioBridge.open("two", loop_factory=loop_factory) as two,
    ):
        assert sorted(bridge_threads()) == ["asyncio-one", "asyncio-two"]
        assert await one.run(loop) is not await two.run(loop)
        await one.aclose()
        assert bridge_threads() == ["asyncio-two"]
        assert await two.run(add, 1, 1) == 2


async def test_calls_do_not_inherit_the_context_of_a_trio_task(bridge: AsyncioBridge) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("of a trio task")

    async def read() -> str:
        return variable.get()

    assert await bridge.run(read) == "unset"


@pytest.mark.parametrize("installed", [True, False])
def test_uvloop_is_used_where_it_is_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        expected: type = pytest.importorskip("uvloop").Loop
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
        expected = asyncio.SelectorEventLoop
    loop = new_loop()
    try:
        assert isinstance(loop, expected)
    finally:
        loop.close()


# --- wake-ups ----------------------------------------------------------------------------------------


class CountingLoop(asyncio.SelectorEventLoop):
    wake_ups = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.wake_ups += 1
        return super().call_soon_threadsafe(*args, **kwargs)


async def test_calls_of_one_moment_share_a_wake_up_and_so_do_their_results() -> None:
    loop = CountingLoop()
    go = threading.Event()
    ended: list[int] = []
    all_ended = threading.Event()

    async def work(number: int) -> int:
        ended.append(number)
        if len(ended) == 50:
            # After this task's own callback, which was added before.
            asyncio.current_task().add_done_callback(lambda _: all_ended.set())  # type: ignore[union-attr]
        return number

    results: list[int] = []

    async def call(number: int) -> None:
        results.append(await bridge.run(work, number))

    async with (
        await AsyncioBridge.open("test", loop_factory=lambda: loop) as bridge,
        trio.open_nursery() as nursery,
    ):
        side = Side(bridge)
        nursery.start_soon(bridge.run, side.block, go)
        await side.began.wait()
        before = loop.wake_ups
        for number in range(50):
            nursery.start_soon(call, number)
        await trio.testing.wait_all_tasks_blocked()
        assert loop.wake_ups - before == 1

        go.set()
        assert all_ended.wait(30)  # with trio standing still
        assert trio.lowlevel.current_statistics().run_sync_soon_queue_size == 1
    assert sorted(results) == list(range(50))


# --- cancellation ------------------------------------------------------------------------------------


async def test_a_cancelled_caller_begins_nothing(bridge: AsyncioBridge, side: Side) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.run(side.endless)
    assert scope.cancelled_caught
    assert side.log == []


async def test_cancelled_before_the_asyncio_side_has_begun(
    bridge: AsyncioBridge, side: Side
) -> None:
    go = threading.Event()
    blocker = Side(bridge)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, blocker.block, go)
        await blocker.began.wait()
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                scope.cancel()
                go.set()

            nursery.start_soon(cancel)
            await bridge.run(side.endless)
    assert scope.cancelled_caught
    assert side.log == []


async def test_cancelled_in_the_middle_waits_for_the_clean_up(
    bridge: AsyncioBridge, side: Side
) -> None:
    outcome = []

    async def call() -> None:
        with scope:
            await bridge.run(side.wait)
        outcome.append(scope.cancelled_caught)

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await side.began.wait()
        scope.cancel()
        await side.unwinding.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert outcome == []
        side.open_gate("cleanup")
    assert outcome == [True]
    assert side.log == ["began", "unwound"]


async def test_cancelled_in_the_clean_up_of_something_else(
    bridge: AsyncioBridge, side: Side
) -> None:
    """The asyncio side is in a ``finally`` when the cancellation comes, which is thrown into it."""
    log = []
    in_finally = trio.Event()

    async def work() -> None:
        try:
            raise ValueError("first")
        finally:
            bridge.post(in_finally.set)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("cancelled in finally")

    scope = trio.CancelScope()

    async def cancel() -> None:
        await in_finally.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        with pytest.raises(ValueError, match="first"), scope:
            await bridge.run(work)
    assert log == ["cancelled in finally"]


async def test_cancelled_between_the_result_and_its_arrival_returns_the_result(
    bridge: AsyncioBridge, side: Side
) -> None:
    over = threading.Event()

    async def work() -> str:
        # After the callback that hands the result over, which was added before.
        asyncio.current_task().add_done_callback(lambda _: over.set())  # type: ignore[union-attr]
        return await side.wait()

    results = []

    async def call() -> None:
        with scope:
            results.append(await bridge.run(work))
            await trio.lowlevel.checkpoint()
            results.append("not reached")

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await side.began.wait()
        side.open_gate()
        assert over.wait(30)  # trio stands still while the result is on its way
        scope.cancel()
    assert results == ["value"]
    assert scope.cancelled_caught


async def test_a_value_despite_cancellation_is_returned(bridge: AsyncioBridge) -> None:
    began = trio.Event()

    async def stubborn() -> str:
        bridge.post(began.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "received all the same"

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await began.wait()
                scope.cancel()

            nursery.start_soon(cancel)
            assert await bridge.run(stubborn) == "received all the same"
    assert scope.cancel_called
    assert not scope.cancelled_caught


async def test_an_error_despite_cancellation_is_raised(bridge: AsyncioBridge) -> None:
    began = trio.Event()

    async def work() -> None:
        bridge.post(began.set)
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("lost while unwinding")

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await began.wait()
                scope.cancel()

            nursery.start_soon(cancel)
            with pytest.raises(OSError, match="lost while unwinding"):
                await bridge.run(work)


async def test_a_cancellation_by_others_is_a_lost_connection(bridge: AsyncioBridge) -> None:
    async def cancel_myself() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.Event().wait()

    async def cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()

    with pytest.raises(ConnectionFailed, match="cancelled by something else") as caught:
        await bridge.run(cancel_myself)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    async with trio.open_nursery() as nursery:  # one that never made a step
        nursery.start_soon(bridge.run, cancel_all)
        with pytest.raises(ConnectionFailed, match="cancelled by something else"):
            await bridge.run(asyncio.Event().wait)


async def test_no_result_is_dropped_by_random_cancellation(bridge: AsyncioBridge) -> None:
    rng = random.Random(3)
    made: list[int] = []
    received: list[int] = []
    cancelled: list[int] = []

    async def make(number: int, delay: float, stubborn: bool) -> int:
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            if not stubborn:
                raise
        made.append(number)
        return number

    async def call(number: int) -> None:
        with trio.move_on_after(rng.uniform(0, 0.01)) as scope:
            received.append(
                await bridge.run(make, number, rng.uniform(0, 0.01), rng.random() < 0.2)
            )
            await trio.lowlevel.checkpoint()
        if scope.cancelled_caught:
            cancelled.append(number)

    for start in range(0, 600, 50):
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 50):
                nursery.start_soon(call, number)
    assert sorted(received) == sorted(made)
    assert len(received) > 50
    assert len(cancelled) > 50


# --- errors ------------------------------------------------------------------------------------------


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError("value"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        Odd(),
        BaseExceptionGroup("several", [Odd(), ValueError("value")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_crosses_as_it_is_and_the_loop_goes_on(
    bridge: AsyncioBridge, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        await bridge.run(fail, error)
    assert caught.value is error
    assert await bridge.run(add, 1, 2) == 3


async def test_a_traceback_shows_both_sides(bridge: AsyncioBridge) -> None:
    async def asyncio_side() -> None:
        raise ValueError("deep") from KeyError("cause")

    async def trio_side() -> None:
        await bridge.run(asyncio_side)

    with pytest.raises(ValueError, match="deep") as caught:
        await trio_side()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names.index("trio_side") < names.index("asyncio_side")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_wrong_call_is_an_error_of_the_caller(bridge: AsyncioBridge) -> None:
    def no_coroutine() -> Any:
        return 3

    with pytest.raises(TypeError, match="missing 1 required"):
        await bridge.run(add, 1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="await"):
        await bridge.run(no_coroutine)
    assert await bridge.run(add, 1, 2) == 3


class Payload:
    pass


async def test_calls_leave_no_reference_cycles(bridge: AsyncioBridge) -> None:
    class Failure(Exception):
        pass

    began = trio.Event()

    async def wait(_: Payload) -> None:
        bridge.post(began.set)
        await asyncio.Event().wait()

    async def echo(payload: Payload) -> Payload:
        return payload

    async def raise_failure(_: Payload) -> None:
        raise Failure

    references: list[weakref.ref[Any]] = []

    def payload() -> Payload:
        result = Payload()
        references.append(weakref.ref(result))
        return result

    async def cancel(scope: trio.CancelScope) -> None:
        await began.wait()
        scope.cancel()

    async def use() -> None:
        await bridge.run(echo, payload())
        try:
            await bridge.run(raise_failure, payload())
        except Failure as error:
            references.append(weakref.ref(error))
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                await bridge.run(wait, payload())

    await use()  # first use of anything may cache it
    references.clear()
    gc.collect()
    gc.disable()
    try:
        await use()
        await bridge.run(add, 1, 2)  # the loop has come back from what it did for `use`
        await bridge.run(add, 1, 2)
        assert len(references) == 4
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()


# --- crashes -----------------------------------------------------------------------------------------


def stop_in_callback(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)


def exit_in_callback(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(sys.exit, 3)


TASKS: set[asyncio.Task[Any]] = set()


def exit_in_task(loop: asyncio.AbstractEventLoop) -> None:
    async def leave() -> None:
        await asyncio.sleep(0)
        sys.exit(3)

    task = loop.create_task(leave())
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)


@pytest.mark.parametrize("crash", [stop_in_callback, exit_in_callback, exit_in_task])
async def test_a_crashed_loop_fails_all_calls_with_the_cause(
    bridge: AsyncioBridge, crash: Callable[[asyncio.AbstractEventLoop], None]
) -> None:
    errors = []
    sides = [Side(bridge) for _ in range(5)]

    async def call(side: Side) -> None:
        with pytest.raises(ConnectionFailed) as caught:
            await bridge.run(side.endless)
        errors.append(caught.value)

    async def do_crash() -> None:
        crash(asyncio.get_running_loop())

    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(call, side)
        for side in sides:
            await side.began.wait()
        await bridge.run(do_crash)
    with pytest.raises(ConnectionFailed) as caught:
        await bridge.run(add, 1, 2)
    errors.append(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, RuntimeError if crash is stop_in_callback else SystemExit)
    for error in errors:
        assert error.__cause__ is cause
        assert repr(cause) in str(error)
    assert [side.log for side in sides] == [["began", "unwound"]] * 5
    with pytest.raises(ConnectionFailed):
        bridge.start(add, 1, 2)
    await bridge.aclose()
    assert bridge_threads() == []
    with pytest.raises(trio.ClosedResourceError):
        await bridge.run(add, 1, 2)


async def test_a_loop_that_crashes_again_while_unwinding(bridge: AsyncioBridge, side: Side) -> None:
    async def crash_twice() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(sys.exit, 1)
        try:
            await asyncio.Event().wait()
        finally:
            loop.call_soon(sys.exit, 2)
            await asyncio.sleep(0)
            side.log.append("unwound after the second")

    for _ in range(2):
        with pytest.raises(ConnectionFailed, match=r"SystemExit\(1\)"):
            await bridge.run(crash_twice)
    assert side.log == ["unwound after the second"]


async def test_a_loop_that_never_unwinds_is_given_up() -> None:
    """With asyncio's own loop: uvloop first runs all that is ready, and here something always is."""

    def crash_always(loop: asyncio.AbstractEventLoop) -> NoReturn:
        loop.call_soon(crash_always, loop)
        sys.exit(7)

    async def crash() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(crash_always, loop)
        await asyncio.Event().wait()

    with trio.fail_after(30):
        async with await AsyncioBridge.open("test", loop_factory=asyncio.new_event_loop) as bridge:
            for _ in range(2):
                with pytest.raises(ConnectionFailed, match=r"SystemExit\(7\)"):
                    await bridge.run(crash)


async def test_a_value_that_arrives_while_a_crashed_loop_unwinds_is_returned(
    bridge: AsyncioBridge,
) -> None:
    async def crash_and_return() -> str:
        asyncio.get_running_loop().call_soon(sys.exit, 1)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return "saved"

    assert await bridge.run(crash_and_return) == "saved"
    with pytest.raises(ConnectionFailed):
        await bridge.run(add, 1, 2)


async def test_calls_that_come_while_a_crashed_loop_unwinds(
    bridge: AsyncioBridge, side: Side
) -> None:
    async def crash() -> None:
        asyncio.get_running_loop().call_soon(sys.exit, 1)

    async def call() -> None:
        with pytest.raises(ConnectionFailed, match=r"SystemExit\(1\)"):
            await bridge.run(side.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await side.began.wait()
        await bridge.run(crash)
        await side.unwinding.wait()
        with pytest.raises(ConnectionFailed, match=r"SystemExit\(1\)"):
            await bridge.run(add, 1, 2)
        assert side.log == ["began"]
        side.open_gate("cleanup")


class BreakableSelector(selectors.DefaultSelector):
    broken = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.broken:
            raise OSError("broken selector")
        return super().select(timeout)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_loop_that_cannot_be_run_again(caplog: pytest.LogCaptureFixture) -> None:
    selector = BreakableSelector()

    def loop_factory() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selector)

    async def call(bridge: AsyncioBridge) -> None:
        with pytest.raises(ConnectionFailed, match="broken selector"):
            await bridge.run(asyncio.Event().wait)

    async def break_it() -> None:
        selector.broken = True

    async def main() -> None:
        with trio.fail_after(30):
            async with (
                await AsyncioBridge.open("test", loop_factory=loop_factory) as bridge,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(call, bridge)
                await bridge.run(add, 1, 2)
                await bridge.run(break_it)  # its result is there, and is returned
                with pytest.raises(ConnectionFailed, match="broken selector"):
                    await bridge.run(add, 1, 2)

    trio.run(main)
    gc.collect()
    assert "Task was destroyed but it is pending" in caplog.text


async def test_an_error_in_a_callback_does_not_stop_the_loop(
    bridge: AsyncioBridge, caplog: pytest.LogCaptureFixture
) -> None:
    async def schedule() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    await bridge.run(schedule)
    assert await bridge.run(add, 1, 2) == 3
    assert "division by zero" in caplog.text


async def test_a_loop_that_cannot_be_made() -> None:
    def broken() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    with pytest.raises(ConnectionFailed, match="too many open files") as caught:
        await AsyncioBridge.open("test", loop_factory=broken)
    assert isinstance(caught.value.__cause__, OSError)
    assert bridge_threads() == []


# --- closing -----------------------------------------------------------------------------------------


async def test_close_while_busy_waits_for_all(bridge: AsyncioBridge, side: Side) -> None:
    async def call() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(side.wait)
        side.log.append("told")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await side.began.wait()
        nursery.start_soon(bridge.aclose)
        await side.unwinding.wait()
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(add, 1, 2)
        with pytest.raises(trio.ClosedResourceError):
            bridge.start(add, 1, 2)
        assert bridge_threads() == ["asyncio-test"]
        side.open_gate("cleanup")
    assert side.log == ["began", "unwound", "told"]
    assert bridge_threads() == []


async def test_a_value_that_arrives_while_closing_is_returned(
    bridge: AsyncioBridge, side: Side
) -> None:
    async def stubborn() -> str:
        try:
            await side.endless()
        except asyncio.CancelledError:
            pass
        return "saved"

    async def close() -> None:
        await side.began.wait()
        await bridge.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        assert await bridge.run(stubborn) == "saved"


async def test_concurrent_and_repeated_closes(bridge: AsyncioBridge, side: Side) -> None:
    async def call() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(side.wait)

    closed = []

    async def close(number: int) -> None:
        await bridge.aclose()
        assert bridge_threads() == []
        closed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await side.began.wait()
        for number in range(3):
            nursery.start_soon(close, number)
        await side.unwinding.wait()
        assert closed == []
        side.open_gate("cleanup")
    await close(3)
    assert sorted(closed) == [0, 1, 2, 3]


async def test_close_works_when_cancelled(bridge: AsyncioBridge, side: Side) -> None:
    bridge.start(side.endless)
    await side.began.wait()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bridge.aclose()
    assert scope.cancelled_caught
    assert side.log == ["began", "unwound"]
    assert bridge_threads() == []


async def test_close_unwinds_calls_before_what_serves_them(bridge: AsyncioBridge) -> None:
    log = []
    ready = trio.Event()

    async def tell(name: str, steps: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(steps):
                await asyncio.sleep(0)
            log.append(name)

    async def call() -> None:
        task = asyncio.create_task(tell("of the SDK", 1))
        TASKS.add(task)
        task.add_done_callback(TASKS.discard)
        bridge.post(ready.set)
        await tell("call", 5)

    async def run() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await bridge.run(call)

    bridge.start(tell, "background", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await ready.wait()
        await bridge.aclose()
    assert log == ["call", "background", "of the SDK"]


async def test_close_finishes_asynchronous_generators(bridge: AsyncioBridge) -> None:
    log = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append("finished")

    kept = numbers()
    assert await bridge.run(kept.__anext__) == 1
    await bridge.aclose()
    assert log == ["finished"]


async def test_close_ends_the_threads_of_the_loop(bridge: AsyncioBridge) -> None:
    async def in_thread() -> str:
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    name = await bridge.run(in_thread)
    assert name in {thread.name for thread in threading.enumerate()}
    await bridge.aclose()
    assert name not in {thread.name for thread in threading.enumerate()}


# --- background tasks and posts ----------------------------------------------------------------------


async def test_a_background_task_is_cancelled_and_waited_for(
    bridge: AsyncioBridge, side: Side
) -> None:
    task = bridge.start(side.wait)
    await side.began.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task.aclose)
        await side.unwinding.wait()
        assert side.log == ["began"]
        side.open_gate("cleanup")
    assert side.log == ["began", "unwound"]
    await task.wait()
    await task.aclose()
    assert await bridge.run(add, 1, 2) == 3


async def test_a_background_task_may_end(bridge: AsyncioBridge) -> None:
    task = bridge.start(add, 1, 2)
    await task.wait()
    await task.aclose()
    assert await bridge.run(add, 1, 2) == 3


async def test_closing_a_background_task_works_when_cancelled(
    bridge: AsyncioBridge, side: Side
) -> None:
    task = bridge.start(side.endless)
    await side.began.wait()
    with trio.CancelScope() as scope:
        scope.cancel()
        await task.aclose()
    assert scope.cancelled_caught
    assert side.log == ["began", "unwound"]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), asyncio.CancelledError()])
async def test_a_crashed_background_task_is_told_of(
    bridge: AsyncioBridge, error: BaseException
) -> None:
    crashes: list[BaseException] = []
    task = bridge.start(fail, error, on_crash=crashes.append)
    await task.wait()
    assert crashes == [error]
    assert await bridge.run(add, 1, 2) == 3


async def test_a_background_task_that_crashes_untold_crashes_the_loop(
    bridge: AsyncioBridge,
) -> None:
    await bridge.start(fail, ValueError("broken")).wait()
    with pytest.raises(ConnectionFailed, match="broken"):
        await bridge.run(asyncio.sleep, 3600)


async def test_posts_and_results_arrive_in_order(bridge: AsyncioBridge) -> None:
    seen: list[int] = []

    async def post() -> None:
        for number in range(100):
            bridge.post(seen.append, number)
            if number % 7 == 0:
                await asyncio.sleep(0)

    await bridge.run(post)
    assert seen == list(range(100))


async def test_a_post_that_raises_crashes_the_loop(bridge: AsyncioBridge) -> None:
    def broken() -> None:
        raise ValueError("broken mailbox")

    async def post() -> None:
        bridge.post(broken)
        await asyncio.Event().wait()

    with pytest.raises(ConnectionFailed, match="broken mailbox"):
        await bridge.run(post)


# --- the end of the trio run -------------------------------------------------------------------------


def test_the_end_of_the_run_closes_the_bridge(loop_factory: LoopFactory) -> None:
    log = []

    async def main() -> None:
        bridge = await AsyncioBridge.open("test", loop_factory=loop_factory)
        side = Side(bridge)
        side.log = log
        bridge.start(side.endless)
        await side.began.wait()

    trio.run(main)
    assert log == ["began", "unwound"]
    assert bridge_threads() == []


def test_an_error_of_a_system_task_closes_the_bridge(loop_factory: LoopFactory) -> None:
    log = []

    async def crash() -> NoReturn:
        raise ValueError("in a system task")

    async def main() -> None:
        bridge = await AsyncioBridge.open("test", loop_factory=loop_factory)
        side = Side(bridge)
        side.log = log
        bridge.start(side.endless)
        await side.began.wait()
        trio.lowlevel.spawn_system_task(crash)
        await bridge.run(asyncio.sleep, 3600)

    with pytest.raises(trio.TrioInternalError):
        trio.run(main)
    assert log == ["began", "unwound"]


CRASH_OF_TRIO = """
import asyncio, trio
from queue_runtime.providers.asyncio_bridge import AsyncioBridge

async def main():
    bridge = await AsyncioBridge.open("test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, asyncio.sleep, 3600)
        with trio.move_on_after(0):
            await trio.lowlevel.wait_task_rescheduled(lambda _: None)  # not what trio accepts

try:
    trio.run(main)
except trio.TrioInternalError:
    print("crashed")
"""


def test_a_process_ends_although_trio_itself_crashed_under_a_call() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CRASH_OF_TRIO], stdout=subprocess.PIPE, check=True, timeout=60
    )
    assert run.stdout == b"crashed\n"


def test_an_interrupt_is_trios(loop_factory: LoopFactory) -> None:
    log = []

    async def main() -> None:
        async with await AsyncioBridge.open("test", loop_factory=loop_factory) as bridge:
            side = Side(bridge)
            side.log = log
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bridge.run, side.endless)
                await side.began.wait()
                signal.raise_signal(signal.SIGINT)
                await trio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011  # a group or not
        trio.run(main)
    assert "KeyboardInterrupt" in "".join(traceback.format_exception(caught.value))
    assert log == ["began", "unwound"]
    assert bridge_threads() == []
