"""``wasi:http``: what an invocation's HTTP goes through, outbound exchanges, and the registry of all functions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final

from faas.wasi.p2 import fields, http_incoming, http_outgoing
from faas.wasi.p2.fields import visible
from faas.wasi.p2.http_bodies import RequestPipe
from faas.wasi.p2.http_incoming import IncomingResponse, error_code_of
from faas.wasi.p2.http_outgoing import OutgoingRequest, RequestOptions
from faas.wasi.p2.io import IoError
from faas.wasi.p2.outbound_types import (
    ErrorCode,
    HeaderList,
    HttpCodeError,
    Outbound,
    OutboundRequest,
    OutboundResponse,
    ResponseHead,
)
from faas.wasi.p2.poll import Pollable, StreamFailedError, Waiting
from faas.wasi.p2.resources import ComponentFunction, Resource, WitError
from faas.wasi.streams import OutputStream

MAX_EXCHANGES: Final = 100
"""How many outbound exchanges of one invocation may be open at a time."""

_SCHEMES: Final = {"HTTP": "http", "HTTPS": "https"}


class HttpContext:
    """
    One invocation's HTTP; the gateway overrides what it has to know of, and closes it on the loop at the end.

    Every ``on_…`` is called wherever the guest runs: ``on_response`` or ``on_error`` at most once, then, if there was
    a response, ``on_trailers`` before ``on_finish``, or ``on_abort``; nothing comes after those two.
    """

    __slots__ = ("_exchanges", "kept_bytes", "max_output_bytes", "outbound", "pipes", "returned")

    def __init__(self, max_output_bytes: int, outbound: Outbound | None = None) -> None:
        self.max_output_bytes = max_output_bytes
        self.outbound = outbound
        """None: every request of the guest is denied."""
        self.returned = False
        """Set once the guest has returned well: bodies that it left unfinished end well then, as in wasmtime."""
        self.kept_bytes = 0
        """What the guest has written to responses that it has not answered with."""
        self.pipes: set[RequestPipe] = set()
        """The bodies of requests, sent or not, that are open."""
        self._exchanges: set[Exchange] | None = None

    def on_response(self, head: ResponseHead) -> OutputStream:
        """Take the head of the response, and return where its body goes."""
        raise NotImplementedError

    def on_error(self, code: ErrorCode) -> None:
        """Take the error-code that the guest answers with instead."""
        raise NotImplementedError

    def on_trailers(self, trailers: HeaderList) -> None:
        """Take the trailers."""
        raise NotImplementedError

    def on_finish(self) -> None:
        """The body is complete; at once for a response whose body the guest never asked for."""
        raise NotImplementedError

    def on_abort(self) -> None:
        """The guest gave the body up: nobody may take it for complete."""
        raise NotImplementedError

    def send(self, request: OutgoingRequest, options: RequestOptions | None) -> Awaitable[FutureIncomingResponse]:
        """
        Return an awaitable that begins to send *request*, and has the future of its response.

        Raises: WitError with an error-code for what can't be sent at all.
        """
        outbound = self.outbound
        try:
            if outbound is None:
                raise WitError(("HTTP-request-denied", None))
            if self._exchanges is not None and len(self._exchanges) >= MAX_EXCHANGES:
                raise WitError(("connection-limit-reached", None))
            outbound_request = _outbound_request(request, options)
        except WitError:
            request.drop()
            raise
        return Waiting(partial(self._begin, Exchange(outbound, outbound_request)))

    async def _begin(self, exchange: Exchange) -> FutureIncomingResponse:
        if self._exchanges is None:
            self._exchanges = set()
        self._exchanges.add(exchange)
        exchange.begin(self._exchanges)
        return FutureIncomingResponse(exchange)

    def close(self) -> None:
        """Break off all exchanges that are open; on the loop, when the invocation ends."""
        for exchange in tuple(self._exchanges or ()):
            exchange.close_now()


class Exchange:
    """
    One outbound request and its response; begun on the loop, and closed exactly once.

    Thread: the loop, but for ``done`` and ``close``.
    """

    __slots__ = ("_among", "_closed", "_loop", "_outbound", "_request", "_task", "code", "failure", "response")

    def __init__(self, outbound: Outbound, request: OutboundRequest) -> None:
        self._outbound = outbound
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self._among: set[Exchange] = set()
        self._closed = False
        self.response: OutboundResponse | None = None
        self.code: ErrorCode | None = None
        self.failure: Exception | None = None

    def begin(self, among: set[Exchange]) -> None:
        """Send the request; it leaves *among* when it is closed."""
        self._among = among
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            response = await self._outbound.send(self._request)
        except StreamFailedError as exc:
            self.code = error_code_of(exc)
        except Exception as exc:
            self.failure = exc  # ends the invocation, when the guest asks for the response
        else:
            self.response = response
            if self._closed:
                self._release()

    @property
    def done(self) -> bool:
        """Whether the response's head is there, or will never be."""
        return self.response is not None or self.code is not None or self.failure is not None

    async def wait(self) -> None:
        """Return once ``done``."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def close(self) -> None:
        """Break the exchange off, or let go of what has ended; from any thread, and as often as wanted."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self.close_now)

    def close_now(self) -> None:
        """Close it right now."""
        if self._closed:
            return
        self._closed = True
        self._among.discard(self)
        if self._task is not None:
            self._task.cancel()
        self._release()

    def _release(self) -> None:
        if self._request.body is not None:
            self._request.body.close()
        if self.response is not None:
            self.response.close()


class FutureIncomingResponse(Resource):
    """A ``future-incoming-response``; dropped before its response was taken, it breaks the exchange off."""

    __slots__ = ("_exchange", "_taken")

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange
        self._taken = False

    def ready(self) -> bool:
        """Return whether ``get`` has an answer."""
        return self._exchange.done

    async def wait(self) -> None:
        """Return once ``ready``."""
        await self._exchange.wait()

    def get(self) -> tuple[str, Any] | None:
        """Return None, or a ``result`` of a ``result`` the first time, or an error."""
        if self._taken:
            return ("err", None)
        exchange = self._exchange
        if not exchange.done:
            return None
        self._taken = True
        if exchange.failure is not None:
            raise exchange.failure
        response = exchange.response
        if response is None:
            exchange.close()
            return ("ok", ("err", exchange.code))
        headers = visible(response.headers)
        incoming = IncomingResponse(response.status, headers, response.body, response.trailers, exchange.close)
        return ("ok", ("ok", incoming))

    def drop(self) -> None:
        """Break the exchange off, unless the guest has its response."""
        super().drop()
        if not self._taken:
            self._exchange.close()


def _outbound_request(request: OutgoingRequest, options: RequestOptions | None) -> OutboundRequest:
    case, other = request.method
    method = other if case == "other" and other is not None else case.upper()
    scheme: str | None = None
    if request.scheme is not None:
        scheme = _SCHEMES.get(request.scheme[0])
        if scheme is None:
            raise WitError(("HTTP-protocol-error", None))
    authority = request.authority
    if not authority or "@" in authority:
        raise WitError(("HTTP-request-URI-invalid", None))
    body = request.body
    outbound_request = OutboundRequest(
        method, scheme, authority, request.path_with_query, request.headers, None if body is None else body.pipe
    )
    if options is not None:
        outbound_request.connect_timeout_s = _seconds(options.connect_ns)
        outbound_request.first_byte_timeout_s = _seconds(options.first_byte_ns)
        outbound_request.between_bytes_timeout_s = _seconds(options.between_bytes_ns)
    return outbound_request


def _seconds(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e9


# wasi:http/outgoing-handler


def outgoing_handler_handle(
    guest: Any, request: OutgoingRequest, options: RequestOptions | None
) -> Awaitable[FutureIncomingResponse]:
    """Begin to send *request* and return the future of its response; raises WitError with an error-code."""
    sending: Awaitable[FutureIncomingResponse] = guest.http.send(request, options)
    return sending


# wasi:http/types


def future_incoming_response_subscribe(_guest: Any, self: FutureIncomingResponse) -> Pollable:
    """Return what is ready once ``get`` has an answer; a child of the future."""
    return Pollable(self, self)


def future_incoming_response_get(_guest: Any, self: FutureIncomingResponse) -> tuple[str, Any] | None:
    """Return None until the response's head is there; then it or an error-code, once; later an error."""
    return self.get()


def http_error_code(_guest: Any, err: IoError) -> ErrorCode | None:
    """Return the error-code behind a stream's failed operation, None if that was no matter of HTTP."""
    cause = err.cause
    return cause.code if isinstance(cause, HttpCodeError) else None


FUNCTIONS: Final[Mapping[str, Mapping[str, ComponentFunction]]] = {
    "wasi:http/outgoing-handler": {"handle": ComponentFunction(outgoing_handler_handle, may_suspend=True)},
    "wasi:http/types": {
        "http-error-code": ComponentFunction(http_error_code),
        **fields.TYPES,
        **http_incoming.TYPES,
        **http_outgoing.TYPES,
        "[method]future-incoming-response.subscribe": ComponentFunction(future_incoming_response_subscribe),
        "[method]future-incoming-response.get": ComponentFunction(future_incoming_response_get),
    },
}
