"""What is read from environment variables, and from the files that some of them name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

import attrs

from queue_runtime.errors import ConfigurationError
from queue_runtime.secret import Secret

from .structuring import Problem, Text, shown
from .values import provider_url

__all__ = ["ENVIRONMENT", "Setting", "Variable", "read_environment"]

_MAX_SECRET: Final = 65_536
"""Characters read from a secret's file: far more than any secret, far less than a device delivers."""


@final
@attrs.frozen
class Variable:
    """An environment variable that configures something. Empty ones count as not set.

    Args:
        name: Its name.
        paths: What it sets, as in a configuration file.
        meaning: What it means, with its unit.
        secret: Never shown; ``NAME_FILE`` may name a file that holds the value instead.
        scale: What its number is multiplied by, to get the setting's unit.
    """

    name: str
    paths: tuple[str, ...]
    meaning: str
    secret: bool = False
    scale: float | None = None


ENVIRONMENT: Final = (
    Variable(
        "QUEUE_PROVIDER", ("provider",), "provider, by name (azure, aws, sqlite, …) or as a URL"
    ),
    Variable(
        "QUEUE_URL", ("provider",), "provider as a URL; goes before QUEUE_PROVIDER", secret=True
    ),
    Variable("QUEUE_NAME", ("queue",), "queue to use"),
    Variable("QUEUE_DLQ_NAME", ("dead_letter_queue",), "its dead-letter queue"),
    Variable(
        "QUEUE_RECEIVE_TIMEOUT_SECONDS",
        ("client.receive_timeout", "supervisor.receive_timeout"),
        "how long a receive waits for messages, in seconds",
    ),
    Variable(
        "QUEUE_VISIBILITY_TIMEOUT_SECONDS",
        ("provider_options.lock_duration",),
        "how long a received message or session stays locked unless renewed, in seconds",
    ),
    Variable(
        "QUEUE_MAX_RETRY_ATTEMPTS",
        ("supervisor.retry.max_attempts",),
        "attempts to handle a message, the first included, before it is dead-lettered",
    ),
    Variable(
        "QUEUE_RETRY_BACKOFF_MS",
        ("supervisor.retry.initial",),
        "delay before the first retry, in milliseconds",
        scale=0.001,
    ),
    Variable(
        "AZURE_SERVICEBUS_CONNECTION_STRING",
        ("azure.connection_string",),
        "connection string of Azure Service Bus",
        secret=True,
    ),
    Variable(
        "AZURE_SERVICE_BUS_CONNECTION_STRING",
        ("azure.connection_string",),
        "the same under its other name",
        secret=True,
    ),
    Variable("AZURE_SERVICEBUS_NAMESPACE", ("azure.namespace",), "Service Bus namespace"),
    Variable("AZURE_TENANT_ID", ("azure.tenant_id",), "directory of the application"),
    Variable("AZURE_CLIENT_ID", ("azure.client_id",), "application or managed identity"),
    Variable(
        "AZURE_CLIENT_SECRET", ("azure.client_secret",), "secret of the application", secret=True
    ),
    Variable("AWS_REGION", ("aws.region",), "AWS region"),
    Variable("AWS_ACCESS_KEY_ID", ("aws.access_key_id",), "AWS access key", secret=True),
    Variable("AWS_SECRET_ACCESS_KEY", ("aws.secret_access_key",), "AWS secret key", secret=True),
    Variable(
        "AWS_SESSION_TOKEN",
        ("aws.session_token",),
        "token of temporary AWS credentials",
        secret=True,
    ),
)
"""Every variable that is read; where two set the same, the values must agree."""


@final
@attrs.frozen
class Setting:
    """One value that a source sets.

    Args:
        path: Where, as in a configuration file.
        value: The value; a :class:`~queue_runtime.secret.Secret` where the variable is one.
        origin: The variable, for people.
    """

    path: str
    value: Any
    origin: str


def read_environment(environ: Mapping[str, str]) -> tuple[list[Setting], list[Problem]]:
    """What ``environ`` sets, and what is wrong in it. Reads the files of ``*_FILE`` variables."""
    settings: dict[str, Setting] = {}
    problems: list[Problem] = []
    for variable in ENVIRONMENT:
        for text, name in _values(variable, environ, problems):
            value = text if variable.scale is None else _scaled(text, variable.scale)
            for path in variable.paths:
                setting = Setting(path, value, f"environment {name}")
                problem = _conflict(settings.get(path), setting)
                if problem is None:
                    settings[path] = setting
                else:
                    problems.append(problem)
    return list(settings.values()), problems


def _values(
    variable: Variable, environ: Mapping[str, str], problems: list[Problem]
) -> Iterator[tuple[Any, str]]:
    """The value of ``variable`` and the name it was found under; nothing if it is not set."""
    text = environ.get(variable.name, "")
    file_name = f"{variable.name}_FILE"
    file = environ.get(file_name, "") if variable.secret else ""
    if text and file:
        problems.append(Problem(f"set together with {file_name}: keep one", variable.name))
    elif file:
        content = _read_secret(file)
        if isinstance(content, Problem):
            problems.append(attrs.evolve(content, path=file_name))
        else:
            yield Secret(content), file_name
    elif text:
        yield (Secret(text) if variable.secret else Text(text)), variable.name


def _read_secret(file: str) -> str | Problem:
    # The file's name is not shown: somebody may have put the secret itself there.
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            content = stream.read(_MAX_SECRET + 1)
    except OSError as error:
        return Problem(f"the file it names cannot be read: {error.strerror}", "")
    except ValueError:
        return Problem("the file it names does not hold UTF-8 text", "")
    if len(content) > _MAX_SECRET:
        return Problem(f"the file it names holds more than {_MAX_SECRET} characters", "")
    content = content.removesuffix("\n").removesuffix("\r")
    if not content:
        return Problem("the file it names is empty", "")
    return content


def _scaled(value: Text, scale: float) -> Text | float:
    try:
        return float(value) * scale
    except ValueError:
        return value  # refused where it is structured, with the text as it was given


def _conflict(old: Setting | None, new: Setting) -> Problem | None:
    """Why two variables that set the same path cannot stand together."""
    if old is None or old.value == new.value:
        return None
    old_name, new_name = (setting.origin.removeprefix("environment ") for setting in (old, new))
    if new.path != "provider":
        return Problem(f"differs from {old_name}, which means the same: keep one", new_name)
    try:
        (name, _), (url, _) = provider_url(str(old.value)), provider_url(new.value.reveal())
    except ConfigurationError:
        return None  # the URL is refused where it is taken apart
    named, used = (text.reveal().partition("://")[0] for text in (name, url))
    if named == used:
        return None
    return Problem(f"is for {shown(used)}, but {old_name} says {shown(named)}: keep one", new_name)
