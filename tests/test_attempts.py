"""Tries that the broker did not see still count: in dead letters, after parking, against the limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from queue_runtime import (
    Delivery,
    Message,
    QueueNotFound,
    Retry,
    RetryPolicy,
    SupervisorConfig,
    open_client,
    open_supervisor,
)

QUICK = SupervisorConfig(retry=RetryPolicy.fixed(0.01, max_attempts=3), park_threshold=0.1)


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_a_dead_letter_tells_every_try(scheme: str, tmp_path: Path) -> None:
    async def fail(_delivery: Delivery) -> None:
        raise ValueError("no")

    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/q.db"
    async with open_client(url) as client:
        await client.send("q", Message(b"x", session_id="s"))
        async with open_supervisor(client, "q", fail, config=QUICK) as supervisor:
            await supervisor.wait_empty()
        (letter,) = await (await client.dead_letters("q")).list()
        assert letter.dead_letter is not None
        assert letter.dead_letter.delivery_count == 3


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_tries_are_counted_on_after_the_session_was_parked(
    scheme: str, tmp_path: Path
) -> None:
    counts: list[int] = []

    async def third_time(delivery: Delivery) -> Retry | None:
        counts.append(delivery.delivery_count)
        if len(counts) == 1:
            return Retry(delay=0.01)
        return Retry(delay=0.2) if len(counts) == 2 else None

    url = "memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/q.db"
    async with open_client(url) as client:
        await client.send("q", Message(b"x", session_id="s"))
        async with open_supervisor(client, "q", third_time, config=QUICK) as supervisor:
            await supervisor.wait_empty()
    assert counts == [1, 2, 3]


async def test_no_file_is_made_when_nothing_is_to_be_declared(tmp_path: Path) -> None:
    with pytest.raises(QueueNotFound, match="does not exist and declare is false"):
        async with open_client(f"sqlite:///{tmp_path}/q.db?declare=false"):
            raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []
