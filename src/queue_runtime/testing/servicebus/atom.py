"""The Atom of Service Bus's administration: descriptions of queues read and written. Without I/O.

An entry's content is a ``QueueDescription``. Only those of its elements are read and written that
:class:`QueueSettings` knows, and counts besides.
https://learn.microsoft.com/rest/api/servicebus/queues
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

from .entities import QueueSettings
from .queue import Queue

__all__ = ["entry", "error", "feed", "read_settings", "settings_of"]

_ATOM: Final = "http://www.w3.org/2005/Atom"
_CONNECT: Final = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
_COUNTS: Final = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
_FOR_EVER: Final = "P10675199DT2H48M5.4775807S"
"""The longest duration of .NET, which stands for no limit."""

_FOR_EVER_DAYS: Final = 10_675_199
"""Clients may round what is behind the days when they give it back."""

_DEFAULT_WINDOW: Final = 600.0
"""Seconds for which ids are remembered where duplicates are detected and nothing else is said."""

_DURATION: Final = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>[\d.]+)S)?)?"
)

# --- reading -------------------------------------------------------------------------------------------


def read_settings(body: bytes) -> QueueSettings:
    """What a queue is to be like; where nothing is said, as :class:`QueueSettings` has it.

    Raises:
        ValueError, ParseError: This is no description of a queue.
        ValidationError: A value is outside what is accepted.
    """
    root = ET.fromstring(body)  # noqa: S314 - a test's own, on loopback
    description = root.find(f".//{{{_CONNECT}}}QueueDescription")
    if description is None:
        raise ValueError("the request has no QueueDescription: queues are all there is")
    texts = {
        element.tag.removeprefix(f"{{{_CONNECT}}}"): element.text or "" for element in description
    }
    return settings_of(texts)


def settings_of(texts: Mapping[str, str]) -> QueueSettings:
    """The settings that a queue's properties say, as Azure names and writes them; others are passed over.

    Raises:
        ValueError: A text cannot be read.
        ValidationError: A value is outside what is accepted.
    """
    given: dict[str, Any] = {}
    for tag, name, read in (
        ("RequiresSession", "requires_session", _is_true),
        ("DeadLetteringOnMessageExpiration", "dead_letter_expired", _is_true),
        ("LockDuration", "lock_duration", _seconds),
        ("MaxDeliveryCount", "max_delivery_count", int),
        ("MaxSizeInMegabytes", "max_queue_bytes", lambda text: int(text) << 20),
        ("MaxMessageSizeInKilobytes", "max_message_bytes", lambda text: int(text) << 10),
        ("DefaultMessageTimeToLive", "default_time_to_live", _life),
    ):
        if tag in texts:
            given[name] = read(texts[tag])
    if texts.get("RequiresDuplicateDetection") == "true":
        window = texts.get("DuplicateDetectionHistoryTimeWindow")
        given["duplicate_window"] = _DEFAULT_WINDOW if window is None else _seconds(window)
    return QueueSettings(**given)


def _is_true(text: str) -> bool:
    return text == "true"


def _life(duration: str) -> float | None:
    seconds = _seconds(duration)
    return None if seconds >= _FOR_EVER_DAYS * 86_400 else seconds


def _seconds(duration: str) -> float:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(
            f"{duration!r} is no ISO 8601 duration of days, hours, minutes and seconds"
        )
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# --- writing -------------------------------------------------------------------------------------------


def entry(queue: Queue) -> bytes:
    """A queue with its settings and counts."""
    return _entry(queue).encode()


def feed(queues: Sequence[Queue], address: str = "", next_address: str | None = None) -> bytes:
    """Some queues; none is also the answer to a question about one that is not there.

    Args:
        queues: In their order.
        address: Where this was asked for.
        next_address: Where there is more.
    """
    links = f'<link rel="self" href={quoteattr(address)}/>'
    if next_address is not None:
        links += f'<link rel="next" href={quoteattr(next_address)}/>'
    return (
        f'<feed xmlns="{_ATOM}"><title type="text">Publicly Listed Services</title>{links}'
        f"{''.join(map(_entry, queues))}</feed>"
    ).encode()


def error(status: int, detail: str) -> bytes:
    """Why something is refused."""
    return f"<Error><Code>{status}</Code><Detail>{escape(detail)}</Detail></Error>".encode()


def _duration(seconds: float | None) -> str:
    return _FOR_EVER if seconds is None else f"PT{seconds:f}S"


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _entry(queue: Queue) -> str:
    settings, counts = queue.settings, queue.counts()
    elements = {
        "LockDuration": _duration(settings.lock_duration),
        "MaxSizeInMegabytes": settings.max_queue_bytes >> 20,
        "RequiresDuplicateDetection": _boolean(settings.duplicate_window > 0),
        "RequiresSession": _boolean(queue.requires_session),
        "DefaultMessageTimeToLive": _duration(settings.default_time_to_live),
        "DeadLetteringOnMessageExpiration": _boolean(settings.dead_letter_expired),
        "DuplicateDetectionHistoryTimeWindow": _duration(
            settings.duplicate_window or _DEFAULT_WINDOW
        ),
        "MaxDeliveryCount": settings.max_delivery_count,
        "EnableBatchedOperations": "true",
        "SizeInBytes": counts.size_bytes,
        "MessageCount": counts.active + counts.deferred + counts.scheduled + counts.dead_letters,
        "Status": "Active",
        "MaxMessageSizeInKilobytes": settings.max_message_bytes >> 10,
    }
    numbers = {
        "ActiveMessageCount": counts.active,
        "DeadLetterMessageCount": counts.dead_letters,
        "ScheduledMessageCount": counts.scheduled,
        "TransferMessageCount": 0,
        "TransferDeadLetterMessageCount": 0,
    }
    description = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    details = "".join(f"<c:{name}>{value}</c:{name}>" for name, value in numbers.items())
    return (
        f'<entry xmlns="{_ATOM}">'
        f'<title type="text">{escape(queue.name)}</title><content type="application/xml">'
        f'<QueueDescription xmlns="{_CONNECT}">{description}'
        f'<CountDetails xmlns:c="{_COUNTS}">{details}</CountDetails>'
        "</QueueDescription></content></entry>"
    )
