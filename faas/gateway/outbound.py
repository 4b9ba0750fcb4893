"""
Where invocations meet the outside: outbound HTTP in the words of ``wasi:http`` for components, of ``faas_v1`` for core
modules. Both pass ``FunctionOutbound.fetch``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from faas.gateway.calls import FetchedResponse, FunctionCalls, function_at
from faas.guest.errno import Errno, GuestError
from faas.guest.ports import GuestRequest, Headers, SecretsPort
from faas.invocation import Deployment
from faas.outbound.client import Caller, Client, Lookup, Response
from faas.outbound.credentials import Credentials
from faas.outbound.exchange import Request
from faas.outbound.failures import Failure, OutboundError
from faas.wasi.p2.outbound_types import ErrorCode, HttpCodeError, OutboundRequest, OutboundResponse

_CASES = {
    Failure.DENIED: "HTTP-request-denied",
    Failure.ADDRESS_PROHIBITED: "destination-IP-prohibited",
    Failure.LIMIT_REACHED: "connection-limit-reached",
    Failure.METHOD_INVALID: "HTTP-request-method-invalid",
    Failure.URL_INVALID: "HTTP-request-URI-invalid",
    Failure.URL_TOO_LONG: "HTTP-request-URI-too-long",
    Failure.REQUEST_HEADERS_INVALID: "HTTP-protocol-error",
    Failure.REQUEST_HEADERS_TOO_LARGE: "HTTP-request-header-section-size",
    Failure.REQUEST_BODY_SIZE: "HTTP-request-body-size",
    Failure.DNS_TIMEOUT: "DNS-timeout",
    Failure.DNS_ERROR: "DNS-error",
    Failure.NO_ADDRESS: "destination-not-found",
    Failure.UNROUTABLE: "destination-IP-unroutable",
    Failure.REFUSED: "connection-refused",
    Failure.UNAVAILABLE: "destination-unavailable",
    Failure.CONNECT_TIMEOUT: "connection-timeout",
    Failure.TERMINATED: "connection-terminated",
    Failure.CERTIFICATE: "TLS-certificate-error",
    Failure.TLS_ALERT: "TLS-alert-received",
    Failure.TLS_PROTOCOL: "TLS-protocol-error",
    Failure.RESPONSE_TIMEOUT: "HTTP-response-timeout",
    Failure.READ_TIMEOUT: "connection-read-timeout",
    Failure.RESPONSE_HEADERS_TOO_LARGE: "HTTP-response-header-section-size",
    Failure.RESPONSE_HEADER_TOO_LARGE: "HTTP-response-header-size",
    Failure.RESPONSE_INCOMPLETE: "HTTP-response-incomplete",
    Failure.RESPONSE_CODING: "HTTP-response-transfer-coding",
    Failure.PROTOCOL: "HTTP-protocol-error",
    Failure.UPGRADE: "HTTP-upgrade-failed",
    Failure.LOOP: "loop-detected",
    Failure.OTHER: "internal-error",
}

_ERRNOS = {
    Failure.DENIED: Errno.DENIED,
    Failure.ADDRESS_PROHIBITED: Errno.DENIED,
    Failure.LIMIT_REACHED: Errno.LIMIT,
    Failure.LOOP: Errno.LIMIT,
    Failure.NO_ADDRESS: Errno.NOT_FOUND,
    Failure.METHOD_INVALID: Errno.INVALID,
    Failure.URL_INVALID: Errno.INVALID,
    Failure.REQUEST_HEADERS_INVALID: Errno.INVALID,
    Failure.REQUEST_BODY_SIZE: Errno.INVALID,
    Failure.URL_TOO_LONG: Errno.TOO_LARGE,
    Failure.REQUEST_HEADERS_TOO_LARGE: Errno.TOO_LARGE,
    Failure.DNS_TIMEOUT: Errno.TIMEOUT,
    Failure.CONNECT_TIMEOUT: Errno.TIMEOUT,
    Failure.RESPONSE_TIMEOUT: Errno.TIMEOUT,
    Failure.READ_TIMEOUT: Errno.TIMEOUT,
}
"""What a core module is told; every other failure is ``FAILED``."""
_UPLOAD_BYTES = 64 * 1024


class Outbound:
    """A worker's way out; lives as long as it, closed by ``aclose``. Thread: the loop's only."""

    def __init__(self, *, lookup: Lookup | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Args: *lookup* and *tls* are there for tests; without them it is the system's resolver and certificates."""
        self._client = Client(lookup=lookup, tls=tls)
        self.secrets: SecretsPort | None = None
        """Where the credentials of manifests come from; without it none is set."""

    def for_function(
        self,
        deployment: Deployment,
        on_log: Callable[[bytes], None],
        *,
        deadline: float | None = None,
        calls: FunctionCalls | None = None,
    ) -> FunctionOutbound:
        """
        Return one invocation's way out, which the invocation closes.

        Args: *on_log* gets a line for each request that fails, without its newline; *deadline* is on the loop's clock,
        in seconds, and else ``limits.timeout_s`` from now; *calls* is who takes requests to ``NAME.faas.internal``.
        """
        manifest = deployment.manifest
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + manifest.limits.timeout_s
        entries = manifest.capabilities.outbound
        credentials = manifest.capabilities.credentials
        return FunctionOutbound(
            self._client.caller(
                deployment.function,
                entries,
                deadline=deadline,
                log=on_log,
                credentials=Credentials(deployment.function, credentials, self._secret) if credentials else None,
            ),
            calls,
        )

    def _secret(self, function: str, name: str) -> str | None:
        return None if self.secrets is None else self.secrets.get(function, name)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


class FunctionOutbound:
    """One invocation's way out, as ``HttpContext.outbound`` wants it; core modules have ``GuestOutbound``."""

    __slots__ = ("_caller", "_calls")

    def __init__(self, caller: Caller, calls: FunctionCalls | None = None) -> None:
        self._caller = caller
        self._calls = calls

    async def fetch(self, request: Request) -> Response | FetchedResponse:
        """
        Send what either kind of guest asks for; what goes to ``NAME.faas.internal`` is a call, and never on a socket.

        Raises: OutboundError.
        """
        try:
            callee = function_at(request.authority)
        except OutboundError as exc:
            raise self._refused(request, exc) from None
        if callee is None:
            return await self._caller.send(request)
        if request.scheme != "http":
            error = OutboundError(Failure.URL_INVALID, "there is no TLS between functions; write http://")
            raise self._refused(request, error)
        if self._calls is None:
            error = OutboundError(
                Failure.DENIED, "the function may call no other; name those it may in [capabilities] calls"
            )
            raise self._refused(request, error)
        return await self._calls.fetch(*callee, request)

    def _refused(self, request: Request, error: OutboundError) -> OutboundError:
        """Return *error*, which the log has now."""
        if request.body is not None:
            request.body.close()
        self._caller.report(request.method, f"{request.scheme or 'https'}://{request.authority}", error)
        return error

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """
        Send *request* and return its response once the head is there; its body may still be being sent.

        Raises: HttpCodeError.
        """
        try:
            response = await self.fetch(
                Request(
                    method=request.method,
                    scheme=request.scheme,
                    authority=request.authority,
                    target=request.path_with_query,
                    headers=request.headers,
                    body=request.body,
                    connect_timeout_s=request.connect_timeout_s,
                    first_byte_timeout_s=request.first_byte_timeout_s,
                    between_bytes_timeout_s=request.between_bytes_timeout_s,
                )
            )
        except OutboundError as exc:
            raise HttpCodeError(error_code(exc)) from exc
        made = OutboundResponse(
            status=response.status, headers=list(response.headers), body=_Body(response), close=response.close
        )
        if isinstance(response, FetchedResponse):
            made.trailers = response.trailers
        return made

    def close(self) -> None:
        """End whatever is still in progress; on the loop. Safe to call more than once."""
        self._caller.close()
        if self._calls is not None:
            self._calls.close()


class _Body:
    """A response's body whose errors are error-codes."""

    __slots__ = ("_body",)

    def __init__(self, response: Response | FetchedResponse) -> None:
        self._body = response.body

    def read_nowait(self, n: int) -> bytes | None:
        """Raises: HttpCodeError."""
        try:
            return self._body.read_nowait(n)
        except OutboundError as exc:
            raise HttpCodeError(error_code(exc)) from exc

    async def wait_readable(self) -> None:
        """Raises: HttpCodeError."""
        try:
            await self._body.wait_readable()
        except OutboundError as exc:
            raise HttpCodeError(error_code(exc)) from exc


class GuestOutbound:
    """One invocation's way out, as ``faas.guest`` wants it."""

    __slots__ = ("_outbound",)

    def __init__(self, outbound: FunctionOutbound) -> None:
        self._outbound = outbound

    async def send(self, request: GuestRequest) -> GuestReply:
        """Raises: GuestError."""
        scheme, separator, rest = request.target.partition("://")
        if not separator:
            raise GuestError(Errno.INVALID, "the `url` of a request begins with https:// or http://")
        at = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
        headers = [header for header in request.headers if header[0].lower() != "content-length"]
        body = None
        if request.body:
            headers.append(("content-length", str(len(request.body)).encode()))
            body = _WholeBody(request.body)
        try:
            response = await self._outbound.fetch(
                Request(
                    method=request.method,
                    scheme=scheme,
                    authority=rest[:at],
                    target=rest[at:],
                    headers=headers,
                    body=body,
                    connect_timeout_s=request.timeout_s,
                    first_byte_timeout_s=request.timeout_s,
                    between_bytes_timeout_s=request.timeout_s,
                )
            )
        except OutboundError as exc:
            raise guest_error(exc) from exc
        return GuestReply(response)

    def close(self) -> None:
        """End whatever is still in progress; on the loop. Safe to call more than once."""
        self._outbound.close()


class GuestReply:
    """A response as ``faas.guest`` wants it; itself the body of it."""

    __slots__ = ("_response",)

    def __init__(self, response: Response | FetchedResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        """The status."""
        return self._response.status

    @property
    def headers(self) -> Headers:
        """The headers."""
        return self._response.headers

    @property
    def body(self) -> GuestReply:
        """The body, whose errors are errnos."""
        return self

    def read_nowait(self, n: int) -> bytes | None:
        """Raises: GuestError."""
        try:
            return self._response.body.read_nowait(n)
        except OutboundError as exc:
            raise guest_error(exc) from exc

    async def wait_readable(self) -> None:
        """Raises: GuestError."""
        try:
            await self._response.body.wait_readable()
        except OutboundError as exc:
            raise guest_error(exc) from exc

    def close(self) -> None:
        """End it. Safe to call more than once."""
        self._response.close()


class _WholeBody:
    """A request's body that is there already."""

    __slots__ = ("_left",)

    def __init__(self, content: bytes) -> None:
        self._left = memoryview(content)

    async def next_chunk(self) -> bytes:
        """Return the next bytes."""
        chunk, self._left = self._left[:_UPLOAD_BYTES], self._left[_UPLOAD_BYTES:]
        return bytes(chunk)

    def close(self) -> None:
        """Take no more."""
        self._left = memoryview(b"")


def guest_error(error: OutboundError) -> GuestError:
    """Return what a core module is told of *error*, without a reason: ``Caller.report`` has logged it."""
    return GuestError(_ERRNOS.get(error.failure, Errno.FAILED))


def error_code(error: OutboundError) -> ErrorCode:
    """
    Return *error* as the ``error-code`` of ``wasi:http/types``.

    Source: wasi:http 0.2.12 ``variant error-code``, and RFC 9209 section 2.3 for what the cases mean.
    """
    failure, detail = error.failure, error.detail
    case = _CASES[failure]
    if failure is Failure.DNS_ERROR:
        return case, (detail, None)
    if failure is Failure.TLS_ALERT:
        return case, (None, detail)
    if failure is Failure.RESPONSE_HEADER_TOO_LARGE:
        return case, (None, None)
    if failure in (Failure.REQUEST_BODY_SIZE, Failure.REQUEST_HEADERS_TOO_LARGE, Failure.RESPONSE_HEADERS_TOO_LARGE):
        return case, detail
    if failure is Failure.OTHER:
        return case, error.reason
    return case, None
