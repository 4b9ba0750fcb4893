"""What a guest's HTTP exchange is made of at the edge of the host: heads, bodies and error codes of wasi:http."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from faas.wasi.p2.poll import StreamFailedError
from faas.wasi.streams import InputStream

ErrorCode = tuple[str, Any]
"""A ``wasi:http`` error-code: its case as in WIT, such as ``("HTTP-request-denied", None)``, and its payload."""
HeaderList = list[tuple[str, bytes]]
"""Headers or trailers in their order; names as the guest wrote them."""


class HttpCodeError(StreamFailedError):
    """An exchange failed with *code*; the guest sees it as an error-code, or as a stream's failed last operation."""

    def __init__(self, code: ErrorCode) -> None:
        case, payload = code
        super().__init__(case if payload is None else f"{case}: {payload}")
        self.code = code


@dataclass(slots=True)
class ResponseHead:
    """What a guest answers before its body."""

    status: int
    headers: HeaderList
    body_taken: bool = True
    """False: the guest never asked for the body, so there is none, and ``on_finish`` comes at once."""


class BodySource(Protocol):
    """
    The body of an outbound request as the guest writes it; it holds the guest back when nobody takes it.

    Thread: the loop.
    """

    async def next_chunk(self) -> bytes:
        """
        Return the next bytes once there are some, or ``b""`` at the end.

        Raises: HttpCodeError if the guest gave the body up: the request must be broken off, not ended.
        """

    def trailers(self) -> HeaderList | None:
        """Return what the guest sent behind the body; valid at its end."""

    def close(self) -> None:
        """Take no more: what the guest writes from now on fails as ``closed``."""


@dataclass(slots=True)
class OutboundRequest:
    """A request that a guest makes; method, scheme, authority and path are as valid as WIT asks for."""

    method: str
    """``GET``, ``HEAD``, … or what the guest named otherwise."""
    scheme: str | None
    """``http``, ``https``, another, or None if the guest named none."""
    authority: str | None
    """Host and maybe a port."""
    path_with_query: str | None
    headers: HeaderList
    body: BodySource | None = None
    """None: the guest never asked for the body, so there is none."""
    connect_timeout_s: float | None = None
    first_byte_timeout_s: float | None = None
    between_bytes_timeout_s: float | None = None


@dataclass(slots=True)
class OutboundResponse:
    """
    The response to an outbound request, as soon as its head is there.

    ``body`` raises HttpCodeError from ``read_nowait`` or ``wait_readable`` when the exchange fails. ``trailers`` is
    called at the body's end. ``close`` is called on the loop exactly once, also when all was read: the connection may
    be used again, or has to be closed if the body is not at its end.
    """

    status: int
    headers: HeaderList
    body: InputStream
    trailers: Callable[[], HeaderList | None] = field(default=lambda: None)
    close: Callable[[], None] = field(default=lambda: None)


class Outbound(Protocol):
    """Who makes a guest's requests."""

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """
        Send *request* and return its response once the head is there; its body may still be being sent.

        Cancelled when the guest drops the future, or its invocation ends. Raises: HttpCodeError.
        """
