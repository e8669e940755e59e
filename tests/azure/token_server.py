"""Who gives tokens, as azure-identity's credentials ask for them: Entra over HTTPS, managed identities over HTTP."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final
from urllib.parse import parse_qsl, urlsplit

import attrs

__all__ = ["Asked", "TokenServer", "token_server"]

HEADER = "the-header-of-app-service"
SECRET = "canary-of-a-secret-4711"
RESOURCE = "https://servicebus.azure.net"


@final
@attrs.frozen
class Asked:
    """A request for a token: where to, and what for."""

    path: str
    fields: dict[str, str]


@final
class TokenServer:
    """What can be asked of the server; made by :func:`token_server`.

    Attributes:
        url: Its address.
        asked: All requests so far.
        lifetime: Seconds of the next tokens.
        refresh_in: Seconds after which their bearer is to get another, if any.
        rights: What they allow.
        known: Ids of the user-assigned identities; the machine has one of its own besides if ``None`` is in it.
        is_down: Have every request end in a lost connection.
    """

    def __init__(self, url: str, issue: Callable[..., str]) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.lifetime = 3_600.0
        self.refresh_in: float | None = None
        self.rights: tuple[str, ...] = ("Listen", "Send", "Manage")
        self.known: set[str | None] = {None}
        self.is_down = False
        self._issue = issue

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def answer(self, path: str, fields: dict[str, str], headers: Any) -> tuple[int, dict[str, Any]]:
        self.asked.append(Asked(path, fields))
        if path.endswith("/oauth2/v2.0/token"):
            known = fields.get("client_secret") == SECRET or "client_assertion" in fields
            if not known or not fields["scope"].startswith(RESOURCE):
                return 401, {
                    "error": "invalid_client",
                    "error_description": "AADSTS7000215: Invalid client secret provided.",
                }
            return 200, self._token()
        allowed = {
            "/msi/token": headers.get("X-IDENTITY-HEADER") == HEADER,
            "/metadata/identity/oauth2/token": headers.get("Metadata") == "true",
        }.get(path, False)
        if not allowed or not fields.get("resource", "").startswith(RESOURCE):
            return 401, {"error": "unauthorized"}
        if fields.get("client_id") not in self.known:
            return 400, {"error": "invalid_request", "error_description": "Identity not found"}
        return 200, self._token() | {"resource": fields["resource"]}

    def _token(self) -> dict[str, Any]:
        token = self._issue(self.lifetime, self.rights)
        answer = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": int(self.lifetime),
            "expires_on": int(time.time() + self.lifetime),
        }
        return answer if self.refresh_in is None else answer | {"refresh_in": self.refresh_in}


@contextmanager
def token_server(
    issue: Callable[..., str], tls: ssl.SSLContext | None = None
) -> Iterator[TokenServer]:
    """Give out tokens at 127.0.0.1 until the block ends.

    Args:
        issue: Makes one, from its lifetime in seconds and its rights.
        tls: Speaks HTTPS when given.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._answer(parts.path, dict(parse_qsl(parts.query)))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(self.path, dict(parse_qsl(body.decode())))

        def _answer(self, path: str, fields: dict[str, str]) -> None:
            if tokens.is_down:
                return
            status, answer = tokens.answer(path, fields, self.headers)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            connection.settimeout(10.0)
            return connection, address

        def finish_request(self, request: Any, client_address: Any) -> None:
            # Here, in the connection's own thread: who hesitates to shake hands holds up nobody else.
            if tls is None:
                super().finish_request(request, client_address)
            else:
                with tls.wrap_socket(request, server_side=True) as wrapped:
                    super().finish_request(wrapped, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that does not trust the certificate

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http" if tls is None else "https"
    tokens = TokenServer(f"{scheme}://127.0.0.1:{server.server_address[1]}", issue)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="token server")
    thread.start()
    try:
        yield tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
