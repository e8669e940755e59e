"""As much of HTTP/1.1 as the administration client speaks: requests one after the other, bodies of known length."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import trio

from .administration import HttpAnswer, HttpRequest

__all__ = ["is_http", "may_become_http", "serve_http"]

_METHODS: Final = (b"GET ", b"PUT ", b"POST ", b"DELETE ")
_MAX_REQUEST: Final = 1 << 20
_DIGITS: Final = 10


def is_http(first: bytes) -> bool:
    """Whether a connection that begins so speaks HTTP."""
    return first.startswith(_METHODS)


def _is_size(length: str) -> bool:
    return length.isdecimal() and len(length) <= _DIGITS and int(length) <= _MAX_REQUEST


def _is_address(target: str) -> bool:
    try:
        urlsplit(target)
    except ValueError:
        return False
    return True


def may_become_http(first: bytes) -> bool:
    """Whether a connection that begins so may yet speak HTTP."""
    return any(method.startswith(first) and method != first for method in _METHODS)


async def serve_http(
    stream: trio.abc.Stream,
    buffer: bytes,
    answer: Callable[[HttpRequest], Awaitable[HttpAnswer | None]],
) -> None:
    """Answer requests until the client goes away or makes one that cannot be read.

    Args:
        stream: Where they come from.
        buffer: What has come already.
        answer: Answers one; with ``None`` it is never answered, nor is what comes after it.
    """
    while True:
        while b"\r\n\r\n" not in buffer:
            more = await stream.receive_some()
            if not more or len(buffer) > _MAX_REQUEST:
                return
            buffer += more
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = headers.get("content-length", "0")
        if len(words) != 3 or not _is_size(length) or not _is_address(words[1]):
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        while len(buffer) < int(length):
            more = await stream.receive_some()
            if not more:
                return
            buffer += more
        body, buffer = buffer[: int(length)], buffer[int(length) :]
        answered = await answer(HttpRequest(words[0], words[1], headers, body))
        if answered is None:
            while await stream.receive_some():
                pass
            return
        await stream.send_all(
            f"HTTP/1.1 {answered.status} {answered.reason}\r\n"
            f"Content-Type: application/atom+xml;charset=utf-8\r\nContent-Length: {len(answered.body)}\r\n\r\n".encode()
            + answered.body
        )
