"""The configuration values: frozen, each field with its unit, each checked where it is made.

Everything has a default but the provider and the queue, which nobody can guess. Durations are seconds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, final
from urllib.parse import quote

import attrs

from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import MAX_DURATION, QueueName
from queue_runtime.policies.backoff import RetryPolicy
from queue_runtime.policies.breaker import BreakerConfig
from queue_runtime.secret import Secret, SecretUrl, is_secret_name

from .options import split_url
from .structuring import INTERNAL, Problem, shown

__all__ = [
    "AwsSettings",
    "AzureSettings",
    "ClientConfig",
    "LoggingConfig",
    "PresetName",
    "RuntimeConfig",
    "SettlementMode",
    "SupervisorConfig",
    "provider_url",
]

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]

PresetName = Literal["high_throughput", "low_latency", "cost", "testing"]
"""What :func:`queue_runtime.config.preset` knows."""

_ALIASES: Final = {"aws": "sqs", "rabbitmq": "amqp"}
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")


def _seconds(*, zero: bool = False, optional: bool = False) -> _Validator:
    """A duration: above zero (``zero``: or exactly), at most ten years."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and optional:
            return
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value <= MAX_DURATION
            or (value == 0 and not zero)
        ):
            raise ValidationError(
                f"{attribute.name} is {shown(value)}: expected seconds, "
                f"{'at least' if zero else 'more than'} 0 and at most {MAX_DURATION:.0f}"
                + (", or none" if optional else "")
            )

    return check


def _count(*, least: int = 1, most: int = 10_000_000) -> _Validator:
    """A whole number from ``least`` to ``most``."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValidationError(
                f"{attribute.name} is {shown(value)}: expected a whole number from {least} to {most}"
            )

    return check


def _check_renew_fraction(
    _instance: object, attribute: attrs.Attribute[Any], value: object
) -> None:
    # Above 0.8 a single slow answer would lose the lease: its holder stops at 0.9.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.05 <= value <= 0.8:
        raise ValidationError(
            f"{attribute.name} is {shown(value)}: expected a fraction of the lease from 0.05 to 0.8"
        )


class SettlementMode(enum.Enum):
    """When a session may go on to its next message."""

    STRICT = "strict"
    """After the broker confirmed the settlement of the message before."""
    PIPELINED = "pipelined"
    """At once; settlements follow in order, at most ``max_unsettled_ahead`` behind."""


@final
@attrs.frozen(kw_only=True)
class ClientConfig:
    """How a client talks to its provider.

    Args:
        retry: For calls that failed for a transient reason.
        breaker: When calls are no longer made because they keep failing.
        receive_timeout: Seconds a receive waits for messages unless told otherwise; 0 looks once.
        operation_timeout: Seconds one call to the broker may take, the wait of a receive not counted.
    """

    retry: RetryPolicy = attrs.field(
        factory=lambda: RetryPolicy(initial=0.1, max_delay=5.0, max_attempts=5)
    )
    breaker: BreakerConfig = attrs.field(factory=BreakerConfig)
    receive_timeout: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    operation_timeout: float = attrs.field(default=30.0, validator=_seconds())


@final
@attrs.frozen(kw_only=True)
class SupervisorConfig:
    """How a supervisor and its actors work.

    Args:
        max_in_flight: Most deliveries received and not yet settled, over all sessions.
        max_sessions: Most sessions whose lock is held at once; close to that number idle ones are closed at
            once, so that none waits behind them. Where ``Capabilities.max_sessions`` is smaller, that counts.
        max_per_session: Most unsettled deliveries of one session, waiting ones included.
        max_concurrent_sessionless: Most messages without a session handled at once.
        settlement: When a session goes on to its next message.
        max_unsettled_ahead: In pipelined mode, most handled but unsettled messages of one session.
        settle_max_age: Most seconds a settlement waits for company in its batch; 0: none.
        idle_timeout: Seconds without a message after which a session is closed and its lock released. Without
            meaning where a lease ends with its last message, and the session's handler with it: where
            ``Capabilities.keeps_empty_sessions`` is false, as on SQS.
        handler_timeout: Most seconds for one ``handle`` call; ``None``: as long as the lock is held.
        close_timeout: Most seconds for a handler's ``closed``.
        drain_timeout: Seconds a drain lets handlers finish before it cancels them.
        retry: What follows a failed ``handle``: delays, and attempts before the dead-letter queue.
        park_threshold: Seconds; a retry that is due sooner is waited for with the lock held, a later one
            parks the session and gives the lock back.
        breaker: When the provider is no longer called because calls keep failing.
        handler_breaker: When intake pauses because handlers keep failing across sessions; ``None``: never.
        receive_timeout: Seconds one receive call waits at the broker for messages.
        renew_fraction: Part of a lease after which it is renewed, 0.05 to 0.8.
        restart_budget: How often a session's handler may crash on one message before that is
            dead-lettered.
        halt_on_dead_letter: Keep the rest of a session back behind a dead-lettered message until that is
            redriven or purged; needs a provider with ``Capabilities.session_halt``.
    """

    max_in_flight: int = attrs.field(default=1024, validator=_count())
    max_sessions: int = attrs.field(default=10_000, validator=_count())
    max_per_session: int = attrs.field(default=64, validator=_count())
    max_concurrent_sessionless: int = attrs.field(default=100, validator=_count())
    settlement: SettlementMode = SettlementMode.STRICT
    max_unsettled_ahead: int = attrs.field(default=32, validator=_count())
    settle_max_age: float = attrs.field(default=0.05, validator=_seconds(zero=True))
    idle_timeout: float = attrs.field(default=5.0, validator=_seconds(zero=True))
    handler_timeout: float | None = attrs.field(default=None, validator=_seconds(optional=True))
    close_timeout: float = attrs.field(default=5.0, validator=_seconds())
    drain_timeout: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    retry: RetryPolicy = attrs.field(factory=RetryPolicy)
    park_threshold: float = attrs.field(default=5.0, validator=_seconds(zero=True))
    breaker: BreakerConfig = attrs.field(factory=BreakerConfig)
    handler_breaker: BreakerConfig | None = None
    receive_timeout: float = attrs.field(default=20.0, validator=_seconds())
    renew_fraction: float = attrs.field(default=1 / 3, validator=_check_renew_fraction)
    restart_budget: int = attrs.field(default=5, validator=_count(least=0))
    halt_on_dead_letter: bool = False


@final
@attrs.frozen(kw_only=True)
class LoggingConfig:
    """What is logged, and how it looks.

    Args:
        level: The least severe level that is shown.
        json: One JSON object a line, for machines; otherwise text for people.
    """

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    json: bool = False


@final
@attrs.frozen(kw_only=True)
class AzureSettings:
    """Credentials that become options of an ``azure://`` provider, and of no other.

    Args:
        connection_string: Of the namespace or one queue, with its shared access key.
        namespace: The Service Bus namespace, with or without its domain.
        tenant_id: Directory of the application.
        client_id: Application, or user-assigned managed identity when there is no client secret.
        client_secret: The application's secret.
    """

    connection_string: Secret | None = None
    namespace: str | None = None
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: Secret | None = None


@final
@attrs.frozen(kw_only=True)
class AwsSettings:
    """Credentials that become options of an ``sqs://`` provider, and of no other.

    Args:
        region: Such as ``eu-central-1``.
        access_key_id: Of a user or of temporary credentials.
        secret_access_key: Belongs to ``access_key_id``.
        session_token: Of temporary credentials.
    """

    region: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None


def provider_url(text: str) -> tuple[SecretUrl, dict[str, str]]:
    """A provider as people write it - a URL or just its name - as a URL and the options of its query.

    ``aws`` stands for ``sqs`` and ``rabbitmq`` for ``amqp``. Whether such a provider exists is not looked at.

    Raises:
        ConfigurationError: Neither a URL nor a name.
    """
    if "://" not in text:
        if not _SCHEME.fullmatch(text):
            raise ConfigurationError(
                f"{shown(text)} is not a provider: expected a URL such as sqlite:///jobs.db, or a name"
            )
        text = f"{text}://"
    parts, options = split_url(text)
    rest = text.partition("?")[0].partition("://")[2]
    scheme = parts.scheme.lower()
    return SecretUrl(f"{_ALIASES.get(scheme, scheme)}://{rest}"), options


def _to_provider(value: object) -> object:
    if value is None or isinstance(value, SecretUrl) or attrs.has(type(value)):
        return value
    if not isinstance(value, str):
        raise ValidationError(
            "a provider is a URL, a name or a provider's configuration object, "
            f"got {type(value).__name__}"
        )
    return SecretUrl(value)


def _to_options(value: Mapping[str, object]) -> Mapping[str, str | Secret]:
    """Options as a URL's query would hold them; what sounds secret is wrapped."""
    return MappingProxyType({name: _to_option(name, option) for name, option in value.items()})


def _to_option(name: str, value: object) -> str | Secret:
    if isinstance(value, Secret):
        return value
    if isinstance(value, SecretUrl):
        return Secret(value.reveal())
    if value is None:
        text = "none"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, (str, int, float)):
        text = str(value)
    else:
        raise ValidationError(
            f"option {shown(name)} must be text, a number or true/false, got {type(value).__name__}"
        )
    return Secret(text) if is_secret_name(name) else text


def _to_origins(value: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(value))


def _to_queue(value: str | None) -> QueueName | None:
    return None if value is None else QueueName(value)


@final
@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """Everything there is to configure. Made by :func:`queue_runtime.config.load_config`.

    Args:
        preset: The preset underneath what was set otherwise; informative in a finished configuration.
        provider: The provider's URL without its query, its name, or its configuration object; ``None``:
            not chosen. URLs are shown masked.
        provider_options: Options of the provider as text: its URL's query and what the environment adds.
            Empty when ``provider`` is a configuration object.
        queue: The queue to use; ``None``: not chosen.
        dead_letter_queue: The dead-letter queue where the provider lets it be chosen; ``None``: its own.
        client: For the imperative client.
        supervisor: For the actors.
        logging: For the process's logs.
        azure: Credentials for Azure Service Bus.
        aws: Credentials for Amazon SQS.
        origins: Where values that are not defaults came from, by path; for
            :func:`queue_runtime.config.explain`.
    """

    preset: PresetName | None = None
    provider: Any = attrs.field(default=None, converter=_to_provider)
    provider_options: Mapping[str, str | Secret] = attrs.field(factory=dict, converter=_to_options)
    queue: QueueName | None = attrs.field(default=None, converter=_to_queue)
    dead_letter_queue: QueueName | None = attrs.field(default=None, converter=_to_queue)
    client: ClientConfig = attrs.field(factory=ClientConfig)
    supervisor: SupervisorConfig = attrs.field(factory=SupervisorConfig)
    logging: LoggingConfig = attrs.field(factory=LoggingConfig)
    azure: AzureSettings = attrs.field(factory=AzureSettings)
    aws: AwsSettings = attrs.field(factory=AwsSettings)
    origins: Mapping[str, str] = attrs.field(
        factory=dict, converter=_to_origins, repr=False, eq=False, metadata={INTERNAL: True}
    )

    def provider_source(self) -> Any:
        """What :func:`queue_runtime.providers.open_provider` takes: a whole URL, or the configuration object.

        The URL carries the options and, for ``azure`` and ``sqs``, the credentials; what the options say goes
        before the credentials of the same name.

        Raises:
            ConfigurationError: No provider was chosen, or options were given beside a configuration object.
        """
        if self.provider is None:
            raise ConfigurationError(
                "no provider: set provider in the file, QUEUE_URL or QUEUE_PROVIDER in the environment, "
                "or give one as an argument"
            )
        if not isinstance(self.provider, SecretUrl):
            if self.provider_options:
                raise ConfigurationError(
                    f"options beside a {type(self.provider).__name__}: set them in that object instead",
                    tuple(
                        str(Problem("unexpected", f"provider_options.{name}"))
                        for name in self.provider_options
                    ),
                )
            return self.provider
        url, in_url = provider_url(self.provider.reveal())
        options = {**self._credentials(url), **in_url, **self.provider_options}
        if not options:
            return url
        return SecretUrl(
            f"{url.reveal()}?{_query(options, _revealed)}", shown=f"{url}?{_query(options, str)}"
        )

    def _credentials(self, url: SecretUrl) -> dict[str, str | Secret]:
        scheme = url.reveal().partition("://")[0]
        values: dict[str, Any] = {}
        if scheme == "azure":
            values = attrs.asdict(self.azure, recurse=False)
        elif scheme == "sqs":
            values = attrs.asdict(self.aws, recurse=False)
        return {name: value for name, value in values.items() if value is not None}


def _query(options: Mapping[str, str | Secret], text: Callable[[str | Secret], str]) -> str:
    return "&".join(
        f"{quote(name, safe='')}={quote(text(value), safe='*')}" for name, value in options.items()
    )


def _revealed(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value
