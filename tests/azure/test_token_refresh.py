"""Tokens that end: they are renewed on every open connection before that, or the loss is told and gets over.

The emulator ends links with their tokens, as Service Bus does. Lives are of some seconds, on real clocks; the tests
that live through them do so side by side, and who counts at the emulator has one of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote_plus, urlencode
from uuid import uuid4

import pytest
import trio
from azure.core.credentials import AccessToken
from azure.core.exceptions import ServiceRequestError
from azure.identity import CredentialUnavailableError

from queue_runtime.abc import Lease, Receiver, ReceiverOptions
from queue_runtime.errors import AuthenticationFailed, ConnectionFailed, LockLost, QueueError
from queue_runtime.messages import (
    Delivery,
    Message,
    QueueName,
    SessionId,
    Settlement,
    SettlementAction,
)
from queue_runtime.providers.azure import FACTORY, AzureConfig, rights
from queue_runtime.providers.azure.credentials import Identity, SharedKey
from queue_runtime.providers.azure.provider import AzureProvider
from queue_runtime.providers.azure.rights import Rights
from queue_runtime.providers.azure.wire import Credential
from queue_runtime.secret import Secret

from ..side_by_side import side_by_side
from .emulator_process import EmulatorProcess, emulator_process
from .linked import PATIENCE, SOON

SESSION = SessionId("served")
MARGIN = 0.4
"""Part of their lives that tokens are renewed before their end: a tenth, as it is, would be a second or less here."""


@pytest.fixture(scope="module", autouse=True)
def early() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rights, "_MARGIN", MARGIN)
        yield


@pytest.fixture(scope="module")
def own() -> Iterator[dict[str, EmulatorProcess]]:
    """Of who counts what is asked there, or sets the clock; all there before anybody's time runs."""
    with ExitStack() as stack:
        names = ("key", "identity", "ahead", "crowd")
        yield {name: stack.enter_context(emulator_process()) for name in names}


class Tokens:
    """Gives tokens of the emulator's as a credential of azure-identity does; out of order when told to be."""

    def __init__(self, emulator: EmulatorProcess, lifetime: float) -> None:
        self.lifetime = lifetime
        self.asked: list[float] = []
        self.given: list[float] = []
        self.is_down = False
        self.is_silent = False
        self._emulator = emulator

    async def get_token(self, *scopes: str) -> AccessToken:
        assert scopes == ("https://servicebus.azure.net//.default",)
        self.asked.append(time.time())
        if self.is_silent:
            await asyncio.get_running_loop().create_future()
        if self.is_down:
            raise ServiceRequestError("Cannot connect to host login.microsoftonline.com:443")
        token = self._emulator.issue_token(self.lifetime)
        self.given.append(self.asked[-1])
        return AccessToken(token, int(time.time() + self.lifetime))


def key_of(emulator: EmulatorProcess, life: float) -> SharedKey:
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    return SharedKey(parts["SharedAccessKeyName"], parts["SharedAccessKey"], life)


def new_queue(emulator: EmulatorProcess, *, sessions: bool = True) -> QueueName:
    name = f"tokens-{uuid4().hex[:12]}"
    emulator.create_queue(name, requires_session=sessions)
    return QueueName(name)


@asynccontextmanager
async def connected(
    emulator: EmulatorProcess, credential: Credential, **options: Any
) -> AsyncIterator[AzureProvider]:
    config = AzureConfig(
        connection_string=Secret(emulator.connection_string), **{"accept_wait": 1.0, **options}
    )
    provider = await AzureProvider.open(config, credential)
    try:
        yield provider
    finally:
        await provider.aclose()


async def take(receiver: Receiver, within: float = SOON) -> Delivery:
    with trio.fail_after(within):
        while True:
            for delivery in await receiver.receive(1, within):
                return delivery


async def complete(receiver: Receiver, delivery: Delivery) -> None:
    [answer] = await receiver.settle([Settlement(delivery, SettlementAction.COMPLETE)])
    assert answer is None


async def wait_for(condition: Callable[[], bool]) -> None:
    """The condition is about another thread's work, which sets no event."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.02)


async def lost(lease: Lease) -> None:
    event = trio.Event()
    lease.on_lost(lambda _: event.set())
    await event.wait()


def put_tokens(emulator: EmulatorProcess) -> int:
    return int(emulator.statistics()["requests"].get("put-token", 0))


# --- renewing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["key", "identity"])
@side_by_side
async def test_work_goes_on_over_several_lifetimes(
    own: dict[str, EmulatorProcess], kind: str
) -> None:
    """Senders, receivers with sessions and without, and requests beside both: no link or lock is lost."""
    emulator = own[kind]
    with_sessions, without = new_queue(emulator), new_queue(emulator, sessions=False)
    life = 10.0
    credential = key_of(emulator, life) if kind == "key" else Tokens(emulator, life)
    before, links = put_tokens(emulator), 0
    ends = time.monotonic() + 2.2 * life
    rounds = 0
    async with (
        connected(emulator, credential, max_sessions=1) as ordered,
        connected(emulator, credential, sessions=False) as loose,
    ):
        out, to_loose = await ordered.open_sender(with_sessions), await loose.open_sender(without)
        receiver = await ordered.open_receiver(with_sessions, ReceiverOptions())
        plain = await loose.open_receiver(without, ReceiverOptions())
        await out.send([Message(b"first", session_id=SESSION)])
        first = await take(receiver)
        while time.monotonic() < ends:
            rounds += 1
            body = b"%d" % rounds
            await out.send([Message(body, session_id=SESSION)])
            await to_loose.send([Message(body)])
            one, other = await take(receiver), await take(plain)
            assert (one.body, one.delivery_count, one.lease) == (body, 1, first.lease)
            assert (other.body, other.delivery_count) == (body, 1)
            assert await receiver.renew([one.lease]) == [None]
            assert await plain.renew([other.lease]) == [None]
            await receiver.set_state(one.lease, body)
            assert await receiver.get_state(one.lease) == body
            await complete(receiver, one)
            await complete(plain, other)
            assert await ordered.peek(with_sessions, 5)
            links = links or emulator.statistics()["links"]  # everything is open by now
            await trio.sleep(0.1)
        assert first.lease.lost is None
        assert emulator.statistics()["links"] == links
        await complete(receiver, first)
        connections = ordered.connections_opened + loose.connections_opened
    assert rounds > 5
    assert put_tokens(emulator) - before >= 3 * connections


@side_by_side
async def test_an_outage_shorter_than_the_margin_is_not_noticed(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    tokens = Tokens(emulator, 10.0)
    async with connected(emulator, tokens) as provider:
        sender = await provider.open_sender(queue)
        before = len(tokens.asked)
        tokens.is_down = True
        with trio.fail_after(SOON):
            # Asked in vain, and again.
            await wait_for(lambda: len(tokens.asked) >= before + 3)
        tokens.is_down = False
        end = tokens.asked[0] + tokens.lifetime
        with trio.fail_after(SOON):
            while time.time() < end + 0.5:
                await sender.send([Message(b"x", session_id=SESSION)])
                await trio.sleep(0.1)
        assert emulator.counts(str(queue))["active"] > 1
        assert provider.connections_opened == 1


@pytest.mark.parametrize("how", ["is_down", "is_silent"])
@side_by_side
async def test_an_outage_that_lasts_is_told_and_gets_over(
    emulator: EmulatorProcess, how: str
) -> None:
    queue = new_queue(emulator)
    tokens = Tokens(emulator, 6.0)
    async with connected(emulator, tokens, operation_timeout=PATIENCE) as provider:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SESSION), Message(b"2", session_id=SESSION)])
        held = await take(receiver)
        setattr(tokens, how, True)
        granted = tokens.given[-1]
        with trio.fail_after(SOON):
            await lost(held.lease)
        assert (
            time.time() - granted >= tokens.lifetime - 1.0
        )  # not before it ended: whole seconds count
        assert isinstance(held.lease.lost, LockLost)
        cause = held.lease.lost.__cause__
        assert isinstance(cause, ConnectionFailed)
        assert "the token was not renewed in time" in str(cause)
        for _ in range(2):  # for as long as it lasts
            with pytest.raises(QueueError) as caught:
                await receiver.receive(1, SOON)
            assert caught.value.is_transient, caught.value
        with pytest.raises(QueueError) as caught:
            await sender.send([Message(b"3", session_id=SESSION)])
        assert caught.value.is_transient, caught.value

        setattr(tokens, how, False)
        tokens.lifetime = 60.0
        again = await take(receiver)
        assert (again.body, again.session_id) == (b"1", SESSION)
        await complete(receiver, again)
        await sender.send([Message(b"3", session_id=SESSION)])
        for body in (b"2", b"3"):
            delivery = await take(receiver)
            assert delivery.body == body
            await complete(receiver, delivery)


@side_by_side
async def test_a_clock_that_is_behind(own: dict[str, EmulatorProcess]) -> None:
    """A token that has ended by the broker's clock and not by ours is replaced when it is refused."""
    ahead = own["ahead"]
    queue = new_queue(ahead)
    ahead.fault("move_time", seconds=14.0)
    async with connected(ahead, key_of(ahead, 20.0)) as provider:
        sender = await provider.open_sender(queue)
        shown = put_tokens(ahead)
        began = time.monotonic()
        with trio.fail_after(SOON):
            while put_tokens(ahead) == shown:  # until the link has ended, at the sixth second
                with suppress(ConnectionFailed):  # it may meet the end
                    await sender.send([Message(b"x", session_id=SESSION)])
                await trio.sleep(0.1)
        assert time.monotonic() - began < 20.0 * (1 - MARGIN), "by our clock it was due"
        await sender.send([Message(b"x", session_id=SESSION)])
        assert put_tokens(ahead) == shown + 1


@side_by_side
async def test_a_clock_that_is_behind_and_many_who_meet_it_at_once(
    own: dict[str, EmulatorProcess],
) -> None:
    """All acceptors are refused over the same token: none of them takes that for the last word."""
    ahead = own["crowd"]
    queue = new_queue(ahead)
    ahead.fault("move_time", seconds=3.0)
    async with connected(ahead, key_of(ahead, 9.0)) as provider:
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        began = time.monotonic()
        with trio.fail_after(12.0):
            while time.monotonic() < began + 7.0:  # the links end at the sixth second
                with suppress(ConnectionFailed):
                    assert await receiver.receive(1, 0.5) == []


# --- signatures made beforehand ----------------------------------------------------------------------------


def signed(emulator: EmulatorProcess, queue: QueueName, expiry: int) -> tuple[AzureConfig, str]:
    """A configuration with a signature, and what of it must not be seen."""
    parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
    audience = f"sb://{emulator.endpoint.removeprefix('sb://')}/{queue}"
    payload = f"{quote_plus(audience)}\n{expiry}".encode()
    digest = hmac.new(parts["SharedAccessKey"].encode(), payload, hashlib.sha256).digest()
    fields = {"sr": audience, "sig": b64encode(digest), "se": expiry}
    words = urlencode(fields | {"skn": parts["SharedAccessKeyName"]})
    text = (
        f"Endpoint={emulator.endpoint};UseDevelopmentEmulator=true;"
        f"SharedAccessSignature=SharedAccessSignature {words}"
    )
    return AzureConfig(connection_string=Secret(text)), b64encode(digest).decode().rstrip("=")


async def test_a_signature_that_has_expired(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    config, secret = signed(emulator, queue, int(time.time()) - 60)
    provider = await FACTORY.open(config)
    try:
        for open_it in (
            lambda: provider.open_sender(queue),
            lambda: provider.open_receiver(queue, ReceiverOptions()),
            lambda: provider.peek(queue, 1),
        ):
            with pytest.raises(AuthenticationFailed, match="ExpiredToken") as caught:
                await open_it()
            assert "renew the token: a shared access signature ends by itself" in str(caught.value)
            assert secret not in str(caught.value)
            assert caught.value.__cause__ is None or secret not in str(caught.value.__cause__)
    finally:
        await provider.aclose()


@side_by_side
async def test_a_signature_that_expires_in_use(emulator: EmulatorProcess) -> None:
    queue = new_queue(emulator)
    config, _ = signed(emulator, queue, int(time.time()) + 10)
    provider = await FACTORY.open(config)
    try:
        sender = await provider.open_sender(queue)
        receiver = await provider.open_receiver(queue, ReceiverOptions())
        await sender.send([Message(b"1", session_id=SESSION)])
        held = await take(receiver)
        with trio.fail_after(SOON):
            await lost(held.lease)
        with pytest.raises(AuthenticationFailed, match="renew the token"):
            await sender.send([Message(b"2", session_id=SESSION)])
        with pytest.raises(AuthenticationFailed, match="renew the token"):
            await receiver.receive(1, SOON)
    finally:
        await provider.aclose()


# --- the keeper alone --------------------------------------------------------------------------------------


def test_the_same_token_is_not_shown_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity hands out what it has until it gets another."""
    monkeypatch.setattr(rights, "_MARGIN", 0.9)

    async def main() -> None:
        ends = time.time() + 5.0
        shown: list[str] = []
        asked = 0
        renewed = asyncio.Event()

        async def get(_: str) -> tuple[str, float]:
            nonlocal asked
            asked += 1
            return ("old", ends) if asked < 3 else ("new", ends + 60.0)

        async def put(entity: str, token: str, expires: float) -> None:
            shown.append(token)
            if token == "new":
                renewed.set()

        keeper = Rights(get, put)
        await asyncio.gather(*(keeper.authorize("q") for _ in range(5)))
        assert shown == ["old"]
        async with asyncio.timeout(SOON):
            await renewed.wait()
        assert time.time() < ends
        await keeper.authorize("q")
        assert (shown, asked) == (["old", "new"], 3)
        await keeper.aclose()

    asyncio.run(main())


def test_a_fresh_token_is_not_doubted() -> None:
    async def main() -> None:
        async def get(_: str) -> tuple[str, float]:
            return "a", time.time() + 60.0

        async def put(entity: str, token: str, expires: float) -> None:
            pass

        keeper = Rights(get, put)
        await keeper.authorize("q")
        assert not keeper.doubt("q")
        assert not keeper.doubt("unknown")
        await keeper.aclose()

    asyncio.run(main())


def test_all_who_were_refused_over_one_token_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has another shown; the others come while that is under way, or after it."""

    async def main() -> None:
        now = time.time()
        shown = 0
        may_show = asyncio.Event()

        async def get(_: str) -> tuple[str, float]:
            return f"token {shown}", now + 600.0

        async def put(entity: str, token: str, expires: float) -> None:
            nonlocal shown
            await may_show.wait()
            shown += 1

        rights = Rights(get, put)
        may_show.set()
        await rights.authorize("q")
        used = rights.shown("q")
        monkeypatch.setattr(time, "time", lambda: now + 60.0)
        assert rights.doubt("q", used)
        may_show.clear()
        again = asyncio.create_task(rights.authorize("q"))
        await asyncio.sleep(0)
        assert rights.doubt("q", used)
        may_show.set()
        await again
        assert rights.doubt("q", used)
        await rights.authorize("q")
        assert shown == 2
        assert not rights.doubt("q", rights.shown("q"))
        await rights.aclose()

    asyncio.run(main())


def test_nobody_to_ask_is_an_outage_for_who_was_given_tokens_before() -> None:
    class Machine:
        """What azure-identity's credential says of an endpoint that is not there."""

        is_there = False

        async def get_token(self, *scopes: str, **_: object) -> AccessToken:
            if not self.is_there:
                raise CredentialUnavailableError("no response from the IMDS endpoint")
            return AccessToken("a", 0)

    async def main() -> None:
        machine = Machine()
        identity = Identity(machine)
        with pytest.raises(CredentialUnavailableError):
            await identity.get_token("scope")
        machine.is_there = True
        assert (await identity.get_token("scope")).token == "a"
        machine.is_there = False
        with pytest.raises(ConnectionFailed, match="cannot be reached"):
            await identity.get_token("scope")

    asyncio.run(main())
