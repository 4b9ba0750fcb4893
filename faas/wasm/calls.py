"""
The calls into wasmtime that every request makes, and the way back from wasm into Python, by ctypes.

``_calls.c`` has the same in C, and is what runs where it was compiled (pip does so when it finds a C compiler and
Python's headers); ``chosen`` says which. Both are tested by the same tests.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from faas.log import event
from faas.wasm import capi
from faas.wasm.memory import MemoryFaultError

DONE, FAILED, PENDING, MISSING = 0, 1, 2, 3
"""What a first slice came to; FAILED leaves a trap or an error in the frame, MISSING: no such function to call."""
INSTANTIATE, INITIALIZE, ALLOC, HANDLE, START, ANSWERED = range(6)
"""The steps of ``exchange``: those of a reactor, that of a command, and what a reactor has come to after them."""

IDLE_TICKS = 200
REVISION = 2
"""Of what both offer: another one than in ``_calls.c`` means that this was not compiled again."""

_log = logging.getLogger(__name__)
_current = threading.local()
# Structures of capi.Frame, written and read whole: a ctypes field costs as much as a short C call.
_TWO_ARGS = struct.Struct("<B7xq16xB7xq")
_FAILED = struct.Struct("<QQ")
_RESULT = struct.Struct("<B7xQ")
_FRAME = struct.Struct(f"{ctypes.sizeof(capi.Frame)}s")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_TRAP_TEXT = b"host"


class LinearMemory:
    """
    The GuestMemory of a live instance.

    The pooling allocator never moves a memory, so the base is read once; it only grows, so a size read earlier is a
    safe lower bound and is read again only when an access would pass it.
    """

    __slots__ = ("_base", "_context", "_handle", "_size", "_view", "owner")

    def __init__(self, context: int, handle: int) -> None:
        """Args: *handle* is the address of a ``wasmtime_memory_t`` that stays in place as long as this object."""
        self._context = context
        self._handle = handle
        self._base: int = capi.memory_data(context, handle)
        self._size = 0
        self._view = memoryview(b"")
        self.owner: object = None
        """What keeps the handle in place, if that is nobody else."""

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


# --- stores and slices ----------------------------------------------------------------------------------------------


def store_new(engine: int, memory_bytes: int, table_elements: int, ticks: int) -> tuple[int, int]:
    """Return a new store with these limits, for one instance whose slices last *ticks* epochs, and its context."""
    store: int = capi.store_new(engine, None, None)
    context: int = capi.store_context(store)
    capi.store_limiter(store, memory_bytes, table_elements, 1, -1, -1)
    capi.context_set_epoch_deadline(context, ticks)
    capi.context_epoch_deadline_async_yield_and_update(context, ticks)
    return store, context


def store_delete(store: int) -> None:
    """Drop a store and its instance."""
    capi.store_delete(store)


def instantiate(guest: Any, context: int, at: int, pre: int, now: bool) -> tuple[int, int, int]:
    """
    Make the instance of *guest*, whose ``capi.Frame`` is *at* this address, and run its first slice *now* or later.

    Returns DONE or FAILED, the slice's nanoseconds and 0; or PENDING, those, and the future to ``poll``.
    """
    return _first_slice(
        guest,
        at,
        capi.instance_pre_instantiate_async(
            pre, context, at + capi.FRAME_INSTANCE, at + capi.FRAME_TRAP, at + capi.FRAME_ERROR
        ),
        now,
    )


def call(  # noqa: PLR0917 - the same as in C
    guest: Any, context: int, at: int, name: bytes, args: tuple[int, ...], n_results: int, now: bool
) -> tuple[int, int, int] | None:
    """
    Call an exported function with at most two i32, its first slice *now* or later; a result is left in the frame.

    Returns: as ``instantiate``; None if there is no such function.
    """
    found = capi.instance_export_get(context, at + capi.FRAME_INSTANCE, name, len(name), at + capi.FRAME_EXPORT)
    if not found or ctypes.c_uint8.from_address(at + capi.FRAME_EXPORT).value != capi.EXTERN_FUNC:
        return None
    if args:
        first, second = args if len(args) == 2 else (args[0], 0)
        frame = (ctypes.c_char * _FRAME.size).from_address(at)
        _TWO_ARGS.pack_into(frame, capi.FRAME_ARGS, capi.I32, first, capi.I32, second)
    return _first_slice(
        guest,
        at,
        capi.func_call_async(
            context,
            at + capi.FRAME_EXPORT_OF,
            at + capi.FRAME_ARGS,
            len(args),
            at + capi.FRAME_RESULTS,
            n_results,
            at + capi.FRAME_TRAP,
            at + capi.FRAME_ERROR,
        ),
        now,
    )


def exchange(  # noqa: PLR0917 - the same as in C
    guest: Any, context: int, at: int, pre: int, initialize: bool, message: bytes | None, max_bytes: int
) -> tuple[int, int, int, int, int, Any]:
    """
    Do all that a request needs of *guest*, as far as that goes within the first slice of each step.

    Makes its instance unless *pre* is 0, calls ``_initialize`` if it is to; then a command's ``_start`` (*message*
    None), or a reactor's ``faas_alloc`` and ``faas_handle``, with *message* in its memory.
    Returns: the last step that was begun and what its first slice came to; the nanoseconds of that slice, of all of
    them, and until the guest was ready for its request; a value. That is the answer, of at most *max_bytes*, after
    ANSWERED; PENDING, the future; else what the step's function returned. A step that is DONE but not followed by the
    next one returned what the caller has to refuse.
    """
    began = time.perf_counter_ns()
    step, last_ns, total_ns, value = INSTANTIATE, 0, 0, 0

    def ran(outcome: tuple[int, int, int] | None, n_results: int = 0) -> int:
        nonlocal last_ns, total_ns, value
        if outcome is None:
            return MISSING
        status, last_ns, future = outcome
        total_ns += last_ns
        if status == PENDING:
            value = future
        elif status == DONE and n_results:
            kind, value = _RESULT.unpack(ctypes.string_at(at + capi.FRAME_RESULTS, _RESULT.size))
            if kind == capi.I32:
                value &= 0xFFFFFFFF
        return status

    status = DONE
    if pre:
        status = ran(instantiate(guest, context, at, pre, True))
    if status == DONE and initialize:
        step, status = INITIALIZE, ran(call(guest, context, at, b"_initialize", (), 0, True))
    ready_ns = time.perf_counter_ns() - began
    answer: bytes | None = None
    if status == DONE and message is None:
        step, status = START, ran(call(guest, context, at, b"_start", (), 0, True))
    elif status == DONE and message is not None:
        step, status = ALLOC, ran(call(guest, context, at, b"faas_alloc", (len(message),), 1, True), 1)
        if status == DONE and value and _copied(context, at, value, message):
            args = (value, len(message))
            step, status = HANDLE, ran(call(guest, context, at, b"faas_handle", args, 1, True), 1)
            if status == DONE and value & 0xFFFFFFFF <= max_bytes:
                answer = _copy(context, at, value >> 32, value & 0xFFFFFFFF)
    if answer is not None:
        return ANSWERED, status, last_ns, total_ns, ready_ns, answer
    return step, status, last_ns, total_ns, ready_ns, value


def _copied(context: int, at: int, ptr: int, message: bytes) -> bool:
    """Return whether *message* is at *ptr* now."""
    memory = _own_memory(context, at)
    try:
        if memory is not None:
            memory.write(ptr, message)
    except MemoryFaultError:
        return False
    return memory is not None


def _copy(context: int, at: int, ptr: int, length: int) -> bytes | None:
    """Return *length* bytes at *ptr*, None if they are not inside."""
    memory = _own_memory(context, at)
    try:
        return None if memory is None else memory.read(ptr, length)
    except MemoryFaultError:
        return None


def _own_memory(context: int, at: int) -> LinearMemory | None:
    # Not into the frame's place for it, which the guest's own view may refer to.
    found = capi.Extern()
    name = b"memory"
    there = capi.instance_export_get(context, at + capi.FRAME_INSTANCE, name, len(name), ctypes.addressof(found))
    if not there or found.kind != capi.EXTERN_MEMORY:
        return None
    memory = LinearMemory(context, ctypes.addressof(found) + capi.Extern.of.offset)
    memory.owner = found
    return memory


def _first_slice(guest: Any, at: int, future: int, now: bool) -> tuple[int, int, int]:
    if not now:
        return PENDING, 0, future
    began = time.perf_counter_ns()
    done = poll(guest, future)
    took_ns = time.perf_counter_ns() - began
    if not done:
        return PENDING, took_ns, future
    failed = any(_FAILED.unpack(ctypes.string_at(at + capi.FRAME_TRAP, _FAILED.size)))
    return (FAILED if failed else DONE), took_ns, 0


def poll(guest: Any, future: int) -> bool:
    """Run one slice of *guest* on this thread; return whether that was its last one, and then drop *future*."""
    before = getattr(_current, "guest", None)
    _current.guest = guest
    try:
        done: bool = capi.call_future_poll(future)
    finally:
        _current.guest = before
    if done:
        capi.call_future_delete(future)
    return done


def future_delete(future: int) -> None:
    """Give up a call that is not done; its store must go next."""
    capi.call_future_delete(future)


def current() -> Any:
    """Return the guest whose slice runs on this thread."""
    return _current.guest


# --- a request's head -------------------------------------------------------------------------------------------------


def plain_head(_head: bytes) -> tuple[str, str, dict[str, str]] | None:
    """
    Return method, target and fields (by their names in lower case) of a whole HTTP/1.1 head, if it is plain.

    None for one that aiohttp's parser is to take: with a body or a word about the connection, a field that comes
    twice, anything but printable ASCII, or what may be an error. Here it takes all: Python would not be quicker.
    """
    return None


# --- the ticker ------------------------------------------------------------------------------------------------------


class Ticker:
    """
    Ends guests' time slices: a thread that increments the engine's epoch while guests run, and rests otherwise.

    Thread: ``wake`` from any; cheap when already awake.
    """

    def __init__(self, engine: int, tick_s: float) -> None:
        self._engine = engine
        self._tick_s = tick_s
        self._event = threading.Event()
        self._stopped = False
        self._woken = False
        self.asleep = False
        """Whether it rests."""
        self._thread = threading.Thread(target=self._run, name="faas-ticker", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Tick for at least ``IDLE_TICKS`` from now on; to be called before every slice."""
        self._woken = True
        if self.asleep:
            self._event.set()

    def _run(self) -> None:
        left = 0
        while not self._stopped:
            if self._woken:
                self._woken = False
                left = IDLE_TICKS
            elif left == 0:
                # The order closes the gap: a wake() before the look at _woken is seen there, a later one sees _asleep.
                self._event.clear()
                self.asleep = True
                if not self._woken and not self._stopped:
                    self._event.wait()
                self.asleep = False
                continue
            left -= 1
            time.sleep(self._tick_s)
            capi.engine_increment_epoch(self._engine)

    def stop(self) -> None:
        """End the thread; safe to call more than once."""
        self._stopped = True
        self._event.set()
        self._thread.join()


# --- a guest's memory -----------------------------------------------------------------------------------------------


def memory_of_caller(context: int, caller: int, at: int) -> LinearMemory | None:
    """Return the memory that the instance behind a host call exports, None if it does not."""
    if not capi.caller_export_get(caller, b"memory", 6, at + capi.FRAME_MEMORY):
        return None
    return _memory(context, at)


def memory_of_instance(context: int, at: int) -> LinearMemory | None:
    """Return the memory that the frame's instance exports, None if it does not."""
    if not capi.instance_export_get(context, at + capi.FRAME_INSTANCE, b"memory", 6, at + capi.FRAME_MEMORY):
        return None
    return _memory(context, at)


def _memory(context: int, at: int) -> LinearMemory | None:
    # wasmtime aborts the process when it is asked for a memory by a handle of another kind.
    if ctypes.c_uint8.from_address(at + capi.FRAME_MEMORY).value != capi.EXTERN_MEMORY:
        return None
    return LinearMemory(context, at + capi.FRAME_MEMORY_OF)


# --- from wasm into Python ------------------------------------------------------------------------------------------


def host_callback(handler: Callable[..., int | None], params: str) -> tuple[Any, int | None, Any]:
    """
    Return the C callback of a host function that never waits, its environment, and what to keep as long as the linker.

    *handler* gets the guest and, for each letter of *params*, an unsigned integer; what it raises becomes the guest's
    ``failure``, and a trap.
    """
    unpack = struct.Struct("<" + "".join("Q8x" if letter == "I" else "I12x" for letter in params)).unpack
    size = 16 * len(params)
    string_at = ctypes.string_at
    result_of = ctypes.c_uint32.from_address
    trap_new = capi.trap_new
    running = _current

    def callback(_env: int, caller: int, args: int, _count: int) -> int | None:
        guest = running.guest
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

    made = capi.UncheckedCallback(callback)
    return ctypes.cast(made, ctypes.c_void_p).value, None, made


# --- which one runs -------------------------------------------------------------------------------------------------


@functools.cache
def chosen() -> ModuleType:
    """Return ``_calls`` if it was compiled and fits, else this module; FAAS_NATIVE_CALLS=0 asks for this one."""
    if os.environ.get("FAAS_NATIVE_CALLS") != "0":
        try:
            from faas.wasm import _calls  # noqa: PLC0415 - there only where it could be compiled

            _calls.open_library(capi.LIBRARY_PATH, MemoryFaultError)
        except (ImportError, OSError) as exc:
            event(_log, "native_calls.off", reason=str(exc))
        else:
            if ctypes.sizeof(capi.Frame) == _calls.FRAME_BYTES and getattr(_calls, "REVISION", 1) == REVISION:
                return _calls
            event(_log, "native_calls.off", reason="compiled for another version; install again")
    return sys.modules[__name__]
