"""What the errors of SQS, its SDK and the HTTP client below mean to a caller: one table each.

Codes are those of both protocols: the JSON protocol's ``QueueDoesNotExist`` and the query protocol's
``AWS.SimpleQueueService.NonExistentQueue`` are one row. Sources:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and the pages of the
single actions.

Texts never show credentials. What SQS says about a refused signature is not quoted at all: it repeats the
signed request, session token included. See :func:`safe_cause`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import attrs

from queue_runtime.errors import (
    AuthenticationFailed,
    BatchTooLarge,
    ConfigurationError,
    ConnectionFailed,
    InvalidReceipt,
    LockLost,
    MessageTooLarge,
    OperationTimeout,
    PermissionDenied,
    ProviderError,
    QueueError,
    QueueNotFound,
    Throttled,
    Unsupported,
    ValidationError,
)
from queue_runtime.secret import MASK
from queue_runtime.text import escape, scrub

from ..http_headers import seconds_to_wait

__all__ = ["Call", "from_botocore", "from_entry", "safe_cause"]

_MAX_TEXT: Final = 1_024


@final
@attrs.frozen(kw_only=True)
class Call:
    """What was asked for, for the texts.

    Args:
        operation: As SQS calls it, such as ``SendMessageBatch``.
        queue: The queue's name; empty for calls that have none.
        size: Bytes of the message or batch that was sent; 0: not known, or nothing was.
        count: Entries of the batch; 0: no batch.
    """

    operation: str = ""
    queue: str = ""
    size: int = 0
    count: int = 0

    def __str__(self) -> str:
        return " on ".join(filter(None, (self.operation or "SQS", self.queue)))


_NO_CALL: Final = Call()


@final
@attrs.frozen
class _Row:
    """What a code means.

    Args:
        error: The class; its constructor takes a text and ``retry_after``.
        cure: What to do.
        quoted: Whether what SQS says is repeated.
        retry_after: Seconds to wait if the response does not say.
    """

    error: Callable[..., QueueError]
    cure: str
    quoted: bool = True
    retry_after: float | None = None


_NOT_FOUND: Final = _Row(
    QueueNotFound,
    "check the name, the region and the account; queue-runtime provision creates queues",
)
_FORBIDDEN: Final = _Row(
    PermissionDenied, "allow the action on the queue in the policies of the identity and the queue"
)
_KEY_FORBIDDEN: Final = _Row(
    PermissionDenied, "allow the use of the KMS key that the queue is encrypted with"
)
_KEY_UNUSABLE: Final = _Row(
    ConfigurationError, "repair or replace the KMS key that the queue is encrypted with"
)
_CREDENTIALS: Final = _Row(
    AuthenticationFailed,
    "check the access key, its secret and the session token, or the profile or role they come from",
    quoted=False,
)
_EXPIRED: Final = _Row(
    AuthenticationFailed,
    "renew the temporary credentials, or use a profile or role that the SDK renews itself",
    quoted=False,
)
_CLOCK: Final = _Row(AuthenticationFailed, "set this machine's clock", quoted=False)
_SLOWER: Final = _Row(Throttled, "fewer calls per second, or a higher quota")
_MINUTE: Final = _Row(Throttled, "try again after a minute", retry_after=60.0)
_TROUBLE: Final = _Row(ConnectionFailed, "SQS is in trouble; try again")
_SLOW: Final = _Row(OperationTimeout, "whether it took effect is unknown; try again")
_RECEIPT: Final = _Row(
    InvalidReceipt,
    "the delivery was settled before, or its visibility timeout is over; nothing changed",
)
_REFUSED: Final = _Row(ValidationError, "SQS does not take this value")
_WRONG_REGION: Final = _Row(
    ConfigurationError, "use the region, endpoint_url and account that the queue belongs to"
)

_TABLE: Final[Mapping[str, _Row]] = {
    "AccessDenied": _FORBIDDEN,
    "AuthFailure": _CREDENTIALS,
    "AuthorizationError": _FORBIDDEN,
    "BandwidthLimitExceeded": _SLOWER,
    "BatchEntryIdsNotDistinct": _REFUSED,
    "BatchRequestTooLong": _Row(
        ValidationError,
        "the endpoint takes less than max_message_bytes in one batch; emulators often take 262144: "
        "set max_message_bytes",
    ),
    "EmptyBatchRequest": _REFUSED,
    "ExpiredToken": _EXPIRED,
    "IDPRejectedClaim": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "InternalError": _TROUBLE,
    "InternalFailure": _TROUBLE,
    "InternalServerError": _TROUBLE,
    "InternalService": _TROUBLE,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidAddress": _WRONG_REGION,
    "InvalidAttributeName": _REFUSED,
    "InvalidAttributeValue": _REFUSED,
    "InvalidBatchEntryId": _REFUSED,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidIdFormat": _RECEIPT,
    "InvalidIdentityToken": _CREDENTIALS,
    "InvalidMessageContents": _REFUSED,
    "InvalidParameterCombination": _REFUSED,
    "InvalidParameterValue": _REFUSED,
    "InvalidQueryParameter": _REFUSED,
    "InvalidSecurity": _Row(
        AuthenticationFailed, "use an https endpoint and let the SDK sign requests", quoted=False
    ),
    "InvalidSignature": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "KmsAccessDenied": _KEY_FORBIDDEN,
    "KmsDisabled": _KEY_UNUSABLE,
    "KmsInvalidKeyUsage": _KEY_UNUSABLE,
    "KmsInvalidState": _KEY_UNUSABLE,
    "KmsNotFound": _KEY_UNUSABLE,
    "KmsOptInRequired": _KEY_FORBIDDEN,
    "KmsThrottled": _SLOWER,
    "KmsThrottling": _SLOWER,
    "LimitExceeded": _SLOWER,
    "MalformedQueryString": _REFUSED,
    "MessageNotInflight": _RECEIPT,
    "MissingAuthenticationToken": _CREDENTIALS,
    "MissingParameter": _REFUSED,
    "MissingRequiredParameter": _REFUSED,
    "NonExistentQueue": _NOT_FOUND,
    "NotAuthorized": _FORBIDDEN,
    "OptInRequired": _FORBIDDEN,
    # 120,000 in flight, 20,000 for FIFO queues of older accounts: it ends as consumers settle.
    "OverLimit": _Row(Throttled, "too many messages are in flight: settle some, then receive more"),
    "PriorRequestNotComplete": _SLOWER,
    "PurgeQueueInProgress": _MINUTE,
    "QueueDeletedRecently": _MINUTE,
    "QueueDoesNotExist": _NOT_FOUND,
    "QueueNameExists": _Row(
        ConfigurationError, "a queue of that name has other attributes: change them, or the name"
    ),
    "ReceiptHandleIsInvalid": _RECEIPT,
    "RequestExpired": _CLOCK,
    "RequestInProgress": _SLOWER,
    "RequestLimitExceeded": _SLOWER,
    "RequestThrottled": _SLOWER,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestTimeout": _SLOW,
    "ResourceNotFound": _NOT_FOUND,
    "ServiceFailure": _TROUBLE,
    "ServiceUnavailable": _TROUBLE,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "SlowDown": _SLOWER,
    "Throttled": _SLOWER,
    "Throttling": _SLOWER,
    "TooManyRequests": _SLOWER,
    "Unavailable": _TROUBLE,
    "UnauthorizedOperation": _FORBIDDEN,
    "UnrecognizedClient": _CREDENTIALS,
    "Validation": _REFUSED,
}
"""By code, without prefix and without ``Exception`` at its end; a trailing ``Error`` is tried without too."""

_ENDINGS: Final = ("Exception", "Fault", "Error")

_RECEIPT_TEXT: Final = re.compile(
    r"receipt ?handle|message does not exist or is not available", re.IGNORECASE
)
_LOCK_TEXT: Final = re.compile(r"total visibilitytimeout", re.IGNORECASE)
_TOO_LONG_TEXT: Final = re.compile(r"must be shorter than (\d{1,10}) bytes", re.IGNORECASE)

_CREDENTIAL_TEXT: Final = re.compile(
    r"\b(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{12,}\b"
    r"|(?<=security-token:)\S+|AWS4-HMAC-SHA256\s.*",
    re.IGNORECASE | re.DOTALL,
)


def from_botocore(error: BaseException, call: Call = _NO_CALL) -> QueueError:
    """What ``error`` means to the caller; to be raised ``from`` :func:`safe_cause` of it.

    Args:
        error: What a call of the SDK raised. One of this package's errors is returned as it is.
        call: What was asked for.

    Returns:
        An error that names the call, what SQS said, its code and a cure. What no table knows becomes
        ``ProviderError`` with the raw code, or ``ConnectionFailed`` and ``Throttled`` by its HTTP status.
    """
    from botocore.exceptions import ClientError

    if isinstance(error, QueueError):
        return error
    if isinstance(error, ClientError):
        return _from_response(error.response, _asked(error, call))
    return _from_sdk(error, call)


def from_entry(entry: Mapping[str, Any], call: Call = _NO_CALL) -> QueueError:
    """What an element of ``Failed`` in a batch's answer means for that entry.

    Args:
        entry: With ``Code``, ``SenderFault`` and, usually, ``Message``.
        call: What was asked for; ``size`` is that of the entry.
    """
    code = _text_of(entry.get("Code")) or "Unknown"
    text = _text_of(entry.get("Message"))
    known = _from_code(code, text, None, call)
    if known is not None:
        return known
    return ProviderError(
        _words(call, text), code=escape(code), transient=entry.get("SenderFault") is False
    )


def safe_cause(error: BaseException) -> BaseException | None:
    """What an error may be raised ``from``: ``error``, or ``None`` when its text may hold credentials.

    A traceback prints the text of the cause too, whatever the error raised from it says.
    """
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        row = _row(_text_of(_part(response, "Error").get("Code")))
        if row is not None and not row.quoted:
            return None
    text = str(error)
    return error if _masked(text) == text else None


# --- responses -----------------------------------------------------------------------------------------


def _asked(error: Any, call: Call) -> Call:
    # Credentials are fetched on the way: a failed AssumeRole is not a failure of the call itself.
    return attrs.evolve(call, operation=_text_of(error.operation_name) or call.operation)


def _from_response(response: Mapping[str, Any], call: Call) -> QueueError:
    said = _part(response, "Error")
    metadata = _part(response, "ResponseMetadata")
    code = _text_of(said.get("Code")) or "Unknown"
    text = _text_of(said.get("Message"))
    retry_after = seconds_to_wait(_text_of(_part(metadata, "HTTPHeaders").get("retry-after")))
    known = _from_code(code, text, retry_after, call)
    if known is not None:
        return known
    status = metadata.get("HTTPStatusCode")
    words = f"{_words(call, text)} (code {escape(code)}, HTTP status {status})"
    if status == 429 or (status == 503 and retry_after is not None):
        return Throttled(f"{words}: {_SLOWER.cure}", retry_after=retry_after)
    if isinstance(status, int) and 500 <= status < 600:
        return ConnectionFailed(f"{words}: {_TROUBLE.cure}", retry_after=retry_after)
    return ProviderError(_words(call, text), code=escape(code), retry_after=retry_after)


def _from_code(code: str, text: str, retry_after: float | None, call: Call) -> QueueError | None:
    name = _normal(code)
    if name == "UnsupportedOperation":
        return Unsupported(call.operation or "this operation", "sqs", _clean(text))
    if name == "TooManyEntriesInBatchRequest" and call.count:
        return BatchTooLarge(call.count, 10)
    too_long = _TOO_LONG_TEXT.search(text)
    if too_long and call.size:
        return MessageTooLarge(call.size, int(too_long[1]))
    row = _row(code)
    if row is None:
        return None
    if row is _REFUSED:
        if _LOCK_TEXT.search(text):
            return LockLost(
                f"{call}: {_clean(text)} (code {code}): a message can be held for 12 hours in all"
            )
        if _RECEIPT_TEXT.search(text):
            row = _RECEIPT
    words = _words(call, text) if row.quoted else f"{call}: refused"
    return _make(row, f"{words} (code {escape(code)}): {row.cure}", retry_after)


def _make(row: _Row, text: str, retry_after: float | None) -> QueueError:
    error = row.error(text)
    error.retry_after = row.retry_after if retry_after is None else retry_after
    return error


def _row(code: str) -> _Row | None:
    name = _normal(code)
    for candidate in (name, *map(name.removesuffix, _ENDINGS)):
        if candidate in _TABLE:
            return _TABLE[candidate]
    return None


def _normal(code: str) -> str:
    name = code.rpartition("#")[2].removeprefix("AWS.SimpleQueueService.")
    return f"Kms{name[4:]}" if name.startswith("KMS.") else name


# --- the SDK and the HTTP client -----------------------------------------------------------------------

_NO_CREDENTIALS: Final = _Row(
    AuthenticationFailed,
    "give access_key_id and secret_access_key, a profile, or run where a role is attached",
)
_NOT_FETCHED: Final = _Row(
    AuthenticationFailed,
    "check what the credentials come from: the profile, its command, sign-in session or role",
    quoted=False,  # it may hold the output of a command that prints credentials
)
_SETTINGS: Final = _Row(
    ConfigurationError, "check region, profile, endpoint_url and the SDK's configuration files"
)
_UNREACHABLE: Final = _Row(
    ConnectionFailed, "check the network and, if set, endpoint_url; try again"
)
_CERTIFICATE: Final = _Row(
    ConfigurationError,
    "the endpoint's certificate is not trusted for its name: check endpoint_url, or name the authority's "
    "file in AWS_CA_BUNDLE",
)

_SDK_TABLE: Final[Mapping[str, _Row]] = {
    "BaseEndpointResolverError": _SETTINGS,
    "ConfigNotFound": _SETTINGS,
    "ConfigParseError": _SETTINGS,
    "ConnectTimeoutError": _UNREACHABLE,
    "ConnectionError": _UNREACHABLE,
    "CredentialRetrievalError": _NOT_FETCHED,
    "DataNotFoundError": _SETTINGS,
    "EndpointProviderError": _SETTINGS,
    "HTTPClientError": _UNREACHABLE,
    "IncompleteReadError": _UNREACHABLE,
    "InvalidConfigError": _SETTINGS,
    "InvalidDefaultsMode": _SETTINGS,
    "InvalidEndpointConfigurationError": _SETTINGS,
    "InvalidHostLabelError": _SETTINGS,
    "InvalidIMDSEndpointError": _SETTINGS,
    "InvalidIMDSEndpointModeError": _SETTINGS,
    "InvalidProxiesConfigError": _SETTINGS,
    "InvalidRegionError": _SETTINGS,
    "InvalidRetryConfigurationError": _SETTINGS,
    "LoginError": _NOT_FETCHED,
    "MetadataRetrievalError": _NOT_FETCHED,
    "MissingDependencyException": _SETTINGS,
    "NoAuthTokenError": _NO_CREDENTIALS,
    "NoCredentialsError": _NO_CREDENTIALS,
    "ParamValidationError": _REFUSED,
    "PartialCredentialsError": _NO_CREDENTIALS,
    "ProfileNotFound": _SETTINGS,
    "ReadTimeoutError": _SLOW,
    "RefreshWithMFAUnsupportedError": _NOT_FETCHED,
    "ResponseParserError": _UNREACHABLE,
    "SSLError": _UNREACHABLE,
    "SSOError": _NOT_FETCHED,
    "TokenRetrievalError": _NOT_FETCHED,
    "UnknownCredentialError": _NO_CREDENTIALS,
    "UnknownRegionError": _SETTINGS,
    "UnknownTokenProviderError": _SETTINGS,
    # What may come through from below the SDK, while an answer is read.
    "ClientError": _UNREACHABLE,  # of aiohttp
    "TimeoutError": _SLOW,
    "OSError": _UNREACHABLE,
}
"""By class, found along the error's bases: the names of botocore, aiohttp and Python do not clash here."""

_CERTIFICATE_TEXT: Final = re.compile(r"certificate[_ ]verify|hostname mismatch", re.IGNORECASE)


def _from_sdk(error: BaseException, call: Call) -> QueueError:
    text = str(error)
    for base in type(error).__mro__:
        if base.__name__ not in _SDK_TABLE:
            continue
        row = _SDK_TABLE[base.__name__]
        if row is _UNREACHABLE and _CERTIFICATE_TEXT.search(text):
            row = _CERTIFICATE
        words = f"{call}: {type(error).__name__}"
        if row.quoted and text:
            words = f"{words}: {_clean(text)}"
        return _make(row, f"{words}: {row.cure}", None)
    return ProviderError(_words(call, text), code=type(error).__name__)


# --- texts ---------------------------------------------------------------------------------------------


def _words(call: Call, text: str) -> str:
    return f"{call}: {_clean(text) or 'refused without a word'}"


def _clean(text: str) -> str:
    return escape(_masked(text), _MAX_TEXT)


def _masked(text: str) -> str:
    return _CREDENTIAL_TEXT.sub(MASK, scrub(text))


def _part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested mapping of a response; empty when the response is not as it should be."""
    value = mapping.get(name)
    return value if isinstance(value, Mapping) else {}


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""
