# SPDX-License-Identifier: Apache-2.0
"""
HTTP functions in Python, over wasi:http: componentize-py makes a component of them.

    import faas

    def respond(request: faas.Request) -> faas.Response:
        return faas.Response(f"Hello, {request.query.get('name', 'world')}!\\n")

    IncomingHandler = faas.handler(respond)

All there is when the module was imported is kept in the component, so imports and preparations cost nothing when a
request comes; but `random` would give the same numbers in each instance, which is why it is seeded again for each.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import outgoing_handler, types
from wit_world.imports.streams import InputStream, OutputStream, StreamError_Closed

READ_BYTES = 65536

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class FetchError(Exception):
    """A call to another server that failed; `code` is wasi:http's word for it, such as `ConnectionRefused`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the call failed: {code}")
        self.code = code


class Message:
    """What requests and answers have in common: headers, and a body that is read once."""

    def __init__(self, source: Any, headers: types.Fields) -> None:
        with headers:
            entries = headers.entries()
        self.headers = [(name.lower(), value.decode("utf-8", "surrogateescape")) for name, value in entries]
        self._source = source
        self._kept: bytes | None = None

    def header(self, name: str, default: str = "") -> str:
        """The first header of that name, in any case."""
        wanted = name.lower()
        return next((value for name, value in self.headers if name == wanted), default)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes, once; raises Err when it breaks off."""
        with self._source.consume() as body, body.stream() as stream:
            yield from _read(stream)

    def body(self) -> bytes:
        """All of the body."""
        if self._kept is None:
            self._kept = b"".join(self.chunks())
        return self._kept

    def text(self) -> str:
        return self.body().decode()

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return json.loads(self.body())


class Request(Message):
    """What a client asked for: `method`, `path`, `raw_query`, `query` (the last value of each name), headers, body."""

    def __init__(self, request: types.IncomingRequest) -> None:
        super().__init__(request, request.headers())
        method = request.method()
        self.method = method.value if isinstance(method, types.Method_Other) else _METHODS[type(method)]
        self.path, _, self.raw_query = (request.path_with_query() or "/").partition("?")

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.raw_query, keep_blank_values=True))


class Response:
    """
    What is answered. A body of str is UTF-8; one that is neither str nor bytes is iterated over, and what it yields is
    sent as it comes. If that raises, the response breaks off and does not look whole.
    """

    def __init__(self, body: str | bytes | Iterable[bytes] = b"", status: int = 200, headers: Headers = ()) -> None:
        self.status = status
        self.headers = list(headers.items() if isinstance(headers, Mapping) else headers)
        kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/octet-stream"
        self.body = body.encode() if isinstance(body, str) else body
        if self.body != b"" and not any(name.lower() == "content-type" for name, _ in self.headers):
            self.headers.append(("content-type", kind))


def json_response(value: Any, status: int = 200, headers: Headers = ()) -> Response:
    """`value` as JSON and a newline."""
    text = json.dumps(value, ensure_ascii=False) + "\n"
    given = headers.items() if isinstance(headers, Mapping) else headers
    return Response(text, status, [("content-type", "application/json"), *given])


class Answer(Message):
    """What another server answered: `status`, headers, and the body while the `with` of `fetch` lasts."""

    def __init__(self, response: types.IncomingResponse) -> None:
        super().__init__(response, response.headers())
        self.status = response.status()
        self._response = response

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *exc: object) -> None:
        self._response.__exit__(None, None, None)


def fetch(
    url: str, method: str = "GET", headers: Headers = (), body: bytes = b"", timeout_s: float | None = None
) -> Answer:
    """
    Ask another server, and wait for the head of its answer: `with faas.fetch(url) as answer: answer.body()`.

    Raises FetchError, also where the function was not granted the server; ValueError for what is no http(s) URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"not an http or https URL: {url!r}")
    given = headers.items() if isinstance(headers, Mapping) else headers
    call = types.OutgoingRequest(_fields([*given, ("content-length", str(len(body)))] if body else given))
    call.set_method(_METHOD_CASES[method]() if method in _METHOD_CASES else types.Method_Other(method))
    call.set_scheme(types.Scheme_Https() if parts.scheme == "https" else types.Scheme_Http())
    call.set_authority(parts.netloc)
    call.set_path_with_query((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    options = None
    if timeout_s is not None:
        options = types.RequestOptions()
        for set_timeout in (
            options.set_connect_timeout, options.set_first_byte_timeout, options.set_between_bytes_timeout
        ):
            set_timeout(int(timeout_s * 1e9))
    outgoing = call.body()
    try:
        future = outgoing_handler.handle(call, options)
        _send(outgoing, body)
        with future:
            with future.subscribe() as pollable:
                pollable.block()
            answer = future.get()
    except Err as exc:
        raise FetchError(_code(exc.value)) from exc
    if not isinstance(answer, Ok) or not isinstance(answer.value, Ok):
        failed = answer.value.value if isinstance(answer, Ok) else None
        raise FetchError(_code(failed))
    return Answer(answer.value.value)


def handler(respond: Callable[[Request], Response]) -> type[exports.IncomingHandler]:
    """
    The class that has to be called IncomingHandler in the module that componentize-py is given.

    What `respond` raises is logged with its traceback, and answered with 500.
    """

    class IncomingHandler(exports.IncomingHandler):
        def handle(self, request: types.IncomingRequest, response_out: types.ResponseOutparam) -> None:
            if (random := sys.modules.get("random")) is not None:
                random.seed()
            with request:
                asked = Request(request)
                try:
                    response = respond(asked)
                except Exception:
                    traceback.print_exc()
                    response = Response("internal error; the function's log says more\n", 500)
                _answer(response_out, response, asked.method)

    return IncomingHandler


def _answer(response_out: types.ResponseOutparam, response: Response, method: str) -> None:
    bodiless = method == "HEAD" or response.status in (204, 304)
    whole = isinstance(response.body, bytes)
    headers = response.headers
    if whole and not bodiless:
        headers = [*headers, ("content-length", str(len(response.body)))]
    outgoing = types.OutgoingResponse(_fields(headers))
    outgoing.set_status_code(response.status)
    body = outgoing.body()
    types.ResponseOutparam.set(response_out, Ok(outgoing))
    _send(body, b"" if bodiless else response.body)


def _fields(headers: Iterable[tuple[str, str]]) -> types.Fields:
    return types.Fields.from_list([(name, value.encode("utf-8", "surrogateescape")) for name, value in headers])


def _send(body: types.OutgoingBody, content: bytes | Iterable[bytes]) -> None:
    """Send all of *content* and finish. Where it breaks off the body is dropped, so that it does not look whole."""
    try:
        with body.write() as stream:
            if isinstance(content, bytes):
                _write(stream, content)
            else:
                for chunk in content:
                    _write(stream, chunk)
                    stream.flush()
    except Err as exc:
        body.__exit__(None, None, None)
        if not isinstance(exc.value, StreamError_Closed):  # closed: nobody reads any more, which is no error of ours
            raise
    except BaseException:
        body.__exit__(None, None, None)
        raise
    else:
        types.OutgoingBody.finish(body, None)


def _write(stream: OutputStream, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        room = stream.check_write()
        if room == 0:
            with stream.subscribe() as pollable:
                pollable.block()
            continue
        stream.write(bytes(view[:room]))
        view = view[room:]


def _read(stream: InputStream) -> Iterator[bytes]:
    while True:
        try:
            chunk = stream.blocking_read(READ_BYTES)
        except Err as exc:
            if isinstance(exc.value, StreamError_Closed):
                return
            raise
        if chunk:
            yield chunk


def _code(error: object) -> str:
    return type(error).__name__.removeprefix("ErrorCode_")


_METHOD_CASES: dict[str, Any] = {
    "GET": types.Method_Get,
    "HEAD": types.Method_Head,
    "POST": types.Method_Post,
    "PUT": types.Method_Put,
    "DELETE": types.Method_Delete,
    "CONNECT": types.Method_Connect,
    "OPTIONS": types.Method_Options,
    "TRACE": types.Method_Trace,
    "PATCH": types.Method_Patch,
}
_METHODS = {case: name for name, case in _METHOD_CASES.items()}
