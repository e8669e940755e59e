"""Queues created, looked at, changed, listed and deleted over HTTP, as Service Bus has it done. Without I/O."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, final
from xml.etree import ElementTree as ET

import attrs

from ...errors import ValidationError
from . import atom
from .authority import Authority, Right
from .namespace import Namespace
from .queue import Queue
from .refusals import Refused

__all__ = ["Administration", "HttpAnswer", "HttpRequest"]

_QUEUES: Final = "$resources/queues"
_PAGE: Final = 100
"""Entries of a list when the client does not say how many; also the most."""


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
    body: bytes = b""

    @property
    def reason(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase


@final
class _Impossible(Exception):
    """The request is refused with a status and some words."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@final
class Administration:
    """The administration endpoint of a namespace.

    Args:
        namespace: Its queues.
        authority: Who checks tokens.
        on_deleted: Told the name of a queue that is gone: its links have to end.
    """

    def __init__(
        self, namespace: Namespace, authority: Authority, on_deleted: Callable[[str], None]
    ) -> None:
        self._namespace = namespace
        self._authority = authority
        self._on_deleted = on_deleted

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Do what a request asks for."""
        parts = urllib.parse.urlsplit(request.target)
        path = urllib.parse.unquote(parts.path).strip("/")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            allowed = self._authority.check(
                token, f"https://any/{path}", self._namespace.timers.now()
            )
        except Refused as refusal:
            return HttpAnswer(401, atom.error(401, refusal.description))
        if Right.MANAGE not in allowed.rights:
            right = "EntityRead" if request.method == "GET" else "EntityWrite"
            detail = f"Manage,{right} claims required for this operation."
            return HttpAnswer(401, atom.error(401, detail))
        try:
            if path.lower() == _QUEUES and request.method == "GET":
                return HttpAnswer(200, self._list(request.target, parts.query))
            if path.startswith("$"):
                raise _Impossible(501, "The emulator has queues only.")
            match request.method:
                case "GET":
                    queue = self._look(path)
                    # As Service Bus has it: a feed of nothing, not a status of 404.
                    return HttpAnswer(200, atom.feed([]) if queue is None else atom.entry(queue))
                case "PUT":
                    return self._put(path, request)
                case "DELETE":
                    self._find(path)
                    self._namespace.delete(path)
                    self._on_deleted(path)
                    return HttpAnswer(200)
            raise _Impossible(400, f"The specified HTTP verb ({request.method}) is not valid.")
        except _Impossible as refusal:
            return HttpAnswer(refusal.status, atom.error(refusal.status, str(refusal)))
        except (ValidationError, ValueError, ET.ParseError) as problem:
            return HttpAnswer(400, atom.error(400, f"SubCode=40000. {problem}"))

    def _look(self, path: str) -> Queue | None:
        name = path.lower()
        return next((queue for queue in self._namespace if queue.name.lower() == name), None)

    def _find(self, path: str) -> Queue:
        queue = self._look(path)
        if queue is None:
            raise _Impossible(
                404, f"SubCode=40400. Not Found. The messaging entity {path!r} could not be found."
            )
        return queue

    def _put(self, path: str, request: HttpRequest) -> HttpAnswer:
        if "if-match" in request.headers:
            queue = self._find(path)
            settings = atom.read_settings(request.body)
            before = queue.settings
            queue.change(
                attrs.evolve(
                    settings,  # without the emulator's own
                    locks_outlast_links=before.locks_outlast_links,
                    fetches_ahead=before.fetches_ahead,
                )
            )
            return HttpAnswer(200, atom.entry(queue))
        settings = atom.read_settings(request.body)
        if self._look(path) is not None:
            raise _Impossible(409, "SubCode=40900. Conflict. The queue exists already.")
        return HttpAnswer(201, atom.entry(self._namespace.create(path, settings)))

    def _list(self, target: str, query: str) -> bytes:
        options = dict(urllib.parse.parse_qsl(query))
        skip, top = int(options.get("$skip", 0)), min(int(options.get("$top", _PAGE)), _PAGE)
        queues = sorted(self._namespace, key=lambda queue: queue.name.lower())
        following = None
        if skip + top < len(queues):
            following = f"/{_QUEUES}?{urllib.parse.urlencode({'$skip': skip + top, '$top': top})}"
        return atom.feed(queues[skip : skip + top], target, following)
