from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_runtime.text import SCRUB_LIMIT, escape, scrub


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("order-17 / Zürich, 東京, שלום", "order-17 / Zürich, 東京, שלום"),
        ("two\nlines\r\n", r"two\nlines\r\n"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m, one-byte CSI", r"\x9b31m, one-byte CSI"),
        ("nul \x00, bell \x07, delete \x7f", r"nul \x00, bell \x07, delete \x7f"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("\u2066isolate\u2069 \u200e\u200f\u061c", r"\u2066isolate\u2069 \u200e\u200f\u061c"),
        ("zero\u200bwidth, no\xa0break", r"zero\u200bwidth, no\xa0break"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("lone \ud800 surrogate", r"lone \ud800 surrogate"),
        ("tag \U000e0041", r"tag \U000e0041"),
        (r"C:\temp", r"C:\temp"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcde", 5, "abcde"),
        ("abcdef", 5, "abcd…"),
        ("abc\n", 5, r"abc\n"),
        ("abcd\n", 5, "abcd…"),
        ("ab\ncd", 5, r"ab\n…"),
        ("\x1b\x1b", 5, r"\x1b…"),
        ("\x1b", 3, "…"),
        ("ab", 1, "…"),
        ("a", 1, "a"),
    ],
)
def test_escape_cuts_between_escapes(text: str, limit: int, shown: str) -> None:
    assert escape(text, limit) == shown


@given(st.text(st.characters(codec=None)), st.integers(1, 40))
def test_escaped_text_is_short_printable_and_stays_so(text: str, limit: int) -> None:
    shown = escape(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert escape(shown, limit) == shown


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach amqp://bot:CANARY@broker:5672/orders in time",
        "tried 'redis://:CANARY@cache/0' and gave up",
        "GET https://q.example/orders?sig=CANARY&se=17 answered 403",
        "bad string Endpoint=sb://b.example/;SharedAccessKeyName=root;SharedAccessKey=CANARY=;",
        "login failed: password=CANARY",
    ],
)
def test_scrub_masks_credentials_wherever_they_stand(text: str) -> None:
    masked = scrub(text)
    assert "CANARY" not in masked
    assert "***" in masked


def test_scrub_leaves_other_text_alone() -> None:
    text = "queue 'orders' not found at sqlite:///var/lib/q@home.db: create it, or set declare=true"
    assert scrub(text) == text


@pytest.mark.parametrize("before", range(-30, 5))
def test_scrub_never_shows_half_a_credential_at_the_cut(before: int) -> None:
    text = "x" * (SCRUB_LIMIT + before) + " amqp://bot:CANARY-CANARY@broker/ " + "y" * 100
    assert "CANARY" not in scrub(text)
    assert scrub("amqp://bot:CANARY" + "Y" * SCRUB_LIMIT) == "…"


@pytest.mark.parametrize("filler", [" ", "a", "=", ";", "a://", "?a="])
def test_huge_texts_cost_little(filler: str) -> None:
    text = filler * (10_000_000 // len(filler))
    started = time.perf_counter()
    assert len(escape(scrub(text))) <= 256
    assert time.perf_counter() - started < 2.0
