"""What conditions, classes and statuses of Service Bus and its SDK mean, and what to do about each: the table.

Sources: the SDK's ``exceptions`` and
https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-troubleshoot. Classes are told by name, so
nothing of the SDK is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, final

import attrs

from queue_runtime.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    OperationTimeout,
    PermissionDenied,
    QueueError,
    QueueFull,
    QueueNotFound,
    SessionLocked,
    Throttled,
    ValidationError,
)

__all__ = [
    "BROKEN",
    "BUSY",
    "CERTIFICATE",
    "CLASSES",
    "CONDITIONS",
    "CONNECTIONS",
    "CONNECTION_CLASSES",
    "CREDENTIALS",
    "DISABLED",
    "ENDED",
    "EXISTS",
    "EXPIRED",
    "FORBIDDEN",
    "FULL",
    "GONE",
    "HTTP",
    "LOCKED",
    "MESSAGE_LOST",
    "NOT_FOUND",
    "NO_CERTIFICATES",
    "NO_FILE",
    "NO_IDENTITY",
    "NO_MANAGER",
    "NO_SESSION_ID",
    "OTHER_QUEUE",
    "REFUSED",
    "SESSION_LOST",
    "SETTLED",
    "SLOW",
    "TEXTS",
    "TROUBLE",
    "UNREACHABLE",
    "WITHOUT_SESSIONS",
    "WITH_SESSIONS",
    "Row",
]


@final
@attrs.frozen
class Row:
    """What a condition or a class means.

    Args:
        error: The class; its constructor takes a text.
        cure: What to do.
    """

    error: Callable[..., QueueError]
    cure: str


NOT_FOUND: Final = Row(
    QueueNotFound,
    "check the name and the namespace; sending and receiving create no queue, queue-runtime provision does",
)
FORBIDDEN: Final = Row(
    PermissionDenied,
    "give the identity a role such as Azure Service Bus Data Sender or Data Receiver, "
    "or the shared access policy the claim Send or Listen",
)
NO_MANAGER: Final = Row(
    PermissionDenied,
    "give the identity the role Azure Service Bus Data Owner, or the shared access policy the claim Manage",
)
CREDENTIALS: Final = Row(
    AuthenticationFailed,
    "check the connection string's key, or tenant_id, client_id and client_secret, "
    "or the identity that tokens are asked for",
)
EXPIRED: Final = Row(
    AuthenticationFailed,
    "renew the token: a shared access signature ends by itself, a key or an identity does not; "
    "check this machine's clock too",
)
NO_IDENTITY: Final = Row(
    AuthenticationFailed,
    "there is no such identity here: assign one to this machine, name one that is assigned in client_id, "
    "or say in auth where tokens come from",
)
ENDED: Final = Row(
    ConnectionFailed,
    "the token was not renewed in time: check that tokens can be had, and this machine's clock; try again",
)
DISABLED: Final = Row(
    ConfigurationError, "enable the queue: it is disabled for sending, for receiving or for both"
)
EXISTS: Final = Row(ConfigurationError, "a queue of that name is there already")
BUSY: Final = Row(Throttled, "fewer calls per second, or more messaging units of the Premium tier")
FULL: Final = Row(QueueFull, "receive what is in it, or make it larger")
CONNECTIONS: Final = Row(
    Throttled, "open fewer senders, receivers and sessions at once: each has a connection"
)
MESSAGE_LOST: Final = Row(LockLost, "the message will be delivered again; nothing changed")
SESSION_LOST: Final = Row(LockLost, "accept the session again; nothing changed")
LOCKED: Final = Row(SessionLocked, "wait until its holder releases it or its lock expires")
SETTLED: Final = Row(InvalidReceipt, "the delivery was settled before; nothing changed")
GONE: Final = Row(InvalidReceipt, "it is not there, or no longer; nothing changed")
SLOW: Final = Row(OperationTimeout, "whether it took effect is unknown; try again")
BROKEN: Final = Row(ConnectionFailed, "try again on a new connection")
TROUBLE: Final = Row(ConnectionFailed, "Service Bus is in trouble; try again")
UNREACHABLE: Final = Row(
    ConnectionFailed,
    "check the namespace's name, or that the emulator is running, the network and, if set, custom_endpoint or "
    "administration_endpoint; try again",
)
CERTIFICATE: Final = Row(
    ConfigurationError,
    "the endpoint's certificate is not trusted for its name: check namespace and custom_endpoint, "
    "or name the authority's file in verify",
)
NO_FILE: Final = Row(ConfigurationError, "check the path in verify")
NO_CERTIFICATES: Final = Row(
    ConfigurationError,
    "name a file in verify that holds the authorities' certificates, as PEM",
)
REFUSED: Final = Row(ValidationError, "Service Bus does not take this value")
WITH_SESSIONS: Final = Row(
    ConfigurationError, "the queue requires sessions: open the provider with sessions=true"
)
WITHOUT_SESSIONS: Final = Row(
    ConfigurationError,
    "the queue has no sessions: open the provider with sessions=false, or create a queue that requires "
    "sessions, which an existing one cannot be made to",
)
NO_SESSION_ID: Final = Row(
    ValidationError, "the queue requires sessions: give the message a session_id"
)
OTHER_QUEUE: Final = Row(
    ConfigurationError, "the connection string's EntityPath names another queue: open that one"
)

CONDITIONS: Final[Mapping[str, Row]] = {
    "amqp:connection:forced": BROKEN,
    "amqp:connection:framing-error": BROKEN,
    "amqp:connection:redirect": BROKEN,
    "amqp:decode-error": REFUSED,
    "amqp:frame-size-too-small": REFUSED,
    "amqp:internal-error": TROUBLE,
    "amqp:invalid-field": REFUSED,
    "amqp:link:detach-forced": BROKEN,
    "amqp:link:redirect": BROKEN,
    "amqp:link:stolen": BROKEN,
    "amqp:link:transfer-limit-exceeded": BROKEN,
    "amqp:not-found": NOT_FOUND,
    "amqp:resource-deleted": NOT_FOUND,
    "amqp:resource-limit-exceeded": FULL,
    "amqp:session:errant-link": BROKEN,
    "amqp:session:handle-in-use": BROKEN,
    "amqp:session:unattached-handle": BROKEN,
    "amqp:session:window-violation": BROKEN,
    "amqp:socket-error": UNREACHABLE,
    "amqp:unauthorized-access": FORBIDDEN,
    "com.microsoft:argument-error": REFUSED,
    "com.microsoft:argument-out-of-range": REFUSED,
    "com.microsoft:auth-failed": FORBIDDEN,
    "com.microsoft:container-close": BROKEN,
    "com.microsoft:entity-already-exists": EXISTS,
    "com.microsoft:entity-disabled": DISABLED,
    "com.microsoft:message-lock-lost": MESSAGE_LOST,
    "com.microsoft:message-not-found": GONE,
    "com.microsoft:operation-cancelled": BROKEN,
    "com.microsoft:server-busy": BUSY,
    "com.microsoft:session-cannot-be-locked": LOCKED,
    "com.microsoft:session-lock-lost": SESSION_LOST,
    "com.microsoft:session-not-found": GONE,
    "com.microsoft:store-lock-lost": SESSION_LOST,
    "com.microsoft:timeout": SLOW,
}
"""By the condition of an AMQP error or of a management response."""

CLASSES: Final[Mapping[str, Row]] = {
    # azure.servicebus.exceptions
    "AutoLockRenewFailed": MESSAGE_LOST,
    "AutoLockRenewTimeout": MESSAGE_LOST,
    "MessageAlreadySettled": SETTLED,
    "MessageLockLostError": MESSAGE_LOST,
    "MessageNotFoundError": GONE,
    "MessagingEntityAlreadyExistsError": EXISTS,
    "MessagingEntityDisabledError": DISABLED,
    "MessagingEntityNotFoundError": NOT_FOUND,
    "OperationTimeoutError": SLOW,
    "ServiceBusAuthenticationError": CREDENTIALS,
    "ServiceBusAuthorizationError": FORBIDDEN,
    "ServiceBusCommunicationError": UNREACHABLE,
    "ServiceBusConnectionError": BROKEN,
    "ServiceBusQuotaExceededError": FULL,
    "ServiceBusServerBusyError": BUSY,
    "SessionCannotBeLockedError": LOCKED,
    "SessionLockLostError": SESSION_LOST,
    # Its AMQP engine, whose errors come through in places.
    "AuthenticationException": CREDENTIALS,
    "TokenExpired": EXPIRED,
    "AMQPConnectionError": UNREACHABLE,
    "AMQPSessionError": BROKEN,
    "MessageSettlementUnconfirmed": SLOW,
    # azure-core and azure-identity
    "ClientAuthenticationError": CREDENTIALS,
    "CredentialUnavailableError": NO_IDENTITY,
    "ResourceExistsError": EXISTS,
    "ResourceNotFoundError": NOT_FOUND,
    "ServiceRequestTimeoutError": SLOW,
    "ServiceResponseTimeoutError": SLOW,
    "ServiceRequestError": UNREACHABLE,
    "ServiceResponseError": UNREACHABLE,
    "IncompleteReadError": UNREACHABLE,
    # aiohttp and Python
    "ClientError": UNREACHABLE,
    "FileNotFoundError": NO_FILE,  # the SDK lets it through for the file of `verify` only
    "TimeoutError": SLOW,
    "OSError": UNREACHABLE,
    "EOFError": BROKEN,
    "ValueError": REFUSED,
    "TypeError": REFUSED,
    "error": REFUSED,  # struct.error: a number that does not fit its AMQP type
}
"""By class, found along the error's bases: the names of the SDK, azure-core, aiohttp and Python do not clash here."""

CONNECTION_CLASSES: Final = frozenset({"ServiceBusCommunicationError", "AMQPConnectionError"})
"""Of these the condition says less: ``amqp:not-found`` of a connection is about the namespace."""

HTTP: Final[Mapping[int, Row]] = {
    400: REFUSED,
    401: CREDENTIALS,
    403: FORBIDDEN,
    404: NOT_FOUND,
    408: SLOW,
    409: EXISTS,
    410: NOT_FOUND,
    429: BUSY,
}
"""By status of an HTTP response, or of a management response without a condition."""

TEXTS: Final[tuple[tuple[re.Pattern[str], Row], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), row)
    for pattern, row in (
        (r"session ?id was not set|set the message's session id", NO_SESSION_ID),
        (r"does not require sessions|sessionful message receiver cannot", WITHOUT_SESSIONS),
        (r"requires? sessions|non-sessionful", WITH_SESSIONS),
    )
)
"""What ``amqp:not-allowed`` may mean; looked for in this order."""
