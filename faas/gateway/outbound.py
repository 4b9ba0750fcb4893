"""Where invocations meet the outside: outbound HTTP of ``wasi:http`` guests, in the words of that interface."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from faas.invocation import Deployment
from faas.outbound.client import Caller, Client, Lookup, Response
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
    Failure.OTHER: "internal-error",
}


class Outbound:
    """A worker's way out; lives as long as it, closed by ``aclose``. Thread: the loop's only."""

    def __init__(self, *, lookup: Lookup | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Args: *lookup* and *tls* are there for tests; without them it is the system's resolver and certificates."""
        self._client = Client(lookup=lookup, tls=tls)

    def for_function(
        self, deployment: Deployment, on_log: Callable[[bytes], None], *, deadline: float | None = None
    ) -> FunctionOutbound:
        """
        Return one invocation's way out, which the invocation closes.

        Args: *on_log* gets a line for each request that fails, without its newline; *deadline* is on the loop's clock,
        in seconds, and else ``limits.timeout_s`` from now.
        """
        manifest = deployment.manifest
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + manifest.limits.timeout_s
        entries = manifest.capabilities.outbound
        return FunctionOutbound(self._client.caller(deployment.function, entries, deadline=deadline, log=on_log))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


class FunctionOutbound:
    """One invocation's way out, as ``HttpContext.outbound`` wants it."""

    __slots__ = ("_caller",)

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """
        Send *request* and return its response once the head is there; its body may still be being sent.

        Raises: HttpCodeError.
        """
        try:
            response = await self._caller.send(
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
        return OutboundResponse(
            status=response.status, headers=list(response.headers), body=_Body(response), close=response.close
        )

    def close(self) -> None:
        """End whatever is still in progress; on the loop. Safe to call more than once."""
        self._caller.close()


class _Body:
    """A response's body whose errors are error-codes."""

    __slots__ = ("_body",)

    def __init__(self, response: Response) -> None:
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
