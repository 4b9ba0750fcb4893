"""Requests that functions make and the responses they get, checked and without I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from faas.destinations import DEFAULT_PORTS, parse_host, split_authority
from faas.outbound.failures import Failure, OutboundError

Headers = Sequence[tuple[str, bytes]]

MAX_TARGET_BYTES = 16 * 1024
MAX_HEADERS_BYTES = 128 * 1024
"""Of a request's headers, and of a response's: names and values together."""

HOP_BY_HOP = frozenset(
    (
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_OURS = HOP_BY_HOP | {"host", "expect", "content-length"}
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(r"/[!\"$-~]*")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]{1,19}")


class Body(Protocol):
    """A request's body as it is made; it should hold its maker back while nobody takes it. Thread: the loop."""

    async def next_chunk(self) -> bytes:
        """Return the next bytes once there are some, ``b""`` at the end; any error breaks the request off."""

    def close(self) -> None:
        """Take no more. May be called more than once."""


@dataclass(slots=True)
class Request:
    """
    A request as a guest made it, not checked yet; timeouts in seconds.

    ``scheme`` None means https. ``first_byte_timeout_s`` is the time from the connection to the response's head,
    ``between_bytes_timeout_s`` how long a response's body may pause while somebody waits for it.
    """

    method: str
    scheme: str | None
    authority: str | None
    target: str | None
    headers: Headers
    body: Body | None = None
    connect_timeout_s: float | None = None
    first_byte_timeout_s: float | None = None
    between_bytes_timeout_s: float | None = None


class Outgoing(NamedTuple):
    """A checked request: where it goes, and what of it is sent."""

    method: str
    scheme: str
    host: str
    port: int
    target: str
    headers: list[tuple[str, str]]
    content_length: int | None

    @property
    def origin(self) -> str:
        """``scheme://host:port``: what may be logged of its URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, without a port that goes without saying; so the Host header is as clients write it."""
        origin = self.origin
        if self.port == DEFAULT_PORTS[self.scheme]:
            origin = origin.rpartition(":")[0]
        return origin + self.target


def check(request: Request) -> Outgoing:
    """
    Return what of *request* is sent, without what concerns only one connection.

    Raises: OutboundError.
    """
    method = request.method.upper()
    if not _TOKEN.fullmatch(method) or len(method) > 64:
        raise OutboundError(Failure.METHOD_INVALID, f"{request.method[:64]!r} is no method")
    if method == "CONNECT":
        raise OutboundError(Failure.METHOD_INVALID, "CONNECT makes tunnels, which no function gets")
    scheme = (request.scheme or "https").lower()
    if scheme not in DEFAULT_PORTS:
        raise OutboundError(Failure.URL_INVALID, f"the scheme {scheme[:64]!r} is neither http nor https")
    try:
        host, port = split_authority(request.authority or "")
        host = parse_host(host)
    except ValueError as exc:
        raise OutboundError(Failure.URL_INVALID, str(exc)) from exc
    target = request.target or "/"
    if target.startswith("?"):
        target = "/" + target
    if len(target) > MAX_TARGET_BYTES:
        raise OutboundError(Failure.URL_TOO_LONG, f"path and query are over {MAX_TARGET_BYTES} bytes")
    if not _TARGET.fullmatch(target):
        raise OutboundError(
            Failure.URL_INVALID, "path and query must begin with '/' and hold no '#', spaces or letters beyond ASCII"
        )
    headers, content_length = _request_headers(request.headers)
    if request.body is None and content_length:
        raise OutboundError(
            Failure.REQUEST_BODY_SIZE, f"Content-Length is {content_length} and there is no body", detail=0
        )
    return Outgoing(method, scheme, host, port or DEFAULT_PORTS[scheme], target, headers, content_length)


def valid_value(value: str) -> bool:
    """Whether *value* may be sent as a header's."""
    return _VALUE.fullmatch(value.encode()) is not None


def end_to_end(headers: Headers) -> list[tuple[str, bytes]]:
    """Return *headers* without those of one connection, also those that ``Connection`` names."""
    dropped = _dropped(headers, HOP_BY_HOP)
    return [header for header in headers if header[0].lower() not in dropped]


def _request_headers(headers: Headers) -> tuple[list[tuple[str, str]], int | None]:
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADERS_BYTES:
        raise OutboundError(
            Failure.REQUEST_HEADERS_TOO_LARGE, f"over {MAX_HEADERS_BYTES} bytes", detail=MAX_HEADERS_BYTES
        )
    dropped = _dropped(headers, _OURS)
    sent: list[tuple[str, str]] = []
    spelling: dict[str, str] = {}  # aiohttp takes two spellings of one name for two names, and the last one wins
    lengths: set[bytes] = set()
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise OutboundError(Failure.REQUEST_HEADERS_INVALID, f"{name[:64]!r} is not a valid header")
        lower = name.lower()
        if lower == "content-length":
            lengths.add(value)
        elif lower not in dropped and not lower.startswith("x-faas-"):
            try:
                sent.append((spelling.setdefault(lower, name), value.decode()))
            except UnicodeDecodeError as exc:
                raise OutboundError(Failure.REQUEST_HEADERS_INVALID, f"the header {name!r} is not UTF-8") from exc
    if len(lengths) > 1 or not all(_DIGITS.fullmatch(value) for value in lengths):
        raise OutboundError(Failure.REQUEST_HEADERS_INVALID, "Content-Length is not one number")
    return sent, int(lengths.pop()) if lengths else None


def _dropped(headers: Headers, always: frozenset[str]) -> frozenset[str]:
    named = [
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.decode("latin-1").split(",")
    ]
    return always.union(named) if named else always
