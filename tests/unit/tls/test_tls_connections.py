"""Connections over TLS on the loop that workers run: requests, bodies, slow clients, and ends without half a close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop
from aiohttp import web
from certificates import Certificate, self_signed

from faas import tls_site
from faas.gateway.call import RequestBody
from faas.gateway.ending import Patience
from faas.gateway.http import Server
from faas.gateway.lane import Answer, Lane, Reply, Serve
from faas.tls import ServerCertificate
from faas.tls_site import TlsSite

LONG_S = 3600.0
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
PATIENT = Patience(LONG_S, LONG_S, LONG_S)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("tls"))


class Running:
    """A server on a free port of this machine."""

    def __init__(self, server: Server, port: int, files: Certificate, site: Any) -> None:
        self.server = server
        self.port = port
        self.files = files
        self.site = site

    async def connect(self, *, limit: int = 1 << 16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.files.trusted(), limit=limit)

    async def until_none_is_open(self) -> None:
        async with asyncio.timeout(20):
            while self.server.n_open:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(
    files: Certificate,
    serve: Serve,
    *,
    patience: Patience = PATIENT,
    handshake_timeout_s: float = LONG_S,
    max_connections: int = 100,
    keepalive_timeout: float = LONG_S,
) -> AsyncIterator[Running]:
    server = Server(
        serve,
        head_timeout_s=LONG_S,
        patience=patience,
        max_connections=max_connections,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=keepalive_timeout,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.setblocking(False)
    certificate = ServerCertificate(str(files.cert), str(files.key), setting="tls_cert")
    site = TlsSite(runner, listening, context=certificate.context, handshake_timeout_s=handshake_timeout_s, backlog=10)
    await site.start()
    try:
        yield Running(server, listening.getsockname()[1], files, site)
    finally:
        await runner.cleanup()


async def scheme(lane: Lane) -> Answer:
    return Reply(200, f"{lane.request.scheme} {lane.inside}".encode(), {})


async def length(lane: Lane) -> Answer:
    request = await lane.leave()
    n_bytes = len(await RequestBody(request, 1 << 30).read_all())
    return web.Response(text=str(n_bytes))


async def read_reply(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of one reply with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    n_bytes = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(n_bytes)


# --- requests --------------------------------------------------------------------------------------------------------


async def test_plain_requests_stay_in_the_lane_and_are_of_the_scheme_https(files: Certificate) -> None:
    async with running(files, scheme) as one:
        reader, writer = await one.connect()
        for _ in range(3):
            writer.write(GET)
            assert (await read_reply(reader))[1] == b"https True"
        assert one.server.requests_count == 3
        writer.close()
        await one.until_none_is_open()


async def test_requests_outside_the_lane_are_of_the_scheme_https_too(files: Certificate) -> None:
    async with running(files, scheme) as one:
        one.server.has_lane = False
        reader, writer = await one.connect()

        async def leaving(lane: Lane) -> Answer:
            return web.Response(text=(await lane.leave()).scheme)

        one.server.serve = leaving
        writer.write(GET)
        assert (await read_reply(reader))[1] == b"https"
        writer.close()


@pytest.mark.parametrize("n_bytes", [1, 70_000, 5_000_000])
async def test_bodies_come_whole(files: Certificate, n_bytes: int) -> None:
    async with running(files, length) as one:
        reader, writer = await one.connect()
        for _ in range(2):
            writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % n_bytes + bytes(n_bytes))
            assert (await read_reply(reader))[1] == b"%d" % n_bytes
        writer.close()


async def test_a_client_that_sends_byte_by_byte_is_understood(files: Certificate) -> None:
    async with running(files, length) as one:
        reader, writer = await one.connect()
        for byte in b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await read_reply(reader))[1] == b"3"
        writer.close()


async def test_a_reply_is_streamed_as_it_is_written(files: Certificate) -> None:
    go_on = asyncio.Event()

    async def streaming(lane: Lane) -> Answer:
        request = await lane.leave()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"second")
        await response.write_eof()
        return response

    async with running(files, streaming) as one:
        reader, writer = await one.connect()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"first") == b"5\r\nfirst"
        go_on.set()
        assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"6\r\nsecond\r\n0\r\n\r\n")
        writer.close()


# --- clients that are slow, or gone ----------------------------------------------------------------------------------


def endless(gone: asyncio.Event) -> Serve:
    """A handler that writes for as long as somebody reads, and tells when it was ended."""

    async def serve(lane: Lane) -> Answer:
        request = await lane.leave()
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            while True:
                await response.write(bytes(100_000))
        finally:
            gone.set()

    return serve


def waiting(begun: asyncio.Event, gone: asyncio.Event) -> Serve:
    """A handler that answers never."""

    async def serve(lane: Lane) -> Answer:
        await lane.leave()
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    return serve


async def test_a_client_that_reads_nothing_is_cut_off(files: Certificate) -> None:
    gone = asyncio.Event()
    async with running(files, endless(gone), patience=Patience(0.05, LONG_S, LONG_S)) as one:
        reader, writer = await one.connect(limit=1024)
        writer.write(GET)
        await asyncio.wait_for(gone.wait(), 20)
        await one.until_none_is_open()
        writer.transport.abort()
        del reader


async def test_a_client_that_reads_slowly_gets_all_of_it(files: Certificate) -> None:
    async def large(lane: Lane) -> Answer:
        await lane.leave()
        return web.Response(body=bytes(3_000_000))

    async with running(files, large, patience=Patience(5, LONG_S, LONG_S)) as one:
        reader, writer = await one.connect(limit=1024)
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 3000000" in head
        n_bytes = 0
        while n_bytes < 3_000_000:
            n_bytes += len(await reader.read(10_000))
        writer.close()
        await one.until_none_is_open()


async def test_what_waits_behind_a_slow_client_is_not_lost_when_the_connection_is_closed(files: Certificate) -> None:
    async def last(lane: Lane) -> Answer:
        await lane.leave()
        return web.Response(body=bytes(400_000), headers={"Connection": "close"})

    def read_slowly(port: int) -> int:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", port))
            with files.trusted().wrap_socket(raw, server_hostname="127.0.0.1") as client:
                client.sendall(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                return sum(len(piece) for piece in iter(lambda: client.recv(500), b""))

    # Far less than it takes to read it all: only somebody who takes nothing for so long may be left.
    async with running(files, last, patience=Patience(5, LONG_S, 0.001)) as one:
        assert await asyncio.to_thread(read_slowly, one.port) > 400_000
        await one.until_none_is_open()


@pytest.mark.parametrize("how", ["close_notify", "reset", "end without close_notify"])
async def test_a_client_that_goes_away_ends_its_request(files: Certificate, how: str) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()
    async with running(files, waiting(begun, gone)) as one:
        _reader, writer = await one.connect()
        writer.write(GET)
        await begun.wait()
        if how == "close_notify":
            writer.close()
        elif how == "reset":
            writer.transport.abort()
        else:
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
                raw.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(gone.wait(), 20)
        await one.until_none_is_open()
        writer.transport.abort()


async def test_a_client_that_goes_away_in_the_middle_of_a_body_ends_its_request(files: Certificate) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def reading(lane: Lane) -> Answer:
        try:
            return await length(lane)
        except BaseException as exc:
            ended.set_result(exc)
            raise

    async with running(files, reading) as one:
        _reader, writer = await one.connect()
        writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
        await writer.drain()
        while not one.server.connections:
            await asyncio.sleep(0)
        writer.close()
        await asyncio.wait_for(asyncio.shield(ended), 20)
        await one.until_none_is_open()


async def test_who_is_not_read_and_closes_its_end_is_noticed_when_the_kernel_is_asked(files: Certificate) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()
    async with running(files, waiting(begun, gone)) as one:
        _reader, writer = await one.connect()
        writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 600000\r\n\r\n" + bytes(600_000))
        await writer.drain()
        await begun.wait()
        (connection,) = one.server.connections
        while connection.transport.is_reading():
            await asyncio.sleep(0)
        connection.ask_if_closed()  # type: ignore[attr-defined]
        assert not gone.is_set()
        writer.transport.abort()
        async with asyncio.timeout(20):
            while not gone.is_set():
                connection.ask_if_closed()  # type: ignore[attr-defined]
                await asyncio.sleep(0)
        await one.until_none_is_open()


# --- how connections end ---------------------------------------------------------------------------------------------


async def refusing(lane: Lane) -> Answer:
    await lane.leave()
    return web.Response(status=413, text="too large")


async def test_a_refusal_reaches_a_client_that_still_sends(files: Certificate) -> None:
    """Closing at once would be a reset, which takes the reply from the client before it has read it."""
    async with running(files, refusing) as one:
        reader, writer = await one.connect()
        writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n")
        head, body = await read_reply(reader)
        for _ in range(30):
            writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert b" 413 " in head
        assert body == b"too large"
        assert await reader.read() == b""  # a proper end
        writer.close()
        await one.until_none_is_open()


@pytest.mark.parametrize("busy", [False, True], ids=["silent", "sending"])
async def test_a_client_that_never_closes_its_end_is_left_in_the_end(files: Certificate, busy: bool) -> None:
    patience = Patience(LONG_S, 0.2, 0.02) if busy else Patience(LONG_S, LONG_S, 0.02)
    async with running(files, refusing, patience=patience) as one:
        with socket.create_connection(("127.0.0.1", one.port)) as raw:
            context = one.files.trusted()
            client = await asyncio.to_thread(context.wrap_socket, raw, server_hostname="127.0.0.1")
            await asyncio.to_thread(client.sendall, b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 300000000\r\n\r\n")
            assert b" 413 " in await asyncio.to_thread(client.recv, 65536)
            with contextlib.suppress(OSError):
                while busy and one.server.n_open:
                    await asyncio.to_thread(client.send, b"more")
            await one.until_none_is_open()
            client.close()


async def test_an_idle_connection_makes_room_for_a_new_one(files: Certificate) -> None:
    async with running(files, scheme, max_connections=1) as one:
        reader, writer = await one.connect()
        writer.write(GET)
        await read_reply(reader)
        reader2, writer2 = await one.connect()
        writer2.write(GET)
        assert (await read_reply(reader2))[1] == b"https True"
        assert await reader.read() == b""
        writer.close()
        writer2.close()


async def test_one_connection_too_many_is_told_so(files: Certificate) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()
    async with running(files, waiting(begun, gone), max_connections=1) as one:
        _reader, writer = await one.connect()
        writer.write(GET)
        await begun.wait()
        reader2, writer2 = await one.connect()
        assert b" 503 " in await reader2.read()
        writer2.close()
        writer.close()
        await one.until_none_is_open()


async def test_a_connection_that_is_kept_too_long_is_closed_properly(files: Certificate) -> None:
    async with running(files, scheme, keepalive_timeout=0.01) as one:
        reader, writer = await one.connect()
        writer.write(GET)
        await read_reply(reader)
        assert await reader.read() == b""
        writer.close()
        await one.until_none_is_open()


# --- handshakes that fail --------------------------------------------------------------------------------------------


async def raw_exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("loop_of", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_plain_http_is_told_to_come_with_tls_and_others_are_served(
    files: Certificate, loop_of: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> None:
    async def told() -> None:
        async with running(files, scheme) as one:
            for request in (GET, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 200_000):
                head, _, body = (await raw_exchange(one.port, request)).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
                assert b"\r\nConnection: close" in head
                assert json.loads(body)["code"] == "malformed-request"
                assert b"https://" in body
            assert one.server.n_open == 0
            reader, writer = await one.connect()
            writer.write(GET)
            await read_reply(reader)
            writer.close()

    with asyncio.Runner(loop_factory=loop_of) as runner:
        runner.run(told())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_who_says_nothing_is_hung_up_on(files: Certificate) -> None:
    async with running(files, scheme, handshake_timeout_s=0.05) as one:
        assert await raw_exchange(one.port, b"") == b""


async def test_who_says_nothing_yet_is_hung_up_on_when_the_site_is_closed(files: Certificate) -> None:
    async with running(files, scheme) as one:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        other, other_writer = await one.connect()  # which was accepted behind it
        await one.site.stop()
        assert await reader.read() == b""
        writer.close()
        other_writer.write(GET)  # and what was there goes on
        await read_reply(other)
        other_writer.close()


async def test_nothing_is_accepted_for_a_while_when_descriptors_are_used_up(
    files: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_site, "PAUSE_S", 0.01)
    async with running(files, scheme) as one:
        listening = one.site._server._listening
        exhausted = Exhausted(listening)
        one.site._server._listening = exhausted
        reader, writer = await one.connect()
        assert exhausted.n_failed == 1
        writer.write(GET)
        await read_reply(reader)
        writer.close()


class Exhausted:
    """A listening socket for which there is no descriptor the first time."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.n_failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)

    def accept(self) -> Any:
        if not self.n_failed:
            self.n_failed += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listening.accept()


@pytest.mark.parametrize("data", [b"\x00" * 50, b"\x16\x03\x01\xff\xff" + b"x" * 50], ids=["zeros", "nonsense"])
async def test_what_is_no_tls_is_hung_up_on_without_a_word_in_the_log(
    files: Certificate, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    async with running(files, scheme) as one:
        with caplog.at_level(logging.DEBUG):
            assert b"HTTP" not in await raw_exchange(one.port, data)
        assert one.server.n_open == 0
        reader, writer = await one.connect()  # and others are served
        writer.write(GET)
        await read_reply(reader)
        writer.close()
    assert complaints == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_does_not_trust_us_is_no_error_of_ours(
    files: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    async with running(files, scheme) as one:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", one.port, ssl=ssl.create_default_context())
        await one.until_none_is_open()
    assert complaints == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_handshake_that_does_not_go_on_is_given_up(files: Certificate) -> None:
    async with running(files, scheme, handshake_timeout_s=0.05) as one:
        assert await raw_exchange(one.port, b"\x16\x03\x01") == b""
