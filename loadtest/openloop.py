"""
A load client that costs little of the processors it shares with the host: HTTP/1.1 GET on raw connections.

The open loop sends at a fixed rate, whatever comes back: a request that finds no free connection opens one. Times
are taken from when a request is sent, or its connection is begun; how late this client itself was is counted apart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from loadtest.report import server_timing

TIMEOUT_S = 60.0
"""So long replies may take; beyond it a request is an error."""
_PAUSE_S = 0.002


@dataclass
class Tally:
    """What came of the requests of one stream; times are seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    taken_s: list[float] = field(default_factory=list)
    inside_s: list[float] = field(default_factory=list)
    """Of each reply with 200 what the host counted itself (``Server-Timing``), from the request's head on."""
    running_s: list[float] = field(default_factory=list)
    """The part of ``inside_s`` after the queue."""
    late_s: list[float] = field(default_factory=list)
    """How much later than due each request was begun: what this client itself could not keep up with."""
    errors: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0

    @property
    def n_refused(self) -> int:
        """How many were told to come again later."""
        return self.statuses[429] + self.statuses[503]

    @property
    def n_bad(self) -> int:
        """How many were neither answered nor told to come again."""
        return sum(n for status, n in self.statuses.items() if status not in {200, 429, 503})


class OpenLoop:
    """Requests for one URL path on as many connections as it takes; lives as long as ``aclose`` is not called."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def stream(self, path: str, *, per_s: float, seconds: float) -> Tally:
        """Send requests at a fixed rate, whatever comes back, and return what came of them."""
        tally = Tally()
        pending: set[asyncio.Future[None]] = set()
        began = time.perf_counter()
        n_sent = 0
        while (now := time.perf_counter() - began) < seconds:
            while n_sent <= now * per_s:
                self._send(path, tally, began + n_sent / per_s, pending)
                n_sent += 1
            await asyncio.sleep(max(_PAUSE_S, n_sent / per_s - (time.perf_counter() - began)))
        if pending:
            _, lost = await asyncio.wait(tuple(pending), timeout=TIMEOUT_S)
            tally.errors += Counter({"no reply": len(lost)})
        return tally

    async def callers(self, path: str, *, n_callers: int, seconds: float) -> Tally:
        """Let *n_callers* ask one request after the other, and return what came of them."""
        tally = Tally()
        until = time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < until:
                await self.ask(path, tally)

        await asyncio.gather(*(caller() for _ in range(n_callers)))
        return tally

    async def ask(self, path: str, tally: Tally) -> None:
        """Send one request; what came of it is in *tally* then."""
        pending: set[asyncio.Future[None]] = set()
        self._send(path, tally, time.perf_counter(), pending)
        _, lost = await asyncio.wait(tuple(pending), timeout=TIMEOUT_S)
        tally.errors += Counter({"no reply": len(lost)})  # adding leaves out what is 0

    def _send(self, path: str, tally: Tally, due: float, pending: set[asyncio.Future[None]]) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending.add(done)
        done.add_done_callback(pending.discard)
        exchange = _Exchange(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode(), tally, due, done)
        if self._idle:
            self._idle.pop().send(exchange)
            return
        task = asyncio.ensure_future(self._connect(exchange))
        task.add_done_callback(lambda _: None)
        exchange.connecting = task

    async def _connect(self, exchange: _Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, protocol = await loop.create_connection(
                lambda: _Connection(self._free, self._gone), self._host, self._port
            )
        except OSError as exc:
            exchange.fail(type(exc).__name__)
            return
        self._all.add(protocol)
        protocol.send(exchange)

    def _free(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def _gone(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Hang up."""
        for connection in tuple(self._all):
            connection.hang_up()


class _Exchange:
    """One request and what becomes of it."""

    def __init__(self, request: bytes, tally: Tally, due: float, done: asyncio.Future[None]) -> None:
        self.request = request
        self.connecting: asyncio.Task[None] | None = None
        self._tally = tally
        self._began = time.perf_counter()
        self._done = done
        tally.late_s.append(self._began - due)

    def finish(self, status: int, headers: dict[str, str]) -> None:
        tally = self._tally
        tally.statuses[status] += 1
        if status == 200:
            tally.taken_s.append(time.perf_counter() - self._began)
            timing = server_timing(headers.get("server-timing", ""))
            inside_ms = sum(timing.values())
            tally.inside_s.append(inside_ms / 1000)
            tally.running_s.append((inside_ms - timing.get("queue", 0.0)) / 1000)
        elif status in {429, 503} and not headers.get("retry-after", "").isdigit():
            tally.without_retry_after += 1
        if not self._done.done():
            self._done.set_result(None)

    def fail(self, error: str) -> None:
        self._tally.errors[error] += 1
        if not self._done.done():
            self._done.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on it at a time."""

    def __init__(self, free: Callable[[_Connection], None], gone: Callable[[_Connection], None]) -> None:
        self._free = free
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, exchange: _Exchange) -> None:
        if self._transport is None or self._transport.is_closing():
            exchange.fail("closed")
            return
        self._exchange = exchange
        self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        status, headers, end = head(received)
        if not ends(received, headers, end):
            return
        exchange, self._exchange, self._received = self._exchange, None, b""
        if headers.get("connection", "").lower() != "close":
            self._free(self)
        if exchange is not None:
            exchange.finish(status, headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail("ConnectionResetError" if exc is None else type(exc).__name__)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


def head(received: bytes) -> tuple[int, dict[str, str], int]:
    """Return the status, the headers by lower-case name and where the body begins; -1 while the head is incomplete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0, {}, -1
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ", 2)[1]), headers, end + 4


def ends(received: bytes, headers: dict[str, str], end: int) -> bool:
    """
    Return whether *received* is all of a reply whose body begins at *end*; nothing comes after it on its connection.

    Source: RFC 9112 6. Trailers are not understood; this host sends none.
    """
    if end < 0:
        return False
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return received.endswith(b"\r\n0\r\n\r\n") or received[end:] == b"0\r\n\r\n"
    return len(received) >= end + int(headers.get("content-length", "0"))
