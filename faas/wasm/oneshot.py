"""
One-shot runs: a WASI program run like a native one, with the terminal's stdio and chosen folders of this machine.

This is the one place where a guest meets the real file system, so it uses wasmtime's own WASI and its sandboxed
folders, never ours: ``faas run`` is the user's own program on the user's own files, nothing of it serves requests.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import wasmtime

from faas.errors import (
    ComponentError,
    GuestTrapError,
    InvalidModuleError,
    NotWasmError,
    UnknownImportsError,
    UnknownKindError,
)

TRAP_EXIT_CODE = 134
"""What a native program that aborts leaves in the shell: 128 + SIGABRT."""
_MAGIC = b"\0asm"
_CORE_VERSION = b"\1\0\0\0"


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_once(path: Path, args: Sequence[str], env: Mapping[str, str], dirs: Sequence[tuple[str, str]]) -> int:
    """
    Run the command module at *path* to its end and return its exit code; 134 if it trapped.

    Args: *args* follow the program's name; *dirs* are (host folder, guest path) pairs, readable and writable.
    Raises: NotWasmError, ComponentError, InvalidModuleError, UnknownImportsError, UnknownKindError, GuestTrapError
    (for a host folder that can't be opened).
    """
    wasm = _read(path)
    engine = wasmtime.Engine()
    try:
        module = wasmtime.Module(engine, wasm)
    except wasmtime.WasmtimeError as exc:
        raise InvalidModuleError(f"{path} does not validate: {_first_line(exc)}; build it again") from exc
    if not any(export.name == "_start" for export in module.exports):
        raise UnknownKindError(f"{path} exports no _start, so it is no program; build it as a command, or deploy it")
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
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    linker = wasmtime.Linker(engine)
    linker.allow_shadowing = True
    linker.define_wasi()
    # wasmtime turns exit codes from 126 up into traps; a native program may use all of 0 to 255.
    linker.define_func(
        "wasi_snapshot_preview1", "proc_exit", wasmtime.FuncType([wasmtime.ValType.i32()], []), _proc_exit
    )
    # The guest runs inside one C call: only the default action of ^C can end it there.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        instance = linker.instantiate(store, module)
        start = instance.exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
    except _Exit as exc:
        return exc.code
    except wasmtime.ExitTrap as exc:
        return int(exc.code)
    except wasmtime.Trap as exc:
        print(f"error: {path.name} trapped: {exc}", file=sys.stderr)
        return TRAP_EXIT_CODE
    except wasmtime.WasmtimeError as exc:
        if "unknown import" in str(exc):
            raise UnknownImportsError(
                f"{path.name} imports what this host does not offer: {_first_line(exc)}; build it for wasm32-wasip1"
            ) from exc
        print(f"error: {path.name} trapped: {exc}", file=sys.stderr)
        return TRAP_EXIT_CODE
    return 0


def _proc_exit(code: int) -> None:
    raise _Exit(code & 0xFF)


def _read(path: Path) -> bytes:
    try:
        wasm = path.read_bytes()
    except OSError as exc:
        raise NotWasmError(f"can't read {path}: {exc.strerror}; check the path") from exc
    if not wasm.startswith(_MAGIC):
        raise NotWasmError(f"{path} is not WebAssembly (it does not begin with \\0asm); build it for wasm32-wasip1")
    if wasm[4:8] != _CORE_VERSION:
        raise ComponentError(f"{path} is a component; 'faas run' takes core modules: build it for wasm32-wasip1")
    return wasm


def _first_line(exc: BaseException) -> str:
    return str(exc).split("\n", 1)[0].strip()
