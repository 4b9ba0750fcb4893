"""
Fibers: one invocation's store and instance on a stack of its own, driven by an asyncio task.

A poll runs the guest until it finishes, uses up its slice (an epoch tick), or waits inside a host call.
The first slice runs inline on the loop thread; a guest that needs more goes on in a small thread pool with the GIL
released; a guest that waits costs no thread. A store is never used by two threads at once, and never deleted while
a slice of it runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from faas.errors import (
    CpuLimitError,
    FaasError,
    GuestTrapError,
    InternalError,
    MemoryLimitError,
    OverloadedError,
)
from faas.nn.session import NnContext
from faas.wasi.context import GuestExit, WasiContext
from faas.wasm import capi
from faas.wasm.engine import GROW_FAILED_EXPORT
from faas.wasm.memory import MemoryFaultError
from faas.wasm.template import Template

SLICE_TICKS = 2
"""Ticks until a guest yields: a slice lasts between one and two ticks."""
LONG_SLICE_NS = 300_000
"""A guest whose last slice took longer than this runs its next one in the pool, also after a wait."""
OFFLOADED_SLICES_S = 0.01
"""How long a pool thread stays with one guest before it lets the next one have a turn."""

_current = threading.local()
# Structures of capi.Frame, written and read whole: a ctypes field costs as much as a short C call.
_TWO_ARGS = struct.Struct("<B7xq16xB7xq")
_RESULT = struct.Struct("<B7xQ")
_FAILED = struct.Struct("<QQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class LinearMemory:
    """
    The GuestMemory of a live instance.

    The pooling allocator never moves a memory, so the base is read once; it only grows, so a size read earlier is a
    safe lower bound and is read again only when an access would pass it.
    """

    __slots__ = ("_base", "_context", "_handle", "_size", "_view")

    def __init__(self, context: int, handle: int) -> None:
        """Args: *handle* is the address of a ``wasmtime_memory_t`` that stays in place as long as this object."""
        self._context = context
        self._handle = handle
        self._base: int = capi.memory_data(context, handle)
        self._size = 0
        self._view = memoryview(b"")

    def size(self) -> int:
        """Return the memory's size in bytes, now."""
        size: int = capi.memory_data_size(self._context, self._handle)
        return size

    def _need(self, end: int) -> memoryview:
        self._size = self.size()
        self._view = capi.memory_view(self._base, self._size)
        if end > self._size:
            raise MemoryFaultError
        return self._view

    def read(self, ptr: int, length: int) -> bytes:
        """Return a copy of *length* bytes at *ptr*."""
        end = ptr + length
        view = self._view if end <= self._size else self._need(end)
        return view[ptr:end].tobytes()

    def write(self, ptr: int, payload: bytes) -> None:
        """Copy *payload* to *ptr*."""
        end = ptr + len(payload)
        view = self._view if end <= self._size else self._need(end)
        view[ptr:end] = payload

    def read_u32(self, ptr: int) -> int:
        """Return the u32 at *ptr*."""
        view = self._view if ptr + 4 <= self._size else self._need(ptr + 4)
        value: int = _U32.unpack_from(view, ptr)[0]
        return value

    def read_u32s(self, ptr: int, count: int) -> tuple[int, ...]:
        """Return *count* consecutive u32 at *ptr*."""
        end = ptr + 4 * count
        view = self._view if end <= self._size else self._need(end)
        return struct.unpack_from(f"<{count}I", view, ptr)

    def write_u32(self, ptr: int, value: int) -> None:
        """Store a u32."""
        view = self._view if ptr + 4 <= self._size else self._need(ptr + 4)
        _U32.pack_into(view, ptr, value)

    def write_u64(self, ptr: int, value: int) -> None:
        """Store a u64."""
        view = self._view if ptr + 8 <= self._size else self._need(ptr + 8)
        _U64.pack_into(view, ptr, value)


class NoMemory:
    """The GuestMemory of a guest that exports none: every access faults."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fault(*_args: object) -> Any:
            raise MemoryFaultError

        return fault


class Fiber:
    """
    One invocation's guest: a fresh store, a fresh instance, and what its host calls need; closed exactly once.

    This is also the ``guest`` that host functions get: ``memory``, ``wasi``, ``nn``, ``request_yield``.

    Thread: used from the loop thread, and from a pool thread only inside an off-loaded slice.
    """

    __slots__ = (
        "_at",
        "_busy",
        "_closed",
        "_context",
        "_cpu_limit_ns",
        "_frame",
        "_future",
        "_instantiated",
        "_last_slice_ns",
        "_must_yield",
        "_on_closed",
        "_slices",
        "_store",
        "_template",
        "_wait",
        "_wait_done",
        "_wait_error",
        "_wait_result_at",
        "_wait_value",
        "_wake_ticker",
        "before_wait",
        "cpu_ns",
        "failure",
        "memory",
        "memory_limit_bytes",
        "nn",
        "on_pause",
        "wasi",
    )

    def __init__(
        self,
        engine: int,
        slices: ThreadPoolExecutor,
        wake_ticker: Callable[[], None],
        wasi: WasiContext,
        *,
        memory_limit_bytes: int,
        table_limit_elements: int,
        cpu_limit_s: float,
        on_pause: Callable[[], Awaitable[None]] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        """
        Args: *on_pause* is awaited whenever the guest yields or waits, before it runs on: output that has gathered
        goes out there, and a slow consumer holds the guest back. *on_closed* is called once the store is gone.
        """
        self.wasi = wasi
        self.nn: NnContext | None = None
        self.memory: Any = None
        self.failure: BaseException | None = None
        self.cpu_ns = 0
        self.memory_limit_bytes = memory_limit_bytes
        self.on_pause = on_pause
        self.before_wait: Callable[[], Awaitable[object]] | None = None
        """Awaited before anything else is, once the guest is not done after its slice; cheap when called again."""
        self._slices = slices
        self._wake_ticker = wake_ticker
        self._frame = capi.Frame()
        self._at = ctypes.addressof(self._frame)
        self._future: int | None = None
        self._busy: Future[bool] | None = None
        self._closed = False
        self._last_slice_ns = 0
        self._must_yield = False
        self._instantiated = False
        self._template: Template | None = None
        self._wait: Awaitable[int] | None = None
        self._wait_done = False
        self._wait_value = 0
        self._wait_error: BaseException | None = None
        self._wait_result_at = 0
        self._cpu_limit_ns = int(cpu_limit_s * 1e9)
        self._on_closed = on_closed
        self._store: int = capi.store_new(engine, None, None)
        self._context: int = capi.store_context(self._store)
        capi.store_limiter(self._store, memory_limit_bytes, table_limit_elements, 1, -1, -1)
        capi.context_set_epoch_deadline(self._context, SLICE_TICKS)
        capi.context_epoch_deadline_async_yield_and_update(self._context, SLICE_TICKS)

    # --- what host functions use ------------------------------------------------------------------------------------

    def request_yield(self) -> None:
        """Make the guest yield at its next loop or call, so that what it wrote can be taken away."""
        self._must_yield = True
        capi.context_set_epoch_deadline(self._context, 0)

    def bind_memory(self, caller: int) -> None:
        """Find the guest's exported memory; called at its first host call, which may be inside its start function."""
        at = self._at
        found = capi.caller_export_get(caller, b"memory", 6, at + capi.FRAME_MEMORY)
        if found and self._frame.memory.kind == capi.EXTERN_MEMORY:
            self.memory = LinearMemory(self._context, at + capi.FRAME_MEMORY_OF)
        else:
            self.memory = NoMemory()

    # --- what kinds of function use ---------------------------------------------------------------------------------

    async def instantiate(self, template: Template) -> None:
        """
        Make the instance and run its start function, if it has one.

        Raises: GuestTrapError, CpuLimitError, OverloadedError (no free slot), and what host calls raise.
        """
        at = self._at
        self._template = template  # its code must outlive every slice of this fiber
        self._future = capi.instance_pre_instantiate_async(
            template.pre, self._context, at + capi.FRAME_INSTANCE, at + capi.FRAME_TRAP, at + capi.FRAME_ERROR
        )
        if not self._slice():
            await self._drive()
        self._ended()
        self._instantiated = True

    def has_export(self, name: bytes) -> bool:
        """Return whether the instance exports a function *name*; it becomes the one ``call`` calls."""
        at = self._at
        found = capi.instance_export_get(
            self._context, at + capi.FRAME_INSTANCE, name, len(name), at + capi.FRAME_EXPORT
        )
        return bool(found) and self._frame.export.kind == capi.EXTERN_FUNC

    async def call(self, name: bytes, *args: int, results: int = 0) -> int:
        """
        Call an exported function with at most two i32 *args* and return its one result (unsigned, as i64), or 0.

        Raises: GuestTrapError, CpuLimitError, GuestExit, and what host calls raise.
        """
        if not self.has_export(name):
            raise GuestTrapError(f"the module does not export the function {name.decode()!r}; export it and redeploy")
        at = self._at
        if args:
            first, second = args if len(args) == 2 else (args[0], 0)
            _TWO_ARGS.pack_into(self._frame, capi.FRAME_ARGS, capi.I32, first, capi.I32, second)
        self._future = capi.func_call_async(
            self._context,
            at + capi.FRAME_EXPORT_OF,
            at + capi.FRAME_ARGS,
            len(args),
            at + capi.FRAME_RESULTS,
            results,
            at + capi.FRAME_TRAP,
            at + capi.FRAME_ERROR,
        )
        if not self._slice():
            await self._drive()
        self._ended()
        if not results:
            return 0
        kind, result = _RESULT.unpack_from(self._frame, capi.FRAME_RESULTS)
        return int(result & 0xFFFFFFFF) if kind == capi.I32 else int(result)

    def own_memory(self) -> LinearMemory:
        """
        Return the instance's exported memory, for the host to write arguments to.

        Raises: GuestTrapError if there is none.
        """
        if not isinstance(self.memory, LinearMemory):
            at = self._at
            # wasmtime aborts the process when it is asked about an instance that was never made, or about a handle
            # of another kind: both are the guest's to arrange, so both are looked at first.
            if (
                not self._instantiated
                or not capi.instance_export_get(
                    self._context, at + capi.FRAME_INSTANCE, b"memory", 6, at + capi.FRAME_MEMORY
                )
                or self._frame.memory.kind != capi.EXTERN_MEMORY
            ):
                raise GuestTrapError("the module does not export its memory; export it as 'memory' and redeploy")
            self.memory = LinearMemory(self._context, at + capi.FRAME_MEMORY_OF)
        return self.memory

    def close(self) -> None:
        """Drop the instance and free its slot: at once, or when the slice that is running right now ends."""
        if self._closed:
            return
        self._closed = True
        if self.nn is not None:
            self.nn.close()
        busy = self._busy
        if busy is not None and not busy.done():
            loop = asyncio.get_running_loop()
            busy.add_done_callback(lambda _: loop.call_soon_threadsafe(self._delete))
        else:
            self._delete()

    def _delete(self) -> None:
        if self._future is not None:
            capi.call_future_delete(self._future)
            self._future = None
        # A cancelled slice may have ended by itself since: what it left is ours to free.
        frame = self._frame
        if frame.trap:
            capi.take_trap(frame.trap)
        if frame.error:
            capi.take_error(frame.error)
        capi.store_delete(self._store)
        self._template = None
        self.memory = NoMemory()
        wait, self._wait = self._wait, None
        if wait is not None and asyncio.iscoroutine(wait):
            wait.close()
        if self._on_closed is not None:
            self._on_closed()

    # --- driving ----------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        """Go on with a guest that is not done after its first slice, until it is."""
        done = False
        while not done:
            self._check_cpu()
            if self.before_wait is not None:
                await self.before_wait()
            if self.on_pause is not None:
                await self.on_pause()
            wait = self._wait
            if wait is not None:
                self._wait = None
                try:
                    self._wait_value = await wait
                except FaasError as exc:
                    self._wait_error = exc
                self._wait_done = True
                # Who computed for long before it waited goes on in the pool; who mostly waits runs on right here.
                done = await self._offload() if self._last_slice_ns > LONG_SLICE_NS else self._slice()
            else:
                done = await self._offload()

    def _ended(self) -> None:
        """Drop the call that is done; raise what it failed with."""
        capi.call_future_delete(self._future)
        self._future = None
        if self.failure is not None or any(_FAILED.unpack_from(self._frame, capi.FRAME_TRAP)):
            self._raise_failure()

    def _slice(self) -> bool:
        _current.guest = self
        self._wake_ticker()
        self._must_yield = False
        began = time.perf_counter_ns()
        done: bool = capi.call_future_poll(self._future)
        self._last_slice_ns = time.perf_counter_ns() - began
        self.cpu_ns += self._last_slice_ns
        return done

    def _slices_in_pool(self) -> bool:
        _current.guest = self
        self._must_yield = False
        began = time.thread_time_ns()
        until = time.perf_counter() + OFFLOADED_SLICES_S
        try:
            while True:
                self._wake_ticker()
                done: bool = capi.call_future_poll(self._future)
                if done or self._wait is not None or self._closed or self._must_yield:
                    return done
                if time.perf_counter() >= until:
                    return False
        finally:
            self._last_slice_ns = time.thread_time_ns() - began
            self.cpu_ns += self._last_slice_ns

    async def _offload(self) -> bool:
        # Cancelled here, a slice that runs right now runs on: ``_busy`` stays, and close() waits for it.
        self._busy = self._slices.submit(self._slices_in_pool)
        done = await asyncio.wrap_future(self._busy)
        self._busy = None
        return done

    def _check_cpu(self) -> None:
        if self.cpu_ns > self._cpu_limit_ns:
            raise CpuLimitError(
                f"the guest used more than {self._cpu_limit_ns / 1e9:g} s of CPU time; "
                "make it do less, or raise limits.cpu_s in function.toml"
            )

    def _raise_failure(self) -> None:
        frame = self._frame
        trap_at, error_at = frame.trap, frame.error
        frame.trap = frame.error = None
        code: capi.TrapCode | None = None
        message = ""
        if trap_at:
            code, message = capi.take_trap(trap_at)
        if error_at:
            message = capi.take_error(error_at)
        failure, self.failure = self.failure, None
        if failure is not None:
            if isinstance(failure, (FaasError, GuestExit)):
                raise failure
            raise InternalError(f"a host function failed: {failure!r}; this is a bug in the host") from failure
        if "maximum concurrent" in message:
            raise OverloadedError("every instance slot of this worker is in use; try again", retry_after_s=1.0)
        if self.ran_out_of_memory():
            raise self.memory_limit_error(reason_of(message), trace=message)
        raise GuestTrapError(
            f"the guest trapped: {reason_of(message)}; 'faas logs' has the backtrace",
            reason=code.name.lower().replace("_", "-") if code is not None else "host",
            trace=message,
        )

    def memory_size(self) -> int:
        """Return the size of the guest's memory in bytes, 0 if it has none."""
        try:
            return self.own_memory().size()
        except GuestTrapError:
            return 0

    def memory_limit_error(self, reason: str, **facts: Any) -> MemoryLimitError:
        """Return the error for a guest that failed with *reason* for want of memory."""
        return MemoryLimitError(
            f"the guest failed ({reason}) after it was refused memory, with {self.memory_size()} of "
            f"{self.memory_limit_bytes} bytes in use; use less, or raise limits.memory_bytes in function.toml",
            **facts,
        )

    def ran_out_of_memory(self) -> bool:
        """Return whether the guest was ever refused memory; ``precompile/growth.py`` makes modules tell."""
        if not self._instantiated:
            return False
        at = self._at
        name = GROW_FAILED_EXPORT
        found = capi.instance_export_get(
            self._context, at + capi.FRAME_INSTANCE, name, len(name), at + capi.FRAME_EXPORT
        )
        if not found or self._frame.export.kind != capi.EXTERN_GLOBAL:
            return False
        capi.global_get(self._context, at + capi.FRAME_EXPORT_OF, at + capi.FRAME_RESULTS)
        flag = self._frame.results[0]
        return flag.kind == capi.I32 and bool(flag.i64 & 0xFFFFFFFF)


def first_line(message: str) -> str:
    """Return the first line of a wasmtime message."""
    return message.split("\n", 1)[0].strip()


def reason_of(message: str) -> str:
    """Return the root cause of a wasmtime message with a backtrace: the text behind ``wasm trap:``."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in reversed(lines):
        if "wasm trap:" in line:
            return line.split("wasm trap:", 1)[1].strip()
    return lines[-1] if lines else "no reason given"


# --- trampolines: from wasm into Python -----------------------------------------------------------------------------

_TRAP_TEXT = b"host"


def sync_trampoline(handler: Callable[..., int | None], params: str) -> Any:
    """Return the C callback of a host function that never waits; keep it alive as long as the linker."""
    unpack = struct.Struct("<" + "".join("Q8x" if letter == "I" else "I12x" for letter in params)).unpack
    size = 16 * len(params)
    string_at = ctypes.string_at
    result_of = ctypes.c_uint32.from_address
    trap_new = capi.trap_new
    current = _current

    def callback(_env: int, caller: int, args: int, _count: int) -> int | None:
        guest = current.guest
        try:
            if guest.memory is None:
                guest.bind_memory(caller)
            value = handler(guest, *unpack(string_at(args, size)))
            if value is not None:
                result_of(args).value = value
        except BaseException as exc:
            guest.failure = exc
            trap: int = trap_new(_TRAP_TEXT, len(_TRAP_TEXT))
            return trap
        return None

    return capi.UncheckedCallback(callback)


def async_trampoline(handler: Callable[..., int | Awaitable[int]], params: str) -> tuple[Any, Any]:
    """
    Return the C callbacks of a host function that may wait, and of its continuation; keep both alive.

    The handler answers an int at once, or an awaitable that the fiber's task awaits on the loop while the guest's
    stack stays suspended.
    """
    unpack = struct.Struct("<" + "".join("8xQ16x" if letter == "I" else "8xI20x" for letter in params)).unpack
    size = 32 * len(params)
    string_at = ctypes.string_at
    current = _current

    def finish(results: int, value: int) -> None:
        ctypes.c_uint8.from_address(results).value = capi.I32
        ctypes.c_uint32.from_address(results + 8).value = value

    def resume(env: int) -> bool:
        guest = current.guest
        if guest._wait_result_at == 0:
            return True
        if not guest._wait_done:
            return False
        guest._wait_done = False
        results, guest._wait_result_at = guest._wait_result_at, 0
        if guest._wait_error is not None:
            guest.failure, guest._wait_error = guest._wait_error, None
            # env is where the callback's trap_ret points: written before the continuation says it is done.
            ctypes.c_void_p.from_address(env).value = capi.trap_new(_TRAP_TEXT, len(_TRAP_TEXT))
            return True
        finish(results, guest._wait_value)
        return True

    resume_callback = capi.ContinuationCallback(resume)
    resume_at = ctypes.cast(resume_callback, ctypes.c_void_p).value

    def callback(
        _env: int, caller: int, args: int, _n: int, results: int, _m: int, trap_ret: Any, continuation: Any
    ) -> None:
        guest = current.guest
        slot = continuation.contents
        slot.callback = resume_at
        slot.env = ctypes.addressof(trap_ret.contents)
        slot.finalizer = None
        try:
            if guest.memory is None:
                guest.bind_memory(caller)
            value = handler(guest, *unpack(string_at(args, size)))
            if isinstance(value, int):
                finish(results, value)
            else:
                guest._wait_result_at = results
                guest._wait = value
        except BaseException as exc:
            guest.failure = exc
            trap_ret.contents.value = capi.trap_new(_TRAP_TEXT, len(_TRAP_TEXT))

    return capi.AsyncCallback(callback), resume_callback
