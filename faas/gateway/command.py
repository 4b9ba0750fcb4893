"""Kind ``command``: a module with ``_start`` answers as a CGI program, its output streamed while it runs."""

from __future__ import annotations

import functools
import time

from faas.errors import (
    ClientGoneError,
    FaasError,
    GuestExitError,
    InvocationError,
    MalformedResponseError,
)
from faas.gateway import cgi
from faas.gateway.call import AnyBody, Call, LocalRedirect, Output, begin_reply, break_off, is_bodyless, open_body
from faas.gateway.code import Code
from faas.gateway.instance import MAX_LOG_LINE_BYTES
from faas.gateway.lane import SOFTWARE, Answer, Reply, Stream
from faas.gateway.models import ModelGate
from faas.gateway.services import ServiceGate
from faas.wasi.context import GuestExit, WasiContext
from faas.wasi.streams import EmptyInput, InputStream, LineOutput
from faas.wasm import calls
from faas.wasm.runtime import Runtime


class _Reply:
    """Turns stdout into an HTTP response: buffered while the guest runs inline, streamed as soon as it yields."""

    __slots__ = ("_body", "_call", "_output", "_scanned", "_streamed_bytes", "_written", "head", "stream")

    def __init__(self, call: Call, output: Output, body: AnyBody | None) -> None:
        self._call = call
        self._output = output
        self._body = body
        self._written = bytearray()
        self._scanned = 0
        self.head: cgi.ResponseHead | None = None
        self.stream: Stream | None = None
        self._streamed_bytes = 0

    async def pause(self) -> None:
        """Send what the guest has written so far; awaited whenever it yields or waits."""
        if not self._output.pending_bytes:
            return
        if self.stream is None:
            if not self._parse() or self.head is None:
                return
            if self.head.local_redirect:
                self._written.clear()  # another response takes its place
                return
            self.stream = await self._begin(self.head)
            body = bytes(self._written)
            self._written.clear()
        else:
            body = self._output.take()
        await self._send(body)

    def _parse(self) -> bool:
        """Return whether the head is complete; then ``_written`` is the body so far."""
        written = self._written
        written += self._output.take()
        if self.head is not None:
            return True
        split = cgi.split_head(written, self._scanned)
        if split is None:
            self._scanned = len(written)
            return False
        block, body_at = split
        self.head = cgi.parse_head(block)
        del written[:body_at]
        return True

    async def _begin(self, head: cgi.ResponseHead) -> Stream:
        return await begin_reply(
            self._call, self._body, head.status, head.headers, reason=head.reason, length=head.content_length
        )

    async def _send(self, body: bytes) -> None:
        assert self.stream is not None
        assert self.head is not None
        if not body or is_bodyless(self._call, self.head.status):
            return
        self._streamed_bytes += len(body)
        length = self.head.content_length
        if length is not None and self._streamed_bytes > length:
            raise MalformedResponseError(f"the guest announced a Content-Length of {length} and wrote more")
        await self.stream.write(body)

    async def finish(self) -> Answer:
        """
        Return the answer of a guest that ended well; a streamed one lacks only its end.

        Raises: MalformedResponseError, LocalRedirect.
        """
        if self.stream is not None and self.head is not None:
            await self._send(self._output.take())
            length = self.head.content_length
            if length is not None and self._streamed_bytes < length and not is_bodyless(self._call, self.head.status):
                raise MalformedResponseError(f"the guest announced a Content-Length of {length} and wrote less")
            return self.stream
        if not self._parse() or self.head is None:
            raise MalformedResponseError(
                "the guest's output has no blank line after its headers; "
                "write e.g. 'Content-Type: text/plain', an empty line, then the body"
            )
        head = self.head
        if head.local_redirect:
            raise LocalRedirect(head.local_redirect)
        bodyless = is_bodyless(self._call, head.status)
        length = head.content_length
        if length is not None and length != len(self._written) and not bodyless:
            raise MalformedResponseError(
                f"the guest announced a Content-Length of {length} and wrote {len(self._written)} bytes"
            )
        return Reply(
            head.status,
            b"" if head.status in (204, 304) else bytes(self._written),
            self._call.response_headers(),
            head.headers,
            head.reason,
        )


async def serve_command(
    call: Call,
    runtime: Runtime,
    code: Code,
    models: ModelGate,
    server_port: int,
    *,
    services: ServiceGate,
    deadline: float,
) -> Answer:
    """
    Run a command for one request and return its answer, prepared already if it was streamed.

    Args: *deadline* is on the event loop's clock, in seconds.
    Raises: InvocationError and its kin while nothing was sent; ClientGoneError once the reply had to be cut off.
    """
    request, served = call.lane.request, call.served
    limits = served.deployment.manifest.limits
    output = Output(limits.max_output_bytes)
    body = await open_body(call) if call.with_body and request.body_exists else None
    reply = _Reply(call, output, body)
    stderr = LineOutput(call.log_line, limits.max_log_bytes, MAX_LOG_LINE_BYTES)
    stdin: InputStream = body if body is not None else EmptyInput()

    wasi = WasiContext(
        args=cgi.arguments(served.name, call.query),
        env=functools.partial(_environment, call, server_port, body is not None),
        stdin=stdin,
        stdout=output,
        stderr=stderr,
        bundle=code.bundle,
        tmp_bytes=limits.tmp_bytes,
        clock=call.clock,
    )
    pool = served.warm
    ready = None if pool is None else pool.take(code) or await pool.join(call.lane.leave)
    if ready is None:
        fiber = runtime.fiber(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=limits.cpu_s)
    else:
        call.warm = ready.desc
        ready.begin(call.log_line)
        fiber = ready.fiber
        fiber.wasi = wasi
    fiber.on_pause = reply.pause
    fiber.before_wait = call.lane.leave
    fiber.nn = models.context(call, timeout_s=limits.timeout_s, stdout=output, flush=reply.pause)
    fiber.open_services = functools.partial(services.session, call, deadline)
    try:
        template = code.template
        try:
            if template.slow:  # that begins in the pool
                if ready is None:
                    await fiber.instantiate(template)
                call.started = time.perf_counter()
                await fiber.call(b"_start")
            else:
                began = time.perf_counter()
                step, value, ready_ns = fiber.exchange(template if ready is None else None, None, 0, initialize=False)
                call.started = began + ready_ns / 1e9
                if value is None:
                    await fiber.result(step)
                if step == calls.INSTANTIATE:
                    call.started = time.perf_counter()
                    await fiber.call(b"_start")
        except GuestExit as exc:
            if exc.code:
                if fiber.ran_out_of_memory():
                    raise fiber.memory_limit_error(f"exit code {exc.code}") from exc
                raise GuestExitError(
                    f"the guest exited with code {exc.code}; 'faas logs {served.name}' has what it wrote to stderr",
                    exit_code=exc.code,
                ) from exc
        return await reply.finish()
    except FaasError as failure:
        if reply.stream is not None:
            raise cut_off(call, failure) from failure
        raise
    except BaseException:
        # The deadline, a client that went away, a bug of ours: none may end what has begun as if it were whole.
        if reply.stream is not None:
            break_off(call)
        raise
    finally:
        call.cpu_ns += fiber.cpu_ns
        fiber.close(soon=call.lane.inside)
        stderr.close()


def _environment(call: Call, server_port: int, has_body: bool) -> list[bytes]:
    """Return a guest's environment; made when it asks for it."""
    request, served = call.request, call.served
    return cgi.meta_variables(
        method=call.method,
        raw_path=call.raw_path,
        query=call.query,
        script_name=call.script_name,
        route=call.route,
        params=call.params,
        headers=call.guest_headers().items(),
        remote_addr=request.remote or "",
        scheme=request.scheme,
        host=request.host,
        server_port=server_port,
        protocol=f"HTTP/{request.version.major}.{request.version.minor}",
        server_software=SOFTWARE,
        content_length=request.content_length if has_body else None,
        request_id=call.request_id,
        function=served.name,
        version=served.version,
        env=served.deployment.manifest.env,
    )


def cut_off(call: Call, exc: FaasError) -> InvocationError:
    """Break off a reply that has begun, so that nobody takes half of it for the whole."""
    break_off(call)
    return exc if isinstance(exc, InvocationError) else ClientGoneError(exc.message)
