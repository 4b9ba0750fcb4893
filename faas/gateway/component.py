"""Kind ``http``: a component that exports ``wasi:http/incoming-handler``; its answer is streamed while it runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aiohttp import web

from faas.errors import FaasError, GuestExitError, MalformedResponseError
from faas.gateway.call import AnyBody, Call, Output, begin_reply, break_off, is_bodyless, open_body
from faas.gateway.code import Code
from faas.gateway.command import cut_off
from faas.gateway.inmemory import Exchange
from faas.gateway.instance import MAX_LOG_LINE_BYTES
from faas.gateway.lane import Answer, Reply, Stream
from faas.gateway.models import ModelGate
from faas.gateway.outbound import FunctionOutbound
from faas.gateway.services import ServiceGate
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.p2.http import HttpContext
from faas.wasi.p2.http_bodies import ResponseBody
from faas.wasi.p2.http_incoming import IncomingRequest
from faas.wasi.p2.http_outgoing import ResponseOutparam
from faas.wasi.p2.outbound_types import ErrorCode, HeaderList, OutboundRequest, OutboundResponse, ResponseHead
from faas.wasi.streams import EmptyInput, LineOutput, OutputStream
from faas.wasm.components import ComponentTemplate
from faas.wasm.runtime import Runtime

_OURS = frozenset(("x-request-id", "x-faas-function", "x-faas-version", "server-timing", "server"))
_NO_INPUT = EmptyInput()


class _WayOut:
    """An invocation's outbound HTTP, made at its first request."""

    __slots__ = ("_call", "_deadline", "_made", "_services")

    def __init__(self, call: Call, services: ServiceGate, deadline: float) -> None:
        self._call = call
        self._services = services
        self._deadline = deadline
        self._made: FunctionOutbound | None = None

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """As ``Outbound`` of the context; raises HttpCodeError."""
        if self._made is None:
            self._made, _ = self._services.way_out(self._call, self._deadline)
        return await self._made.send(request)

    def close(self) -> None:
        """End what is in progress."""
        if self._made is not None:
            self._made.close()


class _Exchange(HttpContext):
    """
    One request's answer: buffered while the guest runs inline, streamed as soon as it yields.

    Thread: what the guest calls from wherever it runs, ``pause`` and ``finish`` on the loop, between two slices.
    """

    def __init__(self, call: Call, body: AnyBody | None, outbound: _WayOut) -> None:
        limits = call.served.deployment.manifest.limits
        super().__init__(limits.max_output_bytes, outbound)
        self._call = call
        self._body = body
        self._output = Output(limits.max_output_bytes)
        self._head: ResponseHead | None = None
        self._headers: list[tuple[str, str]] = []
        self._length: int | None = None
        self._error: ErrorCode | None = None
        self._trailers: HeaderList | None = None
        self._finished = False
        self._aborted = False
        self._ended = False
        self._sent = False
        self.stream: Stream | None = None

    # --- what the guest's calls come to -----------------------------------------------------------------------------

    def on_response(self, head: ResponseHead) -> OutputStream:
        """
        Keep the head until the guest yields or is done; its body goes to what this returns.

        Raises: MalformedResponseError for an interim status: a client waits for another response behind that one.
        """
        if head.status < 200:
            raise MalformedResponseError(
                f"the guest answered with status {head.status}, which says that its response is still to come; set 200"
                " or more"
            )
        self._head = head
        for name, value in head.headers:
            lower = name.lower()
            if lower == "content-length":
                self._length = int(value)
            elif lower not in _OURS:
                self._headers.append((name, value.decode("utf-8", "replace")))
        if not head.body_taken and not is_bodyless(self._call, head.status):
            self._length = 0  # whatever was announced: a client would wait for it
        return self._output

    def on_error(self, code: ErrorCode) -> None:
        """Keep the error-code that the guest answered with instead of a response."""
        self._error = code

    def on_trailers(self, trailers: HeaderList) -> None:
        """Keep the trailers, which come before ``on_finish``."""
        self._trailers = trailers

    def on_finish(self) -> None:
        """The body is whole."""
        self._finished = True

    def on_abort(self) -> None:
        """The body will never be whole."""
        self._aborted = True

    # --- what the gateway does with it ------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Send what the guest has answered so far; awaited whenever it yields or waits."""
        head = self._head
        if head is None or self._aborted:
            return
        if self.stream is None:
            self.stream = await begin_reply(self._call, self._body, head.status, self._headers, length=self._length)
        if self._output.pending_bytes:
            await self._send(head, self._output.take())
        if self._finished:
            await self._end(self.stream)

    async def _send(self, head: ResponseHead, body: bytes) -> None:
        assert self.stream is not None
        if is_bodyless(self._call, head.status):
            return
        await self.stream.write(body)

    async def _end(self, stream: Stream) -> None:
        """End the reply now, though the guest may run on."""
        if self._ended:
            return
        self._ended = True
        trailers, self._trailers = self._trailers, None
        if isinstance(stream, Exchange):
            stream.trailers = trailers
            await stream.write_eof()
            self._sent = True
            return
        assert isinstance(stream, web.StreamResponse)
        writer: Any = stream._payload_writer
        # aiohttp writes none; where its next version has other parts, they are left out.
        if trailers and stream.chunked and all(hasattr(writer, name) for name in ("_write", "_eof", "drain")):
            lines = [name.encode() + b": " + value + b"\r\n" for name, value in trailers]
            writer._write(b"0\r\n" + b"".join(lines) + b"\r\n")
            writer._eof = True
            stream._eof_sent = True
            await writer.drain()
        else:
            await stream.write_eof()
        self._sent = True

    async def finish(self) -> Answer:
        """
        Return the answer of a guest that ended well; a streamed one lacks at most its end.

        Raises: MalformedResponseError.
        """
        head = self._head
        if head is None:
            if self._error is not None:
                raise MalformedResponseError(
                    f"the guest answered with the error-code {_shown(self._error)} instead of a response"
                )
            raise MalformedResponseError(
                "the guest returned without a response; call response-outparam.set before handle returns"
            )
        if self._aborted or not self._finished:
            raise MalformedResponseError(
                "the guest left its response's body unfinished; call outgoing-body.finish after the last write, with"
                " as many bytes as its content-length says"
            )
        if self.stream is not None or self._trailers:  # trailers follow chunks only
            await self.pause()
            assert self.stream is not None
            return self.stream
        body = self._output.take()
        status = head.status
        headers = self._headers
        if self._length is not None and not body and status != 204 and is_bodyless(self._call, status):
            headers.append(("Content-Length", str(self._length)))
        return Reply(status, b"" if status in (204, 304) else body, self._call.response_headers(), headers)

    @property
    def is_sent(self) -> bool:
        """Whether all of it is on its way to the client."""
        return self._sent

    @property
    def is_whole(self) -> bool:
        """Whether the guest has answered all it will, whatever it does next."""
        return self._finished and self._head is not None


async def serve_component(
    call: Call,
    runtime: Runtime,
    code: Code,
    models: ModelGate,
    services: ServiceGate,
    *,
    deadline: float,
) -> Answer:
    """
    Run a component for one request and return its answer, prepared already if it was streamed.

    Raises: InvocationError and its kin while nothing was sent; ClientGoneError once the reply had to be cut off.
    """
    request, served = call.request, call.served
    template = code.template
    assert isinstance(template, ComponentTemplate)
    manifest = served.deployment.manifest
    limits = manifest.limits
    body = await open_body(call) if call.with_body and request.body_exists else None
    way_out = _WayOut(call, services, deadline)
    exchange = _Exchange(call, body, way_out)
    log = LineOutput(call.log_line, limits.max_log_bytes, MAX_LOG_LINE_BYTES)
    wasi = WasiContext(
        args=(),
        env=lambda: [f"{key}={value}".encode() for key, value in manifest.env.items()],
        stdin=_NO_INPUT,
        stdout=log,
        stderr=log,
        bundle=code.bundle,
        tmp_bytes=limits.tmp_bytes,
        clock=call.clock,
    )
    fiber = runtime.component_fiber(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=limits.cpu_s)
    fiber.http = exchange
    fiber.on_pause = exchange.pause
    fiber.before_wait = call.lane.leave
    fiber.nn = models.context(call, timeout_s=limits.timeout_s, stdout=log)
    fiber.granted = services.granted(call)
    incoming = IncomingRequest(
        call.method,
        request.scheme,
        _text(request.host),
        _text(f"{call.raw_path}?{call.query}" if call.query else call.raw_path),
        lambda: [
            (name.lower(), value.encode("utf-8", "surrogateescape")) for name, value in call.guest_headers().items()
        ],
        body,
    )
    try:
        await fiber.instantiate(template)
        call.started = time.perf_counter()
        linker = template.linker
        try:
            await fiber.call_export(
                template.handle,
                b"handle",
                ((linker.request, incoming), (linker.outparam, ResponseOutparam())),
            )
            exchange.returned = True
            for left in fiber.held():
                if isinstance(left, ResponseBody):
                    left.children = 0  # its stream, which the guest left as well
                    left.drop()
        except GuestExit as exc:
            if not exchange.is_whole:
                raise GuestExitError(
                    f"the guest exited with code {exc.code} before it had answered; "
                    f"'faas logs {served.name}' has what it wrote to stderr",
                    exit_code=exc.code,
                ) from exc
        except FaasError as exc:
            if not exchange.is_whole:
                raise
            # The client has, or gets, all of it: what went wrong behind it is the log's.
            call.log_line(f"after its response: {exc.message}".encode())
        return await exchange.finish()
    except FaasError as failure:
        if exchange.stream is not None:
            raise cut_off(call, failure) from failure
        raise
    except asyncio.CancelledError:
        # The deadline, or a client that went away.
        if exchange.stream is not None and exchange.is_sent:
            call.log_line(b"after its response: the guest was still running, and was ended")
            return exchange.stream
        if exchange.stream is not None:
            break_off(call)
        raise
    except BaseException:
        if exchange.stream is not None:
            break_off(call)
        raise
    finally:
        call.cpu_ns += fiber.cpu_ns
        exchange.close()
        way_out.close()
        fiber.close(soon=call.lane.inside)
        log.close()


def _text(raw: str) -> str:
    """Return what a client sent as text: bytes that are no UTF-8 are none."""
    return raw if raw.isascii() else raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _shown(code: ErrorCode) -> str:
    case, payload = code
    return case if payload is None else f"{case}({payload!r})"
