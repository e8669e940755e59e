"""Entity management over HTTP, as far as a queue can be created and looked at. Without I/O.

Service Bus speaks Atom here: an entry whose content is a ``QueueDescription``. Only its elements that
:class:`QueueSettings` knows are read and written; counts come besides.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, final
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import attrs

from ...errors import ValidationError
from .authority import Authority
from .entities import QueueSettings
from .namespace import Namespace
from .queue import Queue
from .refusals import Refused

__all__ = ["Administration", "HttpAnswer", "HttpRequest"]

_CONNECT: Final = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
_COUNTS: Final = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
_FOR_EVER: Final = "P10675199DT2H48M5.4775807S"
"""The longest duration of .NET, which stands for no limit."""

_DURATION: Final = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>[\d.]+)S)?)?"
)


@final
@attrs.frozen
class HttpRequest:
    """A request, its header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


@final
@attrs.frozen
class HttpAnswer:
    """What to answer."""

    status: int
    reason: str
    body: bytes = b""


@final
class Administration:
    """The management endpoint of a namespace.

    Args:
        namespace: Its queues.
        authority: Who checks tokens.
    """

    def __init__(self, namespace: Namespace, authority: Authority) -> None:
        self._namespace = namespace
        self._authority = authority

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Do what a request asks for."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.target).path).strip("/")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            self._authority.check(token, f"https://any/{path}", self._namespace.timers.now())
        except Refused as refusal:
            return _error(401, "Unauthorized", refusal.description)
        if request.method not in {"GET", "PUT"} or path.startswith("$"):
            return _error(501, "Not Implemented", "The emulator creates and shows queues only.")
        try:
            if request.method == "GET":
                return HttpAnswer(200, "OK", _entry(self._namespace.find(path)))
            if "if-match" in request.headers:
                return _error(501, "Not Implemented", "The emulator's queues do not change.")
            if any(queue.name.lower() == path.lower() for queue in self._namespace):
                return _error(409, "Conflict", "The queue exists already.")
            queue = self._namespace.create(path, _settings(request.body))
        except Refused as refusal:
            return _error(404, "Not Found", refusal.description)
        except (ValidationError, ValueError, ET.ParseError) as error:
            return _error(400, "Bad Request", str(error))
        return HttpAnswer(201, "Created", _entry(queue))


def _error(status: int, reason: str, detail: str) -> HttpAnswer:
    text = f"<Error><Code>{status}</Code><Detail>{escape(detail)}</Detail></Error>"
    return HttpAnswer(status, reason, text.encode())


def _settings(body: bytes) -> QueueSettings:
    root = ET.fromstring(body)  # noqa: S314 - a test's own, on loopback
    texts = {
        element.tag.removeprefix(f"{{{_CONNECT}}}"): element.text or ""
        for element in root.iter()
        if element.tag.startswith(f"{{{_CONNECT}}}")
    }
    given: dict[str, Any] = {}
    if "RequiresSession" in texts:
        given["requires_session"] = texts["RequiresSession"] == "true"
    if "DeadLetteringOnMessageExpiration" in texts:
        given["dead_letter_expired"] = texts["DeadLetteringOnMessageExpiration"] == "true"
    if "LockDuration" in texts:
        given["lock_duration"] = _seconds(texts["LockDuration"])
    if "MaxDeliveryCount" in texts:
        given["max_delivery_count"] = int(texts["MaxDeliveryCount"])
    if texts.get("DefaultMessageTimeToLive", _FOR_EVER) != _FOR_EVER:
        given["default_time_to_live"] = _seconds(texts["DefaultMessageTimeToLive"])
    if texts.get("RequiresDuplicateDetection") == "true":
        window = texts.get("DuplicateDetectionHistoryTimeWindow", "PT1M")
        given["duplicate_window"] = _seconds(window)
    return QueueSettings(**given)


def _seconds(duration: str) -> float:
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(
            f"{duration!r} is no ISO 8601 duration of days, hours, minutes and seconds"
        )
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _duration(seconds: float | None) -> str:
    return _FOR_EVER if seconds is None else f"PT{seconds:f}S"


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _entry(queue: Queue) -> bytes:
    settings, counts = queue.settings, queue.counts()
    elements = {
        "LockDuration": _duration(settings.lock_duration),
        "MaxSizeInMegabytes": settings.max_queue_bytes >> 20,
        "RequiresDuplicateDetection": _boolean(settings.duplicate_window > 0),
        "RequiresSession": _boolean(queue.requires_session),
        "DefaultMessageTimeToLive": _duration(settings.default_time_to_live),
        "DeadLetteringOnMessageExpiration": _boolean(settings.dead_letter_expired),
        "DuplicateDetectionHistoryTimeWindow": _duration(settings.duplicate_window),
        "MaxDeliveryCount": settings.max_delivery_count,
        "EnableBatchedOperations": "true",
        "SizeInBytes": counts.size_bytes,
        "MessageCount": counts.active + counts.deferred + counts.scheduled + counts.dead_letters,
        "Status": "Active",
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
        '<entry xmlns="http://www.w3.org/2005/Atom">'
        f'<title type="text">{escape(queue.name)}</title><content type="application/xml">'
        f'<QueueDescription xmlns="{_CONNECT}">{description}'
        f'<CountDetails xmlns:c="{_COUNTS}">{details}</CountDetails>'
        "</QueueDescription></content></entry>"
    ).encode()
