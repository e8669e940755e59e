"""Bugs planted on purpose: each replaces one decision of the real code by a wrong one, for as long as a block lasts.

They prove the net: a simulation that finds nothing says something only if it would have found these. Nothing
of them is in the production code; they are put in its place from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Final, final

import attrs
import trio

from ...abc import Lease
from ...actors import settlement as settlement_module
from ...actors.drain import Drain
from ...actors.leases import LeaseKeeper
from ...actors.session import SessionActor
from ...actors.signal import Signal
from ...handlers import CloseReason
from ...messages import Delivery, QueueName, Settlement, SettlementAction
from ...policies.assignment import Demand
from ...providers.memory import receiver as receiver_module
from ...providers.memory.engine import Refusal
from ...providers.memory.heap_engine import HeapEngine
from ...providers.memory.heap_lane import Entry, Lock
from ...providers.memory.heap_queue import HeapQueue
from ...providers.memory.receiver import EngineReceiver
from .world import SimulationResult, simulate

__all__ = ["PLANTED_BUGS", "PlantedBug", "hunt"]


@final
@attrs.frozen
class PlantedBug:
    """A bug and what is expected to notice it.

    Args:
        name: Short.
        meaning: What the code does wrong while it is planted.
        caught_by: The invariants of which at least one must not hold then.
        replacements: What is put in place of what: owner, name of the attribute, and the new value.
    """

    name: str
    meaning: str
    caught_by: tuple[str, ...]
    replacements: tuple[tuple[Any, str, Any], ...] = attrs.field(repr=False)

    def plant(self) -> AbstractContextManager[None]:
        """The bug is there for as long as the block lasts."""
        return _replaced(self.replacements)


@contextmanager
def _replaced(replacements: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, new in replacements:
            stack.callback(setattr, owner, name, vars(owner)[name])
            setattr(owner, name, new)
        yield


def hunt(bug: PlantedBug, seeds: Iterable[int]) -> tuple[SimulationResult | None, int]:
    """Simulate with the bug planted until it shows.

    Returns:
        The first result that is not ok, or ``None``; and how many seeds that took.
    """
    tried = 0
    with bug.plant():
        for seed in seeds:
            tried += 1
            result = simulate(seed)
            if not result.ok:
                return result, tried
    return None, tried


# No fence: whoever names a message or a session is believed, whatever lock it holds or held.

_settle = HeapEngine.settle
_release = HeapEngine.release


def _current_lock(queue: HeapQueue, sequence: int | None) -> Lock | None:
    return next((lock for lock in queue.locks.values() if sequence in lock.in_flight), None)


def _settle_unfenced(
    self: HeapEngine, queue: QueueName, holder: str, settlements: Sequence[Settlement], now: float
) -> list[Refusal | None]:
    answers: list[Refusal | None] = []
    for settlement in settlements:
        delivery = settlement.delivery
        lock = _current_lock(self._queues[queue], delivery.sequence_number)
        if lock is not None and delivery.sequence_number is not None:
            lease = delivery.lease
            forged = attrs.evolve(
                delivery,
                receipt=lock.in_flight[delivery.sequence_number].receipt,
                lease=Lease(lease.session_id, lock.token, lease.deadline, lease.expires_at),
            )
            believed = [attrs.evolve(settlement, delivery=forged)]
            answers += _settle(self, queue, lock.holder.id, believed, now)
        else:
            answers += _settle(self, queue, holder, [settlement], now)
    return answers


def _release_unfenced(
    self: HeapEngine, queue: QueueName, holder: str, leases: Sequence[Lease], now: float
) -> None:
    for lease in leases:
        lane = None
        if lease.session_id is not None:
            lane = self._queues[queue].lanes.get(lease.session_id)
        if lane is not None and lane.lock is not None:
            forged = Lease(lease.session_id, lane.lock.token, lease.deadline, lease.expires_at)
            _release(self, queue, lane.lock.holder.id, [forged], now)
        else:
            _release(self, queue, holder, [lease], now)


def _refuse_nothing(batch: Sequence[Settlement]) -> list[None]:
    return [None] * len(batch)


# Acknowledge before handling: what the handler then does is no longer of interest to the broker.

_attempt = SessionActor._attempt


async def _acknowledge_first(self: SessionActor, delivery: Delivery) -> Any:
    await self._environment.settler.settle(Settlement(delivery, SettlementAction.COMPLETE))
    return await _attempt(self, delivery)


async def _complete_already(self: SessionActor, _delivery: Delivery) -> None:
    self._head = None
    self._account(SettlementAction.COMPLETE)
    await trio.lowlevel.checkpoint()


# Requeue as retry: the failed message goes to the end of its session.

_give_back = HeapEngine._give_back


def _requeue_at_the_tail(
    self: HeapEngine, q: HeapQueue, lock: Lock, entry: Entry, settlement: Settlement, now: float
) -> None:
    if (
        settlement.action is not SettlementAction.ABANDON
        or entry.count >= self.options.delivery_limit
    ):
        _give_back(self, q, lock, entry, settlement, now)
        return
    message, count, lane = entry.message, entry.count, entry.lane
    del lock.in_flight[entry.sequence]
    q.in_flight -= 1
    q.count_out(lane)
    q.forget(entry)
    q.enqueue(message, entry.message_id, entry.enqueued_at, now, None)
    assert lane.tail is not None
    lane.tail.count = count


# Cancel before drain: the actors go first, and what they still had to say is never said.


async def _cancel_first(self: Drain, _grace: trio.CancelScope) -> bool:
    with trio.CancelScope(shield=True):
        await self.intake.stop()
        self.actors.cancel()
        self.dispatcher.drain()
        self.dispatcher.cancel()
        await self.dispatcher.wait_empty()
        with trio.move_on_after(self.flush_timeout):
            await self.receiver.aclose()
    return True


# The tail of a failed head is not given back: a parked session goes on with what is in its mailbox.

_park = SessionActor._park


async def _park_and_go_on(
    self: SessionActor, delivery: Delivery, delay: float, reason: CloseReason
) -> CloseReason | None:
    await _park(self, delivery, delay, reason)
    return None if reason is CloseReason.PARKED else reason


# Drop on cancelled receive: what was claimed for a task that is cancelled meanwhile is forgotten, and stays locked.


_receive = EngineReceiver.receive


async def _receive_and_drop(
    self: EngineReceiver, max_messages: int, timeout: float
) -> list[Delivery]:
    deliveries = await _receive(self, max_messages, timeout)
    await trio.sleep(0.05)
    return deliveries


# Lost wake-up: it reaches only who is waiting already.


def _wake_only_who_waits(self: Signal) -> None:
    task, self._task = self._task, None
    if task is not None:
        trio.lowlevel.reschedule(task)


# Cap ignored: there is always as much demand as at the beginning.


def _take_any(self: Demand, count: int) -> None:
    self.in_flight += count


# Locks left behind: a lease that is given back is only forgotten, and closing does not tell the broker either.


def _forget_only(self: LeaseKeeper, lease: Lease) -> None:
    self.forget(lease)
    lease.released = True


async def _close_silently(_self: EngineReceiver) -> None:
    await trio.lowlevel.checkpoint()


PLANTED_BUGS: Final = tuple(
    PlantedBug(name, meaning, caught_by, replacements)
    for name, meaning, caught_by, replacements in (
        (
            "no_fence",
            "neither the broker nor the settler looks whether the lock is still the sender's",
            ("fence", "I2", "I3"),
            (
                (HeapEngine, "settle", _settle_unfenced),
                (HeapEngine, "release", _release_unfenced),
                (settlement_module, "_refusals", _refuse_nothing),
            ),
        ),
        (
            "no_local_deadline",
            "a handler is not cancelled when its lock runs out",
            ("I3",),
            ((receiver_module, "LOCAL_DEADLINE_FRACTION", 1e6),),
        ),
        (
            "acknowledge_first",
            "a message is completed before its handler runs",
            ("I1",),
            (
                (SessionActor, "_attempt", _acknowledge_first),
                (SessionActor, "_complete", _complete_already),
            ),
        ),
        (
            "requeue_as_retry",
            "a failed message goes to the end of its session",
            ("I2",),
            ((HeapEngine, "_give_back", _requeue_at_the_tail),),
        ),
        (
            "cancel_before_drain",
            "draining cancels everything before the settlements are sent, and calls that clean",
            ("calm",),
            ((Drain, "run", _cancel_first),),
        ),
        (
            "tail_not_given_back",
            "a parked session goes on with the messages behind the failed one",
            ("I2",),
            ((SessionActor, "_park", _park_and_go_on),),
        ),
        (
            "drop_on_cancelled_receive",
            "what a cancelled receive had claimed is forgotten",
            ("I2",),
            ((EngineReceiver, "receive", _receive_and_drop),),
        ),
        (
            "lost_wake_up",
            "a wake-up is lost when nobody waits at that moment",
            ("I1", "I5", "I7"),
            ((Signal, "wake", _wake_only_who_waits),),
        ),
        (
            "cap_ignored",
            "more is received than may be in flight",
            ("I4",),
            (
                (Demand, "available", property(lambda self: self._max_in_flight)),
                (Demand, "taken", _take_any),
            ),
        ),
        (
            "locks_left",
            "locks that are given back stay until they expire",
            ("I5",),
            (
                (LeaseKeeper, "release", _forget_only),
                (EngineReceiver, "aclose", _close_silently),
            ),
        ),
    )
)
"""One bug per way in which a runtime like this one goes wrong."""
