"""
What the gateway asks of HTTP beyond aiohttp: the fast lane for plain requests (``lane.py``), bounded time for request
heads, and problems for what is no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from faas.errors import FaasError, InternalError, MalformedRequestError
from faas.gateway.lane import Half, Head, Lane, Reply, Serve, begin
from faas.gateway.middleware import problem_response
from faas.log import event

_log = logging.getLogger(__name__)
# What of a connection's inside the lane reads and writes (all slots, or methods, of its class).
_HANDLER_PARTS = (
    "_buffer_paused", "_close", "_current_request", "_force_close", "_keepalive_handle", "_keepalive_timeout", "_loop",
    "_messages", "_next_keepalive_close_time", "_parser", "_paused", "_payload_parser", "_process_keepalive",
    "_request_count", "_upgraded", "_waiter", "peername",
)  # fmt: skip
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Parsed:
    """Stands in for the parser during one ``data_received`` of aiohttp's, and says what the parser has said already."""

    def __init__(self, parsed: Any) -> None:
        self._parsed = parsed

    def feed_data(self, _data: bytes) -> Any:
        """Return it, or raise it."""
        if isinstance(self._parsed, Exception):
            raise self._parsed
        return self._parsed


class Connection(RequestHandler):
    """
    One client connection; a timer runs whenever it owes us the rest of a request's head.

    A plain request that comes alone to an idle connection is served right in ``data_received`` if it does not have to
    wait; every other one goes the way of aiohttp, whose ``start`` waits for it all the while.
    """

    __slots__ = ("_half", "_has_lane", "_head_timeout_s", "_head_timer", "_server")

    def __init__(self, server: Server, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._has_lane = server.has_lane
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._half: Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer: an open connection that says nothing costs a descriptor too."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse; the timer stops when a head is complete, and starts when only a part of the next one is here."""
        waiter = self._waiter
        if (
            self._has_lane
            and waiter is not None
            and not waiter.done()
            and not self._messages
            and not self._upgraded
            and self._payload_parser is None
            and not self._paused
            and not self._buffer_paused
            and not self._force_close
            and not self._close
        ):
            if self._answered(data):
                self._stop_timer()
                return
        else:
            super().data_received(data)
        if self._current_request is not None or self._messages:
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def take_half(self) -> Half | None:
        """Return the coroutine that began the current request in the lane, None if it did not begin there."""
        half, self._half = self._half, None
        return half

    def _answered(self, data: bytes) -> bool:
        """Return whether *data* was one plain request and has been answered; else aiohttp has got what was parsed."""
        parser, transport = self._parser, self.transport
        assert parser is not None
        try:
            parsed = parser.feed_data(data)
        except HttpProcessingError as exc:
            self._hand_over(exc)
            return False
        messages, upgraded, _ = parsed
        if (
            len(messages) == 1
            and not upgraded
            and messages[0][1] is EMPTY_PAYLOAD
            and _is_plain(messages[0][0])
            and transport is not None
            and not transport.is_closing()
        ):
            message = messages[0][0]
            try:
                answer = begin(self._server.serve, Lane(Head(message, self, transport), inside=True))
            except asyncio.CancelledError:
                self.force_close()
                return True
            if isinstance(answer, Reply):
                transport.write(answer.encode(message.method))
                self._count(parser)
                return True
            self._half = answer
        self._hand_over(parsed)
        return False

    def _hand_over(self, parsed: Any) -> None:
        """Have aiohttp go on with what the parser said, or with the exception that it raised."""
        parser, self._parser = self._parser, _Parsed(parsed)  # type: ignore[assignment]
        try:
            super().data_received(b"")
        finally:
            self._parser = parser

    def _count(self, parser: Any) -> None:
        """Do for a request that was answered in the lane what aiohttp's ``start`` does for its own."""
        parser.message_consumed()
        self._request_count += 1
        self._server.requests_count += 1
        close_time = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_time
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timer; end a request that waited for its task."""
        self._stop_timer()
        super().connection_lost(exc)
        half = self.take_half()
        if half is not None:
            half.cancel()

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
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server with our connections; lives as long as the worker."""

    def __init__(self, serve: Serve, *, head_timeout_s: float, **options: Any) -> None:
        """Args: *serve* answers each request; *options* are aiohttp's ``RequestHandler`` options."""
        super().__init__(self._answer, **options)
        self.serve = serve
        missing = missing_internals()
        self.has_lane = not missing
        if missing:
            event(_log, "lane.off", level=logging.WARNING, missing=",".join(missing))
        self._head_timeout_s = head_timeout_s

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, Connection)
        half = protocol.take_half()
        answer = await (self.serve(Lane(request, inside=False)) if half is None else half.go_on(request))
        assert isinstance(answer, web.StreamResponse)
        return answer


def missing_internals() -> list[str]:
    """Return which of the parts of aiohttp that the lane is built on are not there: none, in the version we lock."""
    parts = {
        RequestHandler: _HANDLER_PARTS,
        HttpRequestParser: ("feed_data", "message_consumed"),
    }
    return [f"{owner.__name__}.{name}" for owner, names in parts.items() for name in names if not hasattr(owner, name)]


def _is_plain(message: RawRequestMessage) -> bool:
    """Whether nothing about a request without a body asks for more than an answer on a connection that stays open."""
    return bool(
        message.version == HttpVersion11
        and not message.should_close
        and not message.upgrade
        and message.compression is None
        and message.path.startswith("/")
        and hdrs.HOST in message.headers
        and hdrs.EXPECT not in message.headers
    )
