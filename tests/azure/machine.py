"""A queue on Service Bus and its model, side by side: one step after the other; see ``reference.py``."""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar, final
from urllib.parse import quote_plus, urlencode

import attrs
import pytest
import trio
from azure.core.credentials import AccessToken
from azure.servicebus._common.constants import TOKEN_TYPE_SASTOKEN

from queue_runtime import (
    Delivery,
    InvalidReceipt,
    LockLost,
    Message,
    QueueError,
    QueueName,
    SessionId,
    SessionLocked,
    Settlement,
    SettlementAction,
)
from queue_runtime.abc import Receiver, ReceiverOptions
from queue_runtime.providers.azure import FACTORY
from queue_runtime.providers.azure.provider import AzureProvider

from .emulator_process import EmulatorProcess
from .linked import SOON, again, eventually
from .reference import Held, Model, Record, Where

__all__ = ["LATER", "LOCK", "SESSIONS", "Machine", "Setup", "Step"]

T = TypeVar("T")

LOCK = 300.0
"""Seconds; no lock ends by itself while a program runs."""

LATER = 10_000.0
"""Seconds until scheduled messages are due, by the broker's clock, which is moved."""

WINDOW = 1e8
"""Seconds for which duplicates are detected: longer than all that time is moved."""

PATIENCE = 5.0
"""Seconds to wait for what has to come; a receiver keeps for a moment what it could get."""

GLANCE = 0.06
"""Seconds to wait for what may come."""

DELAY = 0.1
"""Seconds that an abandoned message waits, if it does."""

QUIET = 5.0
"""Seconds within which nothing is locked any more that nobody has."""

SESSIONS = ("a", "b", "c")
REFUSALS = (InvalidReceipt, LockLost)


@final
@attrs.frozen(kw_only=True)
class Setup:
    """A queue and its receivers.

    Args:
        sessions: Whether it has sessions.
        limit: Its deliveries, after which a message is dead.
        outlasts: A lost link leaves its session locked.
        ahead: The broker fetches ahead.
        most: Messages of a session that the first receiver may have.
        few: Sessions that the second receiver may have.
        accepts: Whether that one takes sessions by itself.
    """

    sessions: bool
    limit: int = 1_000
    outlasts: bool = False
    ahead: bool = False
    most: int = 64
    few: int = 1_000_000
    accepts: bool = True


@final
class Step(NamedTuple):
    """A method of :class:`Machine`, and its arguments."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    __repr__ = __str__


@final
class Signer:
    """Signs for so long that no token ends when the broker's clock, by which it would, is moved."""

    token_type = TOKEN_TYPE_SASTOKEN

    def __init__(self, emulator: EmulatorProcess) -> None:
        parts = dict(part.partition("=")[::2] for part in emulator.connection_string.split(";"))
        self._name, self._key = parts["SharedAccessKeyName"], parts["SharedAccessKey"]

    async def get_token(self, *scopes: str) -> AccessToken:
        expiry = int(time.time() + WINDOW)
        payload = f"{quote_plus(scopes[0])}\n{expiry}".encode()
        digest = b64encode(hmac.new(self._key.encode(), payload, hashlib.sha256).digest())
        words = urlencode({"sr": scopes[0], "sig": digest, "se": expiry, "skn": self._name})
        return AccessToken(f"SharedAccessSignature {words}", expiry)


@final
class Machine:
    """A queue, two receivers in two programs, and the model. Made by :meth:`open`; each method is one step.

    Args:
        emulator: Where the queue is made.
        setup: How.
    """

    def __init__(self, emulator: EmulatorProcess, setup: Setup) -> None:
        self.emulator = emulator
        self.setup = setup
        self.has_sessions = setup.sessions
        self.model = Model(limit=setup.limit)
        self.queue = QueueName(f"machine-{uuid.uuid4().hex[:12]}")
        self.options = [
            ReceiverOptions(max_per_session=setup.most),
            ReceiverOptions(max_sessions=setup.few, auto_accept=setup.accepts),
        ]
        self.latest = 0
        self.history: list[str] = []

    async def run(self, program: Sequence[Step]) -> None:
        """All of a program; its end is tried as well."""
        await self.open()
        try:
            for step in program:
                self.history.append(str(step))
                with trio.fail_after(60):
                    await getattr(self, step.name)(**step.arguments)
                    await self.observe()
            with trio.fail_after(60):
                await self.drain()
        except BaseException as error:
            error.add_note("\n".join([f"It began with {self.setup}; then:", *self.history]))
            raise
        finally:
            with trio.CancelScope(shield=True):
                for provider in self.providers:
                    await provider.aclose()
        await eventually(self.is_closed)

    def is_closed(self) -> bool:
        """No link and no connection is left."""
        now = self.emulator.statistics()
        names = ("open_connections", "open_links")
        return all(now[name] <= self.before[name] for name in names)

    async def cancelled(
        self, moment: int | None, call: Callable[..., Awaitable[T]], *args: Any
    ) -> tuple[bool, T | None]:
        """Make a call; whether it was cancelled, or else what it returned."""
        if moment is None:
            return False, await call(*args)
        with trio.move_on_after(moment / 1_000) as scope:
            answer = await call(*args)
            return False, answer
        assert scope.cancelled_caught
        self.history.append("  cancelled")
        return True, None

    async def observe(self) -> None:
        provider = self.providers[self.latest]
        alive = await again(provider.peek, self.queue, 1_000)
        dead = await again(self.letters[self.latest].peek, 1_000)
        self.model.observe(alive, dead)

    async def quiet(self) -> None:
        """Wait until nothing is locked but what was handed out, and no delay is under way."""

        def is_quiet() -> bool:
            counts = self.emulator.counts(str(self.queue))
            live = [held for held in self.model.helds if held.is_live]
            if self.model.lingering:
                return True
            if self.has_sessions:
                return counts["locked_sessions"] == len(live)
            return counts["locked"] == len(live)

        async def delays_end() -> None:
            while any(record.delayed_until for record in self.model.records):
                await self.observe()
                await trio.sleep(0.01)

        with trio.fail_after(SOON):
            await delays_end()
        try:
            await eventually(is_quiet, within=QUIET)
        except trio.TooSlowError as error:
            error.add_note(
                f"{self.emulator.counts(str(self.queue))} {[h for h in self.model.helds if h.is_live]}"
            )
            raise

    def owes(self, which: int) -> bool:
        options = self.options[which]
        known = self.model.known(self.receivers[which])  # one without a session has one of its own
        return self.model.owes(
            self.receivers[which],
            accepts=options.auto_accept,
            room=options.max_sessions - len(known) if self.has_sessions else 1,
            most=options.max_per_session,
        )

    # --- beginning and end -------------------------------------------------------------------------

    async def open(self) -> None:
        self.emulator.create_queue(
            str(self.queue),
            requires_session=self.has_sessions,
            lock_duration=LOCK,
            max_delivery_count=self.model.limit,
            duplicate_window=WINDOW,
            locks_outlast_links=self.setup.outlasts,
            fetches_ahead=self.setup.ahead,
        )
        self.before = self.emulator.statistics()
        url = self.emulator.url_with(
            sessions=self.has_sessions,
            deduplication=True,
            lock_duration=LOCK,
            operation_timeout=SOON,
            connect_timeout=SOON,
        )
        config = FACTORY.config_from_url(url)
        self.providers = [await AzureProvider.open(config, Signer(self.emulator)) for _ in range(2)]
        self.senders = [await each.open_sender(self.queue) for each in self.providers]
        self.letters = [await each.open_dead_letters(self.queue) for each in self.providers]
        self.receivers = [
            await provider.open_receiver(self.queue, options)
            for provider, options in zip(self.providers, self.options, strict=True)
        ]

    async def drain(self) -> None:
        """Nothing that was sent and acknowledged is lost."""
        await self.release_everything()
        await self.time_passes(2 * LATER)
        await self.observe()
        for _ in range(2 * self.model.limit if self.model.limit < 10 else 2):
            while self.model.find(Where.ALIVE):
                await self.receive(0, 7, None)
                await self.settle_all(0, SettlementAction.COMPLETE)
                await self.observe()
            await self.dead_letters(0, None, True, None)
            await self.observe()
        assert not self.model.find(Where.ALIVE)
        assert not self.model.find(Where.DEAD)
        counts = self.emulator.counts(str(self.queue))
        assert not any(counts[name] for name in ("active", "scheduled", "dead_letters"))
        await self.release_everything()

    # --- sending -----------------------------------------------------------------------------------

    async def send(
        self,
        which: int,
        batch: list[tuple[str | None, str | None, bool]],
        moment: int | None,
        repeats: bool,
    ) -> None:
        self.latest = which
        model = self.model
        due = self.emulator.moved + LATER
        at = datetime.now(UTC) + timedelta(seconds=due)
        records: list[Record] = []
        for number, (session, name, is_later) in enumerate(batch, len(model.records)):
            message = Message(
                b"%d" % number,
                session_id=session if self.has_sessions else None,
                headers={"number": str(number)},
                deduplication_id=name,
                scheduled_at=at if is_later else None,
            )
            records.append(
                Record(
                    number,
                    message,
                    scheduled=is_later,
                    keeps_order=not is_later,
                    due=at.timestamp(),
                )
            )
        messages = [record.message for record in records]
        send = partial(again, self.senders[which].send)
        was_cancelled, results = await self.cancelled(moment, send, messages)
        if was_cancelled and repeats:
            results = await send(messages)
        # At once goes before what is for later.
        for record in sorted(records, key=lambda record: record.scheduled):
            model.sent(record, is_sure=results is not None)
        model.records.sort(key=lambda record: record.number)
        if results is not None:
            assert len(results) == len(messages)
            for record, result in zip(records, results, strict=True):
                assert result.error is None
                if record.scheduled:
                    assert result.sequence_number is not None
                else:
                    assert result.sequence_number is None
        await self.observe()
        for record, result in zip(records, results or [], strict=False):
            if record.scheduled and record.where == Where.ALIVE:
                assert result.sequence_number == record.sequence

    async def cancel_scheduled(self, which: int, numbers: list[int], moment: int | None) -> None:
        self.latest = which
        waiting = {r.sequence: r for r in self.model.find(Where.ALIVE) if r.scheduled}
        wanted = list(dict.fromkeys([*numbers, *list(waiting)[:2]]))
        call = partial(again, self.senders[which].cancel_scheduled)
        was_cancelled, answers = await self.cancelled(moment, call, wanted)
        chosen = [record for number, record in waiting.items() if number in wanted]
        if was_cancelled:
            for record in chosen:
                record.may = {Where.ALIVE, Where.GONE}
        else:
            assert answers == [number in waiting for number in wanted]
            for record in chosen:
                record.may = {Where.GONE}

    # --- receiving ---------------------------------------------------------------------------------

    async def receive(self, which: int, most: int, moment: int | None) -> None:
        self.latest = which
        receiver = self.receivers[which]
        owes = self.owes(which)
        timeout = PATIENCE if owes else GLANCE
        call = partial(again, receiver.receive)
        _, deliveries = await self.cancelled(moment, call, most, timeout)
        if deliveries is None:
            return
        self.history.append(f"  {[int(delivery.body) for delivery in deliveries]}")
        assert len(deliveries) <= most
        assert deliveries or not owes, "nothing came"
        self.model.received(receiver, deliveries)
        options = self.options[which]
        held = [each for each in self.model.known(receiver) if each.session is not None]
        assert all(len(each.flights) <= options.max_per_session for each in held if each.is_live)

    async def accept(self, which: int, name: str | None, moment: int | None) -> None:
        if not self.has_sessions:
            return
        self.latest = which
        model, receiver = self.model, self.receivers[which]
        known = model.known(receiver)
        if name is None:
            if len(known) >= self.options[which].max_sessions:
                return
            owes = bool(model.free_sessions()) and not model.lingering
            timeout = PATIENCE if owes else GLANCE
            was_cancelled, lease = await self.cancelled(
                moment, partial(again, receiver.accept), None, timeout
            )
            assert was_cancelled or lease is not None or not owes, "no session came"
        else:
            holder = model.holder(name)
            must = holder is None and not model.lingering

            was_cancelled, lease = await self.cancelled(
                moment, self._accept_named, which, name, must
            )
            assert was_cancelled or lease is not None or not must, "it stayed locked"
            assert lease is None or holder is None, "two hold one session"
        if lease is not None:
            self.history.append(f"  {lease!r}")
            assert name is None or lease.session_id == name
            held = model.leased(lease, receiver)
            if lease.session_id is None:
                held.is_shaky = True  # what it is for is not known
            elif name is None:
                assert model.of_session(lease.session_id), "a session without messages"

    async def _accept_named(self, which: int, name: str, must: bool) -> Any:
        """Somebody who could get it for a moment may have it until then."""
        deadline = trio.current_time() + PATIENCE
        while True:
            try:
                return await self.receivers[which].accept(SessionId(name), 1.0)
            except SessionLocked:
                if not must or trio.current_time() > deadline:
                    return None
            except QueueError as error:
                if not error.is_transient:
                    raise
            await trio.sleep(0.01)

    # --- settling ----------------------------------------------------------------------------------

    async def settle_all(
        self, which: int, action: SettlementAction, moment: int | None = None
    ) -> None:
        receiver = self.receivers[which]
        chosen = [
            Settlement(delivery, action, reason="Test")
            for delivery, held, _ in self.model.deliveries
            if held.is_live and held.receiver is receiver and delivery.receipt in held.flights
        ]
        if chosen:
            await self._settle(receiver, chosen, moment)

    async def settle(
        self,
        picks: Sequence[tuple[int, SettlementAction, bool]],
        which: int | None,
        moment: int | None,
    ) -> None:
        """Anything that was ever delivered, also twice, or where it did not come from."""
        recent = self.model.deliveries[:-13:-1]
        if not recent:
            return
        first = recent[picks[0][0] % len(recent)][1].receiver
        chosen = [
            Settlement(
                recent[number % len(recent)][0],
                action,
                delay=DELAY if late and action is SettlementAction.ABANDON else 0.0,
                reason="Test",
            )
            for number, action, late in picks
        ]
        self.history.append(f"  {_shown(chosen)}")
        await self._settle(first if which is None else self.receivers[which], chosen, moment)

    async def _settle(
        self, receiver: Receiver, chosen: Sequence[Settlement], moment: int | None
    ) -> None:
        if receiver not in self.receivers:
            with pytest.raises(trio.ClosedResourceError):
                await receiver.settle(chosen)
            return
        live = {each.delivery for each in chosen if self._held(each.delivery).is_live}
        self.latest = self.receivers.index(receiver)
        was_cancelled, answers = await self.cancelled(
            moment, partial(again, receiver.settle), chosen
        )
        if was_cancelled:
            first = {each.delivery.receipt: each for each in reversed(chosen)}
            chosen = list(first.values())[::-1]
            for each in chosen:
                held = self._held(each.delivery)
                held.is_shaky |= each.delivery.receipt in held.flights
            answers = await again(receiver.settle, chosen)
        assert answers is not None
        self.history.append(f"  {[type(answer).__name__ for answer in answers]}")
        for each, answer in zip(chosen, answers, strict=True):
            self._judge(receiver, each, answer, each.delivery in live, was_cancelled)
        if was_cancelled and any(each.delay for each in chosen):
            await trio.sleep(3 * DELAY)  # nobody knows whether it began

    def _held(self, delivery: Delivery) -> Held:
        return next(held for held in self.model.helds if held.lease is delivery.lease)

    def _judge(
        self,
        receiver: Receiver,
        each: Settlement,
        answer: QueueError | None,
        was_live: bool,
        is_doubtful: bool,
    ) -> None:
        delivery = each.delivery
        held = self._held(delivery)
        is_flying = delivery.receipt in held.flights
        if held.receiver is not receiver:
            assert isinstance(answer, InvalidReceipt), "settled where it did not come from"
        elif not is_flying or not was_live:
            assert isinstance(answer, REFUSALS), f"settled without a lock: {answer!r}"
            if is_flying and isinstance(answer, LockLost) and not held.is_given_back:
                assert held.lease.lost is not None, "nobody was told"
        elif is_doubtful:
            assert answer is None or isinstance(answer, REFUSALS), repr(answer)
            self.model.doubtful(delivery, each.action)
        else:
            assert answer is None or (held.is_shaky and isinstance(answer, REFUSALS)), repr(answer)
            if answer is None:
                self.model.applied(delivery, each.action, each.delay)
            else:
                self.model.doubtful(delivery, each.action)

    # --- leases ------------------------------------------------------------------------------------

    def _leases(self, numbers: list[int]) -> list[Held]:
        recent = self.model.helds[:-7:-1]
        return list(dict.fromkeys(recent[number % len(recent)] for number in numbers if recent))

    async def renew(self, numbers: list[int], moment: int | None) -> None:
        chosen = self._leases(numbers)
        if not chosen or chosen[0].receiver not in self.receivers:
            return
        receiver = chosen[0].receiver
        chosen = [held for held in chosen if held.receiver is receiver]
        self.latest = self.receivers.index(receiver)
        before = [held.lease.deadline for held in chosen]
        was_cancelled, answers = await self.cancelled(
            moment, partial(again, receiver.renew), [held.lease for held in chosen]
        )
        for number, held in enumerate(chosen):
            if was_cancelled:
                assert held.lease.deadline == before[number]
                continue
            assert answers is not None
            answer = answers[number]
            if held.is_live:
                assert answer is None or (held.is_shaky and isinstance(answer, LockLost)), answer
                assert held.lease.deadline >= before[number]
            else:
                assert isinstance(answer, LockLost), repr(answer)
                assert held.is_given_back or held.lease.lost is not None, "nobody was told"

    async def release(self, numbers: list[int], moment: int | None) -> None:
        await self._release(self._leases(numbers), moment)

    async def _release(self, chosen: Sequence[Held], moment: int | None) -> None:
        if not chosen or chosen[0].receiver not in self.receivers:
            return
        receiver = chosen[0].receiver
        chosen = [held for held in chosen if held.receiver is receiver]
        leases = [held.lease for held in chosen]
        self.latest = self.receivers.index(receiver)
        call = partial(again, receiver.release)
        was_cancelled, _ = await self.cancelled(moment, call, leases)
        if was_cancelled:
            await call(leases)
        for held in chosen:
            if held.is_known:
                held.end()

    async def release_everything(self) -> None:
        """No lock is left."""
        for receiver in self.receivers:
            known = self.model.known(receiver)
            if known:
                await self._release(known, None)
        if self.model.lingering:
            return

        def nothing_is_locked() -> bool:
            counts = self.emulator.counts(str(self.queue))
            return counts["locked"] == counts["locked_sessions"] == 0

        await eventually(nothing_is_locked, within=QUIET)

    async def session_state(
        self, numbers: list[int], state: bytes | None, moment: int | None
    ) -> None:
        for held in self._leases(numbers):
            await self._state(held, state, moment)

    async def _state(self, held: Held, state: bytes | None, moment: int | None) -> None:
        if held.receiver not in self.receivers or held.session is None:
            return
        self.latest = self.receivers.index(held.receiver)
        states = self.model.states
        try:
            before = await again(held.receiver.get_state, held.lease)
            was_cancelled, _ = await self.cancelled(
                moment, partial(again, held.receiver.set_state), held.lease, state
            )
            if was_cancelled:
                after = await again(held.receiver.get_state, held.lease)
                assert after in (states.get(held.session), state)
                state = after
        except LockLost:
            assert not held.is_live or held.is_shaky
            assert held.lease.lost is not None or held.is_given_back
            return
        assert held.is_live
        assert before == states.get(held.session)
        states.pop(held.session, None)
        if state is not None:
            states[held.session] = state

    async def reopen(self, which: int) -> None:
        self.latest = which
        model, receiver = self.model, self.receivers[which]
        for record in model.records:
            if record.delayed_until:  # it fails at once
                record.growth = (0, 1)
                record.delayed_until = 0.0
        await receiver.aclose()
        for held in model.known(receiver):
            held.end()
        self.receivers[which] = await self.providers[which].open_receiver(
            self.queue, self.options[which]
        )

    # --- operating ---------------------------------------------------------------------------------

    async def peek(self, after: int, most: int, which: int) -> None:
        def numbers(where: str) -> list[int]:
            sequences = sorted(record.sequence for record in self.model.find(where))
            return [number for number in sequences if number > after][:most]

        found = await again(self.providers[which].peek, self.queue, most, after)
        assert [each.sequence_number for each in found] == numbers(Where.ALIVE)
        found = await again(self.letters[which].peek, most, after)
        assert [each.sequence_number for each in found] == numbers(Where.DEAD)

    async def stats(self, which: int) -> None:
        await self.quiet()
        await self.observe()
        stats = await again(self.providers[which].stats, self.queue)
        alive = self.model.find(Where.ALIVE)
        scheduled = sum(record.scheduled for record in alive)
        dead = len(self.model.find(Where.DEAD))
        assert (stats.depth, stats.scheduled, stats.dead_lettered) == (
            len(alive) - scheduled,
            scheduled,
            dead,
        )
        counts = self.emulator.counts(str(self.queue))
        assert counts["active"] == len(alive) - scheduled
        assert counts["deferred"] == 0

    async def dead_letters(
        self, which: int, numbers: set[int] | None, redrives: bool, moment: int | None
    ) -> None:
        self.latest = which
        dead = self.model.find(Where.DEAD)
        if numbers is not None:
            numbers = numbers | {record.sequence for record in dead[:1]}
        chosen = [r for r in dead if numbers is None or r.sequence in numbers]
        letters = self.letters[which]
        call = letters.redrive if redrives else letters.purge
        was_cancelled, count = await self.cancelled(moment, partial(again, call), numbers)
        if was_cancelled:
            assert await again(call, numbers) <= len(chosen)
        else:
            assert count == len(chosen)
        for record in chosen:
            record.may = {Where.ALIVE if redrives else Where.GONE}
            record.restarts = redrives
            record.keeps_order = False
        await self.observe()
        if redrives:
            chosen.sort(key=lambda record: record.sequence)
            for session in SESSIONS:
                firsts = [r.first_sequence for r in chosen if r.session == session]
                assert firsts == sorted(firsts), "not redriven in order"

    async def purge(self, which: int, moment: int | None) -> None:
        await self.quiet()
        await self.observe()
        self.latest = which
        model = self.model
        was_cancelled, count = await self.cancelled(
            moment, partial(again, self.providers[which].purge), self.queue
        )
        waiting = [record for record in model.find(Where.ALIVE) if not record.is_flying]
        # A message without a session that was accepted and not received: nobody knows which one.
        unknown = any(
            held.is_live and held.session is None and not held.flights for held in model.helds
        )
        for record in waiting:
            if record.session is not None:
                is_held = model.holder(record.session) is not None
            else:
                is_held = self.has_sessions and unknown
            if was_cancelled or (model.lingering and not record.scheduled):
                record.may = {Where.ALIVE, Where.GONE}
            elif is_held and not record.scheduled:
                record.may = {Where.ALIVE, Where.GONE} if record.session is None else {Where.ALIVE}
            else:
                record.may = {Where.GONE}
        await self.observe()
        if not was_cancelled:
            assert count == sum(record.where == Where.GONE for record in waiting)

    # --- trouble -----------------------------------------------------------------------------------

    async def time_passes(self, seconds: float) -> None:
        await self.quiet()
        await self.observe()
        self.emulator.move_time(seconds)
        self.model.time_passed(datetime.now(UTC).timestamp() + self.emulator.moved)
        await self._are_told()

    async def _are_told(self) -> None:
        """Who holds a session hears that it does not any more."""
        told = [
            h for h in self.model.known() if self.has_sessions and not h.is_stolen and h.is_doomed
        ]
        await eventually(lambda: all(held.lease.lost is not None for held in told))

    async def steal(self, name: str) -> None:
        if not self.has_sessions:
            return
        await self.quiet()
        await self.observe()
        self.emulator.fault("steal_session", queue=str(self.queue), session_id=name)
        held = self.model.holder(name)
        if held is not None:
            held.is_doomed = held.is_stolen = True
        for record in self.model.of_session(name):
            record.growth = (0, 1)

    async def cut(self, name: str | None, drops: bool) -> None:
        """Links are detached, all or those of a session, or connections reset."""
        await self.quiet()
        await self.observe()
        queue = str(self.queue)
        if drops:
            name = None
            self.emulator.fault("drop", queue=queue)
        elif name is None or not self.has_sessions:
            name = None
            self.emulator.fault("detach", queue=queue)
        else:
            self.emulator.fault("detach", queue=queue, session_id=name)
        if self.has_sessions:
            for held in self.model.known():
                held.is_doomed |= name is None or held.session == name
            self.model.lingering |= self.setup.outlasts
        else:
            for held in self.model.known():
                held.is_cut = True
        await self._are_told()


def _shown(chosen: Sequence[Settlement]) -> str:
    return ", ".join(
        f"{each.delivery.body.decode()}:{each.action.value}" + (":late" if each.delay else "")
        for each in chosen
    )
