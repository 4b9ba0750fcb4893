"""The load client counts what came back, by what was said and not by what was hoped for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadtest.openloop import OpenLoop, Tally, ends, head

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: queue;dur=3, start;dur=1, run;dur=2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
VAGUE = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("reply", [PLAIN, CHUNKED, BUSY])
def test_a_reply_is_complete_with_its_last_byte(reply: bytes) -> None:
    for n in range(len(reply) + 1):
        _, headers, end = head(reply[:n])
        assert ends(reply[:n], headers, end) == (n == len(reply))


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[tuple[OpenLoop, Callable[[], int]]]:
    """Return a client of a server that answers with *reply*, in two pieces, and how many connections there were."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if not reply:
                    break
                writer.write(reply[:-1])
                await writer.drain()
                writer.write(reply[-1:])
                if reply is LAST:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    loop = OpenLoop("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield loop, lambda: connections
    finally:
        loop.close()
        server.close()
        await server.wait_closed()


async def ask(loop: OpenLoop, n: int = 3) -> Tally:
    """Ask *n* times, one after the other."""
    tally = Tally()
    for _ in range(n):
        await loop.ask("/", tally)
    return tally


@pytest.mark.parametrize("reply", [PLAIN, CHUNKED, BUSY])
async def test_connections_are_used_again(reply: bytes) -> None:
    async with answering(reply) as (loop, connections):
        tally = await ask(loop)
        assert sum(tally.statuses.values()) == 3
        assert connections() == 1
        assert (tally.n_bad, tally.without_retry_after) == (0, 0)


async def test_what_the_host_counted_itself_is_kept_apart() -> None:
    async with answering(PLAIN) as (loop, _):
        tally = await ask(loop, 1)
    assert (tally.inside_s, tally.running_s) == ([0.006], [0.003])


async def test_a_refusal_that_does_not_say_when_to_come_again_is_counted() -> None:
    async with answering(VAGUE) as (loop, _):
        assert (await ask(loop, 2)).without_retry_after == 2


async def test_a_connection_that_the_host_ends_is_not_used_again() -> None:
    async with answering(LAST) as (loop, connections):
        assert (await ask(loop)).statuses == {200: 3}
        assert connections() == 3


async def test_a_connection_that_breaks_off_is_an_error() -> None:
    async with answering(b"") as (loop, _):
        tally = await ask(loop, 2)
    assert (sum(tally.errors.values()), sum(tally.statuses.values())) == (2, 0)


async def test_an_open_loop_sends_at_its_rate_whatever_comes_back() -> None:
    async with answering(VAGUE) as (loop, _):
        tally = await loop.stream("/", per_s=1000, seconds=0.05)
    assert 1 <= tally.statuses[429] == len(tally.late_s) <= 51
    assert not tally.errors


async def test_a_host_that_is_not_there_is_an_error() -> None:
    async with answering(PLAIN) as (loop, _):
        pass
    assert sum((await ask(loop, 1)).errors.values()) == 1
