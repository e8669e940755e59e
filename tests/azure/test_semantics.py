"""What the emulator's broker does, under a clock that stands still unless told otherwise; no network."""

from __future__ import annotations

import random
from typing import Any
from uuid import uuid4

import pytest

from queue_runtime.errors import ValidationError
from queue_runtime.testing.servicebus.entities import Content, Outcome, QueueSettings
from queue_runtime.testing.servicebus.namespace import Namespace
from queue_runtime.testing.servicebus.refusals import Refused
from queue_runtime.testing.servicebus.timers import Timers

from .semantics import Client, Clock, bodies, new_queue, put


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused(condition: str) -> Any:
    return pytest.raises(Refused, match=f"^{condition}: ")


LOCK_LOST = "com.microsoft:message-lock-lost"
SESSION_LOST = "com.microsoft:session-lock-lost"
NOT_FOUND = "com.microsoft:message-not-found"


# --- queues without sessions -----------------------------------------------------------------------


def test_messages_come_in_order_and_once(clock: Clock) -> None:
    queue = new_queue(clock)
    assert put(queue, "a", "b", "c") == [1, 2, 3]
    client = Client(queue).attach()
    taken = client.take(2)
    assert bodies(message for message, _ in taken) == ["a", "b"]
    assert client.take_bodies() == ["c"]
    for _, token in taken:
        client.settle(token, Outcome.COMPLETED)
    counts = queue.counts()
    assert (counts.active, counts.locked) == (1, 1)


def test_what_comes_later_goes_to_those_with_credit_in_turn(clock: Clock) -> None:
    queue = new_queue(clock)
    first, second = Client(queue).attach(credit=2), Client(queue).attach(credit=2)
    put(queue, *range(6))
    assert bodies(message for message, _ in first.got) == [0, 2]
    assert bodies(message for message, _ in second.got) == [1, 3]
    assert first.take_bodies(9) == [4, 5]


@pytest.mark.parametrize("credit", [0, -10])
def test_no_credit_no_message(clock: Clock, credit: int) -> None:
    """Below zero is what taking it back comes to while messages are on their way."""
    queue = new_queue(clock)
    client = Client(queue).attach(credit=1)
    queue.flow(client.consumer, credit)
    put(queue, "a")
    assert client.got == []


def test_receive_and_delete(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b")
    client = Client(queue, settles=False).attach(credit=1)
    assert [(m.content.payload, token) for m, token in client.got] == [("a", None)]
    assert queue.counts().active == 1


def test_abandon_counts_and_gives_back_to_its_place(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b")
    client = Client(queue).attach()
    ((message, token),) = client.take()
    client.settle(token, Outcome.ABANDONED, properties={"why": "later"})
    ((message, token),) = client.take()
    assert (message.content.payload, message.count) == ("a", 1)
    assert message.overrides == {"why": "later"}
    client.settle(token, Outcome.RELEASED)
    ((message, _),) = client.take()
    assert (message.content.payload, message.count) == ("a", 1)


def test_too_many_deliveries_make_a_dead_letter(clock: Clock) -> None:
    queue = new_queue(clock, max_delivery_count=2)
    put(queue, "a")
    client = Client(queue).attach()
    for _ in range(2):
        ((_, token),) = client.take()
        client.settle(token, Outcome.ABANDONED)
    assert client.take() == []
    assert queue.dead_letters is not None
    ((dead, _),) = Client(queue.dead_letters).attach().take()
    assert dead.overrides is not None
    assert dead.overrides["DeadLetterReason"] == "MaxDeliveryCountExceeded"
    assert (dead.source, dead.count) == ("q", 2)


def test_dead_letters_stay_however_often_they_fail(clock: Clock) -> None:
    queue = new_queue(clock, max_delivery_count=1, default_time_to_live=5.0)
    put(queue, "a")
    client = Client(queue).attach()
    ((_, token),) = client.take()
    client.settle(token, Outcome.DEAD_LETTERED, reason="bad", description="so bad")
    assert queue.dead_letters is not None
    reader = Client(queue.dead_letters).attach()
    for count in range(1, 20):
        clock.pass_by(10)
        ((dead, token),) = reader.take()
        reader.settle(token, Outcome.ABANDONED)
        assert dead.count == count
    assert dead.overrides == {
        "DeadLetterReason": "bad",
        "DeadLetterErrorDescription": "so bad",
    }
    ((_, token),) = reader.take()
    with refused("amqp:not-allowed"):
        reader.settle(token, Outcome.DEAD_LETTERED)
    reader.settle(token, Outcome.COMPLETED)
    assert queue.counts().dead_letters == 0


def test_a_lock_ends_when_its_time_is_over(clock: Clock) -> None:
    queue = new_queue(clock, lock_duration=30.0)
    put(queue, "a")
    client, other = Client(queue).attach(), Client(queue).attach(credit=1)
    ((_, token),) = [(m, t) for m, t in other.got if t]
    clock.pass_by(29.9)
    assert queue.renew([token]) == [pytest.approx(clock.now + 30)]
    clock.pass_by(29.9)
    assert client.take() == []
    clock.pass_by(0.1)
    with refused(LOCK_LOST):
        queue.settle([token], Outcome.COMPLETED)
    with refused(LOCK_LOST):
        queue.renew([token])
    ((message, new),) = client.take()
    assert message.count == 1
    assert new != token


def test_locks_outlive_their_receiver(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a")
    client = Client(queue).attach()
    ((_, token),) = client.take()
    client.detach()
    assert Client(queue).attach().take() == []
    queue.settle([token], Outcome.COMPLETED)
    assert queue.counts().active == 0


def test_many_are_settled_together_or_none(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b")
    client = Client(queue).attach()
    tokens = [token for _, token in client.take(2)]
    with refused(LOCK_LOST):
        queue.settle([*tokens, uuid4()], Outcome.COMPLETED)
    assert queue.counts().locked == 2
    queue.settle(tokens, Outcome.COMPLETED)
    assert queue.counts().active == 0


def test_deferred_messages_come_by_number_alone(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b")
    client = Client(queue).attach()
    ((message, token),) = client.take()
    client.settle(token, Outcome.DEFERRED)
    assert client.take_bodies() == ["b"]
    number = message.sequence
    with refused(NOT_FOUND):
        queue.receive_deferred([number, 2], client.consumer)
    ((again, token2),) = queue.receive_deferred([number], client.consumer)
    assert again is message
    assert token2 is not None
    with refused(NOT_FOUND):
        queue.receive_deferred([number], client.consumer)
    clock.pass_by(61)  # its lock ends: deferred as before, and "b" is ready again
    assert client.take_bodies() == ["b"]
    ((_, token3),) = queue.receive_deferred([number], client.consumer)
    assert token3 is not None
    client.settle(token3, Outcome.ABANDONED)
    assert queue.counts().deferred == 1
    assert bodies(m for m, _ in queue.receive_deferred([number], None, settles=False)) == ["a"]
    assert (queue.counts().deferred, queue.counts().active) == (0, 1)


# --- time ------------------------------------------------------------------------------------------


def test_expired_messages_are_gone(clock: Clock) -> None:
    queue = new_queue(clock, default_time_to_live=100.0)
    put(queue, "a", time_to_live=5.0)
    put(queue, "b", time_to_live=500.0)
    put(queue, "c")
    clock.pass_by(5)
    assert bodies(queue.peek(0, 9)) == ["b", "c"]
    clock.pass_by(95)
    assert queue.counts().active == 0
    assert queue.counts().dead_letters == 0


def test_expired_messages_are_kept_as_dead_letters_on_wish(clock: Clock) -> None:
    queue = new_queue(clock, dead_letter_expired=True)
    put(queue, "a", time_to_live=5.0)
    clock.pass_by(5)
    assert queue.counts().dead_letters == 1
    assert queue.dead_letters is not None
    (dead,) = queue.dead_letters.peek(0, 1)
    assert dead.overrides is not None
    assert dead.overrides["DeadLetterReason"] == "TTLExpiredException"


def test_a_locked_message_does_not_expire_before_it_comes_back(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b", time_to_live=5.0)
    client = Client(queue).attach()
    (_, first), (_, second) = client.take(2)
    clock.pass_by(6)
    client.settle(first, Outcome.COMPLETED)
    assert queue.counts().active == 1
    client.settle(second, Outcome.ABANDONED)
    assert queue.counts().active == 0


def test_deferred_messages_expire(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", time_to_live=5.0)
    client = Client(queue).attach()
    ((message, token),) = client.take()
    client.settle(token, Outcome.DEFERRED)
    clock.pass_by(5)
    assert queue.counts().deferred == 0
    with refused(NOT_FOUND):
        queue.receive_deferred([message.sequence], client.consumer)


def test_scheduled_messages_become_active_with_new_numbers(clock: Clock) -> None:
    queue = new_queue(clock)
    (late,) = put(queue, "late", due=clock.now + 20, time_to_live=5.0)
    (soon,) = put(queue, "soon", due=clock.now + 10)
    (now,) = put(queue, "now", due=clock.now - 10)
    assert (late, soon, now) == (1, 2, 3)
    client = Client(queue).attach()
    assert client.take_bodies() == ["now"]
    assert queue.counts().scheduled == 2
    clock.pass_by(10)
    ((message, _),) = client.take()
    assert (message.sequence, message.enqueued_sequence) == (4, 2)
    assert message.enqueued_at == clock.now
    clock.pass_by(14)  # its time to live began when it became active
    assert client.take_bodies() == ["late"]


def test_scheduled_messages_are_cancelled_together_or_not_at_all(clock: Clock) -> None:
    queue = new_queue(clock)
    numbers = put(queue, "a", "b", due=clock.now + 10)
    with refused(NOT_FOUND):
        queue.cancel_scheduled([*numbers, 77])
    assert queue.counts().scheduled == 2
    queue.cancel_scheduled(numbers)
    with refused(NOT_FOUND):
        queue.cancel_scheduled(numbers[:1])
    clock.pass_by(20)
    assert queue.peek(0, 9) == []


def test_duplicates_within_the_window_are_dropped(clock: Clock) -> None:
    queue = new_queue(clock, duplicate_window=60.0)
    (original,) = put(queue, "a", message_id="m")
    assert put(queue, "again", message_id="m") == [original]
    put(queue, "other", "nameless", message_id=None)
    assert bodies(queue.peek(0, 9)) == ["a", "other", "nameless"]
    clock.pass_by(60)
    put(queue, "later", message_id="m")
    assert bodies(queue.peek(0, 9))[-1] == "later"


def test_a_shorter_window_is_that_of_what_comes_after_it(clock: Clock) -> None:
    queue = new_queue(clock, duplicate_window=600.0)
    put(queue, "long", message_id="long")
    queue.change(QueueSettings(duplicate_window=10.0))
    put(queue, "short", message_id="short")
    clock.pass_by(10)
    put(queue, "long", "short", message_id="short")
    put(queue, "again", message_id="long")
    assert bodies(queue.peek(0, 9)) == ["long", "short", "long"]
    clock.pass_by(590)
    put(queue, "last", message_id="long")
    assert bodies(queue.peek(0, 9))[-1] == "last"
    assert len(queue._seen) == 1


def test_what_is_named_twice_is_meant_once(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, "a", "b")
    client = Client(queue).attach()
    (a, b) = (token for _, token in client.take(2))
    queue.settle([a, a], Outcome.COMPLETED)
    queue.settle([b, b], Outcome.ABANDONED)
    numbers = put(queue, "later", due=clock.now + 10)
    queue.cancel_scheduled(numbers * 2)
    counts = queue.counts()
    assert (counts.active, counts.locked, counts.scheduled) == (1, 0, 0)
    ((again, _),) = client.take()
    assert again.count == 1


def test_time_can_be_moved(clock: Clock) -> None:
    namespace = Namespace(clock)
    queue = namespace.create("q", QueueSettings(lock_duration=30))
    put(queue, "a")
    client = Client(queue).attach()
    ((_, token),) = client.take()
    namespace.timers.move(31)
    with refused(LOCK_LOST):
        client.settle(token, Outcome.COMPLETED)
    with pytest.raises(ValueError, match="-1"):
        namespace.timers.move(-1)


def test_a_clock_set_back_does_not_prolong_anything(clock: Clock) -> None:
    queue = new_queue(clock, lock_duration=30.0)
    put(queue, "a")
    client = Client(queue).attach()
    client.take()
    clock.pass_by(30)
    assert queue.counts().locked == 0
    clock.pass_by(-3_000)
    ((_, token),) = client.take()
    assert queue.counts().locked == 1
    clock.pass_by(3_000)
    client.settle(token, Outcome.COMPLETED)


# --- limits ----------------------------------------------------------------------------------------


def test_sizes_are_limited(clock: Clock) -> None:
    queue = new_queue(clock, max_message_bytes=10, max_queue_bytes=20)
    with refused("amqp:link:message-size-exceeded"):
        queue.send([Content(size=10), Content(size=11)])
    assert queue.counts().active == 0
    queue.send([Content(size=10), Content(size=10)])
    with refused("amqp:resource-limit-exceeded"):
        queue.send([Content(size=1)])
    assert queue.counts().size_bytes == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("lock_duration", 0), ("lock_duration", float("inf")), ("max_delivery_count", 0)],
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{name} is {value!r}"):
        QueueSettings(**{name: value})  # type: ignore[arg-type]


def test_queues_are_found_by_path_whatever_its_case(clock: Clock) -> None:
    namespace = Namespace(clock)
    queue = namespace.create("Team/Orders", QueueSettings())
    assert namespace.find("team/ORDERS") is queue
    assert namespace.find("Team/Orders/$DeadLetterQueue") is queue.dead_letters
    with refused("amqp:not-found"):
        namespace.find("Team")
    with refused("amqp:not-found"):
        namespace.find("nobody/$deadletterqueue")
    for name in ("team/orders", "", "a$b", "/a"):
        with pytest.raises(ValidationError, match=r"name|exists"):
            namespace.create(name, QueueSettings())


# --- peeking ---------------------------------------------------------------------------------------


def test_peek_shows_all_states_in_pages(clock: Clock) -> None:
    queue = new_queue(clock)
    put(queue, *range(5))
    put(queue, "due", due=clock.now + 5)
    client = Client(queue).attach()
    (_, first), _ = client.take(2)
    client.settle(first, Outcome.DEFERRED)
    assert bodies(queue.peek(0, 3)) == [0, 1, 2]
    assert [(m.content.payload, m.state) for m in queue.peek(4, 9)] == [(3, 0), (4, 0), ("due", 2)]
    assert queue.peek(7, 9) == []


def test_peek_within_a_session(clock: Clock) -> None:
    queue = new_queue(clock, requires_session=True)
    for number in range(6):
        put(queue, number, session_id="ab"[number % 2])
    assert bodies(queue.peek(0, 9, "a")) == [0, 2, 4]
    assert bodies(queue.peek(4, 9, "b")) == [3, 5]
    assert bodies(queue.peek(0, 9, "none")) == []
    assert bodies(queue.peek(2, 3)) == [1, 2, 3]


# --- sessions --------------------------------------------------------------------------------------


@pytest.fixture
def sessions(clock: Clock) -> Any:
    return new_queue(clock, requires_session=True, lock_duration=30.0)


def test_a_session_id_is_needed(sessions: Any) -> None:
    with refused("amqp:not-allowed"):
        put(sessions, "a")


def test_sessions_are_exclusive_and_in_order(sessions: Any) -> None:
    for number in range(4):
        put(sessions, number, session_id="ab"[number % 2])
    a = Client(sessions).accept("a")
    assert (a.session, a.until) == ("a", 1_030.0)
    with refused("com.microsoft:session-cannot-be-locked"):
        Client(sessions).accept("a")
    b = Client(sessions).accept()
    assert b.session == "b"
    assert a.take_bodies() == [0, 2]
    put(sessions, 4, session_id="a")
    assert a.take_bodies() == [4]
    assert b.take_bodies() == [1, 3]
    assert sessions.counts().locked_sessions == 2


def test_next_available_is_the_one_that_waited_longest(sessions: Any) -> None:
    for name in "cab":
        put(sessions, 0, session_id=name)
    put(sessions, 1, session_id="c")
    assert [Client(sessions).accept().session for _ in range(3)] == ["c", "a", "b"]


def test_next_available_waits_for_a_session(sessions: Any, clock: Clock) -> None:
    first, second = Client(sessions).accept(timeout=5.0), Client(sessions).accept(timeout=5.0)
    put(sessions, "x", session_id="s")
    assert (first.session, second.session) == ("s", None)
    first.detach()
    assert second.session == "s"
    assert second.take_bodies() == ["x"]
    third = Client(sessions).accept(timeout=5.0)
    clock.pass_by(5)
    assert sessions.counts().locked_sessions == 1
    assert third.refusal is not None
    assert third.refusal.condition == "com.microsoft:timeout"
    put(sessions, "y", session_id="t")
    assert third.session is None
    fourth = Client(sessions).accept()
    assert fourth.session == "t"


def test_who_stops_waiting_gets_no_session(sessions: Any, clock: Clock) -> None:
    client = Client(sessions).accept(timeout=5.0)
    client.detach()
    put(sessions, "x", session_id="s")
    clock.pass_by(6)
    assert sessions.counts().locked_sessions == 0
    assert (client.session, client.refusal) == (None, None)


def test_a_session_given_back_returns_its_messages_uncounted(sessions: Any) -> None:
    put(sessions, 0, 1, 2, session_id="s")
    client = Client(sessions).accept("s")
    taken = client.take(2)
    client.detach()
    with refused(SESSION_LOST):
        client.settle(taken[0][1], Outcome.COMPLETED)
    other = Client(sessions).accept()
    assert [(m.content.payload, m.count) for m, _ in other.take(9)] == [(0, 0), (1, 0), (2, 0)]


def test_who_waits_for_a_session_gets_its_messages_from_the_lowest(
    sessions: Any, clock: Clock
) -> None:
    put(sessions, 0, 1, 2, session_id="s")
    holder = Client(sessions).accept("s")
    (_, zero), _, _ = holder.take(3)
    holder.settle(zero, Outcome.ABANDONED)
    holder.take(1)  # 0 is locked last
    waiting = Client(sessions).accept(timeout=100.0)
    sessions.flow(waiting.consumer, 9)
    clock.pass_by(30)
    sessions.counts()
    assert waiting.session == "s"
    sessions.flow(waiting.consumer, 9)
    assert bodies(message for message, _ in waiting.got) == [0, 1, 2]


def test_a_session_lock_that_expires_counts(sessions: Any, clock: Clock) -> None:
    put(sessions, 0, session_id="s")
    client = Client(sessions).accept("s")
    ((_, token),) = client.take()
    clock.pass_by(29)
    assert sessions.renew_session("s", client.consumer) == clock.now + 30
    clock.pass_by(29)
    assert token in {t for _, t in client.got}
    assert sessions.counts().locked == 1
    clock.pass_by(1)
    with refused(SESSION_LOST):
        client.settle(token, Outcome.COMPLETED)
    assert client.refusal is not None
    assert client.refusal.condition == SESSION_LOST
    with refused(SESSION_LOST):
        sessions.renew_session("s", client.consumer)
    ((message, _),) = Client(sessions).accept("s").take()
    assert message.count == 1


def test_only_the_holder_may_act_on_a_session(sessions: Any) -> None:
    put(sessions, 0, session_id="s")
    holder, other = Client(sessions).accept("s"), Client(sessions)
    ((_, token),) = holder.take()
    for stranger in (other.consumer, None):
        with refused(SESSION_LOST):
            sessions.settle([token], Outcome.COMPLETED, stranger)
        with refused(SESSION_LOST):
            sessions.renew_session("s", stranger)
        with refused(SESSION_LOST):
            sessions.session_state("s", stranger)
        with refused(SESSION_LOST):
            sessions.set_session_state("s", b"x", stranger)
    with refused(SESSION_LOST):
        sessions.renew([token])
    holder.settle(token, Outcome.COMPLETED)
    assert sessions.counts().active == 0


def test_deferred_messages_of_a_session_are_its_holders(sessions: Any) -> None:
    put(sessions, 0, 1, session_id="s")
    holder = Client(sessions).accept("s")
    ((message, token),) = holder.take()
    holder.settle(token, Outcome.DEFERRED)
    with refused(SESSION_LOST):
        sessions.receive_deferred([message.sequence], Client(sessions).consumer)
    ((_, token),) = sessions.receive_deferred([message.sequence], holder.consumer)
    holder.detach()
    other = Client(sessions).accept("s")
    with refused(SESSION_LOST):
        other.settle(token, Outcome.COMPLETED)
    ((_, token),) = sessions.receive_deferred([message.sequence], other.consumer)
    other.settle(token, Outcome.COMPLETED)
    assert sessions.counts().deferred == 0


def test_the_state_of_a_session_outlives_its_messages(sessions: Any, clock: Clock) -> None:
    holder = Client(sessions).accept("s")
    assert sessions.session_state("s", holder.consumer) is None
    sessions.set_session_state("s", b"state", holder.consumer)
    holder.detach()
    assert sessions.session_ids() == ["s"]
    assert sessions.session_ids(clock.now - 1) == ["s"]
    assert sessions.session_ids(clock.now) == []
    again = Client(sessions).accept("s")
    assert sessions.session_state("s", again.consumer) == b"state"
    sessions.set_session_state("s", None, again.consumer)
    again.detach()
    assert sessions.counts().sessions == 0


def test_a_lock_may_outlast_its_link(clock: Clock) -> None:
    queue = new_queue(clock, requires_session=True, lock_duration=5.0, locks_outlast_links=True)
    put(queue, "a", "b", session_id="s")
    killed = Client(queue).accept("s")
    assert len(killed.take()) == 1
    killed.detach(closed=False)
    clock.pass_by(4)
    with refused("com.microsoft:session-cannot-be-locked"):
        Client(queue).accept("s")
    clock.pass_by(1)
    after = Client(queue).accept("s")
    assert after.take_bodies() == ["a", "b"]
    after.detach()
    assert Client(queue).accept("s").session == "s"


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "lowered"])
def test_credit_may_leave_a_message_fetched(clock: Clock, drained: bool) -> None:
    queue = new_queue(clock, requires_session=True, fetches_ahead=True)
    put(queue, "a", session_id="s")
    client = Client(queue).accept("s")
    ((_, token),) = client.take(9)
    queue.flow(client.consumer, 0, drained=drained)
    put(queue, "b", session_id="s")
    client.settle(token, Outcome.ABANDONED)
    assert client.take_bodies() == (["a", "b"] if drained else ["b", "a"])
    queue.flow(client.consumer, 0)
    put(queue, "c", session_id="s")
    client.detach()  # with what is fetched and what is not settled
    assert Client(queue).accept("s").take_bodies() == ["a", "b", "c"]


def test_a_session_is_forgotten_with_its_last_message(sessions: Any, clock: Clock) -> None:
    put(sessions, 0, session_id="expires", time_to_live=5.0)
    put(sessions, 0, session_id="done")
    client = Client(sessions).accept("done")
    ((_, token),) = client.take()
    client.settle(token, Outcome.COMPLETED)
    client.detach()
    clock.pass_by(5)
    counts = sessions.counts()
    assert (counts.sessions, counts.locked_sessions, counts.active) == (0, 0, 0)
    waiting = Client(sessions).accept()
    assert waiting.session is None


def test_dead_letters_of_sessions_need_none(sessions: Any) -> None:
    put(sessions, 0, session_id="s")
    client = Client(sessions).accept("s")
    ((_, token),) = client.take()
    client.settle(token, Outcome.DEAD_LETTERED, reason="r")
    assert not sessions.dead_letters.requires_session
    ((dead, _),) = Client(sessions.dead_letters).attach().take()
    assert dead.content.session_id == "s"


def test_scheduled_messages_join_their_session(sessions: Any, clock: Clock) -> None:
    put(sessions, "later", session_id="s", due=clock.now + 5)
    client = Client(sessions).accept(timeout=60.0)
    assert client.session is None
    clock.pass_by(5)
    assert sessions.counts().locked_sessions == 1
    assert client.take_bodies() == ["later"]


# --- theft -----------------------------------------------------------------------------------------


def test_a_stolen_session_is_free_and_its_holder_does_not_know(sessions: Any) -> None:
    put(sessions, 0, session_id="s")
    client = Client(sessions).accept("s")
    ((_, token),) = client.take()
    assert sessions.steal_session("s")
    assert not sessions.steal_session("s")
    assert (client.session, client.refusal) == ("s", None)
    thief = Client(sessions).accept("s")
    assert [m.count for m, _ in thief.take()] == [1]
    with refused(SESSION_LOST):
        client.settle(token, Outcome.COMPLETED)
    client.detach()
    assert sessions.counts().locked_sessions == 1


def test_a_stolen_message_is_free(clock: Clock) -> None:
    queue = new_queue(clock)
    (number,) = put(queue, "a")
    client = Client(queue).attach()
    assert not queue.steal_message(number)
    ((_, token),) = client.take()
    assert queue.steal_message(number)
    with refused(LOCK_LOST):
        client.settle(token, Outcome.COMPLETED)
    assert Client(queue).attach().take_bodies() == ["a"]


# --- costs -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_what_is_gone(clock: Clock) -> None:
    namespace = Namespace(clock)
    queue = namespace.create("q", QueueSettings(requires_session=True, duplicate_window=1.0))
    for number in range(5_000):
        clock.pass_by(0.01)
        put(queue, 0, session_id=str(number), message_id=number, time_to_live=1_000.0)
        client = Client(queue).accept()
        ((_, token),) = client.take()
        client.settle(token, Outcome.COMPLETED)
        client.detach()
    clock.pass_by(2)
    put(queue, 0, session_id="s", message_id="last")
    assert queue.counts().sessions == 1
    assert len(namespace.timers) == 0
    sizes = {name: len(value) for name, value in vars(queue).items() if hasattr(value, "__len__")}
    assert {name for name, size in sizes.items() if size > 1} == set()
    assert queue.peek(0, 10)[0].content.session_id == "s"


def test_timers_run_in_order_and_cancelled_ones_do_not_pile_up(clock: Clock) -> None:
    sooner: list[float] = []
    timers = Timers(clock, lambda: sooner.append(clock.now))
    ran: list[float] = []
    times = [clock.now + random.Random(1).uniform(1, 100) for _ in range(100)]
    for when in times:
        timers.at(when, ran.append, when)
    for _ in range(20_000):
        timers.cancel(timers.at(clock.now + 1_000, ran.append, 0.0))
    assert len(timers) == 100
    assert timers.next_in() == pytest.approx(min(times) - clock.now)
    assert len(sooner) < 100
    clock.pass_by(200)
    timers.run()
    assert ran == sorted(times)
    assert timers.next_in() == float("inf")
