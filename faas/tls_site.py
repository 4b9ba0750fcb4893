"""Where servers listen with TLS: who speaks plain HTTP there is told so, instead of being hung up on without a word."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from faas.errors import MalformedRequestError
from faas.problems import CONTENT_TYPE, status_of, to_problem

NO_LIMIT_S: Final = 86400.0
LINGER_S: Final = 1.0
"""How long a client that was refused may go on sending, so that it reads why before its connection is reset."""
PAUSE_S: Final = 1.0
"""How long nothing is accepted after the system had no descriptor or memory for it; as asyncio."""
_READ_BYTES: Final = 64 * 1024
_HANDSHAKE: Final = 0x16
"""How every TLS connection begins: the content type ``handshake`` (RFC 8446 5.1)."""
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TlsSite(web.SockSite):
    """A place where an aiohttp server listens with TLS, with a bound on handshakes."""

    def __init__(
        self,
        runner: web.BaseRunner,
        listening: socket.socket,
        *,
        context: ssl.SSLContext,
        handshake_timeout_s: float,
        shutdown_timeout_s: float = NO_LIMIT_S,
        backlog: int = 128,
    ) -> None:
        """Args: *shutdown_timeout_s* is what the end of TLS may take, where nobody else has a bound for it."""
        super().__init__(runner, listening, ssl_context=context, backlog=backlog)
        self._handshake_timeout_s = handshake_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s

    async def start(self) -> None:
        """Begin to listen."""
        await web.BaseSite.start(self)
        server = self._runner.server
        assert server is not None
        assert self._ssl_context is not None
        accepting = _Accepting(
            self._sock,
            server,
            self._ssl_context,
            handshake_timeout_s=self._handshake_timeout_s,
            shutdown_timeout_s=self._shutdown_timeout_s,
        )
        accepting.start(self._backlog)
        # Of asyncio's server, which would read the first bytes itself, aiohttp closes it and nothing else.
        self._server = accepting  # type: ignore[assignment]


class _Accepting:
    """Accepts connections until ``close``, and has those that begin as TLS does served. Thread: the loop's only."""

    def __init__(
        self,
        listening: socket.socket,
        serve: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        handshake_timeout_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._serve = serve
        self._context = context
        self._handshake_timeout_s = handshake_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._silent: set[_Newcomer] = set()
        self._shaking: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None

    def start(self, backlog: int) -> None:
        """Begin to listen."""
        self._backlog = backlog
        self._listening.setblocking(False)
        self._listening.listen(backlog)
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Listen no more; handshakes that have begun go on. Safe to call more than once."""
        if self._listening.fileno() < 0:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for newcomer in tuple(self._silent):
            newcomer.close()

    def _accept(self) -> None:
        for _ in range(self._backlog):
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                self._loop.remove_reader(self._listening)
                self._resume = self._loop.call_later(PAUSE_S, self._accept_again)
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._silent.add(_Newcomer(accepted, self._handshake_timeout_s, self._begun, self._silent))

    def _accept_again(self) -> None:
        self._resume = None
        self._loop.add_reader(self._listening, self._accept)
        self._accept()

    def _begun(self, accepted: socket.socket, left_s: float) -> None:
        task = self._loop.create_task(self._shake_hands(accepted, left_s))
        self._shaking.add(task)
        task.add_done_callback(self._shaking.discard)

    async def _shake_hands(self, accepted: socket.socket, left_s: float) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._serve,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=left_s,
                ssl_shutdown_timeout=self._shutdown_timeout_s,
            )
        except OSError:  # also what TLS says, and time
            accepted.close()


class _Newcomer:
    """A connection of which nothing was read yet: what its first byte says, or that none comes. Ends by itself."""

    __slots__ = ("_begun", "_loop", "_socket", "_timer", "_waiting")

    def __init__(
        self,
        accepted: socket.socket,
        timeout_s: float,
        begun: Callable[[socket.socket, float], None],
        waiting: set[_Newcomer],
    ) -> None:
        """
        Args: *begun* takes the socket, and what is left of *timeout_s*, if TLS begins within that; *waiting* is where
        this is until its end.
        """
        self._loop = asyncio.get_running_loop()
        self._socket = accepted
        self._begun = begun
        self._waiting = waiting
        self._timer = self._loop.call_later(timeout_s, self.close)
        self._loop.add_reader(accepted, self._look)

    def close(self) -> None:
        """Hang up."""
        self._let_go()
        self._socket.close()

    def _let_go(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._waiting.discard(self)

    def _look(self) -> None:
        try:
            first = self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if first and first[0] == _HANDSHAKE:
            left_s = max(0.001, self._timer.when() - self._loop.time())
            self._let_go()
            self._begun(self._socket, left_s)
        elif first.isupper():  # as methods of HTTP are
            self._refuse()
        else:
            self.close()

    def _refuse(self) -> None:
        try:
            self._socket.recv(_READ_BYTES)  # else its end would reset the connection, and take the answer along
            self._socket.send(_REFUSAL)
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self.close)
        self._loop.remove_reader(self._socket)
        self._loop.add_reader(self._socket, self._drop)

    def _drop(self) -> None:
        try:
            if self._socket.recv(_READ_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()


def _refusal() -> bytes:
    error = MalformedRequestError("this port speaks TLS, and the request came without; write https:// instead")
    status = status_of(error)
    problem: dict[str, Any] = to_problem(error)
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_REFUSAL: Final = _refusal()
