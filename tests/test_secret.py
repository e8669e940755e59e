"""Secrets stay hidden in every way a value is commonly shown, and URLs lose theirs."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback

import attrs
import pytest
from cattrs import Converter
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.errors import ValidationError
from queue_runtime.secret import MASK, Secret, SecretUrl, is_secret_name, mask_url

CANARY = "canary-7Zq/+=@x"


@attrs.frozen
class Holder:
    secret: Secret
    url: SecretUrl


HOLDER = Holder(Secret(CANARY), SecretUrl(f"amqp://user:{CANARY}@host/vhost?token={CANARY}"))

SHOWN = {
    "repr": repr,
    "str": str,
    "format": lambda v: f"{v}|{v!r}|{v!s}|{v:>40}",
    "percent": lambda v: "%s %r" % (v, v),  # noqa: UP031
    "container": lambda v: repr([v, {v: v}]),
    "asdict": lambda v: repr(attrs.asdict(Holder(v, HOLDER.url))),
    "unstructure": lambda v: repr(Converter().unstructure(Holder(v, HOLDER.url))),
    "json": lambda v: json.dumps({"v": v}, default=str),
    "copy": lambda v: repr(copy.copy(v)) + repr(copy.deepcopy([v])),
    "exception": lambda v: str(ValueError(v)),
}


@pytest.mark.parametrize("how", SHOWN)
@pytest.mark.parametrize("value", [HOLDER.secret, HOLDER.url], ids=["secret", "url"])
def test_the_text_is_never_shown(value: Secret | SecretUrl, how: str) -> None:
    text = SHOWN[how](value)
    assert CANARY not in text
    assert MASK in text


def test_a_log_record_and_a_traceback_with_locals_show_nothing() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("queue_runtime.test_secret")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(stream))
    config = HOLDER
    try:
        raise RuntimeError(f"bad config {config}")
    except RuntimeError as error:
        logger.exception("failed with %s", config)
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        stream.write("".join(frames.format()))
    assert "bad config" in stream.getvalue()
    assert CANARY not in stream.getvalue()


@pytest.mark.parametrize("value", [HOLDER.secret, HOLDER.url], ids=["secret", "url"])
def test_serialisation_is_refused(value: object) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(value, protocol)
    with pytest.raises(TypeError, match="cannot be pickled"):
        value.__getstate__()
    with pytest.raises(TypeError) as caught:
        json.dumps(value)
    assert CANARY not in str(caught.value)


def test_it_reveals_when_asked_and_only_then() -> None:
    assert HOLDER.secret.reveal() == CANARY
    assert copy.deepcopy(HOLDER).secret is HOLDER.secret
    with pytest.raises(AttributeError, match="immutable"):
        HOLDER.secret._text = "other"
    with pytest.raises(AttributeError, match="immutable"):
        del HOLDER.secret._text


def test_equality_is_by_text_and_type() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a") != SecretUrl("a")
    assert Secret("\ud800ü") == Secret("\ud800ü")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert hash(Secret("a")) != hash("a")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_only_text_is_wrapped_and_what_is_refused_is_not_shown() -> None:
    with pytest.raises(ValidationError, match="wraps a str, got bytes") as caught:
        Secret(CANARY.encode())  # type: ignore[arg-type]
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("memory://", "memory://"),
        ("sqlite:///jobs.db?lock_duration=5", "sqlite:///jobs.db?lock_duration=5"),
        ("sqlite:///me@home.db", "sqlite:///me@home.db"),
        ("amqp://user:pw@host:5672/v", "amqp://***@host:5672/v"),
        ("nats://token@host", "nats://***@host"),
        ("redis://:p@ss@host/0", "redis://***@host/0"),
        ("redis://:pa/s?s#@host/0", "redis://***@host/0"),
        ("sqs://?secret_access_key=a+b&region=eu", "sqs://?secret_access_key=***&region=eu"),
        ("x://h?a=1&Password=a;b&b=2", "x://h?a=1&Password=***&b=2"),
        ("x://h?pwd=a&b&c&d=2", "x://h?pwd=***&d=2"),
        ("x://h?pass%77ord=abc", "x://h?pass%77ord=***"),
        ("x://h#token=def", "x://h#token=***"),
        ("x://h?sig=abc#token=def", "x://h?sig=***"),
        (
            "azure://?connection_string=Endpoint%3Dsb%3A%2F%2Fx%3BSharedAccessKey%3Dabc",
            "azure://?connection_string=***",
        ),
        (
            "Endpoint=sb://ns.example/;SharedAccessKey=abc+/=;EntityPath=q",
            "Endpoint=sb://ns.example/;SharedAccessKey=***;EntityPath=q",
        ),
        ("host=h password = abc", "host=h password = ***"),
        ("", ""),
    ],
)
def test_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert str(SecretUrl(url)) == masked


@given(
    password=st.text(st.characters(codec="utf-8"), min_size=12).filter(lambda t: "*" not in t),
    name=st.sampled_from(["password", "client_secret", "SharedAccessKey", "token", "sas"]),
)
def test_no_password_survives_masking(password: str, name: str) -> None:
    assert password not in mask_url(f"amqp://user:{password}@host/path")
    assert password.replace("&", "") not in mask_url(
        f"x://host?a=1&{name}={password.replace('&', '')}"
    )


@pytest.mark.parametrize("name", ["password", "API_KEY", "clientSecret", "sas", "auth", "token"])
def test_names_that_sound_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["lock_duration", "author", "queue", "sassy", "region", "declare"])
def test_names_that_do_not(name: str) -> None:
    assert not is_secret_name(name)
