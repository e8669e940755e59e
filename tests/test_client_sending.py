"""The client: sending, scheduling, and what happens when the broker fails (C1, C5, C7, S1, S2, A3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from queue_runtime.client import open_client
from queue_runtime.client.sending import with_message_id
from queue_runtime.config import ClientConfig
from queue_runtime.errors import (
    CircuitOpen,
    ConnectionFailed,
    MessageTooLarge,
    OperationTimeout,
    PermissionDenied,
    QueueFull,
    QueueNotFound,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.messages import Message, MessageId, SendResult
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig, BreakerState


def messages(*texts: str) -> list[Message]:
    return [
        Message(text.partition(":")[2].encode(), session_id=text.partition(":")[0] or None)
        for text in texts
    ]


async def test_sends_of_many_tasks_travel_together(lab: Any) -> None:
    sizes = []

    async def note(proceed: Any, batch: Any) -> Any:
        sizes.append(len(batch))
        await trio.sleep(1)
        return await proceed(batch)

    lab.provider.on["send"] = note
    results: dict[int, SendResult] = {}

    async with open_client(lab.provider) as client:

        async def send(number: int) -> None:
            results[number] = await client.send("q", Message(b"%d" % number))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(send, number)
        assert sum(sizes) == 100
        assert len(sizes) <= 3
        stored = {m.message_id: m.message.body for m in await client.peek("q", max_messages=200)}
        assert all(stored[results[n].message_id] == b"%d" % n for n in range(100))  # type: ignore[index]


async def test_a_send_cancelled_before_its_call_is_not_sent(lab: Any) -> None:
    async def slow(proceed: Any, batch: Any) -> Any:
        await trio.sleep(1)
        return await proceed(batch)

    lab.provider.on["send"] = slow
    async with open_client(lab.provider) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, "q", Message(b"first"))
        await trio.sleep(0.5)
        with trio.move_on_after(0.1):
            await client.send("q", Message(b"withdrawn"))
        await client.send("q", Message(b"last"))
        assert [body for body, _ in await lab.waiting()] == ["first", "last"]


async def test_an_entry_that_is_refused_fails_alone(open_lab: Any) -> None:
    lab = await open_lab(max_queue_size=3)
    async with open_client(lab.provider) as client:
        results = await client.send_batch("q", messages("a:1", "a:2", "a:3", "a:4"))
        assert [type(result.error) for result in results] == [type(None)] * 3 + [QueueFull]
        assert results[3].message_id is None
        with pytest.raises(QueueFull):
            await client.send("q", Message(b"5"))
        assert await client.send_batch("q", []) == []


async def test_batches_are_split_by_number_and_by_bytes(lab: Any) -> None:
    sizes: list[int] = []

    async def note(proceed: Any, batch: Any) -> Any:
        sizes.append(len(batch))
        return await proceed(batch)

    lab.provider.on["send"] = note
    lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, max_batch_messages=4)
    async with open_client(lab.provider) as client:
        results = await client.send_batch("q", messages(*(f"a:{n}" for n in range(10))))
        assert sizes == [4, 4, 2]
        assert [r.sequence_number for r in results] == sorted(
            r.sequence_number
            for r in results  # type: ignore[type-var]
        )
    sizes.clear()
    lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, max_batch_bytes=10)
    async with open_client(lab.provider) as client:
        await client.send_batch("q", [Message(b"x" * size) for size in (6, 4, 5, 6, 10, 1, 1, 1)])
        await client.send_batch("q", [Message(b"") for _ in range(6)])
        await client.send_batch("q", [])
    assert sizes == [2, 1, 1, 1, 3, 4, 2]


async def test_when_a_call_fails_nothing_overtakes(lab: Any) -> None:
    calls = 0

    async def fail(proceed: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PermissionDenied("no")
        return await proceed(batch)

    lab.provider.on["send"] = fail
    lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, max_batch_messages=2)
    async with open_client(lab.provider) as client:
        results = await client.send_batch("q", messages("a:1", "a:2", "a:3", "a:4", "a:5"))
        assert [result.error is None for result in results] == [True, True, False, False, False]
        assert all(isinstance(result.error, PermissionDenied) for result in results[2:])
        assert [body for body, _ in await lab.waiting()] == ["1", "2"]


async def test_too_large_is_told_before_anything_is_sent(lab: Any) -> None:
    limit = lab.provider.capabilities.max_message_bytes
    async with open_client(lab.provider) as client:
        for call in (
            client.send("q", Message(b"x" * (limit + 1))),
            client.send_batch("q", [Message(b"small"), Message(b"x" * (limit + 1))]),
        ):
            with pytest.raises(MessageTooLarge) as caught:
                await call
            assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
        assert lab.provider.calls == {}
        await client.send("q", Message(b"x" * limit))


async def test_scheduled_messages_come_in_time_and_can_be_taken_back(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        at = datetime.now(UTC) + timedelta(seconds=60)
        await client.schedule("q", Message(b"kept", session_id="a"), at)
        taken = await client.schedule("q", Message(b"taken", session_id="a"), at)
        assert taken.sequence_number is not None
        assert (await client.queue_stats("q")).scheduled == 2
        assert await client.cancel_scheduled("q", taken.sequence_number)
        assert not await client.cancel_scheduled("q", taken.sequence_number)
        start = trio.current_time()
        delivery = await client.receive("q", timeout=100)
        assert delivery is not None
        assert delivery.body == b"kept"
        assert trio.current_time() - start == pytest.approx(60, abs=1)
        with pytest.raises(ValidationError, match="no time zone"):
            await client.schedule("q", Message(b"1"), datetime(2030, 1, 1))  # noqa: DTZ001


# --- failures -----------------------------------------------------------------------------------------


def fails(times: float, error: Exception) -> Any:
    left = times

    async def hook(proceed: Any, *args: Any) -> Any:
        nonlocal left
        await trio.lowlevel.checkpoint()
        if left > 0:
            left -= 1
            raise error
        return await proceed(*args)

    return hook


async def test_transient_errors_are_retried_permanent_ones_are_not(lab: Any) -> None:
    config = ClientConfig(retry=RetryPolicy.fixed(1.0, max_attempts=4))
    async with open_client(lab.provider, config=config) as client:
        lab.provider.on["send"] = fails(3, ConnectionFailed("down"))
        await client.send("q", Message(b"1"))
        assert lab.provider.calls["send"] == 4
        lab.provider.on["send"] = fails(1, PermissionDenied("no"))
        with pytest.raises(PermissionDenied):
            await client.send("q", Message(b"2"))
        assert lab.provider.calls["send"] == 5


async def test_what_still_fails_is_raised(lab: Any) -> None:
    config = ClientConfig(retry=RetryPolicy.fixed(1.0, max_attempts=3))
    async with open_client(lab.provider, config=config) as client:
        lab.provider.on["send"] = fails(100, ConnectionFailed("down"))
        with pytest.raises(ConnectionFailed, match="down"):
            await client.send("q", Message(b"1"))
        assert lab.provider.calls["send"] == 3


async def test_the_broker_is_given_the_time_it_asks_for(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        lab.provider.on["send"] = fails(1, Throttled("slow down", retry_after=42.0))
        start = trio.current_time()
        await client.send("q", Message(b"1"))
        assert trio.current_time() - start >= 42


async def test_a_broker_that_does_not_answer_is_not_waited_for(lab: Any) -> None:
    async def wedge(_proceed: Any, *_args: Any) -> Any:
        await trio.sleep_forever()

    lab.provider.on["send"] = wedge
    config = ClientConfig(operation_timeout=3.0, retry=RetryPolicy.fixed(1.0, max_attempts=2))
    async with open_client(lab.provider, config=config) as client:
        start = trio.current_time()
        with pytest.raises(OperationTimeout, match="did not answer within 3 s"):
            await client.send("q", Message(b"1"))
        assert trio.current_time() - start == pytest.approx(7)
        # The wait of a receive does not count.
        assert await client.receive("q", timeout=10) is None


async def test_while_the_breaker_is_open_calls_fail_fast(lab: Any) -> None:
    config = ClientConfig(
        retry=RetryPolicy.fixed(0.1, max_attempts=2),
        breaker=BreakerConfig(failure_threshold=2, open_duration=60.0),
    )
    async with open_client(lab.provider, config=config) as client:
        lab.provider.on["send"] = fails(2, ConnectionFailed("down"))
        with pytest.raises(ConnectionFailed):
            await client.send("q", Message(b"1"))
        start = trio.current_time()
        with pytest.raises(CircuitOpen, match="probes again in") as caught:
            await client.queue_stats("q")
        assert caught.value.retry_after == pytest.approx(60)
        assert trio.current_time() - start < 0.01
        assert lab.provider.calls["stats"] == 0
        await trio.sleep(60)
        # Half-open: one goes first as a probe, the other is refused for a moment only.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.queue_stats, "q")
            nursery.start_soon(client.queue_stats, "q")
        assert client._calls.breaker.state.value is BreakerState.CLOSED


async def test_what_the_broker_lacks_is_unsupported(lab: Any) -> None:
    async with open_client(lab.provider) as client:
        for feature in ("stats", "open_dead_letters"):
            lab.provider.on[feature] = fails(1, Unsupported(feature, "tampered"))
        with pytest.raises(Unsupported, match="stats"):
            await client.queue_stats("q")
        with pytest.raises(Unsupported, match="open_dead_letters"):
            await client.dead_letters("q")
        lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, accept_by_name=False)
        with pytest.raises(Unsupported, match="accept_by_name: accept the next available one"):
            async with client.accept_session("q", "a"):
                raise AssertionError("not opened")
        lab.provider.capabilities = attrs.evolve(lab.provider.capabilities, sessions=False)
        with pytest.raises(Unsupported, match="sessions"):
            async with client.accept_session("q"):
                raise AssertionError("not opened")


async def test_an_unknown_queue_fails_at_once_and_is_looked_for_again(open_lab: Any) -> None:
    lab = await open_lab(declare=False)
    async with open_client(lab.provider) as client:
        start = trio.current_time()
        for _ in range(3):
            with pytest.raises(QueueNotFound):
                await client.send("q", Message(b"1"))
            with pytest.raises(QueueNotFound):
                await client.receive("q")
        assert trio.current_time() - start < 0.1
        with pytest.raises(ValidationError, match="queue name"):
            await client.send("not a name", Message(b"1"))


async def test_senders_and_receivers_are_opened_once(lab: Any) -> None:
    async def slow(proceed: Any, *args: Any) -> Any:
        await trio.sleep(1)
        return await proceed(*args)

    lab.provider.on = {"open_sender": slow, "open_receiver": slow}
    async with open_client(lab.provider) as client, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client.send, "q", Message(b"1"))
            nursery.start_soon(client.receive, "q")
        nursery.start_soon(client.send_batch, "q", [Message(b"2")])
    assert lab.provider.calls["open_sender"] == 1
    assert lab.provider.calls["open_receiver"] == 1
    assert (lab.provider.calls["close_sender"], lab.provider.calls["close"]) == (1, 1)


@pytest.mark.parametrize("batch", [False, True], ids=["send", "send_batch"])
async def test_every_try_of_one_call_carries_the_same_id(lab: Any, batch: bool) -> None:
    tries: list[list[Any]] = []

    async def lose_reply(proceed: Any, sent: Any) -> Any:
        tries.append([message.message_id for message in sent])
        results = await proceed(sent)
        if len(tries) % 3:
            raise OperationTimeout("no reply")
        return results

    lab.provider.on["send"] = lose_reply
    config = ClientConfig(retry=RetryPolicy.fixed(1.0))
    message = Message(b"1", session_id="a")
    async with open_client(lab.provider, config=config) as client:
        ids = set()
        for _ in range(2):  # the same object sent again is another message
            if batch:
                (result, own) = await client.send_batch(
                    "q", [message, Message(b"2", message_id="own")]
                )
                assert own.message_id == "own"
            else:
                result = await client.send("q", message)
            assert result.message_id is not None
            ids.add(result.message_id)
            assert [each[0] for each in tries[-3:]] == [result.message_id] * 3
        assert len(ids) == 2
        assert message.message_id is None
        received = await client.receive_batch("q", max_messages=1)
        assert received[0].message_id in ids
        await client.release(received[0])


def test_a_message_with_an_id_is_otherwise_the_same() -> None:
    fields = {
        "session_id": "s",
        "headers": {"h": "x"},
        "correlation_id": "c",
        "content_type": "t",
        "time_to_live": 1.0,
        "scheduled_at": datetime.now(UTC),
        "deduplication_id": "d",
    }
    assert {"body", "message_id", *fields} == {field.name for field in attrs.fields(Message)}

    class Special(Message):
        pass

    for kind in (Message, Special):
        message = kind(b"body", **fields)
        copy = with_message_id(message, MessageId("m"))
        assert type(copy) is kind
        assert copy == attrs.evolve(message, message_id="m")
        assert type(copy.message_id) is MessageId


# --- closing ------------------------------------------------------------------------------------------


async def test_nobody_waits_for_a_client_that_is_closed(lab: Any) -> None:
    async def wedge(_proceed: Any, *_args: Any) -> Any:
        await trio.sleep_forever()

    refused = []

    async def send(client: Any) -> None:
        try:
            await client.send("q", Message(b"1"))
        except trio.ClosedResourceError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        async with open_client(lab.provider) as client:
            await client.send("q", Message(b"0"))
            lab.provider.on["send"] = wedge
            nursery.start_soon(send, client)
            await trio.sleep(0.1)
            nursery.start_soon(send, client)
            await trio.sleep(0.1)
    assert len(refused) == 2
    for call in (
        client.send("q", Message(b"1")),
        client.send("other", Message(b"1")),
        client.receive("q"),
        client.queue_stats("q"),
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call


async def test_closing_gives_back_what_was_not_settled(lab: Any) -> None:
    await lab.send("a:1", ":2")
    async with open_client(lab.provider) as client:
        assert len(await client.receive_batch("q", max_messages=2)) == 2
    await lab.assert_all_free()
    assert [count for _, count in await lab.waiting()] == [0, 0]


async def test_closing_ends_also_when_cancelled_or_unanswered(lab: Any) -> None:
    async def wedge(_proceed: Any, *_args: Any) -> Any:
        await trio.sleep_forever()

    lab.provider.on = {"close": wedge, "close_sender": wedge}
    start = trio.current_time()
    with trio.CancelScope() as scope:
        async with open_client(lab.provider, config=ClientConfig(operation_timeout=2.0)) as client:
            await client.send("q", Message(b"1"))
            await client.receive("q")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(4)
