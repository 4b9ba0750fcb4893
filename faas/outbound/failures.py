"""How an outbound request can fail, in words of our own; and the gate at which aiohttp's errors become them."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator
from enum import Enum

import aiohttp
from aiohttp import http_exceptions


class Failure(Enum):
    """What went wrong; the value is what the function's log says."""

    DENIED = "denied"
    ADDRESS_PROHIBITED = "address prohibited"
    LIMIT_REACHED = "too many connections"
    METHOD_INVALID = "method invalid"
    URL_INVALID = "URL invalid"
    URL_TOO_LONG = "URL too long"
    REQUEST_HEADERS_INVALID = "request headers invalid"
    REQUEST_HEADERS_TOO_LARGE = "request headers too large"
    REQUEST_BODY_SIZE = "request body is not as long as announced"
    DNS_TIMEOUT = "DNS timeout"
    DNS_ERROR = "DNS error"
    NO_ADDRESS = "name without address"
    UNROUTABLE = "address unroutable"
    REFUSED = "connection refused"
    UNAVAILABLE = "destination unavailable"
    CONNECT_TIMEOUT = "connection timeout"
    TERMINATED = "connection terminated"
    CERTIFICATE = "TLS certificate error"
    TLS_ALERT = "TLS alert"
    TLS_PROTOCOL = "TLS protocol error"
    RESPONSE_TIMEOUT = "response timeout"
    READ_TIMEOUT = "read timeout"
    RESPONSE_HEADERS_TOO_LARGE = "response headers too large"
    RESPONSE_HEADER_TOO_LARGE = "response header too large"
    RESPONSE_INCOMPLETE = "response incomplete"
    RESPONSE_CODING = "response transfer coding"
    PROTOCOL = "no valid HTTP"
    UPGRADE = "upgrade failed"
    LOOP = "too many calls in a row"
    OTHER = "failed"


class OutboundError(Exception):
    """
    An outbound request failed; the guest is told *failure*, its function's log also the *reason*.

    *detail* is what the standard wants said about it: a DNS response code, a TLS alert, a size in bytes.
    """

    def __init__(self, failure: Failure, reason: str, *, detail: str | int | None = None) -> None:
        super().__init__(f"{failure.value}: {reason}")
        self.failure = failure
        self.reason = reason
        self.detail = detail


_BY_ERRNO = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ENETUNREACH: Failure.UNROUTABLE,
    errno.EHOSTUNREACH: Failure.UNROUTABLE,
    errno.EADDRNOTAVAIL: Failure.UNROUTABLE,
    errno.ETIMEDOUT: Failure.CONNECT_TIMEOUT,
    errno.ECONNRESET: Failure.TERMINATED,
    errno.ECONNABORTED: Failure.TERMINATED,
    errno.EPIPE: Failure.TERMINATED,
    errno.EMFILE: Failure.LIMIT_REACHED,
    errno.ENFILE: Failure.LIMIT_REACHED,
}


def from_lookup(exc: OSError, host: str) -> OutboundError:
    """Return what a failed look-up of a name means."""
    if isinstance(exc, socket.gaierror):
        if exc.errno == socket.EAI_NONAME:
            return OutboundError(Failure.DNS_ERROR, f"there is no host {host!r}", detail="NXDOMAIN")
        if exc.errno in (getattr(socket, "EAI_NODATA", None), getattr(socket, "EAI_ADDRFAMILY", None)):
            return OutboundError(Failure.NO_ADDRESS, f"the host {host!r} has no address")
        if exc.errno == socket.EAI_AGAIN:
            return OutboundError(Failure.DNS_ERROR, f"the look-up of {host!r} failed for now", detail="SERVFAIL")
    return OutboundError(Failure.DNS_ERROR, f"the look-up of {host!r} failed: {exc}")


def from_client(exc: Exception) -> OutboundError:
    """Return what an error of aiohttp's client means."""
    causes = list(_causes(exc))
    for cause in causes:
        if isinstance(cause, OutboundError):
            return cause
        if isinstance(cause, aiohttp.ClientError):
            continue  # some of them are errors of ssl too, without what those say
        if isinstance(cause, ssl.SSLCertVerificationError):
            return OutboundError(Failure.CERTIFICATE, cause.verify_message or str(cause))
        if isinstance(cause, ssl.SSLError):
            return _from_tls(cause)
        if isinstance(cause, http_exceptions.LineTooLong):
            return OutboundError(Failure.RESPONSE_HEADER_TOO_LARGE, "a line of the response's head is too long")
        if isinstance(cause, http_exceptions.ContentLengthError):
            return OutboundError(Failure.RESPONSE_INCOMPLETE, "the body is shorter than its Content-Length")
        if isinstance(cause, http_exceptions.TransferEncodingError):
            return OutboundError(Failure.RESPONSE_CODING, "the body ended, or broke off, within a chunk")
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            failure = _BY_ERRNO.get(cause.errno)
            if failure is not None:
                return OutboundError(failure, cause.strerror or str(cause))
    if isinstance(exc, aiohttp.ServerDisconnectedError):
        return OutboundError(Failure.TERMINATED, "the server closed the connection without a response")
    if isinstance(exc, aiohttp.ClientResponseError):
        if "Too many headers" in exc.message:
            return OutboundError(Failure.RESPONSE_HEADERS_TOO_LARGE, "the response has too many headers")
        return OutboundError(Failure.PROTOCOL, "the server did not answer with valid HTTP/1.1")
    if isinstance(exc, aiohttp.ClientPayloadError):
        return OutboundError(Failure.RESPONSE_INCOMPLETE, "the connection ended before the body did")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return OutboundError(Failure.UNAVAILABLE, str(exc.os_error))
    if isinstance(exc, aiohttp.ClientConnectionError):
        return OutboundError(Failure.TERMINATED, "the connection was lost")
    return OutboundError(Failure.OTHER, f"{type(exc).__name__}: {exc}")


def _from_tls(exc: ssl.SSLError) -> OutboundError:
    reason = exc.reason or str(exc)
    if "ALERT" in reason:
        return OutboundError(Failure.TLS_ALERT, reason, detail=reason)
    return OutboundError(Failure.TLS_PROTOCOL, reason)


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Yield *exc* and what it was raised from, outermost first."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        if isinstance(exc, aiohttp.ClientConnectorError):
            yield exc.os_error
        exc = exc.__cause__ or (None if isinstance(exc, asyncio.CancelledError) else exc.__context__)
