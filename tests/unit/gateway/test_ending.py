"""Connections that we close: read until the client closes its end, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from faas.gateway.call import Output
from faas.gateway.ending import Patience
from faas.gateway.http import Server
from faas.gateway.lane import Answer, Lane, Reply

REQUEST = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
NONSENSE = b"no http at all\r\n\r\n"


async def large(lane: Lane) -> Answer:
    reply = Reply(200, bytes(4_000_000), {})
    await lane.leave()
    return reply.response()


@contextlib.asynccontextmanager
async def connected(patience: Patience) -> AsyncIterator[tuple[Server, socket.socket]]:
    """Lend a server and a raw client connection to it that reads only what it is told to."""
    loop = asyncio.get_running_loop()
    server = Server(large, head_timeout_s=60, patience=patience, access_log=None)
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


def test_nothing_is_kept_of_writes_of_nothing() -> None:
    output = Output(100)
    assert [output.write(b"") for _ in range(1000)] == [0] * 1000
    assert len(output._parts) == 0
