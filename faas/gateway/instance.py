"""An instance that may be made before its request comes, or outlive it: the fiber, and the world it was started in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from faas.clock import Clock
from faas.gateway.code import Code
from faas.invocation import Deployment, Kind
from faas.wasi.context import WasiContext
from faas.wasi.streams import EmptyInput, LineOutput, OutputStream
from faas.wasm.runtime import Runtime

MAX_LOG_LINE_BYTES = 16 * 1024
WARM = ';desc="warm"'
REUSED = ';desc="reused"'
"""What ``Server-Timing`` adds to ``start``: the instance was made ahead, or has served requests before."""


_REACTOR = Kind.REACTOR  # looked up once: members of an Enum are found slowly


class NotPreparableError(Exception):
    """A guest asked, before there was a request, for what only a request has."""


class _OfRequest:
    """Stands for a part of an instance's world that its request will bring: whoever touches it earlier is ended."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise NotPreparableError(f"it asks for {self._what} before its request is there")

    def close(self) -> None:
        """Do nothing: there is nothing."""


_NO_WASI: Any = _OfRequest("what only its request has (its start function calls WASI)")
_NO_MODELS: Any = _OfRequest("a model")
_NO_SERVICES: Any = _OfRequest("something of its host (faas_v1)")


def _no_services() -> Any:
    return _NO_SERVICES


class _Relay:
    """An output that goes elsewhere for each request: a reactor's descriptors outlive the request."""

    __slots__ = ("to",)

    full = False

    def __init__(self, to: OutputStream) -> None:
        self.to = to

    def write(self, data: bytes) -> int:
        """Hand *data* on."""
        return self.to.write(data)


class Instance:
    """
    One instance of a deployment, from its making until ``close``; serves one request after another, if more than one.

    A reactor's world is its function's and begins with it; a command's is its request's, so until there is one its
    start function may not ask for anything.
    Thread: the loop; the guest itself runs wherever its fiber does.
    """

    __slots__ = ("_deployment", "_output", "code", "desc", "fiber", "log", "n_bytes", "n_requests", "waiting_bytes")

    def __init__(
        self, runtime: Runtime, deployment: Deployment, code: Code, clock: Clock, on_line: Callable[[bytes], None]
    ) -> None:
        """Args: *on_line* gets what a reactor prints until ``begin``."""
        limits = deployment.manifest.limits
        self._deployment = deployment
        self.code = code
        self.n_requests = 0
        """How many requests it has been given, or was made for."""
        self.desc = ""
        """What ``Server-Timing`` says of it to the request it serves: WARM, REUSED, or nothing if it was not ready."""
        self.n_bytes = 0
        """The size of its memory when it was ready for its first request."""
        self.waiting_bytes = 0
        """Its ``held_bytes`` while it waits in a pool."""
        self.log = LineOutput(on_line, limits.max_log_bytes, MAX_LOG_LINE_BYTES)
        self._output: _Relay | None = None
        wasi = _NO_WASI
        if deployment.kind is _REACTOR:
            output: OutputStream = self.log
            if deployment.manifest.warm.max:
                output = self._output = _Relay(self.log)
            wasi = WasiContext(
                args=[deployment.function.encode()],
                env=lambda: [f"{key}={value}".encode() for key, value in deployment.manifest.env.items()],
                stdin=EmptyInput(),
                stdout=output,  # a reactor answers through its result; what it prints is for its log
                stderr=output,
                bundle=code.bundle,
                tmp_bytes=limits.tmp_bytes,
                clock=clock,
            )
        self.fiber = runtime.fiber(wasi, memory_limit_bytes=limits.memory_bytes, cpu_limit_s=limits.cpu_s)

    async def start(self, *, background: bool = False) -> None:
        """
        Make the instance and initialise it, so that it lacks nothing but a request.

        Args: *background* leaves the event loop's thread alone from the first instruction on.
        Raises: as ``Fiber.instantiate`` and ``Fiber.call``.
        """
        fiber, template = self.fiber, self.code.template
        await fiber.instantiate(template, background=background)
        await self.initialize(background=background)

    async def initialize(self, *, background: bool = False) -> None:
        """
        Do what ``start`` does once the instance is made.

        Raises: as ``Fiber.call``.
        """
        fiber, template = self.fiber, self.code.template
        if self._deployment.kind is _REACTOR:
            if template.has_initialize is None:
                template.has_initialize = fiber.has_export(b"_initialize")
            if template.has_initialize:
                await fiber.call(b"_initialize", background=background)
        if self._deployment.manifest.warm.max:
            self.n_bytes = fiber.memory_size()

    async def prepare(self, *, background: bool) -> None:
        """
        Start before there is a request.

        Raises: as ``start``; NotPreparableError, which may come as the cause of an InternalError.
        """
        if self._deployment.manifest.capabilities.models:
            self.fiber.nn = _NO_MODELS
        self.fiber.open_services = _no_services
        await self.start(background=background)
        self.fiber.nn = None
        self.fiber.end_services()

    def begin(self, on_line: Callable[[bytes], None]) -> LineOutput:
        """Go over to the next request; return its log, which gets what the guest prints and is to be closed."""
        self.log.close()
        self.fiber.renew()
        self.log = LineOutput(on_line, self._deployment.manifest.limits.max_log_bytes, MAX_LOG_LINE_BYTES)
        if self._output is not None:
            self._output.to = self.log
        return self.log

    def end(self) -> None:
        """Let go of the request that it has answered, to wait for the next one."""
        fiber = self.fiber
        fiber.before_wait = fiber.on_pause = None
        if fiber.nn is not None:
            fiber.nn.close()
            fiber.nn = None
        fiber.end_services()

    @property
    def held_bytes(self) -> int:
        """What it takes of the host's memory: its own, and its ``/tmp``."""
        n_tmp_bytes = self.fiber.wasi.tmp_used_bytes if self._deployment.kind is _REACTOR else 0
        return self.fiber.memory_size() + n_tmp_bytes

    @property
    def is_spent(self) -> bool:
        """Whether it should serve no other request, since memory may fail it: one that never frees is replaced."""
        limit = self._deployment.manifest.limits.memory_bytes
        # Half of what it may grow by is kept for one request. Who was refused some has it held against it for good.
        return self.fiber.memory_size() > (self.n_bytes + limit) // 2 or self.fiber.ran_out_of_memory()

    def close(self, *, soon: bool = False) -> None:
        """Drop it and free its slot, at once or *soon* (``Fiber.close``)."""
        self.fiber.close(soon=soon)
        self.log.close()
