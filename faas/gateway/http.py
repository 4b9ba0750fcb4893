"""What the gateway asks of HTTP beyond aiohttp: bounded time for request heads, and problems for what is no HTTP."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from faas.errors import FaasError, InternalError, MalformedRequestError
from faas.gateway.command import SOFTWARE
from faas.gateway.middleware import problem_response
from faas.log import event

_log = logging.getLogger(__name__)
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(RequestHandler):
    """One client connection; a timer runs whenever it owes us the rest of a request's head."""

    __slots__ = ("_head_timeout_s", "_head_timer")

    def __init__(self, server: Server, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer: an open connection that says nothing costs a descriptor too."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse; the timer stops when a head is complete, and starts when only a part of the next one is here."""
        super().data_received(data)
        if self._current_request is not None or self._messages:
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._head_timeout_s, self._too_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        transport = self.transport
        if transport is not None and self._current_request is None and not self._messages:
            transport.write(_TOO_LATE)
            transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp itself refuses (no HTTP, a head that is too long): a problem, and one line in the log."""
        event(_log, "request.refused", status=status, reason=type(exc).__name__, remote=request.remote or "")
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun: no second one can be sent")
        error: FaasError
        if status < 500:
            said = (message or "it is malformed").split("\n", 1)[0]
            error = MalformedRequestError(f"the request is not HTTP as it should be: {said}; check the client")
        else:
            error = InternalError("the host failed to serve this request; its log has the reason")
        response = problem_response(error, "")
        response.headers["Server"] = SOFTWARE
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server with our connections; lives as long as the worker."""

    def __init__(self, handler: Any, *, head_timeout_s: float, **options: Any) -> None:
        """Args: *options* are aiohttp's ``RequestHandler`` options."""
        super().__init__(handler, **options)
        self._head_timeout_s = head_timeout_s

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)
