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
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from types import ModuleType
from typing import Any

from faas.errors import (
    CpuLimitError,
    FaasError,
    GuestTrapError,
    InternalError,
    MemoryLimitError,
    OverloadedError,
)
from faas.guest.session import GuestSession
from faas.nn.session import NnContext
from faas.wasi.context import GuestExit, WasiContext
from faas.wasm import calls, capi
from faas.wasm.engine import GROW_FAILED_EXPORT
from faas.wasm.memory import MemoryFaultError
from faas.wasm.template import Template
from faas.wasm.turns import Turns

SLICE_TICKS = 2
"""Ticks until a guest yields: a slice lasts between one and two ticks."""
LONG_SLICE_NS = 300_000
"""A guest whose last slice took longer than this runs its next one in the pool, also after a wait."""
QUICK_NS = 500_000
"""An invocation that took no longer than this shows that its functions belong on the loop."""
SLOW_S = 1.0
"""How long a function that used up its first slice begins in the pool, unless it turns out to be quick there."""
OFFLOADED_SLICES_S = 0.01
"""How long a pool thread stays with one guest before it lets the next one have a turn."""

# Parts of capi.Frame, read whole: a ctypes field costs as much as a short C call.
_RESULT = struct.Struct("<B7xQ")
_FAILED = struct.Struct("<QQ")

_STEP_NAMES = {
    calls.INSTANTIATE: b"",
    calls.INITIALIZE: b"_initialize",
    calls.ALLOC: b"faas_alloc",
    calls.HANDLE: b"faas_handle",
    calls.START: b"_start",
}
_WITH_RESULT = (calls.ALLOC, calls.HANDLE)


class NoMemory:
    """The GuestMemory of a guest that exports none: every access faults."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fault(*_args: object) -> Any:
            raise MemoryFaultError

        return fault


_NO_MEMORY = NoMemory()


class Fiber:
    """
    One invocation's guest: a fresh store, a fresh instance, and what its host calls need; closed exactly once.

    This is also the ``guest`` that host functions get: ``memory``, ``wasi``, ``nn``, ``services``, ``request_yield``.

    Thread: used from the loop thread, and from a pool thread only inside an off-loaded slice.
    """

    __slots__ = (
        "_at",
        "_began",
        "_busy",
        "_calls",
        "_closed",
        "_context",
        "_cpu_limit_ns",
        "_frame",
        "_future",
        "_instantiated",
        "_last_slice_ns",
        "_must_yield",
        "_on_closed",
        "_retire",
        "_services",
        "_store",
        "_template",
        "_turns",
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
        "open_services",
        "wasi",
    )

    def __init__(
        self,
        engine: int,
        into: ModuleType,
        turns: Turns,
        wake_ticker: Callable[[], None],
        wasi: WasiContext,
        *,
        memory_limit_bytes: int,
        table_limit_elements: int,
        cpu_limit_s: float,
        on_pause: Callable[[], Awaitable[None]] | None = None,
        on_closed: Callable[[], None] | None = None,
        retire: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """
        Args: *into* has the calls into the engine: ``calls``, or the same in C. *on_pause* is awaited whenever the
        guest yields or waits, before it runs on: output that has gathered goes out there, and a slow consumer holds the
        guest back. *on_closed* is called once the store is gone. *retire* calls what it gets a little later.
        """
        self.wasi = wasi
        self.nn: NnContext | None = None
        self.open_services: Callable[[], GuestSession] | None = None
        """Makes the request's ``services``, which most guests never ask for; None while there is no request."""
        self._services: GuestSession | None = None
        self.memory: Any = None
        self.failure: BaseException | None = None
        self.cpu_ns = 0
        self.memory_limit_bytes = memory_limit_bytes
        self.on_pause = on_pause
        self.before_wait: Callable[[], Awaitable[object]] | None = None
        """Awaited before anything else is, once the guest is not done after its slice; cheap when called again."""
        self._turns = turns
        self._wake_ticker = wake_ticker
        self._frame = capi.Frame()
        self._at = ctypes.addressof(self._frame)
        self._future: int | None = None
        self._began: tuple[int, int, int] | None = None
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
        self._retire = retire
        self._calls = into
        self._store, self._context = into.store_new(engine, memory_limit_bytes, table_limit_elements, SLICE_TICKS)

    # --- what host functions use ------------------------------------------------------------------------------------

    def request_yield(self) -> None:
        """Make the guest yield at its next loop or call, so that what it wrote can be taken away."""
        self._must_yield = True
        capi.context_set_epoch_deadline(self._context, 0)

    def bind_memory(self, caller: int) -> None:
        """Find the guest's exported memory; called at its first host call, which may be inside its start function."""
        memory = self._calls.memory_of_caller(self._context, caller, self._at)
        self.memory = _NO_MEMORY if memory is None else memory

    # --- what kinds of function use ---------------------------------------------------------------------------------

    async def instantiate(self, template: Template, *, background: bool = False) -> None:
        """
        Make the instance and run its start function, if it has one.

        Args: *background* runs all of it in the pool, also the first slice.
        Raises: GuestTrapError, CpuLimitError, OverloadedError (no free slot), and what host calls raise.
        """
        self._template = template  # its code must outlive every slice of this fiber
        self._wake_ticker()
        self._must_yield = False
        await self._ran(self._calls.instantiate(self, self._context, self._at, template.pre, not background))
        self._instantiated = True

    def has_export(self, name: bytes) -> bool:
        """Return whether the instance exports a function *name*; it becomes the one ``call`` calls."""
        at = self._at
        found = capi.instance_export_get(
            self._context, at + capi.FRAME_INSTANCE, name, len(name), at + capi.FRAME_EXPORT
        )
        return bool(found) and self._frame.export.kind == capi.EXTERN_FUNC

    async def call(self, name: bytes, *args: int, results: int = 0, background: bool = False) -> int:
        """
        Call an exported function with at most two i32 *args* and return its one result (unsigned, as i64), or 0.

        Args: *background* runs all of it in the pool, also the first slice.
        Raises: GuestTrapError, CpuLimitError, GuestExit, and what host calls raise.
        """
        self._wake_ticker()
        self._must_yield = False
        slow = self._template.slow if self._template is not None else {}
        if slow and not background:
            background = slow.get(name, 0.0) > time.monotonic()
        began = self._calls.call(self, self._context, self._at, name, args, results, not background)
        if began is None:
            raise _not_exported(name)
        await self._ran(began, None if background else name)
        if slow and self.cpu_ns < QUICK_NS:
            slow.pop(name, None)
        return self._result() if results else 0

    def exchange(
        self, template: Template | None, message: bytes | None, max_bytes: int, *, initialize: bool
    ) -> tuple[int, bytes | int | None, int]:
        """
        Do what a request needs of its guest in one go, as far as that goes without waiting: ``calls.exchange``.

        Args: *template* None: the instance is there already; *message* None: it is a command.
        Returns: the step that it came to; what that step returned (``calls.ANSWERED``: the answer), None if it is
        not done and ``result`` is to be awaited; and the nanoseconds until the guest was ready for its request.
        Raises: as ``instantiate`` and ``call``.
        """
        self._wake_ticker()
        self._must_yield = False
        pre = 0
        if template is not None:
            self._template = template
            pre = template.pre
        step, status, last_ns, total_ns, ready_ns, value = self._calls.exchange(
            self, self._context, self._at, pre, initialize, message, max_bytes
        )
        self._instantiated = step > calls.INSTANTIATE or (status == calls.DONE and pre != 0)
        if status == calls.PENDING:
            self.cpu_ns += total_ns - last_ns
            self._began = status, last_ns, value
            return step, None, ready_ns
        self.cpu_ns += total_ns
        self._last_slice_ns = last_ns
        if status == calls.FAILED:
            self._raise_failure()
        if status == calls.MISSING:
            raise _not_exported(_STEP_NAMES[step])
        return step, value, ready_ns

    async def result(self, step: int) -> int:
        """
        Return what *step* of ``exchange``, which was not done, returns once it is.

        Raises: as ``instantiate`` and ``call``.
        """
        began, self._began = self._began, None
        assert began is not None
        name = _STEP_NAMES[step]
        await self._ran(began, name or None)
        if step == calls.INSTANTIATE:
            self._instantiated = True
        return self._result() if step in _WITH_RESULT else 0

    def _result(self) -> int:
        kind, result = _RESULT.unpack_from(self._frame, capi.FRAME_RESULTS)
        return int(result & 0xFFFFFFFF) if kind == capi.I32 else int(result)

    def renew(self) -> None:
        """Begin the CPU limit anew, and give a guest that has waited for its request a whole slice again."""
        self.cpu_ns = self._last_slice_ns = 0
        capi.context_set_epoch_deadline(self._context, SLICE_TICKS)

    def own_memory(self) -> calls.LinearMemory:
        """
        Return the instance's exported memory, for the host to write arguments to.

        Raises: GuestTrapError if there is none.
        """
        memory = self.memory
        if memory is None or isinstance(memory, NoMemory):
            # wasmtime aborts the process when it is asked about an instance that was never made.
            memory = self._calls.memory_of_instance(self._context, self._at) if self._instantiated else None
            if memory is None:
                raise GuestTrapError("the module does not export its memory; export it as 'memory' and redeploy")
            self.memory = memory
        return memory  # type: ignore[no-any-return]

    @property
    def services(self) -> GuestSession | None:
        """What the request has open by ``faas_v1``, made when it is first asked for; None while there is no request."""
        if self._services is None and self.open_services is not None:
            self._services = self.open_services()
        return self._services

    def end_services(self) -> None:
        """Close what the request has open by ``faas_v1``, and open nothing more; on the loop."""
        self.open_services = None
        services, self._services = self._services, None
        if services is not None:
            services.close()

    def close(self, *, soon: bool = False) -> None:
        """
        Drop the instance and free its slot: at once, or when the slice that is running right now ends.

        Args: *soon* lets the replies of this turn of the loop go out first, since the kernel takes its time.
        """
        if self._closed:
            return
        self._closed = True
        if self.nn is not None:
            self.nn.close()
        if self._services is None:
            self.open_services = None  # a slice may still run, and ask for the first time
        else:
            self.end_services()
        busy = self._busy
        if busy is not None and not busy.done():
            loop = asyncio.get_running_loop()
            busy.add_done_callback(lambda _: loop.call_soon_threadsafe(self._delete))
        elif soon and self._retire is not None:
            self._retire(self._delete)
        else:
            self._delete()

    def _delete(self) -> None:
        future = self._future if self._began is None else self._began[2]
        if future is not None:
            self._calls.future_delete(future)
            self._future = self._began = None
        # A cancelled slice may have ended by itself since: what it left is ours to free.
        if self._busy is not None and any(_FAILED.unpack_from(self._frame, capi.FRAME_TRAP)):
            frame = self._frame
            if frame.trap:
                capi.take_trap(frame.trap)
            if frame.error:
                capi.take_error(frame.error)
        self._calls.store_delete(self._store)
        self._template = None
        self.memory = _NO_MEMORY
        wait, self._wait = self._wait, None
        if wait is not None and asyncio.iscoroutine(wait):
            wait.close()
        if self._on_closed is not None:
            self._on_closed()

    # --- driving ----------------------------------------------------------------------------------------------------

    async def _ran(self, began: tuple[int, int, int], name: bytes | None = None) -> None:
        """
        Take what a call's first slice came to, go on until it is done, and raise what it failed with.

        Args: *name* is that of a function that began here and not in the pool.
        """
        status, self._last_slice_ns, future = began
        self.cpu_ns += self._last_slice_ns
        if status == calls.PENDING:
            self._future = future
            # A slice is a time, not work: who lost it to another thread of this machine is done in a second one.
            second = name is not None and self._wait is None and not self._must_yield
            done = self._slice() if second else False
            if not done:
                if second and name is not None and self._wait is None and self._template is not None:
                    self._template.slow[name] = time.monotonic() + SLOW_S
                await self._drive()
            if any(_FAILED.unpack_from(self._frame, capi.FRAME_TRAP)):
                status = calls.FAILED
        if status == calls.FAILED:
            self._raise_failure()

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

    def _slice(self) -> bool:
        self._wake_ticker()
        self._must_yield = False
        began = time.perf_counter_ns()
        done: bool = self._calls.poll(self, self._future)
        self._last_slice_ns = time.perf_counter_ns() - began
        self.cpu_ns += self._last_slice_ns
        if done:
            self._future = None
        return done

    def _slices_in_pool(self, rank: float) -> bool:
        self._must_yield = False
        began = time.thread_time_ns()
        until_s = time.perf_counter() + OFFLOADED_SLICES_S
        try:
            while True:
                self._wake_ticker()
                done: bool = self._calls.poll(self, self._future)
                if done:
                    self._future = None
                if done or self._wait is not None or self._closed or self._must_yield:
                    return done
                if time.perf_counter() >= until_s or self._turns.should_end(
                    rank, (time.thread_time_ns() - began) / 1e9
                ):
                    return False
        finally:
            self._last_slice_ns = time.thread_time_ns() - began
            self.cpu_ns += self._last_slice_ns

    async def _offload(self) -> bool:
        # Cancelled here, a slice that runs right now runs on: ``_busy`` stays, and close() waits for it.
        self._busy = self._turns.submit(self.cpu_ns, self._slices_in_pool)
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
        error = trapped(message, code)
        if isinstance(error, GuestTrapError) and self.ran_out_of_memory():
            raise self.memory_limit_error(reason_of(message), trace=message)
        raise error

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


def _not_exported(name: bytes) -> GuestTrapError:
    return GuestTrapError(f"the module does not export the function {name.decode()!r}; export it and redeploy")


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


def trapped(message: str, code: capi.TrapCode | None) -> FaasError:
    """Return the error for a guest that the engine ended with this message."""
    if "maximum concurrent" in message:
        return OverloadedError("every instance slot of this worker is in use; try again", retry_after_s=1.0)
    return GuestTrapError(
        f"the guest trapped: {reason_of(message)}; 'faas logs' has the backtrace",
        reason=code.name.lower().replace("_", "-") if code is not None else "host",
        trace=message,
    )


# --- trampolines: from wasm into Python -----------------------------------------------------------------------------

_TRAP_TEXT = b"host"


def async_trampoline(
    handler: Callable[..., int | Awaitable[int]], params: str, current: Callable[[], Any]
) -> tuple[Any, Any]:
    """
    Return the C callbacks of a host function that may wait, and of its continuation; keep both alive.

    The handler answers an int at once, or an awaitable that the fiber's task awaits on the loop while the guest's
    stack stays suspended. *current* tells which guest calls.
    """
    unpack = struct.Struct("<" + "".join("8xQ16x" if letter == "I" else "8xI20x" for letter in params)).unpack
    size = 32 * len(params)
    string_at = ctypes.string_at

    def finish(results: int, value: int) -> None:
        ctypes.c_uint8.from_address(results).value = capi.I32
        ctypes.c_uint32.from_address(results + 8).value = value

    def resume(env: int) -> bool:
        guest = current()
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
        guest = current()
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
