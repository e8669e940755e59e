"""Strategies that derive a :class:`SessionId` from a payload.

A strategy is any callable that takes a source and returns a ``SessionId``, or ``None`` when the source has
no key for it::

    by_pull_request = CompositeKey(
        "repository.owner.login", "repository.name", Constant("pull_request"), "pull_request.number"
    )
    by_repository = CompositeKey("repository.owner.login", "repository.name")
    key = FirstOf(by_pull_request, by_repository)
    session_id = key(event)

Sources are mappings, objects with attributes (dataclasses, attrs classes, ``Message``, ``Delivery`` …), or
anything with a method ``get_metadata(name)``. A field may be a dotted path. Parts are joined by
:meth:`SessionId.from_parts`, so different parts never give the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, TypeAlias, final
from uuid import UUID

import attrs

from .errors import ValidationError
from .messages import SessionId

__all__ = ["CompositeKey", "Constant", "FieldKey", "FirstOf", "NoKey", "SessionKey"]

SessionKey: TypeAlias = Callable[[Any], SessionId | None]
"""Derives a session id from a source; ``None`` when the source has no key for it. Any callable will do."""

_MISSING: Final = object()


def _check_field(name: object) -> str:
    if not isinstance(name, str) or not all(name.split(".")):
        raise ValidationError(
            f"{name!r} is not a field: give its name, or a path such as 'repository.full_name'"
        )
    return name


def _check_text(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValidationError(f"{attribute.name} is {value!r}: it must be a text that is not empty")


@final
@attrs.frozen
class Constant:
    """A part of a :class:`CompositeKey` that is this text, not the name of a field."""

    text: str = attrs.field(validator=_check_text)


@final
@attrs.frozen
class FieldKey:
    """The value of one field, such as ``FieldKey("user.id", prefix="user")``.

    Args:
        field: Name of the field, or a dotted path.
        prefix: Put before the value as a part of its own, to keep ids of different kinds apart.

    Raises:
        ValidationError: ``field`` or ``prefix`` is no such thing; when called: the value cannot be an id.
    """

    field: str = attrs.field(converter=_check_field)
    prefix: str | None = attrs.field(default=None, validator=attrs.validators.optional(_check_text))

    def __call__(self, source: Any) -> SessionId | None:
        """The id, or ``None`` when the field is missing, ``None`` or empty."""
        value = _read(source, self.field)
        if value is None:
            return None
        return (
            SessionId.from_parts(value)
            if self.prefix is None
            else SessionId.from_parts(self.prefix, value)
        )


@final
@attrs.frozen(init=False)
class CompositeKey:
    """The values of several fields: all of them or none.

    Args:
        *parts: Names of fields, dotted paths, or :class:`Constant` for fixed parts; at least one is a field.

    Raises:
        ValidationError: There is no field among the parts; when called: a value cannot be part of an id.
    """

    parts: tuple[str | Constant, ...]

    def __init__(self, *parts: str | Constant) -> None:
        checked = tuple(
            part if isinstance(part, Constant) else _check_field(part) for part in parts
        )
        if all(isinstance(part, Constant) for part in checked):
            raise ValidationError("CompositeKey needs at least one field")
        self.__attrs_init__(checked)

    def __call__(self, source: Any) -> SessionId | None:
        """The id, or ``None`` when a field is missing, ``None`` or empty."""
        values: list[str] = []
        for part in self.parts:
            value = part.text if isinstance(part, Constant) else _read(source, part)
            if value is None:
                return None
            values.append(value)
        return SessionId.from_parts(*values)


@final
@attrs.frozen(init=False)
class FirstOf:
    """What the first strategy that finds a key says.

    Args:
        *strategies: Tried in this order; at least one.

    Raises:
        ValidationError: There is no strategy, or one is not callable; when called: what a strategy returned
            is no session id.
    """

    strategies: tuple[SessionKey, ...]

    def __init__(self, *strategies: SessionKey) -> None:
        if not strategies:
            raise ValidationError("FirstOf needs at least one strategy; use NoKey() for none")
        for strategy in strategies:
            if not callable(strategy):
                raise ValidationError(
                    f"{strategy!r} is no strategy: use FieldKey(…), CompositeKey(…) or any callable"
                )
        self.__attrs_init__(strategies)

    def __call__(self, source: Any) -> SessionId | None:
        """The first id found, or ``None``."""
        for strategy in self.strategies:
            session_id = strategy(source)
            if session_id is not None:
                return SessionId(session_id)
        return None


@final
@attrs.frozen
class NoKey:
    """No session: messages are handled concurrently and in no order."""

    def __call__(self, source: Any) -> SessionId | None:
        """``None``, whatever the source."""
        return None


def _read(source: Any, path: str) -> str | None:
    """The value at ``path`` as text; ``None`` when it is missing, ``None`` or empty."""
    value = _find(source, path)
    if isinstance(value, Enum):
        value = value.value
    if value is _MISSING or value is None:
        return None
    if isinstance(value, (str, UUID)):
        return str(value) or None
    if isinstance(value, int) and not isinstance(value, bool):
        # A longer number is no id, and Python refuses to print it: 128 digits are 426 bits.
        if value.bit_length() <= 426:
            return str(value)
        raise ValidationError(f"field {path!r} is a number of more than 128 digits")
    raise ValidationError(
        f"field {path!r} is of type {type(value).__name__}: a session key takes text, whole numbers, "
        "UUIDs and enums of these"
    )


def _find(source: Any, path: str) -> Any:
    # A name with dots in it comes before a path: headers and metadata often have such names.
    if isinstance(source, Mapping):
        value = source.get(path, _MISSING)
    elif callable(get_metadata := getattr(source, "get_metadata", None)):
        value = get_metadata(path)
        value = _MISSING if value is None else value
    else:
        value = _MISSING
    if value is not _MISSING:
        return value
    value = source
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name, _MISSING)
        elif name.startswith("_"):  # what is private to an object is no part of a payload
            value = _MISSING
        else:
            value = getattr(value, name, _MISSING)
        if value is _MISSING:
            return _MISSING
    return value
