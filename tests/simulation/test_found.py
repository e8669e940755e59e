"""What the simulation found in the real code, each in the smallest world that shows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from queue_runtime.abc import Provider
from queue_runtime.actors.supervisor import Supervisor, supervise
from queue_runtime.config import SettlementMode, SupervisorConfig
from queue_runtime.errors import ProviderError
from queue_runtime.messages import Delivery, Message, QueueName
from queue_runtime.policies.breaker import BreakerConfig, BreakerState
from queue_runtime.providers.memory import MEMORY_FACTORY, MemoryConfig
from queue_runtime.testing import FaultyProvider
from queue_runtime.testing.simulation import run_deterministically

QUEUE = QueueName("q")


class Steps(trio.abc.Instrument):
    """Counts how often the loop comes round: a busy wait makes it thousands."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def connect(*bodies: str) -> Provider:
    broker = await MEMORY_FACTORY.open(MemoryConfig(lock_duration=10.0))
    await send(broker, *bodies)
    return broker


async def send(broker: Provider, *bodies: str, **fields: Any) -> None:
    sender = await broker.open_sender(QUEUE)
    await sender.send([Message(body.encode(), session_id="s", **fields) for body in bodies])


async def start(
    nursery: trio.Nursery,
    provider: Provider,
    handler: Callable[[Delivery], Awaitable[None]],
    **config: Any,
) -> Supervisor:
    supervisor: Supervisor = await nursery.start(
        partial(supervise, config=SupervisorConfig(**config)), provider, QUEUE, handler
    )
    return supervisor


async def test_an_idle_timeout_of_zero_does_not_spin() -> None:
    steps = Steps()
    done = trio.Event()

    async def handle(delivery: Delivery) -> None:
        await trio.sleep(0.1)
        done.set()

    broker = await connect("1")
    trio.lowlevel.add_instrument(steps)
    async with trio.open_nursery() as nursery:
        supervisor = await start(nursery, broker, handle, idle_timeout=0.0)
        await done.wait()
        await supervisor.wait_empty()
        await supervisor.drain()
    trio.lowlevel.remove_instrument(steps)
    assert steps.count < 300
    assert (await broker.stats(QUEUE)).locked_sessions == 0


async def test_nobody_spins_while_another_call_is_the_probe() -> None:
    steps = Steps()

    async def handle(delivery: Delivery) -> None:
        pass

    broker = await connect()
    async with trio.open_nursery() as nursery:
        config = BreakerConfig(failure_threshold=1, open_duration=0.01)
        supervisor = await start(nursery, broker, handle, breaker=config, receive_timeout=0.01)
        breaker = supervisor.breaker
        failing = breaker.admit()
        assert failing is not None
        breaker.fail(failing)
        await breaker.state.wait_value(BreakerState.HALF_OPEN)
        probe = breaker.admit()
        if probe is not None:  # else the receiver was quicker; then it is not to spin either
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(0.2)
            trio.lowlevel.remove_instrument(steps)
            breaker.succeed(probe)
        assert steps.count < 300
        await supervisor.drain()


def test_a_permanent_receive_error_ends_the_supervisor_as_itself() -> None:
    async def main() -> bool:
        async def handle(delivery: Delivery) -> None:
            raise AssertionError("there is nothing to handle")

        provider = FaultyProvider(await connect())
        async with trio.open_nursery() as nursery:

            async def crash() -> None:
                await trio.sleep(1)
                provider.crash()

            nursery.start_soon(crash)
            with pytest.raises(ProviderError, match="crashed"):
                await supervise(provider, QUEUE, handle)
        return True

    assert run_deterministically(0, main)


@pytest.mark.parametrize("seed", range(5))
def test_a_session_cancelled_before_its_settlements_are_sent_still_sends_them(seed: int) -> None:
    """It was about to end anyway, and gave its lock back before the settlements had gone out."""

    async def main() -> tuple[int, int]:
        handled = trio.Event()

        async def handle(delivery: Delivery) -> None:
            handled.set()

        broker = await connect("1")
        slow = attrs.evolve(broker.capabilities, settle_linger=0.04)
        provider = FaultyProvider(broker, capabilities=slow)
        async with trio.open_nursery() as nursery:
            await start(
                nursery, provider, handle, settlement=SettlementMode.PIPELINED, idle_timeout=0.0
            )
            await handled.wait()
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        stats = await broker.stats(QUEUE)
        return stats.depth, stats.in_flight

    assert run_deterministically(seed, main) == (0, 0)


def test_a_message_put_back_can_expire() -> None:
    """It still named the neighbour it had before its delivery, and took that one's place in the queue."""

    async def main() -> list[str]:
        broker = await connect("1")
        await send(broker, "2", time_to_live=5.0)
        await send(broker, "3")
        async with trio.open_nursery() as nursery:
            gone = trio.Event()

            async def hang_at_two(delivery: Delivery) -> None:
                if delivery.body == b"2":
                    gone.set()
                    await trio.sleep_forever()

            await start(nursery, broker, hang_at_two)
            await gone.wait()
            nursery.cancel_scope.cancel()
        await trio.sleep(6.0)
        await send(broker, "4")
        seen: list[str] = []

        async def handle(delivery: Delivery) -> None:
            seen.append(delivery.body.decode())

        async with trio.open_nursery() as nursery:
            supervisor = await start(nursery, broker, handle)
            with trio.fail_after(60.0):
                await supervisor.wait_empty()
            await supervisor.drain()
        return seen

    assert run_deterministically(0, main) == ["3", "4"]
