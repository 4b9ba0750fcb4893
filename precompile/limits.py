"""What a precompile job may use: set for good in its process, and told apart when one of them ends it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

from faas.errors import CompileLimitError

_NICENESS = 10
_PR_SET_PDEATHSIG = 1
# Loaded here, so that a child between fork and exec finds it ready.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# What Python and Rust print when the kernel refuses memory (12: ENOMEM) or a thread's stack (11: EAGAIN).
_OUT_OF_MEMORY = (b"memory allocation of", b"MemoryError", b"os error 12", b"os error 11", b"annot allocate memory")


def limit_process(*, cpu_s: int, memory_bytes: int) -> None:
    """
    Put this process and its children under the limits, for good; it dies with its parent.

    RLIMIT_DATA and not RLIMIT_AS: it counts writable private memory, so address space that wasmtime reserves for a
    guest's memory (4 GiB) costs nothing, and every allocation does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The soft limit sends SIGXCPU, which kills; the hard one is for a child that would catch it.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    os.nice(_NICENESS)
    die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, in whatever way; an exec keeps that."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def died_of_memory(returncode: int, stderr: bytes) -> bool:
    """Return whether a process ended for lack of memory: it says so, or the kernel's OOM killer took it."""
    return returncode != 0 and (returncode == -signal.SIGKILL or any(mark in stderr for mark in _OUT_OF_MEMORY))


def died_of_cpu(returncode: int) -> bool:
    """Return whether a process ended because its CPU time was used up."""
    return returncode == -signal.SIGXCPU


def memory_limit_error(memory_bytes: int, doing: str = "compiling") -> CompileLimitError:
    """Return the error for a job that needed more memory than it may have."""
    return CompileLimitError(
        f"{doing} took more than {memory_bytes / 2**20:g} MiB of memory; give it less to do, or ask the operator"
        " to raise precompile.memory_bytes",
        limit="precompile.memory_bytes",
        limit_bytes=memory_bytes,
    )


def cpu_limit_error(cpu_s: int, doing: str = "compiling") -> CompileLimitError:
    """Return the error for a job that needed more CPU time than it may have."""
    return CompileLimitError(
        f"{doing} took more than {cpu_s} s of CPU time; give it less to do, or ask the operator to raise"
        " precompile.cpu_s",
        limit="precompile.cpu_s",
        limit_s=cpu_s,
    )


def wall_limit_error(timeout_s: float, doing: str = "compiling") -> CompileLimitError:
    """Return the error for a job that took longer than it may."""
    return CompileLimitError(
        f"{doing} took longer than {timeout_s:g} s; give it less to do, or ask the operator to raise"
        " precompile.timeout_s",
        limit="precompile.timeout_s",
        limit_s=timeout_s,
    )
