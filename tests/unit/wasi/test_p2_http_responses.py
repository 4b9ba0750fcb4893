"""Promises of wasi:http/types towards clients: requests that come in, responses that go out, and how both end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from faas.errors import GuestTrapError, OutputLimitError
from faas.wasi.p2 import http, io
from faas.wasi.p2.http import HttpContext
from faas.wasi.p2.http_incoming import IncomingRequest
from faas.wasi.p2.http_outgoing import ResponseOutparam
from faas.wasi.p2.outbound_types import ErrorCode, HeaderList, HttpCodeError, ResponseHead
from faas.wasi.p2.resources import WitError
from faas.wasi.streams import BytesInput, CollectingOutput, OutputStream

TYPES = http.FUNCTIONS["wasi:http/types"]
STREAMS = io.FUNCTIONS["wasi:io/streams"]
CLOSED = ("closed", None)
BODY_SIZE = "HTTP-response-body-size"


class Recorder(HttpContext):
    """A gateway that writes down what it is told."""

    def __init__(self, max_output_bytes: int = 1000) -> None:
        super().__init__(max_output_bytes)
        self.sink = CollectingOutput()
        self.events: list[Any] = []

    def on_response(self, head: ResponseHead) -> OutputStream:
        self.events.append((head.status, head.headers, head.body_taken))
        return self.sink

    def on_error(self, code: ErrorCode) -> None:
        self.events.append(code)

    def on_trailers(self, trailers: HeaderList) -> None:
        self.events.append(trailers)

    def on_finish(self) -> None:
        self.events.append("finish")

    def on_abort(self) -> None:
        self.events.append("abort")


class Guest:
    """An instance without an engine: calls functions by name, as a component would."""

    def __init__(self, max_output_bytes: int = 1000) -> None:
        self.http = Recorder(max_output_bytes)
        self.outparam = ResponseOutparam()

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

    def response(self, *headers: tuple[str, bytes]) -> Any:
        return self("outgoing-response", self("fields.from-list", list(headers)))

    def set(self, response: Any) -> None:
        self("response-outparam.set", self.outparam, ("ok", response))

    @property
    def events(self) -> list[Any]:
        return self.http.events

    @property
    def sent(self) -> bytes:
        return self.http.sink.getvalue()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def request(**changes: Any) -> IncomingRequest:
    parts: dict[str, Any] = {
        "method": "GET",
        "scheme": "http",
        "authority": "example.test:8080",
        "path_with_query": "/a?b=c",
        "headers": [],
        **changes,
    }
    return IncomingRequest(**parts)


# the request


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        ("GET", ("get", None)),
        ("PATCH", ("patch", None)),
        ("get", ("other", "get")),
        ("PURGE", ("other", "PURGE")),
        ("OTHER", ("other", "OTHER")),
    ],
)
def test_a_method_is_its_case_or_another(guest: Guest, method: str, variant: Any) -> None:
    assert guest("incoming-request.method", request(method=method)) == variant


def test_the_target_of_a_request(guest: Guest) -> None:
    incoming = request()
    assert guest("incoming-request.path-with-query", incoming) == "/a?b=c"
    assert guest("incoming-request.authority", incoming) == "example.test:8080"
    assert guest("incoming-request.scheme", incoming) == ("HTTP", None)
    assert guest("incoming-request.scheme", request(scheme="https")) == ("HTTPS", None)
    assert guest("incoming-request.scheme", request(scheme="ws")) == ("other", "ws")
    nothing = request(scheme=None, authority=None, path_with_query=None)
    for name in ("path-with-query", "authority", "scheme"):
        assert guest(f"incoming-request.{name}", nothing) is None


@pytest.mark.parametrize("lazy", [False, True])
def test_the_headers_are_immutable_and_without_the_connections_own(guest: Guest, lazy: bool) -> None:
    headers = [("Host", b"x"), ("A", b"1"), ("a", b"2")]
    incoming = request(headers=headers.copy if lazy else headers)
    fields = guest("incoming-request.headers", incoming)
    assert guest("fields.entries", fields) == [("A", b"1"), ("a", b"2")]
    assert guest.error("fields.append", fields, "b", b"") == ("immutable", None)


def test_headers_are_made_once_and_only_if_they_are_asked_for(guest: Guest) -> None:
    made = []
    incoming = request(headers=lambda: made.append(1) or [("a", b"1")])
    assert not made
    guest("incoming-request.headers", incoming)
    guest("incoming-request.headers", incoming)
    assert made == [1]


def test_a_request_may_be_dropped_before_what_came_from_it(guest: Guest) -> None:
    incoming = request(headers=[("a", b"1")], body=BytesInput(b"abc"))
    headers, body = guest("incoming-request.headers", incoming), guest("incoming-request.consume", incoming)
    incoming.drop()
    assert guest("fields.get", headers, "a") == [b"1"]
    assert guest("input-stream.read", guest("incoming-body.stream", body), 9) == b"abc"


def test_a_body_can_be_taken_once_and_so_can_its_stream(guest: Guest) -> None:
    incoming = request(body=BytesInput(b"abc"))
    body = guest("incoming-request.consume", incoming)
    assert guest.error("incoming-request.consume", incoming) is None
    guest("incoming-body.stream", body)
    assert guest.error("incoming-body.stream", body) is None


def test_a_request_without_a_body_has_an_empty_one(guest: Guest) -> None:
    body = guest("incoming-request.consume", request())
    stream = guest("incoming-body.stream", body)
    assert guest.error("input-stream.read", stream, 1) == CLOSED


@pytest.mark.parametrize("end", ["drop", "finish"])
def test_a_body_can_not_end_before_its_stream_is_dropped(guest: Guest, end: str) -> None:
    body = guest("incoming-request.consume", request(body=BytesInput(b"abc")))
    stream = guest("incoming-body.stream", body)
    with pytest.raises(GuestTrapError, match="drop those first"):
        body.drop() if end == "drop" else guest("incoming-body.finish", body)
    stream.drop()
    body.drop() if end == "drop" else guest("incoming-body.finish", body)


def test_trailers_come_when_the_rest_of_the_body_has_been_thrown_away(guest: Guest) -> None:
    source = BytesInput(b"x" * 200_000)
    body = guest("incoming-request.consume", request(body=source, trailers=lambda: [("t", b"1"), ("Host", b"x")]))
    future = guest("incoming-body.finish", body)
    status, (kind, trailers) = guest("future-trailers.get", future)
    assert (status, kind) == ("ok", "ok")
    assert guest("fields.entries", trailers) == [("t", b"1")]
    assert guest.error("fields.delete", trailers, "t") == ("immutable", None)
    assert source.read_nowait(1) == b""


def test_trailers_can_be_taken_once(guest: Guest) -> None:
    future = guest("incoming-body.finish", guest("incoming-request.consume", request()))
    assert guest("future-trailers.get", future) == ("ok", ("ok", None))
    assert guest("future-trailers.get", future) == ("err", None)


class Pending:
    """A body whose end comes, or which fails, when a test says so."""

    def __init__(self) -> None:
        self.come = asyncio.Event()
        self.awaited = asyncio.Event()
        self.failure: HttpCodeError | None = None

    def read_nowait(self, n: int) -> bytes | None:
        return b"" if self.come.is_set() and self.failure is None else None

    async def wait_readable(self) -> None:
        self.awaited.set()
        await self.come.wait()
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("code", [None, ("connection-terminated", None)])
async def test_trailers_are_waited_for(guest: Guest, code: ErrorCode | None) -> None:
    source = Pending()
    future = guest("incoming-body.finish", guest("incoming-request.consume", request(body=source)))
    pollable = guest("future-trailers.subscribe", future)
    assert guest("future-trailers.get", future) is None
    assert not pollable.source.ready()
    task = asyncio.ensure_future(pollable.source.wait())
    await source.awaited.wait()
    source.failure = None if code is None else HttpCodeError(code)
    source.come.set()
    await task
    assert pollable.source.ready()
    assert guest("future-trailers.get", future) == ("ok", ("ok", None) if code is None else ("err", code))
    with pytest.raises(GuestTrapError):
        future.drop()
    pollable.drop()
    future.drop()


def test_a_body_that_fails_before_its_trailers_tells_the_error_code_instead(guest: Guest) -> None:
    class Failing:
        def read_nowait(self, n: int) -> bytes | None:
            raise HttpCodeError(("HTTP-response-incomplete", None))

    body = guest("incoming-request.consume", request(body=Failing()))
    stream = guest("incoming-body.stream", body)
    assert guest.error("input-stream.read", stream, 1)[0] == "last-operation-failed"
    stream.drop()
    future = guest("incoming-body.finish", body)
    assert guest("future-trailers.get", future) == ("ok", ("err", ("HTTP-response-incomplete", None)))


# the response


def test_a_hello(guest: Guest) -> None:
    response = guest.response(("content-type", b"text/plain"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    assert guest("output-stream.blocking-write-and-flush", stream, b"hello") is None
    stream.drop()
    guest("outgoing-body.finish", body, None)
    assert guest.events == [(200, [("content-type", b"text/plain")], True), "finish"]
    assert guest.sent == b"hello"


def test_a_response_is_200_until_it_is_said_otherwise(guest: Guest) -> None:
    response = guest.response()
    assert guest("outgoing-response.status-code", response) == 200
    guest("outgoing-response.set-status-code", response, 404)
    assert guest("outgoing-response.status-code", response) == 404


@pytest.mark.parametrize("status", [0, 99, 1000, 65535])
def test_a_status_has_three_digits(guest: Guest, status: int) -> None:
    response = guest.response()
    assert guest.error("outgoing-response.set-status-code", response, status) is None
    assert guest("outgoing-response.status-code", response) == 200


def test_the_headers_of_a_response_are_fixed(guest: Guest) -> None:
    fields = guest("fields.from-list", [("a", b"1")])
    response = guest("outgoing-response", fields)
    assert guest.error("fields.append", fields, "b", b"2") == ("immutable", None)
    view = guest("outgoing-response.headers", response)
    assert guest.error("fields.append", view, "b", b"2") == ("immutable", None)
    response.drop()
    assert guest("fields.entries", view) == [("a", b"1")]


def test_a_response_whose_body_was_never_asked_for_is_complete(guest: Guest) -> None:
    guest.set(guest.response())
    assert guest.events == [(200, [], False), "finish"]


def test_an_error_code_is_an_answer_too(guest: Guest) -> None:
    guest("response-outparam.set", guest.outparam, ("err", ("internal-error", "no luck")))
    assert guest.events == [("internal-error", "no luck")]


def test_an_outparam_can_be_set_once(guest: Guest) -> None:
    guest.set(guest.response())
    with pytest.raises(GuestTrapError, match="answer each request once"):
        guest.set(guest.response())
    assert guest.events == [(200, [], False), "finish"]


def test_an_outparam_that_is_dropped_answers_nothing(guest: Guest) -> None:
    guest.outparam.drop()
    assert guest.events == []


@pytest.mark.parametrize(
    ("status", "case"), [(100, "internal-error"), (199, "internal-error"), (200, "HTTP-protocol-error")]
)
def test_informational_responses_are_refused_as_wit_has_it(guest: Guest, status: int, case: str) -> None:
    assert guest.error("response-outparam.send-informational", guest.outparam, status, guest("fields"))[0] == case
    guest.set(guest.response())


def test_a_body_can_be_asked_for_once_and_so_can_its_output(guest: Guest) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    assert guest.error("outgoing-response.body", response) is None
    stream = guest("outgoing-body.write", body)
    assert guest.error("outgoing-body.write", body) is None
    stream.drop()
    assert guest.error("outgoing-body.write", body) is None


@pytest.mark.parametrize("end", ["drop", "finish"])
def test_an_output_must_be_dropped_before_its_body_ends(guest: Guest, end: str) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    guest.set(response)
    guest("outgoing-body.write", body)
    with pytest.raises(GuestTrapError, match="drop those first"):
        body.drop() if end == "drop" else guest("outgoing-body.finish", body, None)
    assert guest.events == [(200, [], True)]


def test_trailers_go_before_the_end(guest: Guest) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    guest.set(response)
    guest("outgoing-body.finish", body, guest("fields.from-list", [("t", b"1")]))
    assert guest.events == [(200, [], True), [("t", b"1")], "finish"]


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_is_dropped_unfinished_is_broken_off(guest: Guest, early: bool) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    if early:
        body.drop()
    guest.set(response)
    if not early:
        body.drop()
    assert guest.events == [(200, [], True), "abort"]


def test_a_body_is_not_ended_twice(guest: Guest) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    guest.set(response)
    guest("outgoing-body.finish", body, None)
    body.drop()  # as the end of an invocation may do with what it finds
    assert guest.events == [(200, [], True), "finish"]


def test_a_guest_that_has_returned_has_finished_its_body(guest: Guest) -> None:
    response = guest.response(("content-length", b"3"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"abc")
    guest.http.returned = True
    stream.drop()
    body.drop()
    assert guest.events[1:] == ["finish"]


def test_a_guest_that_has_returned_too_early_has_not(guest: Guest) -> None:
    response = guest.response(("content-length", b"3"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    guest.http.returned = True
    body.drop()
    assert guest.events[1:] == ["abort"]


@pytest.mark.parametrize("length", [None, b"5"])
def test_what_is_written_before_the_answer_is_kept_for_it(guest: Guest, length: bytes | None) -> None:
    response = guest.response(*([] if length is None else [("content-length", length)]))
    body = guest("outgoing-response.body", response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"hel")
    assert guest.sent == b""
    guest.set(response)
    assert guest.sent == b"hel"
    guest("output-stream.write", stream, b"lo")
    stream.drop()
    guest("outgoing-body.finish", body, None)
    assert guest.sent == b"hello"
    assert guest.events[-1] == "finish"


def test_a_whole_body_may_come_before_the_answer(guest: Guest) -> None:
    response = guest.response()
    body = guest("outgoing-response.body", response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"hello")
    stream.drop()
    guest("outgoing-body.finish", body, guest("fields.from-list", [("t", b"1")]))
    assert guest.events == []
    guest.set(response)
    assert guest.sent == b"hello"
    assert guest.events == [(200, [], True), [("t", b"1")], "finish"]


def test_what_is_kept_for_an_answer_is_bounded_as_all_output_is() -> None:
    guest = Guest(max_output_bytes=10)
    stream = guest("outgoing-body.write", guest("outgoing-response.body", guest.response()))
    guest("output-stream.write", stream, b"x" * 10)
    with pytest.raises(OutputLimitError, match="max_output_bytes"):
        guest("output-stream.write", stream, b"x")


@pytest.mark.parametrize("length", [None, b"5"])
@pytest.mark.parametrize("asked", [False, True])
def test_the_body_of_a_response_that_is_dropped_is_closed(guest: Guest, length: bytes | None, asked: bool) -> None:
    response = guest.response(*([] if length is None else [("content-length", length)]))
    body = guest("outgoing-response.body", response)
    stream = guest("outgoing-body.write", body) if asked else None
    response.drop()
    stream = stream or guest("outgoing-body.write", body)
    assert guest.error("output-stream.write", stream, b"x") == CLOSED
    stream.drop()
    body.drop()
    assert guest.events == []


# content-length


def test_a_body_of_the_announced_length_is_fine(guest: Guest) -> None:
    response = guest.response(("Content-Length", b"5"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"he")
    guest("output-stream.blocking-write-and-flush", stream, b"llo")
    stream.drop()
    guest("outgoing-body.finish", body, None)
    assert guest.sent == b"hello"
    assert guest.events[-1] == "finish"


def test_a_body_that_is_too_short_fails_and_is_broken_off(guest: Guest) -> None:
    response = guest.response(("content-length", b"5"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"hell")
    stream.drop()
    assert guest.error("outgoing-body.finish", body, None) == (BODY_SIZE, 4)
    assert guest.events[-1] == "abort"


def test_a_body_that_is_too_long_fails_at_the_write_and_at_the_end(guest: Guest) -> None:
    response = guest.response(("content-length", b"5"))
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    guest("output-stream.write", stream, b"hell")
    case, failure = guest.error("output-stream.write", stream, b"o!")
    assert case == "last-operation-failed"
    assert TYPES["http-error-code"].call(guest, failure) == (BODY_SIZE, 6)
    assert guest.error("output-stream.write", stream, b"") == CLOSED
    stream.drop()
    assert guest.error("outgoing-body.finish", body, None) == (BODY_SIZE, 6)
    assert guest.sent == b"hell"
    assert guest.events[-1] == "abort"


@pytest.mark.parametrize("length", [b"x", b"-1", b"1, 1"])
def test_a_content_length_that_makes_no_sense_has_no_body(guest: Guest, length: bytes) -> None:
    assert guest.error("outgoing-response.body", guest.response(("content-length", length))) is None


def test_a_content_length_that_makes_no_sense_is_no_answer(guest: Guest) -> None:
    with pytest.raises(GuestTrapError, match="no length"):
        guest.set(guest.response(("content-length", b"x")))
    assert guest.events == []


def test_an_error_that_is_no_matter_of_http_has_no_error_code(guest: Guest) -> None:
    failure = io.IoError(io.StreamFailedError("disk full"))
    assert TYPES["http-error-code"].call(guest, failure) is None


def test_a_context_says_what_its_gateway_forgot() -> None:
    bare = HttpContext(10)
    head = ResponseHead(200, [])
    for forgotten in (lambda: bare.on_response(head), bare.on_finish, bare.on_abort):
        with pytest.raises(NotImplementedError):
            forgotten()


def test_a_response_that_waits_for_room_is_drained_by_the_pause(guest: Guest) -> None:
    guest.http.sink = SimpleNamespace(full=True, write=len)  # type: ignore[assignment]
    response = guest.response()
    body = guest("outgoing-response.body", response)
    guest.set(response)
    stream = guest("outgoing-body.write", body)
    assert guest("output-stream.check-write", stream) == 0
    assert guest("output-stream.blocking-write-and-flush", stream, b"x") is not None
