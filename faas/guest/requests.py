"""The msgpack maps of ``faas_v1``: requests that guests make, heads and pages that they get; pure, bounded, typed."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from faas.guest.errno import Errno, GuestError
from faas.guest.ports import GuestRequest, GuestResponse, JobOptions, KeyPage

MAX_HEADERS: Final = 200
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's headers, names and values together."""
MAX_TARGET_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_REQUEST_BYTES: Final = MAX_BODY_BYTES + 256 * 1024
"""Of the whole map."""

_NO_BODY: Final = msgspec.Raw(b"\xc4\x00")
_Milliseconds = Annotated[int, Meta(ge=0, le=30 * 86_400_000)]
_Header = tuple[Annotated[str, Meta(max_length=256)], msgspec.Raw]


class Sent(msgspec.Struct, frozen=True):
    """A request as a guest writes it down; keys that we do not know are skipped."""

    method: Annotated[str, Meta(max_length=64)] = "GET"
    url: str = ""
    path: str = ""
    query: str = ""
    headers: (
        Annotated[list[_Header], Meta(max_length=MAX_HEADERS)]
        | Annotated[dict[str, msgspec.Raw], Meta(max_length=MAX_HEADERS)]
    ) = []
    body: msgspec.Raw = _NO_BODY
    timeout_ms: _Milliseconds | None = None
    function: Annotated[str, Meta(max_length=128)] = ""
    qualifier: Annotated[str, Meta(max_length=128)] = ""
    delay_ms: _Milliseconds = 0
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    max_age_ms: _Milliseconds | None = None
    idempotency_key: Annotated[str, Meta(max_length=256)] = ""


_decode = msgspec.msgpack.Decoder(Sent).decode
_decode_str = msgspec.msgpack.Decoder(str).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_encode = msgspec.msgpack.Encoder().encode


def decode(encoded: bytes) -> Sent:
    """
    Return the request that *encoded* is, wrong values refused before they are built.

    Raises: GuestError (invalid).
    """
    try:
        return _decode(encoded)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise GuestError(Errno.INVALID, f"the request is not the msgpack map of docs/abi.md: {exc}") from exc


def http_request(sent: Sent) -> GuestRequest:
    """Return *sent* as a request to a URL. Raises: GuestError."""
    if not sent.url:
        raise GuestError(Errno.INVALID, "the request has no `url`")
    return _request(sent, sent.url)


def call_request(sent: Sent) -> GuestRequest:
    """Return *sent* as a request to a function, which it has to name. Raises: GuestError."""
    if not sent.function:
        raise GuestError(Errno.INVALID, "the request names no `function`")
    return _request(sent, f"{sent.path}?{sent.query}" if sent.query else sent.path)


def job_options(sent: Sent) -> JobOptions:
    """Return what *sent* says about how a job is run."""
    return JobOptions(
        delay_s=sent.delay_ms / 1000,
        max_attempts=sent.max_attempts,
        max_age_s=None if sent.max_age_ms is None else sent.max_age_ms / 1000,
        idempotency_key=sent.idempotency_key,
    )


def _request(sent: Sent, target: str) -> GuestRequest:
    if len(target.encode()) > MAX_TARGET_BYTES:
        raise GuestError(Errno.TOO_LARGE, f"URL, or path and query, are over {MAX_TARGET_BYTES} bytes")
    pairs = sent.headers.items() if isinstance(sent.headers, dict) else sent.headers
    try:
        headers = [(name, _bytes(value)) for name, value in pairs]
        body = _bytes(sent.body)
    except (msgspec.DecodeError, ValueError) as exc:
        raise GuestError(Errno.INVALID, f"a header's value, or the body, is neither str nor bin: {exc}") from exc
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise GuestError(Errno.TOO_LARGE, f"the headers are over {MAX_HEAD_BYTES} bytes")
    if len(body) > MAX_BODY_BYTES:
        raise GuestError(Errno.TOO_LARGE, f"the body is over {MAX_BODY_BYTES} bytes")
    timeout_s = None if sent.timeout_ms is None else sent.timeout_ms / 1000
    return GuestRequest(sent.method, target, headers, body, timeout_s)


def encode_head(response: GuestResponse) -> bytes:
    """Return the map of a response's head."""
    return _encode({"status": response.status, "headers": [(name, _text(value)) for name, value in response.headers]})


def encode_page(page: KeyPage) -> bytes:
    """Return the map of a page of keys."""
    return _encode({"keys": list(page.keys), "cursor": page.cursor})


def _bytes(raw: msgspec.Raw) -> bytes:
    """Return what came as bin or str; raises msgspec.ValidationError for any other type, unbuilt."""
    first = memoryview(raw)[0]
    if 0xA0 <= first <= 0xBF or first in (0xD9, 0xDA, 0xDB):  # the str formats of msgpack
        return _decode_str(raw).encode()
    return _decode_bytes(raw)


def _text(value: bytes) -> str | bytes:
    """As in a reactor's request: text where it is UTF-8, else bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
