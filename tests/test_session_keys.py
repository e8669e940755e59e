from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.messages import Message, SessionId
from queue_runtime.session_keys import (
    CompositeKey,
    Constant,
    FieldKey,
    FirstOf,
    NoKey,
    SessionKey,
)

EVENT = {
    "action": "opened",
    "repository": {"name": "hello", "full_name": "octo/hello", "owner": {"login": "octo"}},
    "pull_request": {"number": 7},
}

by_repository = CompositeKey("repository.owner.login", "repository.name")
by_pull_request = CompositeKey(
    "repository.owner.login", "repository.name", Constant("pull_request"), "pull_request.number"
)


@dataclass
class Owner:
    login: str


@attrs.frozen
class Repository:
    name: str
    owner: Owner
    _token: str = "hidden"


@dataclass
class Event:
    repository: Repository
    labels: dict[str, str] = field(default_factory=dict)


class Envelope:
    """A source that answers to names only."""

    def __init__(self, **metadata: object) -> None:
        self._metadata = metadata

    def get_metadata(self, name: str) -> object:
        return self._metadata.get(name)


class Color(enum.Enum):
    RED = "red"
    FIRST = 1
    NOTHING = None
    PAIR = (1, 2)


# --- one field -------------------------------------------------------------------------------------


def test_a_field_of_a_mapping() -> None:
    assert FieldKey("action")(EVENT) == "opened"
    assert FieldKey("pull_request.number")(EVENT) == "7"
    assert isinstance(FieldKey("action")(EVENT), SessionId)


def test_a_prefix_is_a_part_of_its_own() -> None:
    key = FieldKey("pull_request.number", prefix="pr")(EVENT)
    assert key is not None
    assert key == "pr/7"
    assert key.parts() == ("pr", "7")
    assert FieldKey("x", prefix="a/b")({"x": "c"}) != FieldKey("x", prefix="a")({"x": "b/c"})


def test_slashes_in_a_value_are_encoded() -> None:
    key = FieldKey("repository.full_name")(EVENT)
    assert key is not None
    assert key == "octo%2Fhello"
    assert key.parts() == ("octo/hello",)


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"a": None},
        {"a": {}},
        {"a": {"b": None}},
        {"a": {"b": ""}},
        {"a": "text"},
        None,
        7,
        object(),
    ],
)
def test_what_is_missing_or_empty_gives_no_key(source: object) -> None:
    assert FieldKey("a.b")(source) is None


def test_objects_are_read_by_attribute() -> None:
    event = Event(Repository("hello", Owner("octo")), {"team": "core"})
    assert FieldKey("repository.owner.login")(event) == "octo"
    assert FieldKey("labels.team")(event) == "core"
    assert FieldKey("labels.keys")(event) is None
    assert by_repository(event) == "octo/hello"


def test_messages_are_objects_too() -> None:
    message = Message(b"", correlation_id="c1", headers={"tenant": "t", "x.y": "dotted"})
    assert FieldKey("correlation_id")(message) == "c1"
    assert FieldKey("headers.tenant")(message) == "t"


def test_private_attributes_are_not_read() -> None:
    event = Event(Repository("hello", Owner("octo")))
    assert FieldKey("repository._token")(event) is None
    assert FieldKey("__class__.__name__")(event) is None
    assert FieldKey("_links.self")({"_links": {"self": "u"}}) == "u"


def test_metadata_is_asked_with_the_whole_name() -> None:
    envelope = Envelope(tenant="t", **{"repository.name": "hello"})
    assert FieldKey("tenant")(envelope) == "t"
    assert FieldKey("repository.name")(envelope) == "hello"
    assert FieldKey("other")(envelope) is None


def test_an_attribute_stands_in_for_missing_metadata() -> None:
    envelope = Envelope()
    envelope.tenant = "t"  # type: ignore[attr-defined]
    assert FieldKey("tenant")(envelope) == "t"


def test_a_name_with_dots_comes_before_a_path() -> None:
    assert FieldKey("a.b")({"a.b": "name", "a": {"b": "path"}}) == "name"


def test_a_metadata_attribute_that_is_no_method_is_ignored() -> None:
    assert FieldKey("x")(SimpleNamespace(get_metadata="text", x="y")) == "y"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (0, "0"),
        (-5, "-5"),
        (SessionId("s"), "s"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Color.RED, "red"),
        (Color.FIRST, "1"),
        (Color.NOTHING, None),
        ("ünïcödé 💡", "ünïcödé 💡"),
    ],
)
def test_values(value: object, expected: str | None) -> None:
    assert FieldKey("v")({"v": value}) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, "field 'v' is of type float: a session key takes text"),
        (True, "of type bool"),
        (b"x", "of type bytes"),
        ([], "of type list"),
        ({"secret": 1}, "of type dict"),
        (Color.PAIR, "of type tuple"),
        pytest.param(10**5_000, "a number of more than 128 digits", id="huge"),
        ("line\nbreak", "control character"),
        ("x" * 129, "129 characters long, the limit is 128"),
        ("/" * 43, "129 characters long"),
        ("\ud800", "control character"),
    ],
)
def test_values_that_cannot_be_an_id(value: object, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected) as caught:
        FieldKey("v")({"v": value})
    assert "secret" not in str(caught.value)


# --- several fields --------------------------------------------------------------------------------


def test_a_composite_takes_all_fields() -> None:
    assert by_pull_request(EVENT) == "octo/hello/pull_request/7"


@pytest.mark.parametrize("missing", ["repository", "pull_request"])
def test_a_composite_takes_none_when_one_is_missing(missing: str) -> None:
    assert by_pull_request({k: v for k, v in EVENT.items() if k != missing}) is None


PART = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=10)


@given(st.lists(PART, min_size=2, max_size=2), st.lists(PART, min_size=2, max_size=2))
def test_different_fields_give_different_keys(first: list[str], second: list[str]) -> None:
    key = CompositeKey("a", "b")
    one, other = (key(dict(zip("ab", values, strict=True))) for values in (first, second))
    assert one is not None
    assert (one == other) == (first == second)
    assert list(one.parts()) == first


@given(PART, PART, PART)
def test_strategies_of_different_width_never_meet(a: str, b: str, c: str) -> None:
    composite = CompositeKey("a", "b")({"a": a, "b": b})
    assert FieldKey("c")({"c": c}) != composite
    assert FieldKey("c")({"c": f"{a}/{b}"}) != composite


# --- the others ------------------------------------------------------------------------------------


def test_the_first_that_finds_a_key_wins() -> None:
    key: SessionKey = FirstOf(by_pull_request, by_repository, FieldKey("action", prefix="action"))
    assert key(EVENT) == "octo/hello/pull_request/7"
    assert key({"repository": EVENT["repository"]}) == "octo/hello"
    assert key({"action": "ping"}) == "action/ping"
    assert key({}) is None


def test_any_callable_will_do() -> None:
    def by_length(source: Any) -> SessionId | None:
        return SessionId(str(len(source))) if source else None

    key = FirstOf(by_length, lambda _source: "plain")  # type: ignore[arg-type, return-value]
    assert key("abc") == "3"
    assert key("") == "plain"
    assert isinstance(key(""), SessionId)


def test_what_a_callable_returns_is_checked() -> None:
    with pytest.raises(ValidationError, match="session id must be a str, got int"):
        FirstOf(lambda _source: 7)({})  # type: ignore[arg-type, return-value]


def test_no_key() -> None:
    assert NoKey()(EVENT) is None
    assert FirstOf(NoKey(), FieldKey("action"))(EVENT) == "opened"


def test_strategies_are_values() -> None:
    assert FirstOf(by_repository, NoKey()) == FirstOf(
        CompositeKey("repository.owner.login", "repository.name"), NoKey()
    )
    assert len({FieldKey("a"), FieldKey("a"), FieldKey("a", "p")}) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        by_repository.parts = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: FieldKey(""), "'' is not a field"),
        (lambda: FieldKey("a..b"), "'a..b' is not a field"),
        (lambda: FieldKey(".a"), "'.a' is not a field"),
        (lambda: FieldKey(7), "7 is not a field"),
        (lambda: FieldKey("a", prefix=""), "prefix is ''"),
        (lambda: FieldKey("a", prefix=7), "prefix is 7"),
        (CompositeKey, "CompositeKey needs at least one field"),
        (lambda: CompositeKey(Constant("a")), "CompositeKey needs at least one field"),
        (lambda: CompositeKey("a", 7), "7 is not a field"),
        (lambda: Constant(""), "text is ''"),
        (lambda: Constant(7), "text is 7"),
        (FirstOf, "FirstOf needs at least one strategy"),
        (lambda: FirstOf("action"), "'action' is no strategy: use FieldKey"),
    ],
)
def test_bad_strategies_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        make()
