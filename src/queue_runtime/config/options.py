"""What provider URLs say: taken apart, and their options made into a provider's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from queue_runtime.errors import ConfigurationError
from queue_runtime.secret import Secret, mask_url

from .structuring import Problem, Text, settable_fields, shown, step, structure, unknown

__all__ = ["split_url", "structure_options"]

T = TypeVar("T")


def structure_options(
    config_type: type[T],
    options: Mapping[str, str | Secret],
    *,
    where: str,
    fixed: Mapping[str, object] | None = None,
) -> T:
    """Make a frozen attrs class from flat text options, such as the query of a URL.

    Texts become what the fields' types say: numbers, ``true/false/yes/no/1/0``, enums and literals by value
    (any case), ``none`` for ``None`` where the type is not textual, :class:`~queue_runtime.secret.Secret`. The
    class's own converters and validators apply; those that raise ``ValidationError`` become problems.

    Args:
        config_type: The attrs class. Its annotations must be resolvable at run time (imported, not only for
            type checking).
        options: Option name to text.
        where: What the options belong to, for the error's first line; a URL is masked.
        fixed: Values of fields that are not options, such as a path taken from the URL, already of their type.

    Raises:
        ConfigurationError: With every problem at once, each as ``problem @ option``; secrets are not shown.
    """
    taken = dict(fixed or {})
    known = [name for name in settable_fields(config_type) if name not in taken]
    values = {
        name: Text(text) if isinstance(text, str) else text
        for name, text in options.items()
        if name in known
    }
    config, problems = structure(config_type, {**values, **taken})
    problems = [unknown(name, known) for name in options if name not in known] + problems
    if config is None or problems:
        raise ConfigurationError(
            f"bad options of {_without_query(where)}",
            tuple(str(problem) for problem in problems),
        )
    return config


def _without_query(url: str) -> str:
    """``url`` to show; of the query, which may hold secrets under any name, problems name what matters."""
    return shown(mask_url(url).partition("?")[0])


def split_url(url: str) -> tuple[SplitResult, dict[str, str]]:
    """The parts of a provider's URL and its query as options, percent-decoded (``+`` stays a plus sign).

    Raises:
        ConfigurationError: Not a URL with a scheme, malformed, or an option given twice; secrets masked.
    """
    masked = _without_query(url)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # Its text may quote a part of the user information, so it is not passed on.
        raise ConfigurationError(f"{masked} is not a well-formed URL") from None
    if not parts.scheme or "://" not in url:
        raise ConfigurationError(
            f"{masked} is not a provider URL: expected scheme://…, such as memory://"
        )
    options: dict[str, str] = {}
    problems = []
    for number, pair in enumerate(filter(None, parts.query.split("&")), 1):
        name, equals, text = pair.partition("=")
        name = unquote(name)
        if not equals:
            # Not shown: it may be the rest of a secret with an unescaped &.
            problems.append(
                Problem("expected name=value (an & inside a value is %26)", f"option {number}")
            )
        elif name in options:
            problems.append(Problem("given more than once", step(name)))
        else:
            options[name] = unquote(text)
    if parts.fragment:
        problems.append(Problem("unexpected #: write it as %23", "#…"))
    if problems:
        raise ConfigurationError(
            f"bad options of {masked}", tuple(str(problem) for problem in problems)
        )
    return parts, options
