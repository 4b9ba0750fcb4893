"""How connections end: what was sent is read first, who stopped reading is cut off, who may be gone is asked."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

LINGER_S: Final = 30.0
"""How long a connection that we close is read, and what comes forgotten, until the client closes its end (nginx's)."""
LINGER_IDLE_S: Final = 5.0
"""As LINGER_S, without a byte."""
ASK_AFTER_S: Final = 1.0
"""How long a client that closed its end may be owed a reply before it is asked whether it is still there."""
ANSWER_WITHIN_S: Final = 0.2
"""How long the kernel of a client that is gone has to say so."""
QUIET_S: Final = 5.0
"""How long nothing may be sent of a reply that has begun to a client that closed its end and was never asked."""

TLS_WRITE_BYTES: Final = 64 * 1024
"""How much waits to be encrypted before its writer has to wait; without TLS it is as much, asyncio's own default."""

_TCP_INFO_MOVED: Final = struct.Struct("@120xQQ")
"""``tcpi_bytes_acked`` and ``tcpi_bytes_received`` in Linux' ``struct tcp_info``."""
_ARE_YOU_THERE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NOT_THERE = (AttributeError, NotImplementedError, RuntimeError, OSError)


class Patience(NamedTuple):
    """How long clients are waited for; seconds."""

    send_timeout_s: float = 60.0
    linger_s: float = LINGER_S
    linger_idle_s: float = LINGER_IDLE_S


class GentleTransport:
    """
    A connection's transport as aiohttp uses it; lives until ``lost``.

    ``close`` stops sending and goes on reading for a while: closing a socket with unread bytes in it is a reset, and
    a reset takes from the client the reply that it has not read yet. A client that does not take what is sent to it
    is cut off, before and after ``close``.
    Source: RFC 9112 9.6; nginx's lingering_close and send_timeout.
    """

    half_closes = True
    """Whether either side can close its end and still be sent something."""

    __slots__ = (
        "_loop",
        "_patience",
        "_quiet_s",
        "_timer",
        "_total_s",
        "_unsent",
        "abort",
        "closing",
        "get_extra_info",
        "get_write_buffer_size",
        "heard",
        "is_closing",
        "is_reading",
        "lingers",
        "pause_reading",
        "raw",
        "resume_reading",
        "set_write_buffer_limits",
        "write",
        "writelines",
    )

    def __init__(self, raw: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience: Patience) -> None:
        self.raw = raw
        self.closing = False
        self.heard = False
        """Whether anything came since somebody looked."""
        self.lingers = True
        """Whether the client may still be sending."""
        self._loop = loop
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._quiet_s = self._total_s = 0.0
        # Not methods of ours: they are on the way of every reply.
        self.abort = raw.abort
        self.get_extra_info = raw.get_extra_info
        self.get_write_buffer_size = raw.get_write_buffer_size
        self.is_closing: Callable[[], bool] = raw.is_closing
        self.is_reading = raw.is_reading
        self.pause_reading = raw.pause_reading
        self.resume_reading = raw.resume_reading
        self.set_write_buffer_limits = raw.set_write_buffer_limits
        self.write = raw.write
        self.writelines = raw.writelines

    def close(self) -> None:
        """Send what is buffered and nothing more; close once the client has closed its end, or has had its time."""
        if self.closing:
            return
        self.closing = True
        self.is_closing = _yes
        raw = self.raw
        if self.lingers and not raw.is_closing():
            try:
                raw.write_eof()
                raw.resume_reading()
            except _NOT_THERE:
                raw.close()
        else:
            raw.close()
        self.watch()

    def watch(self) -> None:
        """Look from now on whether the client takes what waits to be sent."""
        self._cancel()
        self._unsent = self._unsent_bytes()
        self._quiet_s = self._total_s = 0.0
        self._arm()

    def unwatch(self) -> None:
        """The client has taken enough."""
        if not self.closing:
            self._cancel()

    def lost(self) -> None:
        """The connection is gone."""
        self.closing = True
        self._cancel()

    @property
    def going(self) -> bool:
        """Whether the connection is about to be lost, without waiting for anybody."""
        return self.raw.is_closing()

    @property
    def sent_all(self) -> bool:
        """Whether nothing waits to be sent."""
        return self._unsent_bytes() == 0

    def _period_s(self) -> float:
        return min(self._patience.linger_idle_s, self._patience.send_timeout_s)

    def _arm(self) -> None:
        self._timer = self._loop.call_later(self._period_s(), self._look)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        unsent, before = self._unsent_bytes(), self._unsent
        self._unsent = unsent
        if unsent or not self.closing:
            self._quiet_s = 0.0 if unsent < before else self._quiet_s + self._period_s()
            if self._quiet_s >= self._patience.send_timeout_s:
                self.raw.abort()
                return
        else:
            self._total_s += self._period_s()
            if not self.heard or self._total_s >= self._patience.linger_s:
                self.raw.close()
                return
            self.heard = False
        self._arm()

    def _unsent_bytes(self) -> int:
        try:
            return self.raw.get_write_buffer_size()
        except _NOT_THERE:
            return 0


class GentleTlsTransport(GentleTransport):
    """
    As ``GentleTransport``, over TLS: there nobody can close one direction and go on with the other.

    The ``close`` of asyncio's and uvloop's TLS sends what is buffered and then ``close_notify``, and reads and forgets
    what comes until the client has said the same, or is gone. So it lingers by itself, without an end; here are its
    bounds. Since that is below us, the kernel is asked what was taken and what came.
    Source: RFC 8446 6.1.
    """

    half_closes = False

    __slots__ = ("_acked", "_gone", "_received")

    def __init__(self, raw: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience: Patience) -> None:
        super().__init__(raw, loop, patience)
        raw.set_write_buffer_limits(TLS_WRITE_BYTES)
        self._gone = False
        self._acked = self._received = 0
        self.abort = self._abort

    def close(self) -> None:
        """Send what is buffered and nothing more; the connection ends when the client has closed, or had its time."""
        if self.closing:
            return
        self.closing = True
        self.is_closing = _yes
        self.raw.close()
        self.watch()

    def watch(self) -> None:
        """Look from now on whether the client takes what waits to be sent."""
        self._acked, self._received = _moved(self)
        super().watch()

    @property
    def going(self) -> bool:
        """Whether the connection is about to be lost, without waiting for anybody."""
        return self._gone

    def _abort(self) -> None:
        self._gone = True
        self.raw.abort()

    def _look(self) -> None:
        acked, received = _moved(self)
        if self._unsent_bytes() or not self.closing:
            self._quiet_s = 0.0 if acked != self._acked else self._quiet_s + self._period_s()
            late = self._quiet_s >= self._patience.send_timeout_s
        else:
            self._total_s += self._period_s()
            late = received == self._received or self._total_s >= self._patience.linger_s
        if late:
            self._abort()
            return
        self._acked, self._received = acked, received
        self._arm()

    def _unsent_bytes(self) -> int:
        # What was encrypted waits in another buffer, which can't be asked; it is empty while the kernel takes more.
        return super()._unsent_bytes() or (0 if _polled(self, select.POLLOUT) else 1)


class Absence:
    """
    Finds out whether a client that closed its end is gone, or only has nothing more to send; made when it did so.

    Both look the same until something is sent: then the kernel of one that is gone answers with a reset. Before the
    reply has begun it is sent ``100 Continue``, which RFC 9110 15.2.1 has every client ignore that did not ask for
    it; nobody is asked within the first second. Who is gone has its connection aborted, which cancels its request.
    """

    def __init__(
        self, transport: GentleTransport, loop: asyncio.AbstractEventLoop, progress: Callable[[], tuple[bool, int]]
    ) -> None:
        """Args: *progress* returns whether the client may be asked, and how many bytes of the reply were sent."""
        self._transport = transport
        self._loop = loop
        self._progress = progress
        self._sent = progress()[1]
        self._asked = False
        self._quiet_s = 0.0
        self._timer = loop.call_later(ASK_AFTER_S, self._look)

    def cancel(self) -> None:
        """Stop asking."""
        self._timer.cancel()

    def _look(self) -> None:
        transport = self._transport
        if transport.closing:
            return
        if was_reset(transport):
            transport.abort()
            return
        next_s = ASK_AFTER_S
        askable, sent = self._progress()
        if sent == 0 and askable and not self._asked:
            self._asked = True
            transport.write(_ARE_YOU_THERE)
            next_s = ANSWER_WITHIN_S
        elif sent and not self._asked:
            self._quiet_s = self._quiet_s + ASK_AFTER_S if sent == self._sent else 0.0
            self._sent = sent
            if self._quiet_s >= QUIET_S:
                transport.abort()
                return
        self._timer = self._loop.call_later(next_s, self._look)


def was_reset(transport: GentleTransport) -> bool:
    """Return whether the peer's kernel has answered something with a reset."""
    return _polled(transport, 0) & (select.POLLERR | select.POLLHUP) != 0


def closed_its_end(transport: GentleTransport) -> bool:
    """Return whether the peer will send nothing more, without reading anything."""
    return _polled(transport, select.POLLRDHUP) != 0


def _polled(transport: GentleTransport, events: int) -> int:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    poller = select.poll()
    poller.register(sock.fileno(), events)
    return next((found for _, found in poller.poll(0)), 0)


def _moved(transport: GentleTransport) -> tuple[int, int]:
    """Return how many bytes the peer's kernel has taken so far, and how many came from it; zeros when it is gone."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0, 0
    asked = socket.socket(sock.family, sock.type, sock.proto, fileno=sock.fileno())
    try:
        info = asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_MOVED.size)
        acked, received = _TCP_INFO_MOVED.unpack(info)
    except (OSError, struct.error):
        return 0, 0
    finally:
        asked.detach()
    return acked, received


def _yes() -> bool:
    return True
