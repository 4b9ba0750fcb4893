"""
Requests and replies that were never on a connection: what the gateway reads and writes where functions are invoked in
memory (``internal.py``), in place of aiohttp's objects.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from aiohttp import HttpVersion, HttpVersion11
from aiohttp.helpers import must_be_empty_body

from faas.errors import ClientGoneError, FaasError
from faas.gateway.lane import Reply
from faas.invocation import Outcome
from faas.outbound.exchange import Body

HIGH_WATER_BYTES: Final = 256 * 1024
"""What a callee may be ahead of a caller that does not read; a write that begins below may pass it."""


class MemoryRequest:
    """What the gateway reads of a request; stands in for aiohttp's. Lives as long as its invocation."""

    __slots__ = ("body", "content_length", "headers", "host", "method", "remote")

    version: HttpVersion = HttpVersion11
    scheme = "http"

    def __init__(
        self,
        method: str,
        headers: Mapping[str, str],
        body: bytes | Body,
        n_bytes: int | None,
        *,
        host: str,
        remote: str | None,
    ) -> None:
        """
        Args: *headers* keep bytes beyond UTF-8 as surrogates; *body* is all of it, or comes while it is read, *n_bytes*
        long or nobody knows how long.
        """
        self.method = method
        self.headers = headers
        self.body = body
        self.host = host
        self.remote = remote
        self.content_length = n_bytes

    @property
    def body_exists(self) -> bool:
        """Whether there is, or may come, a body."""
        return self.body != b""


class Head(NamedTuple):
    """A reply's status and headers, the host's first."""

    status: int
    headers: list[tuple[str, str]]


class Exchange:
    """
    A reply on its way from its function to who invoked it: a head, then pieces, each side held back by the other.

    One end is a stream as ``begin_reply`` returns it, the other an ``InputStream``. Lives as long as either side.
    Thread: ``read_nowait`` from any, the rest on the loop.
    """

    __slots__ = (
        "_at", "_headed", "_parts", "_piece", "_read_bytes", "_reader", "_writer", "_written_bytes", "broken", "closed",
        "ended", "failure", "head", "outcome", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.head: Head | None = None
        self.outcome = Outcome.OK
        self.failure: FaasError | None = None
        """What ended the invocation, also where that became a problem document."""
        self.broken = False
        """Whether the reply was given up after its head, so that nobody may take what came for the whole."""
        self.closed = False
        """Whether nobody reads any more."""
        self.ended = False
        """Whether the whole reply is there, read or not; its function may still run on."""
        self.trailers: list[tuple[str, bytes]] | None = None
        self._headed = asyncio.Event()
        self._parts: deque[bytes] = deque()
        self._piece = b""  # of this, ``_at`` bytes are read
        self._at = 0
        # Two counts, so that each is changed by one thread only.
        self._written_bytes = 0
        self._read_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # the function's end

    @property
    def status(self) -> int:
        """The status, once there is a head."""
        return 0 if self.head is None else self.head.status

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Give the head; ``write`` and ``write_eof`` follow."""
        self.head = Head(status, list(headers))
        self._headed.set()

    async def answer(self, reply: Reply, method: str) -> None:
        """Give a whole reply, with the length and the type that HTTP would send; waits as ``write`` does."""
        headers = [*reply.own.items(), *reply.headers]
        body = reply.body
        bodyless = method == "HEAD" or must_be_empty_body(method, reply.status)
        names = {name.lower() for name, _ in headers}
        if "content-length" not in names and (body or not bodyless):
            headers.append(("Content-Length", str(len(body))))
        if body and not bodyless and "content-type" not in names:
            headers.append(("Content-Type", "application/octet-stream"))
        self.begin(reply.status, headers)
        # A function whose reply is not taken holds its permit, as over HTTP: so replies that wait are bounded, too.
        await self.write_eof(b"" if bodyless else body)

    async def write(self, data: bytes) -> None:
        """Give a piece of the body, and wait while too much of it has not been read."""
        if self.closed or not data:
            return
        self._parts.append(data)
        self._written_bytes += len(data)
        self._wake_reader()
        while self._written_bytes - self._read_bytes >= HIGH_WATER_BYTES and not self.closed:
            writer = self._writer = asyncio.get_running_loop().create_future()
            if self._written_bytes - self._read_bytes < HIGH_WATER_BYTES:
                break  # read meanwhile, by a thread that did not know whom to wake
            await writer
        self._writer = None

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body well."""
        await self.write(data)
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._wake_reader()

    def failed(self, outcome: Outcome, failure: FaasError) -> None:
        """Note how the invocation ended; who reads a reply that has begun gets *failure* behind what came."""
        self.outcome, self.failure = outcome, failure

    def finish(self) -> None:
        """Let nobody wait any longer: the invocation is over, whatever became of it."""
        if not self.ended and self.failure is None:
            self.failed(Outcome.CANCELLED, ClientGoneError("the invocation was given up by its caller"))
        if not self.ended and self._written_bytes - self._read_bytes >= HIGH_WATER_BYTES:
            self._parts.clear()  # of a reply that is broken off, and for which nobody holds a permit any more
        self._headed.set()
        self._wake_reader()

    # the caller's end

    async def wait_head(self) -> Head:
        """
        Return the head once it is there.

        Raises: FaasError if there will be none: the caller gave the invocation up.
        """
        await self._headed.wait()
        if self.head is None:
            assert self.failure is not None
            raise self.failure
        return self.head

    def read_nowait(self, n: int) -> bytes | None:
        """
        Return up to *n* bytes that are here, ``b""`` at the end, None if there are none yet.

        Raises: the FaasError that ended the invocation after its head, once what came before is read.
        """
        piece, at = self._piece, self._at
        if at == len(piece):
            ended, failure = self.ended, self.failure  # read before the parts: these come first
            try:
                piece, at = self._parts.popleft(), 0
            except IndexError:
                if ended:
                    return b""
                if failure is not None:
                    raise failure.with_traceback(None) from None  # else each read would lengthen it
                return None
            self._piece = piece
        data = piece if not at and len(piece) <= n else piece[at : at + n]
        self._at = at + len(data)
        self._read_bytes += len(data)
        writer = self._writer
        if writer is not None and self._written_bytes - self._read_bytes < HIGH_WATER_BYTES:
            self._writer = None
            writer.get_loop().call_soon_threadsafe(_wake, writer)
        return data

    async def wait_readable(self) -> None:
        """Return when ``read_nowait`` has something to say."""
        while not self._parts and self._at == len(self._piece) and not self.ended and self.failure is None:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    async def read_all(self) -> bytes:
        """
        Return the rest of the body.

        Raises: as ``read_nowait``.
        """
        parts: list[bytes] = []
        while (piece := self.read_nowait(1 << 30)) != b"":
            if piece is None:
                await self.wait_readable()
            else:
                parts.append(piece)
        return b"".join(parts)

    def close(self) -> None:
        """Read no more. Safe to call more than once."""
        self.closed = True
        self._parts.clear()
        writer, self._writer = self._writer, None
        if writer is not None:
            _wake(writer)

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            _wake(reader)


class MemoryLane:
    """Where an invocation in memory is: always in a task of its own, which may wait. As ``Lane`` otherwise."""

    __slots__ = ("exchange", "request")

    inside: Final = False

    def __init__(self, request: MemoryRequest, exchange: Exchange) -> None:
        self.request = request
        self.exchange = exchange

    async def leave(self) -> None:
        """Do nothing: it never was in the lane."""

    def until(self, when: float) -> asyncio.Timeout:
        """Return a deadline for an ``async with``; *when* is on the loop's clock, in seconds."""
        return asyncio.timeout_at(when)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
