"""Bodies of outbound requests and responses as they move: one piece at a time, each side held back by the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from faas.outbound.exchange import Body
from faas.outbound.failures import Failure, OutboundError, from_client


class Upload:
    """A request's body as aiohttp takes it; checks that it is as long as was announced."""

    def __init__(self, body: Body, content_length: int | None) -> None:
        self._body = body
        self._left_bytes = content_length
        self.failure: Exception | None = None
        """Why the request was broken off: the length, or what the body raised."""
        self.on_failure: Callable[[Exception], None] | None = None

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._body.next_chunk()
            if self._left_bytes is not None:
                self._left_bytes -= len(chunk)
                if self._left_bytes < 0 or (self._left_bytes > 0 and not chunk):
                    raise OutboundError(
                        Failure.REQUEST_BODY_SIZE,
                        "the body is "
                        + (f"{self._left_bytes} bytes short of" if chunk == b"" else "longer than")
                        + " its Content-Length",
                    )
        except Exception as exc:
            self.failure = exc
            if self.on_failure is not None:
                self.on_failure(exc)
            raise
        if not chunk:
            raise StopAsyncIteration
        return chunk


class Download:
    """
    A response's body; at most one read of the socket (256 KiB) is ahead of the guest.

    While a piece waits for the guest the connection is not read: aiohttp's own buffer fills beside it otherwise.
    Thread: ``read_nowait`` from any, the rest on the loop.
    """

    __slots__ = ("_between_s", "_chunk", "_ended", "_failure", "_lost", "_on_failure", "_response", "_until")

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        until: Callable[[float | None], float],
        between_s: float | None,
        on_failure: Callable[[OutboundError], None],
    ) -> None:
        """Args: *until* turns a timeout into a deadline on the loop's clock; *on_failure* hears of it once."""
        self._response = response
        self._until = until
        self._between_s = between_s
        self._on_failure = on_failure
        self._chunk = b""
        self._ended = False
        self._failure: Exception | None = None
        self._lost: asyncio.Future[None] | None = None
        connection = response.connection
        if connection is not None and connection.protocol is not None and not response.content.is_eof():
            # After a chunk that is none, aiohttp closes the connection and leaves the body waiting.
            self._lost = connection.protocol.closed
            if self._lost is not None:
                self._lost.remove_done_callback(_retrieve)  # of the connection's last response
                self._lost.add_done_callback(_retrieve)
                self._lost.add_done_callback(self._give_up)

    def read_nowait(self, n: int) -> bytes | None:
        """
        Return up to *n* bytes that are here, ``b""`` at the end, None if there are none yet.

        Raises: as ``wait_readable``, once what came before the failure is read.
        """
        chunk = self._chunk
        if chunk:
            self._chunk = chunk[n:]
            return chunk[:n]
        if self._ended:
            return b""
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # else each read would lengthen it
        return None

    async def wait_readable(self) -> None:
        """
        Return when ``read_nowait`` has something to say.

        Raises: OutboundError, or what broke the request's body off.
        """
        if self._chunk or self._ended:
            return
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # else each read would lengthen it
        try:
            async with asyncio.timeout_at(self._until(self._between_s)):
                chunk = await self._read()
        except TimeoutError as exc:
            error = OutboundError(Failure.READ_TIMEOUT, "the body came too slowly")
            raise self._failed(error) from exc
        except OutboundError as exc:
            raise self._failed(exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise self._failed(from_client(exc)) from exc
        self._chunk = chunk
        self._ended = not chunk

    async def _read(self) -> bytes:
        content = self._response.content
        chunk = content.read_nowait()
        if not chunk:
            self._hold(False)
            chunk = await content.readany()
        self._hold(True)
        return chunk

    def _hold(self, held: bool) -> None:
        """Read no more from the socket, or go on; a connection that has been given back is none of ours."""
        connection = self._response.connection
        transport = None if connection is None or self._response.content.is_eof() else connection.transport
        if transport is None or transport.is_closing() or transport.is_reading() is not held:
            return
        if held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _give_up(self, _lost: asyncio.Future[None]) -> None:
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(OutboundError(Failure.PROTOCOL, "the server sent what is no body of HTTP/1.1"))

    def fail(self, exc: Exception) -> None:
        """End the response: the request's body was broken off, so that nothing can be said for its response."""
        if self._failure is None and not self._ended:
            self._failure = exc
            if isinstance(exc, OutboundError):
                self._on_failure(exc)
        self._response.close()

    def close(self) -> None:
        """Let no more be read, but what is here already."""
        if not self._ended and self._failure is None:
            self._failure = OutboundError(Failure.TERMINATED, "the response was closed")
        if self._lost is not None:
            self._lost.remove_done_callback(self._give_up)

    def _failed(self, error: OutboundError) -> Exception:
        if self._failure is None:
            self._failure = error
            self._on_failure(error)
        return self._failure


def _retrieve(lost: asyncio.Future[None]) -> None:
    """Look at how a connection ended, as asyncio wants somebody to."""
    if not lost.cancelled():
        lost.exception()
