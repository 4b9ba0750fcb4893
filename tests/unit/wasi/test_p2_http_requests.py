"""Promises of wasi:http towards servers: requests that a guest makes, their bodies, their responses, their ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from faas.errors import DeadlineExceededError, GuestTrapError
from faas.wasi.p2 import http, io
from faas.wasi.p2.http import MAX_EXCHANGES, HttpContext
from faas.wasi.p2.http_bodies import PIPE_BYTES, RequestPipe
from faas.wasi.p2.outbound_types import HttpCodeError, OutboundRequest, OutboundResponse
from faas.wasi.p2.resources import WitError
from faas.wasi.streams import BytesInput

TYPES = http.FUNCTIONS["wasi:http/types"]
STREAMS = io.FUNCTIONS["wasi:io/streams"]
CLOSED = ("closed", None)
REFUSED = ("connection-refused", None)


class Server:
    """Something that answers requests as a test says; it remembers them, and what became of its responses."""

    def __init__(self, answer: Callable[[OutboundRequest], Awaitable[OutboundResponse]] | None = None) -> None:
        self.requests: list[OutboundRequest] = []
        self.came = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.n_closed = 0
        self._answer = answer

    def response(self, content: bytes = b"", **changes: Any) -> OutboundResponse:
        parts: dict[str, Any] = {
            "status": 200,
            "headers": [("a", b"1"), ("Connection", b"close")],
            "body": BytesInput(content),
            "close": self.close,
            **changes,
        }
        return OutboundResponse(**parts)

    def close(self) -> None:
        self.n_closed += 1

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        self.requests.append(request)
        self.came.set()
        try:
            return await self._answer(request) if self._answer is not None else self.response(b"hello")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Guest:
    """An instance without an engine: calls functions by name, as a component would."""

    def __init__(self, outbound: Any = None) -> None:
        self.http = HttpContext(1000, outbound)

    def __call__(self, name: str, *args: Any) -> Any:
        for kind in ("method", "static"):
            function = TYPES.get(f"[{kind}]{name}") or STREAMS.get(f"[{kind}]{name}")
            if function is not None:
                return function.call(self, *args)
        return TYPES[f"[constructor]{name}"].call(self, *args)

    def error(self, name: str, *args: Any) -> Any:
        with pytest.raises(WitError) as caught:
            self(name, *args)
        return caught.value.value

    def request(self, *headers: tuple[str, bytes], authority: str | None = "example.test") -> Any:
        request = self("outgoing-request", self("fields.from-list", list(headers)))
        self("outgoing-request.set-authority", request, authority)
        return request

    def handle(self, request: Any, options: Any = None) -> Any:
        return http.FUNCTIONS["wasi:http/outgoing-handler"]["handle"].call(self, request, options)

    def refusal(self, request: Any) -> Any:
        with pytest.raises(WitError) as caught:
            self.handle(request)
        return caught.value.value

    async def exchange(self, request: Any) -> Any:
        """Return the response, once it is there."""
        future = await self.handle(request)
        await self("future-incoming-response.subscribe", future).source.wait()
        return self("future-incoming-response.get", future)


async def settled() -> None:
    """Let all that is due on the loop happen."""
    for _ in range(5):
        await asyncio.sleep(0)


# what is asked for


def test_a_new_request_is_a_get_and_says_nothing_else() -> None:
    guest = Guest()
    request = guest("outgoing-request", guest("fields"))
    assert guest("outgoing-request.method", request) == ("get", None)
    for name in ("scheme", "authority", "path-with-query"):
        assert guest(f"outgoing-request.{name}", request) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", ("post", None)),
        ("method", ("other", "PURGE")),
        ("scheme", ("HTTPS", None)),
        ("scheme", ("other", "wss+x.1-2")),
        ("scheme", None),
        ("authority", "example.test"),
        ("authority", "example.test:65535"),
        ("authority", "[::1]:80"),
        ("authority", "127.0.0.1"),
        ("authority", "user:secret@example.test:1"),
        ("authority", None),
        ("path-with-query", "/"),
        ("path-with-query", "/a%20b?c=d&e[]=|~"),
        ("path-with-query", "?a"),
        ("path-with-query", "*"),
        ("path-with-query", ""),
        ("path-with-query", None),
    ],
)
def test_what_is_valid_can_be_set(name: str, value: Any) -> None:
    guest = Guest()
    request = guest.request()
    guest(f"outgoing-request.set-{name}", request, value)
    assert guest(f"outgoing-request.{name}", request) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", ("other", "")),
        ("method", ("other", "A B")),
        ("method", ("other", "GET\r\n")),
        ("method", ("other", "x" * 2000)),
        ("scheme", ("other", "")),
        ("scheme", ("other", "1a")),
        ("scheme", ("other", "a:")),
        ("scheme", ("other", "a\n")),
        ("authority", ""),
        ("authority", "example.test:"),
        ("authority", "example.test:x"),
        ("authority", "example.test:65536"),
        ("authority", "a/b"),
        ("authority", "a b"),
        ("authority", "a\r\nb"),
        ("authority", "a\n"),
        ("authority", "::1"),
        ("authority", "ü"),
        ("authority", "x" * 2000),
        ("path-with-query", "a"),
        ("path-with-query", "/a b"),
        ("path-with-query", "/a#b"),
        ("path-with-query", "/a\r\nHost: x"),
        ("path-with-query", "/\n"),
        ("path-with-query", "/ü"),
        ("path-with-query", "/" + "x" * 70_000),
    ],
)
def test_what_is_invalid_can_not(name: str, value: Any) -> None:
    guest = Guest()
    request = guest.request()
    before = guest(f"outgoing-request.{name}", request)
    assert guest.error(f"outgoing-request.set-{name}", request, value) is None
    assert guest(f"outgoing-request.{name}", request) == before


def test_the_headers_of_a_request_are_fixed() -> None:
    guest = Guest()
    fields = guest("fields.from-list", [("a", b"1")])
    request = guest("outgoing-request", fields)
    assert guest.error("fields.set", fields, "a", []) == ("immutable", None)
    assert guest.error("fields.delete", guest("outgoing-request.headers", request), "a") == ("immutable", None)


def test_a_body_can_be_asked_for_once() -> None:
    guest = Guest()
    request = guest.request()
    guest("outgoing-request.body", request)
    assert guest.error("outgoing-request.body", request) is None
    assert guest.error("outgoing-request.body", guest.request(("content-length", b"many"))) is None


@pytest.mark.parametrize("name", ["connect", "first-byte", "between-bytes"])
def test_options_keep_their_timeouts(name: str) -> None:
    guest = Guest()
    options = guest("request-options")
    assert guest(f"request-options.{name}-timeout", options) is None
    guest(f"request-options.set-{name}-timeout", options, 5)
    assert guest(f"request-options.{name}-timeout", options) == 5
    guest(f"request-options.set-{name}-timeout", options, None)
    assert guest(f"request-options.{name}-timeout", options) is None


async def test_a_request_arrives_as_it_was_made() -> None:
    server = Server()
    guest = Guest(server)
    request = guest.request(("X-A", b"1"), authority="example.test:81")
    guest("outgoing-request.set-method", request, ("delete", None))
    guest("outgoing-request.set-scheme", request, ("HTTPS", None))
    guest("outgoing-request.set-path-with-query", request, "/p?q")
    options = guest("request-options")
    guest("request-options.set-connect-timeout", options, 1_500_000_000)
    guest("request-options.set-between-bytes-timeout", options, 0)
    await guest.handle(request, options)
    await server.came.wait()
    assert server.requests == [
        OutboundRequest("DELETE", "https", "example.test:81", "/p?q", [("X-A", b"1")], None, 1.5, None, 0.0)
    ]
    guest.http.close()


async def test_another_method_arrives_as_it_is_written() -> None:
    server = Server()
    guest = Guest(server)
    request = guest.request()
    guest("outgoing-request.set-method", request, ("other", "Purge"))
    await guest.exchange(request)
    assert server.requests[0].method == "Purge"
    assert server.requests[0].scheme is None
    guest.http.close()


def test_a_guest_without_the_capability_is_denied() -> None:
    guest = Guest()
    request = guest.request()
    stream = guest("outgoing-body.write", guest("outgoing-request.body", request))
    assert guest.refusal(request) == ("HTTP-request-denied", None)
    assert guest.error("output-stream.write", stream, b"x") == CLOSED


@pytest.mark.parametrize("authority", [None, "user@example.test"])
async def test_a_request_to_nobody_or_with_credentials_in_its_target_is_refused(authority: str | None) -> None:
    guest = Guest(Server())
    assert guest.refusal(guest.request(authority=authority)) == ("HTTP-request-URI-invalid", None)


async def test_a_scheme_that_is_not_http_is_refused() -> None:
    guest = Guest(Server())
    request = guest.request()
    guest("outgoing-request.set-scheme", request, ("other", "ftp"))
    assert guest.refusal(request) == ("HTTP-protocol-error", None)


async def test_open_exchanges_are_bounded() -> None:
    guest = Guest(Server())
    futures = [await guest.handle(guest.request()) for _ in range(MAX_EXCHANGES)]
    assert guest.refusal(guest.request()) == ("connection-limit-reached", None)
    futures[0].drop()
    await settled()
    await guest.handle(guest.request())
    guest.http.close()


async def test_a_request_that_nobody_awaits_is_not_sent() -> None:
    server = Server()
    guest = Guest(server)
    guest.handle(guest.request())  # warnings are errors: a coroutine that nobody awaits would fail this test
    await settled()
    assert not server.requests


# the response


async def test_a_response_is_taken_once() -> None:
    server = Server()
    guest = Guest(server)
    future = await guest.handle(guest.request())
    assert guest("future-incoming-response.get", future) is None
    pollable = guest("future-incoming-response.subscribe", future)
    assert not pollable.source.ready()
    await pollable.source.wait()
    assert pollable.source.ready()
    status, (kind, response) = guest("future-incoming-response.get", future)
    assert (status, kind) == ("ok", "ok")
    assert guest("future-incoming-response.get", future) == ("err", None)
    assert guest("incoming-response.status", response) == 200
    headers = guest("incoming-response.headers", response)
    assert guest("fields.entries", headers) == [("a", b"1")]
    assert guest.error("fields.append", headers, "b", b"") == ("immutable", None)
    with pytest.raises(GuestTrapError):
        future.drop()
    pollable.drop()
    future.drop()
    body = guest("incoming-response.consume", response)
    assert guest.error("incoming-response.consume", response) is None
    response.drop()
    stream = guest("incoming-body.stream", body)
    assert guest("input-stream.blocking-read", stream, 99) == b"hello"
    assert guest.error("input-stream.blocking-read", stream, 99) == CLOSED
    stream.drop()
    assert server.n_closed == 0
    body.drop()
    await settled()
    assert server.n_closed == 1
    guest.http.close()
    assert server.n_closed == 1


async def test_trailers_follow_a_response() -> None:
    server = Server()

    async def answer(_request: OutboundRequest) -> OutboundResponse:
        return server.response(b"x", trailers=lambda: [("t", b"1")])

    server._answer = answer
    guest = Guest(server)
    _, (_, response) = await guest.exchange(guest.request())
    future = guest("incoming-body.finish", guest("incoming-response.consume", response))
    _, (_, trailers) = guest("future-trailers.get", future)
    assert guest("fields.entries", trailers) == [("t", b"1")]
    await settled()
    assert server.n_closed == 1
    future.drop()
    response.drop()
    await settled()
    assert server.n_closed == 1


@pytest.mark.parametrize("gone", ["response", "body", "future-trailers"])
async def test_what_the_guest_drops_lets_the_connection_go(gone: str) -> None:
    class Endless:
        def read_nowait(self, n: int) -> None:
            return None

        async def wait_readable(self) -> None:
            await asyncio.Event().wait()

    server = Server()

    async def answer(_request: OutboundRequest) -> OutboundResponse:
        return server.response(body=Endless())

    server._answer = answer
    guest = Guest(server)
    _, (_, dropped) = await guest.exchange(guest.request())
    if gone != "response":
        dropped = guest("incoming-response.consume", dropped)
    if gone == "future-trailers":
        dropped = guest("incoming-body.finish", dropped)
        assert guest("future-trailers.get", dropped) is None
    dropped.drop()
    await settled()
    assert server.n_closed == 1


async def test_a_failure_is_an_error_code_once() -> None:
    async def refuse(_request: OutboundRequest) -> OutboundResponse:
        raise HttpCodeError(REFUSED)

    guest = Guest(Server(refuse))
    future = await guest.handle(guest.request())
    await future.wait()
    assert guest("future-incoming-response.get", future) == ("ok", ("err", REFUSED))
    assert guest("future-incoming-response.get", future) == ("err", None)
    future.drop()


async def test_what_ends_the_invocation_is_raised_when_the_guest_asks() -> None:
    async def late(_request: OutboundRequest) -> OutboundResponse:
        raise DeadlineExceededError("late")

    guest = Guest(Server(late))
    future = await guest.handle(guest.request())
    await future.wait()
    with pytest.raises(DeadlineExceededError):
        guest("future-incoming-response.get", future)


async def test_a_body_that_fails_tells_the_error_code() -> None:
    class Failing:
        def read_nowait(self, n: int) -> bytes | None:
            raise HttpCodeError(("HTTP-response-timeout", None))

        async def wait_readable(self) -> None:
            raise AssertionError

    server = Server()

    async def answer(_request: OutboundRequest) -> OutboundResponse:
        return server.response(body=Failing())

    server._answer = answer
    guest = Guest(server)
    _, (_, response) = await guest.exchange(guest.request())
    stream = guest("incoming-body.stream", guest("incoming-response.consume", response))
    case, failure = guest.error("input-stream.blocking-read", stream, 1)
    assert case == "last-operation-failed"
    assert TYPES["http-error-code"].call(guest, failure) == ("HTTP-response-timeout", None)
    assert guest.error("input-stream.blocking-read", stream, 1) == CLOSED
    guest.http.close()


# ends


class Hanging(Server):
    """A server that never answers."""

    def __init__(self) -> None:
        super().__init__(lambda _request: asyncio.Event().wait())  # type: ignore[arg-type, return-value]


async def test_a_dropped_future_breaks_its_exchange_off() -> None:
    server = Hanging()
    guest = Guest(server)
    request = guest.request()
    stream = guest("outgoing-body.write", guest("outgoing-request.body", request))
    future = await guest.handle(request)
    await server.came.wait()
    future.drop()
    await server.cancelled.wait()
    assert guest.error("output-stream.write", stream, b"x") == CLOSED


async def test_the_end_of_an_invocation_breaks_all_exchanges_off() -> None:
    hanging, server = Hanging(), Server()
    guest = Guest(hanging)
    await guest.handle(guest.request())
    guest.http.outbound = server
    await guest.exchange(guest.request())
    guest.http.close()
    await hanging.cancelled.wait()
    assert server.n_closed == 1
    guest.http.close()
    assert server.n_closed == 1


async def test_a_future_may_be_dropped_from_another_thread() -> None:
    server = Hanging()
    guest = Guest(server)
    future = await guest.handle(guest.request())
    await server.came.wait()
    thread = threading.Thread(target=future.drop)
    thread.start()
    thread.join()
    await server.cancelled.wait()


async def test_a_response_that_comes_too_late_is_let_go() -> None:
    server = Server()
    release = asyncio.Event()

    async def stubborn(_request: OutboundRequest) -> OutboundResponse:
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()
        return server.response()

    server._answer = stubborn
    guest = Guest(server)
    future = await guest.handle(guest.request())
    await server.came.wait()
    future.drop()
    await settled()
    assert server.n_closed == 0
    release.set()
    await settled()
    assert server.n_closed == 1


# bodies


async def read_all(request: OutboundRequest) -> bytes:
    assert request.body is not None
    chunks = []
    while chunk := await request.body.next_chunk():
        chunks.append(chunk)
    return b"".join(chunks)


async def test_a_body_is_sent_while_it_is_written() -> None:
    server = Server()
    got: list[bytes] = []
    first = asyncio.Event()

    async def answer(request: OutboundRequest) -> OutboundResponse:
        assert request.body is not None
        while chunk := await request.body.next_chunk():
            got.append(chunk)
            first.set()
        return server.response(repr(request.body.trailers()).encode())

    server._answer = answer
    guest = Guest(server)
    request = guest.request()
    body = guest("outgoing-request.body", request)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"before ")
    future = await guest.handle(request)
    await first.wait()
    guest("output-stream.write", stream, b"and ")
    guest("output-stream.blocking-write-and-flush", stream, b"after")
    stream.drop()
    guest("outgoing-body.finish", body, guest("fields.from-list", [("t", b"1")]))
    await future.wait()
    _, (_, response) = guest("future-incoming-response.get", future)
    read = guest("incoming-body.stream", guest("incoming-response.consume", response))
    assert guest("input-stream.read", read, 99) == b"[('t', b'1')]"
    assert got == [b"before ", b"and after"]
    guest.http.close()


@pytest.mark.parametrize("headers", [[], [("content-length", str(PIPE_BYTES + 4).encode())]])
async def test_a_body_that_nobody_takes_holds_the_guest_back(headers: list[tuple[str, bytes]]) -> None:
    server = Server(read_all)  # type: ignore[arg-type]
    guest = Guest(server)
    request = guest.request(*headers)
    stream = guest("outgoing-body.write", guest("outgoing-request.body", request))
    guest("output-stream.write", stream, bytes(PIPE_BYTES))
    assert guest("output-stream.check-write", stream) == 0
    pollable = guest("output-stream.subscribe", stream)
    assert not pollable.source.ready()
    writing = asyncio.ensure_future(guest("output-stream.blocking-write-and-flush", stream, b"more"))
    await settled()
    assert not writing.done()
    await guest.handle(request)
    await writing
    await settled()
    assert pollable.source.ready()
    guest.http.close()
    await settled()


async def test_a_body_that_is_dropped_unfinished_breaks_the_request_off() -> None:
    failures: list[Any] = []

    async def answer(request: OutboundRequest) -> OutboundResponse:
        try:
            await read_all(request)
        except HttpCodeError as exc:
            failures.append(exc.code)
            raise
        raise AssertionError

    guest = Guest(Server(answer))
    request = guest.request()
    body = guest("outgoing-request.body", request)
    future = await guest.handle(request)
    body.drop()
    await future.wait()
    assert failures == [("HTTP-protocol-error", None)]
    assert guest("future-incoming-response.get", future) == ("ok", ("err", failures[0]))


@pytest.mark.parametrize(("content", "size"), [(b"ab", 2), (b"abcd", 4)])
async def test_a_body_of_another_length_than_announced_breaks_the_request_off(content: bytes, size: int) -> None:
    guest = Guest(Server(read_all))  # type: ignore[arg-type]
    request = guest.request(("content-length", b"3"))
    body = guest("outgoing-request.body", request)
    stream = guest("outgoing-body.write", body)
    if size > 3:
        case, failure = guest.error("output-stream.write", stream, content)
        assert case == "last-operation-failed"
        assert TYPES["http-error-code"].call(guest, failure) == ("HTTP-request-body-size", size)
    else:
        guest("output-stream.write", stream, content)
    stream.drop()
    future = await guest.handle(request)
    assert guest.error("outgoing-body.finish", body, None) == ("HTTP-request-body-size", size)
    await future.wait()
    assert guest("future-incoming-response.get", future) == ("ok", ("err", ("HTTP-protocol-error", None)))


async def test_a_sender_that_has_enough_closes_the_guests_output() -> None:
    server = Server()

    async def answer(request: OutboundRequest) -> OutboundResponse:
        assert request.body is not None
        request.body.close()
        return server.response()

    server._answer = answer
    guest = Guest(server)
    request = guest.request()
    body = guest("outgoing-request.body", request)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, bytes(PIPE_BYTES))
    waiting = asyncio.ensure_future(guest("output-stream.blocking-flush", stream))
    await settled()
    assert not waiting.done()
    future = await guest.handle(request)
    await future.wait()
    await waiting
    assert guest("output-stream.check-write", stream) > 0
    assert guest.error("output-stream.write", stream, b"x") == CLOSED
    guest.http.close()


def test_the_body_of_a_request_that_is_dropped_unsent_is_closed() -> None:
    guest = Guest()
    request = guest.request()
    stream = guest("outgoing-body.write", guest("outgoing-request.body", request))
    request.drop()
    assert guest.error("output-stream.write", stream, b"x") == CLOSED
    assert guest("output-stream.subscribe", stream).source.ready()


async def test_a_pipe_between_threads_loses_nothing() -> None:
    pipe = RequestPipe()
    pieces = [index.to_bytes(4, "big") for index in range(20_000)]

    def write() -> None:
        for piece in pieces:
            pipe.write(piece)
        pipe.finish(None)

    writer = threading.Thread(target=write)
    writer.start()
    got = []
    while chunk := await pipe.next_chunk():
        got.append(chunk)
    writer.join()
    assert b"".join(got) == b"".join(pieces)
    assert not pipe.full
