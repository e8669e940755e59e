"""The client: what it is opened from, how errors come out of it, who hears of its calls (C1, S1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from queue_runtime.client import open_client
from queue_runtime.config import ClientConfig
from queue_runtime.errors import ConfigurationError, ConnectionFailed
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
