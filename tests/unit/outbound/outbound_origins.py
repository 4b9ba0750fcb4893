"""Origin servers on loopback for tests of outbound requests, and callers that may reach them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.test_utils import TestServer

from faas.outbound.client import Caller, Client, Response
from faas.outbound.exchange import Body, Request
from faas.outbound.failures import Failure, OutboundError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# For secure.test and 127.0.0.1, self-signed, of no other use than these tests; valid from 2020 to 2120.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBozCCAUmgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1vdXRib3Vu
ZCB0ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1vdXRib3VuZCB0ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEgMNo
yC2c9lQSGpcx6u7HU5SQR5TMP0LfioVDCfnvxkaWjC9Goqur0Zf+4gJOMiv7DMEU
jZxo6rESKS9mNpZazqOBgTB/MBwGA1UdEQQVMBOCC3NlY3VyZS50ZXN0hwR/AAAB
MA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKEMB0GA1UdDgQWBBSDJwIz
aVACWVgx1x8WB6eM3y1o0jAfBgNVHSMEGDAWgBSDJwIzaVACWVgx1x8WB6eM3y1o
0jAKBggqhkjOPQQDAgNIADBFAiBUk1/rYY6GOQYc14rFAloHGmcyYX1c/TXUjgzV
uUr7UwIhAMeO30vn9Wyt245UksJi6OZZyPwFkRiW6msUSr11T9S5
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgw+Oa40gUrHXK5nxW
JnM0o7pYPZGrPvKjhIgBUMaQ5/ehRANCAASAw2jILZz2VBIalzHq7sdTlJBHlMw/
Qt+KhUMJ+e/GRpaML0aiq6vRl/7iAk4yK/sMwRSNnGjqsRIpL2Y2llrO
-----END PRIVATE KEY-----
"""


class Outside:
    """A client with its origins and callers; closes them all."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self.names: dict[str, Sequence[str]] = {}
        self.lines: list[str] = []
        self.looked_up: list[str] = []
        self.client = Client(lookup=self._lookup, tls=trusting())
        stack.push_async_callback(self.client.aclose)

    async def _lookup(self, host: str) -> Sequence[str]:
        self.looked_up.append(host)
        return self.names[host]

    async def origin(self, handler: Handler) -> int:
        """Serve *handler* for every path on a port of loopback, which is returned."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        self._stack.push_async_callback(server.close)
        assert server.port is not None
        return server.port

    async def raw_origin(self, handler: RawHandler, tls: ssl.SSLContext | None = None) -> int:
        """Give every connection to *handler*; return the port."""
        tasks: set[asyncio.Task[None]] = set()

        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await handler(reader, writer)
            except (asyncio.CancelledError, OSError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=tls)

        async def end() -> None:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._stack.push_async_callback(end)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def caller(self, *entries: str, function: str = "f", timeout_s: float = 10.0) -> Caller:
        """Return the way out of an invocation that may reach *entries*."""
        caller = self.client.caller(
            function,
            entries,
            deadline=asyncio.get_running_loop().time() + timeout_s,
            log=lambda line: self.lines.append(line.decode()),
        )
        self._stack.callback(caller.close)
        return caller


@contextlib.asynccontextmanager
async def outside() -> AsyncIterator[Outside]:
    """An Outside for as long as the context lasts."""
    async with contextlib.AsyncExitStack() as stack:
        yield Outside(stack)


class Chunks:
    """A request body of given pieces; counts what was taken."""

    def __init__(self, *chunks: bytes, end: Exception | None = None) -> None:
        self._chunks = list(chunks)
        self._end = end
        self.n_taken = 0
        self.closed = asyncio.Event()

    async def next_chunk(self) -> bytes:
        await asyncio.sleep(0)
        if self._chunks:
            self.n_taken += 1
            return self._chunks.pop(0)
        if self._end is not None:
            raise self._end
        return b""

    def close(self) -> None:
        self.closed.set()


def get(port: int, target: str = "/", *, host: str = "127.0.0.1", **settings: object) -> Request:
    """Return a plain GET."""
    return Request("GET", "http", f"{host}:{port}", target, [], **settings)  # type: ignore[arg-type]


def post(port: int, body: Body, *headers: tuple[str, bytes], **settings: object) -> Request:
    """Return a POST of *body*."""
    return Request("POST", "http", f"127.0.0.1:{port}", "/", list(headers), body, **settings)  # type: ignore[arg-type]


async def read(response: Response) -> bytes:
    """Return the whole body and close the response."""
    parts: list[bytes] = []
    while True:
        await response.body.wait_readable()
        part = response.body.read_nowait(1 << 20)
        assert part is not None
        if not part:
            response.close()
            return b"".join(parts)
        parts.append(part)


async def failure(caller: Caller, request: Request) -> Failure:
    """Return how *request* fails."""
    try:
        response = await caller.send(request)
    except OutboundError as exc:
        return exc.failure
    raise AssertionError(f"it was answered {response.status}")


def serving() -> ssl.SSLContext:
    """TLS of a server with the certificate above."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(CERTIFICATE + KEY)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def trusting() -> ssl.SSLContext:
    """TLS of a client that trusts the certificate above, and no other."""
    return ssl.create_default_context(cadata=CERTIFICATE)
