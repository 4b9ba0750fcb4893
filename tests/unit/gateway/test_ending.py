"""Connections that we close: read until the client closes its end, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from faas.gateway import ending, http
from faas.gateway.call import Output
from faas.gateway.ending import Patience
from faas.gateway.http import Server
from faas.gateway.lane import Answer, Lane, Reply, Serve

REQUEST = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
NONSENSE = b"no http at all\r\n\r\n"


async def large(lane: Lane) -> Answer:
    reply = Reply(200, bytes(4_000_000), {})
    await lane.leave()
    return reply.response()


@contextlib.asynccontextmanager
async def connected(
    patience: Patience, serve: Serve = large, max_connections: int = 100
) -> AsyncIterator[tuple[Server, socket.socket]]:
    """Lend a server and a raw client connection to it that reads only what it is told to."""
    loop = asyncio.get_running_loop()
    server = Server(
        serve,
        head_timeout_s=60,
        patience=patience,
        max_connections=max_connections,
        handler_cancellation=True,
        access_log=None,
    )
    listening = await loop.create_server(server, "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, listening.sockets[0].getsockname())
        yield server, client
    listening.close()
    await server.shutdown(0.1)


async def closed(server: Server) -> None:
    async with asyncio.timeout(20):
        while server.n_open:
            await asyncio.sleep(0)


async def everything(client: socket.socket) -> bytes:
    reply = b""
    while chunk := await asyncio.get_running_loop().sock_recv(client, 65536):
        reply += chunk
    return reply


async def test_a_client_that_never_closes_its_end_is_left_after_a_silence() -> None:
    async with connected(Patience(60, 60, 0.02)) as (server, client):
        await asyncio.get_running_loop().sock_sendall(client, NONSENSE)
        assert b" 400 " in await everything(client)
        await closed(server)


async def test_a_client_that_never_stops_sending_is_left_in_the_end() -> None:
    async with connected(Patience(60, 0.1, 0.02)) as (server, client):
        await asyncio.get_running_loop().sock_sendall(client, NONSENSE)
        assert b" 400 " in await everything(client)
        with contextlib.suppress(ConnectionError):
            while server.n_open:
                await asyncio.get_running_loop().sock_sendall(client, b"more")
        await closed(server)


async def test_a_client_that_closes_its_end_has_not_to_be_waited_for() -> None:
    async with connected(Patience(60, 60, 60)) as (server, client):
        await asyncio.get_running_loop().sock_sendall(client, NONSENSE)
        assert b" 400 " in await everything(client)
        client.shutdown(socket.SHUT_WR)
        await closed(server)


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["kept", "closing"])
async def test_a_client_that_takes_nothing_is_cut_off(closing: bytes) -> None:
    async with connected(Patience(0.1, 60, 0.02)) as (server, client):
        while not server.n_open:
            await asyncio.sleep(0)
        await asyncio.get_running_loop().sock_sendall(client, REQUEST.replace(b"\r\n\r\n", b"\r\n" + closing + b"\r\n"))
        await closed(server)


async def test_a_client_that_takes_little_at_a_time_gets_all_of_it() -> None:
    async with connected(Patience(5, 60, 0.001)) as (_, client):
        request = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        await asyncio.get_running_loop().sock_sendall(client, request)
        assert len((await everything(client)).partition(b"\r\n\r\n")[2]) == 4_000_000


async def another(client: socket.socket) -> bytes:
    """Return what a further client of the same server is told, to its end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as further:
        further.setblocking(False)
        await loop.sock_connect(further, client.getpeername())
        await loop.sock_sendall(further, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return await everything(further)


async def small(_lane: Lane) -> Answer:
    return Reply(200, b"", {})


async def test_who_only_waits_for_its_client_to_close_makes_room() -> None:
    async def responding(lane: Lane) -> Answer:
        answer = await small(lane)
        assert isinstance(answer, Reply)
        return answer if lane.inside else answer.response()

    async with connected(Patience(60, 60, 60), responding, max_connections=1) as (_, client):
        await asyncio.get_running_loop().sock_sendall(client, NONSENSE)
        assert b" 400 " in await everything(client)
        assert (await another(client)).startswith(b"HTTP/1.1 200 ")


async def test_who_was_turned_away_makes_no_room_for_more_than_the_limit() -> None:
    began = asyncio.Event()

    async def busy(lane: Lane) -> Answer:
        await lane.leave()
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with connected(Patience(60, 60, 60), busy, max_connections=1) as (server, client):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, REQUEST)
        await began.wait()
        with socket.socket() as lingering:
            lingering.setblocking(False)
            await loop.sock_connect(lingering, client.getpeername())
            assert b" 503 " in await everything(lingering)
            for _ in range(3):
                server._look_again = 0.0
                assert b" 503 " in await another(client)


async def test_a_client_that_is_gone_is_noticed_behind_more_requests_than_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "UNREAD_S", 0.01)
    monkeypatch.setattr(ending, "ASK_AFTER_S", 0.01)
    monkeypatch.setattr(ending, "ANSWER_WITHIN_S", 0.01)
    cancelled = asyncio.Event()

    async def waiting(lane: Lane) -> Answer:
        await lane.leave()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with connected(Patience(60, 60, 60), waiting) as (server, client):
        await asyncio.get_running_loop().sock_sendall(client, REQUEST * 40)
        while not any(connection._buffer_paused for connection in server.connections):
            await asyncio.sleep(0)
        client.close()
        async with asyncio.timeout(20):
            await cancelled.wait()
        await closed(server)


def test_nothing_is_kept_of_writes_of_nothing() -> None:
    output = Output(100)
    assert [output.write(b"") for _ in range(1000)] == [0] * 1000
    assert len(output._parts) == 0
