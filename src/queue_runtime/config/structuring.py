"""From plain values (URL options, environment, files) to frozen attrs classes, with every problem at once.

cattrs picks the hook for a type; the hooks here are strict about what they take, apply every field's own
converter and validator, and collect what is wrong instead of stopping at the first of it.

Two kinds of sources are told apart by type. A file or a Python caller knows numbers from text, so ``"30"`` where
a number belongs is a mistake. URLs and environment variables only have text: theirs comes as :class:`Text`,
which may be read as a number, a truth value or ``none``.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, final, get_args, get_origin

import attrs
from cattrs import Converter

from queue_runtime.secret import Secret, SecretUrl, mask_url

__all__ = [
    "INTERNAL",
    "Problem",
    "Text",
    "did_you_mean",
    "settable_fields",
    "shown",
    "step",
    "structure",
    "unknown",
]

T = TypeVar("T")

_Hook = Callable[[Any, Any], Any]

INTERNAL: Final = "queue_runtime.internal"
"""Metadata key of an attrs field that no source may set."""

_SHOWN: Final = 80
_WHOLE_NUMBER: Final = re.compile(r"[+-]?\d{1,30}")
_WORD: Final = re.compile(r"\w+")
_REFUSALS: Final = (ValueError, TypeError)
"""What converters and validators raise: this package's ``ValidationError``, and what those of attrs use."""
_TRUTH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@final
class Text(str):
    """Text from a source that has nothing else (a URL, the environment): may stand for any simple type."""

    __slots__ = ()


@final
@attrs.frozen
class Problem:
    """One thing that is wrong.

    Args:
        text: What is wrong, with the value unless it is secret, and what was expected.
        path: Where: attribute names joined by dots; empty for the whole.
    """

    text: str
    path: str

    def __str__(self) -> str:
        return f"{self.text} @ {self.path}" if self.path else self.text


class _Wrong(Exception):
    """Carries problems out of a hook, their paths relative to what the hook was given."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems


def shown(value: object) -> str:
    """``value`` as a short, escaped literal, safe to print: nothing secret, no control characters."""
    if isinstance(value, (Secret, SecretUrl)):
        return repr(str(value))
    try:
        text = ascii(mask_url(value)) if isinstance(value, str) else ascii(value)
    except ValueError:  # an int of more digits than Python is willing to write
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def did_you_mean(name: str, known: Iterable[str], kind: str = "known") -> str:
    """The end of a message about an unknown ``name``: the nearest known one, if near, and all of them."""
    names = sorted(known)
    if not names:
        return f"; {kind}: nothing"
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return (f", did you mean {near[0]!r}?" if near else ";") + f" {kind}: {', '.join(names)}"


def _wrong(value: object, expected: str) -> _Wrong:
    if isinstance(value, (Mapping, list, tuple)):
        # Not shown: there may be secrets inside.
        return _Wrong(Problem(f"expected {expected}, got {_kind(value)}", ""))
    return _Wrong(Problem(f"expected {expected}, got {shown(value)}", ""))


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "text" if isinstance(value, str) else f"a value of type {type(value).__name__}"


def step(name: object) -> str:
    """A key as a part of a path, escaped unless it looks like a name."""
    return name if isinstance(name, str) and name.isidentifier() else shown(name)


def _to_float(value: Any, _type: Any) -> float:
    number = math.nan
    if isinstance(value, Text):
        try:
            number = float(value)
        except ValueError:
            pass
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            pass
    if not math.isfinite(number):
        raise _wrong(value, "a number")
    return number


def _to_int(value: Any, _type: Any) -> int:
    if isinstance(value, Text) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong(value, "a whole number")


def _to_bool(value: Any, _type: Any) -> bool:
    if isinstance(value, Text) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    if isinstance(value, bool):
        return value
    raise _wrong(value, "true or false")


def _to_text(value: Any, text_type: Any) -> Any:
    """Plain text, and its validated subclasses such as queue names."""
    if issubclass(text_type, enum.Enum):
        return _to_enum(value, text_type)
    if not isinstance(value, str):
        raise _wrong(value, "text")
    return text_type(str(value))


def _to_guarded(value: Any, guarded_type: Any) -> Any:
    if isinstance(value, guarded_type):
        return value
    if not isinstance(value, str):
        # Even of the wrong type it may be the secret, such as a password of digits only.
        raise _Wrong(Problem(f"expected text, got {_kind(value)}", ""))
    return guarded_type(str(value))


def _to_mapping(value: Any, _type: Any) -> Any:
    """A table as it is: whoever declares one converts and validates its entries."""
    if not isinstance(value, Mapping):
        raise _Wrong(Problem(f"expected a table, got {_kind(value)}", ""))
    return value


def _to_path(value: Any, _type: Any) -> Path:
    if not isinstance(value, (str, Path)) or str(value) == "" or "\0" in str(value):
        raise _wrong(value, "a path")
    return Path(value)


def _choose(value: Any, choices: Mapping[str, T]) -> T:
    if isinstance(value, str) and value.strip().lower() in choices:
        return choices[value.strip().lower()]
    if isinstance(value, str):
        raise _Wrong(
            Problem(
                f"{shown(value)} is unknown" + did_you_mean(value, choices, "expected one of"), ""
            )
        )
    raise _wrong(value, f"one of {', '.join(choices)}")


def _to_enum(value: Any, enum_type: Any) -> Any:
    if isinstance(value, enum_type):
        return value
    return _choose(value, {str(member.value).lower(): member for member in enum_type})


def _to_literal(value: Any, literal: Any) -> Any:
    values = get_args(literal)
    for known in values:
        if type(value) is type(known) and value == known:
            return known
    return _choose(value, {str(known).lower(): known for known in values})


def _is_union(candidate: Any) -> bool:
    return get_origin(candidate) in (Union, UnionType)


def _is_literal(candidate: Any) -> bool:
    return get_origin(candidate) is Literal


def _is_mapping(candidate: Any) -> bool:
    return get_origin(candidate) is Mapping


def _is_textual(candidate: Any) -> bool:
    """Whether the word "none" could be meant as text for this type."""
    if _is_literal(candidate):
        return "none" in get_args(candidate)
    if not isinstance(candidate, type):
        return False
    if issubclass(candidate, enum.Enum):
        return any(str(member.value).lower() == "none" for member in candidate)
    return issubclass(candidate, (str, Secret, SecretUrl, Path))


def _optional_hook(union: Any) -> _Hook:
    members = [member for member in get_args(union) if member is not NoneType]
    if len(members) != 1:
        raise TypeError(f"a configuration field may be 'X | None' but no other union, got {union}")
    (inner,) = members
    textual = _is_textual(inner)

    def structure_optional(value: Any, _type: Any) -> Any:
        if value is None or (
            not textual and isinstance(value, str) and value.strip().lower() == "none"
        ):
            return None
        return _CONVERTER.structure(value, inner)

    return structure_optional


def _attrs_hook(config_type: Any) -> _Hook:
    hints = _hints(config_type)
    fields = settable_fields(config_type)

    def structure_attrs(value: Any, _type: Any) -> Any:
        if isinstance(value, config_type):
            return value
        if not isinstance(value, Mapping):
            # Not shown: what was put in place of a table may be a secret.
            raise _Wrong(Problem(f"expected a table, got {_kind(value)}", ""))
        problems = [unknown(name, fields) for name in value if name not in fields]
        structured: dict[str, Any] = {}
        for name, field in fields.items():
            if name not in value:
                if field.default is attrs.NOTHING:
                    problems.append(Problem("required, but missing", name))
                continue
            try:
                structured[name] = _CONVERTER.structure(value[name], hints[name])
            except _Wrong as wrong:
                problems.extend(_below(name, wrong.problems))
            except ValueError as error:
                problems.append(Problem(_said(error), name))
        if not problems:
            try:
                return config_type(
                    **{str(fields[name].alias): entry for name, entry in structured.items()}
                )
            except _REFUSALS:
                pass
        raise _Wrong(*problems, *_refusals(config_type, structured, value))

    return structure_attrs


def _hints(config_type: Any) -> dict[str, Any]:
    """The types of a class's fields, also where its ``__module__`` names a package that re-exports it."""
    home = config_type.__module__
    names: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(f"{home}."):
            namespace = vars(module)
            if namespace.get(config_type.__name__) is config_type:
                names.update(namespace)
    return typing.get_type_hints(config_type, localns=names)


def settable_fields(config_type: Any) -> dict[str, attrs.Attribute[Any]]:
    """The fields of an attrs class that a source may set, by name."""
    return {
        field.name: field
        for field in attrs.fields(config_type)
        if field.init and INTERNAL not in field.metadata
    }


def unknown(name: object, known: Iterable[str]) -> Problem:
    """The problem of a key that is none of the ``known`` ones."""
    return Problem(f"{shown(name)} is unknown" + did_you_mean(str(name), known), step(name))


def _below(name: str, problems: Sequence[Problem]) -> list[Problem]:
    return [
        attrs.evolve(problem, path=f"{name}.{problem.path}" if problem.path else name)
        for problem in problems
    ]


def _said(error: Exception) -> str:
    # The validators of attrs put their attribute and type behind the text.
    return str(error.args[0] if error.args else type(error).__name__).partition("\n")[0]


def _refusals(
    config_type: Any, structured: Mapping[str, Any], given: Mapping[Any, Any]
) -> list[Problem]:
    """Everything the class itself has against the values that could be structured.

    Each field's converter and validator are asked. A class that checks itself as a whole stops at its first
    complaint: if that begins with the name of a field, it is about that field, and the class is asked again
    without it, until it is content or speaks of a value that was left out.
    """
    problems = _field_problems(config_type, structured)
    bad = {problem.path for problem in problems}
    good = {name: value for name, value in structured.items() if name not in bad}
    fields = settable_fields(config_type)
    left_out = {name for name in given if name not in good}
    while all(name in good for name, field in fields.items() if field.default is attrs.NOTHING):
        try:
            config_type(**{str(fields[name].alias): value for name, value in good.items()})
        except _REFUSALS as error:
            words = _WORD.findall(_said(error))
            if not left_out.isdisjoint(words):
                break
            about = words[0] if words and words[0] in good else ""
            problems.append(Problem(_said(error), about))
            if not about:
                break
            del good[about]
            left_out.add(about)
        else:
            break
    return problems


def _field_problems(config_type: Any, structured: Mapping[str, Any]) -> list[Problem]:
    """What each field's own converter and validator say about the values that could be structured."""
    problems = []
    # Validators are given the instance; this one has no values, and theirs look at nothing but their own.
    bare = config_type.__new__(config_type)
    for name, field in settable_fields(config_type).items():
        if name not in structured:
            continue
        value = structured[name]
        convert: Any = field.converter
        try:
            if convert is not None and not isinstance(convert, attrs.Converter):
                value = convert(value)
            if field.validator is not None:
                field.validator(bare, field, value)
        except _REFUSALS as error:
            problems.append(Problem(_said(error), name))
        except AttributeError:
            continue  # looks at other fields: the class as a whole will tell
    return problems


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook(float, _to_float)
    converter.register_structure_hook(int, _to_int)
    converter.register_structure_hook(bool, _to_bool)
    converter.register_structure_hook(Secret, _to_guarded)
    converter.register_structure_hook(SecretUrl, _to_guarded)
    converter.register_structure_hook(Path, _to_path)
    # cattrs asks these first, by class; they hold for subclasses too.
    converter.register_structure_hook(str, _to_text)
    converter.register_structure_hook(enum.Enum, _to_enum)
    converter.register_structure_hook_func(_is_literal, _to_literal)
    converter.register_structure_hook_func(_is_mapping, _to_mapping)
    converter.register_structure_hook_factory(_is_union, _optional_hook)
    converter.register_structure_hook_factory(attrs.has, _attrs_hook)
    return converter


_CONVERTER: Final = _make_converter()


def structure(config_type: type[T], value: object) -> tuple[T | None, list[Problem]]:
    """Structure ``value`` into ``config_type``: the result and no problem, or ``None`` and all problems.

    Nothing is raised for bad values; a field type that configuration cannot have is a ``TypeError``.
    """
    try:
        return _CONVERTER.structure(value, config_type), []
    except _Wrong as wrong:
        return None, list(wrong.problems)
