"""Kind ``reactor``: one msgpack request in, one msgpack response out, a call each; the shortest way to a reply."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from faas.errors import GuestExitError, MalformedResponseError, OutputLimitError
from faas.gateway.call import Call, open_body
from faas.gateway.cgi import MAX_HEAD_BYTES, MAX_HEADERS
from faas.gateway.code import Code
from faas.gateway.instance import Instance
from faas.gateway.lane import Reply
from faas.gateway.models import ModelGate
from faas.gateway.services import ServiceGate
from faas.wasi.context import GuestExit
from faas.wasm import calls
from faas.wasm.memory import MemoryFaultError
from faas.wasm.runtime import Runtime

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SKIPPED = frozenset(
    (
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
        "content-length", "x-request-id", "x-faas-function", "x-faas-version",
    )
)  # fmt: skip


async def serve_reactor(
    call: Call, runtime: Runtime, code: Code, models: ModelGate, deadline: float, *, services: ServiceGate
) -> Reply:
    """
    Run a reactor for one request and return its reply.

    Args: *deadline* is on the event loop's clock, in seconds.
    Raises: InvocationError and its kin; nothing has been sent then.
    """
    request, served = call.lane.request, call.served
    limits = served.deployment.manifest.limits
    body = b""
    if call.with_body and request.body_exists:
        body = await (await open_body(call)).read_all()
    pool = served.warm
    ready = None if pool is None else pool.take(code) or await pool.join(call.lane.leave)
    if ready is None:
        instance = Instance(runtime, served.deployment, code, call.clock, call.log_line)
        instance.n_requests = 1
    else:
        instance = ready
    answered = False
    fiber, log = instance.fiber, instance.log
    try:
        if ready is not None:
            call.warm = instance.desc
            log = instance.begin(call.log_line)
        fiber.before_wait = call.lane.leave
        fiber.nn = models.context(call, timeout_s=limits.timeout_s, stdout=log)
        fiber.open_services = partial(services.session, call, deadline)
        message = encode_request(call, body, deadline)
        template = code.template
        # What was slow begins in the pool, and what has a pool is measured between its steps.
        if template.slow or (ready is None and (pool is not None or template.has_initialize is None)):
            if ready is None:
                await instance.start()
            answer = await _answer(call, instance, message)
        else:
            began = time.perf_counter()
            step, value, ready_ns = fiber.exchange(
                template if ready is None else None,
                message,
                limits.max_output_bytes,
                initialize=ready is None and bool(template.has_initialize),
            )
            if step >= calls.ALLOC:
                call.started = began + ready_ns / 1e9
            answer = value if isinstance(value, bytes) else await _answer(call, instance, message, step, value)
        reply = decode_response(call, answer)
        answered = True
        return reply
    except GuestExit as exc:
        raise GuestExitError(
            f"the guest exited with code {exc.code} instead of answering; a reactor returns from faas_handle",
            exit_code=exc.code,
        ) from exc
    finally:
        call.cpu_ns += fiber.cpu_ns
        log.close()
        if pool is None:
            instance.close(soon=call.lane.inside)
        else:
            pool.give_back(instance, answered=answered)


async def _answer(
    call: Call, instance: Instance, message: bytes, step: int = calls.INITIALIZE, value: int | None = 0
) -> bytes:
    """Return the guest's answer to *message*; *step* is what ``Fiber.exchange`` came to, and *value* what of it."""
    fiber = instance.fiber
    max_bytes = call.served.deployment.manifest.limits.max_output_bytes
    if value is None:
        value = await fiber.result(step)
    if step == calls.INSTANTIATE:
        await instance.initialize()
    if not call.started:
        call.started = time.perf_counter()
    try:
        memory = fiber.own_memory()
        if step != calls.HANDLE:
            ptr = value if step == calls.ALLOC else await fiber.call(b"faas_alloc", len(message), results=1)
            if ptr == 0:
                raise fiber.memory_limit_error(f"faas_alloc({len(message)}) returned 0")
            memory.write(ptr, message)
            value = await fiber.call(b"faas_handle", ptr, len(message), results=1)
        at, length = value >> 32, value & 0xFFFFFFFF
        if length > max_bytes:
            raise OutputLimitError(
                f"the guest answered {length} bytes, more than {max_bytes}; "
                "answer less, or raise limits.max_output_bytes in function.toml"
            )
        return memory.read(at, length)
    except MemoryFaultError as exc:
        raise MalformedResponseError(
            "the guest named a buffer outside its memory; faas_alloc returns a pointer to that many free bytes, "
            "faas_handle (pointer << 32) | length of its answer"
        ) from exc


def encode_request(call: Call, body: bytes, deadline: float) -> bytes:
    """Return the request as the guest's SDK decodes it (docs/abi.md)."""
    served, request = call.served, call.lane.request
    headers = call.guest_headers() if call.hidden else request.headers
    left_ms = int((deadline - time.monotonic()) * 1000)
    return _encode(
        {
            "method": call.method,
            "path": _clean(call.raw_path),
            "query": _clean(call.query),
            "headers": (
                list(headers.items())  # as it should be already
                if type(headers) is dict
                else [(name.lower(), _text(value)) for name, value in headers.items()]
            ),
            "params": {name: _clean(value) for name, value in call.params.items()} if call.params else {},
            "route": call.route,
            "function": served.name,
            "version": served.version,
            "request_id": call.request_id,
            "remote_addr": request.remote or "",
            "deadline_ms": left_ms if left_ms > 0 else 0,
            "body": body,
        }
    )


class Answer(msgspec.Struct, frozen=True):
    """What a reactor answers; keys we do not know are skipped."""

    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: (
        Annotated[list[tuple[str, str]], Meta(max_length=MAX_HEADERS)]
        | Annotated[dict[str, str], Meta(max_length=MAX_HEADERS)]
    ) = []
    body: msgspec.Raw = msgspec.Raw(b"\xc4\x00")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode
_decode_str = msgspec.msgpack.Decoder(str).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode


def decode_response(call: Call, answer: bytes) -> Reply:
    """
    Return the reply that the guest's msgpack *answer* describes.

    Decoded by type, so that an answer of another shape is refused at its first wrong value, before it is built.
    Raises: MalformedResponseError, naming what is wrong.
    """
    try:
        decoded = _decode(answer)
        body = _body(decoded.body)
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise MalformedResponseError(
            f"the guest's answer is not a msgpack map of status, headers and body: {exc}; see docs/abi.md"
        ) from exc
    pairs = decoded.headers.items() if isinstance(decoded.headers, dict) else decoded.headers
    headers: list[tuple[str, str]] = []
    n_bytes = 0
    for name, value in pairs:
        n_bytes += len(name) + len(value)
        if not _TOKEN.fullmatch(name) or n_bytes > MAX_HEAD_BYTES:
            raise MalformedResponseError(f"the guest's header {name[:40]!a} is no token, or its headers are too long")
        if _BAD_VALUE.search(value):
            raise MalformedResponseError(f"the guest's header {name[:40]!a} has a control character in its value")
        if name.lower() not in _SKIPPED:
            headers.append((name, value))
    status = decoded.status
    return Reply(status, b"" if status in (204, 304) else body, call.response_headers(), headers)


def _body(raw: msgspec.Raw) -> bytes:
    """Return a body that came as bin or str; raises msgspec.ValidationError for any other type, unbuilt."""
    first = memoryview(raw)[0]
    if 0xA0 <= first <= 0xBF or first in (0xD9, 0xDA, 0xDB):  # the str formats of msgpack
        return _decode_str(raw).encode()
    return _decode_bytes(raw)


def _text(value: str) -> str | bytes:
    """Return a header value as str, or as bytes when it is not UTF-8 (aiohttp keeps such bytes as surrogates)."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")
    return value


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
