"""The client: receiving, settling and looking (C1, C4, C6, C10, S4)."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.client import open_client
from queue_runtime.config import ClientConfig
from queue_runtime.errors import (
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    ValidationError,
)
from queue_runtime.messages import Message, Settlement, SettlementAction


async def test_a_message_there_and_back(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        sent = await client.send("q", Message(b"1", session_id="a", headers={"h": "x"}))
        delivery = await client.receive("q")
        assert delivery is not None
        assert (delivery.body, delivery.session_id, delivery.headers["h"]) == (b"1", "a", "x")
        assert delivery.message_id == sent.message_id
        assert delivery.delivery_count == 1
        await client.complete(delivery)
        await lab.assert_all_free()
        assert await lab.waiting() == []
        assert client.capabilities.sessions
        assert client.provider.name == "tampered"


@pytest.mark.parametrize("timeout", [0, 0.5, 3.0, None])
async def test_an_empty_queue_answers_at_the_timeout(lab: Any, timeout: float | None) -> None:
    async with open_client(lab.provider, config=ClientConfig(receive_timeout=7.0)) as client:
        start = trio.current_time()
        assert await client.receive("q", timeout=timeout) is None
        expected = 7.0 if timeout is None else timeout
        assert expected <= trio.current_time() - start < expected + 0.1
        assert await client.receive_batch("q", max_messages=5, timeout=timeout) == []


async def test_a_cancelled_receive_leaves_nothing_locked(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        with trio.move_on_after(1):
            await client.receive("q")
        for steps in range(12):
            await lab.send("a:1")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, steps)
                    delivery = await client.receive("q")
                    # Handed out in spite of it: then it is ours to settle.
                    if delivery is not None:
                        with trio.CancelScope(shield=True):
                            await client.complete(delivery)
            await lab.assert_all_free()
            await client.purge("q")


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_batches_hold_no_more_than_asked_for(lab: Any) -> None:
    await lab.send(*(f"a:{n}" for n in range(10)))
    async with open_client(lab.provider) as client:
        first = await client.receive_batch("q", max_messages=4)
        rest = await client.receive_batch("q", max_messages=100)
        assert [d.body for d in (*first, *rest)] == [b"%d" % n for n in range(10)]
        # The session stays locked until everything received of it is settled.
        answers = await client.settle(
            [Settlement(d, SettlementAction.COMPLETE) for d in (*first, *rest[:-1])]
        )
        assert answers == [None] * 9
        assert (await client.queue_stats("q")).locked_sessions == 1
        await client.complete(rest[-1])
        assert (await client.queue_stats("q")).locked_sessions == 0


@pytest.mark.parametrize("count", [0, -1, True, "3", 1.5])
async def test_numbers_of_messages_are_checked(lab: Any, count: Any) -> None:
    async with open_client(lab.provider) as client:
        for call in (client.receive_batch, client.peek):
            with pytest.raises(ValidationError, match="max_messages is"):
                await call("q", max_messages=count)
        with pytest.raises(ValidationError):
            async with client.stream("q", max_messages=count):
                raise AssertionError("not opened")


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, True, "3"])
async def test_timeouts_are_checked(lab: Any, timeout: Any) -> None:
    async with open_client(lab.provider) as client:
        with pytest.raises(ValidationError, match="timeout is"):
            await client.receive("q", timeout=timeout)


@pytest.mark.parametrize("text", ["a:1", ":1"], ids=["session", "single"])
async def test_a_receipt_is_good_once(lab: Any, text: str) -> None:
    await lab.send(text)
    async with open_client(lab.provider) as client:
        delivery = await client.receive("q")
        assert delivery is not None
        await client.complete(delivery)
        for settle in (client.complete, client.abandon, client.release):
            with pytest.raises(InvalidReceipt, match="settled before"):
                await settle(delivery)
        with pytest.raises(InvalidReceipt, match="not held"):
            await client.renew(delivery)


async def test_a_foreign_receipt_is_refused_and_changes_nothing(lab: Any) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider) as mine, open_client(lab.provider) as other:
        delivery = await mine.receive("q")
        assert delivery is not None
        with pytest.raises(InvalidReceipt):
            await other.complete(delivery)
        forged = attrs.evolve(delivery, receipt="forged")
        with pytest.raises(InvalidReceipt):
            await mine.complete(forged)
        await mine.complete(delivery)


async def test_an_expired_receipt_is_refused(lab: Any) -> None:
    await lab.send("a:1", ":2")
    async with open_client(lab.provider) as client:
        held = await client.receive_batch("q", max_messages=2)
        assert len(held) == 2
        await trio.sleep(31)
        for delivery in held:
            with pytest.raises((LockLost, InvalidReceipt)):
                await client.complete(delivery)
            with pytest.raises((LockLost, InvalidReceipt)):
                await client.renew(delivery)
        # What is owed under a lost lock is forgotten.
        assert client._holding.owners == {}
        again = await client.receive_batch("q", max_messages=2)
        assert [delivery.delivery_count for delivery in again] == [2, 2]
        for delivery in again:
            await client.complete(delivery)


async def test_abandon_with_a_delay_holds_the_session_back(lab: Any) -> None:
    await lab.send("a:1", "a:2")
    async with open_client(lab.provider) as client:
        delivery = await client.receive("q")
        assert delivery is not None
        await client.abandon(delivery, delay=10)
        assert await client.receive("q", timeout=9) is None
        again = await client.receive("q", timeout=2)
        assert again is not None
        assert (again.body, again.delivery_count) == (b"1", 2)
        await client.release(again)
        again = await client.receive("q", timeout=0)
        assert again is not None
        assert (again.body, again.delivery_count) == (b"1", 2)
        await client.complete(again)


@pytest.mark.parametrize("delay", [-1.0, math.nan, math.inf, 1e12])
async def test_delays_are_checked_before_anything_is_settled(lab: Any, delay: float) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider) as client:
        delivery = await client.receive("q")
        assert delivery is not None
        with pytest.raises(ValidationError, match="delay is"):
            await client.abandon(delivery, delay=delay)
        assert lab.provider.calls["settle"] == 0
        await client.complete(delivery)


async def test_renewing_moves_the_lock(lab: Any) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider) as client:
        delivery = await client.receive("q")
        assert delivery is not None
        for _ in range(5):
            until = delivery.locked_until
            await trio.sleep(20)
            await client.renew(delivery)
            assert (delivery.locked_until - until).total_seconds() == pytest.approx(20)
        await client.complete(delivery)


async def test_settling_many_answers_for_each(lab: Any) -> None:
    await lab.send("a:1", "a:2", "b:1", ":1")
    async with open_client(lab.provider) as client:
        held = await client.receive_batch("q", max_messages=10)
        complete = [Settlement(delivery, SettlementAction.COMPLETE) for delivery in held]
        answers = await client.settle([*complete, complete[0]])
        assert answers[:4] == [None] * 4
        assert isinstance(answers[4], InvalidReceipt)
        assert await client.settle([]) == []
        await lab.assert_all_free()


async def test_settlements_are_split_at_the_limit(lab: Any) -> None:
    lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, max_settle_messages=3)
    await lab.send(*(f"a:{n}" for n in range(8)))
    async with open_client(lab.provider) as client:
        held = await client.receive_batch("q", max_messages=10)
        assert await client.settle([Settlement(d, SettlementAction.COMPLETE) for d in held]) == (
            [None] * 8
        )
    assert lab.provider.calls["settle"] == 3


async def test_a_release_that_fails_does_not_fail_the_settlement(lab: Any) -> None:
    async def fail(_proceed: Any, _leases: Any) -> Any:
        raise ConnectionFailed("down")

    await lab.send("a:1")
    lab.provider.on["release"] = fail
    async with open_client(lab.provider) as client:
        delivery = await client.receive("q")
        assert delivery is not None
        await client.complete(delivery)
        assert await lab.waiting() == []


async def test_what_comes_under_a_lock_that_is_being_given_back_is_not_handed_out(
    lab: Any,
) -> None:
    """Two tasks on one client: one settles the last message it has, the other receives the next meanwhile."""
    release = trio.Event()

    async def slow(proceed: Any, leases: Any) -> Any:
        await release.wait()
        return await proceed(leases)

    await lab.send("a:1")
    async with open_client(lab.provider) as client:
        first = await client.receive("q")
        assert first is not None
        lab.provider.on["release"] = slow
        received: list[Any] = []

        async def receive() -> None:
            received.append(await client.receive("q", timeout=50))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.complete, first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(receive)
            await lab.send("a:2")
            await trio.testing.wait_all_tasks_blocked()
            assert received == []
            release.set()
        (second,) = received
        assert second.lease is not first.lease
        assert (second.body, second.delivery_count) == (b"2", 1)
        await client.complete(second)


async def test_a_stream_hands_out_in_order_and_gives_back_what_it_fetched(lab: Any) -> None:
    await lab.send(*(f"a:{n}" for n in range(20)))
    async with open_client(lab.provider) as client:
        seen = []
        async with client.stream("q", max_messages=8) as deliveries:
            async for delivery in deliveries:
                seen.append(delivery.body)
                await client.complete(delivery)
                if len(seen) == 11:
                    break
        assert seen == [b"%d" % n for n in range(11)]
        await lab.assert_all_free()
        assert await lab.waiting() == [(str(n), 0) for n in range(11, 20)]


async def test_a_stream_waits_for_more_and_ends_when_cancelled(lab: Any) -> None:
    async with open_client(lab.provider, config=ClientConfig(receive_timeout=2.0)) as client:
        seen = []
        with trio.move_on_after(20):
            async with client.stream("q") as deliveries, trio.open_nursery() as nursery:
                nursery.start_soon(_send_later, lab, 9.0)
                async for delivery in deliveries:
                    seen.append(delivery.body)
                    await client.complete(delivery)
        assert seen == [b"later"]
        await lab.assert_all_free()


async def _send_later(lab: Any, delay: float) -> None:
    await trio.sleep(delay)
    await lab.send("a:later")


async def test_a_stream_never_iterated_does_nothing(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        async with client.stream("q"):
            await trio.lowlevel.checkpoint()
        assert lab.provider.calls["receive"] == 0


async def test_looking_and_purging(lab: Any) -> None:
    await lab.send("a:1", "a:2", "b:3")
    async with open_client(lab.provider) as client:
        first = await client.peek("q", max_messages=2)
        assert [each.message.body for each in first] == [b"1", b"2"]
        more = await client.peek("q", after=first[-1].sequence_number)
        assert [each.message.body for each in more] == [b"3"]
        stats = await client.queue_stats("q")
        assert (stats.depth, stats.in_flight, stats.sessions) == (3, 0, 2)
        assert await client.purge("q") == 3
        assert (await client.queue_stats("q")).depth == 0


async def test_dead_letters_are_listed_found_redriven_and_purged(lab: Any) -> None:
    await lab.send(*(f"{session}:{n}" for session in "ab" for n in range(3)))
    async with open_client(lab.provider) as client:
        for _ in range(6):
            delivery = await client.receive("q")
            assert delivery is not None
            reason = "even" if int(delivery.body) % 2 == 0 else "odd"
            await client.dead_letter(delivery, reason, "x" * 10_000)
        letters = await client.dead_letters("q")
        assert [len(await letters.list(max_messages=n)) for n in (1, 4, 100)] == [1, 4, 6]
        with pytest.raises(ValidationError):
            await letters.list(max_messages=0)
        (first,) = await letters.list(max_messages=1)
        assert first.dead_letter is not None
        assert len(first.dead_letter.description) == 4096

        async def found(**options: Any) -> list[str]:
            return [
                f"{each.message.session_id}{each.message.body.decode()}"
                async for each in letters.find(**options)
            ]

        assert await found() == ["a0", "a1", "a2", "b0", "b1", "b2"]
        assert await found(reason="odd") == ["a1", "b1"]
        assert await found(session_id="b", reason="even") == ["b0", "b2"]
        assert await found(message_ids={first.message_id}) == [
            f"{first.message.session_id}{first.message.body.decode()}"
        ]
        odd = [each.sequence_number async for each in letters.find(reason="odd")]
        assert await letters.purge(odd) == 2
        mine = [each.sequence_number async for each in letters.find(session_id="a")]
        assert await letters.redrive(mine) == 2
        again = await client.receive_batch("q", max_messages=10)
        assert [each.body for each in again] == [b"0", b"2"]
        assert all(each.delivery_count == 1 for each in again)
        assert all(each.dead_letter.reason == "even" for each in again if each.dead_letter)
        assert await letters.redrive() == 2
        assert await letters.purge() == 0
