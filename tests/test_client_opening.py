"""The client: what it is opened from, how errors come out of it, who hears of its calls (C1, S1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from queue_runtime.client import open_client, open_supervisor
from queue_runtime.config import ClientConfig
from queue_runtime.errors import ConfigurationError, ConnectionFailed, PermissionDenied
from queue_runtime.messages import Message, SessionId
from queue_runtime.policies.backoff import RetryPolicy


async def test_open_client_takes_a_url_a_configuration_or_a_provider(lab: Any) -> None:
    from queue_runtime.providers.memory import MemoryConfig

    async with open_client("memory://x") as one, open_client(MemoryConfig(name="x")) as two:
        await one.send("q", Message(b"1"))
        assert await two.receive("q", timeout=0) is not None
    async with open_client(lab.provider) as client:
        await client.send("q", Message(b"1"))
    await lab.send("a:2")  # the provider stays open
    for source in ("nonsense", "nonsense://", 42):
        with pytest.raises(ConfigurationError):
            async with open_client(source):
                raise AssertionError("not opened")


async def test_an_error_in_the_block_comes_out_as_itself(lab: Any) -> None:
    error = ExceptionGroup("mine", [ValueError("a"), KeyError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_client(lab.provider):
            raise error
    assert caught.value is error
    with pytest.raises(KeyboardInterrupt):
        async with open_client(lab.provider):
            raise KeyboardInterrupt


async def refuse(_proceed: Any, *_args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    raise PermissionDenied("not to be closed")


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=repr)
async def test_an_error_of_closing_does_not_hide_that_of_the_block(
    lab: Any, error: BaseException
) -> None:
    lab.provider.on = {"close": refuse, "close_sender": refuse}
    with pytest.raises(type(error)) as caught:
        async with open_client(lab.provider) as client:
            await client.send("q", Message(b"1"))
            try:
                raise LookupError("before")
            except LookupError:
                raise error  # noqa: B904 - its context is looked at
    assert caught.value is error
    assert caught.value.__notes__ == [
        "closing failed too: PermissionDenied('not to be closed')",
    ]
    assert isinstance(error.__context__, LookupError)


async def test_an_error_of_closing_comes_out_when_there_is_no_other(lab: Any) -> None:
    lab.provider.on = {"close_sender": refuse}
    with pytest.raises(PermissionDenied, match="not to be closed"):
        async with open_client(lab.provider) as client:
            await client.send("q", Message(b"1"))
            await client.receive("q")
    assert lab.provider.calls["close"] == 1  # and what is left is closed all the same


async def test_an_error_of_closing_a_session_does_not_hide_that_of_the_block(lab: Any) -> None:
    lab.provider.on = {"close": refuse, "settle": refuse}
    await lab.send("a:1", ":2", ":3")
    async with open_client(lab.provider) as client:
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.accept_session("q", "a"):
                raise ValueError("mine")
        assert len(caught.value.__notes__) == 1
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.stream("q") as deliveries:
                await anext(deliveries)
                raise ValueError("mine")
        assert len(caught.value.__notes__) == 1
        lab.provider.on = {}


async def test_an_error_of_the_intake_does_not_hide_that_of_the_block(lab: Any) -> None:
    lab.provider.on = {"receive": refuse}
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_supervisor(lab.provider, "q", lab.handler()):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("mine")
    assert caught.value.__notes__ == [
        "closing failed too: PermissionDenied('not to be closed')",
    ]


async def test_instruments_hear_of_every_call(lab: Any) -> None:
    from queue_runtime.instrumentation import MessagesReceived, MessagesSent, MessagesSettled

    events: list[Any] = []
    async with open_client(lab.provider, instruments=[events.append]) as client:
        await client.send("q", Message(b"1"))
        delivery = await client.receive("q")
        assert delivery is not None
        await client.complete(delivery)
    kinds = [type(event) for event in events]
    assert [kinds.count(kind) for kind in (MessagesSent, MessagesReceived, MessagesSettled)] == [
        1,
        1,
        1,
    ]


async def test_receiving_is_retried(lab: Any) -> None:
    failures = 2

    async def fail(proceed: Any, *args: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionFailed("down")
        return await proceed(*args)

    await lab.send("a:1")
    lab.provider.on["receive"] = fail
    config = ClientConfig(retry=RetryPolicy.fixed(1.0))
    async with open_client(lab.provider, config=config) as client:
        start = trio.current_time()
        delivery = await client.receive("q")
        assert delivery is not None
        assert trio.current_time() - start == pytest.approx(2.0)
        assert delivery.session_id == SessionId("a")
        await client.complete(delivery)
