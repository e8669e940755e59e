"""What is raised for an error of Service Bus, its SDK or azure-core: found in the table of :mod:`.meanings`.

The condition, which is the broker's own word, goes before the class that the SDK made of it, but for what the
SDK says of connections. Texts never show credentials; see :func:`safe_cause`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, final
from xml.sax.saxutils import unescape

import attrs

from queue_runtime.errors import (
    MessageTooLarge,
    ProviderError,
    QueueError,
    Unsupported,
    ValidationError,
)
from queue_runtime.secret import MASK
from queue_runtime.text import escape, scrub

from ..http_headers import MAX_RETRY_AFTER, seconds_to_wait
from .meanings import (
    BROKEN,
    BUSY,
    CERTIFICATE,
    CLASSES,
    CONDITIONS,
    CONNECTION_CLASSES,
    CONNECTIONS,
    CREDENTIALS,
    ENDED,
    EXPIRED,
    FORBIDDEN,
    FULL,
    HTTP,
    NO_CERTIFICATES,
    NO_IDENTITY,
    NO_MANAGER,
    NOT_FOUND,
    OTHER_QUEUE,
    SLOW,
    TEXTS,
    TROUBLE,
    UNREACHABLE,
    Row,
)

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
_NO_CERTIFICATES_TEXT: Final = re.compile(r"\[X509\b|\[Errno 21\]")
"""Of a file of authorities that cannot be read, and of a folder in its place; handshakes are ``[SSL``."""

_CONNECTIONS_TEXT: Final = re.compile(
    r"(?:number of|concurrent|open) (?:\w+ )*(?:connections|handles|links|receivers|sessions)",
    re.IGNORECASE,
)
_CLOSED_TEXT: Final = re.compile(
    r"already been shutdown|'NoneType' object has no attribute|handler is not initialized|"
    r"the handler is closed",  # uvloop's words for writing to a connection that was reset
    re.IGNORECASE,
)
_SOCKET_TEXT: Final = re.compile(
    r"^Error condition: ErrorCondition\.SocketError\s+Error Description: "
)
"""What the SDK puts before the words of the operating system; it says nothing to people."""

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
    r"|(?<=\bBearer )\s*\S+"
    r"|(?<=\bsig=)[^&\s;]+",
    re.IGNORECASE,
)
_JSON_TEXT: Final = re.compile(
    r"""((["'])\w*(?:secret|token|password|key|signature|assertion)\2\s*:\s*)(["']).*?(?:\3|$)""",
    re.IGNORECASE | re.DOTALL,
)
"""A pair of JSON, or of Python, such as an answer about tokens that somebody quotes."""


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
    if condition and names.isdisjoint(CONNECTION_CLASSES):
        known = _known_condition(condition, _said(error), call)
        if known is not None:
            return known
    if "Refused" in names and not condition and (known := _by_status(error, call)) is not None:
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
    row = CONDITIONS.get(condition)
    if condition in ("amqp:not-allowed", "com.microsoft:argument-error"):
        row = next((meant for pattern, meant in TEXTS if pattern.search(text)), row)
    if row is None:
        return None
    return _make(row, f"{_words(call, text)} ({escape(condition)})", text)


def _make(row: Row, words: str, text: str) -> QueueError:
    """An error of ``row``, after a look at the text for what conditions and classes do not tell apart."""
    if row is FULL and _CONNECTIONS_TEXT.search(text):
        row = CONNECTIONS
    elif row is FORBIDDEN and _EXPIRED_TEXT.search(text):
        row = EXPIRED
    elif row is FORBIDDEN and _AUTH_TEXT.search(text):
        row = CREDENTIALS
    elif row is BROKEN and "Code: RenewToken" in text:
        row = ENDED
    elif row in (UNREACHABLE, BROKEN) and _CERTIFICATE_TEXT.search(text):
        row = CERTIFICATE
    elif row in (UNREACHABLE, BROKEN) and _NO_CERTIFICATES_TEXT.search(text):
        row = NO_CERTIFICATES
    error = row.error(f"{words}: {row.cure}")
    if row is BUSY:
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


def _by_class(error: BaseException, text: str) -> Row | None:
    if _CLOSED_TEXT.search(text):
        return BROKEN  # what the SDK trips over when a link closes under its hands
    if isinstance(error, ValueError) and "EntityPath" in text:
        return OTHER_QUEUE
    for base in type(error).__mro__:
        if base.__name__ in CLASSES:
            return CLASSES[base.__name__]
    return None


def _by_status(error: Any, call: Call) -> QueueError | None:
    """A management response that says no more than a status."""
    row = HTTP.get(error.status) or (TROUBLE if error.status >= 500 else None)
    said = _said(error)
    return row and _make(row, f"{_words(call, said)} (status {error.status})", said)


def _from_authentication(error: BaseException, call: Call) -> QueueError:
    """A token was refused. Service Bus also says so that there is no such queue, or that it is busy."""
    text = str(error)
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        found = _STATUS_TEXT.search(text)
        status = None if found is None else int(found[1])
    row = HTTP.get(status or 401, CREDENTIALS)
    if row not in (NOT_FOUND, BUSY, SLOW, FORBIDDEN):
        row = TROUBLE if status is not None and status >= 500 else CREDENTIALS
    if row is CREDENTIALS and (_EXPIRED_TEXT.search(text) or "TokenExpired" in _names(error)):
        row = EXPIRED
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
        row = CREDENTIALS
        if detail is not None and _EXPIRED_TEXT.search(text):
            row = EXPIRED
        elif detail is not None and _CLAIM_TEXT.search(text):
            row = NO_MANAGER
        elif "CredentialUnavailableError" in names or _NOBODY_TEXT.search(text):
            row = NO_IDENTITY
        elif isinstance(status, int) and (status == 429 or status >= 500):
            row = BUSY if status == 429 else TROUBLE
    elif isinstance(status, int):
        row = HTTP.get(status)
        if status == 503 and retry_after is not None:
            row = BUSY
        elif status >= 500:
            row = TROUBLE
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
    return escape(_SOCKET_TEXT.sub("", _masked(text).strip()), _MAX_TEXT)


def _masked(text: str) -> str:
    return _JSON_TEXT.sub(rf"\1{MASK}", _CREDENTIAL_TEXT.sub(MASK, scrub(text)))
