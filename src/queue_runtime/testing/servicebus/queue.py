"""One queue: what happens to its messages and sessions, without I/O. Every public call first runs what is due.

How costs stay flat: ready messages of a lane are a heap of sequence numbers; receivers that could have a message
stand in ``_hungry``; each time that matters is a timer. Nothing walks the queue but :meth:`Queue.peek`, from where
it is asked to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final, final
from uuid import UUID

from ...errors import ValidationError
from .entities import (
    ACTIVE,
    DEFERRED,
    SCHEDULED,
    Consumer,
    Content,
    Lane,
    Outcome,
    QueueCounts,
    QueueSettings,
    Stored,
)
from .locks import Locks
from .refusals import (
    cannot_dead_letter,
    message_not_found,
    message_too_large,
    queue_full,
    session_lock_lost,
    session_missing,
)
from .sessions import Sessions
from .store import SeenIds, Store
from .timers import Timers

__all__ = ["Queue"]

_EXPIRED: Final = ("TTLExpiredException", "The message expired and was dead lettered.")


@final
class Queue:
    """A queue, or with ``dead_letters_of`` the dead-letter sub-queue of one.

    Args:
        name: As clients write it.
        settings: Its rules. A sub-queue has neither sessions nor expiry nor a delivery limit, but the locks
            of its queue.
        timers: The time, shared by the whole namespace.
    """

    def __init__(
        self,
        name: str,
        settings: QueueSettings,
        timers: Timers,
        *,
        dead_letters_of: str | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self._timers = timers
        self._source = dead_letters_of
        self._sessions_required = settings.requires_session and dead_letters_of is None
        self.dead_letters = (
            Queue(f"{name}/$DeadLetterQueue", settings, timers, dead_letters_of=name)
            if dead_letters_of is None
            else None
        )
        self._store = Store()
        self._seen = SeenIds(settings.duplicate_window)
        self._loose = Lane(None)
        self._locks = Locks(
            timers,
            settings.lock_duration,
            of_sessions=self._sessions_required,
            give_back=self._give_back,
        )
        self._sessions = Sessions(
            self._store,
            timers,
            settings.lock_duration,
            feed=self._feed,
            give_back=self._give_back_all,
        )
        self._scheduled = 0
        self._deferred = 0
        self._hungry: OrderedDict[Consumer, None] = OrderedDict()

    @property
    def requires_session(self) -> bool:
        """Whether receivers lock sessions here."""
        return self._sessions_required

    def change(self, settings: QueueSettings) -> None:
        """Have other settings from now on; what is locked, waits or was seen keeps its time.

        Raises:
            ValidationError: A queue has sessions, and detects duplicates, or not, for life.
        """
        for name, has, would in (
            ("requires_session", self.settings.requires_session, settings.requires_session),
            ("duplicate_window", self.settings.duplicate_window, settings.duplicate_window),
        ):
            if bool(has) != bool(would):
                raise ValidationError(
                    f"{name} is {has!r} and cannot become {would!r}: create another queue"
                )
        self.settings = settings
        self._seen.window = settings.duplicate_window
        self._locks.duration = self._sessions.lock_duration = settings.lock_duration
        if self.dead_letters is not None:
            self.dead_letters.change(settings)

    def counts(self) -> QueueCounts:
        """What is in the queue now."""
        self._timers.run()
        dead = self.dead_letters
        return QueueCounts(
            active=len(self._store) - self._scheduled - self._deferred,
            locked=len(self._locks),
            deferred=self._deferred,
            scheduled=self._scheduled,
            dead_letters=0 if dead is None else len(dead._store),
            sessions=len(self._sessions),
            locked_sessions=self._sessions.locked,
            size_bytes=self._store.size_bytes,
        )

    # Sending

    def send(self, contents: Sequence[Content]) -> list[int]:
        """Store all or none; return sequence numbers, for a duplicate that of its original.

        Raises:
            Refused: A session id is missing, a message is too large, or the queue is full.
        """
        now = self._timers.run()
        limits = self.settings
        for content in contents:
            if self._sessions_required and content.session_id is None:
                raise session_missing()
            if content.size > limits.max_message_bytes:
                raise message_too_large(content.size, limits.max_message_bytes)
        if self._store.size_bytes >= limits.max_queue_bytes:
            raise queue_full(limits.max_queue_bytes)
        return [self._send(content, now) for content in contents]

    def _send(self, content: Content, now: float) -> int:
        original = self._seen.look_up(content.message_id, self._store.last_number + 1, now)
        if original is not None:
            return original
        lane = self._lane(content.session_id)
        message = Stored(content, lane, now)
        self._store.add(message)
        message.enqueued_sequence = message.sequence
        if content.due is not None and content.due > now:
            message.state = SCHEDULED
            self._scheduled += 1
            message.timer = self._timers.at(content.due, self._fall_due, message)
        else:
            self._enqueue(message, now)
        return message.sequence

    def cancel_scheduled(self, sequences: Iterable[int]) -> None:
        """Delete scheduled messages, all or none.

        Raises:
            Refused: One is not scheduled, any more or ever.
        """
        self._timers.run()
        for message in [self._find(each, SCHEDULED) for each in dict.fromkeys(sequences)]:
            self._scheduled -= 1
            self._remove(message)

    def _find(self, sequence: int, state: int) -> Stored:
        message = self._store.get(sequence)
        if message is None or message.state != state or message.lock is not None:
            raise message_not_found(sequence)
        return message

    def _fall_due(self, message: Stored) -> None:
        """A scheduled message becomes active, at the end of its lane and with a new number."""
        self._scheduled -= 1
        self._store.remove(message)
        message.state = ACTIVE
        self._store.add(message)
        self._enqueue(message, self._timers.now())

    def _enqueue(self, message: Stored, now: float) -> None:
        message.enqueued_at = now
        lives = [message.content.time_to_live, self.settings.default_time_to_live]
        if self._source is None and any(life is not None for life in lives):
            message.expires_at = now + min(life for life in lives if life is not None)
            message.timer = self._timers.at(message.expires_at, self._expire_waiting, message)
        self._requeue(message)
        self._dispatch(message.lane)

    # Messages in and out of the lanes

    def _lane(self, session_id: str | None) -> Lane:
        if not self._sessions_required or session_id is None:
            return self._loose
        return self._sessions.lane(session_id)

    def _remove(self, message: Stored) -> None:
        """Delete a message and all that is kept about it; it has no lock."""
        self._store.remove(message)
        if message.timer is not None:
            self._timers.cancel(message.timer)
            message.timer = None
        self._sessions.tidy(message.lane)

    def _requeue(self, message: Stored) -> None:
        """An active message without a lock goes to its place, or to where it goes instead."""
        limit = self.settings.max_delivery_count
        if message.expires_at <= self._timers.now():
            self._expire(message)
        elif message.count >= limit and self._source is None:
            text = f"Message could not be consumed after {message.count} delivery attempts."
            self._bury(message, "MaxDeliveryCountExceeded", text)
        else:
            heappush(message.lane.ready, message.sequence)

    def _expire_waiting(self, message: Stored) -> None:
        if message.lock is None:  # else when the lock ends
            self._expire(message)

    def _expire(self, message: Stored) -> None:
        if message.state == DEFERRED:
            self._deferred -= 1
        if self.settings.dead_letter_expired:
            self._bury(message, *_EXPIRED)
        else:
            self._remove(message)

    def _bury(
        self,
        message: Stored,
        reason: str | None,
        description: str | None,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Move a message without a lock into the dead-letter sub-queue."""
        assert self.dead_letters is not None
        self._remove(message)
        told = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        self.dead_letters._take_in(
            message,
            {**(message.overrides or {}), **(properties or {})}
            | {name: text for name, text in told.items() if text is not None},
        )

    def _take_in(self, dead: Stored, overrides: Mapping[str, Any]) -> None:
        message = Stored(dead.content, self._loose, dead.enqueued_at)
        message.enqueued_sequence = dead.enqueued_sequence
        message.count = dead.count
        message.overrides = overrides
        message.source = self._source
        self._store.add(message)
        self._requeue(message)
        self._dispatch(self._loose)

    # Delivering

    def flow(self, consumer: Consumer, credit: int, *, drained: bool = False) -> None:
        """The consumer can take ``credit`` messages from now on; 0 stops it.

        Below 0 is what is left when credit is taken back while messages are on their way. ``drained``: what was
        fetched for the credit before is not sent any more.
        """
        self._timers.run()
        lane = consumer.lane
        if self.settings.fetches_ahead and lane is not None and lane is not self._loose:
            self._fetch_ahead(consumer, credit, drained)
        consumer.credit = max(0, credit)
        if lane is None:
            return
        self._feed(lane, consumer)
        if lane is self._loose:
            if consumer.credit:
                self._hungry[consumer] = None
            else:
                self._hungry.pop(consumer, None)

    def attach(self, consumer: Consumer) -> None:
        """A consumer of a queue without sessions."""
        self._timers.run()
        consumer.lane = self._loose

    def detach(self, consumer: Consumer, *, closed: bool = True) -> None:
        """The consumer is gone; its session is free at once. Locks on messages without session last on.

        Args:
            consumer: Who.
            closed: It said so itself. Otherwise its session's lock may last on too, as the settings have it.
        """
        self._timers.run()
        self._hungry.pop(consumer, None)
        self._sessions.stop_waiting(consumer)
        if not closed and self.settings.locks_outlast_links:
            consumer.credit = 0
            return
        lane, consumer.lane = consumer.lane, None
        if lane is not None and lane.owner is consumer:
            self._sessions.end(lane, failed=False)

    def _dispatch(self, lane: Lane) -> None:
        """See whether somebody can have what has become ready in a lane."""
        if lane is self._loose:
            while self._hungry and self._store.head(lane) is not None:
                consumer, _ = self._hungry.popitem(last=False)
                self._deliver(lane, consumer)
                if consumer.credit:
                    self._hungry[consumer] = None
        elif lane.owner is not None:
            self._feed(lane, lane.owner)
        elif self._store.head(lane) is not None:
            self._sessions.offer(lane)

    def _fetch_ahead(self, consumer: Consumer, credit: int, drained: bool) -> None:
        fetched = consumer.fetched
        if drained or credit > 0:
            consumer.is_fetching, consumer.fetched = False, None
        elif consumer.credit > 0:
            consumer.is_fetching = True
        if fetched is None or fetched.message.lock is not fetched:
            return
        if drained:
            self._give_back(self._locks.release(fetched))
        elif credit > 0:
            consumer.receiver.deliver(fetched.message, fetched.token)

    def _feed(self, lane: Lane, consumer: Consumer) -> None:
        if consumer.is_fetching and not consumer.credit and self._store.head(lane) is not None:
            message = self._store.get(heappop(lane.ready))
            assert message is not None
            self._locks.take(message, consumer)
            consumer.is_fetching, consumer.fetched = False, message.lock
        while consumer.credit > 0 and self._store.head(lane) is not None:
            self._deliver(lane, consumer)

    def _deliver(self, lane: Lane, consumer: Consumer) -> None:
        message = self._store.get(heappop(lane.ready))
        assert message is not None
        consumer.credit -= 1
        if consumer.settles:
            consumer.receiver.deliver(message, self._locks.take(message, consumer))
        else:
            self._remove(message)
            consumer.receiver.deliver(message, None)

    # Locks on messages

    def _give_back(self, message: Stored) -> None:
        if message.state == ACTIVE:
            self._requeue(message)
            self._dispatch(message.lane)
        elif message.expires_at <= self._timers.now():
            self._expire(message)

    def _give_back_all(self, lane: Lane, failed: bool) -> None:
        """All locked messages of a session, before anybody can have one."""
        for lock in list(lane.locks.values()):
            message = self._locks.release(lock)
            message.count += failed
            if message.state == ACTIVE:
                self._requeue(message)
            elif message.expires_at <= self._timers.now():
                self._expire(message)

    def renew(self, tokens: Sequence[UUID]) -> list[float]:
        """Prolong locks on messages without session, all or none; return when they end.

        Raises:
            Refused: One is not locked by its token.
        """
        self._timers.run()
        return [
            self._locks.prolong(lock) for lock in [self._locks.held(each, None) for each in tokens]
        ]

    def settle(
        self,
        tokens: Sequence[UUID],
        outcome: Outcome,
        consumer: Consumer | None = None,
        *,
        reason: str | None = None,
        description: str | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Decide what becomes of locked messages, all or none of them.

        Args:
            tokens: Of their locks.
            outcome: The decision.
            consumer: Who decides; needed where there are sessions.
            reason: Why it is a dead letter.
            description: More about that.
            properties: Application properties to set on the message, where it is kept.

        Raises:
            Refused: A lock is lost, or a dead letter would be dead-lettered.
        """
        self._timers.run()
        locks = [self._locks.held(token, consumer) for token in dict.fromkeys(tokens)]
        if outcome is Outcome.DEAD_LETTERED and self.dead_letters is None:
            raise cannot_dead_letter()
        for lock in locks:
            message = self._locks.release(lock)
            if outcome is Outcome.COMPLETED or outcome is Outcome.DEAD_LETTERED:
                if message.state == DEFERRED:
                    self._deferred -= 1
                if outcome is Outcome.COMPLETED:
                    self._remove(message)
                else:
                    self._bury(message, reason, description, properties)
                continue
            if properties:
                message.overrides = {**(message.overrides or {}), **properties}
            if outcome is not Outcome.RELEASED:
                message.count += 1
            if outcome is Outcome.DEFERRED and message.state == ACTIVE:
                message.state = DEFERRED
                self._deferred += 1
            self._give_back(message)

    def receive_deferred(
        self, sequences: Sequence[int], consumer: Consumer | None, *, settles: bool = True
    ) -> list[tuple[Stored, UUID | None]]:
        """Deferred messages by their numbers, locked or (without ``settles``) gone; all or none.

        Raises:
            Refused: One is not deferred, is locked, or is of a session that the consumer does not hold.
        """
        self._timers.run()
        messages = [self._find(sequence, DEFERRED) for sequence in dict.fromkeys(sequences)]
        if self._sessions_required:
            for message in messages:
                if consumer is None or message.lane.owner is not consumer:
                    raise session_lock_lost()
        if settles:
            return [(message, self._locks.take(message, consumer)) for message in messages]
        for message in messages:
            self._deferred -= 1
            self._remove(message)
        return [(message, None) for message in messages]

    def peek(self, start: int, count: int, session_id: str | None = None) -> list[Stored]:
        """Up to ``count`` messages of any state from number ``start``, without locking them."""
        self._timers.run()
        lane = None
        if session_id is not None and self._sessions_required:
            lane = self._sessions.find(session_id)
            if lane is None:
                return []
        return list(islice(self._store.since(start, lane), count))

    # Sessions

    def accept(self, consumer: Consumer, session_id: str | None, timeout: float) -> None:
        """Lock a session by name, or the next one with messages; the consumer's receiver hears of it.

        Raises:
            Refused: Somebody else has the session. (That none came within ``timeout`` seconds is told to
                the receiver.)
        """
        self._timers.run()
        self._sessions.accept(consumer, session_id, timeout)

    def renew_session(self, session_id: str, consumer: Consumer | None) -> float:
        """Prolong the lock of a session that the consumer holds; return when it ends.

        Raises:
            Refused: The consumer does not hold it.
        """
        self._timers.run()
        return self._sessions.renew(session_id, consumer)

    def session_state(self, session_id: str, consumer: Consumer | None) -> bytes | None:
        """The state of a session that the consumer holds.

        Raises:
            Refused: The consumer does not hold it.
        """
        self._timers.run()
        return self._sessions.owned(session_id, consumer).state

    def set_session_state(
        self, session_id: str, state: bytes | None, consumer: Consumer | None
    ) -> None:
        """Replace the state of a session that the consumer holds; ``None`` deletes it.

        Raises:
            Refused: The consumer does not hold it.
        """
        now = self._timers.run()
        lane = self._sessions.owned(session_id, consumer)
        lane.state = state
        lane.state_set_at = now

    def session_ids(self, state_set_after: float | None = None) -> list[str]:
        """Sessions with messages or a state, or those whose state was set after a time."""
        self._timers.run()
        return self._sessions.ids(state_set_after)

    # What only tests do

    def steal_session(self, session_id: str) -> bool:
        """End the lock of a session as if it had expired, without telling its holder; whether there was one."""
        self._timers.run()
        lane = self._sessions.find(session_id)
        if lane is None or lane.owner is None:
            return False
        self._sessions.end(lane, failed=True)
        return True

    def steal_message(self, sequence: int) -> bool:
        """End the lock of a message as if it had expired; whether there was one."""
        self._timers.run()
        message = self._store.get(sequence)
        if message is None or message.lock is None:
            return False
        self._locks.expire(message.lock)
        return True
