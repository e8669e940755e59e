from __future__ import annotations

import enum
import json
import traceback
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any, Literal, NewType, NoReturn, TypedDict
from uuid import UUID

import attrs
import pytest
from cattrs import Converter, IterableValidationError, StructureHandlerNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from queue_runtime.errors import QueueError, SerializationError, ValidationError
from queue_runtime.messages import SessionId
from queue_runtime.serialization import describe_problems, dump_json, load_json


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Label:
    name: str
    color: Color = Color.RED


@attrs.frozen
class Defaults:
    x: int = 1


@dataclass
class Pull:
    number: int
    title: str
    labels: list[Label]
    session: SessionId
    score: float = 0.0
    merged: bool = False
    author: str | None = None


@attrs.frozen
class Tree:
    name: str
    children: tuple[Tree, ...] = ()


@attrs.frozen
class Unreadable:
    error: QueueError


class Box(TypedDict):
    size: int


Number = NewType("Number", int)


@attrs.frozen
class Everything:
    when: datetime
    day: date
    hour: time
    took: timedelta
    blob: bytes
    uid: UUID
    price: Decimal
    path: Path
    pure: PurePosixPath
    color: Color
    level: Level
    pair: tuple[int, str]
    many: tuple[int, ...]
    names: frozenset[str]
    bag: set[int]
    table: dict[str, list[int]]
    numbered: dict[int, str]
    measured: dict[float, str]
    colored: dict[Color, int]
    either: int | str | None
    box: Box
    number: Number
    anything: Any


EVERYTHING = Everything(
    when=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    day=date(2026, 1, 2),
    hour=time(3, 4, 5),
    took=timedelta(seconds=1.5),
    blob=b"\x00\xff",
    uid=UUID(int=5),
    price=Decimal("1.10"),
    path=Path("a/b"),
    pure=PurePosixPath("/c"),
    color=Color.BLUE,
    level=Level.HIGH,
    pair=(1, "x"),
    many=(1, 2, 3),
    names=frozenset({"a"}),
    bag={7},
    table={"a": [1, 2]},
    numbered={1: "one"},
    measured={1.5: "more"},
    colored={Color.RED: 1},
    either="text",
    box={"size": 3},
    number=Number(9),
    anything={"free": [1, None]},
)


def problems(value: object, payload_type: Any) -> tuple[str, ...]:
    """The problems of a body that holds ``value``."""
    return body_problems(json.dumps(value).encode(), payload_type)


def body_problems(body: bytes, payload_type: Any) -> tuple[str, ...]:
    with pytest.raises(SerializationError) as caught:
        load_json(body, payload_type)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert all(" @ " in problem for problem in error.problems)
    assert all(problem in str(error) for problem in error.problems)
    return error.problems


# --- there and back --------------------------------------------------------------------------------


def test_everything_comes_back() -> None:
    body = dump_json(EVERYTHING)
    assert load_json(body, Everything) == EVERYTHING
    plain = json.loads(body)
    assert plain["blob"] == "AP8="
    assert plain["took"] == 1.5
    assert plain["when"] == "2026-01-02T03:04:05.000678+00:00"
    assert plain["color"] == "blue"
    assert plain["numbered"] == {"1": "one"}


def test_a_dataclass_comes_back_with_its_kinds() -> None:
    pull = Pull(7, "Fix", [Label("bug")], SessionId("octo/hello"), 1.0, True, "me")
    back = load_json(dump_json(pull), Pull)
    assert back == pull
    assert type(back.session) is SessionId


def test_recursive_classes_come_back() -> None:
    tree = Tree("a", (Tree("b", (Tree("c"),)), Tree("d")))
    assert load_json(dump_json(tree), Tree) == tree


def test_json_is_compact_utf_8() -> None:
    assert dump_json({"a": [1, "ü💡"]}) == '{"a":[1,"ü💡"]}'.encode()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_every_json_value_comes_back(value: object) -> None:
    assert load_json(dump_json(value), Any) == value


@pytest.mark.parametrize(
    ("value", "payload_type", "expected"),
    [
        ([1], list, [1]),
        ([1], Sequence[int], (1,)),
        ([1, 1], set[int], {1}),
        ([], tuple[int, ...], ()),
        ([1], tuple, (1,)),
        ([1], deque[int], deque([1])),
        ({"a": 1}, dict, {"a": 1}),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        ({"a": 1}, Counter[str], Counter("a")),
        ({"a": [1]}, defaultdict[str, list[int]], {"a": [1]}),
        (1, float, 1.0),
        (1, int | str, 1),
        ("red", Color | None, Color.RED),
        (None, Label | None, None),
        ({"name": "x"}, Label | Defaults | None, Label("x")),
        ("a", Literal["a", "b"], "a"),
        (3, Number, 3),
        ({}, Annotated[Defaults, "note"], Defaults()),
        ({"x": 2, "unknown": 3}, Defaults, Defaults(2)),
        ("p/q", PurePath, PurePath("p/q")),
    ],
)
def test_what_fits(value: object, payload_type: Any, expected: object) -> None:
    assert load_json(json.dumps(value).encode(), payload_type) == expected


# --- bodies that are not JSON ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "Expecting value @ line 1 column 1"),
        (b"{", "Expecting property name enclosed in double quotes @ line 1 column 2"),
        (b'{"a":1}\n}', "Extra data @ line 2 column 1"),
        (b'"ab', "Unterminated string starting at @ line 1 column 1"),
        (b"\xff\xfe1", "invalid start byte @ byte 0"),
        (b'{"a":"\xc3"}', "invalid continuation byte @ byte 6"),
        (b"\xef\xbb\xbf1", "Expecting value @ line 1 column 1"),
        (b"[" * 100_000, "nested too deeply @ $"),
        (b"NaN", "NaN and infinity are not JSON @ $"),
        (b"[-Infinity]", "NaN and infinity are not JSON @ $"),
        (b"1e999", "a number is out of range @ $"),
        (b"9" * 5_000, "a number has too many digits @ $"),
    ],
)
def test_what_is_not_json(body: bytes, expected: str) -> None:
    assert body_problems(body, Any) == (expected,)


def refusal(body: bytes, payload_type: Any) -> SerializationError | None:
    """Why the body cannot be read; any other error is a bug and passes."""
    try:
        load_json(body, payload_type)
    except SerializationError as error:
        return error
    return None


@settings(deadline=None)
@given(st.binary(max_size=60), st.sampled_from([Any, int, Pull, list[Label], dict[int, Tree], Box]))
def test_any_bytes_give_a_value_or_a_serialization_error(body: bytes, payload_type: Any) -> None:
    error = refusal(body, payload_type)
    assert error is None or error.problems


@settings(deadline=None)
@given(JSON_VALUES, st.sampled_from([int, Pull, list[Label], dict[int, Tree], Box, Everything]))
def test_any_json_gives_a_value_or_a_serialization_error(value: object, payload_type: Any) -> None:
    error = refusal(json.dumps(value).encode(), payload_type)
    if error is not None:
        assert error.problems
        assert all(problem.isprintable() for problem in error.problems)


# --- JSON that does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "payload_type", "expected"),
    [
        ("5", int, "expected int, got a string"),
        (True, int, "expected int, got a boolean"),
        (5.5, int, "expected int, got a decimal number"),
        (None, int, "expected int, got null"),
        (1, bool, "expected bool, got a whole number"),
        ("1.5", float, "expected float, got a string"),
        (True, float, "expected float, got a boolean"),
        (10**400, float, "invalid value, expected float"),
        ({}, str, "expected str, got an object"),
        (1, SessionId, "expected SessionId, got a whole number"),
        ("", SessionId, "invalid value, expected SessionId"),
        ("abc", list[str], "expected an array, got a string"),
        ({"a": 1}, list[str], "expected an array, got an object"),
        ("ab", tuple[str, str], "expected an array, got a string"),
        ("ab", set[str], "expected an array, got a string"),
        ("ab", frozenset[str], "expected an array, got a string"),
        (["a"], tuple[str, str], "expected 2 items, got 1"),
        ([], Defaults, "expected an object, got an array"),
        ("x", Defaults, "expected an object, got a string"),
        (None, Defaults, "expected an object, got null"),
        ([], Box, "expected an object, got an array"),
        ([["a", 1]], dict[str, int], "expected an object, got an array"),
        ("purple", Color, "invalid value, expected Color"),
        (3, Level, "invalid value, expected Level"),
        ("purple", Literal["red"], "invalid value, expected Literal['red']"),
        ("yesterday", datetime, "invalid value, expected datetime"),
        (5, datetime, "expected text for datetime, got a whole number"),
        ("x", UUID, "invalid value, expected UUID"),
        ("x", Decimal, "invalid value, expected Decimal"),
        ("?", bytes, "invalid value, expected bytes"),
        (1e300, timedelta, "invalid value, expected timedelta"),
        ("1", timedelta, "expected float, got a string"),
        ([1], int | str | None, "invalid value, expected int | str | None"),
        ("x", Label | Defaults, "invalid value, expected"),
    ],
)
def test_what_does_not_fit(value: object, payload_type: Any, expected: str) -> None:
    (problem,) = problems(value, payload_type)
    assert problem.startswith(expected)
    assert problem.endswith(" @ $")


@pytest.mark.parametrize("payload_type", [object, list[QueueError], Unreadable, Label | Tree])
def test_a_type_that_no_json_fits_is_not_the_bodys_fault(payload_type: Any) -> None:
    with pytest.raises(ValidationError, match="cannot be read from JSON"):
        load_json(b"hunter2", payload_type)


def test_every_problem_has_its_path() -> None:
    body = {
        "number": "7",
        "labels": [{"name": "ok"}, {"name": 5, "color": "purple"}, {}, "bug"],
        "session": "",
        "score": None,
        "merged": "no",
        "author": 1,
    }
    assert problems(body, Pull) == (
        "expected int, got a string @ $.number",
        "required field missing @ $.title",
        "expected str, got a whole number @ $.labels[1].name",
        "invalid value, expected Color @ $.labels[1].color",
        "required field missing @ $.labels[2].name",
        "expected an object, got a string @ $.labels[3]",
        "invalid value, expected SessionId @ $.session",
        "expected float, got null @ $.score",
        "expected bool, got a string @ $.merged",
        "expected str, got a whole number @ $.author",
    )


def test_paths_of_keys() -> None:
    assert problems({"a": {"b c": [1, "x"]}}, dict[str, dict[str, list[int]]]) == (
        "expected int, got a string @ $['a']['b c'][1]",
    )
    assert problems({"one": 1}, dict[int, int]) == ("the key is not int @ $['one']",)
    assert problems({"one": 1}, dict[float, int]) == ("the key is not float @ $['one']",)


def test_paths_are_escaped_and_bounded() -> None:
    (problem,) = problems({"\x1b[31m\n" + "k" * 10_000: "x"}, dict[str, int])
    assert problem.isprintable()
    assert len(problem) < 150
    assert r"\x1b[31m\n" in problem


def test_the_number_of_problems_is_bounded() -> None:
    found = problems(["x"] * 1_000, list[int])
    assert len(found) == 101
    assert found[0] == "expected int, got a string @ $[0]"
    assert found[-1] == "900 more problems @ $"


def test_deep_data_of_a_recursive_class_is_refused_without_a_crash() -> None:
    depth = 3_000
    body = b'{"name":"a","children":[' * depth + b"]}" * depth
    with pytest.raises(SerializationError, match="nested too deeply"):
        load_json(body, Tree)
    depth = 400  # the decoder manages this, the classes do not
    body = b'{"name":"a","children":[' * depth + b"]}" * depth
    with pytest.raises(SerializationError, match="nested too deeply"):
        load_json(body, Tree)
    shallower = 40
    body = b'{"name":"a","children":[' * shallower + b"7" + b"]}" * shallower
    (problem,) = body_problems(body, Tree)
    assert problem.startswith("expected an object, got a whole number @ $.children[0].children[0]")


@pytest.mark.parametrize(
    ("body", "payload_type"),
    [
        (b'{"name": "hunter2"}', Pull),
        (b'{"number": "hunter2"}', Pull),
        (b'"hunter2"', Color),
        (b'"hunter2"', Literal["a"]),
        (b'["hunter2"]', int | str | None),
        (b'["hunter2", "hunter2"]', tuple[str, int, int]),
        (b'{"name": "x", "color": "hunter2"}', Label),
        (b'"hunter2\x00"', SessionId),
        (b'{"a": hunter2', Any),
        (b'"hunter2\xff"', Any),
        (b'"hunter2"', Label | Defaults),
        (b'"hunter2\\u0000"', SessionId),
    ],
)
def test_nothing_of_the_body_shows(body: bytes, payload_type: Any) -> None:
    with pytest.raises(SerializationError) as caught:
        load_json(body, payload_type)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
    assert "hunter2" not in text


# --- objects without JSON form ---------------------------------------------------------------------


class Opaque:
    pass


class Broken(dict[str, int]):
    def items(self) -> NoReturn:
        raise OSError("hidden")


def dump_problems(value: object) -> tuple[str, ...]:
    with pytest.raises(SerializationError, match="has no JSON form") as caught:
        dump_json(value)
    assert caught.value.__context__ is None
    return caught.value.problems


def test_every_place_without_a_json_form_is_named() -> None:
    value = {
        "a": [1, Opaque()],
        "b": float("nan"),
        "c": {"d": (float("-inf"), "fine")},
        "e": "\ud800",
        "f": [None, True, 1, "fine", {"k": 1, None: 2}],
    }
    assert dump_problems(value) == (
        "Opaque has no JSON form @ $['a'][1]",
        "NaN and infinity have no JSON form @ $['b']",
        "NaN and infinity have no JSON form @ $['c']['d'][0]",
        "text with a lone surrogate @ $['e']",
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Opaque(), "Opaque has no JSON form @ $"),
        (float("nan"), "NaN and infinity have no JSON form @ $"),
        pytest.param(10**5_000, "the number has too many digits @ $", id="huge"),
        ({float("inf"): 1}, "a key that is NaN or infinity @ $"),
        ({"\ud800": 1}, "a key with a lone surrogate @ $"),
        ({Opaque: 1}, "a key must be text, not type @ $"),
        (Broken(), "could not be read (OSError) @ $"),
        ({(1, 2): 3}, "could not be read (TypeError) @ $"),
    ],
)
def test_what_has_no_json_form(value: object, expected: str) -> None:
    assert dump_problems(value) == (expected,)


def test_what_refers_to_itself_has_no_json_form() -> None:
    ring: list[object] = []
    ring.append(ring)
    assert dump_problems(ring) == ("nested too deeply, or refers to itself @ $",)


def test_shared_values_are_no_ring() -> None:
    shared = [1]
    assert dump_json([shared, shared]) == b"[[1],[1]]"
    assert dump_problems([shared, shared, Opaque()]) == ("Opaque has no JSON form @ $[2]",)


def test_many_places_are_counted() -> None:
    found = dump_problems([Opaque()] * 150)
    assert len(found) == 101
    assert found[-1] == "50 more problems @ $"


def test_subclasses_of_plain_values_are_plain() -> None:
    value = OrderedDict(a=SessionId("s"), b=Level.LOW)
    assert json.loads(dump_json(value)) == {"a": "s", "b": 1}


# --- shared with the configuration -----------------------------------------------------------------


def test_problems_of_another_converter() -> None:
    converter = Converter(forbid_extra_keys=True)
    with pytest.raises(ExceptionGroup) as caught:
        converter.structure({"x": "a", "y\n": 1, "z": 2}, Defaults)
    assert describe_problems(caught.value) == (
        "invalid value, expected int @ $.x",
        r"unknown fields: 'y\n', 'z' @ $",
    )


def test_other_words_for_a_problem() -> None:
    converter = Converter()
    with pytest.raises(ExceptionGroup) as caught:
        converter.structure({"x": "a"}, Defaults)
    described = describe_problems(caught.value, describe=lambda error, wanted: f"{error} {wanted}")
    assert described == ("invalid literal for int() with base 10: 'a' <class 'int'> @ $.x",)


def test_a_type_without_a_hook_in_another_converter() -> None:
    with pytest.raises(StructureHandlerNotFoundError) as caught:
        Converter().structure("x", QueueError)
    assert describe_problems(caught.value) == ("QueueError cannot be made from JSON @ $",)


def test_notes_of_others_do_not_disturb_the_path() -> None:
    error = ValueError("hidden")
    error.add_note("somebody's note")
    inner = IterableValidationError("items", [error], list)
    assert describe_problems(inner) == ("invalid value (ValueError) @ $",)


def test_an_error_without_a_type() -> None:
    assert describe_problems(ValueError("hidden")) == ("invalid value (ValueError) @ $",)
    assert describe_problems(ValueError("hidden"), expected=int) == (
        "invalid value, expected int @ $",
    )
