"""The client: one session, held by hand (C1, A8, A12)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.client import open_client
from queue_runtime.config import ClientConfig
from queue_runtime.errors import (
    InvalidReceipt,
    LockLost,
    OperationTimeout,
    SessionLocked,
    Unsupported,
    ValidationError,
)
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerState
from queue_runtime.testing.simulation.ending_leases import EndingLeases

QUICK = ClientConfig(retry=RetryPolicy.fixed(0.01, max_attempts=2), receive_timeout=5.0)


async def test_a_named_session_is_read_alone_and_in_order(lab: Any) -> None:
    await lab.send("a:1", "b:1", "a:2")
    async with open_client(lab.provider, config=QUICK) as client:
        async with client.accept_session("q", "a") as session:
            assert session is not None
            assert session.session_id == "a"
            first = await session.receive()
            second = await session.receive()
            assert first is not None
            assert second is not None
            assert [first.body, second.body] == [b"1", b"2"]
            assert await session.receive(timeout=1) is None
            await client.complete(first)
            await client.complete(second)
            # It stays locked although nothing of it is owed.
            assert (await client.queue_stats("q")).locked_sessions == 1
        await lab.assert_all_free()
        assert await lab.waiting() == [("1", 0)]
        with pytest.raises(InvalidReceipt):
            await client.complete(first)


async def test_the_next_available_session(lab: Any) -> None:
    async with open_client(lab.provider, config=QUICK) as client:
        start = trio.current_time()
        async with client.accept_session("q") as session:
            assert session is None
        assert trio.current_time() - start == pytest.approx(5)
        await lab.send("a:1", "b:1")
        async with client.accept_session("q") as one, client.accept_session("q") as two:
            assert one is not None
            assert two is not None
            assert {one.session_id, two.session_id} == {"a", "b"}
            async with client.accept_session("q", timeout=0) as three:
                assert three is None
        await lab.assert_all_free()


async def test_a_session_somebody_else_holds_is_locked(lab: Any) -> None:
    """However often it is asked for: that is no reason to open the breaker."""
    async with open_client(lab.provider, config=QUICK) as client:
        async with client.accept_session("q", "a"):
            for _ in range(10):
                with pytest.raises(SessionLocked):
                    async with client.accept_session("q", "a"):
                        raise AssertionError("not opened")
        assert client._calls.breaker.state.value is BreakerState.CLOSED
        async with client.accept_session("q", "a") as session:
            assert session is not None
        assert lab.provider.calls["open_receiver"] == lab.provider.calls["close"]


async def test_an_unknown_session_can_be_held(lab: Any) -> None:
    async with open_client(lab.provider, config=QUICK) as client:
        async with client.accept_session("q", "new") as session:
            assert session is not None
            await lab.send("new:1")
            batch = await session.receive_batch(max_messages=5)
            assert [delivery.body for delivery in batch] == [b"1"]
            # Not settled, so it goes back with the lock.
        assert await lab.waiting() == [("1", 0)]


async def test_the_lock_lasts_while_it_is_renewed(lab: Any) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider, config=QUICK) as client:
        async with client.accept_session("q", "a") as session:
            assert session is not None
            delivery = await session.receive()
            assert delivery is not None
            token = session.fencing_token
            for _ in range(4):
                until = session.locked_until
                await trio.sleep(20)
                await session.renew()
                assert session.locked_until > until
            assert session.fencing_token == token > 0
            await client.complete(delivery)
        assert await lab.waiting() == []


async def test_a_lost_lock_is_told(lab: Any) -> None:
    await lab.send("a:1", "a:2")
    async with open_client(lab.provider, config=QUICK) as client:
        async with client.accept_session("q", "a") as session:
            assert session is not None
            delivery = await session.receive()
            assert delivery is not None
            await trio.sleep(31)
            with pytest.raises(LockLost):
                await session.renew()
            with pytest.raises(LockLost):
                await client.complete(delivery)
            with pytest.raises(LockLost):
                await session.receive(timeout=1)
            with pytest.raises(LockLost):
                await session.state.set(b"stale")
        await lab.assert_all_free()


async def test_state_is_kept_with_the_session(lab: Any) -> None:
    async with open_client(lab.provider, config=QUICK) as client:
        for before, after in ((None, b"1"), (b"1", b""), (b"", None), (None, None)):
            async with client.accept_session("q", "a") as session:
                assert session is not None
                assert await session.state.get() == before
                await session.state.set(after)


@pytest.mark.parametrize("operation", ["get_state", "set_state"])
async def test_state_without_an_answer_is_a_timeout(lab: Any, operation: str) -> None:
    async def stall(_proceed: Any, *_args: Any) -> None:
        await trio.sleep_forever()

    config = attrs.evolve(QUICK, operation_timeout=2.0)
    async with (
        open_client(lab.provider, config=config) as client,
        client.accept_session("q", "a") as session,
    ):
        lab.provider.on[operation] = stall
        start = trio.current_time()
        with pytest.raises(OperationTimeout):
            await (session.state.get() if operation == "get_state" else session.state.set(b"1"))
        # Two tries of 2 s, as `QUICK` says.
        assert trio.current_time() - start == pytest.approx(4.0, abs=0.1)


async def test_where_leases_end_with_their_messages_a_block_reads_one(lab: Any) -> None:
    provider = EndingLeases(lab.provider, max_receive_messages=10)
    await lab.send("a:1", "a:2")
    async with open_client(provider, config=QUICK) as client:
        async with client.accept_session("q") as session:
            assert session is not None
            batch = await session.receive_batch(max_messages=10)
            assert [delivery.body for delivery in batch] == [b"1", b"2"]
            await lab.send("a:3")
            for delivery in batch:
                await client.complete(delivery)
            assert await session.receive(timeout=1) is None
            with pytest.raises(LockLost):
                await session.renew()
        async with client.accept_session("q") as session:
            assert session is not None
            [third] = await session.receive_batch(max_messages=10)
            assert third.body == b"3"
            await client.complete(third)


async def test_arguments_are_checked_before_anything_is_opened(lab: Any) -> None:
    async with open_client(lab.provider, config=QUICK) as client:
        for arguments in ({"session_id": "\n"}, {"session_id": ""}, {"timeout": -1}):
            with pytest.raises(ValidationError):
                async with client.accept_session("q", **arguments):
                    raise AssertionError("not opened")
        assert lab.provider.calls == {}
        async with client.accept_session("q", "a") as session:
            assert session is not None
            with pytest.raises(ValidationError):
                await session.receive_batch(max_messages=0)


async def test_what_was_opened_is_closed_when_accepting_fails_or_is_cancelled(lab: Any) -> None:
    async def refuse(_proceed: Any, *_args: Any) -> Any:
        raise Unsupported("sessions", "tampered")

    async with open_client(lab.provider, config=QUICK) as client:
        with trio.move_on_after(1):
            async with client.accept_session("q"):
                raise AssertionError("not opened")
        lab.provider.on["accept"] = refuse
        with pytest.raises(Unsupported):
            async with client.accept_session("q", "a"):
                raise AssertionError("not opened")
        assert lab.provider.calls["open_receiver"] == lab.provider.calls["close"] == 2


async def test_an_error_in_the_block_comes_out_and_frees_the_session(lab: Any) -> None:
    await lab.send("a:1")
    async with open_client(lab.provider, config=QUICK) as client:
        with pytest.raises(ZeroDivisionError):
            async with client.accept_session("q", "a") as session:
                assert session is not None
                assert await session.receive() is not None
                raise ZeroDivisionError
        await lab.assert_all_free()
        assert client._holding.owners == {}
