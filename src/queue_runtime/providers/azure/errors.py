"""What the errors of Service Bus, its SDK and azure-core mean to a caller: one table by condition, one by class.

The condition, which is the broker's own word, goes before the class that the SDK made of it, but for what the
SDK says of connections. Sources: the SDK's ``exceptions`` and
https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-troubleshoot.

Classes are told by name, so nothing of the SDK is imported here. Texts never show credentials; see
:func:`safe_cause`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, final
from xml.sax.saxutils import unescape

import attrs

from queue_runtime.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    OperationTimeout,
    PermissionDenied,
    ProviderError,
    QueueError,
    QueueFull,
    QueueNotFound,
    SessionLocked,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.secret import MASK
from queue_runtime.text import escape, scrub

from ..http_headers import MAX_RETRY_AFTER, seconds_to_wait

__all__ = ["Call", "from_azure", "from_condition", "safe_cause"]

_MAX_TEXT: Final = 1_024
_MAX_CHAIN: Final = 8


@final
@attrs.frozen(kw_only=True)
class Call:
    """What was asked for, for the texts.

    Args:
        operation: In a word or two, such as ``send`` or ``accept session``.
        queue: The queue's name; empty for calls that have none.
        size: Bytes of the message or batch that was sent; 0: not known, or nothing was.
        limit: The largest size that is accepted; 0: not known.
    """

    operation: str = ""
    queue: str = ""
    size: int = 0
    limit: int = 0

    def __str__(self) -> str:
        return " on ".join(filter(None, (self.operation or "Service Bus", self.queue)))


_NO_CALL: Final = Call()


@final
@attrs.frozen
class _Row:
    """What a condition or a class means.

    Args:
        error: The class; its constructor takes a text.
        cure: What to do.
    """

    error: Callable[..., QueueError]
    cure: str


_NOT_FOUND: Final = _Row(
    QueueNotFound,
    "check the name and the namespace; sending and receiving create no queue, queue-runtime provision does",
)
_FORBIDDEN: Final = _Row(
    PermissionDenied,
    "give the identity a role such as Azure Service Bus Data Sender or Data Receiver, "
    "or the shared access policy the claim Send or Listen",
)
_NO_MANAGER: Final = _Row(
    PermissionDenied,
    "give the identity the role Azure Service Bus Data Owner, or the shared access policy the claim Manage",
)
_CREDENTIALS: Final = _Row(
    AuthenticationFailed,
    "check the connection string's key, or tenant_id, client_id and client_secret, "
    "or the identity that tokens are asked for",
)
_EXPIRED: Final = _Row(
    AuthenticationFailed,
    "renew the token: a shared access signature ends by itself, a key or an identity does not; "
    "check this machine's clock too",
)
_NO_IDENTITY: Final = _Row(
    AuthenticationFailed,
    "there is no such identity here: assign one to this machine, name one that is assigned in client_id, "
    "or say in auth where tokens come from",
)
_ENDED: Final = _Row(
    ConnectionFailed,
    "the token was not renewed in time: check that tokens can be had, and this machine's clock; try again",
)
_DISABLED: Final = _Row(
    ConfigurationError, "enable the queue: it is disabled for sending, for receiving or for both"
)
_EXISTS: Final = _Row(ConfigurationError, "a queue of that name is there already")
_BUSY: Final = _Row(
    Throttled, "fewer calls per second, or more messaging units of the Premium tier"
)
_FULL: Final = _Row(QueueFull, "receive what is in it, or make it larger")
_CONNECTIONS: Final = _Row(
    Throttled, "open fewer senders, receivers and sessions at once: each has a connection"
)
_MESSAGE_LOST: Final = _Row(LockLost, "the message will be delivered again; nothing changed")
_SESSION_LOST: Final = _Row(LockLost, "accept the session again; nothing changed")
_LOCKED: Final = _Row(SessionLocked, "wait until its holder releases it or its lock expires")
_SETTLED: Final = _Row(InvalidReceipt, "the delivery was settled before; nothing changed")
_GONE: Final = _Row(InvalidReceipt, "it is not there, or no longer; nothing changed")
_SLOW: Final = _Row(OperationTimeout, "whether it took effect is unknown; try again")
_BROKEN: Final = _Row(ConnectionFailed, "try again on a new connection")
_TROUBLE: Final = _Row(ConnectionFailed, "Service Bus is in trouble; try again")
_UNREACHABLE: Final = _Row(
    ConnectionFailed,
    "check the namespace's name, the network and, if set, custom_endpoint or administration_endpoint; try again",
)
_CERTIFICATE: Final = _Row(
    ConfigurationError,
    "the endpoint's certificate is not trusted for its name: check namespace and custom_endpoint, "
    "or name the authority's file in verify",
)
_NO_FILE: Final = _Row(ConfigurationError, "check the path in verify")
_REFUSED: Final = _Row(ValidationError, "Service Bus does not take this value")
_WITH_SESSIONS: Final = _Row(
    ConfigurationError, "the queue requires sessions: open the provider with sessions=true"
)
_WITHOUT_SESSIONS: Final = _Row(
    ConfigurationError,
    "the queue has no sessions: open the provider with sessions=false, or create a queue that requires "
    "sessions, which an existing one cannot be made to",
)
_NO_SESSION_ID: Final = _Row(
    ValidationError, "the queue requires sessions: give the message a session_id"
)
_OTHER_QUEUE: Final = _Row(
    ConfigurationError, "the connection string's EntityPath names another queue: open that one"
)

_CONDITIONS: Final[Mapping[str, _Row]] = {
    "amqp:connection:forced": _BROKEN,
    "amqp:connection:framing-error": _BROKEN,
    "amqp:connection:redirect": _BROKEN,
    "amqp:decode-error": _REFUSED,
    "amqp:frame-size-too-small": _REFUSED,
    "amqp:internal-error": _TROUBLE,
    "amqp:invalid-field": _REFUSED,
    "amqp:link:detach-forced": _BROKEN,
    "amqp:link:redirect": _BROKEN,
    "amqp:link:stolen": _BROKEN,
    "amqp:link:transfer-limit-exceeded": _BROKEN,
    "amqp:not-found": _NOT_FOUND,
    "amqp:resource-deleted": _NOT_FOUND,
    "amqp:resource-limit-exceeded": _FULL,
    "amqp:session:errant-link": _BROKEN,
    "amqp:session:handle-in-use": _BROKEN,
    "amqp:session:unattached-handle": _BROKEN,
    "amqp:session:window-violation": _BROKEN,
    "amqp:socket-error": _UNREACHABLE,
    "amqp:unauthorized-access": _FORBIDDEN,
    "com.microsoft:argument-error": _REFUSED,
    "com.microsoft:argument-out-of-range": _REFUSED,
    "com.microsoft:auth-failed": _FORBIDDEN,
    "com.microsoft:container-close": _BROKEN,
    "com.microsoft:entity-already-exists": _EXISTS,
    "com.microsoft:entity-disabled": _DISABLED,
    "com.microsoft:message-lock-lost": _MESSAGE_LOST,
    "com.microsoft:message-not-found": _GONE,
    "com.microsoft:operation-cancelled": _BROKEN,
    "com.microsoft:server-busy": _BUSY,
    "com.microsoft:session-cannot-be-locked": _LOCKED,
    "com.microsoft:session-lock-lost": _SESSION_LOST,
    "com.microsoft:session-not-found": _GONE,
    "com.microsoft:store-lock-lost": _SESSION_LOST,
    "com.microsoft:timeout": _SLOW,
}
"""By the condition of an AMQP error or of a management response."""

_CLASSES: Final[Mapping[str, _Row]] = {
    # azure.servicebus.exceptions
    "AutoLockRenewFailed": _MESSAGE_LOST,
    "AutoLockRenewTimeout": _MESSAGE_LOST,
    "MessageAlreadySettled": _SETTLED,
    "MessageLockLostError": _MESSAGE_LOST,
    "MessageNotFoundError": _GONE,
    "MessagingEntityAlreadyExistsError": _EXISTS,
    "MessagingEntityDisabledError": _DISABLED,
    "MessagingEntityNotFoundError": _NOT_FOUND,
    "OperationTimeoutError": _SLOW,
    "ServiceBusAuthenticationError": _CREDENTIALS,
    "ServiceBusAuthorizationError": _FORBIDDEN,
    "ServiceBusCommunicationError": _UNREACHABLE,
    "ServiceBusConnectionError": _BROKEN,
    "ServiceBusQuotaExceededError": _FULL,
    "ServiceBusServerBusyError": _BUSY,
    "SessionCannotBeLockedError": _LOCKED,
    "SessionLockLostError": _SESSION_LOST,
    # Its AMQP engine, whose errors come through in places.
    "AuthenticationException": _CREDENTIALS,
    "TokenExpired": _EXPIRED,
    "AMQPConnectionError": _UNREACHABLE,
    "AMQPSessionError": _BROKEN,
    "MessageSettlementUnconfirmed": _SLOW,
    # azure-core and azure-identity
    "ClientAuthenticationError": _CREDENTIALS,
    "CredentialUnavailableError": _NO_IDENTITY,
    "ResourceExistsError": _EXISTS,
    "ResourceNotFoundError": _NOT_FOUND,
    "ServiceRequestTimeoutError": _SLOW,
    "ServiceResponseTimeoutError": _SLOW,
    "ServiceRequestError": _UNREACHABLE,
    "ServiceResponseError": _UNREACHABLE,
    "IncompleteReadError": _UNREACHABLE,
    # aiohttp and Python
    "ClientError": _UNREACHABLE,
    "FileNotFoundError": _NO_FILE,  # the SDK lets it through for the file of `verify` only
    "TimeoutError": _SLOW,
    "OSError": _UNREACHABLE,
    "EOFError": _BROKEN,
    "ValueError": _REFUSED,
    "TypeError": _REFUSED,
    "error": _REFUSED,  # struct.error: a number that does not fit its AMQP type
}
"""By class, found along the error's bases: the names of the SDK, azure-core, aiohttp and Python do not clash here."""

_CONNECTION_CLASSES: Final = frozenset({"ServiceBusCommunicationError", "AMQPConnectionError"})
"""Of these the condition says less: ``amqp:not-found`` of a connection is about the namespace."""

_HTTP: Final[Mapping[int, _Row]] = {
    400: _REFUSED,
    401: _CREDENTIALS,
    403: _FORBIDDEN,
    404: _NOT_FOUND,
    408: _SLOW,
    409: _EXISTS,
    410: _NOT_FOUND,
    429: _BUSY,
}
"""By status of an HTTP response, or of a management response without a condition."""

_TEXTS: Final[tuple[tuple[re.Pattern[str], _Row], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), row)
    for pattern, row in (
        (r"session ?id was not set|set the message's session id", _NO_SESSION_ID),
        (r"does not require sessions|sessionful message receiver cannot", _WITHOUT_SESSIONS),
        (r"requires? sessions|non-sessionful", _WITH_SESSIONS),
    )
)
"""What ``amqp:not-allowed`` may mean; looked for in this order."""

_AUTH_TEXT: Final = re.compile(
    r"invalid ?signature|invalid ?(?:token|issuer|audience)|malformed ?token|token has an invalid",
    re.IGNORECASE,
)
_CLAIM_TEXT: Final = re.compile(
    r"claims? (?:(?:is|are) )?(?:empty|required)|unauthorized access for|authorization failed",
    re.IGNORECASE,
)
"""What the administration endpoint says, with status 401, of credentials that are good but for something else."""
_DETAIL_TEXT: Final = re.compile(r"<Detail>(.*?)</Detail>", re.DOTALL)
_EXPIRED_TEXT: Final = re.compile(r"expired ?token|token (?:is|has|was) expired", re.IGNORECASE)
_NOBODY_TEXT: Final = re.compile(
    r"failed to retrieve a token from the included credentials", re.IGNORECASE
)
"""What a chain of credentials says when it is at its end."""

_CERTIFICATE_TEXT: Final = re.compile(
    r"certificate[_ ]verify|hostname mismatch|self[- ]signed certificate", re.IGNORECASE
)
_CONNECTIONS_TEXT: Final = re.compile(
    r"(?:number of|concurrent|open) (?:\w+ )*(?:connections|handles|links|receivers|sessions)",
    re.IGNORECASE,
)
_CLOSED_TEXT: Final = re.compile(
    r"already been shutdown|'NoneType' object has no attribute|handler is not initialized|"
    r"the handler is closed",  # uvloop's words for writing to a connection that was reset
    re.IGNORECASE,
)
_WAIT_TEXT: Final = re.compile(r"wait (?:for )?(\d{1,6}(?:\.\d{1,6})?) ?s", re.IGNORECASE)
_SIZES_TEXT: Final = (
    re.compile(r"(?:size:\s*|has )(\d{1,12}) bytes", re.IGNORECASE),
    re.compile(r"(?:limit:? \(?|takes |size limit: )(\d{1,12})(?: bytes)?", re.IGNORECASE),
)
_CONDITION_TEXT: Final = re.compile(r"Error condition: ((?:amqp|com\.microsoft):[a-z:-]+)")
_STATUS_TEXT: Final = re.compile(r"status[ -]code: (\d{3})\b", re.IGNORECASE)
_CREDENTIAL_TEXT: Final = re.compile(
    r"(?<=SharedAccessSignature )\S+"
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*"
    r"|(?<=\bBearer )\S+"
    r"|(?<=\bsig=)[^&\s;]+",
    re.IGNORECASE,
)


def from_azure(error: BaseException, call: Call = _NO_CALL) -> QueueError:
    """What ``error`` means to the caller; to be raised ``from`` :func:`safe_cause` of it.

    Args:
        error: What a call of the SDK raised. One of this package's errors is returned as it is.
        call: What was asked for.

    Returns:
        An error that names the call, what was said, the condition if there is one, and a cure. What no table
        knows becomes ``ProviderError`` with the raw condition, HTTP code or class.
    """
    if isinstance(error, QueueError):
        return error
    names = _names(error)
    inner = _inner(error)
    condition = _condition(error)
    if inner is not None and (
        _wraps(error, condition) or "AuthenticationException" in _names(inner)
    ):
        # The SDK shows the refusal of a token as a lost connection where there is a custom endpoint, and
        # leaves out what was said about it everywhere.
        return from_azure(inner, call)
    if "AuthenticationException" in names or "ServiceBusAuthenticationError" in names:
        return _from_authentication(error, call)
    if "HttpResponseError" in names:
        return _from_http(error, names, call)
    text = str(error)
    if condition and names.isdisjoint(_CONNECTION_CLASSES):
        known = _known_condition(condition, _said(error), call)
        if known is not None:
            return known
    if "MessageSizeExceededError" in names:  # of a batch, by the SDK itself
        return _too_large(text, call)
    row = _by_class(error, text)
    if row is not None:
        words = f"{call}: {type(error).__name__}"
        return _make(row, f"{words}: {_clean(text)}" if text else words, text)
    return ProviderError(
        _words(call, text),
        code=escape(condition or type(error).__name__),
        transient=bool(condition and getattr(error, "_retryable", False)),
    )


def from_condition(condition: str, text: str, call: Call = _NO_CALL) -> QueueError:
    """What an AMQP error condition means, such as that of a rejected outcome or a management response.

    Args:
        condition: Such as ``com.microsoft:message-lock-lost``.
        text: What the broker says about it.
        call: What was asked for.
    """
    known = _known_condition(condition, text, call)
    return known or ProviderError(_words(call, text), code=escape(condition or "unknown"))


def safe_cause(error: BaseException) -> BaseException | None:
    """What an error may be raised ``from``: ``error``, or ``None`` when its text may hold credentials.

    A traceback prints the texts of an error and of all that led to it, whatever the error raised from it says.
    """
    return error if all(_masked(text) == text for text in map(str, _chain(error))) else None


# --- conditions ----------------------------------------------------------------------------------------


def _known_condition(condition: str, text: str, call: Call) -> QueueError | None:
    if condition == "amqp:not-implemented":
        return Unsupported(call.operation or "this operation", "azure", _clean(text))
    if condition == "amqp:link:message-size-exceeded":
        return _too_large(text, call)
    row = _CONDITIONS.get(condition)
    if condition in ("amqp:not-allowed", "com.microsoft:argument-error"):
        row = next((meant for pattern, meant in _TEXTS if pattern.search(text)), row)
    if row is None:
        return None
    return _make(row, f"{_words(call, text)} ({escape(condition)})", text)


def _make(row: _Row, words: str, text: str) -> QueueError:
    """An error of ``row``, after a look at the text for what conditions and classes do not tell apart."""
    if row is _FULL and _CONNECTIONS_TEXT.search(text):
        row = _CONNECTIONS
    elif row is _FORBIDDEN and _EXPIRED_TEXT.search(text):
        row = _EXPIRED
    elif row is _FORBIDDEN and _AUTH_TEXT.search(text):
        row = _CREDENTIALS
    elif row is _BROKEN and "Code: RenewToken" in text:
        row = _ENDED
    elif row in (_UNREACHABLE, _BROKEN) and _CERTIFICATE_TEXT.search(text):
        row = _CERTIFICATE
    error = row.error(f"{words}: {row.cure}")
    if row is _BUSY:
        wait = _WAIT_TEXT.search(text)
        error.retry_after = None if wait is None else min(float(wait[1]), MAX_RETRY_AFTER)
    return error


def _too_large(text: str, call: Call) -> QueueError:
    size, limit = (
        int(found[1]) if (found := pattern.search(text)) else known
        for pattern, known in zip(_SIZES_TEXT, (call.size, call.limit), strict=True)
    )
    if size and limit:
        return MessageTooLarge(size, limit)
    return ValidationError(
        f"{_words(call, text)}: send a smaller body, or store it elsewhere and send a reference"
    )


# --- classes -------------------------------------------------------------------------------------------


def _names(error: BaseException) -> frozenset[str]:
    return frozenset(base.__name__ for base in type(error).__mro__)


def _inner(error: BaseException) -> BaseException | None:
    inner = getattr(error, "inner_exception", None)
    return inner if isinstance(inner, BaseException) and inner is not error else None


def _wraps(error: BaseException, condition: str) -> bool:
    """Whether the SDK only wrapped what it did not expect: an error of a credential or of the system."""
    return type(error).__name__ == "ServiceBusError" and not condition


def _condition(error: BaseException) -> str:
    for attribute in ("_condition", "condition"):
        value = getattr(error, attribute, None)
        if isinstance(value, bytes):  # an ErrorCondition is one too, and prints as something else
            return bytes.decode(value, errors="replace")
        if isinstance(value, str):
            return str(value)
    found = _CONDITION_TEXT.search(str(error))
    return "" if found is None else found[1]


def _said(error: BaseException) -> str:
    """What the broker said, without what the SDK puts behind it."""
    description = getattr(error, "description", None)
    if isinstance(description, bytes):
        return description.decode(errors="replace")
    if isinstance(description, str):
        return description
    return str(error).partition(" Error condition: ")[0]


def _by_class(error: BaseException, text: str) -> _Row | None:
    if _CLOSED_TEXT.search(text):
        return _BROKEN  # what the SDK trips over when a link closes under its hands
    if isinstance(error, ValueError) and "EntityPath" in text:
        return _OTHER_QUEUE
    for base in type(error).__mro__:
        if base.__name__ in _CLASSES:
            return _CLASSES[base.__name__]
    return None


def _from_authentication(error: BaseException, call: Call) -> QueueError:
    """A token was refused. Service Bus also says so that there is no such queue, or that it is busy."""
    text = str(error)
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        found = _STATUS_TEXT.search(text)
        status = None if found is None else int(found[1])
    row = _HTTP.get(status or 401, _CREDENTIALS)
    if row not in (_NOT_FOUND, _BUSY, _SLOW, _FORBIDDEN):
        row = _TROUBLE if status is not None and status >= 500 else _CREDENTIALS
    if row is _CREDENTIALS and (_EXPIRED_TEXT.search(text) or "TokenExpired" in _names(error)):
        row = _EXPIRED
    return _make(row, _words(call, text), text)


def _from_http(error: Any, names: frozenset[str], call: Call) -> QueueError:
    """An error of the administration client, or of a credential that asked for a token."""
    status = getattr(error, "status_code", None)
    detail = _DETAIL_TEXT.search(str(error))
    text = unescape(detail[1]) if detail else str(getattr(error, "message", None) or error)
    code = getattr(getattr(error, "error", None), "code", None)
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    retry_after = seconds_to_wait(
        str(headers.get("Retry-After") or headers.get("retry-after") or "")
    )
    words = _words(call, text) + (f" (HTTP status {status})" if isinstance(status, int) else "")
    row = None
    if "ClientAuthenticationError" in names:
        # Whatever the status: one of the token's issuer is not one of Service Bus, but for that it is in trouble.
        row = _CREDENTIALS
        if detail is not None and _EXPIRED_TEXT.search(text):
            row = _EXPIRED
        elif detail is not None and _CLAIM_TEXT.search(text):
            row = _NO_MANAGER
        elif "CredentialUnavailableError" in names or _NOBODY_TEXT.search(text):
            row = _NO_IDENTITY
        elif isinstance(status, int) and (status == 429 or status >= 500):
            row = _BUSY if status == 429 else _TROUBLE
    elif isinstance(status, int):
        row = _HTTP.get(status)
        if status == 503 and retry_after is not None:
            row = _BUSY
        elif status >= 500:
            row = _TROUBLE
    row = row or _by_class(error, text)
    if row is None:
        return ProviderError(words, code=escape(str(code or status or type(error).__name__)))
    made = _make(row, words, text)
    if retry_after is not None:
        made.retry_after = retry_after
    return made


# --- texts ---------------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that its traceback would show with it; more than a few are not looked at."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MAX_CHAIN:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [next_ for next_ in (one.__cause__, one.__context__) if next_ is not None]


def _words(call: Call, text: str) -> str:
    return f"{call}: {_clean(text) or 'refused without a word'}"


def _clean(text: str) -> str:
    return escape(_masked(text).strip(), _MAX_TEXT)


def _masked(text: str) -> str:
    return _CREDENTIAL_TEXT.sub(MASK, scrub(text))
