"""What the broker answers instead of doing what it was asked: conditions, texts and status numbers of Service Bus."""

from __future__ import annotations

from typing import Final, final

__all__ = [
    "DETACH_FORCED",
    "Refused",
    "cannot_dead_letter",
    "entity_deleted",
    "entity_not_found",
    "message_lock_lost",
    "message_not_found",
    "message_too_large",
    "missing_right",
    "queue_full",
    "server_busy",
    "session_lock_lost",
    "session_locked",
    "session_missing",
    "token_ended",
    "unauthorized",
    "wait_ended",
]

DETACH_FORCED: Final = "amqp:link:detach-forced"
"""The condition with which Service Bus ends links for reasons of its own, such as ten idle minutes."""


@final
class Refused(Exception):
    """The broker refuses; nothing changed.

    Args:
        condition: The AMQP error's symbol, which SDKs map to their exceptions.
        description: Words for people.
        status: The number that a management response carries in place of an AMQP error.
    """

    def __init__(self, condition: str, description: str, status: int = 400) -> None:
        super().__init__(f"{condition}: {description}")
        self.condition = condition
        self.description = description
        self.status = status


def entity_not_found(path: str) -> Refused:
    """No queue has this path."""
    return Refused("amqp:not-found", f"The messaging entity {path!r} could not be found.", 404)


def entity_deleted(path: str) -> Refused:
    """The queue has gone while a link was open."""
    return Refused("amqp:not-found", f"The messaging entity {path!r} was deleted.", 404)


def message_not_found(sequence: int) -> Refused:
    """No message of the asked kind has this number."""
    return Refused(
        "com.microsoft:message-not-found", f"No such message has number {sequence}.", 404
    )


def message_lock_lost() -> Refused:
    """The lock token is none, or none any more."""
    return Refused(
        "com.microsoft:message-lock-lost",
        "The lock supplied is invalid: it expired, or the message has left the queue.",
        410,
    )


def session_lock_lost() -> Refused:
    """The session is not held by who acts as if."""
    return Refused(
        "com.microsoft:session-lock-lost",
        "The session's lock has expired or was taken: accept the session again.",
        410,
    )


def session_locked(session_id: str) -> Refused:
    """Somebody else holds the session."""
    return Refused(
        "com.microsoft:session-cannot-be-locked",
        f"The session {session_id!r} cannot be accepted: another receiver holds its lock.",
        409,
    )


def session_missing() -> Refused:
    """A message without session id for a queue with sessions."""
    return Refused("amqp:not-allowed", "The queue requires sessions: set the message's session id.")


def wait_ended(timeout: float) -> Refused:
    """Nothing came while waiting for the next session."""
    return Refused(
        "com.microsoft:timeout", f"No session became available within {timeout:g} s.", 408
    )


def message_too_large(size: int, limit: int) -> Refused:
    """The message is above the limit of the queue."""
    return Refused(
        "amqp:link:message-size-exceeded",
        f"The message has {size} bytes; the queue takes {limit} at most.",
    )


def queue_full(limit: int) -> Refused:
    """The queue holds as much as it may."""
    return Refused(
        "amqp:resource-limit-exceeded", f"The queue has reached its quota of {limit} bytes.", 403
    )


def cannot_dead_letter() -> Refused:
    """The message is in a dead-letter sub-queue already."""
    return Refused("amqp:not-allowed", "A dead letter cannot be dead-lettered again.")


def server_busy() -> Refused:
    """Throttled."""
    return Refused(
        "com.microsoft:server-busy",
        "The request was terminated because the namespace is being throttled."
        " Please wait 10 seconds and try again.",
        503,
    )


def unauthorized(description: str) -> Refused:
    """The token does not allow it, or there is none."""
    return Refused("amqp:unauthorized-access", description, 401)


def missing_right(right: str, path: str) -> Refused:
    """The token is good, but not for this."""
    return unauthorized(
        f"Unauthorized access. '{right}' claim(s) are required to perform this operation. Resource: 'sb://any/{path}'."
    )


def token_ended(link: str, right: str, path: str) -> Refused:
    """The token under which a link was opened has expired; the words of Service Bus.

    https://github.com/Azure/azure-sdk-for-python/issues/23487 shows them.
    """
    return Refused(
        DETACH_FORCED,
        f"The link '{link}' is force detached. Code: RenewToken. Details: "
        f"{missing_right(right, path).description}.",
    )
