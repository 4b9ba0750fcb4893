"""Requests that are answered: heads and bodies as they were sent, held back both ways, ended with their invocation."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from aiohttp import web
from outbound_origins import Chunks, failure, get, outside, post, read

from faas.outbound.exchange import Request
from faas.outbound.failures import Failure, OutboundError

AHEAD_BYTES = 256 * 1024


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def echo(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")


# --- heads -----------------------------------------------------------------------------------------------------------


async def test_a_request_has_the_guests_headers_and_no_others_but_host() -> None:
    async with outside() as out:
        heads: list[str] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await head_of(reader))
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()

        port = await out.raw_origin(note)
        headers = [("X-One", b"1"), ("host", b"evil.org"), ("X-Faas-Function", b"f"), ("x-one", "é".encode())]
        await read(
            await out.caller(f"127.0.0.1:{port}").send(Request("GET", "http", f"127.0.0.1:{port}", "/a?b", headers))
        )
        assert heads == [f"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-One: 1\r\nX-One: Ã©\r\n\r\n"]


async def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with outside() as out:
        port = await out.origin(hello)
        assert await read(await out.caller(f"127.0.0.1:{port}").send(get(port))) == b"hello"


async def test_cookies_are_not_kept() -> None:
    async with outside() as out:
        cookies: list[str | None] = []

        async def bake(request: web.Request) -> web.Response:
            cookies.append(request.headers.get("Cookie"))
            response = web.Response()
            response.set_cookie("session", "1")
            return response

        port = await out.origin(bake)
        out.names["shop.example.org"] = ["127.0.0.1"]
        caller = out.caller(f"shop.example.org:{port}")
        for _ in range(2):
            response = await caller.send(get(port, host="shop.example.org"))
            assert ("Set-Cookie", b"session=1; Path=/") in response.headers
            await read(response)
        assert cookies == [None, None]


async def test_a_response_keeps_its_headers_but_those_of_the_connection() -> None:
    async with outside() as out:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(
                b"HTTP/1.1 418 I'm a teapot\r\nX-A: 1\r\nx-a: \xff\r\nConnection: close, X-B\r\nX-B: 2\r\n"
                b"Keep-Alive: 5\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
            )
            await writer.drain()

        port = await out.raw_origin(answer)
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        assert response.status == 418
        assert response.headers == [
            ("X-A", b"1"),
            ("x-a", b"\xff"),
            ("Content-Encoding", b"gzip"),
            ("Content-Length", b"3"),
        ]
        assert await read(response) == b"abc"


async def test_an_early_hint_is_not_the_response() -> None:
    async with outside() as out:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

        port = await out.raw_origin(answer)
        assert (await out.caller(f"127.0.0.1:{port}").send(get(port))).status == 200


async def test_a_head_request_has_no_body() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        response = await out.caller(f"127.0.0.1:{port}").send(Request("HEAD", "http", f"127.0.0.1:{port}", "/", []))
        assert ("Content-Length", b"5") in response.headers
        assert await read(response) == b""


# --- bodies ----------------------------------------------------------------------------------------------------------


async def test_bodies_stream_both_ways_at_once() -> None:
    async with outside() as out:
        port = await out.origin(echo)
        answered = asyncio.Event()

        class Conversation(Chunks):
            async def next_chunk(self) -> bytes:
                chunk = await super().next_chunk()
                if self.n_taken == 2 and chunk:
                    await answered.wait()  # the second piece is made when the first was read
                return chunk

        body = Conversation(b"one", b"two")
        response = await out.caller(f"127.0.0.1:{port}").send(post(port, body))
        await response.body.wait_readable()
        assert response.body.read_nowait(100) == b"one"
        assert response.body.read_nowait(100) is None
        answered.set()
        assert await read(response) == b"two"
        assert body.closed.is_set()


@pytest.mark.parametrize("length", [None, 300_000])
async def test_a_large_body_arrives_whole(length: int | None) -> None:
    async with outside() as out:
        port = await out.origin(echo)
        content = bytes(range(250)) * 1200
        body = Chunks(*(content[at : at + 70_000] for at in range(0, len(content), 70_000)))
        headers = [] if length is None else [("Content-Length", str(length).encode())]
        response = await out.caller(f"127.0.0.1:{port}").send(post(port, body, *headers))
        assert await read(response) == content


async def test_a_body_of_known_length_is_sent_with_it_and_others_in_chunks() -> None:
    async with outside() as out:
        sent: list[tuple[str | None, str | None]] = []

        async def note(request: web.Request) -> web.Response:
            sent.append((request.headers.get("Content-Length"), request.headers.get("Transfer-Encoding")))
            return web.Response(body=await request.read())

        port = await out.origin(note)
        caller = out.caller(f"127.0.0.1:{port}")
        assert await read(await caller.send(post(port, Chunks(b"ab"), ("Content-Length", b"2")))) == b"ab"
        assert await read(await caller.send(post(port, Chunks(b"ab")))) == b"ab"
        assert await read(await caller.send(post(port, Chunks()))) == b""
        assert await read(await caller.send(Request("POST", "http", f"127.0.0.1:{port}", "/", []))) == b""
        assert sent == [("2", None), (None, "chunked"), (None, "chunked"), ("0", None)]


async def test_a_get_with_an_empty_body_is_a_plain_get() -> None:
    async with outside() as out:
        sent: list[tuple[str | None, str | None, bytes]] = []

        async def note(request: web.Request) -> web.Response:
            headers = request.headers
            sent.append((headers.get("Content-Length"), headers.get("Transfer-Encoding"), await request.read()))
            return web.Response()

        port = await out.origin(note)
        caller = out.caller(f"127.0.0.1:{port}")
        body = Chunks()
        response = await caller.send(get(port, body=body))
        assert not body.closed.is_set()
        await read(response)
        length = [("Content-Length", b"1")]
        await read(await caller.send(Request("GET", "http", f"127.0.0.1:{port}", "/", length, Chunks(b"x"))))
        assert sent == [(None, None, b""), ("1", None, b"x")]
        assert out.lines == []


async def test_a_get_with_a_body_of_unknown_length_is_sent_without_and_logged() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        body = Chunks(b"query")
        response = await out.caller(f"127.0.0.1:{port}").send(get(port, body=body))
        await asyncio.wait_for(body.closed.wait(), 5)
        assert await read(response) == b"hello"
        assert "a body of this method is sent only with Content-Length" in out.lines[0]


async def test_an_unread_response_is_never_far_ahead() -> None:
    async with outside() as out:
        sent = 0
        stuck = asyncio.Event()
        chunk = bytes(64 * 1024)

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await head_of(reader)
            writer.transport.set_write_buffer_limits(high=0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
            while sent < 67108864:
                writer.write(chunk)
                sent += len(chunk)
                drained = asyncio.ensure_future(writer.drain())
                done, _ = await asyncio.wait([drained], timeout=0.1)
                if not done:
                    stuck.set()
                await drained

        port = await out.raw_origin(pour)
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        await asyncio.wait_for(stuck.wait(), 10)
        content = response._exchange._response.content  # type: ignore[union-attr]
        assert content.total_bytes <= AHEAD_BYTES
        n_read = 0
        for _ in range(20):
            await response.body.wait_readable()
            part = response.body.read_nowait(1000)
            assert part
            n_read += len(part)
            assert content.total_bytes - n_read <= AHEAD_BYTES
        received = content.total_bytes
        await asyncio.sleep(0.05)
        assert content.total_bytes == received  # while a piece of it waits for the guest
        rest = await read(response)
        assert n_read + len(rest) == 67108864


async def test_a_request_body_waits_for_a_server_that_does_not_read() -> None:
    async with outside() as out:
        go_on = asyncio.Event()
        total = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal total
            await head_of(reader)
            await go_on.wait()
            while True:
                line = await reader.readline()
                size = int(line, 16)
                total += len(await reader.readexactly(size))
                await reader.readexactly(2)
                if not size:
                    break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

        port = await out.raw_origin(slow)
        body = Chunks(*[bytes(1 << 20)] * 64)
        sending = asyncio.ensure_future(out.caller(f"127.0.0.1:{port}").send(post(port, body)))
        before = -1
        while body.n_taken != before:  # until nothing more is taken for a while
            before = body.n_taken
            await asyncio.sleep(0.1)
        assert 0 < body.n_taken < 32
        go_on.set()
        await sending
        assert (body.n_taken, total) == (64, 64 << 20)


async def test_a_body_shorter_or_longer_than_announced_breaks_the_request_off() -> None:
    async with outside() as out:
        port = await out.origin(echo)
        caller = out.caller(f"127.0.0.1:{port}")
        for chunks in ([b"abc"], [b"abc", b"def"]):
            body = Chunks(*chunks)
            with pytest.raises(OutboundError) as caught:
                await read(await caller.send(post(port, body, ("Content-Length", b"5"))))
            assert caught.value.failure is Failure.REQUEST_BODY_SIZE
            caller.close()
            caller = out.caller(f"127.0.0.1:{port}")


async def test_what_the_body_raises_breaks_the_request_off() -> None:
    async with outside() as out:
        arrived: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.append(await reader.read())

        port = await out.raw_origin(note)
        body = Chunks(b"begin", end=RuntimeError("the guest gave up"))
        with pytest.raises(RuntimeError, match="the guest gave up"):
            await out.caller(f"127.0.0.1:{port}").send(post(port, body))
        assert body.closed.is_set()
        assert out.client.n_running == 0
        while not arrived:
            await asyncio.sleep(0)
        assert not arrived[0].endswith(b"0\r\n\r\n")


async def test_a_body_given_up_after_the_head_ends_the_response() -> None:
    async with outside() as out:
        port = await out.origin(echo)
        give_up = asyncio.Event()

        class Given(Chunks):
            async def next_chunk(self) -> bytes:
                if self.n_taken:
                    await give_up.wait()
                return await super().next_chunk()

        response = await out.caller(f"127.0.0.1:{port}").send(post(port, Given(b"one", end=RuntimeError("enough"))))
        await response.body.wait_readable()
        assert response.body.read_nowait(100) == b"one"
        give_up.set()
        with pytest.raises(RuntimeError, match="enough"):
            await response.body.wait_readable()
        with pytest.raises(RuntimeError, match="enough"):
            response.body.read_nowait(1)
        response.close()
        assert out.client.n_running == 0


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_a_response_that_was_read_gives_its_connection_back() -> None:
    async with outside() as out:
        peers: list[int] = []

        async def note(request: web.Request) -> web.Response:
            assert request.transport is not None
            peers.append(request.transport.get_extra_info("peername")[1])
            return web.Response(body=bytes(100_000))

        port = await out.origin(note)
        for _ in range(3):
            caller = out.caller(f"127.0.0.1:{port}")
            assert len(await read(await caller.send(get(port)))) == 100_000
            caller.close()
        assert len(set(peers)) == 1
        assert out.client.n_running == 0


async def test_a_response_that_was_not_read_ends_with_its_invocation() -> None:
    async with outside() as out:
        gone = asyncio.Event()

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            try:
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
            except ConnectionError:
                gone.set()

        port = await out.raw_origin(pour)
        caller = out.caller(f"127.0.0.1:{port}")
        response = await caller.send(get(port))
        caller.close()
        await asyncio.wait_for(gone.wait(), 5)
        assert out.client.n_running == 0
        with pytest.raises(OutboundError):
            await response.body.wait_readable()


async def test_a_server_that_does_not_read_keeps_no_connection() -> None:
    async with outside() as out:

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            await writer.drain()
            await asyncio.Event().wait()

        port = await out.raw_origin(deaf)
        caller = out.caller(f"127.0.0.1:{port}")
        body = Chunks(*[bytes(1 << 20)] * 64)
        response = await caller.send(post(port, body))
        before = -1
        while body.n_taken != before:  # until what was written waits in the transport
            before = body.n_taken
            await asyncio.sleep(0.05)
        (share,) = out.client._shares.values()
        response.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(sock.fileno() >= 0 for sock in share.sockets)


async def test_a_body_that_is_never_ended_keeps_no_task() -> None:
    async with outside() as out:
        port = await out.origin(hello)

        class Endless(Chunks):
            async def next_chunk(self) -> bytes:
                await asyncio.Event().wait()
                return b""

        before = asyncio.all_tasks()
        caller = out.caller(f"127.0.0.1:{port}")
        await read(await caller.send(get(port, body=Endless())))
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before
        assert not any("_discard" in repr(task) for task in left)


async def test_cancelling_a_request_closes_its_connection() -> None:
    async with outside() as out:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            asked.set()
            await reader.read()
            gone.set()

        port = await out.raw_origin(silent)
        body = Chunks()
        sending = asyncio.ensure_future(out.caller(f"127.0.0.1:{port}").send(get(port, body=body)))
        await asyncio.wait_for(asked.wait(), 5)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(gone.wait(), 5)
        assert body.closed.is_set()
        assert out.client.n_running == 0


async def test_cancelling_a_wait_for_the_body_loses_nothing() -> None:
    async with outside() as out:
        go_on = asyncio.Event()

        async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            await go_on.wait()
            writer.write(b"late")
            await writer.drain()

        port = await out.raw_origin(late)
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        waiting = asyncio.ensure_future(response.body.wait_readable())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await read(response) == b"late"


async def test_many_requests_leave_no_connection_and_no_task() -> None:
    async with outside() as out:
        port = await out.origin(hello)
        before = len(asyncio.all_tasks())
        for n in range(50):
            caller = out.caller(f"127.0.0.1:{port}")
            sending = asyncio.ensure_future(caller.send(get(port)))
            if n % 3:
                response = await sending
                if n % 3 == 1:
                    await read(response)
            else:
                sending.cancel()
                await asyncio.wait([sending])
            caller.close()
        assert out.client.n_running == 0
        assert all(share.n_running == 0 for share in out.client._shares.values())
        (share,) = out.client._shares.values()
        await asyncio.sleep(0)
        assert sum(sock.fileno() >= 0 for sock in share.sockets) <= 1
        await out.client.aclose()
        while len(asyncio.all_tasks()) > before:  # the server's ends of connections
            await asyncio.sleep(0)


async def test_a_kept_connection_keeps_nothing_of_the_invocation_that_made_it() -> None:
    async with outside() as out:
        port = await out.origin(hello)

        class Log:
            def line(self, text: bytes) -> None:
                raise AssertionError(text)

        async def invoke() -> weakref.ref[Log]:
            log = Log()
            deadline = asyncio.get_running_loop().time() + 10
            caller = out.client.caller("f", (f"127.0.0.1:{port}",), deadline=deadline, log=log.line)
            await read(await caller.send(get(port)))
            caller.close()
            return weakref.ref(log)

        log = await asyncio.create_task(invoke())
        await asyncio.sleep(0)
        gc.collect()
        (share,) = out.client._shares.values()
        assert any(sock.fileno() >= 0 for sock in share.sockets)
        assert log() is None


async def test_an_unused_client_costs_no_session() -> None:
    async with outside() as out:
        await failure(out.caller(), get(80))
        assert out.client._session is None
