"""JSON bodies and typed payloads through cattrs, both ways.

The one place that turns cattrs' nested exceptions into flat ``problem @ path`` lines; the
configuration loader uses the same words.

Reading is strict, so that a poison body is noticed instead of half-understood: ``"5"`` is not an ``int``,
``"abc"`` is not a ``list[str]``, ``[]`` is not a class. Unknown fields are ignored, so that senders may
add some. Problems never repeat a value from the body: they name types, fields and positions.

JSON forms beyond the obvious: dates and times in ISO 8601, ``timedelta`` as seconds, ``bytes`` as base64,
``UUID``, ``Decimal`` and paths as text, enums as their value, sets and tuples as arrays.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import (
    Callable,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
    Set,
)
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from json import JSONDecodeError, JSONDecoder, JSONEncoder
from pathlib import Path, PurePath
from typing import Any, Final, NoReturn, TypeAlias, get_args, get_origin, is_typeddict
from uuid import UUID

import attrs
from cattrs import (
    AttributeValidationNote,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
    StructureHandlerNotFoundError,
)
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.preconf.json import make_converter

from .errors import SerializationError, ValidationError

__all__ = [
    "MAX_PROBLEMS",
    "Describe",
    "describe_problem",
    "describe_problems",
    "dump_json",
    "load_json",
]

MAX_PROBLEMS: Final = 100
"""Problems listed one by one; the rest are counted: a hostile body fills neither memory nor log."""

Describe: TypeAlias = Callable[[BaseException, Any], str]
"""Words for one leaf of a validation error, given the type that was expected (``None`` if unknown)."""

_MAX_NAME: Final = 60
_KINDS: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a whole number",
    float: "a decimal number",
    type(None): "null",
}
_ARRAYS: Final[dict[Any, Callable[[list[Any]], Any]]] = {
    list: list,
    MutableSequence: list,
    Sequence: tuple,
    tuple: tuple,
    set: set,
    MutableSet: set,
    frozenset: frozenset,
    Set: frozenset,
}
_OBJECTS: Final = (dict, Mapping, MutableMapping)


class _Mismatch(ValueError):
    """A problem whose text is ours, and so is known to hold nothing of the body."""


def dump_json(obj: object) -> bytes:
    """``obj`` as compact JSON in UTF-8.

    Args:
        obj: Anything cattrs can unstructure: dataclasses, attrs classes, containers, enums, dates, paths …

    Raises:
        SerializationError: Something in ``obj`` has no JSON form (NaN and infinity have none), or it refers
            to itself. ``problems`` names each place.
    """
    try:
        plain = _CONVERTER.unstructure(obj)
        try:
            return _ENCODER.encode(plain).encode()
        except (TypeError, ValueError) as error:
            problems = _without_json_form(plain) or [f"{describe_problem(error, None)} @ $"]
    except RecursionError:
        problems = ["nested too deeply, or refers to itself @ $"]
    except Exception as error:  # whatever a property or a hook of the object's class raises
        problems = [f"could not be read ({type(error).__name__}) @ $"]
    raise SerializationError(f"{_type_name(type(obj))} has no JSON form", _capped(problems))


def load_json(body: bytes, payload_type: Any) -> Any:
    """Read ``body`` as JSON and structure it as ``payload_type``.

    Args:
        body: JSON in UTF-8.
        payload_type: A class, a generic alias such as ``list[Event]``, or ``Any`` for plain JSON values.

    Raises:
        SerializationError: The body is not UTF-8, not JSON, or does not fit; ``problems`` holds each problem
            as ``problem @ path``. Neither it nor its traceback holds the body.
        ValidationError: Nothing of ``payload_type`` can be read from JSON, whatever the body.
    """
    try:
        structure = _CONVERTER.get_structure_hook(payload_type)
    except (StructureHandlerNotFoundError, TypeError) as error:
        # Not the body's fault: it must not be dead-lettered as poison for a mistake in the program.
        raise ValidationError(
            f"{_type_name(payload_type)} cannot be read from JSON: {error}"
        ) from error
    # Raised outside the handlers: the causes would carry the body into logs by way of the traceback.
    problems: tuple[str, ...]
    try:
        plain = _DECODER.decode(body.decode())
        try:
            return structure(plain, payload_type)
        except Exception as error:
            summary = f"the body does not fit {_type_name(payload_type)}"
            problems = describe_problems(error, expected=payload_type)
    except UnicodeDecodeError as error:
        summary, problems = "the body is not UTF-8", (f"{error.reason} @ byte {error.start}",)
    except JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        summary, problems = "the body is not JSON", (f"{error.msg} @ {where}",)
    except RecursionError:
        summary, problems = "the body is not JSON", ("nested too deeply @ $",)
    except ValueError as error:
        # Ours for NaN, infinity and overflow, or Python's limit on the digits of an int.
        text = str(error) if isinstance(error, _Mismatch) else "a number has too many digits"
        summary, problems = "the body is not JSON", (f"{text} @ $",)
    raise SerializationError(summary, problems)


def describe_problem(error: BaseException, expected: Any) -> str:
    """One leaf of a validation error in words that hold nothing of the value.

    Args:
        error: What a structuring hook raised.
        expected: The type that was asked for; ``None`` if unknown.
    """
    match error:
        case _Mismatch():
            return str(error)
        case KeyError():
            return "required field missing"
        case ForbiddenExtraKeysError():
            return "unknown fields: " + ", ".join(
                sorted(_shortened(str(n)) for n in error.extra_fields)
            )
        case StructureHandlerNotFoundError():
            return f"{_type_name(error.type_)} cannot be made from JSON"
        case RecursionError():
            return "nested too deeply"
        case _ if expected is None:
            return f"invalid value ({type(error).__name__})"
        case _:
            return f"invalid value, expected {_type_name(expected)}"


def describe_problems(
    error: BaseException, *, expected: Any = None, describe: Describe = describe_problem
) -> tuple[str, ...]:
    """Flatten cattrs' nested validation errors into ``problem @ path`` lines, in the order of the fields.

    Paths start at ``$``: ``.name`` is a field, ``[3]`` an index, ``['key']`` a key. At most
    :data:`MAX_PROBLEMS` are listed; a last line counts the others.

    Args:
        error: What ``structure`` of a converter with detailed validation raised.
        expected: The type that was asked for, if known.
        describe: Words for one leaf; by default such that they hold nothing of the value.
    """
    problems: list[str] = []
    # A stack, not recursion: the errors are nested as deeply as the data was.
    pending: list[tuple[BaseException, Any, str]] = [(error, expected, "$")]
    while pending:
        current, wanted, path = pending.pop()
        if isinstance(current, (ClassValidationError, IterableValidationError)):
            inner = [_located(leaf, path) for leaf in current.exceptions]
            pending.extend(reversed(inner))
        elif len(problems) < MAX_PROBLEMS:
            problems.append(f"{describe(current, wanted)} @ {path}")
        else:
            problems.append("")
    return _capped(problems)


def _capped(problems: Sequence[str]) -> tuple[str, ...]:
    extra = len(problems) - MAX_PROBLEMS
    if extra <= 0:
        return tuple(problems)
    return (*problems[:MAX_PROBLEMS], f"{extra} more problems @ $")


def _located(error: BaseException, path: str) -> tuple[BaseException, Any, str]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return error, note.type, f"{path}.{note.name}"
        if isinstance(note, IterableValidationNote):
            index = note.index
            return (
                error,
                note.type,
                f"{path}[{index if type(index) is int else _shortened(str(index))}]",
            )
    return error, None, path


def _shortened(name: str) -> str:
    """A key from the data as an escaped literal of bounded length."""
    return ascii(name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…")


def _type_name(expected: Any) -> str:
    if isinstance(expected, type) and get_origin(expected) is None:
        return expected.__name__
    return repr(expected).replace("typing.", "")


def _without_json_form(plain: object) -> list[str]:
    """Every place in ``plain`` that JSON cannot express. Runs only after encoding failed."""
    problems: list[str] = []
    seen: set[int] = set()
    pending: list[tuple[object, str]] = [(plain, "$")]
    while pending:
        value, path = pending.pop()
        match value:
            case None | bool():
                pass
            case str() if not _encodable(value):
                problems.append(f"text with a lone surrogate @ {path}")
            case int() if value.bit_length() > 10_000:
                problems.append(f"the number has too many digits @ {path}")
            case float() if not math.isfinite(value):
                problems.append(f"NaN and infinity have no JSON form @ {path}")
            case str() | int() | float():
                pass
            case dict() | list() | tuple() if id(value) in seen:
                pass
            case dict():
                seen.add(id(value))
                for key in value:
                    if not isinstance(key, (str, int, float, type(None))):
                        problems.append(f"a key must be text, not {_type_name(type(key))} @ {path}")
                    elif isinstance(key, float) and not math.isfinite(key):
                        problems.append(f"a key that is NaN or infinity @ {path}")
                    elif isinstance(key, str) and not _encodable(key):
                        problems.append(f"a key with a lone surrogate @ {path}")
                pending.extend(
                    (item, f"{path}[{_shortened(str(key))}]")
                    for key, item in reversed(value.items())
                )
            case list() | tuple():
                seen.add(id(value))
                pending.extend(
                    (value[index], f"{path}[{index}]") for index in reversed(range(len(value)))
                )
            case _:
                problems.append(f"{_type_name(type(value))} has no JSON form @ {path}")
    return problems


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _read_int(value: object, cls: type[int]) -> int:
    if type(value) is not int:
        raise _Mismatch(f"expected {_type_name(cls)}, got {_kind(value)}")
    return value if cls is int else cls(value)


def _read_float(value: object, cls: type[float]) -> float:
    if type(value) is not float and type(value) is not int:
        raise _Mismatch(f"expected {_type_name(cls)}, got {_kind(value)}")
    return cls(value)


def _read_bool(value: object, _cls: type[bool]) -> bool:
    if type(value) is not bool:
        raise _Mismatch(f"expected bool, got {_kind(value)}")
    return value


def _read_str(value: object, cls: type[str]) -> str:
    if type(value) is not str:
        raise _Mismatch(f"expected {_type_name(cls)}, got {_kind(value)}")
    return value if cls is str else cls(value)


def _read_seconds(value: object, _cls: type[timedelta]) -> timedelta:
    return timedelta(seconds=_read_float(value, float))


def _text_reader(parse: Callable[[Any, str], Any]) -> Callable[[object, Any], Any]:
    def read(value: object, cls: Any) -> Any:
        if type(value) is not str:
            raise _Mismatch(f"expected text for {_type_name(cls)}, got {_kind(value)}")
        return parse(cls, value)

    return read


class _IntKey:
    """Marks the keys of a ``dict[int, …]``: JSON has them as text."""


class _FloatKey:
    """Marks the keys of a ``dict[float, …]``."""


def _read_key(key: str, make: type[int] | type[float]) -> int | float:
    try:
        return make(key)
    except ValueError:
        raise _Mismatch(f"the key is not {_type_name(make)}") from None


_KEYS: Final[dict[Any, Any]] = {int: _IntKey, float: _FloatKey}


def _array_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    """Without this, cattrs takes any iterable: a string would become a list of its characters."""
    args = get_args(cls)
    origin = get_origin(cls) or cls
    make = _ARRAYS[origin]
    length = len(args) if origin is tuple and args and args[-1] is not Ellipsis else None
    read: Callable[[Any, Any], Any] = (
        list_structure_factory(cls, converter)
        if length is None
        else converter.gen_structure_hetero_tuple(cls)
    )

    def read_array(value: object, _cls: Any) -> Any:
        if type(value) is not list:
            raise _Mismatch(f"expected an array, got {_kind(value)}")
        if length is not None and len(value) != length:
            raise _Mismatch(f"expected {length} items, got {len(value)}")
        return make(read(value, cls))

    return read_array


def _object_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    """Without this, cattrs makes a class whose fields all have defaults from an array or a string."""
    origin = get_origin(cls) or cls
    read: Callable[[Any, Any], Any]
    if origin in _OBJECTS:
        key_type = (get_args(cls) or (Any,))[0]
        read = (
            mapping_structure_factory(cls, converter, key_type=_KEYS[key_type])
            if key_type in _KEYS
            else mapping_structure_factory(cls, converter)
        )
    elif is_typeddict(origin):
        read = converter.gen_structure_typeddict(cls)
    else:
        read = converter.gen_structure_attrs_fromdict(cls)

    def read_object(value: object, _cls: Any) -> Any:
        if type(value) is not dict:
            raise _Mismatch(f"expected an object, got {_kind(value)}")
        return read(value, cls)

    return read_object


def _is_array(cls: Any) -> bool:
    return (get_origin(cls) or cls) in _ARRAYS


def _is_object(cls: Any) -> bool:
    origin = get_origin(cls) or cls
    return origin in _OBJECTS or (
        isinstance(origin, type)
        and (attrs.has(origin) or is_dataclass(origin) or is_typeddict(origin))
    )


def _make_converter() -> Converter:
    converter = make_converter()
    text_forms: tuple[tuple[type, Callable[[Any], str], Callable[[Any, str], Any]], ...] = (
        (bytes, lambda v: b64encode(v).decode(), lambda _, text: b64decode(text, validate=True)),
        (datetime, datetime.isoformat, lambda cls, text: cls.fromisoformat(text)),
        (date, date.isoformat, lambda cls, text: cls.fromisoformat(text)),
        (time, time.isoformat, lambda cls, text: cls.fromisoformat(text)),
        (UUID, str, lambda cls, text: cls(text)),
        (Decimal, str, lambda cls, text: cls(text)),
        (PurePath, str, lambda cls, text: cls(text)),
        (Path, str, lambda cls, text: cls(text)),
    )
    for cls, write, parse in text_forms:
        converter.register_unstructure_hook(cls, write)
        converter.register_structure_hook(cls, _text_reader(parse))
    converter.register_unstructure_hook(timedelta, timedelta.total_seconds)
    converter.register_structure_hook(timedelta, _read_seconds)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(float, _read_float)
    converter.register_structure_hook(bool, _read_bool)
    converter.register_structure_hook(str, _read_str)
    converter.register_structure_hook(_IntKey, lambda key, _: _read_key(key, int))
    converter.register_structure_hook(_FloatKey, lambda key, _: _read_key(key, float))
    converter.register_structure_hook_factory(_is_array, _array_hook)
    converter.register_structure_hook_factory(_is_object, _object_hook)
    return converter


def _refuse_constant(_name: str) -> NoReturn:
    raise _Mismatch("NaN and infinity are not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Mismatch("a number is out of range")
    return value


_CONVERTER: Final = _make_converter()
_ENCODER: Final = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER: Final = JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
