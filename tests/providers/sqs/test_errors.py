"""What each error of SQS, the SDK and the client below becomes; nothing secret in any text."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

pytest.importorskip("botocore", reason="pip install 'queue-runtime[sqs]'")

import aiohttp
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

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
from queue_runtime.providers.sqs.errors import Call, from_botocore, from_entry, safe_cause

CALL = Call(operation="SendMessageBatch", queue="orders.fifo", size=300_000, count=11)
CANARY = "canary7Zq"
URL = f"https://user:{CANARY}@sqs.eu-central-1.amazonaws.com/"


def refusal(
    code: str,
    text: str = "what SQS says",
    *,
    status: Any = 400,
    operation: str = "SendMessageBatch",
    **headers: str,
) -> sdk.ClientError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return sdk.ClientError(
        {
            "Error": {"Code": code, "Message": text},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": named},
        },
        operation,
    )


# --- codes ---------------------------------------------------------------------------------------------

CODES: list[tuple[type[QueueError], str]] = [
    (
        QueueNotFound,
        "AWS.SimpleQueueService.NonExistentQueue QueueDoesNotExist ResourceNotFoundException",
    ),
    (QueueNotFound, "com.amazonaws.sqs#QueueDoesNotExist"),
    (
        PermissionDenied,
        "AccessDenied AccessDeniedException AuthorizationError UnauthorizedOperation",
    ),
    (PermissionDenied, "KmsAccessDenied KMS.AccessDeniedException OptInRequired KMS.OptInRequired"),
    (ConfigurationError, "KmsDisabled KMS.DisabledException KmsNotFound KMS.NotFoundException"),
    (ConfigurationError, "KmsInvalidState KMS.InvalidStateException KMS.InvalidKeyUsageException"),
    (ConfigurationError, "InvalidAddress QueueNameExists AWS.SimpleQueueService.QueueNameExists"),
    (
        AuthenticationFailed,
        "InvalidClientTokenId UnrecognizedClientException SignatureDoesNotMatch",
    ),
    (
        AuthenticationFailed,
        "ExpiredToken ExpiredTokenException InvalidSecurity IncompleteSignature",
    ),
    (AuthenticationFailed, "MissingAuthenticationToken InvalidSignatureException RequestExpired"),
    (
        Throttled,
        "RequestThrottled ThrottlingException Throttling KmsThrottled KMS.ThrottlingException",
    ),
    (Throttled, "OverLimit TooManyRequestsException RequestLimitExceeded SlowDown"),
    (Throttled, "AWS.SimpleQueueService.PurgeQueueInProgress QueueDeletedRecently"),
    (
        ConnectionFailed,
        "ServiceUnavailable ServiceUnavailableException InternalError InternalFailure",
    ),
    (ConnectionFailed, "InternalServerError InternalServiceError com.amazon.coral#InternalFailure"),
    (OperationTimeout, "RequestTimeout RequestTimeoutException"),
    (
        InvalidReceipt,
        "ReceiptHandleIsInvalid MessageNotInflight AWS.SimpleQueueService.MessageNotInflight",
    ),
    (InvalidReceipt, "InvalidIdFormat"),
    (
        ValidationError,
        "InvalidMessageContents InvalidParameterValue InvalidAttributeName MissingParameter",
    ),
    (
        ValidationError,
        "AWS.SimpleQueueService.EmptyBatchRequest BatchEntryIdsNotDistinct ValidationException",
    ),
    (
        ValidationError,
        "AWS.SimpleQueueService.BatchRequestTooLong InvalidBatchEntryId ValidationError",
    ),
    (
        BatchTooLarge,
        "AWS.SimpleQueueService.TooManyEntriesInBatchRequest TooManyEntriesInBatchRequest",
    ),
    (Unsupported, "AWS.SimpleQueueService.UnsupportedOperation UnsupportedOperation"),
]


@pytest.mark.parametrize(
    ("expected", "code"), [(expected, code) for expected, codes in CODES for code in codes.split()]
)
def test_codes(expected: type[QueueError], code: str) -> None:
    whole = from_botocore(refusal(code), CALL)
    entry = from_entry({"Id": "0", "Code": code, "SenderFault": True, "Message": "no"}, CALL)
    assert type(whole) is type(entry) is expected
    if expected not in {BatchTooLarge, Unsupported}:
        assert code in str(whole)
        assert "SendMessageBatch on orders.fifo" in str(whole)


def test_texts_say_what_happened_and_what_to_do() -> None:
    error = from_botocore(refusal("QueueDoesNotExist", "The specified queue does not exist."), CALL)
    assert str(error) == (
        "SendMessageBatch on orders.fifo: The specified queue does not exist. (code QueueDoesNotExist): "
        "check the name, the region and the account; queue-runtime provision creates queues"
    )
    assert "SQS: refused without a word" in str(
        from_botocore(refusal("OverLimit", "", operation=""))
    )


def test_errors_with_values() -> None:
    too_many = from_botocore(refusal("TooManyEntriesInBatchRequest"), CALL)
    assert isinstance(too_many, BatchTooLarge)
    assert (too_many.count, too_many.limit) == (11, 10)
    text = "One or more parameters are invalid. Reason: Message must be shorter than 262144 bytes."
    too_long = from_entry({"Code": "InvalidParameterValue", "Message": text}, CALL)
    assert isinstance(too_long, MessageTooLarge)
    assert (too_long.size, too_long.limit) == (300_000, 262_144)
    unknown_size = from_botocore(refusal("InvalidParameterValue", text), Call(count=0))
    assert type(unknown_size) is ValidationError
    assert type(from_botocore(refusal("TooManyEntriesInBatchRequest"), Call())) is ProviderError
    unsupported = from_botocore(refusal("UnsupportedOperation", "not on FIFO"), Call())
    assert isinstance(unsupported, Unsupported)
    assert str(unsupported) == "sqs does not support SendMessageBatch: not on FIFO"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Value x for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
            InvalidReceipt,
        ),
        (
            "Reason: Message does not exist or is not available for visibility timeout change.",
            InvalidReceipt,
        ),
        (
            "Reason: Total VisibilityTimeout for the message is beyond the limit [43200 seconds].",
            LockLost,
        ),
        ("Value 901 for parameter DelaySeconds is invalid.", ValidationError),
    ],
)
def test_parameters_that_are_refused(text: str, expected: type[QueueError]) -> None:
    assert type(from_botocore(refusal("InvalidParameterValue", text), CALL)) is expected


def test_another_operation_on_the_way_is_named() -> None:
    error = from_botocore(refusal("AccessDenied", operation="AssumeRole"), CALL)
    assert str(error).startswith("AssumeRole on orders.fifo")


# --- unknown codes, HTTP statuses, broken answers --------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {}, Throttled),
        (503, {"retry_after": "3"}, Throttled),
        (503, {}, ConnectionFailed),
        (500, {}, ConnectionFailed),
        (599, {}, ConnectionFailed),
        (400, {}, ProviderError),
        (None, {}, ProviderError),
    ],
)
def test_statuses_of_unknown_codes(
    status: int | None, headers: dict[str, str], expected: type[QueueError]
) -> None:
    error = from_botocore(refusal("Novelty", status=status, **headers), CALL)
    assert type(error) is expected
    assert "Novelty" in str(error)
    assert error.is_transient is (expected is not ProviderError)


def test_unknown_codes_are_kept() -> None:
    error = from_botocore(refusal("No\nvelty", "why\x1b[31m"), CALL)
    assert isinstance(error, ProviderError)
    assert error.code == "No\\nvelty"
    assert str(error) == "SendMessageBatch on orders.fifo: why\\x1b[31m (code No\\nvelty)"


@pytest.mark.parametrize(
    ("sender_fault", "transient"), [(True, False), (False, True), (None, False)]
)
def test_unknown_codes_of_entries(sender_fault: bool | None, transient: bool) -> None:
    entry = {"Id": "0", "Code": "Novelty", "SenderFault": sender_fault}
    error = from_entry(entry, CALL)
    assert isinstance(error, ProviderError)
    assert (error.code, error.is_transient) == ("Novelty", transient)
    assert from_entry({}).args == ("SQS: refused without a word (code Unknown)",)


@pytest.mark.parametrize(
    "response", [{}, {"Error": {}}, {"Error": {"Code": 503}, "ResponseMetadata": {}}]
)
def test_broken_answers(response: dict[str, Any]) -> None:
    error = from_botocore(sdk.ClientError(response, "ReceiveMessage"))
    assert isinstance(error, ProviderError)
    assert error.code == "Unknown"
    broken = sdk.ClientError({}, "ReceiveMessage")
    broken.response = {"Error": "text", "ResponseMetadata": None}
    assert isinstance(from_botocore(broken), ProviderError)


# --- when to come back ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7.0), ("soon", None), ("", None)],
)
def test_retry_after(text: str, expected: float | None) -> None:
    for code in ("RequestThrottled", "ServiceUnavailable", "Novelty"):
        assert from_botocore(refusal(code, retry_after=text)).retry_after == expected


def test_some_codes_know_how_long() -> None:
    assert from_botocore(refusal("PurgeQueueInProgress")).retry_after == 60.0
    assert from_botocore(refusal("PurgeQueueInProgress", retry_after="5")).retry_after == 5.0


# --- the SDK and below -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sdk.EndpointConnectionError(endpoint_url=URL), ConnectionFailed),
        (sdk.ConnectionClosedError(endpoint_url=URL), ConnectionFailed),
        (sdk.ConnectTimeoutError(endpoint_url=URL), ConnectionFailed),
        (sdk.ReadTimeoutError(endpoint_url=URL), OperationTimeout),
        (sdk.ProxyConnectionError(proxy_url=URL), ConnectionFailed),
        (sdk.HTTPClientError(error="reset"), ConnectionFailed),
        (sdk.ResponseStreamingError(error="cut"), ConnectionFailed),
        (sdk.IncompleteReadError(actual_bytes=1, expected_bytes=2), ConnectionFailed),
        (sdk.SSLError(endpoint_url=URL, error="[SSL] handshake failure"), ConnectionFailed),
        (sdk.SSLError(endpoint_url=URL, error="CERTIFICATE_VERIFY_FAILED"), ConfigurationError),
        (sdk.SSLError(endpoint_url=URL, error="Hostname mismatch"), ConfigurationError),
        (sdk.NoCredentialsError(), AuthenticationFailed),
        (sdk.PartialCredentialsError(provider="explicit", cred_var="secret"), AuthenticationFailed),
        (sdk.CredentialRetrievalError(provider="process", error_msg=CANARY), AuthenticationFailed),
        (sdk.TokenRetrievalError(provider="sso", error_msg=CANARY), AuthenticationFailed),
        (sdk.UnauthorizedSSOTokenError(), AuthenticationFailed),
        (sdk.MetadataRetrievalError(error_msg=CANARY), AuthenticationFailed),
        (sdk.ProfileNotFound(profile="nobody"), ConfigurationError),
        (sdk.NoRegionError(), ConfigurationError),
        (sdk.InvalidRegionError(region_name="a b"), ConfigurationError),
        (sdk.UnknownEndpointError(service_name="sqs", region_name="x"), ConfigurationError),
        (sdk.EndpointResolutionError(msg="no rule"), ConfigurationError),
        (sdk.ConfigParseError(path="config"), ConfigurationError),
        (sdk.InfiniteLoopConfigError(source_profile="a", visited_profiles="a"), ConfigurationError),
        (sdk.ParamValidationError(report="too many"), ValidationError),
        (ResponseParserError("not JSON"), ConnectionFailed),
        (aiohttp.ClientPayloadError("cut"), ConnectionFailed),
        (aiohttp.ServerDisconnectedError(), ConnectionFailed),
        (ConnectionResetError(104, "reset"), ConnectionFailed),
        (TimeoutError(), OperationTimeout),
        (sdk.BotoCoreError(), ProviderError),
        (KeyError("x"), ProviderError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_errors_of_the_sdk(error: Exception, expected: type[QueueError]) -> None:
    mapped = from_botocore(error, CALL)
    assert type(mapped) is expected
    assert str(mapped).startswith("SendMessageBatch on orders.fifo: ")
    assert CANARY not in str(mapped)
    if isinstance(mapped, ProviderError):
        assert mapped.code == type(error).__name__
    else:
        assert type(error).__name__ in str(mapped)


def test_our_own_errors_pass() -> None:
    error = Throttled("enough")
    assert from_botocore(error, CALL) is error


# --- secrets -------------------------------------------------------------------------------------------

SIGNED = (
    "The request signature we calculated does not match. The Canonical String for this request should have "
    f"been 'POST\n/\n\nhost:sqs\nx-amz-security-token:{CANARY}\n\nhost' with key AKIA{CANARY.upper()}ABCD"
)


@pytest.mark.parametrize(
    "error",
    [
        refusal("SignatureDoesNotMatch", SIGNED),
        refusal("Novelty", SIGNED),
        refusal(
            "AccessDenied",
            f"'AWS4-HMAC-SHA256 Credential=AKIA{CANARY}/x, Signature={CANARY}' is bad",
        ),
        refusal("AccessDenied", f"User AKIA{CANARY.upper()}0000 may not"),
        refusal("InvalidParameterValue", f"not valid: secret={CANARY}"),
        sdk.EndpointConnectionError(endpoint_url=URL),
        sdk.ProxyConnectionError(proxy_url=URL),
    ],
)
def test_no_text_shows_credentials(error: Exception) -> None:
    mapped = from_botocore(error, CALL)
    assert CANARY.lower() not in str(mapped).lower()
    assert safe_cause(error) is None
    with pytest.raises(QueueError) as raised:
        raise mapped from safe_cause(error)
    assert CANARY.lower() not in "".join(traceback.format_exception(raised.value)).lower()


def test_a_harmless_cause_is_kept() -> None:
    for error in (refusal("QueueDoesNotExist"), refusal("Novelty"), TimeoutError("slow")):
        assert safe_cause(error) is error
    assert safe_cause(refusal("ExpiredToken", "is expired")) is None


def test_long_texts_are_cut() -> None:
    assert len(str(from_botocore(refusal("AccessDenied", "x " * 100_000)))) < 1_500
