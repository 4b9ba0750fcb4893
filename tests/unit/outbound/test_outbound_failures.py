"""Requests that fail: each way of it is told apart, in time, and once in the function's log."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

import pytest
from outbound_origins import RawHandler, failure, get, outside, read, serving

from faas.outbound.failures import Failure, OutboundError


def answering(*pieces: bytes) -> RawHandler:
    """A server that reads a head, sends *pieces* whatever was asked, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    return answer


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (answering(), Failure.TERMINATED),
        (resetting, Failure.TERMINATED),
        (answering(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), Failure.PROTOCOL),
        (answering(b"HTTP/1.1 2000 OK\r\n\r\n"), Failure.PROTOCOL),
        (answering(b"HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n"), Failure.PROTOCOL),
        (answering(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n"), Failure.RESPONSE_HEADER_TOO_LARGE),
        (answering(b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 300 + b"\r\n"), Failure.RESPONSE_HEADERS_TOO_LARGE),
        (
            answering(b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"x" * 10_000 + b"\r\n") * 20 + b"\r\n"),
            Failure.RESPONSE_HEADERS_TOO_LARGE,
        ),
        (
            answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
            Failure.UPGRADE,
        ),
    ],
)
async def test_a_response_that_is_none_has_its_failure(handler: RawHandler, expected: Failure) -> None:
    async with outside() as out:
        port = await out.raw_origin(handler)
        assert await failure(out.caller(f"127.0.0.1:{port}"), get(port)) is expected
        assert len(out.lines) == 1
        assert f": {expected.value}: " in out.lines[0]
        assert out.client.n_running == 0


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"], Failure.RESPONSE_INCOMPLETE),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"], Failure.RESPONSE_CODING),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"zz\r\n"], Failure.PROTOCOL),
    ],
)
async def test_a_body_that_breaks_off_is_not_a_whole_one(pieces: list[bytes], expected: Failure) -> None:
    async with outside() as out:
        port = await out.raw_origin(answering(*pieces))
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        with pytest.raises(OutboundError) as caught:
            await read(response)
        assert caught.value.failure is expected
        with pytest.raises(OutboundError):
            response.body.read_nowait(1)
        assert len(out.lines) == 1


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async with outside() as out:
        port = await out.raw_origin(answering(b"HTTP/1.1 200 OK\r\n\r\nabc"))
        assert await read(await out.caller(f"127.0.0.1:{port}").send(get(port))) == b"abc"


async def test_a_connection_that_is_reset_within_the_body_is_told() -> None:
    async with outside() as out:
        go_on = asyncio.Event()

        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            await go_on.wait()
            reset(writer)

        port = await out.raw_origin(half)
        response = await out.caller(f"127.0.0.1:{port}").send(get(port))
        await response.body.wait_readable()
        assert response.body.read_nowait(10) == b"abc"
        go_on.set()
        with pytest.raises(OutboundError) as caught:
            await response.body.wait_readable()
        assert caught.value.failure in (Failure.TERMINATED, Failure.RESPONSE_INCOMPLETE)


async def test_a_port_where_nobody_listens_refuses(closed_port: int) -> None:
    async with outside() as out:
        assert await failure(out.caller(f"127.0.0.1:{closed_port}"), get(closed_port)) is Failure.REFUSED


# --- time ------------------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_answer_is_waited_for_only_so_long() -> None:
    async with outside() as out:
        port = await out.raw_origin(silent)
        request = get(port, first_byte_timeout_s=0.02)
        async with asyncio.timeout(5):
            assert await failure(out.caller(f"127.0.0.1:{port}"), request) is Failure.RESPONSE_TIMEOUT


async def test_a_head_that_drips_does_not_prolong_the_wait() -> None:
    async with outside() as out:

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"X: 1\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)

        port = await out.raw_origin(drip)
        request = get(port, first_byte_timeout_s=0.05)
        assert await failure(out.caller(f"127.0.0.1:{port}"), request) is Failure.RESPONSE_TIMEOUT


async def test_a_body_that_pauses_is_waited_for_only_so_long() -> None:
    async with outside() as out:

        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            await reader.read()

        port = await out.raw_origin(half)
        request = get(port, first_byte_timeout_s=5.0, between_bytes_timeout_s=0.02)
        response = await out.caller(f"127.0.0.1:{port}").send(request)
        async with asyncio.timeout(5):  # before the invocation's own deadline
            with pytest.raises(OutboundError) as caught:
                await read(response)
        assert caught.value.failure is Failure.READ_TIMEOUT


async def test_a_guest_that_pauses_is_not_a_body_that_does() -> None:
    async with outside() as out:
        port = await out.raw_origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"))
        response = await out.caller(f"127.0.0.1:{port}").send(get(port, between_bytes_timeout_s=0.02))
        await asyncio.sleep(0.1)
        assert await read(response) == b"abc"


async def test_a_handshake_that_hangs_is_a_connection_that_is_not_made() -> None:
    async with outside() as out:
        port = await out.raw_origin(silent)
        request = get(port, connect_timeout_s=0.02)
        request.scheme = "https"
        assert await failure(out.caller(f"127.0.0.1:{port}"), request) is Failure.CONNECT_TIMEOUT


async def test_a_look_up_that_hangs_is_a_dns_timeout() -> None:
    async with outside() as out:

        async def never(_host: str) -> Sequence[str]:
            await asyncio.Event().wait()
            return []

        out.client._lookup = never
        request = get(80, host="slow.example.org", connect_timeout_s=0.02)
        assert await failure(out.caller("*"), request) is Failure.DNS_TIMEOUT


async def test_the_invocations_deadline_caps_every_timeout() -> None:
    async with outside() as out:
        port = await out.raw_origin(silent)
        request = get(port, connect_timeout_s=60.0, first_byte_timeout_s=60.0, between_bytes_timeout_s=60.0)
        caller = out.caller(f"127.0.0.1:{port}", timeout_s=0.03)
        async with asyncio.timeout(20):
            assert await failure(caller, request) in (Failure.CONNECT_TIMEOUT, Failure.RESPONSE_TIMEOUT)


async def test_a_look_up_that_nobody_waits_for_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names whose servers do not answer must not take the threads that other functions need."""
    began = 0
    answer = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hanging(_host: str) -> list[str]:
        nonlocal began
        began += 1
        asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
        return ["127.0.0.1"]

    monkeypatch.setattr("faas.outbound.client._system_lookup", hanging)
    monkeypatch.setattr("faas.outbound.client.DNS_PER_FUNCTION", 2)
    async with outside() as out:
        out.client._lookup = None
        request = get(80, host="slow.example.org", connect_timeout_s=0.02)
        for _ in range(4):
            assert await failure(out.caller("*"), request) is Failure.DNS_TIMEOUT
        assert began == 2
        answer.set()


# --- TLS -------------------------------------------------------------------------------------------------------------


async def test_tls_is_spoken_with_whom_the_certificate_names() -> None:
    async with outside() as out:
        answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        port = await out.raw_origin(answer, serving())
        out.names["secure.test"] = ["127.0.0.1"]
        caller = out.caller(f"https://secure.test:{port}", f"https://127.0.0.1:{port}")
        for host in ("secure.test", "127.0.0.1"):
            request = get(port, host=host)
            request.scheme = "https"
            assert await read(await caller.send(request)) == b"secret"


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_certificate_for_others_or_of_others_is_refused(trusted: bool) -> None:
    async with outside() as out:
        port = await out.raw_origin(silent, serving())
        if not trusted:
            out.client._tls = ssl.create_default_context()
        out.names["other.test"] = out.names["secure.test"] = ["127.0.0.1"]
        request = get(port, host="other.test" if trusted else "secure.test")
        request.scheme = "https"
        caller = out.caller(f"other.test:{port}", f"secure.test:{port}")
        assert await failure(caller, request) is Failure.CERTIFICATE


async def test_a_server_that_speaks_no_tls_is_told_apart() -> None:
    async with outside() as out:

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            await reader.read()

        port = await out.raw_origin(plain)
        request = get(port)
        request.scheme = "https"
        assert await failure(out.caller(f"127.0.0.1:{port}"), request) is Failure.TLS_PROTOCOL


async def test_an_alert_of_the_server_is_told_apart() -> None:
    async with outside() as out:

        async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(5)
            writer.write(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal, handshake_failure
            await writer.drain()
            await reader.read()

        port = await out.raw_origin(alert)
        request = get(port)
        request.scheme = "https"
        with pytest.raises(OutboundError) as caught:
            await out.caller(f"127.0.0.1:{port}").send(request)
        assert caught.value.failure is Failure.TLS_ALERT
        assert "HANDSHAKE_FAILURE" in str(caught.value.detail)


async def test_tls_to_a_port_where_nobody_listens_refuses(closed_port: int) -> None:
    async with outside() as out:
        request = get(closed_port)
        request.scheme = "https"
        assert await failure(out.caller(f"127.0.0.1:{closed_port}"), request) is Failure.REFUSED
