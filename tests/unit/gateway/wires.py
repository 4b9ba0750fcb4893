"""A connection of the gateway without a socket: what comes is given to it, what it writes is kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from faas.gateway.http import Connection, Server
from faas.gateway.lane import Answer, Lane, Reply

PLAIN = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD_TIMEOUT_S = 0.05


class Wire(asyncio.Transport):
    """The client's end: what was written, and whether the connection was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.changed = asyncio.Event()
        self.closed = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.7", 1), "sockname": ("192.0.2.1", 80)}.get(name, default)

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)
        self.changed.set()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    async def until(self, come_true: Callable[[], bool]) -> None:
        while not come_true():
            self.changed.clear()
            await self.changed.wait()


Handler = Callable[[Lane], Awaitable[Reply]]


class Served:
    """A connection to a server with one handler; ``inside`` tells for each request whether it began in the lane."""

    def __init__(
        self,
        handler: Handler,
        *,
        lane: bool = True,
        keepalive_timeout_s: float = 60,
        head_timeout_s: float = HEAD_TIMEOUT_S,
    ) -> None:
        self.inside: list[bool] = []
        self._handler = handler
        self.server = Server(
            self._serve,
            head_timeout_s=head_timeout_s,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=keepalive_timeout_s,
        )
        self.server.has_lane = self.server.has_lane and lane
        self.wire = Wire()
        connection = self.server()
        assert isinstance(connection, Connection)
        self.connection = connection

    async def _serve(self, lane: Lane) -> Answer:
        self.inside.append(lane.inside)
        reply = await self._handler(lane)
        return reply if lane.inside else reply.response()

    async def open(self) -> None:
        self.connection.connection_made(self.wire)
        while self.connection._waiter is None:
            await asyncio.sleep(0)

    async def send(self, data: bytes, n_replies: int = 1) -> bytes:
        """Return what came back once *n_replies* more have, each without a body or with a short one."""
        start = len(self.wire.written)
        self.connection.data_received(data)
        await self.wire.until(lambda: self.wire.written[start:].count(b"HTTP/1.1 ") >= n_replies or self.wire.closed)
        await self.idle()
        return self.wire.written[start:]

    async def idle(self) -> None:
        while self.connection._waiter is None and not self.wire.closed:
            await asyncio.sleep(0)

    def lose(self) -> None:
        self.wire.closed = True
        self.connection.connection_lost(None)


@contextlib.asynccontextmanager
async def served(handler: Handler, **options: Any) -> AsyncIterator[Served]:
    made = Served(handler, **options)
    await made.open()
    try:
        yield made
    finally:
        task = made.connection._task_handler
        made.lose()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
