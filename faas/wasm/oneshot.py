"""
One-shot runs: a WASI program run like a native one, with the terminal's stdio and chosen folders of this machine.

This is the one place where a guest meets the real file system, so it uses wasmtime's own WASI and its sandboxed
folders, never ours: ``faas run`` is the user's own program on the user's own files, nothing of it serves requests.
Only WASI-NN is ours: wasmtime has none for llama.cpp.
"""

from __future__ import annotations

import ctypes
import signal
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

import wasmtime
from wasmtime import component as wasm_component

from faas.errors import (
    GuestTrapError,
    InvalidModuleError,
    NotWasmError,
    UnknownImportsError,
    UnknownKindError,
)
from faas.guest.signatures import MODULE as SERVICE_MODULE
from faas.nn.session import NnContext
from faas.nn.signatures import MODULE as NN_MODULE
from faas.wasm.host import HostFunction
from faas.wasm.host.wasi_nn import FUNCTIONS as NN_FUNCTIONS
from faas.wasm.memory import MemoryFaultError

TRAP_EXIT_CODE = 134
"""What a native program that aborts leaves in the shell: 128 + SIGABRT."""
_MAGIC = b"\0asm"
_CORE_VERSION = b"\1\0\0\0"
_COMPONENT_LAYER = b"\1\0"
"""The last two bytes of a component's header; a module has zeros there."""
_RUN = "wasi:cli/run@0.2.0"
_VALUE_TYPES = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}


class GuestModels(NamedTuple):
    """What a program needs to use models; whoever made it closes it."""

    nn: NnContext
    wait: Callable[[Awaitable[int]], int]
    """Blocks until the awaitable is done on the loop that ``nn`` belongs to, and returns its result."""


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_once(
    path: Path,
    args: Sequence[str],
    env: Mapping[str, str],
    dirs: Sequence[tuple[str, str]],
    models: AbstractContextManager[GuestModels] | None = None,
) -> int:
    """
    Run the command at *path*, a module or a component, to its end and return its exit code; 134 if it trapped.

    Args: *args* follow the program's name; *dirs* are (host folder, guest path) pairs, readable and writable;
    *models* is entered if the program imports WASI-NN, and left at its end; a component can't have any.
    Raises: NotWasmError, InvalidModuleError, UnknownImportsError (also for WASI-NN without *models*, and for
    ``faas_v1``), UnknownKindError, GuestTrapError (for a host folder that can't be opened), and what entering *models*
    raises.
    """
    wasm = _read(path)
    engine = wasmtime.Engine()
    if wasm[6:8] == _COMPONENT_LAYER:
        return _run_component(path, engine, wasm, _wasi(path, args, env, dirs))
    try:
        module = wasmtime.Module(engine, wasm)
    except wasmtime.WasmtimeError as exc:
        raise InvalidModuleError(f"{path} does not validate: {_first_line(exc)}; build it again") from exc
    if not any(export.name == "_start" for export in module.exports):
        raise UnknownKindError(f"{path} exports no _start, so it is no program; build it as a command, or deploy it")
    if any(item.module == SERVICE_MODULE for item in module.imports):
        raise UnknownImportsError(
            f"{path.name} uses what a host has for its functions ({SERVICE_MODULE}: stores, settings, HTTP, calls, "
            "jobs), and 'faas run' has none of it; run it on a host: faas serve, then faas deploy"
        )
    wants_models = any(item.module == NN_MODULE for item in module.imports)
    if wants_models and models is None:
        raise UnknownImportsError(f"{path.name} uses models ({NN_MODULE}); give it one: --model NAME=FILE.gguf")
    wasi = _wasi(path, args, env, dirs)
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    # wasmtime turns exit codes from 126 up into traps; a native program may use all of 0 to 255.
    linker.define_func(
        "wasi_snapshot_preview1", "proc_exit", wasmtime.FuncType([wasmtime.ValType.i32()], []), _proc_exit
    )
    with ExitStack() as stack:
        if wants_models and models is not None:
            _define_nn(linker, stack.enter_context(models))
        # The guest runs inside one C call: only the default action of ^C can end it there.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.stdout.flush()
        return _start(path.name, linker, store, module)


def _wasi(
    path: Path, args: Sequence[str], env: Mapping[str, str], dirs: Sequence[tuple[str, str]]
) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = [path.name, *args]
    wasi.env = list(env.items())
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    for host, guest in dirs:
        try:
            wasi.preopen_dir(host, guest, fs_mutable=True)
        except wasmtime.WasmtimeError as exc:
            raise GuestTrapError(f"can't open the folder {host!r} for --dir; check that it exists") from exc
    return wasi


def _run_component(path: Path, engine: wasmtime.Engine, wasm: bytes, wasi: wasmtime.WasiConfig) -> int:
    try:
        component = wasm_component.Component(engine, wasm)
    except wasmtime.WasmtimeError as exc:
        raise InvalidModuleError(f"{path} does not validate: {_first_line(exc)}; build it again") from exc
    # The engine matches versions: any 0.2 of the interface is found by this name.
    interface = component.get_export_index(_RUN)
    index = None if interface is None else component.get_export_index("run", interface)
    if index is None:
        raise UnknownKindError(
            f"{path} exports no wasi:cli/run, so it is no program; build it for the world wasi:cli/command,"
            " or deploy it"
        )
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    linker = wasm_component.Linker(engine)
    linker.add_wasip2()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        instance = linker.instantiate(store, component)
        run = instance.get_func(store, index)
        assert run is not None
        answer = run(store)
    except wasmtime.ExitTrap as exc:
        return int(exc.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as exc:
        if "implementation was not found" in str(exc) or "implementation is missing" in str(exc):
            raise UnknownImportsError(
                f"{path.name} imports what 'faas run' does not offer: {_first_line(exc)}; "
                "build it for the world wasi:cli/command"
            ) from exc
        print(f"error: {path.name} trapped: {exc}", file=sys.stderr)
        return TRAP_EXIT_CODE
    return 1 if isinstance(answer, BaseException) or getattr(answer, "tag", "ok") == "err" else 0


def _start(name: str, linker: wasmtime.Linker, store: wasmtime.Store, module: wasmtime.Module) -> int:
    try:
        instance = linker.instantiate(store, module)
        start = instance.exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
    except _Exit as exc:
        return exc.code
    except wasmtime.ExitTrap as exc:
        return int(exc.code)
    except (wasmtime.Trap, GuestTrapError) as exc:
        print(f"error: {name} trapped: {exc}", file=sys.stderr)
        return TRAP_EXIT_CODE
    except wasmtime.WasmtimeError as exc:
        if "unknown import" in str(exc):
            raise UnknownImportsError(
                f"{name} imports what this host does not offer: {_first_line(exc)}; build it for wasm32-wasip1"
            ) from exc
        print(f"error: {name} trapped: {exc}", file=sys.stderr)
        return TRAP_EXIT_CODE
    return 0


# --- WASI-NN ---------------------------------------------------------------------------------------------------------


class _CallerMemory:
    """
    The memory that the calling guest exports, as a ``GuestMemory`` for the length of one host call.

    Where it lies and how large it is are asked for once: the guest waits for the call, so nothing can grow it.
    """

    def __init__(self, caller: wasmtime.Caller) -> None:
        memory = caller.get("memory")
        self._start, self._size = 0, -1  # without a memory even an empty range is outside
        if isinstance(memory, wasmtime.Memory):
            self._start = ctypes.cast(memory.data_ptr(caller), ctypes.c_void_p).value or 0
            self._size = memory.data_len(caller)

    def _at(self, ptr: int, length: int) -> int:
        if ptr < 0 or length < 0 or ptr + length > self._size:
            raise MemoryFaultError
        return self._start + ptr

    def read(self, ptr: int, length: int) -> bytes:
        return ctypes.string_at(self._at(ptr, length), length)

    def write(self, ptr: int, payload: bytes) -> None:
        ctypes.memmove(self._at(ptr, len(payload)), payload, len(payload))

    def read_u32(self, ptr: int) -> int:
        return self.read_u32s(ptr, 1)[0]

    def read_u32s(self, ptr: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.read(ptr, 4 * count))

    def write_u32(self, ptr: int, value: int) -> None:
        self.write(ptr, value.to_bytes(4, "little"))

    def write_u64(self, ptr: int, value: int) -> None:
        self.write(ptr, value.to_bytes(8, "little"))


class _NnCaller(NamedTuple):
    """The guest as the handlers of WASI-NN see it."""

    memory: _CallerMemory
    nn: NnContext | None


def _define_nn(linker: wasmtime.Linker, models: GuestModels) -> None:
    for name, function in NN_FUNCTIONS.items():
        kind = wasmtime.FuncType(
            [_VALUE_TYPES[letter]() for letter in function.params],
            [_VALUE_TYPES[letter]() for letter in function.results],
        )
        linker.define_func(NN_MODULE, name, kind, _nn_call(function, models), access_caller=True)


def _nn_call(function: HostFunction, models: GuestModels) -> Callable[..., int]:
    def call(caller: wasmtime.Caller, *args: int) -> int:
        guest = _NnCaller(_CallerMemory(caller), models.nn)
        answer: int | Awaitable[int] = function.call(guest, *(value & 0xFFFF_FFFF for value in args))
        return models.wait(answer) if isinstance(answer, Awaitable) else answer

    return call


# --- small steps -----------------------------------------------------------------------------------------------------


def _proc_exit(code: int) -> None:
    raise _Exit(code & 0xFF)


def _read(path: Path) -> bytes:
    try:
        wasm = path.read_bytes()
    except OSError as exc:
        raise NotWasmError(f"can't read {path}: {exc.strerror}; check the path") from exc
    if not wasm.startswith(_MAGIC):
        raise NotWasmError(f"{path} is not WebAssembly (it does not begin with \\0asm); build it for wasm32-wasip1")
    if wasm[4:8] != _CORE_VERSION and wasm[6:8] != _COMPONENT_LAYER:
        raise NotWasmError(f"{path} is of a version of WebAssembly that this host does not know; build it again")
    return wasm


def _first_line(exc: BaseException) -> str:
    return str(exc).split("\n", 1)[0].strip()
