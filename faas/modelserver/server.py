"""
The unix socket: hellos, requests in, messages out; everything that takes time is the owner thread's.

A connection whose peer does not read is held back: its sequences are left out of the batches until it does.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

from faas.errors import FrameTooLargeError, InternalError, PeerGoneError, ProtocolError, UnauthorizedError, WireError
from faas.log import event
from faas.modelserver.owner import Outgoing, Owner
from faas.problems import to_problem
from faas.wire.framing import Channel
from faas.wire.models import (
    MODEL_PROTOCOL_VERSION,
    Cancel,
    ClientHello,
    Final,
    Finish,
    FromModelClient,
    ModelStats,
    More,
    Piece,
    Ping,
    Pong,
    Register,
    ServerHello,
    Unregister,
)

CONTROL = "control"
HELLO_TIMEOUT_S = 10.0
STATS_INTERVAL_S = 1.0
HOLD_BACK_BYTES = 128 * 1024
"""So much unsent data, on top of the kernel's buffer, and the peer counts as one that does not read."""
BACKLOG = 128
MAX_STEPS_AHEAD = 16
MAX_WAIT_S = 5.0

_log = logging.getLogger(__name__)


class HandOver:
    """
    Carries what each step made from the owner thread to the loop; the owner waits when the loop is far behind.

    Without that a fast model runs thousands of tokens ahead before the loop has come to hold a connection back.
    Thread: called on the owner's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[list[Outgoing]], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._room = threading.Semaphore(MAX_STEPS_AHEAD)

    def __call__(self, outgoing: list[Outgoing]) -> None:
        """Hand *outgoing* to the loop."""
        self._room.acquire(timeout=MAX_WAIT_S)  # a loop that stands still for so long is being shut down
        self._loop.call_soon_threadsafe(self._arrive, outgoing)

    def _arrive(self, outgoing: list[Outgoing]) -> None:
        self._room.release()
        self._deliver(outgoing)


class Connection:
    """One client, from its accepted hello until it is gone."""

    def __init__(
        self, number: int, client: str, channel: Channel[FromModelClient], writer: asyncio.StreamWriter, owner: Owner
    ) -> None:
        self.number = number
        self.client = client
        self.open_ids: set[int] = set()
        self._channel = channel
        self._writer = writer
        self._owner = owner
        self._draining: asyncio.Task[None] | None = None

    def send(self, message: Piece | Final | Pong | ModelStats) -> None:
        """Queue *message*; hold the connection back if its peer has long not read."""
        if isinstance(message, Final):
            self.open_ids.discard(message.id)
        try:
            self._channel.send_nowait(message)
        except PeerGoneError:
            return  # the reader sees it too, and drops the connection
        except FrameTooLargeError:
            if not isinstance(message, Final):
                raise
            problem = to_problem(InternalError("the answer does not fit into a frame; ask for less at once"))
            self._channel.send_nowait(Final(message.id, Finish.FAILED, problem=problem))
        if self._draining is None and self._writer.transport.get_write_buffer_size() > HOLD_BACK_BYTES:
            self._owner.hold_back(self.number, yes=True)
            self._draining = asyncio.create_task(self._drain())

    async def converse(self) -> None:
        """Take messages until the peer is gone. Raises: WireError."""
        while True:
            message = await self._channel.receive()
            if isinstance(message, Ping):
                self.send(Pong(message.id))
            elif isinstance(message, Cancel):
                self._owner.cancel(self.number, message)
            elif isinstance(message, More):
                self._owner.more(self.number, message)
            elif isinstance(message, ClientHello):
                raise ProtocolError("the client said hello twice")
            elif message.id in self.open_ids:
                raise ProtocolError(f"the client used id {message.id} for two requests at once")
            elif isinstance(message, (Register, Unregister)) and self.client != CONTROL:
                refusal = UnauthorizedError("only the control process may register models; use `faas models`")
                self.send(Final(message.id, Finish.FAILED, problem=to_problem(refusal)))
            else:
                self.open_ids.add(message.id)
                self._owner.submit(self.number, message)

    async def _drain(self) -> None:
        event(_log, "connection.held_back", level=logging.DEBUG, client=self.client)
        try:
            await self._writer.drain()
        except (ConnectionError, OSError):
            return  # gone: dropped by the reader
        self._draining = None
        self._owner.hold_back(self.number, yes=False)


class ModelServer:
    """
    The listening socket and its connections; lives until ``aclose``.

    ``control_gone`` is set once the control process's connection has been there and closed.
    Thread: the loop's.
    """

    def __init__(self, owner: Owner, *, token: str, backend: str, build: int, commit: str) -> None:
        self._owner = owner
        self._token = token
        self._identity = (backend, build, commit)
        self._numbers = itertools.count(1)
        self._connections: dict[Hashable, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.control_gone = asyncio.Event()

    async def listen(self, path: Path) -> None:
        """Listen on the unix socket *path*, readable by this user only."""
        path.unlink(missing_ok=True)  # noqa: ASYNC240  one call, before anybody is served
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, path, backlog=BACKLOG)
        finally:
            os.umask(mask)

    def deliver(self, outgoing: list[Outgoing]) -> None:
        """Send what the owner made, as far as its connections are still there."""
        for number, message in outgoing:
            connection = self._connections.get(number)
            if connection is not None:
                connection.send(message)

    def publish(self, stats: ModelStats) -> None:
        """Send the counters to the control process."""
        for connection in self._connections.values():
            if connection.client == CONTROL:
                connection.send(stats)

    @property
    def has_control(self) -> bool:
        """Tell whether a control process is connected."""
        return any(connection.client == CONTROL for connection in self._connections.values())

    async def aclose(self) -> None:
        """Stop listening and close every connection; what is queued is still sent."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()  # its reader sees the end
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        channel: Channel[FromModelClient] = Channel(reader, writer, FromModelClient)
        connection: Connection | None = None
        try:
            connection = await self._greet(channel, writer)
            await connection.converse()
        except PeerGoneError:
            event(_log, "connection.closed", level=logging.DEBUG, client=connection.client if connection else "?")
        except (WireError, TimeoutError) as exc:
            client = connection.client if connection is not None else "?"
            event(_log, "connection.refused", level=logging.WARNING, client=client, reason=str(exc) or "no hello")
        finally:
            if connection is not None:
                del self._connections[connection.number]
                self._owner.drop(connection.number)
                event(_log, "connection.closed", level=logging.DEBUG, client=connection.client)
                if connection.client == CONTROL and not self.has_control:
                    self.control_gone.set()
            self._writers.discard(writer)
            await channel.aclose()

    async def _greet(self, channel: Channel[FromModelClient], writer: asyncio.StreamWriter) -> Connection:
        """Return the connection once its hello is accepted. Raises: WireError, TimeoutError."""
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await channel.receive()
        if not isinstance(hello, ClientHello):
            raise ProtocolError(f"the client began with {type(hello).__name__}, not with a hello")
        if hello.protocol != MODEL_PROTOCOL_VERSION:
            raise ProtocolError(f"the client speaks version {hello.protocol}, this server {MODEL_PROTOCOL_VERSION}")
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            raise ProtocolError("the client has the wrong token")
        backend, build, commit = self._identity
        channel.send_nowait(
            ServerHello(MODEL_PROTOCOL_VERSION, os.getpid(), backend, build, commit, self._owner.cards())
        )
        connection = Connection(next(self._numbers), hello.client, channel, writer, self._owner)
        self._connections[connection.number] = connection
        return connection
