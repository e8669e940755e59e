"""What other senders write, in our terms: any AMQP value as text or bytes, and lengths as .NET counts them. Pure."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from queue_runtime.errors import ValidationError
from queue_runtime.messages import Message
from queue_runtime.text import escape

__all__ = [
    "BODY_HEADER",
    "body_of",
    "header_name",
    "headers_of",
    "json_of",
    "optional_text",
    "packed_headers",
    "text_of",
    "utf16_length",
]

BODY_HEADER: Final = "queue-runtime-body"
"""Header of a message whose body was no data: ``value``, ``value-json``, ``sequence-json`` or ``none``."""


def utf16_length(text: str) -> int:
    """The length of ``text`` as .NET counts, in UTF-16 units; it is what the broker's limits mean."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def text_of(value: object) -> str:
    """Any simple AMQP value as text: bytes that are no UTF-8 as base64, what has no text of its own as JSON."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    if value is None or isinstance(value, (bool, list, tuple, dict)):
        return json_of(value)
    return str(value)


def optional_text(value: object) -> str | None:
    """As :func:`text_of`; ``None`` stays ``None``."""
    return None if value is None else text_of(value)


def json_of(value: object) -> str:
    """Any AMQP value as JSON, on one line."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: object) -> Any:
    """What JSON can say; keys become text, and what has no form in JSON too."""
    if isinstance(value, Mapping):
        return {text_of(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return text_of(value)


def header_name(name: str) -> str:
    """``name`` where a header can have it; otherwise what can be shown of it."""
    if name.isprintable() and 0 < len(name) <= 256:
        return name
    try:
        Message(b"", headers={name: ""})
    except ValidationError:
        return escape(name) or "_"
    return name


def headers_of(properties: Mapping[str, object]) -> dict[str, str]:
    """Properties as headers. Those whose names no header can have come last, and none in the place of another."""
    headers: dict[str, str] = {}
    others: list[tuple[str, object]] = []
    for given, value in properties.items():
        name = header_name(given)
        if name == given:
            headers[name] = text_of(value)
        else:
            others.append((name, value))
    for name, value in others:
        free, number = name, 2
        while free in headers:
            mark = f"#{number}"
            free, number = name[: 256 - len(mark)] + mark, number + 1
        headers[free] = text_of(value)
    return headers


def packed_headers(fields: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """The headers that could not travel under their own names."""
    packed = fields.get("headers", {})
    if isinstance(packed, dict) and all(isinstance(value, str) for value in packed.values()):
        return {header_name(name): text_of(value) for name, value in packed.items()}
    problems.append("headers is not an object of texts")
    return {}


def body_of(raw: Any) -> tuple[bytes, str | None]:
    """The body, and what :data:`BODY_HEADER` says about it."""
    kind = getattr(getattr(raw, "body_type", None), "value", None)
    body: Any
    if kind is None:
        sections = {name: getattr(raw, name, None) for name in ("data", "sequence", "value")}
        kind = next((name for name, found in sections.items() if found is not None), "value")
        body = sections[kind]
    else:
        body = raw.body
    if kind == "data":
        return b"".join(_bytes(part) for part in body), None
    if kind == "sequence":
        rows = (row if isinstance(row, list) else [row] for row in body)
        return json_of([item for row in rows for item in row]).encode(), "sequence-json"
    if body is None:
        return b"", "none"
    if isinstance(body, (bytes, str)):
        return _bytes(body), "value"
    return json_of(body).encode(), "value-json"


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else text_of(value).encode()
