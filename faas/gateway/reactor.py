"""Kind ``reactor``: one msgpack request in, one msgpack response out, a call each; the shortest way to a reply."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import msgpack
from aiohttp import web

from faas.errors import GuestExitError, MalformedResponseError, OutputLimitError
from faas.gateway.call import MAX_LOG_LINE_BYTES, Call, RequestBody
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.streams import EmptyInput, LineOutput
from faas.wasm.memory import MemoryFaultError
from faas.wasm.runtime import Runtime, Template

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SKIPPED = frozenset(
    (
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
        "content-length", "x-request-id", "x-faas-function", "x-faas-version",
    )
)  # fmt: skip


async def serve_reactor(call: Call, runtime: Runtime, template: Template, deadline: float) -> web.StreamResponse:
    """
    Run a reactor for one request and return its response.

    Args: *deadline* is on the event loop's clock, in seconds.
    Raises: InvocationError and its kin; nothing has been sent then.
    """
    request, served = call.request, call.served
    limits = served.deployment.manifest.limits
    body = b""
    if call.with_body and request.body_exists:
        body = await RequestBody(request, limits.max_body_bytes).read_all()
    log = LineOutput(call.log_line, limits.max_log_bytes, MAX_LOG_LINE_BYTES)
    wasi = WasiContext(
        args=[served.name.encode()],
        env=lambda: [f"{key}={value}".encode() for key, value in served.deployment.manifest.env.items()],
        stdin=EmptyInput(),
        stdout=log,  # a reactor answers through its result; what it prints is for its log
        stderr=log,
        bundle=served.bundle,
        tmp_bytes=limits.tmp_bytes,
        clock=call.clock,
    )
    fiber = runtime.fiber(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=limits.cpu_s)
    try:
        await fiber.instantiate(template)
        if template.has_initialize is None:
            template.has_initialize = fiber.has_export(b"_initialize")
        if template.has_initialize:
            await fiber.call(b"_initialize")
        call.started = time.perf_counter()
        message = encode_request(call, body, deadline)
        memory = fiber.own_memory()
        ptr = await fiber.call(b"faas_alloc", len(message), results=1)
        try:
            if ptr == 0:
                raise fiber.memory_limit_error(f"faas_alloc({len(message)}) returned 0")
            memory.write(ptr, message)
            packed = await fiber.call(b"faas_handle", ptr, len(message), results=1)
            at, length = packed >> 32, packed & 0xFFFFFFFF
            if length > limits.max_output_bytes:
                raise OutputLimitError(
                    f"the guest answered {length} bytes, more than {limits.max_output_bytes}; "
                    "answer less, or raise limits.max_output_bytes in function.toml"
                )
            answer = memory.read(at, length)
        except MemoryFaultError as exc:
            raise MalformedResponseError(
                "the guest named a buffer outside its memory; faas_alloc returns a pointer to that many free bytes, "
                "faas_handle (pointer << 32) | length of its answer"
            ) from exc
        return decode_response(call, answer)
    except GuestExit as exc:
        raise GuestExitError(
            f"the guest exited with code {exc.code} instead of answering; a reactor returns from faas_handle",
            exit_code=exc.code,
        ) from exc
    finally:
        call.cpu_ns += fiber.cpu_ns
        fiber.close()
        log.close()


def encode_request(call: Call, body: bytes, deadline: float) -> bytes:
    """Return the request as the guest's SDK decodes it (docs/abi.md)."""
    served = call.served
    message: bytes = msgpack.packb(
        {
            "method": call.method,
            "path": _clean(call.raw_path),
            "query": _clean(call.query),
            "headers": [(name.lower(), _text(value)) for name, value in call.request.headers.items()],
            "params": call.params,
            "route": call.route,
            "function": served.name,
            "version": served.version,
            "request_id": call.request_id,
            "remote_addr": call.request.remote or "",
            "deadline_ms": max(0, int((deadline - asyncio.get_running_loop().time()) * 1000)),
            "body": body,
        }
    )
    return message


def decode_response(call: Call, answer: bytes) -> web.Response:
    """
    Return the HTTP response that the guest's msgpack *answer* describes.

    Raises: MalformedResponseError, naming what is wrong.
    """
    try:
        raw = msgpack.unpackb(answer, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise MalformedResponseError(
            f"the guest's answer is not one msgpack value: {exc or type(exc).__name__}"
        ) from exc
    if not isinstance(raw, dict):
        raise MalformedResponseError(f"the guest's answer is a msgpack {type(raw).__name__}, not a map")
    status = raw.get("status", 200)
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise MalformedResponseError(f"the guest's status {status!r:.40} is not a number from 200 to 599")
    body = raw.get("body", b"")
    if isinstance(body, str):
        body = body.encode()
    if not isinstance(body, bytes):
        raise MalformedResponseError(f"the guest's body is a msgpack {type(body).__name__}, neither bin nor str")
    response = web.Response(status=status, body=body, headers=call.response_headers())
    headers = response.headers
    for name, value in _pairs(raw.get("headers", ())):
        if not isinstance(name, str) or not isinstance(value, str) or not _TOKEN.fullmatch(name):
            raise MalformedResponseError(f"the guest's header {name!r:.40} is not a pair of token and text")
        if _BAD_VALUE.search(value):
            raise MalformedResponseError(f"the guest's header {name!r:.40} has a control character in its value")
        if name.lower() not in _SKIPPED:
            headers.add(name, value)
    return response


def _pairs(headers: Any) -> list[tuple[Any, Any]]:
    if isinstance(headers, dict):
        return list(headers.items())
    if isinstance(headers, (list, tuple)) and all(isinstance(pair, list) and len(pair) == 2 for pair in headers):
        return [(pair[0], pair[1]) for pair in headers]
    raise MalformedResponseError("the guest's headers are neither a map nor an array of [name, value] pairs")


def _text(value: str) -> str | bytes:
    """Return a header value as str, or as bytes when it is not UTF-8 (aiohttp keeps such bytes as surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")
    return value


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
