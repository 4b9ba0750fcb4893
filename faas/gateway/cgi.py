"""
CGI 1.1 without any I/O: meta-variables from a request, a response head from what a guest wrote.

Source: RFC 3875; WAGI for the X_* variables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from faas.errors import MalformedResponseError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
_REMEMBERED_BYTES = 256

_BLANK_LINE = re.compile(rb"\n\r?\n")  # the \r before it is looked for behind: a pattern that begins so is slow
_CR = 0x0D
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_STATUS = re.compile(r"([1-5][0-9]{2})(?: (.*))?")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# RFC 3875 6.3.4: what concerns the connection with the client is the server's to say.
_CONNECTION_HEADERS = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# What says who served the request: a guest can't override it.
_OURS = frozenset(("x-request-id", "x-faas-function", "x-faas-version"))


class ResponseHead(msgspec.Struct, frozen=True):
    """
    The header block of a CGI response; ``local_redirect`` is the path to serve instead, '' if none.

    ``headers`` are those for the client, less those that say what served the request.
    """

    status: int
    reason: str | None
    headers: tuple[tuple[str, str], ...]
    local_redirect: str = ""
    content_length: int | None = None


def split_head(written: bytes | bytearray, start: int = 0) -> tuple[bytes, int] | None:
    """
    Return the header block in *written* and where the body begins; None if its blank line has not come yet.

    Args: *start* is how much of *written* an earlier call has seen in vain.
    Raises: MalformedResponseError when there is none within ``MAX_HEAD_BYTES``.
    """
    if written.startswith((b"\n", b"\r\n")):
        return b"", written.index(b"\n") + 1
    found = _BLANK_LINE.search(written, max(0, start - 3), MAX_HEAD_BYTES)
    if found is not None:
        end = found.start()
        return bytes(written[: end - 1 if written[end - 1] == _CR else end]), found.end()
    if len(written) >= MAX_HEAD_BYTES:
        raise MalformedResponseError(
            f"the guest wrote {MAX_HEAD_BYTES} bytes without a blank line after its headers; "
            "write e.g. 'Content-Type: text/plain', an empty line, then the body"
        )
    return None


def parse_head(block: bytes) -> ResponseHead:
    """
    Return the response head that *block* (without its blank line) holds.

    Raises: MalformedResponseError, naming the line that is wrong.
    """
    # Most functions write the same few bytes each time.
    return _remembered(block) if len(block) <= _REMEMBERED_BYTES else _parse_head(block)


def _parse_head(block: bytes) -> ResponseHead:
    status: tuple[int, str | None] | None = None
    location: str | None = None
    headers: list[tuple[str, str]] = []
    length: int | None = None
    for line in re.split(rb"\r?\n", block) if block else []:
        name_bytes, colon, value_bytes = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name_bytes):
            raise MalformedResponseError(
                f"the guest's response head has the line {_shown(line)}, which is no 'Name: value'; "
                "headers come first, then an empty line, then the body"
            )
        value_bytes = value_bytes.strip(b" \t")
        if _BAD_VALUE.search(value_bytes):
            raise MalformedResponseError(f"the guest's header {_shown(line)} has a control character in its value")
        name = name_bytes.decode("ascii")
        value = value_bytes.decode("utf-8", "replace")
        lower = name.lower()
        if lower == "status":
            status = _status(value, status)
        elif lower == "location":
            if location is not None or not value:
                raise MalformedResponseError("the guest wrote an empty or a second Location header; write one")
            location = value
        elif lower == "content-length":
            if not value.isascii() or not value.isdigit() or (length is not None and length != int(value)):
                raise MalformedResponseError(f"the guest's Content-Length {_shown(value_bytes)} is no byte count")
            length = int(value)
        elif lower not in _CONNECTION_HEADERS:
            headers.append((name, value))
        if len(headers) > MAX_HEADERS:
            raise MalformedResponseError(f"the guest wrote more than {MAX_HEADERS} headers; write fewer")
    if status is None and location is None and not headers and length is None:
        raise MalformedResponseError(
            "the guest wrote no header; a response begins with e.g. 'Content-Type: text/plain' and an empty line"
        )
    if location is not None:
        if location.startswith("/") and not location.startswith("//") and status is None and not headers:
            return ResponseHead(302, None, (), local_redirect=location)
        headers.insert(0, ("Location", location))
        if status is None:
            status = (302, None)
    code, reason = status or (200, None)
    kept = tuple(header for header in headers if header[0].lower() not in _OURS)
    return ResponseHead(code, reason, kept, content_length=length)


_remembered = functools.lru_cache(maxsize=256)(_parse_head)


def _status(value: str, earlier: tuple[int, str | None] | None) -> tuple[int, str | None]:
    found = _STATUS.fullmatch(value)
    if found is None or earlier is not None or int(found[1]) < 200:
        raise MalformedResponseError(
            f"the guest's Status {value[:80]!a} is not one of 200 to 599, or not its first; write e.g. 'Status: 404'"
        )
    return int(found[1]), found[2] or None


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", "replace"))


def meta_variables(
    *,
    method: str,
    raw_path: str,
    query: str,
    script_name: str,
    route: str,
    params: Mapping[str, str],
    headers: Iterable[tuple[str, str]],
    remote_addr: str,
    scheme: str,
    host: str,
    server_port: int,
    protocol: str,
    server_software: str,
    content_length: int | None,
    request_id: str,
    function: str,
    version: int,
    env: Mapping[str, str],
) -> list[bytes]:
    """
    Return a request's environment as ``K=V`` byte strings.

    Args: *raw_path* and *params* are percent-encoded as received; *script_name* is the matched part of the path.
    The manifest's *env* comes first, so that no client header can pose as one of its variables.
    """
    rest = raw_path[len(script_name) :]
    variables = {
        b"GATEWAY_INTERFACE": b"CGI/1.1",
        b"SERVER_SOFTWARE": server_software.encode(),
        b"SERVER_PROTOCOL": protocol.encode(),
        b"SERVER_NAME": _bytes(host.rsplit(":", 1)[0] if not host.endswith("]") else host),
        b"SERVER_PORT": str(server_port).encode(),
        b"REQUEST_METHOD": _bytes(method),
        b"SCRIPT_NAME": unquote_to_bytes(script_name),
        b"PATH_INFO": unquote_to_bytes(rest),
        b"QUERY_STRING": _bytes(query),
        b"REMOTE_ADDR": remote_addr.encode(),
        b"REMOTE_HOST": remote_addr.encode(),
        b"X_MATCHED_ROUTE": route.encode(),
        b"X_RAW_PATH_INFO": _bytes(rest),
        b"X_FULL_URL": _bytes(f"{scheme}://{host}{raw_path}" + (f"?{query}" if query else "")),
        b"FAAS_REQUEST_ID": _bytes(request_id),
        b"FAAS_FUNCTION": function.encode(),
        b"FAAS_VERSION": str(version).encode(),
    }
    if scheme == "https":
        variables[b"HTTPS"] = b"on"
    if content_length is not None:
        variables[b"CONTENT_LENGTH"] = str(content_length).encode()
    for name, value in params.items():
        variables[b"FAAS_PARAM_" + name.upper().encode()] = unquote_to_bytes(value)
    for name, value in headers:
        lower = name.lower()
        if lower == "content-type":
            variables[b"CONTENT_TYPE"] = _bytes(value)
        # An underscore would collide with the hyphen it stands for; 'Proxy' would become the HTTP_PROXY that
        # many HTTP clients obey.
        elif "_" not in lower and lower not in ("content-length", "proxy"):
            key = b"HTTP_" + lower.replace("-", "_").upper().encode("ascii", "replace")
            earlier = variables.get(key)
            joint = b"; " if lower == "cookie" else b", "
            variables[key] = _bytes(value) if earlier is None else earlier + joint + _bytes(value)
    for name, value in env.items():
        variables[name.encode()] = value.encode()
    return [key + b"=" + value.replace(b"\0", b"") for key, value in variables.items()]


def arguments(function: str, query: str) -> list[bytes]:
    """Return argv: the function's name and, for a query without '=', its '+'-separated words (RFC 3875 4.4)."""
    if not query or "=" in query:
        return [function.encode()]
    return [function.encode(), *(unquote_to_bytes(word).replace(b"\0", b"") for word in query.split("+"))]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
