"""What an ``azure://`` URL says, as a frozen value; queue names as Service Bus takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, final
from urllib.parse import unquote, urlsplit

import attrs

from queue_runtime.config import split_url, structure_options
from queue_runtime.config.structuring import shown
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.secret import Secret

from ..option_checks import (
    LOOPBACK,
    Validator,
    creates_nothing,
    matching,
    seconds,
    secret,
    some_text,
    whole,
)
from .connection_string import HOST, LABEL, QUEUE, ConnectionString, parse_connection_string

__all__ = [
    "DOMAIN",
    "EMULATOR_ADMINISTRATION_PORT",
    "MAX_LOCK_DURATION",
    "MAX_MESSAGE_BYTES",
    "STANDARD_MESSAGE_BYTES",
    "AuthMode",
    "AzureConfig",
    "azure_config_from_url",
]

AuthMode: TypeAlias = Literal["connection_string", "default", "managed_identity", "client_secret"]
"""Where tokens come from; see :attr:`AzureConfig.auth`."""

DOMAIN: Final = "servicebus.windows.net"
"""Completes the name of a namespace that is given without a domain. Sovereign clouds have others."""

STANDARD_MESSAGE_BYTES: Final = 262_144
"""Largest message of the Basic and Standard tiers, in bytes.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas
"""

MAX_MESSAGE_BYTES: Final = 104_857_600
"""Largest message that a Premium queue can be made to take, in bytes (100 MiB)."""

MAX_LOCK_DURATION: Final = 300.0
"""Longest lock a queue can have, in seconds."""

EMULATOR_ADMINISTRATION_PORT: Final = 5_300
"""Where Microsoft's emulator is administered unless told otherwise.

https://github.com/Azure/azure-service-bus-emulator-installer#choosing-the-right-connection-string
"""

_NAMESPACE: Final = re.compile(rf"{HOST.pattern}|\[::1\]")
"""A host's name, or an emulator's address that is none."""

_AUTHORITY: Final = re.compile(rf"(?:https://)?{LABEL}(?:\.{LABEL})*(?::[0-9]{{1,5}})?/?")
_GUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")  # as azure-identity checks it

# --- checks --------------------------------------------------------------------------------------------


def _check_connection_string(
    instance: object, attribute: attrs.Attribute[Any], value: Secret | None
) -> None:
    secret(instance, attribute, value)
    if value is not None:
        parse_connection_string(value.reveal())


def _endpoint_of(*schemes: str) -> Validator:
    """Accept an address of one of these schemes and nothing more, or ``None``. Shows nothing of the value."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None:
            return
        forms = " or ".join(f"{scheme}://host[:port]" for scheme in reversed(schemes))
        expected = f"{attribute.name} must be {forms}, and nothing more"
        if not isinstance(value, str):
            raise ValidationError(expected)
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise ValidationError(expected) from None
        if (
            parts.scheme not in schemes
            or not (HOST.fullmatch(parts.hostname or "") or parts.hostname == "::1")
            or any((parts.path, parts.query, parts.fragment, "@" in parts.netloc))
        ):
            raise ValidationError(expected)

    return check


# --- the configuration ---------------------------------------------------------------------------------


def _from_connection_string(pick: Callable[[ConnectionString], str | None]) -> Any:
    """A default taken from ``connection_string``, where that can be read: its validator tells when not."""

    def default(config: AzureConfig) -> str | None:
        try:
            said = config.said
            return None if said is None else pick(said)
        except (ValidationError, AttributeError):
            return None

    return attrs.Factory(default, takes_self=True)


def _auth_of(config: AzureConfig) -> AuthMode:
    if config.connection_string is not None:
        return "connection_string"
    if config.client_secret is not None:
        return "client_secret"
    # A client id beside a tenant's is a workload identity's, which the chain finds.
    alone = config.client_id is not None and config.tenant_id is None
    return "managed_identity" if alone else "default"


@final
@attrs.frozen(kw_only=True)
class AzureConfig:
    """One namespace of Service Bus, or one queue of it: ``azure://namespace[/queue][?option=value&…]``.

    Args:
        connection_string: Of the namespace or of one queue, with a shared access key or signature.
            ``UseDevelopmentEmulator=true`` in it means AMQP without TLS.
        namespace: With or without its domain. By default as ``connection_string`` says.
        queue: The only queue to use; ``None``: whichever is opened. By default as ``connection_string`` says.
        tenant_id: Directory of the application.
        client_id: Application; user-assigned managed identity where there is no client secret.
        client_secret: The application's secret.
        authority: Host of the Microsoft Entra endpoint that applications get tokens from, such as
            ``login.microsoftonline.us``; ``None``: ``AZURE_AUTHORITY_HOST``, or else the public cloud's.
        auth: Where tokens come from: ``connection_string``; ``client_secret`` of an application;
            ``managed_identity`` of the machine, that of ``client_id`` or else its own; ``default``, the chain of
            azure-identity: environment, workload identity, managed identity, developer tools. By default what is
            given, in this order: connection string, client secret, ``client_id`` alone, nothing. A connection
            string goes before the other credentials, which environments often hold for other purposes.
        sessions: Whether queues require sessions. That is the queue's own property; this has to agree with it.
        deduplication: Whether queues detect duplicates, which they do by message id. That is the queue's own
            property too. With it, messages travel under their deduplication ids; without, under their own.
        lock_duration: Seconds that the queue's locks last, until the broker tells; at most 300.
        max_delivery_count: Deliveries after which the queue dead-letters, until the broker tells.
        transport: ``amqp`` on TCP port 5671, or ``websocket`` on 443 for networks that let nothing else out.
        custom_endpoint: ``sb://host[:port]``, where connections go in place of the namespace's own address,
            such as a gateway; 443 where no port is given.
        administration_endpoint: ``https://host[:port]``, where queues are created and counted in place of the
            namespace's own address, which is that of ``custom_endpoint`` if there is one; ``http://`` for emulators
            only. Of an emulator: the port in ``connection_string``, or 5300, where Microsoft's is by default.
        verify: File with the certificates of the authorities to trust, for the namespace and for ``authority`` if
            that is given; ``None``: those of certifi.
        insecure: Allow an emulator, which speaks without TLS, that is not on this machine.
        max_message_bytes: Largest message as encoded, 262,144 in the Standard tier; Premium queues take what
            they were made for, up to 104,857,600.
        prefetch: Messages asked for ahead. Only without sessions, where 100 is the default: locks of messages
            that wait here are running.
        acceptors: How many wait for the next session at once, each by a link of its own on the shared connection.
        accept_wait: Seconds that one of them waits before it asks anew; never more than a quarter of ``lock_duration``.
        max_sessions: Most sessions held at once by one receiver; each costs a link, and a connection is opened for
            every thousand of them.
        connect_timeout: Seconds to wait for a connection and its link.
        operation_timeout: Seconds to wait for an answer to anything else.
        declare: Always false: nothing is created here.
    """

    connection_string: Secret | None = attrs.field(default=None, validator=_check_connection_string)
    namespace: str | None = attrs.field(
        default=_from_connection_string(lambda said: said.host),
        validator=matching(_NAMESPACE, f"a name such as orders-prod, or orders-prod.{DOMAIN}"),
    )
    queue: str | None = attrs.field(
        default=_from_connection_string(lambda said: said.queue),
        validator=matching(
            QUEUE,
            "1 to 260 of A-Z a-z 0-9 . _ / -, of which a letter or a digit is first and last",
        ),
    )
    tenant_id: str | None = attrs.field(
        default=None, validator=matching(_TENANT, "a directory's id or domain")
    )
    client_id: str | None = attrs.field(
        default=None,
        validator=matching(_GUID, "an id such as 01234567-89ab-cdef-0123-456789abcdef"),
    )
    client_secret: Secret | None = attrs.field(default=None, validator=secret)
    authority: str | None = attrs.field(
        default=None,
        validator=matching(_AUTHORITY, "a host such as login.microsoftonline.us, or host:port"),
    )
    auth: AuthMode = attrs.field(
        default=attrs.Factory(_auth_of, takes_self=True),
        validator=attrs.validators.in_(
            ("connection_string", "default", "managed_identity", "client_secret")
        ),
    )
    sessions: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    deduplication: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    lock_duration: float = attrs.field(default=60.0, validator=seconds(MAX_LOCK_DURATION))
    max_delivery_count: int = attrs.field(default=10, validator=whole(1, 2_000, "deliveries"))
    transport: Literal["amqp", "websocket"] = attrs.field(
        default="amqp", validator=attrs.validators.in_(("amqp", "websocket"))
    )
    custom_endpoint: str | None = attrs.field(default=None, validator=_endpoint_of("sb"))
    administration_endpoint: str | None = attrs.field(
        default=None, validator=_endpoint_of("http", "https")
    )
    verify: str | None = attrs.field(default=None, validator=some_text)
    insecure: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    max_message_bytes: int = attrs.field(
        default=STANDARD_MESSAGE_BYTES, validator=whole(1_024, MAX_MESSAGE_BYTES, "bytes")
    )
    prefetch: int = attrs.field(
        default=attrs.Factory(lambda config: 0 if config.sessions else 100, takes_self=True),
        validator=whole(0, 5_000, "messages"),
    )
    acceptors: int = attrs.field(default=4, validator=whole(1, 100, "acceptors"))
    accept_wait: float = attrs.field(default=10.0, validator=seconds(60))
    max_sessions: int = attrs.field(default=256, validator=whole(1, 5_000, "sessions"))
    connect_timeout: float = attrs.field(default=10.0, validator=seconds(600))
    operation_timeout: float = attrs.field(default=30.0, validator=seconds(600))
    declare: bool = attrs.field(
        default=False,
        validator=creates_nothing("queue-runtime provision, the portal or the Azure CLI"),
    )

    def __attrs_post_init__(self) -> None:
        # Each text begins with the field it blames: whoever collects problems goes by that.
        self._check_auth()
        if self.sessions and self.prefetch:
            raise ValidationError(
                f"prefetch is {self.prefetch}, but sessions is true: a session's lock would not expire while "
                "messages wait here; leave prefetch out, or say sessions=false"
            )
        self._check_administration()
        said = self.said
        if said is None:
            return
        named = (self.namespace or "").lower()
        if said.host not in (named, _qualified(named)):
            raise ValidationError(
                f"namespace is {shown(self.namespace)}, but connection_string is for {shown(said.host)}: "
                "name one of them; AZURE_SERVICEBUS_CONNECTION_STRING names one too, where it is set"
            )
        if said.queue is not None and (self.queue or "").lower() != said.queue.lower():
            raise ValidationError(
                f"queue is {shown(self.queue)}, but connection_string is for {shown(said.queue)} only"
            )
        if said.emulator:
            self._check_plaintext(said)

    def _check_auth(self) -> None:
        needed = {
            "connection_string": ("connection_string",),
            "client_secret": ("tenant_id", "client_id", "client_secret"),
        }.get(self.auth, ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            more = f", which needs {' and '.join(missing[1:])} too" if missing[1:] else ""
            raise ValidationError(f"{missing[0]} is missing: auth is {self.auth}{more}")
        if self.namespace is None:
            raise ValidationError(
                "namespace is missing: write azure://namespace/queue, give a connection_string, or set "
                "AZURE_SERVICEBUS_CONNECTION_STRING, which the command line and load_config read"
            )

    def _check_administration(self) -> None:
        if self.administration_endpoint is None or self.insecure:
            return
        parts = urlsplit(self.administration_endpoint)
        if parts.scheme == "http" and not LOOPBACK.fullmatch(parts.hostname or ""):
            raise ValidationError(
                f"administration_endpoint is on {shown(parts.hostname)} and without TLS: everybody on the way could "
                "use the tokens; say https, use one on this machine, or say insecure=true"
            )

    def _check_plaintext(self, said: ConnectionString) -> None:
        for name in ("custom_endpoint", "verify"):
            if getattr(self, name) is not None:
                raise ValidationError(
                    f"{name} means nothing to an emulator: connection_string says "
                    "UseDevelopmentEmulator=true, so its Endpoint is used, without TLS"
                )
        if self.transport != "amqp":
            raise ValidationError(
                "transport is websocket, which goes by TLS only: leave it out for an emulator without"
            )
        if not self.insecure and not LOOPBACK.fullmatch(said.host.strip("[]")):
            raise ValidationError(
                f"connection_string is for an emulator on {shown(said.host)}: without TLS everybody on the "
                "way reads the messages; use one on this machine, or say insecure=true"
            )

    @property
    def said(self) -> ConnectionString | None:
        """What ``connection_string`` says."""
        secret = self.connection_string
        return None if secret is None else parse_connection_string(secret.reveal())

    @property
    def fully_qualified_namespace(self) -> str:
        """The namespace's host name, in lower case, with its domain."""
        said = self.said
        return _qualified((self.namespace or "").lower()) if said is None else said.host

    @property
    def administration_address(self) -> str:
        """Where queues are created and counted: ``https://host[:port]``, or ``http`` for an emulator."""
        if self.administration_endpoint is not None:
            return self.administration_endpoint
        if self.custom_endpoint is not None:
            return f"https{self.custom_endpoint.removeprefix('sb')}"
        said = self.said
        if said is not None and said.emulator:
            return f"http://{said.host}:{said.port or EMULATOR_ADMINISTRATION_PORT}"
        return f"https://{self.fully_qualified_namespace}"

    def wire_name(self, queue: QueueName) -> str:
        """What Service Bus calls ``queue``; capital letters do not matter to it.

        Raises:
            ValidationError: Service Bus cannot hold the name.
            ConfigurationError: The configuration names another queue as the only one.
        """
        name = str(queue)
        if not QUEUE.fullmatch(name):
            raise ValidationError(
                f"queue name {shown(name)} must end in a letter or a digit for Service Bus"
            )
        if self.queue is None:
            return name
        if name.lower() != self.queue.lower():
            raise ConfigurationError(
                f"queue {shown(name)} is not the queue {shown(self.queue)} that the provider's URL or "
                "connection string names: open that one, or leave the queue out of them"
            )
        return self.queue  # the SDK compares a connection string's with regard to capitals


def _qualified(name: str) -> str:
    return name if "." in name else f"{name}.{DOMAIN}"


def azure_config_from_url(url: str) -> AzureConfig:
    """Read ``azure://[namespace[/queue]][?option=value&…]``.

    Raises:
        ConfigurationError: With every problem at once; secrets masked.
    """
    parts, options = split_url(url)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "an azure URL has no user information: "
            "give connection_string, or tenant_id, client_id and client_secret, as options"
        )
    namespace, queue = unquote(parts.netloc), unquote(parts.path).strip("/")
    if namespace and not HOST.fullmatch(namespace):
        raise ConfigurationError(
            f"azure URL names {shown(namespace)} where a namespace belongs: write azure://namespace/queue; "
            "an emulator's address stands in a connection_string, a gateway's in custom_endpoint"
        )
    option = options.get("namespace", namespace)
    if namespace and _qualified(option).lower() != _qualified(namespace).lower():
        raise ConfigurationError(
            f"azure URL names namespace {shown(namespace)}, and an option namespace {shown(option)}: "
            "choose one"
        )
    fixed: dict[str, object] = {}
    if queue:
        fixed["queue"] = queue
    if namespace:
        fixed["namespace"] = namespace
        options.pop("namespace", None)
    return structure_options(AzureConfig, options, where=url, fixed=fixed)
