"""
The fast lane: a plain request is answered inside the callback that brought it, with no task, future or aiohttp objects.

The gateway's coroutine for a request is begun by hand (``http.py``). Most guests are done in their first time slice;
then it ends without ever having waited, and its ``Reply`` is written at once. Whatever has to wait first awaits
``Lane.leave``: it suspends the coroutine once, aiohttp makes a request and a task as usual, and the coroutine goes on
in that task. Nothing else may suspend in the lane.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType, coroutine
from typing import Any, Final, Protocol, Self, cast

from aiohttp import HttpVersion, HttpVersion11, web
from aiohttp.helpers import must_be_empty_body, rfc822_formatted_time, should_remove_content_length
from multidict import CIMultiDict, istr

from faas import __version__

SOFTWARE: Final = f"faas/{__version__}"
MAX_BODY_BYTES: Final = 32 * 1024
"""A longer reply leaves the lane: its client may read slowly, and that is to be within permit and deadline."""

_LEAVING: Final = object()
_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}
_SERVER_LINE: Final = f"Server: {SOFTWARE}\r\n"


class _Nothing:
    """An awaitable that is done, without the coroutine."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return _AT_ITS_END


_AT_ITS_END: Final = cast("Generator[None, None, None]", iter(()))  # an iterator will do
_NOTHING: Final = _Nothing()


class Head:
    """
    What the gateway reads of a request while it is in the lane; stands in for aiohttp's request.

    Only for HTTP/1.1 requests without a body. Lives as long as the connection's callback, or until the lane is left.
    """

    __slots__ = ("headers", "method", "raw_path", "remote", "transport")

    version: HttpVersion = HttpVersion11
    scheme = "http"
    body_exists = False
    content_length: int | None = None

    def __init__(
        self,
        method: str,
        raw_path: str,
        headers: Mapping[str, str],
        remote: str | None,
        transport: asyncio.Transport,
    ) -> None:
        """Args: *headers* are aiohttp's, or a dict of printable ASCII whose names are in lower case."""
        self.remote = remote
        """The client's address, as ``BaseRequest.remote``."""
        self.method = method
        self.raw_path = raw_path
        self.headers = headers
        self.transport = transport

    @property
    def host(self) -> str:
        """The Host header, as ``BaseRequest.host``; a request without one does not get into the lane."""
        return self.headers["host"]


RESERVED: Final = frozenset(map(istr, ("x-faas-job", "x-faas-attempt", "x-faas-schedule", "x-faas-scheduled-for")))
"""Headers of requests that only the host sets, so that guests may believe them; in lower case."""


class TlsHead(Head):
    """A ``Head`` that came over TLS."""

    __slots__ = ()

    scheme = "https"


Request = web.BaseRequest | Head


class Reply:
    """
    A finished answer before it is bytes: *own* headers are the host's, *headers* the guest's, both checked already.

    ``encode`` and ``response`` send the same; the first is for the lane.
    """

    __slots__ = ("body", "headers", "own", "reason", "status")

    prepared = False

    def __init__(
        self,
        status: int,
        body: bytes,
        own: dict[str, str],
        headers: Iterable[tuple[str, str]] = (),
        reason: str | None = None,
    ) -> None:
        """Args: *reason* None means the usual phrase."""
        self.status = status
        self.body = body
        self.own = own
        self.headers = headers
        self.reason = reason

    def response(self) -> web.Response:
        """Return the reply as aiohttp sends it."""
        return web.Response(status=self.status, reason=self.reason, body=self.body, headers=self._all_headers())

    def encode(self, method: str) -> bytes:
        """Return the reply to a *method* request in the lane (HTTP/1.1, kept alive), as aiohttp would write it."""
        status, reason = self.status, self.reason
        if reason is None:
            reason = _PHRASES.get(status, "")
        parts = [f"HTTP/1.1 {status} {reason}\r\n"]
        typed = dated = False
        for name, value in self.own.items():
            parts.append(f"{name}: {value}\r\n")
            if name == "Content-Type":
                typed = True
        for name, value in self.headers:
            lower = name.lower()
            if lower == "server":
                return self._encode_in_order(method)
            if lower == "content-type":
                typed = True
            elif lower == "date":
                dated = True
            parts.append(f"{name}: {value}\r\n")
        return self._ended(parts, _SERVER_LINE, method, typed=typed, dated=dated)

    def _encode_in_order(self, method: str) -> bytes:
        """Encode a reply whose guest names a server: ours takes the place of it."""
        headers = self._all_headers()
        parts = [f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, '') if self.reason is None else self.reason}\r\n"]
        parts += [f"{name}: {value}\r\n" for name, value in headers.items()]
        return self._ended(parts, "", method, typed="Content-Type" in headers, dated="Date" in headers)

    def _ended(self, parts: list[str], server: str, method: str, *, typed: bool, dated: bool) -> bytes:
        """Append what aiohttp does: length, type and date; then the body, where one may be."""
        status, body = self.status, self.body
        parts.append(server)
        bodyless = _is_bodyless(method, status)
        if not bodyless:
            parts.append(f"Content-Length: {len(body)}\r\n")
            if body and not typed:
                parts.append("Content-Type: application/octet-stream\r\n")
        elif body and not should_remove_content_length(method, status):
            parts.append(f"Content-Length: {len(body)}\r\n")
        if not dated:
            parts.append(f"Date: {rfc822_formatted_time()}\r\n")
        parts.append("\r\n")
        # aiohttp leaves out what can't be encoded, too
        head = "".join(parts).encode("utf-8", "ignore")
        return head if bodyless else head + body

    def _all_headers(self) -> CIMultiDict[str]:
        headers = CIMultiDict(self.own)
        for name, value in self.headers:
            headers.add(name, value)
        headers["Server"] = SOFTWARE
        return headers


@functools.lru_cache(maxsize=256)  # the parser takes a few methods only
def _is_bodyless(method: str, status: int) -> bool:
    return method == "HEAD" or status in (204, 304) or must_be_empty_body(method, status)


class Lane:
    """
    Where one request is: in the lane (a ``Head``, no task), or out of it (aiohttp's request, in its task).

    Also the deadline of what is under way: ``async with lane.until(when)`` raises TimeoutError when it has passed; it
    is armed only outside of the lane, since in there nothing waits.
    """

    __slots__ = ("_deadline", "_timeout", "inside", "request")

    def __init__(self, request: Request, *, inside: bool) -> None:
        self.request = request
        self.inside = inside
        self._deadline: float | None = None
        self._timeout: asyncio.Timeout | None = None

    async def leave(self) -> web.BaseRequest:
        """Return aiohttp's request; from now on the caller runs in a task and may wait. Cheap when already outside."""
        if self.inside:
            await _leaving()
            if self._deadline is not None:
                await self._arm(self._deadline)
        assert isinstance(self.request, web.BaseRequest)
        return self.request

    def left(self, request: web.BaseRequest) -> None:
        """Note that the coroutine is about to go on in *request*'s task."""
        self.request = request
        self.inside = False

    def until(self, when: float) -> Self:
        """Set the deadline for the ``async with`` that follows; *when* is on the loop's clock, in seconds."""
        self._deadline = when
        return self

    def __aenter__(self) -> Awaitable[None]:
        if self.inside or self._deadline is None:
            return _NOTHING
        return self._arm(self._deadline)

    def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Awaitable[None]:
        self._deadline = None
        timeout, self._timeout = self._timeout, None
        return _NOTHING if timeout is None else timeout.__aexit__(kind, exc, trace)  # raises TimeoutError itself

    async def _arm(self, when: float) -> None:
        timeout = asyncio.timeout_at(when)
        await timeout.__aenter__()
        self._timeout = timeout


class ReadLane(Lane):
    """A request out of the lane whose whole body was read already, so that it could be checked."""

    __slots__ = ("body",)

    def __init__(self, request: web.BaseRequest, body: bytes) -> None:
        super().__init__(request, inside=False)
        self.body = body


class Stream(Protocol):
    """A reply that has begun: aiohttp's ``StreamResponse``, or an ``Exchange`` in memory."""

    @property
    def status(self) -> int:
        """The status that was sent."""

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits while the other side does not take it."""

    async def write_eof(self) -> None:
        """End the body."""


Answer = Reply | Stream
"""What serving comes to: in the lane, only a Reply."""
Serve = Callable[[Lane], Coroutine[Any, Any, Answer]]


class Half:
    """A coroutine that left the lane, and waits for a task; closed by ``cancel`` if none comes."""

    __slots__ = ("_coroutine", "_lane")

    def __init__(self, running: Coroutine[Any, Any, Answer], lane: Lane) -> None:
        self._coroutine = running
        self._lane = lane

    async def go_on(self, request: web.BaseRequest) -> Answer:
        """Run it to its end in the current task, with the request that aiohttp made of the same head."""
        self._lane.left(request)
        return await _continued(self._coroutine)

    def cancel(self) -> None:
        """End it as if its task had been cancelled: the client went away before there was one."""
        try:
            self._coroutine.throw(asyncio.CancelledError())
        except (asyncio.CancelledError, StopIteration):
            return
        self._coroutine.close()


def begin(serve: Serve, lane: Lane) -> Reply | Half:
    """
    Serve a request as far as that goes without waiting.

    Raises: CancelledError if the reply had to be given up; what is no Exception, such as KeyboardInterrupt.
    """
    running = serve(lane)
    try:
        step = running.send(None)
    except StopIteration as end:
        reply: Reply = end.value
        return reply
    if step is not _LEAVING:
        running.close()
        raise AssertionError(f"awaited in the lane without leaving it: {step!r}")
    return Half(running, lane)


@coroutine
def _leaving() -> Generator[object, None, None]:
    yield _LEAVING


@coroutine
def _continued(running: Coroutine[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
    # A coroutine that has been started can't be awaited any more, but it can be delegated to.
    answer: Answer = yield from running
    return answer
