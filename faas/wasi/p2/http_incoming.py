"""What a guest receives, of ``wasi:http/types``: incoming requests, responses, their bodies and trailers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from faas.wasi.p2.fields import Fields, visible
from faas.wasi.p2.io import InputStreamResource
from faas.wasi.p2.lookahead import MAX_READ_BYTES
from faas.wasi.p2.outbound_types import ErrorCode, HeaderList, HttpCodeError
from faas.wasi.p2.poll import Pollable, StreamFailedError
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError
from faas.wasi.streams import EmptyInput, InputStream

Trailers = Callable[[], HeaderList | None]
"""What answers a body's trailers once it has been read to its end."""

_METHODS: Final = {
    name.upper(): (name, None)
    for name in ("get", "head", "post", "put", "delete", "connect", "options", "trace", "patch")
}
_SCHEMES: Final = {"http": ("HTTP", None), "https": ("HTTPS", None)}
_EMPTY: Final = EmptyInput()
_TAKEN: Final = ("err", None)


def _no_trailers() -> None:
    return None


class IncomingRequest(Resource):
    """
    An ``incoming-request``; it may be dropped before the headers and the body that came from it, as in wasmtime.

    Args: *headers* and *trailers* may be callables, which are asked when the guest asks, and then at most once;
    *body* None means an empty one.
    """

    __slots__ = ("_headers", "_visible", "authority", "body", "method", "path_with_query", "scheme", "trailers")

    def __init__(  # noqa: PLR0917 - a request's parts, once for each request
        self,
        method: str,
        scheme: str | None,
        authority: str | None,
        path_with_query: str | None,
        headers: HeaderList | Callable[[], HeaderList],
        body: InputStream | None = None,
        trailers: Trailers = _no_trailers,
    ) -> None:
        self.children = 0
        self.parent = None
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path_with_query = path_with_query
        self._headers = headers
        self._visible: HeaderList | None = None
        self.body: InputStream | None = body or _EMPTY
        self.trailers = trailers

    def headers(self) -> HeaderList:
        """Return the headers that a guest may see, made once."""
        entries = self._visible
        if entries is None:
            headers = self._headers
            entries = self._visible = visible(headers() if callable(headers) else headers)
        return entries


class IncomingBody(Resource):
    """
    An ``incoming-body``: its stream is its child, so neither ``finish`` nor a drop may come before the stream's drop.

    *close* is called once, when the guest has read to the trailers or gave the body up.
    """

    __slots__ = ("close", "source", "taken", "trailers")

    def __init__(self, source: InputStream, trailers: Trailers, close: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.source = source
        self.trailers = trailers
        self.close = close
        self.taken = False

    def drop(self) -> None:
        """Give the body up."""
        super().drop()
        close, self.close = self.close, None
        if close is not None:
            close()


class FutureTrailers(Resource):
    """A ``future-trailers``: reads what is left of its body, throws that away, and has the trailers then."""

    __slots__ = ("_close", "_result", "_source", "_trailers", "consumed")

    def __init__(self, body: IncomingBody) -> None:
        super().__init__()
        self._source: InputStream | None = body.source
        self._trailers = body.trailers
        self._close, body.close = body.close, None
        self._result: tuple[str, Any] = ("ok", None)
        self.consumed = False

    def ready(self) -> bool:
        """Return whether ``get`` has an answer."""
        source = self._source
        try:
            while source is not None:
                chunk = source.read_nowait(MAX_READ_BYTES)
                if chunk is None:
                    return False
                if not chunk:
                    entries = self._trailers()
                    if entries is not None:
                        self._result = ("ok", Fields(visible(entries), mutable=False))
                    self._end()
                    break
        except StreamFailedError as exc:
            self._fail(exc)
        return True

    async def wait(self) -> None:
        """Return once ``ready``."""
        while not self.ready():
            assert self._source is not None
            try:
                await self._source.wait_readable()
            except StreamFailedError as exc:
                self._fail(exc)

    def take(self) -> tuple[str, Any]:
        """Return the trailers, None, or an error-code, as a ``result``; later calls do not."""
        self.consumed = True
        return self._result

    def drop(self) -> None:
        """Give up what has not been read."""
        super().drop()
        self._end()

    def _fail(self, exc: StreamFailedError) -> None:
        self._result = ("err", error_code_of(exc))
        self._end()

    def _end(self) -> None:
        self._source = None
        close, self._close = self._close, None
        if close is not None:
            close()


class IncomingResponse(Resource):
    """An ``incoming-response``; as a request, it may be dropped before its headers and its body."""

    __slots__ = ("body", "close", "headers", "status", "trailers")

    def __init__(
        self, status: int, headers: HeaderList, body: InputStream, trailers: Trailers, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self.status = status
        self.headers = headers
        self.body: InputStream | None = body
        self.trailers = trailers
        self.close: Callable[[], None] | None = close

    def drop(self) -> None:
        """Give the body up unless the guest has taken it."""
        super().drop()
        close, self.close = self.close, None
        if close is not None:
            close()


def error_code_of(exc: Exception) -> ErrorCode:
    """Return the error-code for *exc*."""
    return exc.code if isinstance(exc, HttpCodeError) else ("internal-error", str(exc))


# incoming-request


def incoming_request_method(_guest: Any, self: IncomingRequest) -> tuple[str, str | None]:
    """Return the method."""
    return _METHODS.get(self.method) or ("other", self.method)


def incoming_request_path_with_query(_guest: Any, self: IncomingRequest) -> str | None:
    """Return the path with the query behind it."""
    return self.path_with_query


def incoming_request_scheme(_guest: Any, self: IncomingRequest) -> tuple[str, str | None] | None:
    """Return the scheme, None if it is not known."""
    scheme = self.scheme
    return None if scheme is None else _SCHEMES.get(scheme) or ("other", scheme)


def incoming_request_authority(_guest: Any, self: IncomingRequest) -> str | None:
    """Return the host that the client named, None if it named none; there is no ``host`` header."""
    return self.authority


def incoming_request_headers(_guest: Any, self: IncomingRequest) -> Fields:
    """Return the headers that a guest may see, immutable."""
    return Fields(self.headers(), mutable=False)


def incoming_request_consume(_guest: Any, self: IncomingRequest) -> IncomingBody:
    """Return the body the first time; later an error."""
    body, self.body = self.body, None
    if body is None:
        raise WitError
    return IncomingBody(body, self.trailers)


# incoming-body


def incoming_body_stream(_guest: Any, self: IncomingBody) -> InputStreamResource:
    """Return the stream of the contents the first time; later an error."""
    if self.taken:
        raise WitError
    self.taken = True
    return InputStreamResource(self.source, self)


def incoming_body_finish(_guest: Any, this: IncomingBody) -> FutureTrailers:
    """
    Return what will have the trailers; what has not been read is thrown away.

    Raises: GuestTrapError while the stream has not been dropped.
    """
    this.leave()
    return FutureTrailers(this)


# future-trailers


def future_trailers_subscribe(_guest: Any, self: FutureTrailers) -> Pollable:
    """Return what is ready once ``get`` has an answer; a child of the future."""
    return Pollable(self, self)


def future_trailers_get(_guest: Any, self: FutureTrailers) -> tuple[str, Any] | None:
    """Return None until the body has ended; then the trailers or an error-code, once; later an error."""
    if self.consumed:
        return _TAKEN
    return ("ok", self.take()) if self.ready() else None


# incoming-response


def incoming_response_status(_guest: Any, self: IncomingResponse) -> int:
    """Return the status."""
    return self.status


def incoming_response_headers(_guest: Any, self: IncomingResponse) -> Fields:
    """Return the headers that a guest may see, immutable."""
    return Fields(self.headers, mutable=False)


def incoming_response_consume(_guest: Any, self: IncomingResponse) -> IncomingBody:
    """Return the body the first time; later an error."""
    body, self.body = self.body, None
    if body is None:
        raise WitError
    close, self.close = self.close, None
    return IncomingBody(body, self.trailers, close)


TYPES: Final[Mapping[str, ComponentFunction]] = {
    "[method]incoming-request.method": ComponentFunction(incoming_request_method),
    "[method]incoming-request.path-with-query": ComponentFunction(incoming_request_path_with_query),
    "[method]incoming-request.scheme": ComponentFunction(incoming_request_scheme),
    "[method]incoming-request.authority": ComponentFunction(incoming_request_authority),
    "[method]incoming-request.headers": ComponentFunction(incoming_request_headers),
    "[method]incoming-request.consume": ComponentFunction(incoming_request_consume),
    "[method]incoming-body.stream": ComponentFunction(incoming_body_stream),
    "[static]incoming-body.finish": ComponentFunction(incoming_body_finish),
    "[method]future-trailers.subscribe": ComponentFunction(future_trailers_subscribe),
    "[method]future-trailers.get": ComponentFunction(future_trailers_get),
    "[method]incoming-response.status": ComponentFunction(incoming_response_status),
    "[method]incoming-response.headers": ComponentFunction(incoming_response_headers),
    "[method]incoming-response.consume": ComponentFunction(incoming_response_consume),
}
