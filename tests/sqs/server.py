"""The child process of ``emulator.py``: the SQS service of ``ministack`` behind an HTTP server of its own.

Only that one service is imported: nothing listens but the one port on loopback, nothing is persisted. Run by path,
because it must not share a process with what it serves. The port is printed once requests are answered;
the process ends when its standard input does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from typing import Any

from aiohttp import web
from ministack.core.responses import set_request_account_id, set_request_region
from ministack.core.router import extract_access_key_id, extract_region
from ministack.services import sqs

# A script's own folder is on its path; nothing else of the tests is.
from strict import StrictService

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""Above anything that SQS itself should refuse with an error of its own."""

Answer = tuple[int, dict[str, str], bytes]


class LaxService:
    """ministack as it is."""

    async def call(self, action: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer one request."""
        answer: Answer = await sqs.handle_request("POST", path, headers, body, {})
        return answer

    def throttled(self, action: str, body: bytes) -> None:
        """A request is about to be answered with throttling."""


class Server:
    """Answers requests, counts them by action, and fails those a test has asked to fail."""

    def __init__(self, service: LaxService | StrictService) -> None:
        self._service = service
        self._calls: Counter[str] = Counter()
        self._failures: list[dict[str, Any]] = []

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_REQUEST_BYTES)
        application.router.add_get("/_emulator/calls", self._show_calls)
        application.router.add_post("/_emulator/failures", self._set_failures)
        application.router.add_post("/{path:.*}", self._serve)
        return application

    async def _show_calls(self, request: web.Request) -> web.Response:
        return web.json_response(dict(self._calls))

    async def _set_failures(self, request: web.Request) -> web.Response:
        self._failures = await request.json()
        return web.json_response({})

    async def _serve(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        action = headers.get("x-amz-target", "").removeprefix("AmazonSQS.")
        self._calls[action] += 1
        # Every connection is served by a task of its own: these are set for this request only.
        set_request_account_id(extract_access_key_id(headers))
        set_request_region(extract_region(headers))
        failure = self._next_failure(action)
        if failure is not None:
            if "Throttl" in failure["code"]:
                self._service.throttled(action, body)
            status, answer_headers, answer = error_response(failure)
        else:
            status, answer_headers, answer = await self._service.call(
                action, request.path, headers, body
            )
        return web.Response(status=status, headers=answer_headers, body=answer)

    def _next_failure(self, action: str) -> dict[str, Any] | None:
        for failure in self._failures:
            if failure["count"] > 0 and failure["action"] in {None, action}:
                failure["count"] -= 1
                return failure
        return None


def error_response(failure: dict[str, Any]) -> Answer:
    """An error in the JSON protocol of AWS."""
    status, headers, body = sqs._json_err_resp(
        failure["code"], failure["message"], failure["status"]
    )
    return status, {**headers, **failure["headers"]}, body


async def serve(port: int, service: LaxService | StrictService) -> None:
    # Long polls whose clients have gone go on; to aiohttp, 0 would mean to wait for them.
    runner = web.AppRunner(Server(service).application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        (address,) = runner.addresses
        print(address[1], flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        await reader.read()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--lax", action="store_true", help="ministack as it is")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, LaxService() if arguments.lax else StrictService()))


if __name__ == "__main__":
    main()
