"""What each error of Service Bus, its SDK, azure-core and Python becomes; nothing secret in any text."""

from __future__ import annotations

import asyncio
import ssl
import struct
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("azure.servicebus", reason="pip install 'queue-runtime[azure]'")

import aiohttp
from azure.core import exceptions as core
from azure.identity import CredentialUnavailableError
from azure.servicebus import ServiceBusMessage
from azure.servicebus import exceptions as sdk
from azure.servicebus._pyamqp import error as engine
from azure.servicebus._transport._pyamqp_transport import _LOGGER, PyamqpTransport

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
from queue_runtime.providers.azure.api import mapped
from queue_runtime.providers.azure.errors import Call, from_azure, from_condition, safe_cause
from queue_runtime.providers.azure.requests import Refused

CALL = Call(operation="send", queue="jobs", size=300_000, limit=262_144)
CANARY = "canary7Zq"
NO_SESSION_ASKED = (
    "It is not possible for an entity that requires sessions to create a non-sessionful "
    "message receiver. Reference:1, TrackingId:2"
)
NO_SESSIONS_THERE = (
    "A sessionful message receiver cannot be created on an entity that does not require sessions."
)
NO_SESSION_ID = (
    "The SessionId was not set on a message, and it cannot be sent to the entity. Entities "
    "that have session support enabled can only receive messages that have the SessionId set."
)
TOO_LARGE = (
    "The received message (delivery-id:0, size:1048738 bytes) exceeds the limit "
    "(262144 bytes) currently allowed on the link."
)
SAS = f"SharedAccessSignature sr=sb%3a%2f%2fx&sig={CANARY}%3d&se=1893456000&skn=worker"


def of_sdk(error: Exception, *, custom_endpoint: str | None = None) -> BaseException:
    """What the SDK makes of an error of its AMQP engine."""
    made: BaseException = PyamqpTransport.create_servicebus_exception(
        _LOGGER, error, custom_endpoint_address=custom_endpoint
    )
    return made


def of_management(condition: bytes | None, status: int, text: str) -> BaseException:
    """What the SDK raises for a management response."""
    with pytest.raises(sdk.ServiceBusError) as caught:
        PyamqpTransport.handle_amqp_mgmt_error(_LOGGER, "It failed.", condition, text, status)
    return caught.value


# --- conditions ----------------------------------------------------------------------------------------

CONDITIONS: list[tuple[type[QueueError], str]] = [
    (QueueNotFound, "amqp:not-found amqp:resource-deleted"),
    (PermissionDenied, "amqp:unauthorized-access com.microsoft:auth-failed"),
    (ConfigurationError, "com.microsoft:entity-disabled com.microsoft:entity-already-exists"),
    (Throttled, "com.microsoft:server-busy"),
    (QueueFull, "amqp:resource-limit-exceeded"),
    (MessageTooLarge, "amqp:link:message-size-exceeded"),
    (LockLost, "com.microsoft:message-lock-lost com.microsoft:session-lock-lost"),
    (LockLost, "com.microsoft:store-lock-lost"),
    (SessionLocked, "com.microsoft:session-cannot-be-locked"),
    (InvalidReceipt, "com.microsoft:message-not-found com.microsoft:session-not-found"),
    (OperationTimeout, "com.microsoft:timeout"),
    (ConnectionFailed, "amqp:connection:forced amqp:link:detach-forced amqp:internal-error"),
    (ConnectionFailed, "amqp:link:stolen com.microsoft:container-close amqp:socket-error"),
    (ConnectionFailed, "amqp:session:window-violation com.microsoft:operation-cancelled"),
    (ValidationError, "com.microsoft:argument-error com.microsoft:argument-out-of-range"),
    (ValidationError, "amqp:invalid-field amqp:decode-error amqp:frame-size-too-small"),
    (Unsupported, "amqp:not-implemented"),
    (ProviderError, "amqp:not-allowed amqp:resource-locked com.microsoft:precondition-failed"),
]
EACH = [(expected, name) for expected, names in CONDITIONS for name in names.split()]
TRANSIENT = {Throttled, QueueFull, SessionLocked, OperationTimeout, ConnectionFailed}


@pytest.mark.parametrize(("expected", "condition"), EACH)
def test_conditions(expected: type[QueueError], condition: str) -> None:
    error = from_condition(condition, "what the broker says", CALL)
    assert type(error) is expected
    assert error.is_transient is (expected in TRANSIENT)
    if expected not in (MessageTooLarge, Unsupported):
        assert str(error).startswith("send on jobs: what the broker says")
        assert condition in str(error)


@pytest.mark.parametrize(("expected", "condition"), EACH)
def test_conditions_through_the_sdk(expected: type[QueueError], condition: str) -> None:
    link = engine.AMQPLinkError(condition.encode(), description=b"what the broker says")
    for error in (
        link,
        of_sdk(link),
        of_management(condition.encode(), 400, "what the broker says"),
    ):
        made = from_azure(error, CALL)
        assert type(made) is expected
        assert "what the broker says" in str(made) or expected is MessageTooLarge


@pytest.mark.parametrize("condition", list(engine.ErrorCondition))
def test_conditions_as_the_engine_has_them(condition: engine.ErrorCondition) -> None:
    made = from_azure(engine.AMQPException(condition, description="words"), CALL)
    if isinstance(made, ProviderError):
        assert made.code == condition.value.decode()
    else:
        assert "words" in str(made) or isinstance(made, MessageTooLarge)


def test_what_no_table_knows_keeps_its_condition() -> None:
    unknown = engine.AMQPLinkError(b"com.microsoft:brand-new", description="words")
    made = from_azure(of_sdk(unknown), CALL)
    assert isinstance(made, ProviderError)
    assert (made.code, made.is_transient) == ("com.microsoft:brand-new", True)
    refused = engine.AMQPLinkError(b"amqp:not-allowed", description="words")
    made = from_azure(of_sdk(refused), CALL)
    assert isinstance(made, ProviderError)
    assert (made.code, made.is_transient) == ("amqp:not-allowed", False)
    assert str(from_condition("", "words")) == "Service Bus: words (code unknown)"
    assert str(from_condition("x:y", "")) == "Service Bus: refused without a word (code x:y)"


def test_one_of_ours_stays_itself() -> None:
    error = LockLost("gone")
    assert from_azure(error, CALL) is error


# --- what texts tell -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "cure"),
    [
        (
            NO_SESSION_ASKED,
            ConfigurationError,
            "open the provider with sessions=true",
        ),
        (
            NO_SESSIONS_THERE,
            ConfigurationError,
            "open the provider with sessions=false",
        ),
        (
            NO_SESSION_ID,
            ValidationError,
            "give the message a session_id",
        ),
        (
            "The queue requires sessions: set the message's session id.",
            ValidationError,
            "give the message a session_id",
        ),
    ],
)
def test_sessions_where_there_are_none_and_the_reverse(
    text: str, expected: type[QueueError], cure: str
) -> None:
    link = engine.AMQPLinkError(b"amqp:not-allowed", description=text)
    for made in (from_azure(of_sdk(link), CALL), from_condition("amqp:not-allowed", text, CALL)):
        assert type(made) is expected
        assert cure in str(made)
        assert text[:30] in str(made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Please wait 10 seconds and try again.", 10.0),
        ("Error code: 50009. Please wait 2.5 seconds.", 2.5),
        ("Wait for 4 s", 4.0),
        ("Please wait 999999 seconds", 86_400.0),
        ("The namespace is being throttled.", None),
    ],
)
def test_how_long_a_busy_broker_asks_to_wait(text: str, expected: float | None) -> None:
    busy = engine.AMQPLinkError(b"com.microsoft:server-busy", description=text)
    for error in (of_sdk(busy), sdk.ServiceBusServerBusyError(message=text)):
        made = from_azure(error, CALL)
        assert type(made) is Throttled
        assert made.retry_after == expected


@pytest.mark.parametrize(
    ("text", "size", "limit"),
    [
        (
            TOO_LARGE,
            1_048_738,
            262_144,
        ),
        ("The message has 70000 bytes; the queue takes 65536 at most.", 70_000, 65_536),
        ("ServiceBusMessageBatch has reached its size limit: 1000", 300_000, 1_000),
        ("too large", 300_000, 262_144),
    ],
)
def test_messages_that_are_too_large(text: str, size: int, limit: int) -> None:
    too_large = engine.AMQPLinkError(b"amqp:link:message-size-exceeded", description=text)
    for error in (of_sdk(too_large), sdk.MessageSizeExceededError(message=text)):
        made = from_azure(error, CALL)
        assert isinstance(made, MessageTooLarge)
        assert (made.size, made.limit) == (size, limit)


def test_a_message_of_unknown_size() -> None:
    made = from_azure(sdk.MessageSizeExceededError(), Call(operation="send"))
    assert type(made) is ValidationError
    assert "send a smaller body" in str(made)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The maximum entity size has been reached or exceeded for Queue: 'JOBS'.", QueueFull),
        ("The number of allowed connections has been reached.", Throttled),
        ("Number of concurrent receivers exceeded the limit", Throttled),
    ],
)
def test_quotas(text: str, expected: type[QueueError]) -> None:
    full = engine.AMQPLinkError(b"amqp:resource-limit-exceeded", description=text)
    made = from_azure(of_sdk(full), CALL)
    assert type(made) is expected
    assert made.is_transient


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Unauthorized access. 'Listen' claim(s) are required.", PermissionDenied),
        ("InvalidSignature: The token has an invalid signature.", AuthenticationFailed),
        ("ExpiredToken: The token is expired. Expiration time: 2026-01-01.", AuthenticationFailed),
    ],
)
def test_the_two_meanings_of_unauthorised(text: str, expected: type[QueueError]) -> None:
    refused = engine.AMQPLinkError(b"amqp:unauthorized-access", description=text)
    made = from_azure(of_sdk(refused), CALL)
    assert type(made) is expected
    assert text[:20] in str(made)


# --- tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("custom_endpoint", [None, "sb://gate.test:443"])
@pytest.mark.parametrize(
    ("status", "text", "expected", "cure"),
    [
        (401, b"InvalidSignature: wrong key", AuthenticationFailed, "check the connection string"),
        (401, "ExpiredToken: The token is expired", AuthenticationFailed, "renew the token"),
        (403, b"Forbidden", PermissionDenied, "give the identity a role"),
        (404, b"The messaging entity could not be found", QueueNotFound, "check the name"),
        (500, b"oops", ConnectionFailed, "try again"),
        (503, b"oops", ConnectionFailed, "try again"),
        (418, b"oops", AuthenticationFailed, "check the connection string"),
    ],
)
def test_a_refused_token(
    status: int,
    text: bytes | str,
    expected: type[QueueError],
    cure: str,
    custom_endpoint: str | None,
) -> None:
    # The SDK drops this text, and with a custom endpoint calls it a lost connection.
    refused = engine.TokenAuthFailure(status, text)
    for error in (refused, of_sdk(refused, custom_endpoint=custom_endpoint)):
        made = from_azure(error, CALL)
        assert type(made) is expected
        assert (text if isinstance(text, str) else text.decode()) in str(made)
        assert cure in str(made)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ValidationError),
        (401, AuthenticationFailed),
        (404, QueueNotFound),
        (408, OperationTimeout),
        (429, Throttled),
        (500, ConnectionFailed),
        (503, ConnectionFailed),
        (418, ProviderError),
    ],
)
@pytest.mark.parametrize("condition", [None, b""])
def test_a_refusal_that_says_no_more_than_a_status(
    condition: bytes | None, status: int, expected: type[QueueError]
) -> None:
    made = from_azure(Refused(status, condition, b"wait 3 s"), CALL)
    assert type(made) is expected
    assert "send on jobs: " in str(made)
    assert "wait 3 s" in str(made)
    assert made.retry_after == (3.0 if expected is Throttled else None)


def test_a_refused_token_without_particulars() -> None:
    made = from_azure(sdk.ServiceBusAuthenticationError(message="CBS failed."), CALL)
    assert type(made) is AuthenticationFailed
    made = from_azure(sdk.ServiceBusAuthenticationError(message="Status code: 404"), CALL)
    assert type(made) is QueueNotFound
    expired = engine.TokenExpired(b"amqp:client-error", description="too old")
    assert "renew the token" in str(from_azure(of_sdk(expired), CALL))


# --- classes -------------------------------------------------------------------------------------------

CLASSES: list[tuple[type[QueueError], BaseException]] = [
    (AuthenticationFailed, sdk.ServiceBusAuthenticationError()),
    (PermissionDenied, sdk.ServiceBusAuthorizationError()),
    (QueueNotFound, sdk.MessagingEntityNotFoundError()),
    (ConfigurationError, sdk.MessagingEntityDisabledError()),
    (ConfigurationError, sdk.MessagingEntityAlreadyExistsError()),
    (Throttled, sdk.ServiceBusServerBusyError()),
    (QueueFull, sdk.ServiceBusQuotaExceededError()),
    (LockLost, sdk.MessageLockLostError()),
    (LockLost, sdk.SessionLockLostError()),
    (LockLost, sdk.AutoLockRenewFailed("renewing failed")),
    (LockLost, sdk.AutoLockRenewTimeout("renewing took too long")),
    (SessionLocked, sdk.SessionCannotBeLockedError()),
    (InvalidReceipt, sdk.MessageAlreadySettled(action="complete")),
    (InvalidReceipt, sdk.MessageNotFoundError()),
    (OperationTimeout, sdk.OperationTimeoutError()),
    (ConnectionFailed, sdk.ServiceBusConnectionError()),
    (ConnectionFailed, sdk.ServiceBusCommunicationError()),
    (ProviderError, sdk.ServiceBusError("odd")),
    (AuthenticationFailed, core.ClientAuthenticationError("no")),
    (AuthenticationFailed, CredentialUnavailableError("no credential found")),
    (ConnectionFailed, core.ServiceRequestError("Cannot connect")),
    (ConnectionFailed, core.ServiceResponseError("Broken")),
    (OperationTimeout, core.ServiceRequestTimeoutError("slow")),
    (OperationTimeout, core.ServiceResponseTimeoutError("slow")),
    (QueueNotFound, core.ResourceNotFoundError("no such queue")),
    (ConfigurationError, core.ResourceExistsError("there")),
    (ProviderError, core.HttpResponseError("odd")),
    (ConnectionFailed, aiohttp.ClientConnectionError("odd")),
    (OperationTimeout, TimeoutError()),
    (OperationTimeout, asyncio.TimeoutError("slow")),  # noqa: UP041  # as the SDK writes it
    (ConnectionFailed, ConnectionResetError(104, "reset")),
    (ConnectionFailed, OSError("odd")),
    (ConnectionFailed, asyncio.IncompleteReadError(b"", 8)),
    (ConfigurationError, FileNotFoundError(2, "not there", "{'ca_certs': 'x'}")),
    (ConfigurationError, IsADirectoryError(21, "a folder")),
    (ConfigurationError, ssl.SSLCertVerificationError(1, "certificate verify failed")),
    (ValidationError, ValueError("max_wait_time must be greater than 0")),
    (ValidationError, TypeError("wrong type")),
    (ValidationError, struct.error("int too large to convert")),
    (ConnectionFailed, ValueError("The handler has already been shutdown. Please use …")),
    (ConnectionFailed, RuntimeError("unable to perform operation on …; the handler is closed")),
    (ConnectionFailed, AttributeError("'NoneType' object has no attribute 'flow'")),
    (ConnectionFailed, RuntimeError("handler is not initialized and cannot complete the message")),
    (ProviderError, AttributeError("'Link' object has no attribute 'x'")),
    (ProviderError, RuntimeError("odd")),
    (
        ConfigurationError,
        ValueError(
            "The queue name provided does not match the EntityPath in the connection string"
        ),
    ),
    (
        ConnectionFailed,
        engine.AMQPConnectionError(b"amqp:not-found", description="no such namespace"),
    ),
    (ConnectionFailed, engine.AMQPSessionError(b"amqp:odd", description="odd")),
    (
        OperationTimeout,
        engine.MessageSettlementUnconfirmed(b"amqp:odd", description="no outcome came"),
    ),
]


@pytest.mark.parametrize(("expected", "error"), CLASSES, ids=lambda value: type(value).__name__)
def test_classes(expected: type[QueueError], error: BaseException) -> None:
    made = from_azure(error, CALL)
    assert type(made) is expected
    assert str(made).startswith("send on jobs: ")
    if isinstance(made, ProviderError):
        assert made.code == type(error).__name__
        assert not made.is_transient


@pytest.mark.parametrize("name", [n for n in sdk.__dict__ if n.endswith(("Error", "Settled"))])
def test_every_exception_of_the_sdk_is_known(name: str) -> None:
    if name in ("AzureError", "ServiceBusError"):
        return
    made = from_azure(getattr(sdk, name)(), CALL)
    assert not isinstance(made, ProviderError)


def test_what_the_sdk_wraps_is_looked_at() -> None:
    inner = core.ClientAuthenticationError("AADSTS7000215: Invalid client secret provided.")
    made = from_azure(of_sdk(inner), CALL)
    assert type(made) is AuthenticationFailed
    assert "AADSTS7000215" in str(made)
    assert type(from_azure(of_sdk(ConnectionResetError("reset")), CALL)) is ConnectionFailed
    assert type(from_azure(of_sdk(struct.error("range")), CALL)) is ValidationError


def test_a_link_that_ended_with_its_token() -> None:
    """The words are those of Service Bus: https://github.com/Azure/azure-sdk-for-python/issues/23487."""
    said = (
        "The link 'x' is force detached. Code: RenewToken. Details: Unauthorized access. "
        "'Listen' claim(s) are required to perform this operation. Resource: 'sb://orders/jobs'."
    )
    made = from_azure(engine.AMQPLinkError(b"amqp:link:detach-forced", description=said), CALL)
    assert type(made) is ConnectionFailed
    assert "the token was not renewed in time" in str(made)


def test_nobody_who_gives_a_token_is_told_from_a_refusal() -> None:
    nobody = CredentialUnavailableError("no response from the IMDS endpoint")
    chain = core.ClientAuthenticationError(
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\n…"
    )
    for error in (nobody, chain):
        assert "there is no such identity here" in str(from_azure(error, CALL))
    assert "no such identity" not in str(from_azure(core.ClientAuthenticationError("no"), CALL))


@pytest.mark.parametrize(("status", "expected"), [(503, ConnectionFailed), (429, Throttled)])
def test_trouble_of_who_gives_tokens_is_over_some_time(
    status: int, expected: type[QueueError]
) -> None:
    error = core.ClientAuthenticationError("AADSTS90033: A transient error has occurred.")
    error.status_code = status
    made = from_azure(error, CALL)
    assert type(made) is expected
    assert made.is_transient


def test_a_failed_connection_says_why() -> None:
    for text, expected, cure in (
        ("[Errno -2] Name or service not known", ConnectionFailed, "check the namespace's name"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local",
            ConfigurationError,
            "name the authority's file in verify",
        ),
        (
            "[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found",
            ConfigurationError,
            "name a file in verify that holds",
        ),
    ):
        failed = engine.AMQPConnectionError(
            engine.ErrorCondition.SocketError, description=f"Failed to initiate: {text}"
        )
        for error in (failed, of_sdk(failed)):
            made = from_azure(error, CALL)
            assert type(made) is expected
            assert cure in str(made)
            assert text in str(made)
            assert "Error condition" not in str(made)  # the SDK's own, over two lines


def test_a_time_out_that_lost_its_condition() -> None:
    made = from_azure(
        sdk.OperationTimeoutError(message="x. Error condition: com.microsoft:timeout.")
    )
    assert type(made) is OperationTimeout
    assert str(made).startswith("Service Bus: x. (com.microsoft:timeout)")


def test_errors_of_the_sdk_itself() -> None:
    with pytest.raises(ValueError, match="session_id cannot be longer") as caught:
        ServiceBusMessage(b"", session_id="x" * 129)
    assert type(from_azure(caught.value, CALL)) is ValidationError


# --- the administration client -------------------------------------------------------------------------


def response(status: int, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(status_code=status, reason="why", headers=named, text=lambda: "")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ValidationError),
        (401, AuthenticationFailed),
        (403, PermissionDenied),
        (404, QueueNotFound),
        (408, OperationTimeout),
        (409, ConfigurationError),
        (410, QueueNotFound),
        (429, Throttled),
        (500, ConnectionFailed),
        (503, ConnectionFailed),
        (418, ProviderError),
    ],
)
def test_http_statuses(status: int, expected: type[QueueError]) -> None:
    made = from_azure(core.HttpResponseError("words", response=response(status)), CALL)
    assert type(made) is expected
    assert f"words (HTTP status {status})" in str(made)
    if isinstance(made, ProviderError):
        assert made.code == "418"


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("Manage,EntityRead claims required for this operation. TrackingId:1", PermissionDenied),
        ("claim is empty or token is invalid. TrackingId:1", PermissionDenied),
        ("SubCode=40100: Unauthorized : Unauthorized access for 'GetQueue'", PermissionDenied),
        ("InvalidSignature: The token has an invalid signature.", AuthenticationFailed),
        ("ExpiredToken: the token expired &lt; 5 s ago.", AuthenticationFailed),
        ("MalformedToken: what was that?", AuthenticationFailed),
    ],
)
def test_what_the_administration_endpoint_says(detail: str, expected: type[QueueError]) -> None:
    body = f"<Error><Code>401</Code><Detail>{detail}</Detail></Error>"
    answer = response(401)
    answer.text = lambda: body
    made = from_azure(core.ClientAuthenticationError(response=answer), CALL)
    assert type(made) is expected
    assert detail.replace("&lt;", "<") in str(made)
    assert ("Manage" in str(made)) == (expected is PermissionDenied)
    assert ("renew the token" in str(made)) == ("Expired" in detail)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7.0), ("soon", None), ("", None)],
)
def test_when_to_come_again(header: str, expected: float | None) -> None:
    error = core.HttpResponseError("words", response=response(429, Retry_After=header))
    made = from_azure(error, CALL)
    assert (type(made), made.retry_after) == (Throttled, expected)


# --- secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"refused {SAS}",
        f"Endpoint=sb://x/;SharedAccessKeyName=a;SharedAccessKey={CANARY}=",
        f"Authorization: Bearer {CANARY}",
        f"Bearer  {CANARY}",
        f'unexpected answer: {{"token_type": "Bearer", "access_token":"{CANARY}"}}',
        f"posted {{'client_id': 'a', 'client_secret': '{CANARY} with spaces'}}",
        f'cut off: {{"SharedAccessKey" : "{CANARY}',
        f"token eyJ0eXAi.eyJ{CANARY}.sig",
        f"https://login.test/?client_secret={CANARY}",
        f"amqps://user:{CANARY}@host",
    ],
)
def test_nothing_secret_is_shown(text: str) -> None:
    for error in (
        ValueError(text),
        core.ClientAuthenticationError(text),
        engine.AMQPLinkError(b"amqp:odd", description=text),
        of_sdk(engine.AMQPLinkError(b"com.microsoft:timeout", description=text)),
        of_sdk(engine.TokenAuthFailure(401, text)),
        of_sdk(ConnectionResetError(text)),
    ):
        made = from_azure(error, CALL)
        assert CANARY not in str(made)
        assert safe_cause(error) is None or CANARY not in "".join(traceback.format_exception(error))


def test_a_cause_without_secrets_is_kept() -> None:
    error = sdk.ServiceBusConnectionError(message="The link was detached.")
    assert safe_cause(error) is error


def test_an_error_of_ours_keeps_its_cause() -> None:
    cause = ValueError("why")
    with pytest.raises(ConfigurationError) as caught, mapped("the credential"):
        raise ConfigurationError("auth is default: why") from cause
    assert caught.value.__cause__ is cause


def test_the_whole_chain_is_looked_at() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise ValueError(f"SharedAccessKey={CANARY}")
        except ValueError as error:
            raise RuntimeError("harmless") from error
    assert safe_cause(caught.value) is None
    loop = RuntimeError("harmless")
    other = RuntimeError("harmless too")
    loop.__context__, other.__context__ = other, loop
    assert safe_cause(loop) is loop


def test_texts_are_on_one_line_and_cut() -> None:
    text = str(
        from_azure(engine.AMQPLinkError(b"amqp:odd", description="a\n\x1b[31m" + "x" * 9_999))
    )
    assert text.isprintable()
    assert len(text) < 1_200
