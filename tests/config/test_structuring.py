"""Options become typed values, or every problem is told at once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.config import Text, split_url, structure_options
from queue_runtime.config.structuring import Problem, structure
from queue_runtime.errors import ConfigurationError, ValidationError
from queue_runtime.messages import QueueName
from queue_runtime.secret import Secret, SecretUrl

CANARY = "canary-7Zq"


class Level(enum.Enum):
    FULL = "full"
    NORMAL = "normal"


class Side(enum.StrEnum):
    LEFT = "left"
    RIGHT = "right"


class Maybe(enum.Enum):
    NONE = "none"
    SOME = "some"


def _positive(_instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValidationError(f"{attribute.name} is {value!r}: expected more than 0")


@attrs.frozen(kw_only=True)
class Options:
    path: str = "x"
    lock_duration: float = attrs.field(default=30.0, validator=_positive)
    count: int | None = attrs.field(default=10, validator=_positive)
    declare: bool = True
    level: Level = Level.FULL
    maybe: Maybe | None = None
    side: Side = Side.LEFT
    mode: Literal["fast", "safe", 3] = "fast"
    folder: Path | None = None
    queue: QueueName | None = None
    password: Secret | None = None
    proxy: SecretUrl | None = None
    ttl: float | None = None


def made(**options: str) -> Options:
    return structure_options(Options, options, where="memory://")


def problems_of(**options: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        made(**options)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lock_duration", "5", 5.0),
        ("lock_duration", "1e2", 100.0),
        ("lock_duration", " 2.5 ", 2.5),
        ("count", "7", 7),
        ("count", "none", None),
        ("count", "None", None),
        ("declare", "false", False),
        ("declare", "NO", False),
        ("declare", "0", False),
        ("declare", "true", True),
        ("declare", "yes", True),
        ("declare", "1", True),
        ("level", "NORMAL", Level.NORMAL),
        ("maybe", "none", Maybe.NONE),
        ("side", "Right", Side.RIGHT),
        ("mode", "Safe", "safe"),
        ("mode", "3", 3),
        ("folder", "/tmp/x", Path("/tmp/x")),
        ("queue", "none", QueueName("none")),
        ("password", "none", Secret("none")),
        ("password", "12345", Secret("12345")),
        ("proxy", "http://u:p@h", SecretUrl("http://u:p@h")),
        ("path", "none", "none"),
        ("ttl", "none", None),
    ],
)
def test_text_becomes_what_the_type_says(name: str, text: str, value: object) -> None:
    got = getattr(made(**{name: text}), name)
    assert got == value
    assert type(got) is type(value)


def test_a_secret_is_taken_as_it_is() -> None:
    options = structure_options(Options, {"password": Secret(CANARY)}, where="x://")
    assert options.password == Secret(CANARY)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("lock_duration", "abc", "expected a number, got 'abc'"),
        ("lock_duration", "nan", "expected a number, got 'nan'"),
        ("lock_duration", "-inf", "expected a number, got '-inf'"),
        ("lock_duration", "", "expected a number, got ''"),
        ("lock_duration", "-1", "lock_duration is -1.0: expected more than 0"),
        ("count", "1.5", "expected a whole number, got '1.5'"),
        ("count", "9" * 5000, "expected a whole number, got '" + "9" * 78 + "…"),
        ("count", "0", "count is 0: expected more than 0"),
        ("declare", "maybe", "expected true or false, got 'maybe'"),
        (
            "level",
            "norml",
            "'norml' is unknown, did you mean 'normal'? expected one of: full, normal",
        ),
        ("side", "up", "'up' is unknown; expected one of: left, right"),
        ("mode", "x", "'x' is unknown; expected one of: 3, fast, safe"),
        ("folder", "", "expected a path, got ''"),
        ("folder", "a\0b", "expected a path, got 'a\\x00b'"),
        ("lock_duration", "\x1b[31m\n", "expected a number, got '\\x1b[31m\\n'"),
    ],
)
def test_a_bad_value_is_shown_with_what_was_expected(name: str, text: str, problem: str) -> None:
    assert problems_of(**{name: text}) == (f"{problem} @ {name}",)


def test_the_message_of_a_validated_text_is_passed_on() -> None:
    (problem,) = problems_of(queue="a b")
    assert problem.startswith("queue name 'a b' may only hold")
    assert problem.endswith("@ queue")


def test_all_problems_come_at_once_and_the_place_is_masked() -> None:
    with pytest.raises(ConfigurationError) as caught:
        structure_options(
            Options,
            {"lock_duratoin": "5", "lock_duration": "-5", "count": "x", "declare": "?"},
            where=f"x://user:{CANARY}@host",
        )
    assert str(caught.value).splitlines()[0] == "bad options of 'x://***@host'"
    unknown, *others = caught.value.problems
    assert unknown.startswith(
        "'lock_duratoin' is unknown, did you mean 'lock_duration'? known: count,"
    )
    assert others == [
        "expected a whole number, got 'x' @ count",
        "expected true or false, got '?' @ declare",
        "lock_duration is -5.0: expected more than 0 @ lock_duration",
    ]


def test_fixed_values_are_no_options() -> None:
    options = structure_options(Options, {}, where="x://", fixed={"path": "jobs.db"})
    assert options.path == "jobs.db"
    with pytest.raises(ConfigurationError) as caught:
        structure_options(Options, {"path": "other"}, where="x://", fixed={"path": "jobs.db"})
    (problem,) = caught.value.problems
    assert problem.startswith("'path' is unknown")
    assert "path" not in problem.partition("known:")[2].partition("@")[0]


def test_a_class_without_options_says_so() -> None:
    @attrs.frozen
    class Bare:
        pass

    with pytest.raises(ConfigurationError, match="'a' is unknown; known: nothing @ a"):
        structure_options(Bare, {"a": "1"}, where="x://")


def test_an_error_has_no_cause_that_shows_more() -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(lock_duration=CANARY)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=6))
def test_any_options_are_taken_or_refused(options: dict[str, str]) -> None:
    found: tuple[str, ...] = ()
    try:
        structure_options(Options, options, where="x://")
    except ConfigurationError as error:
        found = error.problems
    assert bool(found) == bool(options.keys() - {"path"})
    assert all(problem.isprintable() for problem in found)


# --- typed values, as in files ------------------------------------------------------------------------


@attrs.frozen
class Whole:
    """Checks itself as a whole, one complaint at a time."""

    low: float = 1.0
    high: float = 10.0
    steps: int = 3

    def __attrs_post_init__(self) -> None:
        if self.low < 0:
            raise ValidationError(f"low is {self.low}: negative")
        if self.steps < 1:
            raise ValidationError(f"steps is {self.steps}: none")
        if self.high < self.low:
            raise ValidationError(f"high is {self.high}, less than low ({self.low})")


@attrs.frozen(kw_only=True)
class Outer:
    needed: int
    whole: Whole = attrs.field(factory=Whole)
    limited: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    strict: int = attrs.field(default=1, validator=attrs.validators.instance_of(int))
    other: Whole | None = None
    table: Mapping[str, int] = attrs.field(factory=dict, converter=dict)
    hidden: int = attrs.field(default=0, init=False)


def problems(value: object) -> set[str]:
    result, found = structure(Outer, value)
    assert (result is None) == bool(found)
    return {str(problem) for problem in found}


def test_typed_values_are_not_guessed() -> None:
    result, found = structure(
        Outer, {"needed": 5, "whole": {"low": 2}, "other": "none", "table": {"a": 1}}
    )
    assert found == []
    assert result == Outer(needed=5, whole=Whole(low=2.0), table={"a": 1})
    assert problems({"needed": "5"}) == {"expected a whole number, got '5' @ needed"}
    assert problems({"needed": Text("5")}) == set()
    assert problems({"needed": True}) == {"expected a whole number, got True @ needed"}
    assert problems({"needed": 5.0}) == {"expected a whole number, got 5.0 @ needed"}
    assert problems({"needed": [5]}) == {"expected a whole number, got a list @ needed"}
    assert problems({"needed": {"a": 5}}) == {"expected a whole number, got a table @ needed"}
    assert problems({"needed": 1, "whole": {"low": 10**400}}) == {
        "expected a number, got 1" + "0" * 78 + "… @ whole.low"
    }


def test_numbers_beyond_what_can_be_written() -> None:
    assert problems({"needed": 1, "whole": {"low": 16**9000}}) == {
        "expected a number, got a huge int @ whole.low"
    }


def test_validators_that_look_at_other_fields() -> None:
    def below(instance: Pair, attribute: attrs.Attribute[Any], value: int) -> None:
        if value > instance.high:
            raise ValidationError(f"{attribute.name} is {value}: above {instance.high}")

    @attrs.frozen
    class Pair:
        high: int
        low: int = attrs.field(validator=below)
        names: Mapping[str, int] | None = None

    assert structure(Pair, {"high": 2, "low": 1, "names": None}) == (Pair(2, 1), [])
    assert structure(Pair, {"high": 2, "low": 3}) == (None, [Problem("low is 3: above 2", "low")])
    assert structure(Pair, {"high": 2, "low": 1, "names": "none"}) == (Pair(2, 1), [])


def test_a_complaint_about_no_field_in_particular() -> None:
    @attrs.frozen
    class Moody:
        a: int = 1

        def __attrs_post_init__(self) -> None:
            raise ValidationError("not today")

    assert structure(Moody, {"a": 2}) == (None, [Problem("not today", "")])


def test_a_secret_is_not_shown_where_it_does_not_belong() -> None:
    (problem,) = problems({"needed": Secret(CANARY)})
    assert problem == "expected a whole number, got '***' @ needed"


def test_finished_objects_are_taken_as_they_are() -> None:
    whole = Whole(low=3.0)
    result, found = structure(Outer, {"needed": 1, "whole": whole})
    assert found == []
    assert result is not None
    assert result.whole is whole


def test_tables_are_not_shown_when_something_else_stands_there() -> None:
    assert problems({"needed": 1, "whole": CANARY}) == {"expected a table, got text @ whole"}
    assert problems({"needed": 1, "whole": 3}) == {
        "expected a table, got a value of type int @ whole"
    }
    assert problems({"needed": 1, "table": CANARY}) == {"expected a table, got text @ table"}
    assert problems(CANARY) == {"expected a table, got text"}


def test_every_complaint_of_a_class_that_stops_at_its_first_is_found() -> None:
    assert problems({"whole": {"low": -1, "steps": 0, "hgih": 1}, "other": {"steps": "x"}}) == {
        "required, but missing @ needed",
        "'hgih' is unknown, did you mean 'high'? known: high, low, steps @ whole.hgih",
        "low is -1.0: negative @ whole.low",
        "steps is 0: none @ whole.steps",
        "expected a whole number, got 'x' @ other.steps",
    }


def test_a_complaint_about_two_values_is_not_raised_for_one_that_was_left_out() -> None:
    assert problems({"needed": 1, "whole": {"low": 5, "high": 4}}) == {
        "high is 4.0, less than low (5.0) @ whole.high"
    }
    assert problems({"needed": 1, "whole": {"low": "x", "high": 0.5}}) == {
        "expected a number, got 'x' @ whole.low"
    }


def test_the_validators_of_attrs_are_understood() -> None:
    assert problems({"needed": 1, "limited": -1}) == {"'limited' must be >= 0: -1 @ limited"}


def test_fields_that_are_not_for_init_are_unknown() -> None:
    (problem,) = problems({"needed": 1, "hidden": 1})
    assert problem.startswith("'hidden' is unknown")


def test_keys_are_escaped_in_paths() -> None:
    found = problems({"needed": 1, "a\nb": 1, 5: 1})
    assert any(problem.endswith("@ 'a\\nb'") for problem in found)
    assert any(problem.startswith("5 is unknown") for problem in found)


def test_a_wrong_type_shows_no_secret() -> None:
    result, found = structure(Options, {"password": 123456, "proxy": [CANARY]})
    assert result is None
    assert {str(problem) for problem in found} == {
        "expected text, got a value of type int @ password",
        "expected text, got a list @ proxy",
    }


def test_a_union_of_more_is_a_mistake_of_the_author() -> None:
    @attrs.frozen
    class Odd:
        value: int | str = 1

    with pytest.raises(TypeError, match="no other union"):
        structure(Odd, {"value": 1})


def test_a_problem_without_a_path_is_its_text() -> None:
    assert str(Problem("bad", "")) == "bad"
    assert str(Problem("bad", "a.b")) == "bad @ a.b"


# --- URLs ---------------------------------------------------------------------------------------------


def test_a_url_is_taken_apart() -> None:
    parts, options = split_url("sqlite:////abs/x.db?a=b+c%20d%26&e=&f=1=2")
    assert (parts.scheme, parts.path) == ("sqlite", "//abs/x.db")
    assert options == {"a": "b+c d&", "e": "", "f": "1=2"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory", "'memory' is not a provider URL: expected scheme://…, such as memory://"),
        ("memory:x", "'memory:x' is not a provider URL"),
        ("", "'' is not a provider URL"),
        ("://x", "'://x' is not a provider URL"),
        ("x://host:port", "'x://host:port' is not a well-formed URL"),
        ("x://[::1", "'x://[::1' is not a well-formed URL"),
        ("x://h?a=1&a=2", "given more than once @ a"),
        ("x://h?a", "expected name=value (an & inside a value is %26) @ option 1"),
        ("x://h#f", "unexpected #: write it as %23"),
        (f"x://u:{CANARY}@h:port", "'x://***@h:port' is not a well-formed URL"),
        (f"x://h?password=a&{CANARY}", "@ option 2"),
        (f"x://h?any={CANARY}&b", "bad options of 'x://h'"),
        (f"x://:pa?ss{CANARY}@h/#", "'x://***@h/#"),
    ],
)
def test_a_bad_url_is_refused_without_its_secrets(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_url(url)
    assert message in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
