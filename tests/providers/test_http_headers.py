"""When an HTTP answer asks to come again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from queue_runtime.providers.http_headers import MAX_RETRY_AFTER, seconds_to_wait


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("86400", MAX_RETRY_AFTER),
        ("99999", None),
        ("999999999", None),
        ("9999999999", None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("٣", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9015 07:28:00 GMT", None),
    ],
)
def test_seconds_to_wait(text: str, expected: float | None) -> None:
    assert seconds_to_wait(text) == expected


@pytest.mark.parametrize("zone", [" GMT", " -0000", " +0000"])
def test_dates(zone: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60)).replace(" +0000", zone)
    assert seconds_to_wait(date) == pytest.approx(55, abs=5)
