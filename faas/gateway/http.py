"""
What the gateway asks of HTTP beyond aiohttp: the fast lane for plain requests (``lane.py``), bounds for heads, bodies,
connections and clients that don't read (docs/limits.md), and problems for what is no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from faas.errors import (
    FaasError,
    HeadTooLargeError,
    HttpVersionError,
    InternalError,
    MalformedRequestError,
    OverloadedError,
    RequestTimeoutError,
    TargetTooLongError,
)
from faas.gateway.call import BodyPace
from faas.gateway.ending import Absence, GentleTlsTransport, GentleTransport, Patience, closed_its_end
from faas.gateway.inmemory import MemoryRequest
from faas.gateway.lane import Half, Head, Lane, Request, Serve, TlsHead, begin
from faas.gateway.middleware import problem_reply, problem_response
from faas.log import event
from faas.wasm import calls

MAX_TARGET_BYTES: Final = 8192
MAX_FIELD_BYTES: Final = 8190
"""Of one header's name and value; another number than MAX_TARGET_BYTES, as it tells which of the two was too long."""
MAX_HEADERS: Final = 128
MAX_HEAD_BYTES: Final = 64 * 1024
SPARE_FILES: Final = 192
"""Files that a worker may open besides its clients' connections, those that it turns away included."""
OUTBOUND_FILES: Final = 1536
"""Sockets of functions' own requests, on their way or kept (``faas.outbound.client``); more if there may be."""
TURNED_AWAY: Final = 64
"""Connections over the limit that wait for their client to read why."""
LOOK_AGAIN_S: Final = 0.1
"""After a search for idle connections in vain: the next one would be in vain, too."""
UNREAD_S: Final = 1.0
"""How often a connection that is not read, for all that it has sent, is asked whether its client closed its end."""
TIMER_SLACK_S: Final = 0.002
"""How much earlier than asked for a timer may end a wait: the loop counts in milliseconds."""

_END_OF_HEAD: Final = b"\r\n\r\n"

_log = logging.getLogger(__name__)
# What of a connection's inside the lane reads and writes (all slots, or methods, of its class).
_HANDLER_PARTS = (
    "_buffer_paused", "_close", "_current_request", "_force_close", "_keepalive_handle", "_keepalive_timeout", "_loop",
    "_max_msg_queue_size", "_messages", "_next_keepalive_close_time", "_parser", "_pause_reading_for_buffer", "_paused",
    "_payload_parser", "_process_keepalive", "_request_count", "_upgraded", "_waiter", "peername",
)  # fmt: skip


class _Refused(HttpProcessingError):
    """What the parser lets through and we do not."""

    def __init__(self, error: FaasError) -> None:
        super().__init__(message=error.message)
        self.error = error


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

    __slots__ = (
        "_absence", "_answered_last",
        "_body", "_deaf", "_gentle", "_half", "_has_lane", "_head_bytes", "_head_timeout_s", "_head_timer",
        "_new_head", "_remote", "_server", "_uncounted", "_unread_timer", "body_awaited_until", "body_pace",
    )  # fmt: skip

    def __init__(self, server: Server, *, head_timeout_s: float, **options: Any) -> None:
        super().__init__(
            server,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            **options,
        )
        self._server = server
        self._has_lane = server.has_lane
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._half: Half | None = None
        self._new_head: type[Head] = Head
        self._remote: str | None = None
        self._gentle: GentleTransport | None = None
        self._absence: Absence | None = None
        self._body: StreamReader | None = None  # of the last request that came
        self._head_bytes = 0  # of a head that has begun
        self._uncounted = False  # more of it may have come with the body before it
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answered_last = True  # nobody reads that body any more
        self._deaf = False  # nothing more is taken: the client closed its end, or is not understood
        self.body_pace = server.body_pace
        self.body_awaited_until = 0.0
        """When the last wait for the current request's body was given up, on the loop's clock; infinity during one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer: an open connection that says nothing costs a descriptor too."""
        super().connection_made(transport)
        peername = self.peername
        if peername is not None:
            self._remote = str(peername[0] if isinstance(peername, list | tuple) else peername)
        admitted = self._server.admit()  # before it could be taken for an idle one itself
        gently = GentleTransport
        if transport.get_extra_info("sslcontext") is not None:
            gently = GentleTlsTransport
            self._new_head = TlsHead
        gentle = self._gentle = gently(cast("asyncio.Transport", transport), self._loop, self._server.patience)
        self.transport = cast("asyncio.Transport", gentle)
        if admitted:
            self._start_timer()
        else:
            gentle.lingers = self._server.may_linger()
            self._end(OverloadedError("too many connections are open; try again later"))

    def data_received(self, data: bytes) -> None:
        """Parse; the timer stops when a head is complete, and starts when only a part of the next one is here."""
        gentle = self._gentle
        if gentle is None or gentle.closing or self._deaf:
            if gentle is not None:
                gentle.heard = True
            return
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
            plain = None
            # Nothing of this head is in aiohttp's parser yet, nor is it in the middle of a body.
            if not self._head_bytes and not self._uncounted and (self._body is None or self._body.is_eof()):
                plain = self._server.plain_head(data)
            if self._answered(data) if plain is None else self._answered_plain(data, *plain):
                if self._head_timer is not None:
                    self._stop_timer()
                return
        elif self._force_close or self._close or self._upgraded or self._payload_parser is not None:
            super().data_received(data)
        else:
            self._parse(data)
        if self._current_request is not None or self._messages or self._receives_body() or self._deaf:
            self._stop_timer()
        elif self._head_bytes:
            self.expect_head()

    def expect_head(self) -> None:
        """Start the timer of a head that has begun, if there is one."""
        if self._head_bytes and self._head_timer is None and not self._messages:
            self._start_timer()

    def take_half(self) -> Half | None:
        """Return the coroutine that began the current request in the lane, None if it did not begin there."""
        half, self._half = self._half, None
        return half

    def _answered(self, data: bytes) -> bool:
        """Return whether *data* was one plain request and has been answered; else aiohttp has got what was parsed."""
        parser, transport = self._parser, self.transport
        assert parser is not None
        of_body = self._receives_body()
        try:
            parsed = parser.feed_data(data)
        except HttpProcessingError as exc:
            self._refuse(exc)
            return False
        messages, upgraded, _ = parsed
        if (
            len(messages) == 1
            and not upgraded
            and messages[0][1] is EMPTY_PAYLOAD
            and _is_plain(messages[0][0])
            and data.endswith(_END_OF_HEAD)
            and self._head_bytes + len(data) <= MAX_HEAD_BYTES
            and not (self._uncounted and _head_size(messages[0][0]) > MAX_HEAD_BYTES)
            and self._request_count + 1 < self._server.keepalive_requests
            and transport is not None
            and not transport.is_closing()
        ):
            message = messages[0][0]
            self._head_bytes = 0
            self._uncounted = False
            half = self._begin(self._new_head(message.method, message.path, message.headers, self._remote, transport))
            if half is None:
                parser.message_consumed()
                return True
            self._half = half
            self._hand_over(parsed)
        else:
            self._take(parsed, data, of_body)
        return False

    def _answered_plain(self, data: bytes, method: str, target: str, fields: dict[str, str]) -> bool:
        """As ``_answered``, for *data* of which ``plain_head`` made the rest: aiohttp's parser is spared it."""
        transport, parser = self.transport, self._parser
        assert parser is not None
        if self._request_count + 1 >= self._server.keepalive_requests or transport is None or transport.is_closing():
            return self._answered(data)
        half = self._begin(self._new_head(method, target, fields, self._remote, transport))
        if half is None:
            return True
        try:
            parsed = parser.feed_data(data)
        except HttpProcessingError as exc:
            half.cancel()
            self._refuse(exc)
            return False
        self._half = half
        self._hand_over(parsed)
        return False

    def _begin(self, head: Head) -> Half | None:
        """Serve a request in the lane, as far as that goes; None if it has been answered, or given up."""
        try:
            answer = begin(self._server.serve, Lane(head, inside=True))
        except asyncio.CancelledError:
            self.force_close()
            return None
        if isinstance(answer, Half):
            return answer
        head.transport.write(answer.encode(head.method))
        self._count()
        return None

    # --- what is taken ----------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        body = self._body
        of_body = body is not None and not body.is_eof()
        early = of_body and not self._messages
        try:
            parsed = parser.feed_data(data)
        except HttpProcessingError as exc:
            self._refuse(exc)
            return
        self._take(parsed, data, of_body)
        if early and body is not None and body.is_eof():
            # The parser counts a request once it is complete, but this one was taken from the queue before: it would
            # stop one short of a full queue, and nobody would have it go on.
            parser.message_consumed()
            if len(self._messages) == self._max_msg_queue_size - 1 and not self._deaf:
                self._parse(b"")

    def _take(self, parsed: Any, data: bytes, of_body: bool) -> None:
        """
        Hand on what *data* was parsed into, up to a request that is refused or the last one.

        Args: *of_body*: whether *data* begins with a part of a body; empty data are what the parser had kept.
        """
        messages, upgraded, _ = parsed
        if not messages and not upgraded:
            if of_body or not data:
                self._uncounted = True
                self._hand_over(parsed)
            else:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(_Refused(_too_large_head()))
            return
        messages = list(messages)
        measured = self._uncounted or not data or self._head_bytes + len(data) > MAX_HEAD_BYTES
        self._head_bytes = 0
        self._uncounted = True
        for index, (message, payload) in enumerate(messages):
            error = _fault(message, payload, measured=measured)
            if error is not None:
                self._hand_over((messages[:index], False, b""))
                self._refuse(_Refused(error))
                return
            if self._request_count + index + 1 >= self._server.keepalive_requests:
                del messages[index + 1 :]
                upgraded = True
                break
        if messages:
            message, payload = messages[-1]
            self._body = payload
            self._answered_last = False
            last = upgraded or (message.upgrade and not _ends_with_head(data, payload))
            if last:  # to nothing that is spoken here: what follows is not read, so this is the last request
                messages[-1] = (message._replace(should_close=True), payload)
            elif payload is EMPTY_PAYLOAD and data:
                self._head_bytes = _bytes_after_head(data)
                self._uncounted = False
        # The body of the last request has to be read on, also where nothing may follow it.
        self._deaf = upgraded and not self._receives_body()
        self._hand_over((messages, False, b""))
        if self._deaf and self._is_idle():
            self.force_close()
        else:
            self._wind_up()

    def _receives_body(self) -> bool:
        return self._body is not None and not self._body.is_eof()

    def _refuse(self, exc: HttpProcessingError) -> None:
        """Take nothing more; the client is told by the reply to the request whose body it was, or by one of its own."""
        self._deaf = True
        if self._receives_body():
            self._fail_body("it is not what its headers announce")
            self._wind_up()
        else:
            self._hand_over(exc)

    def _fail_body(self, why: str) -> None:
        body = self._body
        assert body is not None
        if not self._answered_last:
            body.set_exception(web.RequestPayloadError(why))
        body.feed_eof()  # else aiohttp would wait for the rest

    def _wind_up(self) -> None:
        """Close after the request in progress if it is the last one."""
        if self._deaf and not self._messages:
            self._close = True

    # --- how it ends ------------------------------------------------------------------------------------------------

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends nothing more: finish what it asked for, if that is complete. Over TLS it is gone."""
        gentle = self._gentle
        if gentle is None or gentle.closing:
            return False
        gentle.lingers = False
        self._deaf = True
        self._stop_timer()
        if not gentle.half_closes:
            gentle.close()
            return False
        if self._is_idle():
            if self._head_bytes:
                self._end(MalformedRequestError("the request ends in the middle of its head; send all of it"))
            else:
                self.force_close()
            return True
        if self._receives_body():
            self._fail_body("the client closed its end before the end of the body")
        self._wind_up()
        self.ask_for_client()
        return True

    def _is_idle(self) -> bool:
        """Whether no request is in progress, and none waits."""
        waiter = self._waiter
        if waiter is None:
            return self._request_count == 0  # aiohttp's task has not begun
        return not waiter.done() and not self._messages

    def close(self) -> None:
        """Close after the request in progress; at once if there is none, as aiohttp would go on waiting, but deaf."""
        if not self._is_idle():
            super().close()
        elif self._head_timer is None:
            self.force_close()
        else:
            self._end(OverloadedError("this worker is draining", retry_after_s=1))

    def ask_if_closed(self) -> None:
        """Look whether the client closed its end, without reading."""
        if self._gentle is not None and not self._gentle.closing and closed_its_end(self._gentle):
            self.ask_for_client()

    def ask_for_client(self) -> None:
        """The client closed its end: abort the connection if it turns out to be gone, as it is over TLS."""
        if self._gentle is not None and not self._gentle.half_closes:
            self._gentle.abort()
            return
        if self._absence is None and self._gentle is not None:
            self._absence = Absence(self._gentle, self._loop, self._progress)

    def _pause_reading_for_buffer(self) -> None:
        """As aiohttp, which has enough requests of this client; but notice if it goes away meanwhile."""
        super()._pause_reading_for_buffer()
        if self._unread_timer is None:
            self._unread_timer = self._loop.call_later(UNREAD_S, self._ask_unread)

    def _ask_unread(self) -> None:
        self._unread_timer = None
        if self._buffer_paused and self._absence is None:
            self.ask_if_closed()
            self._unread_timer = self._loop.call_later(UNREAD_S, self._ask_unread)

    def _progress(self) -> tuple[bool, int]:
        request = self._current_request
        if request is None:
            return False, 0
        return request.version >= HttpVersion11, request.writer.output_size

    def pause_writing(self) -> None:
        """Bound how long the client may take nothing."""
        super().pause_writing()
        if self._gentle is not None:
            self._gentle.watch()

    def resume_writing(self) -> None:
        """Stop the watch."""
        super().resume_writing()
        if self._gentle is not None:
            self._gentle.unwatch()

    @property
    def is_going(self) -> bool:
        """Whether the connection is about to be lost, without waiting for anybody."""
        return self._gentle is not None and self._gentle.going

    def idle_since(self) -> float | None:
        """
        Return since when this connection has waited for the client, in the loop's seconds; None if it is busy.

        One that was answered for the last time, and waits for its client to close, is always the first: 0.
        """
        gentle = self._gentle
        if gentle is None:
            return None
        if gentle.closing:
            return 0.0 if gentle.sent_all and not gentle.going else None
        if not self._is_idle():
            return None
        if self._head_timer is not None:
            return self._head_timer.when() - self._head_timeout_s
        return self._next_keepalive_close_time - self._keepalive_timeout

    def evict(self) -> None:
        """Close this idle connection at once: another one needs its place."""
        gentle = self._gentle
        if gentle is None:
            return
        if gentle.closing:
            gentle.abort()
            return
        gentle.lingers = False
        if self._head_timer is not None:
            self._end(OverloadedError("too many connections are open; try again later"))
        else:
            self.force_close()

    def _end(self, error: FaasError) -> None:
        """Answer *error* to a client that has no request in progress, and close."""
        self._stop_timer()
        transport = self.transport
        if transport is not None and not transport.is_closing():
            reply = problem_reply(error, "")
            reply.own["Connection"] = "close"
            transport.write(reply.encode(hdrs.METH_GET))
            self.force_close()

    def _hand_over(self, parsed: Any) -> None:
        """Have aiohttp go on with what the parser said, or with the exception that it raised."""
        parser, self._parser = self._parser, _Parsed(parsed)  # type: ignore[assignment]
        try:
            super().data_received(b"")
        finally:
            self._parser = parser

    def _count(self) -> None:
        """Do for a request that was answered in the lane what aiohttp's ``start`` does for its own."""
        self._request_count += 1
        self._server.requests_count += 1
        close_time = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_time
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers; end a request that waited for its task."""
        self._stop_timer()
        if self._absence is not None:
            self._absence.cancel()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        gentle, self._gentle = self._gentle, None
        if gentle is not None:
            gentle.lost()
            self._server.n_open -= 1
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
        if self._is_idle():
            self._end(RequestTimeoutError(f"no request came within {self._head_timeout_s:g} s; send it faster"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp itself refuses (no HTTP, a head that is too long): a problem, and one line in the log."""
        error = _error_of(status, exc, message)
        response = problem_response(error, "")
        event(
            _log,
            "request.refused",
            status=response.status,
            code=error.code,
            reason=error.message if isinstance(exc, _Refused) else type(exc).__name__,
            remote=request.remote or "",
        )
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun: no second one can be sent")
        response.force_close()
        return response


class Server(web.Server):
    """aiohttp's low-level server with our connections; lives as long as the worker."""

    def __init__(
        self,
        serve: Serve,
        *,
        head_timeout_s: float,
        body_pace: BodyPace | None = None,
        patience: Patience | None = None,
        keepalive_requests: int = 0,
        max_connections: int = 1_000_000,
        **options: Any,
    ) -> None:
        """
        Args: *serve* answers each request; *keepalive_requests* of 0 is no limit; *options* are aiohttp's
        ``RequestHandler`` options.
        """
        super().__init__(self._answer, **options)
        self.serve = serve
        missing = missing_internals()
        self.has_lane = not missing
        self.plain_head = calls.chosen().plain_head
        if missing:
            event(_log, "lane.off", level=logging.WARNING, missing=",".join(missing))
        self._head_timeout_s = head_timeout_s
        self.body_pace = body_pace or BodyPace()
        self.patience = patience or Patience()
        self.keepalive_requests = keepalive_requests or 1 << 62
        self._max_connections = max_connections
        self.n_open = 0
        """Connections, with those that are being closed."""
        self._look_again = 0.0

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)

    def admit(self) -> bool:
        """Count a new connection; return whether there is room for it, if need be in the place of an idle one."""
        self.n_open += 1
        return self.n_open <= self._max_connections or self._make_room()

    def may_linger(self) -> bool:
        """Whether a connection that is turned away may wait until its client has read why."""
        return self.n_open <= self._max_connections + TURNED_AWAY

    def _make_room(self) -> bool:
        """
        Close the connections that were idle longest, some at once, as looking for them takes long.

        None are closed where that would not do, as with clients that were turned away and have not closed their end.
        """
        now = time.monotonic()
        if now < self._look_again:
            return False
        n_wanted = self.n_open - self._max_connections
        idle = []
        for number, connection in enumerate(self.connections):
            if isinstance(connection, Connection):
                if connection.is_going:
                    n_wanted -= 1
                elif (since := connection.idle_since()) is not None:
                    idle.append((since, number, connection))
        if n_wanted <= 0:
            return True
        event(_log, "connections.full", level=logging.WARNING, open=self.n_open, idle=len(idle))
        if len(idle) < n_wanted:
            self._look_again = now + LOOK_AGAIN_S
            return False
        idle.sort()
        for _, _, connection in idle[: max(n_wanted, len(idle) // 20)]:
            connection.evict()
        return True

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        protocol = request.protocol
        assert isinstance(protocol, Connection)
        protocol.body_awaited_until = 0.0
        protocol._wind_up()
        half = protocol.take_half()
        answer = await (self.serve(Lane(request, inside=False)) if half is None else half.go_on(request))
        assert isinstance(answer, web.StreamResponse)
        if not protocol._messages:
            protocol._answered_last = True
            if not answer.prepared and answer.status >= 400 and protocol._receives_body():
                # The rest of the body need not be sent: say so, and don't wait for it as aiohttp would.
                answer.force_close()
                protocol._lingering_time = 0
            protocol.expect_head()
        return answer


def connections_possible(max_connections: int) -> int:
    """
    Return how many connections this process may hold, *max_connections* or fewer.

    Raises the limit on open files as far as that is needed and allowed, as servers do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + SPARE_FILES
    if soft < wanted + OUTBOUND_FILES:
        soft = wanted + OUTBOUND_FILES
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        event(_log, "connections.fewer", level=logging.WARNING, wanted=max_connections, open_files=soft)
    return max(1, min(max_connections, soft - SPARE_FILES))


def awaited_body_until(request: Request | MemoryRequest, deadline: float) -> bool:
    """
    Whether a request is late because its client did not send the body: it was waited for until *deadline*.

    A guest may cease to wait before, and be late all by itself. *deadline* is on the loop's clock, in seconds.
    """
    protocol = request.protocol if isinstance(request, web.BaseRequest) else None
    return isinstance(protocol, Connection) and protocol.body_awaited_until >= deadline - TIMER_SLACK_S


def ask_if_closed(request: Request | MemoryRequest) -> None:
    """Find out whether the client is gone if it closed its end, which a connection that is not read does not see."""
    protocol = request.protocol if isinstance(request, web.BaseRequest) else None
    if isinstance(protocol, Connection):
        protocol.ask_if_closed()


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
        and hdrs.CONTENT_LENGTH not in message.headers
    )


def _ends_with_head(data: bytes, payload: StreamReader) -> bool:
    """Whether nothing may be behind the one head in *data*, which the parser would forget if it asks for an upgrade."""
    return payload is EMPTY_PAYLOAD and data.find(_END_OF_HEAD) == len(data) - len(_END_OF_HEAD)


def _bytes_after_head(data: bytes) -> int:
    """Return how many bytes of another head are behind the last one that is complete, and has no body."""
    return len(data[data.rfind(_END_OF_HEAD) + 1 :].lstrip(b"\r\n"))


def _head_size(message: RawRequestMessage) -> int:
    return len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)


def _fault(message: RawRequestMessage, payload: StreamReader, *, measured: bool) -> FaasError | None:
    """Return why a request that the parser took is refused, None if it is not; its size counts if *measured*."""
    if message.version not in (HttpVersion11, HttpVersion10):
        return HttpVersionError("only HTTP/1.1 and HTTP/1.0 are spoken here; put a proxy in front for other versions")
    if message.version == HttpVersion10 and hdrs.TRANSFER_ENCODING in message.headers:
        return MalformedRequestError("HTTP/1.0 has no Transfer-Encoding; send a Content-Length")  # RFC 9112 6.1
    if payload is EMPTY_PAYLOAD and message.headers.get(hdrs.CONTENT_LENGTH, "0").strip("0"):
        return MalformedRequestError("the Content-Length is no number of bytes; send the right one")  # 2**64 - 1
    if measured and _head_size(message) > MAX_HEAD_BYTES:
        return _too_large_head()
    return None


def _too_large_head() -> HeadTooLargeError:
    return HeadTooLargeError(
        f"the request's headers are over {MAX_FIELD_BYTES} bytes each, {MAX_HEADERS} in number or "
        f"{MAX_HEAD_BYTES} bytes together; send fewer and shorter ones"
    )


def _error_of(status: int, exc: BaseException | None, message: str | None) -> FaasError:
    """Map what aiohttp refuses to our own errors."""
    if isinstance(exc, _Refused):
        return exc.error
    if isinstance(exc, LineTooLong):
        if str(MAX_TARGET_BYTES) in str(exc.args[1:]):
            return TargetTooLongError(
                f"the request's target is over {MAX_TARGET_BYTES} bytes; send what is long as a body"
            )
        return _too_large_head()
    if status >= 500:
        return InternalError("the host failed to serve this request; its log has the reason")
    said = (message or "it is malformed").split("\n", 1)[0]
    if said.startswith("Too many headers"):
        return _too_large_head()
    return MalformedRequestError(f"the request is not HTTP as it should be: {said}; check the client")
