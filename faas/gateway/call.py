"""One request on its way through the gateway: what every kind of function needs to serve it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from faas.clock import Clock
from faas.errors import BodyTooLargeError, FaasError, MalformedRequestError, OutputLimitError, RequestTimeoutError
from faas.gateway.inmemory import MemoryLane, MemoryRequest
from faas.gateway.journal import Journal
from faas.gateway.lane import SOFTWARE, Lane, ReadLane, Request, Stream
from faas.gateway.live import Served
from faas.invocation import Outcome
from faas.outbound.exchange import Body
from faas.routes import Route

OUTPUT_HIGH_WATER = 256 * 1024
MAX_LOCAL_REDIRECTS = 10
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
"""Source: W3C Trace Context, 3.2.2; a later version may have more behind it."""
_NOTHING: frozenset[str] = frozenset()


class Call:
    """
    A matched request, its function and its timings; lives until the response is finished.

    ``script_name`` is the part of the raw path that the route matched; times are ``time.perf_counter`` seconds.
    """

    # Of every HTTP request, so that none has to be told; ``internal.InternalCall`` has others.
    caller: str = ""
    """The function that calls, or what else it is that invokes in memory."""
    deadline: float | None = None
    """When the caller's own time is over, on the loop's clock, in seconds."""
    depth: int = 0
    """How many functions called each other to come here."""

    __slots__ = (
        "admitted",
        "answered",
        "clock",
        "cpu_ns",
        "hidden",
        "journal",
        "lane",
        "method",
        "params",
        "query",
        "raw_path",
        "received",
        "request_id",
        "route",
        "script_name",
        "served",
        "started",
        "traceparent",
        "warm",
        "with_body",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane | MemoryLane,
        served: Served,
        *,
        method: str,
        raw_path: str,
        query: str,
        params: dict[str, str],
        route: str,
        script_name: str,
        request_id: str,
        traceparent: str,
        clock: Clock,
        journal: Journal,
        received: float,
        with_body: bool,
    ) -> None:
        self.lane = lane
        self.served = served
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.params = params
        self.route = route
        self.script_name = script_name
        self.request_id = request_id
        self.traceparent = traceparent
        self.clock = clock
        self.journal = journal
        self.received = received
        self.admitted = received
        self.started = 0.0
        self.answered = 0.0
        self.with_body = with_body
        self.cpu_ns = 0
        self.hidden = _NOTHING
        """Headers that the guest must not see, in lower case: those with an invoke key, those that only hosts set."""
        self.warm = ""
        """What ``Server-Timing`` says of an instance that was there already, as a parameter of ``start``."""

    @property
    def request(self) -> Request | MemoryRequest:
        """aiohttp's request, or what stands in for it in the lane or in memory."""
        return self.lane.request

    def guest_headers(self) -> Mapping[str, str]:
        """Return the request's headers as its guest may see them, a dict only where the request's are in one."""
        headers, hidden = self.request.headers, self.hidden
        if not hidden:
            return headers
        if type(headers) is dict:
            return {name: value for name, value in headers.items() if name not in hidden}
        shown = CIMultiDict(headers)
        for name in hidden:
            shown.popall(name, None)
        return shown

    def failed(self, outcome: Outcome, error: FaasError) -> None:
        """Hear that it ended so; the journal has it already."""

    @property
    def start_ms(self) -> float:
        """What making this request's own instance took."""
        return (self.started - self.admitted) * 1000 if self.started else 0.0

    def response_headers(self) -> dict[str, str]:
        """Return the headers every reply of a function carries; ``run`` is the time until these headers."""
        admitted, started, answered = self.admitted, self.started, self.answered
        if not answered:
            answered = self.answered = time.perf_counter()
        queue_ms = (admitted - self.received) * 1000
        start_ms = run_ms = 0.0
        if started:
            start_ms, run_ms = (started - admitted) * 1000, (answered - started) * 1000
        return {
            **self.served.headers,
            "X-Request-Id": self.request_id,
            "Server-Timing": (f"queue;dur={queue_ms:.3f}, start;dur={start_ms:.3f}{self.warm}, run;dur={run_ms:.3f}"),
        }

    def log_line(self, line: bytes) -> None:
        """Keep one line that the guest wrote to stderr."""
        self.journal.line(self.served.name, self.served.version, self.request_id, line.decode("utf-8", "replace"))


class LocalRedirect(Exception):
    """The guest answered ``Location: /path``: the host serves that path instead (RFC 3875 6.2.2)."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class BodyPace(NamedTuple):
    """How fast a body has to come while it is waited for."""

    timeout_s: float = 20.0
    """How long nothing may come; also how long may be waited in all before the minimum counts."""
    min_bytes_per_s: int = 500


class RequestBody:
    """
    A guest's stdin: the request's body as it arrives, never more in memory than what has not been read.

    Only the time that somebody waits for it counts against the client's pace.
    Thread: ``read_nowait`` from any (a guest's slice may run in the pool), the rest on the loop.
    """

    def __init__(self, request: web.BaseRequest, max_bytes: int) -> None:
        self._request = request
        self._content = request.content
        self._max_bytes = max_bytes
        self._received_bytes = 0
        self._chunk = b""
        self._ended = False
        self._asked = request.headers.get("Expect", "").lower() != "100-continue"
        self._protocol: Any = request.protocol
        pace = getattr(self._protocol, "body_pace", None)
        self._pace = pace if isinstance(pace, BodyPace) else BodyPace()
        self._waited_s = 0.0
        self._silent_s = 0.0  # of that, since something came: a guest that polls waits many times
        length = request.content_length
        if length is not None and length > max_bytes:
            raise _too_large(max_bytes)

    def read_nowait(self, n: int) -> bytes | None:
        """Return up to *n* bytes that are here, b'' at the end, None if the client has not sent more yet."""
        chunk = self._chunk
        if not chunk:
            return b"" if self._ended else None
        self._chunk = chunk[n:]
        return chunk[:n]

    async def wait_readable(self) -> None:
        """
        Return when ``read_nowait`` has something to say.

        Raises: BodyTooLargeError, MalformedRequestError, RequestTimeoutError.
        """
        if self._chunk or self._ended:
            return
        self.invite()
        content = self._content
        try:
            chunk = content.read_nowait() or (b"" if content.at_eof() else await self._next())
        except web.RequestPayloadError as exc:
            raise MalformedRequestError("the request body is not what its headers announce; send it again") from exc
        if not chunk:
            self._ended = True
            return
        self._received_bytes += len(chunk)
        if self._received_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._chunk = chunk

    async def _next(self) -> bytes:
        timeout_s, min_bytes_per_s = self._pace
        patience_s = timeout_s - self._silent_s
        if min_bytes_per_s:
            earned_s = max(timeout_s, self._received_bytes / min_bytes_per_s)
            patience_s = min(patience_s, earned_s - self._waited_s)
        protocol = self._protocol
        protocol.body_awaited_until = math.inf
        began = time.monotonic()
        came = False
        try:
            async with asyncio.timeout(max(0.0, patience_s)):
                chunk = await self._content.readany()
            came = True
        except TimeoutError as exc:
            raise RequestTimeoutError(
                f"the request body came too slowly: nothing for {timeout_s:g} s, or less than {min_bytes_per_s} bytes "
                "per second; send it faster"
            ) from exc
        finally:  # also where the guest has waited long enough, and goes on without
            ended = time.monotonic()
            self._waited_s += ended - began
            self._silent_s = 0.0 if came else self._silent_s + ended - began
            protocol.body_awaited_until = 0.0 if came else ended
        return chunk

    def invite(self) -> None:
        """Ask a client that waits for it (``Expect: 100-continue``) to send its body; must precede the response."""
        if not self._asked:
            self._asked = True
            transport = self._request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def read_all(self) -> bytes:
        """
        Return the whole body.

        Raises: as ``wait_readable``.
        """
        parts: list[bytes] = []
        while not self._ended:
            await self.wait_readable()
            parts.append(self._chunk)
            self._chunk = b""
        return b"".join(parts)


class MemoryBody:
    """
    A guest's stdin where the request came in memory; as ``RequestBody`` to the guest.

    Thread: ``read_nowait`` from any, the rest on the loop.
    """

    def __init__(self, body: bytes | Body, max_bytes: int) -> None:
        """Raises: BodyTooLargeError."""
        self._max_bytes = max_bytes
        self._source = None if isinstance(body, bytes) else body
        self._piece = body if isinstance(body, bytes) else b""
        self._at = 0
        self._n_bytes = len(self._piece)
        if self._n_bytes > max_bytes:
            raise _too_large(max_bytes)

    def read_nowait(self, n: int) -> bytes | None:
        """Return up to *n* bytes that are here, b'' at the end, None if the caller has not written more yet."""
        piece, at = self._piece, self._at
        if at == len(piece):
            return b"" if self._source is None else None
        data = piece if not at and len(piece) <= n else piece[at : at + n]
        self._at = at + len(data)
        return data

    async def wait_readable(self) -> None:
        """
        Return when ``read_nowait`` has something to say.

        Raises: BodyTooLargeError, MalformedRequestError.
        """
        source = self._source
        if source is None or self._at < len(self._piece):
            return
        try:
            piece = await source.next_chunk()
        except Exception as exc:
            raise MalformedRequestError("the caller broke the request's body off; it has to write all of it") from exc
        self._n_bytes += len(piece)
        if self._n_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        if not piece:
            self._source = None
        self._piece, self._at = piece, 0

    def invite(self) -> None:
        """Do nothing: who writes in memory waits for no invitation."""

    async def read_all(self) -> bytes:
        """
        Return the whole body.

        Raises: as ``wait_readable``.
        """
        parts: list[bytes] = []
        while (piece := self.read_nowait(self._max_bytes + 1)) != b"":
            if piece is None:
                await self.wait_readable()
            else:
                parts.append(piece)
        return b"".join(parts)


AnyBody = RequestBody | MemoryBody


async def open_body(call: Call) -> AnyBody:
    """
    Return the body of a request that has one.

    Raises: BodyTooLargeError.
    """
    lane = call.lane
    max_bytes = call.served.deployment.manifest.limits.max_body_bytes
    if isinstance(lane, MemoryLane):
        return MemoryBody(lane.request.body, max_bytes)
    if isinstance(lane, ReadLane):
        return MemoryBody(lane.body, max_bytes)
    return RequestBody(await lane.leave(), max_bytes)


class Output:
    """
    A guest's stdout: what it wrote and nobody has taken yet.

    Thread: ``write`` from any, ``take`` on the loop, between two slices.
    """

    __slots__ = ("_left_bytes", "_max_bytes", "_parts", "_pending_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._parts: deque[bytes] = deque()
        self._pending_bytes = 0
        self._left_bytes = max_bytes
        self._max_bytes = max_bytes

    @property
    def full(self) -> bool:
        """Whether the guest should yield so that the client can take what there is."""
        return self._pending_bytes >= OUTPUT_HIGH_WATER

    @property
    def pending_bytes(self) -> int:
        """How much waits to be taken."""
        return self._pending_bytes

    def write(self, data: bytes) -> int:
        """
        Keep *data*; all of it is taken.

        Raises: OutputLimitError when the invocation's total passes its limit.
        """
        if not data:
            return 0  # nothing to keep: else a guest could have us keep any number of nothings
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise OutputLimitError(
                f"the guest wrote more than {self._max_bytes} bytes; "
                "write less, or raise limits.max_output_bytes in function.toml"
            )
        self._parts.append(data)
        self._pending_bytes += len(data)
        return len(data)

    def take(self) -> bytes:
        """Return all that is pending."""
        parts = self._parts
        taken = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._pending_bytes = 0
        return taken


def is_bodyless(call: Call, status: int) -> bool:
    """Whether HTTP allows no body here: what a guest writes then must not reach the connection at all."""
    return call.method == "HEAD" or status in (204, 304)


async def begin_reply(
    call: Call,
    body: AnyBody | None,
    status: int,
    headers: Iterable[tuple[str, str]],
    *,
    reason: str | None = None,
    length: int | None = None,
) -> Stream:
    """
    Send the head of a streamed reply: the host's headers and the guest's.

    Args: *length* None means a chunked body, where the client takes one.
    """
    if body is not None:
        body.invite()  # a guest may answer before it reads; after the head it would be too late to ask
    lane = call.lane
    if isinstance(lane, MemoryLane):
        said = [] if length is None else [("Content-Length", str(length))]
        lane.exchange.begin(status, [*call.response_headers().items(), *headers, *said])
        return lane.exchange
    stream = web.StreamResponse(status=status, reason=reason, headers=call.response_headers())
    for name, value in headers:
        stream.headers.add(name, value)
    stream.headers["Server"] = SOFTWARE
    if length is not None:
        stream.content_length = length
    elif call.request.version >= (1, 1) and not is_bodyless(call, status):
        stream.enable_chunked_encoding()
    await stream.prepare(await lane.leave())
    return stream


def break_off(call: Call) -> None:
    """Have nobody take a reply that has begun, and can't be finished, for the whole."""
    lane = call.lane
    if isinstance(lane, MemoryLane):
        lane.exchange.broken = True
    else:
        break_connection(lane.request)


def is_gone(call: Call) -> bool:
    """Whether no reply can be sent any more: its beginning was, or the client went away."""
    lane = call.lane
    if isinstance(lane, MemoryLane):
        return lane.exchange.broken
    transport = lane.request.transport
    return transport is None or transport.is_closing()


def break_connection(request: Request) -> None:
    """Abort the connection: of a reply that has begun and can't be finished, nobody may take half for the whole."""
    transport = request.transport
    if transport is not None:
        transport.abort()


def script_name(route: Route, raw_path: str) -> str:
    """Return the part of *raw_path* that *route* matched; what a trailing ``*`` took is the rest, with its slash."""
    if not route.trailing:
        return raw_path
    end = 0
    for _ in route.segments:
        end = raw_path.find("/", end + 1)
        if end < 0:
            return raw_path
    return raw_path[:end]


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the request body is over {max_bytes} bytes; send less, or raise limits.max_body_bytes in function.toml",
        max_body_bytes=max_bytes,
    )
