"""What an ``sqs://`` URL says, as frozen values, and the names of queues as SQS takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal, final
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from queue_runtime.config import split_url, structure_options
from queue_runtime.config.structuring import shown
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.secret import Secret

from ..option_checks import LOOPBACK, creates_nothing, matching, seconds, secret, some_text, whole

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_VISIBILITY",
    "MAX_WAIT",
    "QueueAddress",
    "SqsConfig",
    "parse_queue_url",
    "sqs_config_from_url",
]

MAX_MESSAGE_BYTES: Final = 1_048_576
"""Largest message and largest batch, in bytes; 262,144 before August 2025 and on older emulators.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
"""

MAX_VISIBILITY: Final = 43_200
"""Longest visibility timeout, in seconds, all extensions of one receipt together (12 hours)."""

MAX_WAIT: Final = 20
"""Longest long poll, in seconds."""

_MAX_NAME: Final = 80  # the suffix counts
_FIFO: Final = ".fifo"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.fifo)?")
_REGION: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ACCOUNT: Final = re.compile(r"[0-9]{12}")
_ROLE: Final = re.compile(r"arn:[a-z-]+:iam::[0-9]{12}:role/\S+")

_DOMAINS: Final = (
    r"(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu|api\.aws|api\.amazonwebservices\.(?:com\.cn|eu)"
    r"|c2s\.ic\.gov|sc2s\.sgov\.gov|csp\.hci\.ic\.gov|cloud\.adc-e\.uk|api(?:\.cloud-aws|\.aws)\.[a-z.-]+)"
)
_HOST: Final = re.compile(
    rf"(?:sqs|sqs-fips)\.(?P<region>[a-z0-9-]+)\.{_DOMAINS}"
    r"|(?P<legacy>[a-z0-9-]+)\.queue\.amazonaws\.com(?:\.cn)?|(?P<oldest>queue)\.amazonaws\.com"
)
"""Hosts of SQS in all partitions, and the names it had before regions came last; the oldest is ``us-east-1``.

https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
"""


def _check_name(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or len(value) > _MAX_NAME or not _NAME.fullmatch(value):
        raise ValidationError(
            f"{attribute.name} is {shown(value)}: SQS takes 1 to {_MAX_NAME} characters of "
            "A-Z a-z 0-9 - _, where FIFO queues end in .fifo"
        )


def _http(url: str, name: str) -> SplitResult:
    """The parts of an endpoint's or a queue's URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValidationError(f"{name} is not a well-formed URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValidationError(f"{name} is {shown(url)}: expected https://host/…")
    if "@" in parts.netloc:
        raise ValidationError(
            f"{name} has user information, which SQS does not use: "
            "give access_key_id and secret_access_key instead"
        )
    if parts.query or parts.fragment:
        raise ValidationError(f"{name} is {shown(url)}: nothing may follow its path")
    return parts


def _check_endpoint(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ValidationError(f"{attribute.name} is {shown(value)}: expected https://host[:port]")
    if _http(value, attribute.name).path not in ("", "/"):
        raise ValidationError(f"{attribute.name} is {shown(value)}: expected no path in it")


@final
@attrs.frozen
class QueueAddress:
    """What the URL of a queue says.

    Args:
        host: With its port, in lower case.
        region: As the host tells; ``None`` for a host that is not Amazon's.
        account_id: Who owns the queue: the last part of the path but one.
        name: The queue: the last part of the path.
    """

    host: str
    region: str | None
    account_id: str
    name: str


def parse_queue_url(url: str) -> QueueAddress:
    """Take apart ``https://host/…/account/name``.

    Raises:
        ValidationError: It is no such URL.
    """
    parts = _http(url, "queue_url")
    path = parts.path.split("/")
    if len(path) < 3 or not _NAME.fullmatch(path[-1]) or not path[-2]:
        raise ValidationError(
            f"queue_url is {shown(url)}: expected https://host/account/name, as GetQueueUrl returns it"
        )
    return QueueAddress(_host(parts), _region_of_host(parts.hostname or ""), path[-2], path[-1])


def _host(parts: SplitResult) -> str:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}:{port}"


def _region_of_host(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    return "us-east-1" if found["oldest"] else found["region"] or found["legacy"]


def _check_queue_url(_instance: object, _attribute: object, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ValidationError(f"queue_url is {shown(value)}: expected https://host/account/name")
    parse_queue_url(value)


def _from_queue_url(pick: Callable[[QueueAddress], str | None]) -> Any:
    """A default taken from ``queue_url``, where that can be read: its validator tells when not."""

    def default(config: SqsConfig) -> str | None:
        try:
            return None if config.queue_url is None else pick(parse_queue_url(config.queue_url))
        except (ValidationError, TypeError, AttributeError):
            return None

    return attrs.Factory(default, takes_self=True)


def _type_of_queue(config: SqsConfig) -> str:
    named = isinstance(config.queue, str) and not config.queue.endswith(_FIFO)
    return "standard" if named else "fifo"


@final
@attrs.frozen(kw_only=True)
class SqsConfig:
    """One account and region of SQS, or one queue of it: ``sqs://region[/queue][?option=value&…]``.

    Credentials that are not given come from the SDK's own chain: environment, shared files and profiles, web
    identity, container and instance roles.

    Args:
        queue_url: The whole URL of the only queue to use. Its host must be SQS's in ``region``, or that of
            ``endpoint_url``.
        queue: The only queue to use, as SQS calls it; ``None``: whichever is opened.
        region: Such as ``eu-central-1``; ``None``: as the SDK's chain says.
        queue_type: ``fifo`` has sessions, ``standard`` has none. By default as ``queue`` ends in ``.fifo`` or
            not; ``fifo`` where no queue is named.
        endpoint_url: Where SQS is, for emulators and private endpoints; ``None``: Amazon's for the region.
        insecure: Allow an ``http`` endpoint that is not on this machine.
        account_id: Who owns the queues, if somebody else.
        access_key_id: Of a user or of temporary credentials.
        secret_access_key: Belongs to ``access_key_id``.
        session_token: Of temporary credentials.
        profile: Of the shared configuration files.
        role_arn: A role to assume with the credentials found otherwise.
        role_session_name: How that session is called in the account's logs.
        external_id: What the role's trust policy may ask for.
        lock_duration: Visibility timeout asked for with each receive and renewal, in seconds; SQS counts whole
            ones, from 1 to 43,200.
        wait_time: Longest long poll, in seconds, 0 to 20.
        max_message_bytes: Largest message and largest batch. A queue's own lower limit is kept as well.
        max_connections: Most calls on the wire at once; long polls each take one.
        connect_timeout: Seconds to wait for a connection.
        read_timeout: Seconds to wait for an answer; longer than ``wait_time``.
        dead_letter_queue: Where dead letters go if the queue has no redrive policy, which is what counts.
        holding_queue: Where scheduled messages wait that SQS cannot delay; ``None``: ``<queue>-holding.fifo``.
        max_delivery_count: Deliveries after which a queue made by ``queue-runtime provision`` dead-letters a
            message, 1 to 1,000; what exists follows its own redrive policy. SQS counts every delivery, also of
            messages that wait behind a failed one and go back untried: be generous.
        declare: Always false: nothing is created here; ``queue-runtime provision`` creates queues.
    """

    queue_url: str | None = attrs.field(default=None, validator=_check_queue_url)
    queue: str | None = attrs.field(
        default=_from_queue_url(lambda address: address.name), validator=_check_name
    )
    region: str | None = attrs.field(
        default=_from_queue_url(lambda address: address.region),
        validator=matching(_REGION, "a region such as eu-central-1"),
    )
    queue_type: Literal["fifo", "standard"] = attrs.field(
        default=attrs.Factory(_type_of_queue, takes_self=True),
        validator=attrs.validators.in_(("fifo", "standard")),
    )
    endpoint_url: str | None = attrs.field(default=None, validator=_check_endpoint)
    insecure: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    account_id: str | None = attrs.field(
        default=None, validator=matching(_ACCOUNT, "an account's 12 digits")
    )
    access_key_id: Secret | None = attrs.field(default=None, validator=secret)
    secret_access_key: Secret | None = attrs.field(default=None, validator=secret)
    session_token: Secret | None = attrs.field(default=None, validator=secret)
    profile: str | None = attrs.field(default=None, validator=some_text)
    role_arn: str | None = attrs.field(
        default=None, validator=matching(_ROLE, "arn:aws:iam::123456789012:role/name")
    )
    # https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html has both patterns.
    role_session_name: str = attrs.field(
        default="queue-runtime",
        validator=matching(
            re.compile(r"[\w+=,.@-]{2,64}", re.ASCII), "2 to 64 of A-Z a-z 0-9 _+=,.@-"
        ),
    )
    external_id: str | None = attrs.field(
        default=None,
        validator=matching(
            re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII), "2 to 1224 of A-Z a-z 0-9 _+=,.@:/-"
        ),
    )
    lock_duration: int = attrs.field(default=30, validator=whole(1, MAX_VISIBILITY, "seconds"))
    wait_time: int = attrs.field(default=20, validator=whole(0, MAX_WAIT, "seconds"))
    max_message_bytes: int = attrs.field(
        default=MAX_MESSAGE_BYTES, validator=whole(1_024, MAX_MESSAGE_BYTES, "bytes")
    )
    max_connections: int = attrs.field(default=32, validator=whole(2, 1_000, "connections"))
    connect_timeout: float = attrs.field(default=5.0, validator=seconds(600))
    read_timeout: float = attrs.field(default=30.0, validator=seconds(600))
    dead_letter_queue: str | None = attrs.field(default=None, validator=_check_name)
    holding_queue: str | None = attrs.field(default=None, validator=_check_name)
    max_delivery_count: int = attrs.field(default=100, validator=whole(1, 1_000, "deliveries"))
    declare: bool = attrs.field(default=False, validator=creates_nothing("queue-runtime provision"))

    def __attrs_post_init__(self) -> None:
        # Each text begins with the field it blames: whoever collects problems goes by that.
        for name, other in (
            ("secret_access_key", "access_key_id"),
            ("access_key_id", "secret_access_key"),
            ("session_token", "access_key_id"),
            ("external_id", "role_arn"),
        ):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValidationError(f"{name} is given without {other}: they belong together")
        if self.profile is not None and self.access_key_id is not None:
            raise ValidationError("profile is given beside access_key_id: choose one of them")
        if self.read_timeout <= self.wait_time:
            raise ValidationError(
                f"read_timeout is {self.read_timeout:g}: "
                f"it must be longer than the wait_time of {self.wait_time} seconds"
            )
        if self.holding_queue is not None and not self.holding_queue.endswith(_FIFO):
            raise ValidationError(
                f"holding_queue is {self.holding_queue!a}: it must be a FIFO queue, which ends in {_FIFO}"
            )
        for name in ("queue", "dead_letter_queue"):
            value = getattr(self, name)
            # SQS itself demands that a queue and its dead-letter queue are of one type.
            if value is not None and value.endswith(_FIFO) != self.fifo:
                raise ValidationError(
                    f"{name} is {value!a}, but queue_type is {self.queue_type}: "
                    f"names of FIFO queues end in {_FIFO}, others do not"
                )
        self._check_plaintext()
        if self.queue_url is not None:
            self._check_address(parse_queue_url(self.queue_url))

    def _check_plaintext(self) -> None:
        for name in ("endpoint_url", "queue_url"):
            url = getattr(self, name)
            if url is None or self.insecure:
                continue
            parts = urlsplit(url)
            if parts.scheme == "http" and not LOOPBACK.fullmatch(parts.hostname or ""):
                raise ValidationError(
                    f"{name} is {shown(url)}: without TLS everybody on the way reads the messages; "
                    "use https, or say insecure=true"
                )

    def _check_address(self, address: QueueAddress) -> None:
        if self.endpoint_url is not None:
            expected = _host(urlsplit(self.endpoint_url))
            if address.host != expected:
                raise ValidationError(
                    f"queue_url is on host {address.host!a}, but endpoint_url is {expected!a}: "
                    "signed requests are not sent elsewhere"
                )
        elif address.region is None:
            raise ValidationError(
                f"queue_url is on host {address.host!a}, which is not SQS: "
                "for an emulator or a private endpoint give its endpoint_url too"
            )
        if None is not address.region != self.region:
            raise ValidationError(
                f"queue_url is in region {address.region!a}, but region is {self.region!a}"
            )
        if self.queue != address.name:
            raise ValidationError(
                f"queue_url ends in {address.name!a}, but queue is {self.queue!a}: name one of them"
            )

    @property
    def fifo(self) -> bool:
        """Whether the queues are FIFO queues, and so have sessions."""
        return self.queue_type == "fifo"

    def wire_name(self, queue: QueueName) -> str:
        """What SQS calls ``queue``: in FIFO mode, ``.fifo`` is appended where it is missing.

        Raises:
            ValidationError: SQS cannot hold the name, or it belongs to the other type.
            ConfigurationError: The configuration names another queue as the only one.
        """
        name = str(queue)
        if self.fifo and not name.endswith(_FIFO):
            name += _FIFO
        _require_name(name, f"queue name {queue!a}")
        if name.endswith(_FIFO) != self.fifo:
            raise ValidationError(
                f"queue name {queue!a} is a FIFO queue's, but queue_type is standard: "
                "say queue_type=fifo, or choose a name without the ending"
            )
        if self.queue is not None and name != self.queue:
            raise ConfigurationError(
                f"queue {name!a} is not the queue {self.queue!a} that the provider's URL names: "
                "open that one, or leave the queue out of the URL"
            )
        return name

    def dead_letter_name(self, queue: QueueName) -> str:
        """The dead-letter queue made for ``queue`` by provisioning: ``<name>-dlq`` (and ``.fifo``).

        Raises:
            ValidationError: The name would be too long: choose one as ``dead_letter_queue``.
        """
        return self._beside(queue, self.dead_letter_queue, "-dlq", _FIFO if self.fifo else "")

    def holding_name(self, queue: QueueName) -> str:
        """The queue where scheduled messages of ``queue`` wait: ``<name>-holding.fifo``, always FIFO.

        Raises:
            ValidationError: The name would be too long: choose one as ``holding_queue``.
        """
        return self._beside(queue, self.holding_queue, "-holding", _FIFO)

    def _beside(self, queue: QueueName, chosen: str | None, ending: str, suffix: str) -> str:
        if chosen is not None:
            return chosen
        name = self.wire_name(queue).removesuffix(_FIFO) + ending + suffix
        option = "dead_letter_queue" if ending == "-dlq" else "holding_queue"
        _require_name(name, f"queue name {name!a}", f"; choose one as {option}")
        return name


def _require_name(name: str, what: str, cure: str = "") -> None:
    if len(name) > _MAX_NAME:
        raise ValidationError(
            f"{what} is {len(name)} characters long for SQS, the limit is {_MAX_NAME} with .fifo{cure}"
        )
    if not _NAME.fullmatch(name):
        raise ValidationError(f"{what} may only hold A-Z a-z 0-9 - _ in SQS{cure}")


def sqs_config_from_url(url: str) -> SqsConfig:
    """Read ``sqs://[region[/queue]][?option=value&…]``.

    Raises:
        ConfigurationError: With every problem at once; secrets masked.
    """
    parts, options = split_url(url)
    if "@" in parts.netloc:
        raise ConfigurationError(
            "an sqs URL has no user information: "
            "give access_key_id and secret_access_key as options or in the environment"
        )
    region, queue = unquote(parts.netloc), unquote(parts.path).strip("/")
    if not _REGION.fullmatch(region or "any"):
        raise ConfigurationError(
            f"sqs URL names {region!a} where a region such as eu-central-1 belongs: "
            "write sqs://region/queue, and ?endpoint_url=http://host:port for an emulator"
        )
    if region and options.get("region", region) != region:
        raise ConfigurationError(
            f"sqs URL names region {region!a}, and an option region {options['region']!a}: choose one"
        )
    fixed: dict[str, object] = {}
    if queue:
        fixed["queue"] = queue
    if region:
        fixed["region"] = region
        options.pop("region", None)
    return structure_options(SqsConfig, options, where=url, fixed=fixed)
