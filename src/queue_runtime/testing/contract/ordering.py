"""Order within a session, whatever happens to its messages; and how deliveries are counted."""

from __future__ import annotations

import random
from typing import final

import trio

from ...abc import Provider, Receiver
from ...errors import LockLost
from ...messages import Delivery, Settlement, SettlementAction
from ..history import Ended, Recorder, check
from .bench import Bench, bodies, expect, expect_equal, expect_unsupported
from .core import case, unsupported_case


@unsupported_case("abandon_delay")
async def without_abandon_delay(bench: Bench) -> None:
    """Where delayed retries are not declared, abandoning with a delay raises ``Unsupported``."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    [delivery] = await bench.receive(receiver, 1)
    delayed = Settlement(delivery, SettlementAction.ABANDON, delay=5.0)
    await expect_unsupported("abandon_delay", receiver.settle([delayed]))
    await bench.complete(receiver, delivery)


@case("sessions")
async def in_send_order(bench: Bench) -> None:
    """Sessions sent interleaved, singly and in batches: each is received in the order of its sending."""
    names = [f"s{number}" for number in range(5)]
    for number in range(1, 21):
        await bench.send(*[bench.messages(1, name, first=number)[0] for name in names])
    receiver = await bench.receiver()
    deliveries = await bench.gather(receiver, 100)
    for name in names:
        got = [d.body.decode() for d in deliveries if d.session_id == name]
        expect_equal(got, [str(n) for n in range(1, 21)], f"the order of session {name}")


@case("sessions")
async def sequence_numbers_grow(bench: Bench) -> None:
    """Where the broker numbers messages, the numbers grow within a session."""
    await bench.send(*bench.messages(10, "session"))
    receiver = await bench.receiver()
    deliveries = await bench.receive(receiver, 10)
    numbers = [d.sequence_number for d in deliveries if d.sequence_number is not None]
    expect(len(numbers) in (0, 10), "some deliveries have a sequence number and some have not")
    expect_equal(numbers, sorted(set(numbers)), "sequence numbers, growing")
    await bench.complete(receiver, deliveries)


@case("sessions")
async def an_abandoned_message_is_next(bench: Bench) -> None:
    """A failed message comes again before anything behind it."""
    receiver = await bench.receiver(max_per_session=1)
    await bench.send(*bench.messages(3, "session"))
    order: list[str] = []
    counts: list[int] = []
    while len(order) < 5:
        [delivery] = await bench.receive(receiver, 1)
        order += bodies([delivery])
        counts.append(delivery.delivery_count)
        if order in (["1"], ["1", "1", "2"]):
            await bench.abandon(receiver, delivery)
        else:
            await bench.complete(receiver, delivery)
    expect_equal(order, ["1", "1", "2", "2", "3"], "the order of deliveries")
    expect_equal(counts, [1, 2, 1, 2, 1], "the delivery counts")


@case("sessions")
async def head_and_tail_given_back(bench: Bench) -> None:
    """The head of a batch abandoned and its tail released: the session goes on at the head, in order."""
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(5, "session"))
    head, *tail = await bench.receive(receiver, 4)
    answers = await receiver.settle(
        [
            Settlement(head, SettlementAction.ABANDON),
            *[Settlement(delivery, SettlementAction.RELEASE) for delivery in tail],
        ]
    )
    expect_equal(answers, [None] * 4, "answers to giving a batch back")
    await receiver.release([head.lease])
    again = await bench.receive(other, 5)
    expect_equal(bodies(again), ["1", "2", "3", "4", "5"], "the order after giving a batch back")
    bench.expect_count(again[0].delivery_count, 2, "the count of the abandoned head")
    if bench.capabilities.release_restores_count:
        counts = [delivery.delivery_count for delivery in again[1:]]
        expect_equal(counts, [1, 1, 1, 1], "the counts of the released tail")
    await bench.complete(other, again)


@case("sessions")
async def abandoned_while_later_ones_are_in_flight(bench: Bench) -> None:
    """A head abandoned while its tail is in flight is the next delivery of its session."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(4, "session"))
    first, second, third = await bench.receive(receiver, 3)
    await bench.abandon(receiver, first)
    tail = [second, third]
    if not bench.capabilities.keeps_empty_sessions:
        # Where the lock is the messages in flight, the tail may block even the head.
        await bench.complete(receiver, tail)
        tail = []
    again = await receiver.receive(1, bench.environment.patience)
    expect_equal(bodies(again), ["1"], "the delivery after the head was abandoned")
    await bench.complete(receiver, [*again, *tail])
    [fourth] = await bench.receive(receiver, 1)
    expect_equal(fourth.body, b"4", "the one after the batch")
    await bench.complete(receiver, fourth)


@case("sessions", "abandon_delay", waits=True)
async def a_delay_holds_the_session(bench: Bench) -> None:
    """A message abandoned with a delay holds its session back until then - for everybody - and no other session."""
    delay = bench.environment.delay
    receiver, other = await bench.two_receivers()
    await bench.send(*bench.messages(3, "session"))
    head, *tail = await bench.receive(receiver, 3)
    abandoned = trio.current_time()
    answers = await receiver.settle(
        [
            Settlement(head, SettlementAction.ABANDON, delay=delay),
            *[Settlement(delivery, SettlementAction.RELEASE) for delivery in tail],
        ]
    )
    expect_equal(answers, [None] * 3, "answers to giving a batch back")
    await receiver.release([head.lease])
    await bench.send(*bench.messages(1, "session", first=4), *bench.messages(1, "free"))
    [free] = await bench.receive(other, 1)
    expect_equal(free.session_id, "free", "what is delivered beside a delayed session")
    await bench.complete(other, free)
    again = await other.receive(4, bench.environment.patience)
    waited = trio.current_time() - abandoned
    expect(
        waited >= delay - 0.05, f"delivered {waited:.3f} s after a delay of {delay} s was asked for"
    )
    late = waited - delay
    expect(late <= bench.tolerance_of_delays, f"the retry came {late:.3f} s too late")
    again += await bench.receive(other, 4 - len(again)) if len(again) < 4 else []
    expect_equal(bodies(again), ["1", "2", "3", "4"], "the order after a delayed retry")
    bench.expect_count(again[0].delivery_count, 2, "the count of the retried message")
    await bench.complete(other, again)


@case("sessions", "abandon_delay", waits=True)
async def a_delay_holds_the_session_of_its_holder(bench: Bench) -> None:
    """While the head is delayed its holder gets nothing of the session either, and then the head first."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(2, "session"))
    [head] = await bench.receive(receiver, 1)
    abandoned = trio.current_time()
    await bench.abandon(receiver, head, delay=bench.environment.delay)
    again = await bench.receive(receiver, 1)
    waited = trio.current_time() - abandoned
    expect_equal(bodies(again), ["1"], "the delivery after the delay")
    expect(waited >= bench.environment.delay - 0.05, f"delivered after {waited:.3f} s")
    await bench.complete(receiver, again)
    [second] = await bench.receive(receiver, 1)
    expect_equal(second.body, b"2", "what follows it")
    await bench.complete(receiver, second)


@case("abandon_delay", waits=True)
async def a_delay_without_a_session(bench: Bench) -> None:
    """A delayed message without a session comes back after the delay; others do not wait for it."""
    receiver = await bench.receiver()
    await bench.send(*bench.messages(1))
    [delivery] = await bench.receive(receiver, 1)
    abandoned = trio.current_time()
    await bench.abandon(receiver, delivery, delay=bench.environment.delay)
    await bench.send(*bench.messages(1, first=2))
    [second] = await bench.receive(receiver, 1)
    expect_equal(second.body, b"2", "what is delivered beside a delayed message")
    [again] = await bench.receive(receiver, 1)
    waited = trio.current_time() - abandoned
    expect_equal(again.body, b"1", "the delayed message")
    expect(waited >= bench.environment.delay - 0.05, f"delivered after {waited:.3f} s")
    await bench.complete(receiver, [second, again])


@case("sessions", waits=True)
async def a_lost_lock_resumes_at_the_lowest(bench: Bench) -> None:
    """When a holder falls silent, the next one resumes at the lowest unsettled message; it is fenced off itself."""
    receiver, other = await bench.two_receivers()
    lock = bench.lock_duration(receiver)
    await bench.send(*bench.messages(5, "session"))
    held = await bench.receive(receiver, 4)
    await bench.complete(receiver, held[0])
    taken = await bench.receive(other, 4, within=lock + bench.environment.tolerance)
    expect_equal(bodies(taken), ["2", "3", "4", "5"], "what the next holder got")
    for delivery in held[1:]:
        error = await bench.try_settle(receiver, delivery)
        expect(error is not None, f"a stale completion of {delivery.body!a} was accepted")
        if bench.environment.exact:
            expect(isinstance(error, LockLost), f"expected LockLost, got {error!r}")
    counts = [delivery.delivery_count for delivery in taken]
    bench.expect_count(counts[0], 2, "the count of the message that may have been started")
    if bench.environment.exact:
        expect_equal(counts[1:], [1, 1, 1], "the counts of those that cannot have been started")
    await bench.complete(other, taken)


@case()
async def failures_are_counted(bench: Bench) -> None:
    """Every abandoned delivery counts."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    failures = min(2, (receiver.max_delivery_count or 3) - 1)
    for failed in range(failures):
        [delivery] = await bench.receive(receiver, 1)
        expect_equal(delivery.delivery_count, failed + 1, "the delivery count")
        await bench.abandon(receiver, delivery)
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.delivery_count, failures + 1, "the last delivery count")
    await bench.complete(receiver, delivery)


@case("release_restores_count")
async def releases_are_not_counted(bench: Bench) -> None:
    """A delivery given back untried does not count, however often; a failure after it counts once."""
    await bench.send(*bench.messages(1, bench.session))
    receiver = await bench.receiver()
    for _ in range(2 * min(receiver.max_delivery_count or 5, 5)):
        [delivery] = await bench.receive(receiver, 1)
        expect_equal(delivery.delivery_count, 1, "the count after releases only")
        await bench.give_back(receiver, delivery)
    [delivery] = await bench.receive(receiver, 1)
    await bench.abandon(receiver, delivery)
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.delivery_count, 2, "the count after one failure")
    await bench.give_back(receiver, delivery)
    [delivery] = await bench.receive(receiver, 1)
    expect_equal(delivery.delivery_count, 2, "the count after one failure and a release")
    await bench.complete(receiver, delivery)


@case("sessions", "release_restores_count")
async def a_tail_is_not_burned(bench: Bench) -> None:
    """While the head fails again and again, what waits behind it keeps its count."""
    receiver = await bench.receiver()
    limit = min(bench.delivery_limit(receiver) if receiver.max_delivery_count else 4, 4)
    await bench.send(*bench.messages(4, "session"))
    for attempt in range(1, limit):
        head, *tail = await bench.receive(receiver, 4)
        expect_equal(bodies([head, *tail]), ["1", "2", "3", "4"], "the batch")
        expect_equal(head.delivery_count, attempt, "the count of the head")
        counts = [delivery.delivery_count for delivery in tail]
        expect_equal(counts, [1, 1, 1], f"the counts of the tail at attempt {attempt}")
        await bench.abandon(receiver, head)
        await bench.give_back(receiver, tail)
    await bench.complete(receiver, await bench.receive(receiver, 4))


@final
class _Crew:
    """Consumers that do with their messages what consumers do, at random, and write it down."""

    def __init__(self, bench: Bench, recorder: Recorder, messages: int) -> None:
        self.bench = bench
        self.recorder = recorder
        self.left = messages
        self.done = trio.Event()

    async def consume(self, provider: Provider, number: int) -> None:
        dice = random.Random(number)
        recorder = self.recorder.named(f"consumer-{number}")
        while not self.done.is_set():
            receiver = await self.bench.receiver(provider, max_sessions=2)
            closing = False
            while not closing and not self.done.is_set():
                deliveries = await receiver.receive(8, 0.2)
                # Whatever is left of a batch goes back before its session is let go.
                for session in dict.fromkeys(delivery.session_id for delivery in deliveries):
                    batch = [d for d in deliveries if d.session_id == session]
                    closing = await self.turn(receiver, batch, recorder, dice) or closing
            await receiver.aclose()

    async def turn(
        self,
        receiver: Receiver,
        batch: list[Delivery],
        recorder: Recorder,
        dice: random.Random,
    ) -> bool:
        """Handle a batch of one session; whether the receiver shall be closed."""
        for position, delivery in enumerate(batch):
            recorder.started(delivery)
            if dice.random() < 0.3:
                await trio.sleep(0.002)
            fate = dice.random()
            if fate < 0.7 or delivery.delivery_count > 1:
                recorder.ended(delivery)
                await self.bench.complete(receiver, delivery)
                recorder.settled(delivery, SettlementAction.COMPLETE)
                self.left -= 1
                if not self.left:
                    self.done.set()
                continue
            if fate > 0.95:
                recorder.ended(delivery, Ended.ABANDON)
                return True
            if fate > 0.85:
                recorder.ended(delivery, Ended.ABANDON)
                await self.bench.give_back(receiver, batch[position:])
            else:
                recorder.ended(delivery, Ended.RETRY)
                await self.bench.abandon(receiver, delivery)
                await self.bench.give_back(receiver, batch[position + 1 :])
            await receiver.release([delivery.lease])
            return False
        lease = batch[0].lease
        # A lease is let go by chance, or before it runs out: nobody renews it here.
        if dice.random() < 0.3 or lease.deadline - trio.current_time() < receiver.lock_duration / 2:
            await receiver.release([lease])
        return False


@case("sessions")
async def rough_handling(bench: Bench) -> None:
    """Consumers that complete, fail, give back, let go and close at random: the invariants hold."""
    sessions, each = 8, 25
    sender = await bench.sender()
    recorder = Recorder("producer")
    crew = _Crew(bench, recorder, sessions * each)
    for number in range(each):
        for session in range(sessions):
            [message] = bench.messages(1, f"s{session}", first=number)
            assert message.message_id is not None, "numbered messages have ids"
            recorder.sending(message.session_id, message.message_id, number)
            await sender.send([message])
            recorder.sent(message.session_id, message.message_id, number)
    providers = [bench.provider, await bench.connect()]
    with trio.fail_after(bench.environment.case_timeout):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(crew.consume, providers[number % 2], number)
    report = check(recorder.history())
    report.raise_for_violations()
    expect_equal(report.completed, sessions * each, "messages completed")
